//! The xDS protocol without sockets, clock or randomness.
//!
//! Owns what a stream or a file source knows and decides. Never performs I/O: time ([`std::time::Instant`]) and jitter
//! come in as arguments, requests and events are fetched with `poll_*`.
//!
//! [`StreamCore`] is one gRPC stream (aggregated or of one type, state of the world or delta); [`FileCore`] one file.
//! Both keep a `typed::TypedState` per resource type: the subscription, the cache of accepted resources, its statistics.

mod answers;
pub mod backoff;
mod cache;
mod decode;
mod delta;
mod file_core;
pub mod nack;
mod rate_limit;
mod resource_kind;
mod sotw;
pub mod stats;
mod stream;
mod subscription;
mod timers;
mod typed;
mod update;

pub use backoff::Backoff;
pub use cache::{Failure, Held};
pub use file_core::FileCore;
pub use rate_limit::RateLimit;
pub use resource_kind::ResourceKind;
pub(crate) use resource_kind::{ADS_DELTA_PATH, ADS_SOTW_PATH};
pub use stats::TypeStats;
pub use stream::{Ending, Protocol, Request, Response, StreamCore, StreamOptions};
pub use subscription::Interest;
pub use typed::TypedState;
pub use update::{Event, Origin, Rejection, ResourceUpdate, Update};
