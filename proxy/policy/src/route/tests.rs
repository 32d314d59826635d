//! The route table as a whole.

use std::cell::Cell;
use std::sync::Arc;

use outrigger_config::matching::StringMatcher;
use outrigger_config::route::{
    HeaderMatch, HeaderMatcher, PathMatch, QueryMatch, QueryParameterMatcher, RouteConfiguration,
    RouteMatch as Criteria,
};
use proptest::prelude::*;

use super::samples::{configuration, criteria, route, virtual_host};
use super::*;

#[derive(Clone, Debug)]
struct Request {
    host: String,
    path: String,
    method: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    grpc: bool,
    header_reads: Cell<usize>,
}

fn get(host: &str, path: &str) -> Request {
    Request {
        host: host.into(),
        path: path.into(),
        method: "GET",
        headers: Vec::new(),
        grpc: false,
        header_reads: Cell::new(0),
    }
}

impl RequestView for Request {
    fn host(&self) -> &str {
        &self.host
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn method(&self) -> &str {
        self.method
    }
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.header_reads.set(self.header_reads.get() + 1);
        self.headers.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_bytes())
    }
    fn is_grpc(&self) -> bool {
        self.grpc
    }
}

fn found(table: &RouteTable, request: &Request) -> String {
    match table.find(request, 0, &NoRuntime) {
        Ok(found) => found.route.name.to_string(),
        Err(NoRoute::NoVirtualHost) => "no virtual host".into(),
        Err(NoRoute::NoRoute(host)) => format!("no route in {}", host.name),
    }
}

fn prefix(text: &str) -> Criteria {
    criteria(PathMatch::Prefix(text.into()))
}

fn exact(value: &str) -> StringMatcher {
    StringMatcher::Exact { value: value.into(), ignore_case: false }
}

fn header(name: &str, value: HeaderMatch) -> HeaderMatcher {
    HeaderMatcher { name: name.into(), value, invert: false, treat_missing_as_empty: false }
}

fn single(routes: Vec<Arc<Route>>) -> RouteTable {
    RouteTable::build(Arc::new(configuration(vec![virtual_host("host", &["*"], routes)])))
}

#[test]
fn the_first_route_that_matches_wins() {
    let table = single(vec![
        route("versioned", Criteria { headers: vec![header("v", HeaderMatch::String(exact("2")))], ..prefix("/a") }),
        route(
            "posted",
            Criteria { headers: vec![header(":method", HeaderMatch::String(exact("POST")))], ..prefix("/a") },
        ),
        route("grpc", Criteria { grpc: true, ..prefix("/a") }),
        route(
            "query",
            Criteria {
                query_parameters: vec![QueryParameterMatcher { name: "q".into(), value: QueryMatch::Present(true) }],
                ..prefix("/a")
            },
        ),
        route("any case", Criteria { case_sensitive: false, ..criteria(PathMatch::Exact("/AbC".into())) }),
        route("a", prefix("/a")),
        route("separated", criteria(PathMatch::SeparatedPrefix("/s".into()))),
        route("connect", criteria(PathMatch::Connect)),
    ]);
    let with = |headers: &[(&'static str, &'static str)]| Request { headers: headers.to_vec(), ..get("h", "/a") };
    assert_eq!(found(&table, &with(&[("v", "2")])), "versioned");
    assert_eq!(found(&table, &with(&[("v", "1"), ("v", "2")])), "versioned");
    assert_eq!(found(&table, &with(&[("v", "2,2")])), "a");
    assert_eq!(found(&table, &Request { method: "POST", ..get("h", "/a") }), "posted");
    assert_eq!(found(&table, &Request { grpc: true, ..get("h", "/ab") }), "grpc");
    assert_eq!(found(&table, &get("h", "/a?x&q")), "query");
    assert_eq!(found(&table, &get("h", "/a#f?q")), "a");
    assert_eq!(found(&table, &get("h", "/aBC?x")), "any case");
    assert_eq!(found(&table, &get("h", "/s?x")), "separated");
    assert_eq!(found(&table, &get("h", "/s/t")), "separated");
    assert_eq!(found(&table, &get("h", "/st")), "no route in host");
    assert_eq!(found(&table, &Request { method: "CONNECT", ..get("h", "") }), "connect");
}

