//! Authorization of connections by a service outside (`envoy.extensions.filters.network.ext_authz.v3`).
//!
//! Owns whom to ask and what the service is told. Never asks.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::extensions::filters::network::ext_authz::v3 as pb;

use super::stat_prefix_of;
use crate::context::Context;
use crate::decide::decide;
use crate::matching::MetadataMatcher;
use crate::rejection::{FieldPath, Parsed};
use crate::source::{self, GrpcCall};

/// Source: `envoy.extensions.filters.network.ext_authz.v3.ExtAuthz`.
#[derive(Clone, Debug)]
pub struct ExtAuthz {
    /// The `<prefix>` in `ext_authz.<prefix>.*` stats.
    pub stat_prefix: Arc<str>,
    /// Whom to ask; always with a time limit.
    pub service: GrpcCall,
    /// Connections that the service said nothing about go on.
    pub failure_mode_allow: bool,
    /// The service is told the certificate of the client.
    pub tells_certificate: bool,
    /// The service is told the server name of the TLS connection.
    pub tells_tls_session: bool,
    /// Only connections with such metadata are asked about.
    pub enabled_metadata: Option<MetadataMatcher>,
    /// Namespaces of dynamic metadata that the service is told.
    pub metadata_namespaces: Vec<String>,
    /// What the service says is only told; every connection goes on.
    pub shadow: bool,
    /// What our node says of itself under this key is told as labels of ours; nothing if empty.
    pub labels_key: String,
}

impl ExtAuthz {
    /// Reads the message at `at`.
    pub(crate) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::ExtAuthz) -> Parsed<Self> {
        decide!(wire, at, pb::ExtAuthz as "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz" {
            implemented: stat_prefix, grpc_service, failure_mode_allow, include_peer_certificate,
                transport_api_version, filter_enabled_metadata, include_tls_session, metadata_context_namespaces,
                shadow_mode, bootstrap_metadata_labels_key;
            no_effect: typed_metadata_context_namespaces = "no filter sets typed metadata";
            unsupported: send_tls_alert_on_denial;
        });
        source::api_version(&at.field("transport_api_version"), transport_api_version)?;
        let service_at = at.field("grpc_service");
        let Some(wire) = grpc_service else { return Err(service_at.reject("is required")) };
        let service = source::grpc_call(context, &service_at, wire, DEFAULT_TIMEOUT)?;
        if service.timeout.is_none() {
            // Nothing else would end the wait of a connection whose service never answers.
            return Err(service_at.field("timeout").reject("must be above 0"));
        }
        let enabled_metadata = filter_enabled_metadata
            .map(|wire| MetadataMatcher::parse(&at.field("filter_enabled_metadata"), wire))
            .transpose()?;
        Ok(Self {
            stat_prefix: stat_prefix_of(at, stat_prefix)?,
            service,
            failure_mode_allow,
            tells_certificate: include_peer_certificate,
            tells_tls_session: include_tls_session,
            enabled_metadata,
            metadata_namespaces: metadata_context_namespaces,
            shadow: shadow_mode,
            labels_key: bootstrap_metadata_labels_key,
        })
    }
}

/// Of a gRPC service without a timeout.
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use outrigger_api::pb::envoy::config::core::v3 as core;

    use super::*;
    use crate::context::NoEnvironment;

    fn read(change: impl FnOnce(&mut pb::ExtAuthz)) -> Result<ExtAuthz, String> {
        let target = core::grpc_service::EnvoyGrpc { cluster_name: "authz".into(), ..Default::default() };
        let service = core::GrpcService {
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(target)),
            ..Default::default()
        };
        let mut wire = pb::ExtAuthz {
            stat_prefix: "a".into(),
            grpc_service: Some(service),
            transport_api_version: core::ApiVersion::V3 as i32,
            ..Default::default()
        };
        change(&mut wire);
        let at = FieldPath::Resource { kind: "filter", name: "" };
        ExtAuthz::parse(&Context::new(&NoEnvironment), &at, wire).map_err(|error| error.to_string())
    }

    #[test]
    fn a_question_always_has_a_time_limit() {
        assert_eq!(read(|_| {}).unwrap().service.timeout, Some(DEFAULT_TIMEOUT));
        let error = read(|wire| {
            wire.grpc_service.as_mut().unwrap().timeout = Some(Default::default());
        });
        assert!(error.unwrap_err().ends_with("grpc_service.timeout: must be above 0"));
        let error = read(|wire| wire.stat_prefix.clear()).unwrap_err();
        assert!(error.ends_with("stat_prefix: must not be empty"), "{error}");
    }
}
