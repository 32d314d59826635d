//! Counters of span export.
//!
//! Owns their names. Written by several threads, but only for spans that are recorded: beside the push into a shared buffer
//! an atomic addition changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::stats::{Metric, Registry, Scope};

/// What happened to spans.
#[derive(Debug, Default)]
pub struct Counters {
    /// Spans that a collector took.
    pub spans_sent: AtomicU64,
    /// Spans that were given up: too many waited, or no collector took them.
    pub spans_dropped: AtomicU64,
    /// Times that spans were sent because the interval was over.
    pub timer_flushed: AtomicU64,
    /// Requests that were kept at their end.
    pub tail_kept: AtomicU64,
    /// Requests that were worth it and did not fit into the budget.
    pub tail_over_budget: AtomicU64,
    /// Requests that were answered as they should be.
    pub reports_sent: AtomicU64,
    /// Requests that were refused.
    pub reports_dropped: AtomicU64,
    /// Requests without an answer.
    pub reports_failed: AtomicU64,
    /// Requests that were not made, for want of a cluster.
    pub reports_skipped_no_cluster: AtomicU64,
}

/// `tracing.opentelemetry.*`
#[derive(Debug, Default)]
struct OtlpStats(Counters);

/// `tracing.zipkin.*`
#[derive(Debug, Default)]
struct ZipkinStats(Counters);

impl Scope for OtlpStats {
    fn visit(&self, visit: &mut dyn FnMut(&'static str, Metric<'_>)) {
        let counters = &self.0;
        for (name, counter) in [
            ("spans_sent", &counters.spans_sent),
            ("spans_dropped", &counters.spans_dropped),
            ("timer_flushed", &counters.timer_flushed),
            ("tail_kept", &counters.tail_kept),
            ("tail_over_budget", &counters.tail_over_budget),
        ] {
            visit(name, Metric::Counter(counter.load(Ordering::Relaxed)));
        }
    }
}

impl Scope for ZipkinStats {
    fn visit(&self, visit: &mut dyn FnMut(&'static str, Metric<'_>)) {
        let counters = &self.0;
        for (name, counter) in [
            ("spans_sent", &counters.spans_sent),
            ("spans_dropped", &counters.spans_dropped),
            ("timer_flushed", &counters.timer_flushed),
            ("reports_sent", &counters.reports_sent),
            ("reports_dropped", &counters.reports_dropped),
            ("reports_failed", &counters.reports_failed),
            ("reports_skipped_no_cluster", &counters.reports_skipped_no_cluster),
        ] {
            visit(name, Metric::Counter(counter.load(Ordering::Relaxed)));
        }
    }
}

/// The counters of one kind of provider.
#[derive(Clone, Debug)]
pub struct ExportStats(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Otlp(Arc<OtlpStats>),
    Zipkin(Arc<ZipkinStats>),
}

impl ExportStats {
    /// Those of OpenTelemetry.
    pub fn otlp(registry: &Registry) -> Self {
        Self(Kind::Otlp(registry.scope("tracing.opentelemetry.")))
    }

    /// Those of Zipkin.
    pub fn zipkin(registry: &Registry) -> Self {
        Self(Kind::Zipkin(registry.scope("tracing.zipkin.")))
    }
}

impl std::ops::Deref for ExportStats {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        match &self.0 {
            Kind::Otlp(stats) => &stats.0,
            Kind::Zipkin(stats) => &stats.0,
        }
    }
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(amount as u64, Ordering::Relaxed);
}
