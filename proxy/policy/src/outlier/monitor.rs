//! The results of one endpoint, as workers record them.
//!
//! Owns the counts: each result is one or two atomic operations, and nothing is ever locked. Never decides on an
//! ejection: a number in a row is reported by the one result that completes it, whichever worker had it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use outrigger_config::cluster::OutlierDetection;

use super::Outlier;

/// What workers need to know of the settings of a cluster. Written by the control thread when they change.
#[derive(Debug, Default)]
pub struct Limits {
    consecutive_5xx: AtomicU32,
    consecutive_gateway_failure: AtomicU32,
    consecutive_local_origin_failure: AtomicU32,
    split: AtomicBool,
    degraded: AtomicBool,
    /// Statistics over the interval are kept: without enough hosts nobody would look at them.
    measures: AtomicBool,
}

impl Limits {
    /// As `settings` say.
    pub fn new(settings: &OutlierDetection) -> Self {
        let limits = Self::default();
        limits.set(settings);
        limits
    }

    /// From now on as `settings` say.
    pub fn set(&self, settings: &OutlierDetection) {
        let store = |to: &AtomicU32, value| to.store(value, Ordering::Relaxed);
        store(&self.consecutive_5xx, settings.consecutive_5xx.threshold);
        store(&self.consecutive_gateway_failure, settings.consecutive_gateway_failure.threshold);
        store(&self.consecutive_local_origin_failure, settings.consecutive_local_origin_failure.threshold);
        self.split.store(settings.split_external_local_origin_errors, Ordering::Relaxed);
        self.degraded.store(settings.detect_degraded_hosts, Ordering::Relaxed);
    }

    /// Whether statistics over the interval are kept.
    pub fn set_measures(&self, measures: bool) {
        self.measures.store(measures, Ordering::Relaxed);
    }

    /// Whether responses are looked at for what endpoints say of themselves.
    pub fn looks_for_degraded(&self) -> bool {
        self.degraded.load(Ordering::Relaxed)
    }

    fn splits(&self) -> bool {
        self.split.load(Ordering::Relaxed)
    }
}

/// Counts of one endpoint. Written by all workers, read and reset by the control thread.
#[derive(Debug, Default)]
pub struct HostMonitor {
    consecutive_5xx: AtomicU32,
    consecutive_gateway_failure: AtomicU32,
    consecutive_local_origin_failure: AtomicU32,
    /// Successes that are owed since the last ejection.
    probation: AtomicU32,
    external: Window,
    local: Window,
}

/// Requests of an interval: all in the upper half, failed ones in the lower, so that both are taken at once.
#[derive(Debug, Default)]
pub struct Window(AtomicU64);

impl Window {
    fn record(&self, failed: bool) {
        self.0.fetch_add(1 << 32 | u64::from(failed), Ordering::Relaxed);
    }

    /// (all, failed) since the last time.
    fn take(&self) -> (u32, u32) {
        let counts = self.0.swap(0, Ordering::Relaxed);
        ((counts >> 32) as u32, counts as u32)
    }
}

/// What an endpoint did during an interval, as (all, failed) requests.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Windows {
    /// By its answers.
    pub external: (u32, u32),
    /// By whether there was one.
    pub local: (u32, u32),
}

/// Numbers in a row that a result has completed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[must_use = "the control thread has to hear of them"]
pub struct Findings([Option<Outlier>; 2]);

impl Iterator for Findings {
    type Item = Outlier;

    fn next(&mut self) -> Option<Outlier> {
        let [first, second] = &mut self.0;
        first.take().or_else(|| second.take())
    }
}

impl HostMonitor {
    /// A response, or for gRPC the status that its trailers-only answer stands for.
    pub fn response(&self, limits: &Limits, status: u16) -> Findings {
        let failed = (500..600).contains(&status);
        if limits.measures.load(Ordering::Relaxed) {
            self.external.record(failed);
        }
        if failed && self.fail_probation() {
            return Findings([Some(Outlier::Consecutive5xx), None]);
        }
        if !failed {
            reset(&self.consecutive_5xx);
            reset(&self.consecutive_gateway_failure);
            return Findings::default();
        }
        let gateway = match status {
            502..=504 => completes(&self.consecutive_gateway_failure, &limits.consecutive_gateway_failure)
                .then_some(Outlier::ConsecutiveGatewayFailure),
            _ => {
                reset(&self.consecutive_gateway_failure);
                None
            }
        };
        let any = completes(&self.consecutive_5xx, &limits.consecutive_5xx).then_some(Outlier::Consecutive5xx);
        Findings([gateway, any])
    }

