//! The health of endpoints in the graph: what is found about them changes what balancers pick from.
//!
//! Owns the task that hears of findings and of intervals that are over, and the new picks that follow. Never decides
//! that an endpoint is well or not (see `crate::health`).

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Weak;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::manager::GraphManager;
use super::offers::explain;
use super::{ClusterNode, compile, hosts};
use crate::health::{
    Checked, Checks, EventFile, Observation, Outcome, Outliers, Report, SessionKey, Surroundings, Target, session,
};
use crate::process::Process;

/// Changes of large clusters within this time are taken together: each costs a look at all endpoints.
const GATHER: Duration = Duration::from_millis(10);
/// A cluster of more endpoints is large.
const LARGE: usize = 100;

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
        let mut changed = self.outliers.follow(&node, &self.runtime_snapshot, &self.process.stats);
        changed |= self.with_checks(|checks, surroundings| checks.follow(&node, surroundings));
        self.load_streams.follow(&node, &self.process.stats);
        if changed {
            self.rebalance(name);
        }
        self.health_wake.notify_one();
    }

    /// Begins to check the endpoints of a node that is not in use yet. Whether all of them have a result.
    pub(super) fn prepare_checks(&mut self, node: &Arc<ClusterNode>) -> bool {
        self.with_checks(|checks, surroundings| checks.prepare(node, surroundings))
    }

    fn with_checks<R>(&mut self, act: impl FnOnce(&mut Checks, &Surroundings<'_>) -> R) -> R {
        let this = Weak::clone(&self.this);
        let files = Arc::clone(&self.options.access_logs);
        let surroundings = Surroundings {
            start: &move |key, wait| session::start(Weak::clone(&this), key, wait),
            registry: &self.process.stats,
            open_log: &move |path: &PathBuf| match EventFile::open(path, &files) {
                Ok(file) => Some(file),
                Err(error) => {
                    tracing::error!("health check event log: {}", explain(&error));
                    None
                }
            },
            runtime: &self.runtime_snapshot,
        };
        act(&mut self.checks, &surroundings)
    }

    /// A cluster is gone.
    pub(super) fn forget_health(&mut self, name: &str) {
        self.outliers.forget(name);
        self.checks.forget(name);
        self.load_streams.forget(name);
        self.drop_first_checks(name);
    }

    /// Lets balancers know of marks that have changed.
    pub(super) fn rebalance(&mut self, name: &Arc<str>) {
        let Some(build) = self.clusters.get_mut(name) else { return };
        let zones = self.local.of(&build.node.config);
        compile::rebalance(build, zones);
        let node = Arc::clone(&build.node);
        self.show_membership(name);
        self.outliers.follow(&node, &self.runtime_snapshot, &self.process.stats);
        self.with_checks(|checks, surroundings| checks.follow(&node, surroundings));
        self.load_streams.follow(&node, &self.process.stats);
        if node.config.close_connections_on_host_health_failure {
            node.shared.health_changed.notify_waiters();
        }
        self.follow_local_cluster(name);
        self.changed();
    }

    /// The same, at once or together with more of its kind.
    fn rebalance_soon(&mut self, name: &Arc<str>) {
        let large = self.clusters.get(name).is_some_and(|build| build.node.hosts.hosts.len() > LARGE);
        if !large {
            return self.rebalance(name);
        }
        if self.unbalanced.is_empty() {
            self.after(GATHER, |manager| {
                for name in std::mem::take(&mut manager.unbalanced) {
                    manager.rebalance(&name);
                }
                manager.proceed();
            });
        }
        self.unbalanced.insert(Arc::clone(name));
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

    /// A session is about to check an endpoint: whom; `None` if nobody wants to know any more.
    pub(crate) fn begin_check(&mut self, key: &SessionKey) -> Option<Target> {
        self.checks.begin(key, &self.runtime_snapshot)
    }

    /// A session has checked an endpoint. When to check it again; `None` if nobody wants to know any more.
    pub(crate) fn end_check(&mut self, key: &SessionKey, checked: Checked) -> Option<Duration> {
        let outcome = self.checks.end(key, checked, &self.runtime_snapshot)?;
        let wait = outcome.wait;
        self.act_on(&key.cluster, outcome);
        Some(wait)
    }

    fn act_on(&mut self, cluster: &Arc<str>, outcome: Outcome) {
        let Outcome { wait: _, mut changed, remove, healthy, complete } = outcome;
        if let Some(host) = healthy {
            changed |= self.outliers.checked_healthy(cluster, &host, Instant::now());
        }
        if complete {
            self.first_checks_complete(cluster);
        }
        if remove {
            self.rebuild_cluster(cluster);
        } else if changed {
            self.rebalance_soon(cluster);
        }
        if changed || remove || complete {
            self.proceed();
        }
    }

    fn take_reports(&mut self, reports: Vec<Report>) {
        let now = Instant::now();
        for Report { cluster, host, what } in reports {
            match what {
                Observation::Outlier(outlier) => {
                    if self.outliers.found(&cluster, &host, outlier, now) {
                        self.rebalance_soon(&cluster);
                    }
                }
                Observation::ProbationPassed => {
                    if self.outliers.passed_probation(&cluster, &host) {
                        self.rebalance_soon(&cluster);
                    }
                }
                Observation::ImmediateFailure => {
                    let outcome = self.checks.fail_at_once(&cluster, &host);
                    self.act_on(&cluster, outcome);
                }
            }
        }
        self.proceed();
    }

    fn sweep_outliers(&mut self) {
        for cluster in self.outliers.sweep(Instant::now()) {
            self.rebalance_soon(&cluster);
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
