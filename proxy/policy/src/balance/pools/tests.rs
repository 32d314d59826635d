use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::cluster::{BalancingOptions, Consistent, HashFunction, PeakEwma, ReportOptions, SlowStart};
use outrigger_config::units::Percent;
use proptest::prelude::*;

use super::super::hosts::{BalanceOptions, Callers, Facts, HostSet};
use super::super::picker::{Picker, Wanted};
use super::super::spread;
use super::*;

/// Hosts in localities.
struct World {
    hosts: Vec<Host>,
    places: Vec<u32>,
    weights: Vec<u32>,
    callers: Option<Callers>,
    began: Vec<u64>,
}

impl World {
    /// Healthy and unhealthy hosts for each locality.
    fn of(localities: &[(u32, u32)], weights: &[u32]) -> Self {
        let mut world =
            Self { hosts: Vec::new(), places: Vec::new(), weights: weights.to_vec(), callers: None, began: Vec::new() };
        for (place, (healthy, unhealthy)) in (0..).zip(localities) {
            for number in 0..healthy + unhealthy {
                let health = if number < *healthy { Health::Healthy } else { Health::Unhealthy };
                world.hosts.push(Host { weight: 1, health, priority: 0 });
                world.places.push(place);
            }
        }
        world
    }

    fn set(&self, policy: Policy, options: &BalancingOptions, panic_percent: f64) -> Arc<HostSet> {
        let panic_threshold = Percent::new(panic_percent).unwrap();
        let balance =
            BalanceOptions { policy, overprovisioning_factor: 140, panic_threshold, weighted_priority_health: false };
        Arc::new(HostSet::build_with(&Inputs { hosts: &self.hosts, balance, options, facts: self }))
    }

    fn picker(&self, policy: Policy, locality: LocalityBalancing) -> Picker {
        Picker::new(self.set(policy, &BalancingOptions { locality, ..BalancingOptions::default() }, 0.0), 3)
    }

    /// Shares of the localities in many picks.
    fn shares(&self, picker: &mut Picker) -> Vec<f64> {
        const PICKS: u32 = 20_000;
        let mut counts = vec![0_u32; self.weights.len()];
        for pick in picks(picker, PICKS, 0) {
            counts[self.places[pick as usize] as usize] += 1;
        }
        counts.into_iter().map(|count| f64::from(count) / f64::from(PICKS)).collect()
    }
}

impl Facts for World {
    fn locality(&self, host: HostIndex) -> u32 {
        self.places[host.0 as usize]
    }

    fn localities(&self) -> u32 {
        self.weights.len() as u32
    }

    fn locality_weight(&self, locality: u32) -> u32 {
        self.weights[locality as usize]
    }

    fn callers(&self) -> Option<&Callers> {
        self.callers.as_ref()
    }

    fn began(&self, host: HostIndex) -> u64 {
        self.began.get(host.0 as usize).copied().unwrap_or(0)
    }
}

fn picks(picker: &mut Picker, count: u32, now: u64) -> Vec<u32> {
    let mut seed = 11;
    let mut random = || spread(&mut seed);
    let wanted = Wanted { now, ..Wanted::default() };
    let pick = |_| picker.pick_for(&wanted, &mut random, &|_: HostIndex| 0, |_| false);
    (0..count).filter_map(pick).map(|pick| pick.host.0).collect()
}

const P2C: Policy = Policy::LeastRequest { choice_count: 2, active_request_bias: 1.0 };
const SCAN: Policy = Policy::LeastRequest { choice_count: u32::MAX, active_request_bias: 1.0 };
const PEAK: Policy = Policy::PeakEwma(PeakEwma {
    choice_count: 2,
    decay: Duration::from_secs(10),
    default_rtt: Duration::from_millis(30),
    failure_penalty: Duration::from_secs(1),
});
const RING: Policy = Policy::RingHash {
    function: HashFunction::XxHash,
    minimum_size: 20_000,
    maximum_size: 8 << 20,
    consistent: Consistent { use_hostname: false, balance_factor: None },
};
const TABLE: Policy =
    Policy::Maglev { table_size: 65_537, consistent: Consistent { use_hostname: false, balance_factor: None } };

