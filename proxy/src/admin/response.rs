//! Answers of the admin port.
//!
//! Owns their headers and how a body is handed out piece by piece. Never knows what an answer says.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body::{Body, Frame};

/// Long output lets other tasks of the thread run after so many pieces.
const PIECES_PER_TURN: u32 = 4;

/// Plain text.
pub const TEXT: &str = "text/plain; charset=UTF-8";
/// JSON.
pub const JSON: &str = "application/json";
/// HTML.
pub const HTML: &str = "text/html; charset=UTF-8";

/// An answer.
pub struct Response {
    /// HTTP status.
    pub status: StatusCode,
    /// Of the body.
    pub content_type: &'static str,
    /// The body, made while it is sent.
    pub pieces: Box<dyn Iterator<Item = Bytes>>,
    /// What a browser may do with it (`content-security-policy`).
    pub policy: Option<HeaderValue>,
}

impl Response {
    /// A short text.
    pub fn text(status: StatusCode, text: impl Into<String>) -> Self {
        Self::whole(status, TEXT, text.into())
    }

    /// A body of pieces.
    pub fn pieces(status: StatusCode, content_type: &'static str, pieces: Box<dyn Iterator<Item = Bytes>>) -> Self {
        Self { status, content_type, pieces, policy: None }
    }

    /// `OK`, after something was done.
    pub fn done() -> Self {
        Self::text(StatusCode::OK, "OK\n")
    }

    /// A body that is at hand.
    pub fn whole(status: StatusCode, content_type: &'static str, body: String) -> Self {
        let piece = (!body.is_empty()).then(|| Bytes::from(body));
        Self::pieces(status, content_type, Box::new(piece.into_iter()))
    }

    /// A body that is made as it is sent.
    pub fn stream(content_type: &'static str, pieces: impl Iterator<Item = String> + 'static) -> Self {
        Self::pieces(StatusCode::OK, content_type, Box::new(pieces.map(Bytes::from)))
    }

    /// As hyper sends it.
    pub(super) fn into_http(self) -> http::Response<Pieces> {
        let Self { status, content_type, pieces, policy } = self;
        let mut response = http::Response::new(Pieces { pieces, in_turn: 0, sent: 0, on_end: None });
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::SERVER, HeaderValue::from_static("envoy"));
        if let Some(policy) = policy {
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
            headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
            headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        }
        response
    }
}

/// A body made of pieces.
pub(super) struct Pieces {
    pieces: Box<dyn Iterator<Item = Bytes>>,
    in_turn: u32,
    sent: u64,
    on_end: Option<Box<dyn FnOnce(u64)>>,
}

impl Pieces {
    /// Called with the bytes sent when the body is over, whether all of it was sent or not.
    pub(super) fn on_end(&mut self, call: impl FnOnce(u64) + 'static) {
        self.on_end = Some(Box::new(call));
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        if let Some(call) = self.on_end.take() {
            call(self.sent);
        }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.in_turn == PIECES_PER_TURN {
            this.in_turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.in_turn += 1;
        Poll::Ready(this.pieces.next().map(|piece| {
            this.sent += piece.len() as u64;
            Ok(Frame::data(piece))
        }))
    }
}
