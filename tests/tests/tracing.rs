//! Distributed tracing: which spans reach a collector, how they hang together, and what the next hop is told.

use std::net::SocketAddr;

use outrigger_tests::collector::{Collector, Span};
use outrigger_tests::config::{
    self, HTTP2, access_log_of, all_to, bootstrap, chain, cluster, cluster_with, http, http2_cluster, routes,
};
use outrigger_tests::tcp::{ClosedPort, HeldPort};
use outrigger_tests::{Proxy, Settings, Upstream, eventually, h1, h2c};

/// A provider that sends OTLP to the cluster `collector`.
const OTLP: &str = "provider: { name: otlp, typed_config: { \
    '@type': type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, service_name: shop, \
    grpc_service: { envoy_grpc: { cluster_name: collector }, timeout: 30s } } }";

/// One that sends it by HTTP.
const OTLP_HTTP: &str = "provider: { name: otlp, typed_config: { \
    '@type': type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, service_name: shop, max_cache_size: 3, \
    http_service: { http_uri: { uri: 'http://traces.example/v1/traces', cluster: collector, timeout: 30s }, \
    request_headers_to_add: [{ header: { key: x-token, value: secret } }] } } }";

fn zipkin(more: &str) -> String {
    format!(
        "provider: {{ name: zipkin, typed_config: {{ '@type': type.googleapis.com/envoy.config.trace.v3.ZipkinConfig, \
         collector_cluster: collector, collector_endpoint: /api/v2/spans, collector_endpoint_version: HTTP_JSON{more} }} }}"
    )
}

/// Spans are sent at once, or nearly so.
fn quick(bootstrap: &str) -> String {
    format!(
        "{bootstrap}layered_runtime: {{ layers: [{{ name: quick, static_layer: {{ \
         tracing.opentelemetry.flush_interval_ms: 30, tracing.zipkin.flush_interval_ms: 30 }} }}] }}\n"
    )
}

fn manager(tracing: &str, more: &str, table: &str) -> String {
    http("web", &format!(", tracing: {{ {tracing} }}{more}{}", routes(table)))
}

/// A proxy with one listener `web` of this direction.
async fn start(direction: &str, manager: &str, clusters: &[String]) -> (Proxy, SocketAddr) {
    let listener = config::listener("web", &[chain(manager, "")], &format!(", traffic_direction: {direction}"));
    let proxy = Proxy::start(&quick(&bootstrap(&[listener], clusters))).await;
    let web = proxy.listener("web").await;
    (proxy, web)
}

/// Waits until the log says that spans could not be sent.
async fn await_failure(proxy: &Proxy) {
    eventually("a failed export", async || {
        if proxy.log().contains("spans could not be sent") { Ok(()) } else { Err(proxy.log()) }
    })
    .await;
}

fn by_kind<'a>(spans: &'a [Span], kind: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.kind == kind).collect()
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn two_proxies_and_their_tries_are_one_tree() {
    let mut collector = Collector::grpc().await;
    let upstream = Upstream::start("a").await;
    let tracing = format!("{OTLP}, spawn_upstream_span: true");
    let traces = http2_cluster("collector", &[collector.port()]);
    let clusters = [cluster("a", &[upstream.port()]), traces.clone()];
    let (_inner, inner_web) = start("INBOUND", &manager(&tracing, "", &all_to("a")), &clusters).await;
    let clusters = [cluster("b", &[inner_web.port()]), traces];
    let (_outer, outer_web) = start("OUTBOUND", &manager(&tracing, "", &all_to("b")), &clusters).await;

    let mut client = h1::Client::connect(outer_web).await;
    let headers = [("traceparent", PARENT), ("tracestate", "vendor=1"), ("baggage", "k=v")];
    let response = client.request("GET", "/path", &headers, b"").await;
    assert_eq!(response.status, 200);
    let spans = collector.take(4).await;
    assert!(spans.iter().all(|span| span.trace_id == TRACE && span.state == "vendor=1"), "{spans:#?}");
    let child = |parent: &str| spans.iter().find(|span| span.parent_id == parent).expect("a child");
    let outer = child("b7ad6b7169203331");
    let outer_try = child(&outer.id);
    let inner = child(&outer_try.id);
    let inner_try = child(&inner.id);
    let told = [outer, outer_try, inner, inner_try].map(|span| (span.kind, span.name.clone()));
    let expected = [
        ("SERVER", "egress example.com"),
        ("CLIENT", "router b egress"),
        ("SERVER", "ingress"),
        ("CLIENT", "router a egress"),
    ];
    assert_eq!(told, expected.map(|(kind, name)| (kind, name.to_owned())));
    assert_eq!(inner.resource["service.name"], "shop");
    assert_eq!(inner_try.tag("upstream_address"), Some(&*format!("127.0.0.1:{}", upstream.port())));
    let last = format!("00-{TRACE}-{}-01", inner_try.id);
    assert_eq!(response.upstream_header("traceparent"), Some(last));
    assert_eq!(response.upstream_header("tracestate").as_deref(), Some("vendor=1"));
    assert_eq!(response.upstream_header("baggage").as_deref(), Some("k=v"));
}

