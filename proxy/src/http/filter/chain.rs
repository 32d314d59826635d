//! Asking the filters of a chain, one after the other.
//!
//! Owns the order, the waiting, and the collecting of bodies. Never knows what a filter does.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::body::{BodyChain, BodyInput, Given};
use super::exchange::{Exchange, RouteChoice};
use super::{Absorb, HttpFilter, Resume, Verdict, Wait};
use crate::http::h1::encode::decimal;
use crate::http::h1::parse::Framing;
use crate::http::headers::{HeaderId, Headers};
use crate::http::manager::reply::LocalReply;
use crate::http::manager::request::Request;
use crate::http::router::ReplayBody;
use crate::http::router::answering::{Answering, WholeBody};
use crate::http::router::attempt::{self, Answered};
use crate::http::router::failure::{self, Failure};
use crate::http::seam::{BodySource, StreamError};

/// How the filters let a request, or a response, go.
pub enum Turn {
    /// On.
    Continue,
    /// On with this filter, with the configuration and the route as they are now.
    LookAgain(usize),
    /// This is the answer.
    Reply(Box<LocalReply>),
    /// Another request begins in its place.
    Restart,
    /// Something else ended it: the client, a time limit, a drain.
    Interrupted(Failure),
}

/// Where a response comes from.
pub enum Origin<'a> {
    /// An upstream; what is left of the request is sent while somebody looks at the response.
    Upstream(&'a mut Answered, &'a ReplayBody<'a>),
    /// It is made here.
    Local(&'a Given<'a>),
}

/// Where the body of a request comes from.
#[derive(Clone, Copy)]
pub enum BodyFrom<'a> {
    /// The client.
    Downstream,
    /// What is kept of it for tries.
    Kept(&'a ReplayBody<'a>),
}

/// The message that filters look at.
enum Side<'a> {
    Request(BodyFrom<'a>),
    Response(Origin<'a>),
}

impl Side<'_> {
    fn is_local(&self) -> bool {
        matches!(self, Side::Response(Origin::Local(_)))
    }

    /// Sees to what must go on while somebody waits, and says what ends the wait.
    fn poll_beside(&mut self, request: &Request<'_>, cx: &mut Context<'_>) -> Poll<Failure> {
        if let Side::Response(Origin::Upstream(answered, body)) = self {
            answered.send_on(request, body, cx);
            if let Some(failure) = answered.take_failure() {
                return Poll::Ready(failure);
            }
        }
        attempt::interrupted(request, cx)
    }
}

/// Asks the filters from this place on about the request.
pub async fn requests(request: &mut Request<'_>, route: &mut RouteChoice<'_>, from: usize, body: BodyFrom<'_>) -> Turn {
    let count = request.filters.slots.len();
    for slot in from..count {
        let verdict = {
            let mut exchange = Exchange::new(request, route, slot, false);
            if !exchange.runs() {
                continue;
            }
            exchange.ask(|filter, exchange| filter.request(exchange))
        };
        // Boxed: most filters are content at once, and requests should not pay for the size of waiting.
        match verdict {
            Verdict::Continue => {}
            Verdict::Reply(reply) => return Turn::Reply(reply),
            verdict => match Box::pin(settle(request, route, slot, &mut Side::Request(body), verdict)).await {
                Turn::Continue => {}
                turn => return turn,
            },
        }
    }
    Turn::Continue
}

/// Asks all filters about the response, in the opposite order.
pub async fn responses(request: &mut Request<'_>, route: &mut RouteChoice<'_>, origin: Origin<'_>) -> Turn {
    let count = request.filters.slots.len();
    let mut side = Side::Response(origin);
    for slot in (0..count).rev() {
        let verdict = {
            let mut exchange = Exchange::new(request, route, slot, side.is_local());
            if !exchange.runs() {
                continue;
            }
            exchange.ask(|filter, exchange| filter.response(exchange))
        };
        // Boxed: most filters are content at once, and requests should not pay for the size of waiting.
        match verdict {
            Verdict::Continue => {}
            Verdict::Reply(reply) => return Turn::Reply(reply),
            verdict => match Box::pin(settle(request, route, slot, &mut side, verdict)).await {
                Turn::Continue => {}
                turn => return turn,
            },
        }
    }
    Turn::Continue
}

