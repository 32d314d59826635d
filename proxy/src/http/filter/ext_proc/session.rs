//! What is said to a processing service of one request, and what it says.
//!
//! Owns the stream, the order of questions and answers in both directions, their time limits, and what follows from a
//! failure. Driven by whoever waits for an answer; never touches a message itself.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::http::ext_proc::v3 as pb;
use outrigger_api::pb::envoy::service::ext_proc::v3::processing_request::Request as Question;
use outrigger_api::pb::envoy::service::ext_proc::v3::processing_response::Response;
use outrigger_api::pb::envoy::service::ext_proc::v3::{
    CommonResponse, HeaderMutation, HttpBody, HttpHeaders, HttpTrailers, ImmediateResponse, ProcessingRequest,
    ProcessingResponse, ProtocolConfiguration,
};
use outrigger_api::pb::google::protobuf::{Struct, value::Kind};
use outrigger_config::http::filters::{BodyMode, MessageMode, MetadataChoice, ProcessingMode};
use outrigger_config::metadata::{self, MetadataMap};
use outrigger_config::source::GrpcCall;
use prost::Message;
use tokio::time::Sleep;

use super::Processor;
use super::changes::{self, Invalid, Permissions, Target};
use crate::http::manager::reply::LocalReply;
use crate::http::message::ResponseHead;
use crate::trace::{CallParent, CallSpan};
use crate::upstream::grpc_stream::{GrpcFailure, GrpcStream};
use crate::worker::Worker;

/// Which message something is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Direction {
    Request = 0,
    Response = 1,
}

/// An answer to one question.
#[derive(Debug)]
pub(super) enum Answer {
    Head(CommonResponse),
    Body(CommonResponse),
    Trailers(HeaderMutation),
}

/// What has come of a question.
pub(super) enum Outcome {
    Answer(Answer),
    /// The service says nothing more, and everything goes on as it is.
    Over,
    /// This is the answer to the client.
    Reply(Box<LocalReply>),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Asked {
    Head,
    Body,
    Trailers,
}

/// The state of one direction.
#[derive(Default)]
struct Lane {
    /// Questions that were not answered yet, in order.
    asked: VecDeque<Asked>,
    answers: VecDeque<Answer>,
    timer: Option<Pin<Box<Sleep>>>,
    /// The service has got more time for the question at hand.
    extended: bool,
    /// Told with the next message.
    attributes: Option<Struct>,
    /// Bodies come back with pieces of their own.
    duplex: bool,
}

/// A request in the hands of a service.
pub(super) struct Session {
    pub(super) processor: Rc<Processor>,
    worker: Rc<Worker>,
    service: Arc<GrpcCall>,
    /// Headers of the stream.
    initial_metadata: Vec<(String, String)>,
    /// What the span of the stream belongs to.
    trace: Option<CallParent>,
    mode: Cell<ProcessingMode>,
    failure_mode_allow: bool,
    pub(super) metadata: MetadataChoice,
    /// Told with each message.
    told_metadata: RefCell<core::Metadata>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    stream: Option<GrpcStream>,
    /// Of the stream. As in Envoy, streams that we end count as given up.
    span: Option<CallSpan>,
    opened: bool,
    /// Nothing more is asked or looked at.
    over: bool,
    lanes: [Lane; 2],
    reply: Option<Box<LocalReply>>,
    /// Metadata that the service has set, until somebody takes it to the request.
    set_metadata: Vec<(String, MetadataMap)>,
}

impl Session {
    /// A session of a request; nothing is opened yet.
    pub(super) fn new(
        processor: &Rc<Processor>,
        worker: &Rc<Worker>,
        service: Arc<GrpcCall>,
        initial_metadata: Vec<(String, String)>,
        mode: ProcessingMode,
        failure_mode_allow: bool,
        metadata: MetadataChoice,
    ) -> Self {
        Self {
            processor: Rc::clone(processor),
            worker: Rc::clone(worker),
            service,
            initial_metadata,
            trace: None,
            mode: Cell::new(mode),
            failure_mode_allow,
            metadata,
            told_metadata: RefCell::default(),
            state: RefCell::default(),
        }
    }

    /// The same, with a span of its stream that belongs to `trace`.
    pub(super) fn traced(self, trace: Option<CallParent>) -> Self {
        Self { trace, ..self }
    }

    /// What the service is told of this direction.
    pub(super) fn mode(&self, direction: Direction) -> MessageMode {
        let mode = self.mode.get();
        match direction {
            Direction::Request => mode.request,
            Direction::Response => mode.response,
        }
    }

