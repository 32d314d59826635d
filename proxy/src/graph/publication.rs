//! What workers are given of the configuration in motion, and when.
//!
//! Owns how the working copy becomes a [`Graph`], the order in which workers hear of it and of sockets, and the gauges that
//! tell of it. Never changes the working copy.

use std::sync::Arc;

use super::Graph;
use super::manager::GraphManager;
use super::need::Need;
use super::secrets::generic_secrets;
use super::stats::{Stats, count};
use crate::worker::Command;

impl GraphManager {
    /// Closes the sockets of a listener on all workers, after the next publication.
    pub(super) fn stop_sockets(&mut self, id: u64) {
        self.stops.push(id);
    }

    /// The last generation that was published.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Something that the graph shows has changed.
    pub(super) fn changed(&mut self) {
        self.dirty = true;
    }

    /// Gives workers the graph, if it has changed, and then what they have to do.
    pub(super) fn publish(&mut self) {
        if std::mem::take(&mut self.dirty) {
            self.generation += 1;
            self.process.graph.publish(Arc::new(self.graph()));
            // Those who wait for an endpoint may be the only requests that their worker has.
            for gate in self.clusters.values().filter_map(|build| build.node.shared.gate_if_used()) {
                gate.kick();
            }
        }
        // After the graph, in which workers look listeners up.
        for (name, id, sockets) in std::mem::take(&mut self.starts) {
            for (worker, sockets) in sockets.into_iter().enumerate().take(self.workers.count()) {
                self.workers.send(worker, Command::StartListener { name: Arc::clone(&name), id, sockets });
            }
        }
        for id in std::mem::take(&mut self.stops) {
            self.workers.send_all(|| Command::StopListener { id });
        }
        if std::mem::take(&mut self.check_drains) {
            self.workers.send_all(|| Command::CheckDrains);
        }
    }

    fn graph(&self) -> Graph {
        let listeners =
            self.listeners.iter().map(|(name, running)| (Arc::clone(name), Arc::clone(&running.build.node)));
        let clusters = self.clusters.iter().filter(|(_, build)| build.is_usable());
        let routes = self.warming.routes().filter_map(|(need, entry)| match need {
            Need::Resource { name, .. } => Some((Arc::clone(name), Arc::clone(entry.active()?))),
            Need::Addresses { .. } | Need::Checks { .. } | Need::Keys { .. } | Need::Token { .. } => None,
        });
        let retired = self.retired_routes.iter().map(|(name, (table, _))| (Arc::clone(name), Arc::clone(table)));
        let scopes = self.resources.scopes.iter();
        let scopes = scopes.filter_map(|(need, scopes)| Some((need.source()?.into(), Arc::clone(&scopes.table))));
        Graph {
            generation: self.generation,
            listeners: listeners.collect(),
            clusters: clusters.map(|(name, build)| (Arc::clone(name), Arc::clone(&build.node))).collect(),
            routes: retired.chain(routes).collect(),
            scopes: scopes.collect(),
            secrets: generic_secrets(&self.resources, &self.secret_sources),
            local_cluster: self.local.name().cloned(),
            runtime: Arc::clone(&self.runtime_snapshot),
        }
    }

    /// Sets the gauges of listeners and clusters.
    pub(super) fn count(&self) {
        let Stats { listeners, clusters, .. } = &self.stats;
        count(&listeners.total_listeners_active, self.listeners.len());
        let warming = self.warming.listeners().filter(|(_, entry)| entry.warming().is_some());
        count(&listeners.total_listeners_warming, warming.count());
        count(&listeners.total_listeners_draining, self.draining_listeners);
        count(&listeners.total_filter_chains_draining, self.draining_chains);
        count(&clusters.active_clusters, self.clusters.len().saturating_sub(self.lingering.len()));
        let mut warming = 0;
        for (name, entry) in self.warming.clusters() {
            let waits = entry.warming().is_some();
            warming += usize::from(waits);
            if let Some(stats) = self.stats.cluster.get(name) {
                stats.warming_state.set(i64::from(waits));
            }
        }
        count(&clusters.warming_clusters, warming);
    }
}
