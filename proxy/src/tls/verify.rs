//! Whether a peer's certificate is accepted.
//!
//! Owns the checks of `CertificateValidationContext`. As in Envoy, no host name is checked
//! unless the configuration asks for it. Never chooses our own certificate.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outrigger_config::tls::{SanMatcher, Validation};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerMisbehaved, ProtocolVersion,
    SignatureScheme,
};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RawPublicKeyEntity, RevocationCheckDepth,
    RevocationOptions, RevocationOptionsBuilder, VerifiedPath,
};

use super::certificate::{Parsed, SubjectAltName};
use super::error::{TlsError, VerifyFailure};
use super::intern::{Sha256, hex, sha256};
use super::origin;
use super::san;
use super::trust::{self, Roots, revocation_lists, roots};

/// Which side the peer is on; certificates may be limited to one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum PeerRole {
    /// It connected to us.
    Client,
    /// We connected to it.
    Server,
}

/// The checks for the peers of one context.
pub(super) struct PeerVerifier {
    role: PeerRole,
    roots: Option<Arc<Roots>>,
    /// With these, the peer's trust domain says which roots count.
    domains: Option<HashMap<Arc<str>, Arc<Roots>>>,
    /// What clients are told of the authorities that are trusted.
    hints: Vec<DistinguishedName>,
    revocation_lists: Option<Arc<Vec<CertRevocationList<'static>>>>,
    only_verify_leaf_crl: bool,
    subject_alt_names: Vec<SanMatcher>,
    spki_pins: Vec<Sha256>,
    certificate_hashes: Vec<Sha256>,
    allow_expired: bool,
    accept_untrusted: bool,
    /// As in the API: the leaf does not count, the trust anchor does.
    max_verify_depth: Option<u32>,
    algorithms: WebPkiSupportedAlgorithms,
    /// What of them counts in handshakes, in order of preference; all when `None`.
    schemes: Option<Arc<[SignatureScheme]>>,
}

impl PeerVerifier {
    pub(super) fn build(
        role: PeerRole,
        validation: &Validation,
        algorithms: WebPkiSupportedAlgorithms,
        schemes: Option<Arc<[SignatureScheme]>>,
    ) -> Result<Self, TlsError> {
        let Validation {
            trusted_ca_pem,
            system_roots,
            spiffe,
            spki_pins,
            certificate_hashes,
            subject_alt_names,
            crl_pem: _,
            only_verify_leaf_crl,
            allow_expired,
            accept_untrusted,
            max_verify_depth,
            suppress_client_ca_list,
            files: _,
        } = validation;
        validation.complete().map_err(TlsError::Validation)?;
        let (roots, domains) = match spiffe {
            None => (roots(validation)?, None),
            Some(trust) => {
                if !trusted_ca_pem.is_empty() || *system_roots {
                    tracing::warn!("trusted_ca has no part where the SPIFFE validator decides");
                }
                (None, Some(trust::domains(trust, validation)?))
            }
        };
        let mut hints = Vec::new();
        if role == PeerRole::Client && !suppress_client_ca_list {
            let all = roots.iter().chain(domains.iter().flat_map(HashMap::values));
            hints = all.flat_map(|roots| roots.subjects.iter().cloned()).collect();
        }
        Ok(Self {
            role,
            roots,
            domains,
            hints,
            revocation_lists: revocation_lists(validation)?,
            only_verify_leaf_crl: *only_verify_leaf_crl,
            subject_alt_names: subject_alt_names.clone(),
            spki_pins: spki_pins.iter().map(|pin| parse_spki_pin(pin)).collect::<Result<_, _>>()?,
            certificate_hashes: certificate_hashes.iter().map(|hash| parse_hash(hash)).collect::<Result<_, _>>()?,
            allow_expired: *allow_expired,
            accept_untrusted: *accept_untrusted,
            max_verify_depth: *max_verify_depth,
            algorithms,
            schemes,
        })
    }

    /// Whether chains are verified against trusted certificates.
    pub(super) fn has_roots(&self) -> bool {
        self.roots.is_some() || self.domains.is_some()
    }

