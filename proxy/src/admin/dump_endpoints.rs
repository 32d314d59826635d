//! The endpoints in `/config_dump?include_eds`.
//!
//! Owns how the hosts of a cluster become a `ClusterLoadAssignment` again. Discovered assignments are shown as received.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core_pb;
use outrigger_api::pb::envoy::config::endpoint::v3 as pb;
use outrigger_api::pb::google::protobuf::UInt32Value;
use outrigger_config::address::Address;
use outrigger_config::cluster::{Discovery, HealthStatus, Locality};
use outrigger_xds::ResourceKind;
use regex::Regex;
use serde_json::Value;

use super::context::AdminContext;
use super::dump_sections::{Section, SectionMember, dynamic, many};
use super::pretty::message;
use crate::graph::ClusterNode;
use crate::graph::history::ResourceHistory;
use crate::upstream::host::Host;

const STATIC_ENDPOINTS: &[&str] = &["endpoint_config", "last_updated"];
const DYNAMIC_ENDPOINTS: &[&str] = &["version_info", "endpoint_config", "last_updated", "error_state", "client_status"];

/// The section of endpoints; `discovered` are assignments as received.
pub(super) fn section(
    context: &AdminContext,
    discovered: Vec<(Arc<str>, ResourceHistory)>,
    filter: Option<&Regex>,
) -> Section {
    let from_bootstrap: BTreeMap<Arc<str>, bool> = context
        .configuration
        .resources(ResourceKind::Cluster)
        .into_iter()
        .map(|(name, history)| (name, history.is_static))
        .collect();
    let mut fixed = Vec::new();
    let mut moving = Vec::new();
    let graph = context.process.graph.load();
    let mut clusters: Vec<&Arc<ClusterNode>> = graph.clusters.values().collect();
    clusters.sort_by(|a, b| a.config.name.cmp(&b.config.name));
    for cluster in clusters {
        let is_discovered = matches!(cluster.config.discovery, Discovery::Eds { .. });
        if is_discovered || filter.is_some_and(|filter| !filter.is_match(&cluster.config.name)) {
            continue;
        }
        let is_static = from_bootstrap.get(&cluster.config.name).copied().unwrap_or(true);
        if is_static { &mut fixed } else { &mut moving }.push(Arc::clone(cluster));
    }
    let of_hosts = |clusters: Vec<Arc<ClusterNode>>| {
        clusters.into_iter().map(|cluster| serde_json::json!({ "endpoint_config": assignment(&cluster) }))
    };
    let received = many("", &[], discovered, |_, history| {
        dynamic(history, history.active.as_ref().or(history.warming.as_ref()), "endpoint_config")
    });
    let received: Box<dyn Iterator<Item = Value>> = match received {
        SectionMember::Many { values, .. } => values,
        SectionMember::One(_) => Box::new(std::iter::empty()),
    };
    let fixed = SectionMember::Many {
        element: "EndpointsConfigDump.StaticEndpointConfig",
        fields: STATIC_ENDPOINTS,
        values: Box::new(of_hosts(fixed)),
    };
    let moving = SectionMember::Many {
        element: "EndpointsConfigDump.DynamicEndpointConfig",
        fields: DYNAMIC_ENDPOINTS,
        values: Box::new(received.chain(of_hosts(moving))),
    };
    let members = vec![("static_endpoint_configs", fixed), ("dynamic_endpoint_configs", moving)];
    Section { kind: "EndpointsConfigDump", members }
}

/// The hosts of a cluster as an assignment, as an `Any` is shown.
fn assignment(cluster: &ClusterNode) -> Value {
    let mut localities: Vec<(u32, &Locality, Vec<pb::LbEndpoint>)> = Vec::new();
    for host in &cluster.hosts.hosts {
        let at = localities.iter().position(|(priority, at, _)| *priority == host.priority && **at == *host.locality);
        let at = at.unwrap_or_else(|| {
            localities.push((host.priority, &host.locality, Vec::new()));
            localities.len() - 1
        });
        localities[at].2.push(endpoint(host));
    }
    let endpoints = localities.into_iter().map(|(priority, at, lb_endpoints)| pb::LocalityLbEndpoints {
        locality: Some(locality(at)),
        lb_endpoints,
        priority,
        ..Default::default()
    });
    let assignment = pb::ClusterLoadAssignment {
        cluster_name: cluster.config.name.to_string(),
        endpoints: endpoints.collect(),
        ..Default::default()
    };
    message(&outrigger_api::pack(&assignment))
}

fn endpoint(host: &Host) -> pb::LbEndpoint {
    let endpoint = pb::Endpoint {
        address: Some(address(&host.address)),
        hostname: host.hostname.to_string(),
        ..Default::default()
    };
    pb::LbEndpoint {
        host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(endpoint)),
        health_status: health(host.health).into(),
        load_balancing_weight: Some(UInt32Value { value: host.weight }),
        ..Default::default()
    }
}

/// As the API writes it.
pub(super) fn locality(locality: &Locality) -> core_pb::Locality {
    let Locality { region, zone, sub_zone } = locality.clone();
    core_pb::Locality { region, zone, sub_zone }
}

/// What nobody says anything about is healthy.
pub(super) fn health(health: HealthStatus) -> core_pb::HealthStatus {
    match health {
        HealthStatus::Unknown | HealthStatus::Healthy => core_pb::HealthStatus::Healthy,
        HealthStatus::Unhealthy => core_pb::HealthStatus::Unhealthy,
        HealthStatus::Draining => core_pb::HealthStatus::Draining,
        HealthStatus::Timeout => core_pb::HealthStatus::Timeout,
        HealthStatus::Degraded => core_pb::HealthStatus::Degraded,
    }
}

/// As the API writes it.
pub(super) fn address(address: &Address) -> core_pb::Address {
    use core_pb::address::Address as Kind;
    let kind = match address {
        Address::Ip(socket) => Kind::SocketAddress(core_pb::SocketAddress {
            address: socket.ip().to_string(),
            port_specifier: Some(core_pb::socket_address::PortSpecifier::PortValue(socket.port().into())),
            ..Default::default()
        }),
        Address::Pipe { path, mode } => {
            Kind::Pipe(core_pb::Pipe { path: path.to_string_lossy().into_owned(), mode: *mode })
        }
        Address::Internal(internal) => Kind::EnvoyInternalAddress(core_pb::EnvoyInternalAddress {
            address_name_specifier: Some(core_pb::envoy_internal_address::AddressNameSpecifier::ServerListenerName(
                internal.listener.to_string(),
            )),
            endpoint_id: internal.endpoint.to_string(),
        }),
    };
    core_pb::Address { address: Some(kind) }
}
