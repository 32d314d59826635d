//! HTTP filters: the same chains, routes and requests for Envoy and for the proxy under test. What clients, upstreams, access
//! logs and stats show must be the same, except for the differences listed in [`INTENDED`].
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::time::{Duration, Instant};

use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster, http2_cluster, routes};
use outrigger_tests::side_by_side::{
    Case, Chain, Headers, Intended, Side, chain_of, compare, compare_stats, get, post,
};
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy};

/// Differences that are meant, by case and the thing that differs; each with its reason.
const INTENDED: Intended = &[
    (
        "*",
        "header x-forwarded-for: ",
        "for a client on loopback Envoy names an address of the machine; we name the client",
    ),
    ("query: present", "target", "Envoy sorts parameters; we leave them where they are"),
    ("query: z and empty parts", "target", "parameters that no mutation names stay as they are, in their order"),
    ("query: escapes", "target", "Envoy decodes escapes and so makes other parameters of them; we leave them alone"),
    ("query: order", "target", "Envoy sorts parameters; we leave them where they are"),
    ("buffer: too much", "connection: close", "the body is read to its end, so the connection stays in step"),
];

const fn call(name: &'static str, target: &'static str, headers: Headers, body: &'static [u8]) -> Case {
    Case { name, listener: "grpc", method: "POST", target, headers, body, grpc: true }
}

const GRPC_OK: &str = "header=content-type:application/grpc header=grpc-status:0 bytes=100 trailers";

