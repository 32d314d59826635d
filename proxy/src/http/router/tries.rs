//! The tries of one request: which comes next, and what becomes of each.
//!
//! Owns their order, what is counted of each, and when the request is given up. Never drives a try (see `attempt`, and
//! `late` for those that go on beside others).

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use outrigger_policy::retry::{self, Decision, GiveUp, Outcome};

use super::attempt::{self, Answered, Attempt, Ended, Unanswered};
use super::body::ReplayBody;
use super::failure::{self, Failure};
use super::late::{self, LateTry};
use super::passage::Passage;
use super::{Forwarding, count_local_reply, count_outcome, end, grpc_status, outcome, prepare, redirect, relay};
use crate::accesslog::LogType;
use crate::graph::facts;
use crate::health::observe;
use crate::http::filter::Turn;
use crate::http::headers::HeaderId;
use crate::http::manager::request::{Request, send_local};
use crate::stream::{Phase, ResponseFlag};
use crate::trace;
use crate::upstream::feedback::Watch;
use crate::upstream::response_stats::ResponseOrigin;
use crate::upstream::worker_host::WorkerHost;
use crate::worker::deadlines::Limit;

/// A request that could not leave on a connection that was closing is given another one, so many times.
const MAX_RESENDS: u32 = 4;

/// What comes after a try.
enum Next {
    /// Another one.
    Again,
    /// One that was late: no other is left, or it was answered first.
    Late,
    /// Nothing: the request has its end.
    Over,
}

/// A try that has come to an end.
struct Tried {
    ended: Result<Answered, Failure>,
    host: Rc<WorkerHost>,
    passage: Option<Passage>,
    watch: Watch,
    /// Another one has taken its place already, so that none follows from its end.
    is_replaced: bool,
}

/// Whether a try is repeated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Retry {
    /// It is, after this time.
    After(Duration),
    /// The policy does not name its end.
    NotWanted,
    /// It would be, if that were possible.
    NotPossible,
}

impl Forwarding<'_, '_> {
    /// Tries until the request has its end.
    pub(super) async fn run(&mut self, body: &ReplayBody<'_>) {
        loop {
            let mut next = self.try_once(body).await;
            while let Next::Late = next {
                next = Box::pin(self.take_late(body)).await;
            }
            if let Next::Over = next {
                return;
            }
        }
    }

    async fn try_once(&mut self, body: &ReplayBody<'_>) -> Next {
        late::are_joined(self.request);
        self.request.info.phase.set(Phase::Queue);
        let (target, place) = match self.admit().await {
            Ok(admitted) => admitted,
            Err(failure) => {
                if failure == Failure::NoHost {
                    self.cluster.stats.upstream_cx_none_healthy.increment();
                }
                return self.fail(failure).await;
            }
        };
        let host = Rc::clone(&target.host);
        self.affinity.tell(self.request, &host);
        self.request.info.begin_try(&host.host);
        let count = self.request.info.attempts.get();
        if self.chosen.virtual_host.include_request_attempt_count {
            self.request.head.headers.set(HeaderId::XEnvoyAttemptCount, count.to_string().as_bytes());
        }
        if count > 1 {
            let elapsed = self.request.info.request_end.get().map(|end| end.elapsed()).unwrap_or_default();
            prepare::tell_timeout(self.request, self.action, &self.timeouts, elapsed);
        }
        prepare::host_name(self.request, self.action, &host);
        prepare::scheme(self.request, &host);
        let mut passage = None;
        if self.has_upstream_filters(&target.cluster) {
            passage = match Box::pin(self.pass_request(&target.cluster, body)).await {
                Ok(passage) => passage,
                Err(end) => return self.end_by(end).await,
            };
        }
        trace::begin_attempt(self.request);
        let watch = Watch::begin(&host);
        let mut attempt = Attempt::new(self.request, &self.cluster, &target, self.action, &self.timeouts, body);
        let ended = match attempt.until_head(place).await {
            Ended::Answered(answered) => Ok(answered),
            Ended::Failed(failure) => Err(failure),
            Ended::Late(exchange) => return Box::pin(self.is_late(exchange, host, passage, watch, body)).await,
        };
        self.settle(Tried { ended, host, passage, watch, is_replaced: false }, body).await
    }

