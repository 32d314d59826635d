//! A worker's view of clusters and their endpoints.
//!
//! Owns the balancer state, the pools and the stats of one worker, and carries them over graph swaps. Never opens
//! connections (see `pool`).

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::address::Address;
use outrigger_config::cluster::{
    Cluster, Discovery, LoadBalancing, OriginalDstOptions, ProxyHeaderSettings, Thresholds,
};
use outrigger_config::route::Priority;
use outrigger_policy::balance::{Attempted, HostIndex, HostSet, Latency, Load, Pick, Picker, ReportedWeight, Wanted};
use outrigger_policy::breaker::Breaker;
use tokio::sync::Notify;

use super::aggregate::Aggregate;
use super::choice_stats::ChoiceStats;
use super::dns_cache::{CachedName, Resolution};
use super::feedback::Feedback;
use super::host::{Host, HostShared, HostStats};
use super::key::ConnectionKey;
use super::stats::{ClusterStats, QueueStats};
use super::vacancy::make_room;
use super::{h1, h2};
use crate::graph::{ClusterNode, HostList, facts, same_hosts};
use crate::http::h2::stats::Http2Stats;
use crate::stats::names;
use crate::worker::Worker;

/// The clusters that a worker has used.
#[derive(Default)]
pub struct WorkerClusters {
    by_name: RefCell<HashMap<Arc<str>, Rc<WorkerCluster>>>,
}

/// One cluster on one worker.
pub struct WorkerCluster {
    /// This worker's share of its stats.
    pub stats: Arc<ClusterStats>,
    http2_stats: OnceCell<Arc<Http2Stats>>,
    queue_stats: OnceCell<Arc<QueueStats>>,
    choices: ChoiceStats,
    node: RefCell<Arc<ClusterNode>>,
    picker: RefCell<Option<Picker>>,
    hosts: RefCell<Vec<Option<Rc<WorkerHost>>>>,
    /// Hosts of original destinations.
    destinations: RefCell<HashMap<SocketAddr, Rc<WorkerHost>>>,
    /// Hosts of resolved names, for dynamic forward proxies.
    forwarded: RefCell<HashMap<*const CachedName, Forwarded>>,
    /// Where the choice among member clusters stands, for aggregate clusters.
    aggregate: RefCell<Option<Box<Aggregate>>>,
}

/// The host that a name is, as long as its addresses stay.
struct Forwarded {
    name: Arc<CachedName>,
    resolution: Arc<Resolution>,
    host: Rc<WorkerHost>,
}

/// Where a try goes: an endpoint, and the cluster whose settings, limits and stats hold.
#[derive(Clone)]
pub struct Target {
    /// The cluster itself; a member of it if it is an aggregate cluster.
    pub cluster: Rc<WorkerCluster>,
    /// One of its endpoints.
    pub host: Rc<WorkerHost>,
}

/// What there is at an address that a request asks for.
pub enum Known {
    /// An endpoint that may be used.
    Usable(Rc<WorkerHost>),
    /// An endpoint that is not healthy.
    Unusable,
    /// None.
    Absent,
}

/// One endpoint on one worker.
pub struct WorkerHost {
    /// The endpoint of the graph.
    pub host: Arc<Host>,
    /// The cluster's configuration that its connections were made for.
    pub node: Arc<ClusterNode>,
    /// This worker's share of its stats.
    pub stats: Arc<HostStats>,
    /// Requests in flight from this worker.
    pub active: Cell<u32>,
    /// Open connections of this worker.
    pub connections: Cell<u32>,
    /// Connections for HTTP/1 that wait for a request, the last used last.
    pub idle: RefCell<Vec<h1::Connection>>,
    /// Tells one of those who wait for a connection that a request has ended and there is room for theirs.
    pub released: Notify,
    /// Connections for HTTP/2.
    pub multiplexed: RefCell<Vec<Rc<h2::Connection>>>,
    /// An HTTP/2 connection is being made.
    pub connecting: Cell<bool>,
    /// For whose requests alone.
    pub connecting_for: RefCell<Option<Box<ConnectionKey>>>,
    /// Notified when that is over.
    pub connected: Notify,
    /// Why the last attempt at an HTTP/2 connection failed, and how many have.
    pub connect_failure: RefCell<(u32, String)>,
    /// The same endpoint while it was at other addresses: connections to those serve on.
    pub earlier: RefCell<Vec<Rc<WorkerHost>>>,
    /// The endpoint, or the configuration it was used with, is gone.
    pub retired: Cell<bool>,
    /// When its health was last looked at, checks or outlier detection kept requests away.
    failed: Cell<bool>,
    last_used: Cell<Option<Instant>>,
    /// What answers have told, where the policy goes by it.
    pub feedback: OnceCell<Box<Feedback>>,
}

