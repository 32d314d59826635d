//! A cluster of 10,000 endpoints: what a pick costs with each policy, and what it costs to read an assignment and to prepare
//! its hosts. Fails if anything takes longer than it may.
//!
//!     cargo bench -p outrigger-benches --bench many_endpoints
//!
//! What a whole proxy makes of it, memory and all, is the scenario `endpoints`.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_benches::picks::{Busy, POLICIES, WEIGHTS, hosts, set};
use outrigger_benches::{NoEnvironment, Numbers, clusters};
use outrigger_config::Context;
use outrigger_config::cluster::Assignment;
use outrigger_policy::balance::{Picker, Policy, Wanted};

const ENDPOINTS: u32 = 10_000;
const ROUNDS: usize = 7;

/// The longest that a pick may take. As all bounds here it is about ten times what was measured when it was set, so that it
/// holds on slower and busy machines, and yet tells a walk over all endpoints from a look at two of them. Where policies do
/// something once a second, that is part of it.
fn pick_bound(policy: Policy) -> Duration {
    match policy {
        // It looks at all of them.
        Policy::LeastRequest { choice_count: u32::MAX, .. } => Duration::from_micros(300),
        _ => Duration::from_micros(1),
    }
}

/// The longest that it may take to prepare the hosts.
fn build_bound(policy: Policy) -> Duration {
    match policy {
        Policy::RingHash { .. } | Policy::Maglev { .. } => Duration::from_millis(30),
        _ => Duration::from_millis(5),
    }
}

/// The longest that it may take to read an assignment.
const PARSE_BOUND: Duration = Duration::from_millis(20);

/// The middle of several times.
fn median(mut measure: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| measure()).collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

fn pick_time(picker: &mut Picker, busy: &Busy, policy: Policy, numbers: &mut Numbers, now: &mut u64) -> Duration {
    let picks: u32 =
        if matches!(policy, Policy::LeastRequest { choice_count: u32::MAX, .. }) { 1_000 } else { 100_000 };
    median(|| {
        let began = Instant::now();
        for _ in 0..picks {
            // 100,000 picks in a second.
            *now += 1;
            let wanted = Wanted { now: 1_000 + *now / 100, hash: Some(numbers.draw()), ..Wanted::default() };
            black_box(picker.pick_for(&wanted, &mut || numbers.draw(), busy, |_| false));
        }
        began.elapsed() / picks
    })
}

fn main() -> ExitCode {
    let mut too_slow = false;
    let mut row = |name: &str, took: Duration, bound: Duration| {
        let verdict = if took > bound { "too slow" } else { "" };
        too_slow |= took > bound;
        println!("| {name} | {took:.1?} | {bound:?} | {verdict}");
    };
    println!("| {ENDPOINTS} endpoints | took | may take |");
    println!("| --- | --- | --- |");
    for (policy_name, policy) in POLICIES {
        for (weights_name, weights) in WEIGHTS {
            let hosts = hosts(ENDPOINTS, weights);
            let built = median(|| {
                let began = Instant::now();
                black_box(set(&hosts, policy));
                began.elapsed()
            });
            let mut picker = Picker::new(set(&hosts, policy), 7);
            let (mut numbers, mut now) = (Numbers::new(1), 0);
            let busy = Busy::new(ENDPOINTS, &mut numbers);
            let picked = pick_time(&mut picker, &busy, policy, &mut numbers, &mut now);
            row(&format!("{policy_name}, {weights_name}: a pick"), picked, pick_bound(policy));
            row(&format!("{policy_name}, {weights_name}: to prepare"), built, build_bound(policy));
        }
    }
    let wire = Arc::new(clusters::assignment(0, ENDPOINTS));
    let parsed = median(|| {
        let wire = (*wire).clone();
        let began = Instant::now();
        let read = Assignment::parse(&Context::new(&NoEnvironment), wire);
        let took = began.elapsed();
        assert!(read.is_ok_and(|read| read.localities[0].endpoints.len() == ENDPOINTS as usize));
        took
    });
    row("to read an assignment", parsed, PARSE_BOUND);
    if too_slow { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
