//! Spans of tries.
//!
//! Owns a try's span from the choice of an endpoint to its outcome, and what the endpoint is told. Never decides on
//! retries.

use std::sync::Arc;
use std::time::Instant;

use outrigger_policy::trace::{Identity, child};

use super::headers::inject;
use super::request::{evaluate, recorded};
use super::span::{Kind, Span};
use super::tags;
use crate::http::manager::request::Request;
use crate::http::message::{ResponseHead, Version};
use crate::http::router::failure::Failure;
use crate::stream::ResponseFlag;
use crate::upstream::host::Host;
use crate::worker::deadlines::Limit;

/// A try under way.
pub(super) struct Attempt {
    pub identity: Identity,
    name: Box<str>,
    start: Instant,
    /// From 1.
    pub number: u32,
    pub host: Option<Arc<Host>>,
    /// 0 before there is a response.
    pub status: u16,
    /// Set once there is a connection.
    pub version: Option<Version>,
    /// Set if the response head is the end of a gRPC call.
    pub grpc: Option<GrpcEnd>,
    pub outcome: Outcome,
    /// It took longer than a try may, and went on.
    pub is_late: bool,
}

/// How a gRPC call ended.
pub(super) struct GrpcEnd {
    /// `grpc-status`.
    pub status: Box<[u8]>,
    /// `grpc-message`.
    pub message: Option<Box<[u8]>>,
}

/// How a try went.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// Well, as far as is known.
    Open,
    /// We gave it up; with this flag.
    Canceled(Option<ResponseFlag>),
    /// It broke; why, and with this flag.
    Reset(&'static str, ResponseFlag),
}

/// Begins a try: its endpoint has been chosen, and its head is ready to leave. Tells the endpoint of the trace.
pub fn begin_attempt(request: &mut Request<'_>) {
    let Some(identity) = request.trace.as_ref().and_then(|trace| trace.identity) else { return };
    let config = &request.connection.node.config;
    let Some(tracing) = config.tracing.as_deref() else { return };
    let number = request.info.attempts.get();
    let spawns = tracing.spawn_upstream_span || request.filters.router.start_child_span;
    let told = match spawns {
        true => child(&identity, request.connection.worker.random.next()),
        // The headers are those of the first try.
        false if number > 1 => return,
        false => identity,
    };
    if !tracing.no_context_propagation {
        inject(&told, identity.remote_parent, &mut request.head.headers);
    }
    if !spawns || recorded(request).is_none() {
        return;
    }
    end(request, Instant::now());
    let own = recorded(request).and_then(|recorded| recorded.route.clone());
    let own = own.as_ref().and_then(|route| route.trace.as_deref()?.tracing.as_ref()?.upstream_operation.as_ref());
    let name = match own.or(tracing.upstream_operation.as_ref()) {
        Some(operation) => evaluate(operation, request),
        None => format!("router {} egress", request.info.cluster.borrow().as_deref().unwrap_or_default()).into(),
    };
    let host = request.info.upstream_host.borrow().clone();
    if let Some(recorded) = recorded(request) {
        recorded.attempt = Some(Attempt {
            identity: told,
            name,
            start: Instant::now(),
            number,
            host,
            status: 0,
            version: None,
            grpc: None,
            outcome: Outcome::Open,
            is_late: false,
        });
    }
}

/// The try under way has a response head, which stands in the request.
pub fn answered(request: &mut Request<'_>) {
    let version = request.info.upstream_version.get();
    let status = request.response.status;
    let own = |name: &str| request.response.headers.get_by_name(name).map(Box::from);
    let grpc = own("grpc-status").map(|status| GrpcEnd { status, message: own("grpc-message") });
    if let Some(attempt) = recorded(request).and_then(|recorded| recorded.attempt.as_mut()) {
        (attempt.status, attempt.version, attempt.grpc) = (status, version, grpc);
    }
}

