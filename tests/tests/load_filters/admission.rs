//! Admission control.

use outrigger_tests::config::{bootstrap, cluster};
use outrigger_tests::side_by_side::{Case, Chain, Intended, chain_of, get, post, same};
use outrigger_tests::{Proxy, Upstream, h1};

use super::{ADDRESS, listener_with};

const CONTROL: &str = "admission_control.v3.AdmissionControl";
const GRPC: (&str, &str) = ("content-type", "application/grpc");

const INTENDED: Intended = &[ADDRESS];

const CASES: &[Case] = &[
    get("a success", "count", "/", &[]),
    get("not found is a success", "count", "/", &[("x-reply", "status=404")]),
    get("a failure", "count", "/", &[("x-reply", "status=500")]),
    get("no route is a success", "count", "/none", &[]),
    get("broken off", "count", "/", &[("x-reply", "reset")]),
    Case {
        grpc: true,
        ..post(
            "gRPC: only a head",
            "count",
            "/",
            &[GRPC, ("x-reply", "empty header=content-type:application/grpc header=grpc-status:4")],
        )
    },
    Case {
        grpc: true,
        ..post(
            "gRPC: good trailers",
            "count",
            "/good",
            &[GRPC, ("x-reply", "bytes=5 chunked header=content-type:application/grpc")],
        )
    },
    Case {
        grpc: true,
        ..post(
            "gRPC: bad trailers",
            "count",
            "/bad",
            &[GRPC, ("x-reply", "bytes=5 chunked header=content-type:application/grpc")],
        )
    },
    get("chosen statuses: 200", "chosen", "/", &[]),
    get("chosen statuses: 404", "chosen", "/", &[("x-reply", "status=404")]),
    get("chosen statuses: 503", "chosen", "/", &[("x-reply", "status=503")]),
    get("off", "idle", "/", &[("x-reply", "status=500")]),
    get("refusing: a failure", "refusing", "/", &[("x-reply", "status=500")]),
];

/// Nothing is refused, so that counts are certain.
const COUNT: &str = "success_criteria: {}, max_rejection_probability: { default_value: { value: 0 } }";

const CHAINS: &[Chain] = &[
    Chain {
        stats: "http.count.admission_control.",
        ..chain_of(
            "count",
            &[("ac", CONTROL, COUNT)],
            "{ match: { path: /none }, direct_response: { status: 404 } }, \
             { match: { path: /good }, route: { cluster: good } }, { match: { path: /bad }, route: { cluster: bad } }, ",
        )
    },
    Chain {
        stats: "http.chosen.admission_control.",
        ..chain_of(
            "chosen",
            &[(
                "ac",
                CONTROL,
                "success_criteria: { http_criteria: { http_success_status: [{ start: 404, end: 405 }, \
                 { start: 500, end: 600 }] } }, max_rejection_probability: { default_value: { value: 0 } }",
            )],
            "",
        )
    },
    Chain {
        stats: "http.idle.admission_control.",
        ..chain_of(
            "idle",
            &[("ac", CONTROL, "success_criteria: {}, enabled: { default_value: true, runtime_key: my.control }")],
            "",
        )
    },
    Chain {
        stats: "http.refusing.admission_control.rq_s",
        ..chain_of(
            "refusing",
            &[("ac", CONTROL, "success_criteria: {}, rps_threshold: { default_value: 1000000, runtime_key: a }")],
            "",
        )
    },
];

const RUNTIME: &str = "layered_runtime: { layers: [{ name: static, static_layer: { my.control: false } }] }\n";

#[tokio::test]
async fn answers_count_as_in_envoy() {
    let upstream = Upstream::start("one").await;
    let (good, bad) = (Upstream::start("good").await, Upstream::start("bad").await);
    good.always_end_with("grpc-status", "0");
    bad.always_end_with("grpc-status", "14");
    let listeners: Vec<String> = CHAINS.iter().map(Chain::listener).collect();
    let clusters =
        [("one", &upstream), ("good", &good), ("bad", &bad)].map(|(name, upstream)| cluster(name, &[upstream.port()]));
    same(&(bootstrap(&listeners, &clusters) + RUNTIME), CHAINS, CASES, INTENDED).await;
}

#[tokio::test]
async fn requests_are_refused_while_too_many_fail_and_let_through_when_they_no_longer_do() {
    let upstream = Upstream::start("one").await;
    let listener = listener_with(
        CONTROL,
        "success_criteria: {}, sampling_window: 1s, aggression: { default_value: 100, runtime_key: a }, \
         max_rejection_probability: { default_value: { value: 100 }, runtime_key: m }",
    );
    let proxy = Proxy::start(&bootstrap(&[listener], &[cluster("one", &[upstream.port()])])).await;
    let address = proxy.listener("web").await;
    let mut client = h1::Client::connect(address).await;
    let refused = outrigger_tests::eventually("a refusal", async || {
        match client.request("GET", "/", &[("x-reply", "status=500")], b"").await {
            response if response.status == 503 => Ok(response),
            response => Err(response.status.to_string()),
        }
    })
    .await;
    assert_eq!(refused.body.len(), 0);
    proxy.wait_stat("http.web.admission_control.rq_rejected", |count| count > 0).await;
    // Nothing that was refused reached the upstream.
    let reached = upstream.counts().requests;
    assert!(reached > 0);
    proxy.stat_is("http.web.admission_control.rq_failure", reached as u64).await;
    outrigger_tests::eventually("a request that is let through", async || {
        match client.request("GET", "/", &[], b"").await.status {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    proxy.wait_stat("http.web.admission_control.rq_success", |count| count > 0).await;
}
