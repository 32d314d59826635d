//! A gRPC server that sends back what it gets, as far as the request does not say otherwise.
//!
//! Owns the words of the header `x-answer`. Never knows a message.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use outrigger_tests::grpc_server::GrpcServer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// What `x-answer` may say: words with a space between.
#[derive(Clone, Default)]
struct Script {
    /// `status=5`; 0 unless given.
    status: String,
    /// `message=not%20here`.
    message: Option<String>,
    /// `details=<base64>`.
    details: Option<String>,
    /// `only`: there is a head, and nothing else.
    only: bool,
    /// `empty`: nothing is sent back.
    empty: bool,
    /// `twice`: everything is sent back twice.
    twice: bool,
    /// `cut`: all but the last byte of each piece.
    cut: bool,
    /// `hex=0a0b`: this instead.
    hex: Option<Vec<u8>>,
    /// `quiet`: there are no trailers.
    quiet: bool,
    /// `type=text/plain`.
    content_type: Option<String>,
    /// `http=503`.
    http: Option<u16>,
    /// `silent`: trailers say nothing of the call.
    silent: bool,
}

impl Script {
    fn of(headers: &HeaderMap) -> Self {
        let mut script = Self { status: "0".to_owned(), ..Self::default() };
        let text = headers.get("x-answer").map(|value| value.to_str().expect("ASCII")).unwrap_or_default();
        for word in text.split_whitespace() {
            match word.split_once('=').unwrap_or((word, "")) {
                ("status", value) => script.status = value.to_owned(),
                ("message", value) => script.message = Some(value.to_owned()),
                ("details", value) => script.details = Some(value.to_owned()),
                ("only", _) => script.only = true,
                ("empty", _) => script.empty = true,
                ("twice", _) => script.twice = true,
                ("cut", _) => script.cut = true,
                ("hex", value) => script.hex = Some(unhex(value)),
                ("quiet", _) => script.quiet = true,
                ("silent", _) => script.silent = true,
                ("type", value) => script.content_type = Some(value.to_owned()),
                ("http", value) => script.http = Some(value.parse().expect("a status")),
                _ => panic!("unknown word {word:?}"),
            }
        }
        script
    }

    fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        let mut put = |name: &'static str, value: &str| drop(trailers.insert(name, value.parse().expect("a value")));
        if !self.silent {
            put("grpc-status", &self.status);
        }
        if let Some(message) = &self.message {
            put("grpc-message", message);
        }
        if let Some(details) = &self.details {
            put("grpc-status-details-bin", details);
        }
        trailers
    }

    fn piece(&self, piece: &Bytes) -> Option<Bytes> {
        let mut piece = piece.to_vec();
        if self.empty || self.hex.is_some() {
            return None;
        }
        if self.cut {
            piece.pop();
        }
        if self.twice {
            piece.extend(piece.clone());
        }
        Some(piece.into())
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hex")).collect()
}

/// Starts it.
pub async fn start() -> GrpcServer {
    GrpcServer::start(|request| async move { Ok::<_, Infallible>(answer(request).await) }).await
}

/// Nothing is answered before something of the body is there: what a proxy finds wrong with it comes first.
async fn answer(request: Request<Incoming>) -> Response<tonic::body::Body> {
    let script = Script::of(request.headers());
    let mut response = Response::builder()
        .status(script.http.unwrap_or(200))
        .header("content-type", script.content_type.as_deref().unwrap_or("application/grpc"))
        .header("x-saw", saw(&request));
    let mut body = request.into_body();
    let mut next = body.frame().await;
    if script.only {
        while let Some(Ok(_)) = next {
            next = body.frame().await;
        }
        for (name, value) in &script.trailers() {
            response = response.header(name, value);
        }
        return response.body(tonic::body::Body::empty()).expect("a response");
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let send = |frame| drop(sender.send(Ok::<_, tonic::Status>(frame)));
        while let Some(Ok(frame)) = next {
            if let Some(piece) = frame.data_ref().and_then(|piece| script.piece(piece)) {
                send(Frame::data(piece));
            }
            next = body.frame().await;
        }
        if let Some(bytes) = &script.hex {
            send(Frame::data(bytes.clone().into()));
        }
        if !script.quiet {
            send(Frame::trailers(script.trailers()));
        }
    });
    let body = StreamBody::new(UnboundedReceiverStream::new(receiver));
    response.body(tonic::body::Body::new(body)).expect("a response")
}

/// What came, in short.
fn saw(request: &Request<Incoming>) -> String {
    let mut text = format!("{} {}", request.method(), request.uri().path());
    for name in ["te", "content-type", "content-length", "x-envoy-original-path", "x-envoy-original-method"] {
        let all: Vec<&str> = request.headers().get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        text.push_str(&format!(" {name}={}", all.join("|")));
    }
    text
}