/// Tells all filters that the request is over.
pub fn ends(request: &mut Request<'_>, route: &mut RouteChoice<'_>) {
    let count = request.filters.slots.len();
    for slot in (0..count).rev() {
        let mut exchange = Exchange::new(request, route, slot, false);
        exchange.ask(|filter, exchange| {
            filter.end(exchange);
            Verdict::Continue
        });
    }
    if request.filters.report {
        reports(request, route);
    }
}

fn reports(request: &mut Request<'_>, route: &mut RouteChoice<'_>) {
    for slot in 0..request.filters.slots.len() {
        let mut exchange = Exchange::new(request, route, slot, false);
        if exchange.runs() {
            exchange.ask(|filter, exchange| {
                filter.report(exchange);
                Verdict::Continue
            });
        }
    }
}

/// Reads a body to its end; `None` if something ended the request before.
pub async fn whole(request: &Request<'_>, body: &impl BodyInput) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    poll_fn(|cx| {
        loop {
            match body.poll_piece(cx) {
                Poll::Ready(Ok(Some(piece))) => all.extend_from_slice(&piece),
                Poll::Ready(Ok(None)) => return Poll::Ready(Some(())),
                Poll::Ready(Err(_)) => return Poll::Ready(None),
                Poll::Pending => return attempt::interrupted(request, cx).map(|_| None),
            }
        }
    })
    .await?;
    Some(all)
}

/// Does what a filter wants until it is content.
async fn settle(
    request: &mut Request<'_>,
    route: &mut RouteChoice<'_>,
    slot: usize,
    side: &mut Side<'_>,
    mut verdict: Verdict,
) -> Turn {
    let local = side.is_local();
    loop {
        verdict = match verdict {
            Verdict::Continue => return Turn::Continue,
            Verdict::LookAgain => return Turn::LookAgain(slot + 1),
            Verdict::Restart => return Turn::Restart,
            Verdict::Reply(reply) => return Turn::Reply(reply),
            Verdict::Wait(wait) => match wait_for(request, side, wait).await {
                Ok(resume) => resume(&mut Exchange::new(request, route, slot, local)),
                Err(failure) => return Turn::Interrupted(failure),
            },
            Verdict::Collect { limit_bytes } => match collect(request, side, Until::End { limit_bytes }).await {
                Ok(body) => show(request, route, slot, side, body),
                Err(turn) => return turn,
            },
            Verdict::CollectResponse { limit_bytes } => match side {
                Side::Response(Origin::Upstream(answered, body)) => {
                    match (Answering { answered, body }).collect(request, limit_bytes).await {
                        Ok(Some(body)) => show_response(request, route, slot, body),
                        Ok(None) => return Turn::Reply(Box::new(response_too_large(request))),
                        Err(failure) => return Turn::Interrupted(failure),
                    }
                }
                _ => Verdict::Continue,
            },
            Verdict::Peek { bytes } => match collect(request, side, Until::Bytes(bytes)).await {
                Ok(body) => show(request, route, slot, side, body),
                Err(turn) => return turn,
            },
            Verdict::Absorb(absorb) => match absorbed(request, side, absorb).await {
                Ok(resume) => resume(&mut Exchange::new(request, route, slot, local)),
                Err(failure) => return Turn::Interrupted(failure),
            },
        };
    }
}

/// Asks a filter about what was read of the body, and gives it back.
fn show(
    request: &mut Request<'_>,
    route: &mut RouteChoice<'_>,
    slot: usize,
    side: &Side<'_>,
    body: Collected,
) -> Verdict {
    let passed = request.request_body.as_ref().map_or(0, |chain| chain.steps());
    let mut exchange = Exchange::new(request, route, slot, side.is_local());
    match side {
        Side::Request(_) => {
            let verdict = exchange.ask(|filter: &dyn HttpFilter, exchange| filter.request_body(exchange, &body.bytes));
            put_back(request, body, passed);
            verdict
        }
        Side::Response(_) => {
            let verdict = exchange.ask(|filter: &dyn HttpFilter, exchange| filter.response_part(exchange, &body.bytes));
            put_back_response(request, body);
            verdict
        }
    }
}

