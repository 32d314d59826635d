//! One direction of a TCP connection: bytes from one stream to another, then the end.
//!
//! Owns what was read and not yet written, and in what it is held: a pooled buffer or a pooled pipe, and neither while
//! nothing moves. Reads only when everything before was written, so a slow reader holds its writer back. Never closes a
//! connection.

use std::cell::RefCell;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use outrigger_sys::splice::{Follow, PIPE_CAPACITY, Pipe, PipePool};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use super::pace::{Method, Pace};
use crate::worker::buffer::{Buffer, BufferPool, LARGE_BYTES};
use crate::worker::socket::{Io, Socket, SocketKind};

/// Which of the two streams failed.
#[derive(Debug)]
pub enum Fault {
    /// The one we read from.
    Read,
    /// The one we write to.
    Write,
}

/// What a direction has moved so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Traffic {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// How often reading stopped because the other side was slow.
    pub pauses: u64,
    /// How often it went on after that.
    pub resumes: u64,
}

/// One direction.
#[derive(Debug)]
pub struct Direction {
    pace: Pace,
    held: Held,
    state: State,
    /// TLS may hold written bytes back.
    unflushed: bool,
    traffic: Traffic,
    limit: usize,
}

/// Where bytes are that were read and not written.
#[derive(Debug)]
enum Held {
    Nothing,
    Buffer(Buffer),
    Pipe(Pipe),
}

/// ```text
/// Moving --end read--> Ending --all written and the end passed on--> Over
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Moving,
    Ending,
    Over,
}

impl Direction {
    /// A direction that holds at most `limit` bytes, but at least a small buffer.
    pub fn new(limit: usize) -> Self {
        let limit = limit.clamp(1, PIPE_CAPACITY);
        Self {
            pace: Pace::new(limit),
            held: Held::Nothing,
            state: State::Moving,
            unflushed: false,
            traffic: Traffic::default(),
            limit,
        }
    }

    /// What was moved.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Nothing will move any more.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Neither a buffer nor a pipe is at hand.
    #[cfg(test)]
    pub fn holds_nothing(&self) -> bool {
        matches!(self.held, Held::Nothing)
    }

    /// Gives up; what is held is lost.
    pub fn stop(&mut self, pool: &BufferPool) {
        self.state = State::Over;
        self.release(pool);
    }

    /// Moves what can be moved, up to [`QUANTUM_BYTES`]. Ready when the end was passed on: by a shutdown, or, if
    /// `to_is_done`, by nothing, as the caller will close `to`.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Io,
        to: &mut Io,
        pool: &BufferPool,
        to_is_done: bool,
    ) -> Poll<Result<(), Fault>> {
        let mut quantum = QUANTUM_BYTES;
        while self.state == State::Moving {
            if let Err(fault) = ready!(self.poll_deliver(cx, to)) {
                return Poll::Ready(Err(fault));
            }
            if quantum == 0 {
                self.release(pool);
                return yield_to_others(cx);
            }
            match self.poll_fetch(cx, from, to, pool) {
                Poll::Ready(Ok(0)) => self.state = State::Ending,
                Poll::Ready(Ok(count)) => {
                    quantum = quantum.saturating_sub(count);
                    self.traffic.read += count as u64;
                    self.pace.record(count);
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Fault::Read)),
                Poll::Pending => {
                    self.release(pool);
                    return self.poll_flush(cx, to);
                }
            }
        }
        self.release(pool);
        if self.state == State::Ending {
            let nothing_to_say = to_is_done && matches!(to, Io::Plain(_));
            if !nothing_to_say && ready!(Pin::new(to).poll_shutdown(cx)).is_err() {
                return Poll::Ready(Err(Fault::Write));
            }
            self.state = State::Over;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what is held.
    fn poll_deliver(&mut self, cx: &mut Context<'_>, to: &mut Io) -> Poll<Result<(), Fault>> {
        loop {
            let result = match (&mut self.held, &mut *to) {
                (Held::Nothing, _) => break,
                (Held::Buffer(buffer), _) if buffer.is_empty() => break,
                (Held::Pipe(pipe), _) if pipe.is_empty() => break,
                (Held::Buffer(buffer), to) => Pin::new(to).poll_write(cx, buffer.filled()),
                (Held::Pipe(pipe), Io::Plain(socket)) => poll_drain(cx, pipe, socket),
                // Pipes are only used between plain sockets.
                (Held::Pipe(_), _) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
            };
            match result {
                Poll::Ready(Ok(count)) if count > 0 => {
                    if let Held::Buffer(buffer) = &mut self.held {
                        buffer.consume(count);
                        self.unflushed = !matches!(to, Io::Plain(_));
                    }
                    self.traffic.written += count as u64;
                }
                Poll::Ready(_) => return Poll::Ready(Err(Fault::Write)),
                Poll::Pending => {
                    if self.traffic.pauses == self.traffic.resumes {
                        self.traffic.pauses += 1;
                    }
                    return Poll::Pending;
                }
            }
        }
        self.traffic.resumes = self.traffic.pauses;
        Poll::Ready(Ok(()))
    }

    /// Reads once, into whatever suits the pace. Nothing is held when this is called. `Ok(0)` is the end.
    fn poll_fetch(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Io,
        to: &Io,
        pool: &BufferPool,
    ) -> Poll<io::Result<usize>> {
        if self.pace.method() == Method::Splice && self.take_pipe(from, to, pool) {
            let result = match (&mut self.held, &*from) {
                (Held::Pipe(pipe), Io::Plain(socket)) => ready!(poll_fill(cx, pipe, socket, self.limit)),
                _ => Err(io::ErrorKind::InvalidInput.into()),
            };
            match result {
                // Some sandboxes know no splice from sockets.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.pace.never_splice(),
                result => return Poll::Ready(result),
            }
        }
        let mut buffer = self.take_buffer(pool);
        let spare = buffer.spare();
        let room = spare.len().min(self.limit);
        let mut into = ReadBuf::new(&mut spare[..room]);
        let result = Pin::new(from).poll_read(cx, &mut into);
        let count = into.filled().len();
        buffer.fill(count);
        self.held = Held::Buffer(buffer);
        match ready!(result) {
            Ok(()) => Poll::Ready(Ok(count)),
            // TLS that ends without a goodbye. What it carried has its own framing or does not mind.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(0)),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Makes sure that the pipe is at hand; not if these two streams cannot use one.
    fn take_pipe(&mut self, from: &mut Io, to: &Io, pool: &BufferPool) -> bool {
        if matches!(self.held, Held::Pipe(_)) {
            return true;
        }
        let from = match (from, to) {
            (Io::Plain(from), Io::Plain(to)) if from.is_of_system() && to.is_of_system() => from,
            _ => {
                self.pace.never_splice();
                return false;
            }
        };
        let ahead = from.take_ahead();
        if !ahead.is_empty() {
            from.put_back(ahead);
            return false;
        }
        match PIPES.with_borrow_mut(PipePool::take) {
            Ok(pipe) => {
                self.release(pool);
                self.held = Held::Pipe(pipe);
                true
            }
            // Out of descriptors: a buffer serves too.
            Err(_) => {
                self.pace.never_splice();
                false
            }
        }
    }

    /// An empty buffer of at least the size that the pace asks for: the one at hand, or another.
    fn take_buffer(&mut self, pool: &BufferPool) -> Buffer {
        let large = self.pace.method() != Method::Small;
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Buffer(buffer) if !large || buffer.capacity() >= LARGE_BYTES => return buffer,
            other => self.held = other,
        }
        self.release(pool);
        if large { pool.large() } else { pool.small() }
    }

    /// Gives back what bytes were held in.
    fn release(&mut self, pool: &BufferPool) {
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Nothing => {}
            Held::Buffer(buffer) => pool.give(buffer),
            Held::Pipe(pipe) => PIPES.with_borrow_mut(|pipes| pipes.give(pipe)),
        }
    }

    /// Pushes out what TLS holds back. Never ready but with a fault: there is nothing more to read now.
    fn poll_flush(&mut self, cx: &mut Context<'_>, to: &mut Io) -> Poll<Result<(), Fault>> {
        if self.unflushed {
            match ready!(Pin::new(to).poll_flush(cx)) {
                Ok(()) => self.unflushed = false,
                Err(_) => return Poll::Ready(Err(Fault::Write)),
            }
        }
        Poll::Pending
    }
}