    /// The service is told nothing more of this direction.
    pub(super) fn tell_no_more(&self, direction: Direction) {
        let mut mode = self.mode.get();
        let of = match direction {
            Direction::Request => &mut mode.request,
            Direction::Response => &mut mode.response,
        };
        (of.body, of.trailers) = (BodyMode::None, false);
        self.mode.set(mode);
    }

    /// Nothing more is asked.
    pub(super) fn is_over(&self) -> bool {
        self.state.borrow().over
    }

    /// What the next messages are told besides: metadata, and attributes with the first one of the direction.
    pub(super) fn prepare(&self, direction: Direction, metadata: core::Metadata, attributes: Option<Struct>) {
        *self.told_metadata.borrow_mut() = metadata;
        self.state.borrow_mut().lanes[direction as usize].attributes = attributes;
    }

    /// Tells a head.
    pub(super) fn send_head(&self, direction: Direction, headers: core::HeaderMap, end_of_stream: bool) {
        let message = HttpHeaders { headers: Some(headers), attributes: Default::default(), end_of_stream };
        let duplex = self.mode(direction).body == BodyMode::FullDuplex;
        self.state.borrow_mut().lanes[direction as usize].duplex = duplex;
        self.ask(
            direction,
            Asked::Head,
            match direction {
                Direction::Request => Question::RequestHeaders(message),
                Direction::Response => Question::ResponseHeaders(message),
            },
        );
    }

    /// Tells a piece of a body, or all of it.
    pub(super) fn send_body(&self, direction: Direction, body: Vec<u8>, end_of_stream: bool) {
        let message = HttpBody { body, end_of_stream, ..HttpBody::default() };
        let duplex = self.mode(direction).body == BodyMode::FullDuplex;
        self.state.borrow_mut().lanes[direction as usize].duplex |= duplex;
        self.ask(
            direction,
            Asked::Body,
            match direction {
                Direction::Request => Question::RequestBody(message),
                Direction::Response => Question::ResponseBody(message),
            },
        );
    }

    /// Tells trailers.
    pub(super) fn send_trailers(&self, direction: Direction, trailers: core::HeaderMap) {
        let message = HttpTrailers { trailers: Some(trailers) };
        self.ask(
            direction,
            Asked::Trailers,
            match direction {
                Direction::Request => Question::RequestTrailers(message),
                Direction::Response => Question::ResponseTrailers(message),
            },
        );
    }

    fn ask(&self, direction: Direction, asked: Asked, question: Question) {
        let mut state = self.state.borrow_mut();
        if state.over {
            return;
        }
        let settings = &self.processor.settings;
        let first = !state.opened;
        if first {
            state.opened = true;
            self.processor.stats.streams_started.increment();
            let (service, metadata) = (&self.service, &self.initial_metadata);
            let mut span = None;
            state.stream = Some(GrpcStream::open(&self.worker, service, PROCESS, metadata, |headers| {
                span = self.trace.as_ref().map(|parent| parent.begin_grpc(PROCESS, service, headers));
            }));
            state.span = span;
        }
        let mode = self.mode.get();
        let protocol = || ProtocolConfiguration {
            request_body_mode: wire_mode(mode.request.body),
            response_body_mode: wire_mode(mode.response.body),
            send_body_without_waiting_for_header_response: settings.sends_body_early,
        };
        let lane = &mut state.lanes[direction as usize];
        let attributes = lane.attributes.take().map(|attributes| (NAMESPACE.to_owned(), attributes));
        if !settings.observes {
            // What comes back has pieces and a pace of its own.
            if !lane.duplex {
                lane.timer = Some(Box::pin(tokio::time::sleep(settings.message_timeout)));
                lane.extended = false;
            }
            if !(lane.duplex && asked == Asked::Body) {
                lane.asked.push_back(asked);
            }
        }
        let message = ProcessingRequest {
            metadata_context: Some(self.told_metadata.borrow().clone()),
            attributes: attributes.into_iter().collect(),
            observability_mode: settings.observes,
            protocol_config: (first && !settings.observes).then(protocol),
            flow_control_init: None,
            client_window_update: None,
            request: Some(question),
        };
        if let Some(stream) = &state.stream {
            stream.send(&message);
            self.processor.stats.stream_msgs_sent.increment();
        }
    }

