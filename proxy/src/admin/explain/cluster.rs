//! Where a described request or connection may end up: clusters with their limits, endpoints with their state.
//!
//! Owns the account of both. Never picks an endpoint.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use outrigger_config::cluster::{Discovery, LoadBalancing};
use outrigger_config::route::{ClusterChoice, Forward, Priority};
use outrigger_policy::balance::{Health, HostIndex};
use outrigger_policy::breaker::Resource;

use super::super::tree::{Tree, tree};
use super::route::{duration, targets};
use super::{limit, percent};
use crate::graph::{ClusterNode, TcpNode, facts};
use crate::upstream::admission::shown_of;
use crate::upstream::host::Host;
use crate::worker::GraphView;

/// Endpoints of one cluster that are told of at most.
const TOLD: usize = 50;

/// Where a request goes, and in a sentence.
pub(super) fn of_request(view: &GraphView, forward: &Forward, named: Option<Cow<'_, str>>) -> (Tree, String) {
    let targets = targets(forward, named.as_deref());
    let whole = targets.iter().map(|(_, weight)| weight).sum();
    let shown = targets.iter().map(|(name, weight)| {
        let share = (targets.len() > 1).then(|| percent(*weight, whole));
        let name = match (name, &forward.cluster) {
            (Some(name), _) => name,
            (None, ClusterChoice::Header(header)) => {
                let missing = tree! { "error": format!("no header {header:?} names a cluster") };
                return missing;
            }
            (None, _) => return tree! { "error": "no header names a cluster", "share_percent": share },
        };
        account(view, name, share, forward.priority)
    });
    let shown: Vec<Tree> = shown.collect();
    let goes = match targets.as_slice() {
        [(Some(name), _)] => one(view, name, Some(forward.cluster_not_found_code)),
        [(None, _)] => {
            format!("{} (cluster_not_found), since nothing names a cluster,", forward.cluster_not_found_code)
        }
        many => {
            let total: u64 = many.iter().map(|(_, weight)| weight).sum();
            let parts = many.iter().map(|(name, weight)| {
                let name = name.as_deref().unwrap_or("one that a header names");
                format!("{name:?} ({:.4} %)", *weight as f64 * 100.0 / total.max(1) as f64)
            });
            format!("goes to one of {}", parts.collect::<Vec<_>>().join(", "))
        }
    };
    (Tree::List(shown), goes)
}

/// Where a connection goes, and in a sentence.
pub(super) fn of_session(view: &GraphView, clusters: &[(Arc<str>, u32)]) -> (Tree, String) {
    let whole = clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let shown = clusters.iter().map(|(name, weight)| {
        let share = (clusters.len() > 1).then(|| percent(u64::from(*weight), whole));
        account(view, name, share, Priority::Default)
    });
    let goes = match clusters {
        [(name, _)] => one(view, name, None),
        many => {
            let names: Vec<String> = many.iter().map(|(name, _)| format!("{name:?}")).collect();
            format!("goes to one of {}", names.join(", "))
        }
    };
    (Tree::List(shown.collect()), goes)
}

/// How long a proxied connection may last.
pub(super) fn tcp_limits(node: &TcpNode) -> Tree {
    tree! {
        "stat_prefix": &node.config.stat_prefix,
        "idle_timeout": node.config.idle_timeout.map(duration),
        "max_duration": node.config.max_downstream_connection_duration.map(duration),
        "max_connect_attempts": node.config.max_connect_attempts,
    }
}

fn one(view: &GraphView, name: &str, missing: Option<u16>) -> String {
    let Some(node) = view.clusters.get(name) else {
        return match missing {
            Some(code) => format!("{code} (cluster_not_found), since there is no cluster {name:?},"),
            None => format!("is closed: there is no cluster {name:?}"),
        };
    };
    let hosts = &node.hosts.hosts;
    let usable = hosts.iter().filter(|host| host.shared.flags.health(host.health) != Health::Unhealthy).count();
    match node.hosts.balance {
        None => format!("goes to cluster {name:?}"),
        Some(_) if hosts.is_empty() => format!("fails, since cluster {name:?} has no endpoints,"),
        Some(_) => format!("goes to cluster {name:?} ({usable} of {} endpoints fit)", hosts.len()),
    }
}

