//! What expressions see of a stream: Envoy's attributes.
//!
//! Owns their names, and how values of expressions are written into logs. Never evaluates (see `outrigger_policy::cel`).
//! Source: Envoy's documentation, "Attributes".

use std::borrow::Cow;
use std::time::{Duration, Instant, UNIX_EPOCH};

use outrigger_config::address::Address;
use outrigger_config::cel::Expression;
use outrigger_config::format::MetadataOf;
use outrigger_policy::cel::{Attributes, Object, Value, evaluate};

use super::facts::Facts;
use super::format::{Given, json, text};
use super::upstream::local_address;
use super::{grpc_status, metadata, request_parts};
use crate::calendar::Moment;
use crate::http::headers::Headers;
use crate::moments::Milestone;
use crate::stream::TlsInfo;

/// Whether an expression is true of a stream; one without a value is not.
pub fn holds(expression: &Expression, facts: &Facts<'_>) -> bool {
    outrigger_policy::cel::holds(expression, facts)
}

/// Writes the value of an expression; with its type if `typed`.
pub(super) fn write(expression: &Expression, typed: bool, facts: &Facts<'_>, out: &mut Vec<u8>) -> Given {
    match evaluate(expression, facts) {
        Ok(value) if typed => write_typed(&value, out),
        Ok(value) => write_text(&value, out),
        Err(_) => Given::Absent,
    }
}

/// Writes a value as text.
pub(crate) fn write_text(value: &Value<'_>, out: &mut Vec<u8>) -> Given {
    match value {
        Value::String(value) => text(Some(value.as_bytes()), out),
        Value::Bytes(value) => text(Some(value), out),
        Value::Null => text(Some(b"NULL"), out),
        Value::Bool(flag) => text(Some(if *flag { b"true" } else { b"false" }), out),
        Value::Int(number) => text(Some(number.to_string().as_bytes()), out),
        Value::Uint(number) => text(Some(number.to_string().as_bytes()), out),
        Value::Double(number) => text(Some(number.to_string().as_bytes()), out),
        Value::Duration(length) => text(Some(spoken_duration(*length).as_bytes()), out),
        Value::Timestamp(at) => text(Some(timestamp_text(*at).as_bytes()), out),
        Value::Type(name) => text(Some(name.as_bytes()), out),
        // Envoy's words for what has no text.
        Value::List(_) => text(Some(b"CelList value"), out),
        Value::Map(_) => text(Some(b"CelMap value"), out),
        Value::Object(_) => Given::Absent,
    }
}

fn write_typed(value: &Value<'_>, out: &mut Vec<u8>) -> Given {
    match as_json(value) {
        Some(serde_json::Value::Null) => Given::Absent,
        Some(serde_json::Value::String(value)) => text(Some(value.as_bytes()), out),
        Some(value @ serde_json::Value::Number(_)) => {
            json(&value, out);
            Given::Number
        }
        Some(value) => json(&value, out),
        None => Given::Absent,
    }
}

/// `None` for what JSON has no form of.
fn as_json(value: &Value<'_>) -> Option<serde_json::Value> {
    use base64::Engine as _;
    Some(match value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(flag) => (*flag).into(),
        Value::Int(number) => (*number).into(),
        Value::Uint(number) => (*number).into(),
        Value::Double(number) => outrigger_config::metadata::number(*number)?,
        Value::String(value) => (**value).into(),
        Value::Bytes(value) => base64::engine::general_purpose::STANDARD.encode(value).into(),
        Value::Duration(length) => duration_text(*length).into(),
        Value::Timestamp(at) => timestamp_text(*at).into(),
        Value::List(items) => serde_json::Value::Array(items.iter().map(as_json).collect::<Option<_>>()?),
        Value::Map(entries) => {
            let pairs = entries.iter().map(|(key, value)| match key {
                Value::String(key) => Some((key.to_string(), as_json(value)?)),
                Value::Int(key) => Some((key.to_string(), as_json(value)?)),
                Value::Uint(key) => Some((key.to_string(), as_json(value)?)),
                Value::Bool(key) => Some((key.to_string(), as_json(value)?)),
                _ => None,
            });
            serde_json::Value::Object(pairs.collect::<Option<_>>()?)
        }
        Value::Object(_) | Value::Type(_) => return None,
    })
}

