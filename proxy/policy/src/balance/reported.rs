//! The weight of a host as its load reports tell it (`ClientSideWeightedRoundRobin`).
//!
//! Owns how long a weight is believed, and what stands in for one that is missing. Never reads a report (see
//! `load_report`).

use outrigger_config::cluster::ReportOptions;

/// What the reports of a host say of its weight. Times are in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReportedWeight {
    /// As the last report says.
    pub weight: f64,
    /// Since when there are reports without a gap.
    pub since: u64,
    /// When the last one came; 0 for never.
    pub last: u64,
}

impl ReportedWeight {
    /// A report says `weight`.
    #[must_use]
    pub fn reported(self, weight: f64, now: u64, options: &ReportOptions) -> Self {
        let since = if self.is_over(now, options) { now } else { self.since };
        Self { weight, since, last: now.max(1) }
    }

    /// The weight, if it counts now.
    pub fn counts(self, now: u64, options: &ReportOptions) -> Option<f64> {
        let blackout = millis(options.blackout_period);
        let known = !self.is_over(now, options) && now.saturating_sub(self.since) >= blackout;
        known.then_some(self.weight)
    }

    fn is_over(self, now: u64, options: &ReportOptions) -> bool {
        self.last == 0 || now.saturating_sub(self.last) > millis(options.weight_expiration_period)
    }
}

/// Whole weights in proportion; hosts without one get the median of the others. `None` if no host has one.
pub(super) fn whole_weights(weights: &[Option<f64>]) -> Option<Box<[u32]>> {
    const GREATEST: f64 = 1_000_000.0;
    let mut known: Vec<f64> = weights.iter().flatten().copied().collect();
    if known.is_empty() {
        return None;
    }
    let middle = known.len() / 2;
    let (_, median, _) = known.select_nth_unstable_by(middle, f64::total_cmp);
    let median = *median;
    let greatest = known.iter().copied().fold(0.0, f64::max);
    let whole = |weight: &Option<f64>| (weight.unwrap_or(median) / greatest * GREATEST).round().max(1.0) as u32;
    Some(weights.iter().map(whole).collect())
}

pub(super) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn options() -> ReportOptions {
        ReportOptions {
            blackout_period: Duration::from_secs(10),
            weight_expiration_period: Duration::from_secs(180),
            weight_update_period: Duration::from_secs(1),
            error_utilization_penalty: 1.0,
            metrics: Vec::new(),
            out_of_band: None,
        }
    }

    #[test]
    fn a_weight_counts_after_the_blackout_and_until_it_expires() {
        let options = options();
        let weight = ReportedWeight::default();
        assert_eq!(weight.counts(1_000_000, &options), None);
        let weight = weight.reported(7.0, 5, &options);
        assert_eq!((weight.counts(5, &options), weight.counts(10_004, &options)), (None, None));
        let weight = weight.reported(9.0, 10_005, &options);
        assert_eq!(weight.counts(10_005, &options), Some(9.0));
        assert_eq!(weight.counts(190_005, &options), Some(9.0));
        assert_eq!(weight.counts(190_006, &options), None);
        // After a gap the blackout begins anew.
        let weight = weight.reported(9.0, 200_000, &options);
        assert_eq!((weight.counts(200_001, &options), weight.counts(210_000, &options)), (None, Some(9.0)));
    }

    #[test]
    fn hosts_without_a_weight_get_the_median() {
        assert_eq!(whole_weights(&[None, None]), None);
        let weights = whole_weights(&[Some(1.0), None, Some(4.0), Some(2.0)]).unwrap();
        assert_eq!(*weights, [250_000, 500_000, 1_000_000, 500_000]);
        // Extremes stay above zero.
        assert_eq!(*whole_weights(&[Some(1e-9), Some(1e9)]).unwrap(), [1, 1_000_000]);
    }
}
