//! Requests of one cluster that wait for a place at an endpoint.
//!
//! Owns who waits, in which order they are served, and whose turn it is. Never counts places, wakes anybody or reads a
//! clock.
//!
//! ```text
//!          join               freed, kicked           served
//! (new) ----------> waiting ----------------> called --------> (gone)
//!                      ^                         |
//!                      +--------- missed --------+      left: (gone) from either
//! ```
//!
//! A request that is called looks for a place itself, because only a balancer knows which one it may have, and says what
//! came of it. Whoever finds no place goes back to where it stood, and the turn passes to those who may find another.
//! The laws that keep a place from staying free while somebody waits for it:
//!
//! - Who is the first in its lane is called at once: a place may have become free just before.
//! - Each freed place calls one request, or is remembered until there is one to be called.
//! - A sweep, which such a first request and any change of limits or of endpoints begins, calls one after the other until
//!   no lane finds a place any more.

mod flows;
mod limit;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use flows::Flows;
pub use limit::{Load, endpoint_limit};

/// Names one request while it waits.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ticket(u64);

/// Which places help a request. Requests of one lane are alike: if one finds no place, no other does.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Lane {
    /// One at any endpoint.
    #[default]
    Any,
    /// One within a part of the cluster, by the hash of what the request asks for.
    Part(u64),
    /// One at this endpoint.
    Endpoint(u64),
}

/// A request that is to wait.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    /// What it waits for.
    pub lane: Lane,
    /// Lower ones are served first.
    pub class: i32,
    /// Added to the time it came, in milliseconds.
    pub offset_ms: i64,
    /// Who sent it, where callers are served in turn.
    pub caller: Option<u64>,
}

/// Who is served first among those of a class.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Order {
    /// Who came first.
    #[default]
    Arrival,
    /// Callers in turn.
    Fair,
}

/// How a queue is kept. May change from one call to the next, since configuration may.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Discipline {
    /// The order within a class.
    pub order: Order,
    /// While somebody has waited for so long without a break, who came last is served first.
    pub newest_first_after: Option<Duration>,
    /// How many may wait.
    pub capacity: u32,
    /// How many may wait for one endpoint.
    pub endpoint_capacity: Option<u32>,
}

/// Why a request cannot wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Full {
    /// As many wait as may.
    Queue,
    /// As many wait for its endpoint as may; it may ask for any.
    Endpoint,
}

/// Class, then rank within it, then the order of joining.
type Key = (i32, i64, u64);

#[derive(Debug)]
struct Waiting {
    lane: Lane,
    key: Key,
    caller: Option<u64>,
    called: bool,
}

/// The queue of one cluster.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: HashMap<Ticket, Waiting>,
    /// Those that are not called, by lane. Empty lanes are gone.
    lanes: BTreeMap<Lane, BTreeMap<Key, Ticket>>,
    /// How many wait in each lane, called ones too.
    in_lane: HashMap<Lane, u32>,
    flows: Flows,
    joined: u64,
    /// Where the times of entries are counted from.
    epoch: Option<Instant>,
    /// Since when the queue has not been empty.
    busy_since: Option<Instant>,
    /// Freed places that nobody could be called for.
    spare: u32,
    /// One is called after the other until nobody finds a place.
    sweeping: bool,
    /// Lanes that found no place since one was freed last.
    missed: Vec<Lane>,
}

impl Queue {
    /// Adds a request. The second ticket, which may be the same, is called.
    ///
    /// # Errors
    /// When as many wait as may.
    pub fn join(
        &mut self,
        entry: Entry,
        discipline: &Discipline,
        now: Instant,
    ) -> Result<(Ticket, Option<Ticket>), Full> {
        if self.waiting.len() >= discipline.capacity as usize {
            return Err(Full::Queue);
        }
        let in_lane = self.in_lane.get(&entry.lane).copied().unwrap_or(0);
        if matches!(entry.lane, Lane::Endpoint(_)) && discipline.endpoint_capacity.is_some_and(|limit| in_lane >= limit)
        {
            return Err(Full::Endpoint);
        }
        self.in_lane.insert(entry.lane, in_lane + 1);
        if self.waiting.is_empty() {
            self.busy_since = Some(now);
        }
        let first = in_lane == 0;
        if first {
            self.sweeping = true;
            self.missed.retain(|lane| *lane != entry.lane);
        }
        let epoch = *self.epoch.get_or_insert(now);
        let rank = match discipline.order {
            Order::Arrival => {
                let since = now.saturating_duration_since(epoch).as_micros();
                i64::try_from(since).unwrap_or(i64::MAX).saturating_add(entry.offset_ms.saturating_mul(1000))
            }
            Order::Fair => self.flows.join(entry.caller),
        };
        self.joined += 1;
        let ticket = Ticket(self.joined);
        let key = (entry.class, rank, self.joined);
        let caller = entry.caller.filter(|_| discipline.order == Order::Fair);
        self.waiting.insert(ticket, Waiting { lane: entry.lane, key, caller, called: false });
        self.lanes.entry(entry.lane).or_default().insert(key, ticket);
        let called = if first {
            self.call(ticket)
        } else if self.spare > 0 && !self.missed.contains(&entry.lane) {
            self.spare -= 1;
            self.call_next(None, discipline, now)
        } else {
            None
        };
        Ok((ticket, called))
    }