fn account(view: &GraphView, name: &str, share: Option<Tree>, priority: Priority) -> Tree {
    let Some(node) = view.clusters.get(name) else {
        return tree! { "name": name, "share_percent": share, "error": "there is no such cluster" };
    };
    let config = &node.config;
    let (breaker, thresholds) = match priority {
        Priority::Default => (&node.shared.default, &config.circuit_breakers.default),
        Priority::High => (&node.shared.high, &config.circuit_breakers.high),
    };
    let used = |resource| limit(breaker.usage(resource), breaker.limit(resource, thresholds, facts::now()));
    let limits = tree! {
        "connections": used(Resource::Connection),
        "pending_requests": used(Resource::PendingRequest),
        "requests": used(Resource::Request),
        "retries": used(Resource::Retry),
    };
    let queue =
        node.shared.gate_if_used().map(|gate| tree! { "in_flight": gate.in_flight(), "waiting": gate.waiting() });
    let hosts = &node.hosts.hosts;
    let endpoints = (0..).map(HostIndex).zip(hosts).take(TOLD).map(|(index, host)| endpoint(node, index, host));
    tree! {
        "name": name,
        "share_percent": share,
        "discovery": discovery(&config.discovery),
        "policy": policy(&config.load_balancing),
        "members": match &config.discovery {
            Discovery::Aggregate(members) => Tree::list(members.iter()),
            _ => Tree::Nothing,
        },
        "connect_timeout": duration(config.connect_timeout),
        "limits": limits,
        "queue": queue,
        "endpoints": Tree::List(endpoints.collect()),
        "endpoints_in_all": (hosts.len() > TOLD).then_some(hosts.len()),
    }
}

/// An endpoint and its state.
pub(in super::super) fn endpoint(node: &ClusterNode, index: HostIndex, host: &Host) -> Tree {
    let health = match host.shared.flags.health(host.health) {
        Health::Healthy => "healthy",
        Health::Degraded => "degraded",
        Health::Unhealthy => "unhealthy",
        Health::Excluded => "excluded",
    };
    let places = shown_of(node, index, host);
    let locality = &host.locality;
    let place = [&locality.region, &locality.zone, &locality.sub_zone].map(|part| part.as_str()).join("/");
    tree! {
        "address": host.address.to_string(),
        "hostname": (!host.hostname.is_empty()).then_some(&host.hostname),
        "health": health,
        "flags": host.shared.flags.text(host.health),
        "weight": host.weight,
        "priority": host.priority,
        "locality": (place.len() > 2).then_some(place),
        "connections": host.shared.connections.load(Ordering::Relaxed),
        "requests": places.map(|places| places.in_flight),
        "request_limit": places.and_then(|places| places.limit),
        "waiting": places.map(|places| places.waiting),
    }
}

fn discovery(discovery: &Discovery) -> &'static str {
    match discovery {
        Discovery::Static(_) => "static",
        Discovery::StrictDns { .. } => "strict DNS",
        Discovery::LogicalDns { .. } => "logical DNS",
        Discovery::Eds { .. } => "EDS",
        Discovery::OriginalDst(_) => "original destination",
        Discovery::Aggregate(_) => "aggregate",
        Discovery::DynamicForward(_) => "dynamic forward proxy",
    }
}

fn policy(policy: &LoadBalancing) -> &'static str {
    match policy {
        LoadBalancing::RoundRobin => "round robin",
        LoadBalancing::LeastRequest { .. } => "least request",
        LoadBalancing::PeakEwma(_) => "peak EWMA",
        LoadBalancing::Reported => "reported weights",
        LoadBalancing::Random => "random",
        LoadBalancing::PickFirst { .. } => "pick first",
        LoadBalancing::RingHash { .. } => "ring hash",
        LoadBalancing::Maglev { .. } => "maglev",
        LoadBalancing::ClusterProvided => "by the cluster type",
    }
}
