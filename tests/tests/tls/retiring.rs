//! Connections to upstreams that were made with a certificate which has been replaced since.

use std::path::Path;

use outrigger_tests::certificates::{Authority, indented};
use outrigger_tests::config::{
    HTTP2, access_log_of, all_to, bootstrap, chain, cluster, cluster_with, http, listener, routes, tcp,
};
use outrigger_tests::load::Load;
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{Proxy, Settings, Upstream, eventually, h1, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{certificate, downstream, upstream};

/// Puts a certificate for this workload where the proxy finds it.
fn rotate(directory: &Path, authority: &Authority, uri: &str) {
    let identity = authority.issue_workload(uri, &[], "client");
    let secret = format!(
        "resources:\n- '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: client\n  \
         tls_certificate:\n    certificate_chain:\n      inline_string: |{}\n    private_key:\n      inline_string: |{}\n",
        indented(&identity.certificate, 8),
        indented(&identity.key, 8)
    );
    std::fs::write(directory.join("new"), secret).unwrap();
    std::fs::rename(directory.join("new"), directory.join("client.yaml")).unwrap();
}

/// A server that writes down who asks, over HTTP, and one that leads to `peer`.
async fn server(authority: &Authority, peer: &Peer, web: &Upstream) -> Proxy {
    let directory = tempfile::tempdir().unwrap();
    authority.issue(&["server.example"]).write(directory.path(), "server");
    std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
    let common = format!(
        "{}, alpn_protocols: [h2, http/1.1], validation_context: {{ trusted_ca: {{ filename: $dir/ca.pem }} }}",
        certificate("server")
    );
    let tls = downstream("require_client_certificate: true", &common);
    let log = access_log_of("asked", "%PROTOCOL% %REQ(:PATH)% %DOWNSTREAM_PEER_URI_SAN%");
    let to_web = http("web", &format!("{}{log}", routes(&all_to("web"))));
    let listeners = [listener("http", &[chain(&to_web, &tls)], ""), listener("tcp", &[chain(&tcp("peer"), &tls)], "")];
    let clusters = [cluster("peer", &[peer.port()]), cluster("web", &[web.port()])];
    Proxy::start_in(directory, &bootstrap(&listeners, &clusters), Settings::default()).await
}

/// The proxy under test. Sessions to `cut` and all requests end soon after a rotation, sessions to `kept` do not.
async fn client(authority: &Authority, server: &Proxy) -> Proxy {
    let directory = tempfile::tempdir().unwrap();
    rotate(directory.path(), authority, "spiffe://td/old");
    let source = "tls_certificate_sds_secret_configs: [{ name: client, sds_config: { resource_api_version: V3, \
                  path_config_source: { path: $dir/client.yaml, watched_directory: { path: $dir } } } }]";
    let retiring = ", metadata: { filter_metadata: { outrigger.tls: { retire_within: 0.5s } } }";
    let (http_port, tcp_port) = (server.listener("http").await.port(), server.listener("tcp").await.port());
    let to =
        |name: &str, port: u16, more: &str| cluster_with(name, &[port], &format!("{}{more}", upstream("", source)));
    let clusters = [
        to("one", http_port, retiring),
        to("two", http_port, &format!("{retiring}{HTTP2}")),
        to("cut", tcp_port, retiring),
        to("kept", tcp_port, ""),
    ];
    let leads_to = |name: &str| listener(name, &[chain(&http(name, &routes(&all_to(name))), "")], "");
    let passes_to = |name: &str| listener(name, &[chain(&tcp(name), "")], "");
    let listeners = [leads_to("one"), leads_to("two"), passes_to("cut"), passes_to("kept")];
    Proxy::start_in(directory, &bootstrap(&listeners, &clusters), Settings::default()).await
}

async fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    within("the echo", stream.read_exact(&mut answer)).await.unwrap();
}

/// Which requests came from whom; those that are never answered end at any time.
fn asked(server: &Proxy) -> Vec<String> {
    let text = std::fs::read_to_string(server.file("asked")).unwrap_or_default();
    text.lines().filter(|line| !line.contains("/hangs")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_move_to_the_new_certificate_and_sessions_of_the_old_one_are_cut() {
    let authority = Authority::new();
    let peer = Peer::start(Conduct::Echo).await;
    let web = Upstream::start("web").await;
    let server = server(&authority, &peer, &web).await;
    let proxy = client(&authority, &server).await;
    let mut loads = [Load::start(proxy.listener("one").await, 2, 2), Load::start(proxy.listener("two").await, 2, 2)];
    let mut cut = TcpStream::connect(proxy.listener("cut").await).await.unwrap();
    let mut kept = TcpStream::connect(proxy.listener("kept").await).await.unwrap();
    echoes(&mut cut).await;
    echoes(&mut kept).await;
    for load in &loads {
        load.goes_on(50).await;
    }
    let mut hanging = JoinSet::new();
    for name in ["one", "two"] {
        let mut client = h1::Client::connect(proxy.listener(name).await).await;
        hanging.spawn(async move { client.request("GET", "/hangs", &[("x-reply", "hang")], b"").await.status });
    }
    eventually("both requests hang", async || {
        let hang = web.seen().iter().filter(|seen| seen.target == "/hangs").count();
        if hang == 2 { Ok(()) } else { Err(hang.to_string()) }
    })
    .await;
    rotate(&proxy.file(""), &authority, "spiffe://td/new");
    // The session was alive until somebody cut it.
    assert_eq!(within("the session is cut", cut.read(&mut [0; 8])).await.unwrap_or(0), 0);
    echoes(&mut kept).await;
    assert_eq!(within("the requests end", hanging.join_all()).await, [503, 503]);
    proxy.stat_is("cluster.cut.upstream_cx_destroy_local", 1).await;
    let is_new = |line: &String| line.ends_with("spiffe://td/new");
    // Logs are written with a delay.
    let before = eventually("the new certificate alone", async || {
        let lines = asked(&server);
        if lines.len() > 100 && lines.iter().rev().take(100).all(is_new) {
            Ok(lines.len())
        } else {
            Err(format!("{lines:?}"))
        }
    })
    .await;
    let lines = eventually("more requests", async || {
        let lines = asked(&server);
        if lines.len() >= before + 200 { Ok(lines) } else { Err(lines.len().to_string()) }
    })
    .await;
    assert!(lines[before..].iter().all(is_new), "{:?}", &lines[before..]);
    for protocol in ["HTTP/1.1", "HTTP/2"] {
        assert!(lines[before..].iter().any(|line| line.starts_with(protocol)), "{protocol}");
        assert!(lines.iter().any(|line| line.starts_with(protocol) && line.ends_with("spiffe://td/old")), "{protocol}");
    }
    for load in &mut loads {
        load.end().await;
        assert_eq!(load.failures(), Vec::<String>::new());
    }
    // Nobody is verified, which is said when the certificate has come, and not again with each one.
    assert_eq!(proxy.log().matches("any server is accepted").count(), 4);
    // A new session is one of the new certificate.
    echoes(&mut TcpStream::connect(proxy.listener("cut").await).await.unwrap()).await;
}
