//! The answered request: both directions to their ends.
//!
//! Owns the way of the response downstream, and what is recorded when it is cut off. Never retries.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use super::attempt::{Answered, interrupted_holding, pump_up, record_limit, touch};
use super::body::ReplayBody;
use super::failure::{self, Failure, downstream_failure, reset_of};
use crate::accesslog::LogType;
use crate::http::filter::BodyChain;
use crate::http::headers::HeaderId;
use crate::http::manager::downstream::Gone;
use crate::http::manager::request::{Request, finish_response};
use crate::http::manager::{overload, reply};
use crate::http::seam::{Pump, PumpError};
use crate::moments::Milestone;
use crate::stream::{Kill, Phase, ResponseFlag};
use crate::trace::{self, Mark};
use crate::upstream::clusters::WorkerCluster;
use crate::upstream::feedback;
use crate::upstream::response_stats::ResponseOrigin;
use crate::upstream::stream::UpstreamStream;
use crate::upstream::worker_host::WorkerHost;
use crate::worker::deadlines::Limit;

/// Sends the response head downstream and drives both directions to their ends.
pub async fn relay(
    request: &mut Request<'_>,
    cluster: &Rc<WorkerCluster>,
    host: &Rc<WorkerHost>,
    answered: Answered,
    body: &ReplayBody<'_>,
) {
    let Answered { mut stream, mut upload, mut upload_failed, timeouts, counted: _counted, .. } = answered;
    let now = Instant::now();
    let connection = Rc::clone(request.connection);
    request.deadlines.set(Limit::PerTry, None);
    let idle = request.tries.as_ref().and_then(|tries| tries.idle());
    request.deadlines.set(Limit::PerTryIdle, idle.map(|limit| now + limit));
    let took = now.saturating_duration_since(request.info.start).as_millis() as u64;
    let origin = ResponseOrigin::of(&request.head, Some(&request.response), Some(&host.host));
    cluster.count_time(&connection.worker, took, origin);
    request.route_counts.took(took);
    trace::exemplar::keep(request, "cluster", &cluster.node().config.stat_name, "upstream_rq_time", now);
    let connected = request.head.is_connect() && (200..300).contains(&request.response.status);
    let upgraded = request.response.status == 101 || connected;
    if connected {
        // RFC 9110 section 9.3.6: what follows has no length.
        request.response.headers.remove(HeaderId::ContentLength);
        request.response.headers.remove(HeaderId::TransferEncoding);
    }
    finish_response(request);
    trace::response_head(request);
    reply::finish_head(&connection, &mut request.response, true, now);
    let end =
        !upgraded && stream.response_is_done() && !request.response_body.as_ref().is_some_and(BodyChain::changes_bytes);
    request.info.response_code.set(request.response.status);
    request.info.response_header_bytes.set(request.response.headers.byte_size() as u64);
    if connection.registered.is_asked_to_end() && !upgraded {
        request.downstream.set_close();
    } else if !upgraded {
        overload::limit_keepalive(request);
    }
    if request.downstream.send_head(&request.response, end).is_err() {
        request.info.flag(ResponseFlag::DownstreamConnectionTermination);
        return;
    }
    trace::mark(request, Mark::FirstDownstreamTx);
    request.info.reached(Milestone::DownstreamTxBegin, now);
    if upgraded && connection.node.config.access_log_times.on_tunnel {
        request.log(LogType::DownstreamTunnelEstablished);
    }
    if upgraded {
        request.info.phase.set(Phase::Relay);
        connection.stats.downstream_cx_upgrades_total.increment();
        connection.stats.downstream_cx_upgrades_active.increment();
        request.downstream.upgrade();
        stream.upgrade();
        request.deadlines.set(Limit::Route, None);
        request.deadlines.set(Limit::Request, None);
        upload = Pump::default();
    }
    let mut download = Pump::default();
    let result: Result<(), Failure> = poll_fn(|cx| {
        if !upload_failed && !upload.is_done() {
            match pump_up(request, &stream, &mut upload, body, cx) {
                // A tunnel may end on one side only.
                Poll::Ready(Ok(())) if upgraded && !connected => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => {
                    let now = Instant::now();
                    request.deadlines.set(Limit::Request, None);
                    request.info.request_end.set(Some(now));
                    request.info.reached(Milestone::UpstreamTxEnd, now);
                }
                Poll::Ready(Err(PumpError::Source(error))) => return Poll::Ready(Err(downstream_failure(error))),
                Poll::Ready(Err(PumpError::Sink(_))) => upload_failed = true,
                Poll::Pending => {}
            }
        }
        if upload_failed {
            request.downstream.poll_discard(cx);
        }
        match pump_down(request, &stream, &mut download, cx) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(PumpError::Source(error))) => return Poll::Ready(Err(reset_of(error, false))),
            Poll::Ready(Err(PumpError::Sink(error))) => return Poll::Ready(Err(downstream_failure(error))),
            Poll::Pending => {}
        }
        interrupted_holding(request, || stream.held(), cx).map(Err)
    })
    .await;
    if upgraded {
        connection.stats.downstream_cx_upgrades_active.decrement();
    }
    request.trailers = download.into_trailers();
    feedback::trailers(host, &request.response.headers, request.trailers.as_ref());
    let (read, written) = stream.transferred();
    request.info.upstream_bytes_received.set(read);
    request.info.upstream_bytes_sent.set(written);
    match result {
        Ok(()) => {
            trace::mark(request, Mark::LastUpstreamRx);
            trace::mark(request, Mark::LastDownstreamTx);
            if !upload.is_done() && !upgraded {
                connection.stats.downstream_rq_response_before_rq_complete.increment();
                request.downstream.set_close();
            }
            request.info.response_sent.set(true);
            let now = Instant::now();
            request.info.reached(Milestone::UpstreamRxEnd, now);
            request.info.reached(Milestone::DownstreamTxEnd, now);
            request.info.end.set(Some(now));
            stream.finish(now);
        }
        Err(failure) => {
            if let Failure::Timeout(limit) = failure {
                request.info.cause.set(timeouts.cause(limit));
                record_limit(request, limit);
            }
            broken(request, cluster, host, &failure);
        }
    }
}

