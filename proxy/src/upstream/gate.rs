//! The gate of a cluster that limits how many requests are in flight: places at endpoints, and who waits for one.
//!
//! Owns the counts that all workers share, the lock around the queue, and the waking of those whose turn it is. Never
//! picks an endpoint, and never decides who is next (see `outrigger_policy::queue`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use outrigger_policy::breaker::Permit;
use outrigger_policy::queue::{Discipline, Entry, Full, Lane, Queue, Ticket};
use tokio::sync::Notify;

use super::host::HostShared;

/// The gate of one cluster. Survives graph swaps.
///
/// The lock is taken only by requests that wait, and by those that end while somebody waits; for a few steps in memory,
/// never for anything that could itself wait.
#[derive(Debug, Default)]
pub struct Gate {
    in_flight: AtomicU32,
    waiting: AtomicU32,
    crowd: Mutex<Crowd>,
}

#[derive(Debug, Default)]
struct Crowd {
    queue: Queue,
    wake: HashMap<Ticket, Arc<Notify>>,
    /// As the newest configuration that a request came with says.
    discipline: Discipline,
}

impl Crowd {
    fn call(&self, tickets: Vec<Ticket>) {
        for notify in tickets.iter().filter_map(|ticket| self.wake.get(ticket)) {
            notify.notify_one();
        }
    }
}

impl Gate {
    /// Whether a request may look for a place without waiting its turn.
    pub fn is_clear(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0
    }

    /// Requests in flight or waiting.
    pub fn load(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed).saturating_add(self.waiting.load(Ordering::Relaxed))
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests that wait.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Requests that wait for this endpoint and no other.
    pub fn waiting_at(&self, host: &HostShared) -> u32 {
        if self.is_clear() { 0 } else { self.crowd().queue.len_at(endpoint(host)) }
    }

    /// Takes a place at an endpoint that has fewer than `limit` requests in flight. `permit` is given back with it, and
    /// `max_requests` is the limit that it was had within.
    pub fn enter(
        self: &Arc<Self>,
        host: &Arc<HostShared>,
        limit: Option<u32>,
        permit: Permit,
        max_requests: u32,
    ) -> Result<Place, Permit> {
        let within = |requests: u32| limit.is_none_or(|limit| requests < limit).then_some(requests + 1);
        if host.requests.fetch_update(Ordering::SeqCst, Ordering::SeqCst, within).is_err() {
            return Err(permit);
        }
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(Place { gate: Arc::clone(self), host: Arc::clone(host), permit: Some(permit), max_requests })
    }

    /// Joins the queue. Whoever is first is called at once: it must look for a place.
    ///
    /// # Errors
    /// When as many wait as may.
    pub fn join(self: &Arc<Self>, entry: Entry, discipline: Discipline, now: Instant) -> Result<Waiting, Full> {
        let notify = Arc::new(Notify::new());
        let mut crowd = self.crowd();
        crowd.discipline = discipline;
        let (ticket, called) = crowd.queue.join(entry, &discipline, now)?;
        crowd.wake.insert(ticket, Arc::clone(&notify));
        self.waiting.fetch_add(1, Ordering::SeqCst);
        crowd.call(called);
        drop(crowd);
        // Between this and the end of another request one sees the other: either it sees that somebody waits, or whoever
        // looks now sees its place.
        fence(Ordering::SeqCst);
        Ok(Waiting { gate: Arc::clone(self), ticket: Some(ticket), notify })
    }

    /// Limits or endpoints have changed: those who wait look again.
    pub fn kick(&self) {
        if self.is_clear() {
            return;
        }
        let mut crowd = self.crowd();
        let discipline = crowd.discipline;
        let called = crowd.queue.kick(&discipline, Instant::now());
        crowd.call(called);
    }

    fn freed(&self, endpoint: Option<u64>) {
        let mut crowd = self.crowd();
        let discipline = crowd.discipline;
        let called = crowd.queue.freed(endpoint, &discipline, Instant::now());
        crowd.call(called);
    }

    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        // Nothing under the lock can panic half-way through a change that matters to others.
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an endpoint is called in the queue. Whoever uses it holds the endpoint, so that no other can have its address.
fn endpoint(host: &HostShared) -> u64 {
    std::ptr::from_ref(host) as usize as u64
}

/// The lane of those who wait for one endpoint.
pub fn lane_of(host: &HostShared) -> Lane {
    Lane::Endpoint(endpoint(host))
}

/// A request in flight at an endpoint; the place is free when this is dropped.
#[derive(Debug)]
#[must_use = "the place is free when this is dropped"]
pub struct Place {
    gate: Arc<Gate>,
    host: Arc<HostShared>,
    permit: Option<Permit>,
    max_requests: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        let before = self.gate.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.permit = None;
        self.host.requests.fetch_sub(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if !self.gate.is_clear() {
            // Where the whole cluster was full, this helps those who wait for other endpoints, too.
            self.gate.freed((before < self.max_requests).then(|| endpoint(&self.host)));
        }
    }
}

/// A request that waits, until this is dropped.
#[derive(Debug)]
pub struct Waiting {
    gate: Arc<Gate>,
    ticket: Option<Ticket>,
    notify: Arc<Notify>,
}

impl Waiting {
    /// Ends when it is this request's turn to look for a place.
    pub async fn called(&self) {
        self.notify.notified().await;
    }

