//! Listeners as control planes send them, and what is said about broken ones.

use crate::cluster::TlvFilter;
use std::time::Duration;

use outrigger_api::pb::envoy::config::listener::v3 as pb;
use outrigger_api::{Schema, UnknownFields};
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::context::{Context, NoEnvironment};
use crate::tcp::{BackOff, TunnelRequestId};

/// Reads a listener given as YAML.
pub(crate) fn read(yaml: &str) -> Result<Listener, String> {
    let wire = Schema::load()
        .parse_yaml::<pb::Listener>(yaml, UnknownFields::Reject)
        .unwrap_or_else(|error| panic!("{error}\n{yaml}"))
        .message;
    Listener::parse(&Context::new(&NoEnvironment), wire).map_err(|rejection| rejection.to_string())
}

const ADDRESS: &str = "address: {socket_address: {address: 127.0.0.1, port_value: 10000}}";
const TCP: &str = r#"{name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: c}}"#;

/// A listener with an address, one plain chain and `extra` fields.
fn with(extra: &str) -> Result<Listener, String> {
    read(&format!("name: l\n{ADDRESS}\nfilter_chains: [{{filters: [{TCP}]}}]\n{extra}\n"))
}

/// A listener inside the process, with one plain chain and `extra` fields.
fn internal(name: &str, extra: &str) -> Result<Listener, String> {
    read(&format!("name: {name}\ninternal_listener: {{}}\nfilter_chains: [{{filters: [{TCP}]}}]\n{extra}\n"))
}

/// A listener with an address and these chains; `filters: TCP` stands for a TCP proxy.
fn with_chains(chains: &str) -> Result<Listener, String> {
    read(&format!("name: l\n{ADDRESS}\n{}\n", chains.replace("filters: TCP", &format!("filters: [{TCP}]"))))
}

fn with_filter(kind: &str, fields: &str) -> Result<Listener, String> {
    with(&format!(
        "listener_filters: [{{name: f, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.listener.{kind}, \
         {fields}}}}}]"
    ))
}

/// A listener whose one chain is a TCP proxy with these fields.
pub(crate) fn with_tcp(fields: &str) -> Result<Listener, String> {
    read(&format!(
        "name: l\n{ADDRESS}\nfilter_chains: [{{filters: [{{name: tcp, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, {fields}}}}}]}}]\n"
    ))
}

