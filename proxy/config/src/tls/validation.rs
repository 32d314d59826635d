//! Reader of how peers are checked (`CertificateValidationContext`), and how two such contexts combine.
//!
//! Owns which combinations would check less than they seem to. Never verifies a certificate.

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use outrigger_api::pb::envoy::r#type::matcher::v3 as matcher;

use super::{SanKind, SanMatcher, Validation, spiffe};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

impl Validation {
    pub(super) fn read(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: tls::CertificateValidationContext,
    ) -> Parsed<Self> {
        decide!(wire, at, tls::CertificateValidationContext
            as "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext" {
            implemented: trusted_ca, system_root_certs, verify_certificate_spki, verify_certificate_hash,
                match_typed_subject_alt_names, match_subject_alt_names, require_signed_certificate_timestamp, crl,
                allow_expired_certificate, trust_chain_verification, only_verify_leaf_cert_crl, max_verify_depth,
                suppress_client_ca_list, custom_validator_config;
            no_effect: watched_directory = "each file is watched, and every link on the way to it";
            unsupported: ca_certificate_provider_instance;
        });
        if require_signed_certificate_timestamp.is_some_and(|flag| flag.value) {
            return Err(at.field("require_signed_certificate_timestamp").unsupported());
        }
        let mut files = Vec::new();
        let mut bytes = |field: &'static str, wire| {
            let Some(wire) = wire else { return Ok(Vec::new()) };
            let at = at.field(field);
            let data = wire::data_source(context, &at, wire)?;
            files.extend(data.file);
            if data.bytes.is_empty() { Err(at.reject("must not be empty")) } else { Ok(data.bytes) }
        };
        let trusted_ca_pem = bytes("trusted_ca", trusted_ca)?;
        let crl_pem = bytes("crl", crl)?;
        let spiffe = custom_validator_config
            .map(|wire| spiffe::read(context, &at.field("custom_validator_config"), wire, &mut files).map(Arc::new))
            .transpose()?;
        let max_verify_depth = max_verify_depth.map(|depth| depth.value);
        if let Some(depth) = max_verify_depth.filter(|depth| *depth > 100) {
            return Err(at.field("max_verify_depth").reject(format!("{depth} is above 100")));
        }
        let verification =
            tls::certificate_validation_context::TrustChainVerification::try_from(trust_chain_verification)
                .map_err(|_| wire::unknown_enum(&at.field("trust_chain_verification"), trust_chain_verification))?;
        Ok(Validation {
            system_roots: system_root_certs.is_some() && trusted_ca_pem.is_empty(),
            trusted_ca_pem,
            spki_pins: pins(&at.field("verify_certificate_spki"), verify_certificate_spki)?,
            certificate_hashes: hashes(&at.field("verify_certificate_hash"), &verify_certificate_hash)?,
            subject_alt_names: names(at, match_typed_subject_alt_names, match_subject_alt_names)?,
            spiffe,
            crl_pem,
            only_verify_leaf_crl: only_verify_leaf_cert_crl,
            allow_expired: allow_expired_certificate,
            accept_untrusted: verification
                == tls::certificate_validation_context::TrustChainVerification::AcceptUntrusted,
            max_verify_depth,
            suppress_client_ca_list,
            files,
        })
    }

    /// Whether a peer must prove who it is: by a chain to a trusted root, or by a pinned key or certificate.
    pub fn authenticates(&self) -> bool {
        self.has_roots() || !self.spki_pins.is_empty() || !self.certificate_hashes.is_empty()
    }

    /// Refuses what looks like a check and is none without trusted roots. A context that combines with a secret is
    /// complete only when [merged](Self::merged), so that whoever uses a discovered one must ask here.
    pub fn complete(&self) -> Result<(), &'static str> {
        if self.has_roots() {
            Ok(())
        } else if !self.subject_alt_names.is_empty() {
            Err("subject alternative names without trusted_ca prove nothing")
        } else if !self.crl_pem.is_empty() {
            Err("crl needs trusted_ca")
        } else if self.allow_expired {
            Err("allow_expired_certificate needs trusted_ca")
        } else {
            Ok(())
        }
    }

    /// This context with a discovered one laid over it, as protobuf merges: what the other sets wins, lists append.
    pub fn merged(&self, discovered: &Validation) -> Validation {
        fn append<T: Clone>(first: &[T], second: &[T]) -> Vec<T> {
            [first, second].concat()
        }
        fn prefer(first: &[u8], second: &[u8]) -> Vec<u8> {
            if second.is_empty() { first.to_vec() } else { second.to_vec() }
        }
        let trusted_ca_pem = prefer(&self.trusted_ca_pem, &discovered.trusted_ca_pem);
        Validation {
            system_roots: (self.system_roots || discovered.system_roots) && trusted_ca_pem.is_empty(),
            trusted_ca_pem,
            spki_pins: append(&self.spki_pins, &discovered.spki_pins),
            certificate_hashes: append(&self.certificate_hashes, &discovered.certificate_hashes),
            subject_alt_names: append(&self.subject_alt_names, &discovered.subject_alt_names),
            spiffe: discovered.spiffe.clone().or_else(|| self.spiffe.clone()),
            crl_pem: prefer(&self.crl_pem, &discovered.crl_pem),
            only_verify_leaf_crl: self.only_verify_leaf_crl || discovered.only_verify_leaf_crl,
            allow_expired: self.allow_expired || discovered.allow_expired,
            accept_untrusted: self.accept_untrusted || discovered.accept_untrusted,
            max_verify_depth: discovered.max_verify_depth.or(self.max_verify_depth),
            suppress_client_ca_list: self.suppress_client_ca_list || discovered.suppress_client_ca_list,
            files: append(&self.files, &discovered.files),
        }
    }

    fn has_roots(&self) -> bool {
        self.system_roots || !self.trusted_ca_pem.is_empty() || self.spiffe.is_some()
    }
}

