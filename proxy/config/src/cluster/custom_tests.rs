//! Cluster types that are extensions, transports that name the client, and what connections are made with: as people write
//! them, and what is said about those that are refused.

use std::time::Duration;

use super::tests::{assert_refused, with};
use super::*;

const TYPES: &str = "type.googleapis.com/envoy.extensions";

fn custom(kind: &str, fields: &str, more: &str) -> crate::rejection::Parsed<Cluster> {
    with(&format!(
        "lb_policy: CLUSTER_PROVIDED, cluster_type: {{name: envoy.clusters.{kind}, typed_config: {{\
         '@type': {TYPES}.clusters.{kind}.v3.ClusterConfig, {fields}}}}}{more}"
    ))
}

#[test]
fn aggregates_name_their_members() {
    let cluster = custom("aggregate", "clusters: [a, b]", "").unwrap();
    let Discovery::Aggregate(members) = &cluster.discovery else { panic!("{cluster:?}") };
    assert_eq!(members.iter().map(|name| &**name).collect::<Vec<_>>(), ["a", "b"]);
    assert_refused(custom("aggregate", "", ""), "cluster_type.typed_config.clusters: must not be empty");
    assert_refused(
        custom("aggregate", "clusters: [a]", ", load_assignment: {cluster_name: c}"),
        "load_assignment: must not be set for a cluster of type envoy.clusters.aggregate",
    );
    assert_refused(
        with(&format!(
            "cluster_type: {{name: a, typed_config: {{'@type': {TYPES}.clusters.aggregate.v3.ClusterConfig, \
             clusters: [a]}}}}"
        )),
        "lb_policy: must be CLUSTER_PROVIDED for a cluster of type envoy.clusters.aggregate",
    );
}

#[test]
fn queues_are_for_clusters_that_have_endpoints_of_their_own() {
    let limit = ", circuit_breakers: {per_host_thresholds: [{max_requests: 5}]}";
    assert_refused(
        custom("aggregate", "clusters: [a]", limit),
        "cluster_type: an aggregate cluster has no endpoints that could have concurrency options: give them to its \
         members, where they hold for requests of both",
    );
    // Those of a dynamic forward proxy are the hosts that requests name.
    let forward = custom("dynamic_forward_proxy", "dns_cache_config: {name: names}", limit).unwrap();
    assert_eq!(forward.concurrency.unwrap().max_requests, Some(5));
}

#[test]
fn names_may_be_kept_from_leading_to_some_addresses() {
    let filter = |fields: &str| {
        let cache = format!("dns_cache_config: {{name: names, resolved_address_filter: {{{fields}}}}}");
        custom("dynamic_forward_proxy", &cache, "").map(|cluster| match cluster.discovery {
            Discovery::DynamicForward(cache) => cache.refused.clone().unwrap(),
            other => panic!("{other:?}"),
        })
    };
    let network = "ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]";
    let (inside, outside) = ("10.1.2.3".parse().unwrap(), "11.1.2.3".parse().unwrap());
    let plain = filter(network).unwrap();
    assert_eq!((plain.holds(inside), plain.holds(outside)), (true, false));
    let inverted = filter(&format!("{network}, invert_match: true")).unwrap();
    assert_eq!((inverted.holds(inside), inverted.holds(outside)), (false, true));
    let none = filter("").unwrap();
    assert!(!none.holds(inside));
    let refused = filter("ranges: [{address_prefix: x}]").unwrap_err().to_string();
    let at = "cluster_type.typed_config.dns_cache_config.resolved_address_filter.ranges[0].address_prefix";
    assert!(refused.contains(at), "{refused}");
}

