//! The descriptors of a request (`RateLimit.actions`), for local and for global limits alike.
//!
//! Owns which entries a request has. Never counts anything.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;
use outrigger_config::format::Format;
use outrigger_config::matching::lookup;
use outrigger_config::metadata::MetadataMap;
use outrigger_config::rate_limit::{AddressAction, DescriptorAction, Hits, HitsNumber, MetadataAction, RateLimit};
use outrigger_config::rbac::MetadataSource;
use outrigger_config::route::{QueryMatch, QueryParameterMatcher};

use crate::route::{RequestView, request_header_matches};

/// What a request is counted by.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Descriptor<'a> {
    /// Keys and values, in order.
    pub entries: Vec<(&'a str, Cow<'a, str>)>,
    /// How much it counts; negative numbers are given back.
    pub hits: i64,
    /// Whether answers tell of this limit; what the filter says unless given.
    pub tells_clients: Option<bool>,
}

/// What descriptors are made from.
pub trait DescriptorView {
    /// The head of the request.
    type Request: RequestView;

    /// The head of the request.
    fn request(&self) -> &Self::Request;
    /// The cluster that the proxy's node belongs to.
    fn source_cluster(&self) -> &str;
    /// The cluster that the request is routed to.
    fn destination_cluster(&self) -> Option<Cow<'_, str>>;
    /// The trusted address of the client.
    fn remote(&self) -> Option<IpAddr>;
    /// Shows a namespace of the metadata to `look`.
    fn metadata(&self, source: MetadataSource, namespace: &str, look: &mut dyn FnMut(Option<&MetadataMap>));
    /// The text of a format; what is not there is left out.
    fn text(&self, format: &Format) -> String;
}

/// What became of an action.
enum Entry<'a> {
    Is(&'a str, Cow<'a, str>),
    /// There is none, and that is fine.
    Skipped,
    /// There is none, so there is no descriptor.
    Missing,
}

/// The descriptor of a request; `None` if one of its parts is missing.
pub fn descriptor<'a>(limit: &'a RateLimit, view: &'a impl DescriptorView) -> Option<Descriptor<'a>> {
    let mut entries = Vec::with_capacity(limit.actions.len());
    for action in &limit.actions {
        match entry(action, view) {
            Entry::Is(key, value) => entries.push((key, value)),
            Entry::Skipped => {}
            Entry::Missing => return None,
        }
    }
    let hits = match &limit.hits {
        None => 1,
        Some(hits) => count(hits, view)?,
    };
    Some(Descriptor { entries, hits, tells_clients: limit.tells_clients })
}

fn count(hits: &Hits, view: &impl DescriptorView) -> Option<i64> {
    let number = match &hits.number {
        HitsNumber::Fixed(number) => *number,
        HitsNumber::Format(format) => view.text(format).parse().ok().filter(|number| *number <= Hits::MAX)?,
    };
    let number = i64::try_from(number).ok()?;
    Some(if hits.negative { -number } else { number })
}

fn entry<'a>(action: &'a DescriptorAction, view: &'a impl DescriptorView) -> Entry<'a> {
    let present = |key: &'a str, value: Option<Cow<'a, str>>, skip_if_absent: bool| match value {
        Some(value) => Entry::Is(key, value),
        None if skip_if_absent => Entry::Skipped,
        None => Entry::Missing,
    };
    let given_if = |holds: bool, key: &'a str, value: &'a str| match holds {
        true => Entry::Is(key, Cow::Borrowed(value)),
        false => Entry::Missing,
    };
    match action {
        DescriptorAction::SourceCluster => Entry::Is("source_cluster", Cow::Borrowed(view.source_cluster())),
        DescriptorAction::DestinationCluster => present("destination_cluster", view.destination_cluster(), false),
        DescriptorAction::RequestHeader { name, key, skip_if_absent } => {
            present(key, header(view.request(), name), *skip_if_absent)
        }
        DescriptorAction::QueryParameter { name, key, skip_if_absent } => {
            present(key, parameter(view.request().path(), name), *skip_if_absent)
        }
        DescriptorAction::RemoteAddress => {
            present("remote_address", view.remote().map(|address| address.to_string().into()), false)
        }
        DescriptorAction::MaskedRemoteAddress { ipv4_bits, ipv6_bits } => {
            let network = |address: IpAddr| {
                let bits = if address.is_ipv4() { *ipv4_bits } else { *ipv6_bits };
                Some(Cow::Owned(IpNet::new(address, bits).ok()?.trunc().to_string()))
            };
            present("masked_remote_address", view.remote().and_then(network), false)
        }
        DescriptorAction::GenericKey { key, value } => Entry::Is(key, Cow::Borrowed(value)),
        DescriptorAction::HeaderValueMatch { key, value, expect_match, headers } => {
            let matches = headers.iter().all(|matcher| request_header_matches(matcher, view.request()));
            given_if(matches == *expect_match, key, value)
        }
        DescriptorAction::QueryParameterMatch { key, value, expect_match, parameters } => {
            let matches = parameters.iter().all(|matcher| parameter_matches(matcher, view.request().path()));
            given_if(matches == *expect_match, key, value)
        }
        DescriptorAction::Metadata(action) => present(&action.key, metadata(action, view), action.skip_if_absent),
        DescriptorAction::RemoteAddressMatch(action) => present(&action.key, address(action, view), false),
    }
}