    /// Whether both accept the same peers for the same reasons.
    pub(super) fn same(&self, other: &Self) -> bool {
        let same_roots = |a: Option<&Arc<Roots>>, b: Option<&Arc<Roots>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        let same_domains = match (&self.domains, &other.domains) {
            (Some(a), Some(b)) => a.len() == b.len() && a.keys().all(|name| same_roots(a.get(name), b.get(name))),
            (a, b) => a.is_none() && b.is_none(),
        };
        let same_lists = match (&self.revocation_lists, &other.revocation_lists) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        // Equal ones are kept once, so who has the same has the very same.
        same_roots(self.roots.as_ref(), other.roots.as_ref())
            && same_domains
            && same_lists
            && self.only_verify_leaf_crl == other.only_verify_leaf_crl
            && self.subject_alt_names == other.subject_alt_names
            && self.spki_pins == other.spki_pins
            && self.certificate_hashes == other.certificate_hashes
            && self.allow_expired == other.allow_expired
            && self.accept_untrusted == other.accept_untrusted
            && self.max_verify_depth == other.max_verify_depth
    }

    /// When the first trusted certificate expires, in Unix seconds.
    pub(super) fn authorities_expire(&self) -> Option<u64> {
        let all = self.roots.iter().chain(self.domains.iter().flat_map(HashMap::values));
        all.filter_map(|roots| roots.first_expires).min()
    }

    /// Whether names or pins are checked; a client then has to show a certificate.
    pub(super) fn has_names_or_pins(&self) -> bool {
        !self.subject_alt_names.is_empty() || self.has_pins()
    }

    /// Whether there is anything to go by.
    pub(super) fn can_accept(&self) -> bool {
        self.has_roots() || self.has_names_or_pins() || self.accept_untrusted
    }

    fn has_pins(&self) -> bool {
        !self.spki_pins.is_empty() || !self.certificate_hashes.is_empty()
    }

    /// Names of the trusted certificates, for the request to clients.
    pub(super) fn hints(&self) -> &[DistinguishedName] {
        &self.hints
    }

