//! Reading the policy that lets requests name their endpoints (`OverrideHost`).
//!
//! Owns where the names come from, and how fit an endpoint must be that is named. Never looks at a request.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::load_balancing_policies::override_host::v3 as pb;
use outrigger_api::pb::envoy::r#type::metadata::v3::MetadataKey;
use outrigger_api::pb::envoy::r#type::metadata::v3::metadata_key::PathSegment;
use outrigger_api::pb::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;

use crate::cluster::HealthStatus;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// How requests name endpoints.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OverrideHosts {
    /// All of them are read, in this order; at least one.
    pub sources: Vec<OverrideSource>,
    /// Where the address of the chosen endpoint is told, in dynamic metadata.
    pub selected: Option<MetadataPath>,
}

/// Where a request lists addresses, separated by commas.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum OverrideSource {
    /// A header, by its name in lower case.
    Header(Arc<str>),
    /// A string in dynamic metadata.
    Metadata(MetadataPath),
}

/// A place in dynamic metadata. Source: `envoy.type.metadata.v3.MetadataKey`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MetadataPath {
    /// The namespace.
    pub namespace: Arc<str>,
    /// Names from the outside in; at least one.
    pub keys: Vec<Arc<str>>,
}

/// How fit an endpoint must be that a request names. Source: `CommonLbConfig.override_host_status`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OverrideStatus(u8);

impl OverrideStatus {
    /// Endpoints in one of `statuses`.
    pub fn of(statuses: impl IntoIterator<Item = HealthStatus>) -> Self {
        Self(statuses.into_iter().fold(0, |set, status| set | 1 << status as u8))
    }

    /// Whether an endpoint in this status is taken.
    pub fn takes(self, status: HealthStatus) -> bool {
        self.0 & 1 << status as u8 != 0
    }
}

/// Those that take requests.
impl Default for OverrideStatus {
    fn default() -> Self {
        Self::of([HealthStatus::Unknown, HealthStatus::Healthy, HealthStatus::Degraded])
    }
}

/// Reads the extension; its fallback policy is left to the caller.
pub(super) fn override_hosts(
    at: &FieldPath<'_>,
    sources: Vec<pb::override_host::OverrideHostSource>,
    selected_host_key: Option<MetadataKey>,
) -> Parsed<OverrideHosts> {
    let sources_at = at.field("override_host_sources");
    if sources.is_empty() {
        return Err(sources_at.reject("must not be empty"));
    }
    let sources = wire::each(&sources_at, sources, |at, wire| {
        decide!(wire, at, pb::override_host::OverrideHostSource
            as "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost.OverrideHostSource" {
            implemented: header, metadata;
            no_effect: ;
            unsupported: ;
        });
        match (header.is_empty(), metadata) {
            (false, None) => Ok(OverrideSource::Header(header.to_ascii_lowercase().into())),
            (true, Some(key)) => Ok(OverrideSource::Metadata(metadata_path(&at.field("metadata"), key)?)),
            _ => Err(at.reject("needs one of header, metadata")),
        }
    })?;
    let selected_at = at.field("selected_host_key");
    let selected = selected_host_key.map(|key| metadata_path(&selected_at, key)).transpose()?;
    Ok(OverrideHosts { sources, selected })
}

/// Reads a place in dynamic metadata.
pub(in crate::cluster) fn metadata_path(at: &FieldPath<'_>, wire: MetadataKey) -> Parsed<MetadataPath> {
    decide!(wire, at, MetadataKey as "envoy.type.metadata.v3.MetadataKey" {
        implemented: key, path;
        no_effect: ;
        unsupported: ;
    });
    if key.is_empty() {
        return Err(at.field("key").reject("must not be empty"));
    }
    let path_at = at.field("path");
    if path.is_empty() {
        return Err(path_at.reject("must not be empty"));
    }
    let keys = wire::each(&path_at, path, |at, PathSegment { segment }| match segment {
        Some(Segment::Key(key)) if !key.is_empty() => Ok(key.into()),
        Some(Segment::Index(_)) => Err(at.field("index").unsupported()),
        Some(Segment::Key(_)) | None => Err(at.field("key").reject("must not be empty")),
    })?;
    Ok(MetadataPath { namespace: key.into(), keys })
}

/// Reads `override_host_status`.
pub(super) fn override_status(at: &FieldPath<'_>, wire: Option<core::HealthStatusSet>) -> Parsed<OverrideStatus> {
    let Some(core::HealthStatusSet { statuses }) = wire else { return Ok(OverrideStatus::default()) };
    let statuses = wire::each(&at.field("statuses"), statuses, crate::cluster::endpoints::health_status_of)?;
    Ok(OverrideStatus::of(statuses))
}
