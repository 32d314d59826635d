//! Targets of `google_grpc` that workers call: each is a cluster that nobody has configured.
//!
//! Owns what a target's name means, and the cluster that stands for it; like targets have like clusters of the same name.
//! Never resolves or connects.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_api::pack;
use outrigger_api::pb::envoy::config::cluster::v3 as cluster;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::endpoint::v3 as endpoint;
use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use outrigger_api::pb::envoy::extensions::upstreams::http::v3 as http;

use super::GoogleTls;
use crate::cluster::Cluster;
use crate::context::Context;
use crate::rejection::{FieldPath, Parsed};

/// The cluster of a target. Whoever calls it holds on to this, and it goes when nobody does any longer.
#[derive(Debug)]
pub struct GoogleTarget {
    /// As if it were configured.
    pub cluster: Arc<Cluster>,
}

/// Targets are the same if their clusters have the same name.
impl PartialEq for GoogleTarget {
    fn eq(&self, other: &Self) -> bool {
        self.cluster.name == other.cluster.name
    }
}

impl Eq for GoogleTarget {}

/// What names of such clusters begin with; others must not.
pub const GOOGLE_PREFIX: &str = "google_grpc:";

/// The cluster that stands for `target`, of which the context is told.
pub(super) fn target(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    target: &str,
    credentials: Option<&GoogleTls>,
) -> Parsed<Arc<GoogleTarget>> {
    let uri_at = at.field("target_uri");
    let Some(place) = place(target) else {
        let expected = "expected host:port, dns:///host:port, ipv4:, ipv6:, unix: or unix-abstract:";
        return Err(uri_at.reject(format!("{target:?} is not supported, {expected}")));
    };
    let name = match credentials {
        None => format!("{GOOGLE_PREFIX}{target}"),
        Some(credentials) => {
            let mut hasher = DefaultHasher::new();
            credentials.hash(&mut hasher);
            format!("{GOOGLE_PREFIX}{target}#{:08x}", hasher.finish() as u32)
        }
    };
    let parsed = Cluster::parse(context, wire(&name, &place, credentials));
    let cluster = parsed.map_err(|rejection| at.reject(rejection.to_string()))?;
    let target = Arc::new(GoogleTarget { cluster: Arc::new(cluster) });
    context.add_google_target(Arc::clone(&target));
    Ok(target)
}

/// Where a target leads. Source: gRPC's "Name Resolution".
#[derive(Clone, Debug, Eq, PartialEq)]
enum Place {
    Name { host: String, port: u16 },
    Addresses(Vec<SocketAddr>),
    Pipe(String),
}

fn place(target: &str) -> Option<Place> {
    if let Some(path) = target.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return (!path.is_empty()).then(|| Place::Pipe(path.to_owned()));
    }
    if let Some(name) = target.strip_prefix("unix-abstract:") {
        return (!name.is_empty()).then(|| Place::Pipe(format!("@{name}")));
    }
    for scheme in ["ipv4:", "ipv6:"] {
        if let Some(list) = target.strip_prefix(scheme) {
            let addresses: Option<Vec<SocketAddr>> = list.split(',').map(address).collect();
            let v4 = scheme == "ipv4:";
            return addresses.filter(|all| all.iter().all(|one| one.is_ipv4() == v4)).map(Place::Addresses);
        }
    }
    let plain = target.strip_prefix("dns:").unwrap_or(target);
    // `dns://server/name` would name a server to ask.
    let plain = plain.strip_prefix("///").unwrap_or(plain);
    if let Some(address) = address(plain) {
        return Some(Place::Addresses(vec![address]));
    }
    let (host, port) = match plain.rsplit_once(':') {
        None => (plain, DEFAULT_PORT),
        Some((host, port)) => (host, port.parse().ok()?),
    };
    let is_name = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    is_name.then(|| Place::Name { host: host.to_owned(), port })
}

/// An address, with a port or without.
fn address(text: &str) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    text.parse().ok().or_else(|| Some(SocketAddr::new(bare.parse::<IpAddr>().ok()?, DEFAULT_PORT)))
}

fn wire(name: &str, place: &Place, credentials: Option<&GoogleTls>) -> cluster::Cluster {
    use core::address::Address as Kind;
    use core::socket_address::PortSpecifier;
    let socket = |address: String, port: u16| {
        Kind::SocketAddress(core::SocketAddress {
            address,
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })
    };
    let (kind, server_name, addresses) = match place {
        Place::Name { host, port } => {
            (cluster::cluster::DiscoveryType::LogicalDns, host.clone(), vec![socket(host.clone(), *port)])
        }
        Place::Addresses(all) => {
            let name = all.first().map(|address| address.ip().to_string()).unwrap_or_default();
            let addresses = all.iter().map(|address| socket(address.ip().to_string(), address.port()));
            (cluster::cluster::DiscoveryType::Static, name, addresses.collect())
        }
        Place::Pipe(path) => {
            let pipe = Kind::Pipe(core::Pipe { path: path.clone(), ..Default::default() });
            (cluster::cluster::DiscoveryType::Static, "localhost".to_owned(), vec![pipe])
        }
    };
    let endpoints = addresses.into_iter().map(|address| endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(core::Address { address: Some(address) }),
            ..Default::default()
        })),
        ..Default::default()
    });
    let locality = endpoint::LocalityLbEndpoints { lb_endpoints: endpoints.collect(), ..Default::default() };
    let options = http2();
    cluster::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(kind as i32)),
        // As gRPC does, which tries one address of a name after the other.
        dns_lookup_family: cluster::cluster::DnsLookupFamily::All as i32,
        load_assignment: Some(endpoint::ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![locality],
            ..Default::default()
        }),
        typed_extension_protocol_options: [(HTTP_OPTIONS.to_owned(), pack(&options))].into(),
        transport_socket: credentials.map(|credentials| transport_socket(credentials, server_name)),
        ..Default::default()
    }
}

