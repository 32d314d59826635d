//! Collectors of spans: OTLP over gRPC, OTLP over HTTP, and Zipkin, which keep what they are sent.
//!
//! Owns the servers and one form for all spans. Never judges them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status};

use crate::grpc_server::GrpcServer;
use crate::within;

/// A span in the form of OTLP; those of Zipkin have the same fields where they have them at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Span {
    /// Its name.
    pub name: String,
    /// `SERVER`, `CLIENT` or `INTERNAL`.
    pub kind: &'static str,
    /// Lower-case hexadecimal.
    pub trace_id: String,
    /// Lower-case hexadecimal.
    pub id: String,
    /// Lower-case hexadecimal; empty for none.
    pub parent_id: String,
    /// `tracestate`.
    pub state: String,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Its status is an error.
    pub failed: bool,
    /// Names of its events, in order.
    pub events: Vec<String>,
    /// Zipkin's `shared`.
    pub shared: bool,
    /// Attributes of the resource; the service's name for Zipkin.
    pub resource: BTreeMap<String, String>,
    /// Path and headers of the request that brought it.
    pub request: BTreeMap<String, String>,
}

impl Span {
    /// A tag's value.
    pub fn tag(&self, name: &str) -> Option<&str> {
        self.tags.get(name).map(String::as_str)
    }
}

/// A running collector; it ends when dropped.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    received: mpsc::UnboundedReceiver<Span>,
    _server: Running,
}

/// What ends when it is dropped.
#[derive(Debug)]
enum Running {
    Grpc(#[allow(dead_code)] GrpcServer),
    Http(#[allow(dead_code)] Aborted),
}

/// A task that ends when this is dropped.
#[derive(Debug)]
struct Aborted(AbortHandle);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Collector {
    /// One that speaks OTLP over gRPC, on a free port of 127.0.0.1.
    pub async fn grpc() -> Self {
        Self::grpc_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
    }

    /// The same on this address.
    pub async fn grpc_at(address: SocketAddr) -> Self {
        let (sender, received) = mpsc::unbounded_channel();
        let service = TraceServiceServer::new(Keeper(sender));
        let server = GrpcServer::listen(address, move |request| service.clone().call(request)).await;
        Self { address: server.address(), received, _server: Running::Grpc(server) }
    }

    /// One that takes posts of OTLP and of Zipkin's JSON, on a free port of 127.0.0.1.
    pub async fn http() -> Self {
        let (listener, address) = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await;
        let (sender, received) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                let answer = service_fn(move |request| post(request, sender.clone()));
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, received, _server: Running::Http(Aborted(task.abort_handle())) }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next span that arrives.
    pub async fn next(&mut self) -> Span {
        within("a span", self.received.recv()).await.expect("the collector runs")
    }

    /// The next spans, so many.
    pub async fn take(&mut self, count: usize) -> Vec<Span> {
        let mut spans = Vec::with_capacity(count);
        while spans.len() < count {
            spans.push(self.next().await);
        }
        spans
    }

    /// Whatever else has arrived.
    pub fn rest(&mut self) -> Vec<Span> {
        std::iter::from_fn(|| self.received.try_recv().ok()).collect()
    }
}

async fn bind(address: SocketAddr) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).await.unwrap_or_else(|error| panic!("{address}: {error}"));
    let address = listener.local_addr().expect("a bound socket has an address");
    (listener, address)
}

/// Passes on each span.
struct Keeper(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Keeper {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let metadata = request.metadata().clone().into_headers();
        for span in otlp(request.into_inner(), &headers(&metadata)) {
            self.0.send(span).map_err(|_| Status::aborted("nobody looks"))?;
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn post(
    request: http::Request<Incoming>,
    sender: mpsc::UnboundedSender<Span>,
) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let mut about = headers(request.headers());
    about.insert(":path".into(), request.uri().path().to_owned());
    let json = about.get("content-type").is_some_and(|kind| kind == "application/json");
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let spans = match json {
        true => zipkin(&serde_json::from_slice(&body).expect("JSON"), &about),
        false => otlp(prost_decode(&body), &about),
    };
    for span in spans {
        // A test that has ended does not look any more.
        let _ = sender.send(span);
    }
    let mut response = http::Response::new(Full::default());
    *response.status_mut() = if json { http::StatusCode::ACCEPTED } else { http::StatusCode::OK };
    Ok(response)
}

fn prost_decode(body: &[u8]) -> ExportTraceServiceRequest {
    use tonic::codegen::Bytes as Buffer;
    <ExportTraceServiceRequest as prost::Message>::decode(Buffer::copy_from_slice(body)).expect("an export request")
}

fn headers(headers: &http::HeaderMap) -> BTreeMap<String, String> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

fn attributes(list: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(AnyValue::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    };
    list.iter().map(|pair| (pair.key.clone(), text(pair))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn otlp(request: ExportTraceServiceRequest, about: &BTreeMap<String, String>) -> Vec<Span> {
    let mut all = Vec::new();
    for group in request.resource_spans {
        let resource = attributes(group.resource.unwrap_or_default().attributes);
        for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            all.push(Span {
                kind: match span.kind {
                    1 => "INTERNAL",
                    2 => "SERVER",
                    3 => "CLIENT",
                    _ => "OTHER",
                },
                name: span.name,
                trace_id: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent_id: hex(&span.parent_span_id),
                state: span.trace_state,
                tags: attributes(span.attributes),
                failed: span.status.is_some_and(|status| status.code == 2),
                events: span.events.into_iter().map(|event| event.name).collect(),
                shared: false,
                resource: resource.clone(),
                request: about.clone(),
            });
        }
    }
    all
}

fn zipkin(list: &Value, about: &BTreeMap<String, String>) -> Vec<Span> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let one = |span: &Value| Span {
        name: text(&span["name"]),
        kind: match span["kind"].as_str() {
            Some("SERVER") => "SERVER",
            Some("CLIENT") => "CLIENT",
            _ => "INTERNAL",
        },
        trace_id: text(&span["traceId"]),
        id: text(&span["id"]),
        parent_id: text(&span["parentId"]),
        state: String::new(),
        tags: span["tags"].as_object().into_iter().flatten().map(|(name, value)| (name.clone(), text(value))).collect(),
        failed: false,
        events: span["annotations"].as_array().into_iter().flatten().map(|event| text(&event["value"])).collect(),
        shared: span["shared"].as_bool().unwrap_or(false),
        resource: BTreeMap::from([("service.name".to_owned(), text(&span["localEndpoint"]["serviceName"]))]),
        request: about.clone(),
    };
    list.as_array().expect("a list of spans").iter().map(one).collect()
}
