//! Rate limit descriptors (`envoy.config.route.v3.RateLimit`): what requests are counted by.
//!
//! Owns which entries a descriptor is made of. Never makes one (see `outrigger-policy`), and never limits anything.

use std::sync::Arc;

use ipnet::IpNet;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::route::v3 as pb;
use outrigger_api::pb::envoy::config::route::v3::rate_limit::action as actions;
use outrigger_api::pb::envoy::config::route::v3::rate_limit::{HitsAddend as WireHits, XRateLimitOption};
use outrigger_api::pb::envoy::r#type::matcher::v3::AddressMatcher;
use outrigger_api::pb::envoy::r#type::metadata::v3 as metadata;
use outrigger_api::pb::envoy::r#type::v3::RateLimitUnit;
use outrigger_api::pb::google::protobuf::BoolValue;
use outrigger_api::pb::xds::core::v3::CidrRange;

use crate::address_parse::cidr;
use crate::decide::decide;
use crate::format::{Format, FormatPart};
use crate::http::header_mutations::header_name;
use crate::matching::namespace_path;
use crate::rbac::MetadataSource;
use crate::rejection::{FieldPath, Parsed};
use crate::route::{HeaderMatcher, QueryParameterMatcher, header_matcher, query_parameter_matcher};
use crate::wire;

/// One descriptor that requests are counted by. Source: `envoy.config.route.v3.RateLimit`.
#[derive(Clone, Debug)]
pub struct RateLimit {
    /// Filters of the same stage use it; 0 to 10.
    pub stage: u8,
    /// Names a runtime key that disables it; empty if there is none.
    pub disable_key: Box<str>,
    /// Each gives one entry, in this order. All must, or there is no descriptor.
    pub actions: Box<[DescriptorAction]>,
    /// How much a request counts; 1 unless given.
    pub hits: Option<Hits>,
    /// Counts when a request is over, and never limits it.
    pub on_stream_done: bool,
    /// Whether answers tell of this limit; what the filter says unless given.
    pub tells_clients: Option<bool>,
    /// A limit that a rate limit service is told instead of its own.
    pub limit: Option<Box<LimitOverride>>,
}

/// A limit that stands in the place of the service's own. Source: `RateLimit.Override`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LimitOverride {
    /// Always the same; `unit` is a number of `envoy.type.v3.RateLimitUnit`.
    Fixed { requests: u32, unit: i32 },
    /// A value of dynamic metadata with `requests_per_unit` and `unit`, found under these keys.
    Metadata { namespace: Arc<str>, path: Vec<Box<str>> },
}

/// How much a request counts. Source: `RateLimit.HitsAddend`.
#[derive(Clone, Debug, PartialEq)]
pub struct Hits {
    /// How many.
    pub number: HitsNumber,
    /// They are given back instead of taken.
    pub negative: bool,
}

/// Where the number of hits comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum HitsNumber {
    /// Always the same; up to [`Hits::MAX`].
    Fixed(u64),
    /// From one command operator; what is not a number up to [`Hits::MAX`] leaves the descriptor out.
    Format(Format),
}

impl Hits {
    /// The most that one request may count.
    pub const MAX: u64 = 1_000_000_000;
}

/// Makes one entry of a descriptor. Source: `RateLimit.Action`.
#[derive(Clone, Debug)]
pub enum DescriptorAction {
    /// `source_cluster`: the cluster that the proxy's node belongs to.
    SourceCluster,
    /// `destination_cluster`: the cluster that the request is routed to.
    DestinationCluster,
    /// A request header.
    RequestHeader { name: Arc<str>, key: Box<str>, skip_if_absent: bool },
    /// A query parameter, with its escapes undone.
    QueryParameter { name: Box<str>, key: Box<str>, skip_if_absent: bool },
    /// `remote_address`: the trusted address of the client.
    RemoteAddress,
    /// `masked_remote_address`: the network of the client, with so many bits.
    MaskedRemoteAddress { ipv4_bits: u8, ipv6_bits: u8 },
    /// Always the same.
    GenericKey { key: Box<str>, value: Box<str> },
    /// There if the headers match, or if they do not.
    HeaderValueMatch { key: Box<str>, value: Box<str>, expect_match: bool, headers: Box<[HeaderMatcher]> },
    /// There if the query parameters match, or if they do not.
    QueryParameterMatch { key: Box<str>, value: Box<str>, expect_match: bool, parameters: Box<[QueryParameterMatcher]> },
    /// Text of the metadata; the default if it is absent or empty.
    Metadata(Box<MetadataAction>),
    /// There if the client's address lies within the networks, or outside of all of them.
    RemoteAddressMatch(Box<AddressAction>),
}

