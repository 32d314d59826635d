//! Matchers of nodes (`envoy.type.matcher.v3.NodeMatcher`), by which clients of an xDS are told apart.
//!
//! Owns the checked model, how it is read and how it matches.

use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_api::pb::envoy::r#type::matcher::v3 as pb;

use super::{StringMatcher, ValueMatcher, lookup};
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::{metadata, wire};

/// Source: `envoy.type.matcher.v3.NodeMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeMatcher {
    id: Option<StringMatcher>,
    /// Paths, and what the values there must be.
    metadata: Vec<(Vec<Box<str>>, ValueMatcher)>,
}

impl NodeMatcher {
    /// Reads a list of them.
    ///
    /// # Errors
    /// When one of them is malformed.
    pub fn list(at: &FieldPath<'_>, wire: Vec<pb::NodeMatcher>) -> Parsed<Vec<Self>> {
        wire::each(at, wire, Self::parse)
    }

    fn parse(at: &FieldPath<'_>, wire: pb::NodeMatcher) -> Parsed<Self> {
        decide!(wire, at, pb::NodeMatcher as "envoy.type.matcher.v3.NodeMatcher" {
            implemented: node_id, node_metadatas;
            no_effect: ;
            unsupported: ;
        });
        let id = node_id.map(|wire| wire::string_matcher(&at.field("node_id"), wire)).transpose()?;
        Ok(Self { id, metadata: wire::each(&at.field("node_metadatas"), node_metadatas, of_struct)? })
    }

    /// Whether the node has the id, and all of the metadata.
    pub fn matches(&self, node: &Node) -> bool {
        let id = self.id.as_ref().is_none_or(|matcher| matcher.matches(node.id.as_bytes()));
        if !id || self.metadata.is_empty() {
            return id;
        }
        let values = node.metadata.clone().map(metadata::object);
        self.metadata.iter().all(|(path, matcher)| matcher.matches(lookup(values.as_ref(), path)))
    }
}

fn of_struct(at: &FieldPath<'_>, wire: pb::StructMatcher) -> Parsed<(Vec<Box<str>>, ValueMatcher)> {
    decide!(wire, at, pb::StructMatcher as "envoy.type.matcher.v3.StructMatcher" {
        implemented: path, value;
        no_effect: ;
        unsupported: ;
    });
    let list = at.field("path");
    if path.is_empty() {
        return Err(list.reject("must not be empty"));
    }
    let path = wire::each(&list, path, |at, wire| match wire.segment {
        Some(pb::struct_matcher::path_segment::Segment::Key(key)) if !key.is_empty() => Ok(key.into_boxed_str()),
        _ => Err(at.field("key").reject("must not be empty")),
    })?;
    let Some(value) = value else { return Err(at.field("value").reject("is required")) };
    Ok((path, ValueMatcher::parse(&at.field("value"), value)?))
}

#[cfg(test)]
mod tests {
    use outrigger_api::UnknownFields;
    use outrigger_api::pb::envoy::service::status::v3::ClientStatusRequest;

    use super::*;
    use crate::context::Context;

    struct Nowhere;

    impl crate::Environment for Nowhere {
        fn read_file(&self, _: &std::path::Path) -> std::io::Result<Vec<u8>> {
            Err(std::io::ErrorKind::NotFound.into())
        }

        fn variable(&self, _: &str) -> Option<String> {
            None
        }
    }

    fn read(matchers: &str) -> Result<Vec<NodeMatcher>, String> {
        let context = Context::new(&Nowhere);
        let yaml = format!("node_matchers: [{matchers}]");
        let parsed = context.schema().parse_yaml::<ClientStatusRequest>(&yaml, UnknownFields::Reject);
        let wire = parsed.unwrap_or_else(|error| panic!("{error}")).message;
        let root = FieldPath::resource("request", "r");
        NodeMatcher::list(&root.field("node_matchers"), wire.node_matchers).map_err(|error| error.to_string())
    }

    #[test]
    fn a_node_matches_by_its_id_and_by_all_of_its_metadata() {
        let context = Context::new(&Nowhere);
        let yaml = "{id: sidecar~1, metadata: {LABELS: {app: shop}, NUMBER: 2}}";
        let node = context.schema().parse_yaml::<Node>(yaml, UnknownFields::Reject).unwrap().message;
        for (matcher, expected) in [
            ("{}", true),
            ("{node_id: {exact: sidecar~1}}", true),
            ("{node_id: {prefix: router}}", false),
            ("{node_metadatas: [{path: [{key: LABELS}, {key: app}], value: {string_match: {exact: shop}}}]}", true),
            (
                "{node_metadatas: [{path: [{key: NUMBER}], value: {double_match: {exact: 2}}}, {path: [{key: none}], value: {present_match: true}}]}",
                false,
            ),
            (
                "{node_id: {exact: other}, node_metadatas: [{path: [{key: NUMBER}], value: {present_match: true}}]}",
                false,
            ),
        ] {
            assert_eq!(read(matcher).unwrap()[0].matches(&node), expected, "{matcher}");
        }
    }

    #[test]
    fn malformed_matchers_are_refused_with_their_place() {
        for (matcher, place) in [
            (
                "{node_metadatas: [{value: {present_match: true}}]}",
                "node_matchers[0].node_metadatas[0].path: must not be empty",
            ),
            ("{}, {node_metadatas: [{path: [{key: a}]}]}", "node_matchers[1].node_metadatas[0].value: is required"),
            ("{node_metadatas: [{path: [{}], value: {present_match: true}}]}", "path[0].key: must not be empty"),
            ("{node_id: {safe_regex: {regex: '('}}}", "node_matchers[0].node_id"),
        ] {
            let error = read(matcher).unwrap_err();
            assert!(error.contains(place), "{error}");
        }
    }
}