#[tokio::test]
async fn each_try_has_its_span_and_its_name() {
    let mut collector = Collector::grpc().await;
    let upstream = Upstream::start("a").await;
    let table = "{ match: { prefix: / }, route: { cluster: a, retry_policy: { retry_on: 5xx, num_retries: 2, \
                 retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } } }";
    let tracing = format!("{OTLP}, spawn_upstream_span: true, upstream_operation: 'try of %REQ(:path)%'");
    let clusters = [cluster("a", &[upstream.port()]), http2_cluster("collector", &[collector.port()])];
    let (_proxy, web) = start("INBOUND", &manager(&tracing, "", table), &clusters).await;
    let mut client = h1::Client::connect(web).await;
    let response = client.request("GET", "/p", &[("x-reply", "status=503 empty")], b"").await;
    assert_eq!(response.status, 503);
    let spans = collector.take(4).await;
    let tries = by_kind(&spans, "CLIENT");
    let counts: Vec<_> = tries.iter().map(|span| span.tag("retry.count")).collect();
    assert_eq!(counts, [None, Some("1"), Some("2")]);
    let server = by_kind(&spans, "SERVER")[0];
    for span in &tries {
        assert_eq!((&span.parent_id, span.failed, span.name.as_str()), (&server.id, true, "try of /p"));
        assert_eq!(span.tag("http.status_code"), Some("503"));
    }
    assert_eq!((server.tag("response_flags"), server.tag("error")), (Some("URX"), Some("true")));
    // The endpoint was told of the try that reached it, each time.
    let told: Vec<_> =
        upstream.seen().iter().map(|seen| seen.header("traceparent").unwrap()[36..52].to_owned()).collect();
    assert_eq!(told, tries.iter().map(|span| span.id.clone()).collect::<Vec<_>>());
}

