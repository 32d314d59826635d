//! What a proxy of a mesh tells other workloads about its own.
//!
//! Owns the words (see [`Workload`]) and the exchange of them at the beginning of TCP connections (see
//! [`Introduced`]). Headers with the same words are for the HTTP filter.

mod introduction;
mod preamble;
mod workload;

use std::sync::Once;

pub use introduction::{ExchangeStats, Introduced, introduce};
pub use workload::{ID_HEADER, METADATA_HEADER, Words, Workload};

/// Says once that a configuration asks for metrics that nobody gets.
pub fn warn_of_missing_metrics() {
    static SAID: Once = Once::new();
    SAID.call_once(|| tracing::warn!("Istio's standard metrics are not emitted, although a listener asks for them"));
}
