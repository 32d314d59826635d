//! The way of a TCP session to its endpoint.
//!
//! Owns the choice of a cluster and an endpoint, and tries to connect. Never moves bytes.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use outrigger_config::address::Address;
use outrigger_config::cluster::{Caller, Concurrency, Discovery, DnsFamily, OriginalDstOptions};
use outrigger_config::http::filters::OnDemandClusters;
use outrigger_config::route::Priority;
use outrigger_config::tcp::{BackOff, MadeTlv, Tunneling};
use outrigger_policy::balance::{self, HashView, request_hash, xx_hash};
use outrigger_policy::retry;

use super::super::departure::{self, Left, left};
use super::super::stats::OnDemandStats;
use super::super::tlvs;
use super::super::tunnel::{TunnelError, Tunneller};
use super::{ActiveSession, Held, Session};
use crate::accesslog::{Facts, format};
use crate::explain::Cause;
use crate::filter_state::SharedObjects;
use crate::graph::Wanted;
use crate::health::observe;
use crate::moments::Milestone;
use crate::network::TCP_PROXY_CLUSTER;
use crate::overload::Hook;
use crate::stats::names;
use crate::stream::{Phase, ResponseFlag};
use crate::trace::Opening;
use crate::upstream::admission::{Admitted, OwnEndpoint, Refused, Seeker, Wish};
use crate::upstream::avoid::Avoid;
use crate::upstream::clusters::WorkerCluster;
use crate::upstream::connect::{Claim, ConnectError, Counted, Full, Means, connect, take_place};
use crate::upstream::destination::{destination_in, told_destination};
use crate::upstream::dns_cache::{DYNAMIC_HOST, DYNAMIC_PORT, Lookup, NoAddress};
use crate::upstream::feedback::{Unanswered, Watch};
use crate::upstream::host::Host;
use crate::upstream::pool::PoolError;
use crate::upstream::worker_host::WorkerHost;
use crate::worker::deadlines::Limit;
use crate::worker::socket::Io;

impl Session {
    /// A connection to an endpoint, or `None` with the reason noted. Nothing is taken from `downstream`.
    pub(super) async fn connect(&self, downstream: &mut Io) -> Option<(Io, ActiveSession)> {
        if self.node.config.connect_on_data {
            // Who says nothing is not waited for longer than between two messages.
            self.restart_idle_time();
            departure::heard(downstream).await;
            self.deadlines.set(Limit::Idle, None);
        }
        self.tell_tlvs();
        let mut route_cluster = self.route_cluster(downstream).await?;
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
        for attempt in 0..self.node.config.max_connect_attempts {
            if let Some(back_off) = self.node.config.back_off.filter(|_| attempt > 0) {
                self.info.phase.set(Phase::BackOff);
                let BackOff { base, max } = back_off;
                let wait = retry::back_off(base, max, attempt - 1, self.worker.random.next());
                tokio::time::sleep(wait).await;
            }
            self.info.phase.set(Phase::Queue);
            let (cluster, admitted) = self.admit(&mut route_cluster, forwarded.as_ref(), &tried, downstream).await;
            let Admitted { host, place } = admitted?;
            if self.worker.is_overloaded(Hook::NewConnection, || false) {
                self.info.flag(ResponseFlag::UpstreamOverflow);
                return None;
            }
            let tried_host = Arc::clone(&host.host);
            let outcome = match self.tunneling() {
                None => self.dial(&cluster, &host).await,
                Some(config) => self.dig(&cluster, &host, config).await,
            };
            match outcome {
                Ok((upstream, held)) => return Some((upstream, ActiveSession::new(cluster, host, held, place))),
                Err(NotReached::Failed) => {}
                Err(NotReached::Full) => return None,
            }
            tried.push(tried_host);
        }
        route_cluster.stats.upstream_cx_connect_attempts_exceeded.increment();
        self.info.flag(ResponseFlag::UpstreamRetryLimitExceeded);
        None
    }

