//! The local rate limit filter: refuses requests for which there is no token.
//!
//! Owns the answer, the headers that tell of limits, and which buckets a request is measured by. Tokens are counted in
//! `outrigger_policy::rate_limit`.

use std::borrow::Cow;
use std::hash::RandomState;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::format::Format;
use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{LocalRateLimit as Settings, VirtualHostLimits};
use outrigger_config::metadata::MetadataMap;
use outrigger_config::rate_limit::RateLimit;
use outrigger_config::rbac::MetadataSource;
use outrigger_config::route::RouteAction;
use outrigger_policy::rate_limit::{Descriptor, DescriptorView, LocalLimiter, Outcome, Room, Told, descriptor};

use super::added::Added;
use super::{Exchange, HttpFilter, Maker, SettingsStates, Verdict};
use crate::accesslog::format;
use crate::http::headers::Headers;
use crate::http::manager::client_address::client_address;
use crate::http::manager::mutate;
use crate::http::manager::reply::LocalReply;
use crate::http::manager::request::RequestSide;
use crate::http::message::RequestHead;
use crate::scope;
use crate::stats::names;
use crate::stream::ResponseFlag;
use crate::worker::Worker;

scope! {
    /// Stats of the filter (`<prefix>.http_local_rate_limit.*`).
    pub struct LocalRateLimitStats {
        enabled: Counter,
        enforced: Counter,
        ok: Counter,
        rate_limited: Counter,
        shadow_mode: Counter,
    }
}

/// The filter.
pub struct LocalRateLimit {
    settings: Arc<Settings>,
    limits: SettingsStates<Settings, Limit>,
}

/// The limits of some settings, in one worker.
struct Limit {
    stats: Arc<LocalRateLimitStats>,
    /// Of all workers.
    shared: Arc<AgingLimiter>,
}

/// A limiter that knows how old it is.
struct AgingLimiter {
    limiter: LocalLimiter,
    made: Instant,
}

impl AgingLimiter {
    fn new(settings: &Settings) -> Self {
        Self { limiter: LocalLimiter::new(settings, RandomState::new()), made: Instant::now() }
    }

    fn check(&self, descriptors: &[Descriptor<'_>], sharers: u64) -> Outcome {
        self.limiter.check_share(descriptors, sharers, self.made.elapsed())
    }
}

/// What the response tells of a limit.
#[derive(Default)]
struct Telling(Option<Told>);

impl LocalRateLimit {
    /// A filter; its buckets are those of the same settings in other workers.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        let filter = Self { settings: Arc::clone(settings), limits: SettingsStates::default() };
        // Stats are there from the start.
        filter.limit(settings, maker.worker);
        filter
    }

    fn limit(&self, settings: &Arc<Settings>, worker: &Worker) -> Rc<Limit> {
        self.limits.get(settings, || Limit {
            stats: worker.scope(&names::prefix(&names::sanitize(&settings.stat_prefix), "http_local_rate_limit")),
            shared: worker.process.shared.of(settings, || AgingLimiter::new(settings)),
        })
    }
}

impl HttpFilter for LocalRateLimit {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let settings = match exchange.route_config() {
            Some(RouteFilterConfig::LocalRateLimit(settings)) => settings,
            _ => &self.settings,
        };
        if !settings.enabled.as_ref().is_some_and(|share| exchange.holds(share)) {
            return Verdict::Continue;
        }
        let limit = self.limit(settings, exchange.worker());
        let stats = &limit.stats;
        stats.enabled.increment();
        let outcome = {
            let view = View(exchange);
            let descriptors = descriptors(settings, &view);
            if settings.per_connection {
                let connection = exchange.connection();
                let make = || AgingLimiter::new(settings);
                connection.filter_states.get(settings, make).check(&descriptors, 1)
            } else {
                limit.shared.check(&descriptors, sharers(settings, exchange))
            }
        };
        let told = outcome.told.filter(|told| told.tells_clients.unwrap_or(settings.tells_clients));
        if told.is_some() {
            *exchange.state::<Telling>() = Telling(told);
        }
        match outcome.verdict {
            Room::Yes => {
                stats.ok.increment();
                return Verdict::Continue;
            }
            Room::Shadow => {
                stats.rate_limited.increment();
                stats.shadow_mode.increment();
                return Verdict::Continue;
            }
            Room::No => stats.rate_limited.increment(),
        }
        if !settings.enforced.as_ref().is_some_and(|share| exchange.holds(share)) {
            for addition in &settings.request_headers {
                mutate::add(addition, &mut RequestSide(exchange.request_mut()));
            }
            return Verdict::Continue;
        }
        stats.enforced.increment();
        Verdict::reply(refusal(settings, outcome.told, exchange))
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let told = exchange.known_state::<Telling>().and_then(|telling| telling.0.take());
        if let Some(Told { limit, remaining, until_next, .. }) = told {
            let headers = &mut exchange.response_mut().headers;
            for (name, value) in [
                ("x-ratelimit-limit", limit),
                ("x-ratelimit-remaining", remaining),
                ("x-ratelimit-reset", whole_seconds(until_next)),
            ] {
                headers.append(name.as_bytes(), value.to_string().as_bytes());
            }
        }
        Verdict::Continue
    }
}

