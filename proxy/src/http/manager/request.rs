//! The life of one request.
//!
//! Owns the way from head to log entry: preparation, route, action, answer. Never talks to upstreams (see the router).

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use outrigger_config::format::Format;
use outrigger_config::http::filters::AlpnOffer;
use outrigger_config::route::{DirectResponse, Redirect, RequireTls, Route, RouteAction, VirtualHost, WeightedCluster};
use outrigger_policy::route::{RequestView, RouteTable, redirect_location};
use outrigger_policy::trace::Reason;

use super::HttpConnection;
use super::downstream::Downstream;
use super::local_replies::{self, Rewritten};
use super::mutate::{self, Mutable};
use super::reply::{self, LocalReply};
use super::{normalize, overload};
use crate::accesslog::format;
use crate::accesslog::{AccessLogger, Facts, LogType};
use crate::http::filter::{
    self, BodyChain, BodyFrom, FilterStates, Filters, Given, Origin, RouteChoice, Turn, WantedHost,
};
use crate::http::h1::parse::Framing;
use crate::http::headers::{HeaderId, Headers};
use crate::http::message::{RequestHead, ResponseHead};
use crate::http::router::{self, redirect::Redirects};
use crate::http::seam::{BodySink, Chunk};
use crate::moments::Milestone;
use crate::stream::{Kill, Phase, ResponseFlag, StreamInfo};
use crate::trace::{self, Mark, RequestTrace};
use crate::worker::GraphView;
use crate::worker::deadlines::{Deadlines, Limit};
use crate::worker::live::{Live, LiveList, Owner};

/// A request being served.
pub struct Request<'a> {
    /// The connection it came on.
    pub connection: &'a Rc<HttpConnection>,
    /// The graph it was begun with.
    pub graph: Rc<GraphView>,
    /// Its head; changed on the way to the upstream.
    pub head: RequestHead,
    /// It came as a call of gRPC, so answers of our own are trailers.
    pub came_as_grpc: bool,
    /// The head of its response.
    pub response: ResponseHead,
    /// No body follows its head.
    pub response_ended: bool,
    /// Trailers of the response.
    pub trailers: Option<Headers>,
    /// What is recorded of it.
    pub info: Rc<StreamInfo>,
    /// Its body.
    pub framing: Framing,
    /// The engine's side of it.
    pub downstream: &'a Downstream<'a>,
    /// Its time limits.
    pub deadlines: &'a Deadlines,
    /// Body of the reply made here.
    pub local_reply_body: Cow<'static, [u8]>,
    /// How long nothing may move: the connection manager's limit, or the route's.
    pub idle_timeout: Option<Duration>,
    /// What it passes through.
    pub filters: Rc<Filters>,
    /// What filters keep for it.
    pub filter_states: FilterStates,
    /// What the TLS connection that carries it upstream offers, if a filter says so.
    pub alpn: Option<AlpnOffer>,
    /// The endpoint that is tried first, if a filter says so.
    pub wanted_host: Option<Rc<WantedHost>>,
    /// Filters of the request body.
    pub request_body: Option<Rc<BodyChain>>,
    /// Filters of the response body.
    pub response_body: Option<BodyChain>,
    /// Why it is traced, once that is decided.
    pub trace_reason: Option<Reason>,
    /// Its trace, if anybody wants to know.
    pub trace: Option<Box<RequestTrace>>,
    /// What it counts for beside its cluster.
    pub route_counts: router::RouteCounts,
    /// It is tried again.
    pub retried: bool,
    /// The redirects that were followed for it.
    pub redirects: Option<Box<Redirects>>,
    /// Its place among those that are served.
    live: Live,
}

/// A client that does not read an answer of ours for this long does not get it.
const REPLY_LIMIT: Duration = Duration::from_secs(30);

