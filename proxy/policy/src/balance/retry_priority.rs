//! Which priorities a retry goes to once others were tried (`envoy.retry_priorities.previous_priorities`).
//!
//! Owns which of the tried priorities are left out, and when. Never divides traffic (see `priority`), nor knows hosts.

use std::num::NonZeroU32;

use super::priority::{Availability, PriorityLoad};

/// The priorities of the tries that a request has behind it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attempted<'a> {
    /// After so many tries, and each time after as many more, what was tried until then is left out.
    pub update_frequency: NonZeroU32,
    /// One for each try, in their order; [`Attempted::UNKNOWN`] where the host is in none.
    pub priorities: &'a [u32],
}

impl Attempted<'_> {
    /// The priority of a host that is in none.
    pub const UNKNOWN: u32 = u32::MAX;

    /// The priority and the kind of its hosts that an evenly distributed `random` falls on. `None` where `load` holds as it
    /// is: too few were tried, or no priority is left.
    pub fn choose(&self, load: &PriorityLoad, random: u64) -> Option<(usize, Availability)> {
        self.adjust(load)?.choose(random)
    }

    /// The shares without what is left out. Once no priority is left that could take anything, all begin anew.
    fn adjust(&self, load: &PriorityLoad) -> Option<PriorityLoad> {
        let every = self.update_frequency.get() as usize;
        let (mut start, mut adjusted) = (0, None);
        for end in 1..=self.priorities.len() {
            if !(end - start).is_multiple_of(every) {
                continue;
            }
            let tried = &self.priorities[start..end];
            adjusted = load.without(|level| tried.contains(&(level as u32)));
            if adjusted.is_none() {
                start = end;
            }
        }
        adjusted
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::units::Percent;
    use proptest::prelude::*;

    use super::super::priority::LevelHealth;
    use super::*;

    /// Levels of 100 hosts, of which so many are healthy and so many degraded.
    fn load(levels: &[(u32, u32)]) -> PriorityLoad {
        let level = |&(healthy, degraded): &(u32, u32)| LevelHealth { healthy, degraded, total: 100 };
        let levels: Vec<_> = levels.iter().map(level).collect();
        PriorityLoad::compute(&levels, 140, Percent::new(50.0).unwrap())
    }

    fn after(every: u32, priorities: &[u32], levels: &[(u32, u32)]) -> Option<Vec<(u32, u32)>> {
        let attempted = Attempted { update_frequency: NonZeroU32::new(every).unwrap(), priorities };
        let adjusted = attempted.adjust(&load(levels))?;
        Some(adjusted.levels.iter().map(|level| (level.healthy, level.degraded)).collect())
    }

    #[test]
    fn what_was_tried_leaves_its_share_to_others() {
        let all = [(100, 0), (100, 0), (100, 0)];
        assert_eq!(after(1, &[], &all), None);
        assert_eq!(after(1, &[0], &all), Some(vec![(0, 0), (100, 0), (0, 0)]));
        assert_eq!(after(1, &[0, 1], &all), Some(vec![(0, 0), (0, 0), (100, 0)]));
        // Spilling goes on among those that are left.
        let weak = [(50, 0), (50, 0), (100, 0)];
        assert_eq!(after(1, &[0], &weak), Some(vec![(0, 0), (70, 0), (30, 0)]));
        assert_eq!(after(1, &[1], &weak), Some(vec![(70, 0), (0, 0), (30, 0)]));
        // What is left shares everything in proportion.
        assert_eq!(after(1, &[0], &[(100, 0), (10, 10)]), Some(vec![(0, 0), (50, 50)]));
    }

    #[test]
    fn the_frequency_says_after_how_many_tries() {
        let all = [(100, 0), (100, 0), (100, 0)];
        assert_eq!(after(2, &[0], &all), None);
        assert_eq!(after(2, &[0, 0], &all), Some(vec![(0, 0), (100, 0), (0, 0)]));
        // What came after the last update stays.
        assert_eq!(after(2, &[0, 0, 1], &all), Some(vec![(0, 0), (100, 0), (0, 0)]));
        assert_eq!(after(2, &[0, 0, 1, 1], &all), Some(vec![(0, 0), (0, 0), (100, 0)]));
    }

    #[test]
    fn all_begin_anew_when_none_is_left() {
        let two = [(100, 0), (100, 0)];
        assert_eq!(after(1, &[0, 1], &two), None);
        assert_eq!(after(1, &[0, 1, 0], &two), Some(vec![(0, 0), (100, 0)]));
        assert_eq!(after(1, &[0], &[(100, 0), (0, 0)]), None);
        assert_eq!(after(1, &[Attempted::UNKNOWN], &two), Some(vec![(100, 0), (0, 0)]));
    }

    proptest! {
        #[test]
        fn shares_add_up_and_pass_over_what_was_tried(
            counts in proptest::collection::vec((0_u32..50, 0_u32..50), 1..6),
            priorities in proptest::collection::vec(0_u32..6, 0..12),
            every in 1_u32..5,
        ) {
            if let Some(shares) = after(every, &priorities, &counts) {
                prop_assert_eq!(shares.iter().map(|(healthy, degraded)| healthy + degraded).sum::<u32>(), 100);
                for ((healthy, degraded), (of_healthy, of_degraded)) in shares.iter().zip(&counts) {
                    prop_assert!(*of_healthy > 0 || *healthy == 0);
                    prop_assert!(*of_degraded > 0 || *degraded == 0);
                }
                if every == 1 && priorities.len() == 1 {
                    prop_assert_eq!(shares.get(priorities[0] as usize).copied().unwrap_or_default(), (0, 0));
                }
            }
        }
    }
}