    /// Waits for the next answer of this direction.
    pub(super) fn answer(self: &Rc<Self>, direction: Direction) -> impl Future<Output = Outcome> + use<> {
        let session = Rc::clone(self);
        poll_fn(move |cx| session.poll_answer(direction, cx))
    }

    /// Ready with the next answer of this direction.
    pub(super) fn poll_answer(&self, direction: Direction, cx: &mut Context<'_>) -> Poll<Outcome> {
        self.poll(cx);
        let mut state = self.state.borrow_mut();
        if let Some(reply) = state.reply.take() {
            return Poll::Ready(Outcome::Reply(reply));
        }
        if let Some(answer) = state.lanes[direction as usize].answers.pop_front() {
            return Poll::Ready(Outcome::Answer(answer));
        }
        match state.over {
            true => Poll::Ready(Outcome::Over),
            false => Poll::Pending,
        }
    }

    /// Metadata that the service has set since the last time.
    pub(super) fn take_metadata(&self) -> Vec<(String, MetadataMap)> {
        std::mem::take(&mut self.state.borrow_mut().set_metadata)
    }

    /// The request is over.
    pub(super) fn end(&self) {
        let mut state = self.state.borrow_mut();
        state.over = true;
        let span = state.span.take();
        let Some(stream) = state.stream.take() else { return };
        let processor = Rc::clone(&self.processor);
        if !processor.settings.observes {
            stream.finish();
            return processor.stats.streams_closed.increment();
        }
        // What an observer was told last may still be on its way to it.
        tokio::task::spawn_local(async move {
            tokio::time::sleep(processor.settings.deferred_close_timeout).await;
            drop(span);
            stream.finish();
            processor.stats.streams_closed.increment();
        });
    }

    /// Looks at what has come, and at the clock.
    fn poll(&self, cx: &mut Context<'_>) {
        loop {
            let mut state = self.state.borrow_mut();
            if state.over {
                return;
            }
            let Some(stream) = &state.stream else { return };
            match stream.poll_message(cx) {
                Poll::Ready(Ok(Some(message))) => {
                    if let Ok(message) = ProcessingResponse::decode(message.as_slice()) {
                        self.take(&mut state, message);
                    } else {
                        let broken = GrpcFailure { code: 13, message: "the message cannot be read".into() };
                        self.failed(&mut state, &broken);
                    }
                }
                Poll::Ready(Ok(None)) => {
                    end_span(&mut state, 0);
                    state.stream = None;
                    state.over = true;
                    self.processor.stats.server_half_closed.increment();
                    self.processor.stats.streams_closed.increment();
                }
                Poll::Ready(Err(failure)) => self.failed(&mut state, &failure),
                Poll::Pending => break,
            }
        }
        let mut state = self.state.borrow_mut();
        let late = |lane: &mut Lane| lane.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
        if state.lanes.iter_mut().any(late) {
            self.timed_out(&mut state);
        }
    }

    fn close(&self, state: &mut State) {
        state.over = true;
        state.span = None;
        state.lanes.iter_mut().for_each(|lane| lane.timer = None);
        if let Some(stream) = state.stream.take() {
            stream.finish();
            self.processor.stats.streams_closed.increment();
        }
    }

    fn failed(&self, state: &mut State, failure: &GrpcFailure) {
        let stats = &self.processor.stats;
        tracing::debug!(cluster = &*self.service.cluster, "external processing: {failure}");
        stats.streams_failed.increment();
        end_span(state, failure.code);
        state.stream = None;
        state.over = true;
        state.lanes.iter_mut().for_each(|lane| lane.timer = None);
        stats.server_half_closed.increment();
        if self.failure_mode_allow {
            // From here on it is like a stream that the service has ended.
            stats.server_half_closed.increment();
            stats.streams_closed.increment();
            stats.failure_mode_allowed.increment();
            return;
        }
        let message = failure.message.replace(|letter: char| letter.is_ascii_whitespace(), "_");
        let details = match message.is_empty() {
            true => format!("ext_proc_error_gRPC_error_{}", failure.code),
            false => format!("ext_proc_error_gRPC_error_{}{{{message}}}", failure.code),
        };
        state.reply = Some(self.reply(self.processor.settings.status_on_error, details));
    }

    fn timed_out(&self, state: &mut State) {
        let stats = &self.processor.stats;
        stats.message_timeouts.increment();
        self.close(state);
        if self.failure_mode_allow {
            stats.failure_mode_allowed.increment();
            return;
        }
        state.reply = Some(self.reply(504, "ext_proc_error_per-message_timeout_exceeded"));
    }

