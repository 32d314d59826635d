//! A processing service (`envoy.service.ext_proc.v3.ExternalProcessor`) that obeys the request, and keeps what it was told.
//!
//! Words, separated by blanks, of the header `x-proc` of the first head that it sees, or of a later one. Each is for one
//! kind of message: `qh`, `qb`, `qt` are head, body and trailers of the request, `rh`, `rb`, `rt` those of the response.
//! `qh.set=name:value`, `qh.add=name:value` (absent), `qh.append=name:value` (by the older field), `qh.remove=name`,
//! `qh.replace=text` (the message goes on with this body), `qb.body=text`, `qb.clear`, `qb.upper` (upper case), `qh.reroute`,
//! `qh.meta=namespace:key:value`, `qh.mode=field:number` (of the processing mode), `qh.immediate=403`, `qh.header=name:value`
//! and `qh.text=text`, `qh.grpc=7`, `qh.details=words` of an immediate answer, `qh.more=seconds` (asks for time first, and
//! takes a little), `qh.hang`, `qh.fail=14`, `qh.close`, `qh.spurious` (an answer that nobody has asked for), `qh.mute`
//! (no answer, but it goes on).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use outrigger_api::pb::envoy::config::core::v3::{HeaderMap, HeaderValue, HeaderValueOption, Metadata};
use outrigger_api::pb::envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;
use outrigger_api::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use outrigger_api::pb::envoy::service::ext_proc::v3::common_response::ResponseStatus;
use outrigger_api::pb::envoy::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use outrigger_api::pb::envoy::service::ext_proc::v3::processing_request::Request as Told;
use outrigger_api::pb::envoy::service::ext_proc::v3::processing_response::Response as Said;
use outrigger_api::pb::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, GrpcStatus, HeaderMutation, HeadersResponse, ImmediateResponse,
    ProcessingRequest, ProcessingResponse, StreamedBodyResponse, TrailersResponse,
};
use outrigger_api::pb::envoy::r#type::v3::HttpStatus;
use outrigger_api::pb::google::protobuf::{BoolValue, Duration as WireDuration, Struct, Value, value::Kind};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codegen::Service as _;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::eventually;
use crate::grpc_server::{GrpcServer, Heads};

/// A running service; it ends when dropped.
#[derive(Debug)]
pub struct ProcessingService {
    server: GrpcServer,
    told: Lines,
    heads: Heads,
}

/// What was told, as lines; pieces of one body stand in one line.
type Lines = Arc<Mutex<Vec<String>>>;

impl ProcessingService {
    /// Starts on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        let told = Lines::default();
        let service = ExternalProcessorServer::new(Scripted(Arc::clone(&told)));
        let heads = Heads::default();
        let kept = heads.clone();
        let server = GrpcServer::start(move |request| {
            kept.keep(&request);
            service.clone().call(request)
        })
        .await;
        Self { server, told, heads }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The headers of the streams that came since the last time.
    pub fn take_heads(&self) -> Vec<Vec<(String, String)>> {
        self.heads.take()
    }

    /// Waits until it was told the end of a response, and tells what [`Self::take_told`] does.
    pub async fn told_to_the_end(&self) -> Vec<String> {
        eventually("the end of a response is told", async || {
            let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let is_end = |line: &String| line.starts_with("rb: body ") && line.ends_with(" end");
            if told.iter().any(is_end) { Ok(()) } else { Err(format!("{told:?}")) }
        })
        .await;
        self.take_told()
    }

    /// What it was told since the last time, without what differs between any two requests.
    pub fn take_told(&self) -> Vec<String> {
        let mut told = std::mem::take(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner));
        for line in &mut told {
            if line.starts_with("rb: body {") {
                // A report of the upstream, which says more than what is the same for any two.
                *line = format!("rb: body <report>{}", if line.ends_with(" end") { " end" } else { "" });
            }
        }
        told
    }
}

struct Scripted(Lines);

