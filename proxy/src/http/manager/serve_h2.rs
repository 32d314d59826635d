//! The life of a downstream HTTP/2 connection.
//!
//! Owns accepting streams, one task each, and when the connection ends: by idleness, age, drain or the client. Never
//! looks into a request.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{self, SendResponse};
use outrigger_config::http::HttpConnectionManager;
use tokio::io::{AsyncRead, AsyncWrite};

use super::downstream::Downstream;
use super::reply::LocalReply;
use super::resets::Resets;
use super::{HttpConnection, overload, request};
use crate::http::h1::parse::{Framing, decimal};
use crate::http::h2::cork::{self, Cork, Corked};
use crate::http::h2::guard::{Farewell, Guard};
use crate::http::h2::server::{Ending, Exchange};
use crate::http::h2::{convert, keepalive};
use crate::http::headers::HeaderId;
use crate::http::message::RequestHead;
use crate::overload::Hook;
use crate::stream::StreamInfo;
use crate::worker::deadlines::Limit;
use crate::worker::socket::Io;

/// Serves an HTTP/2 connection.
pub async fn serve(connection: Rc<HttpConnection>, io: Io) {
    serve_stream(connection, io).await;
}

/// Serves an HTTP/2 connection inside TLS of which `ahead` was already read.
pub async fn serve_ahead(connection: Rc<HttpConnection>, io: Io, ahead: Vec<u8>) {
    let (reader, writer) = tokio::io::split(io);
    let reader = tokio::io::AsyncReadExt::chain(std::io::Cursor::new(ahead), reader);
    serve_stream(connection, tokio::io::join(reader, writer)).await;
}

/// Streams of a connection that are being served.
#[derive(Default)]
struct Streams {
    active: Cell<u32>,
    resets: Cell<Resets>,
    /// No stream is left, or there were too many resets.
    notify: tokio::sync::Notify,
}

/// Streams that were opened and reset before we looked. More end the connection; see [`Resets`] for those that were
/// begun.
const RESETS_AT_ONCE: usize = 250;

async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(connection: Rc<HttpConnection>, io: S) {
    let stats = &connection.stats;
    if connection.is_overloaded(Hook::CreateCodec) {
        stats.downstream_rq_overload_close.increment();
        return Box::pin(overload::close(&connection, io)).await;
    }
    stats.downstream_cx_http2_total.increment();
    stats.downstream_cx_http2_active.increment();
    let config = &connection.node.config;
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(config.http2.initial_stream_window_bytes)
        .initial_connection_window_size(config.http2.initial_connection_window_bytes)
        .max_concurrent_streams(config.http2.max_concurrent_streams)
        .max_header_list_size(list_limit(config))
        .max_concurrent_reset_streams(64)
        .max_pending_accept_reset_streams(RESETS_AT_ONCE);
    if config.http2.allow_connect {
        builder.enable_connect_protocol();
    }
    let (cork, corked) = cork::cork(io, Guard::of_server(&config.http2));
    let handshake = tokio::time::timeout(
        config.idle_timeout.unwrap_or(Duration::from_secs(3600)),
        builder.handshake::<_, Bytes>(corked),
    );
    match handshake.await {
        Ok(Ok(driver)) => drive(&connection, driver, &cork).await,
        Ok(Err(error)) => count_error(&connection, &error, &cork),
        Err(_) => stats.downstream_cx_idle_timeout.increment(),
    }
    if connection.broken.get().is_some() {
        Box::pin(linger(&connection, &cork)).await;
    }
    count_bytes(&connection, &cork);
    stats.downstream_cx_http2_active.decrement();
}

