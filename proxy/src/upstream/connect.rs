//! New connections to endpoints.
//!
//! Owns the way from an endpoint to a byte stream: limits, TCP or Unix, TLS, and the time all that may take. Never keeps
//! connections (see `pool`).

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use outrigger_config::address::Address;
use outrigger_config::cluster::Cluster;
use outrigger_config::listener::SocketState;
use outrigger_config::route::Priority;
use outrigger_policy::breaker::{Permit, Resource};
use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, TcpKeepalive, Type};
use tokio::net::{TcpStream, UnixStream};

use super::clusters::{WorkerCluster, WorkerHost};
use super::stats::ClusterStats;
use crate::tls::HandshakeFailure;
use crate::worker::socket::{Io, Socket, SocketKind};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A limit on connections is reached.
    #[error("connection limit reached")]
    Overflow,
    /// `connect_timeout` has passed.
    #[error("connection timeout")]
    Timeout,
    /// The system or the peer said no.
    #[error("{0}")]
    Io(std::io::Error),
    /// TLS failed.
    #[error("TLS_error: {0}")]
    Tls(String),
    /// Another request made the connection that this one waited for, and failed.
    #[error("{0}")]
    Shared(String),
}

/// A counted connection; the counts end when it is dropped.
pub struct Counted {
    cluster: Rc<WorkerCluster>,
    host: Rc<WorkerHost>,
    start: Instant,
    _permit: Permit,
}

impl Counted {
    /// Whose connection it is.
    pub fn host(&self) -> &Rc<WorkerHost> {
        &self.host
    }

    /// Whose connection it is.
    pub fn cluster(&self) -> &Rc<WorkerCluster> {
        &self.cluster
    }

    /// When it was made.
    pub fn start(&self) -> Instant {
        self.start
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.host.connections.set(self.host.connections.get().saturating_sub(1));
        self.host.host.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.host.stats.cx_active.decrement();
        let stats = &self.cluster.stats;
        stats.upstream_cx_active.decrement();
        stats.upstream_cx_destroy.increment();
        stats.upstream_cx_length_ms.record(self.start.elapsed().as_millis() as u64);
        self.cluster.released.notify_waiters();
    }
}

/// Takes a place among the connections of a cluster and its endpoint.
///
/// A worker without any connection to the endpoint is let through even at the cluster's limit, as otherwise workers that
/// came late would starve.
pub fn take_place(
    cluster: &Rc<WorkerCluster>,
    host: &Rc<WorkerHost>,
    priority: Priority,
) -> Result<Counted, ConnectError> {
    let (breaker, thresholds) = cluster.limits(priority);
    let per_host = cluster.node().config.circuit_breakers.per_host_max_connections;
    let shared = &host.host.shared.connections;
    let within = |count: u32| per_host.is_none_or(|limit| count < limit).then_some(count + 1);
    let overflow = || {
        cluster.stats.upstream_cx_overflow.increment();
        ConnectError::Overflow
    };
    shared.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).map_err(|_| overflow())?;
    let permit = match breaker.try_acquire_within(Resource::Connection, &thresholds) {
        Some(permit) => permit,
        None if host.connections.get() == 0 => breaker.acquire_beyond_limit(Resource::Connection),
        None => {
            shared.fetch_sub(1, Ordering::Relaxed);
            return Err(overflow());
        }
    };
    host.connections.set(host.connections.get() + 1);
    host.stats.cx_active.increment();
    host.stats.cx_total.increment();
    cluster.stats.upstream_cx_active.increment();
    cluster.stats.upstream_cx_total.increment();
    let (cluster, host) = (Rc::clone(cluster), Rc::clone(host));
    Ok(Counted { cluster, host, start: Instant::now(), _permit: permit })
}

/// A byte stream to an endpoint, with the protocol that TLS negotiated.
pub struct Connected {
    /// The stream.
    pub io: Io,
    /// ALPN, if TLS negotiated one.
    pub alpn: Option<Vec<u8>>,
}

