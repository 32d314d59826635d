//! The router filter: sends a request upstream and its response back.
//!
//! Owns the tries: endpoint, connection, time limits, retries, and what is said when all fail. Never matches routes.

mod admission;
pub mod affinity;
pub mod answering;
pub mod attempt;
mod body;
mod drops;
pub mod failure;
mod mirror;
mod passage;
mod prepare;
pub mod redirect;
mod relay;
mod route_stats;
pub(crate) mod timeout;

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use outrigger_config::cluster::{DnsCache, DnsFamily};
use outrigger_config::route::{Forward, HeaderMatcher, InternalRedirect, RetryPolicy, VirtualHost, WeightedCluster};
use outrigger_policy::breaker::{Permit, Resource};
use outrigger_policy::retry::{self, Decision, GiveUp, Outcome};
use outrigger_policy::route::{header_matches, request_header_matches};

use super::manager::reply::LocalReply;
use super::manager::request::{Chosen, Request, RequestSide, ResponseSide, send_local};
use super::manager::{mutate, overload};
use crate::accesslog::LogType;
use crate::health::observe;
use crate::http::filter::{self, Origin, RouteChoice, Turn};
use crate::http::headers::HeaderId;
use crate::http::message::RequestHead;
use crate::http::seam::BodySink;
use crate::stream::{Phase, ResponseFlag};
use crate::trace;
use crate::upstream::clusters::{Target, WorkerCluster, WorkerHost};
use crate::upstream::dns_cache::Lookup;
use crate::upstream::feedback::Watch;
use crate::upstream::host::Host;
use crate::worker::deadlines::Limit;
use affinity::Affinity;
use attempt::{Answered, Attempt};
pub use body::ReplayBody;
use failure::Failure;
use passage::Passage;
pub use route_stats::RouteCounts;
use timeout::Timeouts;

/// A request that could not leave on a connection that was closing is given another one, so many times.
const MAX_RESENDS: u32 = 4;

/// Forwards a request.
pub async fn forward(request: &mut Request<'_>, chosen: &Chosen<'_>, action: &Forward) {
    let worker = Rc::clone(&request.connection.worker);
    let weighted = chosen.weighted;
    let graph = Rc::clone(&request.graph);
    let Some(node) = chosen.cluster_name(&request.head).and_then(|name| graph.clusters.get(&*name)) else {
        request.connection.stats.no_cluster.increment();
        let reply = LocalReply::new(action.cluster_not_found_code, "cluster_not_found");
        return send_local(request, reply.flag(ResponseFlag::NoClusterFound), Some(chosen)).await;
    };
    let cluster = worker.clusters.get(&worker, node);
    request.info.set_cluster(&node.config);
    trace::set_cluster(request, node);
    if let Some(reply) = overload::router_refusal(request) {
        return send_local(request, reply, Some(chosen)).await;
    }
    if let Some(share) = node.hosts.drop_overload
        && drops::holds(share, &graph, worker.random.next())
    {
        return drops::answer(request, chosen, &cluster).await;
    }
    request.route_counts = RouteCounts::of(request, chosen);
    let policy = retry_policy(&request.head, chosen.virtual_host, action);
    let timeouts = Timeouts::of(request, action, policy.as_deref());
    let affinity = Affinity::of(request, action, weighted, node);
    prepare::request_head(request, chosen, action, weighted, &timeouts);
    mirror::begin(request, chosen, action);
    let mut forwarding = Forwarding {
        request,
        chosen,
        action,
        weighted,
        cluster,
        policy,
        timeouts,
        affinity,
        tried: Vec::new(),
        tried_priorities: Vec::new(),
        retries: 0,
        passage: None,
        _retrying: None,
    };
    forwarding.run().await;
    forwarding.end_passage();
}

