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

/// How a stream ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// With a whole request and a whole response.
    Whole,
    /// The client reset it.
    ResetByClient,
    /// Its connection ended.
    ConnectionLost,
    /// We reset it before there was a response head, or because nobody needs the rest of the request.
    Reset,
    /// We reset it within the response.
    ResponseBroken,
}

/// One request and its response.
pub struct Exchange {
    request: ReceiveBody,
    respond: RefCell<SendResponse<Bytes>>,
    response: OnceCell<SendBody>,
    wants_continue: Cell<bool>,
    broken: Cell<Option<Ending>>,
}

impl Exchange {
    /// For a request whose head was taken.
    pub fn new(body: RecvStream, respond: SendResponse<Bytes>, wants_continue: bool) -> Self {
        Self {
            request: ReceiveBody::new(body),
            respond: RefCell::new(respond),
            response: OnceCell::new(),
            wants_continue: Cell::new(wants_continue),
            broken: Cell::new(None),
        }
    }

    /// How the stream ends if it is dropped now.
    pub fn ending(&self) -> Ending {
        let responded = self.response.get().is_some_and(SendBody::is_finished);
        match self.broken.get() {
            Some(ending) => ending,
            None if responded && self.request.is_done() => Ending::Whole,
            None if responded || !self.has_responded() => Ending::Reset,
            None => Ending::ResponseBroken,
        }
    }

    /// Notes how the stream broke; the first cause counts.
    fn breaks(&self, ending: Ending) {
        self.broken.set(self.broken.get().or(Some(ending)));
    }

    /// What a failure to read or write means: the library forgets why a stream is closed when something is sent on it.
    fn failed(&self, cx: &mut Context<'_>, error: StreamError) -> StreamError {
        match self.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => {
                self.breaks(Ending::ResetByClient);
                StreamError::Reset(reason)
            }
            Poll::Ready(Err(_)) => {
                self.breaks(Ending::ConnectionLost);
                StreamError::Closed
            }
            Poll::Pending => error,
        }
    }

    fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<Result<h2::Reason, h2::Error>> {
        match self.response.get() {
            Some(body) => body.poll_reset(cx),
            None => self.respond.borrow_mut().poll_reset(cx),
        }
    }

    /// The client waits for a go-ahead before it sends the body.
    pub fn take_continue(&self) -> bool {
        self.wants_continue.replace(false) && !self.request.is_done()
    }

    /// Bytes of the request that were not taken.
    pub fn held(&self) -> usize {
        self.request.held()
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
        let mut response = convert::response(head);
        if head.status == 101 {
            // RFC 8441 section 5: where HTTP/1.1 switches protocols, HTTP/2 just succeeds.
            *response.status_mut() = http::StatusCode::OK;
        }
        let sent = self.respond.borrow_mut().send_response(response, end);
        let stream = sent.map_err(|error| stream_error(&error))?;
        // A second head would be a bug of the pipeline; `h2` refuses it above.
        let _ = self.response.set(SendBody::new(stream, end));
        Ok(())
    }

    /// Tells the client that the rest will not come.
    pub fn reset(&self, reason: h2::Reason) {
        self.breaks(if self.has_responded() { Ending::ResponseBroken } else { Ending::Reset });
        match self.response.get() {
            Some(body) => body.reset(reason),
            None => self.respond.borrow_mut().send_reset(reason),
        }
    }

    /// Ready when the client has reset the stream or gone away.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<Gone> {
        if self.response.get().is_some_and(SendBody::is_finished) {
            return Poll::Pending;
        }
        self.poll_reset(cx).map(|reset| {
            let (ending, gone) = match reset {
                Ok(_) => (Ending::ResetByClient, Gone::Stream),
                Err(_) => (Ending::ConnectionLost, Gone::Connection),
            };
            self.breaks(ending);
            gone
        })
    }
}

impl BodySource for Exchange {
    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        self.request.poll_data(cx).map_err(|error| {
            if self.request.connection_lost() {
                self.breaks(Ending::ConnectionLost);
                return StreamError::Closed;
            }
            if self.request.reset_by_peer().is_some() {
                self.breaks(Ending::ResetByClient);
            }
            error
        })
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
            Some(body) => body.poll_send(cx, chunk).map_err(|error| self.failed(cx, error)),
            None => Poll::Ready(Err(StreamError::Protocol("body before head".into()))),
        }
    }

    fn poll_finish(&self, cx: &mut Context<'_>, trailers: Option<&Headers>) -> Poll<Result<(), StreamError>> {
        match self.response.get() {
            Some(body) => body.poll_finish(trailers).map_err(|error| self.failed(cx, error)),
            None => Poll::Ready(Err(StreamError::Protocol("end before head".into()))),
        }
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        // The connection's task writes what streams have handed over.
        let released = self.response.get().map_or(Ok(()), SendBody::release);
        Poll::Ready(released.map_err(|error| self.failed(cx, error)))
    }
}
