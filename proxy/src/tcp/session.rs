//! A downstream connection that is proxied as bytes.
//!
//! Owns its course: limits of time, stats and access logs. Never seeks an endpoint (see `connect`), or moves bytes (see
//! `relay`).

mod connect;

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use outrigger_config::cluster::Cluster;
use outrigger_config::listener::SocketOption;
use outrigger_policy::breaker::Permit;
use tokio::time::{Interval, MissedTickBehavior};

use super::direction::Traffic;
use super::relay::{End, Relay, Side};
use super::stats::TcpStats;
use crate::accesslog::{Facts, LogType};
use crate::explain::Cause;
use crate::graph::TcpNode;
use crate::health::failed;
use crate::istio::metrics::TcpReport;
use crate::jitter::lengthened;
use crate::network::Refusal;
use crate::stream::{ConnectionInfo, Kill, Phase, ResponseFlag, StreamInfo};
use crate::upstream::clusters::WorkerCluster;
use crate::upstream::connect::Counted;
use crate::upstream::gate::Place;
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
    /// It was made with a certificate that has been replaced, and has had its time.
    Retired,
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
            let jitter = node.config.max_downstream_connection_duration_jitter;
            let limit = lengthened(limit, jitter, connection.id);
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

    /// Moves bytes until one side or an interrupt ends it.
    async fn relay(&self, downstream: Io, upstream: Io, active: ActiveSession) {
        if !self.node.access_logs.is_empty()
            && let Some(socket) = upstream.socket()
        {
            self.info.upstream_local.set(socket.local_address());
        }
        if self.node.config.log_on_connected {
            self.log(LogType::TcpUpstreamConnected);
        }
        let limit = self.buffer_limit(active.host.node.config.per_connection_buffer_limit_bytes);
        let mut relay = Relay::new(downstream, upstream, limit);
        let mut meter = Meter { session: self, active: &active, up: Traffic::default(), down: Traffic::default() };
        self.info.phase.set(Phase::Relay);
        self.restart_idle_time();
        let mut failure = self.endpoint_failure(&active.host);
        let watched = !sets_user_timeout(&active.host.node.config);
        let ends_with_drain = self.node.config.check_drain_close;
        let outcome = poll_fn(|cx| {
            // Looks like the endpoint's end.
            if active.is_cut() {
                return Poll::Ready(Err(Interrupt::Retired));
            }
            let end = relay.poll(cx, &self.worker.buffers);
            let written = meter.up.written;
            let moved = meter.update(relay.up(), relay.down());
            if moved {
                self.restart_idle_time();
                if watched && meter.up.written > written && !self.deadlines.is_set(Limit::Acknowledgement) {
                    self.deadlines.set(Limit::Acknowledgement, Some(Instant::now() + UNACKNOWLEDGED));
                }
            }
            match end {
                Poll::Ready(end) => return Poll::Ready(Ok(end)),
                Poll::Pending => {}
            }
            if ends_with_drain && moved && self.registered.is_asked_to_end() && !relay.is_underway() {
                return Poll::Ready(Err(Interrupt::Drained));
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
            Ok(End::Closed { last: Side::Upstream }) => active.set_end(EndedBy::Upstream, true),
            Ok(End::Reset { by: Side::Upstream }) => {
                active.set_end(EndedBy::Upstream, true);
                self.info.flag(ResponseFlag::UpstreamRemoteReset);
            }
            Ok(End::Closed { last: Side::Downstream } | End::Reset { by: Side::Downstream }) => {
                active.set_end(EndedBy::Us, true);
            }
            Err(Interrupt::EndpointGone) => {
                active.set_end(EndedBy::Upstream, true);
                self.info.flag(ResponseFlag::UpstreamConnectionTermination);
                *self.info.upstream_failure.borrow_mut() = Some("the endpoint acknowledges nothing".into());
                relay.cut_downstream();
            }
            Err(interrupt) => {
                active.set_end(EndedBy::Us, true);
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
            Interrupt::Retired => self.info.set_details("upstream_certificate_replaced"),
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

/// A session that counts as a request of its endpoint, as long as it lives: balancers see it.
struct ActiveSession {
    cluster: Rc<WorkerCluster>,
    host: Rc<WorkerHost>,
    held: Held,
    _place: Option<Place>,
}

/// What a session has of its endpoint's cluster.
enum Held {
    /// A connection.
    Connection(Counted),
    /// A request.
    Request { _permit: Permit },
}

impl ActiveSession {
    fn new(cluster: Rc<WorkerCluster>, host: Rc<WorkerHost>, held: Held, place: Option<Place>) -> Self {
        host.begin();
        host.stats.rq_total.increment();
        host.stats.rq_active.increment();
        cluster.stats.upstream_rq_total.increment();
        cluster.stats.upstream_rq_active.increment();
        Self { cluster, host, held, _place: place }
    }

    /// The connection to the endpoint was cut. One that carries requests breaks by itself.
    fn is_cut(&self) -> bool {
        matches!(&self.held, Held::Connection(counted) if counted.is_cut())
    }

    /// Says who ends the connection to the endpoint. One that carries requests goes by itself.
    fn set_end(&self, by: EndedBy, active: bool) {
        if let Held::Connection(counted) = &self.held {
            counted.set_end(by, active);
        }
    }
}

impl Drop for ActiveSession {
    fn drop(&mut self) {
        let (host, cluster) = (&self.host, &self.cluster);
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
        stats.downstream_cx_rx_bytes_total.add(up.read - self.up.read);
        stats.downstream_cx_tx_bytes_total.add(down.written - self.down.written);
        stats.downstream_cx_rx_bytes_buffered.add(buffered(up) - buffered(self.up));
        stats.downstream_cx_tx_bytes_buffered.add(buffered(down) - buffered(self.down));
        stats.downstream_flow_control_paused_reading_total.add(up.pauses - self.up.pauses);
        stats.downstream_flow_control_resumed_reading_total.add(up.resumes - self.up.resumes);
        if let Held::Connection(counted) = &self.active.held {
            let cluster = &counted.cluster().stats;
            cluster.upstream_cx_tx_bytes_total.add(up.written - self.up.written);
            cluster.upstream_cx_rx_bytes_total.add(down.read - self.down.read);
        }
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
