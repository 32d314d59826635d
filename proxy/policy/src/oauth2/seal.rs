//! What cookies are signed and sealed with: all from one secret, as Envoy does.
//!
//! Owns the keys and the forms of signatures and sealed text. Never prints either.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    AES_256, DecryptionContext, EncryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::session::Tokens;

/// Keys that come from a secret.
pub struct Keys {
    signing: hmac::Key,
    sealing: [u8; 32],
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// How text is sealed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sealing {
    /// AES-256-CBC, without anything that vouches for the text, which all versions of Envoy can open.
    Cbc,
    /// AES-256-GCM, marked as such.
    Gcm,
}

/// What was sealed.
#[derive(Debug, Eq, PartialEq)]
pub struct Opened {
    /// The text.
    pub text: Vec<u8>,
    /// How it was sealed.
    pub sealing: Sealing,
}

impl Keys {
    /// The keys of a secret.
    pub fn new(secret: &[u8]) -> Self {
        let mut sealing = [0; 32];
        sealing.copy_from_slice(digest::digest(&digest::SHA256, secret).as_ref());
        Self { signing: hmac::Key::new(hmac::HMAC_SHA256, secret), sealing }
    }

    /// Base64 of a signature.
    fn sign(&self, text: &str) -> String {
        STANDARD.encode(hmac::sign(&self.signing, text.as_bytes()))
    }

    /// What vouches for the tokens of a user in `domain` until `expires`.
    pub fn vouch(&self, domain: &str, expires: &str, tokens: &Tokens) -> String {
        self.sign(&vouched(domain, expires, tokens))
    }

    /// Whether `signature` is what [`Self::vouch`] says, or what it said in older versions of Envoy.
    pub fn is_vouched(&self, signature: &[u8], domain: &str, expires: &str, tokens: &Tokens) -> bool {
        let tag = hmac::sign(&self.signing, vouched(domain, expires, tokens).as_bytes());
        let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let same = |expected: String| verify_slices_are_equal(expected.as_bytes(), signature).is_ok();
        // Both are computed, whichever it is.
        same(STANDARD.encode(tag)) | same(STANDARD.encode(hex))
    }

    /// What a sign-in begins with: it cannot be forged.
    pub fn nonce(&self, flow: &str) -> String {
        format!("{flow}.{}", self.sign(flow))
    }

    /// Whether [`Self::nonce`] has made it.
    pub fn is_nonce(&self, nonce: &str) -> bool {
        let Some((flow, signature)) = nonce.split_once('.') else { return false };
        verify_slices_are_equal(self.sign(flow).as_bytes(), signature.as_bytes()).is_ok()
    }

    /// Seals text; of `random`, the mode takes as much as it needs. `None` if the library refuses.
    pub fn seal(&self, text: &[u8], sealing: Sealing, random: [u8; 16]) -> Option<String> {
        match sealing {
            Sealing::Cbc => {
                let key = UnboundCipherKey::new(&AES_256, &self.sealing).ok()?;
                let key = PaddedBlockEncryptingKey::cbc_pkcs7(key).ok()?;
                let mut sealed = text.to_vec();
                key.less_safe_encrypt(&mut sealed, EncryptionContext::Iv128(FixedLength::from(random))).ok()?;
                Some(URL_SAFE_NO_PAD.encode([&random[..], &sealed].concat()))
            }
            Sealing::Gcm => {
                let mut nonce = [0; NONCE_LEN];
                nonce.copy_from_slice(&random[..NONCE_LEN]);
                let mut sealed = text.to_vec();
                let nonce_once = Nonce::assume_unique_for_key(nonce);
                self.gcm()?.seal_in_place_append_tag(nonce_once, Aad::empty(), &mut sealed).ok()?;
                Some(format!("{GCM_MARK}{}", URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat())))
            }
        }
    }

    /// Opens what [`Self::seal`] has sealed, by AES-256-CBC only if `legacy` says so. `None` for anything else, though
    /// what CBC gives back may still be nonsense.
    pub fn open(&self, sealed: &[u8], legacy: bool) -> Option<Opened> {
        if let Some(sealed) = sealed.strip_prefix(GCM_MARK.as_bytes()) {
            let sealed = URL_SAFE_NO_PAD.decode(sealed).ok()?;
            let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
            let mut text = sealed.to_vec();
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let length = self.gcm()?.open_in_place(nonce, Aad::empty(), &mut text).ok()?.len();
            text.truncate(length);
            return Some(Opened { text, sealing: Sealing::Gcm });
        }
        if !legacy {
            return None;
        }
        let sealed = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (iv, sealed) = sealed.split_at_checked(16)?;
        if sealed.is_empty() {
            return None;
        }
        let iv: [u8; 16] = iv.try_into().ok()?;
        let key = UnboundCipherKey::new(&AES_256, &self.sealing).ok()?;
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(key).ok()?;
        let mut text = sealed.to_vec();
        let length = key.decrypt(&mut text, DecryptionContext::Iv128(FixedLength::from(iv))).ok()?.len();
        text.truncate(length);
        Some(Opened { text, sealing: Sealing::Cbc })
    }

    fn gcm(&self) -> Option<LessSafeKey> {
        UnboundKey::new(&AES_256_GCM, &self.sealing).ok().map(LessSafeKey::new)
    }
}

