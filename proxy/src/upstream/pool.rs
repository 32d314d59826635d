//! Connections for requests: an idle one, a shared one, or a new one.
//!
//! Owns the choice among them and the wait for one when limits are reached. Never picks the endpoint.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::cluster::{UpstreamHttp, UpstreamProtocol, UpstreamTransport};
use outrigger_config::http::filters::AlpnOffer;
use outrigger_config::route::Priority;
use outrigger_policy::breaker::{Permit, Resource};
use tokio::sync::Notify;

use super::clusters::WorkerCluster;
use super::connect::{self, Claim, ConnectError, Counted, Full, Means};
use super::key::{ConnectionKey, Fit};
use super::preconnect::spare;
use super::stream::UpstreamStream;
use super::vacancy::{Starving, Vacancy};
use super::worker_host::WorkerHost;
use super::{h1, h2};
use crate::filter_state::SharedObjects;
use crate::graph::ClusterShared;
use crate::http::h1::link::Link;
use crate::http::message::{RequestHead, Version};
use crate::overload::Hook;
use crate::stream::ConnectionInfo;
use crate::worker::Worker;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Too many requests wait already, or overload forbids a new connection.
    #[error("too many pending requests")]
    PendingOverflow,
    /// As many requests are in flight as may.
    #[error("too many requests")]
    RequestOverflow,
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
    /// Bytes are to go both ways.
    pub upgrade: bool,
    /// What its TLS connection must have offered, instead of the cluster's own list.
    pub alpn: Option<&'a AlpnOffer>,
    /// The connection that it came on.
    pub connection: Option<&'a Rc<ConnectionInfo>>,
    /// Objects of the filter state that go with connections.
    pub objects: Option<&'a SharedObjects>,
}

impl<'a> Wanted<'a> {
    pub(super) fn fit(&self, host: &WorkerHost) -> Fit<'a> {
        Fit::of(host, self.alpn, self.host, self.connection, self.objects)
    }
}

/// The host that a request is for, by which its server's certificate goes: without port.
pub fn host_of<'h>(head: &'h RequestHead, http: &UpstreamHttp) -> &'h str {
    let named = http.override_auto_sni_header.as_deref().and_then(|name| head.headers.get_by_name(name));
    let named = named.and_then(|value| std::str::from_utf8(value).ok()).filter(|value| !value.is_empty());
    bare_host(named.unwrap_or_else(|| head.authority_str()))
}

/// An authority without its port, and an IPv6 address without its brackets.
pub fn bare_host(authority: &str) -> &str {
    if let Some((address, _)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address;
    }
    authority.rsplit_once(':').filter(|(name, _)| !name.contains(':')).map_or(authority, |(name, _)| name)
}

/// A stream on a connection that is there already: what most requests get, without waiting.
pub fn ready(host: &Rc<WorkerHost>, wanted: Wanted<'_>) -> Option<UpstreamStream> {
    let (protocol, fit) = (protocol(host, wanted), wanted.fit(host));
    ready_stream(host, protocol, &fit).or_else(|| {
        let earlier = host.earlier.borrow();
        earlier.iter().rev().find_map(|host| ready_stream(host, protocol, &fit))
    })
}

/// Counts the request that a stream is for (`max_requests`). A stream that may not be used goes back to its pool.
///
/// # Errors
/// When as many requests are in flight as may.
pub fn count(
    cluster: &WorkerCluster,
    priority: Priority,
    stream: UpstreamStream,
) -> Result<(UpstreamStream, Permit), PoolError> {
    let (breaker, thresholds) = cluster.limits(priority);
    match breaker.try_acquire_within(Resource::Request, &thresholds) {
        Some(permit) => Ok((stream, permit)),
        None => {
            cluster.stats.upstream_rq_active_overflow.increment();
            stream.give_back();
            Err(PoolError::RequestOverflow)
        }
    }
}

pub(super) fn protocol(host: &WorkerHost, wanted: Wanted<'_>) -> UpstreamProtocol {
    match host.node.config.http.protocol {
        // Every server that speaks both can switch protocols in HTTP/1.1, few in HTTP/2.
        UpstreamProtocol::Auto if wanted.upgrade => UpstreamProtocol::Http1,
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
    let (breaker, thresholds) = cluster.limits(wanted.priority);
    let Some(_pending) = breaker.try_acquire_within(Resource::PendingRequest, &thresholds) else {
        cluster.stats.upstream_rq_pending_overflow.increment();
        return Err(PoolError::PendingOverflow);
    };
    cluster.stats.upstream_rq_pending_total.increment();
    let _waiting = Waiting::new(cluster, host);
    let acquired = Search::new(worker, cluster, host, wanted).run().await;
    acquired.inspect_err(|error| count_eject(cluster, error))
}

/// A request that waited for a connection which could not be made.
fn count_eject(cluster: &WorkerCluster, error: &PoolError) {
    if let PoolError::Connect(_) = error {
        cluster.stats.upstream_rq_pending_failure_eject.increment();
    }
}

/// A request on its way to a stream that is not there yet.
struct Search<'a> {
    worker: &'a Rc<Worker>,
    cluster: &'a Rc<WorkerCluster>,
    host: &'a Rc<WorkerHost>,
    wanted: Wanted<'a>,
    protocol: UpstreamProtocol,
    fit: Fit<'a>,
    starving: Option<Starving>,
    /// Something was waited for.
    waited: bool,
}

