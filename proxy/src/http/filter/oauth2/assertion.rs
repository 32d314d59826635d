//! A signed statement of who we are (RFC 7523 section 2.2).
//!
//! Owns its text and its signature. Never keeps a key.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RsaEncoding, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use outrigger_config::http::filters::{Assertion, SigningAlgorithm};
use outrigger_config::tls::GenericSecret;
use serde_json::json;

use crate::worker::random::fresh_uuid;

/// The statement that we are `client_id`, from `now` (in seconds since 1970) on. `None` if the secret is no fitting key.
pub(super) fn sign(settings: &Assertion, client_id: &str, secret: &GenericSecret, now: u64) -> Option<String> {
    let (pem, key_id) = match secret.values.get("private_key") {
        Some(key) => (key, secret.values.get("key_id").and_then(|id| std::str::from_utf8(id).ok())),
        None => (&secret.value, None),
    };
    let mut header = json!({ "alg": name(settings.algorithm), "typ": "JWT" });
    if let Some(id) = key_id.filter(|id| !id.is_empty()) {
        header["kid"] = id.into();
    }
    let id = fresh_uuid();
    let claims = json!({
        "iss": client_id,
        "sub": client_id,
        "aud": &*settings.audience,
        "exp": now.saturating_add(settings.lifetime),
        "iat": now,
        "nbf": now,
        "jti": String::from_utf8_lossy(&id),
    });
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(header), part(claims));
    let signature = signature(settings.algorithm, &der(pem)?, text.as_bytes())?;
    Some(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

fn name(algorithm: SigningAlgorithm) -> &'static str {
    match algorithm {
        SigningAlgorithm::Rs256 => "RS256",
        SigningAlgorithm::Rs384 => "RS384",
        SigningAlgorithm::Rs512 => "RS512",
        SigningAlgorithm::Es256 => "ES256",
        SigningAlgorithm::Es384 => "ES384",
        SigningAlgorithm::Es512 => "ES512",
    }
}

fn signature(algorithm: SigningAlgorithm, der: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    match algorithm {
        SigningAlgorithm::Rs256 => rsa(&RSA_PKCS1_SHA256, der, text),
        SigningAlgorithm::Rs384 => rsa(&RSA_PKCS1_SHA384, der, text),
        SigningAlgorithm::Rs512 => rsa(&RSA_PKCS1_SHA512, der, text),
        SigningAlgorithm::Es256 => ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING, der, text),
        SigningAlgorithm::Es384 => ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING, der, text),
        SigningAlgorithm::Es512 => ecdsa(&ECDSA_P521_SHA512_FIXED_SIGNING, der, text),
    }
}

fn rsa(encoding: &'static dyn RsaEncoding, der: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    let key = RsaKeyPair::from_pkcs8(der).or_else(|_| RsaKeyPair::from_der(der)).ok()?;
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(encoding, &SystemRandom::new(), text, &mut signature).ok()?;
    Some(signature)
}

fn ecdsa(algorithm: &'static EcdsaSigningAlgorithm, der: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    let key = EcdsaKeyPair::from_private_key_der(algorithm, der).ok()?;
    Some(key.sign(&SystemRandom::new(), text).ok()?.as_ref().to_vec())
}

/// The first private key of a PEM file (RFC 7468).
fn der(pem: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(pem).ok()?;
    let mut lines = text.lines().map(str::trim);
    lines.by_ref().find(|line| line.starts_with("-----BEGIN ") && line.ends_with("PRIVATE KEY-----"))?;
    let base64: String = lines.take_while(|line| !line.starts_with("-----END ")).collect();
    STANDARD.decode(base64).ok()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, KeyPair, UnparsedPublicKey};
    use outrigger_config::tls::SecretRef;

    use super::*;

    fn settings(algorithm: SigningAlgorithm) -> Assertion {
        let secret = SecretRef { name: "s".into(), source: None };
        Assertion { secret, algorithm, lifetime: 60, audience: "https://idp/token".into() }
    }

    fn pem(label: &str, der: &[u8]) -> Vec<u8> {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der)).into_bytes()
    }

    #[test]
    fn a_statement_is_signed_with_the_key_of_the_secret() {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let pkcs8 = key.to_pkcs8v1().unwrap();
        let mut secret = GenericSecret { value: pem("PRIVATE KEY", pkcs8.as_ref()), ..GenericSecret::default() };
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_key().as_ref().to_vec());
        let check = |statement: &str| {
            let (text, signature) = statement.rsplit_once('.').unwrap();
            public.verify(text.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
            let parts: Vec<serde_json::Value> = text
                .split('.')
                .map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap())
                .collect();
            parts
        };
        let parts = check(&sign(&settings(SigningAlgorithm::Es256), "me", &secret, 1000).unwrap());
        assert_eq!(parts[0], json!({ "alg": "ES256", "typ": "JWT" }));
        assert_eq!(
            (&parts[1]["iss"], &parts[1]["aud"], &parts[1]["exp"]),
            (&json!("me"), &json!("https://idp/token"), &json!(1060))
        );
        secret.values.insert("private_key".into(), std::mem::take(&mut secret.value));
        secret.values.insert("key_id".into(), b"one".to_vec());
        let parts = check(&sign(&settings(SigningAlgorithm::Es256), "me", &secret, 1000).unwrap());
        assert_eq!(parts[0]["kid"], "one");
        // A key of another kind, or none.
        assert!(sign(&settings(SigningAlgorithm::Es384), "me", &secret, 1000).is_none());
        assert!(sign(&settings(SigningAlgorithm::Rs256), "me", &secret, 1000).is_none());
        assert!(sign(&settings(SigningAlgorithm::Es256), "me", &GenericSecret::default(), 1000).is_none());
    }
}
