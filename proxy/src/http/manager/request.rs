//! The life of one request.
//!
//! Owns the way from head to log entry. Never does what routes say (see `routing`), nor answers (see `answer`).

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use outrigger_config::format::Format;
use outrigger_config::http::filters::AlpnOffer;
use outrigger_policy::route::RequestView;
use outrigger_policy::trace::Reason;

use super::HttpConnection;
use super::downstream::Downstream;
use super::mutate::{self, Mutable};
use super::reply::LocalReply;
use super::routing::{asked_protocol, name_cluster, name_route, serve_route};
use super::{client_cert, normalize, overload};
use crate::accesslog::format;
use crate::accesslog::{AccessLogger, Facts, LogType};
use crate::http::filter::{self, BodyChain, BodyFrom, FilterStates, Filters, RouteChoice, Turn, WantedHost};
use crate::http::h1::parse::Framing;
use crate::http::headers::Headers;
use crate::http::message::{RequestHead, ResponseHead};
use crate::http::router::{self, redirect::Redirects};
use crate::stream::{Kill, StreamInfo};
use crate::trace::{self, RequestTrace};
use crate::worker::GraphView;
use crate::worker::deadlines::{Deadlines, Limit};
use crate::worker::live::{Live, LiveList, Owner};

pub use super::answer::{finish_response, send_local};
pub use super::routing::Chosen;

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
    /// What its tries need beyond the plain ones.
    pub tries: Option<Box<router::Tries>>,
    /// If its upstream takes too long, it is answered without content.
    pub no_content_when_late: bool,
    /// The redirects that were followed for it.
    pub redirects: Option<Box<Redirects>>,
    /// Its place among those that are served.
    live: Live,
}

impl Request<'_> {
    /// Ready when the drain's time is up, or somebody ends the request by hand. An HTTP/2 connection ends its streams itself then, so they need no waking.
    pub fn poll_drained(&self, cx: &mut std::task::Context<'_>) -> Poll<()> {
        if matches!(self.info.kill.get(), Kill::Asked | Kill::Overload) {
            return Poll::Ready(());
        }
        if self.is_weighed() {
            self.weigh(0, cx);
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

    /// Whether it is to say what it holds.
    pub fn is_weighed(&self) -> bool {
        self.connection.worker.weighing.is_on()
    }

    /// Says how much memory it holds, with what whoever is asked holds for it. As in Envoy this is about HTTP/2 only.
    #[cold]
    pub fn weigh(&self, more: usize, cx: &std::task::Context<'_>) {
        let worker = &self.connection.worker;
        if matches!(self.downstream, Downstream::H1(_)) || worker.listener_bypasses(&self.connection.info.listener) {
            return;
        }
        let requested = self.request_body.as_ref().map_or(0, |chain| chain.at_hand());
        let responded = self.response_body.as_ref().map_or(0, BodyChain::at_hand);
        let late = self.tries.as_ref().map_or(0, |tries| tries.held());
        let held = self.downstream.held() + self.info.kept_bytes.get() + requested + responded + late + more;
        worker.weighing.weigh(held, &self.info, cx.waker());
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
    info: Rc<StreamInfo>,
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
    let prepared = normalize::prepare(connection, &mut request.head, &request.info);
    if let Some(protocol) = asked_protocol(&request.head)
        && let Some(filters) = request.filters.of_upgrade(protocol)
    {
        request.filters = Rc::clone(filters);
    }
    match prepared.and_then(|()| normalize::refuse_upgrade_with_content(&request.head, framing)) {
        Ok(()) => {
            client_cert::forward(&mut request);
            loop {
                route(&mut request).await;
                if !request.redirects.as_ref().is_some_and(|redirects| redirects.is_due) {
                    break;
                }
                request = redirected(request);
            }
        }
        Err(reply) => {
            begin_log(&mut request, None);
            send_local(&mut request, reply, None).await;
        }
    }
    end(request);
}

/// Writes the entry of a request that begins, and says when the next one is due.
fn begin_log(request: &mut Request<'_>, chosen: Option<&Chosen<'_>>) {
    let times = request.connection.node.config.access_log_times;
    if times.on_new_request {
        name_route(request, chosen);
        name_cluster(request, chosen);
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
    info: Rc<StreamInfo>,
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
    info: Rc<StreamInfo>,
    deadlines: &'a Deadlines,
) -> Request<'a> {
    connection.stats.downstream_rq_total.increment();
    connection.stats.downstream_rq_active.increment();
    let graph = connection.worker.graph();
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
        tries: None,
        no_content_when_late: false,
        redirects: None,
    }
}

/// The request that a redirect asks for, in the place of the one that was redirected.
fn redirected(mut request: Request<'_>) -> Request<'_> {
    conclude(&mut request);
    let mut redirects = request.redirects.unwrap_or_default();
    redirects.is_due = false;
    request.connection.worker.heads.give_response(request.response);
    let info = Rc::new(StreamInfo::new(Instant::now(), request.info.version));
    info.request_header_bytes.set(request.info.request_header_bytes.get());
    info.request_end.set(Some(info.start));
    if let Some(client) = request.info.client.get() {
        let _ = info.client.set(client.clone());
    }
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
    // Where the response went out whole, that moment is known.
    let now = request.info.end.get().unwrap_or_else(Instant::now);
    request.info.end.set(Some(now));
    let stats = &connection.stats;
    stats.downstream_rq_active.decrement();
    stats.downstream_rq_time.record(request.info.duration(now).as_millis() as u64);
    // A redirect that was followed was no response for the client.
    if request.info.response_code.get() != 0 && request.redirects.as_ref().is_none_or(|redirects| !redirects.is_due) {
        stats.response(request.info.response_code.get());
        connection.listener_stats.response(request.info.response_code.get());
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
                name_cluster(request, choice.chosen.as_ref());
                send_local(request, *reply, choice.chosen.as_ref()).await;
                return None;
            }
            Turn::Interrupted(failure) => {
                name_cluster(request, choice.chosen.as_ref());
                router::end(request, failure, choice.chosen.as_ref()).await;
                return None;
            }
        }
    }
    serve_route(request, &connection, choice.chosen).await;
    None
}
