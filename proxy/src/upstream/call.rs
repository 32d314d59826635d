//! Calls that a worker makes itself, to services that requests ask before they go on.
//!
//! Owns a call from the choice of its endpoint to the end of its answer, over the pools, limits and stats of the cluster,
//! as those of forwarded requests. A call ends when its future is dropped. Never knows what is asked.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use outrigger_config::cluster::{Discovery, UpstreamTransport};
use outrigger_config::route::Priority;
use outrigger_config::source::GrpcCall;
use outrigger_policy::balance::Wanted;
use outrigger_policy::breaker::Permit;
use prost::Message;

use super::admission::{Admitted, Refused, Seeker, Wish};
use super::avoid::Avoid;
use super::clusters::WorkerCluster;
use super::gate::Place;
use super::grpc_message::{self, UnaryError};
use super::host::Host;
use super::pool::{self, PoolError};
use super::response_stats::ResponseOrigin;
use super::stream::UpstreamStream;
use super::worker_host::WorkerHost;
use crate::graph::ClusterNode;
use crate::health::observe;
use crate::http::filter::Given;
use crate::http::h1::parse::Framing;
use crate::http::headers::Headers;
use crate::http::message::{RequestHead, ResponseHead};
use crate::http::router::attempt::Active;
use crate::http::seam::{BodySource, Pump, PumpError, StreamError};
use crate::worker::Worker;

/// What is sent.
#[derive(Clone, Debug)]
pub struct Call {
    /// The head.
    pub head: RequestHead,
    /// The whole body.
    pub body: Vec<u8>,
    /// How the length of the body is said.
    pub framing: Framing,
    /// Limit from the choice of the endpoint to the end of the answer.
    pub timeout: Option<Duration>,
    /// Sent again if its connection has ended before there was an answer: the service takes no harm from two.
    pub repeatable: bool,
    /// A longer body of the answer is an error.
    pub max_answer_bytes: usize,
    /// Where whoever tells of the call looks.
    pub seen: Option<Rc<Seen>>,
}

/// What is seen of a call.
#[derive(Debug, Default)]
pub struct Seen {
    /// The endpoint that was asked last.
    pub host: RefCell<Option<Arc<Host>>>,
    /// Bytes of heads and bodies that were sent, before anything compresses them.
    pub bytes_sent: Cell<u64>,
    /// Bytes of the answer, with its trailers.
    pub bytes_received: Cell<u64>,
}

/// A call of gRPC; `path` is `/<service>/<method>`.
pub fn unary(service: &GrpcCall, path: &str, message: &impl Message, repeatable: bool) -> Call {
    let GrpcCall { cluster: _, authority, timeout, metadata, max_answer_bytes, retries: _, google: _ } = service;
    let mut head = grpc_message::request_head(path, authority, *timeout);
    for (name, value) in metadata {
        head.headers.append(name.as_bytes(), value.as_bytes());
    }
    Call {
        head,
        body: grpc_message::frame(message),
        framing: Framing::Chunked,
        timeout: *timeout,
        repeatable,
        max_answer_bytes: max_answer_bytes.map_or(MAX_ANSWER_BYTES, |bytes| bytes as usize),
        seen: None,
    }
}

/// The message that a call of gRPC was answered with.
///
/// # Errors
/// If there is no answer, or it is not one message of this type.
pub(super) fn message<M: Message + Default>(result: Result<Answer, CallError>) -> Result<M, UnaryFailure> {
    let Answer { head, body, trailers } = result?;
    Ok(grpc_message::message(&head, &body, trailers.as_ref())?)
}

