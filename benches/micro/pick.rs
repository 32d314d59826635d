//! Picking a host among 10, 1,000 and 10,000, and preparing the hosts for it.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use outrigger_benches::Numbers;
use outrigger_config::units::Percent;
use outrigger_policy::balance::{BalanceOptions, Health, Host, HostIndex, HostSet, Picker, Policy};

const POLICIES: [(&str, Policy); 3] = [
    ("round_robin", Policy::RoundRobin),
    ("least_request", Policy::LeastRequest { choice_count: 2, active_request_bias: 1.0 }),
    ("random", Policy::Random),
];
const WEIGHTS: [(&str, u32); 2] = [("equal", 1), ("weighted", 10)];
const COUNTS: [u32; 3] = [10, 1_000, 10_000];

/// Hosts whose weights go from 1 to `weights` and over again.
fn hosts(count: u32, weights: u32) -> Vec<Host> {
    (0..count).map(|number| Host { weight: number % weights + 1, health: Health::Healthy, priority: 0 }).collect()
}

fn options(policy: Policy) -> BalanceOptions {
    let panic_threshold = Percent::new(50.0).unwrap_or_else(|| unreachable!("50 is a percentage"));
    BalanceOptions { policy, overprovisioning_factor: 140, panic_threshold }
}

fn pick(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick");
    for (policy_name, policy) in POLICIES {
        for (weights_name, weights) in WEIGHTS {
            for count in COUNTS {
                let set = Arc::new(HostSet::build(&hosts(count, weights), &options(policy)));
                let mut picker = Picker::new(set, 7);
                let mut numbers = Numbers::new(1);
                // Requests in flight differ, so that least request has something to weigh.
                let active: Vec<u32> = (0..count).map(|_| (numbers.draw() % 8) as u32).collect();
                let id = BenchmarkId::new(format!("{policy_name}/{weights_name}"), count);
                group.bench_function(id, |bencher| {
                    bencher.iter(|| {
                        let load = |HostIndex(host): HostIndex| active[host as usize];
                        black_box(picker.pick(&mut || numbers.draw(), &load, |_| false))
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
