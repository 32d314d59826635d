//! The external authorization filter: asks a service whether a request may go on.
//!
//! Owns which requests are asked about, the counting, and what follows from an answer. Without one the request is refused,
//! unless the settings say otherwise. Never speaks to the service itself (see `upstream::call`).

mod answer;
mod changes;
mod measures;
pub(super) mod question;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use outrigger_api::pb::envoy::service::auth::v3::CheckResponse;
use outrigger_api::pb::envoy::service::auth::v3::check_response::HttpResponse;
use outrigger_config::http::filters::{
    AuthzRoute, AuthzService, CheckedBody, ExtAuthz as Settings, HttpAuthz, RouteBody,
};
use outrigger_config::http::{AppendAction, HeaderMutations, RouteFilterConfig};
use outrigger_config::metadata;
use outrigger_config::source::GrpcCall;

use self::answer::{Answer, Consent, Decision, Header, Refusal};
use self::question::Told;
use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::http::h1::encode::reason;
use crate::http::manager::reply::{Instead, LocalReply};
use crate::network;
use crate::scope;
use crate::stats::names;
use crate::stream::ResponseFlag;
use crate::trace::{CallParent, CallSpan};
use crate::upstream::call::{self, Call, CallError, UnaryFailure};
use crate::upstream::repeated_call::{ask, call_repeatedly};

scope! {
    /// Stats of the filter (`http.<prefix>.ext_authz.*`).
    pub struct ExtAuthzStats {
        denied: Counter,
        disabled: Counter,
        error: Counter,
        failure_mode_allowed: Counter,
        filter_state_name_collision: Counter,
        ignored_dynamic_metadata: Counter,
        invalid: Counter,
        ok: Counter,
        request_header_limits_reached: Counter,
        response_header_limits_reached: Counter,
        shadow_denied: Counter,
        shadow_error: Counter,
    }
}

scope! {
    /// The same by the cluster that requests are routed to (`cluster.<name>.ext_authz.*`).
    pub struct ClusterAuthzStats {
        denied: UsedCounter,
        error: UsedCounter,
        failure_mode_allowed: UsedCounter,
        invalid: UsedCounter,
        ok: UsedCounter,
    }
}

/// The filter.
pub struct ExtAuthz(Rc<Authorizer>);

struct Authorizer {
    settings: Arc<Settings>,
    stats: Arc<ExtAuthzStats>,
    /// The part of stat names that follows that of the cluster.
    part: String,
    clusters: RefCell<HashMap<Arc<str>, Arc<ClusterAuthzStats>>>,
}

/// What the service wants the response to have.
#[derive(Default)]
struct ForResponse(Vec<(AppendAction, Header)>);

impl ExtAuthz {
    /// A filter with its stats.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        let part = match &*settings.stat_prefix {
            "" => "ext_authz".to_owned(),
            prefix => format!("ext_authz.{}", names::sanitize(prefix)),
        };
        Self(Rc::new(Authorizer {
            settings: Arc::clone(settings),
            stats: maker.stats(&part),
            part,
            clusters: RefCell::default(),
        }))
    }
}

/// What the most specific level says; `None` if the filter is off there.
fn of_route<'g>(exchange: &Exchange<'_, '_, 'g>) -> Option<Option<&'g Arc<AuthzRoute>>> {
    match exchange.route_config() {
        Some(RouteFilterConfig::ExtAuthz(None)) => None,
        Some(RouteFilterConfig::ExtAuthz(Some(route))) => Some(Some(route)),
        _ => Some(None),
    }
}

