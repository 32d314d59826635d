//! The fault filter: delays requests, answers them with errors, and slows responses down.
//!
//! Owns the choice of faults for a request and their limit. What may happen how often stands in the settings.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{Abort, AbortStatus, DelayTime, Fault as Settings, RateLimit};
use outrigger_config::units::Fraction;
use outrigger_policy::route::{RuntimeView, request_header_matches};

use super::throttle::Throttle;
use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::http::headers::HeaderId;
use crate::http::manager::reply::LocalReply;
use crate::scope;
use crate::stats::names;
use crate::stream::ResponseFlag;
use crate::worker::Worker;
use crate::worker::on_use::{Kept, Wanting};

scope! {
    /// Stats of the filter (`http.<prefix>.fault.*`).
    pub struct FaultStats {
        aborts_injected: Counter,
        active_faults: Gauge,
        delays_injected: Counter,
        faults_overflow: Counter,
        response_rl_injected: Counter,
    }
}

scope! {
    /// Stats of one downstream cluster (`http.<prefix>.fault.<downstream cluster>.*`).
    pub struct DownstreamFaultStats {
        aborts_injected: Counter,
        delays_injected: Counter,
    }
}

/// The filter.
pub struct Fault {
    settings: Arc<Settings>,
    injector: Rc<Injector>,
}

/// What injected faults are counted in, for all settings of one filter.
struct Injector {
    stats: Arc<FaultStats>,
    /// Faults of all workers now.
    active: Arc<Active>,
    prefix: String,
    /// The names come from clients, so there is a limit to them.
    downstreams: RefCell<HashMap<Box<str>, Kept<DownstreamFaultStats>>>,
    /// When those that are gone were last looked for.
    evictions: Cell<u64>,
}

#[derive(Default)]
struct Active(AtomicU64);

/// Downstream clusters with stats of their own.
const MAX_DOWNSTREAMS: usize = 1000;

/// What the filter keeps for a request with a fault.
#[derive(Default)]
struct Injected {
    counted: Option<Counted>,
    /// Bytes a second of the response body.
    response_rate: Option<u64>,
}

/// A request that counts as a fault.
struct Counted {
    stats: Arc<FaultStats>,
    active: Arc<Active>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.stats.active_faults.decrement();
        self.active.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who sent a request, and the runtime keys of its own.
struct Downstream {
    name: Option<String>,
}

impl Fault {
    /// A filter with its stats.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        let prefix = format!("{}fault.", maker.prefix);
        let injector = Injector {
            stats: maker.stats("fault"),
            active: maker.worker.process.shared.get(&prefix, Active::default),
            prefix,
            downstreams: RefCell::default(),
            evictions: Cell::default(),
        };
        Self { settings: Arc::clone(settings), injector: Rc::new(injector) }
    }
}

impl HttpFilter for Fault {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let of_route = exchange.route_configs().find_map(|config| match config {
            RouteFilterConfig::Fault(settings) => Some(settings),
            _ => None,
        });
        let settings = of_route.unwrap_or(&self.settings);
        if settings.is_idle() || !is_meant(settings, exchange) {
            return Verdict::Continue;
        }
        let settings = Arc::clone(settings);
        let injector = &self.injector;
        let downstream = Downstream {
            name: exchange
                .head()
                .headers
                .get_str(HeaderId::XEnvoyDownstreamServiceCluster)
                .filter(|name| !name.is_empty())
                .map(str::to_owned),
        };
        injector.limit_response(&settings, exchange);
        match injector.delay(&settings, &downstream, exchange) {
            None => injector.abort(&settings, &downstream, exchange),
            Some(delay) => {
                let injector = Rc::clone(injector);
                Verdict::wait(tokio::time::sleep(delay), move |(), exchange| {
                    injector.abort(&settings, &downstream, exchange)
                })
            }
        }
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        if let Some(rate) = exchange.known_state::<Injected>().and_then(|injected| injected.response_rate.take()) {
            exchange.pace_response(Box::new(Throttle::new(rate, tokio::time::Instant::now())));
        }
        Verdict::Continue
    }
}

/// Whether a request is one of those that the settings are for.
fn is_meant(settings: &Settings, exchange: &Exchange<'_, '_, '_>) -> bool {
    let head = exchange.head();
    let to_cluster = || {
        let cluster = exchange.cluster_name();
        cluster.is_some_and(|name| *name == *settings.upstream_cluster)
    };
    let from_node = || {
        let node = head.headers.get(HeaderId::XEnvoyDownstreamServiceNode);
        node.is_some_and(|node| settings.downstream_nodes.iter().any(|known| known.as_bytes() == node))
    };
    (settings.upstream_cluster.is_empty() || to_cluster())
        && (settings.downstream_nodes.is_empty() || from_node())
        && settings.headers.iter().all(|matcher| request_header_matches(matcher, head))
}