/// That TCP proxy.
pub(crate) fn tcp_proxy(listener: &Listener) -> &TcpProxy {
    match &listener.filter_chains[0].filters[0].config {
        NetworkFilterConfig::TcpProxy(tcp) => tcp,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_minimal_listener_has_the_defaults_of_the_api() {
    let got = with("").unwrap();
    assert_eq!(&*got.name, "l");
    assert_eq!(got.addresses[0].address.to_string(), "127.0.0.1:10000");
    assert!(got.bind_to_port && got.reuse_port && !got.use_original_dst && !got.exact_balance);
    assert_eq!(got.listener_filters_timeout, Some(Duration::from_secs(15)));
    assert_eq!(got.per_connection_buffer_limit_bytes, 1 << 20);
    assert_eq!((got.backlog, got.tcp_keepalive, got.drain_type), (None, None, DrainType::Default));
    let tcp = tcp_proxy(&got);
    assert_eq!(tcp.idle_timeout, Some(Duration::from_secs(3600)));
    assert_eq!((tcp.max_connect_attempts, tcp.target.clusters.len()), (1, 1));
}

#[test]
fn a_full_listener_keeps_every_field() {
    let got = with(
        r#"
stat_prefix: public
additional_addresses:
- address: {pipe: {path: /run/l.sock, mode: 432}}
- address: {socket_address: {address: "::", port_value: 10000, ipv4_compat: true}}
  socket_options: {socket_options: []}
use_original_dst: true
bind_to_port: false
transparent: true
freebind: true
enable_reuse_port: false
tcp_backlog_size: 128
tcp_fast_open_queue_length: 5
max_connections_to_accept_per_socket_event: 3
per_connection_buffer_limit_bytes: 32768
per_connection_buffer_high_watermark_timeout: 0s
listener_filters_timeout: 0s
continue_on_listener_filters_timeout: true
traffic_direction: INBOUND
drain_type: MODIFY_ONLY
ignore_global_conn_limit: true
connection_balance_config: {exact_balance: {}}
socket_options: [{level: 1, name: 2, int_value: 3, state: STATE_PREBIND}]
tcp_keepalive: {keepalive_probes: 3, keepalive_time: 10, keepalive_interval: 5}
metadata: {filter_metadata: {a: {b: c}}}
"#,
    )
    .unwrap();
    assert_eq!(got.stat_prefix.as_deref(), Some("public"));
    assert!(!got.bind_to_port && !got.reuse_port && got.use_original_dst && got.transparent && got.freebind);
    assert_eq!(got.addresses.len(), 3);
    assert_eq!(got.addresses[1].socket_options.len(), 1, "taken over");
    assert!(got.addresses[2].socket_options.is_empty() && got.addresses[2].ipv4_compat, "their own");
    assert_eq!((got.backlog, got.tcp_fast_open_queue_length, got.max_accepts_per_event), (Some(128), Some(5), Some(3)));
    assert_eq!(got.listener_filters_timeout, None);
    assert_eq!(got.traffic_direction, TrafficDirection::Inbound);
    assert_eq!(got.drain_type, DrainType::ModifyOnly);
    assert!(got.exact_balance && got.ignore_global_connection_limit && got.continue_on_listener_filters_timeout);
    assert_eq!(got.tcp_keepalive.unwrap().time_s, Some(10));
    assert_eq!(got.listener_filters[0].kind, ListenerFilterKind::OriginalDst, "implied by use_original_dst");
}

#[test]
fn an_outbound_listener_of_transparent_interception() {
    let got = read(
        r#"
name: outbound_listener:127.0.0.1:15001
address: {socketAddress: {address: 127.0.0.1, portValue: 15001}}
trafficDirection: OUTBOUND
listenerFilters:
- name: envoy.filters.listener.original_dst
  typedConfig: {"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}
- name: envoy.filters.listener.tls_inspector
  typedConfig: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}
  filterDisabled: {orMatch: {rules: [{destinationPortRange: {start: 3306, end: 3307}}, {notMatch: {anyMatch: true}}]}}
filterChains:
- filterChainMatch: {prefixRanges: [{addressPrefix: 240.0.0.1, prefixLen: 32}], destinationPort: 80}
  filters:
  - name: envoy.filters.network.tcp_proxy
    typedConfig:
      "@type": type.googleapis.com/xds.type.v3.TypedStruct
      typeUrl: type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      value: {statPrefix: upstream, weightedClusters: {clusters: [{name: a, weight: 1}, {name: b, weight: 99}]}}
- filterChainMatch: {serverNames: ["WWW.Example.com", "*.example.org"], transportProtocol: tls}
  filters: []
defaultFilterChain:
  filters:
  - name: envoy.filters.network.tcp_proxy
    typedConfig:
      "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      statPrefix: passthrough
      cluster: original-destination
      idleTimeout: 0s
"#,
    )
    .unwrap();
    assert_eq!(got.filter_chains[0].matches.destination_port, Some(80));
    assert_eq!(got.filter_chains[0].matches.prefix_ranges[0].to_string(), "240.0.0.1/32");
    assert_eq!(got.filter_chains[1].matches.server_names, ["www.example.com", "*.example.org"]);
    assert!(got.filter_chains[1].filters.is_empty());
    assert_eq!(tcp_proxy(&got).target.clusters, [("a".into(), 1), ("b".into(), 99)]);
    assert!(got.default_filter_chain.is_some());
    let disabled = got.listener_filters[1].disabled.as_ref().unwrap();
    assert!(disabled.matches(3306) && !disabled.matches(3307));
}

fn inspector(max_client_hello_bytes: u32) -> TlsInspector {
    TlsInspector { max_client_hello_bytes, ja3: false, ja4: false, close_on_errors: false }
}

#[test]
fn listener_filters_are_read() {
    let kind = |kind: &str, fields: &str| with_filter(kind, fields).unwrap().listener_filters[0].kind.clone();
    assert_eq!(
        kind("tls_inspector.v3.TlsInspector", "enable_ja3_fingerprinting: false"),
        ListenerFilterKind::TlsInspector(inspector(16384))
    );
    assert_eq!(
        kind("tls_inspector.v3.TlsInspector", "max_client_hello_size: 300"),
        ListenerFilterKind::TlsInspector(inspector(300))
    );
    let all = "enable_ja3_fingerprinting: true, enable_ja4_fingerprinting: true, \
               close_connection_on_client_hello_parsing_errors: true";
    assert_eq!(
        kind("tls_inspector.v3.TlsInspector", all),
        ListenerFilterKind::TlsInspector(TlsInspector {
            ja3: true,
            ja4: true,
            close_on_errors: true,
            ..inspector(16384)
        })
    );
    assert_eq!(kind("http_inspector.v3.HttpInspector", ""), ListenerFilterKind::HttpInspector);
    assert_eq!(
        kind(
            "proxy_protocol.v3.ProxyProtocol",
            "allow_requests_without_proxy_protocol: true, disallowed_versions: [V1]"
        ),
        ListenerFilterKind::ProxyProtocol(ProxyProtocol {
            allow_without_header: true,
            allow_v1: false,
            allow_v2: true,
            keep: TlvFilter::Nothing,
            rules: Vec::new(),
        })
    );
}

#[test]
fn tlvs_become_metadata_by_rules() {
    let rules = "rules: [{tlv_type: 234, on_tlv_present: {key: endpoint}}, {tlv_type: 2, on_tlv_present: \
         {metadata_namespace: other, key: authority, value_string_encoding: BASE64}}]";
    let got = with_filter("proxy_protocol.v3.ProxyProtocol", rules).unwrap();
    let ListenerFilterKind::ProxyProtocol(got) = &got.listener_filters[0].kind else { panic!("another filter") };
    let rule = |kind, namespace: &str, key: &str, base64| TlvRule {
        kind,
        namespace: namespace.into(),
        key: key.into(),
        base64,
    };
    let namespace = "envoy.filters.listener.proxy_protocol";
    assert_eq!(got.rules, [rule(234, namespace, "endpoint", false), rule(2, "other", "authority", true)]);
}

#[test]
fn a_listener_inside_the_process_has_its_name_for_an_address() {
    let got = internal("inner", "use_original_dst: false").unwrap();
    assert!(got.is_internal());
    assert!(!got.bind_to_port);
    let addresses: Vec<_> = got.addresses.iter().map(|listen| listen.address.to_string()).collect();
    assert_eq!(addresses, ["envoy://inner/"]);
    assert!(!with("").unwrap().is_internal());
    let error = internal("''", "").unwrap_err();
    assert_eq!(error, "listener \"\": name: must not be empty: an internal_listener is found by it");
}

#[test]
fn each_bad_listener_is_refused_by_path() {
    let cases = [
        (read("name: l"), "filter_chains: no filter chains specified"),
        (read(&format!("name: l\nfilter_chains: [{{filters: [{TCP}]}}]")), "address: is required"),
        (
            read(
                "name: l\naddress: {socket_address: {protocol: UDP, address: 0.0.0.0, port_value: 1}}\ndefault_filter_chain: {}",
            ),
            "address.socket_address.protocol: UDP is not supported",
        ),
        (with("api_listener: {}"), "api_listener: is not supported"),
        (
            with("internal_listener: {}"),
            "internal_listener: has no socket, so address and additional_addresses must not be set",
        ),
        (
            internal("l", "socket_options: [{level: 1, name: 2, int_value: 3}]"),
            "internal_listener: has no socket, so socket_options must not be set",
        ),
        (
            internal("l", "tcp_backlog_size: 1"),
            "internal_listener: has no socket, so transparent, freebind, enable_reuse_port, tcp_backlog_size, \
             tcp_fast_open_queue_length and connection_balance_config must not be set",
        ),
        (with("udp_listener_config: {}"), "udp_listener_config: is not supported"),
        (with("filter_chain_matcher: {}"), "filter_chains[0].name: is required with filter_chain_matcher"),
        (
            with(
                "filter_chain_matcher: {on_no_match: {action: {name: a, typed_config: \
                  {\"@type\": type.googleapis.com/google.protobuf.Empty}}}}",
            ),
            "filter_chain_matcher.on_no_match.action.typed_config: \"type.googleapis.com/google.protobuf.Empty\" is no name \
             of a filter chain",
        ),
        (
            with("filter_chain_matcher: {on_no_match: {keep_matching: true}}"),
            "filter_chain_matcher.on_no_match.keep_matching: is not supported",
        ),
        (
            with(
                "filter_chain_matcher: {matcher_tree: {input: {name: i, typed_config: {\"@type\": \
                  type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: a}}}}",
            ),
            "filter_chain_matcher.matcher_tree.input: exists in HTTP requests only, and this is a connection",
        ),
        (
            with(
                "filter_chain_matcher: {matcher_tree: {input: {name: i, typed_config: {\"@type\": \
                  type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.ServerNameInput}}, \
                  custom_match: {name: c, typed_config: {\"@type\": \
                  type.googleapis.com/xds.type.matcher.v3.ServerNameMatcher, domain_matchers: [{domains: ['a.*']}]}}}}",
            ),
            "filter_chain_matcher.matcher_tree.custom_match.typed_config.domain_matchers[0].domains[0]: \"a.*\" is neither a \
             name, nor \"*.\" and a name, nor \"*\"",
        ),
        (with("enable_mptcp: true"), "enable_mptcp: is not supported"),
        (
            with("per_connection_buffer_high_watermark_timeout: 1s"),
            "per_connection_buffer_high_watermark_timeout: is not supported",
        ),
        (with("listener_filters_timeout: -1s"), "listener_filters_timeout: -1.000000000s must not be negative"),
        (
            with("max_connections_to_accept_per_socket_event: 0"),
            "max_connections_to_accept_per_socket_event: 0 is not within 1 to 4294967295",
        ),
        (with("drain_type: 7"), "drain_type: 7 is not a known value"),
        (with("traffic_direction: 7"), "traffic_direction: 7 is not a known value"),
        (with("connection_balance_config: {}"), "connection_balance_config: needs one of exact_balance"),
        (
            with("connection_balance_config: {cpu_locality_balance: {}}"),
            "connection_balance_config.cpu_locality_balance: is not supported",
        ),
        (with("additional_addresses: [{}]"), "additional_addresses[0].address: is required"),
        (with("listener_filters: [{name: x}]"), "listener_filters[0].typed_config: is required"),
        (
            with("listener_filters: [{typed_config: {\"@type\": type.googleapis.com/google.protobuf.Empty}}]"),
            "listener_filters[0].name: must not be empty",
        ),
        (
            with("listener_filters: [{name: x, typed_config: {\"@type\": type.googleapis.com/google.protobuf.Empty}}]"),
            "listener_filters[0].typed_config: the listener filter \"type.googleapis.com/google.protobuf.Empty\" is not \
             supported",
        ),
        (
            with_filter("tls_inspector.v3.TlsInspector", "max_client_hello_size: 16385"),
            "listener_filters[0].typed_config.max_client_hello_size: 16385 is not within 256 to 16384",
        ),
        (
            with_filter("tls_inspector.v3.TlsInspector", "initial_read_buffer_size: 1"),
            "listener_filters[0].typed_config.initial_read_buffer_size: 1 is not within 256 to 65536",
        ),
        (
            with_filter("proxy_protocol.v3.ProxyProtocol", "disallowed_versions: [V1, V2]"),
            "listener_filters[0].typed_config.disallowed_versions: all versions are disallowed",
        ),
        (
            with_filter("proxy_protocol.v3.ProxyProtocol", "rules: [{tlv_type: 1}]"),
            "listener_filters[0].typed_config.rules[0].on_tlv_present: is required",
        ),
        (
            with_filter("proxy_protocol.v3.ProxyProtocol", "rules: [{tlv_type: 256, on_tlv_present: {key: k}}]"),
            "listener_filters[0].typed_config.rules[0].tlv_type: 256 is not within 0 to 255",
        ),
        (
            with_filter("proxy_protocol.v3.ProxyProtocol", "rules: [{tlv_type: 1, on_tlv_present: {}}]"),
            "listener_filters[0].typed_config.rules[0].on_tlv_present.key: must not be empty",
        ),
        (
            with_filter(
                "proxy_protocol.v3.ProxyProtocol",
                "tlv_location: FILTER_STATE, rules: [{tlv_type: 1, on_tlv_present: {key: k}}]",
            ),
            "listener_filters[0].typed_config.tlv_location: is not supported",
        ),
    ];
    for (got, expected) in cases {
        assert_eq!(got.err().as_deref(), Some(format!("listener \"l\": {expected}").as_str()));
    }
}

#[test]
fn each_bad_filter_chain_is_refused_by_path() {
    let two = |a: &str, b: &str| {
        with_chains(&format!(
            "filter_chains: [{{name: a, filters: TCP, filter_chain_match: {{{a}}}}}, {{name: b, filters: TCP, filter_chain_match: \
             {{{b}}}}}]"
        ))
    };
    let one = |fields: &str| with_chains(&format!("filter_chains: [{{filters: TCP, {fields}}}]"));
    let same = "filter_chains[1].filter_chain_match: filter chain \"b\" has the same match as filter chain \"a\" \
                (filter_chains[0])";
    let overlap = "filter_chains[1].filter_chain_match: filter chain \"b\" has a match that overlaps filter chain \"a\" \
                   (filter_chains[0])";
    let cases = [
        (two("", ""), same),
        (two("server_names: [a.com]", "server_names: [A.com]"), same),
        (two("server_names: [a.com, b.com]", "server_names: [c.com, b.com]"), overlap),
        (
            two(
                "prefix_ranges: [{address_prefix: 10.0.0.1, prefix_len: 8}]",
                "prefix_ranges: [{address_prefix: 10.9.9.9, prefix_len: 8}]",
            ),
            same,
        ),
        (
            one("filter_chain_match: {destination_port: 0}"),
            "filter_chains[0].filter_chain_match.destination_port: 0 is not within 1 to 65535",
        ),
        (
            one("filter_chain_match: {source_ports: [1, 70000]}"),
            "filter_chains[0].filter_chain_match.source_ports[1]: 70000 is not within 1 to 65535",
        ),
        (
            one("filter_chain_match: {server_names: [\"*\"]}"),
            "filter_chains[0].filter_chain_match.server_names[0]: \"*\": partial wildcards are not supported in \"server_names\"",
        ),
        (
            one("filter_chain_match: {server_names: [\"*w.a.com\"]}"),
            "filter_chains[0].filter_chain_match.server_names[0]: \"*w.a.com\": partial wildcards are not supported in \
             \"server_names\"",
        ),
        (
            one("filter_chain_match: {server_names: [\"\"]}"),
            "filter_chains[0].filter_chain_match.server_names[0]: \"\" is not a server name",
        ),
        (
            one("filter_chain_match: {address_suffix: x}"),
            "filter_chains[0].filter_chain_match.address_suffix: is not supported",
        ),
        (
            one("filter_chain_match: {source_type: 5}"),
            "filter_chains[0].filter_chain_match.source_type: 5 is not a known value",
        ),
        (
            with_chains(&format!("filter_chains: [{{filters: [{TCP}, {TCP}]}}]")),
            "filter_chains[0].filters[0]: the terminal filter \"tcp\" must be the last one of its chain",
        ),
        (
            with_chains(
                "filter_chains: [{filters: [{name: x, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm}}]}]",
            ),
            "filter_chains[0].filters[0].typed_config: the network filter \
             \"type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm\" is not supported",
        ),
        (
            with_chains("filter_chains: [{filters: [{name: x}]}]"),
            "filter_chains[0].filters[0].typed_config: is required",
        ),
        (with_tcp("cluster: c"), "filter_chains[0].filters[0].typed_config.stat_prefix: must not be empty"),
        (
            with_tcp("stat_prefix: t"),
            "filter_chains[0].filters[0].typed_config: needs one of cluster, weighted_clusters",
        ),
        (
            with_tcp("stat_prefix: t, weighted_clusters: {clusters: [{name: c, weight: 0}]}"),
            "filter_chains[0].filters[0].typed_config.weighted_clusters.clusters[0].weight: 0 must be above zero",
        ),
        (
            with_tcp("stat_prefix: t, cluster: c, max_downstream_connection_duration: 0s"),
            "filter_chains[0].filters[0].typed_config.max_downstream_connection_duration: 0ns must be at least 1 ms",
        ),
        (
            with_chains("filter_chains: [{name: a, filters: TCP}, {filters: TCP, use_proxy_proto: true}]"),
            "filter_chains[1].use_proxy_proto: holds for all filter chains and must be set for the first one",
        ),
        (
            with_tcp("stat_prefix: t, cluster: c, access_log_options: {access_log_flush_interval: 0.0001s}"),
            "filter_chains[0].filters[0].typed_config.access_log_options.access_log_flush_interval: 100µs must be at least 1 ms",
        ),
    ];
    for (got, expected) in cases {
        assert_eq!(got.err().as_deref(), Some(format!("listener \"l\": {expected}").as_str()));
    }
}

#[test]
fn each_bad_tunnel_is_refused_by_path() {
    let cases = [
        ("tunneling_config: {}", "tunneling_config.hostname: must not be empty"),
        ("tunneling_config: {hostname: '%NOPE%'}", "tunneling_config.hostname: the operator NOPE is not supported"),
        ("tunneling_config: {hostname: h, post_path: /x}", "tunneling_config.post_path: needs use_post"),
        (
            "tunneling_config: {hostname: h, use_post: true, post_path: x}",
            "tunneling_config.post_path: \"x\" does not begin with a slash",
        ),
        (
            "tunneling_config: {hostname: h, headers_to_add: [{header: {key: Host, value: b}}]}",
            "tunneling_config.headers_to_add[0].header.key: \"host\": \":\"-prefixed or host headers may not be modified",
        ),
        ("tunneling_config: {hostname: h, formatters: [{name: f}]}", "tunneling_config.formatters: is not supported"),
        (
            "upstream_connect_mode: ON_DOWNSTREAM_DATA",
            "max_early_data_bytes: is required unless upstream_connect_mode is IMMEDIATE",
        ),
        ("max_early_data_bytes: 1048577", "max_early_data_bytes: 1048577 is not within 0 to 1048576"),
        ("backoff_options: {base_interval: 0s}", "backoff_options.base_interval: 0ns must be at least 1 ms"),
        (
            "backoff_options: {base_interval: 1s, max_interval: 0.5s}",
            "backoff_options.max_interval: 500ms is less than base_interval, 1s",
        ),
    ];
    for (fields, expected) in cases {
        let got = with_tcp(&format!("stat_prefix: t, cluster: c, {fields}")).err();
        let expected = format!("listener \"l\": filter_chains[0].filters[0].typed_config.{expected}");
        assert_eq!(got.as_deref(), Some(&*expected));
    }
}

#[test]
fn connections_through_requests() {
    let got = with_tcp(
        "stat_prefix: t, cluster: c, backoff_options: {base_interval: 1s}, tunneling_config: {hostname: h, use_post: true, \
         request_id_extension: {typed_config: {\"@type\": \
         type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig}}}",
    );
    let got = got.unwrap();
    let tcp = tcp_proxy(&got);
    assert_eq!(tcp.back_off, Some(BackOff { base: Duration::from_secs(1), max: Duration::from_secs(10) }));
    let tunneling = tcp.tunneling.as_deref().unwrap();
    assert_eq!(tunneling.post_path.as_deref(), Some("/"));
    let id = TunnelRequestId { header: "x-request-id".into(), metadata_key: "tunnel_request_id".into() };
    assert_eq!(tunneling.request_id, Some(id));
}

#[test]
fn a_chain_may_say_that_connections_begin_with_a_proxy_header() {
    let got = with_chains("filter_chains: [{filters: TCP, use_proxy_proto: true}]").unwrap();
    assert!(matches!(&got.listener_filters[..], [ListenerFilter { kind: ListenerFilterKind::ProxyProtocol(_), .. }]));
}

#[test]
fn chains_that_differ_in_any_criterion_stand_side_by_side() {
    let got = with_chains(
        r#"filter_chains:
- {filters: TCP}
- {filters: TCP, filter_chain_match: {transport_protocol: tls}}
- {filters: TCP, filter_chain_match: {transport_protocol: tls, application_protocols: [h2]}}
- {filters: TCP, filter_chain_match: {source_type: EXTERNAL}}
- {filters: TCP, filter_chain_match: {prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}}
- {filters: TCP, filter_chain_match: {prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 16}]}}
- {filters: TCP, filter_chain_match: {server_names: [a.com]}}
- {filters: TCP, filter_chain_match: {server_names: [a.com], source_ports: [7]}}
default_filter_chain: {filters: TCP}"#,
    );
    assert_eq!(got.unwrap().filter_chains.len(), 8);
}

