//! The rules of outlier detection, one by one, and what holds whatever happens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::cluster::{Consecutive, Ejection, FailurePercentage, OutlierDetection, SuccessRate};
use proptest::prelude::*;

use super::*;

fn settings() -> OutlierDetection {
    OutlierDetection {
        interval: Duration::from_secs(10),
        ejection: Ejection {
            base_time: Duration::from_secs(30),
            max_time: Duration::from_secs(90),
            max_jitter: Duration::ZERO,
            max_percent: 50,
            always_one: false,
        },
        consecutive_5xx: Consecutive { threshold: 5, enforcing: 100 },
        consecutive_gateway_failure: Consecutive { threshold: 3, enforcing: 100 },
        consecutive_local_origin_failure: Consecutive { threshold: 2, enforcing: 100 },
        split_external_local_origin_errors: false,
        success_rate: SuccessRate {
            enforcing: 100,
            enforcing_local_origin: 100,
            minimum_hosts: 5,
            request_volume: 100,
            stdev_factor: 1900,
        },
        failure_percentage: FailurePercentage {
            threshold: 85,
            enforcing: 0,
            enforcing_local_origin: 0,
            minimum_hosts: 5,
            request_volume: 50,
        },
        successful_active_health_check_uneject_host: true,
        detect_degraded_hosts: true,
        probation_requests: 0,
    }
}

fn detector(settings: OutlierDetection, hosts: u32) -> Detector<u32> {
    let mut detector = Detector::new(settings);
    detector.follow(hosts as usize, |_| true);
    detector
}

const NO_REQUESTS: &[(u32, Windows)] = &[];

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

mod counts {
    use super::*;

    fn findings(found: Findings) -> Vec<Outlier> {
        found.collect()
    }

    #[test]
    fn a_number_of_5xx_in_a_row_is_found_once_and_success_starts_anew() {
        let (limits, host) = (Limits::new(&settings()), HostMonitor::default());
        for _ in 0..4 {
            assert_eq!(findings(host.response(&limits, 500)), []);
        }
        assert_eq!(findings(host.response(&limits, 200)), []);
        for status in [500, 501, 599, 500] {
            assert_eq!(findings(host.response(&limits, status)), []);
        }
        assert_eq!(findings(host.response(&limits, 500)), [Outlier::Consecutive5xx]);
        assert_eq!(findings(host.response(&limits, 500)), []);
        host.found(Outlier::Consecutive5xx);
        let again: usize = (0..5).map(|_| host.response(&limits, 500).count()).sum();
        assert_eq!(again, 1);
    }

    #[test]
    fn gateway_failures_are_502_to_504_and_count_as_5xx_too() {
        let (limits, host) = (Limits::new(&settings()), HostMonitor::default());
        let results: Vec<_> = [502, 503, 504, 503, 504].map(|status| findings(host.response(&limits, status))).into();
        assert_eq!(results[2], [Outlier::ConsecutiveGatewayFailure]);
        assert_eq!(results[4], [Outlier::Consecutive5xx]);
        host.forgive();
        // Another 5xx is not a gateway failure, and breaks their row.
        for status in [502, 503, 500, 502, 503] {
            assert!(!findings(host.response(&limits, status)).contains(&Outlier::ConsecutiveGatewayFailure));
        }
    }

    #[test]
    fn a_threshold_of_zero_finds_nothing() {
        let mut off = settings();
        off.consecutive_5xx.threshold = 0;
        off.consecutive_gateway_failure.threshold = 0;
        let (limits, host) = (Limits::new(&off), HostMonitor::default());
        assert!((0..100).all(|_| host.response(&limits, 503).count() == 0));
    }

    #[test]
    fn without_the_split_failures_before_a_response_count_as_gateway_errors() {
        let (limits, host) = (Limits::new(&settings()), HostMonitor::default());
        assert_eq!(findings(host.unreachable(&limits)), []);
        // Reaching the host says nothing of the request.
        host.reached(&limits);
        assert_eq!(findings(host.timed_out(&limits)), []);
        assert_eq!(findings(host.unreachable(&limits)), [Outlier::ConsecutiveGatewayFailure]);
        // A connection that is all there is to tell is a success.
        host.connected(&limits);
        let again: Vec<_> = (0..3).flat_map(|_| host.timed_out(&limits)).collect();
        assert_eq!(again, [Outlier::ConsecutiveGatewayFailure], "the row had begun anew");
    }

