//! What TLS contexts are built from once secrets are resolved.
//!
//! Owns the lookup of certificates and validations, the merge of a combined validation context, and the comparison that
//! tells whether a context must be built again. Never talks TLS.

use std::sync::Arc;

use outrigger_config::source::ConfigSource;
use outrigger_config::tls::{
    CertificateSource, CommonTls, DownstreamTls, Secret, SecretKind, TlsCertificate, TlsVersions, UpstreamTls,
    Validation, ValidationSource,
};

use super::resources::{certificate, validation};
use crate::tls::{ClientTls, ServerTls, TlsError};

/// Finds a secret; `None` as source means the bootstrap.
pub type FindSecret<'a> = dyn Fn(&Arc<str>, Option<&ConfigSource>) -> Option<Arc<Secret>> + 'a;

/// Why a context cannot be resolved.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SecretError {
    /// A static secret does not exist.
    #[error("static secret {0:?} does not exist in the bootstrap")]
    Unknown(Arc<str>),
    /// A secret is of another kind.
    #[error("secret {name:?} is not a {expected}")]
    OtherKind {
        /// Its name.
        name: Arc<str>,
        /// `TLS certificate` or `validation context`.
        expected: &'static str,
    },
}

/// Resolved certificates and validation.
#[derive(Clone, Debug, Default)]
pub struct TlsInputs {
    certificates: Vec<Arc<TlsCertificate>>,
    validation: Option<Arc<Validation>>,
    /// The base that `validation` is merged over.
    base: Option<Arc<Validation>>,
}

impl TlsInputs {
    /// Resolves what a context refers to; `None` while a discovered secret has not arrived.
    pub fn resolve(common: &CommonTls, find: &FindSecret<'_>) -> Result<Option<Self>, SecretError> {
        let mut inputs = Self::default();
        let mut complete = true;
        for source in &common.certificates {
            match source {
                CertificateSource::Inline(found) => inputs.certificates.push(Arc::clone(found)),
                CertificateSource::Sds { name, source } => match find(name, source.as_ref()) {
                    Some(secret) => {
                        let expected = "TLS certificate";
                        let other = || SecretError::OtherKind { name: Arc::clone(name), expected };
                        inputs.certificates.push(Arc::clone(certificate(&secret).ok_or_else(other)?));
                    }
                    None if source.is_none() => return Err(SecretError::Unknown(Arc::clone(name))),
                    None => complete = false,
                },
            }
        }
        match &common.validation {
            ValidationSource::None => {}
            ValidationSource::Inline(found) => inputs.validation = Some(Arc::clone(found)),
            ValidationSource::Sds { name, source, default } => match find(name, source.as_ref()) {
                Some(secret) => {
                    let expected = "validation context";
                    let other = || SecretError::OtherKind { name: Arc::clone(name), expected };
                    inputs.validation = Some(Arc::clone(validation(&secret).ok_or_else(other)?));
                    inputs.base = default.clone();
                }
                None if source.is_none() => return Err(SecretError::Unknown(Arc::clone(name))),
                None => complete = false,
            },
        }
        Ok(complete.then_some(inputs))
    }

    /// Whether both lead to the same context.
    pub fn same(&self, other: &Self) -> bool {
        fn same_option(a: Option<&Arc<Validation>>, b: Option<&Arc<Validation>>) -> bool {
            match (a, b) {
                (None, None) => true,
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                _ => false,
            }
        }
        self.certificates.len() == other.certificates.len()
            && self.certificates.iter().zip(&other.certificates).all(|(a, b)| Arc::ptr_eq(a, b))
            && same_option(self.validation.as_ref(), other.validation.as_ref())
            && same_option(self.base.as_ref(), other.base.as_ref())
    }

    fn merged(&self) -> Option<Validation> {
        let validation = self.validation.as_deref()?;
        Some(match self.base.as_deref() {
            Some(base) => combine(base, validation),
            None => validation.clone(),
        })
    }

    /// A context for downstream.
    pub fn server(&self, config: &DownstreamTls) -> Result<Arc<ServerTls>, TlsError> {
        ServerTls::build(config, &self.certificates, self.merged().as_ref()).map(Arc::new)
    }

    /// A context for upstream.
    pub fn client(&self, config: &UpstreamTls) -> Result<Arc<ClientTls>, TlsError> {
        ClientTls::build(config, &self.certificates, self.merged().as_ref()).map(Arc::new)
    }
}