impl Request<'_> {
    /// Ready when the drain's time is up, or somebody ends the request by hand. An HTTP/2 connection ends its streams itself then, so they need no waking.
    pub fn poll_drained(&self, cx: &mut std::task::Context<'_>) -> Poll<()> {
        if matches!(self.info.kill.get(), Kill::Asked | Kill::Overload) {
            return Poll::Ready(());
        }
        if self.is_weighed() && self.is_too_heavy(0) {
            return Poll::Ready(());
        }
        match self.downstream {
            Downstream::H1(_) => self.connection.registered.poll_expired(cx),
            Downstream::H2(_) if self.connection.registered.has_expired() => Poll::Ready(()),
            Downstream::H2(_) => {
                self.live.remember(cx);
                Poll::Pending
            }
        }
    }

    /// Whether requests that hold much memory are reset at this moment.
    pub fn is_weighed(&self) -> bool {
        self.connection.worker.process.overload.weighs_requests()
    }

    /// Whether it holds so much memory that it is to be reset, with what whoever asks holds for it. True once.
    #[cold]
    pub fn is_too_heavy(&self, more: usize) -> bool {
        if self.info.kill.get() != Kill::No {
            return false;
        }
        let requested = self.request_body.as_ref().map_or(0, |chain| chain.at_hand());
        let responded = self.response_body.as_ref().map_or(0, BodyChain::at_hand);
        let held = self.downstream.held() + self.info.kept_bytes.get() + requested + responded + more;
        let resets = self.connection.worker.resets(held, &self.connection.info.listener);
        if resets {
            self.info.kill.set(Kill::Overload);
        }
        resets
    }

    /// Ready with a time limit that has passed. Writes the entries of a request that lasts in passing.
    pub fn poll_limit(&self, cx: &mut std::task::Context<'_>) -> Poll<Limit> {
        loop {
            match self.deadlines.poll(cx) {
                Poll::Ready(Limit::LogFlush) => {
                    self.log(LogType::DownstreamPeriodic);
                    let interval = self.connection.node.config.access_log_times.interval;
                    self.deadlines.set(Limit::LogFlush, interval.map(|interval| Instant::now() + interval));
                }
                limit => return limit,
            }
        }
    }

    /// Writes an entry into each access log of the connection manager.
    pub fn log(&self, log_type: LogType) {
        self.log_to(&self.connection.node.access_logs, log_type);
    }

    /// Writes an entry into each access log of the router.
    pub fn log_try(&self, log_type: LogType) {
        self.log_to(&self.connection.node.upstream_logs, log_type);
    }

    fn log_to(&self, loggers: &[Arc<AccessLogger>], log_type: LogType) {
        if loggers.is_empty() {
            return;
        }
        let mut facts = self.facts();
        facts.log_type = log_type;
        if let Some(end) = self.info.end.get() {
            facts.now = end;
        }
        for logger in loggers {
            logger.log(&facts, self.connection.worker.random.next(), &*self.graph.runtime);
        }
    }

    /// What formats are made from.
    pub fn facts(&self) -> Facts<'_> {
        let connection = self.connection;
        let mut facts = Facts::new(&self.info, &connection.info, &connection.worker.process.clock, Instant::now());
        facts.request = Some(&self.head);
        facts.response = (self.response.status != 0).then_some(&self.response);
        facts.trailers = self.trailers.as_ref();
        facts.local_reply_body = &self.local_reply_body;
        facts.span = self.trace.as_ref().and_then(|trace| trace.identity.as_ref());
        facts.traced = self.trace_reason == Some(Reason::ServiceForced) && !self.info.health_check.get();
        facts
    }
}

/// The request head of a request, for mutations.
pub struct RequestSide<'a, 'b>(pub &'a mut Request<'b>);

impl Mutable for RequestSide<'_, '_> {
    fn headers(&mut self) -> &mut Headers {
        &mut self.0.head.headers
    }

    fn evaluate(&self, format: &Format, value: &mut Vec<u8>) {
        format::write_header(format, &self.0.facts(), value);
    }
}

/// The response head of a request, for mutations.
pub struct ResponseSide<'a, 'b>(pub &'a mut Request<'b>);

impl Mutable for ResponseSide<'_, '_> {
    fn headers(&mut self) -> &mut Headers {
        &mut self.0.response.headers
    }

    fn evaluate(&self, format: &Format, value: &mut Vec<u8>) {
        format::write_header(format, &self.0.facts(), value);
    }
}

impl RequestView for RequestHead {
    fn host(&self) -> &str {
        self.authority_str()
    }

    fn path(&self) -> &str {
        self.path_str()
    }

    fn method(&self) -> &str {
        self.method_str()
    }

    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let pseudo = match name {
            ":scheme" => self.scheme(),
            ":protocol" => self.protocol(),
            _ => b"",
        };
        let pseudo = (!pseudo.is_empty()).then_some(pseudo);
        pseudo.into_iter().chain(self.headers.get_all_by_name(name))
    }

    fn is_grpc(&self) -> bool {
        RequestHead::is_grpc(self)
    }
}

