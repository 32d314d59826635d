//! Stats of configuration: listener manager, cluster manager, subscriptions, runtime. One writer: the control thread.
//!
//! Owns the metrics' names. Never decides when they change.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_xds::{ResourceKind, SourceKey};

use super::balance_stats::BalanceStats;
use super::breaker_stats::Remaining;
use super::need::Need;
use crate::scope;
use crate::stats::{Counter, Gauge};

scope! {
    /// `listener_manager.*`
    pub struct ListenerManagerStats {
        listener_added: Counter,
        listener_create_failure: Counter,
        listener_create_success: Counter,
        listener_in_place_updated: Counter,
        listener_modified: Counter,
        listener_removed: Counter,
        listener_stopped: Counter,
        total_filter_chains_draining: Gauge,
        total_listeners_active: Gauge,
        total_listeners_draining: Gauge,
        total_listeners_warming: Gauge,
        workers_started: Gauge,
    }
}

scope! {
    /// `cluster_manager.*`
    pub struct ClusterManagerStats {
        active_clusters: Gauge,
        cluster_added: Counter,
        cluster_modified: Counter,
        cluster_removed: Counter,
        cluster_updated: Counter,
        cluster_updated_via_merge: Counter,
        update_merge_cancelled: Counter,
        update_out_of_merge_window: Counter,
        warming_clusters: Gauge,
    }
}

scope! {
    /// A subscription: `cluster_manager.cds.*`, `listener_manager.lds.*`, `http.<prefix>.rds.<name>.*`, `sds.<name>.*`.
    pub struct SubscriptionStats {
        config_reload: Counter,
        init_fetch_timeout: Counter,
        update_attempt: Counter,
        update_failure: Counter,
        update_rejected: Counter,
        update_success: Counter,
        update_time: Gauge,
        version: Gauge,
    }
}

impl SubscriptionStats {
    /// An update of this version was accepted.
    pub fn accepted(&self, version: &str, now: SystemTime) {
        self.update_success.increment();
        self.config_reload.increment();
        self.version.set(version_gauge(version));
        self.update_time.set(milliseconds(now));
    }
}

scope! {
    /// `http.<prefix>.scoped_rds.<name>.*`, beside those of the subscription.
    pub struct ScopedRoutesStats {
        active_scopes: Gauge,
        all_scopes: Gauge,
        config_reload_time_ms: Gauge,
        on_demand_scopes: Gauge,
    }
}

scope! {
    /// The control thread's part of `cluster.<name>.*`.
    pub struct ClusterControlStats {
        assignment_stale: Counter,
        assignment_timeout_received: Counter,
        default_cx_open: Gauge = "circuit_breakers.default.cx_open",
        default_rq_open: Gauge = "circuit_breakers.default.rq_open",
        default_rq_pending_open: Gauge = "circuit_breakers.default.rq_pending_open",
        default_rq_retry_open: Gauge = "circuit_breakers.default.rq_retry_open",
        high_cx_open: Gauge = "circuit_breakers.high.cx_open",
        high_rq_open: Gauge = "circuit_breakers.high.rq_open",
        high_rq_pending_open: Gauge = "circuit_breakers.high.rq_pending_open",
        high_rq_retry_open: Gauge = "circuit_breakers.high.rq_retry_open",
        init_fetch_timeout: UsedCounter,
        membership_change: Counter,
        membership_degraded: Gauge,
        membership_excluded: Gauge,
        membership_healthy: Gauge,
        membership_total: Gauge,
        ssl_context_update_by_sds: UsedCounter = "client_ssl_socket_factory.ssl_context_update_by_sds",
        update_attempt: Counter,
        update_empty: Counter,
        update_failure: Counter,
        update_no_rebuild: Counter,
        update_rejected: UsedCounter,
        update_success: Counter,
        update_time: UsedGauge,
        version: Gauge,
        warming_state: Gauge,
    }
}

scope! {
    /// The control thread's part of `listener.<address>.*`.
    pub struct ListenerControlStats {
        ssl_context_update_by_sds: UsedCounter = "server_ssl_socket_factory.ssl_context_update_by_sds",
    }
}

scope! {
    /// `cluster.<name>.circuit_breakers.<priority>.*` of thresholds with `track_remaining`.
    pub struct RemainingStats {
        remaining_cx: Gauge,
        remaining_pending: Gauge,
        remaining_retries: Gauge,
        remaining_rq: Gauge,
    }
}

scope! {
    /// What discovery has seen, of `server.*`.
    pub struct DiscoveryStats {
        dynamic_unknown_fields: Counter,
    }
}

scope! {
    /// `control_plane.*`
    pub struct ControlPlaneStats {
        connected_state: Gauge,
        pending_requests: Gauge,
        rate_limit_enforced: Counter,
    }
}

scope! {
    /// `runtime.*`
    pub struct RuntimeStats {
        admin_overrides_active: Gauge,
        deprecated_feature_use: Counter,
        load_error: Counter,
        load_success: Counter,
        num_keys: Gauge,
        num_layers: Gauge,
        override_dir_exists: Counter,
        override_dir_not_exists: Counter,
    }
}

/// Stats of a subscription, with their prefix.
pub(super) type PrefixedStats = (Arc<str>, Arc<SubscriptionStats>);

/// Stats of scopes, with their prefix.
pub(super) type PrefixedScopeStats = (Arc<str>, Arc<ScopedRoutesStats>);

/// All of them, for as long as what they are about.
#[derive(Default)]
pub(super) struct Stats {
    pub listeners: Arc<ListenerManagerStats>,
    pub clusters: Arc<ClusterManagerStats>,
    pub lds: Arc<SubscriptionStats>,
    pub cds: Arc<SubscriptionStats>,
    pub control_plane: Arc<ControlPlaneStats>,
    pub runtime: Arc<RuntimeStats>,
    pub cluster: HashMap<Arc<str>, Arc<ClusterControlStats>>,
    /// Of those whose secrets are discovered, by name, with their prefix.
    pub listener: HashMap<Arc<str>, (String, Arc<ListenerControlStats>)>,
    pub remaining: HashMap<Arc<str>, Remaining>,
    pub balance: HashMap<Arc<str>, BalanceStats>,
    /// Of routes (one for each connection manager's prefix), secrets and extensions.
    pub resources: HashMap<Need, Vec<PrefixedStats>>,
    /// Of scopes, one for each connection manager's prefix.
    pub scopes: HashMap<Need, Vec<PrefixedScopeStats>>,
    /// `update_failure` of types whose resources are counted for themselves.
    pub failures: HashMap<(SourceKey, ResourceKind), u64>,
}

/// The `version` gauge: 0 for none, else a hash that fits.
pub fn version_gauge(version: &str) -> i64 {
    (outrigger_xds::core::stats::version_hash(version) & i64::MAX as u64) as i64
}

/// Milliseconds since 1970.
pub fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Brings a counter to a total that someone else counts.
pub fn follow(counter: &Counter, total: u64) {
    counter.add(total.saturating_sub(counter.value()));
}

/// Sets a gauge to a count of things.
pub fn count(gauge: &Gauge, things: usize) {
    gauge.set(i64::try_from(things).unwrap_or(i64::MAX));
}
