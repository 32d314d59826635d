//! Readers of TLS contexts (`DownstreamTlsContext`, `UpstreamTlsContext`, `CommonTlsContext`).
//!
//! Owns how the parts of a context fit together, and refuses those that would check less than they seem to. Never
//! reads certificates.

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3 as tls;

use super::{
    CertificateSource, CommonTls, DownstreamTls, KeyLog, OcspPolicy, TicketKeySource, TicketKeys, TlsCertificate,
    UpstreamTls, Validation, ValidationSource,
};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::source::{ConfigSource, config_source};
use crate::wire;

impl DownstreamTls {
    pub(super) fn read(context: &Context<'_>, at: &FieldPath<'_>, wire: tls::DownstreamTlsContext) -> Parsed<Self> {
        decide!(wire, at, tls::DownstreamTlsContext
            as "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" {
            implemented: common_tls_context, require_client_certificate, require_sni, session_ticket_keys_type,
                disable_stateful_session_resumption, prefer_client_ciphers, session_timeout, ocsp_staple_policy;
            no_effect: full_scan_certs_on_sni_mismatch = "every certificate is looked at in any case";
            unsupported: ;
        });
        use tls::downstream_tls_context::SessionTicketKeysType;
        let mut disable_stateless_resumption = false;
        let mut ticket_keys = None;
        match session_ticket_keys_type {
            None => {}
            Some(SessionTicketKeysType::DisableStatelessSessionResumption(disable)) => {
                disable_stateless_resumption = disable;
            }
            Some(SessionTicketKeysType::SessionTicketKeys(wire)) => {
                let keys = TicketKeys::read(context, &at.field("session_ticket_keys"), wire)?;
                ticket_keys = Some(TicketKeySource::Inline(Arc::new(keys)));
            }
            Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(wire)) => {
                let (name, source) = sds(context, &at.field("session_ticket_keys_sds_secret_config"), wire)?;
                ticket_keys = Some(TicketKeySource::Sds { name, source });
            }
        }
        let timeout_at = at.field("session_timeout");
        let session_timeout = session_timeout.map(|wire| wire::duration(&timeout_at, wire)).transpose()?;
        if let Some(timeout) = session_timeout.filter(|timeout| timeout.as_secs() > u32::MAX.into()) {
            return Err(timeout_at.reject(format!("{} s is above {} s", timeout.as_secs(), u32::MAX)));
        }
        let common_at = at.field("common_tls_context");
        let common = CommonTls::read(context, &common_at, common_tls_context.unwrap_or_default())?;
        let sds = common.certificates.iter().any(|source| matches!(source, CertificateSource::Sds { .. }));
        if common.certificates.is_empty() {
            return Err(common_at.reject("needs tls_certificates or tls_certificate_sds_secret_configs"));
        }
        if sds && !common.certificates.iter().all(|source| matches!(source, CertificateSource::Sds { .. })) {
            return Err(
                common_at.reject("must not have both of tls_certificates and tls_certificate_sds_secret_configs")
            );
        }
        let require_client_certificate = require_client_certificate.is_some_and(|flag| flag.value);
        if require_client_certificate && checks_nobody(&common.validation) {
            return Err(at.field("require_client_certificate").reject(
                "needs a validation context with trusted_ca or with hashes of certificates, \
                 or any certificate would be taken",
            ));
        }
        Ok(DownstreamTls {
            common,
            require_client_certificate,
            require_sni: require_sni.is_some_and(|flag| flag.value),
            disable_stateless_resumption,
            disable_stateful_resumption: disable_stateful_session_resumption,
            prefer_client_ciphers,
            ticket_keys,
            session_timeout,
            ocsp_policy: ocsp_policy(&at.field("ocsp_staple_policy"), ocsp_staple_policy)?,
        })
    }
}

fn ocsp_policy(at: &FieldPath<'_>, wire: i32) -> Parsed<OcspPolicy> {
    use tls::downstream_tls_context::OcspStaplePolicy as Wire;
    match Wire::try_from(wire) {
        Ok(Wire::LenientStapling) => Ok(OcspPolicy::Lenient),
        Ok(Wire::StrictStapling) => Ok(OcspPolicy::Strict),
        Ok(Wire::MustStaple) => Ok(OcspPolicy::Must),
        Err(_) => Err(wire::unknown_enum(at, wire)),
    }
}

