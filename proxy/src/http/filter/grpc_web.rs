//! The gRPC-Web filter: browsers call gRPC services by HTTP/1.1 and without trailers.
//!
//! Owns the translation of heads and bodies. Source: the gRPC-Web protocol specification. Never routes a call.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::body::BodyFilter;
use super::grpc_stats::{STATUSES, service_and_method};
use super::{Exchange, HttpFilter, Verdict};
use crate::http::headers::{HeaderId, Headers};
use crate::http::manager::reply::{LocalReply, grpc_status, percent_encoded};
use crate::http::message::is_grpc_content_type;
use crate::scope;
use crate::stats::{Counter, Metric, Scope, names};

scope! {
    /// What is counted of all calls of a method.
    pub struct OutcomeStats {
        failure: Counter,
        success: Counter,
        total: Counter,
    }
}

/// Stats of a method (`cluster.<name>.grpc-web.<service>.<method>.*`).
#[derive(Debug, Default)]
pub struct WebStats {
    /// By gRPC status.
    statuses: [Counter; 17],
    outcomes: OutcomeStats,
}

impl Scope for WebStats {
    fn visit(&self, visit: &mut dyn FnMut(&'static str, Metric<'_>)) {
        for (name, counter) in STATUSES.iter().zip(&self.statuses) {
            visit(name, Metric::Counter(counter.value()));
        }
        self.outcomes.visit(visit);
    }
}

impl WebStats {
    fn count(&self, status: &[u8]) {
        if let Some(place) = STATUSES.iter().position(|known| known.as_bytes() == status) {
            self.statuses[place].increment();
        }
        let outcomes = &self.outcomes;
        if status == b"0" {
            outcomes.success.increment()
        } else {
            outcomes.failure.increment()
        }
        outcomes.total.increment();
    }
}

/// The filter.
#[derive(Default)]
pub struct GrpcWeb {
    /// By the prefix of their names, which come from clients, so there is a limit to them.
    stats: RefCell<HashMap<String, Arc<WebStats>>>,
}

/// What the filter keeps for a call.
#[derive(Default)]
struct Call {
    is_call: bool,
    /// The response is base64.
    answers_text: bool,
    stats: Option<Arc<WebStats>>,
}

/// Methods with stats of their own.
const MAX_METHODS: usize = 4096;

impl GrpcWeb {
    fn stats_of(&self, exchange: &Exchange<'_, '_, '_>) -> Option<Arc<WebStats>> {
        let cluster = &exchange.cluster()?.config.stat_name;
        let path = exchange.head().path_str().split('?').next().unwrap_or_default();
        let (service, method) = service_and_method(path)?;
        let prefix = format!(
            "{}grpc-web.{}",
            names::prefix("cluster", cluster),
            names::prefix(&names::sanitize(service), method)
        );
        let mut known = self.stats.borrow_mut();
        if let Some(stats) = known.get(&prefix) {
            return Some(Arc::clone(stats));
        }
        if known.len() >= MAX_METHODS {
            return None;
        }
        let stats = exchange.worker().scope::<WebStats>(&prefix);
        known.insert(prefix, Arc::clone(&stats));
        Some(stats)
    }
}

impl HttpFilter for GrpcWeb {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let headers = &exchange.head().headers;
        let Some(kind) = headers.get(HeaderId::ContentType).and_then(Kind::of) else { return Verdict::Continue };
        let answers_text = headers.get_by_name("accept").and_then(Kind::of) == Some(Kind::Text);
        let stats = self.stats_of(exchange);
        *exchange.state::<Call>() = Call { is_call: true, answers_text, stats };
        let headers = &mut exchange.head_mut().headers;
        headers.set(HeaderId::ContentType, b"application/grpc");
        headers.set(HeaderId::Te, b"trailers");
        headers.set_by_name("grpc-accept-encoding", b"identity,deflate,gzip");
        if kind == Kind::Text && !exchange.has_no_body() {
            // Calls of browsers have one message, and whether it is what it says must be known before any of it leaves.
            return Verdict::Collect { limit_bytes: MAX_TEXT_BYTES };
        }
        if !exchange.has_no_body() {
            exchange.forget_request_length();
        }
        Verdict::Continue
    }

    fn request_body(&self, exchange: &mut Exchange<'_, '_, '_>, body: &[u8]) -> Verdict {
        if !body.len().is_multiple_of(QUANTUM) {
            return refusal("grpc_base_64_decode_failed_bad_size");
        }
        match decoded(body) {
            Some(message) => exchange.transform_request(Box::new(Replacing(message))),
            None => return refusal("grpc_base_64_decode_failed"),
        }
        Verdict::Continue
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Some(Call { is_call: true, answers_text, stats }) = exchange.known_state::<Call>() else {
            return Verdict::Continue;
        };
        let (answers_text, stats) = (*answers_text, stats.clone());
        let headers = &exchange.response().headers;
        let is_grpc = headers.get(HeaderId::ContentType).is_some_and(is_grpc_content_type);
        if let (Some(stats), Some(status)) = (&stats, headers.get(HeaderId::GrpcStatus)) {
            stats.count(status);
        }
        let kind = if answers_text { "application/grpc-web-text+proto" } else { "application/grpc-web+proto" };
        let headers = &mut exchange.response_mut().headers;
        headers.set(HeaderId::ContentType, kind.as_bytes());
        headers.remove(HeaderId::ContentLength);
        if exchange.response_has_no_body() {
            return Verdict::Continue;
        }
        if !is_grpc {
            answer_for_others(exchange);
        } else {
            exchange.transform_response(Box::new(Answer { text: answers_text, stats }));
        }
        Verdict::Continue
    }
}

