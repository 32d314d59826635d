//! The immutable configuration graph that workers serve from.
//!
//! Owns the nodes and the one atomic pointer to the current graph. Unchanged nodes are shared between generations.
//! Never compiles resources (see `outrigger-config`) and never serves traffic.

mod answers;
mod balance_stats;
mod breaker_limits;
mod breaker_stats;
mod building;
pub mod compile;
pub mod coverage;
mod demanded_clusters;
mod demands;
mod dns_caches;
mod drains;
mod endpoint_health;
pub mod facts;
mod first_checks;
mod handle;
pub mod history;
pub(crate) mod hosts;
mod identity;
pub mod journal;
mod lingering;
mod maintenance;
mod manager;
mod need;
mod offers;
pub mod overrides;
mod publication;
mod resources;
pub mod runtime_layers;
mod scopes;
pub mod secrets;
mod sockets;
mod sources;
mod stale;
mod stats;
mod targets;
#[cfg(test)]
mod tests;
pub(crate) mod tls_inputs;
mod transports;
mod unknown_fields;
mod validate;
mod virtual_hosts;
mod warming;
mod xds_handler;
mod zone;

pub use transports::Transports;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use outrigger_config::bootstrap::RuntimeValues;
use outrigger_config::cluster::Cluster;
use outrigger_config::extension::Extension;
use outrigger_config::http::{HttpConnectionManager, HttpFilter, HttpFilterConfig};
use outrigger_config::listener::{FilterChain, Listener, ListenerFilter, ListenerFilterKind, TrafficDirection};
use outrigger_config::network::OwnAnswer;
use outrigger_config::route::Priority;
use outrigger_config::tcp::TcpProxy;
use outrigger_config::units::{Fraction, RuntimeFraction, RuntimeNumber};
use outrigger_policy::balance::HostSet;
use outrigger_policy::breaker::Breaker;
use outrigger_policy::filter_chain::FilterChainIndex;
use outrigger_policy::route::{RouteTable, RuntimeView, ScopeTable, fraction_holds};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

pub use breaker_limits::BreakerLimits;
pub use demands::{Demands, Wanted};
pub use drains::{DrainRequest, DrainScope};
pub use handle::{ManagerHandle, Readiness};
pub use hosts::{levels, membership, same_hosts};
pub use maintenance::refused_for_maintenance;
pub use manager::{GraphManager, ManagerOptions};
pub use validate::validate;

use self::secrets::GenericSecrets;
use crate::accesslog::AccessLogger;
use crate::health::OutlierState;
use crate::istio::metrics::Reporter;
use crate::network::NetworkFilter;
use crate::tls::ServerTls;
use crate::trace::Tracer;
use crate::upstream::gate::Gate;
use crate::upstream::host::Host;
use crate::upstream::lone_hosts::LoneHosts;
use crate::upstream::vacancy::Vacancy;

/// Everything that traffic depends on, of one generation.
#[derive(Default)]
pub struct Graph {
    /// Grows by one with each publish.
    pub generation: u64,
    /// Active listeners by name.
    pub listeners: HashMap<Arc<str>, Arc<ListenerNode>>,
    /// Active clusters by name.
    pub clusters: HashMap<Arc<str>, Arc<ClusterNode>>,
    /// Discovered route configurations by name.
    pub routes: HashMap<Arc<str>, Arc<RouteTable>>,
    /// Discovered scopes by where they come from.
    pub scopes: HashMap<Arc<str>, Arc<ScopeTable<ScopeTarget>>>,
    /// Secrets that filters use.
    pub secrets: GenericSecrets,
    /// Name of the cluster of the proxies like this one.
    pub local_cluster: Option<Arc<str>>,
    /// All runtime layers merged.
    pub runtime: Arc<RuntimeSnapshot>,
}

/// A listener with everything it needs.
pub struct ListenerNode {
    /// As configured.
    pub config: Arc<Listener>,
    /// Chooses among `config.filter_chains`.
    pub index: FilterChainIndex,
    /// In the order of `config.filter_chains`, the default chain last if there is one.
    pub chains: Vec<Arc<ChainNode>>,
    /// For connections that match no chain.
    pub access_logs: Vec<Arc<AccessLogger>>,
    /// What was discovered in the place of each listener filter; empty if none of them is discovered.
    pub discovered: Vec<Option<Arc<Extension>>>,
}

impl ListenerNode {
    /// The listener filters in order, as they hold; `None` for one that is missing.
    pub fn listener_filters(&self) -> impl Iterator<Item = (&ListenerFilter, Option<&ListenerFilterKind>)> {
        self.config.listener_filters.iter().enumerate().map(|(position, filter)| {
            let ListenerFilterKind::Discovered(wanted) = &filter.kind else { return (filter, Some(&filter.kind)) };
            let found = self.discovered.get(position).and_then(Option::as_deref);
            (filter, found.and_then(|found| found.listener.as_ref()).or(wanted.default.as_ref()))
        })
    }

