//! Services that requests are asked about: the same filters, services and requests for Envoy and for the proxy under test,
//! what they do to the requests, and what the services are told.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::path::PathBuf;

use outrigger_tests::certificates::{self, Authority, Identity};
use outrigger_tests::config::{all_to, bootstrap, chain, cluster, http2_cluster, listener};
use outrigger_tests::side_by_side::{Case, Chain, Intended, Side, chain_of, compare, compare_stats, get, post};
use outrigger_tests::{AskedService, Proxy, Settings, Upstream, eventually, h1, proxy};

const AUTHZ: &str = "ext_authz.v3.ExtAuthz";
const LIMIT: &str = "ratelimit.v3.RateLimit";

const INTENDED: Intended = &[
    (
        "*",
        "header x-forwarded-for: ",
        "for a client on loopback Envoy names an address of the machine; we name the client",
    ),
    ("body: ", "h2: upstream sees header ", "a body that was read as a whole has a known length"),
    ("http body: ", "h2: upstream sees header ", "a body that was read as a whole has a known length"),
    ("partial: less", "h2: upstream sees header ", "a body that was read as a whole has a known length"),
    (
        "body: too long",
        "header connection: close",
        "the request was read to its end, so that its connection can be kept",
    ),
    ("http body: too long", "header connection: close", "likewise"),
    ("plain: refusal with an empty answer", "header content-", "bytes after a 204 would be taken for the next answer"),
    ("plain: refusal with an empty answer", "body ", "likewise"),
    ("*", "asked: header x-envoy-", "what Envoy says of its own calls is of no use to a service"),
    ("http", "header x-envoy-upstream-service-time", "the time of our own call says nothing to the client"),
];

macro_rules! grpc_authz {
    ($name:literal, $more:literal, $routes:literal) => {
        chain_of(
            $name,
            &[(
                "authz",
                AUTHZ,
                concat!(
                    "transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: asked }, timeout: 5s }",
                    $more
                ),
            )],
            $routes,
        )
    };
}

macro_rules! http_authz {
    ($name:literal, $service:literal, $more:literal) => {
        chain_of(
            $name,
            &[(
                "authz",
                AUTHZ,
                concat!(
                    "transport_api_version: V3, http_service: { server_uri: { uri: 'http://authz/', cluster: web, \
                     timeout: 5s }, authorization_request: { headers_to_add: [{ key: x-reply, \
                     value: '%REQ(x-authz-reply)%' }] ",
                    $service,
                    " } ",
                    $more
                ),
            )],
            "",
        )
    };
}

macro_rules! limits {
    ($name:literal, $more:literal, $routes:literal, $host:literal) => {
        Chain {
            host: $host,
            ..chain_of(
                $name,
                &[(
                    "limit",
                    LIMIT,
                    concat!(
                        "domain: d, timeout: 5s, rate_limit_service: { transport_api_version: V3, \
                         grpc_service: { envoy_grpc: { cluster_name: asked } } }",
                        $more
                    ),
                )],
                $routes,
            )
        }
    };
}

