//! What an operator changes by hand, for a while: endpoints, levels of the log, the share of requests that are traced.
//!
//! Owns which of these are in force, puts them on top of whatever discovery says, and takes them away when their time is
//! over. Never balances (see `hosts`), and never writes a log.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::AbortHandle;

use super::HostList;
use super::journal::Push;
use super::manager::GraphManager;
use crate::health::HealthFlag;
use crate::upstream::host::HostShared;

/// The runtime key that decides how many requests are traced.
const SAMPLING_KEY: &str = "tracing.random_sampling";
/// More are refused.
const MOST: usize = 1000;

/// The overrides in force.
#[derive(Default)]
pub(super) struct Overrides {
    list: Vec<Entry>,
    next: u64,
}

struct Entry {
    shown: Override,
    timer: AbortHandle,
    /// Puts things back that are not the graph's.
    undo: Option<Undo>,
}

/// Puts things back.
pub type Undo = Box<dyn FnOnce()>;

/// Something that holds for a while.
#[derive(Clone, Debug)]
pub struct Override {
    /// Counts from 1.
    pub id: u64,
    /// What it changes.
    pub what: Changes,
    /// When it was made.
    pub since: SystemTime,
    /// When it ends by itself.
    pub until: SystemTime,
}

/// What an override changes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Changes {
    /// An endpoint.
    Endpoint {
        /// The cluster.
        cluster: Arc<str>,
        /// As `/clusters` shows it.
        address: String,
        /// How.
        to: ByHand,
    },
    /// The share of requests that are traced, in percent.
    Sampling(u32),
    /// Levels of the log, in words.
    Log(String),
}

/// What an operator makes of an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ByHand {
    /// It gets nothing new.
    Drain,
    /// Its share among its like, at least 1.
    Weight(u32),
    /// Requests that it takes at the same time, at least 1.
    Limit(u32),
}

impl Changes {
    /// In words.
    pub fn words(&self) -> String {
        match self {
            Changes::Endpoint { cluster, address, to } => {
                let to = match to {
                    ByHand::Drain => "drains".to_owned(),
                    ByHand::Weight(weight) => format!("has weight {weight}"),
                    ByHand::Limit(limit) => format!("takes {limit} requests at a time"),
                };
                format!("endpoint {address} of cluster {cluster:?} {to}")
            }
            Changes::Sampling(percent) => format!("{percent} % of requests are traced"),
            Changes::Log(levels) => format!("log level {levels}"),
        }
    }

    /// Two overrides of the same thing would undo each other's work.
    fn is_about_the_same(&self, other: &Changes) -> bool {
        match (self, other) {
            (
                Changes::Endpoint { cluster, address, to },
                Changes::Endpoint { cluster: other, address: there, to: what },
            ) => cluster == other && address == there && std::mem::discriminant(to) == std::mem::discriminant(what),
            (Changes::Sampling(_), Changes::Sampling(_)) | (Changes::Log(_), Changes::Log(_)) => true,
            _ => false,
        }
    }
}

/// Puts what an operator wants on the endpoints of a cluster, and takes away what nobody wants any more. Whether that
/// changed anything that balancing looks at.
fn put<'o>(hosts: &HostList, wanted: impl Iterator<Item = (&'o str, ByHand)> + Clone) -> bool {
    let mut changed = false;
    for host in &hosts.hosts {
        let address = host.address.to_string();
        let of_host = || wanted.clone().filter(|(wanted, _)| *wanted == address).map(|(_, to)| to);
        let drains = of_host().any(|to| to == ByHand::Drain);
        let weight = of_host().find_map(|to| if let ByHand::Weight(weight) = to { Some(weight) } else { None });
        let limit = of_host().find_map(|to| if let ByHand::Limit(limit) = to { Some(limit) } else { None });
        let shared: &HostShared = &host.shared;
        changed |= shared.flags.set(HealthFlag::DrainsByHand, drains);
        changed |= shared.set_by_hand(weight, limit);
    }
    changed
}

