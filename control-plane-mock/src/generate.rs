//! Made-up configurations of any size: N clusters with M endpoints each, and a listener with a route to each.
//!
//! Builds messages. Writing them to files is `main`'s, serving them is up to the caller.

use std::net::{Ipv4Addr, SocketAddr};

use outrigger_api::pack;
use outrigger_api::pb::envoy::config::cluster::v3 as cluster;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::endpoint::v3 as endpoint;
use outrigger_api::pb::envoy::config::listener::v3 as listener;
use outrigger_api::pb::envoy::config::route::v3 as route;
use outrigger_api::pb::envoy::extensions::filters::http::router::v3::Router;
use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use outrigger_api::pb::google::protobuf::{Any, Duration, UInt32Value};

/// What to make.
#[derive(Clone, Debug)]
pub struct Generate {
    /// Number of clusters, named `cluster-0` and so on; all take their endpoints by EDS.
    pub clusters: usize,
    /// Endpoints of each cluster.
    pub endpoints: usize,
    /// Real addresses to use in turn; with none, endpoints get distinct addresses in 10.0.0.0/8.
    pub backends: Vec<SocketAddr>,
    /// Port of the listener on 127.0.0.1; `None` makes no listener and no routes.
    pub listener_port: Option<u16>,
}

impl Generate {
    /// All resources: clusters, their endpoints, and if wanted one listener (`generated`) whose route
    /// configuration (`generated`) sends the path prefix `/cluster-N/` to `cluster-N`, and all else to `cluster-0`.
    pub fn resources(&self) -> Vec<Any> {
        let mut resources = Vec::with_capacity(self.clusters * 2 + 2);
        for index in 0..self.clusters {
            resources.push(pack(&eds_cluster(&cluster_name(index))));
            resources.push(pack(&self.assignment(index)));
        }
        if let Some(port) = self.listener_port {
            resources.push(pack(&http_listener("generated", port, "generated")));
            resources.push(pack(&self.routes()));
        }
        resources
    }

    fn assignment(&self, index: usize) -> endpoint::ClusterLoadAssignment {
        let lb_endpoints =
            (0..self.endpoints).map(|number| lb_endpoint(self.address(index * self.endpoints + number))).collect();
        endpoint::ClusterLoadAssignment {
            cluster_name: cluster_name(index),
            endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints, ..Default::default() }],
            ..Default::default()
        }
    }

    fn address(&self, number: usize) -> SocketAddr {
        if !self.backends.is_empty() {
            return self.backends[number % self.backends.len()];
        }
        // 24 bits for the host part, then other ports: distinct as long as there are fewer than 2^24 * 1000.
        let host = u32::try_from(number % (1 << 24)).unwrap_or_default();
        let port = 8000 + u16::try_from((number >> 24) % 1000).unwrap_or_default();
        SocketAddr::from((Ipv4Addr::from(0x0a00_0000 | host), port))
    }

    fn routes(&self) -> route::RouteConfiguration {
        let mut routes: Vec<route::Route> =
            (0..self.clusters).map(|index| prefix_route(&format!("/{}/", cluster_name(index)), index)).collect();
        if self.clusters > 0 {
            routes.push(prefix_route("/", 0));
        }
        route::RouteConfiguration {
            name: "generated".to_owned(),
            virtual_hosts: vec![route::VirtualHost {
                name: "generated".to_owned(),
                domains: vec!["*".to_owned()],
                routes,
                ..Default::default()
            }],
            ..Default::default()
        }
    }
}

fn cluster_name(index: usize) -> String {
    format!("cluster-{index}")
}

fn ads() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource::default(),
        )),
        ..Default::default()
    }
}

fn eds_cluster(name: &str) -> cluster::Cluster {
    cluster::Cluster {
        name: name.to_owned(),
        connect_timeout: Some(Duration { seconds: 1, nanos: 0 }),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Eds.into(),
        )),
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig { eds_config: Some(ads()), ..Default::default() }),
        ..Default::default()
    }
}

fn lb_endpoint(address: SocketAddr) -> endpoint::LbEndpoint {
    endpoint::LbEndpoint {
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(socket_address(address)),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn socket_address(address: SocketAddr) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(address.port().into())),
            ..Default::default()
        })),
    }
}

fn prefix_route(prefix: &str, cluster: usize) -> route::Route {
    route::Route {
        r#match: Some(route::RouteMatch {
            path_specifier: Some(route::route_match::PathSpecifier::Prefix(prefix.to_owned())),
            ..Default::default()
        }),
        action: Some(route::route::Action::Route(route::RouteAction {
            cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster_name(cluster))),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn http_listener(name: &str, port: u16, routes: &str) -> listener::Listener {
    let manager = hcm::HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
            config_source: Some(ads()),
            route_config_name: routes.to_owned(),
        })),
        http_filters: vec![hcm::HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(hcm::http_filter::ConfigType::TypedConfig(pack(&Router::default()))),
            ..Default::default()
        }],
        ..Default::default()
    };
    listener::Listener {
        name: name.to_owned(),
        address: Some(socket_address(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))),
        filter_chains: vec![listener::FilterChain {
            filters: vec![listener::Filter {
                name: "envoy.filters.network.http_connection_manager".to_owned(),
                config_type: Some(listener::filter::ConfigType::TypedConfig(pack(&manager))),
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use outrigger_api::unpack;

    use super::*;
    use crate::types;

    #[test]
    fn there_are_as_many_as_asked_for_and_all_differ() {
        let plan = Generate { clusters: 3, endpoints: 2, backends: Vec::new(), listener_port: Some(0) };
        let resources = plan.resources();
        let count = |type_url: &str| resources.iter().filter(|any| any.type_url == type_url).count();
        assert_eq!((count(types::CLUSTER), count(types::ENDPOINTS)), (3, 3));
        assert_eq!((count(types::LISTENER), count(types::ROUTE)), (1, 1));
        let addresses: BTreeSet<_> = (0..6).map(|number| plan.address(number)).collect();
        assert_eq!(addresses.len(), 6);
        let routes: route::RouteConfiguration = unpack(&resources[7]).unwrap();
        assert_eq!(routes.virtual_hosts[0].routes.len(), 4);
    }

    #[test]
    fn backends_are_used_in_turn() {
        let backends: Vec<SocketAddr> = vec!["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()];
        let plan = Generate { clusters: 1, endpoints: 3, backends: backends.clone(), listener_port: None };
        assert_eq!(plan.address(2), backends[0]);
        assert_eq!(plan.address(3), backends[1]);
        assert_eq!(plan.resources().len(), 2);
    }
}