    /// The node of a chain that `index` chose.
    pub fn chain(&self, chosen: &Arc<FilterChain>) -> Option<&Arc<ChainNode>> {
        self.chains.iter().find(|chain| Arc::ptr_eq(&chain.config, chosen))
    }
}

/// A filter chain with everything it needs. Connections hold on to theirs.
pub struct ChainNode {
    /// As configured.
    pub config: Arc<FilterChain>,
    /// Set when TLS is terminated.
    pub tls: Option<Arc<ServerTls>>,
    /// Asked before the application gets a connection.
    pub filters: Arc<[NetworkFilter]>,
    /// What the chain does.
    pub application: Application,
    /// Shared by all generations of the same chain (by content hash), so that drains reach every connection.
    pub draining: Arc<Draining>,
}

/// What a filter chain does with a connection.
pub enum Application {
    /// HTTP.
    Http(Arc<HttpNode>),
    /// Bytes to a cluster.
    Tcp(Arc<TcpNode>),
    /// An answer of our own.
    OwnAnswer(OwnAnswer),
    /// One of its filters has not been discovered: connections are closed.
    Missing,
}

/// An HTTP connection manager with everything it needs.
pub struct HttpNode {
    /// As configured.
    pub config: Arc<HttpConnectionManager>,
    /// Where routes are.
    pub routes: Routes,
    /// For each request.
    pub access_logs: Vec<Arc<AccessLogger>>,
    /// For each try.
    pub upstream_logs: Vec<Arc<AccessLogger>>,
    /// The listener that it is part of.
    pub listener: Arc<str>,
    /// Which way its traffic goes.
    pub direction: TrafficDirection,
    /// Where its spans go; `None` without tracing, or without a provider.
    pub tracer: Option<Arc<Tracer>>,
    /// What was discovered in the place of each filter; empty if none of them is discovered.
    pub discovered: Vec<Option<Arc<Extension>>>,
}

impl HttpNode {
    /// The filters in order. One that is missing stays [`HttpFilterConfig::Discovered`].
    pub fn filters(&self) -> impl Iterator<Item = (&HttpFilter, &HttpFilterConfig)> {
        self.known(0, &self.config.filters)
    }

    /// The protocols of upgrades that have filters of their own, with these.
    pub fn upgrade_filters(
        &self,
    ) -> impl Iterator<Item = (&str, impl Iterator<Item = (&HttpFilter, &HttpFilterConfig)>)> {
        let mut first = self.config.filters.len();
        let own = self.config.upgrades.iter().filter(|upgrade| !upgrade.filters.is_empty());
        own.map(move |upgrade| {
            let filters = self.known(first, &upgrade.filters);
            first += upgrade.filters.len();
            (&*upgrade.protocol, filters)
        })
    }

    /// These of all filters, the first of which has the position `first`.
    fn known<'n>(
        &'n self,
        first: usize,
        filters: &'n [HttpFilter],
    ) -> impl Iterator<Item = (&'n HttpFilter, &'n HttpFilterConfig)> {
        filters.iter().zip(first..).map(|(filter, position)| {
            let HttpFilterConfig::Discovered(wanted) = &filter.config else { return (filter, &filter.config) };
            let found = self.discovered.get(position).and_then(Option::as_deref);
            let found = found.and_then(|found| found.http.as_ref()).or(wanted.default.as_ref());
            (filter, found.unwrap_or(&filter.config))
        })
    }

    /// The like one in `graph`, whose discovered filters may be others. `None` if it is gone, or discovers nothing.
    pub fn current<'g>(&self, graph: &'g Graph) -> Option<&'g Arc<HttpNode>> {
        if self.discovered.is_empty() {
            return None;
        }
        let mut chains = graph.listeners.get(&self.listener)?.chains.iter();
        chains.find_map(|chain| match &chain.application {
            Application::Http(node) if Arc::ptr_eq(&node.config, &self.config) => Some(node),
            _ => None,
        })
    }
}

/// Where the routes of a connection manager are.
pub enum Routes {
    /// Here.
    Inline(Arc<RouteTable>),
    /// In [`Graph::routes`], by this name.
    Discovered(Arc<str>),
    /// Where the scope of a request leads; its key is made as the configuration says.
    Scoped(ScopePlace),
}

/// Where scopes are.
#[derive(Clone, Debug)]
pub enum ScopePlace {
    /// Here.
    Inline(Arc<ScopeTable<ScopeTarget>>),
    /// In [`Graph::scopes`], by this name.
    Discovered(Arc<str>),
}

