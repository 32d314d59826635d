//! gRPC calls of every kind by grpcio, client and server, over h2c on both sides: see `interop/grpc_streams.py`.
//!
//! The same through Envoy shows that what is expected is what people know.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use outrigger_tests::config::{self, access_log, bootstrap, chain, http, http2_cluster, routes};
use outrigger_tests::tcp::ClosedPort;
use outrigger_tests::{Proxy, Settings, programs, proxy, within};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

#[tokio::test]
async fn calls_of_every_kind_pass() {
    let proxy = calls_through(proxy::program()).await;
    // Streams that were cancelled are over here as well, and no connection broke.
    proxy.wait_stat("http.grpc.downstream_rq_active", |active| active == 0).await;
    proxy.wait_stat("cluster.server.upstream_rq_active", |active| active == 0).await;
    proxy.stat_is("http.grpc.downstream_cx_protocol_error", 0).await;
    proxy.stat_is("cluster.server.upstream_cx_protocol_error", 0).await;
}

#[tokio::test]
async fn the_same_calls_pass_through_envoy() {
    calls_through(proxy::envoy()).await;
}

/// Runs all calls through this program.
async fn calls_through(program: PathBuf) -> Proxy {
    let mut python = Command::new("python3")
        .arg(programs::interop("grpc_streams.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("this test needs `python3`: {error}"));
    let mut input = python.stdin.take().expect("a pipe");
    let mut output = BufReader::new(python.stdout.take().expect("a pipe"));
    let mut first = String::new();
    within("the server starts", output.read_line(&mut first)).await.expect("a line");
    let port = first.trim().strip_prefix("port ").and_then(|port| port.parse().ok());
    let port = port.unwrap_or_else(|| panic!("this test needs the Python module grpcio; it said {first:?}"));

    let closed = ClosedPort::take();
    let to = "{ match: { prefix: /dead. }, route: { cluster: dead } }, \
              { match: { prefix: /interop. }, route: { cluster: server, timeout: 0s } }";
    let manager = http("grpc", &format!("{}{}", routes(to), access_log("access.log")));
    let listener = config::listener("grpc", &[chain(&manager, "")], "");
    let clusters = [http2_cluster("server", &[port]), http2_cluster("dead", &[closed.port()])];
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[listener], &clusters), settings).await;

    let target = format!("{}\n", proxy.listener("grpc").await);
    input.write_all(target.as_bytes()).await.expect("the program listens");
    let mut report = String::new();
    let calls = async {
        output.read_to_string(&mut report).await.expect("text");
        python.wait().await.expect("a child can be waited for")
    };
    let status = tokio::time::timeout(Duration::from_secs(600), calls).await.expect("the calls end");
    assert!(status.success(), "{status}:\n{report}");
    proxy
}