/// Somebody answered who does not speak gRPC, such as this proxy: clients are told by a status of gRPC. What the proxy says
/// becomes its message; what others say comes too late for it.
fn answer_for_others(exchange: &mut Exchange<'_, '_, '_>) {
    let status = grpc_status(exchange.response().status);
    let message = exchange.is_local_reply().then(|| percent_encoded(&exchange.stream().local_reply_body));
    exchange.transform_response(Box::new(Dropping));
    let headers = &mut exchange.response_mut().headers;
    headers.set(HeaderId::GrpcStatus, status.to_string().as_bytes());
    if let Some(message) = message {
        headers.set(HeaderId::GrpcMessage, &message);
    }
    headers.set(HeaderId::ContentLength, b"0");
}

/// Gives nothing of the body that comes.
struct Dropping;

impl BodyFilter for Dropping {
    fn data(&mut self, _: Vec<u8>) -> Vec<u8> {
        Vec::new()
    }
}

fn refusal(details: &'static str) -> Verdict {
    Verdict::reply(LocalReply::new(400, details).body(&b"Bad gRPC-web request, invalid base64 data."[..]))
}

/// How messages are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Binary,
    Text,
}

impl Kind {
    fn of(content_type: &[u8]) -> Option<Self> {
        match content_type {
            b"application/grpc-web" | b"application/grpc-web+proto" => Some(Self::Binary),
            b"application/grpc-web-text" | b"application/grpc-web-text+proto" => Some(Self::Text),
            _ => None,
        }
    }
}

/// Base64 whose parts may be padded each by itself.
fn decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / QUANTUM * 3);
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'=').map_or(rest.len(), |at| (at / QUANTUM + 1) * QUANTUM);
        let (part, later) = rest.split_at_checked(end)?;
        BASE64_STANDARD.decode_vec(part, &mut bytes).ok()?;
        rest = later;
    }
    Some(bytes)
}

/// Gives this in the place of the body that comes.
struct Replacing(Vec<u8>);

impl BodyFilter for Replacing {
    fn data(&mut self, _: Vec<u8>) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

/// The body of a response: messages as they are, and trailers as one more of them.
struct Answer {
    text: bool,
    stats: Option<Arc<WebStats>>,
}

impl BodyFilter for Answer {
    fn data(&mut self, input: Vec<u8>) -> Vec<u8> {
        if !self.text {
            return input;
        }
        // Each piece can be read when it comes: a message must not wait for the next one.
        BASE64_STANDARD.encode(input).into_bytes()
    }

    fn end(&mut self, trailers: &mut Option<Headers>) -> Vec<u8> {
        let Some(trailers) = trailers.take() else { return Vec::new() };
        if let (Some(stats), Some(status)) = (&self.stats, trailers.get(HeaderId::GrpcStatus)) {
            stats.count(status);
        }
        let frame = trailers_frame(&trailers);
        if self.text { BASE64_STANDARD.encode(frame).into_bytes() } else { frame }
    }
}

/// Trailers as a message: a flag, four bytes of length, and lines.
fn trailers_frame(trailers: &Headers) -> Vec<u8> {
    let mut lines = Vec::with_capacity(trailers.byte_size() + 3 * trailers.len());
    for (_, name, value) in trailers.iter() {
        lines.extend_from_slice(name);
        lines.push(b':');
        lines.extend_from_slice(value);
        lines.extend_from_slice(b"\r\n");
    }
    let length = u32::try_from(lines.len()).unwrap_or(u32::MAX);
    let mut frame = vec![TRAILERS_FLAG];
    frame.extend_from_slice(&length.to_be_bytes());
    frame.append(&mut lines);
    frame
}

const TRAILERS_FLAG: u8 = 0x80;
/// Characters of base64 that belong together.
const QUANTUM: usize = 4;
/// Four times gRPC's limit of 4 MiB for a message.
const MAX_TEXT_BYTES: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn trailers_become_a_message() {
        let mut trailers = Headers::default();
        trailers.append(b"grpc-status", b"0");
        trailers.append(b"x-a", b"b c");
        assert_eq!(trailers_frame(&trailers), b"\x80\0\0\0\x18grpc-status:0\r\nx-a:b c\r\n");
    }

    #[test]
    fn padding_may_stand_in_the_middle() {
        assert_eq!(decoded(b"YQ==YmM=ZGVm").as_deref(), Some(&b"abcdef"[..]));
        for text in [&b"YQ=a"[..], b"Y===", b"****", b"YQ==Y", b"===="] {
            assert_eq!(decoded(text), None, "{}", String::from_utf8_lossy(text));
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_in_pieces_is_decoded_at_once(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..8)) {
            let text: String = pieces.iter().map(|piece| BASE64_STANDARD.encode(piece)).collect();
            prop_assert_eq!(decoded(text.as_bytes()), Some(pieces.concat()));
        }
    }
}
