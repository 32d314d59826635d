//! Streams of gRPC messages, both ways, that a worker opens for requests.
//!
//! Owns a stream from the choice of its endpoint to its status: a task of its own, which sends what it is given and keeps
//! what comes until somebody takes it. Takes the pools, limits and stats of the cluster as unary calls do (see `call`).
//! Never knows what the messages say.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use outrigger_config::http_uri::CallRetries;
use outrigger_config::source::GrpcCall;
use prost::Message;
use tokio::task::AbortHandle;
use tokio::time::Sleep;

use super::call::{self, CallError, Calling};
use super::google_call;
use super::grpc_message::{self, Unframer};
use super::repeated_call::is_named;
use super::stream::UpstreamStream;
use crate::http::h1::parse::Framing;
use crate::http::headers::{HeaderId, Headers};
use crate::http::message::{RequestHead, ResponseHead};
use crate::http::seam::{BodySource, Chunk, Pump, PumpError, StreamError};
use crate::worker::Worker;

/// An open stream. It is reset when this is dropped.
pub struct GrpcStream {
    shared: Rc<Shared>,
    /// `None` once it was left to its end.
    task: Option<AbortHandle>,
}

/// Why a stream ended.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("gRPC status {code}: {message}")]
pub struct GrpcFailure {
    /// The status code; never 0.
    pub code: u32,
    /// What is said of it.
    pub message: String,
}

/// What the owner of a stream and its task have in common. The owner writes `outgoing`, the task the rest.
#[derive(Default)]
struct Shared(RefCell<State>);

#[derive(Default)]
struct State {
    /// Framed messages that wait to be sent.
    outgoing: VecDeque<Vec<u8>>,
    /// Bytes of the first one that were sent.
    sent: usize,
    /// Those that were sent, as long as they may be sent again.
    kept: Kept,
    /// Nothing more will be sent.
    closed: bool,
    incoming: VecDeque<Vec<u8>>,
    incoming_bytes: usize,
    end: Option<Result<(), GrpcFailure>>,
    task: Option<Waker>,
    owner: Option<Waker>,
}

/// Messages that another attempt begins with.
#[derive(Default)]
enum Kept {
    /// There is no other attempt.
    #[default]
    No,
    /// In order; not many.
    Yes(VecDeque<Vec<u8>>),
}

impl GrpcStream {
    /// Opens a stream of `service`; `path` is `/<service>/<method>`, and `more` are further headers, which take the place
    /// of those of the service; `complete` may add others. It is opened again in the cases that the service names, as long
    /// as nothing has come back.
    pub fn open(
        worker: &Rc<Worker>,
        service: &GrpcCall,
        path: &str,
        more: &[(String, String)],
        complete: impl FnOnce(&mut Headers),
    ) -> Self {
        let mut head = grpc_message::request_head(path, &service.authority, None);
        for (name, value) in &service.metadata {
            head.headers.append(name.as_bytes(), value.as_bytes());
        }
        for (name, value) in more {
            head.headers.set_by_name(name, value.as_bytes());
        }
        complete(&mut head.headers);
        let most = service.max_answer_bytes.map_or(call::MAX_ANSWER_BYTES, |bytes| bytes as usize);
        let shared = Rc::<Shared>::default();
        let (worker, cluster, its) = (Rc::clone(worker), service.cluster.clone(), Rc::clone(&shared));
        let (retries, google) = (service.retries, service.google.clone());
        let task = tokio::task::spawn_local(async move {
            let Some(google) = google else {
                return its.finish(run_repeatedly(&worker, &cluster, head, &its, most, retries).await);
            };
            let open = google_call::begin(&worker, &google);
            let result = match google_call::add_token(google.token.as_ref(), &mut head.headers).await {
                Ok(()) => run_repeatedly(&worker, &cluster, head, &its, most, retries).await,
                Err(error) => Err(failure(&error)),
            };
            // As in Envoy, what we have ended ourselves has no status.
            if !its.0.borrow().closed {
                open.end(result.as_ref().map_or_else(|failure| failure.code, |()| 0));
            }
            its.finish(result);
        });
        Self { shared, task: Some(task.abort_handle()) }
    }

    /// Sends a message.
    pub fn send(&self, message: &impl Message) {
        let mut state = self.shared.0.borrow_mut();
        state.outgoing.push_back(grpc_message::frame(message));
        wake(&mut state.task);
    }

