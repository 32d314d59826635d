//! HTTP connections for checks, of either version.
//!
//! Owns one request at a time. Never judges an answer.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_config::cluster::{HealthCheck, ProbeHeader};
use tokio::task::AbortHandle;

use super::connection::{self, Offer};
use super::{Kept, ProbeError, Target};

/// A connection that takes requests.
pub(super) struct HttpConnection {
    client: Client,
    driver: AbortHandle,
}

enum Client {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Drop for HttpConnection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Runs what belongs to a connection on the thread that it was made on.
#[derive(Clone, Copy)]
struct OnThisThread;

impl<F> hyper::rt::Executor<F> for OnThisThread
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

impl HttpConnection {
    async fn open(target: &Target, settings: &HealthCheck, http2: bool) -> Result<Self, ProbeError> {
        let offer = if http2 { Offer::Http2 } else { Offer::Nothing };
        let io = TokioIo::new(connection::open(target, settings, offer).await?.stream);
        if http2 {
            let mut builder = http2::Builder::new(OnThisThread);
            let (client, driver) = builder.timer(TokioTimer::new()).handshake(io).await?;
            // How it ends is seen by the request that needs it.
            let driver = tokio::task::spawn_local(async move { drop(driver.await) }).abort_handle();
            Ok(Self { client: Client::Http2(client), driver })
        } else {
            let (client, driver) = http1::handshake(io).await?;
            let driver = tokio::task::spawn_local(async move { drop(driver.await) }).abort_handle();
            Ok(Self { client: Client::Http1(client), driver })
        }
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match &mut self.client {
            Client::Http1(client) => {
                client.ready().await?;
                client.send_request(request).await
            }
            Client::Http2(client) => {
                client.ready().await?;
                client.send_request(request).await
            }
        }
    }

    /// What to keep of it.
    pub(super) fn keep(self) -> Kept {
        let closed = match &self.client {
            Client::Http1(client) => client.is_closed(),
            Client::Http2(client) => client.is_closed(),
        };
        if closed { Kept::Nothing } else { Kept::Http(self) }
    }
}

/// Sends a request on the kept connection, or on a new one if that has ended.
pub(super) async fn exchange(
    target: &Target,
    settings: &HealthCheck,
    http2: bool,
    kept: Kept,
    request: &Request<Full<Bytes>>,
) -> Result<(HttpConnection, Response<Incoming>), ProbeError> {
    if let Kept::Http(mut connection) = kept
        // That a connection has ended since the last check says nothing about a new one.
        && let Ok(response) = connection.send(request.clone()).await
    {
        return Ok((connection, response));
    }
    let mut connection = HttpConnection::open(target, settings, http2).await?;
    let response = connection.send(request.clone()).await?;
    Ok((connection, response))
}

/// What a request for a check is made of.
pub(super) struct RequestParts<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub host: &'a str,
    pub headers: &'a [ProbeHeader],
    pub http2: bool,
    pub secure: bool,
    pub body: Bytes,
}

/// The name that the requests of an endpoint's checks go to.
pub(super) fn host_name<'a>(target: &'a Target, configured: &'a str) -> &'a str {
    let own = target.host.health_check.as_deref().and_then(|check| check.hostname.as_deref());
    own.unwrap_or(if configured.is_empty() { &target.node.config.name } else { configured })
}

/// Makes a request.
pub(super) fn request(parts: RequestParts<'_>) -> Result<Request<Full<Bytes>>, http::Error> {
    let RequestParts { method, path, host, headers, http2, secure, body } = parts;
    let mut builder = Request::builder().method(method);
    builder = if http2 {
        let scheme = if secure { "https" } else { "http" };
        builder.version(http::Version::HTTP_2).uri(format!("{scheme}://{host}{path}"))
    } else {
        builder.uri(path).header(http::header::HOST, host)
    };
    builder = builder.header(http::header::USER_AGENT, USER_AGENT);
    for ProbeHeader { name, value } in headers {
        builder = builder.header(&**name, &**value);
    }
    builder.body(Full::new(body))
}

/// Reads a body, and keeps its first `limit` bytes; `None` for all.
pub(super) async fn read(
    mut body: Incoming,
    limit: Option<usize>,
) -> hyper::Result<(Vec<u8>, Option<http::HeaderMap>)> {
    let mut kept = Vec::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => {
                let room = limit.map_or(data.len(), |limit| limit.saturating_sub(kept.len()).min(data.len()));
                kept.extend_from_slice(&data[..room]);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((kept, trailers))
}

/// What upstreams know checks by.
const USER_AGENT: &str = "Envoy/HC";
