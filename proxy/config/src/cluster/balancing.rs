//! Reading how endpoints are chosen (`lb_policy`, `load_balancing_policy`, `common_lb_config`).
//!
//! Owns which policies exist, as enum values and as extensions. Never chooses an endpoint (see `outrigger-policy`).

use std::time::Duration;

use outrigger_api::pb::envoy::config::cluster::v3 as pb;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::load_balancing_policies as extensions;
use outrigger_api::pb::google::protobuf::{Any, UInt32Value};
use pb::cluster::LbConfig;

use super::LoadBalancing;
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::units::Percent;
use crate::wire;

/// The fields of a cluster that name its policy.
pub(super) struct Balancing {
    pub policy: i32,
    pub config: Option<LbConfig>,
    pub list: Option<pb::LoadBalancingPolicy>,
}

/// What they say.
pub(super) struct ReadBalancing {
    pub policy: LoadBalancing,
    /// `original_dst_lb_config` stands in the same oneof, but is about discovery.
    pub original_dst: Option<pb::cluster::OriginalDstLbConfig>,
}

/// Reads the policy of the cluster `at`. The list of extensions, if given, is preferred to the enum.
pub(super) fn load_balancing(context: &Context<'_>, at: &FieldPath<'_>, wire: Balancing) -> Parsed<ReadBalancing> {
    let Balancing { policy, config, list } = wire;
    let policy_at = at.field("lb_policy");
    use pb::cluster::LbPolicy as Wire;
    let by_enum = Wire::try_from(policy).map_err(|_| wire::unknown_enum(&policy_at, policy))?;
    if let Some(list) = list {
        let policy = first_supported(context, &at.field("load_balancing_policy"), list)?;
        let original_dst = match config {
            Some(LbConfig::OriginalDstLbConfig(config)) => Some(config),
            _ => None,
        };
        return Ok(ReadBalancing { policy, original_dst });
    }
    let policy = match by_enum {
        Wire::RoundRobin => LoadBalancing::RoundRobin,
        Wire::LeastRequest => DEFAULT_LEAST_REQUEST,
        Wire::Random => LoadBalancing::Random,
        Wire::ClusterProvided => LoadBalancing::ClusterProvided,
        Wire::RingHash | Wire::Maglev => {
            return Err(policy_at.reject(format!("{} is not supported", by_enum.as_str_name())));
        }
        Wire::LoadBalancingPolicyConfig => {
            return Err(at.field("load_balancing_policy").reject("is required with LOAD_BALANCING_POLICY_CONFIG"));
        }
    };
    with_config(at, policy, config)
}

/// Adds the options of the policy. Options of another policy than the chosen one mean nothing.
fn with_config(at: &FieldPath<'_>, policy: LoadBalancing, config: Option<LbConfig>) -> Parsed<ReadBalancing> {
    let mut original_dst = None;
    let policy = match (policy, config) {
        (LoadBalancing::RoundRobin, Some(LbConfig::RoundRobinLbConfig(wire))) => {
            let at = at.field("round_robin_lb_config");
            decide!(wire, at, pb::cluster::RoundRobinLbConfig as "envoy.config.cluster.v3.Cluster.RoundRobinLbConfig" {
                implemented: slow_start_config;
                no_effect: ;
                unsupported: ;
            });
            check_slow_start(&at.field("slow_start_config"), slow_start_config)?;
            LoadBalancing::RoundRobin
        }
        (LoadBalancing::LeastRequest { .. }, Some(LbConfig::LeastRequestLbConfig(wire))) => {
            let at = at.field("least_request_lb_config");
            decide!(wire, at, pb::cluster::LeastRequestLbConfig
                as "envoy.config.cluster.v3.Cluster.LeastRequestLbConfig" {
                implemented: choice_count, active_request_bias, slow_start_config;
                no_effect: ;
                unsupported: ;
            });
            check_slow_start(&at.field("slow_start_config"), slow_start_config)?;
            least_request(&at, choice_count, active_request_bias)?
        }
        (policy, Some(LbConfig::OriginalDstLbConfig(config))) => {
            original_dst = Some(config);
            policy
        }
        (policy, _) => policy,
    };
    Ok(ReadBalancing { policy, original_dst })
}

fn check_slow_start(at: &FieldPath<'_>, wire: Option<pb::cluster::SlowStartConfig>) -> Parsed<()> {
    let Some(wire) = wire else { return Ok(()) };
    decide!(wire, at, pb::cluster::SlowStartConfig as "envoy.config.cluster.v3.Cluster.SlowStartConfig" {
        implemented: ;
        no_effect: min_weight_percent = "there is no slow start without a window";
        unsupported: slow_start_window, aggression;
    });
    Ok(())
}

