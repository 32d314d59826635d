//! Answers of our own: from the reason to the last byte.
//!
//! Owns how they pass through filters and what is recorded of them. Never decides why one is made.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use outrigger_config::route::RouteAction;

use super::downstream::Downstream;
use super::local_replies::{self, Rewritten};
use super::reply::{self, LocalReply};
use super::request::{Request, ResponseSide};
use super::routing::Chosen;
use super::{mutate, overload, proxy_status};
use crate::http::filter::{self, BodyChain, Given, Origin, RouteChoice, Turn};
use crate::http::headers::HeaderId;
use crate::http::router;
use crate::http::seam::{BodySink, Chunk};
use crate::moments::Milestone;
use crate::stream::{Kill, Phase, ResponseFlag};
use crate::trace::{self, Mark};
use crate::worker::deadlines::Limit;

/// A client that does not read an answer of ours for this long does not get it.
const REPLY_LIMIT: Duration = Duration::from_secs(30);

/// Sends a response of our own and records why.
///
/// Boxed: forwarded requests, which are most, should not pay for its size.
pub fn send_local<'a>(
    request: &'a mut Request<'_>,
    reply: LocalReply,
    chosen: Option<&'a Chosen<'_>>,
) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
    Box::pin(send_local_now(request, reply, chosen))
}

/// Does what is done to responses when filters have seen them.
pub fn finish_response(request: &mut Request<'_>) {
    if request.connection.node.config.proxy_status.is_some() && !request.info.flags.get().is_empty() {
        proxy_status::tell(request);
        request.info.response_code.set(request.response.status);
    }
}

/// Writes the head of an answer in the form that the connection manager wants; returns whether its body follows.
fn write_head(request: &mut Request<'_>, reply: &mut LocalReply, grpc: bool) -> bool {
    let connection = Rc::clone(request.connection);
    let config = &connection.node.config;
    let rewritten = match &config.local_replies {
        Some(replies) => local_replies::rewrite(replies, request, reply),
        None => Rewritten::default(),
    };
    reply::begin_head(reply, &mut request.response);
    if let Some(instead) = &reply.instead {
        mutate::apply(&instead.headers, &mut ResponseSide(request));
    }
    if let Some(headers) = rewritten.headers {
        request.response.status = rewritten.status_before;
        request.info.response_code.set(rewritten.status_before);
        mutate::apply(headers, &mut ResponseSide(request));
        request.response.status = reply.status;
    }
    // What a mapper says of the body's type holds.
    let content_type = match request.response.headers.contains(HeaderId::ContentType) && rewritten.headers.is_some() {
        true => None,
        false => rewritten.content_type,
    };
    let has_body = reply::end_head(reply, grpc, content_type, &mut request.response);
    if config.always_set_request_id_in_response
        && let Some(id) = request.head.headers.get(HeaderId::XRequestId).map(<[u8]>::to_vec)
    {
        request.response.headers.set(HeaderId::XRequestId, &id);
    }
    has_body
}

