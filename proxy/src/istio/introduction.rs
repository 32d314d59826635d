//! Connections whose two sides say who they are before the first byte of the application.
//!
//! Owns which connections do that, and the stream on which neither side waits for the other: bytes of the application
//! may leave before the peer's words have come. The peer's words are kept for who wants to hear them, and never read here.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use outrigger_config::istio::MetadataExchange;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::peer::Heard;
use super::preamble::Progress;
use crate::scope;
use crate::worker::Worker;
use crate::worker::socket::{Io, Socket};

scope! {
    /// What became of such connections (`metadata_exchange.*`).
    pub struct ExchangeStats {
        alpn_protocol_found: Counter,
        alpn_protocol_not_found: Counter,
        header_not_found: Counter,
        initial_header_not_found: Counter,
        metadata_added: Counter,
    }
}

/// A stream that begins with an introduction in both directions.
#[derive(Debug)]
pub struct Introduced {
    io: Io,
    ours: Arc<[u8]>,
    /// Bytes of `ours` that were written; all of them may still have to be flushed.
    written: usize,
    flushed: bool,
    theirs: Progress,
    /// Bytes of `theirs` that turned out to be the application's and were given to it.
    taken: usize,
    /// Who wants to hear `theirs`, and what of them has come.
    hearing: Option<Box<Hearing>>,
    stats: Arc<ExchangeStats>,
}

#[derive(Debug)]
struct Hearing {
    heard: Heard,
    words: Vec<u8>,
}

/// Longer words are not kept: facts about a workload take some hundred bytes.
const MAX_WORDS: usize = 16 * 1024;

/// Begins a connection as `settings` say, if both sides have agreed on that: `alpn` is what they negotiated. The peer's
/// words go to `heard`.
pub fn introduce(
    worker: &Worker,
    settings: &MetadataExchange,
    alpn: Option<&[u8]>,
    io: Io,
    heard: Option<Heard>,
) -> Io {
    let stats = worker.scope::<ExchangeStats>("metadata_exchange.");
    if alpn != Some(settings.protocol.as_bytes()) {
        stats.alpn_protocol_not_found.increment();
        hear_nothing(heard.as_ref());
        return io;
    }
    stats.alpn_protocol_found.increment();
    let ours = Arc::clone(&worker.process.workload.words(&settings.additional_labels).preamble);
    let theirs = Progress::START;
    let hearing = heard.map(|heard| Box::new(Hearing { heard, words: Vec::new() }));
    Io::Introduced(Box::new(Introduced { io, ours, written: 0, flushed: false, theirs, taken: 0, hearing, stats }))
}

/// The peer of a connection will not say who it is.
pub fn hear_nothing(heard: Option<&Heard>) {
    if let Some(heard) = heard {
        // Whoever set it before has heard something.
        let _ = heard.set(Box::default());
    }
}

impl Introduced {
    /// The socket below.
    pub fn socket(&self) -> Option<&Socket> {
        self.io.socket()
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.ours.len() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.ours[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        if !self.flushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.flushed = true;
            self.stats.metadata_added.increment();
        }
        Poll::Ready(Ok(()))
    }

    /// Reads the peer's words, if they are there.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; 1024];
        loop {
            let wanted = self.theirs.wanted().min(bytes.len());
            if wanted == 0 {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut bytes[..wanted]);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer)) {
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Poll::Ready(Err(error)),
                // TLS that ends without a goodbye is an end too.
                Err(_) | Ok(()) => {}
            }
            let ended = buffer.filled().is_empty();
            if let (Some(hearing), Progress::Rest(_)) = (&mut self.hearing, &self.theirs)
                && hearing.words.len() <= MAX_WORDS
            {
                hearing.words.extend_from_slice(buffer.filled());
            }
            self.theirs = std::mem::replace(&mut self.theirs, Progress::Complete).advance(buffer.filled());
            match &self.theirs {
                Progress::Absent(_) => self.stats.initial_header_not_found.increment(),
                Progress::Complete if ended => self.stats.header_not_found.increment(),
                _ => {}
            }
            if matches!(self.theirs, Progress::Absent(_) | Progress::Complete)
                && let Some(hearing) = self.hearing.take()
            {
                let Hearing { heard, words } = *hearing;
                let whole = self.theirs == Progress::Complete && !ended && words.len() <= MAX_WORDS;
                // Nobody else sets it.
                let _ = heard.set(if whole { words.into() } else { Box::default() });
            }
        }
    }
}

impl AsyncRead for Introduced {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // The peer may wait for our words before it says anything.
        if let Poll::Ready(Err(error)) = this.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        ready!(this.poll_receive(cx))?;
        if let Progress::Absent(ahead) = &this.theirs
            && this.taken < ahead.len()
        {
            let count = buffer.remaining().min(ahead.len() - this.taken);
            buffer.put_slice(&ahead[this.taken..this.taken + count]);
            this.taken += count;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Introduced {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