    /// The service has said what nobody has asked, and is listened to no longer.
    pub(super) fn spurious(&self) -> Option<Box<LocalReply>> {
        let mut state = self.state.borrow_mut();
        self.be_spurious(&mut state);
        state.reply.take()
    }

    fn be_spurious(&self, state: &mut State) {
        tracing::debug!(cluster = &*self.service.cluster, "external processing: an answer that nobody has asked for");
        let stats = &self.processor.stats;
        stats.spurious_msgs_received.increment();
        self.close(state);
        match self.failure_mode_allow {
            true => stats.failure_mode_allowed.increment(),
            false => state.reply = Some(self.reply(500, "spurious_message")),
        }
    }

    /// The service has ended its stream, and has not given a body back.
    pub(super) fn lost(&self) -> Box<LocalReply> {
        self.reply(self.processor.settings.status_on_error, "ext_proc_error_body_not_given_back")
    }

    /// An answer instead of what the service failed at.
    fn reply(&self, status: u16, details: impl Into<Cow<'static, str>>) -> Box<LocalReply> {
        self.processor.stats.immediate_responses_sent.increment();
        Box::new(LocalReply::new(status, details))
    }

    /// The service wants what must not be.
    pub(super) fn invalid(&self, Invalid(why): Invalid) -> Box<LocalReply> {
        self.close(&mut self.state.borrow_mut());
        self.reply(500, why)
    }

    /// Makes changes that the service wants.
    pub(super) fn change(
        &self,
        mutation: &HeaderMutation,
        target: Target<'_>,
        permissions: Permissions,
    ) -> Result<(), Box<LocalReply>> {
        let Processor { settings, stats, .. } = &*self.processor;
        match changes::apply(mutation, target, &settings.rules, permissions) {
            Ok(rejected) => stats.rejected_header_mutations.add(rejected),
            Err((rejected, invalid)) => {
                stats.rejected_header_mutations.add(rejected);
                return Err(self.invalid(invalid));
            }
        }
        Ok(())
    }

    fn take(&self, state: &mut State, message: ProcessingResponse) {
        let Processor { settings, stats, .. } = &*self.processor;
        if settings.observes {
            return;
        }
        if let Some(timeout) = message.override_message_timeout {
            let seconds = u64::try_from(timeout.seconds).ok().zip(u32::try_from(timeout.nanos).ok());
            let timeout = seconds.map(|(seconds, nanos)| Duration::new(seconds, nanos.min(999_999_999)));
            let accepted = timeout.is_some_and(|timeout| self.extend(state, timeout));
            match accepted {
                true => stats.override_message_timeout_received.increment(),
                false => stats.override_message_timeout_ignored.increment(),
            }
            return;
        }
        if let Some(wanted) = &message.mode_override {
            self.override_mode(state, wanted);
        }
        let set = message.dynamic_metadata.map(|set| self.taken(set)).unwrap_or_default();
        let (direction, asked, answer) = match message.response {
            Some(Response::RequestHeaders(head)) => {
                (Direction::Request, Asked::Head, Answer::Head(head.response.unwrap_or_default()))
            }
            Some(Response::ResponseHeaders(head)) => {
                (Direction::Response, Asked::Head, Answer::Head(head.response.unwrap_or_default()))
            }
            Some(Response::RequestBody(body)) => {
                (Direction::Request, Asked::Body, Answer::Body(body.response.unwrap_or_default()))
            }
            Some(Response::ResponseBody(body)) => {
                (Direction::Response, Asked::Body, Answer::Body(body.response.unwrap_or_default()))
            }
            Some(Response::RequestTrailers(trailers)) => {
                (Direction::Request, Asked::Trailers, Answer::Trailers(trailers.header_mutation.unwrap_or_default()))
            }
            Some(Response::ResponseTrailers(trailers)) => {
                (Direction::Response, Asked::Trailers, Answer::Trailers(trailers.header_mutation.unwrap_or_default()))
            }
            Some(Response::ImmediateResponse(response)) if !settings.disable_immediate_response => {
                stats.stream_msgs_received.increment();
                state.set_metadata.extend(set);
                self.close(state);
                state.reply = Some(self.immediate(response));
                return;
            }
            Some(Response::ImmediateResponse(_) | Response::StreamedImmediateResponse(_)) | None => {
                return self.be_spurious(state);
            }
        };
        let lane = &mut state.lanes[direction as usize];
        let duplex_body = lane.duplex && asked == Asked::Body && !lane.asked.contains(&Asked::Head);
        if !duplex_body {
            if lane.asked.front() != Some(&asked) {
                return self.be_spurious(state);
            }
            lane.asked.pop_front();
            if lane.asked.is_empty() {
                lane.timer = None;
            }
        }
        lane.answers.push_back(answer);
        state.set_metadata.extend(set);
        stats.stream_msgs_received.increment();
    }

