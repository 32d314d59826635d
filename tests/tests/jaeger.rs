//! Spans at a real receiver: that of the OpenTelemetry Collector, with Jaeger's storage and Jaeger's query API behind it
//! (`interop/jaeger`). What is asked for there is one tree, from the client through two proxies to the server.
//!
//! Needs `go` and, for the first run, the network for its modules; building them takes a minute or two.

use std::process::Stdio;

use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster, http, http2_cluster, routes};
use outrigger_tests::{Proxy, Upstream, eventually, h1, programs, within};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

struct Jaeger {
    grpc: u16,
    http: u16,
    query: u16,
    _process: Child,
}

impl Jaeger {
    async fn start() -> Self {
        let program = programs::go_module("jaeger").await;
        // It ends with its standard input, so with this process at the latest.
        let mut command = Command::new(&program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let mut lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let line = within("the ports of Jaeger", lines.next_line()).await.expect("a pipe").expect("a line");
        let ports: Vec<u16> = line.split(' ').map(|port| port.parse().expect("a port")).collect();
        let [grpc, http, query] = ports[..] else { panic!("{line}") };
        Self { grpc, http, query, _process: process }
    }

    /// Tells of a span as an SDK does: OTLP in JSON.
    async fn report(&self, service: &str, trace: &str, id: &str, parent: Option<&str>) {
        let span = json!({ "traceId": trace, "spanId": id, "parentSpanId": parent.unwrap_or(""), "name": service,
            "kind": 1, "startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": "1700000001000000000" });
        let resource = json!({ "attributes": [{ "key": "service.name", "value": { "stringValue": service } }] });
        let body = json!({ "resourceSpans": [{ "resource": resource, "scopeSpans": [{ "spans": [span] }] }] });
        let mut client = h1::Client::connect(([127, 0, 0, 1], self.http).into()).await;
        let headers = [("content-type", "application/json")];
        let response = client.request("POST", "/v1/traces", &headers, body.to_string().as_bytes()).await;
        assert_eq!(response.status, 200, "{}", response.text());
    }

    async fn ask(&self, path: &str) -> Value {
        let mut client = h1::Client::connect(([127, 0, 0, 1], self.query).into()).await;
        serde_json::from_slice(&client.get(path).await.body).expect("JSON")
    }

    /// The trace once it has so many spans, and so many of connections that were made.
    async fn trace(&self, id: &str, count: usize, connects: usize) -> Value {
        eventually("all spans of the trace", async || {
            let answer = self.ask(&format!("/api/traces/{id}")).await;
            let spans = answer["data"][0]["spans"].as_array().map_or(&[][..], Vec::as_slice);
            let found = spans.iter().filter(|span| !is_wait(span)).count();
            let connected = spans.iter().filter(|span| span["operationName"] == "connect").count();
            if (found, connected) == (count, connects) {
                Ok(answer["data"][0].clone())
            } else {
                Err(answer.to_string())
            }
        })
        .await
    }
}

/// How many waits are long enough to be told of depends on the machine.
fn is_wait(span: &Value) -> bool {
    ["queue", "connect"].iter().any(|name| span["operationName"] == *name)
}

/// A proxy that sends each span at once.
async fn start(service: &str, direction: &str, exporter: &str, to: &str, clusters: &[String]) -> Proxy {
    let tracing = format!(
        ", tracing: {{ verbose: true, spawn_upstream_span: true, provider: {{ name: p, typed_config: {{ \
         '@type': type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, service_name: {service}, {exporter} }} }} }}"
    );
    let manager = http("web", &format!("{tracing}{}", routes(&all_to(to))));
    let listener = config::listener("web", &[chain(&manager, "")], &format!(", traffic_direction: {direction}"));
    let quick = "layered_runtime: { layers: [{ name: quick, static_layer: { \
                 tracing.opentelemetry.min_flush_spans: 1 } }] }\n";
    Proxy::start(&(bootstrap(&[listener], clusters) + quick)).await
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT: &str = "b7ad6b7169203331";

#[tokio::test]
async fn client_two_proxies_and_server_are_one_tree_in_jaeger() {
    let jaeger = Jaeger::start().await;
    let upstream = Upstream::start("a").await;
    let clusters = [cluster("a", &[upstream.port()]), cluster("collector", &[jaeger.http])];
    let by_http = "http_service: { http_uri: { uri: 'http://collector/v1/traces', cluster: collector, timeout: 5s } }";
    let inner = start("inner", "INBOUND", by_http, "a", &clusters).await;
    let inner_web = inner.listener("web").await;
    let clusters = [cluster("b", &[inner_web.port()]), http2_cluster("collector", &[jaeger.grpc])];
    let by_grpc = "grpc_service: { envoy_grpc: { cluster_name: collector }, timeout: 5s }";
    let outer = start("outer", "OUTBOUND", by_grpc, "b", &clusters).await;

    let mut client = h1::Client::connect(outer.listener("web").await).await;
    let parent = format!("00-{TRACE}-{CLIENT}-01");
    let response = client.request("GET", "/path", &[("traceparent", parent.as_str())], b"").await;
    assert_eq!(response.status, 200);
    jaeger.report("client", TRACE, CLIENT, None).await;
    let told = response.upstream_header("traceparent").expect("the server is told");
    jaeger.report("server", TRACE, "1111111111111111", Some(&told[36..52])).await;

    // Of each proxy its server's span and its try's, and the connection that was made for it.
    let trace = jaeger.trace(TRACE, 6, 2).await;
    let (waits, spans): (Vec<&Value>, Vec<&Value>) =
        trace["spans"].as_array().expect("spans").iter().partition(|span| is_wait(span));
    let service = |span: &Value| {
        let process = span["processID"].as_str().expect("a process");
        trace["processes"][process]["serviceName"].as_str().expect("a service").to_owned()
    };
    let parent_of = |span: &Value| {
        let reference = &span["references"][0];
        assert!(reference.is_null() || reference["refType"] == "CHILD_OF" && reference["traceID"] == TRACE, "{span:#}");
        reference["spanID"].as_str().map(str::to_owned)
    };
    let mut told = Vec::new();
    let mut parent = None;
    while let Some(next) = spans.iter().find(|span| parent_of(span) == parent) {
        told.push((service(next), next["operationName"].as_str().expect("a name").to_owned()));
        parent = next["spanID"].as_str().map(str::to_owned);
    }
    let expected = [
        ("client", "client"),
        ("outer", "egress example.com"),
        ("outer", "router b egress"),
        ("inner", "ingress"),
        ("inner", "router a egress"),
        ("server", "server"),
    ];
    assert_eq!(told, expected.map(|(service, name)| (service.to_owned(), name.to_owned())), "{trace:#}");
    for wait in waits {
        let above = spans.iter().find(|span| span["spanID"].as_str().map(str::to_owned) == parent_of(wait));
        assert_eq!(above.map(|span| service(span)), Some(service(wait)), "{trace:#}");
    }

    // What people look for in Jaeger: services, operations, and tags.
    let services = jaeger.ask("/api/services").await;
    let mut services: Vec<_> = services["data"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    services.sort_unstable();
    assert_eq!(services, ["client", "inner", "outer", "server"]);
    let tags = "%7B%22http.status_code%22%3A%22200%22%7D";
    let found = jaeger.ask(&format!("/api/traces?service=inner&operation=ingress&tags={tags}")).await;
    assert_eq!(found["data"][0]["traceID"], TRACE, "{found:#}");
}
