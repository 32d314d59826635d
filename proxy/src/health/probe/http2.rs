//! HTTP/2 for checks: one request at a time.
//!
//! Owns the connection and its task. Never judges an answer.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_config::cluster::HealthCheck;
use outrigger_xds::connector::Connection;
use tokio::task::AbortHandle;

use super::connection::{self, Offer};
use super::{Answer, ProbeError, Target};
use crate::on_this_thread::OnThisThread;

/// A connection that takes requests.
pub(in crate::health) struct Http2Connection {
    client: http2::SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Drop for Http2Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Http2Connection {
    /// A new connection to `target`.
    pub(super) async fn open(target: &Target, settings: &HealthCheck) -> Result<Self, ProbeError> {
        Self::open_with(target, settings, None).await
    }

    /// The same, which ends unless the endpoint answers pings at this interval.
    pub(super) async fn open_with(
        target: &Target,
        settings: &HealthCheck,
        ping: Option<Duration>,
    ) -> Result<Self, ProbeError> {
        let stream = connection::open(target, settings, Offer::Http2).await?.stream;
        Self::over(stream, ping.map(|interval| (interval, settings.timeout))).await
    }

    /// One over a connection that has been opened. `ping` as an interval, and how long the answer may take.
    pub(in crate::health) async fn over(
        stream: Connection,
        ping: Option<(Duration, Duration)>,
    ) -> Result<Self, ProbeError> {
        let mut builder = http2::Builder::new(OnThisThread);
        builder.timer(TokioTimer::new());
        if let Some((interval, timeout)) = ping {
            builder.keep_alive_interval(interval).keep_alive_timeout(timeout).keep_alive_while_idle(true);
        }
        let (client, driver) = builder.handshake(TokioIo::new(stream)).await?;
        // How it ends is seen by the request that needs it.
        let driver = tokio::task::spawn_local(async move { drop(driver.await) }).abort_handle();
        Ok(Self { client, driver })
    }

    /// Sends a request and reads its answer, with the first `limit` bytes of the body (`None` for all).
    pub(super) async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
        limit: Option<usize>,
    ) -> Result<Answer, ProbeError> {
        self.client.ready().await?;
        let (head, mut body) = self.client.send_request(request).await?.into_parts();
        let (mut kept, mut trailers) = (Vec::new(), None);
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => {
                    let room = limit.map_or(data.len(), |limit| limit.saturating_sub(kept.len()).min(data.len()));
                    kept.extend_from_slice(&data[..room]);
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: kept, trailers })
    }

    /// Sends a request, and returns the head of its answer; the body comes as it comes.
    pub(in crate::health) async fn call(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, ProbeError> {
        self.client.ready().await?;
        Ok(self.client.send_request(request).await?)
    }

    /// Whether it takes no more requests.
    pub(in crate::health) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}
