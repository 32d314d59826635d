//! Which transport the connections to an endpoint have (`transport_socket_matches`, `transport_socket_matcher`), and
//! whether it may have some in advance (`preconnect_enabled_metadata`).
//!
//! Owns the choice by what an endpoint and its locality say of themselves. Never connects.

use outrigger_config::cluster::{Cluster, LbMetadata, LbValue, Preconnect};
use outrigger_config::matcher::Input;
use serde_json::{Number, Value};

use crate::matcher::{Given, Inputs, find};

/// What an endpoint or a locality says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said<'a> {
    /// Of its transport (`envoy.transport_socket_match`).
    pub transport: Option<&'a LbMetadata>,
    /// For balancing (`envoy.lb`).
    pub balancing: Option<&'a LbMetadata>,
}

impl<'a> Said<'a> {
    /// The metadata of a namespace; others than these two are not kept.
    fn namespace(self, name: &str) -> Option<&'a LbMetadata> {
        match name {
            "envoy.lb" => self.balancing,
            "envoy.transport_socket_match" => self.transport,
            _ => None,
        }
    }
}

/// The place among [`Cluster::transports`] of an endpoint's transport. The cluster's matcher says it if there is one.
/// Otherwise it is the first match for the endpoint, else the first for the locality, else the default.
pub fn transport_of(cluster: &Cluster, endpoint: Said<'_>, locality: Said<'_>) -> usize {
    if let Some(matcher) = &cluster.transport_matcher {
        let found = find(matcher, &Endpoint { endpoint, locality });
        return found.ok().flatten().copied().unwrap_or(0);
    }
    let first = |said: Option<&LbMetadata>| {
        cluster.transport_matches.iter().position(|wanted| {
            let mut criteria = wanted.criteria.iter();
            criteria.all(|(key, value)| said.and_then(|said| said.get(key)) == Some(value))
        })
    };
    let of_locality = || locality.transport.and_then(|said| first(Some(said)));
    first(endpoint.transport).or_else(of_locality).map_or(0, |place| place + 1)
}

/// Whether an endpoint may have connections before they are needed.
pub fn may_preconnect(policy: &Preconnect, endpoint: Said<'_>) -> bool {
    let Some(only) = &policy.only else { return true };
    let json = endpoint.namespace(&only.filter).map(|said| value_of(&LbValue::Struct(said.clone())));
    only.matches(json.as_ref().and_then(Value::as_object))
}

struct Endpoint<'a> {
    endpoint: Said<'a>,
    locality: Said<'a>,
}

impl Inputs for Endpoint<'_> {
    fn look(&self, input: &Input, look: &mut dyn FnMut(Given<'_>)) {
        let (said, filter, path) = match input {
            Input::EndpointMetadata { filter, path } => (self.endpoint, filter, path),
            Input::LocalityMetadata { filter, path } => (self.locality, filter, path),
            // Refused when the tree was read.
            _ => return look(Given::Absent),
        };
        match said.namespace(filter).and_then(|said| at_path(said, path)) {
            None => look(Given::Absent),
            Some(LbValue::String(text)) => look(Given::Text(text.as_bytes())),
            Some(value) => look(Given::Text(value_of(value).to_string().as_bytes())),
        }
    }
}

fn at_path<'a>(said: &'a LbMetadata, path: &[Box<str>]) -> Option<&'a LbValue> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(said.get(first)?, |value, key| match value {
        LbValue::Struct(inner) => inner.get(key),
        _ => None,
    })
}

/// The value as JSON. Whole numbers have no fraction.
fn value_of(value: &LbValue) -> Value {
    match value {
        LbValue::Null => Value::Null,
        LbValue::Bool(flag) => Value::Bool(*flag),
        LbValue::Number(bits) => {
            let number = f64::from_bits(*bits);
            let whole = number as i64;
            if whole as f64 == number {
                whole.into()
            } else {
                Number::from_f64(number).map_or(Value::Null, Value::Number)
            }
        }
        LbValue::String(text) => Value::String(text.to_string()),
        LbValue::List(items) => items.iter().map(value_of).collect(),
        LbValue::Struct(fields) => {
            Value::Object(fields.iter().map(|(key, value)| (key.to_string(), value_of(value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use outrigger_config::matcher::{Ask, InputMatcher, Matcher, OnMatch, Predicate};
    use outrigger_config::matching::{MetadataMatcher, StringMatcher, ValueMatcher};
    use serde_json::json;

    use super::*;

    fn said(json: Value) -> LbMetadata {
        LbMetadata::from(json.as_object().unwrap())
    }

    fn input(of_locality: bool, path: &[&str]) -> Input {
        let (filter, path) = (Arc::from("envoy.lb"), path.iter().map(|key| (*key).into()).collect());
        if of_locality { Input::LocalityMetadata { filter, path } } else { Input::EndpointMetadata { filter, path } }
    }

    fn text_of(endpoint: &LbMetadata, locality: &LbMetadata, input: &Input) -> Option<String> {
        let said = |balancing| Said { transport: None, balancing: Some(balancing) };
        let mut found = None;
        Endpoint { endpoint: said(endpoint), locality: said(locality) }.look(input, &mut |given| {
            if let Given::Text(text) = given {
                found = Some(String::from_utf8(text.to_vec()).unwrap());
            }
        });
        found
    }

    #[test]
    fn values_are_looked_at_as_text() {
        let endpoint = said(json!({"a": "x", "b": {"c": 7, "d": [1.5, true]}}));
        let locality = said(json!({"a": false}));
        let text = |of_locality, path: &[&str]| text_of(&endpoint, &locality, &input(of_locality, path));
        assert_eq!(text(false, &["a"]).as_deref(), Some("x"));
        assert_eq!(text(false, &["b", "c"]).as_deref(), Some("7"));
        assert_eq!(text(false, &["b", "d"]).as_deref(), Some("[1.5,true]"));
        assert_eq!(text(true, &["a"]).as_deref(), Some("false"));
        assert_eq!((text(true, &["b"]), text(false, &["a", "x"])), (None, None));
    }

    #[test]
    fn a_tree_names_the_transport() {
        let exact = StringMatcher::Exact { value: "x".to_owned(), ignore_case: false };
        let first = Predicate::Single { input: input(false, &["a"]), value: InputMatcher::String(exact) };
        let tree = Matcher { ask: Some(Ask::List(vec![(first, OnMatch::Action(2))])), on_no_match: None };
        let place = |a: &str| {
            let endpoint = said(json!({ "a": a }));
            let endpoint =
                Endpoint { endpoint: Said { transport: None, balancing: Some(&endpoint) }, locality: Said::default() };
            find(&tree, &endpoint).unwrap().copied()
        };
        assert_eq!((place("x"), place("y")), (Some(2), None));
    }

    #[test]
    fn some_endpoints_may_have_connections_in_advance() {
        let only = MetadataMatcher {
            filter: "envoy.lb".into(),
            path: vec!["warm".into()],
            value: ValueMatcher::Bool(true),
            invert: false,
        };
        let policy = Preconnect { per_upstream: 2.0, predictive: 1.0, only: Some(only) };
        let may = |said: Option<&LbMetadata>| may_preconnect(&policy, Said { transport: None, balancing: said });
        let (warm, cold) = (said(json!({"warm": true})), said(json!({"warm": false})));
        assert_eq!([may(Some(&warm)), may(Some(&cold)), may(None)], [true, false, false]);
        assert!(may_preconnect(&Preconnect { only: None, ..policy }, Said::default()));
    }
}
