//! Distributions of values with one writer and no lock.
//!
//! Owns how values are counted on the way: the same ranges that `hdrhistogram` has for two significant digits, as
//! counters that any thread may read. Quantiles are `hdrhistogram`'s (see `buckets`).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Values are told apart by this many of their leading bits: within one percent of each other they count as the same.
const PRECISION: u32 = 7;
/// Counters in one block.
const BLOCK: usize = 1 << PRECISION;
/// Larger values count as the largest: 2^40 milliseconds are 35 years.
const LARGEST: u64 = (1 << 40) - 1;
/// Two blocks for values that are counted exactly, then one for each further bit.
const BLOCKS: usize = (LARGEST.ilog2() - PRECISION + 2) as usize;

type Block = Box<[AtomicU32; BLOCK]>;

/// A distribution of values. One thread writes it; what it needs is made as values come.
#[derive(Debug, Default)]
pub struct Histogram(OnceLock<Box<[OnceLock<Block>; BLOCKS]>>);

impl Histogram {
    /// Records one value, in the unit of its name.
    pub fn record(&self, value: u64) {
        let (block, slot) = place(value.min(LARGEST));
        let blocks = self.0.get_or_init(|| Box::new([const { OnceLock::new() }; BLOCKS]));
        let counters = blocks[block].get_or_init(|| Box::new([const { AtomicU32::new(0) }; BLOCK]));
        // One writer: a plain store is enough, and needs no locked instruction.
        let counter = &counters[slot];
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Whether nothing was ever recorded.
    pub fn is_empty(&self) -> bool {
        self.0.get().is_none()
    }

    /// How many values were recorded.
    pub fn count(&self) -> u64 {
        let blocks = self.0.get().into_iter().flat_map(|blocks| blocks.iter()).filter_map(OnceLock::get);
        blocks.flat_map(|counters| counters.iter()).map(|counter| u64::from(counter.load(Ordering::Relaxed))).sum()
    }

    /// Adds what was recorded to `into`.
    pub fn merge(&self, into: &mut hdrhistogram::Histogram<u64>) {
        for (block, counters) in self.0.get().into_iter().flat_map(|blocks| blocks.iter()).enumerate() {
            for (slot, counter) in counters.get().into_iter().flat_map(|counters| counters.iter()).enumerate() {
                let count = counter.load(Ordering::Relaxed);
                if count > 0 {
                    // Fails only beyond what auto-resize can hold, which is more than the largest value here.
                    let _ = into.record_n(lowest(block, slot), u64::from(count));
                }
            }
        }
    }
}

/// The counter of a value up to [`LARGEST`], as (block, slot).
fn place(value: u64) -> (usize, usize) {
    let bits = u64::BITS - value.leading_zeros();
    let block = bits.saturating_sub(PRECISION);
    // The leading bit is told by the block, but for the first, in which it may be any.
    (block as usize, (value >> block.saturating_sub(1)) as usize % BLOCK)
}

/// The smallest value that a counter stands for.
fn lowest(block: usize, slot: usize) -> u64 {
    match block {
        0 => slot as u64,
        _ => ((BLOCK + slot) as u64) << (block - 1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values() -> hdrhistogram::Histogram<u64> {
        let mut values = hdrhistogram::Histogram::new(2).unwrap();
        values.auto(true);
        values
    }

    #[test]
    fn nothing_is_held_until_something_is_recorded() {
        let histogram = Histogram::default();
        let mut merged = values();
        histogram.merge(&mut merged);
        assert!(histogram.is_empty() && merged.is_empty());
        histogram.record(3);
        assert!(!histogram.is_empty() && histogram.count() == 1);
        assert_eq!(histogram.0.get().unwrap().iter().filter(|block| block.get().is_some()).count(), 1);
    }

    #[test]
    fn values_that_are_too_large_count_as_the_largest() {
        let histogram = Histogram::default();
        histogram.record(u64::MAX);
        histogram.record(LARGEST);
        let mut merged = values();
        histogram.merge(&mut merged);
        assert_eq!((merged.len(), merged.lowest_equivalent(LARGEST)), (2, merged.lowest_equivalent(merged.max())));
    }

    #[test]
    fn one_thread_may_read_while_another_writes() {
        let histogram = Histogram::default();
        let count = || {
            let mut merged = values();
            histogram.merge(&mut merged);
            merged.len()
        };
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (0..50_000).for_each(|value| histogram.record(value % 5_000)));
            let mut last = 0;
            while !writer.is_finished() {
                let now = count();
                assert!(now >= last);
                last = now;
            }
        });
        assert_eq!(count(), 50_000);
    }

    proptest! {
        #[test]
        fn ranges_are_those_of_the_library(recorded in prop::collection::vec(0..=LARGEST, 1..50), shift in 0..40u32) {
            let (histogram, mut expected, mut merged) = (Histogram::default(), values(), values());
            for value in recorded {
                histogram.record(value >> shift);
                expected.record(value >> shift).unwrap();
            }
            histogram.merge(&mut merged);
            prop_assert_eq!(merged, expected);
        }
    }
}