/// Base64 of 32 bytes each.
fn pins(at: &FieldPath<'_>, wire: Vec<String>) -> Parsed<Vec<String>> {
    for (index, pin) in wire.iter().enumerate() {
        let body = pin.strip_suffix('=').unwrap_or_default();
        let digits = body.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'));
        if body.len() != 43 || !digits {
            return Err(at.item(index).reject(format!("{pin:?} is not the base64 of a SHA-256")));
        }
    }
    Ok(wire)
}

/// Hex of 32 bytes each, with or without colons.
fn hashes(at: &FieldPath<'_>, wire: &[String]) -> Parsed<Vec<String>> {
    let mut hashes = Vec::with_capacity(wire.len());
    for (index, text) in wire.iter().enumerate() {
        let hash = text.replace(':', "").to_ascii_lowercase();
        let colons = text.len() - hash.len();
        if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) || !matches!(colons, 0 | 31) {
            return Err(at.item(index).reject(format!("{text:?} is not the hex of a SHA-256")));
        }
        hashes.push(hash);
    }
    Ok(hashes)
}

/// The typed list, or, only if that is empty, the older one.
fn names(
    at: &FieldPath<'_>,
    typed: Vec<tls::SubjectAltNameMatcher>,
    untyped: Vec<matcher::StringMatcher>,
) -> Parsed<Vec<SanMatcher>> {
    let mut names = Vec::with_capacity(typed.len().max(untyped.len()));
    if typed.is_empty() {
        let list = at.field("match_subject_alt_names");
        for (index, wire) in untyped.into_iter().enumerate() {
            names.push(SanMatcher { kind: None, oid: None, matcher: wire::string_matcher(&list.item(index), wire)? });
        }
        return Ok(names);
    }
    let list = at.field("match_typed_subject_alt_names");
    for (index, wire) in typed.into_iter().enumerate() {
        names.push(typed_name(&list.item(index), wire)?);
    }
    Ok(names)
}

/// A matcher of one kind of subject alternative name.
pub(crate) fn typed_name(at: &FieldPath<'_>, wire: tls::SubjectAltNameMatcher) -> Parsed<SanMatcher> {
    decide!(wire, at, tls::SubjectAltNameMatcher
        as "envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher" {
        implemented: san_type, matcher, oid;
        no_effect: ;
        unsupported: ;
    });
    use tls::subject_alt_name_matcher::SanType;
    let kind = match SanType::try_from(san_type) {
        Ok(SanType::Email) => SanKind::Email,
        Ok(SanType::Dns) => SanKind::Dns,
        Ok(SanType::Uri) => SanKind::Uri,
        Ok(SanType::IpAddress) => SanKind::IpAddress,
        Ok(SanType::OtherName) => SanKind::OtherName,
        Ok(SanType::Unspecified) => return Err(at.field("san_type").reject("is required")),
        Err(_) => return Err(wire::unknown_enum(&at.field("san_type"), san_type)),
    };
    let Some(matcher) = matcher else { return Err(at.field("matcher").reject("is required")) };
    let at_oid = at.field("oid");
    let oid = match (kind, oid.as_str()) {
        (SanKind::OtherName, "") => return Err(at_oid.reject("is required for san_type OTHER_NAME")),
        (SanKind::OtherName, text) => match x509_cert::der::oid::ObjectIdentifier::new(text) {
            Ok(oid) => Some(Arc::from(oid.to_string())),
            Err(_) => return Err(at_oid.reject(format!("{text:?} is not an object identifier such as \"1.3.6.1\""))),
        },
        // As the API says, it is not looked at for other kinds.
        _ => None,
    };
    Ok(SanMatcher { kind: Some(kind), oid, matcher: wire::string_matcher(&at.field("matcher"), matcher)? })
}
