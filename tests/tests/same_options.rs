//! Options of connection managers, virtual hosts and routes: the same configuration and requests for Envoy and for the proxy
//! under test. What clients, upstreams and access logs see must be the same, except for what [`INTENDED`] lists.
//!
//! The first of these tables is `same_as_envoy.rs`; filters have theirs in `http_filters.rs`. Needs `envoy` on the PATH (or
//! `ENVOY_BIN`) and fails without it. `ONLY_CASE` chooses cases by a part of their names.

use std::path::PathBuf;

use outrigger_tests::certificates::Authority;
use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster, cluster_with, http, http2_cluster};
use outrigger_tests::side_by_side::{Case, Intended, chain_of, get, post, same};
use outrigger_tests::tcp::ClosedPort;
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy};

/// Differences that are meant, by case and the thing that differs; each with its reason. Users read of them in
/// `docs/http.md`.
const INTENDED: Intended = &[
    (
        "*",
        "header x-forwarded-for: ",
        "for a client on loopback Envoy names an address of the machine; we name the client",
    ),
    ("redirect: ", "logged 301", "the log tells the path as it came, not as the redirect would write it"),
    ("redirect: of HEAD", "transfer-encoding", "no content is announced where there is none"),
    ("mutation: of a direct response", "", "a code is told that is known, where Envoy tells 0"),
    (
        "mutation: of no route's reply",
        "logged 503",
        "a request that a kept connection did not take is sent on a new one",
    ),
    ("cors: preflight", "", "what answers a preflight exposes nothing (Fetch standard)"),
    ("path: escaped slashes", "logged", "the log tells the path as it came"),
    ("retry: 5xx of a reset", "x-envoy-attempt-count", RESENT),
    ("retry: 5xx of a reset", "logged 503", RESENT),
    ("retry: reset", "x-envoy-attempt-count", RESENT),
    ("retry: reset", "logged 503", RESENT),
];

const RESENT: &str = "a request that a kept connection did not take is sent on a new one, which is one more time";

/// What each log line tells besides code, flags and details.
const LOG: &str = " %PROTOCOL% %REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %REQ(:PATH)% %REQ(:AUTHORITY)% %UPSTREAM_CLUSTER% \
                   %ROUTE_NAME% %BYTES_RECEIVED% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %GRPC_STATUS% %RESP(X-CODE)% \
                   %REQ(X-FORWARDED-PROTO)% %VIRTUAL_CLUSTER_NAME%";

/// A listener: name, fields of its connection manager, fields of its virtual host, and its routes before the last one, which
/// leads everything to `one`.
type Options = (&'static str, &'static str, &'static str, &'static str);

const LISTENERS: &[Options] = &[
    ("redirects", "", "", REDIRECTS),
    ("tls-only", "", "require_tls: ALL", ""),
    ("outside", ", use_remote_address: true", "require_tls: EXTERNAL_ONLY", ""),
    ("mutations", "", MUTATED_HOST, MUTATIONS),
    ("rewrites", "", "", REWRITES),
    (
        "timeouts",
        ", use_remote_address: true, internal_address_config: { cidr_ranges: [{ address_prefix: 0.0.0.0, prefix_len: 0 }] }",
        "",
        TIMEOUTS,
    ),
    (
        "retries",
        ", use_remote_address: true, internal_address_config: { cidr_ranges: [{ address_prefix: 0.0.0.0, prefix_len: 0 }] }",
        "include_request_attempt_count: true, include_attempt_count_in_response: true",
        RETRIES,
    ),
    ("cors", "", "", CORS),
    ("cors-deprecated", "", CORS_OF_HOST, CORS_OF_ROUTES),
    (
        "odd",
        "",
        "retry_policy_typed_config: { '@type': type.googleapis.com/envoy.config.route.v3.RetryPolicy, retry_on: 5xx }",
        ODD,
    ),
    (
        "paths",
        ", normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD",
        "",
        "",
    ),
    ("slashes", ", path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT", "", ""),
    ("no-slashes", ", path_with_escaped_slashes_action: REJECT_REQUEST", "", ""),
    (
        "limits",
        ", common_http_protocol_options: { max_headers_count: 12, headers_with_underscores_action: DROP_HEADER }, max_request_headers_kb: 4",
        "",
        "",
    ),
    ("ports", ", strip_any_host_port: true", "", ""),
    ("dots", ", strip_trailing_host_dot: true", "", ""),
    ("names", ", server_name: front, server_header_transformation: OVERWRITE, via: front", "", ""),
    ("if-absent", ", server_name: front, server_header_transformation: APPEND_IF_ABSENT", "", ""),
    (
        "pass-server",
        ", server_header_transformation: PASS_THROUGH, preserve_external_request_id: true, always_set_request_id_in_response: true, generate_request_id: false",
        "",
        "",
    ),
    ("hops", ", use_remote_address: true, xff_num_trusted_hops: 1", "", ""),
    ("inner", ", use_remote_address: false, xff_num_trusted_hops: 1, skip_xff_append: true", "", ""),
    ("scheme", ", scheme_header_transformation: { scheme_to_overwrite: https }", "", ""),
    (
        "scheme-outside",
        ", use_remote_address: true, scheme_header_transformation: { scheme_to_overwrite: https }",
        "",
        "",
    ),
    ("casing", ", http_protocol_options: { header_key_format: { proper_case_words: {} } }", "", ""),
    ("continued", ", proxy_100_continue: true", "", ""),
    (
        "upgrades",
        ", upgrade_configs: [{ upgrade_type: websocket }]",
        "",
        "{ match: { prefix: /off }, route: { cluster: one, upgrade_configs: [{ upgrade_type: websocket, enabled: false }] } },",
    ),
    (
        "policies",
        "",
        "virtual_clusters: [{ name: users, headers: [{ name: ':path', string_match: { prefix: /users } }] }]",
        POLICIES,
    ),
];

