//! Two sidecars of a mesh, as Istio configures them: that of a client, and that of a server.

use std::net::SocketAddr;

use outrigger_tests::Proxy;
use outrigger_tests::certificates::{self, Authority};
use outrigger_tests::config::listener;

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

pub fn stats(settings: &str) -> String {
    format!("{{ name: istio.stats, typed_config: {{ '@type': type.googleapis.com/stats.PluginConfig, {settings} }} }}")
}

pub fn peers(value: &str) -> String {
    format!(
        "{{ name: istio.metadata_exchange, typed_config: {{ '@type': type.googleapis.com/udpa.type.v1.TypedStruct, \
         type_url: type.googleapis.com/io.istio.http.peer_metadata.Config, value: {{ {value} }} }} }}"
    )
}

pub fn http(filters: &[&str], routes: &str) -> String {
    format!(
        "{{ name: http, typed_config: {{ '@type': \
         type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: 'web;', http_filters: [{}, {GRPC_STATS}, {ROUTER}], route_config: {{ name: r, \
         validate_clusters: false, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{routes}] }}] }} }} }}",
        filters.join(", ")
    )
}

pub fn tcp(cluster: &str) -> String {
    format!(
        "{{ name: tcp, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, \
         stat_prefix: 'tcp;', cluster: '{cluster}' }} }}"
    )
}

pub fn bootstrap(name: &str, listeners: &[String], clusters: &[String]) -> String {
    format!(
        "node: {{ id: 'sidecar~10.0.0.1~{name}.ns~ns.svc.cluster.local', cluster: {name}.ns, \
         metadata: {{ NAME: {name}-1, NAMESPACE: ns, WORKLOAD_NAME: {name}, CLUSTER_ID: c1, ISTIO_VERSION: 1.29.0, \
         LABELS: {{ app: {name}, version: v1 }} }} }}\n\
         static_resources: {{ listeners: [{}], clusters: [{}] }}\n",
        listeners.join(", "),
        clusters.join(", ")
    )
}

pub fn cluster(name: &str, port: Option<u16>, more: &str) -> String {
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
    let plain = format!("{{ filters: [{tcp_stats}, {}] }}", tcp("inbound|90||"));
    let listeners = [listener("in", &chains, INSPECTORS), listener("in-tcp", &[plain], ", traffic_direction: INBOUND")];
    let text = bootstrap("server", &listeners, &clusters);
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

/// Two of them, back to back.
pub struct Sidecars {
    pub server: Proxy,
    pub client: Proxy,
}

impl Sidecars {
    pub async fn start(http_port: u16, tcp_port: u16) -> Self {
        let authority = Authority::new();
        let server = server_side(&authority, http_port, tcp_port).await;
        let client = client_side(&authority, server.listener("in").await.port(), http_port).await;
        Self { server, client }
    }

    /// Where HTTP goes to the other side.
    pub async fn web(&self) -> SocketAddr {
        self.client.listener("web").await
    }
}