    /// Gives the service more time for the question at hand, once.
    fn extend(&self, state: &mut State, timeout: Duration) -> bool {
        let most = self.processor.settings.max_message_timeout;
        if timeout < Duration::from_millis(1) || timeout > most {
            return false;
        }
        let waiting = state.lanes.iter_mut().find(|lane| lane.timer.is_some() && !lane.extended);
        let Some(lane) = waiting else { return false };
        lane.timer = Some(Box::pin(tokio::time::sleep(timeout)));
        lane.extended = true;
        true
    }

    fn override_mode(&self, state: &State, wanted: &pb::ProcessingMode) {
        let settings = &self.processor.settings;
        let now = self.mode.get();
        let asks_head = state.lanes.iter().any(|lane| lane.asked.front() == Some(&Asked::Head));
        let duplex = [now.request.body, now.response.body].contains(&BodyMode::FullDuplex);
        if !settings.allow_mode_override || settings.sends_body_early || duplex || !asks_head {
            return;
        }
        let Ok(mut wanted) = ProcessingMode::read(wanted) else { return };
        // The head of the request has been told, or not, whatever is said now.
        wanted.request.headers = now.request.headers;
        let is_allowed = |allowed: &ProcessingMode| {
            let request = MessageMode { headers: wanted.request.headers, ..allowed.request };
            wanted == ProcessingMode { request, ..*allowed }
        };
        let allowed = &settings.allowed_override_modes;
        if allowed.is_empty() || allowed.iter().any(is_allowed) {
            self.mode.set(wanted);
        }
    }

    /// The namespaces of metadata that the service may set.
    fn taken(&self, set: Struct) -> Vec<(String, MetadataMap)> {
        let mine = set.fields.into_iter().filter(|(name, _)| self.metadata.taken.contains(name));
        let values = mine.filter_map(|(name, value)| match value.kind {
            Some(Kind::StructValue(values)) => Some((name, metadata::object(values))),
            _ => None,
        });
        values.collect()
    }

    fn immediate(&self, response: ImmediateResponse) -> Box<LocalReply> {
        let ImmediateResponse { status, headers, body, grpc_status, details } = response;
        let status = status.and_then(|status| u16::try_from(status.code).ok());
        let status = status.filter(|status| (200..600).contains(status)).unwrap_or(200);
        let details = details.replace(|letter: char| letter.is_ascii_whitespace(), "_");
        let mut reply = *self.reply(status, details);
        // RFC 9110 section 6.4.1: after these, bytes would be taken for the next message.
        if !matches!(status, 204 | 205 | 304) {
            reply = reply.body(body);
        }
        reply.grpc_status = grpc_status.map(|grpc| grpc.status);
        let mut head = ResponseHead { status, ..ResponseHead::default() };
        let Processor { settings, stats, .. } = &*self.processor;
        let changed = headers.map(|headers| {
            changes::apply(&headers, Target::Response(&mut head), &settings.rules, Permissions::default())
        });
        match changed {
            None => {}
            Some(Ok(rejected) | Err((rejected, _))) => stats.rejected_header_mutations.add(rejected),
        }
        reply.status = head.status;
        for (_, name, value) in head.headers.iter() {
            reply.header(String::from_utf8_lossy(name).into_owned(), value);
        }
        Box::new(reply)
    }
}

/// The stream has ended with this status of gRPC.
fn end_span(state: &mut State, status: u32) {
    if let Some(mut span) = state.span.take() {
        span.end_grpc(status);
    }
}

fn wire_mode(mode: BodyMode) -> i32 {
    use pb::processing_mode::BodySendMode;
    match mode {
        BodyMode::None => BodySendMode::None as i32,
        BodyMode::Streamed => BodySendMode::Streamed as i32,
        BodyMode::Buffered => BodySendMode::Buffered as i32,
        BodyMode::BufferedPartial => BodySendMode::BufferedPartial as i32,
        BodyMode::FullDuplex => BodySendMode::FullDuplexStreamed as i32,
    }
}

/// Where attributes stand in messages.
const NAMESPACE: &str = "envoy.filters.http.ext_proc";
const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