#[test]
fn forward_proxies_have_a_cache_and_check_names() {
    let cluster = custom("dynamic_forward_proxy", "dns_cache_config: {name: names}", "").unwrap();
    let Discovery::DynamicForward(cache) = &cluster.discovery else { panic!("{cluster:?}") };
    assert!(cluster.http.auto_sni && cluster.http.auto_san_validation);
    let DnsCache { name, dns, host_ttl, max_hosts, max_pending_requests, query_timeout, .. } = &**cache;
    assert_eq!((&**name, *max_hosts, *max_pending_requests), ("names", 1024, 1024));
    assert_eq!((dns.refresh_rate, dns.min_refresh_rate), (Duration::from_secs(60), Some(Duration::from_secs(5))));
    assert_eq!((*host_ttl, *query_timeout), (Duration::from_secs(300), Some(Duration::from_secs(5))));
    let http = ", typed_extension_protocol_options: {http: {'@type': \
        type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
        explicit_http_config: {http_protocol_options: {}}}}";
    assert_refused(
        custom("dynamic_forward_proxy", "dns_cache_config: {name: names}", http),
        "typed_extension_protocol_options: must have auto_sni and auto_san_validation unless \
         allow_insecure_cluster_options is set",
    );
    let insecure = "allow_insecure_cluster_options: true, dns_cache_config: {name: names}";
    assert!(custom("dynamic_forward_proxy", insecure, http).is_ok());
    for (fields, reason) in [
        ("", "dns_cache_config: is required"),
        ("dns_cache_config: {}", "dns_cache_config.name: must not be empty"),
        ("sub_clusters_config: {}", "sub_clusters_config: is not supported"),
        (
            "allow_coalesced_connections: true, dns_cache_config: {name: a}",
            "allow_coalesced_connections: is not supported",
        ),
        (
            "dns_cache_config: {name: a, preresolve_hostnames: [{address: 10.0.0.1, port_value: 1}]}",
            "dns_cache_config.preresolve_hostnames[0].address: is an IP address, expected a host name",
        ),
        ("dns_cache_config: {name: a, max_hosts: 0}", "dns_cache_config.max_hosts: 0 is not within 1 to 4294967295"),
    ] {
        let at = format!("cluster_type.typed_config.{reason}");
        assert_refused(custom("dynamic_forward_proxy", fields, ""), &at);
    }
}

fn proxied(fields: &str) -> crate::rejection::Parsed<Cluster> {
    with(&format!(
        "transport_socket: {{name: p, typed_config: {{\
         '@type': {TYPES}.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport, {fields}}}}}"
    ))
}

#[test]
fn proxied_transports_wrap_others() {
    let tls = format!(
        "transport_socket: {{name: t, typed_config: {{'@type': {TYPES}.transport_sockets.tls.v3.UpstreamTlsContext, \
         sni: a}}}}"
    );
    let config = "config: {version: V2, pass_through_tlvs: {match_type: INCLUDE, tlv_type: [1, 224]}, \
        added_tlvs: [{type: 225, value: eA==}]}";
    let cluster = proxied(&format!("{config}, {tls}")).unwrap();
    assert_eq!(cluster.transport.tls().map(|tls| tls.sni.as_str()), Some("a"));
    let header = cluster.transport.proxy_header().unwrap();
    let expected = ProxyHeaderSettings {
        version: ProxyProtocolVersion::V2,
        pass: TlvFilter::Types(vec![1, 224]),
        added: vec![(225, (*b"x").into())],
    };
    assert_eq!(*header, expected);
    for (fields, reason) in [
        (String::new(), "transport_socket: is required"),
        (
            format!("config: {{pass_through_tlvs: {{match_type: INCLUDE, tlv_type: [256]}}}}, {tls}"),
            "config.pass_through_tlvs.tlv_type[0]: 256 is above 255",
        ),
        (format!("allow_unspecified_address: true, {tls}"), "allow_unspecified_address: is not supported"),
        (format!("config: {{added_tlvs: [{{type: 1}}]}}, {tls}"), "config.added_tlvs[0].value: must not be empty"),
    ] {
        assert_refused(proxied(&fields), &format!("transport_socket.typed_config.{reason}"));
    }
}

fn tunneled(fields: &str) -> crate::rejection::Parsed<Cluster> {
    with(&format!(
        "transport_socket: {{name: p, typed_config: {{\
         '@type': {TYPES}.transport_sockets.http_11_proxy.v3.Http11ProxyUpstreamTransport, {fields}}}}}"
    ))
}

