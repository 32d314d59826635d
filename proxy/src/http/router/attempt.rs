//! One try of a request: connection, request out, response back.
//!
//! Owns the loop that drives both directions in one task until the response head is there. Never decides on retries.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use outrigger_config::route::Forward;
use outrigger_policy::breaker::Permit;

use super::body::ReplayBody;
use super::failure::{Failure, downstream_failure, reset_of};
use super::timeout::Timeouts;
use crate::accesslog::LogType;
use crate::explain::Cause;
use crate::health::observe;
use crate::http::h1::parse::Framing;
use crate::http::headers::HeaderId;
use crate::http::manager::request::Request;
use crate::http::message::{RequestHead, ResponseHead};
use crate::http::seam::{BodySink, Pump, PumpError, StreamError};
use crate::moments::Milestone;
use crate::stream::Phase;
use crate::trace::{self, Mark, Opening};
use crate::upstream::clusters::{Target, WorkerCluster};
use crate::upstream::connect::ConnectError;
use crate::upstream::gate::Place;
use crate::upstream::pool::{self, PoolError, Wanted};
use crate::upstream::preconnect::preconnect;
use crate::upstream::stream::UpstreamStream;
use crate::upstream::worker_host::WorkerHost;
use crate::worker::deadlines::Limit;

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
    pub(super) stream: UpstreamStream,
    pub(super) upload: Pump,
    pub(super) timeouts: Timeouts,
    /// The upstream takes no more of the request.
    pub(super) upload_failed: bool,
    /// The client sends no more of it.
    failed: Option<Failure>,
    pub(super) counted: InFlight,
}

/// What a request in flight counts in, until this is dropped.
pub(super) struct InFlight {
    _active: Active,
    _limit: Counted,
}

/// The limit on requests in flight.
enum Counted {
    /// That of the queue that it may have waited in.
    ByQueue { _place: Place },
    /// `max_requests`, as long as it has a stream: those that wait for one are pending.
    ByBreaker { _permit: Permit },
}

impl Answered {
    /// Nothing of the response is left to come.
    pub fn is_complete(&self) -> bool {
        self.stream.response_is_done()
    }

    /// The response, whose head has been read.
    pub fn stream(&self) -> &UpstreamStream {
        &self.stream
    }

    /// Sends what can be sent of the request while somebody looks at the response. What fails is met again by whoever
    /// relays the response.
    pub fn send_on(&mut self, request: &Request<'_>, body: &ReplayBody<'_>, cx: &mut std::task::Context<'_>) {
        if !self.upload.is_done() && !self.upload_failed && !request.head.is_tunnel() {
            match pump_up(request, &self.stream, &mut self.upload, body, cx) {
                Poll::Ready(Ok(())) => {
                    request.deadlines.set(Limit::Request, None);
                    request.info.request_end.set(Some(Instant::now()));
                }
                Poll::Ready(Err(PumpError::Sink(_))) => self.upload_failed = true,
                Poll::Ready(Err(PumpError::Source(error))) => self.failed = Some(downstream_failure(error)),
                Poll::Pending => {}
            }
        }
    }

