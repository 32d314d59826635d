//! One state-of-the-world stream: requests in, responses out.
//!
//! Owns what the client asked for, per type, and what it was sent and confirmed. Never reads a
//! socket or a clock, and never decides when a response that is due is let go (see `world`).
//! Rules: xDS protocol, "Basic Protocol Overview" and "How the client specifies what resources to return".

use std::collections::BTreeMap;

use outrigger_api::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use outrigger_api::pb::google::protobuf::Any;
use prost::Message;

use crate::session::{Answer, Conduct, ErrorDetail, Meaning, Sent, Standing};
use crate::state::{Resource, Store, TypeState};
use crate::types;
use crate::watches::{self, Interest, Watches};

/// Protocol state of one stream.
#[derive(Debug, Default)]
pub struct SotwSession {
    conduct: Conduct,
    watches: Watches<Watch>,
    nonces: u64,
}

/// Protocol state of one type.
#[derive(Debug, Default)]
struct Watch {
    interest: Interest,
    /// Once names were given, an empty list asks for nothing instead of everything.
    named_once: bool,
    /// Name and version of all that the client was sent and has not given up since.
    sent: BTreeMap<String, String>,
    resend: bool,
}

impl SotwSession {
    /// A stream on which nothing was said yet.
    pub fn new(conduct: Conduct) -> Self {
        Self { conduct, ..Self::default() }
    }

    /// Takes in a request, which must have a type URL.
    pub fn request(&mut self, request: &DiscoveryRequest) -> Meaning {
        let DiscoveryRequest {
            // What the client runs is known from its answers; its own claim is only logged.
            version_info: _,
            node: _,
            resource_names,
            // Locators are for dynamic parameters, which no known control plane serves.
            resource_locators: _,
            type_url,
            response_nonce,
            error_detail,
        } = request;
        if self.watches.get(type_url).is_none() && !response_nonce.is_empty() {
            return Meaning::Stale;
        }
        let (watch, first) = self.watches.begin(type_url);
        let mut meaning = if first { Meaning::First } else { Meaning::Change };
        if !response_nonce.is_empty() {
            let Some(last) = watch.interest.last.as_mut().filter(|last| last.nonce == *response_nonce) else {
                return Meaning::Stale;
            };
            if let Some(status) = error_detail {
                last.answer = Answer::Nacked(ErrorDetail::from(status));
                watch.resend = self.conduct.resend_after_nack;
                meaning = Meaning::Nack;
            } else if last.answer == Answer::Pending {
                last.answer = Answer::Acked;
                if types::is_full_state(type_url) {
                    watch.interest.confirmed = last.resources.clone();
                } else {
                    watch.interest.confirmed.extend(last.resources.clone());
                }
                meaning = Meaning::Ack;
            }
        }
        watch.subscribe(type_url, resource_names);
        meaning
    }

    /// Types for which a response should be sent now, in the order of sending.
    pub fn due(&self, store: &Store) -> Vec<String> {
        self.watches.due(|url, watch| watch.is_due(url, store.of(url)))
    }

    /// The response for one type, as if it were due.
    pub fn respond(&mut self, type_url: &str, store: &Store) -> Option<DiscoveryResponse> {
        let state = store.of(type_url);
        let watch = self.watches.get_mut(type_url)?;
        let everything = watch.wanted(state);
        let full = types::is_full_state(type_url);
        let forced = watch.resend || watch.is_pushed(state);
        let chosen: BTreeMap<&str, &Resource> = everything
            .iter()
            .filter(|(name, resource)| {
                full || forced || !self.conduct.partial_updates || watch.sent.get(**name) != Some(&resource.version)
            })
            .map(|(name, resource)| (*name, *resource))
            .collect();
        let resources = chosen.iter().map(|(name, resource)| body(name, resource)).collect();
        let versions = |set: &BTreeMap<&str, &Resource>| -> BTreeMap<String, String> {
            set.iter().map(|(name, resource)| ((*name).to_owned(), resource.version.clone())).collect()
        };
        let (sent, carried) = (versions(&everything), versions(&chosen));
        watch.sent = sent;
        watch.resend = false;
        Some(self.finish(type_url, state.version, resources, carried))
    }

