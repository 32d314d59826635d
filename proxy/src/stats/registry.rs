//! Which scopes exist, and how their instances add up.
//!
//! Owns the list of live scopes, how many of them requests may bring about, and which of those go because nobody counts in
//! them. Never writes a metric. The lock is taken when a scope is made, and by readers for a few scopes at a time: a worker
//! that makes one never waits for a reader of many.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use super::buckets::{self, Values};
use super::{Histogram, Metric, NAMES, Scope};

/// All scopes of the process.
#[derive(Default)]
pub struct Registry {
    scopes: Mutex<Scopes>,
    evictions: AtomicU64,
}

#[derive(Default)]
struct Scopes {
    by_prefix: BTreeMap<Arc<str>, Instances>,
    /// How many of them requests have brought about.
    on_use: usize,
}

/// All instances of a scope.
#[derive(Default)]
struct Instances {
    entries: Vec<Entry>,
    /// Set if a request has brought it about.
    on_use: Option<OnUse>,
}

#[derive(Clone)]
struct Entry {
    scope: Weak<dyn Scope>,
    /// Counter values when they were last reset, by position in the visit.
    baseline: Arc<[u64]>,
}

struct OnUse {
    gone: Arc<AtomicBool>,
    /// What all of it added up to when it was last looked at.
    seen: Option<u64>,
}

/// A scope that a request has brought about.
pub struct MadeOnUse<S> {
    /// Counts as long as it is not gone.
    pub scope: Arc<S>,
    /// Nobody has counted in any instance for too long: this one is shown no more.
    pub gone: Arc<AtomicBool>,
}

impl Instances {
    fn add(&mut self, scope: Weak<dyn Scope>) {
        self.entries.retain(|entry| entry.scope.strong_count() > 0);
        self.entries.push(Entry { scope, baseline: Arc::default() });
    }
}

