//! Reading policies given as extensions (`load_balancing_policy`).
//!
//! Owns which extensions there are, and which of them hold others. Never chooses an endpoint.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::cluster::v3 as pb;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::load_balancing_policies as extensions;
use outrigger_api::pb::google::protobuf::Any;

use super::consistent::{HashingExtension, maglev_extension, ring_hash_extension};
use super::locality::extension_locality;
use super::override_host::override_hosts;
use super::peak_ewma::peak_ewma;
use super::read::least_request;
use super::reported::reported;
use super::slow_start::extension_slow_start;
use super::subset::subsets_extension;
use super::{BalancingOptions, LoadBalancing, LocalityBalancing};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// A policy with what surrounds it.
pub(super) struct Chosen {
    pub policy: LoadBalancing,
    pub options: BalancingOptions,
}

/// Reads the first policy of the list `at` that is supported.
pub(super) fn first_supported(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: pb::LoadBalancingPolicy,
) -> Parsed<Chosen> {
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
        let config = match wire::known_extension(context, &at, config)? {
            Ok(config) => config,
            Err(type_url) => {
                passed_over.push(format!("{type_url:?}"));
                continue;
            }
        };
        match extension_policy(context, &at, &config)? {
            Some(policy) => return Ok(policy),
            None => passed_over.push(format!("{:?}", config.type_url)),
        }
    }
    Err(at.reject(format!("none is supported, expected another than {}", passed_over.join(", "))))
}

fn extension_policy(context: &Context<'_>, at: &FieldPath<'_>, wire: &Any) -> Parsed<Option<Chosen>> {
    Ok(Some(match wire::type_name(wire) {
        "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" => {
            let wire = wire::decode(at, wire)?;
            decide!(wire, at, extensions::round_robin::v3::RoundRobin
                as "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" {
                implemented: slow_start_config, locality_lb_config;
                no_effect: ;
                unsupported: ;
            });
            let options = BalancingOptions {
                slow_start: extension_slow_start(&at.field("slow_start_config"), slow_start_config)?,
                locality: extension_locality(&at.field("locality_lb_config"), locality_lb_config)?,
                ..BalancingOptions::default()
            };
            Chosen { policy: LoadBalancing::RoundRobin, options }
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
            let locality = extension_locality(&at.field("locality_lb_config"), locality_lb_config)?;
            let options = BalancingOptions { locality, ..BalancingOptions::default() };
            Chosen { policy: LoadBalancing::Random, options }
        }
        "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash" => {
            by_hash(ring_hash_extension(at, wire::decode(at, wire)?)?)
        }
        "envoy.extensions.load_balancing_policies.maglev.v3.Maglev" => {
            by_hash(maglev_extension(at, wire::decode(at, wire)?)?)
        }
        "envoy.extensions.load_balancing_policies.subset.v3.Subset" => subset(context, at, wire::decode(at, wire)?)?,
        "envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality" => {
            let extensions::wrr_locality::v3::WrrLocality { endpoint_picking_policy } = wire::decode(at, wire)?;
            let mut chosen = child(context, &at.field("endpoint_picking_policy"), endpoint_picking_policy)?;
            chosen.options.locality = LocalityBalancing::Weighted;
            chosen
        }
        "envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided" => {
            Chosen { policy: LoadBalancing::ClusterProvided, options: BalancingOptions::default() }
        }
        "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin" => {
            reported(at, wire::decode(at, wire)?)?
        }
        "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost" => {
            override_host(context, at, wire::decode(at, wire)?)?
        }
        "envoy.extensions.load_balancing_policies.pick_first.v3.PickFirst" => {
            let wire = wire::decode(at, wire)?;
            decide!(wire, at, extensions::pick_first::v3::PickFirst
                as "envoy.extensions.load_balancing_policies.pick_first.v3.PickFirst" {
                implemented: shuffle_address_list;
                no_effect: ;
                unsupported: ;
            });
            let policy = LoadBalancing::PickFirst { shuffle: shuffle_address_list };
            Chosen { policy, options: BalancingOptions::default() }
        }
        "envoy.extensions.load_balancing_policies.random_subsetting.v3.RandomSubsetting" => {
            random_subsetting(context, at, wire::decode(at, wire)?)?
        }
        "outrigger.lb.v1.PeakEwma" => peak_ewma(at, wire::decode(at, wire)?)?,
        _ => return Ok(None),
    }))
}

