//! Prometheus itself scrapes the admin port, and answers what the public dashboards for Envoy ask it; the same with Envoy
//! behind it shows that the questions are good ones.
//!
//! Needs `prometheus` and `envoy`.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_tests::collector::Collector;
use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster, cluster_with, http, http2_cluster, routes};
use outrigger_tests::{Prometheus, Proxy, Settings, Upstream, eventually, h1, proxy};

/// What dashboards ask for, in the form they ask it: of the process, of listeners and connection managers, of clusters.
/// Nobody is asked for what only Envoy has: watchdogs and assertions, bytes in buffers, flow control, `max_host_weight`,
/// requests by the HTTP stats of listeners, and upstream requests by where they come from.
const QUERIES: &[&str] = &[
    "sum(envoy_server_live)",
    "avg(envoy_server_uptime)",
    "min(envoy_server_uptime{job=\"proxy\"}) / 60",
    "sum(envoy_server_memory_allocated)",
    "sum(envoy_server_memory_heap_size)",
    "sum(envoy_server_memory_physical_size) by (instance)",
    "sum(envoy_server_total_connections)",
    "sum(envoy_server_parent_connections) + max(envoy_server_hot_restart_epoch)",
    "max(envoy_server_state)",
    "min(envoy_server_days_until_first_cert_expiring)",
    "sum(envoy_server_concurrency) by (instance)",
    "histogram_quantile(0.5, sum(envoy_server_initialization_time_ms_bucket) by (le))",
    "sum(envoy_runtime_num_keys) + sum(envoy_runtime_num_layers) + sum(envoy_runtime_admin_overrides_active)",
    "sum(rate(envoy_filesystem_write_completed[1m])) + sum(rate(envoy_filesystem_flushed_by_timer[1m]))",
    "sum(envoy_filesystem_write_total_buffered)",
    "sum(envoy_listener_manager_total_listeners_active) - sum(envoy_listener_manager_total_listeners_draining)",
    "sum(envoy_listener_manager_total_listeners_warming) + sum(envoy_listener_manager_listener_create_failure)",
    "max(envoy_listener_manager_workers_started)",
    "sum(rate(envoy_listener_downstream_cx_total[1m])) by (envoy_listener_address)",
    "sum(rate(envoy_listener_downstream_cx_destroy[1m]))",
    "sum(envoy_listener_downstream_pre_cx_active) + sum(rate(envoy_listener_downstream_pre_cx_timeout[1m]))",
    "sum(rate(envoy_listener_no_filter_chain_match[1m])) + sum(rate(envoy_listener_downstream_cx_overflow[1m]))",
    "histogram_quantile(0.99, sum(rate(envoy_listener_downstream_cx_length_ms_bucket[1m])) by (le))",
    "sum(envoy_http_downstream_cx_active) + sum(envoy_listener_downstream_cx_active)",
    "sum(rate(envoy_http_downstream_cx_total[1m])) by (envoy_http_conn_manager_prefix)",
    "sum(rate(envoy_http_downstream_cx_http1_total{envoy_http_conn_manager_prefix=\"web\"}[1m]))",
    "sum(rate(envoy_http_downstream_cx_rx_bytes_total[1m])) + sum(rate(envoy_http_downstream_cx_tx_bytes_total[1m]))",
    "sum(rate(envoy_http_downstream_cx_destroy[1m]))",
    "sum(rate(envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix=\"web\"}[1m]))",
    "sum(rate(envoy_http_downstream_rq_http1_total[1m])) + sum(rate(envoy_http_downstream_rq_http2_total[1m]))",
    "sum(envoy_http_downstream_rq_active) by (envoy_http_conn_manager_prefix)",
    "sum(envoy_http_downstream_rq_xx{envoy_http_conn_manager_prefix=\"web\", envoy_response_code_class=\"2\"})",
    "sum(rate(envoy_http_downstream_rq_xx{envoy_response_code_class=~\"4|5\"}[1m])) / sum(rate(envoy_http_downstream_rq_xx[1m]))",
    "histogram_quantile(0.5, sum(rate(envoy_http_downstream_rq_time_bucket{envoy_http_conn_manager_prefix=\"web\"}[1m])) by (le))",
    "sum(rate(envoy_http_downstream_rq_time_sum[1m])) / sum(rate(envoy_http_downstream_rq_time_count[1m]))",
    "sum(rate(envoy_http_no_route[1m])) + sum(rate(envoy_http_no_cluster[1m])) + sum(rate(envoy_http_rq_total[1m]))",
    "sum(envoy_cluster_membership_healthy) - sum(envoy_cluster_membership_total)",
    "100 * sum(envoy_cluster_membership_healthy) by (envoy_cluster_name) / sum(envoy_cluster_membership_total) by (envoy_cluster_name)",
    "sum(envoy_cluster_membership_degraded) + sum(envoy_cluster_membership_excluded)",
    "sum(envoy_cluster_upstream_cx_active)",
    "sum(rate(envoy_cluster_upstream_cx_total[1m])) by (envoy_cluster_name)",
    "sum(rate(envoy_cluster_upstream_cx_http1_total[1m])) + sum(rate(envoy_cluster_upstream_cx_http2_total[1m]))",
    "sum(rate(envoy_cluster_upstream_cx_connect_fail[1m])) + sum(rate(envoy_cluster_upstream_cx_connect_timeout[1m]))",
    "sum(rate(envoy_cluster_upstream_cx_destroy_local[1m])) + sum(rate(envoy_cluster_upstream_cx_destroy_remote[1m]))",
    "sum(rate(envoy_cluster_upstream_cx_destroy_remote_with_active_rq[1m])) + sum(rate(envoy_cluster_upstream_cx_overflow[1m]))",
    "histogram_quantile(0.9, sum(envoy_cluster_upstream_cx_connect_ms_bucket) by (le, envoy_cluster_name))",
    "sum(rate(envoy_cluster_upstream_cx_tx_bytes_total[1m])) + sum(rate(envoy_cluster_upstream_cx_rx_bytes_total[1m]))",
    "sum(rate(envoy_cluster_upstream_rq_total[1m])) by (envoy_cluster_name)",
    "sum(envoy_cluster_upstream_rq_active) + sum(envoy_cluster_upstream_rq_pending_active)",
    "sum(rate(envoy_cluster_upstream_rq_completed[1m]))",
    "sum(rate(envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"2\"}[1m]))",
    "sum(rate(envoy_cluster_upstream_rq{envoy_response_code=~\"2..\"}[1m])) / sum(rate(envoy_cluster_upstream_rq[1m]))",
    "histogram_quantile(0.95, sum(rate(envoy_cluster_upstream_rq_time_bucket[1m])) by (le, envoy_cluster_name))",
    "sum(rate(envoy_cluster_upstream_rq_time_sum[1m])) / sum(rate(envoy_cluster_upstream_rq_time_count[1m]))",
    "sum(rate(envoy_cluster_upstream_rq_retry[1m])) + sum(rate(envoy_cluster_upstream_rq_retry_success[1m]))",
    "sum(rate(envoy_cluster_upstream_rq_retry_overflow[1m])) + sum(rate(envoy_cluster_upstream_rq_retry_limit_exceeded[1m]))",
    "sum(rate(envoy_cluster_upstream_rq_timeout[1m])) + sum(rate(envoy_cluster_upstream_rq_per_try_timeout[1m]))",
    "sum(rate(envoy_cluster_upstream_rq_pending_overflow[1m])) + sum(rate(envoy_cluster_upstream_rq_pending_failure_eject[1m]))",
    "sum(rate(envoy_cluster_upstream_rq_rx_reset[1m])) + sum(rate(envoy_cluster_upstream_rq_tx_reset[1m]))",
    "sum(rate(envoy_cluster_upstream_rq_cancelled[1m])) + sum(rate(envoy_cluster_upstream_rq_maintenance_mode[1m]))",
    "sum(rate(envoy_cluster_upstream_cx_none_healthy[1m])) + sum(rate(envoy_cluster_bind_errors[1m]))",
    "sum(rate(envoy_cluster_lb_healthy_panic[1m])) + sum(rate(envoy_cluster_membership_change[1m]))",
    "sum(rate(envoy_cluster_update_empty[1m]))",
    "sum(envoy_cluster_circuit_breakers_default_rq_open) + max(envoy_cluster_manager_active_clusters)",
    "sum(envoy_cluster_circuit_breakers_high_cx_open) + sum(envoy_cluster_circuit_breakers_default_rq_pending_open)",
    "sum(envoy_cluster_circuit_breakers_default_rq_retry_open) + sum(envoy_cluster_circuit_breakers_default_cx_open)",
    "sum(envoy_cluster_outlier_detection_ejections_active) by (envoy_cluster_name)",
    "sum(rate(envoy_cluster_outlier_detection_ejections_enforced_total[1m]))",
    "sum(rate(envoy_cluster_outlier_detection_ejections_enforced_consecutive_5xx[1m]))",
    "sum(rate(envoy_cluster_health_check_attempt[1m])) - sum(rate(envoy_cluster_health_check_failure[1m]))",
    "sum(envoy_cluster_health_check_healthy) by (envoy_cluster_name)",
    "sum(envoy_cluster_manager_warming_clusters) + sum(rate(envoy_cluster_manager_cluster_added[1m]))",
];