const REDIRECTS: &str = "\
    { match: { path: /all }, redirect: { host_redirect: new.example, https_redirect: true, port_redirect: 8443, \
      path_redirect: '/new?with=query', response_code: SEE_OTHER } }, \
    { match: { prefix: /port }, redirect: { port_redirect: 9000 } }, \
    { match: { prefix: /scheme }, redirect: { scheme_redirect: ftp, response_code: TEMPORARY_REDIRECT } }, \
    { match: { prefix: /prefix }, redirect: { prefix_rewrite: / } }, \
    { match: { prefix: /regex }, redirect: { regex_rewrite: { pattern: { regex: '/regex/([a-z]+)/' }, substitution: '/of/\\1/' } } }, \
    { match: { prefix: /strip }, redirect: { path_redirect: /bare, strip_query: true } }, \
    { match: { prefix: /keep }, redirect: { path_redirect: /kept } }, \
    { match: { prefix: /headers }, redirect: { host_redirect: h.example }, response_headers_to_add: [{ header: { key: x-code, value: moved } }] },";

const MUTATED_HOST: &str = "request_headers_to_add: [{ header: { key: x-order, value: host } }], request_headers_to_remove: [x-host-drops], \
    response_headers_to_add: [{ header: { key: x-order, value: host } }], response_headers_to_remove: [x-secret]";

const MUTATIONS: &str = "\
    { match: { prefix: /append }, route: { cluster: one }, request_headers_to_add: [ \
        { header: { key: x-a, value: new }, append_action: APPEND_IF_EXISTS_OR_ADD }, \
        { header: { key: x-b, value: new }, append_action: ADD_IF_ABSENT }, \
        { header: { key: x-c, value: new }, append_action: OVERWRITE_IF_EXISTS_OR_ADD }, \
        { header: { key: x-d, value: new }, append_action: OVERWRITE_IF_EXISTS }, \
        { header: { key: x-order, value: route } }], \
      response_headers_to_add: [ \
        { header: { key: x-a, value: new }, append_action: APPEND_IF_EXISTS_OR_ADD }, \
        { header: { key: x-b, value: new }, append_action: ADD_IF_ABSENT }, \
        { header: { key: x-c, value: new }, append_action: OVERWRITE_IF_EXISTS_OR_ADD }, \
        { header: { key: x-d, value: new }, append_action: OVERWRITE_IF_EXISTS }, \
        { header: { key: x-order, value: route } }] }, \
    { match: { prefix: /empty }, route: { cluster: one }, request_headers_to_add: [ \
        { header: { key: x-kept, value: '%REQ(X-NOT-THERE)%' }, keep_empty_value: true }, \
        { header: { key: x-dropped, value: '%REQ(X-NOT-THERE)%' } }] }, \
    { match: { prefix: /remove }, route: { cluster: one }, request_headers_to_remove: [x-drop, x-other], \
      response_headers_to_remove: [x-gone, content-type] }, \
    { match: { prefix: /formats }, route: { cluster: one }, name: formats, request_headers_to_add: [ \
        { header: { key: x-f1, value: '%REQ(X-IN?X-OTHER):3%' } }, \
        { header: { key: x-f2, value: '%REQ(:METHOD)% %REQ(:PATH)% %REQ(:AUTHORITY)% %REQ(:SCHEME)%' } }, \
        { header: { key: x-f3, value: '%PROTOCOL% %ROUTE_NAME% %UPSTREAM_CLUSTER%' } }, \
        { header: { key: x-f4, value: '%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%' } }, \
        { header: { key: x-f5, value: '100%%' } }], \
      response_headers_to_add: [ \
        { header: { key: x-r1, value: '%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%' } }, \
        { header: { key: x-r2, value: '%RESP(X-UP)% %RESP(X-NOT?X-UP):2%' } }, \
        { header: { key: x-r3, value: '%REQ(X-IN)%' } }] }, \
    { match: { prefix: /pseudo }, route: { cluster: one }, request_headers_to_add: [ \
        { header: { key: x-kind, value: 'a, b' } }] }, \
    { match: { prefix: /said }, direct_response: { status: 200, body: { inline_string: said } }, \
      response_headers_to_add: [{ header: { key: x-code, value: '%RESPONSE_CODE%' } }, { header: { key: content-type, value: text/html }, append_action: OVERWRITE_IF_EXISTS_OR_ADD }] },";