/// A combined validation context: protobuf's merge, the discovered one over the default one.
fn combine(base: &Validation, over: &Validation) -> Validation {
    fn joined<T: Clone>(base: &[T], over: &[T]) -> Vec<T> {
        base.iter().chain(over).cloned().collect()
    }
    let pem = |base: &Vec<u8>, over: &Vec<u8>| if over.is_empty() { base.clone() } else { over.clone() };
    let Validation {
        trusted_ca_pem,
        system_roots,
        spki_pins,
        certificate_hashes,
        subject_alt_names,
        crl_pem,
        only_verify_leaf_crl,
        allow_expired,
        accept_untrusted,
        max_verify_depth,
        suppress_client_ca_list,
        files,
    } = over;
    Validation {
        trusted_ca_pem: pem(&base.trusted_ca_pem, trusted_ca_pem),
        system_roots: base.system_roots || *system_roots,
        spki_pins: joined(&base.spki_pins, spki_pins),
        certificate_hashes: joined(&base.certificate_hashes, certificate_hashes),
        subject_alt_names: joined(&base.subject_alt_names, subject_alt_names),
        crl_pem: pem(&base.crl_pem, crl_pem),
        only_verify_leaf_crl: base.only_verify_leaf_crl || *only_verify_leaf_crl,
        allow_expired: base.allow_expired || *allow_expired,
        accept_untrusted: base.accept_untrusted || *accept_untrusted,
        max_verify_depth: max_verify_depth.or(base.max_verify_depth),
        suppress_client_ca_list: base.suppress_client_ca_list || *suppress_client_ca_list,
        files: joined(&base.files, files),
    }
}

/// Whether a secret can be used at all, so that a bad one is refused before anything depends on it.
pub fn check_secret(secret: &Secret) -> Result<(), TlsError> {
    let config = plain_upstream();
    match &secret.kind {
        SecretKind::Certificate(certificate) => ClientTls::build(&config, std::slice::from_ref(certificate), None)?,
        SecretKind::Validation(validation) => ClientTls::build(&config, &[], Some(validation))?,
    };
    Ok(())
}

/// An upstream context without anything special.
pub fn plain_upstream() -> UpstreamTls {
    UpstreamTls {
        common: CommonTls {
            versions: TlsVersions { tls12: true, tls13: true },
            cipher_suites: Vec::new(),
            curves: Vec::new(),
            left_out: Vec::new(),
            alpn: Vec::new(),
            certificates: Vec::new(),
            validation: ValidationSource::None,
        },
        sni: String::new(),
        auto_host_sni: false,
        auto_sni_san_validation: false,
        max_session_keys: 1,
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::matching::StringMatcher;
    use outrigger_config::tls::SanMatcher;

    use super::*;

    #[test]
    fn a_combined_validation_context_joins_lists_and_takes_the_discovered_authority() {
        let san = |name: &str| SanMatcher {
            kind: None,
            matcher: StringMatcher::Exact { value: name.into(), ignore_case: false },
        };
        let base = Validation {
            subject_alt_names: vec![san("spiffe://a")],
            trusted_ca_pem: b"old".to_vec(),
            allow_expired: true,
            ..Validation::default()
        };
        let over = Validation {
            trusted_ca_pem: b"new".to_vec(),
            subject_alt_names: vec![san("spiffe://b")],
            ..Validation::default()
        };
        let merged = combine(&base, &over);
        assert_eq!(merged.trusted_ca_pem, b"new");
        assert_eq!(merged.subject_alt_names, [san("spiffe://a"), san("spiffe://b")]);
        assert!(merged.allow_expired);
    }

    #[test]
    fn a_static_secret_must_exist_and_a_discovered_one_may_come_later() {
        let mut common = plain_upstream().common;
        let source = ConfigSource { kind: outrigger_config::source::SourceKind::Ads, initial_fetch_timeout: None };
        common.certificates = vec![CertificateSource::Sds { name: "c".into(), source: Some(source) }];
        assert!(TlsInputs::resolve(&common, &|_, _| None).unwrap().is_none());
        common.certificates = vec![CertificateSource::Sds { name: "c".into(), source: None }];
        let error = TlsInputs::resolve(&common, &|_, _| None).unwrap_err();
        assert_eq!(error.to_string(), "static secret \"c\" does not exist in the bootstrap");
        let secret = Secret { name: "c".into(), kind: SecretKind::Validation(Arc::default()) };
        let error = TlsInputs::resolve(&common, &|_, _| Some(Arc::new(secret.clone()))).unwrap_err();
        assert_eq!(error.to_string(), "secret \"c\" is not a TLS certificate");
    }
}