impl Injector {
    /// How long the request waits, if it does.
    fn delay(
        &self,
        settings: &Settings,
        downstream: &Downstream,
        exchange: &mut Exchange<'_, '_, '_>,
    ) -> Option<Duration> {
        let delay = settings.delay.as_ref()?;
        let share = share(delay.share, DELAY_PERCENTAGE, exchange);
        if !downstream.holds(&settings.runtime.delay_percent, "delay.fixed_delay_percent", share, exchange) {
            return None;
        }
        let milliseconds = match delay.what {
            DelayTime::Fixed(time) => u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            DelayTime::Header => number(DELAY, exchange)?,
        };
        let keys = &settings.runtime;
        let milliseconds =
            downstream.milliseconds(&keys.delay_duration, "delay.fixed_duration_ms", milliseconds, exchange);
        if milliseconds == 0 || !self.count(settings, exchange) {
            return None;
        }
        self.stats.delays_injected.increment();
        if let Some(stats) = self.downstream(settings, downstream, exchange) {
            stats.delays_injected.increment();
        }
        record(settings, ResponseFlag::DelayInjected, exchange);
        Some(Duration::from_millis(milliseconds))
    }

    /// The answer to the request, if it is not to be forwarded.
    fn abort(&self, settings: &Settings, downstream: &Downstream, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Some(abort) = &settings.abort else { return Verdict::Continue };
        let share = share(abort.injection.share, ABORT_PERCENTAGE, exchange);
        if !downstream.holds(&settings.runtime.abort_percent, "abort.abort_percent", share, exchange) {
            return Verdict::Continue;
        }
        let Some(reply) = answer(settings, abort, downstream, exchange) else { return Verdict::Continue };
        if !self.count(settings, exchange) {
            return Verdict::Continue;
        }
        self.stats.aborts_injected.increment();
        if let Some(stats) = self.downstream(settings, downstream, exchange) {
            stats.aborts_injected.increment();
        }
        record(settings, ResponseFlag::FaultInjected, exchange);
        Verdict::reply(reply)
    }

    /// Makes the response slow, if it is to be.
    fn limit_response(&self, settings: &Settings, exchange: &mut Exchange<'_, '_, '_>) {
        let Some(limit) = &settings.response_rate_limit else { return };
        let rate = match limit.what {
            RateLimit::Fixed(rate) => Some(rate),
            RateLimit::Header => number(THROUGHPUT, exchange).filter(|rate| *rate > 0),
        };
        let Some(rate) = rate else { return };
        let share = share(limit.share, THROUGHPUT_PERCENTAGE, exchange);
        let key = &settings.runtime.response_rate_limit_percent;
        if !holds(key, share, exchange) || !self.count(settings, exchange) {
            return;
        }
        self.stats.response_rl_injected.increment();
        exchange.state::<Injected>().response_rate = Some(rate.saturating_mul(1024));
    }

    /// Counts the request as a fault, once; false if there are too many.
    fn count(&self, settings: &Settings, exchange: &mut Exchange<'_, '_, '_>) -> bool {
        if exchange.known_state::<Injected>().is_some_and(|injected| injected.counted.is_some()) {
            return true;
        }
        let configured = settings.max_active_faults.map(u64::from);
        let limit = exchange.runtime().integer(&settings.runtime.max_active_faults).or(configured);
        if limit.is_some_and(|limit| self.active.0.load(Ordering::Relaxed) >= limit) {
            self.stats.faults_overflow.increment();
            return false;
        }
        self.active.0.fetch_add(1, Ordering::Relaxed);
        self.stats.active_faults.increment();
        let counted = Counted { stats: Arc::clone(&self.stats), active: Arc::clone(&self.active) };
        exchange.state::<Injected>().counted = Some(counted);
        true
    }

    fn downstream(
        &self,
        settings: &Settings,
        downstream: &Downstream,
        exchange: &Exchange<'_, '_, '_>,
    ) -> Option<Arc<DownstreamFaultStats>> {
        let name = downstream.name.as_deref().filter(|_| !settings.disable_downstream_cluster_stats)?;
        let mut known = self.downstreams.borrow_mut();
        if let Some(stats) = known.get(name).and_then(Kept::get) {
            return Some(stats);
        }
        let worker: &Worker = exchange.worker();
        let evictions = worker.process.stats.evictions();
        if self.evictions.replace(evictions) != evictions {
            known.retain(|_, stats| stats.get().is_some());
        }
        if known.len() >= MAX_DOWNSTREAMS {
            worker.on_use.count_dropped(&worker.process.stats, Wanting::Fault);
            return None;
        }
        let prefix = names::prefix(self.prefix.trim_end_matches('.'), name);
        let (stats, kept) = worker.scope_on_use::<DownstreamFaultStats>(Wanting::Fault, &prefix)?;
        known.insert(name.into(), kept);
        Some(stats)
    }
}