const REWRITES: &str = "\
    { match: { prefix: /prefix/ }, route: { cluster: one, prefix_rewrite: / } }, \
    { match: { path: /exact }, route: { cluster: one, prefix_rewrite: '/other?fixed=1' } }, \
    { match: { safe_regex: { regex: '/r/[0-9]+/.*' } }, route: { cluster: one, prefix_rewrite: /whole } }, \
    { match: { prefix: /regex }, route: { cluster: one, regex_rewrite: { pattern: { regex: '[0-9]+' }, substitution: num } } }, \
    { match: { prefix: /host-header }, route: { cluster: one, host_rewrite_header: x-host } }, \
    { match: { prefix: /host-and-path }, route: { cluster: one, host_rewrite_path_regex: { pattern: { regex: '^/host-and-path/(\\w+).*$' }, substitution: '\\1.example' }, \
      regex_rewrite: { pattern: { regex: '^/host-and-path/(.*)$' }, substitution: '/new/\\1' } } }, \
    { match: { prefix: /host-path }, route: { cluster: one, host_rewrite_path_regex: { pattern: { regex: '^/host-path/(.+)/.*$' }, substitution: '\\1.example' } } }, \
    { match: { prefix: /host-x }, route: { cluster: one, host_rewrite_literal: lit.example, append_x_forwarded_host: true } }, \
    { match: { path_separated_prefix: /sep }, route: { cluster: one, prefix_rewrite: /of } }, \
    { match: { path: /CaSe, case_sensitive: false }, route: { cluster: one, prefix_rewrite: /lower } },";

const TIMEOUTS: &str = "\
    { match: { prefix: /timeout }, route: { cluster: one, timeout: 0.5s } }, \
    { match: { prefix: /idle }, route: { cluster: one, timeout: 0s, idle_timeout: 0.5s } }, \
    { match: { prefix: /duration }, route: { cluster: one, timeout: 0s, max_stream_duration: { max_stream_duration: 0.5s } } }, \
    { match: { prefix: /grpc }, route: { cluster: h2, timeout: 0s, max_stream_duration: { grpc_timeout_header_max: 0.5s } } }, \
    { match: { prefix: /per-try }, route: { cluster: one, timeout: 10s, retry_policy: { retry_on: 5xx, num_retries: 1, per_try_timeout: 0.5s, retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } } }, \
    { match: { prefix: /max-grpc }, route: { cluster: h2, timeout: 5s, max_grpc_timeout: 2s } }, \
    { match: { prefix: /none }, route: { cluster: one, timeout: 0s } },";

const RETRIES: &str = "\
    { match: { prefix: /5xx }, route: { cluster: one, retry_policy: { retry_on: 5xx, num_retries: 2, retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } } }, \
    { match: { prefix: /gateway }, route: { cluster: one, retry_policy: { retry_on: gateway-error, num_retries: 1, retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } } }, \
    { match: { prefix: /4xx }, route: { cluster: one, retry_policy: { retry_on: retriable-4xx, num_retries: 1, retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } } }, \
    { match: { prefix: /codes }, route: { cluster: one, retry_policy: { retry_on: retriable-status-codes, retriable_status_codes: [404, 418], num_retries: 1, retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } } }, \
    { match: { prefix: /headers }, route: { cluster: one, retry_policy: { retry_on: retriable-headers, retriable_headers: [{ name: x-again, string_match: { exact: 'yes' } }], num_retries: 1, retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } } }, \
    { match: { prefix: /only }, route: { cluster: one, retry_policy: { retry_on: 5xx, retriable_request_headers: [{ name: x-may, present_match: true }], num_retries: 1, retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } } }, \
    { match: { prefix: /reset }, route: { cluster: one, retry_policy: { retry_on: reset, num_retries: 1, retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } } }, \
    { match: { prefix: /before }, route: { cluster: one, retry_policy: { retry_on: reset-before-request, num_retries: 1, retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } } }, \
    { match: { prefix: /connect }, route: { cluster: nobody, retry_policy: { retry_on: connect-failure, num_retries: 1, retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } } }, \
    { match: { prefix: /refused }, route: { cluster: h2, retry_policy: { retry_on: refused-stream, num_retries: 1, retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } } }, \
    { match: { prefix: /grpc }, route: { cluster: h2, retry_policy: { retry_on: 'cancelled,unavailable', num_retries: 1, retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } } }, \
    { match: { prefix: /envoy-ratelimited }, route: { cluster: one, retry_policy: { retry_on: envoy-ratelimited, num_retries: 1, retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } } }, \
    { match: { prefix: /empty }, route: { cluster: empty, retry_policy: { retry_on: 5xx } } }, \
    { match: { prefix: /nowhere }, route: { cluster: nowhere } }, \
    { match: { prefix: /direct }, direct_response: { status: 503 } }, \
    { match: { prefix: /late }, route: { cluster: one, timeout: 0.1s } }, \
    { match: { prefix: /after }, route: { cluster: one, retry_policy: { retry_on: retriable-status-codes, retriable_status_codes: [429], num_retries: 1, \
      rate_limited_retry_back_off: { reset_headers: [{ name: retry-after, format: SECONDS }], max_interval: 2s } } } },";

const CORS: &str = "\
    { match: { prefix: /open }, route: { cluster: one }, typed_per_filter_config: { cors: { '@type': $T/cors.v3.CorsPolicy, \
      allow_origin_string_match: [{ exact: 'https://app.example' }, { suffix: .trusted.example }], allow_methods: 'GET, PUT', \
      allow_headers: x-own, expose_headers: x-seen, max_age: '600', allow_credentials: true } } }, \
    { match: { prefix: /strict }, route: { cluster: one }, typed_per_filter_config: { cors: { '@type': $T/cors.v3.CorsPolicy, \
      allow_origin_string_match: [{ exact: 'https://app.example' }], forward_not_matching_preflights: false } } },";

const CORS_OF_HOST: &str = "cors: { allow_origin_string_match: [{ exact: 'https://host.example' }], allow_methods: 'GET', \
    expose_headers: x-host }";

