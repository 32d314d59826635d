//! The active checks of one cluster by one of its configurations.
//!
//! Owns the state of each check of each endpoint, and the marks, stats and log lines that follow from results. Never
//! decides when the next check is due.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::cluster::{EndpointCheck, HealthCheck, Probe};
use outrigger_policy::health::{
    CheckResult, CheckThresholds, CheckedHost, FailureKind, Transition, Verdict, initial_wait,
};
use tokio::task::AbortHandle;

use super::check_log;
use super::checks::{Outcome, SessionKey, Surroundings, key, limits};
use super::event_file::EventFile;
use super::flags::HealthFlag;
use super::marks;
use super::probe::Checked;
use super::stats::{CheckGroupStats, HealthCheckStats};
use crate::graph::ClusterNode;
use crate::stats::names;
use crate::upstream::host::Host;
use crate::worker::random::Random;

/// The checks by one configuration of a cluster.
pub(super) struct CheckedCluster {
    /// Tells configurations of a cluster apart.
    pub round: u64,
    /// The cluster as it is now.
    pub node: Arc<ClusterNode>,
    /// Those that are checked.
    pub hosts: HashMap<usize, CheckedEndpoint>,
    /// In the order of `Cluster::health_checks`.
    pub checkers: Vec<Checker>,
    /// Of endpoints by all their checks, where there are several.
    group: Option<Arc<CheckGroupStats>>,
    /// Sessions without any result.
    unchecked: usize,
    healthy: i64,
    degraded: i64,
}

/// One kind of check.
pub(super) struct Checker {
    pub stats: Arc<HealthCheckStats>,
    logs: Vec<EventFile>,
    healthy: i64,
    degraded: i64,
}

/// An endpoint that is checked.
pub(super) struct CheckedEndpoint {
    pub host: Arc<Host>,
    /// In the order of `Cluster::health_checks`.
    sessions: Box<[Session]>,
}

/// One check of one endpoint.
struct Session {
    state: CheckedHost,
    /// The last check failed because its time was over.
    timed_out: bool,
    /// It asked not to be counted.
    excluded: bool,
    task: AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl CheckedEndpoint {
    fn is_healthy(&self) -> bool {
        self.sessions.iter().all(|session| session.state.is_healthy())
    }

    fn is_degraded(&self) -> bool {
        self.sessions.iter().any(|session| session.state.is_degraded())
    }

    /// Marks the endpoint by all its checks: it is healthy that passes all of them. Whether that changed anything that
    /// balancing looks at.
    fn mark(&self) -> bool {
        let flags = &self.host.shared.flags;
        let any = |wanted: fn(&Session) -> bool| self.sessions.iter().any(wanted);
        flags.set(HealthFlag::ActiveCheckTimeout, any(|session| session.timed_out && !session.state.is_healthy()));
        let mut changed = flags.set(HealthFlag::FailedActiveCheck, !self.is_healthy());
        changed |= flags.set(HealthFlag::DegradedActiveCheck, self.is_degraded());
        changed |= flags.set(HealthFlag::Excluded, any(|session| session.excluded));
        if !any(|session| session.state.is_unchecked()) {
            changed |= flags.set(HealthFlag::PendingActiveCheck, false);
        }
        changed
    }
}

impl CheckedCluster {
    pub(super) fn new(
        round: u64,
        node: &Arc<ClusterNode>,
        predecessor: Option<&Self>,
        surroundings: &Surroundings<'_>,
    ) -> Self {
        let prefix = format!("{}health_check.", names::prefix("cluster", &node.config.stat_name));
        let same = predecessor.filter(|old| old.node.config.stat_name == node.config.stat_name);
        let checker = |settings: &HealthCheck| {
            let known = same.and_then(|old| {
                let mut others = old.node.config.health_checks.iter().zip(&old.checkers);
                others.find(|(other, _)| other.name == settings.name).map(|(_, checker)| checker)
            });
            let prefix = || match &*settings.name {
                "" => prefix.clone(),
                name => format!("{prefix}name.{name}."),
            };
            Checker {
                stats: known.map_or_else(|| surroundings.registry.scope(&prefix()), |old| Arc::clone(&old.stats)),
                logs: settings.event_logs.iter().filter_map(|path| (surroundings.open_log)(path)).collect(),
                healthy: 0,
                degraded: 0,
            }
        };
        let several = node.config.health_checks.len() > 1;
        let group = same.and_then(|old| old.group.clone());
        Self {
            round,
            node: Arc::clone(node),
            hosts: HashMap::new(),
            checkers: node.config.health_checks.iter().map(checker).collect(),
            group: several.then(|| group.unwrap_or_else(|| surroundings.registry.scope(&prefix))),
            unchecked: 0,
            healthy: 0,
            degraded: 0,
        }
    }

