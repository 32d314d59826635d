//! A token bucket that threads share.
//!
//! Owns the count of tokens over time; taking one is one atomic exchange. Never reads a clock, and never waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outrigger_config::network::TokenBucket as Settings;

/// How tokens come: one by one, evenly spread over the interval. The count itself is a number of its own, so that many
/// buckets may have the same rate.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    max_tokens: u64,
    tokens_per_fill: u64,
    interval_ns: u64,
    /// Tokens are counted in parts of `1 << shift`, so that waiting for a part of one counts too.
    shift: u32,
}

/// Of all tokens that ever came to a bucket, the first filling included, how many were taken or did not fit; in parts.
pub type Gone = AtomicU64;

impl Rate {
    /// As `settings` say.
    pub fn new(settings: Settings) -> Self {
        let Settings { max_tokens, tokens_per_fill, fill_interval } = settings;
        let interval_ns = u64::try_from(fill_interval.as_nanos()).unwrap_or(u64::MAX).max(1);
        let of_years =
            u128::from(tokens_per_fill) * (YEARS.as_nanos() / u128::from(interval_ns)) + u128::from(max_tokens);
        let shift = of_years.leading_zeros().saturating_sub(u64::BITS).min(MOST_SHIFT);
        Self { max_tokens: max_tokens.into(), tokens_per_fill: tokens_per_fill.into(), interval_ns, shift }
    }

    /// Takes `count` tokens if so many are there, `age` after the first filling.
    pub fn take(&self, gone: &Gone, count: u64, age: Duration) -> bool {
        let came = self.came(age);
        let count = self.parts(count);
        let take = |gone: u64| {
            let gone = gone.max(self.full_at(came));
            (came.saturating_sub(gone) >= count).then(|| gone + count)
        };
        gone.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Puts `count` tokens back, as far as they fit.
    pub fn give(&self, gone: &Gone, count: u64, age: Duration) {
        let full = self.full_at(self.came(age));
        let count = self.parts(count);
        let give = |gone: u64| Some(gone.saturating_sub(count).max(full));
        // It never refuses.
        let _ = gone.fetch_update(Ordering::Relaxed, Ordering::Relaxed, give);
    }

    /// Whole tokens that are there.
    pub fn remaining(&self, gone: &Gone, age: Duration) -> u64 {
        self.there(gone, age) >> self.shift
    }

    /// How long until there is a whole token; zero if there is one.
    pub fn until_next(&self, gone: &Gone, age: Duration) -> Duration {
        let missing = self.parts(1).saturating_sub(self.there(gone, age));
        let nanos = u128::from(missing) * u128::from(self.interval_ns) / u128::from(self.tokens_per_fill.max(1));
        Duration::from_nanos(u64::try_from((nanos + (1 << self.shift) - 1) >> self.shift).unwrap_or(u64::MAX))
    }

    /// The count of a bucket that is full.
    pub fn full(&self, age: Duration) -> u64 {
        self.full_at(self.came(age))
    }

    /// Tokens of the first filling, and at most.
    pub fn max_tokens(&self) -> u64 {
        self.max_tokens
    }

    /// Tokens in a second.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens_per_fill as f64 * 1e9 / self.interval_ns as f64
    }

    fn there(&self, gone: &Gone, age: Duration) -> u64 {
        let came = self.came(age);
        came.saturating_sub(gone.load(Ordering::Relaxed).max(self.full_at(came)))
    }

    fn came(&self, age: Duration) -> u64 {
        let parts = u128::from(self.tokens_per_fill) << self.shift;
        let filled = age.as_nanos().saturating_mul(parts) / u128::from(self.interval_ns);
        let most = self.parts(self.max_tokens);
        u64::try_from(filled).unwrap_or(u64::MAX - most).saturating_add(most)
    }

    fn full_at(&self, came: u64) -> u64 {
        came.saturating_sub(self.parts(self.max_tokens))
    }

    fn parts(&self, tokens: u64) -> u64 {
        tokens.checked_mul(1 << self.shift).unwrap_or(u64::MAX >> 1)
    }
}

/// A bucket whose tokens all come within this time can be counted to its end.
const YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// A part is a millionth of a token, or more.
const MOST_SHIFT: u32 = 20;

