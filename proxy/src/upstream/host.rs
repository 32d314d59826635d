//! One endpoint of a cluster.
//!
//! Owns its identity and the counters that outlive graph swaps. Never connects, and never chooses.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use outrigger_config::address::Address;
use outrigger_config::cluster::{EndpointCheck, HealthStatus, HttpProxy, LbMetadata, LbValue, Locality};
use outrigger_config::metadata::Namespaces;
use outrigger_policy::balance::ReportedWeight;
use outrigger_policy::outlier::HostMonitor;
use tokio::sync::Notify;

use crate::health::HealthFlags;
use crate::scope;
use crate::stats::{Metric, Scope};

/// An endpoint as one generation of the graph sees it.
#[derive(Debug)]
pub struct Host {
    /// Where to connect.
    pub address: Address,
    /// Tried when `address` does not answer.
    pub additional_addresses: Vec<Address>,
    /// Name of the endpoint; may be empty.
    pub hostname: Arc<str>,
    /// Share among its like; at least 1.
    pub weight: u32,
    /// Requests that it takes at a time, where it says so itself.
    pub max_requests: Option<u32>,
    /// 0 is the highest.
    pub priority: u32,
    /// Where it is.
    pub locality: Arc<Locality>,
    /// What discovery says.
    pub health: HealthStatus,
    /// What it says of itself for balancing (`envoy.lb`).
    pub metadata: Option<Arc<LbMetadata>>,
    /// What its connections are: a place among `Cluster::transports`.
    pub transport: usize,
    /// It may have connections before they are needed, where the cluster has such.
    pub preconnect: bool,
    /// What it says about its checks, where there are any.
    pub health_check: Option<Arc<EndpointCheck>>,
    /// All its metadata, where it leads into a listener of this process: parts may go there.
    pub passed: Option<Arc<Namespaces>>,
    /// The HTTP proxy that its connections go through.
    pub http_proxy: Option<HttpProxy>,
    /// What survives swaps.
    pub shared: Arc<HostShared>,
}

impl Host {
    /// Whether it runs what is on trial (`envoy.lb: { canary: true }`).
    pub fn is_canary(&self) -> bool {
        let said = self.metadata.as_ref().and_then(|metadata| metadata.get("canary"));
        said == Some(&LbValue::Bool(true))
    }
}

/// State of an endpoint that survives graph swaps, keyed by its address within the cluster.
#[derive(Debug, Default)]
pub struct HostShared {
    /// Open connections over all workers, for the per-host limit. Written by all workers when they connect.
    pub connections: AtomicU32,
    /// Requests in flight over all workers, counted where the cluster limits them. Written by all workers.
    pub requests: AtomicU32,
    /// What checks and outlier detection have found. Written by the control thread.
    pub flags: HealthFlags,
    /// What its agent makes of its weight, in percent and one more; 0 while it has said nothing. Written by the control
    /// thread.
    pub agent_weight: AtomicU16,
    /// Requests at the same time that its agent allows over all workers; 0 for no limit. Written by the control thread.
    pub agent_max_requests: AtomicU32,
    used: OnceLock<Box<UsedHost>>,
}

/// What only endpoints need that are used, which most endpoints of a large mesh never are.
#[derive(Debug, Default)]
struct UsedHost {
    freed: Notify,
    monitor: HostMonitor,
    instances: Mutex<Instances>,
    /// Requests in flight from all workers, where the policy goes by that. Written by all workers.
    active: AtomicU32,
    weight: OnceLock<Box<SharedWeight>>,
    metrics: OnceLock<Box<LoadMetrics>>,
    /// What an operator wants its weight to be; 0 for nothing. Written by the control thread.
    weight_by_hand: AtomicU32,
    /// The same of its limit.
    limit_by_hand: AtomicU32,
}

/// The weight that an endpoint reports. Written by whoever has a report, read by all when they make weights anew; a mix
/// of two reports that come at once is as good as either.
#[derive(Debug, Default)]
struct SharedWeight {
    weight: AtomicU64,
    since: AtomicU64,
    last: AtomicU64,
}

/// Metrics that an endpoint tells with its answers, by name, where load reports are to have them. The lock is taken for a
/// few steps in memory, by answers that bring any and by reports.
#[derive(Debug, Default)]
pub struct LoadMetrics(Mutex<BTreeMap<Arc<str>, LoadMetric>>);

/// What has been told of one metric.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadMetric {
    /// Answers that had it.
    pub requests: u64,
    /// Their values together.
    pub total: f64,
}