    async fn settle(&mut self, tried: Tried, body: &ReplayBody<'_>) -> Next {
        let Tried { ended, host, mut passage, watch, is_replaced } = tried;
        let mut stream = match ended {
            Ok(stream) => stream,
            Err(failure) => {
                self.end_passage(passage);
                return self.failed(failure, &host, watch, is_replaced, body).await;
            }
        };
        trace::answered(self.request);
        if let Some(passing) = &mut passage
            && let Some(end) = Box::pin(self.pass_response(passing, &mut stream, body)).await
        {
            drop(stream);
            self.end_passage(passage);
            return self.end_by(end).await;
        }
        let retry = self.judge(&host, watch, is_replaced, body);
        if let Retry::After(backoff) = retry {
            self.end_passage(passage);
            self.leave(stream, &host);
            self.cluster.stats.retried_response(self.request.response.status);
            return self.back_off(backoff).await;
        }
        let status = self.request.response.status;
        if let Some(policy) = redirect::policy(self.chosen, status)
            && self.redirects(policy, &stream, body)
        {
            self.end_late(None);
            stream.leave();
            self.end_passage(passage);
            return Next::Over;
        }
        if retry == Retry::NotPossible && late::are_waited_for(self.request) {
            self.end_passage(passage);
            self.leave(stream, &host);
            return Next::Late;
        }
        self.end_late(None);
        let origin = ResponseOrigin::of(&self.request.head, Some(&self.request.response), Some(&host.host));
        self.cluster.count_response(&self.request.connection.worker, status, origin);
        count_outcome(&host, status);
        self.request.route_counts.response(status);
        if self.retries > 0 && retry == Retry::NotWanted && !is_replaced {
            self.request.route_counts.retry_success();
            self.cluster.stats.upstream_rq_retry_success.increment();
        }
        self.response_head();
        self.request.response_ended = stream.is_complete();
        if !self.request.filters.slots.is_empty()
            && let Some(end) = self.filter_response(&mut stream, body).await
        {
            drop(stream);
            self.end_passage(passage);
            return self.end_by(end).await;
        }
        relay::relay(self.request, &self.cluster, &host, stream, body).await;
        self.request.log_try(LogType::UpstreamEnd);
        self.end_passage(passage);
        Next::Over
    }

    /// What the response head that has come says of the endpoint, and whether it is to be asked again.
    fn judge(&mut self, host: &Rc<WorkerHost>, watch: Watch, is_replaced: bool, body: &ReplayBody<'_>) -> Retry {
        let request = &*self.request;
        let status = request.response.status;
        let grpc = if request.head.is_grpc() { grpc_status(&request.response) } else { None };
        observe::response(&request.connection.worker.process, host, status, grpc, &request.response.headers);
        let is_error = observe::status(status, grpc) >= 500;
        watch.answered(host, is_error, Some(&request.response.headers));
        let Some(policy) = self.policy.clone() else { return Retry::NotWanted };
        let outcome = outcome(request, Some(&policy), &request.response);
        match is_replaced {
            false => self.retry_after(&outcome, body, host),
            true if retry::is_retriable(&policy, &outcome) => Retry::NotPossible,
            true => Retry::NotWanted,
        }
    }

    /// An answered try is not what the client gets.
    fn leave(&mut self, stream: Answered, host: &WorkerHost) {
        host.stats.rq_error.increment();
        trace::retry_attempt(self.request, stream.is_complete());
        self.request.log_try(LogType::UpstreamEnd);
    }

    async fn failed(
        &mut self,
        failure: Failure,
        host: &Rc<WorkerHost>,
        watch: Watch,
        is_replaced: bool,
        body: &ReplayBody<'_>,
    ) -> Next {
        trace::fail_attempt(self.request, &failure);
        self.log_failed_try(&failure);
        failure::watched(watch, host, &failure);
        if failure == Failure::Overtaken {
            return Next::Late;
        }
        host.stats.rq_error.increment();
        if !is_replaced {
            let stale = failure == Failure::StaleConnection && !self.resent_stale;
            if stale && is_idempotent(self.request.head.method()) && body.rewind() {
                // The connection's end crossed with the request and nothing was answered. Once, and on a new
                // connection: a request that kills its upstream must not visit every connection of a pool.
                self.resent_stale = true;
                host.idle.borrow_mut().clear();
                self.restore();
                return Next::Again;
            }
            if failure == Failure::NotSent && self.resends < MAX_RESENDS && body.rewind() {
                self.resends += 1;
                self.restore();
                return Next::Again;
            }
            failure::observe(&self.request.connection.worker.process, host, &failure);
            if let Some(outcome) = failure.outcome()
                && let Retry::After(backoff) = self.retry_after(&outcome, body, host)
            {
                return self.back_off(backoff).await;
            }
        }
        self.fail(failure).await
    }