    /// A response that renews the TTL of these resources without their bodies.
    pub fn heartbeat(&mut self, type_url: &str, names: &[String], store: &Store) -> Option<DiscoveryResponse> {
        let state = store.of(type_url);
        let watch = self.watches.get(type_url)?;
        let alive: Vec<(&String, &Resource)> =
            names.iter().filter_map(|name| Some((name, *watch.wanted(state).get(name.as_str())?))).collect();
        if alive.is_empty() {
            return None;
        }
        let resources =
            alive.iter().map(|(name, resource)| wrapper(resource.heartbeat(name).encode_to_vec())).collect();
        let carried = watch.sent.clone();
        Some(self.finish(type_url, state.version, resources, carried))
    }

    /// Whether the client has confirmed all that it should have of this type.
    pub fn in_sync(&self, type_url: &str, store: &Store) -> bool {
        self.watches
            .get(type_url)
            .is_some_and(|watch| !watch.is_due(type_url, store.of(type_url)) && watch.interest.last_was_acked())
    }

    /// Whether the client asks for this resource, or with no name for any; `None` if it never named the type.
    pub fn wants(&self, type_url: &str, name: Option<&str>) -> Option<bool> {
        self.watches.wants(type_url, name)
    }

    /// Version of this resource that the client has confirmed.
    pub fn confirmed(&self, type_url: &str, name: &str) -> Option<&str> {
        self.watches.confirmed(type_url, name)
    }

    /// The open or answered response with this nonce.
    pub(crate) fn sent(&self, type_url: &str, nonce: &str) -> Option<&Sent> {
        self.watches.get(type_url)?.interest.last.as_ref().filter(|last| last.nonce == nonce)
    }

    /// Where each type stands.
    pub fn standings(&self) -> BTreeMap<String, Standing> {
        self.watches.standings()
    }

    /// Where one type stands, if it was asked for.
    pub fn standing(&self, type_url: &str) -> Option<Standing> {
        self.watches.standing(type_url)
    }

    /// Forgets the nonce of the last response, as if the server had never sent it.
    pub(crate) fn disown_last(&mut self, type_url: &str, nonce: &str) {
        if let Some(last) = self.watches.get_mut(type_url).and_then(|watch| watch.interest.last.as_mut()) {
            last.nonce = format!("disowned-{nonce}");
        }
    }

    fn finish(
        &mut self,
        type_url: &str,
        version: u64,
        resources: Vec<Any>,
        carried: BTreeMap<String, String>,
    ) -> DiscoveryResponse {
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        if let Some(watch) = self.watches.get_mut(type_url) {
            watch.interest.last = Some(Sent {
                nonce: nonce.clone(),
                version,
                resources: carried,
                removed: Vec::new(),
                answer: Answer::Pending,
            });
        }
        DiscoveryResponse {
            version_info: version.to_string(),
            resources,
            type_url: type_url.to_owned(),
            nonce,
            ..Default::default()
        }
    }
}

impl watches::Watch for Watch {
    fn interest(&self) -> &Interest {
        &self.interest
    }
}

impl Watch {
    fn subscribe(&mut self, type_url: &str, names: &[String]) {
        if !names.is_empty() {
            self.named_once = true;
        }
        self.interest.wildcard = if names.is_empty() {
            !self.named_once && types::empty_means_everything(type_url)
        } else {
            names.iter().any(|name| name == "*")
        };
        self.interest.names = names.iter().filter(|name| *name != "*").cloned().collect();
        if !self.interest.wildcard {
            // What was given up must be sent again when it is asked for again.
            self.sent.retain(|name, _| self.interest.names.contains(name));
            self.interest.confirmed.retain(|name, _| self.interest.names.contains(name));
        }
    }

