//! A limit on concurrent requests that follows their latency, by the gradient of the latency without load to the latency now.
//!
//! Owns the limit, the requests under way, and the latencies it is found by; all threads share them without a lock. Time
//! passes when somebody asks: [`Controller::is_due`] is cheap, and whoever finds that something is due does it for all.
//! Never reads a clock.
//!
//! ```text
//! measuring (limit: min_concurrency) --enough requests--> following --interval, or five times at the minimum--> measuring
//! ```

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use outrigger_config::http::filters::{Gradient, MinLatency};

mod samples;

use samples::Samples;

/// The limit of one filter.
#[derive(Debug)]
pub struct Controller {
    limit: AtomicU32,
    under_way: AtomicU32,
    /// The limit before the measurement that is under way; 0 outside of one.
    limit_before: AtomicU32,
    /// Samples that end the measurement.
    wanted_samples: AtomicU32,
    /// Requests that began before say nothing, in nanoseconds.
    epoch: AtomicU64,
    next_measurement: AtomicU64,
    next_update: AtomicU64,
    /// How often in a row the limit stayed at its minimum.
    at_minimum: AtomicU32,
    /// Somebody does what is due.
    updating: AtomicBool,
    samples: Samples,
    min_latency_us: AtomicU64,
    latency_us: AtomicU64,
    gradient_thousandths: AtomicU32,
    burst: AtomicU32,
}

/// What is shown of a controller.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Shown {
    /// Requests at a time.
    pub limit: u32,
    /// What was added for bursts the last time.
    pub burst: u32,
    /// The gradient times a thousand.
    pub gradient_thousandths: u32,
    /// The latency without load is being measured.
    pub is_measuring: bool,
    /// The latency without load.
    pub min_latency: Duration,
    /// The latency of the last interval.
    pub latency: Duration,
}

impl Controller {
    /// A controller as old as nothing, which measures first unless it need not.
    pub fn new(settings: &Gradient) -> Self {
        let controller = Self {
            limit: AtomicU32::new(settings.min_concurrency),
            under_way: AtomicU32::new(0),
            limit_before: AtomicU32::new(0),
            wanted_samples: AtomicU32::new(0),
            epoch: AtomicU64::new(0),
            next_measurement: AtomicU64::new(u64::MAX),
            next_update: AtomicU64::new(nanos(settings.update_interval)),
            at_minimum: AtomicU32::new(0),
            updating: AtomicBool::new(false),
            samples: Samples::default(),
            min_latency_us: AtomicU64::new(0),
            latency_us: AtomicU64::new(0),
            gradient_thousandths: AtomicU32::new(0),
            burst: AtomicU32::new(0),
        };
        match settings.min_latency {
            MinLatency::Fixed(latency) => controller.min_latency_us.store(micros(latency), Ordering::Relaxed),
            MinLatency::Measured(_) => controller.begin_measurement(settings, 0),
        }
        controller
    }

    /// Lets a request go on if there is room for it; then [`Self::ended`] must follow.
    pub fn admit(&self) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let more = |under_way: u32| (under_way < limit).then(|| under_way + 1);
        self.under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// A request that began and ended at these ages of the controller was answered.
    pub fn sample(&self, began: Duration, now: Duration) {
        if nanos(began) >= self.epoch.load(Ordering::Relaxed) {
            self.samples.add(micros(now.saturating_sub(began)));
        }
    }

    /// A request is no longer under way, answered or not.
    pub fn ended(&self) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether it is time for [`Self::update`].
    pub fn is_due(&self, now: Duration) -> bool {
        if self.is_measuring() {
            return self.samples.count() >= self.wanted_samples.load(Ordering::Relaxed);
        }
        let now = nanos(now);
        now >= self.next_update.load(Ordering::Relaxed) || now >= self.next_measurement.load(Ordering::Relaxed)
    }

    /// Does what is due, unless another thread is at it. `random` is evenly distributed.
    pub fn update(&self, settings: &Gradient, random: u64, now: Duration) {
        if self.updating.swap(true, Ordering::Acquire) {
            return;
        }
        if self.is_due(now) {
            let now = nanos(now);
            if self.is_measuring() {
                self.end_measurement(settings, random, now);
            } else if now >= self.next_measurement.load(Ordering::Relaxed) {
                self.begin_measurement(settings, now);
            } else {
                self.follow(settings, now);
            }
        }
        self.updating.store(false, Ordering::Release);
    }

