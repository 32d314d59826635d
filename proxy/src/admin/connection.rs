//! Connections to the admin port.
//!
//! Owns HTTP/1 and HTTP/2 on them: each has a task of its own, so a slow client keeps nobody waiting. Never knows an endpoint.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_config::address::Address;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Admin;
use super::access::Access;
use super::begin::{Protocol, begin};
use super::endpoints;
use super::grpc::{self, Answers};
use super::listen::AdminSocket;
use super::origin;
use super::request::Request;
use super::response::{Pieces, Response};

/// Forms are small.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// A head, or a body, takes no longer; connections idle for longer are closed.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
/// Streams of a connection that are served at a time.
const MAX_STREAMS: u32 = 100;
/// Pause after a failed accept: most likely there are no files left, which does not change at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections for ever.
pub(super) async fn accept(admin: Rc<Admin>, socket: AdminSocket, local: Address) {
    loop {
        let accepted = match &socket {
            AdminSocket::Tcp(listener) => accept_tcp(&admin, listener, &local).await,
            AdminSocket::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::task::spawn_local(serve(Rc::clone(&admin), stream, local.clone(), local.clone()));
            }),
        };
        if let Err(error) = accepted {
            tracing::warn!(target: "admin", "cannot accept a connection to the admin port: {error}");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

async fn accept_tcp(admin: &Rc<Admin>, listener: &tokio::net::TcpListener, local: &Address) -> io::Result<()> {
    let (stream, peer) = listener.accept().await?;
    let local = stream.local_addr().map_or_else(|_| local.clone(), Address::Ip);
    tokio::task::spawn_local(serve(Rc::clone(admin), stream, local, Address::Ip(peer)));
    Ok(())
}

/// Keeps count of a connection while it lives.
struct Counted(Rc<Admin>);

impl Counted {
    fn new(admin: Rc<Admin>) -> Self {
        admin.http_stats.downstream_cx_total.increment();
        admin.http_stats.downstream_cx_active.increment();
        admin.listener_stats.downstream_cx_total.increment();
        admin.listener_stats.downstream_cx_active.increment();
        Self(admin)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.http_stats.downstream_cx_active.decrement();
        self.0.listener_stats.downstream_cx_active.decrement();
        self.0.listener_stats.downstream_cx_destroy.increment();
    }
}

async fn serve(
    admin: Rc<Admin>,
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    local: Address,
    remote: Address,
) {
    let _counted = Counted::new(Rc::clone(&admin));
    let Ok(Ok((protocol, stream))) = tokio::time::timeout(READ_TIMEOUT, begin(stream)).await else { return };
    let access = Rc::new(Access::new(Rc::clone(&admin), local, remote));
    let service = service_fn(move |request| handle(Rc::clone(&admin), Rc::clone(&access), request));
    let stream = TokioIo::new(stream);
    let result = match protocol {
        Protocol::Http1 => {
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(READ_TIMEOUT).half_close(true);
            builder.serve_connection(stream, service).await
        }
        Protocol::Http2 => {
            let mut builder = http2::Builder::new(OnThisThread);
            builder.timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS);
            builder.keep_alive_interval(READ_TIMEOUT).serve_connection(stream, service).await
        }
    };
    if let Err(error) = result {
        tracing::debug!(target: "admin", "connection to the admin port: {error}");
    }
}

/// Runs streams of HTTP/2 beside their connection.
#[derive(Clone, Copy, Debug)]
struct OnThisThread;

impl<F: Future<Output = ()> + 'static> Executor<F> for OnThisThread {
    fn execute(&self, stream: F) {
        tokio::task::spawn_local(stream);
    }
}

/// The body of an answer.
enum Answer {
    Pieces(Pieces),
    Grpc(Box<Answers>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Answer::Pieces(pieces) => Pin::new(pieces).poll_frame(cx),
            Answer::Grpc(answers) => Pin::new(answers).poll_frame(cx),
        }
    }
}

async fn handle(
    admin: Rc<Admin>,
    access: Rc<Access>,
    request: http::Request<Incoming>,
) -> Result<http::Response<Answer>, Infallible> {
    let start = Instant::now();
    admin.http_stats.downstream_rq_total.increment();
    let (head, body) = request.into_parts();
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    if !is_allowed(&admin, target) {
        let refusal = Response::text(StatusCode::FORBIDDEN, format!("request to path {target} not allowed"));
        return Ok(answered(&admin, access, head, start, refusal));
    }
    if grpc::is_call(&head.headers) {
        admin.http_stats.response(200);
        access.log(&head, start, 200, 0);
        let mut response = http::Response::new(Answer::Grpc(Box::new(Answers::new(admin, head.uri.path(), body))));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        return Ok(response);
    }
    let is_form = head
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/x-www-form-urlencoded"));
    let response = match read_body(body).await {
        Ok(body) => {
            let form = if is_form { body } else { Vec::new() };
            let mut request = Request::new(head.method.clone(), target, &form);
            let accepts = |value: &http::HeaderValue| value.to_str().is_ok_and(|value| value.contains("text/html"));
            request.wants_html = head.headers.get_all(header::ACCEPT).iter().any(accepts);
            match origin::refusal(&head.headers).filter(|_| head.method != http::Method::GET) {
                Some(reason) => Response::text(StatusCode::FORBIDDEN, reason),
                None => endpoints::answer(&admin, &request).await,
            }
        }
        Err(status) => Response::text(status, ""),
    };
    Ok(answered(&admin, access, head, start, response))
}

/// Source: `Admin.allow_paths`.
fn is_allowed(admin: &Admin, target: &str) -> bool {
    let allowed = &admin.allowed_paths;
    allowed.is_empty() || allowed.iter().any(|matcher| matcher.matches(target.as_bytes()))
}

/// Counts and logs an answer.
fn answered(
    admin: &Admin,
    access: Rc<Access>,
    head: Parts,
    start: Instant,
    response: Response,
) -> http::Response<Answer> {
    let status = response.status.as_u16();
    admin.http_stats.response(status);
    let mut response = response.into_http();
    response.body_mut().on_end(move |bytes| access.log(&head, start, status, bytes));
    response.map(Answer::Pieces)
}

async fn read_body(body: Incoming) -> Result<Vec<u8>, StatusCode> {
    let read = tokio::time::timeout(READ_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect());
    match read.await {
        Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Ok(Err(_)) => Err(StatusCode::BAD_REQUEST),
        Err(_) => Err(StatusCode::REQUEST_TIMEOUT),
    }
}
