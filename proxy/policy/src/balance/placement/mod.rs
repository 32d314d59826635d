//! Choosing an endpoint by a request's hash.
//!
//! Owns where each endpoint is placed, and how far one may be ahead of the others. Never hashes requests.

mod bound;
mod maglev;
mod ring;

pub(super) use bound::Bound;
use maglev::Table;
use outrigger_config::cluster::HashFunction;
use ring::Ring;

/// How endpoints are placed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Method {
    /// `LoadBalancing::RingHash`.
    Ring { function: HashFunction, minimum_size: u32, maximum_size: u32 },
    /// `LoadBalancing::Maglev`.
    Table { size: u32 },
}

/// An endpoint to be placed.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// What stands for it.
    pub key: String,
    /// Its part of the sum of all.
    pub share: f64,
}

/// Endpoints by hash.
#[derive(Debug)]
pub(super) struct Placement {
    places: Places,
    /// Places of the endpoint that has the fewest, and of the one that has the most.
    spread: (u32, u32),
    bound: Option<Bound>,
}

#[derive(Debug)]
enum Places {
    Ring(Ring),
    Table(Table),
}

/// How full the places are, for stats.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PlacementStats {
    /// Places.
    pub size: u32,
    /// Of the endpoint that has the fewest.
    pub min_per_host: u32,
    /// Of the endpoint that has the most.
    pub max_per_host: u32,
}

impl Placement {
    /// Places `entries`, whose shares add up to 1. `balance_factor` is in percent.
    pub(super) fn build(method: Method, entries: &[Entry], balance_factor: Option<u32>) -> Self {
        let (places, spread) = match method {
            Method::Ring { function, minimum_size, maximum_size } => {
                let (ring, spread) = Ring::build(entries, function, minimum_size, maximum_size);
                (Places::Ring(ring), spread)
            }
            Method::Table { size } => {
                let (table, spread) = Table::build(entries, size);
                (Places::Table(table), spread)
            }
        };
        let bound = balance_factor.map(|factor| Bound::new(factor, entries));
        Self { places, spread, bound }
    }

    pub(super) fn stats(&self) -> PlacementStats {
        let size = match &self.places {
            Places::Ring(ring) => ring.len(),
            Places::Table(table) => table.len(),
        };
        PlacementStats { size, min_per_host: self.spread.0, max_per_host: self.spread.1 }
    }

    pub(super) fn bound(&self) -> Option<&Bound> {
        self.bound.as_ref()
    }

    /// The position for a hash, or the next one that is allowed. `None` if none of the next few is.
    pub(super) fn find(&self, hash: u64, allows: impl Fn(u32) -> bool) -> Option<u32> {
        match &self.places {
            Places::Ring(ring) => ring.find(hash, allows),
            Places::Table(table) => table.find(hash, allows),
        }
    }
}

/// The least and the greatest number of places of one endpoint.
fn spread(counts: impl Iterator<Item = u32> + Clone) -> (u32, u32) {
    (counts.clone().min().unwrap_or(0), counts.max().unwrap_or(0))
}

/// Places looked at before every endpoint is.
const TRIES: usize = 64;

#[cfg(test)]
mod tests;
