//! Where tokens stand in requests.
//!
//! Owns the places of one provider, or of all, and whose tokens may stand in which. Never reads a token.

use std::sync::Arc;

use outrigger_config::http::filters::JwtProvider;

use super::request::Changed;
use crate::route::RequestView;

/// Places, in the order in which they are looked at.
#[derive(Debug, Default)]
pub(super) struct Locations {
    headers: Vec<(Arc<str>, String, Issuers)>,
    parameters: Vec<(Arc<str>, Issuers)>,
    cookies: Vec<(Arc<str>, Issuers)>,
}

/// Whose tokens may stand in a place.
#[derive(Debug, Default)]
pub(super) struct Issuers {
    any: bool,
    named: Vec<String>,
}

impl Issuers {
    fn add(&mut self, issuer: &str) {
        if issuer.is_empty() {
            self.any = true;
        } else if !self.named.iter().any(|named| named == issuer) {
            self.named.push(issuer.to_owned());
        }
    }

    pub fn allow(&self, issuer: &str) -> bool {
        self.any || self.named.iter().any(|named| named == issuer)
    }
}

/// A token and where it stands.
pub(super) struct Found<'l> {
    pub text: Vec<u8>,
    pub issuers: &'l Issuers,
    place: Place<'l>,
}

enum Place<'l> {
    Header(&'l Arc<str>),
    Parameter(&'l str),
    Cookie,
}

impl Found<'_> {
    /// Takes the token out of the request. Cookies stay, as documented.
    pub fn remove<R: RequestView>(&self, request: &mut Changed<'_, R>) {
        match self.place {
            Place::Header(name) => request.remove(name),
            Place::Parameter(name) => request.remove_parameter(name),
            Place::Cookie => {}
        }
    }
}

impl Locations {
    pub fn of<'p>(providers: impl IntoIterator<Item = &'p Arc<JwtProvider>>) -> Self {
        let mut all = Self::default();
        for provider in providers {
            let issuer = &provider.issuer;
            for header in &provider.from_headers {
                let same = |(name, prefix, _): &(Arc<str>, String, Issuers)| {
                    *name == header.name && *prefix == header.value_prefix
                };
                let index = all.headers.iter().position(same).unwrap_or_else(|| {
                    all.headers.push((Arc::clone(&header.name), header.value_prefix.clone(), Issuers::default()));
                    all.headers.len() - 1
                });
                all.headers[index].2.add(issuer);
            }
            add(&mut all.parameters, &provider.from_params, issuer);
            add(&mut all.cookies, &provider.from_cookies, issuer);
        }
        all.headers.sort_by_key(|(name, prefix, _)| format!("{name}{prefix}"));
        all.parameters.sort_by(|a, b| a.0.cmp(&b.0));
        all.cookies.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// All tokens of a request.
    pub fn find<R: RequestView>(&self, request: &Changed<'_, R>) -> Vec<Found<'_>> {
        let mut tokens = Vec::new();
        for (name, prefix, issuers) in &self.headers {
            for value in request.values(name) {
                if let Some(token) = after_prefix(&value, prefix.as_bytes()) {
                    tokens.push(Found { text: token.to_vec(), issuers, place: Place::Header(name) });
                }
            }
        }
        for (name, issuers) in &self.parameters {
            if let Some(text) = request.parameter(name) {
                tokens.push(Found { text, issuers, place: Place::Parameter(name) });
            }
        }
        for (name, issuers) in &self.cookies {
            if let Some(text) = request.cookie(name) {
                tokens.push(Found { text, issuers, place: Place::Cookie });
            }
        }
        tokens
    }
}

fn add(places: &mut Vec<(Arc<str>, Issuers)>, names: &[Arc<str>], issuer: &str) {
    for name in names {
        let index = places.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            places.push((Arc::clone(name), Issuers::default()));
            places.len() - 1
        });
        places[index].1.add(issuer);
    }
}

/// What follows the prefix, wherever in the value that stands, and the characters that a token cannot have. Without any
/// other, the value itself, which no reader takes for a token.
fn after_prefix<'v>(value: &'v [u8], prefix: &[u8]) -> Option<&'v [u8]> {
    if prefix.is_empty() {
        return Some(value);
    }
    let start = value.windows(prefix.len()).position(|window| window == prefix)? + prefix.len();
    let rest = &value[start..];
    let Some(first) = rest.iter().position(|byte| is_token_byte(*byte)) else { return Some(value) };
    Some(&rest[first..])
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}