/// Source: `RateLimit.Action.MetaData`.
#[derive(Clone, Debug, PartialEq)]
pub struct MetadataAction {
    /// Key of the entry.
    pub key: Box<str>,
    /// Which metadata.
    pub source: MetadataSource,
    /// The namespace.
    pub namespace: Arc<str>,
    /// Keys that lead to the value.
    pub path: Vec<Box<str>>,
    /// For what is not there; none if empty.
    pub default: Box<str>,
    /// Leaves out the entry instead of the descriptor.
    pub skip_if_absent: bool,
}

/// Source: `RateLimit.Action.RemoteAddressMatch`.
#[derive(Clone, Debug, PartialEq)]
pub struct AddressAction {
    /// Key of the entry.
    pub key: Box<str>,
    /// Its value.
    pub value: Format,
    /// Instead of an empty value; none if empty.
    pub default: Box<str>,
    /// Networks.
    pub ranges: Vec<IpNet>,
    /// Outside of them.
    pub invert: bool,
}

/// Where a list of rate limits stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RateLimitPlace {
    /// In a route or a virtual host. Overrides of limits and hits are for the global rate limit service there.
    Route,
    /// In the local rate limit filter, which has no stages there and makes no use of overrides.
    LocalFilter,
    /// In the global rate limit filter, or what routes say of it; likewise.
    GlobalFilter,
}

/// Reads a list of rate limits.
pub(crate) fn rate_limits(
    at: &FieldPath<'_>,
    wire: Vec<pb::RateLimit>,
    place: RateLimitPlace,
) -> Parsed<Box<[RateLimit]>> {
    wire::each(at, wire, |at, wire| rate_limit(at, wire, place)).map(Into::into)
}

fn rate_limit(at: &FieldPath<'_>, wire: pb::RateLimit, place: RateLimitPlace) -> Parsed<RateLimit> {
    decide!(wire, at, pb::RateLimit as "envoy.config.route.v3.RateLimit" {
        implemented: stage, disable_key, actions, limit, hits_addend, apply_on_stream_done, x_ratelimit_option;
        no_effect: ;
        unsupported: ;
    });
    if place != RateLimitPlace::Route {
        let filter = if place == RateLimitPlace::LocalFilter { "local" } else { "global" };
        for (field, set) in
            [("stage", stage.is_some()), ("disable_key", !disable_key.is_empty()), ("limit", limit.is_some())]
        {
            if set {
                return Err(at.field(field).reject(format!("must not be set in the {filter} rate limit filter")));
            }
        }
    }
    let actions_at = at.field("actions");
    if actions.is_empty() {
        return Err(actions_at.reject("must not be empty"));
    }
    let stage = wire::number_within(&at.field("stage"), stage, 0..=10)?.unwrap_or(0);
    let hits = hits_addend.map(|wire| hits(&at.field("hits_addend"), wire)).transpose()?;
    Ok(RateLimit {
        stage: u8::try_from(stage).unwrap_or(u8::MAX),
        disable_key: disable_key.into(),
        actions: wire::each(&actions_at, actions, action)?.into(),
        hits: hits.filter(|_| place != RateLimitPlace::Route),
        on_stream_done: apply_on_stream_done,
        tells_clients: match XRateLimitOption::try_from(x_ratelimit_option) {
            Ok(XRateLimitOption::Unspecified) => None,
            Ok(XRateLimitOption::Off) => Some(false),
            Ok(XRateLimitOption::DraftVersion03) => Some(true),
            Err(_) => return Err(wire::unknown_enum(&at.field("x_ratelimit_option"), x_ratelimit_option)),
        },
        limit: limit.map(|wire| limit_override(&at.field("limit"), wire).map(Box::new)).transpose()?,
    })
}

