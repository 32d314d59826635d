//! How traffic divides among priorities, and which of them panic.
//!
//! Owns the arithmetic of `ClusterLoadAssignment.Policy.overprovisioning_factor` and
//! `Cluster.CommonLbConfig.healthy_panic_threshold`, in whole percent as Envoy calculates it. Never knows hosts.

use outrigger_config::units::Percent;

/// How many hosts of a priority are in which state; excluded hosts are in none of the numbers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LevelHealth {
    /// Healthy hosts.
    pub healthy: u32,
    /// Degraded hosts.
    pub degraded: u32,
    /// All hosts, unhealthy ones too.
    pub total: u32,
}

/// What a priority gets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LevelLoad {
    /// Percent of the traffic that goes to its healthy hosts.
    pub healthy: u32,
    /// Percent of the traffic that goes to its degraded hosts.
    pub degraded: u32,
    /// Both go to all of its hosts instead, whatever their health.
    pub panic: bool,
    /// Percent of the traffic that its healthy hosts could take.
    pub healthy_capacity: u8,
    /// Percent of the traffic that its degraded hosts could take.
    pub degraded_capacity: u8,
}

/// Which hosts of a priority were chosen.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Availability {
    /// The healthy ones.
    Healthy,
    /// The degraded ones.
    Degraded,
}

/// Shares for each priority, highest first. The percentages add up to 100 unless there are no priorities.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PriorityLoad {
    /// One for each priority.
    pub levels: Box<[LevelLoad]>,
}

impl PriorityLoad {
    /// Divides traffic among `levels`.
    ///
    /// A priority can take the share of its hosts that are available, times the overprovisioning factor (in percent).
    /// Higher priorities are filled first, healthy hosts of all priorities before degraded ones. If all together cannot
    /// take everything, they share in proportion, and a priority whose share of available hosts is below the panic
    /// threshold (0 for never) uses all of its hosts. If every priority does, they share by number of hosts.
    /// What rounding leaves over goes to the first priority that takes anything.
    pub fn compute(levels: &[LevelHealth], overprovisioning_factor: u32, panic_threshold: Percent) -> Self {
        Self::compute_by(levels, levels, |_| overprovisioning_factor, panic_threshold)
    }

    /// As [`Self::compute`], for levels that each have an overprovisioning `factor` of their own. What a priority can take
    /// follows from `capacities`, in whatever these count: hosts or their weights (`weighted_priority_health`).
    pub fn compute_by(
        capacities: &[LevelHealth],
        levels: &[LevelHealth],
        factor: impl Fn(usize) -> u32,
        panic_threshold: Percent,
    ) -> Self {
        let capacity = |at: usize, part: u32, total: u32| {
            let scaled = u64::from(factor(at)) * u64::from(part);
            scaled.checked_div(u64::from(total)).unwrap_or(0).min(100) as u32
        };
        let each = |part: fn(&LevelHealth) -> u32| -> Vec<u32> {
            capacities.iter().enumerate().map(|(at, level)| capacity(at, part(level), level.total)).collect()
        };
        let healthy = each(|level| level.healthy);
        let degraded = each(|level| level.degraded);
        let available = healthy.iter().chain(&degraded).sum::<u32>().min(100);
        let of_level = |(healthy, degraded): (&u32, &u32)| LevelLoad {
            healthy_capacity: *healthy as u8,
            degraded_capacity: *degraded as u8,
            ..LevelLoad::default()
        };
        let mut loads: Vec<LevelLoad> = healthy.iter().zip(&degraded).map(of_level).collect();
        if available > 0 {
            fill(&mut loads, &healthy, &degraded, available);
        }
        let threshold = panic_threshold.value().round();
        if available < 100 {
            for (load, level) in loads.iter_mut().zip(levels) {
                let usable = f64::from(level.healthy) + f64::from(level.degraded);
                let percent = if level.total == 0 { 0.0 } else { 100.0 * usable / f64::from(level.total) };
                load.panic = percent < threshold;
            }
        }
        if loads.iter().all(|load| load.panic) {
            share_by_hosts(&mut loads, levels);
        } else if available == 0 {
            // Nobody can take anything; the sum must be 100 all the same.
            loads[0].healthy = 100;
        }
        Self { levels: loads.into() }
    }