/// Hours, minutes and seconds, or one smaller unit where it is less than a second.
fn spoken_duration(nanoseconds: i128) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let length = nanoseconds.unsigned_abs();
    let decimal = |unit: u128, name: &str| {
        let (whole, fraction) = (length / unit, length % unit);
        if fraction == 0 {
            return format!("{sign}{whole}{name}");
        }
        let width = unit.ilog10() as usize;
        let fraction = format!("{fraction:0width$}");
        format!("{sign}{whole}.{}{name}", fraction.trim_end_matches('0'))
    };
    match length {
        0 => "0".to_owned(),
        1..1_000 => decimal(1, "ns"),
        1_000..1_000_000 => decimal(1_000, "us"),
        1_000_000..1_000_000_000 => decimal(1_000_000, "ms"),
        _ => {
            let seconds = length / 1_000_000_000;
            let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
            let rest = length % 60_000_000_000;
            let mut text = sign.to_owned();
            if hours > 0 {
                text.push_str(&format!("{hours}h"));
            }
            if minutes > 0 {
                text.push_str(&format!("{minutes}m"));
            }
            if rest > 0 {
                let fraction = format!("{:09}", rest % 1_000_000_000);
                let fraction = fraction.trim_end_matches('0');
                let point = if fraction.is_empty() { "" } else { "." };
                text.push_str(&format!("{}{point}{fraction}s", rest / 1_000_000_000));
            }
            text
        }
    }
}

/// Seconds with no, three, six or nine digits after the point, as protobuf writes them.
fn duration_text(nanoseconds: i128) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let length = nanoseconds.unsigned_abs();
    let (seconds, fraction) = (length / 1_000_000_000, length % 1_000_000_000);
    if fraction == 0 {
        return format!("{sign}{seconds}s");
    }
    let digits = format!("{fraction:09}");
    let count = match fraction {
        _ if fraction % 1_000_000 == 0 => 3,
        _ if fraction % 1_000 == 0 => 6,
        _ => 9,
    };
    format!("{sign}{seconds}.{}s", &digits[..count])
}

/// RFC 3339 in UTC. Moments before 1970 show as 1970, as everywhere here.
fn timestamp_text(nanoseconds: i128) -> String {
    let since = u64::try_from(nanoseconds).unwrap_or(0);
    let Moment { year, month, day, hour, minute, second, .. } = Moment::of(UNIX_EPOCH + Duration::from_nanos(since));
    let fraction = since % 1_000_000_000;
    let fraction = match fraction {
        0 => String::new(),
        fraction => format!(".{}", format!("{fraction:09}").trim_end_matches('0')),
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}+00:00")
}

impl Attributes for Facts<'_> {
    fn root(&self, name: &str) -> Option<Value<'_>> {
        let object = match name {
            "request" => Object::Request,
            "response" => Object::Response,
            "connection" => Object::Connection,
            "source" => Object::Source,
            "destination" => Object::Destination,
            "upstream" => Object::Upstream,
            "metadata" => Object::Metadata,
            "filter_state" => Object::FilterState,
            "upstream_filter_state" => Object::UpstreamFilterState,
            "xds" => Object::Xds,
            _ => return None,
        };
        let there = match object {
            Object::Request => self.request.is_some(),
            _ => true,
        };
        there.then_some(Value::Object(object))
    }

    fn field(&self, object: Object, name: &str) -> Option<Value<'_>> {
        match object {
            Object::Request => request(self, name),
            Object::RequestHeaders => match name {
                // Pseudo headers are headers, and the host is one of them.
                ":path" | ":method" | ":authority" | ":scheme" | ":protocol" => self.request_header(name).map(bytes),
                _ => self.request?.lookup(name).map(owned),
            },
            Object::Response => response(self, name),
            Object::ResponseHeaders => match (self.response?, name) {
                (response, ":status") => Some(Value::text(response.status.to_string())),
                (response, name) => crate::http::message::joined(&response.headers, name).map(owned),
            },
            Object::ResponseTrailers => crate::http::message::joined(self.trailers?, name).map(owned),
            Object::Connection => connection(self, name),
            Object::Source => address(self.remote(), name),
            Object::Destination => address(&self.connection.local, name),
            Object::Upstream => upstream(self, name),
            Object::Metadata => (name == "filter_metadata").then_some(Value::Object(Object::FilterMetadata)),
            Object::FilterMetadata => {
                let metadata = self.info.dynamic_metadata.borrow();
                let namespace = metadata.get(name)?;
                Some(Value::of_json(&serde_json::Value::Object(namespace.clone())))
            }
            Object::FilterState => {
                if let Some(fields) = self.info.filter_state.borrow().fields(name) {
                    return Some(Value::of_json(&serde_json::Value::Object(fields.clone())));
                }
                let own = self.info.filter_state.borrow().get(name).cloned();
                let value = own.or_else(|| self.connection.filter_state.borrow().get(name).cloned())?;
                Some(Value::Bytes(value.into_bytes().into()))
            }
            // No filters of upstreams leave any.
            Object::UpstreamFilterState => None,
            Object::Xds => xds(self, name),
        }
    }

    fn size(&self, object: Object) -> usize {
        let count = |headers: &Headers| headers.iter().count();
        match object {
            Object::RequestHeaders => self.request.map_or(0, |request| count(&request.headers)),
            Object::ResponseHeaders => self.response.map_or(0, |response| count(&response.headers)),
            Object::ResponseTrailers => self.trailers.map_or(0, count),
            Object::FilterMetadata => self.info.dynamic_metadata.borrow().len(),
            Object::FilterState => self.info.filter_state.borrow().len(),
            _ => 0,
        }
    }
}

