//! An HTTP/1 body on its link: read by [`BodyReader`], written by [`BodyWriter`].
//!
//! Owns how framing meets buffers. Never decides what the framing is.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, ready};

use super::body::{BodyDecoder, Step};
use super::encode;
use super::link::Link;
use super::parse::{Framing, Limits};
use crate::http::headers::{HeaderId, Headers};
use crate::http::seam::{Chunk, StreamError};
use crate::worker::buffer::{LARGE_BYTES, SMALL_BYTES};

/// Reads one body.
#[derive(Debug)]
pub struct BodyReader {
    decoder: RefCell<BodyDecoder>,
    limits: Limits,
    /// Bytes at the start of the input that are body.
    available: Cell<usize>,
    trailers: RefCell<Headers>,
    bulk: bool,
}

impl BodyReader {
    /// For a body that begins at the start of the link's input.
    pub fn new(framing: Framing, limits: Limits) -> Self {
        let bulk = match framing {
            Framing::Length(length) => length > SMALL_BYTES as u64,
            Framing::Chunked | Framing::UntilClose => true,
            Framing::None => false,
        };
        Self {
            decoder: RefCell::new(BodyDecoder::new(framing)),
            limits,
            available: Cell::new(0),
            trailers: RefCell::new(Headers::default()),
            bulk,
        }
    }

    /// The whole body was read.
    pub fn is_done(&self) -> bool {
        self.available.get() == 0 && self.decoder.borrow().is_done()
    }

    /// See [`crate::http::seam::BodySource::poll_data`].
    pub fn poll_data(&self, cx: &mut Context<'_>, link: &Link) -> Poll<Result<bool, StreamError>> {
        if self.available.get() > 0 {
            return Poll::Ready(Ok(true));
        }
        loop {
            let step = {
                let input = link.input();
                let mut decoder = self.decoder.borrow_mut();
                decoder.decode(&input, &self.limits, &mut self.trailers.borrow_mut())
            };
            match step.map_err(|error| StreamError::Protocol(error.to_string()))? {
                Step::Data { data, .. } => {
                    link.consume(data.start);
                    self.available.set(data.len());
                    return Poll::Ready(Ok(true));
                }
                Step::End { consumed } => {
                    link.consume(consumed);
                    return Poll::Ready(Ok(false));
                }
                Step::More { consumed } => link.consume(consumed),
            }
            if link.is_full() {
                // Only a trailer section can need more than a buffer; its size is limited like a head's.
                link.grow(self.limits.max_head_bytes.max(LARGE_BYTES));
            }
            if ready!(link.poll_fill(cx, self.bulk))? == 0 {
                self.decoder.borrow_mut().closed().map_err(|_| StreamError::Closed)?;
                return Poll::Ready(Ok(false));
            }
        }
    }

    /// See [`crate::http::seam::BodySource::with_data`].
    pub fn with_data<R>(&self, link: &Link, look: impl FnOnce(Chunk<'_>) -> R) -> R {
        let input = link.input();
        let available = self.available.get().min(input.len());
        look(Chunk::Slice(&input[..available]))
    }

    /// See [`crate::http::seam::BodySource::consume`].
    pub fn consume(&self, link: &Link, count: usize) {
        self.available.set(self.available.get().saturating_sub(count));
        link.consume(count);
    }

    /// See [`crate::http::seam::BodySource::take_trailers`].
    pub fn take_trailers(&self) -> Option<Headers> {
        let trailers = std::mem::take(&mut *self.trailers.borrow_mut());
        (!trailers.is_empty()).then_some(trailers)
    }
}

/// Writes one body.
#[derive(Debug)]
pub struct BodyWriter {
    framing: Framing,
    trailers: bool,
    finished: Cell<bool>,
    /// Bytes still to come of a body with a length.
    missing: Cell<u64>,
    /// Bytes of the current chunk that were announced and not taken yet.
    announced: Cell<usize>,
}

impl BodyWriter {
    /// For a body announced by the head that was just written. `trailers` are passed on or dropped.
    pub fn new(framing: Framing, trailers: bool) -> Self {
        let missing = if let Framing::Length(length) = framing { length } else { 0 };
        Self {
            framing,
            trailers,
            finished: Cell::new(framing == Framing::None),
            missing: Cell::new(missing),
            announced: Cell::new(0),
        }
    }

    /// Nothing more may be written.
    pub fn is_finished(&self) -> bool {
        self.finished.get()
    }

    /// See [`crate::http::seam::BodySink::poll_send`].
    pub fn poll_send(&self, cx: &mut Context<'_>, link: &Link, data: &[u8]) -> Poll<Result<usize, StreamError>> {
        match self.framing {
            // A body where none may be (an answer to HEAD, say) is dropped.
            Framing::None => Poll::Ready(Ok(data.len())),
            Framing::UntilClose => Poll::Ready(Ok(ready!(link.poll_send(cx, data))?)),
            Framing::Length(_) => {
                // More than announced would be read as the next message.
                if data.len() as u64 > self.missing.get() {
                    return Poll::Ready(Err(length_mismatch()));
                }
                let sent = ready!(link.poll_send(cx, data))?;
                self.missing.set(self.missing.get() - sent as u64);
                Poll::Ready(Ok(sent))
            }
            Framing::Chunked => {
                if self.announced.get() == 0 {
                    link.with_output(|output| encode::chunk_start(data.len(), output));
                    self.announced.set(data.len());
                }
                let count = data.len().min(self.announced.get());
                let sent = ready!(link.poll_send(cx, &data[..count]))?;
                self.announced.set(self.announced.get() - sent);
                if self.announced.get() == 0 {
                    link.with_output(|output| output.extend_from_slice(b"\r\n"));
                }
                Poll::Ready(Ok(sent))
            }
        }
    }

    /// See [`crate::http::seam::BodySink::poll_finish`].
    pub fn poll_finish(
        &self,
        cx: &mut Context<'_>,
        link: &Link,
        trailers: Option<&Headers>,
    ) -> Poll<Result<(), StreamError>> {
        if self.missing.get() > 0 {
            return Poll::Ready(Err(length_mismatch()));
        }
        if !self.finished.replace(true) && self.framing == Framing::Chunked {
            link.with_output(|output| {
                output.extend_from_slice(b"0\r\n");
                for (id, name, value) in trailers.filter(|_| self.trailers).into_iter().flat_map(Headers::iter) {
                    if belongs_in_head(id) {
                        continue;
                    }
                    output.extend_from_slice(name);
                    output.extend_from_slice(b": ");
                    output.extend_from_slice(value);
                    output.extend_from_slice(b"\r\n");
                }
                output.extend_from_slice(b"\r\n");
            });
        }
        Poll::Ready(Ok(ready!(link.poll_flush(cx))?))
    }
}

/// What frames or routes a message has no say behind it (RFC 9110 section 6.5.1): who merges trailers into the head would
/// read another message.
fn belongs_in_head(id: HeaderId) -> bool {
    matches!(
        id,
        HeaderId::Connection
            | HeaderId::ContentLength
            | HeaderId::Host
            | HeaderId::KeepAlive
            | HeaderId::ProxyConnection
            | HeaderId::Te
            | HeaderId::Trailer
            | HeaderId::TransferEncoding
            | HeaderId::Upgrade
    )
}

fn length_mismatch() -> StreamError {
    StreamError::Protocol("body length differs from content-length".into())
}
