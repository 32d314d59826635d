//! Room under a cluster's limit on connections, over all workers.
//!
//! Owns who waits for a connection to end, and that workers give up idle connections to those who cannot have any. Never
//! counts connections (see `outrigger_policy::breaker`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use outrigger_config::route::Priority;
use outrigger_policy::breaker::Resource;
use tokio::sync::Notify;

use super::clusters::WorkerCluster;
use crate::graph::ClusterShared;
use crate::worker::{Command, Worker};

/// What waits for connections of one priority.
#[derive(Debug, Default)]
pub struct Vacancy {
    /// Tells one of those who wait, on whatever worker, that a connection has ended.
    pub freed: Notify,
    /// Requests on workers that have no connection which could serve them.
    starving: AtomicU32,
}

impl Vacancy {
    fn starving(&self) -> u32 {
        self.starving.load(Ordering::Relaxed)
    }

    /// Whether a connection that has become idle does better to end: somewhere a request waits that it cannot serve.
    pub fn is_wanted(&self) -> bool {
        self.starving() > 0
    }
}

/// A request that waits on a worker without a connection, while all that the limit allows are others'.
pub struct Starving {
    shared: Arc<ClusterShared>,
    priority: Priority,
}

impl Starving {
    /// From now on, connections that become idle end.
    pub fn new(cluster: &WorkerCluster, priority: Priority) -> Self {
        let shared = Arc::clone(&cluster.node().shared);
        shared.vacancy(priority).starving.fetch_add(1, Ordering::Relaxed);
        Self { shared, priority }
    }

    /// Closes a connection of this worker that nobody uses; without one, asks the others, and is false.
    pub fn find_room(&self, worker: &Worker, cluster: &WorkerCluster) -> bool {
        let found = make_room(cluster, self.priority);
        if !found && let Some(workers) = worker.process.workers.get() {
            let name = &cluster.node().config.name;
            workers.send_all(|| Command::MakeRoom { cluster: Arc::clone(name), priority: self.priority });
        }
        found
    }
}

impl Drop for Starving {
    fn drop(&mut self) {
        self.shared.vacancy(self.priority).starving.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Closes an idle connection if there is not room for all who can have none; whether one was closed.
pub fn make_room(cluster: &WorkerCluster, priority: Priority) -> bool {
    let (breaker, thresholds) = cluster.limits(priority);
    let room = breaker.remaining(Resource::Connection, &thresholds, 0);
    room < cluster.node().shared.vacancy(priority).starving() && cluster.close_idle(priority)
}