async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &Rc<HttpConnection>,
    mut driver: server::Connection<Corked<S>, Bytes>,
    cork: &Cork<S>,
) {
    let config = &connection.node.config;
    let codec = connection.worker.http2_stats();
    let streams = Rc::new(Streams::default());
    let deadlines = connection.deadlines();
    deadlines.begin(Limit::ConnectionDuration, connection.info.start, connection.max_duration());
    let mut closing = false;
    let mut flooded = false;
    let mut served = 0u32;
    // Streams that clients open are no reason to ask them anything.
    let keepalive = config.http2.keepalive.filter(|keepalive| keepalive.interval.is_some());
    let pings = keepalive.and_then(|keepalive| Some((keepalive, driver.ping_pong()?)));
    let mut silent = std::pin::pin!(async {
        match pings {
            Some((keepalive, pings)) => keepalive::watch(pings, keepalive, None).await,
            None => std::future::pending().await,
        }
    });
    loop {
        let idle = streams.active.get() == 0;
        deadlines.begin(Limit::Idle, Instant::now(), config.idle_timeout.filter(|_| idle && !closing));
        let mut changed = std::pin::pin!(streams.notify.notified());
        let event = poll_fn(|cx| {
            if let Poll::Ready(accepted) = driver.poll_accept(cx) {
                // What was written so far leaves with what follows, unless nothing does.
                if !matches!(accepted, Some(Ok(_))) {
                    let _ = cork.poll_send(cx);
                }
                return Poll::Ready(Event::Accepted(accepted.map(|arrived| arrived.map(Box::new))));
            }
            let sent = cork.poll_send(cx);
            count_bytes(connection, cork);
            if let Poll::Ready(Err(_)) = sent {
                return Poll::Ready(Event::Close);
            }
            if changed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::StreamEnded);
            }
            if silent.as_mut().poll(cx).is_ready() {
                codec.keepalive_timeout.increment();
                return Poll::Ready(Event::Close);
            }
            if connection.registered.poll_expired(cx).is_ready() {
                return Poll::Ready(Event::Close);
            }
            if !closing && connection.registered.poll_asked_to_end(cx).is_ready() {
                return Poll::Ready(Event::Drain);
            }
            deadlines.poll(cx).map(Event::Limit)
        });
        match event.await {
            Event::Accepted(Some(Ok(arrived))) => {
                let (head, respond) = *arrived;
                served = served.saturating_add(1);
                if config.max_requests_per_connection.is_some_and(|limit| served >= limit) && !closing {
                    connection.stats.downstream_cx_max_requests_reached.increment();
                    closing = true;
                    codec.goaway_sent.increment();
                    driver.graceful_shutdown();
                }
                if flooded {
                    continue;
                }
                if connection.closes_on_dispatch(false) {
                    // Whatever comes after this is not served, and the connection ends when it has been said.
                    flooded = true;
                    connection.stats.downstream_cx_destroy_local.increment();
                    codec.goaway_sent.increment();
                    driver.abrupt_shutdown(h2::Reason::NO_ERROR);
                    continue;
                }
                if !closing && connection.is_overloaded(Hook::GoAway) {
                    closing = true;
                    codec.goaway_sent.increment();
                    driver.graceful_shutdown();
                }
                start_stream(connection, &streams, head, respond);
            }
            Event::Accepted(Some(Err(error))) => {
                if !flooded {
                    count_error(connection, &error, cork);
                }
                return;
            }
            Event::Accepted(None) | Event::Close => return,
            Event::StreamEnded if !flooded && streams.resets.get().are_a_flood() => {
                flooded = true;
                closing = true;
                count_resets(connection);
                // It gets as long to take the news as any other client that is left.
                let end = Instant::now() + config.delayed_close_timeout.unwrap_or_default();
                deadlines.set(Limit::ConnectionDuration, Some(end));
                driver.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
            }
            Event::StreamEnded => {}
            Event::Drain => {
                connection.stats.downstream_cx_drain_close.increment();
                closing = true;
                codec.goaway_sent.increment();
                driver.graceful_shutdown();
            }
            // The time to go has passed as well: a peer that does not follow is left.
            Event::Limit(_) if closing => return,
            Event::Limit(limit) => {
                match limit {
                    Limit::ConnectionDuration => connection.stats.downstream_cx_max_duration_reached.increment(),
                    _ => connection.stats.downstream_cx_idle_timeout.increment(),
                }
                deadlines.set(Limit::ConnectionDuration, Some(Instant::now() + connection.drain_timeout()));
                closing = true;
                codec.goaway_sent.increment();
                driver.graceful_shutdown();
            }
        }
    }
}

