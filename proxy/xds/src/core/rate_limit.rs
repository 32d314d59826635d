//! The token bucket for outgoing discovery requests (`envoy.config.core.v3.RateLimitSettings`).
//!
//! Owns the tokens. Never sends or delays anything itself.

use std::time::{Duration, Instant};

/// Limit of discovery requests per stream. Source: `ApiConfigSource.rate_limit_settings`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// Size of the bucket in requests; at least 1 is used. Source: `max_tokens`.
    pub max_tokens: u32,
    /// Requests per second added to the bucket. Source: `fill_rate`.
    pub fill_rate: f64,
}

impl Default for RateLimit {
    /// What an empty `RateLimitSettings` message means.
    fn default() -> Self {
        Self { max_tokens: 100, fill_rate: 10.0 }
    }
}

#[derive(Debug)]
pub(crate) struct TokenBucket {
    limit: RateLimit,
    tokens: f64,
    filled_at: Option<Instant>,
}

/// Below this rate a bucket would in effect never refill; a configuration of 0 must not silence the client for ever.
const SLOWEST_FILL_RATE: f64 = 0.01;

impl TokenBucket {
    pub(crate) fn new(limit: RateLimit) -> Self {
        let limit = RateLimit {
            max_tokens: limit.max_tokens.max(1),
            fill_rate: if limit.fill_rate.is_finite() { limit.fill_rate.max(SLOWEST_FILL_RATE) } else { 10.0 },
        };
        Self { limit, tokens: f64::from(limit.max_tokens), filled_at: None }
    }

    /// When the next request may go out; `now` if at once.
    pub(crate) fn ready_at(&mut self, now: Instant) -> Instant {
        let since = self.filled_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.filled_at = Some(now);
        self.tokens = (self.tokens + since.as_secs_f64() * self.limit.fill_rate).min(f64::from(self.limit.max_tokens));
        let missing = 1.0 - self.tokens;
        if missing <= f64::EPSILON * 64.0 {
            return now;
        }
        // One microsecond more, so that rounding cannot make the caller wake up just before the token is whole.
        now + Duration::from_secs_f64(missing / self.limit.fill_rate) + Duration::from_micros(1)
    }

    /// Takes one token; call only when `ready_at` says `now`.
    pub(crate) fn take(&mut self) {
        self.tokens = (self.tokens - 1.0).max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_bucket_empties_and_refills_at_its_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(RateLimit { max_tokens: 2, fill_rate: 10.0 });
        for _ in 0..2 {
            assert_eq!(bucket.ready_at(start), start);
            bucket.take();
        }
        let ready = bucket.ready_at(start);
        assert!(ready > start + Duration::from_millis(99) && ready < start + Duration::from_millis(101));
        assert_eq!(bucket.ready_at(ready), ready);
    }

    #[test]
    fn a_zero_limit_does_not_silence_the_client() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(RateLimit { max_tokens: 0, fill_rate: 0.0 });
        assert_eq!(bucket.ready_at(start), start);
        bucket.take();
        assert!(bucket.ready_at(start) < start + Duration::from_secs(120));
    }
}