    /// A connection of its own to an endpoint.
    async fn dial(&self, cluster: &Rc<WorkerCluster>, host: &Rc<WorkerHost>) -> Result<(Io, Held), NotReached> {
        let counted = take_place(cluster, host, Priority::Default, Claim::Spare).map_err(|full| {
            self.info.flag(ResponseFlag::UpstreamOverflow);
            self.info.cause.set(full_cause(cluster, full));
            NotReached::Full
        })?;
        cluster.stats.upstream_rq_pending_total.increment();
        let watch = self.begin_try(host, counted.start());
        let objects = SharedObjects::of(&self.info.filter_state.borrow(), None);
        let means = Means { downstream: Some(&self.connection), objects: objects.as_deref(), ..Means::default() };
        match connect(&self.worker, &counted, &means).await {
            Ok(connected) => {
                self.note_connected(&counted);
                observe::connected(&self.worker.process, host);
                watch.answered(host, false, None);
                let heard = self.report.as_ref().and_then(|report| report.endpoint());
                let upstream = connected.begin_heard(&self.worker, &counted, heard);
                Ok((upstream, Held::Connection(counted)))
            }
            Err(error) => {
                observe::not_connected(&self.worker.process, host, &error);
                watch.unanswered(host, Unanswered::Unreachable);
                self.note_failure(cluster, &error);
                Err(NotReached::Failed)
            }
        }
    }

    /// A request to an endpoint that carries the connection.
    async fn dig(
        &self,
        cluster: &Rc<WorkerCluster>,
        host: &Rc<WorkerHost>,
        config: &Tunneling,
    ) -> Result<(Io, Held), NotReached> {
        let watch = self.begin_try(host, Instant::now());
        let Self { worker, connection, info, .. } = self;
        let error = match (Tunneller { worker, cluster, host, config, connection, info }).open().await {
            Ok((tunnel, permit)) => {
                if let Some(stream) = tunnel.stream() {
                    self.note_connected(stream.counted());
                    self.info.upstream_local.set(stream.local_address());
                }
                observe::connected(&self.worker.process, host);
                watch.answered(host, false, None);
                return Ok((Io::Tunnel(Box::new(tunnel)), Held::Request { _permit: permit }));
            }
            Err(error) => error,
        };
        match &error {
            TunnelError::Pool(PoolError::PendingOverflow | PoolError::RequestOverflow) => {
                self.info.flag(ResponseFlag::UpstreamOverflow);
                return Err(NotReached::Full);
            }
            TunnelError::Pool(PoolError::Connect(error)) => {
                observe::not_connected(&self.worker.process, host, error);
                watch.unanswered(host, Unanswered::Unreachable);
                self.note_failure(cluster, error);
            }
            TunnelError::Stream(_) | TunnelError::Refused(_) => {
                observe::unreachable(&self.worker.process, host);
                watch.unanswered(host, Unanswered::Unreachable);
                self.info.flag(ResponseFlag::UpstreamConnectionFailure);
                *self.info.upstream_failure.borrow_mut() = Some(error.to_string().into());
            }
        }
        Err(NotReached::Failed)
    }

    fn begin_try(&self, host: &Rc<WorkerHost>, start: Instant) -> Watch {
        self.info.begin_try(&host.host);
        let watch = Watch::begin(host);
        self.info.moments.begin_try();
        self.info.cause.set(None);
        self.info.reached(Milestone::UpstreamBegin, start);
        self.info.phase.set(Phase::Connect);
        watch
    }

