//! Sends entries to a gRPC access log service (`envoy.service.accesslog.v3.AccessLogService`).
//!
//! Owns the stream, and when to connect again. Never builds entries (see `entry`) and never makes channels itself.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_api::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use outrigger_api::pb::envoy::service::accesslog::v3::access_log_service_client::AccessLogServiceClient;
use outrigger_api::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    HttpAccessLogEntries, Identifier, LogEntries, TcpAccessLogEntries,
};
use outrigger_config::accesslog::GrpcAccessLog;
use outrigger_config::source::GrpcService;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tracing::warn;

use super::batches::{Batches, MAX_PAUSE, MIN_PAUSE};
use super::entry::Entry;
use super::shares::Service;
use super::stats::{ServiceStats, increment};
use crate::process::Process;
use crate::upstream::call_metadata::call_metadata;

/// Why there is no channel to a service.
pub type ChannelError = Box<dyn Error + Send + Sync>;

/// Makes a channel to a service.
pub(super) type Channels = dyn Fn(&GrpcService) -> Result<Channel, ChannelError> + Send + Sync;

/// What streams need from the process.
pub(super) struct Peer {
    /// Who we are.
    pub node: Node,
    /// Makes channels.
    pub channels: Arc<Channels>,
    /// Has the clusters that are posted to.
    pub process: Arc<Process>,
}

/// One stream of entries of one kind, under one log name.
#[derive(Debug)]
pub(super) struct LogService {
    config: Arc<GrpcAccessLog>,
    stats: Arc<ServiceStats>,
    batches: Batches<Entry>,
}

impl Service for LogService {
    type Entry = Entry;

    fn batches(&self) -> &Batches<Entry> {
        &self.batches
    }
}

impl LogService {
    /// A service to which nothing was sent.
    pub fn new(config: Arc<GrpcAccessLog>, stats: Arc<ServiceStats>) -> Self {
        let batches = Batches::new(config.buffer_flush_interval, config.buffer_size_bytes);
        Self { config, stats, batches }
    }

    /// Whether entries of a logger with this configuration can go this way.
    pub fn serves(&self, config: &GrpcAccessLog) -> bool {
        let own = &*self.config;
        own.log_name == config.log_name
            && own.service == config.service
            && own.buffer_flush_interval == config.buffer_flush_interval
            && own.buffer_size_bytes == config.buffer_size_bytes
            && own.http == config.http
    }

    /// Hands over an entry, or drops it when too much is waiting.
    pub fn append(&self, entry: Entry) {
        let size = entry.size();
        let appended = self.batches.append(entry, size);
        increment(if appended { &self.stats.logs_written } else { &self.stats.logs_dropped });
    }

    /// Keeps a stream as long as there is something to send. Ends after its last user.
    pub async fn run(self: Arc<Self>, peer: Arc<Peer>) {
        let mut pause = MIN_PAUSE;
        // A process that logs nothing holds no connection.
        while self.batches.something_waits().await {
            match self.stream(&peer).await {
                Ok(()) => break,
                Err((status, sent)) => {
                    if sent {
                        pause = MIN_PAUSE;
                    }
                    warn!(log_name = self.config.log_name, error = %status, "access log stream failed");
                    if self.batches.is_closed() {
                        break;
                    }
                    self.batches.rest(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
        let lost = self.batches.take();
        self.stats.logs_dropped.fetch_add(lost.len() as u64, Ordering::Relaxed);
        self.batches.finish();
    }

    /// One stream, until all is sent after closing, or until it breaks: why, and whether anything was sent.
    async fn stream(&self, peer: &Peer) -> Result<(), (Status, bool)> {
        let service = &self.config.service;
        let channel = (peer.channels)(service).map_err(|error| (Status::unavailable(error.to_string()), false))?;
        let (sender, receiver) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(receiver));
        *request.metadata_mut() =
            call_metadata(service).map_err(|error| (Status::unauthenticated(error.to_string()), false))?;
        let mut client = AccessLogServiceClient::new(channel);
        let mut call = pin!(client.stream_access_logs(request));
        let mut identifier = Some(Identifier { node: Some(peer.node.clone()), log_name: self.config.log_name.clone() });
        while self.batches.due_unless(call.as_mut()).await.map_err(|result| (ended(result), identifier.is_none()))? {
            let permit = tokio::select! {
                result = call.as_mut() => return Err((ended(result), identifier.is_none())),
                permit = sender.reserve() => permit,
            };
            // The receiving half is gone when the call is over, which the select above sees next time.
            let Ok(permit) = permit else { continue };
            // Taken out only now: what a broken stream did not take waits for the next one.
            let entries = self.batches.take();
            permit.send(StreamAccessLogsMessage {
                identifier: identifier.take(),
                log_entries: self.log_entries(entries),
            });
        }
        drop(sender);
        // The server may answer at its leisure; an answer means that it has seen all.
        let _ = timeout(GOODBYE, call).await;
        Ok(())
    }

    fn log_entries(&self, entries: Vec<Entry>) -> Option<LogEntries> {
        let (mut http, mut tcp) = (Vec::new(), Vec::new());
        for entry in entries {
            match entry {
                Entry::Http(entry) => http.push(*entry),
                Entry::Tcp(entry) => tcp.push(*entry),
            }
        }
        Some(if self.config.http {
            LogEntries::HttpLogs(HttpAccessLogEntries { log_entry: http })
        } else {
            LogEntries::TcpLogs(TcpAccessLogEntries { log_entry: tcp })
        })
    }
}

/// Servers never answer while they listen, so an answer is the end as much as an error.
fn ended<T>(result: Result<T, Status>) -> Status {
    result.err().unwrap_or_else(|| Status::unavailable("the server ended the stream"))
}

/// How long the end of a stream waits for the server.
const GOODBYE: Duration = Duration::from_secs(1);
