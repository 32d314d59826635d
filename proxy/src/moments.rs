//! When things happened to a stream.
//!
//! Owns the moments between a stream's beginning and its end, in the form that costs least: nanoseconds from the beginning.
//! Never reads a clock: who records a moment has looked at the clock anyway.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// A moment that is recorded. Those of a try are of the last one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Milestone {
    /// A try asked for a connection.
    UpstreamBegin,
    /// It got one.
    PoolReady,
    /// That connection was begun, maybe for an earlier request.
    ConnectBegin,
    /// It was connected, below TLS.
    Connected,
    /// Its TLS handshake was done.
    HandshakeEnd,
    /// The request head went upstream.
    UpstreamTxBegin,
    /// All of the request went upstream.
    UpstreamTxEnd,
    /// The first bytes of the response body came.
    ResponseBodyBegin,
    /// All of the response came.
    UpstreamRxEnd,
    /// The response head went downstream.
    DownstreamTxBegin,
    /// All of the response went downstream.
    DownstreamTxEnd,
}

const COUNT: usize = Milestone::DownstreamTxEnd as usize + 1;

/// The moments of one stream.
#[derive(Debug)]
pub struct Moments {
    /// Nanoseconds from the beginning; those before it are negative.
    offsets: [Cell<i64>; COUNT],
    /// Nanoseconds spent waiting for a place at an endpoint, over all tries.
    queued: Cell<u64>,
}

/// Those that each try has anew.
const OF_TRY: [Milestone; 6] = [
    Milestone::PoolReady,
    Milestone::ConnectBegin,
    Milestone::Connected,
    Milestone::HandshakeEnd,
    Milestone::UpstreamTxBegin,
    Milestone::UpstreamTxEnd,
];

/// The moments of one try.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TryMoments([i64; OF_TRY.len()]);

/// Stands for a moment that has not come.
const NEVER: i64 = i64::MIN;

impl Default for Moments {
    fn default() -> Self {
        Self { offsets: [const { Cell::new(NEVER) }; COUNT], queued: Cell::new(0) }
    }
}

impl Moments {
    /// Records a moment of a stream that began at `start`.
    pub fn set(&self, milestone: Milestone, start: Instant, at: Instant) {
        let offset = match at.checked_duration_since(start) {
            Some(after) => nanoseconds(after),
            None => -nanoseconds(start.duration_since(at)),
        };
        self.offsets[milestone as usize].set(offset);
    }

    /// Nanoseconds from the stream's beginning to a moment.
    pub fn offset(&self, milestone: Milestone) -> Option<i64> {
        Some(self.offsets[milestone as usize].get()).filter(|offset| *offset != NEVER)
    }

    /// What was the one moment is the other, too.
    pub fn copy(&self, from: Milestone, to: Milestone) {
        self.offsets[to as usize].set(self.offsets[from as usize].get());
    }

    /// A new try: what was recorded of the last one is no longer true.
    pub fn begin_try(&self) {
        self.set_try(TryMoments([NEVER; OF_TRY.len()]));
    }

    /// What is recorded of the try under way.
    pub fn of_try(&self) -> TryMoments {
        TryMoments(OF_TRY.map(|milestone| self.offsets[milestone as usize].get()))
    }

    /// Makes these the moments of the try under way.
    pub fn set_try(&self, TryMoments(offsets): TryMoments) {
        for (milestone, offset) in OF_TRY.into_iter().zip(offsets) {
            self.offsets[milestone as usize].set(offset);
        }
    }

    /// Adds a wait for a place at an endpoint.
    pub fn add_queued(&self, wait: Duration) {
        self.queued.set(self.queued.get().saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)));
    }

    /// How long the stream has waited for a place at an endpoint.
    pub fn queued(&self) -> Duration {
        Duration::from_nanos(self.queued.get())
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_lie_before_and_after_the_beginning() {
        let start = Instant::now() + Duration::from_secs(10);
        let moments = Moments::default();
        assert_eq!(moments.offset(Milestone::PoolReady), None);
        moments.set(Milestone::PoolReady, start, start + Duration::from_micros(3));
        moments.set(Milestone::ConnectBegin, start, start - Duration::from_secs(1));
        moments.set(Milestone::UpstreamRxEnd, start, start);
        assert_eq!(moments.offset(Milestone::PoolReady), Some(3_000));
        assert_eq!(moments.offset(Milestone::ConnectBegin), Some(-1_000_000_000));
        moments.begin_try();
        assert_eq!(moments.offset(Milestone::PoolReady), None);
        assert_eq!(moments.offset(Milestone::UpstreamRxEnd), Some(0));
    }
}
