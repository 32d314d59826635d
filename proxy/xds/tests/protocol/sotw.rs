use std::time::Duration;

use outrigger_xds::core::Ending;
use outrigger_xds::{Protocol, RateLimit};

use crate::harness::*;

#[test]
fn r2_node_is_in_the_first_request_of_every_stream() {
    for first_only in [true, false] {
        let mut world = World::with(outrigger_xds::core::StreamOptions {
            node_on_first_message_only: first_only,
            ..options(Protocol::Sotw)
        });
        world.ask_all(CDS);
        world.ask_all(LDS);
        for _ in 0..2 {
            if world.core.is_connected() {
                world.reopen();
            } else {
                world.open();
            }
            let sent = world.sent_sotw();
            assert_eq!(sent[0].node.as_ref().unwrap().id, "sidecar~1");
            assert_eq!(sent[1].node.is_none(), first_only);
        }
    }
}

#[test]
fn r3_the_node_is_sent_as_the_caller_made_it() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    world.open();
    assert_eq!(world.one_sotw().node, Some(options(Protocol::Sotw).node));
}

#[test]
fn r4_type_url_is_in_every_request() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    world.ask(EDS, "a");
    world.open();
    world.say(CDS, "1", "n", vec![]);
    assert!(world.sent_sotw().iter().all(|request| !request.type_url.is_empty()));
}

#[test]
fn r7_backoff_grows_with_jitter_and_resets_after_the_first_response() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    for bound in [500, 1000, 2000] {
        assert!(world.core.poll_connect(world.now));
        assert!(!world.core.poll_connect(world.now), "connects once");
        assert_eq!(world.core.stream_closed(world.now, 0.5), Ending::Failure);
        assert_eq!(world.core.poll_timeout(), Some(world.now + Duration::from_millis(bound / 2)));
        assert!(!world.core.poll_connect(world.now));
        world.advance(Duration::from_millis(bound));
    }
    world.open();
    world.sent();
    world.say(CDS, "1", "n", vec![]);
    world.core.stream_closed(world.now, 1.0);
    assert_eq!(world.core.poll_timeout(), Some(world.now + Duration::from_millis(500)));
}

#[test]
fn r8_a_stream_closed_after_a_response_is_no_failure() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    world.open();
    world.sent();
    world.say(CDS, "1", "n", vec![]);
    assert_eq!(world.core.stream_closed(world.now, 1.0), Ending::Normal);
    assert_eq!(world.stats(CDS).update_failure, 0);
    world.advance(seconds(1));
    world.open();
    assert_eq!(world.core.stream_closed(world.now, 1.0), Ending::Failure);
    assert_eq!(world.stats(CDS).update_failure, 1);
}

#[test]
fn r9_losing_the_control_plane_keeps_the_config() {
    let mut world = World::sotw();
    world.ask_all(LDS);
    world.open();
    world.sent();
    world.say(LDS, "1", "n", vec![resource(LDS, "in")]);
    world.update();
    world.core.stream_closed(world.now, 1.0);
    world.advance(seconds(86_400));
    assert_eq!(world.events(), [outrigger_xds::core::Event::Connected(false)]);
    assert_eq!(world.held(LDS), ["in"]);
}

#[test]
fn r13_requests_keep_to_the_rate_limit() {
    let rate_limit = Some(RateLimit { max_tokens: 3, fill_rate: 2.0 });
    let mut world = World::with(outrigger_xds::core::StreamOptions { rate_limit, ..options(Protocol::Sotw) });
    world.ask_all(CDS);
    world.open();
    let mut sent = world.sent().len();
    for round in 0..10 {
        world.say(CDS, "1", &round.to_string(), vec![]);
        sent += world.sent().len();
    }
    assert_eq!(sent, 3);
    let until = world.core.poll_timeout().unwrap();
    assert!(until > world.now && until <= world.now + Duration::from_millis(501));
    for _ in 0..8 {
        world.advance(Duration::from_millis(501));
        assert_eq!(world.sent().len(), 1);
    }
    world.advance(seconds(60));
    assert!(world.sent().is_empty());
}

