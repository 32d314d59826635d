use outrigger_xds::Protocol;
use outrigger_xds::core::StreamOptions;

use crate::harness::*;

#[test]
fn r46_sotw_legacy_wildcard_is_an_empty_first_list() {
    let mut world = World::sotw();
    world.ask_all(LDS);
    world.open();
    assert!(world.one_sotw().resource_names.is_empty());
    world.say(LDS, "1", "n", vec![resource(LDS, "any")]);
    assert_eq!(added(&world.update()), ["any"]);
    assert!(world.one_sotw().resource_names.is_empty());
}

#[test]
fn r46_sotw_wildcard_beside_names_lists_the_star() {
    let mut world = World::sotw();
    world.ask_all(LDS);
    world.open();
    world.sent();
    world.ask(LDS, "a");
    assert_eq!(world.one_sotw().resource_names, ["*", "a"]);
    world.drop_name(LDS, "a");
    assert_eq!(world.one_sotw().resource_names, ["*"], "an empty list would now mean nothing");
    world.reopen();
    assert!(world.one_sotw().resource_names.is_empty(), "a new stream starts anew");
}

#[test]
fn r46_delta_legacy_wildcard_stays_while_names_come_and_go() {
    let mut world = World::delta();
    world.ask_all(CDS);
    world.open();
    assert!(world.one_delta().resource_names_subscribe.is_empty());
    world.ask(CDS, "a");
    assert_eq!(world.one_delta().resource_names_subscribe, ["a"]);
    world.drop_all(CDS);
    let request = world.one_delta();
    assert_eq!(request.resource_names_unsubscribe, ["*"]);
    assert!(request.resource_names_subscribe.is_empty());
}

#[test]
fn r46_delta_legacy_wildcard_with_names_takes_two_requests_on_a_new_stream() {
    let mut world = World::delta();
    world.ask(CDS, "a");
    world.ask_all(CDS);
    world.open();
    let sent = world.sent_delta();
    assert_eq!(sent.len(), 2);
    assert!(sent[0].resource_names_subscribe.is_empty());
    assert_eq!(sent[1].resource_names_subscribe, ["a"]);
}

#[test]
fn r47_explicit_wildcard_is_a_matter_of_configuration() {
    let explicit = |protocol| World::with(StreamOptions { explicit_wildcard: true, ..options(protocol) });
    let mut world = explicit(Protocol::Sotw);
    world.ask_all(LDS);
    world.open();
    assert_eq!(world.one_sotw().resource_names, ["*"]);
    let mut world = explicit(Protocol::Delta);
    world.ask_all(LDS);
    world.ask(LDS, "a");
    world.open();
    assert_eq!(world.one_delta().resource_names_subscribe, ["*", "a"]);
}

#[test]
fn r49_named_listeners_without_wildcard() {
    let mut world = World::sotw();
    world.ask(LDS, "a");
    world.open();
    assert_eq!(world.one_sotw().resource_names, ["a"]);
    world.say(LDS, "1", "n", vec![]);
    assert_eq!(world.update().absent, ["a"]);
    world.sent();
    world.drop_name(LDS, "a");
    assert!(world.one_sotw().resource_names.is_empty(), "unsubscribed from all");
    world.reopen_without_interest();
    assert!(world.sent().is_empty(), "an empty first list would be the wildcard");
}

#[test]
fn sotw_wildcard_given_up_and_wanted_again_is_sent_anew() {
    let mut world = World::sotw();
    world.ask_all(CDS);
    world.ask(EDS, "keeps the stream");
    world.open();
    world.sent();
    world.say(CDS, "1", "n", vec![resource(CDS, "a")]);
    world.sent();
    world.drop_all(CDS);
    assert!(world.sent().is_empty());
    world.ask_all(CDS);
    let request = world.one_sotw();
    assert_eq!((request.version_info.as_str(), request.response_nonce.as_str()), ("", "n"));
}

impl World {
    fn reopen_without_interest(&mut self) {
        self.core.stream_closed(self.now, 1.0);
        self.ask(EDS, "other");
        self.advance(seconds(30));
        self.open();
        assert_eq!(self.one_sotw().type_url, EDS.type_url());
    }
}
