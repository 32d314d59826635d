//! Clusters and endpoints as people write them, and what is said about those that are refused.

use std::io;
use std::path::Path;
use std::time::Duration;

use outrigger_api::Schema;
use outrigger_api::pb::envoy::config::cluster::v3 as pb;
use outrigger_api::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::context::{Context, Environment};
use crate::rejection::Parsed;
use crate::source::SourceKind;

pub(super) struct NoFiles;

impl Environment for NoFiles {
    fn read_file(&self, _: &Path) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}

pub(super) fn read<M: prost::Message + prost::Name + Default>(yaml: &str) -> M {
    let parsed = Schema::load().parse_yaml::<M>(yaml, outrigger_api::ParseOptions::default());
    parsed.unwrap_or_else(|error| panic!("{error}\n{yaml}")).message
}

fn parse(yaml: &str) -> Parsed<Cluster> {
    Cluster::parse(&Context::new(&NoFiles), read(yaml))
}

/// A cluster named `c` with these fields.
pub(super) fn with(fields: &str) -> Parsed<Cluster> {
    parse(&format!("{{name: c, {fields}}}"))
}

fn endpoints(yaml: &str) -> Parsed<Assignment> {
    Assignment::parse(&Context::new(&NoFiles), read(yaml))
}

fn address(ip: &str) -> String {
    format!("{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: 80}}}}}}}}")
}

pub(super) fn assert_refused<T: std::fmt::Debug>(parsed: Parsed<T>, reason: &str) {
    let text = parsed.expect_err(reason).to_string();
    assert_eq!(text.strip_prefix("cluster \"c\": ").unwrap_or(&text), reason);
}

const HTTP_OPTIONS: &str = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

fn with_http(options: &str) -> Parsed<Cluster> {
    with(&format!("typed_extension_protocol_options: {{http: {{'@type': {HTTP_OPTIONS}, {options}}}}}"))
}

#[test]
fn a_name_alone_is_a_static_cluster() {
    let cluster = parse("{name: c}").unwrap();
    assert!(matches!(&cluster.discovery, Discovery::Static(assignment) if assignment.localities.is_empty()));
    assert_eq!(cluster.connect_timeout, Duration::from_secs(5));
    assert_eq!(cluster.per_connection_buffer_limit_bytes, 1 << 20);
    assert_eq!(cluster.load_balancing, LoadBalancing::RoundRobin);
    assert_eq!(cluster.circuit_breakers.default.max_connections, 1024);
    assert_eq!(cluster.circuit_breakers.high.max_retries, 3);
    assert_eq!(cluster.healthy_panic_threshold.value(), 50.0);
    assert_eq!(cluster.update_merge_window, Duration::from_secs(1));
    assert_eq!(cluster.http.protocol, UpstreamProtocol::Http1);
    assert_eq!((cluster.http.max_headers_count, cluster.http.max_response_headers_bytes), (100, 60 * 1024));
    assert!(matches!(cluster.transport, UpstreamTransport::Raw));
    assert_eq!(&*cluster.stat_name, "c");
}

