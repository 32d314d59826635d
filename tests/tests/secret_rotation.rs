//! Certificates that change under traffic, from everywhere they may come: files, ADS, a stream of their own on a Unix
//! socket. New connections see the new certificate, and no connection fails on the way.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use control_plane_mock::MockControlPlane;
use outrigger_tests::certificates::{self, Authority, Identity, indented};
use outrigger_tests::config::{
    self, ADS, Xds, ads_bootstrap, bootstrap, chain, cluster_with, http, resource, resources, routes,
};
use outrigger_tests::{Proxy, SOON, Settings, eventually, h1, proxy};
use tokio::task::JoinHandle;

const NAME: &str = "secure.example";

/// A TLS listener whose certificate `server` comes from `source`.
fn listener(source: &str) -> String {
    let answer = "{ match: { prefix: / }, direct_response: { status: 200, body: { inline_string: secret } } }";
    let tls = format!(
        ", transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         common_tls_context: {{ tls_certificate_sds_secret_configs: [{{ name: server, sds_config: {source} }}] }} }} }}"
    );
    config::listener("tls", &[chain(&http("tls", &routes(answer)), &tls)], "")
}

/// The secret `server`, inline.
fn inline(identity: &Identity) -> String {
    format!(
        "resources:\n- '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: server
  tls_certificate:
    certificate_chain:
      inline_string: |{}
    private_key:
      inline_string: |{}
",
        indented(&identity.certificate, 8),
        indented(&identity.key, 8)
    )
}

/// The secret `server`, as files of `directory`.
fn by_files(directory: &str, watched: &str) -> String {
    resources(&[resource(
        "sds",
        &format!(
            "{{ name: server, tls_certificate: {{ certificate_chain: {{ filename: '{directory}/server.crt' }}, \
             private_key: {{ filename: '{directory}/server.key' }}, watched_directory: {{ path: '{watched}' }} }} }}"
        ),
    )])
}

/// Connections one after the other, each with a request.
struct Callers {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicU64>,
    task: JoinHandle<Result<(), String>>,
}

impl Callers {
    fn start(address: SocketAddr, authority: &Authority) -> Self {
        let (stop, good) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count, client) = (Arc::clone(&stop), Arc::clone(&good), authority.client(&[], None));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let stream = certificates::connect(address, NAME, Arc::clone(&client)).await;
                let stream = stream.map_err(|error| error.to_string())?;
                let mut client = h1::Client::over(Box::new(stream));
                client.send(h1::request_bytes("GET", "/", &[], b"")).await;
                let response = client.try_response("GET").await?;
                if response.status != 200 {
                    return Err(format!("{} {}", response.status, response.text()));
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { stop, good, task }
    }

    /// None of them has failed.
    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap().unwrap();
    }
}

/// The certificate that is shown, as PEM without line ends.
async fn shown(address: SocketAddr, authority: &Authority) -> Result<Vec<u8>, String> {
    let stream =
        certificates::connect(address, NAME, authority.client(&[], None)).await.map_err(|error| error.to_string())?;
    let chain = stream.get_ref().1.peer_certificates().ok_or("no certificate")?;
    Ok(chain[0].to_vec())
}

/// Five rotations by `rotate` under traffic.
async fn rotates(proxy: &Proxy, authority: &Authority, mut rotate: impl AsyncFnMut(&Identity, usize)) {
    let address = proxy.listener("tls").await;
    let callers = Callers::start(address, authority);
    let mut before = shown(address, authority).await.unwrap();
    for number in 0..5 {
        rotate(&authority.issue(&[NAME]), number).await;
        before = eventually("the new certificate is shown", async || match shown(address, authority).await? {
            now if now == before => Err("the old one".to_owned()),
            now => Ok(now),
        })
        .await;
        // Each rotation meets callers.
        let seen = callers.good.load(Ordering::Relaxed);
        eventually("callers go on", async || match callers.good.load(Ordering::Relaxed) {
            now if now >= seen + 2 || callers.task.is_finished() => Ok(()),
            now => Err(now.to_string()),
        })
        .await;
    }
    callers.end().await;
}

