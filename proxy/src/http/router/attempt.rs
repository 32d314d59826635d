//! One try of a request: connection, request out, response back.
//!
//! Owns the loop that drives both directions in one task until the response head is there. Never decides on retries.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use outrigger_config::route::{ConnectEnd, Forward};
use outrigger_policy::breaker::Permit;

use super::body::ReplayBody;
use super::failure::{Failure, downstream_failure, reset_of};
use super::timeout::Timeouts;
use crate::accesslog::LogType;
use crate::explain::Cause;
use crate::filter_state::SharedObjects;
use crate::health::observe;
use crate::http::h1::parse::Framing;
use crate::http::headers::HeaderId;
use crate::http::manager::request::Request;
use crate::http::message::{RequestHead, ResponseHead, Version};
use crate::http::seam::{BodySink, Pump, PumpError, StreamError};
use crate::moments::Milestone;
use crate::stream::Phase;
use crate::trace::{self, Mark, Opening};
use crate::upstream::clusters::{Target, WorkerCluster};
use crate::upstream::connect::ConnectError;
use crate::upstream::gate::Place;
use crate::upstream::pool::{self, PoolError, Wanted};
use crate::upstream::preconnect::preconnect;
use crate::upstream::proxy_header;
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

/// How a try ended, as far as it is driven here.
#[expect(clippy::large_enum_variant, reason = "most tries are answered, and a box for each would cost more")]
pub(super) enum Ended {
    /// Its response head is in the request.
    Answered(Answered),
    /// It failed.
    Failed(Failure),
    /// It was late, and goes on all the same.
    Late(Box<Unanswered>),
}

/// A try that was sent, and has no response yet.
pub(super) struct Unanswered {
    pub stream: UpstreamStream,
    pub upload: Pump,
    /// The upstream takes no more of the request.
    pub upload_failed: bool,
    pub response: ResponseHead,
    counted: InFlight,
}

impl Unanswered {
    /// The response head has come: it goes to `request`.
    pub fn answered(self, request: &mut Request<'_>, timeouts: &Timeouts) -> Answered {
        let Self { stream, upload, upload_failed, response, counted } = self;
        request.response = response;
        request.info.response_start.set(Some(Instant::now()));
        request.info.phase.set(Phase::Receive);
        Answered { stream, upload, timeouts: *timeouts, upload_failed, failed: None, counted }
    }
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

/// Counts a request towards an endpoint, until it is dropped: for balancing from when the endpoint was picked, in stats, as Envoy
/// does, from when it has a stream.
pub struct Active {
    cluster: Rc<WorkerCluster>,
    host: Rc<WorkerHost>,
    has_stream: bool,
}

impl Active {
    /// One request more for an endpoint that was picked.
    pub fn new(cluster: &Rc<WorkerCluster>, host: &Rc<WorkerHost>) -> Self {
        host.begin();
        Self { cluster: Rc::clone(cluster), host: Rc::clone(host), has_stream: false }
    }

    /// It has a stream.
    pub fn has_stream(&mut self) {
        self.has_stream = true;
        self.cluster.stats.upstream_rq_total.increment();
        self.cluster.stats.upstream_rq_active.increment();
        self.host.stats.rq_total.increment();
        self.host.stats.rq_active.increment();
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.host.end();
        if self.has_stream {
            self.cluster.stats.upstream_rq_active.decrement();
            self.host.stats.rq_active.decrement();
        }
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

    /// Drives the try until there is a response head in the request, a failure, or it is late and goes on. `place` is its
    /// place at the endpoint.
    pub(super) async fn until_head(&mut self, place: Option<Place>) -> Ended {
        let mut active = Active::new(self.cluster, self.host);
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
            self.start_route_limit(now);
            if !self.hedges() {
                self.start_try_limits(now);
            }
        }
        self.request.info.phase.set(Phase::Connect);
        let counted = self.acquire(now).await.and_then(|stream| self.count(stream, place));
        let (stream, limit) = match counted {
            Ok(counted) => counted,
            Err(failure) => {
                if matches!(failure, Failure::DownstreamGone(_) | Failure::Overtaken) {
                    self.cluster.stats.upstream_rq_cancelled.increment();
                }
                return Ended::Failed(failure);
            }
        };
        active.has_stream();
        observe::reached(self.host);
        self.request.route_counts.began();
        self.request.info.upstream_local.set(stream.local_address());
        self.request.info.upstream_version.set(Some(stream.version()));
        let counted = InFlight { _active: active, _limit: limit };
        self.request.info.phase.set(Phase::Send);
        let response = std::mem::take(&mut self.request.response);
        let (upload, upload_failed) = (Pump::default(), false);
        let mut exchange = Unanswered { stream, upload, upload_failed, response, counted };
        match self.exchange(&mut exchange).await {
            Ok(()) => Ended::Answered(exchange.answered(self.request, self.timeouts)),
            Err(Failure::Timeout(Limit::PerTry | Limit::PerTryIdle)) if self.goes_on(&exchange) => {
                Ended::Late(Box::new(exchange))
            }
            Err(failure) => {
                self.record(&failure);
                exchange.response.clear();
                self.request.response = exchange.response;
                Ended::Failed(failure)
            }
        }
    }

