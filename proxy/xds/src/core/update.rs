//! What passes between the protocol and the one who judges resources.
//!
//! Owns the shapes only. Never decides anything.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::google::protobuf::Any;

use super::ResourceKind;

/// News about one type. Every response yields one update, also when nothing changed (all lists empty): it tells that
/// the control plane has answered for this type.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// The type of all resources in this update.
    pub kind: ResourceKind,
    /// `version_info` or `system_version_info`; opaque, may be empty, never to be compared for order.
    pub version: String,
    /// Resources that are new or differ from what was last accepted. Those that are byte for byte the same are left out.
    pub added: Vec<ResourceUpdate>,
    /// Names of those that are left out of `added`: the control plane has confirmed what is held.
    pub confirmed: Vec<String>,
    /// Names of accepted resources that no longer exist.
    pub removed: Vec<String>,
    /// Names that were asked for and do not exist, of which nothing is held.
    pub absent: Vec<String>,
    /// Whether this came from a response that states the whole set (state of the world, listeners and clusters).
    pub full_state: bool,
    /// Why this update comes now.
    pub origin: Origin,
}

/// Why an [`Update`] is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// A response or a file; the verdict becomes its ACK or NACK.
    Server,
    /// A name was given up and wanted again before the control plane heard of it: what is held is handed over again.
    Cache,
    /// The time to live of the removed resources has ended.
    Expiry,
}

/// One new or changed resource.
#[derive(Clone, Debug, PartialEq)]
pub struct ResourceUpdate {
    /// Name of the resource: the one it was asked for by.
    pub name: String,
    /// Version of this resource; in state of the world that of the response, unless a wrapper gave its own.
    pub version: String,
    /// The resource as received. Shared with the client's cache, so keeping it costs nothing more.
    pub resource: Arc<Any>,
    /// Time to live (`Resource.ttl`), if the server set one. The client watches it; this is for information.
    pub ttl: Option<Duration>,
    /// Other names of the same resource (`Resource.aliases`, virtual hosts only).
    pub aliases: Vec<String>,
}

/// A resource that cannot be accepted, and why. Travels to the control plane in the NACK.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rejection {
    /// Name of the resource, or its place (`resources[3]`) if it has no readable name.
    pub name: String,
    /// The reason, for a person to read.
    pub message: String,
}

/// Something that happened without a response.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// News from the cache or an ended time to live. Needs no ACK; see [`Origin`].
    Update(Update),
    /// `initial_fetch_timeout` passed; `name` is `None` for the wildcard. A later response is still applied.
    FetchTimeout {
        /// Type that was waited for.
        kind: ResourceKind,
        /// Name that was waited for.
        name: Option<String>,
    },
    /// The stream was established or lost.
    Connected(bool),
}
