//! HTTP/1 request and response heads. The first byte chooses the limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::http::h1::parse::{Framing, Limits, parse_request, parse_response};
use outrigger::http::message::{RequestHead, ResponseHead};

fuzz_target!(|data: &[u8]| {
    let Some((first, input)) = data.split_first() else { return };
    let limits = Limits {
        max_head_bytes: if first & 1 != 0 { 256 } else { 60 * 1024 },
        max_headers: if first & 2 != 0 { 3 } else { 100 },
        allow_chunked_length: first & 4 != 0,
        allow_custom_methods: first & 8 != 0,
        preserve_case: None,
    };
    request(input, &limits);
    response(input, &limits, first & 16 != 0);
});

fn request(input: &[u8], limits: &Limits) {
    let mut head = RequestHead::default();
    let Ok(Some(parsed)) = parse_request(input, limits, &mut head) else { return };
    assert!(parsed.length <= input.len() && parsed.length <= limits.max_head_bytes);
    assert_ne!(parsed.framing, Framing::UntilClose, "a request has an end");
    // What follows a head cannot change how it was read.
    let mut again = RequestHead::default();
    assert_eq!(parse_request(&input[..parsed.length], limits, &mut again), Ok(Some(parsed)));
    // And no part of it is a head.
    assert!(!matches!(parse_request(&input[..parsed.length - 1], limits, &mut again), Ok(Some(_))));
}

fn response(input: &[u8], limits: &Limits, head_request: bool) {
    let mut head = ResponseHead::default();
    let Ok(Some(parsed)) = parse_response(input, limits, head_request, &mut head) else { return };
    assert!(parsed.length <= input.len() && parsed.length <= limits.max_head_bytes);
    assert!(!head_request || parsed.framing == Framing::None, "the answer to HEAD has no body");
    let mut again = ResponseHead::default();
    assert_eq!(parse_response(&input[..parsed.length], limits, head_request, &mut again), Ok(Some(parsed)));
}
