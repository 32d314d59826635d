//! Listeners with many filter chains.

use outrigger_api::pb::envoy::config::listener::v3::Listener;
use serde_json::{Value, json};

/// The server name that a filter chain is for.
pub fn server_name(chain: usize) -> String {
    format!("service-{chain}.example.org")
}

/// A listener whose filter chains are chosen by server name, each with a connection manager and its routes.
pub fn listener(chains: usize) -> Listener {
    crate::message(&json!({
        "name": "inbound",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15006}},
        "listener_filters": [{"name": "tls_inspector", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}}],
        "filter_chains": (0..chains).map(filter_chain).collect::<Vec<_>>(),
    }))
}

fn filter_chain(number: usize) -> Value {
    json!({
        "name": format!("chain-{number}"),
        "filter_chain_match": {"server_names": [server_name(number)], "transport_protocol": "raw_buffer"},
        "filters": [{"name": "http", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": format!("inbound_{number}"),
            "route_config": {
                "name": format!("routes-{number}"),
                "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                    {"match": {"path": "/healthz"}, "direct_response": {"status": 200}},
                    {"match": {"prefix": "/"}, "route": {"cluster": format!("cluster-{number}"), "timeout": "15s"}},
                ]}],
            },
            "http_filters": [{"name": "router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        }}],
    })
}
