//! Reads the inputs of match trees and what their values must be.
//!
//! Owns which inputs and input matchers exist. Never reads the tree around them.

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::matching::common_inputs::network::v3 as network;
use outrigger_api::pb::envoy::extensions::matching::common_inputs::transport_socket::v3 as transport_socket;
use outrigger_api::pb::envoy::extensions::matching::input_matchers::ip::v3 as ip;
use outrigger_api::pb::envoy::extensions::matching::input_matchers::metadata::v3 as metadata;
use outrigger_api::pb::envoy::r#type::matcher::v3 as http;
use outrigger_api::pb::google::protobuf::Any;
use outrigger_api::pb::xds::core::v3::TypedExtensionConfig;
use outrigger_api::xds::matcher_v3::CelMatcher;

use super::{Input, InputMatcher, Place};
use crate::address_parse::cidr;
use crate::cel;
use crate::context::Context;
use crate::decide::decide;
use crate::http::header_mutations::header_name;
use crate::matching::{ValueMatcher, namespace_path};
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// The message inside an extension config.
pub(super) fn typed_config(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<TypedExtensionConfig>,
) -> Parsed<Any> {
    let config = wire.and_then(|TypedExtensionConfig { name: _, typed_config }| typed_config);
    let at = at.field("typed_config");
    let Some(any) = config else { return Err(at.reject("is required")) };
    wire::extension(context, &at, any)
}

impl Input {
    /// Reads an input.
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: Option<TypedExtensionConfig>) -> Parsed<Self> {
        let any = typed_config(context, at, wire)?;
        let at = at.field("typed_config");
        let name = wire::type_name(&any);
        let simple = match name.strip_prefix("envoy.extensions.matching.common_inputs.") {
            Some("network.v3.DestinationIPInput") => Some(Self::DestinationIp),
            Some("network.v3.DestinationPortInput") => Some(Self::DestinationPort),
            Some("network.v3.SourceIPInput") => Some(Self::SourceIp),
            Some("network.v3.SourcePortInput") => Some(Self::SourcePort),
            Some("network.v3.DirectSourceIPInput") => Some(Self::DirectSourceIp),
            Some("network.v3.ServerNameInput") => Some(Self::ServerName),
            None if name == "envoy.type.matcher.v3.HttpResponseStatusCodeMatchInput" => Some(Self::ResponseStatus),
            None if name == "envoy.type.matcher.v3.HttpResponseStatusCodeClassMatchInput" => {
                Some(Self::ResponseStatusClass)
            }
            Some("network.v3.SourceTypeInput") => Some(Self::SourceType),
            Some("network.v3.TransportProtocolInput") => Some(Self::TransportProtocol),
            Some("network.v3.ApplicationProtocolInput") => Some(Self::ApplicationProtocols),
            Some("ssl.v3.UriSanInput") => Some(Self::UriSan),
            Some("ssl.v3.DnsSanInput") => Some(Self::DnsSan),
            Some("ssl.v3.SubjectInput") => Some(Self::Subject),
            _ => None,
        };
        if let Some(simple) = simple {
            return Ok(simple);
        }
        match name {
            "envoy.extensions.matching.common_inputs.network.v3.FilterStateInput" => {
                let wire: network::FilterStateInput = wire::decode(&at, &any)?;
                decide!(wire, &at, network::FilterStateInput
                    as "envoy.extensions.matching.common_inputs.network.v3.FilterStateInput" {
                    implemented: key;
                    no_effect: ;
                    unsupported: field;
                });
                if key.is_empty() {
                    return Err(at.field("key").reject("must not be empty"));
                }
                Ok(Self::FilterState { key: key.into() })
            }
            "envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput" => {
                use network::dynamic_metadata_input::{PathSegment, path_segment::Segment};
                let network::DynamicMetadataInput { filter, path } = wire::decode(&at, &any)?;
                let keys = path.into_iter().map(|PathSegment { segment }| segment.map(|Segment::Key(key)| key));
                let (filter, path) = namespace_path(&at, filter, keys)?;
                Ok(Self::DynamicMetadata { filter, path })
            }
            "envoy.type.matcher.v3.HttpRequestHeaderMatchInput" => {
                let http::HttpRequestHeaderMatchInput { header_name: name } = wire::decode(&at, &any)?;
                Ok(Self::RequestHeader { name: header_name(&at.field("header_name"), &name)? })
            }
            "envoy.type.matcher.v3.HttpResponseHeaderMatchInput" => {
                let http::HttpResponseHeaderMatchInput { header_name: name } = wire::decode(&at, &any)?;
                Ok(Self::ResponseHeader { name: header_name(&at.field("header_name"), &name)? })
            }
            "envoy.type.matcher.v3.HttpRequestQueryParamMatchInput" => {
                let http::HttpRequestQueryParamMatchInput { query_param } = wire::decode(&at, &any)?;
                if query_param.is_empty() {
                    return Err(at.field("query_param").reject("must not be empty"));
                }
                Ok(Self::QueryParameter { name: query_param.into() })
            }
            "envoy.extensions.matching.common_inputs.transport_socket.v3.EndpointMetadataInput" => {
                use transport_socket::endpoint_metadata_input::{PathSegment, path_segment::Segment};
                let transport_socket::EndpointMetadataInput { filter, path } = wire::decode(&at, &any)?;
                let keys = path.into_iter().map(|PathSegment { segment }| segment.map(|Segment::Key(key)| key));
                let (filter, path) = endpoint_path(&at, filter, keys)?;
                Ok(Self::EndpointMetadata { filter, path })
            }
            "envoy.extensions.matching.common_inputs.transport_socket.v3.LocalityMetadataInput" => {
                use transport_socket::locality_metadata_input::{PathSegment, path_segment::Segment};
                let transport_socket::LocalityMetadataInput { filter, path } = wire::decode(&at, &any)?;
                let keys = path.into_iter().map(|PathSegment { segment }| segment.map(|Segment::Key(key)| key));
                let (filter, path) = endpoint_path(&at, filter, keys)?;
                Ok(Self::LocalityMetadata { filter, path })
            }
            "xds.type.matcher.v3.HttpAttributesCelMatchInput" => Ok(Self::Attributes),
            _ => Err(at.reject(format!("the input {:?} is not supported", any.type_url))),
        }
    }

    /// The only place where it exists, if there is but one.
    pub(super) fn place(&self) -> Option<Place> {
        match self {
            Self::RequestHeader { .. } | Self::QueryParameter { .. } | Self::Attributes => Some(Place::Request),
            Self::ResponseStatus | Self::ResponseStatusClass | Self::ResponseHeader { .. } => Some(Place::Response),
            Self::TransportProtocol | Self::ApplicationProtocols => Some(Place::Listener),
            Self::EndpointMetadata { .. } | Self::LocalityMetadata { .. } => Some(Place::Endpoint),
            _ => None,
        }
    }
}

