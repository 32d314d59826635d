//! Connections for requests: an idle one, a shared one, or a new one.
//!
//! Owns the choice among them and the wait for one when limits are reached. Never picks the endpoint.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::cluster::{UpstreamProtocol, UpstreamTransport};
use outrigger_config::http::filters::AlpnOffer;
use outrigger_config::route::Priority;
use outrigger_policy::breaker::Resource;
use tokio::sync::Notify;

use super::clusters::{WorkerCluster, WorkerHost};
use super::connect::{self, ConnectError, Full};
use super::stream::UpstreamStream;
use super::{h1, h2};
use crate::http::h1::link::Link;
use crate::http::message::Version;
use crate::overload::Hook;
use crate::worker::Worker;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Too many requests wait already, or overload forbids a new connection.
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
    /// What its TLS connection must have offered, instead of the cluster's own list.
    pub alpn: Option<&'a AlpnOffer>,
}

/// A stream on a connection that is there already: what most requests get, without waiting.
pub fn ready(host: &Rc<WorkerHost>, wanted: Wanted<'_>) -> Option<UpstreamStream> {
    ready_stream(host, protocol(host, wanted), offer(host, wanted))
}

/// What tells connections of an endpoint apart; nothing where there is no handshake.
fn offer<'a>(host: &WorkerHost, wanted: Wanted<'a>) -> Option<&'a AlpnOffer> {
    wanted.alpn.filter(|_| host.node.tls.get(host.host.transport).is_some())
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
    let (protocol, offer) = (protocol(host, wanted), offer(host, wanted));
    let (breaker, thresholds) = cluster.limits(wanted.priority);
    let Some(_pending) = breaker.try_acquire_within(Resource::PendingRequest, &thresholds) else {
        cluster.stats.upstream_rq_pending_overflow.increment();
        return Err(PoolError::PendingOverflow);
    };
    cluster.stats.upstream_rq_pending_total.increment();
    let _waiting = Waiting::new(cluster);
    let failures = host.connect_failure.borrow().0;
    let shared = Arc::clone(&cluster.node().shared);
    let mut told = Told(None);
    loop {
        if let Some(stream) = ready_stream(host, protocol, offer) {
            return Ok(stream);
        }
        if protocol != UpstreamProtocol::Http1 && host.connecting.get() {
            drop(told);
            told = Told(None);
            host.connected.notified().await;
            let failure = host.connect_failure.borrow();
            if failure.0 != failures {
                return Err(ConnectError::Shared(failure.1.clone()).into());
            }
            continue;
        }
        if worker.is_overloaded(Hook::NewConnection, || false) {
            return Err(PoolError::PendingOverflow);
        }
        match connect::take_place(cluster, host, wanted.priority) {
            Ok(mut counted) => {
                told.0 = None;
                counted.set_alpn(offer);
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
            // Connections that cannot serve this request make room for one that can.
            Err(_) if close_unfit(host, offer) => {}
            Err(full) => {
                let freed = match full {
                    Full::Cluster => shared.freed(wanted.priority),
                    Full::Host => host.host.shared.freed(),
                };
                // Told of a place that somebody else was quicker to take, there is nothing to pass on.
                told.0 = told.0.filter(|before| !std::ptr::eq(*before, freed));
                drop(told);
                told = Told(room(host, protocol, freed).await);
            }
        }
    }
}

/// Waits until there may be room: on a connection to `host`, for a new one (then with `freed`, of which nobody else was
/// told), or for streams.
async fn room<'a>(host: &WorkerHost, protocol: UpstreamProtocol, freed: &'a Notify) -> Option<&'a Notify> {
    let streams = async {
        match protocol {
            UpstreamProtocol::Http1 => std::future::pending().await,
            _ => tokio::time::sleep(STREAM_LIMIT_CHECK).await,
        }
    };
    tokio::select! {
        biased;
        () = host.released.notified() => None,
        () = freed.notified() => Some(freed),
        () = streams => None,
    }
}

/// An HTTP/2 endpoint may allow more streams at any time, and nothing tells of it.
const STREAM_LIMIT_CHECK: Duration = Duration::from_secs(1);

/// A place was freed, and one request was told. If it does not take it, the next one has to be told.
struct Told<'a>(Option<&'a Notify>);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if let Some(freed) = self.0 {
            freed.notify_one();
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

/// Closes an idle connection with another offer, if there is one.
fn close_unfit(host: &WorkerHost, offer: Option<&AlpnOffer>) -> bool {
    let mut idle = host.idle.borrow_mut();
    let unfit = idle.iter().position(|connection| !connection.has_alpn(offer)).map(|position| idle.remove(position));
    drop(idle);
    unfit.is_some()
}

/// The idle connection that was used last, of those with this offer.
fn take_idle(host: &WorkerHost, offer: Option<&AlpnOffer>) -> Option<h1::Connection> {
    let mut idle = host.idle.borrow_mut();
    let position = idle.iter().rposition(|connection| connection.has_alpn(offer))?;
    Some(idle.remove(position))
}

fn ready_stream(
    host: &Rc<WorkerHost>,
    protocol: UpstreamProtocol,
    offer: Option<&AlpnOffer>,
) -> Option<UpstreamStream> {
    let options = &host.node.config.http;
    if protocol != UpstreamProtocol::Http1 {
        let connections = host.multiplexed.borrow();
        if let Some(connection) =
            connections.iter().find(|connection| connection.has_alpn(offer) && connection.has_room())
        {
            return Some(UpstreamStream::H2(Box::new(h2::Stream::new(connection))));
        }
    }
    if protocol != UpstreamProtocol::Http2 {
        loop {
            let connection = take_idle(host, offer)?;
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
    let own: Option<Vec<Vec<u8>>> = match node.config.transports().nth(host.host.transport) {
        Some(UpstreamTransport::Tls(tls)) if tls.common.alpn.is_empty() => Some(match protocol {
            UpstreamProtocol::Http2 => vec![b"h2".to_vec()],
            UpstreamProtocol::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            UpstreamProtocol::Http1 | UpstreamProtocol::UseDownstream => Vec::new(),
        }),
        _ => None,
    };
    let sni = node.config.http.auto_sni.then_some(wanted.host).filter(|host| !host.is_empty());
    let alpn = offer(host, wanted).map(|offer| &**offer).or(own.as_deref());
    let connected = connect::connect(&counted, alpn, sni).await?;
    let http2 = match protocol {
        UpstreamProtocol::Http2 => true,
        UpstreamProtocol::Auto => connected.alpn.as_deref() == Some(b"h2"),
        UpstreamProtocol::Http1 | UpstreamProtocol::UseDownstream => false,
    };
    if http2 {
        let connection = h2::Connection::start(worker, connected, counted, &node.config.http).await?;
        let stream = h2::Stream::new(&connection);
        if !host.retired.get() {
            host.multiplexed.borrow_mut().push(connection);
            // It has room for more than the request that made it.
            host.released.notify_waiters();
        }
        return Ok(UpstreamStream::H2(Box::new(stream)));
    }
    let link = Link::new(Rc::clone(worker), connected.begin(worker, &counted));
    let connection = h1::Connection::new(link, counted);
    Ok(UpstreamStream::H1(Box::new(h1::Stream::new(connection, &node.config.http))))
}