    /// The shares if the priorities that `is_excluded` names took nothing; `None` if no other could take anything. Which of
    /// them panic stays as it is.
    pub fn without(&self, is_excluded: impl Fn(usize) -> bool) -> Option<Self> {
        let each = |part: fn(&LevelLoad) -> u8| -> Vec<u32> {
            let of_level = |(at, level)| if is_excluded(at) { 0 } else { u32::from(part(level)) };
            self.levels.iter().enumerate().map(of_level).collect()
        };
        let healthy = each(|level| level.healthy_capacity);
        let degraded = each(|level| level.degraded_capacity);
        let available = healthy.iter().chain(&degraded).sum::<u32>().min(100);
        if available == 0 {
            return None;
        }
        let mut levels = self.levels.clone();
        fill(&mut levels, &healthy, &degraded, available);
        Some(Self { levels })
    }

    /// The priority and the kind of its hosts that an evenly distributed `random` falls on.
    pub fn choose(&self, random: u64) -> Option<(usize, Availability)> {
        let mut left = (random % 100) as u32;
        let healthy = self.levels.iter().enumerate().map(|(level, load)| (level, Availability::Healthy, load.healthy));
        let degraded =
            self.levels.iter().enumerate().map(|(level, load)| (level, Availability::Degraded, load.degraded));
        for (level, availability, share) in healthy.chain(degraded) {
            if left < share {
                return Some((level, availability));
            }
            left -= share;
        }
        None
    }

    /// Whether any priority uses all of its hosts.
    pub fn panics(&self) -> bool {
        self.levels.iter().any(|level| level.panic)
    }
}

fn fill(loads: &mut [LevelLoad], healthy: &[u32], degraded: &[u32], available: u32) {
    let mut left = 100;
    let mut share = |capacity: u32| {
        let share = (capacity * 100 / available).min(left);
        left -= share;
        share
    };
    for (load, capacity) in loads.iter_mut().zip(healthy) {
        load.healthy = share(*capacity);
    }
    for (load, capacity) in loads.iter_mut().zip(degraded) {
        load.degraded = share(*capacity);
    }
    if let Some(first) = healthy.iter().position(|capacity| *capacity > 0) {
        loads[first].healthy += left;
    } else if let Some(first) = degraded.iter().position(|capacity| *capacity > 0) {
        loads[first].degraded += left;
    }
}

