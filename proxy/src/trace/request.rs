//! The trace of one request, from its route to its end.
//!
//! Owns the server's span and what it is named by. Requests that are not recorded keep nothing but their identity.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use outrigger_config::format::Format;
use outrigger_config::http::HttpConnectionManager;
use outrigger_config::listener::TrafficDirection;
use outrigger_config::route::Route;
use outrigger_config::tracing::{HttpTracing, RouteTracing, TraceProvider};
use outrigger_policy::trace::{
    Caller, Decision, Identity, Kept, Reason, RequestFacts, Seeds, begin_otlp, begin_zipkin, decide,
};

use super::attempt::{self, Attempt};
use super::exemplar;
use super::headers::{B3, B3_PARENT_ID, B3_SAMPLED, B3_SPAN_ID, B3_TRACE_ID, TRACEPARENT, TRACESTATE};
use super::manager::Tracer;
use super::span::{Kind, Span, Value};
use super::tags;
use super::tail::{self, Held};
use crate::accesslog::{attributes, format};
use crate::graph::ClusterNode;
use crate::http::headers::HeaderId;
use crate::http::manager::request::{Chosen, Request};
use crate::http::message::RequestHead;

/// What a request keeps of its trace.
pub struct RequestTrace {
    /// The request's span; `None` where the caller's headers are malformed, or nobody takes spans.
    pub identity: Option<Identity>,
    /// What the answer tells the caller that the request was.
    told: Option<Arc<str>>,
    /// Set while the span is recorded, or may turn out to be worth it.
    pub(super) recorded: Option<Recorded>,
}

/// What is kept for spans that are sent.
pub(super) struct Recorded {
    pub tracer: Arc<Tracer>,
    pub name: Box<str>,
    pub trace_state: Option<Box<str>>,
    pub route: Option<Arc<Route>>,
    pub cluster: Option<Arc<ClusterNode>>,
    /// The try under way, if tries have spans.
    pub attempt: Option<Attempt>,
    /// Set for verbose tracing.
    pub marks: Option<Box<Marks>>,
    /// Set if the request is kept only in case that it turns out to be worth it.
    pub held: Option<Rc<Held>>,
}

impl Recorded {
    /// Hands a span over, or holds it back.
    pub fn send(&self, span: Span) {
        match &self.held {
            None => self.tracer.send(span),
            Some(held) => held.push(span),
        }
    }
}

/// Moments of a request that nobody else records.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mark {
    /// The head went upstream.
    FirstUpstreamTx,
    /// All of the request went upstream.
    LastUpstreamTx,
    /// All of the response came.
    LastUpstreamRx,
    /// The response head went downstream.
    FirstDownstreamTx,
    /// All of the response went downstream.
    LastDownstreamTx,
}

#[derive(Default)]
pub(super) struct Marks([Cell<Option<Instant>>; 5]);

impl Marks {
    pub fn get(&self, mark: Mark) -> Option<Instant> {
        self.0[mark as usize].get()
    }
}

/// Decides on a request whose route has just been looked for, and begins its span.
pub fn begin(request: &mut Request<'_>, chosen: Option<&Chosen<'_>>) {
    let connection = request.connection;
    let config = &connection.node.config;
    let Some(tracing) = config.tracing.as_deref() else { return };
    let said = chosen.and_then(|chosen| chosen.route.trace.as_deref());
    let own = said.and_then(|said| said.tracing.as_ref());
    let decision = self::decision(request, config, tracing, own);
    request.trace_reason = Some(decision.reason);
    let egress = connection.node.direction == TrafficDirection::Outbound;
    let tracer = connection.node.tracer.as_ref();
    let traced = decision.reason.is_traced();
    let own_hop = tracing.spawn_upstream_span || tracer.is_some_and(|tracer| tracer.provider().is_own_hop());
    let server = !egress || own_hop;
    let identity = tracer.and_then(|tracer| identity(request, tracer, traced, server));
    let sampled = identity.is_some_and(|identity| identity.sampled);
    let held = tracer.is_some_and(|tracer| !sampled && identity.is_some() && tracer.tail().is_some());
    let records = sampled || held;
    let operation = own.and_then(|own| own.operation.as_ref()).or(tracing.operation.as_ref());
    let mut name: Option<Box<str>> = None;
    let mut told = None;
    match operation {
        Some(operation) => name = records.then(|| evaluate(operation, request)),
        None => {
            if let Some(decorator) = said.and_then(|said| said.decorator.as_ref()) {
                name = records.then(|| (*decorator.operation).into());
                told = decorator.propagate.then(|| Arc::clone(&decorator.operation));
            }
            decorate(request, egress, &mut name, &mut told);
        }
    }
    if identity.is_none() && told.is_none() {
        return;
    }
    let recorded = tracer.filter(|_| records).map(|tracer| Recorded {
        tracer: Arc::clone(tracer),
        name: name.unwrap_or_else(|| default_name(tracer.provider(), egress, &request.head)),
        trace_state: trace_state(&request.head, identity.as_ref()),
        route: chosen.map(|chosen| Arc::clone(chosen.route)),
        cluster: None,
        attempt: None,
        marks: tracing.verbose.then(Box::default),
        held: held.then(Rc::default),
    });
    request.trace = Some(Box::new(RequestTrace { identity, told, recorded }));
}