#[tokio::test]
async fn who_decides_and_what_becomes_of_the_rest() {
    let mut collector = Collector::grpc().await;
    let upstream = Upstream::start("a").await;
    let table = "{ match: { prefix: /all }, tracing: { random_sampling: { numerator: 100 }, \
                 custom_tags: [{ tag: kind, literal: { value: all } }] }, route: { cluster: a } }, \
                 { match: { prefix: / }, route: { cluster: a } }";
    let tracing =
        format!("{OTLP}, random_sampling: {{ value: 0 }}, custom_tags: [{{ tag: kind, literal: {{ value: any }} }}]");
    let more = format!(
        ", internal_address_config: {{ cidr_ranges: [{{ address_prefix: 127.0.0.0, prefix_len: 8 }}] }}, \
         use_remote_address: true{}",
        access_log_of("log", "%TRACE_ID% %SPAN_ID% %REQ(:path)%")
            .replace("typed_config", "filter: { traceable_filter: {} }, typed_config")
    );
    let clusters = [cluster("a", &[upstream.port()]), http2_cluster("collector", &[collector.port()])];
    let (proxy, web) = start("INBOUND", &manager(&tracing, &more, table), &clusters).await;
    let mut client = h1::Client::connect(web).await;

    let plain = client.get("/plain").await;
    let told = plain.upstream_header("traceparent").unwrap();
    assert!(told.ends_with("-00"), "{told}");
    assert_eq!(plain.upstream_header("x-request-id").unwrap().as_bytes()[14], b'4');
    let unsampled = client.request("GET", "/caller", &[("traceparent", PARENT)], b"").await;
    let told = unsampled.upstream_header("traceparent").unwrap();
    assert!(told.starts_with(&format!("00-{TRACE}-")) && told.ends_with("-00"), "{told}");
    let malformed = client.request("GET", "/malformed", &[("traceparent", "00-xyz")], b"").await;
    assert_eq!(malformed.upstream_header("traceparent").as_deref(), Some("00-xyz"));
    client.get("/all").await;
    let asked = client.request("GET", "/client", &[("x-client-trace-id", "mine")], b"").await;
    assert_eq!(asked.upstream_header("x-request-id").unwrap().as_bytes()[14], b'b');
    let forced = client.request("GET", "/forced", &[("x-envoy-force-trace", "1")], b"").await;
    // Whoever asks for a trace is told how to find it.
    assert_eq!(forced.header("x-request-id").map(str::to_owned), forced.upstream_header("x-request-id"));
    assert!(forced.upstream_header("traceparent").unwrap().ends_with("-01"));

    let spans = collector.take(3).await;
    let urls: Vec<_> = spans.iter().map(|span| span.tag("http.url").unwrap().rsplit('/').next().unwrap()).collect();
    assert_eq!(urls, ["all", "client", "forced"]);
    assert_eq!((spans[0].tag("kind"), spans[1].tag("kind")), (Some("all"), Some("any")));
    assert_eq!(spans[1].tag("guid:x-client-trace-id"), Some("mine"));
    for (name, count) in [("random_sampling", 1), ("client_enabled", 1), ("service_forced", 1), ("not_traceable", 3)] {
        proxy.wait_stat(&format!("http.web.tracing.{name}"), |value| value == count).await;
    }
    proxy.wait_stat("tracing.opentelemetry.spans_sent", |value| value == 3).await;
    // The filter for traceable requests lets those through that a service asked for.
    proxy.admin_post("/reopen_logs").await;
    assert_eq!(proxy.lines("log", 1).await, [format!("{} {} /forced", spans[2].trace_id, spans[2].id)]);
    assert!(collector.rest().is_empty());
}

#[tokio::test]
async fn zipkin_gets_json_and_b3_goes_on() {
    let mut collector = Collector::http().await;
    let upstream = Upstream::start("a").await;
    let tracing = zipkin(", trace_id_128bit: true");
    let clusters = [cluster("a", &[upstream.port()]), cluster("collector", &[collector.port()])];
    let (proxy, web) = start("INBOUND", &manager(&tracing, "", &all_to("a")), &clusters).await;
    let mut client = h1::Client::connect(web).await;
    let headers = [("x-b3-traceid", "00000000000000aa"), ("x-b3-spanid", "00000000000000bb"), ("x-b3-sampled", "1")];
    let response = client.request("GET", "/several", &headers, b"").await;
    assert_eq!(response.upstream_header("x-b3-spanid").as_deref(), Some("00000000000000bb"));
    let span = collector.next().await;
    assert_eq!((span.trace_id.as_str(), span.id.as_str(), span.shared), ("00000000000000aa", "00000000000000bb", true));
    assert_eq!((span.kind, span.events.as_slice()), ("SERVER", &["ss".to_owned()][..]));
    assert_eq!(span.resource["service.name"], "tests");
    assert_eq!((span.request[":path"].as_str(), span.request["host"].as_str()), ("/api/v2/spans", "collector"));
    assert_eq!(span.name, "example.com");

    let single = client.request("GET", "/single", &[("b3", "1")], b"").await.upstream_header("b3").unwrap();
    let span = collector.next().await;
    assert_eq!(single, format!("{}-{}-1", span.trace_id, span.id));
    assert_eq!((span.trace_id.len(), &span.trace_id[16..]), (32, &*span.id));
    let unsampled = client.request("GET", "/no", &[("b3", "0")], b"").await.upstream_header("b3").unwrap();
    assert!(unsampled.ends_with("-0"), "{unsampled}");
    proxy.wait_stat("tracing.zipkin.reports_sent", |value| value == 2).await;
    proxy.stat_is("tracing.zipkin.spans_sent", 2).await;
}

