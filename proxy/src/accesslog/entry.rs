//! Entries for the gRPC access log service (`envoy.data.accesslog.v3`).
//!
//! Owns how facts become messages. Never sends them (see `service`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::data::accesslog::v3 as data;
use outrigger_api::pb::envoy::data::accesslog::v3::http_access_log_entry::HttpVersion;
use outrigger_api::pb::envoy::data::accesslog::v3::tls_properties::certificate_properties::{
    SubjectAltName, subject_alt_name::San,
};
use outrigger_api::pb::envoy::data::accesslog::v3::tls_properties::{CertificateProperties, TlsVersion};
use outrigger_api::pb::google::protobuf as google;
use outrigger_config::accesslog::GrpcAccessLog;
use outrigger_config::address::Address;
use outrigger_config::format::Operator;
use outrigger_config::tracing::CustomTag;
use prost::Message as _;

use super::facts::{Facts, LogType};
use super::format::{Given, write_operator};
use super::records::custom;
use super::upstream;
use crate::http::headers::{HeaderId, Headers};
use crate::http::message::{Version, joined};
use crate::moments::Milestone;
use crate::stream::{ConnectionInfo, ResponseFlag, ResponseFlags, TlsInfo};

/// One entry.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Entry {
    /// Of a request.
    Http(Box<data::HttpAccessLogEntry>),
    /// Of a connection.
    Tcp(Box<data::TcpAccessLogEntry>),
}

impl Entry {
    /// The entry that `config` asks for.
    pub fn of(config: &GrpcAccessLog, facts: &Facts<'_>) -> Self {
        let common_properties = Some(data::AccessLogCommon {
            filter_state_objects: filter_state(&config.filter_state, facts),
            custom_tags: custom_tags(&config.custom_tags, facts),
            ..common(facts)
        });
        if !config.http {
            let connection_properties = data::ConnectionProperties {
                received_bytes: facts.info.bytes_received.get(),
                sent_bytes: facts.info.bytes_sent.get(),
            };
            return Entry::Tcp(Box::new(data::TcpAccessLogEntry {
                common_properties,
                connection_properties: Some(connection_properties),
            }));
        }
        let protocol_version = match facts.info.version {
            None => HttpVersion::ProtocolUnspecified,
            Some(Version::Http10) => HttpVersion::Http10,
            Some(Version::Http11) => HttpVersion::Http11,
            Some(Version::Http2) => HttpVersion::Http2,
        };
        Entry::Http(Box::new(data::HttpAccessLogEntry {
            common_properties,
            protocol_version: protocol_version.into(),
            request: Some(request(config, facts)),
            response: Some(response(config, facts)),
        }))
    }

    /// Bytes on the wire.
    pub fn size(&self) -> usize {
        match self {
            Entry::Http(entry) => entry.encoded_len(),
            Entry::Tcp(entry) => entry.encoded_len(),
        }
    }
}

