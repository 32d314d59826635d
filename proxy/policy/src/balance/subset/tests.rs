use std::cell::Cell;

use outrigger_config::cluster::{BalancingOptions, Consistent};
use outrigger_config::units::Percent;
use proptest::prelude::*;

use super::super::hosts::{BalanceOptions, Facts, Health, Host, HostSet, Policy};
use super::super::picker::{Pick, Picker, Wanted};
use super::super::spread;
use super::*;

const NONE: [u32; 0] = [];

/// Hosts with metadata, and a locality for each priority or as given.
#[derive(Default)]
struct World {
    hosts: Vec<Host>,
    metadata: Vec<LbMetadata>,
    localities: Vec<u32>,
    weights: Vec<u32>,
}

impl World {
    fn of(metadata: &[&[(&str, &str)]]) -> Self {
        Self {
            hosts: metadata.iter().map(|_| host(Health::Healthy)).collect(),
            metadata: metadata.iter().map(|pairs| self::metadata(pairs)).collect(),
            ..Self::default()
        }
    }
}

impl Facts for World {
    fn locality(&self, host: HostIndex) -> u32 {
        self.localities.get(host.0 as usize).copied().unwrap_or(0)
    }

    fn localities(&self) -> u32 {
        self.weights.len().max(1) as u32
    }

    fn locality_weight(&self, locality: u32) -> u32 {
        self.weights.get(locality as usize).copied().unwrap_or(0)
    }

    fn metadata(&self, host: HostIndex) -> Option<&LbMetadata> {
        self.metadata.get(host.0 as usize)
    }
}

fn host(health: Health) -> Host {
    Host { weight: 1, health, priority: 0 }
}

fn text(value: &str) -> LbValue {
    LbValue::String(value.into())
}

fn metadata(pairs: &[(&str, &str)]) -> LbMetadata {
    LbMetadata::new(pairs.iter().map(|(key, value)| ((*key).into(), text(value))))
}

fn selector(keys: &[&str], fallback: Option<SelectorFallback>) -> SubsetSelector {
    SubsetSelector { keys: keys.iter().map(|key| (*key).into()).collect(), single_host: false, fallback }
}

fn options(selectors: Vec<SubsetSelector>) -> SubsetOptions {
    SubsetOptions {
        selectors,
        fallback: Fallback::None,
        default_subset: LbMetadata::default(),
        locality_weight_aware: false,
        scale_locality_weight: false,
        panic_mode_any: false,
        list_as_any: false,
        fallback_list: false,
        allow_redundant_keys: false,
    }
}

fn picker_of(world: &World, subsets: SubsetOptions, locality: LocalityBalancing, policy: Policy) -> Picker {
    let panic_threshold = Percent::new(50.0).unwrap();
    let options = BalancingOptions { subsets: Some(Arc::new(subsets)), locality, ..BalancingOptions::default() };
    let balance =
        BalanceOptions { policy, overprovisioning_factor: 140, panic_threshold, weighted_priority_health: false };
    let inputs = Inputs { hosts: &world.hosts, balance, options: &options, facts: world };
    Picker::new(Arc::new(HostSet::build_with(&inputs)), 1)
}

fn picker(world: &World, subsets: SubsetOptions) -> Picker {
    picker_of(world, subsets, LocalityBalancing::Ignored, Policy::RoundRobin)
}

fn pick(picker: &mut Picker, wanted: Option<&LbMetadata>) -> Option<Pick> {
    let seed = Cell::new(9);
    let mut random = || {
        let mut state = seed.get();
        let number = spread(&mut state);
        seed.set(state);
        number
    };
    let wanted = Wanted { metadata: wanted, ..Wanted::default() };
    picker.pick_for(&wanted, &mut random, &|_: HostIndex| 0, |_| false)
}

/// The hosts that many picks lead to, in order, and how they were found.
fn reach(picker: &mut Picker, wanted: Option<&LbMetadata>) -> (Vec<u32>, Option<Via>) {
    let picks: Vec<Pick> = (0..40).filter_map(|_| pick(picker, wanted)).collect();
    let mut hosts: Vec<u32> = picks.iter().map(|pick| pick.host.0).collect();
    hosts.sort_unstable();
    hosts.dedup();
    (hosts, picks.first().map(|pick| pick.via))
}

fn stages() -> World {
    World::of(&[
        &[("stage", "prod"), ("version", "1")],
        &[("stage", "prod"), ("version", "2")],
        &[("stage", "dev"), ("version", "2")],
        &[],
    ])
}

