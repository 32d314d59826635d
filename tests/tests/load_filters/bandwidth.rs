//! Bandwidth limits.

use std::time::{Duration, Instant};

use outrigger_tests::config::{bootstrap, cluster};
use outrigger_tests::side_by_side::{Case, Chain, chain_of, get, post, same};
use outrigger_tests::{Proxy, Settings, Upstream, h1, h2c};

use super::{INTENDED, listener_with};

const LIMIT: &str = "bandwidth_limit.v3.BandwidthLimit";

const CASES: &[Case] = &[
    post("both ways, below the limit", "both", "/", &[]),
    get("no body comes", "both", "/", &[("x-reply", "empty")]),
    Case { method: "HEAD", ..get("HEAD", "both", "/", &[]) },
    post("of the route: responses alone", "both", "/responses", &[]),
    post("disabled by the route", "both", "/off", &[]),
    post("disabled by runtime", "runtime", "/", &[]),
    post("without a mode", "none", "/", &[]),
    get("trailers of the upstream stay", "trailers", "/", &[("x-reply", "bytes=100 chunked trailers")]),
    post("an answer of the proxy", "both", "/direct", &[]),
];

const CHAINS: &[Chain] = &[
    Chain {
        stats: "p.http_bandwidth_limit.",
        ..chain_of(
            "both",
            &[("bw", LIMIT, "stat_prefix: p, enable_mode: REQUEST_AND_RESPONSE, limit_kbps: 100000")],
            "{ match: { path: /responses }, route: { cluster: one }, typed_per_filter_config: { bw: { \
             '@type': $T/bandwidth_limit.v3.BandwidthLimit, stat_prefix: r, enable_mode: RESPONSE, limit_kbps: 100000 } } }, \
             { match: { path: /off }, route: { cluster: one }, typed_per_filter_config: { bw: { \
             '@type': $T/bandwidth_limit.v3.BandwidthLimit, stat_prefix: r, limit_kbps: 1 } } }, \
             { match: { path: /direct }, direct_response: { status: 200, body: { inline_string: direct } } }, ",
        )
    },
    Chain {
        stats: "r.http_bandwidth_limit.",
        ..chain_of(
            "runtime",
            &[(
                "bw",
                LIMIT,
                "stat_prefix: q, enable_mode: REQUEST_AND_RESPONSE, limit_kbps: 1, \
                 runtime_enabled: { default_value: true, runtime_key: my.limit }",
            )],
            "",
        )
    },
    Chain {
        stats: "q.http_bandwidth_limit.",
        ..chain_of("none", &[("bw", LIMIT, "stat_prefix: m, limit_kbps: 1")], "")
    },
    chain_of(
        "trailers",
        &[("bw", LIMIT, "stat_prefix: t, enable_mode: RESPONSE, limit_kbps: 100000, enable_response_trailers: true")],
        "",
    ),
];

const RUNTIME: &str = "layered_runtime: { layers: [{ name: static, static_layer: { my.limit: false } }] }\n";

#[tokio::test]
async fn bodies_are_limited_as_in_envoy() {
    let upstream = Upstream::start("one").await;
    let listeners: Vec<String> = CHAINS.iter().map(Chain::listener).collect();
    let bootstrap = bootstrap(&listeners, &[cluster("one", &[upstream.port()])]) + RUNTIME;
    same(&bootstrap, CHAINS, CASES, INTENDED).await;
}

/// All that came went on, and some of it had to wait.
async fn held_back(proxy: &Proxy, direction: &str, bytes: u64) {
    let stat = |name: &str| format!("p.http_bandwidth_limit.{direction}_{name}");
    proxy.wait_stat(&stat("pending"), |pending| pending == 0).await;
    proxy.stat_is(&stat("incoming_total_size"), bytes).await;
    proxy.stat_is(&stat("allowed_total_size"), bytes).await;
    proxy.wait_stat(&stat("enforced"), |count| count > 0).await;
}

#[tokio::test]
async fn a_body_takes_the_time_of_its_bytes_and_trailers_tell() {
    let upstream = Upstream::start("one").await;
    let listener = listener_with(
        LIMIT,
        "stat_prefix: p, enable_mode: REQUEST_AND_RESPONSE, limit_kbps: 64, fill_interval: 0.02s, \
         enable_response_trailers: true, response_trailer_prefix: slow",
    );
    let proxy = Proxy::start(&bootstrap(&[listener], &[cluster("one", &[upstream.port()])])).await;
    let client = h2c::Client::connect(proxy.listener("web").await).await;
    let body = vec![b'x'; 80 * 1024];
    let begin = Instant::now();
    let response = client.request("POST", "/", &[("x-reply", "bytes=70000")], &body).await;
    // What was saved up is a second's bytes at most; the rest comes at the rate.
    let least = Duration::from_millis((80 * 1024 + 70_000 - 64 * 1024) * 1000 / (64 * 1024));
    // Clocks round.
    assert!(begin.elapsed() >= least - Duration::from_millis(50), "{:?}", begin.elapsed());
    assert_eq!((response.status, response.body.len()), (200, 70_000));
    for name in ["request-delay", "request-filter-delay", "response-delay", "response-filter-delay"] {
        let told = response.trailer(&format!("slow-bandwidth-{name}-ms")).and_then(|time| time.parse::<u64>().ok());
        assert!(told > Some(0), "{name}: {told:?}");
    }
    held_back(&proxy, "request", body.len() as u64).await;
    held_back(&proxy, "response", 70_000).await;
}

#[tokio::test]
async fn all_workers_take_from_the_same_bytes() {
    let upstream = Upstream::start("one").await;
    let listener = listener_with(LIMIT, "stat_prefix: p, enable_mode: RESPONSE, limit_kbps: 64");
    let settings = Settings { concurrency: 2, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[listener], &[cluster("one", &[upstream.port()])]), settings).await;
    let address = proxy.listener("web").await;
    let begin = Instant::now();
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..8 {
        all.spawn(async move {
            let mut client = h1::Client::connect(address).await;
            client.request("GET", "/", &[("x-reply", "bytes=16384")], b"").await.body.len()
        });
    }
    let received: usize = all.join_all().await.into_iter().sum();
    assert_eq!(received, 8 * 16384);
    // Twice what a second gives, of which one may have been saved up.
    assert!(begin.elapsed() >= Duration::from_millis(950), "{:?}", begin.elapsed());
    held_back(&proxy, "response", 8 * 16384).await;
}

#[tokio::test]
async fn a_collected_body_is_held_back_once_and_a_broken_one_is_forgotten() {
    let upstream = Upstream::start("one").await;
    let listener = listener_with(LIMIT, "stat_prefix: p, enable_mode: REQUEST, limit_kbps: 64").replace(
        "{ name: envoy.filters.http.router",
        "{ name: b, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer, \
             max_request_bytes: 200000 } }, { name: envoy.filters.http.router",
    );
    let proxy = Proxy::start(&bootstrap(&[listener], &[cluster("one", &[upstream.port()])])).await;
    let address = proxy.listener("web").await;
    let body = vec![b'x'; 70 * 1024];
    let response = h1::Client::connect(address).await.request("POST", "/", &[], &body).await;
    assert_eq!(response.status, 200);
    assert_eq!(response.json()["body_bytes"], body.len());
    held_back(&proxy, "request", body.len() as u64).await;

    let mut client = h1::Client::connect(address).await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nsome").await;
    proxy.wait_stat("p.http_bandwidth_limit.request_pending", |pending| pending == 1).await;
    drop(client);
    proxy.wait_stat("p.http_bandwidth_limit.request_pending", |pending| pending == 0).await;
}
