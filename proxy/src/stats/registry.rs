//! Which scopes exist, and how their instances add up.
//!
//! Owns the list of live scopes. Never writes a metric. The lock is taken when a scope is made and while readers collect,
//! never on the request path.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use super::buckets::{self, Values};
use super::{Histogram, Metric, Scope};

/// All scopes of the process.
#[derive(Default)]
pub struct Registry {
    scopes: Mutex<BTreeMap<Arc<str>, Vec<Entry>>>,
}

struct Entry {
    scope: Weak<dyn Scope>,
    /// Counter values when they were last reset, by position in the visit.
    baseline: Vec<u64>,
}

/// One stat, summed over all instances of its scope.
pub struct Family {
    /// The full name, such as `cluster.local.upstream_rq_total`.
    pub name: String,
    /// Its value.
    pub kind: FamilyKind,
}

/// The value of a [`Family`].
pub enum FamilyKind {
    /// Sum of counters.
    Counter(u64),
    /// Sum of gauges; `None` if none of them was ever written.
    Gauge(Option<i64>),
    /// Merged histogram.
    Histogram(Merged),
}

/// Histograms added up. Takes no memory while there are no values, since many are shown that never get any.
#[derive(Default)]
pub struct Merged(Option<Box<Values>>);

impl Merged {
    fn add(&mut self, histogram: &Histogram) {
        if !histogram.is_empty() {
            histogram.merge(self.0.get_or_insert_with(|| Box::new(buckets::none())));
        }
    }
}

impl From<Values> for Merged {
    fn from(values: Values) -> Self {
        Self(Some(Box::new(values)))
    }
}

impl std::ops::Deref for Merged {
    type Target = Values;

    fn deref(&self) -> &Values {
        static NONE: LazyLock<Values> = LazyLock::new(buckets::none);
        self.0.as_deref().unwrap_or(&NONE)
    }
}

/// Shows each scope that stands in the configuration, with its prefix: its stats exist from the start, but nothing is
/// kept of them before they are used.
pub type Declared<'a> = &'a dyn Fn(&mut dyn FnMut(&str, &dyn Scope));

impl Registry {
    /// Makes an instance of a scope under `prefix` (with its final dot). It counts as long as the `Arc` lives.
    pub fn scope<S: Scope + Default>(&self, prefix: &str) -> Arc<S> {
        let scope = Arc::new(S::default());
        let weak: Weak<dyn Scope> = Arc::downgrade(&(Arc::clone(&scope) as Arc<dyn Scope>));
        let mut scopes = self.lock();
        let entries = match scopes.get_mut(prefix) {
            Some(entries) => entries,
            None => scopes.entry(prefix.into()).or_default(),
        };
        entries.retain(|entry| entry.scope.strong_count() > 0);
        entries.push(Entry { scope: weak, baseline: Vec::new() });
        scope
    }

