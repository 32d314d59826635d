//! All exporters of the process.
//!
//! Owns who shares which exporter, and that each of them runs. Never makes spans.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use outrigger_config::source::GrpcService;
use outrigger_config::tracing::{Tail, TraceProvider};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;

use super::exporter::Exporter;
use super::span::Span;
use super::stats::ExportStats;
use crate::accesslog::ChannelError;
use crate::process::Process;

/// Makes a channel to a service.
pub type Channels = dyn Fn(&GrpcService) -> Result<Channel, ChannelError> + Send + Sync;

/// A connection manager's share in an exporter. The exporter ends, with all sent, after the last one is dropped.
#[derive(Debug)]
pub struct Tracer {
    exporter: Arc<Exporter>,
    /// `node.id`.
    pub node_id: Arc<str>,
    /// `node.locality.zone`.
    pub zone: Arc<str>,
}

impl Tracer {
    /// As configured.
    pub fn provider(&self) -> &TraceProvider {
        self.exporter.provider()
    }

    /// Says which requests are kept that nobody chose.
    pub(super) fn tail(&self) -> Option<&Tail> {
        self.exporter.tail()
    }

    /// Hands over the spans of a request that nobody chose.
    pub(super) fn keep_request(&self, spans: Vec<Span>, now: std::time::Instant) {
        self.exporter.keep_request(spans, now);
    }

    /// Hands a span over.
    pub(super) fn send(&self, span: Span) {
        self.exporter.append(span);
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.exporter.close();
    }
}

/// Shares exporters among the connection managers of all generations of the graph.
#[derive(Debug, Default)]
pub struct TraceManager {
    default_provider: OnceLock<Arc<TraceProvider>>,
    exporters: Mutex<Exporters>,
    stats: OnceLock<ExportStats>,
    zipkin_stats: OnceLock<ExportStats>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Exporters {
    /// All that some connection manager uses.
    used: Vec<Weak<Tracer>>,
    /// All that may have spans to send.
    running: Vec<Arc<Exporter>>,
    /// Not yet running.
    new: Vec<Arc<Exporter>>,
}

impl TraceManager {
    /// Says where connection managers that name no provider send their spans. Call once, before the first
    /// [`TraceManager::tracer`]; later calls change nothing.
    pub fn set_default_provider(&self, provider: Option<Arc<TraceProvider>>) {
        if let Some(provider) = provider {
            // Whoever comes first stays, as documented.
            let _ = self.default_provider.set(provider);
        }
    }

    /// The tracer for a provider, shared with all who use the like; that of the bootstrap for `None`.
    pub fn tracer(&self, provider: Option<&Arc<TraceProvider>>, process: &Process) -> Option<Arc<Tracer>> {
        let provider = provider.or(self.default_provider.get())?;
        let mut exporters = self.lock();
        exporters.used.retain(|tracer| tracer.strong_count() > 0);
        let mut used = exporters.used.iter().filter_map(Weak::upgrade);
        let same = used.find(|tracer| tracer.provider() == &**provider && !tracer.exporter.is_closed());
        if let Some(tracer) = same {
            return Some(tracer);
        }
        drop(used);
        let stats = match &**provider {
            TraceProvider::OpenTelemetry(_) => self.stats.get_or_init(|| ExportStats::otlp(&process.stats)),
            TraceProvider::Zipkin(_) => self.zipkin_stats.get_or_init(|| ExportStats::zipkin(&process.stats)),
        };
        let exporter = Arc::new(Exporter::new(Arc::clone(provider), stats.clone()));
        let tracer = Arc::new(Tracer {
            exporter: Arc::clone(&exporter),
            node_id: process.node_id.as_str().into(),
            zone: process.node_zone.as_str().into(),
        });
        exporters.used.push(Arc::downgrade(&tracer));
        exporters.new.push(exporter);
        self.wake.notify_one();
        Some(tracer)
    }

    /// Runs exporters, for ever. For the control thread, once.
    pub async fn run(&self, process: &Arc<Process>, channels: Arc<Channels>) {
        let mut running = JoinSet::new();
        loop {
            while running.try_join_next().is_some() {}
            for exporter in self.to_start() {
                running.spawn(exporter.run(Arc::clone(process), Arc::clone(&channels)));
            }
            self.wake.notified().await;
        }
    }

    fn to_start(&self) -> Vec<Arc<Exporter>> {
        let mut exporters = self.lock();
        exporters.running.retain(|exporter| !exporter.is_finished());
        let new = std::mem::take(&mut exporters.new);
        exporters.running.extend(new.iter().map(Arc::clone));
        new
    }

    /// Sends what waits, for at most `limit`. For the end of the process, while [`TraceManager::run`] is still polled.
    pub async fn drain(&self, limit: Duration) {
        let all: Vec<_> = {
            let exporters = self.lock();
            exporters.running.iter().chain(&exporters.new).map(Arc::clone).collect()
        };
        let deadline = Instant::now() + limit;
        for exporter in &all {
            exporter.close();
        }
        for exporter in all {
            if timeout_at(deadline, exporter.finished()).await.is_err() {
                tracing::warn!("the last spans could not be sent");
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Exporters> {
        self.exporters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::tracing::OpenTelemetry;

    use super::super::otlp::tests::config;
    use super::*;

    fn provider(service_name: &str) -> Arc<TraceProvider> {
        let resource = vec![("service.name".into(), service_name.into())];
        Arc::new(TraceProvider::OpenTelemetry(OpenTelemetry { resource, ..config(true) }))
    }

    #[test]
    fn like_providers_share_an_exporter_until_the_last_user_is_gone() {
        let process = Process::default();
        let traces = &process.traces;
        assert!(traces.tracer(None, &process).is_none());
        traces.set_default_provider(Some(provider("a")));
        let first = traces.tracer(None, &process).unwrap();
        let second = traces.tracer(Some(&provider("a")), &process).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        let other = traces.tracer(Some(&provider("b")), &process).unwrap();
        assert!(!Arc::ptr_eq(&first, &other));
        let exporter = Arc::clone(&first.exporter);
        drop((first, second));
        assert!(exporter.is_closed() && !other.exporter.is_closed());
        assert!(!Arc::ptr_eq(&traces.tracer(None, &process).unwrap().exporter, &exporter));
    }
}