/// The policy of the route or virtual host, as `x-envoy-*` headers change it.
pub(crate) fn retry_policy(
    head: &RequestHead,
    virtual_host: &VirtualHost,
    action: &Forward,
) -> Option<Arc<RetryPolicy>> {
    let configured = action.retry_policy.as_ref().or(virtual_host.retry_policy.as_ref());
    let headers = &head.headers;
    let on = headers.get_str(HeaderId::XEnvoyRetryOn);
    let grpc_on = headers.get_str(HeaderId::XEnvoyRetryGrpcOn);
    let max = headers.get_str(HeaderId::XEnvoyMaxRetries).and_then(|max| max.parse().ok());
    let codes = headers.get_str(HeaderId::XEnvoyRetriableStatusCodes);
    let names = headers.get_str(HeaderId::XEnvoyRetriableHeaderNames);
    let wanted = |policy: &RetryPolicy| {
        let matchers = &policy.retriable_request_headers;
        matchers.is_empty() || matchers.iter().any(|matcher| request_header_matches(matcher, head))
    };
    if !configured.is_none_or(|policy| wanted(policy)) {
        return None;
    }
    if on.is_none() && grpc_on.is_none() && max.is_none() && codes.is_none() && names.is_none() {
        return configured.cloned();
    }
    let mut policy = configured.map_or_else(prepare::default_retry_policy, |policy| RetryPolicy::clone(policy));
    for names in [on, grpc_on].into_iter().flatten() {
        prepare::add_conditions(&mut policy.on, names);
    }
    if let Some(max) = max {
        policy.num_retries = max;
    }
    prepare::add_retriable(&mut policy, codes, names);
    Some(Arc::new(policy))
}

/// A request on its way, over all its tries.
struct Forwarding<'a, 'r> {
    request: &'a mut Request<'r>,
    chosen: &'a Chosen<'a>,
    action: &'a Forward,
    weighted: Option<&'a WeightedCluster>,
    cluster: Rc<WorkerCluster>,
    policy: Option<Arc<RetryPolicy>>,
    timeouts: Timeouts,
    affinity: Affinity,
    tried: Vec<Arc<Host>>,
    /// Of the tries, where the retry policy goes by them.
    tried_priorities: Vec<u32>,
    retries: u32,
    /// What the try at hand passes through.
    passage: Option<Passage>,
    /// Counts against the retry limit while a retry is under way.
    _retrying: Option<Permit>,
}

