//! Each kind of permission and principal, and what policies make of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use outrigger_config::cel::Expression;
use outrigger_config::matcher::{Ask, Input, InputMatcher, Matcher, OnMatch, Predicate};
use outrigger_config::matching::{
    FilterStateMatcher, FilterStateValue, MetadataMatcher, StringMatcher, UriTemplate, ValueMatcher,
};
use outrigger_config::rbac::{
    Action, Engine, MetadataSource, NamedAction, Permission, Policy, Principal, Rules, SourcedMetadata,
};
use outrigger_config::route::{HeaderMatch, HeaderMatcher};
use outrigger_config::tls::{SanKind, SanMatcher};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::rules::{identifies, permits};
use super::{Decision, Facts, LookAt, Nearest, Part, Peer, decide, nearest};
use crate::route::RequestView;

#[derive(Debug, Default)]
struct Request {
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
}

impl RequestView for Request {
    fn host(&self) -> &str {
        "host"
    }

    fn path(&self) -> &str {
        self.path
    }

    fn method(&self) -> &str {
        "GET"
    }

    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_bytes())
    }

    fn is_grpc(&self) -> bool {
        false
    }
}

/// A connection from 10.0.0.1:5000, told by a PROXY protocol header; its request comes from 192.0.2.1.
struct Sample {
    request: Option<Request>,
    tls: bool,
    uris: Vec<String>,
    dns: Vec<String>,
    subject: &'static str,
    verified: bool,
    route: bool,
    metadata: BTreeMap<&'static str, Value>,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            request: None,
            tls: false,
            uris: Vec::new(),
            dns: Vec::new(),
            subject: "",
            verified: false,
            route: true,
            metadata: BTreeMap::from([("f", json!({"k": "v", "n": {"x": 1}}))]),
        }
    }
}

impl Sample {
    fn web() -> Self {
        let headers = vec![("x-a", "1"), ("x-a", "2")];
        Self { request: Some(Request { path: "/shop/item?q=/admin#f", headers }), ..Self::default() }
    }

    fn mutual_tls() -> Self {
        Self {
            tls: true,
            uris: vec!["spiffe://td/ns/a/sa/web".into()],
            dns: vec!["web.example.com".into(), "api.example.com".into()],
            subject: "CN=web",
            verified: true,
            ..Self::default()
        }
    }
}

impl Facts for Sample {
    type Request = Request;

    fn request(&self) -> Option<&Request> {
        self.request.as_ref()
    }

    fn destination(&self) -> Option<SocketAddr> {
        "172.16.0.9:8080".parse().ok()
    }

    fn source(&self) -> Option<SocketAddr> {
        "10.0.0.1:5000".parse().ok()
    }

    fn direct_remote(&self) -> Option<IpAddr> {
        "10.9.9.9".parse().ok()
    }

    fn remote(&self) -> Option<IpAddr> {
        "192.0.2.1".parse().ok()
    }

    fn server_name(&self) -> &str {
        if self.tls { "shop.example.com" } else { "" }
    }

    fn peer(&self) -> Option<Peer<'_>> {
        let Self { uris, dns, subject, verified, .. } = self;
        self.tls.then_some(Peer { uri_names: uris, dns_names: dns, subject, verified: *verified })
    }

    fn has_name(&self, matcher: &SanMatcher) -> bool {
        let names = if matcher.kind == Some(SanKind::Uri) { &self.uris } else { &self.dns };
        names.iter().any(|name| matcher.matcher.matches(name.as_bytes()))
    }

    fn metadata(&self, source: MetadataSource, namespace: &str, look: &mut LookAt<'_>) -> bool {
        match source {
            MetadataSource::Dynamic => look(self.metadata.get(namespace).and_then(Value::as_object)),
            MetadataSource::Route => self.route && look(json!({"k": "of the route"}).as_object()),
        }
    }

    fn holds(&self, condition: &Expression) -> bool {
        // The conditions of these tests are literals.
        condition == &Expression::parse("true").unwrap_or_else(|error| panic!("{error}"))
    }

    fn filter_state(&self, key: &str, look: &mut dyn FnMut(Option<&str>) -> bool) -> bool {
        look((key == "known").then_some("state"))
    }
}

