//! The external processing filter: lets a service look at requests and responses, and change or answer them.
//!
//! Owns what the service is asked in which order, and what follows from its answers: heads, bodies that are buffered,
//! and the choice of the way of those that are not (see `body`). Never speaks to the service itself (see `session`).

mod body;
mod changes;
mod session;
mod told;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use outrigger_api::pb::envoy::service::ext_proc::v3::common_response::ResponseStatus;
use outrigger_api::pb::envoy::service::ext_proc::v3::{BodyMutation, CommonResponse, HeaderMutation};
use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{BodyMode, ExtProc as Settings, ExtProcRoute, RouteCacheAction};

use self::body::{Passage, Stage, Way, changed};
use self::changes::{Permissions, Target};
use self::session::{Answer, Direction, Outcome, Session};
use super::{Absorb, BodyInput, Exchange, HttpFilter, Maker, Place, Resume, Verdict};
use crate::http::manager::reply::LocalReply;
use crate::scope;
use crate::stats::names;
use crate::trace::CallParent;

scope! {
    /// Stats of the filter (`http.<prefix>.ext_proc.*`).
    pub struct ExtProcStats {
        clear_route_cache_disabled: Counter,
        clear_route_cache_ignored: Counter,
        clear_route_cache_upstream_ignored: Counter,
        failure_mode_allowed: Counter,
        http_not_ok_resp_received: Counter,
        immediate_responses_sent: Counter,
        message_timeouts: Counter,
        override_message_timeout_ignored: Counter,
        override_message_timeout_received: Counter,
        rejected_header_mutations: Counter,
        send_immediate_resp_upstream_ignored: Counter,
        server_half_closed: Counter,
        spurious_msgs_received: Counter,
        stream_msgs_received: Counter,
        stream_msgs_sent: Counter,
        streams_closed: Counter,
        streams_failed: Counter,
        streams_started: Counter,
    }
}

/// The filter.
pub struct ExtProc(Rc<Processor>);

/// What all requests have in common.
struct Processor {
    settings: Arc<Settings>,
    stats: Arc<ExtProcStats>,
    place: Place,
}

/// What the filter keeps for a request.
#[derive(Default)]
enum Kept {
    /// It has not been asked yet.
    #[default]
    Nothing,
    /// It is switched off for it.
    Off,
    /// The service is told of it.
    Session(Rc<Session>),
}

impl ExtProc {
    /// A filter with its stats.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        let part = match &*settings.stat_prefix {
            "" => "ext_proc".to_owned(),
            prefix => format!("ext_proc.{}", names::sanitize(prefix)),
        };
        Self(Rc::new(Processor { settings: Arc::clone(settings), stats: maker.stats(&part), place: maker.place }))
    }

    /// The session of the request; begun when either of its messages comes by. `None` if there is nothing to ask.
    fn session(&self, exchange: &mut Exchange<'_, '_, '_>) -> Option<Rc<Session>> {
        if let Kept::Nothing = exchange.state::<Kept>() {
            let kept = self.begin(exchange).map_or(Kept::Off, |session| Kept::Session(Rc::new(session)));
            *exchange.state::<Kept>() = kept;
        }
        match exchange.state::<Kept>() {
            Kept::Session(session) if !session.is_over() => Some(Rc::clone(session)),
            _ => None,
        }
    }

    /// `None` where a route switches the filter off. Of what several levels say, the most specific one counts.
    fn begin(&self, exchange: &Exchange<'_, '_, '_>) -> Option<Session> {
        let mut levels: Vec<&ExtProcRoute> = Vec::new();
        for config in exchange.route_configs() {
            match config {
                RouteFilterConfig::ExtProc(None) if levels.is_empty() => return None,
                RouteFilterConfig::ExtProc(None) => break,
                RouteFilterConfig::ExtProc(Some(route)) => levels.push(route),
                _ => {}
            }
        }
        let settings = &self.0.settings;
        let service = levels.iter().find_map(|level| level.service.as_ref()).unwrap_or(&settings.service);
        let metadata = levels.iter().find_map(|level| level.metadata.as_ref()).unwrap_or(&settings.metadata);
        let allow = levels.iter().find_map(|level| level.failure_mode_allow);
        let initial_metadata = levels.iter().rev().flat_map(|level| level.initial_metadata.iter().cloned());
        let session = Session::new(
            &self.0,
            exchange.worker(),
            Arc::clone(service),
            initial_metadata.collect(),
            levels.iter().find_map(|level| level.mode).unwrap_or(settings.mode),
            allow.unwrap_or(settings.failure_mode_allow),
            metadata.clone(),
        );
        if let Some(fields) = &settings.fields {
            exchange.info().filter_state.borrow_mut().add_fields(exchange.name(), fields.clone());
        }
        let emits = levels.iter().find_map(|level| level.emits_span).unwrap_or(settings.emits_span);
        let trace = CallParent::of(exchange.stream());
        Some(session.traced(if emits { trace } else { trace.map(CallParent::quiet) }))
    }
}

