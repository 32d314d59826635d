//! The header mutation filter: changes headers, trailers and query parameters.
//!
//! Owns the order of levels and the changing of queries. What is changed stands in the settings.

use std::borrow::Cow;
use std::sync::Arc;

use outrigger_config::format::Format;
use outrigger_config::http::filters::{HeaderMutation as Settings, Mutation, Mutations, QueryMutation};
use outrigger_config::http::{AppendAction, RouteFilterConfig};

use super::body::BodyObserver;
use super::{Exchange, HttpFilter, Verdict};
use crate::http::headers::Headers;
use crate::http::manager::mutate::{self, Mutable};
use crate::http::manager::request::{RequestSide, ResponseSide};

/// The filter.
pub struct HeaderMutation {
    settings: Arc<Settings>,
}

impl HeaderMutation {
    /// A filter.
    pub fn new(settings: &Arc<Settings>) -> Self {
        Self { settings: Arc::clone(settings) }
    }

    /// Does `with` for each level that says something: the filter's own settings first.
    fn each(&self, exchange: &mut Exchange<'_, '_, '_>, mut with: impl FnMut(&Mutations, &mut Exchange<'_, '_, '_>)) {
        with(&self.settings.mutations, exchange);
        let of_routes = exchange.route_configs().filter_map(|config| match config {
            RouteFilterConfig::HeaderMutation(mutations) => Some(mutations),
            _ => None,
        });
        let mut levels: Vec<_> = of_routes.collect();
        if self.settings.most_specific_wins {
            levels.reverse();
        }
        for mutations in levels {
            with(mutations, exchange);
        }
    }
}

impl HttpFilter for HeaderMutation {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        self.each(exchange, |mutations, exchange| {
            mutate::change(&mutations.request, &mut RequestSide(exchange.request_mut()));
            if !mutations.query.is_empty() {
                change_query(&mutations.query, exchange);
            }
            if !mutations.request_trailers.is_empty() && !exchange.has_no_body() {
                let changes = evaluated(&mutations.request_trailers, &RequestSide(exchange.request_mut()));
                exchange.observe_request(Box::new(Trailers(changes)));
            }
        });
        Verdict::Continue
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        self.each(exchange, |mutations, exchange| {
            mutate::change(&mutations.response, &mut ResponseSide(exchange.request_mut()));
            if !mutations.response_trailers.is_empty() {
                let changes = evaluated(&mutations.response_trailers, &ResponseSide(exchange.request_mut()));
                exchange.observe_response(Box::new(Trailers(changes)));
            }
        });
        Verdict::Continue
    }
}

/// The same mutations with their values as they are now.
fn evaluated(mutations: &[Mutation], head: &impl Mutable) -> Vec<Mutation> {
    let mut mutations = mutations.to_vec();
    for mutation in &mut mutations {
        if let Mutation::Add(addition) = mutation
            && addition.value.as_literal().is_none()
        {
            let mut value = Vec::new();
            head.evaluate(&addition.value, &mut value);
            addition.value = Format::literal(&String::from_utf8_lossy(&value));
        }
    }
    mutations
}

/// Changes trailers, if there are any.
struct Trailers(Vec<Mutation>);

impl BodyObserver for Trailers {
    fn data(&mut self, _: &[u8]) {}

    fn end(&mut self, trailers: &mut Option<Headers>) {
        if let Some(trailers) = trailers {
            mutate::change(&self.0, &mut Bare(trailers));
        }
    }
}

/// Headers whose new values were evaluated before.
struct Bare<'a>(&'a mut Headers);

impl Mutable for Bare<'_> {
    fn headers(&mut self) -> &mut Headers {
        self.0
    }

    fn evaluate(&self, _: &Format, _: &mut Vec<u8>) {}
}

fn change_query(mutations: &[QueryMutation], exchange: &mut Exchange<'_, '_, '_>) {
    let path = exchange.head().path_str().to_owned();
    let changed = with_query(mutations, &path, &RequestSide(exchange.request_mut()));
    if path != changed {
        exchange.head_mut().set_path(changed.as_bytes());
    }
}

/// `path` with these changes of its query, whose values are those of `head`.
pub fn with_query(mutations: &[QueryMutation], path: &str, head: &impl Mutable) -> String {
    let mut path = path.to_owned();
    for mutation in mutations {
        path = match mutation {
            QueryMutation::Remove(key) => without(&path, key),
            QueryMutation::Add { key, value, action } => {
                let mut text = Vec::new();
                head.evaluate(value, &mut text);
                with(&path, key, &text, *action)
            }
        };
    }
    path
}