#[tokio::test]
async fn otlp_over_http_survives_a_collector_that_is_away() {
    let upstream = Upstream::start("a").await;
    // A port that nobody listens on, until somebody does.
    let away = ClosedPort::take();
    let clusters = [cluster("a", &[upstream.port()]), cluster("collector", &[away.port()])];
    let (proxy, web) = start("INBOUND", &manager(OTLP_HTTP, "", &all_to("a")), &clusters).await;
    let mut client = h1::Client::connect(web).await;
    for number in 0..20 {
        assert_eq!(client.get(&format!("/{number}")).await.status, 200);
    }
    // Three may wait, and a batch of three may be under way.
    let dropped = proxy.wait_stat("tracing.opentelemetry.spans_dropped", |value| value >= 14).await;
    assert!(dropped <= 20, "{dropped}");
    proxy.stat_is("tracing.opentelemetry.spans_sent", 0).await;
    await_failure(&proxy).await;
}

#[tokio::test]
async fn otlp_over_http_brings_configured_headers() {
    let mut collector = Collector::http().await;
    let upstream = Upstream::start("a").await;
    let clusters = [cluster("a", &[upstream.port()]), cluster("collector", &[collector.port()])];
    let (proxy, web) = start("OUTBOUND", &manager(OTLP_HTTP, "", &all_to("a")), &clusters).await;
    let mut client = h1::Client::connect(web).await;
    client.get("/path").await;
    let span = collector.next().await;
    assert_eq!((span.kind, span.name.as_str()), ("CLIENT", "egress example.com"));
    assert_eq!((span.request[":path"].as_str(), span.request["host"].as_str()), ("/v1/traces", "traces.example"));
    assert_eq!((span.request["x-token"].as_str(), span.resource["service.name"].as_str()), ("secret", "shop"));
    proxy.wait_stat("tracing.opentelemetry.spans_sent", |value| value == 1).await;
    // The connection is kept for the next batch.
    client.get("/path").await;
    collector.next().await;
    proxy.stat_is("cluster.collector.upstream_cx_total", 1).await;
}

#[tokio::test]
async fn a_collector_that_comes_back_gets_what_waited() {
    let held = HeldPort::take();
    let (address, upstream) = (held.address(), Upstream::start("a").await);
    let clusters = [cluster("a", &[upstream.port()]), http2_cluster("collector", &[address.port()])];
    let (proxy, web) = start("INBOUND", &manager(OTLP, "", &all_to("a")), &clusters).await;
    let mut client = h1::Client::connect(web).await;
    client.get("/early").await;
    await_failure(&proxy).await;
    let mut collector = Collector::grpc_at(address).await;
    assert!(collector.next().await.tag("http.url").unwrap().ends_with("/early"));
    proxy.stat_is("tracing.opentelemetry.spans_dropped", 0).await;
}

#[tokio::test]
async fn the_last_spans_are_sent_before_the_end() {
    let mut collector = Collector::grpc().await;
    let upstream = Upstream::start("a").await;
    let listener = config::listener("web", &[chain(&manager(OTLP, "", &all_to("a")), "")], "");
    let clusters = [cluster("a", &[upstream.port()]), http2_cluster("collector", &[collector.port()])];
    // With Envoy's interval of five seconds, the end comes first.
    let settings = Settings { arguments: vec!["--drain-time-s".into(), "1".into()], ..Settings::default() };
    let mut proxy = Proxy::start_with(&bootstrap(&[listener], &clusters), settings).await;
    let web = proxy.listener("web").await;
    h1::get(web, "/last").await;
    proxy.signal("TERM").await;
    assert!(collector.next().await.tag("http.url").unwrap().ends_with("/last"));
    assert!(proxy.exit().await.success());
}