fn least_request(
    at: &FieldPath<'_>,
    choice_count: Option<UInt32Value>,
    bias: Option<core::RuntimeDouble>,
) -> Parsed<LoadBalancing> {
    let active_request_bias = match bias {
        None => 1.0,
        Some(wire) => {
            let at = at.field("active_request_bias");
            decide!(wire, at, core::RuntimeDouble as "envoy.config.core.v3.RuntimeDouble" {
                implemented: default_value;
                no_effect: ;
                unsupported: runtime_key;
            });
            if !(default_value.is_finite() && default_value >= 0.0) {
                return Err(at.field("default_value").reject(format!("{default_value} must be 0 or more")));
            }
            default_value
        }
    };
    Ok(LoadBalancing::LeastRequest {
        choice_count: wire::number_within(&at.field("choice_count"), choice_count, 2..=u32::MAX)?.unwrap_or(2),
        active_request_bias,
    })
}

fn first_supported(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::LoadBalancingPolicy) -> Parsed<LoadBalancing> {
    let pb::LoadBalancingPolicy { policies } = wire;
    let at = at.field("policies");
    if policies.is_empty() {
        return Err(at.reject("needs at least one policy"));
    }
    let mut passed_over = Vec::new();
    for (index, wire) in policies.into_iter().enumerate() {
        let at = at.item(index);
        let pb::load_balancing_policy::Policy { typed_extension_config } = wire;
        let at = at.field("typed_extension_config");
        let Some(core::TypedExtensionConfig { name: _, typed_config: Some(config) }) = typed_extension_config else {
            return Err(at.field("typed_config").reject("is required"));
        };
        let at = at.field("typed_config");
        let config = wire::extension(context, &at, config)?;
        match extension_policy(&at, &config)? {
            Some(policy) => return Ok(policy),
            None => passed_over.push(format!("{:?}", config.type_url)),
        }
    }
    Err(at.reject(format!("none is supported, expected another than {}", passed_over.join(", "))))
}

fn extension_policy(at: &FieldPath<'_>, wire: &Any) -> Parsed<Option<LoadBalancing>> {
    Ok(Some(match wire::type_name(wire) {
        "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" => {
            let wire = wire::decode(at, wire)?;
            decide!(wire, at, extensions::round_robin::v3::RoundRobin
                as "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" {
                implemented: slow_start_config, locality_lb_config;
                no_effect: ;
                unsupported: ;
            });
            check_extension_slow_start(&at.field("slow_start_config"), slow_start_config)?;
            check_extension_locality(&at.field("locality_lb_config"), locality_lb_config)?;
            LoadBalancing::RoundRobin
        }
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest" => {
            extension_least_request(at, wire::decode(at, wire)?)?
        }
        "envoy.extensions.load_balancing_policies.random.v3.Random" => {
            let wire = wire::decode(at, wire)?;
            decide!(wire, at, extensions::random::v3::Random
                as "envoy.extensions.load_balancing_policies.random.v3.Random" {
                implemented: locality_lb_config;
                no_effect: ;
                unsupported: ;
            });
            check_extension_locality(&at.field("locality_lb_config"), locality_lb_config)?;
            LoadBalancing::Random
        }
        "envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided" => {
            LoadBalancing::ClusterProvided
        }
        _ => return Ok(None),
    }))
}

fn extension_least_request(
    at: &FieldPath<'_>,
    wire: extensions::least_request::v3::LeastRequest,
) -> Parsed<LoadBalancing> {
    decide!(wire, at, extensions::least_request::v3::LeastRequest
        as "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest" {
        implemented: choice_count, active_request_bias, slow_start_config, locality_lb_config, enable_full_scan,
            selection_method;
        no_effect: ;
        unsupported: ;
    });
    use extensions::least_request::v3::least_request::SelectionMethod;
    let method_at = at.field("selection_method");
    match SelectionMethod::try_from(selection_method).map_err(|_| wire::unknown_enum(&method_at, selection_method))? {
        SelectionMethod::NChoices => {}
        SelectionMethod::FullScan => return Err(method_at.reject("FULL_SCAN is not supported")),
    }
    if enable_full_scan.is_some_and(|flag| flag.value) {
        return Err(at.field("enable_full_scan").unsupported());
    }
    check_extension_slow_start(&at.field("slow_start_config"), slow_start_config)?;
    check_extension_locality(&at.field("locality_lb_config"), locality_lb_config)?;
    least_request(at, choice_count, active_request_bias)
}

