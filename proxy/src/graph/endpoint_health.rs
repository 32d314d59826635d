//! The health of endpoints in the graph: what is found about them changes what balancers pick from.
//!
//! Owns the task that hears of findings and of intervals that are over, and the new picks that follow. Never decides
//! that an endpoint is an outlier (see `crate::health`).

use std::cell::RefCell;
use std::rc::Weak;
use std::sync::Arc;
use std::time::Instant;

use super::manager::GraphManager;
use super::offers::explain;
use super::{compile, hosts};
use crate::health::{EventFile, Observation, Outliers, Report};
use crate::process::Process;

impl GraphManager {
    /// Opens the log of ejections, if there is to be one.
    pub(super) fn open_event_logs(&mut self) -> Result<(), String> {
        let Some(path) = self.outlier_event_log.take() else { return Ok(()) };
        let log = EventFile::open(&path, &self.options.access_logs)
            .map_err(|error| format!("cluster_manager.outlier_detection.event_log_path: {}", explain(&error)))?;
        self.outliers = Outliers::new(Some(log));
        Ok(())
    }

    /// Takes over the endpoints of a cluster's node that has just been built.
    pub(super) fn follow_health(&mut self, name: &Arc<str>) {
        let Some(build) = self.clusters.get(name) else { return };
        let node = Arc::clone(&build.node);
        if self.outliers.follow(&node, &self.runtime_snapshot, &self.process.stats) {
            self.rebalance(name);
        }
        self.health_wake.notify_one();
    }

    /// Lets balancers know of marks that have changed.
    fn rebalance(&mut self, name: &Arc<str>) {
        let Some(build) = self.clusters.get_mut(name) else { return };
        compile::rebalance(build);
        let node = Arc::clone(&build.node);
        self.show_membership(name);
        self.outliers.follow(&node, &self.runtime_snapshot, &self.process.stats);
        self.changed();
    }

    /// Brings the membership gauges of a cluster up to date.
    pub(super) fn show_membership(&self, name: &Arc<str>) {
        let (Some(build), Some(stats)) = (self.clusters.get(name), self.stats.cluster.get(name)) else { return };
        let membership = hosts::membership(&build.node.hosts);
        stats.membership_total.set(membership.total);
        stats.membership_healthy.set(membership.healthy);
        stats.membership_degraded.set(membership.degraded);
        stats.membership_excluded.set(membership.excluded);
        if let (Some(stats), Some(balance)) = (self.stats.balance.get(name), &build.node.hosts.balance) {
            stats.show(balance);
        }
    }

    fn take_reports(&mut self, reports: Vec<Report>) {
        let now = Instant::now();
        for Report { cluster, host, what } in reports {
            let changed = match what {
                Observation::Outlier(outlier) => self.outliers.found(&cluster, &host, outlier, now),
            };
            if changed {
                self.rebalance(&cluster);
            }
        }
        self.proceed();
    }

    fn sweep_outliers(&mut self) {
        for cluster in self.outliers.sweep(Instant::now()) {
            self.rebalance(&cluster);
        }
        self.proceed();
    }
}

/// Acts on what workers report and on the end of intervals, until the manager is gone.
pub(super) async fn watch(this: Weak<RefCell<GraphManager>>, process: Arc<Process>) {
    loop {
        let Some(manager) = this.upgrade() else { return };
        let (next, wake) = {
            let manager = manager.borrow();
            (manager.outliers.next_sweep(), Arc::clone(&manager.health_wake))
        };
        drop(manager);
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            reports = process.reports.receive() => {
                let Some(manager) = this.upgrade() else { return };
                manager.borrow_mut().take_reports(reports);
            }
            () = due => {
                let Some(manager) = this.upgrade() else { return };
                manager.borrow_mut().sweep_outliers();
            }
            // The next interval may be another.
            () = wake.notified() => {}
        }
    }
}
