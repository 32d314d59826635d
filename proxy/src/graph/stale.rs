//! Endpoints that nobody has confirmed for too long (`ClusterLoadAssignment.Policy.endpoint_stale_after`).
//!
//! Owns the time limits of assignments that set one. When one is over, the endpoints are gone, as in Envoy, until the control
//! plane sends them again. Never reads a response.

use std::collections::HashMap;
use std::sync::Arc;

use outrigger_config::cluster::Assignment;
use tokio::task::AbortHandle;

use super::manager::GraphManager;
use super::need::Need;

/// Assignments with a time limit.
#[derive(Default)]
pub(super) struct TimedAssignments(HashMap<Need, Timed>);

struct Timed {
    /// As it was received.
    assignment: Arc<Assignment>,
    timer: AbortHandle,
}

impl Drop for Timed {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

impl TimedAssignments {
    /// Nobody wants these endpoints any more.
    pub(super) fn forget(&mut self, need: &Need) {
        self.0.remove(need);
    }
}

impl GraphManager {
    /// An assignment has come: its time begins.
    pub(super) fn time_assignment(&mut self, need: &Need, assignment: &Arc<Assignment>) {
        let Some(limit) = assignment.stale_after else { return self.timed_assignments.forget(need) };
        self.each_cluster_of(need, |stats| stats.assignment_timeout_received.increment());
        let late = need.clone();
        let timer = self.after(limit, move |manager| manager.lose_assignment(&late));
        self.timed_assignments.0.insert(need.clone(), Timed { assignment: Arc::clone(assignment), timer });
    }

    /// The control plane says what it said before: the time begins anew, and endpoints that were gone are back.
    pub(super) fn confirm_assignment(&mut self, need: &Need) {
        if let Some(timed) = self.timed_assignments.0.get(need) {
            let assignment = Arc::clone(&timed.assignment);
            self.take_assignment(need, assignment);
        }
    }

    fn lose_assignment(&mut self, need: &Need) {
        let Some(timed) = self.timed_assignments.0.get(need) else { return };
        let name = Arc::clone(&timed.assignment.name);
        tracing::warn!("the endpoints of {name:?} are gone: no new assignment came in time");
        self.set_assignment(need, Arc::new(Assignment::empty(&name)));
        self.each_cluster_of(need, |stats| stats.assignment_stale.increment());
        self.proceed();
    }
}
