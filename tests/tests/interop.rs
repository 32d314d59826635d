//! Programs of other people drive the proxy: grpcio on both ends of it, and go-control-plane's integration program.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use outrigger_tests::config::{self, bootstrap, chain, http, http2_cluster, routes};
use outrigger_tests::{Proxy, programs, proxy, within};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(180);

#[tokio::test]
async fn grpcio_makes_every_kind_of_call() {
    let script = programs::interop("grpc/client.py").display().to_string();
    let mut server = Command::new("python3")
        .args([script.as_str(), "server"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("this test needs python3 with grpcio (pip install grpcio)");
    let mut output = BufReader::new(server.stdout.take().unwrap()).lines();
    let line = within("the server starts", output.next_line()).await.unwrap();
    let port = line.and_then(|line| line.parse().ok()).expect("a port; is grpcio installed (pip install grpcio)?");

    let route = "{ match: { prefix: / }, route: { cluster: grpc, timeout: 0s } }";
    let listener = config::listener("grpc", &[chain(&http("grpc", &routes(route)), "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &[http2_cluster("grpc", &[port])])).await;
    let address = proxy.listener("grpc").await.to_string();
    let said = programs::run("python3", &[&script, "client", &address], &[], LIMIT).await;
    assert_eq!(said, "OK\n");
    assert_eq!(proxy.stat("http.grpc.downstream_rq_5xx").await, 0);
}

/// The first of `count` ports in a row that are free now; below the range that the kernel gives out by itself.
fn free_ports(count: u16) -> u16 {
    let start = 20_000 + u16::try_from(std::process::id() % 80).unwrap_or(0) * 100;
    let free = |base: &u16| (0..count).all(|offset| TcpListener::bind(("0.0.0.0", base + offset)).is_ok());
    (start..32_000).step_by(usize::from(count)).find(free).expect("free ports in a row")
}

async fn go_control_plane(mode: &str) {
    let script = programs::interop("go-control-plane/run.sh").display().to_string();
    let work = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-control-plane");
    std::fs::create_dir_all(&work).unwrap();
    let base = free_ports(40).to_string();
    let program = proxy::program().display().to_string();
    let arguments = [script.as_str(), &program, &work.display().to_string(), mode, &base];
    let said = programs::run("sh", &arguments, &[], LIMIT).await;
    assert!(said.contains(&format!("Test for {mode} passed!")), "{said}");
}

/// All modes in turn: each takes a row of fixed ports.
#[tokio::test]
async fn the_integration_program_of_go_control_plane_passes() {
    for mode in ["ads", "xds", "delta", "delta-ads"] {
        go_control_plane(mode).await;
    }
}
