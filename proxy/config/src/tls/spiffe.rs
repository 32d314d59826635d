//! Reader of the SPIFFE validator (`SPIFFECertValidatorConfig`) and of maps of trust bundles.
//!
//! Owns how trust domains and their roots are written down. Never looks into a certificate.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use serde::Deserialize;

use super::{SpiffeTrust, TrustDomain};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Reads `custom_validator_config`; the files it names are added to `files`.
pub(super) fn read(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: core::TypedExtensionConfig,
    files: &mut Vec<PathBuf>,
) -> Parsed<SpiffeTrust> {
    decide!(wire, at, core::TypedExtensionConfig as "envoy.config.core.v3.TypedExtensionConfig" {
        implemented: name, typed_config;
        no_effect: ;
        unsupported: ;
    });
    let at = at.field("typed_config");
    let Some(any) = typed_config else {
        return Err(at.reject(format!("is required for {name:?}")));
    };
    let any = wire::extension(context, &at, any)?;
    match wire::type_name(&any) {
        "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig" => {
            trust(context, &at, wire::decode(&at, &any)?, files)
        }
        other => Err(at.reject(format!("{other:?} is not supported, expected the SPIFFE validator"))),
    }
}

fn trust(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: tls::SpiffeCertValidatorConfig,
    files: &mut Vec<PathBuf>,
) -> Parsed<SpiffeTrust> {
    decide!(wire, at, tls::SpiffeCertValidatorConfig
        as "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig" {
        implemented: trust_domains, trust_bundles;
        no_effect: ;
        unsupported: ;
    });
    // As the API says, a map takes the place of the list.
    if let Some(wire) = trust_bundles {
        let at = at.field("trust_bundles");
        let data = wire::data_source(context, &at, wire)?;
        files.extend(data.file);
        return bundles(&data.bytes).map_err(|reason| at.reject(reason));
    }
    let list = at.field("trust_domains");
    if trust_domains.is_empty() {
        return Err(list.reject("must not be empty"));
    }
    let mut domains: Vec<TrustDomain> = Vec::with_capacity(trust_domains.len());
    for (index, wire) in trust_domains.into_iter().enumerate() {
        let at = list.item(index);
        let domain = domain(context, &at, wire, files)?;
        if domains.iter().any(|known| known.name == domain.name) {
            return Err(at.field("name").reject(format!("{:?} stands in the list before", domain.name)));
        }
        domains.push(domain);
    }
    Ok(SpiffeTrust { domains })
}

fn domain(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: tls::spiffe_cert_validator_config::TrustDomain,
    files: &mut Vec<PathBuf>,
) -> Parsed<TrustDomain> {
    use tls::spiffe_cert_validator_config::TrustDomain as Wire;
    decide!(wire, at, Wire as "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig.TrustDomain" {
        implemented: name, trust_bundle;
        no_effect: ;
        unsupported: workload_trust_domain;
    });
    check_name(&name).map_err(|reason| at.field("name").reject(reason))?;
    let at = at.field("trust_bundle");
    let data = wire::data_source(context, &at, trust_bundle.ok_or_else(|| at.reject("is required"))?)?;
    if data.bytes.is_empty() {
        return Err(at.reject("must not be empty"));
    }
    files.extend(data.file);
    Ok(TrustDomain { name: name.into(), bundle_pem: data.bytes })
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if name.contains(['/', ':']) {
        return Err(format!("{name:?} must be the name of a trust domain alone, such as \"example.org\""));
    }
    Ok(())
}

/// The file `{"trust_domains": {"example.org": {"keys": [{"use": "x509-svid", "x5c": ["..."]}]}}}`.
#[derive(Deserialize)]
struct BundleMap {
    trust_domains: BTreeMap<String, Bundle>,
}

/// SPIFFE Trust Domain and Bundle, 4.
#[derive(Deserialize)]
struct Bundle {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    r#use: String,
    #[serde(default)]
    x5c: Vec<String>,
}

fn bundles(json: &[u8]) -> Result<SpiffeTrust, String> {
    let map: BundleMap =
        serde_json::from_slice(json).map_err(|error| format!("not a map of SPIFFE trust bundles: {error}"))?;
    if map.trust_domains.is_empty() {
        return Err("has no trust domain".to_owned());
    }
    let mut domains = Vec::with_capacity(map.trust_domains.len());
    for (name, bundle) in map.trust_domains {
        check_name(&name)?;
        let mut bundle_pem = String::new();
        // Keys for JWTs stand in the same bundle.
        for key in bundle.keys.iter().filter(|key| key.r#use == "x509-svid") {
            let [certificate] = &key.x5c[..] else {
                return Err(format!(
                    "trust domain {name:?}: a key for x509-svid has {} certificates in x5c, expected one",
                    key.x5c.len()
                ));
            };
            bundle_pem += &format!("-----BEGIN CERTIFICATE-----\n{certificate}\n-----END CERTIFICATE-----\n");
        }
        if bundle_pem.is_empty() {
            return Err(format!("trust domain {name:?} has no key for x509-svid"));
        }
        domains.push(TrustDomain { name: Arc::from(name), bundle_pem: bundle_pem.into_bytes() });
    }
    Ok(SpiffeTrust { domains })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_bundles() {
        let json = r#"{"trust_domains": {
            "b.org": {"spiffe_sequence": 1, "keys": [
                {"use": "jwt-svid", "kty": "EC"}, {"use": "x509-svid", "kty": "EC", "x5c": ["QUFB"]}]},
            "a.org": {"keys": [{"use": "x509-svid", "x5c": ["QkJC"]}, {"use": "x509-svid", "x5c": ["Q0ND"]}]}}}"#;
        let trust = bundles(json.as_bytes()).unwrap();
        let names: Vec<_> = trust.domains.iter().map(|domain| &*domain.name).collect();
        assert_eq!(names, ["a.org", "b.org"]);
        let pem = std::str::from_utf8(&trust.domains[0].bundle_pem).unwrap();
        assert_eq!(pem.matches("BEGIN CERTIFICATE").count(), 2);
        assert!(pem.contains("\nQkJC\n") && pem.contains("\nQ0ND\n"));
    }

    #[test]
    fn bundles_that_are_refused() {
        let cases = [
            ("[", "not a map of SPIFFE trust bundles: "),
            ("{}", "not a map of SPIFFE trust bundles: missing field `trust_domains`"),
            (r#"{"trust_domains": {}}"#, "has no trust domain"),
            (r#"{"trust_domains": {"a": {"keys": []}}}"#, "trust domain \"a\" has no key for x509-svid"),
            (
                r#"{"trust_domains": {"a": {"keys": [{"use": "x509-svid"}]}}}"#,
                "trust domain \"a\": a key for x509-svid has 0 certificates in x5c, expected one",
            ),
            (
                r#"{"trust_domains": {"spiffe://a": {"keys": []}}}"#,
                "\"spiffe://a\" must be the name of a trust domain alone",
            ),
        ];
        for (json, expected) in cases {
            let error = bundles(json.as_bytes()).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