    /// All stats whose full name passes `wanted`, sorted by name.
    pub fn collect(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<Family> {
        self.collect_with(&|_| {}, wanted)
    }

    /// As [`Self::collect`], with those that are declared.
    pub fn collect_with(&self, declared: Declared<'_>, wanted: &dyn Fn(&str) -> bool) -> Vec<Family> {
        let mut all: BTreeMap<String, FamilyKind> = BTreeMap::new();
        let mut scopes = self.lock();
        scopes.retain(|_, entries| {
            entries.retain(|entry| entry.scope.strong_count() > 0);
            !entries.is_empty()
        });
        for (prefix, entries) in scopes.iter() {
            for entry in entries {
                if let Some(scope) = entry.scope.upgrade() {
                    add_scope(&mut all, prefix, &*scope, &entry.baseline, wanted);
                }
            }
        }
        drop(scopes);
        declared(&mut |prefix, scope| add_scope(&mut all, prefix, scope, &[], wanted));
        all.into_iter().map(|(name, kind)| Family { name, kind }).collect()
    }

    /// The sum of these counters in all instances of the scope under `prefix`. Unlike what readers are shown, it never
    /// falls.
    pub fn sum(&self, prefix: &str, counters: &[&str]) -> u64 {
        let mut sum = 0;
        for entry in self.lock().get(prefix).into_iter().flatten() {
            let Some(scope) = entry.scope.upgrade() else { continue };
            scope.visit(&mut |name, metric| {
                if let Metric::Counter(value) = metric
                    && counters.contains(&name)
                {
                    sum += value;
                }
            });
        }
        sum
    }

    /// Counters start from zero again for readers.
    pub fn reset_counters(&self) {
        for entry in self.lock().values_mut().flatten() {
            let Some(scope) = entry.scope.upgrade() else { continue };
            let mut baseline = Vec::new();
            scope.visit(&mut |_, metric| match metric {
                Metric::Counter(value) => baseline.push(value),
                Metric::StatusCounters(counters) => {
                    let mut values = vec![0; 500];
                    for (code, count) in counters.values() {
                        values[usize::from(code) - 100] = count;
                    }
                    baseline.extend(values);
                }
                Metric::Gauge(_) | Metric::Histogram(_) | Metric::Hidden => baseline.push(0),
            });
            entry.baseline = baseline;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Vec<Entry>>> {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add_scope(
    all: &mut BTreeMap<String, FamilyKind>,
    prefix: &str,
    scope: &dyn Scope,
    baseline: &[u64],
    wanted: &dyn Fn(&str) -> bool,
) {
    let mut position = 0;
    let mut full = String::from(prefix);
    scope.visit(&mut |name, metric| {
        full.truncate(prefix.len());
        full.push_str(name);
        let before = |position: usize| baseline.get(position).copied().unwrap_or(0);
        let at = position;
        position += 1;
        match metric {
            Metric::Counter(value) => add_counter(all, &full, value.wrapping_sub(before(at)), wanted),
            Metric::StatusCounters(counters) => {
                position = at + 500;
                for (code, count) in counters.values() {
                    let since = count.wrapping_sub(before(at + usize::from(code) - 100));
                    add_counter(all, &format!("{full}_{code}"), since, wanted);
                }
            }
            Metric::Gauge(value) => {
                if let Some(FamilyKind::Gauge(sum)) = family(all, &full, wanted, || FamilyKind::Gauge(None))
                    && let Some(value) = value
                {
                    *sum = Some(sum.unwrap_or(0) + value);
                }
            }
            Metric::Histogram(histogram) => {
                let empty = || FamilyKind::Histogram(Merged::default());
                if let Some(FamilyKind::Histogram(merged)) = family(all, &full, wanted, empty) {
                    merged.add(histogram);
                }
            }
            Metric::Hidden => {}
        }
    });
}

fn add_counter(all: &mut BTreeMap<String, FamilyKind>, name: &str, value: u64, wanted: &dyn Fn(&str) -> bool) {
    if let Some(FamilyKind::Counter(sum)) = family(all, name, wanted, || FamilyKind::Counter(0)) {
        *sum += value;
    }
}

fn family<'a>(
    all: &'a mut BTreeMap<String, FamilyKind>,
    name: &str,
    wanted: &dyn Fn(&str) -> bool,
    empty: impl FnOnce() -> FamilyKind,
) -> Option<&'a mut FamilyKind> {
    if !wanted(name) {
        return None;
    }
    if !all.contains_key(name) {
        all.insert(name.to_owned(), empty());
    }
    all.get_mut(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope;

    scope! {
        struct Sample { requests: Counter, active: Gauge, upstream_rq: StatusCounters, time: Histogram }
    }

    fn show(family: Family) -> String {
        match family.kind {
            FamilyKind::Counter(value) => format!("{}: {value}", family.name),
            FamilyKind::Gauge(value) => format!("{}: {}", family.name, value.unwrap_or(0)),
            FamilyKind::Histogram(histogram) => format!("{}: {} values", family.name, histogram.len()),
        }
    }

    fn text(registry: &Registry) -> Vec<String> {
        registry.collect(&|_| true).into_iter().map(show).collect()
    }

    #[test]
    fn instances_add_up_and_vanish_with_their_owner() {
        let registry = Registry::default();
        let one = registry.scope::<Sample>("a.");
        let two = registry.scope::<Sample>("a.");
        one.requests.add(2);
        two.requests.increment();
        two.upstream_rq.increment(204);
        two.active.increment();
        one.time.record(5);
        assert_eq!(text(&registry), ["a.active: 1", "a.requests: 3", "a.time: 1 values", "a.upstream_rq_204: 1"]);
        registry.reset_counters();
        two.requests.increment();
        two.upstream_rq.increment(204);
        assert_eq!(text(&registry), ["a.active: 1", "a.requests: 1", "a.time: 1 values", "a.upstream_rq_204: 1"]);
        drop((one, two));
        assert!(text(&registry).is_empty());
    }

    scope! {
        struct Mixed { time: Histogram, rq_5xx: UsedCounter, peak: UsedGauge, wait: UsedHistogram, requests: Counter }
    }

    #[test]
    fn what_is_shown_when_used_appears_then_and_is_reset_like_others() {
        let registry = Registry::default();
        let scope = registry.scope::<Mixed>("a.");
        assert_eq!(text(&registry), ["a.requests: 0", "a.time: 0 values"]);
        registry.reset_counters();
        scope.wait.record(1);
        scope.peak.set(0);
        scope.rq_5xx.add(3);
        scope.requests.increment();
        let used = ["a.peak: 0", "a.requests: 1", "a.rq_5xx: 3", "a.time: 0 values", "a.wait: 1 values"];
        assert_eq!(text(&registry), used);
        registry.reset_counters();
        scope.rq_5xx.increment();
        assert_eq!(text(&registry)[1..3], ["a.requests: 0", "a.rq_5xx: 1"]);
    }

    #[test]
    fn declared_stats_are_shown_as_zero_until_there_is_more() {
        let registry = Registry::default();
        let scope = registry.scope::<Sample>("a.");
        scope.requests.increment();
        let shown = |wanted: &dyn Fn(&str) -> bool| -> Vec<String> {
            let empty = Sample::default();
            let declared =
                |visit: &mut dyn FnMut(&str, &dyn Scope)| ["a.", "b."].iter().for_each(|at| visit(at, &empty));
            registry.collect_with(&declared, wanted).into_iter().map(show).collect()
        };
        assert_eq!(
            shown(&|_| true),
            ["a.active: 0", "a.requests: 1", "a.time: 0 values", "b.active: 0", "b.requests: 0", "b.time: 0 values"]
        );
        assert_eq!(shown(&|name| name == "b.requests"), ["b.requests: 0"]);
    }
}
