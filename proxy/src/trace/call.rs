//! Spans of calls that filters make for requests: to services of authorization, of limits and of processing.
//!
//! Owns such a span from the moment its call leaves to its end, and what the service is told of the trace. Never makes a
//! call, and never sees what is asked.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use outrigger_config::source::GrpcCall;
use outrigger_policy::trace::{Format, Identity, child};

use super::headers::{TRACESTATE, inject};
use super::manager::Tracer;
use super::request::trace_state;
use super::span::{Kind, Span, Tags, Value};
use super::tail::Held;
use crate::http::headers::Headers;
use crate::http::manager::request::Request;
use crate::stream::ResponseFlag;
use crate::upstream::call::{CallError, Seen};
use crate::upstream::pool::PoolError;
use crate::worker::Worker;

/// What the calls for a request continue. It outlives the request where calls do.
pub struct CallParent {
    worker: Rc<Worker>,
    identity: Identity,
    trace_state: Option<Box<str>>,
    /// Set if spans of this request are sent, or may turn out to be worth it.
    recorder: Option<Recorder>,
}

#[derive(Clone)]
struct Recorder {
    tracer: Arc<Tracer>,
    held: Option<Rc<Held>>,
}

/// The span of a call. It ends when this is dropped; as one that was given up, unless an end was told.
pub struct CallSpan(Option<Open>);

struct Open {
    worker: Rc<Worker>,
    recorder: Recorder,
    identity: Identity,
    trace_state: Option<Box<str>>,
    name: Box<str>,
    start: Instant,
    tags: Tags,
    failed: bool,
    callee: Callee,
    ended: bool,
}

/// What kind of service is asked.
enum Callee {
    Grpc,
    Http(Rc<Seen>),
}

impl CallParent {
    /// `None` if the request has no trace.
    pub fn of(request: &Request<'_>) -> Option<Self> {
        let trace = request.trace.as_deref()?;
        let identity = trace.identity?;
        let recorder = trace.recorded.as_ref().map(|recorded| Recorder {
            tracer: Arc::clone(&recorded.tracer),
            held: recorded.held.as_ref().map(Rc::clone),
        });
        let worker = Rc::clone(&request.connection.worker);
        Some(Self { worker, identity, trace_state: trace_state(&request.head, Some(&identity)), recorder })
    }

    /// The same for calls whose spans are not wanted: the service hears of the trace, and that nobody records it.
    pub fn quiet(self) -> Self {
        Self { identity: Identity { sampled: false, ..self.identity }, recorder: None, ..self }
    }

    /// Begins the span of a call of gRPC, whose path is `/<service>/<method>`, and tells the service in its headers.
    pub fn begin_grpc(&self, path: &str, service: &GrpcCall, headers: &mut Headers) -> CallSpan {
        let identity = self.tell(headers);
        self.open(identity, Callee::Grpc, |tags| {
            // As Envoy has it, whichever endpoint is asked.
            let (cluster, address) = match &service.google {
                Some(google) => (&google.stat_prefix, &*google.uri),
                None => (&service.cluster, service.authority.as_str()),
            };
            tags.set("upstream_cluster", Value::Shared(Arc::clone(cluster)));
            tags.set("upstream_address", Value::Text(address.into()));
            format!("async {} egress", path.trim_start_matches('/').replace('/', ".")).into()
        })
    }

    /// Begins the span of a call to an HTTP server, and tells the server in its headers. `seen` will know the endpoint.
    pub fn begin_http(&self, cluster: &Arc<str>, seen: &Rc<Seen>, headers: &mut Headers) -> CallSpan {
        let identity = self.tell(headers);
        self.open(identity, Callee::Http(Rc::clone(seen)), |tags| {
            tags.set("upstream_cluster", Value::Shared(Arc::clone(cluster)));
            if let Some(node) = self.worker.graph().clusters.get(cluster) {
                tags.set("upstream_cluster.name", Value::Shared(Arc::clone(&node.config.stat_name)));
            }
            // Envoy's client of its own says so, whatever the connection is.
            tags.set("http.protocol", Value::Known("HTTP/1.1"));
            format!("async {cluster} egress").into()
        })
    }

    fn tell(&self, headers: &mut Headers) -> Identity {
        let identity = child(&self.identity, self.worker.random.next());
        let continued = self.identity.remote_parent;
        inject(&identity, continued, headers);
        if let (Format::W3c, Some(state)) = (identity.format, &self.trace_state) {
            headers.set_by_name(TRACESTATE, state.as_bytes());
        }
        identity
    }

    fn open(&self, identity: Identity, callee: Callee, describe: impl FnOnce(&mut Tags) -> Box<str>) -> CallSpan {
        CallSpan(self.recorder.clone().map(|recorder| {
            let mut tags = Tags::default();
            tags.set("component", Value::Known("proxy"));
            let name = describe(&mut tags);
            Open {
                worker: Rc::clone(&self.worker),
                recorder,
                identity,
                trace_state: self.trace_state.clone(),
                name,
                start: Instant::now(),
                tags,
                failed: false,
                callee,
                ended: false,
            }
        }))
    }
}

