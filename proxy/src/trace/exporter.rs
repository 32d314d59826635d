//! Batches of spans on their way to one provider.
//!
//! Owns the buffer between workers and the control thread, when a batch is due, and what happens when no collector takes
//! it: spans wait as long as there is room, the newest ones are given up. Never makes spans.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outrigger_config::tracing::{OtlpExporter, Tail, TraceProvider};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::manager::Channels;
use super::post::{PostError, Poster};
use super::span::Span;
use super::stats::{ExportStats, add};
use super::tail::Budget;
use super::{otlp, zipkin};
use crate::process::Process;

/// Spans on their way to one provider.
#[derive(Debug)]
pub struct Exporter {
    provider: Arc<TraceProvider>,
    stats: ExportStats,
    /// Of requests that nobody chose; `None` if these are not kept.
    budget: Option<Budget>,
    /// The lock is held for a push, or to take all; never for I/O.
    waiting: Mutex<Waiting>,
    /// So many are sent without waiting for more.
    enough: AtomicUsize,
    wake: Notify,
    closed: AtomicBool,
    finished: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Waiting {
    spans: Vec<Span>,
    /// When the oldest came; set while there is one.
    since: Option<Instant>,
}

/// What became of a batch.
enum Sent {
    /// A collector has it.
    Yes,
    /// A collector does not want it.
    Refused(String),
    /// Nobody answered; it may be tried again.
    Unreachable(String),
}

impl Exporter {
    /// An exporter that nothing was handed to.
    pub fn new(provider: Arc<TraceProvider>, stats: ExportStats) -> Self {
        let budget = match &*provider {
            TraceProvider::OpenTelemetry(config) => {
                config.tail.map(|tail| Budget::new(tail, Instant::now().into_std()))
            }
            TraceProvider::Zipkin(_) => None,
        };
        Self {
            provider,
            stats,
            budget,
            waiting: Mutex::default(),
            enough: AtomicUsize::new(DEFAULT_ENOUGH),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            finished: watch::Sender::new(false),
        }
    }

    /// As configured.
    pub fn provider(&self) -> &Arc<TraceProvider> {
        &self.provider
    }

    /// Hands a span over, or drops it when too many wait.
    pub fn append(&self, span: Span) {
        let enough = self.enough.load(Ordering::Relaxed).max(1);
        let (before, after) = {
            let mut waiting = self.waiting();
            let before = waiting.spans.len();
            if before >= self.room() {
                drop(waiting);
                return add(&self.stats.spans_dropped, 1);
            }
            waiting.spans.push(span);
            waiting.since.get_or_insert_with(Instant::now);
            (before, before + 1)
        };
        if before == 0 || before < enough && after >= enough {
            self.wake.notify_one();
        }
    }

    /// Says which requests are kept that nobody chose.
    pub fn tail(&self) -> Option<&Tail> {
        self.budget.as_ref().map(|budget| &budget.tail)
    }

    /// Hands over the spans of a request that nobody chose, if the budget has room for all of them.
    pub fn keep_request(&self, spans: Vec<Span>, now: std::time::Instant) {
        let Some(budget) = &self.budget else { return };
        if !budget.take(spans.iter().map(Span::bytes).sum(), now) {
            return add(&self.stats.tail_over_budget, 1);
        }
        add(&self.stats.tail_kept, 1);
        for span in spans {
            self.append(span);
        }
    }

    /// Sends what waits, and ends.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Whether [`Exporter::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Everything was sent or given up.
    pub fn is_finished(&self) -> bool {
        *self.finished.borrow()
    }

    /// Waits until [`Exporter::is_finished`].
    pub async fn finished(&self) {
        // The sender is part of `self`, so it cannot go away.
        let _ = self.finished.subscribe().wait_for(|finished| *finished).await;
    }

