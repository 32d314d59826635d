//! HTTP/2 towards endpoints.
//!
//! Owns one shared connection ([`Connection`]) and one request on it ([`Stream`]). Never decides where a request goes.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::PingPong;
use h2::client::{ResponseFuture, SendRequest};
use outrigger_config::cluster::UpstreamHttp;
use outrigger_config::http::Http2Keepalive;

use super::connect::{ConnectError, Connected, Counted};
use super::key::Fit;
use super::pool::Connecting;
use super::stats::EndedBy;
use crate::http::h2::body::{ReceiveBody, SendBody, reset_by_peer, stream_error};
use crate::http::h2::convert;
use crate::http::h2::cork::{self, Cork, Corked};
use crate::http::h2::guard::Guard;
use crate::http::h2::keepalive::{self, Reuse};
use crate::http::h2::stats::Http2Stats;
use crate::http::headers::Headers;
use crate::http::message::{RequestHead, ResponseHead};
use crate::http::seam::{Chunk, StreamError};
use crate::worker::Worker;
use crate::worker::socket::{Io, Socket};

/// A connection that carries many requests.
pub struct Connection {
    sender: RefCell<SendRequest<Bytes>>,
    active: Cell<u32>,
    requests: Cell<u32>,
    closed: Cell<bool>,
    /// The peer has said how many streams it takes.
    settled: Cell<bool>,
    /// Held until then: who finds it waits, instead of crowding in or making a connection of their own.
    settling: RefCell<Option<Connecting>>,
    idle_since: Cell<Instant>,
    /// Set where the peer is asked before requests after a pause.
    reuse: Option<Rc<Reuse>>,
    counted: Rc<Counted>,
    codec: Arc<Http2Stats>,
    local: Option<SocketAddr>,
}

impl Connection {
    /// Starts HTTP/2 on a new connection and a task that drives it.
    ///
    /// # Errors
    /// When the peer does not speak HTTP/2.
    pub async fn start(
        worker: &Worker,
        connected: Connected,
        counted: Counted,
        options: &UpstreamHttp,
    ) -> Result<Rc<Self>, ConnectError> {
        let local = connected.io.socket().and_then(Socket::local_address);
        let settings = &options.http2;
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(settings.initial_stream_window_bytes)
            .initial_connection_window_size(settings.initial_connection_window_bytes)
            .header_table_size(settings.hpack_table_bytes)
            .max_header_list_size(options.max_response_headers_bytes)
            .max_concurrent_reset_streams(64)
            .enable_push(false);
        let (cork, corked) = cork::cork(connected.io, Guard::of_client(settings));
        let handshake = builder.handshake::<_, Bytes>(corked).await;
        let (sender, mut driver) = handshake.map_err(|error| ConnectError::Tls(error.to_string()))?;
        counted.cluster().stats.upstream_cx_http2_total.increment();
        let codec = Arc::clone(counted.cluster().http2_stats(worker));
        let counted = Rc::new(counted);
        let idle_interval = settings.keepalive.and_then(|keepalive| keepalive.idle_interval);
        let reuse = idle_interval.map(|idle| Rc::new(Reuse::new(idle)));
        let connection = Rc::new(Self {
            sender: RefCell::new(sender),
            active: Cell::new(0),
            requests: Cell::new(0),
            closed: Cell::new(false),
            settled: Cell::new(false),
            settling: RefCell::new(None),
            idle_since: Cell::new(counted.start()),
            reuse: reuse.clone(),
            counted: Rc::clone(&counted),
            codec: Arc::clone(&codec),
            local,
        });
        let pings = driver.ping_pong().map(|pings| (settings.keepalive, pings));
        let task = Task { driver, cork, pings, reuse, counted, codec, connection: Rc::downgrade(&connection) };
        tokio::task::spawn_local(task.run());
        Ok(connection)
    }

    /// Whether it serves those who ask for this.
    pub fn fits(&self, fit: &Fit<'_>) -> bool {
        self.counted.fits(fit)
    }

