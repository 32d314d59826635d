//! Smooth weighted round robin: earliest deadline first.
//!
//! Owns one worker's schedule over one group of hosts. A host is due again after a time that is inverse to its weight,
//! so that picks of heavy hosts are spread evenly between those of light ones.

use super::spread;

/// The hosts by when they are due, as a binary heap.
#[derive(Debug)]
pub(super) struct Schedule {
    heap: Box<[Due]>,
    /// Time between two picks of each position.
    intervals: Box<[u64]>,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Due {
    at: u64,
    position: u32,
}

/// The heaviest host's interval; the larger, the closer shares are to the weights.
const SHORTEST_INTERVAL: u64 = 1 << 20;

/// Deadlines are moved back before they can overflow.
const LATEST: u64 = u64::MAX / 2;

impl Schedule {
    /// A schedule for `weights`, none of which is 0, that starts anywhere in its cycle, as `seed` says.
    pub(super) fn new(weights: &[u32], mut seed: u64) -> Self {
        let heaviest = u64::from(weights.iter().copied().max().unwrap_or(1));
        let intervals: Box<[u64]> =
            weights.iter().map(|weight| heaviest * SHORTEST_INTERVAL / u64::from((*weight).max(1))).collect();
        let mut heap: Box<[Due]> = intervals
            .iter()
            .zip(0..)
            .map(|(interval, position)| Due { at: spread(&mut seed) % interval, position })
            .collect();
        // An ascending list is a heap.
        heap.sort_unstable();
        Self { heap, intervals }
    }

    /// The position that is due, which goes to the back.
    pub(super) fn next(&mut self) -> Option<u32> {
        let position = self.heap.first()?.position;
        self.heap[0].at += self.intervals[position as usize];
        if self.heap[0].at > LATEST {
            self.move_back();
        }
        self.sift_down();
        Some(position)
    }

    fn sift_down(&mut self) {
        let mut at = 0;
        loop {
            let left = 2 * at + 1;
            let Some(&first) = self.heap.get(left) else { return };
            let child = match self.heap.get(left + 1) {
                Some(second) if *second < first => left + 1,
                _ => left,
            };
            if self.heap[at] <= self.heap[child] {
                return;
            }
            self.heap.swap(at, child);
            at = child;
        }
    }

    fn move_back(&mut self) {
        let earliest = self.heap.iter().map(|due| due.at).min().unwrap_or(0);
        self.heap.iter_mut().for_each(|due| due.at -= earliest);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn heavy_hosts_are_spread_between_light_ones() {
        let mut schedule = Schedule::new(&[5, 1, 1], 7);
        let picks: Vec<_> = (0..70).map(|_| schedule.next().unwrap()).collect();
        let longest_run = picks.chunk_by(|a, b| a == b).filter(|run| run[0] == 0).map(<[u32]>::len).max();
        assert!(longest_run <= Some(5), "{picks:?}");
        assert_eq!(picks.iter().filter(|pick| **pick == 0).count(), 50);
    }

    #[test]
    fn deadlines_survive_the_end_of_time() {
        let mut schedule = Schedule::new(&[3, 1], 0);
        schedule.heap.iter_mut().for_each(|due| due.at += LATEST - 10);
        let heavy = (0..400).filter(|_| schedule.next() == Some(0)).count();
        assert!(heavy.abs_diff(300) <= 1, "{heavy}");
    }

    proptest! {
        #[test]
        fn shares_are_exact_at_any_time(
            weights in proptest::collection::vec(1_u32..50, 1..20),
            seed in any::<u64>(),
            picks in 1_usize..3000,
        ) {
            let mut schedule = Schedule::new(&weights, seed);
            let mut counts = vec![0_u32; weights.len()];
            for _ in 0..picks {
                counts[schedule.next().unwrap() as usize] += 1;
            }
            let total: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let expected = picks as f64 * f64::from(*weight) / f64::from(total);
                // Between two picks of a host the time is fixed; how many picks fit in varies by one for each host.
                let slack = 2.0 + weights.len() as f64 * f64::from(*weight) / f64::from(total);
                prop_assert!((f64::from(*count) - expected).abs() <= slack, "{count} {expected}");
            }
        }
    }
}
