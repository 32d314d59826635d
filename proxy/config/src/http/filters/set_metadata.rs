//! Setting dynamic metadata (`envoy.extensions.filters.http.set_metadata.v3`).
//!
//! Owns what is set. Never sets anything.

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::http::set_metadata::v3 as pb;

use crate::decide::decide;
use crate::metadata::{self, MetadataMap};
use crate::rejection::{FieldPath, Parsed};

/// Source: `envoy.extensions.filters.http.set_metadata.v3.Config`. In order.
#[derive(Clone, Debug, PartialEq)]
pub struct SetMetadata(pub Vec<MetadataValue>);

/// Values for one namespace. Source: `Metadata`.
#[derive(Clone, Debug, PartialEq)]
pub struct MetadataValue {
    /// Where they go.
    pub namespace: Arc<str>,
    /// They are merged with what is there; without, what is there stays.
    pub allow_overwrite: bool,
    /// The values.
    pub value: MetadataMap,
}

impl SetMetadata {
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::Config) -> Parsed<Self> {
        decide!(wire, at, pb::Config as "envoy.extensions.filters.http.set_metadata.v3.Config" {
            implemented: metadata_namespace, value, metadata;
            no_effect: ;
            unsupported: ;
        });
        let mut values = Vec::with_capacity(metadata.len() + 1);
        // The deprecated pair is always merged, and does nothing unless both halves are there.
        if let Some(value) = value.filter(|_| !metadata_namespace.is_empty()) {
            let value = metadata::object(value);
            values.push(MetadataValue { namespace: metadata_namespace.into(), allow_overwrite: true, value });
        }
        let list = at.field("metadata");
        for (index, wire) in metadata.into_iter().enumerate() {
            values.extend(metadata_value(&list.item(index), wire)?);
        }
        Ok(Self(values))
    }
}

/// `None` for an entry without a value, which does nothing.
fn metadata_value(at: &FieldPath<'_>, wire: pb::Metadata) -> Parsed<Option<MetadataValue>> {
    decide!(wire, at, pb::Metadata as "envoy.extensions.filters.http.set_metadata.v3.Metadata" {
        implemented: metadata_namespace, allow_overwrite, value;
        no_effect: ;
        unsupported: typed_value;
    });
    if metadata_namespace.is_empty() {
        return Err(at.field("metadata_namespace").reject("must not be empty"));
    }
    let namespace = metadata_namespace.into();
    Ok(value.map(|value| MetadataValue { namespace, allow_overwrite, value: metadata::object(value) }))
}

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::protobuf::Struct;

    use super::*;

    #[test]
    fn entries_without_a_value_do_nothing() {
        let root = FieldPath::resource("listener", "l");
        let read = |wire| SetMetadata::parse(&root, wire).map(|set| set.0.len());
        assert_eq!(read(pb::Config { metadata_namespace: "a".into(), ..Default::default() }), Ok(0));
        let value = Some(Struct::default());
        let pair = pb::Config { metadata_namespace: "a".into(), value: value.clone(), metadata: vec![] };
        assert_eq!(read(pair), Ok(1));
        let entry =
            |namespace: &str, value| pb::Metadata { metadata_namespace: namespace.into(), value, ..Default::default() };
        let entries = vec![entry("a", None), entry("b", value.clone())];
        assert_eq!(read(pb::Config { metadata: entries, ..Default::default() }), Ok(1));
        let nameless = pb::Config { metadata: vec![entry("", value)], ..Default::default() };
        let expected = "listener \"l\": metadata[0].metadata_namespace: must not be empty";
        assert_eq!(read(nameless).unwrap_err().to_string(), expected);
    }
}
