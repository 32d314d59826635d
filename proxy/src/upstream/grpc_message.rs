//! Unary calls of gRPC over HTTP/2: heads and bodies that carry one message each way.
//!
//! Owns the framing, and what an answer comes down to. Pure; never sends anything.

use std::time::Duration;

use prost::Message;

use super::grpc_stream::GrpcFailure;
use crate::http::headers::{HeaderId, Headers};
use crate::http::manager::reply::grpc_status;
use crate::http::message::{RequestHead, ResponseHead, Version, is_grpc_content_type};

/// Why an answer holds no message.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UnaryError {
    /// An HTTP server that speaks no gRPC, or a proxy on the way.
    #[error("HTTP status {0}")]
    Http(u16),
    /// The answer is of another type.
    #[error("content-type is not that of gRPC")]
    ContentType,
    /// The call failed.
    #[error("gRPC status {code}: {message}")]
    Status {
        /// The status code.
        code: u32,
        /// What the service says of it; its escapes are left as they are.
        message: String,
    },
    /// There is no status, or one that is not a number.
    #[error("no gRPC status")]
    NoStatus,
    /// The body is not one whole message.
    #[error("{0}")]
    Frame(&'static str),
    /// The message is not what it should be.
    #[error("message: {0}")]
    Message(String),
}

impl UnaryError {
    /// The status of the call. 0 if it went well, and only its message cannot be read.
    pub fn status(&self) -> u32 {
        match self {
            Self::Http(status) => grpc_status(*status),
            Self::Status { code, .. } => *code,
            Self::ContentType | Self::NoStatus => UNKNOWN,
            Self::Frame(_) => INTERNAL,
            Self::Message(_) => 0,
        }
    }
}

/// The head of a call. `path` is `/<service>/<method>`.
pub fn request_head(path: &str, authority: &str, timeout: Option<Duration>) -> RequestHead {
    let mut head = RequestHead::default();
    head.version = Version::Http2;
    head.set_method(b"POST");
    head.set_path(path.as_bytes());
    head.set_authority(authority.as_bytes());
    head.set_scheme(b"http");
    head.headers.append_id(HeaderId::Te, b"trailers");
    if let Some(timeout) = timeout {
        head.headers.append_id(HeaderId::GrpcTimeout, timeout_text(timeout).as_bytes());
    }
    head.headers.append_id(HeaderId::ContentType, b"application/grpc");
    head
}

/// `message` as the body of a call: not compressed.
pub fn frame(message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut framed = Vec::with_capacity(PREFIX + length);
    framed.push(0);
    framed.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    // Only a buffer that cannot grow could be too small.
    let _ = message.encode(&mut framed);
    framed
}

/// The message of an answer.
///
/// # Errors
/// If the call failed, or the answer is not one message of this type.
pub fn message<M: Message + Default>(
    head: &ResponseHead,
    body: &[u8],
    trailers: Option<&Headers>,
) -> Result<M, UnaryError> {
    if head.status != 200 {
        return Err(UnaryError::Http(head.status));
    }
    if !head.headers.get(HeaderId::ContentType).is_some_and(is_grpc_content_type) {
        return Err(UnaryError::ContentType);
    }
    // Without a message, the status may stand in the head.
    let ending = trailers.filter(|trailers| trailers.contains(HeaderId::GrpcStatus)).unwrap_or(&head.headers);
    let code: u32 =
        ending.get_str(HeaderId::GrpcStatus).and_then(|code| code.parse().ok()).ok_or(UnaryError::NoStatus)?;
    if code != 0 {
        let message = ending.get(HeaderId::GrpcMessage).map(String::from_utf8_lossy).unwrap_or_default();
        return Err(UnaryError::Status { code, message: message.into_owned() });
    }
    M::decode(unframe(body)?).map_err(|error| UnaryError::Message(error.to_string()))
}