impl HttpFilter for ExtAuthz {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Some(route) = of_route(exchange) else { return Verdict::Continue };
        let settings = &self.0.settings;
        if !is_meant(settings, exchange) {
            self.0.stats.disabled.increment();
            let denies = settings.deny_at_disable.as_ref().is_some_and(|flag| network::holds(flag, exchange.runtime()));
            return if denies { Verdict::reply(failure(settings)) } else { Verdict::Continue };
        }
        let upgrade = !exchange.head().protocol().is_empty();
        match self.0.body(route).filter(|_| !upgrade && !exchange.has_no_body()) {
            None => self.0.ask(exchange, route, None),
            Some(CheckedBody { max_bytes, allow_partial: true, as_bytes: _ }) => Verdict::Peek { bytes: max_bytes },
            Some(CheckedBody { max_bytes, allow_partial: false, as_bytes: _ }) => {
                Verdict::Collect { limit_bytes: max_bytes }
            }
        }
    }

    fn request_body(&self, exchange: &mut Exchange<'_, '_, '_>, body: &[u8]) -> Verdict {
        let route = of_route(exchange).flatten();
        self.0.ask(exchange, route, Some(body))
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let changes = exchange.known_state::<ForResponse>().map(|wanted| std::mem::take(&mut wanted.0));
        let limits = self.0.response_limits(exchange);
        let headers = &mut exchange.response_mut().headers;
        for (action, (name, value)) in changes.into_iter().flatten() {
            let present = headers.get_by_name(&name).is_some();
            match action {
                AppendAction::AppendIfExistsOrAdd => headers.append(name.as_bytes(), &value),
                AppendAction::AddIfAbsent if !present => headers.append(name.as_bytes(), &value),
                AppendAction::OverwriteIfExistsOrAdd => headers.set_by_name(&name, &value),
                AppendAction::OverwriteIfExists if present => headers.set_by_name(&name, &value),
                AppendAction::AddIfAbsent | AppendAction::OverwriteIfExists => {}
            }
            // The status counts, too.
            if limits.is_some_and(|limits| !limits.hold(headers.len() + 1, headers.byte_size())) {
                self.0.stats.response_header_limits_reached.increment();
                let mut reply = LocalReply::new(500, INVALID).flag(ResponseFlag::UnauthorizedExternalService);
                reply.instead = Some(Box::new(Instead { headers: HeaderMutations::default() }));
                return Verdict::reply(reply);
            }
        }
        Verdict::Continue
    }
}

/// How long a head may be.
#[derive(Clone, Copy)]
struct HeadLimits {
    headers: u32,
    bytes: u32,
}

impl HeadLimits {
    fn hold(self, headers: usize, bytes: usize) -> bool {
        headers <= self.headers as usize && bytes <= self.bytes as usize
    }
}

/// Whether the service is asked about this request.
fn is_meant(settings: &Settings, exchange: &Exchange<'_, '_, '_>) -> bool {
    if !settings.enabled.as_ref().is_none_or(|share| exchange.holds(share)) {
        return false;
    }
    let metadata = exchange.info().dynamic_metadata.borrow();
    settings.enabled_metadata.as_ref().is_none_or(|matcher| matcher.matches(metadata.get(&*matcher.filter)))
}

/// Whether a request is no longer than clients may make theirs.
fn request_fits(exchange: &Exchange<'_, '_, '_>) -> bool {
    let (head, config) = (exchange.head(), &exchange.connection().node.config);
    let limits = HeadLimits { headers: config.max_headers_count, bytes: config.max_request_headers_bytes };
    let pseudo = [head.method(), head.path(), head.authority(), head.scheme()];
    let pseudo = pseudo.iter().filter(|value| !value.is_empty()).count();
    limits.hold(head.headers.len() + pseudo, head.byte_size())
}

/// The answer to a request that the service said nothing about.
fn failure(settings: &Settings) -> LocalReply {
    LocalReply::new(settings.status_on_error, "ext_authz_error").flag(ResponseFlag::UnauthorizedExternalService)
}