fn http2() -> http::HttpProtocolOptions {
    use http::http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config};
    let protocol = explicit_http_config::ProtocolConfig::Http2ProtocolOptions(core::Http2ProtocolOptions::default());
    http::HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(protocol),
        })),
        ..Default::default()
    }
}

/// The server is trusted as gRPC does it: by these roots or those of the system, under the name that was asked for.
fn transport_socket(credentials: &GoogleTls, server_name: String) -> core::TransportSocket {
    let GoogleTls { root_certs, cert_chain, private_key } = credentials;
    let inline = |bytes: &Vec<u8>| core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineBytes(bytes.clone())),
        ..Default::default()
    };
    let certificate = cert_chain.as_ref().map(|chain| tls::TlsCertificate {
        certificate_chain: Some(inline(chain)),
        private_key: private_key.as_ref().map(inline),
        ..Default::default()
    });
    let validation = tls::CertificateValidationContext {
        trusted_ca: root_certs.as_ref().map(inline),
        system_root_certs: root_certs.is_none().then(Default::default),
        ..Default::default()
    };
    let context = tls::UpstreamTlsContext {
        sni: server_name,
        auto_sni_san_validation: true,
        common_tls_context: Some(tls::CommonTlsContext {
            tls_certificates: certificate.into_iter().collect(),
            alpn_protocols: vec!["h2".to_owned()],
            validation_context_type: Some(tls::common_tls_context::ValidationContextType::ValidationContext(
                validation,
            )),
            ..Default::default()
        }),
        ..Default::default()
    };
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(&context))),
    }
}

/// Of targets without one.
const DEFAULT_PORT: u16 = 443;
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Discovery, UpstreamProtocol};
    use crate::context::NoEnvironment;

    #[test]
    fn a_target_is_read_as_grpc_reads_it() {
        let name = |host: &str, port| Some(Place::Name { host: host.into(), port });
        let addresses =
            |all: &[&str]| Some(Place::Addresses(all.iter().map(|address| address.parse().unwrap()).collect()));
        let pipe = |path: &str| Some(Place::Pipe(path.into()));
        for (target, expected) in [
            ("authz.example:50051", name("authz.example", 50051)),
            ("authz.example", name("authz.example", 443)),
            ("dns:authz.example:1", name("authz.example", 1)),
            ("dns:///authz.example:1", name("authz.example", 1)),
            ("127.0.0.1:1", addresses(&["127.0.0.1:1"])),
            ("[::1]:1", addresses(&["[::1]:1"])),
            ("ipv4:10.0.0.1:1,10.0.0.2", addresses(&["10.0.0.1:1", "10.0.0.2:443"])),
            ("ipv6:[::1]:1", addresses(&["[::1]:1"])),
            ("unix:/run/authz", pipe("/run/authz")),
            ("unix:///run/authz", pipe("/run/authz")),
            ("unix-abstract:authz", pipe("@authz")),
            ("dns://8.8.8.8/authz.example:1", None),
            ("ipv4:[::1]:1", None),
            ("xds:///authz", None),
            ("http://authz.example", None),
            ("authz.example:", None),
            ("unix:", None),
            (":1", None),
        ] {
            assert_eq!(place(target), expected, "{target}");
        }
    }

    #[test]
    fn a_target_is_a_cluster_of_http2() {
        let context = Context::new(&NoEnvironment);
        let at = FieldPath::resource("listener", "l");
        let plain = target(&context, &at, "dns:///authz.example:1", None).unwrap();
        assert_eq!(&*plain.cluster.name, "google_grpc:dns:///authz.example:1");
        assert!(matches!(plain.cluster.discovery, Discovery::LogicalDns { .. }));
        assert_eq!(plain.cluster.http.protocol, UpstreamProtocol::Http2);
        assert!(plain.cluster.transport.tls().is_none());
        let roots = GoogleTls { root_certs: Some(b"roots".to_vec()), ..GoogleTls::default() };
        let secure = target(&context, &at, "authz.example:1", Some(&roots)).unwrap();
        let tls = secure.cluster.transport.tls().unwrap();
        assert!(tls.sni == "authz.example" && tls.auto_sni_san_validation);
        // Others are trusted for other reasons.
        let system = target(&context, &at, "authz.example:1", Some(&GoogleTls::default())).unwrap();
        assert!(secure != system && secure.cluster.name.starts_with("google_grpc:authz.example:1#"));
        let error = target(&context, &at, "xds:///a", None).unwrap_err().to_string();
        assert!(error.starts_with("listener \"l\": target_uri: \"xds:///a\" is not supported, expected host:port"));
        assert_eq!(context.take_google_targets().len(), 3);
    }
}
