use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroU32;
use std::time::Duration;

use outrigger_config::cluster::{BalancingOptions, Consistent, PeakEwma, ReportOptions};
use outrigger_config::units::Percent;
use proptest::prelude::*;

use super::super::hosts::{BalanceOptions, Facts, Health, Host, Inputs};
use super::*;

fn options(policy: Policy) -> BalanceOptions {
    BalanceOptions {
        policy,
        overprovisioning_factor: 140,
        panic_threshold: Percent::new(50.0).unwrap(),
        weighted_priority_health: false,
    }
}

const P2C: Policy = Policy::LeastRequest { choice_count: 2, active_request_bias: 1.0 };

const SCAN: Policy = Policy::LeastRequest { choice_count: u32::MAX, active_request_bias: 1.0 };
const PEAK: PeakEwma = PeakEwma {
    choice_count: 2,
    decay: Duration::from_secs(10),
    default_rtt: Duration::from_millis(30),
    failure_penalty: Duration::from_secs(1),
};

/// Those that share an idle cluster by weight.
const POLICIES: [Policy; 4] =
    [Policy::RoundRobin, P2C, SCAN, Policy::LeastRequest { choice_count: 3, active_request_bias: 0.0 }];

const ALL_POLICIES: [Policy; 9] = [
    POLICIES[0],
    POLICIES[1],
    POLICIES[2],
    POLICIES[3],
    Policy::Random,
    Policy::PeakEwma(PEAK),
    Policy::PeakEwma(PeakEwma { choice_count: 3, ..PEAK }),
    Policy::PickFirst { shuffle: false },
    Policy::PickFirst { shuffle: true },
];

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

#[test]
fn retries_go_to_priorities_that_were_not_tried() {
    let host = |priority, weight| Host { weight, health: Health::Healthy, priority };
    let hosts = [host(0, 1), host(0, 2), host(1, 1), host(1, 3), host(2, 1)];
    let mut random = random(7);
    for policy in [Policy::RoundRobin, P2C, Policy::Random] {
        let mut picker = Picker::new(Arc::new(HostSet::build(&hosts, &options(policy))), 42);
        let mut at = |priorities: &[u32]| {
            let attempted = Attempted { update_frequency: NonZeroU32::MIN, priorities };
            let wanted = Wanted { attempted: Some(attempted), ..Wanted::default() };
            let mut counts = BTreeMap::new();
            for _ in 0..400 {
                let pick = picker.pick_for(&wanted, &mut random, &idle, |_| false).unwrap();
                *counts.entry(pick.host.0).or_insert(0) += 1;
            }
            counts
        };
        assert_eq!(at(&[]).into_keys().collect::<Vec<_>>(), [0, 1], "{policy:?}");
        let second = at(&[0]);
        assert_eq!(second.keys().copied().collect::<Vec<_>>(), [2, 3], "{policy:?}");
        if policy == Policy::RoundRobin {
            assert_eq!(second, BTreeMap::from([(2, 100), (3, 300)]));
        }
        assert_eq!(at(&[0, 1]).into_keys().collect::<Vec<_>>(), [4], "{policy:?}");
        assert_eq!(at(&[0, 1, 2]).into_keys().collect::<Vec<_>>(), [0, 1], "{policy:?}");
        let picks = counts(&mut picker, 100, |_| false);
        assert!(picks.keys().all(|host| *host < 2), "{policy:?} {picks:?}");
    }
}

