//! Keys of scopes, as requests yield them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_config::http::{KeyElement, KeyFragment};
use outrigger_policy::route::{RequestView, ScopeKey};

struct Asked<'a>(&'a str);

impl RequestView for Asked<'_> {
    fn host(&self) -> &str {
        self.0
    }

    fn path(&self) -> &str {
        self.0
    }

    fn method(&self) -> &str {
        "GET"
    }

    fn header<'a>(&'a self, _: &'a str) -> impl Iterator<Item = &'a [u8]> {
        std::iter::once(self.0.as_bytes())
    }

    fn is_grpc(&self) -> bool {
        false
    }
}

fuzz_target!(|input: (String, String, String, String, u8)| {
    let (value, separator, inner, key, index) = input;
    if separator.is_empty() || inner.is_empty() || key.is_empty() {
        return;
    }
    let of = |element| {
        let fragment = KeyFragment { header: "x-scope".into(), separator: Some(separator.clone()), element };
        ScopeKey::of_request(&[fragment], &Asked(&value))
    };
    let scope = |element: Option<&str>| element.map(|element| ScopeKey::of_scope(&[element.to_owned()]));
    assert_eq!(of(KeyElement::Index(index.into())), scope(value.split(separator.as_str()).nth(index.into())));
    let named = value.split(separator.as_str()).find_map(|element| match element.split_once(inner.as_str()) {
        Some((name, value)) => (name == key).then_some(value),
        None => (element == key).then_some(""),
    });
    assert_eq!(of(KeyElement::Named { separator: inner.clone(), key: key.clone() }), scope(named));
    // Other fragments never yield the same key.
    assert_ne!(ScopeKey::of_scope(&[value.clone(), separator.clone()]), ScopeKey::of_scope(&[value + &separator]));
});
