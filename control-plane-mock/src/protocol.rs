//! Both protocols behind one face: a message, and a session, of either kind.
//!
//! Only tells the two apart; the rules are in `session_sotw` and `session_delta`.

use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_api::pb::envoy::service::discovery::v3 as discovery;
use serde::Serialize;

use crate::session::Standing;
use crate::session_delta::DeltaSession;
use crate::session_sotw::SotwSession;
use crate::state::Store;

/// Which protocol a stream speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// State of the world.
    Sotw,
    /// Incremental.
    Delta,
}

/// A request in either protocol.
#[derive(Debug)]
pub(crate) enum Request {
    Sotw(discovery::DiscoveryRequest),
    Delta(discovery::DeltaDiscoveryRequest),
}

/// A response in either protocol.
#[derive(Debug)]
pub(crate) enum Response {
    Sotw(discovery::DiscoveryResponse),
    Delta(discovery::DeltaDiscoveryResponse),
}

/// A request that no good server accepts; it ends the stream with `INVALID_ARGUMENT`.
#[derive(Debug, thiserror::Error, Eq, PartialEq)]
pub(crate) enum Violation {
    #[error("type_url is missing on an aggregated stream")]
    NoType,
    #[error("type_url {found} on a stream of {expected}")]
    OtherType { found: String, expected: String },
}

/// A session in either protocol.
#[derive(Debug)]
pub(crate) enum Session {
    Sotw(SotwSession),
    Delta(DeltaSession),
}

impl Session {
    pub(crate) fn due(&self, store: &Store) -> Vec<String> {
        match self {
            Self::Sotw(session) => session.due(store),
            Self::Delta(session) => session.due(store),
        }
    }

    pub(crate) fn respond(&mut self, type_url: &str, store: &Store) -> Option<Response> {
        match self {
            Self::Sotw(session) => session.respond(type_url, store).map(Response::Sotw),
            Self::Delta(session) => session.respond(type_url, store).map(Response::Delta),
        }
    }

    pub(crate) fn disown_last(&mut self, type_url: &str, nonce: &str) {
        match self {
            Self::Sotw(session) => session.disown_last(type_url, nonce),
            Self::Delta(session) => session.disown_last(type_url, nonce),
        }
    }

    pub(crate) fn in_sync(&self, type_url: &str, store: &Store) -> bool {
        match self {
            Self::Sotw(session) => session.in_sync(type_url, store),
            Self::Delta(session) => session.in_sync(type_url, store),
        }
    }

    pub(crate) fn wants(&self, type_url: &str, name: Option<&str>) -> Option<bool> {
        match self {
            Self::Sotw(session) => session.wants(type_url, name),
            Self::Delta(session) => session.wants(type_url, name),
        }
    }

    pub(crate) fn confirmed(&self, type_url: &str, name: &str) -> Option<&str> {
        match self {
            Self::Sotw(session) => session.confirmed(type_url, name),
            Self::Delta(session) => session.confirmed(type_url, name),
        }
    }

    pub(crate) fn standing(&self, type_url: &str) -> Option<Standing> {
        match self {
            Self::Sotw(session) => session.standing(type_url),
            Self::Delta(session) => session.standing(type_url),
        }
    }

    pub(crate) fn sent_version(&self, type_url: &str, nonce: &str) -> Option<u64> {
        match self {
            Self::Sotw(session) => session.sent(type_url, nonce),
            Self::Delta(session) => session.sent(type_url, nonce),
        }
        .map(|sent| sent.version)
    }
}

impl Request {
    fn type_url(&mut self) -> &mut String {
        match self {
            Self::Sotw(request) => &mut request.type_url,
            Self::Delta(request) => &mut request.type_url,
        }
    }

    /// A per-type stream fixes the type; an aggregated one needs it in each request.
    pub(crate) fn set_type(&mut self, only: Option<&str>) -> Result<(), Violation> {
        let type_url = self.type_url();
        match only {
            None if type_url.is_empty() => Err(Violation::NoType),
            None => Ok(()),
            Some(only) if type_url.is_empty() || type_url == only => {
                *type_url = only.to_owned();
                Ok(())
            }
            Some(only) => Err(Violation::OtherType { found: type_url.clone(), expected: only.to_owned() }),
        }
    }

    pub(crate) fn take_node(&mut self) -> Option<Node> {
        match self {
            Self::Sotw(request) => request.node.take(),
            Self::Delta(request) => request.node.take(),
        }
    }
}

impl Response {
    pub(crate) fn nonce(&self) -> &str {
        match self {
            Self::Sotw(response) => &response.nonce,
            Self::Delta(response) => &response.nonce,
        }
    }
}
