//! Clusters and endpoints (`envoy.config.cluster.v3.Cluster`, `envoy.config.endpoint.v3.ClusterLoadAssignment`).
//!
//! Owns the checked model. Never resolves, connects or balances.

mod balancing;
mod concurrency;
#[cfg(test)]
mod custom_tests;
mod discovery;
mod dns;
mod dns_cache;
mod endpoints;
mod error_matcher;
mod health_check;
mod health_check_custom;
mod health_check_probe;
mod http;
mod http_proxy;
mod limits;
mod load_reports;
mod outlier;
mod parse;
#[cfg(test)]
mod policy_tests;
mod request_policies;
#[cfg(test)]
mod tests;
mod transport;

use std::sync::Arc;
use std::time::Duration;

use crate::address::{Address, EndpointAddress};
use crate::dns::DnsResolver;
use crate::http::filters::UpstreamFilters;
use crate::http::{Http1Options, Http2Options};
use crate::istio::{ClusterHints, MetadataExchange};
use crate::listener::{SocketOption, TcpKeepalive};
use crate::matcher::Matcher;
use crate::metadata::Namespaces;
use crate::source::ConfigSource;
use crate::units::{Fraction, Percent};

pub(crate) use balancing::lb_metadata;
pub use balancing::{
    BalancingOptions, Consistent, Fallback, HashFunction, LbMetadata, LbValue, LoadBalancing, LocalityBalancing,
    MetadataPath, OutOfBand, OverrideHosts, OverrideSource, OverrideStatus, PeakEwma, ReportOptions, ReportedMetric,
    SelectorFallback, SlowStart, SubsetOptions, SubsetSelector, ZoneAware,
};
pub(crate) use concurrency::queue_hints;
pub use concurrency::{Caller, Concurrency, MAX_CLASS, MAX_OFFSET_MS, OverLimit, PriorityClass, QueueHints};
pub use dns_cache::{AddressFilter, DnsCache};
pub use error_matcher::ErrorMatcher;
pub use health_check::{CheckIntervals, EndpointCheck, HealthCheck};
pub use health_check_custom::AgentProbe;
pub use health_check_probe::{GrpcProbe, HttpProbe, Probe, ProbeHeader, ProxyProtocolVersion, TcpProbe};
pub(crate) use http_proxy::tunneled;
pub use http_proxy::{HttpProxy, TunneledTransport};
pub use load_reports::LoadReports;
pub use outlier::{Consecutive, Ejection, FailurePercentage, OutlierDetection, SuccessRate};
pub use request_policies::RequestPolicies;
pub use transport::{
    InternalTransport, PassedMetadata, PassedMetadataOwner, Preconnect, ProxiedTransport, ProxyHeaderSettings,
    TlvFilter, TransportMatch, UpstreamTransport,
};

