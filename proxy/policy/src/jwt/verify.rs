//! Whether a token is what it says.
//!
//! Owns signatures, times and audiences. The algorithm of a token never decides what a key is used for: a key of
//! another kind, on another curve or for another algorithm does not verify it.

use aws_lc_rs::hmac;
use outrigger_config::http::filters::Lifetime;
use outrigger_config::jwks::{Algorithm, Jwk, Jwks, KeyMaterial};

use super::{JwtFailure, Token};

/// Whether one of `keys` has signed the token: those with its key id, or all if it has none or they have none.
///
/// # Errors
/// Why not.
pub fn verify_signature(token: &Token, keys: &Jwks) -> Result<(), JwtFailure> {
    let mut failure = JwtFailure::NoMatchingKey;
    for key in keys.keys.iter().filter(|key| is_meant(key, token)) {
        failure = JwtFailure::Verification;
        if matches!(key.material, KeyMaterial::EdwardsCurve(_))
            && token.algorithm == Algorithm::EdDsa
            && token.signature.len() != ED25519_SIGNATURE_BYTES
        {
            return Err(JwtFailure::Ed25519Length);
        }
        if has_signed(key, token) {
            return Ok(());
        }
    }
    Err(failure)
}

fn is_meant(key: &Jwk, token: &Token) -> bool {
    (token.key_id.is_empty() || key.key_id.is_empty() || key.key_id == token.key_id)
        && (key.algorithm.is_empty() || key.algorithm == token.algorithm.name())
}

fn has_signed(key: &Jwk, token: &Token) -> bool {
    let (message, signature) = (token.signed().as_bytes(), &*token.signature);
    match (&key.material, token.algorithm) {
        (KeyMaterial::Rsa(key), algorithm) => {
            key.for_algorithm(algorithm).is_some_and(|key| key.verify_sig(message, signature).is_ok())
        }
        (KeyMaterial::EllipticCurve { curve, key }, algorithm) => {
            curve.algorithm() == algorithm && key.verify_sig(message, signature).is_ok()
        }
        (KeyMaterial::EdwardsCurve(key), Algorithm::EdDsa) => key.verify_sig(message, signature).is_ok(),
        (KeyMaterial::Symmetric(secret), algorithm) => {
            let digest = match algorithm {
                Algorithm::Hs256 => hmac::HMAC_SHA256,
                Algorithm::Hs384 => hmac::HMAC_SHA384,
                Algorithm::Hs512 => hmac::HMAC_SHA512,
                _ => return false,
            };
            hmac::verify(&hmac::Key::new(digest, secret), message, signature).is_ok()
        }
        (KeyMaterial::EdwardsCurve(_), _) => false,
    }
}

/// Whether a token is valid at `now_s` seconds since 1970, if clocks differ by no more than `skew_s`.
///
/// # Errors
/// Why not.
pub fn verify_times(token: &Token, now_s: u64, skew_s: u64) -> Result<(), JwtFailure> {
    if now_s.saturating_add(skew_s) < token.not_before_s {
        return Err(JwtFailure::NotYetValid);
    }
    if token.expires_s != 0 && now_s > token.expires_s.saturating_add(skew_s) {
        return Err(JwtFailure::Expired);
    }
    Ok(())
}

/// Whether a token lives as its provider wants it.
pub(super) fn has_lifetime(token: &Token, wanted: Lifetime, now_s: u64) -> bool {
    match wanted {
        Lifetime::Any => true,
        Lifetime::Ending => token.expires_s != 0,
        Lifetime::Below(limit) => {
            let left = std::time::Duration::from_secs(token.expires_s.saturating_sub(now_s));
            token.expires_s != 0 && (left < limit || token.expires_s < now_s)
        }
    }
}

/// Whether one of a token's audiences is `allowed`; all are if that is empty. A scheme and a last slash do not matter.
pub(super) fn has_audience(token: &Token, allowed: &[String]) -> bool {
    let is_allowed = |audience: &String| allowed.iter().any(|allowed| bare(allowed) == bare(audience));
    allowed.is_empty() || token.audiences.iter().any(is_allowed)
}

fn bare(audience: &str) -> &str {
    let rest = audience.strip_prefix("http://").or_else(|| audience.strip_prefix("https://")).unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

const ED25519_SIGNATURE_BYTES: usize = 64;
