//! Cross-origin resource sharing (`envoy.extensions.filters.http.cors.v3`).
//!
//! Owns what a route allows other origins. Never answers a browser.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::route::v3 as deprecated;
use outrigger_api::pb::envoy::extensions::filters::http::cors::v3 as pb;

use crate::decide::decide;
use crate::matching::StringMatcher;
use crate::rejection::{FieldPath, Parsed};
use crate::units::RuntimeFraction;
use crate::wire;

/// What a route allows pages of other origins. Source: `CorsPolicy`.
#[derive(Clone, Debug)]
pub struct CorsPolicy {
    /// One of these must match the origin.
    pub allow_origin: Vec<StringMatcher>,
    /// `access-control-allow-methods`, if not empty.
    pub allow_methods: String,
    /// `access-control-allow-headers`, if not empty.
    pub allow_headers: String,
    /// `access-control-expose-headers`, if not empty.
    pub expose_headers: String,
    /// `access-control-max-age`, if not empty.
    pub max_age: String,
    /// `access-control-allow-credentials: true`; not unless given.
    pub allow_credentials: Option<bool>,
    /// Share of requests that the policy is applied to; all unless given.
    pub enabled: Option<RuntimeFraction>,
    /// Share of requests that are counted although the policy is not applied to them.
    pub shadow_enabled: Option<RuntimeFraction>,
    /// `access-control-allow-private-network: true` to those who ask; not unless given.
    pub allow_private_network_access: Option<bool>,
    /// Preflight requests of other origins go upstream, unless disabled, instead of being answered here.
    pub forward_not_matching_preflights: Option<bool>,
}

/// The filter itself has no settings.
pub(super) fn nothing(wire: pb::Cors) {
    let pb::Cors {} = wire;
}

impl CorsPolicy {
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::CorsPolicy) -> Parsed<Self> {
        decide!(wire, at, pb::CorsPolicy as "envoy.extensions.filters.http.cors.v3.CorsPolicy" {
            implemented: allow_origin_string_match, allow_methods, allow_headers, expose_headers, max_age,
                allow_credentials, filter_enabled, shadow_enabled, allow_private_network_access,
                forward_not_matching_preflights;
            no_effect: ;
            unsupported: ;
        });
        let origins = at.field("allow_origin_string_match");
        for (field, value) in [
            ("allow_methods", &allow_methods),
            ("allow_headers", &allow_headers),
            ("expose_headers", &expose_headers),
            ("max_age", &max_age),
        ] {
            wire::header_value(&at.field(field), value)?;
        }
        let fraction =
            |field, wire: Option<_>| wire.map(|wire| wire::runtime_fraction(&at.field(field), wire)).transpose();
        Ok(Self {
            allow_origin: allow_origin_string_match
                .into_iter()
                .enumerate()
                .map(|(index, wire)| wire::string_matcher(&origins.item(index), wire))
                .collect::<Parsed<_>>()?,
            allow_methods,
            allow_headers,
            expose_headers,
            max_age,
            allow_credentials: allow_credentials.map(|flag| flag.value),
            enabled: fraction("filter_enabled", filter_enabled)?,
            shadow_enabled: fraction("shadow_enabled", shadow_enabled)?,
            allow_private_network_access: allow_private_network_access.map(|flag| flag.value),
            forward_not_matching_preflights: forward_not_matching_preflights.map(|flag| flag.value),
        })
    }
}

/// Reads the `cors` of a virtual host or route, which is deprecated: the same policy, for filters that have none by name.
pub(crate) fn deprecated_cors(
    at: &FieldPath<'_>,
    wire: Option<deprecated::CorsPolicy>,
) -> Parsed<Option<Arc<CorsPolicy>>> {
    let Some(wire) = wire else { return Ok(None) };
    decide!(wire, at, deprecated::CorsPolicy as "envoy.config.route.v3.CorsPolicy" {
        implemented: allow_origin_string_match, allow_methods, allow_headers, expose_headers, max_age,
            allow_credentials, shadow_enabled, allow_private_network_access, forward_not_matching_preflights,
            enabled_specifier;
        no_effect: ;
        unsupported: ;
    });
    let wire = pb::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled: enabled_specifier
            .map(|deprecated::cors_policy::EnabledSpecifier::FilterEnabled(enabled)| enabled),
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
    };
    CorsPolicy::parse(at, wire).map(|policy| Some(Arc::new(policy)))
}
