//! Circuit breakers: limits hold exactly, over all workers together.

use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster_with, http, routes};
use outrigger_tests::{Proxy, Response, Settings, Upstream, h1, h2c, proxy, within};
use tokio::task::JoinSet;

/// Envoy lets each worker have a connection of its own beyond the limit, and its checks race.
fn workers() -> usize {
    if proxy::tests_envoy() { 1 } else { 4 }
}

async fn limited(thresholds: &str, more: &str) -> (Upstream, Proxy, std::net::SocketAddr) {
    let upstream = Upstream::start("echo").await;
    let breakers = format!(", circuit_breakers: {{ thresholds: [{{ {thresholds} }}] }}{more}");
    let clusters = [cluster_with("limited", &[upstream.port()], &breakers)];
    let log = config::access_log("access.log");
    let manager = http("web", &format!("{}{log}", routes(&all_to("limited"))));
    let settings = Settings { concurrency: workers(), ..Settings::default() };
    let listener = config::listener("web", &[chain(&manager, "")], "");
    let proxy = Proxy::start_with(&bootstrap(&[listener], &clusters), settings).await;
    let web = proxy.listener("web").await;
    (upstream, proxy, web)
}

/// `count` requests at once, each on a connection of its own so that all workers get some.
fn burst(address: std::net::SocketAddr, count: usize) -> JoinSet<Response> {
    let mut requests = JoinSet::new();
    for number in 0..count {
        requests.spawn(gated(address, number));
    }
    requests
}

/// One request that is answered when the gate opens, by either HTTP version.
async fn gated(address: std::net::SocketAddr, number: usize) -> Response {
    let headers = [("x-reply", "gate")];
    if number.is_multiple_of(2) {
        h1::Client::connect(address).await.request("GET", "/", &headers, b"").await
    } else {
        h2c::Client::connect(address).await.request("GET", "/", &headers, b"").await
    }
}

fn overflowed(response: &Response) -> bool {
    response.status == 503 && response.header("x-envoy-overloaded") == Some("true")
}

