//! HTTP posts to a collector, through one of our clusters.
//!
//! Owns one connection, which is kept while the collector keeps it. Never judges an answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_config::cluster::UpstreamProtocol;
use outrigger_config::tracing::HttpService;

use crate::process::Process;
use crate::upstream::dial::{HttpVersion, to_cluster};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The graph does not have it.
    #[error("cluster {0:?} is not ready")]
    NoCluster(Arc<str>),
    /// No connection could be made.
    #[error(transparent)]
    Connect(#[from] std::io::Error),
    /// The exchange failed.
    #[error("cluster {cluster:?}: {source}")]
    Exchange {
        /// The cluster.
        cluster: Arc<str>,
        /// Why.
        source: hyper::Error,
    },
    /// The request cannot be made.
    #[error("the request is not valid: {0}")]
    Request(#[from] http::Error),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// Posts to one service.
pub struct Poster {
    service: HttpService,
    process: Arc<Process>,
    connection: Option<Connection>,
}

enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Poster {
    /// A poster that has not connected.
    pub fn new(service: HttpService, process: &Arc<Process>) -> Self {
        Self { service, process: Arc::clone(process), connection: None }
    }

    /// Posts `body` and returns the status of the answer. `limit` replaces that of the service.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn post(
        &mut self,
        content_type: &str,
        user_agent: Option<&str>,
        body: Vec<u8>,
        limit: Option<Duration>,
    ) -> Result<u16, PostError> {
        let limit = limit.unwrap_or(self.service.timeout);
        // No limit at all would hold up all that comes after.
        let limit = if limit.is_zero() { LONGEST } else { limit };
        let exchange = self.exchange(content_type, user_agent, Bytes::from(body));
        let result = tokio::time::timeout(limit, exchange).await.unwrap_or(Err(PostError::Timeout(limit)));
        if result.is_err() {
            self.connection = None;
        }
        result
    }

    async fn exchange(&mut self, content_type: &str, user_agent: Option<&str>, body: Bytes) -> Result<u16, PostError> {
        let failed = |source| PostError::Exchange { cluster: Arc::clone(&self.service.cluster), source };
        let kept = match &mut self.connection {
            Some(Connection::Http1(client)) => client.ready().await.is_ok(),
            Some(Connection::Http2(client)) => client.ready().await.is_ok(),
            None => false,
        };
        if !kept {
            self.connection = Some(self.connect().await?);
        }
        let request = self.request(content_type, user_agent, body)?;
        let response = match &mut self.connection {
            Some(Connection::Http1(client)) => client.send_request(request).await.map_err(failed)?,
            Some(Connection::Http2(client)) => client.send_request(request).await.map_err(failed)?,
            // Made above.
            None => return Err(PostError::NoCluster(Arc::clone(&self.service.cluster))),
        };
        let status = response.status().as_u16();
        // Read to its end, so that the connection can be used again.
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame.map_err(failed)?;
        }
        Ok(status)
    }

    fn request(
        &self,
        content_type: &str,
        user_agent: Option<&str>,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, http::Error> {
        let HttpService { host, path, headers, .. } = &self.service;
        let mut builder = Request::builder().method(Method::POST);
        builder = match &self.connection {
            Some(Connection::Http2(_)) => builder.uri(format!("http://{host}{path}")),
            _ => builder.uri(path.as_str()).header(header::HOST, host.as_str()),
        };
        builder = builder.header(header::CONTENT_TYPE, content_type);
        if let Some(user_agent) = user_agent {
            builder = builder.header(header::USER_AGENT, user_agent);
        }
        for (name, value) in headers {
            builder = builder.header(&**name, value.as_str());
        }
        builder.body(Full::new(body))
    }

    async fn connect(&self) -> Result<Connection, PostError> {
        let name = &self.service.cluster;
        let graph = self.process.graph.load();
        let Some(cluster) = graph.clusters.get(name) else { return Err(PostError::NoCluster(Arc::clone(name))) };
        let failed = |source| PostError::Exchange { cluster: Arc::clone(name), source };
        let http2 = cluster.config.http.protocol == UpstreamProtocol::Http2;
        let version = if http2 { HttpVersion::Http2 } else { HttpVersion::Http1 };
        let io = TokioIo::new(to_cluster(Arc::clone(&self.process), Arc::clone(name), version).connect().await?);
        // How a connection ends is seen by the request that needs it.
        if http2 {
            let (client, driver) = http2::handshake(TokioExecutor::new(), io).await.map_err(failed)?;
            tokio::spawn(async move { drop(driver.await) });
            return Ok(Connection::Http2(client));
        }
        let (client, driver) = http1::handshake(io).await.map_err(failed)?;
        tokio::spawn(async move { drop(driver.await) });
        Ok(Connection::Http1(client))
    }
}

/// Of an exchange whose service has no limit.
const LONGEST: Duration = Duration::from_secs(60);
