//! Traces as examples of what Istio's histograms have counted.

use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_tests::collector::Collector;
use outrigger_tests::config::{http2_cluster, listener};
use outrigger_tests::{Prometheus, Proxy, Upstream, eventually, h1};

use crate::sidecars::{bootstrap, cluster, http, stats};

#[tokio::test]
async fn histograms_show_traces_as_examples() {
    let (app, collector) = (Upstream::start("app").await, Collector::grpc().await);
    let tracing = "tracing: { provider: { name: p, typed_config: { \
         '@type': type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, service_name: shop, \
         grpc_service: { envoy_grpc: { cluster_name: collector }, timeout: 60s } } } }, stat_prefix: 'web;'";
    let routes = "{ match: { prefix: / }, route: { cluster: b } }";
    let settings = "metrics: [{ tags_to_remove: [source_principal] }, { name: request_bytes, drop: true }]";
    let manager = http(&[&stats(settings)], routes).replace("stat_prefix: 'web;'", tracing);
    let web = listener("web", &[format!("{{ filters: [{manager}] }}")], ", traffic_direction: OUTBOUND");
    let clusters = [cluster("b", Some(app.port()), ""), http2_cluster("collector", &[collector.port()])];
    let proxy = Proxy::start(&bootstrap("client", &[web], &clusters)).await;
    let prometheus = Prometheus::start(&[proxy.admin_address()], ", params: { format: [openmetrics] }").await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let path = format!("query_exemplars?start={}&end={}&", now - 3600, now + 3600);
    for metric in ["istio_request_duration_milliseconds_bucket", "istio_response_bytes_bucket"] {
        let series = format!("{metric}{{reporter=\"source\",source_workload=\"client\"}}");
        eventually("an example", async || {
            let headers = [("traceparent", parent.as_str())];
            assert_eq!(client.request("GET", "/", &headers, b"").await.status, 200);
            let answer = prometheus.ask(&path, &series).await?;
            let series = answer["data"].as_array().ok_or_else(|| answer.to_string())?;
            let examples = series.iter().flat_map(|one| one["exemplars"].as_array().into_iter().flatten());
            let found = examples.into_iter().any(|one| one["labels"]["trace_id"] == trace);
            if found { Ok(()) } else { Err(answer.to_string()) }
        })
        .await;
    }
    // What is not counted has no examples, and other forms have none.
    let text = proxy.admin("/stats?format=openmetrics").await.text();
    assert!(text.lines().any(|line| line.contains("trace_id")));
    assert!(!text.contains("istio_request_bytes"));
    assert!(!proxy.admin("/stats/prometheus").await.text().contains("trace_id"));
}
