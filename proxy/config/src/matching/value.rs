//! Matchers of structured values (`envoy.type.matcher.v3`): `ValueMatcher`, `MetadataMatcher` and `FilterStateMatcher`.
//!
//! Owns the checked models, how they are read and how they match. Never knows where the values come from.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::r#type::matcher::v3 as pb;
use outrigger_api::pb::envoy::r#type::v3::DoubleRange;
use outrigger_api::pb::xds::core::v3::CidrRange;
use serde_json::{Map, Value};

use super::StringMatcher;
use crate::address_parse::cidr;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Source: `envoy.type.matcher.v3.ValueMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueMatcher {
    /// Null.
    Null,
    /// The number.
    Number(f64),
    /// A number in `start..end`.
    Range { start: f64, end: f64 },
    /// Text.
    String(StringMatcher),
    /// The flag.
    Bool(bool),
    /// Any value at all; `false` matches nothing.
    Present(bool),
    /// A list with such an element.
    OneOf(Box<ValueMatcher>),
    /// Any of them.
    Or(Vec<ValueMatcher>),
}

/// Source: `envoy.type.matcher.v3.MetadataMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct MetadataMatcher {
    /// The namespace, which is the name of the filter that wrote it.
    pub filter: Arc<str>,
    /// Keys that lead to the value.
    pub path: Vec<Box<str>>,
    /// What it must be.
    pub value: ValueMatcher,
    /// The opposite.
    pub invert: bool,
}

/// Source: `envoy.type.matcher.v3.FilterStateMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterStateMatcher {
    /// Name of the object.
    pub key: Arc<str>,
    /// What it must be.
    pub value: FilterStateValue,
}

/// What an object of the filter state must be.
#[derive(Clone, Debug, PartialEq)]
pub enum FilterStateValue {
    /// By its text.
    String(StringMatcher),
    /// An address within these networks, or outside of all of them.
    Address { ranges: Vec<IpNet>, invert: bool },
}

impl ValueMatcher {
    /// Whether `value` matches; what is absent matches nothing.
    pub fn matches(&self, value: Option<&Value>) -> bool {
        let Some(value) = value else { return false };
        match self {
            Self::Null => value.is_null(),
            Self::Number(wanted) => value.as_f64() == Some(*wanted),
            Self::Range { start, end } => value.as_f64().is_some_and(|value| (*start..*end).contains(&value)),
            Self::String(matcher) => value.as_str().is_some_and(|text| matcher.matches(text.as_bytes())),
            Self::Bool(wanted) => value.as_bool() == Some(*wanted),
            Self::Present(wanted) => *wanted,
            Self::OneOf(matcher) => {
                value.as_array().is_some_and(|list| list.iter().any(|value| matcher.matches(Some(value))))
            }
            Self::Or(matchers) => matchers.iter().any(|matcher| matcher.matches(Some(value))),
        }
    }

    pub(crate) fn parse(at: &FieldPath<'_>, wire: pb::ValueMatcher) -> Parsed<Self> {
        use pb::list_matcher::MatchPattern as ListPattern;
        use pb::value_matcher::MatchPattern;
        let pb::ValueMatcher { match_pattern } = wire;
        Ok(match match_pattern {
            Some(MatchPattern::NullMatch(_)) => Self::Null,
            Some(MatchPattern::DoubleMatch(wire)) => number(&at.field("double_match"), wire)?,
            Some(MatchPattern::StringMatch(wire)) => {
                Self::String(wire::string_matcher(&at.field("string_match"), wire)?)
            }
            Some(MatchPattern::BoolMatch(wanted)) => Self::Bool(wanted),
            Some(MatchPattern::PresentMatch(wanted)) => Self::Present(wanted),
            Some(MatchPattern::ListMatch(wire)) => {
                let at = at.field("list_match");
                match wire.match_pattern {
                    Some(ListPattern::OneOf(wire)) => Self::OneOf(Box::new(Self::parse(&at.field("one_of"), *wire)?)),
                    None => return Err(at.field("one_of").reject("is required")),
                }
            }
            Some(MatchPattern::OrMatch(pb::OrMatcher { value_matchers })) => {
                let at = at.field("or_match");
                let at = at.field("value_matchers");
                if value_matchers.len() < 2 {
                    return Err(at.reject(format!("has {} elements, expected two or more", value_matchers.len())));
                }
                Self::Or(wire::each(&at, value_matchers, Self::parse)?)
            }
            None => {
                return Err(at.reject(
                    "needs one of null_match, double_match, string_match, bool_match, present_match, list_match, or_match",
                ));
            }
        })
    }
}

