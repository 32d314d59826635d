//! Evaluates compiled formats (`outrigger_config::format::Format`).
//!
//! Owns what each command operator prints. Writes straight into the caller's buffer: a literal costs one copy, and nothing
//! allocates. Never decides where the text goes.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use outrigger_config::address::Address;
use outrigger_config::format::{
    AddressPart, Bytes, DateOf, FilterStateForm, Format, FormatPart, GrpcStatusForm, Operator,
};
use outrigger_policy::trace::{Format as SpanFormat, b3};

use super::facts::Facts;
use super::number::push;
use super::{attributes, certificates, durations, grpc_status, metadata, request_parts, time, upstream};
use crate::explain::{self, Timer};
use crate::http::headers::Headers;
use crate::http::message::ResponseHead;
use crate::stream::{ResponseFlag, TlsInfo};
use crate::tcp::tunnel;

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
                if write_as_text(operator, *max_bytes, facts, out) == Given::Absent {
                    out.extend_from_slice(absent);
                }
            }
        }
    }
}

/// Writes what one operator gives as a part of a text, where values have no types.
pub(super) fn write_as_text(
    operator: &Operator,
    max_bytes: Option<usize>,
    facts: &Facts<'_>,
    out: &mut Vec<u8>,
) -> Given {
    let Operator::Cel { expression, typed: true } = operator else {
        return write_operator(operator, max_bytes, facts, out);
    };
    let start = out.len();
    let given = attributes::write(expression, false, facts, out);
    out.truncate(start.saturating_add(max_bytes.unwrap_or(usize::MAX)));
    given
}

