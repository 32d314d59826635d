//! Clusters and the connections to their endpoints: aggregate clusters, dynamic forward proxies, DNS, PROXY protocol, and
//! what connections are made with.

mod aggregate;
mod connections;
mod forward_proxy;
mod http_proxy;
mod instead_of_routes;
mod names;
mod preconnect;
mod proxy_protocol;
mod transports;

/// The fields of a resolver that asks this server only.
pub fn resolver(port: u16) -> String {
    format!(
        "typed_dns_resolver_config: {{ name: envoy.network.dns_resolver.cares, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, \
         resolvers: [{{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}], \
         dns_resolver_options: {{ no_default_search_domain: true }} }} }}"
    )
}
