//! The mock over real sockets, with a plain gRPC client in place of a proxy.

use std::time::Duration;

use control_plane_mock::{Corruption, Meaning, MockControlPlane, TlsPem, WaitError, types};
use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_api::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use outrigger_api::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use outrigger_api::pb::envoy::service::endpoint::v3::endpoint_discovery_service_client::EndpointDiscoveryServiceClient;
use outrigger_api::pb::google::rpc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status, Streaming};

const SOON: Duration = Duration::from_secs(60);
/// Long enough for a response that should not come to come.
const A_MOMENT: Duration = Duration::from_millis(200);

const CLUSTER_A: &str = "
resources:
- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: a
";

async fn connect(mock: &MockControlPlane) -> Channel {
    Endpoint::from_shared(format!("http://{}", mock.address())).unwrap().connect().await.unwrap()
}

/// A state-of-the-world client on one aggregated stream.
struct Sotw {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Sotw {
    async fn open(channel: Channel) -> Result<Self, Status> {
        let (requests, outbound) = mpsc::channel(16);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.stream_aggregated_resources(ReceiverStream::new(outbound)).await?.into_inner();
        Ok(Self { requests, responses })
    }

    async fn ask(&self, type_url: &str, nonce: &str, error: Option<&str>) {
        let request = DiscoveryRequest {
            type_url: type_url.to_owned(),
            response_nonce: nonce.to_owned(),
            node: Some(Node { id: "wire-test".to_owned(), ..Default::default() }),
            error_detail: error.map(|message| rpc::Status {
                code: Code::InvalidArgument.into(),
                message: message.to_owned(),
                details: Vec::new(),
            }),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> Result<DiscoveryResponse, Status> {
        let message = tokio::time::timeout(SOON, self.responses.message()).await.expect("no response");
        message.map(|response| response.expect("the stream ended without a status"))
    }

    async fn silent(&mut self) -> bool {
        tokio::time::timeout(A_MOMENT, self.responses.message()).await.is_err()
    }
}

#[tokio::test]
async fn a_client_gets_resources_and_its_answers_are_heard() {
    let mock = MockControlPlane::start().await;
    mock.set_yaml(CLUSTER_A).unwrap();
    let mut client = Sotw::open(connect(&mock).await).await.unwrap();
    client.ask(types::CLUSTER, "", None).await;
    let first = client.next().await.unwrap();
    assert_eq!((first.version_info.as_str(), first.resources.len()), ("1", 1));
    client.ask(types::CLUSTER, &first.nonce, None).await;
    let ack = mock.wait_ack("cds", SOON).await.unwrap();
    assert_eq!((ack.version.as_str(), ack.streams.len()), ("1", 1));

    mock.set_yaml(&CLUSTER_A.replace("name: a", "name: b")).unwrap();
    let second = client.next().await.unwrap();
    assert_eq!(second.resources.len(), 2);
    client.ask(types::CLUSTER, &second.nonce, Some("b is odd")).await;
    let nack = mock.wait_nack("cds", SOON).await.unwrap();
    assert_eq!((nack.version.as_str(), nack.error_detail.message.as_str()), ("2", "b is odd"));
    assert!(matches!(mock.wait_ack("cds", SOON).await, Err(WaitError::Nacked(_))));

    assert!(mock.remove("cds", "b"));
    let third = client.next().await.unwrap();
    client.ask(types::CLUSTER, &third.nonce, None).await;
    mock.wait_ack_of("cds", "a", SOON).await.unwrap();
    mock.wait_ack("cds", SOON).await.unwrap();
    let meanings: Vec<_> = mock.requests(0).iter().map(|asked| asked.meaning).collect();
    assert_eq!(meanings, [Meaning::First, Meaning::Ack, Meaning::Nack, Meaning::Ack]);
    assert_eq!(mock.streams()[0].node_id, "wire-test");

    let error = mock.wait_ack("lds", Duration::from_millis(1)).await.unwrap_err().to_string();
    assert!(error.contains("has not asked for it"), "{error}");
}

#[tokio::test]
async fn faults_happen_when_they_are_ordered() {
    let mock = MockControlPlane::start().await;
    mock.set_yaml(CLUSTER_A).unwrap();
    mock.hold("cds");
    let mut client = Sotw::open(connect(&mock).await).await.unwrap();
    client.ask(types::CLUSTER, "", None).await;
    assert!(client.silent().await);
    mock.corrupt("cds", Corruption::WrongType);
    mock.release("cds");
    assert_eq!(client.next().await.unwrap().resources[0].type_url, types::SECRET);

    mock.delay("cds", A_MOMENT);
    let before = std::time::Instant::now();
    mock.push("cds");
    assert_eq!(client.next().await.unwrap().resources[0].type_url, types::CLUSTER);
    assert!(before.elapsed() >= A_MOMENT);

    assert_eq!(mock.drop_streams(), 1);
    assert_eq!(client.next().await.unwrap_err().code(), Code::Unavailable);
    mock.refuse(Some(Code::ResourceExhausted));
    let refused = Sotw::open(connect(&mock).await).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn an_aggregated_stream_needs_types() {
    let mock = MockControlPlane::start().await;
    let mut client = Sotw::open(connect(&mock).await).await.unwrap();
    client.ask("", "", None).await;
    assert_eq!(client.next().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn the_server_stops_dies_and_comes_back_on_its_port() {
    let mock = MockControlPlane::start().await;
    mock.set_yaml(CLUSTER_A).unwrap();
    let address = mock.address();
    for abrupt in [false, true] {
        let mut client = Sotw::open(connect(&mock).await).await.unwrap();
        client.ask(types::CLUSTER, "", None).await;
        client.next().await.unwrap();
        if abrupt {
            mock.kill().await;
        } else {
            mock.stop().await;
        }
        assert!(client.next().await.is_err());
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
        mock.wait_for(SOON, |world| (world.stream_count() == 0).then_some(())).await.unwrap();
        mock.restart().await.unwrap();
        assert_eq!(mock.address(), address);
    }
    let mut client = Sotw::open(connect(&mock).await).await.unwrap();
    client.ask(types::CLUSTER, "", None).await;
    client.next().await.unwrap();
    mock.cut_connections().await;
    assert!(client.next().await.is_err());
    Sotw::open(connect(&mock).await).await.unwrap();
}

/// Opens a delta stream for one type and gives back the first response.
async fn first_delta(channel: Channel, request: DeltaDiscoveryRequest) -> DeltaDiscoveryResponse {
    let (requests, outbound) = mpsc::channel(16);
    requests.send(request).await.unwrap();
    let mut client = EndpointDiscoveryServiceClient::new(channel);
    let mut responses = client.delta_endpoints(ReceiverStream::new(outbound)).await.unwrap().into_inner();
    tokio::time::timeout(SOON, responses.message()).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn a_stream_of_one_type_needs_no_type_and_unix_sockets_serve_it_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("xds.sock");
    let mock = MockControlPlane::builder().unix(&path).start().await.unwrap();
    mock.set_yaml(
        "
        '@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
        cluster_name: a
        ",
    )
    .unwrap();
    let ask = || DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["a".to_owned(), "b".to_owned()],
        ..Default::default()
    };
    let over_tcp = first_delta(connect(&mock).await, ask()).await;
    assert_eq!(over_tcp.type_url, types::ENDPOINTS);
    assert_eq!((over_tcp.resources[0].name.as_str(), over_tcp.removed_resources), ("a", vec!["b".to_owned()]));
    let channel = Endpoint::from_shared(format!("unix:{}", path.display())).unwrap().connect().await.unwrap();
    assert_eq!(first_delta(channel, ask()).await.resources.len(), 1);
}

#[tokio::test]
async fn tls_is_served_with_the_given_certificate() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let pem = TlsPem { certificate: made.cert.pem(), key: made.signing_key.serialize_pem(), client_ca: None };
    let mock = MockControlPlane::builder().tls(pem).start().await.unwrap();
    mock.set_yaml(CLUSTER_A).unwrap();
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(made.cert.pem())).domain_name("localhost");
    let endpoint = Endpoint::from_shared(format!("https://{}", mock.address())).unwrap().tls_config(tls).unwrap();
    let mut client = Sotw::open(endpoint.connect().await.unwrap()).await.unwrap();
    client.ask(types::CLUSTER, "", None).await;
    assert_eq!(client.next().await.unwrap().resources.len(), 1);
}

#[tokio::test]
async fn a_directory_is_followed_and_the_last_good_state_stays() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cds.yaml");
    std::fs::write(&file, CLUSTER_A).unwrap();
    let mock = MockControlPlane::builder().directory(directory.path()).start().await.unwrap();
    let names = |mock: &MockControlPlane| -> Vec<String> {
        mock.look(|world| world.store.of(types::CLUSTER).resources.keys().cloned().collect())
    };
    let until = async |wanted: &[&str]| {
        let found =
            mock.wait_for(SOON, |world| world.store.of(types::CLUSTER).resources.keys().eq(wanted).then_some(())).await;
        assert!(found.is_some(), "{wanted:?} never came: {:?}", names(&mock));
    };
    assert_eq!(names(&mock), ["a"]);
    std::fs::write(directory.path().join("more.yaml"), CLUSTER_A.replace("name: a", "name: b")).unwrap();
    until(&["a", "b"]).await;
    std::fs::write(&file, "resources: [").unwrap();
    let error = mock.wait_for(SOON, |world| world.directory_error.clone()).await.expect("the file is looked at");
    assert!(error.contains("cds.yaml"), "{error}");
    assert_eq!(names(&mock), ["a", "b"]);
    std::fs::remove_file(&file).unwrap();
    until(&["b"]).await;
}

/// One request to the control port: status and body.
async fn control(mock: &MockControlPlane, method: &str, target: &str, body: &str) -> (u16, String) {
    let mut socket = tokio::net::TcpStream::connect(mock.control_address().unwrap()).await.unwrap();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nhost: control\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn the_control_port_does_what_the_library_does() {
    let mock = MockControlPlane::builder().control("127.0.0.1:0".parse().unwrap()).start().await.unwrap();
    let (status, body) = control(&mock, "POST", "/set", CLUSTER_A).await;
    assert_eq!(status, 200, "{body}");
    assert!(body.contains(r#""name":"a""#), "{body}");
    let (status, body) = control(&mock, "POST", "/set", "resources:\n- '@type': nothing.Known\n").await;
    assert_eq!(status, 400, "{body}");
    let (_, body) = control(&mock, "GET", "/resources?type=cds", "").await;
    assert!(body.contains(types::CLUSTER), "{body}");

    let mut client = Sotw::open(connect(&mock).await).await.unwrap();
    client.ask(types::CLUSTER, "", None).await;
    let nonce = client.next().await.unwrap().nonce;
    let (status, body) = control(&mock, "GET", "/wait_ack?type=cds&timeout_ms=50", "").await;
    assert_eq!(status, 408, "{body}");
    client.ask(types::CLUSTER, &nonce, Some("no such thing")).await;
    let (status, body) = control(&mock, "GET", "/wait_nack?type=cds", "").await;
    assert_eq!(status, 200);
    assert!(body.contains("no such thing"), "{body}");
    assert_eq!(control(&mock, "GET", "/wait_ack?type=cds", "").await.0, 409);
    let (_, body) = control(&mock, "GET", "/requests?after=1", "").await;
    assert!(body.contains(r#""meaning":"nack""#), "{body}");
    let (_, body) = control(&mock, "GET", "/streams", "").await;
    assert!(body.contains("wire-test"), "{body}");

    assert_eq!(control(&mock, "POST", "/hold?type=cds", "").await.0, 200);
    assert_eq!(control(&mock, "POST", "/generate?clusters=2&endpoints=3", "").await.0, 200);
    let (_, body) = control(&mock, "GET", "/state", "").await;
    assert!(body.contains("cluster-1") && body.contains(r#""held":true"#), "{body}");
    assert_eq!(control(&mock, "POST", "/remove?type=cds&name=a", "").await.1, "{\"removed\":true}\n");
    let (_, body) = control(&mock, "POST", "/drop", "").await;
    assert_eq!(body, "{\"dropped\":1}\n");
    assert_eq!(control(&mock, "POST", "/corrupt?type=cds&how=badly", "").await.0, 400);
    assert_eq!(control(&mock, "POST", "/nothing", "").await.0, 404);
    assert_eq!(control(&mock, "GET", "/", "").await.0, 200);
}
