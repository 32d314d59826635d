//! Which endpoint a request goes to: affinity by hash, subsets, localities. Where both have to agree, the same requests
//! go through Envoy, too.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use outrigger_tests::config::{bootstrap, chain, cluster_with, http, listener, routes};
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy};

/// The proxy under test and Envoy with the same bootstrap and the same upstreams.
struct Both {
    ours: Proxy,
    envoy: Proxy,
}

impl Both {
    async fn start(bootstrap: &str) -> Self {
        let ours = Proxy::start(bootstrap).await;
        let settings = Settings { program: proxy::envoy(), ..Settings::default() };
        Self { ours, envoy: Proxy::start_with(bootstrap, settings).await }
    }

    /// Sends each of the requests (path and headers) through both; the names of the upstreams that answered.
    async fn served_by(&self, requests: &[(String, Vec<(&str, String)>)]) -> (Vec<String>, Vec<String>) {
        (served_by(&self.ours, requests).await, served_by(&self.envoy, requests).await)
    }
}

async fn served_by(proxy: &Proxy, requests: &[(String, Vec<(&str, String)>)]) -> Vec<String> {
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    let mut names = Vec::with_capacity(requests.len());
    for (path, headers) in requests {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let response = client.request("GET", path, &headers, b"").await;
        names.push(if response.status == 200 { response.served_by() } else { response.status.to_string() });
    }
    names
}

fn count(names: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.as_str()).or_insert(0) += 1;
    }
    counts
}

async fn upstreams(count: usize) -> Vec<Upstream> {
    let mut upstreams = Vec::new();
    for number in 0..count {
        upstreams.push(Upstream::start(&format!("u{number}")).await);
    }
    upstreams
}

fn web(routes_of_all: &str) -> Vec<String> {
    vec![listener("web", &[chain(&http("web", &routes(routes_of_all)), "")], "")]
}

/// An endpoint with further fields of its `LbEndpoint`.
fn endpoint(upstream: &Upstream, more: &str) -> String {
    format!(
        "{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} }}{more} }}",
        upstream.port()
    )
}

/// A static cluster whose localities are given as the text of `endpoints`.
fn cluster_of(name: &str, localities: &str, more: &str) -> String {
    format!(
        "{{ name: {name}, type: STATIC, connect_timeout: 5s, load_assignment: {{ cluster_name: {name}, \
         endpoints: [{localities}] }}{more} }}"
    )
}

fn route_by(cluster: &str, hash_policy: &str) -> String {
    format!("{{ match: {{ prefix: /{cluster}/ }}, route: {{ cluster: {cluster}, hash_policy: [{hash_policy}] }} }}")
}

const BY_KEY: &str = "{ header: { header_name: x-key } }";

