//! Tries that were not answered within `per_try_timeout` and go on all the same, beside the one that takes their place
//! (`HedgePolicy.hedge_on_per_try_timeout`).
//!
//! Owns these tries until one of them has a response that counts, and what is recorded of the others. They move whenever
//! whoever drives the request waits for anything. Never begins a try, and never decides on retries.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use outrigger_config::route::RetryPolicy;
use outrigger_policy::retry;

use super::attempt::{Answered, Unanswered, interrupted, poll_head};
use super::body::{ReplayBody, Rest};
use super::failure::Failure;
use super::passage::Passage;
use super::timeout::Timeouts;
use super::{grpc_status, outcome};
use crate::accesslog::LogType;
use crate::health::observe;
use crate::http::manager::request::Request;
use crate::http::seam::{BodySink, PumpError};
use crate::stream::TryFacts;
use crate::trace;
use crate::upstream::clusters::WorkerCluster;
use crate::upstream::feedback::{self, Watch};
use crate::upstream::worker_host::WorkerHost;
use crate::worker::deadlines::Limit;

/// What a request keeps for tries with limits of their own that outlast a wait: there only where a policy sets some.
pub struct Tries {
    /// How long nothing may move in a try.
    idle: Option<Duration>,
    /// Set if a try that is late goes on.
    hedge: Option<Hedge>,
}

struct Hedge {
    policy: Option<Arc<RetryPolicy>>,
    late: RefCell<Vec<LateTry>>,
    /// The one whose end counts.
    settled: RefCell<Option<Settled>>,
    /// Passages of those that are over, which know nothing of it yet.
    over: RefCell<Vec<Passage>>,
    /// No other try is under way, or about to begin.
    alone: Cell<bool>,
}

/// A try, and whether its response head has come.
pub(super) type Settled = (LateTry, Result<(), Failure>);

/// A try that goes on beside others.
pub(super) struct LateTry {
    /// The cluster of the route, for which outcomes count.
    pub cluster: Rc<WorkerCluster>,
    pub host: Rc<WorkerHost>,
    pub watch: Watch,
    passage: Option<Passage>,
    /// Another try has begun in its place, so that it leads to no further one.
    pub is_replaced: bool,
    exchange: Unanswered,
    /// What is left to be sent of the body.
    rest: Option<Rest>,
    facts: TryFacts,
    span: Option<trace::Aside>,
}

impl Tries {
    /// What tries with these limits need, if anything.
    pub fn new(timeouts: &Timeouts, policy: Option<&Arc<RetryPolicy>>) -> Option<Box<Self>> {
        let hedge = timeouts.hedges.then(|| Hedge {
            policy: policy.cloned(),
            late: RefCell::default(),
            settled: RefCell::default(),
            over: RefCell::default(),
            alone: Cell::new(false),
        });
        let idle = timeouts.per_try_idle;
        (hedge.is_some() || idle.is_some()).then(|| Box::new(Self { idle, hedge }))
    }

    /// Whether a try that is late goes on.
    pub fn hedges(&self) -> bool {
        self.hedge.is_some()
    }

    /// How long nothing may move in a try.
    pub fn idle(&self) -> Option<Duration> {
        self.idle
    }

    /// Bytes that are held for tries that are late.
    pub fn held(&self) -> usize {
        let Some(hedge) = &self.hedge else { return 0 };
        let held = |late: &LateTry| late.exchange.stream.held() + late.rest.as_ref().map_or(0, Rest::held);
        hedge.late.borrow().iter().map(held).sum()
    }

    /// Moves the tries that are late; ready once the end of one of them counts.
    pub fn poll(&self, request: &Request<'_>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(hedge) = &self.hedge else { return Poll::Pending };
        if hedge.settled.borrow().is_some() {
            return Poll::Ready(());
        }
        let mut tries = hedge.late.borrow_mut();
        let mut index = 0;
        while index < tries.len() {
            let Poll::Ready(ended) = tries[index].poll(request, cx) else {
                index += 1;
                continue;
            };
            let late = tries.remove(index);
            let counts = match &ended {
                Ok(()) => !hedge.is_retriable(request, &late),
                Err(_) => false,
            };
            if counts || hedge.alone.get() && (tries.is_empty() || !late.is_replaced) {
                *hedge.settled.borrow_mut() = Some((late, ended));
                return Poll::Ready(());
            }
            late.pass_over(request, &ended);
        }
        Poll::Pending
    }
}

impl Hedge {
    fn is_retriable(&self, request: &Request<'_>, late: &LateTry) -> bool {
        let Some(policy) = self.policy.as_deref() else { return false };
        retry::is_retriable(policy, &outcome(request, Some(policy), &late.exchange.response))
    }
}

fn hedge<'a>(request: &'a Request<'_>) -> Option<&'a Hedge> {
    request.tries.as_ref()?.hedge.as_ref()
}

/// Whether any try is late.
pub(super) fn are_waited_for(request: &Request<'_>) -> bool {
    hedge(request).is_some_and(|hedge| !hedge.late.borrow().is_empty())
}

/// A try begins beside those that are late.
pub(super) fn are_joined(request: &Request<'_>) {
    if let Some(hedge) = hedge(request) {
        hedge.alone.set(false);
    }
}

