//! Copying headers into dynamic metadata (`envoy.extensions.filters.http.header_to_metadata.v3`).
//!
//! Owns the rules. Never looks at a header.

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::http::header_to_metadata::v3 as pb;

use crate::decide::decide;
use crate::http::header_mutations::header_name;
use crate::rejection::{FieldPath, Parsed};
use crate::route::{RegexRewrite, regex_rewrite};
use crate::wire;

/// Source: `envoy.extensions.filters.http.header_to_metadata.v3.Config`.
#[derive(Clone, Debug)]
pub struct HeaderToMetadata {
    /// For requests, in order.
    pub request: Vec<MetadataRule>,
    /// For responses, in order.
    pub response: Vec<MetadataRule>,
    /// The `<prefix>` in `http_filter_name.<prefix>.*` stats; there are none without.
    pub stat_prefix: Option<Arc<str>>,
}

/// Source: `Config.Rule`.
#[derive(Clone, Debug)]
pub struct MetadataRule {
    /// Where the value comes from.
    pub from: MetadataSource,
    /// What becomes of it if it is there.
    pub on_present: Option<MetadataEntry>,
    /// What happens if it is not.
    pub on_missing: Option<MetadataEntry>,
    /// The header does not go on.
    pub remove: bool,
}

/// Where the value of a rule comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MetadataSource {
    /// A header; lower case.
    Header(Arc<str>),
    /// A cookie.
    Cookie(String),
}

/// One value of the metadata. Source: `Config.KeyValuePair`.
#[derive(Clone, Debug)]
pub struct MetadataEntry {
    /// Where it goes.
    pub namespace: Arc<str>,
    /// What it is called there; not empty.
    pub key: String,
    /// What it is.
    pub value: EntryValue,
    /// Its type.
    pub kind: ValueKind,
    /// It is base64.
    pub base64: bool,
}

/// What a value is.
#[derive(Clone, Debug)]
pub enum EntryValue {
    /// What the header says.
    AsFound,
    /// That, rewritten.
    Rewritten(RegexRewrite),
    /// Always the same; not empty.
    Fixed(String),
}

/// Source: `Config.ValueType`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ValueKind {
    /// Text.
    String,
    /// A number.
    Number,
    /// A serialised `google.protobuf.Value`.
    Protobuf,
}

impl HeaderToMetadata {
    /// Reads the settings; those of a route must have a rule.
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::Config, of_route: bool) -> Parsed<Self> {
        decide!(wire, at, pb::Config as "envoy.extensions.filters.http.header_to_metadata.v3.Config" {
            implemented: request_rules, response_rules, stat_prefix;
            no_effect: ;
            unsupported: ;
        });
        if of_route && request_rules.is_empty() && response_rules.is_empty() {
            return Err(at.reject("needs request_rules or response_rules"));
        }
        Ok(Self {
            request: rules(&at.field("request_rules"), request_rules)?,
            response: rules(&at.field("response_rules"), response_rules)?,
            stat_prefix: Some(stat_prefix).filter(|prefix| !prefix.is_empty()).map(Arc::from),
        })
    }
}

fn rules(at: &FieldPath<'_>, wire: Vec<pb::config::Rule>) -> Parsed<Vec<MetadataRule>> {
    wire::each(at, wire, rule)
}

fn rule(at: &FieldPath<'_>, wire: pb::config::Rule) -> Parsed<MetadataRule> {
    decide!(wire, at, pb::config::Rule as "envoy.extensions.filters.http.header_to_metadata.v3.Config.Rule" {
        implemented: header, cookie, on_header_present, on_header_missing, remove;
        no_effect: ;
        unsupported: ;
    });
    let from = match (header.is_empty(), cookie.is_empty()) {
        (false, true) => MetadataSource::Header(header_name(&at.field("header"), &header)?),
        (true, false) if remove => return Err(at.field("remove").reject("must not be set for a cookie")),
        (true, false) => MetadataSource::Cookie(cookie),
        (false, false) => return Err(at.field("cookie").reject("must not be set together with header")),
        (true, true) => return Err(at.reject("needs one of header, cookie")),
    };
    let on_present = on_header_present.map(|wire| entry(&at.field("on_header_present"), wire)).transpose()?;
    let missing_at = at.field("on_header_missing");
    let on_missing = on_header_missing.map(|wire| entry(&missing_at, wire)).transpose()?;
    if on_present.is_none() && on_missing.is_none() {
        return Err(at.reject("needs on_header_present or on_header_missing"));
    }
    if let Some(MetadataEntry { value: EntryValue::AsFound | EntryValue::Rewritten(_), .. }) = on_missing {
        return Err(missing_at.field("value").reject("must not be empty"));
    }
    Ok(MetadataRule { from, on_present, on_missing, remove })
}