    /// Whether the chain leads to a trusted certificate, looked up once more because a handshake that accepts
    /// untrusted peers does not tell.
    pub(super) fn is_verified(&self, chain: &[CertificateDer<'_>]) -> bool {
        match chain.split_first() {
            Some(_) if self.has_roots() && !self.accept_untrusted => true,
            Some((leaf, rest)) if self.has_roots() => self.verify(leaf, rest, None, UnixTime::now()).is_ok(),
            _ => false,
        }
    }

    pub(super) fn accept(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: Option<&str>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        match self.verify(leaf, intermediates, server_name, now) {
            Err(_) if self.accept_untrusted => Ok(()),
            result => result.map_err(rustls::Error::InvalidCertificate),
        }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: Option<&str>,
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        let roots = match &self.domains {
            Some(domains) => Some(roots_of_peer(domains, leaf)?),
            None => self.roots.as_ref(),
        };
        if let Some(roots) = roots {
            self.verify_chain(roots, leaf, intermediates, now).map_err(chain_failure)?;
        }
        if server_name.is_some() || !self.subject_alt_names.is_empty() {
            self.verify_names(leaf, server_name)?;
        }
        if self.has_pins() {
            self.verify_pins(leaf)?;
        }
        Ok(())
    }

    fn verify_names(&self, leaf: &CertificateDer<'_>, server_name: Option<&str>) -> Result<(), CertificateError> {
        let mut names = Parsed::read(leaf).map_err(|reason| failure(VerifyFailure::Chain(reason)))?.names;
        if self.domains.is_some() && server_name.is_none() {
            names.retain(|name| matches!(name, SubjectAltName::Uri(_)));
        }
        // Asking for the server name takes the place of the matchers (`auto_sni_san_validation`).
        match server_name {
            Some(expected) if san::is_for_server(expected, &names) => Ok(()),
            Some(expected) => {
                let expected = expected.to_owned();
                Err(failure(VerifyFailure::ServerName { expected, names: san::list(&names) }))
            }
            None if san::any_accepted(&self.subject_alt_names, &names) => Ok(()),
            None => Err(failure(VerifyFailure::SubjectAltName { names: san::list(&names) })),
        }
    }

    /// Either kind of pin is enough.
    fn verify_pins(&self, leaf: &CertificateDer<'_>) -> Result<(), CertificateError> {
        let hash = sha256(leaf);
        if self.certificate_hashes.contains(&hash) {
            return Ok(());
        }
        if !self.spki_pins.is_empty() {
            let key = public_key(leaf).map_err(|reason| failure(VerifyFailure::Chain(reason)))?;
            if self.spki_pins.contains(&sha256(&key)) {
                return Ok(());
            }
        }
        Err(failure(VerifyFailure::Pin { sha256: hex(&hash) }))
    }

    fn verify_chain(
        &self,
        roots: &Roots,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        // With expired certificates allowed, a time is looked for at which the whole chain was valid: each failure
        // names the bound that was crossed. A chain has few bounds; one that never was valid as a whole runs out.
        let mut time = now;
        for _ in 0..TIMES_TRIED {
            match self.verify_chain_at(roots, leaf, intermediates, time) {
                Err(webpki::Error::CertExpired { not_after, .. }) if self.allow_expired => time = not_after,
                Err(webpki::Error::CertNotValidYet { not_before, .. }) if self.allow_expired => time = not_before,
                result => return result,
            }
        }
        Err(webpki::Error::InvalidCertValidity)
    }

    fn verify_chain_at(
        &self,
        roots: &Roots,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        time: UnixTime,
    ) -> Result<(), webpki::Error> {
        let certificate = EndEntityCert::try_from(leaf)?;
        let usage = match self.role {
            PeerRole::Client => KeyUsage::client_auth(),
            PeerRole::Server => KeyUsage::server_auth(),
        };
        let depth = |path: &VerifiedPath<'_>| {
            let above_leaf = path.intermediate_certificates().count() + 1;
            match self.max_verify_depth {
                Some(limit) if above_leaf > usize::try_from(limit).unwrap_or(usize::MAX) => {
                    Err(webpki::Error::MaximumPathDepthExceeded)
                }
                _ => Ok(()),
            }
        };
        let lists: Vec<&CertRevocationList<'_>> = self.revocation_lists.iter().flat_map(|lists| lists.iter()).collect();
        let result = certificate.verify_for_usage(
            self.algorithms.all,
            &roots.anchors,
            intermediates,
            time,
            usage,
            self.revocation(&lists),
            Some(&depth),
        );
        match result {
            Ok(_) => Ok(()),
            // A certificate that is itself in the list of trusted ones needs no issuer, only to be valid in time;
            // which paths are tried before it does not matter then.
            Err(webpki::Error::UnknownIssuer | webpki::Error::CaUsedAsEndEntity)
                if roots.certificates.contains(&sha256(leaf)) =>
            {
                self.verify_time(leaf, time)
            }
            Err(error) => Err(error),
        }
    }

    fn verify_time(&self, leaf: &CertificateDer<'_>, time: UnixTime) -> Result<(), webpki::Error> {
        let (not_before, not_after) = Parsed::read(leaf).map_err(|_| webpki::Error::BadDer)?.validity();
        if time.as_secs() < not_before.as_secs() {
            return Err(webpki::Error::CertNotValidYet { time, not_before });
        }
        if time.as_secs() > not_after.as_secs() {
            return Err(webpki::Error::CertExpired { time, not_after });
        }
        Ok(())
    }

