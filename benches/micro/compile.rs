//! From the bytes of resources to the checked configuration: 1,000 clusters of 10 endpoints, a listener with 100 filter
//! chains.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use outrigger_api::pb;
use outrigger_benches::{NoEnvironment, clusters, listeners};
use outrigger_config::Context;
use outrigger_config::cluster::{Assignment, Cluster};
use outrigger_config::listener::Listener;
use outrigger_policy::filter_chain::FilterChainIndex;
use prost::Message;

const CLUSTERS: u32 = 1_000;
const ENDPOINTS: u32 = 10;
const CHAINS: usize = 100;

fn compile_clusters(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.throughput(Throughput::Elements(CLUSTERS.into())).sample_size(20);
    let wire: Vec<_> = (0..CLUSTERS).map(|number| clusters::cluster(number, ENDPOINTS)).collect();
    let bytes: Vec<Vec<u8>> = wire.iter().map(Message::encode_to_vec).collect();
    group.bench_function("clusters", |bencher| {
        bencher.iter_batched(
            || wire.clone(),
            |wire| {
                let context = Context::new(&NoEnvironment);
                wire.into_iter().map(|wire| Cluster::parse(&context, wire)).collect::<Result<Vec<_>, _>>().is_ok()
            },
            BatchSize::LargeInput,
        );
    });
    group.bench_function("clusters_from_bytes", |bencher| {
        bencher.iter(|| {
            let context = Context::new(&NoEnvironment);
            let compiled = bytes.iter().map(|bytes| {
                let wire = pb::envoy::config::cluster::v3::Cluster::decode(bytes.as_slice());
                wire.ok().and_then(|wire| Cluster::parse(&context, wire).ok())
            });
            compiled.collect::<Option<Vec<_>>>()
        });
    });
    let wire: Vec<_> = (0..CLUSTERS).map(|number| clusters::assignment(number, ENDPOINTS)).collect();
    group.bench_function("assignments", |bencher| {
        bencher.iter_batched(
            || wire.clone(),
            |wire| {
                let context = Context::new(&NoEnvironment);
                wire.into_iter().map(|wire| Assignment::parse(&context, wire)).collect::<Result<Vec<_>, _>>().is_ok()
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn compile_listener(criterion: &mut Criterion) {
    let wire = listeners::listener(CHAINS);
    let mut group = criterion.benchmark_group("compile");
    group.throughput(Throughput::Elements(CHAINS as u64));
    group.bench_function("listener", |bencher| {
        bencher.iter_batched(
            || wire.clone(),
            |wire| Listener::parse(&Context::new(&NoEnvironment), wire),
            BatchSize::SmallInput,
        );
    });
    let listener = Listener::parse(&Context::new(&NoEnvironment), wire.clone());
    let listener = listener.unwrap_or_else(|rejection| panic!("{rejection}"));
    group.bench_function("filter_chain_index", |bencher| {
        bencher.iter(|| FilterChainIndex::of_listener(&listener));
    });
    group.finish();
}

/// A refused resource would be measured as a very quick one.
fn check(_: &mut Criterion) {
    let context = Context::new(&NoEnvironment);
    if let Err(rejection) = Cluster::parse(&context, clusters::cluster(0, ENDPOINTS)) {
        panic!("{rejection}");
    }
    if let Err(rejection) = Assignment::parse(&context, clusters::assignment(0, ENDPOINTS)) {
        panic!("{rejection}");
    }
}

criterion_group!(benches, check, compile_clusters, compile_listener);
criterion_main!(benches);