#[test]
fn a_request_without_path_is_for_connect_routes_only() {
    let table = single(vec![route("all", prefix("")), route("connect", criteria(PathMatch::Connect))]);
    assert_eq!(found(&table, &Request { method: "CONNECT", ..get("h:443", "") }), "connect");
    assert_eq!(found(&table, &get("h", "/")), "all");
}

#[test]
fn the_host_chooses_the_virtual_host_and_there_is_no_second_one() {
    let mut routes: RouteConfiguration = configuration(vec![
        virtual_host("a", &["a.com"], vec![route("a", prefix("/x"))]),
        virtual_host("rest", &["*.com"], vec![route("rest", prefix("/"))]),
    ]);
    let table = RouteTable::build(Arc::new(routes.clone()));
    assert_eq!(found(&table, &get("a.com", "/y")), "no route in a");
    assert_eq!(found(&table, &get("b.com", "/y")), "rest");
    assert_eq!(found(&table, &get("a.com:80", "/x")), "no virtual host");
    routes.ignore_port_in_host_matching = true;
    let table = RouteTable::build(Arc::new(routes));
    assert_eq!(found(&table, &get("A.com:80", "/x")), "a");
    assert_eq!(found(&table, &get("b.com:x", "/")), "no virtual host");
}

#[test]
fn a_share_of_requests_can_be_overridden_at_run_time() {
    struct All;
    impl RuntimeView for All {
        fn fraction(&self, key: &str) -> Option<Fraction> {
            (key == "share").then_some(Fraction::ALWAYS)
        }
    }
    let share = RuntimeFraction { default: Fraction::new(10, 100).unwrap(), runtime_key: "share".into() };
    let table = single(vec![
        route("share", Criteria { runtime_fraction: Some(share), ..prefix("/") }),
        route("rest", prefix("/")),
    ]);
    let hits = |runtime: &dyn RuntimeView| {
        (0..1000).filter(|random| &*table.find(&get("h", "/"), *random, runtime).unwrap().route.name == "share").count()
    };
    assert_eq!((hits(&NoRuntime), hits(&All)), (100, 1000));
}

#[test]
fn ten_thousand_routes_ask_only_those_with_the_path() {
    let present = || vec![header("x", HeaderMatch::Present(false))];
    let list = (0..10_000)
        .map(|i| {
            let path = match i % 3 {
                0 => PathMatch::Exact(format!("/exact/{i}")),
                1 => PathMatch::Prefix(format!("/prefix/{i}/")),
                _ => PathMatch::Regex(regex::Regex::new(&format!("^(?:/regex/{i}/.*)$")).unwrap()),
            };
            route(&i.to_string(), Criteria { headers: present(), ..criteria(path) })
        })
        .collect();
    let table = single(list);
    for (path, expected) in [("/exact/9999", "9999"), ("/prefix/7000/x", "7000"), ("/regex/8000/x", "8000")] {
        let request = get("h", path);
        assert_eq!(found(&table, &request), expected);
        assert_eq!(request.header_reads.get(), 1, "{path}");
    }
    let unknown = get("h", "/regex/9/x");
    assert_eq!(found(&table, &unknown), "no route in host");
    assert_eq!(unknown.header_reads.get(), 0);
}