impl WorkerHost {
    fn new(host: Arc<Host>, node: Arc<ClusterNode>) -> Rc<Self> {
        let stats = host.shared.stats();
        Rc::new(Self {
            host,
            node,
            stats,
            active: Cell::new(0),
            connections: Cell::new(0),
            idle: RefCell::default(),
            released: Notify::new(),
            multiplexed: RefCell::default(),
            connecting: Cell::new(false),
            connecting_for: RefCell::new(None),
            connected: Notify::new(),
            connect_failure: RefCell::default(),
            earlier: RefCell::default(),
            retired: Cell::new(false),
            failed: Cell::new(false),
            last_used: Cell::new(None),
            feedback: OnceCell::new(),
        })
    }

    /// The header that its connections begin with, if there is one.
    pub fn proxy_header(&self) -> Option<&ProxyHeaderSettings> {
        self.node.config.transports().nth(self.host.transport)?.proxy_header()
    }

    /// One request or session more is in flight to it.
    pub fn begin(&self) {
        self.active.set(self.active.get() + 1);
        if counts_over_workers(&self.node.config) {
            self.host.shared.count();
        }
    }

    /// One of those has ended.
    pub fn end(&self) {
        self.active.set(self.active.get().saturating_sub(1));
        if counts_over_workers(&self.node.config) {
            self.host.shared.discount();
        }
    }

    /// No connection of it is used for new requests from now on; idle ones close.
    fn retire(&self) {
        self.retired.set(true);
        self.close_unused();
        for earlier in self.earlier.borrow_mut().drain(..) {
            earlier.retire();
        }
    }

    /// The same endpoint, which new connections find at other addresses or under another name.
    fn moved(self: Rc<Self>, host: Arc<Host>, node: Arc<ClusterNode>) -> Rc<Self> {
        let moved = Self::new(host, node);
        let mut earlier = std::mem::take(&mut *self.earlier.borrow_mut());
        earlier.push(self);
        earlier.retain(|host| host.connections.get() > 0);
        *moved.earlier.borrow_mut() = earlier;
        moved
    }

    /// Closes pooled connections that died, were idle for too long, or have nobody left whom they are for.
    fn sweep(&self, now: Instant, idle_timeout: Option<Duration>) {
        self.idle.borrow_mut().retain(|connection| {
            connection.is_usable() && !connection.is_orphaned() && !connection.expired(now, idle_timeout)
        });
        self.multiplexed.borrow_mut().retain(|connection| connection.keep(now, idle_timeout));
        let mut earlier = self.earlier.borrow_mut();
        if !earlier.is_empty() {
            earlier.iter().for_each(|host| host.sweep(now, idle_timeout));
            earlier.retain(|host| host.connections.get() > 0);
        }
    }

    fn close_unused(&self) {
        self.idle.borrow_mut().clear();
        self.multiplexed.borrow_mut().clear();
    }

    /// Connections to an endpoint that has failed are not kept for when it comes back.
    fn look_at_health(&self) {
        let failed = self.host.shared.flags.has_failed();
        if failed && !self.failed.replace(failed) {
            self.close_unused();
        }
        self.failed.set(failed);
    }
}

impl WorkerClusters {
    /// This worker's view of a cluster of the pinned graph.
    pub fn get(&self, worker: &Worker, node: &Arc<ClusterNode>) -> Rc<WorkerCluster> {
        if let Some(cluster) = self.by_name.borrow().get(&node.config.name) {
            cluster.update(worker, node);
            return Rc::clone(cluster);
        }
        let cluster = Rc::new(WorkerCluster::new(worker, node));
        self.by_name.borrow_mut().insert(Arc::clone(&node.config.name), Rc::clone(&cluster));
        cluster
    }

