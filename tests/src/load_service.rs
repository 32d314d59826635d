//! A load reporting service (`envoy.service.load_stats.v3.LoadReportingService`) that a scenario scripts.
//!
//! Owns the server. Never judges reports.

use std::net::SocketAddr;

use outrigger_api::pb::envoy::config::endpoint::v3::ClusterStats;
use outrigger_api::pb::envoy::service::load_stats::v3::load_reporting_service_server::{
    LoadReportingService, LoadReportingServiceServer,
};
use outrigger_api::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status, Streaming};

use crate::grpc_server::GrpcServer;
use crate::within;

/// A running service; it ends when dropped.
#[derive(Debug)]
pub struct LoadService {
    server: GrpcServer,
    streams: mpsc::UnboundedReceiver<LoadStream>,
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
        let (sender, streams) = mpsc::unbounded_channel();
        let service = LoadReportingServiceServer::new(Scripted(sender));
        let server = GrpcServer::start(move |request| service.clone().call(request)).await;
        Self { server, streams }
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The next stream that is opened.
    pub async fn stream(&mut self) -> LoadStream {
        within("a stream of load reports", self.streams.recv()).await.expect("the service runs")
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
