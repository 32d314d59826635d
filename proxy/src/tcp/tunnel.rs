//! A TCP connection inside a request: CONNECT, or POST (`TcpProxy.tunneling_config`).
//!
//! Owns the request, what its answer means, and the bytes in its two bodies. Never chooses an endpoint.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use outrigger_config::cluster::UpstreamTransport;
use outrigger_config::format::Format;
use outrigger_config::route::Priority;
use outrigger_config::tcp::Tunneling;
use outrigger_policy::breaker::Permit;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::accesslog::{Facts, format};
use crate::filter_state::SharedObjects;
use crate::http::h1::parse::Framing;
use crate::http::headers::Headers;
use crate::http::manager::mutate::{self, Mutable};
use crate::http::message::{RequestHead, ResponseHead, Version};
use crate::http::seam::{BodySink, BodySource, Chunk, StreamError};
use crate::stream::{ConnectionInfo, StreamInfo};
use crate::upstream::clusters::WorkerCluster;
use crate::upstream::pool::{self, PoolError, Wanted};
use crate::upstream::stream::UpstreamStream;
use crate::upstream::worker_host::WorkerHost;
use crate::worker::Worker;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub(super) enum TunnelError {
    /// No connection for the request.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The request has failed.
    #[error("{0}")]
    Stream(#[from] StreamError),
    /// The endpoint does not want it. Envoy's words.
    #[error("tunnel_response:{0}")]
    Refused(u16),
}

/// What a tunnel is opened for and with.
pub(super) struct Tunneller<'a> {
    pub worker: &'a Rc<Worker>,
    pub cluster: &'a Rc<WorkerCluster>,
    pub host: &'a Rc<WorkerHost>,
    pub config: &'a Tunneling,
    pub connection: &'a Rc<ConnectionInfo>,
    pub info: &'a Rc<StreamInfo>,
}

