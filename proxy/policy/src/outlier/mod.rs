//! Which endpoints do worse than they should, and for how long they are left out (`OutlierDetection`).
//!
//! [`HostMonitor`] is what workers write: counts of one endpoint, exact over all of them, without a lock. [`Detector`]
//! is what the control thread keeps for a cluster: who is ejected, how often and until when. Time, randomness and
//! runtime values come as arguments. Never picks hosts (see `balance`), and never marks one: it says who is to be.

mod detector;
mod error;
mod monitor;
mod runtime;
mod statistics;
#[cfg(test)]
mod tests;

pub use detector::{Averages, Detector, Event, EventKind, Rates};
pub use error::{ResponseView, status_by};
pub use monitor::{Findings, HostMonitor, Limits, Window, Windows};
pub use runtime::with_runtime;

/// How an endpoint stood out. Source: `envoy.data.cluster.v3.OutlierEjectionType`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Outlier {
    /// 5xx in a row.
    Consecutive5xx,
    /// 502, 503 or 504 in a row.
    ConsecutiveGatewayFailure,
    /// A success rate far below the others'.
    SuccessRate,
    /// Failures before a response in a row.
    ConsecutiveLocalOriginFailure,
    /// The same as `SuccessRate`, of failures before a response.
    SuccessRateLocalOrigin,
    /// Too many failures of a hundred.
    FailurePercentage,
    /// The same of failures before a response.
    FailurePercentageLocalOrigin,
    /// It said itself that it is degraded. Never leads to an ejection.
    Degraded,
}

/// Which kind of results a statistic is about.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Origin {
    /// What endpoints answered; without the split, failures before an answer too.
    External,
    /// Whether endpoints could be reached and answered in time.
    Local,
}
