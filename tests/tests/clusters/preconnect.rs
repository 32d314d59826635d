//! How many connections endpoints see where some are made in advance: as many as from Envoy.

use std::path::PathBuf;

use outrigger_tests::config::{bootstrap, chain, http, listener, routes};
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy};

/// A cluster: its name, its policy of preconnecting, how many endpoints it has, and how they take turns.
struct Case {
    name: &'static str,
    policy: &'static str,
    endpoints: usize,
    lb_policy: &'static str,
}

const fn case(name: &'static str, policy: &'static str, endpoints: usize) -> Case {
    Case { name, policy, endpoints, lb_policy: "ROUND_ROBIN" }
}

const TWICE: &str = "per_upstream_preconnect_ratio: 2";
/// Of three endpoints the first only.
const ONLY: &str =
    ", preconnect_enabled_metadata: { filter: envoy.lb, path: [{ key: warm }], value: { bool_match: true } }";

const CASES: [Case; 9] = [
    case("next-1.5", "predictive_preconnect_ratio: 1.5", 4),
    case("next-2", "predictive_preconnect_ratio: 2", 4),
    case("next-3", "predictive_preconnect_ratio: 3", 4),
    case("next-of-one", "predictive_preconnect_ratio: 2", 1),
    case("next-of-two", "predictive_preconnect_ratio: 3", 2),
    case("each-2", TWICE, 2),
    case("each-3", "per_upstream_preconnect_ratio: 3", 1),
    case("both", "per_upstream_preconnect_ratio: 2, predictive_preconnect_ratio: 2", 4),
    Case { name: "by-load", policy: "predictive_preconnect_ratio: 2", endpoints: 1, lb_policy: "LEAST_REQUEST" },
];

fn cluster(case: &Case, upstreams: &[Upstream]) -> String {
    let endpoints = upstreams.iter().take(case.endpoints).enumerate().map(|(number, upstream)| {
        format!(
            "{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} }}, \
             metadata: {{ filter_metadata: {{ envoy.lb: {{ warm: {} }} }} }} }}",
            upstream.port(),
            number == 0,
        )
    });
    let endpoints = endpoints.collect::<Vec<_>>().join(", ");
    format!(
        "{{ name: {0}, type: STATIC, connect_timeout: 5s, lb_policy: {1}, preconnect_policy: {{ {2} }}, \
         load_assignment: {{ cluster_name: {0}, endpoints: [{{ lb_endpoints: [{endpoints}] }}] }} }}",
        case.name, case.lb_policy, case.policy
    )
}

/// A proxy with clusters of the same upstreams, each under a path of its name.
struct Side {
    proxy: Proxy,
    upstreams: Vec<Upstream>,
}

impl Side {
    async fn start(program: PathBuf, cases: &[Case]) -> Self {
        let mut upstreams = Vec::new();
        for number in 0..4 {
            upstreams.push(Upstream::start(&format!("u{number}")).await);
        }
        let clusters: Vec<String> = cases.iter().map(|case| cluster(case, &upstreams)).collect();
        let to = |case: &Case| {
            format!("{{ match: {{ prefix: /{0}/ }}, route: {{ cluster: {0}, timeout: 0s }} }}", case.name)
        };
        let all: Vec<String> = cases.iter().map(to).collect();
        let listener = listener("web", &[chain(&http("web", &routes(&all.join(", "))), "")], "");
        let settings = Settings { program, concurrency: 1, ..Settings::default() };
        let proxy = Proxy::start_with(&bootstrap(&[listener], &clusters), settings).await;
        Self { proxy, upstreams }
    }

    /// How many connections there were to each endpoint, the fewest first: where turns begin is not said.
    async fn connections(&self, cluster: &str) -> Vec<u32> {
        let page = self.proxy.admin("/clusters").await.text();
        let mut counts: Vec<u32> = page
            .lines()
            .filter_map(|line| line.strip_prefix(cluster)?.strip_prefix("::")?.split_once("::cx_total::"))
            .map(|(_, count)| count.parse().unwrap())
            .collect();
        counts.sort_unstable();
        counts
    }

