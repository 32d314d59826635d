//! The JSON to metadata filter (`envoy.extensions.filters.http.json_to_metadata.v3`).
//!
//! Owns which values of a body become metadata, and under which names. Never reads a body.

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::http::json_to_metadata::v3 as pb;
use regex::Regex;
use serde_json::Value;

use crate::decide::decide;
use crate::metadata;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Source: `envoy.extensions.filters.http.json_to_metadata.v3.JsonToMetadata`.
#[derive(Clone, Debug)]
pub struct JsonToMetadata {
    /// For bodies of requests.
    pub request: Option<JsonRules>,
    /// For bodies of responses.
    pub response: Option<JsonRules>,
}

/// Source: `JsonToMetadata.MatchRules`.
#[derive(Clone, Debug)]
pub struct JsonRules {
    /// In order; never empty.
    pub rules: Vec<JsonRule>,
    /// Types of content that are JSON, as they stand in the header.
    pub content_types: Vec<String>,
    /// So is content without a type.
    pub without_content_type: bool,
    /// And types that match this as a whole.
    pub content_type_regex: Option<Regex>,
}

/// Source: `JsonToMetadata.Rule`.
#[derive(Clone, Debug)]
pub struct JsonRule {
    /// Keys from the root of the body to the value; never empty.
    pub path: Vec<String>,
    /// If the value is there.
    pub on_present: Option<JsonEntry>,
    /// If it is not.
    pub on_missing: Option<FixedEntry>,
    /// If the body is not JSON.
    pub on_error: Option<FixedEntry>,
}

/// Where a value goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MetadataPlace {
    /// Of metadata.
    pub namespace: Arc<str>,
    /// In the namespace.
    pub key: String,
    /// A value that is there already stays.
    pub keep: bool,
}

/// What becomes of a value that is there. Source: `JsonToMetadata.KeyValuePair`.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonEntry {
    /// Where it goes.
    pub place: MetadataPlace,
    /// What goes there.
    pub value: JsonValue,
}

/// The same value in any case. Source: `JsonToMetadata.KeyValuePair`.
#[derive(Clone, Debug, PartialEq)]
pub struct FixedEntry {
    /// Where it goes.
    pub place: MetadataPlace,
    /// The value.
    pub value: Value,
}

/// What goes into metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum JsonValue {
    /// This.
    Fixed(Value),
    /// What was found, as it is.
    AsFound,
    /// What was found, as text.
    Text,
    /// What was found, as a number.
    Number,
}

impl JsonToMetadata {
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::JsonToMetadata) -> Parsed<Self> {
        decide!(wire, at, pb::JsonToMetadata as "envoy.extensions.filters.http.json_to_metadata.v3.JsonToMetadata" {
            implemented: request_rules, response_rules;
            no_effect: ;
            unsupported: ;
        });
        if request_rules.is_none() && response_rules.is_none() {
            return Err(at.reject("needs request_rules or response_rules"));
        }
        let request = request_rules.map(|wire| rules(&at.field("request_rules"), wire)).transpose()?;
        let response = response_rules.map(|wire| rules(&at.field("response_rules"), wire)).transpose()?;
        Ok(Self { request, response })
    }
}

fn rules(at: &FieldPath<'_>, wire: pb::json_to_metadata::MatchRules) -> Parsed<JsonRules> {
    decide!(wire, at, pb::json_to_metadata::MatchRules
        as "envoy.extensions.filters.http.json_to_metadata.v3.JsonToMetadata.MatchRules" {
        implemented: rules, allow_content_types, allow_empty_content_type, allow_content_types_regex;
        no_effect: ;
        unsupported: ;
    });
    let list = at.field("rules");
    if rules.is_empty() {
        return Err(list.reject("must not be empty"));
    }
    let types = at.field("allow_content_types");
    if let Some(index) = allow_content_types.iter().position(String::is_empty) {
        return Err(types.item(index).reject("must not be empty"));
    }
    let content_types = match allow_content_types.is_empty() {
        true => vec![DEFAULT_CONTENT_TYPE.to_owned()],
        false => allow_content_types,
    };
    let regex_at = at.field("allow_content_types_regex");
    Ok(JsonRules {
        rules: wire::each(&list, rules, rule)?,
        content_types,
        without_content_type: allow_empty_content_type,
        content_type_regex: allow_content_types_regex.map(|wire| wire::regex(&regex_at, wire)).transpose()?,
    })
}