/// A cluster, checked.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Unique name.
    pub name: Arc<str>,
    /// Its metadata as it came: hardly anybody asks, so that it is read when somebody does.
    pub metadata: Option<Box<[u8]>>,
    /// The `<name>` in `cluster.<name>.*` stats: `alt_stat_name` if given.
    pub stat_name: Arc<str>,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// 5 s unless given.
    pub connect_timeout: Duration,
    /// Soft limit on bytes buffered per connection, 1 MiB unless given.
    pub per_connection_buffer_limit_bytes: u32,
    /// How an endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// What surrounds that choice.
    pub balancing: BalancingOptions,
    /// Limits for default and high priority.
    pub circuit_breakers: CircuitBreakers,
    /// Limits on requests in flight over which they wait; `None` where only breakers limit.
    pub concurrency: Option<Box<Concurrency>>,
    /// HTTP towards its endpoints.
    pub http: UpstreamHttp,
    /// What it says in place of routes, where it says something.
    pub requests: Option<Box<RequestPolicies>>,
    /// TLS, or none.
    pub transport: UpstreamTransport,
    /// Transports of endpoints that say they have them, the first that fits; `transport` for the others.
    pub transport_matches: Vec<TransportMatch>,
    /// Connections that were made with a certificate or trust that has been replaced are cut after this; unless given,
    /// they may take as long as what they carry.
    pub retire_within: Option<Duration>,
    /// Says which of them an endpoint has, in place of what each of them asks for.
    pub transport_matcher: Option<Box<Matcher<usize>>>,
    /// SO_KEEPALIVE of its connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// In which order the addresses of an endpoint are tried.
    pub happy_eyeballs: HappyEyeballs,
    /// Connections that are made before they are needed.
    pub preconnect: Option<Box<Preconnect>>,
    /// Each downstream connection has upstream connections of its own.
    pub pool_per_downstream: bool,
    /// Source address of its connections.
    pub bind: Option<Box<BindConfig>>,
    /// Share of healthy endpoints under which all are used; 50 % unless given, 0 never.
    pub healthy_panic_threshold: Percent,
    /// Endpoint updates within this time are applied at once; 1 s unless given, zero for at once.
    pub update_merge_window: Duration,
    /// Requests on one connection; unlimited unless given.
    pub max_requests_per_connection: Option<u32>,
    /// Endpoints that discovery removed go at once even if health checks like them.
    pub ignore_health_on_host_removal: bool,
    /// How endpoints that do worse than others are found; not at all when `None`.
    pub outlier_detection: Option<Box<OutlierDetection>>,
    /// TCP sessions with an endpoint end when checks or outlier detection fail it.
    pub close_connections_on_host_health_failure: bool,
    /// How endpoints are checked; not at all when empty. An endpoint is healthy that passes all of them.
    pub health_checks: Box<[HealthCheck]>,
    /// Where its load is reported to, if anywhere.
    pub load_reports: Option<LoadReports>,
    /// Metrics that endpoints tell with their answers, and that go into load reports. Source:
    /// `lrs_report_endpoint_metrics`.
    pub load_metrics: Box<[ReportedMetric]>,
    /// What Istio says about it.
    pub istio: ClusterHints,
    /// Proxied TCP connections that negotiate its protocol begin with it.
    pub metadata_exchange: Option<Arc<MetadataExchange>>,
}

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug)]
pub enum Discovery {
    /// Written in the cluster.
    Static(Arc<Assignment>),
    /// All addresses that DNS returns for each named endpoint.
    StrictDns { assignment: Arc<Assignment>, dns: DnsOptions },
    /// One named endpoint; each new connection goes to its first address.
    LogicalDns { assignment: Arc<Assignment>, dns: DnsOptions },
    /// Endpoint discovery.
    Eds { service_name: Arc<str>, source: ConfigSource },
    /// The original destination of the downstream connection.
    OriginalDst(OriginalDstOptions),
    /// Those of other clusters, in this order (`envoy.clusters.aggregate`).
    Aggregate(Arc<[Arc<str>]>),
    /// Whatever name a request or connection asks for (`envoy.clusters.dynamic_forward_proxy`).
    DynamicForward(Arc<DnsCache>),
}

impl Discovery {
    /// The cluster itself says where requests go; there is no balancing policy.
    pub fn provides_choice(&self) -> bool {
        matches!(self, Self::OriginalDst(_) | Self::Aggregate(_) | Self::DynamicForward(_))
    }

    /// Its name in messages, for a type that brings its own policy.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Static(_) => "STATIC",
            Self::StrictDns { .. } => "STRICT_DNS",
            Self::LogicalDns { .. } => "LOGICAL_DNS",
            Self::Eds { .. } => "EDS",
            Self::OriginalDst(_) => "ORIGINAL_DST",
            Self::Aggregate(_) => "envoy.clusters.aggregate",
            Self::DynamicForward(_) => "envoy.clusters.dynamic_forward_proxy",
        }
    }
}

/// Which address of an endpoint comes first. Source: `UpstreamConnectionOptions.HappyEyeballsConfig`, RFC 8305.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HappyEyeballs {
    /// IPv6 first, or IPv4; the family of the first address when `None`.
    pub first_is_ipv6: Option<bool>,
    /// So many addresses of the first family come before the first of the other; 1 unless given.
    pub first_count: u32,
}

impl Default for HappyEyeballs {
    fn default() -> Self {
        Self { first_is_ipv6: None, first_count: 1 }
    }
}

