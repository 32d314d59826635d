//! What both forms of the protocol share: the meaning of a request, and the fate of a response.
//!
//! Never sends anything; the two protocols are `session_sotw` and `session_delta`.

use std::collections::BTreeMap;

use outrigger_api::pb::google::rpc::Status;
use serde::Serialize;

/// How the server behaves where xDS leaves it a choice.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Conduct {
    /// State-of-the-world responses of types that are not full state carry only what changed.
    pub partial_updates: bool,
    /// A NACK is answered at once by the same content, as servers do that never look at `error_detail`.
    pub resend_after_nack: bool,
    /// Virtual hosts are served to those who name them (or an alias), and nobody gets all of them.
    pub virtual_hosts_by_name: bool,
}

/// What a request meant to the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Meaning {
    /// The first request for its type on its stream.
    First,
    /// A change of subscription that answers no response.
    Change,
    /// The response named by the nonce was accepted.
    Ack,
    /// The response named by the nonce was rejected.
    Nack,
    /// The nonce is not one that is open on this stream: the server ignores what the request says about it.
    Stale,
}

/// Why a client rejected a response (`error_detail`).
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ErrorDetail {
    /// gRPC status code.
    pub code: i32,
    /// The client's words.
    pub message: String,
}

impl From<&Status> for ErrorDetail {
    fn from(status: &Status) -> Self {
        let Status { code, message, details: _ } = status;
        Self { code: *code, message: message.clone() }
    }
}

/// What the client said to a response.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    Pending,
    Acked,
    Nacked(ErrorDetail),
}

/// A response on its way or answered.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub nonce: String,
    /// Set version at the time of sending.
    pub version: u64,
    /// Names and versions that it carried.
    pub resources: BTreeMap<String, String>,
    /// Names that it removed (delta).
    pub removed: Vec<String>,
    pub answer: Answer,
}

/// Where one stream stands with one type.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    /// Asked for everything.
    pub wildcard: bool,
    /// Names asked for.
    pub names: Vec<String>,
    /// Nonce of the last response, if there was one.
    pub last_nonce: Option<String>,
    /// Set version of the last response.
    pub last_version: Option<String>,
    /// `pending`, `acked` or `nacked`: what became of the last response.
    pub last_answer: Option<&'static str>,
    /// Why the last response was rejected.
    pub error_detail: Option<ErrorDetail>,
    /// Names and versions that the client has confirmed.
    pub confirmed: BTreeMap<String, String>,
}

impl Standing {
    pub(crate) fn new(
        wildcard: bool,
        names: impl IntoIterator<Item = String>,
        last: Option<&Sent>,
        confirmed: &BTreeMap<String, String>,
    ) -> Self {
        let (last_answer, error_detail) = match last.map(|sent| &sent.answer) {
            None => (None, None),
            Some(Answer::Pending) => (Some("pending"), None),
            Some(Answer::Acked) => (Some("acked"), None),
            Some(Answer::Nacked(detail)) => (Some("nacked"), Some(detail.clone())),
        };
        Self {
            wildcard,
            names: names.into_iter().collect(),
            last_nonce: last.map(|sent| sent.nonce.clone()),
            last_version: last.map(|sent| sent.version.to_string()),
            last_answer,
            error_detail,
            confirmed: confirmed.clone(),
        }
    }
}