    /// Why the request can be sent no further.
    pub fn take_failure(&mut self) -> Option<Failure> {
        self.failed.take()
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
        self.cluster.began(self.action.priority);
        let limits = self.request.deadlines;
        let now = Instant::now();
        let info = &self.request.info;
        info.moments.begin_try();
        info.reached(Milestone::UpstreamBegin, now);
        info.cause.set(None);
        let start = info.start;
        limits.set(Limit::StreamDuration, self.timeouts.stream.map(|limit| start + limit));
        if let Some(limit) = self.timeouts.idle {
            self.request.idle_timeout = Some(limit).filter(|limit| !limit.is_zero());
            limits.begin(Limit::StreamIdle, now, self.request.idle_timeout);
        }
        if self.request.info.request_end.get().is_some() {
            self.start_response_limits(now);
        }
        self.request.info.phase.set(Phase::Connect);
        let counted = self.acquire(now).await.and_then(|stream| self.count(stream, place));
        let (stream, limit) = match counted {
            Ok(counted) => counted,
            Err(failure) => {
                if matches!(failure, Failure::DownstreamGone(_)) {
                    self.cluster.stats.upstream_rq_cancelled.increment();
                }
                return Err(failure);
            }
        };
        observe::reached(self.host);
        self.request.route_counts.began();
        self.request.info.upstream_local.set(stream.local_address());
        self.request.info.upstream_version.set(Some(stream.version()));
        let mut upload = Pump::default();
        self.request.info.phase.set(Phase::Send);
        let result = self.exchange(&stream, &mut upload).await;
        match result {
            Ok(()) => {
                self.request.info.response_start.set(Some(Instant::now()));
                self.request.info.phase.set(Phase::Receive);
                let counted = InFlight { _active: active, _limit: limit };
                let timeouts = *self.timeouts;
                Ok(Answered { stream, upload, timeouts, upload_failed: false, failed: None, counted })
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
                self.request.route_counts.timed_out();
                self.host.stats.rq_timeout.increment();
            }
            Failure::Timeout(Limit::StreamDuration) => stats.upstream_rq_max_duration_reached.increment(),
            Failure::Reset { protocol: Some(_), .. } => self.cluster.stats.upstream_cx_protocol_error.increment(),
            _ => {}
        }
    }

