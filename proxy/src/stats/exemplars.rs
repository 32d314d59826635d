//! Examples of what histograms have counted: requests with traces that were recorded.
//!
//! Owns the newest of each histogram and range of values. Nothing is kept before somebody asks for a form that shows them
//! (OpenMetrics), and nothing for requests that are not recorded. The lock is taken for one of those, and by readers for one
//! histogram at a time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// A request that a histogram has counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Exemplar {
    /// What was recorded of it.
    pub value: u64,
    /// Its trace.
    pub trace_id: u128,
    /// Its span.
    pub span_id: u64,
    /// When it was counted.
    pub at: SystemTime,
}

/// Examples of all histograms.
#[derive(Debug, Default)]
pub struct Exemplars {
    wanted: AtomicBool,
    kept: Mutex<HashMap<Box<str>, Ranges>>,
}

/// The newest example for values of so many bits.
type Ranges = Box<[Option<Exemplar>; RANGES]>;

impl Exemplars {
    /// From now on they are kept: somebody reads them.
    pub fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// Whether they are kept.
    pub fn are_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Keeps one of the histogram `name`, in the place of an older one. Where that would be one histogram too many, all are
    /// forgotten: some may be gone, and the others have new ones soon.
    pub fn keep(&self, name: &str, exemplar: Exemplar) {
        let mut kept = self.lock();
        if !kept.contains_key(name) {
            if kept.len() >= MOST_HISTOGRAMS {
                kept.clear();
            }
            kept.insert(name.into(), Box::new([None; RANGES]));
        }
        if let Some(ranges) = kept.get_mut(name) {
            let bits = (u64::BITS - exemplar.value.leading_zeros()) as usize;
            ranges[bits.min(RANGES - 1)] = Some(exemplar);
        }
    }

    /// Those of the histogram `name`.
    pub fn of(&self, name: &str) -> Vec<Exemplar> {
        self.lock().get(name).map(|ranges| ranges.iter().flatten().copied().collect()).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Ranges>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of `exemplars` the newest above `lower` and not above `upper`.
pub(super) fn within(exemplars: &[Exemplar], lower: f64, upper: f64) -> Option<&Exemplar> {
    let fits = |exemplar: &&Exemplar| exemplar.value as f64 > lower && exemplar.value as f64 <= upper;
    exemplars.iter().filter(fits).max_by_key(|exemplar| exemplar.at)
}

/// Values of more bits count as of so many.
const RANGES: usize = 42;
/// Histograms with examples.
const MOST_HISTOGRAMS: usize = 4096;

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn exemplar(value: u64, seconds: u64) -> Exemplar {
        Exemplar { value, trace_id: 1, span_id: 2, at: UNIX_EPOCH + Duration::from_secs(seconds) }
    }

    #[test]
    fn the_newest_of_each_range_stays() {
        let exemplars = Exemplars::default();
        for (value, seconds) in [(0, 1), (5, 2), (6, 3), (900, 4), (u64::MAX, 5)] {
            exemplars.keep("a", exemplar(value, seconds));
        }
        let kept = exemplars.of("a");
        assert_eq!(kept.iter().map(|kept| kept.value).collect::<Vec<_>>(), [0, 6, 900, u64::MAX]);
        assert!(exemplars.of("b").is_empty());
        assert_eq!(within(&kept, f64::NEG_INFINITY, 5.0), Some(&exemplar(0, 1)));
        assert_eq!(within(&kept, 5.0, 10.0), Some(&exemplar(6, 3)));
        assert_eq!(within(&kept, 10.0, 500.0), None);
        assert_eq!(within(&kept, 500.0, f64::INFINITY), Some(&exemplar(u64::MAX, 5)));
    }

    #[test]
    fn there_is_a_limit_to_histograms() {
        let exemplars = Exemplars::default();
        for index in 0..MOST_HISTOGRAMS {
            exemplars.keep(&index.to_string(), exemplar(1, 1));
        }
        exemplars.keep("0", exemplar(1, 2));
        assert_eq!(exemplars.lock().len(), MOST_HISTOGRAMS);
        exemplars.keep("new", exemplar(1, 3));
        assert_eq!(exemplars.lock().len(), 1);
        assert!(exemplars.of("0").is_empty() && !exemplars.of("new").is_empty());
    }
}
