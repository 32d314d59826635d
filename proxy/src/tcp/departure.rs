//! A downstream that leaves before its session has an endpoint.
//!
//! Owns looking at the connection without taking a byte from it. Never ends anything itself.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncBufRead, Interest, ReadBuf};

use crate::worker::socket::{Io, Socket, SocketKind};

/// The downstream has left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Left;

/// Waits until a downstream leaves.
///
/// The connection's end counts as leaving, unless something came before it: what a client has sent is to be delivered, even
/// if it has said that nothing will follow. A connection that is reset counts in any case.
pub(super) async fn left(io: &mut Io) -> Left {
    match poll_fn(|cx| poll_look(io, cx)).await {
        Ok(0) | Err(_) => Left,
        Ok(_) => match io.socket() {
            Some(socket) => reset(socket).await,
            None => std::future::pending().await,
        },
    }
}

/// Waits until a downstream has said something, or ended.
pub(super) async fn heard(io: &mut Io) {
    // Where nobody can look without taking, there is nothing to wait for.
    let kind = io.socket().map(Socket::kind);
    if matches!(kind, Some(SocketKind::Tcp(_) | SocketKind::InProcess(_))) && !matches!(io, Io::Introduced(_)) {
        let _ = poll_fn(|cx| poll_look(io, cx)).await;
    }
}

/// How much there is to read, at least; 0 at the end.
fn poll_look(io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    match io {
        Io::Plain(socket) => poll_peek(socket, cx),
        Io::TlsServer(tls) => Pin::new(&mut **tls).poll_fill_buf(cx).map_ok(<[u8]>::len),
        // Of these, some are not accepted connections; the others wait to be introduced to the endpoint.
        Io::TlsClient(_) | Io::Tunnel(_) | Io::Introduced(_) => Poll::Pending,
    }
}

fn poll_peek(socket: &Socket, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    if socket.has_ahead() {
        return Poll::Ready(Ok(1));
    }
    let mut byte = [0];
    match socket.kind() {
        SocketKind::Tcp(tcp) => tcp.poll_peek(cx, &mut ReadBuf::new(&mut byte)),
        // There is no look at these that leaves everything where it is.
        SocketKind::Unix(_) => Poll::Pending,
        SocketKind::InProcess(stream) => stream.poll_peek(cx),
    }
}

async fn reset(socket: &Socket) -> Left {
    match socket.kind() {
        SocketKind::Tcp(tcp) => {
            if tcp.ready(Interest::ERROR).await.is_ok() {
                return Left;
            }
        }
        SocketKind::InProcess(stream) => {
            poll_fn(|cx| stream.poll_broken(cx)).await;
            return Left;
        }
        SocketKind::Unix(_) => {}
    }
    std::future::pending().await
}
