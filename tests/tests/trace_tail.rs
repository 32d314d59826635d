//! Spans of requests that nobody chose and that turn out to be worth it: failed ones and slow ones, within a budget
//! (`outrigger.trace.v1.TailSampler`). Envoy has nothing of the kind.

use std::net::SocketAddr;

use outrigger_tests::collector::{Collector, Span};
use outrigger_tests::config::{self, bootstrap, chain, cluster, http, http2_cluster, routes};
use outrigger_tests::{Proxy, Upstream, eventually, h1};

const TABLE: &str = "{ match: { prefix: /retry }, route: { cluster: a, retry_policy: { retry_on: 5xx, num_retries: 1, \
    retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } } }, \
    { match: { prefix: / }, route: { cluster: a } }";

/// A proxy whose connection manager chooses no request, and whose provider keeps what `tail` says.
async fn start(tail: &str, more: &str, upstream: u16, collector: &Collector) -> (Proxy, SocketAddr) {
    let tracing = format!(
        ", tracing: {{ random_sampling: {{ value: 0 }}, spawn_upstream_span: true{more}, provider: {{ name: p, typed_config: {{ \
         '@type': type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, service_name: shop, \
         grpc_service: {{ envoy_grpc: {{ cluster_name: collector }}, timeout: 60s }}, \
         sampler: {{ name: tail, typed_config: {{ '@type': type.googleapis.com/outrigger.trace.v1.TailSampler, {tail} }} }} }} }} }}"
    );
    let manager = http("web", &format!("{tracing}{}", routes(TABLE)));
    let listener = config::listener("web", &[chain(&manager, "")], ", traffic_direction: INBOUND");
    let clusters = [cluster("a", &[upstream]), http2_cluster("collector", &[collector.port()])];
    let quick = "layered_runtime: { layers: [{ name: quick, static_layer: { \
                 tracing.opentelemetry.min_flush_spans: 1 } }] }\n";
    let proxy = Proxy::start(&(bootstrap(&[listener], &clusters) + quick)).await;
    let web = proxy.listener("web").await;
    (proxy, web)
}

fn server(spans: &[Span]) -> &Span {
    spans.iter().find(|span| span.kind == "SERVER").unwrap_or_else(|| panic!("{spans:#?}"))
}

#[tokio::test]
async fn a_failure_is_kept_with_its_tries_and_nothing_else_is() {
    let mut collector = Collector::grpc().await;
    let upstream = Upstream::start("a").await;
    let (proxy, web) = start("errors: true", "", upstream.port(), &collector).await;
    let mut client = h1::Client::connect(web).await;
    for _ in 0..3 {
        assert_eq!(client.request("GET", "/well", &[("x-reply", "status=404")], b"").await.status, 404);
    }
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-00");
    let headers = [("x-reply", "status=503 empty"), ("traceparent", parent.as_str())];
    assert_eq!(client.request("GET", "/retry", &headers, b"").await.status, 503);
    let spans = collector.take(3).await;
    let kept = server(&spans);
    assert_eq!((kept.tag("outrigger.kept"), kept.tag("http.status_code")), (Some("error"), Some("503")));
    assert!(kept.tag("http.url").unwrap().ends_with("/retry"), "{kept:?}");
    assert!(spans.iter().all(|span| span.trace_id == trace && span.failed), "{spans:#?}");
    let tries: Vec<_> = spans.iter().filter(|span| span.kind == "CLIENT").collect();
    assert!(tries.len() == 2 && tries.iter().all(|span| span.parent_id == kept.id), "{spans:#?}");
    assert_eq!(kept.parent_id, "b7ad6b7169203331");
    // Nobody was told that the trace is recorded.
    let told: Vec<_> =
        upstream.seen().iter().filter_map(|seen| seen.header("traceparent").map(str::to_owned)).collect();
    assert!(told.len() == 5 && told.iter().all(|told| told.ends_with("-00")), "{told:?}");
    assert_eq!(proxy.stat("tracing.opentelemetry.tail_kept").await, 1);
    assert!(collector.rest().is_empty());
}

