//! Tokens and keys for tests.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use outrigger_config::jwks::Jwks;
use serde_json::{Value, json};

pub const SECRET: &[u8] = b"a secret of some length";

/// A token that is signed with a shared secret.
pub fn token(claims: &Value) -> String {
    token_of(&json!({ "alg": "HS256" }), claims, SECRET)
}

pub fn token_of(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The keys that verify those.
pub fn keys() -> Jwks {
    let keys = json!({ "keys": [{ "kty": "oct", "k": URL_SAFE_NO_PAD.encode(SECRET) }] });
    Jwks::parse(keys.to_string().as_bytes()).unwrap()
}
