//! HTTP/2 bodies: received by [`ReceiveBody`], sent by [`SendBody`], both bound by the peer's flow control.
//!
//! Owns when window is given back: as bytes are handed on, so that a slow reader slows its sender. Never decides what a
//! body means.

use std::cell::{Cell, RefCell};
use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};

use super::convert;
use crate::http::headers::Headers;
use crate::http::seam::{Chunk, StreamError};

/// A body being received.
pub struct ReceiveBody {
    stream: RefCell<RecvStream>,
    current: RefCell<Bytes>,
    trailers: RefCell<Option<Headers>>,
    data_ended: Cell<bool>,
    ended: Cell<bool>,
    reset: Cell<Option<h2::Reason>>,
    connection_lost: Cell<bool>,
}

impl ReceiveBody {
    /// For a stream whose head was taken.
    pub fn new(stream: RecvStream) -> Self {
        let ended = stream.is_end_stream();
        Self {
            stream: RefCell::new(stream),
            current: RefCell::new(Bytes::new()),
            trailers: RefCell::new(None),
            data_ended: Cell::new(ended),
            ended: Cell::new(ended),
            reset: Cell::new(None),
            connection_lost: Cell::new(false),
        }
    }

    /// Why the peer has reset the stream, once a body that was cut off has told.
    pub fn reset_by_peer(&self) -> Option<h2::Reason> {
        self.reset.get()
    }

    /// Whether a body was cut off because its connection has ended.
    pub fn connection_lost(&self) -> bool {
        self.connection_lost.get()
    }

    /// Bytes that have come and were not taken.
    pub fn held(&self) -> usize {
        self.stream.borrow_mut().flow_control().used_capacity()
    }

    /// The whole body was received and handed on.
    pub fn is_done(&self) -> bool {
        self.ended.get() && self.current.borrow().is_empty()
    }

    /// See [`crate::http::seam::BodySource::poll_data`].
    pub fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        if !self.current.borrow().is_empty() {
            return Poll::Ready(Ok(true));
        }
        let mut stream = self.stream.borrow_mut();
        while !self.data_ended.get() {
            match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    *self.current.borrow_mut() = data;
                    if stream.is_end_stream() {
                        self.data_ended.set(true);
                        self.ended.set(true);
                    }
                    return Poll::Ready(Ok(true));
                }
                // RFC 9113 section 8.1: a whole answer may come before the whole request, and ends so.
                Some(Err(error)) if is_graceful_reset(&error) => {
                    self.data_ended.set(true);
                    self.ended.set(true);
                }
                Some(Err(error)) => return Poll::Ready(Err(self.failed(&error))),
                None => self.data_ended.set(true),
            }
        }
        if !self.ended.get() {
            let trailers = match ready!(stream.poll_trailers(cx)) {
                Err(error) if is_graceful_reset(&error) => None,
                trailers => trailers.map_err(|error| self.failed(&error))?,
            };
            *self.trailers.borrow_mut() = trailers.map(|map| convert::headers_of(&map));
            self.ended.set(true);
        }
        Poll::Ready(Ok(false))
    }

    /// See [`crate::http::seam::BodySource::with_data`].
    pub fn with_data<R>(&self, look: impl FnOnce(Chunk<'_>) -> R) -> R {
        look(Chunk::Shared(&self.current.borrow()))
    }

    /// See [`crate::http::seam::BodySource::consume`].
    pub fn consume(&self, count: usize) {
        let mut current = self.current.borrow_mut();
        let count = count.min(current.len());
        let _ = current.split_to(count);
        // Only more than was received is refused, and `count` is not.
        let _ = self.stream.borrow_mut().flow_control().release_capacity(count);
    }

    /// See [`crate::http::seam::BodySource::take_trailers`].
    pub fn take_trailers(&self) -> Option<Headers> {
        self.trailers.borrow_mut().take()
    }

    fn failed(&self, error: &h2::Error) -> StreamError {
        self.reset.set(reset_by_peer(error));
        self.connection_lost.set(error.is_io() || error.is_go_away());
        stream_error(error)
    }
}