/// Whether a client would be authenticated by nothing at all, without anybody having asked for that.
fn checks_nobody(validation: &ValidationSource) -> bool {
    match validation {
        ValidationSource::None => true,
        ValidationSource::Inline(validation) => !validation.authenticates() && !validation.accept_untrusted,
        ValidationSource::Sds { .. } => false,
    }
}

impl UpstreamTls {
    pub(super) fn read(context: &Context<'_>, at: &FieldPath<'_>, wire: tls::UpstreamTlsContext) -> Parsed<Self> {
        decide!(wire, at, tls::UpstreamTlsContext as "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" {
            implemented: common_tls_context, sni, auto_host_sni, auto_sni_san_validation, max_session_keys;
            no_effect: enforce_rsa_key_usage = "keys only sign here, as there is no RSA key exchange";
            unsupported: allow_renegotiation;
        });
        if sni.len() > 255 {
            return Err(at.field("sni").reject(format!("{} bytes, expected up to 255", sni.len())));
        }
        if sni.contains('\0') {
            return Err(at.field("sni").reject("must not contain a zero byte"));
        }
        let common_at = at.field("common_tls_context");
        let common = CommonTls::read(context, &common_at, common_tls_context.unwrap_or_default())?;
        if common.certificates.len() > 1 {
            return Err(common_at.reject(format!("{} certificates, expected up to one", common.certificates.len())));
        }
        if auto_sni_san_validation && matches!(common.validation, ValidationSource::None) {
            return Err(at.field("auto_sni_san_validation").reject("needs a validation context"));
        }
        Ok(UpstreamTls {
            common,
            sni,
            auto_host_sni,
            auto_sni_san_validation,
            max_session_keys: max_session_keys.map_or(1, |number| number.value),
        })
    }
}

impl CommonTls {
    fn read(context: &Context<'_>, at: &FieldPath<'_>, wire: tls::CommonTlsContext) -> Parsed<Self> {
        decide!(wire, at, tls::CommonTlsContext as "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext" {
            implemented: tls_params, tls_certificates, tls_certificate_sds_secret_configs, validation_context_type,
                alpn_protocols, key_log;
            no_effect: ;
            unsupported: tls_certificate_provider_instance, custom_tls_certificate_selector,
                tls_certificate_certificate_provider, tls_certificate_certificate_provider_instance,
                custom_handshaker;
        });
        let parameters = super::parameters::read(&at.field("tls_params"), tls_params.unwrap_or_default())?;
        let mut certificates = Vec::with_capacity(tls_certificates.len() + tls_certificate_sds_secret_configs.len());
        let list = at.field("tls_certificates");
        for (index, wire) in tls_certificates.into_iter().enumerate() {
            let certificate = TlsCertificate::read(context, &list.item(index), wire)?;
            certificates.push(CertificateSource::Inline(Arc::new(certificate)));
        }
        let list = at.field("tls_certificate_sds_secret_configs");
        for (index, wire) in tls_certificate_sds_secret_configs.into_iter().enumerate() {
            let (name, source) = sds(context, &list.item(index), wire)?;
            certificates.push(CertificateSource::Sds { name, source });
        }
        Ok(CommonTls {
            versions: parameters.versions,
            cipher_suites: parameters.cipher_suites,
            curves: parameters.curves,
            signature_algorithms: parameters.signature_algorithms,
            fips_202205: parameters.fips_202205,
            left_out: parameters.left_out,
            alpn: alpn(&at.field("alpn_protocols"), alpn_protocols)?,
            certificates,
            validation: validation(context, at, validation_context_type)?,
            key_log: key_log.map(|wire| KeyLog::read(&at.field("key_log"), wire).map(Arc::new)).transpose()?,
        })
    }
}

fn validation(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<tls::common_tls_context::ValidationContextType>,
) -> Parsed<ValidationSource> {
    use tls::common_tls_context::ValidationContextType as Type;
    match wire {
        None => Ok(ValidationSource::None),
        Some(Type::ValidationContext(wire)) => {
            let at = at.field("validation_context");
            let validation = Validation::read(context, &at, wire)?;
            validation.complete().map_err(|reason| at.reject(reason))?;
            Ok(ValidationSource::Inline(Arc::new(validation)))
        }
        Some(Type::ValidationContextSdsSecretConfig(wire)) => {
            let (name, source) = sds(context, &at.field("validation_context_sds_secret_config"), wire)?;
            Ok(ValidationSource::Sds { name, source, default: None })
        }
        Some(Type::CombinedValidationContext(wire)) => {
            combined(context, &at.field("combined_validation_context"), wire)
        }
        Some(Type::ValidationContextCertificateProvider(_)) => {
            Err(at.field("validation_context_certificate_provider").unsupported())
        }
        Some(Type::ValidationContextCertificateProviderInstance(_)) => {
            Err(at.field("validation_context_certificate_provider_instance").unsupported())
        }
    }
}

