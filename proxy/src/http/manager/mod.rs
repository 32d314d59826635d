//! The HTTP connection manager.
//!
//! Owns a downstream HTTP connection: the requests on it from their heads to their log entries. Never chooses endpoints
//! (see the router).

mod age;
mod answer;
pub mod client_address;
pub mod client_cert;
pub mod downstream;
mod local_replies;
pub mod mutate;
pub mod normalize;
pub mod overload;
pub mod path;
mod proxy_status;
pub mod reply;
pub mod request;
mod resets;
mod routing;
pub(crate) mod scopes;
pub mod serve_h1;
pub mod serve_h2;
pub mod stats;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use outrigger_config::http::Codec;

use crate::graph::HttpNode;
use crate::http::filter::{ConnectionStates, Filters};
use crate::stream::ConnectionInfo;
use crate::worker::connections::Registered;
use crate::worker::socket::Io;
use crate::worker::{GraphView, Worker};
use stats::{HttpStats, ListenerHttpStats};

/// A downstream connection and what its requests share.
pub struct HttpConnection {
    /// The worker that owns it.
    pub worker: Rc<Worker>,
    /// The connection manager.
    pub node: Arc<HttpNode>,
    /// Facts of the connection.
    pub info: Rc<ConnectionInfo>,
    /// Stats of the connection manager.
    pub stats: Arc<HttpStats>,
    /// The same for its listener.
    listener_stats: Arc<ListenerHttpStats>,
    /// Where drains are heard of.
    pub registered: Registered,
    /// Why it ends in the middle of requests, where that is the client's fault; as in `%RESPONSE_CODE_DETAILS%`.
    pub broken: Cell<Option<&'static str>>,
    /// What filters keep for all requests of it.
    pub filter_states: ConnectionStates,
    filters: Rc<Filters>,
}

impl HttpConnection {
    /// What a request passes through that begins now. Discovered filters may have changed since the connection was made.
    pub fn filters(&self, graph: &GraphView) -> Rc<Filters> {
        match self.node.current(graph) {
            Some(node) => self.worker.filters(node),
            None => Rc::clone(&self.filters),
        }
    }
}

/// Serves a connection until it ends.
pub async fn serve(worker: Rc<Worker>, node: Arc<HttpNode>, io: Io, info: Rc<ConnectionInfo>, registered: Registered) {
    let stats = worker.http_stats(&node.config.stat_prefix);
    let start = Instant::now();
    let secure = info.tls.is_some();
    stats.downstream_cx_total.increment();
    stats.downstream_cx_active.increment();
    if secure {
        stats.downstream_cx_ssl_total.increment();
        stats.downstream_cx_ssl_active.increment();
    }
    let _counted = Counted { stats: Arc::clone(&stats), start, secure };
    let filters = worker.filters(&node);
    let listener_stats = filters.listener_stats(&worker, &info.listener, &node.config.stat_prefix);
    let connection = Rc::new(HttpConnection {
        worker,
        node,
        info,
        stats,
        listener_stats,
        registered,
        broken: Cell::new(None),
        filter_states: ConnectionStates::default(),
        filters,
    });
    let alpn = connection.info.tls.as_ref().and_then(|tls| tls.alpn.as_deref());
    match (connection.node.config.codec, alpn) {
        // Boxed: HTTP/1 connections should not pay for the size of HTTP/2's state.
        (Codec::Http2, _) | (Codec::Auto, Some(b"h2")) => Box::pin(serve_h2::serve(connection, io)).await,
        (Codec::Http1, _) | (Codec::Auto, Some(_)) => serve_h1::serve(connection, io).await,
        (Codec::Auto, None) => serve_h1::serve_sniffed(connection, io).await,
    }
}

struct Counted {
    stats: Arc<HttpStats>,
    start: Instant,
    secure: bool,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.stats.downstream_cx_active.decrement();
        self.stats.downstream_cx_destroy.increment();
        self.stats.downstream_cx_length_ms.record(self.start.elapsed().as_millis() as u64);
        if self.secure {
            self.stats.downstream_cx_ssl_active.decrement();
        }
    }
}
