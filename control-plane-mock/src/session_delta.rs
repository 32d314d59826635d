//! One incremental (delta) stream: requests in, responses out.
//!
//! Owns what the client asked for, per type, and what it holds. Never reads a socket or a clock, and
//! never decides when a response that is due is let go (see `world`).
//! Rules: xDS protocol, "Incremental xDS", and the documentation of `DeltaDiscoveryRequest`.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_api::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};

use crate::session::{Answer, Conduct, ErrorDetail, Meaning, Sent, Standing};
use crate::state::{Store, TypeState};
use crate::types;
use crate::watches::{self, Interest, Watches};

/// Protocol state of one stream.
#[derive(Debug, Default)]
pub struct DeltaSession {
    conduct: Conduct,
    watches: Watches<Watch>,
    nonces: u64,
}

/// Protocol state of one type.
#[derive(Debug, Default)]
struct Watch {
    interest: Interest,
    /// Name and version of what the client holds, by its own account or because it was sent.
    held: BTreeMap<String, String>,
    /// Names that the client was told do not exist.
    absent: BTreeSet<String>,
    /// Names that must be answered whatever the client holds.
    owed: BTreeSet<String>,
    /// The first request for everything is answered even with nothing.
    answer_owed: bool,
    /// Responses not answered yet, by nonce.
    open: BTreeMap<String, Sent>,
}

impl DeltaSession {
    /// A stream on which nothing was said yet.
    pub fn new(conduct: Conduct) -> Self {
        Self { conduct, ..Self::default() }
    }

    /// Takes in a request, which must have a type URL.
    pub fn request(&mut self, request: &DeltaDiscoveryRequest, store: &Store) -> Meaning {
        let DeltaDiscoveryRequest {
            node: _,
            type_url,
            resource_names_subscribe,
            resource_names_unsubscribe,
            // Locators are for dynamic parameters, which no known control plane serves.
            resource_locators_subscribe: _,
            resource_locators_unsubscribe: _,
            initial_resource_versions,
            response_nonce,
            error_detail,
        } = request;
        let (watch, first) = self.watches.begin(type_url);
        let mut meaning = if first { Meaning::First } else { Meaning::Change };
        if first {
            let by_name = self.conduct.virtual_hosts_by_name && type_url == types::VIRTUAL_HOST;
            watch.begin(
                resource_names_subscribe,
                initial_resource_versions,
                by_name || !types::empty_means_everything(type_url),
            );
            // There is nothing to say, which is an answer too.
            watch.answer_owed |= by_name;
        }
        if !response_nonce.is_empty() {
            let rejected = error_detail.as_ref().map(ErrorDetail::from);
            let repeat = self.conduct.resend_after_nack;
            meaning = watch.answer(response_nonce, rejected, repeat);
        }
        // A nonce of old does not make a change of subscription void: unlike in state of the world, it is not said again.
        let state = store.of(type_url);
        let names: Vec<String> = resource_names_subscribe.iter().map(|name| state.canonical(name)).collect();
        watch.subscribe(&names, first);
        watch.unsubscribe(resource_names_unsubscribe, store.of(type_url));
        meaning
    }

    /// Types for which a response should be sent now, in the order of sending.
    pub fn due(&self, store: &Store) -> Vec<String> {
        self.watches.due(|url, watch| watch.is_due(store.of(url)))
    }

    /// The response for one type, as if it were due.
    pub fn respond(&mut self, type_url: &str, store: &Store) -> Option<DeltaDiscoveryResponse> {
        let state = store.of(type_url);
        let watch = self.watches.get_mut(type_url)?;
        let Difference { changed, removed } = watch.difference(state);
        let resources: Vec<Resource> =
            changed.iter().filter_map(|name| Some(state.resources.get(name)?.wrapped(name))).collect();
        for resource in &resources {
            watch.held.insert(resource.name.clone(), resource.version.clone());
            watch.absent.remove(&resource.name);
        }
        for name in &removed {
            watch.held.remove(name);
            if watch.interest.names.contains(name) {
                watch.absent.insert(name.clone());
            }
        }
        watch.owed.clear();
        watch.answer_owed = false;
        Some(self.finish(type_url, state.version, resources, removed))
    }

