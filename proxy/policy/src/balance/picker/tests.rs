use std::collections::{HashMap, VecDeque};

use outrigger_config::units::Percent;
use proptest::prelude::*;

use super::super::hosts::{BalanceOptions, Health, Host};
use super::*;

fn options(policy: Policy) -> BalanceOptions {
    BalanceOptions { policy, overprovisioning_factor: 140, panic_threshold: Percent::new(50.0).unwrap() }
}

const P2C: Policy = Policy::LeastRequest { choice_count: 2, active_request_bias: 1.0 };

const POLICIES: [Policy; 4] =
    [Policy::RoundRobin, P2C, Policy::Random, Policy::LeastRequest { choice_count: 3, active_request_bias: 0.0 }];

fn weighted(weights: &[u32]) -> Vec<Host> {
    weights.iter().map(|weight| Host { weight: *weight, health: Health::Healthy, priority: 0 }).collect()
}

fn picker(hosts: &[Host], policy: Policy) -> Picker {
    Picker::new(Arc::new(HostSet::build(hosts, &options(policy))), 42)
}

fn idle(_: HostIndex) -> u32 {
    0
}

fn random(mut seed: u64) -> impl FnMut() -> u64 {
    move || spread(&mut seed)
}

/// How often each host is picked in an idle cluster.
fn counts(picker: &mut Picker, picks: u32, exclude: impl Fn(HostIndex) -> bool) -> HashMap<u32, u32> {
    let mut random = random(7);
    let mut counts = HashMap::new();
    for _ in 0..picks {
        let pick = picker.pick(&mut random, &idle, &exclude).unwrap();
        *counts.entry(pick.host.0).or_insert(0) += 1;
    }
    counts
}

#[test]
fn somebody_else_may_have_chosen_the_level() {
    let host = |priority, health| Host { weight: 1, health, priority };
    let hosts =
        [host(0, Health::Healthy), host(0, Health::Degraded), host(0, Health::Unhealthy), host(1, Health::Healthy)];
    let no_panic = BalanceOptions { panic_threshold: Percent::new(0.0).unwrap(), ..options(Policy::RoundRobin) };
    let mut picker = Picker::new(Arc::new(HostSet::build(&hosts, &no_panic)), 42);
    let mut random = random(7);
    let mut at = |priority, availability| {
        let wanted = Wanted { level: Some((priority, availability)), ..Wanted::default() };
        picker.pick_for(&wanted, &mut random, &idle, |_| false).map(|pick| pick.host.0)
    };
    for _ in 0..10 {
        assert_eq!(at(0, Availability::Healthy), Some(0));
        assert_eq!(at(1, Availability::Healthy), Some(3));
    }
    assert_eq!(at(2, Availability::Healthy), None);
}

/// The highest and the mean number of active requests when each request lasts as long as `lifetime` others.
fn imbalance(hosts: usize, policy: Policy, lifetime: usize) -> f64 {
    let mut picker = picker(&weighted(&vec![1; hosts]), policy);
    let (mut random, mut order) = (random(3), random(99));
    let mut active = vec![0_u32; hosts];
    let mut in_flight: VecDeque<usize> = VecDeque::new();
    let mut worst = 0.0_f64;
    for _ in 0..20_000 {
        let pick = picker.pick(&mut random, &|host: HostIndex| active[host.0 as usize], |_| false).unwrap();
        active[pick.host.0 as usize] += 1;
        in_flight.push_back(pick.host.0 as usize);
        if in_flight.len() > lifetime {
            // Requests end in any order.
            let ended = scale(order() as u32, in_flight.len() as u32) as usize;
            active[in_flight.swap_remove_back(ended).unwrap()] -= 1;
            let mean = in_flight.len() as f64 / hosts as f64;
            worst = worst.max(f64::from(*active.iter().max().unwrap()) / mean);
        }
    }
    worst
}

#[test]
fn round_robin_takes_turns_and_starts_anywhere() {
    let hosts = weighted(&[1; 5]);
    let set = Arc::new(HostSet::build(&hosts, &options(Policy::RoundRobin)));
    let mut starts = HashMap::new();
    for start in 0..1000 {
        let mut picker = Picker::new(Arc::clone(&set), start);
        let picks: Vec<_> = (0..10).map(|_| picker.pick(&mut || 0, &idle, |_| false).unwrap().host.0).collect();
        assert!(picks.windows(2).all(|pair| pair[1] == (pair[0] + 1) % 5), "{picks:?}");
        *starts.entry(picks[0]).or_insert(0) += 1;
    }
    assert!(starts.len() == 5 && starts.values().all(|count| *count > 140), "{starts:?}");
}

#[test]
fn an_idle_cluster_is_shared_by_weight() {
    let weights = [1, 2, 3, 10, 84];
    for policy in POLICIES {
        let counts = counts(&mut picker(&weighted(&weights), policy), 100_000, |_| false);
        for (host, weight) in (0..).zip(weights) {
            let expected = f64::from(weight) * 1000.0;
            let found = f64::from(counts[&host]);
            assert!((found - expected).abs() < 6.0 * expected.sqrt(), "{policy:?} {host}: {found}");
        }
    }
}

#[test]
fn two_choices_balance_better_than_one() {
    let (chance, two) = (imbalance(50, Policy::Random, 500), imbalance(50, P2C, 500));
    assert!(two < 1.7 && two + 0.3 < chance, "random {chance}, two choices {two}");
    let all = imbalance(50, Policy::LeastRequest { choice_count: 50, active_request_bias: 1.0 }, 500);
    assert!(all < two, "{all}");
}