#[tonic::async_trait]
impl ExternalProcessor for Scripted {
    type ProcessStream = UnboundedReceiverStream<Result<ProcessingResponse, Status>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        let (answers, answered) = mpsc::unbounded_channel();
        let mut stream =
            Stream { told: Arc::clone(&self.0), answers, script: String::new(), duplex: Default::default() };
        if let Some(value) = request.metadata().get("x-stream") {
            stream.keep(format!("stream: {}", value.to_str().unwrap_or_default()));
        }
        let mut messages = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                match stream.take(message).await {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(status) => {
                        let _ = stream.answers.send(Err(status));
                        return;
                    }
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(answered)))
    }
}

/// One stream.
struct Stream {
    told: Lines,
    answers: mpsc::UnboundedSender<Result<ProcessingResponse, Status>>,
    script: String,
    /// Whether bodies go by streams of pieces: of the request, of the response.
    duplex: (bool, bool),
}

/// Words of one kind of message.
struct Words<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Words<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a str> + 's {
        self.0.iter().filter(move |(known, _)| *known == name).map(|(_, value)| *value)
    }
}

impl Stream {
    fn keep(&self, line: String) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// Adds to the line of a body, or begins one.
    fn keep_body(&self, kind: &str, body: &[u8], end: bool) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(body);
        let end = if end { " end" } else { "" };
        let begun = format!("{kind}: body ");
        match told.iter_mut().rev().find(|line| line.starts_with(&begun)) {
            Some(line) if !line.ends_with(" end") => line.push_str(&format!("{text}{end}")),
            _ => told.push(format!("{begun}{text}{end}")),
        }
    }

    /// False if nothing more is to be said.
    async fn take(&mut self, message: ProcessingRequest) -> Result<bool, Status> {
        let ProcessingRequest { metadata_context, attributes, observability_mode, protocol_config, request, .. } =
            message;
        if let Some(protocol) = protocol_config {
            self.duplex = (protocol.request_body_mode == 4, protocol.response_body_mode == 4);
            self.keep(format!(
                "protocol: {} {} {}",
                protocol.request_body_mode,
                protocol.response_body_mode,
                protocol.send_body_without_waiting_for_header_response
            ));
        }
        let Some(request) = request else { return Ok(true) };
        let kind = kind(&request);
        if observability_mode {
            self.keep(format!("{kind}: observed"));
        }
        self.keep_metadata(kind, metadata_context);
        for (name, values) in attributes {
            for (key, value) in values.fields.into_iter().collect::<BTreeMap<_, _>>() {
                let value = match value.kind {
                    Some(Kind::StringValue(address)) if key == "source.address" => {
                        format!("{} with port", address.split(':').next().unwrap_or_default())
                    }
                    value => format!("{value:?}"),
                };
                self.keep(format!("{kind}: attribute {name} {key}: {value}"));
            }
        }
        let mut body = Vec::new();
        let mut end = false;
        match request {
            Told::RequestHeaders(head) | Told::ResponseHeaders(head) => {
                self.keep(format!("{kind}: end {}", head.end_of_stream));
                self.keep_headers(kind, head.headers.unwrap_or_default());
            }
            Told::RequestBody(told) | Told::ResponseBody(told) => {
                self.keep_body(kind, &told.body, told.end_of_stream);
                (body, end) = (told.body, told.end_of_stream);
            }
            Told::RequestTrailers(told) | Told::ResponseTrailers(told) => {
                self.keep(format!("{kind}: trailers"));
                self.keep_headers(kind, told.trailers.unwrap_or_default());
            }
        }
        if observability_mode {
            return Ok(true);
        }
        self.answer(kind, body, end).await
    }

    fn keep_metadata(&self, kind: &str, metadata: Option<Metadata>) {
        for (name, values) in metadata.unwrap_or_default().filter_metadata {
            self.keep(format!("{kind}: metadata {name}: {:?}", values.fields));
        }
    }

    fn keep_headers(&mut self, kind: &str, headers: HeaderMap) {
        let mut lines = Vec::new();
        for header in headers.headers {
            let raw = String::from_utf8_lossy(&header.raw_value).into_owned();
            if header.key == "x-proc" {
                self.script = raw.clone();
            }
            let raw = match header.key.as_str() {
                "x-request-id" => "<uuid>".to_owned(),
                "date" => "<date>".to_owned(),
                "x-envoy-upstream-service-time" => "<ms>".to_owned(),
                "content-length" if raw.len() > 2 => "<length>".to_owned(),
                _ => raw,
            };
            lines.push(format!("{kind}: header {}: {raw} {}", header.key, header.value));
        }
        lines.sort();
        lines.into_iter().for_each(|line| self.keep(line));
    }

    async fn answer(&mut self, kind: &'static str, body: Vec<u8>, end: bool) -> Result<bool, Status> {
        let script = self.script.clone();
        let words = script.split_whitespace().filter_map(|word| word.strip_prefix(kind)?.strip_prefix('.'));
        let words = Words(words.map(|word| word.split_once('=').unwrap_or((word, ""))).collect());
        if words.get("hang").is_some() {
            std::future::pending::<()>().await;
        }
        if let Some(code) = words.get("fail") {
            return Err(Status::new(Code::from(code.parse().unwrap_or(2)), "as told"));
        }
        if words.get("close").is_some() {
            return Ok(false);
        }
        if words.get("mute").is_some() {
            return Ok(true);
        }
        if let Some(seconds) = words.get("more") {
            let time = WireDuration { seconds: seconds.parse().unwrap_or_default(), nanos: 0 };
            self.say(ProcessingResponse { override_message_timeout: Some(time), ..Default::default() });
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        let mut response = ProcessingResponse {
            dynamic_metadata: metadata(&words),
            mode_override: mode(&words),
            ..ProcessingResponse::default()
        };
        let mutation = mutation(&words);
        response.response = Some(match kind {
            _ if words.get("immediate").is_some() => Said::ImmediateResponse(immediate(&words)),
            _ if words.get("spurious").is_some() => Said::ResponseTrailers(TrailersResponse::default()),
            "qh" => Said::RequestHeaders(HeadersResponse { response: Some(common(&words, mutation, None)) }),
            "rh" => Said::ResponseHeaders(HeadersResponse { response: Some(common(&words, mutation, None)) }),
            "qb" => {
                let changed = self.changed(&words, body, end, self.duplex.0);
                Said::RequestBody(BodyResponse { response: Some(common(&words, mutation, changed)) })
            }
            "rb" => {
                let changed = self.changed(&words, body, end, self.duplex.1);
                Said::ResponseBody(BodyResponse { response: Some(common(&words, mutation, changed)) })
            }
            "qt" => Said::RequestTrailers(TrailersResponse { header_mutation: mutation }),
            _ => Said::ResponseTrailers(TrailersResponse { header_mutation: mutation }),
        });
        self.say(response);
        Ok(true)
    }

    fn say(&self, response: ProcessingResponse) {
        let _ = self.answers.send(Ok(response));
    }

    fn changed(&self, words: &Words<'_>, body: Vec<u8>, end: bool, duplex: bool) -> Option<BodyMutation> {
        let text = |text: &str| text.replace('+', " ").into_bytes();
        let changed = match words.get("body") {
            Some(body) => Some(text(body)),
            None if words.get("clear").is_some() => None,
            None if words.get("upper").is_some() => Some(body.to_ascii_uppercase()),
            None => Some(body).filter(|_| duplex),
        };
        let mutation = match changed {
            _ if duplex => Mutation::StreamedResponse(StreamedBodyResponse {
                body: changed.unwrap_or_default(),
                end_of_stream: end,
                ..StreamedBodyResponse::default()
            }),
            None if words.get("clear").is_some() => Mutation::ClearBody(true),
            changed => Mutation::Body(changed?),
        };
        Some(BodyMutation { mutation: Some(mutation) })
    }
}