fn pump_down(
    request: &Request<'_>,
    stream: &UpstreamStream,
    download: &mut Pump,
    cx: &mut std::task::Context<'_>,
) -> Poll<Result<(), PumpError>> {
    let mut moved = 0;
    let seen = |bytes: &[u8]| moved += bytes.len();
    let result = match &request.response_body {
        None => download.poll(cx, stream, request.downstream, seen),
        Some(chain) => download.poll(cx, &chain.source(stream), request.downstream, seen),
    };
    if moved > 0 {
        let (sent, now) = (request.info.bytes_sent.get(), Instant::now());
        if sent == 0 {
            request.info.reached(Milestone::ResponseBodyBegin, now);
        }
        request.info.bytes_sent.set(sent + moved as u64);
        touch(request, now);
    }
    result
}

/// Records how the client went away.
pub fn record_gone(request: &Request<'_>, gone: Gone) {
    let (flag, details) = match (request.connection.broken.get(), gone) {
        (Some(details), _) => (ResponseFlag::DownstreamProtocolError, details),
        (None, Gone::Connection) => (ResponseFlag::DownstreamConnectionTermination, "downstream_remote_disconnect"),
        (None, Gone::Stream) => (ResponseFlag::DownstreamRemoteReset, "http2.remote_reset"),
    };
    request.info.flag(flag);
    request.info.set_details(details);
}

/// The response was cut off after its head had been sent.
fn broken(request: &mut Request<'_>, cluster: &WorkerCluster, host: &WorkerHost, failure: &Failure) {
    trace::fail_attempt(request, failure);
    let stats = &cluster.stats;
    let reason = match failure {
        Failure::DownstreamGone(gone) => {
            record_gone(request, *gone);
            h2::Reason::CANCEL
        }
        Failure::DownstreamError(_) => {
            request.info.flag(ResponseFlag::DownstreamProtocolError);
            request.info.set_details("http1.codec_error");
            h2::Reason::PROTOCOL_ERROR
        }
        Failure::Timeout(limit) => {
            let reply = failure::timeout_reply(*limit);
            if let Some(flag) = reply.flag {
                request.info.flag(flag);
            }
            match limit {
                Limit::Route => {
                    stats.upstream_rq_timeout.increment();
                    request.route_counts.timed_out();
                    host.stats.rq_timeout.increment();
                }
                Limit::PerTryIdle => {
                    stats.upstream_rq_per_try_idle_timeout.increment();
                    host.stats.rq_timeout.increment();
                }
                _ => {}
            }
            request.info.set_details(reply.details);
            h2::Reason::CANCEL
        }
        Failure::Reset { reason, flag, protocol, .. } => {
            failure::observe(&request.connection.worker.process, host, failure);
            request.connection.stats.rq_reset_after_downstream_response_started.increment();
            request.info.flag(*flag);
            let name = reason.replace(' ', "_");
            let details = match protocol {
                Some(what) => format!("upstream_reset_after_response_started{{{name}|{what}}}"),
                None => format!("upstream_reset_after_response_started{{{name}}}"),
            };
            request.info.set_details(details);
            h2::Reason::INTERNAL_ERROR
        }
        _ if request.info.kill.get() == Kill::Overload => {
            host.stats.rq_error.increment();
            return super::reset_for_overload(request);
        }
        _ => {
            if request.info.kill.get() != Kill::No {
                request.info.set_details("killed_by_operator");
            }
            request.info.flag(ResponseFlag::LocalReset);
            h2::Reason::CANCEL
        }
    };
    host.stats.rq_error.increment();
    request.downstream.abort(reason);
}
