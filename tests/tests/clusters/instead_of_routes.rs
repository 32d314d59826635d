//! What a cluster says about requests comes before what their routes say: hashing, retries and copies, as in Envoy; and
//! retry budgets that consider the requests of a while.

use std::path::PathBuf;

use outrigger_tests::config::{bootstrap, chain, cluster, cluster_with, http, listener, routes};
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy};

/// Options of HTTP with further fields, for a cluster.
fn options(more: &str) -> String {
    format!(
        ", typed_extension_protocol_options: {{ envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{ \
         '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
         explicit_http_config: {{ http_protocol_options: {{}} }}, {more} }} }}"
    )
}

async fn start(program: PathBuf, clusters: &[String], to: &str) -> Proxy {
    let listener = listener("web", &[chain(&http("web", &routes(to)), "")], "");
    let settings = Settings { program, concurrency: 1, ..Settings::default() };
    Proxy::start_with(&bootstrap(&[listener], clusters), settings).await
}

#[tokio::test]
async fn the_retry_policy_of_the_cluster_replaces_that_of_the_route() {
    for program in [proxy::program(), proxy::envoy()] {
        let upstream = Upstream::start("bad").await;
        upstream.always_answer(503);
        let policy = "retry_policy: { retry_on: 5xx, num_retries: 3, retry_back_off: { base_interval: 0.001s } }";
        let clusters = [cluster_with("bad", &[upstream.port()], &options(policy))];
        let route = "{ match: { prefix: / }, route: { cluster: bad, retry_policy: { retry_on: connect-failure } } }";
        let proxy = start(program, &clusters, route).await;
        assert_eq!(h1::get(proxy.listener("web").await, "/").await.status, 503);
        assert_eq!(upstream.counts().requests, 4);
        assert_eq!(proxy.stat("cluster.bad.upstream_rq_retry").await, 3);
    }
}

#[tokio::test]
async fn copies_go_where_the_cluster_says() {
    for program in [proxy::program(), proxy::envoy()] {
        let (end, ours, of_route) =
            (Upstream::start("end").await, Upstream::start("copy").await, Upstream::start("unused").await);
        let clusters = [
            cluster_with("end", &[end.port()], &options("request_mirror_policies: [{ cluster: copy }]")),
            cluster("copy", &[ours.port()]),
            cluster("unused", &[of_route.port()]),
        ];
        let route = "{ match: { prefix: / }, route: { cluster: end, request_mirror_policies: [{ cluster: unused }] } }";
        let proxy = start(program, &clusters, route).await;
        assert_eq!(h1::get(proxy.listener("web").await, "/").await.served_by(), "end");
        ours.wait("the copy", |counts| counts.requests == 1).await;
        assert_eq!(of_route.counts().requests, 0);
    }
}

#[tokio::test]
async fn requests_are_hashed_by_what_the_cluster_says() {
    let mut upstreams = Vec::new();
    for number in 0..5 {
        upstreams.push(Upstream::start(&format!("u{number}")).await);
    }
    let ports: Vec<u16> = upstreams.iter().map(Upstream::port).collect();
    let hash = options("hash_policy: [{ header: { header_name: x-cluster } }]");
    let clusters = [cluster_with("ring", &ports, &format!("{hash}, lb_policy: RING_HASH"))];
    let route =
        "{ match: { prefix: / }, route: { cluster: ring, hash_policy: [{ header: { header_name: x-route } }] } }";
    let mut seen = Vec::new();
    for program in [proxy::program(), proxy::envoy()] {
        let proxy = start(program, &clusters, route).await;
        let mut client = h1::Client::connect(proxy.listener("web").await).await;
        let mut served = Vec::new();
        for key in 0..40 {
            let (one, other) = (format!("key-{key}"), format!("other-{}", key % 7));
            let response = client.request("GET", "/", &[("x-cluster", &one), ("x-route", &other)], b"").await;
            served.push(response.served_by());
        }
        seen.push(served);
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test]
async fn a_retry_budget_may_consider_requests_that_are_over() {
    for program in [proxy::program(), proxy::envoy()] {
        let (good, bad) = (Upstream::start("good").await, Upstream::start("bad").await);
        bad.always_answer(503);
        let budget = |name: &str, interval: &str| {
            let breakers = format!(
                ", circuit_breakers: {{ thresholds: [{{ retry_budget: {{ budget_percent: {{ value: 20 }}, \
                 min_retry_concurrency: 0{interval} }} }}] }}, lb_subset_config: {{ subset_selectors: [{{ keys: [kind] }}] }}"
            );
            let endpoint = |upstream: &Upstream, kind: &str| {
                format!(
                    "{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} }}, \
                     metadata: {{ filter_metadata: {{ envoy.lb: {{ kind: {kind} }} }} }} }}",
                    upstream.port()
                )
            };
            format!(
                "{{ name: {name}, type: STATIC, load_assignment: {{ cluster_name: {name}, endpoints: [{{ lb_endpoints: \
                 [{}, {}] }}] }}{breakers} }}",
                endpoint(&good, "good"),
                endpoint(&bad, "bad")
            )
        };
        let clusters = [budget("now", ""), budget("while", ", budget_interval: 3600s")];
        let route = |cluster: &str, kind: &str| {
            format!(
                "{{ match: {{ prefix: /{cluster}/{kind} }}, route: {{ cluster: {cluster}, metadata_match: {{ \
                 filter_metadata: {{ envoy.lb: {{ kind: {kind} }} }} }}, retry_policy: {{ retry_on: 5xx, num_retries: 5, \
                 retry_back_off: {{ base_interval: 0.001s }} }} }} }}"
            )
        };
        let all = ["now", "while"].map(|cluster| format!("{}, {}", route(cluster, "good"), route(cluster, "bad")));
        let proxy = start(program, &clusters, &all.join(", ")).await;
        let web = proxy.listener("web").await;
        for (cluster, retries) in [("now", 0), ("while", 5)] {
            let stat = |name: &str| format!("cluster.{cluster}.upstream_rq_{name}");
            // One request of one is too few for a fifth of them to be a retry.
            assert_eq!(h1::get(web, &format!("/{cluster}/bad")).await.status, 503);
            assert_eq!((proxy.stat(&stat("retry")).await, proxy.stat(&stat("retry_overflow")).await), (0, 1));
            for _ in 0..8 {
                assert_eq!(h1::get(web, &format!("/{cluster}/good")).await.status, 200);
            }
            assert_eq!(h1::get(web, &format!("/{cluster}/bad")).await.status, 503);
            assert_eq!(proxy.stat(&stat("retry")).await, retries, "{cluster}");
        }
    }
}