    fn room(&self) -> usize {
        match &*self.provider {
            TraceProvider::OpenTelemetry(config) => config.max_waiting,
            TraceProvider::Zipkin(_) => ZIPKIN_ROOM,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends batches until closed.
    pub async fn run(self: Arc<Self>, process: Arc<Process>, channels: Arc<Channels>) {
        let mut line = Line::new(&self, &process, channels);
        let mut pause = MIN_PAUSE;
        while self.due(&process).await {
            let batch = std::mem::take(&mut *self.waiting()).spans;
            let count = batch.len();
            match line.send(&batch).await {
                Sent::Yes => {
                    add(&self.stats.spans_sent, count);
                    pause = MIN_PAUSE;
                    continue;
                }
                Sent::Refused(reason) => {
                    tracing::warn!("{count} spans were refused: {reason}");
                    add(&self.stats.spans_dropped, count);
                }
                Sent::Unreachable(reason) => {
                    tracing::warn!("{count} spans could not be sent: {reason}");
                    self.keep(batch);
                }
            }
            if self.is_closed() {
                break;
            }
            self.rest(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        let lost = std::mem::take(&mut *self.waiting()).spans.len();
        add(&self.stats.spans_dropped, lost);
        self.finished.send_replace(true);
    }

    /// Puts a batch back before those that came meanwhile, as far as there is room.
    fn keep(&self, mut batch: Vec<Span>) {
        let mut waiting = self.waiting();
        batch.append(&mut waiting.spans);
        let lost = batch.len().saturating_sub(self.room());
        batch.truncate(self.room());
        waiting.since = Some(Instant::now());
        waiting.spans = batch;
        drop(waiting);
        add(&self.stats.spans_dropped, lost);
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

    /// Waits until a batch is due; false when closed with nothing left. An idle exporter never wakes up.
    async fn due(&self, process: &Process) -> bool {
        loop {
            let (count, since) = {
                let waiting = self.waiting();
                (waiting.spans.len(), waiting.since)
            };
            if self.is_closed() {
                return count > 0;
            }
            let Some(since) = since else {
                self.wake.notified().await;
                continue;
            };
            let settings = Settings::of(&self.provider, process);
            self.enough.store(settings.enough, Ordering::Relaxed);
            if count >= settings.enough {
                return true;
            }
            tokio::select! {
                () = self.wake.notified() => {}
                () = sleep_until(since + settings.interval) => {
                    add(&self.stats.timer_flushed, 1);
                    return true;
                }
            }
        }
    }
}

/// What the runtime says now.
struct Settings {
    enough: usize,
    interval: Duration,
}

impl Settings {
    fn of(provider: &TraceProvider, process: &Process) -> Self {
        let (enough, interval) = match provider {
            TraceProvider::OpenTelemetry(_) => {
                ("tracing.opentelemetry.min_flush_spans", "tracing.opentelemetry.flush_interval_ms")
            }
            TraceProvider::Zipkin(_) => ("tracing.zipkin.min_flush_spans", "tracing.zipkin.flush_interval_ms"),
        };
        let graph = process.graph.load();
        let number = |key| graph.runtime.integer(key).filter(|number| *number > 0);
        Self {
            enough: number(enough).map_or(DEFAULT_ENOUGH, |number| usize::try_from(number).unwrap_or(usize::MAX)),
            interval: number(interval).map_or(DEFAULT_INTERVAL, Duration::from_millis),
        }
    }
}

/// The way to the collector.
struct Line<'a> {
    exporter: &'a Exporter,
    process: &'a Arc<Process>,
    way: Way,
}

enum Way {
    Grpc(otlp::Client),
    Post(Poster),
}

impl<'a> Line<'a> {
    fn new(exporter: &'a Exporter, process: &'a Arc<Process>, channels: Arc<Channels>) -> Self {
        let way = match &*exporter.provider {
            TraceProvider::OpenTelemetry(config) => match &config.exporter {
                OtlpExporter::Grpc(service) => Way::Grpc(otlp::Client::new(service.clone(), channels)),
                OtlpExporter::Http(service) => Way::Post(Poster::new(service.clone(), process)),
            },
            TraceProvider::Zipkin(config) => Way::Post(Poster::new(config.collector.clone(), process)),
        };
        Self { exporter, process, way }
    }

    async fn send(&mut self, batch: &[Span]) -> Sent {
        match (&mut self.way, &*self.exporter.provider) {
            (Way::Grpc(client), TraceProvider::OpenTelemetry(config)) => {
                match client.export(otlp::request(batch, config)).await {
                    Ok(()) => Sent::Yes,
                    Err(status) if otlp::may_try_again(&status) => Sent::Unreachable(otlp::reason(&status)),
                    Err(status) => Sent::Refused(otlp::reason(&status)),
                }
            }
            (Way::Post(poster), TraceProvider::OpenTelemetry(config)) => {
                let body = prost::Message::encode_to_vec(&otlp::request(batch, config));
                outcome(poster.post(otlp::CONTENT_TYPE, Some(otlp::USER_AGENT), body, None).await)
            }
            (Way::Post(poster), TraceProvider::Zipkin(config)) => {
                let (content_type, body) = zipkin::body(batch, config, self.process);
                let key = "tracing.zipkin.request_timeout";
                let limit = self.process.graph.load().runtime.integer(key).map(Duration::from_millis);
                let result = poster.post(content_type, None, body, limit).await;
                let stats = &self.exporter.stats;
                let counter = match &result {
                    Ok(202) => &stats.reports_sent,
                    Ok(_) => &stats.reports_dropped,
                    Err(PostError::NoCluster(_)) => &stats.reports_skipped_no_cluster,
                    Err(_) => &stats.reports_failed,
                };
                add(counter, 1);
                outcome(result)
            }
            (Way::Grpc(_), TraceProvider::Zipkin(_)) => Sent::Refused("Zipkin has no gRPC here".into()),
        }
    }
}

fn outcome(result: Result<u16, PostError>) -> Sent {
    match result {
        Ok(200..=299) => Sent::Yes,
        // Those that the OTLP specification allows to repeat.
        Ok(status @ (429 | 502 | 503 | 504)) => Sent::Unreachable(format!("HTTP status {status}")),
        Ok(status) => Sent::Refused(format!("HTTP status {status}")),
        Err(error) => Sent::Unreachable(error.to_string()),
    }
}

/// Source: the default of the runtime keys `tracing.*.min_flush_spans`.
const DEFAULT_ENOUGH: usize = 5;
/// Source: the default of the runtime keys `tracing.*.flush_interval_ms`.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);
/// Zipkin's configuration has no limit; that of OpenTelemetry's is good enough.
const ZIPKIN_ROOM: usize = 1024;
/// Between a batch that could not be sent and the next; doubled each time, up to `MAX_PAUSE`.
const MIN_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use outrigger_config::tracing::OpenTelemetry;

    use super::super::otlp::tests::{config, span};
    use super::*;
    use crate::stats::Registry;

    fn exporter(max_waiting: usize) -> Exporter {
        let config = OpenTelemetry { max_waiting, ..config(true) };
        let stats = ExportStats::otlp(&Registry::default());
        Exporter::new(Arc::new(TraceProvider::OpenTelemetry(config)), stats)
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let exporter = exporter(3);
        for _ in 0..5 {
            exporter.append(span());
        }
        assert_eq!(exporter.waiting().spans.len(), 3);
        assert_eq!(exporter.stats.spans_dropped.load(Ordering::Relaxed), 2);
        // A batch that comes back stands before what came meanwhile.
        let batch = std::mem::take(&mut *exporter.waiting()).spans;
        exporter.append(span());
        exporter.keep(batch);
        assert_eq!(exporter.waiting().spans.len(), 3);
        assert_eq!(exporter.stats.spans_dropped.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_due_when_there_are_enough_or_the_time_is_up() {
        let (exporter, process) = (exporter(100), Process::default());
        exporter.append(span());
        let began = Instant::now();
        assert!(exporter.due(&process).await);
        assert_eq!(began.elapsed(), DEFAULT_INTERVAL);
        assert_eq!(exporter.stats.timer_flushed.load(Ordering::Relaxed), 1);
        for _ in 0..4 {
            exporter.append(span());
        }
        assert!(exporter.due(&process).await);
        assert_eq!(began.elapsed(), DEFAULT_INTERVAL);
        exporter.close();
        assert!(exporter.due(&process).await);
        exporter.waiting().spans.clear();
        assert!(!exporter.due(&process).await);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_collector_everything_ends_as_dropped() {
        let exporter = Arc::new(exporter(100));
        for _ in 0..7 {
            exporter.append(span());
        }
        exporter.close();
        let channels: Arc<Channels> = Arc::new(|_: &_| Err("no".into()));
        Arc::clone(&exporter).run(Arc::new(Process::default()), channels).await;
        assert!(exporter.is_finished());
        assert_eq!(exporter.stats.spans_dropped.load(Ordering::Relaxed), 7);
    }
}
