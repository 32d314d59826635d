//! The router filter: sends a request upstream and its response back.
//!
//! Owns what a route does to a request and its response on their way: policies, heads, filters in front of endpoints. Never
//! matches routes, and leaves the tries to `tries`.

mod admission;
pub mod affinity;
pub mod answering;
pub mod attempt;
mod body;
mod drops;
pub mod failure;
mod late;
mod mirror;
mod passage;
mod prepare;
pub mod redirect;
mod relay;
mod route_stats;
pub mod timeout;
mod tries;

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use outrigger_config::cluster::{DnsCache, RequestPolicies};
use outrigger_config::route::{Forward, HeaderMatcher, InternalRedirect, RetryPolicy, VirtualHost, WeightedCluster};
use outrigger_policy::breaker::Permit;
use outrigger_policy::retry::{self, Outcome};
use outrigger_policy::route::{header_matches, request_header_matches};

use super::manager::reply::LocalReply;
use super::manager::request::{Chosen, Request, RequestSide, ResponseSide, send_local};
use super::manager::{mutate, overload};
use crate::http::filter::{self, Origin, RouteChoice, Turn};
use crate::http::headers::HeaderId;
use crate::http::message::{RequestHead, ResponseHead};
use crate::http::seam::BodySink;
use crate::stream::ResponseFlag;
use crate::trace;
use crate::upstream::clusters::WorkerCluster;
use crate::upstream::dns_cache::{CachedName, Lookup};
use crate::upstream::host::Host;
use crate::upstream::response_stats::ResponseOrigin;
use crate::upstream::worker_host::WorkerHost;
use crate::worker::deadlines::Limit;
use affinity::Affinity;
use attempt::Answered;
pub use body::ReplayBody;
use failure::Failure;
pub use late::Tries;
use passage::Before;
pub use route_stats::RouteCounts;
use timeout::Timeouts;

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
    if cluster.maintenance().is_some_and(|share| share.holds(worker.random.next())) {
        return drops::answer_for_maintenance(request, chosen, &cluster).await;
    }
    if let Some(share) = node.hosts.drop_overload
        && drops::holds(share, &graph, worker.random.next())
    {
        return drops::answer(request, chosen, &cluster).await;
    }
    request.route_counts = RouteCounts::of(request, chosen);
    let of_cluster = node.config.requests.as_deref();
    let policy = retry_policy(&request.head, chosen.virtual_host, action, of_cluster);
    let mut timeouts = Timeouts::of(request, action, policy.as_deref());
    timeouts.hedges = timeout::hedges(&request.head, chosen.virtual_host, action);
    request.tries = Tries::new(&timeouts, policy.as_ref());
    request.no_content_when_late = request.head.headers.contains(HeaderId::XEnvoyUpstreamRqTimeoutAltResponse);
    let affinity = Affinity::of(request, action, weighted, node);
    prepare::request_head(request, chosen, action, weighted, &timeouts);
    mirror::begin(request, chosen, action, of_cluster);
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
        before: None,
        resends: 0,
        resent_stale: false,
        _retrying: None,
    };
    forwarding.begin().await;
}

/// The policy of the cluster, or else of the route or virtual host, as `x-envoy-*` headers change it.
pub(crate) fn retry_policy(
    head: &RequestHead,
    virtual_host: &VirtualHost,
    action: &Forward,
    of_cluster: Option<&RequestPolicies>,
) -> Option<Arc<RetryPolicy>> {
    let of_cluster = of_cluster.and_then(|policies| policies.retry.as_ref());
    let configured = of_cluster.or(action.retry_policy.as_ref()).or(virtual_host.retry_policy.as_ref());
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
    /// Kept for what comes after the last try.
    before: Option<Before>,
    /// Because nothing of the request had left.
    resends: u32,
    /// Because a used connection had ended.
    resent_stale: bool,
    /// Counts against the retry limit while a retry is under way.
    _retrying: Option<Permit>,
}

impl Forwarding<'_, '_> {
    async fn begin(&mut self) {
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
        self.run(&body).await;
    }

    /// The name that the request's host is, and the newest view of `cluster`. Waits for its address unless that is known.
    async fn resolve(
        &self,
        cluster: &Rc<WorkerCluster>,
        cache: &Arc<DnsCache>,
    ) -> Result<(Rc<WorkerCluster>, Arc<CachedName>), Failure> {
        let worker = &self.request.connection.worker;
        let name = match prepare::look_up(self.request, cluster, cache) {
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
        let cluster = match worker.graph().clusters.get(&cluster.node().config.name) {
            Some(node) => worker.clusters.get(worker, node),
            None => Rc::clone(cluster),
        };
        Ok((cluster, name))
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
        request.info.response_code.set(request.response.status);
        request.info.set_details("via_upstream");
        if !prepare::suppresses_envoy_headers(request) {
            let since = request.info.request_end.get().unwrap_or(request.info.start);
            let came = request.info.response_start.get().unwrap_or_else(Instant::now);
            let elapsed = came.saturating_duration_since(since).as_millis() as u64;
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
    let mut reply = failure.reply(request);
    let attempts = request.info.attempts.get();
    if attempts > 0 && chosen.is_some_and(|chosen| chosen.virtual_host.include_attempt_count_in_response) {
        reply.header("x-envoy-attempt-count", attempts.to_string());
    }
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

/// What a retry policy sees of a response head.
fn outcome(request: &Request<'_>, policy: Option<&RetryPolicy>, response: &ResponseHead) -> Outcome {
    let headers = &response.headers;
    let fits = |matcher: &HeaderMatcher| header_matches(matcher, headers.get_all_by_name(&matcher.name));
    let wait = policy.and_then(|policy| policy.rate_limited_back_off.as_ref()).and_then(|limits| {
        let now = request.connection.worker.process.clock.at(Instant::now());
        let since_1970 = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        retry::reset_wait(limits, |name| headers.get_by_name(name), since_1970)
    });
    Outcome::Response {
        status: response.status,
        grpc_status: grpc_status(response),
        ratelimited: headers.get_by_name("x-envoy-ratelimited").is_some(),
        retriable_header: policy.is_some_and(|policy| policy.retriable_headers.iter().any(fits)),
        wait,
    }
}

fn grpc_status(response: &ResponseHead) -> Option<u32> {
    response.headers.get_str(HeaderId::GrpcStatus).and_then(|status| status.parse().ok())
}

fn count_outcome(host: &WorkerHost, status: u16) {
    if status >= 500 { host.stats.rq_error.increment() } else { host.stats.rq_success.increment() }
}

/// As Envoy does, answers that we made count for the cluster too, and where the last try went.
fn count_local_reply(request: &Request<'_>, cluster: &WorkerCluster, status: u16) {
    let host = request.info.upstream_host.borrow();
    cluster.count_response(
        &request.connection.worker,
        status,
        ResponseOrigin::of(&request.head, None, host.as_deref()),
    );
}

/// Applies the mutations of a weighted cluster to the request.
fn mutate_for_cluster(request: &mut Request<'_>, weighted: &WeightedCluster) {
    if !weighted.request_headers.is_empty() {
        mutate::apply(&weighted.request_headers, &mut RequestSide(request));
    }
}
