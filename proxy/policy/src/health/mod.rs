//! What active checks make of an endpoint, and when the next one is due (`HealthCheck`).
//!
//! [`CheckedHost`] is the state of one endpoint: results go in, and what follows comes out. Randomness and runtime values
//! come as arguments. Never checks anybody, never waits, and never marks a host.

mod agent;
mod interval;
mod payload;
#[cfg(test)]
mod tests;

pub use agent::{AgentMode, AgentReport, MAX_PERCENT, agent_report, line_end};
pub use interval::{IntervalLimits, initial_wait, interval};
pub use payload::contains_in_order;

/// How a check ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CheckResult {
    /// As it should; the endpoint may have said that it is degraded.
    Success { degraded: bool },
    /// Otherwise.
    Failure { kind: FailureKind, retriable: bool },
    /// Says nothing about health: an agent told of other things, or could not be reached.
    Nothing { reached: bool },
}

/// What failed. Source: `envoy.data.core.v3.HealthCheckFailureType`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum FailureKind {
    /// The answer.
    Active,
    /// No check: the endpoint said so in the answer to a request.
    Passive,
    /// The connection.
    Network,
    /// The time was over.
    NetworkTimeout,
}

impl FailureKind {
    /// Whether there was no answer to judge: such failures have to come in a row.
    pub fn is_network(self) -> bool {
        matches!(self, Self::Network | Self::NetworkTimeout)
    }
}

/// How many results in a row make a difference.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CheckThresholds {
    /// Failures of a healthy endpoint.
    pub unhealthy: u32,
    /// Successes of an unhealthy one.
    pub healthy: u32,
}

/// Whether a result made a difference.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transition {
    /// None.
    Unchanged,
    /// Not yet: more of its kind are needed.
    Pending,
    /// It did.
    Changed,
}

/// What follows from a result.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// Whether the check succeeded.
    pub success: bool,
    /// Whether the endpoint's health changed by it.
    pub transition: Transition,
    /// It was the first result of this endpoint.
    pub first: bool,
    /// The endpoint became healthy or unhealthy.
    pub turned: bool,
    /// The endpoint became degraded (`Some(true)`) or is so no longer.
    pub degraded: Option<bool>,
}

/// The state of one endpoint.
///
/// ```text
/// unhealthy --first success, or `healthy` in a row--> healthy
/// healthy --first failure, answer that is wrong, or `unhealthy` in a row--> unhealthy
/// ```
#[derive(Clone, Debug)]
pub struct CheckedHost {
    unchecked: bool,
    healthy: bool,
    degraded: bool,
    /// Results in a row that speak against its state.
    row: u32,
}

impl CheckedHost {
    /// Without any result so far; what it is believed to be stands until the first one.
    pub fn new(healthy: bool) -> Self {
        Self { unchecked: true, healthy, degraded: false, row: 0 }
    }

    /// Whether requests may go to it.
    pub fn is_healthy(&self) -> bool {
        self.healthy
    }

    /// Whether it says that it is degraded.
    pub fn is_degraded(&self) -> bool {
        self.degraded
    }

    /// Whether there was no result yet.
    pub fn is_unchecked(&self) -> bool {
        self.unchecked
    }

    /// Takes in a result.
    pub fn record(&mut self, result: CheckResult, thresholds: CheckThresholds) -> Verdict {
        let first = std::mem::take(&mut self.unchecked);
        match result {
            CheckResult::Success { degraded } => self.success(degraded, first, thresholds.healthy),
            CheckResult::Failure { kind, retriable } => {
                let at_once = first || (!kind.is_network() && !retriable);
                self.failure(at_once, first, thresholds.unhealthy)
            }
            CheckResult::Nothing { reached } => {
                Verdict { success: reached, transition: Transition::Unchanged, first, turned: false, degraded: None }
            }
        }
    }

    fn success(&mut self, degraded: bool, first: bool, threshold: u32) -> Verdict {
        let (transition, turned) = if self.healthy {
            self.row = 0;
            (Transition::Unchanged, false)
        } else {
            self.contradicted(first, threshold)
        };
        let changed = (degraded != self.degraded).then_some(degraded);
        self.degraded = degraded;
        let transition = match (transition, changed) {
            (Transition::Unchanged, Some(_)) => Transition::Changed,
            (transition, _) => transition,
        };
        Verdict { success: true, transition, first, turned, degraded: changed }
    }

    fn failure(&mut self, at_once: bool, first: bool, threshold: u32) -> Verdict {
        let (transition, turned) = if self.healthy {
            self.contradicted(at_once, threshold)
        } else {
            self.row = 0;
            (Transition::Unchanged, false)
        };
        Verdict { success: false, transition, first, turned, degraded: None }
    }

    fn contradicted(&mut self, at_once: bool, threshold: u32) -> (Transition, bool) {
        self.row = self.row.saturating_add(1);
        if !at_once && self.row < threshold {
            return (Transition::Pending, false);
        }
        self.healthy = !self.healthy;
        self.row = 0;
        (Transition::Changed, true)
    }
}
