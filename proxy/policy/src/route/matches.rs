//! Whether one route takes a request.
//!
//! Owns what headers, query parameters and paths must look like. Never decides the order of routes.

use outrigger_config::route::{
    CookieMatcher, HeaderMatch, HeaderMatcher, PathMatch, QueryMatch, QueryParameterMatcher,
    RouteMatch as RouteCriteria, StreamMatch,
};
use outrigger_config::units::RuntimeFraction;

use super::{NoRuntime, RequestView, RuntimeView, fraction_holds, split_path};

/// A condition of a route that does not hold.
#[derive(Clone, Copy, Debug)]
pub enum Mismatch<'a> {
    /// The path is another one.
    Path(&'a PathMatch),
    /// It is no call of gRPC.
    Grpc,
    /// A header is not as wanted.
    Header(&'a HeaderMatcher),
    /// A cookie is not as wanted.
    Cookie(&'a CookieMatcher),
    /// A query parameter is not as wanted.
    Query(&'a QueryParameterMatcher),
    /// The connection, or what filters left, is not as wanted.
    Stream(&'a StreamMatch),
    /// The request is not in the share that the route takes.
    Share(&'a RuntimeFraction),
}

/// The first of `criteria` that does not hold. `path` and `query` are the parts of the request's path.
#[inline]
pub(super) fn first_mismatch<'a>(
    criteria: &'a RouteCriteria,
    request: &impl RequestView,
    path: &str,
    query: &str,
    random: u64,
    runtime: &dyn RuntimeView,
) -> Option<Mismatch<'a>> {
    if !path_matches(criteria, request, path) {
        return Some(Mismatch::Path(&criteria.path));
    }
    if criteria.grpc && !request.is_grpc() {
        return Some(Mismatch::Grpc);
    }
    if let Some(header) = criteria.headers.iter().find(|matcher| !request_header_matches(matcher, request)) {
        return Some(Mismatch::Header(header));
    }
    if let Some(cookie) = criteria.cookies.iter().find(|matcher| !cookie_matches(matcher, request)) {
        return Some(Mismatch::Cookie(cookie));
    }
    if let Some(parameter) = criteria.query_parameters.iter().find(|matcher| !query_matches(matcher, query)) {
        return Some(Mismatch::Query(parameter));
    }
    if let Some(wanted) = criteria.more.as_deref().filter(|wanted| !request.stream_matches(wanted)) {
        return Some(Mismatch::Stream(wanted));
    }
    criteria.runtime_fraction.as_ref().filter(|share| !fraction_holds(share, random, runtime)).map(Mismatch::Share)
}

/// Whether a request is one of those that a rule is for which has the form of a route's match, and names no share.
pub fn rule_matches(criteria: &RouteCriteria, request: &impl RequestView) -> bool {
    let (path, query) = split_path(request.path());
    first_mismatch(criteria, request, path, query, 0, &NoRuntime).is_none()
}

fn path_matches(criteria: &RouteCriteria, request: &impl RequestView, path: &str) -> bool {
    let starts_with = |prefix: &str| match path.as_bytes().get(..prefix.len()) {
        Some(start) if criteria.case_sensitive => start == prefix.as_bytes(),
        Some(start) => start.eq_ignore_ascii_case(prefix.as_bytes()),
        None => false,
    };
    match &criteria.path {
        PathMatch::Connect => request.method() == "CONNECT",
        // A request without a path is taken by CONNECT routes only.
        _ if path.is_empty() => false,
        PathMatch::Prefix(prefix) => starts_with(prefix),
        PathMatch::Exact(exact) => path.len() == exact.len() && starts_with(exact),
        PathMatch::SeparatedPrefix(prefix) => {
            starts_with(prefix) && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
        }
        PathMatch::Regex(regex) => regex.is_match(path),
        PathMatch::Template(template) => template.matches(path),
    }
}

/// Whether the first cookie of the name is as `matcher` wants it.
fn cookie_matches(matcher: &CookieMatcher, request: &impl RequestView) -> bool {
    let pairs = request.header("cookie").flat_map(|value| value.split(|byte| *byte == b';'));
    let mut named = pairs.filter_map(|pair| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii());
        let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        (name == matcher.name.as_bytes()).then_some(quoted.unwrap_or(value))
    });
    named.next().is_some_and(|value| matcher.value.matches(value)) != matcher.invert
}

/// Whether a request's header is as `matcher` wants it.
pub fn request_header_matches(matcher: &HeaderMatcher, request: &impl RequestView) -> bool {
    let single = |value: &str| header_matches(matcher, Some(value.as_bytes()).filter(|value| !value.is_empty()));
    match &*matcher.name {
        ":method" => single(request.method()),
        ":path" => single(request.path()),
        ":authority" | "host" => single(request.host()),
        name => header_matches(matcher, request.header(name)),
    }
}

/// Whether a header that stands there with `values` is as `matcher` wants it.
///
/// Each value is looked at by itself (as in Envoy since 1.39): one that fits is enough, and when inverted, one that
/// fits is too many. An absent header matches nothing, inverted or not, unless it counts as empty or absence itself is
/// asked for.
pub fn header_matches<'v>(matcher: &HeaderMatcher, values: impl IntoIterator<Item = &'v [u8]>) -> bool {
    let mut values = values.into_iter();
    let first = values.next().or(if matcher.treat_missing_as_empty { Some(b"".as_slice()) } else { None });
    let fits = |value: &[u8]| match &matcher.value {
        HeaderMatch::Present(wanted) => *wanted,
        HeaderMatch::Range { start, end } => integer(value).is_some_and(|value| (*start..*end).contains(&value)),
        HeaderMatch::String(string) => string.matches(value),
    };
    let matched = match (first, &matcher.value) {
        (Some(first), _) => fits(first) || values.any(fits),
        (None, HeaderMatch::Present(wanted)) => !wanted,
        (None, _) => return false,
    };
    matched != matcher.invert
}

