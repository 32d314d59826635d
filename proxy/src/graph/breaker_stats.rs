//! What the gauges of circuit breakers show (`cluster.<name>.circuit_breakers.*`).
//!
//! Owns reading the usage that workers share into gauges, when somebody asks. Never limits anything.

use std::sync::Arc;

use outrigger_config::cluster::{Cluster, Thresholds};
use outrigger_policy::breaker::{Breaker, Resource};

use super::breaker_limits::BreakerLimits;
use super::facts;
use super::manager::GraphManager;
use super::stats::{ClusterControlStats, RemainingStats};
use crate::stats::{Gauge, Registry, names};

/// The gauges of thresholds that have `track_remaining`.
#[derive(Default)]
pub(super) struct Remaining {
    default: Option<Arc<RemainingStats>>,
    high: Option<Arc<RemainingStats>>,
}

impl Remaining {
    /// Those that `config` asks for.
    pub fn of(config: &Cluster, registry: &Registry) -> Self {
        let make = |thresholds: &Thresholds, priority: &str| {
            let prefix = || format!("{}circuit_breakers.{priority}.", names::prefix("cluster", &config.stat_name));
            thresholds.track_remaining.then(|| registry.scope(&prefix()))
        };
        let limits = &config.circuit_breakers;
        Self { default: make(&limits.default, "default"), high: make(&limits.high, "high") }
    }
}

impl GraphManager {
    /// Brings the gauges of all circuit breakers up to date.
    pub(super) fn refresh_breakers(&self) {
        for (name, build) in &self.clusters {
            let Some(stats) = self.stats.cluster.get(name) else { continue };
            let limits = BreakerLimits::of(&build.node.config, &self.runtime_snapshot);
            let shared = &build.node.shared;
            show_open(stats, [(&shared.default, &limits.default), (&shared.high, &limits.high)]);
            let Some(Remaining { default, high }) = self.stats.remaining.get(name) else { continue };
            for (stats, breaker, thresholds) in
                [(default, &shared.default, &limits.default), (high, &shared.high, &limits.high)]
            {
                if let Some(stats) = stats {
                    show_remaining(stats, breaker, thresholds);
                }
            }
        }
    }
}

fn show_open(stats: &ClusterControlStats, [default, high]: [(&Arc<Breaker>, &Thresholds); 2]) {
    for (gauge, (breaker, thresholds), resource) in [
        (&stats.default_cx_open, default, Resource::Connection),
        (&stats.default_rq_pending_open, default, Resource::PendingRequest),
        (&stats.default_rq_open, default, Resource::Request),
        (&stats.default_rq_retry_open, default, Resource::Retry),
        (&stats.high_cx_open, high, Resource::Connection),
        (&stats.high_rq_pending_open, high, Resource::PendingRequest),
        (&stats.high_rq_open, high, Resource::Request),
        (&stats.high_rq_retry_open, high, Resource::Retry),
    ] {
        let open = i64::from(breaker.is_open(resource, thresholds, facts::now()));
        // A breaker that was never open is not in use as far as `usedonly` is concerned.
        if gauge.value() != open {
            gauge.set(open);
        }
    }
}

fn show_remaining(stats: &RemainingStats, breaker: &Breaker, thresholds: &Thresholds) {
    let show = |gauge: &Gauge, resource| gauge.set(i64::from(breaker.remaining(resource, thresholds, facts::now())));
    show(&stats.remaining_cx, Resource::Connection);
    show(&stats.remaining_pending, Resource::PendingRequest);
    show(&stats.remaining_rq, Resource::Request);
    show(&stats.remaining_retries, Resource::Retry);
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds {
        max_connections: 1,
        max_pending_requests: 2,
        max_requests: 10,
        max_retries: 3,
        track_remaining: true,
        retry_budget: None,
    };

    #[test]
    fn an_exhausted_limit_shows_until_something_is_given_back() {
        let (stats, idle) = (ClusterControlStats::default(), Arc::default());
        let breaker = Arc::new(Breaker::default());
        let permit = breaker.try_acquire_within(Resource::Connection, &THRESHOLDS);
        show_open(&stats, [(&breaker, &THRESHOLDS), (&idle, &THRESHOLDS)]);
        assert_eq!((stats.default_cx_open.value(), stats.high_cx_open.written()), (1, None));
        drop(permit);
        show_open(&stats, [(&breaker, &THRESHOLDS), (&idle, &THRESHOLDS)]);
        assert_eq!(stats.default_cx_open.written(), Some(0));
        assert_eq!(stats.default_rq_open.written(), None);
    }

    #[test]
    fn what_remains_is_the_limit_less_what_is_in_use() {
        let (stats, breaker) = (RemainingStats::default(), Arc::new(Breaker::default()));
        let _permits: Vec<_> = (0..4).map(|_| breaker.try_acquire_within(Resource::Request, &THRESHOLDS)).collect();
        show_remaining(&stats, &breaker, &THRESHOLDS);
        let gauges = [&stats.remaining_cx, &stats.remaining_pending, &stats.remaining_rq, &stats.remaining_retries];
        assert_eq!(gauges.map(Gauge::value), [1, 2, 6, 3]);
    }
}
