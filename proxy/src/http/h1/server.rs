//! One request on a downstream HTTP/1 connection, as the pipeline sees it.
//!
//! Owns the framing of its response. Never routes, and never decides what a response says.

use std::cell::{Cell, OnceCell, RefCell};
use std::task::{Context, Poll};
use std::time::Instant;

use outrigger_config::http::HeaderCase;

use super::body_io::{BodyReader, BodyWriter};
use super::encode;
use super::link::Link;
use super::parse::{Framing, Limits, ParsedRequest, decimal};
use crate::http::headers::{HeaderId, Headers};
use crate::http::message::{ResponseHead, Version};
use crate::http::seam::{BodySink, BodySource, Chunk, StreamError};

/// One request and its response.
pub struct Exchange<'a> {
    link: &'a Link,
    reader: RefCell<BodyReader>,
    limits: Limits,
    writer: OnceCell<BodyWriter>,
    version: Version,
    head_request: bool,
    connect: bool,
    /// Bytes go both ways.
    upgraded: Cell<bool>,
    case: HeaderCase,
    trailers: bool,
    /// The connection closes after this response.
    close: Cell<bool>,
    /// The connection closes after a response that begins later than this.
    close_after: Option<Instant>,
    wants_continue: Cell<bool>,
}

impl<'a> Exchange<'a> {
    /// For a request whose head was just consumed from the link.
    pub fn new(
        link: &'a Link,
        parsed: &ParsedRequest,
        version: Version,
        head_request: bool,
        options: &outrigger_config::http::Http1Options,
        limits: Limits,
    ) -> Self {
        Self {
            link,
            reader: RefCell::new(BodyReader::new(parsed.framing, limits)),
            limits,
            writer: OnceCell::new(),
            version,
            head_request,
            connect: false,
            upgraded: Cell::new(false),
            case: options.header_case,
            trailers: options.enable_trailers,
            close: Cell::new(!parsed.keep_alive),
            close_after: None,
            wants_continue: Cell::new(parsed.expects_continue && parsed.framing != Framing::None),
        }
    }

    /// The connection must close after a response that begins later than this.
    pub fn set_close_after(&mut self, end: Option<Instant>) {
        self.close_after = end;
    }

    /// The request is a CONNECT: after 2xx bytes go both ways.
    pub fn set_connect(&mut self, connect: bool) {
        self.connect = connect;
    }

    /// The connection must close after this response.
    pub fn set_close(&self) {
        self.close.set(true);
    }

    /// The connection can serve another request: both messages ended as they should.
    pub fn is_reusable(&self) -> bool {
        !self.close.get() && self.reader.borrow().is_done() && self.writer.get().is_some_and(BodyWriter::is_finished)
    }

    /// Whether the response head was sent.
    pub fn has_responded(&self) -> bool {
        self.writer.get().is_some()
    }

    /// The client waits for a go-ahead before it sends the body.
    pub fn take_continue(&self) -> bool {
        self.wants_continue.replace(false)
    }

    /// Bytes of it that were not taken, or wait to be written.
    pub fn held(&self) -> usize {
        self.link.held()
    }

    /// There is no request body, or it was read to its end.
    pub fn request_is_done(&self) -> bool {
        self.reader.borrow().is_done()
    }

    /// Sends an informational response.
    pub fn send_informational(&self, head: &ResponseHead) {
        self.link.with_output(|output| encode::response(head, None, false, self.case, output));
    }