const CASES: &[Case] = &[
    // Faults.
    get("fault: abort", "abort", "/", &[]),
    get("fault: abort of a downstream cluster", "abort", "/", &[("x-envoy-downstream-service-cluster", "a.b")]),
    get("fault: abort by the route's settings", "abort", "/route", &[]),
    get("fault: none by the route's settings", "abort", "/none", &[]),
    Case { name: "fault: abort of HEAD", method: "HEAD", ..get("", "abort", "/", &[]) },
    Case { grpc: true, ..post("fault: abort of gRPC", "abort", "/", &[("content-type", "application/grpc")]) },
    get("fault: gRPC status", "abort-grpc", "/", &[]),
    Case {
        grpc: true,
        ..post("fault: gRPC status of gRPC", "abort-grpc", "/", &[("content-type", "application/grpc")])
    },
    get("fault: nothing in the headers", "by-header", "/", &[]),
    get("fault: status by header", "by-header", "/", &[("x-envoy-fault-abort-request", "503")]),
    get("fault: bad status by header", "by-header", "/", &[("x-envoy-fault-abort-request", "600")]),
    get("fault: gRPC status by header", "by-header", "/", &[("x-envoy-fault-abort-grpc-request", "5")]),
    get(
        "fault: no share by header",
        "by-header",
        "/",
        &[("x-envoy-fault-abort-request", "503"), ("x-envoy-fault-abort-request-percentage", "0")],
    ),
    get(
        "fault: bad share by header",
        "by-header",
        "/",
        &[("x-envoy-fault-abort-request", "503"), ("x-envoy-fault-abort-request-percentage", "x")],
    ),
    get("fault: delay by header", "by-header", "/", &[("x-envoy-fault-delay-request", "100")]),
    get(
        "fault: delay and abort by header",
        "by-header",
        "/",
        &[("x-envoy-fault-delay-request", "100"), ("x-envoy-fault-abort-request", "418")],
    ),
    get("fault: bad delay by header", "by-header", "/", &[("x-envoy-fault-delay-request", "abc")]),
    get("fault: not for this node", "narrow", "/", &[("x-f", "1")]),
    get("fault: for this node", "narrow", "/", &[("x-f", "1"), ("x-envoy-downstream-service-node", "nn")]),
    get("fault: not without the header", "narrow", "/", &[("x-envoy-downstream-service-node", "nn")]),
    get("fault: not for this cluster", "narrow", "/two", &[("x-f", "1"), ("x-envoy-downstream-service-node", "nn")]),
    get("fault: runtime", "runtime", "/", &[]),
    get("fault: runtime of a downstream cluster", "runtime", "/", &[("x-envoy-downstream-service-cluster", "cl")]),
    get("fault: limit", "overflow", "/", &[]),
    // Header mutations.
    get("mutation: all kinds", "mutation", "/", &[("x-gone", "1"), ("x-bye-1", "2"), ("x-over", "old"), ("x-v", "v")]),
    get("mutation: response", "mutation", "/", &[("x-reply", "header=x-gone:1 header=x-bye-1:2 header=x-v:up")]),
    get("mutation: trailers", "mutation", "/", &[("x-reply", "chunked trailers")]),
    get("mutation: of all levels", "mutation", "/levels", &[]),
    get("mutation: most specific wins", "specific", "/levels", &[]),
    get("mutation: of direct responses", "mutation", "/direct", &[]),
    get("query: none before", "query", "/p", &[("x-v", "v 1")]),
    get("query: present", "query", "/p?a=1&b=2&b=3&cc=4&gone=5&gone", &[]),
    get("query: z and empty parts", "query", "/p?z&&=v", &[]),
    get("query: order", "query", "/p?z=1&y=2", &[]),
    get("query: escapes", "query", "/p?k=a%26b", &[]),
    // Buffers.
    post("buffer: fits", "buffer", "/", &[]),
    post("buffer: too much", "buffer", "/small", &[]),
    post("buffer: off", "buffer", "/off", &[]),
    get("buffer: nothing", "buffer", "/", &[]),
    // Headers to metadata.
    get("metadata: missing", "to-metadata", "/", &[]),
    get("metadata: present", "to-metadata", "/", &[("x-a", "1"), ("x-a", "2"), ("x-n", "1.5"), ("x-b", "aGk=")]),
    get("metadata: empty", "to-metadata", "/", &[("x-a", "")]),
    get("metadata: wrong types", "to-metadata", "/", &[("x-n", "zz"), ("x-b", "!!"), ("x-p", "!!")]),
    get("metadata: protobuf", "to-metadata", "/", &[("x-p", "GgNhYmM="), ("x-a", "q\"\\")]),
    get("metadata: rewritten", "to-metadata", "/", &[("x-r", "/cluster12/foo")]),
    get("metadata: not rewritten", "to-metadata", "/", &[("x-r", "other")]),
    get("metadata: cookie", "to-metadata", "/", &[("cookie", "a=b; ck=val; d=e")]),
    get("metadata: quoted cookie", "to-metadata", "/", &[("cookie", "ck=\"q v\"")]),
    get("metadata: fixed, and of the response", "to-metadata", "/", &[("x-fix", "z"), ("x-reply", "header=x-res:v1")]),
    get("metadata: of the route", "to-metadata", "/route", &[("x-a", "route")]),
    // Set metadata and filter state.
    get("set metadata", "set-metadata", "/", &[]),
    get("set metadata: of the route", "set-metadata", "/route", &[]),
    get("set filter state", "filter-state", "/", &[("x-v", "\"q\"")]),
    get("set filter state: skipped", "filter-state", "/", &[("x-2", "two")]),
    get("set filter state: of all levels", "filter-state", "/route", &[]),
    // Forged requests.
    post("csrf: no origin", "csrf", "/", &[("host", "localhost")]),
    post("csrf: own origin", "csrf", "/", &[("host", "localhost"), ("origin", "http://localhost")]),
    post("csrf: own host as origin", "csrf", "/", &[("host", "localhost"), ("origin", "localhost")]),
    post("csrf: referer", "csrf", "/", &[("host", "localhost"), ("referer", "http://localhost/x?y")]),
    post("csrf: referer with a port", "csrf", "/", &[("host", "localhost"), ("referer", "http://localhost:80/x")]),
    post("csrf: null", "csrf", "/", &[("host", "localhost"), ("origin", "null"), ("referer", "http://localhost/")]),
    post("csrf: additional origin", "csrf", "/", &[("host", "localhost"), ("origin", "https://allowed")]),
    post("csrf: other origin", "csrf", "/", &[("host", "localhost"), ("origin", "https://other:443")]),
    post("csrf: shadow", "csrf", "/shadow", &[("host", "localhost"), ("origin", "https://other:443")]),
    post("csrf: off", "csrf", "/off", &[("host", "localhost"), ("origin", "https://other:443")]),
    get("csrf: safe method", "csrf", "/", &[("host", "localhost"), ("origin", "https://other:443")]),
    // Health checks.
    get("health: answered", "health", "/hc", &[]),
    get("health: not one", "health", "/other", &[]),
    Case { grpc: true, ..post("health: gRPC", "health", "/hc", &[("content-type", "application/grpc")]) },
    get("health: cluster is empty", "health-empty", "/hc", &[]),
    get("health: no such cluster", "health-unknown", "/hc", &[]),
    get("health: passed", "health-pass", "/hc", &[("x-reply", "status=503 header=x-envoy-degraded:1 empty")]),
    get("health: cached", "health-pass", "/hc", &[]),
    get("health: not cached", "health-pass", "/other", &[]),
    // gRPC stats.
    call(
        "grpc: one message",
        "/p.S/M",
        &[("content-type", "application/grpc"), ("x-reply", GRPC_OK)],
        b"\0\0\0\0\x01x",
    ),
    call(
        "grpc: two messages",
        "/p.S/M",
        &[("content-type", "application/grpc+proto"), ("x-reply", GRPC_OK)],
        b"\0\0\0\0\x01x\0\0\0\0\0",
    ),
    call(
        "grpc: failed",
        "/p.S/Other",
        &[
            ("content-type", "application/grpc"),
            ("x-reply", "header=content-type:application/grpc header=grpc-status:5 empty"),
        ],
        b"\0\0\0\0\x01x",
    ),
    call("grpc: not gRPC", "/p.S/M", &[("content-type", "text/plain"), ("x-reply", GRPC_OK)], b"\0\0\0\0\x01x"),
    call("grpc: not a method", "/p", &[("content-type", "application/grpc"), ("x-reply", GRPC_OK)], b"\0\0\0\0\x01x"),
    call("grpc: no endpoint", "/empty.S/M", &[("content-type", "application/grpc")], b"\0\0\0\0\x01x"),
];