#[test]
fn a_static_cluster_with_all_it_can_have() {
    let cluster = parse(
        r#"
name: billing
alt_stat_name: billing_stats
type: STATIC
connect_timeout: 0.25s
per_connection_buffer_limit_bytes: 32768
lb_policy: LEAST_REQUEST
least_request_lb_config: { choice_count: 5, active_request_bias: { default_value: 0.5 } }
common_lb_config: { healthy_panic_threshold: { value: 12.9 }, update_merge_window: 0s,
    zone_aware_lb_config: { min_cluster_size: 3 } }
circuit_breakers:
  thresholds:
  - { max_connections: 10, max_pending_requests: 11, max_requests: 12, max_retries: 13, track_remaining: true }
  - { max_connections: 99 }
  - { priority: HIGH, retry_budget: { budget_percent: { value: 25 } } }
  per_host_thresholds: [{ max_connections: 7 }]
common_http_protocol_options: { idle_timeout: 30s, max_requests_per_connection: 100 }
http2_protocol_options: { max_concurrent_streams: 10 }
upstream_http_protocol_options: { auto_sni: true }
upstream_connection_options: { tcp_keepalive: { keepalive_time: 300 } }
upstream_bind_config: { source_address: { address: 127.0.0.2, port_value: 0 } }
ignore_health_on_host_removal: true
metadata: { filter_metadata: { istio: { services: [] } } }
load_assignment:
  cluster_name: billing
  policy: { overprovisioning_factor: 100 }
  endpoints:
  - locality: { region: eu, zone: eu-1 }
    priority: 3
    load_balancing_weight: 2
    lb_endpoints:
    - { endpoint: { address: { socket_address: { address: 10.0.0.1, port_value: 80 } }, hostname: one },
        load_balancing_weight: 9 }
    - { endpoint: { address: { pipe: { path: /run/billing.sock } } }, health_status: DRAINING }
  - locality: { region: eu, zone: eu-1 }
    priority: 3
    lb_endpoints:
    - { endpoint: { address: { socket_address: { address: "::1", port_value: 80 } } } }
"#,
    )
    .unwrap();
    assert_eq!((&*cluster.name, &*cluster.stat_name), ("billing", "billing_stats"));
    assert_eq!(cluster.connect_timeout, Duration::from_millis(250));
    assert_eq!(cluster.load_balancing, LoadBalancing::LeastRequest { choice_count: 5, active_request_bias: 0.5 });
    assert_eq!((cluster.healthy_panic_threshold.value(), cluster.update_merge_window), (12.0, Duration::ZERO));
    let breakers = &cluster.circuit_breakers;
    assert_eq!(
        breakers.default,
        Thresholds {
            max_connections: 10,
            max_pending_requests: 11,
            max_requests: 12,
            max_retries: 13,
            track_remaining: true,
            retry_budget: None
        }
    );
    let budget = breakers.high.retry_budget.unwrap();
    assert_eq!((budget.budget.value(), budget.min_retry_concurrency), (25.0, 3));
    assert_eq!(breakers.per_host_max_connections, Some(7));
    assert_eq!((cluster.http.protocol, cluster.http.http2.max_concurrent_streams), (UpstreamProtocol::Http2, 10));
    assert_eq!(cluster.http.idle_timeout, Some(Duration::from_secs(30)));
    assert_eq!(cluster.max_requests_per_connection, Some(100));
    assert!(cluster.http.auto_sni && !cluster.http.auto_san_validation);
    assert_eq!(cluster.tcp_keepalive.unwrap().time_s, Some(300));
    let Discovery::Static(assignment) = &cluster.discovery else { panic!("{:?}", cluster.discovery) };
    assert_eq!(assignment.overprovisioning_factor, 100);
    // One locality, written twice, in the only priority.
    let [locality] = assignment.localities.as_slice() else { panic!("{assignment:?}") };
    assert_eq!((locality.priority, locality.weight, locality.endpoints.len()), (0, Some(2), 3));
    assert_eq!((locality.endpoints[0].weight, &*locality.endpoints[0].hostname), (9, "one"));
    assert_eq!(locality.endpoints[1].health, HealthStatus::Draining);
}

#[test]
fn an_eds_cluster_of_a_mesh() {
    let cluster = with(
        "type: EDS, eds_cluster_config: {eds_config: {ads: {}, initial_fetch_timeout: 0s, \
      resource_api_version: V3}}, dns_lookup_family: V4_ONLY",
    )
    .unwrap();
    let Discovery::Eds { service_name, source } = &cluster.discovery else { panic!("{:?}", cluster.discovery) };
    assert_eq!(&**service_name, "c");
    assert_eq!((&source.kind, source.initial_fetch_timeout), (&SourceKind::Ads, None));
    let cluster = with("type: EDS, eds_cluster_config: {eds_config: {ads: {}}, service_name: s}").unwrap();
    assert!(matches!(&cluster.discovery, Discovery::Eds { service_name, .. } if &**service_name == "s"));
}