/// Puts a file in place in one step.
fn move_into_place(directory: &Path, name: &str, content: &str) {
    std::fs::write(directory.join("new"), content).unwrap();
    std::fs::rename(directory.join("new"), directory.join(name)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_in_a_file_is_replaced_by_a_move_into_its_watched_directory() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    move_into_place(&path, "secret.yaml", &inline(&authority.issue(&[NAME])));
    let source = "{ resource_api_version: V3, path_config_source: { path: $dir/secret.yaml, watched_directory: { path: $dir } } }";
    let proxy = Proxy::start_in(directory, &bootstrap(&[listener(source)], &[]), Settings::default()).await;
    rotates(&proxy, &authority, async |identity, _| move_into_place(&path, "secret.yaml", &inline(identity))).await;
}

/// As volumes of Kubernetes are: the files stay, and a link that leads to them is swapped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_files_are_replaced_by_swapping_a_link() {
    let authority = Authority::new();
    for (directory_of_files, watched, link) in [("$dir", "$dir", "..data"), ("$dir/live", "$dir", "live")] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let place = |identity: &Identity, version: &str| {
            std::fs::create_dir(path.join(version)).unwrap();
            identity.write(&path.join(version), "server");
            std::os::unix::fs::symlink(version, path.join("new-link")).unwrap();
            std::fs::rename(path.join("new-link"), path.join(link)).unwrap();
        };
        place(&authority.issue(&[NAME]), "first");
        if link == "..data" {
            for file in ["server.crt", "server.key"] {
                std::os::unix::fs::symlink(format!("..data/{file}"), path.join(file)).unwrap();
            }
        }
        let text = by_files(directory_of_files, watched).replace("$dir", &path.display().to_string());
        move_into_place(&path, "secret.yaml", &text);
        let source = "{ resource_api_version: V3, path_config_source: { path: $dir/secret.yaml } }";
        let proxy = Proxy::start_in(directory, &bootstrap(&[listener(source)], &[]), Settings::default()).await;
        rotates(&proxy, &authority, async |identity, number| place(identity, &format!("v{number}"))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_over_ads_is_replaced() {
    for how in [Xds::AdsDelta, Xds::AdsSotw] {
        let authority = Authority::new();
        let mock = MockControlPlane::start().await;
        mock.set_yaml(&inline(&authority.issue(&[NAME]))).unwrap();
        mock.set_yaml(&resources(&[resource("lds", &listener(ADS))])).unwrap();
        let proxy = Proxy::start(&ads_bootstrap(how, mock.address().port())).await;
        rotates(&proxy, &authority, async |identity, _| {
            mock.set_yaml(&inline(identity)).unwrap();
            mock.wait_ack("sds", SOON).await.unwrap();
        })
        .await;
    }
}

/// As an agent beside the proxy serves certificates: listeners are static, and secrets have a stream of their own on a
/// Unix socket, by `envoy_grpc` and by `google_grpc`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_on_a_stream_of_its_own_over_a_unix_socket_is_replaced() {
    let by_cluster = "envoy_grpc: { cluster_name: agent }";
    let by_target = "google_grpc: { target_uri: 'unix:$dir/agent.sock', stat_prefix: agent }";
    for (api_type, service) in
        [("GRPC", by_cluster), ("DELTA_GRPC", by_cluster), ("GRPC", by_target), ("DELTA_GRPC", by_target)]
    {
        // The gRPC library in Envoy and this control plane do not understand each other over a Unix socket.
        if proxy::tests_envoy() && service == by_target {
            continue;
        }
        let authority = Authority::new();
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let mock = MockControlPlane::builder().unix(&socket).start().await.unwrap();
        mock.set_yaml(&inline(&authority.issue(&[NAME]))).unwrap();
        let agent = cluster_with("agent", &[1], config::HTTP2)
            .replace("socket_address: { address: 127.0.0.1, port_value: 1 }", "pipe: { path: $dir/agent.sock }");
        assert!(agent.contains("pipe"), "{agent}");
        let source = format!(
            "{{ resource_api_version: V3, api_config_source: {{ api_type: {api_type}, transport_api_version: V3, \
             grpc_services: [{{ {service} }}] }} }}"
        );
        let text = bootstrap(&[listener(&source)], &[agent]);
        let proxy = Proxy::start_in(directory, &text, Settings::default()).await;
        rotates(&proxy, &authority, async |identity, _| {
            mock.set_yaml(&inline(identity)).unwrap();
            mock.wait_ack("sds", SOON).await.unwrap();
        })
        .await;
        // The agent restarts; what it served goes on, and what it serves then is taken.
        mock.kill().await;
        let address = proxy.listener("tls").await;
        let before = shown(address, &authority).await.unwrap();
        mock.set_yaml(&inline(&authority.issue(&[NAME]))).unwrap();
        mock.restart().await.unwrap();
        eventually("the certificate of the new agent", async || match shown(address, &authority).await? {
            now if now == before => Err("the old one".to_owned()),
            _ => Ok(()),
        })
        .await;
    }
}
