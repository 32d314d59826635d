//! Which scope a request belongs to (`ScopedRoutes`).
//!
//! Owns how a key is made of a request and how scopes are found by it. Never knows what a scope leads to.

use std::collections::HashMap;

use outrigger_config::http::{KeyElement, KeyFragment};

use super::RequestView;

/// What a request, or a scope, is known by.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ScopeKey(Box<[u8]>);

impl ScopeKey {
    /// The key of a scope.
    pub fn of_scope(fragments: &[String]) -> Self {
        let mut key = Vec::new();
        fragments.iter().for_each(|fragment| append(&mut key, fragment.as_bytes()));
        Self(key.into())
    }

    /// The key that a request yields; `None` if a header or an element is missing.
    pub fn of_request(fragments: &[KeyFragment], request: &impl RequestView) -> Option<Self> {
        let mut key = Vec::new();
        for fragment in fragments {
            let value = match &*fragment.header {
                ":authority" | "host" => request.host().as_bytes(),
                ":path" => request.path().as_bytes(),
                ":method" => request.method().as_bytes(),
                name => request.header(name).next()?,
            };
            append(&mut key, element(fragment, value)?);
        }
        Some(Self(key.into()))
    }
}

/// Fragments may hold any bytes, so their lengths stand in front.
fn append(key: &mut Vec<u8>, fragment: &[u8]) {
    key.extend_from_slice(&(fragment.len() as u64).to_le_bytes());
    key.extend_from_slice(fragment);
}

fn element<'v>(fragment: &KeyFragment, value: &'v [u8]) -> Option<&'v [u8]> {
    let separator = fragment.separator.as_deref().map(str::as_bytes);
    let mut elements = Elements { rest: Some(value), separator };
    match &fragment.element {
        KeyElement::Index(index) => elements.nth(*index as usize),
        KeyElement::Named { separator, key } => elements.find_map(|element| {
            let mut parts = Elements { rest: Some(element), separator: Some(separator.as_bytes()) };
            (parts.next() == Some(key.as_bytes())).then(|| parts.rest.unwrap_or_default())
        }),
    }
}

struct Elements<'v, 's> {
    rest: Option<&'v [u8]>,
    separator: Option<&'s [u8]>,
}

impl<'v> Iterator for Elements<'v, '_> {
    type Item = &'v [u8];

    fn next(&mut self) -> Option<&'v [u8]> {
        let rest = self.rest?;
        let end = self.separator.and_then(|separator| {
            let start = rest.windows(separator.len()).position(|window| window == separator)?;
            Some((start, start + separator.len()))
        });
        match end {
            Some((end, next)) => {
                self.rest = Some(&rest[next..]);
                Some(&rest[..end])
            }
            None => {
                self.rest = None;
                Some(rest)
            }
        }
    }
}

/// Scopes by key, each leading to a `T`.
#[derive(Debug)]
pub struct ScopeTable<T>(HashMap<ScopeKey, T>);

impl<T> Default for ScopeTable<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> ScopeTable<T> {
    /// A table of these scopes; of two with the same key, the later one counts.
    pub fn build(scopes: impl Iterator<Item = (ScopeKey, T)>) -> Self {
        Self(scopes.collect())
    }

    /// Where a key leads.
    pub fn find(&self, key: &ScopeKey) -> Option<&T> {
        self.0.get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Request<'r> {
        host: &'r str,
        scope: Option<&'r str>,
    }

    impl RequestView for Request<'_> {
        fn host(&self) -> &str {
            self.host
        }

        fn path(&self) -> &str {
            "/"
        }

        fn method(&self) -> &str {
            "GET"
        }

        fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
            self.scope.filter(|_| name == "x-scope").map(str::as_bytes).into_iter()
        }

        fn is_grpc(&self) -> bool {
            false
        }
    }

    fn fragment(header: &str, separator: Option<&str>, element: KeyElement) -> KeyFragment {
        KeyFragment { header: header.into(), separator: separator.map(str::to_owned), element }
    }

    fn named(separator: &str, key: &str) -> KeyElement {
        KeyElement::Named { separator: separator.into(), key: key.into() }
    }

    fn extracted<'v>(fragment: &KeyFragment, value: &'v str) -> Option<&'v str> {
        element(fragment, value.as_bytes()).map(|found| std::str::from_utf8(found).unwrap())
    }

    #[test]
    fn elements_are_found_by_position() {
        let whole = fragment("x", None, KeyElement::Index(0));
        assert_eq!(extracted(&whole, "a,b"), Some("a,b"));
        assert_eq!(extracted(&whole, ""), Some(""));
        let second = fragment("x", Some(","), KeyElement::Index(1));
        for (value, found) in [("a,b,c", Some("b")), ("a,", Some("")), ("a", None), (",,", Some(""))] {
            assert_eq!(extracted(&second, value), found, "{value}");
        }
        let long = fragment("x", Some("--"), KeyElement::Index(1));
        assert_eq!(extracted(&long, "a-b--c"), Some("c"));
    }

    #[test]
    fn elements_are_found_by_their_own_key() {
        let vip = fragment("x", Some(","), named("=", "vip"));
        for (value, found) in [
            ("a=1,vip=2,vip=3", Some("2")),
            ("vip=1=2", Some("1=2")),
            ("vip", Some("")),
            ("xvip=1", None),
            ("a=vip", None),
            ("", None),
        ] {
            assert_eq!(extracted(&vip, value), found, "{value}");
        }
        assert_eq!(extracted(&fragment("x", None, named(":", "a")), "a:b,c"), Some("b,c"));
    }

    #[test]
    fn a_request_has_the_scope_whose_fragments_are_its_own() {
        let table = ScopeTable::build(
            [("ab", ""), ("a", "b")]
                .into_iter()
                .map(|(one, two)| (ScopeKey::of_scope(&[one.to_owned(), two.to_owned()]), (one, two))),
        );
        let fragments =
            [fragment("host", None, KeyElement::Index(0)), fragment("x-scope", Some(";"), KeyElement::Index(0))];
        let find = |host: &str, header: Option<&str>| {
            ScopeKey::of_request(&fragments, &Request { host, scope: header }).and_then(|key| table.find(&key).copied())
        };
        assert_eq!(find("a", Some("b;c")), Some(("a", "b")));
        assert_eq!(find("ab", Some("")), Some(("ab", "")));
        assert_eq!(find("ab", Some("b")), None);
        assert_eq!(find("a", None), None);
    }
}
