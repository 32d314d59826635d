//! Asking the filters of a chain, one after the other.
//!
//! Owns the order, the waiting, and the collecting of bodies. Never knows what a filter does.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::exchange::{Exchange, RouteChoice};
use super::{HttpFilter, Verdict, Wait};
use crate::http::h1::encode::decimal;
use crate::http::h1::parse::Framing;
use crate::http::headers::{HeaderId, Headers};
use crate::http::manager::reply::LocalReply;
use crate::http::manager::request::Request;
use crate::http::router::answering::{Answering, WholeBody};
use crate::http::router::attempt;
use crate::http::router::failure::{self, Failure};
use crate::http::seam::BodySource;

/// How the filters let a request, or a response, go.
pub enum Turn {
    /// On.
    Continue,
    /// On with this filter, with the configuration and the route as they are now.
    LookAgain(usize),
    /// This is the answer.
    Reply(Box<LocalReply>),
    /// Something else ended it: the client, a time limit, a drain.
    Interrupted(Failure),
}

/// Asks the filters from this place on about the request.
pub async fn requests(request: &mut Request<'_>, route: &mut RouteChoice<'_>, from: usize) -> Turn {
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
            verdict => match Box::pin(settle(request, route, slot, Side::Request, verdict)).await {
                Turn::Continue => {}
                turn => return turn,
            },
        }
    }
    Turn::Continue
}

/// Asks all filters about the response, in the opposite order. It is an answer of our own unless it comes from an
/// upstream.
pub async fn responses(
    request: &mut Request<'_>,
    route: &mut RouteChoice<'_>,
    mut upstream: Option<Answering<'_, '_>>,
) -> Turn {
    let local = upstream.is_none();
    let count = request.filters.slots.len();
    for slot in (0..count).rev() {
        let verdict = {
            let mut exchange = Exchange::new(request, route, slot, local);
            if !exchange.runs() {
                continue;
            }
            exchange.ask(|filter, exchange| filter.response(exchange))
        };
        // Boxed: most filters are content at once, and requests should not pay for the size of waiting.
        match verdict {
            Verdict::Continue => {}
            Verdict::Reply(reply) => return Turn::Reply(reply),
            verdict => match Box::pin(settle(request, route, slot, Side::Response(&mut upstream), verdict)).await {
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

/// What filters are asked about.
enum Side<'a, 'b, 'c> {
    Request,
    /// With where it comes from, unless it is an answer of our own.
    Response(&'a mut Option<Answering<'b, 'c>>),
}

/// Does what a filter wants until it is content.
async fn settle(
    request: &mut Request<'_>,
    route: &mut RouteChoice<'_>,
    slot: usize,
    mut side: Side<'_, '_, '_>,
    mut verdict: Verdict,
) -> Turn {
    let local = matches!(side, Side::Response(None));
    loop {
        verdict = match verdict {
            Verdict::Continue => return Turn::Continue,
            Verdict::LookAgain => return Turn::LookAgain(slot + 1),
            Verdict::Reply(reply) => return Turn::Reply(reply),
            Verdict::Wait(wait) => match wait_for(request, wait).await {
                Ok(resume) => resume(&mut Exchange::new(request, route, slot, local)),
                Err(failure) => return Turn::Interrupted(failure),
            },
            Verdict::Collect { limit_bytes } => match collect(request, Until::End { limit_bytes }).await {
                Ok(body) => show(request, route, slot, local, body),
                Err(turn) => return turn,
            },
            Verdict::CollectResponse { limit_bytes } => match &mut side {
                Side::Response(Some(upstream)) => match upstream.collect(request, limit_bytes).await {
                    Ok(Some(body)) => show_response(request, route, slot, body),
                    Ok(None) => return Turn::Reply(Box::new(response_too_large())),
                    Err(failure) => return Turn::Interrupted(failure),
                },
                _ => Verdict::Continue,
            },
            Verdict::Peek { bytes } => match collect(request, Until::Bytes(bytes)).await {
                Ok(body) => show(request, route, slot, local, body),
                Err(turn) => return turn,
            },
        };
    }
}

/// Asks a filter about what was read of the body, and gives it back.
fn show(request: &mut Request<'_>, route: &mut RouteChoice<'_>, slot: usize, local: bool, body: Collected) -> Verdict {
    let passed = request.request_body.as_ref().map_or(0, |chain| chain.steps());
    let mut exchange = Exchange::new(request, route, slot, local);
    let verdict = exchange.ask(|filter: &dyn HttpFilter, exchange| filter.request_body(exchange, &body.bytes));
    put_back(request, body, passed);
    verdict
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
    /// All of it; 413 if that is more than this many bytes.
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

async fn wait_for(request: &Request<'_>, mut wait: Wait) -> Result<super::Resume, Failure> {
    poll_fn(|cx| match wait.as_mut().poll(cx) {
        Poll::Ready(resume) => Poll::Ready(Ok(resume)),
        Poll::Pending => attempt::interrupted(request, cx).map(Err),
    })
    .await
}

/// Reads the request body.
async fn collect(request: &mut Request<'_>, until: Until) -> Result<Collected, Turn> {
    let mut body = Collected::default();
    if request.framing == Framing::None {
        body.ended = true;
        return Ok(body);
    }
    request.downstream.send_continue();
    let request = &*request;
    let done = poll_fn(|cx| match &request.request_body {
        Some(chain) => read(request, &chain.source(request.downstream), &mut body, until, cx),
        None => read(request, request.downstream, &mut body, until, cx),
    });
    done.await.map(|()| body)
}

fn read(
    request: &Request<'_>,
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
                request.info.bytes_received.set(request.info.bytes_received.get() + count as u64);
                attempt::touch(request);
                match until {
                    Until::End { limit_bytes } if body.bytes.len() > limit_bytes => {
                        return Poll::Ready(Err(Turn::Reply(Box::new(too_large()))));
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
            Poll::Ready(Err(error)) => {
                return Poll::Ready(Err(Turn::Interrupted(failure::downstream_failure(error))));
            }
            Poll::Pending => {
                // A `100 Continue` may be waiting to leave.
                let _ = crate::http::seam::BodySink::poll_flush(request.downstream, cx);
                return attempt::interrupted(request, cx).map(|failure| Err(Turn::Interrupted(failure)));
            }
        }
    }
}

fn too_large() -> LocalReply {
    LocalReply::new(413, "request_payload_too_large").body(&b"Payload Too Large"[..])
}

fn response_too_large() -> LocalReply {
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
