//! Evaluates compiled formats (`outrigger_config::format::Format`).
//!
//! Owns what each command operator prints. Writes straight into the caller's buffer: a literal costs one copy, and nothing
//! allocates. Never decides where the text goes.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::address::Address;
use outrigger_config::format::{AddressPart, FilterStateForm, Format, FormatPart, GrpcStatusForm, Operator};
use outrigger_policy::trace::{Format as SpanFormat, b3};
use serde_json::Value;

use super::facts::Facts;
use super::number::push;
use super::{grpc_status, time};
use crate::http::headers::Headers;
use crate::http::message::ResponseHead;
use crate::stream::{PeerCertificate, ResponseFlag, TlsInfo};

/// What an operator gave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Given {
    /// Text, which may be empty.
    Text,
    /// A number in decimal.
    Number,
    /// Any other value as JSON.
    Json,
    /// Nothing, and nothing was written.
    Absent,
}

/// Writes a text log entry: `-` stands for what is absent.
pub fn write(format: &Format, facts: &Facts<'_>, out: &mut Vec<u8>) {
    write_with(format, facts, b"-", out);
}

/// Writes the value of a header, as header mutations do: nothing stands for what is absent.
pub fn write_header(format: &Format, facts: &Facts<'_>, out: &mut Vec<u8>) {
    write_with(format, facts, b"", out);
}

fn write_with(format: &Format, facts: &Facts<'_>, absent: &[u8], out: &mut Vec<u8>) {
    for part in &format.parts {
        match part {
            FormatPart::Literal(text) => out.extend_from_slice(text.as_bytes()),
            FormatPart::Operator { operator, max_bytes } => {
                if write_operator(operator, *max_bytes, facts, out) == Given::Absent {
                    out.extend_from_slice(absent);
                }
            }
        }
    }
}

/// Writes what one operator gives, cut to `max_bytes`.
pub fn write_operator(operator: &Operator, max_bytes: Option<usize>, facts: &Facts<'_>, out: &mut Vec<u8>) -> Given {
    let start = out.len();
    let given = emit(operator, facts, out);
    let Some(max_bytes) = max_bytes else { return given };
    out.truncate(start.saturating_add(max_bytes));
    // What was cut off is JSON no more.
    if given == Given::Json { Given::Text } else { given }
}

