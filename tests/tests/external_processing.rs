//! A service that processes requests and responses: the same filters, service and requests for Envoy and for the proxy
//! under test, what becomes of them, and what the service is told.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::fmt::Write as _;
use std::path::PathBuf;

use outrigger_tests::config::{bootstrap, cluster, http2_cluster};
use outrigger_tests::reply::sum;
use outrigger_tests::side_by_side::{Case, Chain, Intended, Side, chain_of, compare, compare_stats, get, post};
use outrigger_tests::{ProcessingService, Proxy, Upstream, h1, proxy};

const PROC: &str = "ext_proc.v3.ExternalProcessor";

const INTENDED: Intended = &[
    (
        "*",
        "header x-forwarded-for: ",
        "for a client on loopback Envoy names an address of the machine; we name the client",
    ),
    ("heads: immediate", "logged", "details that are empty are told as none"),
    ("streamed: immediate", "logged", "likewise"),
    ("buffered: immediate", "logged", "likewise"),
    ("duplex: immediate", "logged", "likewise"),
    ("dead: ", "logged", "we say in our own words why there is no connection"),
    ("heads: mode", "upstream sees header ", "a body that may change has no known length"),
    ("heads: mode of the response", "header content-length", "a body that is known as a whole has a known length"),
    ("heads: mode of the response", "header transfer-encoding", "likewise"),
    ("heads: replaced", "upstream sees header ", "a body that is known as a whole has a known length"),
    ("buffered: ", "header content-length", "likewise"),
    ("buffered: ", "header transfer-encoding", "likewise"),
    ("lengths: ", "header content-length", "likewise"),
    ("lengths: ", "header transfer-encoding", "likewise"),
    ("partial: ", "header content-length", "likewise"),
    ("partial: ", "header transfer-encoding", "likewise"),
    ("bodies: ", "header content-length", "likewise"),
    ("bodies: ", "header transfer-encoding", "likewise"),
    ("duplex: closed", "", "Envoy lets the request go on without the body that the service has kept; it is refused"),
    ("http.duplex.", "immediate_responses_sent", "likewise"),
    ("http.duplex.", "stream_msgs_", "a body has the pieces that it comes in, and its end goes with the last"),
    ("http.early.", "stream_msgs_", "likewise"),
    ("http.observed.", "stream_msgs_", "likewise"),
    ("http.streamed.", "stream_msgs_", "likewise"),
];

macro_rules! processing {
    ($name:literal, $more:literal) => {
        processing!($name, $more, "")
    };
    ($name:literal, $more:literal, $routes:literal) => {
        Chain {
            log: " %DYNAMIC_METADATA(ns:k)%",
            stats: concat!("http.", $name, ".ext_proc."),
            ..chain_of(
                $name,
                &[(
                    "proc",
                    PROC,
                    concat!("grpc_service: { envoy_grpc: { cluster_name: asked } }, message_timeout: ", $more),
                )],
                $routes,
            )
        }
    };
}

