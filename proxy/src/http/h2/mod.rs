//! HTTP/2 on both sides, on the `h2` crate.
//!
//! Owns the conversion between its types and the seam's. Never routes.

pub mod body;
pub mod convert;
pub mod cork;
pub mod guard;
pub mod keepalive;
mod names;
pub mod server;
pub mod stats;
