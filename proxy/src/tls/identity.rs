//! Our own certificates: loading them, and choosing one for a handshake.
//!
//! Owns keys in the form that signs. Never prints or gives away key material; the decoded key is wiped once loaded.

use std::fmt;
use std::sync::Arc;

use outrigger_config::tls::{OcspPolicy, TlsCertificate};
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};

use super::certificate::{Parsed, read_chain};
use super::error::{TlsError, place};
use super::intern::{Interned, sha256_parts};
use super::ocsp::{Staple, Stapling, stapling};
use super::san::dns_matches;

/// A certificate with its key, ready to sign.
pub(super) struct Identity {
    /// With its OCSP response, if it has one.
    certified: Arc<CertifiedKey>,
    /// The response, and the certificate without it.
    staple: Option<(Staple, Arc<CertifiedKey>)>,
    /// The certificate asks for a response.
    must_staple: bool,
    /// DNS names of the certificate, or its common name when it has none.
    server_names: Vec<String>,
    /// URI names of the certificate.
    pub(super) uri_sans: Vec<String>,
    /// Unix seconds.
    expires: u64,
    /// What it is called where one name must do: its first URI name, else its first DNS name, else its subject.
    principal: Arc<str>,
}

impl Identity {
    /// Loads a certificate; equal ones are kept once. Validity in time is not looked at: an expired certificate is
    /// the peer's to refuse.
    pub(super) fn load(
        certificate: &TlsCertificate,
        provider: &CryptoProvider,
        schemes: Option<&Arc<[SignatureScheme]>>,
    ) -> Result<Arc<Self>, TlsError> {
        static IDENTITIES: Interned<Identity> = Interned::new();
        let TlsCertificate { chain_pem, key_pem, files: _, ocsp_staple } = certificate;
        let schemes_named = schemes.map(|schemes| format!("{schemes:?}").into_bytes()).unwrap_or_default();
        // A staple counts as a part only if present, so `None` and an empty one differ.
        let parts = [chain_pem, key_pem, &schemes_named].into_iter().chain(ocsp_staple).map(Vec::as_slice);
        IDENTITIES.get_or_try(sha256_parts(parts), || Self::parse(certificate, provider, schemes))
    }

    fn parse(
        certificate: &TlsCertificate,
        provider: &CryptoProvider,
        schemes: Option<&Arc<[SignatureScheme]>>,
    ) -> Result<Self, TlsError> {
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
        let key = match schemes {
            Some(allowed) => Arc::new(LimitedKey { key, allowed: Arc::clone(allowed) }),
            None => key,
        };
        let mut certified = CertifiedKey::new(chain, key);
        let staple = match &certificate.ocsp_staple {
            None => None,
            Some(der) => {
                let staple =
                    Staple::read(der, leaf.serial()).map_err(|reason| TlsError::Staple { place: place(), reason })?;
                let bare = Arc::new(certified.clone());
                certified.ocsp = Some(der.clone());
                Some((staple, bare))
            }
        };
        let must_staple = leaf.must_staple();
        let expires = leaf.validity().1.as_secs();
        Ok(Self { certified: Arc::new(certified), staple, must_staple, server_names, uri_sans, expires, principal })
    }

    /// The certificate for a handshake, with its OCSP response as long as that holds.
    fn shown(&self) -> Arc<CertifiedKey> {
        match &self.staple {
            Some((staple, bare)) if !staple.is_fresh(UnixTime::now()) => Arc::clone(bare),
            _ => Arc::clone(&self.certified),
        }
    }

    /// What a policy makes of this certificate now.
    pub(super) fn stapling(&self, policy: OcspPolicy) -> Stapling {
        let policy = if self.must_staple { OcspPolicy::Must } else { policy };
        stapling(policy, self.staple.as_ref().map(|(staple, _)| staple.is_fresh(UnixTime::now())))
    }

    /// Whether a response is there, if there has to be one.
    fn check_staple(&self, policy: OcspPolicy) -> Result<(), &'static str> {
        match (&self.staple, policy) {
            (None, _) if self.must_staple => Err("is required, since the certificate says must-staple"),
            (None, OcspPolicy::Must) => Err("is required by ocsp_staple_policy MUST_STAPLE"),
            _ => Ok(()),
        }
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
        self.certified.key.algorithm() != SignatureAlgorithm::RSA
    }
}