#[test]
fn r14_ack_has_version_nonce_and_the_full_list() {
    let mut world = World::sotw();
    world.ask(EDS, "b");
    world.ask(EDS, "a");
    world.open();
    world.sent();
    world.say(EDS, "7", "n1", vec![resource(EDS, "a")]);
    let ack = world.one_sotw();
    assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str()), ("7", "n1"));
    assert_eq!(ack.resource_names, ["a", "b"]);
    assert_eq!(ack.error_detail, None);
}

#[test]
fn r16_every_response_gets_one_answer_in_order() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    world.ask(EDS, "a");
    world.open();
    world.sent();
    world.refuse.insert("bad".into(), "no".into());
    world.say(CDS, "1", "c1", vec![resource(CDS, "good")]);
    world.say(CDS, "2", "c2", vec![resource(CDS, "bad")]);
    world.say(EDS, "1", "e1", vec![resource(EDS, "a")]);
    world.say(CDS, "3", "c3", vec![]);
    let sent = world.sent_sotw();
    let of = |kind: outrigger_xds::ResourceKind| -> Vec<(&str, &str, bool)> {
        sent.iter()
            .filter(|r| r.type_url == kind.type_url())
            .map(|r| (r.response_nonce.as_str(), r.version_info.as_str(), r.error_detail.is_some()))
            .collect()
    };
    assert_eq!(of(CDS), [("c1", "1", false), ("c2", "1", true), ("c3", "3", false)]);
    assert_eq!(of(EDS), [("e1", "1", false)]);
}

#[test]
fn r17_a_new_stream_starts_without_nonce_but_with_the_accepted_version() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    world.open();
    let first = world.one_sotw();
    assert_eq!((first.version_info.as_str(), first.response_nonce.as_str()), ("", ""));
    world.say(CDS, "5", "n", vec![resource(CDS, "a")]);
    world.sent();
    world.reopen();
    let again = world.one_sotw();
    assert_eq!((again.version_info.as_str(), again.response_nonce.as_str()), ("5", ""));
}

#[test]
fn r18_pending_answers_die_with_their_stream() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    world.open();
    world.sent();
    world.say(CDS, "1", "old", vec![]);
    world.reopen();
    assert_eq!(world.one_sotw().response_nonce, "");
    world.ask(CDS, "a");
    assert_eq!(world.one_sotw().response_nonce, "");
}

#[test]
fn r19_subscription_change_uses_latest_nonce_and_full_list() {
    let mut world = World::sotw();
    world.ask(EDS, "a");
    world.open();
    world.sent();
    world.say(EDS, "1", "n1", vec![resource(EDS, "a")]);
    world.say(EDS, "2", "n2", vec![resource_with(EDS, "a", "2")]);
    world.ask(EDS, "b");
    for request in world.sent_sotw() {
        assert_eq!(request.resource_names, ["a", "b"]);
    }
    world.ask(EDS, "c");
    let change = world.one_sotw();
    assert_eq!((change.version_info.as_str(), change.response_nonce.as_str()), ("2", "n2"));
    assert_eq!(change.resource_names, ["a", "b", "c"]);
    world.say(EDS, "3", "n3", vec![]);
    assert_eq!(world.one_sotw().resource_names, ["a", "b", "c"]);
}

#[test]
fn r20_an_older_version_is_applied() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    world.open();
    world.sent();
    world.say(CDS, "9", "n", vec![resource(CDS, "a"), resource(CDS, "b")]);
    world.update();
    world.reopen();
    world.sent();
    world.say(CDS, "3", "n", vec![resource_with(CDS, "a", "older"), resource(CDS, "b")]);
    let update = world.update();
    assert_eq!(added(&update), ["a"]);
    assert!(update.removed.is_empty());
    assert_eq!(world.one_sotw().version_info, "3");
}