/// Shows a filter the whole body of a response, and lets go on what the filter makes of it.
fn show_response(
    request: &mut Request<'_>,
    route: &mut RouteChoice<'_>,
    slot: usize,
    (mut body, mut trailers): WholeBody,
) -> Verdict {
    let mut exchange = Exchange::new(request, route, slot, false);
    let verdict = exchange.ask(|filter, exchange| filter.response_body(exchange, &mut body, &mut trailers));
    request.response_body.get_or_insert_default().replace(body, trailers);
    verdict
}

/// How much of a body is read.
#[derive(Clone, Copy)]
enum Until {
    /// All of it; an error if that is more than this many bytes.
    End { limit_bytes: usize },
    /// Until this many bytes are there.
    Bytes(usize),
}

/// What was read of a body.
#[derive(Default)]
struct Collected {
    bytes: Vec<u8>,
    /// There is no more.
    ended: bool,
    trailers: Option<Headers>,
}

async fn wait_for(request: &Request<'_>, side: &mut Side<'_>, mut wait: Wait) -> Result<Resume, Failure> {
    poll_fn(|cx| match wait.as_mut().poll(cx) {
        Poll::Ready(resume) => Poll::Ready(Ok(resume)),
        Poll::Pending => side.poll_beside(request, cx).map(Err),
    })
    .await
}

/// Lets a filter take the body away while it waits.
async fn absorbed(request: &Request<'_>, side: &mut Side<'_>, mut absorb: Box<dyn Absorb>) -> Result<Resume, Failure> {
    let plain = BodyChain::default();
    if matches!(side, Side::Request(_)) && request.framing != Framing::None {
        request.downstream.send_continue();
    }
    poll_fn(|cx| {
        let absorbed = match side {
            Side::Request(from) => {
                let chain = request.request_body.as_deref().unwrap_or(&plain);
                match from {
                    BodyFrom::Downstream => absorb.poll(cx, &chain.source(request.downstream)),
                    BodyFrom::Kept(kept) => absorb.poll(cx, &chain.source(*kept)),
                }
            }
            Side::Response(Origin::Upstream(answered, _)) => {
                let chain = request.response_body.as_ref().unwrap_or(&plain);
                absorb.poll(cx, &chain.source(answered.stream()))
            }
            Side::Response(Origin::Local(given)) => {
                let chain = request.response_body.as_ref().unwrap_or(&plain);
                absorb.poll(cx, &chain.source(*given))
            }
        };
        match absorbed {
            Poll::Ready(resume) => Poll::Ready(Ok(resume)),
            Poll::Pending => {
                // A `100 Continue` may be waiting to leave.
                let _ = crate::http::seam::BodySink::poll_flush(request.downstream, cx);
                side.poll_beside(request, cx).map(Err)
            }
        }
    })
    .await
}

/// Reads the body.
async fn collect(request: &mut Request<'_>, side: &mut Side<'_>, until: Until) -> Result<Collected, Turn> {
    let mut body = Collected::default();
    let plain = BodyChain::default();
    let is_request = matches!(side, Side::Request(_));
    if if is_request { request.framing == Framing::None } else { request.response_ended } {
        body.ended = true;
        return Ok(body);
    }
    if is_request {
        request.downstream.send_continue();
    }
    let request = &*request;
    let done = poll_fn(|cx| {
        let read = match side {
            Side::Request(BodyFrom::Downstream) => match &request.request_body {
                Some(chain) => read(request, true, &chain.source(request.downstream), &mut body, until, cx),
                None => read(request, true, request.downstream, &mut body, until, cx),
            },
            Side::Request(BodyFrom::Kept(kept)) => {
                let chain = request.request_body.as_deref().unwrap_or(&plain);
                read(request, true, &chain.source(*kept), &mut body, until, cx)
            }
            Side::Response(Origin::Upstream(answered, _)) => {
                let chain = request.response_body.as_ref().unwrap_or(&plain);
                read(request, false, &chain.source(answered.stream()), &mut body, until, cx)
            }
            Side::Response(Origin::Local(given)) => {
                let chain = request.response_body.as_ref().unwrap_or(&plain);
                read(request, false, &chain.source(*given), &mut body, until, cx)
            }
        };
        if read.is_pending() {
            // A `100 Continue` may be waiting to leave.
            let _ = crate::http::seam::BodySink::poll_flush(request.downstream, cx);
            if request.is_weighed() {
                request.weigh(body.bytes.len(), cx);
            }
            return side.poll_beside(request, cx).map(|failure| Err(Turn::Interrupted(failure)));
        }
        read
    });
    done.await.map(|()| body)
}

