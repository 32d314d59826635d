//! New connections to endpoints.
//!
//! Owns the way from an endpoint to a byte stream: limits, proxies on the way, TLS, and the time all that may take. Never opens
//! sockets (see `socket`) or keeps connections (see `pool`).

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outrigger_config::address::{Address, InternalAddress};
use outrigger_config::cluster::{ProxyHeaderSettings, UpstreamTransport};
use outrigger_config::route::Priority;
use outrigger_policy::breaker::{Permit, Resource};
use tokio::io::AsyncWriteExt as _;

use super::clusters::WorkerCluster;
use super::cut::Cut;
use super::host::Host;
use super::http_tunnel::{self, TunnelError};
use super::key::{ConnectionKey, Fit};
use super::proxy_header;
use super::socket::{open, open_host};
use super::stats::{ClusterStats, EndedBy};
use super::vacancy;
use super::worker_host::WorkerHost;
use crate::filter_state::SharedObjects;
use crate::graph::ClusterShared;
use crate::istio;
use crate::listener::internal::{self, Luggage};
use crate::stream::{ConnectionInfo, TlsInfo};
use crate::tls::{Ends, Peer};
use crate::trace::Opening;
use crate::worker::Worker;
use crate::worker::socket::{Io, Socket};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// `connect_timeout` has passed.
    #[error("connection timeout")]
    Timeout,
    /// The peer said no.
    #[error("delayed connect error: {}", reason(.0))]
    Io(std::io::Error),
    /// The system said no when it was asked, to this address.
    #[error("immediate connect error: {}|remote address:{}", reason(.0), .1)]
    Immediate(std::io::Error, Address),
    /// TLS failed.
    #[error("TLS_error: {0}")]
    Tls(String),
    /// The HTTP proxy on the way did not lead to the endpoint.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// Another request made the connection that this one waited for, and failed.
    #[error("{0}")]
    Shared(String),
}

/// What an error says, without its number, which says nothing more: "Connection refused (os error 111)".
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Which limit on connections is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Full {
    /// `max_connections` of the cluster.
    Cluster,
    /// `per_host_thresholds.max_connections`.
    Host,
}

/// A counted connection; the counts end when it is dropped.
pub struct Counted {
    cluster: Rc<WorkerCluster>,
    host: Rc<WorkerHost>,
    start: Instant,
    /// Who ends it, and whether it then carries a request or a session.
    end: Cell<(EndedBy, bool)>,
    limit: Arc<ClusterShared>,
    priority: Priority,
    permit: Option<Permit>,
    /// For whose requests alone it was made.
    key: Option<Box<ConnectionKey>>,
    /// Microseconds from the start until the transport below TLS was connected; 0 before.
    connected_after: Cell<u32>,
    /// Microseconds from the start until it was ready for requests; 0 before.
    ready_after: Cell<u32>,
    /// The request that it was made for had to wait for its place.
    waited: bool,
    /// Unique in the process.
    id: u64,
    /// What TLS showed.
    tls: OnceCell<Arc<TlsInfo>>,
    /// Ends it, where that may be necessary.
    cut: OnceCell<Rc<Cut>>,
}

impl Counted {
    /// Whose connection it is.
    pub fn host(&self) -> &Rc<WorkerHost> {
        &self.host
    }

    /// It was made with a certificate that has been replaced, and has had its time.
    pub fn is_cut(&self) -> bool {
        self.cut.get().is_some_and(|cut| cut.is_done())
    }

    /// Says for whose requests it is made.
    pub fn set_key(&mut self, key: Option<Box<ConnectionKey>>) {
        self.key = key;
    }

    /// Says whether the request that it is made for had to wait for its place.
    pub fn set_waited(&mut self, waited: bool) {
        self.waited = waited;
    }

    /// Whether it serves those who ask for this.
    pub fn fits(&self, fit: &Fit<'_>) -> bool {
        fit.matches(self.key.as_deref())
    }

    /// Whether nobody is left for whom it was made.
    pub fn is_orphaned(&self) -> bool {
        self.key.as_ref().is_some_and(|key| key.is_orphaned())
    }

    /// Whether it counts among those of this priority.
    pub fn has_priority(&self, priority: Priority) -> bool {
        self.priority == priority
    }

    /// Whether it does better to end than to wait for a request.
    pub fn is_wanted_elsewhere(&self) -> bool {
        // Nearly always nobody is starving, and then this is all that a request pays.
        self.limit.vacancy(self.priority).starving() > 0 && vacancy::is_short(&self.cluster, self.priority)
    }

    /// Whose connection it is.
    pub fn cluster(&self) -> &Rc<WorkerCluster> {
        &self.cluster
    }

    /// When it was made.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// Unique in the process; never 0.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What TLS showed, if there was TLS.
    pub fn tls(&self) -> Option<&Arc<TlsInfo>> {
        self.tls.get()
    }