#[test]
fn r22_identical_content_is_acked_without_a_change() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    world.open();
    world.sent();
    world.say(CDS, "1", "n1", vec![resource(CDS, "a")]);
    world.update();
    world.sent();
    world.say(CDS, "2", "n2", vec![resource(CDS, "a")]);
    let update = world.update();
    assert!(update.added.is_empty() && update.removed.is_empty());
    assert_eq!(world.one_sotw().version_info, "2");
}

#[test]
fn r23_a_type_nobody_asked_for_is_ignored_without_answer() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    world.open();
    world.sent();
    world.say(LDS, "1", "n", vec![resource(LDS, "in")]);
    world.respond(outrigger_xds::core::Response::Sotw(
        outrigger_api::pb::envoy::service::discovery::v3::DiscoveryResponse {
            type_url: "type.googleapis.com/unheard.of".into(),
            ..Default::default()
        },
    ));
    assert!(world.sent().is_empty() && world.updates.is_empty());
    assert!(world.core.is_connected());
}

#[test]
fn r23_a_response_before_the_first_request_is_ignored() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    world.open();
    world.sent();
    world.ask(EDS, "a");
    world.say(EDS, "1", "early", vec![resource(EDS, "a")]);
    assert!(world.updates.is_empty());
    assert_eq!(world.one_sotw().response_nonce, "");
}

#[test]
fn r23_after_the_last_name_a_response_is_still_acked_and_its_nonce_kept() {
    let mut world = World::sotw();
    world.ask(RDS, "r");
    world.open();
    world.sent();
    world.say(RDS, "1", "n1", vec![resource(RDS, "r")]);
    world.sent();
    world.updates.clear();
    world.drop_name(RDS, "r");
    assert_eq!(world.one_sotw().resource_names, Vec::<String>::new());
    world.say(RDS, "2", "n2", vec![resource(RDS, "r"), resource(CDS, "wrong type")]);
    let ack = world.one_sotw();
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("n2", None));
    assert!(world.updates.is_empty());
    world.ask(RDS, "s");
    let again = world.one_sotw();
    assert_eq!((again.response_nonce.as_str(), again.version_info.as_str()), ("n2", ""));
}

#[test]
fn r24_absence_removes_listeners_and_clusters_but_nothing_else() {
    for (kind, removes) in [(LDS, true), (CDS, true), (EDS, false), (RDS, false), (SDS, false)] {
        let mut world = World::sotw();
        world.ask(kind, "a");
        world.ask(kind, "b");
        world.open();
        world.sent();
        world.say(kind, "1", "n1", vec![resource(kind, "a"), resource(kind, "b")]);
        assert_eq!(world.update().full_state, removes);
        world.say(kind, "2", "n2", vec![resource_with(kind, "a", "2")]);
        let update = world.update();
        assert_eq!(update.removed, if removes { vec!["b"] } else { vec![] }, "{kind:?}");
        assert_eq!(world.held(kind).len(), if removes { 1 } else { 2 });
    }
}

#[test]
fn r25_an_empty_response_is_valid_and_removes_everything() {
    let mut world = World::sotw();
    world.ask_all(LDS);
    world.open();
    world.sent();
    world.say(LDS, "1", "n1", vec![]);
    assert!(world.update().removed.is_empty());
    assert_eq!(world.one_sotw().version_info, "1");
    world.say(LDS, "2", "n2", vec![resource(LDS, "a"), resource(LDS, "b")]);
    world.update();
    world.say(LDS, "3", "n3", vec![]);
    assert_eq!(world.update().removed, ["a", "b"]);
    assert_eq!(world.sent_sotw().last().unwrap().version_info, "3");
    assert!(world.held(LDS).is_empty());
}