/// Where a scope leads.
#[derive(Debug)]
pub enum ScopeTarget {
    /// To these routes.
    Inline(Arc<RouteTable>),
    /// To those in [`Graph::routes`] of this name.
    Discovered(Arc<str>),
}

impl ScopeTarget {
    fn share(&self) -> Self {
        match self {
            Self::Inline(table) => Self::Inline(Arc::clone(table)),
            Self::Discovered(name) => Self::Discovered(Arc::clone(name)),
        }
    }
}

/// A TCP proxy with everything it needs.
pub struct TcpNode {
    /// As configured.
    pub config: Arc<TcpProxy>,
    /// For each connection.
    pub access_logs: Vec<Arc<AccessLogger>>,
    /// Tells a mesh about its connections.
    pub reporter: Option<Reporter>,
}

/// A cluster with its endpoints.
pub struct ClusterNode {
    /// As configured.
    pub config: Arc<Cluster>,
    /// All endpoints of all priorities.
    pub hosts: Arc<HostList>,
    /// How endpoints are spoken to by TLS.
    pub tls: Transports,
    /// What survives swaps.
    pub shared: Arc<ClusterShared>,
    /// Set when outliers are looked for.
    pub outlier: Option<Arc<OutlierState>>,
}

/// The endpoints of a cluster.
#[derive(Debug, Default)]
pub struct HostList {
    /// In the order of their localities.
    pub hosts: Vec<Arc<Host>>,
    /// The same hosts by the same positions, ready to be picked from; `None` where the cluster knows its hosts without
    /// choosing (original destination).
    pub balance: Option<Arc<HostSet>>,
    /// The share of requests that no endpoint gets, so that they recover.
    pub drop_overload: Option<Fraction>,
}

/// State of a cluster that survives graph swaps.
#[derive(Debug, Default)]
pub struct ClusterShared {
    /// Usage over all workers by requests of default priority.
    pub default: Arc<Breaker>,
    /// Usage over all workers by requests of high priority.
    pub high: Arc<Breaker>,
    default_vacancy: Vacancy,
    high_vacancy: Vacancy,
    /// Tells sessions that want to know that the health of some endpoint has changed.
    pub health_changed: Arc<Notify>,
    /// There was a connection for traffic.
    pub used: AtomicBool,
    gate: OnceLock<Arc<Gate>>,
    lone_hosts: OnceLock<Box<LoneHosts>>,
}

impl ClusterShared {
    /// Where requests are counted and wait, if the cluster limits them. Made on first use.
    pub fn gate(&self) -> Arc<Gate> {
        Arc::clone(self.gate.get_or_init(Arc::default))
    }

    /// As [`Self::gate`], unless no request has come to it.
    pub fn gate_if_used(&self) -> Option<&Arc<Gate>> {
        self.gate.get()
    }

    /// Endpoints that the graph does not know.
    pub fn lone_hosts(&self) -> &LoneHosts {
        self.lone_hosts.get_or_init(Box::default)
    }

    /// Who waits for a connection of this priority.
    pub fn vacancy(&self, priority: Priority) -> &Vacancy {
        match priority {
            Priority::Default => &self.default_vacancy,
            Priority::High => &self.high_vacancy,
        }
    }
}

/// Tells the connections of a filter chain that their time is coming. Written by the control thread, which then wakes the
/// workers by [`crate::worker::Command::CheckDrains`].
#[derive(Debug, Default)]
pub struct Draining {
    phase: AtomicU8,
    /// Connections of less patience than this are asked to end.
    asked: AtomicU32,
}

/// When in a gradual drain a connection is asked to end: evenly distributed, so that as many end in each part of the time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Patience(u16);

impl Patience {
    /// From an evenly distributed `random`.
    pub fn new(random: u64) -> Self {
        // The upper bits of a generator are its best.
        Self((random >> 48) as u16)
    }
}

impl Draining {
    /// From now on all connections tell their clients to go elsewhere: with their next response, or a GOAWAY.
    pub fn begin(&self) {
        self.begin_with(1, 1);
    }

    /// From now on `part` of `whole` connections do so; it never becomes fewer.
    pub fn begin_with(&self, part: u32, whole: u32) {
        let asked = u64::from(part) * (u64::from(u16::MAX) + 1) / u64::from(whole.max(1));
        self.asked.fetch_max(u32::try_from(asked).unwrap_or(u32::MAX), Ordering::Relaxed);
        self.phase.fetch_max(1, Ordering::Relaxed);
    }