fn split(path: &str) -> (&str, impl Iterator<Item = &str>) {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    (path, query.split('&').filter(|parameter| !parameter.is_empty()))
}

fn is_named(parameter: &str, key: &str) -> bool {
    let name = parameter.split('=').next().unwrap_or_default();
    name == key || decoded(name) == key.as_bytes()
}

/// What is no escape stays as it is.
fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().iter();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let digits = bytes.as_slice().get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *byte == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(escaped) => {
                out.push(escaped);
                bytes.nth(1);
            }
            None => out.push(*byte),
        }
    }
    out
}

/// RFC 3986 section 2.3: everything but unreserved characters is escaped.
fn encoded(text: &[u8], out: &mut String) {
    for byte in text {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(*byte));
        } else {
            out.push('%');
            out.push(char::from(b"0123456789ABCDEF"[usize::from(byte >> 4)]));
            out.push(char::from(b"0123456789ABCDEF"[usize::from(byte & 15)]));
        }
    }
}

pub(super) fn without(path: &str, key: &str) -> String {
    let (path, parameters) = split(path);
    join(path, parameters.filter(|parameter| !is_named(parameter, key)).map(Cow::Borrowed))
}

/// Parameters that are not meant stay as they are and where they are.
pub(super) fn with(path: &str, key: &str, value: &[u8], action: AppendAction) -> String {
    let present = split(path).1.any(|parameter| is_named(parameter, key));
    let new = || {
        let mut new = String::new();
        encoded(key.as_bytes(), &mut new);
        new.push('=');
        encoded(value, &mut new);
        Cow::Owned(new)
    };
    match action {
        AppendAction::AddIfAbsent if present => path.to_owned(),
        AppendAction::OverwriteIfExists if !present => path.to_owned(),
        AppendAction::OverwriteIfExistsOrAdd | AppendAction::OverwriteIfExists if present => {
            let (path, parameters) = split(path);
            let mut done = false;
            let replaced = parameters.filter_map(|parameter| match is_named(parameter, key) {
                true if std::mem::replace(&mut done, true) => None,
                true => Some(new()),
                false => Some(Cow::Borrowed(parameter)),
            });
            join(path, replaced)
        }
        _ => {
            let (path, parameters) = split(path);
            join(path, parameters.map(Cow::Borrowed).chain(std::iter::once(new())))
        }
    }
}

fn join<'a>(path: &str, parameters: impl Iterator<Item = Cow<'a, str>>) -> String {
    let mut joined = path.to_owned();
    for (index, parameter) in parameters.enumerate() {
        joined.push(if index == 0 { '?' } else { '&' });
        joined.push_str(&parameter);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_parameters_are_added_and_replaced() {
        use AppendAction::{AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists, OverwriteIfExistsOrAdd};
        for (path, action, expected) in [
            ("/p", AppendIfExistsOrAdd, "/p?k=v%201"),
            ("/p?k=0", AppendIfExistsOrAdd, "/p?k=0&k=v%201"),
            ("/p?k=0", AddIfAbsent, "/p?k=0"),
            ("/p?a", AddIfAbsent, "/p?a&k=v%201"),
            ("/p?k=0&b=%26&k", OverwriteIfExistsOrAdd, "/p?k=v%201&b=%26"),
            ("/p", OverwriteIfExistsOrAdd, "/p?k=v%201"),
            ("/p?%6B=0", OverwriteIfExists, "/p?k=v%201"),
            ("/p?kk=0", OverwriteIfExists, "/p?kk=0"),
        ] {
            assert_eq!(with(path, "k", b"v 1", action), expected, "{path} {action:?}");
        }
        assert_eq!(with("/p", "a&b", b"=?\xc3\xa9", AppendIfExistsOrAdd), "/p?a%26b=%3D%3F%C3%A9");
    }

    #[test]
    fn query_parameters_are_removed() {
        assert_eq!(without("/p?a=1&b=2&a&c=%3d", "a"), "/p?b=2&c=%3d");
        assert_eq!(without("/p?a=1", "a"), "/p");
        assert_eq!(without("/p?", "a"), "/p");
    }
}