    fn revocation<'a>(&self, lists: &'a [&'a CertRevocationList<'a>]) -> Option<RevocationOptions<'a>> {
        let depth =
            if self.only_verify_leaf_crl { RevocationCheckDepth::EndEntity } else { RevocationCheckDepth::Chain };
        let expiration = if self.allow_expired { ExpirationPolicy::Ignore } else { ExpirationPolicy::Enforce };
        // Fails only for an empty list, which means that nothing is checked. An issuer without a list is refused.
        let builder = RevocationOptionsBuilder::new(lists).ok()?;
        Some(builder.with_depth(depth).with_expiration_policy(expiration).build())
    }

    /// What the peer may sign the handshake with, the best first.
    pub(super) fn verify_schemes(&self) -> Vec<SignatureScheme> {
        let known = self.algorithms.supported_schemes();
        match &self.schemes {
            None => known,
            Some(schemes) => schemes.iter().copied().filter(|scheme| known.contains(scheme)).collect(),
        }
    }

    /// Checks that the peer holds the key. Works on the bare key, because peers that are not verified may send
    /// certificates that webpki would not take (version 1, say).
    pub(super) fn verify_signature(
        &self,
        version: ProtocolVersion,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let unoffered = || rustls::Error::from(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme);
        if self.schemes.as_ref().is_some_and(|schemes| !schemes.contains(&signed.scheme)) {
            return Err(unoffered());
        }
        let candidates = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let (_, candidates) = candidates.ok_or_else(unoffered)?;
        // A scheme fixes the curve in TLS 1.3 only (RFC 8446, 4.2.3), and leaves PKCS#1 to certificates.
        let candidates = if version == ProtocolVersion::TLSv1_3 {
            if is_pkcs1(signed.scheme) {
                return Err(unoffered());
            }
            &candidates[..1]
        } else {
            candidates
        };
        let key = public_key(certificate)
            .map_err(|reason| rustls::Error::InvalidCertificate(failure(VerifyFailure::Chain(reason))))?;
        let key = SubjectPublicKeyInfoDer::from(key);
        let bad = rustls::Error::InvalidCertificate(CertificateError::BadSignature);
        let key = RawPublicKeyEntity::try_from(&key)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        // An algorithm for another kind of key fails at once.
        if candidates.iter().any(|algorithm| key.verify_signature(*algorithm, message, signed.signature()).is_ok()) {
            origin::signed(signed.scheme);
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(bad)
        }
    }
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier")
            .field("role", &self.role)
            .field("roots", &self.roots.as_deref().map(|roots| roots.anchors.len()))
            .field("trust_domains", &self.domains.as_ref().map(|domains| domains.keys().collect::<Vec<_>>()))
            .field("subject_alt_names", &self.subject_alt_names)
            .field("accept_untrusted", &self.accept_untrusted)
            .finish_non_exhaustive()
    }
}

/// The roots of the trust domain that a certificate is of (X509-SVID, 5).
fn roots_of_peer<'a>(
    domains: &'a HashMap<Arc<str>, Arc<Roots>>,
    leaf: &CertificateDer<'_>,
) -> Result<&'a Arc<Roots>, CertificateError> {
    let refuse = |reason: String| failure(VerifyFailure::Chain(reason));
    let parsed = Parsed::read(leaf).map_err(refuse)?;
    if parsed.is_authority() {
        return Err(refuse("certificate of an authority where a SPIFFE ID of a workload should be".to_owned()));
    }
    let mut uris = parsed.uris();
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err(refuse(format!("a SPIFFE ID is one URI, the certificate has {}", san::list(&parsed.names))));
    };
    let Some(domain) = trust_domain(uri) else { return Err(refuse(format!("{uri:?} is not a SPIFFE ID"))) };
    domains.get(domain).ok_or_else(|| refuse(format!("no trust bundle for the trust domain {domain:?} of the peer")))
}

/// The trust domain in a SPIFFE ID.
fn trust_domain(uri: &str) -> Option<&str> {
    let rest = uri.strip_prefix("spiffe://")?;
    let domain = rest.split('/').next().unwrap_or(rest);
    (!domain.is_empty()).then_some(domain)
}

/// More than the bounds of a chain as long as webpki follows.
const TIMES_TRIED: usize = 20;

fn is_pkcs1(scheme: SignatureScheme) -> bool {
    matches!(
        scheme,
        SignatureScheme::RSA_PKCS1_SHA1
            | SignatureScheme::RSA_PKCS1_SHA256
            | SignatureScheme::RSA_PKCS1_SHA384
            | SignatureScheme::RSA_PKCS1_SHA512
    )
}

