//! The resource types of xDS and the rules that differ between them.
//!
//! Owns type URLs, service paths, how a resource's name is found and what absence and removal mean per type.
//! Never decodes more of a resource than its name.

use prost::Message;

/// A type of resource that can be asked for by xDS (API version 3).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ResourceKind {
    /// CDS, `envoy.config.cluster.v3.Cluster`.
    Cluster,
    /// EDS, `envoy.config.endpoint.v3.ClusterLoadAssignment`.
    ClusterLoadAssignment,
    /// LDS, `envoy.config.listener.v3.Listener`.
    Listener,
    /// RDS, `envoy.config.route.v3.RouteConfiguration`.
    RouteConfiguration,
    /// SRDS, `envoy.config.route.v3.ScopedRouteConfiguration`.
    ScopedRouteConfiguration,
    /// VHDS, `envoy.config.route.v3.VirtualHost` (delta only).
    VirtualHost,
    /// SDS, `envoy.extensions.transport_sockets.tls.v3.Secret`.
    Secret,
    /// RTDS, `envoy.service.runtime.v3.Runtime`.
    Runtime,
    /// ECDS, `envoy.config.core.v3.TypedExtensionConfig`.
    ExtensionConfig,
}

/// Path of `AggregatedDiscoveryService.StreamAggregatedResources`.
pub(crate) const ADS_SOTW_PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
/// Path of `AggregatedDiscoveryService.DeltaAggregatedResources`.
pub(crate) const ADS_DELTA_PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

impl ResourceKind {
    /// Every kind, in the order in which dependent types are best asked for.
    pub const ALL: [ResourceKind; 9] = [
        ResourceKind::Cluster,
        ResourceKind::ClusterLoadAssignment,
        ResourceKind::Listener,
        ResourceKind::RouteConfiguration,
        ResourceKind::ScopedRouteConfiguration,
        ResourceKind::VirtualHost,
        ResourceKind::Secret,
        ResourceKind::Runtime,
        ResourceKind::ExtensionConfig,
    ];

    /// The kind that `type_url` names, or `None` for a type this client does not speak.
    #[must_use]
    pub fn from_type_url(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// The type URL as sent in discovery requests.
    #[must_use]
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::ClusterLoadAssignment => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::RouteConfiguration => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::ScopedRouteConfiguration => "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration",
            Self::VirtualHost => "type.googleapis.com/envoy.config.route.v3.VirtualHost",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Runtime => "type.googleapis.com/envoy.service.runtime.v3.Runtime",
            Self::ExtensionConfig => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        }
    }

    /// The word for it in NACK messages, which operators search for.
    #[must_use]
    pub fn noun(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::ClusterLoadAssignment => "endpoint",
            Self::Listener => "listener",
            Self::RouteConfiguration => "route",
            Self::ScopedRouteConfiguration => "scoped route",
            Self::VirtualHost => "virtual host",
            Self::Secret => "secret",
            Self::Runtime => "runtime layer",
            Self::ExtensionConfig => "extension config",
        }
    }

    /// Whether a state-of-the-world response is the whole set, so that absence means removal.
    #[must_use]
    pub fn is_full_state(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener | Self::ScopedRouteConfiguration)
    }

    /// Whether a delta removal is not acted on while something still refers to the resource. Such a resource goes
    /// with the last watch on it: dropping the endpoints of a cluster that still exists would only cause an outage.
    #[must_use]
    pub fn outlives_removal(self) -> bool {
        matches!(self, Self::ClusterLoadAssignment | Self::RouteConfiguration | Self::Secret)
    }

    /// Path of the state-of-the-world method of this type's own service. VHDS has none; its delta path is given.
    #[must_use]
    pub fn sotw_path(self) -> &'static str {
        match self {
            Self::Cluster => "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
            Self::ClusterLoadAssignment => "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints",
            Self::Listener => "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners",
            Self::RouteConfiguration => "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
            Self::ScopedRouteConfiguration => "/envoy.service.route.v3.ScopedRoutesDiscoveryService/StreamScopedRoutes",
            Self::VirtualHost => self.delta_path(),
            Self::Secret => "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
            Self::Runtime => "/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime",
            Self::ExtensionConfig => {
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs"
            }
        }
    }

    /// Path of the delta method of this type's own service.
    #[must_use]
    pub fn delta_path(self) -> &'static str {
        match self {
            Self::Cluster => "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters",
            Self::ClusterLoadAssignment => "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
            Self::Listener => "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners",
            Self::RouteConfiguration => "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
            Self::ScopedRouteConfiguration => "/envoy.service.route.v3.ScopedRoutesDiscoveryService/DeltaScopedRoutes",
            Self::VirtualHost => "/envoy.service.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts",
            Self::Secret => "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
            Self::Runtime => "/envoy.service.runtime.v3.RuntimeDiscoveryService/DeltaRuntime",
            Self::ExtensionConfig => {
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs"
            }
        }
    }

    /// The name inside an encoded resource of this kind.
    ///
    /// All these messages keep their name in field 1 (`ClusterLoadAssignment` calls it `cluster_name`), so one small
    /// decoder serves them all and the rest of the resource is skipped, not built.
    pub fn name_of(self, encoded: &[u8]) -> Result<String, prost::DecodeError> {
        NameOnly::decode(encoded).map(|resource| resource.name)
    }
}

