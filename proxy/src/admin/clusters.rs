//! `/clusters`: clusters and their hosts, as text and as `envoy.admin.v3.Clusters`.
//!
//! Owns both forms. One cluster is written at a time. Never changes a cluster.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

use http::StatusCode;
use outrigger_api::pb::envoy::admin::v3 as pb;
use outrigger_api::pb::envoy::config::cluster::v3 as cluster_pb;
use outrigger_api::pb::envoy::config::core::v3::RoutingPriority;
use outrigger_api::pb::envoy::r#type::v3::Percent;
use outrigger_api::pb::google::protobuf::UInt32Value;
use outrigger_config::cluster::{Discovery, Thresholds};
use outrigger_policy::balance::HostIndex;
use outrigger_policy::outlier::Averages;
use outrigger_xds::ResourceKind;
use regex::Regex;

use super::context::AdminContext;
use super::dump_endpoints::{address, health, locality};
use super::pretty::{Member, ObjectWriter, message};
use super::request::Request;
use super::response::{JSON, Response, TEXT};
use crate::graph::{BreakerLimits, ClusterNode};
use crate::health::{HealthFlag, Shown as OutlierRates};
use crate::upstream::admission::{Shown, shown_of};
use crate::upstream::host::Host;

/// All clusters, or those whose names match `filter`.
pub(super) fn clusters(context: &AdminContext, request: &Request) -> Response {
    let filter = match request.parameter("filter").map(Regex::new) {
        None => None,
        Some(Ok(filter)) => Some(filter),
        Some(Err(error)) => return Response::text(StatusCode::BAD_REQUEST, format!("Invalid re2 regex: {error}\n")),
    };
    let graph = context.process.graph.load();
    let mut clusters: Vec<Arc<ClusterNode>> = graph.clusters.values().cloned().collect();
    clusters.retain(|cluster| filter.as_ref().is_none_or(|filter| filter.is_match(&cluster.config.name)));
    clusters.sort_by(|a, b| a.config.name.cmp(&b.config.name));
    let resources = context.configuration.resources(ResourceKind::Cluster);
    let dynamic: BTreeSet<Arc<str>> =
        resources.into_iter().filter(|(_, history)| !history.is_static).map(|(name, _)| name).collect();
    let runtime = Arc::clone(&graph.runtime);
    if request.parameter("format") == Some("json") {
        let statuses = clusters.into_iter().map(move |cluster| {
            let added = dynamic.contains(&cluster.config.name);
            message(&status(&cluster, added, BreakerLimits::of(&cluster.config, &runtime)))
        });
        let writer = ObjectWriter::new(0, vec![Member::List("cluster_statuses", Box::new(statuses))]);
        return Response::stream(JSON, writer.chain(["\n".to_owned()]));
    }
    let texts = clusters.into_iter().map(move |cluster| {
        let limits = BreakerLimits::of(&cluster.config, &runtime);
        text(&cluster, dynamic.contains(&cluster.config.name), limits)
    });
    Response::stream(TEXT, texts)
}