fn combined(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: tls::common_tls_context::CombinedCertificateValidationContext,
) -> Parsed<ValidationSource> {
    use tls::common_tls_context::CombinedCertificateValidationContext;
    decide!(wire, at, CombinedCertificateValidationContext
        as "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext" {
        implemented: default_validation_context, validation_context_sds_secret_config;
        no_effect: ;
        unsupported: validation_context_certificate_provider, validation_context_certificate_provider_instance;
    });
    let default_at = at.field("default_validation_context");
    let sds_at = at.field("validation_context_sds_secret_config");
    let Some(default) = default_validation_context else { return Err(default_at.reject("is required")) };
    let Some(secret) = validation_context_sds_secret_config else { return Err(sds_at.reject("is required")) };
    // What is missing here may come with the secret: see [`Validation::merged`].
    let default = Some(Arc::new(Validation::read(context, &default_at, default)?));
    let (name, source) = sds(context, &sds_at, secret)?;
    Ok(ValidationSource::Sds { name, source, default })
}

pub(super) fn sds(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: tls::SdsSecretConfig,
) -> Parsed<(Arc<str>, Option<ConfigSource>)> {
    decide!(wire, at, tls::SdsSecretConfig as "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig" {
        implemented: name, sds_config;
        no_effect: ;
        unsupported: ;
    });
    if name.is_empty() {
        return Err(at.field("name").reject("must not be empty"));
    }
    let source = sds_config.map(|wire| config_source(context, &at.field("sds_config"), wire)).transpose()?;
    Ok((Arc::from(name), source))
}