impl HttpFilter for ExtProc {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        match self.session(exchange) {
            Some(session) => begin(&session, Direction::Request, exchange),
            None => Verdict::Continue,
        }
    }

    fn request_body(&self, exchange: &mut Exchange<'_, '_, '_>, body: &[u8]) -> Verdict {
        match self.session(exchange) {
            Some(session) => ask_body(session, Direction::Request, body),
            None => Verdict::Continue,
        }
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        match self.session(exchange) {
            Some(session) => begin(&session, Direction::Response, exchange),
            None => Verdict::Continue,
        }
    }

    fn response_part(&self, exchange: &mut Exchange<'_, '_, '_>, body: &[u8]) -> Verdict {
        match self.session(exchange) {
            Some(session) => ask_body(session, Direction::Response, body),
            None => Verdict::Continue,
        }
    }

    fn end(&self, exchange: &mut Exchange<'_, '_, '_>) {
        let Some(Kept::Session(session)) = exchange.known_state::<Kept>() else { return };
        let session = Rc::clone(session);
        take_metadata(&session, exchange);
        session.end();
    }
}

/// What the service has set goes to the request.
fn take_metadata(session: &Session, exchange: &Exchange<'_, '_, '_>) {
    for (namespace, values) in session.take_metadata() {
        exchange.set_metadata(&namespace, &values);
    }
}

fn has_no_body(direction: Direction, exchange: &Exchange<'_, '_, '_>) -> bool {
    match direction {
        // What follows a tunnel's head is no body.
        Direction::Request => exchange.has_no_body() || exchange.head().is_tunnel(),
        Direction::Response => exchange.response_has_no_body() || exchange.response().status == 101,
    }
}

/// Tells the head of a message, or begins with its body.
fn begin(session: &Rc<Session>, direction: Direction, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
    let settings = &session.processor.settings;
    let wanted = match direction {
        Direction::Request => &settings.request_attributes,
        Direction::Response => &settings.response_attributes,
    };
    let metadata = told::metadata(exchange, &session.metadata);
    session.prepare(direction, metadata, told::attributes(exchange, wanted));
    let mode = session.mode(direction);
    let no_body = has_no_body(direction, exchange);
    if mode.headers {
        let headers = match direction {
            Direction::Request => told::request(exchange.head(), &settings.headers),
            Direction::Response => told::response(exchange.response(), &settings.headers),
        };
        session.send_head(direction, headers, no_body);
    }
    if settings.observes {
        let way = Way::Observed { body: mode.body == BodyMode::Streamed, trailers: mode.trailers };
        if !no_body && way != (Way::Observed { body: false, trailers: false }) {
            // Nothing is changed, so that what the head says of the length stays true.
            stage(Passage::new(session, direction, way), direction, exchange, Length::Kept);
        }
        return Verdict::Continue;
    }
    if !mode.headers {
        return go_on(session, direction, exchange);
    }
    let early = mode.body == BodyMode::FullDuplex || settings.sends_body_early && mode.body == BodyMode::Streamed;
    if early && !no_body {
        let way = if mode.body == BodyMode::FullDuplex { Way::Duplex } else { Way::Streamed };
        let passage = Rc::new(RefCell::new(Passage::new(session, direction, way)));
        return Verdict::Absorb(Box::new(Early { session: Rc::clone(session), direction, passage }));
    }
    let session = Rc::clone(session);
    Verdict::wait(session.answer(direction), move |outcome, exchange| {
        after_head(&session, direction, None, outcome, exchange)
    })
}

/// Tells the body while the answer to the head is waited for.
struct Early {
    session: Rc<Session>,
    direction: Direction,
    passage: Rc<RefCell<Passage>>,
}

impl Absorb for Early {
    fn poll(&mut self, cx: &mut Context<'_>, body: &dyn BodyInput) -> Poll<Resume> {
        // A body that breaks off is met again by whoever reads on.
        while matches!(self.passage.borrow_mut().feed(cx, body), Ok(true)) {}
        let Poll::Ready(outcome) = self.session.poll_answer(self.direction, cx) else { return Poll::Pending };
        let (session, direction, passage) = (Rc::clone(&self.session), self.direction, Rc::clone(&self.passage));
        Poll::Ready(Box::new(move |exchange| after_head(&session, direction, Some(passage), outcome, exchange)))
    }
}

