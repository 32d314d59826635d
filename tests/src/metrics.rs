//! Receivers of stats: statsd by datagrams or a connection, Envoy's metrics service, and OTLP metrics; and of OTLP logs.
//!
//! Owns the servers. Never judges what comes.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1 as otlp_logs;
use opentelemetry_proto::tonic::collector::metrics::v1 as otlp;
use outrigger_api::pb::envoy::service::metrics::v3 as envoy;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status, Streaming};

use crate::grpc_server::GrpcServer;
use crate::within;

/// Something that receives stats; it ends when dropped.
#[derive(Debug)]
pub struct Receiver<T> {
    address: SocketAddr,
    received: mpsc::UnboundedReceiver<T>,
    _server: Server,
}

/// What receives, until it is dropped.
#[derive(Debug)]
enum Server {
    Grpc(#[expect(dead_code, reason = "lives as long as this")] GrpcServer),
    Task(#[expect(dead_code, reason = "lives as long as this")] JoinSet<()>),
}

impl<T> Receiver<T> {
    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What comes next.
    pub async fn next(&mut self) -> T {
        within("stats", self.received.recv()).await.expect("the receiver runs")
    }

    /// The next that `wanted` makes something of.
    pub async fn find<F>(&mut self, wanted: impl Fn(&T) -> Option<F>) -> F {
        loop {
            if let Some(found) = wanted(&self.next().await) {
                return found;
            }
        }
    }
}

/// Datagrams, as they come.
pub async fn statsd_udp() -> Receiver<String> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = socket.local_addr().expect("a bound socket has an address");
    let (sender, received) = mpsc::unbounded_channel();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut datagram = vec![0; 65_536];
        while let Ok((count, _)) = socket.recv_from(&mut datagram).await {
            let text = String::from_utf8_lossy(&datagram[..count]).into_owned();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    Receiver { address, received, _server: Server::Task(task) }
}

/// Lines of all connections.
pub async fn statsd_tcp() -> Receiver<String> {
    let (listener, address) = bind().await;
    let (sender, received) = mpsc::unbounded_channel();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let sender = sender.clone();
            connections.spawn(async move {
                let mut lines = BufReader::new(stream).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Receiver { address, received, _server: Server::Task(task) }
}

/// Envoy's `MetricsService`.
pub async fn metrics_service() -> Receiver<envoy::StreamMetricsMessage> {
    let (sender, received) = mpsc::unbounded_channel();
    let service = envoy::metrics_service_server::MetricsServiceServer::new(Keeper(sender));
    let server = GrpcServer::start(move |request| service.clone().call(request)).await;
    Receiver { address: server.address(), received, _server: Server::Grpc(server) }
}

/// An OpenTelemetry collector.
pub async fn otlp_metrics() -> Receiver<otlp::ExportMetricsServiceRequest> {
    let (sender, received) = mpsc::unbounded_channel();
    let service = otlp::metrics_service_server::MetricsServiceServer::new(Keeper(sender));
    let server = GrpcServer::start(move |request| service.clone().call(request)).await;
    Receiver { address: server.address(), received, _server: Server::Grpc(server) }
}

/// An OpenTelemetry collector of logs.
pub async fn otlp_logs() -> Receiver<otlp_logs::ExportLogsServiceRequest> {
    otlp_logs_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
}

/// The same on this address.
pub async fn otlp_logs_at(address: SocketAddr) -> Receiver<otlp_logs::ExportLogsServiceRequest> {
    let (sender, received) = mpsc::unbounded_channel();
    let service = otlp_logs::logs_service_server::LogsServiceServer::new(Keeper(sender));
    let server = GrpcServer::listen(address, move |request| service.clone().call(request)).await;
    Receiver { address: server.address(), received, _server: Server::Grpc(server) }
}

/// An OpenTelemetry collector of logs that are posted: bodies with their path and content type.
pub async fn otlp_logs_http() -> Receiver<(String, otlp_logs::ExportLogsServiceRequest)> {
    let (sender, received) = mpsc::unbounded_channel();
    let (listener, address) = bind().await;
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let sender = sender.clone();
            let answer = service_fn(move |request| take_posted(request, sender.clone()));
            connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    Receiver { address, received, _server: Server::Task(task) }
}

async fn take_posted(
    request: http::Request<Incoming>,
    sender: mpsc::UnboundedSender<(String, otlp_logs::ExportLogsServiceRequest)>,
) -> Result<http::Response<Empty<Bytes>>, hyper::Error> {
    let kind = request.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let about = format!("{} {kind}", request.uri().path());
    let body = request.into_body().collect().await?.to_bytes();
    let mut response = http::Response::new(Empty::new());
    match prost::Message::decode(body) {
        // A test that is over looks no more.
        Ok(logs) => drop(sender.send((about, logs))),
        Err(_) => *response.status_mut() = http::StatusCode::BAD_REQUEST,
    }
    Ok(response)
}

async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    (listener, address)
}

/// Hands over each message.
struct Keeper<T>(mpsc::UnboundedSender<T>);

impl<T> Keeper<T> {
    fn keep(&self, message: T) -> Result<(), Status> {
        self.0.send(message).map_err(|_| Status::aborted("nobody looks"))
    }
}

#[tonic::async_trait]
impl envoy::metrics_service_server::MetricsService for Keeper<envoy::StreamMetricsMessage> {
    async fn stream_metrics(
        &self,
        request: Request<Streaming<envoy::StreamMetricsMessage>>,
    ) -> Result<Response<envoy::StreamMetricsResponse>, Status> {
        let mut messages = request.into_inner();
        while let Some(message) = messages.message().await? {
            self.keep(message)?;
        }
        Ok(Response::new(envoy::StreamMetricsResponse::default()))
    }
}

#[tonic::async_trait]
impl otlp::metrics_service_server::MetricsService for Keeper<otlp::ExportMetricsServiceRequest> {
    async fn export(
        &self,
        request: Request<otlp::ExportMetricsServiceRequest>,
    ) -> Result<Response<otlp::ExportMetricsServiceResponse>, Status> {
        self.keep(request.into_inner())?;
        Ok(Response::new(otlp::ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl otlp_logs::logs_service_server::LogsService for Keeper<otlp_logs::ExportLogsServiceRequest> {
    async fn export(
        &self,
        request: Request<otlp_logs::ExportLogsServiceRequest>,
    ) -> Result<Response<otlp_logs::ExportLogsServiceResponse>, Status> {
        self.keep(request.into_inner())?;
        Ok(Response::new(otlp_logs::ExportLogsServiceResponse::default()))
    }
}
