//! A token bucket that threads share.
//!
//! Owns the count of tokens over time; taking one is one atomic exchange. Never reads a clock, and never waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outrigger_config::network::TokenBucket as Settings;

/// The tokens of one limit. They come one by one, evenly spread over the interval.
#[derive(Debug)]
pub struct TokenBucket {
    max_tokens: u64,
    tokens_per_fill: u64,
    interval_ns: u64,
    /// Of all tokens that ever came, the first filling included, how many were taken or did not fit.
    gone: AtomicU64,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(settings: Settings) -> Self {
        let Settings { max_tokens, tokens_per_fill, fill_interval } = settings;
        Self {
            max_tokens: max_tokens.into(),
            tokens_per_fill: tokens_per_fill.into(),
            interval_ns: u64::try_from(fill_interval.as_nanos()).unwrap_or(u64::MAX).max(1),
            gone: AtomicU64::new(0),
        }
    }

    /// Takes a token if there is one, `age` after the bucket was made.
    pub fn take(&self, age: Duration) -> bool {
        let filled = age.as_nanos().saturating_mul(self.tokens_per_fill.into()) / u128::from(self.interval_ns);
        let filled = u64::try_from(filled).unwrap_or(u64::MAX - self.max_tokens);
        let came = filled.saturating_add(self.max_tokens);
        let take = |gone: u64| {
            let gone = gone.max(came - self.max_tokens);
            (gone < came).then_some(gone + 1)
        };
        self.gone.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
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
