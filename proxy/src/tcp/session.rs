//! A downstream connection that is proxied as bytes.
//!
//! Owns its course: the choice of a cluster and an endpoint, tries to connect, limits of time, stats and access logs.
//! Never moves bytes itself (see `relay`).

use std::borrow::Cow;
use std::cell::RefCell;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use outrigger_config::address::Address;
use outrigger_config::cluster::{Caller, Cluster, Concurrency, Discovery, DnsFamily, OriginalDstOptions};
use outrigger_config::listener::SocketOption;
use outrigger_config::route::Priority;
use outrigger_policy::balance::{HashView, Wanted, request_hash, xx_hash};
use tokio::time::{Interval, MissedTickBehavior};

use super::departure::{Left, left};
use super::direction::Traffic;
use super::relay::{End, Relay, Side};
use super::stats::TcpStats;
use crate::accesslog::{Facts, LogType};
use crate::explain::Cause;
use crate::graph::TcpNode;
use crate::health::{failed, observe};
use crate::istio::metrics::TcpReport;
use crate::moments::Milestone;
use crate::network::{Refusal, TCP_PROXY_CLUSTER};
use crate::overload::Hook;
use crate::stream::{ConnectionInfo, Kill, Phase, ResponseFlag, StreamInfo};
use crate::trace::Opening;
use crate::upstream::admission::{Admitted, OwnEndpoint, Refused, Seeker, Wish};
use crate::upstream::clusters::WorkerCluster;
use crate::upstream::connect::{ConnectError, Counted, Full, Means, connect, take_place};
use crate::upstream::dns_cache::{DYNAMIC_HOST, DYNAMIC_PORT, Lookup, NoAddress};
use crate::upstream::feedback::{Unanswered, Watch};
use crate::upstream::gate::Place;
use crate::upstream::host::Host;
use crate::upstream::stats::EndedBy;
use crate::upstream::worker_host::WorkerHost;
use crate::worker::Worker;
use crate::worker::connections::Registered;
use crate::worker::deadlines::{Deadlines, Limit};
use crate::worker::live::{Live, LiveList, Owner};
use crate::worker::socket::Io;

/// Serves a downstream connection to its end. `buffer_limit` is the listener's, in bytes.
pub async fn serve(
    worker: Rc<Worker>,
    node: Arc<TcpNode>,
    mut io: Io,
    connection: Rc<ConnectionInfo>,
    registered: Registered,
    buffer_limit: u32,
) {
    let session = Session::new(worker, node, connection, registered, buffer_limit);
    if session.node.config.log_on_start {
        session.log(LogType::TcpConnectionStart);
    }
    // Connecting, with TLS, needs far more memory than what follows, so it is not part of this future.
    let mut connecting = Box::pin(session.connect(&mut io));
    let connected = poll_fn(|cx| match connecting.as_mut().poll(cx) {
        Poll::Ready(connected) => Poll::Ready(connected),
        Poll::Pending => session.poll_interrupted(cx).map(|interrupt| {
            session.note(interrupt);
            None
        }),
    })
    .await;
    drop(connecting);
    match connected {
        Some((upstream, active)) => session.relay(io, upstream, active).await,
        None => drop(io),
    }
    session.end();
}

/// Counts and logs a connection that a network filter refused.
pub fn record_refused(
    worker: Rc<Worker>,
    node: Arc<TcpNode>,
    connection: Rc<ConnectionInfo>,
    registered: Registered,
    refusal: &Refusal,
) {
    let session = Session::new(worker, node, connection, registered, u32::MAX);
    refusal.record(&session.info);
    session.end();
}

/// Why a session ends although neither side ended it.
#[derive(Clone, Copy, Debug)]
enum Interrupt {
    /// Nothing moved for too long.
    Idle,
    /// It lasted too long.
    Duration,
    /// The drain of its filter chain is over.
    Drained,
    /// Its endpoint acknowledges nothing any more.
    EndpointGone,
    /// Its endpoint has failed, and the cluster wants its sessions to end then.
    EndpointFailed,
    /// Somebody ended it by hand.
    Killed,
}