const CHAINS: &[Chain] = &[
    Chain {
        log: " %DYNAMIC_METADATA(fault)% %DYNAMIC_METADATA(fault:a:b)%",
        stats: "http.abort.fault.",
        ..chain_of(
            "abort",
            &[(
                "fault",
                "fault.v3.HTTPFault",
                "abort: { http_status: 418, percentage: { numerator: 100 } }, filter_metadata: { a: { b: 1, c: [x, null] } }",
            )],
            "{ match: { path: /route }, route: { cluster: one }, typed_per_filter_config: { fault: { \
             '@type': $T/fault.v3.HTTPFault, abort: { http_status: 419, percentage: { numerator: 1000000, denominator: MILLION }, \
             response_body: 'of the route' } } } }, \
             { match: { path: /none }, route: { cluster: one }, typed_per_filter_config: { fault: { '@type': $T/fault.v3.HTTPFault } } }, ",
        )
    },
    chain_of(
        "abort-grpc",
        &[(
            "fault",
            "fault.v3.HTTPFault",
            "abort: { grpc_status: 7, percentage: { numerator: 100 }, response_body: oh }",
        )],
        "",
    ),
    Chain {
        log: " %RESPONSE_FLAGS_LONG% %DYNAMIC_METADATA(fault)%",
        stats: "http.by-header.fault.",
        ..chain_of(
            "by-header",
            &[(
                "fault",
                "fault.v3.HTTPFault",
                "abort: { header_abort: {}, percentage: { numerator: 100 } }, \
                 delay: { header_delay: {}, percentage: { numerator: 100 } }, \
                 response_rate_limit: { header_limit: {}, percentage: { numerator: 100 } }",
            )],
            "",
        )
    },
    Chain {
        stats: "http.narrow.fault.",
        ..chain_of(
            "narrow",
            &[(
                "fault",
                "fault.v3.HTTPFault",
                "abort: { http_status: 418, percentage: { numerator: 100 } }, upstream_cluster: one, \
                 headers: [{ name: x-f, present_match: true }], downstream_nodes: [nn]",
            )],
            "{ match: { path: /two }, route: { cluster: two } }, ",
        )
    },
    chain_of(
        "runtime",
        &[(
            "fault",
            "fault.v3.HTTPFault",
            "abort: { http_status: 418, percentage: {} }, abort_percent_runtime: my.percent",
        )],
        "",
    ),
    Chain {
        stats: "http.overflow.fault.",
        ..chain_of(
            "overflow",
            &[(
                "fault",
                "fault.v3.HTTPFault",
                "abort: { http_status: 418, percentage: { numerator: 100 } }, max_active_faults: 0",
            )],
            "",
        )
    },
    Chain {
        host: LEVELS,
        ..chain_of("mutation", &[("hm", "header_mutation.v3.HeaderMutation", MUTATIONS)], LEVEL_ROUTES)
    },
    Chain {
        host: LEVELS,
        ..chain_of(
            "specific",
            &[("hm", "header_mutation.v3.HeaderMutation", "most_specific_header_mutations_wins: true")],
            LEVEL_ROUTES,
        )
    },
    chain_of("query", &[("hm", "header_mutation.v3.HeaderMutation", QUERY)], ""),
    Chain {
        stats: "http.buffer.downstream_rq_too_large",
        ..chain_of(
            "buffer",
            &[("b", "buffer.v3.Buffer", "max_request_bytes: 10")],
            "{ match: { path: /off }, route: { cluster: one }, typed_per_filter_config: { b: { '@type': $T/buffer.v3.BufferPerRoute, disabled: true } } }, \
         { match: { path: /small }, route: { cluster: one }, typed_per_filter_config: { b: { '@type': $T/buffer.v3.BufferPerRoute, buffer: { max_request_bytes: 9 } } } }, ",
        )
    },
    Chain {
        log: " %DYNAMIC_METADATA(ns)% %DYNAMIC_METADATA(envoy.filters.http.header_to_metadata)% %DYNAMIC_METADATA(ns:a)% %DYNAMIC_METADATA(ns:a):2% %DYNAMIC_METADATA(ns:num)%",
        stats: "http_filter_name.sp.",
        ..chain_of(
            "to-metadata",
            &[("h2m", "header_to_metadata.v3.Config", RULES)],
            "{ match: { path: /route }, route: { cluster: one }, typed_per_filter_config: { h2m: { '@type': $T/header_to_metadata.v3.Config, \
             request_rules: [{ header: x-a, on_header_present: { metadata_namespace: ns, key: of-route } }] } } }, ",
        )
    },
    Chain {
        log: " %DYNAMIC_METADATA(aa)% %DYNAMIC_METADATA(bb)% %DYNAMIC_METADATA(cc)%",
        stats: "http.set-metadata.set_metadata.",
        ..chain_of(
            "set-metadata",
            &[
                (
                    "s1",
                    "set_metadata.v3.Config",
                    "metadata_namespace: aa, value: { k: 1, l: [1], s: { x: 1 }, t: txt }",
                ),
                (
                    "s2",
                    "set_metadata.v3.Config",
                    "metadata_namespace: aa, value: { k: [2], l: [2], s: { yy: 2 }, t: { z: 1 } }, metadata: [\
                     { metadata_namespace: bb, value: { v: 1 } }, { metadata_namespace: bb, value: { v: 2 } }, \
                     { metadata_namespace: cc, value: { v: 1, l: [a] } }, \
                     { metadata_namespace: cc, value: { v: null, l: [b], m: {} }, allow_overwrite: true }]",
                ),
            ],
            "{ match: { path: /route }, route: { cluster: one }, typed_per_filter_config: { s1: { '@type': $T/set_metadata.v3.Config, \
             metadata_namespace: aa, value: { r: 1 } } } }, ",
        )
    },
    Chain {
        log: " %FILTER_STATE(k1)% %FILTER_STATE(k1:PLAIN)% %FILTER_STATE(k1:PLAIN):3% %FILTER_STATE(k2:PLAIN)% %FILTER_STATE(k3:TYPED)%",
        host: "typed_per_filter_config: { fs: { '@type': $T/set_filter_state.v3.Config, on_request_headers: [\
               { object_key: k1, factory_key: envoy.string, format_string: { text_format_source: { inline_string: host } } }, \
               { object_key: k3, factory_key: envoy.string, format_string: { text_format_source: { inline_string: host } } }] } }",
        ..chain_of(
            "filter-state",
            &[(
                "fs",
                "set_filter_state.v3.Config",
                "on_request_headers: [\
                 { object_key: k1, factory_key: envoy.string, format_string: { text_format_source: { inline_string: 'v %REQ(x-v)%' } } }, \
                 { object_key: k2, factory_key: envoy.string, skip_if_empty: true, format_string: { omit_empty_values: true, text_format_source: { inline_string: '%REQ(x-2)%' } } }]",
            )],
            "{ match: { path: /route }, route: { cluster: one }, typed_per_filter_config: { fs: { '@type': $T/set_filter_state.v3.Config, on_request_headers: [\
             { object_key: k1, factory_key: envoy.string, format_string: { text_format_source: { inline_string: route } } }] } } }, ",
        )
    },
    Chain {
        stats: "http.csrf.csrf.",
        ..chain_of(
            "csrf",
            &[(
                "c",
                "csrf.v3.CsrfPolicy",
                "filter_enabled: { default_value: { numerator: 100 } }, additional_origins: [{ exact: allowed }]",
            )],
            "{ match: { path: /shadow }, route: { cluster: one }, typed_per_filter_config: { c: { '@type': $T/csrf.v3.CsrfPolicy, \
             filter_enabled: { default_value: { numerator: 0 } }, shadow_enabled: { default_value: { numerator: 100 } } } } }, \
             { match: { path: /off }, route: { cluster: one }, typed_per_filter_config: { c: { '@type': $T/csrf.v3.CsrfPolicy, \
             filter_enabled: { default_value: { numerator: 0 } } } } }, ",
        )
    },
    chain_of(
        "health",
        &[(
            "hc",
            "health_check.v3.HealthCheck",
            "pass_through_mode: false, headers: [{ name: ':path', string_match: { exact: /hc } }], cluster_min_healthy_percentages: { one: { value: 50 }, empty: { value: 0 } }",
        )],
        "",
    ),
    chain_of(
        "health-empty",
        &[(
            "hc",
            "health_check.v3.HealthCheck",
            "pass_through_mode: false, cluster_min_healthy_percentages: { empty: { value: 1 } }",
        )],
        "",
    ),
    chain_of(
        "health-unknown",
        &[(
            "hc",
            "health_check.v3.HealthCheck",
            "pass_through_mode: false, cluster_min_healthy_percentages: { nowhere: { value: 1 } }",
        )],
        "",
    ),
    chain_of(
        "health-pass",
        &[(
            "hc",
            "health_check.v3.HealthCheck",
            "pass_through_mode: true, cache_time: 1000s, headers: [{ name: ':path', string_match: { exact: /hc } }]",
        )],
        "",
    ),
    Chain {
        log: " %FILTER_STATE(envoy.filters.http.grpc_stats)% %FILTER_STATE(envoy.filters.http.grpc_stats:PLAIN)% \
              %FILTER_STATE(envoy.filters.http.grpc_stats:FIELD:request_message_count)%",
        stats: "cluster.by-h2.grpc.",
        ..chain_of(
            "grpc",
            &[(
                "gs",
                "grpc_stats.v3.FilterConfig",
                "emit_filter_state: true, enable_upstream_stats: true, stats_for_all_methods: true, replace_dots_in_grpc_service_name: true",
            )],
            "{ match: { prefix: /empty }, route: { cluster: empty } }, { match: { prefix: / }, route: { cluster: by-h2 } }, ",
        )
    },
];

