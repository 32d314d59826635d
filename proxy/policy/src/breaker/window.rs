//! How many requests began within the last while (`RetryBudget.budget_interval`).
//!
//! Owns the counts of one breaker, in slices of time. Written by all workers without a lock; never reads a clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Slices that an interval is divided into: a request counts for the interval, and a sixteenth of it more at the most.
const SLICES: u64 = 16;

/// Requests that began, by the slice of time in which they did.
#[derive(Debug)]
pub(super) struct Window {
    /// The number of a slice in the upper half, and what began in it in the lower. One more than an interval has, for the
    /// slice that has only begun.
    slices: [AtomicU64; SLICES as usize + 1],
}

impl Default for Window {
    fn default() -> Self {
        Self { slices: [const { AtomicU64::new(0) }; SLICES as usize + 1] }
    }
}

impl Window {
    /// One request more, at `now` (milliseconds).
    pub(super) fn count(&self, interval: Duration, now: u64) {
        let slice = slice_of(interval, now);
        let counted = |known: u64| {
            let began = if known >> 32 == slice { (known as u32).saturating_add(1) } else { 1 };
            Some((slice << 32) | u64::from(began))
        };
        // Never fails: there is always a next value.
        let _ = self.place(slice).fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
    }

    /// How many began within the interval before `now` (milliseconds).
    pub(super) fn sum(&self, interval: Duration, now: u64) -> u32 {
        let last = slice_of(interval, now);
        let recent = self.slices.iter().map(|slice| slice.load(Ordering::Relaxed));
        let recent = recent.filter(|known| (last.saturating_sub(SLICES)..=last).contains(&(known >> 32)));
        recent.fold(0, |sum, known| sum.saturating_add(known as u32))
    }

    fn place(&self, slice: u64) -> &AtomicU64 {
        &self.slices[(slice % (SLICES + 1)) as usize]
    }
}

/// Slices are numbered from 1, so that what was never written counts for none.
fn slice_of(interval: Duration, now: u64) -> u64 {
    let length = (interval.as_millis() as u64).div_ceil(SLICES).max(1);
    (now / length + 1) & u64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_count_for_the_interval_and_not_for_much_longer() {
        let (window, interval) = (Window::default(), Duration::from_millis(1600));
        for now in [5000, 5001, 5950] {
            window.count(interval, now);
        }
        assert_eq!([5950, 6601, 6700, 7550, 7700].map(|now| window.sum(interval, now)), [3, 3, 1, 1, 0]);
        assert_eq!(window.sum(interval, u64::from(u32::MAX) * 7), 0);
        // The place of an old slice is taken over.
        window.count(interval, 5000 + 17 * 100);
        assert_eq!(window.sum(interval, 6700), 2);
    }

    #[test]
    fn the_shortest_interval_has_slices_of_a_millisecond() {
        let (window, interval) = (Window::default(), Duration::from_micros(3));
        window.count(interval, 10);
        assert_eq!([10, 26, 27].map(|now| window.sum(interval, now)), [1, 1, 0]);
    }

    proptest! {
        #[test]
        fn nobody_is_forgotten_too_early_or_too_late(
            interval in 1u64..100_000, ages in prop::collection::vec(0u64..300_000, 0..50),
        ) {
            let now = 1_000_000;
            let mut ages = ages;
            ages.sort_unstable_by(|a, b| b.cmp(a));
            let (window, length) = (Window::default(), Duration::from_millis(interval));
            ages.iter().for_each(|age| window.count(length, now - age));
            let within = |limit: u64| ages.iter().filter(|age| **age <= limit).count() as u32;
            let sum = window.sum(length, now);
            prop_assert!(within(interval) <= sum && sum <= within(interval + 2 * interval.div_ceil(SLICES) + SLICES));
        }
    }
}
