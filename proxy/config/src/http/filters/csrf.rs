//! Protection from requests forged by other sites (`envoy.extensions.filters.http.csrf.v3`).
//!
//! Owns which origins are allowed. Never looks at a request.

use outrigger_api::pb::envoy::extensions::filters::http::csrf::v3 as pb;

use crate::decide::decide;
use crate::matching::StringMatcher;
use crate::rejection::{FieldPath, Parsed};
use crate::units::RuntimeFraction;
use crate::wire;

/// Source: `envoy.extensions.filters.http.csrf.v3.CsrfPolicy`.
#[derive(Clone, Debug)]
pub struct CsrfPolicy {
    /// Share of requests that the policy is enforced for.
    pub enabled: RuntimeFraction,
    /// Share of the others that are only counted.
    pub shadow_enabled: Option<RuntimeFraction>,
    /// Allowed besides the request's own host.
    pub additional_origins: Vec<StringMatcher>,
}

impl CsrfPolicy {
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::CsrfPolicy) -> Parsed<Self> {
        decide!(wire, at, pb::CsrfPolicy as "envoy.extensions.filters.http.csrf.v3.CsrfPolicy" {
            implemented: filter_enabled, shadow_enabled, additional_origins;
            no_effect: ;
            unsupported: ;
        });
        let enabled = at.field("filter_enabled");
        let Some(wire) = filter_enabled else { return Err(enabled.reject("is required")) };
        Ok(Self {
            enabled: wire::runtime_fraction(&enabled, wire)?,
            shadow_enabled: shadow_enabled
                .map(|wire| wire::runtime_fraction(&at.field("shadow_enabled"), wire))
                .transpose()?,
            additional_origins: wire::each(&at.field("additional_origins"), additional_origins, wire::string_matcher)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_must_say_how_often_it_counts() {
        let root = FieldPath::resource("listener", "l");
        let rejection = CsrfPolicy::parse(&root, pb::CsrfPolicy::default()).unwrap_err();
        assert_eq!(rejection.to_string(), "listener \"l\": filter_enabled: is required");
    }
}