const MUTATIONS: &str = "mutations: { request_mutations: [{ remove: x-gone }, { remove_on_match: { key_matcher: { prefix: x-bye } } }, \
    { append: { header: { key: x-a, value: '%REQ(:path)% %PROTOCOL%' } } }, \
    { append: { header: { key: x-over, value: new }, append_action: OVERWRITE_IF_EXISTS } }, \
    { append: { header: { key: x-nothing, value: '' } } }, \
    { append: { header: { key: x-empty, value: '' }, keep_empty_value: true } }, \
    { append: { header: { key: X-Absent, value: '%REQ(x-v)%' }, append_action: ADD_IF_ABSENT } }, { remove: '' }, { remove: 'no name' }], \
    response_mutations: [{ remove: x-gone }, { remove_on_match: { key_matcher: { prefix: x-bye } } }, \
    { append: { header: { key: x-b, value: '%RESP(x-v)%!%REQ(:path)%' } } }], \
    response_trailers_mutations: [{ remove: x-checksum }, { append: { header: { key: x-added, value: 'v%RESPONSE_CODE%' } } }] }";

const LEVELS: &str = "typed_per_filter_config: { hm: { '@type': $T/header_mutation.v3.HeaderMutationPerRoute, mutations: { request_mutations: [\
    { append: { header: { key: x-order, value: host } } }] } } }";

