//! Filters that have nothing to do with a request: it passes them as if they were not there.

use outrigger_tests::config::{bootstrap, cluster};
use outrigger_tests::side_by_side::{Case, Chain, chain_of, get, post, same};
use outrigger_tests::{Proxy, Upstream, h1};

use super::INTENDED;

/// The filters of the benchmark `h1-filters`.
const TEN: &[(&str, &str, &str)] = &[
    ("f0", "cors.v3.Cors", ""),
    ("f1", "csrf.v3.CsrfPolicy", "filter_enabled: { default_value: { numerator: 100 } }"),
    ("f2", "fault.v3.HTTPFault", ""),
    ("f3", "rbac.v3.RBAC", ""),
    ("f4", "jwt_authn.v3.JwtAuthentication", ""),
    ("f5", "header_to_metadata.v3.Config", "request_rules: [{ header: x-absent, on_header_present: { key: k } }]"),
    ("f6", "local_ratelimit.v3.LocalRateLimit", "stat_prefix: idle"),
    ("f7", "grpc_web.v3.GrpcWeb", ""),
    ("f8", "grpc_http1_bridge.v3.Config", ""),
    ("f9", "bandwidth_limit.v3.BandwidthLimit", "stat_prefix: idle"),
];

const CHAINS: &[Chain] = &[chain_of("ten", TEN, ""), Chain { stats: "idle.", ..chain_of("none", &[], "") }];

const CASES: &[Case] = &[
    get("a plain request", "ten", "/", &[]),
    Case { method: "HEAD", ..get("HEAD", "ten", "/", &[]) },
    get("a large answer", "ten", "/", &[("x-reply", "bytes=300000 chunked trailers")]),
    get("an error", "ten", "/", &[("x-reply", "status=503")]),
    post(
        "not gRPC",
        "ten",
        "/",
        &[("content-type", "text/plain"), ("origin", "http://example.com"), ("host", "example.com")],
    ),
];

#[tokio::test]
async fn what_no_filter_is_for_passes_as_in_envoy() {
    let upstream = Upstream::start("one").await;
    let listeners: Vec<String> = CHAINS.iter().map(Chain::listener).collect();
    same(&bootstrap(&listeners, &[cluster("one", &[upstream.port()])]), CHAINS, CASES, INTENDED).await;
}

/// The same bytes leave, whichever way a request takes.
#[tokio::test]
async fn what_no_filter_is_for_passes_unchanged() {
    let upstream = Upstream::start("one").await;
    let listeners: Vec<String> = CHAINS.iter().map(Chain::listener).collect();
    let proxy = Proxy::start(&bootstrap(&listeners, &[cluster("one", &[upstream.port()])])).await;
    let mut answers = Vec::new();
    for chain in CHAINS {
        let mut client = h1::Client::connect(proxy.listener(chain.name).await).await;
        let headers = [("x-reply", "bytes=100000"), ("x-request-id", "6a0ac1ab-c8ee-4df2-9e54-301b7b8c84ef")];
        let response = client.request("GET", "/a?b=c", &headers, b"").await;
        let names: Vec<String> = response.headers.iter().map(|(name, _)| name.clone()).collect();
        answers.push((response.status, names, response.body.clone()));
    }
    assert_eq!(answers[0], answers[1]);
    let seen = upstream.seen();
    assert_eq!(seen[0].headers, seen[1].headers);
    assert_eq!(seen[0].target, seen[1].target);
}
