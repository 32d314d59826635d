//! Whether an answer contains what it should.
//!
//! Owns the "fuzzy" match of `HealthCheck.Payload`. Never reads from anywhere.

/// Whether all of `wanted` stand in `answer` in this order, with anything between them.
pub fn contains_in_order(wanted: &[Vec<u8>], answer: &[u8]) -> bool {
    let mut rest = answer;
    wanted.iter().all(|wanted| {
        let found = match wanted.len() {
            0 => Some(0),
            length => rest.windows(length).position(|window| window == wanted.as_slice()),
        };
        match found {
            Some(start) => {
                rest = &rest[start + wanted.len()..];
                true
            }
            None => false,
        }
    })
}
