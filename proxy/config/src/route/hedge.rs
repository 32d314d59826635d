//! Reading hedge policies (`envoy.config.route.v3.HedgePolicy`).
//!
//! Owns which of their fields have an effect. Never sends anything.

use outrigger_api::pb::envoy::config::route::v3 as pb;

use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};

/// Whether a try that is late goes on beside the next one.
pub(super) fn hedge_on_per_try_timeout(at: &FieldPath<'_>, wire: pb::HedgePolicy) -> Parsed<bool> {
    decide!(wire, at, pb::HedgePolicy as "envoy.config.route.v3.HedgePolicy" {
        implemented: hedge_on_per_try_timeout;
        no_effect: initial_requests = "Envoy does not implement it: one request is sent at first",
            additional_request_chance = "Envoy does not implement it: one request is sent at first";
        unsupported: ;
    });
    Ok(hedge_on_per_try_timeout)
}
