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
//! came of it. Requests of one lane are alike: if one finds no place, no other does, and the lane is closed. The laws that
//! keep a place from staying free while somebody waits for it:
//!
//! - In an open lane somebody is called, one after the other, until one finds no place. New lanes are open, and a change of
//!   limits or of endpoints opens all.
//! - A freed place calls the first whom it may help, in a closed lane too, and does not open the lane: there is this one
//!   place. Where nobody is there to be called, the lanes that it helps are opened.
//! - Who was called for a place and finds none opens the other lanes; who leaves, or found another place, passes the call on.
//! - Who finds no place looks again if one became free since it was called.

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
    call: Option<Call>,
}

/// Somebody is to look for a place.
#[derive(Clone, Copy, Debug)]
struct Call {
    /// For this place that became free, rather than to find out.
    freed: Option<Freed>,
    /// The events before it.
    events: u64,
}

/// A place that became free: at this endpoint, or one that helps all.
type Freed = Option<u64>;

/// Those who wait for the same. Gone when nobody does.
#[derive(Debug)]
struct Line {
    uncalled: BTreeMap<Key, Ticket>,
    called: u32,
    /// There may be places that nobody has looked for.
    open: bool,
}

/// The queue of one cluster.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: HashMap<Ticket, Waiting>,
    lines: BTreeMap<Lane, Line>,
    flows: Flows,
    joined: u64,
    /// Places freed, and changes of limits or endpoints.
    events: u64,
    /// Where the times of entries are counted from.
    epoch: Option<Instant>,
    /// Since when the queue has not been empty.
    busy_since: Option<Instant>,
}