    fn hedges(&self) -> bool {
        self.timeouts.hedges
    }

    /// Whether it goes on although it is late: what is left to be sent of it must not be what the next one needs.
    fn goes_on(&self, exchange: &Unanswered) -> bool {
        self.hedges() && (exchange.upload.is_done() || exchange.upload_failed || self.body.is_whole())
    }

    /// One limit for all tries.
    fn start_route_limit(&self, now: Instant) {
        let limits = self.request.deadlines;
        if !limits.is_set(Limit::Route) {
            limits.set(Limit::Route, self.timeouts.route.map(|limit| now + limit));
        }
    }

    fn start_try_limits(&self, now: Instant) {
        let limits = self.request.deadlines;
        limits.set(Limit::PerTry, self.timeouts.per_try.map(|limit| now + limit));
        limits.set(Limit::PerTryIdle, self.timeouts.per_try_idle.map(|limit| now + limit));
    }

    fn record(&self, failure: &Failure) {
        let stats = &self.route_cluster.stats;
        match failure {
            Failure::Timeout(Limit::PerTry) => {
                stats.upstream_rq_per_try_timeout.increment();
                self.host.stats.rq_timeout.increment();
            }
            Failure::Timeout(Limit::PerTryIdle) => {
                stats.upstream_rq_per_try_idle_timeout.increment();
                self.host.stats.rq_timeout.increment();
            }
            Failure::Timeout(Limit::Route) => {
                stats.upstream_rq_timeout.increment();
                self.request.route_counts.timed_out();
                self.host.stats.rq_timeout.increment();
            }
            Failure::Timeout(Limit::StreamDuration) => stats.upstream_rq_max_duration_reached.increment(),
            // A connection that carries several streams counts for itself, once for all of them.
            Failure::Reset { protocol: Some(_), .. }
                if self.request.info.upstream_version.get() != Some(Version::Http2) =>
            {
                self.cluster.stats.upstream_cx_protocol_error.increment();
            }
            _ => {}
        }
    }

