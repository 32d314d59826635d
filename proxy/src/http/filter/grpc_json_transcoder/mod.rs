//! The gRPC-JSON transcoder: clients call gRPC services with JSON.
//!
//! Owns what becomes of heads, and how far a response is read before its head is known. The translation itself is in
//! `outrigger_policy::transcoding`. Never routes a call.

mod body;

use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use outrigger_config::http::filters::transcoder::{StreamStyle, TranscodedMethod, Transcoder};
use outrigger_config::http::{HeaderMutations, RouteFilterConfig};
use outrigger_policy::grpc_status::http_status;
use outrigger_policy::transcoding::{
    NoCall, RequestError, RequestTranslator, ResponseError, ResponseTranslator, find, status_json,
};
use prost::Message as _;

use self::body::{RequestStage, ResponseStage};
use super::{Absorb, BodyInput, Exchange, HttpFilter, Maker, Resume, Verdict};
use crate::http::h1::encode::decimal;
use crate::http::headers::{HeaderId, Headers};
use crate::http::manager::reply::{Instead, LocalReply};
use crate::http::message::{Version, is_grpc_content_type};
use crate::scope;

scope! {
    /// Stats of the filter (`http.<prefix>.*`).
    pub struct TranscoderStats {
        transcoder_request_buffer_bytes: Gauge,
        transcoder_response_buffer_bytes: Gauge,
    }
}

/// The filter.
pub struct GrpcJsonTranscoder {
    /// `None` if only routes say something.
    settings: Option<Arc<Transcoder>>,
    stats: Arc<TranscoderStats>,
}

/// What the filter keeps for a request.
#[derive(Default)]
struct State(Option<Ongoing>);

/// A request that has become a call.
#[derive(Clone)]
struct Ongoing {
    transcoder: Arc<Transcoder>,
    method: Arc<TranscodedMethod>,
}

impl GrpcJsonTranscoder {
    /// A filter with its stats.
    pub fn new(settings: Option<&Arc<Transcoder>>, maker: &Maker<'_>) -> Self {
        Self { settings: settings.cloned(), stats: maker.stats("") }
    }

    fn settings(&self, exchange: &Exchange<'_, '_, '_>) -> Option<Arc<Transcoder>> {
        let of_route = exchange.route_configs().find_map(|config| match config {
            RouteFilterConfig::GrpcJsonTranscoder(settings) => Some(settings),
            _ => None,
        });
        of_route.unwrap_or(&self.settings).clone()
    }

    /// Turns a request into the call that it stands for.
    fn begin(&self, exchange: &mut Exchange<'_, '_, '_>, transcoder: &Arc<Transcoder>) -> Result<(), Box<LocalReply>> {
        let head = exchange.head();
        let call = match find(transcoder, head.method_str(), head.path_str()) {
            Ok(call) => call,
            Err(NoCall::Unknown { .. }) if !transcoder.rejects_unknown_method => return Ok(()),
            Err(NoCall::Parameter(_)) if !transcoder.rejects_unknown_parameters => return Ok(()),
            Err(error @ NoCall::Unknown { .. }) => return Err(refusal(404, EARLY, "NOT_FOUND", error)),
            Err(error @ NoCall::Parameter(_)) => return Err(refusal(400, EARLY, INVALID, error)),
        };
        let method = Arc::clone(&call.rule.method);
        let content_type = head.headers.get(HeaderId::ContentType).unwrap_or_default();
        let unset = if method.raw_input.is_some() { MAX_RAW_BYTES } else { MAX_MESSAGE_BYTES };
        let limit = transcoder.max_request_bytes.map_or(unset, |limit| limit as usize);
        let mut translator = RequestTranslator::new(transcoder, call, content_type, limit)
            .map_err(|error| request_refusal(&error, LATE))?;
        become_call(exchange, &method);
        if !transcoder.keeps_route {
            exchange.reroute();
        }
        if exchange.has_no_body() {
            let frames = translator.finish().map_err(|error| request_refusal(&error, EARLY))?;
            if !frames.is_empty() {
                exchange.replace_request(frames);
                exchange.forget_request_length();
            }
        } else {
            exchange.stage_request(Box::new(RequestStage::new(translator, &self.stats)), false);
        }
        *exchange.state::<State>() = State(Some(Ongoing { transcoder: Arc::clone(transcoder), method }));
        Ok(())
    }
}

