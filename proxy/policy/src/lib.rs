//! What decides: filter chains, routes, load balancing, circuit breaking and retries.
//!
//! Everything here is computed from the checked configuration and from facts given as arguments: no I/O, no clock, no
//! randomness. Indexes are built when the configuration changes, so that a decision costs little and does not allocate
//! on the common path.

pub mod accept_encoding;
pub mod admission;
pub mod balance;
pub mod bandwidth;
pub mod breaker;
pub mod cel;
pub mod filter_chain;
pub mod gradient;
pub mod grpc_status;
pub mod happy_eyeballs;
mod hash;
pub mod health;
pub mod jwt;
pub mod matcher;
pub mod oauth2;
pub mod outlier;
pub mod overload;
pub mod queue;
pub mod rate_limit;
pub mod rbac;
pub mod request;
pub mod retry;
pub mod route;
pub mod session;
pub mod token_bucket;
pub mod trace;
pub mod transcoding;
pub mod transport;