// The deprecated field is still what older collectors read.
#[allow(deprecated)]
fn common(facts: &Facts<'_>) -> data::AccessLogCommon {
    let (info, connection) = (facts.info, facts.connection);
    let since_start = |instant: Option<Instant>| instant.map(|instant| duration(facts.since_start(instant)));
    let moment = |milestone| {
        let offset = u64::try_from(info.moments.offset(milestone)?).unwrap_or(0);
        Some(duration(Duration::from_nanos(offset)))
    };
    let host = info.upstream_host.borrow();
    data::AccessLogCommon {
        // Not filled in by Envoy either.
        sample_rate: 0.0,
        downstream_remote_address: Some(address(facts.remote())),
        downstream_local_address: Some(address(&connection.local)),
        tls_properties: connection.tls.as_ref().map(|tls| self::tls(tls, connection)),
        start_time: Some(timestamp(facts)),
        time_to_last_rx_byte: since_start(info.request_end.get()),
        time_to_first_upstream_tx_byte: moment(Milestone::UpstreamTxBegin),
        time_to_last_upstream_tx_byte: moment(Milestone::UpstreamTxEnd),
        time_to_first_upstream_rx_byte: since_start(info.response_start.get()),
        time_to_last_upstream_rx_byte: moment(Milestone::UpstreamRxEnd),
        time_to_first_downstream_tx_byte: moment(Milestone::DownstreamTxBegin),
        time_to_last_downstream_tx_byte: since_start(info.end.get()),
        upstream_remote_address: host.as_ref().map(|host| address(&host.address)),
        upstream_local_address: upstream::local_address(info).map(|local| address(&local)),
        upstream_cluster: info.cluster.borrow().as_deref().unwrap_or_default().to_owned(),
        response_flags: Some(response_flags(info.flags.get())).filter(|_| !info.flags.get().is_empty()),
        metadata: metadata(facts),
        upstream_transport_failure_reason: operator(&Operator::UpstreamTransportFailureReason, facts),
        route_name: info.route_name.borrow().as_deref().unwrap_or_default().to_owned(),
        downstream_direct_remote_address: Some(address(&connection.direct_remote)),
        filter_state_objects: HashMap::new(),
        custom_tags: HashMap::new(),
        duration: Some(duration(info.duration(facts.now))),
        upstream_request_attempt_count: info.attempts.get(),
        connection_termination_details: info.termination.borrow().as_deref().unwrap_or_default().to_owned(),
        stream_id: facts.stream_id().map(text).unwrap_or_default(),
        intermediate_log_entry: matches!(facts.log_type, LogType::DownstreamPeriodic | LogType::TcpPeriodic),
        downstream_transport_failure_reason: operator(&Operator::DownstreamTransportFailureReason, facts),
        // Bytes on the downstream's wire are not counted.
        downstream_wire_bytes_sent: 0,
        downstream_wire_bytes_received: 0,
        upstream_wire_bytes_sent: info.upstream_bytes_sent.get(),
        upstream_wire_bytes_received: info.upstream_bytes_received.get(),
        access_log_type: log_type(facts.log_type).into(),
    }
}

/// Objects of the filter state. All of them are text here.
fn filter_state(wanted: &[Arc<str>], facts: &Facts<'_>) -> HashMap<String, google::Any> {
    let object = |key: &Arc<str>| {
        let own = facts.info.filter_state.borrow().get(&**key).cloned();
        let value = own.or_else(|| facts.connection.filter_state.borrow().get(&**key).cloned())?;
        Some((key.to_string(), outrigger_api::pack(&google::StringValue { value })))
    };
    wanted.iter().filter_map(object).collect()
}

/// Tags that say something.
fn custom_tags(tags: &[CustomTag], facts: &Facts<'_>) -> HashMap<String, String> {
    let values = tags.iter().map(|CustomTag { name, value }| (name.to_string(), custom(value, facts)));
    values.filter(|(_, value)| !value.is_empty()).collect()
}

fn request(config: &GrpcAccessLog, facts: &Facts<'_>) -> data::HttpRequestProperties {
    let header = |name| facts.request_header(name).map(text).unwrap_or_default();
    let method = facts.request.and_then(|request| core::RequestMethod::from_str_name(request.method_str()));
    let chosen = |name: &Arc<str>| Some((name.to_string(), text(&facts.request?.lookup(name)?)));
    data::HttpRequestProperties {
        request_method: method.unwrap_or(core::RequestMethod::MethodUnspecified).into(),
        scheme: header(":scheme"),
        authority: header(":authority"),
        // Part of the authority.
        port: None,
        path: header(":path"),
        user_agent: header(HeaderId::UserAgent.name()),
        referer: header("referer"),
        forwarded_for: header(HeaderId::XForwardedFor.name()),
        request_id: header(HeaderId::XRequestId.name()),
        original_path: header(HeaderId::XEnvoyOriginalPath.name()),
        request_headers_bytes: facts.info.request_header_bytes.get(),
        request_body_bytes: facts.info.bytes_received.get(),
        request_headers: config.request_headers.iter().filter_map(chosen).collect(),
        // Heads are not counted apart from bodies on the wire.
        upstream_header_bytes_sent: 0,
        downstream_header_bytes_received: 0,
    }
}

fn response(config: &GrpcAccessLog, facts: &Facts<'_>) -> data::HttpResponseProperties {
    let info = facts.info;
    let code = info.response_code.get();
    data::HttpResponseProperties {
        response_code: (code != 0).then(|| google::UInt32Value { value: u32::from(code) }),
        response_headers_bytes: info.response_header_bytes.get(),
        response_body_bytes: info.bytes_sent.get(),
        response_headers: headers(facts.response.map(|response| &response.headers), &config.response_headers),
        response_trailers: headers(facts.trailers, &config.response_trailers),
        response_code_details: operator(&Operator::ResponseCodeDetails { blanks: false }, facts),
        upstream_header_bytes_received: 0,
        downstream_header_bytes_sent: 0,
    }
}

