//! Stats of an HTTP connection manager (`http.<prefix>.*`).

use crate::{count_class, scope};

scope! {
    /// One worker's share of a connection manager's stats.
    pub struct HttpStats {
        downstream_cx_active: Gauge,
        downstream_cx_delayed_close_timeout: Counter,
        downstream_cx_destroy: Counter,
        downstream_cx_destroy_active_rq: Counter,
        downstream_cx_destroy_local: Counter,
        downstream_cx_destroy_remote: Counter,
        downstream_cx_drain_close: Counter,
        downstream_cx_http1_active: Gauge,
        downstream_cx_http1_total: Counter,
        downstream_cx_http2_active: Gauge,
        downstream_cx_http2_total: Counter,
        downstream_cx_idle_timeout: Counter,
        downstream_cx_length_ms: Histogram,
        downstream_cx_max_duration_reached: Counter,
        downstream_cx_max_requests_reached: Counter,
        downstream_cx_overload_disable_keepalive: Counter,
        downstream_cx_protocol_error: Counter,
        downstream_cx_rx_bytes_total: Counter,
        downstream_cx_ssl_active: Gauge,
        downstream_cx_ssl_total: Counter,
        downstream_cx_total: Counter,
        downstream_cx_tx_bytes_total: Counter,
        downstream_cx_upgrades_active: Gauge,
        downstream_cx_upgrades_total: Counter,
        downstream_rq_1xx: Counter,
        downstream_rq_2xx: Counter,
        downstream_rq_3xx: Counter,
        downstream_rq_4xx: Counter,
        downstream_rq_5xx: Counter,
        downstream_rq_active: Gauge,
        downstream_rq_completed: Counter,
        downstream_rq_header_timeout: Counter,
        downstream_rq_http1_total: Counter,
        downstream_rq_http2_total: Counter,
        downstream_rq_idle_timeout: Counter,
        downstream_rq_max_duration_reached: Counter,
        downstream_rq_non_relative_path: Counter,
        downstream_rq_overload_close: Counter,
        downstream_rq_redirected_with_normalized_path: Counter,
        downstream_rq_response_before_rq_complete: Counter,
        downstream_rq_rx_reset: Counter,
        downstream_rq_time: Histogram,
        downstream_rq_timeout: Counter,
        downstream_rq_too_large: Counter,
        downstream_rq_too_many_premature_resets: Counter,
        downstream_rq_total: Counter,
        downstream_rq_tx_reset: Counter,
        downstream_rq_ws_on_non_ws_route: Counter,
        no_cluster: Counter,
        no_route: Counter,
        passthrough_internal_redirect_bad_location: Counter,
        passthrough_internal_redirect_no_route: Counter,
        passthrough_internal_redirect_predicate: Counter,
        passthrough_internal_redirect_too_many_redirects: Counter,
        passthrough_internal_redirect_unsafe_scheme: Counter,
        rq_direct_response: Counter,
        rq_overload_local_reply: Counter,
        rq_redirect: Counter,
        rq_reset_after_downstream_response_started: Counter,
        rq_total: Counter,
        rs_too_large: Counter,
        tracing_client_enabled: Counter = "tracing.client_enabled",
        tracing_health_check: Counter = "tracing.health_check",
        tracing_not_traceable: Counter = "tracing.not_traceable",
        tracing_random_sampling: Counter = "tracing.random_sampling",
        tracing_service_forced: Counter = "tracing.service_forced",
    }
}

scope! {
    /// One worker's share of what a connection manager does for one listener (`listener.<prefix>.http.<stat_prefix>.*`).
    pub struct ListenerHttpStats {
        downstream_rq_1xx: Counter,
        downstream_rq_2xx: Counter,
        downstream_rq_3xx: Counter,
        downstream_rq_4xx: Counter,
        downstream_rq_5xx: Counter,
        downstream_rq_completed: Counter,
    }
}

impl ListenerHttpStats {
    /// Counts a response by its class.
    pub fn response(&self, status: u16) {
        self.downstream_rq_completed.increment();
        count_class!(self, status, downstream_rq);
    }
}

impl HttpStats {
    /// Counts a response by its class.
    pub fn response(&self, status: u16) {
        self.downstream_rq_completed.increment();
        count_class!(self, status, downstream_rq);
    }
}