async fn answers(program: PathBuf) {
    let upstream = Upstream::start("a").await;
    let web = config::listener("web", &[chain(&http("web", &routes(&all_to("a"))), "")], "");
    let settings = Settings { program, ..Settings::default() };
    let judged = ", outlier_detection: {}, health_checks: [{ timeout: 60s, interval: 1s, no_traffic_interval: 1s, \
        unhealthy_threshold: 3, healthy_threshold: 1, http_health_check: { path: /healthy } }]";
    let clusters = [cluster_with("a", &[upstream.port()], judged)];
    let proxy = Proxy::start_with(&bootstrap(&[web], &clusters), settings).await;
    proxy.stat_is("cluster.a.membership_healthy", 1).await;
    let web = proxy.listener("web").await;
    let prometheus = Prometheus::start(&[proxy.admin_address()], "").await;
    let good = |query: &str, values: &[f64]| match query {
        _ if !query.contains("membership_healthy") => true,
        _ if query.starts_with("100 ") => values == [100.0],
        _ => values == [0.0],
    };
    prometheus.answers(QUERIES, good, async || assert_eq!(h1::get(web, "/").await.status, 200)).await;
    let up = prometheus.values("up", async || {}).await;
    assert_eq!(up, [1.0]);
}

#[tokio::test]
async fn it_answers_the_questions_of_dashboards() {
    answers(proxy::program()).await;
}

