//! Signals.
//!
//! Owns which signal means what, as with Envoy. Never ends the process: that is for whoever waits for the stop requests.
//! SIGPIPE is ignored already by Rust's runtime.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that are listened to.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user1: Signal,
}

/// What somebody wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wish {
    /// SIGTERM or SIGINT, by its name: end.
    Stop(&'static str),
    /// SIGUSR1: open log files again.
    ReopenLogs,
    /// SIGHUP: nothing. Terminals send it, and Envoy ignores it too.
    Nothing,
}

impl Signals {
    /// Must be called inside the runtime.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
        })
    }

    /// The next one.
    pub async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Wish::Stop("SIGINT"),
            _ = self.user1.recv() => Wish::ReopenLogs,
            _ = self.hangup.recv() => Wish::Nothing,
        }
    }
}
