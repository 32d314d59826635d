//! What a cluster, a listener or a route configuration needs before it can be used.
//!
//! Owns the names of needs and how they are read off the configuration. Never waits for them (see `warming`).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, LazyLock};

use outrigger_config::address::EndpointAddress;
use outrigger_config::cluster::{Assignment, Cluster, Discovery};
use outrigger_config::extension::{DiscoveredFilter, Extension};
use outrigger_config::http::filters::{
    ClientToken, Credential, CredentialInjector, JwksSource, JwtAuthn, RemoteJwks, RouteFilters,
};
use outrigger_config::http::{HttpConnectionManager, HttpFilterConfig, RouteFilterConfig, RouteSource, ScopeSource};
use outrigger_config::listener::{DownstreamTransport, FilterChain, Listener, ListenerFilterKind, NetworkFilterConfig};
use outrigger_config::route::{
    ClusterChoice, MirrorCluster, MirrorPolicy, RouteAction, RouteConfiguration, ScopeRoutes,
};
use outrigger_config::source::ConfigSource;
use outrigger_config::tls::{CertificateSource, CommonTls, SecretRef, TicketKeySource, ValidationSource};
use outrigger_xds::{Interest, ResourceKind, SourceKey};

use crate::stats::names;
use crate::tokens;

/// Something that must arrive.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Need {
    /// A resource of a control plane or a file.
    Resource {
        /// Its type.
        kind: ResourceKind,
        /// Where it comes from.
        source: SourceKey,
        /// Its name.
        name: Arc<str>,
    },
    /// The addresses of a host name.
    Addresses {
        /// The cluster that has such an endpoint.
        cluster: Arc<str>,
        /// The host name.
        host: Arc<str>,
    },
    /// The first result of the active checks of each endpoint.
    Checks {
        /// The cluster.
        cluster: Arc<str>,
        /// Which of its revisions.
        revision: u64,
    },
    /// A token that an authorization server gives us.
    Token {
        /// Prefix of the stats of who wants it.
        stat_prefix: Arc<str>,
        /// Where it comes from, and for whom it is.
        source: Arc<str>,
    },
    /// The first attempt to fetch a key set.
    Keys {
        /// Prefix of the stats of who wants it.
        stat_prefix: Arc<str>,
        /// Where it comes from.
        source: Arc<str>,
    },
}

/// The name of the need for all resources of a type that are not asked for one by one.
pub static EVERYTHING: LazyLock<Arc<str>> = LazyLock::new(|| "*".into());

/// How a resource is asked for.
pub fn interest(kind: ResourceKind, name: &str) -> Interest {
    match kind {
        ResourceKind::ScopedRouteConfiguration | ResourceKind::VirtualHost => Interest::Wildcard,
        _ => Interest::Name(name.to_owned()),
    }
}

impl Need {
    /// Whether it is the resource of this type and name, from wherever.
    pub fn is(&self, of: ResourceKind, called: &str) -> bool {
        matches!(self, Self::Resource { kind, name, source: _ } if *kind == of && **name == *called)
    }

    /// Whether it stands for all resources of its type from a source.
    pub fn is_everything(&self) -> bool {
        matches!(self, Self::Resource { kind, name, .. } if interest(*kind, name) == Interest::Wildcard)
    }

    /// Where the resource comes from, in words.
    pub fn source(&self) -> Option<String> {
        match self {
            Self::Resource { source, .. } => Some(source.to_string()),
            Self::Addresses { .. } | Self::Checks { .. } | Self::Keys { .. } | Self::Token { .. } => None,
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource { kind, source, name: _ } if self.is_everything() => {
                write!(f, "{}s ({source})", kind.noun())
            }
            Self::Resource { kind, source, name } => write!(f, "{} {name:?} ({source})", kind.noun()),
            Self::Addresses { cluster, host } => write!(f, "addresses of {host:?} (cluster {cluster:?})"),
            Self::Checks { cluster, revision: _ } => write!(f, "health checks of cluster {cluster:?}"),
            Self::Keys { stat_prefix: _, source } => write!(f, "keys from {source}"),
            Self::Token { stat_prefix: _, source } => write!(f, "token from {source}"),
        }
    }
}