fn public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, String> {
    match EndEntityCert::try_from(certificate) {
        Ok(certificate) => Ok(certificate.subject_public_key_info().as_ref().to_vec()),
        Err(_) => Parsed::read(certificate)?.public_key(),
    }
}

pub(super) fn failure(failure: VerifyFailure) -> CertificateError {
    CertificateError::Other(OtherError(Arc::new(failure)))
}

/// Gives the peer the fitting alert, and us the reason.
fn chain_failure(error: webpki::Error) -> CertificateError {
    use webpki::Error;
    let reason = match error {
        Error::UnknownIssuer => return CertificateError::UnknownIssuer,
        Error::CertRevoked => return CertificateError::Revoked,
        Error::CertExpired { time, not_after } => return CertificateError::ExpiredContext { time, not_after },
        Error::CertNotValidYet { time, not_before } => {
            return CertificateError::NotValidYetContext { time, not_before };
        }
        Error::UnknownRevocationStatus => "no revocation list for the certificate's issuer".to_owned(),
        Error::CrlExpired { .. } => "revocation list has expired".to_owned(),
        Error::InvalidSignatureForPublicKey => "certificate signature failure".to_owned(),
        Error::CaUsedAsEndEntity => "certificate of an authority where the peer's own should be".to_owned(),
        Error::MaximumPathDepthExceeded => "certificate chain too long".to_owned(),
        Error::RequiredEkuNotFoundContext(_) => {
            "certificate is not meant for this side (extended key usage)".to_owned()
        }
        Error::NameConstraintViolation => "a name is outside of what its authority may certify".to_owned(),
        Error::UnsupportedCertVersion => "certificate is not an X.509 version 3 certificate".to_owned(),
        Error::InvalidCertValidity => "the certificates of the chain were never valid at the same time".to_owned(),
        other => format!("{other:?}"),
    };
    failure(VerifyFailure::Chain(reason))
}

fn parse_spki_pin(pin: &str) -> Result<Sha256, TlsError> {
    STANDARD.decode(pin).ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| TlsError::Pin {
        field: "verify_certificate_spki",
        value: pin.to_owned(),
        expected: "a base64-encoded SHA-256",
    })
}

fn parse_hash(hash: &str) -> Result<Sha256, TlsError> {
    let digits = hash.bytes().filter(|byte| *byte != b':').map(|byte| char::from(byte).to_digit(16));
    let mut out = Sha256::default();
    let mut count = 0;
    for (index, digit) in digits.enumerate() {
        if let (Some(digit), Some(byte)) = (digit.and_then(|digit| u8::try_from(digit).ok()), out.get_mut(index / 2)) {
            *byte = *byte << 4 | digit;
            count += 1;
        } else {
            count = 0;
            break;
        }
    }
    if count == 2 * out.len() {
        return Ok(out);
    }
    Err(TlsError::Pin { field: "verify_certificate_hash", value: hash.to_owned(), expected: "a hex-encoded SHA-256" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_domains_of_spiffe_ids() {
        assert_eq!(trust_domain("spiffe://a.org/ns/x"), Some("a.org"));
        assert_eq!(trust_domain("spiffe://a.org"), Some("a.org"));
        for other in ["spiffe:///x", "spiffe://", "https://a.org", "SPIFFE://a.org"] {
            assert_eq!(trust_domain(other), None, "{other}");
        }
    }

    #[test]
    fn pins_in_their_usual_forms() {
        let plain = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let expected = sha256(b"");
        assert_eq!(parse_hash(plain).unwrap(), expected);
        let pairs: Vec<_> = expected.iter().map(|byte| format!("{byte:02X}")).collect();
        assert_eq!(parse_hash(&pairs.join(":")).unwrap(), expected);
        assert_eq!(parse_spki_pin("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=").unwrap(), expected);
    }

    #[test]
    fn bad_pins_are_named() {
        for bad in ["", "ab", "zz", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64)] {
            assert!(parse_hash(bad).is_err(), "{bad}");
        }
        let error = parse_spki_pin("AAAA").unwrap_err().to_string();
        assert_eq!(error, "verify_certificate_spki: \"AAAA\" is not a base64-encoded SHA-256");
    }
}
