//! One request on a downstream HTTP/2 connection, as the pipeline sees it.
//!
//! Owns the stream. Never routes, and never decides what a response says.

use std::cell::{Cell, OnceCell, RefCell};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;

use super::body::{ReceiveBody, SendBody, stream_error};
use super::convert;
use crate::http::headers::Headers;
use crate::http::manager::downstream::Gone;
use crate::http::message::ResponseHead;
use crate::http::seam::{BodySink, BodySource, Chunk, StreamError};

/// One request and its response.
pub struct Exchange {
    request: ReceiveBody,
    respond: RefCell<SendResponse<Bytes>>,
    response: OnceCell<SendBody>,
    wants_continue: Cell<bool>,
}

impl Exchange {
    /// For a request whose head was taken.
    pub fn new(body: RecvStream, respond: SendResponse<Bytes>, wants_continue: bool) -> Self {
        Self {
            request: ReceiveBody::new(body),
            respond: RefCell::new(respond),
            response: OnceCell::new(),
            wants_continue: Cell::new(wants_continue),
        }
    }

    /// The client waits for a go-ahead before it sends the body.
    pub fn take_continue(&self) -> bool {
        self.wants_continue.replace(false) && !self.request.is_done()
    }

    /// There is no request body, or it was received.
    pub fn request_is_done(&self) -> bool {
        self.request.is_done()
    }

    /// Whether the response head was sent.
    pub fn has_responded(&self) -> bool {
        self.response.get().is_some()
    }

    /// Sends an informational response.
    pub fn send_informational(&self, head: &ResponseHead) {
        // A stream that is gone is met again by whatever comes next.
        let _ = self.respond.borrow_mut().send_informational(convert::response(head));
    }

    /// Sends the response head. `end` says that no body follows.
    ///
    /// # Errors
    /// When the stream is gone.
    pub fn send_head(&self, head: &ResponseHead, end: bool) -> Result<(), StreamError> {
        let sent = self.respond.borrow_mut().send_response(convert::response(head), end);
        let stream = sent.map_err(|error| stream_error(&error))?;
        // A second head would be a bug of the pipeline; `h2` refuses it above.
        let _ = self.response.set(SendBody::new(stream, end));
        Ok(())
    }

    /// Tells the client that the rest will not come.
    pub fn reset(&self, reason: h2::Reason) {
        match self.response.get() {
            Some(body) => body.reset(reason),
            None => self.respond.borrow_mut().send_reset(reason),
        }
    }

    /// Ready when the client has reset the stream or gone away.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<Gone> {
        let reset = match self.response.get() {
            Some(body) if !body.is_finished() => body.poll_reset(cx),
            Some(_) => return Poll::Pending,
            None => self.respond.borrow_mut().poll_reset(cx),
        };
        reset.map(|reason| if reason.is_ok() { Gone::Stream } else { Gone::Connection })
    }
}

impl BodySource for Exchange {
    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        self.request.poll_data(cx)
    }

    fn with_data<R>(&self, look: impl FnOnce(Chunk<'_>) -> R) -> R {
        self.request.with_data(look)
    }

    fn consume(&self, count: usize) {
        self.request.consume(count);
    }

    fn take_trailers(&self) -> Option<Headers> {
        self.request.take_trailers()
    }
}

impl BodySink for Exchange {
    fn poll_send(&self, cx: &mut Context<'_>, chunk: Chunk<'_>) -> Poll<Result<usize, StreamError>> {
        match self.response.get() {
            Some(body) => body.poll_send(cx, chunk),
            None => Poll::Ready(Err(StreamError::Protocol("body before head".into()))),
        }
    }

    fn poll_finish(&self, _: &mut Context<'_>, trailers: Option<&Headers>) -> Poll<Result<(), StreamError>> {
        match self.response.get() {
            Some(body) => body.poll_finish(trailers),
            None => Poll::Ready(Err(StreamError::Protocol("end before head".into()))),
        }
    }

    fn poll_flush(&self, _: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        // The connection's task writes what streams have handed over.
        Poll::Ready(Ok(()))
    }
}
