//! The global rate limit filter: asks a rate limit service whether there is room for a request.
//!
//! Owns which requests are asked about, the counting, and what follows from an answer. Without one the request goes on,
//! unless the settings say otherwise. Never counts towards a limit, which is the service's.

mod question;
mod quota;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3::HeaderValue;
use outrigger_api::pb::envoy::service::ratelimit::v3::rate_limit_response::Code;
use outrigger_api::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{
    GlobalRateLimit as Settings, GlobalRateLimitRoute, LimitedRequests, VirtualHostLimits,
};
use outrigger_config::metadata;
use outrigger_config::rate_limit::RateLimit;
use outrigger_config::route::{Route, RouteAction, VirtualHost};
use outrigger_config::units::{Fraction, RuntimeFraction};

use self::question::{Place, View};
use super::added::Added;
use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::http::headers::{HeaderId, Headers};
use crate::http::manager::mutate;
use crate::http::manager::reply::LocalReply;
use crate::http::token::is_token;
use crate::scope;
use crate::stats::names;
use crate::stream::ResponseFlag;
use crate::trace::{CallParent, CallSpan};
use crate::upstream::call::{self, UnaryFailure};
use crate::upstream::repeated_call::ask;

scope! {
    /// Stats by the cluster that requests are routed to (`cluster.<name>.ratelimit.*`).
    pub struct RateLimitStats {
        error: UsedCounter,
        failure_mode_allowed: UsedCounter,
        ok: UsedCounter,
        over_limit: UsedCounter,
    }
}

/// The filter.
pub struct GlobalRateLimit(Rc<Limiter>);

struct Limiter {
    settings: Arc<Settings>,
    /// The part of stat names that follows that of the cluster.
    part: String,
    enabled: RuntimeFraction,
    enforced: RuntimeFraction,
    clusters: RefCell<HashMap<Arc<str>, Arc<RateLimitStats>>>,
}

/// What is kept for a request.
#[derive(Default)]
struct Kept {
    /// Added to its response.
    response: Option<Headers>,
    /// What it counts towards when it is over.
    at_end: Option<AtEnd>,
}

/// Where the limits of a request stand that count when it is over.
struct AtEnd {
    route: Arc<Route>,
    virtual_host: Arc<VirtualHost>,
    of_route: Option<Arc<GlobalRateLimitRoute>>,
    cluster: Option<String>,
}

impl GlobalRateLimit {
    /// A filter with its stats.
    pub fn new(settings: &Arc<Settings>, _maker: &Maker<'_>) -> Self {
        let by_runtime = |given: &Option<RuntimeFraction>, key: &str| {
            let always = || RuntimeFraction { default: Fraction::ALWAYS, runtime_key: key.to_owned() };
            given.clone().unwrap_or_else(always)
        };
        Self(Rc::new(Limiter {
            part: match &*settings.stat_prefix {
                "" => "ratelimit".to_owned(),
                prefix => format!("ratelimit.{}", names::sanitize(prefix)),
            },
            enabled: by_runtime(&settings.enabled, "ratelimit.http_filter_enabled"),
            enforced: by_runtime(&settings.enforced, "ratelimit.http_filter_enforcing"),
            settings: Arc::clone(settings),
            clusters: RefCell::default(),
        }))
    }
}