#[test]
fn dns_clusters_in_their_old_and_new_forms() {
    let assignment =
        format!("load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{}]}}]}}", address("api.example"));
    let old = with(&format!(
        "type: STRICT_DNS, dns_refresh_rate: 2s, dns_jitter: 1s, respect_dns_ttl: true, \
      dns_lookup_family: ALL, dns_failure_refresh_rate: {{base_interval: 1s}}, dns_resolvers: \
      [{{socket_address: {{address: 10.0.0.10, port_value: 53}}}}], use_tcp_for_dns_lookups: true, \
      {assignment}"
    ))
    .unwrap();
    let Discovery::StrictDns { assignment: read, dns } = &old.discovery else { panic!("{:?}", old.discovery) };
    assert_eq!(&*read.localities[0].endpoints[0].hostname, "api.example");
    assert_eq!((dns.refresh_rate, dns.jitter), (Duration::from_secs(2), Duration::from_secs(1)));
    assert_eq!(
        (dns.failure_base_interval, dns.failure_max_interval),
        (Duration::from_secs(1), Duration::from_secs(10))
    );
    assert_eq!((dns.respect_ttl, dns.family), (true, DnsFamily::All));
    let resolver = dns.resolver.as_ref().unwrap();
    assert_eq!((resolver.servers[0].to_string(), resolver.use_tcp), ("10.0.0.10:53".to_owned(), true));

    let new = "type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster";
    let logical = with(&format!(
        "cluster_type: {{name: envoy.clusters.dns, typed_config: {{'@type': {new}, \
      all_addresses_in_single_endpoint: true, dns_lookup_family: V4_PREFERRED}}}}, {assignment}"
    ))
    .unwrap();
    let Discovery::LogicalDns { dns, .. } = &logical.discovery else { panic!("{:?}", logical.discovery) };
    assert_eq!((dns.refresh_rate, dns.failure_max_interval), (Duration::from_secs(5), Duration::from_secs(5)));
    assert_eq!((dns.family, &dns.resolver), (DnsFamily::V4Preferred, &None));
    let strict =
        with(&format!("cluster_type: {{name: envoy.clusters.dns, typed_config: {{'@type': {new}}}}}, {assignment}"))
            .unwrap();
    assert!(matches!(strict.discovery, Discovery::StrictDns { .. }));
}

#[test]
fn original_destination_clusters_in_their_old_and_new_forms() {
    let old = with("type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, cleanup_interval: 9223372036s").unwrap();
    let Discovery::OriginalDst(options) = &old.discovery else { panic!("{:?}", old.discovery) };
    assert_eq!(options.cleanup_interval, Duration::from_secs(9_223_372_036));
    assert_eq!((&options.http_header, options.upstream_port_override), (&None, None));
    let old = with(
        "type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, original_dst_lb_config: {use_http_header: \
      true, upstream_port_override: 15008}",
    )
    .unwrap();
    let Discovery::OriginalDst(options) = &old.discovery else { panic!("{:?}", old.discovery) };
    assert_eq!(
        (options.http_header.as_deref(), options.upstream_port_override),
        (Some("x-envoy-original-dst-host"), Some(15008))
    );
    let new = with(
        "cluster_type: {name: envoy.clusters.original_dst, typed_config: {'@type': \
      type.googleapis.com/envoy.extensions.clusters.original_dst.v3.OriginalDstCluster, use_http_header: true, \
      http_header_name: X-To}}, load_balancing_policy: {policies: [{typed_extension_config: {name: p, \
      typed_config: {'@type': \
      type.googleapis.com/envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided}}}]}",
    )
    .unwrap();
    let Discovery::OriginalDst(options) = &new.discovery else { panic!("{:?}", new.discovery) };
    assert_eq!(options.http_header.as_deref(), Some("x-to"));
}