fn exact(value: &str) -> StringMatcher {
    StringMatcher::Exact { value: value.into(), ignore_case: false }
}

fn prefix(value: &str) -> StringMatcher {
    StringMatcher::Prefix { value: value.into(), ignore_case: false }
}

fn regex(pattern: &str) -> StringMatcher {
    StringMatcher::Regex(regex::Regex::new(&format!("^(?:{pattern})$")).unwrap())
}

fn net(network: &str) -> IpNet {
    network.parse().unwrap()
}

fn header(value: HeaderMatch) -> HeaderMatcher {
    HeaderMatcher { name: "x-a".into(), value, invert: false, treat_missing_as_empty: false }
}

fn metadata(source: MetadataSource, namespace: &str, value: &str, invert: bool) -> SourcedMetadata {
    let value = ValueMatcher::String(exact(value));
    let matcher = MetadataMatcher { filter: namespace.into(), path: vec!["k".into()], value, invert };
    SourcedMetadata { source, matcher }
}

#[test]
fn permissions() {
    let plain = Sample::default();
    let web = Sample::web();
    let tls = Sample::mutual_tls();
    let or = |list| Permission::Or(list);
    let not = |one| Permission::Not(Box::new(one));
    let port = Permission::DestinationPort;
    let ports = |start, end| Permission::DestinationPorts { start, end };
    let template = |text| Permission::UriTemplate(UriTemplate::compile(text).unwrap());
    let (dynamic, route) = (MetadataSource::Dynamic, MetadataSource::Route);
    let of = |source, namespace, value, invert| Permission::Metadata(metadata(source, namespace, value, invert));
    let no_route = Sample { route: false, ..Sample::default() };
    for (facts, permission, expected) in [
        (&plain, Permission::Any, true),
        (&plain, Permission::And(vec![port(8080), Permission::Any]), true),
        (&plain, Permission::And(vec![port(8080), port(80)]), false),
        (&plain, or(vec![port(80), port(8080)]), true),
        (&plain, or(vec![port(80), port(81)]), false),
        (&plain, not(port(80)), true),
        (&plain, not(port(8080)), false),
        (&plain, ports(8080, 8081), true),
        (&plain, ports(8000, 8080), false),
        (&plain, ports(8081, 65536), false),
        (&plain, Permission::DestinationIp(net("172.16.0.0/12")), true),
        (&plain, Permission::DestinationIp(net("10.0.0.0/8")), false),
        (&plain, Permission::DestinationIp(net("::/0")), false),
        (&plain, Permission::RequestedServerName(exact("")), true),
        (&tls, Permission::RequestedServerName(exact("shop.example.com")), true),
        (&tls, Permission::RequestedServerName(exact("")), false),
        (&web, Permission::Header(header(HeaderMatch::String(exact("2")))), true),
        (&web, Permission::Header(header(HeaderMatch::String(exact("3")))), false),
        (&plain, Permission::Header(header(HeaderMatch::Present(true))), false),
        (&plain, Permission::Header(header(HeaderMatch::Present(false))), true),
        (&web, Permission::UrlPath(exact("/shop/item")), true),
        (&web, Permission::UrlPath(prefix("/admin")), false),
        (&plain, Permission::UrlPath(prefix("/")), false),
        (&plain, not(Permission::UrlPath(prefix("/"))), true),
        (&web, template("/shop/*"), true),
        (&web, template("/admin/**"), false),
        (&plain, template("/**"), false),
        (&plain, of(dynamic, "f", "v", false), true),
        (&plain, of(dynamic, "f", "w", false), false),
        (&plain, of(dynamic, "unknown", "v", false), false),
        (&plain, of(dynamic, "unknown", "v", true), true),
        (&plain, of(route, "f", "of the route", false), true),
        (&no_route, of(route, "f", "of the route", false), false),
        (&no_route, of(route, "f", "of the route", true), false),
    ] {
        assert_eq!(permits(&permission, facts), expected, "{permission:?}");
    }
}