/// A body being sent.
///
/// The last chunk is held until it is known whether more follows, so that the end needs no frame of its own.
pub struct SendBody {
    stream: RefCell<SendStream<Bytes>>,
    held: RefCell<Bytes>,
    ended: Cell<bool>,
}

impl SendBody {
    /// For a stream whose head was sent; `ended` if that was all.
    pub fn new(stream: SendStream<Bytes>, ended: bool) -> Self {
        Self { stream: RefCell::new(stream), held: RefCell::new(Bytes::new()), ended: Cell::new(ended) }
    }

    /// Nothing more may be sent.
    pub fn is_finished(&self) -> bool {
        self.ended.get()
    }

    /// Tells the peer that the rest will not come.
    pub fn reset(&self, reason: h2::Reason) {
        self.stream.borrow_mut().send_reset(reason);
        self.ended.set(true);
    }

    /// Ready when the peer has reset the stream.
    pub fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<Result<h2::Reason, h2::Error>> {
        self.stream.borrow_mut().poll_reset(cx)
    }

    /// See [`crate::http::seam::BodySink::poll_send`].
    pub fn poll_send(&self, cx: &mut Context<'_>, chunk: Chunk<'_>) -> Poll<Result<usize, StreamError>> {
        if self.ended.get() {
            return Poll::Ready(Ok(chunk.bytes().len()));
        }
        self.release()?;
        let mut stream = self.stream.borrow_mut();
        let wanted = chunk.bytes().len();
        stream.reserve_capacity(wanted);
        let mut capacity = stream.capacity();
        while capacity == 0 {
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => capacity = stream.capacity(),
                Some(Err(error)) => return Poll::Ready(Err(stream_error(&error))),
                None => return Poll::Ready(Err(StreamError::Closed)),
            }
        }
        let count = capacity.min(wanted);
        *self.held.borrow_mut() = chunk.share(count);
        Poll::Ready(Ok(count))
    }

    /// Hands over what is held: nobody knows when more comes.
    ///
    /// # Errors
    /// When the stream is gone.
    pub fn release(&self) -> Result<(), StreamError> {
        let held = self.held.take();
        if held.is_empty() || self.ended.get() {
            return Ok(());
        }
        self.stream.borrow_mut().send_data(held, false).map_err(|error| stream_error(&error))
    }

    /// See [`crate::http::seam::BodySink::poll_finish`].
    pub fn poll_finish(&self, trailers: Option<&Headers>) -> Poll<Result<(), StreamError>> {
        if self.ended.get() {
            return Poll::Ready(Ok(()));
        }
        if trailers.is_some() {
            self.release()?;
        }
        self.ended.set(true);
        let mut stream = self.stream.borrow_mut();
        let sent = match trailers {
            Some(trailers) => stream.send_trailers(convert::map_of(trailers)),
            None => stream.send_data(self.held.take(), true),
        };
        Poll::Ready(sent.map_err(|error| stream_error(&error)))
    }
}

fn is_graceful_reset(error: &h2::Error) -> bool {
    error.is_reset() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
}

/// Why the peer has reset a stream, if that is what an error says.
pub fn reset_by_peer(error: &h2::Error) -> Option<h2::Reason> {
    error.reason().filter(|_| error.is_reset() && error.is_remote())
}

/// What an error of the `h2` crate means for a stream.
pub fn stream_error(error: &h2::Error) -> StreamError {
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => StreamError::Refused,
        Some(reason) if error.is_reset() && error.is_remote() => StreamError::Reset(reason),
        // The library says so only to streams that the peer has not looked at (RFC 9113 section 6.8), whatever its reason
        // to leave: those that it may have looked at go on until the connection ends.
        Some(_) if error.is_go_away() && error.is_remote() => StreamError::Refused,
        Some(_) => StreamError::Protocol(error.to_string()),
        // What a guard found (see `cork`).
        None if error.get_io().is_some_and(|error| error.kind() == io::ErrorKind::InvalidData) => {
            StreamError::Protocol(error.get_io().map(ToString::to_string).unwrap_or_default())
        }
        None if error.is_io() => StreamError::Closed,
        None => StreamError::Protocol(error.to_string()),
    }
}
