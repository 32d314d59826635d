//! Moving bytes between sockets inside the kernel (`splice(2)`).
//!
//! Owns the pipe that spliced bytes pass through, how much is in it, and a pool of such pipes. Never waits: every call
//! is non-blocking, and readiness is the business of the caller.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Whether more bytes follow soon, so that the kernel may wait to fill a segment (`SPLICE_F_MORE`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Follow {
    More,
    Nothing,
}

/// A kernel pipe between one reading and one writing socket. Closes with its bytes when dropped.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    buffered: usize,
    capacity: usize,
}

impl Pipe {
    /// A pipe of `capacity` bytes, or of less where the limits of the user (`/proc/sys/fs/pipe-*`) do not allow it.
    pub fn new(capacity: usize) -> io::Result<Self> {
        let (read, write) = io::pipe()?;
        let write = OwnedFd::from(write);
        let capacity = grow(write.as_fd(), capacity)?;
        Ok(Self { read: OwnedFd::from(read), write, buffered: 0, capacity })
    }

    /// Bytes that are in the pipe.
    pub fn buffered(&self) -> usize {
        self.buffered
    }

    pub fn is_empty(&self) -> bool {
        self.buffered == 0
    }

    /// Size in bytes, counted in pages. The kernel counts filled pages and not bytes: small segments fill the pipe
    /// early, and large fragments may put more bytes into it than this.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Moves up to `limit` bytes from a socket into the pipe; `Ok(0)` is the end of the stream (for a `limit` above 0).
    ///
    /// `WouldBlock` means that the socket has nothing *or* the pipe has no free page, and the kernel does not say
    /// which. Only with an empty pipe it is surely the socket; otherwise drain first, then ask again.
    pub fn fill(&mut self, from: impl AsFd, limit: usize) -> io::Result<usize> {
        let moved = splice(from.as_fd(), self.write.as_fd(), limit, Follow::Nothing)?;
        self.buffered += moved;
        Ok(moved)
    }

    /// Moves what the pipe holds into a socket and returns how many bytes went; 0 only if the pipe is empty.
    ///
    /// `WouldBlock` means that the socket takes nothing now. A peer that is gone is `BrokenPipe`, provided that SIGPIPE
    /// is ignored, as the Rust runtime does at start: `splice` has no flag against the signal.
    pub fn drain(&mut self, to: impl AsFd, follow: Follow) -> io::Result<usize> {
        if self.buffered == 0 {
            return Ok(0);
        }
        let moved = splice(self.read.as_fd(), to.as_fd(), self.buffered, follow)?;
        if moved == 0 {
            // A pipe with bytes in it never ends; anything else means that our count is wrong.
            return Err(io::Error::other("the pipe lost bytes that were counted into it"));
        }
        self.buffered = self.buffered.saturating_sub(moved);
        Ok(moved)
    }
}

/// Empty pipes of one worker, kept for the next connection: making and sizing one costs several system calls.
#[derive(Debug)]
pub struct PipePool {
    idle: Vec<Pipe>,
    most_idle: usize,
    capacity: usize,
}

impl PipePool {
    /// Keeps at most `most_idle` pipes, each of `capacity` bytes (see [`Pipe::new`]).
    pub fn new(most_idle: usize, capacity: usize) -> Self {
        Self { idle: Vec::new(), most_idle, capacity }
    }

    /// An empty pipe: an idle one, or a new one. Fails when the process is out of file descriptors.
    pub fn take(&mut self) -> io::Result<Pipe> {
        match self.idle.pop() {
            Some(pipe) => Ok(pipe),
            None => Pipe::new(self.capacity),
        }
    }

    /// Takes a pipe back. One that still holds bytes is closed: they belong to a connection that is gone, and must
    /// never reach another.
    pub fn give(&mut self, pipe: Pipe) {
        if pipe.is_empty() && self.idle.len() < self.most_idle {
            self.idle.push(pipe);
        }
    }

    /// Pipes that wait for use.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }
}

/// Size of a pooled pipe that serves bulk well: over loopback, 256 KiB costs about a tenth more CPU per byte, and 1 MiB
/// gains nothing that can be told from noise. An unprivileged user may own 64 MiB of pipes (`pipe-user-pages-soft`), so
/// 128 of these; the kernel makes later ones small, but they work.
pub const PIPE_CAPACITY: usize = 512 * 1024;

