//! How tries of a request fail.
//!
//! Owns the names of what can go wrong, and what each means for the retry policy, the client, outlier detection and the
//! balancer. Never decides on retries.

use std::borrow::Cow;

use outrigger_policy::retry::Outcome;

use crate::health::observe;
use crate::http::filter::dynamic_forward::no_address;
use crate::http::manager::downstream::Gone;
use crate::http::manager::reply::LocalReply;
use crate::http::manager::request::Request;
use crate::http::seam::StreamError;
use crate::process::Process;
use crate::stream::{Kill, ResponseFlag};
use crate::upstream::dns_cache::NoAddress;
use crate::upstream::feedback::{Unanswered, Watch};
use crate::upstream::worker_host::WorkerHost;
use crate::worker::deadlines::Limit;

/// How a try failed.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// No endpoint to try.
    NoHost,
    /// The only endpoint that would do is not there; the status of the answer.
    NoWantedHost(u16),
    /// The host of a dynamic forward proxy has no address.
    NoAddress(NoAddress),
    /// A circuit breaker was open.
    Overflow,
    /// A limit was reached, and as many requests waited as may.
    QueueFull,
    /// A limit was reached, and no place became free in time.
    QueueTimeout,
    /// No connection; the reason, and whether time ran out.
    Connect { reason: String, timeout: bool },
    /// A used connection ended before it answered: its end crossed with the request.
    StaleConnection,
    /// The connection took no more requests: nothing of this one has left.
    NotSent,
    /// The stream or connection ended before a response.
    Reset { reason: &'static str, flag: ResponseFlag, refused: bool, protocol: Option<String> },
    /// A time limit.
    Timeout(Limit),
    /// The client is gone.
    DownstreamGone(Gone),
    /// The client broke its request off with a protocol error.
    DownstreamError(String),
    /// The drain's time is up.
    Drained,
    /// A try that was late came to an end that counts, and this one was given up.
    Overtaken,
    /// A filter that the body passes through has an answer of its own.
    Answered(Box<LocalReply>),
}

impl Failure {
    /// What retry policies see; `None` where no retry can help.
    pub fn outcome(&self) -> Option<Outcome> {
        match self {
            Failure::Connect { .. } => Some(Outcome::ConnectFailure),
            Failure::Overflow => Some(Outcome::Overflow),
            Failure::StaleConnection => Some(Outcome::Reset { request_sent: true }),
            Failure::NotSent => Some(Outcome::Reset { request_sent: false }),
            Failure::Reset { refused: true, .. } => Some(Outcome::RefusedStream),
            Failure::Reset { .. } => Some(Outcome::Reset { request_sent: true }),
            Failure::Timeout(Limit::PerTry | Limit::PerTryIdle) => Some(Outcome::PerTryTimeout { request_sent: true }),
            Failure::NoHost
            | Failure::NoWantedHost(_)
            | Failure::NoAddress(_)
            | Failure::QueueFull
            | Failure::QueueTimeout
            | Failure::Timeout(_)
            | Failure::DownstreamGone(_)
            | Failure::DownstreamError(_)
            | Failure::Drained
            | Failure::Overtaken
            | Failure::Answered(_) => None,
        }
    }

    /// Whether it says nothing of other tries that may be under way.
    pub fn is_of_a_try(&self) -> bool {
        match self {
            Failure::NoHost
            | Failure::NoWantedHost(_)
            | Failure::NoAddress(_)
            | Failure::Overflow
            | Failure::QueueFull
            | Failure::QueueTimeout
            | Failure::Connect { .. }
            | Failure::StaleConnection
            | Failure::NotSent
            | Failure::Reset { .. } => true,
            Failure::Timeout(limit) => matches!(limit, Limit::PerTry | Limit::PerTryIdle),
            Failure::DownstreamGone(_)
            | Failure::DownstreamError(_)
            | Failure::Drained
            | Failure::Overtaken
            | Failure::Answered(_) => false,
        }
    }

