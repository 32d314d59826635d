//! Sends entries to a gRPC access log service (`envoy.service.accesslog.v3.AccessLogService`).
//!
//! Owns the buffer between workers and the stream, the batches, and when to connect again. Never builds entries (see
//! `entry`) and never makes channels itself.

use std::error::Error;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_api::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use outrigger_api::pb::envoy::service::accesslog::v3::access_log_service_client::AccessLogServiceClient;
use outrigger_api::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    HttpAccessLogEntries, Identifier, LogEntries, TcpAccessLogEntries,
};
use outrigger_config::accesslog::GrpcAccessLog;
use outrigger_config::source::GrpcService;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tracing::warn;

use super::entry::Entry;
use super::stats::{ServiceStats, increment};
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
    pub channels: Box<Channels>,
}

/// One stream of entries of one kind, under one log name.
#[derive(Debug)]
pub(super) struct LogService {
    config: Arc<GrpcAccessLog>,
    stats: Arc<ServiceStats>,
    /// The lock is held for a push, or to take all; never for I/O.
    waiting: Mutex<Waiting>,
    wake: Notify,
    closed: AtomicBool,
    finished: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Waiting {
    entries: Vec<Entry>,
    bytes: usize,
    /// When the oldest came; set while there is one.
    since: Option<Instant>,
}

/// A logger's share in a service. The service ends, with all sent, after the last one is dropped.
#[derive(Debug)]
pub(super) struct ServiceHandle(Arc<LogService>);

impl ServiceHandle {
    /// A share in `service`.
    pub fn new(service: Arc<LogService>) -> Self {
        Self(service)
    }

    /// What it is a share in.
    pub fn service(&self) -> &LogService {
        &self.0
    }

    /// Hands over an entry, or drops it when too much is waiting.
    pub fn append(&self, entry: Entry) {
        self.0.append(entry);
    }
}

impl Drop for ServiceHandle {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl LogService {
    /// A service to which nothing was sent.
    pub fn new(config: Arc<GrpcAccessLog>, stats: Arc<ServiceStats>) -> Self {
        Self {
            config,
            stats,
            waiting: Mutex::default(),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            finished: watch::Sender::new(false),
        }
    }

    /// Whether entries of a logger with this configuration can go this way.
    pub fn serves(&self, config: &GrpcAccessLog) -> bool {
        let own = &*self.config;
        !self.is_closed()
            && own.log_name == config.log_name
            && own.service == config.service
            && own.buffer_flush_interval == config.buffer_flush_interval
            && own.buffer_size_bytes == config.buffer_size_bytes
            && own.http == config.http
    }

    /// Sends what is waiting, and ends.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Everything was sent or given up.
    pub fn is_finished(&self) -> bool {
        *self.finished.borrow()
    }

    /// Waits until [`LogService::is_finished`].
    pub async fn finished(&self) {
        // The sender is part of `self`, so it cannot go away.
        let _ = self.finished.subscribe().wait_for(|finished| *finished).await;
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn append(&self, entry: Entry) {
        let size = entry.size();
        let limit = (self.config.buffer_size_bytes as usize).max(1);
        let (before, after) = {
            let mut waiting = self.waiting();
            let before = waiting.bytes;
            if before + size > MAX_WAITING_BYTES.max(limit) {
                increment(&self.stats.logs_dropped);
                return;
            }
            waiting.bytes += size;
            waiting.entries.push(entry);
            waiting.since.get_or_insert_with(Instant::now);
            (before, waiting.bytes)
        };
        increment(&self.stats.logs_written);
        if before == 0 || (before < limit && after >= limit) {
            self.wake.notify_one();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a stream as long as there is something to send. Ends after [`LogService::close`].
    pub async fn run(self: Arc<Self>, peer: Arc<Peer>) {
        let mut pause = MIN_PAUSE;
        // A process that logs nothing holds no connection.
        while self.something_waits().await {
            match self.stream(&peer).await {
                Ok(()) => break,
                Err((status, sent)) => {
                    if sent {
                        pause = MIN_PAUSE;
                    }
                    warn!(log_name = self.config.log_name, error = %status, "access log stream failed");
                    if self.is_closed() {
                        break;
                    }
                    self.rest(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
        let lost = std::mem::take(&mut *self.waiting()).entries;
        self.stats.logs_dropped.fetch_add(lost.len() as u64, Ordering::Relaxed);
        self.finished.send_replace(true);
    }

    /// Waits for `pause`, or until closed: what is left then gets one more chance.
    async fn rest(&self, pause: Duration) {
        let end = Instant::now() + pause;
        while !self.is_closed() {
            tokio::select! {
                () = sleep_until(end) => return,
                () = self.wake.notified() => {}
            }
        }
    }

    /// False when closed with nothing left.
    async fn something_waits(&self) -> bool {
        loop {
            if !self.waiting().entries.is_empty() {
                return true;
            }
            if self.is_closed() {
                return false;
            }
            self.wake.notified().await;
        }
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
        while self.due(call.as_mut()).await.map_err(|status| (status, identifier.is_none()))? {
            let permit = tokio::select! {
                result = call.as_mut() => return Err((ended(result), identifier.is_none())),
                permit = sender.reserve() => permit,
            };
            // The receiving half is gone when the call is over, which the select above sees next time.
            let Ok(permit) = permit else { continue };
            // Taken out only now: what a broken stream did not take waits for the next one.
            let entries = std::mem::take(&mut *self.waiting()).entries;
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

    /// Waits until a batch is due; false when closed with nothing left. Fails when the call ends before.
    async fn due<T>(&self, mut call: impl Future<Output = Result<T, Status>> + Unpin) -> Result<bool, Status> {
        loop {
            let (bytes, since) = {
                let waiting = self.waiting();
                (waiting.bytes, waiting.since)
            };
            if self.is_closed() || bytes >= self.config.buffer_size_bytes as usize && bytes > 0 {
                return Ok(bytes > 0);
            }
            let timer = async {
                match since {
                    Some(since) => sleep_until(since + self.config.buffer_flush_interval).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                result = &mut call => return Err(ended(result)),
                () = self.wake.notified() => {}
                () = timer => return Ok(true),
            }
        }
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

/// What one service may have waiting, unless its own batches are larger.
const MAX_WAITING_BYTES: usize = 1024 * 1024;
/// Between a broken stream and the next; doubled each time, up to `MAX_PAUSE`.
const MIN_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How long the end of a stream waits for the server.
const GOODBYE: Duration = Duration::from_secs(1);