/// Moves up to `limit` bytes between two descriptors of which one is a pipe, without waiting for the pipe.
/// Whether it waits for the socket is up to the socket, so that one has to be non-blocking.
fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, limit: usize, follow: Follow) -> io::Result<usize> {
    let more = match follow {
        Follow::More => libc::SPLICE_F_MORE,
        Follow::Nothing => 0,
    };
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK | more;
    loop {
        // SAFETY: both descriptors are open as long as they are borrowed, the null offsets say "at the current
        // position", and no memory of ours is involved.
        let moved = unsafe {
            libc::splice(from.as_raw_fd(), std::ptr::null_mut(), to.as_raw_fd(), std::ptr::null_mut(), limit, flags)
        };
        match usize::try_from(moved) {
            Ok(moved) => return Ok(moved),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Asks for `wanted` bytes, then for half of it and so on, but for no less than the pipe has; returns what it has then.
fn grow(pipe: BorrowedFd<'_>, wanted: usize) -> io::Result<usize> {
    // SAFETY: F_GETPIPE_SZ takes no argument and touches no memory of ours; the descriptor is borrowed and so open.
    let existing = crate::check(unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_GETPIPE_SZ) })?;
    let mut ask = libc::c_int::try_from(wanted).unwrap_or(libc::c_int::MAX);
    while ask > existing {
        // SAFETY: F_SETPIPE_SZ takes an int by value and touches no memory of ours; the descriptor is borrowed.
        match crate::check(unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, ask) }) {
            Ok(size) => return Ok(usize::try_from(size).unwrap_or(0)),
            Err(_) => ask /= 2,
        }
    }
    Ok(usize::try_from(existing).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client, server)
    }

    #[test]
    fn bytes_pass_from_socket_to_socket_and_the_end_is_seen() {
        let (mut sender, from) = UnixStream::pair().unwrap();
        let (to, mut receiver) = tcp_pair();
        let mut pipe = Pipe::new(PIPE_CAPACITY).unwrap();

        sender.write_all(b"ahoy").unwrap();
        assert_eq!(pipe.fill(&from, 1 << 20).unwrap(), 4);
        assert_eq!(pipe.buffered(), 4);
        assert_eq!(pipe.drain(&to, Follow::Nothing).unwrap(), 4);
        assert!(pipe.is_empty());
        let mut received = [0; 4];
        receiver.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"ahoy");

        drop(sender);
        assert_eq!(pipe.fill(&from, 1 << 20).unwrap(), 0);
        assert_eq!(pipe.drain(&to, Follow::Nothing).unwrap(), 0, "an empty pipe drains nothing");
    }

    #[test]
    fn a_silent_sender_and_a_full_receiver_would_block() {
        let (_sender, from) = tcp_pair();
        from.set_nonblocking(true).unwrap();
        let mut pipe = Pipe::new(PIPE_CAPACITY).unwrap();
        assert_eq!(pipe.fill(&from, 1 << 20).unwrap_err().kind(), io::ErrorKind::WouldBlock);

        let (mut sender, from) = UnixStream::pair().unwrap();
        sender.set_nonblocking(true).unwrap();
        from.set_nonblocking(true).unwrap();
        let (to, _receiver) = tcp_pair();
        to.set_nonblocking(true).unwrap();
        let blocked = loop {
            let _ = sender.write(&[7; 16 * 1024]);
            let _ = pipe.fill(&from, 1 << 20);
            if let Err(error) = pipe.drain(&to, Follow::More) {
                break error;
            }
        };
        assert_eq!(blocked.kind(), io::ErrorKind::WouldBlock);
        assert!(pipe.buffered() > 0, "what the receiver did not take is still there");
    }

    #[test]
    fn a_megabyte_arrives_whole_and_in_order() {
        let sent: Vec<u8> = (0..1_000_000u32).map(|byte| (byte % 251) as u8).collect();
        let (mut sender, from) = tcp_pair();
        let (to, mut receiver) = tcp_pair();
        let writer = std::thread::spawn({
            let sent = sent.clone();
            move || sender.write_all(&sent).unwrap()
        });
        let reader = std::thread::spawn(move || {
            let mut received = Vec::new();
            receiver.read_to_end(&mut received).unwrap();
            received
        });
        let mut pipe = Pipe::new(PIPE_CAPACITY).unwrap();
        while pipe.fill(&from, 1 << 20).unwrap() > 0 {
            while !pipe.is_empty() {
                pipe.drain(&to, Follow::Nothing).unwrap();
            }
        }
        drop(to);
        writer.join().unwrap();
        assert!(reader.join().unwrap() == sent);
    }

    #[test]
    fn a_pipe_that_may_not_be_so_large_is_smaller() {
        let modest = Pipe::new(PIPE_CAPACITY).unwrap();
        assert!(modest.capacity() <= PIPE_CAPACITY && modest.capacity() >= 4096);
        let absurd = Pipe::new(usize::MAX).unwrap();
        assert!(absurd.capacity() >= modest.capacity());
    }

    #[test]
    fn the_pool_keeps_empty_pipes_up_to_its_limit() {
        let mut pool = PipePool::new(1, 64 * 1024);
        let (first, second) = (pool.take().unwrap(), pool.take().unwrap());
        pool.give(first);
        pool.give(second);
        assert_eq!(pool.idle(), 1);
        pool.take().unwrap();
        assert_eq!(pool.idle(), 0);
    }

    #[test]
    fn the_pool_never_keeps_bytes_of_a_dead_connection() {
        let (mut sender, from) = UnixStream::pair().unwrap();
        let mut pool = PipePool::new(4, 64 * 1024);
        let mut pipe = pool.take().unwrap();
        sender.write_all(b"secret").unwrap();
        pipe.fill(&from, 1024).unwrap();
        pool.give(pipe);
        assert_eq!(pool.idle(), 0);
    }

    #[test]
    fn a_receiver_that_is_gone_is_an_error_and_no_signal() {
        let (mut sender, from) = UnixStream::pair().unwrap();
        let (to, receiver) = UnixStream::pair().unwrap();
        drop(receiver);
        sender.write_all(b"late").unwrap();
        let mut pipe = Pipe::new(PIPE_CAPACITY).unwrap();
        pipe.fill(&from, 1024).unwrap();
        assert_eq!(pipe.drain(&to, Follow::Nothing).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
