//! The life of a downstream HTTP/1 connection.
//!
//! Owns reading request heads one after the other, and when the connection ends. Never looks into a request.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use outrigger_config::http::HttpConnectionManager;

use super::downstream::Downstream;
use super::reply::LocalReply;
use super::{HttpConnection, overload, request, serve_h2};
use crate::explain::Cause;
use crate::http::h1::link::Link;
use crate::http::h1::parse::{Framing, HeadError, Limits, LookedAt, ParsedRequest, parse_request};
use crate::http::h1::server::Exchange;
use crate::http::message::{RequestHead, Version};
use crate::overload::Hook;
use crate::stream::{ResponseFlag, StreamInfo};
use crate::worker::deadlines::{Deadlines, Limit};
use crate::worker::socket::Io;

/// What an HTTP/2 client with prior knowledge sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves an HTTP/1 connection.
pub async fn serve(connection: Rc<HttpConnection>, io: Io) {
    let link = Link::new(Rc::clone(&connection.worker), io);
    serve_link(connection, link).await;
}

/// Serves a connection whose first bytes say whether it is HTTP/1 or HTTP/2.
pub async fn serve_sniffed(connection: Rc<HttpConnection>, io: Io) {
    let link = Link::new(Rc::clone(&connection.worker), io);
    let deadlines = connection.deadlines();
    let config = &connection.node.config;
    deadlines.begin(Limit::Idle, Instant::now(), config.idle_timeout);
    deadlines.begin(Limit::ConnectionDuration, connection.info.start, connection.max_duration());
    loop {
        let begins = begins_with_preface(&link.input());
        match begins {
            Some(false) => break,
            Some(true) => {
                let (mut io, rest) = link.into_parts();
                if let Io::Plain(socket) = &mut io {
                    socket.put_back(rest);
                    return Box::pin(serve_h2::serve(connection, io)).await;
                }
                return Box::pin(serve_h2::serve_ahead(connection, io, rest)).await;
            }
            None => {}
        }
        if !more_input(&connection, &link, &deadlines).await {
            return link.say_goodbye();
        }
    }
    serve_link(connection, link).await;
}

/// Whether it is HTTP/2; `None` while that is open.
fn begins_with_preface(input: &[u8]) -> Option<bool> {
    let common = input.len().min(PREFACE.len());
    match input[..common] == PREFACE[..common] {
        false => Some(false),
        true if common == PREFACE.len() => Some(true),
        true => None,
    }
}

/// Counts a connection while it speaks HTTP/1.
struct Active<'a>(&'a HttpConnection);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.stats.downstream_cx_http1_active.decrement();
    }
}

async fn serve_link(connection: Rc<HttpConnection>, link: Link) {
    connection.stats.downstream_cx_http1_total.increment();
    connection.stats.downstream_cx_http1_active.increment();
    let _active = Active(&connection);
    let config = &connection.node.config;
    let limits = Limits {
        max_head_bytes: config.max_request_headers_bytes as usize,
        max_headers: config.max_headers_count as usize,
        allow_chunked_length: config.http1.allow_chunked_length,
        allow_custom_methods: config.http1.allow_custom_methods,
        preserve_case: config.http1.preserve_case,
    };
    let deadlines = connection.deadlines();
    let accepted = connection.info.start;
    let max_duration = connection.max_idle_duration();
    deadlines.begin(Limit::ConnectionDuration, accepted, max_duration);
    let mut served = 0u32;
    let mut counted = (0, 0);
    loop {
        deadlines.begin(Limit::Idle, Instant::now(), config.idle_timeout);
        if link.input().is_empty() && !more_input(&connection, &link, &deadlines).await {
            return link.say_goodbye();
        }
        // A request in flight is not cut off by the connection's age: it ends the connection.
        deadlines.set(Limit::Idle, None);
        deadlines.set(Limit::ConnectionDuration, None);
        if connection.closes_on_dispatch(served == 0) {
            connection.stats.downstream_cx_destroy_local.increment();
            Box::pin(linger(&connection, &link)).await;
            return;
        }
        served += 1;
        // The request's state is boxed, so that an idle connection does not pay for its size.
        let reusable = Box::pin(serve_request(&connection, &link, &limits, &deadlines, served)).await;
        deadlines.clear_request();
        deadlines.begin(Limit::ConnectionDuration, accepted, max_duration);
        let (read, written) = link.totals();
        connection.stats.downstream_cx_rx_bytes_total.add(read - counted.0);
        connection.stats.downstream_cx_tx_bytes_total.add(written - counted.1);
        counted = (read, written);
        if !reusable {
            if connection.ends_at().is_some_and(|end| Instant::now() >= end) {
                connection.stats.downstream_cx_max_duration_reached.increment();
            }
            connection.stats.downstream_cx_destroy_local.increment();
            Box::pin(linger(&connection, &link)).await;
            return;
        }
    }
}

