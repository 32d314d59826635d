//! Policies beside the classic ones: by latency, by reported weights, the first, a subset, named endpoints; and requests
//! that are dropped.

use outrigger_tests::eventually;
use outrigger_tests::tcp::HeldPort;

use super::*;

/// A cluster of these upstreams with a policy given by its full type.
fn cluster_by(name: &str, upstreams: &[Upstream], policy: &str) -> String {
    let endpoints: Vec<String> = upstreams.iter().map(|upstream| endpoint(upstream, "")).collect();
    let more = format!(
        ", load_balancing_policy: {{ policies: [{{ typed_extension_config: {{ name: p, typed_config: {{ '@type': \
         type.googleapis.com/{policy} }} }} }}] }}"
    );
    cluster_of(name, &format!("{{ lb_endpoints: [{}] }}", endpoints.join(", ")), &more)
}

const TO_C: &str = "{ match: { prefix: / }, route: { cluster: c } }";

fn requests(count: usize) -> Vec<(String, Vec<(&'static str, String)>)> {
    (0..count).map(|_| ("/".to_owned(), Vec::new())).collect()
}

const ROUND_ROBIN: &str = "{ policies: [{ typed_extension_config: { name: f, typed_config: { '@type': \
    type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin } } }] }";

#[tokio::test]
async fn an_endpoint_that_fails_fast_gets_few_requests_by_latency() {
    let upstreams = upstreams(4).await;
    upstreams[3].always_answer(503);
    let policy = "outrigger.lb.v1.PeakEwma, default_rtt: 0.005s";
    let clusters = [cluster_by("c", &upstreams, policy)];
    let proxy = Proxy::start(&bootstrap(&web(TO_C), &clusters)).await;
    let failed = served_by(&proxy, &requests(300)).await.iter().filter(|name| *name == "503").count();
    // Its first failure counts for a second; the others answer far sooner.
    assert!((1..20).contains(&failed), "{failed}");
}

#[tokio::test]
async fn reported_weights_count_in_all_their_forms_as_with_envoy() {
    let upstreams = upstreams(4).await;
    // Weights of 100, 200, 400 and 700.
    upstreams[0].always_say("endpoint-load-metrics", "TEXT rps_fractional:50,application_utilization:0.5");
    upstreams[1].always_say("endpoint-load-metrics", r#"JSON {"rps_fractional": 100, "cpu_utilization": 0.5}"#);
    // rps_fractional 100, application_utilization 0.25.
    upstreams[2].always_say("endpoint-load-metrics-bin", "MQAAAAAAAFlASQAAAAAAANA/");
    upstreams[3].always_end_with("endpoint-load-metrics", "TEXT rps_fractional:70,cpu_utilization:0.1");
    let policy = "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.\
                  ClientSideWeightedRoundRobin, blackout_period: 0s, weight_update_period: 0.1s";
    // Trailers of HTTP/1 are left out unless a cluster asks for them, so HTTP/2.
    let cluster = cluster_by("c", &upstreams, policy);
    let clusters = [cluster.replacen("type: STATIC", "type: STATIC, http2_protocol_options: {}", 1)];
    let both = Both::start(&bootstrap(&web(TO_C), &clusters)).await;
    for (who, proxy) in [("ours", &both.ours), ("envoy", &both.envoy)] {
        eventually(who, async || {
            let names = served_by(proxy, &requests(140)).await;
            let counts = count(&names);
            let of = |name: &str| counts.get(name).copied().unwrap_or(0);
            let near = |name: &str, wanted: usize| of(name).abs_diff(wanted) <= 4;
            let settled = near("u0", 10) && near("u1", 20) && near("u2", 40) && near("u3", 70);
            if settled { Ok(()) } else { Err(format!("{counts:?}")) }
        })
        .await;
    }
}

#[tokio::test]
async fn metrics_that_the_policy_names_come_first_as_with_envoy() {
    let upstreams = upstreams(2).await;
    // Weights of 100 and 300 by the metric that is named; 400 and 100 otherwise.
    let say = |upstream: &Upstream, value: &str| upstream.always_say("endpoint-load-metrics", value);
    say(&upstreams[0], "TEXT rps_fractional:100,application_utilization:0.25,named_metrics.a:1,named_metrics.b:0.1");
    say(
        &upstreams[1],
        "TEXT rps_fractional:100,application_utilization:1,named_metrics.a:0.2,named_metrics.b:0.333334",
    );
    let policy = "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.\
                  ClientSideWeightedRoundRobin, blackout_period: 0s, weight_update_period: 0.1s, \
                  metric_names_for_computing_utilization: [named_metrics.a, named_metrics.b]";
    let both = Both::start(&bootstrap(&web(TO_C), &[cluster_by("c", &upstreams, policy)])).await;
    for (who, proxy) in [("ours", &both.ours), ("envoy", &both.envoy)] {
        eventually(who, async || {
            let names = served_by(proxy, &requests(80)).await;
            let first = names.iter().filter(|name| *name == "u0").count();
            if first.abs_diff(20) <= 4 { Ok(()) } else { Err(first.to_string()) }
        })
        .await;
    }
}

#[tokio::test]
async fn the_first_endpoint_is_left_only_when_it_cannot_be_reached() {
    let mut upstreams = upstreams(3).await;
    // Nobody else is to be there once it is gone.
    let held = HeldPort::take();
    upstreams[0] = Upstream::listen("u0", held.address(), None).await;
    let policy = "envoy.extensions.load_balancing_policies.pick_first.v3.PickFirst";
    let clusters = [cluster_by("c", &upstreams, policy)];
    let routes = "{ match: { prefix: / }, route: { cluster: c, retry_policy: { retry_on: 'connect-failure,reset', \
                  num_retries: 1 } } }";
    let proxy = Proxy::start(&bootstrap(&web(routes), &clusters)).await;
    assert_eq!(served_by(&proxy, &requests(20)).await, vec!["u0"; 20]);
    drop(upstreams.remove(0));
    // Idle connections to it may end first.
    let names = served_by(&proxy, &requests(20)).await;
    assert_eq!(names[2..], ["u1"; 18]);
}

#[tokio::test]
async fn a_subset_of_endpoints_is_used_only() {
    let upstreams = upstreams(6).await;
    let policy = format!(
        "envoy.extensions.load_balancing_policies.random_subsetting.v3.RandomSubsetting, subset_size: 2, \
         child_policy: {ROUND_ROBIN}"
    );
    let proxy = Proxy::start(&bootstrap(&web(TO_C), &[cluster_by("c", &upstreams, &policy)])).await;
    let names = served_by(&proxy, &requests(40)).await;
    assert_eq!(count(&names).into_values().collect::<Vec<_>>(), [20, 20], "{names:?}");
}

#[tokio::test]
async fn requests_name_their_endpoints_as_with_envoy() {
    let upstreams = upstreams(4).await;
    let policy = format!(
        "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost, override_host_sources: [{{ header: \
         x-gateway-destination-endpoint }}, {{ metadata: {{ key: envoy.lb, path: [{{ key: to }}] }} }}], \
         fallback_policy: {ROUND_ROBIN}"
    );
    let to_metadata = "http_filters: [{ name: m, typed_config: { '@type': type.googleapis.com/\
                       envoy.extensions.filters.http.header_to_metadata.v3.Config, request_rules: [{ header: x-to, \
                       on_header_present: { metadata_namespace: envoy.lb, key: to } }] } }, ";
    let routes = "{ match: { prefix: / }, route: { cluster: c, retry_policy: { retry_on: 5xx, num_retries: 2 } } }";
    let manager = http("web", &outrigger_tests::config::routes(routes));
    let chain = chain(&manager.replacen("http_filters: [", to_metadata, 1), "");
    let clusters = [cluster_by("c", &upstreams, &policy)];
    let both = Both::start(&bootstrap(&[listener("web", &[chain], "")], &clusters)).await;
    let at = |number: usize| upstreams[number].address().to_string();
    let header = "x-gateway-destination-endpoint";
    let cases = [
        (vec![(header, at(2))], "u2"),
        (vec![(header, format!("{}, {}", at(3), at(1)))], "u3"),
        // What the cluster does not have is passed over.
        (vec![(header, format!("127.0.0.1:1,{}", at(1)))], "u1"),
        (vec![("x-to", at(0))], "u0"),
        // Headers come first, since their source does.
        (vec![("x-to", at(0)), (header, at(1))], "u1"),
    ];
    for (headers, expected) in cases {
        let requests: Vec<_> = (0..8).map(|_| ("/".to_owned(), headers.clone())).collect();
        let (ours, envoys) = both.served_by(&requests).await;
        assert_eq!((&ours, &envoys), (&vec![expected.to_owned(); 8], &vec![expected.to_owned(); 8]), "{headers:?}");
    }
    // The fallback serves who names nobody.
    for headers in [vec![], vec![(header, "no address".to_owned())]] {
        let requests: Vec<_> = (0..8).map(|_| ("/".to_owned(), headers.clone())).collect();
        let (ours, envoys) = both.served_by(&requests).await;
        assert_eq!((count(&ours).len(), count(&envoys).len()), (4, 4), "{headers:?}");
    }
    // A retry goes to the next one.
    upstreams[3].always_answer(503);
    let requests = vec![("/".to_owned(), vec![(header, format!("{},{}", at(3), at(1)))]); 8];
    let (ours, envoys) = both.served_by(&requests).await;
    assert_eq!((ours, envoys), (vec!["u1".to_owned(); 8], vec!["u1".to_owned(); 8]));
}

#[tokio::test]
async fn an_endpoint_that_is_named_must_be_in_a_status_that_the_cluster_takes() {
    let upstreams = upstreams(3).await;
    let endpoints = [
        endpoint(&upstreams[0], ", health_status: DRAINING"),
        endpoint(&upstreams[1], ""),
        endpoint(&upstreams[2], ""),
    ];
    let localities = format!("{{ lb_endpoints: [{}] }}", endpoints.join(", "));
    let policy = format!(
        ", load_balancing_policy: {{ policies: [{{ typed_extension_config: {{ name: p, typed_config: {{ '@type': \
         type.googleapis.com/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost, \
         override_host_sources: [{{ header: x-to }}], fallback_policy: {ROUND_ROBIN} }} }} }}] }}"
    );
    let taken = ", common_lb_config: { override_host_status: { statuses: [HEALTHY, UNKNOWN, DRAINING] } }";
    let clusters =
        [cluster_of("plain", &localities, &policy), cluster_of("taken", &localities, &format!("{policy}{taken}"))];
    let routes =
        ["plain", "taken"].map(|name| format!("{{ match: {{ prefix: /{name} }}, route: {{ cluster: {name} }} }}"));
    let proxy = Proxy::start(&bootstrap(&web(&routes.join(", ")), &clusters)).await;
    for (path, expected) in [("/plain", false), ("/taken", true)] {
        let to = upstreams[0].address().to_string();
        let names = served_by(&proxy, &vec![(path.to_owned(), vec![("x-to", to)]); 6]).await;
        assert_eq!(names.iter().all(|name| name == "u0"), expected, "{names:?}");
        assert_eq!(names.iter().any(|name| name == "u0"), expected, "{names:?}");
    }
}

#[tokio::test]
async fn a_share_of_requests_is_dropped_as_by_envoy() {
    let upstreams = upstreams(2).await;
    let endpoints: Vec<String> = upstreams.iter().map(|upstream| endpoint(upstream, "")).collect();
    let drops = "policy: { drop_overloads: [{ category: x, drop_percentage: { numerator: 40 } }] }, endpoints: [";
    let cluster = cluster_of("c", &format!("{{ lb_endpoints: [{}] }}", endpoints.join(", ")), "");
    let both = Both::start(&bootstrap(&web(TO_C), &[cluster.replacen("endpoints: [", drops, 1)])).await;
    for (who, proxy) in [("ours", &both.ours), ("envoy", &both.envoy)] {
        let mut client = h1::Client::connect(proxy.listener("web").await).await;
        let mut dropped = 0;
        for _ in 0..400 {
            let response = client.get("/").await;
            if response.status == 200 {
                continue;
            }
            dropped += 1;
            let shown = (response.status, response.text(), response.header("x-envoy-drop-overload"));
            assert_eq!(shown, (503, "drop overload".to_owned(), Some("true")), "{who}");
        }
        assert!((95..226).contains(&dropped), "{who}: {dropped}");
        proxy.stat_is("cluster.c.upstream_rq_503", dropped).await;
        proxy.stat_is("cluster.c.upstream_rq_total", 400 - dropped).await;
    }
    both.ours.wait_stat("cluster.c.upstream_rq_drop_overload", |seen| seen > 0).await;
}
