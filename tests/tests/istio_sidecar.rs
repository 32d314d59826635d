//! Two sidecars of a mesh back to back: the listeners and clusters that Istio makes, in front of a client and of a server.

use outrigger_tests::certificates::{self, Authority};
use outrigger_tests::config::{access_log_of, listener, tcp};
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{Proxy, Upstream, h1, h2c, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const EXCHANGE: &str = "{ name: istio.metadata_exchange, typed_config: { \
    '@type': type.googleapis.com/udpa.type.v1.TypedStruct, \
    type_url: type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange, \
    value: { enable_discovery: true, protocol: istio-peer-exchange } } }";
const STATS: &str = "{ name: istio.stats, typed_config: { '@type': type.googleapis.com/stats.PluginConfig } }";
const ALPN: &str = "{ name: istio.alpn, typed_config: { \
    '@type': type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig, alpn_override: [\
    { alpn_override: [istio-http/1.0, istio, http/1.0] }, \
    { upstream_protocol: HTTP11, alpn_override: [istio-http/1.1, istio, http/1.1] }, \
    { upstream_protocol: HTTP2, alpn_override: [istio-h2, istio, h2] }] } }";
const ROUTER: &str = "{ name: envoy.filters.http.router, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }";
/// Follows the client's version of HTTP.
const USE_DOWNSTREAM: &str = "typed_extension_protocol_options: { \
    envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \
    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
    use_downstream_protocol_config: { http_protocol_options: {}, http2_protocol_options: {} } } }";
const INSPECTORS: &str = ", listener_filters_timeout: 0s, continue_on_listener_filters_timeout: true, listener_filters: [\
    { name: envoy.filters.listener.tls_inspector, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } }, \
    { name: envoy.filters.listener.http_inspector, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector } }]";
/// `x-envoy-peer-metadata` of a workload that only has a name: {"NAME": "a"}.
const SOMEBODY: &str = "CgsKBE5BTUUSAxoBYQ==";
/// The first bytes of what each side says of itself.
const MAGIC: [u8; 4] = [0x3D, 0x23, 0x04, 0x67];

fn peer_metadata(value: &str) -> String {
    format!(
        "{{ name: istio.metadata_exchange, typed_config: {{ '@type': type.googleapis.com/udpa.type.v1.TypedStruct, \
         type_url: type.googleapis.com/io.istio.http.peer_metadata.Config, value: {{ {value} }} }} }}"
    )
}

/// A connection manager with these filters and everything routed to a cluster.
fn http(cluster: &str, filters: &[&str], more: &str) -> String {
    format!(
        "{{ name: http, typed_config: {{ '@type': \
         type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: '{cluster};', http_filters: [{}, {STATS}, {ROUTER}], route_config: {{ name: r, \
         validate_clusters: false, virtual_hosts: [{{ name: all, domains: ['*'], routes: [\
         {{ match: {{ prefix: / }}, route: {{ cluster: '{cluster}', timeout: 0s }} }}] }}] }}{more} }} }}",
        filters.join(", ")
    )
}

fn node(name: &str) -> String {
    format!(
        "node: {{ id: 'sidecar~10.0.0.1~{name}.ns~ns.svc.cluster.local', cluster: {name}.ns, \
         metadata: {{ NAME: {name}-1, NAMESPACE: ns, WORKLOAD_NAME: {name}, LABELS: {{ app: {name} }} }} }}"
    )
}

fn bootstrap(name: &str, listeners: &[String], clusters: &[String]) -> String {
    format!(
        "{}\nstatic_resources: {{ listeners: [{}], clusters: [{}] }}\n",
        node(name),
        listeners.join(", "),
        clusters.join(", ")
    )
}

fn local_cluster(name: &str, port: u16) -> String {
    format!(
        "{{ name: '{name}', type: STATIC, {USE_DOWNSTREAM}, load_assignment: {{ cluster_name: '{name}', endpoints: [\
         {{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}] }}] }} }}"
    )
}