/// DNS settings of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsOptions {
    /// 5 s unless given.
    pub refresh_rate: Duration,
    /// Added to the refresh time, at random up to this.
    pub jitter: Duration,
    /// First wait after a failure; the refresh rate unless given.
    pub failure_base_interval: Duration,
    /// Longest wait after failures.
    pub failure_max_interval: Duration,
    /// The answer's TTL replaces the refresh rate.
    pub respect_ttl: bool,
    /// The shortest wait that a TTL can ask for.
    pub min_refresh_rate: Option<Duration>,
    /// Which addresses to ask for.
    pub family: DnsFamily,
    /// How names are resolved; as the bootstrap says when `None`.
    pub resolver: Option<DnsResolver>,
}

/// Source: `Cluster.DnsLookupFamily`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum DnsFamily {
    /// IPv6, and IPv4 if there is none.
    #[default]
    Auto,
    /// IPv4.
    V4Only,
    /// IPv6.
    V6Only,
    /// IPv4, and IPv6 if there is none.
    V4Preferred,
    /// Both.
    All,
}

/// Source: `Cluster.OriginalDstLbConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct OriginalDstOptions {
    /// The destination may stand in this request header (`x-envoy-original-dst-host` unless given).
    pub http_header: Option<Arc<str>>,
    /// Replaces the destination's port.
    pub upstream_port_override: Option<u16>,
    /// The destination may stand in dynamic metadata.
    pub metadata: Option<MetadataPath>,
    /// Unused endpoints are forgotten after this; 5 s unless given.
    pub cleanup_interval: Duration,
}

/// Both priorities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CircuitBreakers {
    /// For requests of default priority.
    pub default: Thresholds,
    /// For requests of high priority.
    pub high: Thresholds,
    /// Connections per endpoint; unlimited unless given.
    pub per_host_max_connections: Option<u32>,
}

/// Source: `CircuitBreakers.Thresholds`; 1,024 each but 3 retries unless given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Connections to all endpoints.
    pub max_connections: u32,
    /// Requests waiting for a connection.
    pub max_pending_requests: u32,
    /// Requests in flight.
    pub max_requests: u32,
    /// Retries in flight.
    pub max_retries: u32,
    /// Publish the `remaining_*` gauges.
    pub track_remaining: bool,
    /// Replaces `max_retries`: share of active requests, and the least number.
    pub retry_budget: Option<RetryBudget>,
}

/// Source: `CircuitBreakers.Thresholds.RetryBudget`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// 20 % unless given.
    pub budget: Percent,
    /// 3 unless given.
    pub min_retry_concurrency: u32,
    /// The share is one of the requests that began within this time instead of those that are active or pending.
    pub interval: Option<Duration>,
}

/// HTTP towards a cluster. Source: `envoy.extensions.upstreams.http.v3.HttpProtocolOptions` or the older fields.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamHttp {
    /// Which version.
    pub protocol: UpstreamProtocol,
    /// HTTP/1 options.
    pub http1: Http1Options,
    /// HTTP/2 options.
    pub http2: Http2Options,
    /// Connections without requests are closed after this; 1 h unless given.
    pub idle_timeout: Option<Duration>,
    /// Connections take no new requests after this age.
    pub max_connection_duration: Option<Duration>,
    /// Limit on the number of response headers; 100 unless given.
    pub max_headers_count: u32,
    /// Limit on the size of response heads; 60 KiB unless given.
    pub max_response_headers_bytes: u32,
    /// Limit on the age of a stream.
    pub max_stream_duration: Option<Duration>,
    /// What outlier detection takes for an error; 5xx when `None`.
    pub error_matcher: Option<ErrorMatcher>,
    /// What requests pass through once their endpoint was chosen, instead of what the router says.
    pub filters: Option<Arc<UpstreamFilters>>,
    /// SNI is the request's host.
    pub auto_sni: bool,
    /// The certificate must be valid for the request's host.
    pub auto_san_validation: bool,
    /// The header that has its place, where it has one.
    pub override_auto_sni_header: Option<Arc<str>>,
}

/// Which HTTP version an upstream is spoken to with.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Whatever the downstream speaks.
    UseDownstream,
    /// By ALPN on TLS.
    Auto,
}