fn count_bytes<S: AsyncWrite + Unpin>(connection: &HttpConnection, cork: &Cork<S>) {
    let (received, written) = cork.take_totals();
    connection.stats.downstream_cx_rx_bytes_total.add(received);
    connection.stats.downstream_cx_tx_bytes_total.add(written);
    let refused = u64::from(cork.take_refused());
    if refused > 0 {
        // The library refuses them by itself.
        let codec = connection.worker.http2_stats();
        codec.stream_refused_errors.add(refused);
        codec.tx_reset.add(refused);
    }
}

/// A new stream.
type Arrived = (http::Request<RecvStream>, SendResponse<Bytes>);

enum Event {
    Accepted(Option<Result<Box<Arrived>, h2::Error>>),
    StreamEnded,
    Drain,
    Limit(Limit),
    Close,
}

/// Counts why the library ended the connection, and tells its requests.
fn count_error<S: AsyncWrite + Unpin>(connection: &HttpConnection, error: &h2::Error, cork: &Cork<S>) {
    let codec = connection.worker.http2_stats();
    if let Some(flood) = cork.flood() {
        codec.count_flood(flood);
        connection.broken.set(Some(flood.details()));
        return;
    }
    if error.is_remote() || !(error.is_library() || error.is_reset()) {
        return;
    }
    match cork.farewell() {
        Some(Farewell::Resets) => return count_resets(connection),
        Some(Farewell::LargeHead) => {
            codec.header_list_size_too_large.increment();
            connection.broken.set(Some(LIST_TOO_LARGE));
        }
        Some(Farewell::Other) | None => {
            codec.rx_messaging_error.increment();
            connection.broken.set(Some("codec_error:Protocol_violation"));
        }
    }
    connection.stats.downstream_cx_protocol_error.increment();
}

const LIST_TOO_LARGE: &str = "http2.header_list_size_too_large";

/// Counts that the client has reset too many streams.
fn count_resets(connection: &HttpConnection) {
    connection.stats.downstream_cx_protocol_error.increment();
    connection.stats.downstream_rq_too_many_premature_resets.increment();
    connection.worker.http2_stats().goaway_sent.increment();
    connection.broken.set(Some("too_many_premature_resets"));
}

/// Lets the client read why the connection ends: closing with unread input would destroy it.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(connection: &HttpConnection, cork: &Cork<S>) {
    if cork.flood().is_some() && cork.say_goaway() {
        connection.worker.http2_stats().goaway_sent.increment();
    }
    connection.stats.downstream_cx_destroy_local.increment();
    let delay = connection.node.config.delayed_close_timeout.unwrap_or_default().min(overload::MAX_DELAY);
    let ended = tokio::time::timeout(delay, poll_fn(|cx| cork.poll_close(cx))).await;
    if ended.is_err() {
        connection.stats.downstream_cx_delayed_close_timeout.increment();
    }
}

