//! What the configuration is and whether it was accepted, resource by resource, as other xDS clients tell it
//! (`envoy.service.status.v3.ClientStatusDiscoveryService`).
//!
//! Owns the answer to one request. Private keys and the like are not in it. Never speaks gRPC (see `grpc`).

use std::time::SystemTime;

use outrigger_api::pb::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use outrigger_api::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use outrigger_api::pb::envoy::service::status::v3::{
    ClientConfig, ClientStatusRequest, ClientStatusResponse, ConfigStatus,
};
use outrigger_api::pb::google::protobuf::{Any, Timestamp};
use outrigger_api::{ParseOptions, Schema, UnknownFields, UnknownTypes};
use outrigger_config::matching::NodeMatcher;
use outrigger_config::{FieldPath, Rejection};
use outrigger_xds::ResourceKind;

use super::context::AdminContext;
use super::dump_sections::any_value;
use crate::graph::history::{Record, Refusal, ResourceHistory};

/// The answer: about this process, if it is meant.
///
/// # Errors
/// When the request is malformed.
#[allow(deprecated)]
pub(super) fn status(context: &AdminContext, request: ClientStatusRequest) -> Result<ClientStatusResponse, Rejection> {
    let ClientStatusRequest { node_matchers, node: _, exclude_resource_contents } = request;
    let root = FieldPath::resource("client status", &context.facts.node.id);
    let matchers = NodeMatcher::list(&root.field("node_matchers"), node_matchers)?;
    let node = &context.facts.node;
    if !matchers.is_empty() && !matchers.iter().any(|matcher| matcher.matches(node)) {
        return Ok(ClientStatusResponse { config: Vec::new() });
    }
    let mut all = Vec::new();
    for kind in ResourceKind::ALL {
        for (name, history) in context.configuration.resources(kind) {
            all.push(resource(kind, &name, &history, !exclude_resource_contents));
        }
    }
    let config = ClientConfig { node: Some(node.clone()), generic_xds_configs: all, ..ClientConfig::default() };
    Ok(ClientStatusResponse { config: vec![config] })
}

fn resource(kind: ResourceKind, name: &str, history: &ResourceHistory, contents: bool) -> GenericXdsConfig {
    let ResourceHistory { is_static, active, warming, draining, refusal, failing_since: _ } = history;
    let record = active.as_ref().or(warming.as_ref()).or(draining.as_ref());
    let (status, client_status) = match (is_static, refusal, record) {
        (true, ..) => (ConfigStatus::Unknown, ClientResourceStatus::Unknown),
        (false, Some(_), _) => (ConfigStatus::Error, ClientResourceStatus::Nacked),
        (false, None, Some(_)) => (ConfigStatus::Synced, ClientResourceStatus::Acked),
        (false, None, None) => (ConfigStatus::NotSent, ClientResourceStatus::Requested),
    };
    GenericXdsConfig {
        type_url: kind.type_url().to_owned(),
        name: name.to_owned(),
        version_info: record.map(|record| record.version.clone()).unwrap_or_default(),
        xds_config: record.filter(|_| contents).and_then(shown),
        last_updated: record.map(|record| timestamp(record.updated)),
        config_status: status.into(),
        client_status: client_status.into(),
        error_state: refusal.as_ref().map(|refusal| failure(refusal, contents)),
        is_static_resource: *is_static,
    }
}

fn failure(refusal: &Refusal, contents: bool) -> UpdateFailureState {
    let Refusal { record, details } = refusal;
    UpdateFailureState {
        failed_configuration: Some(record).filter(|_| contents).and_then(shown),
        last_update_attempt: Some(timestamp(record.updated)),
        details: details.clone(),
        version_info: record.version.clone(),
    }
}

/// A resource without what must stay secret; `None` for what cannot be read, which nobody else could either.
fn shown(record: &Record) -> Option<Any> {
    let value = any_value(record.resource.as_ref()?);
    // Back from JSON, which has no secrets; by way of a message that has such a field.
    let holder = serde_json::json!({ "failed_configuration": value });
    let options = ParseOptions { unknown_fields: UnknownFields::Collect, unknown_types: UnknownTypes::Keep };
    let parsed = Schema::load().parse_value::<UpdateFailureState>(&holder, options).ok()?;
    parsed.message.failed_configuration
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32 }
}
