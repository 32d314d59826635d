//! Clusters that wait for the first results of their active checks before they are used.
//!
//! Owns their builds until then. Never checks anybody (see `crate::health`).

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_config::cluster::Cluster;

use super::compile::{self, ClusterBuild};
use super::manager::GraphManager;
use super::need::{Need, Requirement};

/// Revisions of clusters whose endpoints are checked for the first time.
#[derive(Default)]
pub(super) struct FirstChecks {
    revisions: u64,
    /// They wait for their endpoints, or for secrets.
    expected: BTreeMap<Arc<str>, Need>,
    begun: BTreeMap<Arc<str>, (Need, ClusterBuild)>,
}

impl GraphManager {
    /// What a cluster that is checked needs beside all else.
    pub(super) fn expect_first_checks(&mut self, config: &Arc<Cluster>) -> Option<Requirement> {
        let name = &config.name;
        self.drop_first_checks(name);
        if config.health_checks.is_empty() {
            return None;
        }
        self.first_checks.revisions += 1;
        let need = Need::Checks { cluster: Arc::clone(name), revision: self.first_checks.revisions };
        self.first_checks.expected.insert(Arc::clone(name), need.clone());
        Some(Requirement { need, wait: true })
    }

    /// Begins the checks of clusters that wait for nothing else.
    pub(super) fn begin_first_checks(&mut self) {
        if self.first_checks.expected.is_empty() {
            return;
        }
        let ready = |(name, need): &(&Arc<str>, &Need)| self.warming.waits_only_for(name, need);
        let ready: Vec<(Arc<str>, Need)> = self
            .first_checks
            .expected
            .iter()
            .filter(ready)
            .map(|(name, need)| (Arc::clone(name), need.clone()))
            .collect();
        for (name, need) in ready {
            self.first_checks.expected.remove(&name);
            self.check_first(&name, need, None);
        }
    }

    /// Takes over what has changed of the endpoints of a cluster that waits for their first results.
    pub(super) fn renew_first_checks(&mut self, name: &Arc<str>) {
        if self.warming.cluster(name).is_some_and(|entry| entry.warming().is_some())
            && let Some((need, build)) = self.first_checks.begun.remove(name)
        {
            self.check_first(name, need, Some(build));
        }
    }

    fn check_first(&mut self, name: &Arc<str>, need: Need, before: Option<ClusterBuild>) {
        let waiting = self.warming.cluster(name).and_then(|entry| entry.warming());
        let Some(config) = waiting.map(|revision| Arc::clone(&revision.config)) else { return };
        match self.compile_cluster(&config, before.as_ref().or(self.clusters.get(name))) {
            Ok(build) => {
                let complete = self.prepare_checks(&build.node);
                self.first_checks.begun.insert(Arc::clone(name), (need.clone(), build));
                if complete {
                    self.warming.answered(&need);
                }
            }
            Err(error) => {
                tracing::error!("cluster {name:?} cannot be checked: {error}");
                self.warming.answered(&need);
            }
        }
    }

    /// All endpoints of a cluster that waits for that have a result.
    pub(super) fn first_checks_complete(&mut self, name: &str) {
        if let Some((need, _)) = self.first_checks.begun.get(name) {
            self.warming.answered(need);
        }
    }

    /// The endpoints of a cluster as they were checked before it was used.
    pub(super) fn take_checked(&mut self, name: &str, config: &Arc<Cluster>) -> Option<ClusterBuild> {
        let is_this =
            self.first_checks.begun.get(name).is_some_and(|(_, build)| Arc::ptr_eq(&build.node.config, config));
        if !is_this {
            return None;
        }
        let (_, mut build) = self.first_checks.begun.remove(name)?;
        // Its picks were made before there was any result.
        let zones = self.local.of(&build.node.config);
        compile::rebalance(&mut build, zones);
        Some(build)
    }

    /// The revision that waits is replaced or gone.
    pub(super) fn drop_first_checks(&mut self, name: &str) {
        self.first_checks.expected.remove(name);
        if let Some((_, build)) = self.first_checks.begun.remove(name) {
            self.checks.abandon(&build.node);
        }
    }
}
