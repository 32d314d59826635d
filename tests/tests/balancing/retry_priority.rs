//! Where retries go once priorities were tried (`envoy.retry_priorities.previous_priorities`), beside Envoy.

use outrigger_tests::Upstream;
use outrigger_tests::config::bootstrap;

use super::{Both, cluster_of, endpoint, served_by, upstreams, web};

const REQUESTS: usize = 10;

/// A route to the cluster of its name that retries so many times, and avoids priorities after `every` tries.
fn route(cluster: &str, retries: usize, every: Option<usize>) -> String {
    let priority = every.map_or_else(String::new, |every| {
        format!(
            ", retry_priority: {{ name: envoy.retry_priorities.previous_priorities, typed_config: {{ '@type': \
             type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig, \
             update_frequency: {every} }} }}"
        )
    });
    format!(
        "{{ match: {{ prefix: /{cluster}/ }}, route: {{ cluster: {cluster}, retry_policy: {{ retry_on: 5xx, \
         num_retries: {retries}, retry_back_off: {{ base_interval: 0.001s }}{priority} }} }} }}"
    )
}

/// One endpoint for each priority.
fn levels(upstreams: &[&Upstream]) -> String {
    let level = |(priority, upstream): (usize, &&Upstream)| {
        format!("{{ priority: {priority}, lb_endpoints: [{}] }}", endpoint(upstream, ""))
    };
    upstreams.iter().enumerate().map(level).collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn retries_leave_out_the_priorities_that_were_tried() {
    let upstreams = upstreams(3).await;
    let [bad, worse, good] = &upstreams[..] else { panic!("three upstreams") };
    bad.always_answer(503);
    worse.always_answer(503);
    let two = levels(&[bad, good]);
    let aggregate = "{ name: all, lb_policy: CLUSTER_PROVIDED, connect_timeout: 5s, cluster_type: { name: \
        envoy.clusters.aggregate, typed_config: { '@type': \
        type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [first, second] } } }";
    // Cluster, retries, after how many tries priorities are avoided, who answers, and tries at each upstream.
    let cases = [
        ("plain", 1, None, "503", [2, 0, 0]),
        ("each", 1, Some(1), "u2", [1, 0, 1]),
        ("second-try", 2, Some(2), "u2", [2, 0, 1]),
        ("too-late", 1, Some(2), "503", [2, 0, 0]),
        ("three", 2, Some(1), "u2", [1, 1, 1]),
        ("none-left", 3, Some(1), "503", [2, 2, 0]),
        ("by-hash", 1, Some(1), "503", [2, 0, 0]),
        ("all", 1, Some(1), "u2", [1, 0, 1]),
    ];
    let clusters = [
        cluster_of("plain", &two, ""),
        cluster_of("each", &two, ""),
        cluster_of("second-try", &two, ", lb_policy: LEAST_REQUEST"),
        cluster_of("too-late", &two, ""),
        cluster_of("three", &levels(&[bad, worse, good]), ", lb_policy: RANDOM"),
        cluster_of("none-left", &levels(&[bad, worse]), ""),
        cluster_of("by-hash", &two, ", lb_policy: RING_HASH"),
        cluster_of("first", &levels(&[bad]), ""),
        cluster_of("second", &levels(&[good]), ""),
        aggregate.to_owned(),
    ];
    let routes: Vec<String> =
        cases.iter().map(|(cluster, retries, every, ..)| route(cluster, *retries, *every)).collect();
    let both = Both::start(&bootstrap(&web(&routes.join(", ")), &clusters)).await;
    for (who, proxy) in [("envoy", &both.envoy), ("outrigger", &both.ours)] {
        for (cluster, _, _, expected, tries) in cases {
            let seen = || [bad, worse, good].map(|upstream| upstream.seen().len());
            let before = seen();
            let names = served_by(proxy, &vec![(format!("/{cluster}/x"), Vec::new()); REQUESTS]).await;
            assert_eq!(names, [expected; REQUESTS], "{who}, {cluster}");
            let after = seen();
            let made: Vec<usize> = after.iter().zip(before).map(|(after, before)| after - before).collect();
            assert_eq!(made, tries.map(|tries| tries * REQUESTS), "{who}, {cluster}");
        }
    }
}