#[tokio::test]
async fn verbose_spans_tell_what_was_waited_for() {
    let mut collector = Collector::grpc().await;
    let upstream = Upstream::start("a").await;
    let tracing = format!("{OTLP}, verbose: true, spawn_upstream_span: true");
    let limits = ", circuit_breakers: { thresholds: [{ max_connections: 1 }] }";
    let clusters = [cluster_with("a", &[upstream.port()], limits), http2_cluster("collector", &[collector.port()])];
    let (_proxy, web) = start("INBOUND", &manager(&tracing, "", &all_to("a")), &clusters).await;
    // The first holds the only connection until the second waits for it.
    let first = tokio::spawn(async move {
        h1::Client::connect(web).await.request("GET", "/first", &[("x-reply", "gate")], b"").await
    });
    upstream.wait("the first", |counts| counts.waiting == 1).await;
    let second = tokio::spawn(async move { h1::get(web, "/second").await });
    eventually("the second waits", async || match _proxy.stat("cluster.a.upstream_rq_pending_active").await {
        1 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    upstream.open_gate();
    assert_eq!((first.await.unwrap().status, second.await.unwrap().status), (200, 200));
    let spans = collector.take(6).await;
    let phases: Vec<_> = by_kind(&spans, "INTERNAL").iter().map(|span| span.name.as_str()).collect();
    assert_eq!(phases, ["connect", "queue"]);
    for phase in by_kind(&spans, "INTERNAL") {
        let parent = spans.iter().find(|span| span.id == phase.parent_id).expect("its try");
        assert_eq!((parent.kind, phase.tag("upstream_cluster")), ("CLIENT", Some("a")));
    }
    for span in by_kind(&spans, "SERVER") {
        assert_eq!(span.events.len(), 7, "{:?}", span.events);
    }
}

/// Waits at the limit of an endpoint, which Envoy does not have.
#[tokio::test]
async fn waits_for_a_place_are_told_too() {
    let mut collector = Collector::grpc().await;
    let upstream = Upstream::start("a").await;
    let limit = ", typed_extension_protocol_options: { outrigger.upstream: { \
                 '@type': type.googleapis.com/outrigger.upstream.v1.ConcurrencyOptions, max_requests: 1 } }";
    let clusters = [cluster_with("a", &[upstream.port()], limit), http2_cluster("collector", &[collector.port()])];
    let tracing = format!("{OTLP}, verbose: true");
    let (proxy, web) = start("INBOUND", &manager(&tracing, "", &all_to("a")), &clusters).await;
    let first = tokio::spawn(async move {
        h1::Client::connect(web).await.request("GET", "/first", &[("x-reply", "gate")], b"").await
    });
    upstream.wait("the first", |counts| counts.waiting == 1).await;
    let second = tokio::spawn(async move { h1::get(web, "/second").await });
    proxy.wait_stat("cluster.a.queue.active", |value| value == 1).await;
    upstream.open_gate();
    assert_eq!((first.await.unwrap().status, second.await.unwrap().status), (200, 200));
    let spans = collector.take(4).await;
    let queue = spans.iter().find(|span| span.name == "queue").expect("the wait");
    assert_eq!((queue.tag("outcome"), queue.tag("upstream_cluster")), (Some("served"), Some("a")));
    let parent = spans.iter().find(|span| span.id == queue.parent_id).expect("its request");
    assert!(parent.kind == "SERVER" && parent.tag("http.url").unwrap().ends_with("/second"), "{parent:?}");
}

#[tokio::test]
async fn operations_are_told_to_the_other_side() {
    let mut collector = Collector::grpc().await;
    let upstream = Upstream::start("a").await;
    let table = "{ match: { prefix: / }, decorator: { operation: checkout }, route: { cluster: a } }";
    let clusters = [cluster("a", &[upstream.port()]), http2_cluster("collector", &[collector.port()])];
    let (_in, inbound) = start("INBOUND", &manager(OTLP, "", table), &clusters).await;
    let mut client = h1::Client::connect(inbound).await;
    let response = client.get("/").await;
    assert_eq!(response.header("x-envoy-decorator-operation"), Some("checkout"));
    let response = client.request("GET", "/", &[("x-envoy-decorator-operation", "theirs")], b"").await;
    assert_eq!(response.header("x-envoy-decorator-operation"), None);
    assert_eq!(response.upstream_header("x-envoy-decorator-operation"), None);
    let names: Vec<_> = collector.take(2).await.into_iter().map(|span| span.name).collect();
    assert_eq!(names, ["checkout", "theirs"]);

    let (_out, outbound) = start("OUTBOUND", &manager(OTLP, "", table), &clusters).await;
    let mut client = h1::Client::connect(outbound).await;
    let response = client.get("/").await;
    assert_eq!(response.upstream_header("x-envoy-decorator-operation").as_deref(), Some("checkout"));
    let renamed = [("x-reply", "header=x-envoy-decorator-operation:server's")];
    let response = client.request("GET", "/", &renamed, b"").await;
    assert_eq!(response.header("x-envoy-decorator-operation"), None);
    let names: Vec<_> = collector.take(2).await.into_iter().map(|span| span.name).collect();
    assert_eq!(names, ["checkout", "server's"]);
}

#[tokio::test]
async fn without_a_provider_ids_and_operations_are_kept_all_the_same() {
    let upstream = Upstream::start("a").await;
    let table = "{ match: { prefix: / }, decorator: { operation: checkout }, route: { cluster: a } }";
    let clusters = [cluster("a", &[upstream.port()])];
    let (proxy, web) = start("OUTBOUND", &manager("client_sampling: { value: 100 }", "", table), &clusters).await;
    let response = h1::get(web, "/").await;
    assert_eq!(response.upstream_header("x-request-id").unwrap().as_bytes()[14], b'9');
    assert_eq!(response.upstream_header("x-envoy-decorator-operation").as_deref(), Some("checkout"));
    assert_eq!(response.upstream_header("traceparent"), None);
    proxy.wait_stat("http.web.tracing.random_sampling", |value| value == 1).await;
}

#[tokio::test]
async fn the_bootstraps_provider_serves_those_who_name_none() {
    let mut collector = Collector::grpc().await;
    let upstream = Upstream::start("a").await;
    let listener = config::listener("web", &[chain(&manager("verbose: false", "", &all_to("a")), "")], "");
    let clusters = [cluster("a", &[upstream.port()]), http2_cluster("collector", &[collector.port()])];
    let provider = OTLP.strip_prefix("provider: ").unwrap();
    let text = format!("{}tracing: {{ http: {provider} }}\n", bootstrap(&[listener], &clusters));
    let proxy = Proxy::start(&quick(&text)).await;
    let web = proxy.listener("web").await;
    h1::get(web, "/path").await;
    let span = collector.next().await;
    assert_eq!((span.name.as_str(), span.tag("node_id")), ("ingress", Some("proxy-under-test")));
    assert_eq!(span.resource["telemetry.sdk.language"], "rust");
}

#[tokio::test]
async fn calls_of_grpc_say_how_they_ended() {
    let mut collector = Collector::grpc().await;
    let upstream = Upstream::start("a").await;
    let tracing = format!("{OTLP}, spawn_upstream_span: true");
    let clusters = [cluster_with("a", &[upstream.port()], HTTP2), http2_cluster("collector", &[collector.port()])];
    let (_proxy, web) = start("INBOUND", &manager(&tracing, "", &all_to("a")), &clusters).await;
    let client = h2c::Client::connect(web).await;
    let headers = [
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("x-reply", "empty header=grpc-status:14 header=grpc-message:away"),
    ];
    client.request("POST", "/shop.Cart/Add", &headers, b"").await;
    let spans = collector.take(2).await;
    for span in &spans {
        assert_eq!((span.tag("grpc.status_code"), span.tag("grpc.message")), (Some("14"), Some("away")));
        assert!(span.failed && span.tag("error") == Some("true"), "{span:?}");
        assert_eq!(span.tag("http.protocol"), Some("HTTP/2"));
    }
    assert_eq!(by_kind(&spans, "SERVER")[0].tag("grpc.path"), Some("/shop.Cart/Add"));
}
