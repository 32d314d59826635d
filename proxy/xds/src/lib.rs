//! The xDS client: a pure protocol core and a thin gRPC and file transport.
//!
//! Owns the conversation with control planes: subscriptions, versions, nonces, ACK and NACK, wildcard rules, TTLs,
//! reconnection, and files that stand in for a control plane. Never looks inside a resource further than its name:
//! what a listener or a cluster means, and whether it is acceptable, is the [`Handler`]'s judgement.
//!
//! ```text
//! Handler <--Update-- Driver --events--> core::StreamCore (one per stream) / core::FileCore (one per file and type)
//!    |                  |  ^
//!    +--watch/unwatch---+  +--- transport (tonic, one task per stream), FileWatcher (inotify, one task per file)
//! ```
//!
//! [`XdsClient`] is the handle, [`Driver`] the loop that runs on the control thread, [`SourceConfig`] says where a
//! resource comes from. Everything in [`core`] takes time and randomness as arguments.

mod client;
pub mod connector;
pub mod core;
mod file;
mod metadata;
mod snapshot;
mod source;
mod transport;

pub use crate::client::{Driver, Handler, WatchId, XdsClient};
pub use crate::connector::Connector;
pub use crate::core::{
    Interest, Origin, Protocol, RateLimit, Rejection, ResourceKind, ResourceUpdate, TypeStats, Update,
};
pub use crate::file::FileWatcher;
pub use crate::metadata::{CallMetadata, InvalidMetadata, metadata};
pub use crate::snapshot::{
    ResourceSnapshot, ResourceStatus, SourceSnapshot, SourceStats, TypeSnapshot, TypeSummary, XdsStats,
};
pub use crate::source::{
    FileSource, GrpcSource, Http2Keepalive, ParseDiscoveryResponse, Source, SourceConfig, SourceKey,
};