/// A need of one user, and whether the user waits for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Requirement {
    /// What must arrive.
    pub need: Need,
    /// False: wanted, but its user does not wait for it.
    pub wait: bool,
}

/// A discovered resource as configuration refers to it.
#[derive(Clone, Debug)]
pub struct Reference<'a> {
    /// Its type.
    pub kind: ResourceKind,
    /// Its name.
    pub name: &'a Arc<str>,
    /// Where it comes from.
    pub source: &'a ConfigSource,
    /// Whether its user waits for it.
    pub wait: bool,
}

/// Discovered resources that a cluster refers to.
pub fn of_cluster(cluster: &Cluster) -> Vec<Reference<'_>> {
    let mut references = Vec::new();
    if let Discovery::Eds { service_name, source } = &cluster.discovery {
        let kind = ResourceKind::ClusterLoadAssignment;
        references.push(Reference { kind, name: service_name, source, wait: true });
    }
    for transport in cluster.transports() {
        if let Some(tls) = transport.tls() {
            secrets(&tls.common, &mut references);
        }
    }
    references.extend(filter_secrets(secrets_of_cluster(cluster), true));
    references
}

/// Host names that a cluster resolves, each once.
pub fn host_names(cluster: &Cluster) -> BTreeSet<Arc<str>> {
    match &cluster.discovery {
        Discovery::StrictDns { assignment, .. } | Discovery::LogicalDns { assignment, .. } => named_hosts(assignment),
        Discovery::Static(_)
        | Discovery::Eds { .. }
        | Discovery::OriginalDst(_)
        | Discovery::Aggregate(_)
        | Discovery::DynamicForward(_) => BTreeSet::new(),
    }
}

fn named_hosts(assignment: &Assignment) -> BTreeSet<Arc<str>> {
    let endpoints = assignment.localities.iter().flat_map(|locality| &locality.endpoints);
    let hosts = endpoints.filter_map(|endpoint| match &endpoint.address {
        // Literals need no resolver.
        EndpointAddress::Named { host, .. } if host.parse::<std::net::IpAddr>().is_err() => Some(Arc::clone(host)),
        EndpointAddress::Named { .. } | EndpointAddress::Resolved(_) => None,
    });
    hosts.collect()
}

/// A filter that a listener discovers.
#[derive(Clone, Copy, Debug)]
pub enum WantedFilter<'a> {
    /// Of a filter chain.
    Network(&'a DiscoveredFilter<NetworkFilterConfig>),
    /// Of a connection manager.
    Http(&'a DiscoveredFilter<HttpFilterConfig>),
    /// Of the listener itself.
    Listener(&'a DiscoveredFilter<ListenerFilterKind>),
}

impl<'a> WantedFilter<'a> {
    fn reference(self) -> Reference<'a> {
        let kind = ResourceKind::ExtensionConfig;
        let (name, source, wait) = match self {
            Self::Network(filter) => (&filter.name, &filter.source, filter.waits()),
            Self::Http(filter) => (&filter.name, &filter.source, filter.waits()),
            Self::Listener(filter) => (&filter.name, &filter.source, filter.waits()),
        };
        Reference { kind, name, source, wait }
    }

    /// The name of the resource.
    pub fn name(self) -> &'a Arc<str> {
        self.reference().name
    }

    /// Where it comes from.
    pub fn source(self) -> &'a ConfigSource {
        self.reference().source
    }

    /// Type URLs that are accepted.
    pub fn type_urls(self) -> &'a [String] {
        match self {
            Self::Network(filter) => &filter.type_urls,
            Self::Http(filter) => &filter.type_urls,
            Self::Listener(filter) => &filter.type_urls,
        }
    }

    /// Whether what came may take the place.
    pub fn accepts(self, found: &Extension) -> bool {
        match self {
            Self::Network(filter) => found.network.is_some() && filter.accepts(&found.type_name),
            Self::Http(filter) => found.http.is_some() && filter.accepts(&found.type_name),
            Self::Listener(filter) => found.listener.is_some() && filter.accepts(&found.type_name),
        }
    }

    /// Where the stats of its subscription stand.
    pub fn stat_scope(self) -> &'static str {
        match self {
            Self::Network(_) => "extension_config_discovery.network_filter",
            Self::Http(_) => "extension_config_discovery.http_filter",
            Self::Listener(_) => "extension_config_discovery.tcp_listener_filter",
        }
    }
}

