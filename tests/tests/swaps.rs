//! Random changes of everything under load: whatever the order, no request fails.
//!
//! The control plane makes before it breaks: it waits for the ACK of what is new before it removes what is old.
//! `OUTRIGGER_SWAPS` sets the number of changes (100), `OUTRIGGER_SEED` repeats a run.

use std::collections::BTreeMap;

use control_plane_mock::MockControlPlane;
use outrigger_tests::config::{self, Xds, ads_bootstrap, chain, endpoints, http, rds, resource, resources};
use outrigger_tests::load::Load;
use outrigger_tests::{Proxy, SOON, Settings, Upstream};

const PATHS: usize = 4;

/// A small generator of pseudo-random numbers (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or(0) % sides
    }
}

/// The configuration as the control plane wants it.
struct Plan {
    mock: MockControlPlane,
    dice: Dice,
    ports: Vec<u16>,
    /// Clusters by name, with their version.
    clusters: BTreeMap<String, usize>,
    /// Cluster of each path.
    routes: Vec<String>,
    listener_version: usize,
    extra_listener: bool,
    made: usize,
}

impl Plan {
    async fn begin(mock: MockControlPlane, ports: Vec<u16>, seed: u64) -> Self {
        let mut plan = Self {
            mock,
            dice: Dice(seed | 1),
            ports,
            clusters: BTreeMap::new(),
            routes: vec!["cluster-1".to_owned(); PATHS],
            listener_version: 0,
            extra_listener: false,
            made: 1,
        };
        plan.clusters.insert("cluster-1".to_owned(), 0);
        let all = [plan.cluster("cluster-1"), plan.endpoints("cluster-1"), plan.route_table(), plan.listener("web")];
        plan.mock.set_yaml(&resources(&all)).unwrap();
        plan
    }

    /// One random change; gives its description.
    async fn change(&mut self) -> String {
        match self.dice.roll(8) {
            0 | 1 => self.change_endpoints().await,
            2 => self.change_routes().await,
            3 => self.add_cluster().await,
            4 => self.remove_cluster().await,
            5 => self.change_cluster().await,
            6 => self.change_listener().await,
            _ => self.toggle_listener().await,
        }
    }

    async fn change_endpoints(&mut self) -> String {
        let name = self.any_cluster();
        let load = self.endpoints(&name);
        self.set(&[load]);
        self.acked("eds").await;
        format!("endpoints of {name}")
    }

    async fn change_routes(&mut self) -> String {
        for path in 0..PATHS {
            self.routes[path] = self.any_cluster();
        }
        self.publish_routes().await;
        "routes".to_owned()
    }

    async fn add_cluster(&mut self) -> String {
        self.made += 1;
        let name = format!("cluster-{}", self.made);
        self.clusters.insert(name.clone(), 0);
        let all = [self.cluster(&name), self.endpoints(&name)];
        self.set(&all);
        self.acked("cds").await;
        self.acked("eds").await;
        let path = self.dice.roll(PATHS);
        self.routes[path].clone_from(&name);
        self.publish_routes().await;
        format!("new {name}")
    }

    async fn remove_cluster(&mut self) -> String {
        if self.clusters.len() < 2 {
            return "nothing to remove".to_owned();
        }
        let name = self.any_cluster();
        self.clusters.remove(&name);
        for path in 0..PATHS {
            if self.routes[path] == name {
                self.routes[path] = self.any_cluster();
            }
        }
        self.publish_routes().await;
        self.mock.remove("cds", &name);
        self.acked("cds").await;
        self.mock.remove("eds", &name);
        format!("removed {name}")
    }

    async fn change_cluster(&mut self) -> String {
        let name = self.any_cluster();
        *self.clusters.get_mut(&name).unwrap() += 1;
        let changed = self.cluster(&name);
        self.set(&[changed]);
        self.acked("cds").await;
        format!("changed {name}")
    }

    async fn change_listener(&mut self) -> String {
        self.listener_version += 1;
        let changed = self.listener("web");
        self.set(&[changed]);
        self.acked("lds").await;
        "listener".to_owned()
    }

