//! Subsets of endpoints that requests ask for (`LbSubsetConfig`, or the subset policy as an extension).
//!
//! Owns the checked model of selectors and fallbacks, and how both messages are read. Never sorts endpoints into
//! subsets.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::cluster::v3::LoadBalancingPolicy;
use outrigger_api::pb::envoy::config::cluster::v3::cluster::{LbSubsetConfig, lb_subset_config as pb};
use outrigger_api::pb::envoy::extensions::load_balancing_policies::subset::v3::{Subset, subset as extension};
use outrigger_api::pb::google::protobuf::Struct;

use super::LbMetadata;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// How endpoints are divided, and what happens to requests that no part fits.
#[derive(Clone, Debug, PartialEq)]
pub struct SubsetOptions {
    /// The keys by which there are subsets.
    pub selectors: Vec<SubsetSelector>,
    /// For requests without a subset, unless their selector says otherwise.
    pub fallback: Fallback,
    /// Endpoints with these values are the default subset.
    pub default_subset: LbMetadata,
    /// Localities keep their weights inside of subsets.
    pub locality_weight_aware: bool,
    /// There, a locality's weight shrinks with the share of its endpoints that are in the subset.
    pub scale_locality_weight: bool,
    /// If the fallback has no endpoint, any will do.
    pub panic_mode_any: bool,
    /// An endpoint whose value is a list is in the subset of each of its items.
    pub list_as_any: bool,
    /// Requests may bring a `fallback_list` of other values to try.
    pub fallback_list: bool,
    /// Keys of requests that the best selector does not have are passed over.
    pub allow_redundant_keys: bool,
}

/// One way to divide endpoints.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SubsetSelector {
    /// Ordered, each once, at least one.
    pub keys: Vec<Arc<str>>,
    /// Each subset has one endpoint only.
    pub single_host: bool,
    /// For requests with these keys but other values than any endpoint has.
    pub fallback: Option<SelectorFallback>,
}

/// What happens to requests without a subset. Source: `LbSubsetFallbackPolicy`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Fallback {
    /// There is no endpoint for them.
    #[default]
    None,
    /// Any endpoint.
    Any,
    /// Those of the default subset.
    Default,
}

/// The same for requests whose keys fit a selector. Source: `LbSubsetSelectorFallbackPolicy`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SelectorFallback {
    /// As for all requests.
    Of(Fallback),
    /// These keys are tried: ordered, a part of the selector's.
    Keys(Vec<Arc<str>>),
}

/// Reads `lb_subset_config`; `None` if it divides nothing.
pub(super) fn subsets(at: &FieldPath<'_>, wire: Option<LbSubsetConfig>) -> Parsed<Option<Arc<SubsetOptions>>> {
    let Some(wire) = wire else { return Ok(None) };
    decide!(wire, at, LbSubsetConfig as "envoy.config.cluster.v3.Cluster.LbSubsetConfig" {
        implemented: fallback_policy, default_subset, subset_selectors, locality_weight_aware, scale_locality_weight,
            panic_mode_any, list_as_any, metadata_fallback_policy;
        no_effect: ;
        unsupported: ;
    });
    if subset_selectors.is_empty() {
        return Ok(None);
    }
    let selectors = subset_selectors.into_iter().map(|wire| {
        let pb::LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } = wire;
        WireSelector { keys, single_host: single_host_per_subset, fallback_policy, fallback_keys: fallback_keys_subset }
    });
    Ok(Some(Arc::new(SubsetOptions {
        selectors: read_selectors(&at.field("subset_selectors"), selectors)?,
        fallback: fallback(&at.field("fallback_policy"), fallback_policy)?,
        default_subset: metadata(default_subset),
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        fallback_list: fallback_list(&at.field("metadata_fallback_policy"), metadata_fallback_policy)?,
        allow_redundant_keys: false,
    })))
}