    /// Whether nobody is left for whom it was made.
    pub fn is_orphaned(&self) -> bool {
        self.counted.is_orphaned()
    }

    /// Holds `connecting` until the peer has said how many streams it takes.
    pub(super) fn hold_until_settled(&self, connecting: Option<Connecting>) {
        if !self.settled.get() && !self.closed.get() {
            *self.settling.borrow_mut() = connecting;
        }
    }

    fn settle(&self) {
        self.settled.set(true);
        drop(self.settling.take());
    }

    /// Whether another request may be sent on it now.
    pub fn has_room(&self) -> bool {
        if self.closed.get() || self.counted.host().retired.get() {
            return false;
        }
        if !self.settled.get() && self.active.get() > 0 {
            return false;
        }
        let config = &self.counted.host().node.config;
        if config.max_requests_per_connection.is_some_and(|limit| self.requests.get() >= limit) {
            return false;
        }
        if config.http.max_connection_duration.is_some_and(|limit| self.counted.start().elapsed() >= limit) {
            return false;
        }
        let mut sender = self.sender.borrow_mut();
        // After a GOAWAY it takes no more; no task needs waking for this question. This handle never sends itself, so it
        // never waits for a stream that another one opened.
        let mut cx = Context::from_waker(Waker::noop());
        if matches!(sender.poll_ready(&mut cx), Poll::Ready(Err(_))) {
            return false;
        }
        let room = sender.current_max_send_streams().min(config.http.http2.max_concurrent_streams as usize);
        (self.active.get() as usize) < room
    }

    /// Whether the pool should keep it.
    pub fn keep(&self, now: Instant, idle_timeout: Option<Duration>) -> bool {
        if self.closed.get() {
            return false;
        }
        let idle = self.active.get() == 0;
        let expired =
            idle && idle_timeout.is_some_and(|limit| now.saturating_duration_since(self.idle_since.get()) > limit);
        if expired {
            self.counted.cluster().stats.upstream_cx_idle_timeout.increment();
        }
        !expired && (!idle || (self.has_room() && !self.is_orphaned()))
    }
}

/// What drives a connection.
struct Task {
    driver: h2::client::Connection<Corked<Io>, Bytes>,
    cork: Cork<Io>,
    /// Without settings the peer is asked when it has been silent for too long.
    pings: Option<(Option<Http2Keepalive>, PingPong)>,
    reuse: Option<Rc<Reuse>>,
    counted: Rc<Counted>,
    codec: Arc<Http2Stats>,
    connection: Weak<Connection>,
}

impl Task {
    async fn run(self) {
        let Self { mut driver, cork, pings, reuse, counted, codec, connection } = self;
        let stats = &counted.cluster().stats;
        // Everything that streams have written leaves together when the connection has nothing more to do.
        let heard = Cell::new(0_u64);
        let driven = poll_fn(|cx| {
            let ended = Pin::new(&mut driver).poll(cx);
            let sent = cork.poll_send(cx);
            let (received, written) = cork.take_totals();
            if received > 0 {
                if let Some(reuse) = &reuse {
                    reuse.heard();
                }
                // Settings come first.
                if heard.replace(heard.get() + received) == 0
                    && let Some(connection) = connection.upgrade()
                {
                    connection.settle();
                }
            }
            stats.upstream_cx_rx_bytes_total.add(received);
            stats.upstream_cx_tx_bytes_total.add(written);
            match sent {
                Poll::Ready(Err(_)) => Poll::Ready(Ok(())),
                _ => ended,
            }
        });
        let mut silent = false;
        let ended = match pings {
            Some((keepalive, pings)) => {
                let watch = async {
                    match keepalive {
                        Some(keepalive) => keepalive::watch(pings, keepalive, reuse.as_deref()).await,
                        None => {
                            let waits = || connection.upgrade().is_some_and(|connection| connection.active.get() > 0);
                            keepalive::watch_silence(pings, || heard.get(), waits).await;
                        }
                    }
                };
                tokio::select! {
                    ended = driven => ended,
                    () = watch => {
                        codec.keepalive_timeout.increment();
                        silent = true;
                        Ok(())
                    }
                }
            }
            None => driven.await,
        };
        if let Some(flood) = cork.flood() {
            stats.upstream_cx_protocol_error.increment();
            codec.count_flood(flood);
            if cork.say_goaway() {
                codec.goaway_sent.increment();
                // As far as the endpoint takes it now.
                let _ = poll_fn(|cx| Poll::Ready(cork.poll_send(cx))).await;
            }
        } else if let Err(error) = ended
            && error.is_library()
        {
            stats.upstream_cx_protocol_error.increment();
            codec.rx_messaging_error.increment();
        }
        let by = if cork.is_lost() { EndedBy::Upstream } else { EndedBy::Us };
        let connection = connection.upgrade();
        // What ends by itself has no streams any more, whether or not they have noticed.
        let cut = by == EndedBy::Upstream || silent || cork.flood().is_some();
        counted.set_end(by, cut && connection.as_ref().is_some_and(|connection| connection.active.get() > 0));
        if let Some(connection) = connection {
            connection.closed.set(true);
            connection.settle();
            // The counts end with the last who holds it, and the socket should not outlive them by long.
            counted.host().multiplexed.borrow_mut().retain(|other| !Rc::ptr_eq(other, &connection));
        }
    }
}