#[test]
fn http_options_choose_the_protocol() {
    let protocol = |options: &str| with_http(options).unwrap().http.protocol;
    assert_eq!(protocol("explicit_http_config: {http_protocol_options: {}}"), UpstreamProtocol::Http1);
    assert_eq!(protocol("explicit_http_config: {http2_protocol_options: {}}"), UpstreamProtocol::Http2);
    assert_eq!(
        protocol("use_downstream_protocol_config: {http2_protocol_options: {}}"),
        UpstreamProtocol::UseDownstream
    );
    assert_eq!(
        with("protocol_selection: USE_DOWNSTREAM_PROTOCOL, http_protocol_options: {}, http2_protocol_options: {}")
            .unwrap()
            .http
            .protocol,
        UpstreamProtocol::UseDownstream
    );
    let cluster = with_http(
        "common_http_protocol_options: {max_response_headers_kb: 96}, explicit_http_config: \
      {http_protocol_options: {header_key_format: {proper_case_words: {}}}}, http_filters: [{name: codec, \
      typed_config: {'@type': \
      type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec}}]",
    )
    .unwrap();
    assert_eq!(cluster.http.max_response_headers_bytes, 96 * 1024);
    assert_eq!(cluster.max_requests_per_connection, None);
}

#[test]
fn the_first_policy_that_exists_wins_over_the_enum() {
    const UNKNOWN: &str = "{typed_extension_config: {name: x, typed_config: {'@type': \
        type.googleapis.com/xds.type.v3.TypedStruct, type_url: example.org/own.Policy, value: {a: 1}}}}";
    const NO_POLICY: &str = "{typed_extension_config: {name: x, typed_config: {'@type': \
        type.googleapis.com/envoy.config.core.v3.Locality}}}";
    let policies = |list: &[&str]| {
        let of = |name: &&str| match *name {
            UNKNOWN | NO_POLICY => (*name).to_owned(),
            name => format!(
                "{{typed_extension_config: {{name: x, typed_config: {{'@type': \
                 type.googleapis.com/envoy.extensions.load_balancing_policies.{name}}}}}}}"
            ),
        };
        let list: Vec<_> = list.iter().map(of).collect();
        with(&format!("lb_policy: RING_HASH, load_balancing_policy: {{policies: [{}]}}", list.join(", ")))
    };
    let chosen = |list: &[&str]| policies(list).unwrap().load_balancing;
    assert_eq!(chosen(&[UNKNOWN, NO_POLICY, "random.v3.Random", "round_robin.v3.RoundRobin"]), LoadBalancing::Random);
    assert_eq!(
        chosen(&["least_request.v3.LeastRequest, choice_count: 3"]),
        LoadBalancing::LeastRequest { choice_count: 3, active_request_bias: 1.0 }
    );
    assert_eq!(
        chosen(&["round_robin.v3.RoundRobin, locality_lb_config: {zone_aware_lb_config: {}}"]),
        LoadBalancing::RoundRobin
    );
    assert_refused(
        policies(&[NO_POLICY, UNKNOWN]),
        "load_balancing_policy.policies: none is supported, expected another than \
          \"type.googleapis.com/envoy.config.core.v3.Locality\", \"example.org/own.Policy\"",
    );
    assert_refused(policies(&[]), "load_balancing_policy.policies: needs at least one policy");
    let at = "load_balancing_policy.policies[0].typed_extension_config.typed_config.";
    for (policy, reason) in [
        ("least_request.v3.LeastRequest, choice_count: 1", "choice_count: 1 is not within 2 to 4294967295"),
        (
            "round_robin.v3.RoundRobin, slow_start_config: {slow_start_window: 1s, aggression: {default_value: 0}}",
            "slow_start_config.aggression.default_value: 0 must be above 0",
        ),
        (
            "random.v3.Random, locality_lb_config: {}",
            "locality_lb_config: needs one of zone_aware_lb_config, locality_weighted_lb_config",
        ),
    ] {
        assert_refused(policies(&[policy]), &format!("{at}{reason}"));
    }
}

