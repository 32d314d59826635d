//! The random part of time limits that are longer for one connection than for another.
//!
//! Owns how it is drawn: from the connection's id, so that nothing has to be remembered. Never ends a connection.

use std::time::Duration;

use outrigger_config::units::Percent;
use outrigger_policy::balance::xx_hash;

/// `limit` and a part of it below `jitter`, the same for all limits of a connection.
pub fn lengthened(limit: Duration, jitter: Option<Percent>, connection: u64) -> Duration {
    let Some(jitter) = jitter else { return limit };
    let share = (xx_hash(&connection.to_le_bytes()) >> 32) as f64 / f64::from(u32::MAX);
    limit + limit.mul_f64(jitter.value() / 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_one_age_do_not_end_at_once() {
        let limit = Duration::from_secs(100);
        assert_eq!(lengthened(limit, None, 7), limit);
        let jitter = Percent::new(20.0);
        let ends: Vec<Duration> = (0..1000).map(|id| lengthened(limit, jitter, id)).collect();
        assert!(ends.iter().all(|end| (limit..=limit + limit / 5).contains(end)));
        let early = ends.iter().filter(|end| **end < limit + limit / 10).count();
        assert!((400..600).contains(&early), "{early} of 1000 in the first half");
    }
}
