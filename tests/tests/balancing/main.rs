//! Which endpoint a request goes to: affinity by hash, subsets, localities, and in the modules shares, policies, retry hosts,
//! retry priority and out of band.
//! Where both have to agree, the same requests go through Envoy, too.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

mod out_of_band;
mod policies;
mod retry_hosts;
mod retry_priority;
mod shares;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use outrigger_tests::config::{bootstrap, chain, cluster_with, http, listener, routes, tcp_with};
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
        // A small ring may miss some of them, by the ports that they have.
        let least = if *name == "ring-small" { 2 } else { 3 };
        assert!(count(&ours).len() >= least, "{name}: {:?}", count(&ours));
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

/// Endpoints with metadata for subsets.
fn staged(upstreams: &[Upstream]) -> String {
    let stages = [("prod", "1"), ("prod", "2"), ("prod", "2"), ("dev", "2"), ("dev", "3")];
    let endpoints = upstreams.iter().zip(stages).map(|(upstream, (stage, version))| {
        let metadata = format!("{{ filter_metadata: {{ envoy.lb: {{ stage: {stage}, version: '{version}' }} }} }}");
        endpoint(upstream, &format!(", metadata: {metadata}"))
    });
    format!("{{ lb_endpoints: [{}] }}", endpoints.collect::<Vec<_>>().join(", "))
}

#[tokio::test]
async fn requests_reach_the_subset_that_their_route_names() {
    let upstreams = upstreams(5).await;
    let subsets = |more: &str| {
        format!(
            ", lb_subset_config: {{ subset_selectors: [{{ keys: [stage, version], fallback_policy: KEYS_SUBSET, \
             fallback_keys_subset: [stage] }}, {{ keys: [stage] }}, {{ keys: [version], fallback_policy: \
             ANY_ENDPOINT }}], {more} }}"
        )
    };
    let clusters = [
        cluster_of("none", &staged(&upstreams), &subsets("fallback_policy: NO_FALLBACK")),
        cluster_of(
            "default",
            &staged(&upstreams),
            &format!(
                "{}, lb_policy: MAGLEV",
                subsets("fallback_policy: DEFAULT_SUBSET, default_subset: { stage: dev }")
            ),
        ),
    ];
    let matching = |fields: &str| format!("{{ filter_metadata: {{ envoy.lb: {{ {fields} }} }} }}");
    let wanted = [
        ("both", "stage: prod, version: '2'"),
        ("stage", "stage: dev"),
        ("other", "stage: prod, version: '9'"),
        ("version", "version: '3'"),
        ("any", "version: '9'"),
        ("missing", "stage: test"),
        ("number", "version: 2"),
        ("nothing", ""),
    ];
    let mut all_routes = Vec::new();
    for cluster in ["none", "default"] {
        for (path, fields) in wanted {
            all_routes.push(format!(
                "{{ match: {{ prefix: /{cluster}/{path}/ }}, route: {{ cluster: {cluster}, metadata_match: {}, \
                 hash_policy: [{BY_KEY}] }} }}",
                matching(fields)
            ));
        }
    }
    all_routes.push(format!(
        "{{ match: {{ prefix: /weighted/ }}, route: {{ metadata_match: {}, weighted_clusters: {{ clusters: [{{ name: \
         none, weight: 1, metadata_match: {} }}] }} }} }}",
        matching("stage: prod"),
        matching("version: '1'")
    ));
    let both = Both::start(&bootstrap(&web(&all_routes.join(", ")), &clusters)).await;
    let mut wrong = String::new();
    let paths = all_routes.len();
    for cluster in ["none", "default"] {
        for (path, _) in wanted {
            let requests: Vec<_> =
                (0..40).map(|key| (format!("/{cluster}/{path}/x"), vec![("x-key", key.to_string())])).collect();
            let (ours, envoys) = both.served_by(&requests).await;
            // By turns the same ones answer, by hash each request goes to the same one.
            let same = if cluster == "none" { count(&ours).keys().eq(count(&envoys).keys()) } else { ours == envoys };
            if !same {
                let _ = writeln!(wrong, "{cluster}/{path}: {:?} and {:?}", count(&ours), count(&envoys));
            }
        }
    }
    assert!(wrong.is_empty() && paths == 17, "{wrong}");
    let requests = vec![("/weighted/x".to_owned(), Vec::new())];
    assert_eq!(both.served_by(&requests).await, (vec!["u0".to_owned()], vec!["u0".to_owned()]));
    for cluster in ["none", "default"] {
        // Envoy counts these once for each of its threads.
        both.ours.stat_is(&format!("cluster.{cluster}.lb_subsets_active"), 9).await;
        for stat in ["lb_subsets_selected", "lb_subsets_fallback"] {
            let stat = format!("cluster.{cluster}.{stat}");
            assert_eq!(both.ours.stat(&stat).await, both.envoy.stat(&stat).await, "{stat}");
        }
    }
}

