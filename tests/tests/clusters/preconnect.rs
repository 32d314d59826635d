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

/// What is seen of each case, after four requests. Each has proxies of its own: Envoy adds up what all clusters have.
async fn compare(observe: impl AsyncFn(&Side, &str) -> Vec<Vec<u32>>) -> Vec<(&'static str, Vec<u32>)> {
    let mut last = Vec::new();
    for case in &CASES {
        let ours = Side::start(proxy::program(), std::slice::from_ref(case)).await;
        let envoy = Side::start(proxy::envoy(), std::slice::from_ref(case)).await;
        let (mut seen, expected) = (observe(&ours, case.name).await, observe(&envoy, case.name).await);
        assert_eq!(seen, expected, "{}", case.name);
        last.push((case.name, seen.pop().unwrap()));
    }
    last
}

#[tokio::test]
async fn endpoints_see_as_many_connections_as_from_envoy() {
    let last = compare(async |side, cluster| side.in_turn(cluster).await).await;
    let expected: [(_, &[u32]); 9] = [
        ("next-1.5", &[1, 1, 1, 1]),
        ("next-2", &[1, 1, 1, 1]),
        ("next-3", &[1, 1, 1, 1]),
        ("next-of-one", &[2]),
        ("next-of-two", &[1, 2]),
        ("each-2", &[2, 2]),
        ("each-3", &[3]),
        ("both", &[2, 2, 2, 2]),
        // What goes by loads cannot be foreseen.
        ("by-load", &[1]),
    ];
    assert_eq!(last, expected.map(|(name, counts)| (name, counts.to_vec())));
}

#[tokio::test]
async fn requests_at_the_same_time_have_as_many_connections_as_with_envoy() {
    let last = compare(async |side, cluster| side.at_once(cluster).await).await;
    assert_eq!(last[1], ("next-2", vec![2, 2, 2, 2]));
    assert_eq!(last[5], ("each-2", vec![4, 4]));
}

#[tokio::test]
async fn endpoints_may_be_left_out_by_their_metadata_as_with_envoy() {
    let policies = [format!("{TWICE}{ONLY}"), format!("predictive_preconnect_ratio: 2{ONLY}")];
    let [each, next] = policies.map(|policy| &*policy.leak());
    let cases = [case("each", each, 2), case("next", next, 4)];
    for program in [proxy::program(), proxy::envoy()] {
        let [each, next] = cases.each_ref().map(std::slice::from_ref);
        let side = Side::start(program.clone(), each).await;
        // Which endpoint comes first is not said.
        assert_eq!(side.in_turn("each").await.pop().unwrap(), [1, 2]);
        assert_eq!(side.proxy.stat("cluster.each.upstream_cx_preconnect_skipped").await, 2);
        let side = Side::start(program, next).await;
        assert_eq!(side.in_turn("next").await.pop().unwrap(), [1, 1, 1, 1]);
    }
}