fn check_extension_slow_start(at: &FieldPath<'_>, wire: Option<extensions::common::v3::SlowStartConfig>) -> Parsed<()> {
    let Some(wire) = wire else { return Ok(()) };
    decide!(wire, at, extensions::common::v3::SlowStartConfig
        as "envoy.extensions.load_balancing_policies.common.v3.SlowStartConfig" {
        implemented: ;
        no_effect: min_weight_percent = "there is no slow start without a window";
        unsupported: slow_start_window, aggression;
    });
    Ok(())
}

fn check_extension_locality(at: &FieldPath<'_>, wire: Option<extensions::common::v3::LocalityLbConfig>) -> Parsed<()> {
    use extensions::common::v3::locality_lb_config::{LocalityConfigSpecifier, ZoneAwareLbConfig};
    match wire.and_then(|wire| wire.locality_config_specifier) {
        None => Ok(()),
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => {
            Err(at.field("locality_weighted_lb_config").unsupported())
        }
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(wire)) => {
            let at = at.field("zone_aware_lb_config");
            decide!(wire, at, ZoneAwareLbConfig
                as "envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig.ZoneAwareLbConfig" {
                implemented: ;
                no_effect: routing_enabled = "there is no zone-aware routing",
                    min_cluster_size = "there is no zone-aware routing",
                    force_locality_direct_routing = "there is no zone-aware routing",
                    locality_basis = "there is no zone-aware routing";
                unsupported: fail_traffic_on_panic, force_local_zone;
            });
            Ok(())
        }
    }
}

/// What holds for all policies.
pub(super) struct CommonBalancing {
    pub healthy_panic_threshold: Percent,
    pub update_merge_window: Duration,
}

/// Reads what holds for all policies.
pub(super) fn common_balancing(
    at: &FieldPath<'_>,
    wire: Option<pb::cluster::CommonLbConfig>,
) -> Parsed<CommonBalancing> {
    let wire = wire.unwrap_or_default();
    decide!(wire, at, pb::cluster::CommonLbConfig as "envoy.config.cluster.v3.Cluster.CommonLbConfig" {
        implemented: healthy_panic_threshold, update_merge_window, locality_config_specifier;
        no_effect: ignore_new_hosts_until_first_hc = "there are no active health checks",
            consistent_hashing_lb_config = "no consistent-hash policy is supported, and a cluster with one is rejected",
            override_host_status = "no filter overrides the choice of endpoint";
        unsupported: close_connections_on_host_set_change;
    });
    check_locality(at, locality_config_specifier)?;
    let threshold_at = at.field("healthy_panic_threshold");
    let healthy_panic_threshold = match healthy_panic_threshold {
        None => DEFAULT_PANIC_PERCENT,
        // Whole percents, as the API's documentation promises.
        Some(wire) => wire::percent(&threshold_at, wire)?.value().trunc(),
    };
    Ok(CommonBalancing {
        healthy_panic_threshold: Percent::new(healthy_panic_threshold)
            .ok_or_else(|| threshold_at.reject("is not within 0 to 100"))?,
        update_merge_window: match update_merge_window {
            None => DEFAULT_MERGE_WINDOW,
            Some(window) => wire::duration(&at.field("update_merge_window"), window)?,
        },
    })
}

fn check_locality(
    at: &FieldPath<'_>,
    wire: Option<pb::cluster::common_lb_config::LocalityConfigSpecifier>,
) -> Parsed<()> {
    use pb::cluster::common_lb_config::{LocalityConfigSpecifier, ZoneAwareLbConfig};
    match wire {
        None => Ok(()),
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => {
            Err(at.field("locality_weighted_lb_config").unsupported())
        }
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(wire)) => {
            let at = at.field("zone_aware_lb_config");
            decide!(wire, at, ZoneAwareLbConfig
                as "envoy.config.cluster.v3.Cluster.CommonLbConfig.ZoneAwareLbConfig" {
                implemented: ;
                no_effect: routing_enabled = "there is no zone-aware routing",
                    min_cluster_size = "there is no zone-aware routing";
                unsupported: fail_traffic_on_panic;
            });
            Ok(())
        }
    }
}

const DEFAULT_LEAST_REQUEST: LoadBalancing = LoadBalancing::LeastRequest { choice_count: 2, active_request_bias: 1.0 };
const DEFAULT_PANIC_PERCENT: f64 = 50.0;
const DEFAULT_MERGE_WINDOW: Duration = Duration::from_secs(1);
