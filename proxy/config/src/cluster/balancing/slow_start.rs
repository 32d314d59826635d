//! Reading slow start (`SlowStartConfig`).
//!
//! Owns the checks of its numbers, in the cluster's fields and in extensions. Never knows when an endpoint began.

use outrigger_api::pb::envoy::config::cluster::v3::cluster as pb;
use outrigger_api::pb::envoy::config::core::v3::RuntimeDouble;
use outrigger_api::pb::envoy::extensions::load_balancing_policies::common::v3 as extensions;
use outrigger_api::pb::envoy::r#type::v3::Percent as WirePercent;
use outrigger_api::pb::google::protobuf::Duration as WireDuration;

use super::SlowStart;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::units::Percent;
use crate::wire;

/// Reads a field of the cluster.
pub(super) fn slow_start(at: &FieldPath<'_>, wire: Option<pb::SlowStartConfig>) -> Parsed<Option<SlowStart>> {
    let Some(wire) = wire else { return Ok(None) };
    decide!(wire, at, pb::SlowStartConfig as "envoy.config.cluster.v3.Cluster.SlowStartConfig" {
        implemented: slow_start_window, aggression, min_weight_percent;
        no_effect: ;
        unsupported: ;
    });
    checked(at, slow_start_window, aggression, min_weight_percent)
}

/// Reads a field of an extension.
pub(super) fn extension_slow_start(
    at: &FieldPath<'_>,
    wire: Option<extensions::SlowStartConfig>,
) -> Parsed<Option<SlowStart>> {
    let Some(wire) = wire else { return Ok(None) };
    decide!(wire, at, extensions::SlowStartConfig
        as "envoy.extensions.load_balancing_policies.common.v3.SlowStartConfig" {
        implemented: slow_start_window, aggression, min_weight_percent;
        no_effect: ;
        unsupported: ;
    });
    checked(at, slow_start_window, aggression, min_weight_percent)
}

/// Without a window there is no slow start.
fn checked(
    at: &FieldPath<'_>,
    window: Option<WireDuration>,
    aggression: Option<RuntimeDouble>,
    min_weight: Option<WirePercent>,
) -> Parsed<Option<SlowStart>> {
    let aggression = match aggression {
        None => 1.0,
        Some(wire) => runtime_double(&at.field("aggression"), wire, |value| value > 0.0, "above 0")?,
    };
    let min_weight = match min_weight {
        None => Percent::new(DEFAULT_MIN_WEIGHT_PERCENT).unwrap_or(Percent::ALL),
        Some(wire) => wire::percent(&at.field("min_weight_percent"), wire)?,
    };
    let window = wire::limit(&at.field("slow_start_window"), window, None)?;
    Ok(window.map(|window| SlowStart { window, aggression, min_weight }))
}

/// Reads a finite number that `fits`.
pub(super) fn runtime_double(
    at: &FieldPath<'_>,
    wire: RuntimeDouble,
    fits: impl Fn(f64) -> bool,
    wanted: &str,
) -> Parsed<f64> {
    decide!(wire, at, RuntimeDouble as "envoy.config.core.v3.RuntimeDouble" {
        implemented: default_value;
        no_effect: runtime_key = "the default value counts, runtime does not change it";
        unsupported: ;
    });
    if !(default_value.is_finite() && fits(default_value)) {
        return Err(at.field("default_value").reject(format!("{default_value} must be {wanted}")));
    }
    Ok(default_value)
}

const DEFAULT_MIN_WEIGHT_PERCENT: f64 = 10.0;