    /// A try was late: it goes on, and the next one begins if there may be one.
    async fn is_late(
        &mut self,
        exchange: Box<Unanswered>,
        host: Rc<WorkerHost>,
        passage: Option<Passage>,
        watch: Watch,
        body: &ReplayBody<'_>,
    ) -> Next {
        let request = &mut *self.request;
        request.deadlines.set(Limit::PerTry, None);
        request.deadlines.set(Limit::PerTryIdle, None);
        observe::timed_out(&request.connection.worker.process, &host);
        let mut late = LateTry::new(request, exchange, body, &self.cluster, (Rc::clone(&host), watch, passage));
        let retry = match self.policy.clone() {
            None => Retry::NotPossible,
            Some(policy) => {
                let decision = retry::hedge(&policy, self.retries, self.request.connection.worker.random.next());
                self.take_retry(decision, true, body, &host)
            }
        };
        late.is_replaced = matches!(retry, Retry::After(_));
        late.keep(self.request);
        match retry {
            Retry::After(backoff) => self.back_off(backoff).await,
            Retry::NotWanted | Retry::NotPossible => Next::Late,
        }
    }

    /// Waits for the end of a try that was late.
    async fn take_late(&mut self, body: &ReplayBody<'_>) -> Next {
        self.request.info.phase.set(Phase::Wait);
        let next = late::next(self.request).await;
        self.tell_late();
        let (late, ended) = match next {
            Ok(Some(settled)) => settled,
            Ok(None) => return self.fail(Failure::Timeout(Limit::PerTry)).await,
            Err(failure) => return self.fail(failure).await,
        };
        let host = Rc::clone(&late.host);
        let (watch, is_replaced) = (late.watch, late.is_replaced);
        self.cluster = Rc::clone(&late.cluster);
        let (ended, passage) = late.take_up(self.request, ended, body, &self.timeouts);
        self.settle(Tried { ended, host, passage, watch, is_replaced }, body).await
    }

    /// Ends the tries that are late, see [`late::end_all`].
    fn end_late(&mut self, failure: Option<&Failure>) -> usize {
        let beside = late::end_all(self.request, failure);
        self.tell_late();
        beside
    }

    /// Tells the filters in front of their endpoints that tries which were late are over.
    fn tell_late(&mut self) {
        for passage in late::take_over(self.request) {
            self.end_passage(Some(passage));
        }
    }

    /// Decides on a retry, and takes what it needs.
    fn retry_after(&mut self, outcome: &Outcome, body: &ReplayBody<'_>, host: &Rc<WorkerHost>) -> Retry {
        let Some(policy) = self.policy.clone() else { return Retry::NotWanted };
        let random = self.request.connection.worker.random.next();
        let decision = retry::decide(&policy, self.retries, outcome, random);
        self.take_retry(decision, matches!(outcome, Outcome::PerTryTimeout { .. }), body, host)
    }

    fn take_retry(
        &mut self,
        decision: Decision,
        timed_out: bool,
        body: &ReplayBody<'_>,
        host: &Rc<WorkerHost>,
    ) -> Retry {
        let stats = &self.cluster.stats;
        let (backoff, asked_for) = match decision {
            Decision::Retry { backoff, asked_for } => (backoff, asked_for),
            Decision::GiveUp(GiveUp::LimitExceeded) => {
                stats.upstream_rq_retry_limit_exceeded.increment();
                self.request.route_counts.retry_limit_exceeded();
                self.request.info.flag(ResponseFlag::UpstreamRetryLimitExceeded);
                return Retry::NotPossible;
            }
            Decision::GiveUp(GiveUp::NotRetriable) => return Retry::NotWanted,
        };
        let (breaker, thresholds) = self.cluster.limits(self.action.priority);
        self._retrying = None;
        let Some(permit) = breaker.try_retry(&thresholds, facts::now()) else {
            stats.upstream_rq_retry_overflow.increment();
            self.request.route_counts.retry_overflow();
            self.request.info.flag(ResponseFlag::UpstreamOverflow);
            return Retry::NotPossible;
        };
        if !body.rewind() {
            return Retry::NotPossible;
        }
        self.restore();
        let stats = &self.cluster.stats;
        stats.upstream_rq_retry.increment();
        match asked_for {
            true => stats.upstream_rq_retry_backoff_ratelimited.increment(),
            false => stats.upstream_rq_retry_backoff_exponential.increment(),
        }
        self.request.route_counts.retried();
        self._retrying = Some(permit);
        self.retries += 1;
        self.request.retried = true;
        if self.chosen.virtual_host.include_is_timeout_retry {
            let timed_out: &[u8] = if timed_out { b"true" } else { b"false" };
            self.request.head.headers.set_by_name("x-envoy-is-timeout-retry", timed_out);
        }
        self.tried.push(Arc::clone(&host.host));
        if self.policy.as_ref().is_some_and(|policy| policy.retry_priority.is_some()) {
            self.tried_priorities.push(self.cluster.priority_of(host));
        }
        Retry::After(backoff)
    }