    /// When it was made.
    pub fn opening(&self) -> Opening {
        let after = |microseconds: &Cell<u32>| {
            let after = Some(microseconds.get()).filter(|after| *after > 0)?;
            Some(self.start + Duration::from_micros(after.into()))
        };
        Opening {
            start: self.start,
            waited: self.waited,
            connected: after(&self.connected_after),
            ready: after(&self.ready_after),
            secure: self.host.node.tls.get(self.host.host.transport).is_some(),
        }
    }

    fn set_connected(&self) {
        self.connected_after.set(microseconds(self.start.elapsed()));
    }

    /// What is counted when it ends; that we ended it while it was idle, unless told otherwise.
    pub fn set_end(&self, by: EndedBy, in_use: bool) {
        self.end.set((by, in_use));
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
        let (by, in_use) = self.end.get();
        match (if self.is_cut() { EndedBy::Us } else { by }, in_use) {
            (by, true) => stats.destroyed_while_active(by),
            (EndedBy::Us, false) => stats.upstream_cx_destroy_local.increment(),
            (EndedBy::Upstream, false) => stats.upstream_cx_destroy_remote.increment(),
        }
        // Whoever is told looks at once, maybe on another thread: the place has to be free by then.
        self.permit = None;
        self.limit.vacancy(self.priority).tell();
        self.host.host.shared.freed().notify_one();
        if self.host.connections.get() == 0 {
            // Now this worker may have one beyond the limit, or ask others for one of theirs.
            self.host.released.notify_one();
        }
    }
}

/// What somebody may claim who wants a place among the connections of a cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Claim {
    /// A place that is free, and that nobody starves for.
    Spare,
    /// A place that is free.
    Starving,
    /// As [`Self::Spare`], and one even at the limit for a worker that has no connection to the endpoint. For protocols with
    /// which many requests share a connection, which then may never be free: those that came late would starve. Envoy does
    /// so for all protocols.
    One,
}

/// Takes a place among the connections of a cluster and its endpoint.
pub fn take_place(
    cluster: &Rc<WorkerCluster>,
    host: &Rc<WorkerHost>,
    priority: Priority,
    claim: Claim,
) -> Result<Counted, Full> {
    let (breaker, thresholds) = cluster.limits(priority);
    let per_host = cluster.node().config.circuit_breakers.per_host_max_connections;
    let shared = &host.host.shared.connections;
    let within = |count: u32| per_host.is_none_or(|limit| count < limit).then_some(count + 1);
    let overflow = |full| {
        cluster.stats.upstream_cx_overflow.increment();
        full
    };
    shared.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).map_err(|_| overflow(Full::Host))?;
    let may = claim == Claim::Starving || vacancy::has_spare(cluster, priority);
    let permit = match may.then(|| breaker.try_acquire_within(Resource::Connection, &thresholds)).flatten() {
        Some(permit) => permit,
        None if claim == Claim::One && host.connections.get() == 0 => {
            breaker.acquire_beyond_limit(Resource::Connection)
        }
        None => {
            shared.fetch_sub(1, Ordering::Relaxed);
            return Err(overflow(Full::Cluster));
        }
    };
    host.connections.set(host.connections.get() + 1);
    host.stats.cx_active.increment();
    host.stats.cx_total.increment();
    cluster.stats.upstream_cx_active.increment();
    cluster.stats.upstream_cx_total.increment();
    if !host.node.shared.used.load(Ordering::Relaxed) {
        host.node.shared.used.store(true, Ordering::Relaxed);
    }
    Ok(Counted {
        cluster: Rc::clone(cluster),
        host: Rc::clone(host),
        start: Instant::now(),
        end: Cell::new((EndedBy::Us, false)),
        limit: Arc::clone(&cluster.node().shared),
        priority,
        permit: Some(permit),
        key: None,
        connected_after: Cell::new(0),
        ready_after: Cell::new(0),
        waited: false,
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        tls: OnceCell::new(),
        cut: OnceCell::new(),
    })
}

/// A byte stream to an endpoint, with the protocol that TLS negotiated.
pub struct Connected {
    /// The stream.
    pub io: Io,
    /// ALPN, if TLS negotiated one.
    pub alpn: Option<Vec<u8>>,
    tls: Option<Arc<TlsInfo>>,
}

impl Connected {
    /// The stream, on which the cluster's filters may say something first.
    pub fn begin(self, worker: &Worker, counted: &Counted) -> Io {
        self.begin_heard(worker, counted, None)
    }

    /// As [`Self::begin`]; what the endpoint says first goes to `heard`.
    pub fn begin_heard(self, worker: &Worker, counted: &Counted, heard: Option<istio::Heard>) -> Io {
        match &counted.host().node.config.metadata_exchange {
            Some(settings) => istio::introduce(worker, settings, self.alpn.as_deref(), self.io, heard),
            None => {
                istio::hear_nothing(heard.as_ref());
                self.io
            }
        }
    }
}

/// Ids of upstream connections.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// At least one, which stands for no time at all.
fn microseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX).max(1)
}