    /// Sends the response head. `end` says that no body follows.
    pub fn send_head(&self, head: &ResponseHead, end: bool) {
        let framing = self.response_framing(head, end);
        if framing == Framing::UntilClose || !self.reader.borrow().is_done() && self.wants_continue.get() {
            self.close.set(true);
        }
        if self.close_after.is_some_and(|end| Instant::now() >= end) {
            self.close.set(true);
        }
        let tunnel = self.connect && (200..300).contains(&head.status);
        if tunnel {
            self.close.set(true);
        }
        let upgraded = head.status == 101 || tunnel;
        let announce = match head.status {
            // RFC 9110 section 9.3.6: neither do these.
            _ if tunnel => Some(Framing::UntilClose),
            // RFC 9110 section 8.6: these say nothing of a length.
            101 | 204 => Some(Framing::UntilClose),
            // These keep what their headers say: they announce the body that another answer would have had.
            304 => None,
            _ if self.head_request => None,
            _ => Some(framing),
        };
        let close = self.close.get() && !upgraded;
        self.link.with_output(|output| encode::response(head, announce, close, self.case, output));
        let framing = if upgraded { Framing::UntilClose } else { framing };
        // A second head for one request would be a bug of the pipeline; the first one counts.
        let _ = self.writer.set(BodyWriter::new(framing, self.trailers));
    }

    fn response_framing(&self, head: &ResponseHead, end: bool) -> Framing {
        if end || self.head_request || head.status == 204 || head.status == 304 {
            return Framing::None;
        }
        match head.headers.get(HeaderId::ContentLength).and_then(decimal) {
            Some(0) => Framing::None,
            Some(length) => Framing::Length(length),
            None if self.version == Version::Http10 => Framing::UntilClose,
            None => Framing::Chunked,
        }
    }

    /// After 101, or 2xx for CONNECT: bytes go both ways until either side ends, and then the connection.
    pub fn upgrade(&self) {
        self.upgraded.set(true);
        *self.reader.borrow_mut() = BodyReader::new(Framing::UntilClose, self.limits);
        self.close.set(true);
    }

    /// Ready when the client has gone away.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let reader = self.reader.borrow();
        if self.upgraded.get() {
            // The end is part of what is read, and the other direction may go on after it.
            return Poll::Pending;
        }
        loop {
            match self.link.poll_closed(cx) {
                // The body of a request that waits: the end can be seen only behind it.
                Poll::Pending if !reader.is_done() && self.link.prefer_large() => {}
                closed => return closed,
            }
        }
    }

    /// Nobody will read the rest of the request body: it is thrown away, as far as it comes before the response ends.
    /// Otherwise a client that writes before it reads would wait for ever.
    pub fn poll_discard(&self, cx: &mut Context<'_>) {
        if !self.request_is_done() {
            // Whatever is wrong with it, the response goes on; a client that has gone is noticed by `poll_closed`.
            let _ = self.poll_drain(cx);
        }
    }

    /// The rest of the request body, if it is small and at hand, so that the connection can be used again.
    pub fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            match self.reader.borrow().poll_data(cx, self.link) {
                Poll::Ready(Ok(true)) => {
                    let count = self.reader.borrow().with_data(self.link, |chunk| chunk.bytes().len());
                    self.reader.borrow().consume(self.link, count);
                }
                Poll::Ready(Ok(false)) => return Poll::Ready(true),
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl BodySource for Exchange<'_> {
    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        self.reader.borrow().poll_data(cx, self.link)
    }

    fn with_data<R>(&self, look: impl FnOnce(Chunk<'_>) -> R) -> R {
        self.reader.borrow().with_data(self.link, look)
    }

    fn consume(&self, count: usize) {
        self.reader.borrow().consume(self.link, count);
    }

    fn take_trailers(&self) -> Option<Headers> {
        self.reader.borrow().take_trailers().filter(|_| self.trailers)
    }
}

impl BodySink for Exchange<'_> {
    fn poll_send(&self, cx: &mut Context<'_>, chunk: Chunk<'_>) -> Poll<Result<usize, StreamError>> {
        match self.writer.get() {
            Some(writer) => writer.poll_send(cx, self.link, chunk.bytes()),
            None => Poll::Ready(Err(StreamError::Protocol("body before head".into()))),
        }
    }

    fn poll_finish(&self, cx: &mut Context<'_>, trailers: Option<&Headers>) -> Poll<Result<(), StreamError>> {
        match self.writer.get() {
            Some(writer) => writer.poll_finish(cx, self.link, trailers),
            None => Poll::Ready(Err(StreamError::Protocol("end before head".into()))),
        }
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.link.poll_flush(cx).map_err(StreamError::from)
    }
}