/// The first value of a header.
fn header<'a>(request: &'a impl RequestView, name: &'a str) -> Option<Cow<'a, str>> {
    let pseudo = match name {
        ":path" => request.path(),
        ":method" => request.method(),
        ":authority" | "host" => request.host(),
        name => return request.header(name).next().map(String::from_utf8_lossy),
    };
    (!pseudo.is_empty()).then_some(Cow::Borrowed(pseudo))
}

/// The first value of a query parameter.
pub(crate) fn parameter<'a>(path: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let (_, query) = path.split_once('?')?;
    let query = query.split('#').next().unwrap_or_default();
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(known, _)| decoded(known) == name).map(|(_, value)| decoded(value))
}

fn parameter_matches(matcher: &QueryParameterMatcher, path: &str) -> bool {
    match (parameter(path, &matcher.name), &matcher.value) {
        (found, QueryMatch::Present(wanted)) => found.is_some() == *wanted,
        (None, QueryMatch::String(_)) => false,
        (Some(value), QueryMatch::String(string)) => string.matches(value.as_bytes()),
    }
}

/// Without percent escapes. What is no escape stays as it is, and so do plus signs.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let Some((byte, rest)) = bytes.split_first() {
        let digits = rest.get(..2).filter(|digits| *byte == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        let escaped = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(escaped) => {
                out.push(escaped);
                bytes = &rest[2..];
            }
            None => {
                out.push(*byte);
                bytes = rest;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

fn metadata<'a>(action: &'a MetadataAction, view: &impl DescriptorView) -> Option<Cow<'a, str>> {
    let mut found = None;
    view.metadata(action.source, &action.namespace, &mut |namespace| {
        let value = lookup(namespace, &action.path).and_then(|value| value.as_str());
        found = value.filter(|text| !text.is_empty()).map(str::to_owned);
    });
    found.map(Cow::Owned).or_else(|| (!action.default.is_empty()).then_some(Cow::Borrowed(&*action.default)))
}

