//! The keys of a set (RFC 7518 section 6, RFC 8037 section 2).
//!
//! Owns the checks that make material a key. A key is held ready for use: nothing is parsed for a token.

use std::fmt;

use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};
use x509_cert::der::{Decode as _, Encode as _};

use super::{Algorithm, JwksError, text};

/// What verifies.
#[derive(Clone)]
pub enum KeyMaterial {
    /// `RSA`.
    Rsa(RsaKey),
    /// `EC`.
    EllipticCurve {
        /// Says which algorithm it is for.
        curve: Curve,
        /// Checks signatures of fixed length.
        key: ParsedPublicKey,
    },
    /// `OKP` with Ed25519.
    EdwardsCurve(ParsedPublicKey),
    /// `oct`: a shared secret, never empty.
    Symmetric(Box<[u8]>),
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A secret must not reach a log.
        f.write_str(match self {
            Self::Rsa(_) => "RSA",
            Self::EllipticCurve { curve, .. } => curve.name(),
            Self::EdwardsCurve(_) => "Ed25519",
            Self::Symmetric(_) => "oct",
        })
    }
}

/// A curve and with it an algorithm.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(missing_docs)]
pub enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    /// As `crv` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// The one algorithm for keys on this curve.
    pub fn algorithm(self) -> Algorithm {
        match self {
            Self::P256 => Algorithm::Es256,
            Self::P384 => Algorithm::Es384,
            Self::P521 => Algorithm::Es512,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::P256 => &signature::ECDSA_P256_SHA256_FIXED,
            Self::P384 => &signature::ECDSA_P384_SHA384_FIXED,
            Self::P521 => &signature::ECDSA_P521_SHA512_FIXED,
        }
    }
}

/// An RSA key, ready for each algorithm that it may be used with.
#[derive(Clone)]
pub struct RsaKey(Box<[(Algorithm, ParsedPublicKey)]>);

impl RsaKey {
    /// The key for an algorithm; `None` if it cannot be used with it.
    pub fn for_algorithm(&self, algorithm: Algorithm) -> Option<&ParsedPublicKey> {
        self.0.iter().find(|(known, _)| *known == algorithm).map(|(_, key)| key)
    }

    fn new(der: &[u8], algorithm: &str) -> Option<Self> {
        let wanted = RSA_ALGORITHMS.iter().filter(|(known, _)| algorithm.is_empty() || known.name() == algorithm);
        let mut rejected = false;
        let mut keys = Vec::new();
        for (known, verification) in wanted {
            match ParsedPublicKey::new(*verification, der) {
                Ok(key) => keys.push((*known, key)),
                Err(_) => rejected = true,
            }
        }
        // A key for an algorithm that does not exist is one that never matches.
        (!keys.is_empty() || !rejected).then(|| Self(keys.into()))
    }
}