fn near(shares: &[f64], expected: &[f64], slack: f64) -> bool {
    shares.iter().zip(expected).all(|(share, expected)| (share - expected).abs() <= slack)
}

#[test]
fn localities_share_by_weight_with_every_policy() {
    let world = World::of(&[(1, 0), (8, 0), (3, 0)], &[1, 1, 2]);
    for policy in [Policy::RoundRobin, P2C, SCAN, Policy::Random, RING, TABLE] {
        let shares = world.shares(&mut world.picker(policy, LocalityBalancing::Weighted));
        assert!(near(&shares, &[0.25, 0.25, 0.5], 0.02), "{policy:?}: {shares:?}");
        let flat = world.shares(&mut world.picker(policy, LocalityBalancing::Ignored));
        assert!(near(&flat, &[1.0 / 12.0, 8.0 / 12.0, 3.0 / 12.0], 0.02), "{policy:?}: {flat:?}");
    }
}

#[test]
fn a_locality_that_cannot_take_its_share_gets_less() {
    // Of the first, half of the hosts are fit, which can take 70 % of its share.
    let world = World::of(&[(2, 2), (4, 0)], &[1, 1]);
    let shares = world.shares(&mut world.picker(Policy::RoundRobin, LocalityBalancing::Weighted));
    assert!(near(&shares, &[0.7 / 1.7, 1.0 / 1.7], 0.01), "{shares:?}");
    // 80 % of them are enough for all of it.
    let world = World::of(&[(8, 2), (4, 0)], &[1, 1]);
    let shares = world.shares(&mut world.picker(Policy::RoundRobin, LocalityBalancing::Weighted));
    assert!(near(&shares, &[0.5, 0.5], 0.01), "{shares:?}");
}

#[test]
fn localities_without_weight_get_nothing_unless_none_has_any() {
    let world = World::of(&[(2, 0), (2, 0)], &[0, 3]);
    for policy in [Policy::RoundRobin, RING] {
        let shares = world.shares(&mut world.picker(policy, LocalityBalancing::Weighted));
        assert_eq!(shares, [0.0, 1.0], "{policy:?}");
    }
    let world = World::of(&[(2, 0), (2, 0)], &[0, 0]);
    let shares = world.shares(&mut world.picker(Policy::RoundRobin, LocalityBalancing::Weighted));
    assert!(near(&shares, &[0.5, 0.5], 0.01), "{shares:?}");
}

fn zone(change: impl Fn(&mut ZoneAware)) -> LocalityBalancing {
    let mut zone = ZoneAware { min_cluster_size: 1, ..ZoneAware::default() };
    change(&mut zone);
    LocalityBalancing::ZoneAware(zone)
}

