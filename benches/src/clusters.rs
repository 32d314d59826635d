//! Clusters and their endpoints.

use std::net::Ipv4Addr;

use outrigger_api::pb::envoy::config::cluster::v3::Cluster;
use outrigger_api::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use serde_json::{Value, json};

/// The name of a cluster.
pub fn name(number: u32) -> String {
    format!("cluster-{number}")
}

/// A static cluster, as a mesh would send it.
pub fn cluster(number: u32, endpoints: u32) -> Cluster {
    crate::message(&json!({
        "name": name(number),
        "type": "STATIC",
        "connect_timeout": "5s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [{"max_connections": 1000, "max_requests": 2000}]},
        "load_assignment": endpoint_list(number, endpoints),
    }))
}

/// The endpoints of a cluster, as EDS sends them.
pub fn assignment(number: u32, endpoints: u32) -> ClusterLoadAssignment {
    crate::message(&endpoint_list(number, endpoints))
}

fn endpoint_list(cluster: u32, endpoints: u32) -> Value {
    let endpoint = |index: u32| {
        // All different, in 10.0.0.0/8.
        let address = Ipv4Addr::from(0x0a00_0001 + cluster * endpoints + index).to_string();
        json!({
            "endpoint": {"address": {"socket_address": {"address": address, "port_value": 8080}}},
            "load_balancing_weight": index % 3 + 1,
        })
    };
    json!({
        "cluster_name": name(cluster),
        "endpoints": [{
            "locality": {"region": "r", "zone": "z"},
            "lb_endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
        }],
    })
}
