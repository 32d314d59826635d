//! Envoy API messages, the messages that meshes send beside them, and the JSON and YAML forms of both.
//!
//! This crate owns the translation between text and protobuf bytes. It never judges what a message means: ranges,
//! required fields and unsupported features are for `outrigger-config`.

mod any;
mod json;
mod newer;
mod schema;
mod typed_struct;
mod wire;
mod yaml;

pub use any::{UnpackError, pack, type_name, type_url, unpack};
pub use envoy_types::pb;
pub use json::{JsonError, JsonStyle, JsonView, Names, ParseOptions, Parsed, Problem, UnknownFields, UnknownTypes};
pub use newer::{NewerFields, NewerHealthCheck};
pub use schema::{Format, Schema};
pub use typed_struct::{flatten_typed_structs, unwrap_typed_struct};

/// Messages of `xds.*` that `pb` lacks.
pub mod xds {
    /// `xds.type.v3`.
    pub mod type_v3 {
        include!(concat!(env!("OUT_DIR"), "/xds.r#type.v3.rs"));
    }

    /// `xds.type.matcher.v3`.
    pub mod matcher_v3 {
        include!(concat!(env!("OUT_DIR"), "/xds.r#type.matcher.v3.rs"));
    }
}

/// Messages of `udpa.*` that `pb` lacks.
pub mod udpa {
    /// `udpa.type.v1`.
    pub mod type_v1 {
        include!(concat!(env!("OUT_DIR"), "/udpa.r#type.v1.rs"));
    }
}

/// Messages of Istio's own extensions.
pub mod istio {
    /// `istio.envoy.config.filter.http.alpn.v2alpha1`.
    pub mod alpn {
        include!(concat!(env!("OUT_DIR"), "/istio.envoy.config.filter.http.alpn.v2alpha1.rs"));
    }

    /// `envoy.tcp.metadataexchange.config`.
    pub mod metadata_exchange {
        include!(concat!(env!("OUT_DIR"), "/envoy.tcp.metadataexchange.config.rs"));
    }

    /// `io.istio.http.peer_metadata`.
    pub mod peer_metadata {
        include!(concat!(env!("OUT_DIR"), "/io.istio.http.peer_metadata.rs"));
    }

    /// `stats`.
    pub mod stats {
        include!(concat!(env!("OUT_DIR"), "/stats.rs"));
    }
}

/// Messages of our own, for what the Envoy API has no field for.
pub mod outrigger {
    /// `outrigger.formatter.v1`.
    pub mod formatter_v1 {
        include!(concat!(env!("OUT_DIR"), "/outrigger.formatter.v1.rs"));
    }

    /// `outrigger.health.v1`.
    pub mod health_v1 {
        include!(concat!(env!("OUT_DIR"), "/outrigger.health.v1.rs"));
    }

    /// `outrigger.lb.v1`.
    pub mod lb_v1 {
        include!(concat!(env!("OUT_DIR"), "/outrigger.lb.v1.rs"));
    }

    /// `outrigger.tls.v1`.
    pub mod tls_v1 {
        include!(concat!(env!("OUT_DIR"), "/outrigger.tls.v1.rs"));
    }

    /// `outrigger.upstream.v1`.
    pub mod upstream_v1 {
        include!(concat!(env!("OUT_DIR"), "/outrigger.upstream.v1.rs"));
    }
}