    /// The next message; `None` when the service has ended the stream without an error.
    ///
    /// # Errors
    /// If the stream could not be opened, broke, or ended with a status other than 0.
    pub fn poll_message(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Vec<u8>>, GrpcFailure>> {
        let mut state = self.shared.0.borrow_mut();
        if let Some(message) = state.incoming.pop_front() {
            state.incoming_bytes -= message.len();
            wake(&mut state.task);
            return Poll::Ready(Ok(Some(message)));
        }
        if let Some(end) = &state.end {
            return Poll::Ready(end.clone().map(|()| None));
        }
        state.owner = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Sends nothing more, and leaves it to the service to end the stream, for a while.
    pub fn finish(mut self) {
        let mut state = self.shared.0.borrow_mut();
        state.closed = true;
        wake(&mut state.task);
        drop(state);
        self.task = None;
    }
}

impl Drop for GrpcStream {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Shared {
    fn finish(&self, result: Result<(), GrpcFailure>) {
        let mut state = self.0.borrow_mut();
        state.end = Some(result);
        wake(&mut state.owner);
    }

    fn deliver(&self, messages: Vec<Vec<u8>>) {
        let mut state = self.0.borrow_mut();
        state.incoming_bytes += messages.iter().map(Vec::len).sum::<usize>();
        state.incoming.extend(messages);
        wake(&mut state.owner);
    }

    /// Begins anew with what was sent, if that was kept.
    fn rewind(&self) -> bool {
        let mut state = self.0.borrow_mut();
        let Kept::Yes(mut messages) = std::mem::take(&mut state.kept) else { return false };
        messages.append(&mut state.outgoing);
        (state.outgoing, state.sent) = (messages, 0);
        state.kept = Kept::Yes(VecDeque::new());
        true
    }

    /// Nothing is sent again.
    fn forget(&self) {
        self.0.borrow_mut().kept = Kept::No;
    }

    fn is_full(&self) -> bool {
        self.0.borrow().incoming_bytes >= WAITING_BYTES
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// What was given to be sent, as a body without an end until it is closed.
impl BodySource for Shared {
    fn poll_data(&self, _: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        let state = self.0.borrow();
        match (state.outgoing.is_empty(), state.closed) {
            (false, _) => Poll::Ready(Ok(true)),
            (true, true) => Poll::Ready(Ok(false)),
            // The task has left its waker before it asks.
            (true, false) => Poll::Pending,
        }
    }

    fn with_data<R>(&self, look: impl FnOnce(Chunk<'_>) -> R) -> R {
        let state = self.0.borrow();
        let first = state.outgoing.front().map(Vec::as_slice).unwrap_or_default();
        look(Chunk::Slice(first.get(state.sent..).unwrap_or_default()))
    }

    fn consume(&self, count: usize) {
        let mut state = self.0.borrow_mut();
        state.sent += count;
        if state.outgoing.front().is_some_and(|first| first.len() <= state.sent) {
            let sent = state.outgoing.pop_front();
            state.sent = 0;
            if let (Kept::Yes(kept), Some(sent)) = (&mut state.kept, sent) {
                kept.push_back(sent);
                if kept.iter().map(Vec::len).sum::<usize>() > WAITING_BYTES {
                    state.kept = Kept::No;
                }
            }
        }
    }

    fn take_trailers(&self) -> Option<Headers> {
        None
    }
}

/// As often as the policy says, until something has come back.
async fn run_repeatedly(
    worker: &Rc<Worker>,
    cluster: &Arc<str>,
    head: RequestHead,
    shared: &Shared,
    most: usize,
    retries: Option<CallRetries>,
) -> Result<(), GrpcFailure> {
    let Some(CallRetries { on, times }) = retries else { return run(worker, cluster, head, shared, most).await.status };
    shared.0.borrow_mut().kept = Kept::Yes(VecDeque::new());
    for tried in 0..times.count {
        let Run { status, ended } = run(worker, cluster, head.clone(), shared, most).await;
        let again = ended.as_ref().is_some_and(|ended| is_named(&on, ended.as_ref()));
        if !again || !shared.rewind() {
            return status;
        }
        tokio::time::sleep(times.pause(tried, worker.random.next())).await;
    }
    shared.forget();
    run(worker, cluster, head, shared, most).await.status
}

/// One attempt at a stream.
struct Run {
    status: Result<(), GrpcFailure>,
    /// Its response head, if nothing came with it, or why there is none. `None` once there was an answer.
    ended: Option<Result<ResponseHead, CallError>>,
}

impl Run {
    fn failed(error: CallError) -> Self {
        Self { status: Err(failure(&error)), ended: Some(Err(error)) }
    }
}

async fn run(worker: &Rc<Worker>, cluster: &Arc<str>, head: RequestHead, shared: &Shared, most: usize) -> Run {
    let mut calling = match Calling::new(worker, cluster, head, false) {
        Ok(calling) => calling,
        Err(error) => return Run::failed(error),
    };
    let begun = match calling.begin().await {
        Ok(begun) => begun,
        Err(error) => {
            calling.settle(Err(&error));
            return Run::failed(error);
        }
    };
    let http = begun.host.node.config.http.clone();
    let head = std::mem::take(&mut calling.head);
    let mut driven = Driven { head, head_sent: false, answer: None, upload: Pump::default(), timer: None };
    let ended = {
        let (stream, mut unframer) = (&begun.stream, Unframer::new(most));
        poll_fn(|cx| driven.poll(cx, stream, &http, shared, &mut unframer)).await
    };
    match ended {
        Ok(trailers) => {
            let answer = driven.answer.unwrap_or_default();
            let status = grpc_message::status(&answer, trailers.as_ref());
            calling.settle(Ok((&answer, status.as_ref().map_or_else(|failed| Some(failed.code), |()| Some(0)))));
            begun.stream.finish(std::time::Instant::now());
            Run { status, ended: Some(Ok(answer)) }
        }
        Err(error) => {
            calling.settle(Err(&error));
            match driven.answer {
                None => Run::failed(error),
                Some(_) => Run { status: Err(failure(&error)), ended: None },
            }
        }
    }
}

/// A stream that has a connection.
struct Driven {
    head: RequestHead,
    head_sent: bool,
    answer: Option<ResponseHead>,
    upload: Pump,
    /// Until the service is waited for no longer.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Driven {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stream: &UpstreamStream,
        http: &outrigger_config::cluster::UpstreamHttp,
        shared: &Shared,
        unframer: &mut Unframer,
    ) -> Poll<Result<Option<Headers>, CallError>> {
        shared.0.borrow_mut().task = Some(cx.waker().clone());
        if self.poll_closing(cx, shared).is_ready() {
            return Poll::Ready(Err(CallError::Timeout(LINGER)));
        }
        if !self.head_sent {
            match stream.poll_send_head(cx, &self.head, Framing::Chunked, http) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => return Poll::Pending,
            }
            self.head_sent = true;
        }
        if !self.upload.is_done()
            && let Poll::Ready(Err(PumpError::Sink(error))) = self.upload.poll(cx, shared, stream, |_| {})
        {
            // Why is seen in the answer, or in the lack of one.
            tracing::debug!("stream of gRPC: {error}");
        }
        if self.answer.is_none() {
            let mut answer = ResponseHead::default();
            match stream.poll_response(cx, &mut answer) {
                Poll::Ready(read) => read?,
                Poll::Pending => return Poll::Pending,
            }
            // A status in the head is all that comes: there may be another attempt.
            if !answer.headers.contains(HeaderId::GrpcStatus) && answer.status == 200 {
                shared.forget();
            }
            self.answer = Some(answer);
        }
        while !shared.is_full() {
            match stream.poll_data(cx) {
                Poll::Ready(Ok(true)) => {
                    let mut messages = Vec::new();
                    let (count, fits) =
                        stream.with_data(|chunk| (chunk.bytes().len(), unframer.take(chunk.bytes(), &mut messages)));
                    stream.consume(count);
                    if !messages.is_empty() {
                        shared.deliver(messages);
                    }
                    if let Err(error) = fits {
                        return Poll::Ready(Err(CallError::Stream(StreamError::Protocol(error.to_string()))));
                    }
                }
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(stream.take_trailers())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Pending
    }

    /// Ready when the service had its time to end a stream that was closed.
    fn poll_closing(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Poll<()> {
        if !shared.0.borrow().closed {
            return Poll::Pending;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        timer.as_mut().poll(cx)
    }
}

/// What a failure of ours is as a status. Source: gRPC's status codes for what happens on the way.
fn failure(error: &CallError) -> GrpcFailure {
    let code = match error {
        CallError::Stream(StreamError::Protocol(_)) | CallError::TooLong(_) => 13,
        CallError::Timeout(_) => 4,
        _ => 14,
    };
    GrpcFailure { code, message: error.to_string() }
}

/// What came and nobody has taken; more is not read.
const WAITING_BYTES: usize = 1 << 20;
/// A service that does not end a stream that we have ended is not waited for longer.
const LINGER: Duration = Duration::from_secs(1);
