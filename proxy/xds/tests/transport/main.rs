//! The client over real sockets against a control plane of this test's own: gRPC, TLS, Unix sockets and files.

mod control_plane;
mod recorder;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use control_plane::{ControlPlane, Endpoint};
use outrigger_api::pb::envoy::config::cluster::v3::Cluster;
use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_api::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource};
use outrigger_api::pb::google::protobuf::Any;
use outrigger_xds::{
    CallMetadata, Connector, FileSource, GrpcSource, Http2Keepalive, Interest, Protocol, ResourceKind, ResourceStatus,
    Source, SourceConfig, XdsClient, metadata,
};
use prost::Message;
use recorder::{Heard, Recorder};
use tonic::Status;

const CDS: ResourceKind = ResourceKind::Cluster;
const EDS: ResourceKind = ResourceKind::ClusterLoadAssignment;
const LDS: ResourceKind = ResourceKind::Listener;
const SDS: ResourceKind = ResourceKind::Secret;

/// A running client and what its handler hears.
fn client() -> (XdsClient, Recorder) {
    client_that(|_, _| {})
}

/// A client whose handler also does `then` for each update.
fn client_that(then: impl FnMut(&XdsClient, &outrigger_xds::Update) + Send + 'static) -> (XdsClient, Recorder) {
    let (client, driver) = XdsClient::new(Node { id: "sidecar~1".into(), ..Node::default() });
    let (handler, recorder) = recorder::new(client.clone(), then);
    tokio::spawn(driver.run(handler));
    (client, recorder)
}

fn config(source: Source) -> SourceConfig {
    SourceConfig { source, initial_fetch_timeout: None }
}

fn ads(connector: Connector, protocol: Protocol) -> SourceConfig {
    config(Source::Ads(Arc::new(GrpcSource::new("xds_cluster", connector, protocol))))
}

fn cluster(name: &str, padding: usize) -> Any {
    let message = Cluster { name: name.into(), alt_stat_name: "x".repeat(padding), ..Cluster::default() };
    Any { type_url: CDS.type_url().into(), value: message.encode_to_vec() }
}

fn named(kind: ResourceKind, name: &str) -> Any {
    // Every type keeps its name in field 1, so a cluster's bytes serve for all.
    Any { type_url: kind.type_url().into(), value: cluster(name, 0).value }
}

fn response(kind: ResourceKind, nonce: &str, resources: Vec<Any>) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: nonce.into(),
        nonce: nonce.into(),
        type_url: kind.type_url().into(),
        resources,
        ..DiscoveryResponse::default()
    }
}

fn delta_response(kind: ResourceKind, nonce: &str, name: &str) -> DeltaDiscoveryResponse {
    let resource =
        Resource { name: name.into(), version: "1".into(), resource: Some(named(kind, name)), ..Resource::default() };
    DeltaDiscoveryResponse {
        nonce: nonce.into(),
        type_url: kind.type_url().into(),
        resources: vec![resource],
        ..DeltaDiscoveryResponse::default()
    }
}

#[tokio::test]
async fn r1_state_of_the_world_over_ads() {
    let (mut server, connector) = ControlPlane::start(Endpoint::Tcp).await;
    let (client, mut recorder) = client();
    client.watch(CDS, Interest::Wildcard, &ads(connector, Protocol::Sotw));
    let stream = server.stream().await;
    assert_eq!(stream.path, "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources");
    assert_eq!(server.sotw().await.node.unwrap().id, "sidecar~1");
    recorder.connected(true).await;
    stream.say(response(CDS, "1", vec![cluster("a", 0)]));
    assert_eq!(recorder.update().await.added[0].name, "a");
    let ack = server.sotw().await;
    assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str()), ("1", "1"));
}

#[tokio::test]
async fn r1_delta_over_ads() {
    let (mut server, connector) = ControlPlane::start(Endpoint::Tcp).await;
    let (client, mut recorder) = client();
    client.watch(CDS, Interest::Wildcard, &ads(connector, Protocol::Delta));
    let stream = server.stream().await;
    assert_eq!(stream.path, "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources");
    server.delta().await;
    stream.say_delta(delta_response(CDS, "n1", "a"));
    assert_eq!(recorder.update().await.added[0].version, "1");
    assert_eq!(server.delta().await.response_nonce, "n1");
}