/// Serves a request from its head to its log entry.
pub async fn serve(
    connection: &Rc<HttpConnection>,
    head: RequestHead,
    framing: Framing,
    downstream: &Downstream<'_>,
    info: StreamInfo,
    deadlines: &Deadlines,
) {
    let mut request = begin(connection, head, framing, downstream, info, deadlines);
    if framing == Framing::None {
        request.info.request_end.set(Some(request.info.start));
        deadlines.set(Limit::Request, None);
    }
    if let Some(reply) = overload::refusal(&mut request) {
        send_local(&mut request, reply, None).await;
        return end(request);
    }
    let early = &connection.node.config.early_mutations;
    if !early.is_empty() {
        mutate::change(early, &mut RequestSide(&mut request));
    }
    let prepared = normalize::prepare(connection, &mut request.head);
    match prepared.and_then(|()| normalize::refuse_upgrade_with_content(&request.head, framing)) {
        Ok(()) => loop {
            route(&mut request).await;
            if !request.redirects.as_ref().is_some_and(|redirects| redirects.is_due) {
                break;
            }
            request = redirected(request);
        },
        Err(reply) => {
            begin_log(&request, None);
            send_local(&mut request, reply, None).await;
        }
    }
    end(request);
}

/// Writes the entry of a request that begins, and says when the next one is due.
fn begin_log(request: &Request<'_>, chosen: Option<&Chosen<'_>>) {
    let times = request.connection.node.config.access_log_times;
    if times.on_new_request {
        name_route(request, chosen);
        if let Some(name) = chosen.and_then(|chosen| chosen.cluster_name(&request.head))
            && let Some(node) = request.graph.clusters.get(&*name)
        {
            request.info.set_cluster(&node.config);
        }
        request.log(LogType::DownstreamStart);
    }
    if let Some(interval) = times.interval {
        request.deadlines.set(Limit::LogFlush, Some(Instant::now() + interval));
    }
}

/// Answers without looking for a route, and logs.
pub async fn answer(
    connection: &Rc<HttpConnection>,
    head: RequestHead,
    downstream: &Downstream<'_>,
    info: StreamInfo,
    deadlines: &Deadlines,
    reply: LocalReply,
) {
    let mut request = begin(connection, head, Framing::None, downstream, info, deadlines);
    send_local(&mut request, reply, None).await;
    end(request);
}

fn begin<'a>(
    connection: &'a Rc<HttpConnection>,
    head: RequestHead,
    framing: Framing,
    downstream: &'a Downstream<'a>,
    info: StreamInfo,
    deadlines: &'a Deadlines,
) -> Request<'a> {
    connection.stats.downstream_rq_total.increment();
    connection.stats.downstream_rq_active.increment();
    let graph = connection.worker.graph();
    let info = Rc::new(info);
    let line = [head.method(), b" ", head.path()];
    let live = LiveList::add(&connection.worker, &info, Owner::Http(Rc::clone(connection)), line);
    Request {
        connection,
        live,
        filters: connection.filters(&graph),
        graph,
        came_as_grpc: head.is_grpc(),
        head,
        response: connection.worker.heads.take_response(),
        response_ended: false,
        trailers: None,
        info,
        framing,
        downstream,
        deadlines,
        local_reply_body: Cow::Borrowed(b""),
        idle_timeout: connection.node.config.stream_idle_timeout,
        filter_states: FilterStates::default(),
        alpn: None,
        wanted_host: None,
        request_body: None,
        response_body: None,
        trace_reason: None,
        trace: None,
        route_counts: router::RouteCounts::default(),
        retried: false,
        redirects: None,
    }
}

