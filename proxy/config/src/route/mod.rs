//! Route configurations (`envoy.config.route.v3.RouteConfiguration`).
//!
//! Owns the checked model of virtual hosts, routes and actions. Never matches requests (see `outrigger-policy`).

mod answer;
mod entry;
mod forward;
mod hash_policy;
mod hedge;
mod internal_redirect;
mod matches;
mod mirror;
mod parse;
mod retry;
mod retry_hosts;
mod rewrite;
mod scope;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{LbMetadata, ProxyHeaderSettings, QueueHints};
use crate::format::Format;
use crate::http::filters::CorsPolicy;
use crate::http::{HeaderMutations, RouteFilters};
use crate::matcher::Matcher;
use crate::matching::UriRewrite;
use crate::metadata::Namespaces;
use crate::rate_limit::RateLimit;
use crate::source::ConfigSource;
use crate::tracing::RouteTrace;

pub(crate) use forward::priority;
pub(crate) use hash_policy::hash_policies;
pub use hash_policy::{HashCookie, HashPolicy, HashSource};
pub use matches::{
    CookieMatcher, HeaderMatch, HeaderMatcher, PathMatch, QueryMatch, QueryParameterMatcher, RouteMatch, StreamMatch,
};
pub(crate) use matches::{header_matcher, query_parameter_matcher, route_match};
pub(crate) use mirror::mirror_policies;
pub use mirror::{MirrorCluster, MirrorHost, MirrorPolicy};
pub use parse::DomainConflict;
pub(crate) use retry::retry_policy;
pub use retry::{RateLimitedBackOff, ResetFormat, RetryOn, RetryPolicy};
pub use retry_hosts::AvoidedHosts;
pub(crate) use rewrite::regex_rewrite;
pub use scope::{ScopeRoutes, ScopedRoute};

/// A route configuration, checked.
#[derive(Clone, Debug)]
pub struct RouteConfiguration {
    /// The name that connection managers ask for.
    pub name: Arc<str>,
    /// Where further virtual hosts come from; only of discovered configurations. Source: `RouteConfiguration.vhds`.
    pub more_virtual_hosts: Option<Box<ConfigSource>>,
    /// Domains are unique across all of them.
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// Applied to requests of all routes.
    pub request_headers: HeaderMutations,
    /// Applied to responses of all routes.
    pub response_headers: HeaderMutations,
    /// Removed from requests of external clients; lower case.
    pub internal_only_headers: Vec<Arc<str>>,
    /// Route mutations run last (and so win) instead of first.
    pub most_specific_header_mutations_wins: bool,
    /// Refuse the configuration if a cluster it names does not exist.
    pub validate_clusters: bool,
    /// Where the host stands instead of `:authority`; lower case.
    pub host_header: Option<Arc<str>>,
    /// The path is matched without what follows its first `;`.
    pub ignore_path_parameters: bool,
    /// The host is matched without its port.
    pub ignore_port_in_host_matching: bool,
    /// Clusters that get copies, unless a more specific level has its own.
    pub mirrors: Vec<MirrorPolicy>,
    /// What is said of HTTP filters.
    pub filters: RouteFilters,
}

/// A virtual host.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    /// For stats and logs.
    pub name: Arc<str>,
    /// Lower case: exact, `*.suffix`, `prefix.*` or `*`.
    pub domains: Vec<String>,
    /// First match wins, among all or among those that `matcher` leads to.
    pub routes: Vec<Arc<Route>>,
    /// Leads to positions among the routes.
    pub matcher: Option<Box<Matcher<Box<[usize]>>>>,
    /// Bytes of request bodies that are kept to be sent again, unless the route has its own limit.
    pub body_limit: Option<u64>,
    /// Which requests must have come by TLS, others are redirected.
    pub require_tls: RequireTls,
    /// Applied to requests.
    pub request_headers: HeaderMutations,
    /// Applied to responses.
    pub response_headers: HeaderMutations,
    /// Adds x-envoy-attempt-count to requests.
    pub include_request_attempt_count: bool,
    /// Adds x-envoy-attempt-count to responses.
    pub include_attempt_count_in_response: bool,
    /// By which requests are counted: the first that fits.
    pub virtual_clusters: Box<[VirtualCluster]>,
    /// Adds x-envoy-is-timeout-retry to requests that are tried again.
    pub include_is_timeout_retry: bool,
    /// For routes that have none of their own.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// Whether a try that is late goes on beside the next one, for routes that do not say. Source: `hedge_policy`.
    pub hedges: Option<bool>,
    /// What is allowed other origins where nothing is said of the filter. Source: the deprecated `cors`.
    pub cors: Option<Arc<CorsPolicy>>,
    /// Clusters that get copies, unless a more specific level has its own.
    pub mirrors: Vec<MirrorPolicy>,
    /// What requests are counted by.
    pub rate_limits: Box<[RateLimit]>,
    /// What is said of HTTP filters.
    pub filters: RouteFilters,
}