impl LoadMetrics {
    fn add(&self, metrics: Vec<(Box<str>, f64)>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, value) in metrics {
            // An endpoint that invents names is not to use up our memory.
            if value.is_finite() && (known.len() < MOST_METRICS || known.contains_key(&*name)) {
                let metric = known.entry(name.into()).or_default();
                metric.requests += 1;
                metric.total += value;
            }
        }
    }
}

/// Metrics of one endpoint.
const MOST_METRICS: usize = 1_000;

/// The counters of all workers.
#[derive(Debug, Default)]
struct Instances {
    live: Vec<Arc<HostStats>>,
    /// What those have counted whose worker has no use for the endpoint any more.
    past: HostStats,
}

impl Instances {
    /// Adds up those that nobody else holds.
    fn settle(&mut self) {
        let past = &self.past;
        self.live.retain(|stats| {
            let held = Arc::strong_count(stats) > 1;
            if !held {
                past.absorb(stats);
            }
            held
        });
    }
}

impl Host {
    /// Who is at the other end of its connections: the endpoint, or the HTTP proxy on the way.
    pub fn peer(&self) -> &Address {
        self.http_proxy.as_ref().map_or(&self.address, |proxy| &proxy.address)
    }
}

impl HostShared {
    fn used(&self) -> &UsedHost {
        self.used.get_or_init(Box::default)
    }

    /// Tells one of those who wait for the per-host limit, on whatever worker, that a connection has ended.
    pub fn freed(&self) -> &Notify {
        &self.used().freed
    }

    /// Results that outlier detection looks at. Written by all workers.
    pub fn monitor(&self) -> &HostMonitor {
        &self.used().monitor
    }

    /// As [`Self::monitor`], unless there cannot be any results.
    pub fn monitor_if_used(&self) -> Option<&HostMonitor> {
        self.used.get().map(|used| &used.monitor)
    }

    /// Requests in flight from all workers, as far as they were counted with [`Self::count`].
    pub fn active(&self) -> u32 {
        self.used.get().map_or(0, |used| used.active.load(Ordering::Relaxed))
    }

    /// One request more.
    pub fn count(&self) {
        self.used().active.fetch_add(1, Ordering::Relaxed);
    }

    /// One of those that were counted has ended.
    pub fn discount(&self) {
        self.used().active.fetch_sub(1, Ordering::Relaxed);
    }

    /// What the endpoint reports of its weight.
    pub fn reported(&self) -> ReportedWeight {
        let known = self.used.get().and_then(|used| used.weight.get());
        known.map_or_else(ReportedWeight::default, |shared| ReportedWeight {
            weight: f64::from_bits(shared.weight.load(Ordering::Relaxed)),
            since: shared.since.load(Ordering::Relaxed),
            last: shared.last.load(Ordering::Relaxed),
        })
    }

    /// Keeps a newer report.
    pub fn set_reported(&self, ReportedWeight { weight, since, last }: ReportedWeight) {
        let shared = self.used().weight.get_or_init(Box::default);
        shared.weight.store(weight.to_bits(), Ordering::Relaxed);
        shared.since.store(since, Ordering::Relaxed);
        shared.last.store(last, Ordering::Relaxed);
    }

    /// Adds what an answer tells.
    pub fn add_load_metrics(&self, metrics: Vec<(Box<str>, f64)>) {
        if !metrics.is_empty() {
            self.used().metrics.get_or_init(Box::default).add(metrics);
        }
    }