impl HttpFilter for GlobalRateLimit {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let limiter = &self.0;
        if !exchange.holds(&limiter.enabled) || !is_meant(limiter.settings.requests, exchange) {
            return Verdict::Continue;
        }
        let of_route = match exchange.route_config() {
            Some(RouteFilterConfig::GlobalRateLimit(settings)) => Some(settings),
            _ => None,
        };
        let Some(chosen) = exchange.chosen().copied() else { return Verdict::Continue };
        // As in Envoy, what goes to no cluster is not limited.
        if exchange.cluster().is_none() {
            return Verdict::Continue;
        }
        let place = Place { route: chosen.route, virtual_host: chosen.virtual_host, of_route, cluster: None };
        let (request, has_more) = {
            let cluster = exchange.cluster_name();
            let view = View { exchange, place: Place { cluster: cluster.as_deref(), ..place } };
            (limiter.question(&view, false), limiter.limits(&view.place).any(|limit| limit.on_stream_done))
        };
        if has_more {
            let cluster = exchange.cluster_name().map(|name| name.into_owned());
            exchange.state::<Kept>().at_end = Some(AtEnd {
                route: Arc::clone(chosen.route),
                virtual_host: Arc::clone(chosen.virtual_host),
                of_route: of_route.cloned(),
                cluster,
            });
        }
        let Some(request) = request else { return Verdict::Continue };
        let service = &limiter.settings.service;
        let mut call = call::unary(service, SHOULD_RATE_LIMIT, &request, false);
        let mut span = CallParent::of(exchange.stream())
            .map(|parent| parent.begin_grpc(SHOULD_RATE_LIMIT, service, &mut call.head.headers));
        let (worker, limiter) = (Rc::clone(exchange.worker()), Rc::clone(limiter));
        let settings = Arc::clone(&limiter.settings);
        Verdict::wait(
            async move {
                let answer = ask(&worker, &settings.service, call).await;
                if let Some(span) = &mut span {
                    tell(span, &answer);
                }
                read(answer, &settings.service.cluster)
            },
            move |response, exchange| match response {
                Some(response) => limiter.follow(response, exchange),
                None => limiter.fail(exchange),
            },
        )
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let added = exchange.known_state::<Kept>().and_then(|kept| kept.response.take());
        let headers = &mut exchange.response_mut().headers;
        for (_, name, value) in added.iter().flat_map(Headers::iter) {
            headers.append(name, value);
        }
        Verdict::Continue
    }

    fn end(&self, exchange: &mut Exchange<'_, '_, '_>) {
        let Some(AtEnd { route, virtual_host, of_route, cluster }) =
            exchange.known_state::<Kept>().and_then(|kept| kept.at_end.take())
        else {
            return;
        };
        let place = Place {
            route: &route,
            virtual_host: &virtual_host,
            of_route: of_route.as_ref(),
            cluster: cluster.as_deref(),
        };
        let Some(request) = self.0.question(&View { exchange, place }, true) else { return };
        let call = call::unary(&self.0.settings.service, SHOULD_RATE_LIMIT, &request, false);
        let (worker, settings) = (Rc::clone(exchange.worker()), Arc::clone(&self.0.settings));
        // Nobody waits for the answer, which could not change anything; as in Envoy, it is no part of the trace.
        tokio::task::spawn_local(async move {
            let service = &settings.service;
            read(ask(&worker, service, call).await, &service.cluster)
        });
    }
}

/// Whether requests of this kind are limited.
fn is_meant(requests: LimitedRequests, exchange: &Exchange<'_, '_, '_>) -> bool {
    let internal = || exchange.head().headers.get(HeaderId::XEnvoyInternal) == Some(b"true");
    match requests {
        LimitedRequests::Both => true,
        LimitedRequests::Internal => internal(),
        LimitedRequests::External => !internal(),
    }
}

/// Says in the span of the question what came of it.
fn tell(span: &mut CallSpan, answer: &Result<RateLimitResponse, UnaryFailure>) {
    span.end_grpc(answer.as_ref().map_or_else(UnaryFailure::status, |_| 0));
    if let Ok(response) = answer {
        let over_limit = response.overall_code == Code::OverLimit as i32;
        span.tag("ratelimit_status", if over_limit { "over_limit" } else { "ok" });
    }
}

fn read(answer: Result<RateLimitResponse, UnaryFailure>, cluster: &str) -> Option<RateLimitResponse> {
    answer.inspect_err(|error| tracing::debug!(cluster, "rate limit service: {error}")).ok()
}

