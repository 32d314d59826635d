//! Log services: a real server, on a socket of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_api::pb::envoy::config::core::v3::address::Address as WireAddress;
use outrigger_api::pb::envoy::service::accesslog::v3::access_log_service_server::{
    AccessLogService, AccessLogServiceServer,
};
use outrigger_api::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use outrigger_api::pb::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use outrigger_config::accesslog::{AccessLogSink, GrpcAccessLog};
use outrigger_config::source::{GrpcService, GrpcTarget};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::codegen::Service as _;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status, Streaming};

use super::super::entry::Entry;
use super::super::samples::{NoRuntime, Sample, access_log};
use super::super::service::LogService;
use super::super::shares::Handle;
use super::super::stats::ServiceStats;
use super::super::{AccessLogManager, AccessLogger, FlushOptions};
use crate::process::Process;
use crate::stats::{FamilyKind, Registry};
use crate::stream::ResponseFlag;

const PATIENCE: Duration = Duration::from_secs(60);

/// Passes on what it is sent. A stream ends after `limit` messages.
struct Recorder {
    messages: mpsc::UnboundedSender<(Option<String>, StreamAccessLogsMessage)>,
    limit: usize,
}

#[tonic::async_trait]
impl AccessLogService for Recorder {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let token = request.metadata().get("x-token").and_then(|token| token.to_str().ok()).map(str::to_owned);
        let mut stream = request.into_inner();
        for _ in 0..self.limit {
            let Some(message) = stream.message().await? else { break };
            self.messages.send((token.clone(), message)).map_err(|_| Status::aborted("nobody looks"))?;
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}

/// A server and what it receives.
struct Collector {
    address: SocketAddr,
    messages: mpsc::UnboundedReceiver<(Option<String>, StreamAccessLogsMessage)>,
}

impl Collector {
    async fn start(limit: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, messages) = mpsc::unbounded_channel();
        let service = AccessLogServiceServer::new(Recorder { messages: sender, limit });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                let answer = service_fn(move |request: http::Request<Incoming>| service.clone().call(request));
                let connection =
                    http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer);
                tokio::spawn(connection);
            }
        });
        Self { address, messages }
    }

    async fn next(&mut self) -> (Option<String>, StreamAccessLogsMessage) {
        timeout(PATIENCE, self.messages.recv()).await.expect("a message comes in time").expect("the server runs")
    }
}

fn config(http: bool, buffer_size_bytes: u32, interval: Duration) -> GrpcAccessLog {
    GrpcAccessLog {
        log_name: "mine".into(),
        service: GrpcService {
            target: GrpcTarget::Cluster { name: "als".into(), authority: None, max_receive_message_bytes: None },
            timeout: None,
            initial_metadata: vec![("x-token".into(), "secret".into())],
        },
        buffer_flush_interval: interval,
        buffer_size_bytes,
        http,
        request_headers: vec!["x-dup".into(), "x-miss".into()],
        response_headers: vec!["x-multi".into()],
        response_trailers: Vec::new(),
    }
}

fn manager(address: SocketAddr, registry: &Registry) -> Arc<AccessLogManager> {
    let manager = Arc::new(AccessLogManager::new(FlushOptions::default(), registry));
    let node = Node { id: "node-1".into(), ..Node::default() };
    manager.set_channels(&Arc::new(Process::default()), node, move |service| match &service.target {
        GrpcTarget::Cluster { name, .. } if &**name == "als" => {
            Ok(Endpoint::from_shared(format!("http://{address}"))?.connect_lazy())
        }
        _ => Err("no such cluster".into()),
    });
    manager
}

fn stat(registry: &Registry, name: &str) -> u64 {
    let wanted = format!("access_logs.grpc_access_log.{name}");
    let one = |family: crate::stats::Family| match family.kind {
        FamilyKind::Counter(value) => value,
        FamilyKind::Gauge(_) | FamilyKind::Histogram(_) => 0,
    };
    registry.collect(&|name| name == wanted).into_iter().map(one).sum()
}