#[test]
fn principals() {
    let plain = Sample::default();
    let web = Sample::web();
    let tls = Sample::mutual_tls();
    let anonymous = Sample { tls: true, ..Sample::default() };
    let unverified = Sample { verified: false, ..Sample::mutual_tls() };
    let named = |matcher| Principal::Authenticated(Some(matcher));
    let mutual = |kind, value| {
        Principal::MtlsAuthenticated(Some(SanMatcher { kind: Some(kind), oid: None, matcher: exact(value) }))
    };
    let not = |one| Principal::Not(Box::new(one));
    let state = |key: &str, value: &str| {
        Principal::FilterState(FilterStateMatcher { key: key.into(), value: FilterStateValue::String(exact(value)) })
    };
    for (facts, principal, expected) in [
        (&plain, Principal::Any, true),
        (&plain, Principal::And(vec![Principal::Any, Principal::SourceIp(net("10.0.0.0/8"))]), true),
        (&plain, Principal::And(vec![Principal::Any, not(Principal::Any)]), false),
        (&plain, Principal::Or(vec![not(Principal::Any), Principal::Any]), true),
        (&plain, Principal::Or(vec![not(Principal::Any)]), false),
        (&plain, Principal::Authenticated(None), false),
        (&plain, named(regex(".*")), false),
        (&anonymous, Principal::Authenticated(None), true),
        (&anonymous, named(regex(".*")), true),
        (&anonymous, named(regex(".+")), false),
        (&tls, named(exact("spiffe://td/ns/a/sa/web")), true),
        (&tls, named(regex("spiffe://td/ns/a/.*")), true),
        (&tls, named(regex("spiffe://td/ns/b/.*")), false),
        (&tls, named(exact("api.example.com")), true),
        (&tls, named(exact("CN=web")), true),
        (&tls, named(exact("cn=web")), false),
        (&tls, Principal::MtlsAuthenticated(None), true),
        (&tls, mutual(SanKind::Uri, "spiffe://td/ns/a/sa/web"), true),
        (&tls, mutual(SanKind::Dns, "spiffe://td/ns/a/sa/web"), false),
        (&unverified, Principal::MtlsAuthenticated(None), false),
        (&unverified, mutual(SanKind::Uri, "spiffe://td/ns/a/sa/web"), false),
        (&anonymous, Principal::MtlsAuthenticated(None), false),
        (&plain, Principal::MtlsAuthenticated(None), false),
        (&plain, Principal::SourceIp(net("10.0.0.1/32")), true),
        (&plain, Principal::SourceIp(net("10.9.9.9/32")), false),
        (&plain, Principal::DirectRemoteIp(net("10.9.9.9/32")), true),
        (&plain, Principal::DirectRemoteIp(net("10.0.0.1/32")), false),
        (&plain, Principal::RemoteIp(net("192.0.2.0/24")), true),
        (&plain, Principal::RemoteIp(net("10.0.0.0/8")), false),
        (&web, Principal::Header(header(HeaderMatch::Present(true))), true),
        (&plain, Principal::Header(header(HeaderMatch::Present(true))), false),
        (&web, Principal::UrlPath(prefix("/shop")), true),
        (&plain, Principal::UrlPath(prefix("/shop")), false),
        (&plain, Principal::Metadata(metadata(MetadataSource::Dynamic, "f", "v", false)), true),
        (&plain, state("known", "state"), true),
        (&plain, state("known", "other"), false),
        (&plain, state("unknown", "state"), false),
        (&plain, not(state("unknown", "state")), true),
    ] {
        assert_eq!(identifies(&principal, facts), expected, "{principal:?}");
    }
}