/// The sidecar of the server: a port whose protocol nobody knows, with and without mutual TLS.
async fn server_side(authority: &Authority, http_port: u16, tcp_port: u16) -> Proxy {
    let directory = directory(authority, "server");
    let tls = |alpn: &str| {
        format!(
            ", transport_socket: {{ name: tls, typed_config: {{ \
             '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
             require_client_certificate: true, common_tls_context: {{ alpn_protocols: [{alpn}], \
             validation_context: {{ trusted_ca: {{ filename: $dir/ca.pem }}, \
             match_subject_alt_names: [{{ prefix: 'spiffe://cluster.local/' }}] }}, \
             tls_certificates: [{{ certificate_chain: {{ filename: $dir/server.crt }}, \
             private_key: {{ filename: $dir/server.key }} }}] }} }} }}"
        )
    };
    let peers = peer_metadata(
        "downstream_discovery: [{ istio_headers: {} }, { workload_discovery: {} }], \
         downstream_propagation: [{ istio_headers: {} }], shared_with_upstream: true",
    );
    let log = access_log_of("http.log", "%FILTER_CHAIN_NAME% %PROTOCOL% %FILTER_STATE(downstream_peer:PLAIN)%");
    let http = http("inbound|80||", &[&peers], &log);
    let tcp = tcp("'inbound|90||'");
    let chain = |name: &str, matches: &str, filters: &[&str], more: &str| {
        format!("{{ name: {name}, filter_chain_match: {{ {matches} }}, filters: [{}]{more} }}", filters.join(", "))
    };
    let chains = [
        chain(
            "http-tls",
            "transport_protocol: tls, application_protocols: [istio-http/1.0, istio-http/1.1, istio-h2]",
            &[EXCHANGE, &http],
            &tls("h2, http/1.1"),
        ),
        chain(
            "http-raw",
            "transport_protocol: raw_buffer, application_protocols: [http/1.1, h2c]",
            &[EXCHANGE, &http],
            "",
        ),
        chain(
            "tcp-tls",
            "transport_protocol: tls, application_protocols: [istio-peer-exchange, istio]",
            &[EXCHANGE, STATS, &tcp],
            &tls("istio-peer-exchange, h2, http/1.1"),
        ),
        chain("tcp-raw", "transport_protocol: raw_buffer", &[EXCHANGE, STATS, &tcp], ""),
    ];
    let clusters = [local_cluster("inbound|80||", http_port), local_cluster("inbound|90||", tcp_port)];
    let text = bootstrap("server", &[listener("in", &chains, INSPECTORS)], &clusters);
    Proxy::start_in(directory, &text, Default::default()).await
}

/// The sidecar of the client. `hints` are those of the cluster's metadata.
async fn client_side(authority: &Authority, port: u16, hints: &str) -> Proxy {
    let directory = directory(authority, "client");
    let cluster = format!(
        "{{ name: 'outbound|80||b', type: STATIC, {USE_DOWNSTREAM}, filters: [{EXCHANGE}], \
         metadata: {{ filter_metadata: {{ istio: {{ {hints} }} }} }}, transport_socket_matches: [\
         {{ name: tlsMode-istio, match: {{ tlsMode: istio }}, transport_socket: {{ name: tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
         sni: outbound_.80_._.b, common_tls_context: {{ alpn_protocols: [istio-peer-exchange, istio], \
         validation_context: {{ trusted_ca: {{ filename: $dir/ca.pem }}, \
         match_subject_alt_names: [{{ exact: 'spiffe://cluster.local/ns/ns/sa/server' }}] }}, \
         tls_certificates: [{{ certificate_chain: {{ filename: $dir/client.crt }}, \
         private_key: {{ filename: $dir/client.key }} }}] }} }} }} }}, \
         {{ name: tlsMode-disabled, match: {{}}, transport_socket: {{ name: raw, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer }} }} }}], \
         load_assignment: {{ cluster_name: b, endpoints: [{{ lb_endpoints: [{{ \
         endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}, \
         metadata: {{ filter_metadata: {{ envoy.transport_socket_match: {{ tlsMode: istio }} }} }} }}] }}] }} }}"
    );
    let peers = peer_metadata(
        "upstream_discovery: [{ istio_headers: {} }, { workload_discovery: {} }], \
         upstream_propagation: [{ istio_headers: { skip_external_clusters: true } }]",
    );
    let log = access_log_of("http.log", "%FILTER_STATE(upstream_peer:PLAIN)%");
    let web = format!("{{ filters: [{}] }}", http("outbound|80||b", &[&peers, ALPN], &log));
    let raw = format!("{{ filters: [{STATS}, {}] }}", tcp("'outbound|80||b'"));
    let listeners = [listener("web", &[web], ""), listener("tcp", &[raw], "")];
    Proxy::start_in(directory, &bootstrap("client", &listeners, &[cluster]), Default::default()).await
}

fn directory(authority: &Authority, name: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
    identity(authority, name).write(directory.path(), name);
    directory
}

fn identity(authority: &Authority, name: &str) -> certificates::Identity {
    authority.issue_workload(&format!("spiffe://cluster.local/ns/ns/sa/{name}"), &["outbound_.80_._.b"], name)
}

#[tokio::test]
async fn requests_reach_the_http_chain_and_tell_who_sent_them() {
    let authority = Authority::new();
    let app = Upstream::start("app").await;
    let server = server_side(&authority, app.port(), app.port()).await;
    let client = client_side(&authority, server.listener("in").await.port(), "").await;
    let web = client.listener("web").await;

    let mut h1 = h1::Client::connect(web).await;
    let h2 = h2c::Client::connect(web).await;
    for answer in [h1.get("/").await, h2.get("/").await, h1.get("/").await] {
        assert_eq!((answer.status, answer.served_by()), (200, "app".to_owned()));
        for header in ["x-envoy-peer-metadata", "x-envoy-peer-metadata-id"] {
            assert_eq!(answer.upstream_header(header), None, "the application sees {header}");
            assert_eq!(answer.header(header), None, "the client sees {header}");
        }
    }
    let lines = server.lines("http.log", 3).await;
    for (line, version) in lines.iter().zip(["HTTP/1.1", "HTTP/2", "HTTP/1.1"]) {
        assert!(line.starts_with(&format!("http-tls {version} ")), "{line}");
        assert!(line.contains("client-1"), "{line}");
    }
    assert!(client.lines("http.log", 1).await[0].contains("server-1"));
    // One connection for each offer, and none of them began with anything but HTTP.
    client.stat_is("cluster.outbound|80||b.upstream_cx_total", 2).await;
    client.stat_is("metadata_exchange.alpn_protocol_found", 0).await;
}

