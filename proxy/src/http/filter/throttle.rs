//! A body that goes on at a limited rate.
//!
//! Owns the allowance over time. Never decides which body is slow.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::body::BodyPace;

/// Bytes become free so often.
const TICK: Duration = Duration::from_millis(50);
/// What was not used for longer than this is lost.
const LONGEST_CREDIT: Duration = Duration::from_secs(1);

/// Lets so many bytes through in a second.
pub struct Throttle {
    rate: u64,
    /// From when on bytes became free, as if all that passed since had been used at once.
    start: Instant,
    passed: u64,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Throttle {
    /// A throttle that begins now, with what one tick allows; `rate` in bytes a second, at least 1.
    pub fn new(rate: u64, now: Instant) -> Self {
        Self { rate: rate.max(1), start: now, passed: 0, sleep: None }
    }

    fn free(&mut self, now: Instant) -> u64 {
        let ticks = now.saturating_duration_since(self.start).as_nanos() / TICK.as_nanos() + 1;
        let came = self.bytes_in(u32::try_from(ticks).unwrap_or(u32::MAX));
        let most = self.bytes_in((LONGEST_CREDIT.as_nanos() / TICK.as_nanos()) as u32);
        let free = came.saturating_sub(self.passed);
        if free > most {
            self.passed = came - most;
        }
        free.min(most)
    }

    fn bytes_in(&self, ticks: u32) -> u64 {
        let nanos = TICK.as_nanos() * u128::from(ticks);
        u64::try_from(u128::from(self.rate) * nanos / 1_000_000_000).unwrap_or(u64::MAX)
    }
}

impl BodyPace for Throttle {
    fn poll_allowance(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<usize> {
        loop {
            let now = Instant::now();
            let free = usize::try_from(self.free(now)).unwrap_or(usize::MAX);
            if free > 0 {
                return Poll::Ready(wanted.min(free));
            }
            let ticks = now.saturating_duration_since(self.start).as_nanos() / TICK.as_nanos() + 1;
            let next = self.start + TICK * u32::try_from(ticks).unwrap_or(u32::MAX);
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next)));
            if sleep.deadline() != next {
                sleep.as_mut().reset(next);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn passed(&mut self, count: usize) {
        self.passed += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn take(throttle: &mut Throttle, mut count: usize) -> Duration {
        let start = Instant::now();
        while count > 0 {
            let allowed = poll_fn(|cx| throttle.poll_allowance(cx, count)).await;
            throttle.passed(allowed);
            count -= allowed;
        }
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_at_the_rate_and_credit_does_not_pile_up() {
        let mut throttle = Throttle::new(1024, Instant::now());
        let took = take(&mut throttle, 1500).await;
        assert!((1400..=1460).contains(&took.as_millis()), "{took:?}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let took = take(&mut throttle, 2048).await;
        assert!((950..=1050).contains(&took.as_millis()), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn less_than_a_byte_a_tick_still_passes() {
        let mut throttle = Throttle::new(1, Instant::now());
        let took = take(&mut throttle, 2).await;
        assert!((1900..=2000).contains(&took.as_millis()), "{took:?}");
    }
}
