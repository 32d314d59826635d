use outrigger_api::pb::envoy::service::discovery::v3::Resource;
use outrigger_xds::Origin;
use outrigger_xds::core::Event;

use crate::harness::*;

/// A delta stream with clusters `a` and `b` held by wildcard and everything answered.
fn with_two_clusters() -> World {
    let mut world = World::delta();
    world.ask_all(CDS);
    world.open();
    world.sent();
    world.say_delta(CDS, "n1", vec![wrapped(CDS, "a", "1"), wrapped(CDS, "b", "2")], &[]);
    world.update();
    world.sent();
    world
}

#[test]
fn r30_first_request_claims_what_is_held() {
    let mut world = with_two_clusters();
    world.reopen();
    let first = world.one_delta();
    assert_eq!(first.response_nonce, "");
    let mut claims: Vec<_> = first.initial_resource_versions.into_iter().collect();
    claims.sort();
    assert_eq!(claims, [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
}

#[test]
fn r31_held_versions_are_claimed_once_per_stream() {
    let mut world = with_two_clusters();
    world.reopen();
    world.sent();
    world.say_delta(CDS, "n2", vec![], &[]);
    world.ask(CDS, "c");
    assert!(world.sent_delta().iter().all(|request| request.initial_resource_versions.is_empty()));
}

#[test]
fn r32_reconnect_restates_names_but_not_those_held_by_wildcard() {
    let mut world = with_two_clusters();
    world.ask(EDS, "y");
    world.ask(EDS, "x");
    world.sent();
    world.reopen();
    let sent = world.sent_delta();
    assert!(sent[0].resource_names_subscribe.is_empty());
    assert_eq!(sent[1].resource_names_subscribe, ["x", "y"]);
}

#[test]
fn r33_ack_has_the_nonce_nack_the_error_and_a_change_neither() {
    let mut world = World::delta();
    world.ask(EDS, "a");
    world.open();
    world.sent();
    world.say_delta(EDS, "n1", vec![wrapped(EDS, "a", "1")], &[]);
    let ack = world.one_delta();
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("n1", None));
    world.refuse.insert("a".into(), "bad port".into());
    world.say_delta(EDS, "n2", vec![wrapped(EDS, "a", "2")], &[]);
    world.ask(EDS, "b");
    let sent = world.sent_delta();
    assert_eq!(sent[0].response_nonce, "n2");
    assert!(sent[0].error_detail.is_some());
    assert!(sent[0].resource_names_subscribe.is_empty(), "Consul stops reading at error_detail");
    assert_eq!((sent[1].response_nonce.as_str(), &sent[1].error_detail), ("", &None));
    assert_eq!(sent[1].resource_names_subscribe, ["b"]);
}

#[test]
fn r34_changes_while_down_are_folded_into_the_first_request() {
    let mut world = World::delta();
    world.ask(EDS, "a");
    world.ask(EDS, "b");
    world.open();
    world.sent();
    world.core.stream_closed(world.now, 1.0);
    world.ask(EDS, "c");
    world.drop_name(EDS, "c");
    world.drop_name(EDS, "b");
    world.ask(EDS, "d");
    world.advance(seconds(1));
    world.open();
    let first = world.one_delta();
    assert_eq!(first.resource_names_subscribe, ["a", "d"]);
    assert!(first.resource_names_unsubscribe.is_empty());
}

#[test]
fn r35_an_empty_subscribe_list_is_sent_later_only_as_no_change() {
    let mut world = World::delta();
    world.ask(EDS, "a");
    world.open();
    world.sent();
    world.drop_name(EDS, "a");
    let request = world.one_delta();
    assert_eq!(request.resource_names_unsubscribe, ["a"]);
    world.ask_all(EDS);
    assert_eq!(world.one_delta().resource_names_subscribe, ["*"], "an empty list would mean no change");
}

#[test]
fn r36_removal_of_unknown_names_is_ignored() {
    let mut world = with_two_clusters();
    world.say_delta(CDS, "n2", vec![], &["never heard of"]);
    let update = world.update();
    assert!(update.removed.is_empty() && update.absent.is_empty());
    assert_eq!(world.one_delta().error_detail, None);
}

#[test]
fn r36_removal_spares_what_a_parent_refers_to() {
    for kind in [EDS, RDS, SDS] {
        let mut world = World::delta();
        world.ask(kind, "a");
        world.open();
        world.sent();
        world.say_delta(kind, "n1", vec![wrapped(kind, "a", "1")], &[]);
        world.update();
        world.say_delta(kind, "n2", vec![], &["a"]);
        assert!(world.update().removed.is_empty(), "{kind:?}");
        assert_eq!(world.held(kind), ["a"]);
        world.drop_name(kind, "a");
        world.sent();
        assert!(world.held(kind).is_empty());
    }
    let mut world = with_two_clusters();
    world.say_delta(CDS, "n2", vec![], &["a"]);
    assert_eq!(world.update().removed, ["a"]);
    assert_eq!(world.held(CDS), ["b"]);
}

#[test]
fn r36_removal_of_what_only_a_wildcard_brought_is_applied() {
    let mut world = World::delta();
    world.ask_all(SDS);
    world.open();
    world.sent();
    world.say_delta(SDS, "n1", vec![wrapped(SDS, "a", "1")], &[]);
    world.update();
    world.say_delta(SDS, "n2", vec![], &["a"]);
    assert_eq!(world.update().removed, ["a"]);
}

#[test]
fn r36_removal_of_a_name_that_never_came_says_it_does_not_exist() {
    let mut world = World::delta();
    world.ask(EDS, "a");
    world.open();
    world.sent();
    world.say_delta(EDS, "n1", vec![], &["a"]);
    assert_eq!(world.update().absent, ["a"]);
}

#[test]
fn r37_the_same_version_is_applied_after_a_new_subscription() {
    let mut world = World::delta();
    world.ask(EDS, "a");
    world.open();
    world.sent();
    world.say_delta(EDS, "n1", vec![wrapped(EDS, "a", "1")], &[]);
    world.update();
    world.drop_name(EDS, "a");
    world.sent();
    world.ask(EDS, "a");
    assert_eq!(world.one_delta().resource_names_subscribe, ["a"]);
    assert!(world.events().is_empty());
    world.say_delta(EDS, "n2", vec![wrapped(EDS, "a", "1")], &[]);
    assert_eq!(added(&world.update()), ["a"]);
}

#[test]
fn r38_what_was_dropped_is_not_claimed() {
    let mut world = World::delta();
    world.ask(EDS, "a");
    world.ask(EDS, "b");
    world.open();
    world.sent();
    world.say_delta(EDS, "n1", vec![wrapped(EDS, "a", "1"), wrapped(EDS, "b", "1")], &[]);
    world.drop_name(EDS, "a");
    world.sent();
    world.ask(EDS, "a");
    world.reopen();
    let first = world.one_delta();
    assert_eq!(first.initial_resource_versions.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(first.resource_names_subscribe, ["a", "b"]);
}

#[test]
fn r38_what_is_wanted_again_at_once_is_handed_over_from_the_cache() {
    let mut world = World::delta();
    world.ask(EDS, "a");
    world.open();
    world.sent();
    world.say_delta(EDS, "n1", vec![wrapped(EDS, "a", "1")], &[]);
    world.sent();
    world.drop_name(EDS, "a");
    world.ask(EDS, "a");
    assert!(world.sent().is_empty());
    let events = world.events();
    let [Event::Update(update)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((update.origin, added(update)), (Origin::Cache, vec!["a"]));
}

#[test]
fn r39_versions_are_opaque_and_belong_to_resources() {
    let mut world = with_two_clusters();
    world.say_delta(CDS, "n2", vec![wrapped(CDS, "a", "0")], &[]);
    let update = world.update();
    assert_eq!((added(&update), update.version.as_str()), (vec!["a"], ""));
    world.reopen();
    let claims = world.sent_delta().remove(0).initial_resource_versions;
    assert_eq!((claims["a"].as_str(), claims["b"].as_str()), ("0", "2"));
}

#[test]
fn r40_unsubscribing_a_name_under_a_wildcard_keeps_it_until_removed() {
    let mut world = with_two_clusters();
    world.ask(CDS, "a");
    assert!(world.events().is_empty(), "the wildcard has brought it already");
    world.sent();
    world.drop_name(CDS, "a");
    assert_eq!(world.one_delta().resource_names_unsubscribe, ["a"]);
    assert_eq!(world.held(CDS), ["a", "b"]);
    world.say_delta(CDS, "n2", vec![wrapped(CDS, "a", "1")], &[]);
    assert!(world.update().added.is_empty());
    world.say_delta(CDS, "n3", vec![], &["a"]);
    assert_eq!(world.update().removed, ["a"]);
}

#[test]
fn r41_an_empty_response_is_acked() {
    let mut world = World::delta();
    world.ask_all(CDS);
    world.open();
    world.sent();
    world.say_delta(CDS, "n1", vec![], &[]);
    world.update();
    assert_eq!(world.one_delta().response_nonce, "n1");
}

#[test]
fn r42_the_same_name_twice_is_refused() {
    let mut world = with_two_clusters();
    let twice = vec![wrapped(CDS, "a", "8"), wrapped(CDS, "a", "9"), wrapped(CDS, "c", "1")];
    world.say_delta(CDS, "n2", twice, &[]);
    assert_eq!(added(&world.update()), ["c"]);
    assert!(world.one_delta().error_detail.unwrap().message.contains("duplicate resource name \"a\""));
    world.say_delta(CDS, "n3", vec![wrapped(CDS, "b", "3")], &["b"]);
    let update = world.update();
    assert!(update.added.is_empty() && update.removed.is_empty());
}

#[test]
fn r43_the_name_inside_must_be_the_name_outside() {
    let mut world = with_two_clusters();
    let wrong = Resource { name: "c".into(), ..wrapped(CDS, "other", "1") };
    world.say_delta(CDS, "n2", vec![wrong], &[]);
    assert!(world.update().added.is_empty());
    let error = world.one_delta().error_detail.unwrap().message;
    assert_eq!(error, "Error adding/updating cluster(s) c: named \"other\" inside; both names must be equal");
}

#[test]
fn r44_virtual_hosts_answer_to_their_aliases() {
    let mut world = World::delta();
    world.ask(VHDS, "routes/example.com");
    world.open();
    world.sent();
    let aliases = vec!["routes/example.com".to_owned()];
    let host = Resource { aliases: aliases.clone(), ..wrapped(VHDS, "routes/example", "1") };
    world.say_delta(VHDS, "n1", vec![host], &[]);
    let update = world.update();
    assert_eq!((added(&update), &update.added[0].aliases), (vec!["routes/example"], &aliases));
    assert_eq!(world.one_delta().error_detail, None);

    world.ask(VHDS, "routes/gone.com");
    world.sent();
    let aliases = vec!["routes/gone.com".to_owned()];
    world.say_delta(VHDS, "n2", vec![Resource { name: "routes/gone".into(), aliases, ..Resource::default() }], &[]);
    assert!(world.update().absent.contains(&"routes/gone.com".to_owned()));
}

#[test]
fn r45_absence_after_reconnect_means_unchanged() {
    let mut world = with_two_clusters();
    world.reopen();
    world.sent();
    world.say_delta(CDS, "n2", vec![wrapped(CDS, "c", "1")], &[]);
    assert!(world.update().removed.is_empty());
    assert_eq!(world.held(CDS), ["a", "b", "c"]);
}

#[test]
fn r68_types_may_come_in_any_order() {
    let mut world = World::delta();
    for kind in [LDS, CDS] {
        world.ask_all(kind);
    }
    world.ask(EDS, "a");
    world.open();
    world.sent();
    for (kind, name) in [(EDS, "a"), (LDS, "in"), (CDS, "a")] {
        world.say_delta(kind, kind.noun(), vec![wrapped(kind, name, "1")], &[]);
        assert_eq!(added(&world.update()), [name]);
    }
    assert_eq!(world.sent().len(), 3);
}

#[test]
fn r101_what_consul_needs() {
    let mut world = with_two_clusters();
    // A NACK or ACK never waits for anything, and the next stream claims what is held.
    world.say_delta(CDS, "n2", vec![], &["b"]);
    assert_eq!(world.one_delta().response_nonce, "n2");
    // ResourceExhausted is an end of the stream like any other: normal backoff.
    world.core.stream_closed(world.now, 1.0);
    assert_eq!(world.core.poll_timeout(), Some(world.now + std::time::Duration::from_millis(500)));
    world.advance(seconds(1));
    world.open();
    let first = world.one_delta();
    assert!(first.resource_names_subscribe.is_empty(), "legacy wildcard");
    assert_eq!(first.initial_resource_versions.len(), 1);
}

#[test]
fn r102_the_same_endpoints_again_change_nothing() {
    let mut world = World::delta();
    world.ask(EDS, "a");
    world.open();
    world.sent();
    for nonce in ["n1", "n2", "n3"] {
        world.say_delta(EDS, nonce, vec![wrapped(EDS, "a", "1")], &[]);
        let update = world.update();
        assert_eq!(update.added.len(), usize::from(nonce == "n1"));
        assert_eq!(world.one_delta().response_nonce, nonce);
    }
}

#[test]
fn what_came_by_a_wildcard_the_server_never_heard_of_is_forgotten_with_it() {
    let mut world = World::delta();
    world.ask(EDS, "a");
    world.open();
    world.sent();
    world.ask_all(EDS);
    world.say_delta(EDS, "n1", vec![wrapped(EDS, "b", "1")], &[]);
    world.drop_all(EDS);
    world.sent();
    assert!(world.held(EDS).is_empty());
}
