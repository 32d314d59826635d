//! Circuit breakers (`CircuitBreakers.Thresholds`): how much of a cluster is in use.
//!
//! Owns the counts that all workers share, one set for each cluster and priority. They never exceed a limit, whatever
//! happens at the same time. Limits come with each request, because a request keeps the configuration it began with.

mod window;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use outrigger_config::cluster::{RetryBudget, Thresholds};

use window::Window;

/// What is counted.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Resource {
    /// Connections to all hosts (`max_connections`).
    Connection,
    /// Requests waiting for a connection (`max_pending_requests`).
    PendingRequest,
    /// Requests in flight (`max_requests`).
    Request,
    /// Retries in flight (`max_retries` or `retry_budget`).
    Retry,
}

/// The usage of one cluster at one priority. Written and read by all workers; nothing is ever locked.
#[derive(Debug, Default)]
pub struct Breaker {
    usage: [AtomicU32; 4],
    /// Where a retry budget goes by the requests of a time.
    began: OnceLock<Box<Window>>,
}

impl Breaker {
    /// Counts one more use, unless `limit` is reached. It is given back when the permit is dropped.
    pub fn try_acquire(self: &Arc<Self>, resource: Resource, limit: u32) -> Option<Permit> {
        // Only the count itself must be exact; it guards no other memory.
        let counted = |usage: u32| (usage < limit).then(|| usage + 1);
        self.count(resource).fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted).ok()?;
        Some(Permit { breaker: Arc::clone(self), resource })
    }

    /// As [`Self::try_acquire`], with the limit that `thresholds` give. Not for retries (see [`Self::try_retry`]).
    pub fn try_acquire_within(self: &Arc<Self>, resource: Resource, thresholds: &Thresholds) -> Option<Permit> {
        self.try_acquire(resource, self.limit(resource, thresholds, 0))
    }

    /// Counts one more retry, unless as many as `thresholds` allow at `now` are in flight.
    pub fn try_retry(self: &Arc<Self>, thresholds: &Thresholds, now: u64) -> Option<Permit> {
        self.try_acquire(Resource::Retry, self.limit(Resource::Retry, thresholds, now))
    }

    /// A request has begun at `now`, in milliseconds of any clock; for budgets that go by the requests of a time.
    pub fn began(&self, interval: Duration, now: u64) {
        self.began.get_or_init(Box::default).count(interval, now);
    }

    /// Counts one more use whatever the limit: for the one connection that a worker may always have, so that a limit
    /// smaller than the number of workers does not starve some of them.
    pub fn acquire_beyond_limit(self: &Arc<Self>, resource: Resource) -> Permit {
        let count = self.count(resource);
        // Saturates instead of wrapping to 0, which would let everybody in.
        let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |usage| usage.checked_add(1));
        Permit { breaker: Arc::clone(self), resource }
    }

    /// How many uses there are.
    pub fn usage(&self, resource: Resource) -> u32 {
        self.count(resource).load(Ordering::Relaxed)
    }

    /// How many more uses `thresholds` allow at `now` (`remaining_*` gauges).
    pub fn remaining(&self, resource: Resource, thresholds: &Thresholds, now: u64) -> u32 {
        self.limit(resource, thresholds, now).saturating_sub(self.usage(resource))
    }

    /// Whether no further use is allowed at `now` (`*_open` gauges).
    pub fn is_open(&self, resource: Resource, thresholds: &Thresholds, now: u64) -> bool {
        self.remaining(resource, thresholds, now) == 0
    }

    /// The limit that `thresholds` give. A retry budget is a share of the requests active or pending at this moment, or of
    /// those that began within its interval before `now`, which nothing else asks for.
    pub fn limit(&self, resource: Resource, thresholds: &Thresholds, now: u64) -> u32 {
        match (resource, thresholds.retry_budget) {
            (Resource::Connection, _) => thresholds.max_connections,
            (Resource::PendingRequest, _) => thresholds.max_pending_requests,
            (Resource::Request, _) => thresholds.max_requests,
            (Resource::Retry, None) => thresholds.max_retries,
            (Resource::Retry, Some(RetryBudget { budget, min_retry_concurrency, interval })) => {
                let considered = match interval {
                    None => self.usage(Resource::Request).saturating_add(self.usage(Resource::PendingRequest)),
                    Some(interval) => self.began.get().map_or(0, |began| began.sum(interval, now)),
                };
                let share = f64::from(considered) * budget.value() / 100.0;
                min_retry_concurrency.max(share as u32)
            }
        }
    }

    fn count(&self, resource: Resource) -> &AtomicU32 {
        &self.usage[match resource {
            Resource::Connection => 0,
            Resource::PendingRequest => 1,
            Resource::Request => 2,
            Resource::Retry => 3,
        }]
    }
}

/// One use of a [`Breaker`], which ends when this is dropped.
#[derive(Debug)]
#[must_use = "the use ends when the permit is dropped"]
pub struct Permit {
    breaker: Arc<Breaker>,
    resource: Resource,
}