/// Source: `VirtualCluster`.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualCluster {
    /// The `<name>` in `vhost.<virtual host>.vcluster.<name>.*` stats.
    pub name: Arc<str>,
    /// All must match.
    pub headers: Vec<HeaderMatcher>,
}

/// Source: `VirtualHost.TlsRequirementType`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum RequireTls {
    /// No requirement.
    #[default]
    None,
    /// Requests of external clients.
    ExternalOnly,
    /// All requests.
    All,
}

/// A route: for which requests, and what happens to them.
#[derive(Clone, Debug)]
pub struct Route {
    /// May be empty.
    pub name: Arc<str>,
    /// Which requests.
    pub matches: RouteMatch,
    /// What happens.
    pub action: RouteAction,
    /// Applied to requests.
    pub request_headers: HeaderMutations,
    /// Applied to responses.
    pub response_headers: HeaderMutations,
    /// The `<prefix>` in `vhost.<name>.route.<prefix>.*` stats; none unless given.
    pub stat_prefix: Option<Arc<str>>,
    /// What is said of HTTP filters.
    pub filters: RouteFilters,
    /// Bytes of request bodies that are kept to be sent again.
    pub body_limit: Option<u64>,
    /// By namespace; for filters to read.
    pub metadata: Option<Arc<Namespaces>>,
    /// What is said of tracing.
    pub trace: Option<Box<RouteTrace>>,
}

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum RouteAction {
    /// It goes to a cluster.
    Forward(Box<Forward>),
    /// It is answered here with a 3xx.
    Redirect(Box<Redirect>),
    /// It is answered here.
    Direct(Box<DirectResponse>),
    /// Source: `NonForwardingAction`; answered with 500 by a proxy that forwards.
    NonForwarding,
}

/// Source: `envoy.config.route.v3.RouteAction`.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Where to.
    pub cluster: ClusterChoice,
    /// How one of weighted clusters is chosen.
    pub weight_choice: WeightChoice,
    /// 503 unless given: for clusters that do not exist.
    pub cluster_not_found_code: u16,
    /// Clusters that get copies; those of the virtual host or the configuration if there are none here.
    pub mirrors: Vec<MirrorPolicy>,
    /// Replaces the matched prefix or path.
    pub prefix_rewrite: Option<String>,
    /// Replaces a part of the path.
    pub regex_rewrite: Option<RegexRewrite>,
    /// Replaces `:authority`.
    pub host_rewrite: HostRewrite,
    /// The old host is kept in x-forwarded-host when it is rewritten.
    pub append_x_forwarded_host: bool,
    /// From the last request byte to the last response byte; 15 s unless given, `None` for `0s`.
    pub timeout: Option<Duration>,
    /// Of the stream; `None` leaves the connection manager's, `Some(ZERO)` disables.
    pub idle_timeout: Option<Duration>,
    /// Limit on the stream's duration, and how grpc-timeout moves it.
    pub max_stream_duration: Option<MaxStreamDuration>,
    /// Taken off grpc-timeout before that limit.
    pub grpc_timeout_offset: Option<Duration>,
    /// Deprecated predecessor: limit of grpc-timeout; `Some(ZERO)` is no limit.
    pub max_grpc_timeout: Option<Duration>,
    /// When to try again.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// Whether a try that is late goes on beside the next one. Source: `hedge_policy`.
    pub hedges: Option<bool>,
    /// What is allowed other origins where nothing is said of the filter. Source: the deprecated `cors`.
    pub cors: Option<Arc<CorsPolicy>>,
    /// Which circuit breaker thresholds count.
    pub priority: Priority,
    /// Upgrades of this route, lower case, and whether they are enabled.
    pub upgrades: Vec<(String, bool)>,
    /// CONNECT ends here: what comes through it goes to the cluster as it is. Source: `connect_config`.
    pub connect: Option<Box<ConnectEnd>>,
    /// What consistent policies choose an endpoint by.
    pub hash_policy: Arc<[HashPolicy]>,
    /// The subset of endpoints that is wanted.
    pub metadata_match: Option<Arc<LbMetadata>>,
    /// Replaces the path by what is written, unless that is nothing. Source: `path_rewrite`.
    pub path_format: Option<Box<Format>>,
    /// Replaces the path by a template.
    pub template_rewrite: Option<Box<UriRewrite>>,
    /// What the route says about waiting for an endpoint.
    pub queue: Option<Box<QueueHints>>,
    /// What requests are counted by.
    pub rate_limits: Box<[RateLimit]>,
    /// Those of the virtual host count as well.
    pub include_virtual_host_rate_limits: bool,
    /// Which redirects of the upstream are followed here; none unless given.
    pub internal_redirect: Option<Box<InternalRedirect>>,
}

/// How CONNECT ends here. Source: `RouteAction.UpgradeConfig.ConnectConfig`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConnectEnd {
    /// So does POST: its body goes to the cluster as it is. Source: `allow_post`.
    pub takes_post: bool,
    /// What stands before it on the connection. Source: `proxy_protocol_config`.
    pub proxy_header: Option<ProxyHeaderSettings>,
}

