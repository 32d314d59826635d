//! Prometheus itself scrapes the admin port, and answers what the public dashboards for Envoy ask it; the same with Envoy
//! behind it shows that the questions are good ones.
//!
//! Needs `prometheus` and `envoy`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_tests::collector::Collector;
use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster, http, http2_cluster, routes};
use outrigger_tests::{Proxy, Settings, Upstream, eventually, h1, proxy, within};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

struct Prometheus {
    address: SocketAddr,
    _directory: tempfile::TempDir,
    _process: Child,
}

impl Prometheus {
    /// One that scrapes `target`, each second.
    async fn start(target: SocketAddr, parameters: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("prometheus.yaml");
        let text = format!(
            "global: {{ scrape_interval: 1s }}\nscrape_configs: [{{ job_name: proxy, metrics_path: /stats/prometheus{parameters}, \
             static_configs: [{{ targets: ['{target}'] }}] }}]\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut process = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .args(["--web.listen-address=127.0.0.1:0", "--enable-feature=exemplar-storage"])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("this test needs `prometheus`: {error}"));
        let mut lines = BufReader::new(process.stderr.take().expect("a pipe")).lines();
        let address = within("Prometheus listens", async {
            while let Some(line) = lines.next_line().await.expect("text") {
                if line.contains("Listening on")
                    && let Some((_, address)) = line.split_once("address=")
                {
                    return address.trim_matches('"').parse().expect("an address");
                }
            }
            panic!("Prometheus has ended")
        })
        .await;
        // Nobody waits for it to read its log.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { address, _directory: directory, _process: process }
    }

    async fn ask(&self, path: &str, query: &str) -> Result<Value, String> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let mut client = h1::Client::try_connect(self.address).await.map_err(|error| error.to_string())?;
        let response = client.get(&format!("/api/v1/{path}query={encoded}")).await;
        serde_json::from_slice(&response.body).map_err(|error| format!("{error}: {}", response.text()))
    }

    /// The values of a query, once there are some and all of them are numbers.
    async fn values(&self, query: &str, mut meanwhile: impl AsyncFnMut()) -> Vec<f64> {
        eventually(query, async || {
            meanwhile().await;
            let answer = self.ask("query?", query).await?;
            let series = answer["data"]["result"].as_array().ok_or_else(|| answer.to_string())?;
            let values: Vec<f64> = series.iter().filter_map(|one| one["value"][1].as_str()?.parse().ok()).collect();
            let good = !values.is_empty() && values.iter().all(|value| value.is_finite());
            if good { Ok(values) } else { Err(answer.to_string()) }
        })
        .await
    }
}

/// What dashboards ask for, in the form they ask it.
const QUERIES: [&str; 16] = [
    "sum(envoy_server_live)",
    "avg(envoy_server_uptime)",
    "sum(envoy_server_memory_allocated)",
    "sum(envoy_server_memory_heap_size)",
    "sum(envoy_server_total_connections)",
    "sum(envoy_cluster_membership_healthy) - sum(envoy_cluster_membership_total)",
    "sum(envoy_cluster_upstream_cx_active)",
    "sum(rate(envoy_cluster_upstream_rq_total[1m])) by (envoy_cluster_name)",
    "sum(rate(envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"2\"}[1m]))",
    "sum(rate(envoy_cluster_upstream_rq{envoy_response_code=~\"2..\"}[1m])) / sum(rate(envoy_cluster_upstream_rq[1m]))",
    "histogram_quantile(0.95, sum(rate(envoy_cluster_upstream_rq_time_bucket[1m])) by (le, envoy_cluster_name))",
    "histogram_quantile(0.5, sum(rate(envoy_http_downstream_rq_time_bucket{envoy_http_conn_manager_prefix=\"web\"}[1m])) by (le))",
    "sum(rate(envoy_cluster_upstream_cx_tx_bytes_total[1m])) + sum(rate(envoy_cluster_upstream_cx_rx_bytes_total[1m]))",
    "sum(envoy_http_downstream_rq_xx{envoy_http_conn_manager_prefix=\"web\", envoy_response_code_class=\"2\"})",
    "sum(envoy_http_downstream_cx_active) + sum(envoy_listener_downstream_cx_active)",
    "sum(envoy_cluster_circuit_breakers_default_rq_open) + max(envoy_cluster_manager_active_clusters)",
];

async fn answers(program: PathBuf) {
    let upstream = Upstream::start("a").await;
    let web = config::listener("web", &[chain(&http("web", &routes(&all_to("a"))), "")], "");
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[web], &[cluster("a", &[upstream.port()])]), settings).await;
    let web = proxy.listener("web").await;
    let prometheus = Prometheus::start(proxy.admin_address(), "").await;
    for query in QUERIES {
        let values = prometheus.values(query, async || assert_eq!(h1::get(web, "/").await.status, 200)).await;
        if query.contains("membership") {
            assert_eq!(values, [0.0], "{query}");
        }
    }
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
         grpc_service: { envoy_grpc: { cluster_name: collector }, timeout: 1s } } } }";
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
    let prometheus = Prometheus::start(proxy.admin_address(), ", params: { format: [openmetrics] }").await;
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
