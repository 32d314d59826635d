//! From configuration with everything it refers to, to nodes of the graph.
//!
//! Owns what is built (TLS contexts, route tables, access loggers) and what is taken over unchanged from the generation
//! before. Never decides when a node is published.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use outrigger_config::accesslog::AccessLog;
use outrigger_config::cluster::{Assignment, Cluster, Discovery};
use outrigger_config::extension::Extension;
use outrigger_config::http::{HttpConnectionManager, HttpFilterConfig, RouteSource, ScopeSource, ScopedRoutes};
use outrigger_config::listener::{
    DownstreamTransport, FilterChain, Listener, ListenerFilterKind, NetworkFilterConfig, TrafficDirection,
};
use outrigger_config::source::ConfigSource;
use outrigger_config::tracing::HttpTracing;
use outrigger_policy::filter_chain::FilterChainIndex;
use outrigger_policy::route::{RouteTable, ScopeKey, ScopeTable};

use super::facts;
use super::hosts::HostInputs;
use super::need::{self, Need, WantedFilter};
use super::secrets::check_reference;
use super::tls_inputs::{FindSecret, SecretError, TlsInputs};
use super::transports::TransportInputs;
use super::zone::LocalZones;
use super::{
    Application, ChainNode, ClusterNode, ClusterShared, Draining, HostList, HttpNode, ListenerNode, Routes, ScopePlace,
    TcpNode, scopes,
};
use crate::accesslog::{AccessLogError, AccessLogger};
use crate::health::OutlierState;
use crate::istio::metrics::Reporter;
use crate::network::NetworkFilter;
use crate::tls::TlsError;
use crate::trace::Tracer;

/// Why a node cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// A secret is missing or of the wrong kind.
    #[error("{place}: {source}")]
    Secret {
        /// The field.
        place: String,
        /// Why.
        source: SecretError,
    },
    /// A TLS context cannot be built.
    #[error("{place}: {source}")]
    Tls {
        /// The field.
        place: String,
        /// Why.
        source: TlsError,
    },
    /// An access log cannot be opened.
    #[error("{place}: {source}")]
    AccessLog {
        /// The field.
        place: String,
        /// Why.
        source: AccessLogError,
    },
    /// Two filter chains match the same connections.
    #[error("filter_chains[{0}] and filter_chains[{1}] match the same connections equally well")]
    Overlap(usize, usize),
}

/// Opens an access logger.
pub type OpenLog<'a> = dyn Fn(&Arc<AccessLog>) -> Result<Arc<AccessLogger>, AccessLogError> + 'a;

/// Discovered filters of a listener, by need.
pub type Extensions = HashMap<Need, Arc<Extension>>;

/// What compiling may look up.
pub struct Surroundings<'a> {
    /// Secrets.
    pub secrets: &'a FindSecret<'a>,
    /// Access loggers.
    pub open_log: &'a OpenLog<'a>,
    /// Makes tracers.
    pub open_tracer: &'a dyn Fn(&HttpTracing) -> Option<Arc<Tracer>>,
    /// The need that a discovered filter is.
    pub extension_need: &'a dyn Fn(WantedFilter<'_>) -> Option<Need>,
    /// The name of a source of scopes in the graph.
    pub scope_source: &'a dyn Fn(&ConfigSource) -> Arc<str>,
}

impl Surroundings<'_> {
    /// What was discovered for a filter.
    fn extension(&self, wanted: WantedFilter<'_>, extensions: &Extensions) -> Option<Arc<Extension>> {
        let need = (self.extension_need)(wanted)?;
        extensions.get(&need).filter(|found| wanted.accepts(found)).map(Arc::clone)
    }
}

/// A listener's node with what it was made from.
#[derive(Clone)]
pub struct ListenerBuild {
    /// The node.
    pub node: Arc<ListenerNode>,
    inputs: Vec<ChainInputs>,
}

