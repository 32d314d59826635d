//! A table that holds each endpoint many times (Maglev), filled as Envoy fills it.
//!
//! Owns the table. Never knows requests.

use super::super::hashing::{xx_hash, xx_hash_seeded};
use super::{Entry, TRIES, spread};

/// Positions, in the smallest numbers that hold them all.
#[derive(Debug)]
pub(super) enum Table {
    Byte(Box<[u8]>),
    Short(Box<[u16]>),
    Word(Box<[u32]>),
}

/// An endpoint while the table is filled: its next wish is at `(offset + skip * next) % size`.
struct Turn {
    position: u32,
    offset: u64,
    skip: u64,
    next: u64,
    share: f64,
    due: f64,
    count: u32,
}

impl Table {
    /// The table, and the least and greatest number of places of one endpoint.
    ///
    /// Endpoints take turns; each takes the first free place on its own list of wishes. One whose share is a third of
    /// the greatest is left out two times of three.
    pub(super) fn build(entries: &[Entry], size: u32) -> (Self, (u32, u32)) {
        const FREE: u32 = u32::MAX;
        let greatest = entries.iter().map(|entry| entry.share).fold(0.0, f64::max);
        let mut turns: Vec<Turn> =
            (0..).zip(entries).map(|(position, entry)| Turn::new(position, entry, u64::from(size))).collect();
        // So that the order of the endpoints does not matter.
        turns.sort_by(|a, b| entries[a.position as usize].key.cmp(&entries[b.position as usize].key));
        let mut places =
            vec![if turns.is_empty() { 0 } else { FREE }; if turns.is_empty() { 0 } else { size as usize }];
        let mut left = places.len();
        let mut round = 0.0;
        while left > 0 {
            round += 1.0;
            for turn in &mut turns {
                if left == 0 {
                    break;
                }
                if round * turn.share < turn.due {
                    continue;
                }
                turn.due += greatest;
                while places[turn.wish(u64::from(size))] != FREE {
                    turn.next += 1;
                }
                places[turn.wish(u64::from(size))] = turn.position;
                turn.next += 1;
                turn.count += 1;
                left -= 1;
            }
        }
        let spread = spread(turns.iter().map(|turn| turn.count));
        let table = match entries.len() {
            0..=0x100 => Self::Byte(places.into_iter().map(|place| place as u8).collect()),
            0x101..=0x1_0000 => Self::Short(places.into_iter().map(|place| place as u16).collect()),
            _ => Self::Word(places.into()),
        };
        (table, spread)
    }

    pub(super) fn len(&self) -> u32 {
        match self {
            Self::Byte(places) => places.len() as u32,
            Self::Short(places) => places.len() as u32,
            Self::Word(places) => places.len() as u32,
        }
    }

    fn at(&self, place: u64) -> u32 {
        match self {
            Self::Byte(places) => u32::from(places[place as usize]),
            Self::Short(places) => u32::from(places[place as usize]),
            Self::Word(places) => places[place as usize],
        }
    }

    /// The position for the hash. For each one that is not allowed another hash is made of it.
    pub(super) fn find(&self, hash: u64, allows: impl Fn(u32) -> bool) -> Option<u32> {
        let size = u64::from(self.len());
        if size == 0 {
            return None;
        }
        let hashes = (0..TRIES as u64).map(|attempt| if attempt == 0 { hash } else { hash ^ (u64::MAX - attempt + 1) });
        hashes.map(|hash| self.at(hash % size)).find(|position| allows(*position))
    }
}

impl Turn {
    fn new(position: u32, entry: &Entry, size: u64) -> Self {
        let key = entry.key.as_bytes();
        // A table of two places has one way to skip only.
        let skip = xx_hash_seeded(key, 1) % (size - 1) + 1;
        Self { position, offset: xx_hash(key) % size, skip, next: 0, share: entry.share, due: 0.0, count: 0 }
    }

    fn wish(&self, size: u64) -> usize {
        ((self.offset + self.skip * self.next) % size) as usize
    }
}
