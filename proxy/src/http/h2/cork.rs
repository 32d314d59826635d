//! A byte stream that collects what HTTP/2 writes and reads ahead of it.
//!
//! Owns when bytes cross into the system: the `h2` crate writes out every larger DATA frame by itself and reads into
//! whatever room is left in its buffer, often less than a frame. So frames of many streams are gathered here and leave
//! together when the connection's task has nothing more to do, and input is taken in large pieces. A guard looks at both on
//! their way, and the stream fails when it says so. Never interprets them.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::guard::{Farewell, Flood, Guard};

/// More than this is not gathered: the peer or the network has to take some first.
const MOST_BYTES: usize = 64 * 1024;
/// Input is taken in pieces of up to this.
const READ_BYTES: usize = 32 * 1024;
/// Pieces that are thrown away before others have their turn.
const MOST_READS: usize = 8;
/// Vectors kept per thread.
const KEPT: usize = 32;

thread_local! {
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// The side that the connection's task keeps, to send what was gathered.
pub struct Cork<S>(Rc<RefCell<Gathering<S>>>);

/// The side that HTTP/2 reads from and writes to.
pub struct Corked<S>(Rc<RefCell<Gathering<S>>>);

struct Gathering<S> {
    io: S,
    guard: Guard,
    /// Bytes that came and went since somebody asked.
    received: u64,
    sent: u64,
    /// The peer has ended the stream, or it failed.
    lost: bool,
    /// The peer was told that nothing follows.
    shut: bool,
    output: Vec<u8>,
    written: usize,
    /// The stream may hold records back (TLS does) that it was not asked to flush yet.
    unflushed: bool,
    input: Vec<u8>,
    taken: usize,
}

/// Both sides around a stream.
pub fn cork<S>(io: S, guard: Guard) -> (Cork<S>, Corked<S>) {
    let shared = Rc::new(RefCell::new(Gathering {
        io,
        guard,
        received: 0,
        sent: 0,
        lost: false,
        shut: false,
        output: Vec::new(),
        written: 0,
        unflushed: false,
        input: Vec::new(),
        taken: 0,
    }));
    (Cork(Rc::clone(&shared)), Corked(shared))
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    /// Bytes received and sent since the last time, for stats.
    pub fn take_totals(&self) -> (u64, u64) {
        let mut gathering = self.0.borrow_mut();
        (std::mem::take(&mut gathering.received), std::mem::take(&mut gathering.sent))
    }

    /// The limit that the peer went beyond.
    pub fn flood(&self) -> Option<Flood> {
        self.0.borrow().guard.flood()
    }

    /// Why HTTP/2 ended the connection by itself, as it has told the peer.
    pub fn farewell(&self) -> Option<Farewell> {
        self.0.borrow().guard.farewell()
    }

    /// Streams that were refused since the last time, for stats.
    pub fn take_refused(&self) -> u32 {
        self.0.borrow_mut().guard.take_refused()
    }

    /// Says that the peer goes too far, unless there is no room for a word.
    pub fn say_goaway(&self) -> bool {
        let mut gathering = self.0.borrow_mut();
        match gathering.guard.goaway() {
            Some(frame) => {
                gathering.output.extend_from_slice(&frame);
                true
            }
            None => false,
        }
    }

    /// Whether the peer has ended the stream, or it failed.
    pub fn is_lost(&self) -> bool {
        self.0.borrow().lost
    }

    /// Sends what was gathered.
    pub fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_send(cx)
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.output.is_empty() && !self.unflushed {
            return Poll::Ready(Ok(()));
        }
        while self.written < self.output.len() {
            let wrote = ready!(Pin::new(&mut self.io).poll_write(cx, &self.output[self.written..]));
            let count = wrote.inspect_err(|_| self.lost = true)?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
            self.sent += count as u64;
            self.unflushed = true;
        }
        self.written = 0;
        self.guard.drained();
        give(std::mem::take(&mut self.output));
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }
}

/// An empty vector that may have been used before.
fn take() -> Vec<u8> {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_default()
}

fn give(mut vector: Vec<u8>) {
    vector.clear();
    FREE.with_borrow_mut(|free| {
        if free.len() < KEPT && vector.capacity() <= 2 * MOST_BYTES {
            free.push(vector);
        }
    });
}

