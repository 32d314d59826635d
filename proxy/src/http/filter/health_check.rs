//! The health check filter: answers health checks, or remembers what the upstream said to one.
//!
//! Owns the answer to a health check. Never checks an endpoint (see `health`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outrigger_config::http::filters::{HealthCheck as Settings, HealthCheckMode};
use outrigger_policy::route::request_header_matches;

use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::graph::{Graph, membership};
use crate::http::headers::HeaderId;
use crate::http::manager::reply::LocalReply;
use crate::stream::ResponseFlag;

/// The filter.
pub struct HealthCheck {
    settings: Arc<Settings>,
    /// `node.cluster`.
    local_cluster: String,
    /// What the upstream said last, and for how long that counts.
    cache: Option<(Arc<Cache>, Duration)>,
}

/// The request is a health check.
#[derive(Default)]
struct IsHealthCheck(bool);

impl HealthCheck {
    /// A filter, with the memory that it shares with other workers.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        let process = &maker.worker.process;
        let cache = match settings.mode {
            HealthCheckMode::PassThrough { cache_time: Some(time) } => {
                Some((process.shared.of(settings, || Cache::new(Instant::now())), time))
            }
            _ => None,
        };
        Self { settings: Arc::clone(settings), local_cluster: process.node_cluster.clone(), cache }
    }

    fn answer(&self, failed: bool, exchange: &Exchange<'_, '_, '_>) -> Option<LocalReply> {
        if failed {
            return Some(unhealthy("health_check_failed"));
        }
        match &self.settings.mode {
            HealthCheckMode::PassThrough { .. } => {
                let (cache, time) = self.cache.as_ref()?;
                cache.get(Instant::now(), *time).map(Said::reply)
            }
            HealthCheckMode::Answer { clusters } => Some(by_clusters(clusters, exchange.graph())),
        }
    }
}

impl HttpFilter for HealthCheck {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let head = exchange.head();
        if !self.settings.headers.iter().all(|matcher| request_header_matches(matcher, head)) {
            return Verdict::Continue;
        }
        exchange.state::<IsHealthCheck>().0 = true;
        exchange.info().health_check.set(true);
        match self.answer(has_failed(exchange), exchange) {
            Some(reply) => Verdict::reply(reply),
            None => Verdict::Continue,
        }
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let is_health_check = exchange.known_state::<IsHealthCheck>().is_some();
        let failed = has_failed(exchange);
        let response = exchange.response_mut();
        if is_health_check {
            if let Some((cache, time)) = &self.cache {
                let degraded = response.headers.contains(HeaderId::XEnvoyDegraded);
                cache.set(Said { status: response.status, degraded }, Instant::now(), *time);
            }
            response.headers.set_by_name("x-envoy-upstream-healthchecked-cluster", self.local_cluster.as_bytes());
        }
        if failed {
            response.headers.set_by_name("x-envoy-immediate-health-check-fail", b"true");
        }
        Verdict::Continue
    }
}

/// `/healthcheck/fail` was ordered.
fn has_failed(exchange: &Exchange<'_, '_, '_>) -> bool {
    exchange.worker().process.health_check_failed.load(Ordering::Relaxed)
}

/// The answer that depends on how many endpoints of these clusters are well.
fn by_clusters(clusters: &[(Arc<str>, u8)], graph: &Graph) -> LocalReply {
    for (name, least) in clusters {
        let Some(node) = graph.clusters.get(name) else {
            return unhealthy("health_check_failed_no_cluster_found");
        };
        let members = membership(&node.hosts);
        if members.total == 0 && *least > 0 {
            return unhealthy("health_check_failed_cluster_empty");
        }
        if (members.healthy + members.degraded) * 100 < members.total * i64::from(*least) {
            return unhealthy("health_check_failed_cluster_unhealthy");
        }
    }
    healthy(if clusters.is_empty() { "health_check_ok" } else { "health_check_ok_cluster_healthy" })
}

fn healthy(details: &'static str) -> LocalReply {
    let mut reply = LocalReply::new(200, details);
    reply.grpc_status = Some(UNKNOWN);
    reply
}

fn unhealthy(details: &'static str) -> LocalReply {
    LocalReply::new(503, details).flag(ResponseFlag::FailedLocalHealthCheck)
}

/// What an upstream said to a health check.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Said {
    status: u16,
    degraded: bool,
}

impl Said {
    fn reply(self) -> LocalReply {
        let mut reply = LocalReply::new(self.status, "health_check_cached");
        if !(200..300).contains(&self.status) {
            reply.flag = Some(ResponseFlag::FailedLocalHealthCheck);
        } else {
            reply.grpc_status = Some(UNKNOWN);
        }
        if self.degraded {
            reply.header(HeaderId::XEnvoyDegraded.name(), "");
        }
        reply
    }
}

/// What was said last, until the end of a period: all workers forget it at the same time.
#[derive(Debug)]
struct Cache {
    start: Instant,
    /// The period, counted from 1, above 17 bits of [`Said`]; 0 when nothing was said.
    said: AtomicU64,
}

impl Cache {
    fn new(start: Instant) -> Self {
        Self { start, said: AtomicU64::new(0) }
    }

    fn period(&self, now: Instant, time: Duration) -> u64 {
        let periods = now.saturating_duration_since(self.start).as_nanos() / time.as_nanos().max(1);
        u64::try_from(periods).unwrap_or(u64::MAX >> 17) + 1
    }

    fn set(&self, said: Said, now: Instant, time: Duration) {
        let packed = self.period(now, time) << 17 | u64::from(said.status) << 1 | u64::from(said.degraded);
        self.said.store(packed, Ordering::Relaxed);
    }

    fn get(&self, now: Instant, time: Duration) -> Option<Said> {
        let packed = self.said.load(Ordering::Relaxed);
        // Cut to the 16 bits that were put there.
        let said = Said { status: (packed >> 1) as u16, degraded: packed & 1 == 1 };
        (packed >> 17 == self.period(now, time)).then_some(said)
    }
}

/// gRPC's status for what has no other.
const UNKNOWN: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_until_the_period_ends() {
        let start = Instant::now();
        let (second, half) = (Duration::from_secs(1), Duration::from_millis(500));
        let cache = Cache::new(start);
        assert_eq!(cache.get(start, second), None);
        let said = Said { status: 599, degraded: true };
        cache.set(said, start + half, second);
        assert_eq!(cache.get(start + half + half / 2, second), Some(said));
        assert_eq!(cache.get(start + second, second), None);
        assert_eq!(said.reply().flag, Some(ResponseFlag::FailedLocalHealthCheck));
        assert_eq!(said.reply().headers.len(), 1);
    }
}