#[test]
fn clusters_that_are_refused() {
    let two = format!(
        "load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{}, {}]}}]}}",
        address("a.example"),
        address("b.example")
    );
    let other_type = "{'@type': type.googleapis.com/envoy.config.core.v3.Locality}";
    for (fields, reason) in [
        ("connect_timeout: 0s", "connect_timeout: 0s must be above zero"),
        (
            "lb_policy: LOAD_BALANCING_POLICY_CONFIG",
            "load_balancing_policy: is required with LOAD_BALANCING_POLICY_CONFIG",
        ),
        (
            "lb_policy: CLUSTER_PROVIDED",
            "lb_policy: CLUSTER_PROVIDED is not for clusters of type STATIC, which leave the choice open",
        ),
        ("type: ORIGINAL_DST", "lb_policy: must be CLUSTER_PROVIDED for a cluster of type ORIGINAL_DST"),
        (
            "lb_policy: LEAST_REQUEST, least_request_lb_config: {choice_count: 1}",
            "least_request_lb_config.choice_count: 1 is not within 2 to 4294967295",
        ),
        (
            "lb_policy: LEAST_REQUEST, least_request_lb_config: {active_request_bias: {default_value: -1}}",
            "least_request_lb_config.active_request_bias.default_value: -1 must be 0 or more",
        ),
        (
            "common_lb_config: {healthy_panic_threshold: {value: 101}}",
            "common_lb_config.healthy_panic_threshold.value: 101 is not within 0 to 100",
        ),
        (
            "health_checks: [{timeout: 1s, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1, \
              tcp_health_check: {}}, {}]",
            "health_checks[0].name: is required where there are several health checks",
        ),
        ("filters: [{name: x}]", "filters[0].typed_config: is required"),
        ("wait_for_warm_on_init: false", "wait_for_warm_on_init: false is not supported"),
        ("type: EDS", "eds_cluster_config: is required for a cluster of type EDS"),
        ("type: EDS, eds_cluster_config: {}", "eds_cluster_config.eds_config: is required"),
        ("eds_cluster_config: {eds_config: {ads: {}}}", "eds_cluster_config: is for clusters of type EDS"),
        (
            "type: EDS, eds_cluster_config: {eds_config: {ads: {}}}, load_assignment: {cluster_name: c}",
            "load_assignment: must not be set for a cluster of type EDS",
        ),
        (
            "type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, original_dst_lb_config: {http_header_name: x}",
            "original_dst_lb_config.http_header_name: needs use_http_header",
        ),
        (
            &two,
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: \
              \"a.example\" is not an IP address; names are for clusters of type STRICT_DNS or LOGICAL_DNS",
        ),
        (
            &format!("type: LOGICAL_DNS, {two}"),
            "load_assignment: has 1 localities with 2 endpoints, but a cluster of type LOGICAL_DNS needs one of each",
        ),
        ("type: LOGICAL_DNS", "load_assignment: is required for a cluster of type LOGICAL_DNS"),
        ("type: STRICT_DNS, dns_refresh_rate: 0.001s", "dns_refresh_rate: 1ms must be above 1ms"),
        (
            "type: STRICT_DNS, dns_failure_refresh_rate: {base_interval: 5s, max_interval: 1s}",
            "dns_failure_refresh_rate.max_interval: 1s must not be below base_interval, 5s",
        ),
        (
            &format!("cluster_type: {{name: envoy.clusters.aggregate, typed_config: {other_type}}}"),
            "cluster_type.typed_config: cluster type \"type.googleapis.com/envoy.config.core.v3.Locality\" is \
              not supported",
        ),
        (
            "circuit_breakers: {per_host_thresholds: [{max_retries: 1}]}",
            "circuit_breakers.per_host_thresholds[0].max_retries: is not supported in per_host_thresholds",
        ),
        (
            "http_protocol_options: {}, http2_protocol_options: {}",
            "http2_protocol_options: must not be set together with http_protocol_options unless the downstream \
              protocol is used",
        ),
        (
            "max_requests_per_connection: 1, common_http_protocol_options: {max_requests_per_connection: 2}",
            "max_requests_per_connection: must not be set both here and in the HTTP protocol options",
        ),
        (
            &format!("typed_extension_protocol_options: {{envoy.x: {other_type}}}"),
            "typed_extension_protocol_options[\"envoy.x\"]: \
              \"type.googleapis.com/envoy.config.core.v3.Locality\" is not supported",
        ),
        (
            &format!("upstream_config: {{name: x, typed_config: {other_type}}}"),
            "upstream_config.typed_config: \"type.googleapis.com/envoy.config.core.v3.Locality\" is not supported",
        ),
    ] {
        assert_refused(with(fields), reason);
    }
    assert_refused(parse("{}"), "cluster \"\": name: must not be empty");
    let wire = pb::Cluster { name: "c".into(), lb_policy: 4, ..Default::default() };
    assert_refused(Cluster::parse(&Context::new(&NoFiles), wire), "lb_policy: 4 is not a known value");
}