/// What is known of a discovered filter.
pub type FindExtension<'f, 'a> = dyn Fn(WantedFilter<'a>) -> Option<&'a Extension> + 'f;

/// Discovered resources that a listener refers to. `find` gives what is known of discovered filters, which refer to
/// further resources.
pub fn of_listener<'a>(listener: &'a Listener, find: &FindExtension<'_, 'a>) -> Vec<Reference<'a>> {
    let mut references = Vec::new();
    for chain in chains(listener) {
        if let DownstreamTransport::Tls(tls) = &chain.transport {
            secrets(&tls.common, &mut references);
            if let Some(TicketKeySource::Sds { name, source: Some(source) }) = &tls.ticket_keys {
                references.push(Reference { kind: ResourceKind::Secret, name, source, wait: true });
            }
        }
    }
    for filter in network_filters(listener, find) {
        let NetworkFilterConfig::Http(manager) = filter else { continue };
        references.extend(filter_secrets(secrets_of_filters(http_filters(manager, find)), true));
        let of_routes = inline_routes(manager).flat_map(|routes| secrets_of_routes(routes));
        references.extend(filter_secrets(of_routes.collect(), false));
        match &manager.routes {
            RouteSource::Inline(_) => {}
            RouteSource::Rds { name, source } => {
                references.push(Reference { kind: ResourceKind::RouteConfiguration, name, source, wait: true });
            }
            RouteSource::Scoped(scoped) => {
                if let ScopeSource::Srds(source) = &scoped.scopes {
                    let kind = ResourceKind::ScopedRouteConfiguration;
                    references.push(Reference { kind, name: &EVERYTHING, source, wait: true });
                }
            }
        }
    }
    references.extend(discovered_filters(listener, find).into_iter().map(WantedFilter::reference));
    references
}

/// Filters that a listener discovers, those in discovered connection managers among them.
pub fn discovered_filters<'a>(listener: &'a Listener, find: &FindExtension<'_, 'a>) -> Vec<WantedFilter<'a>> {
    let of_listener = listener.listener_filters.iter().filter_map(|filter| match &filter.kind {
        ListenerFilterKind::Discovered(filter) => Some(WantedFilter::Listener(filter)),
        _ => None,
    });
    let mut wanted: Vec<_> = of_listener.collect();
    for filter in network_filters(listener, find) {
        match filter {
            NetworkFilterConfig::Discovered(filter) => wanted.push(WantedFilter::Network(filter)),
            NetworkFilterConfig::Http(manager) => {
                wanted.extend(manager.all_filters().filter_map(|filter| match &filter.config {
                    HttpFilterConfig::Discovered(filter) => Some(WantedFilter::Http(filter)),
                    _ => None,
                }));
            }
            _ => {}
        }
    }
    wanted
}

/// All network filters of a listener, each discovered one followed by what holds in its place.
fn network_filters<'a>(listener: &'a Listener, find: &FindExtension<'_, 'a>) -> Vec<&'a NetworkFilterConfig> {
    let mut filters = Vec::new();
    for filter in chains(listener).flat_map(|chain| &chain.filters) {
        filters.push(&filter.config);
        if let NetworkFilterConfig::Discovered(filter) = &filter.config {
            let found = find(WantedFilter::Network(filter)).and_then(|found| found.network.as_ref());
            filters.extend(found.or(filter.default.as_ref()));
        }
    }
    filters
}

fn secrets<'a>(tls: &'a CommonTls, references: &mut Vec<Reference<'a>>) {
    let kind = ResourceKind::Secret;
    for certificate in &tls.certificates {
        if let CertificateSource::Sds { name, source: Some(source) } = certificate {
            references.push(Reference { kind, name, source, wait: true });
        }
    }
    if let ValidationSource::Sds { name, source: Some(source), default: _ } = &tls.validation {
        references.push(Reference { kind, name, source, wait: true });
    }
}

