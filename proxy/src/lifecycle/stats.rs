//! Stats of the process (`server.*`). One writer: the control thread.
//!
//! Owns their names. Never measures.

use crate::scope;

scope! {
    /// `server.*`
    pub struct ServerStats {
        concurrency: Gauge,
        dropped_stat_flushes: Counter,
        fips_mode: Gauge = "compilation_settings.fips_mode",
        hot_restart_epoch: Gauge,
        hot_restart_generation: Gauge,
        initialization_time_ms: Histogram,
        live: Gauge,
        memory_allocated: Gauge,
        memory_heap_size: Gauge,
        memory_physical_size: Gauge,
        parent_connections: Gauge,
        state: Gauge,
        static_unknown_fields: Counter,
        total_connections: Gauge,
        uptime: Gauge,
        version: Gauge,
    }
}
