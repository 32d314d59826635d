//! Publishing a new graph of 1,000 clusters, and what it costs a worker to look whether there is one.

use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use outrigger::graph::{ClusterNode, Graph, GraphCell, HostList};
use outrigger_benches::{NoEnvironment, clusters};
use outrigger_config::Context;
use outrigger_config::cluster::Cluster;
use outrigger_config::units::Percent;
use outrigger_policy::balance::{BalanceOptions, Health, Host, HostSet, Policy};

const CLUSTERS: u32 = 1_000;
const ENDPOINTS: u32 = 10;

fn config(number: u32) -> Arc<Cluster> {
    let parsed = Cluster::parse(&Context::new(&NoEnvironment), clusters::cluster(number, ENDPOINTS));
    Arc::new(parsed.unwrap_or_else(|rejection| panic!("{rejection}")))
}

fn node(config: &Arc<Cluster>) -> Arc<ClusterNode> {
    let hosts: Vec<_> =
        (0..ENDPOINTS).map(|index| Host { weight: index % 3 + 1, health: Health::Healthy, priority: 0 }).collect();
    let options = BalanceOptions {
        policy: Policy::LeastRequest { choice_count: 2, active_request_bias: 1.0 },
        overprovisioning_factor: 140,
        panic_threshold: Percent::new(50.0).unwrap_or_else(|| unreachable!("50 is a percentage")),
        weighted_priority_health: false,
    };
    let balance = Some(Arc::new(HostSet::build(&hosts, &options)));
    let hosts = Arc::new(HostList { balance, ..HostList::default() });
    Arc::new(ClusterNode { config: Arc::clone(config), hosts, tls: None, shared: Arc::default(), outlier: None })
}

fn graph(configs: &[Arc<Cluster>], generation: u64) -> Graph {
    let nodes = configs.iter().map(|config| (Arc::clone(&config.name), node(config)));
    Graph { generation, clusters: nodes.collect(), ..Graph::default() }
}

fn publish(criterion: &mut Criterion) {
    let configs: Vec<_> = (0..CLUSTERS).map(config).collect();
    let cell = GraphCell::new();
    let mut generation = 1;
    cell.publish(Arc::new(graph(&configs, generation)));
    let mut group = criterion.benchmark_group("publish");
    group.bench_function("all_clusters_new", |bencher| {
        bencher.iter(|| {
            generation += 1;
            cell.publish(Arc::new(graph(&configs, generation)));
        });
    });
    group.bench_function("one_cluster_changed", |bencher| {
        bencher.iter(|| {
            let old = cell.load();
            generation += 1;
            let changed = &configs[generation as usize % configs.len()];
            let mut clusters = old.clusters.clone();
            clusters.insert(Arc::clone(&changed.name), node(changed));
            let routes = old.routes.clone();
            let listeners = old.listeners.clone();
            let runtime = Arc::clone(&old.runtime);
            cell.publish(Arc::new(Graph { generation, listeners, clusters, routes, runtime }));
        });
    });
    group.bench_function("is_there_a_new_one", |bencher| bencher.iter(|| cell.generation()));
    group.bench_function("load", |bencher| bencher.iter(|| cell.load()));
    group.finish();
}

criterion_group!(benches, publish);
criterion_main!(benches);
