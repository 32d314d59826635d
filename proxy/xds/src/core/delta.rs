//! The delta variant of the protocol, for one type on one stream.
//!
//! Owns how requests are composed from subscription changes, held versions and answers. Never reads resources.
//!
//! ```text
//! (new stream) --first request: all names or none for everything, held versions--> Open
//! Open --response--> answer queued --> request: its nonce, ACK (with changes) or NACK (alone)
//! Open --names changed--> request: the difference, no nonce
//! ```

use std::collections::HashMap;
use std::time::Instant;

use outrigger_api::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use super::answers::Answers;
use super::subscription::{Changes, WILDCARD};
use super::typed::TypedState;
use super::{Rejection, ResourceKind};

#[derive(Debug, Default)]
pub(crate) struct DeltaWire {
    answers: Answers,
    /// Whether this type was asked for on this stream.
    first_sent: bool,
}

impl DeltaWire {
    pub(crate) fn reset_stream(&mut self) {
        self.answers.clear();
        self.first_sent = false;
    }

    pub(crate) fn is_open(&self) -> bool {
        self.first_sent
    }

    pub(crate) fn answered(&mut self, kind: ResourceKind, nonce: String, rejections: &[Rejection], now: Instant) {
        self.answers.push(kind, nonce, String::new(), rejections, now);
    }

    pub(crate) fn has_more(&self, state: &TypedState) -> bool {
        !self.answers.is_empty() || state.subscription.is_dirty()
    }

    pub(crate) fn held_until(&self, state: &TypedState, now: Instant) -> Option<Instant> {
        // Unlike in state of the world, changes need no nonce and pass a NACK that is held back.
        if state.subscription.is_dirty() { None } else { self.answers.held_until(now) }
    }

    /// The next request for this type, if there is anything to say.
    pub(crate) fn compose(
        &mut self,
        state: &mut TypedState,
        explicit_wildcard: bool,
        now: Instant,
    ) -> Option<DeltaDiscoveryRequest> {
        if !self.first_sent {
            return self.compose_first(state, explicit_wildcard);
        }
        let damped = self.answers.held_until(now).is_some();
        let answer = if damped { None } else { self.answers.pop() };
        let answering = answer.is_some();
        let (response_nonce, error_detail) = answer.map(|answer| (answer.nonce, answer.error)).unwrap_or_default();
        // A NACK goes alone: there are servers that stop reading at `error_detail` and would lose the changes.
        let changes = if error_detail.is_some() { Changes::default() } else { state.take_changes() };
        if !answering && changes.is_empty() {
            return None;
        }
        Some(request(state, changes, HashMap::new(), response_nonce, error_detail))
    }

    fn compose_first(&mut self, state: &mut TypedState, explicit_wildcard: bool) -> Option<DeltaDiscoveryRequest> {
        if state.subscription.wants_nothing() {
            state.take_changes();
            return None;
        }
        self.first_sent = true;
        let changes = if state.subscription.wants_wildcard() && !explicit_wildcard {
            // An empty first request asks for everything. Names that are wanted besides go into the next one: listed
            // here, they would end the wildcard.
            state.subscription.mark_wildcard_sent();
            Changes::default()
        } else {
            state.take_changes()
        };
        // All of it is wanted: what was given up went with `take_changes`, and a wildcard covers everything.
        let held = state.cache.iter().map(|(name, held)| (name.to_owned(), held.version.clone())).collect();
        Some(request(state, changes, held, String::new(), None))
    }
}

fn request(
    state: &TypedState,
    changes: Changes,
    initial_resource_versions: HashMap<String, String>,
    response_nonce: String,
    error_detail: Option<outrigger_api::pb::google::rpc::Status>,
) -> DeltaDiscoveryRequest {
    let Changes { mut subscribe, mut unsubscribe, wildcard_added, wildcard_removed } = changes;
    if wildcard_added {
        subscribe.insert(0, WILDCARD.to_owned());
    }
    if wildcard_removed {
        unsubscribe.insert(0, WILDCARD.to_owned());
    }
    DeltaDiscoveryRequest {
        node: None,
        type_url: state.kind().type_url().to_owned(),
        resource_names_subscribe: subscribe,
        resource_names_unsubscribe: unsubscribe,
        resource_locators_subscribe: Vec::new(),
        resource_locators_unsubscribe: Vec::new(),
        initial_resource_versions,
        response_nonce,
        error_detail,
    }
}
