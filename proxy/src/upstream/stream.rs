//! One request towards an endpoint, whatever the protocol.
//!
//! Owns the dispatch to the engines. Never decides where a request goes.

use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Instant;

use outrigger_config::cluster::UpstreamHttp;

use super::connect::Counted;
use super::{h1, h2};
use crate::http::h1::parse::Framing;
use crate::http::headers::Headers;
use crate::http::message::{RequestHead, ResponseHead, Version};
use crate::http::seam::{BodySink, BodySource, Chunk, StreamError};
use crate::trace::Opening;

/// One request and its response. Boxed engines keep the request's future small.
pub enum UpstreamStream {
    /// HTTP/1.
    H1(Box<h1::Stream>),
    /// HTTP/2.
    H2(Box<h2::Stream>),
}

macro_rules! each {
    ($this:expr, $stream:ident => $call:expr) => {
        match $this {
            UpstreamStream::H1($stream) => $call,
            UpstreamStream::H2($stream) => $call,
        }
    };
}

impl UpstreamStream {
    /// Which version it speaks.
    pub fn version(&self) -> Version {
        match self {
            UpstreamStream::H1(_) => Version::Http11,
            UpstreamStream::H2(_) => Version::Http2,
        }
    }

    /// Our address.
    pub fn local_address(&self) -> Option<SocketAddr> {
        each!(self, stream => stream.local_address())
    }

    /// The connection has served requests before.
    pub fn is_reused(&self) -> bool {
        match self {
            UpstreamStream::H1(stream) => stream.is_reused(),
            UpstreamStream::H2(_) => false,
        }
    }

    /// When its connection was made.
    pub fn opening(&self) -> Opening {
        self.counted().opening()
    }

    /// Its connection, as it is counted.
    pub fn counted(&self) -> &Counted {
        each!(self, stream => stream.counted())
    }

    /// Bytes received and sent, where they are counted per request.
    pub fn transferred(&self) -> (u64, u64) {
        match self {
            UpstreamStream::H1(stream) => stream.transferred(),
            UpstreamStream::H2(_) => (0, 0),
        }
    }

    /// Bytes that are held for it here.
    pub fn held(&self) -> usize {
        each!(self, stream => stream.held())
    }

    /// Sends the head. `framing` is that of the request body.
    pub fn poll_send_head(
        &self,
        cx: &mut Context<'_>,
        head: &RequestHead,
        framing: Framing,
        options: &UpstreamHttp,
    ) -> Poll<Result<(), StreamError>> {
        match self {
            UpstreamStream::H1(stream) => {
                stream.send_head(head, framing, options);
                Poll::Ready(Ok(()))
            }
            UpstreamStream::H2(stream) => {
                stream.poll_send_head(cx, head, framing == Framing::None && !head.is_tunnel())
            }
        }
    }

    /// Ready with the response head.
    pub fn poll_response(&self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), StreamError>> {
        each!(self, stream => stream.poll_response(cx, head))
    }

    /// There is no response body, or it was read to its end.
    pub fn response_is_done(&self) -> bool {
        each!(self, stream => stream.response_is_done())
    }

    /// After 101, or 2xx for CONNECT: bytes go both ways.
    pub fn upgrade(&mut self) {
        if let UpstreamStream::H1(stream) = self {
            stream.upgrade();
        }
    }

    /// Gives the connection back to its pool: nothing was sent on it.
    pub fn give_back(self) {
        match self {
            UpstreamStream::H1(stream) => stream.give_back(),
            UpstreamStream::H2(_) => {}
        }
    }

    /// Ends the request; the connection goes back to its pool if it can be used again.
    pub fn finish(self, now: Instant) {
        match self {
            UpstreamStream::H1(stream) => stream.finish(now),
            UpstreamStream::H2(_) => {}
        }
    }
}

impl BodySource for UpstreamStream {
    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        each!(self, stream => stream.poll_data(cx))
    }

    fn with_data<R>(&self, look: impl FnOnce(Chunk<'_>) -> R) -> R {
        each!(self, stream => stream.with_data(look))
    }

    fn consume(&self, count: usize) {
        each!(self, stream => stream.consume(count));
    }

    fn take_trailers(&self) -> Option<Headers> {
        each!(self, stream => stream.take_trailers())
    }
}

impl BodySink for UpstreamStream {
    fn poll_send(&self, cx: &mut Context<'_>, chunk: Chunk<'_>) -> Poll<Result<usize, StreamError>> {
        each!(self, stream => stream.poll_send(cx, chunk))
    }

    fn poll_finish(&self, cx: &mut Context<'_>, trailers: Option<&Headers>) -> Poll<Result<(), StreamError>> {
        match self {
            UpstreamStream::H1(stream) => stream.poll_finish(cx, trailers),
            UpstreamStream::H2(stream) => stream.poll_finish(trailers),
        }
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match self {
            UpstreamStream::H1(stream) => stream.poll_flush(cx),
            UpstreamStream::H2(stream) => stream.poll_flush(),
        }
    }
}
