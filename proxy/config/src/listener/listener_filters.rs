//! Reads listener filters, configured in place or discovered, and the conditions under which they do not run.
//!
//! Owns how they are checked. Never reads from connections.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::listener::v3 as pb;
use outrigger_api::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate as predicate_parts;
use outrigger_api::pb::envoy::extensions::filters::listener::{
    http_inspector::v3 as http_inspector, original_dst::v3 as original_dst, proxy_protocol::v3 as proxy_protocol,
    tls_inspector::v3 as tls_inspector,
};
use outrigger_api::pb::envoy::r#type::v3::Int32Range;
use outrigger_api::pb::google::protobuf::Any;

use super::{ListenerFilter, ListenerFilterKind, ListenerFilterPredicate, ProxyProtocol, TlsInspector, TlvRule};
use crate::context::Context;
use crate::decide::decide;
use crate::extension::{DiscoveredFilter, Kind, message_name};
use crate::rejection::{FieldPath, Parsed};
use crate::tls::tlv_filter;
use crate::wire;

impl ListenerFilter {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::ListenerFilter) -> Parsed<Self> {
        decide!(wire, at, pb::ListenerFilter as "envoy.config.listener.v3.ListenerFilter" {
            implemented: name, config_type, filter_disabled;
            no_effect: ;
            unsupported: ;
        });
        if name.is_empty() {
            return Err(at.field("name").reject("must not be empty"));
        }
        let name: Arc<str> = name.into();
        let config = at.field("typed_config");
        let kind = match config_type {
            Some(pb::listener_filter::ConfigType::TypedConfig(any)) => {
                let any = wire::extension(context, &config, any)?;
                ListenerFilterKind::parse(&config, &any)?
            }
            Some(pb::listener_filter::ConfigType::ConfigDiscovery(wire)) => {
                let field = at.field("config_discovery");
                let discovered = DiscoveredFilter::parse(context, &field, Arc::clone(&name), wire, &DISCOVERED)?;
                ListenerFilterKind::Discovered(Arc::new(discovered))
            }
            None => return Err(config.reject("is required")),
        };
        let disabled = match filter_disabled {
            Some(wire) => Some(predicate(&at.field("filter_disabled"), wire)?),
            None => None,
        };
        Ok(Self { name, kind, disabled })
    }

    /// What `use_proxy_proto` of a filter chain implies.
    pub(super) fn proxy_protocol() -> Parsed<Self> {
        let at = FieldPath::resource("listener filter", "envoy.filters.listener.proxy_protocol");
        Ok(Self {
            name: "envoy.filters.listener.proxy_protocol".into(),
            kind: ListenerFilterKind::ProxyProtocol(proxy_protocol(&at, proxy_protocol::ProxyProtocol::default())?),
            disabled: None,
        })
    }

    /// What `use_original_dst` of a listener implies.
    pub(super) fn original_dst() -> Self {
        Self {
            name: "envoy.filters.listener.original_dst".into(),
            kind: ListenerFilterKind::OriginalDst,
            disabled: None,
        }
    }
}

impl ListenerFilterKind {
    /// Whether a message of this name is one of the listener filters.
    pub(crate) fn exists(type_name: &str) -> bool {
        [ORIGINAL_DST, TLS_INSPECTOR, HTTP_INSPECTOR, PROXY_PROTOCOL].contains(&type_name)
    }

    pub(crate) fn parse(at: &FieldPath<'_>, wire: &Any) -> Parsed<Self> {
        Ok(match wire::type_name(wire) {
            ORIGINAL_DST => {
                let original_dst::OriginalDst {} = wire::decode(at, wire)?;
                Self::OriginalDst
            }
            TLS_INSPECTOR => tls_inspector(at, wire::decode(at, wire)?)?,
            HTTP_INSPECTOR => {
                let http_inspector::HttpInspector {} = wire::decode(at, wire)?;
                Self::HttpInspector
            }
            PROXY_PROTOCOL => Self::ProxyProtocol(proxy_protocol(at, wire::decode(at, wire)?)?),
            _ => return Err(at.reject(format!("the listener filter {:?} is not supported", wire.type_url))),
        })
    }
}