/// Why a call of gRPC has no message.
#[derive(Debug, thiserror::Error)]
pub enum UnaryFailure {
    /// There is no answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The answer holds none.
    #[error(transparent)]
    Answer(#[from] UnaryError),
}

impl UnaryFailure {
    /// The status of the call. 0 if it went well, and only its message cannot be read.
    pub fn status(&self) -> u32 {
        match self {
            Self::Call(CallError::TooLong(_)) => INTERNAL,
            Self::Call(_) => UNAVAILABLE,
            Self::Answer(error) => error.status(),
        }
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The head.
    pub head: ResponseHead,
    /// The whole body.
    pub body: Vec<u8>,
    /// The trailers.
    pub trailers: Option<Headers>,
}

impl Answer {
    /// Bytes of names and values of headers, and of the body.
    fn bytes(&self) -> u64 {
        let trailers = self.trailers.as_ref().map_or(0, Headers::byte_size);
        (self.head.headers.byte_size() + self.body.len() + trailers) as u64
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No such cluster.
    #[error("there is no cluster {0:?}")]
    NoCluster(Arc<str>),
    /// No endpoint to ask.
    #[error("no healthy upstream")]
    NoHost,
    /// A limit was reached.
    #[error("overflow")]
    Overflow,
    /// No connection.
    #[error(transparent)]
    Connect(PoolError),
    /// The stream or connection ended before the answer did.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The answer is too long.
    #[error("the answer has more than {0} bytes")]
    TooLong(usize),
    /// The token that goes with the call cannot be read or sent.
    #[error("token file {}: {why}", file.display())]
    Token {
        /// The file.
        file: PathBuf,
        /// Why.
        why: String,
    },
}

/// Asks an endpoint of the cluster `name`, as the worker knows it now.
///
/// # Errors
/// When there is no whole answer, whatever its status.
pub async fn call(worker: &Rc<Worker>, name: &Arc<str>, mut call: Call) -> Result<Answer, CallError> {
    let mut calling = Calling::new(worker, name, std::mem::take(&mut call.head), call.repeatable)?;
    calling.seen = call.seen.take();
    let result = match call.timeout {
        None => calling.run(&call).await,
        Some(limit) => match tokio::time::timeout(limit, calling.run(&call)).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Timeout(limit)),
        },
    };
    calling.settle(result.as_ref().map(|answer| (&answer.head, grpc_status(answer))));
    result
}

/// A call on its way.
pub(super) struct Calling<'a> {
    worker: &'a Rc<Worker>,
    node: Arc<ClusterNode>,
    cluster: Rc<WorkerCluster>,
    /// What is sent first.
    pub(super) head: RequestHead,
    /// May be sent again.
    repeatable: bool,
    began: Instant,
    /// The endpoint that was asked last.
    host: Option<Rc<WorkerHost>>,
    seen: Option<Rc<Seen>>,
}

/// A connection to the endpoint of a call, and what the call counts as.
pub(super) struct Begun {
    /// The connection.
    pub(super) stream: UpstreamStream,
    /// The endpoint.
    pub(super) host: Rc<WorkerHost>,
    _place: Option<Place>,
    _permit: Option<Permit>,
    _active: Active,
}

impl<'a> Calling<'a> {
    /// A call to an endpoint of the cluster `name`, as the worker knows it now.
    pub(super) fn new(
        worker: &'a Rc<Worker>,
        name: &Arc<str>,
        mut head: RequestHead,
        repeatable: bool,
    ) -> Result<Self, CallError> {
        let node = worker.graph().clusters.get(name).map(Arc::clone);
        let Some(node) = node else { return Err(CallError::NoCluster(Arc::clone(name))) };
        let cluster = worker.clusters.get(worker, &node);
        if node.config.transports().any(|transport| matches!(transport, UpstreamTransport::Tls(_))) {
            head.set_scheme(b"https");
        }
        Ok(Self { worker, node, cluster, head, repeatable, began: Instant::now(), host: None, seen: None })
    }

    /// Finds an endpoint and a connection to it.
    pub(super) async fn begin(&mut self) -> Result<Begun, CallError> {
        let Admitted { host, place } = self.admit().await?;
        self.host = Some(Rc::clone(&host));
        if let Some(seen) = &self.seen {
            *seen.host.borrow_mut() = Some(Arc::clone(&host.host));
        }
        let mut active = Active::new(&self.cluster, &host);
        let mut stream = self.connect(&host).await?;
        let mut permit = None;
        // Where requests may wait, the place counts.
        if place.is_none() {
            let counted = pool::count(&self.cluster, Priority::Default, stream).map_err(|_| CallError::Overflow)?;
            stream = counted.0;
            permit = Some(counted.1);
        }
        active.has_stream();
        observe::reached(&host);
        Ok(Begun { stream, host, _place: place, _permit: permit, _active: active })
    }

