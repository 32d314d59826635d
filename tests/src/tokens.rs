//! An issuer of JSON Web Tokens: keys of all kinds, their published form, and tokens, good and bad.
//!
//! Keys are made anew for each issuer. Never verifies anything.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// An issuer with a key of each kind.
pub struct Issuer {
    rsa: RsaKeyPair,
    elliptic: [EcdsaKeyPair; 3],
    edwards: Ed25519KeyPair,
    /// The key of HMAC.
    pub secret: Vec<u8>,
}

/// Algorithms of elliptic curves, with their curves.
const CURVES: [(&str, &str); 3] = [("ES256", "P-256"), ("ES384", "P-384"), ("ES512", "P-521")];

impl Default for Issuer {
    fn default() -> Self {
        Self::new()
    }
}

impl Issuer {
    /// Makes the keys.
    ///
    /// # Panics
    /// If the library cannot.
    pub fn new() -> Self {
        let elliptic = [
            &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
            &signature::ECDSA_P521_SHA512_FIXED_SIGNING,
        ];
        let mut secret = vec![0; 64];
        aws_lc_rs::rand::fill(&mut secret).expect("random bytes");
        Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).expect("an RSA key"),
            elliptic: elliptic.map(|algorithm| EcdsaKeyPair::generate(algorithm).expect("an EC key")),
            edwards: Ed25519KeyPair::generate().expect("an Ed25519 key"),
            secret,
        }
    }

    /// The published form of the key for an algorithm, with this `kid` and without `alg`.
    ///
    /// # Panics
    /// If there is no such algorithm.
    pub fn key(&self, algorithm: &str, key_id: &str) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut key = match algorithm {
            "EdDSA" => json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(self.edwards.public_key().as_ref()) }),
            _ if algorithm.starts_with("HS") => json!({ "kty": "oct", "k": encode(&self.secret) }),
            _ if algorithm.starts_with("ES") => {
                let index = CURVES.iter().position(|(name, _)| *name == algorithm).expect("a curve");
                let point = &self.elliptic[index].public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({ "kty": "EC", "crv": CURVES[index].1, "x": encode(x), "y": encode(y) })
            }
            _ => {
                // An RSAPublicKey of 2,048 bits: two headers of four bytes, a zero, the modulus, and the exponent.
                let der = self.rsa.public_key().as_ref();
                json!({ "kty": "RSA", "n": encode(&der[9..265]), "e": encode(&der[267..270]) })
            }
        };
        if !key_id.is_empty() {
            key["kid"] = key_id.into();
        }
        key
    }

    /// A key set with one key for each of `algorithms`, whose `kid` is the algorithm.
    pub fn key_set(&self, algorithms: &[&str]) -> String {
        let keys: Vec<Value> = algorithms.iter().map(|algorithm| self.key(algorithm, algorithm)).collect();
        json!({ "keys": keys }).to_string()
    }

    /// A token with the `kid` that [`Issuer::key_set`] gives the key.
    pub fn token(&self, algorithm: &str, claims: &Value) -> String {
        self.token_with(&json!({ "alg": algorithm, "kid": algorithm, "typ": "JWT" }), claims)
    }

    /// A token with this header, signed with the key that its `alg` needs.
    pub fn token_with(&self, header: &Value, claims: &Value) -> String {
        let algorithm = header["alg"].as_str().unwrap_or_default();
        self.signed(algorithm, &header.to_string(), &claims.to_string())
    }

    /// A token whose parts may be anything, signed by an algorithm that the header need not name.
    ///
    /// # Panics
    /// If there is no such algorithm.
    pub fn signed(&self, algorithm: &str, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.sign(algorithm, signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let rsa = |padding: &'static dyn signature::RsaEncoding| {
            let mut signature = vec![0; self.rsa.public_modulus_len()];
            self.rsa.sign(padding, &random, message, &mut signature).expect("a signature");
            signature
        };
        let hmac = |digest| hmac::sign(&hmac::Key::new(digest, &self.secret), message).as_ref().to_vec();
        match algorithm {
            "RS256" => rsa(&signature::RSA_PKCS1_SHA256),
            "RS384" => rsa(&signature::RSA_PKCS1_SHA384),
            "RS512" => rsa(&signature::RSA_PKCS1_SHA512),
            "PS256" => rsa(&signature::RSA_PSS_SHA256),
            "PS384" => rsa(&signature::RSA_PSS_SHA384),
            "PS512" => rsa(&signature::RSA_PSS_SHA512),
            "HS256" => hmac(hmac::HMAC_SHA256),
            "HS384" => hmac(hmac::HMAC_SHA384),
            "HS512" => hmac(hmac::HMAC_SHA512),
            "EdDSA" => self.edwards.sign(message).as_ref().to_vec(),
            _ => {
                let index = CURVES.iter().position(|(name, _)| *name == algorithm).expect("a known algorithm");
                self.elliptic[index].sign(&random, message).expect("a signature").as_ref().to_vec()
            }
        }
    }
}