const CHAINS: &[Chain] = &[
    processing!(
        "heads",
        "5s, allow_mode_override: true, max_message_timeout: 9s, \
         metadata_options: { receiving_namespaces: { untyped: [ns] } }",
        "{ match: { path: /off }, route: { cluster: one }, typed_per_filter_config: { proc: { \
           '@type': $T/ext_proc.v3.ExtProcPerRoute, disabled: true } } }, \
         { match: { path: /skip }, route: { cluster: one }, typed_per_filter_config: { proc: { \
           '@type': $T/ext_proc.v3.ExtProcPerRoute, overrides: { processing_mode: { response_header_mode: SKIP }, \
           grpc_initial_metadata: [{ key: x-stream, value: told }] } } } }, \
         { match: { path: /direct }, direct_response: { status: 202, body: { inline_string: direct } } }, \
         { match: { prefix: /, headers: [{ name: x-to, string_match: { exact: two } }] }, route: { cluster: two } }, "
    ),
    processing!(
        "streamed",
        "5s, processing_mode: { request_body_mode: STREAMED, response_body_mode: STREAMED, \
        request_trailer_mode: SEND, response_trailer_mode: SEND }"
    ),
    processing!(
        "buffered",
        "5s, processing_mode: { request_body_mode: BUFFERED, response_body_mode: BUFFERED, \
        request_trailer_mode: SEND, response_trailer_mode: SEND }"
    ),
    Chain {
        stats: "",
        ..processing!(
            "lengths",
            "5s, processing_mode: { request_body_mode: BUFFERED, \
        response_body_mode: BUFFERED }"
        )
    },
    processing!(
        "partial",
        "5s, processing_mode: { request_body_mode: BUFFERED_PARTIAL, \
        response_body_mode: BUFFERED_PARTIAL }"
    ),
    processing!(
        "duplex",
        "5s, processing_mode: { request_body_mode: FULL_DUPLEX_STREAMED, \
        response_body_mode: FULL_DUPLEX_STREAMED, request_trailer_mode: SEND, response_trailer_mode: SEND }"
    ),
    processing!(
        "early",
        "5s, processing_mode: { request_body_mode: STREAMED }, \
        send_body_without_waiting_for_header_response: true"
    ),
    processing!(
        "bodies",
        "5s, processing_mode: { request_header_mode: SKIP, response_header_mode: SKIP, \
        response_body_mode: BUFFERED }"
    ),
    processing!("trailers", "5s, processing_mode: { response_header_mode: SEND, response_trailer_mode: SEND }"),
    processing!("allow", "5s, failure_mode_allow: true, disable_immediate_response: true"),
    processing!("quick", "3s"),
    processing!("impatient", "0.1s"),
    processing!("quick-allow", "0.1s, failure_mode_allow: true"),
    processing!("status", "5s, status_on_error: { code: 502 }"),
    processing!(
        "chosen",
        "5s, forward_rules: { allowed_headers: { patterns: [{ exact: x-proc }, { prefix: x-a }] }, \
        disallowed_headers: { patterns: [{ exact: x-ab }] } }, request_attributes: [request.path, request.method, \
        request.host, request.scheme, request.url_path, request.query, request.protocol, source.address, \
        connection.mtls, xds.cluster_name], response_attributes: [response.code]"
    ),
    processing!("rules", "5s, mutation_rules: { disallow_expression: { regex: x-no.* }, disallow_is_error: true }"),
    processing!(
        "retain",
        "5s, route_cache_action: RETAIN",
        "{ match: { prefix: /, headers: [{ name: x-to, string_match: { exact: two } }] }, route: { cluster: two } }, "
    ),
    processing!(
        "clear",
        "5s, route_cache_action: CLEAR",
        "{ match: { prefix: /, headers: [{ name: x-to, string_match: { exact: two } }] }, route: { cluster: two } }, "
    ),
    processing!("modes", "5s, allow_mode_override: true, allowed_override_modes: [{ response_header_mode: SKIP }]"),
    processing!(
        "observed",
        "5s, observability_mode: true, processing_mode: { request_body_mode: STREAMED, \
        response_body_mode: STREAMED }"
    ),
    Chain {
        stats: "http.dead.ext_proc.",
        ..chain_of("dead", &[("proc", PROC, "grpc_service: { envoy_grpc: { cluster_name: dead } }")], "")
    },
];

const fn echo(name: &'static str, listener: &'static str, headers: &'static [(&'static str, &'static str)]) -> Case {
    post(name, listener, "/", headers)
}

