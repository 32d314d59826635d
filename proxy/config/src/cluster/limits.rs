//! Reading circuit breakers (`envoy.config.cluster.v3.CircuitBreakers`).
//!
//! Owns their defaults. Never counts anything.

use outrigger_api::pb::envoy::config::cluster::v3 as pb;
use outrigger_api::pb::google::protobuf::UInt32Value;

use super::concurrency::PerHost;
use super::{CircuitBreakers, RetryBudget, Thresholds};
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::route::{Priority, priority};
use crate::units::Percent;
use crate::wire;

/// Reads circuit breakers, and the limits on single endpoints; of several thresholds for one priority the first counts.
pub(super) fn circuit_breakers(at: &FieldPath<'_>, wire: pb::CircuitBreakers) -> Parsed<(CircuitBreakers, PerHost)> {
    decide!(wire, at, pb::CircuitBreakers as "envoy.config.cluster.v3.CircuitBreakers" {
        implemented: thresholds, per_host_thresholds;
        no_effect: ;
        unsupported: ;
    });
    let (mut default, mut high) = (None, None);
    let thresholds_at = at.field("thresholds");
    for (index, wire) in thresholds.into_iter().enumerate() {
        let (priority, thresholds) = self::thresholds(&thresholds_at.item(index), wire)?;
        let slot = match priority {
            Priority::Default => &mut default,
            Priority::High => &mut high,
        };
        slot.get_or_insert(thresholds);
    }
    let mut per_host: Option<PerHost> = None;
    let per_host_at = at.field("per_host_thresholds");
    for (index, wire) in per_host_thresholds.into_iter().enumerate() {
        let limits = per_host_limits(&per_host_at.item(index), wire)?;
        per_host.get_or_insert(limits);
    }
    let per_host = per_host.unwrap_or_default();
    let breakers = CircuitBreakers {
        default: default.unwrap_or(DEFAULTS),
        high: high.unwrap_or(DEFAULTS),
        per_host_max_connections: per_host.max_connections,
    };
    Ok((breakers, per_host))
}

fn thresholds(at: &FieldPath<'_>, wire: pb::circuit_breakers::Thresholds) -> Parsed<(Priority, Thresholds)> {
    decide!(wire, at, pb::circuit_breakers::Thresholds as "envoy.config.cluster.v3.CircuitBreakers.Thresholds" {
        implemented: priority, max_connections, max_pending_requests, max_requests, max_retries, retry_budget,
            track_remaining;
        no_effect: max_connection_pools = "a worker has one pool for an endpoint";
        unsupported: ;
    });
    let priority = self::priority(&at.field("priority"), priority)?;
    let or = |value: Option<UInt32Value>, default| value.map_or(default, |value| value.value);
    let thresholds = Thresholds {
        max_connections: or(max_connections, DEFAULTS.max_connections),
        max_pending_requests: or(max_pending_requests, DEFAULTS.max_pending_requests),
        max_requests: or(max_requests, DEFAULTS.max_requests),
        max_retries: or(max_retries, DEFAULTS.max_retries),
        track_remaining,
        retry_budget: match retry_budget {
            None => None,
            Some(budget) => Some(self::retry_budget(&at.field("retry_budget"), budget)?),
        },
    };
    Ok((priority, thresholds))
}

fn retry_budget(at: &FieldPath<'_>, wire: pb::circuit_breakers::thresholds::RetryBudget) -> Parsed<RetryBudget> {
    decide!(wire, at, pb::circuit_breakers::thresholds::RetryBudget
        as "envoy.config.cluster.v3.CircuitBreakers.Thresholds.RetryBudget" {
        implemented: budget_percent, min_retry_concurrency, budget_interval;
        no_effect: ;
        unsupported: ;
    });
    let percent_at = at.field("budget_percent");
    Ok(RetryBudget {
        budget: match budget_percent {
            Some(percent) => wire::percent(&percent_at, percent)?,
            None => Percent::new(DEFAULT_BUDGET_PERCENT).ok_or_else(|| percent_at.reject("is required"))?,
        },
        min_retry_concurrency: min_retry_concurrency.map_or(DEFAULT_MIN_RETRIES, |number| number.value),
        interval: match budget_interval {
            None => None,
            Some(wire) => Some(wire::duration(&at.field("budget_interval"), wire)?).filter(|time| !time.is_zero()),
        },
    })
}

/// The API knows only the limit on connections; that on requests, and how many may wait for the endpoint, are ours.
fn per_host_limits(at: &FieldPath<'_>, wire: pb::circuit_breakers::Thresholds) -> Parsed<PerHost> {
    let pb::circuit_breakers::Thresholds {
        priority,
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget,
        track_remaining,
        max_connection_pools,
    } = wire;
    for (field, set) in [
        ("max_retries", max_retries.is_some()),
        ("retry_budget", retry_budget.is_some()),
        ("track_remaining", track_remaining),
        ("max_connection_pools", max_connection_pools.is_some()),
    ] {
        if set {
            return Err(at.field(field).reject("is not supported in per_host_thresholds"));
        }
    }
    match self::priority(&at.field("priority"), priority)? {
        Priority::Default => Ok(PerHost {
            max_connections: max_connections.map(|limit| limit.value),
            max_requests: max_requests.map(|limit| limit.value),
            max_pending_requests: max_pending_requests.map(|limit| limit.value),
        }),
        Priority::High => Err(at.field("priority").reject("HIGH is not supported in per_host_thresholds")),
    }
}

const DEFAULTS: Thresholds = Thresholds {
    max_connections: 1024,
    max_pending_requests: 1024,
    max_requests: 1024,
    max_retries: 3,
    track_remaining: false,
    retry_budget: None,
};
const DEFAULT_BUDGET_PERCENT: f64 = 20.0;
const DEFAULT_MIN_RETRIES: u32 = 3;