/// One request on a connection.
pub struct Stream {
    connection: Rc<Connection>,
    /// Its own handle: each remembers one waker for the moment when there is room for a stream.
    sender: RefCell<SendRequest<Bytes>>,
    send: OnceCell<SendBody>,
    response: RefCell<Option<ResponseFuture>>,
    receive: OnceCell<ReceiveBody>,
    reset_by_peer: Cell<bool>,
}

impl Stream {
    /// Takes a place on the connection, so that nobody else does before the head is sent.
    pub fn new(connection: &Rc<Connection>) -> Self {
        connection.active.set(connection.active.get() + 1);
        if let Some(reuse) = &connection.reuse {
            reuse.begin();
        }
        connection.requests.set(connection.requests.get().saturating_add(1));
        Self {
            connection: Rc::clone(connection),
            sender: RefCell::new(connection.sender.borrow().clone()),
            send: OnceCell::new(),
            response: RefCell::new(None),
            receive: OnceCell::new(),
            reset_by_peer: Cell::new(false),
        }
    }

    /// Bytes of the response that were not taken.
    pub fn held(&self) -> usize {
        self.receive.get().map_or(0, ReceiveBody::held)
    }

    /// The connection, as it is counted.
    pub fn counted(&self) -> &Counted {
        &self.connection.counted
    }

