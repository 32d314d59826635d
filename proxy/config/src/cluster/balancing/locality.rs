//! Reading whether it matters where endpoints are (`locality_config_specifier`, `locality_lb_config`).
//!
//! Owns the checks of zone-aware routing, in the cluster's fields and in extensions. Never knows where anything is.

use outrigger_api::pb::envoy::config::cluster::v3::cluster::common_lb_config as pb;
use outrigger_api::pb::envoy::extensions::load_balancing_policies::common::v3 as extensions;
use outrigger_api::pb::envoy::r#type::v3::Percent as WirePercent;
use outrigger_api::pb::google::protobuf::UInt64Value;

use super::{LocalityBalancing, ZoneAware};
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Reads a field of `common_lb_config`.
pub(super) fn locality(at: &FieldPath<'_>, wire: Option<pb::LocalityConfigSpecifier>) -> Parsed<LocalityBalancing> {
    Ok(match wire {
        None => LocalityBalancing::Ignored,
        Some(pb::LocalityConfigSpecifier::LocalityWeightedLbConfig(pb::LocalityWeightedLbConfig {})) => {
            LocalityBalancing::Weighted
        }
        Some(pb::LocalityConfigSpecifier::ZoneAwareLbConfig(wire)) => {
            let at = at.field("zone_aware_lb_config");
            decide!(wire, at, pb::ZoneAwareLbConfig
                as "envoy.config.cluster.v3.Cluster.CommonLbConfig.ZoneAwareLbConfig" {
                implemented: routing_enabled, min_cluster_size, fail_traffic_on_panic;
                no_effect: ;
                unsupported: ;
            });
            zone_aware(&at, routing_enabled, min_cluster_size, fail_traffic_on_panic)?
        }
    })
}

/// Reads a field of an extension.
pub(super) fn extension_locality(
    at: &FieldPath<'_>,
    wire: Option<extensions::LocalityLbConfig>,
) -> Parsed<LocalityBalancing> {
    use extensions::locality_lb_config::zone_aware_lb_config::{ForceLocalZone, LocalityBasis};
    use extensions::locality_lb_config::{LocalityConfigSpecifier, LocalityWeightedLbConfig, ZoneAwareLbConfig};
    let Some(extensions::LocalityLbConfig { locality_config_specifier }) = wire else {
        return Ok(LocalityBalancing::Ignored);
    };
    let wire = match locality_config_specifier {
        None => return Err(at.reject("needs one of zone_aware_lb_config, locality_weighted_lb_config")),
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {})) => {
            return Ok(LocalityBalancing::Weighted);
        }
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(wire)) => wire,
    };
    let at = at.field("zone_aware_lb_config");
    decide!(wire, at, ZoneAwareLbConfig
        as "envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig.ZoneAwareLbConfig" {
        implemented: routing_enabled, min_cluster_size, fail_traffic_on_panic, force_locality_direct_routing,
            force_local_zone, locality_basis;
        no_effect: ;
        unsupported: ;
    });
    let basis_at = at.field("locality_basis");
    let basis = LocalityBasis::try_from(locality_basis).map_err(|_| wire::unknown_enum(&basis_at, locality_basis))?;
    let mut balancing = zone_aware(&at, routing_enabled, min_cluster_size, fail_traffic_on_panic)?;
    if let LocalityBalancing::ZoneAware(zone) = &mut balancing {
        zone.by_weight = basis == LocalityBasis::HealthyHostsWeight;
        zone.force_local_zone = match force_local_zone {
            Some(ForceLocalZone { min_size }) => Some(min_size.map_or(1, |size| size.value)),
            None => force_locality_direct_routing.then_some(1),
        };
    }
    Ok(balancing)
}

fn zone_aware(
    at: &FieldPath<'_>,
    routing_enabled: Option<WirePercent>,
    min_cluster_size: Option<UInt64Value>,
    fail_traffic_on_panic: bool,
) -> Parsed<LocalityBalancing> {
    let default = ZoneAware::default();
    Ok(LocalityBalancing::ZoneAware(ZoneAware {
        routing_enabled: match routing_enabled {
            None => default.routing_enabled,
            Some(wire) => wire::percent(&at.field("routing_enabled"), wire)?,
        },
        min_cluster_size: min_cluster_size.map_or(default.min_cluster_size, |size| size.value),
        fail_traffic_on_panic,
        ..default
    }))
}