const CORS_OF_ROUTES: &str = "\
    { match: { prefix: /route }, route: { cluster: one, cors: { allow_origin_string_match: [{ exact: 'https://route.example' }], \
      allow_methods: 'PUT', max_age: '10', allow_credentials: true } } }, \
    { match: { prefix: /off }, route: { cluster: one, cors: { allow_origin_string_match: [{ exact: 'https://route.example' }], \
      filter_enabled: { default_value: { numerator: 0 } } } } }, \
    { match: { prefix: /both }, route: { cluster: one, cors: { allow_origin_string_match: [{ exact: 'https://route.example' }] } }, \
      typed_per_filter_config: { cors: { '@type': $T/cors.v3.CorsPolicy, allow_origin_string_match: [{ exact: 'https://named.example' }] } } },";

/// What Envoy takes and does not implement, or does something odd with.
const ODD: &str = "\
    { match: { prefix: /filter }, filter_action: {} }, \
    { match: { prefix: /nothing }, non_forwarding_action: {} }, \
    { match: { prefix: /typed }, route: { cluster: one, retry_policy_typed_config: { \
      '@type': type.googleapis.com/envoy.config.route.v3.RetryPolicy, retry_on: 5xx } } }, \
    { match: { prefix: /initial }, route: { cluster: one, hedge_policy: { initial_requests: 3, \
      additional_request_chance: { numerator: 100 } } } },";

const POLICIES: &str = "\
    { match: { prefix: /hash }, name: hash, route: { cluster: ring, hash_policy: [{ header: { header_name: x-key }, terminal: true }, \
      { cookie: { name: sticky, ttl: 60s, path: / } }] } }, \
    { match: { prefix: /query-hash }, route: { cluster: ring, hash_policy: [{ query_parameter: { name: key } }] } }, \
    { match: { prefix: /mirror }, route: { cluster: one, request_mirror_policies: [{ cluster: two }] } }, \
    { match: { prefix: /unknown-code }, route: { cluster: nowhere, cluster_not_found_response_code: NOT_FOUND } }, \
    { match: { prefix: /unavailable }, route: { cluster: nowhere } }, \
    { match: { prefix: /runtime, runtime_fraction: { default_value: { numerator: 0 } } }, direct_response: { status: 500 } }, \
    { match: { prefix: /always, runtime_fraction: { default_value: { numerator: 100 } } }, direct_response: { status: 201 } }, \
    { match: { prefix: /grpc-only, grpc: {} }, direct_response: { status: 200 } }, \
    { match: { prefix: /contains, headers: [{ name: x-k, string_match: { contains: mid } }] }, direct_response: { status: 201 } }, \
    { match: { prefix: /contains, headers: [{ name: x-k, string_match: { suffix: END, ignore_case: true } }] }, direct_response: { status: 202 } }, \
    { match: { prefix: /contains, headers: [{ name: x-k, string_match: { safe_regex: { regex: '[0-9]+' } } }] }, direct_response: { status: 203 } }, \
    { match: { prefix: /contains, headers: [{ name: x-k, present_match: false, treat_missing_header_as_empty: true }] }, direct_response: { status: 204 } }, \
    { match: { prefix: /contains, headers: [{ name: x-m, string_match: { exact: '' }, treat_missing_header_as_empty: true }] }, direct_response: { status: 206 } }, \
    { match: { prefix: /host-match, headers: [{ name: ':authority', string_match: { prefix: special } }] }, direct_response: { status: 201 } }, \
    { match: { prefix: /method, headers: [{ name: ':method', string_match: { exact: PUT } }] }, direct_response: { status: 201 } }, \
    { match: { prefix: /q, query_parameters: [{ name: a, string_match: { safe_regex: { regex: '[0-9]+' } } }, { name: b, present_match: true }] }, direct_response: { status: 201 } },";

