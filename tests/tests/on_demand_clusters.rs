//! Clusters that are discovered when a request or a connection wants them: beside Envoy, and what becomes of them later.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::net::SocketAddr;
use std::path::PathBuf;

use control_plane_mock::{MockControlPlane, types};
use outrigger_tests::config::{
    self, ADS, Xds, access_log_of, ads_bootstrap, chain, cluster, eds_cluster, endpoints, http, resource, resources,
    routes, stream_source,
};
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{Proxy, Response, Settings, Upstream, eventually, h1, proxy, within};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const TYPES: &str = "type.googleapis.com/envoy.extensions.filters.http.on_demand.v3";

/// Requests go to the cluster that they name. On one path the filter is told nothing of clusters, on another it does not
/// wait for long.
fn listener(source: &str) -> String {
    let to = "route: { cluster_header: x-cluster }";
    let on_route = |fields: &str| {
        format!(
            "typed_per_filter_config: {{ envoy.filters.http.on_demand: {{ '@type': {TYPES}.PerRouteConfig{fields} }} }}"
        )
    };
    let entries = format!(
        "{{ match: {{ path: /off }}, {to}, {} }}, {{ match: {{ path: /short }}, {to}, {} }}, \
         {{ match: {{ path: /direct }}, direct_response: {{ status: 204 }} }}, \
         {{ match: {{ prefix: / }}, route: {{ cluster_header: x-cluster, cluster_not_found_response_code: NOT_FOUND }} }}",
        on_route(""),
        on_route(&format!(", odcds: {{ source: {source}, timeout: 0.2s }}")),
    );
    let manager = http("web", &routes(&entries)).replacen(
        "http_filters: [",
        &format!(
            "http_filters: [{{ name: envoy.filters.http.on_demand, typed_config: {{ '@type': {TYPES}.OnDemand, \
             odcds: {{ source: {source}, timeout: 60s }} }} }}, "
        ),
        1,
    );
    config::listener("web", &[chain(&manager, "")], "")
}

/// Listeners come from the control plane, and clusters only when they are asked for.
fn without_clusters(bootstrap: &str) -> String {
    let lines: Vec<&str> = bootstrap.lines().filter(|line| !line.trim_start().starts_with("cds_config:")).collect();
    lines.join("\n") + "\n"
}

async fn get(address: SocketAddr, path: &str, cluster: &str) -> Response {
    h1::Client::connect(address).await.request("GET", path, &[("x-cluster", cluster)], b"").await
}

async fn wanted_clusters(program: PathBuf, source: &str) -> Vec<String> {
    let upstream = Upstream::start("echo").await;
    let mock = MockControlPlane::start().await;
    mock.set_yaml(&resources(&[
        resource("lds", &listener(source)),
        resource("cds", &cluster("first", &[upstream.port()])),
        resource("cds", &cluster("second", &[upstream.port()])),
        resource("cds", &eds_cluster("third")),
        resource("eds", &endpoints("third", &[upstream.port()])),
        resource("cds", &cluster("unwanted", &[upstream.port()])),
    ]))
    .unwrap();
    let settings = Settings { program, ..Settings::default() };
    let bootstrap = without_clusters(&ads_bootstrap(Xds::AdsDelta, mock.address().port()));
    let proxy = Proxy::start_with(&bootstrap, settings).await;
    let web = proxy.listener("web").await;
    let mut seen = Vec::new();
    for (path, cluster) in [
        ("/", "first"),
        ("/", "first"),
        ("/off", "second"),
        ("/", "third"),
        ("/", "missing"),
        ("/direct", "missing"),
        ("/", ""),
        ("/off", "third"),
    ] {
        seen.push(format!("{path} {cluster}: {}", get(web, path, cluster).await.status));
    }
    let body = h1::Client::connect(web).await.request("POST", "/", &[("x-cluster", "second")], b"0123456789").await;
    seen.push(format!("with a body: {} {}", body.status, body.json()["body_bytes"]));
    // The control plane does not answer in time.
    mock.hold("cds");
    seen.push(format!("too late: {}", get(web, "/short", "late").await.status));
    seen.push(format!("without a cluster: {}", proxy.stat("http.web.no_cluster").await));
    let asked = mock.requests(0);
    let asked = asked.iter().filter(|asked| asked.type_url == types::CLUSTER);
    let mut names: Vec<String> = asked.flat_map(|asked| asked.subscribe.clone()).collect();
    names.sort();
    names.dedup();
    seen.push(format!("asked for {names:?}"));
    seen
}

#[tokio::test]
async fn clusters_are_discovered_when_requests_want_them() {
    let (ours, envoys) = tokio::join!(wanted_clusters(proxy::program(), ADS), wanted_clusters(proxy::envoy(), ADS));
    assert_eq!(ours, envoys);
    let expected = [
        "/ first: 200",
        "/off second: 503",
        "/ third: 200",
        "/ missing: 404",
        "with a body: 200 10",
        "too late: 503",
        "without a cluster: 4",
        "asked for [\"first\", \"late\", \"missing\", \"second\", \"third\"]",
    ];
    for line in expected {
        assert!(ours.iter().any(|seen| seen == line), "{line} is not in {ours:#?}");
    }
}