/// Requests to a cluster with 200 keys.
fn keys(cluster: &str) -> Vec<(String, Vec<(&'static str, String)>)> {
    (0..200).map(|key| (format!("/{cluster}/x"), vec![("x-key", format!("key-{key}"))])).collect()
}

#[tokio::test]
async fn the_same_keys_go_to_the_same_endpoints_as_with_envoy() {
    let upstreams = upstreams(7).await;
    let ports: Vec<u16> = upstreams.iter().map(Upstream::port).collect();
    let weights = |more: &str| {
        let endpoints = upstreams.iter().zip([5, 1, 3, 1, 2, 8, 1]);
        let endpoints =
            endpoints.map(|(upstream, weight)| endpoint(upstream, &format!(", load_balancing_weight: {weight}{more}")));
        endpoints.collect::<Vec<_>>()
    };
    let weighted = format!("{{ lb_endpoints: [{}] }}", weights("").join(", "));
    let named = upstreams.iter().enumerate().map(|(number, upstream)| {
        endpoint(upstream, &format!(", metadata: {{ filter_metadata: {{ envoy.lb: {{ hash_key: host-{number} }} }} }}"))
    });
    let named = format!("{{ lb_endpoints: [{}] }}", named.collect::<Vec<_>>().join(", "));
    let localities = {
        let all = weights("");
        format!(
            "{{ locality: {{ zone: b }}, load_balancing_weight: 3, lb_endpoints: [{}] }}, \
             {{ locality: {{ zone: a }}, load_balancing_weight: 1, lb_endpoints: [{}] }}, \
             {{ locality: {{ zone: c }}, lb_endpoints: [{}] }}",
            all[..3].join(", "),
            all[3..5].join(", "),
            all[5..].join(", ")
        )
    };
    let unfit = upstreams
        .iter()
        .enumerate()
        .map(|(number, upstream)| endpoint(upstream, if number % 3 == 1 { ", health_status: UNHEALTHY" } else { "" }));
    let unfit = format!("{{ lb_endpoints: [{}] }}", unfit.collect::<Vec<_>>().join(", "));
    let extension = |name: &str, fields: &str| {
        format!(
            ", load_balancing_policy: {{ policies: [{{ typed_extension_config: {{ name: p, typed_config: {{ \
             '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.{name}, {fields} }} }} }}] }}"
        )
    };
    let cases = [
        ("ring", cluster_with("ring", &ports, ", lb_policy: RING_HASH")),
        (
            "murmur",
            cluster_with(
                "murmur",
                &ports,
                ", lb_policy: RING_HASH, ring_hash_lb_config: { minimum_ring_size: 100, maximum_ring_size: 200, \
                 hash_function: MURMUR_HASH_2 }",
            ),
        ),
        (
            "ring-small",
            cluster_with(
                "ring-small",
                &ports,
                &extension("ring_hash.v3.RingHash", "maximum_ring_size: 10, minimum_ring_size: 3"),
            ),
        ),
        ("ring-weights", cluster_of("ring-weights", &weighted, ", lb_policy: RING_HASH")),
        ("ring-names", cluster_of("ring-names", &named, ", lb_policy: RING_HASH")),
        ("ring-unfit", cluster_of("ring-unfit", &unfit, ", lb_policy: RING_HASH")),
        (
            "ring-zones",
            cluster_of(
                "ring-zones",
                &localities,
                ", lb_policy: RING_HASH, common_lb_config: { locality_weighted_lb_config: {} }",
            ),
        ),
        ("table", cluster_with("table", &ports, ", lb_policy: MAGLEV")),
        ("table-weights", cluster_of("table-weights", &weighted, &extension("maglev.v3.Maglev", "table_size: 1009"))),
        ("table-names", cluster_of("table-names", &named, ", lb_policy: MAGLEV")),
        ("table-unfit", cluster_of("table-unfit", &unfit, ", lb_policy: MAGLEV")),
        (
            "table-zones",
            cluster_of("table-zones", &localities, &extension("maglev.v3.Maglev", "locality_weighted_lb_config: {}")),
        ),
    ];
    let all_routes: Vec<String> = cases.iter().map(|(name, _)| route_by(name, BY_KEY)).collect();
    let clusters: Vec<String> = cases.iter().map(|(_, cluster)| cluster.clone()).collect();
    let both = Both::start(&bootstrap(&web(&all_routes.join(", ")), &clusters)).await;
    let mut wrong = String::new();
    for (name, _) in &cases {
        let (ours, envoys) = both.served_by(&keys(name)).await;
        let differing = ours.iter().zip(&envoys).filter(|(ours, envoys)| ours != envoys).count();
        if differing > 0 {
            let _ = writeln!(wrong, "{name}: {differing} of 200 keys; {:?} and {:?}", count(&ours), count(&envoys));
        }
        assert!(count(&ours).len() > 2, "{name}: {:?}", count(&ours));
    }
    assert!(wrong.is_empty(), "{wrong}");
    for stat in ["ring_hash_lb.size", "ring_hash_lb.min_hashes_per_host", "ring_hash_lb.max_hashes_per_host"] {
        for name in ["ring", "murmur", "ring-weights"] {
            let stat = format!("cluster.{name}.{stat}");
            assert_eq!(both.ours.stat(&stat).await, both.envoy.stat(&stat).await, "{stat}");
        }
    }
}

#[tokio::test]
async fn everything_that_can_be_hashed_is_hashed_as_by_envoy() {
    let upstreams = upstreams(5).await;
    let ports: Vec<u16> = upstreams.iter().map(Upstream::port).collect();
    let rewrite = "{ header: { header_name: ':path', regex_rewrite: { pattern: { regex: '^/rewrite/([a-z0-9]+)/.*$' }, \
                   substitution: '\\1' } } }";
    let cases = [
        ("joined", format!("{BY_KEY}, {{ query_parameter: {{ name: q }} }}, {{ cookie: {{ name: c }} }}")),
        ("terminal", format!("{{ header: {{ header_name: x-other }}, terminal: true }}, {BY_KEY}")),
        ("rewrite", rewrite.to_owned()),
        ("address", format!("{{ connection_properties: {{ source_ip: true }} }}, {BY_KEY}")),
        (
            "method",
            format!(
                "{{ header: {{ header_name: ':method' }} }}, {{ header: {{ header_name: ':authority' }} }}, {BY_KEY}"
            ),
        ),
    ];
    let all_routes: Vec<String> = cases.iter().map(|(name, policy)| route_by(name, policy)).collect();
    let clusters: Vec<String> =
        cases.iter().map(|(name, _)| cluster_with(name, &ports, ", lb_policy: MAGLEV")).collect();
    let both = Both::start(&bootstrap(&web(&all_routes.join(", ")), &clusters)).await;
    let mut requests = Vec::new();
    for number in 0..24 {
        let key = ("x-key", format!("k{number}"));
        let path = |name: &str, query: &str| format!("/{name}/a{number}/b{query}");
        requests.extend([
            (
                path("joined", &format!("?a=b&q={number}%20&q=2")),
                vec![key.clone(), ("cookie", format!("b=1; c=v{number}"))],
            ),
            (path("joined", ""), vec![key.clone(), ("cookie", format!("c=\"v{number}\""))]),
            (path("joined", "?q"), vec![("cookie", format!("d=1;c=v{number};c=2"))]),
            (path("joined", ""), vec![key.clone(), ("x-key", format!("a{number}")), ("x-key", "zz".to_owned())]),
            (path("terminal", ""), vec![key.clone(), ("x-other", format!("o{number}"))]),
            (path("terminal", ""), vec![key.clone()]),
            (path("rewrite", ""), Vec::new()),
            (path("address", ""), vec![key.clone(), ("x-forwarded-for", format!("10.0.0.{number}"))]),
            (path("address", ""), vec![key.clone()]),
            (path("method", ""), vec![key]),
        ]);
    }
    let (ours, envoys) = both.served_by(&requests).await;
    let mut wrong = String::new();
    for ((request, ours), envoys) in requests.iter().zip(&ours).zip(&envoys) {
        if ours != envoys {
            let _ = writeln!(wrong, "{request:?}: {ours}, but with envoy {envoys}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[tokio::test]
async fn a_client_without_the_cookie_is_given_one_that_leads_back() {
    let upstreams = upstreams(4).await;
    let ports: Vec<u16> = upstreams.iter().map(Upstream::port).collect();
    let policy = "{ cookie: { name: stick, ttl: 60s, path: /ring, attributes: [{ name: SameSite, value: Strict }, \
                  { name: Secure }] } }";
    let session = "{ cookie: { name: stick, ttl: 0s } }";
    let routes = [route_by("ring", policy), route_by("session", session)].join(", ");
    let clusters = ["ring", "session"].map(|name| cluster_with(name, &ports, ", lb_policy: RING_HASH"));
    let both = Both::start(&bootstrap(&web(&routes), &clusters)).await;
    let given = async |proxy: &Proxy, path: &str| {
        let address: SocketAddr = proxy.listener("web").await;
        let mut client = h1::Client::connect(address).await;
        let first = client.get(path).await;
        let cookie = first.header("set-cookie").expect("a cookie").to_owned();
        let (name, rest) = cookie.split_once("=\"").expect("a quoted value");
        let (value, attributes) = rest.split_once('"').expect("a quoted value");
        // Another connection, and many requests.
        let mut client = h1::Client::connect(address).await;
        for _ in 0..5 {
            let sent = format!("{name}={value}");
            let again = client.request("GET", path, &[("cookie", &sent)], b"").await;
            assert_eq!((again.served_by(), again.header("set-cookie")), (first.served_by(), None));
        }
        assert!(value.len() <= 16 && value.bytes().all(|byte| byte.is_ascii_hexdigit()), "{value}");
        format!("{name}{attributes}")
    };
    for path in ["/ring/x", "/session/x"] {
        assert_eq!(given(&both.ours, path).await, given(&both.envoy, path).await);
    }
}
