//! Conditions of routes in words.
//!
//! Owns the sentences. Never matches anything.

use outrigger_config::matching::StringMatcher;
use outrigger_config::route::{
    HeaderMatch, HeaderMatcher, PathMatch, QueryMatch, QueryParameterMatcher, RouteMatch, StreamMatch,
};
use outrigger_config::units::RuntimeFraction;
use outrigger_policy::route::{Mismatch, RequestView};

/// Foreign text is cut off after so many bytes.
const SHOWN_BYTES: usize = 200;

/// Why a route does not take a request.
pub(super) fn unmet(mismatch: &Mismatch<'_>, request: &impl RequestView, path: &str) -> String {
    match mismatch {
        Mismatch::Path(PathMatch::Connect) => format!("takes CONNECT requests only; this is {}", request.method()),
        Mismatch::Path(wanted) => format!("wants {}; the path is {:?}", self::path(wanted), cut(path)),
        Mismatch::Grpc => "takes calls of gRPC only; content-type is none of gRPC's".to_owned(),
        Mismatch::Header(matcher) => {
            let has = match values(matcher, request).as_slice() {
                [] => "it is absent".to_owned(),
                values => format!("it is {}", values.join(", ")),
            };
            format!("wants {}; {has}", header(matcher))
        }
        Mismatch::Cookie(matcher) => {
            let not = if matcher.invert { "not " } else { "" };
            format!("wants cookie {:?} {not}{}; it is not so", matcher.name, string(&matcher.value))
        }
        Mismatch::Query(matcher) => format!("wants {}; the query is not so", query(matcher)),
        Mismatch::Stream(wanted) => format!("wants {}", stream(wanted)),
        Mismatch::Share(share) => format!("takes {} and this request is not among them", self::share(share)),
    }
}

/// What a route takes.
pub(super) fn criteria(criteria: &RouteMatch) -> String {
    let mut parts = vec![path(&criteria.path)];
    if !criteria.case_sensitive {
        parts.push("in any case of letters".to_owned());
    }
    parts.extend(criteria.grpc.then(|| "calls of gRPC".to_owned()));
    parts.extend(criteria.headers.iter().map(header));
    parts.extend(criteria.cookies.iter().map(|cookie| format!("cookie {:?} {}", cookie.name, string(&cookie.value))));
    parts.extend(criteria.query_parameters.iter().map(query));
    parts.extend(criteria.more.as_deref().map(stream));
    parts.extend(criteria.runtime_fraction.as_ref().map(share));
    parts.join("; ")
}

pub(super) fn path(wanted: &PathMatch) -> String {
    match wanted {
        PathMatch::Prefix(prefix) => format!("path prefix {prefix:?}"),
        PathMatch::Exact(exact) => format!("path {exact:?}"),
        PathMatch::SeparatedPrefix(prefix) => format!("path {prefix:?} or below"),
        PathMatch::Regex(regex) => format!("path regex {:?}", regex.as_str()),
        PathMatch::Template(template) => format!("path template {:?}", template.as_str()),
        PathMatch::Connect => "CONNECT requests".to_owned(),
    }
}

pub(super) fn header(matcher: &HeaderMatcher) -> String {
    let HeaderMatcher { name, value, invert, treat_missing_as_empty } = matcher;
    let not = if *invert { "not " } else { "" };
    let value = match value {
        HeaderMatch::Present(true) => "present".to_owned(),
        HeaderMatch::Present(false) => "absent".to_owned(),
        HeaderMatch::Range { start, end } => format!("a number from {start} to below {end}"),
        HeaderMatch::String(wanted) => string(wanted),
    };
    let missing = if *treat_missing_as_empty { " (absent counts as empty)" } else { "" };
    format!("header {name:?} {not}{value}{missing}")
}

fn query(QueryParameterMatcher { name, value }: &QueryParameterMatcher) -> String {
    let value = match value {
        QueryMatch::Present(true) => "present".to_owned(),
        QueryMatch::Present(false) => "absent".to_owned(),
        QueryMatch::String(wanted) => string(wanted),
    };
    format!("query parameter {name:?} {value}")
}

fn stream(wanted: &StreamMatch) -> String {
    let StreamMatch { presented, validated, metadata, filter_state } = wanted;
    let mut parts = Vec::new();
    let yes = |wanted: bool| if wanted { "a" } else { "no" };
    parts.extend(presented.map(|wanted| format!("{} client certificate", yes(wanted))));
    parts.extend(validated.map(|wanted| format!("{} verified client certificate", yes(wanted))));
    parts.extend(metadata.iter().map(|matcher| format!("dynamic metadata of {:?}", matcher.filter)));
    parts.extend(filter_state.iter().map(|matcher| format!("filter state {:?}", matcher.key)));
    parts.join("; ")
}

fn share(share: &RuntimeFraction) -> String {
    let (part, whole) = share.default.parts();
    let key = &share.runtime_key;
    let by = if key.is_empty() { String::new() } else { format!(" (unless runtime key {key:?} says otherwise)") };
    format!("{part} of {whole} requests{by}")
}

fn string(wanted: &StringMatcher) -> String {
    let (word, value, ignore_case) = match wanted {
        StringMatcher::Exact { value, ignore_case } => ("exactly", value.as_str(), *ignore_case),
        StringMatcher::Prefix { value, ignore_case } => ("beginning with", value.as_str(), *ignore_case),
        StringMatcher::Suffix { value, ignore_case } => ("ending with", value.as_str(), *ignore_case),
        StringMatcher::Contains { value, ignore_case } => ("containing", value.as_str(), *ignore_case),
        StringMatcher::Regex(regex) => ("matching regex", regex.as_str(), false),
    };
    format!("{word} {value:?}{}", if ignore_case { " in any case of letters" } else { "" })
}

fn values(matcher: &HeaderMatcher, request: &impl RequestView) -> Vec<String> {
    let shown = |value: &[u8]| format!("{:?}", cut(&String::from_utf8_lossy(value)));
    let single = |value: &str| if value.is_empty() { Vec::new() } else { vec![shown(value.as_bytes())] };
    match &*matcher.name {
        ":method" => single(request.method()),
        ":path" => single(request.path()),
        ":authority" | "host" => single(request.host()),
        name => request.header(name).map(shown).collect(),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_BYTES) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}