    async fn acquire(&mut self, began: Instant) -> Result<UpstreamStream, Failure> {
        let request = &*self.request;
        let objects = {
            let of_connection = request.connection.info.filter_state.borrow();
            SharedObjects::of(&of_connection, Some(&request.info.filter_state.borrow()))
        };
        let wanted = Wanted {
            priority: self.action.priority,
            downstream: request.head.version,
            host: pool::host_of(&request.head, &self.host.node.config.http),
            upgrade: request.head.is_tunnel(),
            alpn: request.alpn.as_ref(),
            connection: Some(&request.connection.info),
            objects: objects.as_deref(),
        };
        let ends_here = ends_here(self.action, &request.head);
        let ready = if ends_here.is_some() { None } else { pool::ready(self.host, wanted) };
        if self.host.node.config.preconnect.is_some() && ends_here.is_none() {
            preconnect(&request.connection.worker, self.cluster, self.host, wanted, ready.is_some());
        }
        if let Some(stream) = ready {
            acquired(request, &stream, began);
            return Ok(stream);
        }
        // Boxed: the state of connecting is large, and most requests never need it.
        let (worker, cluster, host) = (&request.connection.worker, self.cluster, self.host);
        let mut acquiring = Box::pin(async move {
            match ends_here {
                Some(end) => {
                    let info = &request.connection.info;
                    let header = end.proxy_header.as_ref().map(|header| proxy_header::on_behalf(header, info));
                    pool::open_raw(worker, cluster, host, wanted, header.as_deref()).await
                }
                None => pool::acquire(worker, cluster, host, wanted).await,
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

    async fn exchange(&mut self, exchange: &mut Unanswered) -> Result<(), Failure> {
        let Unanswered { stream, upload, upload_failed, response, .. } = exchange;
        let stream = &*stream;
        let options = &self.host.node.config.http;
        let upgrade = self.request.head.is_tunnel();
        let framing = if upgrade { Framing::None } else { self.request.framing };
        let mut head_sent = false;
        let mut head_waited = false;
        poll_fn(|cx| {
            if upgrade && head_sent {
                let _ = BodySink::poll_flush(stream, cx);
            }
            if !head_sent {
                match stream.poll_send_head(cx, &self.request.head, framing, options) {
                    Poll::Ready(Ok(())) => {
                        head_sent = true;
                        self.head_sent(head_waited);
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
            if !*upload_failed && !upload.is_done() && !upgrade {
                match pump_up(self.request, stream, upload, self.body, cx) {
                    Poll::Ready(Ok(())) => self.request_sent(),
                    Poll::Ready(Err(PumpError::Source(error))) => return Poll::Ready(Err(downstream_failure(error))),
                    // An upstream may answer and close before it has read everything: its answer counts.
                    Poll::Ready(Err(PumpError::Sink(_))) => *upload_failed = true,
                    Poll::Pending => {}
                }
            }
            match poll_head(stream, &self.request.head, response, cx) {
                Poll::Ready(head) => Poll::Ready(head),
                Poll::Pending => interrupted_holding(self.request, || stream.held(), cx).map(Err),
            }
        })
        .await
    }

    /// The head was handed over, maybe after a wait.
    fn head_sent(&self, waited: bool) {
        let info = &self.request.info;
        match info.moments.offset(Milestone::PoolReady).filter(|_| !waited) {
            Some(_) => info.moments.copy(Milestone::PoolReady, Milestone::UpstreamTxBegin),
            None => info.reached(Milestone::UpstreamTxBegin, Instant::now()),
        }
        trace::mark(self.request, Mark::FirstUpstreamTx);
        if self.hedges() && info.request_end.get().is_some() {
            self.start_try_limits(Instant::now());
        }
    }

    /// All of the request was handed over.
    fn request_sent(&self) {
        let info = &self.request.info;
        info.phase.set(Phase::Wait);
        trace::mark(self.request, Mark::LastUpstreamTx);
        if self.request.framing == Framing::None && info.request_end.get().is_some() {
            // There was nothing but the head, which went in the same moment.
            return info.moments.copy(Milestone::UpstreamTxBegin, Milestone::UpstreamTxEnd);
        }
        let now = Instant::now();
        info.reached(Milestone::UpstreamTxEnd, now);
        if info.request_end.get().is_none() {
            info.request_end.set(Some(now));
            self.request.deadlines.set(Limit::Request, None);
            self.start_route_limit(now);
            self.start_try_limits(now);
        }
    }
}

/// Ready with the response head to the request `head`.
pub(super) fn poll_head(
    stream: &UpstreamStream,
    head: &RequestHead,
    response: &mut ResponseHead,
    cx: &mut std::task::Context<'_>,
) -> Poll<Result<(), Failure>> {
    match stream.poll_response(cx, response) {
        Poll::Ready(Ok(())) if response.status == 101 && !head.is_tunnel() => {
            let error = StreamError::Protocol("switching protocols without being asked".into());
            Poll::Ready(Err(reset_of(error, false)))
        }
        Poll::Ready(Ok(())) => {
            if let UpstreamStream::H2(_) = stream {
                switch_protocols(head, response);
            }
            Poll::Ready(Ok(()))
        }
        Poll::Ready(Err(error)) => Poll::Ready(Err(reset_of(error, stream.is_reused()))),
        Poll::Pending => Poll::Pending,
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

/// How the route ends CONNECT, or POST, here: what comes is not a message for the upstream.
pub(super) fn ends_here<'a>(action: &'a Forward, head: &RequestHead) -> Option<&'a ConnectEnd> {
    let end = action.connect.as_deref()?;
    let extended = !head.protocol().is_empty();
    (!extended && end.takes(head.method())).then_some(end)
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
    let Opening { start, waited: _, connected, ready, secure } = counted.opening();
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

/// What ends a request, or what is done for it at this moment, from outside.
pub fn interrupted(request: &Request<'_>, cx: &mut std::task::Context<'_>) -> Poll<Failure> {
    if let Some(tries) = &request.tries
        && tries.poll(request, cx).is_ready()
    {
        return Poll::Ready(Failure::Overtaken);
    }
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
    let mut moved = false;
    let result = upload.poll(cx, body, stream, |bytes| moved |= !bytes.is_empty());
    if moved {
        touch(request, Instant::now());
    }
    result
}

/// Something moved `now`: the stream is not idle.
pub fn touch(request: &Request<'_>, now: Instant) {
    if request.idle_timeout.is_some() {
        request.deadlines.begin(Limit::StreamIdle, now, request.idle_timeout);
    }
    if let Some(limit) = request.tries.as_ref().and_then(|tries| tries.idle())
        && request.deadlines.is_set(Limit::PerTryIdle)
    {
        request.deadlines.set(Limit::PerTryIdle, Some(now + limit));
    }
}
