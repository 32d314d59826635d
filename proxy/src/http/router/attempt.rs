//! One try of a request: connection, request out, response back.
//!
//! Owns the loop that drives both directions in one task, and the names of what can go wrong. Never decides on retries.

use std::borrow::Cow;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use outrigger_config::route::Forward;
use outrigger_policy::retry::Outcome;

use super::body::ReplayBody;
use super::timeout::Timeouts;
use crate::health::observe;
use crate::http::filter::BodyChain;
use crate::http::filter::dynamic_forward::no_address;
use crate::http::h1::parse::Framing;
use crate::http::headers::HeaderId;
use crate::http::manager::downstream::Gone;
use crate::http::manager::overload;
use crate::http::manager::reply::{self, LocalReply};
use crate::http::manager::request::Request;
use crate::http::message::{RequestHead, ResponseHead};
use crate::http::seam::{BodySink, Pump, PumpError, StreamError};
use crate::process::Process;
use crate::stream::ResponseFlag;
use crate::trace::{self, Mark};
use crate::upstream::clusters::{Target, WorkerCluster, WorkerHost};
use crate::upstream::connect::ConnectError;
use crate::upstream::dns_cache::NoAddress;
use crate::upstream::feedback::{self, Unanswered, Watch};
use crate::upstream::gate::Place;
use crate::upstream::pool::{self, PoolError, Wanted};
use crate::upstream::stream::UpstreamStream;
use crate::worker::deadlines::Limit;

/// How a try failed.
#[derive(Clone, Debug, Eq, PartialEq)]
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
            Failure::Timeout(Limit::PerTry) => Some(Outcome::PerTryTimeout { request_sent: true }),
            Failure::NoHost
            | Failure::NoWantedHost(_)
            | Failure::NoAddress(_)
            | Failure::QueueFull
            | Failure::QueueTimeout
            | Failure::Timeout(_)
            | Failure::DownstreamGone(_)
            | Failure::DownstreamError(_)
            | Failure::Drained => None,
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
                let mut reply = reset_reply("overflow", None, ResponseFlag::UpstreamOverflow);
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
                reset_reply(kind, Some(reason), ResponseFlag::UpstreamConnectionFailure)
            }
            Failure::StaleConnection | Failure::NotSent => {
                reset_reply("connection termination", None, ResponseFlag::UpstreamConnectionTermination)
            }
            Failure::Reset { reason, flag, protocol, .. } => reset_reply(reason, protocol.as_deref(), *flag),
            Failure::Timeout(limit) => timeout_reply(*limit),
            Failure::DownstreamGone(_) => LocalReply::new(499, "downstream_remote_disconnect"),
            Failure::DownstreamError(_) => LocalReply::new(400, "http1.codec_error")
                .flag(ResponseFlag::DownstreamProtocolError)
                .body(&b"Bad Request"[..])
                .close(),
            Failure::Drained => LocalReply::new(503, "drain_time_exceeded").flag(ResponseFlag::LocalReset),
        }
    }
}

/// The request was never sent, which `x-envoy-overloaded` tells callers.
fn queue_reply(details: &'static str, body: &'static str) -> LocalReply {
    let mut reply = LocalReply::new(503, details).flag(ResponseFlag::UpstreamOverflow).body(body.as_bytes());
    reply.overloaded = true;
    reply
}

fn timeout_reply(limit: Limit) -> LocalReply {
    let late = &b"upstream request timeout"[..];
    match limit {
        Limit::PerTry => {
            LocalReply::new(504, "upstream_per_try_timeout").flag(ResponseFlag::UpstreamRequestTimeout).body(late)
        }
        Limit::Route => LocalReply::new(504, "response_timeout").flag(ResponseFlag::UpstreamRequestTimeout).body(late),
        Limit::StreamDuration => {
            let mut reply = LocalReply::new(408, "max_duration_timeout").flag(ResponseFlag::DurationTimeout);
            reply.grpc_status = Some(4);
            reply.body(&b"downstream duration timeout"[..])
        }
        Limit::Request => LocalReply::new(408, "request_overall_timeout").body(&b"request timeout"[..]),
        _ => LocalReply::new(504, "stream_idle_timeout")
            .flag(ResponseFlag::StreamIdleTimeout)
            .body(&b"stream timeout"[..]),
    }
}

