//! Reads custom tags (`envoy.type.tracing.v3.CustomTag`).
//!
//! Owns how they are checked. Never evaluates them.

use std::sync::Arc;

use outrigger_api::pb::envoy::r#type::metadata::v3 as metadata;
use outrigger_api::pb::envoy::r#type::tracing::v3 as pb;
use outrigger_api::pb::envoy::r#type::tracing::v3::custom_tag as parts;

use super::{CustomTag, CustomTagValue, TagMetadata};
use crate::context::Context;
use crate::decide::decide;
use crate::format::Format;
use crate::http::header_mutations::header_name;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Reads a list of tags; of several with one name, the first counts.
pub(super) fn custom_tags(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Vec<pb::CustomTag>,
) -> Parsed<Vec<CustomTag>> {
    let mut tags: Vec<CustomTag> = Vec::new();
    for tag in wire::each(at, wire, |at, wire| custom_tag(context, at, wire))? {
        if !tags.iter().any(|known| known.name == tag.name) {
            tags.push(tag);
        }
    }
    Ok(tags)
}

/// Reads one tag.
pub(crate) fn custom_tag(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::CustomTag) -> Parsed<CustomTag> {
    decide!(wire, at, pb::CustomTag as "envoy.type.tracing.v3.CustomTag" {
        implemented: tag, r#type;
        no_effect: ;
        unsupported: ;
    });
    if tag.is_empty() {
        return Err(at.field("tag").reject("must not be empty"));
    }
    let value = match r#type {
        Some(parts::Type::Literal(parts::Literal { value })) => {
            if value.is_empty() {
                return Err(at.field("literal").field("value").reject("must not be empty"));
            }
            CustomTagValue::Literal(value.into())
        }
        Some(parts::Type::Environment(parts::Environment { name, default_value })) => {
            if name.is_empty() {
                return Err(at.field("environment").field("name").reject("must not be empty"));
            }
            CustomTagValue::Literal(context.environment().variable(&name).unwrap_or(default_value).into())
        }
        Some(parts::Type::RequestHeader(parts::Header { name, default_value })) => {
            let name = header_name(&at.field("request_header").field("name"), &name)?;
            CustomTagValue::RequestHeader { name, default: default_value.into() }
        }
        Some(parts::Type::Metadata(wire)) => metadata_value(&at.field("metadata"), wire)?,
        Some(parts::Type::Value(text)) => {
            CustomTagValue::Format(Format::parse_with_environment(context.environment(), &at.field("value"), &text)?)
        }
        None => return Err(at.reject("needs one of literal, environment, request_header, metadata, value")),
    };
    Ok(CustomTag { name: tag.into(), value })
}

fn metadata_value(at: &FieldPath<'_>, wire: parts::Metadata) -> Parsed<CustomTagValue> {
    let parts::Metadata { kind, metadata_key, default_value } = wire;
    use metadata::metadata_kind::Kind;
    let of = match kind.and_then(|metadata::MetadataKind { kind }| kind) {
        Some(Kind::Request(metadata::metadata_kind::Request {})) => TagMetadata::Request,
        Some(Kind::Route(metadata::metadata_kind::Route {})) => TagMetadata::Route,
        Some(Kind::Cluster(metadata::metadata_kind::Cluster {})) => TagMetadata::Cluster,
        Some(Kind::Host(metadata::metadata_kind::Host {})) => TagMetadata::Host,
        None => return Err(at.field("kind").reject("needs one of request, route, cluster, host")),
    };
    let at = at.field("metadata_key");
    let Some(metadata::MetadataKey { key, path }) = metadata_key else {
        return Err(at.reject("is required"));
    };
    if key.is_empty() {
        return Err(at.field("key").reject("must not be empty"));
    }
    if of == TagMetadata::Host && key != LB_NAMESPACE {
        return Err(at.field("key").reject(format!("{key:?}: endpoints keep {LB_NAMESPACE:?} only")));
    }
    let segment = |at: &FieldPath<'_>, wire: metadata::metadata_key::PathSegment| -> Parsed<Arc<str>> {
        use metadata::metadata_key::path_segment::Segment;
        match wire.segment {
            Some(Segment::Key(key)) if !key.is_empty() => Ok(key.into()),
            Some(Segment::Key(_)) | None => Err(at.field("key").reject("must not be empty")),
            Some(Segment::Index(_)) => Err(at.field("index").unsupported()),
        }
    };
    let path_at = at.field("path");
    if path.is_empty() {
        return Err(path_at.reject("must not be empty"));
    }
    Ok(CustomTagValue::Metadata {
        of,
        namespace: key.into(),
        path: wire::each(&path_at, path, segment)?,
        default: default_value.into(),
    })
}

/// The namespace of endpoints' metadata that balancing reads.
const LB_NAMESPACE: &str = "envoy.lb";