    /// Takes over the endpoints of a node: checks begin and end with theirs.
    pub(super) fn follow(
        &mut self,
        node: &Arc<ClusterNode>,
        predecessor: Option<&Self>,
        surroundings: &Surroundings<'_>,
        random: &Random,
    ) {
        let old = std::mem::replace(&mut self.node, Arc::clone(node));
        let (before, after) = (&old.hosts.hosts, &node.hosts.hosts);
        // Mostly it is only what balancers pick from that has changed.
        if before.len() == after.len()
            && !self.hosts.is_empty()
            && before.iter().zip(after).all(|(old, new)| Arc::ptr_eq(old, new))
        {
            return;
        }
        let mut random = || random.next() >> 11;
        let mut begun = 0;
        let mut there = HashSet::new();
        for host in node.hosts.hosts.iter().filter(|host| !is_disabled(host)) {
            let id = key(&host.shared);
            there.insert(id);
            if let Some(known) = self.hosts.get_mut(&id).filter(|known| is_checked_alike(&known.host, host)) {
                known.host = Arc::clone(host);
                continue;
            }
            let sessions = node.config.health_checks.iter().enumerate().map(|(check, settings)| {
                let known = self.hosts.get(&id).and_then(|known| known.sessions.get(check));
                let known = known.or_else(|| predecessor?.alike(settings, id));
                let session_key =
                    SessionKey { cluster: Arc::clone(&node.config.name), round: self.round, host: id, check };
                let state = known.map(|session| session.state.clone());
                let state = state.unwrap_or_else(|| first_state(settings, host));
                // Those that begin together are spread a little, so that they are not all due in the same moment.
                let wait = match state.is_unchecked() {
                    true => {
                        let limits = limits(surroundings.runtime);
                        initial_wait(&settings.intervals, limits, &mut random) + SPREAD * begun
                    }
                    false => settings.intervals.healthy,
                };
                begun += 1;
                let (timed_out, excluded) = known.map_or((false, false), |known| (known.timed_out, known.excluded));
                Session { state, timed_out, excluded, task: (surroundings.start)(session_key, wait) }
            });
            let sessions = sessions.collect();
            self.hosts.insert(id, CheckedEndpoint { host: Arc::clone(host), sessions });
        }
        self.hosts.retain(|id, _| there.contains(id));
        self.count();
        self.show();
    }

    /// A session of this configuration whose settings are these: results of checks that were made alike hold.
    fn alike(&self, settings: &HealthCheck, host: usize) -> Option<&Session> {
        let check = self.node.config.health_checks.iter().position(|old| old == settings)?;
        self.hosts.get(&host)?.sessions.get(check)
    }

    /// Whether every check of every endpoint has a result.
    pub(super) fn is_complete(&self) -> bool {
        self.unchecked == 0
    }

    fn count(&mut self) {
        (self.unchecked, self.healthy, self.degraded) = (0, 0, 0);
        for checker in &mut self.checkers {
            (checker.healthy, checker.degraded) = (0, 0);
        }
        for endpoint in self.hosts.values() {
            self.healthy += i64::from(endpoint.is_healthy());
            self.degraded += i64::from(endpoint.is_degraded());
            for (checker, session) in self.checkers.iter_mut().zip(&endpoint.sessions) {
                self.unchecked += usize::from(session.state.is_unchecked());
                checker.healthy += i64::from(session.state.is_healthy());
                checker.degraded += i64::from(session.state.is_degraded());
            }
        }
    }

    /// Brings gauges up to date.
    pub(super) fn show(&self) {
        for checker in &self.checkers {
            checker.stats.healthy.set(checker.healthy);
            checker.stats.degraded.set(checker.degraded);
        }
        if let Some(group) = &self.group {
            group.healthy.set(self.healthy);
            group.degraded.set(self.degraded);
        }
    }

