//! Reads the HTTP filters of a connection manager.
//!
//! Owns which types exist and their order. Never runs filters.

use std::collections::HashSet;
use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::http::router::v3 as router;
use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;

use super::{HttpFilter, HttpFilterConfig, Router};
use crate::accesslog::access_logs;
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Reads a chain: names are unique, and the last filter is the only terminal one.
pub(super) fn http_filters(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Vec<pb::HttpFilter>,
) -> Parsed<Vec<HttpFilter>> {
    let mut names = HashSet::new();
    let mut filters: Vec<HttpFilter> = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        let at = at.item(index);
        if !wire.name.is_empty() && !names.insert(wire.name.clone()) {
            return Err(at.field("name").reject(format!("{:?} is the name of another filter too", wire.name)));
        }
        let Some(filter) = http_filter(context, &at, wire)? else { continue };
        if let Some(terminal) = filters.iter().find(|filter| filter.config.is_terminal()) {
            return Err(at.reject(format!("stands after the terminal filter {:?}", terminal.name)));
        }
        filters.push(filter);
    }
    match filters.last() {
        Some(last) if last.config.is_terminal() && last.disabled => {
            Err(at.reject(format!("the terminal filter {:?} must not be disabled", last.name)))
        }
        Some(last) if last.config.is_terminal() => Ok(filters),
        Some(last) => Err(at.reject(format!("the last filter {:?} is not terminal, expected a router", last.name))),
        None => Err(at.reject("must not be empty, expected a router at the end")),
    }
}

impl HttpFilterConfig {
    /// Whether it answers or forwards every request, so that nothing can follow.
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::Router(_) => true,
        }
    }
}

/// `None` for an optional filter that does not exist here.
fn http_filter(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::HttpFilter) -> Parsed<Option<HttpFilter>> {
    decide!(wire, at, pb::HttpFilter as "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter" {
        implemented: name, is_optional, disabled, config_type;
        no_effect: ;
        unsupported: ;
    });
    if name.is_empty() {
        return Err(at.field("name").reject("must not be empty"));
    }
    let config = at.field("typed_config");
    let any = match config_type {
        Some(pb::http_filter::ConfigType::TypedConfig(any)) => any,
        Some(pb::http_filter::ConfigType::ConfigDiscovery(_)) if is_optional => return Ok(None),
        Some(pb::http_filter::ConfigType::ConfigDiscovery(_)) => {
            return Err(at.field("config_discovery").unsupported());
        }
        None => return Err(config.reject("is required")),
    };
    // Looked at before a typed struct is unwrapped: an optional filter may have a type that nobody here knows.
    let any = match wire::extension(context, &config, any) {
        Ok(any) => any,
        Err(_) if is_optional => return Ok(None),
        Err(rejection) => return Err(rejection),
    };
    let config = match wire::type_name(&any) {
        "envoy.extensions.filters.http.router.v3.Router" => {
            HttpFilterConfig::Router(Arc::new(Router::parse(context, &config, wire::decode(&config, &any)?)?))
        }
        _ if is_optional => return Ok(None),
        _ => return Err(config.reject(format!("the HTTP filter {:?} is not supported", any.type_url))),
    };
    Ok(Some(HttpFilter { name: name.into(), config, disabled }))
}

impl Router {
    fn parse(context: &Context<'_>, at: &FieldPath<'_>, mut wire: router::Router) -> Parsed<Self> {
        wire::drop_false(&mut wire.reject_connect_request_early_data);
        // Naming the codec and nothing else is what happens without the list.
        if let [only] = wire.upstream_http_filters.as_slice()
            && is_upstream_codec(only)
        {
            wire.upstream_http_filters.clear();
        }
        decide!(wire, at, router::Router as "envoy.extensions.filters.http.router.v3.Router" {
            implemented: upstream_log, upstream_log_options, suppress_envoy_headers, strict_check_headers,
                respect_expected_rq_timeout;
            no_effect: dynamic_stats = "all counters of a cluster exist",
                start_child_span = "nothing is traced yet",
                suppress_grpc_request_failure_code_stats = "there are no counters per gRPC status",
                reject_connect_request_early_data = "CONNECT requests are not forwarded";
            unsupported: upstream_http_filters;
        });
        if let Some(wire) = upstream_log_options {
            let at = at.field("upstream_log_options");
            use router::router::UpstreamAccessLogOptions;
            decide!(wire, at, UpstreamAccessLogOptions as "envoy.extensions.filters.http.router.v3.Router.UpstreamAccessLogOptions" {
                implemented: ;
                no_effect: ;
                unsupported: flush_upstream_log_on_upstream_stream, upstream_log_flush_interval;
            });
        }
        let list = at.field("strict_check_headers");
        for (index, name) in strict_check_headers.iter().enumerate() {
            if !STRICT_CHECK_HEADERS.contains(&name.as_str()) {
                return Err(list
                    .item(index)
                    .reject(format!("{name:?} is not one of {}", STRICT_CHECK_HEADERS.join(", "))));
            }
        }
        Ok(Self {
            suppress_envoy_headers,
            upstream_logs: access_logs(context, &at.field("upstream_log"), upstream_log)?,
            strict_check_headers,
            respect_expected_rq_timeout,
        })
    }
}

fn is_upstream_codec(wire: &pb::HttpFilter) -> bool {
    match &wire.config_type {
        Some(pb::http_filter::ConfigType::TypedConfig(any)) => {
            wire::type_name(any) == "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"
        }
        _ => false,
    }
}

/// Source: `Router.strict_check_headers`.
const STRICT_CHECK_HEADERS: [&str; 5] = [
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-max-retries",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
];