#[test]
fn traffic_stays_in_its_zone_as_far_as_there_is_room() {
    let mut world = World::of(&[(2, 0), (4, 0), (4, 0)], &[0; 3]);
    let mut shares = |own, shares: [f64; 3], zone: LocalityBalancing| {
        world.callers = Some(Callers { own, shares: shares.to_vec() });
        let mut picker = world.picker(Policy::RoundRobin, zone);
        (picker.hosts().zone_routing(), world.shares(&mut picker))
    };
    // A fifth of the callers, and a fifth of the hosts.
    let (routing, all) = shares(Some(0), [0.2, 0.4, 0.4], zone(|_| ()));
    assert_eq!((routing, all), (ZoneRouting::On, vec![1.0, 0.0, 0.0]));
    // Half of the callers: two of five stay, and the others go where hosts outnumber callers.
    let (_, half) = shares(Some(0), [0.5, 0.1, 0.4], zone(|_| ()));
    assert!(near(&half, &[0.4, 0.6, 0.0], 0.02), "{half:?}");
    let (_, forced) = shares(Some(0), [0.5, 0.1, 0.4], zone(|zone| zone.force_local_zone = Some(2)));
    assert_eq!(forced, [1.0, 0.0, 0.0]);
    let (_, too_few) = shares(Some(0), [0.5, 0.1, 0.4], zone(|zone| zone.force_local_zone = Some(3)));
    assert!(near(&too_few, &half, 0.02), "{too_few:?}");
    let flat = [0.2, 0.4, 0.4];
    let (routing, small) = shares(Some(0), [0.2, 0.4, 0.4], zone(|zone| zone.min_cluster_size = 11));
    assert!(routing == ZoneRouting::ClusterTooSmall && near(&small, &flat, 0.02), "{small:?}");
    let (routing, unknown) = shares(None, [0.2, 0.4, 0.4], zone(|_| ()));
    assert!(routing == ZoneRouting::LocalClusterNotOk && near(&unknown, &flat, 0.02), "{unknown:?}");
    let some = zone(|zone| zone.routing_enabled = Percent::new(50.0).unwrap());
    let (_, mixed) = shares(Some(0), [0.2, 0.4, 0.4], some);
    assert!(near(&mixed, &[0.6, 0.2, 0.2], 0.02), "{mixed:?}");
}

#[test]
fn in_panic_traffic_can_fail_instead() {
    let mut world = World::of(&[(1, 5), (1, 5)], &[0; 2]);
    world.callers = Some(Callers { own: Some(0), shares: vec![0.5, 0.5] });
    let empty = |fail| {
        let options = BalancingOptions {
            locality: zone(|zone| zone.fail_traffic_on_panic = fail),
            ..BalancingOptions::default()
        };
        world.set(Policy::RoundRobin, &options, 50.0).is_empty()
    };
    assert_eq!((empty(true), empty(false)), (true, false));
}

fn slow_start(aggression: f64) -> BalancingOptions {
    let min_weight = Percent::new(10.0).unwrap();
    let slow_start = SlowStart { window: Duration::from_secs(10), aggression, min_weight };
    let reports = ReportOptions {
        blackout_period: Duration::ZERO,
        weight_expiration_period: Duration::from_secs(180),
        weight_update_period: Duration::from_secs(1),
        error_utilization_penalty: 1.0,
        metrics: Vec::new(),
        out_of_band: None,
    };
    BalancingOptions { slow_start: Some(slow_start), reports: Some(Arc::new(reports)), ..BalancingOptions::default() }
}

/// The share of the last host.
fn share_of_last(world: &World, policy: Policy, aggression: f64, now: u64) -> f64 {
    let mut picker = Picker::new(world.set(policy, &slow_start(aggression), 0.0), 5);
    let picks = picks(&mut picker, 20_000, now);
    let last = world.hosts.len() as u32 - 1;
    picks.iter().filter(|pick| **pick == last).count() as f64 / picks.len() as f64
}

#[test]
fn a_new_host_gets_its_share_little_by_little() {
    let mut world = World::of(&[(4, 0)], &[0]);
    world.began = vec![1, 1, 1, 100_000];
    let expected = |part: f64| part / (3.0 + part);
    for policy in [Policy::RoundRobin, Policy::Random] {
        for (after, part) in [(0, 0.1), (500, 0.1), (5_000, 0.5), (9_000, 0.9), (10_000, 1.0), (99_000, 1.0)] {
            let share = share_of_last(&world, policy, 1.0, 100_000 + after);
            assert!((share - expected(part)).abs() < 0.012, "{policy:?} after {after} ms: {share}");
        }
        let share = share_of_last(&world, policy, 2.0, 102_500);
        assert!((share - expected(0.5)).abs() < 0.012, "{policy:?}: {share}");
    }
    // Policies that compare what they draw only come near.
    for policy in [P2C, SCAN, PEAK] {
        let (early, late) = (share_of_last(&world, policy, 1.0, 100_000), share_of_last(&world, policy, 1.0, 120_000));
        assert!(early < 0.06 && (late - 0.25).abs() < 0.02, "{policy:?}: {early} {late}");
    }
    let share = share_of_last(&world, Policy::Reported, 1.0, 105_000);
    assert!((share - expected(0.5)).abs() < 0.012, "{share}");
}

