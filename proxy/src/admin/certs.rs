//! `/certs`: all certificates in use, and when the first of them expires.
//!
//! Owns where certificates are looked for (TLS contexts in the graph, and secrets), and what counts as a problem with
//! them. Never trusts or loads one for use.

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
use crate::graph::history::ResourceHistory;
use crate::tls::{CertificateFacts, SubjectAltName, certificate_details};

/// Certificates of one context or secret.
struct Certificates {
    /// Such as `secret "a"`.
    of: String,
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
    let all = all(context);
    let certificates: Vec<Value> = all
        .iter()
        .map(|Certificates { of: _, authorities, chain }| {
            json!({
                "ca_cert": authorities.iter().map(shown).collect::<Vec<_>>(),
                "cert_chain": chain.iter().map(shown).collect::<Vec<_>>(),
            })
        })
        .collect();
    let mut page = json!({ "certificates": certificates });
    let mut problems = refusals(context);
    problems.extend(all.iter().flat_map(|found| out_of_time(found, now)));
    if !problems.is_empty() {
        page["problems"] = problems.into();
    }
    Response::whole(StatusCode::OK, JSON, indented(&page, 0) + "\n")
}

/// Secrets whose last update could not be used, which Envoy's page does not tell.
fn refusals(context: &AdminContext) -> Vec<Value> {
    let problem = |(name, history): (Arc<str>, ResourceHistory)| {
        let refusal = history.refusal?;
        let since = history.failing_since.unwrap_or(refusal.record.updated);
        Some(json!({
            "of": format!("secret {name:?}"),
            "problem": refusal.details,
            "refused_version": refusal.record.version,
            "since": timestamp(since),
            "predecessor_in_use": history.active.is_some(),
        }))
    };
    context.configuration.resources(ResourceKind::Secret).into_iter().filter_map(problem).collect()
}

/// Certificates that are not valid at this time.
fn out_of_time(found: &Certificates, now: SystemTime) -> impl Iterator<Item = Value> {
    found.authorities.iter().chain(&found.chain).filter_map(move |(path, facts)| {
        let (problem, key, time) = match (facts.not_before, facts.not_after) {
            (_, until) if until < now => ("expired", "since", until),
            (from, _) if from > now => ("not valid yet", "until", from),
            _ => return None,
        };
        let serial = &facts.serial;
        Some(json!({ "of": found.of, "path": path, "serial_number": serial, "problem": problem, key: timestamp(time) }))
    })
}

/// Days until the first certificate expires; the most there is if there is none.
pub(super) fn days_until_first_expires(context: &AdminContext) -> u64 {
    let now = SystemTime::now();
    let all = all(context);
    let certificates = all.iter().flat_map(|found| found.authorities.iter().chain(&found.chain));
    certificates.map(|(_, facts)| facts.days_until_expiration(now)).min().unwrap_or(u32::MAX.into())
}

/// Seconds until the first OCSP response expires; 0 if there is none.
pub(super) fn first_staple_expires(context: &AdminContext) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let graph = context.process.graph.load();
    let chains = graph.listeners.values().flat_map(|listener| listener.chains.iter());
    let staples = chains.filter_map(|chain| chain.tls.as_ref()?.expirations().staple());
    staples.min().map_or(0, |time| time.saturating_sub(now))
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
            cluster
                .config
                .transports()
                .filter_map(|transport| transport.tls())
                .map(|tls| of_context(format!("cluster {:?}", cluster.config.name), &tls.common)),
        );
    }
    let mut listeners: Vec<_> = graph.listeners.values().collect();
    listeners.sort_by(|a, b| a.config.name.cmp(&b.config.name));
    for listener in listeners {
        for chain in listener.config.filter_chains.iter().chain(&listener.config.default_filter_chain) {
            if let DownstreamTransport::Tls(tls) = &chain.transport {
                found.push(of_context(format!("listener {:?}", listener.config.name), &tls.common));
            }
        }
    }
    for (name, history) in context.configuration.resources(ResourceKind::Secret) {
        let record = history.active.or(history.warming);
        let any = record.and_then(|record| record.resource);
        if let Some(secret) = any.and_then(|any| tls_pb::Secret::decode(&*any.value).ok()) {
            found.push(of_secret(format!("secret {name:?}"), secret));
        }
    }
    // The same context on many clusters is shown once.
    found.retain(|Certificates { of: _, authorities, chain }| {
        let serials = |list: &[(String, CertificateFacts)]| {
            list.iter().map(|(path, facts)| (path.clone(), facts.serial.clone())).collect::<Vec<_>>()
        };
        !(authorities.is_empty() && chain.is_empty()) && seen.insert((serials(authorities), serials(chain)))
    });
    found
}

fn of_context(of: String, tls: &CommonTls) -> Certificates {
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
    Certificates { of, authorities: validation.map(|validation| authorities(&validation)).unwrap_or_default(), chain }
}

/// Trusted certificates, those of trust domains among them.
fn authorities(validation: &Validation) -> Vec<(String, CertificateFacts)> {
    let bundles = validation.spiffe.iter().flat_map(|trust| &trust.domains).map(|domain| &domain.bundle_pem);
    std::iter::once(&validation.trusted_ca_pem).chain(bundles).flat_map(|pem| read(&inline(), pem)).collect()
}

fn of_secret(of: String, secret: tls_pb::Secret) -> Certificates {
    use tls_pb::secret::Type;
    let read = |source: Option<DataSource>| {
        let (path, pem) = source.and_then(bytes_of).unwrap_or_default();
        read(&path, &pem)
    };
    let (authorities, chain) = match secret.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            (Vec::new(), read(certificate.certificate_chain).into_iter().take(1).collect())
        }
        Some(Type::ValidationContext(context)) => (read(context.trusted_ca), Vec::new()),
        _ => (Vec::new(), Vec::new()),
    };
    Certificates { of, authorities, chain }
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
