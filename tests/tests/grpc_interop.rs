//! The interoperability tests of gRPC: client and server of grpc-go with the proxy in between, in the clear and inside
//! TLS, while nothing changes and while the control plane changes everything again and again.
//!
//! All cases that need no credentials of a cloud. Needs `go`, and for the first run the network for its modules.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use control_plane_mock::MockControlPlane;
use outrigger_tests::certificates::Authority;
use outrigger_tests::config::{
    self, HTTP2, Xds, ads_bootstrap, chain, endpoints, resource, resources, route_configuration,
};
use outrigger_tests::tcp::HeldPort;
use outrigger_tests::{Proxy, SOON, Settings, eventually, programs};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;

const CLIENT: &str = "google.golang.org/grpc/interop/client";
const SERVER: &str = "google.golang.org/grpc/interop/server";

/// All cases of the client but those that authenticate to a cloud; `pick_first_unary` and `orca_oob`, which this server
/// does not pass without a proxy either; and `orca_per_rpc`, since reports of load are for the proxy: like Envoy, it takes
/// them out of responses.
const CASES: [&str; 16] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "rpc_soak",
    "channel_soak",
];

const DOWNSTREAM_TLS: &str = ", transport_socket: { name: envoy.transport_sockets.tls, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
    common_tls_context: { alpn_protocols: [h2], tls_certificates: [{ \
    certificate_chain: { filename: '$dir/server.crt' }, private_key: { filename: '$dir/server.key' } }] } } }";

const UPSTREAM_TLS: &str = ", transport_socket: { name: envoy.transport_sockets.tls, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: server.example, \
    common_tls_context: { alpn_protocols: [h2], validation_context: { trusted_ca: { filename: '$dir/ca.crt' }, \
    match_typed_subject_alt_names: [{ san_type: DNS, matcher: { exact: server.example } }] } } } }";

/// A server of grpc-go; it ends when dropped.
struct Server {
    _process: Child,
    port: u16,
    _held: HeldPort,
}

impl Server {
    /// Inside TLS with the identity in `directory`, or else in the clear.
    async fn start(tls: Option<&Path>) -> Self {
        let program = programs::go(SERVER).await;
        let held = HeldPort::take();
        let mut command = Command::new(&program);
        command.arg(format!("-port={}", held.port()));
        if let Some(directory) = tls {
            let file = |option: &str, name: &str| format!("-{option}={}", directory.join(name).display());
            command.args(["-use_tls", &file("tls_cert_file", "server.crt"), &file("tls_key_file", "server.key")]);
        }
        let mut process = command.stdin(Stdio::null()).kill_on_drop(true).spawn().expect("a server");
        eventually("the server listens", async || {
            if let Ok(Some(status)) = process.try_wait() {
                panic!("the server ended at its start, {status}");
            }
            TcpStream::connect(held.address()).await.map_err(|error| error.to_string())
        })
        .await;
        Self { _process: process, port: held.port(), _held: held }
    }
}

/// A control plane, a proxy that it drives, and a server.
struct Mesh {
    control_plane: MockControlPlane,
    proxy: Proxy,
    server: Server,
    tls: bool,
    revision: watch::Sender<u32>,
}

impl Mesh {
    async fn start(tls: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        authority.issue(&["server.example"]).write(directory.path(), "server");
        std::fs::write(directory.path().join("ca.crt"), authority.pem()).unwrap();
        let server = Server::start(tls.then(|| directory.path())).await;
        let control_plane = MockControlPlane::start().await;
        let at = directory.path().to_string_lossy().into_owned();
        control_plane.set_yaml(&configuration(tls, server.port, 0, &at)).unwrap();
        let bootstrap = ads_bootstrap(Xds::AdsDelta, control_plane.address().port());
        let proxy = Proxy::start_in(directory, &bootstrap, Settings { concurrency: 2, ..Settings::default() }).await;
        Self { control_plane, proxy, server, tls, revision: watch::Sender::new(0) }
    }

    /// Changes the cluster, the routes and every third time the listener, and waits until the proxy has taken that.
    async fn change(&self) {
        let revision = *self.revision.borrow() + 1;
        let directory = self.proxy.file("");
        let all = configuration(self.tls, self.server.port, revision, &directory.to_string_lossy());
        self.control_plane.set_yaml(&all).unwrap();
        for kind in ["cds", "lds", "rds"] {
            self.control_plane.wait_ack(kind, SOON).await.unwrap();
        }
        self.revision.send_replace(revision);
    }

    /// Runs a case; tells what the client said if it failed.
    async fn case(&self, address: SocketAddr, case: &str) -> Result<(), String> {
        let program = programs::go(CLIENT).await;
        let mut command = Command::new(program);
        command.args(["-server_host=127.0.0.1", &format!("-server_port={}", address.port()), "-test_case", case]);
        // A busy machine is slow; what counts is that all calls are answered.
        command.args(["-soak_per_iteration_max_acceptable_latency_ms=30000", "-soak_overall_timeout_seconds=240"]);
        if self.tls {
            let ca = format!("-ca_file={}", self.proxy.file("ca.crt").display());
            command.args(["-use_tls", "-use_test_ca", &ca, "-server_host_override=server.example"]);
        }
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(Duration::from_secs(300), output).await;
        let output = output.map_err(|_| format!("{case}: no end"))?.expect("the client starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(format!("{case}: {}\n{said}", output.status)) }
    }
}

/// Listener, route configuration and cluster; they differ from revision to revision.
fn configuration(tls: bool, port: u16, revision: u32, directory: &str) -> String {
    let manager = config::http("grpc", &format!("{}, server_name: r{}", config::rds("table"), revision / 3));
    let listener = config::listener("grpc", &[chain(&manager, if tls { DOWNSTREAM_TLS } else { "" })], "");
    let routes = format!(
        "{{ match: {{ prefix: / }}, route: {{ cluster: server, timeout: 0s }}, \
         response_headers_to_add: [{{ header: {{ key: x-revision, value: r{revision} }} }}] }}"
    );
    let transport = if tls { UPSTREAM_TLS } else { "" };
    let cluster = format!(
        "{{ name: server, type: STATIC, connect_timeout: {}s, load_assignment: {}{HTTP2}{transport} }}",
        5 + revision % 7,
        endpoints("server", &[port])
    );
    resources(&[
        resource("cds", &cluster),
        resource("lds", &listener),
        resource("rds", &route_configuration("table", &routes)),
    ])
    .replace("$dir", directory)
}

/// All cases, one after the other, while nothing changes; then again while everything does.
async fn all_cases_pass(tls: bool) {
    let mesh = Mesh::start(tls).await;
    let address = mesh.proxy.listener("grpc").await;
    for case in CASES {
        mesh.case(address, case).await.unwrap();
    }
    let changes = async {
        loop {
            mesh.change().await;
        }
    };
    let cases = async {
        let mut revision = mesh.revision.subscribe();
        for case in CASES {
            mesh.case(address, case).await.unwrap_or_else(|error| panic!("during changes: {error}"));
            // No case passes because nothing happened.
            revision.mark_unchanged();
            revision.changed().await.expect("changes go on");
        }
    };
    tokio::select! {
        () = changes => {}
        () = cases => {}
    }
    for name in ["cluster.server.upstream_cx_protocol_error", "http.grpc.downstream_cx_protocol_error"] {
        mesh.proxy.stat_is(name, 0).await;
    }
}

#[tokio::test]
async fn all_cases_pass_in_the_clear() {
    all_cases_pass(false).await;
}

#[tokio::test]
async fn all_cases_pass_inside_tls() {
    all_cases_pass(true).await;
}
