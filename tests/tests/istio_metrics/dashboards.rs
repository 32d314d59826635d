//! What Istio's dashboards (mesh, service, workload, performance) and Kiali's graph ask Prometheus, in the form they ask it,
//! while requests of all kinds are under way: each question has an answer above zero.

use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{LOOK_AGAIN, Prometheus, Upstream, h1, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::sidecars::Sidecars;

const QUANTILES: [&str; 4] = ["0.50", "0.90", "0.95", "0.99"];
const MUTUAL: &str = r#"connection_security_policy="mutual_tls""#;
const NOT_MUTUAL: &str = r#"connection_security_policy!="mutual_tls""#;
const OF_SERVICE: &str = r#"destination_service="b.ns.svc.cluster.local""#;
const OF_SERVER: &str = r#"destination_workload=~"server", destination_workload_namespace=~"ns""#;

/// The change of a counter, as dashboards ask for it.
fn rate(metric: &str, labels: &str) -> String {
    format!("irate({metric}{{{labels}}}[1m])")
}

fn latency(quantile: &str, labels: &str, by: &str) -> String {
    let of = |unit: &str| {
        let buckets = rate(&format!("istio_request_duration_{unit}_bucket"), labels);
        format!("histogram_quantile({quantile}, sum({buckets}) by ({by}le))")
    };
    // Meshes of long ago have counted in seconds.
    format!("({} / 1000) or {}", of("milliseconds"), of("seconds"))
}

fn success(labels: &str, by: &str) -> String {
    let good = rate("istio_requests_total", &format!("{labels}, response_code!~\"5.*\""));
    format!("sum({good}){by} / sum({}){by}", rate("istio_requests_total", labels))
}

/// The graphs about requests that have `labels`, by the labels `by`, each with a comma.
fn requests(labels: &str, by: &str) -> Vec<String> {
    let grouped = match by.trim_end_matches([',', ' ']) {
        "" => String::new(),
        by => format!(" by ({by})"),
    };
    let all = rate("istio_requests_total", labels);
    let mut queries = vec![format!("round(sum({all}) by ({by}response_code), 0.001)"), success(labels, &grouped)];
    for quantile in QUANTILES {
        queries.push(latency(quantile, labels, by));
        for metric in ["istio_request_bytes_bucket", "istio_response_bytes_bucket"] {
            queries.push(format!("histogram_quantile({quantile}, sum({}) by ({by}le))", rate(metric, labels)));
        }
    }
    queries
}

/// The graphs about bytes of TCP connections.
fn bytes(labels: &str, by: &str) -> Vec<String> {
    let by = by.trim_end_matches([',', ' ']);
    let query = |metric: &str| format!("round(sum({}) by ({by}), 0.001)", rate(metric, labels));
    vec![query("istio_tcp_received_bytes_total"), query("istio_tcp_sent_bytes_total")]
}

fn both(labels: &str, by: &str) -> Vec<String> {
    [requests(labels, by), bytes(labels, by)].concat()
}

fn mesh() -> Vec<String> {
    let from = r#"reporter=~"source|waypoint""#;
    let all = format!("rate(istio_requests_total{{{from}}}[1m])");
    let coded = |code: &str| format!("rate(istio_requests_total{{{from},response_code{code}}}[1m])");
    let joined = |what: &str| {
        format!(
            "label_join({what}, \"destination_workload_var\", \".\", \"destination_workload\", \
             \"destination_workload_namespace\")"
        )
    };
    let by = "by (destination_workload,destination_workload_namespace,destination_service)";
    let by_workload = "by (destination_workload,destination_workload_namespace)";
    let mut queries = vec![
        format!("round(sum ({all}), 0.01)"),
        format!("sum ({}) / sum ({all})", coded("!~\"5..\"")),
        format!("round(sum ({}), 0.01)or vector(0)", coded("=~\"4..\"")),
        format!("round(sum ({}), 0.01)or vector(0)", coded("=~\"5..\"")),
        joined(&format!("sum {by} ({all})")),
        joined(&format!("sum {by_workload} ({})/sum {by_workload} ({all})", coded("!~\"5..\""))),
        joined(&format!("sum {by} (rate(istio_tcp_received_bytes_total{{{from}}}[1m]))")),
        joined(&format!("sum {by} (rate(istio_tcp_sent_bytes_total{{{from}}}[1m]))")),
        "sum by (component,tag) (istio_build)".to_owned(),
    ];
    for quantile in ["0.5", "0.9", "0.99"] {
        let buckets = format!("rate(istio_request_duration_milliseconds_bucket{{{from}}}[1m])");
        queries.push(joined(&format!(
            "histogram_quantile({quantile}, sum by (le,destination_workload,destination_workload_namespace) ({buckets}))"
        )));
    }
    queries
}

/// Of one service: how it is seen, by those who call it, and by the workloads behind it.
fn service() -> Vec<String> {
    let clients = "source_workload, source_workload_namespace, ";
    let workloads = "destination_workload, destination_workload_namespace, ";
    let mut queries = Vec::new();
    for side in ["source", "destination"] {
        let labels = format!("reporter=~\"{side}\", {OF_SERVICE}");
        queries.extend(requests(&labels, ""));
        for metric in ["istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total"] {
            queries.push(format!("sum({})", rate(metric, &labels)));
        }
        queries.push(format!(
            "sum({}) / (sum({}) or on () vector(1))",
            rate("istio_requests_total", &format!("{labels},response_code!~\"5.*\"")),
            rate("istio_requests_total", &labels)
        ));
    }
    for (side, policy) in [("destination", MUTUAL), ("destination", NOT_MUTUAL), ("source", NOT_MUTUAL)] {
        let any = r#"source_workload=~".*", source_workload_namespace=~".*""#;
        queries.extend(both(&format!("reporter=~\"{side}\", {policy}, {OF_SERVICE}, {any}"), clients));
    }
    for policy in [MUTUAL, NOT_MUTUAL] {
        queries.extend(both(&format!("reporter=\"destination\", {policy}, {OF_SERVICE}, {OF_SERVER}"), workloads));
    }
    for (of, by) in [
        ("", "destination_service"),
        (OF_SERVICE, "source_cluster"),
        (OF_SERVICE, "source_workload_namespace"),
        (OF_SERVICE, "source_workload"),
        (OF_SERVICE, "destination_cluster"),
        (OF_SERVICE, "destination_workload_namespace"),
        (OF_SERVICE, "destination_workload"),
    ] {
        queries.push(format!(
            "sum(istio_requests_total{{{of}}}) by ({by}) or sum(istio_tcp_sent_bytes_total{{{of}}}) by ({by})"
        ));
    }
    queries
}

/// Of one workload: what comes in, and where it goes.
fn workload() -> Vec<String> {
    let mut queries = requests(&format!("reporter=~\"destination\", {OF_SERVER}"), "");
    for of in [OF_SERVER, r#"source_workload_namespace=~"ns", source_workload=~"client""#] {
        let labels = format!("reporter=~\"source\", {of}");
        queries.push(format!(
            "sum({}) + sum({})",
            rate("istio_tcp_sent_bytes_total", &labels),
            rate("istio_tcp_received_bytes_total", &labels)
        ));
    }
    for policy in [MUTUAL, NOT_MUTUAL] {
        let any = r#"source_workload=~".*", source_workload_namespace=~".*""#;
        let labels = format!("reporter=~\"destination\", {policy}, {OF_SERVER}, {any}");
        queries.extend(both(&labels, "source_workload, source_workload_namespace, "));
    }
    // Who sends does not say by which policy it does.
    let out =
        r#"reporter="source", source_workload_namespace=~"ns", source_workload=~"client", destination_service=~".*""#;
    queries.extend(both(&format!("{NOT_MUTUAL}, {out}"), "destination_service, "));
    for principal in [r#"destination_principal=~"spiffe.*""#, r#"destination_principal!~"spiffe.*""#] {
        queries.push(format!(
            "round(sum({}) by (destination_service, response_code), 0.001)",
            rate("istio_requests_total", &format!("{principal}, {out}"))
        ));
    }
    queries
}

fn performance() -> Vec<String> {
    let from = r#"source_workload_namespace!="istio-system", reporter="source""#;
    let sent = rate("istio_response_bytes_sum", from);
    vec![
        format!(
            "(round(sum({}), 0.001)/1000)",
            rate("istio_requests_total", r#"source_workload="client", reporter="source""#)
        ),
        "(round(sum(irate(istio_requests_total[1m])), 0.001)/1000)".to_owned(),
        format!("sum({})", rate("istio_response_bytes_sum", r#"source_workload="client", reporter="source""#)),
        format!("sum({sent}) + sum({})", rate("istio_request_bytes_sum", from)),
        "sum(istio_build) by (component, tag)".to_owned(),
        "sum(envoy_cluster_upstream_cx_active)".to_owned(),
    ]
}

/// The edges of a graph.
fn kiali() -> Vec<String> {
    let ends = "source_cluster,source_workload_namespace,source_workload,source_canonical_service,\
                source_canonical_revision,destination_cluster,destination_service_namespace,destination_service,\
                destination_service_name,destination_workload_namespace,destination_workload,\
                destination_canonical_service,destination_canonical_revision";
    let mut queries = Vec::new();
    for side in ["source", "destination"] {
        let labels = format!("reporter=~\"{side}\",destination_service_namespace=\"ns\"");
        queries.push(format!(
            "sum(rate(istio_requests_total{{{labels}}}[60s])) by ({ends},request_protocol,response_code,\
             grpc_response_status,response_flags) > 0"
        ));
        for metric in ["sent_bytes", "received_bytes", "connections_opened", "connections_closed"] {
            queries
                .push(format!("sum(rate(istio_tcp_{metric}_total{{{labels}}}[60s])) by ({ends},response_flags) > 0"));
        }
        queries.push(format!(
            "histogram_quantile(0.95,sum(rate(istio_request_duration_milliseconds_bucket{{{labels}}}[60s])) by (le,{ends})) > 0"
        ));
        queries.push(format!(
            "sum(rate(istio_request_duration_milliseconds_sum{{{labels}}}[60s])) by ({ends}) + \
             sum(rate(istio_request_duration_milliseconds_count{{{labels}}}[60s])) by ({ends}) > 0"
        ));
    }
    queries
}

/// Bytes there and back by TCP.
async fn exchange(address: std::net::SocketAddr) {
    let mut stream = within("connecting", TcpStream::connect(address)).await.unwrap();
    stream.write_all(b"123456789").await.unwrap();
    within("the answer", stream.read_exact(&mut [0; 9])).await.unwrap();
}

/// Requests and connections of all kinds, without an end.
async fn traffic(mesh: &Sidecars) {
    let mut by_mesh = h1::Client::connect(mesh.web().await).await;
    let mut plain = h1::Client::connect(mesh.server.listener("in").await).await;
    let tcp = [mesh.client.listener("tcp").await, mesh.server.listener("in-tcp").await];
    loop {
        for (path, orders, status) in
            [("/", "status=200", 200), ("/", "status=404", 404), ("/plain", "status=200", 200), ("/down", "", 503)]
        {
            let answer = by_mesh.request("GET", path, &[("x-reply", orders)], b"").await;
            assert_eq!(answer.status, status, "{path}");
        }
        assert_eq!(plain.get("/").await.status, 200);
        for address in tcp {
            exchange(address).await;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[tokio::test]
async fn dashboards_are_answered() {
    let (app, peer) = (Upstream::start("app").await, Peer::start(Conduct::Echo).await);
    let sidecars = Sidecars::start(app.port(), peer.port()).await;
    let targets = [sidecars.client.admin_address(), sidecars.server.admin_address()];
    let prometheus = Prometheus::start(&targets, "").await;
    let queries = [mesh(), service(), workload(), performance(), kiali()].concat();
    let some = |_: &str, values: &[f64]| values.iter().any(|value| *value > 0.0);
    tokio::select! {
        () = prometheus.answers(&queries, some, async || {}) => {}
        () = traffic(&sidecars) => {}
    }
}
