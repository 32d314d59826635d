//! Which endpoints retries leave out (`retry_host_predicate`), beside Envoy.

use outrigger_tests::config::bootstrap;

use super::{Both, cluster_of, endpoint, served_by, upstreams, web};

const REQUESTS: usize = 24;

/// A route to the cluster of its name with one retry, for which a predicate of this type and with these fields holds.
fn route(cluster: &str, predicate: &str) -> String {
    format!(
        "{{ match: {{ prefix: /{cluster}/ }}, route: {{ cluster: {cluster}, retry_policy: {{ retry_on: 5xx, num_retries: 1, \
         retry_back_off: {{ base_interval: 0.001s }}, host_selection_retry_max_attempts: 100, retry_host_predicate: [{{ name: p, \
         typed_config: {{ '@type': type.googleapis.com/envoy.extensions.retry.host.{predicate} }} }}] }} }} }}"
    )
}

#[tokio::test]
async fn retries_leave_out_canaries_and_endpoints_by_their_metadata() {
    let upstreams = upstreams(3).await;
    upstreams[0].always_answer(503);
    upstreams[2].always_answer(503);
    // Two of three endpoints fail, and both say this of themselves.
    let cluster = |name: &str, said: &str| {
        let said = format!(", metadata: {{ filter_metadata: {{ envoy.lb: {{ {said} }} }} }}");
        let all = [
            endpoint(&upstreams[0], &said),
            endpoint(&upstreams[1], ", metadata: { filter_metadata: { envoy.lb: { canary: false, stage: prod } } }"),
            endpoint(&upstreams[2], &said),
        ];
        cluster_of(name, &format!("{{ lb_endpoints: [{}] }}", all.join(", ")), ", lb_policy: RANDOM")
    };
    let metadata = |wanted: &str| {
        format!(
            "omit_host_metadata.v3.OmitHostMetadataConfig, metadata_match: {{ filter_metadata: {{ envoy.lb: {{ {wanted} }} }} }}"
        )
    };
    let cases = [
        ("canary", "canary: true", "omit_canary_hosts.v3.OmitCanaryHostsPredicate".to_owned()),
        ("text", "stage: test", metadata("stage: test")),
        ("one-of-a-list", "stage: [test, lab]", metadata("stage: lab")),
        ("all-pairs", "stage: test, rack: 3", metadata("stage: test, rack: 3")),
    ];
    let routes: Vec<String> = cases.iter().map(|(name, _, predicate)| route(name, predicate)).collect();
    let clusters = cases.each_ref().map(|(name, said, _)| cluster(name, said));
    let both = Both::start(&bootstrap(&web(&routes.join(", ")), &clusters)).await;
    for (who, proxy) in [("envoy", &both.envoy), ("outrigger", &both.ours)] {
        for (name, ..) in &cases {
            let requests: Vec<_> = (0..REQUESTS).map(|_| (format!("/{name}/"), Vec::new())).collect();
            let served = served_by(proxy, &requests).await;
            assert!(served.iter().all(|name| name == "u1"), "{who}: {name}: {served:?}");
            let retries = proxy.stat(&format!("cluster.{name}.upstream_rq_retry")).await;
            assert!(retries > 0, "{who}: {name}");
        }
    }
}