const RSA_ALGORITHMS: [(Algorithm, &'static dyn VerificationAlgorithm); 6] = [
    (Algorithm::Rs256, &signature::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY),
    (Algorithm::Rs384, &signature::RSA_PKCS1_2048_8192_SHA384),
    (Algorithm::Rs512, &signature::RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY),
    (Algorithm::Ps256, &signature::RSA_PSS_2048_8192_SHA256),
    (Algorithm::Ps384, &signature::RSA_PSS_2048_8192_SHA384),
    (Algorithm::Ps512, &signature::RSA_PSS_2048_8192_SHA512),
];

pub(super) fn rsa(wire: &Map<String, Value>, algorithm: &str) -> Result<KeyMaterial, JwksError> {
    if !algorithm.is_empty() && !algorithm.starts_with("RS") && !algorithm.starts_with("PS") {
        return Err(JwksError("[alg] is not started with [RS] or [PS] for an RSA key"));
    }
    let modulus = text(wire, "n", "[n] field is missing for a RSA key", "[n] field is not string for a RSA key")?;
    let exponent = text(wire, "e", "[e] field is missing for a RSA key", "[e] field is not string for a RSA key")?;
    let error = JwksError("Jwks RSA [n] or [e] field is missing or has a parse error");
    let (modulus, exponent) = (number(modulus).ok_or(error)?, number(exponent).ok_or(error)?);
    // Others are not in use, small moduli are no secret, and large numbers cost time.
    let bits = modulus.len() * 8 - modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
    if exponent != [3] && exponent != [1, 0, 1] || !RSA_BITS.contains(&bits) {
        return Err(error);
    }
    RsaKey::new(&rsa_public_key(&modulus, &exponent), algorithm).map(KeyMaterial::Rsa).ok_or(error)
}

pub(super) fn elliptic_curve(wire: &Map<String, Value>, algorithm: &str) -> Result<KeyMaterial, JwksError> {
    if !algorithm.is_empty() && !algorithm.starts_with("ES") {
        return Err(JwksError("[alg] is not started with [ES] for an EC key"));
    }
    let named = match wire.get("crv") {
        None => "",
        Some(Value::String(name)) => name.as_str(),
        Some(_) => return Err(JwksError("[crv] field is not string for an EC key")),
    };
    let curves = [Curve::P256, Curve::P384, Curve::P521];
    let by_name = curves.into_iter().find(|curve| curve.name() == named);
    let by_algorithm = curves.into_iter().find(|curve| curve.algorithm().name() == algorithm);
    let curve = match (named, algorithm) {
        ("", "") => Some(Curve::P256),
        ("", _) => by_algorithm,
        (_, "") => by_name,
        _ if by_name.is_some() && by_name == by_algorithm => by_name,
        _ => return Err(JwksError("[crv] field specified is not compatible with [alg] for an EC key")),
    };
    let curve = curve.ok_or(JwksError("[crv] or [alg] field is not supported for an EC key"))?;
    let x = text(wire, "x", "[x] field is missing for an EC key", "[x] field is not string for an EC key")?;
    let y = text(wire, "y", "[y] field is missing for an EC key", "[y] field is not string for an EC key")?;
    let bad = JwksError("Jwks EC [x] or [y] field is an invalid Base64.");
    let (x, y) = (decode(x).ok_or(bad)?, decode(y).ok_or(bad)?);
    let error = JwksError("Jwks EC [x] and [y] fields have a parse error.");
    let mut point = vec![UNCOMPRESSED];
    for coordinate in [&x, &y] {
        let digits = without_zeros(coordinate);
        let zeros = curve.bytes().checked_sub(digits.len()).ok_or(error)?;
        point.resize(point.len() + zeros, 0);
        point.extend_from_slice(digits);
    }
    // That the point is on the curve is checked here.
    let key = ParsedPublicKey::new(curve.verification(), point).map_err(|_| error)?;
    Ok(KeyMaterial::EllipticCurve { curve, key })
}

pub(super) fn symmetric(wire: &Map<String, Value>, algorithm: &str) -> Result<KeyMaterial, JwksError> {
    if !matches!(algorithm, "" | "HS256" | "HS384" | "HS512") {
        return Err(JwksError("[alg] does not start with [HS] for an HMAC key"));
    }
    let secret = text(wire, "k", "[k] field is missing for an HMAC key", "[k] field is not string for an HMAC key")?;
    match LENIENT.decode(secret).ok() {
        Some(secret) if !secret.is_empty() => Ok(KeyMaterial::Symmetric(secret.into())),
        _ => Err(JwksError("Jwks Oct key is an invalid Base64")),
    }
}

pub(super) fn octet_pair(wire: &Map<String, Value>, algorithm: &str) -> Result<KeyMaterial, JwksError> {
    if !matches!(algorithm, "" | "EdDSA") {
        return Err(JwksError("[alg] is not [EdDSA] for an OKP key"));
    }
    let missing = "[crv] field is missing for an OKP key";
    if text(wire, "crv", missing, "[crv] field is not string for an OKP key")? != "Ed25519" {
        return Err(JwksError("[crv] field is not supported for an OKP key"));
    }
    let x = text(wire, "x", "[x] field is missing for an OKP key", "[x] field is not string for an OKP key")?;
    let x = decode(x).ok_or(JwksError("Jwks OKP [x] field is an invalid Base64."))?;
    let error = JwksError("Jwks OKP [x] field is wrong length.");
    if x.len() != ED25519_BYTES {
        return Err(error);
    }
    ParsedPublicKey::new(&signature::ED25519, x).map(KeyMaterial::EdwardsCurve).map_err(|_| error)
}

/// The RSA key of a certificate, whose PEM frame was taken off. Neither its dates nor its issuer matter: whoever
/// publishes it vouches for it.
pub(super) fn certificate(base64: &str) -> Result<KeyMaterial, JwksError> {
    let error = JwksError("X509 parse pubkey fails");
    let compact: String = base64.chars().filter(|char| *char != '\n' && *char != '\r').collect();
    let der = STANDARD.decode(compact).map_err(|_| error)?;
    let certificate = x509_cert::Certificate::from_der(&der).map_err(|_| error)?;
    let info = &certificate.tbs_certificate.subject_public_key_info;
    let error = JwksError("X509 parse pubkey internal fails: get pubkey");
    let info = info.to_der().map_err(|_| error)?;
    RsaKey::new(&info, "").map(KeyMaterial::Rsa).ok_or(error)
}

/// As Envoy reads secrets: padding and bits behind the last byte do not matter. Whoever writes the configuration
/// vouches for it; in tokens there is but one spelling.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// base64url without padding, in its only spelling. Source: RFC 7515 section 2.
fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// A positive number, big-endian and without leading zeros.
fn number(text: &str) -> Option<Vec<u8>> {
    let bytes = decode(text)?;
    let digits = without_zeros(&bytes);
    (!digits.is_empty()).then(|| digits.to_vec())
}

fn without_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[zeros..]
}

/// DER of an `RSAPublicKey`. Source: RFC 8017 appendix A.1.1.
fn rsa_public_key(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    for number in [modulus, exponent] {
        // Numbers are signed: a first bit would make it negative.
        let padded = number.first().is_some_and(|byte| byte & 0x80 != 0);
        content.push(0x02);
        der_length(number.len() + usize::from(padded), &mut content);
        content.extend(padded.then_some(0));
        content.extend_from_slice(number);
    }
    let mut der = vec![0x30];
    der_length(content.len(), &mut der);
    der.extend_from_slice(&content);
    der
}

fn der_length(length: usize, der: &mut Vec<u8>) {
    if length < 0x80 {
        der.push(length as u8);
        return;
    }
    let bytes = length.to_be_bytes();
    let digits = without_zeros(&bytes);
    der.push(0x80 | digits.len() as u8);
    der.extend_from_slice(digits);
}

/// Below 2,048 bits, signatures of RS256 and RS512 alone verify, as the library has it.
const RSA_BITS: std::ops::RangeInclusive<usize> = 1024..=8192;
/// First byte of a point with both coordinates. Source: SEC 1 section 2.3.3.
const UNCOMPRESSED: u8 = 4;
const ED25519_BYTES: usize = 32;