/// From a socket into the empty pipe.
fn poll_fill(cx: &mut Context<'_>, pipe: &mut Pipe, from: &Socket, limit: usize) -> Poll<io::Result<usize>> {
    loop {
        let result = match from.kind() {
            SocketKind::Tcp(tcp) => {
                ready!(tcp.poll_read_ready(cx))?;
                tcp.try_io(Interest::READABLE, || pipe.fill(tcp, limit))
            }
            SocketKind::Unix(unix) => {
                ready!(unix.poll_read_ready(cx))?;
                unix.try_io(Interest::READABLE, || pipe.fill(unix, limit))
            }
            SocketKind::InProcess(_) => Err(io::ErrorKind::InvalidInput.into()),
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
    }
}

/// From the pipe into a socket.
fn poll_drain(cx: &mut Context<'_>, pipe: &mut Pipe, to: &Socket) -> Poll<io::Result<usize>> {
    loop {
        // "More follows" would be a guess, and a wrong one costs 200 ms.
        let result = match to.kind() {
            SocketKind::Tcp(tcp) => {
                ready!(tcp.poll_write_ready(cx))?;
                tcp.try_io(Interest::WRITABLE, || pipe.drain(tcp, Follow::Nothing))
            }
            SocketKind::Unix(unix) => {
                ready!(unix.poll_write_ready(cx))?;
                unix.try_io(Interest::WRITABLE, || pipe.drain(unix, Follow::Nothing))
            }
            SocketKind::InProcess(_) => Err(io::ErrorKind::InvalidInput.into()),
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
    }
}

/// Lets other tasks and the poller of sockets run before this task goes on. A plain wake would not: a task that always
/// wakes itself keeps the runtime from looking at sockets for dozens of turns.
fn yield_to_others(cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
    if pin!(tokio::task::yield_now()).poll(cx).is_ready() {
        cx.waker().wake_by_ref();
    }
    Poll::Pending
}

thread_local! {
    static PIPES: RefCell<PipePool> = RefCell::new(PipePool::new(IDLE_PIPES, PIPE_CAPACITY));
}

/// Pipes that a worker keeps for the next bulk phase.
const IDLE_PIPES: usize = 16;
/// A direction moves this much, then others have their turn: below half a millisecond.
const QUANTUM_BYTES: usize = 1024 * 1024;
