//! Reads the Zipkin provider (`envoy.config.trace.v3.ZipkinConfig`).
//!
//! Owns its fields. Never sends anything.

use std::time::Duration;

use outrigger_api::pb::envoy::config::trace::v3 as pb;

use super::http_service::{http_service, parts};
use super::{HttpService, Zipkin, ZipkinEncoding};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Reads the provider.
pub(super) fn provider(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::ZipkinConfig) -> Parsed<Zipkin> {
    decide!(wire, at, pb::ZipkinConfig as "envoy.config.trace.v3.ZipkinConfig" {
        implemented: collector_cluster, collector_endpoint, trace_id_128bit, shared_span_context,
            collector_endpoint_version, collector_hostname, trace_context_option, collector_service,
            timestamp_trace_ids, split_spans_for_request;
        no_effect: ;
        unsupported: ;
    });
    use pb::zipkin_config::{CollectorEndpointVersion, TraceContextOption};
    let version_at = at.field("collector_endpoint_version");
    let encoding = match CollectorEndpointVersion::try_from(collector_endpoint_version) {
        Ok(CollectorEndpointVersion::HttpJson) => ZipkinEncoding::Json,
        Ok(CollectorEndpointVersion::HttpProto) => ZipkinEncoding::Proto,
        Ok(CollectorEndpointVersion::DeprecatedAndUnavailableDoNotUse | CollectorEndpointVersion::Grpc) => {
            return Err(version_at.reject("expected HTTP_JSON or HTTP_PROTO"));
        }
        Err(_) => return Err(wire::unknown_enum(&version_at, collector_endpoint_version)),
    };
    let option_at = at.field("trace_context_option");
    let w3c = match TraceContextOption::try_from(trace_context_option) {
        Ok(TraceContextOption::UseB3) => false,
        Ok(TraceContextOption::UseB3WithW3cPropagation) => true,
        Err(_) => return Err(wire::unknown_enum(&option_at, trace_context_option)),
    };
    let collector = match collector_service {
        // The newer form wins, as in Envoy.
        Some(wire) => self::http_service(context, &at.field("collector_service"), wire)?,
        None => older_collector(at, collector_cluster, &collector_endpoint, collector_hostname)?,
    };
    Ok(Zipkin {
        collector,
        encoding,
        trace_id_128bit,
        shared_span_context: shared_span_context.is_none_or(|flag| flag.value),
        w3c,
        timestamp_trace_ids,
        own_hop: split_spans_for_request,
    })
}

fn older_collector(at: &FieldPath<'_>, cluster: String, endpoint: &str, hostname: String) -> Parsed<HttpService> {
    if cluster.is_empty() {
        return Err(at.field("collector_cluster").reject("must not be empty without collector_service"));
    }
    let endpoint_at = at.field("collector_endpoint");
    if !endpoint.starts_with('/') {
        return Err(endpoint_at.reject(format!("{endpoint:?} is not a path")));
    }
    let (_, path) = parts(&endpoint_at, endpoint, &cluster)?;
    wire::header_value(&at.field("collector_hostname"), &hostname)?;
    let host = if hostname.is_empty() { cluster.clone() } else { hostname };
    Ok(HttpService { cluster: cluster.into(), host, path, timeout: DEFAULT_TIMEOUT, headers: Vec::new() })
}

/// Source: the default of the runtime key `tracing.zipkin.request_timeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