struct Session {
    worker: Rc<Worker>,
    node: Arc<TcpNode>,
    connection: Rc<ConnectionInfo>,
    registered: Registered,
    /// `per_connection_buffer_limit_bytes` of the listener.
    listener_buffer_limit: u32,
    stats: Arc<TcpStats>,
    info: Rc<StreamInfo>,
    live: Live,
    deadlines: Deadlines,
    /// Ticks when an entry of a connection that lasts is due.
    flush: RefCell<Option<Interval>>,
    /// What a mesh is told of it.
    report: Option<Box<TcpReport>>,
}

impl Session {
    fn new(
        worker: Rc<Worker>,
        node: Arc<TcpNode>,
        connection: Rc<ConnectionInfo>,
        registered: Registered,
        listener_buffer_limit: u32,
    ) -> Self {
        let stats = worker.tcp_stats(&node.config.stat_prefix);
        stats.downstream_cx_total.increment();
        let deadlines = Deadlines::default();
        if let Some(limit) = node.config.max_downstream_connection_duration {
            deadlines.set(Limit::ConnectionDuration, Some(connection.start + limit));
        }
        let logs = !node.access_logs.is_empty();
        let flush = node.config.access_log_flush_interval.filter(|_| logs).map(|period| {
            let mut interval = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        let mut info = StreamInfo::new(connection.start, None);
        info.dynamic_metadata.clone_from(&connection.dynamic_metadata);
        info.filter_state.clone_from(&connection.filter_state);
        let flush = RefCell::new(flush);
        let report = node.reporter.as_ref().map(|reporter| Box::new(TcpReport::begin(&worker, reporter)));
        let info = Rc::new(info);
        let live = LiveList::add(&worker, &info, Owner::Tcp(Rc::clone(&connection)), []);
        Self {
            worker,
            node,
            connection,
            registered,
            listener_buffer_limit,
            stats,
            info,
            live,
            deadlines,
            flush,
            report,
        }
    }

    /// A connection to an endpoint, or `None` with the reason noted. Nothing is taken from `downstream`.
    async fn connect(&self, downstream: &mut Io) -> Option<(Io, ActiveSession)> {
        let Some(mut route_cluster) = self.cluster() else {
            self.stats.downstream_cx_no_route.increment();
            self.info.flag(ResponseFlag::NoClusterFound);
            return None;
        };
        let forwarded = match self.forwarded(&route_cluster).await {
            Ok(forwarded) => forwarded,
            Err(error) => {
                let flag = match error {
                    NoAddress::Failed(_) => ResponseFlag::DnsResolutionFailed,
                    NoAddress::CacheFull | NoAddress::TooManyWait => ResponseFlag::UpstreamOverflow,
                };
                self.info.flag(flag);
                *self.info.upstream_failure.borrow_mut() = Some(error.to_string().into());
                return None;
            }
        };
        let mut tried: Vec<Arc<Host>> = Vec::new();
        for _ in 0..self.node.config.max_connect_attempts {
            self.info.phase.set(Phase::Queue);
            let (cluster, admitted) = self.admit(&mut route_cluster, forwarded.as_ref(), &tried, downstream).await;
            let Admitted { host, place } = admitted?;
            if self.worker.is_overloaded(Hook::NewConnection, || false) {
                self.info.flag(ResponseFlag::UpstreamOverflow);
                return None;
            }
            let counted = match take_place(&cluster, &host, Priority::Default, false) {
                Ok(counted) => counted,
                Err(full) => {
                    self.info.flag(ResponseFlag::UpstreamOverflow);
                    self.info.cause.set(full_cause(&cluster, full));
                    return None;
                }
            };
            self.info.begin_try(&host.host);
            cluster.stats.upstream_rq_pending_total.increment();
            let watch = Watch::begin(&host);
            self.info.moments.begin_try();
            self.info.cause.set(None);
            self.info.reached(Milestone::UpstreamBegin, counted.start());
            self.info.phase.set(Phase::Connect);
            match connect(&counted, &Means { downstream: Some(&self.connection), ..Means::default() }).await {
                Ok(connected) => {
                    self.note_connected(&counted);
                    observe::connected(&self.worker.process, &host);
                    watch.answered(&host, false, None);
                    let heard = self.report.as_ref().and_then(|report| report.endpoint());
                    let upstream = connected.begin_heard(&self.worker, &counted, heard);
                    return Some((upstream, ActiveSession::new(counted, place)));
                }
                Err(error) => {
                    observe::not_connected(&self.worker.process, &host, &error);
                    watch.unanswered(&host, Unanswered::Unreachable);
                    self.note_failure(&cluster, &error);
                }
            }
            tried.push(Arc::clone(&host.host));
        }
        route_cluster.stats.upstream_cx_connect_attempts_exceeded.increment();
        self.info.flag(ResponseFlag::UpstreamRetryLimitExceeded);
        None
    }

    /// The name that the connection is for, if the cluster is a dynamic forward proxy.
    async fn forwarded(&self, cluster: &Rc<WorkerCluster>) -> Result<Option<OwnEndpoint>, NoAddress> {
        let node = cluster.node();
        let Discovery::DynamicForward(cache) = &node.config.discovery else { return Ok(None) };
        let (host, port) = {
            let state = self.info.filter_state.borrow();
            let host = state.get(DYNAMIC_HOST).or(self.connection.server_name.as_ref()).cloned();
            let port = state.get(DYNAMIC_PORT).and_then(|port| port.parse().ok());
            (host, port.unwrap_or(if node.tls.get(0).is_some() { 443 } else { 80 }))
        };
        let Some(host) = host else { return Ok(None) };
        let name = match self.worker.dns.look_up(&self.worker, cache, &host, port) {
            Lookup::Known(known) => known?,
            Lookup::Later(pending) => pending.answer().await?,
        };
        Ok(Some(OwnEndpoint::Name { name, all_addresses: cache.dns.family == DnsFamily::All }))
    }

    /// This worker's view of the chosen cluster, if there is such a cluster now.
    fn cluster(&self) -> Option<Rc<WorkerCluster>> {
        let graph = self.worker.graph();
        let filter_state = self.info.filter_state.borrow();
        let name = match filter_state.get(TCP_PROXY_CLUSTER) {
            Some(name) => name,
            None => &**self.node.config.target.pick(self.worker.random.next()),
        };
        let node = graph.clusters.get(name)?;
        self.info.set_cluster(&node.config);
        Some(self.worker.clusters.get(&self.worker, node))
    }

    /// An endpoint; one that was not tried, if there is any. Waits for a place where the cluster limits them. Gives the
    /// cluster of the endpoint, and `None` with the reason noted. `route_cluster` becomes the newest view of itself.
    async fn admit(
        &self,
        route_cluster: &mut Rc<WorkerCluster>,
        forwarded: Option<&OwnEndpoint>,
        tried: &[Arc<Host>],
        downstream: &mut Io,
    ) -> (Rc<WorkerCluster>, Option<Admitted>) {
        let config = &self.node.config;
        let hash = request_hash(&config.hash_policy, &View(self), |_| String::new());
        let wanted = Wanted { hash, metadata: config.metadata_match.as_deref(), ..Wanted::default() };
        let Some((cluster, wanted)) = route_cluster.delegate(&self.worker, wanted) else {
            return (Rc::clone(route_cluster), self.refused(route_cluster, &Refused::NoHost));
        };
        let node = cluster.node();
        let own = match &node.config.discovery {
            Discovery::OriginalDst(options) => match self.original_destination(options) {
                Some(destination) => Some(OwnEndpoint::Destination(destination)),
                None => return (Rc::clone(&cluster), self.refused(&cluster, &Refused::NoHost)),
            },
            _ => forwarded.cloned(),
        };
        let Some(options) = node.config.concurrency.as_deref() else {
            let host = match own {
                Some(own) => own.of(&cluster),
                None => cluster.pick(&self.worker, wanted, tried),
            };
            let admitted = host.map(|host| Admitted { host, place: None });
            let admitted = admitted.or_else(|| self.refused(&cluster, &Refused::NoHost));
            return (cluster, admitted);
        };
        let worker = &self.worker;
        let mut seeker = Seeker { worker, cluster, wanted, tried, priority: Priority::Default, own };
        // Whatever else ends the session drops this.
        let mut left = pin!(left(downstream));
        let result = seeker.admit(options, || self.wish(options), |cx| left.as_mut().poll(cx)).await.result;
        let cluster = seeker.cluster;
        if cluster.node().config.name == route_cluster.node().config.name {
            *route_cluster = Rc::clone(&cluster);
        }
        let admitted = result.map_or_else(|refused| self.refused(&cluster, &refused), Some);
        (cluster, admitted)
    }

    fn wish(&self, options: &Concurrency) -> Wish {
        let name = |name: &str| xx_hash(name.as_bytes());
        let caller = match &options.fair {
            Some(Caller::PeerIdentity) => self.connection.peer_name().map(name),
            Some(Caller::SourceAddress) => self.connection.remote.ip().map(|address| name(&address.to_string())),
            Some(Caller::Header(_)) | None => None,
        };
        Wish { class: options.class.default, offset_ms: 0, caller, timeout: options.queue_timeout }
    }

    fn refused(&self, cluster: &WorkerCluster, refused: &Refused<Left>) -> Option<Admitted> {
        match refused {
            Refused::NoHost => {
                cluster.stats.upstream_cx_none_healthy.increment();
                self.info.flag(ResponseFlag::NoHealthyUpstream);
            }
            Refused::Overflow | Refused::QueueFull | Refused::QueueTimeout => {
                self.info.flag(ResponseFlag::UpstreamOverflow);
            }
            Refused::Interrupted(Left) => self.info.flag(ResponseFlag::DownstreamConnectionTermination),
        }
        None
    }

    /// Where the client wanted to go. The address of our own socket would lead back to us.
    fn original_destination(&self, options: &OriginalDstOptions) -> Option<SocketAddr> {
        match &self.connection.local {
            Address::Ip(destination) if self.connection.local_restored => {
                let mut destination = *destination;
                if let Some(port) = options.upstream_port_override {
                    destination.set_port(port);
                }
                Some(destination)
            }
            _ => None,
        }
    }

    fn note_connected(&self, counted: &Counted) {
        self.info.upstream_connection.set(counted.id());
        *self.info.upstream_tls.borrow_mut() = counted.tls().cloned();
        let Opening { start, connected, ready, secure } = counted.opening();
        self.info.reached(Milestone::ConnectBegin, start);
        if let Some(connected) = connected {
            self.info.reached(Milestone::Connected, connected);
        }
        if let Some(ready) = ready {
            self.info.reached(Milestone::PoolReady, ready);
            if secure {
                self.info.reached(Milestone::HandshakeEnd, ready);
            }
        }
    }

    fn note_failure(&self, cluster: &WorkerCluster, error: &ConnectError) {
        if matches!(error, ConnectError::Timeout) {
            let limit = Some(cluster.node().config.connect_timeout);
            self.info.cause.set(Some(Cause::Time { limit, field: "Cluster.connect_timeout" }));
        }
        self.info.flag(ResponseFlag::UpstreamConnectionFailure);
        cluster.stats.upstream_rq_pending_failure_eject.increment();
        *self.info.upstream_failure.borrow_mut() = Some(error.to_string().into());
    }

    /// Moves bytes until one side or an interrupt ends it.
    async fn relay(&self, downstream: Io, upstream: Io, active: ActiveSession) {
        if !self.node.access_logs.is_empty() {
            self.info.upstream_local.set(upstream.socket().local_address());
        }
        if self.node.config.log_on_connected {
            self.log(LogType::TcpUpstreamConnected);
        }
        let limit = self.buffer_limit(active.counted.host().node.config.per_connection_buffer_limit_bytes);
        let mut relay = Relay::new(downstream, upstream, limit);
        let mut meter = Meter { session: self, active: &active, up: Traffic::default(), down: Traffic::default() };
        self.info.phase.set(Phase::Relay);
        self.restart_idle_time();
        let mut failure = self.endpoint_failure(active.counted.host());
        let watched = !sets_user_timeout(&active.counted.host().node.config);
        let outcome = poll_fn(|cx| {
            let end = relay.poll(cx, &self.worker.buffers);
            let written = meter.up.written;
            if meter.update(relay.up(), relay.down()) {
                self.restart_idle_time();
                if watched && meter.up.written > written && !self.deadlines.is_set(Limit::Acknowledgement) {
                    self.deadlines.set(Limit::Acknowledgement, Some(Instant::now() + UNACKNOWLEDGED));
                }
            }
            match end {
                Poll::Ready(end) => return Poll::Ready(Ok(end)),
                Poll::Pending => {}
            }
            if let Some(failure) = &mut failure
                && failure.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Err(Interrupt::EndpointFailed));
            }
            loop {
                match self.poll_interrupted(cx) {
                    Poll::Ready(Interrupt::EndpointGone) => {
                        let since = relay.unacknowledged_for();
                        if since.is_some_and(|since| since >= UNACKNOWLEDGED) {
                            return Poll::Ready(Err(Interrupt::EndpointGone));
                        }
                        // Not that long yet, or nothing is on its way.
                        let next = since.map(|since| Instant::now() + (UNACKNOWLEDGED - since));
                        self.deadlines.set(Limit::Acknowledgement, next);
                    }
                    interrupt => return interrupt.map(Err),
                }
            }
        })
        .await;
        relay.stop(&self.worker.buffers);
        match outcome {
            Ok(End::Closed { last: Side::Upstream }) => active.counted.set_end(EndedBy::Upstream, true),
            Ok(End::Reset { by: Side::Upstream }) => {
                active.counted.set_end(EndedBy::Upstream, true);
                self.info.flag(ResponseFlag::UpstreamRemoteReset);
            }
            Ok(End::Closed { last: Side::Downstream } | End::Reset { by: Side::Downstream }) => {
                active.counted.set_end(EndedBy::Us, true);
            }
            Err(Interrupt::EndpointGone) => {
                active.counted.set_end(EndedBy::Upstream, true);
                self.info.flag(ResponseFlag::UpstreamConnectionTermination);
                *self.info.upstream_failure.borrow_mut() = Some("the endpoint acknowledges nothing".into());
                relay.cut_downstream();
            }
            Err(interrupt) => {
                active.counted.set_end(EndedBy::Us, true);
                self.note(interrupt);
                poll_fn(|cx| {
                    relay.say_goodbye(cx);
                    Poll::Ready(())
                })
                .await;
            }
        }
    }

