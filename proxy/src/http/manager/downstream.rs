//! One downstream request, whatever the protocol.
//!
//! Owns the dispatch to the engines. Never decides what is answered.

use std::task::{Context, Poll};

use crate::http::headers::Headers;
use crate::http::message::ResponseHead;
use crate::http::seam::{BodySink, BodySource, Chunk, StreamError};
use crate::http::{h1, h2};

/// How a client went away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Gone {
    /// With its connection.
    Connection,
    /// It reset the stream only.
    Stream,
}

/// One request and its response.
pub enum Downstream<'a> {
    /// HTTP/1.
    H1(h1::server::Exchange<'a>),
    /// HTTP/2.
    H2(h2::server::Exchange),
}

macro_rules! each {
    ($this:expr, $exchange:ident => $call:expr) => {
        match $this {
            Downstream::H1($exchange) => $call,
            Downstream::H2($exchange) => $call,
        }
    };
}

impl Downstream<'_> {
    /// Sends the response head. `end` says that no body follows.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn send_head(&self, head: &ResponseHead, end: bool) -> Result<(), StreamError> {
        match self {
            Downstream::H1(exchange) => {
                exchange.send_head(head, end);
                Ok(())
            }
            Downstream::H2(exchange) => exchange.send_head(head, end),
        }
    }

    /// Answers `Expect: 100-continue`, if the client waits for that.
    pub fn send_continue(&self) {
        let go_ahead = ResponseHead { status: 100, ..ResponseHead::default() };
        match self {
            Downstream::H1(exchange) if exchange.take_continue() => exchange.send_informational(&go_ahead),
            Downstream::H2(exchange) if exchange.take_continue() => exchange.send_informational(&go_ahead),
            Downstream::H1(_) | Downstream::H2(_) => {}
        }
    }

    /// Whether the response head was sent.
    pub fn has_responded(&self) -> bool {
        each!(self, exchange => exchange.has_responded())
    }

    /// There is no request body, or it was read to its end.
    pub fn request_is_done(&self) -> bool {
        each!(self, exchange => exchange.request_is_done())
    }

    /// Bytes that are held for it here.
    pub fn held(&self) -> usize {
        each!(self, exchange => exchange.held())
    }

    /// Ready when the client has gone away.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<Gone> {
        match self {
            Downstream::H1(exchange) => exchange.poll_closed(cx).map(|()| Gone::Connection),
            Downstream::H2(exchange) => exchange.poll_closed(cx),
        }
    }

    /// Nobody will read the rest of the request body. HTTP/2 holds it back by flow control, and nobody else with it.
    pub fn poll_discard(&self, cx: &mut Context<'_>) {
        if let Downstream::H1(exchange) = self {
            exchange.poll_discard(cx);
        }
    }

    /// No further request is taken on an HTTP/1 connection.
    pub fn set_close(&self) {
        if let Downstream::H1(exchange) = self {
            exchange.set_close();
        }
    }

    /// The rest of the response will not come: the stream is reset, or the connection closed.
    pub fn abort(&self, reason: ::h2::Reason) {
        match self {
            Downstream::H1(exchange) => exchange.set_close(),
            Downstream::H2(exchange) => exchange.reset(reason),
        }
    }

    /// After 101: bytes go both ways.
    pub fn upgrade(&self) {
        if let Downstream::H1(exchange) = self {
            exchange.upgrade();
        }
    }
}

impl BodySource for Downstream<'_> {
    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        each!(self, exchange => exchange.poll_data(cx))
    }

    fn with_data<R>(&self, look: impl FnOnce(Chunk<'_>) -> R) -> R {
        each!(self, exchange => exchange.with_data(look))
    }

    fn consume(&self, count: usize) {
        each!(self, exchange => exchange.consume(count));
    }

    fn take_trailers(&self) -> Option<Headers> {
        each!(self, exchange => exchange.take_trailers())
    }
}

impl BodySink for Downstream<'_> {
    fn poll_send(&self, cx: &mut Context<'_>, chunk: Chunk<'_>) -> Poll<Result<usize, StreamError>> {
        each!(self, exchange => exchange.poll_send(cx, chunk))
    }

    fn poll_finish(&self, cx: &mut Context<'_>, trailers: Option<&Headers>) -> Poll<Result<(), StreamError>> {
        each!(self, exchange => exchange.poll_finish(cx, trailers))
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        each!(self, exchange => exchange.poll_flush(cx))
    }
}
