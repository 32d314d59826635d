//! Which labels series have, as the scraped text shows them.

use outrigger_tests::config::listener;
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{Proxy, Upstream, eventually, h1, h2c, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::sidecars::{Sidecars, bootstrap, cluster, http, peers, stats};

const CLIENT: &str = r#"source_workload="client",source_canonical_service="client",source_canonical_revision="v1",source_workload_namespace="ns",source_principal="spiffe://cluster.local/ns/ns/sa/client",source_app="client",source_version="v1",source_cluster="c1","#;
const SERVER: &str = r#"destination_workload="server",destination_workload_namespace="ns",destination_principal="spiffe://cluster.local/ns/ns/sa/server",destination_app="server",destination_version="v1",destination_service="b.ns.svc.cluster.local",destination_canonical_service="server",destination_canonical_revision="v1",destination_service_name="b",destination_service_namespace="ns",destination_cluster="c1""#;
/// The client without a connection to anybody, and nobody.
const CLIENT_ALONE: &str = r#"source_workload="client",source_canonical_service="client",source_canonical_revision="v1",source_workload_namespace="ns",source_principal="unknown",source_app="client",source_version="v1",source_cluster="c1","#;
const NOBODY: &str = r#"destination_workload="unknown",destination_workload_namespace="unknown",destination_principal="unknown",destination_app="unknown",destination_version="unknown","#;

/// Waits until one of the lines of Prometheus is this one.
async fn wait_line(proxy: &Proxy, line: &str) {
    eventually(line, async || {
        let text = proxy.admin("/stats/prometheus").await.text();
        let metric = line.split('{').next().unwrap();
        match text.lines().any(|shown| shown == line) {
            true => Ok(()),
            false => Err(text.lines().filter(|shown| shown.starts_with(metric)).collect::<Vec<_>>().join("\n")),
        }
    })
    .await;
}

async fn shows(proxy: &Proxy, part: &str) -> bool {
    proxy.admin("/stats/prometheus").await.text().contains(part)
}

#[tokio::test]
async fn both_sides_of_a_request_are_reported_with_all_labels() {
    let app = Upstream::start("app").await;
    let mesh = Sidecars::start(app.port(), app.port()).await;
    let mut h1 = h1::Client::connect(mesh.web().await).await;
    assert_eq!(h1.get("/").await.status, 200);
    assert_eq!(h1.get("/").await.status, 200);
    let outcome = r#"request_protocol="http",response_code="200",grpc_response_status="",response_flags="-""#;
    let source = format!(r#"reporter="source",{CLIENT}{SERVER},{outcome},connection_security_policy="unknown""#);
    let destination =
        format!(r#"reporter="destination",{CLIENT}{SERVER},{outcome},connection_security_policy="mutual_tls""#);
    for (proxy, labels) in [(&mesh.client, source), (&mesh.server, destination)] {
        wait_line(proxy, &format!("istio_requests_total{{{labels}}} 2")).await;
        for histogram in ["istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"] {
            wait_line(proxy, &format!("{histogram}_count{{{labels}}} 2")).await;
        }
        wait_line(proxy, r#"istio_build{component="proxy",tag="1.29.0"} 1"#).await;
        assert!(!shows(proxy, "istio_request_messages_total").await);
        assert!(!shows(proxy, "envoy_istio_requests").await);
    }
}

#[tokio::test]
async fn messages_and_status_of_grpc_calls_are_reported() {
    let app = Upstream::start("app").await;
    let mesh = Sidecars::start(app.port(), app.port()).await;
    let client = h2c::Client::connect(mesh.web().await).await;
    let reply = "header=content-type:application/grpc header=grpc-status:5 empty";
    let headers = [("content-type", "application/grpc"), ("x-reply", reply)];
    client.request("POST", "/s.S/M", &headers, b"\0\0\0\0\x01x\0\0\0\0\0").await;
    let outcome = r#"request_protocol="grpc",response_code="200",grpc_response_status="5",response_flags="-""#;
    for (proxy, side, policy) in [(&mesh.client, "source", "unknown"), (&mesh.server, "destination", "mutual_tls")] {
        let workloads = format!(r#"reporter="{side}",{CLIENT}{SERVER}"#);
        let policy = format!(r#"connection_security_policy="{policy}""#);
        wait_line(proxy, &format!("istio_requests_total{{{workloads},{outcome},{policy}}} 1")).await;
        wait_line(proxy, &format!("istio_request_messages_total{{{workloads}}} 2")).await;
    }
}

#[tokio::test]
async fn tcp_connections_are_reported_while_they_last_and_at_their_end() {
    let peer = Peer::start(Conduct::Echo).await;
    let mesh = Sidecars::start(peer.port(), peer.port()).await;
    let mut stream = within("connecting", TcpStream::connect(mesh.client.listener("tcp").await)).await.unwrap();
    stream.write_all(b"123456789").await.unwrap();
    let mut answer = [0; 9];
    within("the answer", stream.read_exact(&mut answer)).await.unwrap();
    let sides = [(&mesh.client, "source", "unknown"), (&mesh.server, "destination", "mutual_tls")].map(
        |(proxy, side, policy)| {
            let outcome = format!(r#"request_protocol="tcp",response_flags="-",connection_security_policy="{policy}""#);
            (proxy, format!(r#"{{reporter="{side}",{CLIENT}{SERVER},{outcome}}}"#))
        },
    );
    for (proxy, labels) in &sides {
        wait_line(proxy, &format!("istio_tcp_connections_opened_total{labels} 1")).await;
        wait_line(proxy, &format!("istio_tcp_received_bytes_total{labels} 9")).await;
        wait_line(proxy, &format!("istio_tcp_sent_bytes_total{labels} 9")).await;
        assert!(!shows(proxy, "istio_tcp_connections_closed_total").await);
    }
    drop(stream);
    for (proxy, labels) in &sides {
        wait_line(proxy, &format!("istio_tcp_connections_closed_total{labels} 1")).await;
        wait_line(proxy, &format!("istio_tcp_received_bytes_total{labels} 9")).await;
    }
}

#[tokio::test]
async fn failures_and_destinations_outside_of_the_mesh_have_names() {
    let app = Upstream::start("app").await;
    let mesh = Sidecars::start(app.port(), app.port()).await;
    let mut h1 = h1::Client::connect(mesh.web().await).await;
    for (path, status) in [("/down", 503), ("/plain", 200), ("/block", 502)] {
        let answer = h1.request("GET", path, &[("host", "h.example")], b"").await;
        assert_eq!(answer.status, status, "{path}");
    }
    for (host, name, code, flags) in [
        ("down.ns", "down", 503, "UH"),
        ("h.example", "PassthroughCluster", 200, "-"),
        ("h.example", "BlackHoleCluster", 502, "-"),
    ] {
        let line = format!(
            r#"istio_requests_total{{reporter="source",{CLIENT_ALONE}{NOBODY}destination_service="{host}",destination_canonical_service="unknown",destination_canonical_revision="latest",destination_service_name="{name}",destination_service_namespace="unknown",destination_cluster="unknown",request_protocol="http",response_code="{code}",grpc_response_status="",response_flags="{flags}",connection_security_policy="unknown"}} 1"#
        );
        wait_line(&mesh.client, &line).await;
    }
    let stream = within("connecting", TcpStream::connect(mesh.client.listener("tcp-hole").await)).await.unwrap();
    drop(stream);
    let line = format!(
        r#"istio_tcp_connections_closed_total{{reporter="source",{CLIENT_ALONE}{NOBODY}destination_service="unknown",destination_canonical_service="unknown",destination_canonical_revision="latest",destination_service_name="BlackHoleCluster",destination_service_namespace="unknown",destination_cluster="unknown",request_protocol="tcp",response_flags="UH",connection_security_policy="unknown"}} 1"#
    );
    wait_line(&mesh.client, &line).await;
}

#[tokio::test]
async fn a_client_that_says_nothing_is_unknown() {
    let app = Upstream::start("app").await;
    let mesh = Sidecars::start(app.port(), app.port()).await;
    let answer = h1::get(mesh.server.listener("in").await, "/").await;
    assert_eq!(answer.status, 200);
    let line = r#"istio_requests_total{reporter="destination",source_workload="unknown",source_canonical_service="unknown",source_canonical_revision="latest",source_workload_namespace="unknown",source_principal="unknown",source_app="unknown",source_version="unknown",source_cluster="unknown",destination_workload="server",destination_workload_namespace="ns",destination_principal="unknown",destination_app="server",destination_version="v1",destination_service="b.ns.svc.cluster.local",destination_canonical_service="server",destination_canonical_revision="v1",destination_service_name="b",destination_service_namespace="ns",destination_cluster="c1",request_protocol="http",response_code="200",grpc_response_status="",response_flags="-",connection_security_policy="none"} 1"#;
    wait_line(&mesh.server, line).await;
}

/// What Istio's agent says of stats, as far as it meets these metrics.
const AGENT: &str = "stats_config: { use_all_default_tags: false, stats_tags: [\
    { tag_name: cluster_name, regex: '^cluster(\\.(.+);)' }, { tag_name: response_code, regex: '_rq(_(\\d{3}))$' }, \
    { tag_name: cache, regex: '(cache\\.(.+?)\\.)' }, { tag_name: component, regex: '(component\\.(.+?)\\.)' }, \
    { tag_name: tag, regex: '(tag\\.(.+?);\\.)' }], stats_matcher: { inclusion_list: { patterns: [\
    { prefix: reporter= }, { prefix: listener_manager }, { prefix: server }, { prefix: istio }] } } }\n";

#[tokio::test]
async fn labels_and_metrics_are_left_out_as_configured() {
    let app = Upstream::start("app").await;
    let settings = "metrics: [{ tags_to_remove: [source_principal, destination_principal, nonsense] }, \
        { name: requests_total, tags_to_remove: [response_flags] }, { name: request_bytes, drop: true }]";
    let routes = "{ match: { prefix: / }, route: { cluster: cache.x.svc } }";
    let web = format!("{{ filters: [{}] }}", http(&[&stats(settings)], routes));
    let clusters = [cluster(
        "cache.x.svc",
        Some(app.port()),
        "metadata: { filter_metadata: { istio: { services: [{ host: cache.x.svc }] } } },",
    )];
    let text = bootstrap("client", &[listener("web", &[web], "")], &clusters);
    let proxy = Proxy::start(&(AGENT.to_owned() + &text)).await;
    assert_eq!(h1::get(proxy.listener("web").await, "/").await.status, 200);
    let workloads = r#"reporter="source",source_workload="client",source_canonical_service="client",source_canonical_revision="v1",source_workload_namespace="ns",source_app="client",source_version="v1",source_cluster="c1",destination_workload="unknown",destination_workload_namespace="unknown",destination_app="unknown",destination_version="unknown",destination_service="cache.x.svc",destination_canonical_service="unknown",destination_canonical_revision="latest",destination_service_name="cache",destination_service_namespace="unknown",destination_cluster="unknown",request_protocol="http",response_code="200",grpc_response_status="""#;
    wait_line(&proxy, &format!(r#"istio_requests_total{{{workloads},connection_security_policy="unknown"}} 1"#)).await;
    wait_line(
        &proxy,
        &format!(
            r#"istio_response_bytes_count{{{workloads},response_flags="-",connection_security_policy="unknown"}} 1"#
        ),
    )
    .await;
    assert!(!shows(&proxy, "istio_request_bytes").await);
    assert!(!shows(&proxy, "envoy_cluster_upstream").await, "the list of the agent is not regarded");
}

#[tokio::test]
async fn expressions_give_labels_and_change_the_usual() {
    let app = Upstream::start("app").await;
    let settings = "metrics: [{ name: requests_total, dimensions: { request_host: request.host, \
        source_cluster: 'node.metadata[\"NAME\"]', peer: downstream_peer.workload, \
        nobody: upstream_peer.workload, bad: '1 +' } }], definitions: [{ name: own, value: '1' }]";
    let discovery = peers("downstream_discovery: [{ istio_headers: {} }]");
    let routes = "{ match: { prefix: / }, route: { cluster: b } }";
    let web = format!("{{ filters: [{}] }}", http(&[&discovery, &stats(settings)], routes));
    let text = bootstrap(
        "server",
        &[listener("web", &[web], ", traffic_direction: INBOUND")],
        &[cluster("b", Some(app.port()), "")],
    );
    let proxy = Proxy::start(&text).await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    // {"WORKLOAD_NAME": "w"}
    let metadata = ("x-envoy-peer-metadata", "ChQKDVdPUktMT0FEX05BTUUSAxoBdw==");
    for (host, count) in [("a.example", 1), ("b.example", 1), ("a.example", 2)] {
        assert_eq!(client.request("GET", "/", &[("host", host), metadata], b"").await.status, 200);
        let line = format!(
            r#"istio_requests_total{{reporter="destination",source_workload="w",source_canonical_service="unknown",source_canonical_revision="latest",source_workload_namespace="unknown",source_principal="unknown",source_app="unknown",source_version="unknown",source_cluster="server-1",destination_workload="server",destination_workload_namespace="ns",destination_principal="unknown",destination_app="server",destination_version="v1",destination_service="{host}",destination_canonical_service="server",destination_canonical_revision="v1",destination_service_name="{host}",destination_service_namespace="ns",destination_cluster="c1",request_protocol="http",response_code="200",grpc_response_status="",response_flags="-",connection_security_policy="none",nobody="unknown",peer="w",request_host="{host}"}} {count}"#
        );
        wait_line(&proxy, &line).await;
    }
    assert!(!shows(&proxy, "istio_own").await);
    assert!(proxy.log().contains("standard metrics are emitted without the metric"), "{}", proxy.log());
}
