//! One active check of an endpoint: what is sent, and what the answer means.
//!
//! Owns the connection that is kept for the next check. Never decides when to check, nor what follows.

mod agent;
pub(super) mod connection;
mod grpc;
mod grpc_watch;
mod http;
mod http1;
pub(super) mod http2;
pub(super) mod http_request;
mod tcp;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::cluster::{HealthCheck, Probe};
use outrigger_policy::health::{AgentReport, CheckResult, FailureKind};
use outrigger_xds::connector::Connection;

use crate::graph::ClusterNode;
use crate::upstream::host::Host;
use ::http::HeaderMap;
use connection::Offer;
use grpc_watch::Watch;
use http_request::RequestParts;
use http2::Http2Connection;

/// Whom to check.
#[derive(Clone)]
pub struct Target {
    /// Its cluster.
    pub node: Arc<ClusterNode>,
    /// The endpoint.
    pub host: Arc<Host>,
    /// Which check: a place among `Cluster::health_checks`.
    pub check: usize,
    /// The endpoint has to say that it belongs to the right service, where that is configured.
    pub verify: bool,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Checked {
    /// For the state of the endpoint.
    pub result: CheckResult,
    /// The HTTP status, or 0.
    pub status: u16,
    /// The answer says that the endpoint is not to be counted (`x-envoy-immediate-health-check-fail`).
    pub excluded: bool,
    /// The name of the service was compared.
    pub verified: bool,
    /// The endpoint said so of its own accord, which it will not repeat: it counts at once.
    pub told: bool,
    /// What its agent says beside that.
    pub agent: Option<AgentReport>,
}

impl Checked {
    pub(super) fn of(result: CheckResult) -> Self {
        Self { result, status: 0, excluded: false, verified: false, told: false, agent: None }
    }

    fn success() -> Self {
        Self::of(CheckResult::Success { degraded: false })
    }

    fn failure(kind: FailureKind) -> Self {
        Self::of(CheckResult::Failure { kind, retriable: false })
    }
}

/// Why there was no answer to judge.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    /// No connection, or it broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// HTTP could not be spoken.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// The request cannot be made.
    #[error("{0}")]
    Request(#[from] ::http::Error),
}

/// Checks one endpoint again and again.
#[derive(Default)]
pub struct Prober {
    kept: Kept,
    /// The endpoint cannot be watched: it is asked.
    unwatchable: bool,
    /// Attempts to watch in a row that have failed.
    failures: u32,
}

#[derive(Default)]
enum Kept {
    #[default]
    Nothing,
    /// Of HTTP/1.1 or TCP.
    Plain(Connection),
    Http2(Http2Connection),
    /// The endpoint tells by itself.
    Watch(Box<Watch>),
}

/// What came back for a request.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl Prober {
    /// Returns when the next check is due: after `wait`, or when an endpoint that is watched has something to say. An
    /// endpoint that cannot be watched is left alone for longer each time.
    pub async fn rest(&mut self, wait: Duration) {
        match &mut self.kept {
            Kept::Watch(watch) => watch.wait().await,
            _ => {
                let longer = self.failures.saturating_sub(1).min(MOST_DOUBLINGS);
                tokio::time::sleep(wait.saturating_mul(1 << longer)).await;
            }
        }
    }

    /// Checks `target` once, within the time that its cluster allows.
    pub async fn check(&mut self, target: &Target) -> Checked {
        let Some(settings) = target.node.config.health_checks.get(target.check) else {
            return Checked::failure(FailureKind::Network);
        };
        let checked = self.attempt(target, settings).await;
        let watching = matches!(self.kept, Kept::Watch(_)) || self.unwatchable;
        self.failures = match settings.probe {
            Probe::GrpcWatch(_) if !watching => self.failures.saturating_add(1),
            _ => 0,
        };
        checked
    }

    async fn attempt(&mut self, target: &Target, settings: &HealthCheck) -> Checked {
        let kept = std::mem::take(&mut self.kept);
        let unwatchable = &mut self.unwatchable;
        let attempt = async {
            match &settings.probe {
                Probe::Http(probe) => http::check(target, settings, probe, kept).await,
                Probe::Tcp(probe) => tcp::check(target, settings, probe, kept).await,
                Probe::Grpc(probe) => grpc::check(target, settings, probe, kept).await,
                Probe::GrpcWatch(probe) => match *unwatchable {
                    true => grpc::check(target, settings, probe, kept).await,
                    false => grpc_watch::check(target, settings, probe, kept, unwatchable).await,
                },
                Probe::Agent(probe) => agent::check(target, settings, probe).await,
            }
        };
        match tokio::time::timeout(settings.timeout, attempt).await {
            Ok(Ok((checked, kept))) => {
                if settings.reuse_connection || matches!(kept, Kept::Watch(_)) {
                    self.kept = kept;
                }
                checked
            }
            Ok(Err(_)) | Err(_) if matches!(settings.probe, Probe::Agent(_)) => {
                Checked::of(CheckResult::Nothing { reached: false })
            }
            Ok(Err(error)) => {
                let (cluster, address) = (&target.node.config.name, &target.host.address);
                tracing::debug!(target: "hc", "health check of {address} in cluster {cluster:?}: {error}");
                Checked::failure(FailureKind::Network)
            }
            Err(_) => Checked::failure(FailureKind::NetworkTimeout),
        }
    }
}

/// Between attempts to watch an endpoint lie at most as many times twice the interval.
const MOST_DOUBLINGS: u32 = 4;

/// The end of a check, with the connection if it is of further use.
type Ended = Result<(Checked, Kept), ProbeError>;

/// Sends a request on the kept connection, or on a new one if there is none or it has ended: that a connection has ended
/// since the last check says nothing about a new one.
async fn exchange(
    target: &Target,
    settings: &HealthCheck,
    version: HttpVersion,
    kept: Kept,
    parts: &RequestParts<'_>,
    limit: Option<usize>,
) -> Result<(Answer, Kept), ProbeError> {
    match version {
        HttpVersion::Http1 => {
            let request = http1::request_bytes(parts);
            let is_head = parts.method == "HEAD";
            let again = |connection: Option<Connection>| connection.map_or(Kept::Nothing, Kept::Plain);
            if let Kept::Plain(connection) = kept
                && let Ok((answer, connection)) = http1::exchange(connection, &request, is_head, limit).await
            {
                return Ok((answer, again(connection)));
            }
            let connection = connection::open(target, settings, Offer::Nothing).await?.stream;
            let (answer, connection) = http1::exchange(connection, &request, is_head, limit).await?;
            Ok((answer, again(connection)))
        }
        HttpVersion::Http2 => {
            let request = parts.http2()?;
            let again = |connection: Http2Connection| {
                if connection.is_closed() { Kept::Nothing } else { Kept::Http2(connection) }
            };
            if let Kept::Http2(mut connection) = kept
                && let Ok(answer) = connection.exchange(request.clone(), limit).await
            {
                return Ok((answer, again(connection)));
            }
            let mut connection = Http2Connection::open(target, settings).await?;
            let answer = connection.exchange(request, limit).await?;
            Ok((answer, again(connection)))
        }
    }
}

/// Which version a check speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum HttpVersion {
    Http1,
    Http2,
}
