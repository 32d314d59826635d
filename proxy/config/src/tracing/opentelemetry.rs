//! Reads the OpenTelemetry provider (`envoy.config.trace.v3.OpenTelemetryConfig`).
//!
//! Owns its fields. Never samples (see `sampler`) or sends.

use outrigger_api::pb::envoy::config::trace::v3 as pb;

use super::http_service::http_service;
use super::resource::resource;
use super::sampler::sampler;
use super::{OpenTelemetry, OtlpExporter};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::source;

/// Reads the provider.
pub(super) fn provider(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: pb::OpenTelemetryConfig,
) -> Parsed<OpenTelemetry> {
    decide!(wire, at, pb::OpenTelemetryConfig as "envoy.config.trace.v3.OpenTelemetryConfig" {
        implemented: grpc_service, http_service, service_name, resource_detectors, sampler, max_cache_size,
            set_telemetry_sdk_resource_attributes, set_service_name_resource_attribute, set_instrumentation_scope;
        no_effect: ;
        unsupported: exporter;
    });
    let exporter = match (grpc_service, http_service) {
        (Some(_), Some(_)) => {
            return Err(at.field("http_service").reject("must not be set together with grpc_service"));
        }
        (Some(wire), None) => OtlpExporter::Grpc(source::grpc_service(context, &at.field("grpc_service"), wire)?),
        (None, Some(wire)) => OtlpExporter::Http(self::http_service(context, &at.field("http_service"), wire)?),
        (None, None) => return Err(at.reject("needs one of grpc_service, http_service")),
    };
    let service_name = match service_name.is_empty() {
        true => DEFAULT_SERVICE_NAME.to_owned(),
        false => service_name,
    };
    let named = set_service_name_resource_attribute.is_none_or(|flag| flag.value);
    let (sampler, tail) = match sampler {
        Some(wire) => self::sampler(context, &at.field("sampler"), wire)?,
        None => (None, None),
    };
    let at_detectors = at.field("resource_detectors");
    Ok(OpenTelemetry {
        exporter,
        resource: resource(context, &at_detectors, named.then_some(service_name), resource_detectors)?,
        sdk_attributes: set_telemetry_sdk_resource_attributes.is_none_or(|flag| flag.value),
        instrumentation_scope: set_instrumentation_scope.is_none_or(|flag| flag.value),
        sampler,
        tail,
        max_waiting: max_cache_size.map_or(DEFAULT_MAX_WAITING, |size| (size.value as usize).max(1)),
    })
}

/// Source: `OpenTelemetryConfig.service_name`.
const DEFAULT_SERVICE_NAME: &str = "unknown_service:envoy";
/// Source: `OpenTelemetryConfig.max_cache_size`.
const DEFAULT_MAX_WAITING: usize = 1024;