const LEVEL_ROUTES: &str = "{ match: { path: /levels }, route: { cluster: one }, typed_per_filter_config: { hm: { \
    '@type': $T/header_mutation.v3.HeaderMutationPerRoute, mutations: { request_mutations: [{ append: { header: { key: x-order, value: route } } }] } } } }, \
    { match: { path: /direct }, direct_response: { status: 200, body: { inline_string: direct } } }, ";

const QUERY: &str = "mutations: { query_parameter_mutations: [\
    { append: { record: { key: a, value: new }, action: APPEND_IF_EXISTS_OR_ADD } }, \
    { append: { record: { key: b, value: over }, action: OVERWRITE_IF_EXISTS } }, \
    { append: { record: { key: cc, value: 'abs&=%%' }, action: ADD_IF_ABSENT } }, \
    { append: { record: { key: e, value: '%REQ(x-v)%' }, action: OVERWRITE_IF_EXISTS_OR_ADD } }, { remove: gone }] }";

const RULES: &str = "stat_prefix: sp, request_rules: [\
    { header: x-a, on_header_present: { metadata_namespace: ns, key: a }, on_header_missing: { metadata_namespace: ns, key: a, value: none } }, \
    { header: x-n, on_header_present: { metadata_namespace: ns, key: num, type: NUMBER }, remove: true }, \
    { header: x-p, on_header_present: { metadata_namespace: ns, key: p, type: PROTOBUF_VALUE, encode: BASE64 } }, \
    { header: x-b, on_header_present: { key: b, encode: BASE64 } }, \
    { header: x-r, on_header_present: { key: r, regex_value_rewrite: { pattern: { regex: '^/(cluster[0-9]+)/' }, substitution: '<\\1>' } } }, \
    { cookie: ck, on_header_present: { key: ck }, on_header_missing: { key: nock, value: '5', type: NUMBER } }, \
    { header: x-fix, on_header_present: { key: fix, value: fixed } }], \
    response_rules: [{ header: x-res, on_header_present: { key: res }, remove: true }]";