/// The filter chains of a listener in the order of [`super::ListenerNode::chains`].
pub fn chains(listener: &Listener) -> impl Iterator<Item = &Arc<FilterChain>> {
    listener.filter_chains.iter().chain(&listener.default_filter_chain)
}

/// Clusters that the filters of a listener name without route discovery.
pub fn clusters_of_listener(listener: &Listener) -> BTreeSet<Arc<str>> {
    let mut names = BTreeSet::new();
    for filter in chains(listener).flat_map(|chain| &chain.filters) {
        clusters_of_filter(&filter.config, &mut names);
    }
    names
}

/// Adds the clusters that a filter names without route discovery.
pub fn clusters_of_filter(filter: &NetworkFilterConfig, names: &mut BTreeSet<Arc<str>>) {
    match filter {
        // What is discovered while a connection waits, nobody waits for before.
        NetworkFilterConfig::TcpProxy(proxy) if proxy.on_demand.is_some() => {}
        NetworkFilterConfig::TcpProxy(proxy) => {
            let named = proxy.target.clusters.iter().filter(|(name, _)| !name.is_empty());
            names.extend(named.map(|(name, _)| Arc::clone(name)));
        }
        NetworkFilterConfig::Http(manager) => {
            names.extend(inline_routes(manager).flat_map(|routes| clusters_of_routes(routes)));
            for filter in manager.all_filters() {
                clusters_of_http_filter(&filter.config, names);
            }
        }
        NetworkFilterConfig::ExtAuthz(settings) => drop(names.insert(Arc::clone(&settings.service.cluster))),
        NetworkFilterConfig::GlobalRateLimit(settings) => drop(names.insert(Arc::clone(&settings.service.cluster))),
        // The cluster by SNI may or may not exist when a connection asks for it.
        NetworkFilterConfig::OwnAnswer(_)
        | NetworkFilterConfig::Rbac(_)
        | NetworkFilterConfig::ConnectionLimit(_)
        | NetworkFilterConfig::LocalRateLimit(_)
        | NetworkFilterConfig::SniCluster
        | NetworkFilterConfig::SniDynamicForward(_)
        | NetworkFilterConfig::SetFilterState(_)
        | NetworkFilterConfig::MetadataExchange(_)
        | NetworkFilterConfig::IstioStats(_) => {}
        NetworkFilterConfig::Discovered(filter) => {
            if let Some(default) = &filter.default {
                clusters_of_filter(default, names);
            }
        }
    }
}

/// Route configurations that stand in a connection manager.
pub fn inline_routes(manager: &HttpConnectionManager) -> impl Iterator<Item = &Arc<RouteConfiguration>> {
    let (alone, scopes) = match &manager.routes {
        RouteSource::Inline(routes) => (Some(routes), None),
        RouteSource::Rds { .. } => (None, None),
        RouteSource::Scoped(scoped) => match &scoped.scopes {
            ScopeSource::Inline(scopes) => (None, Some(scopes)),
            ScopeSource::Srds(_) => (None, None),
        },
    };
    let of_scopes = scopes.into_iter().flatten().filter_map(|scope| match &scope.routes {
        ScopeRoutes::Inline(routes) => Some(routes),
        ScopeRoutes::Rds { .. } => None,
    });
    alone.into_iter().chain(of_scopes)
}

/// Adds the clusters that an HTTP filter names.
pub fn clusters_of_http_filter(filter: &HttpFilterConfig, names: &mut BTreeSet<Arc<str>>) {
    match filter {
        HttpFilterConfig::JwtAuthn(settings) => {
            names.extend(remote_keys(settings).map(|source| Arc::clone(&source.cluster)));
        }
        HttpFilterConfig::ExtAuthz(settings) => drop(names.insert(Arc::clone(settings.service.cluster()))),
        HttpFilterConfig::ExtProc(settings) => drop(names.insert(Arc::clone(&settings.service.cluster))),
        HttpFilterConfig::GlobalRateLimit(settings) => drop(names.insert(Arc::clone(&settings.service.cluster))),
        HttpFilterConfig::OAuth2(Some(settings)) => drop(names.insert(Arc::clone(&settings.token_endpoint.cluster))),
        HttpFilterConfig::CredentialInjector(settings) => names.extend(token_cluster(settings).map(Arc::clone)),
        HttpFilterConfig::Delegating(delegating) => {
            delegating.filters().into_iter().for_each(|filter| clusters_of_http_filter(filter, names));
        }
        HttpFilterConfig::Router(router) => {
            for filter in router.upstream_filters.iter().flat_map(|filters| &filters.0) {
                clusters_of_http_filter(&filter.config, names);
            }
        }
        _ => {}
    }
}

