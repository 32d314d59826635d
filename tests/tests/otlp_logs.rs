//! Access logs for OpenTelemetry's collectors: records and resources are those of Envoy, by gRPC and HTTP, and records wait
//! for a collector that was away.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::path::PathBuf;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use outrigger_tests::config::{self, bootstrap, chain, cluster, http, http2_cluster, routes, tcp_with};
use outrigger_tests::metrics::{Receiver, otlp_logs, otlp_logs_at, otlp_logs_http};
use outrigger_tests::tcp::{Conduct, HeldPort, Peer};
use outrigger_tests::{Proxy, Settings, h1, proxy, within};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const GRPC: &str = "grpc_service: { envoy_grpc: { cluster_name: logs } }";

/// As Istio sends it.
const COMMON: &str = "common_config: { log_name: mesh, transport_api_version: V3, \
    grpc_service: { envoy_grpc: { cluster_name: logs } }, buffer_flush_interval: 0.05s }";

const FIELDS: &str = "body: { string_value: '%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %REQ(nothing)%' }, \
    attributes: { values: [ \
      { key: code, value: { string_value: '%RESPONSE_CODE%' } }, \
      { key: absent, value: { string_value: '%REQ(nothing)%' } }, \
      { key: nested, value: { kvlist_value: { values: [{ key: inner, value: { string_value: 'a %PROTOCOL%' } }, \
        { key: list, value: { array_value: { values: [{ string_value: '%REQ(:METHOD)%' }, \
          { kvlist_value: { values: [] } }] } } }] } } }, \
      { key: again, value: { string_value: one } }, { key: again, value: { string_value: two } } ] }";

const RESOURCE: &str = "resource_attributes: { values: [{ key: region, value: { string_value: north } }, \
    { key: log_name, value: { string_value: renamed } }, { key: number, value: { int_value: 3 } }, \
    { key: list, value: { array_value: { values: [{ bool_value: true }] } } }] }";

const TAGS: &str = "custom_tags: [{ tag: literal, literal: { value: v } }]";

const TRACING: &str = "tracing: { provider: { name: p, typed_config: { \
    '@type': type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, service_name: shop, \
    grpc_service: { envoy_grpc: { cluster_name: posts }, timeout: 30s } } } }";

const PARENT: (&str, &str) = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");

fn log(fields: &str) -> String {
    format!(
        "access_log: [{{ name: otlp, typed_config: {{ '@type': type.googleapis.com/\
         envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig, {fields} }} }}]"
    )
}

/// A listener that answers by itself and logs so.
fn web(name: &str, fields: &str) -> String {
    let answer = "{ match: { prefix: / }, direct_response: { status: 204 } }";
    let manager = http(name, &format!(", {}, {TRACING}{}", log(fields), routes(answer)));
    config::listener(name, &[chain(&manager, "")], "")
}

fn text(listeners: &[String], collector: u16) -> String {
    bootstrap(listeners, &[http2_cluster("logs", &[collector]), cluster("posts", &[collector])])
}

async fn start(program: PathBuf, text: &str) -> Proxy {
    Proxy::start_with(text, Settings { program, ..Settings::default() }).await
}

fn taken_apart(request: ExportLogsServiceRequest) -> (Vec<KeyValue>, Vec<LogRecord>) {
    let [logs] = <[_; 1]>::try_from(request.resource_logs).expect("one resource");
    let records = logs.scope_logs.into_iter().flat_map(|scope| scope.log_records).collect();
    (logs.resource.expect("a resource").attributes, records)
}

/// What one proxy tells of one request; its own times and ids are taken out.
async fn told(proxy: &Proxy, collector: &mut Receiver<ExportLogsServiceRequest>, listener: &str) -> String {
    let mut client = h1::Client::connect(proxy.listener(listener).await).await;
    assert_eq!(client.request("GET", "/path?q=1", &[PARENT], b"").await.status, 204);
    let (resource, mut records) = taken_apart(collector.next().await);
    let [record] = records.as_mut_slice() else { panic!("{records:?}") };
    assert!(record.time_unix_nano > 1_600_000_000_000_000_000, "{record:?}");
    assert_eq!((record.trace_id.len(), record.span_id.len()), (16, 8), "{record:?}");
    assert_eq!(record.trace_id[..2], [0x0a, 0xf7]);
    record.time_unix_nano = 0;
    record.span_id.fill(0);
    format!("{resource:#?}\n{record:#?}")
}

