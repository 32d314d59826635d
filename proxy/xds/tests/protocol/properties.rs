//! Random conversations: whatever happens, every response gets one answer and the server knows what is wanted.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_xds::core::{Event, Request};
use outrigger_xds::{ResourceKind, Update};
use proptest::prelude::*;

use crate::harness::*;

#[derive(Clone, Debug)]
enum Step {
    Ask(u8),
    Drop(u8),
    AskAll,
    DropAll,
    Respond { names: BTreeSet<u8>, content: u8, refuse: Option<u8>, removed: BTreeSet<u8> },
    Send,
    Reconnect,
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let names = || prop::collection::btree_set(0..6_u8, 0..5);
    prop_oneof![
        4 => (0..6_u8).prop_map(Step::Ask),
        3 => (0..6_u8).prop_map(Step::Drop),
        1 => Just(Step::AskAll),
        1 => Just(Step::DropAll),
        5 => (names(), 0..3_u8, prop::option::of(0..6_u8), names())
            .prop_map(|(names, content, refuse, removed)| Step::Respond { names, content, refuse, removed }),
        4 => Just(Step::Send),
        1 => Just(Step::Reconnect),
        1 => (0..5000_u16).prop_map(Step::Wait),
    ]
}

/// What the control plane believes, and what it waits for.
#[derive(Default)]
struct Server {
    first_seen: bool,
    named: bool,
    wildcard: bool,
    names: BTreeSet<String>,
    unanswered: Vec<String>,
    nonce: usize,
}

impl Server {
    fn receive(&mut self, request: Request) {
        let (nonce, first) = match request {
            Request::Sotw(request) => {
                let star = request.resource_names.iter().any(|name| name == "*");
                self.named |= !request.resource_names.is_empty();
                self.wildcard = star || (request.resource_names.is_empty() && !self.named);
                self.names = request.resource_names.into_iter().filter(|name| name != "*").collect();
                // A change of names repeats the latest nonce; only the first use of a nonce is its answer.
                let answer = self.unanswered.contains(&request.response_nonce);
                (if answer { request.response_nonce } else { String::new() }, !self.first_seen)
            }
            Request::Delta(request) => {
                let first = !self.first_seen;
                self.wildcard |= first && request.resource_names_subscribe.is_empty();
                assert!(first || request.initial_resource_versions.is_empty());
                for name in request.resource_names_subscribe {
                    self.wildcard |= name == "*";
                    assert!(name == "*" || self.names.insert(name.clone()), "{name} subscribed twice");
                }
                for name in request.resource_names_unsubscribe {
                    self.wildcard &= name != "*";
                    assert!(name == "*" || self.names.remove(&name), "{name} was not subscribed");
                }
                (request.response_nonce, first)
            }
        };
        self.first_seen = true;
        assert!(!first || nonce.is_empty(), "a nonce of an earlier stream");
        if !nonce.is_empty() {
            assert_eq!(self.unanswered.first(), Some(&nonce), "answers in order, each once");
            self.unanswered.remove(0);
        }
    }
}

/// What the judge was given and has accepted, by name.
type Accepted = BTreeMap<String, Vec<u8>>;

fn apply(update: &Update, refused: &BTreeMap<String, String>, accepted: &mut Accepted) {
    for resource in update.added.iter().filter(|resource| !refused.contains_key(&resource.name)) {
        accepted.insert(resource.name.clone(), resource.resource.value.clone());
    }
    for name in &update.removed {
        assert!(accepted.remove(name).is_some(), "{name} removed but never given");
    }
}