#[test]
fn the_content_hash_follows_the_content_alone() {
    let hash = |chain: &str| with_chains(&format!("filter_chains: [{chain}]")).unwrap().filter_chains[0].content_hash;
    let plain = hash("{filters: TCP}");
    assert_eq!(plain, hash("{filters: TCP}"));
    assert_eq!(plain, hash("{filters: TCP, metadata: {filter_metadata: {a: {b: c}, d: {e: f}}}}"));
    assert_ne!(plain, hash("{filters: TCP, filter_chain_match: {destination_port: 1}}"));
    assert_ne!(plain, hash("{filters: []}"));
}

#[test]
fn a_discovered_filter_names_its_types_and_default() {
    let url = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    let discovery = |fields: &str| {
        with_chains(&format!("filter_chains: [{{filters: [{{name: ext, config_discovery: {{{fields}}}}}]}}]"))
    };
    let good = discovery(&format!(
        "config_source: {{ads: {{}}, resource_api_version: V3}}, type_urls: [{url}], default_config: {{\"@type\": {url}, \
         stat_prefix: d, cluster: c}}, apply_default_config_without_warming: true"
    ))
    .unwrap();
    match &good.filter_chains[0].filters[0].config {
        NetworkFilterConfig::Discovered(filter) => {
            assert_eq!(&*filter.name, "ext");
            assert!(filter.apply_default_without_warming && filter.default.is_some());
        }
        other => panic!("{other:?}"),
    }
    let at = "listener \"l\": filter_chains[0].filters[0].config_discovery";
    for (fields, expected) in [
        ("type_urls: [x]".to_owned(), ".config_source: is required"),
        ("config_source: {ads: {}}".to_owned(), ".type_urls: must not be empty"),
        (
            "config_source: {ads: {}}, type_urls: [a/b.C]".to_owned(),
            ".type_urls[0]: the network filter \"a/b.C\" is not supported",
        ),
        (
            format!("config_source: {{ads: {{}}}}, type_urls: [{url}], apply_default_config_without_warming: true"),
            ".apply_default_config_without_warming: needs default_config",
        ),
    ] {
        assert_eq!(discovery(&fields).unwrap_err(), format!("{at}{expected}"));
    }
}