/// The bytes of the one message that `body` holds.
fn unframe(body: &[u8]) -> Result<&[u8], UnaryError> {
    let Some((prefix, rest)) = body.split_first_chunk::<PREFIX>() else {
        return Err(UnaryError::Frame("the body ends before a message begins"));
    };
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 {
        return Err(UnaryError::Frame("the message is compressed, which was not offered"));
    }
    match rest.len().cmp(&(u32::from_be_bytes(length) as usize)) {
        std::cmp::Ordering::Less => Err(UnaryError::Frame("the body ends within a message")),
        std::cmp::Ordering::Greater => Err(UnaryError::Frame("there is more than one message")),
        std::cmp::Ordering::Equal => Ok(rest),
    }
}

/// The status that a stream has ended with.
///
/// # Errors
/// If it is not 0, or there is none.
pub fn status(head: &ResponseHead, trailers: Option<&Headers>) -> Result<(), GrpcFailure> {
    let ending = trailers.filter(|trailers| trailers.contains(HeaderId::GrpcStatus)).unwrap_or(&head.headers);
    let said: Option<u32> = ending.get_str(HeaderId::GrpcStatus).and_then(|code| code.parse().ok());
    if head.status != 200 && said.is_none() {
        let code = grpc_status(head.status);
        return Err(GrpcFailure { code, message: UnaryError::Http(head.status).to_string() });
    }
    match said {
        Some(0) => Ok(()),
        Some(code) => {
            let message = ending.get(HeaderId::GrpcMessage).map(String::from_utf8_lossy).unwrap_or_default();
            // As Envoy says who has said so.
            Err(GrpcFailure { code, message: format!("{message}{{via_upstream}}") })
        }
        None => Err(GrpcFailure { code: 2, message: UnaryError::NoStatus.to_string() }),
    }
}

/// Messages out of a body that comes in pieces.
#[derive(Debug)]
pub struct Unframer {
    /// What came of a message that is not whole.
    partial: Vec<u8>,
    most: usize,
}

impl Unframer {
    /// For messages of at most `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { partial: Vec::new(), most }
    }

    /// Adds the messages that `bytes` complete.
    ///
    /// # Errors
    /// If a message is compressed or too long.
    pub fn take(&mut self, bytes: &[u8], messages: &mut Vec<Vec<u8>>) -> Result<(), UnaryError> {
        self.partial.extend_from_slice(bytes);
        let mut rest = self.partial.as_slice();
        while let Some((&[compressed, length @ ..], after)) = rest.split_first_chunk::<PREFIX>() {
            if compressed != 0 {
                return Err(UnaryError::Frame("the message is compressed, which was not offered"));
            }
            let length = u32::from_be_bytes(length) as usize;
            if length > self.most {
                return Err(UnaryError::Frame("the message is too long"));
            }
            let Some((message, after)) = after.split_at_checked(length) else { break };
            messages.push(message.to_vec());
            rest = after;
        }
        let taken = self.partial.len() - rest.len();
        self.partial.drain(..taken);
        Ok(())
    }
}

/// The largest unit that is exact and needs no more than the eight digits that are allowed; milliseconds at the least.
fn timeout_text(timeout: Duration) -> String {
    let milliseconds = timeout.as_millis();
    let units = [(1, 'm'), (1_000, 'S'), (60_000, 'M'), (3_600_000, 'H')];
    let fits = units.iter().find(|(factor, _)| milliseconds / factor <= MOST_UNITS);
    match fits {
        Some((factor, unit)) => format!("{}{unit}", milliseconds / factor),
        None => format!("{MOST_UNITS}H"),
    }
}

