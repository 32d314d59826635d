//! Readers of transport sockets (`envoy.config.core.v3.TransportSocket`).
//!
//! Owns which transport sockets exist. Never reads what a TLS context says.

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::transport_sockets::internal_upstream::v3 as internal_upstream;
use outrigger_api::pb::envoy::extensions::transport_sockets::proxy_protocol::v3 as proxy_protocol;
use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use outrigger_api::pb::envoy::r#type::metadata::v3::metadata_kind;
use outrigger_api::pb::google::protobuf::Any;
use std::sync::Arc;

use super::{DownstreamTls, UpstreamTls};
use crate::cluster::{
    InternalTransport, PassedMetadata, PassedMetadataOwner, ProxiedTransport, ProxyHeaderSettings,
    ProxyProtocolVersion, TlvFilter, UpstreamTransport, tunneled,
};
use crate::context::Context;
use crate::decide::decide;
use crate::listener::DownstreamTransport;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// The transport socket of a filter chain.
pub(crate) fn downstream_transport_socket(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: core::TransportSocket,
) -> Parsed<DownstreamTransport> {
    let at_config = at.field("typed_config");
    match config(context, at, wire)? {
        Config::Raw => Ok(DownstreamTransport::Raw),
        // Without a certificate there is no server.
        Config::EmptyTls => Err(at_config.reject("is required")),
        Config::Typed(any)
            if wire::type_name(&any) == "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" =>
        {
            let wire: tls::DownstreamTlsContext = wire::decode(&at_config, &any)?;
            Ok(DownstreamTransport::Tls(Arc::new(DownstreamTls::read(context, &at_config, wire)?)))
        }
        Config::Typed(any) => Err(at_config.reject(unsupported(&any))),
    }
}

/// The transport socket of a cluster.
pub(crate) fn upstream_transport_socket(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: core::TransportSocket,
) -> Parsed<UpstreamTransport> {
    let at_config = at.field("typed_config");
    let wire = match config(context, at, wire)? {
        Config::Raw => return Ok(UpstreamTransport::Raw),
        Config::EmptyTls => tls::UpstreamTlsContext::default(),
        Config::Typed(any)
            if wire::type_name(&any) == "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" =>
        {
            wire::decode(&at_config, &any)?
        }
        Config::Typed(any) if wire::type_name(&any) == PROXY_PROTOCOL => {
            return proxied(context, &at_config, wire::decode(&at_config, &any)?);
        }
        Config::Typed(any) if wire::type_name(&any) == INTERNAL_UPSTREAM => {
            return internal(context, &at_config, wire::decode(&at_config, &any)?);
        }
        Config::Typed(any) if wire::type_name(&any) == HTTP_11_PROXY => {
            return tunneled(context, &at_config, wire::decode(&at_config, &any)?);
        }
        Config::Typed(any) => {
            return Err(at_config.reject(unsupported(&any)));
        }
    };
    Ok(UpstreamTransport::Tls(Arc::new(UpstreamTls::read(context, &at_config, wire)?)))
}

fn unsupported(any: &Any) -> String {
    let name = wire::type_name(any);
    if name.starts_with("envoy.extensions.transport_sockets.starttls.") {
        return format!("{name:?} is not supported: there is no filter that would begin TLS, so it would stay plain");
    }
    format!("{name:?} is not supported")
}

/// The socket inside another one.
fn inner_socket(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<core::TransportSocket>,
) -> Parsed<UpstreamTransport> {
    match wire {
        None => Err(at.reject("is required")),
        Some(wire) => upstream_transport_socket(context, at, wire),
    }
}