#[tokio::test]
async fn records_and_resources_are_those_of_envoy() {
    let quick = "buffer_flush_interval: 0.05s, log_name: shop";
    let listeners = [
        web("istio", &format!("{COMMON}, {FIELDS}")),
        web("new", &format!("{GRPC}, {quick}, {FIELDS}, {RESOURCE}, {TAGS}")),
        web(
            "bare",
            &format!(
                "{GRPC}, {quick}, disable_builtin_labels: true, body: {{ kvlist_value: {{ values: \
            [{{ key: a, value: {{ string_value: '%RESPONSE_CODE%' }} }}] }} }}, {RESOURCE}, stat_prefix: mine"
            ),
        ),
    ];
    let (mut own_logs, mut envoy_logs) = (otlp_logs().await, otlp_logs().await);
    let own = start(proxy::program(), &text(&listeners, own_logs.port())).await;
    let envoy = start(proxy::envoy(), &text(&listeners, envoy_logs.port())).await;
    for listener in ["istio", "new", "bare"] {
        let theirs = told(&envoy, &mut envoy_logs, listener).await;
        assert_eq!(told(&own, &mut own_logs, listener).await, theirs, "{listener}");
    }
    for proxy in [&own, &envoy] {
        proxy.wait_stat("access_logs.open_telemetry_access_log.logs_written", |count| count == 2).await;
        proxy.wait_stat("access_logs.open_telemetry_access_log.mine.logs_written", |count| count == 1).await;
        proxy.stat_is("access_logs.open_telemetry_access_log.logs_dropped", 0).await;
    }
}

#[tokio::test]
async fn records_of_connections_can_be_posted() {
    let mut collector = otlp_logs_http().await;
    let peer = Peer::start(Conduct::Greet(b"hello".to_vec())).await;
    let fields = "http_service: { http_uri: { uri: 'http://collector.example/v1/logs', cluster: posts, timeout: 5s } }, \
        buffer_flush_interval: 0.05s, body: { string_value: '%BYTES_SENT% %UPSTREAM_CLUSTER%' }";
    let filter = tcp_with(&format!("cluster: a, {}", log(fields)));
    let listener = config::listener("tcp", &[chain(&filter, "")], "");
    let clusters = [cluster("a", &[peer.port()]), cluster("posts", &[collector.port()])];
    let proxy = Proxy::start(&bootstrap(&[listener], &clusters)).await;
    let mut stream = TcpStream::connect(proxy.listener("tcp").await).await.unwrap();
    let mut greeting = [0; 5];
    within("the greeting", stream.read_exact(&mut greeting)).await.unwrap();
    drop(stream);
    let (about, request) = collector.next().await;
    assert_eq!(about, "/v1/logs application/x-protobuf");
    let (_, records) = taken_apart(request);
    assert!(format!("{:?}", records[0].body).contains("\"5 a\""), "{records:?}");
    proxy.wait_stat("access_logs.open_telemetry_access_log.logs_written", |count| count == 1).await;
}

#[tokio::test]
async fn records_wait_for_a_collector_that_was_away() {
    let held = HeldPort::take();
    let address = held.address();
    let mut collector = otlp_logs_at(address).await;
    let fields = format!("{COMMON}, body: {{ string_value: '%REQ(:PATH)%' }}");
    let proxy = Proxy::start(&text(&[web("web", &fields)], address.port())).await;
    let web = proxy.listener("web").await;
    assert_eq!(h1::get(web, "/first").await.status, 204);
    collector.next().await;
    drop(collector);
    for path in ["/second", "/third"] {
        assert_eq!(h1::get(web, path).await.status, 204);
    }
    let mut collector = otlp_logs_at(address).await;
    let mut records = Vec::new();
    while !format!("{records:?}").contains("/third") {
        records.extend(taken_apart(collector.next().await).1);
    }
}
