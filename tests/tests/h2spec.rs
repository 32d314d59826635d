//! h2spec, the conformance suite of HTTP/2, against listeners in the clear and inside TLS, with endpoints of both versions.
//!
//! Its strict mode is all its cases, 146 of them. Needs `go`, and for the first run the network for its modules.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use outrigger_tests::certificates::Authority;
use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster, http, http2_cluster, routes};
use outrigger_tests::{Proxy, Settings, Upstream, programs, proxy};
use tokio::process::Command;

const PACKAGE: &str = "github.com/summerwind/h2spec/cmd/h2spec";

/// All its cases.
const CASES: usize = 146;

/// The one case in which a listener that takes both versions answers what it must take for HTTP/1.
const NOT_A_PREFACE: &str = "http2/3.5/2";

const TLS: &str = ", transport_socket: { name: envoy.transport_sockets.tls, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
    common_tls_context: { alpn_protocols: [h2, http/1.1], tls_certificates: [{ \
    certificate_chain: { filename: '$dir/server.crt' }, private_key: { filename: '$dir/server.key' } }] } } }";

/// A proxy with the listeners `both` (of both versions), `only` (HTTP/2) and `tls`.
async fn start(program: &Path, upstream: &Upstream, http2: bool) -> Proxy {
    let directory = tempfile::tempdir().unwrap();
    Authority::new().issue(&["127.0.0.1"]).write(directory.path(), "server");
    let to = if http2 { http2_cluster("up", &[upstream.port()]) } else { cluster("up", &[upstream.port()]) };
    let listener = |name: &str, more: &str, tls: &str| {
        let manager = http(name, &format!("{}{more}", routes(&all_to("up"))));
        config::listener(name, &[chain(&manager, tls)], "")
    };
    let listeners = [listener("both", "", ""), listener("only", ", codec_type: HTTP2", ""), listener("tls", "", TLS)];
    let settings = Settings { program: program.to_owned(), ..Settings::default() };
    Proxy::start_in(directory, &bootstrap(&listeners, &[to]), settings).await
}

/// What h2spec says of these cases (all, if none is named), and whether all passed.
async fn h2spec(address: SocketAddr, arguments: &[&str]) -> (bool, String) {
    let program = programs::go(PACKAGE).await;
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let mut command = Command::new(program);
    // A case that passes waits for nothing, so a long time limit costs nothing and forgives a busy machine.
    command.args(["--strict", "--insecure", "--timeout", "20", "--host", &host, "--port", &port]).args(arguments);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let limit = std::time::Duration::from_secs(900);
    let output = tokio::time::timeout(limit, command.output()).await.expect("h2spec ends").expect("h2spec runs");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn passes_all(address: SocketAddr, arguments: &[&str]) {
    let (_, said) = h2spec(address, arguments).await;
    let all = format!("{CASES} tests, {CASES} passed, 0 skipped, 0 failed");
    assert!(said.contains(&all), "{said}");
}

#[tokio::test]
async fn all_cases_pass_in_the_clear_and_inside_tls() {
    for http2 in [false, true] {
        let upstream = Upstream::start("up").await;
        let proxy = start(&proxy::program(), &upstream, http2).await;
        passes_all(proxy.listener("only").await, &[]).await;
        passes_all(proxy.listener("tls").await, &["--tls"]).await;
        // Whatever was broken off is over, and the proxy still serves.
        proxy.wait_stat("http.only.downstream_rq_active", |active| active == 0).await;
        proxy.wait_stat("http.tls.downstream_rq_active", |active| active == 0).await;
        proxy.wait_stat("cluster.up.upstream_rq_active", |active| active == 0).await;
        let client = outrigger_tests::h2c::Client::connect(proxy.listener("only").await).await;
        assert_eq!(client.get("/").await.status, 200);
    }
}

/// Where the version is told from the first bytes, what is not the preface of HTTP/2 is taken for HTTP/1, and gets a 400
/// before the connection ends; the suite wants it to end without a word. Envoy does the same.
#[tokio::test]
async fn a_listener_of_both_versions_differs_in_one_case_as_envoy_does() {
    let upstream = Upstream::start("up").await;
    let subject = start(&proxy::program(), &upstream, false).await;
    let (_, said) = h2spec(subject.listener("both").await, &[]).await;
    let all_but_one = format!("{CASES} tests, {} passed, 0 skipped, 1 failed", CASES - 1);
    assert!(said.contains(&all_but_one) && said.contains("× 2: Sends invalid connection preface"), "{said}");
    let envoy = start(&proxy::envoy(), &upstream, false).await;
    for side in [&subject, &envoy] {
        let (passed, said) = h2spec(side.listener("both").await, &[NOT_A_PREFACE]).await;
        assert!(!passed && said.contains("looked like an HTTP/1.1 header"), "{said}");
    }
}
