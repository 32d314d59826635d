//! What the client shows to the admin endpoints.
//!
//! Owns the shapes and how they are filled from the protocol state. Never formats them.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use outrigger_api::pb::google::protobuf::Any;

use crate::core::{ResourceKind, TypeStats, TypedState};
use crate::source::SourceKey;

/// Counters of all sources.
#[derive(Clone, Debug, Default)]
pub struct XdsStats {
    /// One entry for each stream and file.
    pub sources: Vec<SourceStats>,
}

/// Counters of one stream or file.
#[derive(Clone, Debug)]
pub struct SourceStats {
    /// Which.
    pub key: SourceKey,
    /// `control_plane.connected_state`; always true for a file.
    pub connected: bool,
    /// `control_plane.identifier`, empty if the server does not say.
    pub control_plane: String,
    /// Its types.
    pub types: Vec<TypeSummary>,
}

/// Counters of one type on one source.
#[derive(Clone, Debug)]
pub struct TypeSummary {
    /// The type.
    pub kind: ResourceKind,
    /// The counters.
    pub stats: TypeStats,
    /// `update_time`: when the last response was accepted.
    pub updated_at: Option<SystemTime>,
    /// Resources in use.
    pub held: usize,
}

/// All resources of one stream or file.
#[derive(Clone, Debug)]
pub struct SourceSnapshot {
    /// Which.
    pub key: SourceKey,
    /// Its types.
    pub types: Vec<TypeSnapshot>,
}

/// All resources of one type on one source.
#[derive(Clone, Debug)]
pub struct TypeSnapshot {
    /// The type.
    pub kind: ResourceKind,
    /// Version of the last accepted response.
    pub version: String,
    /// The resources, by name.
    pub resources: Vec<ResourceSnapshot>,
}

/// One resource.
#[derive(Clone, Debug)]
pub struct ResourceSnapshot {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub status: ResourceStatus,
    /// Version in use; empty if none is.
    pub version: String,
    /// When the version in use was accepted.
    pub updated_at: Option<SystemTime>,
    /// The resource in use.
    pub resource: Option<Arc<Any>>,
    /// Why the latest one was refused, with its version.
    pub error: Option<(String, String)>,
}

/// Where a resource stands. Names follow `envoy.admin.v3.ClientResourceStatus`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ResourceStatus {
    /// Asked for, nothing received.
    Requested,
    /// Accepted.
    Acked,
    /// The latest one was refused; an earlier one may be in use.
    Nacked,
}

/// Translates between the clock of the protocol and that of people.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epoch {
    monotonic: Instant,
    system: SystemTime,
}

impl Epoch {
    pub(crate) fn new(monotonic: Instant, system: SystemTime) -> Self {
        Self { monotonic, system }
    }

    fn system_time(self, at: Instant) -> SystemTime {
        self.system + at.saturating_duration_since(self.monotonic)
    }
}

pub(crate) fn summary(state: &TypedState, epoch: Epoch) -> TypeSummary {
    let stats = state.stats().clone();
    TypeSummary {
        kind: state.kind(),
        updated_at: stats.updated.map(|at| epoch.system_time(at)),
        stats,
        held: state.held_count(),
    }
}

pub(crate) fn snapshot(state: &TypedState, epoch: Epoch) -> TypeSnapshot {
    let mut resources: Vec<ResourceSnapshot> = state
        .held()
        .map(|(name, held)| ResourceSnapshot {
            name: name.to_owned(),
            status: ResourceStatus::Acked,
            version: held.version.clone(),
            updated_at: Some(epoch.system_time(held.updated)),
            resource: Some(Arc::clone(&held.resource)),
            error: None,
        })
        .collect();
    let missing = state.missing().map(|name| empty(name, ResourceStatus::Requested));
    resources.extend(missing);
    resources.sort_by(|a, b| a.name.cmp(&b.name));
    let mut refused = Vec::new();
    for (name, failure) in state.failures() {
        let error = Some((failure.version.clone(), failure.message.clone()));
        match resources.binary_search_by(|resource| resource.name.as_str().cmp(name)) {
            Ok(at) => {
                resources[at].status = ResourceStatus::Nacked;
                resources[at].error = error;
            }
            Err(_) => refused.push(ResourceSnapshot { error, ..empty(name, ResourceStatus::Nacked) }),
        }
    }
    resources.extend(refused);
    resources.sort_by(|a, b| a.name.cmp(&b.name));
    TypeSnapshot { kind: state.kind(), version: state.stats().version.clone(), resources }
}

fn empty(name: &str, status: ResourceStatus) -> ResourceSnapshot {
    ResourceSnapshot {
        name: name.to_owned(),
        status,
        version: String::new(),
        updated_at: None,
        resource: None,
        error: None,
    }
}
