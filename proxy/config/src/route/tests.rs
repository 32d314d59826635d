//! Route configurations as people write them, and what is said about those that are refused.

use std::io;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use outrigger_api::Schema;
use outrigger_api::pb::envoy::config::route::v3 as pb;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::context::{Context, Environment};
use crate::http::AppendAction;
use crate::matching::StringMatcher;
use crate::rejection::Parsed;

struct NoFiles;

impl Environment for NoFiles {
    fn read_file(&self, _: &Path) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}

fn parse(yaml: &str) -> Parsed<RouteConfiguration> {
    let wire = Schema::load()
        .parse_yaml::<pb::RouteConfiguration>(yaml, outrigger_api::ParseOptions::default())
        .unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    RouteConfiguration::parse(&Context::new(&NoFiles), wire.message)
}

/// A configuration with one route, given in flow style.
fn with_route(route: &str) -> Parsed<RouteConfiguration> {
    parse(&format!("{{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{route}]}}]}}"))
}

fn with_action(action: &str) -> Parsed<RouteConfiguration> {
    with_route(&format!("{{match: {{prefix: /}}, route: {action}}}"))
}

fn with_match(matches: &str) -> Parsed<RouteConfiguration> {
    with_route(&format!("{{match: {matches}, route: {{cluster: c}}}}"))
}

fn only_route(configuration: &RouteConfiguration) -> &Route {
    assert_eq!(configuration.virtual_hosts[0].routes.len(), 1);
    &configuration.virtual_hosts[0].routes[0]
}