    /// A connection for a request, whose answer is another result.
    pub fn reached(&self, limits: &Limits) {
        if limits.splits() {
            self.local_success(limits);
        }
    }

    /// A connection that is all there is to tell: bytes say nothing of success.
    pub fn connected(&self, limits: &Limits) {
        if limits.splits() {
            self.local_success(limits);
        } else {
            let _ = self.response(limits, 200);
        }
    }

    /// No connection, or it ended before there was an answer. Counts as 503 unless such failures are kept apart.
    pub fn unreachable(&self, limits: &Limits) -> Findings {
        self.local_failure(limits, 503)
    }

    /// No connection or no answer in time. Counts as 504 unless such failures are kept apart.
    pub fn timed_out(&self, limits: &Limits) -> Findings {
        self.local_failure(limits, 504)
    }

    fn local_success(&self, limits: &Limits) {
        if limits.measures.load(Ordering::Relaxed) {
            self.local.record(false);
        }
        reset(&self.consecutive_local_origin_failure);
    }

    fn local_failure(&self, limits: &Limits, status: u16) -> Findings {
        if !limits.splits() {
            return self.response(limits, status);
        }
        if limits.measures.load(Ordering::Relaxed) {
            self.local.record(true);
        }
        let found = self.fail_probation()
            || completes(&self.consecutive_local_origin_failure, &limits.consecutive_local_origin_failure);
        Findings([found.then_some(Outlier::ConsecutiveLocalOriginFailure), None])
    }

    /// What was counted since the last time.
    pub fn take(&self) -> Windows {
        Windows { external: self.external.take(), local: self.local.take() }
    }

    /// After a finding was dealt with, counting begins anew: failures alone may complete the number again.
    pub fn found(&self, outlier: Outlier) {
        match outlier {
            Outlier::Consecutive5xx => reset(&self.consecutive_5xx),
            Outlier::ConsecutiveGatewayFailure => reset(&self.consecutive_gateway_failure),
            Outlier::ConsecutiveLocalOriginFailure => reset(&self.consecutive_local_origin_failure),
            Outlier::SuccessRate
            | Outlier::SuccessRateLocalOrigin
            | Outlier::FailurePercentage
            | Outlier::FailurePercentageLocalOrigin
            | Outlier::Degraded => {}
        }
    }

    /// As many successes are owed from now on.
    pub fn begin_probation(&self, requests: u32) {
        self.probation.store(requests, Ordering::Relaxed);
    }

    /// A success of an endpoint that may be on probation. Whether it was the last one owed.
    pub fn passes_probation(&self) -> bool {
        // Rare but for those on probation, so the others read and no more.
        self.probation.load(Ordering::Relaxed) != 0
            && self
                .probation
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owed| owed.checked_sub(1))
                .is_ok_and(|owed| owed == 1)
    }

    /// Whether a failure was one of probation, which ends with it.
    fn fail_probation(&self) -> bool {
        self.probation.load(Ordering::Relaxed) != 0 && self.probation.swap(0, Ordering::Relaxed) != 0
    }

    /// Whoever comes back starts from nothing.
    pub fn forgive(&self) {
        reset(&self.consecutive_5xx);
        reset(&self.consecutive_gateway_failure);
        reset(&self.consecutive_local_origin_failure);
    }
}

/// Counts one more in a row; whether that makes exactly as many as the limit, which 0 never is.
fn completes(count: &AtomicU32, limit: &AtomicU32) -> bool {
    count.fetch_add(1, Ordering::Relaxed).wrapping_add(1) == limit.load(Ordering::Relaxed)
}

/// Writes only if there is something to forget, so that a healthy endpoint's counts stay in every core's cache.
fn reset(count: &AtomicU32) {
    if count.load(Ordering::Relaxed) != 0 {
        count.store(0, Ordering::Relaxed);
    }
}
