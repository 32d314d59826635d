//! The hash of a request by which consistent policies choose its host (`RouteAction.hash_policy`).
//!
//! Owns how the parts are hashed and joined, as Envoy does it. Never looks at a connection itself.

use std::borrow::Cow;
use std::net::IpAddr;

use outrigger_config::route::{HashCookie, HashPolicy, HashSource};

use super::hashing::{xx_hash, xx_hash_seeded};

/// What a request looks like to hash policies.
pub trait HashView {
    /// The values of a header, lower case or with a colon.
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]>;

    /// Its path with its query.
    fn path(&self) -> &str;

    /// The client's address, if it has one.
    fn source_ip(&self) -> Option<IpAddr>;

    /// An object of the filter state.
    fn filter_state(&self, key: &str) -> Option<Cow<'_, [u8]>>;
}

/// Joins the hashes of all parts that are there; `None` if there is none. `give` makes the value of a cookie that the
/// client is given because it has none.
pub fn request_hash(
    policies: &[HashPolicy],
    view: &impl HashView,
    mut give: impl FnMut(&HashCookie) -> String,
) -> Option<u64> {
    let mut joined: Option<u64> = None;
    for HashPolicy { source, terminal } in policies {
        let part = match source {
            HashSource::Header { name, rewrite } => header_hash(view.header(name), |value| match rewrite {
                None => Cow::Borrowed(value),
                Some(rewrite) => match std::str::from_utf8(value) {
                    Ok(text) => match rewrite.pattern.replace_all(text, rewrite.substitution.as_str()) {
                        Cow::Borrowed(_) => Cow::Borrowed(value),
                        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
                    },
                    Err(_) => Cow::Borrowed(value),
                },
            }),
            HashSource::Cookie(cookie) => match cookie_value(view, &cookie.name) {
                Some(value) => Some(xx_hash(value)),
                None => cookie.ttl.map(|_| xx_hash(give(cookie).as_bytes())),
            },
            HashSource::SourceIp => view.source_ip().map(ip_hash),
            HashSource::QueryParameter(name) => query_value(view.path(), name).map(|value| xx_hash(value.as_bytes())),
            HashSource::FilterState(key) => view.filter_state(key).map(|object| xx_hash(&object)),
        };
        if let Some(part) = part {
            // Turned, so that the same part twice does not undo itself.
            joined = Some(joined.map_or(0, |before| before.rotate_left(1)) ^ part);
        }
        if *terminal && joined.is_some() {
            break;
        }
    }
    joined
}

/// The hash of a client's address.
fn ip_hash(ip: IpAddr) -> u64 {
    xx_hash(ip.to_string().as_bytes())
}

/// Several values count in the order of their bytes, each hashed with the hash of those before.
fn header_hash<'v>(
    mut values: impl Iterator<Item = &'v [u8]>,
    rewrite: impl Fn(&'v [u8]) -> Cow<'v, [u8]>,
) -> Option<u64> {
    let first = rewrite(values.next()?);
    let Some(second) = values.next() else { return Some(xx_hash(&first)) };
    let mut all: Vec<Cow<'_, [u8]>> = [first, rewrite(second)].into_iter().chain(values.map(rewrite)).collect();
    all.sort();
    Some(all.iter().fold(0, |seed, value| xx_hash_seeded(value, seed)))
}

/// The first value of a cookie, without quotes; an empty one counts as none.
fn cookie_value<'v>(view: &'v impl HashView, name: &str) -> Option<&'v [u8]> {
    for header in view.header("cookie") {
        for pair in header.split(|byte| *byte == b';') {
            let pair = pair.trim_ascii();
            let Some(equals) = pair.iter().position(|byte| *byte == b'=') else { continue };
            if &pair[..equals] == name.as_bytes() {
                let value = &pair[equals + 1..];
                let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
                return Some(bare).filter(|value| !value.is_empty());
            }
        }
    }
    None
}