/// A flag and a length stand before each message.
const PREFIX: usize = 5;
/// A status of gRPC.
const UNKNOWN: u32 = 2;
/// A status of gRPC.
const INTERNAL: u32 = 13;
/// Eight digits.
const MOST_UNITS: u128 = 99_999_999;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, PartialEq, Message)]
    struct Text {
        #[prost(string, tag = "1")]
        text: String,
    }

    fn head(status: u16, headers: &[(&str, &str)]) -> ResponseHead {
        let mut head = ResponseHead { status, ..ResponseHead::default() };
        for (name, value) in headers {
            head.headers.append(name.as_bytes(), value.as_bytes());
        }
        head
    }

    fn trailers(status: &str) -> Headers {
        let mut trailers = Headers::default();
        trailers.append(b"grpc-status", status.as_bytes());
        trailers.append(b"grpc-message", b"no%20way");
        trailers
    }

    const GRPC: (&str, &str) = ("content-type", "application/grpc+proto");

    #[test]
    fn an_answer_is_one_message_and_a_status() {
        let body = frame(&Text { text: "hello".into() });
        assert_eq!(body[..5], [0, 0, 0, 0, 7]);
        let read = |head: &ResponseHead, body: &[u8], trailers: Option<&Headers>| message::<Text>(head, body, trailers);
        let good = head(200, &[GRPC]);
        assert_eq!(read(&good, &body, Some(&trailers("0"))).unwrap().text, "hello");
        assert_eq!(read(&good, &[0; 5], Some(&trailers("0"))).unwrap().text, "");
        // Some servers say it in the head though there is a body.
        assert!(read(&head(200, &[GRPC, ("grpc-status", "0")]), &body, None).is_ok());
        let failed = UnaryError::Status { code: 7, message: "no%20way".into() };
        assert_eq!(read(&good, &body, Some(&trailers("7"))).unwrap_err(), failed);
        let only = head(200, &[GRPC, ("grpc-status", "7"), ("grpc-message", "no%20way")]);
        assert_eq!(read(&only, b"", None).unwrap_err(), failed);
        for (head, body, trailers, expected) in [
            (head(503, &[GRPC]), &body[..], Some(trailers("0")), UnaryError::Http(503)),
            (head(200, &[("content-type", "text/html")]), &body, Some(trailers("0")), UnaryError::ContentType),
            (head(200, &[GRPC]), &body, None, UnaryError::NoStatus),
            (head(200, &[GRPC]), &body, Some(trailers("ok")), UnaryError::NoStatus),
            (
                head(200, &[GRPC]),
                &body[..4],
                Some(trailers("0")),
                UnaryError::Frame("the body ends before a message begins"),
            ),
            (head(200, &[GRPC]), &body[..9], Some(trailers("0")), UnaryError::Frame("the body ends within a message")),
        ] {
            assert_eq!(read(&head, body, trailers.as_ref()).unwrap_err(), expected);
        }
        let twice = [&body[..], &body].concat();
        assert!(matches!(read(&good, &twice, Some(&trailers("0"))), Err(UnaryError::Frame(_))));
        let mut compressed = body.clone();
        compressed[0] = 1;
        assert!(matches!(read(&good, &compressed, Some(&trailers("0"))), Err(UnaryError::Frame(_))));
    }

    #[test]
    fn timeouts_have_eight_digits_at_most() {
        for (timeout, expected) in [
            (Duration::from_millis(200), "200m"),
            (Duration::from_micros(900), "0m"),
            (Duration::from_secs(600), "600000m"),
            (Duration::from_secs(1_000_000), "1000000S"),
            (Duration::from_secs(u64::MAX), "99999999H"),
        ] {
            assert_eq!(timeout_text(timeout), expected);
        }
    }

    proptest! {
        #[test]
        fn any_message_survives_its_frame(text in ".*") {
            let sent = Text { text };
            let framed = frame(&sent);
            prop_assert_eq!(message::<Text>(&head(200, &[GRPC]), &framed, Some(&trailers("0"))).unwrap(), sent);
        }

        #[test]
        fn messages_are_found_however_they_are_cut(texts in proptest::collection::vec(".{0,9}", 0..5), step in 1..9usize) {
            let sent: Vec<_> = texts.into_iter().map(|text| Text { text }).collect();
            let body = sent.iter().flat_map(frame).collect::<Vec<_>>();
            let (mut unframer, mut messages) = (Unframer::new(64), Vec::new());
            for piece in body.chunks(step) {
                unframer.take(piece, &mut messages).unwrap();
            }
            let read: Vec<_> = messages.iter().map(|message| Text::decode(message.as_slice()).unwrap()).collect();
            prop_assert_eq!(read, sent);
        }

        #[test]
        fn no_body_is_trusted(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = message::<Text>(&head(200, &[GRPC]), &body, Some(&trailers("0")));
            let _ = Unframer::new(16).take(&body, &mut Vec::new());
        }
    }
}
