//! A gRPC access log service (`envoy.service.accesslog.v3.AccessLogService`) that keeps what it is sent.
//!
//! Owns the server. Never judges entries.

use std::net::{Ipv4Addr, SocketAddr};

use outrigger_api::pb::envoy::data::accesslog::v3::{HttpAccessLogEntry, TcpAccessLogEntry};
use outrigger_api::pb::envoy::service::accesslog::v3::access_log_service_server::{
    AccessLogService, AccessLogServiceServer,
};
use outrigger_api::pb::envoy::service::accesslog::v3::stream_access_logs_message::{Identifier, LogEntries};
use outrigger_api::pb::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use tokio::sync::mpsc;
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status, Streaming};

use crate::grpc_server::GrpcServer;
use crate::within;

/// A running service; it ends when dropped.
#[derive(Debug)]
pub struct LogService {
    server: GrpcServer,
    received: mpsc::UnboundedReceiver<Received>,
}

/// One entry with what its stream said of itself.
#[derive(Clone, Debug)]
pub struct Received {
    /// From the first message of the stream: node and name of the log.
    pub identifier: Identifier,
    /// Headers of the stream.
    pub metadata: tonic::metadata::MetadataMap,
    /// The entry.
    pub entry: LogEntry,
}

/// An entry of either kind.
#[derive(Clone, Debug)]
pub enum LogEntry {
    Http(Box<HttpAccessLogEntry>),
    Tcp(Box<TcpAccessLogEntry>),
}

impl LogService {
    /// Starts on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        Self::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
    }

    /// Starts on this address.
    pub async fn listen(address: SocketAddr) -> Self {
        let (sender, received) = mpsc::unbounded_channel();
        let service = AccessLogServiceServer::new(Keeper(sender));
        let server = GrpcServer::listen(address, move |request| service.clone().call(request)).await;
        Self { server, received }
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The next entry that arrives.
    pub async fn next(&mut self) -> Received {
        within("an access log entry", self.received.recv()).await.expect("the service runs")
    }
}

/// Passes on each entry.
struct Keeper(mpsc::UnboundedSender<Received>);

#[tonic::async_trait]
impl AccessLogService for Keeper {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let metadata = request.metadata().clone();
        let mut stream = request.into_inner();
        let mut identifier = None;
        while let Some(StreamAccessLogsMessage { identifier: given, log_entries }) = stream.message().await? {
            identifier = given.or(identifier);
            let identifier = identifier.clone().ok_or_else(|| Status::invalid_argument("no identifier"))?;
            let entries: Vec<LogEntry> = match log_entries {
                Some(LogEntries::HttpLogs(logs)) => {
                    logs.log_entry.into_iter().map(|e| LogEntry::Http(e.into())).collect()
                }
                Some(LogEntries::TcpLogs(logs)) => {
                    logs.log_entry.into_iter().map(|e| LogEntry::Tcp(e.into())).collect()
                }
                None => return Err(Status::invalid_argument("no entries")),
            };
            for entry in entries {
                let received = Received { identifier: identifier.clone(), metadata: metadata.clone(), entry };
                self.0.send(received).map_err(|_| Status::aborted("nobody looks"))?;
            }
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}