    /// The answer to the client.
    pub fn reply(&self, request: &Request<'_>) -> LocalReply {
        match self {
            Failure::NoWantedHost(status) => LocalReply::new(*status, "no_healthy_upstream")
                .flag(ResponseFlag::NoHealthyUpstream)
                .body(&b"no healthy upstream"[..]),
            Failure::NoHost => LocalReply::new(503, "no_healthy_upstream")
                .flag(ResponseFlag::NoHealthyUpstream)
                .body(&b"no healthy upstream"[..]),
            Failure::NoAddress(error) => no_address(error),
            Failure::Overflow => {
                let mut reply = reset_reply(request, "overflow", None, ResponseFlag::UpstreamOverflow);
                reply.overloaded = true;
                reply
            }
            Failure::QueueFull => queue_reply("upstream_queue_full", "too many requests wait for the upstream"),
            Failure::QueueTimeout => {
                queue_reply("upstream_queue_timeout", "no upstream had room for the request in time")
            }
            Failure::Connect { reason, timeout } => {
                *request.info.upstream_failure.borrow_mut() = Some(reason.as_str().into());
                let kind = if *timeout { "connection timeout" } else { "remote connection failure" };
                reset_reply(request, kind, Some(reason), ResponseFlag::UpstreamConnectionFailure)
            }
            Failure::StaleConnection | Failure::NotSent => {
                reset_reply(request, "connection termination", None, ResponseFlag::UpstreamConnectionTermination)
            }
            Failure::Reset { reason, flag, protocol, .. } => reset_reply(request, reason, protocol.as_deref(), *flag),
            Failure::Timeout(limit @ (Limit::PerTry | Limit::PerTryIdle | Limit::Route))
                if request.no_content_when_late =>
            {
                LocalReply { status: 204, body: Cow::Borrowed(b""), ..timeout_reply(*limit) }
            }
            Failure::Timeout(limit) => timeout_reply(*limit),
            // Nobody is told: the client gets the response of another try.
            Failure::Overtaken => LocalReply::new(503, "overtaken"),
            Failure::DownstreamGone(_) => LocalReply::new(499, "downstream_remote_disconnect"),
            Failure::DownstreamError(_) => LocalReply::new(400, "http1.codec_error")
                .flag(ResponseFlag::DownstreamProtocolError)
                .body(&b"Bad Request"[..])
                .close(),
            Failure::Drained if request.info.kill.get() != Kill::No => {
                LocalReply::new(503, "killed_by_operator").flag(ResponseFlag::LocalReset)
            }
            Failure::Drained => LocalReply::new(503, "drain_time_exceeded").flag(ResponseFlag::LocalReset),
            Failure::Answered(reply) => LocalReply::clone(reply),
        }
    }
}

/// The request was never sent, which `x-envoy-overloaded` tells callers.
fn queue_reply(details: &'static str, body: &'static str) -> LocalReply {
    let mut reply = LocalReply::new(503, details).flag(ResponseFlag::UpstreamOverflow).body(body.as_bytes());
    reply.overloaded = true;
    reply
}

pub fn timeout_reply(limit: Limit) -> LocalReply {
    let late = &b"upstream request timeout"[..];
    match limit {
        Limit::PerTry => {
            LocalReply::new(504, "upstream_per_try_timeout").flag(ResponseFlag::UpstreamRequestTimeout).body(late)
        }
        Limit::PerTryIdle => {
            LocalReply::new(504, "upstream_per_try_idle_timeout").flag(ResponseFlag::UpstreamRequestTimeout).body(late)
        }
        Limit::Route => LocalReply::new(504, "response_timeout").flag(ResponseFlag::UpstreamRequestTimeout).body(late),
        Limit::StreamDuration => {
            let mut reply = LocalReply::new(504, "max_duration_timeout");
            reply.grpc_status = Some(4);
            reply.body(&b"downstream duration timeout"[..])
        }
        Limit::Request => LocalReply::new(408, "request_overall_timeout").body(&b"request timeout"[..]),
        _ => LocalReply::new(504, "stream_idle_timeout")
            .flag(ResponseFlag::StreamIdleTimeout)
            .body(&b"stream timeout"[..]),
    }
}