fn default_name(provider: &TraceProvider, egress: bool, head: &RequestHead) -> Box<str> {
    match provider {
        TraceProvider::Zipkin(_) => head.authority_str().into(),
        TraceProvider::OpenTelemetry(_) if egress => format!("egress {}", head.authority_str()).into(),
        TraceProvider::OpenTelemetry(_) => "ingress".into(),
    }
}

fn decision(
    request: &mut Request<'_>,
    config: &HttpConnectionManager,
    tracing: &HttpTracing,
    own: Option<&RouteTracing>,
) -> Decision {
    let headers = &request.head.headers;
    let facts = RequestFacts {
        request_id: headers.get(HeaderId::XRequestId),
        client_asks: headers.get_by_name("x-client-trace-id").is_some(),
        service_asks: headers.contains(HeaderId::XEnvoyForceTrace),
        random: request.connection.worker.random.next(),
    };
    let sampling = own.map_or(&tracing.sampling, |own| &own.sampling);
    let decision = decide(sampling, config.request_id, &facts, &*request.graph.runtime);
    if let Some(digit) = decision.digit
        && let Some(mut id) = headers.get(HeaderId::XRequestId).map(<[u8]>::to_vec)
    {
        id[Decision::POSITION] = digit;
        request.head.headers.set(HeaderId::XRequestId, &id);
    }
    decision
}

fn identity(request: &Request<'_>, tracer: &Tracer, traced: bool, server: bool) -> Option<Identity> {
    let (connection, head) = (request.connection, &request.head);
    let random = &connection.worker.random;
    let now = connection.worker.process.clock.at(Instant::now());
    let seconds = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let seeds = Seeds { random: [random.next(), random.next(), random.next()], seconds };
    let header = |name| head.headers.get_by_name(name);
    match tracer.provider() {
        TraceProvider::OpenTelemetry(provider) => {
            let holds = |expression: &_| attributes::holds(expression, &request.facts());
            begin_otlp(provider, header(TRACEPARENT), traced, &seeds, &holds)
        }
        TraceProvider::Zipkin(provider) => {
            let caller = Caller {
                traceparent: header(TRACEPARENT),
                b3: header(B3),
                b3_trace_id: header(B3_TRACE_ID),
                b3_span_id: header(B3_SPAN_ID),
                b3_parent_id: header(B3_PARENT_ID),
                b3_sampled: header(B3_SAMPLED),
            };
            begin_zipkin(provider, &caller, traced, server, &seeds)
        }
    }
}

/// Egress tells the server what it is asked for; ingress hears it, and keeps it to itself.
fn decorate(request: &mut Request<'_>, egress: bool, name: &mut Option<Box<str>>, told: &mut Option<Arc<str>>) {
    let headers = &mut request.head.headers;
    if egress {
        if let Some(operation) = told.take() {
            headers.set(HeaderId::XEnvoyDecoratorOperation, operation.as_bytes());
        }
        return;
    }
    let Some(operation) = headers.get(HeaderId::XEnvoyDecoratorOperation) else { return };
    if !operation.is_empty() {
        *name = Some(String::from_utf8_lossy(operation).into());
        *told = None;
    }
    headers.remove(HeaderId::XEnvoyDecoratorOperation);
}

/// `tracestate` of the caller, if the trace continues its own.
pub(super) fn trace_state(head: &RequestHead, identity: Option<&Identity>) -> Option<Box<str>> {
    identity.filter(|identity| identity.remote_parent)?;
    let state = head.lookup(TRACESTATE)?;
    std::str::from_utf8(&state).ok().filter(|state| !state.is_empty()).map(Into::into)
}

/// The text of a format; what is absent is empty.
pub(super) fn evaluate(format: &Format, request: &Request<'_>) -> Box<str> {
    let mut text = Vec::new();
    format::write_header(format, &request.facts(), &mut text);
    String::from_utf8_lossy(&text).into()
}

/// The route that holds in the end: filters may have changed it.
pub fn set_route(request: &mut Request<'_>, chosen: Option<&Chosen<'_>>) {
    if let Some(recorded) = recorded(request) {
        recorded.route = chosen.map(|chosen| Arc::clone(chosen.route));
    }
}

/// The cluster that the request goes to.
pub fn set_cluster(request: &mut Request<'_>, cluster: &Arc<ClusterNode>) {
    if let Some(recorded) = recorded(request) {
        recorded.cluster = Some(Arc::clone(cluster));
    }
}

