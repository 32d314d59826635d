use outrigger_api::pb::envoy::config::endpoint::v3 as endpoint_pb;

use super::*;
use crate::cluster::tests::{NoFiles, read, with as cluster};
use crate::cluster::{Assignment, Cluster};

fn typed(options: &str) -> Parsed<Cluster> {
    cluster(&format!(
        "typed_extension_protocol_options: {{x: {{'@type': type.googleapis.com/{TYPE_NAME}, {options}}}}}"
    ))
}

fn options(parsed: Parsed<Cluster>) -> Concurrency {
    *parsed.unwrap().concurrency.unwrap()
}

#[test]
fn the_carriers_say_the_same() {
    let fields = "max_requests: 9, queue_timeout: 2s, over_limit: OTHER_ENDPOINT";
    let of_metadata = options(cluster(&format!("metadata: {{filter_metadata: {{outrigger.upstream: {{{fields}}}}}}}")));
    assert_eq!(options(typed(fields)), of_metadata);
    assert_eq!(of_metadata.max_requests, Some(9));
    assert_eq!(
        (of_metadata.queue_timeout, of_metadata.over_limit),
        (Some(Duration::from_secs(2)), OverLimit::OtherEndpoint)
    );
    assert!(cluster("lb_policy: ROUND_ROBIN").unwrap().concurrency.is_none());
}

#[test]
fn thresholds_of_endpoints_refuse_unless_they_let_some_wait() {
    let of = |fields: &str| options(cluster(&format!("circuit_breakers: {{per_host_thresholds: [{{{fields}}}]}}")));
    assert_eq!(of("max_requests: 3").over_limit, OverLimit::Fail);
    assert_eq!(of("max_requests: 3, max_pending_requests: 0").over_limit, OverLimit::Fail);
    let waits = of("max_requests: 3, max_pending_requests: 5");
    assert_eq!((waits.over_limit, waits.max_requests), (OverLimit::Wait, Some(3)));
    assert_eq!(waits.max_queue_per_endpoint, Some(5));
    let connections = cluster("circuit_breakers: {per_host_thresholds: [{max_connections: 3}]}").unwrap();
    assert!(connections.concurrency.is_none());
}

#[test]
fn everything_that_can_be_said_is_read() {
    let all = options(typed(
        "max_requests: 50, min_requests: 5, full_load: 400, max_queue: 7, max_queue_per_endpoint: 3, wait_for_ready: 1s, \
         slow_start_limit: true, priority_class: {header: X-Class, offset_header: x-offset, metadata_namespace: n, \
         metadata_key: k, default_class: -3, high_priority_class: -9}, fair_queue: {peer_identity: true}, \
         adaptive_lifo: {congested_after: 0.2s}",
    ));
    let expected = Concurrency {
        max_requests: Some(50),
        moving: Some((5, 400)),
        over_limit: OverLimit::Wait,
        max_queue: Some(7),
        max_queue_per_endpoint: Some(3),
        queue_timeout: None,
        wait_for_ready: Some(Duration::from_secs(1)),
        slow_start: true,
        class: PriorityClass {
            header: Some("x-class".to_owned()),
            offset_header: Some("x-offset".to_owned()),
            metadata: Some(("n".to_owned(), "k".to_owned())),
            default: -3,
            high: Some(-9),
        },
        fair: Some(Caller::PeerIdentity),
        newest_first_after: Some(Duration::from_millis(200)),
    };
    assert_eq!(all, expected);
    assert_eq!(options(typed("adaptive_lifo: {}")).newest_first_after, Some(CONGESTED_AFTER));
}

#[test]
fn options_that_are_refused() {
    let at = "cluster \"c\": typed_extension_protocol_options[\"x\"]";
    for (fields, reason) in [
        ("min_requests: 1, full_load: 2", "max_requests: is required with min_requests"),
        ("max_requests: 5, min_requests: 1", "full_load: is required with min_requests"),
        ("max_requests: 5, full_load: 1", "min_requests: is required with full_load"),
        ("max_requests: 5, min_requests: 6, full_load: 9", "min_requests: 6 is not within 1 to max_requests, 5"),
        ("max_requests: 5, min_requests: 1, full_load: 0", "full_load: 0 must be above zero"),
        ("priority_class: {header: 'a b'}", "priority_class.header: \"a b\" is not a valid header name"),
        ("priority_class: {default_class: 3000}", "priority_class.default_class: 3000 is not within -2047 to 2047"),
        ("priority_class: {metadata_key: k}", "priority_class.metadata_namespace: is required with metadata_key"),
        ("fair_queue: {}", "fair_queue: needs one of header, source_address, peer_identity"),
        ("fair_queue: {source_address: false}", "fair_queue.source_address: false says nothing, expected true"),
    ] {
        assert_eq!(typed(fields).unwrap_err().to_string(), format!("{at}.{reason}"));
    }
    let twice = cluster(&format!(
        "metadata: {{filter_metadata: {{outrigger.upstream: {{}}}}}}, \
         typed_extension_protocol_options: {{x: {{'@type': type.googleapis.com/{TYPE_NAME}}}}}"
    ));
    assert!(twice.unwrap_err().to_string().contains("must not be set together with ConcurrencyOptions"));
}

#[test]
fn endpoints_and_routes_say_their_own_in_metadata() {
    let endpoints = |object: &str| {
        let wire: endpoint_pb::ClusterLoadAssignment = read(&format!(
            "{{cluster_name: c, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, \
             port_value: 80}}}}}}, metadata: {{filter_metadata: {{outrigger.lb: {object}}}}}}}]}}]}}"
        ));
        Assignment::parse(&Context::new(&NoFiles), wire)
    };
    let limit = |object: &str| endpoints(object).map(|read| read.localities[0].endpoints[0].max_requests);
    assert_eq!(limit("{max_requests: 100}").unwrap(), Some(100));
    assert_eq!(limit("{}").unwrap(), None);
    for (object, reason) in [
        ("{max_requests: 1.5}", "[\"max_requests\"]: 1.5 is not a whole number from 0 to 4294967295"),
        ("{max_request: 1}", "[\"max_request\"]: is not known, expected max_requests"),
    ] {
        let error = limit(object).unwrap_err().to_string();
        assert!(error.ends_with(reason), "{error}");
    }

    let at = FieldPath::resource("route", "r");
    let hints = |object: &str| {
        let metadata: Metadata = read(&format!("{{filter_metadata: {{outrigger.queue: {object}}}}}"));
        queue_hints(&at, Some(&metadata))
    };
    let all = hints("{timeout: 1.5s, class: -7, offset_ms: 20}").unwrap().unwrap();
    let expected = QueueHints { timeout: Some(Duration::from_millis(1500)), class: Some(-7), offset_ms: Some(20) };
    assert_eq!(*all, expected);
    assert!(queue_hints(&at, None).unwrap().is_none());
    for (object, reason) in [
        ("{timeout: soon}", "[\"timeout\"]: \"soon\" is not a duration above zero such as \"1.5s\""),
        ("{timeout: -1s}", "[\"timeout\"]: \"-1s\" is not a duration above zero such as \"1.5s\""),
        ("{class: 9999}", "[\"class\"]: 9999 is not a whole number from -2047 to 2047"),
        ("{klass: 1}", "[\"klass\"]: is not known, expected timeout, class or offset_ms"),
    ] {
        let error = hints(object).unwrap_err().to_string();
        assert!(error.ends_with(reason), "{error}");
    }
}
