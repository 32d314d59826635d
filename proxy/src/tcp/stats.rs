//! Stats of a TCP proxy (`tcp.<prefix>.*`).

use crate::scope;

scope! {
    /// One worker's share of a TCP proxy's stats.
    pub struct TcpStats {
        downstream_cx_no_route: Counter,
        downstream_cx_rx_bytes_buffered: Gauge,
        downstream_cx_rx_bytes_total: Counter,
        downstream_cx_total: Counter,
        downstream_cx_tx_bytes_buffered: Gauge,
        downstream_cx_tx_bytes_total: Counter,
        downstream_flow_control_paused_reading_total: Counter,
        downstream_flow_control_resumed_reading_total: Counter,
        idle_timeout: Counter,
        max_downstream_connection_duration: Counter,
    }
}

scope! {
    /// One worker's share of what connections have waited for (`tcp.<prefix>.on_demand_cluster_*`).
    pub struct OnDemandStats {
        on_demand_cluster_attempt: Counter,
        on_demand_cluster_missing: Counter,
        on_demand_cluster_success: Counter,
        on_demand_cluster_timeout: Counter,
    }
}