/// A connection that somebody else makes.
enum Foreign {
    /// Ahead of requests.
    Spare,
    /// For another request, and with room for this one.
    Joint,
}

impl<'a> Search<'a> {
    fn new(
        worker: &'a Rc<Worker>,
        cluster: &'a Rc<WorkerCluster>,
        host: &'a Rc<WorkerHost>,
        wanted: Wanted<'a>,
    ) -> Self {
        let (protocol, fit) = (protocol(host, wanted), wanted.fit(host));
        Self { worker, cluster, host, wanted, protocol, fit, starving: None, waited: false }
    }

    async fn run(mut self) -> Result<UpstreamStream, PoolError> {
        let host = self.host;
        let failures = host.connect_failure.borrow().0;
        let shared = Arc::clone(&self.cluster.node().shared);
        let mut told = Told(None);
        loop {
            if let Some(stream) = ready_stream(host, self.protocol, &self.fit) {
                return Ok(stream);
            }
            if let Some(foreign) = self.foreign() {
                told = Told(None);
                self.waited = true;
                match foreign {
                    Foreign::Spare => spare(host).await,
                    Foreign::Joint => host.connected.notified().await,
                }
                let failure = host.connect_failure.borrow();
                if matches!(foreign, Foreign::Joint) && failure.0 != failures {
                    return Err(ConnectError::Shared(failure.1.clone()).into());
                }
                continue;
            }
            if self.worker.is_overloaded(Hook::NewConnection, || false) {
                return Err(PoolError::PendingOverflow);
            }
            let full = match connect::take_place(self.cluster, host, self.wanted.priority, self.claim()) {
                Ok(counted) => {
                    told.0 = None;
                    return self.open(counted).await;
                }
                // Connections that cannot serve this request make room for one that can.
                Err(_) if close_unfit(host, &self.fit) => continue,
                Err(full) => full,
            };
            let Some(place) = self.awaited(full, &shared) else { continue };
            // Told of a place that somebody else was quicker to take, there is nothing to pass on.
            told.0 = told.0.filter(|before| !before.is(&place));
            drop(told);
            told = Told(room(host, self.protocol, place).await);
            self.waited = true;
        }
    }

    /// A connection for HTTP/1 comes free with the end of its request, so that the limit can hold exactly.
    fn may_exceed(&self) -> bool {
        self.protocol != UpstreamProtocol::Http1
    }

    /// A connection that is being made will do.
    fn foreign(&self) -> Option<Foreign> {
        match self.protocol {
            UpstreamProtocol::Http1 => (self.host.has_free_spare() && self.fit.is_plain()).then_some(Foreign::Spare),
            _ => (self.host.connecting.get() && !self.others_connect()).then_some(Foreign::Joint),
        }
    }

    /// A connection is being made that cannot serve this request.
    fn others_connect(&self) -> bool {
        self.host.connecting.get() && !self.fit.matches(self.host.connecting_for.borrow().as_deref())
    }

    fn claim(&self) -> Claim {
        match &self.starving {
            Some(_) => Claim::Starving,
            None if self.may_exceed() => Claim::One,
            None => Claim::Spare,
        }
    }

    /// What has to come free first. Nothing if there is room in the meantime.
    fn awaited<'s>(&mut self, full: Full, shared: &'s ClusterShared) -> Option<Awaited<'s>>
    where
        'a: 's,
    {
        let (host, priority) = (self.host, self.wanted.priority);
        self.starving = self.starving.take().filter(|_| host.connections.get() == 0);
        if full == Full::Cluster && !self.may_exceed() && host.connections.get() == 0 {
            let starving = self.starving.get_or_insert_with(|| Starving::new(self.cluster, priority));
            if starving.find_room(self.worker, self.cluster) {
                return None;
            }
        }
        Some(match full {
            Full::Cluster => Awaited::Cluster(shared.vacancy(priority), self.starving.is_some()),
            Full::Host => Awaited::Host(host.host.shared.freed()),
        })
    }

    /// Opens a connection whose place was taken. Others that it can serve wait for it instead of making their own.
    async fn open(mut self, mut counted: Counted) -> Result<UpstreamStream, PoolError> {
        drop(self.starving.take());
        counted.set_key(self.fit.key());
        counted.set_waited(self.waited);
        let host = self.host;
        let joint = self.protocol != UpstreamProtocol::Http1 && !self.others_connect();
        let connecting = joint.then(|| Connecting::new(host, self.fit.key()));
        let opened = open(self.worker, host, counted, self.protocol, self.wanted).await;
        match &opened {
            Ok(Opened::Http2(connection)) => connection.hold_until_settled(connecting),
            Ok(Opened::Http1(_)) | Err(_) => drop(connecting),
        }
        if let Err(error) = &opened
            && joint
        {
            // Those who waited for this connection fail with it, instead of one after the other.
            let mut failure = host.connect_failure.borrow_mut();
            *failure = (failure.0.wrapping_add(1), error.to_string());
        }
        opened.map(|opened| opened.stream(host))
    }
}

