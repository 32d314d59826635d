//! Stats of a cluster (`cluster.<name>.*`).
//!
//! Owns the metrics' names. Never decides when they change.

use std::sync::Arc;
use std::time::Instant;

use crate::stream::TlsInfo;
use crate::tls::HandshakeFailure;
use crate::{count_class, scope};

scope! {
    /// One worker's share of a cluster's stats.
    pub struct ClusterStats {
        bind_errors: Counter,
        lb_healthy_panic: Counter,
        retry_upstream_rq: StatusCounters = "retry.upstream_rq",
        retry_upstream_rq_2xx: UsedCounter = "retry.upstream_rq_2xx",
        retry_upstream_rq_3xx: UsedCounter = "retry.upstream_rq_3xx",
        retry_upstream_rq_4xx: UsedCounter = "retry.upstream_rq_4xx",
        retry_upstream_rq_5xx: UsedCounter = "retry.upstream_rq_5xx",
        retry_upstream_rq_completed: UsedCounter = "retry.upstream_rq_completed",
        ssl_ciphers: NamedCounters = "ssl.ciphers",
        ssl_connection_error: UsedCounter = "ssl.connection_error",
        ssl_curves: NamedCounters = "ssl.curves",
        ssl_fail_verify_cert_hash: UsedCounter = "ssl.fail_verify_cert_hash",
        ssl_fail_verify_error: UsedCounter = "ssl.fail_verify_error",
        ssl_fail_verify_san: UsedCounter = "ssl.fail_verify_san",
        ssl_handshake: UsedCounter = "ssl.handshake",
        ssl_session_reused: UsedCounter = "ssl.session_reused",
        ssl_sigalgs: NamedCounters = "ssl.sigalgs",
        ssl_versions: NamedCounters = "ssl.versions",
        upstream_cx_active: Gauge,
        upstream_cx_close_notify: Counter,
        upstream_cx_connect_attempts_exceeded: Counter,
        upstream_cx_connect_fail: Counter,
        upstream_cx_connect_ms: Histogram,
        upstream_cx_connect_timeout: Counter,
        upstream_cx_destroy: Counter,
        upstream_cx_destroy_local: Counter,
        upstream_cx_destroy_local_with_active_rq: Counter,
        upstream_cx_destroy_remote: Counter,
        upstream_cx_destroy_remote_with_active_rq: Counter,
        upstream_cx_destroy_with_active_rq: Counter,
        upstream_cx_http1_total: Counter,
        upstream_cx_http2_total: Counter,
        upstream_cx_idle_timeout: Counter,
        upstream_cx_length_ms: Histogram,
        upstream_cx_max_duration_reached: Counter,
        upstream_cx_max_requests: Counter,
        upstream_cx_none_healthy: Counter,
        upstream_cx_overflow: Counter,
        upstream_cx_preconnect_skipped: Counter,
        upstream_cx_protocol_error: Counter,
        upstream_cx_rx_bytes_total: Counter,
        upstream_cx_total: Counter,
        upstream_cx_tx_bytes_total: Counter,
        upstream_internal_redirect_failed_total: Counter,
        upstream_internal_redirect_succeeded_total: Counter,
        upstream_rq: StatusCounters,
        upstream_rq_1xx: UsedCounter,
        upstream_rq_2xx: UsedCounter,
        upstream_rq_3xx: UsedCounter,
        upstream_rq_4xx: UsedCounter,
        upstream_rq_5xx: UsedCounter,
        upstream_rq_active: Gauge,
        upstream_rq_active_overflow: Counter,
        upstream_rq_cancelled: Counter,
        upstream_rq_completed: Counter,
        upstream_rq_drop_overload: UsedCounter,
        upstream_rq_maintenance_mode: Counter,
        upstream_rq_max_duration_reached: Counter,
        upstream_rq_pending_active: Gauge,
        upstream_rq_pending_failure_eject: Counter,
        upstream_rq_pending_overflow: Counter,
        upstream_rq_pending_total: Counter,
        upstream_rq_per_try_idle_timeout: Counter,
        upstream_rq_per_try_timeout: Counter,
        upstream_rq_retry: Counter,
        upstream_rq_retry_backoff_exponential: Counter,
        upstream_rq_retry_backoff_ratelimited: Counter,
        upstream_rq_retry_limit_exceeded: Counter,
        upstream_rq_retry_overflow: Counter,
        upstream_rq_retry_success: Counter,
        upstream_rq_rx_reset: Counter,
        upstream_rq_time: UsedHistogram,
        upstream_rq_timeout: Counter,
        upstream_rq_total: Counter,
        upstream_rq_tx_reset: Counter,
    }
}

