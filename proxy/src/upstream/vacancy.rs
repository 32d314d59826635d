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
    /// Tells one of those who wait, on whatever worker, that there is room.
    freed: Notify,
    /// The same for those who starve, whose turn is first: others have connections that will serve them.
    freed_for_starving: Notify,
    /// Requests on workers that have no connection which could serve them.
    starving: AtomicU32,
}

impl Vacancy {
    /// How many requests wait on workers that have no connection to their endpoint.
    pub fn starving(&self) -> u32 {
        self.starving.load(Ordering::Relaxed)
    }

    /// Tells somebody that there is room.
    pub fn tell(&self) {
        if self.starving() > 0 {
            self.freed_for_starving.notify_one();
        } else {
            self.freed.notify_one();
        }
    }

    /// By what somebody is told, who starves or not.
    pub fn told(&self, starves: bool) -> &Notify {
        if starves { &self.freed_for_starving } else { &self.freed }
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
        let vacancy = self.shared.vacancy(self.priority);
        if vacancy.starving.fetch_sub(1, Ordering::Relaxed) == 1 {
            // Room that was offered to this one, or that was kept for it, is for the others now.
            vacancy.freed.notify_one();
        }
    }
}

/// Whether there is less room than those need who starve: then idle connections do better to end, and those who have
/// connections leave the room that there is.
pub fn is_short(cluster: &WorkerCluster, priority: Priority) -> bool {
    room(cluster, priority) < cluster.node().shared.vacancy(priority).starving()
}

/// Whether a connection can be had without taking it from those who starve.
pub fn has_spare(cluster: &WorkerCluster, priority: Priority) -> bool {
    let starving = cluster.node().shared.vacancy(priority).starving();
    starving == 0 || room(cluster, priority) > starving
}

/// Closes an idle connection if there is not room for all who can have none; whether one was closed.
pub fn make_room(cluster: &WorkerCluster, priority: Priority) -> bool {
    is_short(cluster, priority) && cluster.close_idle(priority)
}

fn room(cluster: &WorkerCluster, priority: Priority) -> u32 {
    let (breaker, thresholds) = cluster.limits(priority);
    breaker.remaining(Resource::Connection, &thresholds, 0)
}
