//! Reading the fields of a cluster that say how endpoints are chosen (`lb_policy` with its options, `common_lb_config`).
//!
//! Owns which policy they name and what they may not say together. Never reads extensions (see `extension`).

use std::time::Duration;

use outrigger_api::pb::envoy::config::cluster::v3 as pb;
use outrigger_api::pb::envoy::config::core::v3::RuntimeDouble;
use outrigger_api::pb::google::protobuf::UInt32Value;
use pb::cluster::LbConfig;

use super::extension::{self, Chosen};
use super::override_host::{OverrideStatus, override_status};
use super::slow_start::{runtime_double, slow_start};
use super::{BalancingOptions, Consistent, LoadBalancing, LocalityBalancing, consistent, locality, subset};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::units::Percent;
use crate::wire;

/// The fields of a cluster that say how endpoints are chosen.
pub(in crate::cluster) struct BalancingFields {
    pub policy: i32,
    pub config: Option<LbConfig>,
    pub list: Option<pb::LoadBalancingPolicy>,
    pub subsets: Option<pb::cluster::LbSubsetConfig>,
    pub common: Option<pb::cluster::CommonLbConfig>,
}

/// What they say.
pub(in crate::cluster) struct ReadBalancing {
    pub policy: LoadBalancing,
    pub options: BalancingOptions,
    /// `original_dst_lb_config` stands in the same oneof, but is about discovery.
    pub original_dst: Option<pb::cluster::OriginalDstLbConfig>,
    pub healthy_panic_threshold: Percent,
    pub update_merge_window: Duration,
}

/// Reads how endpoints of the cluster `at` are chosen. The list of extensions, if given, replaces the other fields.
pub(in crate::cluster) fn balancing(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: BalancingFields,
) -> Parsed<ReadBalancing> {
    let BalancingFields { policy, config, list, subsets, common } = wire;
    let common = common_balancing(&at.field("common_lb_config"), common)?;
    let (config, original_dst) = match config {
        Some(LbConfig::OriginalDstLbConfig(config)) => (None, Some(config)),
        config => (config, None),
    };
    let chosen = match list {
        Some(list) => {
            if common.locality != LocalityBalancing::Ignored || common.consistent != Consistent::default() {
                return Err(at.field("load_balancing_policy").reject(
                    "must not be set together with zone_aware_lb_config, locality_weighted_lb_config or \
                     consistent_hashing_lb_config of common_lb_config",
                ));
            }
            if subsets.is_some() {
                return Err(at.field("load_balancing_policy").reject("must not be set together with lb_subset_config"));
            }
            extension::first_supported(context, &at.field("load_balancing_policy"), list)?
        }
        None => by_enum(at, policy, config, subsets, &common)?,
    };
    let Chosen { policy, mut options } = chosen;
    options.ignore_new_hosts_until_first_check = common.ignore_new_hosts_until_first_hc;
    options.close_connections_on_change = common.close_connections_on_host_set_change;
    options.override_status = common.override_status;
    Ok(ReadBalancing {
        policy,
        options,
        original_dst,
        healthy_panic_threshold: common.healthy_panic_threshold,
        update_merge_window: common.update_merge_window,
    })
}

