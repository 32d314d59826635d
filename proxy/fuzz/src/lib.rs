//! What several targets need.
//!
//! Owns the promises that more than one parser makes. Never parses anything itself.

pub mod sample;

use std::fmt::Debug;
use std::io;
use std::path::Path;

use outrigger::listener::filters::Parse;
use outrigger_config::{Context, Environment};
use prost::Message;

/// No files and no variables: what a control plane sends must not need any to be judged.
pub struct Nothing;

impl Environment for Nothing {
    fn read_file(&self, _: &Path) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}

/// Decodes a message and hands it over with a context.
pub fn decoded<M: Message + Default>(bytes: &[u8], parse: impl FnOnce(&Context<'_>, M)) {
    if let Ok(wire) = M::decode(bytes) {
        parse(&Context::new(&Nothing), wire);
    }
}

/// A decision never depends on how the bytes were split.
pub fn same_for_every_split<T: Debug + PartialEq>(bytes: &[u8], parse: impl Fn(&[u8]) -> Parse<T>) {
    let whole = parse(bytes);
    for end in 0..bytes.len() {
        let part = parse(&bytes[..end]);
        assert!(part == Parse::Partial || part == whole, "{part:?} after {end} bytes, {whole:?} in the end");
    }
}