scope! {
    /// What limits over which requests wait add to `cluster.<name>.queue.*`.
    pub struct QueueStats {
        active: Gauge,
        cancelled: Counter,
        overflow: Counter,
        timeout: Counter,
        total: Counter,
        wait_ms: Histogram,
    }
}

/// Who ended a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EndedBy {
    /// We did.
    Us,
    /// The endpoint did.
    Upstream,
}

/// Somebody who waits, as long as this lives.
pub struct Queued {
    stats: Arc<QueueStats>,
    since: Instant,
    settled: bool,
}

impl Queued {
    /// One more.
    pub fn new(stats: &Arc<QueueStats>, since: Instant) -> Self {
        stats.total.increment();
        stats.active.increment();
        Self { stats: Arc::clone(stats), since, settled: false }
    }

    /// The wait came to its end; otherwise it counts as cancelled.
    pub fn settle(&mut self) {
        self.settled = true;
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.stats.active.decrement();
        self.stats.wait_ms.record(self.since.elapsed().as_millis() as u64);
        if !self.settled {
            self.stats.cancelled.increment();
        }
    }
}

impl ClusterStats {
    /// A TLS handshake is done.
    pub fn handshake(&self, info: &TlsInfo) {
        self.ssl_handshake.increment();
        if info.resumed {
            self.ssl_session_reused.increment();
        }
        self.ssl_ciphers.increment(info.cipher);
        self.ssl_curves.increment(info.group);
        self.ssl_sigalgs.increment(info.peer_signature);
        self.ssl_versions.increment(info.version);
    }

    /// A TLS handshake has failed. As with Envoy, `connection_error` counts those whose reason was neither the server's
    /// certificate nor the end of the connection.
    pub fn failed_handshake(&self, failure: HandshakeFailure) {
        match failure {
            HandshakeFailure::SubjectAltName => self.ssl_fail_verify_san.increment(),
            HandshakeFailure::Pin => self.ssl_fail_verify_cert_hash.increment(),
            HandshakeFailure::Untrusted => self.ssl_fail_verify_error.increment(),
            HandshakeFailure::Alert | HandshakeFailure::Protocol => self.ssl_connection_error.increment(),
            HandshakeFailure::NoPeerCertificate | HandshakeFailure::Staple | HandshakeFailure::Closed => {}
        }
    }

    /// Counts the end of a connection that carried a request or a session.
    pub fn destroyed_while_active(&self, by: EndedBy) {
        self.upstream_cx_destroy_with_active_rq.increment();
        match by {
            EndedBy::Us => {
                self.upstream_cx_destroy_local.increment();
                self.upstream_cx_destroy_local_with_active_rq.increment();
            }
            EndedBy::Upstream => {
                self.upstream_cx_destroy_remote.increment();
                self.upstream_cx_destroy_remote_with_active_rq.increment();
            }
        }
    }

    /// Counts a response that is no answer to the client, since the request is tried again.
    pub fn retried_response(&self, status: u16) {
        self.retry_upstream_rq_completed.increment();
        self.retry_upstream_rq.increment(status);
        match status / 100 {
            2 => self.retry_upstream_rq_2xx.increment(),
            3 => self.retry_upstream_rq_3xx.increment(),
            4 => self.retry_upstream_rq_4xx.increment(),
            5 => self.retry_upstream_rq_5xx.increment(),
            _ => {}
        }
    }

    /// Counts a response by code and class.
    pub fn response(&self, status: u16) {
        self.upstream_rq_completed.increment();
        self.upstream_rq.increment(status);
        count_class!(self, status, upstream_rq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_connection_in_use_is_counted_by_who_ended_it() {
        let stats = ClusterStats::default();
        stats.destroyed_while_active(EndedBy::Us);
        stats.destroyed_while_active(EndedBy::Upstream);
        stats.destroyed_while_active(EndedBy::Upstream);
        assert_eq!(stats.upstream_cx_destroy_with_active_rq.value(), 3);
        let local = (&stats.upstream_cx_destroy_local, &stats.upstream_cx_destroy_local_with_active_rq);
        assert_eq!((local.0.value(), local.1.value()), (1, 1));
        let remote = (&stats.upstream_cx_destroy_remote, &stats.upstream_cx_destroy_remote_with_active_rq);
        assert_eq!((remote.0.value(), remote.1.value()), (2, 2));
    }
}