    /// Forgets clusters that are not among `clusters`; requests in flight keep theirs.
    pub fn retain(&self, clusters: &HashMap<Arc<str>, Arc<ClusterNode>>) {
        self.by_name.borrow_mut().retain(|name, cluster| {
            let keep = clusters.contains_key(name);
            if !keep {
                cluster.retire();
            }
            keep
        });
    }

    /// Closes an idle connection of a cluster if that helps a request of another worker.
    pub fn make_room(&self, name: &str, priority: Priority) {
        if let Some(cluster) = self.by_name.borrow().get(name) {
            make_room(cluster, priority);
        }
    }

    /// Closes pooled connections that died or were idle for too long.
    pub fn sweep(&self, now: Instant) {
        for cluster in self.by_name.borrow().values() {
            cluster.sweep(now);
        }
    }
}

impl WorkerCluster {
    fn new(worker: &Worker, node: &Arc<ClusterNode>) -> Self {
        let stats = worker.process.stats.scope(&names::prefix("cluster", &node.config.stat_name));
        Self {
            stats,
            http2_stats: OnceCell::new(),
            queue_stats: OnceCell::new(),
            choices: ChoiceStats::default(),
            node: RefCell::new(Arc::clone(node)),
            picker: RefCell::new(picker(worker, node.hosts.balance.as_ref())),
            hosts: RefCell::new(vec![None; node.hosts.hosts.len()]),
            destinations: RefCell::default(),
            forwarded: RefCell::default(),
            aggregate: RefCell::default(),
        }
    }

    /// This worker's share of its stats of HTTP/2, which exist once it has a connection of that kind.
    pub fn http2_stats(&self, worker: &Worker) -> &Arc<Http2Stats> {
        self.http2_stats.get_or_init(|| {
            let cluster = names::prefix("cluster", &self.node.borrow().config.stat_name);
            worker.process.stats.scope(&format!("{cluster}http2."))
        })
    }

    /// This worker's share of its stats of waiting, which exist once somebody has waited.
    pub fn queue_stats(&self, worker: &Worker) -> Arc<QueueStats> {
        let stats = self.queue_stats.get_or_init(|| {
            let cluster = names::prefix("cluster", &self.node.borrow().config.stat_name);
            worker.process.stats.scope(&format!("{cluster}queue."))
        });
        Arc::clone(stats)
    }

    /// The node of the graph that this view follows.
    pub fn node(&self) -> Arc<ClusterNode> {
        Arc::clone(&self.node.borrow())
    }

    /// The breaker and thresholds that count for a priority.
    pub fn limits(&self, priority: Priority) -> (Arc<Breaker>, Thresholds) {
        let node = self.node.borrow();
        match priority {
            Priority::Default => (Arc::clone(&node.shared.default), node.config.circuit_breakers.default),
            Priority::High => (Arc::clone(&node.shared.high), node.config.circuit_breakers.high),
        }
    }

    /// Closes one connection that waits for a request and counts among those of `priority`; whether there was one.
    pub fn close_idle(&self, priority: Priority) -> bool {
        let (hosts, destinations, forwarded) =
            (self.hosts.borrow(), self.destinations.borrow(), self.forwarded.borrow());
        let of_names = forwarded.values().map(|forwarded| &forwarded.host);
        let idle = hosts.iter().flatten().chain(destinations.values()).chain(of_names).find_map(|host| {
            let mut idle = host.idle.borrow_mut();
            let position = idle.iter().position(|connection| connection.has_priority(priority))?;
            Some(idle.remove(position))
        });
        drop((hosts, destinations));
        idle.is_some()
    }