/// The cluster that tokens of a credential come from.
fn token_cluster(settings: &CredentialInjector) -> Option<&Arc<str>> {
    match &settings.credential {
        Credential::Secret { .. } => None,
        Credential::Token(token) => Some(&token.endpoint.cluster),
    }
}

/// The HTTP filters of a connection manager, each discovered one as it holds. `find` gives what is known of these.
fn http_filters<'a>(
    manager: &'a HttpConnectionManager,
    find: &FindExtension<'_, 'a>,
) -> impl Iterator<Item = &'a HttpFilterConfig> {
    manager.all_filters().filter_map(|filter| match &filter.config {
        HttpFilterConfig::Discovered(filter) => {
            let found = find(WantedFilter::Http(filter)).and_then(|found| found.http.as_ref());
            found.or(filter.default.as_ref())
        }
        config => Some(config),
    })
}

/// Secrets that HTTP filters name, those in front of upstreams among them.
pub fn secrets_of_filters<'a>(filters: impl IntoIterator<Item = &'a HttpFilterConfig>) -> Vec<&'a SecretRef> {
    let mut secrets = Vec::new();
    filters.into_iter().for_each(|filter| secrets_of_filter(filter, &mut secrets));
    secrets
}

fn secrets_of_filter<'a>(filter: &'a HttpFilterConfig, secrets: &mut Vec<&'a SecretRef>) {
    match filter {
        HttpFilterConfig::CredentialInjector(settings) => secrets.push(settings.secret()),
        HttpFilterConfig::OAuth2(Some(settings)) => secrets.extend(settings.secrets()),
        HttpFilterConfig::Delegating(delegating) => {
            delegating.filters().into_iter().for_each(|filter| secrets_of_filter(filter, secrets));
        }
        HttpFilterConfig::Router(router) => {
            let filters = router.upstream_filters.iter().flat_map(|filters| filters.0.iter());
            filters.for_each(|filter| secrets_of_filter(&filter.config, secrets));
        }
        _ => {}
    }
}

/// Secrets that the filters of a cluster name.
pub fn secrets_of_cluster(cluster: &Cluster) -> Vec<&SecretRef> {
    let filters = cluster.http.filters.iter().flat_map(|filters| filters.0.iter());
    secrets_of_filters(filters.map(|filter| &filter.config))
}

/// Secrets that routes name in settings of filters.
pub fn secrets_of_routes(routes: &RouteConfiguration) -> Vec<&SecretRef> {
    let mut secrets = Vec::new();
    each_level(routes, |filters| {
        for config in filters.configs() {
            match config {
                RouteFilterConfig::OAuth2(settings) => secrets.extend(settings.secrets()),
                RouteFilterConfig::Delegating(Some(tree)) => secrets.extend(secrets_of_filters(tree.filters())),
                _ => {}
            }
        }
    });
    secrets
}

/// Shows what each level of routes says of filters.
fn each_level<'a>(routes: &'a RouteConfiguration, mut look: impl FnMut(&'a RouteFilters)) {
    look(&routes.filters);
    for host in &routes.virtual_hosts {
        look(&host.filters);
        for route in &host.routes {
            look(&route.filters);
            if let RouteAction::Forward(forward) = &route.action
                && let ClusterChoice::Weighted(clusters) = &forward.cluster
            {
                clusters.iter().for_each(|cluster| look(&cluster.filters));
            }
        }
    }
}

/// Those that are discovered.
pub fn filter_secrets(secrets: Vec<&SecretRef>, wait: bool) -> impl Iterator<Item = Reference<'_>> {
    secrets.into_iter().filter_map(move |SecretRef { name, source }| {
        let source = source.as_ref()?;
        Some(Reference { kind: ResourceKind::Secret, name, source, wait })
    })
}

