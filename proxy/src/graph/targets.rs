//! Clusters of `google_grpc` targets, which nobody has configured (see `outrigger_config::source::GoogleTarget`).
//!
//! Owns when they come and go: they come with the first resource that names them, before it, and go when nothing holds on to
//! them any longer, not even a connection that drains. Never calls anybody.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use outrigger_config::source::{GOOGLE_PREFIX, GoogleTarget};

use super::manager::GraphManager;
use crate::worker::Command;

/// Those that are known, with all who hold on to them.
#[derive(Default)]
pub(super) struct Targets {
    known: HashMap<Arc<str>, Vec<Weak<GoogleTarget>>>,
    timer: bool,
    /// Workers were told to look at this generation.
    told: u64,
}

/// Whether they are still held is looked at so often, while there are any.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Targets {
    /// Whether a cluster is one of these.
    pub(super) fn has(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }
}

/// Refuses the name of a configured cluster that would pass for one of these.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    match name.starts_with(GOOGLE_PREFIX) {
        true => {
            Err(format!("cluster {name:?}: names that begin with {GOOGLE_PREFIX:?} stand for targets of google_grpc"))
        }
        false => Ok(()),
    }
}

impl GraphManager {
    /// Takes in what a resource names that has just been read.
    ///
    /// # Errors
    /// If there cannot be such a cluster.
    pub(super) fn offer_targets(&mut self, found: Vec<Arc<GoogleTarget>>) -> Result<(), String> {
        for target in found {
            let name = &target.cluster.name;
            if !self.targets.has(name) {
                self.offer_cluster(Arc::clone(&target.cluster))?;
            }
            self.targets.known.entry(Arc::clone(name)).or_default().push(Arc::downgrade(&target));
        }
        self.watch_targets();
        Ok(())
    }

    fn watch_targets(&mut self) {
        if self.targets.timer || self.targets.known.is_empty() {
            return;
        }
        self.targets.timer = true;
        self.after(LOOK_AGAIN, |manager| {
            manager.targets.timer = false;
            manager.end_targets();
            manager.watch_targets();
        });
    }

    /// Forgets those that nobody holds on to.
    fn end_targets(&mut self) {
        let mut gone = Vec::new();
        self.targets.known.retain(|name, holders| {
            holders.retain(|holder| holder.strong_count() > 0);
            if holders.is_empty() {
                gone.push(Arc::clone(name));
            }
            !holders.is_empty()
        });
        for name in &gone {
            self.remove_cluster(name);
        }
        if !gone.is_empty() {
            self.proceed();
        }
        // Workers without requests would hold on to an old graph.
        if !self.targets.known.is_empty() && self.targets.told != self.generation() {
            self.targets.told = self.generation();
            self.workers.send_all(|| Command::LookAtGraph);
        }
    }
}
