//! What Istio adds to Envoy's API: its hints about clusters, and its network filters.
//!
//! Owns their checked models and how they are read. Its HTTP filters stand with the others, in `http::filters`.

mod metadata_exchange;

use outrigger_api::istio::stats as pb;
use outrigger_api::pb::envoy::config::core::v3::Metadata;
use outrigger_api::pb::google::protobuf::Value;
use outrigger_api::pb::google::protobuf::value::Kind;

pub use metadata_exchange::MetadataExchange;
pub(crate) use metadata_exchange::upstream_filters;

use crate::decide::decide;
use crate::rejection::FieldPath;

/// What Istio says about a cluster. Source: the namespace `istio` of `Cluster.metadata`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ClusterHints {
    /// Requests do not change what its connections offer in ALPN (`alpn_override` is "false").
    pub keep_alpn: bool,
    /// Its endpoints are not told who we are (`disable_mx`).
    pub tell_nothing: bool,
    /// It lies outside of the mesh (`external`).
    pub external: bool,
}

impl ClusterHints {
    /// Reads them among the metadata of a cluster; what else stands there says nothing to us.
    pub(crate) fn read(metadata: Option<&Metadata>) -> Self {
        let Some(istio) = metadata.and_then(|metadata| metadata.filter_metadata.get(NAMESPACE)) else {
            return Self::default();
        };
        let kind = |key: &str| istio.fields.get(key).and_then(|Value { kind }| kind.as_ref());
        let flag = |key: &str| matches!(kind(key), Some(Kind::BoolValue(true)));
        Self {
            keep_alpn: matches!(kind("alpn_override"), Some(Kind::StringValue(text)) if text == "false"),
            tell_nothing: flag("disable_mx"),
            external: flag("external"),
        }
    }
}

const NAMESPACE: &str = "istio";

/// The filter of the mesh's standard metrics. Source: `stats.PluginConfig`.
///
/// It is accepted so that a mesh's listeners work, and reports nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StandardMetrics;

impl StandardMetrics {
    pub(crate) fn read(at: &FieldPath<'_>, wire: pb::PluginConfig) -> Self {
        decide!(wire, at, pb::PluginConfig as "stats.PluginConfig" {
            implemented: ;
            no_effect: disable_host_header_fallback = "Istio's standard metrics are not emitted",
                tcp_reporting_duration = "Istio's standard metrics are not emitted",
                metrics = "Istio's standard metrics are not emitted",
                definitions = "Istio's standard metrics are not emitted",
                reporter = "Istio's standard metrics are not emitted",
                rotation_interval = "Istio's standard metrics are not emitted",
                graceful_deletion_interval = "Istio's standard metrics are not emitted";
            unsupported: ;
        });
        Self
    }
}

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::protobuf::Struct;

    use super::*;

    #[test]
    fn only_the_mesh_s_own_words_are_hints() {
        let read = |namespace: &str, fields: &[(&str, Kind)]| {
            let fields = fields.iter().map(|(key, kind)| ((*key).to_owned(), Value { kind: Some(kind.clone()) }));
            let istio = Struct { fields: fields.collect() };
            ClusterHints::read(Some(&Metadata {
                filter_metadata: [(namespace.to_owned(), istio)].into(),
                ..Metadata::default()
            }))
        };
        let text = |text: &str| Kind::StringValue(text.to_owned());
        let all = [("alpn_override", text("false")), ("disable_mx", Kind::BoolValue(true))];
        let hints = ClusterHints { keep_alpn: true, tell_nothing: true, external: false };
        assert_eq!(read("istio", &all), hints);
        assert_eq!(read("other", &all), ClusterHints::default());
        let others = [("alpn_override", text("true")), ("external", Kind::BoolValue(true))];
        assert_eq!(read("istio", &others), ClusterHints { external: true, ..ClusterHints::default() });
        assert_eq!(ClusterHints::read(None), ClusterHints::default());
    }
}