impl HttpFilter for GrpcJsonTranscoder {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Some(transcoder) = self.settings(exchange) else { return Verdict::Continue };
        if exchange.head().is_grpc() || exchange.head().is_connect() {
            return Verdict::Continue;
        }
        match self.begin(exchange, &transcoder) {
            Ok(()) => Verdict::Continue,
            Err(reply) => Verdict::Reply(reply),
        }
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Some(ongoing) = exchange.known_state::<State>().and_then(|state| state.0.clone()) else {
            return Verdict::Continue;
        };
        let trailers_only = exchange.response_has_no_body();
        if !is_answer(exchange, trailers_only) {
            return Verdict::Continue;
        }
        let Ongoing { transcoder, method } = &ongoing;
        if trailers_only {
            if method.server_streaming {
                set_stream_type(exchange, transcoder);
            }
            answer_without_body(exchange, &ongoing);
            return Verdict::Continue;
        }
        if method.server_streaming {
            set_stream_type(exchange, transcoder);
        } else {
            exchange.response_mut().headers.set(HeaderId::ContentType, JSON);
        }
        let limit = transcoder.max_response_bytes.map_or(MAX_RESPONSE_BYTES, |limit| limit as usize);
        let translator = ResponseTranslator::new(transcoder, method);
        let stage = ResponseStage::new(translator, &self.stats, limit, transcoder);
        if method.server_streaming && method.raw_output.is_none() {
            exchange.stage_response(Box::new(stage), false);
            return Verdict::Continue;
        }
        Verdict::Absorb(Box::new(Whole { stage: Some(stage), ongoing }))
    }
}

/// Whether an upstream that speaks gRPC has answered.
fn is_answer(exchange: &Exchange<'_, '_, '_>, trailers_only: bool) -> bool {
    let response = exchange.response();
    if trailers_only {
        return response.headers.contains(HeaderId::GrpcStatus);
    }
    response.status == 200 && response.headers.get(HeaderId::ContentType).is_some_and(is_grpc_content_type)
}

/// Makes the head that of a call.
fn become_call(exchange: &mut Exchange<'_, '_, '_>, method: &TranscodedMethod) {
    let head = exchange.head_mut();
    let (path, verb) = (head.path().to_vec(), head.method().to_vec());
    head.headers.remove(HeaderId::ContentLength);
    head.headers.set(HeaderId::ContentType, b"application/grpc");
    head.headers.set(HeaderId::XEnvoyOriginalPath, &path);
    head.headers.append(b"x-envoy-original-method", &verb);
    head.headers.set(HeaderId::Te, b"trailers");
    head.set_path(method.path.as_bytes());
    head.set_method(b"POST");
}

fn set_stream_type(exchange: &mut Exchange<'_, '_, '_>, transcoder: &Transcoder) {
    let kind = if transcoder.printing.stream == StreamStyle::Events { EVENTS } else { JSON };
    exchange.response_mut().headers.set(HeaderId::ContentType, kind);
}

/// Reads a response as far as its head depends on it: to its end, or, in a stream of bodies, to the first of them.
struct Whole {
    stage: Option<ResponseStage>,
    ongoing: Ongoing,
}

impl Absorb for Whole {
    fn poll(&mut self, cx: &mut Context<'_>, body: &dyn BodyInput) -> Poll<Resume> {
        let Some(stage) = &mut self.stage else { return Poll::Pending };
        let streams = self.ongoing.method.server_streaming;
        let read = loop {
            match stage.read(cx, body) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(true)) if streams && stage.content_type().is_some() => break Ok(()),
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => break Ok(()),
                Poll::Ready(Err(reply)) => break Err(reply),
            }
        };
        let Some(stage) = self.stage.take() else { return Poll::Pending };
        let ongoing = self.ongoing.clone();
        Poll::Ready(Box::new(move |exchange| match read {
            Ok(()) => answer(exchange, &ongoing, stage),
            Err(reply) => {
                *exchange.state::<State>() = State(None);
                Verdict::Reply(reply)
            }
        }))
    }
}

/// Gives the head of a response what its body says.
fn answer(exchange: &mut Exchange<'_, '_, '_>, ongoing: &Ongoing, mut stage: ResponseStage) -> Verdict {
    let Ongoing { transcoder, method } = ongoing;
    if let Some(kind) = stage.content_type() {
        exchange.response_mut().headers.set(HeaderId::ContentType, kind);
    }
    if method.server_streaming {
        exchange.stage_response(Box::new(stage), false);
        return Verdict::Continue;
    }
    let is_http2 = exchange.head().version == Version::Http2;
    let response = exchange.response_mut();
    if let Some(trailers) = stage.trailers() {
        let status = Status::of(trailers);
        if let Some(json) = status.json(transcoder).filter(|_| !stage.has_body()) {
            response.status = http_status(status.code.unwrap_or_default());
            response.headers.set(HeaderId::ContentType, JSON);
            stage.replace(json);
        } else {
            status.tell(response);
        }
        if !is_http2 {
            response.headers.remove_by_name("trailer");
        }
    }
    let length = stage.trailers().is_some().then(|| stage.ready());
    exchange.stage_response(Box::new(stage), false);
    if let Some(length) = length {
        let headers = &mut exchange.response_mut().headers;
        headers.set(HeaderId::ContentLength, decimal(length as u64, &mut [0; 20]));
    }
    Verdict::Continue
}

