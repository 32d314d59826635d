//! A client connection that can be cut from outside, as if the control plane had died.
//!
//! Never looks at the bytes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tonic::transport::server::Connected;

/// Cuts all connections made before the cut.
#[derive(Clone, Debug)]
pub(crate) struct Scissors(watch::Sender<()>);

impl Scissors {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(()))
    }

    /// Ends all connections at once, without a goodbye.
    pub(crate) fn cut(&self) {
        self.0.send_replace(());
    }

    /// Puts a new connection within reach.
    pub(crate) fn guard<S>(&self, socket: S) -> Connection<S> {
        let mut cut = self.0.subscribe();
        Connection { socket, cut: Some(Box::pin(async move { drop(cut.changed().await) })) }
    }
}

/// A connection within reach of [`Scissors`].
pub(crate) struct Connection<S> {
    socket: S,
    /// `None` once cut.
    cut: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl<S> Connection<S> {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.cut.as_mut().is_some_and(|cut| cut.as_mut().poll(cx).is_ready()) {
            self.cut = None;
        }
        if self.cut.is_none() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
