//! Who issues tokens, where they stand in requests and what becomes of them (`JwtProvider`).
//!
//! Owns the settings of one provider with its keys, if they are given in place. Never looks at a token.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;

use super::RemoteJwks;
use crate::context::Context;
use crate::decide::decide;
use crate::http::filters::basic_auth::plain_header;
use crate::http::header_mutations::check_header_value;
use crate::jwks::Jwks;
use crate::matching::StringMatcher;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Source: `JwtProvider`.
#[derive(Clone, Debug)]
pub struct JwtProvider {
    /// Its key in the map of providers.
    pub name: Arc<str>,
    /// What `iss` must be; empty for anything.
    pub issuer: String,
    /// One of them must be in `aud`; empty for anything.
    pub audiences: Vec<String>,
    /// What `sub` must be.
    pub subjects: Option<StringMatcher>,
    /// What `exp` must be.
    pub lifetime: Lifetime,
    /// Where keys come from.
    pub jwks: JwksSource,
    /// Tokens go on upstream.
    pub forward: bool,
    /// Headers that hold tokens.
    pub from_headers: Vec<HeaderLocation>,
    /// Query parameters that hold tokens.
    pub from_params: Vec<Arc<str>>,
    /// Cookies that hold tokens.
    pub from_cookies: Vec<Arc<str>>,
    /// Gets the payload of a valid token.
    pub forward_payload_header: Option<Arc<str>>,
    /// With padding.
    pub pad_forward_payload_header: bool,
    /// The key under which metadata gets the payload of a valid token.
    pub payload_in_metadata: Option<Arc<str>>,
    /// Claims that are lists there, of words.
    pub space_delimited_claims: Vec<String>,
    /// The key under which metadata gets the header of a valid token.
    pub header_in_metadata: Option<Arc<str>>,
    /// The key under which metadata gets the reason of a refusal.
    pub failed_status_in_metadata: Option<Arc<str>>,
    /// By how much clocks may differ.
    pub clock_skew_s: u64,
    /// Valid tokens that are remembered.
    pub cache: Option<JwtCache>,
    /// Headers that get claims.
    pub claim_headers: Vec<ClaimHeader>,
    /// The route is chosen again when a valid token has changed the request.
    pub clear_route_cache: bool,
}

/// Source: `JwtProvider.require_expiration`, `max_lifetime`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lifetime {
    /// Tokens need no end.
    Any,
    /// Tokens must end some time.
    Ending,
    /// Tokens must end sooner than this from now.
    Below(Duration),
}

/// Source: `JwtProvider.jwks_source_specifier`.
#[derive(Clone, Debug)]
pub enum JwksSource {
    /// Given in place, in a file that is read with the configuration, or in the environment. Without keys, all tokens
    /// are refused.
    Local(Arc<Jwks>),
    /// Fetched.
    Remote(Arc<RemoteJwks>),
}

/// Source: `JwtHeader`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HeaderLocation {
    /// Lower case.
    pub name: Arc<str>,
    /// Stands before the token; empty if the token stands alone.
    pub value_prefix: String,
}

/// Source: `JwtCacheConfig`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct JwtCache {
    /// Tokens in each worker.
    pub tokens: usize,
    /// Longer ones are not remembered.
    pub max_token_bytes: usize,
}

/// Source: `JwtClaimToHeader`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClaimHeader {
    /// Lower case.
    pub header: Arc<str>,
    /// Names of nested objects, then of the claim; not empty.
    pub path: Vec<String>,
}

impl JwtProvider {
    pub(super) fn parse(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        name: Arc<str>,
        wire: pb::JwtProvider,
    ) -> Parsed<Self> {
        decide!(wire, at, pb::JwtProvider as "envoy.extensions.filters.http.jwt_authn.v3.JwtProvider" {
            implemented: issuer, audiences, subjects, require_expiration, max_lifetime, forward, from_headers,
                from_params, from_cookies, forward_payload_header, pad_forward_payload_header, payload_in_metadata,
                normalize_payload_in_metadata, header_in_metadata, failed_status_in_metadata, clock_skew_seconds,
                jwt_cache_config, claim_to_headers, clear_route_cache, jwks_source_specifier;
            no_effect: ;
            unsupported: ;
        });
        let lifetime = match max_lifetime {
            Some(wire) => Lifetime::Below(wire::duration(&at.field("max_lifetime"), wire)?),
            None if require_expiration => Lifetime::Ending,
            None => Lifetime::Any,
        };
        let mut provider = Self {
            jwks: jwks_source(context, at, &name, jwks_source_specifier)?,
            name,
            issuer,
            audiences,
            subjects: subjects.map(|wire| wire::string_matcher(&at.field("subjects"), wire)).transpose()?,
            lifetime,
            forward,
            from_headers: wire::each(&at.field("from_headers"), from_headers, header_location)?,
            from_params: from_params.into_iter().map(Arc::from).collect(),
            from_cookies: from_cookies.into_iter().map(Arc::from).collect(),
            forward_payload_header: optional_header(&at.field("forward_payload_header"), &forward_payload_header)?,
            pad_forward_payload_header,
            payload_in_metadata: optional(payload_in_metadata),
            space_delimited_claims: normalize_payload_in_metadata.map(claims_to_split).unwrap_or_default(),
            header_in_metadata: optional(header_in_metadata),
            failed_status_in_metadata: optional(failed_status_in_metadata),
            clock_skew_s: if clock_skew_seconds == 0 { DEFAULT_CLOCK_SKEW_S } else { clock_skew_seconds.into() },
            cache: jwt_cache_config.map(jwt_cache),
            claim_headers: wire::each(&at.field("claim_to_headers"), claim_to_headers, claim_header)?,
            clear_route_cache,
        };
        if provider.from_headers.is_empty() && provider.from_params.is_empty() && provider.from_cookies.is_empty() {
            let value_prefix = "Bearer ".to_owned();
            provider.from_headers.push(HeaderLocation { name: "authorization".into(), value_prefix });
            provider.from_params.push("access_token".into());
        }
        Ok(provider)
    }

