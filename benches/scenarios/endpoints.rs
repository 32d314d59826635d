//! A cluster of 10,000 endpoints in a whole proxy: memory, and the time from an update at the control plane to the endpoints
//! in use.
//!
//! Owns the bounds that both must keep. Never looks inside the proxy.

use std::time::{Duration, Instant};

use control_plane_mock::MockControlPlane;
use outrigger_api::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use outrigger_api::pb::google::protobuf::Any;
use outrigger_benches::clusters;
use outrigger_tests::config::{Xds, ads_bootstrap, resource, resources};
use outrigger_tests::{Proxy, Settings};
use prost::{Message, Name};

use crate::proxies;

const ENDPOINTS: u32 = 10_000;
const UPDATES: u32 = 5;

/// Bytes of resident memory that an endpoint may cost which nobody has used, with what is left over from reading it. 1,737
/// when this was set.
const MOST_BYTES: u64 = 2_500;
/// 23 ms when this was set. From the moment that the control plane has an assignment to that in which the proxy uses it, with all endpoints new.
const LONGEST: Duration = Duration::from_millis(500);

/// Whether the bounds are kept.
pub async fn run() -> bool {
    let name = clusters::name(0);
    let mock = match MockControlPlane::builder().start().await {
        Ok(mock) => mock,
        Err(error) => {
            eprintln!("endpoints: no control plane: {error}");
            return false;
        }
    };
    let cluster = outrigger_tests::config::eds_cluster(&name);
    let push = |assignment: ClusterLoadAssignment| {
        let any = Any { type_url: ClusterLoadAssignment::type_url(), value: assignment.encode_to_vec() };
        mock.set(&ClusterLoadAssignment::type_url(), &name, any);
    };
    push(clusters::assignment(0, 1));
    mock.set_yaml(&resources(&[resource("cds", &cluster)])).unwrap_or_else(|error| panic!("made-up input: {error}"));
    let settings = Settings { program: proxies::outrigger(), concurrency: 1, ..Settings::default() };
    let proxy = Proxy::start_with(&ads_bootstrap(Xds::AdsDelta, mock.address().port()), settings).await;
    let total = format!("cluster.{name}.membership_total");
    let changes = format!("cluster.{name}.membership_change");
    proxy.wait_stat(&total, |total| total == 1).await;
    let before = proxy.stat("server.memory_physical_size").await;
    let mut longest = Duration::ZERO;
    let mut cost = 0;
    for update in 1..=UPDATES {
        let changed = proxy.stat(&changes).await;
        // Other addresses each time.
        let mut assignment = clusters::assignment(update, ENDPOINTS);
        assignment.cluster_name.clone_from(&name);
        let began = Instant::now();
        push(assignment);
        while proxy.stat(&changes).await == changed {}
        longest = longest.max(began.elapsed());
        assert_eq!(proxy.stat(&total).await, u64::from(ENDPOINTS), "all of them are there");
        if update == 1 {
            cost = proxy.stat("server.memory_physical_size").await.saturating_sub(before) / u64::from(ENDPOINTS);
        }
    }
    println!("| {ENDPOINTS} endpoints in a proxy | measured | bound |");
    println!("| --- | --- | --- |");
    println!("| resident bytes an endpoint | {cost} | {MOST_BYTES} |");
    println!("| longest of {UPDATES} updates of all endpoints | {longest:.0?} | {LONGEST:?} |");
    cost <= MOST_BYTES && longest <= LONGEST
}
