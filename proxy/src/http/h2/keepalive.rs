//! PING on HTTP/2 connections (`KeepaliveSettings`).
//!
//! Owns the rhythm of PINGs and the verdict on a peer that does not answer. Never closes the connection itself.

use h2::{Ping, PingPong};
use outrigger_config::http::Http2Keepalive;

/// Ends when the peer has not answered a PING in time, or the connection is gone.
pub async fn watch(mut pings: PingPong, keepalive: Http2Keepalive) {
    loop {
        tokio::time::sleep(keepalive.interval).await;
        match tokio::time::timeout(keepalive.timeout, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
