//! Requests that no endpoint gets, so that the endpoints recover (`ClusterLoadAssignment.Policy.drop_overloads`), or because
//! the runtime says that a cluster is under maintenance.
//!
//! Owns the choice of which, and their answer. Never looks at endpoints.

use outrigger_config::units::Fraction;

use super::count_local_reply;
use super::prepare::suppresses_envoy_headers;
use crate::http::manager::reply::LocalReply;
use crate::http::manager::request::{Chosen, Request, send_local};
use crate::stream::ResponseFlag;
use crate::upstream::clusters::WorkerCluster;
use crate::worker::GraphView;

/// Runtime may set a limit to the share, in percent.
const LIMIT_KEY: &str = "load_balancing_policy.drop_overload_limit";

/// Whether a request is among the share that is dropped. `random` is evenly distributed.
pub fn holds(share: Fraction, graph: &GraphView, random: u64) -> bool {
    let limit = graph.runtime.integer(LIMIT_KEY);
    limit.map_or(share, |limit| smaller(share, limit)).holds(random)
}

/// The smaller of a share and a limit in percent.
fn smaller(share: Fraction, limit: u64) -> Fraction {
    let (numerator, denominator) = share.parts();
    let limit = limit.min(100) * u64::from(denominator) / 100;
    Fraction::new(numerator.min(limit as u32), denominator).unwrap_or(share)
}

/// Answers it.
pub async fn answer(request: &mut Request<'_>, chosen: &Chosen<'_>, cluster: &WorkerCluster) {
    cluster.stats.upstream_rq_drop_overload.increment();
    let mut reply = LocalReply::new(503, "drop_overload").flag(ResponseFlag::DropOverload).body(&b"drop overload"[..]);
    if !suppresses_envoy_headers(request) {
        reply.header("x-envoy-drop-overload", "true");
    }
    count_local_reply(request, cluster, reply.status);
    send_local(request, reply, Some(chosen)).await;
}

/// Answers a request to a cluster that is under maintenance.
pub async fn answer_for_maintenance(request: &mut Request<'_>, chosen: &Chosen<'_>, cluster: &WorkerCluster) {
    cluster.stats.upstream_rq_maintenance_mode.increment();
    let reply = LocalReply::new(503, "maintenance_mode").flag(ResponseFlag::UpstreamOverflow);
    let mut reply = reply.body(&b"maintenance mode"[..]);
    reply.overloaded = !suppresses_envoy_headers(request);
    count_local_reply(request, cluster, reply.status);
    send_local(request, reply, Some(chosen)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_of_share_and_limit_counts() {
        let share = Fraction::new(400_000, 1_000_000).unwrap();
        assert_eq!(smaller(share, 10).parts(), (100_000, 1_000_000));
        assert_eq!(smaller(share, 90).parts(), (400_000, 1_000_000));
        assert_eq!(smaller(share, 1000).parts(), (400_000, 1_000_000));
        assert!(!smaller(share, 0).holds(0));
    }
}