#[test]
fn http_proxies_are_asked_for_tunnels_unless_plain_bytes_go_to_the_default_one() {
    let tls = format!(
        "transport_socket: {{name: t, typed_config: {{'@type': {TYPES}.transport_sockets.tls.v3.UpstreamTlsContext}}}}"
    );
    let default = "default_proxy_address: {socket_address: {address: 10.0.0.1, port_value: 3128}}";
    let named = Arc::new(Address::Ip("10.0.0.2:8080".parse().unwrap()));
    let of = |fields: &str| {
        let transport = tunneled(fields).unwrap().transport;
        let shown = |proxy: HttpProxy| format!("{} {}", proxy.address, proxy.tunnel);
        [transport.http_proxy(None).map(shown), transport.http_proxy(Some(&named)).map(shown)]
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(of(&format!("{tls}, {default}")), [some("10.0.0.1:3128 true"), some("10.0.0.2:8080 true")]);
    assert_eq!(of(default), [some("10.0.0.1:3128 false"), some("10.0.0.2:8080 true")]);
    assert_eq!(of(&tls), [None, some("10.0.0.2:8080 true")]);
    assert_eq!(with("").unwrap().transport.http_proxy(Some(&named)), None);
}

#[test]
fn http_proxies_that_are_refused() {
    let inside = |name: &str| {
        format!(
            "transport_socket: {{name: t, typed_config: {{'@type': {TYPES}.transport_sockets.{name}, \
             transport_socket: {{name: raw_buffer}}}}}}"
        )
    };
    let proxy = "http_11_proxy.v3.Http11ProxyUpstreamTransport";
    let must = "transport_socket.typed_config.transport_socket: must";
    for name in [proxy, "proxy_protocol.v3.ProxyProtocolUpstreamTransport"] {
        assert_refused(tunneled(&inside(name)), &format!("{must} be raw_buffer or tls"));
    }
    assert_refused(
        proxied(&inside(proxy)),
        &format!("{must} not lead through an HTTP proxy, which would get the header first"),
    );
    assert_refused(
        tunneled("default_proxy_address: {socket_address: {address: proxy.example, port_value: 1}}"),
        "transport_socket.typed_config.default_proxy_address.socket_address.address: \"proxy.example\" is not an IP address",
    );
}

fn endpoint_with(metadata: &str) -> Result<Option<String>, String> {
    let key = "envoy.http11_proxy_transport_socket.proxy_address";
    let metadata = format!("metadata: {{typed_filter_metadata: {{{key}: {metadata}}}}}");
    let cluster = with(&format!(
        "load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{{{metadata}, \
         endpoint: {{address: {{socket_address: {{address: 10.0.0.9, port_value: 1}}}}}}}}]}}]}}"
    ));
    let cluster = cluster.map_err(|error| error.to_string())?;
    let Discovery::Static(assignment) = cluster.discovery else { panic!() };
    Ok(assignment.localities[0].endpoints[0].http_proxy.as_ref().map(|address| address.to_string()))
}

#[test]
fn endpoints_name_their_http_proxies() {
    let address = "{'@type': type.googleapis.com/envoy.config.core.v3.Address, \
         socket_address: {address: 10.0.0.1, port_value: 3128}}";
    assert_eq!(endpoint_with(address), Ok(Some("10.0.0.1:3128".to_owned())));
    let error = endpoint_with("{'@type': type.googleapis.com/google.protobuf.Empty}").unwrap_err();
    let expected = "is \"type.googleapis.com/google.protobuf.Empty\", expected an envoy.config.core.v3.Address";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn connections_may_be_cut_after_a_rotation() {
    let within = |fields: &str| {
        with(&format!("metadata: {{filter_metadata: {{outrigger.tls: {{{fields}}}}}}}")).map(|got| got.retire_within)
    };
    assert_eq!(within("retire_within: 60s").unwrap(), Some(Duration::from_secs(60)));
    assert_eq!(within("").unwrap(), None);
    assert_refused(
        with("metadata: {filter_metadata: {outrigger.tls: {retire_within: 0s}}}"),
        "metadata.filter_metadata[\"outrigger.tls\"].retire_within: 0s must be above zero",
    );
}

#[test]
fn connections_are_made_as_configured() {
    let cluster = with(
        "preconnect_policy: {per_upstream_preconnect_ratio: 1.5}, connection_pool_per_downstream_connection: true, \
         upstream_connection_options: {happy_eyeballs_config: {first_address_family_version: V4, \
         first_address_family_count: 2}}, upstream_bind_config: {source_address: {address: 127.0.0.1, port_value: 0}, \
         extra_source_addresses: [{address: {address: '::1', port_value: 0}, socket_options: {}}], \
         socket_options: [{level: 6, name: 18, int_value: 5}]}",
    )
    .unwrap();
    assert_eq!(cluster.preconnect, Some(Box::new(Preconnect { per_upstream: 1.5, predictive: 1.0, only: None })));
    assert!(cluster.pool_per_downstream);
    assert_eq!(cluster.happy_eyeballs, HappyEyeballs { first_is_ipv6: Some(false), first_count: 2 });
    let bind = cluster.bind.unwrap();
    let (v4, v6) = ("10.0.0.1:1".parse().unwrap(), "[fd00::1]:1".parse().unwrap());
    assert_eq!((bind.options_for(v4).len(), bind.options_for(v6).len()), (1, 0));
    assert_eq!(bind.source_for(v6), Some("[::1]:0".parse().unwrap()));
    assert_eq!(with("preconnect_policy: {}").unwrap().preconnect, None);
    for (fields, reason) in [
        (
            "preconnect_policy: {per_upstream_preconnect_ratio: 4}",
            "preconnect_policy.per_upstream_preconnect_ratio: 4 is not within 1 to 3",
        ),
        (
            "preconnect_policy: {predictive_preconnect_ratio: 0.5}",
            "preconnect_policy.predictive_preconnect_ratio: 0.5 is not within 1 to 3",
        ),
        (
            "preconnect_policy: {predictive_preconnect_ratio: 2, preconnect_enabled_metadata: {filter: x, \
             path: [{key: k}], value: {bool_match: true}}}",
            "preconnect_policy.preconnect_enabled_metadata.filter: \"x\" is not kept of endpoints, expected \"envoy.lb\" \
             or \"envoy.transport_socket_match\"",
        ),
        (
            "upstream_connection_options: {happy_eyeballs_config: {first_address_family_version: PIPE}}",
            "upstream_connection_options.happy_eyeballs_config.first_address_family_version: is not supported: \
             neither V4 nor V6",
        ),
        (
            "upstream_bind_config: {extra_source_addresses: [{address: {address: '::1', port_value: 0}}]}",
            "upstream_bind_config.source_address: is required where there are further source addresses",
        ),
        (
            "upstream_bind_config: {source_address: {address: '::2', port_value: 0}, \
             extra_source_addresses: [{address: {address: '::1', port_value: 0}}]}",
            "upstream_bind_config.extra_source_addresses[0]: must be of the other family than source_address",
        ),
    ] {
        assert_refused(with(fields), reason);
    }
}

#[test]
fn resolvers_are_of_three_kinds() {
    let resolver = |fields: &str| {
        with(&format!(
            "type: STRICT_DNS, typed_dns_resolver_config: {{name: r, typed_config: {{\
             '@type': {TYPES}.network.dns_resolver.{fields}}}}}"
        ))
        .map(|cluster| match cluster.discovery {
            Discovery::StrictDns { dns, .. } => dns.resolver.unwrap(),
            other => panic!("{other:?}"),
        })
    };
    let server = "resolvers: [{socket_address: {address: 10.0.0.1, port_value: 53}}]";
    let cares =
        resolver(&format!("cares.v3.CaresDnsResolverConfig, use_resolvers_as_fallback: true, {server}")).unwrap();
    assert!(cares.servers_as_fallback && cares.servers.len() == 1);
    let system = resolver("getaddrinfo.v3.GetAddrInfoDnsResolverConfig, num_retries: 2").unwrap();
    assert_eq!(system.query_tries, Some(3));
    let hickory = resolver(&format!("hickory.v3.HickoryDnsResolverConfig, query_timeout: 2s, {server}")).unwrap();
    assert_eq!((hickory.query_timeout, hickory.servers.len()), (Some(Duration::from_secs(2)), 1));
    assert_refused(
        resolver("hickory.v3.HickoryDnsResolverConfig, enable_dnssec: true"),
        "typed_dns_resolver_config.typed_config.enable_dnssec: is not supported",
    );
    assert_refused(
        resolver("hickory.v3.HickoryDnsResolverConfig, use_system_config: false"),
        "typed_dns_resolver_config.typed_config.use_system_config: false needs resolvers",
    );
}

#[test]
fn original_destinations_may_stand_in_metadata() {
    let read = |fields: &str| {
        let config = format!("original_dst_lb_config: {{{fields}}}");
        with(&format!("type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, {config}"))
    };
    let cluster = read("metadata_key: {key: a, path: [{key: b}, {key: c}]}").unwrap();
    let Discovery::OriginalDst(options) = cluster.discovery else { panic!() };
    assert_eq!(options.metadata, Some(MetadataPath { namespace: "a".into(), keys: vec!["b".into(), "c".into()] }));
    let at = "original_dst_lb_config.metadata_key";
    assert_refused(read("metadata_key: {path: [{key: b}]}"), &format!("{at}.key: must not be empty"));
    assert_refused(read("metadata_key: {key: a}"), &format!("{at}.path: must not be empty"));
}
