//! What an active health check sends, and which answers are good (`HealthCheck.health_checker`).
//!
//! Owns the checked kinds of checks. Never sends anything.

use std::ops::Range;
use std::sync::Arc;

use core::health_check::{GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck};
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::r#type::v3 as types;

use super::health_check_custom::{AgentProbe, custom};
use crate::context::Context;
use crate::decide::decide;
use crate::http::HeaderAddition;
use crate::http::header_mutations::header_mutations;
use crate::matching::StringMatcher;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// What is sent and expected.
#[derive(Clone, Debug, PartialEq)]
pub enum Probe {
    /// A request.
    Http(HttpProbe),
    /// A connection, and bytes.
    Tcp(TcpProbe),
    /// `grpc.health.v1.Health/Check`.
    Grpc(GrpcProbe),
    /// `grpc.health.v1.Health/Watch`.
    GrpcWatch(GrpcProbe),
    /// A line from an agent.
    Agent(AgentProbe),
}

/// A request and its good answers.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpProbe {
    /// GET unless given.
    pub method: &'static str,
    /// What is asked for.
    pub path: Arc<str>,
    /// The host header; the cluster's name if empty.
    pub host: Arc<str>,
    /// The request's body.
    pub send: Vec<u8>,
    /// What the body of the response must contain, in this order.
    pub receive: Vec<Vec<u8>>,
    /// So much of the body is looked at, in bytes; all of it for 0. 1 KiB unless given.
    pub response_buffer_size: u64,
    /// Added to the request.
    pub headers: Vec<ProbeHeader>,
    /// Taken out of the request, lower-case.
    pub headers_to_remove: Vec<Arc<str>>,
    /// Good statuses; 200 unless given.
    pub expected: Vec<Range<u16>>,
    /// Statuses that are not good, but count towards the threshold only.
    pub retriable: Vec<Range<u16>>,
    /// What `x-envoy-upstream-healthchecked-cluster` of the response must be.
    pub service_name: Option<StringMatcher>,
    /// HTTP/2 instead of HTTP/1.1.
    pub http2: bool,
}

/// A header of a check.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeHeader {
    /// Lower-case.
    pub name: Arc<str>,
    /// As it stands.
    pub value: Arc<str>,
}

/// A connection, and bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TcpProbe {
    /// Sent once there is a connection.
    pub send: Vec<u8>,
    /// What must come, in this order; a connection is enough if empty.
    pub receive: Vec<Vec<u8>>,
    /// Sent before anything else.
    pub proxy_protocol: Option<ProxyProtocolVersion>,
}

/// Source: `ProxyProtocolConfig.Version`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProxyProtocolVersion {
    /// A line of text with both addresses.
    V1,
    /// A binary header that says that the connection is the proxy's own.
    V2,
}

/// `grpc.health.v1.Health/Check` or `Watch`.
#[derive(Clone, Debug, PartialEq)]
pub struct GrpcProbe {
    /// Which service is asked for; may be empty.
    pub service_name: String,
    /// The `:authority` header; the cluster's name if empty.
    pub authority: Arc<str>,
    /// Added to the request.
    pub metadata: Vec<ProbeHeader>,
}

/// Reads the kind of check of the message `at`.
pub(super) fn probe(context: &Context<'_>, at: &FieldPath<'_>, wire: Option<HealthChecker>) -> Parsed<Probe> {
    match wire {
        None => Err(at.field("health_checker").reject("is required")),
        Some(HealthChecker::HttpHealthCheck(wire)) => Ok(Probe::Http(http(&at.field("http_health_check"), wire)?)),
        Some(HealthChecker::TcpHealthCheck(wire)) => Ok(Probe::Tcp(tcp(&at.field("tcp_health_check"), wire)?)),
        Some(HealthChecker::GrpcHealthCheck(wire)) => Ok(Probe::Grpc(grpc(&at.field("grpc_health_check"), wire)?)),
        Some(HealthChecker::CustomHealthCheck(wire)) => custom(context, &at.field("custom_health_check"), wire),
    }
}

