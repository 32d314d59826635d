//! A load reporting service (`envoy.service.load_stats.v3.LoadReportingService`) that a scenario scripts.
//!
//! Owns the server. Never judges reports.

use std::net::{Ipv4Addr, SocketAddr};

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_api::pb::envoy::config::endpoint::v3::ClusterStats;
use outrigger_api::pb::envoy::service::load_stats::v3::load_reporting_service_server::{
    LoadReportingService, LoadReportingServiceServer,
};
use outrigger_api::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status, Streaming};

use crate::within;

/// A running service; it ends when dropped.
#[derive(Debug)]
pub struct LoadService {
    address: SocketAddr,
    streams: mpsc::UnboundedReceiver<LoadStream>,
    task: AbortHandle,
}

/// One stream of reports; it ends when dropped.
#[derive(Debug)]
pub struct LoadStream {
    received: mpsc::UnboundedReceiver<LoadStatsRequest>,
    answers: mpsc::UnboundedSender<Result<LoadStatsResponse, Status>>,
}

impl LoadService {
    /// Starts on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (sender, streams) = mpsc::unbounded_channel();
        let service = LoadReportingServiceServer::new(Scripted(sender));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                let answer = service_fn(move |request: http::Request<Incoming>| service.clone().call(request));
                connections
                    .spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, streams, task: task.abort_handle() }
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next stream that is opened.
    pub async fn stream(&mut self) -> LoadStream {
        within("a stream of load reports", self.streams.recv()).await.expect("the service runs")
    }
}

impl Drop for LoadService {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LoadStream {
    /// The next message.
    pub async fn next(&mut self) -> LoadStatsRequest {
        within("a load report", self.received.recv()).await.expect("the stream is open")
    }

    /// Asks for reports.
    pub fn ask(&self, response: LoadStatsResponse) {
        self.answers.send(Ok(response)).expect("the stream is open");
    }

    /// The next report that says something of a cluster that `wanted` is looking for.
    pub async fn report(&mut self, cluster: &str, wanted: impl Fn(&ClusterStats) -> bool) -> ClusterStats {
        loop {
            let found = self.next().await.cluster_stats.into_iter().find(|stats| stats.cluster_name == cluster);
            if let Some(stats) = found.filter(&wanted) {
                return stats;
            }
        }
    }
}

/// Hands over each stream.
struct Scripted(mpsc::UnboundedSender<LoadStream>);

#[tonic::async_trait]
impl LoadReportingService for Scripted {
    type StreamLoadStatsStream = UnboundedReceiverStream<Result<LoadStatsResponse, Status>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let mut requests = request.into_inner();
        let (answers, answered) = mpsc::unbounded_channel();
        let (sender, received) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(message)) = requests.message().await {
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        self.0.send(LoadStream { received, answers }).map_err(|_| Status::aborted("nobody looks"))?;
        Ok(Response::new(UnboundedReceiverStream::new(answered)))
    }
}