    /// Follows a newer node: pools of endpoints that are still there are kept, unless what connections are made of has
    /// changed.
    fn update(&self, worker: &Worker, node: &Arc<ClusterNode>) {
        if Arc::ptr_eq(&self.node.borrow(), node) {
            return;
        }
        let old = self.node.replace(Arc::clone(node));
        let parts = node.config.balancing.close_connections_on_change && !same_hosts(&old.hosts, &node.hosts);
        let same_connections = !parts && Arc::ptr_eq(&old.config, &node.config) && old.tls.same(&node.tls);
        let mut known: HashMap<*const HostShared, Rc<WorkerHost>> = HashMap::new();
        for host in self.hosts.borrow_mut().drain(..).flatten() {
            if same_connections {
                known.insert(Arc::as_ptr(&host.host.shared), host);
            } else {
                host.retire();
            }
        }
        let carried = node.hosts.hosts.iter().map(|host| {
            let kept = known.remove(&Arc::as_ptr(&host.shared))?;
            if kept.host.transport != host.transport {
                kept.retire();
                return None;
            }
            let same_place = kept.host.address == host.address
                && kept.host.additional_addresses == host.additional_addresses
                && kept.host.hostname == host.hostname;
            Some(if same_place { kept } else { kept.moved(Arc::clone(host), Arc::clone(node)) })
        });
        *self.hosts.borrow_mut() = carried.collect();
        for host in known.into_values() {
            host.retire();
        }
        if !same_connections {
            for (_, host) in self.destinations.borrow_mut().drain() {
                host.retire();
            }
            for (_, forwarded) in self.forwarded.borrow_mut().drain() {
                forwarded.host.retire();
            }
        }
        if let Some(gate) = node.shared.gate_if_used() {
            gate.kick();
        }
        // Limits may have been raised.
        for host in self.hosts.borrow().iter().flatten() {
            host.released.notify_waiters();
            host.look_at_health();
        }
        let unchanged = match (&old.hosts.balance, &node.hosts.balance) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            _ => false,
        };
        if !unchanged {
            *self.picker.borrow_mut() = picker(worker, node.hosts.balance.as_ref());
        }
    }

    fn retire(&self) {
        for host in self.hosts.borrow().iter().flatten() {
            host.retire();
        }
        for host in self.destinations.borrow().values() {
            host.retire();
        }
        for forwarded in self.forwarded.borrow().values() {
            forwarded.host.retire();
        }
    }

    /// The cluster that picks, and what it is asked for: the cluster itself, or the member of an aggregate cluster whose turn
    /// it is. `None` if no member has endpoints.
    pub fn delegate<'w>(self: &Rc<Self>, worker: &Worker, mut wanted: Wanted<'w>) -> Option<(Rc<Self>, Wanted<'w>)> {
        let node = self.node();
        let Discovery::Aggregate(names) = &node.config.discovery else { return Some((Rc::clone(self), wanted)) };
        let choice = {
            let graph = worker.graph();
            let mut aggregate = self.aggregate.borrow_mut();
            let aggregate = aggregate.get_or_insert_with(Box::default);
            aggregate.follow(&graph, names, node.config.healthy_panic_threshold);
            aggregate.choose(worker.random.next(), wanted.attempted)?
        };
        wanted.level = Some(choice.level);
        Some((worker.clusters.get(worker, &choice.member), wanted))
    }

    /// The priority of an endpoint in this cluster, also if it is one of a member's; what retries go by.
    pub fn priority_of(&self, host: &WorkerHost) -> u32 {
        match &*self.aggregate.borrow() {
            None => host.host.priority,
            Some(aggregate) => {
                aggregate.level_of(&host.node.config.name, host.host.priority).unwrap_or(Attempted::UNKNOWN)
            }
        }
    }

    /// Picks an endpoint. Those in `tried` are avoided as long as there are others.
    pub fn pick(&self, worker: &Worker, wanted: Wanted<'_>, tried: &[Arc<Host>]) -> Option<Rc<WorkerHost>> {
        let fresh = |_, host: &Host| !tried.iter().any(|tried| Arc::ptr_eq(&tried.shared, &host.shared));
        let picked = self.pick_among(worker, wanted, fresh);
        let picked =
            picked.or_else(|| if tried.is_empty() { None } else { self.pick_among(worker, wanted, |_, _| true) });
        picked.map(|(host, _)| host)
    }

    /// Picks one of those endpoints that are `allowed`.
    pub fn pick_among(
        &self,
        worker: &Worker,
        wanted: Wanted<'_>,
        allowed: impl Fn(HostIndex, &Host) -> bool,
    ) -> Option<(Rc<WorkerHost>, HostIndex)> {
        let node = self.node();
        let position = |index: HostIndex| index.0 as usize;
        let pick = self.draw(worker, wanted, |index| {
            node.hosts.hosts.get(position(index)).is_none_or(|host| !allowed(index, host))
        })?;
        let prefix = || names::prefix("cluster", &node.config.stat_name);
        self.choices.count(&pick, &worker.process.stats, prefix);
        let host = self.host(&node, pick.host)?;
        if pick.panic {
            self.stats.lb_healthy_panic.increment();
            tracing::debug!(target: "upstream", "cluster {}: {} in panic", node.config.name, host.host.address);
        }
        Some((host, pick.host))
    }

    /// The endpoint with this address, if the cluster has it and it is fit for being named.
    pub fn named(&self, address: &str) -> Option<Rc<WorkerHost>> {
        let node = self.node();
        let index = node.hosts.balance.as_ref()?.find(address)?;
        let Host { health, shared, .. } = &**node.hosts.hosts.get(index.0 as usize)?;
        let fit = node.config.balancing.override_status.takes(shared.flags.status(*health));
        if fit { self.host(&node, index) } else { None }
    }

    fn host(&self, node: &Arc<ClusterNode>, index: HostIndex) -> Option<Rc<WorkerHost>> {
        let host = node.hosts.hosts.get(index.0 as usize)?;
        let mut hosts = self.hosts.borrow_mut();
        let slot = hosts.get_mut(index.0 as usize)?;
        Some(Rc::clone(slot.get_or_insert_with(|| WorkerHost::new(Arc::clone(host), Arc::clone(node)))))
    }

    /// The endpoint at this IP and port.
    pub fn known(&self, address: &str) -> Known {
        let Ok(address) = address.parse::<SocketAddr>() else { return Known::Absent };
        let node = self.node();
        let is_there = |host: &Arc<Host>| matches!(&host.address, Address::Ip(known) if *known == address);
        let found = node.hosts.hosts.iter().enumerate().find(|(_, host)| is_there(host));
        let Some((position, host)) = found else { return Known::Absent };
        if !node.config.balancing.override_status.takes(host.shared.flags.status(host.health)) {
            return Known::Unusable;
        }
        let mut hosts = self.hosts.borrow_mut();
        let Some(slot) = hosts.get_mut(position) else { return Known::Absent };
        let host = slot.get_or_insert_with(|| WorkerHost::new(Arc::clone(host), Arc::clone(&node)));
        Known::Usable(Rc::clone(host))
    }

    /// Whether there is an endpoint that could be picked. Counts nothing.
    pub fn has_endpoint(&self, worker: &Worker, wanted: Wanted<'_>) -> bool {
        self.draw(worker, wanted, |_| false).is_some()
    }

    fn draw(&self, worker: &Worker, mut wanted: Wanted<'_>, exclude: impl Fn(HostIndex) -> bool) -> Option<Pick> {
        let mut picker = self.picker.borrow_mut();
        let picker = picker.as_mut()?;
        let (node, hosts) = (self.node.borrow(), self.hosts.borrow());
        let over_workers = counts_over_workers(&node.config);
        let load = WorkerLoad { list: &node.hosts, hosts: &hosts, over_workers, stats: &self.stats };
        if picker.hosts().wants_time() {
            wanted.now = facts::now();
        }
        picker.pick_for(&wanted, &mut || worker.random.next(), &load, exclude)
    }

    /// The endpoint of an original destination, made on first use.
    pub fn destination(&self, address: SocketAddr, now: Instant) -> Rc<WorkerHost> {
        let mut destinations = self.destinations.borrow_mut();
        let make = || self.lone_host(Address::Ip(address), Vec::new(), "".into(), Arc::default());
        let host = destinations.entry(address).or_insert_with(make);
        host.last_used.set(Some(now));
        Rc::clone(host)
    }

    /// The endpoint that a resolved name is. `None` if it has no addresses.
    pub fn forwarded(&self, name: &Arc<CachedName>, all_addresses: bool) -> Option<Rc<WorkerHost>> {
        let mut all = self.forwarded.borrow_mut();
        let resolution = name.resolution();
        if let Some(known) = all.get(&Arc::as_ptr(name)).filter(|known| Arc::ptr_eq(&known.resolution, &resolution)) {
            return Some(Rc::clone(&known.host));
        }
        let Resolution::Resolved(addresses) = &*resolution else { return None };
        let mut addresses = addresses.iter().map(|ip| Address::Ip(SocketAddr::new(*ip, name.port)));
        let first = addresses.next()?;
        let more = if all_addresses { addresses.collect() } else { Vec::new() };
        let host = self.lone_host(first, more, Arc::clone(&name.host), Arc::clone(&name.shared));
        let made = Forwarded { name: Arc::clone(name), resolution, host: Rc::clone(&host) };
        if let Some(before) = all.insert(Arc::as_ptr(name), made) {
            // Connections to the addresses before serve on, as those of a logical DNS cluster do.
            let mut earlier = std::mem::take(&mut *before.host.earlier.borrow_mut());
            earlier.push(before.host);
            earlier.retain(|host| host.connections.get() > 0);
            *host.earlier.borrow_mut() = earlier;
        }
        Some(host)
    }

    /// An endpoint that the graph does not know.
    fn lone_host(
        &self,
        address: Address,
        more: Vec<Address>,
        name: Arc<str>,
        shared: Arc<HostShared>,
    ) -> Rc<WorkerHost> {
        let host = Host {
            address,
            additional_addresses: more,
            hostname: name,
            weight: 1,
            max_requests: None,
            priority: 0,
            locality: Arc::default(),
            health: outrigger_config::cluster::HealthStatus::Unknown,
            metadata: None,
            transport: self.node.borrow().config.transport_of(None, None),
            health_check: None,
            shared,
        };
        WorkerHost::new(Arc::new(host), self.node())
    }

    fn sweep(&self, now: Instant) {
        let idle_timeout = self.node.borrow().config.http.idle_timeout;
        let destinations = self.destinations.borrow();
        let hosts = self.hosts.borrow();
        let mut forwarded = self.forwarded.borrow_mut();
        let of_names = forwarded.values().map(|forwarded| &forwarded.host);
        for host in hosts.iter().flatten().chain(destinations.values()).chain(of_names) {
            host.sweep(now, idle_timeout);
        }
        forwarded.retain(|_, forwarded| {
            let keep = !forwarded.name.is_gone();
            if !keep {
                forwarded.host.retire();
            }
            keep
        });
        drop((hosts, destinations, forwarded));
        // Limits also move with time.
        if let Some(gate) = self.node.borrow().shared.gate_if_used() {
            gate.kick();
        }
        if let Discovery::OriginalDst(OriginalDstOptions { cleanup_interval, .. }) = self.node.borrow().config.discovery
        {
            self.destinations.borrow_mut().retain(|_, host| {
                let unused = host.last_used.get().is_none_or(|at| now.saturating_duration_since(at) > cleanup_interval);
                host.connections.get() > 0 || host.active.get() > 0 || !unused
            });
        }
    }
}

