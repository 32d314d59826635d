//! Users who sign in at an authorization server: the same configurations, servers and browsers for Envoy and for the proxy
//! under test, and users who go from the one to the other.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

mod across;
mod browser;
mod chains;
mod same_as_envoy;
