//! Route configurations of one kind of match, and the requests that end at each of their routes.

use std::sync::Arc;

use outrigger_config::Context;
use outrigger_config::route::RouteConfiguration;
use outrigger_policy::route::{RequestView, RouteTable};
use serde_json::{Value, json};

use crate::NoEnvironment;

/// How routes tell requests apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The whole path.
    Exact,
    /// The beginning of the path.
    Prefix,
    /// A header; all paths are alike.
    Header,
    /// A regular expression over the path.
    Regex,
    /// All of these in turn.
    Mix,
    /// Prefix `/` of a virtual host for each route.
    Domain,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Exact, Self::Prefix, Self::Header, Self::Regex, Self::Mix, Self::Domain];

    /// As it stands in the reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Prefix => "prefix",
            Self::Header => "header",
            Self::Regex => "regex",
            Self::Mix => "mix",
            Self::Domain => "domain",
        }
    }

    /// What route `number` is told apart by.
    fn of_route(self, number: usize) -> Self {
        match self {
            Self::Mix => [Self::Exact, Self::Prefix, Self::Header, Self::Regex][number % 4],
            kind => kind,
        }
    }
}

/// A table of so many routes.
///
/// # Panics
/// If the configuration is refused.
pub fn table(kind: Kind, count: usize) -> RouteTable {
    let routes = |numbers: std::ops::Range<usize>| numbers.map(|number| route(kind, number)).collect::<Vec<_>>();
    let virtual_hosts = match kind {
        Kind::Domain => (0..count)
            .map(
                |number| json!({"name": host(number), "domains": [host(number)], "routes": routes(number..number + 1)}),
            )
            .collect::<Vec<_>>(),
        _ => vec![json!({"name": "all", "domains": ["*"], "routes": routes(0..count)})],
    };
    let wire = crate::message(&json!({"name": "routes", "virtual_hosts": virtual_hosts}));
    let configuration = RouteConfiguration::parse(&Context::new(&NoEnvironment), wire);
    RouteTable::build(Arc::new(configuration.unwrap_or_else(|rejection| panic!("{rejection}"))))
}

fn route(kind: Kind, number: usize) -> Value {
    let matches = match kind.of_route(number) {
        Kind::Exact => json!({"path": format!("/service/{number}/item")}),
        Kind::Prefix => json!({"prefix": format!("/service/{number}/")}),
        Kind::Header => json!({
            "prefix": "/", "headers": [{"name": "x-version", "string_match": {"exact": number.to_string()}}]}),
        Kind::Regex => json!({"safe_regex": {"regex": format!("/service/{number}/[a-z]+")}}),
        Kind::Mix | Kind::Domain => json!({"prefix": "/"}),
    };
    json!({"name": number.to_string(), "match": matches, "route": {"cluster": "c"}})
}

fn host(number: usize) -> String {
    format!("service-{number}.example.org")
}

/// A request with the headers that come with most.
#[derive(Clone, Debug)]
pub struct Request {
    host: String,
    path: String,
    version: String,
}

/// The request that route `number` is for.
pub fn request(kind: Kind, number: usize) -> Request {
    let version = if kind.of_route(number) == Kind::Header { number.to_string() } else { "none".to_owned() };
    let path = match kind.of_route(number) {
        Kind::Header => "/other".to_owned(),
        _ => format!("/service/{number}/item?page=2"),
    };
    Request { host: host(number), path, version }
}

impl RequestView for Request {
    fn host(&self) -> &str {
        &self.host
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn method(&self) -> &str {
        "GET"
    }

    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let headers = [
            ("accept", "*/*"),
            ("user-agent", "bench"),
            ("x-request-id", "8a2b6f0e-5d0a-4bb6-a1c4-2f1f7a3f9d10"),
            ("x-version", self.version.as_str()),
        ];
        headers.into_iter().filter(move |(present, _)| *present == name).map(|(_, value)| value.as_bytes())
    }

    fn is_grpc(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use outrigger_policy::route::NoRuntime;

    use super::*;

    #[test]
    fn each_request_ends_at_its_route() {
        for kind in Kind::ALL {
            let table = table(kind, 20);
            for number in 0..20 {
                let found = table.find(&request(kind, number), 0, &NoRuntime).unwrap();
                assert_eq!(*found.route.name, *number.to_string(), "{kind:?}");
            }
        }
    }
}
