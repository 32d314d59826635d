//! Counters, gauges and histograms.
//!
//! Every worker owns its own instance of each scope (a struct of metrics made by [`scope!`]), so a metric has one writer
//! and costs a plain load and store. Readers sum the instances of a scope by its name. Never formats on the request path.

pub mod buckets;
mod default_tags;
mod exemplars;
pub mod export;
mod histogram;
pub mod json;
pub mod names;
pub mod prometheus;
mod registry;
pub mod tags;
pub mod text;

pub use exemplars::{Exemplar, Exemplars};
pub use histogram::Histogram;
pub use registry::{Declared, Family, FamilyKind, MadeOnUse, Merged, Registry};

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

/// A number that only grows. One thread writes it.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        // One writer: a plain store is enough, and needs no locked instruction.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down. One thread writes it.
///
/// Holds the value with its sign bit turned over, so that the number it begins with stands for one that was never written:
/// only `i64::MIN` cannot be told from that.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Takes one off.
    pub fn decrement(&self) {
        self.add(-1);
    }

    /// Adds `amount`, which may be negative.
    pub fn add(&self, amount: i64) {
        self.set(self.value().wrapping_add(amount));
    }

    /// Replaces the value.
    pub fn set(&self, value: i64) {
        self.0.store(value ^ i64::MIN, Ordering::Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> i64 {
        self.written().unwrap_or(0)
    }

    /// The value, unless it was never written.
    pub fn written(&self) -> Option<i64> {
        let held = self.0.load(Ordering::Relaxed);
        (held != 0).then_some(held ^ i64::MIN)
    }
}

/// Counts by HTTP status code, made on first use: most scopes never see a request.
#[derive(Debug, Default)]
pub struct StatusCounters(OnceLock<Box<[AtomicU32; 500]>>);

impl StatusCounters {
    /// Counts one response with `status`; codes outside 100..=599 are not counted.
    pub fn increment(&self, status: u16) {
        let counters = self.0.get_or_init(|| Box::new([const { AtomicU32::new(0) }; 500]));
        if let Some(counter) = status.checked_sub(100).and_then(|index| counters.get(usize::from(index))) {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// The codes seen, with their counts.
    pub fn values(&self) -> impl Iterator<Item = (u16, u64)> {
        self.0.get().into_iter().flat_map(|counters| {
            counters.iter().zip(100u16..).filter_map(|(counter, code)| {
                let count = counter.load(Ordering::Relaxed);
                (count > 0).then_some((code, u64::from(count)))
            })
        })
    }
}

/// Counts by names out of a short list that is fixed in the program, made on first use.
#[derive(Debug, Default)]
pub struct NamedCounters(OnceLock<Box<[Named; NAMES]>>);

#[derive(Debug, Default)]
struct Named {
    name: OnceLock<&'static str>,
    count: Counter,
}

/// More than there are cipher suites, groups or signature algorithms.
const NAMES: usize = 16;

impl NamedCounters {
    /// Counts one more of this name. An empty name is none.
    pub fn increment(&self, name: &'static str) {
        if name.is_empty() {
            return;
        }
        let all = self.0.get_or_init(Box::default);
        // One thread writes: whoever gets a place keeps it.
        if let Some(found) = all.iter().find(|named| *named.name.get_or_init(|| name) == name) {
            found.count.increment();
        }
    }

    /// The names seen, in the order in which they were, with their counts.
    pub fn values(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let all = self.0.get().into_iter().flat_map(|all| all.iter());
        all.filter_map(|named| Some((*named.name.get()?, named.count.value())))
    }
}

/// A [`Counter`] that is shown once it has counted: what depends on what happens, such as response classes.
#[derive(Debug, Default)]
pub struct UsedCounter(Counter);

impl std::ops::Deref for UsedCounter {
    type Target = Counter;

    fn deref(&self) -> &Counter {
        &self.0
    }
}

/// A [`Gauge`] that is shown once it was written.
#[derive(Debug, Default)]
pub struct UsedGauge(Gauge);

impl std::ops::Deref for UsedGauge {
    type Target = Gauge;

    fn deref(&self) -> &Gauge {
        &self.0
    }
}

/// A [`Histogram`] that is shown once a value was recorded.
#[derive(Debug, Default)]
pub struct UsedHistogram(Histogram);

impl std::ops::Deref for UsedHistogram {
    type Target = Histogram;

    fn deref(&self) -> &Histogram {
        &self.0
    }
}

/// One metric of a scope, as readers see it.
pub enum Metric<'a> {
    /// A counter's value.
    Counter(u64),
    /// A gauge's value; `None` if it was never written.
    Gauge(Option<i64>),
    /// Counts by status code; shown as `<name>_<code>`, such as `upstream_rq_200`.
    StatusCounters(&'a StatusCounters),
    /// Counts by name; shown as `<name>.<one of them>`, such as `ssl.versions.TLSv1.3`.
    NamedCounters(&'a NamedCounters),
    /// A histogram.
    Histogram(&'a Histogram),
    /// One that is shown only once it is used, and is not.
    Hidden,
}

/// A struct of metrics, made by [`scope!`].
pub trait Scope: Send + Sync + 'static {
    /// Visits every metric with its name.
    fn visit(&self, visit: &mut dyn FnMut(&'static str, Metric<'_>));
}

/// What a field of a scope shows readers.
pub trait AsMetric {
    /// The metric.
    fn as_metric(&self) -> Metric<'_>;
}

impl AsMetric for Counter {
    fn as_metric(&self) -> Metric<'_> {
        Metric::Counter(self.value())
    }
}

impl AsMetric for Gauge {
    fn as_metric(&self) -> Metric<'_> {
        Metric::Gauge(self.written())
    }
}

impl AsMetric for StatusCounters {
    fn as_metric(&self) -> Metric<'_> {
        Metric::StatusCounters(self)
    }
}

impl AsMetric for NamedCounters {
    fn as_metric(&self) -> Metric<'_> {
        Metric::NamedCounters(self)
    }
}