const CHAINS: &[Chain] = &[
    Chain {
        log: " %DYNAMIC_METADATA(envoy.filters.http.ext_authz:k)%",
        ..grpc_authz!(
            "plain",
            "",
            "{ match: { path: /off }, route: { cluster: one }, typed_per_filter_config: { authz: { \
           '@type': $T/ext_authz.v3.ExtAuthzPerRoute, disabled: true } } }, \
         { match: { path: /told }, route: { cluster: one }, typed_per_filter_config: { authz: { \
           '@type': $T/ext_authz.v3.ExtAuthzPerRoute, check_settings: { context_extensions: { a: '1', b: '2' } } } } }, "
        )
    },
    grpc_authz!("allow", ", failure_mode_allow: true, failure_mode_allow_header_add: true", ""),
    grpc_authz!("status", ", status_on_error: { code: 503 }", ""),
    Chain {
        stats: "http.dead.ext_authz.",
        ..chain_of(
            "dead",
            &[(
                "authz",
                AUTHZ,
                "transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: dead }, timeout: 5s }",
            )],
            "",
        )
    },
    chain_of(
        "slow",
        &[(
            "authz",
            AUTHZ,
            "transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: asked }, timeout: 3s }",
        )],
        "",
    ),
    grpc_authz!(
        "body",
        ", with_request_body: { max_request_bytes: 10 }",
        "{ match: { path: /never }, route: { cluster: one }, typed_per_filter_config: { authz: { \
           '@type': $T/ext_authz.v3.ExtAuthzPerRoute, check_settings: { disable_request_body_buffering: true } } } }, \
         { match: { path: /less }, route: { cluster: one }, typed_per_filter_config: { authz: { \
           '@type': $T/ext_authz.v3.ExtAuthzPerRoute, check_settings: { \
           with_request_body: { max_request_bytes: 4 } } } } }, "
    ),
    grpc_authz!(
        "partial",
        ", with_request_body: { max_request_bytes: 4, allow_partial_message: true, pack_as_bytes: true }",
        ""
    ),
    grpc_authz!("raw", ", encode_raw_headers: true", ""),
    grpc_authz!(
        "chosen",
        ", allowed_headers: { patterns: [{ exact: x-authz }, { prefix: x-a }] }, \
         disallowed_headers: { patterns: [{ exact: x-ab }] }",
        ""
    ),
    Chain {
        log: " %FILTER_STATE(authz.shadow:PLAIN)%",
        stats: "http.shadow.ext_authz.",
        ..grpc_authz!("shadow", ", shadow_mode: true", "")
    },
    grpc_authz!("never", ", filter_enabled: { default_value: { numerator: 0 } }", ""),
    grpc_authz!(
        "denied-if-off",
        ", filter_enabled: { default_value: { numerator: 0 } }, deny_at_disable: { default_value: true, runtime_key: x }",
        ""
    ),
    grpc_authz!(
        "metadata",
        ", filter_enabled_metadata: { filter: 'ns', path: [{ key: k }], value: { string_match: { exact: v } } }",
        ""
    ),
    grpc_authz!("rules", ", decoder_header_mutation_rules: { disallow_expression: { regex: x-no.* } }", ""),
    grpc_authz!(
        "strict",
        ", validate_mutations: true, decoder_header_mutation_rules: { disallow_all: true, disallow_is_error: true }",
        ""
    ),
    grpc_authz!("cut", ", max_denied_response_body_bytes: 3, enable_dynamic_metadata_ingestion: false", ""),
    grpc_authz!(
        "reroute",
        ", clear_route_cache: true",
        "{ match: { prefix: /, headers: [{ name: x-to, string_match: { exact: two } }] }, route: { cluster: two } }, "
    ),
    grpc_authz!(
        "not-rerouted",
        "",
        "{ match: { prefix: /, headers: [{ name: x-to, string_match: { exact: two } }] }, route: { cluster: two } }, "
    ),
    http_authz!("http", "", "}"),
    http_authz!(
        "http-lists",
        ", allowed_headers: { patterns: [{ prefix: x-a }] } }, path_prefix: /check, authorization_response: { \
         allowed_upstream_headers: { patterns: [{ exact: x-user }] }, \
         allowed_upstream_headers_to_append: { patterns: [{ exact: x-group }] }, \
         allowed_client_headers: { patterns: [{ exact: x-note }] }, \
         allowed_client_headers_on_success: { patterns: [{ exact: x-fine }] } ",
        "}"
    ),
    http_authz!("http-body", "", "}, with_request_body: { max_request_bytes: 20 }"),
    http_authz!("http-allow", "", "}, failure_mode_allow: true"),
    limits!(
        "limits",
        "",
        "{ match: { path: /key }, route: { cluster: one, rate_limits: [\
           { actions: [{ request_headers: { header_name: x-limit, descriptor_key: script } }, \
             { generic_key: { descriptor_value: v } }] }, \
           { stage: 1, actions: [{ generic_key: { descriptor_value: other } }] }] } }, \
         { match: { path: /with-host }, route: { cluster: one, include_vh_rate_limits: true, rate_limits: [\
           { actions: [{ destination_cluster: {} }] }] } }, \
         { match: { path: /ignore-host }, route: { cluster: one }, typed_per_filter_config: { limit: { \
           '@type': $T/ratelimit.v3.RateLimitPerRoute, vh_rate_limits: IGNORE } } }, \
         { match: { path: /domain }, route: { cluster: one }, typed_per_filter_config: { limit: { \
           '@type': $T/ratelimit.v3.RateLimitPerRoute, domain: other } } }, \
         { match: { path: /own }, route: { cluster: one }, typed_per_filter_config: { limit: { \
           '@type': $T/ratelimit.v3.RateLimitPerRoute, rate_limits: [{ hits_addend: { number: 3 }, \
           actions: [{ generic_key: { descriptor_value: own } }] }] } } }, ",
        "rate_limits: [{ actions: [{ request_headers: { header_name: x-limit, descriptor_key: script } }, \
          { source_cluster: {} }] }]"
    ),
    limits!(
        "limits-told",
        ", enable_x_ratelimit_headers: DRAFT_VERSION_03, disable_x_envoy_ratelimited_header: true, \
         rate_limited_status: { code: 503 }, rate_limited_as_resource_exhausted: true, \
         response_headers_to_add: [{ header: { key: x-limited, value: '%REQ(x-k)%' } }]",
        "",
        "rate_limits: [{ actions: [{ request_headers: { header_name: x-limit, descriptor_key: script } }] }]"
    ),
    limits!(
        "limits-deny",
        ", failure_mode_deny: true, status_on_error: { code: 502 }, request_type: external, enable_retry_after_header: true",
        "",
        "rate_limits: [{ actions: [{ request_headers: { header_name: x-limit, descriptor_key: script } }] }]"
    ),
    limits!(
        "limits-filter",
        ", rate_limits: [{ actions: [{ request_headers: { header_name: x-limit, descriptor_key: script } }] }], \
         filter_enforced: { default_value: { numerator: 0 } }",
        "",
        "rate_limits: [{ actions: [{ generic_key: { descriptor_value: host } }] }]"
    ),
];