fn read(
    request: &Request<'_>,
    is_request: bool,
    source: &impl BodySource,
    body: &mut Collected,
    until: Until,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Turn>> {
    loop {
        match source.poll_data(cx) {
            Poll::Ready(Ok(true)) => {
                let count = source.with_data(|chunk| {
                    body.bytes.extend_from_slice(chunk.bytes());
                    chunk.bytes().len()
                });
                source.consume(count);
                if is_request {
                    request.info.bytes_received.set(request.info.bytes_received.get() + count as u64);
                }
                attempt::touch(request, std::time::Instant::now());
                match until {
                    Until::End { limit_bytes } if body.bytes.len() > limit_bytes => {
                        let reply = if is_request { too_large(request) } else { response_too_large(request) };
                        return Poll::Ready(Err(Turn::Reply(Box::new(reply))));
                    }
                    Until::Bytes(enough) if body.bytes.len() >= enough => return Poll::Ready(Ok(())),
                    Until::End { .. } | Until::Bytes(_) => {}
                }
            }
            Poll::Ready(Ok(false)) => {
                body.ended = true;
                body.trailers = source.take_trailers();
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Err(StreamError::Answered(reply))) => return Poll::Ready(Err(Turn::Reply(reply))),
            Poll::Ready(Err(error)) => {
                let failure = match is_request {
                    true => failure::downstream_failure(error),
                    false => failure::upstream_failure(error),
                };
                return Poll::Ready(Err(Turn::Interrupted(failure)));
            }
            Poll::Pending => return Poll::Pending,
        }
    }
}

fn too_large(request: &Request<'_>) -> LocalReply {
    request.connection.stats.downstream_rq_too_large.increment();
    LocalReply::new(413, "request_payload_too_large").body(&b"Payload Too Large"[..])
}

fn response_too_large(request: &Request<'_>) -> LocalReply {
    request.connection.stats.rs_too_large.increment();
    LocalReply::new(500, "response_payload_too_large").body(&b"Internal Server Error"[..])
}

/// The body that was read is what is forwarded, with its length known if it is whole. It has passed so many of its steps.
fn put_back(request: &mut Request<'_>, body: Collected, passed: usize) {
    if request.framing == Framing::None {
        return;
    }
    let Collected { bytes, ended, trailers } = body;
    // Its bytes were counted when they came.
    request.info.bytes_received.set(request.info.bytes_received.get().saturating_sub(bytes.len() as u64));
    let chain = request.request_body.get_or_insert_with(Rc::default);
    if !ended {
        chain.put_back(bytes);
        return chain.catch_up(passed);
    }
    let has_trailers = trailers.is_some();
    chain.replace(bytes, trailers);
    chain.catch_up(passed);
    if !has_trailers {
        let length = chain.at_hand() as u64;
        request.framing = Framing::Length(length);
        let headers = &mut request.head.headers;
        headers.set(HeaderId::ContentLength, decimal(length, &mut [0; 20]));
        headers.remove(HeaderId::TransferEncoding);
    }
}

/// The same for a response.
fn put_back_response(request: &mut Request<'_>, body: Collected) {
    if request.response_ended {
        return;
    }
    let Collected { bytes, ended, trailers } = body;
    let chain = request.response_body.get_or_insert_default();
    if !ended {
        return chain.put_back(bytes);
    }
    if trailers.is_none() {
        let headers = &mut request.response.headers;
        headers.set(HeaderId::ContentLength, decimal(bytes.len() as u64, &mut [0; 20]));
        headers.remove(HeaderId::TransferEncoding);
    }
    chain.replace(bytes, trailers);
}
