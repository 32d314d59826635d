//! Load reports that endpoints send out of band (`ClientSideWeightedRoundRobin.enable_oob_load_report`), on the control
//! thread.
//!
//! Owns which endpoints are asked, and when they are asked again. The weights that follow go where those of reports in
//! answers go. Never touches what balancers pick from: they look at weights by themselves.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::cluster::{OutOfBand, ReportOptions};
use outrigger_policy::balance::load_report::LoadReport;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::load_stream::{self, Ended};
use crate::graph::{ClusterNode, facts};
use crate::scope;
use crate::stats::{Registry, names};
use crate::upstream::host::Host;
use crate::worker::random::Random;

scope! {
    /// `cluster.<name>.lb_orca_oob.*`; one writer, the control thread.
    pub struct LoadStreamStats {
        active_sessions: Gauge,
        report_errors: Counter,
        reports_received: Counter,
        stream_failures: Counter,
        stream_terminated: Counter,
    }
}

/// All clusters whose endpoints are asked.
#[derive(Default)]
pub struct LoadStreams {
    clusters: HashMap<Arc<str>, Asked>,
}

/// A cluster whose endpoints are asked.
struct Asked {
    shared: Rc<Shared>,
    sessions: HashMap<usize, Session>,
}

/// What the sessions of a cluster share.
struct Shared {
    /// The cluster as it is now.
    node: RefCell<Arc<ClusterNode>>,
    reports: Arc<ReportOptions>,
    stats: Arc<LoadStreamStats>,
    active: Cell<i64>,
    random: Random,
}

/// An endpoint that is asked, until this is dropped.
struct Session {
    host: Arc<Host>,
    task: AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LoadStreams {
    /// Takes over what a cluster is now: streams begin and end with its endpoints.
    pub fn follow(&mut self, node: &Arc<ClusterNode>, registry: &Registry) {
        let name = &node.config.name;
        let reports = node.config.balancing.reports.as_ref().filter(|reports| reports.out_of_band.is_some());
        let Some(reports) = reports else { return self.forget(name) };
        let same = |asked: &Asked| {
            let old = asked.shared.node.borrow();
            asked.shared.reports == *reports && old.config.stat_name == node.config.stat_name
        };
        if !self.clusters.get(name).is_some_and(same) {
            let prefix = format!("{}lb_orca_oob.", names::prefix("cluster", &node.config.stat_name));
            let shared = Shared {
                node: RefCell::new(Arc::clone(node)),
                reports: Arc::clone(reports),
                stats: registry.scope(&prefix),
                active: Cell::new(0),
                random: Random::new(),
            };
            let asked = Asked { shared: Rc::new(shared), sessions: HashMap::new() };
            self.clusters.insert(Arc::clone(name), asked);
        }
        if let Some(asked) = self.clusters.get_mut(name) {
            asked.follow(node);
        }
    }

    /// A cluster is gone, or its endpoints are asked no more.
    pub fn forget(&mut self, name: &str) {
        self.clusters.remove(name);
    }
}

impl Asked {
    fn follow(&mut self, node: &Arc<ClusterNode>) {
        let old = self.shared.node.replace(Arc::clone(node));
        if Arc::ptr_eq(&old.hosts, &node.hosts) && !self.sessions.is_empty() {
            return;
        }
        let mut there = HashSet::with_capacity(node.hosts.hosts.len());
        for host in &node.hosts.hosts {
            let key = Arc::as_ptr(&host.shared) as usize;
            // The same endpoint may stand in several priorities, and is asked once.
            if !there.insert(key) || self.sessions.get(&key).is_some_and(|known| is_asked_alike(&known.host, host)) {
                continue;
            }
            let session = run(Rc::clone(&self.shared), Arc::clone(host));
            let task = tokio::task::spawn_local(session).abort_handle();
            self.sessions.insert(key, Session { host: Arc::clone(host), task });
        }
        self.sessions.retain(|key, _| there.contains(key));
    }
}

fn is_asked_alike(a: &Host, b: &Host) -> bool {
    a.address == b.address && a.hostname == b.hostname && a.transport == b.transport
}

/// Counts a session as long as it lasts.
struct Active(Rc<Shared>);

impl Active {
    fn begin(shared: &Rc<Shared>) -> Self {
        shared.change(1);
        Self(Rc::clone(shared))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.change(-1);
    }
}

impl Shared {
    fn change(&self, by: i64) {
        self.active.set(self.active.get() + by);
        self.stats.active_sessions.set(self.active.get());
    }

    fn options(&self) -> Option<&OutOfBand> {
        self.reports.out_of_band.as_deref()
    }

    /// Some time below `most`.
    fn some_of(&self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros((self.random.next() >> 11) % most)
    }

    /// Keeps what an endpoint reports. `false` for bytes that are no report.
    fn take(&self, host: &Host, report: &[u8]) -> bool {
        let Ok(report) = LoadReport::parse_message(report, &self.reports) else { return false };
        self.stats.reports_received.increment();
        match report.weight(&self.reports) {
            Some(weight) => {
                let shared = &host.shared;
                shared.set_reported(shared.reported().reported(weight, facts::now(), &self.reports));
            }
            None => self.stats.report_errors.increment(),
        }
        true
    }
}

/// Asks an endpoint until it says that it has no such service.
async fn run(shared: Rc<Shared>, host: Arc<Host>) {
    let _active = Active::begin(&shared);
    let Some(options) = shared.options() else { return };
    // Endpoints that begin together are not to report together ever after.
    sleep(shared.some_of(options.period)).await;
    let mut pause = MIN_PAUSE;
    loop {
        let node = Arc::clone(&shared.node.borrow());
        let name = Arc::clone(&node.config.name);
        let mut take = |report: &[u8]| {
            let taken = shared.take(&host, report);
            if taken {
                pause = MIN_PAUSE;
            }
            taken
        };
        let ended = load_stream::follow(&node, &host, options, &mut take).await;
        drop(node);
        match ended {
            Ended::Unimplemented => {
                shared.stats.stream_terminated.increment();
                tracing::info!(target: "upstream", "{} in cluster {name:?} reports no load out of band", host.address);
                return;
            }
            Ended::Broken(why) => {
                shared.stats.stream_failures.increment();
                tracing::debug!(target: "upstream", "load reports of {} in cluster {name:?}: {why}", host.address);
            }
        }
        sleep(shared.some_of(pause)).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// The next call is made within this time, which doubles with each that fails, up to `MAX_PAUSE`.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