    /// From now on idle connections close without waiting for another request: the process is about to end. Until then
    /// they stay, since a request may be on its way.
    pub fn leave(&self) {
        self.begin();
        self.phase.fetch_max(2, Ordering::Relaxed);
    }

    /// From now on connections close whatever they are doing.
    pub fn expire(&self) {
        self.begin();
        self.phase.fetch_max(3, Ordering::Relaxed);
    }

    /// Whether draining has begun.
    pub fn has_begun(&self) -> bool {
        self.phase.load(Ordering::Relaxed) >= 1
    }

    /// Whether a connection of this patience is asked to end.
    pub fn asks(&self, patience: Patience) -> bool {
        u32::from(patience.0) < self.asked.load(Ordering::Relaxed)
    }

    /// Whether idle connections close now.
    pub fn ends_idle(&self) -> bool {
        self.phase.load(Ordering::Relaxed) >= 2
    }

    /// Whether the time is up.
    pub fn has_expired(&self) -> bool {
        self.phase.load(Ordering::Relaxed) >= 3
    }
}

/// Runtime values of all layers, the last layer winning.
#[derive(Debug, Default)]
pub struct RuntimeSnapshot {
    /// Merged values.
    pub values: RuntimeValues,
    /// Names and values of each layer, for the admin port.
    pub layers: Vec<(Arc<str>, RuntimeValues)>,
}

impl RuntimeSnapshot {
    /// The value of a flag in force.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        self.values.get(key).and_then(|value| value.flag).unwrap_or(default)
    }

    /// The number that stands in the runtime, or else what is configured.
    pub fn number(&self, number: &RuntimeNumber) -> f64 {
        let RuntimeNumber { default, runtime_key } = number;
        if runtime_key.is_empty() {
            return *default;
        }
        self.values.get(runtime_key.as_str()).and_then(|value| value.number).unwrap_or(*default)
    }

    /// The value of a key as a whole number; `None` for what is none, or is below zero.
    pub fn integer(&self, key: &str) -> Option<u64> {
        let number = self.values.get(key)?.number.filter(|number| *number >= 0.0)?;
        Some(number as u64)
    }
}

impl RuntimeSnapshot {
    /// Whether a share, or what the runtime has in its place, holds for an evenly distributed `random`.
    pub fn holds(&self, fraction: &RuntimeFraction, random: u64) -> bool {
        fraction_holds(fraction, random, self)
    }
}

impl RuntimeView for RuntimeSnapshot {
    fn fraction(&self, key: &str) -> Option<Fraction> {
        let value = self.values.get(key)?;
        if value.fraction.is_some() {
            return value.fraction;
        }
        // Whole numbers are in percent.
        value.number.filter(|number| *number >= 0.0).and_then(|number| Fraction::new(number.min(1e9) as u32, 100))
    }
}

/// The atomic pointer to the current graph, and its generation as a cheap question.
pub struct GraphCell {
    current: ArcSwap<Graph>,
    generation: AtomicU64,
    published: Notify,
}

impl GraphCell {
    /// Holds an empty graph of generation 0.
    pub fn new() -> Self {
        Self {
            current: ArcSwap::from_pointee(Graph::default()),
            generation: AtomicU64::new(0),
            published: Notify::new(),
        }
    }

    /// Replaces the graph; its generation must be higher than the one before.
    pub fn publish(&self, graph: Arc<Graph>) {
        let generation = graph.generation;
        self.current.store(graph);
        // After the pointer, so that whoever sees the number finds the graph.
        self.generation.store(generation, Ordering::Release);
        self.published.notify_waiters();
    }

    /// Returns when another graph was published after this future was enabled or first polled.
    pub fn published(&self) -> Notified<'_> {
        self.published.notified()
    }

    /// The current generation.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The current graph.
    pub fn load(&self) -> Arc<Graph> {
        self.current.load_full()
    }
}

impl Default for GraphCell {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod draining_tests {
    use super::*;

    #[test]
    fn a_drain_asks_the_impatient_first_and_everybody_in_the_end() {
        let draining = Draining::default();
        let connections = [0, 1 << 62, 1 << 63, u64::MAX].map(Patience::new);
        let asked = || connections.iter().filter(|patience| draining.asks(**patience)).count();
        assert_eq!((draining.has_begun(), asked()), (false, 0));
        draining.begin_with(0, 4);
        assert_eq!((draining.has_begun(), asked()), (true, 0));
        for (part, count) in [(1, 1), (2, 2), (1, 2), (3, 3), (4, 4)] {
            draining.begin_with(part, 4);
            assert_eq!(asked(), count);
        }
        assert!(!draining.has_expired());
        let at_once = Draining::default();
        at_once.begin();
        assert!(connections.iter().all(|patience| at_once.asks(*patience)));
    }
}