fn reset_reply(reason: &str, more: Option<&str>, flag: ResponseFlag) -> LocalReply {
    let name = reason.replace(' ', "_");
    let details: Cow<'static, str> = match more {
        Some(more) => format!("upstream_reset_before_response_started{{{name}|{more}}}").into(),
        None => format!("upstream_reset_before_response_started{{{name}}}").into(),
    };
    let mut body = format!("upstream connect error or disconnect/reset before headers. reset reason: {reason}");
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

fn reset_of(error: StreamError, reused: bool) -> Failure {
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
    }
}

/// One try.
pub struct Attempt<'a, 'r> {
    request: &'a mut Request<'r>,
    /// The cluster of the route, for which outcomes count.
    route_cluster: &'a WorkerCluster,
    /// The cluster that the endpoint is of.
    cluster: &'a Rc<WorkerCluster>,
    host: &'a Rc<WorkerHost>,
    action: &'a Forward,
    timeouts: &'a Timeouts,
    body: &'a ReplayBody<'a>,
}

/// A try whose response head has come.
pub struct Answered {
    stream: UpstreamStream,
    upload: Pump,
    _active: Active,
    _place: Option<Place>,
}

impl Answered {
    /// No body follows the head.
    pub fn has_no_body(&self) -> bool {
        self.stream.response_is_done()
    }

    /// The whole request has left.
    pub fn request_is_sent(&self) -> bool {
        self.upload.is_done()
    }

    /// Nobody wants the response: its connection can be used again only if there is no more of it.
    pub fn leave(self) {
        if self.stream.response_is_done() && self.upload.is_done() {
            self.stream.finish(Instant::now());
        }
    }
}

/// Counts a request towards an endpoint.
pub struct Active(Rc<WorkerCluster>, Rc<WorkerHost>);

impl Answered {
    /// Nothing of the response is left to come.
    pub fn is_complete(&self) -> bool {
        self.stream.response_is_done()
    }
}

impl Active {
    /// One request more, until it is dropped.
    pub fn new(cluster: &Rc<WorkerCluster>, host: &Rc<WorkerHost>) -> Self {
        cluster.stats.upstream_rq_active.increment();
        host.stats.rq_active.increment();
        host.begin();
        Self(Rc::clone(cluster), Rc::clone(host))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.stats.upstream_rq_active.decrement();
        self.1.stats.rq_active.decrement();
        self.1.end();
    }
}

impl<'a, 'r> Attempt<'a, 'r> {
    /// A try at `target`, which may be of a member of `route_cluster`.
    pub fn new(
        request: &'a mut Request<'r>,
        route_cluster: &'a WorkerCluster,
        target: &'a Target,
        action: &'a Forward,
        timeouts: &'a Timeouts,
        body: &'a ReplayBody<'a>,
    ) -> Self {
        let Target { cluster, host } = target;
        Self { request, route_cluster, cluster, host, action, timeouts, body }
    }

    /// Drives the try until there is a response head in the request, or a failure. `place` is its place at the endpoint.
    pub async fn until_head(&mut self, place: Option<Place>) -> Result<Answered, Failure> {
        let active = Active::new(self.cluster, self.host);
        let limits = self.request.deadlines;
        let start = self.request.info.start;
        limits.set(Limit::StreamDuration, self.timeouts.stream.map(|limit| start + limit));
        if let Some(limit) = self.timeouts.idle {
            self.request.idle_timeout = Some(limit).filter(|limit| !limit.is_zero());
            limits.begin(Limit::StreamIdle, Instant::now(), self.request.idle_timeout);
        }
        if self.request.info.request_end.get().is_some() {
            self.start_response_limits(Instant::now());
        }
        let stream = match self.acquire().await {
            Ok(stream) => stream,
            Err(failure) => {
                if matches!(failure, Failure::DownstreamGone(_)) {
                    self.cluster.stats.upstream_rq_cancelled.increment();
                }
                return Err(failure);
            }
        };
        observe::reached(self.host);
        self.request.info.upstream_local.set(stream.local_address());
        self.request.info.upstream_version.set(Some(stream.version()));
        let mut upload = Pump::default();
        let result = self.exchange(&stream, &mut upload).await;
        match result {
            Ok(()) => {
                self.request.info.response_start.set(Some(Instant::now()));
                Ok(Answered { stream, upload, _active: active, _place: place })
            }
            Err(failure) => {
                self.record(&failure);
                Err(failure)
            }
        }
    }