/// The first value of a query parameter, as it stands there.
fn query_value<'p>(path: &'p str, name: &str) -> Option<&'p str> {
    let (_, query) = path.split_once('?')?;
    let query = query.split('#').next().unwrap_or_default();
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(known, _)| *known == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[derive(Default)]
    struct View {
        headers: Vec<(&'static str, &'static str)>,
        path: &'static str,
        ip: Option<IpAddr>,
    }

    impl HashView for View {
        fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
            self.headers.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_bytes())
        }

        fn path(&self) -> &str {
            self.path
        }

        fn source_ip(&self) -> Option<IpAddr> {
            self.ip
        }

        fn filter_state(&self, key: &str) -> Option<Cow<'_, [u8]>> {
            (key == "tenant").then_some(Cow::Borrowed(b"blue"))
        }
    }

    fn header(name: &str) -> HashSource {
        HashSource::Header { name: name.into(), rewrite: None }
    }

    fn cookie(name: &str, ttl: Option<Duration>) -> HashSource {
        HashSource::Cookie(HashCookie { name: name.into(), ttl, path: None, attributes: Vec::new() })
    }

    fn hash(view: &View, sources: impl IntoIterator<Item = (HashSource, bool)>) -> Option<u64> {
        let policies: Vec<HashPolicy> =
            sources.into_iter().map(|(source, terminal)| HashPolicy { source, terminal }).collect();
        request_hash(&policies, view, |_| "given".to_owned())
    }

    #[test]
    fn parts_that_are_there_are_joined_in_order() {
        let view = View { headers: vec![("a", "1"), ("b", "2")], ..View::default() };
        let joined = xx_hash(b"1").rotate_left(1) ^ xx_hash(b"2");
        assert_eq!(hash(&view, [(header("a"), false), (header("c"), false), (header("b"), false)]), Some(joined));
        assert_eq!(hash(&view, [(header("c"), true), (header("b"), false)]), Some(xx_hash(b"2")));
        assert_eq!(hash(&view, [(header("a"), true), (header("b"), false)]), Some(xx_hash(b"1")));
        assert_eq!(hash(&view, [(header("c"), false)]), None);
        assert_ne!(hash(&view, [(header("a"), false), (header("a"), false)]), Some(0));
    }

    #[test]
    fn several_values_count_in_any_order() {
        let one = View { headers: vec![("a", "x"), ("a", "y")], ..View::default() };
        let other = View { headers: vec![("a", "y"), ("a", "x")], ..View::default() };
        let sources = || [(header("a"), false)];
        assert_eq!(hash(&one, sources()), hash(&other, sources()));
        assert_ne!(hash(&one, sources()), Some(xx_hash(b"x")));
    }

    #[test]
    fn values_are_rewritten_before_they_count() {
        let rewrite = outrigger_config::route::RegexRewrite {
            pattern: regex::Regex::new("^/user/([^/]+)/.*$").unwrap(),
            substitution: "${1}".to_owned(),
        };
        let source = HashSource::Header { name: ":path".into(), rewrite: Some(rewrite) };
        let view = View { headers: vec![(":path", "/user/ann/x")], ..View::default() };
        assert_eq!(hash(&view, [(source, false)]), Some(xx_hash(b"ann")));
    }

    #[test]
    fn a_missing_cookie_is_given_if_it_has_a_lifetime() {
        let view = View { headers: vec![("cookie", "a=1; b=\"two\"; b=3"), ("cookie", "c=")], ..View::default() };
        assert_eq!(hash(&view, [(cookie("b", None), false)]), Some(xx_hash(b"two")));
        assert_eq!(hash(&view, [(cookie("d", None), false)]), None);
        for name in ["c", "d"] {
            assert_eq!(hash(&view, [(cookie(name, Some(Duration::ZERO)), false)]), Some(xx_hash(b"given")));
        }
    }

    #[test]
    fn the_address_the_query_and_the_filter_state_count() {
        let ip: IpAddr = "2001:db8::1".parse().unwrap();
        let view = View { path: "/a?x&y=%201&y=2#z=3", ip: Some(ip), ..View::default() };
        let query = |name: &str| HashSource::QueryParameter(name.to_owned());
        assert_eq!(hash(&view, [(query("y"), false)]), Some(xx_hash(b"%201")));
        assert_eq!(hash(&view, [(query("x"), false)]), Some(xx_hash(b"")));
        assert_eq!(hash(&view, [(query("z"), false)]), None);
        assert_eq!(hash(&view, [(HashSource::SourceIp, false)]), Some(xx_hash(b"2001:db8::1")));
        assert_eq!(hash(&view, [(HashSource::FilterState("tenant".to_owned()), false)]), Some(xx_hash(b"blue")));
    }
}
