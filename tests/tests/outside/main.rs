//! Services outside that filters ask about requests: what is told of their calls, and whom they can be.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

mod facts;
mod google_grpc;
mod spans;
mod streams;