fn number(at: &FieldPath<'_>, wire: pb::DoubleMatcher) -> Parsed<ValueMatcher> {
    use pb::double_matcher::MatchPattern;
    let pb::DoubleMatcher { match_pattern } = wire;
    match match_pattern {
        Some(MatchPattern::Exact(value)) => Ok(ValueMatcher::Number(value)),
        Some(MatchPattern::Range(DoubleRange { start, end })) => Ok(ValueMatcher::Range { start, end }),
        None => Err(at.reject("needs one of range, exact")),
    }
}

impl MetadataMatcher {
    /// Whether a namespace's content matches, `None` if there is no such namespace. What the path does not lead to
    /// matches only when inverted.
    pub fn matches(&self, namespace: Option<&Map<String, Value>>) -> bool {
        self.value.matches(lookup(namespace, &self.path)) != self.invert
    }

    pub(crate) fn parse(at: &FieldPath<'_>, wire: pb::MetadataMatcher) -> Parsed<Self> {
        decide!(wire, at, pb::MetadataMatcher as "envoy.type.matcher.v3.MetadataMatcher" {
            implemented: filter, path, value, invert;
            no_effect: ;
            unsupported: ;
        });
        let keys = path.into_iter().map(|pb::metadata_matcher::PathSegment { segment }| {
            segment.map(|pb::metadata_matcher::path_segment::Segment::Key(key)| key)
        });
        let Some(value) = value else { return Err(at.field("value").reject("is required")) };
        let (filter, path) = namespace_path(at, filter, keys)?;
        Ok(Self { filter, path, value: ValueMatcher::parse(&at.field("value"), value)?, invert })
    }
}

/// The value that `path` leads to in a namespace. Lists are not entered.
pub fn lookup<'a>(namespace: Option<&'a Map<String, Value>>, path: &[Box<str>]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(namespace?.get(&**first)?, |value, key| value.as_object()?.get(&**key))
}

/// Checks the namespace and the keys of a metadata path.
pub(crate) fn namespace_path(
    at: &FieldPath<'_>,
    filter: String,
    keys: impl Iterator<Item = Option<String>>,
) -> Parsed<(Arc<str>, Vec<Box<str>>)> {
    if filter.is_empty() {
        return Err(at.field("filter").reject("must not be empty"));
    }
    let list = at.field("path");
    let mut path: Vec<Box<str>> = Vec::new();
    for (index, key) in keys.enumerate() {
        match key {
            Some(key) if !key.is_empty() => path.push(key.into()),
            _ => return Err(list.item(index).field("key").reject("must not be empty")),
        }
    }
    if path.is_empty() {
        return Err(list.reject("must not be empty"));
    }
    Ok((filter.into(), path))
}

impl FilterStateMatcher {
    /// Whether the object matches, `None` if there is none of this name.
    pub fn matches(&self, object: Option<&str>) -> bool {
        let Some(object) = object else { return false };
        match &self.value {
            FilterStateValue::String(matcher) => matcher.matches(object.as_bytes()),
            FilterStateValue::Address { ranges, invert } => {
                let address = object.parse().or_else(|_| object.parse::<SocketAddr>().map(|address| address.ip()));
                let within = |address: IpAddr| ranges.iter().any(|range| range.contains(&address));
                address.is_ok_and(|address| within(address) != *invert)
            }
        }
    }

