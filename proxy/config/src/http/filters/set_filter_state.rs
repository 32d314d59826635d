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
    /// What its text must be.
    pub kind: FilterStateKind,
    /// How far it goes with connections to upstreams.
    pub sharing: FilterStateSharing,
}

/// What an object of the filter state holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FilterStateKind {
    /// Any text.
    Text,
    /// Any text, by which connections to upstreams are told apart where it is shared with them.
    HashableText,
    /// An IP address with a port, likewise; nothing is set for other texts.
    Address,
}

/// How far an object goes with connections to upstreams. Source: `FilterStateValue.SharedWithUpstream`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum FilterStateSharing {
    /// It stays here.
    #[default]
    None,
    /// Listeners of this process to which such a connection leads see it.
    Once,
    /// These and all that follow see it.
    Transitive,
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
        implemented: factory_key, skip_if_empty, key, value, shared_with_upstream;
        no_effect: read_only = "nothing reads it in the API either";
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
    let Some((_, kind)) = FACTORIES.iter().find(|(name, _)| *name == factory.as_str()) else {
        let known = FACTORIES.map(|(name, _)| name).join(", ");
        return Err(factory_at.reject(format!("objects of {factory:?} are not supported, expected one of {known}")));
    };
    use common::filter_state_value::SharedWithUpstream;
    let sharing = match SharedWithUpstream::try_from(shared_with_upstream) {
        Ok(SharedWithUpstream::None) => FilterStateSharing::None,
        Ok(SharedWithUpstream::Once) => FilterStateSharing::Once,
        Ok(SharedWithUpstream::Transitive) => FilterStateSharing::Transitive,
        Err(_) => return Err(wire::unknown_enum(&at.field("shared_with_upstream"), shared_with_upstream)),
    };
    let value_at = at.field("format_string");
    let (value, omit_empty_values) = match value {
        Some(Value::FormatString(wire)) => format_string(context, &value_at, wire)?,
        None => return Err(value_at.reject("is required")),
    };
    Ok(FilterStateEntry { key: key.into(), value, omit_empty_values, skip_if_empty, kind: *kind, sharing })
}

/// Reads a format of text, and whether what is absent is written as nothing.
pub(crate) fn format_string(
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
const FACTORIES: [(&str, FilterStateKind); 7] = [
    ("envoy.string", FilterStateKind::Text),
    ("envoy.hashable_string", FilterStateKind::HashableText),
    ("istio.hashable_string", FilterStateKind::HashableText),
    ("envoy.tcp_proxy.cluster", FilterStateKind::Text),
    ("envoy.filters.listener.original_dst.local_ip", FilterStateKind::Address),
    ("envoy.filters.listener.original_dst.remote_ip", FilterStateKind::Address),
    ("envoy.network.transport_socket.original_dst_address", FilterStateKind::Address),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::NoEnvironment;

    fn read(key: &str, factory: &str, text: &str) -> Result<FilterStateEntry, String> {
        read_shared(key, factory, text, common::filter_state_value::SharedWithUpstream::None as i32)
    }

    fn read_shared(key: &str, factory: &str, text: &str, shared: i32) -> Result<FilterStateEntry, String> {
        use self::core::substitution_format_string::Format as Wire;
        use common::filter_state_value::{Key, Value};
        let format =
            core::SubstitutionFormatString { format: Some(Wire::TextFormat(text.into())), ..Default::default() };
        let wire = common::FilterStateValue {
            key: Some(Key::ObjectKey(key.into())),
            factory_key: factory.into(),
            value: Some(Value::FormatString(format)),
            shared_with_upstream: shared,
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

    #[test]
    fn objects_may_go_with_connections_to_upstreams() {
        let sharing = |shared| read_shared("k", "envoy.string", "v", shared).map(|entry| entry.sharing);
        assert_eq!(sharing(0), Ok(FilterStateSharing::None));
        assert_eq!(sharing(1), Ok(FilterStateSharing::Once));
        assert_eq!(sharing(2), Ok(FilterStateSharing::Transitive));
        assert_eq!(sharing(3), Err("listener \"l\": shared_with_upstream: 3 is not a known value".to_owned()));
        let kind = |factory| read("k", factory, "v").unwrap().kind;
        assert_eq!(kind("istio.hashable_string"), FilterStateKind::HashableText);
        assert_eq!(kind("envoy.filters.listener.original_dst.local_ip"), FilterStateKind::Address);
    }
}
