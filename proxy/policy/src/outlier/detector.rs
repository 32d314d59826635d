//! Who is ejected, how often it was, and until when.
//!
//! Owns the rules of one cluster. Never counts results (see `monitor`), and never marks a host.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outrigger_config::cluster::{Ejection, OutlierDetection};

pub use super::statistics::Averages;
use super::statistics::success_rate;
use super::{Origin, Outlier, Windows};

/// What has happened to a host, for stats, logs and its mark.
#[derive(Clone, Debug, PartialEq)]
pub struct Event<K> {
    /// Which host.
    pub host: K,
    /// What.
    pub kind: EventKind,
    /// How often it has been ejected.
    pub ejections: u32,
    /// Since it was last ejected (when it comes back) or came back (when it is ejected).
    pub since_last: Option<Duration>,
}

/// What has happened to a host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EventKind {
    /// An outlier; `enforced` if it is ejected from now on, otherwise it only would have been.
    Ejected { outlier: Outlier, enforced: bool, rates: Rates },
    /// An outlier that stays, since too many are ejected already.
    Spared { outlier: Outlier },
    /// It takes part again.
    Unejected,
    /// Degraded from now on.
    Degraded,
    /// No longer degraded.
    Recovered,
}

/// The numbers behind an ejection by statistics, in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Of the host.
    pub success_rate: Option<f64>,
    /// Of the cluster.
    pub averages: Option<Averages>,
}

/// The outlier detection of one cluster. Hosts are known by `K`; which ones there are is the caller's to know, and
/// nothing is kept of those that never stood out.
#[derive(Debug)]
pub struct Detector<K> {
    settings: OutlierDetection,
    hosts: usize,
    tracked: BTreeMap<K, Tracked>,
    ejected: usize,
    external: Option<Averages>,
    local: Option<Averages>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Tracked {
    ejected: Option<Term>,
    degraded: Option<Term>,
    /// Multiplies the time of an ejection; grows with each, and shrinks with each interval without.
    backoff: u32,
    degraded_backoff: u32,
    ejections: u32,
    last_ejected: Option<Instant>,
    last_unejected: Option<Instant>,
    external_rate: Option<f64>,
    local_rate: Option<f64>,
}

/// Since when, and what is added to the time that it lasts.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Term {
    since: Instant,
    jitter: Duration,
}

impl Tracked {
    fn is_idle(&self) -> bool {
        self.ejected.is_none() && self.degraded.is_none() && self.backoff == 0 && self.degraded_backoff == 0
    }

    fn rate(&mut self, origin: Origin) -> &mut Option<f64> {
        match origin {
            Origin::External => &mut self.external_rate,
            Origin::Local => &mut self.local_rate,
        }
    }
}

impl Term {
    fn begin(ejection: &Ejection, backoff: &mut u32, now: Instant, random: &mut dyn FnMut() -> u64) -> Self {
        let limit = u64::try_from(ejection.max_jitter.as_millis()).unwrap_or(u64::MAX);
        let jitter = if limit == 0 { 0 } else { random() % limit.saturating_add(1) };
        if ejection.base_time.saturating_mul(*backoff) < ejection.max_time.saturating_add(ejection.base_time) {
            *backoff += 1;
        }
        Self { since: now, jitter: Duration::from_millis(jitter) }
    }

    fn is_over(&self, ejection: &Ejection, backoff: u32, now: Instant) -> bool {
        let time = ejection.base_time.saturating_mul(backoff).min(ejection.max_time).saturating_add(self.jitter);
        now.saturating_duration_since(self.since) >= time
    }
}

impl<K: Copy + Ord> Detector<K> {
    /// Without hosts.
    pub fn new(settings: OutlierDetection) -> Self {
        Self { settings, hosts: 0, tracked: BTreeMap::new(), ejected: 0, external: None, local: None }
    }

    /// The settings in force.
    pub fn settings(&self) -> &OutlierDetection {
        &self.settings
    }

    /// Other settings hold from now on; who is ejected stays so, for as long as they say.
    pub fn set_settings(&mut self, settings: OutlierDetection) {
        self.settings = settings;
    }

    /// There are so many hosts from now on, and `stays` tells which of the old ones are among them.
    pub fn follow(&mut self, hosts: usize, stays: impl Fn(K) -> bool) {
        self.hosts = hosts;
        self.tracked.retain(|host, _| stays(*host));
        self.ejected = self.tracked.values().filter(|tracked| tracked.ejected.is_some()).count();
    }

    /// Whether there are enough hosts for statistics.
    pub fn measures(&self) -> bool {
        let least = self.settings.success_rate.minimum_hosts.min(self.settings.failure_percentage.minimum_hosts);
        self.hosts >= least as usize
    }

    /// Whether a sweep could change anything.
    pub fn is_idle(&self) -> bool {
        !self.measures() && self.tracked.values().all(Tracked::is_idle)
    }

    /// How many hosts are ejected.
    pub fn ejected(&self) -> usize {
        self.ejected
    }