fn kind(request: &Told) -> &'static str {
    match request {
        Told::RequestHeaders(_) => "qh",
        Told::RequestBody(_) => "qb",
        Told::RequestTrailers(_) => "qt",
        Told::ResponseHeaders(_) => "rh",
        Told::ResponseBody(_) => "rb",
        Told::ResponseTrailers(_) => "rt",
    }
}

fn common(words: &Words<'_>, mutation: Option<HeaderMutation>, body: Option<BodyMutation>) -> CommonResponse {
    let replaced = words
        .get("replace")
        .map(|text| BodyMutation { mutation: Some(Mutation::Body(text.replace('+', " ").into_bytes())) });
    CommonResponse {
        status: match replaced {
            Some(_) => ResponseStatus::ContinueAndReplace as i32,
            None => ResponseStatus::Continue as i32,
        },
        header_mutation: mutation,
        body_mutation: replaced.or(body),
        clear_route_cache: words.get("reroute").is_some(),
        ..CommonResponse::default()
    }
}

fn pair(value: &str) -> (String, String) {
    let (name, value) = value.split_once(':').unwrap_or((value, ""));
    let unescape = |text: &str| text.replace("%0a", "\n").replace("%3a", ":").replace('+', " ");
    (unescape(name), unescape(value))
}

