//! Byte streams of the data path.
//!
//! Owns [`Socket`] (TCP, Unix or in-process, with bytes already read put back in front) and [`Io`] (a socket, plain or inside TLS).
//! Never interprets the bytes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{client, server};

use super::in_process::InProcess;
use crate::istio::Introduced;
use crate::tcp::tunnel::Tunnel;

/// A connected socket.
#[derive(Debug)]
pub struct Socket {
    kind: SocketKind,
    /// Bytes that inspection read ahead; read again before the socket's own.
    ahead: Vec<u8>,
    ahead_taken: usize,
}

/// The transport below.
#[derive(Debug)]
pub enum SocketKind {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix stream socket.
    Unix(UnixStream),
    /// No socket at all, but another task of this worker.
    InProcess(InProcess),
}

impl Socket {
    /// A socket from which nothing was read.
    pub fn new(kind: SocketKind) -> Self {
        Self { kind, ahead: Vec::new(), ahead_taken: 0 }
    }

    /// Puts bytes back in front.
    pub fn put_back(&mut self, bytes: Vec<u8>) {
        self.ahead = bytes;
        self.ahead_taken = 0;
    }

    /// Takes the bytes that were put back and not read again.
    pub fn take_ahead(&mut self) -> Vec<u8> {
        let mut ahead = std::mem::take(&mut self.ahead);
        ahead.drain(..std::mem::take(&mut self.ahead_taken));
        ahead
    }

    /// Whether bytes were put back that nobody has read again.
    pub fn has_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// The transport below.
    pub fn kind(&self) -> &SocketKind {
        &self.kind
    }

    /// Ready when the transport has bytes, an end or an error, as far as is known without asking the system.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            return Poll::Ready(Ok(()));
        }
        match &self.kind {
            SocketKind::Tcp(tcp) => tcp.poll_read_ready(cx),
            SocketKind::Unix(unix) => unix.poll_read_ready(cx),
            SocketKind::InProcess(stream) => stream.poll_read_ready(cx),
        }
    }

    /// Our address, if it is TCP.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match &self.kind {
            SocketKind::Tcp(tcp) => tcp.local_addr().ok(),
            SocketKind::Unix(_) | SocketKind::InProcess(_) => None,
        }
    }

    /// Whether the system moves its bytes.
    pub fn is_of_system(&self) -> bool {
        match &self.kind {
            SocketKind::Tcp(_) | SocketKind::Unix(_) => true,
            SocketKind::InProcess(_) => false,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            let rest = &this.ahead[this.ahead_taken..];
            let count = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..count]);
            this.ahead_taken += count;
            if this.ahead_taken == this.ahead.len() {
                this.ahead = Vec::new();
                this.ahead_taken = 0;
            }
            return Poll::Ready(Ok(()));
        }
        match &mut this.kind {
            SocketKind::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            SocketKind::Unix(unix) => Pin::new(unix).poll_read(cx, buffer),
            SocketKind::InProcess(stream) => stream.poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            SocketKind::Tcp(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            SocketKind::Unix(unix) => Pin::new(unix).poll_write(cx, bytes),
            SocketKind::InProcess(stream) => stream.poll_write(cx, &[io::IoSlice::new(bytes)]),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            SocketKind::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            SocketKind::Unix(unix) => Pin::new(unix).poll_write_vectored(cx, slices),
            SocketKind::InProcess(stream) => stream.poll_write(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            SocketKind::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            SocketKind::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
            SocketKind::InProcess(stream) => {
                stream.shutdown();
                Poll::Ready(Ok(()))
            }
        }
    }
}

/// A socket, plain or inside TLS. The TLS state is boxed: plain connections should not pay for its size.
#[derive(Debug)]
pub enum Io {
    /// Plain bytes.
    Plain(Socket),
    /// We are the TLS server.
    TlsServer(Box<server::TlsStream<Socket>>),
    /// We are the TLS client.
    TlsClient(Box<client::TlsStream<Socket>>),
    /// Both sides say who they are first.
    Introduced(Box<Introduced>),
    /// The bodies of a request to an endpoint.
    Tunnel(Box<Tunnel>),
}

impl Io {
    /// The socket below, if it is nobody else's.
    pub fn socket(&self) -> Option<&Socket> {
        match self {
            Io::Plain(socket) => Some(socket),
            Io::TlsServer(tls) => Some(tls.get_ref().0),
            Io::TlsClient(tls) => Some(tls.get_ref().0),
            Io::Introduced(introduced) => introduced.socket(),
            Io::Tunnel(_) => None,
        }
    }
}

macro_rules! each {
    ($this:expr, $io:ident => $call:expr) => {
        match $this {
            Io::Plain($io) => $call,
            Io::TlsServer($io) => $call,
            Io::TlsClient($io) => $call,
            Io::Introduced($io) => $call,
            Io::Tunnel($io) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), io => Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), io => Pin::new(io).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, io => io.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_shutdown(cx))
    }
}