const CASES: &[Case] = &[
    get("heads: consent", "heads", "/p?a=1", &[("x-a", "1"), ("x-a", "2"), ("cookie", "c=1")]),
    echo("heads: a body is not told", "heads", &[]),
    get("heads: off", "heads", "/off", &[("x-proc", "qh.immediate=403")]),
    get("heads: skip", "heads", "/skip", &[]),
    get("heads: direct", "heads", "/direct", &[("x-proc", "rh.set=x-r:1")]),
    get(
        "heads: set",
        "heads",
        "/",
        &[("x-proc", "qh.set=x-a:2 qh.plain=x-b:3 qh.plain=x-c:4 qh.append=x-c:5"), ("x-a", "1"), ("x-c", "1")],
    ),
    get(
        "heads: by action",
        "heads",
        "/",
        &[("x-proc", "qh.add=x-a:2 qh.add=x-b:3 qh.overwrite=x-c:4 qh.overwrite=x-d:5"), ("x-a", "1"), ("x-c", "1")],
    ),
    get(
        "heads: removed",
        "heads",
        "/",
        &[("x-proc", "qh.remove=x-a qh.remove=host qh.remove=%3apath qh.remove=x-none"), ("x-a", "1")],
    ),
    get("heads: path", "heads", "/a", &[("x-proc", "qh.set=%3apath:/b?c=d")]),
    get(
        "heads: routing",
        "heads",
        "/a",
        &[("x-proc", "qh.set=%3amethod:PUT qh.set=host:b.example qh.set=%3ascheme:https")],
    ),
    get("heads: envoy's own", "heads", "/a", &[("x-proc", "qh.set=x-envoy-a:1 qh.remove=x-envoy-b")]),
    get("heads: bad name", "heads", "/a", &[("x-proc", "qh.set=x+a:1")]),
    get("heads: bad value", "heads", "/a", &[("x-proc", "qh.set=x-a:1%0ab")]),
    get("heads: bad removal", "heads", "/a", &[("x-proc", "qh.remove=x+a")]),
    get("heads: rerouted", "heads", "/", &[("x-proc", "qh.set=x-to:two qh.reroute")]),
    get("heads: not rerouted", "heads", "/", &[("x-proc", "qh.set=x-to:two")]),
    get("heads: rerouted in vain", "heads", "/", &[("x-proc", "qh.reroute")]),
    get(
        "heads: response",
        "heads",
        "/",
        &[("x-proc", "rh.set=x-r:1 rh.remove=x-s rh.set=server:me"), ("x-reply", "header=x-s:0")],
    ),
    get("heads: response status", "heads", "/", &[("x-proc", "rh.set=%3astatus:201")]),
    get("heads: bad response status", "heads", "/", &[("x-proc", "rh.set=%3astatus:20")]),
    get("heads: metadata", "heads", "/", &[("x-proc", "qh.meta=ns:k:v rh.meta=other:k:v")]),
    get("heads: immediate", "heads", "/", &[("x-proc", "qh.immediate=403")]),
    get(
        "heads: immediate with all",
        "heads",
        "/",
        &[(
            "x-proc",
            "qh.immediate=401 qh.header=www-authenticate:Basic qh.header=x-a:b qh.text=go+away qh.details=not+you",
        )],
    ),
    get(
        "heads: immediate with a type",
        "heads",
        "/",
        &[("x-proc", "qh.immediate=200 qh.header=content-type:text/html qh.text=x")],
    ),
    get("heads: immediate without status", "heads", "/", &[("x-proc", "qh.immediate=x qh.text=x")]),
    get("heads: immediate for a response", "heads", "/", &[("x-proc", "rh.immediate=503 rh.text=no")]),
    Case {
        grpc: true,
        ..post(
            "heads: immediate for gRPC",
            "heads",
            "/s/m",
            &[("content-type", "application/grpc"), ("x-proc", "qh.immediate=403 qh.grpc=9 qh.text=no")],
        )
    },
    get("heads: failure", "heads", "/", &[("x-proc", "qh.fail=14")]),
    get("heads: failure later", "heads", "/", &[("x-proc", "rh.fail=7")]),
    get("heads: closed", "heads", "/", &[("x-proc", "qh.close")]),
    get("heads: spurious", "heads", "/", &[("x-proc", "qh.spurious")]),
    get("heads: more time", "heads", "/", &[("x-proc", "qh.more=3 qh.set=x-a:1")]),
    get("heads: too much time", "heads", "/", &[("x-proc", "qh.more=30 qh.set=x-a:1")]),
    get("heads: replaced without a body", "heads", "/", &[("x-proc", "qh.replace=new qh.set=x-a:1")]),
    echo("heads: replaced", "heads", &[("x-proc", "qh.replace=new")]),
    get("heads: response replaced", "heads", "/", &[("x-proc", "rh.replace=new")]),
    echo("heads: mode", "heads", &[("x-proc", "qh.mode=qb:1 qb.upper")]),
    echo("heads: mode buffered", "heads", &[("x-proc", "qh.mode=qb:2 qh.mode=rh:2 qb.upper")]),
    get(
        "heads: mode of the response",
        "heads",
        "/",
        &[("x-proc", "rh.mode=rb:2 rh.remove=content-length rb.body=new")],
    ),
    echo("streamed: as it is", "streamed", &[]),
    echo("streamed: changed", "streamed", &[("x-proc", "qb.upper rb.upper"), ("x-reply", "bytes=10")]),
    echo(
        "streamed: trailers",
        "streamed",
        &[("x-proc", "rt.set=x-t:1 rb.upper"), ("x-reply", "bytes=10 chunked trailers")],
    ),
    echo(
        "buffered: trailers",
        "buffered",
        &[("x-proc", "rt.set=x-t:1 rb.upper"), ("x-reply", "bytes=10 chunked trailers")],
    ),
    echo(
        "duplex: trailers",
        "duplex",
        &[("x-proc", "rt.set=x-t:1 rb.upper"), ("x-reply", "bytes=10 chunked trailers")],
    ),
    echo("trailers: some", "trailers", &[("x-proc", "rt.set=x-t:1"), ("x-reply", "bytes=10 chunked trailers")]),
    echo("streamed: cleared", "streamed", &[("x-proc", "qb.clear")]),
    get("streamed: no body", "streamed", "/", &[]),
    echo("streamed: immediate", "streamed", &[("x-proc", "qb.immediate=403 qb.text=no")]),
    echo("streamed: failure", "streamed", &[("x-proc", "qb.fail=14")]),
    echo("streamed: closed", "streamed", &[("x-proc", "qb.close")]),
    echo("buffered: as it is", "buffered", &[]),
    echo("buffered: changed", "buffered", &[("x-proc", "qb.upper rb.upper"), ("x-reply", "bytes=10")]),
    echo("lengths: longer", "lengths", &[("x-proc", "qh.remove=content-length qb.body=much+longer+than+before")]),
    echo("lengths: other", "lengths", &[("x-proc", "rh.remove=content-length rb.body=other")]),
    echo(
        "lengths: cleared",
        "lengths",
        &[("x-proc", "qh.remove=content-length qb.clear rh.remove=content-length rb.clear")],
    ),
    echo("buffered: headers", "buffered", &[("x-proc", "qb.set=x-a:1 rb.set=x-b:2 rb.set=%3astatus:202")]),
    echo("buffered: immediate", "buffered", &[("x-proc", "qb.immediate=403 qb.text=no")]),
    echo("buffered: immediate for a response", "buffered", &[("x-proc", "rb.immediate=403 rb.text=no")]),
    echo("buffered: failure", "buffered", &[("x-proc", "rb.fail=14")]),
    get("buffered: no body", "buffered", "/", &[]),
    echo("partial: as it is", "partial", &[]),
    echo("partial: changed", "partial", &[("x-proc", "qb.upper rb.body=other qb.set=x-a:1")]),
    echo("duplex: as it is", "duplex", &[]),
    echo("duplex: changed", "duplex", &[("x-proc", "qb.upper rb.upper"), ("x-reply", "bytes=10")]),
    echo("duplex: immediate", "duplex", &[("x-proc", "qb.immediate=403 qb.text=no")]),
    echo("duplex: closed", "duplex", &[("x-proc", "qb.close")]),
    get("duplex: no body", "duplex", "/", &[]),
    echo("early: changed", "early", &[("x-proc", "qh.set=x-a:1 qb.upper")]),
    get("bodies: changed", "bodies", "/", &[]),
    get("trailers: none", "trailers", "/", &[]),
    get("allow: failure", "allow", "/", &[("x-proc", "qh.fail=14")]),
    get("allow: immediate", "allow", "/", &[("x-proc", "qh.immediate=403")]),
    get("allow: bad change", "allow", "/", &[("x-proc", "qh.set=x+a:1")]),
    get("impatient: hangs", "impatient", "/", &[("x-proc", "qh.hang")]),
    get("quick: response hangs", "quick", "/", &[("x-proc", "rh.hang")]),
    get("quick-allow: hangs", "quick-allow", "/", &[("x-proc", "qh.hang")]),
    get("status: failure", "status", "/", &[("x-proc", "qh.fail=14")]),
    get("chosen: lists", "chosen", "/p?q=1", &[("x-a", "1"), ("x-ab", "2"), ("x-b", "3")]),
    get("rules: refused", "rules", "/", &[("x-proc", "qh.set=x-no-a:1")]),
    get("rules: removal refused", "rules", "/", &[("x-proc", "qh.remove=x-no-a")]),
    get("rules: let through", "rules", "/", &[("x-proc", "qh.set=x-yes:1")]),
    get("retain: not rerouted", "retain", "/", &[("x-proc", "qh.set=x-to:two qh.reroute")]),
    get("clear: rerouted", "clear", "/", &[("x-proc", "qh.set=x-to:two")]),
    get("modes: allowed", "modes", "/", &[("x-proc", "qh.mode=rh:2 rh.set=x-r:1")]),
    get("modes: not allowed", "modes", "/", &[("x-proc", "qh.mode=rb:2 rh.set=x-r:1")]),
    echo("observed: all", "observed", &[("x-proc", "qh.immediate=403")]),
    get("dead: no service", "dead", "/", &[]),
];

