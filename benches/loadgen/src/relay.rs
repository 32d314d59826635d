//! The floor: a TCP relay with nothing in it but the system calls any proxy
//! needs. One thread, one epoll; copies through a buffer, or with --splice
//! moves pages through a pipe without looking at them.

use crate::Args;
use crate::net::{self, Poller};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const LISTENER: u64 = u64::MAX;
const PIPE: usize = 256 * 1024;

/// One direction of a pair: what was read and has not been written yet.
struct Half {
    queue: Vec<u8>,
    pipe: Option<(OwnedFd, OwnedFd)>,
    in_pipe: usize,
    ended: bool,
}

/// Half i reads from sock[i] and writes to sock[1 - i].
struct Pair {
    sock: [TcpStream; 2],
    half: [Half; 2],
    interest: [(bool, bool); 2],
}

impl Half {
    fn new(splice: bool) -> io::Result<Self> {
        let mut pipe = None;
        if splice {
            let mut fds = [0; 2];
            if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) } != 0 {
                return Err(io::Error::last_os_error());
            }
            unsafe { libc::fcntl(fds[1], libc::F_SETPIPE_SZ, PIPE) };
            pipe = Some(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) });
        }
        Ok(Half { queue: Vec::new(), pipe, in_pipe: 0, ended: false })
    }

    fn backed_up(&self) -> bool {
        self.in_pipe > 0 || !self.queue.is_empty()
    }

    fn splice(from: i32, to: i32) -> io::Result<usize> {
        let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
        match unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), PIPE, flags) } {
            n if n >= 0 => Ok(n as usize),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads once; Ok(false) at the end of the stream.
    fn pump(&mut self, from: &TcpStream, to: &TcpStream, buf: &mut [u8]) -> io::Result<bool> {
        let got = match &self.pipe {
            Some((_, write_end)) => match Self::splice(from.as_raw_fd(), write_end.as_raw_fd()) {
                Ok(n) => {
                    self.in_pipe += n;
                    n
                }
                Err(e) if net::would_block(&e) => return Ok(true),
                Err(e) => return Err(e),
            },
            None => match unsafe { libc::recv(from.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), 0) } {
                n if n >= 0 => n as usize,
                _ => match io::Error::last_os_error() {
                    e if net::would_block(&e) => return Ok(true),
                    e => return Err(e),
                },
            },
        };
        if got == 0 {
            return Ok(false);
        }
        if self.pipe.is_none() {
            let sent = match (&*to).write(&buf[..got]) {
                Ok(n) => n,
                Err(e) if net::would_block(&e) => 0,
                Err(e) => return Err(e),
            };
            self.queue.extend_from_slice(&buf[sent..got]);
            return Ok(true);
        }
        self.drain(to).map(|()| true)
    }

    fn drain(&mut self, to: &TcpStream) -> io::Result<()> {
        let moved = match &self.pipe {
            Some((read_end, _)) if self.in_pipe > 0 => Self::splice(read_end.as_raw_fd(), to.as_raw_fd()),
            None if !self.queue.is_empty() => (&*to).write(&self.queue),
            _ => return Ok(()),
        };
        match moved {
            Ok(n) if self.pipe.is_some() => self.in_pipe -= n,
            Ok(n) => drop(self.queue.drain(..n)),
            Err(e) if net::would_block(&e) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

impl Pair {
    fn open(client: TcpStream, upstream: SocketAddr, splice: bool, poller: &Poller, token: u64) -> io::Result<Self> {
        net::prepare(&client)?;
        let server = net::connect(upstream)?;
        let pair = Pair {
            sock: [client, server],
            half: [Half::new(splice)?, Half::new(splice)?],
            interest: [(true, false); 2],
        };
        for side in 0..2 {
            poller.add(pair.sock[side].as_raw_fd(), token * 2 + side as u64, true, false)?;
        }
        Ok(pair)
    }

    /// Ok(false) once both directions have ended.
    fn serve(
        &mut self,
        side: usize,
        readable: bool,
        writable: bool,
        buf: &mut [u8],
        poller: &Poller,
        token: u64,
    ) -> io::Result<bool> {
        let other = 1 - side;
        if writable {
            self.half[other].drain(&self.sock[side])?;
        }
        let may_read = readable && !self.half[side].backed_up() && !self.half[side].ended;
        if may_read && !self.half[side].pump(&self.sock[side], &self.sock[other], buf)? {
            self.half[side].ended = true;
            let _ = self.sock[other].shutdown(std::net::Shutdown::Write);
        }
        if self.half[0].ended && self.half[1].ended {
            return Ok(false);
        }
        for s in 0..2 {
            let wanted = (!self.half[s].ended && !self.half[s].backed_up(), self.half[1 - s].backed_up());
            if wanted != self.interest[s] {
                self.interest[s] = wanted;
                poller.modify(self.sock[s].as_raw_fd(), token * 2 + s as u64, wanted.0, wanted.1)?;
            }
        }
        Ok(true)
    }
}

pub fn run(args: &Args) -> String {
    let (upstream, splice) = (args.address("upstream"), args.has("splice"));
    let listener = net::listen(args.address("listen")).expect("listen");
    let mut poller = Poller::new();
    poller.add(listener.as_raw_fd(), LISTENER, true, false).expect("epoll_ctl");
    let mut pairs: Vec<Option<Pair>> = Vec::new();
    let mut vacant: Vec<usize> = Vec::new();
    let mut events = Vec::new();
    let mut buf = vec![0; args.number("buffer", 256 * 1024)];
    loop {
        poller.wait(None, &mut events).expect("epoll_wait");
        for event in &events {
            if event.token == LISTENER {
                while let Ok((client, _)) = listener.accept() {
                    let at = vacant.pop().unwrap_or_else(|| {
                        pairs.push(None);
                        pairs.len() - 1
                    });
                    match Pair::open(client, upstream, splice, &poller, at as u64) {
                        Ok(pair) => pairs[at] = Some(pair),
                        Err(_) => vacant.push(at),
                    }
                }
                continue;
            }
            let (at, side) = ((event.token / 2) as usize, (event.token % 2) as usize);
            let Some(pair) = pairs[at].as_mut() else { continue };
            if !pair.serve(side, event.readable, event.writable, &mut buf, &poller, at as u64).unwrap_or(false) {
                pairs[at] = None;
                vacant.push(at);
            }
        }
    }
}