    /// Our address.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.connection.local
    }

    /// Hands the head to the connection.
    ///
    /// # Errors
    /// When the connection takes no more requests: nothing was sent then.
    pub fn poll_send_head(&self, cx: &mut Context<'_>, head: &RequestHead, end: bool) -> Poll<Result<(), StreamError>> {
        let mut sender = self.sender.borrow_mut();
        // Whatever goes wrong before the head is handed over, the peer has not seen the request.
        if ready!(sender.poll_ready(cx)).is_err() {
            self.connection.closed.set(true);
            return Poll::Ready(Err(StreamError::Refused));
        }
        let request = convert::request(head).map_err(|error| StreamError::Protocol(error.to_string()))?;
        match sender.send_request(request, end) {
            Ok((response, stream)) => {
                *self.response.borrow_mut() = Some(response);
                let _ = self.send.set(SendBody::new(stream, end));
                Poll::Ready(Ok(()))
            }
            // What the library will not send for what is in it would fail elsewhere too.
            Err(error) if error.reason().is_none() && !error.is_io() && !error.is_go_away() => {
                Poll::Ready(Err(StreamError::Protocol(error.to_string())))
            }
            Err(_) => {
                self.connection.closed.set(true);
                Poll::Ready(Err(StreamError::Refused))
            }
        }
    }

    /// Ready with the response head.
    pub fn poll_response(&self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), StreamError>> {
        let mut response = self.response.borrow_mut();
        let Some(future) = response.as_mut() else { return Poll::Ready(Err(StreamError::Closed)) };
        match ready!(Pin::new(future).poll(cx)) {
            Ok(answer) => {
                let (parts, body) = answer.into_parts();
                convert::response_of(&parts, head);
                *response = None;
                let _ = self.receive.set(ReceiveBody::new(body));
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                if !error.is_reset() {
                    self.connection.closed.set(true);
                } else if error.is_library() {
                    self.connection.counted.cluster().stats.upstream_cx_protocol_error.increment();
                }
                if let Some(reason) = reset_by_peer(&error) {
                    self.count_reset(reason);
                }
                Poll::Ready(Err(stream_error(&error)))
            }
        }
    }

    /// See [`crate::http::seam::BodySource::poll_data`].
    pub fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        let Some(body) = self.receive.get() else { return Poll::Ready(Ok(false)) };
        let data = body.poll_data(cx);
        if let (Poll::Ready(Err(_)), Some(reason)) = (&data, body.reset_by_peer()) {
            self.count_reset(reason);
        }
        data
    }

    /// Counts that the endpoint has reset the stream. A refusal is not one: the request goes elsewhere.
    fn count_reset(&self, reason: h2::Reason) {
        if !self.reset_by_peer.replace(true) {
            self.connection.codec.rx_reset.increment();
            if reason != h2::Reason::REFUSED_STREAM {
                self.connection.counted.cluster().stats.upstream_rq_rx_reset.increment();
            }
        }
    }

    /// See [`crate::http::seam::BodySource::with_data`].
    pub fn with_data<R>(&self, look: impl FnOnce(Chunk<'_>) -> R) -> R {
        match self.receive.get() {
            Some(body) => body.with_data(look),
            None => look(Chunk::Slice(&[])),
        }
    }

    /// See [`crate::http::seam::BodySource::consume`].
    pub fn consume(&self, count: usize) {
        if let Some(body) = self.receive.get() {
            body.consume(count);
        }
    }

    /// See [`crate::http::seam::BodySource::take_trailers`].
    pub fn take_trailers(&self) -> Option<Headers> {
        self.receive.get().and_then(ReceiveBody::take_trailers)
    }

    /// There is no response body, or it was read to its end.
    pub fn response_is_done(&self) -> bool {
        self.receive.get().is_some_and(ReceiveBody::is_done)
    }

    /// See [`crate::http::seam::BodySink::poll_send`].
    pub fn poll_send(&self, cx: &mut Context<'_>, chunk: Chunk<'_>) -> Poll<Result<usize, StreamError>> {
        match self.send.get() {
            Some(body) => body.poll_send(cx, chunk),
            None => Poll::Ready(Err(StreamError::Protocol("body before head".into()))),
        }
    }

    /// See [`crate::http::seam::BodySink::poll_flush`].
    pub fn poll_flush(&self) -> Poll<Result<(), StreamError>> {
        Poll::Ready(self.send.get().map_or(Ok(()), SendBody::release))
    }

    /// See [`crate::http::seam::BodySink::poll_finish`].
    pub fn poll_finish(&self, trailers: Option<&Headers>) -> Poll<Result<(), StreamError>> {
        match self.send.get() {
            Some(body) => body.poll_finish(trailers),
            None => Poll::Ready(Err(StreamError::Protocol("end before head".into()))),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // A stream given up tells the peer; a whole one has nothing left to reset.
        if let Some(body) = self.send.get()
            && !(body.is_finished() && self.response_is_done())
        {
            body.reset(h2::Reason::CANCEL);
            if !self.reset_by_peer.get() && !self.connection.closed.get() {
                self.connection.codec.tx_reset.increment();
                self.connection.counted.cluster().stats.upstream_rq_tx_reset.increment();
            }
        }
        let active = self.connection.active.get().saturating_sub(1);
        self.connection.active.set(active);
        if active == 0 {
            self.connection.idle_since.set(Instant::now());
        }
        self.connection.counted.host().released.notify_one();
    }
}
