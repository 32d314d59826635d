//! A fast source of random numbers for choices that no attacker gains from guessing.
//!
//! Owns one generator per worker (xorshift64*, seeded by the system). Never used for secrets.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

/// A worker's generator.
#[derive(Debug)]
pub struct Random(Cell<u64>);

impl Random {
    /// Seeded by the system.
    pub fn new() -> Self {
        // The standard library's hash keys come from the system's generator; 0 would be a fixed point.
        Self(Cell::new(RandomState::new().hash_one(0u8) | 1))
    }

    /// The next number, evenly distributed.
    pub fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A version 4 UUID in its usual form (RFC 9562 section 5.4).
    pub fn uuid(&self) -> [u8; 36] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.next().to_be_bytes());
        bytes[8..].copy_from_slice(&self.next().to_be_bytes());
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let mut text = [b'-'; 36];
        let mut position = 0;
        for (index, byte) in bytes.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                position += 1;
            }
            text[position] = HEX[usize::from(byte >> 4)];
            text[position + 1] = HEX[usize::from(byte & 0xf)];
            position += 2;
        }
        text
    }
}

/// A version 4 UUID for whoever has no generator of a worker at hand.
pub fn fresh_uuid() -> [u8; 36] {
    thread_local! {
        static RANDOM: Random = Random::new();
    }
    RANDOM.with(Random::uuid)
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_its_version_and_variant() {
        let text = String::from_utf8(Random::new().uuid().to_vec()).unwrap();
        let groups: Vec<_> = text.split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12]);
        assert_eq!(&text[14..15], "4");
        assert!("89ab".contains(&text[19..20]));
        assert_ne!(text.as_bytes(), Random::new().uuid());
    }
}
