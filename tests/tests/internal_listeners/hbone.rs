//! Both ends of an HBONE tunnel: a connection goes into a listener inside the process that puts it into a CONNECT request
//! over mutual TLS, and what comes out at the other end goes through a listener inside that process, which knows where the
//! client wanted to go, and who it is.

use std::path::PathBuf;

use outrigger_tests::certificates::Authority;
use outrigger_tests::config::{HTTP2, chain, cluster_with, http, listener, routes, tcp_with};
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{Proxy, proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{ORIGINAL_DST, RAW, SIDES, UPSTREAM, internal, leading_to, line, log, object, passing, start_in};

const CLIENT: &str = "spiffe://cluster.local/ns/a/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/b/sa/server";

fn directory(authority: &Authority) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("ca.pem"), authority.pem()).expect("a file");
    authority.issue_workload(CLIENT, &[], "client").write(directory.path(), "client");
    authority.issue_workload(SERVER, &[], "server").write(directory.path(), "server");
    directory
}

fn tls(side: &str, name: &str, more: &str) -> String {
    format!(
        "transport_socket: {{ name: tls, typed_config: {{ '@type': \
         type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{side}TlsContext, common_tls_context: {{ \
         alpn_protocols: [h2], tls_certificates: [{{ certificate_chain: {{ filename: $dir/{name}.crt }}, \
         private_key: {{ filename: $dir/{name}.key }} }}], validation_context: {{ \
         trusted_ca: {{ filename: $dir/ca.pem }}, match_typed_subject_alt_names: [{{ san_type: URI, \
         matcher: {{ prefix: 'spiffe://cluster.local/' }} }}] }} }}{more} }} }}"
    )
}

/// Where tunnels end. What is in them goes where the client wanted to go.
async fn far_end(program: PathBuf, authority: &Authority) -> Proxy {
    let objects = [
        object("envoy.filters.listener.original_dst.local_ip", "''", "ONCE", "%REQ(:AUTHORITY)%"),
        object("envoy.filters.listener.original_dst.remote_ip", "''", "ONCE", "%DOWNSTREAM_REMOTE_ADDRESS%"),
        object("io.connect_authority", "envoy.hashable_string", "ONCE", "%REQ(:AUTHORITY)%"),
        object("io.peer_principal", "envoy.hashable_string", "ONCE", "%DOWNSTREAM_PEER_URI_SAN%"),
        object("io.mine_alone", "envoy.string", "NONE", "secret"),
    ];
    let set = format!(
        "{{ name: set, typed_config: {{ '@type': \
         type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config, on_request_headers: [{}] }} }}",
        objects.join(", ")
    );
    let ends = "{ match: { connect_matcher: {} }, route: { cluster: main_internal, \
        upgrade_configs: [{ upgrade_type: CONNECT, connect_config: {} }] } }";
    let options = ", upgrade_configs: [{ upgrade_type: CONNECT }], http2_protocol_options: { allow_connect: true }";
    let log_of_ends = log("ends", &format!("%RESPONSE_CODE% %REQ(:AUTHORITY)% {UPSTREAM}"));
    let manager = http("ends", &format!("{}{options}{log_of_ends}", routes(ends)));
    let manager = manager.replace("http_filters: [", &format!("http_filters: [{set}, "));
    let objects = "authority=%FILTER_STATE(io.connect_authority:PLAIN)% peer=%FILTER_STATE(io.peer_principal:PLAIN)% \
        alone=%FILTER_STATE(io.mine_alone:PLAIN)%";
    let inner_log = log("main_internal", &format!("{SIDES} {objects} {UPSTREAM} %BYTES_RECEIVED% %BYTES_SENT%"));
    let inner = tcp_with(&format!("cluster: wanted{inner_log}"));
    let listeners = [
        listener(
            "connect_terminate",
            &[chain(&manager, &format!(", {}", tls("Downstream", "server", ", require_client_certificate: true")))],
            "",
        ),
        internal("main_internal", &[chain(&inner, "")], ORIGINAL_DST),
    ];
    let clusters = [
        leading_to("main_internal", "main_internal", "", "", &passing("", RAW)),
        "{ name: wanted, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 5s }".to_owned(),
    ];
    start_in(program, directory(authority), &listeners, &clusters).await
}

