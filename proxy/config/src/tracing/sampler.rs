//! Reads samplers of OpenTelemetry (`envoy.tracers.opentelemetry.samplers`).
//!
//! Owns which ones there are. Never samples.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::outrigger::trace_v1 as own;
use outrigger_api::pb::cel::expr as portable;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::tracers::opentelemetry::samplers::v3 as pb;
use outrigger_api::pb::google::api::expr::v1alpha1 as expr;
use outrigger_api::pb::xds::r#type::v3 as xds;
use prost::Message as _;

use super::{Sampler, Tail};
use crate::cel::{self, Expression};
use crate::context::Context;
use crate::decide::decide;
use crate::network::TokenBucket;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Reads the sampler of a provider, and what decides once more at the end.
pub(super) fn sampler(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: core::TypedExtensionConfig,
) -> Parsed<(Option<Sampler>, Option<Tail>)> {
    let core::TypedExtensionConfig { name: _, typed_config } = &wire;
    let typed = at.field("typed_config");
    let Some(any) = typed_config else { return Err(typed.reject("is required")) };
    let any = wire::extension(context, &typed, any.clone())?;
    if wire::type_name(&any) != "outrigger.trace.v1.TailSampler" {
        return Ok((Some(head(context, at, wire, MAX_NESTING)?), None));
    }
    tail(context, &typed, wire::decode(&typed, &any)?)
}

fn tail(context: &Context<'_>, at: &FieldPath<'_>, wire: own::TailSampler) -> Parsed<(Option<Sampler>, Option<Tail>)> {
    decide!(wire, at, own::TailSampler as "outrigger.trace.v1.TailSampler" {
        implemented: wrapped_sampler, errors, slow, bytes_per_minute;
        no_effect: ;
        unsupported: ;
    });
    let inner = match wrapped_sampler {
        Some(wire) => Some(head(context, &at.field("wrapped_sampler"), wire, MAX_NESTING)?),
        None => None,
    };
    let bytes = wire::number_within(&at.field("bytes_per_minute"), bytes_per_minute, 1..=u32::MAX)?;
    let bytes = bytes.unwrap_or(DEFAULT_BYTES_PER_MINUTE);
    let tail = Tail {
        errors: errors.is_none_or(|flag| flag.value),
        slow: slow.map(|wire| wire::positive_duration(&at.field("slow"), wire)).transpose()?,
        budget: TokenBucket { max_tokens: bytes, tokens_per_fill: bytes, fill_interval: Duration::from_secs(60) },
    };
    Ok((inner, Some(tail)))
}

/// Reads a sampler that decides at the beginning.
fn head(context: &Context<'_>, at: &FieldPath<'_>, wire: core::TypedExtensionConfig, nesting: u32) -> Parsed<Sampler> {
    let core::TypedExtensionConfig { name: _, typed_config } = wire;
    let at = at.field("typed_config");
    let Some(any) = typed_config else { return Err(at.reject("is required")) };
    let any = wire::extension(context, &at, any)?;
    match wire::type_name(&any) {
        "envoy.extensions.tracers.opentelemetry.samplers.v3.AlwaysOnSamplerConfig" => {
            let pb::AlwaysOnSamplerConfig {} = wire::decode(&at, &any)?;
            Ok(Sampler::AlwaysOn)
        }
        "envoy.extensions.tracers.opentelemetry.samplers.v3.TraceIdRatioBasedSamplerConfig" => {
            let pb::TraceIdRatioBasedSamplerConfig { sampling_percentage } = wire::decode(&at, &any)?;
            let at = at.field("sampling_percentage");
            match sampling_percentage {
                Some(wire) => Ok(Sampler::TraceIdRatio(wire::fraction(&at, wire)?)),
                None => Err(at.reject("is required")),
            }
        }
        "envoy.extensions.tracers.opentelemetry.samplers.v3.ParentBasedSamplerConfig" => {
            let pb::ParentBasedSamplerConfig { wrapped_sampler } = wire::decode(&at, &any)?;
            let at = at.field("wrapped_sampler");
            match wrapped_sampler {
                Some(_) if nesting == 0 => Err(at.reject("is nested too deeply")),
                Some(wire) => Ok(Sampler::ParentBased(Box::new(head(context, &at, wire, nesting - 1)?))),
                None => Err(at.reject("is required")),
            }
        }
        "envoy.extensions.tracers.opentelemetry.samplers.v3.CELSamplerConfig" => {
            let pb::CelSamplerConfig { expression } = wire::decode(&at, &any)?;
            Ok(Sampler::Expression(Arc::new(self::expression(&at.field("expression"), expression)?)))
        }
        _ => Err(at.reject(format!("the sampler {:?} is not supported", any.type_url))),
    }
}

/// Reads an expression in any of its forms; of several, the first counts. Envoy refuses those that are text.
fn expression(at: &FieldPath<'_>, wire: Option<xds::CelExpression>) -> Parsed<Expression> {
    let Some(wire) = wire else { return Err(at.reject("is required")) };
    decide!(wire, at, xds::CelExpression as "xds.type.v3.CelExpression" {
        implemented: cel_expr_string, cel_expr_checked, cel_expr_parsed, expr_specifier;
        no_effect: ;
        unsupported: ;
    });
    if !cel_expr_string.is_empty() {
        return Expression::parse(&cel_expr_string).map_err(|why| at.field("cel_expr_string").reject(why));
    }
    if let Some(portable::CheckedExpr { expr, reference_map: _, type_map: _, source_info: _, expr_version: _ }) =
        cel_expr_checked
    {
        return tree(&at.field("cel_expr_checked").field("expr"), same(at, expr)?);
    }
    if let Some(portable::ParsedExpr { expr, source_info: _ }) = cel_expr_parsed {
        return tree(&at.field("cel_expr_parsed").field("expr"), same(at, expr)?);
    }
    use xds::cel_expression::ExprSpecifier;
    match expr_specifier {
        Some(ExprSpecifier::CheckedExpr(wire)) => cel::checked(&at.field("checked_expr"), wire),
        Some(ExprSpecifier::ParsedExpr(expr::ParsedExpr { expr, source_info: _ })) => {
            tree(&at.field("parsed_expr").field("expr"), expr)
        }
        None => Err(at.reject("needs an expression")),
    }
}

fn tree(at: &FieldPath<'_>, wire: Option<expr::Expr>) -> Parsed<Expression> {
    match wire {
        Some(wire) => cel::parsed(at, wire),
        None => Err(at.reject("is required")),
    }
}

/// A tree under its older name: `cel.expr` is a copy of `google.api.expr.v1alpha1`, field by field.
fn same(at: &FieldPath<'_>, wire: Option<portable::Expr>) -> Parsed<Option<expr::Expr>> {
    let again = |wire: portable::Expr| expr::Expr::decode(&*wire.encode_to_vec());
    wire.map(again).transpose().map_err(|error| at.reject(error.to_string()))
}

/// Samplers in samplers.
const MAX_NESTING: u32 = 8;
/// Of spans that are kept though nobody chose them.
const DEFAULT_BYTES_PER_MINUTE: u32 = 1024 * 1024;