const RUNTIME: &str = "layered_runtime: { layers: [{ name: static, static_layer: { my.percent: 100, \
    fault.http.abort.http_status: 419, fault.http.cl.abort.abort_percent: 100, fault.http.cl.abort.http_status: 420 } }] }\n";

struct Upstreams {
    one: Upstream,
    two: Upstream,
}

impl Upstreams {
    async fn start() -> Self {
        Self { one: Upstream::start("one").await, two: Upstream::start("two").await }
    }

    fn bootstrap(&self) -> String {
        let listeners: Vec<String> = CHAINS.iter().map(Chain::listener).collect();
        let clusters = [
            cluster("one", &[self.one.port()]),
            cluster("two", &[self.two.port()]),
            cluster("empty", &[]),
            http2_cluster("by-h2", &[self.one.port()]),
        ];
        bootstrap(&listeners, &clusters) + RUNTIME
    }
}

#[tokio::test]
async fn filters_do_what_envoys_do() {
    let upstreams = Upstreams::start().await;
    let bootstrap = upstreams.bootstrap();
    let mut subject = Side::start(proxy::program(), &bootstrap, CHAINS).await;
    let mut envoy = Side::start(proxy::envoy(), &bootstrap, CHAINS).await;
    let only = std::env::var("ONLY_CASE").unwrap_or_default();
    let mut report = String::new();
    for case in CASES.iter().filter(|case| case.name.contains(&only)) {
        compare(&mut report, INTENDED, case.name, envoy.observe(case).await, subject.observe(case).await);
    }
    for chain in CHAINS.iter().filter(|chain| !chain.stats.is_empty()) {
        compare_stats(&mut report, INTENDED, chain.stats, &envoy, &subject).await;
    }
    for side in [&subject, &envoy] {
        side.proxy.admin_post("/healthcheck/fail").await;
    }
    for (name, target) in [("health: both fail by order", "/hc"), ("health: both tell of it", "/other")] {
        let case = get(name, "health", target, &[]);
        compare(&mut report, INTENDED, name, envoy.observe(&case).await, subject.observe(&case).await);
    }
    assert!(report.is_empty(), "not the same as with Envoy:\n{report}");
}

