//! Reads what connection managers, routes and the bootstrap say about tracing.
//!
//! Owns the shares and the choice of a provider. Never reads what is inside a provider.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::route::v3 as route;
use outrigger_api::pb::envoy::config::trace::v3 as trace;
use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as parts;
use outrigger_api::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use outrigger_api::pb::envoy::r#type::v3 as types;

use super::custom_tag::custom_tags;
use super::{Decorator, HttpTracing, RequestIdTracing, RouteTrace, RouteTracing, Sampling, TraceProvider};
use super::{opentelemetry, zipkin};
use crate::context::Context;
use crate::decide::decide;
use crate::format::Format;
use crate::rejection::{FieldPath, Parsed};
use crate::units::Fraction;
use crate::wire;

/// Reads the tracing of a connection manager.
pub(crate) fn http_tracing(context: &Context<'_>, at: &FieldPath<'_>, wire: parts::Tracing) -> Parsed<HttpTracing> {
    use parts::Tracing;
    decide!(wire, at, Tracing as "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing" {
        implemented: client_sampling, random_sampling, overall_sampling, verbose, max_path_tag_length, custom_tags,
            provider, spawn_upstream_span, operation, upstream_operation, no_context_propagation;
        no_effect: ;
        unsupported: ;
    });
    // Envoy cuts the client's share down to whole percents and rounds the others to hundredths.
    let client = percent(&at.field("client_sampling"), client_sampling)?;
    let random = percent(&at.field("random_sampling"), random_sampling)?;
    let overall = percent(&at.field("overall_sampling"), overall_sampling)?;
    let hundredths = |percent: f64| Fraction::new((percent * 100.0).round() as u32, 10_000).unwrap_or(Fraction::ALWAYS);
    let whole = Fraction::new(client as u32, 100).unwrap_or(Fraction::ALWAYS);
    Ok(HttpTracing {
        provider: match provider {
            Some(wire) => Some(self::provider(context, &at.field("provider"), wire)?),
            None => None,
        },
        sampling: Sampling::new(whole, hundredths(random), hundredths(overall)),
        verbose,
        max_path_tag_length: max_path_tag_length.map_or(DEFAULT_PATH_BYTES, |limit| limit.value as usize),
        custom_tags: self::custom_tags(context, &at.field("custom_tags"), custom_tags)?,
        spawn_upstream_span: spawn_upstream_span.is_some_and(|flag| flag.value),
        no_context_propagation,
        operation: format(context, &at.field("operation"), &operation)?,
        upstream_operation: format(context, &at.field("upstream_operation"), &upstream_operation)?,
    })
}

/// Reads the decorator and the tracing of a route.
pub(crate) fn route_trace(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    decorator: Option<route::Decorator>,
    tracing: Option<route::Tracing>,
) -> Parsed<Option<Box<RouteTrace>>> {
    if decorator.is_none() && tracing.is_none() {
        return Ok(None);
    }
    let decorator = match decorator {
        Some(wire) => Some(self::decorator(&at.field("decorator"), wire)?),
        None => None,
    };
    let tracing = match tracing {
        Some(wire) => Some(route_tracing(context, &at.field("tracing"), wire)?),
        None => None,
    };
    Ok(Some(Box::new(RouteTrace { decorator, tracing })))
}

fn decorator(at: &FieldPath<'_>, wire: route::Decorator) -> Parsed<Decorator> {
    decide!(wire, at, route::Decorator as "envoy.config.route.v3.Decorator" {
        implemented: operation, propagate;
        no_effect: ;
        unsupported: ;
    });
    let operation_at = at.field("operation");
    if operation.is_empty() {
        return Err(operation_at.reject("must not be empty"));
    }
    wire::header_value(&operation_at, &operation)?;
    Ok(Decorator { operation: operation.into(), propagate: propagate.is_none_or(|flag| flag.value) })
}