/// The try under way had an answer that is not the last word. `complete` says that all of it had come.
pub fn retry_attempt(request: &mut Request<'_>, complete: bool) {
    let Some(attempt) = recorded(request).and_then(|recorded| recorded.attempt.as_mut()) else { return };
    if !complete {
        attempt.outcome = Outcome::Canceled(None);
    }
    let at = request.info.response_start.get().unwrap_or_else(Instant::now);
    end(request, at);
}

/// The try under way failed.
pub fn fail_attempt(request: &mut Request<'_>, failure: &Failure) {
    let version = request.info.upstream_version.get();
    let Some(attempt) = recorded(request).and_then(|recorded| recorded.attempt.as_mut()) else { return };
    attempt.outcome = outcome(failure);
    if !matches!(failure, Failure::Connect { .. } | Failure::Overflow | Failure::NoHost) {
        attempt.version = version;
    }
    end(request, Instant::now());
}

fn outcome(failure: &Failure) -> Outcome {
    let closed = Outcome::Reset("connection termination", ResponseFlag::UpstreamConnectionTermination);
    match failure {
        Failure::Connect { timeout: false, .. } => {
            Outcome::Reset("remote connection failure", ResponseFlag::UpstreamConnectionFailure)
        }
        Failure::Connect { timeout: true, .. } => {
            Outcome::Reset("connection timeout", ResponseFlag::UpstreamConnectionFailure)
        }
        Failure::Overflow => Outcome::Reset("overflow", ResponseFlag::UpstreamOverflow),
        Failure::StaleConnection | Failure::NotSent => closed,
        Failure::Reset { reason, flag, .. } => Outcome::Reset(reason, *flag),
        Failure::Timeout(Limit::PerTry) => Outcome::Canceled(Some(ResponseFlag::UpstreamRequestTimeout)),
        Failure::Timeout(Limit::PerTryIdle) => Outcome::Canceled(Some(ResponseFlag::StreamIdleTimeout)),
        _ => Outcome::Canceled(None),
    }
}

/// The span of a try that goes on beside the one under way.
pub struct Aside(Attempt);

/// Takes the span of the try under way, if it has one: another one begins while it goes on.
pub fn set_aside(request: &mut Request<'_>) -> Option<Aside> {
    let attempt = recorded(request).and_then(|recorded| recorded.attempt.take())?;
    Some(Aside(Attempt { is_late: true, ..attempt }))
}

/// Makes a span that was set aside that of the try under way.
pub fn take_up(request: &mut Request<'_>, aside: Option<Aside>) {
    let Some(Aside(attempt)) = aside else { return };
    end(request, Instant::now());
    if let Some(recorded) = recorded(request) {
        recorded.attempt = Some(attempt);
    }
}

/// Ends the span of a try that was set aside, and whose end does not count for the request. Its response head may not have
/// come, in which case the status is 0.
pub fn end_aside(request: &Request<'_>, Aside(mut attempt): Aside, response: &ResponseHead, failure: Option<&Failure>) {
    attempt.status = response.status;
    attempt.version = request.info.upstream_version.get();
    attempt.outcome = failure.map_or(Outcome::Canceled(None), outcome);
    send(request, attempt, Instant::now());
}

/// Ends the span of the try under way, if it has one.
pub(super) fn end(request: &mut Request<'_>, at: Instant) {
    if let Some(attempt) = recorded(request).and_then(|recorded| recorded.attempt.take()) {
        send(request, attempt, at);
    }
}

fn send(request: &Request<'_>, attempt: Attempt, at: Instant) {
    let Some(recorded) = request.trace.as_ref().and_then(|trace| trace.recorded.as_ref()) else { return };
    let clock = &request.connection.worker.process.clock;
    let (tags, failed) = tags::of_attempt(request, recorded, &attempt);
    let events = recorded.marks.as_ref().map(|marks| tags::events(request, marks, false)).unwrap_or_default();
    recorded.tracer.send(Span {
        identity: attempt.identity,
        trace_state: recorded.trace_state.clone(),
        kind: Kind::Client,
        name: attempt.name,
        start: clock.at(attempt.start),
        end: clock.at(at.max(attempt.start)),
        tags,
        failed,
        events,
    });
}