#[test]
fn weights_count_during_slow_start_and_hosts_that_are_all_new_share_as_ever() {
    let mut world = World::of(&[(3, 0)], &[0]);
    world.hosts[2].weight = 6;
    world.began = vec![1, 1, 100_000];
    let share = share_of_last(&world, Policy::RoundRobin, 1.0, 105_000);
    assert!((share - 3.0 / 5.0).abs() < 0.02, "{share}");
    world.began = vec![100_000; 3];
    let share = share_of_last(&world, Policy::RoundRobin, 1.0, 100_000);
    assert!((share - 6.0 / 8.0).abs() < 0.01, "{share}");
    // Nearly new ones are measured against the oldest.
    world.began = vec![100_000, 100_000, 100_001];
    let share = share_of_last(&world, Policy::RoundRobin, 1.0, 104_000);
    assert!((share - 6.0 / 8.0).abs() < 0.01, "{share}");
}

#[test]
fn consistent_policies_follow_priorities_by_the_same_hash() {
    let mut world = World::of(&[(6, 6), (6, 0)], &[0; 2]);
    world.hosts[12..].iter_mut().for_each(|host| host.priority = 1);
    for policy in [RING, TABLE] {
        let set = world.set(policy, &BalancingOptions::default(), 0.0);
        assert!(set.wants_hash() && !set.wants_metadata() && !set.wants_time());
        let mut picker = Picker::new(set, 1);
        let mut second = 0;
        for hash in 0..10_000_u64 {
            let wanted = Wanted { hash: Some(hash), ..Wanted::default() };
            let mut pick = || picker.pick_for(&wanted, &mut || panic!("no choice"), &|_: HostIndex| 0, |_| false);
            let (first, again) = (pick().unwrap(), pick().unwrap());
            assert_eq!(first, again);
            // Of hundred hashes the last thirty spill over.
            assert_eq!(first.host.0 >= 12, hash % 100 >= 70, "{hash}");
            second += u32::from(first.host.0 >= 12);
        }
        assert_eq!(second, 3000);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_unfit_host_is_picked_without_panic(
        hosts in proptest::collection::vec((0_u32..3, 0_u32..3, 1_u32..4), 1..20),
        threshold in prop_oneof![Just(0.0), Just(50.0)],
        which in 0_usize..7,
        weighted in any::<bool>(),
    ) {
        let policy = [Policy::RoundRobin, P2C, SCAN, PEAK, Policy::Random, RING, TABLE][which];
        let health = [Health::Healthy, Health::Unhealthy, Health::Excluded];
        let mut world = World::of(&[], &[1, 2, 1]);
        for (state, place, weight) in &hosts {
            world.hosts.push(Host { weight: *weight, health: health[*state as usize], priority: 0 });
            world.places.push(*place);
        }
        let locality = if weighted { LocalityBalancing::Weighted } else { LocalityBalancing::Ignored };
        let set = world.set(policy, &BalancingOptions { locality, ..BalancingOptions::default() }, threshold);
        let panics = set.load().panics();
        let mut picker = Picker::new(set, 7);
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        for pick in picks(&mut picker, 50, 0) {
            *counts.entry(pick).or_insert(0) += 1;
        }
        for pick in counts.keys() {
            let health = world.hosts[*pick as usize].health;
            prop_assert!(health == Health::Healthy || panics && health == Health::Unhealthy, "{health:?}");
        }
        let any = world.hosts.iter().any(|host| host.health == Health::Healthy);
        prop_assert!(!any || !counts.is_empty());
    }
}
