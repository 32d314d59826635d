//! The HTTP connection manager.
//!
//! Owns a downstream HTTP connection: the requests on it from their heads to their log entries. Never chooses endpoints
//! (see the router).

pub mod downstream;
mod local_replies;
pub mod mutate;
pub mod normalize;
pub mod overload;
pub mod path;
pub mod reply;
pub mod request;
mod resets;
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
use stats::HttpStats;

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

    /// The element of x-forwarded-client-cert that describes the peer. Source: `SetCurrentClientCertDetails`.
    pub fn client_cert_header(&self) -> String {
        let Some(tls) = &self.info.tls else { return String::new() };
        let Some(peer) = &tls.peer else { return String::new() };
        let details = &self.node.config.set_current_client_cert;
        let mut elements: Vec<String> = tls.local_uri_sans.iter().map(|uri| format!("By={uri}")).collect();
        elements.push(format!("Hash={}", peer.sha256));
        if details.cert
            && let Some(leaf) = peer.chain_der.first()
        {
            elements.push(format!("Cert=\"{}\"", url_pem(std::slice::from_ref(leaf))));
        }
        if details.chain && !peer.chain_der.is_empty() {
            elements.push(format!("Chain=\"{}\"", url_pem(&peer.chain_der)));
        }
        if details.subject {
            // Quotation marks within names are escaped by the form that names have (RFC 2253).
            elements.push(format!("Subject=\"{}\"", peer.subject));
        }
        if details.uri {
            match peer.uri_sans.as_slice() {
                [] => elements.push("URI=".into()),
                uris => elements.extend(uris.iter().map(|uri| format!("URI={uri}"))),
            }
        }
        if details.dns {
            elements.extend(peer.dns_sans.iter().map(|name| format!("DNS={name}")));
        }
        // Names in certificates may hold anything; line ends would begin another header.
        elements.join(";").replace(|character: char| character.is_control(), "_")
    }
}

/// PEM with everything escaped that may not stand in a header element.
pub(crate) fn url_pem(chain: &[Vec<u8>]) -> String {
    let mut text = String::new();
    for der in chain {
        let body = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, der);
        text.push_str("-----BEGIN%20CERTIFICATE-----%0A");
        for line in body.as_bytes().chunks(64) {
            for byte in line.iter().copied() {
                match byte {
                    b'+' => text.push_str("%2B"),
                    b'/' => text.push_str("%2F"),
                    b'=' => text.push_str("%3D"),
                    byte => text.push(char::from(byte)),
                }
            }
            text.push_str("%0A");
        }
        text.push_str("-----END%20CERTIFICATE-----%0A");
    }
    text
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
    let connection = Rc::new(HttpConnection {
        worker,
        node,
        info,
        stats,
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