#[test]
fn r26_resources_not_asked_for_are_ignored() {
    let mut world = World::sotw();
    world.ask(EDS, "a");
    world.open();
    world.sent();
    world.say(EDS, "1", "n", vec![resource(EDS, "a"), resource(EDS, "stranger")]);
    assert_eq!(added(&world.update()), ["a"]);
    assert_eq!(world.held(EDS), ["a"]);
    assert_eq!(world.one_sotw().error_detail, None);
}

#[test]
fn r27_another_type_is_refused_and_wrappers_are_opened() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    world.open();
    world.sent();
    world.say(CDS, "1", "n1", vec![in_any(&wrapped(CDS, "a", "a7")), resource(LDS, "in")]);
    let update = world.update();
    assert_eq!((added(&update), update.added[0].version.as_str()), (vec!["a"], "a7"));
    assert_eq!(update.added[0].resource.type_url, CDS.type_url());
    let error = world.one_sotw().error_detail.unwrap();
    assert!(error.message.contains("resources[1]: type is \"type.googleapis.com/envoy.config.listener.v3.Listener\""));
}

#[test]
fn r28_names_of_one_parent_update_go_into_one_request() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    world.open();
    world.sent();
    world.say(CDS, "1", "n", (0..100).map(|i| resource(CDS, &i.to_string())).collect());
    for i in 0..100 {
        world.ask(EDS, &i.to_string());
    }
    let sent = world.sent_sotw();
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[0].type_url, CDS.type_url(), "the ACK goes first");
    assert_eq!(sent[1].resource_names.len(), 100);
}

#[test]
fn r29_subscriptions_change_while_the_server_does_not_answer() {
    let mut world = World::sotw();
    world.ask(EDS, "a");
    world.open();
    world.sent();
    for name in ["b", "c"] {
        world.advance(seconds(60));
        world.ask(EDS, name);
        assert_eq!(world.sent_sotw().len(), 1);
    }
    world.drop_name(EDS, "a");
    assert_eq!(world.one_sotw().resource_names, ["b", "c"]);
}

#[test]
fn r61_after_reconnect_only_names_still_wanted_are_asked_for() {
    let mut world = World::sotw();
    world.ask(EDS, "warming");
    world.ask(EDS, "removed");
    world.open();
    world.sent();
    world.core.stream_closed(world.now, 1.0);
    world.drop_name(EDS, "removed");
    world.ask(EDS, "new");
    world.advance(seconds(1));
    world.open();
    assert_eq!(world.one_sotw().resource_names, ["new", "warming"]);
}

#[test]
fn r57_a_resource_watched_twice_is_one_subscription() {
    let mut world = World::sotw();
    world.ask(RDS, "r");
    world.open();
    world.sent();
    world.ask(RDS, "r");
    world.drop_name(RDS, "r");
    assert!(world.sent().is_empty());
    world.drop_name(RDS, "r");
    assert_eq!(world.one_sotw().resource_names, Vec::<String>::new());
    assert!(world.core.wants_nothing());
}

#[test]
fn a_name_given_up_and_wanted_again_at_once_comes_from_the_cache() {
    for another_name in [false, true] {
        given_up_and_wanted_again(another_name);
    }
}

fn given_up_and_wanted_again(another_name: bool) {
    let mut world = World::sotw();
    world.ask(EDS, "a");
    if another_name {
        world.ask(EDS, "b");
    }
    world.open();
    world.sent();
    world.say(EDS, "1", "n", vec![resource(EDS, "a")]);
    world.sent();
    world.drop_name(EDS, "a");
    // The server still thinks the name is wanted, so this is the newest there is.
    world.say(EDS, "2", "n2", vec![resource_with(EDS, "a", "2")]);
    world.ask(EDS, "a");
    let events = world.events();
    let [outrigger_xds::core::Event::Update(update)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(update.origin, outrigger_xds::Origin::Cache);
    assert_eq!(*update.added[0].resource, resource_with(EDS, "a", "2"));
}
