//! The first message of a TLS client, and what its fingerprints are made of.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::listener::filters::client_hello::{DEFAULT_MAX_CLIENT_HELLO_BYTES, body, parse};
use outrigger::listener::filters::fingerprint::fingerprints;
use outrigger_fuzz::same_for_every_split;

fuzz_target!(|data: &[u8]| {
    same_for_every_split(data, |bytes| parse(bytes, DEFAULT_MAX_CLIENT_HELLO_BYTES));
    if let Some(body) = body(data, DEFAULT_MAX_CLIENT_HELLO_BYTES) {
        fingerprints(&body, true, true);
    }
    fingerprints(data, true, true);
});
