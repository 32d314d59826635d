//! Who we are to control planes (`envoy.config.core.v3.Node`).
//!
//! Owns the user agent, what we say we can do, and what the command line replaces. Never sends it.

use std::collections::HashMap;

use outrigger_api::pb::envoy::config::core::v3::node::UserAgentVersionType;
use outrigger_api::pb::envoy::config::core::v3::{BuildVersion, Node};
use outrigger_api::pb::envoy::r#type::v3::SemanticVersion;
use outrigger_api::pb::google::protobuf::value::Kind;
use outrigger_api::pb::google::protobuf::{Struct, Value};

use crate::cli::{BUILD_VERSION, EmulatedVersion, Options, REVISION, TLS_LIBRARY};

/// Control planes choose by this name what they send; with another name, Consul for one sends its oldest form.
const USER_AGENT: &str = "envoy";

/// State of the world responses may wrap resources in `envoy.service.discovery.v3.Resource`.
const CLIENT_FEATURES: [&str; 1] = ["xds.config.resource-in-sotw"];

/// Completes the node of the bootstrap. What the command line says wins.
pub fn identify(node: &mut Node, options: &Options) {
    let replace = |field: &mut String, given: &String| {
        if !given.is_empty() {
            field.clone_from(given);
        }
    };
    replace(&mut node.id, &options.service_node);
    replace(&mut node.cluster, &options.service_cluster);
    if !options.service_zone.is_empty() {
        replace(&mut node.locality.get_or_insert_default().zone, &options.service_zone);
    }
    node.user_agent_name = USER_AGENT.to_owned();
    node.user_agent_version_type =
        Some(UserAgentVersionType::UserAgentBuildVersion(user_agent(options.emulated_version)));
    for feature in CLIENT_FEATURES {
        if !node.client_features.iter().any(|given| given == feature) {
            node.client_features.push(feature.to_owned());
        }
    }
}

/// The version that control planes go by, with our own in its metadata.
pub fn user_agent(emulated: EmulatedVersion) -> BuildVersion {
    let EmulatedVersion { major, minor, patch } = emulated;
    let text = |value: &str| Value { kind: Some(Kind::StringValue(value.to_owned())) };
    let fields = [
        ("build.label", format!("outrigger {BUILD_VERSION}")),
        ("build.type", "RELEASE".to_owned()),
        ("revision.sha", REVISION.to_owned()),
        ("revision.status", "Clean".to_owned()),
        ("ssl.version", TLS_LIBRARY.to_owned()),
    ];
    BuildVersion {
        version: Some(SemanticVersion { major_number: major, minor_number: minor, patch }),
        metadata: Some(Struct {
            fields: HashMap::from_iter(fields.map(|(key, value)| (key.to_owned(), text(&value)))),
        }),
    }
}

#[cfg(test)]
mod tests {
    use outrigger_api::pb::envoy::config::core::v3::Locality;

    use super::*;

    #[test]
    fn the_command_line_replaces_what_it_names() {
        let mut node = Node {
            id: "a".into(),
            cluster: "b".into(),
            locality: Some(Locality { region: "r".into(), zone: "z".into(), sub_zone: "s".into() }),
            user_agent_name: "mine".into(),
            ..Node::default()
        };
        let options = Options { service_node: "id".into(), service_zone: "zone".into(), ..Options::default() };
        identify(&mut node, &options);
        identify(&mut node, &options);
        assert_eq!((node.id.as_str(), node.cluster.as_str(), node.user_agent_name.as_str()), ("id", "b", "envoy"));
        let expected = Locality { region: "r".into(), zone: "zone".into(), sub_zone: "s".into() };
        assert_eq!(node.locality, Some(expected));
        assert_eq!(node.client_features, CLIENT_FEATURES);
        let Some(UserAgentVersionType::UserAgentBuildVersion(version)) = node.user_agent_version_type else {
            panic!("no build version")
        };
        let expected = SemanticVersion { major_number: 1, minor_number: 40, patch: 0 };
        assert_eq!(version.version, Some(expected));
        let metadata = version.metadata.unwrap();
        let label = Value { kind: Some(Kind::StringValue(format!("outrigger {BUILD_VERSION}"))) };
        assert_eq!(metadata.fields["build.label"], label);
    }
}
