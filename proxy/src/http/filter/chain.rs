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
use crate::http::router::attempt::{self, Failure};
use crate::http::seam::BodySource;

/// How the filters let a request, or a response, go.
pub enum Turn {
    /// On.
    Continue,
    /// This is the answer.
    Reply(Box<LocalReply>),
    /// Something else ended it: the client, a time limit, a drain.
    Interrupted(Failure),
}

/// Asks all filters about the request.
pub async fn requests(request: &mut Request<'_>, route: &mut RouteChoice<'_>) -> Turn {
    let count = request.filters.slots.len();
    for slot in 0..count {
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
            verdict => match Box::pin(settle(request, route, slot, false, verdict)).await {
                Turn::Continue => {}
                turn => return turn,
            },
        }
    }
    Turn::Continue
}

/// Asks all filters about the response, in the opposite order. `local` says that it is an answer of our own.
pub async fn responses(request: &mut Request<'_>, route: &mut RouteChoice<'_>, local: bool) -> Turn {
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
            verdict => match Box::pin(settle(request, route, slot, local, verdict)).await {
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
}

/// Does what a filter wants until it is content.
async fn settle(
    request: &mut Request<'_>,
    route: &mut RouteChoice<'_>,
    slot: usize,
    local: bool,
    mut verdict: Verdict,
) -> Turn {
    loop {
        verdict = match verdict {
            Verdict::Continue => return Turn::Continue,
            Verdict::Reply(reply) => return Turn::Reply(reply),
            Verdict::Wait(wait) => match wait_for(request, wait).await {
                Ok(resume) => resume(&mut Exchange::new(request, route, slot, local)),
                Err(failure) => return Turn::Interrupted(failure),
            },
            Verdict::Collect { limit_bytes } => match collect(request, limit_bytes).await {
                Ok(body) => {
                    let mut exchange = Exchange::new(request, route, slot, local);
                    let verdict =
                        exchange.ask(|filter: &dyn HttpFilter, exchange| filter.request_body(exchange, &body.0));
                    put_back(request, body);
                    verdict
                }
                Err(turn) => return turn,
            },
        };
    }
}

async fn wait_for(request: &Request<'_>, mut wait: Wait) -> Result<super::Resume, Failure> {
    poll_fn(|cx| match wait.as_mut().poll(cx) {
        Poll::Ready(resume) => Poll::Ready(Ok(resume)),
        Poll::Pending => attempt::interrupted(request, cx).map(Err),
    })
    .await
}

/// Reads the request body to its end.
async fn collect(request: &mut Request<'_>, limit_bytes: usize) -> Result<(Vec<u8>, Option<Headers>), Turn> {
    if request.framing == Framing::None {
        return Ok((Vec::new(), None));
    }
    request.downstream.send_continue();
    let mut body = Vec::new();
    let request = &*request;
    let mut trailers = None;
    let done = poll_fn(|cx| match &request.request_body {
        Some(chain) => read(request, &chain.source(request.downstream), &mut body, limit_bytes, &mut trailers, cx),
        None => read(request, request.downstream, &mut body, limit_bytes, &mut trailers, cx),
    });
    done.await.map(|()| (body, trailers))
}

fn read(
    request: &Request<'_>,
    source: &impl BodySource,
    body: &mut Vec<u8>,
    limit_bytes: usize,
    trailers: &mut Option<Headers>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Turn>> {
    loop {
        match source.poll_data(cx) {
            Poll::Ready(Ok(true)) => {
                let count = source.with_data(|chunk| {
                    body.extend_from_slice(chunk.bytes());
                    chunk.bytes().len()
                });
                source.consume(count);
                request.info.bytes_received.set(request.info.bytes_received.get() + count as u64);
                attempt::touch(request);
                if body.len() > limit_bytes {
                    return Poll::Ready(Err(Turn::Reply(Box::new(too_large()))));
                }
            }
            Poll::Ready(Ok(false)) => {
                *trailers = source.take_trailers();
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Err(error)) => {
                return Poll::Ready(Err(Turn::Interrupted(attempt::downstream_failure(error))));
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

/// The body that was read is what is forwarded, with its length known.
fn put_back(request: &mut Request<'_>, (body, trailers): (Vec<u8>, Option<Headers>)) {
    if request.framing == Framing::None {
        return;
    }
    if trailers.is_none() {
        request.framing = Framing::Length(body.len() as u64);
        let headers = &mut request.head.headers;
        headers.set(HeaderId::ContentLength, decimal(body.len() as u64, &mut [0; 20]));
        headers.remove(HeaderId::TransferEncoding);
    }
    // Its bytes were counted when they came.
    request.info.bytes_received.set(request.info.bytes_received.get().saturating_sub(body.len() as u64));
    request.request_body.get_or_insert_with(Rc::default).replace(body, trailers);
}
