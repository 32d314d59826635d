//! The rules of active checks, one by one, and what holds whatever happens.

use std::time::Duration;

use outrigger_config::cluster::CheckIntervals;
use proptest::prelude::*;

use super::*;

const THRESHOLDS: CheckThresholds = CheckThresholds { unhealthy: 3, healthy: 2 };
const SUCCESS: CheckResult = CheckResult::Success { degraded: false };
const REFUSED: CheckResult = CheckResult::Failure { kind: FailureKind::Network, retriable: false };
const WRONG: CheckResult = CheckResult::Failure { kind: FailureKind::Active, retriable: false };
const RETRIABLE: CheckResult = CheckResult::Failure { kind: FailureKind::Active, retriable: true };

fn after(healthy: bool, results: &[CheckResult]) -> (CheckedHost, Vec<Transition>) {
    let mut host = CheckedHost::new(healthy);
    let transitions = results.iter().map(|result| host.record(*result, THRESHOLDS).transition).collect();
    (host, transitions)
}

use Transition::{Changed, Pending, Unchanged};

#[test]
fn the_first_success_is_enough() {
    let (host, transitions) = after(false, &[SUCCESS]);
    assert_eq!((host.is_healthy(), host.is_unchecked(), transitions), (true, false, vec![Changed]));
}

#[test]
fn the_first_failure_is_enough_for_one_that_was_believed_to_be_well() {
    let mut host = CheckedHost::new(true);
    let verdict = host.record(REFUSED, THRESHOLDS);
    let expected = Verdict { success: false, transition: Changed, first: true, turned: true, degraded: None };
    assert_eq!((verdict, host.is_healthy()), (expected, false));
    let (host, transitions) = after(false, &[REFUSED]);
    assert_eq!((host.is_healthy(), transitions), (false, vec![Unchanged]));
}

#[test]
fn a_result_that_says_nothing_leaves_all_as_it_is() {
    let nothing = CheckResult::Nothing { reached: true };
    let (host, transitions) = after(true, &[nothing, REFUSED, nothing, REFUSED, REFUSED]);
    assert_eq!(transitions, [Unchanged, Pending, Unchanged, Pending, Changed]);
    assert!(!host.is_healthy() && !host.is_unchecked());
}

#[test]
fn later_results_have_to_come_in_a_row() {
    let (host, transitions) = after(false, &[REFUSED, SUCCESS, REFUSED, SUCCESS, SUCCESS]);
    assert_eq!(transitions, [Unchanged, Pending, Unchanged, Pending, Changed]);
    assert!(host.is_healthy());
    let (host, transitions) = after(false, &[SUCCESS, REFUSED, REFUSED, SUCCESS, REFUSED, REFUSED, REFUSED]);
    assert_eq!(transitions, [Changed, Pending, Pending, Unchanged, Pending, Pending, Changed]);
    assert!(!host.is_healthy());
}

#[test]
fn a_wrong_answer_counts_at_once_unless_it_is_retriable() {
    let (host, transitions) = after(false, &[SUCCESS, WRONG]);
    assert_eq!((host.is_healthy(), transitions[1]), (false, Changed));
    let (host, transitions) = after(false, &[SUCCESS, RETRIABLE, RETRIABLE]);
    assert_eq!((host.is_healthy(), transitions[2]), (true, Pending));
    let passive = CheckResult::Failure { kind: FailureKind::Passive, retriable: false };
    assert!(!after(false, &[SUCCESS, passive]).0.is_healthy());
    let timeout = CheckResult::Failure { kind: FailureKind::NetworkTimeout, retriable: false };
    assert!(after(false, &[SUCCESS, timeout]).0.is_healthy());
}

#[test]
fn degraded_is_told_when_it_changes() {
    let degraded = CheckResult::Success { degraded: true };
    let mut host = CheckedHost::new(false);
    let first = host.record(degraded, THRESHOLDS);
    assert_eq!((first.degraded, first.transition, first.turned), (Some(true), Changed, true));
    let second = host.record(degraded, THRESHOLDS);
    assert_eq!((second.degraded, second.transition), (None, Unchanged));
    let third = host.record(SUCCESS, THRESHOLDS);
    assert_eq!((third.degraded, third.transition, third.turned), (Some(false), Changed, false));
    // Degraded while it is still unhealthy: more successes are needed all the same.
    host.record(WRONG, THRESHOLDS);
    let pending = host.record(degraded, THRESHOLDS);
    assert_eq!((pending.degraded, pending.transition), (Some(true), Pending));
}

const INTERVALS: CheckIntervals = CheckIntervals {
    healthy: Duration::from_secs(1),
    healthy_edge: Duration::from_secs(2),
    unhealthy: Duration::from_secs(3),
    unhealthy_edge: Duration::from_secs(4),
    no_traffic: Duration::from_secs(60),
    no_traffic_healthy: Duration::from_secs(70),
    initial_jitter: Duration::ZERO,
    jitter: Duration::ZERO,
    jitter_percent: 0,
};