/// Whether the policy goes by the requests of all workers, as in Envoy. Others need not pay for counting them.
fn counts_over_workers(config: &Cluster) -> bool {
    matches!(config.load_balancing, LoadBalancing::LeastRequest { .. } | LoadBalancing::PeakEwma(_))
}

/// How busy endpoints are, and what this worker has measured of them.
struct WorkerLoad<'a> {
    list: &'a HostList,
    over_workers: bool,
    hosts: &'a [Option<Rc<WorkerHost>>],
    stats: &'a ClusterStats,
}

impl WorkerLoad<'_> {
    fn feedback(&self, host: HostIndex) -> Option<&Feedback> {
        Some(&**self.hosts.get(host.0 as usize)?.as_ref()?.feedback.get()?)
    }
}

impl Load for WorkerLoad<'_> {
    fn active_requests(&self, host: HostIndex) -> u32 {
        if self.over_workers {
            return self.list.hosts.get(host.0 as usize).map_or(0, |host| host.shared.active());
        }
        self.hosts.get(host.0 as usize).and_then(Option::as_ref).map_or(0, |host| host.active.get())
    }

    fn all_active_requests(&self) -> Option<u32> {
        u32::try_from(self.stats.upstream_rq_active.value()).ok()
    }

    fn latency(&self, host: HostIndex) -> Latency {
        self.feedback(host).map_or_else(Latency::default, |feedback| feedback.latency.get())
    }

    fn reported(&self, host: HostIndex) -> ReportedWeight {
        let host = self.list.hosts.get(host.0 as usize);
        host.map_or_else(ReportedWeight::default, |host| host.shared.reported())
    }

    fn is_unreachable(&self, host: HostIndex, now: u64) -> bool {
        self.feedback(host).is_some_and(|feedback| feedback.is_unreachable(now))
    }
}

fn picker(worker: &Worker, set: Option<&Arc<HostSet>>) -> Option<Picker> {
    set.map(|set| Picker::new(Arc::clone(set), worker.random.next()))
}