/// Source: `BindConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct BindConfig {
    /// Source address.
    pub source: Option<std::net::SocketAddr>,
    /// Source addresses for destinations of the other family.
    pub extra_sources: Vec<SourceAddress>,
    /// IP_FREEBIND.
    pub freebind: bool,
    /// Set before connecting.
    pub socket_options: Vec<SocketOption>,
}

impl BindConfig {
    /// The source address for connections to `destination`: the first of its family.
    pub fn source_for(&self, destination: std::net::SocketAddr) -> Option<std::net::SocketAddr> {
        let extra = self.extra_sources.iter().map(|extra| &extra.address);
        self.source.iter().chain(extra).find(|source| source.is_ipv4() == destination.is_ipv4()).copied()
    }

    /// The options of sockets to `destination`: those of its source address, if that has its own.
    pub fn options_for(&self, destination: std::net::SocketAddr) -> &[SocketOption] {
        let of_source = match self.source {
            Some(source) if source.is_ipv4() == destination.is_ipv4() => None,
            _ => self.extra_sources.iter().find(|extra| extra.address.is_ipv4() == destination.is_ipv4()),
        };
        of_source.and_then(|extra| extra.socket_options.as_deref()).unwrap_or(&self.socket_options)
    }
}

/// A further source address. Source: `ExtraSourceAddress`.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceAddress {
    /// The address.
    pub address: std::net::SocketAddr,
    /// In place of the others, if given.
    pub socket_options: Option<Vec<SocketOption>>,
}

/// The endpoints of a cluster, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// The cluster or service name.
    pub name: Arc<str>,
    /// Localities with an index for the same (priority, locality) being unique; priorities have no gaps.
    pub localities: Vec<LocalityEndpoints>,
    /// 140 % unless given.
    pub overprovisioning_factor: u32,
    /// The health of a priority is that of its weights, instead of that of its endpoints.
    pub weighted_priority_health: bool,
    /// The share of requests that are answered at once instead of going to an endpoint; none unless given.
    pub drop_overload: Option<Fraction>,
    /// Without another assignment in this time, the endpoints are gone; never unless given. Counts for discovered ones.
    pub stale_after: Option<Duration>,
}

/// Endpoints in one place.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalityEndpoints {
    /// Where.
    pub locality: Locality,
    /// 0 is the highest.
    pub priority: u32,
    /// Share among localities of its priority, where the policy weighs localities.
    pub weight: Option<u32>,
    /// What they say of their transport unless they say something themselves.
    pub transport: Option<Arc<LbMetadata>>,
    /// What is said of them for balancing (`envoy.lb`).
    pub metadata: Option<Arc<LbMetadata>>,
    /// In the order given.
    pub endpoints: Vec<Endpoint>,
}

/// Source: `envoy.config.core.v3.Locality`.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Locality {
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Sub-zone.
    pub sub_zone: String,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Where.
    pub address: EndpointAddress,
    /// Further addresses of the same endpoint, tried when the first does not answer.
    pub additional_addresses: Vec<Address>,
    /// Its name, for `auto_host_rewrite`; may be empty.
    pub hostname: Arc<str>,
    /// 1 unless given.
    pub weight: u32,
    /// Requests that it takes at a time, where it says so itself.
    pub max_requests: Option<u32>,
    /// What discovery says.
    pub health: HealthStatus,
    /// What it says of itself for balancing (`envoy.lb`); endpoints that say the same share it.
    pub metadata: Option<Arc<LbMetadata>>,
    /// What it says of its transport (`envoy.transport_socket_match`); shared likewise.
    pub transport: Option<Arc<LbMetadata>>,
    /// What it says about its checks.
    pub health_check: Option<Arc<EndpointCheck>>,
    /// All its metadata, where it leads into a listener of this process: parts may be passed on.
    pub passed: Option<Arc<Namespaces>>,
    /// The HTTP proxy that it, or else its locality, names for its connections, where the transport goes by that.
    pub http_proxy: Option<Arc<Address>>,
}

/// Source: `envoy.config.core.v3.HealthStatus`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum HealthStatus {
    /// Not said; counts as healthy.
    #[default]
    Unknown,
    /// Healthy.
    Healthy,
    /// Unhealthy.
    Unhealthy,
    /// No new requests.
    Draining,
    /// Counts as unhealthy.
    Timeout,
    /// Used when there is nothing better.
    Degraded,
}