#[tokio::test]
async fn a_cluster_may_keep_its_own_offer() {
    let authority = Authority::new();
    let app = Upstream::start("app").await;
    let server = server_side(&authority, app.port(), app.port()).await;
    let port = server.listener("in").await.port();
    let client = client_side(&authority, port, "alpn_override: 'false', external: true").await;
    let answer = h1::get(client.listener("web").await, "/").await;
    // The server takes it for TCP, and who sent it is told before the request instead of in it.
    assert_eq!(answer.served_by(), "app");
    assert_eq!(answer.upstream_header("x-envoy-peer-metadata"), None);
    server.stat_is("metadata_exchange.metadata_added", 1).await;
    client.stat_is("metadata_exchange.metadata_added", 1).await;
}

#[tokio::test]
async fn tcp_carries_nothing_but_the_application_s_bytes() {
    for greets in [false, true] {
        let authority = Authority::new();
        let conduct = if greets { Conduct::Greet(b"220 hello".to_vec()) } else { Conduct::Echo };
        let peer = Peer::start(conduct).await;
        let server = server_side(&authority, peer.port(), peer.port()).await;
        let client = client_side(&authority, server.listener("in").await.port(), "").await;
        let mut stream = within("connecting", TcpStream::connect(client.listener("tcp").await)).await.unwrap();
        if !greets {
            stream.write_all(b"220 hello").await.unwrap();
        }
        let mut answer = [0; 9];
        within("the answer", stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"220 hello");
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        within("the end", stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"");
        for proxy in [&client, &server] {
            proxy.stat_is("metadata_exchange.alpn_protocol_found", 1).await;
            proxy.stat_is("metadata_exchange.initial_header_not_found", 0).await;
        }
    }
}

#[tokio::test]
async fn a_peer_that_does_not_introduce_itself_is_served_too() {
    let authority = Authority::new();
    let peer = Peer::start(Conduct::Echo).await;
    let server = server_side(&authority, peer.port(), peer.port()).await;
    let config = authority.client(&["istio-peer-exchange", "istio"], Some(&identity(&authority, "somebody")));
    let mut stream = certificates::connect(server.listener("in").await, "outbound_.80_._.b", config).await.unwrap();
    stream.write_all(b"only bytes of mine").await.unwrap();
    let mut head = [0; 8];
    within("the preamble", stream.read_exact(&mut head)).await.unwrap();
    assert_eq!(head[..4], MAGIC);
    let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let mut words = vec![0; length as usize];
    within("its words", stream.read_exact(&mut words)).await.unwrap();
    let text = String::from_utf8_lossy(&words);
    assert!(text.contains("google.protobuf.Struct") && text.contains("server-1"), "{text}");
    let mut echo = [0; 18];
    within("the echo", stream.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, b"only bytes of mine");
    server.wait_stat("metadata_exchange.initial_header_not_found", |count| count == 1).await;
}

#[tokio::test]
async fn only_those_who_introduce_themselves_hear_who_answers() {
    let authority = Authority::new();
    let app = Upstream::start("app").await;
    let server = server_side(&authority, app.port(), app.port()).await;
    let mut client = h1::Client::connect(server.listener("in").await).await;
    let answer = client.get("/").await;
    assert_eq!((answer.status, answer.header("x-envoy-peer-metadata")), (200, None));
    let answer = client.request("GET", "/", &[("x-envoy-peer-metadata", SOMEBODY)], b"").await;
    assert!(answer.header("x-envoy-peer-metadata").is_some());
    assert_eq!(answer.header("x-envoy-peer-metadata-id"), None);
    // What cannot be read is taken out as well.
    let answer =
        client.request("GET", "/", &[("x-envoy-peer-metadata", "%"), ("x-envoy-peer-metadata-id", "i")], b"").await;
    assert_eq!(answer.upstream_header("x-envoy-peer-metadata"), None);
    assert_eq!(answer.header("x-envoy-peer-metadata-id"), Some("sidecar~10.0.0.1~server.ns~ns.svc.cluster.local"));
    let lines = server.lines("http.log", 3).await;
    assert_eq!(lines, ["http-raw HTTP/1.1 -", r#"http-raw HTTP/1.1 {"NAME":"a"}"#, "http-raw HTTP/1.1 -"]);
}