#[test]
fn keys_and_values_must_be_those_of_a_subset() {
    let mut picker =
        picker(&stages(), options(vec![selector(&["stage", "version"], None), selector(&["stage"], None)]));
    assert_eq!(picker.hosts().subset_counts(), (5, 0));
    let mut reach = |pairs: &[(&str, &str)]| reach(&mut picker, Some(&metadata(pairs))).0;
    assert_eq!(reach(&[("version", "2"), ("stage", "prod")]), [1]);
    assert_eq!(reach(&[("stage", "prod")]), [0, 1]);
    assert_eq!(reach(&[("stage", "test")]), NONE);
    assert_eq!(reach(&[("version", "2")]), NONE);
    assert_eq!(reach(&[("stage", "prod"), ("more", "1")]), NONE);
    assert_eq!(reach(&[]), NONE);
}

#[test]
fn requests_without_a_subset_fall_back() {
    let world = stages();
    let other = metadata(&[("stage", "test")]);
    let plain = || options(vec![selector(&["stage"], None)]);
    let mut any = picker(&world, SubsetOptions { fallback: Fallback::Any, ..plain() });
    assert_eq!(reach(&mut any, None), (vec![0, 1, 2, 3], Some(Via::Fallback)));
    assert_eq!(reach(&mut any, Some(&other)), (vec![0, 1, 2, 3], Some(Via::Fallback)));
    assert_eq!(reach(&mut any, Some(&metadata(&[("stage", "dev")]))), (vec![2], Some(Via::Subset)));
    let default = |version: &str, panic_mode_any| SubsetOptions {
        fallback: Fallback::Default,
        default_subset: metadata(&[("version", version)]),
        panic_mode_any,
        ..plain()
    };
    assert_eq!(reach(&mut picker(&world, default("2", false)), Some(&other)), (vec![1, 2], Some(Via::Fallback)));
    assert_eq!(reach(&mut picker(&world, default("9", false)), Some(&other)), (vec![], None));
    assert_eq!(reach(&mut picker(&world, default("9", true)), Some(&other)), (vec![0, 1, 2, 3], Some(Via::Panic)));
}

#[test]
fn selectors_fall_back_in_their_own_way() {
    let world = stages();
    let wanted = metadata(&[("stage", "prod"), ("version", "9")]);
    let with = |fallback| {
        let first = selector(&["stage", "version"], Some(fallback));
        let selectors = vec![first, selector(&["stage"], None)];
        SubsetOptions { fallback: Fallback::Any, default_subset: metadata(&[("stage", "dev")]), ..options(selectors) }
    };
    let of = |fallback| reach(&mut picker(&world, with(fallback)), Some(&wanted)).0;
    assert_eq!(of(SelectorFallback::Of(Fallback::None)), NONE);
    assert_eq!(of(SelectorFallback::Of(Fallback::Any)), [0, 1, 2, 3]);
    assert_eq!(of(SelectorFallback::Of(Fallback::Default)), [2]);
    assert_eq!(of(SelectorFallback::Keys(vec!["stage".into()])), [0, 1]);
    // There are no subsets by version alone: as for requests without a selector.
    assert_eq!(of(SelectorFallback::Keys(vec!["version".into()])), [0, 1, 2, 3]);
}

#[test]
fn redundant_keys_are_passed_over_if_allowed() {
    let selectors =
        vec![selector(&["stage"], None), selector(&["stage", "version"], None), selector(&["version"], None)];
    let mut picker = picker(&stages(), SubsetOptions { allow_redundant_keys: true, ..options(selectors) });
    let mut reach = |pairs: &[(&str, &str)]| reach(&mut picker, Some(&metadata(pairs))).0;
    assert_eq!(reach(&[("stage", "prod"), ("version", "2"), ("x", "y")]), [1]);
    assert_eq!(reach(&[("stage", "prod"), ("x", "y")]), [0, 1]);
    assert_eq!(reach(&[("x", "y")]), NONE);
}

#[test]
fn items_of_lists_stand_for_themselves_if_wanted() {
    let list = LbValue::List(Box::new([text("1"), text("2")]));
    let mut world = World::of(&[&[], &[("version", "2")]]);
    world.metadata[0] = LbMetadata::new([("version".into(), list.clone())]);
    let selectors = || options(vec![selector(&["version"], None)]);
    let two = metadata(&[("version", "2")]);
    assert_eq!(reach(&mut picker(&world, selectors()), Some(&two)).0, [1]);
    let whole = LbMetadata::new([("version".into(), list)]);
    assert_eq!(reach(&mut picker(&world, selectors()), Some(&whole)).0, [0]);
    let any = SubsetOptions { list_as_any: true, ..selectors() };
    assert_eq!(reach(&mut picker(&world, any), Some(&two)).0, [0, 1]);
}

