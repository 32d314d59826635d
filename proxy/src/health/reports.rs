//! What workers tell the control thread about endpoints.
//!
//! Owns the queue. Reports are rare: a row of failures is complete, or an endpoint has said something of itself. Never
//! acts on them.

use std::sync::{Arc, Mutex, PoisonError};

use outrigger_policy::outlier::Outlier;
use tokio::sync::Notify;

use crate::upstream::host::HostShared;

/// Something that a worker has noticed.
#[derive(Debug)]
pub struct Report {
    /// The name of the cluster.
    pub cluster: Arc<str>,
    /// The endpoint.
    pub host: Arc<HostShared>,
    /// What.
    pub what: Observation,
}

/// What can be noticed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Observation {
    /// A number in a row is complete, or a response says that the endpoint is degraded.
    Outlier(Outlier),
    /// A response says that the endpoint's checks are to fail at once.
    ImmediateFailure,
    /// The endpoint has had the successes that it owed after an ejection.
    ProbationPassed,
}

/// From workers to the control thread.
#[derive(Debug, Default)]
pub struct Reports {
    waiting: Mutex<Vec<Report>>,
    wake: Notify,
}

impl Reports {
    /// Adds a report.
    pub fn send(&self, report: Report) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(report);
        self.wake.notify_one();
    }

    /// All reports, as soon as there are any. For the control thread.
    pub async fn receive(&self) -> Vec<Report> {
        loop {
            let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            if !waiting.is_empty() {
                return waiting;
            }
            self.wake.notified().await;
        }
    }
}