impl Scopes {
    /// Forgets those of which there is no instance.
    fn remove(&mut self, prefix: &str) {
        if self.by_prefix.remove(prefix).is_some_and(|instances| instances.on_use.is_some()) {
            self.on_use -= 1;
        }
    }
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
        let weak = weak(&scope);
        let mut scopes = self.lock();
        match scopes.by_prefix.get_mut(prefix) {
            Some(instances) => instances.add(weak),
            None => scopes.by_prefix.entry(prefix.into()).or_default().add(weak),
        }
        scope
    }

    /// The same for what a request brings about, whose name may come from clients: `None` if there are `limit` prefixes
    /// of that kind and this is another one.
    pub fn scope_on_use<S: Scope + Default>(&self, prefix: &str, limit: usize) -> Option<MadeOnUse<S>> {
        let mut scopes = self.lock();
        if !scopes.by_prefix.contains_key(prefix) {
            if scopes.on_use >= limit {
                return None;
            }
            scopes.on_use += 1;
            let on_use = OnUse { gone: Arc::default(), seen: None };
            scopes.by_prefix.insert(prefix.into(), Instances { entries: Vec::new(), on_use: Some(on_use) });
        }
        let instances = scopes.by_prefix.get_mut(prefix)?;
        let scope = Arc::new(S::default());
        instances.add(weak(&scope));
        // One that stands in the configuration as well stays.
        let gone = instances.on_use.as_ref().map(|on_use| Arc::clone(&on_use.gone)).unwrap_or_default();
        Some(MadeOnUse { scope, gone })
    }

    /// Lets those go that a request has brought about, and in which nobody has counted since the last call. Returns how
    /// many; their owners find them marked.
    pub fn evict(&self) -> usize {
        let mut scopes = self.lock();
        let mut idle: Vec<Arc<str>> = Vec::new();
        for (prefix, instances) in &mut scopes.by_prefix {
            let Some(on_use) = &mut instances.on_use else { continue };
            // Beside its table, somebody has it who may be about to count.
            let is_held = instances.entries.iter().any(|entry| entry.scope.strong_count() > 1);
            let now = instances.entries.iter().filter_map(|entry| entry.scope.upgrade());
            let now = now.fold(0u64, |sum, scope| sum.wrapping_add(total(&*scope)));
            if !is_held && on_use.seen == Some(now) {
                on_use.gone.store(true, Ordering::Relaxed);
                idle.push(Arc::clone(prefix));
            }
            on_use.seen = Some(now);
        }
        for prefix in &idle {
            scopes.remove(prefix);
        }
        if !idle.is_empty() {
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
        idle.len()
    }

    /// How often [`Registry::evict`] has let something go: who keeps scopes may have some that are gone if it has changed.
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// All stats whose full name passes `wanted`, sorted by name.
    pub fn collect(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<Family> {
        self.collect_with(&|_| {}, wanted)
    }

    /// As [`Self::collect`], with those that are declared.
    pub fn collect_with(&self, declared: Declared<'_>, wanted: &dyn Fn(&str) -> bool) -> Vec<Family> {
        let mut all: BTreeMap<String, FamilyKind> = BTreeMap::new();
        let mut after = None;
        while let Some(found) = self.next_scopes(after.as_deref()) {
            for (prefix, entry) in &found {
                if let Some(scope) = entry.scope.upgrade() {
                    add_scope(&mut all, prefix, &*scope, &entry.baseline, wanted);
                }
            }
            after = found.last().map(|(prefix, _)| Arc::clone(prefix)).or(after);
        }
        declared(&mut |prefix, scope| add_scope(&mut all, prefix, scope, &[], wanted));
        all.into_iter().map(|(name, kind)| Family { name, kind }).collect()
    }

    /// Some instances of the next scopes in the order of prefixes; `None` after the last.
    fn next_scopes(&self, after: Option<&str>) -> Option<Vec<(Arc<str>, Entry)>> {
        let mut scopes = self.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut found, mut dead) = (Vec::new(), Vec::new());
        for (prefix, instances) in scopes.by_prefix.range_mut::<str, _>((from, Bound::Unbounded)) {
            instances.entries.retain(|entry| entry.scope.strong_count() > 0);
            if instances.entries.is_empty() {
                dead.push(Arc::clone(prefix));
            }
            found.extend(instances.entries.iter().map(|entry| (Arc::clone(prefix), entry.clone())));
            if found.len() + dead.len() >= SCOPES_AT_ONCE {
                break;
            }
        }
        if found.is_empty() && dead.is_empty() {
            return None;
        }
        for prefix in &dead {
            scopes.remove(prefix);
        }
        // Where only dead ones were found, the next call begins at the same place, without them.
        Some(found)
    }

    /// The sum of these counters in all instances of the scope under `prefix`. Unlike what readers are shown, it never
    /// falls.
    pub fn sum(&self, prefix: &str, counters: &[&str]) -> u64 {
        let mut sum = 0;
        for entry in self.lock().by_prefix.get(prefix).into_iter().flat_map(|instances| &instances.entries) {
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
        for entry in self.lock().by_prefix.values_mut().flat_map(|instances| &mut instances.entries) {
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
                Metric::NamedCounters(counters) => {
                    let mut values = [0; NAMES];
                    values.iter_mut().zip(counters.values()).for_each(|(value, (_, count))| *value = count);
                    baseline.extend(values);
                }
                Metric::Gauge(_) | Metric::Histogram(_) | Metric::Hidden => baseline.push(0),
            });
            entry.baseline = baseline.into();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Scopes> {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn weak<S: Scope>(scope: &Arc<S>) -> Weak<dyn Scope> {
    Arc::downgrade(&(Arc::clone(scope) as Arc<dyn Scope>))
}

/// What a scope has counted, in one number that changes with all of it.
fn total(scope: &dyn Scope) -> u64 {
    let mut total = 0u64;
    scope.visit(&mut |_, metric| {
        let more = match metric {
            Metric::Counter(value) => value,
            Metric::Gauge(value) => value.map_or(0, |value| value as u64),
            Metric::StatusCounters(counters) => counters.values().map(|(_, count)| count).sum(),
            Metric::NamedCounters(counters) => counters.values().map(|(_, count)| count).sum(),
            Metric::Histogram(histogram) => histogram.count(),
            Metric::Hidden => 0,
        };
        total = total.wrapping_add(more);
    });
    total
}

/// Instances that readers take from under the lock at a time.
const SCOPES_AT_ONCE: usize = 64;

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
            Metric::NamedCounters(counters) => {
                position = at + NAMES;
                for (index, (value, count)) in counters.values().enumerate() {
                    add_counter(all, &format!("{full}.{value}"), count.wrapping_sub(before(at + index)), wanted);
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

    #[test]
    fn more_scopes_than_a_reader_takes_at_once_are_all_there() {
        let registry = Registry::default();
        let mut kept = Vec::new();
        for index in 0..5 * SCOPES_AT_ONCE {
            let scope = registry.scope::<Sample>(&format!("s{index:04}."));
            scope.requests.increment();
            // Long runs of those that are gone, too.
            if index % 100 < 10 {
                kept.push(scope);
            }
        }
        let names: Vec<String> = registry.collect(&|name| name.ends_with("requests")).into_iter().map(show).collect();
        assert_eq!(names.len(), kept.len());
        assert_eq!(registry.lock().by_prefix.len(), kept.len());
    }

    #[test]
    fn requests_bring_about_no_more_scopes_than_a_limit() {
        let registry = Registry::default();
        let configured = registry.scope::<Sample>("configured.");
        let first = registry.scope_on_use::<Sample>("a.", 2).unwrap();
        let again = registry.scope_on_use::<Sample>("a.", 2).unwrap();
        let second = registry.scope_on_use::<Sample>("b.", 2).unwrap();
        assert!(registry.scope_on_use::<Sample>("c.", 2).is_none());
        assert!(registry.scope_on_use::<Sample>("configured.", 2).is_some());
        drop((first, again));
        registry.collect(&|_| false);
        assert!(registry.scope_on_use::<Sample>("c.", 2).is_some());
        drop((configured, second));
    }

    #[test]
    fn what_nobody_counts_in_goes_in_all_workers_at_once() {
        let registry = Registry::default();
        let configured = registry.scope::<Sample>("configured.");
        let (one, two) =
            (registry.scope_on_use::<Sample>("a.", 9).unwrap(), registry.scope_on_use::<Sample>("a.", 9).unwrap());
        let idle = registry.scope_on_use::<Sample>("b.", 9).unwrap();
        one.scope.requests.increment();
        two.scope.time.record(1);
        assert_eq!(registry.evict(), 0);
        // A value in one of two instances is enough to keep both, and so is somebody who holds one.
        two.scope.time.record(1);
        let held = Arc::clone(&idle.scope);
        assert_eq!(registry.evict(), 0);
        drop(held);
        two.scope.time.record(1);
        assert_eq!(registry.evict(), 1);
        assert!(idle.gone.load(Ordering::Relaxed) && !one.gone.load(Ordering::Relaxed));
        assert!(text(&registry).iter().all(|line| !line.starts_with("b.")));
        assert_eq!(registry.evict(), 1);
        assert!(one.gone.load(Ordering::Relaxed) && two.gone.load(Ordering::Relaxed));
        assert_eq!(registry.lock().on_use, 0);
        // It may begin again.
        let new = registry.scope_on_use::<Sample>("a.", 9).unwrap();
        new.scope.requests.add(7);
        assert!(!new.gone.load(Ordering::Relaxed) && text(&registry).contains(&"a.requests: 7".to_owned()));
        drop(configured);
    }
}
