//! HTTP/1 towards endpoints.
//!
//! Owns one pooled connection ([`Connection`]) and one request on it ([`Stream`]). Never decides where a request goes.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use outrigger_config::cluster::UpstreamHttp;
use outrigger_config::route::Priority;

use super::connect::Counted;
use super::key::Fit;
use super::stats::EndedBy;
use crate::http::h1::body_io::{BodyReader, BodyWriter};
use crate::http::h1::encode;
use crate::http::h1::link::Link;
use crate::http::h1::parse::{Framing, HeadError, Limits, LookedAt, ParsedResponse, parse_response};
use crate::http::headers::Headers;
use crate::http::message::{RequestHead, ResponseHead};
use crate::http::seam::{Chunk, StreamError};
use crate::worker::socket::Socket;

/// A connection that carries one request at a time.
pub struct Connection {
    link: Link,
    counted: Counted,
    requests: Cell<u32>,
    idle_since: Cell<Instant>,
    local: Option<SocketAddr>,
    /// A request is under way on it.
    in_use: Cell<bool>,
    /// Bytes received and sent that the stats know of.
    accounted: Cell<(u64, u64)>,
}

impl Connection {
    /// Around a new connection.
    pub fn new(link: Link, counted: Counted) -> Self {
        counted.cluster().stats.upstream_cx_http1_total.increment();
        Self::raw(link, counted)
    }

    /// Around a new connection for bytes as they are.
    pub fn raw(link: Link, counted: Counted) -> Self {
        let local = link.io().socket().and_then(Socket::local_address);
        Self {
            link,
            idle_since: Cell::new(counted.start()),
            counted,
            requests: Cell::new(0),
            local,
            in_use: Cell::new(false),
            accounted: Cell::new((0, 0)),
        }
    }

    /// Whether it serves those who ask for this.
    pub fn fits(&self, fit: &Fit<'_>) -> bool {
        self.counted.fits(fit)
    }

    /// Whether it counts among those of this priority.
    pub fn has_priority(&self, priority: Priority) -> bool {
        self.counted.has_priority(priority)
    }

    /// Whether it does better to end than to wait for a request.
    pub fn is_wanted_elsewhere(&self) -> bool {
        self.counted.is_wanted_elsewhere()
    }

    /// Whether nobody is left for whom it was made.
    pub fn is_orphaned(&self) -> bool {
        self.counted.is_orphaned()
    }

    /// Whether another request may be sent on it, as far as is known without asking the system.
    pub fn is_usable(&self) -> bool {
        if self.counted.host().retired.get() {
            return false;
        }
        let config = &self.counted.host().node.config;
        if config.max_requests_per_connection.is_some_and(|limit| self.requests.get() >= limit) {
            self.counted.cluster().stats.upstream_cx_max_requests.increment();
            return false;
        }
        if config.http.max_connection_duration.is_some_and(|limit| self.counted.start().elapsed() >= limit) {
            self.counted.cluster().stats.upstream_cx_max_duration_reached.increment();
            return false;
        }
        // An idle connection must be silent: bytes nobody asked for make it as useless as its end.
        let mut cx = Context::from_waker(Waker::noop());
        self.link.poll_closed(&mut cx).is_pending() && self.link.input().is_empty()
    }

    /// Idle for too long.
    pub fn expired(&self, now: Instant, idle_timeout: Option<Duration>) -> bool {
        let expired = idle_timeout.is_some_and(|limit| now.saturating_duration_since(self.idle_since.get()) > limit);
        if expired {
            self.counted.cluster().stats.upstream_cx_idle_timeout.increment();
        }
        expired
    }

    /// A request has been served on it before.
    pub fn is_reused(&self) -> bool {
        self.requests.get() > 0
    }

    /// Brings what was received and sent into the stats.
    fn account(&self) {
        let (read, written) = self.link.totals();
        let (read_before, written_before) = self.accounted.replace((read, written));
        let stats = &self.counted.cluster().stats;
        stats.upstream_cx_rx_bytes_total.add(read - read_before);
        stats.upstream_cx_tx_bytes_total.add(written - written_before);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let ended = self.link.poll_closed(&mut Context::from_waker(Waker::noop())).is_ready();
        self.account();
        self.counted.set_end(if ended { EndedBy::Upstream } else { EndedBy::Us }, self.in_use.get());
        if !ended {
            self.link.say_goodbye();
        }
    }
}

