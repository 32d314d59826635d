//! Which stats exist because the configuration in use says so, whether or not there was any traffic.
//!
//! Owns the prefixes of clusters, listeners and what their filter chains do. Never counts anything.

use std::collections::BTreeMap;

use outrigger_config::cluster::Discovery;

use crate::graph::{Application, ClusterNode, Graph, ListenerNode};
use crate::http::manager::stats::{HttpStats, ListenerHttpStats};
use crate::listener::accept::stat_prefix;
use crate::listener::stats::ListenerStats;
use crate::scope;
use crate::stats::{Scope, names};
use crate::tcp::stats::TcpStats;
use crate::tls::Expirations;
use crate::upstream::stats::ClusterStats;

scope! {
    /// What `cluster.<name>.*` has more where endpoints are discovered.
    struct DiscoveredClusterStats {
        init_fetch_timeout: Counter,
        update_rejected: Counter,
        update_time: Gauge,
    }
}

scope! {
    /// What `cluster.<name>.*` and `listener.<address>.*` have more where there is TLS. Not all of it can happen on both
    /// sides.
    struct SecureStats {
        connection_error: Counter = "ssl.connection_error",
        fail_verify_cert_hash: Counter = "ssl.fail_verify_cert_hash",
        fail_verify_error: Counter = "ssl.fail_verify_error",
        fail_verify_no_cert: Counter = "ssl.fail_verify_no_cert",
        fail_verify_san: Counter = "ssl.fail_verify_san",
        handshake: Counter = "ssl.handshake",
        no_certificate: Counter = "ssl.no_certificate",
        ocsp_staple_failed: Counter = "ssl.ocsp_staple_failed",
        ocsp_staple_omitted: Counter = "ssl.ocsp_staple_omitted",
        ocsp_staple_requests: Counter = "ssl.ocsp_staple_requests",
        ocsp_staple_responses: Counter = "ssl.ocsp_staple_responses",
        session_reused: Counter = "ssl.session_reused",
    }
}

scope! {
    /// What `cluster.<name>.*` has more where there is TLS.
    struct SecureClusterStats {
        ssl_context_update_by_sds: Counter = "client_ssl_socket_factory.ssl_context_update_by_sds",
    }
}

scope! {
    /// What `listener.<address>.*` has more where there is TLS.
    struct SecureListenerStats {
        ssl_context_update_by_sds: Counter = "server_ssl_socket_factory.ssl_context_update_by_sds",
    }
}

scope! {
    /// `ssl.certificate.<name>.*`
    struct CertificateStats {
        expiration_unix_time_seconds: Gauge,
    }
}

/// One scope of each kind that never counts, to show under every prefix.
#[derive(Default)]
struct Unused {
    cluster: ClusterStats,
    discovered: DiscoveredClusterStats,
    listener: ListenerStats,
    secure: SecureStats,
    secure_cluster: SecureClusterStats,
    secure_listener: SecureListenerStats,
    http: HttpStats,
    listener_http: ListenerHttpStats,
    tcp: TcpStats,
}

/// Shows all of them to `visit`, with their prefixes.
pub(super) fn declared(graph: &Graph, visit: &mut dyn FnMut(&str, &dyn Scope)) {
    let unused = Unused::default();
    for cluster in graph.clusters.values() {
        unused.cluster(cluster, visit);
    }
    for listener in graph.listeners.values() {
        unused.listener(listener, visit);
    }
}

impl Unused {
    fn cluster(&self, cluster: &ClusterNode, visit: &mut dyn FnMut(&str, &dyn Scope)) {
        let prefix = names::prefix("cluster", &cluster.config.stat_name);
        visit(&prefix, &self.cluster);
        if let Discovery::Eds { .. } = cluster.config.discovery {
            visit(&prefix, &self.discovered);
        }
        if cluster.config.transports().any(|transport| transport.tls().is_some()) {
            visit(&prefix, &self.secure);
            visit(&prefix, &self.secure_cluster);
            certificates(&prefix, cluster.tls.all().map(|tls| tls.expirations()), visit);
        }
    }

    fn listener(&self, listener: &ListenerNode, visit: &mut dyn FnMut(&str, &dyn Scope)) {
        let prefix = names::prefix("listener", &stat_prefix(listener));
        visit(&prefix, &self.listener);
        if listener.chains.iter().any(|chain| chain.tls.is_some()) {
            visit(&prefix, &self.secure);
            visit(&prefix, &self.secure_listener);
            let contexts = listener.chains.iter().filter_map(|chain| chain.tls.as_ref());
            certificates(&prefix, contexts.map(|tls| tls.expirations()), visit);
        }
        for chain in &listener.chains {
            match &chain.application {
                Application::Http(node) => {
                    let manager = names::prefix("http", &node.config.stat_prefix);
                    visit(&manager, &self.http);
                    visit(&format!("{prefix}{manager}"), &self.listener_http);
                }
                Application::Tcp(node) => visit(&names::prefix("tcp", &node.config.stat_prefix), &self.tcp),
                Application::OwnAnswer(_) | Application::Missing => {}
            }
        }
    }
}

/// Shows when certificates expire. As with Envoy, the last context that has one of a name decides.
fn certificates<'a>(
    prefix: &str,
    contexts: impl Iterator<Item = &'a Expirations>,
    visit: &mut dyn FnMut(&str, &dyn Scope),
) {
    let all: BTreeMap<&str, u64> = contexts.flat_map(Expirations::certificates).collect();
    for (name, time) in all {
        let stats = CertificateStats::default();
        stats.expiration_unix_time_seconds.set(i64::try_from(time).unwrap_or(i64::MAX));
        visit(&format!("{prefix}ssl.certificate.{}.", names::sanitize(name)), &stats);
    }
}
