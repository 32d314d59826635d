//! Which stats exist because the configuration in use says so, whether or not there was any traffic.
//!
//! Owns the prefixes of clusters, listeners and what their filter chains do. Never counts anything.

use outrigger_config::cluster::Discovery;

use crate::graph::{Application, ClusterNode, Graph, ListenerNode};
use crate::http::manager::stats::{HttpStats, ListenerHttpStats};
use crate::listener::accept::stat_prefix;
use crate::listener::stats::ListenerStats;
use crate::scope;
use crate::stats::{Scope, names};
use crate::tcp::stats::TcpStats;
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
    /// What `cluster.<name>.*` has more where upstreams are spoken to by TLS.
    struct SecureClusterStats {
        connection_error: Counter = "ssl.connection_error",
        fail_verify_cert_hash: Counter = "ssl.fail_verify_cert_hash",
        fail_verify_error: Counter = "ssl.fail_verify_error",
        fail_verify_san: Counter = "ssl.fail_verify_san",
        handshake: Counter = "ssl.handshake",
    }
}

scope! {
    /// What `listener.<address>.*` has more where TLS is terminated.
    struct SecureListenerStats {
        connection_error: Counter = "ssl.connection_error",
        fail_verify_error: Counter = "ssl.fail_verify_error",
        handshake: Counter = "ssl.handshake",
        no_certificate: Counter = "ssl.no_certificate",
    }
}

/// One scope of each kind that never counts, to show under every prefix.
#[derive(Default)]
struct Unused {
    cluster: ClusterStats,
    discovered: DiscoveredClusterStats,
    secure_cluster: SecureClusterStats,
    listener: ListenerStats,
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
            visit(&prefix, &self.secure_cluster);
        }
    }

    fn listener(&self, listener: &ListenerNode, visit: &mut dyn FnMut(&str, &dyn Scope)) {
        let prefix = names::prefix("listener", &stat_prefix(listener));
        visit(&prefix, &self.listener);
        if listener.chains.iter().any(|chain| chain.tls.is_some()) {
            visit(&prefix, &self.secure_listener);
        }
        for chain in &listener.chains {
            match &chain.application {
                Application::Http(node) => {
                    let manager = names::prefix("http", &node.config.stat_prefix);
                    visit(&manager, &self.http);
                    visit(&format!("{prefix}{manager}"), &self.listener_http);
                }
                Application::Tcp(node) => visit(&names::prefix("tcp", &node.config.stat_prefix), &self.tcp),
                Application::Missing => {}
            }
        }
    }
}