impl Authorizer {
    /// What holds for a response of an upstream, if the settings limit what is added to it; answers of our own have no limits.
    fn response_limits(&self, exchange: &Exchange<'_, '_, '_>) -> Option<HeadLimits> {
        if !self.settings.limits_response || exchange.is_local_reply() {
            return None;
        }
        let cluster = exchange.info().cluster_config.borrow();
        let http = &cluster.as_ref()?.http;
        Some(HeadLimits { headers: http.max_headers_count, bytes: http.max_response_headers_bytes })
    }

    /// What the service is told of the body.
    fn body(&self, route: Option<&Arc<AuthzRoute>>) -> Option<CheckedBody> {
        match route.map(|route| route.body) {
            None | Some(RouteBody::Inherit) => self.settings.body,
            Some(RouteBody::Never) => None,
            Some(RouteBody::Checked(body)) => Some(body),
        }
    }

    fn ask(
        self: &Rc<Self>,
        exchange: &mut Exchange<'_, '_, '_>,
        route: Option<&Arc<AuthzRoute>>,
        body: Option<&[u8]>,
    ) -> Verdict {
        let service = route.and_then(|route| route.service.as_ref()).unwrap_or(&self.settings.service);
        let service = Arc::clone(service);
        let checked = self.body(route);
        let told = Told {
            settings: &self.settings,
            extensions: extensions(exchange),
            body: body.map(|body| &body[..body.len().min(checked.map_or(0, |checked| checked.max_bytes))]),
            received: body.map_or(0, <[u8]>::len),
            as_bytes: checked.is_some_and(|checked| checked.as_bytes),
        };
        let mut call = match &*service {
            AuthzService::Grpc(grpc) => call::unary(grpc, CHECK, &question::check_request(exchange, told), true),
            AuthzService::Http(http) => question::http_call(exchange, http, told),
        };
        let measured = measures::begin(&self.settings, matches!(*service, AuthzService::Grpc(_)), &mut call, exchange);
        let measured = measured.unwrap_or_else(|measures::Collision| {
            self.stats.filter_state_name_collision.increment();
            None
        });
        let emits = route.and_then(|route| route.emits_span).unwrap_or(self.settings.emits_span);
        let mut span = begin_span(exchange, &service, emits, &mut call);
        let (worker, authorizer, began) = (Rc::clone(exchange.worker()), Rc::clone(self), Instant::now());
        Verdict::wait(
            async move {
                let span = span.as_mut();
                match &*service {
                    AuthzService::Grpc(grpc) => of_grpc(grpc, ask(&worker, grpc, call).await, span),
                    AuthzService::Http(http) => {
                        of_http(http, call_repeatedly(&worker, &http.cluster, call, http.retries).await, span)
                    }
                }
            },
            move |answer, exchange| {
                if let Some(measured) = measured {
                    measured.end(exchange);
                }
                authorizer.follow(answer, began, exchange)
            },
        )
    }

    /// Does what the service wants.
    fn follow(&self, answer: Answer, began: Instant, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Answer { decision, mut metadata } = answer;
        if !metadata.is_empty() && !self.settings.takes_metadata {
            self.stats.ignored_dynamic_metadata.increment();
        } else if !metadata.is_empty() {
            if matches!(decision, Decision::Consent(_)) {
                let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                metadata.insert("ext_authz_duration".to_owned(), took.into());
            }
            let mut known = exchange.info().dynamic_metadata.borrow_mut();
            metadata::merge(known.entry(NAMESPACE.to_owned()).or_default(), &metadata);
        }
        match decision {
            Decision::Consent(consent) => self.let_through(*consent, exchange),
            Decision::Refusal(refusal) => self.refuse(*refusal, exchange),
            Decision::Failure(reply) => self.fail(reply, exchange),
        }
    }

