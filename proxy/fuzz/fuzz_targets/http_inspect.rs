//! The first bytes of a plain connection.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::listener::filters::http_inspect::inspect;
use outrigger_fuzz::same_for_every_split;

fuzz_target!(|data: &[u8]| same_for_every_split(data, |bytes| inspect(bytes)));
