//! Local rate limits: the same limits and requests for Envoy and for the proxy under test, and what holds over workers,
//! connections and changes of the configuration.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster, routes};
use outrigger_tests::side_by_side::{Case, Chain, Intended, chain_of, get, post, same};
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy};

const INTENDED: Intended = &[(
    "*",
    "header x-forwarded-for: ",
    "for a client on loopback Envoy names an address of the machine; we name the client",
)];

const CASES: &[Case] = &[
    get("general: first and second", "general", "/", &[]),
    get("general: third and fourth", "general", "/", &[]),
    get("general: of the route", "general", "/route", &[]),
    get("general: of the route, above its limit", "general", "/route", &[]),
    Case { grpc: true, ..post("general: gRPC", "general", "/", &[("content-type", "application/grpc")]) },
    Case { method: "HEAD", ..get("general: HEAD", "general", "/", &[]) },
    get("status below 400", "low-status", "/", &[]),
    get("own status and headers", "own", "/", &[("x-k", "1")]),
    Case { grpc: true, ..post("gRPC: resource exhausted", "own", "/", &[("content-type", "application/grpc")]) },
    get("not enforced", "lenient", "/", &[("x-k", "1")]),
    get("not enabled", "not-enabled", "/", &[]),
    get("runtime decides", "runtime", "/", &[]),
    get("each connection", "connection", "/", &[]),
    get("each connection, another one", "connection", "/", &[]),
    get("wildcard: a", "wildcard", "/", &[("x-k", "a")]),
    get("wildcard: a again", "wildcard", "/", &[("x-k", "a")]),
    get("wildcard: b takes the place", "wildcard", "/", &[("x-k", "b")]),
    get("wildcard: a is new", "wildcard", "/", &[("x-k", "a")]),
    get("wildcard: no header", "wildcard", "/", &[]),
    get("wildcard: an empty header", "wildcard", "/", &[("x-k", "")]),
    get("actions: all", "actions", "/a?q=a%20b&m=1", &[("x-k", "a")]),
    get("actions: another header", "actions", "/a?q=a%20b&m=1", &[("x-k", "b")]),
    get("actions: another query", "actions", "/a?q=a+b&m=1", &[("x-k", "a")]),
    get("actions: no match of the query", "actions", "/a?q=a%20b&m=2", &[("x-k", "a")]),
    get("actions: metadata of the route", "actions", "/meta", &[]),
    get("actions: metadata by default", "actions", "/other", &[]),
    get("actions: address", "address", "/", &[("x-k", "v")]),
    get("actions: address without a value", "address", "/", &[]),
    get("actions: clusters", "clusters", "/", &[]),
    get("hits: two", "hits", "/", &[("x-hits", "2")]),
    get("hits: none", "hits", "/", &[("x-hits", "0")]),
    get("hits: no number", "hits", "/", &[("x-hits", "zz")]),
    get("hits: one", "hits", "/", &[("x-hits", "1")]),
    get("given back", "given-back", "/", &[]),
    get("slowest first", "slowest", "/", &[]),
    get("slowest first, again", "slowest", "/", &[]),
    get("telling: off for one limit", "not-told", "/", &[]),
    get("telling: on for one limit", "told", "/", &[]),
    get("shadow", "shadow", "/route", &[]),
    get("shadow: but the general limit counts", "shadow", "/", &[]),
    get("routes: its own", "override", "/route", &[]),
    get("routes: of the virtual host", "override", "/", &[]),
    get("routes: with the virtual host's", "override", "/with-host", &[]),
    get("routes: can be disabled", "override", "/disabled", &[]),
    get("routes: another stage", "override", "/stage", &[]),
    get("routes: direct response", "override", "/direct", &[]),
    get("include: both", "include", "/route", &[]),
    get("ignore: only its own", "ignore", "/", &[]),
    get("stage: one", "stage", "/stage", &[]),
    get("general for the rest", "rest", "/route", &[]),
    get("general for the rest, again", "rest", "/route", &[]),
];

const LIMIT: &str = "local_ratelimit.v3.LocalRateLimit";