#[test]
fn http_options_that_are_refused() {
    let at = "typed_extension_protocol_options[\"http\"]";
    for (options, reason) in [
        (
            "upstream_http_protocol_options: {}",
            ": needs one of explicit_http_config, use_downstream_protocol_config, auto_config",
        ),
        (
            "explicit_http_config: {}",
            ".explicit_http_config: needs one of http_protocol_options, http2_protocol_options",
        ),
        (
            "explicit_http_config: {http3_protocol_options: {}}",
            ".explicit_http_config.http3_protocol_options: is not supported",
        ),
        (
            "explicit_http_config: {http_protocol_options: {}}, upstream_http_protocol_options: \
              {override_auto_sni_header: ':'}",
            ".upstream_http_protocol_options.override_auto_sni_header: \":\" is not a valid header name",
        ),
        (
            "explicit_http_config: {http_protocol_options: {}}, http_filters: [{name: x, typed_config: \
              {'@type': type.googleapis.com/envoy.config.core.v3.Locality}}]",
            ".http_filters[0].typed_config: the HTTP filter \"type.googleapis.com/envoy.config.core.v3.Locality\" \
              is not supported",
        ),
        (
            "explicit_http_config: {http_protocol_options: {}}, http_filters: [{name: x, typed_config: \
              {'@type': type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation}}]",
            ".http_filters: the last filter must be envoy.filters.http.upstream_codec",
        ),
        (
            "explicit_http_config: {http_protocol_options: {}}, http_filters: [{name: x, typed_config: \
              {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}]",
            ".http_filters[0]: the HTTP filter \"x\" cannot stand in front of upstreams, expected one of admission control, \
              buffer, compressor, credential injector, external processing, header mutation, RBAC",
        ),
        (
            "explicit_http_config: {http_protocol_options: {}}, http_filters: [{name: x, typed_config: {'@type': \
              type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher, extension_config: {name: y, \
              typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}}}]",
            ".http_filters[0]: chooses among filters that cannot stand in front of upstreams",
        ),
    ] {
        assert_refused(with_http(options), &format!("{at}{reason}"));
    }
    assert_refused(
        with_http("auto_config: {}"),
        "typed_extension_protocol_options: auto_config needs a TLS transport_socket",
    );
}

