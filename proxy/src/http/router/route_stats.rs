//! What is counted of forwarded requests by route and by virtual cluster (`vhost.<name>.route.<prefix>.*`,
//! `vhost.<name>.vcluster.<name>.*`).
//!
//! Owns which of these a request counts for. Never counts for clusters (see `upstream::stats`).

use std::sync::Arc;

use outrigger_policy::route::request_header_matches;

use crate::http::manager::request::{Chosen, Request};
use crate::stats::names;
use crate::{count_class, scope};

scope! {
    /// One worker's share of the stats of a route or of a virtual cluster.
    pub struct RouteStats {
        upstream_rq: StatusCounters,
        upstream_rq_1xx: UsedCounter,
        upstream_rq_2xx: UsedCounter,
        upstream_rq_3xx: UsedCounter,
        upstream_rq_4xx: UsedCounter,
        upstream_rq_5xx: UsedCounter,
        upstream_rq_completed: UsedCounter,
        upstream_rq_retry: Counter,
        upstream_rq_retry_limit_exceeded: Counter,
        upstream_rq_retry_overflow: Counter,
        upstream_rq_retry_success: Counter,
        upstream_rq_time: UsedHistogram,
        upstream_rq_timeout: Counter,
        upstream_rq_total: Counter,
    }
}

impl RouteStats {
    fn response(&self, status: u16) {
        self.upstream_rq_completed.increment();
        self.upstream_rq.increment(status);
        count_class!(self, status, upstream_rq);
    }
}

/// What a request counts for beside its cluster; nothing unless its route or virtual host says so.
#[derive(Default)]
pub struct RouteCounts(Option<Box<[Arc<RouteStats>]>>);

impl RouteCounts {
    /// What `request` counts for. Its virtual cluster is recorded.
    pub fn of(request: &Request<'_>, chosen: &Chosen<'_>) -> Self {
        let host = chosen.virtual_host;
        if chosen.route.stat_prefix.is_none() && host.virtual_clusters.is_empty() {
            return Self(None);
        }
        let mut prefixes = Vec::new();
        let vhost = names::sanitize(&host.name);
        if !host.virtual_clusters.is_empty() {
            let fits = |cluster: &&outrigger_config::route::VirtualCluster| {
                cluster.headers.iter().all(|matcher| request_header_matches(matcher, &request.head))
            };
            let found = host.virtual_clusters.iter().find(fits);
            // Envoy's name for what none of them takes.
            let name = found.map_or("other", |cluster| &cluster.name);
            prefixes.push(names::prefix(&format!("vhost.{vhost}.vcluster"), name));
            *request.info.virtual_cluster.borrow_mut() = found.map(|cluster| Arc::clone(&cluster.name));
        }
        if let Some(prefix) = &chosen.route.stat_prefix {
            prefixes.push(names::prefix(&format!("vhost.{vhost}.route"), prefix));
        }
        let worker = &request.connection.worker;
        Self(Some(prefixes.iter().map(|prefix| worker.scope(prefix)).collect()))
    }

    fn each(&self, count: impl Fn(&RouteStats)) {
        if let Some(all) = &self.0 {
            all.iter().for_each(|stats| count(stats));
        }
    }

    /// A try has a connection.
    pub fn began(&self) {
        self.each(|stats| stats.upstream_rq_total.increment());
    }

    /// The response that ends it, of the upstream or of ours for it; those of tries that are repeated do not count.
    pub fn response(&self, status: u16) {
        self.each(|stats| stats.response(status));
    }

    /// The response of the upstream that goes to the client, so long after the request began.
    pub fn took(&self, milliseconds: u64) {
        self.each(|stats| stats.upstream_rq_time.record(milliseconds));
    }

    /// The time limit of the route has passed.
    pub fn timed_out(&self) {
        self.each(|stats| stats.upstream_rq_timeout.increment());
    }

    /// A try is repeated.
    pub fn retried(&self) {
        self.each(|stats| stats.upstream_rq_retry.increment());
    }

    /// It would have been, but not so often.
    pub fn retry_limit_exceeded(&self) {
        self.each(|stats| stats.upstream_rq_retry_limit_exceeded.increment());
    }

    /// It would have been, but too many are.
    pub fn retry_overflow(&self) {
        self.each(|stats| stats.upstream_rq_retry_overflow.increment());
    }

    /// A repeated try has helped.
    pub fn retry_success(&self) {
        self.each(|stats| stats.upstream_rq_retry_success.increment());
    }
}