fn reset_reply(request: &Request<'_>, reason: &str, more: Option<&str>, flag: ResponseFlag) -> LocalReply {
    let name = reason.replace(' ', "_");
    let details: Cow<'static, str> = match more {
        Some(more) => {
            let more = more.replace(' ', "_");
            format!("upstream_reset_before_response_started{{{name}|{more}}}").into()
        }
        None => format!("upstream_reset_before_response_started{{{name}}}").into(),
    };
    let again = if request.retried { "retried and the latest " } else { "" };
    let mut body = format!("upstream connect error or disconnect/reset before headers. {again}reset reason: {reason}");
    // What TLS says helps whoever has to mend it, and tells nothing about the network behind.
    if let Some(more) = more.filter(|more| more.starts_with("TLS_error")) {
        body.push_str(", transport failure reason: ");
        body.push_str(more);
    }
    let status = if flag == ResponseFlag::UpstreamProtocolError { 502 } else { 503 };
    LocalReply::new(status, details).flag(flag).body(body.into_bytes())
}

/// What a connection that was closed by its peer while it was idle fails with.
fn is_stale(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), ConnectionReset | BrokenPipe | UnexpectedEof)
}

/// What an error of a stream is; `reused` where a connection had served requests before and nothing came for this one.
pub fn reset_of(error: StreamError, reused: bool) -> Failure {
    let reset = |reason, flag, protocol| Failure::Reset { reason, flag, refused: false, protocol };
    match error {
        StreamError::Closed if reused => Failure::StaleConnection,
        StreamError::Io(error) if reused && is_stale(&error) => Failure::StaleConnection,
        StreamError::Closed | StreamError::Io(_) => {
            reset("connection termination", ResponseFlag::UpstreamConnectionTermination, None)
        }
        StreamError::Reset(_) => reset("remote reset", ResponseFlag::UpstreamRemoteReset, None),
        StreamError::Refused => Failure::Reset {
            reason: "remote refused stream reset",
            flag: ResponseFlag::UpstreamRemoteReset,
            refused: true,
            protocol: None,
        },
        StreamError::Protocol(what) => reset("protocol error", ResponseFlag::UpstreamProtocolError, Some(what)),
        StreamError::Answered(reply) => Failure::Answered(reply),
    }
}

/// What a failure of the client's side is.
pub fn downstream_failure(error: StreamError) -> Failure {
    match error {
        StreamError::Protocol(what) => Failure::DownstreamError(what),
        StreamError::Answered(reply) => Failure::Answered(reply),
        StreamError::Reset(_) | StreamError::Refused => Failure::DownstreamGone(Gone::Stream),
        StreamError::Closed | StreamError::Io(_) => Failure::DownstreamGone(Gone::Connection),
    }
}

/// What a failure of the upstream's side is, once it has answered.
pub fn upstream_failure(error: StreamError) -> Failure {
    reset_of(error, false)
}

/// Tells outlier detection what a failure says of the endpoint.
pub fn observe(process: &Process, host: &WorkerHost, failure: &Failure) {
    match failure {
        Failure::Connect { .. } | Failure::StaleConnection | Failure::NotSent | Failure::Reset { .. } => {
            observe::unreachable(process, host);
        }
        Failure::Timeout(Limit::PerTry | Limit::PerTryIdle | Limit::Route) => observe::timed_out(process, host),
        // The client's doing, or ours.
        Failure::NoHost
        | Failure::NoWantedHost(_)
        | Failure::NoAddress(_)
        | Failure::Overflow
        | Failure::QueueFull
        | Failure::QueueTimeout
        | Failure::Timeout(_)
        | Failure::DownstreamGone(_)
        | Failure::DownstreamError(_)
        | Failure::Drained
        | Failure::Overtaken
        | Failure::Answered(_) => {}
    }
}

/// Tells the balancer what a failure says of the endpoint.
pub fn watched(watch: Watch, host: &WorkerHost, failure: &Failure) {
    watch.unanswered(
        host,
        match failure {
            Failure::Connect { .. } => Unanswered::Unreachable,
            Failure::Reset { .. } | Failure::Timeout(Limit::PerTry | Limit::PerTryIdle | Limit::Route) => {
                Unanswered::Failed
            }
            Failure::DownstreamGone(_) | Failure::Overtaken | Failure::Timeout(_) => Unanswered::GivenUp,
            // Says nothing of the endpoint.
            Failure::NoHost
            | Failure::NoWantedHost(_)
            | Failure::NoAddress(_)
            | Failure::Overflow
            | Failure::QueueFull
            | Failure::QueueTimeout
            | Failure::StaleConnection
            | Failure::NotSent
            | Failure::DownstreamError(_)
            | Failure::Drained
            | Failure::Answered(_) => return,
        },
    );
}