    /// All that answers have told.
    pub fn load_metrics(&self) -> BTreeMap<Arc<str>, LoadMetric> {
        let known = self.used.get().and_then(|used| used.metrics.get());
        known.map_or_else(BTreeMap::new, |metrics| metrics.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// A worker's own counters for this endpoint, made on its first use of it.
    pub fn stats(&self) -> Arc<HostStats> {
        let stats = Arc::new(HostStats::default());
        let mut instances = self.used().instances.lock().unwrap_or_else(PoisonError::into_inner);
        instances.settle();
        instances.live.push(Arc::clone(&stats));
        stats
    }

    /// What its agent makes of its weight, in percent; 100 while it has said nothing.
    pub fn agent_weight_percent(&self) -> u32 {
        match self.agent_weight.load(Ordering::Relaxed) {
            0 => 100,
            percent => u32::from(percent) - 1,
        }
    }

    /// How many requests its agent allows at the same time, if it limits them.
    pub fn agent_limit(&self) -> Option<u32> {
        Some(self.agent_max_requests.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    /// The weight that an operator wants.
    pub fn weight_by_hand(&self) -> Option<u32> {
        self.used.get().map(|used| used.weight_by_hand.load(Ordering::Relaxed)).filter(|weight| *weight > 0)
    }

    /// The limit that an operator wants.
    pub fn limit_by_hand(&self) -> Option<u32> {
        self.used.get().map(|used| used.limit_by_hand.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    /// Takes over what an operator wants. Whether that is another weight than before.
    pub fn set_by_hand(&self, weight: Option<u32>, limit: Option<u32>) -> bool {
        if weight.is_none() && limit.is_none() && self.used.get().is_none() {
            return false;
        }
        let used = self.used();
        used.limit_by_hand.store(limit.unwrap_or(0), Ordering::Relaxed);
        used.weight_by_hand.swap(weight.unwrap_or(0), Ordering::Relaxed) != weight.unwrap_or(0)
    }

    /// Takes over what its agent makes of its weight. Whether that is another share than before.
    pub fn set_agent_weight(&self, percent: u16) -> bool {
        let before = self.agent_weight_percent();
        self.agent_weight.store(percent.saturating_add(1), Ordering::Relaxed);
        before != u32::from(percent)
    }

    /// Calls `add` with the counters of each worker that has used this endpoint.
    pub fn each_stats(&self, add: &mut dyn FnMut(&HostStats)) {
        if let Some(used) = self.used.get() {
            let instances = used.instances.lock().unwrap_or_else(PoisonError::into_inner);
            add(&instances.past);
            instances.live.iter().for_each(|stats| add(stats));
        }
    }

    /// Sums of all workers: (name, value, is a gauge), in a fixed order.
    pub fn totals(&self) -> Vec<(&'static str, i64, bool)> {
        let mut totals: Vec<(&'static str, i64, bool)> = Vec::new();
        let mut add = |stats: &HostStats| {
            let mut position = 0;
            stats.visit(&mut |name, metric| {
                let (value, gauge) = match metric {
                    Metric::Counter(value) => (value as i64, false),
                    Metric::Gauge(value) => (value.unwrap_or(0), true),
                    Metric::StatusCounters(_) | Metric::NamedCounters(_) | Metric::Histogram(_) | Metric::Hidden => {
                        return;
                    }
                };
                match totals.get_mut(position) {
                    Some(total) => total.1 += value,
                    None => totals.push((name, value, gauge)),
                }
                position += 1;
            });
        };
        add(&HostStats::default());
        self.each_stats(&mut add);
        totals
    }
}

scope! {
    /// Per-endpoint stats of one worker, as `/clusters` shows them.
    pub struct HostStats {
        cx_connect_fail: Counter,
        cx_total: Counter,
        rq_error: Counter,
        rq_success: Counter,
        rq_timeout: Counter,
        rq_total: Counter,
        cx_active: Gauge,
        rq_active: Gauge,
        rq_pending_active: Gauge,
    }
}

impl HostStats {
    /// Adds what another has counted; its gauges are of what has ended.
    fn absorb(&self, other: &Self) {
        let Self {
            cx_connect_fail,
            cx_total,
            rq_error,
            rq_success,
            rq_timeout,
            rq_total,
            cx_active: _,
            rq_active: _,
            rq_pending_active: _,
        } = self;
        for (sum, part) in [
            (cx_connect_fail, &other.cx_connect_fail),
            (cx_total, &other.cx_total),
            (rq_error, &other.rq_error),
            (rq_success, &other.rq_success),
            (rq_timeout, &other.rq_timeout),
            (rq_total, &other.rq_total),
        ] {
            sum.add(part.value());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_outlives_the_worker_that_counted_it() {
        let host = HostShared::default();
        let requests = || host.totals().into_iter().find(|(name, ..)| *name == "rq_total").map(|(_, value, _)| value);
        assert_eq!(requests(), Some(0));
        let (first, second) = (host.stats(), host.stats());
        first.rq_total.add(2);
        second.rq_total.add(3);
        first.rq_active.set(0);
        assert_eq!(requests(), Some(5));
        drop(first);
        let third = host.stats();
        third.rq_total.add(10);
        assert_eq!(requests(), Some(15));
    }

    #[test]
    fn an_agent_that_said_nothing_leaves_the_weight_as_it_is() {
        let host = HostShared::default();
        assert_eq!(host.agent_weight_percent(), 100);
        assert!(!host.set_agent_weight(100) && host.set_agent_weight(0) && host.set_agent_weight(25_600));
        assert_eq!(host.agent_weight_percent(), 25_600);
    }
}