impl ListenerBuild {
    /// How many discovered secrets its TLS contexts have newly taken up since `old`.
    pub fn secret_updates(&self, old: Option<&Self>) -> u64 {
        let updates = self.node.chains.iter().zip(&self.inputs).filter_map(|(chain, inputs)| {
            let mut known = old.into_iter().flat_map(|old| old.node.chains.iter().zip(&old.inputs));
            let before = known.find(|(other, _)| Arc::ptr_eq(&other.config, &chain.config));
            let before = before.and_then(|(_, before)| before.tls.as_ref()?.as_ref());
            Some(inputs.tls.as_ref()?.as_ref()?.updates_since(before))
        });
        updates.sum()
    }

    /// Replaces the chains that drain by like ones that do not.
    pub fn renew_drains(&mut self) {
        let ListenerNode { config, index: _, chains, access_logs, discovered } = &*self.node;
        let renew = |chain: &Arc<ChainNode>| {
            if !chain.draining.has_begun() {
                return Arc::clone(chain);
            }
            let application = chain.application.share();
            let (config, tls) = (Arc::clone(&chain.config), chain.tls.clone());
            let filters = Arc::clone(&chain.filters);
            Arc::new(ChainNode { config, tls, filters, application, draining: Arc::default() })
        };
        self.node = Arc::new(ListenerNode {
            config: Arc::clone(config),
            index: FilterChainIndex::of_listener(config),
            chains: chains.iter().map(renew).collect(),
            access_logs: access_logs.clone(),
            discovered: discovered.clone(),
        });
    }
}

impl Application {
    fn share(&self) -> Self {
        match self {
            Self::Http(http) => Self::Http(Arc::clone(http)),
            Self::Tcp(tcp) => Self::Tcp(Arc::clone(tcp)),
            Self::OwnAnswer(answer) => Self::OwnAnswer(answer.clone()),
            Self::Missing => Self::Missing,
        }
    }
}

impl HttpNode {
    /// The same, with other discovered filters.
    fn with_discovered(&self, discovered: Vec<Option<Arc<Extension>>>) -> Self {
        let Self { config, routes, access_logs, upstream_logs, listener, direction, tracer, discovered: _ } = self;
        let routes = match routes {
            Routes::Inline(table) => Routes::Inline(Arc::clone(table)),
            Routes::Discovered(name) => Routes::Discovered(Arc::clone(name)),
            Routes::Scoped(place) => Routes::Scoped(place.clone()),
        };
        let (config, listener) = (Arc::clone(config), Arc::clone(listener));
        Self {
            config,
            routes,
            access_logs: access_logs.clone(),
            upstream_logs: upstream_logs.clone(),
            listener,
            direction: *direction,
            tracer: tracer.clone(),
            discovered,
        }
    }
}

/// What a chain's node was made from, beside its configuration.
#[derive(Clone)]
struct ChainInputs {
    /// `None` for plain chains, `Some(None)` while secrets are missing.
    tls: Option<Option<TlsInputs>>,
    /// One for each filter: what was discovered in its place.
    discovered: Vec<Option<Arc<Extension>>>,
    /// One for each filter of the connection manager; empty if none of them is discovered.
    http_discovered: Vec<Option<Arc<Extension>>>,
}

impl ChainInputs {
    fn same_tls(&self, other: &Self) -> bool {
        match (&self.tls, &other.tls) {
            (None, None) | (Some(None), Some(None)) => true,
            (Some(Some(a)), Some(Some(b))) => a.same(b),
            _ => false,
        }
    }

    /// Whether connections of both were accepted with the same certificates and checks.
    fn same_trust(&self, other: &Self) -> bool {
        match (&self.tls, &other.tls) {
            (Some(Some(a)), Some(Some(b))) => a.same_trust(b),
            // Without its secrets a chain accepts nobody.
            _ => true,
        }
    }

    fn same_filters(&self, other: &Self) -> bool {
        same_extensions(&self.discovered, &other.discovered)
    }