/// The part of a resource that the protocol needs.
#[derive(Clone, PartialEq, prost::Message)]
struct NameOnly {
    #[prost(string, tag = "1")]
    name: String,
}

#[cfg(test)]
mod tests {
    use outrigger_api::pb::envoy::config::{
        cluster::v3::Cluster,
        core::v3::TypedExtensionConfig,
        endpoint::v3::ClusterLoadAssignment,
        listener::v3::Listener,
        route::v3::{RouteConfiguration, ScopedRouteConfiguration, VirtualHost},
    };
    use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
    use outrigger_api::pb::envoy::service::runtime::v3::Runtime;
    use prost::Name;

    use super::*;

    #[test]
    fn type_urls_are_those_of_the_messages() {
        let of_messages = [
            Cluster::type_url(),
            ClusterLoadAssignment::type_url(),
            Listener::type_url(),
            RouteConfiguration::type_url(),
            ScopedRouteConfiguration::type_url(),
            VirtualHost::type_url(),
            Secret::type_url(),
            Runtime::type_url(),
            TypedExtensionConfig::type_url(),
        ];
        for (kind, type_url) in ResourceKind::ALL.into_iter().zip(of_messages) {
            assert_eq!(kind.type_url(), type_url);
            assert_eq!(ResourceKind::from_type_url(&type_url), Some(kind));
        }
        assert_eq!(ResourceKind::from_type_url("type.googleapis.com/envoy.api.v2.Cluster"), None);
    }

    #[test]
    fn every_message_keeps_its_name_in_field_one() {
        fn encoded(message: impl Message) -> Vec<u8> {
            message.encode_to_vec()
        }
        let name = || "a name".to_owned();
        let messages = [
            encoded(Cluster { name: name(), alt_stat_name: "x".into(), ..Cluster::default() }),
            encoded(ClusterLoadAssignment { cluster_name: name(), ..ClusterLoadAssignment::default() }),
            encoded(Listener { name: name(), stat_prefix: "x".into(), ..Listener::default() }),
            encoded(RouteConfiguration { name: name(), ..RouteConfiguration::default() }),
            encoded(ScopedRouteConfiguration { name: name(), ..ScopedRouteConfiguration::default() }),
            encoded(VirtualHost { name: name(), domains: vec!["*".into()], ..VirtualHost::default() }),
            encoded(Secret { name: name(), ..Secret::default() }),
            encoded(Runtime { name: name(), ..Runtime::default() }),
            encoded(TypedExtensionConfig { name: name(), ..TypedExtensionConfig::default() }),
        ];
        for (kind, bytes) in ResourceKind::ALL.into_iter().zip(messages) {
            assert_eq!(kind.name_of(&bytes).unwrap(), "a name", "{kind:?}");
        }
        assert!(ResourceKind::Cluster.name_of(&[0xff, 0xff]).is_err());
    }
}