impl Permit {
    /// What was permitted.
    pub fn resource(&self) -> Resource {
        self.resource
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.breaker.count(self.resource).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::units::Percent;

    use super::*;

    fn thresholds() -> Thresholds {
        Thresholds {
            max_connections: 1,
            max_pending_requests: 2,
            max_requests: 1024,
            max_retries: 3,
            track_remaining: false,
            retry_budget: None,
        }
    }

    #[test]
    fn each_resource_has_its_own_limit() {
        let breaker = Arc::new(Breaker::default());
        let first = breaker.try_acquire_within(Resource::Connection, &thresholds()).unwrap();
        assert!(breaker.try_acquire_within(Resource::Connection, &thresholds()).is_none());
        assert!(breaker.is_open(Resource::Connection, &thresholds(), 0));
        let pending: Vec<_> =
            (0..5).filter_map(|_| breaker.try_acquire_within(Resource::PendingRequest, &thresholds())).collect();
        assert_eq!((pending.len(), breaker.remaining(Resource::PendingRequest, &thresholds(), 0)), (2, 0));
        let beyond = breaker.acquire_beyond_limit(Resource::Connection);
        assert_eq!(breaker.usage(Resource::Connection), 2);
        drop((first, beyond, pending));
        assert_eq!(breaker.usage(Resource::Connection) + breaker.usage(Resource::PendingRequest), 0);
        assert!(breaker.try_acquire(Resource::Request, 0).is_none());
    }

    #[test]
    fn a_lower_limit_takes_effect_at_once() {
        let breaker = Arc::new(Breaker::default());
        let mut held: Vec<_> = (0..10).map(|_| breaker.try_acquire(Resource::Request, 10).unwrap()).collect();
        assert!(breaker.try_acquire(Resource::Request, 5).is_none());
        held.truncate(4);
        assert!(breaker.try_acquire(Resource::Request, 5).is_some());
    }

    #[test]
    fn a_retry_budget_follows_the_active_requests() {
        let budget = RetryBudget { budget: Percent::new(20.0).unwrap(), min_retry_concurrency: 3, interval: None };
        let thresholds = Thresholds { retry_budget: Some(budget), max_retries: 0, ..thresholds() };
        let breaker = Arc::new(Breaker::default());
        assert_eq!(breaker.limit(Resource::Retry, &thresholds, 0), 3);
        let requests: Vec<_> = (0..30).map(|_| breaker.try_acquire(Resource::Request, 100).unwrap()).collect();
        let pending: Vec<_> = (0..19).map(|_| breaker.try_acquire(Resource::PendingRequest, 100).unwrap()).collect();
        assert_eq!(breaker.limit(Resource::Retry, &thresholds, 0), 9);
        let retries: Vec<_> = (0..20).filter_map(|_| breaker.try_retry(&thresholds, 0)).collect();
        assert_eq!(retries.len(), 9);
        drop((requests, pending));
        assert_eq!(breaker.limit(Resource::Retry, &thresholds, 0), 3);
    }

    #[test]
    fn a_retry_budget_may_consider_requests_that_are_over() {
        let interval = Duration::from_secs(1);
        let budget =
            RetryBudget { budget: Percent::new(20.0).unwrap(), min_retry_concurrency: 0, interval: Some(interval) };
        let thresholds = Thresholds { retry_budget: Some(budget), ..thresholds() };
        let breaker = Arc::new(Breaker::default());
        assert!(breaker.try_retry(&thresholds, 5000).is_none());
        (0..10).for_each(|_| breaker.began(interval, 5000));
        assert_eq!([5000, 6000, 7000].map(|now| breaker.limit(Resource::Retry, &thresholds, now)), [2, 2, 0]);
        let held = [5500, 5600, 5700].map(|now| breaker.try_retry(&thresholds, now));
        assert_eq!(held.map(|permit| permit.is_some()), [true, true, false]);
    }

    #[test]
    fn the_limit_holds_across_threads() {
        const LIMIT: u32 = 5;
        let breaker = Arc::new(Breaker::default());
        let (held, highest) = (AtomicU32::new(0), AtomicU32::new(0));
        let admitted: u32 = std::thread::scope(|scope| {
            let work = || {
                let mut admitted = 0;
                for _ in 0..20_000 {
                    if let Some(permit) = breaker.try_acquire(Resource::Request, LIMIT) {
                        let now = held.fetch_add(1, Ordering::SeqCst) + 1;
                        highest.fetch_max(now, Ordering::SeqCst);
                        std::hint::spin_loop();
                        held.fetch_sub(1, Ordering::SeqCst);
                        drop(permit);
                        admitted += 1;
                    }
                }
                admitted
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(admitted > 20_000 && highest.load(Ordering::SeqCst) <= LIMIT);
        assert_eq!(breaker.usage(Resource::Request), 0);
    }

    #[test]
    fn exactly_the_limit_is_admitted_when_nothing_is_given_back() {
        let breaker = Arc::new(Breaker::default());
        let permits: usize = std::thread::scope(|scope| {
            let work = || (0..1000).filter_map(|_| breaker.try_acquire(Resource::Request, 777)).collect::<Vec<_>>();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
            let held: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            held.iter().map(Vec::len).sum()
        });
        assert_eq!(permits, 777);
    }
}
