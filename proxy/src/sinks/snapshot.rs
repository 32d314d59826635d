//! What stats have done since they were last sent.
//!
//! Owns what each counter and histogram had counted then. Pure: stats and time come in, changes go out.

use std::collections::HashMap;
use std::time::SystemTime;

use crate::stats::buckets::{self, Values};
use crate::stats::{Family, FamilyKind};

/// Where stats stood when they were last sent.
pub(super) struct Memory {
    began: SystemTime,
    last: SystemTime,
    counters: HashMap<Box<str>, u64>,
    /// Counts by value, ascending.
    histograms: HashMap<Box<str>, Vec<(u64, u64)>>,
}

/// Stats to be sent.
pub(super) struct Flush {
    /// When they began to count.
    pub began: SystemTime,
    /// The flush before this.
    pub last: SystemTime,
    /// Now.
    pub now: SystemTime,
    /// Those that were used, by name.
    pub stats: Vec<Stat>,
}

/// One stat to be sent.
pub(super) struct Stat {
    /// Its name and value.
    pub family: Family,
    /// What is new of it.
    pub since: Since,
}

/// What a stat has done since the last flush.
pub(super) enum Since {
    /// What a counter has counted.
    Counted(u64),
    /// Gauges are what they are.
    Gauge,
    /// What a histogram has recorded, as (value, count), ascending.
    Recorded(Vec<(u64, u64)>),
}

impl Memory {
    /// Nothing was counted before `now`.
    pub fn new(now: SystemTime) -> Self {
        Self { began: now, last: now, counters: HashMap::new(), histograms: HashMap::new() }
    }

    /// The stats that were used, with what is new since the last call.
    pub fn flush(&mut self, families: Vec<Family>, now: SystemTime) -> Flush {
        let last = std::mem::replace(&mut self.last, now);
        let (mut counters, mut histograms) = (HashMap::new(), HashMap::new());
        let mut stats = Vec::new();
        for family in families {
            let name = family.name.as_str();
            let since = match &family.kind {
                FamilyKind::Counter(value) => {
                    let before = self.counters.remove(name);
                    if *value == 0 && before.is_none() {
                        continue;
                    }
                    counters.insert(name.into(), *value);
                    // It began again if it is less than it was.
                    Since::Counted(before.filter(|before| before <= value).map_or(*value, |before| value - before))
                }
                FamilyKind::Gauge(None) => continue,
                FamilyKind::Gauge(Some(_)) => Since::Gauge,
                FamilyKind::Histogram(values) if values.is_empty() => continue,
                FamilyKind::Histogram(values) => {
                    let recorded = recorded(values);
                    let before = self.histograms.remove(name).unwrap_or_default();
                    let new = difference(&recorded, &before);
                    histograms.insert(name.into(), recorded);
                    Since::Recorded(new)
                }
            };
            stats.push(Stat { family, since });
        }
        // What is gone is forgotten.
        self.counters = counters;
        self.histograms = histograms;
        Flush { began: self.began, last, now, stats }
    }
}

/// The histogram of what was recorded.
pub(super) fn values(recorded: &[(u64, u64)]) -> Values {
    let mut values = buckets::none();
    for (value, count) in recorded {
        // It grows as it has to.
        let _ = values.record_n(*value, *count);
    }
    values
}

fn recorded(values: &Values) -> Vec<(u64, u64)> {
    let each = values.iter_recorded();
    each.map(|step| (values.lowest_equivalent(step.value_iterated_to()), step.count_at_value())).collect()
}

fn difference(now: &[(u64, u64)], before: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let count_before = |value: u64| {
        let found = before.binary_search_by_key(&value, |(value, _)| *value);
        found.ok().and_then(|index| before.get(index)).map_or(0, |(_, count)| *count)
    };
    let new = now.iter().map(|(value, count)| (*value, count.saturating_sub(count_before(*value))));
    new.filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::stats::Registry;

    crate::scope! {
        pub struct Sample { upstream_rq_total: Counter, upstream_cx_active: Gauge, upstream_rq_time: Histogram }
    }

    /// A flush of one cluster with two requests, after one with one.
    pub fn sample() -> Flush {
        let registry = Registry::default();
        let scope = registry.scope::<Sample>("cluster.local.");
        let _silent = registry.scope::<Sample>("cluster.silent.");
        let mut memory = Memory::new(UNIX_EPOCH);
        scope.upstream_rq_total.increment();
        scope.upstream_cx_active.set(3);
        scope.upstream_rq_time.record(5);
        memory.flush(registry.collect(&|_| true), UNIX_EPOCH + Duration::from_secs(5));
        scope.upstream_rq_total.add(2);
        scope.upstream_cx_active.set(2);
        scope.upstream_rq_time.record(5);
        scope.upstream_rq_time.record(7);
        memory.flush(registry.collect(&|_| true), UNIX_EPOCH + Duration::from_secs(10))
    }

    fn shown(flush: &Flush) -> Vec<String> {
        let each = flush.stats.iter().map(|stat| match &stat.since {
            Since::Counted(count) => format!("{} +{count}", stat.family.name),
            Since::Gauge => format!("{} gauge", stat.family.name),
            Since::Recorded(values) => format!("{} {values:?}", stat.family.name),
        });
        each.collect()
    }

    #[test]
    fn only_what_was_used_is_sent_with_what_is_new() {
        let flush = sample();
        assert_eq!(
            shown(&flush),
            [
                "cluster.local.upstream_cx_active gauge",
                "cluster.local.upstream_rq_time [(5, 1), (7, 1)]",
                "cluster.local.upstream_rq_total +2"
            ]
        );
        assert_eq!(flush.now.duration_since(flush.last).unwrap(), Duration::from_secs(5));
        assert_eq!(flush.now.duration_since(flush.began).unwrap(), Duration::from_secs(10));
    }

    #[test]
    fn a_counter_that_was_reset_counts_from_zero_and_a_quiet_one_is_sent_as_zero() {
        let registry = Registry::default();
        let scope = registry.scope::<Sample>("a.");
        let mut memory = Memory::new(UNIX_EPOCH);
        scope.upstream_rq_total.add(5);
        assert_eq!(shown(&memory.flush(registry.collect(&|_| true), UNIX_EPOCH)), ["a.upstream_rq_total +5"]);
        assert_eq!(shown(&memory.flush(registry.collect(&|_| true), UNIX_EPOCH)), ["a.upstream_rq_total +0"]);
        registry.reset_counters();
        scope.upstream_rq_total.add(2);
        assert_eq!(shown(&memory.flush(registry.collect(&|_| true), UNIX_EPOCH)), ["a.upstream_rq_total +2"]);
        drop(scope);
        assert!(shown(&memory.flush(registry.collect(&|_| true), UNIX_EPOCH)).is_empty());
        assert!(memory.counters.is_empty());
    }
}