    fn same_http_filters(&self, other: &Self) -> bool {
        same_extensions(&self.http_discovered, &other.http_discovered)
    }
}

fn same_extensions(ours: &[Option<Arc<Extension>>], others: &[Option<Arc<Extension>>]) -> bool {
    let same = |(a, b): (&Option<Arc<_>>, &Option<Arc<_>>)| match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        _ => false,
    };
    ours.len() == others.len() && ours.iter().zip(others).all(same)
}

/// Makes filter chains that are the same in `olds` the very same, so that their nodes and connections are kept.
pub fn share_chains(listener: &mut Listener, olds: &[&Listener]) {
    let find = |hash: u64| olds.iter().flat_map(|old| need::chains(old)).find(|chain| chain.content_hash == hash);
    for chain in listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain) {
        if let Some(old) = find(chain.content_hash) {
            *chain = Arc::clone(old);
        }
    }
}

/// Builds a listener's node. What is the same in `olds` is taken over, the first of them first.
pub fn listener(
    config: &Arc<Listener>,
    extensions: &Extensions,
    olds: &[&ListenerBuild],
    surroundings: &Surroundings<'_>,
) -> Result<ListenerBuild, CompileError> {
    let index = FilterChainIndex::of_listener(config);
    if let Some((a, b)) = index.overlap() {
        return Err(CompileError::Overlap(a, b));
    }
    let mut nodes = Vec::new();
    let mut inputs = Vec::new();
    for (position, chain) in need::chains(config).enumerate() {
        let place = match config.filter_chains.get(position) {
            Some(_) => format!("filter_chains[{position}]"),
            None => "default_filter_chain".to_owned(),
        };
        let listener = &config.name;
        let direction = config.traffic_direction;
        let retires = config.retire_within.is_some();
        let (node, input) =
            Chain { listener, direction, config: chain, place, retires, extensions, surroundings }.build(olds)?;
        nodes.push(node);
        inputs.push(input);
    }
    let same_logs = olds.iter().find(|old| old.node.config.access_logs == config.access_logs);
    let access_logs = match same_logs {
        Some(old) => old.node.access_logs.clone(),
        None => logs(&config.access_logs, "access_log", surroundings)?,
    };
    let discovered = discovered_listener_filters(config, extensions, surroundings);
    let node = ListenerNode { config: Arc::clone(config), index, chains: nodes, access_logs, discovered };
    Ok(ListenerBuild { node: Arc::new(node), inputs })
}

/// What was discovered in the place of each listener filter; empty if none of them is discovered.
fn discovered_listener_filters(
    config: &Listener,
    extensions: &Extensions,
    surroundings: &Surroundings<'_>,
) -> Vec<Option<Arc<Extension>>> {
    let found = config.listener_filters.iter().map(|filter| match &filter.kind {
        ListenerFilterKind::Discovered(filter) => {
            Some(surroundings.extension(WantedFilter::Listener(filter), extensions))
        }
        _ => None,
    });
    let found: Vec<_> = found.collect();
    if found.iter().all(Option::is_none) { Vec::new() } else { found.into_iter().map(Option::flatten).collect() }
}

struct Chain<'a> {
    listener: &'a Arc<str>,
    direction: TrafficDirection,
    config: &'a Arc<FilterChain>,
    place: String,
    /// Connections accepted with other certificates or checks come to an end.
    retires: bool,
    extensions: &'a Extensions,
    surroundings: &'a Surroundings<'a>,
}

