use std::collections::HashMap;

use proptest::prelude::*;

use super::super::spread;
use super::*;

const RING: Method = Method::Ring { function: HashFunction::XxHash, minimum_size: 1024, maximum_size: 8 << 20 };
const TABLE: Method = Method::Table { size: 65_537 };

/// Entries for these weights, named by their number.
fn entries(weights: &[u32]) -> Vec<Entry> {
    let total: u32 = weights.iter().sum();
    let entry = |(number, weight): (usize, &u32)| Entry {
        key: format!("10.0.{}.{}:80", number / 250, number % 250),
        share: f64::from(*weight) / f64::from(total),
    };
    weights.iter().enumerate().map(entry).collect()
}

/// How many of the hashes go to each position.
fn counts(placement: &Placement, count: usize, picks: u32) -> Vec<u32> {
    let mut counts = vec![0; count];
    let mut seed = 1;
    for _ in 0..picks {
        counts[placement.find(spread(&mut seed), |_| true).unwrap() as usize] += 1;
    }
    counts
}

#[test]
fn an_empty_placement_has_nobody() {
    for method in [RING, TABLE] {
        let placement = Placement::build(method, &[], Some(150));
        assert_eq!(placement.find(7, |_| true), None);
        assert_eq!(placement.stats().max_per_host, 0);
    }
}

#[test]
fn equal_shares_get_equal_places() {
    let ring = Placement::build(RING, &entries(&[1; 3]), None);
    assert_eq!(ring.stats(), PlacementStats { size: 1026, min_per_host: 342, max_per_host: 342 });
    let limited = Method::Ring { function: HashFunction::MurmurHash2, minimum_size: 1, maximum_size: 2 };
    assert_eq!(Placement::build(limited, &entries(&[1; 3]), None).stats().size, 2);
    let table = Placement::build(TABLE, &entries(&[1; 3]), None);
    assert_eq!(table.stats(), PlacementStats { size: 65_537, min_per_host: 21_845, max_per_host: 21_846 });
}

#[test]
fn tables_of_all_sizes_hold_positions() {
    for count in [1, 256, 257, 300] {
        let table = Placement::build(Method::Table { size: 1009 }, &entries(&vec![1; count]), None);
        let counts = counts(&table, count, 20_000);
        assert!(counts.iter().all(|hits| *hits > 0), "{count}: {counts:?}");
    }
    // More endpoints than places: the last ones have none.
    let small = Placement::build(Method::Table { size: 2 }, &entries(&[1; 5]), None);
    assert_eq!(small.stats(), PlacementStats { size: 2, min_per_host: 0, max_per_host: 1 });
}

#[test]
fn a_place_that_is_not_allowed_leads_to_the_same_other_one() {
    for method in [RING, TABLE] {
        let placement = Placement::build(method, &entries(&[1; 4]), None);
        for hash in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
            let first = placement.find(hash, |_| true).unwrap();
            let second = placement.find(hash, |position| position != first).unwrap();
            assert_ne!(first, second);
            assert_eq!(placement.find(hash, |position| position != first), Some(second));
        }
    }
}

#[test]
fn no_endpoint_gets_far_more_than_its_share() {
    for method in [RING, TABLE] {
        let weights = [1, 1, 2, 4];
        let placement = Placement::build(method, &entries(&weights), Some(125));
        let bound = placement.bound().unwrap();
        let mut active = [0_u32; 4];
        // All requests have the same hash: without a bound one endpoint would get them all.
        for total in 0..800 {
            let wanted = placement.find(42, |_| true).unwrap();
            let got = bound.relieve(wanted, 42, total, |position| active[position as usize], |_| true);
            active[got as usize] += 1;
        }
        for (active, weight) in active.iter().zip(weights) {
            assert!(f64::from(*active) <= 800.0 * 1.25 * f64::from(weight) / 8.0 + 2.0, "{active} {weight}");
        }
    }
}

#[test]
fn an_overloaded_endpoint_is_kept_if_the_others_are_worse_or_not_allowed() {
    let placement = Placement::build(TABLE, &entries(&[1; 3]), Some(100));
    let bound = placement.bound().unwrap();
    let active = [5, 50, 9];
    let relieve = |wanted, allowed: [bool; 3]| {
        bound.relieve(wanted, 3, 3, |position| active[position as usize], |position| allowed[position as usize])
    };
    assert_eq!(relieve(1, [true; 3]), 0);
    assert_eq!(relieve(1, [false, true, true]), 2);
    assert_eq!(relieve(1, [false, true, false]), 1);
    assert_eq!(relieve(0, [true; 3]), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn shares_follow_the_weights(weights in proptest::collection::vec(1_u32..6, 1..12)) {
        let total: u32 = weights.iter().sum();
        // A ring of many places, since their distances vary.
        let large = Method::Ring { function: HashFunction::XxHash, minimum_size: 60_000, maximum_size: 1 << 20 };
        for (method, slack) in [(large, 0.12), (TABLE, 0.08)] {
            let placement = Placement::build(method, &entries(&weights), None);
            let counts = counts(&placement, weights.len(), 40_000);
            for (count, weight) in counts.iter().zip(&weights) {
                let expected = 40_000.0 * f64::from(*weight) / f64::from(total);
                prop_assert!((f64::from(*count) - expected).abs() <= expected * slack + 60.0, "{count} {expected}");
            }
        }
    }

    #[test]
    fn removing_one_of_n_moves_about_one_nth(count in 3_usize..20, gone in any::<prop::sample::Index>()) {
        let all = entries(&vec![1; count]);
        let gone = gone.index(count);
        let mut fewer = all.clone();
        fewer.remove(gone);
        for entry in &mut fewer {
            entry.share = 1.0 / (count - 1) as f64;
        }
        for method in [RING, TABLE] {
            let (before, after) = (Placement::build(method, &all, None), Placement::build(method, &fewer, None));
            let names: HashMap<&str, usize> = all.iter().map(|entry| entry.key.as_str()).zip(0..).collect();
            let mut moved = 0;
            let mut seed = 5;
            for _ in 0..4000 {
                let hash = spread(&mut seed);
                let old = before.find(hash, |_| true).unwrap() as usize;
                let new = names[fewer[after.find(hash, |_| true).unwrap() as usize].key.as_str()];
                moved += u32::from(old != gone && old != new);
            }
            // A ring's places may become a few more for each endpoint; a table's wishes meet in another order.
            prop_assert!(f64::from(moved) <= 4000.0 * 0.18, "{moved} of {count}");
        }
    }
}
