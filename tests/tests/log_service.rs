//! Access logs over gRPC: HTTP and TCP entries reach a real service, also after it was away.

use outrigger_api::pb::envoy::config::core::v3::RequestMethod;
use outrigger_api::pb::envoy::config::core::v3::address::Address;
use outrigger_api::pb::envoy::data::accesslog::v3::AccessLogCommon;
use outrigger_api::pb::envoy::data::accesslog::v3::http_access_log_entry::HttpVersion;
use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster, http, http2_cluster, routes, tcp_with};
use outrigger_tests::log_service::{LogEntry, LogService, Received};
use outrigger_tests::tcp::{Conduct, HeldPort, Peer};
use outrigger_tests::{Proxy, Upstream, h1, within};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// A log to the cluster `logs` or another service.
fn log(kind: &str, name: &str, service: &str, more: &str) -> String {
    format!(
        ", access_log: [{{ name: envoy.access_loggers.{kind}_grpc, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.{}GrpcAccessLogConfig, \
         common_config: {{ log_name: {name}, transport_api_version: V3, grpc_service: {{ {service} }}, \
         buffer_flush_interval: 0.05s }}{more} }} }}]",
        if kind == "http" { "Http" } else { "Tcp" }
    )
}

const TO_CLUSTER: &str = "envoy_grpc: { cluster_name: logs }";

fn common(received: &Received) -> &AccessLogCommon {
    match &received.entry {
        LogEntry::Http(entry) => entry.common_properties.as_ref(),
        LogEntry::Tcp(entry) => entry.common_properties.as_ref(),
    }
    .expect("common properties")
}

fn port(address: &Option<outrigger_api::pb::envoy::config::core::v3::Address>) -> Option<u16> {
    use outrigger_api::pb::envoy::config::core::v3::socket_address::PortSpecifier;
    match address.as_ref()?.address.as_ref()? {
        Address::SocketAddress(socket) => match socket.port_specifier.as_ref()? {
            PortSpecifier::PortValue(port) => u16::try_from(*port).ok(),
            PortSpecifier::NamedPort(_) => None,
        },
        _ => None,
    }
}

#[tokio::test]
async fn http_entries_say_what_was_asked_and_answered() {
    let mut service = LogService::start().await;
    // Nobody else is to be there once the upstream is gone.
    let held = HeldPort::take();
    let upstream = Upstream::listen("a", held.address(), None).await;
    let headers = ", additional_request_headers_to_log: [x-trace], additional_response_headers_to_log: [x-upstream]";
    let manager = http("web", &format!("{}{}", log("http", "requests", TO_CLUSTER, headers), routes(&all_to("a"))));
    let listener = config::listener("web", &[chain(&manager, "")], "");
    let clusters = [cluster("a", &[upstream.port()]), http2_cluster("logs", &[service.address().port()])];
    let proxy = Proxy::start(&bootstrap(&[listener], &clusters)).await;
    let web = proxy.listener("web").await;
    let mut client = h1::Client::connect(web).await;
    let response =
        client.request("POST", "/path?query=1", &[("x-trace", "t-1"), ("user-agent", "tester")], b"12345").await;
    assert_eq!(response.status, 200);

    let received = service.next().await;
    assert_eq!(received.identifier.log_name, "requests");
    assert_eq!(received.identifier.node.as_ref().unwrap().id, "proxy-under-test");
    let LogEntry::Http(entry) = &received.entry else { panic!("{received:?}") };
    assert_eq!(entry.protocol_version(), HttpVersion::Http11);
    let request = entry.request.as_ref().unwrap();
    assert_eq!((request.request_method(), request.path.as_str()), (RequestMethod::Post, "/path?query=1"));
    assert_eq!((request.user_agent.as_str(), request.request_body_bytes), ("tester", 5));
    assert_eq!(request.request_headers.get("x-trace").map(String::as_str), Some("t-1"));
    let answer = entry.response.as_ref().unwrap();
    assert_eq!(answer.response_code.map(|code| code.value), Some(200));
    assert_eq!(answer.response_body_bytes, response.body.len() as u64);
    let common = common(&received);
    assert_eq!(common.upstream_cluster, "a");
    assert_eq!(port(&common.upstream_remote_address), Some(upstream.port()));
    assert_eq!(port(&common.downstream_local_address), Some(web.port()));
    assert!(common.start_time.is_some() && common.time_to_last_downstream_tx_byte.is_some());

    // A flag that says why there was no good answer.
    drop(upstream);
    assert_eq!(client.get("/again").await.status, 503);
    let received = service.next().await;
    let LogEntry::Http(entry) = &received.entry else { panic!("{received:?}") };
    assert_eq!(entry.response.as_ref().unwrap().response_code.map(|code| code.value), Some(503));
    let flags = self::common(&received).response_flags.as_ref().unwrap();
    assert!(flags.upstream_connection_failure || flags.upstream_connection_termination, "{flags:?}");
}

#[tokio::test]
async fn tcp_entries_say_what_went_through() {
    let mut service = LogService::start().await;
    let peer = Peer::start(Conduct::Greet(b"hello".to_vec())).await;
    let filter = tcp_with(&format!("cluster: a{}", log("tcp", "connections", TO_CLUSTER, "")));
    let listener = config::listener("tcp", &[chain(&filter, "")], "");
    let clusters = [cluster("a", &[peer.port()]), http2_cluster("logs", &[service.address().port()])];
    let proxy = Proxy::start(&bootstrap(&[listener], &clusters)).await;
    let mut stream = TcpStream::connect(proxy.listener("tcp").await).await.unwrap();
    let mut greeting = [0; 5];
    within("the greeting", stream.read_exact(&mut greeting)).await.unwrap();
    drop(stream);
    let received = service.next().await;
    assert_eq!(received.identifier.log_name, "connections");
    let LogEntry::Tcp(entry) = &received.entry else { panic!("{received:?}") };
    let properties = entry.connection_properties.as_ref().unwrap();
    assert_eq!((properties.received_bytes, properties.sent_bytes), (0, 5));
    assert_eq!(common(&received).upstream_cluster, "a");
    assert_eq!(port(&common(&received).upstream_remote_address), Some(peer.port()));
}

#[tokio::test]
async fn entries_go_on_after_the_service_was_away() {
    let held = HeldPort::take();
    let address = held.address();
    let mut service = LogService::listen(address).await;
    let by_metadata = format!("{TO_CLUSTER}, initial_metadata: [{{ key: x-team, value: blue }}]");
    let answer = "{ match: { prefix: / }, direct_response: { status: 204 } }";
    let manager = http("web", &format!("{}{}", log("http", "requests", &by_metadata, ""), routes(answer)));
    let listener = config::listener("web", &[chain(&manager, "")], "");
    let text = bootstrap(&[listener], &[http2_cluster("logs", &[address.port()])]);
    let proxy = Proxy::start(&text).await;
    let web = proxy.listener("web").await;
    assert_eq!(h1::get(web, "/first").await.status, 204);
    assert_eq!(service.next().await.metadata.get("x-team").unwrap(), "blue");

    drop(service);
    for path in ["/second", "/third"] {
        assert_eq!(h1::get(web, path).await.status, 204);
    }
    let mut service = LogService::listen(address).await;
    // Whatever was on its way when the service went may be lost; what comes later is not.
    assert_eq!(h1::get(web, "/last").await.status, 204);
    loop {
        let LogEntry::Http(entry) = service.next().await.entry else { panic!("not HTTP") };
        if entry.request.unwrap().path == "/last" {
            break;
        }
    }
}