fn limit_override(at: &FieldPath<'_>, wire: pb::rate_limit::Override) -> Parsed<LimitOverride> {
    use pb::rate_limit::r#override::{DynamicMetadata, OverrideSpecifier, RateLimitOverride};
    let pb::rate_limit::Override { override_specifier } = wire;
    match override_specifier {
        Some(OverrideSpecifier::DynamicMetadata(DynamicMetadata { metadata_key })) => {
            let (namespace, path) = metadata_path(&at.field("dynamic_metadata").field("metadata_key"), metadata_key)?;
            Ok(LimitOverride::Metadata { namespace, path })
        }
        Some(OverrideSpecifier::RateLimit(RateLimitOverride { requests_per_unit: requests, unit })) => {
            if RateLimitUnit::try_from(unit).is_err() {
                return Err(wire::unknown_enum(&at.field("rate_limit").field("unit"), unit));
            }
            Ok(LimitOverride::Fixed { requests, unit })
        }
        None => Err(at.reject("needs one of dynamic_metadata, rate_limit")),
    }
}

fn hits(at: &FieldPath<'_>, wire: WireHits) -> Parsed<Hits> {
    decide!(wire, at, WireHits as "envoy.config.route.v3.RateLimit.HitsAddend" {
        implemented: number, format, is_negative_hits;
        no_effect: ;
        unsupported: ;
    });
    let format_at = at.field("format");
    let number = match number {
        Some(_) if !format.is_empty() => return Err(format_at.reject("must not be set together with number")),
        Some(number) if number.value > Hits::MAX => {
            return Err(at.field("number").reject(format!("{} is above {}", number.value, Hits::MAX)));
        }
        Some(number) => HitsNumber::Fixed(number.value),
        None if format.is_empty() => return Err(at.reject("needs one of number, format")),
        None => {
            let parsed = Format::parse(&format_at, &format)?;
            let [FormatPart::Operator { .. }] = parsed.parts.as_slice() else {
                return Err(format_at.reject(format!("{format:?} must be one command operator")));
            };
            HitsNumber::Format(parsed)
        }
    };
    Ok(Hits { number, negative: is_negative_hits })
}

fn action(at: &FieldPath<'_>, wire: pb::rate_limit::Action) -> Parsed<DescriptorAction> {
    use actions::ActionSpecifier as Wire;
    let pb::rate_limit::Action { action_specifier } = wire;
    Ok(match action_specifier {
        Some(Wire::SourceCluster(actions::SourceCluster {})) => DescriptorAction::SourceCluster,
        Some(Wire::DestinationCluster(actions::DestinationCluster {})) => DescriptorAction::DestinationCluster,
        Some(Wire::RemoteAddress(actions::RemoteAddress {})) => DescriptorAction::RemoteAddress,
        Some(Wire::RequestHeaders(wire)) => request_header(&at.field("request_headers"), wire)?,
        Some(Wire::QueryParameters(wire)) => query_parameter(&at.field("query_parameters"), wire)?,
        Some(Wire::MaskedRemoteAddress(wire)) => masked(&at.field("masked_remote_address"), wire)?,
        Some(Wire::GenericKey(wire)) => generic_key(&at.field("generic_key"), wire)?,
        Some(Wire::HeaderValueMatch(wire)) => header_value_match(&at.field("header_value_match"), wire)?,
        Some(Wire::QueryParameterValueMatch(wire)) => {
            query_parameter_match(&at.field("query_parameter_value_match"), wire)?
        }
        Some(Wire::Metadata(wire)) => metadata_action(&at.field("metadata"), wire)?,
        Some(Wire::RemoteAddressMatch(wire)) => address_match(&at.field("remote_address_match"), wire)?,
        Some(Wire::Extension(core::TypedExtensionConfig { typed_config, .. })) => {
            let type_url = typed_config.map(|config| config.type_url).unwrap_or_default();
            return Err(at.field("extension").reject(format!("{type_url:?} is not supported")));
        }
        // Deprecated, and refused by Envoy too.
        Some(_) => return Err(at.field("dynamic_metadata").reject("is not supported, expected metadata")),
        None => return Err(at.reject("needs one of the actions")),
    })
}