    #[test]
    fn with_the_split_they_are_counted_apart() {
        let mut split = settings();
        split.split_external_local_origin_errors = true;
        let (limits, host) = (Limits::new(&split), HostMonitor::default());
        limits.set_measures(true);
        assert_eq!(findings(host.unreachable(&limits)), []);
        assert_eq!(findings(host.response(&limits, 500)), []);
        assert_eq!(findings(host.timed_out(&limits)), [Outlier::ConsecutiveLocalOriginFailure]);
        host.found(Outlier::ConsecutiveLocalOriginFailure);
        assert_eq!(findings(host.unreachable(&limits)), []);
        host.reached(&limits);
        assert_eq!(findings(host.unreachable(&limits)), []);
        assert_eq!(host.take(), Windows { external: (1, 1), local: (5, 4) });
        assert_eq!(host.take(), Windows::default());
    }

    #[test]
    fn statistics_are_kept_only_where_somebody_looks_at_them() {
        let (limits, host) = (Limits::new(&settings()), HostMonitor::default());
        let _ = host.response(&limits, 200);
        assert_eq!(host.take(), Windows::default());
        limits.set_measures(true);
        for status in [200, 404, 500] {
            let _ = host.response(&limits, status);
        }
        assert_eq!(host.take().external, (3, 1));
    }