/// Discovered listener filters.
const DISCOVERED: Kind<ListenerFilterKind> = Kind {
    check_types: |_, at, type_urls| match type_urls
        .iter()
        .position(|url| !ListenerFilterKind::exists(message_name(url)))
    {
        Some(index) => {
            let reason = format!("the listener filter {:?} is not supported", type_urls[index]);
            Err(at.item(index).reject(reason))
        }
        None => Ok(()),
    },
    read: |_, at, any| ListenerFilterKind::parse(at, &any),
};

const ORIGINAL_DST: &str = "envoy.extensions.filters.listener.original_dst.v3.OriginalDst";
const TLS_INSPECTOR: &str = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
const HTTP_INSPECTOR: &str = "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";
const PROXY_PROTOCOL: &str = "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";

fn tls_inspector(at: &FieldPath<'_>, wire: tls_inspector::TlsInspector) -> Parsed<ListenerFilterKind> {
    wire::number_within(&at.field("initial_read_buffer_size"), wire.initial_read_buffer_size, 256..=65_536)?;
    decide!(wire, at, tls_inspector::TlsInspector as "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" {
        implemented: max_client_hello_size, enable_ja3_fingerprinting, enable_ja4_fingerprinting,
            close_connection_on_client_hello_parsing_errors;
        no_effect: initial_read_buffer_size = "the first read has a size of its own";
        unsupported: ;
    });
    let size = at.field("max_client_hello_size");
    let size = wire::number_within(&size, max_client_hello_size, 256..=MAX_CLIENT_HELLO_BYTES)?;
    Ok(ListenerFilterKind::TlsInspector(TlsInspector {
        max_client_hello_bytes: size.unwrap_or(MAX_CLIENT_HELLO_BYTES),
        ja3: enable_ja3_fingerprinting.is_some_and(|flag| flag.value),
        ja4: enable_ja4_fingerprinting.is_some_and(|flag| flag.value),
        close_on_errors: close_connection_on_client_hello_parsing_errors,
    }))
}

fn proxy_protocol(at: &FieldPath<'_>, wire: proxy_protocol::ProxyProtocol) -> Parsed<ProxyProtocol> {
    decide!(wire, at, proxy_protocol::ProxyProtocol as "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" {
        implemented: allow_requests_without_proxy_protocol, disallowed_versions, pass_through_tlvs, rules, tlv_location;
        no_effect: stat_prefix = "the filter has no counters of its own";
        unsupported: ;
    });
    let rules = wire::each(&at.field("rules"), rules, tlv_rule)?;
    use proxy_protocol::proxy_protocol::TlvLocation;
    match TlvLocation::try_from(tlv_location) {
        Ok(TlvLocation::FilterState) if !rules.is_empty() => return Err(at.field("tlv_location").unsupported()),
        Ok(TlvLocation::DynamicMetadata | TlvLocation::FilterState) => {}
        Err(_) => return Err(wire::unknown_enum(&at.field("tlv_location"), tlv_location)),
    }
    use core::proxy_protocol_config::Version;
    let list = at.field("disallowed_versions");
    let (mut allow_v1, mut allow_v2) = (true, true);
    for (index, version) in disallowed_versions.into_iter().enumerate() {
        match Version::try_from(version) {
            Ok(Version::V1) => allow_v1 = false,
            Ok(Version::V2) => allow_v2 = false,
            Err(_) => return Err(wire::unknown_enum(&list.item(index), version)),
        }
    }
    if !allow_v1 && !allow_v2 {
        return Err(list.reject("all versions are disallowed"));
    }
    let keep = pass_through_tlvs.map(|wire| tlv_filter(&at.field("pass_through_tlvs"), wire)).transpose()?;
    Ok(ProxyProtocol {
        allow_without_header: allow_requests_without_proxy_protocol,
        allow_v1,
        allow_v2,
        keep: keep.unwrap_or_default(),
        rules,
    })
}

