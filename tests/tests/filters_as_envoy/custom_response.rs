//! Answers in the place of responses.

use std::path::PathBuf;

use outrigger_tests::config::{bootstrap, cluster};
use outrigger_tests::side_by_side::{Case, Chain, Intended, chain_of, get};
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy};

use super::{CLIENT, compare};

const INTENDED: Intended = &[CLIENT, ("*", "logged ", "details that are empty are told as none")];

macro_rules! input {
    ($type:literal, $more:literal) => {
        concat!("{ name: i, typed_config: { '@type': type.googleapis.com/envoy.type.matcher.v3.", $type, $more, " } }")
    };
}

macro_rules! when {
    ($input:expr, $value:literal, $policy:literal) => {
        concat!(
            "{ predicate: { single_predicate: { input: ",
            $input,
            ", value_match: { exact: '",
            $value,
            "' } } }, on_match: { action: { name: a, typed_config: { '@type': type.googleapis.com/\
             envoy.extensions.http.custom_response.local_response_policy.v3.LocalResponsePolicy",
            $policy,
            " } } } }, "
        )
    };
}

macro_rules! redirect {
    ($value:literal, $policy:literal) => {
        concat!(
            "{ predicate: { single_predicate: { input: ",
            input!("HttpResponseStatusCodeMatchInput", ""),
            ", value_match: { exact: '",
            $value,
            "' } } }, on_match: { action: { name: a, typed_config: { '@type': type.googleapis.com/\
             envoy.extensions.http.custom_response.redirect_policy.v3.RedirectPolicy, ",
            $policy,
            " } } } }, "
        )
    };
}

macro_rules! status {
    ($value:literal, $policy:literal) => {
        when!(input!("HttpResponseStatusCodeMatchInput", ""), $value, $policy)
    };
}

const POLICIES: &str = concat!(
    "custom_response_matcher: { matcher_list: { matchers: [",
    status!("404", ", status_code: 418, body: { inline_string: 'gone %RESPONSE_CODE%' }"),
    status!(
        "405",
        ", body: { inline_string: inner }, body_format: { text_format_source: { inline_string: \
         '<%LOCAL_REPLY_BODY%|%RESPONSE_CODE%|%REQ(:path)%|%RESP(x-why)%>' }, content_type: text/x }, \
         response_headers_to_add: [{ header: { key: x-code, value: '%RESPONSE_CODE%' } }, \
         { header: { key: x-why, value: '%RESP(x-why)%' } }]"
    ),
    status!("406", ", body_format: { json_format: { m: '%LOCAL_REPLY_BODY%', c: '%RESPONSE_CODE%' } }"),
    status!(
        "407",
        ", status_code: 499, response_headers_to_add: [{ header: { key: x-code, value: '%RESPONSE_CODE%' } }]"
    ),
    status!(
        "408",
        ", body: { inline_string: b }, response_headers_to_add: [{ header: { key: content-type, value: text/y }, \
         append_action: OVERWRITE_IF_EXISTS_OR_ADD }]"
    ),
    status!("409", ", status_code: 204"),
    status!(
        "503",
        ", body_format: { text_format_source: { inline_string: '[%LOCAL_REPLY_BODY%] %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS%' } }"
    ),
    when!(
        input!("HttpResponseHeaderMatchInput", ", header_name: X-Why"),
        "because",
        ", body: { inline_string: by-response }"
    ),
    when!(
        input!("HttpRequestHeaderMatchInput", ", header_name: x-want"),
        "yes",
        ", body: { inline_string: by-request }"
    ),
    when!(
        input!("HttpResponseStatusCodeClassMatchInput", ""),
        "5xx",
        ", status_code: 500, body: { inline_string: class }"
    ),
    "] } }"
);

const FILTER: &str = "custom_response.v3.CustomResponse";
const MUTATION: &str = "header_mutation.v3.HeaderMutation";
const BEFORE: &str = "mutations: { response_mutations: [{ append: { header: { key: x-before, value: '1' } } }] }";
const AFTER: &str = "mutations: { response_mutations: [{ append: { header: { key: x-after, value: '1' } } }] }";

const CHAINS: &[Chain] = &[Chain {
    stats: "http.replaced.downstream_rq_4xx",
    ..chain_of(
        "replaced",
        &[("before", MUTATION, BEFORE), ("c", FILTER, POLICIES), ("after", MUTATION, AFTER)],
        concat!(
            "{ match: { path: /routed }, route: { cluster: one }, typed_per_filter_config: { c: { '@type': $T/",
            "custom_response.v3.CustomResponse, custom_response_matcher: { matcher_list: { matchers: [",
            status!("404", ", status_code: 201, body: { inline_string: routed }"),
            "] } } } } }, \
             { match: { path: /dead }, route: { cluster: dead }, response_headers_to_add: [{ header: { key: x-route, value: r } }] }, \
             { match: { path: /nowhere }, route: { cluster_header: x-nowhere } }, \
             { match: { path: /direct }, direct_response: { status: 404, body: { inline_string: d } }, \
             response_headers_to_add: [{ header: { key: x-route, value: r } }] }, \
             { match: { path: /added }, route: { cluster: one }, response_headers_to_add: [{ header: { key: x-route, value: r } }] }, "
        ),
    )
}];