    /// It has found this place.
    pub fn served(mut self, place: &Place) {
        let endpoint = endpoint(&place.host);
        self.end(|queue, ticket, discipline| queue.served(ticket, endpoint, discipline, Instant::now()));
    }

    /// It has found no place, and waits on, in this lane.
    pub fn missed(&self, lane: Lane) {
        let Some(ticket) = self.ticket else { return };
        let mut crowd = self.gate.crowd();
        let discipline = crowd.discipline;
        let called = crowd.queue.missed(ticket, lane, &discipline, Instant::now());
        crowd.call(called);
    }

    fn end(&mut self, how: impl FnOnce(&mut Queue, Ticket, &Discipline) -> Vec<Ticket>) {
        let Some(ticket) = self.ticket.take() else { return };
        let mut crowd = self.gate.crowd();
        let discipline = crowd.discipline;
        let called = how(&mut crowd.queue, ticket, &discipline);
        crowd.wake.remove(&ticket);
        self.gate.waiting.fetch_sub(1, Ordering::SeqCst);
        crowd.call(called);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.end(|queue, ticket, discipline| queue.leave(ticket, discipline, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_policy::breaker::{Breaker, Resource};

    use super::*;

    const MAX_REQUESTS: u32 = 1000;

    struct Cluster {
        gate: Arc<Gate>,
        hosts: Vec<Arc<HostShared>>,
        breaker: Arc<Breaker>,
    }

    impl Cluster {
        fn new(hosts: usize) -> Self {
            Self {
                gate: Arc::default(),
                hosts: std::iter::repeat_with(Arc::default).take(hosts).collect(),
                breaker: Arc::default(),
            }
        }

        fn look(&self, limit: u32) -> Option<Place> {
            let mut permit = self.breaker.try_acquire(Resource::Request, MAX_REQUESTS)?;
            for host in &self.hosts {
                match self.gate.enter(host, Some(limit), permit, MAX_REQUESTS) {
                    Ok(place) => return Some(place),
                    Err(back) => permit = back,
                }
            }
            None
        }

        async fn pass(&self, limit: u32) -> Place {
            if self.gate.is_clear()
                && let Some(place) = self.look(limit)
            {
                return place;
            }
            let rules = Discipline { capacity: MAX_REQUESTS, ..Discipline::default() };
            let waiting = self.gate.join(Entry::default(), rules, Instant::now()).unwrap();
            loop {
                waiting.called().await;
                if let Some(place) = self.look(limit) {
                    waiting.served(&place);
                    return place;
                }
                waiting.missed(Lane::Any);
            }
        }
    }

    /// Eight runtimes as eight workers would be: never more in flight than the limits allow, and all are served.
    #[test]
    fn limits_are_exact_over_threads_and_nobody_is_forgotten() {
        const LIMIT: u32 = 2;
        let cluster = Cluster::new(3);
        let (now, highest) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for thread in 0..8_u64 {
                let (cluster, now, highest) = (&cluster, &now, &highest);
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    runtime.block_on(async {
                        for number in 0..500 {
                            let place = cluster.pass(LIMIT).await;
                            highest.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            if (number + thread) % 3 == 0 {
                                tokio::task::yield_now().await;
                            }
                            now.fetch_sub(1, Ordering::SeqCst);
                            drop(place);
                        }
                    });
                });
            }
        });
        assert!((1..=LIMIT * 3).contains(&highest.load(Ordering::SeqCst)), "{highest:?}");
        assert_eq!((cluster.gate.load(), cluster.breaker.usage(Resource::Request)), (0, 0));
        assert!(cluster.gate.crowd().queue.is_empty() && cluster.gate.crowd().wake.is_empty());
    }

    #[tokio::test]
    async fn who_gives_up_waiting_passes_the_turn_on() {
        let cluster = Cluster::new(1);
        let held = cluster.pass(1).await;
        let rules = Discipline { capacity: 2, ..Discipline::default() };
        let join = || cluster.gate.join(Entry::default(), rules, Instant::now());
        let (first, second) = (join().unwrap(), join().unwrap());
        assert_eq!(join().unwrap_err(), Full::Queue);
        first.called().await;
        first.missed(Lane::Any);
        assert_eq!((cluster.gate.waiting(), cluster.gate.in_flight()), (2, 1));
        drop(held);
        first.called().await;
        drop(first);
        second.called().await;
        second.served(&cluster.look(1).unwrap());
        assert_eq!(cluster.gate.load(), 0);
    }

    #[tokio::test]
    async fn a_change_of_limits_wakes_those_who_wait() {
        let cluster = Cluster::new(1);
        let held = cluster.pass(1).await;
        let rules = Discipline { capacity: 2, ..Discipline::default() };
        let waiting = cluster.gate.join(Entry::default(), rules, Instant::now()).unwrap();
        waiting.called().await;
        waiting.missed(lane_of(&cluster.hosts[0]));
        assert_eq!(cluster.gate.waiting_at(&cluster.hosts[0]), 1);
        let called = tokio::time::timeout(Duration::from_millis(1), waiting.called()).await;
        assert!(called.is_err());
        cluster.gate.kick();
        waiting.called().await;
        assert!(cluster.look(2).is_some());
        drop(held);
    }
}
