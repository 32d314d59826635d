//! How a connection to a control plane is made.
//!
//! Owns the seam between the gRPC transport and whoever dials, and ready connectors for TCP, Unix sockets and TLS.
//! Never retries: the stream's backoff does.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tonic::transport::Uri;

/// A connected byte stream, secured already if it is to be.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connected byte stream of any kind.
pub type Connection = Box<dyn Io>;

/// The future of a connection.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>>;

/// Makes connections to one control plane. Called once per connection, so it can choose another address each time.
#[derive(Clone)]
pub struct Connector(Arc<dyn Fn() -> Connecting + Send + Sync>);

/// TCP keepalive of an upstream connection. Source: `UpstreamConnectionOptions.tcp_keepalive`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TcpKeepalive {
    /// Probes without an answer before the connection counts as dead; the system's default if `None`.
    pub probes: Option<u32>,
    /// Idle time before the first probe, in whole seconds; the system's default if `None`.
    pub time: Option<Duration>,
    /// Time between probes, in whole seconds; the system's default if `None`.
    pub interval: Option<Duration>,
}

impl Connector {
    /// A connector that calls `connect` for each connection.
    pub fn new<F, C>(connect: C) -> Self
    where
        F: Future<Output = io::Result<Connection>> + Send + 'static,
        C: Fn() -> F + Send + Sync + 'static,
    {
        Self(Arc::new(move || Box::pin(connect())))
    }

    /// TCP to the first of `addresses` that accepts.
    #[must_use]
    pub fn tcp(addresses: Vec<SocketAddr>, keepalive: Option<TcpKeepalive>) -> Self {
        Self::new(move || tcp(addresses.clone(), keepalive))
    }

    /// A Unix stream socket; a path that starts with `@` is in the abstract namespace.
    #[must_use]
    pub fn unix(path: PathBuf) -> Self {
        Self::new(move || unix(path.clone()))
    }

    /// TLS over this connector. `config` should offer `h2` by ALPN.
    #[must_use]
    pub fn tls(self, config: Arc<ClientConfig>, server_name: ServerName<'static>) -> Self {
        let tls = TlsConnector::from(config);
        Self::new(move || {
            let (plain, tls, server_name) = (self.connect(), tls.clone(), server_name.clone());
            async move {
                let secured = tls.connect(server_name, plain.await?).await?;
                Ok(Box::new(secured) as Connection)
            }
        })
    }

    /// Starts a connection.
    #[must_use]
    pub fn connect(&self) -> Connecting {
        (self.0)()
    }
}

/// The form in which tonic takes it; where to is its own affair.
impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = io::Error;
    type Future = Dialling;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Dialling {
        Dialling(self.connect())
    }
}

/// A [`Connecting`] for tonic.
pub struct Dialling(Connecting);

impl Future for Dialling {
    type Output = io::Result<TokioIo<Connection>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context).map_ok(TokioIo::new)
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

async fn tcp(addresses: Vec<SocketAddr>, keepalive: Option<TcpKeepalive>) -> io::Result<Connection> {
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "the control plane has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                if let Some(keepalive) = keepalive {
                    set_keepalive(&stream, keepalive)?;
                }
                return Ok(Box::new(stream));
            }
            Err(error) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(last)
}

fn set_keepalive(stream: &TcpStream, keepalive: TcpKeepalive) -> io::Result<()> {
    let TcpKeepalive { probes, time, interval } = keepalive;
    let mut wire = socket2::TcpKeepalive::new();
    if let Some(time) = time {
        wire = wire.with_time(time);
    }
    if let Some(interval) = interval {
        wire = wire.with_interval(interval);
    }
    if let Some(probes) = probes {
        wire = wire.with_retries(probes);
    }
    socket2::SockRef::from(stream).set_tcp_keepalive(&wire)
}

async fn unix(path: PathBuf) -> io::Result<Connection> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;

    let Some(name) = path.as_os_str().as_bytes().strip_prefix(b"@") else {
        return Ok(Box::new(UnixStream::connect(&path).await?));
    };
    // tokio cannot dial an abstract name; a local connect either succeeds or fails at once.
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
    stream.set_nonblocking(true)?;
    Ok(Box::new(UnixStream::from_std(stream)?))
}