impl Chain<'_> {
    fn build(&self, olds: &[&ListenerBuild]) -> Result<(Arc<ChainNode>, ChainInputs), CompileError> {
        let tls = match &self.config.transport {
            DownstreamTransport::Raw => None,
            DownstreamTransport::Tls(tls) => Some(
                TlsInputs::resolve_downstream(tls, self.surroundings.secrets)
                    .map_err(|source| CompileError::Secret { place: self.transport_place(), source })?,
            ),
        };
        let discovered: Vec<_> = self.config.filters.iter().map(|filter| self.discovered(&filter.config)).collect();
        let http_discovered = match self.resolved(&discovered).last() {
            Some(Some(NetworkFilterConfig::Http(manager))) => self.http_discovered(manager),
            _ => Vec::new(),
        };
        let inputs = ChainInputs { tls, discovered, http_discovered };
        self.check_secrets(&inputs)?;
        let old = olds.iter().find_map(|old| {
            // What a connection manager does for traffic of one direction, it does not do for the other.
            let same = old.node.config.traffic_direction == self.direction;
            let mut known = old.node.chains.iter().zip(&old.inputs).filter(|_| same);
            known.find(|(node, _)| Arc::ptr_eq(&node.config, self.config))
        });
        if let Some((node, old)) = old
            && old.same_tls(&inputs)
            && old.same_filters(&inputs)
            && old.same_http_filters(&inputs)
        {
            return Ok((Arc::clone(node), inputs));
        }
        let tls = match (&self.config.transport, &inputs.tls, old) {
            (_, Some(Some(_)), Some((node, old))) if old.same_tls(&inputs) => node.tls.clone(),
            (DownstreamTransport::Tls(config), Some(Some(resolved)), _) => {
                let built = resolved.server(config);
                Some(built.map_err(|source| CompileError::Tls { place: self.transport_place(), source })?)
            }
            _ => None,
        };
        let (filters, application) = match old {
            // A chain without its secrets must not speak plainly.
            _ if matches!(inputs.tls, Some(None)) => (Arc::default(), Application::Missing),
            Some((node, old)) if old.same_filters(&inputs) && !matches!(old.tls, Some(None)) => {
                let application = match &node.application {
                    Application::Http(http) if !old.same_http_filters(&inputs) => {
                        Application::Http(Arc::new(http.with_discovered(inputs.http_discovered.clone())))
                    }
                    application => application.share(),
                };
                (Arc::clone(&node.filters), application)
            }
            _ => self.filters(&inputs)?,
        };
        let draining = match old {
            Some((node, old)) if !self.retires || old.same_trust(&inputs) => Arc::clone(&node.draining),
            _ => Arc::default(),
        };
        let node = ChainNode { config: Arc::clone(self.config), tls, filters, application, draining };
        Ok((Arc::new(node), inputs))
    }

    /// What the filters say of secrets that are known.
    fn check_secrets(&self, inputs: &ChainInputs) -> Result<(), CompileError> {
        let Some(Some(NetworkFilterConfig::Http(manager))) = self.resolved(&inputs.discovered).pop() else {
            return Ok(());
        };
        for (position, filter) in manager.all_filters().enumerate() {
            let discovered = inputs.http_discovered.get(position).and_then(Option::as_ref);
            let config = discovered.and_then(|found| found.http.as_ref()).unwrap_or(&filter.config);
            for secret in need::secrets_of_filters([config]) {
                let place = || format!("{}: HTTP filter {:?}", self.place, filter.name);
                check_reference(secret, self.surroundings.secrets)
                    .map_err(|source| CompileError::Secret { place: place(), source })?;
            }
        }
        for secret in need::inline_routes(manager).flat_map(|routes| need::secrets_of_routes(routes)) {
            let place = || format!("{}: typed_per_filter_config", self.place);
            check_reference(secret, self.surroundings.secrets)
                .map_err(|source| CompileError::Secret { place: place(), source })?;
        }
        Ok(())
    }

    fn transport_place(&self) -> String {
        format!("{}.transport_socket", self.place)
    }

    /// What was discovered for a filter.
    fn discovered(&self, filter: &NetworkFilterConfig) -> Option<Arc<Extension>> {
        let NetworkFilterConfig::Discovered(filter) = filter else { return None };
        self.extension(WantedFilter::Network(filter))
    }

    fn http_discovered(&self, manager: &HttpConnectionManager) -> Vec<Option<Arc<Extension>>> {
        let is_discovered = |config: &HttpFilterConfig| matches!(config, HttpFilterConfig::Discovered(_));
        if !manager.all_filters().any(|filter| is_discovered(&filter.config)) {
            return Vec::new();
        }
        let found = manager.all_filters().map(|filter| match &filter.config {
            HttpFilterConfig::Discovered(filter) => self.extension(WantedFilter::Http(filter)),
            _ => None,
        });
        found.collect()
    }

    fn extension(&self, wanted: WantedFilter<'_>) -> Option<Arc<Extension>> {
        self.surroundings.extension(wanted, self.extensions)
    }

    /// The filters as they hold; `None` for one that is missing.
    fn resolved<'f>(&'f self, discovered: &'f [Option<Arc<Extension>>]) -> Vec<Option<&'f NetworkFilterConfig>> {
        let known = self.config.filters.iter().zip(discovered).map(|(filter, discovered)| {
            let NetworkFilterConfig::Discovered(wanted) = &filter.config else { return Some(&filter.config) };
            let discovered = discovered.as_ref().and_then(|discovered| discovered.network.as_ref());
            discovered.or(wanted.default.as_ref())
        });
        known.collect()
    }

    /// The filters in order, and the last one as the chain's application. Without one of them the others must not let
    /// anything through.
    fn filters(&self, inputs: &ChainInputs) -> Result<(Arc<[NetworkFilter]>, Application), CompileError> {
        let mut known = self.resolved(&inputs.discovered);
        let Some(last) = known.pop().flatten() else { return Ok((Arc::default(), Application::Missing)) };
        match known.into_iter().map(|config| NetworkFilter::build(config?)).collect::<Option<Arc<[_]>>>() {
            Some(filters) => Ok((filters, self.application(last, inputs)?)),
            None => Ok((Arc::default(), Application::Missing)),
        }
    }

    fn scopes(&self, scoped: &ScopedRoutes) -> ScopePlace {
        match &scoped.scopes {
            ScopeSource::Inline(scopes) => {
                let keyed = scopes.iter().map(|scope| (ScopeKey::of_scope(&scope.key), scopes::target(scope)));
                ScopePlace::Inline(Arc::new(ScopeTable::build(keyed)))
            }
            ScopeSource::Srds(source) => ScopePlace::Discovered((self.surroundings.scope_source)(source)),
        }
    }

    fn application(&self, filter: &NetworkFilterConfig, inputs: &ChainInputs) -> Result<Application, CompileError> {
        let place = format!("{}.filters: access_log", self.place);
        match filter {
            NetworkFilterConfig::TcpProxy(config) => {
                let access_logs = logs(&config.access_logs, &place, self.surroundings)?;
                let filters = self.resolved(&inputs.discovered);
                let reporter = filters.into_iter().flatten().find_map(|filter| match filter {
                    NetworkFilterConfig::IstioStats(settings) => Some(Reporter::new(settings, self.direction)),
                    _ => None,
                });
                Ok(Application::Tcp(Arc::new(TcpNode { config: Arc::clone(config), access_logs, reporter })))
            }
            NetworkFilterConfig::Http(config) => {
                let routes = match &config.routes {
                    RouteSource::Inline(routes) => Routes::Inline(Arc::new(RouteTable::build(Arc::clone(routes)))),
                    RouteSource::Rds { name, source: _ } => Routes::Discovered(Arc::clone(name)),
                    RouteSource::Scoped(scoped) => Routes::Scoped(self.scopes(scoped)),
                };
                let access_logs = logs(&config.access_logs, &place, self.surroundings)?;
                let router = config.filters.iter().find_map(|filter| match &filter.config {
                    HttpFilterConfig::Router(router) => Some(router),
                    _ => None,
                });
                let upstream_logs = router.map_or(&[][..], |router| &router.upstream_logs);
                let upstream_logs = logs(upstream_logs, &place, self.surroundings)?;
                let (config, listener) = (Arc::clone(config), Arc::clone(self.listener));
                let discovered = inputs.http_discovered.clone();
                let tracer = config.tracing.as_deref().and_then(self.surroundings.open_tracer);
                let direction = self.direction;
                Ok(Application::Http(Arc::new(HttpNode {
                    config,
                    routes,
                    access_logs,
                    upstream_logs,
                    listener,
                    direction,
                    tracer,
                    discovered,
                })))
            }
            NetworkFilterConfig::OwnAnswer(answer) => Ok(Application::OwnAnswer(answer.clone())),
            // A discovered filter that is discovered again would never end, and only terminal ones end a chain.
            NetworkFilterConfig::Discovered(_)
            | NetworkFilterConfig::Rbac(_)
            | NetworkFilterConfig::ExtAuthz(_)
            | NetworkFilterConfig::GlobalRateLimit(_)
            | NetworkFilterConfig::ConnectionLimit(_)
            | NetworkFilterConfig::LocalRateLimit(_)
            | NetworkFilterConfig::SniCluster
            | NetworkFilterConfig::SniDynamicForward(_)
            | NetworkFilterConfig::SetFilterState(_)
            | NetworkFilterConfig::MetadataExchange(_)
            | NetworkFilterConfig::IstioStats(_) => Ok(Application::Missing),
        }
    }
}