fn bytes(value: &[u8]) -> Value<'_> {
    Value::String(String::from_utf8_lossy(value))
}

fn owned(value: Cow<'_, [u8]>) -> Value<'static> {
    Value::text(String::from_utf8_lossy(&value).into_owned())
}

fn int(value: u64) -> Value<'static> {
    Value::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

fn length(duration: Duration) -> Value<'static> {
    Value::Duration(i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX))
}

fn request<'a>(facts: &'a Facts<'_>, name: &str) -> Option<Value<'a>> {
    let info = facts.info;
    let header = |name: &str| facts.request_header(name).map(bytes);
    match name {
        "path" => header(":path"),
        "url_path" => facts.request_header(":path").map(request_parts::without_query).map(bytes),
        "query" => Some(bytes(facts.request_header(":path").and_then(request_parts::query).unwrap_or_default())),
        "host" => header(":authority"),
        "scheme" => header(":scheme"),
        "method" => header(":method"),
        "referer" => header("referer"),
        "useragent" => header("user-agent"),
        "id" => header("x-request-id"),
        "headers" => Some(Value::Object(Object::RequestHeaders)),
        "time" => {
            let since = facts.clock.at(info.start).duration_since(UNIX_EPOCH).unwrap_or_default();
            Some(Value::Timestamp(i128::try_from(since.as_nanos()).ok()?))
        }
        "protocol" => info.version.map(|version| Value::text(version.as_str())),
        // There once the request is over.
        "duration" => info.end.get().map(|end| length(facts.since_start(end))),
        "size" => match facts.request_header("content-length").and_then(|length| std::str::from_utf8(length).ok()) {
            Some(length) => length.parse().ok().map(Value::Int),
            None => Some(int(info.bytes_received.get())),
        },
        "total_size" => Some(int(info.bytes_received.get() + info.request_header_bytes.get())),
        _ => None,
    }
}

fn response<'a>(facts: &'a Facts<'_>, name: &str) -> Option<Value<'a>> {
    let info = facts.info;
    match name {
        "code" => Some(info.response_code.get()).filter(|code| *code != 0).map(|code| Value::Int(code.into())),
        "code_details" => {
            let details = info.details.borrow();
            (!details.is_empty()).then(|| Value::text(details.clone().into_owned()))
        }
        "flags" => Some(int(info.flags.get().iter().fold(0, |bits, flag| bits | flag.bit()))),
        "grpc_status" => grpc_status::of(facts).map(Value::Int),
        "headers" => Some(Value::Object(Object::ResponseHeaders)),
        "trailers" => Some(Value::Object(Object::ResponseTrailers)),
        "size" => Some(int(info.bytes_sent.get())),
        "total_size" => Some(int(info.bytes_sent.get() + info.response_header_bytes.get())),
        "backend_latency" => {
            let sent = info.moments.offset(Milestone::UpstreamTxEnd)?;
            let received = info.moments.offset(Milestone::UpstreamRxEnd)?;
            Some(Value::Duration(i128::from(received) - i128::from(sent)))
        }
        _ => None,
    }
}

