//! What spans say of a request and its tries.
//!
//! Owns names and values of tags, which are Envoy's. Never sends anything.

use std::borrow::Cow;
use std::time::{Instant, SystemTime};

use outrigger_config::address::Address;
use outrigger_config::cluster::{LbMetadata, LbValue};
use outrigger_config::format::Operator;
use outrigger_config::metadata::{MetadataMap, encoded_namespace};
use outrigger_config::tracing::{CustomTag, CustomTagValue, TagMetadata};
use serde_json::Value as Json;

use super::attempt::{Attempt, GrpcEnd, Outcome};
use super::request::{Mark, Marks, Recorded, evaluate};
use super::span::{Kind, Name, Tags, Value};
use crate::accesslog::format::{Given, write_operator};
use crate::http::headers::{HeaderId, Headers};
use crate::http::manager::request::Request;
use crate::stream::ResponseFlag;

/// The tags of a request's span, and whether it failed.
pub(super) fn of_request(request: &Request<'_>, recorded: &Recorded, kind: Kind) -> (Tags, bool) {
    let (head, info) = (&request.head, &request.info);
    let mut tags = Tags::default();
    tags.set("node_id", Value::Shared(recorded.tracer.node_id.clone()));
    tags.set("zone", Value::Shared(recorded.tracer.zone.clone()));
    if let Some(id) = head.headers.get(HeaderId::XRequestId) {
        tags.set("guid:x-request-id", Value::of_bytes(id));
    }
    tags.set("http.url", Value::Text(url(request).into()));
    tags.set("http.method", Value::of_bytes(head.method()));
    for (name, id) in
        [("downstream_cluster", HeaderId::XEnvoyDownstreamServiceCluster), ("user_agent", HeaderId::UserAgent)]
    {
        tags.set(name, head.headers.get(id).map_or(Value::Known("-"), Value::of_bytes));
    }
    tags.set("http.protocol", Value::Known(info.version.map_or("-", |version| version.as_str())));
    let peer = match &request.connection.info.direct_remote {
        Address::Ip(peer) => peer.ip().to_string(),
        other @ (Address::Pipe { .. } | Address::Internal(_)) => other.to_string(),
    };
    tags.set("peer.address", Value::Text(peer.into()));
    if let Some(id) = head.headers.get_by_name("x-client-trace-id") {
        tags.set("guid:x-client-trace-id", Value::of_bytes(id));
    }
    if head.is_grpc() {
        tags.set("grpc.path", Value::of_bytes(head.path()));
        tags.set("grpc.authority", Value::of_bytes(head.authority()));
        for (name, id) in [("grpc.content_type", HeaderId::ContentType), ("grpc.timeout", HeaderId::GrpcTimeout)] {
            if let Some(value) = head.headers.get(id) {
                tags.set(name, Value::of_bytes(value));
            }
        }
    }
    tags.set("request_size", Value::Number(info.bytes_received.get()));
    tags.set("response_size", Value::Number(info.bytes_sent.get()));
    let code = info.response_code.get();
    common(&mut tags, recorded, code, flags(request));
    let mut grpc = grpc_of(&mut tags, &request.response.headers);
    if let Some(trailers) = &request.trailers {
        grpc = grpc_of(&mut tags, trailers).or(grpc);
    }
    custom(&mut tags, request, recorded);
    (tags, failed(kind, code, grpc))
}

/// The tags of a try's span, and whether it failed.
pub(super) fn of_attempt(request: &Request<'_>, recorded: &Recorded, attempt: &Attempt) -> (Tags, bool) {
    let mut tags = Tags::default();
    if attempt.number > 1 {
        tags.set("retry.count", Value::Number(u64::from(attempt.number - 1)));
    }
    let flag = match attempt.outcome {
        Outcome::Open => None,
        Outcome::Canceled(flag) => {
            tags.set("canceled", Value::Known("true"));
            flag
        }
        Outcome::Reset(reason, flag) => {
            tags.set("error", Value::Known("true"));
            tags.set("error.reason", Value::Known(reason));
            Some(flag)
        }
    };
    let flag = flag.or(attempt.is_late.then_some(ResponseFlag::UpstreamRequestTimeout));
    let mut grpc = None;
    if let Some(GrpcEnd { status, message }) = &attempt.grpc {
        grpc = grpc_tags(&mut tags, status, message.as_deref());
    }
    if attempt.outcome == Outcome::Open
        && attempt.status != 0
        && let Some(trailers) = &request.trailers
    {
        grpc = grpc_of(&mut tags, trailers).or(grpc);
    }
    tags.set("http.protocol", Value::Known(attempt.version.map_or("-", |version| version.as_str())));
    if let Some(host) = &attempt.host {
        let address: Box<str> = host.address.to_string().into();
        tags.set("upstream_address", Value::Text(address.clone()));
        tags.set("peer.address", Value::Text(address));
    }
    common(&mut tags, recorded, attempt.status, Value::Known(flag.map_or("-", |flag| flag.short())));
    custom(&mut tags, request, recorded);
    (tags, failed(Kind::Client, attempt.status, grpc))
}

