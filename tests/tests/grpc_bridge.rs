//! The gRPC bridge: the same calls by HTTP/1.1 for Envoy and for the proxy under test.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use outrigger_tests::config::{all_to, bootstrap, cluster, http2_cluster};
use outrigger_tests::side_by_side::{Case, Chain, Headers, Intended, chain_of, same};
use outrigger_tests::{Proxy, Upstream, config, h1};

const INTENDED: Intended = &[
    (
        "*",
        "header x-forwarded-for: ",
        "for a client on loopback Envoy names an address of the machine; we name the client",
    ),
    ("bare: an answer", "connection: close", "the body is read to its end, so the connection stays in step"),
    (
        "bare, by HTTP/2",
        "h2: upstream sees header content-type: ",
        "a bare message by HTTP/2 stays one: Envoy calls it gRPC without making it a frame",
    ),
    ("bare, by HTTP/2", "h1: ", "a report without its first bytes"),
];

const BRIDGE: &str = "grpc_http1_bridge.v3.Config";
const GRPC: (&str, &str) = ("content-type", "application/grpc");
const BARE: (&str, &str) = ("content-type", "application/x-protobuf");
const ANSWER: (&str, &str) = ("x-reply", "header=content-type:application/grpc bytes=8 chunked");
const MESSAGE: &[u8] = b"\0\0\0\0\x03abc";

const fn call(name: &'static str, listener: &'static str, target: &'static str, headers: Headers) -> Case {
    Case { name, listener, method: "POST", target, headers, body: MESSAGE, grpc: false }
}

const CASES: &[Case] = &[
    call("good", "plain", "/good", &[GRPC, ANSWER]),
    call("bad", "plain", "/bad", &[GRPC, ANSWER]),
    call("what the upstream sees", "plain", "/good?x=1", &[GRPC]),
    call(
        "only a head",
        "plain",
        "/other",
        &[GRPC, ("x-reply", "header=content-type:application/grpc header=grpc-status:5 empty")],
    ),
    call("no trailers", "plain", "/other", &[GRPC, ANSWER]),
    call("not gRPC", "plain", "/good?x=1", &[("content-type", "text/plain")]),
    call("bare, but not asked for", "plain", "/good?x=1", &[BARE]),
    call("an answer of the proxy", "plain", "/direct", &[GRPC]),
    call("bare and good", "upgrade", "/good", &[BARE, ANSWER]),
    call("bare and bad", "upgrade", "/bad", &[BARE, ANSWER]),
    call("bare, answered by somebody else", "upgrade", "/other", &[BARE, ("x-reply", "bytes=20 chunked")]),
    call("bare, by HTTP/2", "upgrade", "/other", &[BARE, ("x-reply", "chunked")]),
    call("a call: its query goes", "upgrade", "/good?x=1", &[GRPC]),
    call("not gRPC: its query stays", "upgrade", "/good?x=1", &[("content-type", "text/plain")]),
    call("bare: an answer of the proxy", "upgrade", "/direct", &[BARE]),
    call("bare: no trailers", "upgrade", "/other", &[BARE, ANSWER]),
];

const ROUTES: &str = "{ match: { path: /good }, route: { cluster: good } }, { match: { path: /bad }, route: { cluster: bad } }, \
     { match: { path: /direct }, direct_response: { status: 404, body: { inline_string: none } } }, ";

const CHAINS: &[Chain] = &[
    chain_of("plain", &[("b", BRIDGE, "")], ROUTES),
    chain_of("upgrade", &[("b", BRIDGE, "upgrade_protobuf_to_grpc: true, ignore_query_parameters: true")], ROUTES),
];

#[tokio::test]
async fn calls_are_bridged_as_by_envoy() {
    let upstream = Upstream::start("one").await;
    let (good, bad) = (Upstream::start("good").await, Upstream::start("bad").await);
    good.always_end_with("grpc-status", "0");
    bad.always_end_with("grpc-status", "14");
    bad.always_end_with("grpc-message", "not%20now");
    let listeners: Vec<String> = CHAINS.iter().map(Chain::listener).collect();
    let clusters = [
        cluster("one", &[upstream.port()]),
        http2_cluster("good", &[good.port()]),
        http2_cluster("bad", &[bad.port()]),
    ];
    same(&bootstrap(&listeners, &clusters), CHAINS, CASES, INTENDED).await;
}

#[tokio::test]
async fn what_cannot_be_collected_is_refused_and_broken_off_answers_are_errors() {
    let upstream = Upstream::start("one").await;
    let filter = format!(
        "{{ name: b, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.{BRIDGE} }} }}, "
    );
    let manager = config::http("web", &config::routes(&all_to("one")))
        .replace("http_filters: [", &format!("http_filters: [{filter}"));
    let listener = config::listener("web", &[config::chain(&manager, "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &[http2_cluster("one", &[upstream.port()])])).await;
    let address = proxy.listener("web").await;
    let mut client = h1::Client::connect(address).await;
    let long = [GRPC, ("x-reply", "header=content-type:application/grpc bytes=1100000 chunked")];
    let response = client.request("POST", "/", &long, MESSAGE).await;
    assert_eq!((response.status, response.header("grpc-status")), (200, Some("2")));
    assert_eq!(response.header("grpc-message"), Some("Internal Server Error"));
    let broken = [GRPC, ("x-reply", "header=content-type:application/grpc bytes=1000 half")];
    let response = client.request("POST", "/", &broken, MESSAGE).await;
    assert_eq!((response.status, response.header("grpc-status")), (200, Some("14")));
    let good = client.request("POST", "/", &[GRPC, ANSWER], MESSAGE).await;
    assert_eq!((good.status, good.body.len()), (200, 8));
}

/// What Envoy makes of these requests, too.
#[tokio::test]
async fn bare_messages_become_frames() {
    let upstream = Upstream::start("one").await;
    let chain = &CHAINS[1];
    let clusters = [
        http2_cluster("one", &[upstream.port()]),
        http2_cluster("good", &[upstream.port()]),
        http2_cluster("bad", &[upstream.port()]),
    ];
    for program in [outrigger_tests::proxy::program(), outrigger_tests::proxy::envoy()] {
        let settings = outrigger_tests::Settings { program, ..Default::default() };
        let proxy = Proxy::start_with(&bootstrap(&[chain.listener()], &clusters), settings).await;
        let mut client = h1::Client::connect(proxy.listener(chain.name).await).await;
        let before = upstream.seen().len();
        // Envoy keeps a length that is no longer true.
        let chunked = [BARE, ("x-reply", "chunked")];
        client.request("POST", "/good?x=1", &chunked, b"abc").await;
        client.request("POST", "/good?x=1", &chunked, b"").await;
        let seen = upstream.seen();
        for (seen, body) in seen[before..].iter().zip([MESSAGE, b""]) {
            assert_eq!((seen.target.as_str(), seen.body.as_slice()), ("/good", body));
            assert_eq!(seen.header("content-type"), Some("application/grpc"));
        }
        assert_eq!(seen.len(), before + 2);
    }
}