fn connection<'a>(facts: &'a Facts<'_>, name: &str) -> Option<Value<'a>> {
    let connection = facts.connection;
    match name {
        "id" => return Some(Value::Uint(connection.id)),
        "mtls" => {
            let peer = connection.tls.as_ref().is_some_and(|tls| tls.peer.is_some());
            return Some(Value::Bool(peer));
        }
        "requested_server_name" => {
            return Some(Value::text(connection.server_name.as_deref().unwrap_or_default()));
        }
        "termination_details" => {
            let details = facts.info.termination.borrow();
            return details.as_deref().map(|details| Value::text(details.to_owned()));
        }
        "transport_failure_reason" => {
            return Some(facts.downstream_failure).filter(|reason| !reason.is_empty()).map(Value::text);
        }
        _ => {}
    }
    tls(connection.tls.as_ref()?, name)
}

fn tls(tls: &TlsInfo, name: &str) -> Option<Value<'static>> {
    let peer = tls.peer.as_deref();
    let some = |text: &str| (!text.is_empty()).then(|| Value::text(text.to_owned()));
    match name {
        "tls_version" => some(tls.version),
        "subject_peer_certificate" => some(&peer?.subject),
        "dns_san_peer_certificate" => some(peer?.dns_sans.first()?),
        "uri_san_peer_certificate" => some(peer?.uri_sans.first()?),
        "sha256_peer_certificate_digest" => some(&peer?.sha256),
        "uri_san_local_certificate" => some(tls.local_uri_sans.first()?),
        "subject_local_certificate" => some(&crate::tls::certificate_report(tls.local_chain()?)?.subject),
        "dns_san_local_certificate" => {
            let names = crate::tls::certificate_report(tls.local_chain()?)?.facts.subject_alt_names;
            names.into_iter().find_map(|name| match name {
                crate::tls::SubjectAltName::Dns(dns) => Some(Value::text(dns)),
                _ => None,
            })
        }
        _ => None,
    }
}

fn address(address: &Address, name: &str) -> Option<Value<'static>> {
    match (name, address) {
        ("address", address) => Some(Value::text(address.to_string())),
        ("port", Address::Ip(socket)) => Some(Value::Int(socket.port().into())),
        _ => None,
    }
}

fn upstream<'a>(facts: &'a Facts<'_>, name: &str) -> Option<Value<'a>> {
    let info = facts.info;
    let host = info.upstream_host.borrow();
    match name {
        "address" | "port" => return address(&host.as_ref()?.address, name),
        "local_address" => return local_address(info).map(|local| Value::text(local.to_string())),
        "transport_failure_reason" => {
            let failure = info.upstream_failure.borrow();
            return failure.as_deref().map(|failure| Value::text(failure.to_owned()));
        }
        "request_attempt_count" => return Some(Value::Uint(info.attempts.get().into())),
        "cx_pool_ready_duration" => {
            let begin = info.moments.offset(Milestone::UpstreamBegin)?;
            let ready = info.moments.offset(Milestone::PoolReady)?;
            return Some(Value::Duration(i128::from(ready) - i128::from(begin)));
        }
        _ => {}
    }
    let upstream = info.upstream_tls.borrow();
    tls(upstream.as_deref()?, name)
}

fn xds<'a>(facts: &'a Facts<'_>, name: &str) -> Option<Value<'a>> {
    let info = facts.info;
    match name {
        "cluster_name" => info.cluster_config.borrow().as_ref().map(|cluster| Value::text(cluster.name.to_string())),
        "route_name" => info.route.borrow().as_ref().map(|route| Value::text(route.name.to_string())),
        "filter_chain_name" => Some(Value::text(&*facts.connection.filter_chain)),
        "cluster_metadata" | "route_metadata" | "upstream_host_metadata" => {
            let of = match name {
                "cluster_metadata" => MetadataOf::Cluster,
                "route_metadata" => MetadataOf::Route,
                _ => MetadataOf::UpstreamHost,
            };
            let namespaces = metadata::all(of, facts)?;
            let entries = namespaces
                .into_iter()
                .map(|(name, values)| (Value::text(name), Value::of_json(&serde_json::Value::Object(values))));
            Some(Value::Map(vec![(Value::text("filter_metadata"), Value::Map(entries.collect()))]))
        }
        _ => None,
    }
}

/// Used where nothing but a connection is known.
pub fn holds_of_connection(expression: &Expression, connection: &crate::stream::ConnectionInfo) -> bool {
    let info = crate::stream::StreamInfo::new(connection.start, None);
    let clock = crate::stream::WallClock::new();
    holds(expression, &Facts::new(&info, connection, &clock, Instant::now()))
}