fn common(tags: &mut Tags, recorded: &Recorded, code: u16, flags: Value) {
    tags.set("component", Value::Known("proxy"));
    if let Some(cluster) = &recorded.cluster {
        tags.set("upstream_cluster", Value::Shared(cluster.config.name.clone()));
        tags.set("upstream_cluster.name", Value::Shared(cluster.config.stat_name.clone()));
    }
    tags.set("http.status_code", Value::Number(u64::from(code)));
    tags.set("response_flags", flags);
    if code == 0 || code >= 500 {
        tags.set("error", Value::Known("true"));
    }
}

/// What the access log would print.
fn flags(request: &Request<'_>) -> Value {
    let mut text = Vec::new();
    match write_operator(&Operator::ResponseFlags, None, &request.facts(), &mut text) {
        Given::Absent => Value::Known("-"),
        Given::Text | Given::Number | Given::Json => Value::of_bytes(&text),
    }
}

/// Scheme and host with the path as it came, cut to what the configuration allows.
fn url(request: &Request<'_>) -> String {
    let head = &request.head;
    let scheme = head.headers.get_str(HeaderId::XForwardedProto).unwrap_or("");
    let path = head.headers.get(HeaderId::XEnvoyOriginalPath).unwrap_or(head.path());
    let limit = request.connection.node.config.tracing.as_ref().map_or(0, |tracing| tracing.max_path_tag_length);
    let path = String::from_utf8_lossy(&path[..path.len().min(limit)]);
    format!("{scheme}://{}{path}", head.authority_str())
}

fn grpc_of(tags: &mut Tags, headers: &Headers) -> Option<u32> {
    let status = headers.get(HeaderId::GrpcStatus)?;
    grpc_tags(tags, status, headers.get(HeaderId::GrpcMessage))
}

fn grpc_tags(tags: &mut Tags, status: &[u8], message: Option<&[u8]>) -> Option<u32> {
    tags.set("grpc.status_code", Value::of_bytes(status));
    if let Some(message) = message {
        tags.set("grpc.message", Value::of_bytes(message));
    }
    let status = std::str::from_utf8(status).ok()?.parse().ok();
    // Those that are no fault of the caller.
    if matches!(status, Some(2 | 4 | 8 | 12 | 13 | 14 | 15)) {
        tags.set("error", Value::Known("true"));
    }
    status
}

/// Source: OpenTelemetry's semantic conventions for HTTP and gRPC spans, "Status".
fn failed(kind: Kind, code: u16, grpc: Option<u32>) -> bool {
    let by_code = code >= 500 || kind == Kind::Client && code >= 400;
    let by_grpc = match (grpc, kind) {
        (None | Some(0), _) => false,
        (Some(_), Kind::Client) => true,
        (Some(status), _) => matches!(status, 2 | 4 | 12..=15),
    };
    by_code || by_grpc
}

/// Tags of the configuration; the route's win.
fn custom(tags: &mut Tags, request: &Request<'_>, recorded: &Recorded) {
    let config = &request.connection.node.config;
    let general = config.tracing.as_ref().map_or(&[][..], |tracing| &tracing.custom_tags);
    let route = recorded.route.as_ref().and_then(|route| route.trace.as_deref()?.tracing.as_ref());
    let own = route.map_or(&[][..], |tracing| &tracing.custom_tags);
    for CustomTag { name, value } in general.iter().chain(own) {
        let value = custom_value(value, request, recorded);
        if let Some(value) = value {
            tags.set_named(Name::Own(name.clone()), value);
        }
    }
}

/// `None` if it is empty.
fn custom_value(value: &CustomTagValue, request: &Request<'_>, recorded: &Recorded) -> Option<Value> {
    let text = |text: Cow<'_, str>| (!text.is_empty()).then(|| Value::Text(text.into()));
    match value {
        CustomTagValue::Literal(literal) => (!literal.is_empty()).then(|| Value::Shared(literal.clone())),
        CustomTagValue::RequestHeader { name, default } => match request.head.lookup(name) {
            Some(value) => text(String::from_utf8_lossy(&value)),
            None => text(default.as_ref().into()),
        },
        CustomTagValue::Format(format) => text(evaluate(format, request).as_ref().into()),
        CustomTagValue::Metadata { of, namespace, path, default } => {
            let found = match of {
                TagMetadata::Request => {
                    request.info.dynamic_metadata.borrow().get(&**namespace).and_then(|values| of_json(values, path))
                }
                TagMetadata::Route => {
                    let metadata = recorded.route.as_ref().and_then(|route| route.metadata.as_ref());
                    metadata.and_then(|metadata| of_json(metadata.get(&**namespace)?, path))
                }
                TagMetadata::Cluster => {
                    let cluster = recorded.cluster.as_ref();
                    let encoded = cluster.and_then(|cluster| cluster.config.metadata.as_deref());
                    encoded.and_then(|encoded| of_json(&encoded_namespace(encoded, namespace)?, path))
                }
                TagMetadata::Host => {
                    let host = request.info.upstream_host.borrow();
                    host.as_ref().and_then(|host| of_lb(host.metadata.as_ref()?, path))
                }
            };
            text(found.map_or_else(|| default.as_ref().into(), Cow::Owned))
        }
    }
}

