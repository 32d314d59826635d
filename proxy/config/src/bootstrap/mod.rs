//! The bootstrap (`envoy.config.bootstrap.v3.Bootstrap`).
//!
//! Owns the checked model of what a process starts from. Never reads files or starts anything.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3::Node;

use crate::accesslog::AccessLog;
use crate::address::Address;
use crate::cluster::{Assignment, BindConfig, Cluster};
use crate::dns::DnsResolver;
use crate::listener::{Listener, SocketOption};
use crate::overload::OverloadManager;
use crate::source::{ApiSource, ConfigSource, GoogleTarget};
use crate::tls::Secret;
use crate::tracing::TraceProvider;

mod dynamic;
mod parse;
mod process;
mod runtime;
mod sinks;
mod statics;
mod stats;

pub use runtime::runtime_layer;
pub use sinks::{
    MetricConversion, MetricsServiceSink, OtlpMetricsSink, StatsSink, StatsdDialect, StatsdReceiver, StatsdSink,
};

/// A bootstrap, checked.
#[derive(Debug)]
pub struct Bootstrap {
    /// Sent to management servers as it stands, with our user agent added by the caller.
    pub node: Node,
    /// Clusters of `google_grpc` targets that the resources of the bootstrap name.
    pub google_targets: Vec<Arc<GoogleTarget>>,
    /// From `static_resources.listeners`.
    pub listeners: Vec<Arc<Listener>>,
    /// From `static_resources.clusters`.
    pub clusters: Vec<Arc<Cluster>>,
    /// From `static_resources.secrets`.
    pub secrets: Vec<Arc<Secret>>,
    /// Where listeners are discovered.
    pub lds: Option<ConfigSource>,
    /// Where clusters are discovered.
    pub cds: Option<ConfigSource>,
    /// The aggregated stream.
    pub ads: Option<Arc<ApiSource>>,
    /// The admin port; none unless given.
    pub admin: Option<Admin>,
    /// In order, later layers win; one admin layer at most.
    pub runtime: Vec<RuntimeLayer>,
    /// How stat names turn into tags, and which exist.
    pub stats: StatsConfig,
    /// Where stats are sent.
    pub stats_sinks: Vec<StatsSink>,
    /// Between flushes to sinks; 5 s unless given. `None` flushes when the admin port is asked for stats, and only then.
    pub stats_flush_interval: Option<Duration>,
    /// Between two looks for stats that requests have brought about and that nobody counts in; `None` if these stay.
    pub stats_eviction_interval: Option<Duration>,
    /// How the process is protected from overload; `None` if nothing is said about that.
    pub overload: Option<OverloadManager>,
    /// What a connection to a listener of this process holds in each direction before its writer waits, in bytes. Source:
    /// `envoy.extensions.bootstrap.internal_listener.v3.InternalListener`.
    pub internal_buffer_bytes: usize,
    /// `cluster_manager.local_cluster_name`.
    pub local_cluster_name: Option<Arc<str>>,
    /// Where ejections by outlier detection are logged (`cluster_manager.outlier_detection.event_log_path`).
    pub outlier_event_log: Option<PathBuf>,
    /// Where the load of all clusters is reported to (`cluster_manager.load_stats_config`).
    pub load_reports: Option<Arc<ApiSource>>,
    /// Where upstream connections come from, unless their cluster says so itself.
    pub upstream_bind: Option<BindConfig>,
    /// How names are resolved, unless a cluster says so itself; as the system does when `None`.
    pub dns: Option<DnsResolver>,
    /// Where connection managers that name no provider send their spans.
    pub tracing: Option<Arc<TraceProvider>>,
    /// Shown as `server.version` instead of the one of this build.
    pub stats_server_version: Option<u64>,
    /// `x-envoy` unless given.
    pub header_prefix: String,
    /// Log line format (`application_log_config`), if given.
    pub log_format: Option<ApplicationLogFormat>,
}

/// A static cluster may come with an assignment; kept apart for dumps.
pub type StaticAssignments = BTreeMap<Arc<str>, Arc<Assignment>>;

/// Source: `Admin`.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where it listens.
    pub address: Address,
    /// Set on the listening socket.
    pub socket_options: Vec<SocketOption>,
    /// Written for each request.
    pub access_logs: Vec<Arc<AccessLog>>,
    /// Only paths, with their query, that one of these matches are served; all if empty. Source: `allow_paths`.
    pub allowed_paths: Vec<crate::matching::StringMatcher>,
}

/// Source: `application_log_config.log_format`.
#[derive(Clone, Debug, PartialEq)]
pub enum ApplicationLogFormat {
    /// spdlog pattern letters.
    Text(String),
    /// Key to pattern, one JSON object a line.
    Json(Vec<(String, String)>),
}

/// Source: `RuntimeLayer`.
#[derive(Clone, Debug)]
pub struct RuntimeLayer {
    /// Unique.
    pub name: Arc<str>,
    /// Where its values come from.
    pub kind: RuntimeLayerKind,
}

/// Where runtime values come from.
#[derive(Clone, Debug)]
pub enum RuntimeLayerKind {
    /// In the bootstrap.
    Static(RuntimeValues),
    /// A directory, one file a key; `append_service_cluster` adds the node's cluster to the path.
    Disk { symlink_root: PathBuf, subdirectory: String, append_service_cluster: bool },
    /// Set through the admin port.
    Admin,
    /// By runtime discovery.
    Rtds { name: Arc<str>, source: ConfigSource },
}

/// Flattened keys (`a.b.c`) and their values.
pub type RuntimeValues = BTreeMap<String, RuntimeValue>;

/// One runtime value, as text and as what it can be read as.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeValue {
    /// As written.
    pub text: String,
    /// If it is a number.
    pub number: Option<f64>,
    /// If it is `true` or `false`.
    pub flag: Option<bool>,
    /// If it is a FractionalPercent object.
    pub fraction: Option<crate::units::Fraction>,
}

/// Source: `StatsConfig`.
#[derive(Clone, Debug)]
pub struct StatsConfig {
    /// Extra rules, in order; the first group is removed from the name, the second is the value.
    pub tags: Vec<StatsTag>,
    /// The default rules apply too (true unless disabled).
    pub use_all_default_tags: bool,
    /// A rule in `tags` replaces the default one of the same name, instead of giving way to it.
    pub allow_default_tag_overrides: bool,
    /// Which stats exist.
    pub matcher: StatsMatcher,
    /// Bucket bounds (of Prometheus output) by stat name.
    pub histogram_buckets: Vec<(crate::matching::StringMatcher, Vec<f64>)>,
}

/// Source: `TagSpecifier`.
#[derive(Clone, Debug, PartialEq)]
pub struct StatsTag {
    /// The tag's name.
    pub name: String,
    /// Where its value comes from.
    pub value: StatsTagValue,
}

/// Source: `TagSpecifier.tag_value`.
#[derive(Clone, Debug, PartialEq)]
pub enum StatsTagValue {
    /// ECMAScript regular expression (look-ahead included), compiled by the stats module. Empty: the default for this name.
    Regex(String),
    /// The same for every stat.
    Fixed(String),
}

/// Source: `StatsMatcher`.
#[derive(Clone, Debug, Default)]
pub enum StatsMatcher {
    /// All stats exist.
    #[default]
    All,
    /// None exists.
    None,
    /// Only those that match one of these.
    Include(Vec<crate::matching::StringMatcher>),
    /// All but those that match one of these.
    Exclude(Vec<crate::matching::StringMatcher>),
}
