//! What a connection manager does about overload.
//!
//! Owns the answers to requests that are not served, and how connections end because of it. Never measures, and never
//! decides when (see [`crate::overload`]). While all is calm, a request pays for a look at one word at each point.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::overload::TimerKind;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::HttpConnection;
use super::downstream::Downstream;
use super::reply::LocalReply;
use super::request::Request;
use crate::http::filter::Filters;
use crate::overload::Hook;
use crate::stream::ResponseFlag;
use crate::worker::deadlines::Deadlines;

impl HttpConnection {
    /// Whether something is to be done at a hook this time.
    pub fn is_overloaded(&self, hook: Hook) -> bool {
        self.worker.is_overloaded(hook, || self.bypasses())
    }

    fn bypasses(&self) -> bool {
        self.worker.listener_bypasses(&self.info.listener)
    }

    /// Whether the connection ends before a request is looked at; `first` says that it is the connection's first.
    pub(super) fn closes_on_dispatch(&self, first: bool) -> bool {
        if self.worker.process.overload.is_calm() {
            return false;
        }
        if first && self.is_overloaded(Hook::CreateCodec) {
            self.stats.downstream_rq_overload_close.increment();
            return true;
        }
        self.is_overloaded(Hook::GoAwayAndClose)
    }

    /// Limits of a task of this connection.
    pub(super) fn deadlines(&self) -> Deadlines {
        match self.worker.deadlines.are_rescaled() && !self.bypasses() {
            true => self.worker.deadlines.fresh(),
            false => Deadlines::default(),
        }
    }

    /// Limits of a stream of this connection, to be given back.
    pub(super) fn stream_deadlines(&self) -> Deadlines {
        match self.worker.deadlines.are_rescaled() && self.bypasses() {
            true => Deadlines::default(),
            false => self.worker.deadlines.take(),
        }
    }

    /// When the connection is to take no more requests, by its age.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        let limit = self.max_duration()?;
        let limit = match self.worker.process.overload.timers() {
            Some(timers) if !self.bypasses() => timers.shortened(TimerKind::ConnectionMax, limit),
            _ => limit,
        };
        Some(self.info.start + limit)
    }
}

/// The answer to a request that is not served because of overload. Its filters are not asked: they would need memory.
pub(super) fn refusal(request: &mut Request<'_>) -> Option<LocalReply> {
    let connection = request.connection;
    if connection.worker.process.overload.is_calm() {
        return None;
    }
    if !connection.is_overloaded(Hook::DecodeHeaders) && !connection.is_overloaded(Hook::StopRequests) {
        return None;
    }
    connection.stats.downstream_rq_overload_close.increment();
    request.filters = Rc::new(Filters::none(Arc::clone(&request.filters.router)));
    let mut reply = LocalReply::new(503, "overload").body(&b"envoy overloaded"[..]);
    if connection.node.config.append_local_overload {
        reply.header("x-envoy-local-overloaded", "true");
    }
    Some(reply)
}

/// The answer of the router to a request that is not sent upstream.
pub fn router_refusal(request: &Request<'_>) -> Option<LocalReply> {
    if !request.connection.is_overloaded(Hook::FilterCheck) {
        return None;
    }
    request.connection.stats.rq_overload_local_reply.increment();
    Some(LocalReply::new(503, "overload").body(&b"envoy overloaded"[..]))
}

/// The answer to bytes of an HTTP/1 request that are not looked at.
pub(super) fn abort(connection: &HttpConnection) -> Option<LocalReply> {
    if !connection.is_overloaded(Hook::Http1Abort) {
        return None;
    }
    connection.stats.downstream_rq_overload_close.increment();
    let reply = LocalReply::new(500, "overload").flag(ResponseFlag::DownstreamProtocolError);
    Some(reply.body(&b"Internal Server Error"[..]))
}

/// Asks the connection to end with the response whose head is about to be sent, where overload wants that.
pub fn limit_keepalive(request: &Request<'_>) {
    let connection = request.connection;
    if connection.registered.is_asked_to_end() || !connection.is_overloaded(Hook::DisableKeepalive) {
        return;
    }
    connection.stats.downstream_cx_overload_disable_keepalive.increment();
    match request.downstream {
        Downstream::H1(_) => {
            connection.stats.downstream_cx_drain_close.increment();
            request.downstream.set_close();
        }
        // The task of the connection says goodbye.
        Downstream::H2(_) => connection.registered.ask_to_end(),
    }
}

/// Ends a connection that was not looked into: the client is to see an end, and not a reset.
pub(super) async fn close<S: AsyncRead + AsyncWrite + Unpin>(connection: &HttpConnection, mut io: S) {
    connection.stats.downstream_cx_destroy_local.increment();
    let delay = connection.node.config.delayed_close_timeout.unwrap_or_default().min(MAX_DELAY);
    let ended = async {
        io.shutdown().await?;
        let mut unread = [0; 512];
        while io.read(&mut unread).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    if tokio::time::timeout(delay, ended).await.is_err() {
        connection.stats.downstream_cx_delayed_close_timeout.increment();
    }
}

/// A client that neither reads nor closes does not deserve more.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(30);