const fn grpc(name: &'static str, listener: &'static str, headers: &'static [(&'static str, &'static str)]) -> Case {
    Case { grpc: true, ..post(name, listener, "/s/m", headers) }
}

const CASES: &[Case] = &[
    get("plain: consent", "plain", "/p?a=1", &[("x-a", "1"), ("cookie", "c=1"), ("authorization", "t")]),
    get("plain: off", "plain", "/off", &[("x-authz", "deny")]),
    get("plain: extensions", "plain", "/told", &[]),
    post("plain: a body is not told", "plain", "/", &[]),
    get("plain: twice", "plain", "/", &[("x-a", "1"), ("x-a", "2"), ("x-forwarded-for", "1.2.3.4")]),
    get(
        "plain: service",
        "plain",
        "/",
        &[("x-envoy-downstream-service-cluster", "front"), ("x-envoy-auth-partial-body", "true")],
    ),
    get("plain: refusal", "plain", "/", &[("x-authz", "deny")]),
    get(
        "plain: refusal with all",
        "plain",
        "/",
        &[(
            "x-authz",
            "deny=401 header=www-authenticate:Basic header=Set-Cookie:a=1 header=set-cookie:b=2 body=go+away",
        )],
    ),
    get(
        "plain: refusal with a type",
        "plain",
        "/",
        &[("x-authz", "deny=302 header=location:/login header=content-type:text/html body=x")],
    ),
    get(
        "plain: refusal with the length",
        "plain",
        "/",
        &[("x-authz", "deny header=content-length:99 header=connection:close body=x")],
    ),
    get("plain: refusal with an empty answer", "plain", "/", &[("x-authz", "deny=204 body=x")]),
    get("plain: refusal with 200", "plain", "/", &[("x-authz", "deny=200 body=fine")]),
    Case { method: "HEAD", ..get("plain: refusal of HEAD", "plain", "/", &[("x-authz", "deny body=text")]) },
    grpc(
        "plain: gRPC refusal",
        "plain",
        &[("content-type", "application/grpc"), ("x-authz", "deny=401 header=x-a:b body=no")],
    ),
    get("plain: service fails", "plain", "/", &[("x-authz", "fail")]),
    get("plain: service is in error", "plain", "/", &[("x-authz", "error=500 header=x-a:b body=broken")]),
    get("plain: service is in error without status", "plain", "/", &[("x-authz", "error body=broken")]),
    get(
        "plain: headers are set",
        "plain",
        "/",
        &[("x-authz", "set=x-a:2 set=x-b:3 set=x-c:4"), ("x-a", "1"), ("x-c", "1"), ("x-c", "2")],
    ),
    get(
        "plain: headers are appended",
        "plain",
        "/",
        &[("x-authz", "append=x-a:2 append=x-b:3 append=x-a:4"), ("x-a", "1")],
    ),
    get(
        "plain: headers by action",
        "plain",
        "/",
        &[
            ("x-authz", "absent=x-a:2 absent=x-b:3 replace=x-c:4 replace=x-d:5 overwrite=x-e:6"),
            ("x-a", "1"),
            ("x-c", "1"),
        ],
    ),
    get(
        "plain: headers are removed",
        "plain",
        "/",
        &[("x-authz", "remove=X-A remove=cookie remove=host remove=%3apath"), ("x-a", "1"), ("cookie", "c=1")],
    ),
    get("plain: path is set", "plain", "/a", &[("x-authz", "set=%3apath:/b?c=d")]),
    get("plain: host is set", "plain", "/a", &[("x-authz", "set=host:b.example")]),
    get("plain: method is set", "plain", "/a", &[("x-authz", "set=%3amethod:PUT")]),
    get("plain: query is changed", "plain", "/a?b=1&c=2", &[("x-authz", "query=b:3 query=d:4 unquery=c")]),
    get("plain: query is emptied", "plain", "/a?b=1", &[("x-authz", "unquery=b")]),
    get(
        "plain: response headers",
        "plain",
        "/",
        &[
            (
                "x-authz",
                "response=x-r:1 response-set=x-s:2 response-absent=server:no response-replace=x-t:3 response-absent=x-u:4",
            ),
            ("x-reply", "header=x-r:0 header=x-s:0 header=x-t:0"),
        ],
    ),
    get("plain: metadata", "plain", "/", &[("x-authz", "meta=k:v")]),
    get("allow: service fails", "allow", "/", &[("x-authz", "fail")]),
    get("allow: refusal", "allow", "/", &[("x-authz", "deny")]),
    get("allow: service is in error", "allow", "/", &[("x-authz", "error=500")]),
    get("status: service fails", "status", "/", &[("x-authz", "fail")]),
    get("dead: no service", "dead", "/", &[]),
    get("slow: no answer in time", "slow", "/", &[("x-authz", "hang")]),
    post("body: whole", "body", "/", &[]),
    get("body: none", "body", "/", &[]),
    post("body: too long", "body", "/less", &[]),
    post("body: never", "body", "/never", &[]),
    post("body: refusal", "body", "/", &[("x-authz", "deny body=no")]),
    Case { body: b"\xffabc", ..post("body: no text", "body", "/", &[]) },
    post("partial: more than told", "partial", "/", &[]),
    Case { body: b"abcd", ..post("partial: as much", "partial", "/", &[]) },
    Case { body: b"\xffb", ..post("partial: less", "partial", "/", &[]) },
    get("raw: headers", "raw", "/", &[("x-a", "1"), ("x-a", "2"), ("x-authz", "set=x-b:1")]),
    get("chosen: headers", "chosen", "/", &[("x-a", "1"), ("x-ab", "2"), ("x-b", "3")]),
    get("shadow: consent", "shadow", "/", &[("x-authz", "set=x-a:1")]),
    get("shadow: refusal", "shadow", "/", &[("x-authz", "deny=401 header=x-a:b body=no")]),
    get("shadow: service fails", "shadow", "/", &[("x-authz", "fail")]),
    get("never: enabled", "never", "/", &[("x-authz", "deny")]),
    get("denied if off", "denied-if-off", "/", &[]),
    get("metadata: none", "metadata", "/", &[("x-authz", "deny")]),
    get("rules: ignored", "rules", "/", &[("x-authz", "set=x-no-a:2 set=x-yes:1 remove=x-no-b"), ("x-no-b", "1")]),
    get("strict: refused", "strict", "/", &[("x-authz", "set=x-a:1")]),
    get("strict: refused removal", "strict", "/", &[("x-authz", "remove=x-a"), ("x-a", "1")]),
    get("strict: nothing asked for", "strict", "/", &[]),
    get("cut: body", "cut", "/", &[("x-authz", "deny body=longer")]),
    get("cut: metadata", "cut", "/", &[("x-authz", "meta=k:v")]),
    get("reroute: yes", "reroute", "/", &[("x-authz", "set=x-to:two")]),
    get("reroute: no", "not-rerouted", "/", &[("x-authz", "set=x-to:two")]),
    get(
        "http: consent",
        "http",
        "/p?a=1",
        &[("x-authz-reply", "empty"), ("x-a", "1"), ("authorization", "t"), ("cookie", "c=1")],
    ),
    post("http: a body is not told", "http", "/", &[("x-authz-reply", "empty")]),
    get("http: refusal", "http", "/", &[("x-authz-reply", "status=403 header=x-a:b header=location:/l bytes=5")]),
    get("http: redirect", "http", "/", &[("x-authz-reply", "status=302 header=location:/l empty")]),
    get("http: 201 is no consent", "http", "/", &[("x-authz-reply", "status=201 empty")]),
    get("http: service fails", "http", "/", &[("x-authz-reply", "status=500 empty")]),
    get("http: service breaks off", "http", "/", &[("x-authz-reply", "reset")]),
    get("http allow: service fails", "http-allow", "/", &[("x-authz-reply", "status=503 empty")]),
    get(
        "http lists: consent",
        "http-lists",
        "/p",
        &[
            (
                "x-authz-reply",
                "empty header=x-user:ann header=x-group:g header=x-fine:f header=x-note:n header=x-envoy-auth-headers-to-remove:x-b,x-c",
            ),
            ("x-group", "f"),
            ("x-user", "eve"),
            ("x-a", "1"),
            ("x-b", "2"),
            ("x-c", "3"),
        ],
    ),
    get("http lists: nothing to append to", "http-lists", "/p", &[("x-authz-reply", "empty header=x-group:g")]),
    get(
        "http lists: refusal",
        "http-lists",
        "/p",
        &[("x-authz-reply", "status=401 header=x-note:n header=x-other:o header=www-authenticate:Basic bytes=5")],
    ),
    post("http body: told", "http-body", "/", &[("x-authz-reply", "empty")]),
    Case {
        body: b"012345678901234567890",
        ..post("http body: too long", "http-body", "/", &[("x-authz-reply", "empty")])
    },
    get("limits: ok", "limits", "/key", &[("x-limit", "header=x-r:1 request=x-q:2 limit=10:2:a:9:30")]),
    get("limits: over", "limits", "/key", &[("x-limit", "over header=x-r:1 body=slow+down request=x-q:2")]),
    get(
        "limits: over with a type",
        "limits",
        "/key",
        &[("x-limit", "over header=content-type:application/json body={}")],
    ),
    get("limits: nothing to ask", "limits", "/key", &[]),
    get("limits: of the host", "limits", "/", &[("x-limit", "over")]),
    get("limits: with the host's", "limits", "/with-host", &[("x-limit", "ok")]),
    get("limits: without the host's", "limits", "/ignore-host", &[("x-limit", "over")]),
    get("limits: another domain", "limits", "/domain", &[("x-limit", "ok")]),
    get("limits: own limits", "limits", "/own", &[("x-limit", "over")]),
    get("limits: service fails", "limits", "/key", &[("x-limit", "fail")]),
    grpc("limits: gRPC", "limits", &[("content-type", "application/grpc"), ("x-limit", "over body=no")]),
    get(
        "limits told: ok",
        "limits-told",
        "/",
        &[("x-limit", "limit=10:2:per-ip:9:30 limit=1000:3::2:300"), ("x-k", "k")],
    ),
    get("limits told: over", "limits-told", "/", &[("x-limit", "over limit=10:1:per-ip:0:30"), ("x-k", "k")]),
    grpc(
        "limits told: gRPC",
        "limits-told",
        &[("content-type", "application/grpc"), ("x-limit", "over"), ("x-k", "k")],
    ),
    get("limits deny: service fails", "limits-deny", "/", &[("x-limit", "fail")]),
    get("limits deny: over", "limits-deny", "/", &[("x-limit", "over limit=10:1:a:0:30")]),
    get("limits deny: internal", "limits-deny", "/", &[("x-limit", "over"), ("x-envoy-internal", "true")]),
    get("limits filter: over", "limits-filter", "/", &[("x-limit", "over header=x-r:1")]),
];