fn option(value: &str, append: Option<bool>, action: HeaderAppendAction) -> HeaderValueOption {
    let (key, value) = pair(value);
    let header = HeaderValue { key, value: String::new(), raw_value: value.into_bytes() };
    let mut option = HeaderValueOption { header: Some(header), ..HeaderValueOption::default() };
    option.append_action = action as i32;
    #[allow(deprecated)]
    {
        option.append = append.map(|value| BoolValue { value });
    }
    option
}

fn mutation(words: &Words<'_>) -> Option<HeaderMutation> {
    use HeaderAppendAction::{AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists, OverwriteIfExistsOrAdd};
    let mut mutation = HeaderMutation::default();
    for (word, value) in &words.0 {
        match *word {
            "plain" => mutation.set_headers.push(option(value, None, AppendIfExistsOrAdd)),
            "set" => mutation.set_headers.push(option(value, None, OverwriteIfExistsOrAdd)),
            "append" => mutation.set_headers.push(option(value, Some(true), AppendIfExistsOrAdd)),
            "add" => mutation.set_headers.push(option(value, None, AddIfAbsent)),
            "overwrite" => mutation.set_headers.push(option(value, None, OverwriteIfExists)),
            "remove" => mutation.remove_headers.push(pair(value).0),
            _ => {}
        }
    }
    (mutation != HeaderMutation::default()).then_some(mutation)
}

fn immediate(words: &Words<'_>) -> ImmediateResponse {
    let headers: Vec<_> =
        words.all("header").map(|value| option(value, None, HeaderAppendAction::OverwriteIfExistsOrAdd)).collect();
    let code = words.get("immediate").and_then(|code| code.parse().ok());
    ImmediateResponse {
        status: code.map(|code| HttpStatus { code }),
        headers: (!headers.is_empty()).then(|| HeaderMutation { set_headers: headers, remove_headers: Vec::new() }),
        body: words.get("text").unwrap_or_default().replace('+', " ").into_bytes(),
        grpc_status: words.get("grpc").map(|status| GrpcStatus { status: status.parse().unwrap_or_default() }),
        details: words.get("details").unwrap_or_default().replace('+', " "),
    }
}

fn metadata(words: &Words<'_>) -> Option<Struct> {
    let mut all = Struct::default();
    for value in words.all("meta") {
        let mut parts = value.splitn(3, ':');
        let (namespace, key, value) = (parts.next()?, parts.next()?, parts.next()?);
        let kind = Some(Kind::StringValue(value.to_owned()));
        let inner = Struct { fields: [(key.to_owned(), Value { kind })].into() };
        all.fields.insert(namespace.to_owned(), Value { kind: Some(Kind::StructValue(inner)) });
    }
    (!all.fields.is_empty()).then_some(all)
}

fn mode(words: &Words<'_>) -> Option<ProcessingMode> {
    let mut mode = ProcessingMode::default();
    let mut any = false;
    for word in words.all("mode") {
        let (field, number) = word.split_once(':')?;
        let number = number.parse().ok()?;
        any = true;
        match field {
            "rh" => mode.response_header_mode = number,
            "qb" => mode.request_body_mode = number,
            "rb" => mode.response_body_mode = number,
            "qt" => mode.request_trailer_mode = number,
            "rt" => mode.response_trailer_mode = number,
            _ => mode.request_header_mode = number,
        }
    }
    any.then_some(mode)
}