fn tlv_rule(at: &FieldPath<'_>, wire: proxy_protocol::proxy_protocol::Rule) -> Parsed<TlvRule> {
    use proxy_protocol::proxy_protocol::key_value_pair::ValueStringEncoding as Encoding;
    use proxy_protocol::proxy_protocol::{KeyValuePair, Rule};
    decide!(wire, at, Rule as "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol.Rule" {
        implemented: tlv_type, on_tlv_present;
        no_effect: ;
        unsupported: ;
    });
    let Ok(kind) = u8::try_from(tlv_type) else {
        return Err(at.field("tlv_type").reject(format!("{tlv_type} is not within 0 to 255")));
    };
    let at = at.field("on_tlv_present");
    let Some(pair) = on_tlv_present else { return Err(at.reject("is required")) };
    decide!(pair, at, KeyValuePair as "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol.KeyValuePair" {
        implemented: metadata_namespace, key, value_string_encoding;
        no_effect: ;
        unsupported: ;
    });
    if key.is_empty() {
        return Err(at.field("key").reject("must not be empty"));
    }
    let base64 = match Encoding::try_from(value_string_encoding) {
        Ok(Encoding::Base64) => true,
        Ok(Encoding::Unspecified | Encoding::SanitizedUtf8) => false,
        Err(_) => return Err(wire::unknown_enum(&at.field("value_string_encoding"), value_string_encoding)),
    };
    let namespace = if metadata_namespace.is_empty() { TLV_NAMESPACE.into() } else { metadata_namespace.into() };
    Ok(TlvRule { kind, namespace, key: key.into(), base64 })
}

/// Where TLVs are found unless a rule says otherwise.
const TLV_NAMESPACE: &str = "envoy.filters.listener.proxy_protocol";

fn predicate(at: &FieldPath<'_>, wire: pb::ListenerFilterChainMatchPredicate) -> Parsed<ListenerFilterPredicate> {
    let pb::ListenerFilterChainMatchPredicate { rule } = wire;
    use predicate_parts::Rule;
    Ok(match rule {
        Some(Rule::OrMatch(set)) => ListenerFilterPredicate::Or(predicates(&at.field("or_match").field("rules"), set)?),
        Some(Rule::AndMatch(set)) => {
            ListenerFilterPredicate::And(predicates(&at.field("and_match").field("rules"), set)?)
        }
        Some(Rule::NotMatch(rule)) => ListenerFilterPredicate::Not(Box::new(predicate(&at.field("not_match"), *rule)?)),
        Some(Rule::AnyMatch(true)) => ListenerFilterPredicate::Any,
        Some(Rule::AnyMatch(false)) => return Err(at.field("any_match").reject("must be true")),
        Some(Rule::DestinationPortRange(range)) => port_range(range),
        None => return Err(at.reject("needs a rule")),
    })
}

fn predicates(at: &FieldPath<'_>, wire: predicate_parts::MatchSet) -> Parsed<Vec<ListenerFilterPredicate>> {
    let predicate_parts::MatchSet { rules } = wire;
    if rules.len() < 2 {
        return Err(at.reject(format!("has {} entries, expected at least 2", rules.len())));
    }
    wire::each(at, rules, predicate)
}

/// Ports outside 0 to 65535 do not exist, so a range reaching beyond is the same as one that does not.
fn port_range(wire: Int32Range) -> ListenerFilterPredicate {
    let Int32Range { start, end } = wire;
    match u16::try_from(start.max(0)) {
        Ok(start) => ListenerFilterPredicate::DestinationPort { start, end: u32::try_from(end).unwrap_or(0) },
        Err(_) => ListenerFilterPredicate::DestinationPort { start: 0, end: 0 },
    }
}

/// Source: `TlsInspector.max_client_hello_size`, both the default and the limit.
const MAX_CLIENT_HELLO_BYTES: u32 = 16_384;
