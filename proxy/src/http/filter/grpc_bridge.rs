//! The gRPC bridge: clients that have no trailers call gRPC services by HTTP/1.1.
//!
//! Owns the translation of heads and bodies: what trailers say of a call moves to the head of its answer. Never routes a
//! call.

use outrigger_config::http::filters::GrpcBridge as Settings;

use super::body::BodyFilter;
use super::{Exchange, HttpFilter, Verdict};
use crate::http::h1::encode::decimal;
use crate::http::headers::{HeaderId, Headers};
use crate::http::message::Version;

/// The filter.
pub struct GrpcBridge {
    settings: Settings,
}

/// What the filter keeps for a call by HTTP/1.1.
#[derive(Default)]
struct Call {
    is_call: bool,
    /// The client sent a bare message, and wants one.
    is_bare: bool,
}

impl GrpcBridge {
    /// A filter.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }
}

impl HttpFilter for GrpcBridge {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let head = exchange.head();
        let is_bare = self.settings.upgrade_protobuf
            && head.headers.get(HeaderId::ContentType).is_some_and(|kind| kind == PROTOBUF);
        if !matches!(head.version, Version::Http10 | Version::Http11) || !(is_bare || head.is_grpc()) {
            return Verdict::Continue;
        }
        *exchange.state::<Call>() = Call { is_call: true, is_bare };
        if self.settings.ignore_query {
            remove_query(exchange);
        }
        if !is_bare {
            return Verdict::Continue;
        }
        exchange.head_mut().headers.set(HeaderId::ContentType, b"application/grpc");
        if exchange.has_no_body() {
            return Verdict::Continue;
        }
        // A message begins with its length.
        Verdict::Collect { limit_bytes: MAX_BYTES }
    }

    fn request_body(&self, exchange: &mut Exchange<'_, '_, '_>, body: &[u8]) -> Verdict {
        exchange.transform_request(Box::new(Framed::of(body)));
        Verdict::Continue
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let is_call = exchange.known_state::<Call>().is_some_and(|call| call.is_call);
        if is_call && !exchange.response_has_no_body() {
            return Verdict::CollectResponse { limit_bytes: MAX_BYTES };
        }
        Verdict::Continue
    }

    fn response_body(
        &self,
        exchange: &mut Exchange<'_, '_, '_>,
        body: &mut Vec<u8>,
        trailers: &mut Option<Headers>,
    ) -> Verdict {
        if exchange.known_state::<Call>().is_some_and(|call| call.is_bare) {
            body.drain(..FRAME_HEAD.min(body.len()));
        }
        let response = exchange.response_mut();
        if trailers.is_some() || response.headers.contains(HeaderId::ContentLength) {
            response.headers.set(HeaderId::ContentLength, decimal(body.len() as u64, &mut [0; 20]));
        }
        let Some(trailers) = trailers else { return Verdict::Continue };
        if let Some(status) = trailers.get(HeaderId::GrpcStatus) {
            // HTTP/1.1 clients go by the status of the answer.
            if status != b"0" {
                response.status = 503;
            }
            response.headers.set(HeaderId::GrpcStatus, status);
        }
        if let Some(message) = trailers.get(HeaderId::GrpcMessage) {
            response.headers.set(HeaderId::GrpcMessage, message);
        }
        Verdict::Continue
    }
}

fn remove_query(exchange: &mut Exchange<'_, '_, '_>) {
    let path = exchange.head().path();
    if let Some(end) = path.iter().position(|byte| *byte == b'?') {
        let path = path[..end].to_vec();
        exchange.head_mut().set_path(&path);
    }
}

/// Puts the head of a frame before the bytes of a message.
struct Framed {
    head: Option<[u8; FRAME_HEAD]>,
}

impl Framed {
    fn of(message: &[u8]) -> Self {
        // Collected bodies are far shorter.
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
        Self { head: Some([0, length[0], length[1], length[2], length[3]]) }
    }
}

impl BodyFilter for Framed {
    fn data(&mut self, input: Vec<u8>) -> Vec<u8> {
        match self.head.take() {
            Some(head) => [&head[..], &input].concat(),
            None => input,
        }
    }
}

const PROTOBUF: &[u8] = b"application/x-protobuf";
/// A flag and four bytes of length.
const FRAME_HEAD: usize = 5;
/// Envoy's default for what it buffers of a connection.
const MAX_BYTES: usize = 1 << 20;
