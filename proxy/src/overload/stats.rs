//! Stats of what is watched and done (`overload.<name>.*`).
//!
//! Owns their names. Never decides what is counted.

use crate::scope;

/// The prefix of a monitor's, action's or point's stats.
pub(super) fn prefix(name: &str) -> String {
    format!("overload.{name}.")
}

scope! {
    /// `overload.*`
    pub(super) struct OverloadStats {
        refresh_interval_delay: Histogram,
    }
}

scope! {
    /// One resource monitor's.
    pub(super) struct MonitorStats {
        failed_updates: Counter,
        pressure: Gauge,
        skipped_updates: Counter,
    }
}

scope! {
    /// Those of the monitor of downstream connections.
    pub(super) struct ConnectionStats {
        failed_updates: Counter,
        pressure: Gauge,
    }
}

scope! {
    /// One action's.
    pub(super) struct ActionStats {
        active: Gauge,
        scale_percent: Gauge,
    }
}

scope! {
    /// What the action that shrinks the heap has more.
    pub(super) struct ShrinkStats {
        shrink_count: Counter,
    }
}

/// The prefix of what the action that resets streams counts: as in Envoy, another one than that of its state.
pub(super) const RESETS_PREFIX: &str = "envoy.overload_actions.reset_high_memory_stream.";

scope! {
    /// Streams that were reset.
    pub(super) struct ResetStats {
        count: Counter,
    }
}

scope! {
    /// One load-shed point's.
    pub(super) struct PointStats {
        scale_percent: Gauge,
        shed_load_count: Counter,
    }
}

scope! {
    /// A worker's share of them.
    pub(super) struct ShedStats {
        shed_load_count: Counter,
    }
}

/// The prefix of the stats of the monitor of downstream connections.
pub const CONNECTIONS_PREFIX: &str = "overload.envoy.resource_monitors.global_downstream_max_connections.";

scope! {
    /// A worker's share of them: each connection that was refused counts as a failure.
    pub struct RefusedStats {
        failed_updates: Counter,
    }
}