#[tokio::test]
async fn without_a_response_a_request_has_failed() {
    let mut collector = Collector::grpc().await;
    let upstream = Upstream::start("a").await;
    let (_proxy, web) = start("slow: 1000s", "", upstream.port(), &collector).await;
    let mut client = h1::Client::connect(web).await;
    assert_eq!(client.request("GET", "/", &[("x-reply", "reset")], b"").await.status, 503);
    let spans = collector.take(2).await;
    assert_eq!(server(&spans).tag("outrigger.kept"), Some("error"));
    // The client is gone before there is anything.
    let mut client = h1::Client::connect(web).await;
    client.send("GET /gone HTTP/1.1\r\nhost: a\r\nx-reply: hang\r\n\r\n").await;
    eventually("the upstream has the request", async || match upstream.seen().len() {
        2 => Ok(()),
        count => Err(count.to_string()),
    })
    .await;
    drop(client);
    let spans = collector.take(2).await;
    assert_eq!(
        (server(&spans).tag("outrigger.kept"), server(&spans).tag("response_flags")),
        (Some("error"), Some("DC"))
    );
}

#[tokio::test]
async fn what_was_slow_is_kept() {
    let mut collector = Collector::grpc().await;
    let upstream = Upstream::start("a").await;
    let (_proxy, web) = start("errors: false, slow: 0.05s", ", verbose: true", upstream.port(), &collector).await;
    let mut client = h1::Client::connect(web).await;
    assert_eq!(client.request("GET", "/slow", &[("x-reply", "delay=100")], b"").await.status, 200);
    // Its waits are kept, too; how many there are depends on the machine. The request's own span comes last.
    let mut spans = Vec::new();
    while spans.last().is_none_or(|span: &Span| span.kind != "SERVER") {
        spans.push(collector.next().await);
    }
    assert_eq!(server(&spans).tag("outrigger.kept"), Some("slow"));
    let parents: Vec<&str> = spans.iter().filter(|span| span.name == "connect").map(|span| &*span.parent_id).collect();
    let tried = spans.iter().find(|span| span.kind == "CLIENT").expect("its try");
    assert!(parents.len() == 1 && [&tried.id, &server(&spans).id].iter().any(|id| *id == parents[0]), "{spans:#?}");
}

#[tokio::test]
async fn what_the_sampler_inside_chooses_is_sent_in_any_case() {
    let mut collector = Collector::grpc().await;
    let upstream = Upstream::start("a").await;
    let inside = "wrapped_sampler: { name: w, typed_config: { '@type': \
                  type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.ParentBasedSamplerConfig, \
                  wrapped_sampler: { name: w, typed_config: { '@type': \
                  type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.CELSamplerConfig, \
                  expression: { cel_expr_string: 'request.path == \"/chosen\"' } } } } }, bytes_per_minute: 1";
    // Service-forced requests are traced in spite of the shares.
    let (proxy, web) = start(inside, "", upstream.port(), &collector).await;
    let mut client = h1::Client::connect(web).await;
    let forced = [("x-request-id", "00001388-554f-a600-89ed-b47e695b9dc5")];
    assert_eq!(client.request("GET", "/chosen", &forced, b"").await.status, 200);
    let spans = collector.take(2).await;
    assert_eq!(server(&spans).tag("outrigger.kept"), None);
    assert!(server(&spans).tag("http.url").unwrap().ends_with("/chosen"));
    // There is no room for what was not chosen.
    let failing = [forced[0], ("x-reply", "status=500 empty")];
    assert_eq!(client.request("GET", "/other", &failing, b"").await.status, 500);
    proxy.wait_stat("tracing.opentelemetry.tail_over_budget", |count| count == 1).await;
    assert_eq!(proxy.stat("tracing.opentelemetry.tail_kept").await, 0);
    assert!(collector.rest().is_empty());
}