fn headers(headers: Option<&Headers>, names: &[Arc<str>]) -> HashMap<String, String> {
    let Some(headers) = headers else { return HashMap::new() };
    names.iter().filter_map(|name| Some((name.to_string(), text(&joined(headers, name)?)))).collect()
}

fn tls(tls: &TlsInfo, connection: &ConnectionInfo) -> data::TlsProperties {
    let uri = |name: &String| SubjectAltName { san: Some(San::Uri(name.clone())) };
    let dns = |name: &String| SubjectAltName { san: Some(San::Dns(name.clone())) };
    let version = match tls.version {
        "TLSv1.2" => TlsVersion::TlSv12,
        "TLSv1.3" => TlsVersion::TlSv13,
        _ => TlsVersion::VersionUnspecified,
    };
    data::TlsProperties {
        tls_version: version.into(),
        tls_cipher_suite: cipher_suite(tls.cipher).map(|value| google::UInt32Value { value }),
        tls_sni_hostname: connection.server_name.clone().unwrap_or_default(),
        local_certificate_properties: Some(CertificateProperties {
            subject_alt_name: tls.local_uri_sans.iter().map(uri).collect(),
            // Facts of our own certificate that are not kept.
            subject: String::new(),
            issuer: String::new(),
        }),
        peer_certificate_properties: tls.peer.as_ref().map(|peer| CertificateProperties {
            subject_alt_name: peer.uri_sans.iter().map(uri).chain(peer.dns_sans.iter().map(dns)).collect(),
            subject: peer.subject.clone(),
            issuer: peer.issuer.clone(),
        }),
        // TLS 1.3 has no session ids, and rustls does not tell those of TLS 1.2.
        tls_session_id: String::new(),
        ja3_fingerprint: String::new(),
    }
}

/// IANA's number of a suite by OpenSSL's name, for the suites that rustls speaks.
fn cipher_suite(name: &str) -> Option<u32> {
    Some(match name {
        "TLS_AES_128_GCM_SHA256" => 0x1301,
        "TLS_AES_256_GCM_SHA384" => 0x1302,
        "TLS_CHACHA20_POLY1305_SHA256" => 0x1303,
        "ECDHE-ECDSA-AES128-GCM-SHA256" => 0xc02b,
        "ECDHE-ECDSA-AES256-GCM-SHA384" => 0xc02c,
        "ECDHE-RSA-AES128-GCM-SHA256" => 0xc02f,
        "ECDHE-RSA-AES256-GCM-SHA384" => 0xc030,
        "ECDHE-RSA-CHACHA20-POLY1305" => 0xcca8,
        "ECDHE-ECDSA-CHACHA20-POLY1305" => 0xcca9,
        _ => return None,
    })
}

fn response_flags(flags: ResponseFlags) -> data::ResponseFlags {
    let has = |flag| flags.contains(flag);
    data::ResponseFlags {
        failed_local_healthcheck: has(ResponseFlag::FailedLocalHealthCheck),
        delay_injected: has(ResponseFlag::DelayInjected),
        fault_injected: has(ResponseFlag::FaultInjected),
        rate_limited: has(ResponseFlag::RateLimited),
        rate_limit_service_error: has(ResponseFlag::RateLimitServiceError),
        no_healthy_upstream: has(ResponseFlag::NoHealthyUpstream),
        upstream_request_timeout: has(ResponseFlag::UpstreamRequestTimeout),
        local_reset: has(ResponseFlag::LocalReset),
        upstream_remote_reset: has(ResponseFlag::UpstreamRemoteReset),
        upstream_connection_failure: has(ResponseFlag::UpstreamConnectionFailure),
        upstream_connection_termination: has(ResponseFlag::UpstreamConnectionTermination),
        upstream_overflow: has(ResponseFlag::UpstreamOverflow),
        no_route_found: has(ResponseFlag::NoRouteFound),
        downstream_connection_termination: has(ResponseFlag::DownstreamConnectionTermination),
        upstream_retry_limit_exceeded: has(ResponseFlag::UpstreamRetryLimitExceeded),
        stream_idle_timeout: has(ResponseFlag::StreamIdleTimeout),
        downstream_protocol_error: has(ResponseFlag::DownstreamProtocolError),
        duration_timeout: has(ResponseFlag::DurationTimeout),
        upstream_protocol_error: has(ResponseFlag::UpstreamProtocolError),
        no_cluster_found: has(ResponseFlag::NoClusterFound),
        no_filter_config_found: has(ResponseFlag::NoFilterConfigFound),
        overload_manager: has(ResponseFlag::OverloadManagerTerminated),
        dns_resolution_failure: has(ResponseFlag::DnsResolutionFailed),
        downstream_remote_reset: has(ResponseFlag::DownstreamRemoteReset),
        // Flags of features that do not exist here.
        ..data::ResponseFlags::default()
    }
}

