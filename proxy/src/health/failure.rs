//! Waiting for an endpoint to fail.
//!
//! Owns the wait of those that end with their endpoint's health. Never marks an endpoint.

use std::pin::pin;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::upstream::host::HostShared;

/// Returns when checks or outlier detection keep requests away from `host`. `changed` tells when to look.
pub async fn failed(host: Arc<HostShared>, changed: Arc<Notify>) {
    loop {
        let mut told = pin!(changed.notified());
        // From here on nothing is missed.
        told.as_mut().enable();
        if host.flags.has_failed() {
            return;
        }
        told.await;
    }
}