impl GraphManager {
    /// Makes an override; `undo` puts back what is not the graph's.
    ///
    /// # Errors
    /// In words for an operator, when it cannot be.
    pub(super) fn override_for(&mut self, what: Changes, time: Duration, undo: Option<Undo>) -> Result<u64, String> {
        if let Some(entry) = self.overrides.list.iter().find(|entry| entry.shown.what.is_about_the_same(&what)) {
            let (id, words) = (entry.shown.id, entry.shown.what.words());
            return Err(format!("override {id} is in force ({words}); remove it first"));
        }
        if self.overrides.list.len() >= MOST {
            return Err(format!("there are {MOST} overrides; remove some first"));
        }
        self.check_endpoint(&what)?;
        self.overrides.next += 1;
        let id = self.overrides.next;
        let since = SystemTime::now();
        let timer = self.after(time, move |manager| {
            manager.end_override(id, "its time is over");
        });
        let shown = Override { id, what: what.clone(), since, until: since + time };
        tracing::warn!(target: "admin", "override {id} for {time:?}: {}", what.words());
        self.overrides.list.push(Entry { shown, timer, undo });
        self.put_override(&what);
        self.note_override("begins", &what);
        Ok(id)
    }

    fn check_endpoint(&self, what: &Changes) -> Result<(), String> {
        let Changes::Endpoint { cluster, address, to } = what else { return Ok(()) };
        let Some(build) = self.clusters.get(cluster) else { return Err(format!("there is no cluster {cluster:?}")) };
        let hosts = &build.node.hosts.hosts;
        if !hosts.iter().any(|host| host.address.to_string() == *address) {
            let known: Vec<String> = hosts.iter().take(20).map(|host| host.address.to_string()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(format!("cluster {cluster:?} has no endpoint {address:?}; it has {known}"));
        }
        if build.node.hosts.balance.is_none() && !matches!(to, ByHand::Limit(_)) {
            return Err(format!("cluster {cluster:?} does not choose among its endpoints"));
        }
        if matches!(to, ByHand::Limit(_)) && build.node.config.concurrency.is_none() {
            let reason = "does not limit requests by endpoint (ConcurrencyOptions), so there is no limit to change";
            return Err(format!("cluster {cluster:?} {reason}"));
        }
        Ok(())
    }

    /// The overrides in force.
    pub fn overrides(&self) -> Vec<Override> {
        self.overrides.list.iter().map(|entry| entry.shown.clone()).collect()
    }

    /// Ends an override. Whether there was one.
    pub(super) fn end_override(&mut self, id: u64, why: &str) -> bool {
        let Some(position) = self.overrides.list.iter().position(|entry| entry.shown.id == id) else { return false };
        let Entry { shown, timer, undo } = self.overrides.list.remove(position);
        timer.abort();
        if let Some(undo) = undo {
            undo();
        }
        tracing::warn!(target: "admin", "override {id} ends, {why}: {}", shown.what.words());
        self.put_override(&shown.what);
        self.note_override("ends", &shown.what);
        true
    }

    /// Brings what an override is about up to date.
    fn put_override(&mut self, what: &Changes) {
        match what {
            Changes::Endpoint { cluster, .. } => {
                if self.put_by_hand(cluster) {
                    self.rebalance(cluster);
                }
                self.changed();
            }
            Changes::Sampling(_) => {
                let percent = self.overrides.list.iter().find_map(|entry| match entry.shown.what {
                    Changes::Sampling(percent) => Some(percent.to_string()),
                    _ => None,
                });
                self.runtime.set_by_hand(SAMPLING_KEY, percent.as_deref());
                self.publish_runtime();
            }
            Changes::Log(_) => {}
        }
        self.proceed();
    }

    /// Endpoints of a cluster may be new. Whether anything changed that balancing looks at.
    pub(super) fn put_by_hand(&mut self, name: &Arc<str>) -> bool {
        let wanted = self.overrides.list.iter().filter_map(|entry| match &entry.shown.what {
            Changes::Endpoint { cluster, address, to } if cluster == name => Some((address.as_str(), *to)),
            _ => None,
        });
        self.clusters.get(name).is_some_and(|build| put(&build.node.hosts, wanted))
    }

    /// Whether there are overrides of endpoints of a cluster.
    pub(super) fn is_changed_by_hand(&self, name: &str) -> bool {
        let about =
            |entry: &Entry| matches!(&entry.shown.what, Changes::Endpoint { cluster, .. } if **cluster == *name);
        self.overrides.list.iter().any(about)
    }

    fn note_override(&mut self, what: &str, changes: &Changes) {
        let mut push = Push::new("override", "admin port".to_owned(), String::new());
        push.changed.push(&Arc::from(format!("{what}: {}", changes.words())));
        let generation = self.generation();
        self.journal.write(push, Vec::new(), generation);
    }
}