/// Does what the service says of a head. `passage` is the body that has been told already.
fn after_head(
    session: &Rc<Session>,
    direction: Direction,
    passage: Option<Rc<RefCell<Passage>>>,
    outcome: Outcome,
    exchange: &mut Exchange<'_, '_, '_>,
) -> Verdict {
    take_metadata(session, exchange);
    let response = match outcome {
        Outcome::Reply(reply) => return Verdict::Reply(reply),
        // What was told of the body comes back by the way that it went.
        Outcome::Over => {
            if let Some(passage) = passage {
                stage_shared(passage, direction, exchange, Length::Unknown);
            }
            return Verdict::Continue;
        }
        Outcome::Answer(Answer::Head(response)) => response,
        Outcome::Answer(_) => return session.spurious().map_or(Verdict::Continue, Verdict::Reply),
    };
    let CommonResponse { status, header_mutation, body_mutation, trailers: _, clear_route_cache } = response;
    let replacing = status == ResponseStatus::ContinueAndReplace as i32;
    if let Err(reply) = change_head(session, direction, header_mutation.as_ref(), replacing, exchange) {
        return Verdict::Reply(reply);
    }
    reroute(session, direction, header_mutation.is_some(), clear_route_cache, exchange);
    if replacing {
        session.tell_no_more(direction);
        if let Some(mutation) = body_mutation {
            replace(session, direction, mutation, exchange);
        } else if let Some(passage) = passage {
            stage_shared(passage, direction, exchange, Length::Unknown);
        }
        return Verdict::Continue;
    }
    match passage {
        Some(passage) => {
            stage_shared(passage, direction, exchange, Length::Unknown);
            Verdict::Continue
        }
        None => go_on(session, direction, exchange),
    }
}

fn change_head(
    session: &Session,
    direction: Direction,
    mutation: Option<&HeaderMutation>,
    replacing: bool,
    exchange: &mut Exchange<'_, '_, '_>,
) -> Result<(), Box<LocalReply>> {
    let Some(mutation) = mutation else { return Ok(()) };
    let target = match direction {
        Direction::Request => Target::Request(exchange.head_mut()),
        Direction::Response => Target::Response(exchange.response_mut()),
    };
    session.change(mutation, target, Permissions { replacing })
}

/// Chooses the route anew if the head has changed and somebody wants that.
fn reroute(session: &Session, direction: Direction, changed: bool, asked: bool, exchange: &mut Exchange<'_, '_, '_>) {
    let Processor { settings, stats, place } = &*session.processor;
    if direction == Direction::Response {
        return;
    }
    if *place == Place::Upstream {
        // The route has been taken.
        if asked {
            stats.clear_route_cache_upstream_ignored.increment();
        }
        return;
    }
    match (changed, settings.route_cache) {
        (false, _) if asked => stats.clear_route_cache_ignored.increment(),
        (true, RouteCacheAction::Retain) if asked => stats.clear_route_cache_disabled.increment(),
        (true, RouteCacheAction::Clear) => exchange.reroute(),
        (true, RouteCacheAction::Default) if asked => exchange.reroute(),
        _ => {}
    }
}

/// Puts another body in the place of one that has not been read.
fn replace(session: &Rc<Session>, direction: Direction, mutation: BodyMutation, exchange: &mut Exchange<'_, '_, '_>) {
    let body = changed(Vec::new(), mutation.mutation);
    match (direction, has_no_body(direction, exchange)) {
        (Direction::Request, true) => exchange.replace_request(body),
        (Direction::Response, true) => exchange.replace_response(body),
        (_, false) => stage(Passage::replaced(session, direction, body), direction, exchange, Length::Unknown),
    }
}

/// Whether a body may have another length than its head says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Length {
    Kept,
    Unknown,
}

fn stage(passage: Passage, direction: Direction, exchange: &mut Exchange<'_, '_, '_>, length: Length) {
    stage_shared(Rc::new(RefCell::new(passage)), direction, exchange, length);
}

fn stage_shared(
    passage: Rc<RefCell<Passage>>,
    direction: Direction,
    exchange: &mut Exchange<'_, '_, '_>,
    length: Length,
) {
    let stage = Box::new(Stage(passage));
    match direction {
        Direction::Request => exchange.stage_request(stage, length == Length::Kept),
        Direction::Response => exchange.stage_response(stage, length == Length::Kept),
    }
}