    /// How it stands.
    pub fn shown(&self) -> Shown {
        let micros = |value: &AtomicU64| Duration::from_micros(value.load(Ordering::Relaxed));
        Shown {
            limit: self.limit.load(Ordering::Relaxed),
            burst: self.burst.load(Ordering::Relaxed),
            gradient_thousandths: self.gradient_thousandths.load(Ordering::Relaxed),
            is_measuring: self.is_measuring(),
            min_latency: micros(&self.min_latency_us),
            latency: micros(&self.latency_us),
        }
    }

    fn is_measuring(&self) -> bool {
        self.limit_before.load(Ordering::Relaxed) > 0
    }

    fn begin_measurement(&self, settings: &Gradient, now: u64) {
        self.wanted_samples.store(settings.request_count.max(1), Ordering::Relaxed);
        self.limit_before.store(self.limit.load(Ordering::Relaxed).max(1), Ordering::Relaxed);
        self.limit.store(settings.min_concurrency, Ordering::Relaxed);
        self.at_minimum.store(0, Ordering::Relaxed);
        self.samples.clear();
        self.epoch.store(now, Ordering::Relaxed);
    }

    fn end_measurement(&self, settings: &Gradient, random: u64, now: u64) {
        self.min_latency_us.store(self.samples.take_percentile(settings.percentile), Ordering::Relaxed);
        self.limit.store(self.limit_before.load(Ordering::Relaxed), Ordering::Relaxed);
        if let MinLatency::Measured(interval) = settings.min_latency {
            let jitter = (interval.as_millis() as f64 * settings.jitter_percent / 100.0).ceil() as u64;
            let jitter = Duration::from_millis(random.checked_rem(jitter).unwrap_or(0));
            self.next_measurement.store(now.saturating_add(nanos(interval + jitter)), Ordering::Relaxed);
        }
        self.next_update.store(now.saturating_add(nanos(settings.update_interval)), Ordering::Relaxed);
        self.limit_before.store(0, Ordering::Relaxed);
    }

    fn follow(&self, settings: &Gradient, now: u64) {
        self.next_update.store(now.saturating_add(nanos(settings.update_interval)), Ordering::Relaxed);
        if self.samples.count() == 0 {
            return;
        }
        let latency = self.samples.take_percentile(settings.percentile);
        self.latency_us.store(latency, Ordering::Relaxed);
        let before = self.limit.load(Ordering::Relaxed);
        let step = Step::from(settings, before, self.min_latency_us.load(Ordering::Relaxed), latency);
        self.gradient_thousandths.store((step.gradient * 1000.0) as u32, Ordering::Relaxed);
        self.burst.store(step.burst, Ordering::Relaxed);
        self.limit.store(step.limit, Ordering::Relaxed);
        if before != settings.min_limit || step.limit != settings.min_limit {
            return self.at_minimum.store(0, Ordering::Relaxed);
        }
        // A limit that does not leave its minimum may come from a latency that was measured wrong.
        let times = self.at_minimum.fetch_add(1, Ordering::Relaxed) + 1;
        if times >= TIMES_AT_MINIMUM && matches!(settings.min_latency, MinLatency::Measured(_)) {
            self.next_measurement.store(now, Ordering::Relaxed);
        }
    }
}

/// A change of the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Step {
    gradient: f64,
    burst: u32,
    limit: u32,
}

