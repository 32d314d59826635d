//! Fields of Envoy's API that are newer than the generated types, which drop them when they decode a message.
//!
//! Owns finding them in encoded messages; `NEWER_FIELDS` in `build.rs` makes text know them. Never judges them.

use std::collections::HashMap;

use prost::Message;

/// What clusters say in fields that their generated type does not have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewerFields {
    health_checks: HashMap<String, Vec<NewerHealthCheck>>,
}

/// The newer fields of an `envoy.config.core.v3.HealthCheck`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NewerHealthCheck {
    /// `name`: stands in the names of its stats; needed where a cluster has several checks.
    #[prost(string, tag = "27")]
    pub name: String,
}

/// `envoy.config.bootstrap.v3.Bootstrap`.
#[derive(Clone, PartialEq, Message)]
struct Bootstrap {
    #[prost(message, optional, tag = "2")]
    static_resources: Option<StaticResources>,
}

/// `envoy.config.bootstrap.v3.Bootstrap.StaticResources`.
#[derive(Clone, PartialEq, Message)]
struct StaticResources {
    #[prost(message, repeated, tag = "2")]
    clusters: Vec<Cluster>,
}

/// `envoy.config.cluster.v3.Cluster`.
#[derive(Clone, PartialEq, Message)]
struct Cluster {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "8")]
    health_checks: Vec<NewerHealthCheck>,
}

impl NewerFields {
    /// Those of an encoded `envoy.config.cluster.v3.Cluster`. Bytes that are no message have none: decoding tells.
    pub fn of_cluster(bytes: &[u8]) -> Self {
        let mut found = Self::default();
        if let Ok(cluster) = Cluster::decode(bytes) {
            found.add(cluster);
        }
        found
    }

    /// Those of the static clusters of an encoded `envoy.config.bootstrap.v3.Bootstrap`.
    pub fn of_bootstrap(bytes: &[u8]) -> Self {
        let mut found = Self::default();
        let statics = Bootstrap::decode(bytes).ok().and_then(|bootstrap| bootstrap.static_resources);
        for cluster in statics.into_iter().flat_map(|statics| statics.clusters) {
            found.add(cluster);
        }
        found
    }

    /// Those of a bootstrap that was merged from two.
    pub fn extend(&mut self, other: Self) {
        self.health_checks.extend(other.health_checks);
    }

    /// What the checks of a cluster say, in the order of `health_checks`; may be shorter than that list.
    pub fn health_checks(&self, cluster: &str) -> &[NewerHealthCheck] {
        self.health_checks.get(cluster).map_or(&[], Vec::as_slice)
    }

    fn add(&mut self, cluster: Cluster) {
        if cluster.health_checks.iter().any(|check| *check != NewerHealthCheck::default()) {
            self.health_checks.insert(cluster.name, cluster.health_checks);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, ParseOptions, Schema, pb};

    #[test]
    fn names_of_checks_are_found_in_what_text_becomes() {
        let text = b"{static_resources: {clusters: [{name: a, health_checks: [{name: x}, {timeout: 1s}]}, {name: b}]}}";
        let mut newer = NewerFields::default();
        let parsed = Schema::load().parse_seeing::<pb::envoy::config::bootstrap::v3::Bootstrap>(
            text,
            Format::Yaml,
            ParseOptions::default(),
            &mut |bytes| newer.extend(NewerFields::of_bootstrap(bytes)),
        );
        assert_eq!(parsed.unwrap().message.static_resources.unwrap().clusters.len(), 2);
        let names: Vec<&str> = newer.health_checks("a").iter().map(|check| &*check.name).collect();
        assert_eq!(names, ["x", ""]);
        assert!(newer.health_checks("b").is_empty());
        assert_eq!(NewerFields::of_cluster(b"\xff"), NewerFields::default());
    }
}
