use std::time::Duration;

use outrigger_api::pb::envoy::service::discovery::v3::{DiscoveryResponse, ResourceError, ResourceName};
use outrigger_api::pb::google::protobuf::Any;
use outrigger_api::pb::google::rpc::Status;
use outrigger_xds::core::Response;

use crate::harness::*;

/// A state-of-the-world stream that has accepted listener `in` at version 1 and now gets a bad one.
fn with_a_rejection() -> World {
    let mut world = World::sotw();
    world.ask_all(LDS);
    world.open();
    world.sent();
    world.say(LDS, "1", "n1", vec![resource(LDS, "in")]);
    world.sent();
    world.updates.clear();
    world.refuse.insert("in".into(), "filter_chains: empty".into());
    world.say(LDS, "2", "n2", vec![resource_with(LDS, "in", "bad"), resource(LDS, "out")]);
    world
}

#[test]
fn r15_nack_has_the_old_version_the_new_nonce_and_the_reason() {
    let mut world = with_a_rejection();
    let nack = world.one_sotw();
    assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("1", "n2"));
    let error = nack.error_detail.unwrap();
    assert_eq!(error.code, 3);
    assert_eq!(error.message, "Error adding/updating listener(s) in: filter_chains: empty");

    let mut world = World::sotw();
    world.ask(EDS, "a");
    world.open();
    world.sent();
    world.refuse.insert("a".into(), "no".into());
    world.say(EDS, "1", "n", vec![resource(EDS, "a")]);
    let nack = world.one_sotw();
    assert_eq!((nack.version_info.as_str(), nack.resource_names), ("", vec!["a".to_owned()]));
}

#[test]
fn r21_resent_rejected_content_is_damped() {
    let mut world = with_a_rejection();
    let mut answers = 0;
    let end = world.now + seconds(60);
    // A server that resends at once, as soon as it hears the NACK.
    while world.now < end {
        let sent = world.sent().len();
        answers += sent;
        if sent > 0 {
            world.say(LDS, "2", &format!("again {answers}"), vec![resource_with(LDS, "in", "bad")]);
        } else {
            let until = world.core.poll_timeout().expect("the NACK is only held back");
            world.now = until.max(world.now + Duration::from_millis(1));
        }
    }
    assert!((5..20).contains(&answers), "{answers} NACKs in a minute");
}

#[test]
fn r21_a_nack_held_back_goes_out_with_other_news() {
    let mut world = with_a_rejection();
    world.sent();
    world.say(LDS, "3", "n3", vec![resource_with(LDS, "in", "bad")]);
    assert!(world.sent().is_empty());
    world.ask(LDS, "x");
    let nack = world.one_sotw();
    assert!(nack.error_detail.is_some());
    assert_eq!(nack.resource_names, ["*", "x"]);
    world.say(LDS, "4", "n4", vec![resource_with(LDS, "in", "bad")]);
    world.refuse.clear();
    world.say(LDS, "5", "n5", vec![resource(LDS, "in")]);
    let sent = world.sent_sotw();
    assert_eq!(sent.iter().map(|r| r.response_nonce.as_str()).collect::<Vec<_>>(), ["n4", "n5"]);
}

#[test]
fn r42_sotw_the_same_name_twice_is_refused() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    world.open();
    world.sent();
    world.say(CDS, "1", "n", vec![resource(CDS, "a"), resource_with(CDS, "a", "x"), resource(CDS, "b")]);
    assert_eq!(added(&world.update()), ["b"]);
    let message = world.one_sotw().error_detail.unwrap().message;
    assert_eq!(message, "Error adding/updating cluster(s) a: duplicate resource name \"a\" in one response");
}

#[test]
fn r53_a_refused_resource_keeps_its_old_version() {
    let mut world = with_a_rejection();
    let update = world.update();
    assert!(update.removed.is_empty() && update.absent.is_empty());
    let state = world.core.types().next().unwrap();
    let (_, held) = state.held().find(|(name, _)| *name == "in").unwrap();
    assert_eq!((held.version.as_str(), &*held.resource), ("1", &resource(LDS, "in")));
    let (name, failure) = state.failures().next().unwrap();
    assert_eq!((name, failure.version.as_str()), ("in", "2"));
    world.refuse.clear();
    world.say(LDS, "3", "n3", vec![resource_with(LDS, "in", "good")]);
    assert_eq!(world.core.types().next().unwrap().failures().count(), 0);
}