fn logs(
    configs: &[Arc<AccessLog>],
    place: &str,
    surroundings: &Surroundings<'_>,
) -> Result<Vec<Arc<AccessLogger>>, CompileError> {
    let open = |(position, config)| {
        (surroundings.open_log)(config)
            .map_err(|source| CompileError::AccessLog { place: format!("{place}[{position}]"), source })
    };
    configs.iter().enumerate().map(open).collect()
}

/// A cluster's node with what it was made from.
#[derive(Clone)]
pub struct ClusterBuild {
    /// The node.
    pub node: Arc<ClusterNode>,
    /// The endpoints, if they are discovered.
    pub assignment: Option<Arc<Assignment>>,
    tls: TransportInputs,
}

/// What a cluster refers to, resolved.
pub struct ClusterInputs<'a> {
    /// The cluster.
    pub config: &'a Arc<Cluster>,
    /// Discovered endpoints.
    pub assignment: Option<Arc<Assignment>>,
    /// Addresses of host names.
    pub addresses: &'a dyn Fn(&str) -> Option<Arc<[IpAddr]>>,
    /// Secrets.
    pub secrets: &'a FindSecret<'a>,
    /// Where the local cluster is, if zones count.
    pub zones: Option<Option<&'a LocalZones>>,
}

/// Builds a cluster's node. While secrets are missing it has no hosts, so that nothing is sent in the clear.
pub fn cluster(inputs: ClusterInputs<'_>, old: Option<&ClusterBuild>) -> Result<ClusterBuild, CompileError> {
    let ClusterInputs { config, assignment, addresses, secrets, zones } = inputs;
    let tls = TransportInputs::resolve(config, secrets)?;
    for secret in need::secrets_of_cluster(config) {
        let place = || "http_filters".to_owned();
        check_reference(secret, secrets).map_err(|source| CompileError::Secret { place: place(), source })?;
    }
    let same_config = old.is_some_and(|old| Arc::ptr_eq(&old.node.config, config));
    let same_tls = old.filter(|old| same_config && old.tls.same(&tls));
    let contexts = match same_tls {
        Some(old) => old.node.tls.clone(),
        None => tls.contexts(config)?,
    };
    let endpoints = endpoints_of(config, assignment.as_ref());
    let endpoints = if tls.are_missing() { None } else { endpoints };
    let old_hosts = old.map(|old| &old.node.hosts);
    let built = HostInputs {
        cluster: config,
        assignment: endpoints.map(Arc::as_ref),
        addresses,
        old: old_hosts.map(Arc::as_ref),
        zones,
    }
    .build();
    let same_surroundings =
        old.is_some_and(|old| facts::same_surroundings(old.assignment.as_deref(), assignment.as_deref()));
    let hosts = match old_hosts {
        Some(old) if same_config && same_surroundings && same_hosts(old, &built) => Arc::clone(old),
        _ => Arc::new(built),
    };
    if let Some(old) = same_tls
        && Arc::ptr_eq(&old.node.hosts, &hosts)
    {
        return Ok(ClusterBuild { node: Arc::clone(&old.node), assignment, tls });
    }
    let shared: Arc<ClusterShared> = old.map(|old| Arc::clone(&old.node.shared)).unwrap_or_default();
    let outlier = OutlierState::of(config, old.map(|old| &*old.node));
    let node = ClusterNode { config: Arc::clone(config), hosts, tls: contexts, shared, outlier };
    Ok(ClusterBuild { node: Arc::new(node), assignment, tls })
}

