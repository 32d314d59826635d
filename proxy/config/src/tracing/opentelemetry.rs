//! Reads the OpenTelemetry provider (`envoy.config.trace.v3.OpenTelemetryConfig`).
//!
//! Owns its fields and its samplers. Never samples or sends.

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::trace::v3 as pb;
use outrigger_api::pb::envoy::extensions::tracers::opentelemetry::samplers::v3 as samplers;

use super::http_service::http_service;
use super::resource::resource;
use super::{OpenTelemetry, OtlpExporter, Sampler};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::{source, wire};

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
        (Some(wire), None) => Some(OtlpExporter::Grpc(source::grpc_service(context, &at.field("grpc_service"), wire)?)),
        (None, Some(wire)) => Some(OtlpExporter::Http(self::http_service(context, &at.field("http_service"), wire)?)),
        (None, None) => None,
    };
    let service_name = match service_name.is_empty() {
        true => DEFAULT_SERVICE_NAME.to_owned(),
        false => service_name,
    };
    let named = set_service_name_resource_attribute.is_none_or(|flag| flag.value);
    let at_detectors = at.field("resource_detectors");
    Ok(OpenTelemetry {
        exporter,
        resource: resource(context, &at_detectors, named.then_some(service_name), resource_detectors)?,
        sdk_attributes: set_telemetry_sdk_resource_attributes.is_none_or(|flag| flag.value),
        instrumentation_scope: set_instrumentation_scope.is_none_or(|flag| flag.value),
        sampler: match sampler {
            Some(wire) => Some(self::sampler(context, &at.field("sampler"), wire, MAX_NESTING)?),
            None => None,
        },
        max_waiting: max_cache_size.map_or(DEFAULT_MAX_WAITING, |size| (size.value as usize).max(1)),
    })
}

fn sampler(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: core::TypedExtensionConfig,
    nesting: u32,
) -> Parsed<Sampler> {
    let core::TypedExtensionConfig { name: _, typed_config } = wire;
    let at = at.field("typed_config");
    let Some(any) = typed_config else { return Err(at.reject("is required")) };
    let any = wire::extension(context, &at, any)?;
    match wire::type_name(&any) {
        "envoy.extensions.tracers.opentelemetry.samplers.v3.AlwaysOnSamplerConfig" => {
            let samplers::AlwaysOnSamplerConfig {} = wire::decode(&at, &any)?;
            Ok(Sampler::AlwaysOn)
        }
        "envoy.extensions.tracers.opentelemetry.samplers.v3.TraceIdRatioBasedSamplerConfig" => {
            let samplers::TraceIdRatioBasedSamplerConfig { sampling_percentage } = wire::decode(&at, &any)?;
            let at = at.field("sampling_percentage");
            match sampling_percentage {
                Some(wire) => Ok(Sampler::TraceIdRatio(wire::fraction(&at, wire)?)),
                None => Err(at.reject("is required")),
            }
        }
        "envoy.extensions.tracers.opentelemetry.samplers.v3.ParentBasedSamplerConfig" => {
            let samplers::ParentBasedSamplerConfig { wrapped_sampler } = wire::decode(&at, &any)?;
            let at = at.field("wrapped_sampler");
            match wrapped_sampler {
                Some(_) if nesting == 0 => Err(at.reject("is nested too deeply")),
                Some(wire) => Ok(Sampler::ParentBased(Box::new(sampler(context, &at, wire, nesting - 1)?))),
                None => Err(at.reject("is required")),
            }
        }
        _ => Err(at.reject(format!("the sampler {:?} is not supported", any.type_url))),
    }
}

/// Source: `OpenTelemetryConfig.service_name`.
const DEFAULT_SERVICE_NAME: &str = "unknown_service:envoy";
/// Source: `OpenTelemetryConfig.max_cache_size`.
const DEFAULT_MAX_WAITING: usize = 1024;
/// Samplers in samplers.
const MAX_NESTING: u32 = 8;