const CASES: &[Case] = &[
    get("status", "replaced", "/", &[("x-reply", "status=404 bytes=10")]),
    Case { method: "HEAD", ..get("HEAD", "replaced", "/", &[("x-reply", "status=404 bytes=10")]) },
    get("format", "replaced", "/a?b", &[("x-reply", "status=405 header=x-why:because")]),
    get("JSON format", "replaced", "/", &[("x-reply", "status=406")]),
    get("status alone", "replaced", "/", &[("x-reply", "status=407")]),
    get("headers", "replaced", "/", &[("x-reply", "status=408")]),
    get("status without content", "replaced", "/", &[("x-reply", "status=409")]),
    get("an answer of the upstream", "replaced", "/", &[("x-reply", "status=503")]),
    get("an answer of our own", "replaced", "/dead", &[]),
    get("another answer of our own", "replaced", "/nowhere", &[]),
    get("a direct response", "replaced", "/direct", &[]),
    get("by a header of the response", "replaced", "/", &[("x-reply", "header=x-why:because")]),
    get("by a header of the request", "replaced", "/", &[("x-want", "yes")]),
    get("by the class", "replaced", "/", &[("x-reply", "status=502")]),
    get("nothing", "replaced", "/", &[("x-reply", "bytes=3")]),
    get("by route", "replaced", "/routed", &[("x-reply", "status=404")]),
    get("not by route", "replaced", "/routed", &[("x-reply", "status=502")]),
    get("headers of the route", "replaced", "/added", &[("x-reply", "status=404")]),
    Case {
        grpc: true,
        method: "POST",
        ..get("gRPC", "replaced", "/", &[("content-type", "application/grpc"), ("x-reply", "status=404")])
    },
];

/// The other requests are told from the first ones by their headers alone: an upstream obeys `x-reply`.
const REDIRECTS: &str = concat!(
    "custom_response_matcher: { matcher_list: { matchers: [",
    redirect!(
        "404",
        "uri: 'http://errors.example/page?a=b#f', status_code: 410, \
         response_headers_to_add: [{ header: { key: x-added, value: '%RESPONSE_CODE%' } }], \
         request_headers_to_add: [{ header: { key: x-asked, value: '%REQ(:path)%|%RESPONSE_CODE%' } }, \
         { header: { key: x-reply, value: 'status=200' }, append_action: OVERWRITE_IF_EXISTS_OR_ADD }]"
    ),
    redirect!("405", "uri: 'http://errors.example/again'"),
    redirect!("503", "uri: 'http://errors.example/direct'"),
    "] } }"
);

const REDIRECTED: Chain = chain_of(
    "redirected",
    &[("before", MUTATION, BEFORE), ("c", FILTER, REDIRECTS), ("after", MUTATION, AFTER)],
    "{ match: { path: /dead }, route: { cluster: dead } }, { match: { path: /direct }, direct_response: { status: 200, \
     body: { inline_string: d } } }, ",
);

/// What clients and the upstream see, and what is logged of both requests.
async fn redirected(program: PathBuf) -> Vec<String> {
    let upstream = Upstream::start("one").await;
    let clusters = [cluster("one", &[upstream.port()]), cluster("dead", &[])];
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[REDIRECTED.listener()], &clusters), settings).await;
    let mut client = h1::Client::connect(proxy.listener("redirected").await).await;
    let mut lines = Vec::new();
    let asked = ["status=404", "status=405", "status=503", "status=403"];
    let cases = asked.map(|reply| ("GET", "/", reply, &b""[..]));
    let others = [("POST", "/", "status=404", &b"0123456789"[..]), ("GET", "/dead", "", b"")];
    for (method, target, reply, body) in cases.into_iter().chain(others) {
        let before = upstream.seen().len();
        let response = client.request(method, target, &[("x-reply", reply)], body).await;
        let headers = ["x-added", "x-before", "x-after"].map(|name| response.header(name));
        lines.push(format!("{method} {target} {reply}: {} {headers:?}", response.status));
        for seen in &upstream.seen()[before..] {
            let headers = ["x-asked", "x-reply"].map(|name| seen.header(name));
            lines.push(format!("  {} {} {} {headers:?}", seen.target, seen.authority, seen.body.len()));
        }
    }
    // Each of them is logged twice, but for the one that is not redirected.
    lines.extend(proxy.lines("redirected.log", 11).await);
    lines
}

/// Envoy asks for content, and sends it to a client that does not expect any.
#[tokio::test]
async fn who_asks_for_a_head_gets_no_content_of_another_request() {
    let upstream = Upstream::start("one").await;
    let clusters = [cluster("one", &[upstream.port()]), cluster("dead", &[])];
    let proxy = Proxy::start(&bootstrap(&[REDIRECTED.listener()], &clusters)).await;
    let mut client = h1::Client::connect(proxy.listener("redirected").await).await;
    let response = client.request("HEAD", "/", &[("x-reply", "status=404")], b"").await;
    assert_eq!((response.status, response.body.len()), (410, 0));
    assert_eq!(upstream.seen()[1].method, "HEAD");
    assert_eq!(client.request("GET", "/", &[("x-reply", "status=403")], b"").await.status, 403);
}

#[tokio::test]
async fn other_requests_are_answered_instead_as_by_envoy() {
    let (ours, envoys) = tokio::join!(redirected(proxy::program()), redirected(proxy::envoy()));
    assert_eq!(ours, envoys);
    for line in [
        "GET / status=404: 410 [Some(\"200\"), Some(\"1\"), Some(\"1\")]",
        "  /page?a=b errors.example 0 [Some(\"/page?a=b|404\"), Some(\"status=200\")]",
        "GET /dead : 503 [None, Some(\"1\"), Some(\"1\")]",
        "404 - internal_redirect",
    ] {
        assert!(ours.iter().any(|seen| seen == line), "{line} is not in {ours:#?}");
    }
}

#[tokio::test]
async fn responses_are_replaced_as_by_envoy() {
    compare(CHAINS, CASES, INTENDED).await;
}