fn address<'a>(action: &'a AddressAction, view: &impl DescriptorView) -> Option<Cow<'a, str>> {
    let address = view.remote()?;
    if action.ranges.iter().any(|range| range.contains(&address)) == action.invert {
        return None;
    }
    let text = view.text(&action.value);
    match text.is_empty() {
        false => Some(Cow::Owned(text)),
        true => (!action.default.is_empty()).then_some(Cow::Borrowed(&*action.default)),
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::matching::StringMatcher;
    use outrigger_config::route::{HeaderMatch, HeaderMatcher};
    use serde_json::json;

    use super::*;

    struct Request;

    impl RequestView for Request {
        fn host(&self) -> &str {
            "a.example"
        }

        fn path(&self) -> &str {
            "/p?a%20b=1&q=x%2Fy+z&q=2&bad=%zz"
        }

        fn method(&self) -> &str {
            "GET"
        }

        fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
            (name == "x-user").then_some(&b"ann"[..]).into_iter()
        }

        fn is_grpc(&self) -> bool {
            false
        }
    }

    impl DescriptorView for Request {
        type Request = Self;

        fn request(&self) -> &Self {
            self
        }

        fn source_cluster(&self) -> &str {
            "front"
        }

        fn destination_cluster(&self) -> Option<Cow<'_, str>> {
            None
        }

        fn remote(&self) -> Option<IpAddr> {
            "10.1.2.3".parse().ok()
        }

        fn metadata(&self, _: MetadataSource, namespace: &str, look: &mut dyn FnMut(Option<&MetadataMap>)) {
            let value = json!({"a": {"text": "t", "number": 1, "empty": ""}});
            look((namespace == "n").then(|| value.as_object()).flatten());
        }

        fn text(&self, format: &Format) -> String {
            format.as_literal().unwrap_or_default().to_owned()
        }
    }

    fn limit(actions: Vec<DescriptorAction>) -> RateLimit {
        RateLimit {
            stage: 0,
            disable_key: "".into(),
            actions: actions.into(),
            hits: None,
            on_stream_done: false,
            tells_clients: None,
            limit: None,
        }
    }

    fn shown(action: DescriptorAction) -> Option<String> {
        let limit = limit(vec![action]);
        let descriptor = descriptor(&limit, &Request)?;
        Some(descriptor.entries.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","))
    }

    fn header_action(name: &str, skip_if_absent: bool) -> DescriptorAction {
        DescriptorAction::RequestHeader { name: name.into(), key: "k".into(), skip_if_absent }
    }

    fn parameter_action(name: &str) -> DescriptorAction {
        DescriptorAction::QueryParameter { name: name.into(), key: "k".into(), skip_if_absent: false }
    }

    fn metadata_action(key: &str, default: &str) -> DescriptorAction {
        DescriptorAction::Metadata(Box::new(MetadataAction {
            key: "k".into(),
            source: MetadataSource::Dynamic,
            namespace: "n".into(),
            path: vec!["a".into(), key.into()],
            default: default.into(),
            skip_if_absent: false,
        }))
    }

    #[test]
    fn each_action_gives_its_entry() {
        let masked = DescriptorAction::MaskedRemoteAddress { ipv4_bits: 8, ipv6_bits: 64 };
        for (action, expected) in [
            (DescriptorAction::SourceCluster, Some("source_cluster=front")),
            (DescriptorAction::DestinationCluster, None),
            (DescriptorAction::RemoteAddress, Some("remote_address=10.1.2.3")),
            (masked, Some("masked_remote_address=10.0.0.0/8")),
            (header_action("x-user", false), Some("k=ann")),
            (header_action(":path", false), Some("k=/p?a%20b=1&q=x%2Fy+z&q=2&bad=%zz")),
            (header_action("x-none", false), None),
            (header_action("x-none", true), Some("")),
            (parameter_action("q"), Some("k=x/y+z")),
            (parameter_action("a b"), Some("k=1")),
            (parameter_action("bad"), Some("k=%zz")),
            (parameter_action("none"), None),
            (metadata_action("text", ""), Some("k=t")),
            (metadata_action("number", ""), None),
            (metadata_action("empty", "d"), Some("k=d")),
        ] {
            assert_eq!(shown(action.clone()).as_deref(), expected, "{action:?}");
        }
    }

    #[test]
    fn matches_may_be_expected_or_not() {
        let exact = |value: &str| StringMatcher::Exact { value: value.into(), ignore_case: false };
        let headers = |value: &str, expect_match| DescriptorAction::HeaderValueMatch {
            key: "k".into(),
            value: "v".into(),
            expect_match,
            headers: [HeaderMatcher {
                name: "x-user".into(),
                value: HeaderMatch::String(exact(value)),
                invert: false,
                treat_missing_as_empty: false,
            }]
            .into(),
        };
        let parameters = |value: &str, expect_match| DescriptorAction::QueryParameterMatch {
            key: "k".into(),
            value: "v".into(),
            expect_match,
            parameters: [QueryParameterMatcher { name: "q".into(), value: QueryMatch::String(exact(value)) }].into(),
        };
        for (action, there) in [
            (headers("ann", true), true),
            (headers("bob", true), false),
            (headers("bob", false), true),
            (parameters("x/y+z", true), true),
            (parameters("x/y+z", false), false),
            (parameters("2", true), false),
        ] {
            assert_eq!(shown(action.clone()).is_some(), there, "{action:?}");
        }
    }

    #[test]
    fn addresses_are_matched_by_network() {
        let of = |range: &str, invert, value: &str| {
            DescriptorAction::RemoteAddressMatch(Box::new(AddressAction {
                key: "k".into(),
                value: Format::literal(value),
                default: "d".into(),
                ranges: vec![range.parse().unwrap()],
                invert,
            }))
        };
        assert_eq!(shown(of("10.0.0.0/8", false, "v")).as_deref(), Some("k=v"));
        assert_eq!(shown(of("10.0.0.0/8", true, "v")), None);
        assert_eq!(shown(of("11.0.0.0/8", true, "")).as_deref(), Some("k=d"));
    }

    #[test]
    fn hits_may_come_from_the_request() {
        let hits = |number, negative| {
            let limit =
                RateLimit { hits: Some(Hits { number, negative }), ..limit(vec![DescriptorAction::SourceCluster]) };
            descriptor(&limit, &Request).map(|descriptor| descriptor.hits)
        };
        assert_eq!(hits(HitsNumber::Fixed(3), false), Some(3));
        assert_eq!(hits(HitsNumber::Fixed(3), true), Some(-3));
        assert_eq!(hits(HitsNumber::Format(Format::literal("12")), false), Some(12));
        for text in ["x", "-1", "1000000001", ""] {
            assert_eq!(hits(HitsNumber::Format(Format::literal(text)), false), None, "{text}");
        }
    }
}