#[tokio::test]
async fn r1_a_stream_for_each_type() {
    for protocol in [Protocol::Sotw, Protocol::Delta] {
        let (mut server, connector) = ControlPlane::start(Endpoint::Tcp).await;
        let (client, mut recorder) = client();
        let source = config(Source::Grpc(Arc::new(GrpcSource::new("contour", connector, protocol))));
        // A stream that is dropped here ends, and the client would open it again.
        let mut streams = Vec::new();
        for kind in ResourceKind::ALL {
            client.watch(kind, Interest::Name("x".into()), &source);
            let stream = server.stream().await;
            if protocol == Protocol::Delta || kind == ResourceKind::VirtualHost {
                assert_eq!(stream.path, kind.delta_path());
                assert_eq!(server.delta().await.type_url, kind.type_url());
                stream.say_delta(delta_response(kind, "1", "x"));
            } else {
                assert_eq!(stream.path, kind.sotw_path());
                assert_eq!(server.sotw().await.type_url, kind.type_url());
                stream.say(response(kind, "1", vec![named(kind, "x")]));
            }
            assert_eq!(recorder.update().await.kind, kind);
            server.next().await;
            streams.push(stream);
        }
        assert_eq!(server.connections(), 1, "streams share the connection");
    }
}

#[tokio::test]
async fn r5_initial_metadata_is_on_every_stream() {
    let (mut server, connector) = ControlPlane::start(Endpoint::Tcp).await;
    let (client, _recorder) = client();
    let mut source = GrpcSource::new("consul", connector, Protocol::Delta);
    // What is sent is made anew for each stream.
    let number = AtomicUsize::new(0);
    source.initial_metadata = CallMetadata::new(move || {
        let number = number.fetch_add(1, Ordering::Relaxed);
        Ok(metadata([("x-consul-token", format!("secret-{number}").as_bytes())]).unwrap())
    });
    client.watch(CDS, Interest::Wildcard, &config(Source::Ads(Arc::new(source))));
    for number in 0..2 {
        let stream = server.stream().await;
        assert_eq!(stream.headers.get("x-consul-token").unwrap(), &format!("secret-{number}"));
        assert_eq!(stream.authority, "consul");
        server.delta().await;
        stream.say_delta(DeltaDiscoveryResponse { type_url: CDS.type_url().into(), ..Default::default() });
        stream.end(Status::resource_exhausted("rebalancing"));
    }
}

#[tokio::test]
async fn r6_a_response_of_fifty_mebibytes_is_taken() {
    let (mut server, connector) = ControlPlane::start(Endpoint::Tcp).await;
    let (client, mut recorder) = client();
    client.watch(CDS, Interest::Wildcard, &ads(connector, Protocol::Sotw));
    let stream = server.stream().await;
    server.sotw().await;
    let clusters = (0..50).map(|i| cluster(&i.to_string(), 1024 * 1024)).collect();
    stream.say(response(CDS, "1", clusters));
    assert_eq!(recorder.update().await.added.len(), 50);
    assert_eq!(server.sotw().await.error_detail, None);
}

#[tokio::test]
async fn r7_a_restarted_control_plane_is_found_again_and_nothing_is_lost() {
    for protocol in [Protocol::Sotw, Protocol::Delta] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("xds.sock");
        let (mut server, connector) = ControlPlane::start(Endpoint::Unix(path.clone())).await;
        let (client, mut recorder) = client();
        client.watch(CDS, Interest::Wildcard, &ads(connector, protocol));
        let stream = server.stream().await;
        server.next().await;
        match protocol {
            Protocol::Sotw => stream.say(response(CDS, "1", vec![cluster("a", 0)])),
            Protocol::Delta => stream.say_delta(delta_response(CDS, "1", "a")),
        }
        recorder.update().await;
        drop(server);
        recorder.connected(false).await;
        fs::remove_file(&path).unwrap();
        let (mut server, _) = ControlPlane::start(Endpoint::Unix(path)).await;
        server.stream().await;
        match protocol {
            Protocol::Sotw => assert_eq!(server.sotw().await.version_info, "1"),
            Protocol::Delta => assert_eq!(server.delta().await.initial_resource_versions["a"], "1"),
        }
        let snapshot = client.snapshot().await;
        assert_eq!(snapshot[0].types[0].resources[0].name, "a");
        assert!(recorder.no_removal());
    }
}