#[tokio::test]
async fn clusters_are_discovered_over_a_stream_of_their_own() {
    let seen = wanted_clusters(proxy::program(), &stream_source("DELTA_GRPC")).await;
    assert!(seen.contains(&"/ first: 200".to_owned()), "{seen:?}");
}

#[tokio::test]
async fn a_cluster_that_was_wanted_changes_and_goes_as_the_control_plane_says() {
    let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
    let mock = MockControlPlane::start().await;
    let of = |upstream: &Upstream| resource("cds", &cluster("first", &[upstream.port()]));
    mock.set_yaml(&resources(&[resource("lds", &listener(ADS)), of(&one)])).unwrap();
    let bootstrap = without_clusters(&ads_bootstrap(Xds::AdsDelta, mock.address().port()));
    let proxy = Proxy::start(&bootstrap).await;
    let web = proxy.listener("web").await;
    assert_eq!(get(web, "/", "first").await.served_by(), "one");
    mock.set_yaml(&resources(&[of(&two)])).unwrap();
    eventually("the cluster has changed", async || match get(web, "/", "first").await.served_by() {
        name if name == "two" => Ok(()),
        name => Err(name),
    })
    .await;
    mock.remove(types::CLUSTER, "first");
    eventually("the cluster is gone", async || match get(web, "/", "first").await.status {
        404 => Ok(()),
        status => Err(status.to_string()),
    })
    .await;
    // What was refused or missing is asked for again.
    mock.set_yaml(&resources(&[resource("cds", "{ name: first, type: EDS }")])).unwrap();
    assert_eq!(get(web, "/", "first").await.status, 404);
    mock.wait_nack("cds", outrigger_tests::SOON).await.unwrap();
    mock.set_yaml(&resources(&[of(&one)])).unwrap();
    assert_eq!(get(web, "/", "first").await.served_by(), "one");
}

#[tokio::test]
async fn a_control_plane_without_the_incremental_protocol_cannot_be_asked() {
    let mock = MockControlPlane::start().await;
    mock.set_yaml(&resources(&[resource("lds", &listener(&stream_source("GRPC")))])).unwrap();
    let settings = Settings { await_ready: false, ..Settings::default() };
    let bootstrap = ads_bootstrap(Xds::AdsDelta, mock.address().port());
    let _proxy = Proxy::start_with(&bootstrap, settings).await;
    let nack = mock.wait_nack("lds", outrigger_tests::SOON).await.unwrap();
    let message = nack.error_detail.message;
    assert!(message.contains("odcds.source: clusters need a source of type DELTA_GRPC"), "{message}");
}

/// Connections to clusters that are not known: one that is found, one that is not, and one that nobody tells of in time.
async fn wanted_by_connections(program: PathBuf) -> Vec<String> {
    let peer = Peer::start(Conduct::Greet(b"hello".to_vec())).await;
    let mock = MockControlPlane::start().await;
    let of = |name: &str, cluster: &str, timeout: &str| {
        let log = access_log_of(&format!("{name}.log"), "%RESPONSE_FLAGS% %UPSTREAM_CLUSTER%");
        let fields = format!(
            "stat_prefix: {name}, cluster: {cluster}, on_demand: {{ odcds_config: {ADS}, timeout: {timeout} }}{log}"
        );
        config::listener(name, &[chain(&config::tcp_with(&fields).replace("stat_prefix: tcp, ", ""), "")], "")
    };
    let directory = tempfile::tempdir().expect("a directory");
    let listeners = [of("found", "first", "60s"), of("missing", "missing", "60s"), of("late", "late", "0.2s")];
    let path = directory.path().to_str().expect("a path").to_owned();
    let mut all: Vec<String> =
        listeners.iter().map(|listener| resource("lds", &listener.replace("$dir", &path))).collect();
    all.push(resource("cds", &cluster("first", &[peer.port()])));
    mock.set_yaml(&resources(&all)).unwrap();
    let settings = Settings { program, ..Settings::default() };
    let bootstrap = without_clusters(&ads_bootstrap(Xds::AdsDelta, mock.address().port()));
    let proxy = Proxy::start_in(directory, &bootstrap, settings).await;
    let mut seen = Vec::new();
    for name in ["found", "missing", "late"] {
        if name == "late" {
            mock.hold("cds");
        }
        let mut stream = TcpStream::connect(proxy.listener(name).await).await.expect("a listener");
        let mut heard = vec![0; 5];
        let count = within("a greeting, or an end", stream.read(&mut heard)).await.unwrap_or(0);
        heard.truncate(count);
        drop(stream);
        seen.push(format!("{name}: {:?}", String::from_utf8_lossy(&heard)));
        seen.push(format!("{name}: {}", proxy.lines(&format!("{name}.log"), 1).await[0]));
        for stat in [
            "downstream_cx_no_route",
            "on_demand_cluster_attempt",
            "on_demand_cluster_missing",
            "on_demand_cluster_success",
            "on_demand_cluster_timeout",
        ] {
            seen.push(format!("{name}: {stat} {}", proxy.stat(&format!("tcp.{name}.{stat}")).await));
        }
    }
    seen
}

#[tokio::test]
async fn clusters_are_discovered_when_connections_want_them() {
    let seen = wanted_by_connections(proxy::program()).await;
    assert_eq!(seen[0], "found: \"hello\"");
    assert_eq!(seen, wanted_by_connections(proxy::envoy()).await);
}