impl Limiter {
    /// The limits that a request counts towards, whenever they do.
    fn limits<'a>(&'a self, place: &Place<'a>) -> impl Iterator<Item = &'a RateLimit> + use<'a> {
        let of_route = place.of_route.map(|settings| &settings.rate_limits[..]).unwrap_or_default();
        let own = if of_route.is_empty() { &self.settings.rate_limits[..] } else { of_route };
        let mut lists: [&[RateLimit]; 2] = [own, &[]];
        if own.is_empty()
            && let RouteAction::Forward(forward) = &place.route.action
        {
            let option = place.of_route.map_or(VirtualHostLimits::Override, |settings| settings.virtual_host);
            let with_virtual_host = forward.include_virtual_host_rate_limits
                || match option {
                    VirtualHostLimits::Override => forward.rate_limits.is_empty(),
                    VirtualHostLimits::Include => true,
                    VirtualHostLimits::Ignore => false,
                };
            let of_host = if with_virtual_host { &place.virtual_host.rate_limits[..] } else { &[] };
            lists = [&forward.rate_limits, of_host];
        }
        let own = !own.is_empty();
        let stage = self.settings.stage;
        lists.into_iter().flatten().filter(move |limit| own || limit.stage == stage)
    }

    /// What the service is asked; `None` if there is nothing to ask.
    fn question(&self, view: &View<'_, '_, '_, '_>, at_end: bool) -> Option<RateLimitRequest> {
        let limits = self.limits(&view.place).filter(|limit| limit.on_stream_done == at_end);
        let descriptors = question::descriptors(limits, view);
        if descriptors.is_empty() {
            return None;
        }
        let domain = view.place.of_route.map(|settings| &settings.domain).filter(|domain| !domain.is_empty());
        let domain = domain.unwrap_or(&self.settings.domain).to_string();
        Some(RateLimitRequest { domain, descriptors, hits_addend: 0 })
    }

    /// Does what the service wants.
    fn follow(&self, response: RateLimitResponse, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let RateLimitResponse {
            overall_code,
            statuses,
            response_headers_to_add,
            request_headers_to_add,
            raw_body,
            dynamic_metadata,
            // For clients that keep what they were given; as Envoy, we ask each time.
            quota: _,
        } = response;
        if let Some(said) = dynamic_metadata.filter(|said| !said.fields.is_empty()) {
            let mut known = exchange.info().dynamic_metadata.borrow_mut();
            let namespace = known.entry(self.settings.metadata_namespace.to_string()).or_default();
            metadata::merge(namespace, &metadata::object(said));
        }
        let mut headers = Headers::default();
        add_all(response_headers_to_add, &mut headers);
        let over_limit = overall_code == Code::OverLimit as i32;
        if over_limit && self.settings.marks_refusals {
            headers.set_by_name("x-envoy-ratelimited", b"true");
        }
        if self.settings.tells_clients {
            quota::tell(&statuses, &mut headers);
        }
        if !over_limit {
            self.count(exchange, |stats| stats.ok.increment());
            add_all(request_headers_to_add, &mut exchange.head_mut().headers);
        } else {
            self.count(exchange, |stats| stats.over_limit.increment());
            if let Some(node) = exchange.cluster() {
                let worker = exchange.worker();
                worker.clusters.get(worker, node).stats.response(self.settings.status);
            }
            if exchange.holds(&self.enforced) {
                let wait = quota::longest_wait(&statuses)
                    .filter(|_| self.settings.retry_after && self.settings.status == 429 && !exchange.head().is_grpc());
                if let Some(seconds) = wait.filter(|_| headers.get_by_name("retry-after").is_none()) {
                    headers.append(b"retry-after", seconds.max(1).to_string().as_bytes());
                }
                return Verdict::reply(self.refusal(headers, raw_body, exchange));
            }
            add_all(request_headers_to_add, &mut exchange.head_mut().headers);
        }
        if !headers.is_empty() {
            exchange.state::<Kept>().response = Some(headers);
        }
        Verdict::Continue
    }

    fn refusal(&self, headers: Headers, body: Vec<u8>, exchange: &Exchange<'_, '_, '_>) -> LocalReply {
        let mut reply = LocalReply::new(self.settings.status, "request_rate_limited");
        reply = reply.flag(ResponseFlag::RateLimited).body(body);
        let mut added = Added { headers, request: exchange.stream() };
        for addition in &self.settings.response_headers {
            mutate::add(addition, &mut added);
        }
        let grpc = exchange.head().is_grpc();
        for (id, name, value) in added.headers.iter() {
            let own = id == HeaderId::ContentLength || grpc && id == HeaderId::ContentType;
            if !own {
                reply.header(String::from_utf8_lossy(name).into_owned(), value);
            }
        }
        if self.settings.resource_exhausted {
            reply.grpc_status = Some(RESOURCE_EXHAUSTED);
        }
        reply
    }

    /// There is no answer.
    fn fail(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        self.count(exchange, |stats| stats.error.increment());
        let denies = match &self.settings.failure_mode_deny_share {
            Some(share) => exchange.holds(share),
            None => self.settings.failure_mode_deny,
        };
        if !denies {
            self.count(exchange, |stats| stats.failure_mode_allowed.increment());
            return Verdict::Continue;
        }
        let reply = LocalReply::new(self.settings.status_on_error, "rate_limiter_error");
        Verdict::reply(reply.flag(ResponseFlag::RateLimitServiceError))
    }

    fn count(&self, exchange: &Exchange<'_, '_, '_>, count: impl FnOnce(&RateLimitStats)) {
        let Some(node) = exchange.cluster() else { return };
        let mut clusters = self.clusters.borrow_mut();
        if let Some(stats) = clusters.get(&node.config.stat_name) {
            return count(stats);
        }
        let prefix = format!("{}{}.", names::prefix("cluster", &node.config.stat_name), self.part);
        let stats = exchange.worker().scope(&prefix);
        count(&stats);
        clusters.insert(Arc::clone(&node.config.stat_name), stats);
    }
}

/// Adds headers of the service; what cannot stand in a message is left out.
fn add_all(wire: Vec<HeaderValue>, headers: &mut Headers) {
    for HeaderValue { key, value, raw_value } in wire {
        let name = key.to_ascii_lowercase();
        let value = if value.is_empty() { raw_value } else { value.into_bytes() };
        let framing =
            matches!(name.as_str(), "connection" | "content-length" | "transfer-encoding" | "upgrade" | "host");
        if is_token(name.as_bytes()) && !framing && value.iter().all(|byte| *byte == b'\t' || !byte.is_ascii_control())
        {
            headers.append(name.as_bytes(), &value);
        }
    }
}

const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// gRPC's status for limits that are reached.
const RESOURCE_EXHAUSTED: u32 = 8;
