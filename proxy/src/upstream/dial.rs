//! Connections that the control thread makes itself: to control planes, access log services and trace collectors.
//!
//! Owns the way from a gRPC service in the configuration to a connector. Never retries, and never serves traffic.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use outrigger_config::address::Address;
use outrigger_config::cluster::{Cluster, Discovery, HealthStatus, UpstreamProtocol, UpstreamTransport};
use outrigger_config::source::{GoogleTls, GrpcService, GrpcTarget};
use outrigger_config::tls::{TlsCertificate, UpstreamTls, Validation};
use outrigger_policy::balance::Health;
use outrigger_xds::Connector;
use outrigger_xds::connector::{Connection, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

use super::host::Host;
use super::stats::ClusterStats;
use super::{http_tunnel, proxy_header};
use crate::graph::ClusterNode;
use crate::graph::tls_inputs::plain_upstream;
use crate::process::Process;
use crate::stats::names;
use crate::tls::{ClientTls, TlsError};

/// Why a gRPC service cannot be connected to.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Not a target that can be dialed.
    #[error("target {0:?} is not supported: expected host:port, dns:///host:port, or unix:path")]
    Target(String),
    /// Its TLS material cannot be used.
    #[error("ssl_credentials: {0}")]
    Tls(#[from] TlsError),
}

/// A connector to a gRPC service: one of our clusters as the graph has it when connecting, or a target of its own.
pub fn connector_for(service: &GrpcService, process: &Arc<Process>) -> Result<Connector, DialError> {
    match &service.target {
        GrpcTarget::Cluster { name, authority: _, max_receive_message_bytes: _ } => {
            Ok(to_cluster(Arc::clone(process), Arc::clone(name), HttpVersion::Http2))
        }
        GrpcTarget::Uri { target, tls, .. } => to_target(target, tls.as_ref()),
    }
}

/// A connector to one of our clusters as the graph has it when connecting.
pub fn to_cluster(process: Arc<Process>, name: Arc<str>, version: HttpVersion) -> Connector {
    let turn = Arc::new(AtomicUsize::new(0));
    // The control thread's own share of the cluster's stats.
    let stats: Arc<OnceLock<Arc<ClusterStats>>> = Arc::default();
    Connector::new(move || {
        let (process, name, stats) = (Arc::clone(&process), Arc::clone(&name), Arc::clone(&stats));
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        async move {
            let cluster = ready(&process, &name)?;
            let prefix = || names::prefix("cluster", &cluster.config.stat_name);
            let stats = stats.get_or_init(|| process.stats.scope(&prefix()));
            counted(&cluster, turn, stats, version).await
        }
    })
}

/// A connection for one request.
pub struct HttpConnection {
    /// Its bytes.
    pub connection: Connection,
    /// What it speaks.
    pub version: HttpVersion,
    /// It is under TLS.
    pub secure: bool,
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HttpVersion {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// A connection to an endpoint of a cluster in the protocol that the cluster has, HTTP/1.1 where it has several.
pub async fn connect_http(
    process: &Process,
    cluster: &str,
    turn: usize,
    stats: &OnceLock<Arc<ClusterStats>>,
) -> io::Result<HttpConnection> {
    let cluster = ready(process, cluster)?;
    let version = match cluster.config.http.protocol {
        UpstreamProtocol::Http2 => HttpVersion::Http2,
        UpstreamProtocol::Http1 | UpstreamProtocol::UseDownstream | UpstreamProtocol::Auto => HttpVersion::Http1,
    };
    let prefix = || names::prefix("cluster", &cluster.config.stat_name);
    let stats = stats.get_or_init(|| process.stats.scope(&prefix()));
    let connection = counted(&cluster, turn, stats, version).await?;
    let secure = cluster.config.transport.tls().is_some();
    Ok(HttpConnection { connection, version, secure })
}

fn ready(process: &Process, name: &str) -> io::Result<Arc<ClusterNode>> {
    let cluster = process.graph.load().clusters.get(name).cloned();
    let cluster = cluster.map(|cluster| member_of(process, cluster));
    cluster.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("cluster {name:?} is not ready")))
}

/// A connection that counts among those of its cluster.
async fn counted(
    cluster: &ClusterNode,
    turn: usize,
    stats: &Arc<ClusterStats>,
    version: HttpVersion,
) -> io::Result<Connection> {
    let counted = CountedIo::begin(Arc::clone(stats), version);
    let limit = cluster.config.connect_timeout;
    match tokio::time::timeout(limit, connect(cluster, turn, version, &counted.stats)).await {
        Ok(Ok(connection)) => Ok(Box::new(counted.connected(connection)) as Connection),
        Ok(Err(error)) => {
            counted.stats.upstream_cx_connect_fail.increment();
            Err(error)
        }
        Err(_) => {
            counted.stats.upstream_cx_connect_fail.increment();
            counted.stats.upstream_cx_connect_timeout.increment();
            let reason = format!("cluster {:?}: no connection within {limit:?}", cluster.config.name);
            Err(io::Error::new(io::ErrorKind::TimedOut, reason))
        }
    }
}

/// A connection that counts among those of its cluster, from the attempt to its end.
struct CountedIo {
    stats: Arc<ClusterStats>,
    /// None while it is being made.
    connection: Option<Connection>,
}

impl CountedIo {
    fn begin(stats: Arc<ClusterStats>, version: HttpVersion) -> Self {
        stats.upstream_cx_total.increment();
        match version {
            HttpVersion::Http1 => stats.upstream_cx_http1_total.increment(),
            HttpVersion::Http2 => stats.upstream_cx_http2_total.increment(),
        }
        stats.upstream_cx_active.increment();
        Self { stats, connection: None }
    }

    fn connected(mut self, connection: Connection) -> Self {
        self.connection = Some(connection);
        self
    }

    fn io(self: Pin<&mut Self>) -> io::Result<Pin<&mut Connection>> {
        self.get_mut().connection.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for CountedIo {
    fn drop(&mut self) {
        self.stats.upstream_cx_active.decrement();
        self.stats.upstream_cx_destroy.increment();
    }
}

impl AsyncRead for CountedIo {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.io()?.poll_read(context, buffer)
    }
}

impl AsyncWrite for CountedIo {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.io()?.poll_write(context, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io()?.poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io()?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io()?.poll_shutdown(context)
    }
}

/// The cluster itself; of an aggregate cluster the first member with a fit endpoint, else the first with any.
fn member_of(process: &Process, cluster: Arc<ClusterNode>) -> Arc<ClusterNode> {
    let Discovery::Aggregate(names) = &cluster.config.discovery else { return cluster };
    let graph = process.graph.load();
    let members: Vec<_> = names.iter().filter_map(|name| graph.clusters.get(name)).collect();
    let is_fit = |host: &Arc<Host>| host.shared.flags.health(host.health) == Health::Healthy;
    let fit = members.iter().find(|member| member.hosts.hosts.iter().any(is_fit));
    let any = || members.iter().find(|member| !member.hosts.hosts.is_empty());
    fit.or_else(any).map_or_else(|| Arc::clone(&cluster), |member| Arc::clone(member))
}

async fn connect(
    cluster: &ClusterNode,
    turn: usize,
    version: HttpVersion,
    stats: &ClusterStats,
) -> io::Result<Connection> {
    let name = &cluster.config.name;
    let Some(host) = choose(&cluster.hosts.hosts, turn) else {
        let reason = format!("cluster {name:?} has no endpoints");
        return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, reason));
    };
    let mut failure = None;
    let proxy = host.http_proxy.as_ref();
    let own = std::iter::once(&host.address).chain(&host.additional_addresses);
    let addresses: Vec<&Address> = proxy.map_or_else(|| own.collect(), |proxy| vec![&*proxy.address]);
    for address in addresses {
        let mut opened = match open(address, &cluster.config).await {
            Ok(opened) => opened,
            Err(error) => {
                failure = Some(io::Error::new(error.kind(), format!("cluster {name:?}: {address}: {error}")));
                continue;
            }
        };
        if let Some(proxy) = proxy.filter(|proxy| proxy.tunnel) {
            let tunnel = http_tunnel::open(&mut opened, &proxy.address, &host.address, &host.hostname).await;
            tunnel.map_err(|error| io::Error::other(format!("cluster {name:?}: {error}")))?;
        }
        let transport = cluster.config.transports().nth(host.transport);
        if let Some(header) = transport.and_then(UpstreamTransport::proxy_header) {
            // Nobody but us wants this connection.
            opened.write_all(&proxy_header::own(header.version, None)).await?;
        }
        let Some(config) = transport.and_then(UpstreamTransport::tls) else {
            return Ok(opened);
        };
        let Some(tls) = cluster.tls.get(host.transport) else {
            let reason = format!("cluster {name:?}: its secrets have not arrived");
            return Err(io::Error::new(io::ErrorKind::NotConnected, reason));
        };
        let sni = (config.auto_host_sni && !host.hostname.is_empty()).then_some(&*host.hostname);
        let alpn: &[u8] = match version {
            HttpVersion::Http1 => b"http/1.1",
            HttpVersion::Http2 => b"h2",
        };
        return match tls.connect(opened, sni, Some(&[alpn.to_vec()])).await {
            Ok((stream, info)) => {
                stats.handshake(&info);
                Ok(Box::new(stream) as Connection)
            }
            Err(error) => {
                stats.failed_handshake(error.failure());
                Err(io::Error::other(format!("cluster {name:?}: {address}: {error}")))
            }
        };
    }
    Err(failure.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

/// The next host in turn among those of the highest priority that are fit, or among all if none is.
fn choose(hosts: &[Arc<Host>], turn: usize) -> Option<&Arc<Host>> {
    let fit = |host: &&Arc<Host>| matches!(host.health, HealthStatus::Unknown | HealthStatus::Healthy);
    let highest = hosts.iter().filter(fit).map(|host| host.priority).min();
    let best: Vec<&Arc<Host>> = match highest {
        Some(priority) => hosts.iter().filter(fit).filter(|host| host.priority == priority).collect(),
        None => hosts.iter().collect(),
    };
    if best.is_empty() { None } else { Some(best[turn % best.len()]) }
}

async fn open(address: &Address, cluster: &Cluster) -> io::Result<Connection> {
    match address {
        Address::Ip(address) => {
            let source = cluster.bind.as_ref().and_then(|bind| bind.source_for(*address));
            let stream = open_tcp(*address, source).await?;
            if let Some(keepalive) = &cluster.tcp_keepalive {
                let seconds = |value: Option<u32>| value.map(|value| std::time::Duration::from_secs(value.into()));
                let keepalive = TcpKeepalive {
                    probes: keepalive.probes,
                    time: seconds(keepalive.time_s),
                    interval: seconds(keepalive.interval_s),
                };
                set_keepalive(&stream, keepalive)?;
            }
            Ok(Box::new(stream))
        }
        Address::Pipe { path, .. } => Connector::unix(AsRef::<Path>::as_ref(path).to_path_buf()).connect().await,
        Address::Internal(_) => Err(not_on_this_thread()),
    }
}

/// Why the control thread cannot connect to a listener of this process: as in Envoy, these are served by workers alone.
pub(crate) fn not_on_this_thread() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "internal listeners are reached by traffic only")
}

