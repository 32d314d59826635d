//! Zipkin's API v2: spans as JSON or protobuf.
//!
//! Owns both forms. Never decides when to send.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_config::tracing::{Zipkin, ZipkinEncoding};
use outrigger_policy::trace::b3;
use prost::Message as _;
use serde_json::{Map, Value, json};

use super::span::{Kind, Span};
use crate::process::Process;

/// A batch as it is sent, with its content type.
pub fn body(batch: &[Span], config: &Zipkin, process: &Process) -> (&'static str, Vec<u8>) {
    let endpoint = Endpoint { service: &process.node_cluster, ip: own_address() };
    match config.encoding {
        ZipkinEncoding::Json => {
            let spans: Vec<Value> = batch.iter().map(|span| as_json(span, config, &endpoint)).collect();
            ("application/json", Value::Array(spans).to_string().into_bytes())
        }
        ZipkinEncoding::Proto => {
            let spans = batch.iter().map(|span| as_proto(span, config, &endpoint)).collect();
            ("application/x-protobuf", proto::ListOfSpans { spans }.encode_to_vec())
        }
    }
}

/// Who we are.
struct Endpoint<'a> {
    service: &'a str,
    ip: IpAddr,
}

/// The address that packets for the world would leave from. Nothing is sent to find out.
fn own_address() -> IpAddr {
    static ADDRESS: OnceLock<IpAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let find = || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            // Reserved for documentation (RFC 5737).
            socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
            socket.local_addr()
        };
        find().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
    })
}

