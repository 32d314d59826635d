//! Protection from clients that open streams only to reset them.
//!
//! Owns the verdict on the streams of one connection. Never ends the connection itself.

use std::time::Duration;

use crate::http::h2::server::Ending;

/// Half of so many streams may be reset before their time, however few there were.
const FIRST_STREAMS: u32 = 500;
/// A stream that lived as long was not reset before its time.
const LIFETIME: Duration = Duration::from_secs(2);

/// The streams of a connection that have ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Resets {
    ended: u32,
    premature: u32,
}

impl Resets {
    /// Counts a stream that has ended after `lifetime`; `responded` if it had a response head by then.
    #[must_use]
    pub fn with(self, ending: Ending, responded: bool, lifetime: Duration) -> Self {
        let premature = ending == Ending::ResetByClient && !responded && lifetime < LIFETIME;
        Self { ended: self.ended.saturating_add(1), premature: self.premature.saturating_add(u32::from(premature)) }
    }

    /// Whether they are too many: half of all streams, of which there are taken to be 500 at least.
    pub fn are_a_flood(self) -> bool {
        self.premature.saturating_mul(2) >= self.ended.max(FIRST_STREAMS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(reset: u32, whole: u32) -> Resets {
        let mut resets = Resets::default();
        for _ in 0..whole {
            resets = resets.with(Ending::Whole, true, Duration::ZERO);
        }
        for _ in 0..reset {
            resets = resets.with(Ending::ResetByClient, false, Duration::ZERO);
        }
        resets
    }

    #[test]
    fn half_of_the_first_streams_may_not_be_reset() {
        assert!(!after(249, 0).are_a_flood());
        assert!(after(250, 0).are_a_flood());
        assert!(after(250, 250).are_a_flood());
    }

    #[test]
    fn a_client_that_mostly_waits_for_its_answers_goes_on() {
        assert!(!after(400, 401).are_a_flood());
        assert!(after(400, 400).are_a_flood());
    }

    #[test]
    fn what_was_answered_or_took_its_time_was_not_reset_before_its_time() {
        let mut resets = Resets::default();
        for _ in 0..1000 {
            resets = resets.with(Ending::ResetByClient, true, Duration::ZERO);
            resets = resets.with(Ending::ResetByClient, false, LIFETIME);
            resets = resets.with(Ending::ConnectionLost, false, Duration::ZERO);
        }
        assert!(!resets.are_a_flood());
    }
}