/// Tokens that filters need, with the prefixes of the stats about them. `find` gives what is known of discovered filters.
pub fn tokens_of_listener<'a>(
    listener: &'a Listener,
    find: &FindExtension<'_, 'a>,
) -> Vec<(String, &'a Arc<ClientToken>)> {
    let mut tokens = Vec::new();
    for filter in network_filters(listener, find) {
        let NetworkFilterConfig::Http(manager) = filter else { continue };
        for filter in http_filters(manager, find) {
            match filter {
                HttpFilterConfig::CredentialInjector(settings) => {
                    tokens.extend(token(settings, tokens::stat_prefix(&names::prefix("http", &manager.stat_prefix))));
                }
                HttpFilterConfig::Router(router) => {
                    let prefix = tokens::upstream_prefix(&manager.stat_prefix);
                    for filter in router.upstream_filters.iter().flat_map(|filters| filters.0.iter()) {
                        if let HttpFilterConfig::CredentialInjector(settings) = &filter.config {
                            tokens.extend(token(settings, tokens::stat_prefix(&prefix)));
                        }
                    }
                }
                _ => {}
            }
        }
    }
    tokens
}

/// Tokens that the filters of a cluster need, with the prefixes of the stats about them.
pub fn tokens_of_cluster(cluster: &Cluster) -> Vec<(String, &Arc<ClientToken>)> {
    let filters = cluster.http.filters.iter().flat_map(|filters| filters.0.iter());
    let prefix = names::prefix("cluster", &cluster.stat_name);
    let tokens = filters.filter_map(|filter| match &filter.config {
        HttpFilterConfig::CredentialInjector(settings) => token(settings, tokens::stat_prefix(&prefix)),
        _ => None,
    });
    tokens.collect()
}

fn token(settings: &CredentialInjector, stat_prefix: String) -> Option<(String, &Arc<ClientToken>)> {
    match &settings.credential {
        Credential::Secret { .. } => None,
        Credential::Token(token) => Some((stat_prefix, token)),
    }
}

/// Key sets that a filter fetches.
pub fn remote_keys(settings: &JwtAuthn) -> impl Iterator<Item = &Arc<RemoteJwks>> {
    settings.providers.iter().filter_map(|provider| match &provider.jwks {
        JwksSource::Remote(source) => Some(source),
        JwksSource::Local(_) => None,
    })
}

/// The authentication filters of a listener, with the stat prefixes of their connection managers. `find` gives what is
/// known of discovered filters.
pub fn authentication_filters<'a>(
    listener: &'a Listener,
    find: &FindExtension<'_, 'a>,
) -> Vec<(&'a Arc<str>, &'a Arc<JwtAuthn>)> {
    let mut filters = Vec::new();
    for filter in network_filters(listener, find) {
        let NetworkFilterConfig::Http(manager) = filter else { continue };
        for filter in http_filters(manager, find) {
            if let HttpFilterConfig::JwtAuthn(settings) = filter {
                filters.push((&manager.stat_prefix, settings));
            }
        }
    }
    filters
}

/// Clusters that routes name, those that get copies among them.
pub fn clusters_of_routes(routes: &RouteConfiguration) -> BTreeSet<Arc<str>> {
    let mut names = BTreeSet::new();
    let hosts = routes.virtual_hosts.iter();
    mirrors(&routes.mirrors, &mut names);
    hosts.clone().for_each(|host| mirrors(&host.mirrors, &mut names));
    for route in hosts.flat_map(|host| &host.routes) {
        let RouteAction::Forward(forward) = &route.action else { continue };
        mirrors(&forward.mirrors, &mut names);
        match &forward.cluster {
            ClusterChoice::Cluster(name) => drop(names.insert(Arc::clone(name))),
            ClusterChoice::Weighted(clusters) => {
                let named = clusters.iter().filter(|cluster| cluster.name_header.is_none());
                names.extend(named.map(|cluster| Arc::clone(&cluster.name)));
            }
            ClusterChoice::Header(_) => {}
        }
    }
    names
}

fn mirrors(policies: &[MirrorPolicy], names: &mut BTreeSet<Arc<str>>) {
    for policy in policies {
        if let MirrorCluster::Name(name) = &policy.cluster {
            names.insert(Arc::clone(name));
        }
    }
}