#[tokio::test]
async fn max_requests_holds_exactly_across_workers() {
    let (upstream, proxy, web) = limited("max_requests: 10", config::HTTP2).await;
    for _round in 0..3 {
        let mut requests = burst(web, 40);
        // Those beyond the limit are answered at once.
        for _ in 0..30 {
            let response = requests.join_next().await.unwrap().unwrap();
            assert!(overflowed(&response), "{response:?}");
            assert!(response.text().contains("overflow"), "{}", response.text());
        }
        upstream.wait("exactly the limit is in flight", |counts| counts.waiting == 10).await;
        proxy.stat_is("cluster.limited.circuit_breakers.default.rq_open", 1).await;
        upstream.open_gate();
        while let Some(response) = requests.join_next().await {
            assert_eq!(response.unwrap().status, 200);
        }
        upstream.wait("all are answered", |counts| counts.active == 0).await;
        upstream.close_gate();
        proxy.wait_stat("cluster.limited.circuit_breakers.default.rq_open", |open| open == 0).await;
    }
    assert_eq!(upstream.counts().peak, 10);
    proxy.stat_is("cluster.limited.upstream_rq_active_overflow", 90).await;
    let lines = proxy.lines("access.log", 120).await;
    let refused: Vec<_> = lines.iter().filter(|line| line.starts_with("503")).collect();
    assert_eq!(refused.len(), 90);
    assert!(
        refused.iter().all(|line| line.starts_with("503 UO upstream_reset_before_response_started{overflow}")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn max_connections_and_max_pending_requests_hold_exactly_across_workers() {
    let (upstream, proxy, web) = limited("max_connections: 5, max_pending_requests: 3", "").await;
    // One by one: a request that waits for its connection to open is a pending one as well.
    let mut accepted = JoinSet::new();
    for number in 1..=5 {
        accepted.spawn(gated(web, number));
        upstream.wait("one more is in flight", |counts| counts.waiting == number).await;
    }
    for number in 1..=3 {
        accepted.spawn(gated(web, number));
        proxy.wait_stat("cluster.limited.upstream_rq_pending_active", |pending| pending == number as u64).await;
    }
    let mut refused = burst(web, 12);
    while let Some(response) = refused.join_next().await {
        let response = response.unwrap();
        assert!(overflowed(&response), "{response:?}");
    }
    let counts = upstream.counts();
    assert_eq!(counts.waiting, 5);
    assert_eq!(counts.connections, 5);
    proxy.stat_is("cluster.limited.upstream_rq_pending_active", 3).await;
    upstream.open_gate();
    while let Some(response) = accepted.join_next().await {
        assert_eq!(response.unwrap().status, 200, "those that waited got their turn");
    }
    assert_eq!(upstream.counts().peak, 5);
}

#[tokio::test]
async fn workers_give_idle_connections_up_to_those_that_can_have_none() {
    let (upstream, proxy, web) = limited("max_connections: 2, max_pending_requests: 100", "").await;
    // Each from a connection of its own, so that each may come to another worker than the idle connections are on.
    for _ in 0..20 {
        let response = h1::Client::connect(web).await.request("GET", "/", &[], b"").await;
        assert_eq!(response.status, 200);
        assert!(proxy.stat("cluster.limited.upstream_cx_active").await <= 2);
    }
    let mut requests = burst(web, 24);
    upstream.wait("as many as may are in flight", |counts| counts.waiting == 2).await;
    proxy.wait_stat("cluster.limited.upstream_rq_pending_active", |pending| pending == 22).await;
    upstream.open_gate();
    while let Some(response) = requests.join_next().await {
        assert_eq!(response.unwrap().status, 200, "each worker gets its turn");
    }
    assert_eq!(upstream.counts().peak, 2);
    proxy.stat_is("cluster.limited.upstream_rq_pending_active", 0).await;
}

/// A slow endpoint whose requests hold all connections, and for which more wait, does not keep the other one without any.
#[tokio::test]
async fn an_endpoint_without_a_connection_gets_the_next_one() {
    let upstreams = [Upstream::start("one").await, Upstream::start("two").await];
    let more = ", lb_policy: MAGLEV, circuit_breakers: { thresholds: [{ max_connections: 3 }] }, \
                typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \
                '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
                common_http_protocol_options: { max_requests_per_connection: 1 }, \
                explicit_http_config: { http_protocol_options: {} } } }";
    let clusters = [cluster_with("limited", &upstreams.each_ref().map(Upstream::port), more)];
    let by_key =
        "{ match: { prefix: / }, route: { cluster: limited, hash_policy: [{ header: { header_name: x-key } }] } }";
    let listener = config::listener("web", &[chain(&http("web", &routes(by_key)), "")], "");
    let settings = Settings { concurrency: 1, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[listener], &clusters), settings).await;
    let web = proxy.listener("web").await;
    let mut keys = ["", ""];
    for key in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"] {
        let response = h1::Client::connect(web).await.request("GET", "/", &[("x-key", key)], b"").await;
        keys[usize::from(response.json()["upstream"] == "two")] = key;
    }
    let [slow, other] = keys;
    assert!(!slow.is_empty() && !other.is_empty(), "keys for both");
    let ask = move |key: &'static str, reply: &'static str| async move {
        let headers = [("x-key", key), ("x-reply", reply)];
        h1::Client::connect(web).await.request("GET", "/", &headers, b"").await
    };
    let mut at_slow: Vec<_> = (0..3).map(|_| tokio::spawn(ask(slow, "gate"))).collect();
    upstreams[0].wait("all connections are in use", |counts| counts.waiting == 3).await;
    at_slow.extend((0..3).map(|_| tokio::spawn(ask(slow, "gate"))));
    proxy.wait_stat("cluster.limited.upstream_rq_pending_active", |pending| pending == 3).await;
    let at_other = tokio::spawn(ask(other, "bytes=1"));
    if !proxy::tests_envoy() {
        // Envoy gives it a fourth one.
        proxy.wait_stat("cluster.limited.upstream_rq_pending_active", |pending| pending == 4).await;
        assert_eq!(proxy.stat("cluster.limited.upstream_cx_active").await, 3);
        at_slow.remove(0).abort();
    }
    assert_eq!(within("the other endpoint's answer", at_other).await.unwrap().status, 200);
    upstreams[0].open_gate();
    for request in at_slow {
        assert_eq!(within("an answer of the slow one", request).await.unwrap().status, 200);
    }
    assert_eq!(upstreams[0].counts().peak, 3);
}

/// As in Envoy: a request that waits for a connection is not one in flight yet.
#[tokio::test]
async fn requests_that_wait_for_a_connection_do_not_count_as_requests() {
    let (upstream, proxy, web) = limited("max_connections: 1, max_requests: 2, max_pending_requests: 10", "").await;
    let mut requests = burst(web, 8);
    upstream.wait("one is in flight", |counts| counts.waiting == 1).await;
    proxy.wait_stat("cluster.limited.upstream_rq_pending_active", |pending| pending == 7).await;
    upstream.open_gate();
    while let Some(response) = requests.join_next().await {
        assert_eq!(response.unwrap().status, 200);
    }
    assert_eq!(upstream.counts().peak, 1);
    proxy.stat_is("cluster.limited.upstream_rq_active_overflow", 0).await;
}