/// A place among connections that somebody waits for.
#[derive(Clone, Copy)]
enum Awaited<'a> {
    /// Under the limit of the cluster, starving or not.
    Cluster(&'a Vacancy, bool),
    /// Under that of the endpoint.
    Host(&'a Notify),
}

impl<'a> Awaited<'a> {
    fn freed(self) -> &'a Notify {
        match self {
            Self::Cluster(vacancy, starves) => vacancy.told(starves),
            Self::Host(freed) => freed,
        }
    }

    fn is(self, other: &Self) -> bool {
        std::ptr::eq(self.freed(), other.freed())
    }

    fn tell_another(self) {
        match self {
            Self::Cluster(vacancy, _) => vacancy.tell(),
            Self::Host(freed) => freed.notify_one(),
        }
    }
}

/// Waits until there may be room: on a connection to `host`, for a new one (then with its `place`, of which nobody else was
/// told), or for streams.
async fn room<'a>(host: &WorkerHost, protocol: UpstreamProtocol, place: Awaited<'a>) -> Option<Awaited<'a>> {
    let streams = async {
        match protocol {
            UpstreamProtocol::Http1 => std::future::pending().await,
            _ => tokio::time::sleep(STREAM_LIMIT_CHECK).await,
        }
    };
    tokio::select! {
        biased;
        () = host.released.notified() => None,
        () = place.freed().notified() => Some(place),
        () = streams => None,
    }
}

/// An endpoint that acknowledges nothing for this long is gone: without a limit the system tries for a quarter of an hour.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// An HTTP/2 endpoint may allow more streams at any time, and nothing tells of it.
const STREAM_LIMIT_CHECK: Duration = Duration::from_secs(1);

/// A place was freed, and one request was told. If it does not take it, the next one has to be told.
struct Told<'a>(Option<Awaited<'a>>);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.0 {
            place.tell_another();
        }
    }
}

/// A request that waits for a connection, as long as it lives.
struct Waiting<'a>(&'a WorkerCluster, &'a WorkerHost);

impl<'a> Waiting<'a> {
    fn new(cluster: &'a WorkerCluster, host: &'a WorkerHost) -> Self {
        cluster.stats.upstream_rq_pending_active.increment();
        host.stats.rq_pending_active.increment();
        Self(cluster, host)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.stats.upstream_rq_pending_active.decrement();
        self.1.stats.rq_pending_active.decrement();
    }
}

/// Marks that an HTTP/2 connection is being made, so that others wait for it instead of making their own.
pub(super) struct Connecting(Rc<WorkerHost>);

impl Connecting {
    fn new(host: &Rc<WorkerHost>, key: Option<Box<ConnectionKey>>) -> Self {
        host.connecting.set(true);
        *host.connecting_for.borrow_mut() = key;
        Self(Rc::clone(host))
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.connecting.set(false);
        self.0.connected.notify_waiters();
    }
}

/// Closes an idle connection that was made for others, if there is one.
fn close_unfit(host: &WorkerHost, fit: &Fit<'_>) -> bool {
    let mut idle = host.idle.borrow_mut();
    let unfit = idle.iter().position(|connection| !connection.fits(fit)).map(|position| idle.remove(position));
    drop(idle);
    unfit.is_some()
}

/// The idle connection that was used last, of those that fit.
fn take_idle(host: &WorkerHost, fit: &Fit<'_>) -> Option<h1::Connection> {
    let mut idle = host.idle.borrow_mut();
    let position = idle.iter().rposition(|connection| connection.fits(fit))?;
    Some(idle.remove(position))
}

