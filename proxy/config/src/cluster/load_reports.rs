//! Where a cluster reports its load to (`Cluster.lrs_server`).
//!
//! Owns which sources can take reports. Never sends one.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;

use crate::context::Context;
use crate::rejection::{FieldPath, Parsed};
use crate::source::{ApiSource, ConfigSource, SourceKind, config_source};

/// The server that load is reported to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LoadReports {
    /// The one that the cluster itself came from (`self`); that of ADS for a static cluster.
    SameServer,
    /// That of ADS.
    Ads,
    /// Its own.
    Api(Arc<ApiSource>),
}

pub(super) fn load_reports(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<core::ConfigSource>,
) -> Parsed<Option<LoadReports>> {
    let Some(wire) = wire else { return Ok(None) };
    if let Some(ConfigSourceSpecifier::Self_(_)) = wire.config_source_specifier {
        return Ok(Some(LoadReports::SameServer));
    }
    let ConfigSource { kind, initial_fetch_timeout: _ } = config_source(context, at, wire)?;
    match kind {
        SourceKind::Ads => Ok(Some(LoadReports::Ads)),
        SourceKind::Api(api) => Ok(Some(LoadReports::Api(api))),
        SourceKind::File(_) => Err(at.reject("a file takes no load reports, expected self, ads or api_config_source")),
    }
}

#[cfg(test)]
mod tests {
    use outrigger_api::{ParseOptions, Schema};

    use super::*;
    use crate::context::NoEnvironment;

    fn read(yaml: &str) -> Result<LoadReports, String> {
        let wire = Schema::load().parse_yaml(yaml, ParseOptions::default()).unwrap().message;
        let root = FieldPath::resource("cluster", "c");
        let read = load_reports(&Context::new(&NoEnvironment), &root.field("lrs_server"), Some(wire));
        read.map(Option::unwrap).map_err(|error| error.to_string())
    }

    #[test]
    fn reports_go_to_a_server() {
        assert_eq!(read("{self: {}}"), Ok(LoadReports::SameServer));
        assert_eq!(read("{ads: {}, resource_api_version: V3}"), Ok(LoadReports::Ads));
        let api = "{api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: \
                   {cluster_name: lrs}}]}, resource_api_version: V3}";
        assert!(matches!(read(api), Ok(LoadReports::Api(api)) if api.services.len() == 1));
        let file = read("{path_config_source: {path: /a}, resource_api_version: V3}").unwrap_err();
        assert!(file.starts_with("cluster \"c\": lrs_server: a file takes no load reports"), "{file}");
    }
}