fn micros(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

fn duration(span: &Span) -> u64 {
    micros(span.end).saturating_sub(micros(span.start)).max(1)
}

/// The server's span has the id of its client's, or would have it if there were one.
fn is_shared(span: &Span, config: &Zipkin) -> bool {
    span.kind == Kind::Server && config.shared_span_context
}

/// Events, the last of them the end of the span under its old name.
fn annotations(span: &Span) -> impl Iterator<Item = (u64, &'static str)> {
    let last = match span.kind {
        Kind::Server => Some("ss"),
        Kind::Client => Some("cr"),
        Kind::Internal => None,
    };
    let events = span.events.iter().map(|(at, name)| (micros(*at), *name));
    events.chain(last.map(|name| (micros(span.end), name)))
}

/// Tags that say something.
fn tags(span: &Span) -> impl Iterator<Item = (String, String)> {
    let all = span.tags.iter().map(|(name, value)| (name.to_owned(), value.to_string()));
    all.filter(|(_, value)| !value.is_empty())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn as_json(span: &Span, config: &Zipkin, endpoint: &Endpoint<'_>) -> Value {
    let identity = &span.identity;
    let mut json = Map::new();
    json.insert("traceId".into(), text(&b3::trace_id_text(identity.trace_id)).into());
    json.insert("id".into(), text(&b3::id_text(identity.span_id)).into());
    if let Some(parent) = identity.parent_id {
        json.insert("parentId".into(), text(&b3::id_text(parent)).into());
    }
    json.insert("name".into(), (*span.name).into());
    match span.kind {
        Kind::Server => drop(json.insert("kind".into(), "SERVER".into())),
        Kind::Client => drop(json.insert("kind".into(), "CLIENT".into())),
        Kind::Internal => {}
    }
    json.insert("timestamp".into(), micros(span.start).into());
    json.insert("duration".into(), duration(span).into());
    let family = if endpoint.ip.is_ipv4() { "ipv4" } else { "ipv6" };
    json.insert(
        "localEndpoint".into(),
        json!({"serviceName": endpoint.service, family: endpoint.ip.to_string(), "port": 0}),
    );
    let annotations: Vec<Value> =
        annotations(span).map(|(timestamp, value)| json!({"timestamp": timestamp, "value": value})).collect();
    json.insert("annotations".into(), annotations.into());
    let tags: Map<String, Value> = tags(span).map(|(name, value)| (name, value.into())).collect();
    json.insert("tags".into(), tags.into());
    if is_shared(span, config) {
        json.insert("shared".into(), true.into());
    }
    Value::Object(json)
}

fn as_proto(span: &Span, config: &Zipkin, endpoint: &Endpoint<'_>) -> proto::Span {
    let identity = &span.identity;
    let high = (identity.trace_id >> 64) as u64;
    let trace_id = identity.trace_id.to_be_bytes();
    let (ipv4, ipv6) = match endpoint.ip {
        IpAddr::V4(ip) => (ip.octets().to_vec(), Vec::new()),
        IpAddr::V6(ip) => (Vec::new(), ip.octets().to_vec()),
    };
    let annotation = |(timestamp, value): (u64, &str)| proto::Annotation { timestamp, value: value.to_owned() };
    proto::Span {
        trace_id: if high == 0 { trace_id[8..].to_vec() } else { trace_id.to_vec() },
        parent_id: identity.parent_id.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
        id: identity.span_id.to_be_bytes().to_vec(),
        kind: match span.kind {
            Kind::Internal => 0,
            Kind::Client => 1,
            Kind::Server => 2,
        },
        name: span.name.to_string(),
        timestamp: micros(span.start),
        duration: duration(span),
        local_endpoint: Some(proto::Endpoint { service_name: endpoint.service.to_owned(), ipv4, ipv6, port: 0 }),
        annotations: annotations(span).map(annotation).collect(),
        tags: tags(span).collect(),
        debug: false,
        shared: is_shared(span, config),
    }
}

/// Zipkin's messages, by the field numbers that its API documents (`zipkin.proto3`).
mod proto {
    use std::collections::HashMap;

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ListOfSpans {
        #[prost(message, repeated, tag = "1")]
        pub spans: Vec<Span>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Span {
        #[prost(bytes = "vec", tag = "1")]
        pub trace_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub parent_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "3")]
        pub id: Vec<u8>,
        #[prost(int32, tag = "4")]
        pub kind: i32,
        #[prost(string, tag = "5")]
        pub name: String,
        #[prost(fixed64, tag = "6")]
        pub timestamp: u64,
        #[prost(uint64, tag = "7")]
        pub duration: u64,
        #[prost(message, optional, tag = "8")]
        pub local_endpoint: Option<Endpoint>,
        #[prost(message, repeated, tag = "10")]
        pub annotations: Vec<Annotation>,
        #[prost(map = "string, string", tag = "11")]
        pub tags: HashMap<String, String>,
        #[prost(bool, tag = "12")]
        pub debug: bool,
        #[prost(bool, tag = "13")]
        pub shared: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Endpoint {
        #[prost(string, tag = "1")]
        pub service_name: String,
        #[prost(bytes = "vec", tag = "2")]
        pub ipv4: Vec<u8>,
        #[prost(bytes = "vec", tag = "3")]
        pub ipv6: Vec<u8>,
        #[prost(int32, tag = "4")]
        pub port: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Annotation {
        #[prost(fixed64, tag = "1")]
        pub timestamp: u64,
        #[prost(string, tag = "2")]
        pub value: String,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_config::tracing::HttpService;

    use super::super::otlp::tests::span;
    use super::*;

    fn config(encoding: ZipkinEncoding) -> Zipkin {
        Zipkin {
            collector: HttpService {
                cluster: "c".into(),
                host: "h".into(),
                path: "/".into(),
                timeout: Duration::from_secs(1),
                headers: Vec::new(),
            },
            encoding,
            trace_id_128bit: true,
            shared_span_context: true,
            w3c: false,
            timestamp_trace_ids: false,
            own_hop: false,
        }
    }

    #[test]
    fn a_client_span_as_json() {
        let mut process = Process::default();
        process.node_cluster = "svc".into();
        let (content_type, bytes) = body(&[span()], &config(ZipkinEncoding::Json), &process);
        assert_eq!(content_type, "application/json");
        let mut got: Value = serde_json::from_slice(&bytes).unwrap();
        let endpoint = got[0].as_object_mut().unwrap().remove("localEndpoint").unwrap();
        assert_eq!(endpoint["serviceName"], "svc");
        let expected = json!([{
            "traceId": "00000000000000110000000000000022", "id": "0000000000000033", "parentId": "0000000000000044",
            "name": "egress a", "kind": "CLIENT", "timestamp": 1_000_001, "duration": 300,
            "tags": {"component": "proxy", "http.status_code": "503"},
            "annotations": [{"timestamp": 1_000_100, "value": "first_upstream_rx_byte_received"}, {"timestamp": 1_000_301, "value": "cr"}],
        }]);
        assert_eq!(got, expected);
    }

    #[test]
    fn a_server_span_is_shared_and_short_ids_are_short() {
        let mut server = span();
        server.kind = Kind::Server;
        server.identity.trace_id = 0x22;
        let process = Process::default();
        let (_, bytes) = body(&[server], &config(ZipkinEncoding::Json), &process);
        let got: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((&got[0]["traceId"], &got[0]["shared"]), (&json!("0000000000000022"), &json!(true)));
        let (content_type, bytes) = body(&[span()], &config(ZipkinEncoding::Proto), &process);
        assert_eq!(content_type, "application/x-protobuf");
        let list = proto::ListOfSpans::decode(bytes.as_slice()).unwrap();
        let sent = &list.spans[0];
        assert_eq!((sent.trace_id.len(), sent.kind, sent.shared, sent.duration), (16, 1, false, 300));
        assert_eq!(sent.tags["component"], "proxy");
    }
}