    /// How many bytes may be under way in each direction: what is read from one side waits for the other, so both limits
    /// hold for it.
    fn buffer_limit(&self, cluster: u32) -> usize {
        // Zero is no limit.
        let cluster = if cluster == 0 { u32::MAX } else { cluster };
        usize::try_from(cluster.min(self.listener_buffer_limit)).unwrap_or(usize::MAX)
    }

    /// Ready when the endpoint fails, if the cluster wants its sessions to end then.
    fn endpoint_failure(&self, host: &WorkerHost) -> Option<Pin<Box<dyn Future<Output = ()>>>> {
        let node = &host.node;
        let wanted = node.config.close_connections_on_host_health_failure;
        wanted.then(|| -> Pin<Box<dyn Future<Output = ()>>> {
            Box::pin(failed(Arc::clone(&host.host.shared), Arc::clone(&node.shared.health_changed)))
        })
    }

    fn restart_idle_time(&self) {
        if let Some(timeout) = self.node.config.idle_timeout {
            self.deadlines.set(Limit::Idle, Some(Instant::now() + timeout));
        }
    }

    /// Ready when the session must end. Writes the entries of a connection that lasts in passing.
    fn poll_interrupted(&self, cx: &mut Context<'_>) -> Poll<Interrupt> {
        if let Some(flush) = self.flush.borrow_mut().as_mut() {
            while flush.poll_tick(cx).is_ready() {
                self.log(LogType::TcpPeriodic);
            }
        }
        if let Some(report) = &self.report {
            report.poll(cx, &self.worker, &self.connection, &self.info);
        }
        if let Poll::Ready(limit) = self.deadlines.poll(cx) {
            return Poll::Ready(match limit {
                Limit::ConnectionDuration => Interrupt::Duration,
                Limit::Acknowledgement => Interrupt::EndpointGone,
                _ => Interrupt::Idle,
            });
        }
        if self.info.kill.get() == Kill::Asked {
            return Poll::Ready(Interrupt::Killed);
        }
        self.live.remember(cx);
        self.registered.poll_expired(cx).map(|()| Interrupt::Drained)
    }