/// Answers for a call whose status is all that there is.
fn answer_without_body(exchange: &mut Exchange<'_, '_, '_>, ongoing: &Ongoing) {
    let Ongoing { transcoder, method } = ongoing;
    let is_http2 = exchange.head().version == Version::Http2;
    let response = exchange.response_mut();
    let status = Status::of(&response.headers);
    let json = status.json(transcoder);
    response.status = status.http();
    if json.is_some() {
        response.headers.set(HeaderId::ContentType, JSON);
        response.headers.remove(HeaderId::GrpcStatus);
        response.headers.remove(HeaderId::GrpcMessage);
        response.headers.remove_by_name(DETAILS);
    }
    if !is_http2 {
        response.headers.remove_by_name("trailer");
    }
    let converted = json.is_some();
    // Nothing was begun, so nothing can be cut.
    let body = json.unwrap_or_else(|| ResponseTranslator::new(transcoder, method).finish().unwrap_or_default());
    if !body.is_empty() {
        exchange.replace_response(body);
        if method.server_streaming && !converted {
            exchange.response_mut().headers.remove(HeaderId::ContentLength);
        }
    } else if !method.server_streaming {
        exchange.response_mut().headers.set(HeaderId::ContentLength, b"0");
    }
}

/// How a call has ended.
struct Status {
    /// `None` if nobody says, or if it is no number.
    code: Option<u64>,
    message: Vec<u8>,
    /// A `google.rpc.Status`.
    details: Option<Vec<u8>>,
}

impl Status {
    fn of(headers: &Headers) -> Self {
        Self {
            code: headers.get_str(HeaderId::GrpcStatus).and_then(|code| code.parse().ok()),
            message: headers.get(HeaderId::GrpcMessage).unwrap_or_default().to_vec(),
            details: headers
                .get_by_name(DETAILS)
                .and_then(|text| BASE64.decode(text).ok())
                .filter(|bytes| is_status(bytes)),
        }
    }

    fn http(&self) -> u16 {
        self.code.map_or(503, http_status)
    }

    /// As JSON, if the call has failed and that is wanted.
    fn json(&self, transcoder: &Transcoder) -> Option<Vec<u8>> {
        let code = self.code.filter(|code| *code != 0 && transcoder.converts_status)?;
        status_json(transcoder, code, &percent_decoded(&self.message), self.details.as_deref())
    }

    /// Tells a head what trailers have said.
    fn tell(&self, response: &mut crate::http::message::ResponseHead) {
        response.status = self.http();
        if let Some(code) = self.code {
            response.headers.set(HeaderId::GrpcStatus, decimal(code, &mut [0; 20]));
        }
        if !self.message.is_empty() {
            response.headers.set(HeaderId::GrpcMessage, &self.message);
        }
    }
}

fn is_status(bytes: &[u8]) -> bool {
    outrigger_api::pb::google::rpc::Status::decode(bytes).is_ok()
}

fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let escaped = match after {
            [high, low, ..] if *first == b'%' => digit(*high).zip(digit(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                plain.push(high << 4 | low);
                rest = &after[2..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

fn refusal(status: u16, stage: &str, code: &str, message: impl std::fmt::Display) -> Box<LocalReply> {
    Box::new(LocalReply::new(status, format!("{stage}{{{code}}}")).body(message.to_string().into_bytes()))
}

/// What is said of a request whose body cannot be translated.
fn request_refusal(error: &RequestError, stage: &str) -> Box<LocalReply> {
    match error {
        RequestError::Bad(message) => refusal(400, stage, INVALID, message),
        RequestError::TooLarge { .. } => refusal(413, LATE, "request_buffer_size_limit_reached", REQUEST_TOO_LARGE),
    }
}

/// What is said of a response that cannot be translated.
fn response_refusal(error: &ResponseError) -> Box<LocalReply> {
    let code = match error {
        ResponseError::Bad(_) => INVALID,
        ResponseError::Cut(_) => "INTERNAL",
    };
    instead(refusal(502, LATE, code, error))
}

fn response_too_large() -> Box<LocalReply> {
    instead(refusal(500, LATE, "response_buffer_size_limit_reached", RESPONSE_TOO_LARGE))
}

/// In the place of a response that filters have seen.
fn instead(mut reply: Box<LocalReply>) -> Box<LocalReply> {
    reply.instead = Some(Box::new(Instead { headers: HeaderMutations::default() }));
    reply
}

const JSON: &[u8] = b"application/json";
const EVENTS: &[u8] = b"text/event-stream";
/// A `google.rpc.Status` in base64.
const DETAILS: &str = "grpc-status-details-bin";
/// gRPC over HTTP/2: padding may be there or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Before the call began.
const EARLY: &str = "early_grpc_json_transcode_failure";
const LATE: &str = "grpc_json_transcode_failure";
const INVALID: &str = "INVALID_ARGUMENT";
const REQUEST_TOO_LARGE: &str =
    "Request rejected because the transcoder's internal buffer size exceeds the configured limit.";
const RESPONSE_TOO_LARGE: &str =
    "Response not transcoded because the transcoder's internal buffer size exceeds the configured limit.";
/// What is held of a request unless the settings say something. Source: the default of
/// `Listener.per_connection_buffer_limit_bytes`.
const MAX_RAW_BYTES: usize = 1 << 20;
/// Likewise of one that becomes a message; Envoy holds any number of bytes. Four times gRPC's limit of 4 MiB.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// What is held of a response unless the settings say something.
const MAX_RESPONSE_BYTES: usize = 1 << 20;