/// One request on a connection.
pub struct Stream {
    connection: Connection,
    writer: OnceCell<BodyWriter>,
    reader: RefCell<Option<BodyReader>>,
    limits: Limits,
    head_request: Cell<bool>,
    connect: Cell<bool>,
    /// No messages, only bytes.
    raw: bool,
    /// Bytes go both ways, and may end on one side only.
    tunnel: bool,
    looked: Cell<LookedAt>,
    keep_alive: Cell<bool>,
    reused: bool,
    trailers: bool,
    totals_before: (u64, u64),
}

impl Stream {
    /// The next request on a connection.
    pub fn new(connection: Connection, options: &UpstreamHttp) -> Self {
        let reused = connection.is_reused();
        connection.requests.set(connection.requests.get().saturating_add(1));
        connection.in_use.set(true);
        let totals_before = connection.link.totals();
        let limits = Limits {
            max_head_bytes: options.max_response_headers_bytes as usize,
            max_headers: options.max_headers_count as usize,
            allow_chunked_length: options.http1.allow_chunked_length,
            allow_custom_methods: true,
            preserve_case: options.http1.preserve_case,
        };
        Self {
            connection,
            writer: OnceCell::new(),
            reader: RefCell::new(None),
            limits,
            head_request: Cell::new(false),
            connect: Cell::new(false),
            raw: false,
            tunnel: false,
            looked: Cell::default(),
            keep_alive: Cell::new(false),
            reused,
            trailers: options.http1.enable_trailers,
            totals_before,
        }
    }

    /// A tunnel to whatever is behind a connection.
    pub fn raw(connection: Connection, options: &UpstreamHttp) -> Self {
        Self { raw: true, ..Self::new(connection, options) }
    }

    /// The connection has served requests before, and nothing was received for this one: its end may have crossed with
    /// the request. One that we have cut says nothing of the kind.
    pub fn is_reused(&self) -> bool {
        self.reused && !self.counted().is_cut() && self.connection.link.totals().0 == self.totals_before.0
    }

    /// Bytes of it that were not taken, or wait to be written.
    pub fn held(&self) -> usize {
        self.connection.link.held()
    }

    /// The connection, as it is counted.
    pub fn counted(&self) -> &Counted {
        &self.connection.counted
    }