fn proxied(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: proxy_protocol::ProxyProtocolUpstreamTransport,
) -> Parsed<UpstreamTransport> {
    decide!(wire, at, proxy_protocol::ProxyProtocolUpstreamTransport
        as "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport" {
        implemented: config, transport_socket;
        no_effect: tlv_as_pool_key = "connections are always told apart by the whole header";
        unsupported: allow_unspecified_address;
    });
    let socket_at = at.field("transport_socket");
    let inner = inner_socket(context, &socket_at, transport_socket)?;
    if matches!(inner, UpstreamTransport::Proxied(_)) {
        return Err(socket_at.reject("must not send a PROXY protocol header, too"));
    }
    if inner.internal().is_some() {
        return Err(socket_at.reject("must not be an internal one: that is the outermost of all"));
    }
    if matches!(inner, UpstreamTransport::Tunneled(_)) {
        return Err(socket_at.reject("must not lead through an HTTP proxy, which would get the header first"));
    }
    let header = proxy_header(&at.field("config"), config.unwrap_or_default())?;
    Ok(UpstreamTransport::Proxied(Arc::new(ProxiedTransport { header, inner })))
}

fn internal(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: internal_upstream::InternalUpstreamTransport,
) -> Parsed<UpstreamTransport> {
    decide!(wire, at, internal_upstream::InternalUpstreamTransport
        as "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport" {
        implemented: passthrough_metadata, transport_socket;
        no_effect: ;
        unsupported: ;
    });
    let socket_at = at.field("transport_socket");
    let inner = inner_socket(context, &socket_at, transport_socket)?;
    if inner.internal().is_some() {
        return Err(socket_at.reject("must not be an internal one, too"));
    }
    if matches!(inner, UpstreamTransport::Tunneled(_)) {
        return Err(socket_at.reject("must not lead through an HTTP proxy, which is never inside of this process"));
    }
    let passed = wire::each(&at.field("passthrough_metadata"), passthrough_metadata, |at, wire| {
        decide!(wire, at, internal_upstream::internal_upstream_transport::MetadataValueSource
            as "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport.MetadataValueSource" {
            implemented: kind, name;
            no_effect: ;
            unsupported: ;
        });
        let kind_at = at.field("kind");
        let of = match kind.and_then(|kind| kind.kind) {
            Some(metadata_kind::Kind::Host(_)) => PassedMetadataOwner::Host,
            Some(metadata_kind::Kind::Cluster(_)) => PassedMetadataOwner::Cluster,
            Some(metadata_kind::Kind::Request(_)) => return Err(kind_at.field("request").unsupported()),
            Some(metadata_kind::Kind::Route(_)) => return Err(kind_at.field("route").unsupported()),
            None => return Err(kind_at.reject("needs one of host, cluster")),
        };
        if name.is_empty() {
            return Err(at.field("name").reject("must not be empty"));
        }
        Ok(PassedMetadata { of, namespace: name.into() })
    })?;
    Ok(UpstreamTransport::Internal(Arc::new(InternalTransport { passed, inner })))
}

