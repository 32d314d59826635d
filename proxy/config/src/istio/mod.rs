//! What Istio adds to Envoy's API: its hints about clusters, and its network filters.
//!
//! Owns their checked models and how they are read. Its HTTP filters stand with the others, in `http::filters`.

mod metadata_exchange;
mod standard_metrics;

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3::Metadata;
use outrigger_api::pb::google::protobuf::Value;
use outrigger_api::pb::google::protobuf::value::Kind;

pub use metadata_exchange::MetadataExchange;
pub(crate) use metadata_exchange::upstream_filters;
pub use standard_metrics::{
    Dimension, DimensionLabel, LabelSet, MESH_METRICS, MeshLabel, MeshMetric, Rotation, StandardMetrics,
};

/// What Istio says about a cluster. Source: the namespace `istio` of `Cluster.metadata`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClusterHints {
    /// Requests do not change what its connections offer in ALPN (`alpn_override` is "false").
    pub keep_alpn: bool,
    /// Its endpoints are not told who we are (`disable_mx`).
    pub tell_nothing: bool,
    /// It lies outside of the mesh (`external`).
    pub external: bool,
    /// Which service it is.
    pub service: Option<Arc<MeshService>>,
}

/// A service, as metrics call it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MeshService {
    /// Its host name (`services[0].host`); that of the request where it is not known.
    pub host: Option<Box<str>>,
    /// Its short name (`services[0].name`); the first label of the host name where it is not known.
    pub name: Option<Box<str>>,
}

impl MeshService {
    /// Clusters of destinations that the mesh does not know, or does not allow.
    fn special(cluster: &str) -> Option<Self> {
        SPECIAL.contains(&cluster).then(|| Self { host: None, name: Some(cluster.into()) })
    }

    fn first(services: &Kind) -> Option<Self> {
        let Kind::ListValue(services) = services else { return None };
        let Some(Kind::StructValue(service)) = &services.values.first()?.kind else { return None };
        let text = |key: &str| match &service.fields.get(key)?.kind {
            Some(Kind::StringValue(text)) => Some(text.as_str().into()),
            _ => None,
        };
        Some(Self { host: text("host"), name: text("name") })
    }
}

/// Their names are Istio's.
const SPECIAL: [&str; 5] = [
    "BlackHoleCluster",
    "PassthroughCluster",
    "InboundPassthroughCluster",
    "InboundPassthroughClusterIpv4",
    "InboundPassthroughClusterIpv6",
];

impl ClusterHints {
    /// Reads them among the metadata of the cluster of this name; what else stands there says nothing to us.
    pub(crate) fn read(cluster: &str, metadata: Option<&Metadata>) -> Self {
        let special = MeshService::special(cluster);
        let Some(istio) = metadata.and_then(|metadata| metadata.filter_metadata.get(NAMESPACE)) else {
            return Self { service: special.map(Arc::new), ..Self::default() };
        };
        let kind = |key: &str| istio.fields.get(key).and_then(|Value { kind }| kind.as_ref());
        let flag = |key: &str| matches!(kind(key), Some(Kind::BoolValue(true)));
        Self {
            keep_alpn: matches!(kind("alpn_override"), Some(Kind::StringValue(text)) if text == "false"),
            tell_nothing: flag("disable_mx"),
            external: flag("external"),
            service: special.or_else(|| MeshService::first(kind("services")?)).map(Arc::new),
        }
    }
}

const NAMESPACE: &str = "istio";

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::protobuf::{ListValue, Struct};

    use super::*;

    #[test]
    fn only_the_mesh_s_own_words_are_hints() {
        let read = |namespace: &str, fields: &[(&str, Kind)]| {
            let fields = fields.iter().map(|(key, kind)| ((*key).to_owned(), Value { kind: Some(kind.clone()) }));
            let istio = Struct { fields: fields.collect() };
            ClusterHints::read(
                "c",
                Some(&Metadata { filter_metadata: [(namespace.to_owned(), istio)].into(), ..Metadata::default() }),
            )
        };
        let text = |text: &str| Kind::StringValue(text.to_owned());
        let all = [("alpn_override", text("false")), ("disable_mx", Kind::BoolValue(true))];
        let hints = ClusterHints { keep_alpn: true, tell_nothing: true, ..ClusterHints::default() };
        assert_eq!(read("istio", &all), hints);
        assert_eq!(read("other", &all), ClusterHints::default());
        let others = [("alpn_override", text("true")), ("external", Kind::BoolValue(true))];
        assert_eq!(read("istio", &others), ClusterHints { external: true, ..ClusterHints::default() });
        assert_eq!(ClusterHints::read("c", None), ClusterHints::default());
    }

    #[test]
    fn the_first_service_counts_and_special_clusters_are_their_own() {
        let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
        let service = |name: &str| {
            let fields = [("host", format!("{name}.ns.svc.cluster.local")), ("name", name.to_owned())];
            let fields = fields.map(|(key, value)| (key.to_owned(), text(&value))).into();
            Value { kind: Some(Kind::StructValue(Struct { fields })) }
        };
        let list = ListValue { values: vec![service("a"), service("b")] };
        let istio = Struct { fields: [("services".to_owned(), Value { kind: Some(Kind::ListValue(list)) })].into() };
        let metadata = Metadata { filter_metadata: [("istio".to_owned(), istio)].into(), ..Metadata::default() };
        let named = |cluster: &str| ClusterHints::read(cluster, Some(&metadata)).service.unwrap();
        let known = MeshService { host: Some("a.ns.svc.cluster.local".into()), name: Some("a".into()) };
        assert_eq!(*named("outbound|80||a"), known);
        assert_eq!(named("PassthroughCluster").name.as_deref(), Some("PassthroughCluster"));
        assert_eq!(ClusterHints::read("BlackHoleCluster", None).service.unwrap().host, None);
    }
}