fn http(at: &FieldPath<'_>, wire: HttpHealthCheck) -> Parsed<HttpProbe> {
    decide!(wire, at, HttpHealthCheck as "envoy.config.core.v3.HealthCheck.HttpHealthCheck" {
        implemented: host, path, send, receive, response_buffer_size, request_headers_to_add,
            request_headers_to_remove, expected_statuses, retriable_statuses, codec_client_type,
            service_name_matcher, method;
        no_effect: ;
        unsupported: ;
    });
    if path.is_empty() {
        return Err(at.field("path").reject("must not be empty"));
    }
    wire::header_value(&at.field("path"), &path)?;
    wire::header_value(&at.field("host"), &host)?;
    let method_at = at.field("method");
    let method = method_name(&method_at, method)?;
    let send_at = at.field("send");
    let send = send.map_or(Ok(Vec::new()), |wire| payload(&send_at, wire))?;
    if !send.is_empty() && !matches!(method, "POST" | "PUT" | "PATCH" | "OPTIONS") {
        return Err(send_at.reject(format!("{method} requests have no body, expected POST, PUT, PATCH or OPTIONS")));
    }
    let mutations = header_mutations(
        &at.field("request_headers_to_add"),
        request_headers_to_add,
        &at.field("request_headers_to_remove"),
        request_headers_to_remove,
    )?;
    let mut expected = statuses(&at.field("expected_statuses"), expected_statuses)?;
    if expected.is_empty() {
        expected.push(200..201);
    }
    Ok(HttpProbe {
        method,
        path: path.into(),
        host: host.into(),
        send,
        receive: payloads(&at.field("receive"), receive)?,
        response_buffer_size: response_buffer_size.map_or(DEFAULT_RESPONSE_BUFFER, |size| size.value),
        headers: headers(&at.field("request_headers_to_add"), mutations.add)?,
        headers_to_remove: mutations.remove,
        expected,
        retriable: statuses(&at.field("retriable_statuses"), retriable_statuses)?,
        service_name: match service_name_matcher {
            None => None,
            Some(wire) => Some(wire::string_matcher(&at.field("service_name_matcher"), wire)?),
        },
        http2: codec(&at.field("codec_client_type"), codec_client_type)?,
    })
}

