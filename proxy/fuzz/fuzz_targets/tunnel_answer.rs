//! What an HTTP proxy answers when it is asked for a tunnel.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::upstream::http_tunnel::granted;

fuzz_target!(|data: &[u8]| {
    let is_granted = granted(data).is_ok();
    assert!(!is_granted || data.starts_with(b"HTTP/1."));
});
