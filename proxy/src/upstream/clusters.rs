//! A worker's view of clusters and their endpoints.
//!
//! Owns the balancer state, the pools and the stats of one worker, and carries them over graph swaps. Never opens
//! connections (see `pool`).

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use outrigger_config::cluster::{Discovery, OriginalDstOptions, RetryBudget, Thresholds};
use outrigger_config::route::Priority;
use outrigger_config::units::Fraction;
use outrigger_policy::balance::Picker;
use outrigger_policy::breaker::Breaker;

use super::aggregate::Aggregate;
use super::choice::{Foreseen, picker};
use super::choice_stats::ChoiceStats;
use super::dns_cache::CachedName;
use super::host::HostShared;
use super::lone_hosts::Forwarded;
use super::response_stats::Origins;
use super::stats::{ClusterStats, QueueStats};
use super::vacancy::make_room;
use super::worker_host::WorkerHost;
use crate::graph::{BreakerLimits, ClusterNode, Graph, RuntimeSnapshot, facts, refused_for_maintenance, same_hosts};
use crate::http::h2::stats::Http2Stats;
use crate::stats::names;
use crate::worker::Worker;

/// The clusters that a worker has used.
#[derive(Default)]
pub struct WorkerClusters {
    by_name: RefCell<HashMap<Arc<str>, Rc<WorkerCluster>>>,
    /// The generation of the graph that all of them were last brought up to date with.
    followed: Cell<u64>,
}

/// One cluster on one worker.
pub struct WorkerCluster {
    /// This worker's share of its stats.
    pub stats: Arc<ClusterStats>,
    http2_stats: OnceCell<Arc<Http2Stats>>,
    queue_stats: OnceCell<Arc<QueueStats>>,
    pub(super) choices: ChoiceStats,
    pub(super) origins: Origins,
    pub(super) node: RefCell<Arc<ClusterNode>>,
    /// The thresholds of its circuit breakers.
    limits: Cell<BreakerLimits>,
    /// The share of its requests that the runtime refuses.
    maintenance: Cell<Option<Fraction>>,
    /// The runtime that these two follow; none if they are to be looked up again.
    runtime: RefCell<Option<Arc<RuntimeSnapshot>>>,
    pub(super) picker: RefCell<Option<Picker>>,
    /// Where the next requests will go, where connections are made in advance.
    pub(super) foreseen: Foreseen,
    pub(super) hosts: RefCell<Vec<Option<Rc<WorkerHost>>>>,
    /// Hosts of original destinations.
    pub(super) destinations: RefCell<HashMap<SocketAddr, Rc<WorkerHost>>>,
    /// Hosts of resolved names, for dynamic forward proxies.
    pub(super) forwarded: RefCell<HashMap<*const CachedName, Forwarded>>,
    /// Where the choice among member clusters stands, for aggregate clusters.
    pub(super) aggregate: RefCell<Option<Box<Aggregate>>>,
}

/// Where a try goes: an endpoint, and the cluster whose settings, limits and stats hold.
#[derive(Clone)]
pub struct Target {
    /// The cluster itself; a member of it if it is an aggregate cluster.
    pub cluster: Rc<WorkerCluster>,
    /// One of its endpoints.
    pub host: Rc<WorkerHost>,
}

impl WorkerClusters {
    /// This worker's view of a cluster of the pinned graph.
    pub fn get(&self, worker: &Worker, node: &Arc<ClusterNode>) -> Rc<WorkerCluster> {
        if let Some(cluster) = self.by_name.borrow().get(&node.config.name) {
            cluster.update(worker, node);
            cluster.follow_runtime(&worker.seen_graph().runtime);
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

    /// Brings all of them up to date: for some no request may come that would.
    pub fn follow(&self, worker: &Worker, graph: &Graph) {
        if self.followed.replace(graph.generation) == graph.generation {
            return;
        }
        // What an update ends may look at the graph, which may forget clusters.
        let known: Vec<Rc<WorkerCluster>> = self.by_name.borrow().values().map(Rc::clone).collect();
        for cluster in known {
            if let Some(node) = graph.clusters.get(&cluster.node().config.name) {
                cluster.update(worker, node);
            }
        }
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
        let runtime = Arc::clone(&worker.seen_graph().runtime);
        Self {
            stats,
            limits: Cell::new(BreakerLimits::of(&node.config, &runtime)),
            maintenance: Cell::new(refused_for_maintenance(&node.config.name, &runtime)),
            runtime: RefCell::new(Some(runtime)),
            http2_stats: OnceCell::new(),
            queue_stats: OnceCell::new(),
            choices: ChoiceStats::default(),
            origins: Origins::default(),
            node: RefCell::new(Arc::clone(node)),
            picker: RefCell::new(picker(worker, node.hosts.balance.as_ref())),
            foreseen: Foreseen::default(),
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
            Priority::Default => (Arc::clone(&node.shared.default), self.limits.get().default),
            Priority::High => (Arc::clone(&node.shared.high), self.limits.get().high),
        }
    }

    /// The share of its requests that are refused for maintenance.
    pub fn maintenance(&self) -> Option<Fraction> {
        self.maintenance.get()
    }

    fn follow_runtime(&self, runtime: &Arc<RuntimeSnapshot>) {
        let mut followed = self.runtime.borrow_mut();
        if !followed.as_ref().is_some_and(|followed| Arc::ptr_eq(followed, runtime)) {
            let node = self.node.borrow();
            self.limits.set(BreakerLimits::of(&node.config, runtime));
            self.maintenance.set(refused_for_maintenance(&node.config.name, runtime));
            *followed = Some(Arc::clone(runtime));
        }
    }

    /// A try begins, for retry budgets that go by these.
    pub fn began(&self, priority: Priority) {
        let node = self.node.borrow();
        let limits = self.limits.get();
        let (breaker, thresholds) = match priority {
            Priority::Default => (&node.shared.default, limits.default),
            Priority::High => (&node.shared.high, limits.high),
        };
        if let Some(RetryBudget { interval: Some(interval), .. }) = thresholds.retry_budget {
            breaker.began(interval, facts::now());
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
        *self.runtime.borrow_mut() = None;
        let parts = node.config.balancing.close_connections_on_change && !same_hosts(&old.hosts, &node.hosts);
        let same_connections = !parts && Arc::ptr_eq(&old.config, &node.config) && old.tls.same(&node.tls);
        let limit = node.config.retire_within.filter(|_| !old.tls.same_trust(&node.tls));
        let retire = |host: &Rc<WorkerHost>| match limit {
            Some(limit) => host.retire_within(limit),
            None => host.retire(),
        };
        let mut known: HashMap<*const HostShared, Rc<WorkerHost>> = HashMap::new();
        for host in self.hosts.borrow_mut().drain(..).flatten() {
            if same_connections {
                known.insert(Arc::as_ptr(&host.host.shared), host);
            } else {
                retire(&host);
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
                && kept.host.hostname == host.hostname
                && kept.host.http_proxy == host.http_proxy;
            Some(if same_place { kept } else { kept.moved(Arc::clone(host), Arc::clone(node)) })
        });
        *self.hosts.borrow_mut() = carried.collect();
        for host in known.into_values() {
            host.retire();
        }
        if !same_connections {
            for (_, host) in self.destinations.borrow_mut().drain() {
                retire(&host);
            }
            for (_, forwarded) in self.forwarded.borrow_mut().drain() {
                retire(&forwarded.host);
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
            self.foreseen.forget();
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
