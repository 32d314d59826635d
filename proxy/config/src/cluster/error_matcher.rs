//! Which responses are errors to outlier detection (`HttpProtocolOptions.OutlierDetection.error_matcher`).
//!
//! Owns the checked predicate. Never sees a response.

use matcher::match_predicate::{MatchSet, Rule};
use outrigger_api::pb::envoy::config::common::matcher::v3 as matcher;
use outrigger_api::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::OutlierDetection;

use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::route::{HeaderMatcher, header_matcher};

/// A predicate over the head of a response.
#[derive(Clone, Debug, PartialEq)]
pub enum ErrorMatcher {
    /// Every response.
    Any,
    /// The opposite.
    Not(Box<ErrorMatcher>),
    /// All of these.
    All(Vec<ErrorMatcher>),
    /// One of these at least.
    One(Vec<ErrorMatcher>),
    /// All of these headers, with `:status` among them.
    Headers(Vec<HeaderMatcher>),
}

/// Reads what outlier detection takes for an error.
pub(super) fn error_matcher(at: &FieldPath<'_>, wire: OutlierDetection) -> Parsed<ErrorMatcher> {
    decide!(wire, at, OutlierDetection
        as "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.OutlierDetection" {
        implemented: error_matcher;
        no_effect: ;
        unsupported: ;
    });
    let at = at.field("error_matcher");
    match error_matcher {
        None => Err(at.reject("is required")),
        Some(wire) => predicate(&at, wire, DEEPEST),
    }
}

fn predicate(at: &FieldPath<'_>, wire: matcher::MatchPredicate, depth: usize) -> Parsed<ErrorMatcher> {
    let matcher::MatchPredicate { rule } = wire;
    let Some(depth) = depth.checked_sub(1) else { return Err(at.reject("is nested too deeply")) };
    // What is looked at is a response's head: there is no request and no body with it.
    match rule {
        None => Err(at.field("rule").reject("is required")),
        Some(Rule::AnyMatch(true)) => Ok(ErrorMatcher::Any),
        Some(Rule::AnyMatch(false)) => Err(at.field("any_match").reject("must be true")),
        Some(Rule::NotMatch(wire)) => Ok(ErrorMatcher::Not(Box::new(predicate(&at.field("not_match"), *wire, depth)?))),
        Some(Rule::AndMatch(wire)) => Ok(ErrorMatcher::All(set(&at.field("and_match"), wire, depth)?)),
        Some(Rule::OrMatch(wire)) => Ok(ErrorMatcher::One(set(&at.field("or_match"), wire, depth)?)),
        Some(Rule::HttpResponseHeadersMatch(matcher::HttpHeadersMatch { headers })) => {
            let at = at.field("http_response_headers_match");
            let list = at.field("headers");
            let headers = headers.into_iter().enumerate();
            Ok(ErrorMatcher::Headers(
                headers.map(|(index, wire)| header_matcher(&list.item(index), wire)).collect::<Parsed<_>>()?,
            ))
        }
        Some(Rule::HttpRequestHeadersMatch(_)) => Err(at.field("http_request_headers_match").unsupported()),
        Some(Rule::HttpRequestTrailersMatch(_)) => Err(at.field("http_request_trailers_match").unsupported()),
        Some(Rule::HttpResponseTrailersMatch(_)) => Err(at.field("http_response_trailers_match").unsupported()),
        Some(Rule::HttpRequestGenericBodyMatch(_)) => Err(at.field("http_request_generic_body_match").unsupported()),
        Some(Rule::HttpResponseGenericBodyMatch(_)) => Err(at.field("http_response_generic_body_match").unsupported()),
    }
}

fn set(at: &FieldPath<'_>, wire: MatchSet, depth: usize) -> Parsed<Vec<ErrorMatcher>> {
    let MatchSet { rules } = wire;
    let list = at.field("rules");
    if rules.len() < 2 {
        return Err(list.reject(format!("has {} entries, expected two at least", rules.len())));
    }
    rules.into_iter().enumerate().map(|(index, wire)| predicate(&list.item(index), wire, depth)).collect()
}

/// Predicates are evaluated recursively.
const DEEPEST: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_api::{ParseOptions, Schema};

    fn read(yaml: &str) -> Result<ErrorMatcher, String> {
        let yaml = format!("{{error_matcher: {yaml}}}");
        let wire = Schema::load().parse_yaml(&yaml, ParseOptions::default()).unwrap().message;
        error_matcher(&FieldPath::resource("cluster", "c"), wire).map_err(|error| error.to_string())
    }

    #[test]
    fn predicates_nest() {
        let status = "{http_response_headers_match: {headers: [{name: ':status', string_match: {exact: '418'}}]}}";
        let read = read(&format!("{{or_match: {{rules: [{status}, {{not_match: {{any_match: true}}}}]}}}}")).unwrap();
        let ErrorMatcher::One(rules) = read else { panic!("{read:?}") };
        assert!(matches!(&rules[0], ErrorMatcher::Headers(headers) if &*headers[0].name == ":status"));
        assert_eq!(rules[1], ErrorMatcher::Not(Box::new(ErrorMatcher::Any)));
    }

    #[test]
    fn predicates_that_are_refused() {
        for (yaml, reason) in [
            ("{}", "error_matcher.rule: is required"),
            ("{any_match: false}", "error_matcher.any_match: must be true"),
            (
                "{and_match: {rules: [{any_match: true}]}}",
                "error_matcher.and_match.rules: has 1 entries, expected two at least",
            ),
            (
                "{not_match: {http_request_headers_match: {}}}",
                "error_matcher.not_match.http_request_headers_match: is not supported",
            ),
        ] {
            assert_eq!(read(yaml).unwrap_err(), format!("cluster \"c\": {reason}"));
        }
    }
}
