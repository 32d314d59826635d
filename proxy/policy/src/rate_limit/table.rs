//! Buckets by key, for keys that nobody knows beforehand.
//!
//! Owns how many there are and which one makes room for another: 24 bytes each, all of them there from the start, shared
//! by threads without a lock. Never knows what a key means; a key is known by a hash of 64 bits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::token_bucket::{Gone, Rate};

/// Buckets of one rate by key. The one that was not used for longest makes room for another.
///
/// Keys are kept in sets of at most [`WAYS`]; up to that capacity the least recently used of all goes, and beyond it the
/// least recently used of a set, while there is a quarter of room more than asked for.
#[derive(Debug)]
pub struct BucketTable {
    rate: Rate,
    ways: usize,
    sets: usize,
    /// Hashes of keys, or [`FREE`] or [`BUSY`].
    keys: Box<[AtomicU64]>,
    gone: Box<[Gone]>,
    /// Age at the last use, in nanoseconds.
    used: Box<[AtomicU64]>,
}

/// Nobody's.
const FREE: u64 = 0;
/// Being given to another key.
const BUSY: u64 = 1;
/// Keys that are compared for one request.
const WAYS: usize = 64;

impl BucketTable {
    /// A table for `capacity` keys, at least one.
    pub fn new(rate: Rate, capacity: usize) -> Self {
        let capacity = capacity.max(1);
        let (ways, sets) =
            if capacity <= WAYS { (capacity, 1) } else { (WAYS, (capacity + capacity / 4).div_ceil(WAYS)) };
        let zeros = || (0..ways * sets).map(|_| AtomicU64::new(0)).collect::<Box<[_]>>();
        Self { rate, ways, sets, keys: zeros(), gone: zeros(), used: zeros() }
    }

    /// How the tokens of each bucket come.
    pub fn rate(&self) -> &Rate {
        &self.rate
    }

    /// The bucket of the key with this hash, full if the key is new.
    ///
    /// Two threads that bring keys to the same place at the same time may count one request by the wrong key.
    pub fn bucket(&self, hash: u64, age: Duration) -> &Gone {
        let key = hash.max(BUSY + 1);
        let now = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        // The upper bits choose the set, so that all bits take part in the comparison.
        let set = (u128::from(hash) * self.sets as u128) >> 64;
        let start = set as usize * self.ways;
        let places = start..start + self.ways;
        let found = places.clone().find(|place| self.keys[*place].load(Ordering::Acquire) == key);
        let place = found.unwrap_or_else(|| self.replace(places, key, age));
        self.used[place].store(now, Ordering::Relaxed);
        &self.gone[place]
    }

    /// Gives a place to `key`.
    fn replace(&self, places: std::ops::Range<usize>, key: u64, age: Duration) -> usize {
        let mut last = places.start;
        // Each round somebody got a place; this many in a row have not been seen.
        for _ in 0..WAYS {
            let rank = |place: &usize| match self.keys[*place].load(Ordering::Relaxed) {
                FREE => (0, 0),
                BUSY => (2, 0),
                _ => (1, self.used[*place].load(Ordering::Relaxed)),
            };
            let Some(place) = places.clone().min_by_key(rank) else { break };
            last = place;
            let known = self.keys[place].load(Ordering::Relaxed);
            let free = known != BUSY
                && self.keys[place].compare_exchange(known, BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok();
            if free {
                self.gone[place].store(self.rate.full(age), Ordering::Relaxed);
                self.keys[place].store(key, Ordering::Release);
                return place;
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::network::TokenBucket as Settings;
    use proptest::prelude::*;

    use super::*;

    fn table(capacity: usize) -> BucketTable {
        let settings = Settings { max_tokens: 2, tokens_per_fill: 1, fill_interval: Duration::from_secs(1000) };
        BucketTable::new(Rate::new(settings), capacity)
    }

    /// A hash as evenly spread as real ones.
    fn hash(number: u64) -> u64 {
        number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    fn take(table: &BucketTable, key: u64, now: u64) -> bool {
        let age = Duration::from_nanos(now);
        table.rate().take(table.bucket(hash(key), age), 1, age)
    }

    #[test]
    fn each_key_has_a_bucket_of_its_own() {
        let table = table(3);
        for key in 0..3 {
            assert!(take(&table, key, key) && take(&table, key, key) && !take(&table, key, key));
        }
        // 0 was used last before 1 and 2, so it makes room.
        assert!(take(&table, 3, 10));
        assert!(!take(&table, 1, 11) && !take(&table, 2, 12));
        assert!(take(&table, 0, 13));
    }

    #[test]
    fn a_large_table_keeps_what_was_asked_for() {
        let table = table(100_000);
        assert!(table.keys.len() >= 100_000 && table.keys.len() <= 130_000);
        for key in 0..100_000 {
            assert!(take(&table, key, key) && take(&table, key, key));
        }
        let forgotten = (0..100_000).filter(|key| take(&table, *key, 100_000 + key)).count();
        assert!(forgotten < 20_000, "{forgotten}");
    }

    #[test]
    fn threads_never_take_more_than_there_is_of_a_known_key() {
        let table = table(8);
        for key in 0..4 {
            table.bucket(hash(key), Duration::ZERO);
        }
        let taken = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for turn in 0..400 {
                        let got = take(&table, turn % 4, turn);
                        taken.fetch_add(u64::from(got), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(taken.into_inner(), 8);
    }

    proptest! {
        #[test]
        fn the_last_keys_are_known(capacity in 1_usize..20, keys in prop::collection::vec(0_u64..30, 1..100)) {
            let table = table(capacity);
            let mut order: Vec<u64> = Vec::new();
            let mut left: std::collections::HashMap<u64, u32> = std::collections::HashMap::new();
            for (now, key) in keys.into_iter().enumerate() {
                if let Some(place) = order.iter().position(|known| *known == key) {
                    order.remove(place);
                } else {
                    if order.len() == capacity {
                        left.remove(&order.remove(0));
                    }
                    left.insert(key, 2);
                }
                order.push(key);
                let tokens = left.entry(key).or_default();
                prop_assert_eq!(take(&table, key, now as u64 + 1), *tokens > 0);
                *tokens = tokens.saturating_sub(1);
            }
        }
    }
}
