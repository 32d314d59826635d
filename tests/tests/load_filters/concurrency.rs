//! Adaptive concurrency.

use outrigger_tests::config::{self, bootstrap, cluster};
use outrigger_tests::side_by_side::{Case, Chain, Intended, chain_of, get, same};
use outrigger_tests::{Proxy, Settings, Upstream, h1};

use super::{ADDRESS, listener_with};

const CONCURRENCY: &str = "adaptive_concurrency.v3.AdaptiveConcurrency";
const STATS: &str = "http.web.adaptive_concurrency.gradient_controller";

const INTENDED: Intended = &[ADDRESS, ("*", "_rtt_msecs", "time is never the same")];

macro_rules! gradient {
    ($min:literal, $limit:literal) => {
        concat!(
            "gradient_controller_config: { concurrency_limit_params: { ",
            $limit,
            " }, min_rtt_calc_params: { ",
            $min,
            " } }"
        )
    };
}

/// Nothing changes once the first latency is known.
const STILL: &str = gradient!("interval: 1000s, request_count: 4", "concurrency_update_interval: 1000s");

const CASES: &[Case] = &[
    get("measured", "still", "/", &[]),
    get("an error is measured, too", "still", "/", &[("x-reply", "status=500")]),
    get("the last that is measured", "still", "/", &[]),
    get("fixed", "fixed", "/", &[]),
    get("off", "idle", "/", &[]),
];

const CHAINS: &[Chain] = &[
    Chain { stats: "http.still.adaptive_concurrency.", ..chain_of("still", &[("a", CONCURRENCY, STILL)], "") },
    Chain {
        stats: "http.fixed.adaptive_concurrency.",
        ..chain_of(
            "fixed",
            &[(
                "a",
                CONCURRENCY,
                gradient!("fixed_value: 0.5s, min_concurrency: 9", "concurrency_update_interval: 1000s"),
            )],
            "",
        )
    },
    Chain {
        stats: "http.idle.adaptive_concurrency.",
        ..chain_of(
            "idle",
            &[(
                "a",
                CONCURRENCY,
                concat!(
                    "enabled: { default_value: true, runtime_key: my.concurrency }, ",
                    gradient!("interval: 1000s", "concurrency_update_interval: 1000s")
                ),
            )],
            "",
        )
    },
];

const RUNTIME: &str = "layered_runtime: { layers: [{ name: static, static_layer: { my.concurrency: false } }] }\n";

#[tokio::test]
async fn requests_are_measured_as_in_envoy() {
    let upstream = Upstream::start("one").await;
    let listeners: Vec<String> = CHAINS.iter().map(Chain::listener).collect();
    let bootstrap = bootstrap(&listeners, &[cluster("one", &[upstream.port()])]) + RUNTIME;
    same(&bootstrap, CHAINS, CASES, INTENDED).await;
}

/// What comes above the limit is answered at once, in the same words as Envoy's, however many workers there are.
#[tokio::test]
async fn requests_above_the_limit_are_refused() {
    let log = config::access_log_of("web.log", "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%");
    let mut seen = Vec::new();
    for program in [outrigger_tests::proxy::program(), outrigger_tests::proxy::envoy()] {
        let upstream = Upstream::start("one").await;
        let fields = format!(
            "{}, concurrency_limit_exceeded_status: {{ code: TooManyRequests }}",
            gradient!("interval: 1000s, min_concurrency: 2", "concurrency_update_interval: 1000s")
        );
        let listener = listener_with(CONCURRENCY, &fields).replace(", route_config:", &format!("{log}, route_config:"));
        let settings = Settings { program, concurrency: 2, ..Settings::default() };
        let proxy = Proxy::start_with(&bootstrap(&[listener], &[cluster("one", &[upstream.port()])]), settings).await;
        let address = proxy.listener("web").await;
        let mut waiting = Vec::new();
        for count in 1..=2 {
            let mut client = h1::Client::connect(address).await;
            client.send("GET / HTTP/1.1\r\nhost: a\r\nx-reply: gate\r\n\r\n").await;
            upstream.wait("a request", |counts| counts.waiting == count).await;
            waiting.push(client);
        }
        for _ in 0..4 {
            let refused = h1::Client::connect(address).await.request("GET", "/", &[], b"").await;
            assert_eq!((refused.status, refused.text().as_str()), (429, "reached concurrency limit"));
        }
        proxy.stat_is(&format!("{STATS}.rq_blocked"), 4).await;
        seen.push(proxy.lines("web.log", 4).await);
        // One that is given up makes room, and one that is answered.
        drop(waiting.pop());
        upstream.wait("a request that is gone", |counts| counts.abandoned == 1).await;
        upstream.open_gate();
        assert_eq!(waiting[0].response("GET").await.status, 200);
        outrigger_tests::eventually("room", async || {
            match h1::Client::connect(address).await.request("GET", "/", &[], b"").await.status {
                200 => Ok(()),
                status => Err(status.to_string()),
            }
        })
        .await;
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test]
async fn the_limit_grows_with_traffic_and_is_seen_without_it() {
    let upstream = Upstream::start("one").await;
    let fields = gradient!(
        "interval: 1000s, request_count: 5, min_concurrency: 4, buffer: { value: 100 }",
        "concurrency_update_interval: 0.05s, max_concurrency_limit: 50"
    );
    let listener = listener_with(CONCURRENCY, fields);
    let settings = Settings { concurrency: 2, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[listener], &[cluster("one", &[upstream.port()])]), settings).await;
    let address = proxy.listener("web").await;
    let stat = |name: &str| format!("{STATS}.{name}");
    for request in 0..6 {
        // The latency is the upstream's, so that it is the same for all.
        let response = h1::Client::connect(address).await.request("GET", "/", &[("x-reply", "delay=30")], b"").await;
        assert_eq!(response.status, 200);
        if request == 0 {
            proxy.stat_is(&stat("min_rtt_calculation_active"), 1).await;
            proxy.stat_is(&stat("concurrency_limit"), 4).await;
        }
    }
    proxy.wait_stat(&stat("min_rtt_calculation_active"), |active| active == 0).await;
    proxy.wait_stat(&stat("min_rtt_msecs"), |seen| seen >= 29).await;
    // Nobody sends anything, and yet the last request moves the limit once its time is over.
    proxy.wait_stat(&stat("sample_rtt_msecs"), |latency| latency >= 29).await;
    proxy.wait_stat(&stat("gradient"), |seen| seen >= 500).await;
}
