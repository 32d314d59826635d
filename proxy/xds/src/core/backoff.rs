//! How long to wait before the next connection attempt.
//!
//! Owns the number of failures in a row. Never sleeps, and takes its randomness as an argument.

use std::time::Duration;

/// Exponential backoff with full jitter: a uniformly random share of a bound that doubles with each failure.
#[derive(Clone, Debug)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The bound of the first wait.
    pub const BASE: Duration = Duration::from_millis(500);
    /// The largest bound.
    pub const CAP: Duration = Duration::from_secs(30);

    /// A backoff without failures.
    #[must_use]
    pub fn new() -> Self {
        Self { failures: 0 }
    }

    /// The wait before the next attempt; `jitter` is uniformly random in `0.0..1.0`.
    pub fn next_delay(&mut self, jitter: f64) -> Duration {
        // 500 ms doubled six times is past the cap already, so larger exponents need not be computed.
        let bound = Self::BASE.saturating_mul(1 << self.failures.min(6)).min(Self::CAP);
        self.failures = self.failures.saturating_add(1);
        let share = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 1.0 };
        bound.mul_f64(share)
    }

    /// Starts over; called at the first response on a stream.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap_and_starts_over() {
        let mut backoff = Backoff::new();
        let bounds: Vec<u128> = (0..9).map(|_| backoff.next_delay(1.0).as_millis()).collect();
        assert_eq!(bounds, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        backoff.reset();
        assert_eq!(backoff.next_delay(0.5), Duration::from_millis(250));
        assert_eq!(backoff.next_delay(0.0), Duration::ZERO);
        assert_eq!(backoff.next_delay(f64::NAN), Duration::from_secs(2));
    }
}