    #[test]
    fn a_row_is_found_exactly_once_across_threads() {
        let mut many = settings();
        many.consecutive_5xx.threshold = 40_000;
        many.consecutive_gateway_failure.threshold = 0;
        let (limits, host) = (Limits::new(&many), HostMonitor::default());
        limits.set_measures(true);
        let found: usize = std::thread::scope(|scope| {
            let work = || (0..10_000).map(|_| host.response(&limits, 500).count()).sum::<usize>();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((found, host.take().external), (1, (80_000, 80_000)));
    }

    #[test]
    fn one_failure_ends_a_probation_and_enough_successes_do() {
        let (limits, host) = (Limits::new(&settings()), HostMonitor::default());
        assert!(!host.passes_probation());
        host.begin_probation(3);
        assert!(!host.passes_probation() && !host.passes_probation() && host.passes_probation());
        assert!(!host.passes_probation());
        assert_eq!(findings(host.response(&limits, 500)), []);
        host.begin_probation(3);
        assert_eq!(findings(host.response(&limits, 404)), []);
        assert_eq!(findings(host.response(&limits, 500)), [Outlier::Consecutive5xx]);
        // It is over with that, whatever comes of it.
        assert_eq!(findings(host.response(&limits, 500)), []);
        let split = OutlierDetection { split_external_local_origin_errors: true, ..settings() };
        limits.set(&split);
        host.begin_probation(1);
        assert_eq!(findings(host.unreachable(&limits)), [Outlier::ConsecutiveLocalOriginFailure]);
    }
}

#[test]
fn an_ejection_grows_with_each_and_shrinks_with_quiet_intervals() {
    let mut detector = detector(settings(), 4);
    let start = Instant::now();
    let mut now = start;
    let mut random = || 0;
    let mut lengths = Vec::new();
    for _ in 0..5 {
        let event = detector.found(2, Outlier::Consecutive5xx, now, &mut random).unwrap();
        assert!(matches!(event.kind, EventKind::Ejected { enforced: true, .. }));
        let ejected_at = now;
        while detector.is_ejected(2) {
            now += seconds(10);
            detector.sweep(now, NO_REQUESTS, &mut random);
        }
        lengths.push((now - ejected_at).as_secs());
    }
    assert_eq!(lengths, [30, 60, 90, 90, 90]);
    // Four intervals of peace take back what four ejections brought, the last of which did not count.
    for _ in 0..4 {
        now += seconds(10);
        detector.sweep(now, NO_REQUESTS, &mut random);
    }
    detector.found(2, Outlier::Consecutive5xx, now, &mut random);
    let ejected_at = now;
    while detector.is_ejected(2) {
        now += seconds(10);
        detector.sweep(now, NO_REQUESTS, &mut random);
    }
    assert_eq!(now - ejected_at, seconds(30));
}

#[test]
fn jitter_makes_an_ejection_longer() {
    let mut with_jitter = settings();
    with_jitter.ejection.max_jitter = Duration::from_millis(2_000);
    let mut detector = detector(with_jitter, 4);
    let now = Instant::now();
    let mut numbers = [0, 1_500].into_iter();
    detector.found(0, Outlier::Consecutive5xx, now, &mut || numbers.next().unwrap()).unwrap();
    let mut random = || 0;
    assert!(detector.sweep(now + seconds(30), NO_REQUESTS, &mut random).is_empty());
    assert!(detector.sweep(now + Duration::from_millis(31_499), NO_REQUESTS, &mut random).is_empty());
    let events = detector.sweep(now + Duration::from_millis(31_500), NO_REQUESTS, &mut random);
    assert_eq!(events[0].kind, EventKind::Unejected);
    assert_eq!(events[0].since_last, Some(Duration::from_millis(31_500)));
}

#[test]
fn the_share_of_ejected_hosts_is_limited_from_the_first_on() {
    let now = Instant::now();
    let kinds = |max_percent, always_one, hosts| {
        let mut limited = settings();
        limited.ejection.max_percent = max_percent;
        limited.ejection.always_one = always_one;
        let mut detector = detector(limited, hosts);
        let mut ejected = 0;
        for host in 0..hosts {
            let event = detector.found(host, Outlier::Consecutive5xx, now, &mut || 0).unwrap();
            ejected += u32::from(matches!(event.kind, EventKind::Ejected { enforced: true, .. }));
        }
        assert_eq!(detector.ejected(), ejected as usize);
        ejected
    };
    assert_eq!([kinds(10, false, 3), kinds(10, false, 10), kinds(10, false, 19)], [0, 1, 1]);
    assert_eq!([kinds(10, true, 3), kinds(0, true, 3), kinds(0, false, 3)], [1, 1, 0]);
    assert_eq!([kinds(50, false, 3), kinds(100, false, 3), kinds(34, false, 3)], [1, 3, 1]);
}

#[test]
fn ejections_are_enforced_with_the_chance_given() {
    let mut ramp = settings();
    ramp.consecutive_5xx.enforcing = 30;
    ramp.ejection.max_percent = 100;
    let mut detector = detector(ramp, 2);
    let now = Instant::now();
    let EventKind::Ejected { enforced: false, .. } =
        detector.found(0, Outlier::Consecutive5xx, now, &mut || 30).unwrap().kind
    else {
        panic!()
    };
    assert!(!detector.is_ejected(0));
    detector.found(0, Outlier::Consecutive5xx, now, &mut || 129).unwrap();
    assert!(detector.is_ejected(0));
    assert!(detector.found(0, Outlier::Consecutive5xx, now, &mut || 0).is_none(), "it is out already");
}

/// All hosts had `total` requests, and each failed as often as `failed` says.
fn counted(failed: &[u32], total: u32) -> Vec<(u32, Windows)> {
    let windows = |failed: &u32| Windows { external: (total, *failed), local: (0, 0) };
    (0..).zip(failed.iter().map(windows)).collect()
}

#[test]
fn a_success_rate_far_below_the_others_is_an_outlier() {
    let mut random = || 0;
    let mut detector = detector(settings(), 5);
    let events = detector.sweep(Instant::now(), &counted(&[0, 0, 0, 0, 50], 100), &mut random);
    let averages = detector.averages(Origin::External).unwrap();
    assert!((averages.mean - 90.0).abs() < 1e-9 && (averages.threshold - 52.0).abs() < 1e-9);
    let [event] = events.as_slice() else { panic!("{events:?}") };
    let expected = Rates { success_rate: Some(50.0), averages: Some(averages) };
    assert_eq!(event.host, 4);
    assert_eq!(event.kind, EventKind::Ejected { outlier: Outlier::SuccessRate, enforced: true, rates: expected });
    assert_eq!(detector.success_rate(0, Origin::External), Some(100.0));
    assert_eq!(detector.averages(Origin::Local), None);
}

#[test]
fn statistics_need_enough_hosts_with_enough_requests() {
    let mut random = || 0;
    let now = Instant::now();
    let mut four = detector(settings(), 4);
    assert!(!four.measures() && four.is_idle());
    assert!(four.sweep(now, &counted(&[0, 0, 0, 100], 100), &mut random).is_empty());
    let mut quiet = detector(settings(), 5);
    assert!(quiet.sweep(now, &counted(&[0, 0, 0, 0, 49], 49), &mut random).is_empty());
    assert_eq!(quiet.success_rate(4, Origin::External), None);
    // Enough for failure percentages, whose enforcement is off unless asked for, but not for success rates.
    let events = quiet.sweep(now, &counted(&[0, 0, 0, 0, 50], 50), &mut random);
    let expected = Rates { success_rate: Some(0.0), averages: None };
    assert_eq!(
        events.iter().map(|event| (event.host, event.kind)).collect::<Vec<_>>(),
        [(4, EventKind::Ejected { outlier: Outlier::FailurePercentage, enforced: false, rates: expected })]
    );
    assert_eq!(quiet.averages(Origin::External), None);
    assert_eq!(quiet.success_rate(4, Origin::External), Some(0.0));
}

#[test]
fn a_failure_percentage_at_the_threshold_is_an_outlier() {
    let mut enforced = settings();
    enforced.failure_percentage.enforcing = 100;
    enforced.success_rate.minimum_hosts = 100;
    let mut detector = detector(enforced, 5);
    let events = detector.sweep(Instant::now(), &counted(&[84, 85, 0, 86, 0], 100), &mut || 0);
    assert_eq!(events.iter().map(|event| event.host).collect::<Vec<_>>(), [1, 3]);
    assert!(detector.is_ejected(1) && detector.is_ejected(3));
}

#[test]
fn local_origin_statistics_have_types_of_their_own() {
    let mut both = settings();
    both.failure_percentage.enforcing_local_origin = 100;
    both.success_rate.enforcing_local_origin = 0;
    let mut detector = detector(both, 5);
    let windows = |host| (host, Windows { external: (0, 0), local: (100, if host == 3 { 90 } else { 0 }) });
    let kinds: Vec<_> = detector
        .sweep(Instant::now(), &(0..5).map(windows).collect::<Vec<_>>(), &mut || 0)
        .into_iter()
        .map(|event| match event.kind {
            EventKind::Ejected { outlier, enforced, .. } => (event.host, outlier, enforced),
            other => panic!("{other:?}"),
        })
        .collect();
    let rate = (3, Outlier::SuccessRateLocalOrigin, false);
    assert_eq!(kinds, [rate, (3, Outlier::FailurePercentageLocalOrigin, true)]);
}

#[test]
fn an_ejected_host_takes_no_part_in_statistics() {
    let mut detector = detector(settings(), 6);
    let now = Instant::now();
    detector.found(5, Outlier::Consecutive5xx, now, &mut || 0).unwrap();
    let events = detector.sweep(now, &counted(&[0, 0, 0, 0, 0, 100], 100), &mut || 0);
    assert!(events.is_empty());
    assert_eq!(detector.averages(Origin::External).unwrap().mean, 100.0);
}

#[test]
fn a_successful_check_ends_an_ejection_unless_forbidden() {
    let now = Instant::now();
    let mut allowed = detector(settings(), 2);
    allowed.found(0, Outlier::Consecutive5xx, now, &mut || 0).unwrap();
    let event = allowed.checked_healthy(0, now + seconds(2)).unwrap();
    assert_eq!((event.kind, event.since_last), (EventKind::Unejected, Some(seconds(2))));
    assert!(allowed.checked_healthy(0, now).is_none() && allowed.ejected() == 0);
    let again = allowed.found(0, Outlier::Consecutive5xx, now + seconds(3), &mut || 0).unwrap();
    assert_eq!((again.ejections, again.since_last), (2, Some(seconds(1))));
    let mut settings = settings();
    settings.successful_active_health_check_uneject_host = false;
    let mut forbidden = detector(settings, 2);
    forbidden.found(0, Outlier::Consecutive5xx, now, &mut || 0).unwrap();
    assert!(forbidden.checked_healthy(0, now).is_none() && forbidden.is_ejected(0));
}

#[test]
fn degradation_lasts_as_an_ejection_would() {
    let mut detector = detector(settings(), 1);
    let now = Instant::now();
    let mut random = || 0;
    assert_eq!(detector.degraded(0, now, &mut random).unwrap().kind, EventKind::Degraded);
    assert!(detector.degraded(0, now, &mut random).is_none());
    assert!(!detector.is_ejected(0) && !detector.is_idle());
    assert!(detector.sweep(now + seconds(29), NO_REQUESTS, &mut random).is_empty());
    let events = detector.sweep(now + seconds(30), NO_REQUESTS, &mut random);
    assert_eq!(events[0].kind, EventKind::Recovered);
    detector.degraded(0, now + seconds(30), &mut random).unwrap();
    assert!(detector.sweep(now + seconds(89), NO_REQUESTS, &mut random).is_empty());
    assert_eq!(detector.sweep(now + seconds(90), NO_REQUESTS, &mut random).len(), 1);
}

#[test]
fn a_host_that_leaves_and_returns_starts_anew() {
    let mut detector = detector(settings(), 4);
    let now = Instant::now();
    detector.found(1, Outlier::Consecutive5xx, now, &mut || 0).unwrap();
    detector.follow(4, |_| true);
    assert!(detector.is_ejected(1));
    detector.follow(3, |host| host != 1);
    assert_eq!(detector.ejected(), 0);
    detector.follow(4, |_| true);
    assert!(!detector.is_ejected(1));
    assert_eq!(detector.found(1, Outlier::Consecutive5xx, now, &mut || 0).unwrap().ejections, 1);
}

#[test]
fn runtime_values_replace_settings() {
    let number = |key: &str| match key {
        "outlier_detection.interval_ms" => Some(0),
        "outlier_detection.base_ejection_time_ms" => Some(1_500),
        "outlier_detection.max_ejection_percent" => Some(1_000),
        "outlier_detection.consecutive_5xx" => Some(9),
        "outlier_detection.enforcing_consecutive_gateway_failure" => Some(7),
        "outlier_detection.enforcing_failure_percentage_local_origin" => Some(8),
        "outlier_detection.success_rate_stdev_factor" => Some(u64::MAX),
        _ => None,
    };
    let changed = with_runtime(&settings(), &number);
    assert_eq!(changed.interval, Duration::from_millis(1));
    assert_eq!(changed.ejection.base_time, Duration::from_millis(1_500));
    assert_eq!((changed.ejection.max_percent, changed.consecutive_5xx.threshold), (100, 9));
    assert_eq!(changed.consecutive_gateway_failure, Consecutive { threshold: 3, enforcing: 7 });
    assert_eq!(changed.failure_percentage.enforcing_local_origin, 8);
    assert_eq!(changed.success_rate.stdev_factor, u32::MAX);
    assert_eq!(with_runtime(&settings(), &|_| None), settings());
}

/// What may happen to a detector.
#[derive(Clone, Debug)]
enum Step {
    Found(u32),
    Degraded(u32),
    Checked(u32),
    Sweep { seconds: u64, failed: Vec<u32> },
    Remove(Vec<u32>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..12u32).prop_map(Step::Found),
        1 => (0..12u32).prop_map(Step::Degraded),
        1 => (0..12u32).prop_map(Step::Checked),
        3 => (0..200u64, proptest::collection::vec(0..=100u32, 12))
            .prop_map(|(seconds, failed)| Step::Sweep { seconds, failed }),
        1 => proptest::collection::vec(0..12u32, 0..12).prop_map(Step::Remove),
    ]
}

proptest! {
    #[test]
    fn ejections_stay_within_their_limits(
        steps in proptest::collection::vec(step(), 0..80),
        max_percent in 0..=100u32,
        always_one: bool,
    ) {
        let mut limited = settings();
        limited.ejection.max_percent = max_percent;
        limited.ejection.always_one = always_one;
        limited.failure_percentage.enforcing = 100;
        let mut detector = detector(limited, 12);
        let mut now = Instant::now();
        let mut seed = 1u64;
        let mut random = move || { seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1); seed >> 32 };
        let mut hosts = 12usize;
        for step in steps {
            let before = detector.ejected();
            let followed = matches!(step, Step::Remove(_));
            match step {
                Step::Found(host) => drop(detector.found(host, Outlier::Consecutive5xx, now, &mut random)),
                Step::Degraded(host) => drop(detector.degraded(host, now, &mut random)),
                Step::Checked(host) => drop(detector.checked_healthy(host, now)),
                Step::Sweep { seconds: after, failed } => {
                    now += seconds(after);
                    detector.sweep(now, &counted(&failed, 100), &mut random);
                }
                Step::Remove(list) => {
                    hosts = 12 - list.iter().collect::<std::collections::BTreeSet<_>>().len();
                    detector.follow(hosts, |host| !list.contains(&host));
                }
            }
            let ejected = detector.ejected();
            prop_assert_eq!(ejected, (0..12).filter(|host| detector.is_ejected(*host)).count());
            let within = 100 * ejected <= max_percent as usize * hosts || (always_one && ejected <= 1);
            prop_assert!(ejected <= before || followed || within, "{ejected} of {hosts} with {max_percent}%");
        }
        // Everybody comes back in the end.
        now += seconds(1_000);
        detector.sweep(now, NO_REQUESTS, &mut random);
        prop_assert_eq!(detector.ejected(), 0);
    }

    #[test]
    fn averages_lie_among_the_rates(rates in proptest::collection::vec(0.0..=100.0f64, 1..50), factor in 0.0..5.0f64) {
        let averages = Averages::of(&rates, factor).unwrap();
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = rates.iter().copied().fold(0.0, f64::max);
        prop_assert!(averages.mean >= least - 1e-9 && averages.mean <= most + 1e-9);
        prop_assert!(averages.threshold <= averages.mean);
    }
}

#[test]
fn monitors_are_shared_between_threads() {
    fn shared<T: Send + Sync>(_: &Arc<T>) {}
    shared(&Arc::new(HostMonitor::default()));
    shared(&Arc::new(Limits::default()));
}
