//! Active checks of all clusters, on the control thread.
//!
//! Owns who is checked, and marks endpoints by what checks find. Never rebuilds what balancers pick from, and never sends
//! anything (see `probe`).

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use outrigger_config::cluster::{EndpointCheck, HealthCheck};
use outrigger_policy::health::{
    CheckResult, CheckThresholds, CheckedHost, FailureKind, IntervalLimits, Transition, Verdict, initial_wait, interval,
};
use tokio::task::AbortHandle;

use super::check_log;
use super::event_file::EventFile;
use super::flags::{HealthFlag, HealthFlags};
use super::probe::{Checked, Target};
use super::stats::HealthCheckStats;
use crate::graph::{ClusterNode, HostList, RuntimeSnapshot};
use crate::stats::{Registry, names};
use crate::upstream::host::{Host, HostShared};
use crate::worker::random::Random;

/// Which checks of which endpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SessionKey {
    /// The cluster.
    pub cluster: Arc<str>,
    /// Which of its configurations.
    round: u64,
    /// The endpoint.
    host: usize,
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

/// The checks by one configuration of a cluster.
struct CheckedCluster {
    round: u64,
    node: Arc<ClusterNode>,
    hosts: HashMap<usize, Session>,
    stats: Arc<HealthCheckStats>,
    logs: Vec<EventFile>,
}

struct Session {
    host: Arc<Host>,
    state: CheckedHost,
    task: AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn key(host: &Arc<HostShared>) -> usize {
    Arc::as_ptr(host) as usize
}

impl Checks {
    /// Takes over a cluster in use: checks by other configurations end. Whether marks of its endpoints have changed.
    pub fn follow(&mut self, node: &Arc<ClusterNode>, surroundings: &Surroundings<'_>) -> bool {
        let name = &node.config.name;
        if node.config.health_check.is_none() {
            return self.forget(name) && unmark(&node.hosts);
        }
        self.prepare(node, surroundings);
        if let Some(rounds) = self.clusters.get_mut(name) {
            rounds.retain(|round| Arc::ptr_eq(&round.node.config, &node.config));
            rounds.iter().for_each(CheckedCluster::show);
        }
        false
    }

