//! The latency of a host as its answers tell it: a moving average that follows rises at once (peak EWMA).
//!
//! Owns one host's average and how it fades. Never measures time.

use std::time::Duration;

use outrigger_config::cluster::PeakEwma;

/// What the answers of a host say of its latency.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    /// In milliseconds.
    average: f64,
    /// When it was that, in milliseconds; 0 if nothing is known.
    at: u64,
}

impl Latency {
    /// An answer took so long. `now` is in milliseconds, above 0.
    pub fn record(&mut self, took: Duration, now: u64, options: &PeakEwma) {
        let took = took.as_secs_f64() * 1000.0;
        let kept = self.kept(now, options);
        // Bad news counts at once: the next requests should not find it out one by one.
        self.average = if took > self.average { took } else { self.average * kept + took * (1.0 - kept) };
        self.at = now.max(1);
    }

    /// A request failed after so long. Failing fast must not look like answering fast.
    pub fn record_failure(&mut self, after: Duration, now: u64, options: &PeakEwma) {
        self.record(after.max(options.failure_penalty), now, options);
    }

    /// Whether anything is known.
    pub fn is_known(&self) -> bool {
        self.at != 0
    }

    /// In milliseconds. Fades towards zero while nothing is heard, so that a host that was slow is tried again.
    pub fn expected(&self, now: u64, options: &PeakEwma) -> f64 {
        if self.at == 0 {
            return options.default_rtt.as_secs_f64() * 1000.0;
        }
        self.average * self.kept(now, options)
    }

    /// The part of the average that time has left.
    fn kept(&self, now: u64, options: &PeakEwma) -> f64 {
        let since = now.saturating_sub(self.at) as f64;
        (-since / (options.decay.as_secs_f64() * 1000.0)).exp()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPTIONS: PeakEwma = PeakEwma {
        choice_count: 2,
        decay: Duration::from_secs(10),
        default_rtt: Duration::from_millis(30),
        failure_penalty: Duration::from_secs(1),
    };

    #[test]
    fn rises_count_at_once_and_fall_with_time() {
        let mut latency = Latency::default();
        assert!((latency.expected(1, &OPTIONS) - 30.0).abs() < 1e-9);
        latency.record(Duration::from_millis(5), 1, &OPTIONS);
        latency.record(Duration::from_millis(100), 1, &OPTIONS);
        assert!((latency.expected(1, &OPTIONS) - 100.0).abs() < 1e-9);
        // Nothing is forgotten in no time.
        latency.record(Duration::from_millis(5), 1, &OPTIONS);
        assert!((latency.expected(1, &OPTIONS) - 100.0).abs() < 1e-9);
        latency.record(Duration::from_millis(5), 10_001, &OPTIONS);
        let expected = 100.0 / std::f64::consts::E + 5.0 * (1.0 - 1.0 / std::f64::consts::E);
        assert!((latency.expected(10_001, &OPTIONS) - expected).abs() < 1e-9);
        assert!(latency.expected(200_000, &OPTIONS) < 1e-6);
    }

    #[test]
    fn a_failure_counts_for_its_penalty_or_for_the_time_it_took() {
        let mut latency = Latency::default();
        latency.record_failure(Duration::from_millis(1), 1, &OPTIONS);
        assert!((latency.expected(1, &OPTIONS) - 1000.0).abs() < 1e-9);
        latency.record_failure(Duration::from_secs(15), 1, &OPTIONS);
        assert!((latency.expected(1, &OPTIONS) - 15_000.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn stays_between_nothing_and_the_slowest(
            answers in proptest::collection::vec((0_u64..10_000, 0_u64..100_000), 1..50),
        ) {
            let mut latency = Latency::default();
            let (mut now, mut slowest) = (1, 0);
            for (took, later) in answers {
                now += later;
                slowest = slowest.max(took);
                latency.record(Duration::from_millis(took), now, &OPTIONS);
                let expected = latency.expected(now, &OPTIONS);
                prop_assert!(expected >= 0.0 && expected <= slowest as f64 + 1e-6, "{expected} {slowest}");
            }
        }
    }
}
