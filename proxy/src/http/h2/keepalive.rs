//! PING on HTTP/2 connections (`KeepaliveSettings`, and where nothing is said of it).
//!
//! Owns the rhythm of PINGs and the verdict on a peer that does not answer. Never closes the connection itself.

use std::cell::Cell;
use std::future::pending;
use std::time::{Duration, Instant};

use h2::{Ping, PingPong};
use outrigger_config::http::Http2Keepalive;
use tokio::sync::Notify;

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

/// When a connection that was idle is used again, and so is to be asked whether its peer is still there.
#[derive(Debug)]
pub struct Reuse {
    idle: Duration,
    /// When something was heard of the peer last.
    heard: Cell<Instant>,
    asked: Notify,
}

impl Reuse {
    /// For a connection that counts as idle when nothing was heard for this long.
    pub fn new(idle: Duration) -> Self {
        Self { idle, heard: Cell::new(Instant::now()), asked: Notify::new() }
    }

    /// Something was heard.
    pub fn heard(&self) {
        self.heard.set(Instant::now());
    }

    /// A request begins.
    pub fn begin(&self) {
        if self.heard.get().elapsed() > self.idle {
            self.asked.notify_one();
        }
    }
}

/// Ends when the peer has not answered a PING in time, or the connection is gone.
pub async fn watch(mut pings: PingPong, keepalive: Http2Keepalive, reuse: Option<&Reuse>) {
    loop {
        let due = async {
            match keepalive.interval {
                Some(interval) => tokio::time::sleep(interval).await,
                None => pending().await,
            }
        };
        let asked = async {
            match reuse {
                Some(reuse) => reuse.asked.notified().await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = asked => {}
        }
        match tokio::time::timeout(keepalive.timeout, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