const CASES: &[Case] = &[
    // Redirects.
    get("redirect: all fields", "redirects", "/all?x=1", &[]),
    get("redirect: port", "redirects", "/port/x?y", &[]),
    get("redirect: port of a host with one", "redirects", "/port/x", &[("host", "example.com:8080")]),
    get("redirect: scheme", "redirects", "/scheme", &[]),
    get("redirect: scheme of a host with a port", "redirects", "/scheme", &[("host", "example.com:80")]),
    get("redirect: prefix", "redirects", "/prefix/a?b=c", &[]),
    get("redirect: prefix alone", "redirects", "/prefix", &[]),
    get("redirect: regex", "redirects", "/regex/abc/rest?q=1", &[]),
    get("redirect: regex that does not match", "redirects", "/regex/123/rest", &[]),
    get("redirect: query stripped", "redirects", "/strip?a=b", &[]),
    get("redirect: query kept", "redirects", "/keep?a=b", &[]),
    get("redirect: with headers", "redirects", "/headers/x", &[]),
    Case { method: "HEAD", ..get("redirect: of HEAD", "redirects", "/keep", &[]) },
    get("redirect: to TLS", "tls-only", "/a?b=c", &[]),
    get("redirect: to TLS with a port", "tls-only", "/a", &[("host", "example.com:8080")]),
    get("redirect: to TLS said to be there", "tls-only", "/a", &[("x-forwarded-proto", "https")]),
    get("redirect: to TLS, from inside", "outside", "/a", &[]),
    get("redirect: to TLS, from outside", "outside", "/a", &[("x-forwarded-for", "8.8.8.8")]),
    // Header mutations.
    get("mutation: nothing there", "mutations", "/append", &[]),
    get(
        "mutation: everything there",
        "mutations",
        "/append",
        &[("x-a", "old"), ("x-b", "old"), ("x-c", "old"), ("x-d", "old"), ("x-order", "client")],
    ),
    get(
        "mutation: twice there",
        "mutations",
        "/append",
        &[("x-a", "1"), ("x-a", "2"), ("x-c", "1"), ("x-c", "2"), ("x-d", "1"), ("x-d", "2")],
    ),
    get(
        "mutation: response",
        "mutations",
        "/append",
        &[("x-reply", "header=x-a:up header=x-b:up header=x-c:up header=x-d:up header=x-order:up header=x-secret:s")],
    ),
    get("mutation: empty values", "mutations", "/empty", &[]),
    get(
        "mutation: removed",
        "mutations",
        "/remove",
        &[
            ("x-drop", "1"),
            ("x-drop", "2"),
            ("x-host-drops", "1"),
            ("x-other", ""),
            ("x-reply", "header=x-gone:1 header=content-type:text/plain header=x-stays:1"),
        ],
    ),
    get("mutation: formats", "mutations", "/formats?q=1", &[("x-in", "abcdef"), ("x-reply", "header=x-up:value")]),
    get("mutation: formats of what is absent", "mutations", "/formats", &[]),
    get("mutation: of a list", "mutations", "/pseudo", &[("x-kind", "z")]),
    get("mutation: of a direct response", "mutations", "/said", &[]),
    get("mutation: of no route's reply", "mutations", "/append", &[("x-reply", "reset")]),
    // Rewrites.
    get("rewrite: prefix to a slash", "rewrites", "/prefix/a/b?c", &[]),
    get("rewrite: exact with a query", "rewrites", "/exact?mine=2", &[]),
    get("rewrite: of a regex match", "rewrites", "/r/12/rest?q", &[]),
    get("rewrite: regex everywhere", "rewrites", "/regex/1/22/x?333", &[]),
    get("rewrite: host from a header", "rewrites", "/host-header", &[("x-host", "from-header.example")]),
    get("rewrite: host from a missing header", "rewrites", "/host-header", &[]),
    get("rewrite: host from the path", "rewrites", "/host-path/abc/x?y=/z/", &[]),
    get("rewrite: host from the path as it came", "rewrites", "/host-and-path/abc/x?y=/z/", &[]),
    get("rewrite: host from a path that does not match", "rewrites", "/host-path", &[]),
    get("rewrite: x-forwarded-host", "rewrites", "/host-x", &[]),
    get("rewrite: x-forwarded-host that is there", "rewrites", "/host-x", &[("x-forwarded-host", "first.example")]),
    get("rewrite: separated prefix", "rewrites", "/sep/a", &[]),
    get("rewrite: without case", "rewrites", "/cAsE?q", &[]),
    // Timeouts.
    get("timeout: of the route", "timeouts", "/timeout", &[("x-reply", "hang")]),
    get(
        "timeout: of the header",
        "timeouts",
        "/none",
        &[("x-envoy-upstream-rq-timeout-ms", "500"), ("x-reply", "hang")],
    ),
    get(
        "timeout: header over the route",
        "timeouts",
        "/timeout",
        &[("x-envoy-upstream-rq-timeout-ms", "700"), ("x-reply", "hang")],
    ),
    get(
        "timeout: header that is no number",
        "timeouts",
        "/timeout",
        &[("x-envoy-upstream-rq-timeout-ms", "soon"), ("x-reply", "hang")],
    ),
    get(
        "timeout: alternative response",
        "timeouts",
        "/timeout",
        &[("x-envoy-upstream-rq-timeout-alt-response", "1"), ("x-reply", "hang")],
    ),
    get("timeout: what is expected", "timeouts", "/none", &[("x-envoy-upstream-rq-timeout-ms", "5000")]),
    get(
        "timeout: per try, of the header",
        "timeouts",
        "/none",
        &[("x-envoy-upstream-rq-per-try-timeout-ms", "500"), ("x-reply", "hang")],
    ),
    get("timeout: per try", "timeouts", "/per-try", &[("x-reply", "hang")]),
    get("timeout: idle", "timeouts", "/idle", &[("x-reply", "hang")]),
    get("timeout: max_stream_duration", "timeouts", "/duration", &[("x-reply", "hang")]),
    Case {
        grpc: true,
        ..post(
            "timeout: of gRPC, limited",
            "timeouts",
            "/grpc",
            &[("content-type", "application/grpc"), ("grpc-timeout", "30S"), ("x-reply", "hang")],
        )
    },
    Case {
        grpc: true,
        ..post(
            "timeout: of gRPC, its own",
            "timeouts",
            "/grpc",
            &[("content-type", "application/grpc"), ("grpc-timeout", "250m"), ("x-reply", "hang")],
        )
    },
    // Retries.
    get("retry: 5xx", "retries", "/5xx", &[("x-reply", "status=500")]),
    get("retry: 5xx of a reset", "retries", "/5xx", &[("x-reply", "reset")]),
    get("retry: 5xx of 404", "retries", "/5xx", &[("x-reply", "status=404")]),
    post("retry: 5xx with a body", "retries", "/5xx", &[("x-reply", "status=503")]),
    get("retry: gateway-error of 500", "retries", "/gateway", &[("x-reply", "status=500")]),
    get("retry: gateway-error of 502", "retries", "/gateway", &[("x-reply", "status=502")]),
    get("retry: gateway-error of 504", "retries", "/gateway", &[("x-reply", "status=504")]),
    get("retry: retriable-4xx of 409", "retries", "/4xx", &[("x-reply", "status=409")]),
    get("retry: retriable-4xx of 404", "retries", "/4xx", &[("x-reply", "status=404")]),
    get("retry: codes", "retries", "/codes", &[("x-reply", "status=418")]),
    get(
        "retry: codes of the header",
        "retries",
        "/codes",
        &[("x-reply", "status=409"), ("x-envoy-retriable-status-codes", "409")],
    ),
    get("retry: headers", "retries", "/headers", &[("x-reply", "status=200 header=x-again:yes")]),
    get("retry: other headers", "retries", "/headers", &[("x-reply", "status=200 header=x-again:no")]),
    get("retry: request may not", "retries", "/only", &[("x-reply", "status=500")]),
    get("retry: request may", "retries", "/only", &[("x-reply", "status=500"), ("x-may", "1")]),
    get("retry: reset", "retries", "/reset", &[("x-reply", "reset")]),
    get("retry: reset-before-request", "retries", "/before", &[("x-reply", "reset")]),
    get("retry: connect-failure", "retries", "/connect", &[]),
    get("retry: refused-stream of another reset", "retries", "/refused", &[("x-reply", "reset")]),
    Case {
        grpc: true,
        ..post(
            "retry: gRPC status",
            "retries",
            "/grpc",
            &[
                ("content-type", "application/grpc"),
                ("x-reply", "header=content-type:application/grpc header=grpc-status:14 empty"),
            ],
        )
    },
    Case {
        grpc: true,
        ..post(
            "retry: another gRPC status",
            "retries",
            "/grpc",
            &[
                ("content-type", "application/grpc"),
                ("x-reply", "header=content-type:application/grpc header=grpc-status:5 empty"),
            ],
        )
    },
    get(
        "retry: envoy-ratelimited",
        "retries",
        "/envoy-ratelimited",
        &[("x-reply", "status=429 header=x-envoy-ratelimited:true")],
    ),
    get("retry: 429 without the header", "retries", "/envoy-ratelimited", &[("x-reply", "status=429")]),
    get(
        "retry: by the header",
        "retries",
        "/x",
        &[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "2"), ("x-reply", "status=503")],
    ),
    get(
        "retry: by the gRPC header",
        "retries",
        "/x",
        &[("x-envoy-retry-grpc-on", "unavailable"), ("x-reply", "header=grpc-status:14")],
    ),
    get(
        "retry: number of the header over the route's",
        "retries",
        "/5xx",
        &[("x-envoy-max-retries", "1"), ("x-reply", "status=503")],
    ),
    get("retry: after retry-after", "retries", "/after", &[("x-reply", "status=429 header=retry-after:1")]),
    get("retry: none", "retries", "/5xx", &[]),
    get("retry: no endpoint", "retries", "/empty", &[]),
    get("retry: no cluster", "retries", "/nowhere", &[]),
    get("retry: direct response", "retries", "/direct", &[]),
    get("retry: too late", "retries", "/late", &[("x-reply", "hang")]),
    get(
        "retry: limit, with the last response",
        "retries",
        "/5xx",
        &[("x-reply", "status=500 | status=503 | status=502")],
    ),
    get("retry: success after all", "retries", "/5xx", &[("x-reply", "status=500 | status=200")]),
    get("retry: other end after all", "retries", "/5xx", &[("x-reply", "status=500 | status=404")]),
    get(
        "timeout: alternative response of a try",
        "timeouts",
        "/per-try",
        &[("x-envoy-upstream-rq-timeout-alt-response", "0"), ("x-reply", "hang")],
    ),
    Case {
        grpc: true,
        ..post(
            "timeout: of gRPC, told upstreams",
            "timeouts",
            "/max-grpc",
            &[("content-type", "application/grpc"), ("grpc-timeout", "900m")],
        )
    },
    // What Envoy does not implement.
    get("odd: filter_action", "odd", "/filter", &[]),
    get("odd: non_forwarding_action", "odd", "/nothing", &[]),
    get("odd: retry_policy_typed_config", "odd", "/typed", &[("x-reply", "status=503")]),
    get("odd: retry_policy_typed_config of the virtual host", "odd", "/", &[("x-reply", "status=503")]),
    get("odd: several requests at first", "odd", "/initial", &[]),
    get("cors: deprecated, of the host", "cors-deprecated", "/", &[("origin", "https://host.example")]),
    get("cors: deprecated, of the route", "cors-deprecated", "/route", &[("origin", "https://route.example")]),
    get(
        "cors: deprecated, the route over the host",
        "cors-deprecated",
        "/route",
        &[("origin", "https://host.example")],
    ),
    get("cors: deprecated, not enabled", "cors-deprecated", "/off", &[("origin", "https://route.example")]),
    get("cors: deprecated, and named", "cors-deprecated", "/both", &[("origin", "https://named.example")]),
    get("cors: deprecated, and another named", "cors-deprecated", "/both", &[("origin", "https://route.example")]),
    Case {
        method: "OPTIONS",
        ..get(
            "cors: preflight of the deprecated one",
            "cors-deprecated",
            "/route",
            &[("origin", "https://route.example"), ("access-control-request-method", "PUT")],
        )
    },
    // CORS.
    Case {
        method: "OPTIONS",
        ..get(
            "cors: preflight",
            "cors",
            "/open",
            &[("origin", "https://app.example"), ("access-control-request-method", "GET")],
        )
    },
    Case {
        method: "OPTIONS",
        ..get(
            "cors: preflight of a suffix",
            "cors",
            "/open",
            &[
                ("origin", "https://a.trusted.example"),
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", "x-own"),
            ],
        )
    },
    Case {
        method: "OPTIONS",
        ..get(
            "cors: preflight of a stranger",
            "cors",
            "/open",
            &[("origin", "https://evil.example"), ("access-control-request-method", "GET")],
        )
    },
    Case {
        method: "OPTIONS",
        ..get(
            "cors: preflight of a stranger, kept",
            "cors",
            "/strict",
            &[("origin", "https://evil.example"), ("access-control-request-method", "GET")],
        )
    },
    Case {
        method: "OPTIONS",
        ..get("cors: options that are no preflight", "cors", "/open", &[("origin", "https://app.example")])
    },
    get(
        "cors: request",
        "cors",
        "/open",
        &[("origin", "https://app.example"), ("x-reply", "header=access-control-allow-origin:mine")],
    ),
    get("cors: request of a stranger", "cors", "/open", &[("origin", "https://evil.example")]),
    get("cors: no policy", "cors", "/x", &[("origin", "https://app.example")]),
    // Paths.
    get("path: all at once", "paths", "/a//b/%2e%2e/c%2Fd%5ce/./f?x=//%2f", &[]),
    get("path: dots at the end", "paths", "/a/b/..", &[]),
    get("path: above the root", "paths", "/../../a", &[]),
    get("path: lone percent signs", "paths", "/100%/%zz/%4", &[]),
    get("path: escapes of every kind", "paths", "/%41%7e%2d%2E%5f%20%21%2a%C3%a9", &[]),
    get("path: escaped slashes to a redirect", "slashes", "/a%2Fb%5Cc?d", &[]),
    get("path: escaped slashes refused", "no-slashes", "/a%2fb", &[]),
    get("path: escaped slash in the query", "no-slashes", "/a?b=%2f", &[]),
    // Limits and hosts.
    get("limit: underscores dropped", "limits", "/", &[("x_a", "1"), ("x-b", "2")]),
    get("host: port stripped", "ports", "/", &[("host", "example.com:1234")]),
    get("host: IPv6 with a port stripped", "ports", "/", &[("host", "[::1]:1234")]),
    get("host: dot stripped", "dots", "/", &[("host", "example.com.")]),
    get("host: dot before a port stripped", "dots", "/", &[("host", "example.com.:80")]),
    // Headers between proxies.
    get("server: overwritten", "names", "/", &[("x-reply", "header=server:up"), ("via", "1.0 other")]),
    get("server: added", "if-absent", "/", &[("x-reply", "empty")]),
    get("server: not over the upstream's", "if-absent", "/", &[("x-reply", "header=server:up")]),
    get("server: passed", "pass-server", "/", &[("x-reply", "header=server:up"), ("x-request-id", "mine")]),
    get("server: passed, and none", "pass-server", "/", &[]),
    get("xff: trusted hops", "hops", "/", &[("x-forwarded-for", "1.1.1.1, 2.2.2.2"), ("x-forwarded-proto", "https")]),
    get("xff: not skipped", "inner", "/", &[("x-forwarded-for", "1.1.1.1, 2.2.2.2")]),
    get("xff: internal", "inner", "/", &[("x-forwarded-for", "10.0.0.1")]),
    get("xff: none", "inner", "/", &[]),
    get("xff: garbage", "inner", "/", &[("x-forwarded-for", "unknown, _hidden")]),
    get("xfcc: forged", "hops", "/", &[("x-forwarded-client-cert", "By=spiffe://a;Hash=b")]),
    get("scheme: overwritten", "scheme", "/", &[]),
    get("scheme: overwritten where it is said", "scheme", "/", &[("x-forwarded-proto", "http")]),
    get("scheme: overwritten from outside", "scheme-outside", "/", &[]),
    get(
        "forwarded headers of ours from outside",
        "hops",
        "/",
        &[
            ("x-envoy-force-trace", "1"),
            ("x-envoy-attempt-count", "7"),
            ("x-envoy-original-path", "/p"),
            ("x-envoy-downstream-service-node", "n"),
        ],
    ),
    // Casing, interim responses, framing of responses.
    get("casing: proper", "casing", "/", &[("x-some-thing", "1"), ("x-reply", "header=x-from-up:1")]),
    get("response: interim", "names", "/", &[("x-reply", "interim")]),
    Case { method: "HEAD", ..get("response: to HEAD", "names", "/", &[("x-reply", "bytes=100")]) },
    get("response: 204", "names", "/", &[("x-reply", "status=204")]),
    get("response: 304", "names", "/", &[("x-reply", "status=304 header=etag:a")]),
    get("response: 205", "names", "/", &[("x-reply", "status=205 empty")]),
    get("response: chunked", "names", "/", &[("x-reply", "chunked bytes=100")]),
    get("response: trailers dropped", "names", "/", &[("x-reply", "trailers bytes=100")]),
    get("response: 600", "names", "/", &[("x-reply", "status=600 empty")]),
    get("response: close", "names", "/", &[("x-reply", "close")]),
    get(
        "response: hop-by-hop headers",
        "names",
        "/",
        &[("x-reply", "header=keep-alive:1 header=proxy-connection:close header=x-own:1")],
    ),
    get(
        "response: several of one name",
        "names",
        "/",
        &[("x-reply", "header=set-cookie:a=1 header=set-cookie:b=2 header=x-m:1 header=x-m:2")],
    ),
    post("continue: asked here", "names", "/", &[("expect", "100-continue")]),
    // Policies and matchers.
    get("hash: header", "policies", "/hash", &[("x-key", "a")]),
    get("hash: other header", "policies", "/hash", &[("x-key", "bb")]),
    get("hash: cookie", "policies", "/hash", &[("cookie", "sticky=1234")]),
    get("hash: query", "policies", "/query-hash?key=1", &[]),
    get("hash: other query", "policies", "/query-hash?key=22", &[]),
    post("mirror", "policies", "/mirror", &[]),
    get("cluster: unknown with a code", "policies", "/unknown-code", &[]),
    get("cluster: unknown", "policies", "/unavailable", &[]),
    get("virtual cluster", "policies", "/users/1", &[]),
    get("match: never", "policies", "/runtime", &[]),
    get("match: always", "policies", "/always", &[]),
    get("match: not gRPC", "policies", "/grpc-only", &[]),
    Case { grpc: true, ..post("match: gRPC", "policies", "/grpc-only", &[("content-type", "application/grpc")]) },
    get("match: contains", "policies", "/contains", &[("x-k", "a-mid-b")]),
    get("match: suffix without case", "policies", "/contains", &[("x-k", "the-end")]),
    get("match: regex of all", "policies", "/contains", &[("x-k", "123")]),
    get("match: regex of a part", "policies", "/contains", &[("x-k", "123x"), ("x-m", "1")]),
    get("match: absent", "policies", "/contains", &[]),
    get("match: authority", "policies", "/host-match", &[("host", "special.example")]),
    Case { method: "PUT", ..get("match: method", "policies", "/method", &[]) },
    get("match: two parameters", "policies", "/q?b&a=12", &[]),
    get("match: a parameter of another form", "policies", "/q?a=x&b", &[]),
    get("upgrade: off on the route", "upgrades", "/off", &[]),
];

