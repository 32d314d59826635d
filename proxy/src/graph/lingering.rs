//! Clusters that were removed while routes or listeners in use still name them.
//!
//! Owns how long they go on serving: many control planes take a cluster away just before they replace the routes to it,
//! and what comes in between is not to fail. Never builds or offers anything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::manager::{GraphManager, LONGEST_HOLD};

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
        let named = self.warming.clusters_in_use();
        // Routes in use stay as long as their successors wait for clusters, and so do the clusters that they name.
        let patience = if self.warming.holds_updates() { LONGEST_HOLD } else { LINGER };
        let over = |name: &Arc<str>, since: Instant| !named.contains(&**name) || now.duration_since(since) >= patience;
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
}