/// What filters have told each other.
fn metadata(facts: &Facts<'_>) -> Option<core::Metadata> {
    let namespaces = facts.info.dynamic_metadata.borrow();
    if namespaces.is_empty() {
        return None;
    }
    let filter_metadata = namespaces.iter().map(|(name, values)| (name.clone(), object(values))).collect();
    Some(core::Metadata { filter_metadata, typed_filter_metadata: HashMap::new() })
}

pub(crate) fn object(values: &serde_json::Map<String, serde_json::Value>) -> google::Struct {
    google::Struct { fields: values.iter().map(|(key, value)| (key.clone(), self::value(value))).collect() }
}

fn value(value: &serde_json::Value) -> google::Value {
    use google::value::Kind;
    use serde_json::Value;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(*flag),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(values) => Kind::ListValue(google::ListValue { values: values.iter().map(self::value).collect() }),
        Value::Object(values) => Kind::StructValue(object(values)),
    };
    google::Value { kind: Some(kind) }
}

pub(super) fn log_type(log_type: LogType) -> data::AccessLogType {
    match log_type {
        LogType::NotSet => data::AccessLogType::NotSet,
        LogType::TcpUpstreamConnected => data::AccessLogType::TcpUpstreamConnected,
        LogType::TcpPeriodic => data::AccessLogType::TcpPeriodic,
        LogType::TcpConnectionStart => data::AccessLogType::TcpConnectionStart,
        LogType::TcpConnectionEnd => data::AccessLogType::TcpConnectionEnd,
        LogType::DownstreamStart => data::AccessLogType::DownstreamStart,
        LogType::DownstreamPeriodic => data::AccessLogType::DownstreamPeriodic,
        LogType::DownstreamEnd => data::AccessLogType::DownstreamEnd,
        LogType::DownstreamTunnelEstablished => data::AccessLogType::DownstreamTunnelSuccessfullyEstablished,
        LogType::UpstreamPoolReady => data::AccessLogType::UpstreamPoolReady,
        LogType::UpstreamPeriodic => data::AccessLogType::UpstreamPeriodic,
        LogType::UpstreamEnd => data::AccessLogType::UpstreamEnd,
    }
}

pub(crate) fn address(address: &Address) -> core::Address {
    use core::address::Address as Wire;
    use core::socket_address::PortSpecifier;
    let wire = match address {
        Address::Ip(socket) => Wire::SocketAddress(core::SocketAddress {
            address: socket.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(socket.port()))),
            ..core::SocketAddress::default()
        }),
        Address::Pipe { path, mode } => {
            Wire::Pipe(core::Pipe { path: path.to_string_lossy().into_owned(), mode: *mode })
        }
        Address::Internal(internal) => Wire::EnvoyInternalAddress(core::EnvoyInternalAddress {
            address_name_specifier: Some(core::envoy_internal_address::AddressNameSpecifier::ServerListenerName(
                internal.listener.to_string(),
            )),
            endpoint_id: internal.endpoint.to_string(),
        }),
    };
    core::Address { address: Some(wire) }
}

fn timestamp(facts: &Facts<'_>) -> google::Timestamp {
    let since = facts.clock.at(facts.info.start).duration_since(UNIX_EPOCH).unwrap_or_default();
    let google::Duration { seconds, nanos } = duration(since);
    google::Timestamp { seconds, nanos }
}

fn duration(duration: Duration) -> google::Duration {
    // Below 10^9.
    let nanos = duration.subsec_nanos() as i32;
    google::Duration { seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX), nanos }
}

/// What operators print, so that both kinds of log say the same.
fn operator(operator: &Operator, facts: &Facts<'_>) -> String {
    let mut out = Vec::new();
    match write_operator(operator, None, facts, &mut out) {
        Given::Absent => String::new(),
        Given::Text | Given::Number | Given::Json => text(&out),
    }
}

/// Protobuf strings are UTF-8; bytes that are not show as U+FFFD.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
