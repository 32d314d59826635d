//! Bytes that become free at a rate, for threads that share them.
//!
//! Owns the count over time; taking bytes is one atomic exchange. Never reads a clock, and never waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A rate in bytes. What is not used within a second is lost.
#[derive(Debug)]
pub struct Bandwidth {
    bytes_per_second: u64,
    /// Up to when all bytes were taken, in nanoseconds after the second before the first.
    taken_to: AtomicU64,
}

impl Bandwidth {
    /// Bytes of this rate, those of `first` at once.
    pub fn new(bytes_per_second: u64, first: Duration) -> Self {
        let first = first.min(LONGEST_CREDIT);
        Self { bytes_per_second, taken_to: AtomicU64::new(nanos(LONGEST_CREDIT - first)) }
    }

    /// Takes up to `wanted` bytes, as many as are free `age` after the beginning.
    pub fn take(&self, wanted: u64, age: Duration) -> u64 {
        let now = nanos(age.saturating_add(LONGEST_CREDIT));
        let mut taken = 0;
        let take = |taken_to: u64| {
            let from = taken_to.max(now - nanos(LONGEST_CREDIT));
            taken = self.bytes_in(now.saturating_sub(from)).min(wanted);
            (taken > 0).then(|| from.saturating_add(self.time_of(taken)))
        };
        // Nothing is changed where nothing is free.
        let _ = self.taken_to.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken
    }

    fn bytes_in(&self, nanos: u64) -> u64 {
        let bytes = u128::from(self.bytes_per_second) * u128::from(nanos) / NANOS;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Rounded up, so that parts of bytes never add up to one that did not come.
    fn time_of(&self, bytes: u64) -> u64 {
        let nanos = (u128::from(bytes) * NANOS).div_ceil(u128::from(self.bytes_per_second.max(1)));
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

const NANOS: u128 = 1_000_000_000;
const LONGEST_CREDIT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn bytes_come_at_the_rate_and_up_to_a_second_of_them_waits() {
        let bytes = Bandwidth::new(1000, MS(50));
        assert_eq!((bytes.take(100, MS(0)), bytes.take(100, MS(0))), (50, 0));
        assert_eq!(bytes.take(10, MS(50)), 10);
        assert_eq!(bytes.take(100, MS(50)), 40);
        assert_eq!(bytes.take(5000, MS(9000)), 1000);
        // A clock that goes back gives nothing.
        assert_eq!(bytes.take(5000, MS(8000)), 0);
        assert_eq!(Bandwidth::new(0, MS(50)).take(1, MS(100_000)), 0);
        assert_eq!(Bandwidth::new(u64::MAX, MS(1000)).take(u64::MAX, MS(0)), u64::MAX);
    }

    proptest! {
        #[test]
        fn never_more_goes_on_than_came(
            rate in 1_u64..10_000_000_000,
            steps in prop::collection::vec((0_u64..3_000, 0_u64..1_000_000), 1..50),
        ) {
            let bytes = Bandwidth::new(rate, MS(20));
            let (mut now, mut taken) = (0, 0_u128);
            for (later, wanted) in steps {
                now += later;
                let some = bytes.take(wanted, MS(now));
                prop_assert!(some <= wanted);
                taken += u128::from(some);
                prop_assert!(taken <= u128::from(rate) * u128::from(now + 20) / 1000);
            }
        }

        #[test]
        fn who_always_wants_more_gets_all(rate in 1000_u64..1_000_000_000, steps in 1_u64..100) {
            let bytes = Bandwidth::new(rate, MS(0));
            let taken: u64 = (0..=steps).map(|step| bytes.take(u64::MAX, MS(step * 50))).sum();
            let came = rate * steps * 50 / 1000;
            // A byte for each time that was rounded.
            prop_assert!(taken <= came && came - taken <= steps + 1, "{taken} of {came}");
        }
    }
}
