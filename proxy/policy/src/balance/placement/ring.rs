//! A ring that holds each endpoint many times (ketama), placed as Envoy places them.
//!
//! Owns the places, ordered by hash. Never knows requests.

use std::fmt::Write;

use outrigger_config::cluster::HashFunction;

use super::super::hashing;
use super::{Entry, TRIES, spread};

/// Places by ascending hash, in two lists so that a search touches hashes only.
#[derive(Debug)]
pub(super) struct Ring {
    hashes: Box<[u64]>,
    positions: Box<[u32]>,
}

impl Ring {
    /// The ring, and the least and greatest number of places of one endpoint.
    ///
    /// The endpoint of the least share gets a whole number of places, so that there are at least `minimum` in all; if
    /// that makes more than `maximum`, all get fewer. The places of an endpoint are at the hashes of its key with
    /// `_0`, `_1` and so on.
    pub(super) fn build(entries: &[Entry], function: HashFunction, minimum: u32, maximum: u32) -> (Self, (u32, u32)) {
        let least = entries.iter().map(|entry| entry.share).fold(1.0, f64::min);
        let size = ((least * f64::from(minimum)).ceil() / least).min(f64::from(maximum));
        let mut places: Vec<(u64, u32)> = Vec::with_capacity(size.ceil() as usize);
        let mut counts = Vec::with_capacity(entries.len());
        let mut key = String::new();
        // What endpoints until now should have together, so that fractions are not lost.
        let mut target = 0.0;
        for (position, entry) in (0..).zip(entries) {
            key.clear();
            key.push_str(&entry.key);
            key.push('_');
            let stem = key.len();
            target += size * entry.share;
            let mut count = 0;
            while (places.len() as f64) < target {
                key.truncate(stem);
                // Writing to a string does not fail.
                let _ = write!(key, "{count}");
                places.push((hashing::by(function, key.as_bytes()), position));
                count += 1;
            }
            counts.push(count);
        }
        places.sort_unstable();
        let (hashes, positions): (Vec<u64>, Vec<u32>) = places.into_iter().unzip();
        (Self { hashes: hashes.into(), positions: positions.into() }, spread(counts.into_iter()))
    }

    pub(super) fn len(&self) -> u32 {
        self.hashes.len() as u32
    }

    /// The position of the first place at or behind the hash, or of the next one that is allowed.
    pub(super) fn find(&self, hash: u64, allows: impl Fn(u32) -> bool) -> Option<u32> {
        let count = self.hashes.len();
        let first = self.hashes.partition_point(|place| *place < hash);
        let places = (first..count).chain(0..first).map(|place| self.positions[place]);
        places.take(TRIES).find(|position| allows(*position))
    }
}