    /// After each of four requests, one after the other.
    async fn in_turn(&self, cluster: &str) -> Vec<Vec<u32>> {
        let mut client = h1::Client::connect(self.proxy.listener("web").await).await;
        let mut seen = Vec::new();
        for _ in 0..4 {
            assert_eq!(client.get(&format!("/{cluster}/")).await.status, 200);
            seen.push(self.connections(cluster).await);
        }
        seen
    }

    /// When one, two, three and four requests are in flight.
    async fn at_once(&self, cluster: &str) -> Vec<Vec<u32>> {
        let address = self.proxy.listener("web").await;
        let mut seen = Vec::new();
        let mut clients = Vec::new();
        let waiting = || self.upstreams.iter().map(|upstream| upstream.counts().waiting).sum::<usize>();
        for number in 1..=4 {
            let mut client = h1::Client::connect(address).await;
            client.send(h1::request_bytes("GET", &format!("/{cluster}/"), &[("x-reply", "gate")], b"")).await;
            clients.push(client);
            outrigger_tests::eventually("the request at its gate", async || match waiting() {
                count if count == number => Ok(()),
                count => Err(count.to_string()),
            })
            .await;
            seen.push(self.connections(cluster).await);
        }
        self.upstreams.iter().for_each(Upstream::open_gate);
        for client in &mut clients {
            assert_eq!(client.response("GET").await.status, 200);
        }
        self.upstreams.iter().for_each(Upstream::close_gate);
        seen
    }
}

#[tokio::test]
async fn endpoints_see_as_many_connections_as_from_envoy() {
    let ours = Side::start(proxy::program(), &CASES).await;
    let envoy = Side::start(proxy::envoy(), &CASES).await;
    for case in &CASES {
        let (seen, expected) = (ours.in_turn(case.name).await, envoy.in_turn(case.name).await);
        assert_eq!(seen, expected, "{}, in turn", case.name);
    }
    // Envoy has shown these, too.
    assert_eq!(ours.connections("next-2").await, [1, 1, 1, 1]);
    assert_eq!(ours.connections("next-of-one").await, [2]);
    assert_eq!(ours.connections("each-3").await, [3]);
    assert_eq!(ours.connections("both").await, [2, 2, 2, 2]);
    // What goes by loads cannot be foreseen.
    assert_eq!(ours.connections("by-load").await, [1]);
}

#[tokio::test]
async fn requests_at_the_same_time_have_as_many_connections_as_with_envoy() {
    let ours = Side::start(proxy::program(), &CASES).await;
    let envoy = Side::start(proxy::envoy(), &CASES).await;
    for case in &CASES {
        let (seen, expected) = (ours.at_once(case.name).await, envoy.at_once(case.name).await);
        assert_eq!(seen, expected, "{}, at once", case.name);
    }
    assert_eq!(ours.connections("next-2").await, [2, 2, 2, 2]);
    assert_eq!(ours.connections("each-2").await, [4, 4]);
}

#[tokio::test]
async fn endpoints_may_be_left_out_by_their_metadata_as_with_envoy() {
    let policies = [format!("{TWICE}{ONLY}"), format!("predictive_preconnect_ratio: 2{ONLY}")];
    let [each, next] = policies.map(|policy| &*policy.leak());
    let cases = [case("each", each, 2), case("next", next, 4)];
    let ours = Side::start(proxy::program(), &cases).await;
    let envoy = Side::start(proxy::envoy(), &cases).await;
    let (seen, expected) = (ours.in_turn("each").await, envoy.in_turn("each").await);
    // Which endpoint comes first is not said.
    assert_eq!((seen.last(), expected.last()), (Some(&vec![1, 2]), Some(&vec![1, 2])));
    for side in [&ours, &envoy] {
        assert_eq!(side.proxy.stat("cluster.each.upstream_cx_preconnect_skipped").await, 2);
        let last = side.in_turn("next").await.pop().unwrap();
        assert_eq!(last, [1, 1, 1, 1]);
    }
}
