//! Authentication by JSON Web Tokens (`envoy.extensions.filters.http.jwt_authn.v3`).
//!
//! Owns the rules: which requests need which tokens. Who issues tokens is in `provider`. Never looks at a token.

mod provider;
mod remote;
mod requirement;

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;

pub use provider::{ClaimHeader, HeaderLocation, JwksSource, JwtCache, JwtProvider, Lifetime};
pub use remote::{AsyncFetch, RemoteJwks};
pub use requirement::JwtRequirement;

use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::route::{RouteMatch, route_match};
use requirement::Requirements;

/// Source: `JwtAuthentication`.
#[derive(Clone, Debug)]
pub struct JwtAuthn {
    /// By name.
    pub providers: Vec<Arc<JwtProvider>>,
    /// The first that matches counts; where none does, the filter state is asked.
    pub rules: Vec<JwtRule>,
    /// What the filter state says is required.
    pub by_filter_state: Option<FilterStateRule>,
    /// What routes refer to.
    pub by_name: BTreeMap<String, JwtRequirement>,
    /// Questions of browsers that come before a request pass.
    pub bypass_cors_preflight: bool,
    /// Refusals have neither a body nor `www-authenticate`.
    pub strip_failure_response: bool,
    /// Follows `jwt_authn.` in stat names; may be empty.
    pub stat_prefix: String,
    /// Headers that this filter alone may set: clients must not.
    pub reserved_headers: Vec<Arc<str>>,
}

/// Source: `RequirementRule`.
#[derive(Clone, Debug)]
pub struct JwtRule {
    /// Which requests it is for.
    pub matches: RouteMatch,
    /// What they need; `None` lets them pass.
    pub requires: Option<JwtRequirement>,
}

/// Source: `FilterStateRule`.
#[derive(Clone, Debug)]
pub struct FilterStateRule {
    /// Key of the filter state.
    pub key: String,
    /// By its value; others let requests pass.
    pub requires: BTreeMap<String, JwtRequirement>,
}

/// Source: `PerRouteConfig`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum JwtRoute {
    /// Requests pass.
    Disabled,
    /// Names one of [`JwtAuthn::by_name`]; requests are refused if there is no such.
    Requirement(String),
}

impl JwtAuthn {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::JwtAuthentication) -> Parsed<Self> {
        decide!(wire, at, pb::JwtAuthentication as "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication" {
            implemented: providers, rules, filter_state_rules, bypass_cors_preflight, requirement_map,
                strip_failure_response, stat_prefix;
            no_effect: ;
            unsupported: ;
        });
        let providers_at = at.field("providers");
        let mut read = Vec::with_capacity(providers.len());
        for (name, wire) in in_order(providers) {
            let at = providers_at.key(&name);
            read.push(Arc::new(JwtProvider::parse(context, &at, name.as_str().into(), wire)?));
        }
        let mut requirements = Requirements { providers: &read, by_name: BTreeMap::new() };
        let map_at = at.field("requirement_map");
        for (name, wire) in in_order(requirement_map) {
            let requirement = requirements.read(&map_at.key(&name), wire)?;
            requirements.by_name.insert(name, requirement);
        }
        let rules_at = at.field("rules");
        let rules = crate::wire::each(&rules_at, rules, |at, wire| rule(context, at, wire, &requirements))?;
        let by_filter_state = match filter_state_rules {
            Some(wire) => Some(filter_state_rule(&at.field("filter_state_rules"), wire, &requirements)?),
            None => None,
        };
        let by_name = requirements.by_name;
        let reserved_headers = read.iter().flat_map(|provider| provider.own_headers().cloned()).collect();
        Ok(Self {
            providers: read,
            rules,
            by_filter_state,
            by_name,
            bypass_cors_preflight,
            strip_failure_response,
            stat_prefix,
            reserved_headers,
        })
    }
}

impl JwtRoute {
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::PerRouteConfig) -> Parsed<Self> {
        decide!(wire, at, pb::PerRouteConfig as "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig" {
            implemented: requirement_specifier;
            no_effect: ;
            unsupported: ;
        });
        use pb::per_route_config::RequirementSpecifier as Wire;
        match requirement_specifier {
            Some(Wire::Disabled(true)) => Ok(Self::Disabled),
            Some(Wire::Disabled(false)) => Err(at.field("disabled").reject("must be true")),
            Some(Wire::RequirementName(name)) if name.is_empty() => {
                Err(at.field("requirement_name").reject("must not be empty"))
            }
            Some(Wire::RequirementName(name)) => Ok(Self::Requirement(name)),
            None => Err(at.reject("needs one of disabled, requirement_name")),
        }
    }
}

fn rule(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: pb::RequirementRule,
    requirements: &Requirements<'_>,
) -> Parsed<JwtRule> {
    decide!(wire, at, pb::RequirementRule as "envoy.extensions.filters.http.jwt_authn.v3.RequirementRule" {
        implemented: r#match, requirement_type;
        no_effect: ;
        unsupported: ;
    });
    let match_at = at.field("match");
    let Some(wire) = r#match else { return Err(match_at.reject("is required")) };
    let matches = route_match(context, &match_at, wire)?;
    // A rule that is passed over lets requests through, so a condition that other proxies leave out is not taken.
    if matches.grpc {
        return Err(match_at.field("grpc").unsupported());
    }
    if !matches.cookies.is_empty() {
        return Err(match_at.field("cookies").unsupported());
    }
    if matches.runtime_fraction.is_some() {
        return Err(match_at.field("runtime_fraction").unsupported());
    }
    if matches.more.is_some() {
        return Err(match_at.reject("tls_context, dynamic_metadata and filter_state are not supported here"));
    }
    use pb::requirement_rule::RequirementType as Wire;
    let requires = match requirement_type {
        None => None,
        Some(Wire::Requires(wire)) => Some(requirements.read(&at.field("requires"), wire)?),
        Some(Wire::RequirementName(name)) => Some(requirements.named(&at.field("requirement_name"), &name)?),
    };
    Ok(JwtRule { matches, requires })
}

fn filter_state_rule(
    at: &FieldPath<'_>,
    wire: pb::FilterStateRule,
    requirements: &Requirements<'_>,
) -> Parsed<FilterStateRule> {
    decide!(wire, at, pb::FilterStateRule as "envoy.extensions.filters.http.jwt_authn.v3.FilterStateRule" {
        implemented: name, requires;
        no_effect: ;
        unsupported: ;
    });
    if name.is_empty() {
        return Err(at.field("name").reject("must not be empty"));
    }
    let requires_at = at.field("requires");
    let mut read = BTreeMap::new();
    for (value, wire) in in_order(requires) {
        let requirement = requirements.read(&requires_at.key(&value), wire)?;
        read.insert(value, requirement);
    }
    Ok(FilterStateRule { key: name, requires: read })
}

/// A map has no order, and the same input should always be read the same way.
fn in_order<V>(map: std::collections::HashMap<String, V>) -> Vec<(String, V)> {
    let mut entries: Vec<_> = map.into_iter().collect();
    entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    entries
}

#[cfg(test)]
mod tests;