fn rule(at: &FieldPath<'_>, wire: pb::json_to_metadata::Rule) -> Parsed<JsonRule> {
    decide!(wire, at, pb::json_to_metadata::Rule
        as "envoy.extensions.filters.http.json_to_metadata.v3.JsonToMetadata.Rule" {
        implemented: selectors, on_present, on_missing, on_error;
        no_effect: ;
        unsupported: ;
    });
    let list = at.field("selectors");
    if selectors.is_empty() {
        return Err(list.reject("must not be empty"));
    }
    let path = wire::each(&list, selectors, |at, wire| {
        let pb::json_to_metadata::Selector { selector } = wire;
        match selector {
            Some(pb::json_to_metadata::selector::Selector::Key(key)) if !key.is_empty() => Ok(key),
            _ => Err(at.field("key").reject("must not be empty")),
        }
    })?;
    if on_present.is_none() && on_missing.is_none() {
        return Err(at.reject("needs on_present or on_missing"));
    }
    let fixed = |name: &'static str, wire: Option<pb::json_to_metadata::KeyValuePair>| {
        let at = at.field(name);
        let Some(wire) = wire else { return Ok(None) };
        match entry(&at, wire)? {
            JsonEntry { place, value: JsonValue::Fixed(value) } => Ok(Some(FixedEntry { place, value })),
            _ => Err(at.field("value").reject("is required")),
        }
    };
    Ok(JsonRule {
        path,
        on_present: on_present.map(|wire| entry(&at.field("on_present"), wire)).transpose()?,
        on_missing: fixed("on_missing", on_missing)?,
        on_error: fixed("on_error", on_error)?,
    })
}

fn entry(at: &FieldPath<'_>, wire: pb::json_to_metadata::KeyValuePair) -> Parsed<JsonEntry> {
    use pb::json_to_metadata::{ValueType, key_value_pair};
    decide!(wire, at, pb::json_to_metadata::KeyValuePair
        as "envoy.extensions.filters.http.json_to_metadata.v3.JsonToMetadata.KeyValuePair" {
        implemented: metadata_namespace, key, value_type, r#type, preserve_existing_metadata_value;
        no_effect: ;
        unsupported: ;
    });
    if key.is_empty() {
        return Err(at.field("key").reject("must not be empty"));
    }
    let found = match ValueType::try_from(r#type) {
        Ok(ValueType::ProtobufValue) => JsonValue::AsFound,
        Ok(ValueType::String) => JsonValue::Text,
        Ok(ValueType::Number) => JsonValue::Number,
        Err(_) => return Err(wire::unknown_enum(&at.field("type"), r#type)),
    };
    let value = match value_type {
        Some(key_value_pair::ValueType::Value(wire)) if wire.kind.is_some() => JsonValue::Fixed(metadata::value(wire)),
        _ => found,
    };
    let namespace = if metadata_namespace.is_empty() { NAMESPACE } else { &metadata_namespace };
    let place = MetadataPlace { namespace: namespace.into(), key, keep: preserve_existing_metadata_value };
    Ok(JsonEntry { place, value })
}

/// Where values go unless the rule says so.
const NAMESPACE: &str = "envoy.filters.http.json_to_metadata";
const DEFAULT_CONTENT_TYPE: &str = "application/json";

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::protobuf as proto;
    use pb::json_to_metadata::{KeyValuePair, MatchRules, Rule, Selector, key_value_pair, selector};

    use super::*;

    fn pair(value: Option<f64>) -> Option<KeyValuePair> {
        let value = value.map(|number| {
            key_value_pair::ValueType::Value(proto::Value { kind: Some(proto::value::Kind::NumberValue(number)) })
        });
        Some(KeyValuePair { key: "k".into(), value_type: value, ..Default::default() })
    }

    fn read(rule: Rule) -> Result<JsonToMetadata, String> {
        let rules = MatchRules { rules: vec![rule], ..Default::default() };
        let wire = pb::JsonToMetadata { request_rules: Some(rules), response_rules: None };
        JsonToMetadata::parse(&FieldPath::resource("listener", "l"), wire).map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn a_rule_has_a_path_and_values_where_nothing_is_found() {
        let key = |key: &str| Selector { selector: Some(selector::Selector::Key(key.to_owned())) };
        let rule = || Rule { selectors: vec![key("a")], on_present: pair(None), ..Default::default() };
        let rules = read(Rule { on_missing: pair(Some(1.0)), ..rule() }).unwrap().request.unwrap();
        assert_eq!(rules.content_types, ["application/json"]);
        assert_eq!(rules.rules[0].on_missing.as_ref().unwrap().value, Value::from(1));
        for (wire, expected) in [
            (Rule { selectors: Vec::new(), ..rule() }, "selectors: must not be empty"),
            (Rule { selectors: vec![key("")], ..rule() }, "selectors[0].key: must not be empty"),
            (Rule { on_present: None, ..rule() }, "needs on_present or on_missing"),
            (Rule { on_missing: pair(None), ..rule() }, "on_missing.value: is required"),
            (Rule { on_error: pair(None), ..rule() }, "on_error.value: is required"),
        ] {
            let error = read(wire).unwrap_err();
            assert!(
                error.starts_with("listener \"l\": request_rules.rules[0]") && error.ends_with(expected),
                "{error}"
            );
        }
    }
}