fn policy(name: &str, permission: Permission, principal: Principal) -> Policy {
    Policy { name: name.into(), permissions: vec![permission], principals: vec![principal], condition: None }
}

fn rules(action: Action, policies: Vec<Policy>) -> Engine {
    Engine::Rules(Rules { action, policies })
}

fn told<'e>(engine: &'e Engine, facts: &Sample) -> (bool, Option<&'e str>, Option<bool>) {
    let Decision { allowed, policy, log_hint } = decide(engine, facts);
    (allowed, policy.map(|name| &**name), log_hint)
}

#[test]
fn actions_say_what_a_match_means() {
    let somebody = || Principal::SourceIp(net("10.0.0.0/8"));
    let nobody = || Principal::SourceIp(net("11.0.0.0/8"));
    let policies = || vec![policy("a", Permission::Any, nobody()), policy("b", Permission::Any, somebody())];
    let others = || vec![policy("a", Permission::Any, nobody())];
    let facts = Sample::default();
    assert_eq!(told(&rules(Action::Allow, policies()), &facts), (true, Some("b"), None));
    assert_eq!(told(&rules(Action::Allow, others()), &facts), (false, None, None));
    assert_eq!(told(&rules(Action::Allow, Vec::new()), &facts), (false, None, None));
    assert_eq!(told(&rules(Action::Deny, policies()), &facts), (false, Some("b"), None));
    assert_eq!(told(&rules(Action::Deny, others()), &facts), (true, None, None));
    assert_eq!(told(&rules(Action::Deny, Vec::new()), &facts), (true, None, None));
    assert_eq!(told(&rules(Action::Log, policies()), &facts), (true, Some("b"), Some(true)));
    assert_eq!(told(&rules(Action::Log, others()), &facts), (true, None, Some(false)));
}

#[test]
fn the_nearest_policy_lacks_one_part() {
    let port = |port| Permission::DestinationPort(port);
    let from = |network| Principal::SourceIp(net(network));
    let facts = Sample::default();
    let both = vec![policy("who", port(80), from("10.0.0.0/8")), policy("what", port(8080), from("11.0.0.0/8"))];
    let engine = rules(Action::Allow, both);
    let found = nearest(&engine, &facts).unwrap();
    assert_eq!((&**found.policy, found.failed), ("what", Part::Principals));
    let engine = rules(Action::Allow, vec![policy("who", port(80), from("10.0.0.0/8"))]);
    let Nearest { policy: name, failed } = nearest(&engine, &facts).unwrap();
    assert_eq!((&**name, failed.as_str()), ("who", "permissions"));
    assert_eq!(nearest(&rules(Action::Allow, vec![policy("n", port(80), from("11.0.0.0/8"))]), &facts), None);
    assert_eq!(nearest(&rules(Action::Deny, Vec::new()), &facts), None);
}

#[test]
fn a_tree_decides_by_its_actions() {
    let leaf = |name: &str, action| OnMatch::Action(NamedAction { name: name.into(), action });
    let uri = |value| Predicate::Single { input: Input::UriSan, value: InputMatcher::String(prefix(value)) };
    let engine = |fields: Vec<(Predicate, OnMatch<NamedAction>)>, logs| Engine::Matcher {
        tree: Matcher { ask: Some(Ask::List(fields)), on_no_match: None },
        logs,
    };
    let facts = Sample::mutual_tls();
    let allow = engine(vec![(uri("spiffe://td/ns/a/"), leaf("a", Action::Allow))], false);
    assert_eq!(told(&allow, &facts), (true, Some("a"), None));
    assert_eq!(told(&allow, &Sample::default()), (false, None, None));
    let deny = engine(vec![(uri("spiffe://td/"), leaf("d", Action::Deny))], false);
    assert_eq!(told(&deny, &facts), (false, Some("d"), None));
    let log = engine(vec![(uri("spiffe://td/"), leaf("l", Action::Log))], true);
    assert_eq!(told(&log, &facts), (true, Some("l"), Some(true)));
    assert_eq!(told(&log, &Sample::default()), (false, None, Some(false)));
    let empty = Engine::Matcher { tree: Matcher { ask: None, on_no_match: None }, logs: false };
    assert_eq!(told(&empty, &facts), (false, None, None));
}