#[test]
fn a_slow_host_is_avoided_whatever_its_weight() {
    for weights in [[1, 1, 1], [5, 2, 1]] {
        let mut picker = picker(&weighted(&weights), P2C);
        let mut random = random(5);
        let busy = |host: HostIndex| if host.0 == 0 { 100 } else { 0 };
        let slow = (0..10_000).filter(|_| picker.pick(&mut random, &busy, |_| false).unwrap().host.0 == 0).count();
        // Only when both draws fall on it, which with equal weights they never do.
        let both = f64::from(weights[0]) / f64::from(weights.iter().sum::<u32>());
        let limit = if weights[0] == 1 { 0.0 } else { 10_000.0 * both * both * 1.1 };
        assert!((slow as f64) <= limit, "{weights:?}: {slow}");
    }
}

#[test]
fn active_requests_settle_by_weight_under_load() {
    let weights = [1_u32, 2, 5];
    let mut picker = picker(&weighted(&weights), P2C);
    let (mut random, mut order) = (random(1), random(2));
    let mut active = [0_u32; 3];
    let mut sums = [0_u64; 3];
    let mut in_flight = Vec::new();
    for _ in 0..50_000 {
        let pick = picker.pick(&mut random, &|host: HostIndex| active[host.0 as usize], |_| false).unwrap();
        active[pick.host.0 as usize] += 1;
        in_flight.push(pick.host.0 as usize);
        if in_flight.len() > 80 {
            let ended = scale(order() as u32, in_flight.len() as u32) as usize;
            active[in_flight.swap_remove(ended)] -= 1;
        }
        (0..3).for_each(|host| sums[host] += u64::from(active[host]));
    }
    let total: u64 = sums.iter().sum();
    for host in 0..3 {
        let share = sums[host] as f64 / total as f64;
        let expected = f64::from(weights[host]) / 8.0;
        assert!((share / expected - 1.0).abs() < 0.15, "{host}: {share} for {expected}");
    }
}

#[test]
fn excluded_hosts_are_never_picked() {
    for policy in POLICIES {
        for weights in [vec![1; 20], (1..=20).collect()] {
            let mut picker = picker(&weighted(&weights), policy);
            let counts = counts(&mut picker, 2000, |host| host.0 != 13);
            assert_eq!(counts.into_iter().collect::<Vec<_>>(), [(13, 2000)], "{policy:?}");
            assert_eq!(picker.pick(&mut random(1), &idle, |_| true), None);
        }
    }
    let mut single = picker(&weighted(&[1]), P2C);
    assert!(single.pick(&mut || 0, &idle, |_| false).is_some());
    assert!(single.pick(&mut || 0, &idle, |_| true).is_none());
}

#[test]
fn nothing_is_picked_from_nothing() {
    let none = Percent::new(0.0).unwrap();
    let dead = [Host { weight: 1, health: Health::Unhealthy, priority: 0 }];
    for hosts in [&[][..], &dead] {
        let set = HostSet::build(hosts, &BalanceOptions { panic_threshold: none, ..options(P2C) });
        assert!(set.is_empty());
        assert_eq!(Picker::new(Arc::new(set), 0).pick(&mut || 0, &idle, |_| false), None);
    }
    let excluded = [Host { weight: 1, health: Health::Excluded, priority: 0 }];
    assert!(HostSet::build(&excluded, &options(P2C)).is_empty());
}

#[test]
fn spilled_traffic_follows_the_priorities() {
    let host = |priority, health| Host { weight: 1, health, priority };
    let mut hosts = vec![host(0, Health::Healthy), host(0, Health::Unhealthy)];
    hosts.extend([host(1, Health::Healthy), host(1, Health::Healthy)]);
    for policy in POLICIES {
        let counts = counts(&mut picker(&hosts, policy), 10_000, |_| false);
        assert!(counts[&0].abs_diff(7000) < 300, "{policy:?} {counts:?}");
        assert!(!counts.contains_key(&1));
        assert!(counts[&2].abs_diff(1500) < 250 && counts[&3].abs_diff(1500) < 250, "{policy:?} {counts:?}");
    }
}

fn any_host() -> impl Strategy<Value = Host> {
    let health = prop_oneof![
        4 => Just(Health::Healthy),
        1 => Just(Health::Degraded),
        3 => Just(Health::Unhealthy),
        1 => Just(Health::Excluded)
    ];
    (1_u32..4, health, 0_u32..3).prop_map(|(weight, health, priority)| Host { weight, health, priority })
}

proptest! {
    #[test]
    fn only_panic_picks_the_unfit(
        hosts in proptest::collection::vec(any_host(), 0..20),
        policy in 0..POLICIES.len(),
        threshold in prop_oneof![Just(0.0), Just(50.0), Just(100.0)],
        seed in any::<u64>(),
        avoided in 0_u32..20,
    ) {
        let panic_threshold = Percent::new(threshold).unwrap();
        let set = Arc::new(HostSet::build(&hosts, &BalanceOptions { panic_threshold, ..options(POLICIES[policy]) }));
        let mut picker = Picker::new(Arc::clone(&set), seed);
        let mut random = random(seed);
        for _ in 0..200 {
            match picker.pick(&mut random, &|host: HostIndex| host.0 * 7 % 5, |_| false) {
                Some(pick) => {
                    let host = hosts[pick.host.0 as usize];
                    prop_assert!(host.health != Health::Excluded);
                    prop_assert!(pick.panic || host.health != Health::Unhealthy);
                    prop_assert_eq!(pick.panic, set.load().levels[host.priority as usize].panic);
                }
                None => prop_assert!(set.is_empty()),
            }
            if let Some(pick) = picker.pick(&mut random, &idle, |host| host.0 == avoided) {
                prop_assert!(pick.host.0 != avoided);
            }
        }
    }
}