/// The request that a redirect asks for, in the place of the one that was redirected.
fn redirected(mut request: Request<'_>) -> Request<'_> {
    conclude(&mut request);
    let mut redirects = request.redirects.unwrap_or_default();
    redirects.is_due = false;
    request.connection.worker.heads.give_response(request.response);
    let info = StreamInfo::new(Instant::now(), request.info.version);
    info.request_header_bytes.set(request.info.request_header_bytes.get());
    info.request_end.set(Some(info.start));
    request.deadlines.clear_request();
    let mut next =
        begin(request.connection, request.head, request.framing, request.downstream, info, request.deadlines);
    next.deadlines.begin(Limit::StreamIdle, next.info.start, next.idle_timeout);
    if next.framing != Framing::None {
        next.request_body.get_or_insert_default().replace(std::mem::take(&mut redirects.body), None);
    }
    next.redirects = Some(redirects);
    next
}

fn end(mut request: Request<'_>) {
    conclude(&mut request);
    let connection = request.connection;
    connection.worker.heads.give(request.head);
    connection.worker.heads.give_response(request.response);
}

/// Counts and logs what has become of a request.
fn conclude(request: &mut Request<'_>) {
    let connection = request.connection;
    let now = Instant::now();
    request.info.end.set(Some(now));
    let stats = &connection.stats;
    stats.downstream_rq_active.decrement();
    stats.downstream_rq_time.record(request.info.duration(now).as_millis() as u64);
    // A redirect that was followed was no response for the client.
    if request.info.response_code.get() != 0 && request.redirects.as_ref().is_none_or(|redirects| !redirects.is_due) {
        stats.response(request.info.response_code.get());
    }
    if !request.filters.slots.is_empty() {
        let graph = Rc::clone(&request.graph);
        filter::ends(request, &mut RouteChoice::of(connection, &graph, None));
    }
    if connection.node.config.tracing.is_some() {
        trace::end(request);
    }
    request.deadlines.set(Limit::LogFlush, None);
    request.log(LogType::DownstreamEnd);
    let worker = &connection.worker;
    worker.failures.note(
        &request.info,
        &connection.info,
        Some(&request.head),
        &worker.process.clock,
        &request.graph.runtime,
    );
}

async fn route(request: &mut Request<'_>) {
    let mut next = Some(0);
    while let Some(from) = next {
        next = route_from(request, from).await;
        if next.is_some() {
            // What a filter has waited for is in another graph than the one that the request was begun with.
            request.graph = request.connection.worker.graph();
            normalize::prepare_for_routes(request.connection, &mut request.head);
        }
    }
}

/// The filters from this place on, and what comes after them. The place to go on from with the graph of then, if a filter
/// has waited for that.
async fn route_from(request: &mut Request<'_>, from: usize) -> Option<usize> {
    let graph = Rc::clone(&request.graph);
    let connection = Rc::clone(request.connection);
    let mut choice = RouteChoice::new(&connection, &graph, request);
    if from == 0 {
        begin_log(request, choice.chosen.as_ref());
        trace::begin(request, choice.chosen.as_ref());
    }
    if !request.filters.slots.is_empty() {
        let turn = filter::requests(request, &mut choice, from, BodyFrom::Downstream).await;
        name_route(request, choice.chosen.as_ref());
        trace::set_route(request, choice.chosen.as_ref());
        match turn {
            Turn::Continue => {}
            Turn::LookAgain(next) => return Some(next),
            Turn::Restart => return None,
            Turn::Reply(reply) => {
                send_local(request, *reply, choice.chosen.as_ref()).await;
                return None;
            }
            Turn::Interrupted(failure) => {
                router::end(request, failure, choice.chosen.as_ref()).await;
                return None;
            }
        }
    }
    serve_route(request, &connection, choice.chosen).await;
    None
}

/// What the route says, or that there is none.
async fn serve_route(request: &mut Request<'_>, connection: &HttpConnection, chosen: Option<Chosen<'_>>) {
    let Some(chosen) = chosen else {
        connection.stats.no_route.increment();
        let mut reply = LocalReply::new(404, "route_not_found").flag(ResponseFlag::NoRouteFound);
        // Who asks for a tunnel may send through it already.
        reply.close = request.head.is_connect();
        return send_local(request, reply, None).await;
    };
    name_route(request, Some(&chosen));
    if request.head.is_tunnel()
        && let Some(protocol) = refused_upgrade(request, &chosen.route.action)
    {
        connection.stats.downstream_rq_ws_on_non_ws_route.increment();
        tracing::debug!("upgrade to {protocol} is not enabled");
        return send_local(request, LocalReply::new(403, "upgrade_failed").close(), Some(&chosen)).await;
    }
    if requires_tls(request, &chosen) {
        let mut reply = LocalReply::new(301, "direct_response");
        let (host, path) = (request.head.authority_str(), request.head.path_str());
        reply.location = Some(format!("https://{host}{path}"));
        connection.stats.rq_redirect.increment();
        return send_local(request, reply, Some(&chosen)).await;
    }
    connection.stats.rq_total.increment();
    match &chosen.route.action {
        RouteAction::Forward(forward) => {
            router::forward(request, &chosen, forward).await;
        }
        RouteAction::Redirect(redirect) => {
            connection.stats.rq_redirect.increment();
            let reply = redirect_reply(request, &chosen, redirect);
            send_local(request, reply, Some(&chosen)).await;
        }
        RouteAction::Direct(direct) => {
            connection.stats.rq_direct_response.increment();
            let reply = direct_reply(request, direct);
            send_local(request, reply, Some(&chosen)).await;
        }
        RouteAction::NonForwarding => {
            send_local(request, LocalReply::new(500, "direct_response"), Some(&chosen)).await;
        }
    }
}

fn name_route(request: &Request<'_>, chosen: Option<&Chosen<'_>>) {
    let Some(chosen) = chosen else { return };
    *request.info.route.borrow_mut() = Some(Arc::clone(chosen.route));
    if !chosen.route.name.is_empty() {
        *request.info.route_name.borrow_mut() = Some(Arc::clone(&chosen.route.name));
    }
}

/// The route that a request got.
#[derive(Clone, Copy)]
pub struct Chosen<'a> {
    /// The route configuration.
    pub table: &'a Arc<RouteTable>,
    /// The virtual host.
    pub virtual_host: &'a Arc<VirtualHost>,
    /// The route.
    pub route: &'a Arc<Route>,
    /// The one of the route's weighted clusters, if it has any.
    pub weighted: Option<&'a WeightedCluster>,
}