fn emit(operator: &Operator, facts: &Facts<'_>, out: &mut Vec<u8>) -> Given {
    let info = facts.info;
    match operator {
        Operator::RequestHeader { name, alternative } => {
            let value = facts.request_header(name);
            text(value.or_else(|| facts.request_header(alternative.as_deref()?)), out)
        }
        Operator::ResponseHeader { name, alternative } => {
            response_header(facts.response, name, alternative.as_deref(), out)
        }
        Operator::ResponseTrailer { name, alternative } => trailer(facts.trailers, name, alternative.as_deref(), out),
        Operator::StartTime { format } => {
            time::write(format.as_deref(), facts.clock.at(info.start), out);
            Given::Text
        }
        Operator::Protocol => text(info.version.map(|version| version.as_str().as_bytes()), out),
        Operator::ResponseCode => number(u64::from(info.response_code.get()), out),
        Operator::ResponseCodeDetails => without_blanks(&info.details.borrow(), out),
        Operator::ResponseFlags => flags(facts, ResponseFlag::short, out),
        Operator::ResponseFlagsLong => flags(facts, ResponseFlag::long, out),
        Operator::BytesReceived => number(info.bytes_received.get(), out),
        Operator::BytesSent => number(info.bytes_sent.get(), out),
        Operator::UpstreamBytesReceived => number(info.upstream_bytes_received.get(), out),
        Operator::UpstreamBytesSent => number(info.upstream_bytes_sent.get(), out),
        Operator::Duration => milliseconds(Some(info.duration(facts.now)), out),
        Operator::RequestDuration => milliseconds(info.request_end.get().map(|end| facts.since_start(end)), out),
        Operator::ResponseDuration => {
            milliseconds(info.response_start.get().map(|start| facts.since_start(start)), out)
        }
        Operator::ResponseTxDuration => {
            let end: Instant = info.end.get().unwrap_or(facts.now);
            milliseconds(info.response_start.get().map(|start| end.saturating_duration_since(start)), out)
        }
        Operator::ConnectionId => number(facts.connection.id, out),
        Operator::ConnectionTerminationDetails => non_empty(info.termination.borrow().as_deref().unwrap_or(""), out),
        Operator::DownstreamTransportFailureReason => without_blanks(facts.downstream_failure, out),
        Operator::RequestedServerName => non_empty(facts.connection.server_name.as_deref().unwrap_or(""), out),
        Operator::RouteName => non_empty(info.route_name.borrow().as_deref().unwrap_or(""), out),
        Operator::FilterChainName => non_empty(&facts.connection.filter_chain, out),
        Operator::DownstreamRemoteAddress(part) => address(facts.remote(), *part, out),
        Operator::DownstreamDirectRemoteAddress(part) => address(&facts.connection.direct_remote, *part, out),
        Operator::DownstreamLocalAddress(part) => address(&facts.connection.local, *part, out),
        Operator::Environment { value } => text(value.as_deref().map(str::as_bytes), out),
        Operator::Hostname => non_empty(facts.hostname, out),
        Operator::LocalReplyBody => text(Some(facts.local_reply_body), out),
        Operator::GrpcStatus(form) => grpc_status(*form, facts, out),
        Operator::StreamId => text(facts.stream_id(), out),
        Operator::RequestHeadersBytes => number(info.request_header_bytes.get(), out),
        Operator::ResponseHeadersBytes => number(info.response_header_bytes.get(), out),
        Operator::AccessLogType => non_empty(facts.log_type.as_str(), out),
        Operator::UpstreamHost
        | Operator::UpstreamCluster { .. }
        | Operator::UpstreamLocalAddress(_)
        | Operator::UpstreamRemoteAddress(_)
        | Operator::UpstreamTransportFailureReason
        | Operator::UpstreamRequestAttemptCount
        | Operator::UpstreamProtocol => upstream(operator, facts, out),
        Operator::DownstreamTlsVersion
        | Operator::DownstreamTlsCipher
        | Operator::DownstreamTlsSessionId
        | Operator::DownstreamPeerUriSan
        | Operator::DownstreamPeerDnsSan
        | Operator::DownstreamLocalUriSan
        | Operator::DownstreamPeerSubject
        | Operator::DownstreamPeerIssuer
        | Operator::DownstreamPeerFingerprint256 => match &facts.connection.tls {
            Some(tls) => downstream_tls(operator, tls, out),
            None => Given::Absent,
        },
        Operator::DynamicMetadata { path } => dynamic_metadata(path, facts, out),
        Operator::FilterState { key, form } => filter_state(key, form, facts, out),
        // Nothing in the proxy sets these.
        Operator::VirtualClusterName => non_empty(info.virtual_cluster.borrow().as_deref().unwrap_or(""), out),
        Operator::Metadata { .. } => Given::Absent,
        Operator::TraceId => match facts.span {
            Some(span) if span.format == SpanFormat::W3c => hexadecimal(span.trace_id, 32, out),
            Some(span) => text(Some(&b3::trace_id_text(span.trace_id)), out),
            None => Given::Absent,
        },
        // Envoy tells that of OpenTelemetry only.
        Operator::SpanId => match facts.span.filter(|span| span.format == SpanFormat::W3c) {
            Some(span) => hexadecimal(u128::from(span.span_id), 16, out),
            None => Given::Absent,
        },
    }
}

fn dynamic_metadata(path: &[Arc<str>], facts: &Facts<'_>, out: &mut Vec<u8>) -> Given {
    let metadata = facts.info.dynamic_metadata.borrow();
    let Some((namespace, keys)) = path.split_first() else { return Given::Absent };
    let Some(namespace) = metadata.get(&**namespace) else { return Given::Absent };
    let Some((first, rest)) = keys.split_first() else {
        return json(namespace, out);
    };
    let first = namespace.get(&**first);
    let value = rest.iter().try_fold(first, |value, key| Some(value?.as_object()?.get(&**key)));
    match value.flatten() {
        None | Some(Value::Null) => Given::Absent,
        Some(Value::String(value)) => text(Some(value.as_bytes()), out),
        Some(value @ Value::Number(_)) => {
            json(value, out);
            Given::Number
        }
        Some(value) => json(value, out),
    }
}

fn json(value: &impl serde::Serialize, out: &mut Vec<u8>) -> Given {
    // Writing to a vector cannot fail.
    let _ = serde_json::to_writer(out, value);
    Given::Json
}