    /// A place has become free: at `endpoint`, or one that helps all. Whoever is returned is called.
    pub fn freed(&mut self, endpoint: Option<u64>, discipline: &Discipline, now: Instant) -> Option<Ticket> {
        let helped = |lane: &Lane| match (lane, endpoint) {
            (Lane::Endpoint(own), Some(endpoint)) => *own == endpoint,
            _ => true,
        };
        self.missed.retain(|lane| !helped(lane));
        let called = self.call_next(endpoint, discipline, now);
        if called.is_none() && !self.waiting.is_empty() {
            self.spare = self.spare.saturating_add(1);
        }
        called
    }

    /// Limits or endpoints have changed, so that there may be any number of places. Whoever is returned is called.
    pub fn kick(&mut self, discipline: &Discipline, now: Instant) -> Option<Ticket> {
        self.missed.clear();
        self.sweeping = true;
        self.call_next(None, discipline, now)
    }

    /// A called request has taken a place. Whoever is returned is called next.
    pub fn served(&mut self, ticket: Ticket, discipline: &Discipline, now: Instant) -> Option<Ticket> {
        let waiting = self.remove(ticket)?;
        self.flows.served(waiting.key.1, waiting.caller);
        if self.sweeping { self.call_next(None, discipline, now) } else { None }
    }

    /// A called request has found no place, and waits on where it stood, maybe in another lane. Whoever is returned is
    /// called, maybe itself.
    pub fn missed(&mut self, ticket: Ticket, lane: Lane, discipline: &Discipline, now: Instant) -> Option<Ticket> {
        let waiting = self.waiting.get_mut(&ticket)?;
        waiting.called = false;
        let key = waiting.key;
        let old = std::mem::replace(&mut waiting.lane, lane);
        if old != lane {
            self.leave_lane(old);
            *self.in_lane.entry(lane).or_default() += 1;
        }
        self.lanes.entry(lane).or_default().insert(key, ticket);
        if self.spare > 0 {
            // One was freed while it looked.
            self.spare -= 1;
        } else if !self.missed.contains(&lane) {
            self.missed.push(lane);
        }
        let called = self.call_next(None, discipline, now);
        self.sweeping &= called.is_some();
        called
    }

    /// A request waits no longer. If it was called, its turn passes to whoever is returned.
    pub fn leave(&mut self, ticket: Ticket, discipline: &Discipline, now: Instant) -> Option<Ticket> {
        let waiting = self.remove(ticket)?;
        self.flows.left(waiting.caller);
        if waiting.called { self.call_next(None, discipline, now) } else { None }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many wait for this endpoint and no other.
    pub fn len_at(&self, endpoint: u64) -> u32 {
        self.in_lane.get(&Lane::Endpoint(endpoint)).copied().unwrap_or(0)
    }

    fn call(&mut self, ticket: Ticket) -> Option<Ticket> {
        let waiting = self.waiting.get_mut(&ticket)?;
        waiting.called = true;
        let lane = self.lanes.get_mut(&waiting.lane)?;
        lane.remove(&waiting.key);
        if lane.is_empty() {
            self.lanes.remove(&waiting.lane);
        }
        Some(ticket)
    }

    /// Calls the first of those who may find a place: where `endpoint` is given, a place there.
    fn call_next(&mut self, endpoint: Option<u64>, discipline: &Discipline, now: Instant) -> Option<Ticket> {
        let newest_first = discipline
            .newest_first_after
            .is_some_and(|after| self.busy_since.is_some_and(|since| now.saturating_duration_since(since) >= after));
        let fits = |lane: &Lane| match (lane, endpoint) {
            (Lane::Endpoint(own), Some(endpoint)) => *own == endpoint,
            _ => true,
        };
        let heads = self.lanes.iter().filter(|(lane, _)| fits(lane) && !self.missed.contains(lane));
        let ticket = if newest_first {
            // The last one of each lane's lowest class.
            heads
                .filter_map(|(_, lane)| {
                    let class = lane.first_key_value()?.0.0;
                    lane.range(..=(class, i64::MAX, u64::MAX)).next_back()
                })
                .min_by_key(|((class, rank, joined), _)| (*class, std::cmp::Reverse((*rank, *joined))))
        } else {
            heads.filter_map(|(_, lane)| lane.first_key_value()).min_by_key(|(key, _)| **key)
        };
        let ticket = *ticket?.1;
        self.call(ticket)
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Waiting> {
        let waiting = self.waiting.remove(&ticket)?;
        if !waiting.called
            && let Some(lane) = self.lanes.get_mut(&waiting.lane)
        {
            lane.remove(&waiting.key);
            if lane.is_empty() {
                self.lanes.remove(&waiting.lane);
            }
        }
        self.leave_lane(waiting.lane);
        if self.waiting.is_empty() {
            // Nothing that was true of the last crowd need be true of the next.
            *self = Self { joined: self.joined, epoch: self.epoch, ..Self::default() };
        }
        Some(waiting)
    }

    fn leave_lane(&mut self, lane: Lane) {
        if let Some(in_lane) = self.in_lane.get_mut(&lane) {
            *in_lane -= 1;
            if *in_lane == 0 {
                self.in_lane.remove(&lane);
            }
        }
    }
}

#[cfg(test)]
mod tests;