impl AsMetric for Histogram {
    fn as_metric(&self) -> Metric<'_> {
        Metric::Histogram(self)
    }
}

impl AsMetric for UsedCounter {
    fn as_metric(&self) -> Metric<'_> {
        if self.value() == 0 { Metric::Hidden } else { self.0.as_metric() }
    }
}

impl AsMetric for UsedGauge {
    fn as_metric(&self) -> Metric<'_> {
        if self.written().is_none() { Metric::Hidden } else { self.0.as_metric() }
    }
}

impl AsMetric for UsedHistogram {
    fn as_metric(&self) -> Metric<'_> {
        if self.is_empty() { Metric::Hidden } else { self.0.as_metric() }
    }
}

/// Counts a status in the one of a scope's counters that is for its class. `count_class!(scope, status, upstream_rq)` counts 204
/// in `upstream_rq_2xx`; a status that is none counts nowhere.
#[macro_export]
macro_rules! count_class {
    ($scope:expr, $status:expr, downstream_rq) => {
        $crate::count_class!(
            $scope,
            $status,
            [downstream_rq_1xx, downstream_rq_2xx, downstream_rq_3xx, downstream_rq_4xx, downstream_rq_5xx]
        )
    };
    ($scope:expr, $status:expr, upstream_rq) => {
        $crate::count_class!(
            $scope,
            $status,
            [upstream_rq_1xx, upstream_rq_2xx, upstream_rq_3xx, upstream_rq_4xx, upstream_rq_5xx]
        )
    };
    ($scope:expr, $status:expr, [$one:ident, $two:ident, $three:ident, $four:ident, $five:ident]) => {
        match $status / 100 {
            1 => $scope.$one.increment(),
            2 => $scope.$two.increment(),
            3 => $scope.$three.increment(),
            4 => $scope.$four.increment(),
            5 => $scope.$five.increment(),
            _ => {}
        }
    };
}

/// Declares a struct of metrics. Field names are stat names; a name with dots is given as `field = "a.b"`.
#[macro_export]
macro_rules! scope {
    ($(#[$doc:meta])* $vis:vis struct $name:ident { $($field:ident: $kind:ident $(= $stat:literal)?),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        $vis struct $name { $(#[allow(missing_docs)] pub $field: $crate::stats::$kind),* }

        impl $crate::stats::Scope for $name {
            fn visit(&self, visit: &mut dyn FnMut(&'static str, $crate::stats::Metric<'_>)) {
                $({
                    #[allow(unused_variables)]
                    let name = stringify!($field);
                    $(let name = $stat;)?
                    visit(name, $crate::stats::AsMetric::as_metric(&self.$field));
                })*
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    scope! {
        struct Classes {
            upstream_rq_1xx: Counter,
            upstream_rq_2xx: Counter,
            upstream_rq_3xx: Counter,
            upstream_rq_4xx: Counter,
            upstream_rq_5xx: Counter,
        }
    }

    #[test]
    fn a_status_has_the_class_of_its_first_digit() {
        let of = |status: u16| {
            let classes = Classes::default();
            crate::count_class!(classes, status, upstream_rq);
            let Classes { upstream_rq_1xx, upstream_rq_2xx, upstream_rq_3xx, upstream_rq_4xx, upstream_rq_5xx } =
                &classes;
            let all = [upstream_rq_1xx, upstream_rq_2xx, upstream_rq_3xx, upstream_rq_4xx, upstream_rq_5xx];
            assert!(all.iter().map(|counter| counter.value()).sum::<u64>() <= 1);
            all.iter().position(|counter| counter.value() == 1).map(|place| place + 1)
        };
        assert_eq!(
            [0, 99, 100, 204, 399, 404, 599, 600].map(of),
            [None, None, Some(1), Some(2), Some(3), Some(4), Some(5), None]
        );
    }

    #[test]
    fn a_gauge_knows_whether_it_was_written() {
        let gauge = Gauge::default();
        assert_eq!((gauge.written(), gauge.value()), (None, 0));
        gauge.increment();
        gauge.decrement();
        assert_eq!((gauge.written(), gauge.value()), (Some(0), 0));
        for value in [7, -7, i64::MAX] {
            gauge.set(value);
            assert_eq!(gauge.value(), value);
        }
    }

    #[test]
    fn names_are_counted_as_long_as_there_is_place() {
        let counters = NamedCounters::default();
        for name in ["P-256", "", "X25519", "P-256"] {
            counters.increment(name);
        }
        assert_eq!(counters.values().collect::<Vec<_>>(), [("P-256", 2), ("X25519", 1)]);
        let more = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];
        more.iter().for_each(|name| counters.increment(name));
        assert_eq!((counters.values().count(), counters.values().last()), (NAMES, Some(("n", 1))));
    }
}
