//! gRPC on the admin port: calls whose answers follow from one message each.
//!
//! Owns framing and statuses. A call with one message and a stream of them are served alike: each message is answered as
//! it comes. Never knows what a message says.

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use outrigger_api::pb::envoy::service::status::v3::ClientStatusRequest;
use prost::Message as _;

use super::Admin;
use super::client_status::status;

/// Statuses of gRPC that calls end with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Code {
    /// All was answered.
    Ok = 0,
    /// A message is malformed.
    InvalidArgument = 3,
    /// A message is too long.
    ResourceExhausted = 8,
    /// There is no such method, or messages are compressed.
    Unimplemented = 12,
}

/// How a call ended.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Ended(pub Code, pub String);

/// Whether a request is a call.
pub(super) fn is_call(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The answers to a call.
pub(super) struct Answers {
    messages: Messages,
    admin: Rc<Admin>,
    incoming: Incoming,
    /// Set once there is nothing more to come but the trailers.
    ended: Option<Ended>,
    finished: bool,
}

impl Answers {
    /// To a call of the method at `path`.
    pub fn new(admin: Rc<Admin>, path: &str, incoming: Incoming) -> Self {
        let unknown =
            (!METHODS.contains(&path)).then(|| Ended(Code::Unimplemented, format!("there is no method {path}")));
        Self { messages: Messages::default(), admin, incoming, ended: unknown, finished: false }
    }

    fn answer(&self, message: &[u8]) -> Result<Bytes, Ended> {
        let malformed = |reason: String| Ended(Code::InvalidArgument, reason);
        let request = ClientStatusRequest::decode(message).map_err(|error| malformed(error.to_string()))?;
        let answer = status(&self.admin.context, request).map_err(|error| malformed(error.to_string()))?;
        Ok(framed(&answer.encode_to_vec()))
    }
}

impl Body for Answers {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.finished {
            return Poll::Ready(None);
        }
        while this.ended.is_none() {
            match this.messages.next() {
                Ok(Some(message)) => match this.answer(&message) {
                    Ok(answer) => return Poll::Ready(Some(Ok(Frame::data(answer)))),
                    Err(ended) => this.ended = Some(ended),
                },
                Err(ended) => this.ended = Some(ended),
                Ok(None) => match ready!(Pin::new(&mut this.incoming).poll_frame(cx)) {
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            this.messages.push(&data);
                        }
                    }
                    Some(Err(_)) => this.ended = Some(Ended(Code::InvalidArgument, "the call broke off".to_owned())),
                    None => this.ended = Some(this.messages.end()),
                },
            }
        }
        this.finished = true;
        let ended = this.ended.take().unwrap_or(Ended(Code::Ok, String::new()));
        Poll::Ready(Some(Ok(Frame::trailers(trailers(&ended)))))
    }
}

fn trailers(Ended(code, message): &Ended) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(GRPC_STATUS, HeaderValue::from(*code as u16));
    if !message.is_empty() {
        // Source: the gRPC protocol, "Percent-Encoded".
        let encoded: String = message.bytes().map(encoded).collect();
        if let Ok(value) = HeaderValue::try_from(encoded) {
            trailers.insert(GRPC_MESSAGE, value);
        }
    }
    trailers
}

fn encoded(byte: u8) -> String {
    match byte {
        b'%' | ..b' ' | 0x7f.. => format!("%{byte:02X}"),
        plain => char::from(plain).to_string(),
    }
}

fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// Messages of a call as they come.
#[derive(Debug, Default)]
struct Messages {
    buffer: BytesMut,
}

impl Messages {
    fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    fn next(&mut self) -> Result<Option<Bytes>, Ended> {
        let Some((prefix, _)) = self.buffer.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let [compressed, length @ ..] = *prefix;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 {
            return Err(Ended(Code::Unimplemented, "messages must not be compressed".to_owned()));
        }
        if length > MOST_BYTES {
            let reason = format!("a message of {length} bytes, expected up to {MOST_BYTES}");
            return Err(Ended(Code::ResourceExhausted, reason));
        }
        if self.buffer.len() < PREFIX + length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// There is nothing more to come.
    fn end(&self) -> Ended {
        match self.buffer.is_empty() {
            true => Ended(Code::Ok, String::new()),
            false => Ended(Code::InvalidArgument, "the last message is cut off".to_owned()),
        }
    }
}

/// All methods.
const METHODS: [&str; 2] = [
    "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus",
    "/envoy.service.status.v3.ClientStatusDiscoveryService/StreamClientStatus",
];
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Bytes before each message.
const PREFIX: usize = 5;
/// Requests are small.
const MOST_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_in_pieces_of_any_size() {
        let wire = [&framed(b"one")[..], &framed(b""), &framed(b"three")].concat();
        for size in 1..=wire.len() {
            let mut messages = Messages::default();
            let mut found = Vec::new();
            for piece in wire.chunks(size) {
                messages.push(piece);
                while let Some(message) = messages.next().unwrap() {
                    found.push(message);
                }
            }
            assert_eq!(found, [&b"one"[..], b"", b"three"], "{size}");
            assert_eq!(messages.end(), Ended(Code::Ok, String::new()));
        }
    }

    #[test]
    fn what_cannot_be_read_ends_the_call() {
        let ended = |wire: &[u8]| {
            let mut messages = Messages::default();
            messages.push(wire);
            match messages.next() {
                Err(Ended(code, _)) => code,
                Ok(_) => messages.end().0,
            }
        };
        assert_eq!(ended(&[1, 0, 0, 0, 0]), Code::Unimplemented);
        assert_eq!(ended(&[0, 0, 1, 0, 1]), Code::ResourceExhausted);
        assert_eq!(ended(&[0, 0, 0, 0, 2, 7]), Code::InvalidArgument);
        assert_eq!(ended(&[]), Code::Ok);
    }

    #[test]
    fn texts_of_statuses_are_encoded() {
        let trailers = trailers(&Ended(Code::InvalidArgument, "a\n100 % \u{e4}".to_owned()));
        assert_eq!(trailers["grpc-status"], "3");
        assert_eq!(trailers["grpc-message"], "a%0A100 %25 %C3%A4");
    }
}