    /// Headers that it sets.
    pub fn own_headers(&self) -> impl Iterator<Item = &Arc<str>> {
        self.forward_payload_header.iter().chain(self.claim_headers.iter().map(|claim| &claim.header))
    }
}

fn jwks_source(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    provider: &str,
    wire: Option<pb::jwt_provider::JwksSourceSpecifier>,
) -> Parsed<JwksSource> {
    use pb::jwt_provider::JwksSourceSpecifier as Wire;
    match wire {
        Some(Wire::RemoteJwks(wire)) => {
            Ok(JwksSource::Remote(Arc::new(RemoteJwks::parse(&at.field("remote_jwks"), provider, wire)?)))
        }
        Some(Wire::LocalJwks(wire)) => local_jwks(context, &at.field("local_jwks"), provider, wire),
        None => Err(at.reject("needs one of remote_jwks, local_jwks")),
    }
}

fn local_jwks(context: &Context<'_>, at: &FieldPath<'_>, provider: &str, wire: core::DataSource) -> Parsed<JwksSource> {
    // Like Envoy, which lets such a provider refuse every token.
    if wire.specifier.is_none() {
        return Ok(JwksSource::Local(Arc::default()));
    }
    let data = wire::data_source(context, at, wire)?;
    if data.bytes.is_empty() {
        return Ok(JwksSource::Local(Arc::default()));
    }
    match Jwks::parse(&data.bytes) {
        Ok(jwks) => Ok(JwksSource::Local(Arc::new(jwks))),
        Err(error) => {
            Err(at.reject(format!("Provider '{provider}' in jwt_authn config has invalid local jwks: {error}")))
        }
    }
}

fn header_location(at: &FieldPath<'_>, wire: pb::JwtHeader) -> Parsed<HeaderLocation> {
    decide!(wire, at, pb::JwtHeader as "envoy.extensions.filters.http.jwt_authn.v3.JwtHeader" {
        implemented: name, value_prefix;
        no_effect: ;
        unsupported: ;
    });
    check_header_value(&at.field("value_prefix"), &value_prefix)?;
    Ok(HeaderLocation { name: plain_header(&at.field("name"), &name)?, value_prefix })
}

fn claims_to_split(wire: pb::jwt_provider::NormalizePayload) -> Vec<String> {
    let pb::jwt_provider::NormalizePayload { space_delimited_claims } = wire;
    space_delimited_claims
}

fn jwt_cache(wire: pb::JwtCacheConfig) -> JwtCache {
    let pb::JwtCacheConfig { jwt_cache_size, jwt_max_token_size } = wire;
    let or = |value: u32, default: usize| if value == 0 { default } else { value as usize };
    JwtCache { tokens: or(jwt_cache_size, 100), max_token_bytes: or(jwt_max_token_size, 4096) }
}

fn claim_header(at: &FieldPath<'_>, wire: pb::JwtClaimToHeader) -> Parsed<ClaimHeader> {
    decide!(wire, at, pb::JwtClaimToHeader as "envoy.extensions.filters.http.jwt_authn.v3.JwtClaimToHeader" {
        implemented: header_name, claim_name, claim_path;
        no_effect: ;
        unsupported: ;
    });
    if claim_name.is_empty() == claim_path.is_empty() {
        return Err(at.reject("must have exactly one of claim_name and claim_path"));
    }
    let path_at = at.field("claim_path");
    let path = if claim_path.is_empty() {
        claim_name.split('.').map(str::to_owned).collect()
    } else {
        wire::each(&path_at, claim_path, |at, pb::jwt_claim_to_header::PathSegment { key }| {
            if key.is_empty() { Err(at.field("key").reject("must not be empty")) } else { Ok(key) }
        })?
    };
    Ok(ClaimHeader { header: plain_header(&at.field("header_name"), &header_name)?, path })
}

fn optional(text: String) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}

fn optional_header(at: &FieldPath<'_>, name: &str) -> Parsed<Option<Arc<str>>> {
    if name.is_empty() { Ok(None) } else { plain_header(at, name).map(Some) }
}

const DEFAULT_CLOCK_SKEW_S: u64 = 60;