    /// Whether a host is ejected.
    pub fn is_ejected(&self, host: K) -> bool {
        self.tracked.get(&host).is_some_and(|tracked| tracked.ejected.is_some())
    }

    /// A host's success rate in percent during the last interval, if it had requests enough.
    pub fn success_rate(&self, host: K, origin: Origin) -> Option<f64> {
        let tracked = self.tracked.get(&host)?;
        match origin {
            Origin::External => tracked.external_rate,
            Origin::Local => tracked.local_rate,
        }
    }

    /// The averages of the last interval, if enough hosts had requests enough.
    pub fn averages(&self, origin: Origin) -> Option<Averages> {
        match origin {
            Origin::External => self.external,
            Origin::Local => self.local,
        }
    }

    /// A host has completed a number in a row. Nothing happens to one that is ejected already.
    pub fn found(
        &mut self,
        host: K,
        outlier: Outlier,
        now: Instant,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Event<K>> {
        if self.is_ejected(host) { None } else { Some(self.eject(host, outlier, Rates::default(), now, random)) }
    }

    /// A host has said that it is degraded.
    pub fn degraded(&mut self, host: K, now: Instant, random: &mut dyn FnMut() -> u64) -> Option<Event<K>> {
        let tracked = self.tracked.entry(host).or_default();
        if tracked.degraded.is_some() {
            return None;
        }
        let term = Term::begin(&self.settings.ejection, &mut tracked.degraded_backoff, now, random);
        tracked.degraded = Some(term);
        Some(Event { host, kind: EventKind::Degraded, ejections: tracked.ejections, since_last: None })
    }

    /// An active check of a host went well, and it is healthy by them: that ends its ejection, if the settings allow.
    pub fn checked_healthy(&mut self, host: K, now: Instant) -> Option<Event<K>> {
        let allowed = self.settings.successful_active_health_check_uneject_host;
        (allowed && self.is_ejected(host)).then(|| self.uneject(host, now)).flatten()
    }

    /// The end of an interval: hosts whose time is over come back, and `observed` is what all of them have done. It may
    /// be left empty unless [`Self::measures`].
    pub fn sweep(&mut self, now: Instant, observed: &[(K, Windows)], random: &mut dyn FnMut() -> u64) -> Vec<Event<K>> {
        let mut events = Vec::new();
        let keys: Vec<K> = self.tracked.keys().copied().collect();
        for host in keys {
            events.extend(self.end_of_term(host, now));
            events.extend(self.end_of_degradation(host, now));
            if let Some(tracked) = self.tracked.get_mut(&host) {
                (tracked.external_rate, tracked.local_rate) = (None, None);
            }
        }
        self.judge(Origin::External, observed, now, random, &mut events);
        self.judge(Origin::Local, observed, now, random, &mut events);
        self.tracked.retain(|_, tracked| *tracked != Tracked::default());
        events
    }

    fn end_of_term(&mut self, host: K, now: Instant) -> Option<Event<K>> {
        let ejection = self.settings.ejection;
        let tracked = self.tracked.get_mut(&host)?;
        match tracked.ejected {
            None => {
                tracked.backoff = tracked.backoff.saturating_sub(1);
                None
            }
            Some(term) if term.is_over(&ejection, tracked.backoff, now) => self.uneject(host, now),
            Some(_) => None,
        }
    }

    fn end_of_degradation(&mut self, host: K, now: Instant) -> Option<Event<K>> {
        let ejection = self.settings.ejection;
        let tracked = self.tracked.get_mut(&host)?;
        match tracked.degraded {
            None => tracked.degraded_backoff = tracked.degraded_backoff.saturating_sub(1),
            Some(term) if term.is_over(&ejection, tracked.degraded_backoff, now) => {
                tracked.degraded = None;
                let ejections = tracked.ejections;
                return Some(Event { host, kind: EventKind::Recovered, ejections, since_last: None });
            }
            Some(_) => {}
        }
        None
    }

    /// Looks for outliers among the hosts by what they did.
    fn judge(
        &mut self,
        origin: Origin,
        observed: &[(K, Windows)],
        now: Instant,
        random: &mut dyn FnMut() -> u64,
        events: &mut Vec<Event<K>>,
    ) {
        let (success, failure) = (self.settings.success_rate, self.settings.failure_percentage);
        *self.averages_mut(origin) = None;
        if !self.measures() {
            return;
        }
        let (mut by_rate, mut by_percentage) = (Vec::new(), Vec::new());
        for (host, windows) in observed.iter().copied().filter(|(host, _)| !self.is_ejected(*host)).collect::<Vec<_>>()
        {
            let counts = match origin {
                Origin::External => windows.external,
                Origin::Local => windows.local,
            };
            let Some(rate) = success_rate(counts) else { continue };
            if counts.0 >= success.request_volume.min(failure.request_volume) {
                *self.tracked.entry(host).or_default().rate(origin) = Some(rate);
            }
            if counts.0 >= success.request_volume {
                by_rate.push((host, rate));
            }
            if counts.0 >= failure.request_volume {
                by_percentage.push((host, rate));
            }
        }
        if by_rate.len() >= success.minimum_hosts as usize {
            let rates: Vec<f64> = by_rate.iter().map(|(_, rate)| *rate).collect();
            let averages = Averages::of(&rates, f64::from(success.stdev_factor) / 1000.0);
            *self.averages_mut(origin) = averages;
            let threshold = averages.map_or(f64::NEG_INFINITY, |averages| averages.threshold);
            let outlier = match origin {
                Origin::External => Outlier::SuccessRate,
                Origin::Local => Outlier::SuccessRateLocalOrigin,
            };
            for (host, rate) in by_rate.into_iter().filter(|(_, rate)| *rate < threshold) {
                events.push(self.eject(host, outlier, Rates { success_rate: Some(rate), averages }, now, random));
            }
        }
        if by_percentage.len() >= failure.minimum_hosts as usize {
            let outlier = match origin {
                Origin::External => Outlier::FailurePercentage,
                Origin::Local => Outlier::FailurePercentageLocalOrigin,
            };
            let fails = |rate: f64| 100.0 - rate >= f64::from(failure.threshold);
            for (host, rate) in by_percentage.into_iter().filter(|(_, rate)| fails(*rate)) {
                let rates = Rates { success_rate: Some(rate), averages: None };
                // It may just have been ejected for its success rate, and is found out once more.
                let event = match self.is_ejected(host) {
                    true => self.found_again(host, outlier, rates),
                    false => self.eject(host, outlier, rates, now, random),
                };
                events.push(event);
            }
        }
    }

    fn averages_mut(&mut self, origin: Origin) -> &mut Option<Averages> {
        match origin {
            Origin::External => &mut self.external,
            Origin::Local => &mut self.local,
        }
    }

    fn eject(
        &mut self,
        host: K,
        outlier: Outlier,
        rates: Rates,
        now: Instant,
        random: &mut dyn FnMut() -> u64,
    ) -> Event<K> {
        let allowed = self.may_eject_another();
        let enforcing = self.enforcing(outlier);
        let tracked = self.tracked.entry(host).or_default();
        let since_last = tracked.last_unejected.map(|at| now.saturating_duration_since(at));
        let event = |kind, ejections| Event { host, kind, ejections, since_last };
        if !allowed {
            return event(EventKind::Spared { outlier }, tracked.ejections);
        }
        let enforced = random() % 100 < u64::from(enforcing);
        if enforced {
            let term = Term::begin(&self.settings.ejection, &mut tracked.backoff, now, random);
            tracked.ejected = Some(term);
            tracked.ejections += 1;
            tracked.last_ejected = Some(now);
            self.ejected += 1;
        }
        event(EventKind::Ejected { outlier, enforced, rates }, tracked.ejections)
    }

    /// An outlier that is ejected already: found, and nothing more.
    fn found_again(&self, host: K, outlier: Outlier, rates: Rates) -> Event<K> {
        let kind = match self.may_eject_another() {
            true => EventKind::Ejected { outlier, enforced: false, rates },
            false => EventKind::Spared { outlier },
        };
        let ejections = self.tracked.get(&host).map_or(0, |tracked| tracked.ejections);
        Event { host, kind, ejections, since_last: None }
    }

    /// Whether the share of ejected hosts, with one more, keeps within the limit.
    fn may_eject_another(&self) -> bool {
        let Ejection { max_percent, always_one, .. } = self.settings.ejection;
        let share = 100.0 * (self.ejected as f64 + 1.0) / self.hosts as f64;
        share <= f64::from(max_percent.min(100)) || (always_one && self.ejected == 0)
    }

    fn enforcing(&self, outlier: Outlier) -> u32 {
        let settings = &self.settings;
        match outlier {
            Outlier::Consecutive5xx => settings.consecutive_5xx.enforcing,
            Outlier::ConsecutiveGatewayFailure => settings.consecutive_gateway_failure.enforcing,
            Outlier::ConsecutiveLocalOriginFailure => settings.consecutive_local_origin_failure.enforcing,
            Outlier::SuccessRate => settings.success_rate.enforcing,
            Outlier::SuccessRateLocalOrigin => settings.success_rate.enforcing_local_origin,
            Outlier::FailurePercentage => settings.failure_percentage.enforcing,
            Outlier::FailurePercentageLocalOrigin => settings.failure_percentage.enforcing_local_origin,
            Outlier::Degraded => 0,
        }
    }

    fn uneject(&mut self, host: K, now: Instant) -> Option<Event<K>> {
        let tracked = self.tracked.get_mut(&host)?;
        tracked.ejected = None;
        tracked.last_unejected = Some(now);
        self.ejected = self.ejected.saturating_sub(1);
        let since_last = tracked.last_ejected.map(|at| now.saturating_duration_since(at));
        Some(Event { host, kind: EventKind::Unejected, ejections: tracked.ejections, since_last })
    }
}
