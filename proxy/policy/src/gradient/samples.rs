//! Latencies of many requests, as counts that all threads add to.
//!
//! Owns the ranges: within each, latencies differ by less than two percent. Never knows what a latency is used for.

use std::sync::atomic::{AtomicU32, Ordering};

/// Values are told apart by this many of their leading bits.
const PRECISION: u32 = 6;
/// Counters in one block.
const BLOCK: usize = 1 << PRECISION;
/// Larger values count as the largest: 2^36 microseconds are 19 hours.
const LARGEST: u64 = (1 << 36) - 1;
/// A block for values that are counted exactly, then half a one for each further bit.
const COUNTERS: usize = BLOCK + (LARGEST.ilog2() + 1 - PRECISION) as usize * BLOCK / 2;

/// Counts of latencies in microseconds; 4 KiB.
#[derive(Debug)]
pub(super) struct Samples {
    count: AtomicU32,
    counters: Box<[AtomicU32; COUNTERS]>,
}

impl Default for Samples {
    fn default() -> Self {
        Self { count: AtomicU32::new(0), counters: Box::new([const { AtomicU32::new(0) }; COUNTERS]) }
    }
}

impl Samples {
    /// One more.
    pub(super) fn add(&self, value: u64) {
        self.counters[place(value.min(LARGEST))].fetch_add(1, Ordering::Relaxed);
        // Later than the counter, so that whoever sees the count finds so many.
        self.count.fetch_add(1, Ordering::Release);
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        self.count.store(0, Ordering::Relaxed);
        for counter in self.counters.iter() {
            counter.store(0, Ordering::Relaxed);
        }
    }

    /// The value that so many percent do not exceed, at least 1. Forgets all; what others add meanwhile counts now or later.
    pub(super) fn take_percentile(&self, percent: f64) -> u64 {
        self.count.store(0, Ordering::Relaxed);
        let counts: Vec<u32> = self.counters.iter().map(|counter| counter.swap(0, Ordering::Relaxed)).collect();
        let all: u64 = counts.iter().map(|count| u64::from(*count)).sum();
        let rank = ((all as f64 * percent / 100.0).ceil() as u64).clamp(1, all.max(1));
        let mut seen = 0;
        let found = counts.iter().position(|count| {
            seen += u64::from(*count);
            seen >= rank
        });
        found.map_or(1, |place| middle(place).max(1))
    }
}

/// The counter of a value up to [`LARGEST`].
fn place(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(PRECISION);
    // From the second block on the leading bit is set: half a block for each.
    (value >> shift) as usize + shift as usize * BLOCK / 2
}

/// The middle of what a counter stands for.
fn middle(place: usize) -> u64 {
    let shift = place.saturating_sub(BLOCK / 2) / (BLOCK / 2);
    let lowest = ((place - shift * BLOCK / 2) as u64) << shift;
    lowest + ((1 << shift) >> 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_added() {
        let samples = Samples::default();
        for value in 1..=40 {
            samples.add(value);
        }
        assert_eq!(samples.count(), 40);
        assert_eq!(samples.take_percentile(50.0), 20);
        assert_eq!((samples.count(), samples.take_percentile(50.0)), (0, 1));
        for value in [5, 6, 7] {
            samples.add(value);
        }
        assert_eq!(samples.take_percentile(0.0), 5);
        samples.add(u64::MAX);
        assert!(samples.take_percentile(100.0) > LARGEST / 100 * 98);
        samples.add(3);
        samples.clear();
        assert_eq!(samples.count(), 0);
    }

    proptest! {
        #[test]
        fn a_value_comes_back_within_two_percent(value in 0..=LARGEST) {
            let place = place(value);
            prop_assert!(place < COUNTERS);
            let back = middle(place);
            prop_assert!(back.abs_diff(value) * 50 <= value, "{value} became {back}");
        }

        #[test]
        fn places_grow_with_values(one in 0..=LARGEST, two in 0..=LARGEST) {
            prop_assert!(place(one.min(two)) <= place(one.max(two)));
        }
    }
}