/// A TCP connection, from `source` if it is given.
pub(crate) async fn open_tcp(address: SocketAddr, source: Option<SocketAddr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    // A source of the other family cannot be used for this destination.
    if let Some(source) = source.filter(|source| source.is_ipv4() == address.is_ipv4()) {
        socket.bind(source)?;
    }
    socket.connect(address).await
}

fn set_keepalive(stream: &TcpStream, keepalive: TcpKeepalive) -> io::Result<()> {
    let TcpKeepalive { probes, time, interval } = keepalive;
    let mut settings = socket2::TcpKeepalive::new();
    if let Some(time) = time {
        settings = settings.with_time(time);
    }
    if let Some(interval) = interval {
        settings = settings.with_interval(interval);
    }
    if let Some(probes) = probes {
        settings = settings.with_retries(probes);
    }
    socket2::SockRef::from(stream).set_tcp_keepalive(&settings)
}

/// Where a target of its own leads.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Target {
    Name { host: String, port: u16 },
    Unix(PathBuf),
}

fn parse_target(target: &str) -> Result<Target, DialError> {
    if let Some(path) = target.strip_prefix("unix://").or_else(|| target.strip_prefix("unix:")) {
        return Ok(Target::Unix(PathBuf::from(path)));
    }
    if let Some(name) = target.strip_prefix("unix-abstract:") {
        return Ok(Target::Unix(PathBuf::from(format!("@{name}"))));
    }
    let plain = ["dns:", "ipv4:", "ipv6:"].iter().find_map(|scheme| target.strip_prefix(scheme)).unwrap_or(target);
    // `dns://server/name` may name a server to ask; only the empty one is taken.
    let plain = plain.strip_prefix("///").unwrap_or(plain);
    let parts = plain.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let bracketed = |host: &str| host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).map(str::to_owned);
    match parts {
        Some((host, port)) if !host.is_empty() && !host.contains('/') => {
            Ok(Target::Name { host: bracketed(host).unwrap_or_else(|| host.to_owned()), port })
        }
        _ => Err(DialError::Target(target.to_owned())),
    }
}

