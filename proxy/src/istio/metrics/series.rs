//! The series of standard metrics in one worker.
//!
//! Owns which there are, how many there may be, and how those go that nobody adds to. Never knows what their labels mean.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use outrigger_config::istio::{MESH_METRICS, MeshMetric, Rotation, StandardMetrics};

use super::labels::{Parts, prefix};
use crate::scope;
use crate::stats::{MadeOnUse, Registry};
use crate::worker::Worker;
use crate::worker::on_use::{OnUse, Wanting};

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
    /// Its stats are shown no more.
    gone: Arc<AtomicBool>,
}

impl Kept {
    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

/// Series that a worker has at most: labels come from peers.
pub const MAX_SERIES: usize = 8192;

/// Where new series come from.
#[derive(Clone, Copy)]
pub struct Room<'a> {
    /// Of the process.
    pub registry: &'a Registry,
    /// Of the worker.
    pub on_use: &'a OnUse,
    /// Names that requests may have brought about, of all kinds.
    pub most: usize,
}

impl<'a> Room<'a> {
    /// That of a worker.
    pub fn of(worker: &'a Worker) -> Self {
        Self { registry: &worker.process.stats, on_use: &worker.on_use, most: worker.most_on_use() }
    }
}

/// All series of a worker, by the prefixes of their names.
#[derive(Default)]
pub struct SeriesTable {
    kept: RefCell<HashMap<Box<str>, Rc<Kept>>>,
    rotation: Cell<Option<Rotation>>,
    stats: RefCell<Option<Arc<SeriesStats>>>,
}

impl SeriesTable {
    /// The series under `prefix`; `None` if there are too many.
    fn of(&self, room: &Room<'_>, prefix: String) -> Option<Rc<Kept>> {
        let mut kept = self.kept.borrow_mut();
        if let Some(known) = kept.get(&*prefix).filter(|known| !known.is_gone()) {
            return Some(Rc::clone(known));
        }
        let made = match kept.len() {
            MAX_SERIES.. => None,
            _ => room.registry.scope_on_use(&prefix, room.most),
        };
        let Some(MadeOnUse { scope: counts, gone }) = made else {
            self.stats(room.registry).series_overflow.increment();
            room.on_use.count_dropped(room.registry, Wanting::IstioStats);
            return None;
        };
        let new = Rc::new(Kept { counts, touched: Cell::new(true), idle_since: Cell::new(None), gone });
        kept.insert(prefix.into(), Rc::clone(&new));
        Some(new)
    }

    /// What becomes of series.
    pub fn stats(&self, registry: &Registry) -> Arc<SeriesStats> {
        let make = || registry.scope("istio_standard_metrics.");
        Arc::clone(self.stats.borrow_mut().get_or_insert_with(make))
    }

    /// Forgets series whose stats are shown no more.
    pub fn sweep_gone(&self) {
        self.kept.borrow_mut().retain(|_, kept| !kept.is_gone());
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
        room: &Room<'_>,
        settings: &StandardMetrics,
        metrics: &[MeshMetric],
        parts: &Parts<'_>,
    ) -> Self {
        let values = parts.values();
        let mut series = [const { None }; MESH_METRICS];
        for metric in metrics.iter().filter(|metric| settings.reports(**metric)) {
            let prefix = prefix(*metric, settings, &values, parts.dimensions);
            series[*metric as usize] = table.of(room, prefix).map(|kept| Rc::downgrade(&kept));
        }
        Self(series)
    }

    /// Whether all of them are still there.
    pub fn is_whole(&self) -> bool {
        self.0.iter().flatten().all(|kept| kept.upgrade().is_some_and(|kept| !kept.is_gone()))
    }

    /// The names of the histograms among `metrics`, of which `self` are the series, with what each has recorded.
    pub fn named(
        &self,
        settings: &StandardMetrics,
        metrics: [(MeshMetric, u64); 3],
        parts: &Parts<'_>,
    ) -> Vec<(String, u64)> {
        let values = parts.values();
        let there = metrics.into_iter().filter(|(metric, _)| self.0[*metric as usize].is_some());
        let name = |metric| prefix(metric, settings, &values, parts.dimensions) + histogram(metric);
        there.map(|(metric, value)| (name(metric), value)).collect()
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

/// The stat of a histogram within its series; empty for what is none.
fn histogram(metric: MeshMetric) -> &'static str {
    match metric {
        MeshMetric::Duration => "istio_request_duration_milliseconds",
        MeshMetric::RequestBytes => "istio_request_bytes",
        MeshMetric::ResponseBytes => "istio_response_bytes",
        MeshMetric::Requests
        | MeshMetric::RequestMessages
        | MeshMetric::ResponseMessages
        | MeshMetric::TcpOpened
        | MeshMetric::TcpClosed
        | MeshMetric::TcpSent
        | MeshMetric::TcpReceived => "",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn there_are_no_more_series_than_a_number_and_the_others_are_told() {
        let (table, registry, on_use) = (SeriesTable::default(), Registry::default(), OnUse::default());
        let room = Room { registry: &registry, on_use: &on_use, most: usize::MAX };
        for index in 0..MAX_SERIES + 3 {
            let found = table.of(&room, format!("istiocustom.{index};.;"));
            assert_eq!(found.is_some(), index < MAX_SERIES);
        }
        assert!(table.of(&room, "istiocustom.0;.;".to_owned()).is_some());
        // There may be fewer because others have brought about stats, too.
        let room = Room { most: 0, ..room };
        assert!(SeriesTable::default().of(&room, "istiocustom.other;.;".to_owned()).is_none());
        assert_eq!(table.stats(&registry).series_overflow.value(), 3);
    }

    #[test]
    fn series_that_nobody_adds_to_go_after_their_grace() {
        let (table, registry, on_use) = (SeriesTable::default(), Registry::default(), OnUse::default());
        let room = Room { registry: &registry, on_use: &on_use, most: usize::MAX };
        let rotation = Rotation { interval: Duration::from_secs(10), grace: Duration::from_secs(15) };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let busy = table.of(&room, "istiocustom.busy".to_owned()).unwrap();
        let idle = Rc::downgrade(&table.of(&room, "istiocustom.idle".to_owned()).unwrap());
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

    #[test]
    fn series_whose_stats_are_shown_no_more_are_made_anew() {
        let (table, registry, on_use) = (SeriesTable::default(), Registry::default(), OnUse::default());
        let room = Room { registry: &registry, on_use: &on_use, most: usize::MAX };
        let find = || table.of(&room, "istiocustom.a".to_owned()).unwrap();
        let weak = Rc::downgrade(&find());
        let mut series = Series([const { None }; MESH_METRICS]);
        series.0[0] = Some(weak);
        registry.evict();
        assert!(series.is_whole());
        assert_eq!(registry.evict(), 1);
        assert!(!series.is_whole());
        find().counts.requests.increment();
        table.sweep_gone();
        assert_eq!((table.kept.borrow().len(), registry.collect(&|_| true).len()), (1, 1));
    }
}
