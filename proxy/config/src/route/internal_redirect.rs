//! Reading which redirects of upstreams are followed here (`InternalRedirectPolicy` and its predicates).
//!
//! Owns the checks of the policy. Never follows a redirect (see `outrigger-policy` for the decision).

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use outrigger_api::pb::envoy::config::route::v3 as pb;
use outrigger_api::pb::envoy::extensions::internal_redirect::allow_listed_routes::v3::AllowListedRoutesConfig;
use outrigger_api::pb::envoy::extensions::internal_redirect::previous_routes::v3::PreviousRoutesConfig;
use outrigger_api::pb::envoy::extensions::internal_redirect::safe_cross_scheme::v3::SafeCrossSchemeConfig;
use outrigger_api::pb::google::protobuf::UInt32Value;

use super::{InternalRedirect, RedirectPredicate};
use crate::context::Context;
use crate::decide::decide;
use crate::http::header_mutations::header_name;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Reads a policy.
pub(super) fn internal_redirect(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: pb::InternalRedirectPolicy,
) -> Parsed<InternalRedirect> {
    decide!(wire, at, pb::InternalRedirectPolicy as "envoy.config.route.v3.InternalRedirectPolicy" {
        implemented: max_internal_redirects, redirect_response_codes, predicates, allow_cross_scheme_redirect,
            response_headers_to_copy;
        no_effect: ;
        unsupported: ;
    });
    let codes_at = at.field("redirect_response_codes");
    if redirect_response_codes.len() > REDIRECT_CODES.len() {
        return Err(codes_at.reject(format!("has more than {} codes", REDIRECT_CODES.len())));
    }
    // Codes that are no redirects are passed over, as the API says.
    let mut codes: Vec<u16> =
        REDIRECT_CODES.into_iter().filter(|code| redirect_response_codes.contains(&u32::from(*code))).collect();
    if redirect_response_codes.is_empty() {
        codes.push(302);
    }
    let copied_at = at.field("response_headers_to_copy");
    let predicates_at = at.field("predicates");
    Ok(InternalRedirect {
        max_redirects: max_redirects(max_internal_redirects),
        codes,
        allow_cross_scheme: allow_cross_scheme_redirect,
        predicates: wire::each(&predicates_at, predicates, |at, wire| predicate(context, at, wire))?,
        copied_headers: response_headers_to_copy
            .iter()
            .enumerate()
            .map(|(index, name)| copied_header(&copied_at.item(index), name))
            .collect::<Parsed<_>>()?,
    })
}

/// The policy that the deprecated fields of a route make.
pub(super) fn deprecated(max_redirects: Option<UInt32Value>) -> InternalRedirect {
    InternalRedirect {
        max_redirects: self::max_redirects(max_redirects),
        codes: vec![302],
        allow_cross_scheme: false,
        predicates: Vec::new(),
        copied_headers: Vec::new(),
    }
}

fn max_redirects(wire: Option<UInt32Value>) -> u32 {
    wire.map_or(1, |max| max.value)
}

fn copied_header(at: &FieldPath<'_>, name: &str) -> Parsed<Arc<str>> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(at.reject(format!("{name:?} must not be copied from a response")));
    }
    header_name(at, name)
}

fn predicate(context: &Context<'_>, at: &FieldPath<'_>, wire: TypedExtensionConfig) -> Parsed<RedirectPredicate> {
    let at = at.field("typed_config");
    let Some(config) = wire.typed_config else {
        return Err(at.reject("is required"));
    };
    let config = wire::extension(context, &at, config)?;
    Ok(match wire::type_name(&config) {
        "envoy.extensions.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig" => {
            let wire: AllowListedRoutesConfig = wire::decode(&at, &config)?;
            decide!(wire, at, AllowListedRoutesConfig
                as "envoy.extensions.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig" {
                implemented: allowed_route_names;
                no_effect: ;
                unsupported: ;
            });
            if let Some(index) = allowed_route_names.iter().position(String::is_empty) {
                return Err(at.field("allowed_route_names").item(index).reject("must not be empty"));
            }
            RedirectPredicate::AllowListedRoutes(allowed_route_names.into_iter().map(Into::into).collect())
        }
        "envoy.extensions.internal_redirect.previous_routes.v3.PreviousRoutesConfig" => {
            let PreviousRoutesConfig {} = wire::decode(&at, &config)?;
            RedirectPredicate::PreviousRoutes
        }
        "envoy.extensions.internal_redirect.safe_cross_scheme.v3.SafeCrossSchemeConfig" => {
            let SafeCrossSchemeConfig {} = wire::decode(&at, &config)?;
            RedirectPredicate::SafeCrossScheme
        }
        _ => return Err(at.reject(format!("{:?} is not supported", config.type_url))),
    })
}

/// What may be followed at all.
const REDIRECT_CODES: [u16; 5] = [301, 302, 303, 307, 308];