#[tokio::test]
async fn r10_all_watches_share_one_ads_stream() {
    let (mut server, connector) = ControlPlane::start(Endpoint::Tcp).await;
    let (client, _recorder) = client();
    let source = ads(connector, Protocol::Sotw);
    client.watch(CDS, Interest::Wildcard, &source);
    client.watch(SDS, Interest::Name("cert".into()), &source);
    server.stream().await;
    let types = [server.sotw().await.type_url, server.sotw().await.type_url];
    assert_eq!(types, [CDS.type_url(), SDS.type_url()]);
    assert_eq!(client.stats().sources.len(), 1);
}

#[tokio::test]
async fn r12_http2_pings_find_a_dead_peer() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connector = Connector::tcp(vec![listener.local_addr().unwrap()], Some(Default::default()));
    let (client, mut recorder) = client();
    let mut source = GrpcSource::new("mute", connector, Protocol::Sotw);
    source.http2_keepalive =
        Some(Http2Keepalive { interval: Duration::from_millis(20), timeout: Duration::from_millis(20) });
    client.watch(CDS, Interest::Wildcard, &config(Source::Ads(Arc::new(source))));
    let _silent = listener.accept().await.unwrap();
    recorder.connected(true).await;
    recorder.connected(false).await;
}

#[tokio::test]
async fn r28_watches_made_while_judging_go_into_one_request() {
    let (mut server, connector) = ControlPlane::start(Endpoint::Tcp).await;
    let source = ads(connector, Protocol::Sotw);
    let again = source.clone();
    let (client, _recorder) = client_that(move |client, update| {
        for cluster in update.added.iter().filter(|_| update.kind == CDS) {
            client.watch(EDS, Interest::Name(cluster.name.clone()), &again);
        }
    });
    client.watch(CDS, Interest::Wildcard, &source);
    let stream = server.stream().await;
    server.sotw().await;
    stream.say(response(CDS, "1", (0..50).map(|i| cluster(&i.to_string(), 0)).collect()));
    let ack = server.sotw().await;
    assert_eq!((ack.type_url.as_str(), ack.response_nonce.as_str()), (CDS.type_url(), "1"));
    let endpoints = server.sotw().await;
    assert_eq!((endpoints.type_url.as_str(), endpoints.resource_names.len()), (EDS.type_url(), 50));
}

#[tokio::test]
async fn unwatching_everything_closes_the_stream() {
    let (mut server, connector) = ControlPlane::start(Endpoint::Tcp).await;
    let (client, _recorder) = client();
    let watch = client.watch(LDS, Interest::Wildcard, &ads(connector, Protocol::Sotw));
    let stream = server.stream().await;
    server.sotw().await;
    client.unwatch(watch);
    stream.closed().await;
    assert!(client.stats().sources.is_empty());
}

#[tokio::test]
async fn a_nack_reaches_the_server_and_the_snapshot() {
    let (mut server, connector) = ControlPlane::start(Endpoint::Tcp).await;
    let (client, mut recorder) = client();
    client.watch(CDS, Interest::Wildcard, &ads(connector, Protocol::Sotw));
    let stream = server.stream().await;
    server.sotw().await;
    stream.say(response(CDS, "1", vec![cluster("refused", 0), cluster("good", 0)]));
    recorder.update().await;
    let detail = server.sotw().await.error_detail.unwrap();
    assert_eq!(detail.message, "Error adding/updating cluster(s) refused: by its name");
    let snapshot = client.snapshot().await;
    let statuses: Vec<_> = snapshot[0].types[0].resources.iter().map(|r| (r.name.as_str(), r.status)).collect();
    assert_eq!(statuses, [("good", ResourceStatus::Acked), ("refused", ResourceStatus::Nacked)]);
    let stats = client.stats();
    assert_eq!(stats.sources[0].types[0].stats.update_rejected, 1);
    assert!(stats.sources[0].connected);
}