fn vouched(domain: &str, expires: &str, tokens: &Tokens) -> String {
    let Tokens { access, id, refresh } = tokens;
    [domain, expires, access, id, refresh].join("\n")
}

/// What the server is told of the secret of a sign-in (RFC 7636 section 4.2).
pub fn code_challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, verifier.as_bytes()))
}

/// Stands before what is sealed by AES-256-GCM.
const GCM_MARK: &str = "gcm.";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_envoy_has_sealed_is_opened() {
        // Made by Envoy 1.40 with this secret.
        let keys = Keys::new(b"hmackey");
        let opened = keys.open(b"gcm.hkrNyxEIGSQ_s-dR6nkGybcmEA_zINOViLyCFGKr", false).unwrap();
        assert_eq!((&*opened.text, opened.sealing), (&b"AT"[..], Sealing::Gcm));
        let opened = keys.open(b"wSu55Qrhz4thK1QIBR_TkD4gKwApThzffZFFygMhQp8", true).unwrap();
        assert_eq!((&*opened.text, opened.sealing), (&b"ID"[..], Sealing::Cbc));
        assert!(keys.open(b"wSu55Qrhz4thK1QIBR_TkD4gKwApThzffZFFygMhQp8", false).is_none());
        assert!(keys.is_nonce("ba5d2a644309754d.6nRFHcYboh0kbNhoY0oNzI6ohkRWINF+1aos/W2DOQw="));
    }

    #[test]
    fn a_code_challenge_is_that_of_the_standard() {
        // Source: RFC 7636, appendix B.
        let challenge = code_challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
        assert_eq!(challenge, "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn a_signature_is_for_what_it_is_for() {
        let keys = Keys::new(b"secret");
        let tokens = Tokens { access: "a".into(), id: String::new(), refresh: "r".into() };
        let signature = keys.vouch("host", "12", &tokens);
        assert!(keys.is_vouched(signature.as_bytes(), "host", "12", &tokens));
        assert!(!keys.is_vouched(signature.as_bytes(), "host", "13", &tokens));
        assert!(!keys.is_vouched(signature.as_bytes(), "other", "12", &tokens));
        let others = Tokens { refresh: String::new(), ..tokens.clone() };
        assert!(!keys.is_vouched(signature.as_bytes(), "host", "12", &others));
        assert!(!Keys::new(b"other").is_vouched(signature.as_bytes(), "host", "12", &tokens));
        let nonce = keys.nonce("0123456789abcdef");
        assert!(keys.is_nonce(&nonce) && !keys.is_nonce(&nonce[1..]) && !keys.is_nonce("") && !keys.is_nonce("a."));
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened_with_the_same_secret(
            text in proptest::collection::vec(any::<u8>(), 0..100),
            random: [u8; 16],
            gcm: bool,
        ) {
            let sealing = if gcm { Sealing::Gcm } else { Sealing::Cbc };
            let sealed = Keys::new(b"one").seal(&text, sealing, random).unwrap();
            let opened = Keys::new(b"one").open(sealed.as_bytes(), true);
            prop_assert_eq!(opened, Some(Opened { text: text.clone(), sealing }));
            if gcm {
                prop_assert_eq!(Keys::new(b"two").open(sealed.as_bytes(), true), None);
            }
        }

        #[test]
        fn nothing_from_outside_makes_it_panic(sealed in proptest::collection::vec(any::<u8>(), 0..80), mark: bool) {
            let sealed = if mark { [b"gcm.".to_vec(), sealed].concat() } else { sealed };
            let _ = Keys::new(b"one").open(&sealed, true);
        }
    }
}