impl Tunneller<'_> {
    /// Opens a tunnel.
    ///
    /// # Errors
    /// When the endpoint cannot be asked, or says no.
    pub(super) async fn open(&self) -> Result<(Tunnel, Permit), TunnelError> {
        let head = self.request();
        loop {
            let (stream, permit) = self.stream(&head).await?;
            let reused = stream.is_reused();
            match self.ask(stream, &head).await {
                Ok(tunnel) => return Ok((tunnel, permit)),
                // The connection's end has crossed with the request. Nothing of the client has been sent.
                Err(TunnelError::Stream(StreamError::Closed | StreamError::Io(_))) if reused => {
                    self.host.idle.borrow_mut().clear();
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn stream(&self, head: &RequestHead) -> Result<(UpstreamStream, Permit), TunnelError> {
        let objects = SharedObjects::of(&self.info.filter_state.borrow(), None);
        let wanted = Wanted {
            priority: Priority::Default,
            downstream: Version::Http11,
            host: pool::host_of(head, &self.host.node.config.http),
            upgrade: head.is_connect(),
            alpn: None,
            connection: Some(self.connection),
            objects: objects.as_deref(),
        };
        let stream = match pool::ready(self.host, wanted) {
            Some(stream) => stream,
            None => Box::pin(pool::acquire(self.worker, self.cluster, self.host, wanted)).await?,
        };
        Ok(pool::count(self.cluster, Priority::Default, stream)?)
    }

    fn request(&self) -> RequestHead {
        let mut head = RequestHead::default();
        let mut hostname = Vec::new();
        format::write(&self.config.hostname, &self.facts(), &mut hostname);
        // What a format tells of may hold anything.
        hostname.retain(u8::is_ascii_graphic);
        head.set_authority(&hostname);
        match &self.config.post_path {
            None => head.set_method(b"CONNECT"),
            Some(path) => {
                head.set_method(b"POST");
                head.set_path(path.as_bytes());
                let secure =
                    self.host.node.config.transports().any(|transport| matches!(transport, UpstreamTransport::Tls(_)));
                head.set_scheme(if secure { b"https" } else { b"http" });
            }
        }
        if let Some(id) = &self.config.request_id {
            let value = self.worker.random.uuid();
            head.headers.set_by_name(&id.header, &value);
            let mut metadata = self.info.dynamic_metadata.borrow_mut();
            let told = metadata.entry(NAMESPACE.to_owned()).or_default();
            told.insert(id.metadata_key.clone(), Value::from(String::from_utf8_lossy(&value)));
        }
        let mut side = Side { head, tunneller: self };
        for addition in &self.config.headers {
            mutate::add(addition, &mut side);
        }
        side.head
    }

    fn facts(&self) -> Facts<'_> {
        Facts::new(self.info, self.connection, &self.worker.process.clock, Instant::now())
    }

    async fn ask(&self, mut stream: UpstreamStream, head: &RequestHead) -> Result<Tunnel, TunnelError> {
        let framing = if head.is_connect() { Framing::None } else { Framing::Chunked };
        let http = &self.host.node.config.http;
        let mut answer = ResponseHead::default();
        let mut sent = false;
        poll_fn(|cx| {
            if !sent {
                ready!(stream.poll_send_head(cx, head, framing, http))?;
                sent = true;
            }
            // The head must not wait for bytes that may never come.
            if let Poll::Ready(flushed) = stream.poll_flush(cx) {
                flushed?;
            }
            stream.poll_response(cx, &mut answer)
        })
        .await?;
        if self.config.keep_response_headers {
            let mut list = vec![pair(b":status", answer.status.to_string().as_bytes())];
            list.extend(pairs(&answer.headers));
            keep(self.info, RESPONSE_HEADERS, &json!({ "headers": list }));
        }
        if !(200..300).contains(&answer.status) {
            return Err(TunnelError::Refused(answer.status));
        }
        if head.is_connect() {
            stream.upgrade();
        }
        let trailers_for = self.config.keep_response_trailers.then(|| Rc::clone(self.info));
        Ok(Tunnel { stream: Some(stream), trailers_for, finished: false, ended: false })
    }
}

/// A request head, with what formats are made from.
struct Side<'a, 'b> {
    head: RequestHead,
    tunneller: &'a Tunneller<'b>,
}

impl Mutable for Side<'_, '_> {
    fn headers(&mut self) -> &mut Headers {
        &mut self.head.headers
    }

    fn evaluate(&self, format: &Format, value: &mut Vec<u8>) {
        format::write_header(format, &self.tunneller.facts(), value);
    }
}

fn pair(name: &[u8], value: &[u8]) -> Value {
    json!({ "key": String::from_utf8_lossy(name), "value": String::from_utf8_lossy(value) })
}

fn pairs(headers: &Headers) -> impl Iterator<Item = Value> {
    headers.iter().map(|(_, name, value)| pair(name, value))
}

fn keep(info: &StreamInfo, key: &str, object: &Value) {
    info.filter_state.borrow_mut().insert(key.to_owned(), object.to_string());
}

/// The bodies of a request, as a connection.
pub struct Tunnel {
    /// There until the tunnel ends.
    stream: Option<UpstreamStream>,
    /// Where trailers of the answer are told.
    trailers_for: Option<Rc<StreamInfo>>,
    /// Nothing more is sent.
    finished: bool,
    /// Nothing more comes.
    ended: bool,
}

impl Tunnel {
    /// The request, if it has not ended.
    pub(super) fn stream(&self) -> Option<&UpstreamStream> {
        self.stream.as_ref()
    }

    fn alive(&self) -> io::Result<&UpstreamStream> {
        self.stream.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Tunnel").field("finished", &self.finished).field("ended", &self.ended).finish()
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ended || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let stream = this.alive()?;
        if ready!(stream.poll_data(cx)).map_err(broken)? {
            let count = stream.with_data(|chunk| {
                let bytes = chunk.bytes();
                let count = bytes.len().min(buffer.remaining());
                buffer.put_slice(&bytes[..count]);
                count
            });
            stream.consume(count);
            return Poll::Ready(Ok(()));
        }
        let trailers = stream.take_trailers();
        if let (Some(info), Some(trailers)) = (&this.trailers_for, trailers) {
            keep(info, RESPONSE_TRAILERS, &json!({ "trailers": pairs(&trailers).collect::<Vec<_>>() }));
        }
        this.ended = true;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.alive()?.poll_send(cx, Chunk::Slice(bytes)).map_err(broken)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.alive()?.poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.finished {
            ready!(this.alive()?.poll_finish(cx, None)).map_err(broken)?;
            this.finished = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // A request that has not come to its end takes its connection, or its stream, with it.
        if let Some(stream) = self.stream.take().filter(|_| self.finished && self.ended) {
            stream.finish(Instant::now());
        }
    }
}

fn broken(error: StreamError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error.to_string())
}

/// Where ids of requests are told.
const NAMESPACE: &str = "envoy.filters.network.tcp_proxy";
/// Source: `TunnelingConfig.propagate_response_headers`.
pub(crate) const RESPONSE_HEADERS: &str = "envoy.tcp_proxy.propagate_response_headers";
/// Source: `TunnelingConfig.propagate_response_trailers`.
pub(crate) const RESPONSE_TRAILERS: &str = "envoy.tcp_proxy.propagate_response_trailers";