    /// Our address.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.connection.local
    }

    /// Bytes received and sent for this request.
    pub fn transferred(&self) -> (u64, u64) {
        let (read, written) = self.connection.link.totals();
        (read - self.totals_before.0, written - self.totals_before.1)
    }

    /// Gives the connection back: no request was sent on it after all.
    pub fn give_back(self) {
        let connection = self.connection;
        connection.in_use.set(false);
        connection.requests.set(connection.requests.get().saturating_sub(1));
        let host = Rc::clone(connection.counted.host());
        if !host.retired.get() && !connection.is_wanted_elsewhere() {
            host.idle.borrow_mut().push(connection);
            host.released.notify_one();
        }
    }

    /// Writes the head to the output buffer.
    pub fn send_head(&self, head: &RequestHead, framing: Framing, options: &UpstreamHttp) {
        if self.raw {
            // What a client wants to be connected to begins once it knows that it is.
            let framing = if head.is_connect() { Framing::None } else { Framing::UntilClose };
            let _ = self.writer.set(BodyWriter::new(framing, false));
            return;
        }
        self.connect.set(head.is_connect());
        let upgrade = !head.protocol().is_empty();
        let case = options.http1.header_case;
        self.head_request.set(head.is_head());
        self.connection.link.with_output(|output| encode::request(head, framing, upgrade, case, output));
        let _ = self.writer.set(BodyWriter::new(framing, self.trailers));
    }

    /// Ready with the response head. Informational responses other than 101 are skipped.
    pub fn poll_response(&self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), StreamError>> {
        let link = &self.connection.link;
        if self.raw {
            // Being connected is the answer.
            head.clear();
            head.status = 200;
            *self.reader.borrow_mut() = Some(BodyReader::new(Framing::UntilClose, self.limits));
            return Poll::Ready(Ok(()));
        }
        loop {
            if !link.input().is_empty() {
                match self.parse_head(head) {
                    Ok(Some(parsed)) => {
                        link.consume(parsed.length);
                        self.looked.set(LookedAt::default());
                        if head.status < 200 && head.status != 101 {
                            continue;
                        }
                        let switched = head.status == 101 || self.connect.get() && head.status < 300;
                        let framing = if switched { Framing::UntilClose } else { parsed.framing };
                        self.keep_alive.set(parsed.keep_alive && !switched);
                        *self.reader.borrow_mut() = Some(BodyReader::new(framing, self.limits));
                        return Poll::Ready(Ok(()));
                    }
                    Ok(None) if link.is_full() => link.grow(self.limits.max_head_bytes),
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Err(protocol_error(error))),
                }
            }
            match ready!(link.poll_fill(cx, false)) {
                Ok(0) if !link.input().is_empty() => {
                    return Poll::Ready(Err(StreamError::Protocol(
                        "connection closed within the response head".into(),
                    )));
                }
                Ok(0) => return Poll::Ready(Err(StreamError::Closed)),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return Poll::Ready(Err(StreamError::Closed));
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn parse_head(&self, head: &mut ResponseHead) -> Result<Option<ParsedResponse>, HeadError> {
        let input = self.connection.link.input();
        let mut looked = self.looked.get();
        let worth = looked.is_worth_another(&input, &self.limits);
        self.looked.set(looked);
        if worth { parse_response(&input, &self.limits, self.head_request.get(), head) } else { Ok(None) }
    }

    /// See [`crate::http::seam::BodySource::poll_data`].
    pub fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        match self.reader.borrow().as_ref() {
            Some(reader) => reader.poll_data(cx, &self.connection.link),
            None => Poll::Ready(Ok(false)),
        }
    }

    /// See [`crate::http::seam::BodySource::with_data`].
    pub fn with_data<R>(&self, look: impl FnOnce(Chunk<'_>) -> R) -> R {
        match self.reader.borrow().as_ref() {
            Some(reader) => reader.with_data(&self.connection.link, look),
            None => look(Chunk::Slice(&[])),
        }
    }

    /// See [`crate::http::seam::BodySource::consume`].
    pub fn consume(&self, count: usize) {
        if let Some(reader) = self.reader.borrow().as_ref() {
            reader.consume(&self.connection.link, count);
        }
    }

    /// See [`crate::http::seam::BodySource::take_trailers`].
    pub fn take_trailers(&self) -> Option<Headers> {
        self.reader.borrow().as_ref().and_then(BodyReader::take_trailers).filter(|_| self.trailers)
    }

    /// There is no response body, or it was read to its end.
    pub fn response_is_done(&self) -> bool {
        self.reader.borrow().as_ref().is_some_and(BodyReader::is_done)
    }

    /// See [`crate::http::seam::BodySink::poll_send`].
    pub fn poll_send(&self, cx: &mut Context<'_>, chunk: Chunk<'_>) -> Poll<Result<usize, StreamError>> {
        match self.writer.get() {
            Some(writer) => writer.poll_send(cx, &self.connection.link, chunk.bytes()),
            None => Poll::Ready(Err(StreamError::Protocol("body before head".into()))),
        }
    }

    /// See [`crate::http::seam::BodySink::poll_finish`].
    pub fn poll_finish(&self, cx: &mut Context<'_>, trailers: Option<&Headers>) -> Poll<Result<(), StreamError>> {
        match self.writer.get() {
            Some(writer) if self.tunnel || self.raw => {
                ready!(writer.poll_finish(cx, &self.connection.link, None))?;
                self.connection.link.poll_shutdown(cx).map_err(StreamError::from)
            }
            Some(writer) => writer.poll_finish(cx, &self.connection.link, trailers),
            None => Poll::Ready(Err(StreamError::Protocol("end before head".into()))),
        }
    }

    /// See [`crate::http::seam::BodySink::poll_flush`].
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.connection.link.poll_flush(cx).map_err(StreamError::from)
    }

    /// After 101, or 2xx for CONNECT: bytes go both ways.
    pub fn upgrade(&mut self) {
        self.tunnel = true;
        self.writer = OnceCell::from(BodyWriter::new(Framing::UntilClose, false));
    }

    /// Ends the request: the connection goes back to its pool if both messages ended as they should.
    pub fn finish(self, now: Instant) {
        let whole = self.writer.get().is_some_and(BodyWriter::is_finished) && self.response_is_done();
        let connection = self.connection;
        connection.in_use.set(!whole);
        let host = Rc::clone(connection.counted.host());
        let keep = !host.retired.get() && !connection.is_wanted_elsewhere();
        if whole && self.keep_alive.get() && keep {
            connection.account();
            connection.idle_since.set(now);
            host.idle.borrow_mut().push(connection);
            host.released.notify_one();
        }
    }
}

fn protocol_error(error: HeadError) -> StreamError {
    StreamError::Protocol(error.to_string())
}