    /// Waits for the time of the next try.
    async fn back_off(&mut self, backoff: Duration) -> Next {
        self.request.info.phase.set(Phase::BackOff);
        // The times of the try that has ended must not end the wait for the next one.
        self.request.deadlines.set(Limit::PerTry, None);
        self.request.deadlines.set(Limit::PerTryIdle, None);
        match Box::pin(wait(self.request, backoff)).await {
            None => Next::Again,
            Some(failure) => self.fail(failure).await,
        }
    }

    /// Gives the request up, unless tries that are late may still be answered.
    async fn fail(&mut self, failure: Failure) -> Next {
        if failure == Failure::Overtaken {
            return Next::Late;
        }
        if failure.is_of_a_try() && late::are_waited_for(self.request) {
            count_local_reply(self.request, &self.cluster, failure.reply(self.request).status);
            return Next::Late;
        }
        self.give_up(failure).await;
        Next::Over
    }

    async fn end_by(&mut self, turn: Turn) -> Next {
        match turn {
            // Another request takes its place.
            Turn::Restart => drop(self.end_late(None)),
            Turn::Continue | Turn::LookAgain(_) => {}
            Turn::Reply(reply) => {
                self.end_late(None);
                // What was read of the other one, and what was to become of it, is of no use to this one.
                self.request.response_body = None;
                send_local(self.request, *reply, Some(self.chosen)).await;
            }
            Turn::Interrupted(failure) => return self.fail(failure).await,
        }
        Next::Over
    }

    async fn give_up(&mut self, failure: Failure) {
        let others = self.end_late(Some(&failure));
        if matches!(failure, Failure::NoHost | Failure::NoWantedHost(_)) {
            // As Envoy counts: a try that found nobody is one.
            let attempts = &self.request.info.attempts;
            attempts.set(attempts.get().max(1));
        }
        if let Failure::Timeout(limit) = failure {
            self.request.info.cause.set(self.timeouts.cause(limit));
        }
        if !matches!(failure, Failure::DownstreamGone(_)) {
            let status = failure.reply(self.request).status;
            for _ in 0..=others {
                count_local_reply(self.request, &self.cluster, status);
            }
            self.request.route_counts.response(status);
        }
        end(self.request, failure, Some(self.chosen)).await;
    }

    /// Logs a try that failed, with what it would say of the request if it was the last one.
    fn log_failed_try(&self, failure: &Failure) {
        let request = &*self.request;
        if request.connection.node.upstream_logs.is_empty() {
            return;
        }
        let flags = request.info.flags.get();
        if let Some(flag) = failure.reply(request).flag {
            request.info.flag(flag);
        }
        request.log_try(LogType::UpstreamEnd);
        request.info.flags.set(flags);
    }
}

/// Waits for the time of a retry; something if that does not come.
async fn wait(request: &Request<'_>, backoff: Duration) -> Option<Failure> {
    let mut sleep = std::pin::pin!(tokio::time::sleep(backoff));
    std::future::poll_fn(|cx| match attempt::interrupted(request, cx) {
        Poll::Ready(failure) => Poll::Ready(Some(failure)),
        Poll::Pending => sleep.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// RFC 9110 section 9.2.2: what may be sent twice when nobody knows whether it arrived once.
fn is_idempotent(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
}