#[test]
fn a_discovered_listener_filter_names_its_types_and_default() {
    let url = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
    let discovery = |fields: &str| with(&format!("listener_filters: [{{name: ext, config_discovery: {{{fields}}}}}]"));
    let source = "config_source: {ads: {}, resource_api_version: V3}";
    let good = discovery(&format!("{source}, type_urls: [{url}], default_config: {{\"@type\": {url}}}")).unwrap();
    let ListenerFilterKind::Discovered(filter) = &good.listener_filters[0].kind else { panic!("{good:?}") };
    assert_eq!(&*filter.name, "ext");
    assert!(matches!(filter.default, Some(ListenerFilterKind::TlsInspector(_))));
    let error = discovery(&format!("{source}, type_urls: ['a/b.C']")).unwrap_err();
    let at = "listener \"l\": listener_filters[0].config_discovery.type_urls[0]";
    assert_eq!(error, format!("{at}: the listener filter \"a/b.C\" is not supported"));
}

#[test]
fn an_extension_resource_is_a_named_filter() {
    use crate::extension::Extension;
    use outrigger_api::pb::envoy::config::core::v3::TypedExtensionConfig;
    let context = Context::new(&NoEnvironment);
    let yaml =
        format!("{{name: ext, typed_config: {}}}", TCP.split_once("typed_config: ").unwrap().1.trim_end_matches('}'));
    let wire: TypedExtensionConfig =
        Schema::load().parse_yaml(&format!("{yaml}}}"), UnknownFields::Reject).unwrap().message;
    let extension = Extension::parse(&context, wire).unwrap();
    assert_eq!(&*extension.type_name, "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy");
    assert!(matches!((extension.network, extension.http), (Some(NetworkFilterConfig::TcpProxy(_)), None)));
    let empty = TypedExtensionConfig { name: "ext".into(), typed_config: None };
    assert_eq!(
        Extension::parse(&context, empty).unwrap_err().to_string(),
        "extension config \"ext\": typed_config: is required"
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(wire) = pb::Listener::decode(bytes.as_slice()) {
            let _ = Listener::parse(&Context::new(&NoEnvironment), wire);
        }
    }

    /// Damages a good listener, which reaches deeper than noise.
    #[test]
    fn a_damaged_listener_is_read_or_refused(at in 0..10_000_usize, byte in any::<u8>()) {
        let yaml = format!("name: l\n{ADDRESS}\nuse_original_dst: true\nfilter_chains: [{{filters: [{TCP}]}}]\n");
        let wire: pb::Listener = Schema::load().parse_yaml(&yaml, UnknownFields::Reject).unwrap().message;
        let mut bytes = wire.encode_to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(wire) = pb::Listener::decode(bytes.as_slice()) {
            let _ = Listener::parse(&Context::new(&NoEnvironment), wire);
        }
    }
}

#[test]
fn connections_are_retired_after_a_rotation_if_wanted() {
    let within = |fields: &str| {
        with(&format!("metadata: {{filter_metadata: {{outrigger.tls: {{{fields}}}}}}}")).map(|got| got.retire_within)
    };
    assert_eq!(within("retire_within: 60s").unwrap(), Some(Duration::from_secs(60)));
    assert_eq!(within("").unwrap(), None);
    let path = "metadata.filter_metadata[\"outrigger.tls\"]";
    assert!(
        within("retire_within: 0s").unwrap_err().ends_with(&format!("{path}.retire_within: 0s must be above zero"))
    );
    assert!(within("retire: 1s").unwrap_err().contains(path));
}
