//! `/certs`: all certificates in use, and when the first of them expires.
//!
//! Owns where certificates are looked for: TLS contexts in the graph, and secrets. Never trusts or loads one for use.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use http::StatusCode;
use outrigger_api::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3 as tls_pb;
use outrigger_config::listener::DownstreamTransport;
use outrigger_config::tls::{CertificateSource, CommonTls, Validation, ValidationSource};
use outrigger_xds::ResourceKind;
use prost::Message;
use serde_json::{Value, json};

use super::context::AdminContext;
use super::pretty::{indented, timestamp};
use super::response::{JSON, Response};
use crate::tls::{CertificateFacts, SubjectAltName, certificate_details};

/// Certificates of one context or secret.
struct Certificates {
    authorities: Vec<(String, CertificateFacts)>,
    chain: Vec<(String, CertificateFacts)>,
}

/// All certificates.
pub(super) fn certs(context: &AdminContext) -> Response {
    let now = SystemTime::now();
    let shown = |(path, facts): &(String, CertificateFacts)| {
        json!({
            "path": path,
            "serial_number": facts.serial,
            "subject_alt_names": facts.subject_alt_names.iter().filter_map(alt_name).collect::<Vec<_>>(),
            "days_until_expiration": facts.days_until_expiration(now).to_string(),
            "valid_from": whole_seconds(facts.not_before),
            "expiration_time": whole_seconds(facts.not_after),
        })
    };
    let certificates: Vec<Value> = all(context)
        .iter()
        .map(|Certificates { authorities, chain }| {
            json!({
                "ca_cert": authorities.iter().map(shown).collect::<Vec<_>>(),
                "cert_chain": chain.iter().map(shown).collect::<Vec<_>>(),
            })
        })
        .collect();
    Response::whole(StatusCode::OK, JSON, indented(&json!({ "certificates": certificates }), 0) + "\n")
}

/// Days until the first certificate expires; the most there is if there is none.
pub(super) fn days_until_first_expires(context: &AdminContext) -> u64 {
    let now = SystemTime::now();
    let all = all(context);
    let certificates = all.iter().flat_map(|found| found.authorities.iter().chain(&found.chain));
    certificates.map(|(_, facts)| facts.days_until_expiration(now)).min().unwrap_or(u32::MAX.into())
}

fn alt_name(name: &SubjectAltName) -> Option<Value> {
    match name {
        SubjectAltName::Dns(name) => Some(json!({ "dns": name })),
        SubjectAltName::Uri(name) | SubjectAltName::Email(name) => Some(json!({ "uri": name })),
        SubjectAltName::Ip(address) => Some(json!({ "ip_address": address.to_string() })),
        // Envoy's list has no place for them.
        SubjectAltName::Other { .. } => None,
    }
}

fn whole_seconds(time: SystemTime) -> Value {
    timestamp(time)
}

fn all(context: &AdminContext) -> Vec<Certificates> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let graph = context.process.graph.load();
    let mut clusters: Vec<_> = graph.clusters.values().collect();
    clusters.sort_by(|a, b| a.config.name.cmp(&b.config.name));
    for cluster in clusters {
        found.extend(
            cluster.config.transports().filter_map(|transport| transport.tls()).map(|tls| of_context(&tls.common)),
        );
    }
    let mut listeners: Vec<_> = graph.listeners.values().collect();
    listeners.sort_by(|a, b| a.config.name.cmp(&b.config.name));
    for listener in listeners {
        for chain in listener.config.filter_chains.iter().chain(&listener.config.default_filter_chain) {
            if let DownstreamTransport::Tls(tls) = &chain.transport {
                found.push(of_context(&tls.common));
            }
        }
    }
    for (_, history) in context.configuration.resources(ResourceKind::Secret) {
        let record = history.active.or(history.warming);
        let any = record.and_then(|record| record.resource);
        if let Some(secret) = any.and_then(|any| tls_pb::Secret::decode(&*any.value).ok()) {
            found.push(of_secret(secret));
        }
/// Seconds until the first OCSP response expires; 0 if there is none.
pub(super) fn first_staple_expires(context: &AdminContext) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let graph = context.process.graph.load();
    let chains = graph.listeners.values().flat_map(|listener| listener.chains.iter());
    let staples = chains.filter_map(|chain| chain.tls.as_ref()?.expirations().staple());
    staples.min().map_or(0, |time| time.saturating_sub(now))
}

    }
    // The same context on many clusters is shown once.
    found.retain(|Certificates { authorities, chain }| {
        let serials = |list: &[(String, CertificateFacts)]| {
            list.iter().map(|(path, facts)| (path.clone(), facts.serial.clone())).collect::<Vec<_>>()
        };
        !(authorities.is_empty() && chain.is_empty()) && seen.insert((serials(authorities), serials(chain)))
    });
    found
}

fn of_context(tls: &CommonTls) -> Certificates {
    let mut chain = Vec::new();
    for source in &tls.certificates {
        if let CertificateSource::Inline(certificate) = source {
            let path = certificate.files.first().map_or_else(inline, |path| path.display().to_string());
            // The first certificate of a chain is the one that names us.
            chain.extend(read(&path, &certificate.chain_pem).into_iter().take(1));
        }
    }
    let validation = match &tls.validation {
        ValidationSource::None => None,
        ValidationSource::Inline(validation) => Some(Arc::clone(validation)),
        ValidationSource::Sds { default, .. } => default.clone(),
    };
    Certificates { authorities: validation.map(|validation| authorities(&validation)).unwrap_or_default(), chain }
}

/// Trusted certificates, those of trust domains among them.
fn authorities(validation: &Validation) -> Vec<(String, CertificateFacts)> {
    let bundles = validation.spiffe.iter().flat_map(|trust| &trust.domains).map(|domain| &domain.bundle_pem);
    std::iter::once(&validation.trusted_ca_pem).chain(bundles).flat_map(|pem| read(&inline(), pem)).collect()
}

fn of_secret(secret: tls_pb::Secret) -> Certificates {
    use tls_pb::secret::Type;
    let read = |source: Option<DataSource>| {
        let (path, pem) = source.and_then(bytes_of).unwrap_or_default();
        read(&path, &pem)
    };
    match secret.r#type {
        Some(Type::TlsCertificate(certificate)) => Certificates {
            authorities: Vec::new(),
            chain: read(certificate.certificate_chain).into_iter().take(1).collect(),
        },
        Some(Type::ValidationContext(context)) => {
            Certificates { authorities: read(context.trusted_ca), chain: Vec::new() }
        }
        _ => Certificates { authorities: Vec::new(), chain: Vec::new() },
    }
}

fn bytes_of(source: DataSource) -> Option<(String, Vec<u8>)> {
    match source.specifier? {
        Specifier::Filename(path) => std::fs::read(&path).ok().map(|pem| (path, pem)),
        Specifier::InlineBytes(pem) => Some((inline(), pem)),
        Specifier::InlineString(pem) => Some((inline(), pem.into_bytes())),
        Specifier::EnvironmentVariable(name) => std::env::var(name).ok().map(|pem| (inline(), pem.into_bytes())),
    }
}

fn inline() -> String {
    "<inline>".to_owned()
}

fn read(path: &str, pem: &[u8]) -> Vec<(String, CertificateFacts)> {
    // What cannot be read was refused, or replaced on disk by something that will be.
    let facts = if pem.is_empty() { Vec::new() } else { certificate_details(pem).unwrap_or_default() };
    facts.into_iter().map(|facts| (path.to_owned(), facts)).collect()
}