    fn start_response_limits(&self, now: Instant) {
        let limits = self.request.deadlines;
        // One limit for all tries.
        if !limits.is_set(Limit::Route) {
            limits.set(Limit::Route, self.timeouts.route.map(|limit| now + limit));
        }
        let per_try = [self.timeouts.per_try, self.timeouts.per_try_idle].into_iter().flatten().min();
        limits.set(Limit::PerTry, per_try.map(|limit| now + limit));
    }

    fn record(&self, failure: &Failure) {
        let stats = &self.route_cluster.stats;
        match failure {
            Failure::Timeout(Limit::PerTry) => stats.upstream_rq_per_try_timeout.increment(),
            Failure::Timeout(Limit::Route) => {
                stats.upstream_rq_timeout.increment();
                self.host.stats.rq_timeout.increment();
            }
            Failure::Timeout(Limit::StreamDuration) => stats.upstream_rq_max_duration_reached.increment(),
            Failure::Reset { protocol: Some(_), .. } => self.cluster.stats.upstream_cx_protocol_error.increment(),
            _ => {}
        }
    }

    async fn acquire(&mut self) -> Result<UpstreamStream, Failure> {
        let request = &*self.request;
        let wanted = Wanted {
            priority: self.action.priority,
            downstream: request.head.version,
            host: pool::bare_host(request.head.authority_str()),
            upgrade: request.head.is_tunnel(),
            alpn: request.alpn.as_ref(),
            connection: Some(&request.connection.info),
        };
        let terminated = self.action.terminates_connect && request.head.is_connect();
        if self.host.node.config.preconnect.is_some() && !terminated {
            pool::preconnect(&request.connection.worker, self.cluster, self.host, wanted);
        }
        if !terminated && let Some(stream) = pool::ready(self.host, wanted) {
            return Ok(stream);
        }
        // Boxed: the state of connecting is large, and most requests never need it.
        let (worker, cluster, host) = (&request.connection.worker, self.cluster, self.host);
        let mut acquiring = Box::pin(async move {
            match terminated {
                true => pool::open_raw(worker, cluster, host, wanted).await,
                false => pool::acquire(worker, cluster, host, wanted).await,
            }
        });
        let began = Instant::now();
        let acquired = poll_fn(|cx| {
            if let Poll::Ready(acquired) = acquiring.as_mut().poll(cx) {
                return Poll::Ready(Ok(acquired));
            }
            self.interrupted(cx).map(Err)
        });
        match acquired.await? {
            Ok(stream) => {
                trace::acquired(self.request, began, stream.opening());
                Ok(stream)
            }
            Err(PoolError::PendingOverflow) => Err(Failure::Overflow),
            Err(PoolError::Connect(ConnectError::Timeout)) => {
                Err(Failure::Connect { reason: "connection timeout".into(), timeout: true })
            }
            Err(PoolError::Connect(error)) => Err(Failure::Connect { reason: error.to_string(), timeout: false }),
        }
    }

    /// What ends a try from outside.
    fn interrupted(&self, cx: &mut std::task::Context<'_>) -> Poll<Failure> {
        interrupted(self.request, cx)
    }

