//! Which requests a route is for (`RouteMatch`, `HeaderMatcher`, `QueryParameterMatcher`).
//!
//! Owns matchers and their checks. Never matches a request (see `outrigger-policy`).

use std::sync::Arc;

use outrigger_api::pb::envoy::config::route::v3 as pb;
use outrigger_api::pb::envoy::r#type::matcher::v3 as matcher;
use outrigger_api::pb::envoy::r#type::v3::Int64Range;

use crate::context::Context;
use crate::decide::decide;
use crate::http::header_mutations::header_name;
use crate::matching::{FilterStateMatcher, MetadataMatcher, StringMatcher, UriTemplate};
use crate::rejection::{FieldPath, Parsed};
use crate::units::RuntimeFraction;
use crate::wire;

/// Source: `RouteMatch`.
#[derive(Clone, Debug)]
pub struct RouteMatch {
    /// The path, without its query.
    pub path: PathMatch,
    /// For everything but regexes.
    pub case_sensitive: bool,
    /// All must match.
    pub headers: Vec<HeaderMatcher>,
    /// All must match.
    pub query_parameters: Vec<QueryParameterMatcher>,
    /// Matches a share of requests only.
    pub runtime_fraction: Option<RuntimeFraction>,
    /// Only gRPC requests.
    pub grpc: bool,
    /// All must match.
    pub cookies: Vec<CookieMatcher>,
    /// What the request itself does not tell.
    pub more: Option<Box<StreamMatch>>,
}

/// What must hold of the connection of a request and of what filters left: all of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StreamMatch {
    /// Whether the client has shown a certificate.
    pub presented: Option<bool>,
    /// Whether that was verified.
    pub validated: Option<bool>,
    /// Dynamic metadata.
    pub metadata: Vec<MetadataMatcher>,
    /// Objects of the filter state.
    pub filter_state: Vec<FilterStateMatcher>,
}

/// How a route matches the path.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// Starts with; `/` or empty matches all.
    Prefix(String),
    /// The whole path.
    Exact(String),
    /// Equal, or continued by `/`; does not end with `/` itself.
    SeparatedPrefix(String),
    /// The whole path, RE2 syntax.
    Regex(regex::Regex),
    /// The whole path, by template.
    Template(UriTemplate),
    /// CONNECT requests only.
    Connect,
}

/// Source: `CookieMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct CookieMatcher {
    /// Case-sensitive.
    pub name: String,
    /// What the value of the first cookie of that name must be.
    pub value: StringMatcher,
    /// The opposite; a cookie that is absent does not match by itself.
    pub invert: bool,
}

/// Source: `HeaderMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatcher {
    /// Lower case.
    pub name: Arc<str>,
    /// What the value must be.
    pub value: HeaderMatch,
    /// The opposite.
    pub invert: bool,
    /// An absent header counts as an empty value.
    pub treat_missing_as_empty: bool,
}

/// What a header's value must be.
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderMatch {
    /// Present (true) or absent (false).
    Present(bool),
    /// A number within `start..end`.
    Range { start: i64, end: i64 },
    /// By string.
    String(StringMatcher),
}

/// Source: `QueryParameterMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryParameterMatcher {
    /// Case-sensitive.
    pub name: String,
    /// What its value must be.
    pub value: QueryMatch,
}

/// What a query parameter must be.
#[derive(Clone, Debug, PartialEq)]
pub enum QueryMatch {
    /// Present (true) or absent (false).
    Present(bool),
    /// By string.
    String(StringMatcher),
}

/// Reads a route's match.
pub(crate) fn route_match(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::RouteMatch) -> Parsed<RouteMatch> {
    decide!(wire, at, pb::RouteMatch as "envoy.config.route.v3.RouteMatch" {
        implemented: case_sensitive, runtime_fraction, headers, query_parameters, grpc, path_specifier, cookies,
            tls_context, dynamic_metadata, filter_state;
        no_effect: ;
        unsupported: ;
    });
    let headers_at = at.field("headers");
    let parameters_at = at.field("query_parameters");
    Ok(RouteMatch {
        path: path_match(context, at, path_specifier)?,
        case_sensitive: case_sensitive.is_none_or(|flag| flag.value),
        headers: wire::each(&headers_at, headers, header_matcher)?,
        query_parameters: wire::each(&parameters_at, query_parameters, query_parameter_matcher)?,
        runtime_fraction: match runtime_fraction {
            None => None,
            Some(fraction) => Some(wire::runtime_fraction(&at.field("runtime_fraction"), fraction)?),
        },
        grpc: grpc.is_some(),
        cookies: wire::each(&at.field("cookies"), cookies, cookie_matcher)?,
        more: more(at, tls_context, dynamic_metadata, filter_state)?,
    })
}

/// What a request itself does not tell; `None` if nothing of it is asked.
fn more(
    at: &FieldPath<'_>,
    tls: Option<pb::route_match::TlsContextMatchOptions>,
    metadata: Vec<matcher::MetadataMatcher>,
    filter_state: Vec<matcher::FilterStateMatcher>,
) -> Parsed<Option<Box<StreamMatch>>> {
    let pb::route_match::TlsContextMatchOptions { presented, validated } = tls.unwrap_or_default();
    let all = StreamMatch {
        presented: presented.map(|flag| flag.value),
        validated: validated.map(|flag| flag.value),
        metadata: wire::each(&at.field("dynamic_metadata"), metadata, MetadataMatcher::parse)?,
        filter_state: wire::each(&at.field("filter_state"), filter_state, FilterStateMatcher::parse)?,
    };
    Ok((all != StreamMatch::default()).then(|| Box::new(all)))
}

