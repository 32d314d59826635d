//! The router filter (`envoy.extensions.filters.http.router.v3.Router`).
//!
//! Owns its settings. Never forwards anything.

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::http::router::v3 as router;

use super::{UpstreamFilters, upstream_filters};
use crate::accesslog::{AccessLog, access_logs};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Source: `envoy.extensions.filters.http.router.v3.Router`.
#[derive(Clone, Debug, Default)]
pub struct Router {
    /// No x-envoy-* headers are added to requests or responses.
    pub suppress_envoy_headers: bool,
    /// Written for every try.
    pub upstream_logs: Vec<Arc<AccessLog>>,
    /// They are written when a try has a connection, too.
    pub log_on_upstream_stream: bool,
    /// Headers checked for valid values (`strict_check_headers`), lower case.
    pub strict_check_headers: Vec<String>,
    /// x-envoy-expected-rq-timeout-ms of an earlier hop is respected.
    pub respect_expected_rq_timeout: bool,
    /// Each try has a span of its own, as with `HttpConnectionManager.Tracing.spawn_upstream_span`.
    pub start_child_span: bool,
    /// What each try passes through once its endpoint was chosen, unless its cluster says something else.
    pub upstream_filters: Option<Arc<UpstreamFilters>>,
}

impl Router {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, mut wire: router::Router) -> Parsed<Self> {
        wire::drop_false(&mut wire.reject_connect_request_early_data);
        decide!(wire, at, router::Router as "envoy.extensions.filters.http.router.v3.Router" {
            implemented: upstream_log, upstream_log_options, suppress_envoy_headers, strict_check_headers,
                respect_expected_rq_timeout, start_child_span, upstream_http_filters;
            no_effect: dynamic_stats = "all counters of a cluster exist",
                suppress_grpc_request_failure_code_stats = "there are no counters per gRPC status";
            unsupported: reject_connect_request_early_data;
        });
        let mut log_on_upstream_stream = false;
        if let Some(wire) = upstream_log_options {
            let at = at.field("upstream_log_options");
            use router::router::UpstreamAccessLogOptions;
            decide!(wire, at, UpstreamAccessLogOptions as "envoy.extensions.filters.http.router.v3.Router.UpstreamAccessLogOptions" {
                implemented: flush_upstream_log_on_upstream_stream;
                no_effect: ;
                unsupported: upstream_log_flush_interval;
            });
            log_on_upstream_stream = flush_upstream_log_on_upstream_stream;
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
            log_on_upstream_stream,
            strict_check_headers,
            respect_expected_rq_timeout,
            start_child_span,
            upstream_filters: upstream_filters(context, &at.field("upstream_http_filters"), upstream_http_filters)?,
        })
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