/// Connects to the endpoint of `counted`, within the cluster's `connect_timeout`.
///
/// # Errors
/// When every address of the endpoint fails, or the time is up.
pub async fn connect(
    counted: &Counted,
    alpn: Option<&[Vec<u8>]>,
    sni: Option<&str>,
) -> Result<Connected, ConnectError> {
    let cluster = counted.cluster();
    let node = Arc::clone(&counted.host().node);
    let attempt = async {
        let host = &counted.host().host;
        let mut failure = None;
        for address in std::iter::once(&host.address).chain(&host.additional_addresses) {
            match open(address, &node.config).await {
                Ok(socket) => return secure(socket, &node, &cluster.stats, &host.hostname, alpn, sni).await,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(ConnectError::Io(failure.unwrap_or_else(|| std::io::ErrorKind::AddrNotAvailable.into())))
    };
    let result = match tokio::time::timeout(node.config.connect_timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout),
    };
    match &result {
        Ok(_) => cluster.stats.upstream_cx_connect_ms.record(counted.start().elapsed().as_millis() as u64),
        Err(error) => {
            if matches!(error, ConnectError::Timeout) {
                cluster.stats.upstream_cx_connect_timeout.increment();
            }
            cluster.stats.upstream_cx_connect_fail.increment();
            counted.host().stats.cx_connect_fail.increment();
        }
    }
    result
}

async fn secure(
    socket: Socket,
    node: &crate::graph::ClusterNode,
    stats: &ClusterStats,
    hostname: &str,
    alpn: Option<&[Vec<u8>]>,
    sni: Option<&str>,
) -> Result<Connected, ConnectError> {
    let Some(tls) = &node.tls else { return Ok(Connected { io: Io::Plain(socket), alpn: None }) };
    let auto = match &node.config.transport {
        outrigger_config::cluster::UpstreamTransport::Tls(config) => config.auto_host_sni && !hostname.is_empty(),
        outrigger_config::cluster::UpstreamTransport::Raw => false,
    };
    let sni = if auto { Some(hostname) } else { sni };
    match tls.connect(socket, sni, alpn).await {
        Ok((stream, info)) => {
            stats.ssl_handshake.increment();
            Ok(Connected { io: Io::TlsClient(Box::new(stream)), alpn: info.alpn })
        }
        Err(error) => {
            match error.failure() {
                HandshakeFailure::SubjectAltName => stats.ssl_fail_verify_san.increment(),
                HandshakeFailure::Pin => stats.ssl_fail_verify_cert_hash.increment(),
                HandshakeFailure::Untrusted => stats.ssl_fail_verify_error.increment(),
                _ => {}
            }
            stats.ssl_connection_error.increment();
            Err(ConnectError::Tls(error.to_string()))
        }
    }
}

async fn open(address: &Address, cluster: &Cluster) -> std::io::Result<Socket> {
    match address {
        Address::Ip(address) => open_tcp(*address, cluster).await,
        Address::Pipe { path, .. } => {
            let address = outrigger_sys::unix::unix_address(&path.to_string_lossy())?;
            let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
            stream.set_nonblocking(true)?;
            Ok(Socket::new(SocketKind::Unix(UnixStream::from_std(stream)?)))
        }
    }
}

async fn open_tcp(address: std::net::SocketAddr, cluster: &Cluster) -> std::io::Result<Socket> {
    let raw = RawSocket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    raw.set_tcp_nodelay(true)?;
    if let Some(keepalive) = &cluster.tcp_keepalive {
        set_keepalive(&SockRef::from(&raw), keepalive)?;
    }
    if let Some(bind) = &cluster.bind {
        if bind.freebind {
            outrigger_sys::sockopt::set_freebind(&raw, true)?;
        }
        for option in bind.socket_options.iter().filter(|option| option.state == SocketState::PreBind) {
            crate::listener::socket_options::apply(&raw, option)?;
        }
        // A source of the other family cannot be used for this destination.
        if let Some(source) = bind.source.filter(|source| source.is_ipv4() == address.is_ipv4()) {
            raw.bind(&source.into())?;
        }
    }
    match raw.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let stream = TcpStream::from_std(raw.into())?;
    stream.writable().await?;
    match stream.take_error()? {
        None => Ok(Socket::new(SocketKind::Tcp(stream))),
        Some(error) => Err(error),
    }
}

/// `connect(2)` goes on in the background; Linux's number on every architecture that it runs on here.
const EINPROGRESS: i32 = 115;

/// Applies keep-alive settings; what is not given stays the system's.
pub fn set_keepalive(
    socket: &SockRef<'_>,
    keepalive: &outrigger_config::listener::TcpKeepalive,
) -> std::io::Result<()> {
    let seconds = |value: u32| std::time::Duration::from_secs(u64::from(value));
    let mut settings = TcpKeepalive::new();
    if let Some(time) = keepalive.time_s {
        settings = settings.with_time(seconds(time));
    }
    if let Some(interval) = keepalive.interval_s {
        settings = settings.with_interval(seconds(interval));
    }
    if let Some(probes) = keepalive.probes {
        settings = settings.with_retries(probes);
    }
    socket.set_tcp_keepalive(&settings)
}
