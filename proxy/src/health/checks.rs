//! Active checks of all clusters, on the control thread.
//!
//! Owns which clusters are checked, by which of their configurations, and when the next check is due. Never rebuilds what
//! balancers pick from, and never sends anything (see `probe`).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use outrigger_config::cluster::Probe;
use outrigger_policy::health::{CheckResult, FailureKind, IntervalLimits, interval};
use tokio::task::AbortHandle;

use super::checked_cluster::CheckedCluster;
use super::event_file::EventFile;
use super::marks;
use super::probe::{Checked, Target};
use crate::graph::{ClusterNode, RuntimeSnapshot};
use crate::stats::Registry;
use crate::upstream::host::HostShared;
use crate::worker::random::Random;

/// Which check of which endpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SessionKey {
    /// The cluster.
    pub cluster: Arc<str>,
    /// Which of its configurations.
    pub(super) round: u64,
    /// The endpoint.
    pub(super) host: usize,
    /// A place among `Cluster::health_checks`.
    pub(super) check: usize,
}

/// Starts a session after a while.
pub type Start<'a> = dyn Fn(SessionKey, Duration) -> AbortHandle + 'a;

/// What following a cluster may look up.
pub struct Surroundings<'a> {
    /// Starts sessions.
    pub start: &'a Start<'a>,
    /// Where stats are made.
    pub registry: &'a Registry,
    /// Opens event logs.
    pub open_log: &'a dyn Fn(&PathBuf) -> Option<EventFile>,
    /// Limits of intervals.
    pub runtime: &'a RuntimeSnapshot,
}

/// What is to be done after a result.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The next check is due after this.
    pub wait: Duration,
    /// What balancers pick from is no longer right.
    pub changed: bool,
    /// The endpoint is gone from discovery, and now has no reason to stay.
    pub remove: bool,
    /// A success may end the ejection of this one.
    pub healthy: Option<Arc<HostShared>>,
    /// Every endpoint of this configuration now has a result.
    pub complete: bool,
}

/// All clusters whose endpoints are checked.
#[derive(Default)]
pub struct Checks {
    /// Several configurations of a cluster while a newer one waits for its first results, which come last.
    clusters: HashMap<Arc<str>, Vec<CheckedCluster>>,
    next_round: u64,
    random: Random,
}

pub(super) fn key(host: &Arc<HostShared>) -> usize {
    Arc::as_ptr(host) as usize
}

impl Checks {
    /// Takes over a cluster in use: checks by other configurations end. Whether marks of its endpoints have changed.
    pub fn follow(&mut self, node: &Arc<ClusterNode>, surroundings: &Surroundings<'_>) -> bool {
        let name = &node.config.name;
        if node.config.health_checks.is_empty() {
            return self.forget(name) && marks::unmark(&node.hosts);
        }
        self.prepare(node, surroundings);
        let mut changed = false;
        if let Some(rounds) = self.clusters.get_mut(name) {
            let before = rounds.len();
            rounds.retain(|round| Arc::ptr_eq(&round.node.config, &node.config));
            let asked = node.config.health_checks.iter().any(|check| matches!(check.probe, Probe::Agent(_)));
            if rounds.len() < before && !asked {
                changed = marks::forget_agents(&node.hosts);
            }
            rounds.iter().for_each(CheckedCluster::show);
        }
        changed
    }

    /// Begins or goes on checking by a configuration, beside those that are in use. Whether all its endpoints have a
    /// result.
    pub fn prepare(&mut self, node: &Arc<ClusterNode>, surroundings: &Surroundings<'_>) -> bool {
        if node.config.health_checks.is_empty() {
            return true;
        }
        let rounds = self.clusters.entry(Arc::clone(&node.config.name)).or_default();
        let position = match rounds.iter().position(|round| Arc::ptr_eq(&round.node.config, &node.config)) {
            Some(position) => position,
            None => {
                self.next_round += 1;
                let round = CheckedCluster::new(self.next_round, node, rounds.last(), surroundings);
                rounds.push(round);
                rounds.len() - 1
            }
        };
        let (older, rest) = rounds.split_at_mut(position);
        let Some(round) = rest.first_mut() else { return true };
        round.follow(node, older.last(), surroundings, &self.random);
        round.is_complete()
    }

