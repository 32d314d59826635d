//! Stats of a listener (`listener.<address>.*`).

use std::sync::Arc;

use crate::scope;
use crate::stream::TlsInfo;
use crate::tls::{HandshakeFailure, Stapling};

scope! {
    /// One worker's share of what the TLS inspectors of all listeners have seen (`tls_inspector.*`).
    pub struct TlsInspectorStats {
        alpn_found: Counter,
        alpn_not_found: Counter,
        client_hello_too_large: Counter,
        sni_found: Counter,
        sni_not_found: Counter,
        tls_found: Counter,
        tls_not_found: Counter,
    }
}

impl TlsInspectorStats {
    /// A ClientHello was found, with these in it.
    pub fn found(&self, sni: bool, alpn: bool) {
        self.tls_found.increment();
        if sni {
            self.sni_found.increment()
        } else {
            self.sni_not_found.increment()
        }
        if alpn { self.alpn_found.increment() } else { self.alpn_not_found.increment() }
    }
}

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
        extension_config_missing: UsedCounter,
        no_filter_chain_match: Counter,
        no_certificate: UsedCounter = "ssl.no_certificate",
        ssl_ciphers: NamedCounters = "ssl.ciphers",
        ssl_connection_error: UsedCounter = "ssl.connection_error",
        ssl_curves: NamedCounters = "ssl.curves",
        ssl_fail_verify_cert_hash: UsedCounter = "ssl.fail_verify_cert_hash",
        ssl_fail_verify_error: UsedCounter = "ssl.fail_verify_error",
        ssl_fail_verify_no_cert: UsedCounter = "ssl.fail_verify_no_cert",
        ssl_fail_verify_san: UsedCounter = "ssl.fail_verify_san",
        ssl_handshake: UsedCounter = "ssl.handshake",
        ssl_ocsp_staple_failed: UsedCounter = "ssl.ocsp_staple_failed",
        ssl_ocsp_staple_omitted: UsedCounter = "ssl.ocsp_staple_omitted",
        ssl_ocsp_staple_requests: UsedCounter = "ssl.ocsp_staple_requests",
        ssl_ocsp_staple_responses: UsedCounter = "ssl.ocsp_staple_responses",
        ssl_session_reused: UsedCounter = "ssl.session_reused",
        ssl_sigalgs: NamedCounters = "ssl.sigalgs",
        ssl_versions: NamedCounters = "ssl.versions",
    }
}

scope! {
    /// What of a listener's connections is with one worker (`listener.<prefix>.worker_<index>.*`): shows how evenly they are
    /// spread.
    pub struct WorkerListenerStats {
        downstream_cx_active: Gauge,
        downstream_cx_total: Counter,
    }
}

/// A worker's stats of one listener.
#[derive(Clone)]
pub struct ListenerShare {
    /// Its part of what is told of the listener.
    pub listener: Arc<ListenerStats>,
    /// What is told of the worker alone.
    pub worker: Arc<WorkerListenerStats>,
}

impl ListenerStats {
    /// A handshake is done.
    pub fn handshake(&self, info: &TlsInfo) {
        self.ssl_handshake.increment();
        self.ssl_ciphers.increment(info.cipher);
        self.ssl_curves.increment(info.group);
        self.ssl_sigalgs.increment(info.peer_signature);
        self.ssl_versions.increment(info.version);
        if info.resumed {
            self.ssl_session_reused.increment();
        }
        if info.peer.is_none() {
            self.no_certificate.increment();
        }
        if let Some(stapling) = info.stapling {
            self.ssl_ocsp_staple_requests.increment();
            match stapling {
                Stapling::Stapled => self.ssl_ocsp_staple_responses.increment(),
                Stapling::Omitted => self.ssl_ocsp_staple_omitted.increment(),
                Stapling::Refused => self.ssl_ocsp_staple_failed.increment(),
            }
        }
    }

    /// A handshake has failed. As with Envoy, `connection_error` counts those whose reason was neither the client's
    /// certificate nor the end of the connection.
    pub fn failed_handshake(&self, failure: HandshakeFailure) {
        match failure {
            HandshakeFailure::NoPeerCertificate => self.ssl_fail_verify_no_cert.increment(),
            HandshakeFailure::Untrusted => self.ssl_fail_verify_error.increment(),
            HandshakeFailure::SubjectAltName => self.ssl_fail_verify_san.increment(),
            HandshakeFailure::Pin => self.ssl_fail_verify_cert_hash.increment(),
            HandshakeFailure::Staple => {
                self.ssl_ocsp_staple_requests.increment();
                self.ssl_ocsp_staple_failed.increment();
            }
            HandshakeFailure::Alert | HandshakeFailure::Protocol => self.ssl_connection_error.increment(),
            HandshakeFailure::Closed => {}
        }
    }
}
