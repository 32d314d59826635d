//! Outlier detection of all clusters, on the control thread.
//!
//! Owns who is ejected and marks endpoints accordingly. Never rebuilds what balancers pick from: it says which clusters
//! need that.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use outrigger_config::cluster::{Cluster, OutlierDetection};
use outrigger_policy::outlier::{
    Averages, Detector, Event, EventKind, HostMonitor, Limits, Origin, Outlier, Windows, with_runtime,
};

use super::event_file::EventFile;
use super::flags::HealthFlag;
use super::outlier_log;
use super::stats::OutlierStats;
use crate::graph::{ClusterNode, HostList, RuntimeSnapshot};
use crate::stats::{Registry, names};
use crate::upstream::host::{Host, HostShared};
use crate::worker::random::Random;

/// What outlier detection of a cluster shares with others: limits with workers, numbers with the admin port.
#[derive(Debug)]
pub struct OutlierState {
    /// Read by workers.
    pub limits: Limits,
    shown: Mutex<Shown>,
}

/// Numbers of the last interval, in percent.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Over all endpoints, by their answers.
    pub external: Option<Averages>,
    /// Over all endpoints, by whether there was an answer.
    pub local: Option<Averages>,
    /// (external, local) success rates of endpoints that had requests enough.
    rates: HashMap<usize, (Option<f64>, Option<f64>)>,
}

impl Shown {
    /// The (external, local) success rates of an endpoint.
    pub fn rates_of(&self, host: &Arc<HostShared>) -> (Option<f64>, Option<f64>) {
        self.rates.get(&key(host)).copied().unwrap_or_default()
    }
}

impl OutlierState {
    /// For a cluster, if it detects outliers: that of its predecessor while the settings are the same.
    pub fn of(config: &Cluster, old: Option<&ClusterNode>) -> Option<Arc<Self>> {
        let settings = config.outlier_detection.as_ref()?;
        let same = old.filter(|old| old.config.outlier_detection.as_ref() == Some(settings));
        same.and_then(|old| old.outlier.clone()).or_else(|| Some(Arc::new(Self::new(settings))))
    }

    fn new(settings: &OutlierDetection) -> Self {
        Self { limits: Limits::new(settings), shown: Mutex::default() }
    }

    /// The numbers of the last interval.
    pub fn shown(&self) -> Shown {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn show(&self, shown: Shown) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }
}

/// All clusters that detect outliers.
pub struct Outliers {
    clusters: HashMap<Arc<str>, Watched>,
    /// Clusters with the same interval are looked at together: few wake-ups for many clusters.
    due: BTreeMap<Duration, Instant>,
    log: Option<EventFile>,
    random: Random,
}

/// A cluster that detects outliers.
struct Watched {
    configured: OutlierDetection,
    state: Arc<OutlierState>,
    detector: Detector<usize>,
    hosts: Arc<HostList>,
    stats: Arc<OutlierStats>,
}

/// What the detector knows an endpoint by: it lives as long as the list that the detector follows.
fn key(host: &Arc<HostShared>) -> usize {
    Arc::as_ptr(host) as usize
}

impl Outliers {
    /// Without clusters. Ejections are written to `log`.
    pub fn new(log: Option<EventFile>) -> Self {
        Self { clusters: HashMap::new(), due: BTreeMap::new(), log, random: Random::new() }
    }

    /// Takes over what a cluster is now. Whether marks of its endpoints have changed by that.
    pub fn follow(&mut self, node: &ClusterNode, runtime: &RuntimeSnapshot, registry: &Registry) -> bool {
        let name = &node.config.name;
        let (Some(configured), Some(state)) = (&node.config.outlier_detection, &node.outlier) else {
            return self.forget(name) && forgive(&node.hosts);
        };
        let mut changed = false;
        let known = self.clusters.get(name).is_some_and(|watched| Arc::ptr_eq(&watched.state, state));
        if !known {
            changed = self.forget(name) && forgive(&node.hosts);
            let prefix = format!("{}outlier_detection.", names::prefix("cluster", &node.config.stat_name));
            let watched = Watched {
                configured: (**configured).clone(),
                state: Arc::clone(state),
                detector: Detector::new(effective(configured, runtime)),
                hosts: Arc::default(),
                stats: registry.scope(&prefix),
            };
            watched.stats.ejections_active.set(0);
            watched.state.limits.set(watched.detector.settings());
            self.clusters.insert(Arc::clone(name), watched);
        }
        if let Some(watched) = self.clusters.get_mut(name) {
            watched.follow(&node.hosts);
        }
        self.schedule(Instant::now());
        changed
    }