fn text(cluster: &ClusterNode, added_via_api: bool, limits: BreakerLimits) -> String {
    let config = &cluster.config;
    let name = &config.name;
    let mut out = String::new();
    let _ = writeln!(out, "{name}::observability_name::{}", config.stat_name);
    let shown = cluster.outlier.as_ref().map(|outlier| outlier.shown());
    if let Some(shown) = &shown {
        for (prefix, averages) in [("", shown.external), ("local_origin_", shown.local)] {
            let average = significant(averages.map_or(-1.0, |averages| averages.mean));
            let threshold = significant(averages.map_or(-1.0, |averages| averages.threshold));
            let _ = writeln!(out, "{name}::outlier::{prefix}success_rate_average::{average}");
            let _ = writeln!(out, "{name}::outlier::{prefix}success_rate_ejection_threshold::{threshold}");
        }
    }
    for (priority, thresholds) in [("default", &limits.default), ("high", &limits.high)] {
        for (limit, value) in [
            ("max_connections", thresholds.max_connections),
            ("max_pending_requests", thresholds.max_pending_requests),
            ("max_requests", thresholds.max_requests),
            ("max_retries", thresholds.max_retries),
        ] {
            let _ = writeln!(out, "{name}::{priority}_priority::{limit}::{value}");
        }
    }
    let _ = writeln!(out, "{name}::added_via_api::{added_via_api}");
    if let Discovery::Eds { service_name, .. } = &config.discovery
        && service_name != name
    {
        let _ = writeln!(out, "{name}::eds_service_name::{service_name}");
    }
    if let Some(gate) = cluster.shared.gate_if_used() {
        let _ = writeln!(out, "{name}::queue::in_flight::{}", gate.in_flight());
        let _ = writeln!(out, "{name}::queue::waiting::{}", gate.waiting());
    }
    for (index, host) in (0..).map(HostIndex).zip(&cluster.hosts.hosts) {
        for (metric, value) in places(cluster, index, host).into_iter().chain(by_hand(host)) {
            let _ = writeln!(out, "{name}::{}::{metric}::{value}", host.address);
        }
        host_text(&mut out, name, host, shown.as_ref());
    }
    out
}

/// What is told of an endpoint whose requests are limited.
fn places(cluster: &ClusterNode, index: HostIndex, host: &Host) -> Vec<(&'static str, i64)> {
    let Some(Shown { in_flight, limit, waiting }) = shown_of(cluster, index, host) else { return Vec::new() };
    let limit = limit.map(|limit| ("rq_limit", i64::from(limit)));
    let mut metrics = vec![("rq_in_flight", i64::from(in_flight)), ("rq_queued", i64::from(waiting))];
    metrics.extend(limit);
    metrics
}

/// What an operator has changed of an endpoint.
fn by_hand(host: &Host) -> impl Iterator<Item = (&'static str, i64)> {
    let weight = host.shared.weight_by_hand().map(|weight| ("override_weight", i64::from(weight)));
    let limit = host.shared.limit_by_hand().map(|limit| ("override_rq_limit", i64::from(limit)));
    weight.into_iter().chain(limit)
}

