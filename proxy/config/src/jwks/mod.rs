//! JSON Web Key Sets (RFC 7517), the keys that JSON Web Tokens are verified with.
//!
//! Owns reading them, and which key can verify which algorithm. Never looks at a token (see `outrigger_policy::jwt`).

mod algorithm;
mod json;
mod key;

use serde_json::{Map, Value};

pub use algorithm::{Algorithm, Family};
pub use json::{MAX_DEPTH, strict_object};
pub use key::{Curve, KeyMaterial, RsaKey};

/// Keys that tokens of one issuer are verified with.
#[derive(Clone, Debug, Default)]
pub struct Jwks {
    /// In the order in which they were published.
    pub keys: Vec<Jwk>,
}

/// A key. Source: RFC 7517 section 4.
#[derive(Clone, Debug)]
pub struct Jwk {
    /// Empty if it has none: then it is tried for every token.
    pub key_id: String,
    /// The only algorithm that it may be used with; empty for all that its type allows.
    pub algorithm: String,
    /// The key itself.
    pub material: KeyMaterial,
}

/// Why a key set cannot be used; the text is Envoy's.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct JwksError(pub(crate) &'static str);

impl Jwks {
    /// Reads a key set: the form of RFC 7517, or an object of PEM certificates by key id. Keys that cannot be used are
    /// left out as long as there is one that can.
    ///
    /// # Errors
    /// If there is no key in it, why the first one cannot be used.
    pub fn parse(text: &[u8]) -> Result<Self, JwksError> {
        if text.len() > MAX_BYTES {
            return Err(JwksError("Jwks is too large"));
        }
        let object = strict_object(text).ok_or(JwksError("Jwks is an invalid JSON"))?;
        let keys = match object.get("keys") {
            None if is_certificates(&object) => return certificates(&object),
            None => return Err(JwksError("Jwks does not have [keys] field")),
            Some(Value::Array(keys)) => keys,
            Some(_) => return Err(JwksError("[keys] in Jwks is not an array")),
        };
        let mut usable = Vec::new();
        let mut first_error = None;
        for key in keys.iter().filter_map(Value::as_object) {
            match Jwk::read(key) {
                Ok(key) => usable.push(key),
                Err(error) => drop(first_error.get_or_insert(error)),
            }
        }
        if usable.is_empty() {
            return Err(first_error.unwrap_or(JwksError("Jwks doesn't have any valid public key")));
        }
        Ok(Self { keys: usable })
    }
}

impl Jwk {
    fn read(wire: &Map<String, Value>) -> Result<Self, JwksError> {
        let kind = text(wire, "kty", "[kty] is missing in [keys]", "[kty] is bad in [keys]")?;
        // Like Envoy: what is no string counts as absent.
        let optional = |name: &str| wire.get(name).and_then(Value::as_str).unwrap_or_default();
        let algorithm = optional("alg");
        let material = match kind {
            "RSA" => key::rsa(wire, algorithm)?,
            "EC" => key::elliptic_curve(wire, algorithm)?,
            "oct" => key::symmetric(wire, algorithm)?,
            "OKP" => key::octet_pair(wire, algorithm)?,
            _ => return Err(JwksError("[kty] is not supported in [keys]")),
        };
        Ok(Self { key_id: optional("kid").to_owned(), algorithm: algorithm.to_owned(), material })
    }
}

fn text<'v>(
    wire: &'v Map<String, Value>,
    name: &str,
    missing: &'static str,
    bad: &'static str,
) -> Result<&'v str, JwksError> {
    match wire.get(name) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(JwksError(bad)),
        None => Err(JwksError(missing)),
    }
}

/// The form of `https://www.googleapis.com/oauth2/v1/certs`: certificates by key id.
fn is_certificates(object: &Map<String, Value>) -> bool {
    let is_certificate = |value: &Value| {
        value.as_str().is_some_and(|text| text.starts_with(CERTIFICATE_BEGIN) && text.ends_with(CERTIFICATE_END))
    };
    !object.is_empty() && object.iter().all(|(key_id, value)| !key_id.is_empty() && is_certificate(value))
}

fn certificates(object: &Map<String, Value>) -> Result<Jwks, JwksError> {
    let read = |(key_id, value): (&String, &Value)| {
        let pem = value.as_str().unwrap_or_default();
        let inner = pem.strip_prefix(CERTIFICATE_BEGIN).and_then(|rest| rest.strip_suffix(CERTIFICATE_END));
        let material = key::certificate(inner.unwrap_or_default())?;
        Ok(Jwk { key_id: key_id.clone(), algorithm: String::new(), material })
    };
    Ok(Jwks { keys: object.iter().map(read).collect::<Result<_, _>>()? })
}

const CERTIFICATE_BEGIN: &str = "-----BEGIN CERTIFICATE-----\n";
const CERTIFICATE_END: &str = "\n-----END CERTIFICATE-----\n";
/// Real sets have a few kilobytes.
pub const MAX_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests;