fn with_fault(settings: &str, more: &str) -> String {
    let fault = format!(
        "{{ name: fault, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, \
         {settings} }} }}, "
    );
    config::http("web", more).replace("http_filters: [", &format!("http_filters: [{fault}"))
}

#[tokio::test]
async fn responses_are_slowed_down() {
    let upstream = Upstream::start("one").await;
    let fault = with_fault(
        "response_rate_limit: { header_limit: {}, percentage: { numerator: 100 } }",
        &routes(&all_to("one")),
    );
    let listener = config::listener("web", &[chain(&fault, "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &[cluster("one", &[upstream.port()])])).await;
    let address = proxy.listener("web").await;
    let headers = [("x-envoy-fault-throughput-response", "100"), ("x-reply", "bytes=50000")];
    let start = Instant::now();
    let response = h1::Client::connect(address).await.request("GET", "/", &headers, b"").await;
    let took = start.elapsed();
    assert_eq!(response.body.len(), 50_000);
    // 50,000 bytes at 102,400 a second, less what is free at the start.
    assert!(took >= Duration::from_millis(350), "{took:?}");
    proxy.stat_is("http.web.fault.response_rl_injected", 1).await;
    proxy.wait_stat("http.web.fault.active_faults", |active| active == 0).await;
}

#[tokio::test]
async fn faults_at_one_time_are_limited_over_all_workers() {
    let upstream = Upstream::start("one").await;
    let fault = with_fault(
        "delay: { header_delay: {}, percentage: { numerator: 100 } }, max_active_faults: 1",
        &routes(&all_to("one")),
    );
    let listener = config::listener("web", &[chain(&fault, "")], "");
    let settings = Settings { concurrency: 2, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[listener], &[cluster("one", &[upstream.port()])]), settings).await;
    let address = proxy.listener("web").await;
    let slow = [("x-envoy-fault-delay-request", "600000")];
    let mut first = h1::Client::connect(address).await;
    first.send("GET / HTTP/1.1\r\nhost: a\r\nx-envoy-fault-delay-request: 600000\r\n\r\n").await;
    proxy.wait_stat("http.web.fault.active_faults", |active| active == 1).await;
    for _ in 0..8 {
        let response = h1::Client::connect(address).await.request("GET", "/", &slow, b"").await;
        assert_eq!(response.status, 200);
    }
    proxy.stat_is("http.web.fault.faults_overflow", 8).await;
    // Who waits in vain does not count for ever.
    drop(first);
    proxy.wait_stat("http.web.fault.active_faults", |active| active == 0).await;
}
