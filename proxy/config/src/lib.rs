//! Turns Envoy API messages into the typed configuration that the data plane runs on.
//!
//! Each API message is destructured completely where it is read, so every field is implemented, without effect for a
//! stated reason, or refused with its path. No I/O, no clock and no randomness: files and environment variables come
//! through [`Environment`].

// Deprecated fields of the API are decided like all others.
#![allow(deprecated)]

pub mod accesslog;
pub mod address;
mod address_parse;
pub mod bootstrap;
pub mod cel;
pub mod cluster;
mod context;
pub mod coverage;
mod decide;
pub mod dns;
pub mod extension;
pub mod format;
pub mod http;
pub mod http_uri;
pub mod istio;
pub mod jwks;
pub mod listener;
pub mod matcher;
pub mod matching;
pub mod metadata;
pub mod network;
pub mod overload;
pub mod rate_limit;
pub mod rbac;
mod rejection;
pub mod route;
pub mod source;
pub mod tcp;
pub mod tls;
pub mod tracing;
pub mod units;
mod wire;

pub use context::{Context, Environment};
pub use rejection::{FieldPath, Parsed, Rejection};
