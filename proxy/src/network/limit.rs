//! A limit on connections at a time (`envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit`).
//!
//! Owns the count of a filter chain's connections over all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outrigger_config::network::ConnectionLimit;

use super::stats::LimitStats;
use super::{Refusal, holds};
use crate::stats::names;
use crate::worker::Worker;

/// The limit of a filter chain.
pub struct Limit {
    config: Arc<ConnectionLimit>,
    prefix: Arc<str>,
    active: AtomicU64,
}

/// A connection's place within the limit, given back when dropped.
pub struct Place {
    limit: Arc<Limit>,
    stats: Arc<LimitStats>,
}

impl Limit {
    pub(super) fn new(config: Arc<ConnectionLimit>) -> Self {
        let prefix = names::prefix("connection_limit", &config.stat_prefix).into();
        Self { config, prefix, active: AtomicU64::new(0) }
    }

    /// A place; none is needed while the limit does not hold.
    pub(super) fn take_place(this: &Arc<Self>, worker: &Worker) -> Result<Option<Place>, Refusal> {
        if !holds(&this.config.enabled, &worker.graph().runtime) {
            return Ok(None);
        }
        let stats = worker.network.limit.get(&worker.process.stats, &this.prefix);
        let within = |active: u64| (active < this.config.max_connections).then_some(active + 1);
        if this.active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_err() {
            stats.limited_connections.increment();
            return Err(Refusal { delay: this.config.delay, ..Refusal::default() });
        }
        stats.active_connections.increment();
        Ok(Some(Place { limit: Arc::clone(this), stats }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.limit.active.fetch_sub(1, Ordering::Relaxed);
        self.stats.active_connections.decrement();
    }
}