    /// What requests that carry connections look like, unless this one goes without.
    fn tunneling(&self) -> Option<&Tunneling> {
        let off = || self.info.filter_state.borrow().get(DISABLE_TUNNELING).is_some_and(|value| value == "true");
        self.node.config.tunneling.as_deref().filter(|_| !off())
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

    /// Says what PROXY protocol headers towards endpoints get.
    fn tell_tlvs(&self) {
        let Some(config) = self.node.config.proxy_tlvs.as_deref() else { return };
        let make = |tlv: &MadeTlv| {
            let mut value = Vec::new();
            let write = if tlv.omit_empty_values { format::write_header } else { format::write };
            let clock = &self.worker.process.clock;
            write(&tlv.value, &Facts::new(&self.info, &self.connection, clock, Instant::now()), &mut value);
            value
        };
        if let Some(merged) = tlvs::merged(config, tlvs::of_header(&self.connection), make) {
            // A connection has one TCP proxy.
            let _ = self.connection.outgoing_tlvs.set(Box::new(merged));
        }
    }

    /// This worker's view of the chosen cluster; `None` with the reason noted.
    async fn route_cluster(&self, downstream: &mut Io) -> Option<Rc<WorkerCluster>> {
        let name = self.cluster_name();
        let found = match (self.cluster(&name), &self.node.config.on_demand) {
            (None, Some(from)) if !name.is_empty() => self.discover(from, &name, downstream).await,
            (known, _) => Ok(known),
        };
        match found {
            Ok(Some(cluster)) => return Some(cluster),
            Ok(None) => {
                self.stats.downstream_cx_no_route.increment();
                self.info.flag(ResponseFlag::NoClusterFound);
            }
            Err(Left) => self.info.flag(ResponseFlag::DownstreamConnectionTermination),
        }
        None
    }

    /// The cluster that is chosen, whether there is one of this name or not.
    fn cluster_name(&self) -> Arc<str> {
        match self.info.filter_state.borrow().get(TCP_PROXY_CLUSTER) {
            Some(name) => name.as_str().into(),
            None => Arc::clone(self.node.config.target.pick(self.worker.random.next())),
        }
    }

    /// This worker's view of a cluster, if there is such a cluster now.
    fn cluster(&self, name: &str) -> Option<Rc<WorkerCluster>> {
        let graph = self.worker.graph();
        let node = graph.clusters.get(name)?;
        self.info.set_cluster(&node.config);
        Some(self.worker.clusters.get(&self.worker, node))
    }

    /// The same once it was asked for, as long as the client waits.
    async fn discover(
        &self,
        from: &Arc<OnDemandClusters>,
        name: &Arc<str>,
        downstream: &mut Io,
    ) -> Result<Option<Rc<WorkerCluster>>, Left> {
        let stats = self.worker.scope::<OnDemandStats>(&names::prefix("tcp", &self.node.config.stat_prefix));
        stats.on_demand_cluster_attempt.increment();
        let wanted = Wanted::Cluster { from: Arc::clone(from), name: Arc::clone(name) };
        let answer = self.worker.process.demands.ask(wanted);
        let in_time = tokio::select! {
            left = left(downstream) => return Err(left),
            answer = tokio::time::timeout(from.timeout, answer) => answer.is_ok(),
        };
        let found = self.cluster(name);
        match (&found, in_time) {
            (Some(_), _) => stats.on_demand_cluster_success.increment(),
            (None, true) => stats.on_demand_cluster_missing.increment(),
            (None, false) => stats.on_demand_cluster_timeout.increment(),
        }
        Ok(found)
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
        let avoid = Avoid { tried, policy: None };
        let hash = request_hash(&config.hash_policy, &View(self), |_| String::new());
        let metadata = config.metadata_match.as_deref();
        let wanted = balance::Wanted { hash, metadata, ..balance::Wanted::default() };
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
                None => cluster.pick(&self.worker, wanted, avoid),
            };
            let admitted = host.map(|host| Admitted { host, place: None });
            let admitted = admitted.or_else(|| self.refused(&cluster, &Refused::NoHost));
            return (cluster, admitted);
        };
        let worker = &self.worker;
        let mut seeker = Seeker { worker, cluster, wanted, avoid, priority: Priority::Default, own };
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
        let restored = || match &self.connection.local {
            Address::Ip(destination) if self.connection.local_restored => Some(*destination),
            _ => None,
        };
        let in_metadata = || destination_in(&self.info.dynamic_metadata.borrow(), options.metadata.as_ref()?);
        let told = told_destination(&self.info.filter_state.borrow());
        let mut destination = told.or_else(in_metadata).or_else(restored)?;
        if let Some(port) = options.upstream_port_override {
            destination.set_port(port);
        }
        Some(destination)
    }

    fn note_connected(&self, counted: &Counted) {
        self.info.upstream_connection.set(counted.id());
        *self.info.upstream_tls.borrow_mut() = counted.tls().cloned();
        let Opening { start, waited: _, connected, ready, secure } = counted.opening();
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
}

/// Why an endpoint was not reached.
enum NotReached {
    /// Another one may be.
    Failed,
    /// A limit of the cluster is reached.
    Full,
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

/// Filter state by which a connection goes without a tunnel. Source: `TcpProxy.tunneling_config`.
const DISABLE_TUNNELING: &str = "envoy.tcp_proxy.disable_tunneling";
