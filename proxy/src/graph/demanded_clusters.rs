//! Clusters that are discovered when a request wants them (`OnDemandCds`).
//!
//! Owns the subscription to each of them, and who waits. A cluster that was found is one like any other: it goes when the
//! control plane takes it away. Never decides how long a request waits.

use std::sync::Arc;

use outrigger_config::source::ConfigSource;
use outrigger_xds::core::Protocol;
use outrigger_xds::{Interest, ResourceKind, Source, SourceConfig, WatchId};
use tokio::sync::oneshot;

use super::compile::ClusterBuild;
use super::manager::GraphManager;
use super::offers::explain;

/// A cluster that a request has asked for by its name.
pub(super) struct DemandedCluster {
    watch: WatchId,
    waiting: Vec<oneshot::Sender<()>>,
}

/// So many clusters may be asked for in vain before those that nobody waits for any longer are given up: their names may
/// be what clients make up.
const MANY: usize = 1024;

impl GraphManager {
    /// A request wants a cluster that it does not know.
    pub(super) fn want_cluster(&mut self, source: &ConfigSource, name: &Arc<str>, reply: oneshot::Sender<()>) {
        if self.has_cluster(name) {
            return drop(reply);
        }
        if let Some(known) = self.waiting.clusters.get_mut(name) {
            known.waiting.retain(|reply| !reply.is_closed());
            return known.waiting.push(reply);
        }
        let source = match self.sources.resolve(source) {
            Ok(SourceConfig { source: Source::Ads(ads), .. }) if ads.protocol != Protocol::Delta => {
                tracing::error!("cluster {name:?} cannot be discovered on demand: this needs ads of type DELTA_GRPC");
                return drop(reply);
            }
            Ok(SourceConfig { source, .. }) => source,
            Err(error) => {
                tracing::error!("cluster {name:?} cannot be discovered on demand: {}", explain(&error));
                return drop(reply);
            }
        };
        if self.waiting.clusters.len() >= MANY {
            self.forget_cluster_demands();
        }
        // How long a request waits is its own affair.
        let config = SourceConfig { source, initial_fetch_timeout: None };
        let watch = self.xds.watch(ResourceKind::Cluster, Interest::Name(name.to_string()), &config);
        self.waiting.clusters.insert(Arc::clone(name), DemandedCluster { watch, waiting: vec![reply] });
    }

    /// There is no such cluster, or not any longer: its requests go on without, and the next one asks again.
    pub(super) fn end_cluster_demand(&mut self, name: &str) {
        if let Some(known) = self.waiting.clusters.remove(name) {
            self.xds.unwatch(known.watch);
        }
    }

    /// Answers those whose cluster is in use.
    pub(super) fn answer_for_clusters(&mut self) {
        for (name, known) in &mut self.waiting.clusters {
            if !known.waiting.is_empty() && self.clusters.get(name).is_some_and(ClusterBuild::is_usable) {
                known.waiting.clear();
            }
        }
    }

    /// Whether requests can be sent there.
    pub(super) fn has_cluster(&self, name: &str) -> bool {
        self.clusters.get(name).is_some_and(ClusterBuild::is_usable)
    }

    fn forget_cluster_demands(&mut self) {
        let in_vain = |(name, known): (&Arc<str>, &DemandedCluster)| {
            let nobody_waits = known.waiting.iter().all(oneshot::Sender::is_closed);
            (nobody_waits && !self.has_cluster(name)).then(|| Arc::clone(name))
        };
        let names: Vec<Arc<str>> = self.waiting.clusters.iter().filter_map(in_vain).collect();
        names.iter().for_each(|name| self.end_cluster_demand(name));
    }
}