    fn wanted<'s>(&self, state: &'s TypeState) -> BTreeMap<&'s str, &'s Resource> {
        state
            .resources
            .iter()
            .filter(|(name, _)| self.interest.covers(name))
            .map(|(name, resource)| (name.as_str(), resource))
            .collect()
    }

    fn is_pushed(&self, state: &TypeState) -> bool {
        self.interest.last.as_ref().is_some_and(|last| last.version < state.pushed)
    }

    fn is_due(&self, type_url: &str, state: &TypeState) -> bool {
        let full = types::is_full_state(type_url);
        let nothing_wanted = !self.interest.wildcard && self.interest.names.is_empty();
        if nothing_wanted {
            return false;
        }
        if self.resend || self.is_pushed(state) {
            return true;
        }
        // An empty answer to the first question means "there is none" for what is sent as a whole;
        // for other types silence does.
        if self.interest.last.is_none() && (full || self.interest.wildcard) {
            return true;
        }
        let wanted = self.wanted(state);
        let fresh = wanted.iter().any(|(name, resource)| self.sent.get(*name) != Some(&resource.version));
        let gone = full && self.sent.keys().any(|name| !wanted.contains_key(name.as_str()));
        fresh || gone
    }
}

/// A resource as it stands in a response: wrapped only if it has a TTL to carry.
fn body(name: &str, resource: &Resource) -> Any {
    match resource.ttl {
        None => resource.body.clone(),
        Some(_) => wrapper(resource.wrapped(name).encode_to_vec()),
    }
}