    fn note(&self, interrupt: Interrupt) {
        match interrupt {
            Interrupt::Idle => {
                self.stats.idle_timeout.increment();
                let limit = self.node.config.idle_timeout;
                self.info.cause.set(Some(Cause::Time { limit, field: "TcpProxy.idle_timeout" }));
            }
            Interrupt::Duration => {
                self.stats.max_downstream_connection_duration.increment();
                self.info.flag(ResponseFlag::DurationTimeout);
                let limit = self.node.config.max_downstream_connection_duration;
                let field = "TcpProxy.max_downstream_connection_duration";
                self.info.cause.set(Some(Cause::Time { limit, field }));
            }
            Interrupt::Killed => self.info.set_details("killed_by_operator"),
            Interrupt::Drained | Interrupt::EndpointFailed | Interrupt::EndpointGone => {}
        }
    }

    /// Records what has become of the session.
    fn end(&self) {
        self.info.end.set(Some(Instant::now()));
        let Self { worker, info, connection, .. } = self;
        worker.failures.note(info, connection, None, &worker.process.clock, &worker.graph().runtime);
        if let Some(report) = &self.report {
            report.end(worker, connection, info);
        }
        self.log(LogType::TcpConnectionEnd);
    }

    fn log(&self, log_type: LogType) {
        if self.node.access_logs.is_empty() {
            return;
        }
        let graph = self.worker.graph();
        let mut facts = Facts::new(&self.info, &self.connection, &self.worker.process.clock, Instant::now());
        facts.log_type = log_type;
        for logger in &self.node.access_logs {
            logger.log(&facts, self.worker.random.next(), &*graph.runtime);
        }
    }
}

