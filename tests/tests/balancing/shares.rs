//! Shares of endpoints by weight, priority and health: what Envoy does with the same configuration.

use std::fmt::Write as _;

use outrigger_tests::eventually;

use super::*;

/// A case: the cluster's name, its localities, further fields, and the expected part of each upstream.
type Case = (&'static str, String, String, Vec<f64>);

const REQUESTS: usize = 1000;

/// Sends requests to each cluster through both, and compares the shares with what is expected. The slack is seven
/// standard deviations of a random policy, which in turn ones stay far below.
async fn compare(cases: &[Case]) -> Both {
    let routes: Vec<String> = cases
        .iter()
        .map(|(name, ..)| format!("{{ match: {{ prefix: /{name}/ }}, route: {{ cluster: {name} }} }}"))
        .collect();
    let clusters: Vec<String> =
        cases.iter().map(|(name, localities, more, _)| cluster_of(name, localities, more)).collect();
    let both = Both::start(&bootstrap(&web(&routes.join(", ")), &clusters)).await;
    let mut wrong = String::new();
    for (name, _, _, expected) in cases {
        let requests: Vec<_> = (0..REQUESTS).map(|_| (format!("/{name}/x"), Vec::new())).collect();
        let (ours, envoys) = both.served_by(&requests).await;
        let total: f64 = expected.iter().sum();
        for (who, names) in [("ours", ours), ("envoy", envoys)] {
            let counts = count(&names);
            for (number, part) in expected.iter().enumerate() {
                let share = part / total;
                let found = counts.get(&*format!("u{number}")).copied().unwrap_or(0) as f64;
                let slack = 7.0 * (REQUESTS as f64 * share * (1.0 - share)).sqrt() + 4.0;
                if (found - REQUESTS as f64 * share).abs() > slack || (share == 0.0 && found > 0.0) {
                    let _ = writeln!(wrong, "{name}, {who}, u{number}: {counts:?}, expected {expected:?}");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    both
}

const DOWN: &str = ", health_status: UNHEALTHY";
const DEGRADED: &str = ", health_status: DEGRADED";

fn locality(priority: usize, endpoints: &[String]) -> String {
    format!("{{ priority: {priority}, lb_endpoints: [{}] }}", endpoints.join(", "))
}

#[tokio::test]
async fn endpoints_share_by_weight() {
    let upstreams = upstreams(4).await;
    let weighted = |weights: [u32; 4]| {
        let endpoints: Vec<String> = upstreams
            .iter()
            .zip(weights)
            .map(|(upstream, weight)| endpoint(upstream, &format!(", load_balancing_weight: {weight}")))
            .collect();
        locality(0, &endpoints)
    };
    let (weights, shares) = ([1, 2, 5, 12], vec![1.0, 2.0, 5.0, 12.0]);
    let scan = policy_of("least_request.v3.LeastRequest", ", selection_method: FULL_SCAN");
    compare(&[
        ("turn", weighted(weights), String::new(), shares.clone()),
        // By chance alone.
        ("random", weighted(weights), ", lb_policy: RANDOM".to_owned(), vec![1.0; 4]),
        ("least", weighted(weights), ", lb_policy: LEAST_REQUEST".to_owned(), shares.clone()),
        ("scan-equal", weighted([1; 4]), scan, vec![1.0; 4]),
    ])
    .await;
}

fn policy_of(name: &str, fields: &str) -> String {
    format!(
        ", load_balancing_policy: {{ policies: [{{ typed_extension_config: {{ name: p, typed_config: {{ '@type': \
         type.googleapis.com/envoy.extensions.load_balancing_policies.{name}{fields} }} }} }}] }}"
    )
}

#[tokio::test]
async fn traffic_spills_to_lower_priorities_and_to_degraded_endpoints() {
    let upstreams = upstreams(6).await;
    let all = |more: [&str; 4]| upstreams.iter().zip(more).map(|(up, more)| endpoint(up, more)).collect::<Vec<_>>();
    let below = locality(1, &[endpoint(&upstreams[4], ""), endpoint(&upstreams[5], "")]);
    let half = format!("{}, {below}", locality(0, &all(["", DOWN, "", DOWN])));
    let most = format!("{}, {below}", locality(0, &all(["", "", "", DOWN])));
    let none = format!("{}, {below}", locality(0, &all([DOWN; 4])));
    let least = ", lb_policy: LEAST_REQUEST".to_owned();
    let degraded = format!("{}, {below}", locality(0, &all(["", DEGRADED, DEGRADED, DOWN])));
    let only_degraded = locality(0, &all(["", DEGRADED, DEGRADED, DEGRADED]));
    // Of three quarters each can take 140 %, so more than all.
    let third = 1.0 / 3.0;
    compare(&[
        ("half", half.clone(), String::new(), vec![0.35, 0.0, 0.35, 0.0, 0.15, 0.15]),
        ("half-least", half, least, vec![0.35, 0.0, 0.35, 0.0, 0.15, 0.15]),
        ("most", most, String::new(), vec![third, third, third, 0.0, 0.0, 0.0]),
        ("none", none, String::new(), vec![0.0, 0.0, 0.0, 0.0, 0.5, 0.5]),
        // Healthy ones of all priorities come first.
        ("degraded", degraded, String::new(), vec![0.35, 0.0, 0.0, 0.0, 0.325, 0.325]),
        ("only-degraded", only_degraded, String::new(), vec![0.35, 0.65 / 3.0, 0.65 / 3.0, 0.65 / 3.0]),
    ])
    .await;
}

#[tokio::test]
async fn too_few_fit_endpoints_bring_panic_which_is_counted() {
    let upstreams = upstreams(5).await;
    let all = |more: [&str; 5]| {
        let endpoints: Vec<String> = upstreams.iter().zip(more).map(|(up, more)| endpoint(up, more)).collect();
        locality(0, &endpoints)
    };
    let two = all(["", "", DOWN, DOWN, DOWN]);
    let never = ", common_lb_config: { healthy_panic_threshold: { value: 0 } }".to_owned();
    let both = compare(&[
        ("panic", two.clone(), String::new(), vec![0.2; 5]),
        ("never", two, never, vec![0.5, 0.5, 0.0, 0.0, 0.0]),
        ("enough", all(["", "", "", DOWN, DOWN]), String::new(), vec![1.0, 1.0, 1.0, 0.0, 0.0]),
    ])
    .await;
    for (name, expected) in [("panic", REQUESTS as u64), ("never", 0), ("enough", 0)] {
        let stat = format!("cluster.{name}.lb_healthy_panic");
        assert_eq!(
            (both.ours.stat(&stat).await, both.envoy.stat(&stat).await),
            (expected as _, expected as _),
            "{name}"
        );
    }
}

#[tokio::test]
async fn the_health_of_a_priority_is_that_of_its_weights_if_the_assignment_says_so() {
    let upstreams = upstreams(3).await;
    let heavy_down = endpoint(&upstreams[0], &format!("{DOWN}, load_balancing_weight: 9"));
    let localities = format!(
        "{}, {}",
        locality(0, &[heavy_down, endpoint(&upstreams[1], "")]),
        locality(1, &[endpoint(&upstreams[2], "")])
    );
    // The policy of the assignment stands beside its endpoints.
    let cluster = |name: &str, policy: &str| {
        cluster_of(name, &localities, "").replacen("endpoints: [", &format!("policy: {{ {policy} }}, endpoints: ["), 1)
    };
    let clusters = [cluster("number", ""), cluster("weight", "weighted_priority_health: true")];
    let routes =
        ["number", "weight"].map(|name| format!("{{ match: {{ prefix: /{name}/ }}, route: {{ cluster: {name} }} }}"));
    let both = Both::start(&bootstrap(&web(&routes.join(", ")), &clusters)).await;
    for (name, expected) in [("number", 0.7), ("weight", 0.14)] {
        let requests: Vec<_> = (0..REQUESTS).map(|_| (format!("/{name}/x"), Vec::new())).collect();
        let (ours, envoys) = both.served_by(&requests).await;
        for (who, names) in [("ours", ours), ("envoy", envoys)] {
            let share = names.iter().filter(|name| *name == "u1").count() as f64 / REQUESTS as f64;
            assert!((share - expected).abs() < 0.12, "{name}, {who}: {share}, expected {expected}");
        }
    }
}

#[tokio::test]
async fn the_overprovisioning_factor_says_what_a_priority_can_take() {
    let upstreams = upstreams(5).await;
    // Half of the first priority is down.
    let above = upstreams[..4].iter().zip(["", DOWN, "", DOWN]).map(|(up, more)| endpoint(up, more));
    let localities =
        format!("{}, {}", locality(0, &above.collect::<Vec<_>>()), locality(1, &[endpoint(&upstreams[4], "")]));
    let cluster = |name: &str, policy: &str| {
        cluster_of(name, &localities, "").replacen("endpoints: [", &format!("policy: {{ {policy} }}, endpoints: ["), 1)
    };
    let cases = [
        ("less", "overprovisioning_factor: 100", 0.5),
        ("usual", "", 0.3),
        ("more", "overprovisioning_factor: 180", 0.1),
        ("most", "overprovisioning_factor: 200", 0.0),
    ];
    let clusters = cases.map(|(name, policy, _)| cluster(name, policy));
    let routes = cases.map(|(name, ..)| format!("{{ match: {{ prefix: /{name}/ }}, route: {{ cluster: {name} }} }}"));
    let both = Both::start(&bootstrap(&web(&routes.join(", ")), &clusters)).await;
    for (name, _, expected) in cases {
        let requests: Vec<_> = (0..REQUESTS).map(|_| (format!("/{name}/x"), Vec::new())).collect();
        let (ours, envoys) = both.served_by(&requests).await;
        for (who, names) in [("ours", ours), ("envoy", envoys)] {
            let share = names.iter().filter(|name| *name == "u4").count() as f64 / REQUESTS as f64;
            // Seven standard deviations.
            let slack = 7.0 * (expected * (1.0 - expected) / REQUESTS as f64).sqrt();
            assert!((share - expected).abs() <= slack, "{name}, {who}: {share}, expected {expected}");
        }
    }
}

#[tokio::test]
async fn a_full_scan_fills_idle_endpoints_first_over_all_workers() {
    const ENDPOINTS: usize = 12;
    let upstreams = upstreams(ENDPOINTS).await;
    let endpoints: Vec<String> = upstreams.iter().map(|upstream| endpoint(upstream, "")).collect();
    let scan = policy_of("least_request.v3.LeastRequest", ", selection_method: FULL_SCAN");
    let clusters = [cluster_of("c", &locality(0, &endpoints), &scan)];
    let bootstrap = bootstrap(&web("{ match: { prefix: / }, route: { cluster: c } }"), &clusters);
    for program in [proxy::program(), proxy::envoy()] {
        let proxy = Proxy::start_with(&bootstrap, Settings { program, concurrency: 3, ..Settings::default() }).await;
        let address = proxy.listener("web").await;
        let mut clients = Vec::new();
        for round in 1..=2 {
            for number in 0..ENDPOINTS {
                let mut client = h1::Client::connect(address).await;
                client.send(h1::request_bytes("GET", "/", &[("x-reply", "gate")], b"")).await;
                clients.push(client);
                // The next one is sent when this one has arrived.
                let arrived = (round - 1) * ENDPOINTS + number + 1;
                eventually("the request", async || {
                    let waiting = upstreams.iter().map(|upstream| upstream.counts().waiting).sum::<usize>();
                    if waiting == arrived { Ok(()) } else { Err(waiting.to_string()) }
                })
                .await;
            }
            let waiting: Vec<usize> = upstreams.iter().map(|upstream| upstream.counts().waiting).collect();
            assert_eq!(waiting, [round; ENDPOINTS], "{:?}", proxy.log());
        }
        upstreams.iter().for_each(Upstream::open_gate);
        for client in &mut clients {
            assert_eq!(client.response("GET").await.status, 200);
        }
        upstreams.iter().for_each(Upstream::close_gate);
    }
}