/// A number with six significant digits, as C's `%g` prints those of percentages.
fn significant(value: f64) -> String {
    let whole = value.abs().max(1.0).log10().floor() as usize + 1;
    let text = format!("{value:.*}", 6_usize.saturating_sub(whole));
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

fn rates(host: &Host, shown: Option<&OutlierRates>) -> (Option<f64>, Option<f64>) {
    shown.map(|shown| shown.rates_of(&host.shared)).unwrap_or_default()
}

fn host_text(out: &mut String, cluster: &str, host: &Host, shown: Option<&OutlierRates>) {
    let address = &host.address;
    let mut totals = host.shared.totals();
    totals.sort_by_key(|(name, _, _)| *name);
    for (name, value, _) in totals {
        let _ = writeln!(out, "{cluster}::{address}::{name}::{value}");
    }
    let (external, local) = rates(host, shown);
    // -1 says that no success rate was measured.
    let rate = |rate: Option<f64>| rate.unwrap_or(-1.0).to_string();
    for (name, value) in [
        ("hostname", host.hostname.to_string()),
        ("health_flags", host.shared.flags.text(host.health)),
        ("weight", host.weight.to_string()),
        ("region", host.locality.region.clone()),
        ("zone", host.locality.zone.clone()),
        ("sub_zone", host.locality.sub_zone.clone()),
        ("canary", host.is_canary().to_string()),
        ("priority", host.priority.to_string()),
        ("success_rate", rate(external)),
        ("local_origin_success_rate", rate(local)),
    ] {
        let _ = writeln!(out, "{cluster}::{address}::{name}::{value}");
    }
}

fn status(cluster: &ClusterNode, added_via_api: bool, limits: BreakerLimits) -> pb::ClusterStatus {
    let config = &cluster.config;
    let eds_service_name = match &config.discovery {
        Discovery::Eds { service_name, .. } if *service_name != config.name => service_name.to_string(),
        _ => String::new(),
    };
    let shown = cluster.outlier.as_ref().map(|outlier| outlier.shown());
    let threshold_of = |averages: Option<Averages>| percent(averages.map(|averages| averages.threshold));
    pb::ClusterStatus {
        name: config.name.to_string(),
        added_via_api,
        success_rate_ejection_threshold: threshold_of(shown.as_ref().and_then(|shown| shown.external)),
        host_statuses: (0..)
            .map(HostIndex)
            .zip(&cluster.hosts.hosts)
            .map(|(index, host)| host_status(places(cluster, index, host), host, shown.as_ref()))
            .collect(),
        local_origin_success_rate_ejection_threshold: threshold_of(shown.as_ref().and_then(|shown| shown.local)),
        circuit_breakers: Some(cluster_pb::CircuitBreakers {
            thresholds: vec![
                threshold(RoutingPriority::Default, &limits.default),
                threshold(RoutingPriority::High, &limits.high),
            ],
            per_host_thresholds: Vec::new(),
        }),
        observability_name: config.stat_name.to_string(),
        eds_service_name,
    }
}

fn threshold(priority: RoutingPriority, thresholds: &Thresholds) -> cluster_pb::circuit_breakers::Thresholds {
    cluster_pb::circuit_breakers::Thresholds {
        priority: priority.into(),
        max_connections: Some(UInt32Value { value: thresholds.max_connections }),
        max_pending_requests: Some(UInt32Value { value: thresholds.max_pending_requests }),
        max_requests: Some(UInt32Value { value: thresholds.max_requests }),
        max_retries: Some(UInt32Value { value: thresholds.max_retries }),
        ..Default::default()
    }
}

/// A threshold may lie below zero, which is no percentage.
fn percent(value: Option<f64>) -> Option<Percent> {
    value.filter(|value| *value >= 0.0).map(|value| Percent { value })
}

fn health_status(host: &Host) -> pb::HostHealthStatus {
    let has = |flag| host.shared.flags.has(flag);
    pb::HostHealthStatus {
        failed_active_health_check: has(HealthFlag::FailedActiveCheck),
        failed_outlier_check: has(HealthFlag::FailedOutlierCheck),
        failed_active_degraded_check: has(HealthFlag::DegradedActiveCheck),
        pending_dynamic_removal: has(HealthFlag::PendingRemoval),
        pending_active_hc: has(HealthFlag::PendingActiveCheck),
        excluded_via_immediate_hc_fail: has(HealthFlag::Excluded),
        active_hc_timeout: has(HealthFlag::ActiveCheckTimeout),
        failed_degraded_outlier_detection: has(HealthFlag::DegradedOutlierCheck),
        eds_health_status: health(host.health).into(),
    }
}

fn host_status(places: Vec<(&'static str, i64)>, host: &Host, shown: Option<&OutlierRates>) -> pb::HostStatus {
    let (external, local) = rates(host, shown);
    let metric = |(name, value, is_gauge): (&str, i64, bool)| {
        let kind = if is_gauge { pb::simple_metric::Type::Gauge } else { pb::simple_metric::Type::Counter };
        // A gauge that other threads are changing may be caught below zero for a moment.
        pb::SimpleMetric { r#type: kind.into(), value: value.max(0) as u64, name: name.to_owned() }
    };
    pb::HostStatus {
        address: Some(address(&host.address)),
        stats: host
            .shared
            .totals()
            .into_iter()
            .chain(places.into_iter().chain(by_hand(host)).map(|(name, value)| (name, value, true)))
            .map(metric)
            .collect(),
        health_status: Some(health_status(host)),
        success_rate: percent(external),
        weight: host.weight,
        hostname: host.hostname.to_string(),
        priority: host.priority,
        local_origin_success_rate: percent(local),
        locality: Some(locality(&host.locality)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_six_significant_digits() {
        let texts = [-1.0, 100.0, 0.0, 90.5, 99.123_456_7, 5.000_001, -12.345_678].map(significant);
        assert_eq!(texts, ["-1", "100", "0", "90.5", "99.1235", "5", "-12.3457"]);
    }
}