/// Where tunnels begin.
async fn near_end(program: PathBuf, authority: &Authority, far: u16, wanted: &str) -> Proxy {
    let app_log = log("app", UPSTREAM);
    let app = tcp_with(&format!("cluster: hidden{app_log}"));
    let metadata =
        "%DYNAMIC_METADATA(envoy.filters.listener.original_dst)% %DYNAMIC_METADATA(istio)% %DYNAMIC_METADATA(other)%";
    let originate_log = log("connect_originate", &format!("{SIDES} {metadata} {UPSTREAM}"));
    let originate = tcp_with(&format!(
        "cluster: far, tunneling_config: {{ hostname: '%DOWNSTREAM_LOCAL_ADDRESS%' }}{originate_log}"
    ));
    let listeners = [
        listener("app", &[chain(&app, "")], ""),
        internal("connect_originate", &[chain(&originate, "")], ORIGINAL_DST),
    ];
    let of_endpoint = format!(
        ", metadata: {{ filter_metadata: {{ envoy.filters.listener.original_dst: {{ local: '{wanted}' }}, \
         other: {{ a: b }}, envoy.transport_socket_match: {{ tunnel: http }} }} }}"
    );
    let passed = "{ kind: { host: {} }, name: envoy.filters.listener.original_dst }, \
        { kind: { cluster: {} }, name: istio }, { kind: { host: {} }, name: istio }";
    // As meshes have it: only endpoints that say so are reached by the tunnel.
    let transport = passing(passed, RAW);
    let matches = format!(
        ", transport_socket_matches: [{{ name: hbone, match: {{ tunnel: http }}, {} }}], \
         metadata: {{ filter_metadata: {{ istio: {{ services: [{{ host: far.example }}] }} }} }}",
        transport.trim_start_matches(", ")
    );
    let more = format!("{HTTP2}, {}", tls("Upstream", "client", ", sni: far"));
    let clusters =
        [leading_to("hidden", "connect_originate", wanted, &of_endpoint, &matches), cluster_with("far", &[far], &more)];
    start_in(program, directory(authority), &listeners, &clusters).await
}

async fn tunnelled(near: PathBuf, far: PathBuf, authority: &Authority) -> Vec<String> {
    let peer = Peer::start(Conduct::ReverseAtEnd).await;
    let wanted = peer.address().to_string();
    let far = far_end(far, authority).await;
    let port = far.listener("connect_terminate").await.port();
    let near = near_end(near, authority, port, &wanted).await;
    let address = near.listener("app").await;
    let mut seen = Vec::new();
    let names = [(wanted.clone(), "WANTED"), (port.to_string(), "FAR")];
    for round in 1..=2 {
        let mut stream = TcpStream::connect(address).await.expect("a listener");
        stream.write_all(b"abc").await.expect("a connection");
        stream.shutdown().await.expect("a connection");
        let mut heard = Vec::new();
        within("the rest", stream.read_to_end(&mut heard)).await.expect("an end");
        seen.push(String::from_utf8_lossy(&heard).into_owned());
        for name in ["app", "connect_originate"] {
            seen.push(line(&near, name, round, &names).await);
        }
        for name in ["ends", "main_internal"] {
            seen.push(line(&far, name, round, &names).await);
        }
    }
    near.stat_is("cluster.far.upstream_rq_active", 0).await;
    for (proxy, stat) in [
        (&near, "cluster.far.upstream_cx_total"),
        (&near, "cluster.hidden.upstream_cx_total"),
        (&near, "cluster.hidden.internal_upstream.no_metadata"),
        (&near, "listener.envoy_internal_connect_originate.downstream_cx_total"),
        (&far, "cluster.main_internal.upstream_cx_total"),
        (&far, "listener.envoy_internal_main_internal.downstream_cx_total"),
        (&far, "cluster.wanted.upstream_cx_total"),
    ] {
        seen.push(format!("{stat}: {}", proxy.stat(stat).await));
    }
    near.stat_is("listener.envoy_internal_connect_originate.downstream_cx_active", 0).await;
    far.stat_is("listener.envoy_internal_main_internal.downstream_cx_active", 0).await;
    seen
}

#[tokio::test]
async fn tunnels_go_through_listeners_inside_as_with_envoy() {
    let authority = Authority::new();
    let expected = tunnelled(proxy::envoy(), proxy::envoy(), &authority).await;
    assert_eq!(expected[0], "cba");
    for (near, far) in
        [(proxy::program(), proxy::program()), (proxy::envoy(), proxy::program()), (proxy::program(), proxy::envoy())]
    {
        assert_eq!(tunnelled(near, far, &authority).await, expected);
    }
}
