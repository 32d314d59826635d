//! The resource types of xDS: their type URLs, short names, and the rules that differ between them.
//!
//! Never holds resources (see `state`) or speaks to clients (see `session_sotw`, `session_delta`).

/// Prefix of every type URL.
pub const PREFIX: &str = "type.googleapis.com/";
/// `envoy.config.cluster.v3.Cluster` (CDS).
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// `envoy.config.endpoint.v3.ClusterLoadAssignment` (EDS).
pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// `envoy.config.listener.v3.Listener` (LDS).
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// `envoy.config.route.v3.RouteConfiguration` (RDS).
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// `envoy.config.route.v3.ScopedRouteConfiguration` (SRDS).
pub const SCOPED_ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
/// `envoy.config.route.v3.VirtualHost` (VHDS).
pub const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
/// `envoy.extensions.transport_sockets.tls.v3.Secret` (SDS).
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// `envoy.service.runtime.v3.Runtime` (RTDS).
pub const RUNTIME: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
/// `envoy.config.core.v3.TypedExtensionConfig` (ECDS).
pub const EXTENSION_CONFIG: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
/// `envoy.service.discovery.v3.Resource`, the wrapper that carries a name, a version and a TTL.
pub const RESOURCE: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// Short names that people type, with the type each stands for, in the order an aggregated stream
/// sends them: what is referred to comes before what refers to it, except that a name must have
/// been asked for first.
const TYPES: [(&str, &str); 9] = [
    ("rtds", RUNTIME),
    ("sds", SECRET),
    ("cds", CLUSTER),
    ("eds", ENDPOINTS),
    ("ecds", EXTENSION_CONFIG),
    ("lds", LISTENER),
    ("srds", SCOPED_ROUTE),
    ("rds", ROUTE),
    ("vhds", VIRTUAL_HOST),
];

/// The type URL for a short name (`cds`), a full message name, or a type URL; in any other form the
/// text is taken as a full message name.
pub fn resolve(text: &str) -> String {
    let short = text.to_ascii_lowercase();
    if let Some((_, url)) = TYPES.iter().find(|(name, _)| *name == short) {
        return (*url).to_owned();
    }
    if text.contains('/') { text.to_owned() } else { format!("{PREFIX}{text}") }
}

/// The short name of `type_url` if it has one, else the type URL itself.
pub fn short_name(type_url: &str) -> &str {
    TYPES.iter().find(|(_, url)| *url == type_url).map_or(type_url, |(name, _)| name)
}

/// Whether a state-of-the-world response names everything that exists, so that absence is removal.
pub(crate) fn is_full_state(type_url: &str) -> bool {
    matches!(type_url, CLUSTER | LISTENER | SCOPED_ROUTE)
}

/// Whether a first request without names asks for everything. The types that a parent resource
/// refers to by name are never asked for as a whole that way.
pub(crate) fn empty_means_everything(type_url: &str) -> bool {
    !matches!(type_url, ENDPOINTS | ROUTE | SECRET | RUNTIME | EXTENSION_CONFIG)
}

/// Place of `type_url` among the responses of an aggregated stream; unknown types come last.
pub(crate) fn push_order(type_url: &str) -> usize {
    TYPES.iter().position(|(_, url)| *url == type_url).unwrap_or(TYPES.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_resolve_to_type_urls() {
        for (text, url) in [
            ("cds", CLUSTER),
            ("LDS", LISTENER),
            (CLUSTER, CLUSTER),
            ("envoy.config.route.v3.RouteConfiguration", ROUTE),
            ("example.Thing", "type.googleapis.com/example.Thing"),
        ] {
            assert_eq!(resolve(text), url, "{text}");
        }
        assert_eq!(short_name(SECRET), "sds");
        assert_eq!(short_name("type.googleapis.com/example.Thing"), "type.googleapis.com/example.Thing");
    }

    #[test]
    fn clusters_are_sent_before_what_needs_them() {
        for pair in [CLUSTER, ENDPOINTS, LISTENER, ROUTE].windows(2) {
            assert!(push_order(pair[0]) < push_order(pair[1]), "{pair:?}");
        }
    }
}