#[test]
fn one_host_has_a_subset_for_itself() {
    let world = World::of(&[&[("id", "a")], &[("id", "b")], &[("id", "a")]]);
    let single = SubsetSelector { single_host: true, ..selector(&["id"], None) };
    let mut picker = picker(&world, options(vec![single]));
    assert_eq!(picker.hosts().subset_counts(), (2, 1));
    assert_eq!(reach(&mut picker, Some(&metadata(&[("id", "a")]))).0, [0]);
}

#[test]
fn other_values_are_tried_in_their_order() {
    let alternative = |pairs: &[(&str, &str)]| LbValue::Struct(metadata(pairs));
    let wanted = |list: Vec<LbValue>| {
        let list = (Arc::from("fallback_list"), LbValue::List(list.into()));
        LbMetadata::new([(Arc::from("stage"), text("prod")), list])
    };
    let selectors = vec![selector(&["stage", "version"], None), selector(&["stage"], None)];
    let mut picker = picker(&stages(), SubsetOptions { fallback_list: true, ..options(selectors) });
    let list = vec![alternative(&[("version", "9")]), alternative(&[("stage", "dev")])];
    assert_eq!(reach(&mut picker, Some(&wanted(list))).0, [2]);
    assert_eq!(reach(&mut picker, Some(&wanted(vec![alternative(&[("version", "9")])]))).0, NONE);
    assert_eq!(reach(&mut picker, Some(&metadata(&[("stage", "prod")]))).0, [0, 1]);
}

#[test]
fn a_subset_panics_by_itself() {
    let mut world = stages();
    world.hosts[2].health = Health::Unhealthy;
    let mut picker = picker(&world, options(vec![selector(&["stage"], None)]));
    let pick = pick(&mut picker, Some(&metadata(&[("stage", "dev")]))).unwrap();
    assert!(pick.panic && pick.host == HostIndex(2));
    assert!(!self::pick(&mut picker, Some(&metadata(&[("stage", "prod")]))).unwrap().panic);
}

#[test]
fn localities_keep_their_weights_in_subsets_if_wanted() {
    // Two localities of equal weight; one has one host of the subset, the other has three of three.
    let mut world =
        World::of(&[&[("v", "1")], &[("v", "0")], &[("v", "0")], &[("v", "1")], &[("v", "1")], &[("v", "1")]]);
    world.localities = vec![0, 0, 0, 1, 1, 1];
    world.weights = vec![1, 1];
    let share = |aware, scaled| {
        let subsets = SubsetOptions {
            locality_weight_aware: aware,
            scale_locality_weight: scaled,
            ..options(vec![selector(&["v"], None)])
        };
        let mut picker = picker_of(&world, subsets, LocalityBalancing::Weighted, Policy::RoundRobin);
        let wanted = metadata(&[("v", "1")]);
        (0..1200).filter(|_| pick(&mut picker, Some(&wanted)).unwrap().host.0 == 0).count()
    };
    assert!(share(false, false).abs_diff(300) < 5);
    assert!(share(true, false).abs_diff(600) < 5);
    assert!(share(true, true).abs_diff(300) < 5);
}

proptest! {
    #[test]
    fn a_pick_has_the_values_that_were_wanted(
        values in proptest::collection::vec((0_u8..4, 0_u8..3), 1..40),
        wanted in (0_u8..5, 0_u8..4),
        by_hash in any::<bool>(),
    ) {
        let of = |(a, b): (u8, u8)| metadata(&[("a", &a.to_string()), ("b", &b.to_string())]);
        let world = World {
            hosts: values.iter().map(|_| host(Health::Healthy)).collect(),
            metadata: values.iter().copied().map(of).collect(),
            ..World::default()
        };
        let policy = if by_hash {
            Policy::Maglev { table_size: 251, consistent: Consistent::default() }
        } else {
            Policy::RoundRobin
        };
        let subsets = options(vec![selector(&["a", "b"], None)]);
        let mut picker = picker_of(&world, subsets, LocalityBalancing::Ignored, policy);
        let picked = pick(&mut picker, Some(&of(wanted)));
        prop_assert_eq!(picked.is_some(), values.contains(&wanted));
        if let Some(pick) = picked {
            prop_assert_eq!(values[pick.host.0 as usize], wanted);
        }
    }
}