impl<S: AsyncRead + Unpin> Gathering<S> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.input.is_empty() {
            if buffer.remaining() >= READ_BYTES {
                let before = buffer.filled().len();
                let read = Pin::new(&mut self.io).poll_read(cx, buffer);
                let count = buffer.filled().len() - before;
                self.received += count as u64;
                self.lost |= read.is_ready() && count == 0;
                self.guard.receive(&buffer.filled()[before..]).map_err(refused)?;
                return read;
            }
            let mut input = take();
            let mut allowed = Ok(());
            let read = SCRATCH.with_borrow_mut(|scratch| {
                let mut scratch = ReadBuf::new(scratch);
                let read = Pin::new(&mut self.io).poll_read(cx, &mut scratch);
                let filled = scratch.filled();
                self.lost |= read.is_ready() && filled.is_empty();
                self.received += filled.len() as u64;
                allowed = self.guard.receive(filled);
                let now = filled.len().min(buffer.remaining());
                buffer.put_slice(&filled[..now]);
                input.extend_from_slice(&filled[now..]);
                read
            });
            if input.is_empty() {
                give(input);
            } else {
                self.input = input;
            }
            allowed.map_err(refused)?;
            return read;
        }
        let rest = &self.input[self.taken..];
        let now = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..now]);
        self.taken += now;
        if self.taken == self.input.len() {
            self.taken = 0;
            give(std::mem::take(&mut self.input));
        }
        Poll::Ready(Ok(()))
    }
}

/// What HTTP/2 is told of a flood, which is the peer's fault.
fn refused(flood: Flood) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, flood)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Cork<S> {
    /// Sends what was gathered and says that nothing follows; ready when the peer has ended its side too. What comes until
    /// then is not looked at.
    pub fn poll_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.0.borrow_mut();
        if !gathering.shut {
            ready!(gathering.poll_send(cx))?;
            ready!(Pin::new(&mut gathering.io).poll_shutdown(cx))?;
            gathering.shut = true;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            for _ in 0..MOST_READS {
                let mut scratch = ReadBuf::new(scratch);
                ready!(Pin::new(&mut gathering.io).poll_read(cx, &mut scratch))?;
                if scratch.filled().is_empty() {
                    return Poll::Ready(Ok(()));
                }
                gathering.received += scratch.filled().len() as u64;
            }
            // Others want to be served too.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    fn gather(&self, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut gathering = self.0.borrow_mut();
        if gathering.output.len() >= MOST_BYTES {
            ready!(gathering.poll_send(cx))?;
        }
        if gathering.output.capacity() == 0 {
            gathering.output = take();
        }
        let mut taken = 0;
        for slice in slices {
            gathering.guard.send(slice).map_err(refused)?;
            gathering.output.extend_from_slice(slice);
            taken += slice.len();
        }
        Poll::Ready(Ok(taken))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.gather(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.gather(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task sends when it has nothing more to write.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.0.borrow_mut();
        ready!(gathering.poll_send(cx))?;
        Pin::new(&mut gathering.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use outrigger_config::http::Http2Options;

    use super::*;

    fn cork<S>(io: S) -> (Cork<S>, Corked<S>) {
        super::cork(io, Guard::of_client(&Http2Options::default()))
    }

    #[tokio::test]
    async fn it_fails_when_the_peer_goes_too_far_and_may_still_say_so() {
        let (near, mut far) = tokio::io::duplex(4096);
        let (cork, mut corked) = cork(near);
        corked.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        far.write_all(&[0; 18]).await.unwrap();
        let error = corked.read(&mut [0; 64]).await.unwrap_err();
        assert_eq!((error.kind(), cork.flood()), (io::ErrorKind::InvalidData, Some(Flood::EmptyFrames)));
        assert!(corked.write_all(b"more").await.is_err());
        assert!(cork.say_goaway());
        poll_fn(|cx| cork.poll_send(cx)).await.unwrap();
        let mut read = [0; 64];
        let count = far.read(&mut read).await.unwrap();
        assert_eq!(&read[24..count], [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11]);
    }

    #[tokio::test]
    async fn it_is_lost_when_the_peer_has_ended_it() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (cork, mut corked) = cork(near);
        far.write_all(b"one").await.unwrap();
        let mut read = [0; 16];
        assert_eq!(corked.read(&mut read).await.unwrap(), 3);
        assert!(!cork.is_lost());
        drop(far);
        assert_eq!(corked.read(&mut read).await.unwrap(), 0);
        assert!(cork.is_lost());
    }

    #[tokio::test]
    async fn nothing_leaves_before_it_is_sent_and_everything_then() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (cork, mut corked) = cork(near);
        corked.write_all(b"one ").await.unwrap();
        corked.flush().await.unwrap();
        corked.write_all(b"two").await.unwrap();
        let mut read = [0; 16];
        let early = poll_fn(|cx| {
            let mut buffer = ReadBuf::new(&mut read);
            Poll::Ready(Pin::new(&mut far).poll_read(cx, &mut buffer).is_ready())
        });
        assert!(!early.await);
        poll_fn(|cx| cork.poll_send(cx)).await.unwrap();
        let count = far.read(&mut read).await.unwrap();
        assert_eq!(&read[..count], b"one two");
    }
}
