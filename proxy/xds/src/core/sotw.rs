//! The state-of-the-world variant of the protocol, for one type on one stream.
//!
//! Owns version, nonce and how requests are composed. Never reads resources.
//!
//! ```text
//! (new stream) --first request: no nonce, last accepted version--> Open
//! Open --response--> answer queued --> request: its nonce, full list of names, ACK or NACK
//! Open --names changed--> request: latest received nonce, full list of names
//! ```

use std::time::Instant;

use outrigger_api::pb::envoy::service::discovery::v3::DiscoveryRequest;

use super::answers::Answers;
use super::subscription::WILDCARD;
use super::typed::TypedState;
use super::{Rejection, ResourceKind};

#[derive(Debug, Default)]
pub(crate) struct SotwWire {
    /// Last accepted `version_info`; survives the stream.
    version: String,
    /// Latest received nonce of this stream.
    nonce: String,
    answers: Answers,
    /// Whether this type was asked for on this stream.
    first_sent: bool,
    /// Whether a name (or `*`) was listed on this stream. From then on an empty list means nothing, not everything.
    named: bool,
}

impl SotwWire {
    pub(crate) fn reset_stream(&mut self) {
        self.nonce.clear();
        self.answers.clear();
        self.first_sent = false;
        self.named = false;
    }

    /// Whether the server has been asked for this type on this stream.
    pub(crate) fn is_open(&self) -> bool {
        self.first_sent
    }

    /// Notes a judged response.
    pub(crate) fn answered(
        &mut self,
        kind: ResourceKind,
        nonce: String,
        version: String,
        rejections: &[Rejection],
        now: Instant,
    ) {
        self.nonce.clone_from(&nonce);
        if rejections.is_empty() {
            self.version = version;
        }
        self.answers.push(kind, nonce, self.version.clone(), rejections, now);
    }

    pub(crate) fn has_more(&self, state: &TypedState) -> bool {
        !self.answers.is_empty() || state.subscription.is_dirty()
    }

    pub(crate) fn held_until(&self, state: &TypedState, now: Instant) -> Option<Instant> {
        // Changed names must go out at once; the NACK goes along.
        if state.subscription.is_dirty() { None } else { self.answers.held_until(now) }
    }

    /// The next request for this type, if there is anything to say.
    pub(crate) fn compose(&mut self, state: &mut TypedState, explicit_wildcard: bool) -> Option<DiscoveryRequest> {
        let first = !self.first_sent;
        let changes = state.take_changes();
        let wildcard = state.subscription.wants_wildcard();
        if first && state.subscription.wants_nothing() {
            return None;
        }
        let answer = self.answers.pop();
        if answer.is_none() && !first && changes.is_empty() {
            return None;
        }
        let mut names: Vec<String> = state.subscription.wanted_names().map(str::to_owned).collect();
        if wildcard && (explicit_wildcard || self.named || !names.is_empty()) {
            names.insert(0, WILDCARD.to_owned());
        }
        self.named |= !names.is_empty();
        if answer.is_none() && !first && !wildcard && names.is_empty() && !self.named {
            // There is no way to say "nothing any more" to a server that reads an empty list as "everything".
            self.version.clear();
            return None;
        }
        self.first_sent = true;
        // Asked again for everything without a change in the list: only an unknown version makes the server send it.
        let renewed = changes.wildcard_added && !first && !self.named;
        let (response_nonce, version_info, error_detail) = match answer {
            Some(answer) => (answer.nonce, answer.version, answer.error),
            None if first => (String::new(), self.version.clone(), None),
            None if renewed => (self.nonce.clone(), String::new(), None),
            None => (self.nonce.clone(), self.version.clone(), None),
        };
        if state.subscription.wants_nothing() {
            // Nothing is held any more, so nothing may be claimed by a version when something is wanted again.
            self.version.clear();
        }
        Some(DiscoveryRequest {
            version_info,
            node: None,
            resource_names: names,
            resource_locators: Vec::new(),
            type_url: state.kind().type_url().to_owned(),
            response_nonce,
            error_detail,
        })
    }
}
