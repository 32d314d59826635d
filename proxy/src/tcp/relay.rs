//! Both directions of a TCP connection.
//!
//! Owns the two streams and in which way they end: each direction ends for itself (half-close), a failure ends both.
//! Never decides where bytes go, or how long a connection may live.

#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::AsyncWrite;

use super::direction::{Direction, Fault, Traffic};
use crate::worker::buffer::BufferPool;
use crate::worker::socket::{Io, Socket, SocketKind};

/// One of the two streams.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The client.
    Downstream,
    /// The endpoint.
    Upstream,
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// Both sides ended their streams, this one last.
    Closed { last: Side },
    /// This side's stream broke off.
    Reset { by: Side },
}

/// Two streams, and what moves between them.
#[derive(Debug)]
pub struct Relay {
    downstream: Io,
    upstream: Io,
    up: Direction,
    down: Direction,
    /// Took no more bytes.
    deaf: Option<Side>,
}

impl Relay {
    /// Between these streams, with at most `limit` bytes under way in each direction.
    pub fn new(downstream: Io, upstream: Io, limit: usize) -> Self {
        Self { downstream, upstream, up: Direction::new(limit), down: Direction::new(limit), deaf: None }
    }

    /// What went from downstream to upstream.
    pub fn up(&self) -> Traffic {
        self.up.traffic()
    }

    /// What went from upstream to downstream.
    pub fn down(&self) -> Traffic {
        self.down.traffic()
    }

    /// Whether bytes were read that are not written yet.
    pub fn is_underway(&self) -> bool {
        [self.up(), self.down()].iter().any(|traffic| traffic.read > traffic.written)
    }

    /// Moves what can be moved. Ready at the end of all.
    pub fn poll(&mut self, cx: &mut Context<'_>, pool: &BufferPool) -> Poll<End> {
        let mut last = Side::Upstream;
        if !self.up.is_over() {
            let to_is_done = self.down.is_over();
            match self.up.poll(cx, &mut self.downstream, &mut self.upstream, pool, to_is_done) {
                Poll::Ready(Ok(())) => last = Side::Downstream,
                Poll::Ready(Err(Fault::Read)) => return self.reset(Side::Downstream),
                Poll::Ready(Err(Fault::Write)) => self.go_deaf(Side::Upstream, pool),
                Poll::Pending => {}
            }
        }
        if !self.down.is_over() {
            let to_is_done = self.up.is_over();
            match self.down.poll(cx, &mut self.upstream, &mut self.downstream, pool, to_is_done) {
                Poll::Ready(Ok(())) => last = Side::Upstream,
                Poll::Ready(Err(Fault::Read)) => return self.reset(Side::Upstream),
                Poll::Ready(Err(Fault::Write)) => self.go_deaf(Side::Downstream, pool),
                Poll::Pending => {}
            }
        }
        match self.deaf {
            _ if !(self.up.is_over() && self.down.is_over()) => Poll::Pending,
            None => Poll::Ready(End::Closed { last }),
            Some(by) => Poll::Ready(End::Reset { by }),
        }
    }

    /// A side that takes nothing may still have something to say: an early answer, before it closed.
    fn go_deaf(&mut self, side: Side, pool: &BufferPool) {
        self.deaf.get_or_insert(side);
        match side {
            Side::Upstream => self.up.stop(pool),
            Side::Downstream => self.down.stop(pool),
        }
    }

    /// Passes a reset on: the other side must not take what it got for all there was.
    fn reset(&self, by: Side) -> Poll<End> {
        let survivor = match by {
            Side::Downstream => &self.upstream,
            Side::Upstream => &self.downstream,
        };
        match survivor.socket().map(Socket::kind) {
            Some(SocketKind::Tcp(tcp)) => {
                // Should it fail, the connection is closed in the ordinary way.
                let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
            }
            Some(SocketKind::InProcess(stream)) => stream.break_off(),
            Some(SocketKind::Unix(_)) | None => {}
        }
        Poll::Ready(End::Reset { by })
    }

    /// How long the endpoint has acknowledged nothing of what was sent to it; `None` while nothing is on its way.
    pub fn unacknowledged_for(&self) -> Option<Duration> {
        match self.upstream.socket()?.kind() {
            SocketKind::Tcp(tcp) => outrigger_sys::tcp_info::unacknowledged_for(tcp).ok().flatten(),
            SocketKind::Unix(_) | SocketKind::InProcess(_) => None,
        }
    }

    /// Passes on to downstream that the endpoint is gone.
    pub fn cut_downstream(&self) {
        let _ = self.reset(Side::Upstream);
    }

    /// Ends TLS in the proper way, as far as that is possible at once. For a connection that is about to be cut.
    pub fn say_goodbye(&mut self, cx: &mut Context<'_>) {
        for io in [&mut self.downstream, &mut self.upstream] {
            if !matches!(io, Io::Plain(_)) {
                let _ = Pin::new(io).poll_shutdown(cx);
            }
        }
    }

    /// Gives back what is held, before the relay is dropped.
    pub fn stop(&mut self, pool: &BufferPool) {
        self.up.stop(pool);
        self.down.stop(pool);
    }
}