    async fn toggle_listener(&mut self) -> String {
        self.extra_listener = !self.extra_listener;
        if self.extra_listener {
            let extra = self.listener("extra");
            self.set(&[extra]);
        } else {
            self.mock.remove("lds", "extra");
        }
        self.acked("lds").await;
        format!("extra listener: {}", self.extra_listener)
    }

    fn set(&self, all: &[String]) {
        self.mock.set_yaml(&resources(all)).unwrap();
    }

    async fn publish_routes(&mut self) {
        let table = self.route_table();
        self.set(&[table]);
        self.acked("rds").await;
    }

    async fn acked(&self, kind: &str) {
        if let Err(error) = self.mock.wait_ack(kind, SOON).await {
            panic!("{kind}: {error}");
        }
    }

    fn any_cluster(&mut self) -> String {
        let index = self.dice.roll(self.clusters.len());
        self.clusters.keys().nth(index).unwrap().clone()
    }

    fn cluster(&self, name: &str) -> String {
        let version = self.clusters[name];
        let policy = if version.is_multiple_of(2) { "ROUND_ROBIN" } else { "LEAST_REQUEST" };
        let body = format!(
            "{{ name: {name}, type: EDS, connect_timeout: {}s, lb_policy: {policy}, eds_cluster_config: {{ eds_config: {} }} }}",
            5 + version,
            config::ADS
        );
        resource("cds", &body)
    }

    /// One to all of the upstreams, and never none.
    fn endpoints(&mut self, name: &str) -> String {
        let first = self.dice.roll(self.ports.len());
        let count = 1 + self.dice.roll(self.ports.len());
        let ports: Vec<u16> = (0..count).map(|offset| self.ports[(first + offset) % self.ports.len()]).collect();
        resource("eds", &endpoints(name, &ports))
    }

    fn route_table(&self) -> String {
        let route = |(path, cluster): (usize, &String)| {
            format!("{{ match: {{ prefix: /{path} }}, route: {{ cluster: {cluster} }} }}")
        };
        let routes: Vec<String> = self.routes.iter().enumerate().map(route).collect();
        resource("rds", &config::route_configuration("web-routes", &routes.join(", ")))
    }

    fn listener(&self, name: &str) -> String {
        let manager = http(&format!("web-{}", self.listener_version % 3), &rds("web-routes"));
        resource("lds", &config::listener(name, &[chain(&manager, "")], ""))
    }
}

async fn swaps_under_load(how: Xds, count: usize) {
    let seed = std::env::var("OUTRIGGER_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("{how:?}: OUTRIGGER_SEED={seed}");
    let upstreams = [Upstream::start("a").await, Upstream::start("b").await, Upstream::start("c").await];
    let mock = MockControlPlane::start().await;
    let ports = upstreams.iter().map(Upstream::port).collect();
    let mut plan = Plan::begin(mock.clone(), ports, seed).await;
    // Connections of a listener that changed are asked to go at once, not little by little: more of them under way.
    let arguments = vec!["--drain-strategy".to_owned(), "immediate".to_owned()];
    let settings = Settings { concurrency: 2, arguments, ..Settings::default() };
    let proxy = Proxy::start_with(&ads_bootstrap(how, mock.address().port()), settings).await;
    let web = proxy.listener("web").await;

    let mut load = Load::start(web, 4, PATHS);
    for number in 0..count {
        let change = plan.change().await;
        // Each change meets requests.
        load.goes_on(4).await;
        assert!(load.failures().is_empty(), "after change {number} ({change}): {:?}", load.failures());
    }
    load.end().await;
    println!("{} requests, {} reconnects", load.good(), load.reconnects());
    assert_eq!(load.failures(), Vec::<String>::new());
    let expected = u64::try_from(plan.clusters.len()).unwrap() + 1;
    proxy.wait_stat("cluster_manager.active_clusters", |active| active == expected).await;
    proxy.stat_is("cluster_manager.cds.update_rejected", 0).await;
    proxy.stat_is("listener_manager.lds.update_rejected", 0).await;
}

fn swaps() -> usize {
    std::env::var("OUTRIGGER_SWAPS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_swaps_under_load_fail_no_request_with_delta_ads() {
    swaps_under_load(Xds::AdsDelta, swaps().div_ceil(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_swaps_under_load_fail_no_request_with_state_of_the_world_ads() {
    swaps_under_load(Xds::AdsSotw, swaps() / 2).await;
}
