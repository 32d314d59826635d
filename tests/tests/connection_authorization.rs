//! Connections that a service is asked about: the same filter, service and clients for Envoy and for the proxy under test.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::path::PathBuf;

use outrigger_tests::certificates::{self, Authority};
use outrigger_tests::config::{self, bootstrap, chain, cluster, http2_cluster, listener};
use outrigger_tests::side_by_side::{Intended, assert_same};
use outrigger_tests::tcp::{ClosedPort, Conduct, Peer};
use outrigger_tests::{AskedService, Proxy, Settings, proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const INTENDED: Intended =
    &[("stats", "ext_authz.never.disabled", "filters are asked once; Envoy looks again with each piece that it reads")];

/// A listener of a TCP proxy whose clients the service in `cluster` is asked about.
fn asking(name: &str, cluster: &str, more: &str, tls: &str) -> String {
    let log = config::access_log_of(
        &format!("{name}.log"),
        "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %DYNAMIC_METADATA(envoy.filters.network.ext_authz:k)% \
         %FILTER_STATE(envoy.filters.network.ext_authz:PLAIN)%",
    );
    let filters = format!(
        "{{ name: authz, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz, \
         stat_prefix: {name}, transport_api_version: V3, include_peer_certificate: true, include_tls_session: true, \
         grpc_service: {{ envoy_grpc: {{ cluster_name: {cluster} }}, timeout: 5s }}{more} }} }}, {}",
        config::tcp_with(&format!("cluster: peer{log}"))
    );
    listener(name, &[chain(&filters, tls)], "")
}

/// A client that says something: what comes back until the end.
async fn say(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), words: &[u8]) -> String {
    let mut answer = Vec::new();
    // A connection that is refused may be gone before anything is written.
    let _ = stream.write_all(words).await;
    let mut bytes = vec![0; words.len()];
    match within("an answer or the end", stream.read_exact(&mut bytes)).await {
        Ok(_) => answer.extend(bytes),
        // What was written after the end makes a reset of it, or not.
        Err(_) => return "the end".to_owned(),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

async fn observed(program: PathBuf) -> Vec<(&'static str, Vec<String>)> {
    let authority = Authority::new();
    let (server, client) = (authority.issue(&["server"]), authority.issue(&["client.example.com"]));
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
    server.write(directory.path(), "server");
    let tls = ", transport_socket: { name: envoy.transport_sockets.tls, typed_config: { \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         common_tls_context: { tls_certificates: [{ certificate_chain: { filename: '$dir/server.crt' }, \
         private_key: { filename: '$dir/server.key' } }], \
         validation_context: { trusted_ca: { filename: $dir/ca.pem } } } } }";
    let (peer, service, closed) = (Peer::start(Conduct::Echo).await, AskedService::start().await, ClosedPort::take());
    let never =
        ", filter_enabled_metadata: { filter: 'ns', path: [{ key: k }], value: { string_match: { exact: v } } }";
    let listeners = [
        asking("plain", "asked", "", ""),
        asking("tls", "asked", "", tls),
        asking("dead", "dead", "", ""),
        asking("allow", "dead", ", failure_mode_allow: true", ""),
        asking("never", "asked", never, ""),
        asking("shadow", "asked", ", shadow_mode: true", ""),
        asking("shadow-dead", "dead", ", shadow_mode: true, failure_mode_allow: true", ""),
    ];
    let clusters = [
        cluster("peer", &[peer.port()]),
        http2_cluster("asked", &[service.port()]),
        http2_cluster("dead", &[closed.port()]),
    ];
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_in(directory, &bootstrap(&listeners, &clusters), settings).await;
    let mut all = Vec::new();
    for (name, listener, script) in [
        ("consent", "plain", ""),
        ("consent with metadata", "plain", "meta=k:v"),
        ("refusal", "plain", "deny"),
        ("refusal with metadata", "plain", "deny meta=k:v"),
        ("failure", "plain", "fail"),
        ("no service", "dead", ""),
        ("no service, and let through", "allow", ""),
        ("not asked", "never", "deny"),
        ("consent in the shadow", "shadow", "meta=k:v"),
        ("refusal in the shadow", "shadow", "deny"),
        ("refusal in the shadow, with a status", "shadow", "deny=401 header=x-a:b meta=k:v"),
        ("failure in the shadow", "shadow", "fail"),
        ("no service in the shadow", "shadow-dead", ""),
    ] {
        service.set_script(script);
        let mut stream = TcpStream::connect(proxy.listener(listener).await).await.unwrap();
        let mut seen = vec![format!("answer: {}", say(&mut stream, b"hello").await)];
        drop(stream);
        seen.extend(service.take_told());
        all.push((name, seen));
    }
    for (name, identity) in [("certificate", Some(&client)), ("no certificate", None)] {
        service.set_script("");
        let address = proxy.listener("tls").await;
        let mut stream = certificates::connect(address, "server", authority.client(&[], identity)).await.unwrap();
        let mut seen = vec![format!("answer: {}", say(&mut stream, b"hello").await)];
        drop(stream);
        // Certificates are made anew for each of the two that are compared.
        seen.extend(service.take_told().into_iter().map(|line| match line.split_once(" certificate ") {
            Some((what, certificate)) => format!("{what} certificate {}", certificate.starts_with("0 ")),
            None => line,
        }));
        all.push((name, seen));
    }
    for (listener, count) in [("plain", 5), ("dead", 1), ("allow", 1), ("never", 1), ("shadow", 4), ("shadow-dead", 1)]
    {
        all.push((listener, proxy.lines(&format!("{listener}.log"), count).await));
    }
    let page = proxy.admin("/stats").await.text();
    let lines = page.lines().filter(|line| line.starts_with("ext_authz.") && !line.ends_with(": 0"));
    all.push(("stats", lines.map(str::to_owned).collect()));
    all
}

#[tokio::test]
async fn connections_are_asked_about_as_by_envoy() {
    let expected = observed(proxy::envoy()).await;
    let seen = observed(proxy::program()).await;
    assert_same(INTENDED, expected, seen);
}
