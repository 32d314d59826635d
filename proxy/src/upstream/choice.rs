//! How a worker's view of a cluster chooses endpoints.
//!
//! Owns the questions to the balancer, what it is told of loads, and endpoints that were chosen in advance. Never decides by
//! itself which endpoint is best (see `outrigger_policy::balance`), and never connects.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::address::Address;
use outrigger_config::cluster::{Discovery, LoadBalancing};
use outrigger_policy::balance::{Attempted, HostIndex, HostSet, Latency, Load, Pick, Picker, ReportedWeight, Wanted};

use super::avoid::Avoid;
use super::clusters::WorkerCluster;
use super::feedback::Feedback;
use super::host::Host;
use super::stats::ClusterStats;
use super::worker_host::{WorkerHost, counts_over_workers};
use crate::graph::{ClusterNode, HostList, facts};
use crate::stats::names;
use crate::worker::Worker;

/// What there is at an address that a request asks for.
pub enum Known {
    /// An endpoint that may be used.
    Usable(Rc<WorkerHost>),
    /// An endpoint that is not healthy.
    Unusable,
    /// None.
    Absent,
}

/// Endpoints that the next requests will go to, in their order: chosen in advance, so that connections can be made.
#[derive(Debug, Default)]
#[expect(clippy::box_collection, reason = "most clusters foresee nothing, and pay for a pointer only")]
pub(super) struct Foreseen(RefCell<Option<Box<VecDeque<Pick>>>>);

impl Foreseen {
    /// The first, for a request that any endpoint will do for. It stays if it is excluded.
    fn take(&self, wanted: &Wanted<'_>, exclude: impl Fn(HostIndex) -> bool) -> Option<Pick> {
        let mut picks = self.0.borrow_mut();
        let picks = picks.as_mut()?;
        let Wanted { hash: None, metadata: None, level: None, attempted: None, now: _ } = wanted else { return None };
        if exclude(picks.front()?.host) { None } else { picks.pop_front() }
    }

    fn count(&self) -> usize {
        self.0.borrow().as_ref().map_or(0, |picks| picks.len())
    }

    fn push(&self, pick: Pick) {
        self.0.borrow_mut().get_or_insert_default().push_back(pick);
    }

    /// Nothing is foreseen any more: endpoints have changed.
    pub(super) fn forget(&self) {
        *self.0.borrow_mut() = None;
    }
}

impl WorkerCluster {
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

    /// Picks an endpoint.
    pub fn pick(&self, worker: &Worker, wanted: Wanted<'_>, avoid: Avoid<'_>) -> Option<Rc<WorkerHost>> {
        let picked = self.pick_among(worker, wanted, |_, host| !avoid.has(host));
        let picked =
            picked.or_else(|| if avoid.is_empty() { None } else { self.pick_among(worker, wanted, |_, _| true) });
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
        let exclude = |index| node.hosts.hosts.get(position(index)).is_none_or(|host| !allowed(index, host));
        let pick = self.foreseen.take(&wanted, exclude).or_else(|| self.draw(worker, wanted, exclude))?;
        let prefix = || names::prefix("cluster", &node.config.stat_name);
        self.choices.count(&pick, &worker.process.stats, prefix);
        let host = self.host(&node, pick.host)?;
        if pick.panic {
            self.stats.lb_healthy_panic.increment();
            tracing::debug!(target: "upstream", "cluster {}: {} in panic", node.config.name, host.host.address);
        }
        Some((host, pick.host))
    }

    /// The endpoint that a request will go to which comes after those that are foreseen already; foreseen from now on, too.
    /// Never more than there are endpoints, and `None` where the policy cannot know: where it goes by loads or by what a
    /// request says.
    pub(super) fn foresee(&self, worker: &Worker) -> Option<Rc<WorkerHost>> {
        let node = self.node();
        let config = &node.config;
        let goes_in_turn = matches!(config.load_balancing, LoadBalancing::RoundRobin | LoadBalancing::Random);
        if !goes_in_turn || config.balancing.subsets.is_some() || self.foreseen.count() >= node.hosts.hosts.len() {
            return None;
        }
        let pick = self.draw(worker, Wanted::default(), |_| false)?;
        self.foreseen.push(pick);
        self.host(&node, pick.host)
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
        u32::try_from(self.stats.upstream_rq_active.value() + self.stats.upstream_rq_pending_active.value()).ok()
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

/// What picks from `set`, if there is anything to pick from.
pub(super) fn picker(worker: &Worker, set: Option<&Arc<HostSet>>) -> Option<Picker> {
    set.map(|set| Picker::new(Arc::clone(set), worker.random.next()))
}