fn listener((name, manager, host, routes): &Options) -> String {
    let types = "type.googleapis.com/envoy.extensions.filters.http";
    let comma = if host.is_empty() { "" } else { ", " };
    let log = config::access_log_of(
        &format!("{name}.log"),
        &format!("%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%{LOG}"),
    );
    let table = format!(
        ", route_config: {{ name: local, validate_clusters: false, virtual_hosts: [{{ name: all, domains: ['*']{comma}{host}, routes: [{routes} {}] }}] }}",
        all_to("one")
    );
    let mut manager = http(name, &format!("{table}{manager}{log}"));
    if name.starts_with("cors") {
        let filter = format!("http_filters: [{{ name: cors, typed_config: {{ '@type': {types}.cors.v3.Cors }} }}, ");
        manager = manager.replace("http_filters: [", &filter);
    }
    config::listener(name, &[chain(&manager.replace("$T/", &format!("{types}.")), "")], "")
}

#[tokio::test]
async fn options_do_the_same_as_with_envoy() {
    let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
    let closed = ClosedPort::take();
    let clusters = [
        cluster("one", &[one.port()]),
        cluster("two", &[two.port()]),
        http2_cluster("h2", &[two.port()]),
        cluster("nobody", &[closed.port()]),
        cluster("empty", &[]),
        cluster_with("ring", &[one.port(), two.port()], ", lb_policy: RING_HASH"),
    ];
    let listeners: Vec<String> = LISTENERS.iter().map(listener).collect();
    let chains: Vec<_> = LISTENERS.iter().map(|(name, ..)| chain_of(name, &[], "")).collect();
    same(&bootstrap(&listeners, &clusters), &chains, CASES, INTENDED).await;
}