/// Objects of the request, else those of its connection.
fn filter_state(key: &str, form: &FilterStateForm, facts: &Facts<'_>, out: &mut Vec<u8>) -> Given {
    if let (GRPC_STATS, Some((requests, responses))) = (key, facts.info.grpc_messages.get()) {
        return grpc_messages(form, requests, responses, out);
    }
    let own = facts.info.filter_state.borrow();
    let of_connection = facts.connection.filter_state.borrow();
    let Some(object) = own.get(key).or_else(|| of_connection.get(key)) else { return Given::Absent };
    match form {
        FilterStateForm::Plain => text(Some(object.as_bytes()), out),
        FilterStateForm::Typed => json(object, out),
        FilterStateForm::Field(_) => Given::Absent,
    }
}

/// The object that the gRPC stats filter leaves; its counts are 64 bits wide, which JSON writes as text.
fn grpc_messages(form: &FilterStateForm, requests: u64, responses: u64, out: &mut Vec<u8>) -> Given {
    match form {
        FilterStateForm::Typed => {
            // Fields that are 0 are left out.
            let fields = [("requestMessageCount", requests), ("responseMessageCount", responses)];
            let mut separator = '{';
            for (name, count) in fields.into_iter().filter(|(_, count)| *count > 0) {
                // Writing to a vector cannot fail.
                let _ = write!(out, "{separator}\"{name}\":\"{count}\"");
                separator = ',';
            }
            out.extend_from_slice(if separator == '{' { b"{}" } else { b"}" });
            Given::Json
        }
        FilterStateForm::Plain => {
            // Writing to a vector cannot fail.
            let _ = write!(out, "{requests},{responses}");
            Given::Text
        }
        FilterStateForm::Field(_) => Given::Absent,
    }
}

/// Name of the object with the counts of gRPC messages.
const GRPC_STATS: &str = "envoy.filters.http.grpc_stats";

/// The operators about the other side.
fn upstream(operator: &Operator, facts: &Facts<'_>, out: &mut Vec<u8>) -> Given {
    let info = facts.info;
    match operator {
        Operator::UpstreamHost => match &*info.upstream_host.borrow() {
            Some(host) => address(&host.address, AddressPart::Full, out),
            None => Given::Absent,
        },
        Operator::UpstreamCluster { raw } => match (facts.cluster_name, info.cluster.borrow().as_deref()) {
            (Some(name), Some(_)) if *raw => non_empty(name, out),
            (_, stat_name) => non_empty(stat_name.unwrap_or(""), out),
        },
        Operator::UpstreamLocalAddress(part) => match info.upstream_local.get() {
            Some(local) => address(&Address::Ip(local), *part, out),
            None => Given::Absent,
        },
        // A host that was chosen but not reached has no remote address yet.
        Operator::UpstreamRemoteAddress(part) => match (&*info.upstream_host.borrow(), info.upstream_local.get()) {
            (Some(host), Some(_)) => address(&host.address, *part, out),
            _ => Given::Absent,
        },
        Operator::UpstreamTransportFailureReason => {
            without_blanks(info.upstream_failure.borrow().as_deref().unwrap_or(""), out)
        }
        Operator::UpstreamRequestAttemptCount => number(u64::from(info.attempts.get()), out),
        Operator::UpstreamProtocol => text(info.upstream_version.get().map(|version| version.as_str().as_bytes()), out),
        _ => Given::Absent,
    }
}

/// The operators about a terminated TLS connection.
fn downstream_tls(operator: &Operator, tls: &TlsInfo, out: &mut Vec<u8>) -> Given {
    let peer = |field: fn(&PeerCertificate) -> &str| tls.peer.as_deref().map_or("", field);
    match operator {
        Operator::DownstreamTlsVersion => non_empty(tls.version, out),
        Operator::DownstreamTlsCipher => non_empty(tls.cipher, out),
        Operator::DownstreamPeerUriSan => list(tls.peer.as_deref().map_or(&[], |peer| &peer.uri_sans), out),
        Operator::DownstreamPeerDnsSan => list(tls.peer.as_deref().map_or(&[], |peer| &peer.dns_sans), out),
        Operator::DownstreamLocalUriSan => list(&tls.local_uri_sans, out),
        Operator::DownstreamPeerSubject => non_empty(peer(|peer| &peer.subject), out),
        Operator::DownstreamPeerIssuer => non_empty(peer(|peer| &peer.issuer), out),
        Operator::DownstreamPeerFingerprint256 => non_empty(peer(|peer| &peer.sha256), out),
        // TLS 1.3 has no session ids, and rustls does not tell those of TLS 1.2.
        _ => Given::Absent,
    }
}