    fn let_through(&self, consent: Consent, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let changes = consent.changes_request();
        if changes::apply(&consent, &self.settings, exchange.head_mut()).is_err() {
            return self.invalid(exchange);
        }
        if changes && !request_fits(exchange) {
            self.stats.request_header_limits_reached.increment();
            return self.invalid(exchange);
        }
        if !consent.response.is_empty() {
            if !consent.response.iter().all(|(_, header)| changes::is_valid(header)) {
                return self.invalid(exchange);
            }
            exchange.state::<ForResponse>().0 = consent.response;
        }
        self.tell_shadow("OK", 200, &[], exchange);
        self.stats.ok.increment();
        // For the cluster that it was about, wherever the request goes now.
        self.count(exchange, |stats| stats.ok.increment());
        if changes && self.settings.clear_route_cache {
            exchange.reroute();
        }
        Verdict::Continue
    }

    fn refuse(&self, refusal: Refusal, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        if !refusal.headers.iter().all(changes::is_valid) {
            return self.invalid(exchange);
        }
        let status = refusal.status.unwrap_or(403);
        self.stats.denied.increment();
        self.count(exchange, |stats| stats.denied.increment());
        if self.settings.counts_for_cluster
            && let Some(node) = exchange.cluster()
        {
            let worker = exchange.worker();
            worker.clusters.get(worker, node).stats.response(status);
        }
        if self.settings.shadow {
            self.stats.shadow_denied.increment();
            self.tell_shadow("DENIED", status, &refusal.headers, exchange);
            return Verdict::Continue;
        }
        Verdict::reply(self.reply(refusal, status, "ext_authz_denied", exchange))
    }

    fn fail(&self, reply: Option<Box<Refusal>>, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        self.stats.error.increment();
        self.count(exchange, |stats| stats.error.increment());
        if self.settings.shadow {
            let status = reply.and_then(|reply| reply.status).unwrap_or(self.settings.status_on_error);
            self.stats.shadow_error.increment();
            self.tell_shadow("ERROR", status, &[], exchange);
            return Verdict::Continue;
        }
        if self.settings.failure_mode_allow {
            self.stats.failure_mode_allowed.increment();
            self.count(exchange, |stats| stats.failure_mode_allowed.increment());
            if self.settings.failure_mode_allow_header {
                exchange.head_mut().headers.append(b"x-envoy-auth-failure-mode-allowed", b"true");
            }
            return Verdict::Continue;
        }
        match reply {
            None => Verdict::reply(failure(&self.settings)),
            Some(reply) if !reply.headers.iter().all(changes::is_valid) => self.invalid(exchange),
            Some(reply) => {
                let status = reply.status.unwrap_or(self.settings.status_on_error);
                Verdict::reply(self.reply(*reply, status, "ext_authz_error", exchange))
            }
        }
    }

    /// Leaves the decision in the filter state, where logs and later filters find it, in the JSON form of `ShadowDecision`.
    fn tell_shadow(&self, result: &str, status: u16, headers: &[Header], exchange: &Exchange<'_, '_, '_>) {
        if !self.settings.shadow {
            return;
        }
        // In the order of the message's fields.
        let mut decision = format!("{{\"check_result\":\"{result}\",\"status_code\":{status}");
        if !headers.is_empty() {
            let pair =
                |(key, value): &Header| serde_json::json!({ "key": key, "value": String::from_utf8_lossy(value) });
            let headers: serde_json::Value = headers.iter().map(pair).collect();
            decision.push_str(&format!(",\"response_headers\":{headers}"));
        }
        decision.push('}');
        let key = format!("{}.shadow", exchange.name());
        exchange.info().filter_state.borrow_mut().insert(key, decision);
    }

    /// An answer of the service with what cannot stand in a message.
    fn invalid(&self, exchange: &Exchange<'_, '_, '_>) -> Verdict {
        self.stats.invalid.increment();
        self.count(exchange, |stats| stats.invalid.increment());
        let reply = LocalReply::new(500, INVALID);
        Verdict::reply(reply.flag(ResponseFlag::UnauthorizedExternalService))
    }