/// A key that signs only with some of the algorithms it could sign with.
#[derive(Debug)]
struct LimitedKey {
    key: Arc<dyn SigningKey>,
    /// In order of preference.
    allowed: Arc<[SignatureScheme]>,
}

impl SigningKey for LimitedKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let both = self.allowed.iter().filter(|scheme| offered.contains(scheme));
        both.into_iter().find_map(|scheme| self.key.choose_scheme(&[*scheme]))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.key.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.key.algorithm()
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
        return Err("the key is encrypted with a passphrase, which is not supported: give it unencrypted".to_owned());
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
    pub(super) fn load(
        certificates: &[Arc<TlsCertificate>],
        provider: &CryptoProvider,
        schemes: Option<&Arc<[SignatureScheme]>>,
    ) -> Result<Self, TlsError> {
        let load = |certificate: &Arc<TlsCertificate>| Identity::load(certificate, provider, schemes);
        certificates.iter().map(load).collect::<Result<_, _>>().map(Self)
    }

    /// Whether each has the OCSP response that it must have.
    pub(super) fn check_staples(
        &self,
        policy: OcspPolicy,
        certificates: &[Arc<TlsCertificate>],
    ) -> Result<(), TlsError> {
        for (identity, certificate) in self.0.iter().zip(certificates) {
            identity
                .check_staple(policy)
                .map_err(|reason| TlsError::Staple { place: place(&certificate.files), reason: reason.to_owned() })?;
        }
        Ok(())
    }

    /// Whether any handshake depends on what clients say about OCSP.
    pub(super) fn staple(&self) -> bool {
        self.0.iter().any(|identity| identity.staple.is_some())
    }

    /// Whether both are the same certificates, in order.
    pub(super) fn same(&self, other: &Self) -> bool {
        // Equal ones are kept once.
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// When each of them expires, in Unix seconds.
    pub(super) fn expirations(&self) -> Vec<u64> {
        self.0.iter().map(|identity| identity.expires).collect()
    }

    /// When the first of their OCSP responses does; 0 for one that does not say.
    pub(super) fn first_staple_expires(&self) -> Option<u64> {
        let staples = self.0.iter().filter_map(|identity| identity.staple.as_ref());
        staples.map(|(staple, _)| staple.expires().unwrap_or(0)).min()
    }

    /// The names that all certificates are for, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|identity| identity.server_names.iter().chain(&identity.uri_sans)).map(String::as_str)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// URI names of the first certificate. rustls does not tell which one a handshake used; in a mesh, all of a
    /// workload's certificates carry the same identity.
    pub(super) fn uri_sans(&self) -> Vec<String> {
        self.0.first().map(|identity| identity.uri_sans.clone()).unwrap_or_default()
    }

    /// The first certificate, under the same reservation.
    pub(super) fn certified(&self) -> Option<Arc<CertifiedKey>> {
        self.0.first().map(|identity| Arc::clone(&identity.certified))
    }

    /// What the first certificate is called; empty if there is none.
    pub(super) fn principal(&self) -> Arc<str> {
        self.0.first().map(|identity| Arc::clone(&identity.principal)).unwrap_or_else(|| "".into())
    }

    /// By name first: exactly, then by wildcard; the cheapest that the client can verify. Without a name that fits:
    /// the first one that the client can verify, or else the first one.
    pub(super) fn for_server_name(
        &self,
        server_name: Option<&str>,
        schemes: &[SignatureScheme],
    ) -> Option<&Arc<Identity>> {
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
        // Without one that the client can verify, rustls tells it (and us) what they do not have in common.
        self.0.iter().find(|identity| identity.can_sign(schemes)).or_else(|| self.0.first())
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|identity| &identity.server_names)).finish()
    }
}

impl ResolvesServerCert for Identities {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.for_server_name(hello.server_name(), hello.signature_schemes()).map(|found| found.shown())
    }
}

impl ResolvesClientCert for Identities {
    /// The server's list of authorities is not looked at: it is a hint, often incomplete, and Envoy ignores it too.
    fn resolve(&self, _authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|identity| identity.can_sign(schemes)).map(|found| found.shown())
    }

    fn has_certs(&self) -> bool {
        !self.is_empty()
    }
}
