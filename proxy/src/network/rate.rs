//! A limit on connections in a time (`envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit`).
//!
//! Owns the bucket of a filter, and which filters share one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Instant;

use outrigger_config::network::{LocalRateLimit, TokenBucket as Settings};
use outrigger_policy::token_bucket::TokenBucket;

use super::{Refusal, holds};
use crate::stats::names;
use crate::stream::ResponseFlag;
use crate::worker::Worker;

/// A filter with its bucket.
pub struct RateFilter {
    config: Arc<LocalRateLimit>,
    prefix: Arc<str>,
    bucket: OnceLock<Arc<Bucket>>,
}

struct Bucket {
    tokens: TokenBucket,
    made: Instant,
}

impl Bucket {
    fn new(settings: Settings) -> Self {
        Self { tokens: TokenBucket::new(settings), made: Instant::now() }
    }
}

/// The buckets that several filters may use.
#[derive(Default)]
pub struct SharedBuckets(Mutex<Buckets>);

/// By key and settings.
type Buckets = HashMap<(Arc<str>, Settings), Weak<Bucket>>;

impl SharedBuckets {
    fn get(&self, key: &Arc<str>, settings: Settings) -> Arc<Bucket> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.retain(|_, bucket| bucket.strong_count() > 0);
        let place = buckets.entry((Arc::clone(key), settings)).or_default();
        place.upgrade().unwrap_or_else(|| {
            let bucket = Arc::new(Bucket::new(settings));
            *place = Arc::downgrade(&bucket);
            bucket
        })
    }
}

impl RateFilter {
    pub(super) fn new(config: Arc<LocalRateLimit>) -> Self {
        let prefix = names::prefix("local_rate_limit", &config.stat_prefix).into();
        let bucket = OnceLock::new();
        if config.share_key.is_none() {
            // It was made just now, so it is empty.
            let _ = bucket.set(Arc::new(Bucket::new(config.bucket)));
        }
        Self { config, prefix, bucket }
    }

    /// Takes a token for a connection.
    pub(super) fn check(&self, worker: &Worker) -> Result<(), Refusal> {
        if !holds(&self.config.enabled, &worker.graph().runtime) {
            return Ok(());
        }
        let bucket = self.bucket.get_or_init(|| match &self.config.share_key {
            Some(key) => worker.process.buckets.get(key, self.config.bucket),
            None => Arc::new(Bucket::new(self.config.bucket)),
        });
        if bucket.tokens.take(bucket.made.elapsed()) {
            return Ok(());
        }
        worker.network.rate.get(&worker.process.stats, &self.prefix).rate_limited.increment();
        Err(Refusal { flag: Some(ResponseFlag::UpstreamRetryLimitExceeded), ..Refusal::default() })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn filters_share_what_has_the_same_key_and_settings() {
        let settings = |max_tokens| Settings { max_tokens, tokens_per_fill: 1, fill_interval: Duration::from_secs(60) };
        let buckets = SharedBuckets::default();
        let (a, b) = (Arc::from("a"), Arc::from("b"));
        let first = buckets.get(&a, settings(1));
        assert!(Arc::ptr_eq(&first, &buckets.get(&a, settings(1))));
        assert!(!Arc::ptr_eq(&first, &buckets.get(&a, settings(2))));
        assert!(!Arc::ptr_eq(&first, &buckets.get(&b, settings(1))));
        assert!(first.tokens.take(Duration::ZERO));
        drop(first);
        assert!(buckets.get(&a, settings(1)).tokens.take(Duration::ZERO), "nobody used it any more");
    }
}