    async fn run(&mut self, call: &Call) -> Result<Answer, CallError> {
        let mut resent = false;
        loop {
            let begun = self.begin().await?;
            let host = Rc::clone(&begun.host);
            let reused = begun.stream.is_reused();
            if let Some(seen) = &self.seen {
                seen.bytes_sent.set(seen.bytes_sent.get() + (self.head.byte_size() + call.body.len()) as u64);
            }
            match exchange(&begun.stream, &self.head, call, &host).await {
                Ok(answer) => {
                    begun.stream.finish(Instant::now());
                    if let Some(seen) = &self.seen {
                        seen.bytes_received.set(answer.bytes());
                    }
                    return Ok(answer);
                }
                // Nothing has left, or its end crossed with that of the connection. Once, and on a new connection.
                Err(CallError::Stream(error)) if !resent && self.may_resend(&error, reused) => {
                    resent = true;
                    host.stats.rq_error.increment();
                    host.idle.borrow_mut().clear();
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn may_resend(&self, error: &StreamError, reused: bool) -> bool {
        match error {
            StreamError::Refused => true,
            StreamError::Closed | StreamError::Io(_) => reused && self.repeatable,
            StreamError::Reset(_) | StreamError::Protocol(_) | StreamError::Answered(_) => false,
        }
    }

    async fn admit(&mut self) -> Result<Admitted, CallError> {
        if matches!(self.node.config.discovery, Discovery::OriginalDst(_) | Discovery::DynamicForward(_)) {
            // Where a request was going is where it goes; a call has no such place.
            return Err(CallError::NoHost);
        }
        // The settings, limits and stats of a member hold for what follows.
        let delegated = self.cluster.delegate(self.worker, Wanted::default());
        let Some((cluster, wanted)) = delegated else { return Err(CallError::NoHost) };
        self.node = cluster.node();
        self.cluster = Rc::clone(&cluster);
        let Some(options) = self.node.config.concurrency.as_deref() else {
            return match cluster.pick(self.worker, wanted, Avoid::default()) {
                Some(host) => Ok(Admitted { host, place: None }),
                None => Err(CallError::NoHost),
            };
        };
        let mut seeker = Seeker {
            worker: self.worker,
            cluster,
            wanted,
            avoid: Avoid::default(),
            priority: Priority::Default,
            own: None,
        };
        let wish = || Wish { timeout: options.queue_timeout, ..Wish::default() };
        let admission = seeker.admit(options, wish, |_: &mut Context<'_>| Poll::<()>::Pending).await;
        self.cluster = seeker.cluster;
        admission.result.map_err(|refused| match refused {
            Refused::NoHost => CallError::NoHost,
            Refused::Overflow | Refused::QueueFull | Refused::QueueTimeout | Refused::Interrupted(()) => {
                CallError::Overflow
            }
        })
    }

    async fn connect(&self, host: &Rc<WorkerHost>) -> Result<UpstreamStream, CallError> {
        let head = &self.head;
        let wanted = pool::Wanted {
            priority: Priority::Default,
            downstream: head.version,
            host: pool::host_of(head, &host.node.config.http),
            upgrade: false,
            alpn: None,
            connection: None,
            objects: None,
        };
        if let Some(stream) = pool::ready(host, wanted) {
            return Ok(stream);
        }
        Box::pin(pool::acquire(self.worker, &self.cluster, host, wanted)).await.map_err(CallError::Connect)
    }

    /// Counts what became of it, as of a forwarded request: what failed here is an answer of ours, too.
    pub(super) fn settle(&self, result: Result<(&ResponseHead, Option<u32>), &CallError>) {
        let (stats, process) = (&self.cluster.stats, &self.worker.process);
        let host = self.host.as_deref();
        let elapsed = self.began.elapsed().as_millis() as u64;
        let failed = |status: u16| {
            self.cluster.count_response(self.worker, status, ResponseOrigin::own(host.map(|host| &*host.host)));
            if let Some(host) = host {
                host.stats.rq_error.increment();
            }
        };
        match result {
            Ok((head, grpc)) => {
                let status = head.status;
                self.cluster.count_response(self.worker, status, ResponseOrigin::own(host.map(|host| &*host.host)));
                self.cluster.count_time(self.worker, elapsed, ResponseOrigin::own(host.map(|host| &*host.host)));
                if let Some(host) = host {
                    match status {
                        500.. => host.stats.rq_error.increment(),
                        _ => host.stats.rq_success.increment(),
                    }
                    observe::response(process, host, status, grpc, &head.headers);
                }
            }
            Err(CallError::NoCluster(_) | CallError::Token { .. }) => {}
            Err(CallError::NoHost) => {
                stats.upstream_cx_none_healthy.increment();
                failed(503);
            }
            Err(CallError::Timeout(_)) => {
                stats.upstream_rq_timeout.increment();
                failed(504);
                if let Some(host) = host {
                    host.stats.rq_timeout.increment();
                    observe::timed_out(process, host);
                }
            }
            Err(CallError::Overflow | CallError::Connect(PoolError::PendingOverflow | PoolError::RequestOverflow)) => {
                failed(503)
            }
            Err(CallError::Connect(_) | CallError::Stream(_)) => {
                failed(503);
                if let Some(host) = host {
                    observe::unreachable(process, host);
                }
            }
            Err(CallError::TooLong(_)) => failed(503),
        }
    }
}

fn grpc_status(answer: &Answer) -> Option<u32> {
    use crate::http::headers::HeaderId::GrpcStatus;
    let trailers = answer.trailers.as_ref().and_then(|trailers| trailers.get_str(GrpcStatus));
    trailers.or_else(|| answer.head.headers.get_str(GrpcStatus))?.parse().ok()
}

/// Sends the call and reads its answer to the end.
async fn exchange(
    stream: &UpstreamStream,
    request: &RequestHead,
    call: &Call,
    host: &WorkerHost,
) -> Result<Answer, CallError> {
    let mut head = ResponseHead::default();
    let mut upload = Pump::default();
    let (mut head_sent, mut upload_failed) = (false, false);
    let source = Given::new(&call.body);
    poll_fn(|cx| {
        if !head_sent {
            match stream.poll_send_head(cx, request, call.framing, &host.node.config.http) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => return Poll::Pending,
            }
            head_sent = true;
        }
        if !upload_failed && let Poll::Ready(Err(PumpError::Sink(_))) = upload.poll(cx, &source, stream, |_| {}) {
            // Why is seen in the answer, or in the lack of one.
            upload_failed = true;
        }
        stream.poll_response(cx, &mut head)
    })
    .await?;
    let mut body = Vec::new();
    poll_fn(|cx| {
        if !upload_failed {
            upload_failed = matches!(upload.poll(cx, &source, stream, |_| {}), Poll::Ready(Err(_)));
        }
        loop {
            match stream.poll_data(cx) {
                Poll::Ready(Ok(true)) => {
                    let count = stream.with_data(|chunk| {
                        body.extend_from_slice(chunk.bytes());
                        chunk.bytes().len()
                    });
                    stream.consume(count);
                    if body.len() > call.max_answer_bytes {
                        return Poll::Ready(Err(CallError::TooLong(call.max_answer_bytes)));
                    }
                }
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await?;
    Ok(Answer { head, body, trailers: stream.take_trailers() })
}

/// A status of gRPC.
const INTERNAL: u32 = 13;
/// A status of gRPC.
const UNAVAILABLE: u32 = 14;
/// The longest body of an answer where nothing else is said; gRPC's own default.
pub const MAX_ANSWER_BYTES: usize = 4 << 20;