/// The endpoints of a cluster, as configured or discovered.
fn endpoints_of<'a>(config: &'a Cluster, discovered: Option<&'a Arc<Assignment>>) -> Option<&'a Arc<Assignment>> {
    match &config.discovery {
        Discovery::Static(assignment)
        | Discovery::StrictDns { assignment, .. }
        | Discovery::LogicalDns { assignment, .. } => Some(assignment),
        Discovery::Eds { .. } => discovered,
        Discovery::OriginalDst(_) | Discovery::Aggregate(_) | Discovery::DynamicForward(_) => None,
    }
}

/// Brings what balancers pick from up to date with the health of the same hosts.
pub fn rebalance(build: &mut ClusterBuild, zones: Option<Option<&LocalZones>>) {
    let ClusterNode { config, hosts, tls, shared, outlier } = &*build.node;
    let assignment = endpoints_of(config, build.assignment.as_ref()).map(Arc::as_ref);
    let inputs = HostInputs { cluster: config, assignment, addresses: &|_| None, old: Some(hosts), zones };
    build.node = Arc::new(ClusterNode {
        config: Arc::clone(config),
        hosts: Arc::new(inputs.rebalance(&hosts.hosts)),
        tls: tls.clone(),
        shared: Arc::clone(shared),
        outlier: outlier.clone(),
    });
}

