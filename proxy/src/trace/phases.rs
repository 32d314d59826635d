//! Spans of what a request waits for before it can leave: a place, a connection, a TLS handshake.
//!
//! Owns these spans, which Envoy does not have; only verbose tracing records them. Never waits itself.

use std::time::Instant;

use outrigger_policy::trace::child;

use super::span::{Kind, Span, Tags, Value};
use crate::http::manager::request::Request;

/// When a connection was made.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// Its place among the connections of its cluster was taken.
    pub start: Instant,
    /// Whoever it was made for had to wait until then.
    pub waited: bool,
    /// The transport below TLS was connected; `None` if it never was.
    pub connected: Option<Instant>,
    /// It was ready for requests; `None` if it never was.
    pub ready: Option<Instant>,
    /// There was a TLS handshake then.
    pub secure: bool,
}

/// A request has waited since then for an endpoint to have a place for it, with this outcome.
pub fn queued(request: &Request<'_>, since: Instant, outcome: &'static str) {
    if !is_verbose(request) {
        return;
    }
    let mut tags = tags(request);
    tags.set("outcome", Value::Known(outcome));
    send(request, "queue", since, Instant::now(), tags);
}

/// A request that had asked for a connection at `began` has one, which may have been made for it.
pub fn acquired(request: &Request<'_>, began: Instant, opening: Opening) {
    if !is_verbose(request) {
        return;
    }
    let reached = || {
        let mut tags = tags(request);
        if let Some(host) = &*request.info.upstream_host.borrow() {
            tags.set("upstream_address", Value::Text(host.address.to_string().into()));
        }
        tags
    };
    let now = Instant::now();
    // A connection that is older than the question was made for somebody else.
    let Some(opening) = Some(opening).filter(|opening| opening.start >= began) else {
        return send(request, "queue", began, now, reached());
    };
    if opening.waited {
        send(request, "queue", began, opening.start, reached());
    }
    let connected = opening.connected.unwrap_or(now);
    send(request, "connect", opening.start, connected, reached());
    if opening.secure {
        send(request, "tls handshake", connected, now, reached());
    }
}

fn is_verbose(request: &Request<'_>) -> bool {
    let recorded = request.trace.as_ref().and_then(|trace| trace.recorded.as_ref());
    recorded.is_some_and(|recorded| recorded.marks.is_some())
}

fn tags(request: &Request<'_>) -> Tags {
    let mut tags = Tags::default();
    tags.set("component", Value::Known("proxy"));
    let recorded = request.trace.as_ref().and_then(|trace| trace.recorded.as_ref());
    if let Some(cluster) = recorded.and_then(|recorded| recorded.cluster.as_ref()) {
        tags.set("upstream_cluster", Value::Shared(cluster.config.name.clone()));
    }
    tags
}

fn send(request: &Request<'_>, name: &'static str, start: Instant, end: Instant, tags: Tags) {
    let Some(trace) = &request.trace else { return };
    let (Some(identity), Some(recorded)) = (trace.identity, trace.recorded.as_ref()) else { return };
    let parent = recorded.attempt.as_ref().map_or(identity, |attempt| attempt.identity);
    let worker = &request.connection.worker;
    let clock = &worker.process.clock;
    recorded.send(Span {
        identity: child(&parent, worker.random.next()),
        trace_state: recorded.trace_state.clone(),
        kind: Kind::Internal,
        name: name.into(),
        start: clock.at(start),
        end: clock.at(end),
        tags,
        failed: false,
        events: Vec::new(),
    });
}