fn converse(mut world: World, delta: bool, kind: ResourceKind, steps: Vec<Step>) {
    let mut server = Server::default();
    let mut wanted: BTreeMap<String, usize> = BTreeMap::new();
    let mut wildcards = 0;
    let mut accepted = Accepted::new();
    // Something is always wanted, so that there always is a stream.
    world.ask(SDS, "anchor");
    world.open();
    let deliver = |world: &mut World, server: &mut Server| {
        for request in world.sent() {
            let type_url = match &request {
                Request::Sotw(request) => &request.type_url,
                Request::Delta(request) => &request.type_url,
            };
            if type_url == kind.type_url() {
                server.receive(request);
            }
        }
    };
    for step in steps {
        match step {
            Step::Ask(name) => {
                world.ask(kind, &name.to_string());
                *wanted.entry(name.to_string()).or_default() += 1;
            }
            Step::Drop(name) => {
                world.drop_name(kind, &name.to_string());
                if let Some(count) = wanted.get_mut(&name.to_string()) {
                    *count = count.saturating_sub(1);
                }
            }
            Step::AskAll => {
                world.ask_all(kind);
                wildcards += 1;
            }
            Step::DropAll => {
                world.drop_all(kind);
                wildcards = usize::saturating_sub(wildcards, 1);
            }
            Step::Respond { names, content, refuse, removed } => {
                if !server.first_seen {
                    continue;
                }
                server.nonce += 1;
                let nonce = server.nonce.to_string();
                world.refuse = refuse.map(|name| (name.to_string(), "no".to_owned())).into_iter().collect();
                if delta {
                    let resources = names.iter().map(|n| wrapped(kind, &n.to_string(), &content.to_string())).collect();
                    let removed: Vec<String> = removed.difference(&names).map(u8::to_string).collect();
                    let removed: Vec<&str> = removed.iter().map(String::as_str).collect();
                    world.say_delta(kind, &nonce, resources, &removed);
                } else {
                    let content = content.to_string();
                    let resources = names.iter().map(|n| resource_with(kind, &n.to_string(), &content)).collect();
                    world.say(kind, &content, &nonce, resources);
                }
                server.unanswered.push(nonce);
            }
            Step::Send => deliver(&mut world, &mut server),
            Step::Reconnect => {
                world.reopen();
                server = Server { nonce: server.nonce, ..Server::default() };
            }
            Step::Wait(milliseconds) => world.advance(std::time::Duration::from_millis(milliseconds.into())),
        }
        for update in std::mem::take(&mut world.updates) {
            apply(&update, &world.refuse, &mut accepted);
        }
        for event in world.events() {
            if let Event::Update(update) = event {
                apply(&update, &BTreeMap::new(), &mut accepted);
            }
        }
        // Whoever gives a resource up forgets it.
        accepted.retain(|name, _| wildcards > 0 || wanted.get(name).is_some_and(|count| *count > 0));
    }
    deliver(&mut world, &mut server);
    world.advance(seconds(11));
    deliver(&mut world, &mut server);
    assert!(server.unanswered.is_empty(), "no answer to {:?}", server.unanswered);
    let wanted: BTreeSet<String> = wanted.into_iter().filter(|(_, count)| *count > 0).map(|(name, _)| name).collect();
    if server.first_seen {
        assert_eq!(server.names, wanted);
        // Only a state-of-the-world server that never saw a name cannot be told that the wildcard is over.
        if delta || server.named || wildcards > 0 {
            assert_eq!(server.wildcard, wildcards > 0);
        }
    } else {
        assert!(wanted.is_empty() && wildcards == 0);
    }
    let state = world.core.types().find(|state| state.kind() == kind);
    let held: Accepted = state
        .map(|state| state.held().map(|(name, held)| (name.to_owned(), held.resource.value.clone())).collect())
        .unwrap_or_default();
    assert_eq!(held, accepted, "what is held is what the judge was given");
    assert!(world.sent().is_empty(), "quiet when all is said");
}

proptest! {
    // A failing conversation becomes a test of its own; files of seeds would only hide what it was about.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sotw_conversations_keep_the_rules(steps in prop::collection::vec(step(), 1..60), full in any::<bool>()) {
        converse(World::sotw(), false, if full { CDS } else { EDS }, steps);
    }

    #[test]
    fn delta_conversations_keep_the_rules(steps in prop::collection::vec(step(), 1..60), full in any::<bool>()) {
        converse(World::delta(), true, if full { CDS } else { EDS }, steps);
    }

    #[test]
    fn arbitrary_bytes_never_panic(value in prop::collection::vec(any::<u8>(), 0..200), wrapped in any::<bool>()) {
        for (delta, mut world) in [(false, World::sotw()), (true, World::delta())] {
            world.ask_all(CDS);
            world.open();
            world.sent();
            if delta {
                if let Ok(response) = prost::Message::decode(value.as_slice()) {
                    world.respond(outrigger_xds::core::Response::Delta(response));
                }
            } else {
                let type_url = if wrapped { in_any(&Default::default()).type_url } else { CDS.type_url().to_owned() };
                let any = outrigger_api::pb::google::protobuf::Any { type_url, value: value.clone() };
                world.say(CDS, "1", "n", vec![any]);
                prop_assert_eq!(world.sent().len(), 1);
            }
        }
    }
}
