//! The standard metrics of a mesh, as two sidecars back to back show them: full sets of labels, with Istio's own names.

use std::net::SocketAddr;

use outrigger_tests::certificates::{self, Authority};
use outrigger_tests::config::listener;
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{Proxy, Upstream, eventually, h1, h2c, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const EXCHANGE: &str = "{ name: istio.metadata_exchange, typed_config: { \
    '@type': type.googleapis.com/udpa.type.v1.TypedStruct, \
    type_url: type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange, \
    value: { enable_discovery: true, protocol: istio-peer-exchange } } }";
const ALPN: &str = "{ name: istio.alpn, typed_config: { \
    '@type': type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig, alpn_override: [\
    { upstream_protocol: HTTP11, alpn_override: [istio-http/1.1, istio, http/1.1] }, \
    { upstream_protocol: HTTP2, alpn_override: [istio-h2, istio, h2] }] } }";
const GRPC_STATS: &str = "{ name: envoy.filters.http.grpc_stats, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig, emit_filter_state: true } }";
const ROUTER: &str = "{ name: envoy.filters.http.router, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }";
const USE_DOWNSTREAM: &str = "typed_extension_protocol_options: { \
    envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \
    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
    use_downstream_protocol_config: { http_protocol_options: {}, http2_protocol_options: {} } } }";
const INSPECTORS: &str = ", listener_filters_timeout: 0s, traffic_direction: INBOUND, listener_filters: [\
    { name: envoy.filters.listener.tls_inspector, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } }]";
/// The service of the cluster that leads to the server.
const SERVICE: &str = "metadata: { filter_metadata: { istio: { services: [\
    { host: b.ns.svc.cluster.local, name: b, namespace: ns }] } } }";
const CLIENT: &str = r#"source_workload="client",source_canonical_service="client",source_canonical_revision="v1",source_workload_namespace="ns",source_principal="spiffe://cluster.local/ns/ns/sa/client",source_app="client",source_version="v1",source_cluster="c1","#;
const SERVER: &str = r#"destination_workload="server",destination_workload_namespace="ns",destination_principal="spiffe://cluster.local/ns/ns/sa/server",destination_app="server",destination_version="v1",destination_service="b.ns.svc.cluster.local",destination_canonical_service="server",destination_canonical_revision="v1",destination_service_name="b",destination_service_namespace="ns",destination_cluster="c1""#;
/// The client without a connection to anybody, and nobody.
const CLIENT_ALONE: &str = r#"source_workload="client",source_canonical_service="client",source_canonical_revision="v1",source_workload_namespace="ns",source_principal="unknown",source_app="client",source_version="v1",source_cluster="c1","#;
const NOBODY: &str = r#"destination_workload="unknown",destination_workload_namespace="unknown",destination_principal="unknown",destination_app="unknown",destination_version="unknown","#;

fn stats(settings: &str) -> String {
    format!("{{ name: istio.stats, typed_config: {{ '@type': type.googleapis.com/stats.PluginConfig, {settings} }} }}")
}

fn peers(value: &str) -> String {
    format!(
        "{{ name: istio.metadata_exchange, typed_config: {{ '@type': type.googleapis.com/udpa.type.v1.TypedStruct, \
         type_url: type.googleapis.com/io.istio.http.peer_metadata.Config, value: {{ {value} }} }} }}"
    )
}

fn http(filters: &[&str], routes: &str) -> String {
    format!(
        "{{ name: http, typed_config: {{ '@type': \
         type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: 'web;', http_filters: [{}, {GRPC_STATS}, {ROUTER}], route_config: {{ name: r, \
         validate_clusters: false, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{routes}] }}] }} }} }}",
        filters.join(", ")
    )
}

fn tcp(cluster: &str) -> String {
    format!(
        "{{ name: tcp, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, \
         stat_prefix: 'tcp;', cluster: '{cluster}' }} }}"
    )
}

fn bootstrap(name: &str, listeners: &[String], clusters: &[String]) -> String {
    format!(
        "node: {{ id: 'sidecar~10.0.0.1~{name}.ns~ns.svc.cluster.local', cluster: {name}.ns, \
         metadata: {{ NAME: {name}-1, NAMESPACE: ns, WORKLOAD_NAME: {name}, CLUSTER_ID: c1, ISTIO_VERSION: 1.29.0, \
         LABELS: {{ app: {name}, version: v1 }} }} }}\n\
         static_resources: {{ listeners: [{}], clusters: [{}] }}\n",
        listeners.join(", "),
        clusters.join(", ")
    )
}

fn cluster(name: &str, port: Option<u16>, more: &str) -> String {
    let endpoints = port.map_or_else(String::new, |port| {
        format!("{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}")
    });
    format!(
        "{{ name: '{name}', type: STATIC, {USE_DOWNSTREAM}, {more} load_assignment: {{ cluster_name: '{name}', \
         endpoints: [{{ lb_endpoints: [{endpoints}] }}] }} }}"
    )
}

fn directory(authority: &Authority, name: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
    let identity = authority.issue_workload(&format!("spiffe://cluster.local/ns/ns/sa/{name}"), &["b"], name);
    let _: &certificates::Identity = &identity;
    identity.write(directory.path(), name);
    directory
}

