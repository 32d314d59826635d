//! New hosts get their share little by little (`slow_start_config`).
//!
//! Owns how much of its share a host gets at which time. Never reads a clock.

use outrigger_config::cluster::SlowStart;

use super::hosts::{Health, HostIndex, Inputs};

/// When hosts began.
#[derive(Debug)]
pub(super) struct Ramp {
    config: SlowStart,
    window: f64,
    /// By host, in milliseconds.
    began: Box<[u64]>,
    /// The oldest host that is fit. Hosts are measured against it: if all are new, none is held back.
    oldest: u64,
    /// The youngest has had its window.
    end: u64,
}

impl Ramp {
    /// `None` without slow start.
    pub(super) fn build(inputs: &Inputs<'_>) -> Option<Self> {
        let config = inputs.options.slow_start?;
        let began: Box<[u64]> =
            (0..inputs.hosts.len() as u32).map(|host| inputs.facts.began(HostIndex(host))).collect();
        let fit = inputs.hosts.iter().zip(&began).filter(|(host, _)| host.health == Health::Healthy);
        let (oldest, youngest) =
            fit.fold((u64::MAX, 0), |(oldest, youngest), (_, began)| (oldest.min(*began), youngest.max(*began)));
        let window = u64::try_from(config.window.as_millis()).unwrap_or(u64::MAX);
        // If all began at once, none is behind the others.
        let end = if oldest < youngest { youngest.saturating_add(window) } else { 0 };
        Some(Self { config, window: window.max(1) as f64, began, oldest, end })
    }

    pub(super) fn began(&self, host: HostIndex) -> Option<u64> {
        self.began.get(host.0 as usize).copied()
    }

    /// Whether a host is still held back.
    pub(super) fn lasts(&self, now: u64) -> bool {
        now < self.end
    }

    /// The part of its share that a host gets, compared with the oldest.
    pub(super) fn part(&self, host: HostIndex, now: u64) -> f64 {
        let part = |began: u64| {
            let over = now.saturating_sub(began).max(1) as f64 / self.window;
            if over >= 1.0 {
                return 1.0;
            }
            over.powf(1.0 / self.config.aggression).max(self.config.min_weight.value() / 100.0)
        };
        let own = part(self.began[host.0 as usize]);
        if own >= 1.0 { 1.0 } else { (own / part(self.oldest)).min(1.0) }
    }
}