impl Chosen<'_> {
    /// Applies the request header mutations of all levels, the most specific one first unless configured otherwise.
    pub fn mutate_request(&self, request: &mut Request<'_>) {
        let configuration = self.table.configuration();
        let mut levels =
            [&self.route.request_headers, &self.virtual_host.request_headers, &configuration.request_headers];
        if configuration.most_specific_header_mutations_wins {
            levels.reverse();
        }
        for mutations in levels.into_iter().filter(|mutations| !mutations.is_empty()) {
            mutate::apply(mutations, &mut RequestSide(request));
        }
    }

    /// Applies the response header mutations of all levels in the same order.
    pub fn mutate_response(&self, request: &mut Request<'_>) {
        let configuration = self.table.configuration();
        let mut levels =
            [&self.route.response_headers, &self.virtual_host.response_headers, &configuration.response_headers];
        if configuration.most_specific_header_mutations_wins {
            levels.reverse();
        }
        for mutations in levels.into_iter().filter(|mutations| !mutations.is_empty()) {
            mutate::apply(mutations, &mut ResponseSide(request));
        }
    }
}

fn requires_tls(request: &Request<'_>, chosen: &Chosen<'_>) -> bool {
    let secure = request.head.headers.get(HeaderId::XForwardedProto) == Some(b"https");
    match chosen.virtual_host.require_tls {
        RequireTls::None => false,
        RequireTls::ExternalOnly => !secure && !request.head.headers.contains(HeaderId::XEnvoyInternal),
        RequireTls::All => !secure,
    }
}

fn refused_upgrade(request: &Request<'_>, action: &RouteAction) -> Option<String> {
    let upgrades = match action {
        RouteAction::Forward(forward) => &forward.upgrades[..],
        _ => &[],
    };
    let protocol = match request.head.protocol() {
        b"" if request.head.is_connect() => "connect",
        protocol => std::str::from_utf8(protocol).ok().filter(|protocol| !protocol.is_empty())?,
    };
    let on_route = upgrades.iter().find(|(name, _)| name == protocol).map(|(_, enabled)| *enabled);
    let configured = &request.connection.node.config.upgrades;
    let by_default = || configured.iter().any(|upgrade| upgrade.protocol == protocol && upgrade.enabled);
    (!on_route.unwrap_or_else(by_default)).then(|| protocol.to_owned())
}