impl Step {
    /// From latencies in microseconds.
    fn from(settings: &Gradient, before: u32, min_latency: u64, latency: u64) -> Self {
        let allowed = min_latency as f64 * (1.0 + settings.buffer_percent / 100.0);
        let gradient = (allowed / latency.max(1) as f64).clamp(0.5, 2.0);
        let wanted = f64::from(before) * gradient;
        let burst = wanted.sqrt();
        let limit = ((wanted + burst) as u32).min(settings.max_limit).max(settings.min_limit);
        Self { gradient, burst: burst as u32, limit }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Source: Envoy measures again when the limit was set to its minimum so often in a row.
const TIMES_AT_MINIMUM: u32 = 5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn settings() -> Gradient {
        Gradient {
            percentile: 50.0,
            max_limit: 100,
            min_limit: 3,
            update_interval: MS(100),
            min_latency: MinLatency::Measured(MS(10_000)),
            min_concurrency: 3,
            request_count: 5,
            jitter_percent: 0.0,
            buffer_percent: 25.0,
        }
    }

    /// A controller, its settings, and its age.
    struct Clocked(Controller, Gradient, Duration);

    impl Clocked {
        fn new(settings: Gradient) -> Self {
            Self(Controller::new(&settings), settings, Duration::ZERO)
        }

        fn request(&mut self, latency: Duration) {
            self.look();
            assert!(self.0.admit());
            self.0.sample(self.2, self.2 + latency);
            self.0.ended();
            self.2 += latency;
            self.look();
        }

        fn look(&self) {
            if self.0.is_due(self.2) {
                self.0.update(&self.1, 0, self.2);
            }
        }

        /// An interval with requests of this latency.
        fn interval(&mut self, latency: Duration) -> Shown {
            let end = self.2 + self.1.update_interval;
            self.request(latency);
            self.2 = self.2.max(end);
            self.look();
            self.0.shown()
        }

        fn measured(settings: Gradient, latency: Duration) -> Self {
            let mut clocked = Self::new(settings);
            for _ in 0..settings.request_count {
                assert!(clocked.0.shown().is_measuring);
                clocked.request(latency);
            }
            assert!(!clocked.0.shown().is_measuring);
            clocked
        }
    }

    #[test]
    fn it_measures_first_and_lets_few_requests_through() {
        let clocked = Clocked::new(settings());
        assert!(clocked.0.admit() && clocked.0.admit() && clocked.0.admit() && !clocked.0.admit());
        clocked.0.ended();
        assert!(clocked.0.admit());
        let clocked = Clocked::measured(settings(), MS(10));
        let shown = clocked.0.shown();
        assert_eq!(shown.limit, 3);
        assert!(shown.min_latency.abs_diff(MS(10)) < MS(1), "{shown:?}");
    }

    #[test]
    fn the_limit_rises_while_latency_stays_and_falls_with_it() {
        let mut clocked = Clocked::measured(settings(), MS(10));
        let limits: Vec<u32> = (0..9).map(|_| clocked.interval(MS(10)).limit).collect();
        assert!(limits.windows(2).all(|two| two[0] < two[1] || two[1] == 100), "{limits:?}");
        assert_eq!(limits.last(), Some(&100));
        let shown = clocked.interval(MS(90));
        assert_eq!((shown.gradient_thousandths, shown.limit, shown.burst), (500, 57, 7));
        let fallen = (0..20).map(|_| clocked.interval(MS(90)).limit).min();
        assert!(fallen < Some(10), "{fallen:?}");
    }

    #[test]
    fn it_measures_again_after_its_interval_and_when_stuck_at_the_minimum() {
        let mut clocked = Clocked::measured(settings(), MS(10));
        clocked.interval(MS(10));
        let before = clocked.0.shown().limit;
        clocked.2 += MS(10_000);
        clocked.look();
        assert!(clocked.0.shown().is_measuring);
        // Who began before does not count.
        for _ in 0..5 {
            clocked.0.sample(MS(0), clocked.2);
        }
        assert!(!clocked.0.is_due(clocked.2));
        for _ in 0..5 {
            clocked.request(MS(20));
        }
        assert_eq!((clocked.0.shown().is_measuring, clocked.0.shown().limit), (false, before));

        let minimal = Gradient { max_limit: 3, ..settings() };
        let mut clocked = Clocked::measured(minimal, MS(10));
        for _ in 0..4 {
            assert!(!clocked.interval(MS(90)).is_measuring);
        }
        clocked.interval(MS(90));
        clocked.look();
        assert!(clocked.0.shown().is_measuring);
    }

    #[test]
    fn a_given_latency_is_never_measured() {
        let fixed = Gradient { min_latency: MinLatency::Fixed(MS(5)), ..settings() };
        let mut clocked = Clocked::new(fixed);
        for _ in 0..40 {
            assert!(!clocked.interval(MS(50)).is_measuring);
        }
        assert_eq!(clocked.0.shown().min_latency, MS(5));
    }

    #[test]
    fn threads_never_admit_more_than_the_limit() {
        let controller = Controller::new(&Gradient { min_concurrency: 7, ..settings() });
        let admitted = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        admitted.fetch_add(u32::from(controller.admit()), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(admitted.into_inner(), 7);
    }

    proptest! {
        #[test]
        fn the_limit_stays_within_its_bounds(
            before in 1_u32..5000,
            min_latency in 0_u64..10_000_000,
            latency in 0_u64..10_000_000,
            min in 1_u32..50,
            max in 50_u32..2000,
        ) {
            let settings = Gradient { min_limit: min, max_limit: max, ..settings() };
            let step = Step::from(&settings, before, min_latency, latency);
            prop_assert!((min..=max).contains(&step.limit));
            prop_assert!((0.5..=2.0).contains(&step.gradient));
        }
    }
}