macro_rules! limits {
    ($($fields:literal),+) => {
        concat!(
            "stat_prefix: p, filter_enabled: { default_value: { numerator: 100 } }, \
             filter_enforced: { default_value: { numerator: 100 } }, ",
            $($fields),+
        )
    };
}

macro_rules! one {
    ($name:literal, $routes:expr, $($fields:literal),+) => {
        chain_of($name, &[("rl", LIMIT, limits!($($fields),+))], $routes)
    };
}

/// Routes whose rate limits are for the descriptor `generic_key: route`, with a virtual host's for `generic_key: host`.
const ROUTES: &str = "\
    { match: { path: /route }, route: { cluster: one, rate_limits: [{ actions: [{ generic_key: { descriptor_value: route } }], \
      hits_addend: { number: 3 }, limit: { rate_limit: { requests_per_unit: 1, unit: HOUR } } }] } }, \
    { match: { path: /with-host }, route: { cluster: one, include_vh_rate_limits: true, \
      rate_limits: [{ actions: [{ generic_key: { descriptor_value: none } }] }] } }, \
    { match: { path: /disabled }, route: { cluster: one, \
      rate_limits: [{ disable_key: k, actions: [{ generic_key: { descriptor_value: host } }] }] } }, \
    { match: { path: /stage }, route: { cluster: one, \
      rate_limits: [{ stage: 1, actions: [{ generic_key: { descriptor_value: host } }] }] } }, \
    { match: { path: /direct }, direct_response: { status: 200, body: { inline_string: direct } } }, ";
const HOST: &str = "rate_limits: [{ actions: [{ generic_key: { descriptor_value: host } }] }]";