pub(super) fn recorded<'a>(request: &'a mut Request<'_>) -> Option<&'a mut Recorded> {
    request.trace.as_mut()?.recorded.as_mut()
}

/// Records that something has happened now.
pub fn mark(request: &Request<'_>, mark: Mark) {
    let Some(recorded) = request.trace.as_ref().and_then(|trace| trace.recorded.as_ref()) else { return };
    if let Some(marks) = &recorded.marks {
        marks.0[mark as usize].set(Some(Instant::now()));
    }
}

/// What the response says of the request's name: to clients of ingress, by servers of egress.
pub fn response_head(request: &mut Request<'_>) {
    let node = &request.connection.node;
    let Some(tracing) = node.config.tracing.as_deref() else { return };
    if node.direction != TrafficDirection::Outbound {
        if let Some(told) = request.trace.as_ref().and_then(|trace| trace.told.as_ref()) {
            request.response.headers.set(HeaderId::XEnvoyDecoratorOperation, told.as_bytes());
        }
        return;
    }
    if tracing.operation.is_some() {
        return;
    }
    let Some(operation) = request.response.headers.get(HeaderId::XEnvoyDecoratorOperation) else { return };
    let name: Box<str> = String::from_utf8_lossy(operation).into();
    request.response.headers.remove(HeaderId::XEnvoyDecoratorOperation);
    if !name.is_empty()
        && let Some(recorded) = recorded(request)
    {
        recorded.name = name;
    }
}

/// Ends the spans of a request. All that is known of it must have been recorded.
pub fn end(request: &mut Request<'_>) {
    count(request);
    let end = request.info.end.get().unwrap_or_else(Instant::now);
    let worth = worth(request, end);
    if worth == Worth::Nothing {
        return drop(request.trace.as_mut().and_then(|trace| trace.recorded.take()));
    }
    attempt::end(request, Instant::now());
    let Some(recorded) = request.trace.as_mut().and_then(|trace| trace.recorded.take()) else { return };
    let Some(identity) = request.trace.as_ref().and_then(|trace| trace.identity) else { return };
    if request.info.health_check.get() {
        return;
    }
    let clock = &request.connection.worker.process.clock;
    let kind = kind(request, &recorded.tracer);
    let (mut tags, failed) = tags::of_request(request, &recorded, kind);
    if let Worth::Kept(kept) = worth {
        tags.set("outrigger.kept", Value::Known(kept.as_str()));
    }
    let events = recorded.marks.as_ref().map(|marks| tags::events(request, marks, true)).unwrap_or_default();
    exemplar::keep(request, "http", &request.connection.node.config.stat_prefix, "downstream_rq_time", end);
    let Recorded { tracer, name, trace_state, held, .. } = recorded;
    let span = Span {
        identity,
        trace_state,
        kind,
        name,
        start: clock.at(request.info.start),
        end: clock.at(end),
        tags,
        failed,
        events,
    };
    match held {
        None => tracer.send(span),
        Some(held) => tracer.keep_request(held.close(span), end),
    }
}

/// What becomes of the spans of a request at its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Worth {
    /// It was chosen at its beginning.
    Chosen,
    /// It was not, and is kept for this.
    Kept(Kept),
    /// They are forgotten.
    Nothing,
}

fn worth(request: &Request<'_>, end: Instant) -> Worth {
    let recorded = request.trace.as_ref().and_then(|trace| trace.recorded.as_ref());
    let Some(recorded) = recorded.filter(|recorded| recorded.held.is_some()) else { return Worth::Chosen };
    let kept = recorded.tracer.tail().and_then(|tail| tail::verdict(request, tail, request.info.duration(end)));
    kept.map_or(Worth::Nothing, Worth::Kept)
}

/// The side that the request's span tells of. A proxy whose tries have spans of their own is a server to its client; one
/// that has a single span is a part of the application beside it.
fn kind(request: &Request<'_>, tracer: &Tracer) -> Kind {
    let egress = request.connection.node.direction == TrafficDirection::Outbound;
    if egress && !spawns(request) && !tracer.provider().is_own_hop() { Kind::Client } else { Kind::Server }
}

/// Whether the connection manager gives tries spans of their own.
fn spawns(request: &Request<'_>) -> bool {
    request.connection.node.config.tracing.as_ref().is_some_and(|tracing| tracing.spawn_upstream_span)
}

/// Source: Envoy's HTTP connection manager statistics, "Tracing".
fn count(request: &Request<'_>) {
    let Some(reason) = request.trace_reason else { return };
    let stats = &request.connection.stats;
    if request.info.health_check.get() {
        stats.tracing_health_check.increment();
        return stats.tracing_not_traceable.increment();
    }
    match reason {
        Reason::NotTraceable => stats.tracing_not_traceable.increment(),
        Reason::Sampling => stats.tracing_random_sampling.increment(),
        Reason::ServiceForced => stats.tracing_service_forced.increment(),
        Reason::ClientForced => stats.tracing_client_enabled.increment(),
    }
}
