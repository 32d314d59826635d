//! The harness of the end-to-end scenarios: a proxy under test, clients, and upstreams that obey the request.
//!
//! The proxy is the real binary: `target/debug/outrigger`, or what `OUTRIGGER_BIN` names. A scenario is to pass with
//! `OUTRIGGER_BIN=envoy` as well, unless it says that it tests something of our own.
//! Every port is taken by binding port 0, every wait is bounded, and scenarios may run side by side.

pub mod asked_service;
pub mod authorization_server;
pub mod certificates;
pub mod collector;
pub mod config;
pub mod dns;
pub mod frames;
pub mod grpc_server;
pub mod h1;
pub mod h2c;
pub mod load;
pub mod load_service;
pub mod log_service;
pub mod metrics;
pub mod processor;
pub mod programs;
pub mod prometheus;
pub mod proxy;
pub mod reply;
pub mod response;
pub mod side_by_side;
pub mod tcp;
pub mod tokens;
pub mod upstream;

use std::time::Duration;

pub use crate::asked_service::AskedService;
pub use crate::authorization_server::AuthorizationServer;
pub use crate::processor::ProcessingService;
pub use crate::prometheus::Prometheus;
pub use crate::proxy::{Proxy, Settings};
pub use crate::response::Response;
pub use crate::upstream::Upstream;

/// The bound of every wait: far beyond what anything here takes on a machine with ten times as much to do as it can, so that
/// only what hangs reaches it.
pub const SOON: Duration = Duration::from_secs(180);

/// Pause between two looks at something that gives no notice, such as an admin page.
pub const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Waits for `future`, at most [`SOON`].
///
/// # Panics
/// When the time is over.
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(SOON, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: nothing happened within {SOON:?}"),
    }
}

/// Looks again and again until `look` finds something, at most [`SOON`].
///
/// # Panics
/// When the time is over; the message carries what `look` said last.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) if tokio::time::Instant::now() >= deadline => panic!("{what}: not within {SOON:?}; seen: {seen}"),
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}
