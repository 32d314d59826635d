//! The adaptive concurrency filter: refuses requests above a limit that follows their latency.
//!
//! Owns what is measured, and what runtime changes. The limit is found in `outrigger_policy::gradient`; all workers share it.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use outrigger_config::http::filters::{AdaptiveConcurrency as Settings, Gradient, MinLatency};
use outrigger_policy::gradient::Controller;

use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::graph::RuntimeSnapshot;
use crate::http::manager::reply::LocalReply;
use crate::network::holds;
use crate::process::Process;
use crate::scope;
use crate::stats::{Metric, Scope};

scope! {
    /// What each worker counts (`http.<prefix>.adaptive_concurrency.gradient_controller.*`).
    pub struct BlockedStats {
        rq_blocked: Counter,
    }
}

/// What is shown of the limit, with the same prefix. There is one instance for all workers.
#[derive(Default)]
pub struct LimitStats(OnceLock<Arc<Limit>>);

impl Scope for LimitStats {
    fn visit(&self, visit: &mut dyn FnMut(&'static str, Metric<'_>)) {
        let Some(limit) = self.0.get() else { return };
        // Without requests nobody else notices that time has passed.
        limit.look(None, limit.made.elapsed());
        let shown = limit.controller.shown();
        let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        for (name, value) in [
            ("burst_queue_size", shown.burst.into()),
            ("concurrency_limit", shown.limit.into()),
            ("gradient", shown.gradient_thousandths.into()),
            ("min_rtt_calculation_active", shown.is_measuring.into()),
            ("min_rtt_msecs", milliseconds(shown.min_latency)),
            ("sample_rtt_msecs", milliseconds(shown.latency)),
        ] {
            visit(name, Metric::Gauge(Some(value)));
        }
    }
}

/// The limit of one filter in all workers.
struct Limit {
    settings: Arc<Settings>,
    controller: Controller,
    made: Instant,
    process: Arc<Process>,
}

/// A limit with its place among the stats.
struct ShownLimit {
    limit: Arc<Limit>,
    _shown: Arc<LimitStats>,
}

/// The filter.
pub struct AdaptiveConcurrency {
    shared: Arc<ShownLimit>,
    stats: Arc<BlockedStats>,
}

/// A request under way.
#[derive(Default)]
struct UnderWay(Option<Place>);

struct Place {
    limit: Arc<Limit>,
    began: Duration,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.limit.controller.ended();
    }
}

impl AdaptiveConcurrency {
    /// A filter; its limit is that of the same settings in other workers.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        let process = &maker.worker.process;
        let prefix = format!("{}{PREFIX}", maker.prefix);
        let shared = process.shared.of(settings, || {
            let limit = Arc::new(Limit {
                settings: Arc::clone(settings),
                controller: Controller::new(&settings.gradient),
                made: Instant::now(),
                process: Arc::clone(process),
            });
            let shown = process.stats.scope::<LimitStats>(&prefix);
            let _ = shown.0.set(Arc::clone(&limit));
            ShownLimit { limit, _shown: shown }
        });
        Self { shared, stats: maker.worker.scope(&prefix) }
    }
}

impl HttpFilter for AdaptiveConcurrency {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let limit = &self.shared.limit;
        // Health checks are quicker than what they stand for.
        if !holds(&limit.settings.enabled, exchange.runtime()) || exchange.info().health_check.get() {
            return Verdict::Continue;
        }
        let now = limit.made.elapsed();
        limit.look(Some(exchange), now);
        if !limit.controller.admit() {
            self.stats.rq_blocked.increment();
            let reply = LocalReply::new(limit.settings.status, "reached_concurrency_limit");
            return Verdict::reply(reply.body(&b"reached concurrency limit"[..]));
        }
        let place = Place { limit: Arc::clone(limit), began: now };
        *exchange.state::<UnderWay>() = UnderWay(Some(place));
        Verdict::Continue
    }

    fn end(&self, exchange: &mut Exchange<'_, '_, '_>) {
        let Some(place) = exchange.known_state::<UnderWay>().and_then(|under_way| under_way.0.take()) else { return };
        let limit = &self.shared.limit;
        if !exchange.info().response_sent.get() {
            return;
        }
        let now = limit.made.elapsed();
        limit.controller.sample(place.began, now);
        drop(place);
        limit.look(Some(exchange), now);
    }
}

impl Limit {
    /// Does what is due.
    fn look(&self, exchange: Option<&Exchange<'_, '_, '_>>, now: Duration) {
        if !self.controller.is_due(now) {
            return;
        }
        let gradient = &self.settings.gradient;
        match exchange {
            Some(exchange) => {
                let random = exchange.worker().random.next();
                self.controller.update(&with_runtime(gradient, exchange.runtime()), random, now);
            }
            None => {
                let graph = self.process.graph.load();
                // As random as the moment at which somebody looks.
                self.controller.update(&with_runtime(gradient, &graph.runtime), now.as_nanos() as u64, now);
            }
        }
    }
}

/// The settings as runtime changes them.
fn with_runtime(settings: &Gradient, runtime: &RuntimeSnapshot) -> Gradient {
    let mut changed = *settings;
    let integer = |name| runtime.integer(&format!("{RUNTIME_PREFIX}{name}"));
    let number = |name| u32::try_from(integer(name)?).ok();
    let time = |name| integer(name).filter(|time| *time > 0).map(Duration::from_millis);
    let percent = |name, default: f64| {
        let value = runtime.values.get(format!("{RUNTIME_PREFIX}{name}").as_str()).and_then(|value| value.number);
        value.unwrap_or(default).clamp(0.0, 100.0)
    };
    if let (MinLatency::Measured(interval), Some(time)) = (&mut changed.min_latency, time("min_rtt_calc_interval_ms")) {
        *interval = time;
    }
    changed.update_interval = time("sample_rtt_calc_interval_ms").unwrap_or(settings.update_interval);
    changed.max_limit = number("max_concurrency_limit").unwrap_or(settings.max_limit);
    changed.request_count = number("min_rtt_aggregate_request_count").unwrap_or(settings.request_count);
    changed.percentile = percent("sample_aggregate_percentile", settings.percentile);
    changed.jitter_percent = percent("jitter", settings.jitter_percent);
    changed.buffer_percent = percent("min_rtt_buffer", settings.buffer_percent);
    if let Some(least) = number("min_concurrency") {
        // What stands for the lower bound unless that is set is the same number.
        if settings.min_limit == settings.min_concurrency {
            changed.min_limit = least;
        }
        changed.min_concurrency = least;
    }
    changed
}

const PREFIX: &str = "adaptive_concurrency.gradient_controller.";
const RUNTIME_PREFIX: &str = "adaptive_concurrency.gradient_controller.";