fn by_hash(wire: HashingExtension) -> Chosen {
    let HashingExtension { policy, locality, hash_policy } = wire;
    Chosen { policy, options: BalancingOptions { locality, hash_policy, ..BalancingOptions::default() } }
}

/// The policy inside of another one.
fn child(context: &Context<'_>, at: &FieldPath<'_>, wire: Option<pb::LoadBalancingPolicy>) -> Parsed<Chosen> {
    let Some(wire) = wire else { return Err(at.reject("is required")) };
    let chosen = first_supported(context, at, wire)?;
    let BalancingOptions { subsets, subset_size, override_hosts, .. } = &chosen.options;
    let narrows = subsets.is_some() || subset_size.is_some() || override_hosts.is_some();
    if chosen.policy == LoadBalancing::ClusterProvided || narrows {
        return Err(at.reject("must be a policy that chooses among all endpoints it is given"));
    }
    Ok(chosen)
}

fn random_subsetting(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: extensions::random_subsetting::v3::RandomSubsetting,
) -> Parsed<Chosen> {
    decide!(wire, at, extensions::random_subsetting::v3::RandomSubsetting
        as "envoy.extensions.load_balancing_policies.random_subsetting.v3.RandomSubsetting" {
        implemented: subset_size, child_policy;
        no_effect: ;
        unsupported: ;
    });
    let size_at = at.field("subset_size");
    let Some(size) = wire::number_within(&size_at, subset_size, 1..=u32::MAX)? else {
        return Err(size_at.reject("is required"));
    };
    let mut chosen = child(context, &at.field("child_policy"), child_policy)?;
    chosen.options.subset_size = Some(size);
    Ok(chosen)
}

fn override_host(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: extensions::override_host::v3::OverrideHost,
) -> Parsed<Chosen> {
    decide!(wire, at, extensions::override_host::v3::OverrideHost
        as "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost" {
        implemented: override_host_sources, selected_host_key, fallback_policy;
        no_effect: ;
        unsupported: ;
    });
    let fallback_at = at.field("fallback_policy");
    let Some(fallback) = fallback_policy else { return Err(fallback_at.reject("is required")) };
    let mut chosen = first_supported(context, &fallback_at, fallback)?;
    if chosen.policy == LoadBalancing::ClusterProvided || chosen.options.override_hosts.is_some() {
        return Err(fallback_at.reject("must be a policy that chooses among endpoints by itself"));
    }
    chosen.options.override_hosts = Some(Arc::new(override_hosts(at, override_host_sources, selected_host_key)?));
    Ok(chosen)
}

fn subset(context: &Context<'_>, at: &FieldPath<'_>, wire: extensions::subset::v3::Subset) -> Parsed<Chosen> {
    let (options, policy) = subsets_extension(at, wire)?;
    let mut chosen = child(context, &at.field("subset_lb_policy"), policy)?;
    chosen.options.subsets = Some(options);
    Ok(chosen)
}

fn extension_least_request(at: &FieldPath<'_>, wire: extensions::least_request::v3::LeastRequest) -> Parsed<Chosen> {
    decide!(wire, at, extensions::least_request::v3::LeastRequest
        as "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest" {
        implemented: choice_count, active_request_bias, slow_start_config, locality_lb_config, enable_full_scan,
            selection_method;
        no_effect: ;
        unsupported: ;
    });
    use extensions::least_request::v3::least_request::SelectionMethod;
    let method_at = at.field("selection_method");
    let method =
        SelectionMethod::try_from(selection_method).map_err(|_| wire::unknown_enum(&method_at, selection_method))?;
    let mut policy = least_request(at, choice_count, active_request_bias)?;
    if let LoadBalancing::LeastRequest { choice_count, .. } = &mut policy
        && (method == SelectionMethod::FullScan || enable_full_scan.is_some_and(|flag| flag.value))
    {
        *choice_count = u32::MAX;
    }
    let options = BalancingOptions {
        slow_start: extension_slow_start(&at.field("slow_start_config"), slow_start_config)?,
        locality: extension_locality(&at.field("locality_lb_config"), locality_lb_config)?,
        ..BalancingOptions::default()
    };
    Ok(Chosen { policy, options })
}