    async fn exchange(&mut self, stream: &UpstreamStream, upload: &mut Pump) -> Result<(), Failure> {
        let options = &self.host.node.config.http;
        let upgrade = self.request.head.is_tunnel();
        let framing = if upgrade { Framing::None } else { self.request.framing };
        let mut response = std::mem::take(&mut self.request.response);
        let mut head_sent = false;
        let mut upload_failed = false;
        let result = poll_fn(|cx| {
            if upgrade && head_sent {
                let _ = BodySink::poll_flush(stream, cx);
            }
            if !head_sent {
                match stream.poll_send_head(cx, &self.request.head, framing, options) {
                    Poll::Ready(Ok(())) => {
                        head_sent = true;
                        trace::mark(self.request, Mark::FirstUpstreamTx);
                    }
                    Poll::Ready(Err(StreamError::Refused)) => return Poll::Ready(Err(Failure::NotSent)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(reset_of(error, stream.is_reused()))),
                    Poll::Pending => return self.interrupted(cx).map(Err),
                }
                if upgrade {
                    let _ = BodySink::poll_flush(stream, cx);
                }
            }
            if !upload_failed && !upload.is_done() && !upgrade {
                match pump_up(self.request, stream, upload, self.body, cx) {
                    Poll::Ready(Ok(())) => {
                        let now = Instant::now();
                        trace::mark(self.request, Mark::LastUpstreamTx);
                        if self.request.info.request_end.get().is_none() {
                            self.request.info.request_end.set(Some(now));
                            self.request.deadlines.set(Limit::Request, None);
                            self.start_response_limits(now);
                        }
                    }
                    Poll::Ready(Err(PumpError::Source(error))) => return Poll::Ready(Err(downstream_failure(error))),
                    // An upstream may answer and close before it has read everything: its answer counts.
                    Poll::Ready(Err(PumpError::Sink(_))) => upload_failed = true,
                    Poll::Pending => {}
                }
            }
            match stream.poll_response(cx, &mut response) {
                Poll::Ready(Ok(())) if response.status == 101 && !upgrade => {
                    let error = StreamError::Protocol("switching protocols without being asked".into());
                    return Poll::Ready(Err(reset_of(error, false)));
                }
                Poll::Ready(Ok(())) => {
                    if let UpstreamStream::H2(_) = stream {
                        switch_protocols(&self.request.head, &mut response);
                    }
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(reset_of(error, stream.is_reused()))),
                Poll::Pending => {}
            }
            self.interrupted(cx).map(Err)
        })
        .await;
        self.request.response = response;
        if result.is_err() {
            self.request.response.clear();
        }
        result
    }
}

/// RFC 8441 section 5: where HTTP/2 grants a protocol by success, HTTP/1.1 switches to it.
fn switch_protocols(head: &RequestHead, response: &mut ResponseHead) {
    if response.status == 200 && !head.protocol().is_empty() {
        response.status = 101;
        response.headers.set(HeaderId::Connection, b"upgrade");
        response.headers.set(HeaderId::Upgrade, head.protocol());
    }
}

/// What a failure of the client's side is.
pub fn downstream_failure(error: StreamError) -> Failure {
    match error {
        StreamError::Protocol(what) => Failure::DownstreamError(what),
        StreamError::Reset(_) | StreamError::Refused => Failure::DownstreamGone(Gone::Stream),
        StreamError::Closed | StreamError::Io(_) => Failure::DownstreamGone(Gone::Connection),
    }
}

/// Tells outlier detection what a failure says of the endpoint.
pub fn observe(process: &Process, host: &WorkerHost, failure: &Failure) {
    match failure {
        Failure::Connect { .. } | Failure::StaleConnection | Failure::NotSent | Failure::Reset { .. } => {
            observe::unreachable(process, host);
        }
        Failure::Timeout(Limit::PerTry | Limit::Route) => observe::timed_out(process, host),
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
        | Failure::Drained => {}
    }
}

/// Tells the balancer what a failure says of the endpoint.
pub fn watched(watch: Watch, host: &WorkerHost, failure: &Failure) {
    watch.unanswered(
        host,
        match failure {
            Failure::Connect { .. } => Unanswered::Unreachable,
            Failure::Reset { .. } | Failure::Timeout(Limit::PerTry | Limit::Route) => Unanswered::Failed,
            Failure::DownstreamGone(_) | Failure::Timeout(_) => Unanswered::GivenUp,
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
            | Failure::Drained => return,
        },
    );
}

