//! Pieces of Envoy-format YAML that scenarios are made of. All are flow YAML, so that they nest without indentation.

use std::fmt::Display;

/// Listeners and clusters as a static bootstrap.
pub fn bootstrap(listeners: &[String], clusters: &[String]) -> String {
    let list = |items: &[String]| items.iter().map(|item| format!("\n  - {item}")).collect::<String>();
    format!(
        "node: {{ id: proxy-under-test, cluster: tests }}\nstatic_resources:\n  listeners:{}\n  clusters:{}\n",
        if listeners.is_empty() { " []".to_owned() } else { list(listeners) },
        if clusters.is_empty() { " []".to_owned() } else { list(clusters) },
    )
}

/// A listener on a free port of 127.0.0.1 with these filter chains and further fields (`, name: value`).
pub fn listener(name: &str, chains: &[String], more: &str) -> String {
    listener_at(name, "127.0.0.1", 0, chains, more)
}

/// The same on a given address.
pub fn listener_at(name: &str, address: &str, port: u16, chains: &[String], more: &str) -> String {
    format!(
        "{{ name: {name}, address: {{ socket_address: {{ address: '{address}', port_value: {port} }} }}, \
         filter_chains: [{}]{more} }}",
        chains.join(", ")
    )
}

/// A filter chain with one filter and further fields (`, name: value`).
pub fn chain(filter: &str, more: &str) -> String {
    format!("{{ filters: [{filter}]{more} }}")
}

/// An HTTP connection manager with further fields (`, name: value`), which include where its routes come from.
pub fn http(stat_prefix: &str, more: &str) -> String {
    format!(
        "{{ name: envoy.filters.network.http_connection_manager, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: {stat_prefix}, http_filters: [{{ name: envoy.filters.http.router, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}]{more} }} }}"
    )
}

/// Inline routes of one virtual host for all domains, as a field for [`http`].
pub fn routes(routes: &str) -> String {
    format!(", route_config: {{ name: local, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{routes}] }}] }}")
}

/// A route of all paths to a cluster.
pub fn all_to(cluster: &str) -> String {
    format!("{{ match: {{ prefix: / }}, route: {{ cluster: {cluster} }} }}")
}

/// Routes from the control plane over ADS, as a field for [`http`].
pub fn rds(name: &str) -> String {
    format!(", rds: {{ route_config_name: {name}, config_source: {ADS} }}")
}

/// The config source of everything that comes over ADS.
pub const ADS: &str = "{ ads: {}, resource_api_version: V3 }";

/// A TCP proxy to a cluster.
pub fn tcp(cluster: &str) -> String {
    tcp_with(&format!("cluster: {cluster}"))
}

/// A TCP proxy with these fields.
pub fn tcp_with(fields: &str) -> String {
    format!(
        "{{ name: envoy.filters.network.tcp_proxy, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, \
         stat_prefix: tcp, {fields} }} }}"
    )
}

/// An access log in a file of the proxy's directory, as a field: code, flags, details, protocol and path of each request.
pub fn access_log(file: &str) -> String {
    access_log_of(file, "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %PROTOCOL% %REQ(:PATH)%")
}

/// An access log of this format.
pub fn access_log_of(file: &str, format: &str) -> String {
    format!(
        ", access_log: [{{ name: envoy.access_loggers.file, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: '$dir/{file}', \
         log_format: {{ text_format_source: {{ inline_string: \"{format}\\n\" }} }} }} }}]"
    )
}

/// A static cluster of endpoints on 127.0.0.1 that speaks HTTP/1.1.
pub fn cluster(name: &str, ports: &[u16]) -> String {
    cluster_with(name, ports, "")
}

/// The same with further fields (`, name: value`).
pub fn cluster_with(name: &str, ports: &[u16], more: &str) -> String {
    format!("{{ name: {name}, type: STATIC, connect_timeout: 5s, load_assignment: {}{more} }}", endpoints(name, ports))
}