/// The answer that an abort asks for.
fn answer(
    settings: &Settings,
    abort: &Abort,
    downstream: &Downstream,
    exchange: &Exchange<'_, '_, '_>,
) -> Option<LocalReply> {
    let (http, grpc) = match abort.injection.what {
        AbortStatus::Http(status) => (Some(u64::from(status)), None),
        AbortStatus::Grpc(status) => (None, Some(u64::from(status))),
        AbortStatus::Header => {
            (number(ABORT, exchange).filter(|status| (200..600).contains(status)), number(ABORT_GRPC, exchange))
        }
    };
    let keys = &settings.runtime;
    let mut reply = match (http, grpc) {
        (Some(status), _) => {
            let status = downstream.status(&keys.abort_http_status, "abort.http_status", status, exchange);
            // The runtime may say anything.
            let status = u16::try_from(status).ok().filter(|status| (200..600).contains(status)).unwrap_or(503);
            LocalReply::new(status, DETAILS)
        }
        (None, Some(status)) => {
            let status = downstream.status(&keys.abort_grpc_status, "abort.grpc_status", status, exchange);
            let mut reply = LocalReply::new(200, DETAILS);
            reply.grpc_status = u32::try_from(status).ok();
            reply
        }
        (None, None) => return None,
    };
    if reply.status == 200 && reply.grpc_status.is_none() {
        reply.grpc_status = Some(UNKNOWN);
    }
    Some(reply.body(abort.body.clone().into_bytes()))
}

/// Leaves traces of a fault in the log.
fn record(settings: &Settings, flag: ResponseFlag, exchange: &Exchange<'_, '_, '_>) {
    exchange.info().flag(flag);
    exchange.set_metadata(exchange.name(), &settings.metadata);
}

impl Downstream {
    /// Whether a share holds: by the key of this downstream cluster if the request names one, else by `key`.
    fn holds(&self, key: &str, own: &str, share: Fraction, exchange: &Exchange<'_, '_, '_>) -> bool {
        match &self.name {
            Some(name) => holds(&format!("fault.http.{name}.{own}"), share, exchange),
            None => holds(key, share, exchange),
        }
    }

    /// A status: by the key of this downstream cluster if the request names one, else by `key`.
    fn status(&self, key: &str, own: &str, default: u64, exchange: &Exchange<'_, '_, '_>) -> u64 {
        let runtime = exchange.runtime();
        let number = match &self.name {
            Some(name) => runtime.integer(&format!("fault.http.{name}.{own}")),
            None => runtime.integer(key),
        };
        number.unwrap_or(default)
    }

    /// Milliseconds: by the key of this downstream cluster if the request names one and it is there, else by `key`.
    fn milliseconds(&self, key: &str, own: &str, default: u64, exchange: &Exchange<'_, '_, '_>) -> u64 {
        let runtime = exchange.runtime();
        let own = self.name.as_ref().and_then(|name| runtime.integer(&format!("fault.http.{name}.{own}")));
        own.or_else(|| runtime.integer(key)).unwrap_or(default)
    }
}

fn holds(key: &str, share: Fraction, exchange: &Exchange<'_, '_, '_>) -> bool {
    exchange.runtime().fraction(key).unwrap_or(share).holds(exchange.worker().random.next())
}

/// A share that a header may lower.
fn share(configured: Fraction, header: &str, exchange: &Exchange<'_, '_, '_>) -> Fraction {
    let Some(wanted) = number(header, exchange).and_then(|wanted| u32::try_from(wanted).ok()) else {
        return configured;
    };
    let (numerator, denominator) = configured.parts();
    Fraction::new(wanted.min(numerator), denominator).unwrap_or(configured)
}

fn number(header: &str, exchange: &Exchange<'_, '_, '_>) -> Option<u64> {
    std::str::from_utf8(exchange.head().headers.get_by_name(header)?).ok()?.parse().ok()
}

const DETAILS: &str = "fault_filter_abort";
/// gRPC's status for what has no other.
const UNKNOWN: u32 = 2;
const ABORT: &str = "x-envoy-fault-abort-request";
const ABORT_GRPC: &str = "x-envoy-fault-abort-grpc-request";
const ABORT_PERCENTAGE: &str = "x-envoy-fault-abort-request-percentage";
const DELAY: &str = "x-envoy-fault-delay-request";
const DELAY_PERCENTAGE: &str = "x-envoy-fault-delay-request-percentage";
const THROUGHPUT: &str = "x-envoy-fault-throughput-response";
const THROUGHPUT_PERCENTAGE: &str = "x-envoy-fault-throughput-response-percentage";
