//! Choosing among the hosts of one pool, as each policy does it.
//!
//! Owns the policies. Never keeps a worker's place between picks.

use outrigger_config::cluster::{PeakEwma, ReportOptions};

use super::hosts::{HostIndex, Policy};
use super::picker::{Load, Turn};
use super::placement::Placement;
use super::pools::{Pool, Weights};
use super::reported::{millis, whole_weights};
use super::scale;
use super::schedule::Schedule;
use super::slow_start::Ramp;

/// Draws of excluded hosts before all hosts are looked at.
const DRAWS: u32 = 4;
/// The same while hosts are held back by slow start, which happens in nine of ten draws at worst.
const DRAWS_IN_SLOW_START: u32 = 24;

/// Draws for an idle host before all hosts are looked at for the least busy one.
const DRAWS_FOR_IDLE: u32 = 8;
/// The latency below which hosts are alike, in milliseconds.
const LEAST_LATENCY: f64 = 0.001;

/// A pool, less the hosts that are excluded.
pub(super) struct Picking<'a, L, E> {
    pub pool: &'a Pool,
    pub policy: Policy,
    pub load: &'a L,
    pub exclude: &'a E,
    /// Hosts that give up a part of their turns, and the time.
    pub ramp: Option<(&'a Ramp, u64)>,
    /// In milliseconds, where the policy goes by time.
    pub now: u64,
    /// How hosts report their weights.
    pub reports: Option<&'a ReportOptions>,
}