/// The sidecar of the server, with mutual TLS for HTTP and TCP.
async fn server_side(authority: &Authority, http_port: u16, tcp_port: u16) -> Proxy {
    let tls = |alpn: &str| {
        format!(
            "transport_socket: {{ name: tls, typed_config: {{ \
             '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
             require_client_certificate: true, common_tls_context: {{ alpn_protocols: [{alpn}], \
             validation_context: {{ trusted_ca: {{ filename: $dir/ca.pem }} }}, \
             tls_certificates: [{{ certificate_chain: {{ filename: $dir/server.crt }}, \
             private_key: {{ filename: $dir/server.key }} }}] }} }} }}"
        )
    };
    let peers = peers("downstream_discovery: [{ istio_headers: {} }], downstream_propagation: [{ istio_headers: {} }]");
    let (http_stats, tcp_stats) = (stats("disable_host_header_fallback: true"), stats("tcp_reporting_duration: 0.1s"));
    let http =
        http(&[&peers, &http_stats], "{ match: { prefix: / }, route: { cluster: 'inbound|80||', timeout: 0s } }");
    let chains = [
        format!(
            "{{ filter_chain_match: {{ transport_protocol: tls, application_protocols: [istio-http/1.1, istio-h2] }}, \
             filters: [{EXCHANGE}, {http}], {} }}",
            tls("h2, http/1.1")
        ),
        format!(
            "{{ filter_chain_match: {{ transport_protocol: tls, application_protocols: [istio-peer-exchange] }}, \
             filters: [{EXCHANGE}, {tcp_stats}, {}], {} }}",
            tcp("inbound|90||"),
            tls("istio-peer-exchange")
        ),
        format!("{{ filter_chain_match: {{ transport_protocol: raw_buffer }}, filters: [{http}] }}"),
    ];
    let clusters = [
        cluster("inbound|80||", Some(http_port), &format!("{SERVICE},")),
        cluster("inbound|90||", Some(tcp_port), &format!("{SERVICE},")),
    ];
    let text = bootstrap("server", &[listener("in", &chains, INSPECTORS)], &clusters);
    Proxy::start_in(directory(authority, "server"), &text, Default::default()).await
}

/// The sidecar of the client.
async fn client_side(authority: &Authority, server: u16, plain: u16) -> Proxy {
    let tls = format!(
        "{SERVICE}, filters: [{EXCHANGE}], transport_socket: {{ name: tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
         sni: b, common_tls_context: {{ alpn_protocols: [istio-peer-exchange, istio], \
         validation_context: {{ trusted_ca: {{ filename: $dir/ca.pem }}, \
         match_subject_alt_names: [{{ exact: 'spiffe://cluster.local/ns/ns/sa/server' }}] }}, \
         tls_certificates: [{{ certificate_chain: {{ filename: $dir/client.crt }}, \
         private_key: {{ filename: $dir/client.key }} }}] }} }} }},"
    );
    let clusters = [
        cluster("outbound|80||b", Some(server), &tls),
        cluster(
            "down",
            None,
            "metadata: { filter_metadata: { istio: { services: [{ host: down.ns, name: down }] } } },",
        ),
        cluster("PassthroughCluster", Some(plain), ""),
        cluster("BlackHoleCluster", None, ""),
    ];
    let peers = peers("upstream_discovery: [{ istio_headers: {} }], upstream_propagation: [{ istio_headers: {} }]");
    let (http_stats, tcp_stats) = (stats(""), stats("tcp_reporting_duration: 0.1s"));
    let routes = "{ match: { prefix: /down }, route: { cluster: down } }, \
        { match: { prefix: /plain }, route: { cluster: PassthroughCluster } }, \
        { name: block_all, match: { prefix: /block }, direct_response: { status: 502 } }, \
        { match: { prefix: / }, route: { cluster: 'outbound|80||b', timeout: 0s } }";
    let web = format!("{{ filters: [{}] }}", http(&[&peers, ALPN, &http_stats], routes));
    let bytes = |cluster: &str| format!("{{ filters: [{tcp_stats}, {}] }}", tcp(cluster));
    const OUTBOUND: &str = ", traffic_direction: OUTBOUND";
    let listeners = [
        listener("web", &[web], OUTBOUND),
        listener("tcp", &[bytes("outbound|80||b")], OUTBOUND),
        listener("tcp-hole", &[bytes("BlackHoleCluster")], OUTBOUND),
    ];
    Proxy::start_in(directory(authority, "client"), &bootstrap("client", &listeners, &clusters), Default::default())
        .await
}

struct Sidecars {
    server: Proxy,
    client: Proxy,
}

impl Sidecars {
    async fn start(http_port: u16, tcp_port: u16) -> Self {
        let authority = Authority::new();
        let server = server_side(&authority, http_port, tcp_port).await;
        let client = client_side(&authority, server.listener("in").await.port(), http_port).await;
        Self { server, client }
    }

    async fn web(&self) -> SocketAddr {
        self.client.listener("web").await
    }
}

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