/// The end of a late try that counts, once there is one: those that are answered as the retry policy does not want it
/// count only if nothing else is left. `None` if no try is late.
///
/// # Errors
/// What ends the request meanwhile.
pub(super) async fn next(request: &Request<'_>) -> Result<Option<Settled>, Failure> {
    let Some(hedge) = hedge(request) else { return Ok(None) };
    hedge.alone.set(true);
    if hedge.late.borrow().is_empty() && hedge.settled.borrow().is_none() {
        return Ok(None);
    }
    let interrupted = poll_fn(|cx| interrupted(request, cx)).await;
    match hedge.settled.take() {
        Some(settled) => Ok(Some(settled)),
        None => Err(interrupted),
    }
}

/// The passages of tries that are over and were not told: who drives the request tells them, as soon as it does not wait.
pub(super) fn take_over(request: &Request<'_>) -> Vec<Passage> {
    hedge(request).map(|hedge| hedge.over.take()).unwrap_or_default()
}

/// Ends all tries that are late: another one counts, or `failure` has ended the request. Returns how many there were
/// whose time was up, as Envoy counts a response for each of these.
pub(super) fn end_all(request: &Request<'_>, failure: Option<&Failure>) -> usize {
    let Some(hedge) = hedge(request) else { return 0 };
    let mut late = hedge.late.take();
    late.extend(hedge.settled.take().map(|(late, _)| late));
    let timed_out = matches!(failure, Some(Failure::Timeout(Limit::Route)));
    let mut beside = late.len();
    for late in late {
        if timed_out {
            late.cluster.stats.upstream_rq_timeout.increment();
            request.route_counts.timed_out();
            late.host.stats.rq_timeout.increment();
            late.host.stats.rq_error.increment();
        }
        late.watch.unanswered(&late.host, feedback::Unanswered::GivenUp);
        late.conclude(request, failure);
    }
    if hedge.alone.get() {
        // The last of them is the one that the request's own end is counted for.
        beside = beside.saturating_sub(1);
    }
    if timed_out { beside } else { 0 }
}

impl LateTry {
    /// The try under way in `request` goes on beside the next one.
    pub fn new(
        request: &mut Request<'_>,
        exchange: Box<Unanswered>,
        body: &ReplayBody<'_>,
        cluster: &Rc<WorkerCluster>,
        (host, watch, passage): (Rc<WorkerHost>, Watch, Option<Passage>),
    ) -> Self {
        let cluster = Rc::clone(cluster);
        let rest = (!exchange.upload.is_done() && !exchange.upload_failed).then(|| body.rest());
        let span = trace::set_aside(request);
        let facts = request.info.facts_of_try();
        Self { cluster, host, watch, passage, is_replaced: false, exchange: *exchange, rest, facts, span }
    }

    /// Keeps it until its end.
    pub fn keep(self, request: &Request<'_>) {
        if let Some(hedge) = hedge(request) {
            hedge.late.borrow_mut().push(self);
        }
    }

    fn poll(&mut self, request: &Request<'_>, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let Unanswered { stream, upload, upload_failed, response, .. } = &mut self.exchange;
        let stream = &*stream;
        if request.head.is_tunnel() {
            let _ = BodySink::poll_flush(stream, cx);
        } else if let Some(rest) = &self.rest
            && !*upload_failed
            && let Poll::Ready(Err(PumpError::Sink(_))) = upload.poll(cx, rest, stream, |_| {})
        {
            *upload_failed = true;
        }
        poll_head(stream, &request.head, response, cx)
    }

    /// Makes it the try under way of `request`, answered if it was.
    pub fn take_up(
        self,
        request: &mut Request<'_>,
        ended: Result<(), Failure>,
        body: &ReplayBody<'_>,
        timeouts: &Timeouts,
    ) -> (Result<Answered, Failure>, Option<Passage>) {
        request.info.take_up_try(&self.facts);
        trace::take_up(request, self.span);
        if let Some(rest) = &self.rest {
            body.go_on(rest);
        }
        (ended.map(|()| self.exchange.answered(request, timeouts)), self.passage)
    }

    /// Its end does not count: others are under way.
    fn pass_over(self, request: &Request<'_>, ended: &Result<(), Failure>) {
        self.host.stats.rq_error.increment();
        match ended {
            Ok(()) => {
                let response = &self.exchange.response;
                let grpc = if request.head.is_grpc() { grpc_status(response) } else { None };
                let process = &request.connection.worker.process;
                observe::response(process, &self.host, response.status, grpc, &response.headers);
                let is_error = observe::status(response.status, grpc) >= 500;
                self.watch.answered(&self.host, is_error, Some(&response.headers));
                self.conclude(request, None);
            }
            Err(failure) => {
                super::failure::watched(self.watch, &self.host, failure);
                let status = failure.reply(request).status;
                self.cluster.stats.response(status);
                self.conclude(request, Some(failure));
            }
        }
    }

    /// Ends its span, writes its entry into the router's access logs, and leaves its passage to be told.
    fn conclude(self, request: &Request<'_>, failure: Option<&Failure>) {
        if !request.connection.node.upstream_logs.is_empty() {
            let (info, flags) = (&request.info, request.info.flags.get());
            let current = info.replace_try(&self.facts);
            if let Some(flag) = failure.and_then(|failure| failure.reply(request).flag) {
                info.flag(flag);
            }
            request.log_try(LogType::UpstreamEnd);
            info.flags.set(flags);
            info.replace_try(&current);
        }
        if let Some(span) = self.span {
            trace::end_aside(request, span, &self.exchange.response, failure);
        }
        if let Some((hedge, passage)) = hedge(request).zip(self.passage) {
            hedge.over.borrow_mut().push(passage);
        }
        request.connection.worker.heads.give_response(self.exchange.response);
    }
}
