//! A JSON Web Token, and a set of keys that it is verified with. A zero byte ends the token.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_config::jwks::Jwks;
use outrigger_policy::jwt::{Token, verify_signature, verify_times};

fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let keys = Jwks::parse(data.get(end + 1..).unwrap_or_default());
    let Ok(token) = Token::parse(&data[..end]) else { return };
    // What was signed is what was read, up to the last dot.
    assert!(data.starts_with(token.signed().as_bytes()));
    assert!(token.signed().ends_with(token.payload_base64()));
    let _ = verify_times(&token, u64::MAX, u64::MAX);
    if let Ok(keys) = keys {
        let _ = verify_signature(&token, &keys);
    }
});