fn start_stream(
    connection: &Rc<HttpConnection>,
    streams: &Rc<Streams>,
    arrived: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    streams.active.set(streams.active.get() + 1);
    connection.stats.downstream_rq_http2_total.increment();
    let ended = Ended(Rc::clone(streams));
    let connection = Rc::clone(connection);
    // Boxed: the runtime moves a task several times, and this one is large.
    tokio::task::spawn_local(Box::pin(async move {
        let start = Instant::now();
        let (parts, body) = arrived.into_parts();
        let mut head = connection.worker.heads.take();
        convert::request_of(&parts, &mut head);
        drop(parts);
        let framing = match head.headers.get(HeaderId::ContentLength).and_then(decimal) {
            _ if h2::RecvStream::is_end_stream(&body) => Framing::None,
            Some(length) => Framing::Length(length),
            None => Framing::Chunked,
        };
        let expects = head.headers.get(HeaderId::Expect);
        let wants_continue = expects.is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
        let config = &connection.node.config;
        let deadlines = connection.stream_deadlines();
        deadlines.begin(Limit::StreamIdle, start, config.stream_idle_timeout);
        deadlines.set(Limit::Request, config.request_timeout.map(|limit| start + limit));
        let info = Rc::new(StreamInfo::new(start, Some(head.version)));
        info.request_header_bytes.set(head.headers.byte_size() as u64);
        let exchange = Exchange::new(body, respond, wants_continue);
        let refusal = refusal(&connection, &head);
        let downstream = Downstream::H2(exchange);
        if let Some(refusal) = refusal {
            request::answer(&connection, head, &downstream, info, &deadlines, refusal).await;
        } else {
            request::serve(&connection, head, framing, &downstream, info, &deadlines).await;
        }
        if let Downstream::H2(exchange) = &downstream {
            ended.count(&connection, exchange, start);
        }
        connection.worker.deadlines.give(deadlines);
        drop(ended);
    }));
}

/// What the library is to take of a header list: it counts more for each field than the limit means, and what is not far
/// beyond that gets its answer here.
fn list_limit(config: &HttpConnectionManager) -> u32 {
    config
        .max_request_headers_bytes
        .saturating_mul(2)
        .saturating_add(FIELD_BYTES * config.max_headers_count.min(MOST_FIELDS))
}

/// RFC 9113 section 6.5.2.
const FIELD_BYTES: u32 = 32;
/// A limit on the number of headers above this says that there is none.
const MOST_FIELDS: u32 = 1000;

/// The answer to a head that is too large.
fn refusal(connection: &HttpConnection, head: &RequestHead) -> Option<LocalReply> {
    let config = &connection.node.config;
    let codec = connection.worker.http2_stats();
    let (counter, details) = if head.headers.len() > config.max_headers_count as usize {
        (&codec.header_overflow, "http2.too_many_headers")
    } else if head.byte_size() > config.max_request_headers_bytes as usize {
        (&codec.header_list_size_too_large, LIST_TOO_LARGE)
    } else {
        return None;
    };
    counter.increment();
    Some(LocalReply::new(431, details).body(&b"Request Header Fields Too Large"[..]))
}

/// Tells the connection that a stream has ended, however that came.
struct Ended(Rc<Streams>);

impl Ended {
    /// Counts how the stream ends.
    fn count(&self, connection: &HttpConnection, exchange: &Exchange, start: Instant) {
        let streams = &self.0;
        let ending = exchange.ending();
        let resets = streams.resets.get();
        if ending == Ending::Whole {
            streams.resets.set(resets.with(ending, true, Duration::ZERO));
            return;
        }
        let resets = resets.with(ending, exchange.has_responded(), start.elapsed());
        streams.resets.set(resets);
        if resets.are_a_flood() {
            streams.notify.notify_one();
        }
        connection.stats.downstream_rq_rx_reset.increment();
        if connection.broken.get().is_some() {
            return;
        }
        let codec = connection.worker.http2_stats();
        match ending {
            Ending::Whole | Ending::ConnectionLost => {}
            Ending::ResetByClient => codec.rx_reset.increment(),
            Ending::Reset => codec.tx_reset.increment(),
            Ending::ResponseBroken => {
                codec.tx_reset.increment();
                connection.stats.downstream_rq_tx_reset.increment();
            }
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        if self.0.active.get() == 0 {
            self.0.notify.notify_one();
        }
    }
}
