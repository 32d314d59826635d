//! Setting objects of the filter state (`envoy.extensions.filters.http.set_filter_state.v3`).
//!
//! Owns which objects are set. Never sets one.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::common::set_filter_state::v3 as common;
use outrigger_api::pb::envoy::extensions::filters::http::set_filter_state::v3 as pb;

use crate::context::Context;
use crate::decide::decide;
use crate::format::Format;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Source: `envoy.extensions.filters.http.set_filter_state.v3.Config`.
#[derive(Clone, Debug, PartialEq)]
pub struct SetFilterState {
    /// Set for each request, in order.
    pub on_request: Vec<FilterStateEntry>,
    /// The route is looked for again afterwards.
    pub clear_route_cache: bool,
}

/// One object. Source: `FilterStateValue`.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterStateEntry {
    /// Its name; not empty.
    pub key: Arc<str>,
    /// Its text.
    pub value: Format,
    /// What is absent is written as nothing instead of as `-`.
    pub omit_empty_values: bool,
    /// Nothing is set if the text is empty.
    pub skip_if_empty: bool,
}

impl SetFilterState {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::Config) -> Parsed<Self> {
        decide!(wire, at, pb::Config as "envoy.extensions.filters.http.set_filter_state.v3.Config" {
            implemented: on_request_headers, clear_route_cache;
            no_effect: ;
            unsupported: ;
        });
        let entry = |at: &FieldPath<'_>, wire| filter_state_entry(context, at, wire);
        let on_request = wire::each(&at.field("on_request_headers"), on_request_headers, entry)?;
        Ok(Self { on_request, clear_route_cache })
    }
}

/// Reads one object.
pub(crate) fn filter_state_entry(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: common::FilterStateValue,
) -> Parsed<FilterStateEntry> {
    use common::filter_state_value::{Key, Value};
    decide!(wire, at, common::FilterStateValue as "envoy.extensions.filters.common.set_filter_state.v3.FilterStateValue" {
        implemented: factory_key, skip_if_empty, key, value;
        no_effect: read_only = "nothing reads it in the API either",
            shared_with_upstream = "there are no internal upstream connections";
        unsupported: ;
    });
    let key_at = at.field("object_key");
    let key = match key {
        Some(Key::ObjectKey(key)) if !key.is_empty() => key,
        Some(Key::ObjectKey(_)) => return Err(key_at.reject("must not be empty")),
        None => return Err(key_at.reject("is required")),
    };
    let (factory, factory_at) =
        if factory_key.is_empty() { (&key, key_at) } else { (&factory_key, at.field("factory_key")) };
    if !FACTORIES.contains(&factory.as_str()) {
        let known = FACTORIES.join(", ");
        return Err(factory_at.reject(format!("objects of {factory:?} are not supported, expected one of {known}")));
    }
    let value_at = at.field("format_string");
    let (value, omit_empty_values) = match value {
        Some(Value::FormatString(wire)) => format_string(context, &value_at, wire)?,
        None => return Err(value_at.reject("is required")),
    };
    Ok(FilterStateEntry { key: key.into(), value, omit_empty_values, skip_if_empty })
}

fn format_string(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: core::SubstitutionFormatString,
) -> Parsed<(Format, bool)> {
    decide!(wire, at, core::SubstitutionFormatString as "envoy.config.core.v3.SubstitutionFormatString" {
        implemented: format, omit_empty_values;
        no_effect: content_type = "there is no body that it could describe",
            json_format_options = "only text is accepted here";
        unsupported: formatters;
    });
    use core::substitution_format_string::Format as Wire;
    let environment = context.environment();
    let text = match format {
        Some(Wire::TextFormat(text)) => Format::parse_with_environment(environment, &at.field("text_format"), &text),
        Some(Wire::TextFormatSource(source)) => {
            let at = at.field("text_format_source");
            let text = String::from_utf8(wire::data_source(context, &at, source)?.bytes)
                .map_err(|_| at.reject("is not valid UTF-8"))?;
            Format::parse_with_environment(environment, &at, &text)
        }
        Some(Wire::JsonFormat(_)) => Err(at.field("json_format").unsupported()),
        None => Err(at.reject("needs one of text_format, text_format_source")),
    };
    Ok((text?, omit_empty_values))
}

/// Factories of objects that are a text and steer nothing but what reads them by name.
const FACTORIES: [&str; 4] =
    ["envoy.string", "envoy.hashable_string", "istio.hashable_string", "envoy.tcp_proxy.cluster"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::NoEnvironment;

    fn read(key: &str, factory: &str, text: &str) -> Result<FilterStateEntry, String> {
        use self::core::substitution_format_string::Format as Wire;
        use common::filter_state_value::{Key, Value};
        let format =
            core::SubstitutionFormatString { format: Some(Wire::TextFormat(text.into())), ..Default::default() };
        let wire = common::FilterStateValue {
            key: Some(Key::ObjectKey(key.into())),
            factory_key: factory.into(),
            value: Some(Value::FormatString(format)),
            ..Default::default()
        };
        filter_state_entry(&Context::new(&NoEnvironment), &FieldPath::resource("listener", "l"), wire)
            .map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn objects_are_texts() {
        assert_eq!(&*read("k", "envoy.string", "v").unwrap().key, "k");
        assert!(read("envoy.tcp_proxy.cluster", "", "v").is_ok());
        let refused = read("k", "", "v").unwrap_err();
        assert!(refused.starts_with("listener \"l\": object_key: objects of \"k\" are not supported"), "{refused}");
        let refused = read("k", "envoy.network.upstream_server_name", "v").unwrap_err();
        assert!(refused.starts_with("listener \"l\": factory_key: objects of"), "{refused}");
        assert_eq!(read("", "envoy.string", "v").unwrap_err(), "listener \"l\": object_key: must not be empty");
    }
}
