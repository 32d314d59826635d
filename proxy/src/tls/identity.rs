//! Our own certificates: loading them, and choosing one for a handshake.
//!
//! Owns keys in the form that signs. Never prints or gives away key material; the decoded key is wiped once loaded.

use std::fmt;
use std::sync::Arc;

use outrigger_config::tls::TlsCertificate;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};

use super::certificate::{Parsed, read_chain};
use super::error::{TlsError, place};
use super::intern::{Interned, sha256_parts};
use super::san::dns_matches;

/// A certificate with its key, ready to sign.
pub(super) struct Identity {
    certified: Arc<CertifiedKey>,
    /// DNS names of the certificate, or its common name when it has none.
    server_names: Vec<String>,
    /// URI names of the certificate.
    pub(super) uri_sans: Vec<String>,
    /// What it is called where one name must do: its first URI name, else its first DNS name, else its subject.
    principal: Arc<str>,
}

impl Identity {
    /// Loads a certificate; equal ones are kept once. Validity in time is not looked at: an expired certificate is
    /// the peer's to refuse.
    pub(super) fn load(certificate: &TlsCertificate, provider: &CryptoProvider) -> Result<Arc<Self>, TlsError> {
        static IDENTITIES: Interned<Identity> = Interned::new();
        let TlsCertificate { chain_pem, key_pem, files: _, ocsp_staple } = certificate;
        // A staple counts as a part only if present, so `None` and an empty one differ.
        let parts = [chain_pem, key_pem].into_iter().chain(ocsp_staple).map(Vec::as_slice);
        IDENTITIES.get_or_try(sha256_parts(parts), || Self::parse(certificate, provider))
    }

    fn parse(certificate: &TlsCertificate, provider: &CryptoProvider) -> Result<Self, TlsError> {
        let place = || place(&certificate.files);
        let refuse = |reason: String| TlsError::Chain { place: place(), reason };
        let chain = read_chain(&certificate.chain_pem).map_err(refuse)?;
        let leaf = Parsed::read(&chain[0]).map_err(refuse)?;
        let key =
            load_key(&certificate.key_pem, provider).map_err(|reason| TlsError::Key { place: place(), reason })?;
        let public = leaf.public_key().map_err(refuse)?;
        if key.public_key().is_some_and(|own| own.as_ref() != public.as_slice()) {
            return Err(TlsError::Mismatch { place: place() });
        }
        let mut server_names: Vec<_> = leaf.dns().map(str::to_owned).collect();
        if server_names.is_empty() {
            server_names.extend(leaf.common_name());
        }
        let uri_sans = leaf.uris().map(str::to_owned).collect();
        let principal = leaf.principal();
        let mut certified = CertifiedKey::new(chain, key);
        certified.ocsp.clone_from(&certificate.ocsp_staple);
        Ok(Self { certified: Arc::new(certified), server_names, uri_sans, principal })
    }

    fn serves(&self, server_name: &str) -> Served {
        let exact = self.server_names.iter().any(|name| name.eq_ignore_ascii_case(server_name));
        if exact {
            Served::Exactly
        } else if self.server_names.iter().any(|name| dns_matches(name, server_name)) {
            Served::ByWildcard
        } else {
            Served::Not
        }
    }

    fn can_sign(&self, schemes: &[SignatureScheme]) -> bool {
        self.certified.key.choose_scheme(schemes).is_some()
    }

    /// ECDSA and Ed25519 cost us far less than RSA.
    fn is_cheap(&self) -> bool {
        self.certified.key.algorithm() != rustls::SignatureAlgorithm::RSA
    }
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Served {
    Exactly,
    ByWildcard,
    Not,
}

fn load_key(key_pem: &[u8], provider: &CryptoProvider) -> Result<Arc<dyn SigningKey>, String> {
    let says = |text: &str| key_pem.windows(text.len()).any(|window| window == text.as_bytes());
    if says("BEGIN ENCRYPTED PRIVATE KEY") || says("Proc-Type: 4,ENCRYPTED") {
        return Err("the key is encrypted; passwords are not supported, give it unencrypted".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| match error {
        pem::Error::NoItemsFound => "no private key in the PEM data (PKCS#8, PKCS#1 or SEC1 expected)".to_owned(),
        // Not printed as it is: the error can hold the line that it did not like.
        _ => "not valid PEM".to_owned(),
    })?;
    // The provider wipes the decoded bytes. Its own error says nothing of them either.
    provider.key_provider.load_private_key(key).map_err(|error| format!("cannot be used: {error}"))
}

/// Chooses among our certificates, on either side.
pub(super) struct Identities(Vec<Arc<Identity>>);

impl Identities {
    pub(super) fn load(certificates: &[Arc<TlsCertificate>], provider: &CryptoProvider) -> Result<Self, TlsError> {
        certificates.iter().map(|certificate| Identity::load(certificate, provider)).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// URI names of the first certificate. rustls does not tell which one a handshake used; in a mesh, all of a
    /// workload's certificates carry the same identity.
    pub(super) fn uri_sans(&self) -> Vec<String> {
        self.0.first().map(|identity| identity.uri_sans.clone()).unwrap_or_default()
    }

    /// What the first certificate is called; empty if there is none.
    pub(super) fn principal(&self) -> Arc<str> {
        self.0.first().map(|identity| Arc::clone(&identity.principal)).unwrap_or_else(|| "".into())
    }

    /// By name first: exactly, then by wildcard; the cheapest that the client can verify. Without a name that fits:
    /// the first one that the client can verify.
    fn for_server_name(&self, server_name: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Arc<Identity>> {
        for wanted in [Served::Exactly, Served::ByWildcard] {
            let named = || {
                let fits = move |identity: &&Arc<Identity>| {
                    server_name.is_some_and(|name| identity.serves(name) == wanted) && identity.can_sign(schemes)
                };
                self.0.iter().filter(fits)
            };
            if let Some(found) = named().find(|identity| identity.is_cheap()).or_else(|| named().next()) {
                return Some(found);
            }
        }
        self.0.iter().find(|identity| identity.can_sign(schemes))
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|identity| &identity.server_names)).finish()
    }
}

impl ResolvesServerCert for Identities {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.for_server_name(hello.server_name(), hello.signature_schemes()).map(|found| found.certified.clone())
    }
}

impl ResolvesClientCert for Identities {
    /// The server's list of authorities is not looked at: it is a hint, often incomplete, and Envoy ignores it too.
    fn resolve(&self, _authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|identity| identity.can_sign(schemes)).map(|found| found.certified.clone())
    }

    fn has_certs(&self) -> bool {
        !self.is_empty()
    }
}
