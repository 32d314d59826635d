//! Picking a host among 10, 1,000 and 10,000, and preparing the hosts for it.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use outrigger_benches::Numbers;
use outrigger_benches::picks::{Busy, POLICIES, WEIGHTS, hosts, options, set};
use outrigger_policy::balance::{HostSet, Picker, Wanted};

const COUNTS: [u32; 3] = [10, 1_000, 10_000];

fn pick(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick");
    for (policy_name, policy) in POLICIES {
        for (weights_name, weights) in WEIGHTS {
            for count in COUNTS {
                let mut picker = Picker::new(set(&hosts(count, weights), policy), 7);
                let mut numbers = Numbers::new(1);
                let busy = Busy::new(count, &mut numbers);
                // A million picks in a second.
                let mut now = 1_000_000;
                let id = BenchmarkId::new(format!("{policy_name}/{weights_name}"), count);
                group.bench_function(id, |bencher| {
                    bencher.iter(|| {
                        now += 1;
                        let wanted = Wanted { now: now / 1000, ..Wanted::default() };
                        black_box(picker.pick_for(&wanted, &mut || numbers.draw(), &busy, |_| false))
                    });
                });
            }
        }
    }
    group.finish();
}

fn build(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick/build");
    for (weights_name, weights) in WEIGHTS {
        for count in COUNTS {
            let (hosts, options) = (hosts(count, weights), options(POLICIES[1].1));
            group.bench_function(BenchmarkId::new(weights_name, count), |bencher| {
                bencher.iter(|| HostSet::build(black_box(&hosts), &options));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, pick, build);
criterion_main!(benches);
