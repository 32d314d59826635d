//! PING on HTTP/2 connections (`KeepaliveSettings`, and where nothing is said of it).
//!
//! Owns the rhythm of PINGs and the verdict on a peer that does not answer. Never closes the connection itself.

use std::time::{Duration, Instant};

use h2::{Ping, PingPong};
use outrigger_config::http::Http2Keepalive;

/// Ends when a peer that should be saying something is gone: while streams wait and nothing has come for a while, it is
/// asked whether it is there. `heard` counts what has come, `waits` says whether streams are open.
///
/// Servers of gRPC take offence at frequent PINGs on streams without data; seldom ones, and the first, they allow.
pub async fn watch_silence(mut pings: PingPong, heard: impl Fn() -> u64, waits: impl Fn() -> bool) {
    let mut before = heard();
    let mut asked: Option<Instant> = None;
    loop {
        tokio::time::sleep(SILENCE).await;
        let now = heard();
        let is_silent = std::mem::replace(&mut before, now) == now;
        if !is_silent || !waits() || asked.is_some_and(|asked| asked.elapsed() < BETWEEN_QUESTIONS) {
            continue;
        }
        match tokio::time::timeout(ANSWER, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
        asked = Some(Instant::now());
        before = heard();
    }
}

const SILENCE: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(10);
/// Above the five minutes that servers of gRPC ask for unless told otherwise.
const BETWEEN_QUESTIONS: Duration = Duration::from_secs(310);

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