impl ClusterBuild {
    /// How many discovered secrets its TLS contexts have newly taken up since `old`.
    pub fn secret_updates(&self, old: Option<&Self>) -> u64 {
        self.tls.updates_since(old.map(|old| &old.tls))
    }

    /// Whether it can be published: one that passes connections through to wherever they were going has no host list
    /// to be empty, so without its secrets it does not exist.
    pub fn is_usable(&self) -> bool {
        !(self.tls.are_missing() && self.node.config.discovery.provides_choice())
    }
}

fn same_hosts(a: &HostList, b: &HostList) -> bool {
    a.hosts.len() == b.hosts.len() && a.hosts.iter().zip(&b.hosts).all(|(a, b)| Arc::ptr_eq(a, b))
}

/// The drains of chains that are still there, whose certificates or checks have been replaced.
pub fn rotated(old: &ListenerNode, new: &ListenerNode) -> Vec<Arc<Draining>> {
    let vanished = vanished(old, Some(new));
    let stays = |chain: &&Arc<ChainNode>| new.chains.iter().any(|other| Arc::ptr_eq(&other.config, &chain.config));
    let stayed = old.chains.iter().filter(stays).map(|chain| Arc::clone(&chain.draining));
    stayed.filter(|draining| vanished.iter().any(|other| Arc::ptr_eq(other, draining))).collect()
}

/// The drains of chains in `old` that `new` does not have.
pub fn vanished(old: &ListenerNode, new: Option<&ListenerNode>) -> Vec<Arc<Draining>> {
    let kept = |chain: &ChainNode| {
        new.is_some_and(|new| new.chains.iter().any(|other| Arc::ptr_eq(&other.draining, &chain.draining)))
    };
    old.chains.iter().filter(|chain| !kept(chain)).map(|chain| Arc::clone(&chain.draining)).collect()
}
