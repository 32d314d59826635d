//! Which transport an endpoint has by a match tree, what a cluster says in place of routes, and how its requests wait: as
//! people write it, and what is said about what is refused.

use super::tests::{assert_refused, with};
use super::*;
use crate::matcher::{Ask, Input, OnMatch};

const INPUTS: &str = "type.googleapis.com/envoy.extensions.matching.common_inputs";

fn tree(input: &str, action: &str) -> crate::rejection::Parsed<Cluster> {
    with(&format!(
        "transport_socket_matches: [{{name: one, match: {{}}}}, {{name: two, match: {{}}}}], transport_socket_matcher: \
         {{matcher_tree: {{input: {{name: i, typed_config: {{'@type': {INPUTS}.{input}}}}}, exact_match_map: {{map: \
         {{x: {{action: {{name: a, typed_config: {{'@type': {INPUTS}.{action}}}}}}}}}}}}}}}"
    ))
}

#[test]
fn a_tree_names_transports_by_what_endpoints_say() {
    let by_endpoint = "transport_socket.v3.EndpointMetadataInput, path: [{key: a}, {key: b}]";
    let two = "transport_socket.v3.TransportSocketNameAction, name: two";
    let cluster = tree(by_endpoint, two).unwrap();
    let Some(Ask::Exact { input, map }) = &cluster.transport_matcher.as_ref().unwrap().ask else {
        panic!("{cluster:?}")
    };
    let path = vec!["a".into(), "b".into()];
    assert_eq!(*input, Input::EndpointMetadata { filter: "envoy.lb".into(), path });
    // The default comes first.
    assert_eq!(map[0].1, OnMatch::Action(2));
    assert_eq!(cluster.transports().count(), 3);
    let by_locality =
        "transport_socket.v3.LocalityMetadataInput, filter: envoy.transport_socket_match, path: [{key: a}]";
    assert!(tree(by_locality, two).is_ok());
    let at = "transport_socket_matcher.matcher_tree";
    let action = "exact_match_map.map[\"x\"].action.typed_config";
    for (input, action, reason) in [
        (
            by_endpoint,
            "transport_socket.v3.TransportSocketNameAction, name: three",
            format!("{action}.name: \"three\" is not the name of one of the transport_socket_matches"),
        ),
        (
            "transport_socket.v3.EndpointMetadataInput, filter: istio, path: [{key: a}]",
            two,
            "input.typed_config.filter: \"istio\" is not kept of endpoints, expected \"envoy.lb\" or \
             \"envoy.transport_socket_match\""
                .to_owned(),
        ),
        (
            "transport_socket.v3.EndpointMetadataInput, path: []",
            two,
            "input.typed_config.path: must not be empty".to_owned(),
        ),
        (
            "network.v3.ServerNameInput",
            two,
            "input: is not known of endpoints, expected EndpointMetadataInput or LocalityMetadataInput".to_owned(),
        ),
    ] {
        assert_refused(tree(input, action), &format!("{at}.{reason}"));
    }
}

#[test]
fn a_cluster_may_speak_for_its_routes() {
    let options = |fields: &str| {
        with(&format!(
            "typed_extension_protocol_options: {{http: {{'@type': \
             type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
             {{http_protocol_options: {{}}}}, {fields}}}}}"
        ))
    };
    let requests = options(
        "hash_policy: [{header: {header_name: x}}], retry_policy: {retry_on: 5xx, num_retries: 7}, \
         request_mirror_policies: [{cluster: a}, {cluster: b}]",
    );
    let requests = requests.unwrap().requests.unwrap();
    assert_eq!((requests.hash.len(), requests.mirrors.len()), (1, 2));
    assert_eq!(requests.retry.as_ref().map(|policy| policy.num_retries), Some(7));
    assert!(options("").unwrap().requests.is_none());
    assert_refused(
        options("request_mirror_policies: [{}]"),
        "typed_extension_protocol_options[\"http\"].request_mirror_policies[0]: needs one of cluster, cluster_header",
    );
}

#[test]
fn who_waits_for_a_connection_first_is_served_first() {
    let queue = |config: &str| {
        with(&format!("queuing_policies: {{pending_rq_policy: {{name: q, typed_config: {{'@type': {config}}}}}}}"))
    };
    assert!(queue("type.googleapis.com/envoy.extensions.queue_policy.fifo.v3.FifoQueuePolicyConfig").is_ok());
    assert!(with("queuing_policies: {}").is_ok());
    assert_refused(
        queue("type.googleapis.com/google.protobuf.Empty"),
        "queuing_policies.pending_rq_policy.typed_config: \"type.googleapis.com/google.protobuf.Empty\" is not supported",
    );
}

#[test]
fn a_retry_budget_may_have_an_interval() {
    let budget = |interval: &str| {
        let fields = format!("circuit_breakers: {{thresholds: [{{retry_budget: {{{interval}}}}}]}}");
        with(&fields).map(|cluster| cluster.circuit_breakers.default.retry_budget.unwrap().interval)
    };
    assert_eq!(budget("budget_interval: 2s").unwrap(), Some(Duration::from_secs(2)));
    assert_eq!((budget("budget_interval: 0s").unwrap(), budget("").unwrap()), (None, None));
}