/// How many share the limits.
fn sharers(settings: &Settings, exchange: &Exchange<'_, '_, '_>) -> u64 {
    if !settings.shared_by_local_cluster {
        return 1;
    }
    let graph = exchange.graph();
    let local = graph.local_cluster.as_ref().and_then(|name| graph.clusters.get(name));
    local.map_or(1, |local| local.hosts.hosts.len().max(1) as u64)
}

fn refusal(settings: &Settings, told: Option<Told>, exchange: &mut Exchange<'_, '_, '_>) -> LocalReply {
    let mut reply = LocalReply::new(settings.status, DETAILS).flag(ResponseFlag::RateLimited).body(DETAILS.as_bytes());
    let mut added = Added { headers: Headers::default(), request: exchange.stream() };
    for addition in &settings.response_headers {
        mutate::add(addition, &mut added);
    }
    let headers = added.headers;
    // Of a bucket that never has a token nobody can say when to come back.
    let wait = told.filter(|told| settings.retry_after && settings.status == 429 && told.limit > 0);
    if let Some(told) = wait
        && headers.get_by_name("retry-after").is_none()
    {
        reply.header("retry-after", whole_seconds(told.until_next).max(1).to_string());
    }
    for (_, name, value) in headers.iter() {
        reply.header(String::from_utf8_lossy(name).into_owned(), value);
    }
    if settings.resource_exhausted {
        reply.grpc_status = Some(RESOURCE_EXHAUSTED);
    }
    reply
}

fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// What the request is measured by.
fn descriptors<'a>(settings: &'a Settings, view: &'a View<'a, '_, '_, '_>) -> Vec<Descriptor<'a>> {
    if settings.descriptors.is_empty() {
        return Vec::new();
    }
    let made = |limits: &'a [RateLimit]| {
        limits.iter().filter(|limit| !limit.on_stream_done).filter_map(|limit| descriptor(limit, view))
    };
    if !settings.rate_limits.is_empty() {
        return made(&settings.rate_limits).collect();
    }
    let Some(chosen) = view.0.chosen() else { return Vec::new() };
    let RouteAction::Forward(forward) = &chosen.route.action else { return Vec::new() };
    // In routes it makes no difference when a limit counts, and one that can be disabled is, as in Envoy.
    let of_routes = |limits: &'a [RateLimit]| {
        let meant = |limit: &&RateLimit| limit.stage == settings.stage && limit.disable_key.is_empty();
        limits.iter().filter(meant).filter_map(|limit| descriptor(limit, view))
    };
    let mut descriptors: Vec<_> = of_routes(&forward.rate_limits).collect();
    let with_virtual_host = forward.include_virtual_host_rate_limits
        || match settings.virtual_host {
            VirtualHostLimits::Override => forward.rate_limits.is_empty(),
            VirtualHostLimits::Include => true,
            VirtualHostLimits::Ignore => false,
        };
    if with_virtual_host {
        descriptors.extend(of_routes(&chosen.virtual_host.rate_limits));
    }
    descriptors
}

/// A request as descriptors see it.
struct View<'a, 'b, 'r, 'g>(&'a Exchange<'b, 'r, 'g>);

impl DescriptorView for View<'_, '_, '_, '_> {
    type Request = RequestHead;

    fn request(&self) -> &RequestHead {
        self.0.head()
    }

    fn source_cluster(&self) -> &str {
        &self.0.worker().process.node_cluster
    }

    fn destination_cluster(&self) -> Option<Cow<'_, str>> {
        self.0.cluster_name()
    }

    fn remote(&self) -> Option<IpAddr> {
        client_address(self.0.connection(), self.0.info())
    }

    fn metadata(&self, source: MetadataSource, namespace: &str, look: &mut dyn FnMut(Option<&MetadataMap>)) {
        match source {
            MetadataSource::Dynamic => look(self.0.info().dynamic_metadata.borrow().get(namespace)),
            MetadataSource::Route => {
                let metadata = self.0.chosen().and_then(|chosen| chosen.route.metadata.as_ref());
                look(metadata.and_then(|metadata| metadata.get(namespace)));
            }
        }
    }

    fn text(&self, format: &Format) -> String {
        let mut text = Vec::new();
        format::write_header(format, &self.0.stream().facts(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Details and body of the answer.
const DETAILS: &str = "local_rate_limited";
/// gRPC's status for limits that are reached.
const RESOURCE_EXHAUSTED: u32 = 8;
