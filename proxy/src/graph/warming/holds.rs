//! How long what is ready waits for the clusters that it names.
//!
//! Owns the rule by which routes and listeners come after their clusters, also where both were sent at once and the
//! endpoints of the clusters are still on their way. Never puts anything in use.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Entry, Need, Revision, Warming};

/// An update waits as long for clusters that are warming: nothing is lost, since its predecessor serves.
pub const LONGEST_HOLD: Duration = Duration::from_secs(15);

/// The limit where waiting may be in vain or costs something: an update that is the first to name a cluster of which
/// nobody has heard (streams of their own for each type may bring routes before clusters), and a new listener.
pub const SHORT_HOLD: Duration = Duration::from_secs(1);

impl<C, R, L> Warming<C, R, L> {
    /// When the next one that is held back for clusters is let through, ready or not; none if none is held back.
    pub fn next_release(&self) -> Option<Instant> {
        let routes = self.routes.waiting.iter().filter_map(|need| self.routes_held_until(need));
        let listeners = self.listeners.waiting.iter().filter_map(|name| self.listener_held_until(name));
        routes.chain(listeners).min()
    }

    /// Routes that nobody serves yet are not held back: the listeners that want them are.
    pub(super) fn routes_held_until(&self, need: &Need) -> Option<Instant> {
        let entry = self.routes.entries.get(need)?;
        let (since, old, new) = (entry.ready_since?, entry.active.as_ref()?, entry.warming.as_ref()?);
        self.held_until(since, Some(&old.clusters.iter().collect()), &new.clusters.iter().collect())
    }

    /// A listener waits for the clusters of its routes, too.
    pub(super) fn listener_held_until(&self, name: &Arc<str>) -> Option<Instant> {
        let entry: &Entry<L> = self.listeners.entries.get(name)?;
        let (since, new) = (entry.ready_since?, entry.warming.as_ref()?);
        let old = entry.active.as_ref().map(|old| self.clusters_named(old));
        self.held_until(since, old.as_ref(), &self.clusters_named(new))
    }

    fn clusters_named<'a>(&'a self, listener: &'a Revision<L>) -> BTreeSet<&'a Arc<str>> {
        let needs = listener.requirements.iter().map(|requirement| &requirement.need);
        let routes = needs.filter_map(|need| self.routes.entries.get(need)?.active.as_ref());
        listener.clusters.iter().chain(routes.flat_map(|routes| &routes.clusters)).collect()
    }

    fn held_until(
        &self,
        since: Instant,
        old: Option<&BTreeSet<&Arc<str>>>,
        new: &BTreeSet<&Arc<str>>,
    ) -> Option<Instant> {
        let patience = |name: &&Arc<str>| match (self.clusters.entries.get(*name), old) {
            (Some(cluster), _) if cluster.active.is_some() => None,
            (Some(_), Some(_)) => Some(LONGEST_HOLD),
            (Some(_), None) => Some(SHORT_HOLD),
            // A request for it fails now as it would then.
            (None, Some(old)) if old.contains(name) => None,
            (None, Some(_)) => Some(SHORT_HOLD),
            (None, None) => None,
        };
        Some(since + new.iter().filter_map(patience).max()?)
    }
}
