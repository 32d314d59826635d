//! Reads the filters that enforce rules.
//!
//! Owns the messages of the HTTP filter, its per-route settings and the network filter.

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::http::rbac::v3 as http;
use outrigger_api::pb::envoy::extensions::filters::network::rbac::v3 as network;

use super::rules::Reader;
use super::{HttpRbac, NetworkRbac};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

const ENFORCED: (&str, &str) = ("rules", "matcher");
const SHADOW: (&str, &str) = ("shadow_rules", "shadow_matcher");

impl HttpRbac {
    /// Reads the HTTP filter at `at`.
    pub(crate) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: http::Rbac) -> Parsed<Self> {
        decide!(wire, at, http::Rbac as "envoy.extensions.filters.http.rbac.v3.RBAC" {
            implemented: rules, rules_stat_prefix, matcher, shadow_rules, shadow_matcher, shadow_rules_stat_prefix,
                track_per_rule_stats;
            no_effect: ;
            unsupported: ;
        });
        let reader = Reader { context, http: true };
        Ok(Self {
            enforced: reader.engine(at, ENFORCED, rules, matcher)?.map(Arc::new),
            shadow: reader.engine(at, SHADOW, shadow_rules, shadow_matcher)?.map(Arc::new),
            stat_prefix: rules_stat_prefix.into(),
            shadow_stat_prefix: shadow_rules_stat_prefix.into(),
            track_per_rule_stats,
        })
    }

    /// Reads what a route says: other rules, or, as `None`, that the filter does nothing there.
    pub(crate) fn parse_per_route(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: http::RbacPerRoute,
    ) -> Parsed<Option<Self>> {
        decide!(wire, at, http::RbacPerRoute as "envoy.extensions.filters.http.rbac.v3.RBACPerRoute" {
            implemented: rbac;
            no_effect: ;
            unsupported: ;
        });
        rbac.map(|wire| Self::parse(context, &at.field("rbac"), wire)).transpose()
    }
}

impl NetworkRbac {
    /// Reads the network filter at `at`.
    pub(crate) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: network::Rbac) -> Parsed<Self> {
        decide!(wire, at, network::Rbac as "envoy.extensions.filters.network.rbac.v3.RBAC" {
            implemented: rules, matcher, shadow_rules, shadow_matcher, shadow_rules_stat_prefix, stat_prefix,
                enforcement_type, delay_deny;
            no_effect: ;
            unsupported: ;
        });
        if stat_prefix.is_empty() {
            return Err(at.field("stat_prefix").reject("must not be empty"));
        }
        // No network filter learns more of a connection while its bytes pass, so asking once is asking continuously.
        network::rbac::EnforcementType::try_from(enforcement_type)
            .map_err(|_| wire::unknown_enum(&at.field("enforcement_type"), enforcement_type))?;
        let reader = Reader { context, http: false };
        Ok(Self {
            enforced: reader.engine(at, ENFORCED, rules, matcher)?.map(Arc::new),
            shadow: reader.engine(at, SHADOW, shadow_rules, shadow_matcher)?.map(Arc::new),
            stat_prefix: stat_prefix.into(),
            shadow_stat_prefix: shadow_rules_stat_prefix.into(),
            delay_deny: wire::limit(&at.field("delay_deny"), delay_deny, None)?,
        })
    }
}