fn to_target(target: &str, credentials: Option<&GoogleTls>) -> Result<Connector, DialError> {
    let parsed = parse_target(target)?;
    let sni = match &parsed {
        Target::Name { host, .. } => host.clone(),
        Target::Unix(_) => "localhost".to_owned(),
    };
    let tls = match credentials {
        Some(credentials) => Some(Arc::new(google_tls(credentials, &sni)?)),
        None => None,
    };
    let turn = Arc::new(AtomicUsize::new(0));
    Ok(Connector::new(move || {
        let (parsed, tls, turn) = (parsed.clone(), tls.clone(), turn.fetch_add(1, Ordering::Relaxed));
        async move {
            let plain: Connection = match parsed {
                Target::Unix(path) => Connector::unix(path).connect().await?,
                Target::Name { host, port } => {
                    let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), port)).await?.collect();
                    if found.is_empty() {
                        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{host:?} has no addresses")));
                    }
                    let mut order = found.clone();
                    order.rotate_left(turn % found.len());
                    Connector::tcp(order, None).connect().await?
                }
            };
            match tls {
                None => Ok(plain),
                Some(tls) => match tls.connect(plain, None, Some(&[b"h2".to_vec()])).await {
                    Ok((stream, _)) => Ok(Box::new(stream) as Connection),
                    Err(error) => Err(io::Error::other(error)),
                },
            }
        }
    }))
}