#[tokio::test]
async fn localities_share_by_weight_and_by_what_they_can_take() {
    let upstreams = upstreams(6).await;
    let at = |zone: &str, weight: u32, of: &[(usize, &str)]| {
        let endpoints: Vec<String> = of.iter().map(|(number, more)| endpoint(&upstreams[*number], more)).collect();
        format!(
            "{{ locality: {{ zone: {zone} }}, load_balancing_weight: {weight}, lb_endpoints: [{}] }}",
            endpoints.join(", ")
        )
    };
    const DOWN: &str = ", health_status: UNHEALTHY";
    let localities =
        [at("a", 1, &[(0, "")]), at("b", 3, &[(1, ""), (2, "")]), at("c", 4, &[(3, ""), (4, DOWN), (5, DOWN)])];
    let weighted = ", common_lb_config: { locality_weighted_lb_config: {} }";
    let wrr = ", load_balancing_policy: { policies: [{ typed_extension_config: { name: p, typed_config: { '@type': \
        type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest, \
        locality_lb_config: { locality_weighted_lb_config: {} } } } }] }";
    let clusters =
        [cluster_of("turn", &localities.join(", "), weighted), cluster_of("least", &localities.join(", "), wrr)];
    let routes =
        ["turn", "least"].map(|name| format!("{{ match: {{ prefix: /{name}/ }}, route: {{ cluster: {name} }} }}"));
    let both = Both::start(&bootstrap(&web(&routes.join(", ")), &clusters)).await;
    for name in ["turn", "least"] {
        let requests: Vec<_> = (0..600).map(|_| (format!("/{name}/x"), Vec::new())).collect();
        let (ours, envoys) = both.served_by(&requests).await;
        let zones = |names: &[String]| {
            let counts = count(names);
            let sum = |of: &[&str]| of.iter().map(|name| counts.get(name).copied().unwrap_or(0)).sum::<usize>();
            [sum(&["u0"]), sum(&["u1", "u2"]), sum(&["u3"]), sum(&["u4", "u5"])]
        };
        // 1, 3, and of 4 as much as one of three endpoints can take, overprovisioned by 1.4.
        let expected = [1.0, 3.0, 4.0 * 1.4 / 3.0, 0.0].map(|weight: f64| 600.0 * weight / (4.0 + 5.6 / 3.0));
        for (who, counts) in [("ours", zones(&ours)), ("envoy", zones(&envoys))] {
            for (count, expected) in counts.iter().zip(expected) {
                assert!((*count as f64 - expected).abs() <= 12.0, "{name} {who}: {counts:?}, expected {expected:?}");
            }
        }
    }
}

