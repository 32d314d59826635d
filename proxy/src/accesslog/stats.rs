//! Counters of access logging.
//!
//! Owns their names. Unlike other scopes these are written by all threads: a line's way ends in a buffer that all threads
//! share in any case, so an atomic addition beside it changes nothing.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::stats::{Metric, Scope};

/// Counters of files, under `filesystem.`.
#[derive(Debug, Default)]
pub(super) struct FileStats {
    /// Lines put into a buffer.
    pub write_buffered: AtomicU64,
    /// Buffers written to their file.
    pub write_completed: AtomicU64,
    /// Buffers that could not be written.
    pub write_failed: AtomicU64,
    /// Lines dropped because the buffer was full; ours, Envoy's buffers have no bound.
    pub write_dropped: AtomicU64,
    /// Times that the interval was over with something to write.
    pub flushed_by_timer: AtomicU64,
    /// Files that could not be opened again.
    pub reopen_failed: AtomicU64,
    /// Bytes in buffers now.
    pub write_total_buffered: AtomicI64,
}

impl Scope for FileStats {
    fn visit(&self, visit: &mut dyn FnMut(&'static str, Metric<'_>)) {
        for (name, counter) in [
            ("write_buffered", &self.write_buffered),
            ("write_completed", &self.write_completed),
            ("write_failed", &self.write_failed),
            ("write_dropped", &self.write_dropped),
            ("flushed_by_timer", &self.flushed_by_timer),
            ("reopen_failed", &self.reopen_failed),
        ] {
            visit(name, Metric::Counter(counter.load(Ordering::Relaxed)));
        }
        visit("write_total_buffered", Metric::Gauge(Some(self.write_total_buffered.load(Ordering::Relaxed))));
    }
}

/// Counters of log services, under `access_logs.grpc_access_log.`.
#[derive(Debug, Default)]
pub(super) struct ServiceStats {
    /// Entries put into a buffer.
    pub logs_written: AtomicU64,
    /// Entries dropped because the buffer was full.
    pub logs_dropped: AtomicU64,
}

impl Scope for ServiceStats {
    fn visit(&self, visit: &mut dyn FnMut(&'static str, Metric<'_>)) {
        // There may be no log service at all.
        let used = |counter: &AtomicU64| match counter.load(Ordering::Relaxed) {
            0 => Metric::Hidden,
            count => Metric::Counter(count),
        };
        visit("logs_written", used(&self.logs_written));
        visit("logs_dropped", used(&self.logs_dropped));
    }
}

/// Counters of collectors, under `access_logs.open_telemetry_access_log.`, once there is one.
#[derive(Debug, Default)]
pub(super) struct CollectorStats {
    /// Records that a collector took.
    pub logs_written: AtomicU64,
    /// Records that were given up: too many waited, or a collector did not want them.
    pub logs_dropped: AtomicU64,
}

impl Scope for CollectorStats {
    fn visit(&self, visit: &mut dyn FnMut(&'static str, Metric<'_>)) {
        visit("logs_written", Metric::Counter(self.logs_written.load(Ordering::Relaxed)));
        visit("logs_dropped", Metric::Counter(self.logs_dropped.load(Ordering::Relaxed)));
    }
}

/// Adds one.
pub(super) fn increment(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
