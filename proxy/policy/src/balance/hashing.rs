//! The hash functions that requests and endpoints are placed by, the same as Envoy's.
//!
//! Owns which function is meant by which name. Never decides what is hashed.

use outrigger_config::cluster::HashFunction;
use twox_hash::XxHash64;

/// XXH64 with a seed of 0, which hashes requests.
pub fn xx_hash(bytes: &[u8]) -> u64 {
    xx_hash_seeded(bytes, 0)
}

/// XXH64 with a seed.
pub(super) fn xx_hash_seeded(bytes: &[u8], seed: u64) -> u64 {
    XxHash64::oneshot(seed, bytes)
}

/// Places an endpoint on a ring.
pub(super) fn by(function: HashFunction, bytes: &[u8]) -> u64 {
    match function {
        HashFunction::XxHash => xx_hash(bytes),
        HashFunction::MurmurHash2 => murmur_hash_2(bytes),
    }
}

/// MurmurHash64A with the seed of the GNU C++ library.
fn murmur_hash_2(bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0xc6a4_a793_5bd1_e995;
    const SEED: u64 = 0xc70f_6907;
    let shift = |value: u64| value ^ (value >> 47);
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(FACTOR);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let mut eight = [0; 8];
        eight.copy_from_slice(word);
        let word = shift(u64::from_le_bytes(eight).wrapping_mul(FACTOR)).wrapping_mul(FACTOR);
        hash = (hash ^ word).wrapping_mul(FACTOR);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let mut eight = [0; 8];
        eight[..rest.len()].copy_from_slice(rest);
        hash = (hash ^ u64::from_le_bytes(eight)).wrapping_mul(FACTOR);
    }
    shift(shift(hash).wrapping_mul(FACTOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(xx_hash(b""), 0xef46_db37_51d8_e999);
        assert_eq!(xx_hash(b"abc"), 0x44bc_2cf5_ad77_0999);
        // What `std::hash<std::string>` of the GNU C++ library gives.
        assert_eq!(murmur_hash_2(b""), 6_142_509_188_972_423_790);
        assert_eq!(murmur_hash_2(b"hello"), 2_762_169_579_135_187_400);
    }
}