    /// A response that renews the TTL of these resources without their bodies.
    pub fn heartbeat(&mut self, type_url: &str, names: &[String], store: &Store) -> Option<DeltaDiscoveryResponse> {
        let state = store.of(type_url);
        let watch = self.watches.get(type_url)?;
        let resources: Vec<Resource> = names
            .iter()
            .filter(|name| watch.held.contains_key(*name))
            .filter_map(|name| Some(state.resources.get(name)?.heartbeat(name)))
            .collect();
        if resources.is_empty() { None } else { Some(self.finish(type_url, state.version, resources, Vec::new())) }
    }

    /// Whether the client has confirmed all that it should have of this type.
    pub fn in_sync(&self, type_url: &str, store: &Store) -> bool {
        self.watches.get(type_url).is_some_and(|watch| {
            !watch.is_due(store.of(type_url)) && watch.open.is_empty() && watch.interest.last_was_acked()
        })
    }

    /// Whether the client asks for this resource, or with no name for any; `None` if it never named the type.
    pub fn wants(&self, type_url: &str, name: Option<&str>) -> Option<bool> {
        self.watches.wants(type_url, name)
    }

    /// Version of this resource that the client has confirmed.
    pub fn confirmed(&self, type_url: &str, name: &str) -> Option<&str> {
        self.watches.confirmed(type_url, name)
    }

    /// The open or last answered response with this nonce.
    pub(crate) fn sent(&self, type_url: &str, nonce: &str) -> Option<&Sent> {
        let watch = self.watches.get(type_url)?;
        watch.open.get(nonce).or_else(|| watch.interest.last.as_ref().filter(|last| last.nonce == nonce))
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
        let Some(watch) = self.watches.get_mut(type_url) else { return };
        watch.open.remove(nonce);
        if let Some(last) = watch.interest.last.as_mut() {
            last.nonce = format!("disowned-{nonce}");
        }
    }

    fn finish(
        &mut self,
        type_url: &str,
        version: u64,
        resources: Vec<Resource>,
        removed: Vec<String>,
    ) -> DeltaDiscoveryResponse {
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        let sent = Sent {
            nonce: nonce.clone(),
            version,
            resources: resources.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect(),
            removed: removed.clone(),
            answer: Answer::Pending,
        };
        if let Some(watch) = self.watches.get_mut(type_url) {
            watch.open.insert(nonce.clone(), sent.clone());
            watch.interest.last = Some(sent);
        }
        DeltaDiscoveryResponse {
            system_version_info: version.to_string(),
            resources,
            type_url: type_url.to_owned(),
            removed_resources: removed,
            nonce,
            ..Default::default()
        }
    }
}

/// What a response has to say.
struct Difference {
    changed: BTreeSet<String>,
    removed: Vec<String>,
}

impl watches::Watch for Watch {
    fn interest(&self) -> &Interest {
        &self.interest
    }
}