/// Schemes that upstreams and logs see, where they follow the connection to the endpoint.
async fn schemes(program: PathBuf) -> Vec<String> {
    let identity = Authority::new().issue(&["localhost"]);
    let secure = Upstream::tls("secure", identity.server(&["h2"])).await;
    let plain = Upstream::start("plain").await;
    let options = ", scheme_header_transformation: { match_upstream: true }";
    let log = config::access_log_of("schemes.log", "%REQ(:PATH)% %REQ(:SCHEME)% %REQ(X-FORWARDED-PROTO)%");
    let to = "{ match: { prefix: /plain }, route: { cluster: plain } }, { match: { prefix: / }, route: { cluster: secure } }";
    let manager = http("schemes", &format!("{}{options}{log}", config::routes(to)));
    let tls = ", transport_socket: { name: tls, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext } }";
    let clusters = [
        http2_cluster("plain", &[plain.port()]),
        cluster_with("secure", &[secure.port()], &format!("{}{tls}", config::HTTP2)),
    ];
    let text = bootstrap(&[config::listener("schemes", &[chain(&manager, "")], "")], &clusters);
    let proxy = Proxy::start_with(&text, Settings { program, ..Settings::default() }).await;
    let address = proxy.listener("schemes").await;
    for path in ["/plain", "/secure"] {
        for proto in ["http", "https"] {
            let response =
                h1::Client::connect(address).await.request("GET", path, &[("x-forwarded-proto", proto)], b"").await;
            assert_eq!(response.status, 200, "{path}");
        }
    }
    proxy.lines("schemes.log", 4).await
}

#[tokio::test]
async fn schemes_follow_the_connection_to_the_endpoint() {
    let seen = schemes(proxy::program()).await;
    assert_eq!(seen[0], "/plain http http");
    assert_eq!(seen[2], "/secure https http");
    assert_eq!(seen, schemes(proxy::envoy()).await);
}
