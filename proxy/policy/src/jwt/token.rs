//! JSON Web Tokens in compact form (RFC 7515 section 7.1, RFC 7519).
//!
//! Owns reading one, in one way only: base64url without padding in its canonical spelling, JSON without repeated names,
//! signed by a known algorithm. Never trusts what it says.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use outrigger_config::jwks::{Algorithm, strict_object};
use outrigger_config::metadata::{self, MetadataMap};
use serde_json::Value;

use super::JwtFailure;

/// A token that was read, and not verified.
#[derive(Clone, Debug)]
pub struct Token {
    /// `alg`.
    pub algorithm: Algorithm,
    /// `kid`; empty if there is none.
    pub key_id: String,
    /// `iss`; empty if there is none.
    pub issuer: String,
    /// `sub`; empty if there is none.
    pub subject: String,
    /// `aud`.
    pub audiences: Vec<String>,
    /// `exp` in seconds since 1970; 0 if it never expires.
    pub expires_s: u64,
    /// `nbf` in seconds since 1970; 0 if it was always valid.
    pub not_before_s: u64,
    /// The JOSE header.
    pub header: MetadataMap,
    /// The claims.
    pub payload: MetadataMap,
    /// Header and payload as they were signed.
    signed: Box<str>,
    /// Where the payload begins in `signed`.
    payload_start: usize,
    /// The signature.
    pub signature: Box<[u8]>,
}

impl Token {
    /// Reads a token.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, JwtFailure> {
        let text = std::str::from_utf8(text).map_err(|_| JwtFailure::BadFormat)?;
        let mut parts = text.split('.');
        let (header, payload, signature) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(header), Some(payload), Some(signature), None) => (header, payload, signature),
            _ => return Err(JwtFailure::BadFormat),
        };
        if text.len() > MAX_BYTES || [header, payload, signature].iter().any(|part| part.is_empty()) {
            return Err(JwtFailure::BadFormat);
        }
        let signed = &text[..header.len() + 1 + payload.len()];
        let payload_start = header.len() + 1;
        let header = object(header, JwtFailure::HeaderBase64, JwtFailure::HeaderJson)?;
        let Some(Value::String(algorithm)) = header.get("alg") else { return Err(JwtFailure::HeaderAlgorithm) };
        let algorithm = Algorithm::named(algorithm).ok_or(JwtFailure::UnknownAlgorithm)?;
        let key_id = text_of(&header, "kid", JwtFailure::HeaderKeyId)?;
        let payload = object(payload, JwtFailure::PayloadBase64, JwtFailure::PayloadJson)?;
        let issuer = text_of(&payload, "iss", JwtFailure::IssuerType)?;
        let subject = text_of(&payload, "sub", JwtFailure::SubjectType)?;
        seconds_of(&payload, "iat", JwtFailure::IssuedAtType, JwtFailure::IssuedAtRange)?;
        let not_before_s = seconds_of(&payload, "nbf", JwtFailure::NotBeforeType, JwtFailure::NotBeforeRange)?;
        let expires_s = seconds_of(&payload, "exp", JwtFailure::ExpirationType, JwtFailure::ExpirationRange)?;
        text_of(&payload, "jti", JwtFailure::TokenIdType)?;
        Ok(Self {
            algorithm,
            key_id,
            issuer,
            subject,
            audiences: audiences(&payload)?,
            expires_s,
            not_before_s,
            header,
            payload,
            signed: signed.into(),
            payload_start,
            signature: decode(signature).ok_or(JwtFailure::SignatureBase64)?.into(),
        })
    }

    /// What the signature is over.
    pub fn signed(&self) -> &str {
        &self.signed
    }

    /// The payload as it was signed.
    pub fn payload_base64(&self) -> &str {
        self.signed.get(self.payload_start..).unwrap_or_default()
    }
}

fn decode(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}

fn object(part: &str, bad_base64: JwtFailure, bad_json: JwtFailure) -> Result<MetadataMap, JwtFailure> {
    let mut object = strict_object(&decode(part).ok_or(bad_base64)?).ok_or(bad_json)?;
    object.values_mut().for_each(round);
    Ok(object)
}

/// Metadata knows no numbers but doubles.
fn round(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let rounded = number.as_f64().and_then(metadata::number);
            *value = rounded.unwrap_or(Value::Null);
        }
        Value::Array(items) => items.iter_mut().for_each(round),
        Value::Object(object) => object.values_mut().for_each(round),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

fn text_of(object: &MetadataMap, name: &str, bad: JwtFailure) -> Result<String, JwtFailure> {
    match object.get(name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(bad),
    }
}

fn seconds_of(
    object: &MetadataMap,
    name: &str,
    bad_type: JwtFailure,
    bad_range: JwtFailure,
) -> Result<u64, JwtFailure> {
    let seconds = match object.get(name) {
        None => return Ok(0),
        Some(value) => value.as_f64().ok_or(bad_type)?,
    };
    // The first double that is too large for the type.
    if seconds < 0.0 || seconds >= u64::MAX as f64 { Err(bad_range) } else { Ok(seconds as u64) }
}

fn audiences(payload: &MetadataMap) -> Result<Vec<String>, JwtFailure> {
    match payload.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(all)) => {
            let text = |value: &Value| value.as_str().map(str::to_owned).ok_or(JwtFailure::AudienceType);
            all.iter().map(text).collect()
        }
        Some(_) => Err(JwtFailure::AudienceType),
    }
}

/// As large as the largest request heads.
const MAX_BYTES: usize = 96 * 1024;
