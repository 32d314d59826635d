use outrigger_api::pb::envoy::service::discovery::v3::Resource;
use outrigger_xds::core::Event;
use outrigger_xds::{Interest, Origin, Update};

use crate::harness::*;

fn timeout(kind: outrigger_xds::ResourceKind, name: &str) -> Event {
    Event::FetchTimeout { kind, name: Some(name.into()) }
}

fn expired(world: &mut World) -> Vec<String> {
    let updates = world.events().into_iter().filter_map(|event| match event {
        Event::Update(Update { origin: Origin::Expiry, removed, .. }) => Some(removed),
        _ => None,
    });
    updates.flatten().collect()
}

#[test]
fn r50_initial_fetch_timeout_passes_once_and_a_later_answer_is_applied() {
    let mut world = World::sotw();
    world.core.subscribe(EDS, &Interest::Name("a".into()), Some(seconds(15)), world.now);
    world.core.subscribe(CDS, &Interest::Wildcard, Some(seconds(20)), world.now);
    world.open();
    world.sent();
    world.advance(seconds(14));
    assert!(world.events().is_empty());
    world.advance(seconds(1));
    assert_eq!(world.events(), [timeout(EDS, "a")]);
    world.advance(seconds(5));
    assert_eq!(world.events(), [Event::FetchTimeout { kind: CDS, name: None }]);
    assert_eq!(world.stats(EDS).init_fetch_timeout, 1);
    assert_eq!(world.core.poll_timeout(), None);
    world.say(EDS, "1", "n", vec![resource(EDS, "a")]);
    assert_eq!(added(&world.update()), ["a"]);
}

#[test]
fn r50_any_answer_ends_the_wait() {
    let mut world = World::sotw();
    for name in ["accepted", "refused", "given up"] {
        world.core.subscribe(EDS, &Interest::Name(name.into()), Some(seconds(15)), world.now);
    }
    world.core.subscribe(LDS, &Interest::Name("absent".into()), Some(seconds(15)), world.now);
    world.core.subscribe(CDS, &Interest::Wildcard, Some(seconds(15)), world.now);
    world.refuse.insert("refused".into(), "no".into());
    world.open();
    world.sent();
    world.say(EDS, "1", "n", vec![resource(EDS, "accepted"), resource(EDS, "refused")]);
    world.say(LDS, "1", "n", vec![]);
    world.say(CDS, "1", "n", vec![]);
    world.drop_name(EDS, "given up");
    world.advance(seconds(60));
    assert!(world.events().is_empty());
}

#[test]
fn r50_zero_waits_for_ever() {
    let mut world = World::sotw();
    world.core.subscribe(EDS, &Interest::Name("a".into()), Some(seconds(0)), world.now);
    world.open();
    world.sent();
    assert_eq!(world.core.poll_timeout(), None);
}

#[test]
fn r103_the_first_answer_may_take_minutes() {
    let mut world = World::delta();
    world.ask_all(LDS);
    world.open();
    world.sent();
    world.advance(seconds(600));
    assert!(world.events().is_empty() && world.sent().is_empty());
    world.say_delta(LDS, "n", vec![wrapped(LDS, "in", "1")], &[]);
    assert_eq!(added(&world.update()), ["in"]);
}

#[test]
fn r55_delta_ttl_expires_unless_a_heartbeat_comes() {
    let mut world = World::delta();
    world.ask(EDS, "a");
    world.open();
    world.sent();
    world.say_delta(EDS, "n1", vec![with_ttl(wrapped(EDS, "a", "1"), 10)], &[]);
    world.update();
    world.advance(seconds(9));
    let heartbeat = Resource { name: "a".into(), version: "1".into(), ..Resource::default() };
    world.say_delta(EDS, "n2", vec![with_ttl(heartbeat, 10)], &[]);
    assert!(world.update().added.is_empty());
    assert_eq!(world.sent_delta().last().unwrap().response_nonce, "n2");
    world.advance(seconds(9));
    assert!(expired(&mut world).is_empty());
    world.advance(seconds(1));
    assert_eq!(expired(&mut world), ["a"]);
    assert!(world.held(EDS).is_empty());
    world.reopen();
    assert!(world.one_delta().initial_resource_versions.is_empty());
}

#[test]
fn r55_sotw_heartbeats_remove_nothing() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    world.open();
    world.sent();
    let short_lived = with_ttl(wrapped(CDS, "short", "1"), 10);
    world.say(CDS, "1", "n1", vec![in_any(&short_lived), resource(CDS, "long")]);
    world.update();
    for nonce in ["n2", "n3", "n4"] {
        world.advance(seconds(8));
        let heartbeat = with_ttl(Resource { name: "short".into(), ..Resource::default() }, 10);
        world.say(CDS, "1", nonce, vec![in_any(&heartbeat)]);
        let update = world.update();
        assert!(update.added.is_empty() && update.removed.is_empty());
        assert_eq!(world.sent_sotw().last().unwrap().response_nonce, nonce);
    }
    world.advance(seconds(10));
    assert_eq!(expired(&mut world), ["short"]);
    assert_eq!(world.held(CDS), ["long"]);
}

#[test]
fn r55_a_resource_without_ttl_clears_it() {
    let mut world = World::delta();
    world.ask(EDS, "a");
    world.open();
    world.sent();
    world.say_delta(EDS, "n1", vec![with_ttl(wrapped(EDS, "a", "1"), 10)], &[]);
    world.say_delta(EDS, "n2", vec![wrapped(EDS, "a", "1")], &[]);
    assert_eq!(world.core.poll_timeout(), None);
}

#[test]
fn r55_a_body_must_come_with_a_new_version() {
    let mut world = World::delta();
    world.ask(EDS, "a");
    world.open();
    world.sent();
    world.say_delta(EDS, "n1", vec![wrapped(EDS, "a", "1")], &[]);
    world.sent();
    let bodyless = Resource { name: "a".into(), version: "2".into(), ..Resource::default() };
    world.say_delta(EDS, "n2", vec![bodyless], &[]);
    assert!(world.one_delta().error_detail.is_some());
    assert_eq!(world.held(EDS), ["a"]);
}

#[test]
fn r55_expiry_goes_on_while_the_stream_is_down() {
    let mut world = World::delta();
    world.ask_all(CDS);
    world.open();
    world.sent();
    world.say_delta(CDS, "n1", vec![with_ttl(wrapped(CDS, "a", "1"), 10), wrapped(CDS, "b", "1")], &[]);
    world.core.stream_closed(world.now, 1.0);
    world.advance(seconds(10));
    assert_eq!(expired(&mut world), ["a"]);
    assert_eq!(world.held(CDS), ["b"]);
}