    fn reply(
        &self,
        refusal: Refusal,
        status: u16,
        details: &'static str,
        exchange: &Exchange<'_, '_, '_>,
    ) -> LocalReply {
        let Refusal { status: _, headers, mut body } = refusal;
        if let Some(most) = self.settings.max_denied_body_bytes {
            body.truncate(most);
        }
        // RFC 9110 section 6.4.1: after these, bytes would be taken for the next message.
        if matches!(status, 204 | 205 | 304) {
            body.clear();
        }
        let mut reply = LocalReply::new(status, details).flag(ResponseFlag::UnauthorizedExternalService).body(body);
        for (name, value) in headers {
            // What belongs to one connection, and what is said of a body, is ours to say.
            let own_type = name == "content-type" && exchange.head().is_grpc();
            if !own_type && !changes::is_of_one_hop(&name) && !name.starts_with(':') {
                reply.header(name, value);
            }
        }
        reply
    }

    fn count(&self, exchange: &Exchange<'_, '_, '_>, count: impl FnOnce(&ClusterAuthzStats)) {
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

/// What all levels want the service to be told; the most specific one wins.
fn extensions(exchange: &Exchange<'_, '_, '_>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for config in exchange.route_configs() {
        if let RouteFilterConfig::ExtAuthz(Some(route)) = config {
            for (key, value) in &route.extensions {
                all.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    }
    all
}

/// Begins the span of a question, if the request is traced, and tells the service of the trace.
fn begin_span(
    exchange: &Exchange<'_, '_, '_>,
    service: &AuthzService,
    emits: bool,
    call: &mut Call,
) -> Option<CallSpan> {
    let parent = CallParent::of(exchange.stream())?;
    let parent = if emits { parent } else { parent.quiet() };
    Some(match service {
        AuthzService::Grpc(grpc) => parent.begin_grpc(CHECK, grpc, &mut call.head.headers),
        AuthzService::Http(http) => {
            let seen = call.seen.get_or_insert_default();
            parent.begin_http(&http.cluster, seen, &mut call.head.headers)
        }
    })
}

fn of_grpc(service: &GrpcCall, result: Result<CheckResponse, UnaryFailure>, span: Option<&mut CallSpan>) -> Answer {
    if let Some(span) = span {
        span.end_grpc(result.as_ref().map_or_else(UnaryFailure::status, |_| 0));
        if let Ok(response) = &result {
            let consents = response.status.as_ref().is_none_or(|status| status.code == 0);
            let cannot_tell = matches!(response.http_response, Some(HttpResponse::ErrorResponse(_)));
            span.tag(STATUS, if cannot_tell { "ext_authz_error" } else { status(consents) });
        }
    }
    match result {
        Ok(response) => Answer::of_grpc(response),
        Err(error) => {
            tracing::debug!(cluster = &*service.cluster, "external authorization: {error}");
            Answer::failure()
        }
    }
}

fn of_http(service: &HttpAuthz, result: Result<call::Answer, CallError>, span: Option<&mut CallSpan>) -> Answer {
    if let Some(span) = span {
        let code = span.end_http(result.as_ref().map(|answer| answer.head.status));
        span.tag(HTTP_STATUS, reason(code));
        span.tag(STATUS, status(code == 200));
    }
    match result {
        Ok(call::Answer { head, body, trailers: _ }) => Answer::of_http(service, &head, body),
        Err(error) => {
            tracing::debug!(cluster = &*service.cluster, "external authorization: {error}");
            Answer::failure()
        }
    }
}

/// What the span of a question says of its answer.
fn status(consents: bool) -> &'static str {
    if consents { "ext_authz_ok" } else { "ext_authz_unauthorized" }
}

/// A tag of the span of a question.
const STATUS: &str = "ext_authz_status";
/// A tag of the span of a question to an HTTP server.
const HTTP_STATUS: &str = "ext_authz_http_status";
/// What is said of an answer with what must not be.
const INVALID: &str = "ext_authz_invalid";
/// Where metadata of the service goes, as in Envoy whatever the filter's name is.
const NAMESPACE: &str = "envoy.filters.http.ext_authz";
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