fn path_match(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<pb::route_match::PathSpecifier>,
) -> Parsed<PathMatch> {
    use pb::route_match::PathSpecifier;
    Ok(match wire {
        Some(PathSpecifier::Prefix(prefix)) => PathMatch::Prefix(prefix),
        Some(PathSpecifier::Path(path)) => PathMatch::Exact(path),
        Some(PathSpecifier::SafeRegex(regex)) => PathMatch::Regex(wire::regex(&at.field("safe_regex"), regex)?),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            let at = at.field("path_separated_prefix");
            if prefix.chars().count() < 2 || prefix.contains(['?', '#']) || prefix.ends_with('/') {
                return Err(at.reject(format!(
                    "{prefix:?} must have two characters or more, must not contain '?' or '#' and must not end in '/'"
                )));
            }
            PathMatch::SeparatedPrefix(prefix)
        }
        Some(PathSpecifier::ConnectMatcher(pb::route_match::ConnectMatcher {})) => PathMatch::Connect,
        Some(PathSpecifier::PathMatchPolicy(policy)) => {
            PathMatch::Template(UriTemplate::parse(context, &at.field("path_match_policy"), policy)?)
        }
        None => {
            return Err(at.reject(
                "needs one of prefix, path, safe_regex, path_separated_prefix, connect_matcher, path_match_policy",
            ));
        }
    })
}

/// Reads a header matcher, in its newer and older forms.
pub(crate) fn header_matcher(at: &FieldPath<'_>, wire: pb::HeaderMatcher) -> Parsed<HeaderMatcher> {
    decide!(wire, at, pb::HeaderMatcher as "envoy.config.route.v3.HeaderMatcher" {
        implemented: name, invert_match, treat_missing_header_as_empty, header_match_specifier;
        no_effect: ;
        unsupported: ;
    });
    use pb::header_matcher::HeaderMatchSpecifier as Wire;
    let ignore_case = false;
    let value = match header_match_specifier {
        None => HeaderMatch::Present(true),
        Some(Wire::PresentMatch(present)) => HeaderMatch::Present(present),
        Some(Wire::RangeMatch(Int64Range { start, end })) => HeaderMatch::Range { start, end },
        Some(Wire::StringMatch(matcher)) => {
            HeaderMatch::String(wire::string_matcher(&at.field("string_match"), matcher)?)
        }
        Some(Wire::SafeRegexMatch(regex)) => {
            HeaderMatch::String(StringMatcher::Regex(wire::regex(&at.field("safe_regex_match"), regex)?))
        }
        Some(Wire::ExactMatch(value)) => HeaderMatch::String(StringMatcher::Exact { value, ignore_case }),
        Some(Wire::PrefixMatch(value)) => HeaderMatch::String(StringMatcher::Prefix {
            value: not_empty(&at.field("prefix_match"), value)?,
            ignore_case,
        }),
        Some(Wire::SuffixMatch(value)) => HeaderMatch::String(StringMatcher::Suffix {
            value: not_empty(&at.field("suffix_match"), value)?,
            ignore_case,
        }),
        Some(Wire::ContainsMatch(value)) => HeaderMatch::String(StringMatcher::Contains {
            value: not_empty(&at.field("contains_match"), value)?,
            ignore_case,
        }),
    };
    Ok(HeaderMatcher {
        name: header_name(&at.field("name"), &name)?,
        value,
        invert: invert_match,
        treat_missing_as_empty: treat_missing_header_as_empty,
    })
}

/// Reads a query parameter matcher.
pub(crate) fn query_parameter_matcher(
    at: &FieldPath<'_>,
    wire: pb::QueryParameterMatcher,
) -> Parsed<QueryParameterMatcher> {
    decide!(wire, at, pb::QueryParameterMatcher as "envoy.config.route.v3.QueryParameterMatcher" {
        implemented: name, query_parameter_match_specifier;
        no_effect: ;
        unsupported: ;
    });
    if name.is_empty() || name.len() > MAX_PARAMETER_BYTES {
        return Err(at.field("name").reject(format!("has {} bytes, expected 1 to {MAX_PARAMETER_BYTES}", name.len())));
    }
    use pb::query_parameter_matcher::QueryParameterMatchSpecifier as Wire;
    let value = match query_parameter_match_specifier {
        None | Some(Wire::PresentMatch(true)) => QueryMatch::Present(true),
        Some(Wire::PresentMatch(false)) => QueryMatch::Present(false),
        Some(Wire::StringMatch(matcher)) => {
            QueryMatch::String(wire::string_matcher(&at.field("string_match"), matcher)?)
        }
    };
    Ok(QueryParameterMatcher { name, value })
}

fn cookie_matcher(at: &FieldPath<'_>, wire: pb::CookieMatcher) -> Parsed<CookieMatcher> {
    decide!(wire, at, pb::CookieMatcher as "envoy.config.route.v3.CookieMatcher" {
        implemented: name, string_match, invert_match;
        no_effect: ;
        unsupported: ;
    });
    if name.is_empty() || name.len() > MAX_PARAMETER_BYTES {
        return Err(at.field("name").reject(format!("has {} bytes, expected 1 to {MAX_PARAMETER_BYTES}", name.len())));
    }
    let Some(matcher) = string_match else {
        return Err(at.field("string_match").reject("is required"));
    };
    let value = wire::string_matcher(&at.field("string_match"), matcher)?;
    Ok(CookieMatcher { name, value, invert: invert_match })
}

fn not_empty(at: &FieldPath<'_>, value: String) -> Parsed<String> {
    if value.is_empty() { Err(at.reject("must not be empty")) } else { Ok(value) }
}

const MAX_PARAMETER_BYTES: usize = 1024;
