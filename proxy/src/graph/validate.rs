//! Checking a bootstrap without starting anything (`--mode validate`).
//!
//! Owns the list of what would go wrong. Never binds, connects or publishes.

use std::collections::HashSet;
use std::rc::Weak;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_config::bootstrap::Bootstrap;
use outrigger_config::listener::NetworkFilterConfig;
use outrigger_xds::XdsClient;

use super::manager::{GraphManager, ManagerOptions};
use super::{identity, need};
use crate::process::Process;
use crate::worker::Workers;

/// Everything that is wrong with the static resources: material that does not load, references that lead nowhere.
/// Access log files are opened, as starting would. Empty means that it would start.
pub fn validate(bootstrap: Bootstrap, options: ManagerOptions) -> Vec<String> {
    let known: HashSet<Arc<str>> = bootstrap.clusters.iter().map(|cluster| Arc::clone(&cluster.name)).collect();
    let closed = bootstrap.cds.is_none();
    let mut problems: Vec<String> = identity::missing(&bootstrap).into_iter().collect();
    for listener in &bootstrap.listeners {
        for filter in need::chains(listener).flat_map(|chain| &chain.filters) {
            let NetworkFilterConfig::Http(manager) = &filter.config else { continue };
            for routes in need::inline_routes(manager) {
                // Clusters that are still to be discovered cannot be missed yet.
                if routes.validate_clusters && closed {
                    let missing = need::clusters_of_routes(routes).into_iter().filter(|name| !known.contains(name));
                    problems.extend(missing.map(|name| {
                        format!(
                            "listener {:?}: route_config {:?}: unknown cluster '{name}'",
                            listener.name, routes.name
                        )
                    }));
                }
            }
        }
    }
    let (xds, _driver) = XdsClient::new(Node::default());
    let process = Arc::new(Process::default());
    let mut manager = GraphManager::new(process, bootstrap, xds, Workers::new(Vec::new()), options, Weak::new());
    problems.extend(manager.check_statics());
    problems
}
