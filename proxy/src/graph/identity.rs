//! Whether a bootstrap says who we are to those whom it asks.
//!
//! Owns the rule that discovery of any kind, files included, needs a node's id and cluster. Never asks anybody.

use outrigger_config::bootstrap::{Bootstrap, RuntimeLayerKind};

use super::need;

/// What is missing of the node, and the first place that needs it. Source: `Node.id`, `Node.cluster`.
pub(super) fn missing(bootstrap: &Bootstrap) -> Option<String> {
    if !bootstrap.node.id.is_empty() && !bootstrap.node.cluster.is_empty() {
        return None;
    }
    // Launchers look for these words.
    let words = "node 'id' and 'cluster' are required. Set it either in 'node' config or via --service-node and \
                 --service-cluster options.";
    first_discovery(bootstrap).map(|place| format!("{place}: {words}"))
}

fn first_discovery(bootstrap: &Bootstrap) -> Option<String> {
    let dynamic = [
        ("ads_config", bootstrap.ads.is_some()),
        ("cds_config", bootstrap.cds.is_some()),
        ("lds_config", bootstrap.lds.is_some()),
    ];
    if let Some((field, _)) = dynamic.into_iter().find(|(_, given)| *given) {
        return Some(format!("dynamic_resources.{field}"));
    }
    let is_discovered = |layer: &&_| matches!(layer, RuntimeLayerKind::Rtds { name: _, source: _ });
    if let Some(layer) = bootstrap.runtime.iter().find(|layer| is_discovered(&&layer.kind)) {
        return Some(format!("runtime layer {:?}", layer.name));
    }
    if let Some(cluster) = bootstrap.clusters.iter().find(|cluster| !need::of_cluster(cluster).is_empty()) {
        return Some(format!("cluster {:?}", cluster.name));
    }
    let discovers = |listener: &_| !need::of_listener(listener, &|_| None).is_empty();
    let listener = bootstrap.listeners.iter().find(|listener| discovers(listener.as_ref()))?;
    Some(format!("listener {:?}", listener.name))
}