/// What the HTTP server was asked.
fn asked(web: &Upstream, seen_before: &mut usize) -> Vec<String> {
    let all = web.seen();
    let mut lines = Vec::new();
    for seen in &all[*seen_before..] {
        lines.push(format!("asked: {} {} of {}", seen.method, seen.target, seen.authority));
        lines.push(format!("asked: body {:?}", String::from_utf8_lossy(&seen.body)));
        lines.extend(seen.headers.iter().map(|(name, value)| match name.as_str() {
            "x-request-id" => format!("asked: header {name}"),
            _ => format!("asked: header {name}: {value}"),
        }));
    }
    *seen_before = all.len();
    lines
}

#[tokio::test]
async fn services_are_asked_and_obeyed_as_by_envoy() {
    let (one, two, web) = (Upstream::start("one").await, Upstream::start("two").await, Upstream::start("web").await);
    let service = AskedService::start().await;
    let closed = outrigger_tests::tcp::ClosedPort::take();
    let clusters = [
        cluster("one", &[one.port()]),
        cluster("two", &[two.port()]),
        cluster("web", &[web.port()]),
        http2_cluster("asked", &[service.port()]),
        http2_cluster("dead", &[closed.port()]),
    ];
    let listeners: Vec<String> = CHAINS.iter().map(Chain::listener).collect();
    let bootstrap = bootstrap(&listeners, &clusters);
    let mut subject = Side::start(proxy::program(), &bootstrap, CHAINS).await;
    let mut envoy = Side::start(proxy::envoy(), &bootstrap, CHAINS).await;
    let only = std::env::var("ONLY_CASE").unwrap_or_default();
    let (mut report, mut before) = (String::new(), 0);
    for case in CASES.iter().filter(|case| case.name.contains(&only)) {
        let mut sides = Vec::new();
        for side in [&mut envoy, &mut subject] {
            // What a service is told that nobody waits for any longer may come late.
            service.take_told();
            let mut lines = side.observe(case).await;
            lines.extend(service.take_told());
            lines.extend(asked(&web, &mut before));
            sides.push(lines);
        }
        let (seen, expected) = (sides.pop().unwrap_or_default(), sides.pop().unwrap_or_default());
        compare(&mut report, INTENDED, case.name, expected, seen);
    }
    if only.is_empty() {
        for prefix in [
            "http.plain.ext_authz.",
            "http.dead.ext_authz.",
            "http.shadow.ext_authz.",
            "cluster.one.ext_authz.",
            "cluster.one.ratelimit.",
        ] {
            compare_stats(&mut report, INTENDED, prefix, &envoy, &subject).await;
        }
    }
    assert!(report.is_empty(), "not the same as with Envoy:\n{report}");
}

