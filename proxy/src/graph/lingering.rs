//! What was removed while somebody still uses it: clusters that routes, listeners or draining connections name, and
//! routes of connections that drain.
//!
//! Owns how long they go on serving: many control planes take a cluster away just before they replace the routes to it,
//! and what comes in between is not to fail. Never builds or offers anything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::cluster::Discovery;

use super::manager::GraphManager;
use super::warming::LONGEST_HOLD;

/// A cluster that is named all the same goes after this.
const LINGER: Duration = Duration::from_secs(2);
/// While an update is held back, it is looked at as often.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

impl GraphManager {
    /// Takes a removed cluster out of the graph, at the next look or once nobody names it.
    pub(super) fn let_go(&mut self, name: &Arc<str>) {
        if self.clusters.contains_key(name) {
            self.lingering.insert(Arc::clone(name), Instant::now());
        }
    }

    /// Ends what nobody names, and what has been named for too long.
    pub(super) fn end_lingering(&mut self) {
        if self.lingering.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut named = self.warming.clusters_in_use();
        let members = self.clusters.iter().filter_map(|(name, build)| match &build.node.config.discovery {
            Discovery::Aggregate(members) if named.contains(&**name) => Some(members),
            _ => None,
        });
        let members: Vec<&str> = members.flat_map(|members| members.iter()).map(|name| &**name).collect();
        named.extend(members);
        // Routes in use stay as long as their successors wait for clusters, and so do the clusters that they name.
        let patience = if self.warming.next_release().is_some() { LONGEST_HOLD } else { LINGER };
        // Connections that drain use what their listener said before.
        let drains = self.draining_chains > 0 || self.draining_listeners > 0;
        let in_use = |name: &Arc<str>| drains || named.contains(&**name);
        let over = |name: &Arc<str>, since: Instant| !in_use(name) || now.duration_since(since) >= patience;
        let all = self.lingering.iter();
        let ended: Vec<Arc<str>> =
            all.filter(|(name, since)| over(name, **since)).map(|(name, _)| name.clone()).collect();
        for name in &ended {
            self.lingering.remove(name);
            self.clusters.remove(name);
            self.changed();
        }
        if let Some(first) = self.lingering.values().min().copied()
            && !self.linger_timer
        {
            self.linger_timer = true;
            let wait = (first + LINGER).saturating_duration_since(now).max(LOOK_AGAIN);
            self.after(wait, |manager| {
                manager.linger_timer = false;
                manager.proceed();
            });
        }
    }

    /// No listener in use wants these routes any longer; connections that drain do, until their time is up.
    pub(super) fn retire_routes(&mut self, name: &Arc<str>) {
        let Some(table) = self.process.graph.load().routes.get(name).cloned() else { return };
        let retired = Arc::clone(name);
        let timer = self.after(self.options.drain_time, move |manager| {
            manager.retired_routes.remove(&retired);
            manager.changed();
            manager.proceed();
        });
        if let Some((_, timer)) = self.retired_routes.insert(Arc::clone(name), (table, timer)) {
            timer.abort();
        }
    }
}
