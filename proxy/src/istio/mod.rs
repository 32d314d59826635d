//! What a proxy of a mesh tells other workloads about its own.
//!
//! Owns the words (see [`Workload`]) and the exchange of them at the beginning of TCP connections (see
//! [`Introduced`]). Headers with the same words are for the HTTP filter. What is
//! counted of streams by their workloads is in [`metrics`].

mod introduction;
pub mod metrics;
mod peer;
mod preamble;
mod workload;

pub use introduction::{ExchangeStats, Introduced, hear_nothing, introduce};
pub use metrics::Mesh;
pub use peer::{Heard, KnownPeers, Peer, Peers, Told};
pub use workload::{ID_HEADER, METADATA_HEADER, Words, Workload};