fn response_header(response: Option<&ResponseHead>, name: &str, alternative: Option<&str>, out: &mut Vec<u8>) -> Given {
    let Some(response) = response else { return Given::Absent };
    for name in [Some(name), alternative].into_iter().flatten() {
        if name == ":status" {
            push(u64::from(response.status), out);
            return Given::Text;
        }
        if let Some(value) = response.headers.get_by_name(name) {
            return text(Some(value), out);
        }
    }
    Given::Absent
}

fn trailer(trailers: Option<&Headers>, name: &str, alternative: Option<&str>, out: &mut Vec<u8>) -> Given {
    let value = trailers.and_then(|trailers| trailers.get_by_name(name).or_else(|| trailers.get_by_name(alternative?)));
    text(value, out)
}

/// Only requests that say they are gRPC have a gRPC status.
fn grpc_status(form: GrpcStatusForm, facts: &Facts<'_>, out: &mut Vec<u8>) -> Given {
    let is_grpc = facts.request.is_some_and(|request| request.is_grpc());
    let Some(status) = grpc_status::of(facts).filter(|_| is_grpc) else { return Given::Absent };
    let name = match (form, grpc_status::names(status)) {
        (GrpcStatusForm::Camel, Some((camel, _))) => Some(camel),
        (GrpcStatusForm::Snake, Some((_, snake))) => Some(snake),
        (GrpcStatusForm::Number, _) | (_, None) => None,
    };
    if let Some(name) = name {
        return text(Some(name.as_bytes()), out);
    }
    if status < 0 {
        out.push(b'-');
    }
    push(status.unsigned_abs(), out);
    if form == GrpcStatusForm::Number { Given::Number } else { Given::Text }
}

fn text(value: Option<&[u8]>, out: &mut Vec<u8>) -> Given {
    let Some(value) = value else { return Given::Absent };
    out.extend_from_slice(value);
    Given::Text
}

fn hexadecimal(value: u128, digits: usize, out: &mut Vec<u8>) -> Given {
    // Writing to a vector cannot fail.
    let _ = write!(out, "{value:0digits$x}");
    Given::Text
}

fn non_empty(value: &str, out: &mut Vec<u8>) -> Given {
    text(Some(value.as_bytes()).filter(|value| !value.is_empty()), out)
}

/// Reasons must stay one word in a log line.
fn without_blanks(value: &str, out: &mut Vec<u8>) -> Given {
    let start = out.len();
    let given = non_empty(value, out);
    for byte in &mut out[start..] {
        // As C's isspace: Rust leaves out the vertical tab.
        if byte.is_ascii_whitespace() || *byte == 0x0b {
            *byte = b'_';
        }
    }
    given
}

fn number(value: u64, out: &mut Vec<u8>) -> Given {
    push(value, out);
    Given::Number
}

fn milliseconds(duration: Option<Duration>, out: &mut Vec<u8>) -> Given {
    let Some(duration) = duration else { return Given::Absent };
    number(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), out)
}

fn list(values: &[String], out: &mut Vec<u8>) -> Given {
    let [first, others @ ..] = values else { return Given::Absent };
    out.extend_from_slice(first.as_bytes());
    for value in others {
        out.push(b',');
        out.extend_from_slice(value.as_bytes());
    }
    Given::Text
}

/// `-` when there are none, in JSON too. Envoy prints flags in the order in which they were set: of a request it finds that
/// retries are used up before it says what failed, of a connection afterwards.
fn flags(facts: &Facts<'_>, name: fn(ResponseFlag) -> &'static str, out: &mut Vec<u8>) -> Given {
    let flags = facts.info.flags.get();
    if flags.is_empty() {
        out.push(b'-');
    }
    let first = Some(ResponseFlag::UpstreamRetryLimitExceeded)
        .filter(|flag| facts.info.version.is_some() && flags.contains(*flag));
    let others = flags.iter().filter(|flag| Some(*flag) != first);
    for (index, flag) in first.into_iter().chain(others).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(name(flag).as_bytes());
    }
    Given::Text
}

fn address(address: &Address, part: AddressPart, out: &mut Vec<u8>) -> Given {
    // Writing to a vector cannot fail.
    let _ = match (address, part) {
        (Address::Ip(socket), AddressPart::Full) => write!(out, "{socket}"),
        (Address::Ip(socket), AddressPart::WithoutPort) => write!(out, "{}", socket.ip()),
        (Address::Ip(socket), AddressPart::Port) => return number(u64::from(socket.port()), out),
        (Address::Pipe { path, .. }, AddressPart::Full | AddressPart::WithoutPort) => {
            write!(out, "{}", path.display())
        }
        (Address::Pipe { .. }, AddressPart::Port) => return Given::Absent,
    };
    Given::Text
}