/// Goes on to the body, when the head is settled.
fn go_on(session: &Rc<Session>, direction: Direction, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
    let mode = session.mode(direction);
    if has_no_body(direction, exchange) {
        return Verdict::Continue;
    }
    let (way, length) = match mode.body {
        BodyMode::None if !mode.trailers => return Verdict::Continue,
        BodyMode::None => (Way::TrailersOnly, Length::Kept),
        BodyMode::Streamed => (Way::Streamed, Length::Unknown),
        BodyMode::FullDuplex => (Way::Duplex, Length::Unknown),
        BodyMode::Buffered => return Verdict::Collect { limit_bytes: BUFFERED_BYTES },
        BodyMode::BufferedPartial => return Verdict::Peek { bytes: BUFFERED_BYTES },
    };
    stage(Passage::new(session, direction, way), direction, exchange, length);
    Verdict::Continue
}

/// Tells a body that was buffered, or its beginning.
fn ask_body(session: Rc<Session>, direction: Direction, body: &[u8]) -> Verdict {
    let original = body.to_vec();
    // The trailers are where the body is put back, which is after this.
    Verdict::wait(std::future::ready(()), move |(), exchange| {
        let trailers = with_trailers(direction, exchange, |_| ()).is_some();
        let whole = original.len() < BUFFERED_BYTES || session.mode(direction).body == BodyMode::Buffered;
        session.send_body(direction, original.clone(), whole && !trailers);
        let answer = session.answer(direction);
        Verdict::wait(answer, move |outcome, exchange| after_body(&session, direction, original, outcome, exchange))
    })
}

fn with_trailers<R>(
    direction: Direction,
    exchange: &mut Exchange<'_, '_, '_>,
    look: impl FnOnce(&mut crate::http::headers::Headers) -> R,
) -> Option<R> {
    match direction {
        Direction::Request => exchange.with_request_trailers(look),
        Direction::Response => exchange.with_response_trailers(look),
    }
}

/// Does what the service says of a body that was buffered.
fn after_body(
    session: &Rc<Session>,
    direction: Direction,
    original: Vec<u8>,
    outcome: Outcome,
    exchange: &mut Exchange<'_, '_, '_>,
) -> Verdict {
    take_metadata(session, exchange);
    let response = match outcome {
        Outcome::Reply(reply) => return Verdict::Reply(reply),
        Outcome::Over => return Verdict::Continue,
        Outcome::Answer(Answer::Body(response)) => response,
        Outcome::Answer(_) => return session.spurious().map_or(Verdict::Continue, Verdict::Reply),
    };
    let CommonResponse { status: _, header_mutation, body_mutation, trailers: _, clear_route_cache } = response;
    if let Err(reply) = change_head(session, direction, header_mutation.as_ref(), false, exchange) {
        return Verdict::Reply(reply);
    }
    if let Some(mutation) = body_mutation {
        let body = changed(original, mutation.mutation);
        match direction {
            Direction::Request => exchange.replace_request(body),
            Direction::Response => exchange.replace_response(body),
        }
    }
    reroute(session, direction, header_mutation.is_some(), clear_route_cache, exchange);
    let choice = &session.processor.settings.headers;
    let wanted = session.mode(direction).trailers;
    let trailers = with_trailers(direction, exchange, |trailers| told::trailers(trailers, choice));
    let Some(trailers) = trailers.filter(|_| wanted) else { return Verdict::Continue };
    session.send_trailers(direction, trailers);
    let session = Rc::clone(session);
    Verdict::wait(session.answer(direction), move |outcome, exchange| {
        after_trailers(&session, direction, outcome, exchange)
    })
}

fn after_trailers(
    session: &Session,
    direction: Direction,
    outcome: Outcome,
    exchange: &mut Exchange<'_, '_, '_>,
) -> Verdict {
    take_metadata(session, exchange);
    let mutation = match outcome {
        Outcome::Reply(reply) => return Verdict::Reply(reply),
        Outcome::Answer(Answer::Trailers(mutation)) => mutation,
        Outcome::Over | Outcome::Answer(_) => return Verdict::Continue,
    };
    let changed = with_trailers(direction, exchange, |trailers| {
        session.change(&mutation, Target::Trailers(trailers), Permissions::default())
    });
    match changed {
        Some(Err(reply)) => Verdict::Reply(reply),
        Some(Ok(())) | None => Verdict::Continue,
    }
}

/// What is buffered of a body at most; longer ones are refused, or told in part. Source: the default of
/// `Listener.per_connection_buffer_limit_bytes`.
const BUFFERED_BYTES: usize = 1 << 20;