fn forward(configuration: &RouteConfiguration) -> &Forward {
    match &only_route(configuration).action {
        RouteAction::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

const ROUTE: &str = "route configuration \"r\": virtual_hosts[0].routes[0].";

fn assert_refused(parsed: Parsed<RouteConfiguration>, reason: &str) {
    let text = parsed.expect_err(reason).to_string();
    assert_eq!(text.strip_prefix(ROUTE).unwrap_or(&text), reason);
}

#[test]
fn a_small_route_has_the_defaults() {
    let configuration = with_action("{cluster: billing}").unwrap();
    let forward = forward(&configuration);
    assert!(matches!(&forward.cluster, ClusterChoice::Cluster(name) if &**name == "billing"));
    assert_eq!(forward.timeout, Some(Duration::from_secs(15)));
    assert_eq!(forward.cluster_not_found_code, 503);
    assert_eq!(forward.idle_timeout, None);
    assert_eq!(forward.priority, Priority::Default);
    assert!(forward.retry_policy.is_none());
    let matches = &only_route(&configuration).matches;
    assert!(matches.case_sensitive && !matches.grpc);
    assert!(!configuration.validate_clusters);
}

/// What istiod sends for a plain Kubernetes service.
#[test]
fn an_istio_route_is_taken() {
    let configuration = parse(
        r#"
name: "8080"
virtual_hosts:
- name: reviews.default.svc.cluster.local:8080
  domains: [reviews.default.svc.cluster.local, "reviews.default.svc.cluster.local:8080", Reviews, 10.0.0.1]
  include_request_attempt_count: true
  routes:
  - name: default
    match: { prefix: / }
    decorator: { operation: "reviews.default.svc.cluster.local:8080/*" }
    route:
      cluster: outbound|8080||reviews.default.svc.cluster.local
      timeout: 0s
      max_grpc_timeout: 0s
      retry_policy:
        retry_on: connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes
        num_retries: 2
        retriable_status_codes: [503]
        retry_host_predicate:
        - name: envoy.retry_host_predicates.previous_hosts
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate
        host_selection_retry_max_attempts: "5"
        retry_priority:
          name: envoy.retry_priorities.previous_priorities
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig
            update_frequency: 2
validate_clusters: false
max_direct_response_body_size_bytes: 1048576
ignore_port_in_host_matching: true
"#,
    )
    .unwrap();
    assert!(configuration.ignore_port_in_host_matching);
    assert_eq!(configuration.virtual_hosts[0].domains[2], "reviews");
    let forward = forward(&configuration);
    assert_eq!(forward.timeout, None);
    assert_eq!(forward.max_grpc_timeout, Some(Duration::ZERO));
    let retry = forward.retry_policy.as_ref().unwrap();
    assert!(retry.on.connect_failure && retry.on.refused_stream && retry.on.retriable_status_codes);
    assert_eq!(retry.on.grpc_codes, (1 << 14) | (1 << 1));
    assert_eq!(retry.retriable_status_codes, [503]);
    assert_eq!((retry.num_retries, retry.host_selection_max_attempts), (2, 5));
    assert!(retry.avoided_hosts.previous && !retry.avoided_hosts.canaries);
    assert_eq!(retry.retry_priority.map(NonZeroU32::get), Some(2));
    assert_eq!((retry.base_interval, retry.max_interval), (Duration::from_millis(25), Duration::from_millis(250)));
}

#[test]
fn everything_that_a_route_can_have() {
    let configuration = parse(
        r#"
name: all
internal_only_headers: [X-Internal]
most_specific_header_mutations_wins: true
validate_clusters: true
request_headers_to_add:
- { header: { key: X-Added, value: "%PROTOCOL%" }, append_action: ADD_IF_ABSENT }
response_headers_to_remove: [Server]
virtual_hosts:
- name: shop
  domains: [shop.example, "*.shop.example", "shop.*"]
  require_tls: EXTERNAL_ONLY
  retry_policy: { retry_on: 5xx, retry_back_off: { base_interval: 0.0001s } }
  include_attempt_count_in_response: true
  routes:
  - match:
      safe_regex: { google_re2: {}, regex: "/v[0-9]+/.*" }
      grpc: {}
      runtime_fraction: { default_value: { numerator: 25 }, runtime_key: routing.v }
      headers:
      - { name: ":method", string_match: { exact: GET } }
      - { name: X-A, exact_match: "1" }
      - { name: X-B, safe_regex_match: { regex: "[a-z]+" } }
      - { name: X-C, range_match: { start: 1, end: 10 }, invert_match: true, treat_missing_header_as_empty: true }
      - { name: X-D, present_match: false }
      - { name: X-E, prefix_match: p }
      - { name: X-F, suffix_match: s }
      - { name: X-G, contains_match: c }
      - { name: X-H }
      query_parameters:
      - { name: debug, present_match: true }
      - { name: user, string_match: { prefix: a, ignore_case: true } }
    route:
      weighted_clusters:
        clusters:
        - name: a
          weight: 90
          host_rewrite_literal: a.example
          request_headers_to_add: [{ header: { key: x-to, value: a } }]
        - { name: b, weight: 10, response_headers_to_remove: [x-from] }
        total_weight: 100
      cluster_not_found_response_code: NOT_FOUND
      regex_rewrite: { pattern: { regex: "^/v1/(.*)$" }, substitution: "/\\1" }
      host_rewrite_path_regex: { pattern: { regex: "^/(.+)/.+$" }, substitution: "\\1" }
      append_x_forwarded_host: true
      idle_timeout: 0s
      priority: HIGH
      upgrade_configs: [{ upgrade_type: WebSocket }, { upgrade_type: CONNECT, enabled: false }]
      max_stream_duration: { max_stream_duration: 0s, grpc_timeout_header_max: 10s, grpc_timeout_header_offset: 0.1s }
      hash_policy: [{ header: { header_name: x-user } }]
    stat_prefix: versioned
    metadata: { filter_metadata: { com.example: { owner: shop } } }
  - match: { path: /old, case_sensitive: false }
    redirect: { https_redirect: true, host_redirect: new.example, port_redirect: 8443,
        path_redirect: "/new?x=1", response_code: PERMANENT_REDIRECT, strip_query: true }
  - match: { path_separated_prefix: /api }
    redirect: { scheme_redirect: ftp, prefix_rewrite: /rest }
  - match: { prefix: /status }
    direct_response: { status: 503, body: { inline_string: down }, body_format: { text_format: "%RESPONSE_CODE%\n" } }
  - match: { prefix: /echo }
    non_forwarding_action: {}
  - match: { prefix: /cluster }
    route: { cluster_header: X-Cluster, prefix_rewrite: /, auto_host_rewrite: true }
  - match: { prefix: /host }
    route: { cluster: c, host_rewrite_header: X-Host }
"#,
    )
    .unwrap();
    assert!(configuration.validate_clusters && configuration.most_specific_header_mutations_wins);
    assert_eq!(&*configuration.internal_only_headers[0], "x-internal");
    assert_eq!(configuration.request_headers.add[0].action, AppendAction::AddIfAbsent);
    assert_eq!(&*configuration.response_headers.remove[0], "server");
    let host = &configuration.virtual_hosts[0];
    assert_eq!(host.require_tls, RequireTls::ExternalOnly);
    assert_eq!(host.retry_policy.as_ref().unwrap().base_interval, Duration::from_millis(1));
    assert_eq!(host.retry_policy.as_ref().unwrap().max_interval, Duration::from_millis(10));

    let first = &host.routes[0];
    assert_eq!(first.stat_prefix.as_deref(), Some("versioned"));
    assert!(
        matches!(&first.matches.path, PathMatch::Regex(regex) if regex.is_match("/v12/x") && !regex.is_match("/a/v1/"))
    );
    assert_eq!(first.matches.runtime_fraction.as_ref().unwrap().default.parts(), (25, 100));
    let headers = &first.matches.headers;
    assert_eq!(&*headers[0].name, ":method");
    assert_eq!(headers[1].value, HeaderMatch::String(StringMatcher::Exact { value: "1".into(), ignore_case: false }));
    assert!(matches!(&headers[2].value, HeaderMatch::String(text) if text.matches(b"abc") && !text.matches(b"abc1")));
    assert_eq!(headers[3].value, HeaderMatch::Range { start: 1, end: 10 });
    assert!(headers[3].invert && headers[3].treat_missing_as_empty);
    assert_eq!(headers[4].value, HeaderMatch::Present(false));
    assert_eq!(headers[8].value, HeaderMatch::Present(true));
    assert_eq!(first.matches.query_parameters[0].value, QueryMatch::Present(true));
    let RouteAction::Forward(forward) = &first.action else { panic!("{:?}", first.action) };
    let ClusterChoice::Weighted(clusters) = &forward.cluster else { panic!("{:?}", forward.cluster) };
    assert_eq!((clusters[0].weight, clusters[1].weight), (90, 10));
    assert_eq!(clusters[0].host_rewrite_literal.as_deref(), Some("a.example"));
    assert_eq!(forward.cluster_not_found_code, 404);
    assert_eq!(forward.idle_timeout, Some(Duration::ZERO));
    assert_eq!(forward.priority, Priority::High);
    assert_eq!(forward.upgrades, [("websocket".to_owned(), true), ("connect".to_owned(), false)]);
    assert_eq!(forward.max_stream_duration.as_ref().unwrap().max_stream_duration, Some(Duration::ZERO));
    assert!(matches!(&forward.host_rewrite, HostRewrite::PathRegex(rewrite) if rewrite.substitution == "${1}"));

    let RouteAction::Redirect(redirect) = &host.routes[1].action else { panic!() };
    assert_eq!((redirect.scheme.clone(), redirect.port, redirect.status), (SchemeRedirect::Https, Some(8443), 308));
    assert!(matches!(&redirect.path, PathRedirect::Path(path) if path == "/new?x=1") && redirect.strip_query);
    let RouteAction::Redirect(redirect) = &host.routes[2].action else { panic!() };
    assert_eq!((redirect.scheme.clone(), redirect.status), (SchemeRedirect::Scheme("ftp".into()), 301));
    let RouteAction::Direct(direct) = &host.routes[3].action else { panic!() };
    assert_eq!((direct.status, &*direct.body), (503, &b"down"[..]));
    assert!(direct.body_format.is_some());
    assert!(matches!(host.routes[4].action, RouteAction::NonForwarding));
    let RouteAction::Forward(forward) = &host.routes[5].action else { panic!() };
    assert!(matches!(&forward.cluster, ClusterChoice::Header(name) if &**name == "x-cluster"));
    assert!(matches!(forward.host_rewrite, HostRewrite::Auto));
}

#[test]
fn a_route_with_an_optional_plugin_is_left_out() {
    let configuration = parse(
        r#"
name: r
cluster_specifier_plugins:
- extension: { name: rls, typed_config: { "@type": type.googleapis.com/envoy.config.core.v3.Locality } }
  is_optional: true
virtual_hosts:
- name: v
  domains: ["*"]
  routes:
  - { match: { prefix: /a }, route: { cluster_specifier_plugin: rls } }
  - { match: { prefix: / }, route: { cluster: c } }
"#,
    )
    .unwrap();
    assert!(matches!(&only_route(&configuration).matches.path, PathMatch::Prefix(prefix) if prefix == "/"));
    assert_refused(
        with_action("{cluster_specifier_plugin: rls}"),
        "route.cluster_specifier_plugin: \"rls\" is not among the cluster_specifier_plugins",
    );
}

#[test]
fn per_route_filter_configuration_is_refused_unless_it_may_be_missing() {
    let with = |config: &str| {
        with_route(&format!(
            "{{match: {{prefix: /}}, route: {{cluster: c}}, typed_per_filter_config: {{envoy.buffer: {config}}}}}"
        ))
    };
    let wrapped =
        |flags: &str| with(&format!("{{'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, {flags}}}"));
    assert!(wrapped("is_optional: true").is_ok());
    assert!(wrapped("disabled: true").is_ok());
    assert_refused(
        wrapped("config: {'@type': type.googleapis.com/envoy.config.core.v3.Locality}"),
        "typed_per_filter_config[\"envoy.buffer\"].config: per-route configuration \
          \"type.googleapis.com/envoy.config.core.v3.Locality\" is not supported",
    );
    assert_refused(
        with("{'@type': type.googleapis.com/envoy.config.core.v3.Locality}"),
        "typed_per_filter_config[\"envoy.buffer\"]: per-route configuration \
          \"type.googleapis.com/envoy.config.core.v3.Locality\" is not supported",
    );
}

#[test]
fn matches_that_are_refused() {
    for (matches, reason) in [
        (
            "{}",
            "match: needs one of prefix, path, safe_regex, path_separated_prefix, connect_matcher, path_match_policy",
        ),
        (
            "{path_separated_prefix: /}",
            "match.path_separated_prefix: \"/\" must have two characters or more, must not contain '?' or '#' \
              and must not end in '/'",
        ),
        ("{safe_regex: {regex: ''}}", "match.safe_regex.regex: must not be empty"),
        ("{prefix: /, headers: [{name: ''}]}", "match.headers[0].name: must not be empty"),
        ("{prefix: /, headers: [{name: a, prefix_match: ''}]}", "match.headers[0].prefix_match: must not be empty"),
        (
            "{prefix: /, headers: [{name: a, string_match: {}}]}",
            "match.headers[0].string_match: needs one of exact, prefix, suffix, contains, safe_regex",
        ),
        (
            "{prefix: /, query_parameters: [{name: ''}]}",
            "match.query_parameters[0].name: has 0 bytes, expected 1 to 1024",
        ),
        ("{prefix: /, runtime_fraction: {}}", "match.runtime_fraction.default_value: is required"),
    ] {
        assert_refused(with_match(matches), reason);
    }
    assert_refused(with_route("{route: {cluster: c}}"), "match: is required");
}

#[test]
fn actions_that_are_refused() {
    for (action, reason) in [
        ("{}", "route: needs one of cluster, cluster_header, weighted_clusters"),
        ("{cluster: ''}", "route.cluster: must not be empty"),
        (
            "{cluster: c, request_mirror_policies: [{}]}",
            "route.request_mirror_policies[0]: needs one of cluster, cluster_header",
        ),
        (
            "{cluster: c, request_mirror_policies: [{cluster: d, cluster_header: x}]}",
            "route.request_mirror_policies[0].cluster_header: must not be set together with cluster",
        ),
        ("{cluster: c, host_rewrite: x}", "route.host_rewrite: is not supported"),
        ("{cluster: c, timeout: -1s}", "route.timeout: -1.000000000s must not be negative"),
        (
            "{cluster: c, prefix_rewrite: /a, regex_rewrite: {pattern: {regex: a}, substitution: b}}",
            "route.regex_rewrite: must not be set together with prefix_rewrite",
        ),
        ("{weighted_clusters: {}}", "route.weighted_clusters.clusters: needs at least one cluster"),
        (
            "{weighted_clusters: {clusters: [{name: a, weight: 0}]}}",
            "route.weighted_clusters.clusters: the weights add up to 0, expected 1 to 4294967295",
        ),
        (
            "{weighted_clusters: {clusters: [{name: a, weight: 4294967295}, {name: b, weight: 1}]}}",
            "route.weighted_clusters.clusters: the weights add up to 4294967296, expected 1 to 4294967295",
        ),
        ("{weighted_clusters: {clusters: [{name: a}]}}", "route.weighted_clusters.clusters[0].weight: is required"),
        (
            "{weighted_clusters: {clusters: [{weight: 1}]}}",
            "route.weighted_clusters.clusters[0]: needs one of name, cluster_header",
        ),
        (
            "{cluster: c, upgrade_configs: [{upgrade_type: websocket}, {upgrade_type: WebSocket}]}",
            "route.upgrade_configs[1].upgrade_type: \"WebSocket\" is there twice",
        ),
        (
            "{cluster: c, upgrade_configs: [{upgrade_type: CONNECT-UDP}]}",
            "route.upgrade_configs[0].upgrade_type: \"CONNECT-UDP\" is not supported",
        ),
        (
            "{cluster: c, upgrade_configs: [{upgrade_type: websocket, connect_config: {}}]}",
            "route.upgrade_configs[0].connect_config: goes with CONNECT only, not with \"websocket\"",
        ),
        (
            "{cluster: c, internal_redirect_policy: {response_headers_to_copy: [host]}}",
            "route.internal_redirect_policy.response_headers_to_copy[0]: \"host\" must not be copied from a response",
        ),
        (
            "{cluster: c, retry_policy: {retry_back_off: {base_interval: 1s, max_interval: 0.5s}}}",
            "route.retry_policy.retry_back_off.max_interval: 500ms must not be below base_interval, 1s",
        ),
        (
            "{cluster: c, retry_policy: {retry_back_off: {}}}",
            "route.retry_policy.retry_back_off.base_interval: is required",
        ),
        (
            "{cluster: c, retry_policy: {retry_host_predicate: [{name: previous}]}}",
            "route.retry_policy.retry_host_predicate[0].typed_config: is required",
        ),
        (
            "{cluster: c, retry_policy: {retry_host_predicate: [{name: p, typed_config: {'@type': \
              type.googleapis.com/envoy.config.core.v3.Locality}}]}}",
            "route.retry_policy.retry_host_predicate[0].typed_config: \
              \"type.googleapis.com/envoy.config.core.v3.Locality\" is not supported",
        ),
        (
            "{cluster: c, retry_policy: {retry_priority: {name: p}}}",
            "route.retry_policy.retry_priority.typed_config: is required",
        ),
        (
            "{cluster: c, retry_policy: {retry_priority: {name: p, typed_config: {'@type': \
             type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}}}",
            "route.retry_policy.retry_priority.typed_config: \
             \"type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate\" is not supported",
        ),
        (
            "{cluster: c, retry_policy: {retry_priority: {name: p, typed_config: {'@type': \
             type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig}}}}",
            "route.retry_policy.retry_priority.typed_config.update_frequency: 0 must be above 0",
        ),
        (
            "{cluster: c, retry_policy: {host_selection_retry_max_attempts: -1}}",
            "route.retry_policy.host_selection_retry_max_attempts: -1 is not within 0 to 4294967295",
        ),
        (
            "{cluster: c, retry_policy: {retriable_status_codes: [200, 70000]}}",
            "route.retry_policy.retriable_status_codes[1]: 70000 is not within 100 to 599",
        ),
        (
            "{cluster: c, retry_policy: {rate_limited_retry_back_off: {}}}",
            "route.retry_policy.rate_limited_retry_back_off.reset_headers: needs at least one header",
        ),
    ] {
        assert_refused(with_action(action), reason);
    }
}

#[test]
fn answers_that_are_refused() {
    let long = "x".repeat(4097);
    for (answer, reason) in [
        ("redirect: {port_redirect: 70000}", "redirect.port_redirect: 70000 is not within 0 to 65535"),
        ("redirect: {path_rewrite: /x}", "redirect.path_rewrite: is not supported"),
        ("direct_response: {status: 199}", "direct_response.status: 199 is not within 200 to 599"),
        (
            &format!("direct_response: {{status: 200, body: {{inline_string: {long}}}}}"),
            "direct_response.body: has 4097 bytes, expected up to 4096 (max_direct_response_body_size_bytes)",
        ),
        (
            "direct_response: {status: 200, body: {filename: /nowhere}}",
            "direct_response.body.filename: cannot read \"/nowhere\": entity not found",
        ),
        (
            "direct_response: {status: 200, body_format: {json_format: {}}}",
            "direct_response.body_format.json_format: is not supported",
        ),
        ("name: x", "needs one of route, redirect, direct_response, non_forwarding_action"),
    ] {
        let text = with_route(&format!("{{match: {{prefix: /}}, {answer}}}")).expect_err(reason).to_string();
        let text = text.strip_prefix("route configuration \"r\": virtual_hosts[0].routes[0]").unwrap();
        assert_eq!(text.trim_start_matches(['.', ':', ' ']), reason);
    }
}

#[test]
fn late_tries_are_hedged_where_a_policy_says_so() {
    let configuration = parse(
        "{name: r, virtual_hosts: [{name: v, domains: ['*'], hedge_policy: {hedge_on_per_try_timeout: true}, routes: [\
         {match: {prefix: /a}, route: {cluster: c, hedge_policy: {initial_requests: 2}}}, {match: {prefix: /}, route: {cluster: c}}]}]}",
    )
    .unwrap();
    let host = &configuration.virtual_hosts[0];
    let hedges = |route: &Route| match &route.action {
        RouteAction::Forward(forward) => forward.hedges,
        _ => panic!("{:?}", route.action),
    };
    assert_eq!((host.hedges, hedges(&host.routes[0]), hedges(&host.routes[1])), (Some(true), Some(false), None));
}

#[test]
fn deprecated_policies_of_other_origins_are_read_like_named_ones() {
    let route = |cors: &str| with_action(&format!("{{cluster: c, cors: {cors}}}"));
    let configuration =
        route("{allow_origin_string_match: [{exact: a}], allow_methods: GET, filter_enabled: {default_value: {}}}")
            .unwrap();
    let RouteAction::Forward(forward) = &only_route(&configuration).action else { panic!() };
    let policy = forward.cors.as_ref().unwrap();
    assert!(policy.allow_origin[0].matches(b"a") && policy.allow_methods == "GET" && policy.enabled.is_some());
    let error = route("{max_age: \"1\\n\"}").unwrap_err().to_string();
    assert!(error.contains("routes[0].route.cors.max_age: "), "{error}");
}

#[test]
fn connect_ends_here_as_the_route_says() {
    let end = |config: &str| {
        let action = format!("{{cluster: c, upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {config}}}]}}");
        let configuration = with_action(&action).unwrap();
        let RouteAction::Forward(forward) = &only_route(&configuration).action else { panic!() };
        forward.connect.as_deref().cloned().unwrap()
    };
    let plain = end("{}");
    assert!(plain.takes(b"CONNECT") && !plain.takes(b"POST") && plain.proxy_header.is_none());
    let more = end("{allow_post: true, proxy_protocol_config: {version: V2}}");
    assert!(more.takes(b"POST") && !more.takes(b"PUT") && more.proxy_header.is_some());
}

#[test]
fn virtual_hosts_that_are_refused() {
    for (yaml, reason) in [
        (
            "{name: r, virtual_hosts: [{name: a, domains: [x.example]}, {name: b, domains: [y, X.example]}]}",
            "route configuration \"r\": virtual_hosts[1].domains[1]: \"x.example\" of virtual host \"b\" is \
              already a domain of virtual host \"a\"",
        ),
        (
            "{name: r, virtual_hosts: [{name: a, domains: ['*']}, {name: b, domains: ['*']}]}",
            "route configuration \"r\": virtual_hosts[1].domains[0]: \"*\" of virtual host \"b\" is already a \
              domain of virtual host \"a\"",
        ),
        (
            "{name: r, virtual_hosts: [{name: a}]}",
            "route configuration \"r\": virtual_hosts[0].domains: needs at least one domain",
        ),
        (
            "{name: r, virtual_hosts: [{domains: ['*']}]}",
            "route configuration \"r\": virtual_hosts[0].name: must not be empty",
        ),
        ("{name: r, vhds: {}}", "route configuration \"r\": vhds.config_source: is required"),
        (
            "{name: r, request_headers_to_remove: [host]}",
            "route configuration \"r\": request_headers_to_remove[0]: \"host\": \":\"-prefixed or host headers \
              may not be removed",
        ),
    ] {
        assert_refused(parse(yaml), reason);
    }
    let mut wire = pb::RouteConfiguration { name: "r".into(), ..Default::default() };
    wire.virtual_hosts.push(pb::VirtualHost {
        name: "v".into(),
        domains: vec!["*".into()],
        require_tls: 9,
        ..Default::default()
    });
    assert_refused(
        RouteConfiguration::parse(&Context::new(&NoFiles), wire),
        "route configuration \"r\": virtual_hosts[0].require_tls: 9 is not a known value",
    );
}

proptest! {
    #[test]
    fn no_bytes_can_crash_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(wire) = pb::RouteConfiguration::decode(bytes.as_slice()) {
            let _ = RouteConfiguration::parse(&Context::new(&NoFiles), wire);
        }
        if let Ok(wire) = pb::Route::decode(bytes.as_slice()) {
            let (name, domains) = ("v".to_owned(), vec!["*".to_owned()]);
            let host = pb::VirtualHost { name, domains, routes: vec![wire], ..Default::default() };
            let wire = pb::RouteConfiguration { virtual_hosts: vec![host], ..Default::default() };
            let _ = RouteConfiguration::parse(&Context::new(&NoFiles), wire);
        }
    }
}
