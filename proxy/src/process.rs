//! What all threads of the process share.
//!
//! Owns the handles to stats, the graph and process-wide facts. Never changes after start but through those handles.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;

use outrigger_config::metadata::MetadataMap;

use crate::graph::{Demands, GraphCell};
use crate::health::Reports;
use crate::http::filter::SharedStates;
use crate::istio::Workload;
use crate::jwks::JwksStore;
use crate::load_report::LoadServers;
use crate::network::SharedBuckets;
use crate::overload::{ConnectionCounts, Overload};
use crate::stats::{Exemplars, Registry};
use crate::stream::WallClock;
use crate::tokens::TokenStore;
use crate::trace::TraceManager;
use crate::upstream::dns_cache::DnsQuestions;
use crate::worker::Workers;

/// Shared by all threads.
#[derive(Default)]
pub struct Process {
    /// All stats.
    pub stats: Registry,
    /// Examples of what histograms have counted.
    pub exemplars: Exemplars,
    /// The current graph.
    pub graph: GraphCell,
    /// Turns instants into wall-clock time.
    pub clock: WallClock,
    /// `node.id`, for headers that name this proxy.
    pub node_id: String,
    /// `node.cluster`.
    pub node_cluster: String,
    /// `node.locality.zone`.
    pub node_zone: String,
    /// `node.metadata`.
    pub node_metadata: MetadataMap,
    /// What a mesh is told about us.
    pub workload: Workload,
    /// What is done about overload.
    pub overload: Overload,
    /// Limit on downstream connections of the whole process.
    pub max_downstream_connections: Option<u64>,
    /// Downstream connections now.
    pub downstream_connections: AtomicU64,
    /// Downstream connections now, by listener.
    pub listener_connections: ConnectionCounts,
    /// What a connection to a listener of this process holds in each direction before its writer waits, in bytes.
    pub internal_buffer_bytes: usize,
    /// Token buckets that network filters share by a key.
    pub buckets: SharedBuckets,
    /// Names that workers want to have resolved.
    pub dns: DnsQuestions,
    /// What requests want to have discovered.
    pub demands: Demands,
    /// What workers notice about endpoints.
    pub reports: Reports,
    /// Who takes load reports.
    pub load_servers: LoadServers,
    /// What HTTP filters of all workers share.
    pub shared: SharedStates,
    /// Keys of token issuers.
    pub jwks: JwksStore,
    /// Tokens of this workload.
    pub tokens: TokenStore,
    /// `/healthcheck/fail` was ordered.
    pub health_check_failed: AtomicBool,
    /// Where spans go.
    pub traces: TraceManager,
    /// Somebody asked the admin port for stats; for sinks that are to get them then.
    pub stats_asked_for: Notify,
    /// Takes commands to the workers, once they run.
    pub workers: OnceLock<Workers>,
    connection_ids: AtomicU64,
}

impl Process {
    /// A connection id that nobody else has.
    pub fn next_connection_id(&self) -> u64 {
        self.connection_ids.fetch_add(1, Ordering::Relaxed)
    }
}
