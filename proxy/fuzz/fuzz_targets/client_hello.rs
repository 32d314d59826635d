//! The first message of a TLS client.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::listener::filters::client_hello::{DEFAULT_MAX_CLIENT_HELLO_BYTES, parse};
use outrigger_fuzz::same_for_every_split;

fuzz_target!(|data: &[u8]| same_for_every_split(data, |bytes| parse(bytes, DEFAULT_MAX_CLIENT_HELLO_BYTES)));