/// Protocols, each its own element or several in one, separated by commas.
fn alpn(at: &FieldPath<'_>, wire: Vec<String>) -> Parsed<Vec<String>> {
    let mut protocols = Vec::with_capacity(wire.len());
    for (index, list) in wire.iter().enumerate() {
        for protocol in list.split(',') {
            if protocol.is_empty() || protocol.len() > 255 {
                let at = at.item(index);
                return Err(at.reject(format!("{protocol:?} is not a protocol of 1 to 255 bytes")));
            }
            protocols.push(protocol.to_owned());
        }
    }
    Ok(protocols)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::NoEnvironment;
    use crate::tls::TlsVersions;
    use outrigger_api::{Schema, UnknownFields};

    const ROOT: FieldPath<'static> = FieldPath::Resource { kind: "tls", name: "t" };
    const CERTIFICATE: &str = "{certificate_chain: {inline_string: CHAIN}, private_key: {inline_string: KEY}}";

    fn downstream(yaml: &str) -> Result<DownstreamTls, String> {
        let wire = Schema::load().parse_yaml(yaml, UnknownFields::Reject).unwrap().message;
        DownstreamTls::read(&Context::new(&NoEnvironment), &ROOT, wire).map_err(|error| error.to_string())
    }

    fn upstream(yaml: &str) -> Result<UpstreamTls, String> {
        let wire = Schema::load().parse_yaml(yaml, UnknownFields::Reject).unwrap().message;
        UpstreamTls::read(&Context::new(&NoEnvironment), &ROOT, wire).map_err(|error| error.to_string())
    }

    #[test]
    fn a_mesh_sidecar_takes_certificate_and_roots_from_discovery() {
        let tls = downstream(
            "
common_tls_context:
  alpn_protocols: [istio-peer-exchange, 'h2,http/1.1']
  tls_params:
    tls_minimum_protocol_version: TLSv1_2
    tls_maximum_protocol_version: TLSv1_3
    cipher_suites: [ECDHE-ECDSA-AES256-GCM-SHA384, ECDHE-RSA-AES128-GCM-SHA256, AES128-GCM-SHA256]
  tls_certificate_sds_secret_configs:
  - name: default
    sds_config:
      api_config_source:
        api_type: GRPC
        set_node_on_first_message_only: true
        transport_api_version: V3
        grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]
      initial_fetch_timeout: 0s
      resource_api_version: V3
  combined_validation_context:
    default_validation_context:
      match_subject_alt_names: [{prefix: 'spiffe://cluster.local/'}]
    validation_context_sds_secret_config: {name: ROOTCA}
require_client_certificate: true
disable_stateless_session_resumption: true
",
        )
        .unwrap();
        assert!(tls.require_client_certificate && tls.disable_stateless_resumption && !tls.require_sni);
        assert_eq!(tls.common.alpn, ["istio-peer-exchange", "h2", "http/1.1"]);
        assert_eq!(tls.common.versions, TlsVersions { tls12: true, tls13: true });
        assert_eq!(tls.common.left_out, ["AES128-GCM-SHA256"]);
        let [CertificateSource::Sds { name, source: Some(source) }] = &tls.common.certificates[..] else { panic!() };
        assert_eq!((&**name, source.initial_fetch_timeout), ("default", None));
        let ValidationSource::Sds { name, source: None, default: Some(default) } = &tls.common.validation else {
            panic!()
        };
        assert_eq!(&**name, "ROOTCA");
        assert_eq!(default.subject_alt_names.len(), 1);
        // Names alone prove nothing, until roots come with the secret.
        assert!(default.complete().is_err());
        let secret = Validation { trusted_ca_pem: b"CA".to_vec(), ..Validation::default() };
        let merged = default.merged(&secret);
        assert!(merged.complete().is_ok() && merged.authenticates());
        assert_eq!(merged.subject_alt_names.len(), 1);
    }

    #[test]
    fn a_client_checks_the_server_it_names() {
        let tls = upstream(&format!(
            "
sni: billing.example
auto_sni_san_validation: true
max_session_keys: 0
common_tls_context:
  tls_certificates: [{CERTIFICATE}]
  validation_context:
    trusted_ca: {{inline_string: CA}}
    verify_certificate_hash: ['{}']
    match_typed_subject_alt_names: [{{san_type: DNS, matcher: {{exact: billing.example}}}}]
    max_verify_depth: 2
",
            ["AB"; 32].join(":")
        ))
        .unwrap();
        assert_eq!((tls.sni.as_str(), tls.max_session_keys), ("billing.example", 0));
        let ValidationSource::Inline(validation) = &tls.common.validation else { panic!() };
        assert_eq!(validation.certificate_hashes, ["ab".repeat(32)]);
        assert_eq!(validation.max_verify_depth, Some(2));
        assert_eq!(format!("{:?}", tls.common.certificates[0]), "Inline(TlsCertificate { files: [], .. })");
    }

    #[test]
    fn downstream_contexts_that_are_refused() {
        let with = |common: &str| format!("common_tls_context: {{tls_certificates: [{CERTIFICATE}], {common}}}");
        let required = "needs a validation context with trusted_ca or with hashes of certificates, \
                        or any certificate would be taken";
        let cases = [
            ("{}".into(), "common_tls_context: needs tls_certificates or tls_certificate_sds_secret_configs"),
            (format!("{}\nrequire_client_certificate: true", with("")), "require_client_certificate: "),
            (
                format!("{}\nrequire_client_certificate: true", with("validation_context: {}")),
                "require_client_certificate: ",
            ),
            (
                with("tls_certificate_sds_secret_configs: [{name: a}]"),
                "common_tls_context: must not have both of tls_certificates and tls_certificate_sds_secret_configs",
            ),
            (
                "common_tls_context: {tls_certificate_sds_secret_configs: [{}]}".into(),
                "common_tls_context.tls_certificate_sds_secret_configs[0].name: must not be empty",
            ),
            (
                "common_tls_context: {tls_certificates: [{certificate_chain: {inline_string: A}}]}".into(),
                "common_tls_context.tls_certificates[0].private_key: is required",
            ),
            (
                "common_tls_context: {tls_certificates: [{certificate_chain: {filename: /nowhere}}]}".into(),
                "common_tls_context.tls_certificates[0].certificate_chain.filename: \
                 cannot read \"/nowhere\": entity not found",
            ),
            (
                "common_tls_context: {tls_certificates: [{password: {inline_string: A}}]}".into(),
                "common_tls_context.tls_certificates[0].password: \
                 a passphrase is not supported, expected a private key that is not encrypted",
            ),
            (
                with("alpn_protocols: ['h2,,http/1.1']"),
                "common_tls_context.alpn_protocols[0]: \"\" is not a protocol of 1 to 255 bytes",
            ),
            (with("key_log: {}"), "common_tls_context.key_log.path: must not be empty"),
            (
                with("tls_certificate_provider_instance: {instance_name: a}"),
                "common_tls_context.tls_certificate_provider_instance: is not supported",
            ),
            (
                with("custom_tls_certificate_selector: {name: on-demand}"),
                "common_tls_context.custom_tls_certificate_selector: is not supported",
            ),
            (
                "common_tls_context: {tls_certificates: [{private_key_provider: {provider_name: qat}}]}".into(),
                "common_tls_context.tls_certificates[0].private_key_provider: is not supported",
            ),
            (
                with("validation_context: {trusted_ca: {inline_string: ''}}"),
                "common_tls_context.validation_context.trusted_ca: must not be empty",
            ),
            (
                with("validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: a}}]}"),
                "common_tls_context.validation_context: subject alternative names without trusted_ca prove nothing",
            ),
            (
                with("validation_context: {crl: {inline_string: A}}"),
                "common_tls_context.validation_context: crl needs trusted_ca",
            ),
            (
                with("validation_context: {allow_expired_certificate: true}"),
                "common_tls_context.validation_context: allow_expired_certificate needs trusted_ca",
            ),
            (
                with("validation_context: {verify_certificate_spki: [AAAA]}"),
                "common_tls_context.validation_context.verify_certificate_spki[0]: \
                 \"AAAA\" is not the base64 of a SHA-256",
            ),
            (
                with("validation_context: {verify_certificate_hash: [AAAA]}"),
                "common_tls_context.validation_context.verify_certificate_hash[0]: \
                 \"AAAA\" is not the hex of a SHA-256",
            ),
            (
                with("validation_context: {match_typed_subject_alt_names: [{matcher: {exact: a}}]}"),
                "common_tls_context.validation_context.match_typed_subject_alt_names[0].san_type: is required",
            ),
            (
                with("validation_context: {max_verify_depth: 101}"),
                "common_tls_context.validation_context.max_verify_depth: 101 is above 100",
            ),
            (
                with("validation_context: {custom_validator_config: {name: envoy.tls.cert_validator.spiffe}}"),
                "common_tls_context.validation_context.custom_validator_config.typed_config: \
                 is required for \"envoy.tls.cert_validator.spiffe\"",
            ),
            (
                with(
                    "validation_context: {match_typed_subject_alt_names: [{san_type: OTHER_NAME, matcher: {exact: a}}]}",
                ),
                "common_tls_context.validation_context.match_typed_subject_alt_names[0].oid: \
                 is required for san_type OTHER_NAME",
            ),
            (
                with(
                    "validation_context: {match_typed_subject_alt_names: \
                     [{san_type: OTHER_NAME, oid: x, matcher: {exact: a}}]}",
                ),
                "common_tls_context.validation_context.match_typed_subject_alt_names[0].oid: \
                 \"x\" is not an object identifier such as \"1.3.6.1\"",
            ),
            (
                with("combined_validation_context: {default_validation_context: {}}"),
                "common_tls_context.combined_validation_context.validation_context_sds_secret_config: is required",
            ),
            (
                format!("{}\nsession_ticket_keys: {{keys: [{{inline_string: a}}]}}", with("")),
                "session_ticket_keys.keys[0]: has 1 bytes, expected 80",
            ),
            (format!("{}\nsession_ticket_keys: {{}}", with("")), "session_ticket_keys.keys: must not be empty"),
            (
                format!("{}\nsession_timeout: 4294967296s", with("")),
                "session_timeout: 4294967296 s is above 4294967295 s",
            ),
            (format!("{}\nocsp_staple_policy: 7", with("")), "ocsp_staple_policy: 7 is not a known value"),
        ];
        for (yaml, expected) in cases {
            let expected = if expected.ends_with(": ") { format!("{expected}{required}") } else { expected.to_owned() };
            assert_eq!(downstream(&yaml).unwrap_err(), format!("tls \"t\": {expected}"), "{yaml}");
        }
    }

    #[test]
    fn sessions_staples_and_key_logs() {
        let key = |letter: &str| format!("{{inline_string: '{}'}}", letter.repeat(80));
        let tls = downstream(&format!(
            "
common_tls_context:
  tls_certificates: [{CERTIFICATE}]
  key_log:
    path: /keys
    remote_address_range: [{{address_prefix: 10.0.0.0, prefix_len: 8}}]
session_ticket_keys: {{keys: [{}, {}]}}
session_timeout: 3600.5s
ocsp_staple_policy: STRICT_STAPLING
",
            key("a"),
            key("b")
        ))
        .unwrap();
        let Some(TicketKeySource::Inline(keys)) = &tls.ticket_keys else { panic!() };
        assert_eq!(keys.keys, [[b'a'; 80], [b'b'; 80]]);
        assert_eq!(format!("{keys:?}"), "TicketKeys { count: 2, files: [], .. }");
        assert_eq!(tls.session_timeout.unwrap().as_secs(), 3600);
        assert_eq!(tls.ocsp_policy, OcspPolicy::Strict);
        let log = tls.common.key_log.unwrap();
        assert_eq!((log.path.to_str(), log.local.len(), log.remote.len()), (Some("/keys"), 0, 1));
        let sds = format!(
            "common_tls_context: {{tls_certificates: [{CERTIFICATE}]}}\n\
             session_ticket_keys_sds_secret_config: {{name: tickets}}"
        );
        let Some(TicketKeySource::Sds { name, source: None }) = downstream(&sds).unwrap().ticket_keys else { panic!() };
        assert_eq!(&*name, "tickets");
    }

    #[test]
    fn spiffe_trust_domains() {
        let with = |config: &str| {
            downstream(&format!(
                "common_tls_context: {{tls_certificates: [{CERTIFICATE}], validation_context: {{\
                 match_typed_subject_alt_names: [{{san_type: URI, matcher: {{prefix: 'spiffe://a.org/'}}}}], \
                 custom_validator_config: {{name: envoy.tls.cert_validator.spiffe, typed_config: {{'@type': \
                 type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig, \
                 {config}}}}}}}}}\nrequire_client_certificate: true"
            ))
        };
        let tls = with("trust_domains: [{name: a.org, trust_bundle: {inline_string: PEM}}]").unwrap();
        let ValidationSource::Inline(validation) = &tls.common.validation else { panic!() };
        assert_eq!(&*validation.spiffe.as_ref().unwrap().domains[0].name, "a.org");
        let cases = [
            ("", "trust_domains: must not be empty"),
            ("trust_domains: [{name: a.org}]", "trust_domains[0].trust_bundle: is required"),
            (
                "trust_domains: [{name: 'spiffe://a', trust_bundle: {inline_string: A}}]",
                "trust_domains[0].name: \"spiffe://a\" must be the name of a trust domain alone, \
                 such as \"example.org\"",
            ),
            (
                "trust_domains: [{name: a, trust_bundle: {inline_string: A}}, {name: a, trust_bundle: {inline_string: A}}]",
                "trust_domains[1].name: \"a\" stands in the list before",
            ),
            (
                "trust_domains: [{name: a, workload_trust_domain: b, trust_bundle: {inline_string: A}}]",
                "trust_domains[0].workload_trust_domain: is not supported",
            ),
            ("trust_bundles: {inline_string: '{\"trust_domains\": {}}'}", "trust_bundles: has no trust domain"),
        ];
        for (config, expected) in cases {
            let prefix = "common_tls_context.validation_context.custom_validator_config.typed_config";
            assert_eq!(with(config).unwrap_err(), format!("tls \"t\": {prefix}.{expected}"), "{config}");
        }
    }

    #[test]
    fn a_client_certificate_may_be_required_of_strangers_on_request() {
        let yaml = format!(
            "common_tls_context: {{tls_certificates: [{CERTIFICATE}], \
             validation_context: {{trust_chain_verification: ACCEPT_UNTRUSTED}}}}\nrequire_client_certificate: true"
        );
        assert!(downstream(&yaml).unwrap().require_client_certificate);
    }

    #[test]
    fn upstream_contexts_that_are_refused() {
        let cases = [
            (format!("sni: {}", "a".repeat(256)), "sni: 256 bytes, expected up to 255"),
            ("sni: \"a\\0\"".into(), "sni: must not contain a zero byte"),
            ("allow_renegotiation: true".into(), "allow_renegotiation: is not supported"),
            ("auto_sni_san_validation: true".into(), "auto_sni_san_validation: needs a validation context"),
            (
                format!("common_tls_context: {{tls_certificates: [{CERTIFICATE}, {CERTIFICATE}]}}"),
                "common_tls_context: 2 certificates, expected up to one",
            ),
        ];
        for (yaml, expected) in cases {
            assert_eq!(upstream(&yaml).unwrap_err(), format!("tls \"t\": {expected}"));
        }
        assert!(matches!(upstream("{}").unwrap().common.validation, ValidationSource::None));
    }
}
