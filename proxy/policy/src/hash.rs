//! Hash maps that are built from configuration and only read afterwards.
//!
//! Owns the hasher. Peers choose what is looked up but never what is stored, so flooding a map with collisions is not
//! in their hands and the cost of a keyed hash buys nothing. Never used for maps that traffic fills.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map filled from configuration.
pub(crate) type ConfigMap<K, V> = HashMap<K, V, BuildHasherDefault<WordHasher>>;

/// Multiplies and adds eight bytes at a time.
#[derive(Clone, Copy, Default)]
pub(crate) struct WordHasher(u64);

// Odd, with its bits well spread.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl WordHasher {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(FACTOR);
    }
}

impl Hasher for WordHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            let mut eight = [0; 8];
            eight.copy_from_slice(word);
            self.add(u64::from_le_bytes(eight));
        }
        let rest = words.remainder();
        let mut eight = [0; 8];
        eight[..rest.len()].copy_from_slice(rest);
        // The length keeps "a" and "a\0" apart.
        self.add(u64::from_le_bytes(eight) ^ (bytes.len() as u64).rotate_left(56));
    }

    fn write_u8(&mut self, value: u8) {
        self.add(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.add(u64::from(value));
    }

    fn write_u128(&mut self, value: u128) {
        self.add(value as u64);
        self.add((value >> 64) as u64);
    }

    fn finish(&self) -> u64 {
        // The multiplication leaves the best bits at the top; the map takes buckets from the bottom.
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::{BuildHasher, BuildHasherDefault};

    use super::WordHasher;

    #[test]
    fn similar_paths_spread_over_the_buckets() {
        let build = BuildHasherDefault::<WordHasher>::default();
        let buckets: HashSet<u64> =
            (0..1000).map(|i| build.hash_one(format!("/service/{i}/items").as_str()) & 1023).collect();
        // 1000 balls into 1024 bins leave about 390 bins empty by chance.
        assert!(buckets.len() > 560, "{}", buckets.len());
    }
}
