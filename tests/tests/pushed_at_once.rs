//! Clusters, endpoints and the routes that lead to them, all sent at once: the order in which they arrive, and how long
//! the endpoints take, must not show.
//!
//! Over a stream of its own for each type, routes may well arrive before the clusters that they name. Envoy answers 503
//! then, so these scenarios are not for it.

use std::time::Duration;

use control_plane_mock::MockControlPlane;
use outrigger_tests::config::{
    self, Xds, ads_bootstrap, chain, dynamic_bootstrap, eds_cluster, endpoints, http, rds, resource, resources,
    route_configuration, stream_source,
};
use outrigger_tests::load::Load;
use outrigger_tests::{Proxy, SOON, Settings, Upstream, eventually, h1};

/// As many new clusters, one after the other.
const ROUNDS: usize = 20;

/// Everything of one round: a cluster that was not there before, and all routes lead to it.
struct Round {
    number: usize,
    port: u16,
}

impl Round {
    fn cluster(&self) -> String {
        format!("cluster-{}", self.number)
    }

    /// Every third round brings a route configuration of its own, with an update of the listener that names it.
    fn routes(&self) -> String {
        format!("routes-{}", self.number / 3)
    }

    fn resources(&self) -> Vec<String> {
        let name = self.cluster();
        let route = format!(
            "{{ match: {{ prefix: / }}, route: {{ cluster: {name} }}, response_headers_to_add: [{{ header: {{ key: x-round, \
             value: '{}' }} }}] }}",
            self.number
        );
        let manager = http("web", &rds(&self.routes()));
        vec![
            resource("rds", &route_configuration(&self.routes(), &route)),
            resource("lds", &config::listener("web", &[chain(&manager, "")], "")),
            resource("eds", &endpoints(&name, &[self.port])),
            resource("cds", &eds_cluster(&name)),
        ]
    }
}

async fn everything_at_once(bootstrap: impl Fn(u16) -> String, rewrite: impl Fn(&str) -> String) {
    let upstreams = [Upstream::start("a").await, Upstream::start("b").await];
    let mock = MockControlPlane::start().await;
    let round = |number: usize| Round { number, port: upstreams[number % upstreams.len()].port() };
    let push = |round: &Round| mock.set_yaml(&rewrite(&resources(&round.resources()))).unwrap();
    push(&round(0));
    // Connections of a listener that changed are asked to go at once: more of them under way.
    let arguments = vec!["--drain-strategy".to_owned(), "immediate".to_owned()];
    let settings = Settings { arguments, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(mock.address().port()), settings).await;
    let web = proxy.listener("web").await;
    let mut load = Load::start(web, 2, 2);
    for number in 1..=ROUNDS {
        // Now and then endpoints are late: the cluster is there, and not ready.
        let late = number % 4 == 0;
        if late {
            mock.delay("eds", Duration::from_millis(150));
        }
        let (now, before) = (round(number), round(number - 1));
        push(&now);
        mock.remove("cds", &before.cluster());
        mock.remove("eds", &before.cluster());
        eventually("the new routes serve", async || {
            let shown = h1::get(web, "/").await.header("x-round").map(str::to_owned);
            if shown.as_deref() == Some(&*number.to_string()) { Ok(()) } else { Err(format!("{shown:?}")) }
        })
        .await;
        if late {
            mock.delay("eds", Duration::ZERO);
        }
        load.goes_on(4).await;
        assert!(load.failures().is_empty(), "round {number}: {:?}\n{}", load.failures(), proxy.log());
    }
    load.end().await;
    assert_eq!(load.failures(), Vec::<String>::new());
    for kind in ["cds", "lds", "rds"] {
        mock.wait_ack(kind, SOON).await.unwrap();
    }
    // The cluster of the control plane and the last one.
    proxy.wait_stat("cluster_manager.active_clusters", |active| active == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_fails_with_delta_ads() {
    everything_at_once(|port| ads_bootstrap(Xds::AdsDelta, port), str::to_owned).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_fails_with_state_of_the_world_ads() {
    everything_at_once(|port| ads_bootstrap(Xds::AdsSotw, port), str::to_owned).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_fails_with_one_delta_stream_per_type() {
    let source = stream_source("DELTA_GRPC");
    everything_at_once(|port| dynamic_bootstrap(&source, port), |text| text.replace(config::ADS, &source)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_fails_with_one_state_of_the_world_stream_per_type() {
    let source = stream_source("GRPC");
    everything_at_once(|port| dynamic_bootstrap(&source, port), |text| text.replace(config::ADS, &source)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_listener_waits_for_the_clusters_that_came_before_it() {
    let upstream = Upstream::start("a").await;
    let mock = MockControlPlane::start().await;
    let first = Round { number: 0, port: upstream.port() };
    mock.set_yaml(&resources(&first.resources())).unwrap();
    let proxy = Proxy::start(&ads_bootstrap(Xds::AdsDelta, mock.address().port())).await;
    proxy.listener("web").await;

    mock.hold("eds");
    let manager = http("new", &config::routes(&config::all_to("new")));
    mock.set_yaml(&resources(&[
        resource("cds", &eds_cluster("new")),
        resource("eds", &endpoints("new", &[upstream.port()])),
        resource("lds", &config::listener("new", &[chain(&manager, "")], "")),
    ]))
    .unwrap();
    proxy.wait_stat("listener_manager.total_listeners_warming", |count| count == 1).await;
    mock.release("eds");
    assert_eq!(h1::get(proxy.listener("new").await, "/").await.served_by(), "a");
}