/// Where an endpoint's metadata leads: a namespace that is kept of endpoints, `envoy.lb` unless given, and keys.
fn endpoint_path(
    at: &FieldPath<'_>,
    filter: String,
    keys: impl Iterator<Item = Option<String>>,
) -> Parsed<(Arc<str>, Vec<Box<str>>)> {
    let filter = if filter.is_empty() { ENDPOINT_NAMESPACES[0].to_owned() } else { filter };
    check_endpoint_namespace(at, &filter)?;
    namespace_path(at, filter, keys)
}

/// Refuses namespaces of metadata that endpoints do not keep.
pub(crate) fn check_endpoint_namespace(at: &FieldPath<'_>, filter: &str) -> Parsed<()> {
    if ENDPOINT_NAMESPACES.contains(&filter) {
        return Ok(());
    }
    let [first, second] = ENDPOINT_NAMESPACES;
    Err(at.field("filter").reject(format!("{filter:?} is not kept of endpoints, expected {first:?} or {second:?}")))
}

/// Namespaces of metadata that are kept of endpoints and their localities.
const ENDPOINT_NAMESPACES: [&str; 2] = ["envoy.lb", "envoy.transport_socket_match"];

impl InputMatcher {
    /// Reads the extension in `custom_match`.
    pub(super) fn parse_custom(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        input: &Input,
        wire: TypedExtensionConfig,
    ) -> Parsed<Self> {
        let any = typed_config(context, at, Some(wire))?;
        let at = at.field("typed_config");
        match wire::type_name(&any) {
            "envoy.extensions.matching.input_matchers.ip.v3.Ip" => {
                // Addresses here are never unparsable, so the counter of those that are has nothing to count.
                let ip::Ip { cidr_ranges, stat_prefix: _ } = wire::decode(&at, &any)?;
                let list = at.field("cidr_ranges");
                if cidr_ranges.is_empty() {
                    return Err(list.reject("must not be empty"));
                }
                Ok(Self::Ip(wire::each(&list, cidr_ranges, cidr)?))
            }
            "envoy.extensions.matching.input_matchers.metadata.v3.Metadata" => {
                if !matches!(input, Input::DynamicMetadata { .. }) {
                    return Err(at.reject("needs metadata as its input"));
                }
                let metadata::Metadata { value, invert } = wire::decode(&at, &any)?;
                let Some(value) = value else { return Err(at.field("value").reject("is required")) };
                Ok(Self::Value { value: ValueMatcher::parse(&at.field("value"), value)?, invert })
            }
            "xds.type.matcher.v3.CelMatcher" => {
                if *input != Input::Attributes {
                    return Err(at.reject("needs all attributes as its input"));
                }
                let CelMatcher { expr_match, description: _ } = wire::decode(&at, &any)?;
                let at = at.field("expr_match");
                let Some(wire) = expr_match else { return Err(at.reject("is required")) };
                Ok(Self::Expression(Arc::new(cel::expression(&at, wire)?)))
            }
            _ => Err(at.reject(format!("the input matcher {:?} is not supported", any.type_url))),
        }
    }
}