/// The limit on connections that is reached.
fn full_cause(cluster: &WorkerCluster, full: Full) -> Option<Cause> {
    let breakers = &cluster.node().config.circuit_breakers;
    let (limit, field) = match full {
        Full::Cluster => (breakers.default.max_connections, "CircuitBreakers.thresholds.max_connections"),
        Full::Host => (breakers.per_host_max_connections?, "CircuitBreakers.per_host_thresholds.max_connections"),
    };
    Some(Cause::Count { limit, field })
}

/// An endpoint that has acknowledged nothing for this long is gone. A limit of the system itself (TCP_USER_TIMEOUT) would
/// also end sessions with endpoints that are there but do not read for a while.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// Whether the configuration says how long bytes may stay unacknowledged.
fn sets_user_timeout(config: &Cluster) -> bool {
    let of = |options: &[SocketOption]| options.iter().any(|option| (option.level, option.name) == TCP_USER_TIMEOUT);
    config.bind.as_ref().is_some_and(|bind| {
        let extra = bind.extra_sources.iter().filter_map(|extra| extra.socket_options.as_deref());
        of(&bind.socket_options) || extra.into_iter().any(of)
    })
}

/// Level and name, as Linux numbers them.
const TCP_USER_TIMEOUT: (i32, i32) = (6, 18);

