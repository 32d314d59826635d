//! Trusted certificates and revocation lists.
//!
//! Owns their parsed forms, each kept once however many contexts use it. Never verifies anything.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use outrigger_config::tls::{SpiffeTrust, Validation};
use rustls::DistinguishedName;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor};
use webpki::{CertRevocationList, OwnedCertRevocationList, anchor_from_trusted_cert};

use super::certificate::{Parsed, read_chain};
use super::error::{TlsError, place};
use super::intern::{Interned, Sha256, sha256, sha256_parts};

/// Trusted certificates.
pub(super) struct Roots {
    /// For building paths.
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    /// Hashes of whole certificates: one that is itself in the list is trusted without a path.
    pub(super) certificates: HashSet<Sha256>,
    /// Names to hint to clients; none for the system's roots, which would fill a large message and say nothing.
    pub(super) subjects: Vec<DistinguishedName>,
    /// When the first one expires, in Unix seconds; the system's do not count.
    pub(super) first_expires: Option<u64>,
}

/// The roots of a validation; `None` when it has none, and trusts any chain.
pub(super) fn roots(validation: &Validation) -> Result<Option<Arc<Roots>>, TlsError> {
    static GIVEN: Interned<Roots> = Interned::new();
    if validation.trusted_ca_pem.is_empty() && !validation.system_roots {
        return Ok(None);
    }
    let pem = &validation.trusted_ca_pem;
    let system = if validation.system_roots { b"system".as_slice() } else { b"" };
    GIVEN.get_or_try(sha256_parts([pem.as_slice(), system]), || parse_roots(validation)).map(Some)
}

/// The roots of SPIFFE trust domains, by name.
pub(super) fn domains(trust: &SpiffeTrust, validation: &Validation) -> Result<HashMap<Arc<str>, Arc<Roots>>, TlsError> {
    let mut domains = HashMap::with_capacity(trust.domains.len());
    for domain in &trust.domains {
        let bundle = Validation {
            trusted_ca_pem: domain.bundle_pem.clone(),
            files: validation.files.clone(),
            ..Validation::default()
        };
        let roots = roots(&bundle).map_err(|error| match error {
            TlsError::Trust { place, reason } => {
                TlsError::Trust { place, reason: format!("trust domain {:?}: {reason}", domain.name) }
            }
            other => other,
        })?;
        // A bundle of the configuration is never empty.
        domains.extend(roots.map(|roots| (Arc::clone(&domain.name), roots)));
    }
    Ok(domains)
}

/// The revocation lists of a validation; `None` when it has none.
pub(super) fn revocation_lists(
    validation: &Validation,
) -> Result<Option<Arc<Vec<CertRevocationList<'static>>>>, TlsError> {
    static LISTS: Interned<Vec<CertRevocationList<'static>>> = Interned::new();
    if validation.crl_pem.is_empty() {
        return Ok(None);
    }
    let refuse = |reason: String| TlsError::Revocation { place: place(&validation.files), reason };
    LISTS
        .get_or_try(sha256(&validation.crl_pem), || {
            let mut lists = Vec::new();
            for (index, der) in CertificateRevocationListDer::pem_slice_iter(&validation.crl_pem).enumerate() {
                let der = der.map_err(|error| refuse(format!("not valid PEM: {error}")))?;
                let list = OwnedCertRevocationList::from_der(&der)
                    .map_err(|error| refuse(format!("list {} cannot be used: {error:?}", index + 1)))?;
                lists.push(CertRevocationList::from(list));
            }
            if lists.is_empty() { Err(refuse("no revocation list in the PEM data".to_owned())) } else { Ok(lists) }
        })
        .map(Some)
}

fn parse_roots(validation: &Validation) -> Result<Roots, TlsError> {
    let mut roots =
        Roots { anchors: Vec::new(), certificates: HashSet::new(), subjects: Vec::new(), first_expires: None };
    if validation.system_roots {
        for certificate in system_certificates()? {
            // Distributions ship a few certificates that no parser likes; the others are still good.
            let _ = roots.add(&certificate);
        }
    }
    if !validation.trusted_ca_pem.is_empty() {
        let refuse = |reason: String| TlsError::Trust { place: place(&validation.files), reason };
        for (index, certificate) in read_chain(&validation.trusted_ca_pem).map_err(refuse)?.iter().enumerate() {
            let anchor = roots
                .add(certificate)
                .map_err(|error| refuse(format!("certificate {} cannot be used: {error}", index + 1)))?;
            roots.subjects.push(anchor);
            let expires = Parsed::read(certificate).ok().map(|parsed| parsed.validity().1.as_secs());
            roots.first_expires = roots.first_expires.into_iter().chain(expires).min();
        }
    }
    Ok(roots)
}

impl Roots {
    /// Adds one, and gives its subject.
    fn add(&mut self, certificate: &CertificateDer<'_>) -> Result<DistinguishedName, webpki::Error> {
        let anchor = anchor_from_trusted_cert(certificate)?.to_owned();
        let subject = DistinguishedName::in_sequence(anchor.subject.as_ref());
        if self.certificates.insert(sha256(certificate)) {
            self.anchors.push(anchor);
        }
        Ok(subject)
    }
}

fn system_certificates() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refuse = |reason: String| TlsError::Trust { place: "system roots".to_owned(), reason };
    let Some(path) = SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.exists()) else {
        return Err(refuse(format!("none of {} exists", SYSTEM_BUNDLES.join(", "))));
    };
    let pem = std::fs::read(path).map_err(|error| refuse(format!("{}: {error}", path.display())))?;
    read_chain(&pem).map_err(|reason| refuse(format!("{}: {reason}", path.display())))
}

/// Where systems keep their bundle: Debian and Alpine, Fedora and RHEL, openSUSE, OpenELEC, the BSDs.
const SYSTEM_BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/ssl/cert.pem",
];

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    fn validation(pem: &str) -> Validation {
        Validation { trusted_ca_pem: pem.as_bytes().to_vec(), ..Validation::default() }
    }

    #[test]
    fn the_same_roots_are_parsed_and_kept_once() {
        let certificate = CertificateParams::new(vec![]).unwrap().self_signed(&KeyPair::generate().unwrap()).unwrap();
        let twice = format!("{0}{0}", certificate.pem());
        let first = roots(&validation(&twice)).unwrap().unwrap();
        assert_eq!(first.anchors.len(), 1);
        assert!(Arc::ptr_eq(&first, &roots(&validation(&twice)).unwrap().unwrap()));
    }

    #[test]
    fn no_roots_and_bad_roots() {
        assert!(roots(&Validation::default()).unwrap().is_none());
        assert!(revocation_lists(&Validation::default()).unwrap().is_none());
        let files = vec!["/etc/ca.pem".into()];
        let error = roots(&Validation { files, ..validation("rubbish") }).err().unwrap();
        assert_eq!(error.to_string(), "trusted certificates (/etc/ca.pem): no certificate in the PEM data");
        let crl_pem = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n".to_vec();
        let error = revocation_lists(&Validation { crl_pem, ..Validation::default() }).err().unwrap();
        assert!(error.to_string().starts_with("revocation list (inline): list 1 cannot be used"), "{error}");
    }
}