/// Reads the subset extension; beside it the policy that chooses inside of subsets.
pub(super) fn subsets_extension(
    at: &FieldPath<'_>,
    wire: Subset,
) -> Parsed<(Arc<SubsetOptions>, Option<LoadBalancingPolicy>)> {
    decide!(wire, at, Subset as "envoy.extensions.load_balancing_policies.subset.v3.Subset" {
        implemented: fallback_policy, default_subset, subset_selectors, allow_redundant_keys, locality_weight_aware,
            scale_locality_weight, panic_mode_any, list_as_any, metadata_fallback_policy, subset_lb_policy;
        no_effect: ;
        unsupported: ;
    });
    let selectors = subset_selectors.into_iter().map(|wire| {
        let extension::LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } = wire;
        WireSelector { keys, single_host: single_host_per_subset, fallback_policy, fallback_keys: fallback_keys_subset }
    });
    let options = SubsetOptions {
        selectors: read_selectors(&at.field("subset_selectors"), selectors)?,
        fallback: fallback(&at.field("fallback_policy"), fallback_policy)?,
        default_subset: metadata(default_subset),
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        fallback_list: fallback_list(&at.field("metadata_fallback_policy"), metadata_fallback_policy)?,
        allow_redundant_keys,
    };
    Ok((Arc::new(options), subset_lb_policy))
}

fn metadata(wire: Option<Struct>) -> LbMetadata {
    wire.map(LbMetadata::from).unwrap_or_default()
}

/// A selector of either message; their enums have the same numbers.
struct WireSelector {
    keys: Vec<String>,
    single_host: bool,
    fallback_policy: i32,
    fallback_keys: Vec<String>,
}

fn read_selectors(at: &FieldPath<'_>, wire: impl Iterator<Item = WireSelector>) -> Parsed<Vec<SubsetSelector>> {
    let mut selectors: Vec<SubsetSelector> = Vec::new();
    for (index, wire) in wire.enumerate() {
        let selector = selector(&at.item(index), wire)?;
        // The same keys again would make the same subsets.
        if !selectors.iter().any(|known| known.keys == selector.keys) {
            selectors.push(selector);
        }
    }
    Ok(selectors)
}

fn selector(at: &FieldPath<'_>, wire: WireSelector) -> Parsed<SubsetSelector> {
    let WireSelector { keys, single_host, fallback_policy, fallback_keys } = wire;
    let keys_at = at.field("keys");
    let keys = ordered(keys);
    if keys.is_empty() {
        return Err(keys_at.reject("must not be empty"));
    }
    if single_host && keys.len() > 1 {
        return Err(keys_at.reject("must be one key with single_host_per_subset"));
    }
    use pb::lb_subset_selector::LbSubsetSelectorFallbackPolicy as Wire;
    let fallback_at = at.field("fallback_policy");
    let fallback =
        match Wire::try_from(fallback_policy).map_err(|_| wire::unknown_enum(&fallback_at, fallback_policy))? {
            Wire::NotDefined => None,
            Wire::NoFallback => Some(SelectorFallback::Of(Fallback::None)),
            Wire::AnyEndpoint => Some(SelectorFallback::Of(Fallback::Any)),
            Wire::DefaultSubset => Some(SelectorFallback::Of(Fallback::Default)),
            Wire::KeysSubset => {
                let at = at.field("fallback_keys_subset");
                let part = ordered(fallback_keys);
                if part.is_empty() {
                    return Err(at.reject("must not be empty with KEYS_SUBSET"));
                }
                if part == keys || !part.iter().all(|key| keys.contains(key)) {
                    return Err(at.reject("must be some of the selector's keys, but not all"));
                }
                Some(SelectorFallback::Keys(part))
            }
        };
    Ok(SubsetSelector { keys, single_host, fallback })
}

fn ordered(keys: Vec<String>) -> Vec<Arc<str>> {
    let mut keys: Vec<Arc<str>> = keys.into_iter().map(Arc::from).collect();
    keys.sort();
    keys.dedup();
    keys
}

fn fallback(at: &FieldPath<'_>, value: i32) -> Parsed<Fallback> {
    use pb::LbSubsetFallbackPolicy as Wire;
    Ok(match Wire::try_from(value).map_err(|_| wire::unknown_enum(at, value))? {
        Wire::NoFallback => Fallback::None,
        Wire::AnyEndpoint => Fallback::Any,
        Wire::DefaultSubset => Fallback::Default,
    })
}

fn fallback_list(at: &FieldPath<'_>, value: i32) -> Parsed<bool> {
    use pb::LbSubsetMetadataFallbackPolicy as Wire;
    Ok(match Wire::try_from(value).map_err(|_| wire::unknown_enum(at, value))? {
        Wire::MetadataNoFallback => false,
        Wire::FallbackList => true,
    })
}