const CHAINS: &[Chain] = &[
    Chain {
        stats: "p.http_local_rate_limit.",
        ..one!(
            "general",
            "{ match: { path: /route }, route: { cluster: one }, typed_per_filter_config: { rl: { \
             '@type': $T/local_ratelimit.v3.LocalRateLimit, stat_prefix: r, \
             token_bucket: { max_tokens: 1, fill_interval: 1000s }, filter_enabled: { default_value: { numerator: 100 } }, \
             filter_enforced: { default_value: { numerator: 100 } } } } }, ",
            "token_bucket: { max_tokens: 3, fill_interval: 1000s }, enable_x_ratelimit_headers: DRAFT_VERSION_03, \
             enable_retry_after_header: true"
        )
    },
    one!("low-status", "", "token_bucket: { max_tokens: 0, fill_interval: 1s }, status: { code: OK }"),
    one!(
        "own",
        "",
        "token_bucket: { max_tokens: 0, fill_interval: 1s }, status: { code: ServiceUnavailable }, \
         rate_limited_as_resource_exhausted: true, enable_retry_after_header: true, response_headers_to_add: [\
         { header: { key: x-l, value: '%REQ(x-k)%|%PROTOCOL%' } }, { header: { key: retry-after, value: '7' } }]"
    ),
    chain_of(
        "lenient",
        &[(
            "rl",
            LIMIT,
            "stat_prefix: p, filter_enabled: { default_value: { numerator: 100 } }, \
             token_bucket: { max_tokens: 0, fill_interval: 1s }, request_headers_to_add_when_not_enforced: [\
             { header: { key: x-above, value: '%REQ(x-k)%' } }]",
        )],
        "",
    ),
    chain_of("not-enabled", &[("rl", LIMIT, "stat_prefix: p, token_bucket: { max_tokens: 0, fill_interval: 1s }")], ""),
    chain_of(
        "runtime",
        &[(
            "rl",
            LIMIT,
            "stat_prefix: p, filter_enabled: { default_value: { numerator: 0 }, runtime_key: my.enabled }, \
             filter_enforced: { default_value: { numerator: 0 }, runtime_key: my.enforced }, \
             token_bucket: { max_tokens: 0, fill_interval: 1s }",
        )],
        "",
    ),
    one!(
        "connection",
        "",
        "token_bucket: { max_tokens: 1, fill_interval: 1000s }, local_rate_limit_per_downstream_connection: true, \
         enable_x_ratelimit_headers: DRAFT_VERSION_03"
    ),
    one!(
        "wildcard",
        "",
        "token_bucket: { max_tokens: 100, fill_interval: 1000s }, max_dynamic_descriptors: 1, \
         enable_x_ratelimit_headers: DRAFT_VERSION_03, \
         descriptors: [{ entries: [{ key: k }], token_bucket: { max_tokens: 2, fill_interval: 1000s } }], \
         rate_limits: [{ actions: [{ request_headers: { header_name: X-K, descriptor_key: k } }] }]"
    ),
    one!(
        "actions",
        "{ match: { path: /meta }, metadata: { filter_metadata: { nn: { a: { b: text } } } }, route: { cluster: one } }, ",
        "descriptors: [\
         { entries: [{ key: method, value: GET }, { key: k, value: a }, { key: q, value: a b }, { key: query_match, value: m }, \
           { key: header_match, value: h }], token_bucket: { max_tokens: 0, fill_interval: 1s } }, \
         { entries: [{ key: meta, value: text }], token_bucket: { max_tokens: 0, fill_interval: 1s } }, \
         { entries: [{ key: meta, value: standard }], token_bucket: { max_tokens: 1, fill_interval: 1000s } }], \
         rate_limits: [{ actions: [\
         { request_headers: { header_name: ':method', descriptor_key: method } }, \
         { request_headers: { header_name: x-k, descriptor_key: k } }, \
         { query_parameters: { query_parameter_name: q, descriptor_key: q } }, \
         { query_parameters: { query_parameter_name: absent, descriptor_key: absent, skip_if_absent: true } }, \
         { query_parameter_value_match: { descriptor_value: m, query_parameters: [{ name: m, string_match: { exact: '1' } }] } }, \
         { header_value_match: { descriptor_value: h, expect_match: false, headers: [{ name: x-not, present_match: true }] } }] }, \
         { actions: [{ metadata: { descriptor_key: meta, source: ROUTE_ENTRY, default_value: standard, \
           metadata_key: { key: nn, path: [{ key: a }, { key: b }] } } }] }]"
    ),
    one!(
        "address",
        "",
        "descriptors: [{ entries: [{ key: remote_address, value: 127.0.0.1 }, \
         { key: masked_remote_address, value: 127.0.0.0/8 }, { key: remote_address_match, value: v }], \
         token_bucket: { max_tokens: 0, fill_interval: 1s } }], rate_limits: [{ actions: [{ remote_address: {} }, \
         { masked_remote_address: { v4_prefix_mask_len: 8 } }, { remote_address_match: { descriptor_value: '%REQ(x-k)%', \
         address_matcher: { ranges: [{ address_prefix: 127.0.0.0, prefix_len: 8 }] } } }] }]"
    ),
    one!(
        "clusters",
        "",
        "descriptors: [{ entries: [{ key: source_cluster, value: tests }, { key: destination_cluster, value: one }], \
         token_bucket: { max_tokens: 0, fill_interval: 1s } }], \
         rate_limits: [{ actions: [{ source_cluster: {} }, { destination_cluster: {} }] }]"
    ),
    one!(
        "hits",
        "",
        "token_bucket: { max_tokens: 100, fill_interval: 1000s }, enable_x_ratelimit_headers: DRAFT_VERSION_03, \
         descriptors: [{ entries: [{ key: generic_key, value: a }], token_bucket: { max_tokens: 5, fill_interval: 1000s } }], \
         rate_limits: [{ actions: [{ generic_key: { descriptor_value: a } }], hits_addend: { format: '%REQ(x-hits)%' } }]"
    ),
    one!(
        "given-back",
        "",
        "token_bucket: { max_tokens: 1, fill_interval: 1000s }, enable_x_ratelimit_headers: DRAFT_VERSION_03, \
         descriptors: [{ entries: [{ key: generic_key, value: a }], token_bucket: { max_tokens: 5, fill_interval: 1000s } }], \
         rate_limits: [{ actions: [{ generic_key: { descriptor_value: a } }], \
         hits_addend: { number: 2, is_negative_hits: true } }]"
    ),
    one!(
        "slowest",
        "",
        "token_bucket: { max_tokens: 100, fill_interval: 1000s }, enable_x_ratelimit_headers: DRAFT_VERSION_03, \
         descriptors: [{ entries: [{ key: generic_key, value: a }], token_bucket: { max_tokens: 1, fill_interval: 500s } }, \
         { entries: [{ key: generic_key, value: b }], token_bucket: { max_tokens: 2, fill_interval: 1000s } }], \
         rate_limits: [{ actions: [{ generic_key: { descriptor_value: a } }] }, \
         { actions: [{ generic_key: { descriptor_value: b } }] }]"
    ),
    one!(
        "not-told",
        "",
        "enable_x_ratelimit_headers: DRAFT_VERSION_03, \
         descriptors: [{ entries: [{ key: generic_key, value: a }], token_bucket: { max_tokens: 1, fill_interval: 1000s } }], \
         rate_limits: [{ actions: [{ generic_key: { descriptor_value: a } }], x_ratelimit_option: 'OFF' }]"
    ),
    one!(
        "told",
        "",
        "descriptors: [{ entries: [{ key: generic_key, value: a }], token_bucket: { max_tokens: 1, fill_interval: 1000s } }], \
         rate_limits: [{ actions: [{ generic_key: { descriptor_value: a } }], x_ratelimit_option: DRAFT_VERSION_03 }]"
    ),
    one!(
        "shadow",
        ROUTES,
        "token_bucket: { max_tokens: 3, fill_interval: 1000s }, enable_x_ratelimit_headers: DRAFT_VERSION_03, \
         descriptors: [{ entries: [{ key: generic_key, value: route }], shadow_mode: true, \
         token_bucket: { max_tokens: 0, fill_interval: 1000s } }]"
    ),
    Chain {
        host: HOST,
        ..one!(
            "override",
            ROUTES,
            "descriptors: [{ entries: [{ key: generic_key, value: host }], token_bucket: { max_tokens: 0, fill_interval: 1s } }, \
             { entries: [{ key: generic_key, value: route }], token_bucket: { max_tokens: 1, fill_interval: 1000s } }]"
        )
    },
    Chain {
        host: HOST,
        ..one!(
            "include",
            ROUTES,
            "vh_rate_limits: INCLUDE, \
             descriptors: [{ entries: [{ key: generic_key, value: host }], token_bucket: { max_tokens: 0, fill_interval: 1s } }]"
        )
    },
    Chain {
        host: HOST,
        ..one!(
            "ignore",
            ROUTES,
            "vh_rate_limits: IGNORE, \
             descriptors: [{ entries: [{ key: generic_key, value: host }], token_bucket: { max_tokens: 0, fill_interval: 1s } }]"
        )
    },
    one!(
        "stage",
        ROUTES,
        "stage: 1, \
         descriptors: [{ entries: [{ key: generic_key, value: host }], token_bucket: { max_tokens: 0, fill_interval: 1s } }]"
    ),
    one!(
        "rest",
        ROUTES,
        "always_consume_default_token_bucket: false, token_bucket: { max_tokens: 1, fill_interval: 1000s }, \
         enable_x_ratelimit_headers: DRAFT_VERSION_03, \
         descriptors: [{ entries: [{ key: generic_key, value: route }], token_bucket: { max_tokens: 3, fill_interval: 1000s } }]"
    ),
];