    /// A configuration is not wanted after all.
    pub fn abandon(&mut self, node: &ClusterNode) {
        if let Some(rounds) = self.clusters.get_mut(&node.config.name) {
            rounds.retain(|round| !Arc::ptr_eq(&round.node.config, &node.config));
        }
    }

    /// A cluster is gone, or is checked no more. Whether it was.
    pub fn forget(&mut self, name: &str) -> bool {
        self.clusters.remove(name).is_some()
    }

    /// A session is about to check: whom.
    pub fn begin(&mut self, key: &SessionKey, runtime: &RuntimeSnapshot) -> Option<Target> {
        let round = self.clusters.get(&key.cluster)?.iter().find(|round| round.round == key.round)?;
        let host = Arc::clone(&round.hosts.get(&key.host)?.host);
        round.checkers.get(key.check)?.stats.attempt.increment();
        let verify = match &round.node.config.health_checks.get(key.check)?.probe {
            Probe::Http(probe) if probe.service_name.is_some() => {
                let percent = number(runtime, "health_check.verify_cluster").unwrap_or(100);
                (self.random.next() >> 11) % 100 < percent
            }
            _ => false,
        };
        Some(Target { node: Arc::clone(&round.node), host, check: key.check, verify })
    }

    /// A session has checked: what follows.
    pub fn end(&mut self, key: &SessionKey, checked: Checked, runtime: &RuntimeSnapshot) -> Option<Outcome> {
        let round = self.clusters.get_mut(&key.cluster)?.iter_mut().find(|round| round.round == key.round)?;
        if checked.verified {
            round.checkers.get(key.check)?.stats.verify_cluster.increment();
        }
        let (verdict, mut outcome) = round.record(key.host, key.check, &checked)?;
        let used = round.node.shared.used.load(Ordering::Relaxed);
        let limits = limits(runtime);
        let mut random = || self.random.next() >> 11;
        if let Some(settings) = round.node.config.health_checks.get(key.check) {
            outcome.wait = interval(&settings.intervals, &verdict, used, limits, &mut random);
            if verdict.first && round.hosts.len() > MANY {
                outcome.wait = spread(outcome.wait, &mut random);
            }
        }
        Some(outcome)
    }

    /// An endpoint has said in a response that its checks are to fail (`x-envoy-immediate-health-check-fail`).
    pub fn fail_at_once(&mut self, cluster: &str, host: &Arc<HostShared>) -> Outcome {
        let mut all = Outcome::default();
        for round in self.clusters.get_mut(cluster).into_iter().flatten() {
            let result = CheckResult::Failure { kind: FailureKind::Passive, retriable: false };
            let checked = Checked { excluded: true, ..Checked::of(result) };
            for check in 0..round.checkers.len() {
                if let Some((_, outcome)) = round.record(key(host), check, &checked) {
                    all.changed |= outcome.changed;
                    all.remove |= outcome.remove;
                    all.complete |= outcome.complete;
                }
            }
        }
        all
    }
}

/// A cluster of more endpoints has its checks spread over the interval.
const MANY: usize = 100;

/// A point within `wait`, once: whoever began in the same moment is not due in the same moments ever after.
fn spread(wait: Duration, random: &mut dyn FnMut() -> u64) -> Duration {
    let most = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX).max(1);
    Duration::from_micros(random() % most).max(Duration::from_millis(1))
}

pub(super) fn limits(runtime: &RuntimeSnapshot) -> IntervalLimits {
    let time = |key: &str| number(runtime, key).map(Duration::from_millis);
    let IntervalLimits { min, max } = IntervalLimits::default();
    IntervalLimits {
        min: time("health_check.min_interval").unwrap_or(min),
        max: time("health_check.max_interval").unwrap_or(max),
    }
}

fn number(runtime: &RuntimeSnapshot, key: &str) -> Option<u64> {
    let number = runtime.values.get(key)?.number?;
    (number >= 0.0).then_some(number as u64)
}
