//! What waiting for a client's answer comes to.
//!
//! Holds the plain results; `world` computes them, `MockControlPlane` waits for them.

use std::time::Duration;

use serde::Serialize;

use crate::session::ErrorDetail;

/// Every client that asks has confirmed what it should have.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Ack {
    /// Resource type.
    pub type_url: String,
    /// Set version that they are at.
    pub version: String,
    /// Nonce of the last response confirmed.
    pub nonce: String,
    /// The streams that confirmed.
    pub streams: Vec<u64>,
}

/// A client has rejected a response.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Nack {
    /// Resource type.
    pub type_url: String,
    /// Set version of the rejected response.
    pub version: String,
    /// The same as a number, for comparison.
    #[serde(skip)]
    pub(crate) set_version: u64,
    /// Nonce of the rejected response.
    pub nonce: String,
    /// The stream it was sent on.
    pub stream: u64,
    /// The client's reason.
    pub error_detail: ErrorDetail,
}

/// Where things stand.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Someone has not answered yet, or nobody has asked.
    Waiting,
    /// All have confirmed.
    Acked(Ack),
    /// Someone has rejected the current version.
    Nacked(Nack),
}

/// Why a wait ended without what was waited for.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WaitError {
    /// Time ran out.
    #[error("nothing after {after:?}: {standing}")]
    Timeout {
        /// How long was waited.
        after: Duration,
        /// Where things stood then.
        standing: String,
    },
    /// An ACK was expected, and the client rejected the response.
    #[error("stream {} rejected {} version {}: {}", .0.stream, .0.type_url, .0.version, .0.error_detail.message)]
    Nacked(Nack),
}