fn google_tls(credentials: &GoogleTls, sni: &str) -> Result<ClientTls, TlsError> {
    let GoogleTls { root_certs, cert_chain, private_key } = credentials;
    let config = UpstreamTls { sni: sni.to_owned(), auto_sni_san_validation: true, ..plain_upstream() };
    let validation = Validation {
        trusted_ca_pem: root_certs.clone().unwrap_or_default(),
        system_roots: root_certs.is_none(),
        ..Validation::default()
    };
    let certificates = match (cert_chain, private_key) {
        (Some(chain), Some(key)) => vec![Arc::new(TlsCertificate {
            chain_pem: chain.clone(),
            key_pem: key.clone(),
            files: Vec::new(),
            ocsp_staple: None,
        })],
        _ => Vec::new(),
    };
    ClientTls::build(&config, &certificates, Some(&validation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(address: &str, priority: u32, health: HealthStatus) -> Arc<Host> {
        Arc::new(Host {
            address: Address::Ip(address.parse().unwrap()),
            additional_addresses: Vec::new(),
            hostname: "".into(),
            weight: 1,
            max_requests: None,
            priority,
            locality: Arc::default(),
            health,
            metadata: None,
            transport: 0,
            preconnect: false,
            health_check: None,
            passed: None,
            http_proxy: None,
            shared: Arc::default(),
        })
    }

    #[test]
    fn hosts_take_turns_among_the_best() {
        let hosts = [
            host("10.0.0.1:1", 1, HealthStatus::Healthy),
            host("10.0.0.2:1", 0, HealthStatus::Unhealthy),
            host("10.0.0.3:1", 0, HealthStatus::Unknown),
            host("10.0.0.4:1", 0, HealthStatus::Healthy),
        ];
        let chosen: Vec<String> = (0..3).map(|turn| choose(&hosts, turn).unwrap().address.to_string()).collect();
        assert_eq!(chosen, ["10.0.0.3:1", "10.0.0.4:1", "10.0.0.3:1"]);
        assert_eq!(choose(&hosts[1..2], 5).unwrap().address.to_string(), "10.0.0.2:1");
        assert!(choose(&[], 0).is_none());
    }

    #[test]
    fn targets_of_grpc_are_read_as_grpc_does() {
        let name = |host: &str, port| Target::Name { host: host.into(), port };
        assert_eq!(parse_target("a.b:80").unwrap(), name("a.b", 80));
        assert_eq!(parse_target("dns:///a.b:80").unwrap(), name("a.b", 80));
        assert_eq!(parse_target("ipv6:[::1]:80").unwrap(), name("::1", 80));
        assert_eq!(parse_target("unix:/run/x").unwrap(), Target::Unix("/run/x".into()));
        assert_eq!(parse_target("unix:///run/x").unwrap(), Target::Unix("/run/x".into()));
        assert!(parse_target("a.b").is_err());
        assert!(parse_target("dns://8.8.8.8/a.b:80").is_err());
    }

    #[tokio::test]
    async fn a_cluster_that_is_not_there_says_so() {
        let service = GrpcService {
            target: GrpcTarget::Cluster { name: "xds".into(), authority: None, max_receive_message_bytes: None },
            timeout: None,
            initial_metadata: Vec::new(),
        };
        let connector = connector_for(&service, &Arc::new(Process::default())).unwrap();
        let error = connector.connect().await.err().unwrap();
        assert_eq!(error.to_string(), "cluster \"xds\" is not ready");
    }
}