const RUNTIME: &str =
    "layered_runtime: { layers: [{ name: static, static_layer: { my.enabled: 100, my.enforced: 100 } }] }\n";

#[tokio::test]
async fn limits_are_those_of_envoy() {
    let upstream = Upstream::start("one").await;
    let listeners: Vec<String> = CHAINS.iter().map(Chain::listener).collect();
    let bootstrap = bootstrap(&listeners, &[cluster("one", &[upstream.port()])]) + RUNTIME;
    same(&bootstrap, CHAINS, CASES, INTENDED).await;
}

fn with_limit(fields: &str, routes: &str) -> String {
    let filter = format!(
        "{{ name: rl, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.{LIMIT}, {fields} }} }}, "
    );
    let manager = config::http("web", routes).replace("http_filters: [", &format!("http_filters: [{filter}"));
    config::listener("web", &[chain(&manager, "")], "")
}

#[tokio::test]
async fn all_workers_take_from_the_same_buckets() {
    let upstream = Upstream::start("one").await;
    let limit = with_limit(
        limits!(
            "token_bucket: { max_tokens: 100, fill_interval: 1000s }, \
             descriptors: [{ entries: [{ key: k }], token_bucket: { max_tokens: 3, fill_interval: 1000s } }], \
             rate_limits: [{ actions: [{ request_headers: { header_name: x-k, descriptor_key: k } }] }]"
        ),
        &routes(&all_to("one")),
    );
    let settings = Settings { concurrency: 2, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[limit], &[cluster("one", &[upstream.port()])]), settings).await;
    let address = proxy.listener("web").await;
    let mut passed = 0;
    for _ in 0..20 {
        // Connections are spread over the workers.
        let response = h1::Client::connect(address).await.request("GET", "/", &[("x-k", "ann")], b"").await;
        passed += usize::from(response.status == 200);
    }
    assert_eq!(passed, 3);
    let response = h1::Client::connect(address).await.request("GET", "/", &[("x-k", "bob")], b"").await;
    assert_eq!(response.status, 200);
    proxy.stat_is("p.http_local_rate_limit.enforced", 17).await;
    proxy.stat_is("p.http_local_rate_limit.ok", 4).await;
}

