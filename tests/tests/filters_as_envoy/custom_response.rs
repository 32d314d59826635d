//! Answers in the place of responses.

use outrigger_tests::side_by_side::{Case, Chain, Intended, chain_of, get, post};

use super::{CLIENT, compare};

const INTENDED: Intended = &[
    CLIENT,
    ("status without content", "header content-length: ", "RFC 9110 section 8.6: there is no length where there is no content"),
];

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
    status!("407", ", status_code: 499, response_headers_to_add: [{ header: { key: x-code, value: '%RESPONSE_CODE%' } }]"),
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
    when!(input!("HttpResponseHeaderMatchInput", ", header_name: X-Why"), "because", ", body: { inline_string: by-response }"),
    when!(input!("HttpRequestHeaderMatchInput", ", header_name: x-want"), "yes", ", body: { inline_string: by-request }"),
    when!(input!("HttpResponseStatusCodeClassMatchInput", ""), "5xx", ", status_code: 500, body: { inline_string: class }"),
    "] } }"
);

const FILTER: &str = "custom_response.v3.CustomResponse";
const MUTATION: &str = "header_mutation.v3.HeaderMutation";
const BEFORE: &str = "mutations: { response_mutations: [{ append: { header: { key: x-before, value: '1' } } }] }";
const AFTER: &str = "mutations: { response_mutations: [{ append: { header: { key: x-after, value: '1' } } }] }";

const CHAINS: &[Chain] = &[Chain {
    stats: "http.replaced.downstream_rq_",
    ..chain_of(
        "replaced",
        &[("before", MUTATION, BEFORE), ("c", FILTER, POLICIES), ("after", MUTATION, AFTER)],
        concat!(
            "{ match: { path: /routed }, route: { cluster: one }, typed_per_filter_config: { c: { '@type': $T/",
            "custom_response.v3.CustomResponse, custom_response_matcher: { matcher_list: { matchers: [",
            status!("404", ", status_code: 201, body: { inline_string: routed }"),
            "] } } } } }, \
             { match: { path: /dead }, route: { cluster: dead }, response_headers_to_add: [{ header: { key: x-route, value: r } }] }, \
             { match: { path: /nowhere }, route: { cluster: nowhere } }, \
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

const REDIRECT_CHAINS: &[Chain] = &[Chain {
    stats: "http.redirected.custom_response_",
    ..chain_of(
        "redirected",
        &[("before", MUTATION, BEFORE), ("c", FILTER, REDIRECTS), ("after", MUTATION, AFTER)],
        "{ match: { path: /dead }, route: { cluster: dead } }, { match: { path: /direct }, direct_response: { status: 200, \
         body: { inline_string: d } } }, { match: { path: /page, headers: [{ name: ':authority', string_match: { \
         exact: errors.example } }] }, route: { cluster: one } }, ",
    )
}];

const REDIRECT_CASES: &[Case] = &[
    get("redirected", "redirected", "/", &[("x-reply", "status=404")]),
    post("a body is not repeated", "redirected", "/", &[("x-reply", "status=404")]),
    get("its own answer is not replaced", "redirected", "/", &[("x-reply", "status=405")]),
    get("by an answer of our own", "redirected", "/", &[("x-reply", "status=503")]),
    get("instead of an answer of our own", "redirected", "/dead", &[]),
    get("not redirected", "redirected", "/", &[("x-reply", "status=403")]),
];

#[tokio::test]
async fn other_requests_are_answered_instead_as_by_envoy() {
    compare(REDIRECT_CHAINS, REDIRECT_CASES, INTENDED).await;
}

#[tokio::test]
async fn responses_are_replaced_as_by_envoy() {
    compare(CHAINS, CASES, INTENDED).await;
}