    async fn acquire(&mut self, began: Instant) -> Result<UpstreamStream, Failure> {
        let request = &*self.request;
        let wanted = Wanted {
            priority: self.action.priority,
            downstream: request.head.version,
            host: pool::host_of(&request.head, &self.host.node.config.http),
            upgrade: request.head.is_tunnel(),
            alpn: request.alpn.as_ref(),
            connection: Some(&request.connection.info),
        };
        let terminated = self.action.terminates_connect && request.head.is_connect();
        let ready = if terminated { None } else { pool::ready(self.host, wanted) };
        if self.host.node.config.preconnect.is_some() && !terminated {
            preconnect(&request.connection.worker, self.cluster, self.host, wanted, ready.is_some());
        }
        if let Some(stream) = ready {
            acquired(request, &stream, began);
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
        let result = poll_fn(|cx| {
            if let Poll::Ready(acquired) = acquiring.as_mut().poll(cx) {
                return Poll::Ready(Ok(acquired));
            }
            self.interrupted(cx).map(Err)
        });
        match result.await? {
            Ok(stream) => {
                acquired(self.request, &stream, Instant::now());
                trace::acquired(self.request, began, stream.opening());
                Ok(stream)
            }
            Err(PoolError::PendingOverflow) => {
                let limit = self.cluster.limits(self.action.priority).1.max_pending_requests;
                let field = "CircuitBreakers.thresholds.max_pending_requests";
                self.request.info.cause.set(Some(Cause::Count { limit, field }));
                Err(Failure::Overflow)
            }
            Err(PoolError::RequestOverflow) => Err(self.too_many_requests()),
            Err(PoolError::Connect(ConnectError::Timeout)) => {
                let limit = Some(self.host.node.config.connect_timeout);
                self.request.info.cause.set(Some(Cause::Time { limit, field: "Cluster.connect_timeout" }));
                Err(Failure::Connect { reason: "connection timeout".into(), timeout: true })
            }
            Err(PoolError::Connect(error)) => Err(Failure::Connect { reason: error.to_string(), timeout: false }),
        }
    }

    fn count(&self, stream: UpstreamStream, place: Option<Place>) -> Result<(UpstreamStream, Counted), Failure> {
        if let Some(place) = place {
            return Ok((stream, Counted::ByQueue { _place: place }));
        }
        match pool::count(self.cluster, self.action.priority, stream) {
            Ok((stream, permit)) => Ok((stream, Counted::ByBreaker { _permit: permit })),
            Err(_) => Err(self.too_many_requests()),
        }
    }

    fn too_many_requests(&self) -> Failure {
        let limit = self.cluster.limits(self.action.priority).1.max_requests;
        let field = "CircuitBreakers.thresholds.max_requests";
        self.request.info.cause.set(Some(Cause::Count { limit, field }));
        Failure::Overflow
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
        let mut head_waited = false;
        let mut upload_failed = false;
        let result = poll_fn(|cx| {
            if upgrade && head_sent {
                let _ = BodySink::poll_flush(stream, cx);
            }
            if !head_sent {
                match stream.poll_send_head(cx, &self.request.head, framing, options) {
                    Poll::Ready(Ok(())) => {
                        head_sent = true;
                        let info = &self.request.info;
                        match info.moments.offset(Milestone::PoolReady).filter(|_| !head_waited) {
                            Some(_) => info.moments.copy(Milestone::PoolReady, Milestone::UpstreamTxBegin),
                            None => info.reached(Milestone::UpstreamTxBegin, Instant::now()),
                        }
                        trace::mark(self.request, Mark::FirstUpstreamTx);
                    }
                    Poll::Ready(Err(StreamError::Refused)) => return Poll::Ready(Err(Failure::NotSent)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(reset_of(error, stream.is_reused()))),
                    Poll::Pending => {
                        head_waited = true;
                        return self.interrupted(cx).map(Err);
                    }
                }
                if upgrade {
                    let _ = BodySink::poll_flush(stream, cx);
                }
            }
            if !upload_failed && !upload.is_done() && !upgrade {
                match pump_up(self.request, stream, upload, self.body, cx) {
                    Poll::Ready(Ok(())) => {
                        let now = Instant::now();
                        self.request.info.phase.set(Phase::Wait);
                        trace::mark(self.request, Mark::LastUpstreamTx);
                        self.request.info.reached(Milestone::UpstreamTxEnd, now);
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
            interrupted_holding(self.request, || stream.held(), cx).map(Err)
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

/// Records when a try got its connection, and when that was made.
fn acquired(request: &Request<'_>, stream: &UpstreamStream, now: Instant) {
    let info = &request.info;
    info.reached(Milestone::PoolReady, now);
    let counted = stream.counted();
    info.upstream_connection.set(counted.id());
    if let Some(tls) = counted.tls() {
        *info.upstream_tls.borrow_mut() = Some(Arc::clone(tls));
    }
    let Opening { start, connected, ready, secure } = counted.opening();
    info.reached(Milestone::ConnectBegin, start);
    if let Some(connected) = connected {
        info.reached(Milestone::Connected, connected);
    }
    if let Some(ready) = ready.filter(|_| secure) {
        info.reached(Milestone::HandshakeEnd, ready);
    }
    if request.filters.router.log_on_upstream_stream {
        request.log_try(LogType::UpstreamPoolReady);
    }
}

/// Records a limit that the connection manager sets, unless it is known already what set it.
pub fn record_limit(request: &Request<'_>, limit: Limit) {
    if request.info.cause.get().is_some() {
        return;
    }
    let config = &request.connection.node.config;
    let (limit, field) = match limit {
        Limit::Request => (config.request_timeout, "HttpConnectionManager.request_timeout"),
        Limit::RequestHeaders => (config.request_headers_timeout, "HttpConnectionManager.request_headers_timeout"),
        Limit::StreamIdle => (request.idle_timeout, "HttpConnectionManager.stream_idle_timeout"),
        Limit::StreamDuration => (config.max_stream_duration, "HttpProtocolOptions.max_stream_duration"),
        _ => return,
    };
    request.info.cause.set(Some(Cause::Time { limit, field }));
}

/// What ends a request from outside. `held` says how many bytes whoever waits holds for it, and is asked only under
/// pressure.
pub fn interrupted_holding(
    request: &Request<'_>,
    held: impl FnOnce() -> usize,
    cx: &mut std::task::Context<'_>,
) -> Poll<Failure> {
    if request.is_weighed() {
        request.weigh(held(), cx);
    }
    interrupted(request, cx)
}

/// What ends a request from outside.
pub fn interrupted(request: &Request<'_>, cx: &mut std::task::Context<'_>) -> Poll<Failure> {
    if let Poll::Ready(gone) = request.downstream.poll_closed(cx) {
        return Poll::Ready(Failure::DownstreamGone(gone));
    }
    if request.poll_drained(cx).is_ready() {
        return Poll::Ready(Failure::Drained);
    }
    request.poll_limit(cx).map(Failure::Timeout)
}

pub fn pump_up(
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