fn required(at: &FieldPath<'_>, text: String) -> Parsed<Box<str>> {
    if text.is_empty() { Err(at.reject("must not be empty")) } else { Ok(text.into()) }
}

fn or_default(key: String, default: &str) -> Box<str> {
    if key.is_empty() { default.into() } else { key.into() }
}

fn expects(flag: Option<BoolValue>) -> bool {
    flag.is_none_or(|flag| flag.value)
}

fn request_header(at: &FieldPath<'_>, wire: actions::RequestHeaders) -> Parsed<DescriptorAction> {
    let actions::RequestHeaders { header_name: name, descriptor_key, skip_if_absent } = wire;
    Ok(DescriptorAction::RequestHeader {
        name: header_name(&at.field("header_name"), &name)?,
        key: required(&at.field("descriptor_key"), descriptor_key)?,
        skip_if_absent,
    })
}

fn query_parameter(at: &FieldPath<'_>, wire: actions::QueryParameters) -> Parsed<DescriptorAction> {
    let actions::QueryParameters { query_parameter_name, descriptor_key, skip_if_absent } = wire;
    Ok(DescriptorAction::QueryParameter {
        name: required(&at.field("query_parameter_name"), query_parameter_name)?,
        key: required(&at.field("descriptor_key"), descriptor_key)?,
        skip_if_absent,
    })
}

fn masked(at: &FieldPath<'_>, wire: actions::MaskedRemoteAddress) -> Parsed<DescriptorAction> {
    let actions::MaskedRemoteAddress { v4_prefix_mask_len, v6_prefix_mask_len } = wire;
    let bits = |field, wire, most: u8| {
        let bits = wire::number_within(&at.field(field), wire, 0..=u32::from(most))?;
        Ok(bits.and_then(|bits| u8::try_from(bits).ok()).unwrap_or(most))
    };
    Ok(DescriptorAction::MaskedRemoteAddress {
        ipv4_bits: bits("v4_prefix_mask_len", v4_prefix_mask_len, 32)?,
        ipv6_bits: bits("v6_prefix_mask_len", v6_prefix_mask_len, 128)?,
    })
}

fn generic_key(at: &FieldPath<'_>, wire: actions::GenericKey) -> Parsed<DescriptorAction> {
    decide!(wire, at, actions::GenericKey as "envoy.config.route.v3.RateLimit.Action.GenericKey" {
        implemented: descriptor_value, descriptor_key;
        no_effect: default_value = "the value is literal text, as in Envoy by default";
        unsupported: ;
    });
    Ok(DescriptorAction::GenericKey {
        key: or_default(descriptor_key, "generic_key"),
        value: required(&at.field("descriptor_value"), descriptor_value)?,
    })
}

fn header_value_match(at: &FieldPath<'_>, wire: actions::HeaderValueMatch) -> Parsed<DescriptorAction> {
    decide!(wire, at, actions::HeaderValueMatch as "envoy.config.route.v3.RateLimit.Action.HeaderValueMatch" {
        implemented: descriptor_value, descriptor_key, expect_match, headers;
        no_effect: default_value = "the value is literal text, as in Envoy by default";
        unsupported: ;
    });
    let headers_at = at.field("headers");
    if headers.is_empty() {
        return Err(headers_at.reject("must not be empty"));
    }
    Ok(DescriptorAction::HeaderValueMatch {
        key: or_default(descriptor_key, "header_match"),
        value: required(&at.field("descriptor_value"), descriptor_value)?,
        expect_match: expects(expect_match),
        headers: wire::each(&headers_at, headers, header_matcher)?.into(),
    })
}