/// A listener whose only filter before the router is this one, with further fields of the filter chain.
fn listener_of(kind: &str, fields: &str, more: &str) -> String {
    let types = "type.googleapis.com/envoy.extensions.filters";
    let manager = format!(
        "{{ name: manager, typed_config: {{ \
         '@type': {types}.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: in, \
         http_filters: [{{ name: asks, typed_config: {{ '@type': {types}.http.{kind}, {fields} }} }}, \
         {{ name: router, typed_config: {{ '@type': {types}.http.router.v3.Router }} }}], \
         route_config: {{ name: local, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{}] }}] }} }} }}",
        all_to("one")
    );
    listener("in", &[chain(&manager, more)], "")
}

const ASKS: &str = "transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: asked }, timeout: 60s }, \
                    include_peer_certificate: true, include_tls_session: true";

/// What the service is told by `program` of clients with these identities.
async fn told_of_tls(
    program: PathBuf,
    authority: &Authority,
    server: &Identity,
    clients: &[Option<&Identity>],
) -> Vec<String> {
    let (one, service) = (Upstream::start("one").await, AskedService::start().await);
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
    server.write(directory.path(), "server");
    let tls = ", transport_socket: { name: envoy.transport_sockets.tls, typed_config: { \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         common_tls_context: { tls_certificates: [{ certificate_chain: { filename: '$dir/server.crt' }, \
         private_key: { filename: '$dir/server.key' } }], \
         validation_context: { trusted_ca: { filename: $dir/ca.pem } } } } }";
    let listener = listener_of(AUTHZ, ASKS, tls);
    let clusters = [cluster("one", &[one.port()]), http2_cluster("asked", &[service.port()])];
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_in(directory, &bootstrap(&[listener], &clusters), settings).await;
    let address = proxy.listener("in").await;
    let mut told = Vec::new();
    for client in clients {
        let stream = certificates::connect(address, "server", authority.client(&[], *client)).await.unwrap();
        let response = h1::Client::over(Box::new(stream)).get("/").await;
        assert_eq!(response.status, 200);
        told.extend(service.take_told());
    }
    told
}

