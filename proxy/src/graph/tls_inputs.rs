//! What TLS contexts are built from once secrets are resolved.
//!
//! Owns the lookup of certificates and validations, the merge of a combined validation context, and the comparison that
//! tells whether a context must be built again. Never talks TLS.

use std::sync::Arc;

use outrigger_config::source::ConfigSource;
use outrigger_config::tls::{
    CertificateSource, CommonTls, DownstreamTls, Secret, SecretKind, TicketKeySource, TicketKeys, TlsCertificate,
    TlsVersions, UpstreamTls, Validation, ValidationSource,
};

use super::resources::{certificate, ticket_keys, validation};
use crate::tls::{ClientTls, SecretNames, ServerTls, TlsError};

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
        /// `TLS certificate`, `validation context`, `set of session ticket keys` or `generic secret`.
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
    ticket_keys: Option<Arc<TicketKeys>>,
    names: SecretNames,
    discovered: Discovered,
}

/// Which of them come by discovery.
#[derive(Clone, Debug, Default)]
struct Discovered {
    /// In order.
    certificates: Vec<bool>,
    validation: bool,
    ticket_keys: bool,
}

impl TlsInputs {
    /// Resolves what a context refers to; `None` while a discovered secret has not arrived.
    pub fn resolve(common: &CommonTls, find: &FindSecret<'_>) -> Result<Option<Self>, SecretError> {
        let mut inputs = Self::default();
        let mut complete = true;
        for source in &common.certificates {
            let name = match source {
                CertificateSource::Inline(_) => None,
                CertificateSource::Sds { name, .. } => Some(Arc::clone(name)),
            };
            inputs.names.certificates.push(name);
            let discovered = matches!(source, CertificateSource::Sds { source: Some(_), .. });
            inputs.discovered.certificates.push(discovered);
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
                    inputs.names.authorities = Some(Arc::clone(name));
                    inputs.discovered.validation = source.is_some();
                }
                None if source.is_none() => return Err(SecretError::Unknown(Arc::clone(name))),
                None => complete = false,
            },
        }
        Ok(complete.then_some(inputs))
    }

    /// As [`Self::resolve`], for a context towards downstream.
    pub fn resolve_downstream(config: &DownstreamTls, find: &FindSecret<'_>) -> Result<Option<Self>, SecretError> {
        let inputs = Self::resolve(&config.common, find)?;
        let ticket_keys = match &config.ticket_keys {
            None => None,
            Some(TicketKeySource::Inline(keys)) => Some(Arc::clone(keys)),
            Some(TicketKeySource::Sds { name, source }) => match find(name, source.as_ref()) {
                Some(secret) => {
                    let expected = "set of session ticket keys";
                    let other = || SecretError::OtherKind { name: Arc::clone(name), expected };
                    Some(Arc::clone(ticket_keys(&secret).ok_or_else(other)?))
                }
                None if source.is_none() => return Err(SecretError::Unknown(Arc::clone(name))),
                None => return Ok(None),
            },
        };
        let discovered = matches!(&config.ticket_keys, Some(TicketKeySource::Sds { source: Some(_), .. }));
        Ok(inputs.map(|inputs| {
            let discovered = Discovered { ticket_keys: discovered, ..inputs.discovered };
            Self { ticket_keys, discovered, ..inputs }
        }))
    }

    /// How many discovered secrets are new, or say something else than in `old`.
    pub fn updates_since(&self, old: Option<&Self>) -> u64 {
        let certificates = self.certificates.iter().zip(&self.discovered.certificates).enumerate();
        let certificates = certificates.filter(|(place, (now, discovered))| {
            let before = old.and_then(|old| old.certificates.get(*place));
            **discovered && !before.is_some_and(|before| same(before, now))
        });
        let validation = self.discovered.validation
            && !old.is_some_and(|old| same_option(old.validation.as_ref(), self.validation.as_ref()));
        let ticket_keys = self.discovered.ticket_keys
            && !old.is_some_and(|old| same_option(old.ticket_keys.as_ref(), self.ticket_keys.as_ref()));
        certificates.count() as u64 + u64::from(validation) + u64::from(ticket_keys)
    }

    /// Whether both lead to the same context. What says the same is the same, so that a control plane which repeats
    /// itself disturbs nobody.
    pub fn same(&self, other: &Self) -> bool {
        self.same_trust(other) && same_option(self.ticket_keys.as_ref(), other.ticket_keys.as_ref())
    }

    /// Whether both show the same certificates and trust the same peers.
    pub fn same_trust(&self, other: &Self) -> bool {
        self.certificates.len() == other.certificates.len()
            && self.certificates.iter().zip(&other.certificates).all(|(a, b)| same(a, b))
            && same_option(self.validation.as_ref(), other.validation.as_ref())
            && same_option(self.base.as_ref(), other.base.as_ref())
    }

    fn merged(&self) -> Option<Validation> {
        let validation = self.validation.as_deref()?;
        Some(match self.base.as_deref() {
            Some(base) => base.merged(validation),
            None => validation.clone(),
        })
    }

    /// A context for downstream.
    pub fn server(&self, config: &DownstreamTls) -> Result<Arc<ServerTls>, TlsError> {
        let ticket_keys = self.ticket_keys.as_deref();
        let built = ServerTls::build_with(config, &self.certificates, self.merged().as_ref(), ticket_keys)?;
        Ok(Arc::new(built.with_names(self.names.clone())))
    }

    /// A context for upstream.
    pub fn client(&self, config: &UpstreamTls) -> Result<Arc<ClientTls>, TlsError> {
        let built = ClientTls::build(config, &self.certificates, self.merged().as_ref())?;
        Ok(Arc::new(built.with_names(self.names.clone())))
    }
}