#[tokio::test]
async fn an_unreachable_control_plane_times_out_the_fetch_and_is_counted() {
    let (client, mut recorder) = client();
    let connector = Connector::unix("/nowhere/xds.sock".into());
    let source = Source::Ads(Arc::new(GrpcSource::new("down", connector, Protocol::Sotw)));
    let timeout = Some(Duration::from_millis(30));
    client.watch(CDS, Interest::Wildcard, &SourceConfig { source, initial_fetch_timeout: timeout });
    assert!(matches!(recorder.next().await, Heard::FetchTimeout(CDS, None)));
    // It may be over before the first connection was tried.
    let failures = || client.stats().sources[0].types[0].stats.update_failure;
    let failed = async {
        while failures() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), failed).await.expect("a failure is counted");
    assert!(!client.stats().sources[0].connected);
}

#[tokio::test]
async fn tls_and_abstract_unix_sockets_carry_streams() {
    let name = format!("outrigger-xds-test-{}", std::process::id());
    for endpoint in [Endpoint::Tls, Endpoint::Abstract(name)] {
        let (mut server, connector) = ControlPlane::start(endpoint).await;
        let (client, mut recorder) = client();
        client.watch(CDS, Interest::Wildcard, &ads(connector, Protocol::Sotw));
        let stream = server.stream().await;
        stream.say(response(CDS, "1", vec![cluster("a", 0)]));
        server.sotw().await;
        assert_eq!(recorder.update().await.added[0].name, "a");
    }
}

#[tokio::test]
async fn r88_a_file_is_followed_and_a_bad_one_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sds.txt");
    let parse = |_: &std::path::Path, bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok("bad") => Err("line 1: bad".to_owned()),
        Ok(version) => {
            let resource = Resource {
                name: "cert".into(),
                version: version.into(),
                resource: Some(Any {
                    type_url: SDS.type_url().into(),
                    value: Cluster { name: "cert".into(), alt_stat_name: version.into(), ..Default::default() }
                        .encode_to_vec(),
                }),
                ..Resource::default()
            };
            let type_url = "type.googleapis.com/envoy.service.discovery.v3.Resource".to_owned();
            Ok(response(SDS, version, vec![Any { type_url, value: resource.encode_to_vec() }]))
        }
        Err(error) => Err(error.to_string()),
    };
    let file = FileSource { path: path.clone(), watched_directory: None, parse: Arc::new(parse) };
    let replace = |content: &str| {
        let fresh = directory.path().join("fresh");
        fs::write(&fresh, content).unwrap();
        fs::rename(&fresh, &path).unwrap();
    };
    replace("v1");
    let (client, mut recorder) = client();
    client.watch(SDS, Interest::Name("cert".into()), &config(Source::File(Arc::new(file))));
    assert_eq!(recorder.update().await.added[0].version, "v1");
    replace("bad");
    while client.stats().sources[0].types[0].stats.update_failure == 0 {
        tokio::task::yield_now().await;
    }
    let snapshot = client.snapshot().await;
    assert_eq!(snapshot[0].types[0].resources[0].version, "v1");
    replace("v2");
    assert_eq!(recorder.change().await.added[0].version, "v2");
}

#[tokio::test]
async fn a_handler_need_not_be_send() {
    struct Local(std::rc::Rc<std::cell::Cell<usize>>, tokio::sync::mpsc::UnboundedSender<()>);
    impl outrigger_xds::Handler for Local {
        fn on_update(
            &mut self,
            _: &outrigger_xds::SourceKey,
            _: outrigger_xds::Update,
        ) -> Vec<outrigger_xds::Rejection> {
            self.0.set(self.0.get() + 1);
            self.1.send(()).unwrap();
            Vec::new()
        }
        fn on_fetch_timeout(&mut self, _: &outrigger_xds::SourceKey, _: ResourceKind, _: Option<&str>) {}
        fn on_connected(&mut self, _: &outrigger_xds::SourceKey, _: bool) {}
    }
    let (mut server, connector) = ControlPlane::start(Endpoint::Tcp).await;
    let (client, driver) = XdsClient::new(Node::default());
    let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
    let count = std::rc::Rc::new(std::cell::Cell::new(0));
    let handler = Local(std::rc::Rc::clone(&count), sender);
    let local = tokio::task::LocalSet::new();
    local.spawn_local(driver.run(handler));
    client.watch(CDS, Interest::Wildcard, &ads(connector, Protocol::Sotw));
    let script = async {
        let stream = server.stream().await;
        stream.say(response(CDS, "1", vec![]));
        told.recv().await
    };
    local.run_until(script).await;
    assert_eq!(count.get(), 1);
}