#[tokio::test]
async fn both_ends_of_a_tls_connection_are_told_as_by_envoy() {
    let authority = Authority::new();
    let web = authority.issue_workload("spiffe://cluster.local/ns/shop/sa/web", &["web.example.com"], "web workload");
    let named = authority.issue(&["client.example.com"]);
    let workload = authority.issue_workload("spiffe://cluster.local/ns/shop/sa/server", &["server"], "server");
    for server in [&authority.issue(&["server"]), &workload] {
        let clients = [None, Some(&web), Some(&named)];
        let expected = told_of_tls(proxy::envoy(), &authority, server, &clients).await;
        let seen = told_of_tls(proxy::program(), &authority, server, &clients).await;
        let mut report = String::new();
        compare(&mut report, &[], "tls", expected, seen.clone());
        assert!(report.is_empty(), "not the same as with Envoy:\n{report}");
        assert!(
            seen.iter().any(|line| line.contains("principal \"spiffe://cluster.local/ns/shop/sa/web\"")),
            "{seen:?}"
        );
        assert!(seen.iter().any(|line| line == "authz: session Some(\"server\")"), "{seen:?}");
    }
}

#[tokio::test]
async fn a_call_ends_with_its_request() {
    let (one, service) = (Upstream::start("one").await, AskedService::start().await);
    let clusters = [cluster("one", &[one.port()]), http2_cluster("asked", &[service.port()])];
    let proxy = Proxy::start(&bootstrap(&[listener_of(AUTHZ, ASKS, "")], &clusters)).await;
    let mut client = h1::Client::connect(proxy.listener("in").await).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nx-authz: hang\r\n\r\n").await;
    proxy.wait_stat("cluster.asked.upstream_rq_active", |active| active == 1).await;
    drop(client);
    proxy.wait_stat("cluster.asked.upstream_rq_active", |active| active == 0).await;
    proxy.wait_stat("http.in.downstream_rq_active", |active| active == 0).await;
    assert_eq!(one.counts().requests, 0);
    // The connection to the service is still good.
    assert_eq!(h1::get(proxy.listener("in").await, "/").await.status, 200);
    proxy.stat_is("cluster.asked.upstream_rq_200", 1).await;
}

