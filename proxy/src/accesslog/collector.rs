//! Sends log records to a collector of OpenTelemetry, by gRPC or HTTP.
//!
//! Owns the batches, and what happens when no collector takes one: it is tried again, and what comes meanwhile waits as long
//! as there is room. Never makes records (see `records`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use outrigger_config::accesslog::OtlpLogOutlet;
use outrigger_config::tracing::OtlpExporter;
use prost::Message as _;
use tonic::Request;
use tonic::transport::Channel;
use tracing::warn;

use super::batches::{Batches, MAX_PAUSE, MIN_PAUSE};
use super::records::{request, resource};
use super::service::Peer;
use super::shares::Service;
use super::stats::{CollectorStats, increment};
use crate::trace::otlp::{self, CONTENT_TYPE, USER_AGENT};
use crate::trace::post::Poster;

/// Records on their way to one collector.
#[derive(Debug)]
pub(super) struct Collector {
    outlet: Arc<OtlpLogOutlet>,
    stats: Arc<CollectorStats>,
    batches: Batches<LogRecord>,
}

impl Service for Collector {
    type Entry = LogRecord;

    fn batches(&self) -> &Batches<LogRecord> {
        &self.batches
    }
}

/// What became of a batch.
enum Sent {
    /// The collector has it, but for so many.
    Yes { rejected: usize },
    /// The collector does not want it.
    Refused(String),
    /// Nobody answered; it may be tried again.
    Unreachable(String),
}

enum Way {
    Grpc(otlp::Client),
    Post(Poster),
}

impl Collector {
    /// A collector to which nothing was sent.
    pub fn new(outlet: Arc<OtlpLogOutlet>, stats: Arc<CollectorStats>) -> Self {
        let batches = Batches::new(outlet.buffer_flush_interval, outlet.buffer_size_bytes);
        Self { outlet, stats, batches }
    }

    /// Where its records go.
    pub fn outlet(&self) -> &OtlpLogOutlet {
        &self.outlet
    }

    /// Hands over a record, or drops it when too much is waiting.
    pub fn append(&self, record: LogRecord) {
        let size = record.encoded_len();
        if !self.batches.append(record, size) {
            increment(&self.stats.logs_dropped);
        }
    }

    /// Sends batches until closed.
    pub async fn run(self: Arc<Self>, peer: Arc<Peer>) {
        let mut way = match &self.outlet.exporter {
            OtlpExporter::Grpc(service) => Way::Grpc(otlp::Client::new(service.clone(), Arc::clone(&peer.channels))),
            OtlpExporter::Http(service) => Way::Post(Poster::new(service.clone(), &peer.process)),
        };
        let resource = resource(&self.outlet, &peer.node);
        while self.batches.due().await {
            let records = self.batches.hold();
            let count = records.len();
            let written = self.deliver(&mut way, &request(records, &resource), count).await;
            self.batches.settle();
            self.stats.logs_written.fetch_add(written as u64, Ordering::Relaxed);
            self.stats.logs_dropped.fetch_add((count - written) as u64, Ordering::Relaxed);
        }
        self.batches.finish();
    }

    /// How many of the batch a collector took.
    async fn deliver(&self, way: &mut Way, batch: &ExportLogsServiceRequest, count: usize) -> usize {
        let mut pause = MIN_PAUSE;
        loop {
            match way.send(batch.clone()).await {
                Sent::Yes { rejected } => return count.saturating_sub(rejected),
                Sent::Refused(reason) => {
                    warn!(log_name = self.outlet.log_name, "{count} log records were refused: {reason}");
                    return 0;
                }
                Sent::Unreachable(reason) => {
                    warn!(log_name = self.outlet.log_name, "{count} log records could not be sent: {reason}");
                }
            }
            if self.batches.is_closed() {
                return 0;
            }
            self.batches.rest(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
}

impl Way {
    async fn send(&mut self, batch: ExportLogsServiceRequest) -> Sent {
        match self {
            Way::Grpc(client) => {
                let send = |channel: Channel, request: Request<_>| async move {
                    LogsServiceClient::new(channel).export(request).await
                };
                match client.call(batch, send).await {
                    Ok(response) => {
                        let partial = response.partial_success.filter(|partial| partial.rejected_log_records > 0);
                        let Some(partial) = partial else { return Sent::Yes { rejected: 0 } };
                        let (count, message) = (partial.rejected_log_records, partial.error_message);
                        warn!("the collector rejected {count} log records: {message}");
                        Sent::Yes { rejected: usize::try_from(count).unwrap_or(usize::MAX) }
                    }
                    Err(status) if otlp::may_try_again(&status) => Sent::Unreachable(otlp::reason(&status)),
                    Err(status) => Sent::Refused(otlp::reason(&status)),
                }
            }
            Way::Post(poster) => match poster.post(CONTENT_TYPE, Some(USER_AGENT), batch.encode_to_vec(), None).await {
                Ok(200..=299) => Sent::Yes { rejected: 0 },
                // Those that the OTLP specification allows to repeat.
                Ok(status @ (429 | 502 | 503 | 504)) => Sent::Unreachable(format!("HTTP status {status}")),
                Ok(status) => Sent::Refused(format!("HTTP status {status}")),
                Err(error) => Sent::Unreachable(error.to_string()),
            },
        }
    }
}