#[tokio::test]
async fn entries_arrive_in_batches_and_the_first_says_who_we_are() {
    let mut collector = Collector::start(usize::MAX).await;
    let registry = Registry::default();
    let manager = manager(collector.address, &registry);
    let running = tokio::spawn(Arc::clone(&manager).run());
    let sink = AccessLogSink::Grpc(Arc::new(config(true, 0, Duration::from_secs(3600))));
    let logger = AccessLogger::open(&access_log(sink, None), &manager).unwrap();
    let sample = Sample::http().with_tls();
    sample.info.flag(ResponseFlag::UpstreamOverflow);
    logger.log(&sample.facts(), 0, &NoRuntime);
    let (token, message) = collector.next().await;
    assert_eq!(token.as_deref(), Some("secret"));
    let identifier = message.identifier.expect("the first message identifies us");
    assert_eq!((identifier.node.unwrap().id.as_str(), identifier.log_name.as_str()), ("node-1", "mine"));
    let Some(LogEntries::HttpLogs(entries)) = message.log_entries else { panic!("not HTTP entries") };
    let [entry] = entries.log_entry.as_slice() else { panic!("not one entry") };
    let request = entry.request.as_ref().unwrap();
    assert_eq!((request.path.as_str(), request.user_agent.as_str()), ("/ok/1?q=1", "curl/7.88.1"));
    assert_eq!(request.request_headers.get("x-dup").map(String::as_str), Some("1,2"));
    assert!(!request.request_headers.contains_key("x-miss"));
    let response = entry.response.as_ref().unwrap();
    assert_eq!(response.response_headers.get("x-multi").map(String::as_str), Some("a,b"));
    assert_eq!(response.response_code.map(|code| code.value), Some(200));
    assert_eq!(response.response_code_details, "via_upstream");
    let common = entry.common_properties.as_ref().unwrap();
    assert_eq!((common.upstream_cluster.as_str(), common.route_name.as_str()), ("alt", "myroute"));
    assert!(common.response_flags.unwrap().upstream_overflow);
    assert_eq!(common.duration.unwrap().nanos, 47_100_000);
    assert_eq!(common.tls_properties.as_ref().unwrap().tls_cipher_suite.unwrap().value, 0x1301);
    let remote = common.upstream_remote_address.clone().and_then(|address| address.address);
    let Some(WireAddress::SocketAddress(remote)) = remote else { panic!("not a socket address") };
    assert_eq!(remote.address, "127.0.0.1");

    logger.log(&sample.facts(), 0, &NoRuntime);
    let (_, second) = collector.next().await;
    assert!(second.identifier.is_none());
    assert_eq!(stat(&registry, "logs_written"), 2);
    assert_eq!(stat(&registry, "logs_dropped"), 0);
    running.abort();
}

#[tokio::test]
async fn small_batches_wait_for_the_interval_and_draining_does_not() {
    let mut collector = Collector::start(usize::MAX).await;
    let manager = manager(collector.address, &Registry::default());
    let running = tokio::spawn(Arc::clone(&manager).run());
    let open = |interval| {
        let sink = AccessLogSink::Grpc(Arc::new(config(false, 1 << 20, interval)));
        AccessLogger::open(&access_log(sink, None), &manager).unwrap()
    };
    let sample = Sample::tcp();
    sample.info.bytes_received.set(80);
    let logger = open(Duration::from_millis(30));
    for _ in 0..3 {
        logger.log(&sample.facts(), 0, &NoRuntime);
    }
    let (_, message) = collector.next().await;
    let Some(LogEntries::TcpLogs(entries)) = message.log_entries else { panic!("not TCP entries") };
    assert_eq!(entries.log_entry.len(), 3);
    assert_eq!(entries.log_entry[0].connection_properties.unwrap().received_bytes, 80);

    let slow = open(Duration::from_secs(3600));
    slow.log(&sample.facts(), 0, &NoRuntime);
    manager.drain(PATIENCE).await;
    let (_, message) = collector.next().await;
    assert!(matches!(message.log_entries, Some(LogEntries::TcpLogs(entries)) if entries.log_entry.len() == 1));
    running.abort();
}

#[tokio::test]
async fn a_stream_that_the_server_ends_is_opened_again() {
    let mut collector = Collector::start(1).await;
    let manager = manager(collector.address, &Registry::default());
    let running = tokio::spawn(Arc::clone(&manager).run());
    let sink = AccessLogSink::Grpc(Arc::new(config(true, 0, Duration::from_secs(1))));
    let logger = AccessLogger::open(&access_log(sink, None), &manager).unwrap();
    let sample = Sample::http();
    logger.log(&sample.facts(), 0, &NoRuntime);
    assert!(collector.next().await.1.identifier.is_some());
    // Entries that were handed to the dying stream may be lost, so keep logging until the next stream shows.
    let again = async {
        loop {
            logger.log(&sample.facts(), 0, &NoRuntime);
            if let Ok(Some((_, message))) = timeout(Duration::from_millis(50), collector.messages.recv()).await {
                break message;
            }
        }
    };
    let message = timeout(PATIENCE, again).await.expect("a new stream comes in time");
    assert!(message.identifier.is_some());
    running.abort();
}

#[test]
fn a_service_that_cannot_be_reached_fills_up_and_drops() {
    let registry = Registry::default();
    let stats = registry.scope::<ServiceStats>("access_logs.grpc_access_log.");
    let config = Arc::new(config(true, 16 * 1024, Duration::from_secs(1)));
    let handle = Handle::new(Arc::new(LogService::new(Arc::clone(&config), stats)));
    let sample = Sample::http();
    let entry = Entry::of(&config, &sample.facts());
    let room = (1 << 20) / entry.size();
    for _ in 0..room + 5 {
        handle.append(entry.clone());
    }
    assert_eq!(stat(&registry, "logs_written"), room as u64);
    assert_eq!(stat(&registry, "logs_dropped"), 5);
}

#[test]
fn loggers_that_differ_in_headers_only_share_a_stream() {
    let manager = AccessLogManager::new(FlushOptions::default(), &Registry::default());
    let one = Arc::new(config(true, 16, Duration::from_secs(1)));
    let mut other = config(true, 16, Duration::from_secs(1));
    other.request_headers.clear();
    let mut tcp = config(false, 16, Duration::from_secs(1));
    tcp.request_headers.clear();
    let first = manager.service(&one);
    assert!(Arc::ptr_eq(&first, &manager.service(&Arc::new(other))));
    assert!(!Arc::ptr_eq(&first, &manager.service(&Arc::new(tcp))));
    drop(first);
    let _again = manager.service(&one);
}