/// What a rate limit service is asked by `program` when a request is over.
async fn counted_at_the_end(program: PathBuf) -> Vec<String> {
    let (one, service) = (Upstream::start("one").await, AskedService::start().await);
    let fields = "domain: d, timeout: 5s, rate_limit_service: { transport_api_version: V3, \
        grpc_service: { envoy_grpc: { cluster_name: asked } } }, rate_limits: [{ apply_on_stream_done: true, \
        hits_addend: { format: '%RESPONSE_CODE%' }, actions: [{ generic_key: { descriptor_value: end } }] }]";
    let clusters = [cluster("one", &[one.port()]), http2_cluster("asked", &[service.port()])];
    let bootstrap = bootstrap(&[listener_of(LIMIT, fields, "")], &clusters);
    let proxy = Proxy::start_with(&bootstrap, Settings { program, ..Settings::default() }).await;
    assert_eq!(h1::get(proxy.listener("in").await, "/").await.status, 200);
    eventually("a question", async || match service.take_told() {
        told if told.is_empty() => Err("nothing was asked".to_owned()),
        told => Ok(told),
    })
    .await
}

#[tokio::test]
async fn a_request_counts_when_it_is_over() {
    let seen = counted_at_the_end(proxy::program()).await;
    assert!(seen.iter().any(|line| line.contains("generic_key=end") && line.contains("200")), "{seen:?}");
    assert_eq!(seen, counted_at_the_end(proxy::envoy()).await);
}

#[tokio::test]
async fn a_service_that_is_not_there_refuses() {
    let one = Upstream::start("one").await;
    let closed = outrigger_tests::tcp::ClosedPort::take();
    let clusters = [cluster("one", &[one.port()]), http2_cluster("asked", &[closed.port()])];
    let proxy = Proxy::start(&bootstrap(&[listener_of(AUTHZ, ASKS, "")], &clusters)).await;
    let address = proxy.listener("in").await;
    assert_eq!(h1::get(address, "/").await.status, 403);
    assert_eq!(one.counts().requests, 0);
    proxy.stat_is("http.in.ext_authz.error", 1).await;
    // A cluster that nobody has announced is no reason to let anybody in.
    let unknown = ASKS.replace("cluster_name: asked", "cluster_name: unknown");
    let proxy = Proxy::start(&bootstrap(&[listener_of(AUTHZ, &unknown, "")], &[cluster("one", &[one.port()])])).await;
    assert_eq!(h1::get(proxy.listener("in").await, "/").await.status, 403);
    assert_eq!(one.counts().requests, 0);
}