/// The value at the end of a path as text: JSON, unless it is text itself.
fn of_json(values: &MetadataMap, path: &[impl AsRef<str>]) -> Option<String> {
    let Some((first, rest)) = path.split_first() else { return serde_json::to_string(values).ok() };
    let mut value = values.get(first.as_ref())?;
    for key in rest {
        value = value.get(key.as_ref())?;
    }
    match value {
        Json::Null => None,
        Json::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

fn of_lb(values: &LbMetadata, path: &[impl AsRef<str>]) -> Option<String> {
    let Some((first, rest)) = path.split_first() else { return Some(lb_object(values).to_string()) };
    let mut value = values.get(first.as_ref())?;
    for key in rest {
        let LbValue::Struct(inner) = value else { return None };
        value = inner.get(key.as_ref())?;
    }
    match lb_json(value) {
        Json::Null => None,
        Json::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

fn lb_object(values: &LbMetadata) -> Json {
    Json::Object(values.iter().map(|(key, value)| (key.to_string(), lb_json(value))).collect())
}

fn lb_json(value: &LbValue) -> Json {
    match value {
        LbValue::Null => Json::Null,
        LbValue::Bool(flag) => Json::Bool(*flag),
        LbValue::Number(bits) => outrigger_config::metadata::number(f64::from_bits(*bits)).unwrap_or(Json::Null),
        LbValue::String(text) => Json::String(text.to_string()),
        LbValue::List(values) => Json::Array(values.iter().map(lb_json).collect()),
        LbValue::Struct(values) => lb_object(values),
    }
}

/// What happened when, as far as it did; `all` adds the downstream's side.
pub(super) fn events(request: &Request<'_>, marks: &Marks, all: bool) -> Vec<(SystemTime, &'static str)> {
    let info = &request.info;
    let known: [(Option<Instant>, &str, bool); 7] = [
        (info.request_end.get(), "last_downstream_rx_byte_received", all),
        (marks.get(Mark::FirstUpstreamTx), "first_upstream_tx_byte_sent", true),
        (marks.get(Mark::LastUpstreamTx), "last_upstream_tx_byte_sent", true),
        (info.response_start.get(), "first_upstream_rx_byte_received", true),
        (marks.get(Mark::LastUpstreamRx), "last_upstream_rx_byte_received", true),
        (marks.get(Mark::FirstDownstreamTx), "first_downstream_tx_byte_sent", all),
        (marks.get(Mark::LastDownstreamTx), "last_downstream_tx_byte_sent", all),
    ];
    let clock = &request.connection.worker.process.clock;
    let wanted = known.into_iter().filter(|(_, _, wanted)| *wanted);
    wanted.filter_map(|(at, name, _)| Some((clock.at(at?), name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_statuses_that_fail_a_span_are_envoys() {
        // What Envoy 1.40 said of a client's and of a server's span by status, and of which it set the tag `error`.
        for status in 0..=17u32 {
            let mut tags = Tags::default();
            let seen = grpc_tags(&mut tags, status.to_string().as_bytes(), None);
            assert_eq!(seen, Some(status));
            let tagged = tags.iter().any(|(name, _)| name == "error");
            assert_eq!(tagged, [2, 4, 8, 12, 13, 14, 15].contains(&status), "{status}");
            assert_eq!(failed(Kind::Client, 200, seen), status != 0, "{status}");
            assert_eq!(failed(Kind::Server, 200, seen), [2, 4, 12, 13, 14, 15].contains(&status), "{status}");
        }
        assert!(failed(Kind::Client, 404, None) && !failed(Kind::Server, 404, None));
        assert!(failed(Kind::Server, 503, None) && !failed(Kind::Client, 0, None));
    }

    #[test]
    fn metadata_becomes_text() {
        let values = serde_json::json!({"k": [1, {"a": true}], "s": {"t": "text", "n": 2}, "nothing": null});
        let Json::Object(values) = values else { unreachable!() };
        for (path, expected) in [
            (&["k"][..], Some(r#"[1,{"a":true}]"#)),
            (&["s", "t"], Some("text")),
            (&["s", "n"], Some("2")),
            (&["nothing"], None),
            (&["s", "t", "deeper"], None),
        ] {
            assert_eq!(of_json(&values, path).as_deref(), expected);
        }
        let inner = LbMetadata::new([("version".into(), LbValue::String("2".into()))]);
        let values = LbMetadata::new([("inner".into(), LbValue::Struct(inner))]);
        assert_eq!(of_lb(&values, &["inner", "version"]).as_deref(), Some("2"));
        assert_eq!(of_lb(&values, &["inner"]).as_deref(), Some(r#"{"version":"2"}"#));
        assert_eq!(of_lb(&values, &["version"]), None);
    }
}