fn route_tracing(context: &Context<'_>, at: &FieldPath<'_>, wire: route::Tracing) -> Parsed<RouteTracing> {
    decide!(wire, at, route::Tracing as "envoy.config.route.v3.Tracing" {
        implemented: client_sampling, random_sampling, overall_sampling, custom_tags, operation, upstream_operation;
        no_effect: ;
        unsupported: ;
    });
    let share = |field: &'static str, wire: Option<types::FractionalPercent>| match wire {
        Some(wire) => wire::fraction(&at.field(field), wire),
        None => Ok(Fraction::ALWAYS),
    };
    Ok(RouteTracing {
        sampling: Sampling::new(
            share("client_sampling", client_sampling)?,
            share("random_sampling", random_sampling)?,
            share("overall_sampling", overall_sampling)?,
        ),
        custom_tags: self::custom_tags(context, &at.field("custom_tags"), custom_tags)?,
        operation: format(context, &at.field("operation"), &operation)?,
        upstream_operation: format(context, &at.field("upstream_operation"), &upstream_operation)?,
    })
}

/// Reads the provider of those who name none.
pub(crate) fn bootstrap_provider(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<trace::Tracing>,
) -> Parsed<Option<Arc<TraceProvider>>> {
    let Some(wire) = wire else { return Ok(None) };
    decide!(wire, at, trace::Tracing as "envoy.config.trace.v3.Tracing" {
        implemented: http;
        no_effect: ;
        unsupported: ;
    });
    http.map(|wire| provider(context, &at.field("http"), wire)).transpose()
}

fn provider(context: &Context<'_>, at: &FieldPath<'_>, wire: trace::tracing::Http) -> Parsed<Arc<TraceProvider>> {
    use trace::tracing::Http;
    decide!(wire, at, Http as "envoy.config.trace.v3.Tracing.Http" {
        implemented: config_type;
        no_effect: name = "the type of the configuration says which provider it is";
        unsupported: ;
    });
    let at = at.field("typed_config");
    let Some(trace::tracing::http::ConfigType::TypedConfig(any)) = config_type else {
        return Err(at.reject("is required"));
    };
    let any = wire::extension(context, &at, any)?;
    Ok(Arc::new(match wire::type_name(&any) {
        "envoy.config.trace.v3.OpenTelemetryConfig" => {
            TraceProvider::OpenTelemetry(opentelemetry::provider(context, &at, wire::decode(&at, &any)?)?)
        }
        "envoy.config.trace.v3.ZipkinConfig" => {
            TraceProvider::Zipkin(zipkin::provider(context, &at, wire::decode(&at, &any)?)?)
        }
        _ => {
            return Err(at.reject(format!(
                "the tracing provider {:?} is not supported, expected OpenTelemetryConfig or ZipkinConfig",
                any.type_url
            )));
        }
    }))
}

/// Reads what request ids are used for. Only the default extension exists.
pub(crate) fn request_id(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<pb::RequestIdExtension>,
) -> Parsed<RequestIdTracing> {
    let Some(any) = wire.and_then(|pb::RequestIdExtension { typed_config }| typed_config) else {
        return Ok(RequestIdTracing::default());
    };
    let at = at.field("typed_config");
    let any = wire::extension(context, &at, any)?;
    if wire::type_name(&any) != "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig" {
        return Err(at.reject(format!("the request id extension {:?} is not supported", any.type_url)));
    }
    let wire: UuidRequestIdConfig = wire::decode(&at, &any)?;
    decide!(wire, at, UuidRequestIdConfig as "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig" {
        implemented: pack_trace_reason, use_request_id_for_trace_sampling;
        no_effect: ;
        unsupported: ;
    });
    Ok(RequestIdTracing {
        pack_trace_reason: pack_trace_reason.is_none_or(|flag| flag.value),
        decides: use_request_id_for_trace_sampling.is_none_or(|flag| flag.value),
    })
}

fn percent(at: &FieldPath<'_>, wire: Option<types::Percent>) -> Parsed<f64> {
    wire.map_or(Ok(100.0), |wire| wire::percent(at, wire).map(|percent| percent.value()))
}

/// Reads a format; empty ones count as absent.
fn format(context: &Context<'_>, at: &FieldPath<'_>, text: &str) -> Parsed<Option<Format>> {
    if text.is_empty() {
        return Ok(None);
    }
    Format::parse_with_environment(context.environment(), at, text).map(Some)
}

/// Source: `HttpConnectionManager.Tracing.max_path_tag_length`.
const DEFAULT_PATH_BYTES: usize = 256;
