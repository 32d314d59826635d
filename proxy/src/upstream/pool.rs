//! Connections for requests: an idle one, a shared one, or a new one.
//!
//! Owns the choice among them and the wait for one when limits are reached. Never picks the endpoint.

use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::cluster::UpstreamProtocol;
use outrigger_config::route::Priority;
use outrigger_policy::breaker::Resource;

use super::clusters::{RECHECK, WorkerCluster, WorkerHost};
use super::connect::{self, ConnectError};
use super::stream::UpstreamStream;
use super::{h1, h2};
use crate::http::h1::link::Link;
use crate::http::message::Version;
use crate::worker::Worker;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Too many requests wait already.
    #[error("too many pending requests")]
    PendingOverflow,
    /// No connection could be made.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// What the caller wants a connection for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Which limits count.
    pub priority: Priority,
    /// The version of the downstream, for clusters that follow it.
    pub downstream: Version,
    /// The request's host without port, for clusters that take it as server name.
    pub host: &'a str,
    /// The connection will be upgraded, so it must be HTTP/1.
    pub upgrade: bool,
}

/// A stream on a connection that is there already: what most requests get, without waiting.
pub fn ready(host: &Rc<WorkerHost>, wanted: Wanted<'_>) -> Option<UpstreamStream> {
    ready_stream(host, protocol(host, wanted))
}

fn protocol(host: &WorkerHost, wanted: Wanted<'_>) -> UpstreamProtocol {
    match host.node.config.http.protocol {
        _ if wanted.upgrade => UpstreamProtocol::Http1,
        UpstreamProtocol::UseDownstream if wanted.downstream == Version::Http2 => UpstreamProtocol::Http2,
        UpstreamProtocol::UseDownstream => UpstreamProtocol::Http1,
        protocol => protocol,
    }
}

/// A stream on a connection to `host`. Waits while limits are reached, as long as the pending limit allows.
///
/// # Errors
/// When nothing can be had.
pub async fn acquire(
    worker: &Rc<Worker>,
    cluster: &Rc<WorkerCluster>,
    host: &Rc<WorkerHost>,
    wanted: Wanted<'_>,
) -> Result<UpstreamStream, PoolError> {
    let protocol = protocol(host, wanted);
    let (breaker, thresholds) = cluster.limits(wanted.priority);
    let Some(_pending) = breaker.try_acquire_within(Resource::PendingRequest, &thresholds) else {
        cluster.stats.upstream_rq_pending_overflow.increment();
        return Err(PoolError::PendingOverflow);
    };
    cluster.stats.upstream_rq_pending_total.increment();
    let _waiting = Waiting::new(cluster);
    let failures = host.connect_failure.borrow().0;
    loop {
        if let Some(stream) = ready_stream(host, protocol) {
            return Ok(stream);
        }
        if protocol != UpstreamProtocol::Http1 && host.connecting.get() {
            let _ = tokio::time::timeout(RECHECK, host.connected.notified()).await;
            let failure = host.connect_failure.borrow();
            if failure.0 != failures {
                return Err(ConnectError::Shared(failure.1.clone()).into());
            }
            continue;
        }
        match connect::take_place(cluster, host, wanted.priority) {
            Ok(counted) => {
                let opened = open(worker, host, counted, protocol, wanted).await;
                if let Err(error) = &opened
                    && protocol != UpstreamProtocol::Http1
                {
                    // Those who waited for this connection fail with it, instead of one after the other.
                    let mut failure = host.connect_failure.borrow_mut();
                    *failure = (failure.0.wrapping_add(1), error.to_string());
                }
                return opened;
            }
            // What is in use will be given back; another worker's comes without notice.
            Err(ConnectError::Overflow) => {
                let _ = tokio::time::timeout(RECHECK, cluster.released.notified()).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A request that waits for a connection, as long as it lives.
struct Waiting(Rc<WorkerCluster>);

impl Waiting {
    fn new(cluster: &Rc<WorkerCluster>) -> Self {
        cluster.stats.upstream_rq_pending_active.increment();
        Self(Rc::clone(cluster))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.stats.upstream_rq_pending_active.decrement();
    }
}

/// Marks that an HTTP/2 connection is being made, so that others wait for it instead of making their own.
struct Connecting(Rc<WorkerHost>);

impl Connecting {
    fn new(host: &Rc<WorkerHost>) -> Self {
        host.connecting.set(true);
        Self(Rc::clone(host))
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.connecting.set(false);
        self.0.connected.notify_waiters();
    }
}

fn ready_stream(host: &Rc<WorkerHost>, protocol: UpstreamProtocol) -> Option<UpstreamStream> {
    let options = &host.node.config.http;
    if protocol != UpstreamProtocol::Http1 {
        let connections = host.multiplexed.borrow();
        if let Some(connection) = connections.iter().find(|connection| connection.has_room()) {
            return Some(UpstreamStream::H2(Box::new(h2::Stream::new(connection))));
        }
    }
    if protocol != UpstreamProtocol::Http2 {
        loop {
            let connection = host.idle.borrow_mut().pop()?;
            if connection.is_usable() {
                return Some(UpstreamStream::H1(Box::new(h1::Stream::new(connection, options))));
            }
        }
    }
    None
}

async fn open(
    worker: &Rc<Worker>,
    host: &Rc<WorkerHost>,
    counted: connect::Counted,
    protocol: UpstreamProtocol,
    wanted: Wanted<'_>,
) -> Result<UpstreamStream, PoolError> {
    let node = Arc::clone(&host.node);
    let _connecting = (protocol != UpstreamProtocol::Http1).then(|| Connecting::new(host));
    // Envoy offers what the pool speaks unless the context names its own list.
    let alpn: Option<Vec<Vec<u8>>> = match &node.config.transport {
        outrigger_config::cluster::UpstreamTransport::Tls(tls) if tls.common.alpn.is_empty() => Some(match protocol {
            UpstreamProtocol::Http2 => vec![b"h2".to_vec()],
            UpstreamProtocol::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            UpstreamProtocol::Http1 | UpstreamProtocol::UseDownstream => Vec::new(),
        }),
        _ => None,
    };
    let sni = node.config.http.auto_sni.then_some(wanted.host).filter(|host| !host.is_empty());
    let connected = connect::connect(&counted, alpn.as_deref(), sni).await?;
    let http2 = match protocol {
        UpstreamProtocol::Http2 => true,
        UpstreamProtocol::Auto => connected.alpn.as_deref() == Some(b"h2"),
        UpstreamProtocol::Http1 | UpstreamProtocol::UseDownstream => false,
    };
    if http2 {
        let connection = h2::Connection::start(connected, counted, &node.config.http).await?;
        let stream = h2::Stream::new(&connection);
        if !host.retired.get() {
            host.multiplexed.borrow_mut().push(connection);
        }
        return Ok(UpstreamStream::H2(Box::new(stream)));
    }
    let link = Link::new(Rc::clone(worker), connected.io);
    let connection = h1::Connection::new(link, counted);
    Ok(UpstreamStream::H1(Box::new(h1::Stream::new(connection, &node.config.http))))
}