/// Name of this machine; empty if the system does not tell.
fn host_name() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        name.trim().to_owned()
    });
    &NAME
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
        Operator::RequestWithoutQuery { name, alternative } => {
            let value = facts.request_header(name).or_else(|| facts.request_header(alternative.as_deref()?));
            text(value.map(request_parts::without_query), out)
        }
        Operator::QueryParameter(_)
        | Operator::QueryParameters { .. }
        | Operator::Path { .. }
        | Operator::RequestedServerName { .. } => request_parts::write(operator, facts, out),
        Operator::Date { of, local, format } => {
            let at = match of {
                DateOf::Start => Some(facts.clock.at(info.start)),
                DateOf::Emit => Some(facts.clock.at(facts.now)),
                DateOf::NotBefore(whose) => certificates::validity(*whose, facts).map(|(from, _)| from),
                DateOf::NotAfter(whose) => certificates::validity(*whose, facts).map(|(_, to)| to),
            };
            let Some(at) = at else { return Given::Absent };
            time::write(format.as_deref(), at, *local, out);
            Given::Text
        }
        Operator::Protocol => text(info.version.map(|version| version.as_str().as_bytes()), out),
        Operator::ResponseCode => number(u64::from(info.response_code.get()), out),
        Operator::ResponseCodeDetails { blanks: true } => non_empty(&info.details.borrow(), out),
        Operator::ResponseCodeDetails { blanks: false } => without_blanks(&info.details.borrow(), out),
        Operator::ResponseFlags => flags(facts, ResponseFlag::short, out),
        Operator::ResponseFlagsLong => flags(facts, ResponseFlag::long, out),
        Operator::Bytes(of) => bytes(*of, facts, out),
        Operator::Duration => milliseconds(Some(info.duration(facts.now)), out),
        Operator::RequestDuration => milliseconds(info.request_end.get().map(|end| facts.since_start(end)), out),
        Operator::ResponseDuration => {
            milliseconds(info.response_start.get().map(|start| facts.since_start(start)), out)
        }
        Operator::ResponseTxDuration => {
            let end: Instant = info.end.get().unwrap_or(facts.now);
            milliseconds(info.response_start.get().map(|start| end.saturating_duration_since(start)), out)
        }
        Operator::RequestTxDuration
        | Operator::RoundtripDuration
        | Operator::DownstreamHandshakeDuration
        | Operator::UpstreamPoolReadyDuration
        | Operator::CommonDuration { .. } => durations::write(operator, facts, out),
        Operator::ConnectionId => number(facts.connection.id, out),
        Operator::ConnectionTerminationDetails => non_empty(info.termination.borrow().as_deref().unwrap_or(""), out),
        Operator::DownstreamTransportFailureReason => without_blanks(facts.downstream_failure, out),
        Operator::RouteName => non_empty(info.route_name.borrow().as_deref().unwrap_or(""), out),
        Operator::FilterChainName => non_empty(&facts.connection.filter_chain, out),
        Operator::DownstreamRemoteAddress(part) => address(facts.remote(), *part, out),
        Operator::DownstreamDirectRemoteAddress(part) => address(&facts.connection.direct_remote, *part, out),
        Operator::DownstreamLocalAddress(part) => address(&facts.connection.local, *part, out),
        Operator::DownstreamDirectLocalAddress(part) => address(facts.connection.direct_local(), *part, out),
        // A dash in JSON, too.
        Operator::Environment { value } => text(Some(value.as_deref().unwrap_or("-").as_bytes()), out),
        Operator::Hostname => non_empty(if facts.hostname.is_empty() { host_name() } else { facts.hostname }, out),
        Operator::LocalReplyBody => text(Some(facts.local_reply_body), out),
        Operator::GrpcStatus(form) => grpc_status(*form, facts, out),
        Operator::StreamId => text(facts.stream_id(), out),
        Operator::RequestHeadersBytes => number(info.request_header_bytes.get(), out),
        Operator::ResponseHeadersBytes => number(info.response_header_bytes.get(), out),
        Operator::AccessLogType => non_empty(facts.log_type.as_str(), out),
        Operator::UpstreamHost
        | Operator::UpstreamHostName { .. }
        | Operator::UpstreamHostsAttempted { .. }
        | Operator::UpstreamConnectionId
        | Operator::UpstreamConnectionIdsAttempted
        | Operator::UpstreamCluster { .. }
        | Operator::UpstreamLocalAddress(_)
        | Operator::UpstreamRemoteAddress(_)
        | Operator::UpstreamTransportFailureReason
        | Operator::UpstreamRequestAttemptCount
        | Operator::UpstreamProtocol
        | Operator::UpstreamTlsVersion
        | Operator::UpstreamTlsCipher
        | Operator::UpstreamTlsGroup
        | Operator::UpstreamTlsSessionId
        | Operator::UpstreamServerName => upstream::write(operator, facts, out),
        Operator::DownstreamTlsVersion
        | Operator::DownstreamTlsCipher
        | Operator::DownstreamTlsGroup
        | Operator::DownstreamTlsSessionId => match &facts.connection.tls {
            Some(tls) => downstream_tls(operator, tls, out),
            None => Given::Absent,
        },
        Operator::Certificate { whose, part } => certificates::write(*whose, *part, facts, out),
        Operator::TlsJa3 | Operator::TlsJa4 => {
            let made = facts.connection.tls_fingerprints.as_deref();
            let ja3 = matches!(operator, Operator::TlsJa3);
            let made = made.and_then(|made| if ja3 { made.ja3.as_deref() } else { made.ja4.as_deref() });
            text(made.map(str::as_bytes), out)
        }
        Operator::DynamicMetadata { path } => dynamic_metadata(path, facts, out),
        Operator::FilterState { key, form } => filter_state(key, form, facts, out),
        Operator::Metadata { of, path } => metadata::write(*of, path, facts, out),
        Operator::UniqueId => {
            out.extend_from_slice(&crate::worker::random::fresh_uuid());
            Given::Text
        }
        Operator::Coalesce(parts) => first_of(parts, facts, out),
        Operator::Cel { expression, typed } => attributes::write(expression, *typed, facts, out),
        Operator::Timer(name) => {
            let shown = Timer::named(name).and_then(|timer| explain::timer(timer, info, facts.now));
            match shown {
                Some(_) => milliseconds(shown, out),
                None => {
                    out.extend_from_slice(b"-1");
                    Given::Number
                }
            }
        }
        Operator::TerminationState => text(Some(&explain::termination_state(info)), out),
        Operator::RetryClass => text(Some(explain::retry_class(info).as_str().as_bytes()), out),
        Operator::Reason => text(explain::reason(info).as_deref().map(str::as_bytes), out),
        Operator::Empty => Given::Text,
        Operator::VirtualClusterName => non_empty(info.virtual_cluster.borrow().as_deref().unwrap_or(""), out),
        Operator::Nothing => Given::Absent,
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
    metadata::of_namespace(namespace, keys, out)
}

