//! The series of standard metrics in one worker.
//!
//! Owns which there are, how many there may be, and how those go that nobody adds to. Never knows what their labels mean.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use outrigger_config::istio::{MESH_METRICS, MeshMetric, Rotation, StandardMetrics};

use super::labels::{Parts, prefix};
use crate::scope;
use crate::stats::Registry;

scope! {
    /// Metrics with the same labels.
    pub struct MeshCounts {
        requests: UsedCounter = "istio_requests_total",
        duration: UsedHistogram = "istio_request_duration_milliseconds",
        request_bytes: UsedHistogram = "istio_request_bytes",
        response_bytes: UsedHistogram = "istio_response_bytes",
        request_messages: UsedCounter = "istio_request_messages_total",
        response_messages: UsedCounter = "istio_response_messages_total",
        tcp_opened: UsedCounter = "istio_tcp_connections_opened_total",
        tcp_closed: UsedCounter = "istio_tcp_connections_closed_total",
        tcp_sent: UsedCounter = "istio_tcp_sent_bytes_total",
        tcp_received: UsedCounter = "istio_tcp_received_bytes_total",
    }
}

scope! {
    /// What becomes of the metrics themselves (`istio_standard_metrics.*`).
    pub struct SeriesStats {
        series_overflow: Counter,
    }
}

/// Metrics with the same labels, as a worker keeps them.
#[derive(Debug)]
pub struct Kept {
    counts: Arc<MeshCounts>,
    /// Since it was last looked at.
    touched: Cell<bool>,
    idle_since: Cell<Option<Instant>>,
}

/// Series that a worker has at most: labels come from peers.
pub const MAX_SERIES: usize = 8192;

/// All series of a worker, by the prefixes of their names.
#[derive(Default)]
pub struct SeriesTable {
    kept: RefCell<HashMap<Box<str>, Rc<Kept>>>,
    rotation: Cell<Option<Rotation>>,
    stats: RefCell<Option<Arc<SeriesStats>>>,
}

impl SeriesTable {
    /// The series under `prefix`; `None` if there are too many.
    fn of(&self, registry: &Registry, prefix: String) -> Option<Rc<Kept>> {
        let mut kept = self.kept.borrow_mut();
        if let Some(known) = kept.get(&*prefix) {
            return Some(Rc::clone(known));
        }
        if kept.len() >= MAX_SERIES {
            self.stats(registry).series_overflow.increment();
            return None;
        }
        let counts = registry.scope(&prefix);
        let new = Rc::new(Kept { counts, touched: Cell::new(true), idle_since: Cell::new(None) });
        kept.insert(prefix.into(), Rc::clone(&new));
        Some(new)
    }

    /// What becomes of series.
    pub fn stats(&self, registry: &Registry) -> Arc<SeriesStats> {
        let make = || registry.scope("istio_standard_metrics.");
        Arc::clone(self.stats.borrow_mut().get_or_insert_with(make))
    }

    /// From now on series go that nobody adds to. Of several wishes the shortest interval counts.
    pub fn rotate(self: &Rc<Self>, wanted: Rotation) {
        let before = self.rotation.get();
        if before.is_none_or(|before| wanted.interval < before.interval) {
            self.rotation.set(Some(wanted));
        }
        if before.is_none() {
            let table = Rc::downgrade(self);
            tokio::task::spawn_local(async move {
                while let Some(rotation) = table.upgrade().and_then(|table| table.rotation.get()) {
                    tokio::time::sleep(rotation.interval).await;
                    let Some(table) = table.upgrade() else { break };
                    table.sweep(rotation, Instant::now());
                }
            });
        }
    }

    /// Drops what was idle for longer than it may be.
    fn sweep(&self, rotation: Rotation, now: Instant) {
        self.kept.borrow_mut().retain(|_, kept| {
            if kept.touched.take() {
                kept.idle_since.set(None);
                return true;
            }
            let since = kept.idle_since.get().unwrap_or(now);
            kept.idle_since.set(Some(since));
            now.saturating_duration_since(since) < rotation.grace
        });
    }
}

/// The series of streams that have all labels in common.
#[derive(Debug)]
pub struct Series([Option<Weak<Kept>>; MESH_METRICS]);

impl Series {
    /// Those among `metrics` that are reported, with labels made of `parts`.
    pub fn look_up(
        table: &SeriesTable,
        registry: &Registry,
        settings: &StandardMetrics,
        metrics: &[MeshMetric],
        parts: &Parts<'_>,
    ) -> Self {
        let values = parts.values();
        let mut series = [const { None }; MESH_METRICS];
        for metric in metrics.iter().filter(|metric| settings.reports(**metric)) {
            let prefix = prefix(*metric, settings, &values, parts.dimensions);
            series[*metric as usize] = table.of(registry, prefix).map(|kept| Rc::downgrade(&kept));
        }
        Self(series)
    }

    /// Whether all of them are still there.
    pub fn is_whole(&self) -> bool {
        self.0.iter().flatten().all(|kept| kept.strong_count() > 0)
    }

    /// Adds to a metric, or records a value of it.
    pub fn add(&self, metric: MeshMetric, value: u64) {
        let Some(kept) = self.0[metric as usize].as_ref().and_then(Weak::upgrade) else { return };
        kept.touched.set(true);
        let counts = &*kept.counts;
        match metric {
            MeshMetric::Requests => counts.requests.add(value),
            MeshMetric::Duration => counts.duration.record(value),
            MeshMetric::RequestBytes => counts.request_bytes.record(value),
            MeshMetric::ResponseBytes => counts.response_bytes.record(value),
            MeshMetric::RequestMessages => counts.request_messages.add(value),
            MeshMetric::ResponseMessages => counts.response_messages.add(value),
            MeshMetric::TcpOpened => counts.tcp_opened.add(value),
            MeshMetric::TcpClosed => counts.tcp_closed.add(value),
            MeshMetric::TcpSent => counts.tcp_sent.add(value),
            MeshMetric::TcpReceived => counts.tcp_received.add(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn there_are_no_more_series_than_a_number_and_the_others_are_told() {
        let (table, registry) = (SeriesTable::default(), Registry::default());
        for index in 0..MAX_SERIES + 3 {
            let found = table.of(&registry, format!("istiocustom.{index};.;"));
            assert_eq!(found.is_some(), index < MAX_SERIES);
        }
        assert!(table.of(&registry, "istiocustom.0;.;".to_owned()).is_some());
        assert_eq!(table.stats(&registry).series_overflow.value(), 3);
    }

    #[test]
    fn series_that_nobody_adds_to_go_after_their_grace() {
        let (table, registry) = (SeriesTable::default(), Registry::default());
        let rotation = Rotation { interval: Duration::from_secs(10), grace: Duration::from_secs(15) };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let busy = table.of(&registry, "istiocustom.busy".to_owned()).unwrap();
        let idle = Rc::downgrade(&table.of(&registry, "istiocustom.idle".to_owned()).unwrap());
        busy.counts.requests.increment();
        for seconds in [10, 20, 30] {
            busy.touched.set(true);
            table.sweep(rotation, at(seconds));
            assert!(idle.upgrade().is_some(), "{seconds}");
        }
        busy.touched.set(true);
        table.sweep(rotation, at(40));
        assert!(idle.upgrade().is_none());
        assert_eq!(registry.collect(&|_| true).len(), 1);
    }
}