fn method_name(at: &FieldPath<'_>, value: i32) -> Parsed<&'static str> {
    use core::RequestMethod;
    Ok(match RequestMethod::try_from(value).map_err(|_| wire::unknown_enum(at, value))? {
        RequestMethod::MethodUnspecified | RequestMethod::Get => "GET",
        RequestMethod::Head => "HEAD",
        RequestMethod::Post => "POST",
        RequestMethod::Put => "PUT",
        RequestMethod::Delete => "DELETE",
        RequestMethod::Options => "OPTIONS",
        RequestMethod::Trace => "TRACE",
        RequestMethod::Patch => "PATCH",
        RequestMethod::Connect => return Err(at.reject("CONNECT is not for health checks")),
    })
}

fn codec(at: &FieldPath<'_>, value: i32) -> Parsed<bool> {
    match types::CodecClientType::try_from(value).map_err(|_| wire::unknown_enum(at, value))? {
        types::CodecClientType::Http1 => Ok(false),
        types::CodecClientType::Http2 => Ok(true),
        types::CodecClientType::Http3 => Err(at.reject("HTTP3 is not supported")),
    }
}

/// There is no request that a check belongs to, so nothing can be looked up for its headers; and none of them stands
/// there already, but for the host, which lists may not touch.
fn headers(at: &FieldPath<'_>, additions: Vec<HeaderAddition>) -> Parsed<Vec<ProbeHeader>> {
    let mut headers = Vec::with_capacity(additions.len());
    for (index, addition) in additions.into_iter().enumerate() {
        let at = at.item(index);
        let at = at.field("header");
        match addition.value.as_literal() {
            None => return Err(at.field("value").reject("command operators are not supported in health checks")),
            Some("") if !addition.keep_empty_value => {}
            Some(value) => headers.push(ProbeHeader { name: addition.name, value: value.into() }),
        }
    }
    Ok(headers)
}

fn statuses(at: &FieldPath<'_>, wire: Vec<types::Int64Range>) -> Parsed<Vec<Range<u16>>> {
    let mut ranges = Vec::with_capacity(wire.len());
    for (index, types::Int64Range { start, end }) in wire.into_iter().enumerate() {
        let valid = |number: i64| u16::try_from(number).ok().filter(|number| (100..=600).contains(number));
        match (valid(start), valid(end)) {
            (Some(start), Some(end)) if start < end => ranges.push(start..end),
            _ => return Err(at.item(index).reject(format!("{start} to {end} is not a range within 100 to 600"))),
        }
    }
    Ok(ranges)
}

fn tcp(at: &FieldPath<'_>, wire: TcpHealthCheck) -> Parsed<TcpProbe> {
    decide!(wire, at, TcpHealthCheck as "envoy.config.core.v3.HealthCheck.TcpHealthCheck" {
        implemented: send, receive, proxy_protocol_config;
        no_effect: ;
        unsupported: ;
    });
    Ok(TcpProbe {
        send: send.map_or(Ok(Vec::new()), |wire| payload(&at.field("send"), wire))?,
        receive: payloads(&at.field("receive"), receive)?,
        proxy_protocol: match proxy_protocol_config {
            None => None,
            Some(wire) => Some(proxy_protocol(&at.field("proxy_protocol_config"), wire)?),
        },
    })
}

fn proxy_protocol(at: &FieldPath<'_>, wire: core::ProxyProtocolConfig) -> Parsed<ProxyProtocolVersion> {
    decide!(wire, at, core::ProxyProtocolConfig as "envoy.config.core.v3.ProxyProtocolConfig" {
        implemented: version;
        no_effect: pass_through_tlvs = "a check has no downstream connection";
        unsupported: added_tlvs;
    });
    use core::proxy_protocol_config::Version;
    let version_at = at.field("version");
    match Version::try_from(version).map_err(|_| wire::unknown_enum(&version_at, version))? {
        Version::V1 => Ok(ProxyProtocolVersion::V1),
        Version::V2 => Ok(ProxyProtocolVersion::V2),
    }
}

fn grpc(at: &FieldPath<'_>, wire: GrpcHealthCheck) -> Parsed<GrpcProbe> {
    decide!(wire, at, GrpcHealthCheck as "envoy.config.core.v3.HealthCheck.GrpcHealthCheck" {
        implemented: service_name, authority, initial_metadata;
        no_effect: ;
        unsupported: ;
    });
    wire::header_value(&at.field("authority"), &authority)?;
    let metadata_at = at.field("initial_metadata");
    let mutations = header_mutations(&metadata_at, initial_metadata, &metadata_at, Vec::new())?;
    Ok(GrpcProbe { service_name, authority: authority.into(), metadata: headers(&metadata_at, mutations.add)? })
}

fn payloads(at: &FieldPath<'_>, wire: Vec<Payload>) -> Parsed<Vec<Vec<u8>>> {
    wire.into_iter().enumerate().map(|(index, wire)| payload(&at.item(index), wire)).collect()
}

fn payload(at: &FieldPath<'_>, wire: Payload) -> Parsed<Vec<u8>> {
    use core::health_check::payload::Payload as Kind;
    let Payload { payload } = wire;
    match payload {
        None => Err(at.reject("needs one of text, binary")),
        Some(Kind::Binary(bytes)) => Ok(bytes),
        Some(Kind::Text(text)) if text.is_empty() => Err(at.field("text").reject("must not be empty")),
        Some(Kind::Text(text)) => hex(&text)
            .ok_or_else(|| at.field("text").reject(format!("{text:?} is not made of hexadecimal digit pairs"))),
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

const DEFAULT_RESPONSE_BUFFER: u64 = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::NoEnvironment;
    use outrigger_api::{ParseOptions, Schema};

    fn read(yaml: &str) -> Result<Probe, String> {
        let wire: core::HealthCheck = Schema::load().parse_yaml(yaml, ParseOptions::default()).unwrap().message;
        let context = Context::new(&NoEnvironment);
        probe(&context, &FieldPath::resource("cluster", "c"), wire.health_checker).map_err(|error| error.to_string())
    }

    #[test]
    fn an_http_check_asks_for_a_path_and_expects_200() {
        let Probe::Http(probe) = read("http_health_check: {path: /ok}").unwrap() else { panic!() };
        assert_eq!((probe.method, &*probe.path, &*probe.host, probe.http2), ("GET", "/ok", "", false));
        assert_eq!(
            (probe.expected, probe.retriable, probe.response_buffer_size),
            (std::iter::once(200..201).collect::<Vec<_>>(), vec![], 1024)
        );
        let Probe::Http(probe) = read(
            "http_health_check: {path: /ok, host: a.b, method: POST, send: {text: 00fF}, receive: [{binary: b2s=}], \
             response_buffer_size: 0, expected_statuses: [{start: 200, end: 300}, {start: 404, end: 405}], \
             retriable_statuses: [{start: 500, end: 600}], codec_client_type: HTTP2, \
             service_name_matcher: {prefix: loc}, request_headers_to_remove: [User-Agent], \
             request_headers_to_add: [{header: {key: X-A, value: b}}, {header: {key: x-empty, value: ''}}]}",
        )
        .unwrap() else {
            panic!()
        };
        assert_eq!((probe.send, probe.receive, probe.response_buffer_size), (vec![0, 255], vec![b"ok".to_vec()], 0));
        assert_eq!(
            (probe.expected, probe.retriable),
            (vec![200..300, 404..405], std::iter::once(500..600).collect::<Vec<_>>())
        );
        assert_eq!(probe.headers, [ProbeHeader { name: "x-a".into(), value: "b".into() }]);
        assert_eq!(probe.headers_to_remove, ["user-agent".into()]);
        assert!(probe.http2 && probe.service_name.unwrap().matches(b"local"));
    }

    #[test]
    fn tcp_and_grpc_checks_are_taken() {
        let tcp = read("tcp_health_check: {send: {text: '01'}, receive: [{text: '02'}], proxy_protocol_config: {}}");
        let expected =
            TcpProbe { send: vec![1], receive: vec![vec![2]], proxy_protocol: Some(ProxyProtocolVersion::V1) };
        assert_eq!(tcp.unwrap(), Probe::Tcp(expected));
        let grpc = read(
            "grpc_health_check: {service_name: s, authority: a, initial_metadata: [{header: {key: k, value: v}}]}",
        );
        let metadata = vec![ProbeHeader { name: "k".into(), value: "v".into() }];
        assert_eq!(grpc.unwrap(), Probe::Grpc(GrpcProbe { service_name: "s".into(), authority: "a".into(), metadata }));
    }

    #[test]
    fn checks_that_are_refused() {
        for (yaml, reason) in [
            ("http_health_check: {}", "http_health_check.path: must not be empty"),
            (
                "http_health_check: {path: /, send: {text: '00'}}",
                "http_health_check.send: GET requests have no body, expected POST, PUT, PATCH or OPTIONS",
            ),
            (
                "http_health_check: {path: /, method: CONNECT}",
                "http_health_check.method: CONNECT is not for health checks",
            ),
            (
                "http_health_check: {path: /, codec_client_type: HTTP3}",
                "http_health_check.codec_client_type: HTTP3 is not supported",
            ),
            (
                "http_health_check: {path: /, expected_statuses: [{start: 200, end: 601}]}",
                "http_health_check.expected_statuses[0]: 200 to 601 is not a range within 100 to 600",
            ),
            (
                "http_health_check: {path: /, retriable_statuses: [{start: 200, end: 200}]}",
                "http_health_check.retriable_statuses[0]: 200 to 200 is not a range within 100 to 600",
            ),
            (
                "http_health_check: {path: /, request_headers_to_add: [{header: {key: a, value: '%PROTOCOL%'}}]}",
                "http_health_check.request_headers_to_add[0].header.value: command operators are not supported in \
                 health checks",
            ),
            (
                "tcp_health_check: {send: {text: abc}}",
                "tcp_health_check.send.text: \"abc\" is not made of hexadecimal digit pairs",
            ),
            ("tcp_health_check: {receive: [{}]}", "tcp_health_check.receive[0]: needs one of text, binary"),
        ] {
            assert_eq!(read(yaml).unwrap_err(), format!("cluster \"c\": {reason}"));
        }
    }
}