pub(super) fn json(value: &impl serde::Serialize, out: &mut Vec<u8>) -> Given {
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
    if let Some(fields) = own.fields(key) {
        return match form {
            FilterStateForm::Field(name) => field(fields.get(&**name), out),
            FilterStateForm::Plain | FilterStateForm::Typed => Given::Absent,
        };
    }
    let Some(object) = own.get(key).or_else(|| of_connection.get(key)) else { return Given::Absent };
    let is_message = key == tunnel::RESPONSE_HEADERS || key == tunnel::RESPONSE_TRAILERS;
    match form {
        // A message has no other text than its JSON.
        FilterStateForm::Plain if is_message => Given::Absent,
        FilterStateForm::Typed if is_message => {
            out.extend_from_slice(object.as_bytes());
            Given::Json
        }
        FilterStateForm::Plain => text(Some(object.as_bytes()), out),
        FilterStateForm::Typed => json(object, out),
        FilterStateForm::Field(_) => Given::Absent,
    }
}

/// A field of an object that has fields alone.
fn field(value: Option<&serde_json::Value>, out: &mut Vec<u8>) -> Given {
    match value {
        None | Some(serde_json::Value::Null) => Given::Absent,
        Some(serde_json::Value::String(value)) => text(Some(value.as_bytes()), out),
        Some(value @ serde_json::Value::Number(_)) => {
            json(value, out);
            Given::Number
        }
        Some(value) => json(value, out),
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

/// The first that is there and not empty.
fn first_of(parts: &[FormatPart], facts: &Facts<'_>, out: &mut Vec<u8>) -> Given {
    let start = out.len();
    for part in parts {
        let FormatPart::Operator { operator, max_bytes } = part else { continue };
        let given = write_operator(operator, *max_bytes, facts, out);
        if given != Given::Absent && out.len() > start {
            return given;
        }
        out.truncate(start);
    }
    Given::Absent
}

fn bytes(of: Bytes, facts: &Facts<'_>, out: &mut Vec<u8>) -> Given {
    let info = facts.info;
    let tcp = info.version.is_none();
    let count = match of {
        Bytes::Received => info.bytes_received.get(),
        Bytes::Sent => info.bytes_sent.get(),
        Bytes::UpstreamReceived => info.upstream_bytes_received.get(),
        Bytes::UpstreamSent => info.upstream_bytes_sent.get(),
        Bytes::DownstreamReceived if tcp => info.bytes_received.get(),
        Bytes::DownstreamSent if tcp => info.bytes_sent.get(),
        Bytes::DownstreamReceived => info.bytes_received.get() + info.request_header_bytes.get(),
        Bytes::DownstreamSent => info.bytes_sent.get() + info.response_header_bytes.get(),
        Bytes::UpstreamHeadSent => info.upstream_bytes_sent.get().saturating_sub(info.bytes_received.get()),
        Bytes::UpstreamHeadReceived => info.upstream_bytes_received.get().saturating_sub(info.bytes_sent.get()),
        Bytes::DownstreamHeadSent => info.response_header_bytes.get(),
        Bytes::DownstreamHeadReceived => info.request_header_bytes.get(),
        Bytes::ResponseTrailers => facts.trailers.map_or(0, |trailers| trailers.byte_size() as u64),
        Bytes::Retransmitted => 0,
    };
    number(count, out)
}

/// The operators about a terminated TLS connection.
fn downstream_tls(operator: &Operator, tls: &TlsInfo, out: &mut Vec<u8>) -> Given {
    match operator {
        Operator::DownstreamTlsVersion => non_empty(tls.version, out),
        Operator::DownstreamTlsCipher => non_empty(tls.cipher, out),
        Operator::DownstreamTlsGroup => non_empty(tls.group, out),
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

pub(super) fn text(value: Option<&[u8]>, out: &mut Vec<u8>) -> Given {
    let Some(value) = value else { return Given::Absent };
    out.extend_from_slice(value);
    Given::Text
}

fn hexadecimal(value: u128, digits: usize, out: &mut Vec<u8>) -> Given {
    // Writing to a vector cannot fail.
    let _ = write!(out, "{value:0digits$x}");
    Given::Text
}

pub(super) fn non_empty(value: &str, out: &mut Vec<u8>) -> Given {
    text(Some(value.as_bytes()).filter(|value| !value.is_empty()), out)
}

/// Reasons must stay one word in a log line.
pub(super) fn without_blanks(value: &str, out: &mut Vec<u8>) -> Given {
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

pub(super) fn number(value: u64, out: &mut Vec<u8>) -> Given {
    push(value, out);
    Given::Number
}

pub(super) fn milliseconds(duration: Option<Duration>, out: &mut Vec<u8>) -> Given {
    let Some(duration) = duration else { return Given::Absent };
    number(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), out)
}

pub(super) fn list(values: &[String], out: &mut Vec<u8>) -> Given {
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

pub(super) fn address(address: &Address, part: AddressPart, out: &mut Vec<u8>) -> Given {
    // Writing to a vector cannot fail.
    let _ = match (address, part) {
        (Address::Ip(socket), AddressPart::Full) => write!(out, "{socket}"),
        (Address::Ip(socket), AddressPart::WithoutPort) => write!(out, "{}", socket.ip()),
        (Address::Ip(socket), AddressPart::Masked(bits)) => write!(out, "{}", masked(socket.ip(), bits)),
        (Address::Ip(socket), AddressPart::Port) => return number(u64::from(socket.port()), out),
        (Address::Pipe { path, .. }, AddressPart::Full | AddressPart::WithoutPort | AddressPart::Masked(_)) => {
            write!(out, "{}", path.display())
        }
        (Address::Internal(internal), AddressPart::EndpointId) => write!(out, "{}", internal.endpoint),
        // Envoy writes nothing for these, rather than that there is nothing.
        (Address::Ip(_) | Address::Pipe { .. }, AddressPart::EndpointId)
        | (Address::Internal(_), AddressPart::Port) => Ok(()),
        (Address::Internal(_), AddressPart::Full | AddressPart::WithoutPort | AddressPart::Masked(_)) => {
            write!(out, "{address}")
        }
        (Address::Pipe { .. }, AddressPart::Port) => return Given::Absent,
    };
    Given::Text
}

/// The network of an address; more bits than an address has leave it whole.
fn masked(address: IpAddr, bits: u8) -> String {
    let (network, bits): (IpAddr, u8) = match address {
        IpAddr::V4(address) => {
            let bits = bits.min(32);
            let mask = u32::MAX.checked_shl(u32::from(32 - bits)).unwrap_or(0);
            (Ipv4Addr::from(u32::from(address) & mask).into(), bits)
        }
        IpAddr::V6(address) => {
            let bits = bits.min(128);
            let mask = u128::MAX.checked_shl(u32::from(128 - bits)).unwrap_or(0);
            (Ipv6Addr::from(u128::from(address) & mask).into(), bits)
        }
    };
    format!("{network}/{bits}")
}