fn same<T: PartialEq>(a: &Arc<T>, b: &Arc<T>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

fn same_option<T: PartialEq>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => same(a, b),
        _ => false,
    }
}

/// Whether a secret can be used at all, so that a bad one is refused before anything depends on it.
pub fn check_secret(secret: &Secret) -> Result<(), TlsError> {
    let config = plain_upstream();
    match &secret.kind {
        SecretKind::Certificate(certificate) => ClientTls::build(&config, std::slice::from_ref(certificate), None)?,
        SecretKind::Validation(validation) => ClientTls::build(&config, &[], Some(validation))?,
        // Their number and size are all that could be wrong; any bytes may be a secret of a filter.
        SecretKind::TicketKeys(_) | SecretKind::Generic(_) => return Ok(()),
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
            signature_algorithms: Vec::new(),
            fips_202205: false,
            left_out: Vec::new(),
            alpn: Vec::new(),
            certificates: Vec::new(),
            validation: ValidationSource::None,
            key_log: None,
        },
        sni: String::new(),
        auto_host_sni: false,
        auto_sni_san_validation: false,
        max_session_keys: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_the_same_is_the_same() {
        let inputs = |key: &[u8], ticket: u8| TlsInputs {
            certificates: vec![Arc::new(TlsCertificate {
                chain_pem: b"chain".to_vec(),
                key_pem: key.to_vec(),
                files: Vec::new(),
                ocsp_staple: None,
            })],
            validation: Some(Arc::default()),
            base: None,
            ticket_keys: Some(Arc::new(TicketKeys { keys: vec![[ticket; 80]], files: Vec::new() })),
            names: SecretNames::default(),
            discovered: Discovered { certificates: vec![true], validation: false, ticket_keys: true },
        };
        assert!(inputs(b"a", 1).same(&inputs(b"a", 1)));
        let updates = |old: Option<&TlsInputs>| inputs(b"a", 1).updates_since(old);
        let counts = [None, Some(&inputs(b"a", 1)), Some(&inputs(b"b", 1)), Some(&inputs(b"b", 2))].map(updates);
        assert_eq!(counts, [2, 0, 1, 2]);
        assert!(!inputs(b"a", 1).same(&inputs(b"a", 2)) && inputs(b"a", 1).same_trust(&inputs(b"a", 2)));
        assert!(!inputs(b"a", 1).same_trust(&inputs(b"b", 1)));
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
