//! Authentication by JSON Web Tokens, passwords and API keys: the same configurations, tokens and requests for Envoy and for the proxy under
//! test, keys that are fetched, and a mesh that authorises by claims.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

mod chains;
mod credentials;
mod remote;
mod same_as_envoy;
mod setup;