#[test]
fn retries_by_hash_stay_with_it() {
    let host = |priority| Host { weight: 1, health: Health::Healthy, priority };
    let consistent = Consistent::default();
    let policy = Policy::Maglev { table_size: 101, consistent };
    let mut picker = Picker::new(Arc::new(HostSet::build(&[host(0), host(1)], &options(policy))), 42);
    let attempted = Some(Attempted { update_frequency: NonZeroU32::MIN, priorities: &[0] });
    for level in [None, Some((1, Availability::Healthy))] {
        let wanted = Wanted { hash: Some(1), attempted, level, ..Wanted::default() };
        let pick = picker.pick_for(&wanted, &mut random(7), &idle, |_| false);
        assert_eq!(pick.map(|pick| pick.host.0), Some(0));
    }
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
fn a_random_host_is_any_whatever_its_weight() {
    let counts = counts(&mut picker(&weighted(&[1, 9]), Policy::Random), 10_000, |_| false);
    assert!(counts[&0].abs_diff(5000) < 300, "{counts:?}");
}

#[test]
fn two_choices_balance_better_than_one() {
    let (chance, two) = (imbalance(50, Policy::Random, 500), imbalance(50, P2C, 500));
    assert!(two < 1.7 && two + 0.3 < chance, "random {chance}, two choices {two}");
    let all = imbalance(50, SCAN, 500);
    assert!(all < 1.25 && all < two, "{all}");
}

#[test]
fn the_least_busy_of_all_is_a_random_one_of_those_that_are_alike() {
    // More hosts than are drawn before all are looked at, and fewer; none of them idle, or few.
    for (hosts, least) in [(4_u32, 1), (40, 1), (40, 0)] {
        let busy = |host: HostIndex| if host.0 % 4 == 1 { least } else { least + 1 + host.0 };
        let mut picker = picker(&weighted(&vec![1; hosts as usize]), SCAN);
        let mut random = random(8);
        let mut counts = BTreeMap::new();
        for _ in 0..10_000 {
            *counts.entry(picker.pick(&mut random, &busy, |_| false).unwrap().host.0).or_insert(0_u32) += 1;
        }
        assert!(counts.keys().copied().eq((1..hosts).step_by(4)), "{counts:?}");
        let expected = 10_000.0 / counts.len() as f64;
        let near = |count: &u32| (f64::from(*count) - expected).abs() < 6.0 * expected.sqrt();
        assert!(counts.values().all(near), "{counts:?}");
    }
}

#[test]
fn two_hosts_of_different_weight_share_by_weight_when_idle() {
    for policy in [P2C, SCAN] {
        let counts = counts(&mut picker(&weighted(&[9, 1]), policy), 10_000, |_| false);
        assert!(counts[&1].abs_diff(1000) < 200, "{policy:?} {counts:?}");
    }
}

/// Hosts as requests have left them.
#[derive(Default)]
struct World {
    active: Vec<u32>,
    latencies: Vec<Latency>,
    reported: Vec<ReportedWeight>,
    unreachable: Vec<u32>,
}

impl Load for World {
    fn active_requests(&self, host: HostIndex) -> u32 {
        self.active.get(host.0 as usize).copied().unwrap_or(0)
    }

    fn latency(&self, host: HostIndex) -> Latency {
        self.latencies.get(host.0 as usize).copied().unwrap_or_default()
    }

    fn reported(&self, host: HostIndex) -> ReportedWeight {
        self.reported.get(host.0 as usize).copied().unwrap_or_default()
    }

    fn is_unreachable(&self, host: HostIndex, _: u64) -> bool {
        self.unreachable.contains(&host.0)
    }
}

/// Requests come evenly and last as long as their host takes for one; the shares of the hosts. `took` is in
/// milliseconds, and a request comes every `every` milliseconds.
fn shares_by_latency(weights: &[u32], took: &[u64], every: u64) -> Vec<f64> {
    let mut picker = picker(&weighted(weights), Policy::PeakEwma(PEAK));
    let mut random = random(4);
    let mut world = World { active: vec![0; took.len()], ..World::default() };
    world.latencies = vec![Latency::default(); took.len()];
    let mut ends: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    let mut counts = vec![0_u32; took.len()];
    let requests = 30_000;
    for request in 0..requests {
        let now = 1 + request * every;
        while let Some(entry) = ends.first_entry().filter(|entry| *entry.key() <= now) {
            for host in entry.remove() {
                world.active[host] -= 1;
                world.latencies[host].record(Duration::from_millis(took[host]), now, &PEAK);
            }
        }
        let wanted = Wanted { now, ..Wanted::default() };
        let host = picker.pick_for(&wanted, &mut random, &world, |_| false).unwrap().host.0 as usize;
        world.active[host] += 1;
        counts[host] += 1;
        ends.entry(now + took[host]).or_default().push(host);
    }
    counts.into_iter().map(|count| f64::from(count) / requests as f64).collect()
}

#[test]
fn slow_hosts_get_few_requests() {
    let shares = shares_by_latency(&[1; 5], &[10, 10, 10, 10, 500], 2);
    assert!(shares[4] < 0.01, "{shares:?}");
    assert!(shares[..4].iter().all(|share| *share > 0.15), "{shares:?}");
}

#[test]
fn hosts_of_one_latency_share_by_weight() {
    let shares = shares_by_latency(&[1, 2, 5], &[10; 3], 1);
    assert!((shares[0] - 0.125).abs() < 0.06 && (shares[2] - 0.625).abs() < 0.06, "{shares:?}");
}

#[test]
fn a_host_that_was_slow_is_tried_again() {
    let mut picker = picker(&weighted(&[1; 2]), Policy::PeakEwma(PEAK));
    let mut world = World { latencies: vec![Latency::default(); 2], ..World::default() };
    world.latencies[0].record(Duration::from_secs(5), 1, &PEAK);
    let mut tried = |now| {
        world.latencies[1].record(Duration::from_millis(5), now, &PEAK);
        let wanted = Wanted { now, ..Wanted::default() };
        picker.pick_for(&wanted, &mut || 0, &world, |_| false).unwrap().host.0 == 0
    };
    assert!(!tried(1) && !tried(30_000) && tried(100_000));
}

#[test]
fn a_host_of_which_nothing_is_known_gets_one_request_at_a_time() {
    let mut picker = picker(&weighted(&[1; 2]), Policy::PeakEwma(PEAK));
    let mut world = World { active: vec![0; 2], latencies: vec![Latency::default(); 2], ..World::default() };
    // Far faster than the default says of the new one.
    world.latencies[0].record(Duration::from_millis(1), 1, &PEAK);
    let mut pick = |active: u32| {
        world.active[1] = active;
        picker.pick_for(&Wanted { now: 2, ..Wanted::default() }, &mut || 0, &world, |_| false).unwrap().host.0
    };
    assert_eq!((pick(0), pick(1)), (1, 0));
}

fn reports() -> BalancingOptions {
    let reports = ReportOptions {
        blackout_period: Duration::from_secs(10),
        weight_expiration_period: Duration::from_secs(180),
        weight_update_period: Duration::from_secs(1),
        error_utilization_penalty: 1.0,
        metrics: Vec::new(),
        out_of_band: None,
    };
    BalancingOptions { reports: Some(Arc::new(reports)), ..BalancingOptions::default() }
}

/// A picker of hosts that `facts` knows.
fn picker_with(hosts: &[Host], policy: Policy, options: &BalancingOptions, facts: &impl Facts) -> Picker {
    let balance = self::options(policy);
    Picker::new(Arc::new(HostSet::build_with(&Inputs { hosts, balance, options, facts })), 42)
}

struct Seeded(u64);

impl Facts for Seeded {
    fn seed(&self) -> u64 {
        self.0
    }
}

#[test]
fn reported_weights_count_from_the_next_update_on_whatever_discovery_says() {
    let mut picker = picker_with(&weighted(&[7, 1, 1, 1]), Policy::Reported, &reports(), &Seeded(0));
    let mut world = World::default();
    let mut random = random(9);
    let mut shares = |world: &World, now: u64| {
        let mut counts = [0_u32; 4];
        for _ in 0..1200 {
            let wanted = Wanted { now, ..Wanted::default() };
            counts[picker.pick_for(&wanted, &mut random, world, |_| false).unwrap().host.0 as usize] += 1;
        }
        counts
    };
    assert_eq!(shares(&world, 1_000), [300; 4]);
    world.reported = vec![ReportedWeight::default(); 4];
    // The last one reports nothing, and gets the median.
    for (host, weight) in [(0, 100.0), (1, 200.0), (2, 700.0)] {
        world.reported[host] = ReportedWeight { weight, since: 1_000, last: 11_000 };
    }
    assert_eq!(shares(&world, 1_999), [300; 4]);
    assert_eq!(shares(&world, 10_999), [300; 4]);
    let by_weight = shares(&world, 12_000);
    let near = |counts: [u32; 4]| counts.iter().zip([100, 200, 700, 200]).all(|(count, near)| count.abs_diff(near) < 4);
    assert!(near(by_weight), "{by_weight:?}");
    assert_eq!(shares(&world, 191_001), [300; 4]);
}

#[test]
fn the_first_host_takes_everything_as_long_as_it_can_be_reached() {
    let hosts = weighted(&[1, 9, 9]);
    let mut world = World::default();
    let pick = |picker: &mut Picker, world: &World| {
        picker.pick_for(&Wanted::default(), &mut || panic!("no choice"), world, |_| false).unwrap().host.0
    };
    let mut first = picker(&hosts, Policy::PickFirst { shuffle: false });
    assert_eq!(pick(&mut first, &world), 0);
    world.unreachable = vec![0];
    assert_eq!(pick(&mut first, &world), 1);
    world.unreachable = vec![0, 1, 2];
    assert_eq!(pick(&mut first, &world), 0);
    // Others are the first of other processes.
    world.unreachable.clear();
    let mut firsts = BTreeMap::new();
    for seed in 0..300 {
        let shuffled = Policy::PickFirst { shuffle: true };
        let mut picker = picker_with(&hosts, shuffled, &BalancingOptions::default(), &Seeded(seed));
        *firsts.entry(pick(&mut picker, &world)).or_insert(0) += 1;
    }
    assert!(firsts.len() == 3 && firsts.values().all(|count| *count > 60), "{firsts:?}");
}

#[test]
fn a_subset_of_hosts_is_this_processes_own_and_stable() {
    let options = BalancingOptions { subset_size: Some(3), ..BalancingOptions::default() };
    let mut hosts = weighted(&[1; 20]);
    hosts[15..].iter_mut().for_each(|host| host.priority = 1);
    let used = |hosts: &[Host], seed| {
        let mut picker = picker_with(hosts, Policy::RoundRobin, &options, &Seeded(seed));
        assert_eq!(picker.hosts().load().levels.len(), 2);
        let mut used: Vec<_> = counts(&mut picker, 60, |_| false).into_keys().collect();
        used.sort_unstable();
        used
    };
    let mut uses = vec![0; 15];
    for seed in 0..200 {
        let subset = used(&hosts, seed);
        assert!(subset.len() == 3 && subset.iter().all(|host| *host < 15), "{subset:?}");
        subset.iter().for_each(|host| uses[*host as usize] += 1);
        // One that becomes unfit still belongs to the subset, and no other comes in for it.
        let mut sick = hosts.clone();
        sick[subset[0] as usize].health = Health::Unhealthy;
        assert!(used(&sick, seed)[..].iter().all(|host| *host != subset[0] && subset.contains(host) || *host >= 15));
    }
    assert!(uses.iter().all(|count| (15..70).contains(count)), "{uses:?}");
}

#[test]
fn hosts_are_found_by_address_where_requests_may_name_them() {
    let options = BalancingOptions::default();
    let plain = picker_with(&weighted(&[1; 3]), P2C, &options, &Seeded(0));
    assert_eq!(plain.hosts().find("1"), None);
    let overridden = BalancingOptions {
        override_hosts: Some(Arc::new(outrigger_config::cluster::OverrideHosts {
            sources: Vec::new(),
            selected: None,
        })),
        ..options
    };
    let named = picker_with(&weighted(&[1; 3]), P2C, &overridden, &Seeded(0));
    assert_eq!((named.hosts().find("1"), named.hosts().find("9")), (Some(HostIndex(1)), None));
}

#[test]
fn the_health_of_a_priority_may_be_that_of_its_weights() {
    let host = |priority, weight, health| Host { weight, health, priority };
    let hosts = [host(0, 9, Health::Unhealthy), host(0, 1, Health::Healthy), host(1, 1, Health::Healthy)];
    let share = |weighted_priority_health| {
        HostSet::build(&hosts, &BalanceOptions { weighted_priority_health, ..options(P2C) }).load().levels[0].healthy
    };
    assert_eq!((share(false), share(true)), (70, 14));
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
    for policy in ALL_POLICIES {
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
        policy in 0..ALL_POLICIES.len(),
        threshold in prop_oneof![Just(0.0), Just(50.0), Just(100.0)],
        seed in any::<u64>(),
        avoided in 0_u32..20,
    ) {
        let panic_threshold = Percent::new(threshold).unwrap();
        let set = Arc::new(HostSet::build(&hosts, &BalanceOptions { panic_threshold, ..options(ALL_POLICIES[policy]) }));
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