impl CallSpan {
    /// Says what came of the question.
    pub fn tag(&mut self, name: &'static str, value: &'static str) {
        if let Some(open) = &mut self.0 {
            open.tags.set(name, Value::Known(value));
        }
    }

    /// The call has ended with this status of gRPC.
    pub fn end_grpc(&mut self, status: u32) {
        let Some(open) = &mut self.0 else { return };
        open.ended = true;
        open.failed = status != 0;
        open.tags.set("grpc.status_code", Value::Number(u64::from(status)));
        if open.failed {
            open.tags.set("error", Value::Known("true"));
        }
    }

    /// The call has ended with this status of HTTP, or without one. Gives back the status that stands for its end.
    pub fn end_http(&mut self, result: Result<u16, &CallError>) -> u16 {
        let (status, flag) = match result {
            Ok(status) => (status, None),
            Err(error) => {
                let (status, flag) = seen_as(error);
                (status, Some(flag))
            }
        };
        if let Some(open) = &mut self.0 {
            open.ended = true;
            open.failed = status >= 400;
            open.end_http(status, flag);
        }
        status
    }
}

impl Open {
    fn end_http(&mut self, status: u16, flag: Option<ResponseFlag>) {
        if let Callee::Http(seen) = &self.callee
            && let Some(host) = seen.host.borrow().as_ref()
        {
            let address: Box<str> = host.address.to_string().into();
            self.tags.set("upstream_address", Value::Text(address.clone()));
            self.tags.set("peer.address", Value::Text(address));
        }
        self.tags.set("http.status_code", Value::Number(u64::from(status)));
        self.tags.set("response_flags", Value::Known(flag.map_or("-", ResponseFlag::short)));
        if status == 0 || status >= 500 {
            self.tags.set("error", Value::Known("true"));
        }
    }

    fn give_up(&mut self) {
        match self.callee {
            Callee::Grpc => self.tags.set("status", Value::Known("canceled")),
            Callee::Http(_) => {
                self.tags.set("canceled", Value::Known("true"));
                self.end_http(0, None);
            }
        }
    }
}

impl Drop for CallSpan {
    fn drop(&mut self) {
        let Some(mut open) = self.0.take() else { return };
        if !open.ended {
            open.give_up();
        }
        let Open { worker, recorder, identity, trace_state, name, start, tags, failed, callee: _, ended: _ } = open;
        let clock = &worker.process.clock;
        let span = Span {
            identity,
            trace_state,
            kind: Kind::Client,
            name,
            start: clock.at(start),
            end: clock.at(Instant::now()),
            tags,
            failed,
            events: Vec::new(),
        };
        match recorder.held {
            None => recorder.tracer.send(span),
            Some(held) => held.push(span),
        }
    }
}

/// The status and the flag that a forwarded request would have got.
fn seen_as(error: &CallError) -> (u16, ResponseFlag) {
    use crate::http::seam::StreamError;
    match error {
        CallError::NoCluster(_) | CallError::Token { .. } => (503, ResponseFlag::NoClusterFound),
        CallError::NoHost => (503, ResponseFlag::NoHealthyUpstream),
        CallError::Overflow | CallError::Connect(PoolError::PendingOverflow | PoolError::RequestOverflow) => {
            (503, ResponseFlag::UpstreamOverflow)
        }
        CallError::Connect(PoolError::Connect(_)) => (503, ResponseFlag::UpstreamConnectionFailure),
        CallError::Stream(StreamError::Reset(_) | StreamError::Refused) => (503, ResponseFlag::UpstreamRemoteReset),
        CallError::Stream(StreamError::Protocol(_)) | CallError::TooLong(_) => {
            (502, ResponseFlag::UpstreamProtocolError)
        }
        CallError::Stream(StreamError::Closed | StreamError::Io(_) | StreamError::Answered(_)) => {
            (503, ResponseFlag::UpstreamConnectionTermination)
        }
        CallError::Timeout(_) => (504, ResponseFlag::UpstreamRequestTimeout),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::http::seam::StreamError;

    #[test]
    fn a_call_that_failed_is_seen_as_a_forwarded_request_would_be() {
        for (error, status, flag) in [
            (CallError::NoHost, 503, "UH"),
            (CallError::Overflow, 503, "UO"),
            (CallError::Connect(PoolError::PendingOverflow), 503, "UO"),
            (CallError::Stream(StreamError::Refused), 503, "UR"),
            (CallError::Stream(StreamError::Closed), 503, "UC"),
            (CallError::Stream(StreamError::Protocol("x".into())), 502, "UPE"),
            (CallError::Timeout(Duration::from_secs(1)), 504, "UT"),
            (CallError::NoCluster("c".into()), 503, "NC"),
        ] {
            let seen = seen_as(&error);
            assert_eq!((seen.0, seen.1.short()), (status, flag), "{error}");
        }
    }
}