async fn send_local_now(request: &mut Request<'_>, mut reply: LocalReply, chosen: Option<&Chosen<'_>>) {
    if request.info.kill.get() == Kill::Overload {
        return router::reset_for_overload(request);
    }
    if let Some(flag) = reply.flag {
        request.info.flag(flag);
    }
    request.info.set_details(reply.details.clone());
    match request.info.kill.get() {
        Kill::No => request.info.phase.set(Phase::Answer),
        // What has to be said must not be cut off for the same reason.
        Kill::Asked | Kill::Obeyed => request.info.kill.set(Kill::Obeyed),
        // It has been reset.
        Kill::Overload => {}
    }
    request.deadlines.clear_request();
    request.deadlines.set(Limit::StreamIdle, Some(Instant::now() + REPLY_LIMIT));
    if request.downstream.has_responded() {
        request.downstream.abort(h2::Reason::INTERNAL_ERROR);
        return;
    }
    if reply.flag == Some(ResponseFlag::DownstreamProtocolError) && matches!(request.downstream, Downstream::H2(_)) {
        request.downstream.abort(h2::Reason::INTERNAL_ERROR);
        return;
    }
    if reply.close || !request.downstream.request_is_done() || request.connection.registered.is_asked_to_end() {
        // What the client still sends would be taken for its next request.
        request.downstream.set_close();
    }
    let grpc = request.came_as_grpc;
    let has_body = write_head(request, &mut reply, grpc) && !request.head.is_head();
    request.response_ended = !has_body;
    request.local_reply_body = reply.body.clone();
    request.info.response_code.set(request.response.status);
    if let Some(chosen) = chosen {
        chosen.mutate_response(request);
    }
    let connection = Rc::clone(request.connection);
    let mut filtered = None;
    let mut chain = None;
    if !request.filters.slots.is_empty() && reply.instead.is_none() {
        let graph = Rc::clone(&request.graph);
        let mut choice = RouteChoice::of(&connection, &graph, chosen.copied());
        let given = Given::new(if has_body { &reply.body } else { b"" });
        // An answer that would replace this one has no place, unless that is what it is for: this is one already.
        let mut interrupted = match filter::responses(request, &mut choice, Origin::Local(&given)).await {
            Turn::Interrupted(_) => true,
            Turn::Restart => return,
            Turn::Reply(other) if other.instead.is_some() => {
                request.response_body = None;
                // As Envoy does, what the route adds to responses is added for those that it forwards alone.
                let forwards = |chosen: &&Chosen<'_>| matches!(chosen.route.action, RouteAction::Forward(_));
                return send_local(request, *other, chosen.filter(forwards)).await;
            }
            Turn::Continue | Turn::LookAgain(_) | Turn::Reply(_) => false,
        };
        chain = request.response_body.take().filter(|_| has_body);
        if let Some(chain) = &chain
            && !interrupted
        {
            let body = match chain.is_plain() {
                true => Some(chain.apply(reply.body.to_vec())),
                false => filter::whole(request, &chain.source(&given)).await,
            };
            interrupted = body.is_none();
            let body = body.unwrap_or_default();
            let mut text = [0; 20];
            let length = crate::http::h1::encode::decimal(body.len() as u64, &mut text);
            request.response.headers.set(HeaderId::ContentLength, length);
            filtered = Some(body);
        }
        // What was read from there has kept its pace already.
        chain = chain.filter(BodyChain::is_plain);
        if interrupted {
            request.info.flag(ResponseFlag::DownstreamConnectionTermination);
            request.downstream.abort(h2::Reason::CANCEL);
            return;
        }
    }
    finish_response(request);
    trace::response_head(request);
    let now = Instant::now();
    reply::finish_head(&connection, &mut request.response, false, now);
    request.info.reached(Milestone::DownstreamTxBegin, now);
    overload::limit_keepalive(request);
    let sent = request.downstream.send_head(&request.response, !has_body);
    trace::mark(request, Mark::FirstDownstreamTx);
    let body: &[u8] = if has_body { filtered.as_deref().unwrap_or(&reply.body) } else { b"" };
    let mut position = 0;
    let finished = poll_fn(|cx| {
        if sent.is_err() {
            return Poll::Ready(false);
        }
        while position < body.len() {
            let left = &body[position..];
            let allowed = match &chain {
                None => Poll::Ready(left.len()),
                Some(chain) => chain.poll_allowance(cx, left.len()),
            };
            let sent = match allowed {
                Poll::Ready(allowed) => request.downstream.poll_send(cx, Chunk::Slice(&left[..allowed])),
                Poll::Pending => {
                    // What may go on goes now.
                    let _ = request.downstream.poll_flush(cx);
                    Poll::Pending
                }
            };
            match sent {
                Poll::Ready(Ok(count)) => {
                    position += count;
                    if let Some(chain) = &chain {
                        chain.passed(count);
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending if interrupted(request, cx) => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
        }
        match request.downstream.poll_finish(cx, None) {
            Poll::Ready(finished) => Poll::Ready(finished.is_ok()),
            Poll::Pending if interrupted(request, cx) => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    });
    if finished.await {
        trace::mark(request, Mark::LastDownstreamTx);
        request.info.reached(Milestone::DownstreamTxEnd, Instant::now());
        request.info.bytes_sent.set(body.len() as u64);
        request.info.response_sent.set(true);
    } else if request.info.kill.get() == Kill::Overload {
        router::reset_for_overload(request);
    } else {
        request.info.flag(ResponseFlag::DownstreamConnectionTermination);
        request.downstream.abort(h2::Reason::CANCEL);
    }
}

/// Whether the client has gone, a time limit has passed or the drain is over. A limit that was the reason for the answer
/// must have been cleared.
fn interrupted(request: &Request<'_>, cx: &mut std::task::Context<'_>) -> bool {
    request.downstream.poll_closed(cx).is_ready()
        || request.poll_limit(cx).is_ready()
        || request.poll_drained(cx).is_ready()
}