#[test]
fn every_input_gives_what_it_is_called() {
    let facts = Sample { request: Sample::web().request, ..Sample::mutual_tls() };
    let metadata = |key: &str| Input::DynamicMetadata { filter: "f".into(), path: vec![key.into()] };
    let header = |name: &str| Input::RequestHeader { name: name.into() };
    for (input, expected) in [
        (Input::DestinationIp, Some("172.16.0.9")),
        (Input::DestinationPort, Some("8080")),
        (Input::SourceIp, Some("192.0.2.1")),
        (Input::SourcePort, Some("5000")),
        (Input::DirectSourceIp, Some("10.9.9.9")),
        (Input::ServerName, Some("shop.example.com")),
        (Input::UriSan, Some("spiffe://td/ns/a/sa/web")),
        (Input::DnsSan, Some("web.example.com,api.example.com")),
        (Input::Subject, Some("CN=web")),
        (Input::FilterState { key: "known".into() }, Some("state")),
        (Input::FilterState { key: "unknown".into() }, None),
        (metadata("k"), Some("v")),
        (metadata("unknown"), None),
        (header("x-a"), Some("1,2")),
        (header(":method"), Some("GET")),
        (header("x-b"), None),
    ] {
        let is = |value: &str| {
            let value = InputMatcher::String(exact(value));
            let predicate = Predicate::Single { input: input.clone(), value };
            let tree = Matcher { ask: Some(Ask::List(vec![(predicate, OnMatch::Action(()))])), on_no_match: None };
            crate::matcher::find(&tree, &super::facts::InputsOf(&facts)).unwrap().is_some()
        };
        match expected {
            Some(text) => assert!(is(text), "{input:?}"),
            None => assert!(!is(""), "{input:?}"),
        }
    }
}

fn permission_strategy() -> impl Strategy<Value = Permission> {
    let leaf = prop_oneof![
        Just(Permission::Any),
        (8078_u16..8083).prop_map(Permission::DestinationPort),
        Just(Permission::UrlPath(prefix("/shop"))),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(Permission::And),
            prop::collection::vec(inner.clone(), 1..4).prop_map(Permission::Or),
            inner.prop_map(|one| Permission::Not(Box::new(one))),
        ]
    })
}

proptest! {
    /// De Morgan's laws hold, and allowing is the opposite of denying.
    #[test]
    fn rules_are_logic(list in prop::collection::vec(permission_strategy(), 1..4)) {
        let facts = Sample::web();
        let not = |one: &Permission| Permission::Not(Box::new(one.clone()));
        let all = Permission::And(list.clone());
        let none = Permission::Or(list.iter().map(not).collect());
        prop_assert_eq!(permits(&all, &facts), !permits(&none, &facts));
        let policies = || vec![Policy { name: "p".into(), permissions: list.clone(), principals: vec![Principal::Any], condition: None }];
        let (allow, deny) = (rules(Action::Allow, policies()), rules(Action::Deny, policies()));
        prop_assert_eq!(decide(&allow, &facts).allowed, !decide(&deny, &facts).allowed);
        prop_assert_eq!(decide(&allow, &facts).policy.is_some(), permits(&Permission::Or(list), &facts));
    }
}

#[test]
fn a_policy_holds_only_with_its_condition() {
    for (condition, allowed) in [("true", true), ("false", false), ("none", false)] {
        let mut policy = policy("p", Permission::Any, Principal::Any);
        policy.condition = Some(Expression::parse(condition).unwrap().into());
        let engine = Engine::Rules(Rules { action: Action::Allow, policies: vec![policy] });
        assert_eq!(decide(&engine, &Sample::default()).allowed, allowed, "{condition}");
    }
}
