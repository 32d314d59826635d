//! Finding the route of a request among 1, 100 and 10,000.
//!
//! Requests go through all parts of the table evenly. Names say how routes are told apart, and how many there are.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use outrigger_benches::routes::{self, Kind};
use outrigger_policy::route::NoRuntime;

/// Different requests, so that the branch predictor cannot learn one.
const REQUESTS: usize = 64;

fn find(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route_match");
    for kind in Kind::ALL {
        for count in [1, 100, 10_000] {
            let table = routes::table(kind, count);
            let requests: Vec<_> =
                (0..REQUESTS).map(|number| routes::request(kind, number * count / REQUESTS)).collect();
            let mut next = requests.iter().cycle();
            group.bench_function(BenchmarkId::new(kind.name(), count), |bencher| {
                bencher.iter(|| {
                    let Some(request) = next.next() else { unreachable!("a cycle does not end") };
                    let found = table.find(black_box(request), 0, &NoRuntime);
                    assert!(found.is_ok());
                });
            });
        }
    }
    group.finish();
}

fn miss(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route_match/none");
    for kind in [Kind::Exact, Kind::Prefix, Kind::Regex] {
        let table = routes::table(kind, 100);
        let request = routes::request(kind, 100);
        group.bench_function(BenchmarkId::new(kind.name(), 100), |bencher| {
            bencher.iter(|| assert!(table.find(black_box(&request), 0, &NoRuntime).is_err()));
        });
    }
    group.finish();
}

criterion_group!(benches, find, miss);
criterion_main!(benches);