    /// Begins or goes on checking by a configuration, beside those that are in use. Whether all its endpoints have a
    /// result.
    pub fn prepare(&mut self, node: &Arc<ClusterNode>, surroundings: &Surroundings<'_>) -> bool {
        let Some(settings) = &node.config.health_check else { return true };
        let rounds = self.clusters.entry(Arc::clone(&node.config.name)).or_default();
        let position = match rounds.iter().position(|round| Arc::ptr_eq(&round.node.config, &node.config)) {
            Some(position) => position,
            None => {
                self.next_round += 1;
                let round = CheckedCluster::new(self.next_round, node, settings, rounds.last(), surroundings);
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
        round.stats.attempt.increment();
        let percent = number(runtime, "health_check.verify_cluster").unwrap_or(100);
        let verify = (self.random.next() >> 11) % 100 < percent;
        Some(Target { node: Arc::clone(&round.node), host, verify })
    }

    /// A session has checked: what follows.
    pub fn end(&mut self, key: &SessionKey, checked: Checked, runtime: &RuntimeSnapshot) -> Option<Outcome> {
        let round = self.clusters.get_mut(&key.cluster)?.iter_mut().find(|round| round.round == key.round)?;
        if checked.verified {
            round.stats.verify_cluster.increment();
        }
        let (verdict, mut outcome) = round.record(key.host, &checked)?;
        let used = round.node.shared.used.load(Ordering::Relaxed);
        let limits = limits(runtime);
        let mut random = || self.random.next() >> 11;
        if let Some(settings) = &round.node.config.health_check {
            outcome.wait = interval(&settings.intervals, &verdict, used, limits, &mut random);
        }
        Some(outcome)
    }

    /// An endpoint has said in a response that its checks are to fail (`x-envoy-immediate-health-check-fail`).
    pub fn fail_at_once(&mut self, cluster: &str, host: &Arc<HostShared>) -> Outcome {
        let mut all = Outcome::default();
        for round in self.clusters.get_mut(cluster).into_iter().flatten() {
            let result = CheckResult::Failure { kind: FailureKind::Passive, retriable: false };
            let checked = Checked { result, status: 0, excluded: true, verified: false };
            if let Some((_, outcome)) = round.record(key(host), &checked) {
                all.changed |= outcome.changed;
                all.remove |= outcome.remove;
                all.complete |= outcome.complete;
            }
        }
        all
    }
}

impl CheckedCluster {
    fn new(
        round: u64,
        node: &Arc<ClusterNode>,
        settings: &HealthCheck,
        predecessor: Option<&Self>,
        surroundings: &Surroundings<'_>,
    ) -> Self {
        let prefix = || format!("{}health_check.", names::prefix("cluster", &node.config.stat_name));
        let same = predecessor.filter(|old| old.node.config.stat_name == node.config.stat_name);
        let stats = same.map_or_else(|| surroundings.registry.scope(&prefix()), |old| Arc::clone(&old.stats));
        let logs = settings.event_logs.iter().filter_map(|path| (surroundings.open_log)(path)).collect();
        Self { round, node: Arc::clone(node), hosts: HashMap::new(), stats, logs }
    }

    fn follow(
        &mut self,
        node: &Arc<ClusterNode>,
        predecessor: Option<&Self>,
        surroundings: &Surroundings<'_>,
        random: &Random,
    ) {
        self.node = Arc::clone(node);
        let Some(settings) = &node.config.health_check else { return };
        let mut random = || random.next() >> 11;
        // Results of checks that were made alike hold.
        let alike = predecessor.filter(|old| old.node.config.health_check.as_ref() == Some(settings));
        let limits = limits(surroundings.runtime);
        let mut begun = 0;
        let mut there = HashSet::new();
        for host in node.hosts.hosts.iter().filter(|host| !is_disabled(host)) {
            let id = key(&host.shared);
            there.insert(id);
            if let Some(session) = self.hosts.get_mut(&id).filter(|session| is_checked_alike(&session.host, host)) {
                session.host = Arc::clone(host);
                continue;
            }
            let known = self.hosts.get(&id).or_else(|| alike?.hosts.get(&id));
            let state = known.map(|session| session.state.clone());
            let state =
                state.unwrap_or_else(|| CheckedHost::new(!host.shared.flags.has(HealthFlag::FailedActiveCheck)));
            // Those that begin together are spread a little, so that they are not all due in the same moment ever after.
            let wait = match state.is_unchecked() {
                true => initial_wait(&settings.intervals, limits, &mut random) + SPREAD * begun,
                false => settings.intervals.healthy,
            };
            begun += 1;
            let session_key = SessionKey { cluster: Arc::clone(&node.config.name), round: self.round, host: id };
            let task = (surroundings.start)(session_key, wait);
            self.hosts.insert(id, Session { host: Arc::clone(host), state, task });
        }
        self.hosts.retain(|id, _| there.contains(id));
        self.show();
    }

    fn is_complete(&self) -> bool {
        self.hosts.values().all(|session| !session.state.is_unchecked())
    }

    fn show(&self) {
        let count = |wanted: fn(&CheckedHost) -> bool| {
            self.hosts.values().filter(|session| wanted(&session.state)).count() as i64
        };
        self.stats.healthy.set(count(CheckedHost::is_healthy));
        self.stats.degraded.set(count(CheckedHost::is_degraded));
    }

    /// Takes in a result: state, marks, stats and log of an endpoint.
    fn record(&mut self, host: usize, checked: &Checked) -> Option<(Verdict, Outcome)> {
        let settings = self.node.config.health_check.as_ref()?;
        let session = self.hosts.get_mut(&host)?;
        let thresholds =
            CheckThresholds { unhealthy: settings.unhealthy_threshold, healthy: settings.healthy_threshold };
        let verdict = session.state.record(checked.result, thresholds);
        let flags = &session.host.shared.flags;
        let marked = mark(flags, &session.state, checked);
        let failure = match checked.result {
            CheckResult::Success { .. } => None,
            CheckResult::Failure { kind, .. } => Some((kind, checked.status)),
        };
        match failure {
            None => self.stats.success.increment(),
            Some((kind, _)) => {
                self.stats.failure.increment();
                if kind.is_network() {
                    self.stats.network_failure.increment();
                }
                if kind == FailureKind::Passive {
                    self.stats.passive_failure.increment();
                }
            }
        }
        if !self.logs.is_empty() {
            for line in check_log::lines(settings, &self.node.config.name, &session.host, &verdict, failure) {
                self.logs.iter().for_each(|log| log.append(&line));
            }
        }
        let healthy = session.state.is_healthy();
        let outcome = Outcome {
            wait: Duration::ZERO,
            changed: marked || verdict.transition == Transition::Changed,
            remove: !healthy && flags.has(HealthFlag::PendingRemoval),
            healthy: (verdict.success && healthy && flags.has(HealthFlag::FailedOutlierCheck))
                .then(|| Arc::clone(&session.host.shared)),
            complete: verdict.first && self.is_complete(),
        };
        if outcome.changed {
            self.show();
        }
        Some((verdict, outcome))
    }
}

/// Time between the first checks of endpoints that begin together.
const SPREAD: Duration = Duration::from_micros(100);

/// Marks an endpoint by its state and last result. Whether that changed anything that balancing looks at.
fn mark(flags: &HealthFlags, state: &CheckedHost, checked: &Checked) -> bool {
    let failure = match checked.result {
        CheckResult::Success { .. } => None,
        CheckResult::Failure { kind, .. } => Some(kind),
    };
    flags.set(HealthFlag::ActiveCheckTimeout, failure == Some(FailureKind::NetworkTimeout) && !state.is_healthy());
    let mut changed = flags.set(HealthFlag::FailedActiveCheck, !state.is_healthy());
    changed |= flags.set(HealthFlag::DegradedActiveCheck, state.is_degraded());
    changed |= flags.set(HealthFlag::PendingActiveCheck, false);
    if checked.excluded {
        changed |= flags.set(HealthFlag::Excluded, true);
    } else if failure.is_none() {
        changed |= flags.set(HealthFlag::Excluded, false);
    }
    changed
}

/// Takes away the marks of checks. Whether there were any.
fn unmark(hosts: &HostList) -> bool {
    let mut changed = false;
    for host in &hosts.hosts {
        for flag in [
            HealthFlag::FailedActiveCheck,
            HealthFlag::DegradedActiveCheck,
            HealthFlag::PendingActiveCheck,
            HealthFlag::PendingRemoval,
            HealthFlag::Excluded,
            HealthFlag::ActiveCheckTimeout,
        ] {
            changed |= host.shared.flags.set(flag, false);
        }
    }
    changed
}

fn is_disabled(host: &Host) -> bool {
    host.health_check.as_ref().is_some_and(|check: &Arc<EndpointCheck>| check.disabled)
}

fn is_checked_alike(a: &Host, b: &Host) -> bool {
    a.address == b.address && a.health_check == b.health_check && a.hostname == b.hostname && a.transport == b.transport
}

fn limits(runtime: &RuntimeSnapshot) -> IntervalLimits {
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