#[tokio::test]
async fn traffic_stays_in_the_zone_of_the_proxy_as_with_envoy() {
    let upstreams = upstreams(6).await;
    let zones = |of: [&[usize]; 2]| {
        let at = |zone: &str, numbers: &[usize]| {
            let endpoints: Vec<String> = numbers.iter().map(|number| endpoint(&upstreams[*number], "")).collect();
            format!("{{ locality: {{ region: r, zone: {zone} }}, lb_endpoints: [{}] }}", endpoints.join(", "))
        };
        format!("{}, {}", at("near", of[0]), at("far", of[1]))
    };
    // Half of the proxies are in each zone.
    let local = cluster_of("local", &zones([&[0, 1], &[2, 3]]), "");
    let clusters = [
        local,
        cluster_of("direct", &zones([&[0, 1, 2], &[3, 4, 5]]), ""),
        cluster_of("some", &zones([&[0, 1], &[2, 3, 4, 5]]), ", lb_policy: LEAST_REQUEST"),
        cluster_of("small", &zones([&[0, 1], &[2, 3, 4]]), ""),
        cluster_of(
            "forced",
            &zones([&[0], &[1, 2, 3, 4, 5]]),
            ", load_balancing_policy: { policies: [{ typed_extension_config: { name: p, typed_config: { '@type': \
             type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin, \
             locality_lb_config: { zone_aware_lb_config: { force_local_zone: {} } } } } }] }",
        ),
    ];
    let names = ["direct", "some", "small", "forced"];
    let routes = names.map(|name| format!("{{ match: {{ prefix: /{name}/ }}, route: {{ cluster: {name} }} }}"));
    let bootstrap = bootstrap(&web(&routes.join(", ")), &clusters).replacen(
        "cluster: tests }",
        "cluster: tests, locality: { region: r, zone: near } }",
        1,
    ) + "cluster_manager: { local_cluster_name: local }\n";
    let both = Both::start(&bootstrap).await;
    let near = [("direct", vec!["u0", "u1", "u2"], 1.0), ("some", vec!["u0", "u1"], 2.0 / 3.0)];
    let near = near.into_iter().chain([("small", vec!["u0", "u1"], 0.4), ("forced", vec!["u0"], 1.0)]);
    for (name, near, expected) in near {
        let requests: Vec<_> = (0..400).map(|_| (format!("/{name}/x"), Vec::new())).collect();
        let (ours, envoys) = both.served_by(&requests).await;
        for (who, names) in [("ours", ours), ("envoy", envoys)] {
            let share = names.iter().filter(|name| near.contains(&name.as_str())).count() as f64 / 400.0;
            assert!((share - expected).abs() < 0.16, "{name}, {who}: {share}, expected {expected}");
        }
    }
    for (name, stat) in [("direct", "lb_zone_routing_all_directly"), ("forced", "lb_zone_routing_all_directly")] {
        let stat = format!("cluster.{name}.{stat}");
        assert_eq!((both.ours.stat(&stat).await, both.envoy.stat(&stat).await), (400, 400), "{stat}");
    }
    both.ours.wait_stat("cluster.some.lb_zone_routing_sampled", |seen| seen > 100).await;
    both.ours.wait_stat("cluster.some.lb_zone_routing_cross_zone", |seen| seen > 40).await;
    both.ours.wait_stat("cluster.small.lb_zone_cluster_too_small", |seen| seen > 0).await;
}

#[tokio::test]
async fn connections_of_one_client_go_to_one_endpoint_as_with_envoy() {
    let upstreams = upstreams(5).await;
    let ports: Vec<u16> = upstreams.iter().map(Upstream::port).collect();
    let proxy_filter = tcp_with("cluster: c, hash_policy: [{ source_ip: {} }]");
    let listeners = vec![listener("web", &[chain(&proxy_filter, "")], "")];
    let both = Both::start(&bootstrap(&listeners, &[cluster_with("c", &ports, ", lb_policy: RING_HASH")])).await;
    let mut names = Vec::new();
    for proxy in [&both.ours, &both.envoy] {
        for _ in 0..4 {
            names.extend(served_by(proxy, &[("/".to_owned(), Vec::new())]).await);
        }
    }
    assert_eq!(count(&names).len(), 1, "{names:?}");
}