#[test]
fn discovered_endpoints_are_complete() {
    let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
    let good = endpoints(&format!(
        "{{cluster_name: s, endpoints: [{{lb_endpoints: [{a}]}}, {{priority: 1, \
      lb_endpoints: [{b}]}}, {{priority: 1, locality: {{zone: z}}}}]}}"
    ))
    .unwrap();
    assert_eq!(good.localities.len(), 3);
    assert_eq!(good.overprovisioning_factor, 140);
    assert!(endpoints("{cluster_name: s}").unwrap().localities.is_empty());
    for (list, reason) in [
        (format!("{{priority: 1, lb_endpoints: [{a}]}}"), "endpoints: priority 1 is there, but priority 0 is not"),
        (
            format!("{{lb_endpoints: [{a}]}}, {{priority: 2, lb_endpoints: [{b}]}}"),
            "endpoints: priority 2 is there, but priority 1 is not",
        ),
        (
            format!("{{lb_endpoints: [{a}]}}, {{lb_endpoints: [{b}]}}"),
            "endpoints[1].locality: region \"\", zone \"\", sub_zone \"\" with priority 0 is already in endpoints[0]",
        ),
        (format!("{{lb_endpoints: [{a}, {a}]}}"), "endpoints[0].lb_endpoints[1]: 10.0.0.1:80 is there twice"),
        (
            "{load_balancing_weight: 4294967295, locality: {zone: a}}, {load_balancing_weight: 1}".to_owned(),
            "endpoints: the weights add up to 4294967296, expected up to 4294967295",
        ),
        (
            "{load_balancing_weight: 0}".to_owned(),
            "endpoints[0].load_balancing_weight: 0 is not within 1 to 4294967295",
        ),
        ("{priority: 129}".to_owned(), "endpoints[0].priority: 129 is not within 0 to 128"),
        ("{lb_endpoints: [{}]}".to_owned(), "endpoints[0].lb_endpoints[0].endpoint: is required"),
        (
            format!("{{lb_endpoints: [{}]}}", address("a.example")),
            "endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: \"a.example\" is not an IP \
              address; names are for clusters of type STRICT_DNS or LOGICAL_DNS",
        ),
        ("{leds_cluster_locality_config: {}}".to_owned(), "endpoints[0].lb_config: is not supported"),
    ] {
        assert_refused(
            endpoints(&format!("{{cluster_name: s, endpoints: [{list}]}}")),
            &format!("endpoints \"s\": {reason}"),
        );
    }
    let policy = |fields: &str| endpoints(&format!("{{cluster_name: s, policy: {{{fields}}}}}"));
    let drops = policy("drop_overloads: [{category: x, drop_percentage: {numerator: 25}}], endpoint_stale_after: 0s");
    assert_eq!(drops.unwrap().drop_overload.unwrap().parts(), (25, 100));
    assert_eq!(policy("drop_overloads: [{category: x}]").unwrap().drop_overload, None);
    let stale_after = |text: &str| policy(&format!("endpoint_stale_after: {text}")).map(|read| read.stale_after);
    assert_eq!((stale_after("0s").unwrap(), stale_after("2s").unwrap()), (None, Some(Duration::from_secs(2))));
    assert!(policy("weighted_priority_health: true").unwrap().weighted_priority_health);
    assert_refused(
        policy("drop_overloads: [{category: x}, {category: y}]"),
        "endpoints \"s\": policy.drop_overloads: has 2 categories, expected one",
    );
    assert_refused(
        policy("drop_overloads: [{drop_percentage: {numerator: 25}}]"),
        "endpoints \"s\": policy.drop_overloads[0].category: must not be empty",
    );
    assert_refused(endpoints("{}"), "endpoints \"\": cluster_name: must not be empty");
}

proptest! {
    #[test]
    fn no_bytes_can_crash_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(wire) = pb::Cluster::decode(bytes.as_slice()) {
            let _ = Cluster::parse(&Context::new(&NoFiles), wire);
        }
        if let Ok(wire) = ClusterLoadAssignment::decode(bytes.as_slice()) {
            let _ = Assignment::parse(&Context::new(&NoFiles), wire);
        }
    }
}