fn ready_stream(host: &Rc<WorkerHost>, protocol: UpstreamProtocol, fit: &Fit<'_>) -> Option<UpstreamStream> {
    let options = &host.node.config.http;
    if protocol != UpstreamProtocol::Http1 {
        let connections = host.multiplexed.borrow();
        if let Some(connection) = connections.iter().find(|connection| connection.fits(fit) && connection.has_room()) {
            return Some(UpstreamStream::H2(Box::new(h2::Stream::new(connection))));
        }
    }
    if protocol != UpstreamProtocol::Http2 {
        loop {
            let connection = take_idle(host, fit)?;
            if connection.is_usable() {
                return Some(UpstreamStream::H1(Box::new(h1::Stream::new(connection, options))));
            }
        }
    }
    None
}

/// A new connection.
pub(super) enum Opened {
    Http1(Box<h1::Connection>),
    /// It is in the pool already.
    Http2(Rc<h2::Connection>),
}

impl Opened {
    fn stream(self, host: &WorkerHost) -> UpstreamStream {
        match self {
            Self::Http1(connection) => {
                UpstreamStream::H1(Box::new(h1::Stream::new(*connection, &host.node.config.http)))
            }
            Self::Http2(connection) => UpstreamStream::H2(Box::new(h2::Stream::new(&connection))),
        }
    }
}

/// A connection of its own to `host`, for bytes as they are. `preface` goes before them.
///
/// # Errors
/// When there is no room for it, or it cannot be made.
pub async fn open_raw(
    worker: &Rc<Worker>,
    cluster: &Rc<WorkerCluster>,
    host: &Rc<WorkerHost>,
    wanted: Wanted<'_>,
    preface: Option<&[u8]>,
) -> Result<UpstreamStream, PoolError> {
    if worker.is_overloaded(Hook::NewConnection, || false) {
        return Err(PoolError::PendingOverflow);
    }
    let counted =
        connect::take_place(cluster, host, wanted.priority, Claim::Spare).map_err(|_| PoolError::PendingOverflow)?;
    cluster.stats.upstream_rq_pending_total.increment();
    let fit = wanted.fit(host);
    let options = &host.node.config.http;
    let means = Means {
        sni: fit.name.filter(|_| options.auto_sni),
        certificate_name: fit.name.filter(|_| options.auto_san_validation),
        downstream: fit.proxied.map(|info| &**info),
        objects: wanted.objects,
        ..Means::default()
    };
    let connected = connect::connect(worker, &counted, &means)
        .await
        .map_err(PoolError::from)
        .inspect_err(|error| count_eject(cluster, error))?;
    let link = Link::new(Rc::clone(worker), connected.begin(worker, &counted));
    if let Some(preface) = preface {
        link.with_output(|output| output.extend_from_slice(preface));
    }
    let connection = h1::Connection::raw(link, counted);
    Ok(UpstreamStream::H1(Box::new(h1::Stream::raw(connection, options))))
}

/// A new connection of a pool.
pub(super) async fn open(
    worker: &Rc<Worker>,
    host: &Rc<WorkerHost>,
    counted: connect::Counted,
    protocol: UpstreamProtocol,
    wanted: Wanted<'_>,
) -> Result<Opened, PoolError> {
    let node = Arc::clone(&host.node);
    // Envoy offers what the pool speaks unless the context names its own list.
    let own: Option<Vec<Vec<u8>>> =
        match node.config.transports().nth(host.host.transport).and_then(UpstreamTransport::tls) {
            Some(tls) if tls.common.alpn.is_empty() => Some(match protocol {
                UpstreamProtocol::Http2 => vec![b"h2".to_vec()],
                UpstreamProtocol::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
                UpstreamProtocol::Http1 | UpstreamProtocol::UseDownstream => Vec::new(),
            }),
            _ => None,
        };
    let fit = wanted.fit(host);
    let means = Means {
        alpn: fit.alpn.map(|offer| &**offer).or(own.as_deref()),
        sni: fit.name.filter(|_| node.config.http.auto_sni),
        certificate_name: fit.name.filter(|_| node.config.http.auto_san_validation),
        downstream: fit.proxied.map(|info| &**info),
        unacknowledged: Some(UNACKNOWLEDGED),
        objects: wanted.objects,
    };
    let connected = connect::connect(worker, &counted, &means).await?;
    let http2 = match protocol {
        UpstreamProtocol::Http2 => true,
        UpstreamProtocol::Auto => connected.alpn.as_deref() == Some(b"h2"),
        UpstreamProtocol::Http1 | UpstreamProtocol::UseDownstream => false,
    };
    if http2 {
        let connection = h2::Connection::start(worker, connected, counted, &node.config.http).await?;
        if !host.retired.get() {
            host.multiplexed.borrow_mut().push(Rc::clone(&connection));
            // It has room for more than the request that made it.
            host.released.notify_waiters();
        }
        return Ok(Opened::Http2(connection));
    }
    let link = Link::new(Rc::clone(worker), connected.begin(worker, &counted));
    Ok(Opened::Http1(Box::new(h1::Connection::new(link, counted))))
}