/// What ends a request from outside.
pub fn interrupted(request: &Request<'_>, cx: &mut std::task::Context<'_>) -> Poll<Failure> {
    if let Poll::Ready(gone) = request.downstream.poll_closed(cx) {
        return Poll::Ready(Failure::DownstreamGone(gone));
    }
    if request.poll_drained(cx).is_ready() {
        return Poll::Ready(Failure::Drained);
    }
    request.deadlines.poll(cx).map(Failure::Timeout)
}

fn pump_up(
    request: &Request<'_>,
    stream: &UpstreamStream,
    upload: &mut Pump,
    body: &ReplayBody<'_>,
    cx: &mut std::task::Context<'_>,
) -> Poll<Result<(), PumpError>> {
    let mut moved = 0;
    let result = upload.poll(cx, body, stream, |bytes| moved += bytes.len());
    if moved > 0 {
        request.info.bytes_received.set(request.info.bytes_received.get() + moved as u64);
        touch(request);
    }
    result
}

/// Something moved: the stream is not idle.
pub fn touch(request: &Request<'_>) {
    if request.idle_timeout.is_some() {
        request.deadlines.begin(Limit::StreamIdle, Instant::now(), request.idle_timeout);
    }
}

/// Sends the response head downstream and drives both directions to their ends.
pub async fn relay(
    request: &mut Request<'_>,
    cluster: &Rc<WorkerCluster>,
    host: &Rc<WorkerHost>,
    answered: Answered,
    body: &ReplayBody<'_>,
) {
    let Answered { mut stream, mut upload, _active, _place } = answered;
    let now = Instant::now();
    let connection = Rc::clone(request.connection);
    request.deadlines.set(Limit::PerTry, None);
    cluster.stats.upstream_rq_time.record(now.saturating_duration_since(request.info.start).as_millis() as u64);
    let connected = request.head.is_connect() && (200..300).contains(&request.response.status);
    let upgraded = request.response.status == 101 || connected;
    if connected {
        // RFC 9110 section 9.3.6: what follows has no length.
        request.response.headers.remove(HeaderId::ContentLength);
        request.response.headers.remove(HeaderId::TransferEncoding);
    }
    trace::response_head(request);
    reply::finish_head(&connection, &mut request.response, true, now);
    let end =
        !upgraded && stream.response_is_done() && !request.response_body.as_ref().is_some_and(BodyChain::changes_bytes);
    request.info.response_code.set(request.response.status);
    request.info.set_details("via_upstream");
    request.info.response_header_bytes.set(request.response.headers.byte_size() as u64);
    if connection.registered.is_asked_to_end() && !upgraded {
        request.downstream.set_close();
    } else if !upgraded {
        overload::limit_keepalive(request);
    }
    if request.downstream.send_head(&request.response, end).is_err() {
        request.info.flag(ResponseFlag::DownstreamConnectionTermination);
        return;
    }
    trace::mark(request, Mark::FirstDownstreamTx);
    if upgraded {
        connection.stats.downstream_cx_upgrades_total.increment();
        connection.stats.downstream_cx_upgrades_active.increment();
        request.downstream.upgrade();
        stream.upgrade();
        request.deadlines.set(Limit::Route, None);
        request.deadlines.set(Limit::Request, None);
        upload = Pump::default();
    }
    let mut download = Pump::default();
    let mut upload_failed = false;
    let result: Result<(), Failure> = poll_fn(|cx| {
        if !upload_failed && !upload.is_done() {
            match pump_up(request, &stream, &mut upload, body, cx) {
                // A tunnel may end on one side only.
                Poll::Ready(Ok(())) if upgraded && !connected => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => {
                    request.deadlines.set(Limit::Request, None);
                    request.info.request_end.set(Some(Instant::now()));
                }
                Poll::Ready(Err(PumpError::Source(error))) => return Poll::Ready(Err(downstream_failure(error))),
                Poll::Ready(Err(PumpError::Sink(_))) => upload_failed = true,
                Poll::Pending => {}
            }
        }
        if upload_failed {
            request.downstream.poll_discard(cx);
        }
        match pump_down(request, &stream, &mut download, cx) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(PumpError::Source(error))) => return Poll::Ready(Err(reset_of(error, false))),
            Poll::Ready(Err(PumpError::Sink(error))) => return Poll::Ready(Err(downstream_failure(error))),
            Poll::Pending => {}
        }
        interrupted(request, cx).map(Err)
    })
    .await;
    if upgraded {
        connection.stats.downstream_cx_upgrades_active.decrement();
    }
    request.trailers = download.into_trailers();
    feedback::trailers(host, &request.response.headers, request.trailers.as_ref());
    let (read, written) = stream.transferred();
    request.info.upstream_bytes_received.set(read);
    request.info.upstream_bytes_sent.set(written);
    match result {
        Ok(()) => {
            trace::mark(request, Mark::LastUpstreamRx);
            trace::mark(request, Mark::LastDownstreamTx);
            if !upload.is_done() && !upgraded {
                connection.stats.downstream_rq_response_before_rq_complete.increment();
                request.downstream.set_close();
            }
            stream.finish(Instant::now());
        }
        Err(failure) => broken(request, cluster, host, &failure),
    }
}

