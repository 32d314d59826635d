//! Which endpoints retries go to (`RetryPolicy.retry_host_predicate`, `RetryPolicy.retry_priority`).
//!
//! Owns what a policy says about the choice of an endpoint. Never chooses.

use std::num::NonZeroU32;

use outrigger_api::pb::envoy::config::route::v3 as pb;
use outrigger_api::pb::envoy::extensions::retry::host::omit_canary_hosts::v3::OmitCanaryHostsPredicate;
use outrigger_api::pb::envoy::extensions::retry::host::omit_host_metadata::v3::OmitHostMetadataConfig;
use outrigger_api::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use outrigger_api::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use outrigger_api::pb::google::protobuf::Any;

use crate::cluster::{LbMetadata, lb_metadata};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Endpoints that retries avoid as long as there are others. Source: `RetryPolicy.retry_host_predicate`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AvoidedHosts {
    /// Those that were tried (`previous_hosts`).
    pub previous: bool,
    /// Canaries (`omit_canary_hosts`).
    pub canaries: bool,
    /// Those whose metadata for balancing has all pairs of one of these (`omit_host_metadata`).
    pub metadata: Vec<LbMetadata>,
}

const PREVIOUS_HOSTS: &str = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
const OMIT_CANARY_HOSTS: &str = "envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate";
const OMIT_HOST_METADATA: &str = "envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig";
const PREVIOUS_PRIORITIES: &str = "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig";

pub(super) fn avoided_hosts(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Vec<pb::retry_policy::RetryHostPredicate>,
) -> Parsed<AvoidedHosts> {
    let mut avoided = AvoidedHosts::default();
    for (index, wire) in wire.into_iter().enumerate() {
        let at = at.item(index);
        decide!(wire, at, pb::retry_policy::RetryHostPredicate
            as "envoy.config.route.v3.RetryPolicy.RetryHostPredicate" {
            implemented: name, config_type;
            no_effect: ;
            unsupported: ;
        });
        let config = config_type.map(|pb::retry_policy::retry_host_predicate::ConfigType::TypedConfig(config)| config);
        let config = named(context, &at, &name, config)?;
        let at = at.field("typed_config");
        match wire::type_name(&config) {
            PREVIOUS_HOSTS => {
                let PreviousHostsPredicate {} = wire::decode(&at, &config)?;
                avoided.previous = true;
            }
            OMIT_CANARY_HOSTS => {
                let OmitCanaryHostsPredicate {} = wire::decode(&at, &config)?;
                avoided.canaries = true;
            }
            OMIT_HOST_METADATA => {
                let wire: OmitHostMetadataConfig = wire::decode(&at, &config)?;
                decide!(wire, at, OmitHostMetadataConfig
                    as "envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig" {
                    implemented: metadata_match;
                    no_effect: ;
                    unsupported: ;
                });
                // Without metadata it takes every endpoint, as in Envoy.
                avoided.metadata.push(lb_metadata(metadata_match).unwrap_or_default());
            }
            _ => return Err(at.reject(format!("{:?} is not supported", config.type_url))),
        }
    }
    Ok(avoided)
}

/// After how many tries priorities already tried are avoided, which is the one way there is to choose among them.
pub(super) fn previous_priorities(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: pb::retry_policy::RetryPriority,
) -> Parsed<NonZeroU32> {
    decide!(wire, at, pb::retry_policy::RetryPriority as "envoy.config.route.v3.RetryPolicy.RetryPriority" {
        implemented: name, config_type;
        no_effect: ;
        unsupported: ;
    });
    let config = config_type.map(|pb::retry_policy::retry_priority::ConfigType::TypedConfig(config)| config);
    let config = named(context, at, &name, config)?;
    let at = at.field("typed_config");
    if wire::type_name(&config) != PREVIOUS_PRIORITIES {
        return Err(at.reject(format!("{:?} is not supported", config.type_url)));
    }
    let wire: PreviousPrioritiesConfig = wire::decode(&at, &config)?;
    decide!(wire, at, PreviousPrioritiesConfig
        as "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig" {
        implemented: update_frequency;
        no_effect: ;
        unsupported: ;
    });
    let positive = u32::try_from(update_frequency).ok().and_then(NonZeroU32::new);
    positive.ok_or_else(|| at.field("update_frequency").reject(format!("{update_frequency} must be above 0")))
}

/// The configuration of a named extension.
fn named(context: &Context<'_>, at: &FieldPath<'_>, name: &str, config: Option<Any>) -> Parsed<Any> {
    if name.is_empty() {
        return Err(at.field("name").reject("must not be empty"));
    }
    let at = at.field("typed_config");
    let Some(config) = config else { return Err(at.reject("is required")) };
    wire::extension(context, &at, config)
}