#[tokio::test]
async fn it_answers_the_same_questions_with_envoy() {
    answers(proxy::envoy()).await;
}

#[tokio::test]
async fn it_shows_traces_as_examples_of_latencies() {
    let mut collector = Collector::grpc().await;
    let upstream = Upstream::start("a").await;
    let tracing = ", tracing: { provider: { name: p, typed_config: { \
         '@type': type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, service_name: shop, \
         grpc_service: { envoy_grpc: { cluster_name: collector }, timeout: 60s } } } }";
    let web = config::listener("web", &[chain(&http("web", &format!("{tracing}{}", routes(&all_to("a")))), "")], "");
    let clusters = [cluster("a", &[upstream.port()]), http2_cluster("collector", &[collector.port()])];
    let quick = "layered_runtime: { layers: [{ name: quick, static_layer: { \
                 tracing.opentelemetry.min_flush_spans: 1 } }] }\n";
    let proxy = Proxy::start(&(bootstrap(&[web], &clusters) + quick)).await;
    let web = proxy.listener("web").await;
    // Nothing is kept before somebody asks for the form that has examples. The span comes when all of it is over.
    h1::get(web, "/").await;
    collector.next().await;
    assert!(!proxy.admin("/stats?format=openmetrics").await.text().contains("trace_id"));
    let prometheus = Prometheus::start(&[proxy.admin_address()], ", params: { format: [openmetrics] }").await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    let headers = [("traceparent", parent.as_str())];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for metric in ["envoy_cluster_upstream_rq_time_bucket", "envoy_http_downstream_rq_time_bucket"] {
        let path = format!("query_exemplars?start={}&end={}&", now - 3600, now + 3600);
        eventually("an example", async || {
            let mut client = h1::Client::connect(web).await;
            assert_eq!(client.request("GET", "/", &headers, b"").await.status, 200);
            let answer = prometheus.ask(&path, metric).await?;
            let series = answer["data"].as_array().ok_or_else(|| answer.to_string())?;
            let examples = series.iter().flat_map(|one| one["exemplars"].as_array().into_iter().flatten());
            let found = examples.into_iter().any(|one| one["labels"]["trace_id"] == trace);
            if found { Ok(()) } else { Err(answer.to_string()) }
        })
        .await;
    }
    // It is a span that was sent.
    let shown = proxy.admin("/stats?format=openmetrics&filter=downstream_rq_time").await.text();
    let span = shown.split("span_id=\"").nth(1).unwrap_or_else(|| panic!("{shown}"))[..16].to_owned();
    loop {
        if collector.next().await.id == span {
            break;
        }
    }
}
