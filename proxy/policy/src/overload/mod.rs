//! What follows from the pressure on a resource.
//!
//! Owns the states of triggers and what they add up to, how much shorter time limits become, and what two looks at a
//! clock of CPU time mean. Never measures, and never acts.

use std::time::Duration;

use outrigger_config::overload::{TimerMinimum, Trigger, TriggerKind};

mod cpu;

pub use cpu::{CpuMeter, CpuTimes};

/// The state of an action or a load-shed point: that of its strongest trigger.
#[derive(Clone, Debug)]
pub struct Triggered {
    triggers: Vec<(Trigger, f64)>,
}

impl Triggered {
    /// Not active.
    pub fn new(triggers: impl IntoIterator<Item = Trigger>) -> Self {
        Self { triggers: triggers.into_iter().map(|trigger| (trigger, 0.0)).collect() }
    }

    /// Takes the pressure on a resource, by the position of its monitor, as a share of its limit. Returns the new state
    /// if it has changed.
    pub fn update(&mut self, monitor: usize, pressure: f64) -> Option<f64> {
        let before = self.state();
        for (trigger, state) in &mut self.triggers {
            if trigger.monitor == monitor {
                *state = state_at(trigger.kind, pressure);
            }
        }
        Some(self.state()).filter(|state| *state != before)
    }

    /// 0 when inactive, 1 when saturated.
    pub fn state(&self) -> f64 {
        self.triggers.iter().map(|(_, state)| *state).fold(0.0, f64::max)
    }
}

/// The state of a trigger at a pressure: within 0..=1.
pub fn state_at(trigger: TriggerKind, pressure: f64) -> f64 {
    match trigger {
        TriggerKind::Threshold(threshold) if pressure >= threshold => 1.0,
        TriggerKind::Threshold(_) => 0.0,
        TriggerKind::Scaled { from, .. } if pressure <= from => 0.0,
        TriggerKind::Scaled { to, .. } if pressure >= to => 1.0,
        TriggerKind::Scaled { from, to } => (pressure - from) / (to - from),
    }
}

/// How long a time limit is that is usually `usual`, while the action that makes it shorter has `state`: between the usual
/// one and its minimum, in proportion. It never becomes longer.
pub fn shortened(usual: Duration, minimum: TimerMinimum, state: f64) -> Duration {
    let minimum = match minimum {
        TimerMinimum::Absolute(minimum) => minimum.min(usual),
        TimerMinimum::Scaled(share) => usual.mul_f64(share.value() / 100.0),
    };
    usual.saturating_sub((usual.saturating_sub(minimum)).mul_f64(state.clamp(0.0, 1.0)))
}

/// Streams are sorted by the power of two of what they hold; so many powers are told apart, and the last one takes all above.
const BUCKETS: u32 = 8;

/// So many streams are reset at once on a worker at the most. Source: Envoy.
pub const MOST_RESETS: usize = 50;

/// From how many bytes on a stream is reset when the action that does so comes to `state`: the more it has, the more buckets
/// are emptied, those with the largest streams first. `None` if none is. As in Envoy the smallest bucket begins at half of
/// two to the power of `smallest_power` bytes.
pub fn reset_from(smallest_power: u32, state: f64) -> Option<u64> {
    if state <= 0.0 {
        return None;
    }
    let emptied = ((state * f64::from(BUCKETS)) as u32 + 1).min(BUCKETS);
    1u64.checked_shl((smallest_power + (BUCKETS - emptied)).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use outrigger_config::units::Percent;
    use proptest::prelude::*;

    use super::*;

    fn threshold(monitor: usize, value: f64) -> Trigger {
        Trigger { monitor, kind: TriggerKind::Threshold(value) }
    }

    #[test]
    fn a_threshold_is_reached_when_it_is_met() {
        assert_eq!(state_at(TriggerKind::Threshold(0.9), 0.89), 0.0);
        assert_eq!(state_at(TriggerKind::Threshold(0.9), 0.9), 1.0);
        let scaled = TriggerKind::Scaled { from: 0.5, to: 1.0 };
        assert_eq!([0.5, 0.75, 1.0, 7.0].map(|pressure| state_at(scaled, pressure)), [0.0, 0.5, 1.0, 1.0]);
    }

    #[test]
    fn the_strongest_trigger_counts_and_only_changes_are_told() {
        let scaled = Trigger { monitor: 1, kind: TriggerKind::Scaled { from: 0.0, to: 1.0 } };
        let mut action = Triggered::new([threshold(0, 0.5), scaled]);
        assert_eq!(action.update(0, 0.4), None);
        assert_eq!(action.update(1, 0.25), Some(0.25));
        assert_eq!(action.update(0, 0.6), Some(1.0));
        assert_eq!(action.update(1, 0.75), None);
        assert_eq!(action.update(0, 0.1), Some(0.75));
        assert_eq!(action.update(2, 1.0), None);
        assert_eq!(action.update(1, 0.0), Some(0.0));
    }

    #[test]
    fn the_largest_streams_are_reset_first() {
        let powers = |state| reset_from(20, state).map(u64::ilog2);
        assert_eq!(powers(0.0), None);
        let rising = [0.01, 0.124, 0.125, 0.5, 0.874, 0.875, 1.0].map(|state| powers(state).unwrap());
        assert_eq!(rising, [26, 26, 25, 22, 20, 19, 19]);
        assert_eq!(reset_from(56, 0.01), Some(1 << 62));
    }

    #[test]
    fn time_limits_become_shorter_in_proportion() {
        let usual = Duration::from_secs(600);
        let two = TimerMinimum::Absolute(Duration::from_secs(2));
        assert_eq!(shortened(usual, two, 0.0), usual);
        assert_eq!(shortened(usual, two, 1.0), Duration::from_secs(2));
        // As the documentation of the API has it: 85 % to 95 %, at 92 %.
        assert_eq!(shortened(usual, two, 0.7), Duration::from_secs_f64(181.4));
        let tenth = TimerMinimum::Scaled(Percent::new(10.0).unwrap());
        assert_eq!(shortened(usual, tenth, 1.0), Duration::from_secs(60));
        let longer = TimerMinimum::Absolute(Duration::from_secs(7));
        assert_eq!(shortened(Duration::from_secs(1), longer, 1.0), Duration::from_secs(1));
    }

    proptest! {
        #[test]
        fn a_state_lies_within_its_bounds_and_never_falls_with_more_pressure(
            from in 0.0..1.0f64, width in 0.001..1.0f64, low in -1.0..3.0f64, more in 0.0..3.0f64,
        ) {
            let trigger = TriggerKind::Scaled { from, to: from + width };
            let (less, more) = (state_at(trigger, low), state_at(trigger, low + more));
            prop_assert!((0.0..=1.0).contains(&less) && less <= more && more <= 1.0);
        }

        #[test]
        fn no_limit_becomes_longer(usual in 0u64..10_000_000, minimum in 0u64..10_000_000, state in 0.0..=1.0f64) {
            let usual = Duration::from_millis(usual);
            let minimum = Duration::from_millis(minimum);
            let short = shortened(usual, TimerMinimum::Absolute(minimum), state);
            prop_assert!(short <= usual && short + Duration::from_micros(1) >= minimum.min(usual));
        }
    }
}