fn pump_down(
    request: &Request<'_>,
    stream: &UpstreamStream,
    download: &mut Pump,
    cx: &mut std::task::Context<'_>,
) -> Poll<Result<(), PumpError>> {
    let mut moved = 0;
    let seen = |bytes: &[u8]| moved += bytes.len();
    let result = match &request.response_body {
        None => download.poll(cx, stream, request.downstream, seen),
        Some(chain) => download.poll(cx, &chain.source(stream), request.downstream, seen),
    };
    if moved > 0 {
        request.info.bytes_sent.set(request.info.bytes_sent.get() + moved as u64);
        touch(request);
    }
    result
}

/// Records how the client went away.
pub fn record_gone(request: &Request<'_>, gone: Gone) {
    let (flag, details) = match gone {
        Gone::Connection => (ResponseFlag::DownstreamConnectionTermination, "downstream_remote_disconnect"),
        Gone::Stream => (ResponseFlag::DownstreamRemoteReset, "http2.remote_reset"),
    };
    request.info.flag(flag);
    request.info.set_details(details);
}

/// The response was cut off after its head had been sent.
fn broken(request: &mut Request<'_>, cluster: &WorkerCluster, host: &WorkerHost, failure: &Failure) {
    trace::fail_attempt(request, failure);
    let stats = &cluster.stats;
    let reason = match failure {
        Failure::DownstreamGone(gone) => {
            record_gone(request, *gone);
            h2::Reason::CANCEL
        }
        Failure::DownstreamError(_) => {
            request.info.flag(ResponseFlag::DownstreamProtocolError);
            request.info.set_details("http1.codec_error");
            h2::Reason::PROTOCOL_ERROR
        }
        Failure::Timeout(limit) => {
            let reply = timeout_reply(*limit);
            if let Some(flag) = reply.flag {
                request.info.flag(flag);
            }
            if *limit == Limit::Route {
                stats.upstream_rq_timeout.increment();
                host.stats.rq_timeout.increment();
            }
            request.info.set_details(reply.details);
            h2::Reason::CANCEL
        }
        Failure::Reset { reason, flag, protocol, .. } => {
            observe(&request.connection.worker.process, host, failure);
            request.connection.stats.rq_reset_after_downstream_response_started.increment();
            request.info.flag(*flag);
            let name = reason.replace(' ', "_");
            let details = match protocol {
                Some(what) => format!("upstream_reset_after_response_started{{{name}|{what}}}"),
                None => format!("upstream_reset_after_response_started{{{name}}}"),
            };
            request.info.set_details(details);
            h2::Reason::INTERNAL_ERROR
        }
        _ => {
            request.info.flag(ResponseFlag::LocalReset);
            h2::Reason::CANCEL
        }
    };
    host.stats.rq_error.increment();
    request.downstream.abort(reason);
}