fn redirect_reply(request: &Request<'_>, chosen: &Chosen<'_>, redirect: &Redirect) -> LocalReply {
    let head = &request.head;
    let scheme = head.headers.get_str(HeaderId::XForwardedProto).unwrap_or("http");
    let location = redirect_location(redirect, &chosen.route.matches, scheme, head.authority_str(), head.path_str());
    let mut reply = LocalReply::new(redirect.status, "direct_response");
    reply.location = Some(location);
    reply
}

fn direct_reply(request: &Request<'_>, direct: &DirectResponse) -> LocalReply {
    let mut body = direct.body.to_vec();
    if let Some(text) = &direct.body_format {
        body.clear();
        format::write(text, &request.facts(), &mut body);
    }
    let mut reply = LocalReply::new(direct.status, "direct_response").body(body);
    if direct.status == 201 {
        let head = &request.head;
        let scheme = head.headers.get_str(HeaderId::XForwardedProto).unwrap_or("http");
        reply.location = Some(format!("{scheme}://{}{}", head.authority_str(), head.path_str()));
    }
    reply
}

/// Whether the client has gone, a time limit has passed or the drain is over. A limit that was the reason for the answer
/// must have been cleared.
fn interrupted(request: &Request<'_>, cx: &mut std::task::Context<'_>) -> bool {
    request.downstream.poll_closed(cx).is_ready()
        || request.poll_limit(cx).is_ready()
        || request.poll_drained(cx).is_ready()
}

/// Sends a response of our own and records why.
///
/// Boxed: forwarded requests, which are most, should not pay for its size.
pub fn send_local<'a>(
    request: &'a mut Request<'_>,
    reply: LocalReply,
    chosen: Option<&'a Chosen<'_>>,
) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
    Box::pin(send_local_now(request, reply, chosen))
}

/// Writes the head of an answer in the form that the connection manager wants; returns whether its body follows.
fn write_head(request: &mut Request<'_>, reply: &mut LocalReply, grpc: bool) -> bool {
    let connection = Rc::clone(request.connection);
    let config = &connection.node.config;
    let rewritten = match &config.local_replies {
        Some(replies) => local_replies::rewrite(replies, request, reply),
        None => Rewritten::default(),
    };
    reply::begin_head(reply, &mut request.response);
    if let Some(instead) = &reply.instead {
        mutate::apply(&instead.headers, &mut ResponseSide(request));
    }
    if let Some(headers) = rewritten.headers {
        request.response.status = rewritten.status_before;
        request.info.response_code.set(rewritten.status_before);
        mutate::apply(headers, &mut ResponseSide(request));
        request.response.status = reply.status;
    }
    // What a mapper says of the body's type holds.
    let content_type = match request.response.headers.contains(HeaderId::ContentType) && rewritten.headers.is_some() {
        true => None,
        false => rewritten.content_type,
    };
    let has_body = reply::end_head(reply, grpc, content_type, &mut request.response);
    if config.always_set_request_id_in_response
        && let Some(id) = request.head.headers.get(HeaderId::XRequestId).map(<[u8]>::to_vec)
    {
        request.response.headers.set(HeaderId::XRequestId, &id);
    }
    has_body
}