/// A proxy that has answered all cases, and everybody around it.
struct Ran {
    all: Vec<(&'static str, Vec<String>)>,
    side: Side,
    _others: (Upstream, Upstream, ProcessingService, outrigger_tests::tcp::ClosedPort),
}

async fn observed(program: PathBuf, only: &str) -> Ran {
    let (one, two, service) =
        (Upstream::start("one").await, Upstream::start("two").await, ProcessingService::start().await);
    let dead = outrigger_tests::tcp::ClosedPort::take();
    let listeners: Vec<_> = CHAINS.iter().map(Chain::listener).collect();
    let clusters = [
        cluster("one", &[one.port()]),
        cluster("two", &[two.port()]),
        http2_cluster("asked", &[service.port()]),
        http2_cluster("dead", &[dead.port()]),
    ];
    let mut side = Side::start(program, &bootstrap(&listeners, &clusters), CHAINS).await;
    let mut all = Vec::new();
    for case in CASES.iter().filter(|case| case.name.contains(only)) {
        // What a service is told that has had its say already may come late.
        service.take_told();
        let told = |lines: Vec<String>| lines.into_iter().map(|line| format!("told: {line}"));
        let mut seen = Vec::new();
        if case.listener == "observed" {
            // Nobody waits for it, so the answer may come before it has heard of it.
            seen.extend(side.observe_h1(case).await);
            seen.extend(told(service.told_to_the_end().await));
            seen.extend(side.observe_h2(case).await);
            seen.extend(told(service.told_to_the_end().await));
        } else {
            seen.extend(side.observe(case).await);
            seen.extend(told(service.take_told()));
        }
        all.push((case.name, seen));
    }
    Ran { all, side, _others: (one, two, service, dead) }
}

#[tokio::test]
async fn messages_are_processed_as_by_envoy() {
    let only = std::env::var("ONLY_CASE").unwrap_or_default();
    let expected = observed(proxy::envoy(), &only).await;
    let seen = observed(proxy::program(), &only).await;
    let mut report = String::new();
    for ((name, expected), (_, seen)) in expected.all.into_iter().zip(seen.all) {
        if std::env::var_os("SHOW").is_some() {
            writeln!(report, "{name}: {expected:#?}").unwrap();
        }
        compare(&mut report, INTENDED, name, expected, seen);
    }
    for chain in CHAINS.iter().filter(|chain| only.is_empty() && !chain.stats.is_empty()) {
        compare_stats(&mut report, INTENDED, chain.stats, &expected.side, &seen.side).await;
    }
    assert!(report.is_empty(), "not the same as with Envoy:\n{report}");
}

async fn start(one: &Upstream, service: &ProcessingService) -> Proxy {
    let listeners: Vec<_> = CHAINS.iter().filter(|chain| chain.name != "dead").map(Chain::listener).collect();
    let clusters =
        [cluster("one", &[one.port()]), cluster("two", &[one.port()]), http2_cluster("asked", &[service.port()])];
    Proxy::start(&bootstrap(&listeners, &clusters)).await
}

#[tokio::test]
async fn long_bodies_pass_through_the_service_in_pieces() {
    let (one, service) = (Upstream::start("one").await, ProcessingService::start().await);
    let proxy = start(&one, &service).await;
    let body: Vec<u8> = (0..3_000_000_u32).map(|index| b'a' + (index % 23) as u8).collect();
    for listener in ["streamed", "duplex", "partial", "early", "observed"] {
        let address = proxy.listener(listener).await;
        let client = h1::Client::connect(address).await;
        let response = { client }.request("POST", "/", &[], &body).await;
        assert_eq!(response.status, 200, "{listener}");
        let report: serde_json::Value = serde_json::from_slice(&response.content()).unwrap();
        assert_eq!(report["body_sum"], sum(&body).to_string(), "{listener}");
        let client = h1::Client::connect(address).await;
        let response = { client }.request("POST", "/", &[("x-reply", "bytes=3000000")], &body).await;
        assert_eq!((response.status, response.content().len()), (200, 3_000_000), "{listener}");
    }
    // A part of a body does not go on as if it were all of it.
    let client = h1::Client::connect(proxy.listener("duplex").await).await;
    assert_eq!({ client }.request("POST", "/", &[("x-proc", "qb.close")], &body).await.status, 500);
    // What does not fit is refused where all of it is wanted.
    let client = h1::Client::connect(proxy.listener("buffered").await).await;
    assert_eq!({ client }.request("POST", "/", &[], &body).await.status, 413);
    let client = h1::Client::connect(proxy.listener("buffered").await).await;
    assert_eq!({ client }.request("GET", "/", &[("x-reply", "bytes=3000000")], b"").await.status, 500);
}

#[tokio::test]
async fn a_stream_ends_with_its_request() {
    let (one, service) = (Upstream::start("one").await, ProcessingService::start().await);
    let proxy = start(&one, &service).await;
    let mut client = h1::Client::connect(proxy.listener("heads").await).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nx-proc: qh.mute\r\n\r\n").await;
    proxy.wait_stat("cluster.asked.upstream_rq_active", |active| active == 1).await;
    drop(client);
    proxy.wait_stat("cluster.asked.upstream_rq_active", |active| active == 0).await;
    proxy.wait_stat("http.heads.downstream_rq_active", |active| active == 0).await;
    assert_eq!(one.counts().requests, 0);
    // The connection to the service is still good.
    assert_eq!(h1::get(proxy.listener("heads").await, "/").await.status, 200);
    proxy.stat_is("cluster.asked.upstream_cx_total", 1).await;
}