fn verdict(success: bool, transition: Transition) -> Verdict {
    Verdict { success, transition, first: false, turned: false, degraded: None }
}

#[test]
fn the_interval_depends_on_result_state_and_traffic() {
    let seconds = |success, transition, used| {
        let verdict = verdict(success, transition);
        interval(&INTERVALS, &verdict, used, IntervalLimits::default(), &mut || 0).as_secs()
    };
    assert_eq!([seconds(true, Unchanged, true), seconds(true, Changed, true), seconds(true, Pending, true)], [1, 1, 2]);
    assert_eq!(
        [seconds(false, Unchanged, true), seconds(false, Changed, true), seconds(false, Pending, true)],
        [3, 3, 4]
    );
    assert_eq!([seconds(true, Changed, false), seconds(true, Pending, false)], [70, 60]);
    assert_eq!([seconds(false, Unchanged, false), seconds(false, Pending, false)], [60, 60]);
}

#[test]
fn jitter_is_added_and_runtime_limits_all() {
    let jittered = CheckIntervals { jitter: Duration::from_millis(100), jitter_percent: 50, ..INTERVALS };
    let wait = |limits, random: u64| interval(&jittered, &verdict(true, Unchanged), true, limits, &mut || random);
    let free = IntervalLimits::default();
    assert_eq!([wait(free, 0), wait(free, 499), wait(free, 99)].map(|wait| wait.as_millis()), [1_000, 1_598, 1_198]);
    let limits = IntervalLimits { min: Duration::from_secs(5), max: Duration::from_secs(9) };
    assert_eq!(wait(limits, 0), Duration::from_secs(5));
    let limits = IntervalLimits { min: Duration::ZERO, max: Duration::from_millis(10) };
    assert_eq!(wait(limits, 0), Duration::from_millis(10));
    let none = IntervalLimits { min: Duration::ZERO, max: Duration::ZERO };
    assert_eq!(wait(none, 0), Duration::from_millis(1));
}

#[test]
fn the_first_check_is_at_once_or_within_its_jitter() {
    assert_eq!(initial_wait(&INTERVALS, IntervalLimits::default(), &mut || 7), Duration::ZERO);
    let spread = CheckIntervals { initial_jitter: Duration::from_millis(100), ..INTERVALS };
    assert_eq!(initial_wait(&spread, IntervalLimits::default(), &mut || 142), Duration::from_millis(42));
}

#[test]
fn parts_of_an_answer_are_found_in_order() {
    let wanted = |parts: &[&str]| parts.iter().map(|part| part.as_bytes().to_vec()).collect::<Vec<_>>();
    assert!(contains_in_order(&wanted(&["ab", "cd"]), b"xabycdz"));
    assert!(contains_in_order(&wanted(&[]), b""));
    assert!(contains_in_order(&wanted(&["", "a"]), b"a"));
    assert!(!contains_in_order(&wanted(&["cd", "ab"]), b"xabycdz"));
    assert!(!contains_in_order(&wanted(&["aba", "ab"]), b"abab"));
    assert!(!contains_in_order(&wanted(&["longer"]), b"long"));
}

fn result() -> impl Strategy<Value = CheckResult> {
    prop_oneof![
        any::<bool>().prop_map(|degraded| CheckResult::Success { degraded }),
        Just(REFUSED),
        Just(WRONG),
        Just(RETRIABLE),
    ]
}

proptest! {
    #[test]
    fn health_turns_only_with_a_reason(results in proptest::collection::vec(result(), 1..60), unhealthy in 1..5u32, healthy in 1..5u32) {
        let thresholds = CheckThresholds { unhealthy, healthy };
        let mut host = CheckedHost::new(false);
        let mut row = 0;
        for (index, result) in results.into_iter().enumerate() {
            let before = host.is_healthy();
            let verdict = host.record(result, thresholds);
            let success = matches!(result, CheckResult::Success { .. });
            row = if success == before { 0 } else { row + 1 };
            let needed = if before { unhealthy } else { healthy };
            let turns = row > 0 && (index == 0 || result == WRONG || row >= needed);
            prop_assert_eq!(host.is_healthy() != before, turns);
            prop_assert_eq!(verdict.turned, turns);
            prop_assert_eq!(verdict.first, index == 0);
            if turns {
                row = 0;
            }
        }
    }

    #[test]
    fn intervals_stay_within_base_and_jitter(random: u64, percent in 0..200u32, jitter in 0..5_000u64) {
        let intervals =
            CheckIntervals { jitter: Duration::from_millis(jitter), jitter_percent: percent, ..INTERVALS };
        let verdict = verdict(false, Unchanged);
        let wait = interval(&intervals, &verdict, true, IntervalLimits::default(), &mut || random);
        let most = Duration::from_secs(3) + Duration::from_millis(30 * u64::from(percent) + jitter);
        prop_assert!(wait >= Duration::from_secs(3) && wait <= most, "{wait:?}");
    }
}