impl Forwarding<'_, '_> {
    async fn run(&mut self) {
        let downstream = self.request.downstream;
        let keep = self.policy.is_some()
            || self.action.internal_redirect.is_some()
            || self.request.framing == crate::http::h1::parse::Framing::None;
        let limit = self.chosen.route.body_limit.or(self.chosen.virtual_host.body_limit);
        let body = ReplayBody::new(downstream, self.request.request_body.clone(), keep, limit, &self.request.info);
        if !self.request.connection.node.config.proxy_100_continue {
            downstream.send_continue();
            // The client sends nothing before it has read this; its failure is met again by whoever reads the body.
            let request = &*self.request;
            let flushed = std::future::poll_fn(|cx| match downstream.poll_flush(cx) {
                Poll::Pending => attempt::interrupted(request, cx).map(|_| Ok(())),
                flushed => flushed,
            });
            let _ = flushed.await;
        }
        let mut resends = 0;
        let mut resent_stale = false;
        loop {
            self.request.info.phase.set(Phase::Queue);
            let (target, place) = match self.admit().await {
                Ok(admitted) => admitted,
                Err(failure) => {
                    if failure == Failure::NoHost {
                        self.cluster.stats.upstream_cx_none_healthy.increment();
                    }
                    return self.give_up(failure).await;
                }
            };
            let host = Rc::clone(&target.host);
            self.affinity.tell(self.request, &host);
            self.request.info.begin_try(&host.host);
            let count = self.request.info.attempts.get();
            if self.chosen.virtual_host.include_request_attempt_count {
                self.request.head.headers.set(HeaderId::XEnvoyAttemptCount, count.to_string().as_bytes());
            }
            prepare::host_name(self.request, self.action, &host);
            if self.has_upstream_filters(&target.cluster)
                && let Some(end) = Box::pin(self.pass_request(&target.cluster, &body)).await
            {
                return self.end_by(end).await;
            }
            trace::begin_attempt(self.request);
            target.cluster.stats.upstream_rq_total.increment();
            host.stats.rq_total.increment();
            let watch = Watch::begin(&host);
            let mut attempt = Attempt::new(self.request, &self.cluster, &target, self.action, &self.timeouts, &body);
            let result = attempt.until_head(place).await;
            match result {
                Ok(mut stream) => {
                    trace::answered(self.request);
                    if self.passage.is_some()
                        && let Some(end) = Box::pin(self.pass_response(&mut stream, &body)).await
                    {
                        drop(stream);
                        return self.end_by(end).await;
                    }
                    let status = self.request.response.status;
                    let outcome = self.outcome();
                    let redirect = redirect::policy(self.chosen, status);
                    let grpc = if self.request.head.is_grpc() { grpc_status(self.request) } else { None };
                    let process = &self.request.connection.worker.process;
                    observe::response(process, &host, status, grpc, &self.request.response.headers);
                    let is_error = observe::status(status, grpc) >= 500;
                    watch.answered(&host, is_error, Some(&self.request.response.headers));
                    if self.retries_after(&outcome, &body, &host).await {
                        count_response(&self.cluster, &host, status);
                        trace::retry_attempt(self.request, stream.is_complete());
                        self.request.log_try(LogType::UpstreamEnd);
                        drop(stream);
                        continue;
                    }
                    if let Some(policy) = redirect
                        && self.redirects(policy, &stream, &body)
                    {
                        return stream.leave();
                    }
                    count_response(&self.cluster, &host, status);
                    self.request.route_counts.response(status);
                    if self.retries > 0 && status < 500 {
                        self.request.route_counts.retry_success();
                        self.cluster.stats.upstream_rq_retry_success.increment();
                    }
                    self.response_head();
                    self.request.response_ended = stream.is_complete();
                    if !self.request.filters.slots.is_empty()
                        && let Some(end) = self.filter_response(&mut stream, &body).await
                    {
                        drop(stream);
                        return self.end_by(end).await;
                    }
                    relay::relay(self.request, &self.cluster, &host, stream, &body).await;
                    return self.request.log_try(LogType::UpstreamEnd);
                }
                Err(failure) => {
                    trace::fail_attempt(self.request, &failure);
                    self.log_failed_try(&failure);
                    host.stats.rq_error.increment();
                    failure::watched(watch, &host, &failure);
                    let stale = failure == Failure::StaleConnection && !resent_stale;
                    if stale && is_idempotent(self.request.head.method()) && body.rewind() {
                        // The connection's end crossed with the request and nothing was answered. Once, and on a new
                        // connection: a request that kills its upstream must not visit every connection of a pool.
                        resent_stale = true;
                        host.idle.borrow_mut().clear();
                        self.leave_passage();
                        continue;
                    }
                    if failure == Failure::NotSent && resends < MAX_RESENDS && body.rewind() {
                        resends += 1;
                        self.leave_passage();
                        continue;
                    }
                    failure::observe(&self.request.connection.worker.process, &host, &failure);
                    let retried = match failure.outcome() {
                        Some(outcome) => self.retries_after(&outcome, &body, &host).await,
                        None => false,
                    };
                    if !retried {
                        return self.give_up(failure).await;
                    }
                }
            }
        }
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

    /// The endpoint that the request's host is. Waits for its address unless that is known.
    async fn resolve(&self, cache: &Arc<DnsCache>) -> Result<Target, Failure> {
        let worker = &self.request.connection.worker;
        let name = match prepare::look_up(self.request, &self.cluster, cache) {
            Lookup::Known(known) => known,
            Lookup::Later(pending) => {
                let mut answer = std::pin::pin!(pending.answer());
                std::future::poll_fn(|cx| match answer.as_mut().poll(cx) {
                    Poll::Ready(answer) => Poll::Ready(Ok(answer)),
                    Poll::Pending => attempt::interrupted(self.request, cx).map(Err),
                })
                .await?
            }
        };
        let name = name.map_err(Failure::NoAddress)?;
        // The cluster may have changed meanwhile.
        let cluster = match worker.graph().clusters.get(&self.cluster.node().config.name) {
            Some(node) => worker.clusters.get(worker, node),
            None => Rc::clone(&self.cluster),
        };
        let host = cluster.forwarded(&name, cache.dns.family == DnsFamily::All).ok_or(Failure::NoHost)?;
        Ok(Target { cluster, host })
    }

    /// What the retry policy sees of the response head.
    fn outcome(&self) -> Outcome {
        let request = &*self.request;
        let headers = &request.response.headers;
        let policy = self.policy.as_deref();
        let fits = |matcher: &HeaderMatcher| header_matches(matcher, headers.get_all_by_name(&matcher.name));
        let wait = policy.and_then(|policy| policy.rate_limited_back_off.as_ref()).and_then(|limits| {
            let now = request.connection.worker.process.clock.at(Instant::now());
            let since_1970 = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            retry::reset_wait(limits, |name| headers.get_by_name(name), since_1970)
        });
        Outcome::Response {
            status: request.response.status,
            grpc_status: grpc_status(request),
            ratelimited: headers.get_by_name("x-envoy-ratelimited").is_some(),
            retriable_header: policy.is_some_and(|policy| policy.retriable_headers.iter().any(fits)),
            wait,
        }
    }

    /// Decides on a retry and waits for its time; false to leave it at this outcome.
    async fn retries_after(&mut self, outcome: &Outcome, body: &ReplayBody<'_>, host: &Rc<WorkerHost>) -> bool {
        let Some(policy) = self.policy.clone() else { return false };
        let random = self.request.connection.worker.random.next();
        let stats = &self.cluster.stats;
        let backoff = match retry::decide(&policy, self.retries, outcome, random) {
            Decision::Retry { backoff } => backoff,
            Decision::GiveUp(GiveUp::LimitExceeded) => {
                stats.upstream_rq_retry_limit_exceeded.increment();
                self.request.route_counts.retry_limit_exceeded();
                self.request.info.flag(ResponseFlag::UpstreamRetryLimitExceeded);
                return false;
            }
            Decision::GiveUp(GiveUp::NotRetriable) => return false,
        };
        let (breaker, thresholds) = self.cluster.limits(self.action.priority);
        self._retrying = None;
        let Some(permit) = breaker.try_acquire_within(Resource::Retry, &thresholds) else {
            stats.upstream_rq_retry_overflow.increment();
            self.request.route_counts.retry_overflow();
            return false;
        };
        if !body.rewind() {
            return false;
        }
        self.leave_passage();
        let stats = &self.cluster.stats;
        stats.upstream_rq_retry.increment();
        self.request.route_counts.retried();
        self._retrying = Some(permit);
        self.retries += 1;
        self.request.retried = true;
        if self.chosen.virtual_host.include_is_timeout_retry {
            let timed_out: &[u8] = match outcome {
                Outcome::PerTryTimeout { .. } => b"true",
                _ => b"false",
            };
            self.request.head.headers.set_by_name("x-envoy-is-timeout-retry", timed_out);
        }
        self.tried.push(Arc::clone(&host.host));
        if policy.retry_priority.is_some() {
            self.tried_priorities.push(self.cluster.priority_of(host));
        }
        self.request.info.phase.set(Phase::BackOff);
        // The time of the try that has ended must not end the wait for the next one.
        self.request.deadlines.set(Limit::PerTry, None);
        Box::pin(wait(self.request, backoff)).await
    }

    /// Follows a redirect of the upstream, if that is possible.
    fn redirects(&mut self, policy: &InternalRedirect, answered: &Answered, body: &ReplayBody<'_>) -> bool {
        // What is still being sent could not be sent again.
        let complete = answered.request_is_sent() && !self.request.head.is_tunnel();
        // What filters have made of the body for this try is not sent elsewhere.
        self.swap_before();
        let followed = complete && redirect::follow(self.request, self.chosen, policy, body);
        if !followed {
            self.swap_before();
        }
        let stats = &self.cluster.stats;
        if followed {
            self.request.info.response_code.set(self.request.response.status);
            self.request.info.set_details("internal_redirect");
            stats.upstream_internal_redirect_succeeded_total.increment();
        } else {
            stats.upstream_internal_redirect_failed_total.increment();
        }
        followed
    }

    /// What the response head says on its way downstream.
    fn response_head(&mut self) {
        let request = &mut *self.request;
        let now = Instant::now();
        request.info.response_code.set(request.response.status);
        request.info.set_details("via_upstream");
        if !prepare::suppresses_envoy_headers(request) {
            let since = request.info.request_end.get().unwrap_or(request.info.start);
            let elapsed = now.saturating_duration_since(since).as_millis() as u64;
            let mut text = [0; 20];
            let text = crate::http::h1::encode::decimal(elapsed, &mut text);
            request.response.headers.set(HeaderId::XEnvoyUpstreamServiceTime, text);
        }
        if self.chosen.virtual_host.include_attempt_count_in_response {
            let count = request.info.attempts.get().to_string();
            request.response.headers.set(HeaderId::XEnvoyAttemptCount, count.as_bytes());
        }
        if let Some(weighted) = self.weighted.filter(|weighted| !weighted.response_headers.is_empty()) {
            mutate::apply(&weighted.response_headers, &mut ResponseSide(request));
        }
        self.affinity.response(request);
        self.chosen.mutate_response(request);
        // A request that somebody asked to be traced can be found by its id.
        if (request.connection.node.config.always_set_request_id_in_response
            || request.head.headers.contains(HeaderId::XEnvoyForceTrace))
            && let Some(id) = request.head.headers.get(HeaderId::XRequestId).map(<[u8]>::to_vec)
        {
            request.response.headers.set(HeaderId::XRequestId, &id);
        }
    }

    /// Shows the response to the filters; something if it does not leave as it is.
    async fn filter_response(&mut self, answered: &mut Answered, body: &ReplayBody<'_>) -> Option<Turn> {
        let connection = Rc::clone(self.request.connection);
        let graph = Rc::clone(&self.request.graph);
        let mut choice = RouteChoice::of(&connection, &graph, Some(*self.chosen));
        match filter::responses(self.request, &mut choice, Origin::Upstream(answered, body)).await {
            // A response has its route.
            Turn::Continue | Turn::LookAgain(_) => None,
            turn => Some(turn),
        }
    }

    async fn end_by(&mut self, turn: Turn) {
        match turn {
            // Another request takes its place.
            Turn::Continue | Turn::LookAgain(_) | Turn::Restart => {}
            Turn::Reply(reply) => {
                // What was read of the other one, and what was to become of it, is of no use to this one.
                self.request.response_body = None;
                send_local(self.request, *reply, Some(self.chosen)).await;
            }
            Turn::Interrupted(failure) => self.give_up(failure).await,
        }
    }

    async fn give_up(&mut self, failure: Failure) {
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
            count_local_reply(&self.cluster, status);
            self.request.route_counts.response(status);
        }
        end(self.request, failure, Some(self.chosen)).await;
    }
}

