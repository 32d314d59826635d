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
use outrigger_api::pb::google::protobuf::UInt32Value;
use outrigger_config::cluster::{Discovery, HealthStatus, Thresholds};
use outrigger_xds::ResourceKind;
use regex::Regex;

use super::context::AdminContext;
use super::dump_endpoints::{address, health, locality};
use super::pretty::{Member, ObjectWriter, message};
use super::request::Request;
use super::response::{JSON, Response, TEXT};
use crate::graph::ClusterNode;
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
    if request.parameter("format") == Some("json") {
        let statuses = clusters.into_iter().map(move |cluster| {
            let added = dynamic.contains(&cluster.config.name);
            message(&status(&cluster, added))
        });
        let writer = ObjectWriter::new(0, vec![Member::List("cluster_statuses", Box::new(statuses))]);
        return Response::stream(JSON, writer.chain(["\n".to_owned()]));
    }
    let texts = clusters.into_iter().map(move |cluster| text(&cluster, dynamic.contains(&cluster.config.name)));
    Response::stream(TEXT, texts)
}

fn text(cluster: &ClusterNode, added_via_api: bool) -> String {
    let config = &cluster.config;
    let name = &config.name;
    let mut out = String::new();
    let _ = writeln!(out, "{name}::observability_name::{}", config.stat_name);
    for (priority, thresholds) in
        [("default", &config.circuit_breakers.default), ("high", &config.circuit_breakers.high)]
    {
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
    for host in &cluster.hosts.hosts {
        host_text(&mut out, name, host);
    }
    out
}

fn host_text(out: &mut String, cluster: &str, host: &Host) {
    let address = &host.address;
    let mut totals = host.shared.totals();
    totals.sort_by_key(|(name, _, _)| *name);
    for (name, value, _) in totals {
        let _ = writeln!(out, "{cluster}::{address}::{name}::{value}");
    }
    let flags = match host.health {
        HealthStatus::Unknown | HealthStatus::Healthy => "healthy",
        HealthStatus::Unhealthy => "/failed_eds_health",
        HealthStatus::Degraded => "/degraded_eds_health",
        HealthStatus::Draining => "/eds_status_draining",
        HealthStatus::Timeout => "/eds_status_timeout",
    };
    for (name, value) in [
        ("hostname", host.hostname.to_string()),
        ("health_flags", flags.to_owned()),
        ("weight", host.weight.to_string()),
        ("region", host.locality.region.clone()),
        ("zone", host.locality.zone.clone()),
        ("sub_zone", host.locality.sub_zone.clone()),
        // No endpoint here is a canary by its metadata, and no success rate is measured: -1 says so.
        ("canary", "false".to_owned()),
        ("priority", host.priority.to_string()),
        ("success_rate", "-1".to_owned()),
        ("local_origin_success_rate", "-1".to_owned()),
    ] {
        let _ = writeln!(out, "{cluster}::{address}::{name}::{value}");
    }
}

fn status(cluster: &ClusterNode, added_via_api: bool) -> pb::ClusterStatus {
    let config = &cluster.config;
    let breakers = &config.circuit_breakers;
    let eds_service_name = match &config.discovery {
        Discovery::Eds { service_name, .. } if *service_name != config.name => service_name.to_string(),
        _ => String::new(),
    };
    pb::ClusterStatus {
        name: config.name.to_string(),
        added_via_api,
        success_rate_ejection_threshold: None,
        host_statuses: cluster.hosts.hosts.iter().map(|host| host_status(host)).collect(),
        local_origin_success_rate_ejection_threshold: None,
        circuit_breakers: Some(cluster_pb::CircuitBreakers {
            thresholds: vec![
                threshold(RoutingPriority::Default, &breakers.default),
                threshold(RoutingPriority::High, &breakers.high),
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

fn host_status(host: &Host) -> pb::HostStatus {
    let metric = |(name, value, is_gauge): (&str, i64, bool)| {
        let kind = if is_gauge { pb::simple_metric::Type::Gauge } else { pb::simple_metric::Type::Counter };
        // A gauge that other threads are changing may be caught below zero for a moment.
        pb::SimpleMetric { r#type: kind.into(), value: value.max(0) as u64, name: name.to_owned() }
    };
    pb::HostStatus {
        address: Some(address(&host.address)),
        stats: host.shared.totals().into_iter().map(metric).collect(),
        health_status: Some(pb::HostHealthStatus {
            eds_health_status: health(host.health).into(),
            ..Default::default()
        }),
        success_rate: None,
        weight: host.weight,
        hostname: host.hostname.to_string(),
        priority: host.priority,
        local_origin_success_rate: None,
        locality: Some(locality(&host.locality)),
    }
}