/// True when bytes of a request have come; false when the connection should end.
async fn more_input(connection: &HttpConnection, link: &Link, deadlines: &Deadlines) -> bool {
    poll_fn(|cx| {
        match link.poll_fill(cx, false) {
            Poll::Ready(Ok(count)) if count > 0 => return Poll::Ready(true),
            Poll::Ready(_) => {
                connection.stats.downstream_cx_destroy_remote.increment();
                return Poll::Ready(false);
            }
            Poll::Pending => {}
        }
        if let Poll::Ready(limit) = deadlines.poll(cx) {
            match limit {
                Limit::ConnectionDuration => connection.stats.downstream_cx_max_duration_reached.increment(),
                _ => connection.stats.downstream_cx_idle_timeout.increment(),
            }
            return Poll::Ready(false);
        }
        if connection.registered.poll_ends_idle(cx).is_ready() {
            connection.stats.downstream_cx_drain_close.increment();
            return Poll::Ready(false);
        }
        Poll::Pending
    })
    .await
}

/// Lets the client read the last response before the connection goes: closing with unread input would destroy it.
async fn linger(connection: &HttpConnection, link: &Link) {
    let delay = connection.node.config.delayed_close_timeout.unwrap_or_default().min(MAX_LINGER);
    // A client that does not read what it was sent must not hold the connection for ever.
    if !matches!(tokio::time::timeout(delay.max(MIN_FLUSH), link.shutdown()).await, Ok(Ok(()))) || delay.is_zero() {
        return;
    }
    let drained = poll_fn(|cx| {
        loop {
            match link.poll_fill(cx, false) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    let length = link.input().len();
                    link.consume(length);
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    if tokio::time::timeout(delay, drained).await.is_err() {
        connection.stats.downstream_cx_delayed_close_timeout.increment();
    }
}

/// What is written already gets this long to leave.
const MIN_FLUSH: Duration = Duration::from_secs(1);
/// A client that neither reads nor closes does not deserve more.
const MAX_LINGER: Duration = Duration::from_secs(30);

/// Reads a head, serves its request and returns whether the connection can serve another.
async fn serve_request(
    connection: &Rc<HttpConnection>,
    link: &Link,
    limits: &Limits,
    deadlines: &Deadlines,
    served: u32,
) -> bool {
    let config = &connection.node.config;
    let start = Instant::now();
    if let Some(reply) = overload::abort(connection) {
        Box::pin(refuse(connection, link, limits, deadlines, RequestHead::default(), reply)).await;
        return false;
    }
    deadlines.set(Limit::RequestHeaders, config.request_headers_timeout.map(|limit| start + limit));
    deadlines.begin(Limit::StreamIdle, start, config.stream_idle_timeout);
    deadlines.set(Limit::Request, config.request_timeout.map(|limit| start + limit));
    let mut head = connection.worker.heads.take();
    let read = read_head(connection, link, limits, deadlines, &mut head).await;
    deadlines.set(Limit::RequestHeaders, None);
    let (parsed, waited) = match read {
        Ok(read) => read,
        Err(Unread::Hostless) => {
            connection.stats.downstream_rq_http1_total.increment();
            Box::pin(refuse(connection, link, limits, deadlines, head, missing_host())).await;
            return false;
        }
        Err(Unread::Refused(reply)) => {
            connection.worker.heads.give(head);
            connection.stats.downstream_rq_http1_total.increment();
            Box::pin(refuse(connection, link, limits, deadlines, RequestHead::default(), reply)).await;
            return false;
        }
        Err(Unread::Gone) => {
            connection.worker.heads.give(head);
            return false;
        }
    };
    if connection.node.config.max_requests_per_connection.is_some_and(|limit| served >= limit) {
        connection.stats.downstream_cx_max_requests_reached.increment();
    }
    let last = config.max_requests_per_connection.is_some_and(|limit| served >= limit);
    let mut exchange = Exchange::new(link, &parsed, head.version, head.is_head(), &config.http1, *limits);
    exchange.set_connect(head.is_connect());
    exchange.set_close_after(connection.ends_at());
    if last || connection.registered.is_asked_to_end() || connection.is_overloaded(Hook::GoAway) {
        exchange.set_close();
    }
    connection.stats.downstream_rq_http1_total.increment();
    let info = Rc::new(StreamInfo::new(start, Some(head.version)));
    info.request_header_bytes.set(parsed.length as u64);
    if waited {
        info.head_duration.set(start.elapsed());
    }
    let downstream = Downstream::H1(exchange);
    request::serve(connection, head, parsed.framing, &downstream, info, deadlines).await;
    let Downstream::H1(exchange) = downstream else { return false };
    let drained = poll_fn(|cx| Poll::Ready(matches!(exchange.poll_drain(cx), Poll::Ready(true)))).await;
    // Whatever was finished was flushed as well.
    drained && exchange.is_reusable()
}

/// Why there is no head to serve.
enum Unread {
    /// The client is gone.
    Gone,
    /// What came is no request.
    Refused(LocalReply),
    /// A request that names no host.
    Hostless,
}

/// The next head and whether it had to be waited for.
async fn read_head(
    connection: &HttpConnection,
    link: &Link,
    limits: &Limits,
    deadlines: &Deadlines,
    head: &mut RequestHead,
) -> Result<(ParsedRequest, bool), Unread> {
    let mut waited = false;
    let mut looked = LookedAt::default();
    loop {
        // RFC 9112 section 2.2: empty lines before a request line are skipped.
        let blank = link.input().iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        link.consume(blank);
        if !link.input().is_empty() {
            let worth = looked.is_worth_another(&link.input(), limits);
            let parsed = if worth { parse_request(&link.input(), limits, head) } else { Ok(None) };
            match parsed {
                Ok(Some(parsed)) => {
                    link.consume(parsed.length);
                    if head.version == Version::Http10 && !connection.node.config.http1.accept_http_10 {
                        return Err(Unread::Refused(low_version()));
                    }
                    return Ok((parsed, waited));
                }
                Ok(None) if link.is_full() => link.grow(limits.max_head_bytes),
                Ok(None) => {}
                Err(HeadError::Hostless) => return Err(Unread::Hostless),
                Err(error) => {
                    let stats = &connection.stats;
                    stats.downstream_cx_protocol_error.increment();
                    stats.downstream_rq_rx_reset.increment();
                    stats.downstream_rq_response_before_rq_complete.increment();
                    return Err(Unread::Refused(reply_to(error)));
                }
            }
        }
        let filled = poll_fn(|cx| {
            if let Poll::Ready(limit) = deadlines.poll(cx) {
                return Poll::Ready(Err(Unread::Refused(timeout_reply(connection, limit))));
            }
            link.poll_fill(cx, false).map(|result| match result {
                Ok(count) if count > 0 => Ok(()),
                _ => Err(Unread::Gone),
            })
        });
        filled.await?;
        waited = true;
    }
}

/// The time limit that a reply tells of.
fn cause(config: &HttpConnectionManager, reply: &LocalReply) -> Option<Cause> {
    let (limit, field) = match &*reply.details {
        "request_header_timeout" => (config.request_headers_timeout, "HttpConnectionManager.request_headers_timeout"),
        "request_overall_timeout" => (config.request_timeout, "HttpConnectionManager.request_timeout"),
        "stream_idle_timeout" => (config.stream_idle_timeout, "HttpConnectionManager.stream_idle_timeout"),
        _ => return None,
    };
    Some(Cause::Time { limit, field })
}

fn timeout_reply(connection: &HttpConnection, limit: Limit) -> LocalReply {
    match limit {
        Limit::RequestHeaders => {
            connection.stats.downstream_rq_header_timeout.increment();
            LocalReply::new(408, "request_header_timeout").body(&b"request header timeout"[..])
        }
        Limit::Request => {
            connection.stats.downstream_rq_timeout.increment();
            LocalReply::new(408, "request_overall_timeout").body(&b"request timeout"[..])
        }
        _ => {
            connection.stats.downstream_rq_idle_timeout.increment();
            LocalReply::new(408, "stream_idle_timeout")
                .flag(ResponseFlag::StreamIdleTimeout)
                .body(&b"stream timeout"[..])
        }
    }
}

fn low_version() -> LocalReply {
    LocalReply::new(426, "low_version").flag(ResponseFlag::DownstreamProtocolError).body(&b"Upgrade Required"[..])
}

fn missing_host() -> LocalReply {
    LocalReply::new(400, "missing_host_header")
}

fn reply_to(error: HeadError) -> LocalReply {
    let (status, details, body): (u16, &'static str, &'static [u8]) = match error {
        HeadError::TooLarge => (431, "http1.headers_too_large", b"Request Header Fields Too Large"),
        HeadError::TooManyHeaders => (431, "http1.too_many_headers", b"Request Header Fields Too Large"),
        HeadError::Host | HeadError::Hostless => return missing_host(),
        HeadError::Version => return low_version(),
        HeadError::Conflict => (400, "http1.content_length_and_chunked_not_allowed", b"Bad Request"),
        HeadError::TransferEncoding => (501, "http1.invalid_transfer_encoding", b"Not Implemented"),
        HeadError::ContentLength => (400, "http1.invalid_content_length", b"Bad Request"),
        HeadError::Method | HeadError::Syntax(_) => (400, "http1.codec_error", b"Bad Request"),
    };
    LocalReply::new(status, details).flag(ResponseFlag::DownstreamProtocolError).body(body)
}

/// Answers what cannot be served, and logs it with what is known of it.
async fn refuse(
    connection: &Rc<HttpConnection>,
    link: &Link,
    limits: &Limits,
    deadlines: &Deadlines,
    head: RequestHead,
    reply: LocalReply,
) {
    let parsed = ParsedRequest { length: 0, framing: Framing::None, keep_alive: false, expects_continue: false };
    let options = &connection.node.config.http1;
    let exchange = Exchange::new(link, &parsed, Version::Http11, false, options, *limits);
    exchange.set_close();
    let info = Rc::new(StreamInfo::new(Instant::now(), Some(Version::Http11)));
    info.cause.set(cause(&connection.node.config, &reply));
    request::answer(connection, head, &Downstream::H1(exchange), info, deadlines, reply).await;
}