/// Ends a request that failed: with an answer, if there is somebody to read it.
pub async fn end(request: &mut Request<'_>, failure: Failure, chosen: Option<&Chosen<'_>>) {
    if let Failure::DownstreamGone(gone) = failure {
        relay::record_gone(request, gone);
        request.downstream.abort(h2::Reason::CANCEL);
        return;
    }
    if let Failure::Timeout(limit) = failure {
        if limit == Limit::StreamIdle {
            request.connection.stats.downstream_rq_idle_timeout.increment();
        }
        attempt::record_limit(request, limit);
    }
    if let Failure::Timeout(Limit::StreamDuration) = failure {
        request.connection.stats.downstream_rq_max_duration_reached.increment();
    }
    let reply = failure.reply(request);
    // A request that is reset because of what it holds gets none: that is seen there.
    send_local(request, reply, chosen).await;
}

/// Ends a request that holds too much memory, with Envoy's words. HTTP/2 says why, so that a part of a response is not
/// taken for the whole.
pub fn reset_for_overload(request: &Request<'_>) {
    request.info.flag(ResponseFlag::OverloadManagerTerminated);
    request.info.set_details("overload");
    request.downstream.abort(h2::Reason::ENHANCE_YOUR_CALM);
}

/// Waits for the time of a retry; false if the client or the time limit is gone by then.
async fn wait(request: &Request<'_>, backoff: Duration) -> bool {
    let mut sleep = std::pin::pin!(tokio::time::sleep(backoff));
    std::future::poll_fn(|cx| {
        let gone = request.downstream.poll_closed(cx).is_ready() || request.poll_drained(cx).is_ready();
        if gone || request.poll_limit(cx).is_ready() {
            return std::task::Poll::Ready(false);
        }
        sleep.as_mut().poll(cx).map(|()| true)
    })
    .await
}

/// RFC 9110 section 9.2.2: what may be sent twice when nobody knows whether it arrived once.
fn is_idempotent(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
}

fn grpc_status(request: &Request<'_>) -> Option<u32> {
    request.response.headers.get_str(HeaderId::GrpcStatus).and_then(|status| status.parse().ok())
}

fn count_response(cluster: &WorkerCluster, host: &WorkerHost, status: u16) {
    cluster.stats.response(status);
    if status >= 500 { host.stats.rq_error.increment() } else { host.stats.rq_success.increment() }
}

/// As Envoy does, answers that we made count for the cluster too.
fn count_local_reply(cluster: &WorkerCluster, status: u16) {
    cluster.stats.response(status);
}

/// Applies the mutations of a weighted cluster to the request.
fn mutate_for_cluster(request: &mut Request<'_>, weighted: &WeightedCluster) {
    if !weighted.request_headers.is_empty() {
        mutate::apply(&weighted.request_headers, &mut RequestSide(request));
    }
}