/// What hash policies see of a connection.
struct View<'a>(&'a Session);

impl HashView for View<'_> {
    fn header<'a>(&'a self, _name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        std::iter::empty()
    }

    fn path(&self) -> &str {
        ""
    }

    fn source_ip(&self) -> Option<IpAddr> {
        self.0.connection.remote.ip()
    }

    fn filter_state(&self, key: &str) -> Option<Cow<'_, [u8]>> {
        let value = self.0.info.filter_state.borrow().get(key).cloned()?;
        Some(Cow::Owned(value.into_bytes()))
    }
}

/// A session that counts as a request of its endpoint, as long as it lives: balancers see it.
struct ActiveSession {
    counted: Counted,
    _place: Option<Place>,
}

impl ActiveSession {
    fn new(counted: Counted, place: Option<Place>) -> Self {
        let (host, cluster) = (counted.host(), counted.cluster());
        host.begin();
        host.stats.rq_total.increment();
        host.stats.rq_active.increment();
        cluster.stats.upstream_rq_total.increment();
        cluster.stats.upstream_rq_active.increment();
        Self { counted, _place: place }
    }
}

impl Drop for ActiveSession {
    fn drop(&mut self) {
        let (host, cluster) = (self.counted.host(), self.counted.cluster());
        host.end();
        host.stats.rq_active.decrement();
        cluster.stats.upstream_rq_active.decrement();
    }
}