/// Options of another policy than the chosen one mean nothing.
fn by_enum(
    at: &FieldPath<'_>,
    policy: i32,
    config: Option<LbConfig>,
    subsets: Option<pb::cluster::LbSubsetConfig>,
    common: &CommonBalancing,
) -> Parsed<Chosen> {
    let policy_at = at.field("lb_policy");
    use pb::cluster::LbPolicy as Wire;
    let by_enum = Wire::try_from(policy).map_err(|_| wire::unknown_enum(&policy_at, policy))?;
    let mut options = BalancingOptions {
        locality: common.locality,
        subsets: subset::subsets(&at.field("lb_subset_config"), subsets)?,
        ..BalancingOptions::default()
    };
    let policy = match (by_enum, config) {
        (Wire::RoundRobin, Some(LbConfig::RoundRobinLbConfig(wire))) => {
            let at = at.field("round_robin_lb_config");
            decide!(wire, at, pb::cluster::RoundRobinLbConfig as "envoy.config.cluster.v3.Cluster.RoundRobinLbConfig" {
                implemented: slow_start_config;
                no_effect: ;
                unsupported: ;
            });
            options.slow_start = slow_start(&at.field("slow_start_config"), slow_start_config)?;
            LoadBalancing::RoundRobin
        }
        (Wire::RoundRobin, _) => LoadBalancing::RoundRobin,
        (Wire::LeastRequest, Some(LbConfig::LeastRequestLbConfig(wire))) => {
            let at = at.field("least_request_lb_config");
            decide!(wire, at, pb::cluster::LeastRequestLbConfig
                as "envoy.config.cluster.v3.Cluster.LeastRequestLbConfig" {
                implemented: choice_count, active_request_bias, slow_start_config;
                no_effect: ;
                unsupported: ;
            });
            options.slow_start = slow_start(&at.field("slow_start_config"), slow_start_config)?;
            least_request(&at, choice_count, active_request_bias)?
        }
        (Wire::LeastRequest, _) => least_request(at, None, None)?,
        (Wire::Random, _) => LoadBalancing::Random,
        (Wire::RingHash, config) => {
            let wire = match config {
                Some(LbConfig::RingHashLbConfig(wire)) => Some(wire),
                _ => None,
            };
            consistent::ring_hash(&at.field("ring_hash_lb_config"), wire, common.consistent)?
        }
        (Wire::Maglev, config) => {
            let wire = match config {
                Some(LbConfig::MaglevLbConfig(wire)) => Some(wire),
                _ => None,
            };
            consistent::maglev(&at.field("maglev_lb_config"), wire, common.consistent)?
        }
        (Wire::ClusterProvided, _) => LoadBalancing::ClusterProvided,
        (Wire::LoadBalancingPolicyConfig, _) => {
            return Err(at.field("load_balancing_policy").reject("is required with LOAD_BALANCING_POLICY_CONFIG"));
        }
    };
    if policy == LoadBalancing::ClusterProvided && options.subsets.is_some() {
        return Err(at.field("lb_subset_config").reject("must not be set with CLUSTER_PROVIDED"));
    }
    Ok(Chosen { policy, options })
}

/// Reads the options of the least request policy.
pub(super) fn least_request(
    at: &FieldPath<'_>,
    choice_count: Option<UInt32Value>,
    bias: Option<RuntimeDouble>,
) -> Parsed<LoadBalancing> {
    let active_request_bias = match bias {
        None => 1.0,
        Some(wire) => runtime_double(&at.field("active_request_bias"), wire, |bias| bias >= 0.0, "0 or more")?,
    };
    Ok(LoadBalancing::LeastRequest {
        choice_count: wire::number_within(&at.field("choice_count"), choice_count, 2..=u32::MAX)?.unwrap_or(2),
        active_request_bias,
    })
}

/// What holds for all policies.
struct CommonBalancing {
    healthy_panic_threshold: Percent,
    update_merge_window: Duration,
    locality: LocalityBalancing,
    consistent: Consistent,
    ignore_new_hosts_until_first_hc: bool,
    close_connections_on_host_set_change: bool,
    override_status: OverrideStatus,
}

fn common_balancing(at: &FieldPath<'_>, wire: Option<pb::cluster::CommonLbConfig>) -> Parsed<CommonBalancing> {
    let wire = wire.unwrap_or_default();
    decide!(wire, at, pb::cluster::CommonLbConfig as "envoy.config.cluster.v3.Cluster.CommonLbConfig" {
        implemented: healthy_panic_threshold, update_merge_window, locality_config_specifier,
            consistent_hashing_lb_config, ignore_new_hosts_until_first_hc, close_connections_on_host_set_change,
            override_host_status;
        no_effect: ;
        unsupported: ;
    });
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
        locality: locality::locality(at, locality_config_specifier)?,
        consistent: consistent::consistent(&at.field("consistent_hashing_lb_config"), consistent_hashing_lb_config)?,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change,
        override_status: override_status(&at.field("override_host_status"), override_host_status)?,
    })
}

const DEFAULT_PANIC_PERCENT: f64 = 50.0;
const DEFAULT_MERGE_WINDOW: Duration = Duration::from_secs(1);