    /// A cluster is gone, or detects no outliers any more. Whether it did.
    pub fn forget(&mut self, name: &str) -> bool {
        self.clusters.remove(name).is_some()
    }

    /// Other runtime values hold from now on.
    pub fn set_runtime(&mut self, runtime: &RuntimeSnapshot) {
        for watched in self.clusters.values_mut() {
            let settings = effective(&watched.configured, runtime);
            if settings != *watched.detector.settings() {
                watched.state.limits.set(&settings);
                watched.detector.set_settings(settings);
                watched.state.limits.set_measures(watched.detector.measures());
            }
        }
        self.schedule(Instant::now());
    }

    fn schedule(&mut self, now: Instant) {
        let intervals: HashSet<Duration> =
            self.clusters.values().map(|watched| watched.detector.settings().interval).collect();
        self.due.retain(|interval, _| intervals.contains(interval));
        for interval in intervals {
            self.due.entry(interval).or_insert(now + interval);
        }
    }

    /// When to call [`Self::sweep`] next, if ever.
    pub fn next_sweep(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// Ends the intervals that are over. Clusters whose endpoints' marks have changed.
    pub fn sweep(&mut self, now: Instant) -> Vec<Arc<str>> {
        let mut over = HashSet::new();
        for (interval, due) in &mut self.due {
            if *due <= now {
                over.insert(*interval);
                *due = now + *interval;
            }
        }
        let mut changed = Vec::new();
        for (name, watched) in &mut self.clusters {
            if !over.contains(&watched.detector.settings().interval) || watched.detector.is_idle() {
                continue;
            }
            let events = watched.sweep(now, &self.random);
            if watched.apply(name, events, self.log.as_ref()) {
                changed.push(Arc::clone(name));
            }
        }
        changed
    }

    /// What a worker has found. Whether marks of the cluster's endpoints have changed.
    pub fn found(&mut self, cluster: &Arc<str>, host: &Arc<HostShared>, outlier: Outlier, now: Instant) -> bool {
        let Some(watched) = self.clusters.get_mut(cluster) else { return false };
        // A report may be older than an update that took the endpoint away.
        if watched.host(key(host)).is_none() {
            return false;
        }
        let mut random = || self.random.next() >> 11;
        let event = match outlier {
            Outlier::Degraded => watched.detector.degraded(key(host), now, &mut random),
            _ => {
                let event = watched.detector.found(key(host), outlier, now, &mut random);
                if event.is_some() {
                    host.monitor().found(outlier);
                }
                event
            }
        };
        watched.apply(cluster, event, self.log.as_ref())
    }

    /// An endpoint has had the successes that it owed. Whether its marks have changed.
    pub fn passed_probation(&self, cluster: &str, host: &Arc<HostShared>) -> bool {
        let known = self.clusters.get(cluster).is_some_and(|watched| watched.host(key(host)).is_some());
        known && host.flags.set(HealthFlag::OnProbation, false)
    }

    /// An active check has found an endpoint well. Whether its marks have changed.
    pub fn checked_healthy(&mut self, cluster: &Arc<str>, host: &Arc<HostShared>, now: Instant) -> bool {
        let Some(watched) = self.clusters.get_mut(cluster) else { return false };
        let event = watched.detector.checked_healthy(key(host), now);
        watched.apply(cluster, event, self.log.as_ref())
    }
}

impl Watched {
    fn follow(&mut self, hosts: &Arc<HostList>) {
        if !Arc::ptr_eq(&self.hosts, hosts) {
            let keys: HashSet<usize> = hosts.hosts.iter().map(|host| key(&host.shared)).collect();
            self.detector.follow(keys.len(), |host| keys.contains(&host));
            self.hosts = Arc::clone(hosts);
            self.stats.ejections_active.set(self.detector.ejected() as i64);
        }
        self.state.limits.set_measures(self.detector.measures());
    }