impl Queue {
    /// Adds a request. Those in the list are called; it may be among them.
    ///
    /// # Errors
    /// When as many wait as may.
    pub fn join(&mut self, entry: Entry, discipline: &Discipline, now: Instant) -> Result<(Ticket, Vec<Ticket>), Full> {
        if self.waiting.len() >= discipline.capacity as usize {
            return Err(Full::Queue);
        }
        if let Lane::Endpoint(endpoint) = entry.lane
            && discipline.endpoint_capacity.is_some_and(|limit| self.len_at(endpoint) >= limit)
        {
            return Err(Full::Endpoint);
        }
        if self.waiting.is_empty() {
            self.busy_since = Some(now);
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
        self.waiting.insert(ticket, Waiting { lane: entry.lane, key, caller, call: None });
        self.line(entry.lane).uncalled.insert(key, ticket);
        Ok((ticket, self.settle(discipline, now)))
    }

    /// A place has become free: at `endpoint`, or one that helps all. Those in the list are called.
    pub fn freed(&mut self, endpoint: Freed, discipline: &Discipline, now: Instant) -> Vec<Ticket> {
        self.events += 1;
        let helps = |lane: &Lane| match (lane, endpoint) {
            (Lane::Endpoint(own), Some(endpoint)) => *own == endpoint,
            _ => true,
        };
        let first = self.first_of(helps, discipline, now);
        match first {
            Some(ticket) => self.call(ticket, Some(endpoint)),
            None => self.lines.iter_mut().filter(|(lane, _)| helps(lane)).for_each(|(_, line)| line.open = true),
        }
        let mut called = self.settle(discipline, now);
        called.extend(first);
        called
    }

    /// Limits or endpoints have changed, so that there may be any number of places. Those in the list are called.
    pub fn kick(&mut self, discipline: &Discipline, now: Instant) -> Vec<Ticket> {
        self.events += 1;
        self.lines.values_mut().for_each(|line| line.open = true);
        self.settle(discipline, now)
    }

    /// A called request has taken a place at `endpoint`. Those in the list are called.
    pub fn served(&mut self, ticket: Ticket, endpoint: u64, discipline: &Discipline, now: Instant) -> Vec<Ticket> {
        let Some(waiting) = self.remove(ticket) else { return Vec::new() };
        self.flows.served(waiting.key.1, waiting.caller);
        match waiting.call.and_then(|call| call.freed) {
            // It found another place than the one that it was called for.
            Some(Some(freed)) if freed != endpoint => self.freed(Some(freed), discipline, now),
            _ => self.settle(discipline, now),
        }
    }

    /// A called request has found no place, and waits on where it stood, maybe in another lane. Those in the list are
    /// called; it may be among them.
    pub fn missed(&mut self, ticket: Ticket, lane: Lane, discipline: &Discipline, now: Instant) -> Vec<Ticket> {
        let Some(waiting) = self.waiting.get_mut(&ticket) else { return Vec::new() };
        let Some(Call { freed, events }) = waiting.call.take() else { return Vec::new() };
        let (old, key) = (std::mem::replace(&mut waiting.lane, lane), waiting.key);
        if let Some(line) = self.lines.get_mut(&old) {
            line.called -= 1;
        }
        let is_current = events == self.events;
        let line = self.line(lane);
        line.uncalled.insert(key, ticket);
        line.open = !is_current;
        if freed.is_some() {
            self.lines.iter_mut().filter(|(other, _)| **other != lane).for_each(|(_, line)| line.open = true);
        }
        self.lines.retain(|_, line| line.called > 0 || !line.uncalled.is_empty());
        self.settle(discipline, now)
    }

    /// A request waits no longer. If it was called, its turn passes to those in the list.
    pub fn leave(&mut self, ticket: Ticket, discipline: &Discipline, now: Instant) -> Vec<Ticket> {
        let Some(waiting) = self.remove(ticket) else { return Vec::new() };
        self.flows.left(waiting.caller);
        match waiting.call.and_then(|call| call.freed) {
            Some(endpoint) => self.freed(endpoint, discipline, now),
            None => self.settle(discipline, now),
        }
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
        let line = self.lines.get(&Lane::Endpoint(endpoint));
        line.map_or(0, |line| line.called.saturating_add(u32::try_from(line.uncalled.len()).unwrap_or(u32::MAX)))
    }

    fn line(&mut self, lane: Lane) -> &mut Line {
        self.lines.entry(lane).or_insert_with(|| Line { uncalled: BTreeMap::new(), called: 0, open: true })
    }

    /// Calls the first of each open lane in which nobody is called.
    fn settle(&mut self, discipline: &Discipline, now: Instant) -> Vec<Ticket> {
        let mut called = Vec::new();
        let idle = |line: &Line| line.open && line.called == 0 && !line.uncalled.is_empty();
        let lanes: Vec<Lane> = self.lines.iter().filter(|(_, line)| idle(line)).map(|(lane, _)| *lane).collect();
        for lane in lanes {
            if let Some(ticket) = self.first_of(|other| *other == lane, discipline, now) {
                self.call(ticket, None);
                called.push(ticket);
            }
        }
        called
    }

    /// Who is next among the lanes that fit.
    fn first_of(&self, fits: impl Fn(&Lane) -> bool, discipline: &Discipline, now: Instant) -> Option<Ticket> {
        let newest_first = discipline
            .newest_first_after
            .is_some_and(|after| self.busy_since.is_some_and(|since| now.saturating_duration_since(since) >= after));
        let lines = self.lines.iter().filter(|(lane, _)| fits(lane)).map(|(_, line)| &line.uncalled);
        let first = if newest_first {
            // The last one of each lane's lowest class.
            lines
                .filter_map(|line| {
                    let class = line.first_key_value()?.0.0;
                    line.range(..=(class, i64::MAX, u64::MAX)).next_back()
                })
                .min_by_key(|((class, rank, joined), _)| (*class, std::cmp::Reverse((*rank, *joined))))
        } else {
            lines.filter_map(|line| line.first_key_value()).min_by_key(|(key, _)| **key)
        };
        first.map(|(_, ticket)| *ticket)
    }

    fn call(&mut self, ticket: Ticket, freed: Option<Freed>) {
        let Some(waiting) = self.waiting.get_mut(&ticket) else { return };
        waiting.call = Some(Call { freed, events: self.events });
        if let Some(line) = self.lines.get_mut(&waiting.lane) {
            line.uncalled.remove(&waiting.key);
            line.called += 1;
        }
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Waiting> {
        let waiting = self.waiting.remove(&ticket)?;
        if let Some(line) = self.lines.get_mut(&waiting.lane) {
            match waiting.call {
                Some(_) => line.called -= 1,
                None => drop(line.uncalled.remove(&waiting.key)),
            }
            if line.called == 0 && line.uncalled.is_empty() {
                self.lines.remove(&waiting.lane);
            }
        }
        if self.waiting.is_empty() {
            // Nothing that was true of the last crowd need be true of the next.
            *self = Self { joined: self.joined, events: self.events, epoch: self.epoch, ..Self::default() };
        }
        Some(waiting)
    }
}

#[cfg(test)]
mod tests;
