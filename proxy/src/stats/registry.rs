//! Which scopes exist, and how their instances add up.
//!
//! Owns the list of live scopes. Never writes a metric. The lock is taken when a scope is made and while readers collect,
//! never on the request path.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{Metric, Scope};

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
    Histogram(Box<hdrhistogram::Histogram<u64>>),
}

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
        let mut all: BTreeMap<String, FamilyKind> = BTreeMap::new();
        let mut scopes = self.lock();
        scopes.retain(|_, entries| {
            entries.retain(|entry| entry.scope.strong_count() > 0);
            !entries.is_empty()
        });
        for (prefix, entries) in scopes.iter() {
            for entry in entries {
                let Some(scope) = entry.scope.upgrade() else { continue };
                let mut position = 0;
                scope.visit(&mut |name, metric| {
                    collect_one(&mut all, prefix, name, &metric, &entry.baseline, &mut position, wanted);
                });
            }
        }
        all.into_iter().map(|(name, kind)| Family { name, kind }).collect()
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
                Metric::Gauge(_) | Metric::Histogram(_) => {}
            });
            entry.baseline = baseline;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Vec<Entry>>> {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn collect_one(
    all: &mut BTreeMap<String, FamilyKind>,
    prefix: &str,
    name: &str,
    metric: &Metric<'_>,
    baseline: &[u64],
    position: &mut usize,
    wanted: &dyn Fn(&str) -> bool,
) {
    let mut since_reset = |value: u64| {
        let before = baseline.get(*position).copied().unwrap_or(0);
        *position += 1;
        value.wrapping_sub(before)
    };
    let mut add_counter = |name: String, value: u64| {
        if wanted(&name)
            && let FamilyKind::Counter(sum) = all.entry(name).or_insert(FamilyKind::Counter(0))
        {
            *sum += value;
        }
    };
    match metric {
        Metric::Counter(value) => add_counter(format!("{prefix}{name}"), since_reset(*value)),
        Metric::StatusCounters(counters) => {
            let start = *position;
            *position += 500;
            for (code, count) in counters.values() {
                let before = baseline.get(start + usize::from(code) - 100).copied().unwrap_or(0);
                add_counter(format!("{prefix}{name}_{code}"), count.wrapping_sub(before));
            }
        }
        Metric::Gauge(value) => {
            let name = format!("{prefix}{name}");
            if wanted(&name)
                && let FamilyKind::Gauge(sum) = all.entry(name).or_insert(FamilyKind::Gauge(None))
                && let Some(value) = value
            {
                *sum = Some(sum.unwrap_or(0) + value);
            }
        }
        Metric::Histogram(histogram) => {
            let name = format!("{prefix}{name}");
            if wanted(&name) {
                let empty = || {
                    // Two digits are within the allowed 0..=5, so this cannot fail.
                    let mut merged = hdrhistogram::Histogram::new(2).expect("two significant digits are allowed");
                    merged.auto(true);
                    FamilyKind::Histogram(Box::new(merged))
                };
                if let FamilyKind::Histogram(merged) = all.entry(name).or_insert_with(empty) {
                    histogram.merge(merged);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope;

    scope! {
        struct Sample { requests: Counter, active: Gauge, upstream_rq: StatusCounters, time: Histogram }
    }

    fn text(registry: &Registry) -> Vec<String> {
        let show = |family: Family| match family.kind {
            FamilyKind::Counter(value) => format!("{}: {value}", family.name),
            FamilyKind::Gauge(value) => format!("{}: {}", family.name, value.unwrap_or(0)),
            FamilyKind::Histogram(histogram) => format!("{}: {} values", family.name, histogram.len()),
        };
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
}
