//! The seam where all HTTP engines meet the pipeline.
//!
//! Owns how a body is pulled from one side and given to the other with back-pressure, without tasks, channels or copies
//! that the engines do not need. Never knows a wire format.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::headers::Headers;
use super::manager::reply::LocalReply;

/// Body bytes at hand.
pub enum Chunk<'a> {
    /// In a buffer of the source.
    Slice(&'a [u8]),
    /// In shared memory, which a sink may keep without copying.
    Shared(&'a Bytes),
}

impl Chunk<'_> {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Slice(bytes) => bytes,
            Chunk::Shared(bytes) => bytes,
        }
    }

    /// The first `count` bytes as shared memory, copied only if they are not shared yet.
    pub fn share(&self, count: usize) -> Bytes {
        match self {
            Chunk::Slice(bytes) => Bytes::copy_from_slice(&bytes[..count]),
            Chunk::Shared(bytes) => bytes.slice(..count),
        }
    }
}

/// Why a stream ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer reset the stream; HTTP/2 error code.
    #[error("stream reset by the peer ({0})")]
    Reset(h2::Reason),
    /// The peer refused the stream without looking at it: safe to send elsewhere.
    #[error("stream refused by the peer")]
    Refused,
    /// The connection ended.
    #[error("connection closed by the peer")]
    Closed,
    /// The connection failed.
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
    /// The peer broke the protocol.
    #[error("{0}")]
    Protocol(String),
    /// A filter on the way has an answer of its own.
    #[error("answered by a filter")]
    Answered(Box<LocalReply>),
}

/// Where body bytes come from.
pub trait BodySource {
    /// `Ready(true)` when bytes are at hand, `Ready(false)` at the end.
    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>>;
    /// Looks at the bytes at hand.
    fn with_data<R>(&self, look: impl FnOnce(Chunk<'_>) -> R) -> R;
    /// `count` of the bytes at hand are done with.
    fn consume(&self, count: usize);
    /// The trailers, once, after the end.
    fn take_trailers(&self) -> Option<Headers>;
}

/// Where body bytes go.
pub trait BodySink {
    /// Takes some of the bytes, at least one.
    fn poll_send(&self, cx: &mut Context<'_>, chunk: Chunk<'_>) -> Poll<Result<usize, StreamError>>;
    /// Ends the body. Called again until it is ready; the first call counts.
    fn poll_finish(&self, cx: &mut Context<'_>, trailers: Option<&Headers>) -> Poll<Result<(), StreamError>>;
    /// Sends what was taken, as far as it is held back here.
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>>;
}

/// Which side a pump failed on.
#[derive(Debug)]
pub enum PumpError {
    /// The side the bytes come from.
    Source(StreamError),
    /// The side the bytes go to.
    Sink(StreamError),
}

/// A body on its way from a source to a sink.
#[derive(Debug)]
pub struct Pump {
    /// The source has ended, with these trailers.
    ended: Option<Option<Headers>>,
    unflushed: bool,
    done: bool,
}

impl Default for Pump {
    /// A body whose head was just handed over, and may be held back in the sink like its first bytes.
    fn default() -> Self {
        Self { ended: None, unflushed: true, done: false }
    }
}

impl Pump {
    /// The whole body was handed over.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The trailers that were seen.
    pub fn into_trailers(self) -> Option<Headers> {
        self.ended.flatten()
    }

    /// Moves what can be moved. `seen` looks at all bytes that were handed over.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &impl BodySource,
        sink: &impl BodySink,
        mut seen: impl FnMut(&[u8]),
    ) -> Poll<Result<(), PumpError>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        while self.ended.is_none() {
            match source.poll_data(cx) {
                Poll::Ready(Ok(true)) => {
                    let sent = source.with_data(|chunk| match chunk {
                        Chunk::Slice(bytes) => {
                            let sent = sink.poll_send(cx, Chunk::Slice(bytes));
                            observe(&sent, bytes, &mut seen);
                            sent
                        }
                        Chunk::Shared(bytes) => {
                            let sent = sink.poll_send(cx, Chunk::Shared(bytes));
                            observe(&sent, bytes, &mut seen);
                            sent
                        }
                    });
                    let count = ready!(sent).map_err(PumpError::Sink)?;
                    source.consume(count);
                    self.unflushed = true;
                }
                Poll::Ready(Ok(false)) => self.ended = Some(source.take_trailers()),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(PumpError::Source(error))),
                Poll::Pending => {
                    // What is held back must not wait for what may never come.
                    if self.unflushed {
                        ready!(sink.poll_flush(cx)).map_err(PumpError::Sink)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        let trailers = self.ended.as_ref().and_then(Option::as_ref);
        ready!(sink.poll_finish(cx, trailers)).map_err(PumpError::Sink)?;
        self.done = true;
        Poll::Ready(Ok(()))
    }
}

fn observe(sent: &Poll<Result<usize, StreamError>>, bytes: &[u8], seen: &mut impl FnMut(&[u8])) {
    if let Poll::Ready(Ok(count)) = sent {
        seen(&bytes[..*count]);
    }
}