    pub(crate) fn parse(at: &FieldPath<'_>, wire: pb::FilterStateMatcher) -> Parsed<Self> {
        use pb::filter_state_matcher::Matcher;
        let pb::FilterStateMatcher { key, matcher } = wire;
        if key.is_empty() {
            return Err(at.field("key").reject("must not be empty"));
        }
        let value = match matcher {
            Some(Matcher::StringMatch(wire)) => {
                FilterStateValue::String(wire::string_matcher(&at.field("string_match"), wire)?)
            }
            Some(Matcher::AddressMatch(pb::AddressMatcher { ranges, invert_match })) => {
                let at = at.field("address_match");
                let at = at.field("ranges");
                let read = |at: &FieldPath<'_>, CidrRange { address_prefix, prefix_len }| {
                    cidr(at, core::CidrRange { address_prefix, prefix_len })
                };
                FilterStateValue::Address { ranges: wire::each(&at, ranges, read)?, invert: invert_match }
            }
            None => return Err(at.reject("needs one of string_match, address_match")),
        };
        Ok(Self { key: key.into(), value })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn exact(value: &str) -> StringMatcher {
        StringMatcher::Exact { value: value.to_owned(), ignore_case: false }
    }

    #[test]
    fn each_matcher_takes_values_of_its_own_kind() {
        let values = [json!(null), json!(1.5), json!(2), json!("a"), json!(true), json!(["a", 2]), json!({"a": 1})];
        let taken = |matcher: &ValueMatcher| {
            values.iter().map(|value| if matcher.matches(Some(value)) { 'x' } else { '.' }).collect::<String>()
        };
        for (matcher, expected) in [
            (ValueMatcher::Null, "x......"),
            (ValueMatcher::Number(1.5), ".x....."),
            (ValueMatcher::Number(2.0), "..x...."),
            (ValueMatcher::Range { start: 1.5, end: 2.0 }, ".x....."),
            (ValueMatcher::String(exact("a")), "...x..."),
            (ValueMatcher::Bool(true), "....x.."),
            (ValueMatcher::Bool(false), "......."),
            (ValueMatcher::Present(true), "xxxxxxx"),
            (ValueMatcher::Present(false), "......."),
            (ValueMatcher::OneOf(Box::new(ValueMatcher::Number(2.0))), ".....x."),
            (ValueMatcher::Or(vec![ValueMatcher::Null, ValueMatcher::String(exact("a"))]), "x..x..."),
        ] {
            assert_eq!(taken(&matcher), expected, "{matcher:?}");
            assert!(!matcher.matches(None));
        }
    }

    #[test]
    fn paths_lead_through_objects_only() {
        let content = json!({"a": {"b": "c", "l": [{"b": "c"}]}, "s": "x"});
        let namespace = content.as_object();
        let matcher = |path: &[&str], invert| MetadataMatcher {
            filter: "f".into(),
            path: path.iter().map(|key| Box::from(*key)).collect(),
            value: ValueMatcher::String(exact("c")),
            invert,
        };
        for (path, found) in [
            (&["a", "b"][..], true),
            (&["a"], false),
            (&["a", "b", "c"], false),
            (&["a", "l", "b"], false),
            (&["z"], false),
        ] {
            assert_eq!(matcher(path, false).matches(namespace), found, "{path:?}");
            assert_eq!(matcher(path, true).matches(namespace), !found, "{path:?}");
        }
        assert!(!matcher(&["a", "b"], false).matches(None));
        assert!(matcher(&["a", "b"], true).matches(None));
    }

    #[test]
    fn filter_state_is_matched_as_text_or_as_an_address() {
        let text = FilterStateMatcher { key: "k".into(), value: FilterStateValue::String(exact("v")) };
        assert!(text.matches(Some("v")));
        assert!(!text.matches(Some("w")));
        assert!(!text.matches(None));
        let address = |invert| FilterStateMatcher {
            key: "k".into(),
            value: FilterStateValue::Address { ranges: vec!["10.0.0.0/8".parse().unwrap()], invert },
        };
        for (object, within) in [("10.1.2.3", true), ("10.1.2.3:80", true), ("11.0.0.1", false), ("::1", false)] {
            assert_eq!(address(false).matches(Some(object)), within, "{object}");
            assert_eq!(address(true).matches(Some(object)), !within, "{object}");
        }
        assert!(!address(true).matches(Some("not an address")));
        assert!(!address(true).matches(None));
    }
}