    fn host(&self, wanted: usize) -> Option<&Arc<Host>> {
        self.hosts.hosts.iter().find(|host| key(&host.shared) == wanted)
    }

    fn sweep(&mut self, now: Instant, random: &Random) -> Vec<Event<usize>> {
        let mut observed: Vec<(usize, Windows)> = Vec::new();
        if self.detector.measures() {
            let windows = |host: &Arc<Host>| (key(&host.shared), take(&host.shared));
            observed.extend(self.hosts.hosts.iter().map(windows));
        }
        let events = self.detector.sweep(now, &observed, &mut || random.next() >> 11);
        let rates = |host: usize| {
            let rate = |origin| self.detector.success_rate(host, origin);
            (rate(Origin::External), rate(Origin::Local))
        };
        let known = observed.iter().map(|(host, _)| (*host, rates(*host)));
        self.state.show(Shown {
            external: self.detector.averages(Origin::External),
            local: self.detector.averages(Origin::Local),
            rates: known.filter(|(_, rates)| *rates != (None, None)).collect(),
        });
        events
    }

    /// Marks endpoints, counts and logs. Whether a mark has changed.
    fn apply(
        &mut self,
        cluster: &str,
        events: impl IntoIterator<Item = Event<usize>>,
        log: Option<&EventFile>,
    ) -> bool {
        let mut changed = false;
        for event in events {
            self.stats.count(&event.kind);
            let Some(host) = self.host(event.host) else { continue };
            let flags = &host.shared.flags;
            changed |= match event.kind {
                EventKind::Ejected { enforced, .. } => {
                    // A probation that failed is over even if nothing else comes of it.
                    let probation = flags.set(HealthFlag::OnProbation, false);
                    (enforced && flags.set(HealthFlag::FailedOutlierCheck, true)) || probation
                }
                EventKind::Unejected => {
                    host.shared.monitor().forgive();
                    let owed = self.configured.probation_requests;
                    host.shared.monitor().begin_probation(owed);
                    flags.set(HealthFlag::OnProbation, owed > 0);
                    flags.set(HealthFlag::FailedOutlierCheck, false)
                }
                EventKind::Degraded => flags.set(HealthFlag::DegradedOutlierCheck, true),
                EventKind::Recovered => flags.set(HealthFlag::DegradedOutlierCheck, false),
                EventKind::Spared { .. } => flags.set(HealthFlag::OnProbation, false),
            };
            if let Some(log) = log
                && let Some(line) = outlier_log::line(&event, cluster, &host.address.to_string(), SystemTime::now())
            {
                log.append(&line);
            }
        }
        self.stats.ejections_active.set(self.detector.ejected() as i64);
        changed
    }
}

/// The results of an endpoint since the last time.
fn take(host: &HostShared) -> Windows {
    host.monitor_if_used().map(HostMonitor::take).unwrap_or_default()
}

/// Takes away the marks of outlier detection. Whether there were any.
fn forgive(hosts: &HostList) -> bool {
    let mut changed = false;
    for host in &hosts.hosts {
        if let Some(monitor) = host.shared.monitor_if_used() {
            monitor.forgive();
            monitor.begin_probation(0);
        }
        for flag in [HealthFlag::FailedOutlierCheck, HealthFlag::DegradedOutlierCheck, HealthFlag::OnProbation] {
            changed |= host.shared.flags.set(flag, false);
        }
    }
    changed
}

fn effective(configured: &OutlierDetection, runtime: &RuntimeSnapshot) -> OutlierDetection {
    let number = |key: &str| {
        let number = runtime.values.get(key)?.number?;
        (number >= 0.0).then_some(number as u64)
    };
    with_runtime(configured, &number)
}