#[test]
fn an_account_names_the_first_condition_that_fails_and_keeps_the_nearest_routes() {
    let mut list: Vec<_> =
        (0..30).map(|at| route(&format!("far{at}"), criteria(PathMatch::Exact(format!("/{at}"))))).collect();
    let wants = |name: &str| Criteria {
        headers: vec![header(name, HeaderMatch::Present(true))],
        ..criteria(PathMatch::Prefix("/x".into()))
    };
    list.insert(3, route("near", wants("x")));
    list.push(route("chosen", criteria(PathMatch::Prefix("/x".into()))));
    let table = single(list);
    let explained = table.explain(&get("h", "/x/y?q"), 0, &NoRuntime, 2);
    assert_eq!((explained.host.as_str(), explained.path.as_str(), explained.asked), ("h", "/x/y", 31));
    assert_eq!(explained.route.map(|(position, route)| (position, &*route.name)), Some((31, "chosen")));
    let told: Vec<_> = explained.misses.iter().map(|miss| (miss.position, &*miss.route.name)).collect();
    assert_eq!(told, [(3, "near"), (30, "far29")]);
    assert!(matches!(explained.misses[0].mismatch, Mismatch::Header(header) if &*header.name == "x"));
    assert!(matches!(explained.misses[1].mismatch, Mismatch::Path(_)));
    let nowhere = RouteTable::build(Arc::new(configuration(Vec::new())));
    assert!(nowhere.explain(&get("h", "/"), 0, &NoRuntime, 2).virtual_host.is_none());
}

fn any_path() -> impl Strategy<Value = String> {
    "(/[abAB.]{0,2}){0,4}"
}

fn any_criteria() -> impl Strategy<Value = Criteria> {
    let regex = prop_oneof![
        any_path(),
        any_path().prop_map(|path| path.replace('.', "\\.") + "/?.*"),
        any_path().prop_map(|path| path + "a+"),
        (any_path(), any_path()).prop_map(|(a, b)| format!("{a}|{b}")),
        Just("(?i)/a.*".to_string()),
    ];
    let path = prop_oneof![
        4 => any_path().prop_map(PathMatch::Prefix),
        4 => any_path().prop_map(PathMatch::Exact),
        2 => any_path().prop_filter("needs text", |path| !path.is_empty() && !path.ends_with('/'))
            .prop_map(PathMatch::SeparatedPrefix),
        2 => regex.prop_map(|text| PathMatch::Regex(regex::Regex::new(&format!("^(?:{text})$")).unwrap())),
        1 => Just(PathMatch::Connect),
    ];
    (path, any::<bool>(), proptest::option::weighted(0.3, 0..2_u8)).prop_map(|(path, case_sensitive, wanted)| {
        Criteria {
            case_sensitive,
            headers: wanted.map(|value| header("x", HeaderMatch::Present(value == 0))).into_iter().collect(),
            ..criteria(path)
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn the_index_agrees_with_asking_every_route(
        list in proptest::collection::vec(any_criteria(), 0..40),
        paths in proptest::collection::vec(any_path(), 1..8),
        with_header in any::<bool>(),
        connect in any::<bool>(),
    ) {
        let list: Vec<_> = list.into_iter().enumerate().map(|(i, matches)| route(&i.to_string(), matches)).collect();
        let table = single(list.clone());
        for path in paths {
            let request = Request {
                method: if connect { "CONNECT" } else { "GET" },
                headers: if with_header { vec![("x", "")] } else { Vec::new() },
                ..get("h", &path)
            };
            let expected = list
                .iter()
                .find(|route| matches::first_mismatch(&route.matches, &request, &path, "", 0, &NoRuntime).is_none())
                .map_or("no route in host".to_string(), |route| route.name.to_string());
            prop_assert_eq!(found(&table, &request), &*expected, "{}", path);
            let explained = table.explain(&request, 0, &NoRuntime, usize::MAX);
            let told = explained.route.map_or("no route in host".to_string(), |(_, route)| route.name.to_string());
            prop_assert_eq!(told, expected);
            // Whatever stands before the chosen route has a condition that does not hold, and nothing else is told.
            let before = explained.route.map_or(list.len(), |(position, _)| position);
            let missed: Vec<usize> = explained.misses.iter().map(|miss| miss.position).collect();
            prop_assert_eq!(missed, (0..before).collect::<Vec<_>>());
        }
    }
}