#[tokio::test]
async fn a_connection_may_have_a_bucket_of_its_own() {
    let upstream = Upstream::start("one").await;
    let limit = with_limit(
        limits!(
            "token_bucket: { max_tokens: 2, fill_interval: 1000s }, local_rate_limit_per_downstream_connection: true"
        ),
        &routes(&all_to("one")),
    );
    let proxy = Proxy::start(&bootstrap(&[limit], &[cluster("one", &[upstream.port()])])).await;
    let address = proxy.listener("web").await;
    for _ in 0..2 {
        let mut client = h1::Client::connect(address).await;
        let mut statuses = Vec::new();
        for _ in 0..3 {
            statuses.push(client.request("GET", "/", &[], b"").await.status);
        }
        assert_eq!(statuses, [200, 200, 429]);
    }
}

#[tokio::test]
async fn tokens_come_back() {
    let upstream = Upstream::start("one").await;
    let limit = with_limit(
        limits!("token_bucket: { max_tokens: 1, fill_interval: 0.2s }, enable_retry_after_header: true"),
        &routes(&all_to("one")),
    );
    let proxy = Proxy::start(&bootstrap(&[limit], &[cluster("one", &[upstream.port()])])).await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    assert_eq!(client.request("GET", "/", &[], b"").await.status, 200);
    outrigger_tests::eventually("a token", async || match client.request("GET", "/", &[], b"").await {
        response if response.status == 200 => Ok(()),
        response => {
            assert_eq!(response.header("retry-after"), Some("1"));
            Err(response.status.to_string())
        }
    })
    .await;
}

/// A request takes as many tokens as the local cluster has members; what clients are told are tokens.
#[tokio::test]
async fn the_members_of_the_local_cluster_share_a_limit() {
    for program in [proxy::program(), proxy::envoy()] {
        let upstream = Upstream::start("one").await;
        let limit = with_limit(
            limits!(
                "token_bucket: { max_tokens: 10, tokens_per_fill: 10, fill_interval: 36000s }, local_cluster_rate_limit: {}, \
                 enable_x_ratelimit_headers: DRAFT_VERSION_03"
            ),
            &routes(&all_to("one")),
        );
        let clusters = [cluster("one", &[upstream.port()]), cluster("self", &[1, 2, 3])];
        let bootstrap = bootstrap(&[limit], &clusters) + "cluster_manager: { local_cluster_name: self }\n";
        let settings = Settings { program, ..Settings::default() };
        let proxy = Proxy::start_with(&bootstrap, settings).await;
        let mut client = h1::Client::connect(proxy.listener("web").await).await;
        let mut seen = Vec::new();
        for _ in 0..4 {
            let response = client.request("GET", "/", &[], b"").await;
            seen.push((response.status, response.header("x-ratelimit-remaining").unwrap_or_default().to_owned()));
        }
        let expected = [(200, "7"), (200, "4"), (200, "1"), (429, "1")];
        assert_eq!(seen, expected.map(|(status, remaining)| (status, remaining.to_owned())));
    }
}