impl<L: Load, E: Fn(HostIndex) -> bool> Picking<'_, L, E> {
    /// A position in the pool, or `None` if all hosts are excluded.
    pub(super) fn position(&self, hash: u64, turn: Option<&mut Turn>, random: &mut impl FnMut() -> u64) -> Option<u32> {
        match self.pool.len() {
            0 => None,
            1 => self.allows(0).then_some(0),
            _ => match (self.policy, &self.pool.weights) {
                (_, Weights::Placed(placement)) => self.by_hash(placement, hash, random),
                (Policy::LeastRequest { choice_count, active_request_bias }, _) => {
                    self.least_busy(choice_count, active_request_bias, turn, random)
                }
                (Policy::PeakEwma(options), weights) => self.cheapest(&options, weights, random),
                (Policy::RoundRobin, _) => self.in_turn(turn, random),
                (Policy::Reported, _) => self.by_reports(turn, random),
                (Policy::PickFirst { .. }, weights) => self.first(weights),
                (Policy::Random | Policy::RingHash { .. } | Policy::Maglev { .. }, _) => self.at_random(random),
            },
        }
    }

    fn allows(&self, position: u32) -> bool {
        !(self.exclude)(self.pool.host(position))
    }

    /// Whether a host is allowed and does not give up this turn.
    fn takes(&self, position: u32, random: &mut impl FnMut() -> u64) -> bool {
        let Some((ramp, now)) = self.ramp else { return self.allows(position) };
        let part = ramp.part(self.pool.host(position), now);
        let gives_up = part < 1.0 && (random() >> 32) as f64 >= part * f64::from(u32::MAX);
        !gives_up && self.allows(position)
    }

    fn draws(&self) -> u32 {
        if self.ramp.is_some() { DRAWS_IN_SLOW_START } else { DRAWS }
    }

    fn active(&self, position: u32) -> u32 {
        self.load.active_requests(self.pool.host(position))
    }

    /// The first host that may be picked, from a random one on.
    fn any(&self, random: &mut impl FnMut() -> u64) -> Option<u32> {
        let count = self.pool.len();
        let start = scale(random() as u32, count);
        (start..count).chain(0..start).find(|position| self.allows(*position))
    }

    fn at_random(&self, random: &mut impl FnMut() -> u64) -> Option<u32> {
        for _ in 0..self.draws() {
            let position = self.draw(random());
            if self.takes(position, random) {
                return Some(position);
            }
        }
        self.any(random)
    }

    /// A host by weight.
    fn draw(&self, random: u64) -> u32 {
        match &self.pool.weights {
            Weights::Different { alias: Some(alias), .. } => alias.pick(random),
            _ => scale(random as u32, self.pool.len()),
        }
    }

    fn in_turn(&self, turn: Option<&mut Turn>, random: &mut impl FnMut() -> u64) -> Option<u32> {
        let count = self.pool.len();
        match turn {
            Some(Turn::Next(next)) => {
                let start = *next;
                let mut order = (start..count).chain(0..start);
                let position = order.find(|position| self.takes(*position, random)).or_else(|| self.any(random))?;
                *next = if position + 1 == count { 0 } else { position + 1 };
                Some(position)
            }
            Some(Turn::Schedule(schedule)) => {
                for _ in 0..self.draws() {
                    let position = schedule.next()?;
                    if self.takes(position, random) {
                        return Some(position);
                    }
                }
                self.any(random)
            }
            Some(Turn::None | Turn::Reported { .. }) | None => self.any(random),
        }
    }

    fn by_reports(&self, turn: Option<&mut Turn>, random: &mut impl FnMut() -> u64) -> Option<u32> {
        let (Some(Turn::Reported { schedule, until }), Some(options)) = (turn, self.reports) else {
            return self.at_random(random);
        };
        if self.now >= *until {
            let reported = |position| self.load.reported(self.pool.host(position)).counts(self.now, options);
            let weights: Vec<Option<f64>> = (0..self.pool.len()).map(reported).collect();
            let weights = whole_weights(&weights).unwrap_or_else(|| vec![1; weights.len()].into());
            *schedule = Schedule::new(&weights, random());
            *until = self.now.saturating_add(millis(options.weight_update_period));
        }
        for _ in 0..self.draws() {
            let position = schedule.next()?;
            if self.takes(position, random) {
                return Some(position);
            }
        }
        self.any(random)
    }

    /// The first that can be connected to, or else the first.
    fn first(&self, weights: &Weights) -> Option<u32> {
        let at = |place: u32| match weights {
            Weights::Ordered(order) => order[place as usize],
            _ => place,
        };
        let mut order = (0..self.pool.len()).map(at).filter(|position| self.allows(*position));
        let first = order.next()?;
        let reachable = |position: &u32| !self.load.is_unreachable(self.pool.host(*position), self.now);
        if reachable(&first) { Some(first) } else { order.find(reachable).or(Some(first)) }
    }

    fn least_busy(
        &self,
        choice_count: u32,
        bias: f64,
        turn: Option<&mut Turn>,
        random: &mut impl FnMut() -> u64,
    ) -> Option<u32> {
        let all = choice_count >= self.pool.len();
        match (&self.pool.weights, turn) {
            (Weights::Different { .. }, Some(turn @ (Turn::Next(_) | Turn::Schedule(_)))) => {
                self.in_turn(Some(turn), random)
            }
            (Weights::Different { weights, .. }, _) if all => self.least_for_its_weight(bias, weights, random),
            (Weights::Different { weights, .. }, _) => self.fewest_by_weight(choice_count, bias, weights, random),
            // Of all the same the share of a busy host does not matter, only that it is the least busy.
            _ if all => self.least_busy_of_all(random),
            _ => self.least_of_some(choice_count, random, |position| self.active(position)),
        }
    }

    /// Of hosts of the same weight. While fewer requests are in flight than there are hosts, which is nearly always so
    /// where there are many, a few draws find an idle one, or a short way from a random place.
    fn least_busy_of_all(&self, random: &mut impl FnMut() -> u64) -> Option<u32> {
        let count = self.pool.len();
        if count > DRAWS_FOR_IDLE {
            for _ in 0..DRAWS_FOR_IDLE {
                let position = scale(random() as u32, count);
                if self.active(position) == 0 && self.takes(position, random) {
                    return Some(position);
                }
            }
            let start = scale(random() as u32, count);
            let mut order = (start..count).chain(0..start);
            let idle = order.find(|position| self.active(*position) == 0 && self.takes(*position, random));
            if idle.is_some() {
                return idle;
            }
        }
        let least = self.least_of_all(random, |position| self.active(position));
        least.map(|(position, _)| position).or_else(|| self.any(random))
    }

    /// Of hosts of different weights: one drawn by weight if it is idle, so that an idle cluster is shared by weight,
    /// otherwise the one that has the least load for its weight with this request.
    fn least_for_its_weight(&self, bias: f64, weights: &[u32], random: &mut impl FnMut() -> u64) -> Option<u32> {
        let mut drawn = None;
        for _ in 0..self.draws() {
            let position = self.draw(random());
            if self.takes(position, random) {
                drawn = Some((position, self.active(position)));
                break;
            }
        }
        if let Some((position, 0)) = drawn {
            return Some(position);
        }
        let with_one_more = |position: u32| {
            let active = self.active(position).saturating_add(1);
            cost(active, bias, weights[position as usize])
        };
        let least = self.least_of_all(random, with_one_more);
        match (drawn, least) {
            (Some((position, active)), Some((_, least))) if least >= cost(active, bias, weights[position as usize]) => {
                Some(position)
            }
            (_, Some((position, _))) => Some(position),
            (Some((position, _)), None) => Some(position),
            (None, None) => self.any(random),
        }
    }

    /// The position of least cost, one of several alike at random, and that cost.
    fn least_of_all<C: PartialOrd>(
        &self,
        random: &mut impl FnMut() -> u64,
        cost: impl Fn(u32) -> C,
    ) -> Option<(u32, C)> {
        let mut best: Option<(u32, C)> = None;
        let mut alike = 1;
        for position in 0..self.pool.len() {
            if !self.takes(position, random) {
                continue;
            }
            let cost = cost(position);
            match &best {
                Some((_, least)) if cost > *least => continue,
                Some((_, least)) if cost == *least => {
                    // Each of so many has the same chance to be the one.
                    alike += 1;
                    if scale(random() as u32, alike) != 0 {
                        continue;
                    }
                }
                _ => alike = 1,
            }
            best = Some((position, cost));
        }
        best
    }

    /// The position of least cost among `choice_count` that are drawn, each another than the best so far.
    fn least_of_some<C: PartialOrd>(
        &self,
        choice_count: u32,
        random: &mut impl FnMut() -> u64,
        cost: impl Fn(u32) -> C,
    ) -> Option<u32> {
        let count = self.pool.len();
        let bits = random();
        let first = scale(bits as u32, count);
        let mut best = (first, cost(first), self.takes(first, random));
        let mut bits = bits >> 32;
        for _ in 1..choice_count.max(2) {
            let drawn = scale(bits as u32, count - 1);
            // One of all hosts but the best so far.
            let position = if drawn >= best.0 { drawn + 1 } else { drawn };
            if self.takes(position, random) {
                let cost = cost(position);
                if !best.2 || cost < best.1 {
                    best = (position, cost, true);
                }
            }
            bits = if choice_count > 2 { random() } else { 0 };
        }
        if best.2 { Some(best.0) } else { self.at_random(random) }
    }

    fn fewest_by_weight(
        &self,
        choice_count: u32,
        bias: f64,
        weights: &[u32],
        random: &mut impl FnMut() -> u64,
    ) -> Option<u32> {
        let mut best: Option<(u32, u32)> = None;
        for _ in 0..choice_count.max(2) {
            let position = self.draw(random());
            if best.is_some_and(|(best, _)| best == position) || !self.takes(position, random) {
                continue;
            }
            let active = self.active(position);
            let is_better = best.is_none_or(|(best, best_active)| {
                let (weight, best_weight) = (weights[position as usize], weights[best as usize]);
                best_active > 0 && cost(active.saturating_add(1), bias, weight) < cost(best_active, bias, best_weight)
            });
            if is_better {
                best = Some((position, active));
            }
        }
        best.map(|(position, _)| position).or_else(|| self.at_random(random))
    }

    /// By latency and active requests. Weights say how often a host is drawn and how much it bears; what is drawn twice
    /// is compared with nothing, so that hosts of one latency share by weight.
    fn cheapest(&self, options: &PeakEwma, weights: &Weights, random: &mut impl FnMut() -> u64) -> Option<u32> {
        let cost = |position: u32, part: f64| {
            let (latency, active) = (self.load.latency(self.pool.host(position)), self.active(position));
            if !latency.is_known() && active == 0 {
                // One request finds out; otherwise a new host would wait until the others are as slow as it may be.
                return 0.0;
            }
            latency.expected(self.now, options).max(LEAST_LATENCY) * (f64::from(active) / part + 1.0)
        };
        let Weights::Different { weights, alias: _ } = weights else {
            let cost = |position| cost(position, 1.0);
            if options.choice_count < self.pool.len() {
                return self.least_of_some(options.choice_count, random, cost);
            }
            let least = self.least_of_all(random, cost);
            return least.map(|(position, _)| position).or_else(|| self.any(random));
        };
        let mut best: Option<(u32, f64)> = None;
        for _ in 0..options.choice_count.min(self.pool.len().max(2)) {
            let position = self.draw(random());
            if best.is_some_and(|(best, _)| best == position) || !self.takes(position, random) {
                continue;
            }
            let cost = cost(position, f64::from(weights[position as usize]) / self.pool.mean_weight);
            if best.is_none_or(|(_, least)| cost < least) {
                best = Some((position, cost));
            }
        }
        best.map(|(position, _)| position).or_else(|| self.at_random(random))
    }

    fn by_hash(&self, placement: &Placement, hash: u64, random: &mut impl FnMut() -> u64) -> Option<u32> {
        let Some(position) = placement.find(hash, |position| self.allows(position)) else {
            return self.any(random);
        };
        let Some(bound) = placement.bound() else { return Some(position) };
        let total = self.load.all_active_requests();
        let total = total.unwrap_or_else(|| (0..self.pool.len()).map(|position| self.active(position)).sum());
        let active = |position| self.active(position);
        Some(bound.relieve(position, hash, total, active, |position| self.allows(position)))
    }
}

/// What a host of a weight costs with so many requests.
fn cost(active: u32, bias: f64, weight: u32) -> f64 {
    let load = if bias == 1.0 { f64::from(active) } else { f64::from(active).powf(bias) };
    load / f64::from(weight)
}