/// Reads what a PROXY protocol header says.
pub(crate) fn proxy_header(at: &FieldPath<'_>, wire: core::ProxyProtocolConfig) -> Parsed<ProxyHeaderSettings> {
    decide!(wire, at, core::ProxyProtocolConfig as "envoy.config.core.v3.ProxyProtocolConfig" {
        implemented: version, pass_through_tlvs, added_tlvs;
        no_effect: ;
        unsupported: ;
    });
    let version = match core::proxy_protocol_config::Version::try_from(version) {
        Ok(core::proxy_protocol_config::Version::V1) => ProxyProtocolVersion::V1,
        Ok(core::proxy_protocol_config::Version::V2) => ProxyProtocolVersion::V2,
        Err(_) => return Err(wire::unknown_enum(&at.field("version"), version)),
    };
    let pass = pass_through_tlvs.map(|wire| tlv_filter(&at.field("pass_through_tlvs"), wire)).transpose()?;
    let added = wire::each(&at.field("added_tlvs"), added_tlvs, |at, wire| {
        decide!(wire, at, core::TlvEntry as "envoy.config.core.v3.TlvEntry" {
            implemented: r#type, value;
            no_effect: ;
            unsupported: format_string;
        });
        if value.is_empty() {
            return Err(at.field("value").reject("must not be empty"));
        }
        Ok((tlv_type(&at.field("type"), r#type)?, Arc::from(value)))
    })?;
    Ok(ProxyHeaderSettings { version, pass: pass.unwrap_or_default(), added })
}

/// Which TLVs of a PROXY protocol header are kept, or passed on.
pub(crate) fn tlv_filter(at: &FieldPath<'_>, wire: core::ProxyProtocolPassThroughTlVs) -> Parsed<TlvFilter> {
    use core::proxy_protocol_pass_through_tl_vs::PassTlVsMatchType as Match;
    decide!(wire, at, core::ProxyProtocolPassThroughTlVs as "envoy.config.core.v3.ProxyProtocolPassThroughTLVs" {
        implemented: match_type, tlv_type;
        no_effect: ;
        unsupported: ;
    });
    match Match::try_from(match_type) {
        Ok(Match::IncludeAll) => Ok(TlvFilter::All),
        Ok(Match::Include) => Ok(TlvFilter::Types(wire::each(&at.field("tlv_type"), tlv_type, self::tlv_type)?)),
        Err(_) => Err(wire::unknown_enum(&at.field("match_type"), match_type)),
    }
}

/// The type of a TLV, which is a byte.
pub(crate) fn tlv_type(at: &FieldPath<'_>, wire: u32) -> Parsed<u8> {
    u8::try_from(wire).map_err(|_| at.reject(format!("{wire} is above 255")))
}

const HTTP_11_PROXY: &str = "envoy.extensions.transport_sockets.http_11_proxy.v3.Http11ProxyUpstreamTransport";
const INTERNAL_UPSTREAM: &str = "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport";
const PROXY_PROTOCOL: &str = "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";

/// What a transport socket is, before its own config is read.
enum Config {
    Raw,
    EmptyTls,
    Typed(Any),
}

fn config(context: &Context<'_>, at: &FieldPath<'_>, wire: core::TransportSocket) -> Parsed<Config> {
    decide!(wire, at, core::TransportSocket as "envoy.config.core.v3.TransportSocket" {
        implemented: name, config_type;
        no_effect: ;
        unsupported: ;
    });
    if name.is_empty() {
        return Err(at.field("name").reject("must not be empty"));
    }
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = config_type else {
        // Only here does the name decide: there is no type to go by.
        return match name.as_str() {
            "raw_buffer" | "envoy.transport_sockets.raw_buffer" => Ok(Config::Raw),
            "tls" | "envoy.transport_sockets.tls" => Ok(Config::EmptyTls),
            _ => Err(at.field("name").reject(format!("{name:?} is not supported"))),
        };
    };
    let any = wire::extension(context, &at.field("typed_config"), any)?;
    let raw = wire::type_name(&any) == "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
    Ok(if raw { Config::Raw } else { Config::Typed(any) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::NoEnvironment;
    use outrigger_api::{Schema, UnknownFields};

    const ROOT: FieldPath<'static> = FieldPath::Resource { kind: "cluster", name: "billing" };

    fn read(yaml: &str) -> (Result<DownstreamTransport, String>, Result<UpstreamTransport, String>) {
        let context = Context::new(&NoEnvironment);
        let at = ROOT.field("transport_socket");
        let wire: core::TransportSocket = Schema::load().parse_yaml(yaml, UnknownFields::Reject).unwrap().message;
        (
            downstream_transport_socket(&context, &at, wire.clone()).map_err(|error| error.to_string()),
            upstream_transport_socket(&context, &at, wire).map_err(|error| error.to_string()),
        )
    }

    #[test]
    fn the_type_says_what_a_transport_socket_is() {
        let raw = "{name: mine, typed_config: \
                   {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}";
        for yaml in ["name: envoy.transport_sockets.raw_buffer", raw] {
            assert!(matches!(read(yaml), (Ok(DownstreamTransport::Raw), Ok(UpstreamTransport::Raw))));
        }
        let typed_struct = "{name: a, typed_config: {'@type': type.googleapis.com/xds.type.v3.TypedStruct, \
             type_url: type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
             value: {sni: a.example}}}";
        let (_, Ok(UpstreamTransport::Tls(tls))) = read(typed_struct) else { panic!() };
        assert_eq!(tls.sni, "a.example");
    }

    fn internal(rest: &str) -> Result<UpstreamTransport, String> {
        read(&format!("{{name: i, typed_config: {{'@type': type.googleapis.com/{INTERNAL_UPSTREAM}, {rest}}}}}")).1
    }

    const RAW: &str = "transport_socket: {name: raw_buffer}";

    #[test]
    fn the_way_into_a_listener_of_this_process_takes_metadata_of_endpoint_and_cluster_along() {
        let read = internal(&format!(
            "passthrough_metadata: [{{kind: {{host: {{}}}}, name: a}}, {{kind: {{cluster: {{}}}}, name: b}}], {RAW}"
        ));
        let transport = read.unwrap();
        let internal = transport.internal().unwrap();
        let passed: Vec<_> = internal.passed.iter().map(|passed| (passed.of, &*passed.namespace)).collect();
        assert_eq!(passed, [(PassedMetadataOwner::Host, "a"), (PassedMetadataOwner::Cluster, "b")]);
        assert!(matches!(internal.inner, UpstreamTransport::Raw));
    }

    #[test]
    fn ways_into_a_listener_of_this_process_that_are_refused() {
        let of = |kind: &str, name: &str| {
            internal(&format!("passthrough_metadata: [{{kind: {{{kind}}}, name: {name}}}], {RAW}")).unwrap_err()
        };
        let at = "cluster \"billing\": transport_socket.typed_config";
        assert_eq!(internal("").unwrap_err(), format!("{at}.transport_socket: is required"));
        let list = format!("{at}.passthrough_metadata[0]");
        assert_eq!(of("request: {}", "a"), format!("{list}.kind.request: is not supported"));
        assert_eq!(of("route: {}", "a"), format!("{list}.kind.route: is not supported"));
        assert_eq!(of("", "a"), format!("{list}.kind: needs one of host, cluster"));
        assert_eq!(of("host: {}", "''"), format!("{list}.name: must not be empty"));
        let twice = format!(
            "transport_socket: {{name: i, typed_config: {{'@type': type.googleapis.com/{INTERNAL_UPSTREAM}, {RAW}}}}}"
        );
        assert_eq!(internal(&twice).unwrap_err(), format!("{at}.transport_socket: must not be an internal one, too"));
    }

    #[test]
    fn transport_sockets_that_are_refused() {
        let (downstream, upstream) = read("name: envoy.transport_sockets.tls");
        assert_eq!(downstream.unwrap_err(), "cluster \"billing\": transport_socket.typed_config: is required");
        assert!(matches!(upstream, Ok(UpstreamTransport::Tls(_))));
        let expected = "cluster \"billing\": transport_socket.name: \"mine\" is not supported";
        assert_eq!(read("name: mine").1.unwrap_err(), expected);
        let other = read("{name: a, typed_config: {'@type': type.googleapis.com/google.protobuf.Empty}}");
        let expected = "cluster \"billing\": transport_socket.typed_config: \"google.protobuf.Empty\" is not supported";
        assert_eq!((other.0.unwrap_err(), other.1.unwrap_err()), (expected.to_owned(), expected.to_owned()));
        let later = "{name: a, typed_config: {'@type': \
                     type.googleapis.com/envoy.extensions.transport_sockets.starttls.v3.StartTlsConfig}}";
        assert!(
            read(later).0.unwrap_err().ends_with("there is no filter that would begin TLS, so it would stay plain")
        );
    }
}