/// Upstream protocol options that ask for HTTP/2, as a field for [`cluster_with`].
pub const HTTP2: &str = ", typed_extension_protocol_options: { \
    envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \
    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
    explicit_http_config: { http2_protocol_options: {} } } }";

/// A static cluster that speaks HTTP/2.
pub fn http2_cluster(name: &str, ports: &[u16]) -> String {
    cluster_with(name, ports, HTTP2)
}

/// A cluster whose endpoints come over ADS.
pub fn eds_cluster(name: &str) -> String {
    format!("{{ name: {name}, type: EDS, connect_timeout: 5s, eds_cluster_config: {{ eds_config: {ADS} }} }}")
}

/// Endpoints on 127.0.0.1.
pub fn endpoints(cluster: &str, ports: &[u16]) -> String {
    let one = |port: &u16| {
        format!("{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}")
    };
    let all: Vec<String> = ports.iter().map(one).collect();
    format!("{{ cluster_name: {cluster}, endpoints: [{{ lb_endpoints: [{}] }}] }}", all.join(", "))
}

/// A resource for the control plane: one of the above with its type in front.
pub fn resource(kind: &str, body: &str) -> String {
    let message = match kind {
        "cds" => "envoy.config.cluster.v3.Cluster",
        "eds" => "envoy.config.endpoint.v3.ClusterLoadAssignment",
        "lds" => "envoy.config.listener.v3.Listener",
        "rds" => "envoy.config.route.v3.RouteConfiguration",
        "sds" => "envoy.extensions.transport_sockets.tls.v3.Secret",
        other => other,
    };
    let rest = body.trim_start().strip_prefix('{').expect("a flow mapping");
    format!("{{ '@type': type.googleapis.com/{message}, {rest}")
}

/// Several resources as one document.
pub fn resources(all: &[String]) -> String {
    format!("resources: [{}]", all.join(",\n"))
}

/// A route configuration of one virtual host for all domains.
pub fn route_configuration(name: &str, routes: &str) -> String {
    format!("{{ name: {name}, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{routes}] }}] }}")
}

/// How a proxy asks its control plane.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Xds {
    /// All types on one stream, state of the world.
    AdsSotw,
    /// All types on one stream, delta.
    AdsDelta,
}

/// A bootstrap that takes listeners and clusters from a control plane over ADS.
pub fn ads_bootstrap(how: Xds, control_plane_port: impl Display) -> String {
    let api_type = match how {
        Xds::AdsSotw => "GRPC",
        Xds::AdsDelta => "DELTA_GRPC",
    };
    format!(
        "node: {{ id: proxy-under-test, cluster: tests }}
dynamic_resources:
  ads_config:
    api_type: {api_type}
    transport_api_version: V3
    grpc_services: [{{ envoy_grpc: {{ cluster_name: xds }} }}]
  cds_config: {ADS}
  lds_config: {ADS}
{}",
        xds_cluster(control_plane_port)
    )
}

/// Config source of one stream per type.
pub fn stream_source(api_type: &str) -> String {
    format!(
        "{{ resource_api_version: V3, api_config_source: {{ api_type: {api_type}, transport_api_version: V3, \
         grpc_services: [{{ envoy_grpc: {{ cluster_name: xds }} }}] }} }}"
    )
}

/// A bootstrap that takes listeners and clusters from these sources.
pub fn dynamic_bootstrap(source: &str, control_plane_port: impl Display) -> String {
    format!(
        "node: {{ id: proxy-under-test, cluster: tests }}\ndynamic_resources:\n  cds_config: {source}\n  lds_config: {source}\n{}",
        xds_cluster(control_plane_port)
    )
}

fn xds_cluster(port: impl Display) -> String {
    format!(
        "static_resources:\n  clusters:\n  - {{ name: xds, type: STATIC, connect_timeout: 1s, load_assignment: {{ \
         cluster_name: xds, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ \
         address: 127.0.0.1, port_value: {port} }} }} }} }}] }}] }}{HTTP2} }}\n"
    )
}