/// Brings what was moved into stats and stream info.
struct Meter<'a> {
    session: &'a Session,
    active: &'a ActiveSession,
    up: Traffic,
    down: Traffic,
}

impl Meter<'_> {
    /// Takes over the totals. Whether anything has moved since the last time.
    fn update(&mut self, up: Traffic, down: Traffic) -> bool {
        if (up, down) == (self.up, self.down) {
            return false;
        }
        let Session { stats, info, .. } = self.session;
        let cluster = &self.active.counted.cluster().stats;
        stats.downstream_cx_rx_bytes_total.add(up.read - self.up.read);
        stats.downstream_cx_tx_bytes_total.add(down.written - self.down.written);
        stats.downstream_cx_rx_bytes_buffered.add(buffered(up) - buffered(self.up));
        stats.downstream_cx_tx_bytes_buffered.add(buffered(down) - buffered(self.down));
        stats.downstream_flow_control_paused_reading_total.add(up.pauses - self.up.pauses);
        stats.downstream_flow_control_resumed_reading_total.add(up.resumes - self.up.resumes);
        cluster.upstream_cx_tx_bytes_total.add(up.written - self.up.written);
        cluster.upstream_cx_rx_bytes_total.add(down.read - self.down.read);
        info.bytes_received.set(up.read);
        info.upstream_bytes_sent.set(up.written);
        info.upstream_bytes_received.set(down.read);
        info.bytes_sent.set(down.written);
        (self.up, self.down) = (up, down);
        true
    }
}

impl Drop for Meter<'_> {
    fn drop(&mut self) {
        // What was not delivered is gone with the connection.
        self.session.stats.downstream_cx_rx_bytes_buffered.add(-buffered(self.up));
        self.session.stats.downstream_cx_tx_bytes_buffered.add(-buffered(self.down));
    }
}

/// Bytes read and not yet written.
fn buffered(traffic: Traffic) -> i64 {
    i64::try_from(traffic.read - traffic.written).unwrap_or(i64::MAX)
}
