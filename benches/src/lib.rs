//! What the micro benchmarks measure on: made-up configurations of any size, and requests.
//!
//! Owns the inputs only. Everything is made before measuring begins, so a wrong input may panic.

pub mod clusters;
pub mod listeners;
pub mod picks;
pub mod routes;

use std::io;
use std::path::Path;

use outrigger_api::{ParseOptions, Schema};
use outrigger_config::Environment;
use serde_json::Value;

/// Neither files nor variables.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEnvironment;

impl Environment for NoEnvironment {
    fn read_file(&self, _: &Path) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}

/// Evenly distributed numbers (xorshift64), the same ones each time.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next one.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// The message that `json` describes.
///
/// # Panics
/// If it describes none.
pub fn message<M: prost::Message + prost::Name + Default>(json: &Value) -> M {
    let parsed = Schema::load().parse_value::<M>(json, ParseOptions::default());
    parsed.unwrap_or_else(|error| panic!("made-up input: {error}")).message
}
