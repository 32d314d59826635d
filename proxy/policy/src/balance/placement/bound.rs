//! Consistent hashing with bounded load: an endpoint that has far more requests than the average is passed over.
//!
//! Owns how many requests are too many (`hash_balance_factor`), and in which order the others are asked. Never counts
//! requests.

use super::super::{scale, spread};
use super::Entry;

/// Bounds for each endpoint of a placement.
#[derive(Debug)]
pub(in crate::balance) struct Bound {
    /// In percent of the average.
    factor: u32,
    shares: Box<[f64]>,
}

impl Bound {
    pub(super) fn new(factor: u32, entries: &[Entry]) -> Self {
        Self { factor, shares: entries.iter().map(|entry| entry.share).collect() }
    }

    /// Keeps `wanted` if it is not overloaded, otherwise takes the first in an order of the request's own that is not,
    /// or else the least overloaded one. `total` is the requests in flight to all endpoints, `active` those to one.
    pub(in crate::balance) fn relieve(
        &self,
        wanted: u32,
        hash: u64,
        total: u32,
        active: impl Fn(u32) -> u32,
        allows: impl Fn(u32) -> bool,
    ) -> u32 {
        let overload = |position: u32| f64::from(active(position)) / self.slots(position, total);
        let mut best = (wanted, overload(wanted));
        if best.1 <= 1.0 {
            return wanted;
        }
        let count = self.shares.len() as u32;
        let mut seed = hash;
        let start = scale((spread(&mut seed) >> 32) as u32, count);
        let stride = stride(scale((spread(&mut seed) >> 32) as u32, count), count);
        let order = (0..u64::from(count)).map(|step| {
            let position = u64::from(start) + step * u64::from(stride);
            (position % u64::from(count)) as u32
        });
        for position in order.filter(|position| *position != wanted && allows(*position)) {
            let load = overload(position);
            if load <= 1.0 {
                return position;
            }
            if load < best.1 {
                best = (position, load);
            }
        }
        best.0
    }

    /// Requests that an endpoint may have in flight.
    fn slots(&self, position: u32, total: u32) -> f64 {
        let all = ((u64::from(total) + 1) * u64::from(self.factor)).div_ceil(100);
        (all as f64 * self.shares[position as usize]).ceil().max(1.0)
    }
}

/// A step from `wish` on that visits all of `count` positions.
fn stride(wish: u32, count: u32) -> u32 {
    let coprime = |step: &u32| {
        let (mut a, mut b) = (*step, count);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a == 1
    };
    (wish.max(1)..count).find(coprime).unwrap_or(1)
}
