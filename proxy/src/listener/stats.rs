//! Stats of a listener (`listener.<address>.*`).

use crate::scope;

scope! {
    /// One worker's share of a listener's stats.
    pub struct ListenerStats {
        downstream_cx_active: Gauge,
        downstream_cx_destroy: Counter,
        downstream_cx_length_ms: Histogram,
        downstream_cx_overflow: Counter,
        downstream_cx_overload_reject: Counter,
        downstream_cx_total: Counter,
        downstream_cx_transport_socket_connect_timeout: Counter,
        downstream_global_cx_overflow: Counter,
        downstream_listener_filter_error: Counter,
        downstream_listener_filter_remote_close: Counter,
        downstream_pre_cx_active: Gauge,
        downstream_pre_cx_timeout: Counter,
        no_filter_chain_match: Counter,
        no_certificate: UsedCounter = "ssl.no_certificate",
        ssl_connection_error: UsedCounter = "ssl.connection_error",
        ssl_fail_verify_error: UsedCounter = "ssl.fail_verify_error",
        ssl_handshake: UsedCounter = "ssl.handshake",
    }
}