fn integer(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Names and values are compared as they stand, without percent-decoding; the first value of a name counts.
fn query_matches(matcher: &QueryParameterMatcher, query: &str) -> bool {
    let mut parameters = query.split('&').map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")));
    match (parameters.find(|(name, _)| *name == matcher.name), &matcher.value) {
        (found, QueryMatch::Present(wanted)) => found.is_some() == *wanted,
        (None, QueryMatch::String(_)) => false,
        (Some((_, value)), QueryMatch::String(string)) => string.matches(value.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::matching::StringMatcher;

    use super::*;

    fn exact(value: &str) -> StringMatcher {
        StringMatcher::Exact { value: value.into(), ignore_case: false }
    }

    fn matcher(value: HeaderMatch) -> HeaderMatcher {
        HeaderMatcher { name: "x".into(), value, invert: false, treat_missing_as_empty: false }
    }

    #[test]
    fn ranges_want_whole_numbers() {
        let range = matcher(HeaderMatch::Range { start: -10, end: 0 });
        for (value, expected) in [
            ("-1", true),
            ("-10", true),
            ("0", false),
            ("-11", false),
            ("somestring", false),
            ("10.9", false),
            ("-1somestring", false),
            ("", false),
        ] {
            assert_eq!(header_matches(&range, [value.as_bytes()]), expected, "{value}");
        }
        assert!(header_matches(&matcher(HeaderMatch::Range { start: 5, end: 6 }), [b"+5".as_slice()]));
    }

    #[test]
    fn absent_headers_match_nothing_unless_they_count_as_empty() {
        let range = HeaderMatcher { invert: true, ..matcher(HeaderMatch::Range { start: 0, end: 10 }) };
        assert!(!header_matches(&range, None));
        assert!(header_matches(&HeaderMatcher { treat_missing_as_empty: true, ..range }, None));
        let empty = regex::Regex::new("^(?:^$)$").unwrap();
        let empty = matcher(HeaderMatch::String(StringMatcher::Regex(empty)));
        assert!(!header_matches(&empty, None));
        assert!(header_matches(&HeaderMatcher { treat_missing_as_empty: true, ..empty }, None));
    }

    #[test]
    fn presence_can_be_asked_for_in_four_ways() {
        for (wanted, invert, present, absent) in [
            (true, false, true, false),
            (false, false, false, true),
            (true, true, false, true),
            (false, true, true, false),
        ] {
            let matcher = HeaderMatcher { invert, ..matcher(HeaderMatch::Present(wanted)) };
            assert_eq!(header_matches(&matcher, [b"".as_slice()]), present);
            assert_eq!(header_matches(&matcher, None), absent);
        }
    }

    #[test]
    fn repeated_headers_are_looked_at_one_by_one() {
        let values = |list: &'static [&'static str]| list.iter().map(|value| value.as_bytes());
        let is = |value: &str| matcher(HeaderMatch::String(exact(value)));
        assert!(header_matches(&is("2"), values(&["1", "2"])));
        assert!(!header_matches(&is("1,2"), values(&["1", "2"])));
        assert!(header_matches(&is("1,2"), values(&["1,2"])));
        let is_not = |value: &str| HeaderMatcher { invert: true, ..is(value) };
        assert!(!header_matches(&is_not("2"), values(&["1", "2"])));
        assert!(header_matches(&is_not("3"), values(&["1", "2"])));
        assert!(header_matches(&matcher(HeaderMatch::Range { start: 2, end: 3 }), values(&["1", "2"])));
    }

    #[test]
    fn query_parameters_are_compared_as_they_stand() {
        let named = |name: &str, value: Option<&str>| QueryParameterMatcher {
            name: name.into(),
            value: value.map_or(QueryMatch::Present(true), |value| QueryMatch::String(exact(value))),
        };
        assert!(query_matches(&named("a", Some("1")), "a=1&b=2"));
        assert!(query_matches(&named("b", Some("2=3")), "a=1&b=2=3"));
        assert!(query_matches(&named("c", Some("")), "c&a"));
        assert!(query_matches(&named("a", None), "c&a"));
        assert!(!query_matches(&named("a", Some("2")), "a=1&a=2"));
        assert!(query_matches(&named("a", Some("%20")), "a=%20"));
        assert!(!query_matches(&named("a", Some(" ")), "a=%20"));
        assert!(!query_matches(&named("A", None), "a=1"));
        assert!(query_matches(&QueryParameterMatcher { name: "a".into(), value: QueryMatch::Present(false) }, "b=1"));
        assert!(!query_matches(&QueryParameterMatcher { name: "b".into(), value: QueryMatch::Present(false) }, "b=1"));
    }
}