fn query_parameter_match(at: &FieldPath<'_>, wire: actions::QueryParameterValueMatch) -> Parsed<DescriptorAction> {
    decide!(wire, at, actions::QueryParameterValueMatch
        as "envoy.config.route.v3.RateLimit.Action.QueryParameterValueMatch" {
        implemented: descriptor_value, descriptor_key, expect_match, query_parameters;
        no_effect: default_value = "the value is literal text, as in Envoy by default";
        unsupported: ;
    });
    let parameters_at = at.field("query_parameters");
    if query_parameters.is_empty() {
        return Err(parameters_at.reject("must not be empty"));
    }
    Ok(DescriptorAction::QueryParameterMatch {
        key: or_default(descriptor_key, "query_match"),
        value: required(&at.field("descriptor_value"), descriptor_value)?,
        expect_match: expects(expect_match),
        parameters: wire::each(&parameters_at, query_parameters, query_parameter_matcher)?.into(),
    })
}

fn metadata_action(at: &FieldPath<'_>, wire: actions::MetaData) -> Parsed<DescriptorAction> {
    decide!(wire, at, actions::MetaData as "envoy.config.route.v3.RateLimit.Action.MetaData" {
        implemented: descriptor_key, metadata_key, default_value, source, skip_if_absent;
        no_effect: ;
        unsupported: ;
    });
    let source_at = at.field("source");
    use actions::meta_data::Source;
    let source = match Source::try_from(source) {
        Ok(Source::Dynamic) => MetadataSource::Dynamic,
        Ok(Source::RouteEntry) => MetadataSource::Route,
        Ok(Source::ClusterEntry | Source::ClusterLocalityEntry) => {
            return Err(source_at.reject("metadata of clusters is not supported, expected DYNAMIC or ROUTE_ENTRY"));
        }
        Err(_) => return Err(wire::unknown_enum(&source_at, source)),
    };
    let (namespace, path) = metadata_path(&at.field("metadata_key"), metadata_key)?;
    Ok(DescriptorAction::Metadata(Box::new(MetadataAction {
        key: required(&at.field("descriptor_key"), descriptor_key)?,
        source,
        namespace,
        path,
        default: default_value.into(),
        skip_if_absent,
    })))
}

/// The namespace and the keys that lead to a value.
fn metadata_path(at: &FieldPath<'_>, wire: Option<metadata::MetadataKey>) -> Parsed<(Arc<str>, Vec<Box<str>>)> {
    let Some(metadata::MetadataKey { key, path }) = wire else { return Err(at.reject("is required")) };
    use metadata::metadata_key::path_segment::Segment;
    if path.iter().any(|segment| matches!(segment.segment, Some(Segment::Index(_)))) {
        return Err(at.field("path").reject("places in lists are not supported, expected keys"));
    }
    let keys = path.into_iter().map(|segment| match segment.segment {
        Some(Segment::Key(key)) => Some(key),
        _ => None,
    });
    namespace_path(at, key, keys)
}