impl Watch {
    /// The first request of the stream for this type: what the client holds from before.
    fn begin<'a>(
        &mut self,
        subscribe: &[String],
        initial: impl IntoIterator<Item = (&'a String, &'a String)>,
        by_name: bool,
    ) {
        self.interest.wildcard = subscribe.is_empty() && !by_name;
        let asks_everything = self.interest.wildcard || subscribe.iter().any(|name| name == "*");
        self.answer_owed = asks_everything;
        // A version of something not subscribed is of no use: nothing will be said about it.
        self.held = initial
            .into_iter()
            .filter(|(name, _)| asks_everything || subscribe.contains(name))
            .map(|(name, version)| (name.clone(), version.clone()))
            .collect();
        self.interest.confirmed = self.held.clone();
    }

    fn answer(&mut self, nonce: &str, rejected: Option<ErrorDetail>, repeat: bool) -> Meaning {
        let Some(sent) = self.open.remove(nonce) else {
            let known = self.interest.last.as_ref().is_some_and(|last| last.nonce == nonce);
            return if known && rejected.is_none() { Meaning::Change } else { Meaning::Stale };
        };
        let (answer, meaning) = match rejected {
            None => {
                self.interest.confirmed.extend(sent.resources);
                self.interest.confirmed.retain(|name, _| !sent.removed.contains(name));
                (Answer::Acked, Meaning::Ack)
            }
            Some(detail) => {
                if repeat {
                    self.owed.extend(sent.resources.into_keys());
                }
                (Answer::Nacked(detail), Meaning::Nack)
            }
        };
        if let Some(last) = self.interest.last.as_mut().filter(|last| last.nonce == nonce) {
            last.answer = answer;
        }
        meaning
    }

    fn subscribe(&mut self, names: &[String], first: bool) {
        for name in names {
            if name == "*" {
                self.answer_owed |= !self.interest.wildcard;
                self.interest.wildcard = true;
                continue;
            }
            self.interest.names.insert(name.clone());
            // What is asked for by name is answered even if the client should have it: it may have dropped it.
            // On the first request it says itself what it has.
            if !first || !self.held.contains_key(name) {
                self.owed.insert(name.clone());
            }
        }
    }

    fn unsubscribe(&mut self, names: &[String], state: &TypeState) {
        for name in names {
            if name == "*" {
                self.interest.wildcard = false;
                self.answer_owed = false;
                continue;
            }
            let was_named = self.interest.names.remove(name);
            self.absent.remove(name);
            self.owed.remove(name);
            if self.interest.wildcard && was_named {
                // Still covered by the wildcard: the client must hear whether it stays.
                self.owed.insert(name.clone());
                if !state.resources.contains_key(name) {
                    self.held.insert(name.clone(), String::new());
                }
            }
        }
        if !self.interest.wildcard {
            self.held.retain(|name, _| self.interest.names.contains(name));
            self.interest.confirmed.retain(|name, _| self.interest.names.contains(name));
        }
    }

    fn is_due(&self, state: &TypeState) -> bool {
        if self.answer_owed {
            return true;
        }
        let Difference { changed, removed } = self.difference(state);
        !changed.is_empty() || !removed.is_empty()
    }

    fn difference(&self, state: &TypeState) -> Difference {
        let everything = self.interest.last.as_ref().is_some_and(|last| last.version < state.pushed);
        let changed = state
            .resources
            .iter()
            .filter(|(name, resource)| {
                self.interest.covers(name)
                    && (everything || self.owed.contains(*name) || self.held.get(*name) != Some(&resource.version))
            })
            .map(|(name, _)| name.clone())
            .collect();
        let missing = |name: &&String| !state.resources.contains_key(*name);
        let lost = self.held.keys().filter(missing);
        let unknown = self.interest.names.iter().filter(missing).filter(|name| {
            !self.held.contains_key(*name) && (self.owed.contains(*name) || !self.absent.contains(*name))
        });
        Difference { changed, removed: lost.chain(unknown).cloned().collect() }
    }
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
        session: DeltaSession,
    }

    #[derive(Default)]
    struct Ask<'a> {
        subscribe: &'a [&'a str],
        unsubscribe: &'a [&'a str],
        holds: &'a [(&'a str, String)],
        nonce: &'a str,
        error: Option<&'a str>,
    }

    impl Talk {
        fn new() -> Self {
            Self { store: Store::default(), session: DeltaSession::new(Conduct::default()) }
        }

        fn set(&mut self, type_url: &str, name: &str, salt: u8) -> String {
            self.store.set([resource(type_url, name, salt)], Origin::Api);
            self.store.of(type_url).resources[name].version.clone()
        }

        fn ask(&mut self, type_url: &str, ask: &Ask<'_>) -> Meaning {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let request = DeltaDiscoveryRequest {
                type_url: type_url.to_owned(),
                resource_names_subscribe: owned(ask.subscribe),
                resource_names_unsubscribe: owned(ask.unsubscribe),
                initial_resource_versions: ask
                    .holds
                    .iter()
                    .map(|(name, version)| ((*name).to_owned(), version.clone()))
                    .collect(),
                response_nonce: ask.nonce.to_owned(),
                error_detail: ask.error.map(|message| Status {
                    code: 3,
                    message: message.to_owned(),
                    details: Vec::new(),
                }),
                ..Default::default()
            };
            self.session.request(&request, &self.store)
        }

        fn subscribe(&mut self, type_url: &str, names: &[&str]) {
            self.ask(type_url, &Ask { subscribe: names, ..Ask::default() });
        }

        /// What is sent now: short type name, names, names removed, nonce.
        fn sends(&mut self) -> Vec<String> {
            let due = self.session.due(&self.store);
            due.iter()
                .map(|url| {
                    let response = self.session.respond(url, &self.store).unwrap();
                    let names: Vec<_> = response.resources.iter().map(|resource| resource.name.as_str()).collect();
                    let removed = response.removed_resources;
                    format!("{} +{names:?} -{removed:?} #{}", types::short_name(url), response.nonce)
                })
                .collect()
        }
    }

    #[test]
    fn an_empty_first_request_asks_for_everything_and_gets_changes_only() {
        let mut talk = Talk::new();
        talk.set(CLUSTER, "a", 1);
        talk.set(CLUSTER, "b", 1);
        talk.subscribe(CLUSTER, &[]);
        assert_eq!(talk.sends(), [r#"cds +["a", "b"] -[] #1"#]);
        assert_eq!(talk.ask(CLUSTER, &Ask { nonce: "1", ..Ask::default() }), Meaning::Ack);
        assert!(talk.session.in_sync(CLUSTER, &talk.store));
        talk.set(CLUSTER, "b", 2);
        talk.store.remove(CLUSTER, "a");
        assert_eq!(talk.sends(), [r#"cds +["b"] -["a"] #2"#]);
        assert!(talk.sends().is_empty());
    }

    #[test]
    fn everything_may_be_nothing() {
        let mut talk = Talk::new();
        talk.subscribe(LISTENER, &[]);
        assert_eq!(talk.sends(), ["lds +[] -[] #1"]);
        assert!(talk.sends().is_empty());
    }

    #[test]
    fn a_name_that_does_not_exist_is_removed_once_and_sent_when_it_does() {
        let mut talk = Talk::new();
        talk.subscribe(ENDPOINTS, &["a"]);
        assert_eq!(talk.sends(), [r#"eds +[] -["a"] #1"#]);
        assert!(talk.sends().is_empty());
        talk.set(ENDPOINTS, "a", 1);
        assert_eq!(talk.sends(), [r#"eds +["a"] -[] #2"#]);
        talk.store.remove(ENDPOINTS, "a");
        assert_eq!(talk.sends(), [r#"eds +[] -["a"] #3"#]);
        assert!(talk.sends().is_empty());
    }

    #[test]
    fn initial_versions_spare_what_the_client_holds() {
        let mut talk = Talk::new();
        let held = talk.set(CLUSTER, "same", 1);
        talk.set(CLUSTER, "changed", 2);
        talk.set(CLUSTER, "new", 1);
        let holds = [("same", held.clone()), ("changed", "old".to_owned()), ("gone", "old".to_owned())];
        talk.ask(CLUSTER, &Ask { holds: &holds, ..Ask::default() });
        assert_eq!(talk.sends(), [r#"cds +["changed", "new"] -["gone"] #1"#]);

        let version = talk.set(ENDPOINTS, "a", 1);
        talk.ask(ENDPOINTS, &Ask { subscribe: &["a", "b"], holds: &[("a", version)], ..Ask::default() });
        assert_eq!(talk.sends(), [r#"eds +[] -["b"] #2"#]);
    }

    #[test]
    fn a_name_asked_for_again_is_sent_again() {
        let mut talk = Talk::new();
        talk.set(ENDPOINTS, "a", 1);
        talk.subscribe(ENDPOINTS, &["a"]);
        talk.sends();
        talk.subscribe(ENDPOINTS, &["a"]);
        assert_eq!(talk.sends(), [r#"eds +["a"] -[] #2"#]);
        talk.ask(ENDPOINTS, &Ask { unsubscribe: &["a"], ..Ask::default() });
        talk.set(ENDPOINTS, "a", 2);
        assert!(talk.sends().is_empty());
    }

    #[test]
    fn an_empty_request_later_changes_nothing() {
        let mut talk = Talk::new();
        talk.set(CLUSTER, "a", 1);
        talk.set(CLUSTER, "b", 1);
        talk.subscribe(CLUSTER, &["a"]);
        assert_eq!(talk.sends(), [r#"cds +["a"] -[] #1"#]);
        talk.subscribe(CLUSTER, &[]);
        assert!(talk.sends().is_empty());
    }

    #[test]
    fn the_wildcard_stays_beside_names_until_it_is_given_up() {
        let mut talk = Talk::new();
        talk.set(CLUSTER, "a", 1);
        talk.set(CLUSTER, "b", 1);
        talk.subscribe(CLUSTER, &[]);
        talk.sends();
        talk.subscribe(CLUSTER, &["b"]);
        assert_eq!(talk.sends(), [r#"cds +["b"] -[] #2"#]);
        talk.ask(CLUSTER, &Ask { unsubscribe: &["b"], ..Ask::default() });
        assert_eq!(talk.sends(), [r#"cds +["b"] -[] #3"#], "the wildcard still covers it, and the client must know");
        talk.subscribe(CLUSTER, &["c"]);
        assert_eq!(talk.sends(), [r#"cds +[] -["c"] #4"#]);
        talk.ask(CLUSTER, &Ask { unsubscribe: &["c"], ..Ask::default() });
        assert_eq!(talk.sends(), [r#"cds +[] -["c"] #5"#]);
        talk.ask(CLUSTER, &Ask { unsubscribe: &["*"], ..Ask::default() });
        talk.set(CLUSTER, "a", 2);
        assert!(talk.sends().is_empty());
        talk.subscribe(CLUSTER, &["*"]);
        assert_eq!(talk.sends(), [r#"cds +["a", "b"] -[] #6"#]);
    }

    #[test]
    fn answers_belong_to_their_nonce() {
        let mut talk = Talk::new();
        talk.set(CLUSTER, "a", 1);
        talk.subscribe(CLUSTER, &[]);
        talk.sends();
        talk.set(CLUSTER, "b", 1);
        talk.sends();
        assert_eq!(talk.ask(CLUSTER, &Ask { nonce: "1", ..Ask::default() }), Meaning::Ack);
        assert!(!talk.session.in_sync(CLUSTER, &talk.store));
        assert_eq!(talk.ask(CLUSTER, &Ask { nonce: "2", error: Some("no"), ..Ask::default() }), Meaning::Nack);
        assert!(!talk.session.in_sync(CLUSTER, &talk.store));
        assert_eq!(talk.session.confirmed(CLUSTER, "b"), None);
        assert!(talk.sends().is_empty(), "a rejected resource is sent again when it changes");
        assert_eq!(talk.ask(CLUSTER, &Ask { nonce: "99", ..Ask::default() }), Meaning::Stale);
        talk.store.push(CLUSTER);
        assert_eq!(talk.sends(), [r#"cds +["a", "b"] -[] #3"#]);
        assert_eq!(talk.ask(CLUSTER, &Ask { nonce: "3", ..Ask::default() }), Meaning::Ack);
        assert!(talk.session.in_sync(CLUSTER, &talk.store));
    }

    #[test]
    fn a_heartbeat_has_no_body() {
        let mut talk = Talk::new();
        talk.set(ENDPOINTS, "a", 1);
        talk.subscribe(ENDPOINTS, &["a"]);
        talk.sends();
        let beat = talk.session.heartbeat(ENDPOINTS, &["a".to_owned(), "b".to_owned()], &talk.store).unwrap();
        assert_eq!(beat.resources.len(), 1);
        assert_eq!(beat.resources[0].resource, None);
        assert_eq!(beat.resources[0].version, talk.store.of(ENDPOINTS).resources["a"].version);
    }
}