fn entry(at: &FieldPath<'_>, wire: pb::config::KeyValuePair) -> Parsed<MetadataEntry> {
    use pb::config::{KeyValuePair, ValueEncode, ValueType};
    decide!(wire, at, KeyValuePair as "envoy.extensions.filters.http.header_to_metadata.v3.Config.KeyValuePair" {
        implemented: metadata_namespace, key, value, regex_value_rewrite, r#type, encode;
        no_effect: ;
        unsupported: ;
    });
    if key.is_empty() {
        return Err(at.field("key").reject("must not be empty"));
    }
    let rewrite_at = at.field("regex_value_rewrite");
    let value = match regex_value_rewrite {
        Some(_) if !value.is_empty() => return Err(rewrite_at.reject("must not be set together with value")),
        Some(wire) => EntryValue::Rewritten(regex_rewrite(&rewrite_at, wire)?),
        None if value.is_empty() => EntryValue::AsFound,
        None => EntryValue::Fixed(value),
    };
    let kind = match ValueType::try_from(r#type) {
        Ok(ValueType::String) => ValueKind::String,
        Ok(ValueType::Number) => ValueKind::Number,
        Ok(ValueType::ProtobufValue) => ValueKind::Protobuf,
        Err(_) => return Err(wire::unknown_enum(&at.field("type"), r#type)),
    };
    let base64 = match ValueEncode::try_from(encode) {
        Ok(ValueEncode::None) => false,
        Ok(ValueEncode::Base64) => true,
        Err(_) => return Err(wire::unknown_enum(&at.field("encode"), encode)),
    };
    let namespace = if metadata_namespace.is_empty() { NAMESPACE.into() } else { metadata_namespace.into() };
    Ok(MetadataEntry { namespace, key, value, kind, base64 })
}

/// Where values go unless the rule says so.
const NAMESPACE: &str = "envoy.filters.http.header_to_metadata";

#[cfg(test)]
mod tests {
    use outrigger_api::pb::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher};

    use super::*;
    use pb::config::{KeyValuePair, Rule};

    fn read(wire: Rule) -> Result<MetadataRule, String> {
        rule(&FieldPath::resource("listener", "l"), wire).map_err(|rejection| rejection.to_string())
    }

    fn pair(value: &str) -> Option<KeyValuePair> {
        Some(KeyValuePair { key: "k".into(), value: value.into(), ..Default::default() })
    }

    #[test]
    fn a_rule_has_one_source_and_an_entry() {
        let header = || Rule { header: "X-A".into(), ..Default::default() };
        let got = read(Rule { on_header_present: pair(""), ..header() }).unwrap();
        assert_eq!(got.from, MetadataSource::Header("x-a".into()));
        assert_eq!(&*got.on_present.unwrap().namespace, "envoy.filters.http.header_to_metadata");
        let cookie = || Rule { cookie: "c".into(), on_header_present: pair(""), ..Default::default() };
        let regex = RegexMatcher { regex: "a".into(), ..Default::default() };
        let rewrite = RegexMatchAndSubstitute { pattern: Some(regex), substitution: "b".into() };
        let both = pair("v").map(|pair| KeyValuePair { regex_value_rewrite: Some(rewrite), ..pair });
        for (wire, expected) in [
            (header(), "needs on_header_present or on_header_missing"),
            (Rule { on_header_present: pair(""), ..Default::default() }, "needs one of header, cookie"),
            (Rule { header: "h".into(), ..cookie() }, "cookie: must not be set together with header"),
            (Rule { remove: true, ..cookie() }, "remove: must not be set for a cookie"),
            (Rule { on_header_missing: pair(""), ..header() }, "on_header_missing.value: must not be empty"),
            (
                Rule { on_header_present: both, ..header() },
                "on_header_present.regex_value_rewrite: must not be set together with value",
            ),
            (
                Rule { on_header_present: Some(KeyValuePair::default()), ..header() },
                "on_header_present.key: must not be empty",
            ),
        ] {
            assert_eq!(read(wire).unwrap_err(), format!("listener \"l\": {expected}"));
        }
    }

    #[test]
    fn a_route_must_have_a_rule() {
        let read =
            |of_route| HeaderToMetadata::parse(&FieldPath::resource("listener", "l"), pb::Config::default(), of_route);
        assert!(read(false).is_ok());
        assert!(read(true).is_err());
    }
}