fn address_match(at: &FieldPath<'_>, wire: actions::RemoteAddressMatch) -> Parsed<DescriptorAction> {
    let actions::RemoteAddressMatch { descriptor_value, descriptor_key, default_value, address_matcher } = wire;
    let matcher_at = at.field("address_matcher");
    let Some(AddressMatcher { ranges, invert_match }) = address_matcher else {
        return Err(matcher_at.reject("is required"));
    };
    let value_at = at.field("descriptor_value");
    let range = |at: &FieldPath<'_>, CidrRange { address_prefix, prefix_len }| {
        cidr(at, core::CidrRange { address_prefix, prefix_len })
    };
    Ok(DescriptorAction::RemoteAddressMatch(Box::new(AddressAction {
        key: or_default(descriptor_key, "remote_address_match"),
        value: Format::parse(&value_at, &required(&value_at, descriptor_value)?)?,
        default: default_value.into(),
        ranges: wire::each(&matcher_at.field("ranges"), ranges, range)?,
        invert: invert_match,
    })))
}

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::protobuf::{UInt32Value, UInt64Value};

    use super::*;

    fn of(action: actions::ActionSpecifier) -> pb::RateLimit {
        let action = pb::rate_limit::Action { action_specifier: Some(action) };
        pb::RateLimit { actions: vec![action], ..Default::default() }
    }

    fn generic(value: &str) -> actions::ActionSpecifier {
        let descriptor_value = value.to_owned();
        actions::ActionSpecifier::GenericKey(actions::GenericKey { descriptor_value, ..Default::default() })
    }

    fn read(wire: pb::RateLimit, place: RateLimitPlace) -> Result<RateLimit, String> {
        let root = FieldPath::resource("route configuration", "r");
        let list =
            rate_limits(&root.field("rate_limits"), vec![wire], place).map_err(|rejection| rejection.to_string());
        list.map(|list| list[0].clone())
    }

    #[test]
    fn defaults_are_envoys() {
        let limit = read(of(generic("v")), RateLimitPlace::Route).unwrap();
        assert_eq!((limit.stage, limit.hits, limit.on_stream_done, limit.tells_clients), (0, None, false, None));
        assert!(matches!(&limit.actions[0], DescriptorAction::GenericKey { key, .. } if &**key == "generic_key"));
        let masked = of(actions::ActionSpecifier::MaskedRemoteAddress(actions::MaskedRemoteAddress::default()));
        let limit = read(masked, RateLimitPlace::Route).unwrap();
        assert!(matches!(limit.actions[0], DescriptorAction::MaskedRemoteAddress { ipv4_bits: 32, ipv6_bits: 128 }));
    }

    #[test]
    fn what_cannot_be_counted_by_is_refused() {
        let stage = |value| pb::RateLimit { stage: Some(UInt32Value { value }), ..of(generic("v")) };
        let hits = |number: Option<u64>, format: &str| pb::RateLimit {
            hits_addend: Some(WireHits {
                number: number.map(|value| UInt64Value { value }),
                format: format.to_owned(),
                is_negative_hits: false,
            }),
            ..of(generic("v"))
        };
        let segment = metadata::metadata_key::PathSegment {
            segment: Some(metadata::metadata_key::path_segment::Segment::Index(1)),
        };
        let by_index = actions::MetaData {
            descriptor_key: "k".into(),
            metadata_key: Some(metadata::MetadataKey { key: "n".into(), path: vec![segment] }),
            ..Default::default()
        };
        for (wire, expected) in [
            (pb::RateLimit::default(), "actions: must not be empty"),
            (stage(11), "stage: 11 is not within 0 to 10"),
            (of(generic("")), "actions[0].generic_key.descriptor_value: must not be empty"),
            (hits(None, ""), "hits_addend: needs one of number, format"),
            (hits(Some(1), "%PROTOCOL%"), "hits_addend.format: must not be set together with number"),
            (hits(Some(2_000_000_000), ""), "hits_addend.number: 2000000000 is above 1000000000"),
            (
                hits(None, "%PROTOCOL%%PROTOCOL%"),
                "hits_addend.format: \"%PROTOCOL%%PROTOCOL%\" must be one command operator",
            ),
            (
                of(actions::ActionSpecifier::Metadata(by_index)),
                "actions[0].metadata.metadata_key.path: places in lists are not supported, expected keys",
            ),
            (
                of(actions::ActionSpecifier::Extension(core::TypedExtensionConfig::default())),
                "actions[0].extension: \"\" is not supported",
            ),
        ] {
            let expected = format!("route configuration \"r\": rate_limits[0].{expected}");
            assert_eq!(read(wire, RateLimitPlace::Route).unwrap_err(), expected);
        }
        let local = read(stage(0), RateLimitPlace::LocalFilter).unwrap_err();
        assert!(local.ends_with("rate_limits[0].stage: must not be set in the local rate limit filter"), "{local}");
    }
}
