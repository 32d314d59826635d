//! How many requests are refused because of those that failed.
//!
//! Owns the counts of a window of time, and what follows from them. Never knows what a success is, and never reads a clock.

use std::collections::VecDeque;
use std::time::Duration;

/// Requests of the last time, counted second by second.
#[derive(Debug)]
pub struct Window {
    length: Duration,
    seconds: VecDeque<Second>,
    total: Counts,
}

/// Requests that were answered.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// All.
    pub requests: u32,
    /// Those with a good answer.
    pub successes: u32,
}

#[derive(Debug)]
struct Second {
    begin: Duration,
    counts: Counts,
}

/// What makes a share of refused requests out of counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Formula {
    /// 1 for a share that rises evenly, more for one that rises faster at first.
    pub aggression: f64,
    /// The share of successes below which requests are refused, 0 to 1.
    pub success_threshold: f64,
    /// Never a larger share than this, 0 to 1.
    pub max_rejection: f64,
}

impl Window {
    /// A window in which nothing was counted.
    pub fn new(length: Duration) -> Self {
        Self { length, seconds: VecDeque::new(), total: Counts::default() }
    }

    /// Counts a request that was answered at `now`, which never goes back.
    pub fn record(&mut self, success: bool, now: Duration) {
        self.forget(now);
        let is_new = |second: &Second| now.saturating_sub(second.begin) >= SECOND;
        if self.seconds.back().is_none_or(is_new) {
            self.seconds.push_back(Second { begin: now, counts: Counts::default() });
        }
        if let Some(Second { counts, .. }) = self.seconds.back_mut() {
            for counts in [counts, &mut self.total] {
                counts.requests += 1;
                counts.successes += u32::from(success);
            }
        }
    }

    /// What was counted within the window.
    pub fn counts(&mut self, now: Duration) -> Counts {
        self.forget(now);
        self.total
    }

    /// Requests in a second, over the time since the first that is remembered.
    pub fn requests_per_second(&mut self, now: Duration) -> u32 {
        self.forget(now);
        let age = self.seconds.front().map_or(0, |second| now.saturating_sub(second.begin).as_secs());
        self.total.requests / u32::try_from(age.max(1)).unwrap_or(u32::MAX)
    }

    fn forget(&mut self, now: Duration) {
        while let Some(oldest) = self.seconds.front()
            && now.saturating_sub(oldest.begin) >= self.length
        {
            self.total.requests -= oldest.counts.requests;
            self.total.successes -= oldest.counts.successes;
            self.seconds.pop_front();
        }
    }
}

impl Formula {
    /// The share of requests that are refused, 0 to 1. Source: `AdmissionControl.aggression`.
    pub fn share(&self, counts: Counts) -> f64 {
        let Counts { requests, successes } = counts;
        let missing = f64::from(requests) - f64::from(successes) / self.success_threshold;
        let share = (missing / (f64::from(requests) + 1.0)).max(0.0);
        let share = if self.aggression > 1.0 { share.powf(1.0 / self.aggression) } else { share };
        // Without a threshold above zero it is no number.
        if share.is_nan() { 0.0 } else { share.min(self.max_rejection) }
    }
}

/// Whether a request is one of those that are refused, for an evenly distributed `random`.
pub fn is_refused(share: f64, random: u64) -> bool {
    share * f64::from(PARTS) > (random % u64::from(PARTS)) as f64
}

const SECOND: Duration = Duration::from_secs(1);
/// Shares are told apart by four digits.
const PARTS: u32 = 10_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINEAR: Formula = Formula { aggression: 1.0, success_threshold: 0.5, max_rejection: 1.0 };

    fn counts(requests: u32, successes: u32) -> Counts {
        Counts { requests, successes }
    }

    #[test]
    fn a_window_forgets_second_by_second() {
        let at = Duration::from_millis;
        let mut window = Window::new(Duration::from_secs(2));
        window.record(true, at(0));
        window.record(false, at(999));
        window.record(true, at(1000));
        assert_eq!(window.counts(at(1999)), counts(3, 2));
        assert_eq!(window.counts(at(2000)), counts(1, 1));
        assert_eq!(window.counts(at(3000)), counts(0, 0));
        assert_eq!(window.requests_per_second(at(3000)), 0);
        for request in 0..30 {
            window.record(false, at(4000 + request * 50));
        }
        assert_eq!(window.requests_per_second(at(4500)), 30);
        assert_eq!(window.requests_per_second(at(5999)), 30);
        // Nothing is remembered without a length.
        let mut none = Window::new(Duration::ZERO);
        none.record(false, at(0));
        assert_eq!(none.counts(at(0)), counts(0, 0));
    }

    #[test]
    fn the_share_is_that_of_the_formula() {
        assert_eq!(LINEAR.share(counts(0, 0)), 0.0);
        assert_eq!(LINEAR.share(counts(99, 50)), 0.0);
        assert_eq!(LINEAR.share(counts(99, 0)), 0.99);
        assert_eq!(LINEAR.share(counts(99, 12)), 0.75);
        let steep = Formula { aggression: 2.0, ..LINEAR };
        assert_eq!(steep.share(counts(99, 37)), 0.5);
        assert_eq!(Formula { max_rejection: 0.8, ..LINEAR }.share(counts(99, 0)), 0.8);
        assert!(is_refused(0.5, 4999) && !is_refused(0.5, 5000) && !is_refused(0.0, 0) && is_refused(1.0, 9999));
    }

    proptest! {
        #[test]
        fn counts_are_those_of_the_window(
            steps in prop::collection::vec((0_u64..1500, any::<bool>()), 1..80),
            length in 1_u64..5,
        ) {
            let mut window = Window::new(Duration::from_secs(length));
            let mut all = Vec::new();
            let mut now = 0;
            for (later, success) in steps {
                now += later;
                window.record(success, Duration::from_millis(now));
                all.push((now, success));
                let seen = window.counts(Duration::from_millis(now));
                let within = |age: u64| all.iter().filter(|(at, _)| now - at < age).count() as u32;
                prop_assert!(seen.requests <= within(length * 1000));
                // What shares a second with one that is forgotten is forgotten with it.
                prop_assert!(seen.requests >= within(length * 1000 - 999));
                prop_assert!(seen.successes <= seen.requests);
            }
        }

        #[test]
        fn a_share_is_a_share(requests in 0_u32..10_000, failed in 0_u32..10_000, aggression in 0.0..10.0, threshold in 0.0..=1.0, most in 0.0..=1.0) {
            let successes = requests.saturating_sub(failed);
            let formula = Formula { aggression, success_threshold: threshold, max_rejection: most };
            let share = formula.share(counts(requests, successes));
            prop_assert!((0.0..=most).contains(&share), "{share}");
        }
    }
}