async fn send_local_now(request: &mut Request<'_>, mut reply: LocalReply, chosen: Option<&Chosen<'_>>) {
    if request.info.kill.get() == Kill::Overload {
        return router::reset_for_overload(request);
    }
    if let Some(flag) = reply.flag {
        request.info.flag(flag);
    }
    request.info.set_details(reply.details.clone());
    match request.info.kill.get() {
        Kill::No => request.info.phase.set(Phase::Answer),
        // What has to be said must not be cut off for the same reason.
        Kill::Asked | Kill::Obeyed => request.info.kill.set(Kill::Obeyed),
        // It has been reset.
        Kill::Overload => {}
    }
    request.deadlines.clear_request();
    request.deadlines.set(Limit::StreamIdle, Some(Instant::now() + REPLY_LIMIT));
    if request.downstream.has_responded() {
        request.downstream.abort(h2::Reason::INTERNAL_ERROR);
        return;
    }
    if reply.flag == Some(ResponseFlag::DownstreamProtocolError) && matches!(request.downstream, Downstream::H2(_)) {
        request.downstream.abort(h2::Reason::INTERNAL_ERROR);
        return;
    }
    if reply.close || !request.downstream.request_is_done() || request.connection.registered.is_asked_to_end() {
        // What the client still sends would be taken for its next request.
        request.downstream.set_close();
    }
    let grpc = request.came_as_grpc;
    let has_body = write_head(request, &mut reply, grpc) && !request.head.is_head();
    request.response_ended = !has_body;
    request.local_reply_body = reply.body.clone();
    request.info.response_code.set(request.response.status);
    if let Some(chosen) = chosen {
        chosen.mutate_response(request);
    }
    let connection = Rc::clone(request.connection);
    let mut filtered = None;
    let mut chain = None;
    if !request.filters.slots.is_empty() && reply.instead.is_none() {
        let graph = Rc::clone(&request.graph);
        let mut choice = RouteChoice::of(&connection, &graph, chosen.copied());
        let given = Given::new(if has_body { &reply.body } else { b"" });
        // An answer that would replace this one has no place, unless that is what it is for: this is one already.
        let mut interrupted = match filter::responses(request, &mut choice, Origin::Local(&given)).await {
            Turn::Interrupted(_) => true,
            Turn::Restart => return,
            Turn::Reply(other) if other.instead.is_some() => {
                request.response_body = None;
                // As Envoy does, what the route adds to responses is added for those that it forwards alone.
                let forwards = |chosen: &&Chosen<'_>| matches!(chosen.route.action, RouteAction::Forward(_));
                return send_local(request, *other, chosen.filter(forwards)).await;
            }
            Turn::Continue | Turn::LookAgain(_) | Turn::Reply(_) => false,
        };
        chain = request.response_body.take().filter(|_| has_body);
        if let Some(chain) = &chain
            && !interrupted
        {
            let body = match chain.is_plain() {
                true => Some(chain.apply(reply.body.to_vec())),
                false => filter::whole(request, &chain.source(&given)).await,
            };
            interrupted = body.is_none();
            let body = body.unwrap_or_default();
            let mut text = [0; 20];
            let length = crate::http::h1::encode::decimal(body.len() as u64, &mut text);
            request.response.headers.set(HeaderId::ContentLength, length);
            filtered = Some(body);
        }
        // What was read from there has kept its pace already.
        chain = chain.filter(BodyChain::is_plain);
        if interrupted {
            request.info.flag(ResponseFlag::DownstreamConnectionTermination);
            request.downstream.abort(h2::Reason::CANCEL);
            return;
        }
    }
    trace::response_head(request);
    let now = Instant::now();
    reply::finish_head(&connection, &mut request.response, false, now);
    request.info.reached(Milestone::DownstreamTxBegin, now);
    overload::limit_keepalive(request);
    let sent = request.downstream.send_head(&request.response, !has_body);
    trace::mark(request, Mark::FirstDownstreamTx);
    let body: &[u8] = if has_body { filtered.as_deref().unwrap_or(&reply.body) } else { b"" };
    let mut position = 0;
    let finished = poll_fn(|cx| {
        if sent.is_err() {
            return Poll::Ready(false);
        }
        while position < body.len() {
            let left = &body[position..];
            let allowed = match &chain {
                None => Poll::Ready(left.len()),
                Some(chain) => chain.poll_allowance(cx, left.len()),
            };
            let sent = match allowed {
                Poll::Ready(allowed) => request.downstream.poll_send(cx, Chunk::Slice(&left[..allowed])),
                Poll::Pending => {
                    // What may go on goes now.
                    let _ = request.downstream.poll_flush(cx);
                    Poll::Pending
                }
            };
            match sent {
                Poll::Ready(Ok(count)) => {
                    position += count;
                    if let Some(chain) = &chain {
                        chain.passed(count);
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending if interrupted(request, cx) => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
        }
        match request.downstream.poll_finish(cx, None) {
            Poll::Ready(finished) => Poll::Ready(finished.is_ok()),
            Poll::Pending if interrupted(request, cx) => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    });
    if finished.await {
        trace::mark(request, Mark::LastDownstreamTx);
        request.info.reached(Milestone::DownstreamTxEnd, Instant::now());
        request.info.bytes_sent.set(body.len() as u64);
        request.info.response_sent.set(true);
    } else if request.info.kill.get() == Kill::Overload {
        router::reset_for_overload(request);
    } else {
        request.info.flag(ResponseFlag::DownstreamConnectionTermination);
        request.downstream.abort(h2::Reason::CANCEL);
    }
}