#[test]
fn r56_resource_errors_are_recorded_and_not_found_is_absence() {
    let mut world = World::sotw();
    world.ask(EDS, "gone");
    world.ask(EDS, "broken");
    world.open();
    world.sent();
    let error = |name: &str, code| ResourceError {
        resource_name: Some(ResourceName { name: name.into(), dynamic_parameter_constraints: None }),
        error_detail: Some(Status { code, message: "because".into(), details: vec![] }),
    };
    let response = DiscoveryResponse {
        type_url: EDS.type_url().into(),
        resource_errors: vec![error("gone", 5), error("broken", 13)],
        ..DiscoveryResponse::default()
    };
    world.respond(Response::Sotw(response));
    assert_eq!(world.update().absent, ["gone"]);
    assert_eq!(world.one_sotw().error_detail, None);
    let failures = |world: &World| -> Vec<String> {
        world.core.types().next().unwrap().failures().map(|(name, _)| name.to_owned()).collect()
    };
    assert_eq!(failures(&world), ["broken"]);
    world.say(EDS, "2", "n2", vec![]);
    assert_eq!(failures(&world), ["broken"]);
    world.say(EDS, "3", "n3", vec![resource(EDS, "broken")]);
    assert!(failures(&world).is_empty());
}

#[test]
fn r66_the_answer_is_ready_as_soon_as_the_judge_returns() {
    let mut world = World::sotw();
    world.ask_all(LDS);
    world.open();
    world.sent();
    world.say(LDS, "1", "n", vec![resource(LDS, "in")]);
    assert_eq!(world.one_sotw().version_info, "1");
}

#[test]
fn r69_good_resources_of_a_refused_response_are_applied() {
    let mut world = with_a_rejection();
    assert_eq!(added(&world.update()), ["in", "out"]);
    assert_eq!(world.held(LDS), ["in", "out"]);
    assert_eq!(world.one_sotw().version_info, "1");
}

#[test]
fn r70_the_nack_names_every_bad_resource_and_is_bounded() {
    let mut world = World::sotw();
    world.ask_all(LDS);
    world.open();
    world.sent();
    for name in ["a", "b"] {
        world.refuse.insert(name.into(), "bad".into());
    }
    world.say(LDS, "1", "n", vec![resource(LDS, "a"), resource(LDS, "b")]);
    let message = world.one_sotw().error_detail.unwrap().message;
    assert_eq!(message, "Error adding/updating listener(s) a: bad\nError adding/updating listener(s) b: bad");

    let many: Vec<Any> = (0..500).map(|i| resource(LDS, &format!("listener {i}"))).collect();
    world.refuse = (0..500).map(|i| (format!("listener {i}"), "x".repeat(100))).collect();
    world.say(LDS, "2", "n2", many);
    world.advance(seconds(1));
    assert!(world.one_sotw().error_detail.unwrap().message.len() <= 8192);
}

#[test]
fn r71_unknown_fields_do_not_matter() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    world.open();
    world.sent();
    world.say(CDS, "1", "n", vec![resource_with(CDS, "a", "in a field no one knows")]);
    assert_eq!(world.one_sotw().error_detail, None);
}

#[test]
fn r79_malformed_bytes_are_refused_and_harm_nothing() {
    let mut world = World::sotw();
    world.ask_all(LDS);
    world.ask_all(CDS);
    world.open();
    world.sent();
    world.say(LDS, "1", "n1", vec![resource(LDS, "in")]);
    world.sent();
    let garbage = Any { type_url: LDS.type_url().into(), value: vec![0x0a, 0xff, 0xff, 0xff] };
    let wrapper = Any { type_url: in_any(&wrapped(LDS, "x", "1")).type_url, value: vec![0xff; 40] };
    let nested = in_any(&outrigger_api::pb::envoy::service::discovery::v3::Resource {
        resource: Some(in_any(&wrapped(LDS, "x", "1"))),
        ..Default::default()
    });
    world.say(LDS, "2", "n2", vec![garbage, wrapper, nested, resource(LDS, "out"), resource(LDS, "")]);
    let message = world.one_sotw().error_detail.unwrap().message;
    for index in [0, 1, 2, 4] {
        assert!(message.contains(&format!("resources[{index}]: ")), "{message}");
    }
    // Which listener the garbage was meant to be is not known, so absence proves nothing.
    assert_eq!(world.held(LDS), ["in", "out"]);
    world.say(CDS, "1", "c1", vec![resource(CDS, "a")]);
    assert_eq!(world.one_sotw().error_detail, None);
}

#[test]
fn r80_accepts_rejects_and_failures_are_counted() {
    let mut world = with_a_rejection();
    let stats = world.stats(LDS);
    assert_eq!((stats.update_success, stats.update_rejected, stats.update_failure), (1, 1, 0));
    assert_eq!((stats.update_attempt, stats.version.as_str(), stats.updated), (3, "1", Some(world.now)));
    assert!(stats.last_error.unwrap().contains("filter_chains"));
    assert_ne!(world.stats(LDS).version_hash(), 0);
    assert!(world.core.is_connected());
    world.core.stream_closed(world.now, 1.0);
    world.advance(seconds(1));
    world.core.poll_connect(world.now);
    world.core.stream_closed(world.now, 1.0);
    assert_eq!(world.stats(LDS).update_failure, 1);
}