fn wrapper(value: Vec<u8>) -> Any {
    Any { type_url: types::RESOURCE.to_owned(), value }
}

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::rpc::Status;

    use super::*;
    use crate::state::Origin;
    use crate::state::tests::resource;
    use crate::types::{CLUSTER, ENDPOINTS, LISTENER};

    /// One client on one stream against one store.
    struct Talk {
        store: Store,
        session: SotwSession,
    }

    impl Talk {
        fn new(conduct: Conduct) -> Self {
            Self { store: Store::default(), session: SotwSession::new(conduct) }
        }

        fn set(&mut self, type_url: &str, name: &str, salt: u8) {
            self.store.set([resource(type_url, name, salt)], Origin::Api);
        }

        fn ask(&mut self, type_url: &str, names: &[&str], nonce: &str) -> Meaning {
            self.session.request(&DiscoveryRequest {
                type_url: type_url.to_owned(),
                resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
                response_nonce: nonce.to_owned(),
                ..Default::default()
            })
        }

        fn nack(&mut self, type_url: &str, names: &[&str], nonce: &str) -> Meaning {
            self.session.request(&DiscoveryRequest {
                type_url: type_url.to_owned(),
                resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
                response_nonce: nonce.to_owned(),
                error_detail: Some(Status { code: 3, message: "no".to_owned(), details: Vec::new() }),
                ..Default::default()
            })
        }

        /// What is sent now: short type name, version, names, nonce.
        fn sends(&mut self) -> Vec<String> {
            let due = self.session.due(&self.store);
            due.iter()
                .map(|url| {
                    let response = self.session.respond(url, &self.store).unwrap();
                    let names: Vec<_> = response
                        .resources
                        .iter()
                        .map(|any| crate::state::NamedResource::from_any(any.clone()).unwrap().name)
                        .collect();
                    format!("{} v{} {names:?} #{}", types::short_name(url), response.version_info, response.nonce)
                })
                .collect()
        }
    }

    #[test]
    fn an_empty_first_request_asks_for_everything() {
        let mut talk = Talk::new(Conduct::default());
        talk.set(CLUSTER, "a", 1);
        assert_eq!(talk.ask(CLUSTER, &[], ""), Meaning::First);
        assert_eq!(talk.sends(), [r#"cds v1 ["a"] #1"#]);
        assert!(!talk.session.in_sync(CLUSTER, &talk.store));
        assert_eq!(talk.ask(CLUSTER, &[], "1"), Meaning::Ack);
        assert!(talk.session.in_sync(CLUSTER, &talk.store));
        assert!(talk.sends().is_empty());
        talk.set(CLUSTER, "b", 1);
        assert_eq!(talk.sends(), [r#"cds v2 ["a", "b"] #2"#]);
        talk.store.remove(CLUSTER, "a");
        assert_eq!(talk.sends(), [r#"cds v3 ["b"] #3"#]);
    }

    #[test]
    fn everything_may_be_nothing() {
        let mut talk = Talk::new(Conduct::default());
        talk.ask(LISTENER, &[], "");
        assert_eq!(talk.sends(), ["lds v0 [] #1"]);
        talk.ask(ENDPOINTS, &["a"], "");
        assert!(talk.sends().is_empty(), "a missing assignment is answered by silence");
        talk.set(ENDPOINTS, "a", 1);
        assert_eq!(talk.sends(), [r#"eds v1 ["a"] #2"#]);
    }

    #[test]
    fn an_empty_list_after_names_asks_for_nothing() {
        let mut talk = Talk::new(Conduct::default());
        talk.set(CLUSTER, "a", 1);
        talk.set(CLUSTER, "b", 1);
        talk.ask(CLUSTER, &["b"], "");
        assert_eq!(talk.sends(), [r#"cds v2 ["b"] #1"#]);
        talk.ask(CLUSTER, &[], "1");
        talk.set(CLUSTER, "b", 2);
        assert!(talk.sends().is_empty());
        talk.ask(CLUSTER, &["*"], "1");
        assert_eq!(talk.sends(), [r#"cds v3 ["a", "b"] #2"#]);
    }

    #[test]
    fn only_names_asked_for_are_sent_and_new_names_at_once() {
        let mut talk = Talk::new(Conduct::default());
        for name in ["a", "b", "c"] {
            talk.set(ENDPOINTS, name, 1);
        }
        talk.ask(ENDPOINTS, &["a"], "");
        assert_eq!(talk.sends(), [r#"eds v3 ["a"] #1"#]);
        talk.set(ENDPOINTS, "c", 2);
        assert!(talk.sends().is_empty(), "nobody asked for c");
        talk.ask(ENDPOINTS, &["a", "b"], "1");
        assert_eq!(talk.sends(), [r#"eds v4 ["a", "b"] #2"#]);
        talk.store.remove(ENDPOINTS, "a");
        assert!(talk.sends().is_empty(), "assignments are not removed by absence");
    }

    #[test]
    fn a_name_given_up_and_asked_for_again_is_sent_again() {
        let mut talk = Talk::new(Conduct::default());
        talk.set(ENDPOINTS, "a", 1);
        talk.set(ENDPOINTS, "b", 1);
        talk.ask(ENDPOINTS, &["a", "b"], "");
        talk.sends();
        talk.ask(ENDPOINTS, &["a"], "1");
        assert!(talk.sends().is_empty());
        talk.ask(ENDPOINTS, &["a", "b"], "1");
        assert_eq!(talk.sends(), [r#"eds v2 ["a", "b"] #2"#]);
    }

    #[test]
    fn stale_nonces_are_ignored_with_their_names() {
        let mut talk = Talk::new(Conduct::default());
        talk.set(ENDPOINTS, "a", 1);
        talk.set(ENDPOINTS, "b", 1);
        talk.ask(ENDPOINTS, &["a"], "");
        talk.sends();
        talk.set(ENDPOINTS, "a", 2);
        assert_eq!(talk.sends(), [r#"eds v3 ["a"] #2"#]);
        assert_eq!(talk.ask(ENDPOINTS, &["a", "b"], "1"), Meaning::Stale);
        assert!(talk.sends().is_empty());
        assert_eq!(talk.ask(ENDPOINTS, &["a", "b"], "2"), Meaning::Ack);
        assert_eq!(talk.sends(), [r#"eds v3 ["a", "b"] #3"#]);
        assert_eq!(talk.ask(LISTENER, &[], "7"), Meaning::Stale, "a nonce of another stream");
    }

    #[test]
    fn a_rejected_response_is_not_repeated_until_something_changes() {
        let mut talk = Talk::new(Conduct::default());
        talk.set(CLUSTER, "a", 1);
        talk.ask(CLUSTER, &[], "");
        talk.sends();
        assert_eq!(talk.nack(CLUSTER, &[], "1"), Meaning::Nack);
        assert!(talk.sends().is_empty());
        assert!(!talk.session.in_sync(CLUSTER, &talk.store));
        talk.store.push(CLUSTER);
        assert_eq!(talk.sends(), [r#"cds v2 ["a"] #2"#]);
    }

    #[test]
    fn a_stubborn_server_repeats_what_was_rejected() {
        let mut talk = Talk::new(Conduct { resend_after_nack: true, ..Conduct::default() });
        talk.set(CLUSTER, "a", 1);
        talk.ask(CLUSTER, &[], "");
        talk.sends();
        talk.nack(CLUSTER, &[], "1");
        assert_eq!(talk.sends(), [r#"cds v1 ["a"] #2"#]);
    }

    #[test]
    fn partial_updates_carry_what_changed() {
        let mut talk = Talk::new(Conduct { partial_updates: true, ..Conduct::default() });
        talk.set(ENDPOINTS, "a", 1);
        talk.set(ENDPOINTS, "b", 1);
        talk.ask(ENDPOINTS, &["a", "b"], "");
        assert_eq!(talk.sends(), [r#"eds v2 ["a", "b"] #1"#]);
        talk.ask(ENDPOINTS, &["a", "b"], "1");
        talk.set(ENDPOINTS, "b", 2);
        assert_eq!(talk.sends(), [r#"eds v3 ["b"] #2"#]);
        talk.store.push(ENDPOINTS);
        assert_eq!(talk.sends(), [r#"eds v4 ["a", "b"] #3"#]);
    }

    #[test]
    fn a_change_of_many_types_is_sent_clusters_first() {
        let mut talk = Talk::new(Conduct::default());
        talk.ask(LISTENER, &[], "");
        talk.ask(CLUSTER, &[], "");
        talk.ask(ENDPOINTS, &["a"], "");
        talk.sends();
        talk.store
            .set([resource(LISTENER, "l", 1), resource(ENDPOINTS, "a", 1), resource(CLUSTER, "a", 1)], Origin::Api);
        assert_eq!(talk.sends(), [r#"cds v1 ["a"] #3"#, r#"eds v1 ["a"] #4"#, r#"lds v1 ["l"] #5"#]);
    }

    #[test]
    fn a_time_to_live_wraps_the_resource_and_a_heartbeat_has_no_body() {
        let mut talk = Talk::new(Conduct::default());
        let mut short_lived = resource(ENDPOINTS, "a", 1);
        short_lived.ttl = Some(std::time::Duration::from_secs(2));
        talk.store.set([short_lived], Origin::Api);
        talk.ask(ENDPOINTS, &["a"], "");
        let response = talk.session.respond(ENDPOINTS, &talk.store).unwrap();
        assert_eq!(response.resources[0].type_url, types::RESOURCE);
        let beat = talk.session.heartbeat(ENDPOINTS, &["a".to_owned()], &talk.store).unwrap();
        let inner =
            outrigger_api::pb::envoy::service::discovery::v3::Resource::decode(beat.resources[0].value.as_slice())
                .unwrap();
        assert_eq!((inner.resource, inner.ttl.unwrap().seconds), (None, 2));
        assert!(talk.session.heartbeat(ENDPOINTS, &["b".to_owned()], &talk.store).is_none());
    }
}
