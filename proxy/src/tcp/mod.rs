//! TCP connections to clusters (`envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy`).
//!
//! Owns a downstream connection from its accept to its end: where it goes, how its bytes move, and what is told of it
//! afterwards. Never interprets the bytes.

mod departure;
mod direction;
mod own_answer;
mod pace;
mod relay;
mod session;
pub mod stats;
mod tlvs;
pub(crate) mod tunnel;

pub use own_answer::answer;
pub use session::{record_refused, serve};