/// What a connection is made with, beside what the cluster says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Means<'a> {
    /// What the handshake offers instead of the list of its context.
    pub alpn: Option<&'a [Vec<u8>]>,
    /// The server name that is sent instead of that of the context.
    pub sni: Option<&'a str>,
    /// The name that the certificate must be for, instead of what the context asks for.
    pub certificate_name: Option<&'a str>,
    /// On whose behalf it is made.
    pub downstream: Option<&'a ConnectionInfo>,
    /// Bytes that the peer does not acknowledge end the connection after this (TCP_USER_TIMEOUT).
    pub unacknowledged: Option<Duration>,
    /// Objects of the filter state that go with it into a listener of this process.
    pub objects: Option<&'a SharedObjects>,
}

/// Connects to the endpoint of `counted`, within the cluster's `connect_timeout`.
///
/// # Errors
/// When every address of the endpoint fails, or the time is up.
pub async fn connect(worker: &Rc<Worker>, counted: &Counted, means: &Means<'_>) -> Result<Connected, ConnectError> {
    let cluster = counted.cluster();
    let node = Arc::clone(&counted.host().node);
    let attempt = async {
        let host = &counted.host().host;
        let mut socket = match (&host.http_proxy, &host.address) {
            (Some(proxy), _) => open(&proxy.address, &node.config, means.unacknowledged).await?,
            (None, Address::Internal(address)) => enter(worker, counted.host(), address, means)?,
            (None, Address::Ip(_) | Address::Pipe { .. }) => open_host(host, &node.config, means).await?,
        };
        counted.set_connected();
        if node.config.retire_within.is_some()
            && let Some(cut) = counted.host().cuts.add(&socket)
        {
            // Nobody else sets it.
            let _ = counted.cut.set(cut);
        }
        if let Some(proxy) = host.http_proxy.as_ref().filter(|proxy| proxy.tunnel) {
            http_tunnel::open(&mut socket, &proxy.address, &host.address, &host.hostname).await?;
        }
        if let Some(header) = counted.host().proxy_header() {
            socket.write_all(&header_of(header, means.downstream, &socket, host)).await.map_err(ConnectError::Io)?;
        }
        secure(socket, &node, &cluster.stats, host, means).await
    };
    let result = match tokio::time::timeout(node.config.connect_timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout),
    };
    match &result {
        Ok(connected) => {
            if let Some(tls) = &connected.tls {
                // Nobody else sets it.
                let _ = counted.tls.set(Arc::clone(tls));
            }
            let after = counted.start().elapsed();
            counted.ready_after.set(microseconds(after));
            cluster.stats.upstream_cx_connect_ms.record(after.as_millis() as u64);
        }
        Err(error) => {
            match error {
                ConnectError::Timeout => cluster.stats.upstream_cx_connect_timeout.increment(),
                ConnectError::Io(_) | ConnectError::Immediate(..) | ConnectError::Tunnel(_) => {
                    counted.set_end(EndedBy::Upstream, false)
                }
                ConnectError::Tls(_) | ConnectError::Shared(_) => {}
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
    host: &Host,
    means: &Means<'_>,
) -> Result<Connected, ConnectError> {
    let Some(tls) = node.tls.get(host.transport) else {
        return Ok(Connected { io: Io::Plain(socket), alpn: None, tls: None });
    };
    let config = node.config.transports().nth(host.transport).and_then(UpstreamTransport::tls);
    let auto = config.is_some_and(|config| config.auto_host_sni && !host.hostname.is_empty());
    let sni = if auto { Some(&*host.hostname) } else { means.sni };
    let ends = Ends { local: socket.local_address().map(|address| address.ip()), remote: host.address.ip() };
    let peer = Peer { server_name: sni, certificate_name: means.certificate_name, ends };
    match tls.connect_to(socket, peer, means.alpn).await {
        Ok((stream, info)) => {
            stats.handshake(&info);
            let alpn = info.alpn.clone();
            Ok(Connected { io: Io::TlsClient(Box::new(stream)), alpn, tls: Some(Arc::new(info)) })
        }
        Err(error) => {
            stats.failed_handshake(error.failure());
            Err(ConnectError::Tls(error.to_string()))
        }
    }
}

/// The header for this connection.
fn header_of(
    header: &ProxyHeaderSettings,
    downstream: Option<&ConnectionInfo>,
    socket: &Socket,
    host: &Host,
) -> Vec<u8> {
    match downstream {
        Some(downstream) => proxy_header::on_behalf(header, downstream),
        None => {
            let ends = match (socket.local_address(), &host.address) {
                (Some(local), Address::Ip(remote)) => Some((local, *remote)),
                _ => None,
            };
            proxy_header::own(header.version, ends)
        }
    }
}

/// A connection to a listener of this process.
fn enter(
    worker: &Rc<Worker>,
    host: &WorkerHost,
    address: &Arc<InternalAddress>,
    means: &Means<'_>,
) -> Result<Socket, ConnectError> {
    let luggage = Luggage::of(worker, host, means.objects);
    internal::connect(worker, address, luggage).ok_or_else(|| {
        let reason = std::io::Error::new(std::io::ErrorKind::NotFound, "no internal listener has this name");
        ConnectError::Immediate(reason, Address::Internal(Arc::clone(address)))
    })
}
