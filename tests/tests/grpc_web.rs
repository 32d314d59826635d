//! gRPC-Web: the same calls for Envoy and for the proxy under test, in binary and in text.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use outrigger_tests::Upstream;
use outrigger_tests::config::{bootstrap, cluster, http2_cluster};
use outrigger_tests::side_by_side::{Case, Chain, Headers, Intended, chain_of, same};

const INTENDED: Intended = &[
    (
        "*",
        "header x-forwarded-for: ",
        "for a client on loopback Envoy names an address of the machine; we name the client",
    ),
    ("text: not base64", "connection: close", "the body is read to its end, so the connection stays in step"),
    ("no endpoint, in text", "connection: close", "the body is read to its end, so the connection stays in step"),
    ("text: cut off", "connection: close", "the body is read to its end, so the connection stays in step"),
    (
        "*",
        "header grpc-message: {",
        "an upstream's own words come after the head, so they are no message; Envoy waits for them",
    ),
    ("answered by somebody else", "header grpc-message: ", "as above"),
];

const fn call(name: &'static str, target: &'static str, headers: Headers, body: &'static [u8]) -> Case {
    Case { name, listener: "web", method: "POST", target, headers, body, grpc: false }
}

const BINARY: (&str, &str) = ("content-type", "application/grpc-web+proto");
const TEXT: (&str, &str) = ("content-type", "application/grpc-web-text");
const ACCEPT_TEXT: (&str, &str) = ("accept", "application/grpc-web-text");
const MESSAGE: &[u8] = b"\0\0\0\0\x03abc";
/// The same in base64.
const MESSAGE_TEXT: &[u8] = b"AAAAAANhYmM=";

const CASES: &[Case] = &[
    call("binary: head", "/p.S/M", &[BINARY], MESSAGE),
    call(
        "binary",
        "/p.S/M",
        &[BINARY, ("x-reply", "header=content-type:application/grpc bytes=100 trailers")],
        MESSAGE,
    ),
    call(
        "binary: short type",
        "/p.S/M",
        &[
            ("content-type", "application/grpc-web"),
            ("x-reply", "header=content-type:application/grpc+proto empty trailers"),
        ],
        MESSAGE,
    ),
    call(
        "binary: trailers only",
        "/p.S/M",
        &[
            BINARY,
            ("x-reply", "header=content-type:application/grpc header=grpc-status:5 header=grpc-message:oh empty"),
        ],
        MESSAGE,
    ),
    call(
        "text",
        "/p.S/M",
        &[TEXT, ACCEPT_TEXT, ("x-reply", "header=content-type:application/grpc header=grpc-status:0 empty")],
        MESSAGE_TEXT,
    ),
    call(
        "text: only the request",
        "/p.S/M",
        &[TEXT, ("x-reply", "header=content-type:application/grpc empty trailers")],
        MESSAGE_TEXT,
    ),
    call("text: not base64", "/p.S/M", &[TEXT], b"****"),
    call("text: cut off", "/p.S/M", &[TEXT], b"AAAAAA"),
    call("no endpoint", "/empty.S/M", &[BINARY], MESSAGE),
    call("no endpoint, in text", "/empty.S/M", &[TEXT, ACCEPT_TEXT], MESSAGE_TEXT),
    call("no route", "/none", &[BINARY], MESSAGE),
    call(
        "plain gRPC is left alone",
        "/p.S/M",
        &[("content-type", "application/grpc"), ("x-reply", "header=content-type:application/grpc bytes=10 trailers")],
        MESSAGE,
    ),
    call("another type is left alone", "/p.S/M", &[("content-type", "text/plain")], b"text"),
    call(
        "answered by somebody else",
        "/p.S/Other",
        &[BINARY, ("x-reply", "status=503 header=content-type:text/html bytes=20")],
        MESSAGE,
    ),
];

const CHAINS: &[Chain] = &[Chain {
    stats: "cluster.by-h2.grpc-web.",
    ..chain_of(
        "web",
        &[("gw", "grpc_web.v3.GrpcWeb", "")],
        "{ match: { prefix: /empty }, route: { cluster: empty } }, { match: { prefix: /p. }, route: { cluster: by-h2 } }, \
         { match: { prefix: /none }, direct_response: { status: 404 } }, ",
    )
}];

#[tokio::test]
async fn browsers_call_as_through_envoy() {
    let upstream = Upstream::start("one").await;
    let listeners: Vec<String> = CHAINS.iter().map(Chain::listener).collect();
    let clusters =
        [cluster("one", &[upstream.port()]), cluster("empty", &[]), http2_cluster("by-h2", &[upstream.port()])];
    same(&bootstrap(&listeners, &clusters), CHAINS, CASES, INTENDED).await;
}