fn share_by_hosts(loads: &mut [LevelLoad], levels: &[LevelHealth]) {
    let total: u64 = levels.iter().map(|level| u64::from(level.total)).sum();
    let mut left = 100;
    for (load, level) in loads.iter_mut().zip(levels) {
        load.healthy = (100 * u64::from(level.total)).checked_div(total).unwrap_or(0) as u32;
        load.degraded = 0;
        left -= load.healthy;
    }
    let first = levels.iter().position(|level| level.total > 0).unwrap_or(0);
    if let Some(load) = loads.get_mut(first) {
        load.healthy += left;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn percent(value: f64) -> Percent {
        Percent::new(value).unwrap()
    }

    /// Levels of 100 hosts of which so many are healthy.
    fn healthy(counts: &[u32]) -> Vec<LevelHealth> {
        counts.iter().map(|healthy| LevelHealth { healthy: *healthy, degraded: 0, total: 100 }).collect()
    }

    fn shares(counts: &[u32]) -> Vec<u32> {
        let load = PriorityLoad::compute(&healthy(counts), 140, percent(50.0));
        load.levels.iter().map(|level| level.healthy).collect()
    }

    #[test]
    fn traffic_spills_to_lower_priorities() {
        for (p0, expected) in
            [(100, [100, 0]), (72, [100, 0]), (71, [99, 1]), (50, [70, 30]), (25, [35, 65]), (0, [0, 100])]
        {
            assert_eq!(shares(&[p0, 100]), expected, "{p0}");
        }
        assert_eq!(shares(&[72, 72]), [100, 0]);
        assert_eq!(shares(&[71, 71]), [99, 1]);
        assert_eq!(shares(&[50, 50]), [70, 30]);
        assert_eq!(shares(&[72, 72, 100]), [100, 0, 0]);
        assert_eq!(shares(&[71, 71, 100]), [99, 1, 0]);
        assert_eq!(shares(&[25, 100, 100]), [35, 65, 0]);
        assert_eq!(shares(&[25, 25, 100]), [35, 35, 30]);
        // 35, 35 and 28 of 98; what whole numbers leave over stays with the first priority.
        let load = PriorityLoad::compute(&healthy(&[25, 25, 20]), 140, percent(0.0));
        assert_eq!(load.levels.iter().map(|level| level.healthy).collect::<Vec<_>>(), [37, 35, 28]);
    }

    #[test]
    fn levels_may_have_factors_of_their_own() {
        let factor = |at: usize| [100, 140, 200][at];
        let load = {
            let levels = healthy(&[50, 25, 100]);
            PriorityLoad::compute_by(&levels, &levels, factor, percent(50.0))
        };
        assert_eq!(load.levels.iter().map(|level| level.healthy).collect::<Vec<_>>(), [50, 35, 15]);
    }

    #[test]
    fn panic_waits_until_all_priorities_together_are_too_weak() {
        let panics = |counts: &[u32]| {
            let load = PriorityLoad::compute(&healthy(counts), 140, percent(50.0));
            load.levels.iter().map(|level| level.panic).collect::<Vec<_>>()
        };
        for p0 in [72, 71, 50, 25, 0] {
            assert_eq!(panics(&[p0, 100]), [false, false]);
        }
        assert_eq!(panics(&[50, 60]), [false, false]);
        assert_eq!(panics(&[25, 25]), [true, true]);
        assert_eq!(shares(&[25, 25]), [50, 50]);
        assert_eq!(panics(&[5, 65]), [true, false]);
        assert_eq!(shares(&[5, 65]), [8, 92]);
        assert_eq!(panics(&[71]), [false]);
        assert_eq!(panics(&[50]), [false]);
        assert_eq!(panics(&[49]), [true]);
    }

    #[test]
    fn priorities_in_panic_share_by_hosts() {
        let level = |total| LevelHealth { healthy: 0, degraded: 0, total };
        let load = PriorityLoad::compute(&[level(0), level(10), level(20)], 140, percent(50.0));
        let shares: Vec<_> = load.levels.iter().map(|level| level.healthy).collect();
        assert_eq!(shares, [0, 34, 66]);
        assert!(load.panics());
    }

    #[test]
    fn a_threshold_of_zero_never_panics() {
        let load = PriorityLoad::compute(&healthy(&[0, 0]), 140, percent(0.0));
        assert_eq!(load.levels[0], LevelLoad { healthy: 100, ..LevelLoad::default() });
        assert!(!load.panics());
        assert_eq!(PriorityLoad::compute(&[], 140, percent(50.0)).choose(0), None);
    }

    #[test]
    fn degraded_hosts_take_what_healthy_ones_cannot() {
        for (healthy, degraded, expected) in
            [(100, 0, (100, 0)), (71, 0, (100, 0)), (71, 29, (99, 1)), (25, 65, (35, 65)), (5, 0, (100, 0))]
        {
            let level = LevelHealth { healthy, degraded, total: 100 };
            let load = PriorityLoad::compute(&[level], 140, percent(0.0)).levels[0];
            assert_eq!((load.healthy, load.degraded), expected, "{healthy} {degraded}");
        }
        // Healthy hosts of lower priorities come before degraded ones of higher priorities.
        let levels = [
            LevelHealth { healthy: 10, degraded: 90, total: 100 },
            LevelHealth { healthy: 10, degraded: 0, total: 100 },
        ];
        let load = PriorityLoad::compute(&levels, 140, percent(50.0));
        assert_eq!((load.levels[0].healthy, load.levels[0].degraded, load.levels[0].panic), (14, 72, false));
        assert_eq!(load.levels[1].healthy, 14);
        assert_eq!(load.choose(13), Some((0, Availability::Healthy)));
        assert_eq!(load.choose(27), Some((1, Availability::Healthy)));
        assert_eq!(load.choose(128), Some((0, Availability::Degraded)));
    }

    proptest! {
        #[test]
        fn shares_always_add_up(
            counts in proptest::collection::vec((0_u32..50, 0_u32..50, 0_u32..50), 1..6),
            factor in 100_u32..300,
            threshold in 0.0..100.0,
        ) {
            let levels: Vec<_> = counts
                .iter()
                .map(|(healthy, degraded, rest)| LevelHealth {
                    healthy: *healthy,
                    degraded: *degraded,
                    total: healthy + degraded + rest,
                })
                .collect();
            let load = PriorityLoad::compute(&levels, factor, percent(threshold));
            prop_assert_eq!(load.levels.iter().map(|level| level.healthy + level.degraded).sum::<u32>(), 100);
            for (load, level) in load.levels.iter().zip(&levels) {
                prop_assert!(level.degraded > 0 || load.degraded == 0);
            }
        }
    }
}