/// The tokens of one limit.
#[derive(Debug)]
pub struct TokenBucket {
    rate: Rate,
    gone: Gone,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(settings: Settings) -> Self {
        Self { rate: Rate::new(settings), gone: Gone::new(0) }
    }

    /// Takes a token if there is one, `age` after the bucket was made.
    pub fn take(&self, age: Duration) -> bool {
        self.rate.take(&self.gone, 1, age)
    }

    /// How its tokens come.
    pub fn rate(&self) -> &Rate {
        &self.rate
    }

    /// How many of them are gone.
    pub fn gone(&self) -> &Gone {
        &self.gone
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(max_tokens: u32, tokens_per_fill: u32, seconds: u64) -> TokenBucket {
        TokenBucket::new(Settings { max_tokens, tokens_per_fill, fill_interval: Duration::from_secs(seconds) })
    }

    fn taken(bucket: &TokenBucket, seconds: u64) -> usize {
        (0..100).filter(|_| bucket.take(Duration::from_secs(seconds))).count()
    }

    #[test]
    fn tokens_come_back_and_do_not_pile_up() {
        let bucket = bucket(5, 2, 10);
        assert_eq!(taken(&bucket, 0), 5);
        assert_eq!(taken(&bucket, 4), 0);
        assert_eq!(taken(&bucket, 5), 1);
        assert_eq!(taken(&bucket, 10), 1);
        assert_eq!(taken(&bucket, 30), 4);
        assert_eq!(taken(&bucket, 1000), 5);
        // Another thread looked at the clock a little earlier.
        assert_eq!(taken(&bucket, 999), 0);
    }

    #[test]
    fn an_empty_bucket_stays_empty() {
        let bucket = bucket(0, 5, 1);
        assert_eq!(taken(&bucket, 0), 0);
        assert_eq!(taken(&bucket, 100), 0);
    }

    #[test]
    fn waiting_for_a_part_of_a_token_counts_from_when_it_was_taken() {
        let bucket = bucket(2, 1, 10);
        let at = |millis| Duration::from_millis(millis);
        assert!(bucket.take(at(9_000)));
        // A full bucket lets what comes pass: the wait begins when there is room.
        assert_eq!(bucket.rate().remaining(bucket.gone(), at(18_900)), 1);
        assert_eq!(bucket.rate().remaining(bucket.gone(), at(19_000)), 2);
        assert!(bucket.take(at(19_000)) && bucket.take(at(19_000)) && !bucket.take(at(19_000)));
        let next = bucket.rate().until_next(bucket.gone(), at(22_000));
        assert!((6_999..=7_001).contains(&next.as_millis()), "{next:?}");
        assert_eq!(bucket.rate().until_next(bucket.gone(), at(30_000)), Duration::ZERO);
    }

    #[test]
    fn several_tokens_are_taken_together_and_given_back() {
        let bucket = bucket(5, 1, 10);
        let (rate, gone, now) = (bucket.rate(), bucket.gone(), Duration::ZERO);
        assert!(rate.take(gone, 3, now) && !rate.take(gone, 3, now));
        assert_eq!(rate.remaining(gone, now), 2);
        rate.give(gone, 100, now);
        assert_eq!(rate.remaining(gone, now), 5);
        assert!(!rate.take(gone, u64::MAX, now));
    }

    #[test]
    fn the_largest_rates_can_be_counted() {
        let most =
            Settings { max_tokens: u32::MAX, tokens_per_fill: u32::MAX, fill_interval: Duration::from_millis(50) };
        let bucket = TokenBucket::new(most);
        for days in [0, 1, 365, 1000] {
            assert!(bucket.take(Duration::from_secs(days * 86_400)), "after {days} days");
        }
    }

    proptest! {
        #[test]
        fn never_more_than_came(max in 0_u32..20, fill in 1_u32..20, steps in prop::collection::vec(0_u64..50, 1..40)) {
            let bucket = bucket(max, fill, 10);
            let (mut now, mut taken) = (0, 0_u64);
            for step in steps {
                now += step;
                taken += u64::from(bucket.take(Duration::from_secs(now)));
                let came = u64::from(max) + now * u64::from(fill) / 10;
                prop_assert!(taken <= came);
            }
        }
    }
}