    /// Takes in a result: state, marks, stats and log of an endpoint.
    pub(super) fn record(&mut self, host: usize, check: usize, checked: &Checked) -> Option<(Verdict, Outcome)> {
        let settings = self.node.config.health_checks.get(check)?;
        let endpoint = self.hosts.get_mut(&host)?;
        let checker = self.checkers.get_mut(check)?;
        let were = (endpoint.is_healthy(), endpoint.is_degraded());
        let session = endpoint.sessions.get_mut(check)?;
        let was = (session.state.is_healthy(), session.state.is_degraded());
        // What an endpoint says of its own accord is not said again.
        let healthy = if checked.told { 1 } else { settings.healthy_threshold };
        let thresholds = CheckThresholds { unhealthy: settings.unhealthy_threshold, healthy };
        let verdict = session.state.record(checked.result, thresholds);
        session.take(checked);
        checker.healthy += i64::from(session.state.is_healthy()) - i64::from(was.0);
        checker.degraded += i64::from(session.state.is_degraded()) - i64::from(was.1);
        self.unchecked -= usize::from(verdict.first);
        self.healthy += i64::from(endpoint.is_healthy()) - i64::from(were.0);
        self.degraded += i64::from(endpoint.is_degraded()) - i64::from(were.1);
        let mut marked = endpoint.mark();
        if let Some(report) = &checked.agent {
            marked |= marks::take_report(&endpoint.host.shared, report);
        }
        let failure = checker.count(checked);
        if !checker.logs.is_empty() {
            for line in check_log::lines(settings, &self.node.config.name, &endpoint.host, &verdict, failure) {
                checker.logs.iter().for_each(|log| log.append(&line));
            }
        }
        let flags = &endpoint.host.shared.flags;
        let healthy = endpoint.is_healthy();
        let outcome = Outcome {
            wait: Duration::ZERO,
            changed: marked || verdict.transition == Transition::Changed,
            remove: !healthy && flags.has(HealthFlag::PendingRemoval),
            healthy: (verdict.success && healthy && flags.has(HealthFlag::FailedOutlierCheck))
                .then(|| Arc::clone(&endpoint.host.shared)),
            complete: verdict.first && self.unchecked == 0,
        };
        if outcome.changed {
            self.show();
        }
        Some((verdict, outcome))
    }
}

impl Session {
    fn take(&mut self, checked: &Checked) {
        match checked.result {
            CheckResult::Success { .. } => (self.timed_out, self.excluded) = (false, checked.excluded),
            CheckResult::Failure { kind, .. } => {
                self.timed_out = kind == FailureKind::NetworkTimeout;
                self.excluded |= checked.excluded;
            }
            CheckResult::Nothing { .. } => {}
        }
    }
}

impl Checker {
    /// Counts a result. What failed, with the HTTP status or 0.
    fn count(&self, checked: &Checked) -> check_log::Failure {
        match checked.result {
            CheckResult::Success { .. } | CheckResult::Nothing { reached: true } => {
                self.stats.success.increment();
                None
            }
            CheckResult::Nothing { reached: false } => {
                self.stats.failure.increment();
                self.stats.network_failure.increment();
                None
            }
            CheckResult::Failure { kind, .. } => {
                self.stats.failure.increment();
                if kind.is_network() {
                    self.stats.network_failure.increment();
                }
                if kind == FailureKind::Passive {
                    self.stats.passive_failure.increment();
                }
                Some((kind, checked.status))
            }
        }
    }
}

/// Time between the first checks of endpoints that begin together.
const SPREAD: Duration = Duration::from_micros(100);

/// What an endpoint is believed to be before its first result. An agent speaks up when it is not.
fn first_state(settings: &HealthCheck, host: &Host) -> CheckedHost {
    let agent = matches!(settings.probe, Probe::Agent(_));
    CheckedHost::new(agent || !host.shared.flags.has(HealthFlag::FailedActiveCheck))
}

fn is_disabled(host: &Host) -> bool {
    host.health_check.as_ref().is_some_and(|check: &Arc<EndpointCheck>| check.disabled)
}

fn is_checked_alike(a: &Host, b: &Host) -> bool {
    a.address == b.address && a.health_check == b.health_check && a.hostname == b.hostname && a.transport == b.transport
}