impl ConnectEnd {
    /// Whether it is for requests with this method.
    pub fn takes(&self, method: &[u8]) -> bool {
        method == b"CONNECT" || self.takes_post && method == b"POST"
    }
}

/// Source: `InternalRedirectPolicy`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InternalRedirect {
    /// How many a request may have gone through; 1 unless given.
    pub max_redirects: u32,
    /// Status codes that are followed; 302 unless given.
    pub codes: Vec<u16>,
    /// From plain text to TLS or back.
    pub allow_cross_scheme: bool,
    /// All must want the route that a redirect leads to.
    pub predicates: Vec<RedirectPredicate>,
    /// Headers that the next request takes over from the response, or loses; lower case.
    pub copied_headers: Vec<Arc<str>>,
}

/// What must hold for the route that a redirect leads to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RedirectPredicate {
    /// Its name is one of these.
    AllowListedRoutes(Vec<Arc<str>>),
    /// The same route has not redirected there before.
    PreviousRoutes,
    /// It does not lead from plain text to TLS.
    SafeCrossScheme,
}

/// Which cluster a request goes to.
#[derive(Clone, Debug)]
pub enum ClusterChoice {
    /// By name.
    Cluster(Arc<str>),
    /// By weight.
    Weighted(Vec<WeightedCluster>),
    /// The name stands in a request header.
    Header(Arc<str>),
}

/// What decides among weighted clusters.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum WeightChoice {
    /// Chance.
    #[default]
    Random,
    /// The number in a request header; chance without one.
    Header(Arc<str>),
    /// The hash of the route's policies; chance without one.
    Hash,
}

/// One of several clusters.
#[derive(Clone, Debug)]
pub struct WeightedCluster {
    /// Its name; empty if a header has it.
    pub name: Arc<str>,
    /// The request header that its name stands in; lower case.
    pub name_header: Option<Arc<str>>,
    /// Its share of the sum.
    pub weight: u32,
    /// The runtime key that may have another share.
    pub runtime_key: Option<Box<str>>,
    /// Applied to requests that go there.
    pub request_headers: HeaderMutations,
    /// Applied to responses from there.
    pub response_headers: HeaderMutations,
    /// Replaces `:authority` of requests that go there.
    pub host_rewrite_literal: Option<String>,
    /// The subset of its endpoints that is wanted, with what the route says of it.
    pub metadata_match: Option<Arc<LbMetadata>>,
    /// What is said of HTTP filters.
    pub filters: RouteFilters,
}

/// Source: `RegexMatchAndSubstitute`.
#[derive(Clone, Debug)]
pub struct RegexRewrite {
    /// What to replace, wherever it occurs.
    pub pattern: regex::Regex,
    /// With what; captures as `${1}` in the regex crate's syntax.
    pub substitution: String,
}

/// Source: `host_rewrite_specifier`.
#[derive(Clone, Debug, Default)]
pub enum HostRewrite {
    /// As it came.
    #[default]
    Keep,
    /// This one.
    Literal(String),
    /// The endpoint's host name (of DNS clusters).
    Auto,
    /// The value of a request header; lower case.
    Header(Arc<str>),
    /// From the path.
    PathRegex(RegexRewrite),
}

/// Source: `RouteAction.MaxStreamDuration`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MaxStreamDuration {
    /// `Some(ZERO)` disables the connection manager's.
    pub max_stream_duration: Option<Duration>,
    /// grpc-timeout counts up to this; `Some(ZERO)` is without limit.
    pub grpc_timeout_header_max: Option<Duration>,
    /// Taken off grpc-timeout.
    pub grpc_timeout_header_offset: Option<Duration>,
}

/// Source: `RoutingPriority`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Priority {
    /// The default.
    #[default]
    Default,
    /// High.
    High,
}

/// Source: `envoy.config.route.v3.RedirectAction`.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// Replaces the scheme.
    pub scheme: SchemeRedirect,
    /// Replaces the host.
    pub host: Option<String>,
    /// Replaces the port.
    pub port: Option<u16>,
    /// Replaces the path.
    pub path: PathRedirect,
    /// 301 unless given.
    pub status: u16,
    /// The query is dropped.
    pub strip_query: bool,
}

/// How a redirect sets the scheme.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum SchemeRedirect {
    /// As it came.
    #[default]
    Keep,
    /// `https`.
    Https,
    /// This one.
    Scheme(String),
}

/// How a redirect sets the path.
#[derive(Clone, Debug, Default)]
pub enum PathRedirect {
    /// As it came.
    #[default]
    Keep,
    /// This one; its own query, if any, replaces the request's.
    Path(String),
    /// The matched prefix is replaced.
    Prefix(String),
    /// A part is replaced.
    Regex(RegexRewrite),
}

/// Source: `DirectResponseAction`.
#[derive(Clone, Debug)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// May be empty.
    pub body: Arc<[u8]>,
    /// Replaces the body, with command operators.
    pub body_format: Option<Format>,
}
