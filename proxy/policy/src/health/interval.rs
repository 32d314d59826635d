//! When the next check is due.
//!
//! Owns the choice among the intervals of `HealthCheck`, and their jitter. Never waits.

use std::time::Duration;

use outrigger_config::cluster::CheckIntervals;

use super::{Transition, Verdict};

/// What runtime says of all intervals (`health_check.min_interval`, `health_check.max_interval`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IntervalLimits {
    /// None is shorter.
    pub min: Duration,
    /// None is longer, unless `min` is.
    pub max: Duration,
}

impl Default for IntervalLimits {
    fn default() -> Self {
        Self { min: Duration::ZERO, max: Duration::MAX }
    }
}

/// The time until the next check after one with this outcome. `used` tells whether the cluster was ever connected to
/// for traffic.
pub fn interval(
    intervals: &CheckIntervals,
    verdict: &Verdict,
    used: bool,
    limits: IntervalLimits,
    random: &mut dyn FnMut() -> u64,
) -> Duration {
    let pending = verdict.transition == Transition::Pending;
    let base = match (used, verdict.success, pending) {
        (false, true, false) => intervals.no_traffic_healthy,
        (false, _, _) => intervals.no_traffic,
        (true, true, false) => intervals.healthy,
        (true, true, true) => intervals.healthy_edge,
        (true, false, false) => intervals.unhealthy,
        (true, false, true) => intervals.unhealthy_edge,
    };
    jittered(base, intervals.jitter_percent, intervals.jitter, limits, random)
}

/// The time until the first check.
pub fn initial_wait(intervals: &CheckIntervals, limits: IntervalLimits, random: &mut dyn FnMut() -> u64) -> Duration {
    if intervals.initial_jitter.is_zero() {
        return Duration::ZERO;
    }
    jittered(Duration::ZERO, 0, intervals.initial_jitter, limits, random)
}

fn jittered(
    base: Duration,
    percent: u32,
    jitter: Duration,
    limits: IntervalLimits,
    random: &mut dyn FnMut() -> u64,
) -> Duration {
    let mut total = base;
    for most in [base.saturating_mul(percent) / 100, jitter] {
        let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
        if most > 0 {
            total = total.saturating_add(Duration::from_millis(random() % most));
        }
    }
    // Checks without any pause would be a busy loop.
    total.min(limits.max).max(limits.min).max(Duration::from_millis(1))
}
