//! Choosing among the hosts of one pool, as each policy does it.
//!
//! Owns the policies. Never keeps a worker's place between picks.

use super::hosts::{HostIndex, Policy};
use super::picker::{Load, Turn};
use super::placement::Placement;
use super::pools::{Pool, Weights};
use super::scale;
use super::slow_start::Ramp;

/// Draws of excluded hosts before all hosts are looked at.
const DRAWS: u32 = 4;
/// The same while hosts are held back by slow start, which happens in nine of ten draws at worst.
const DRAWS_IN_SLOW_START: u32 = 24;

/// A pool, less the hosts that are excluded.
pub(super) struct Picking<'a, L, E> {
    pub pool: &'a Pool,
    pub policy: Policy,
    pub load: &'a L,
    pub exclude: &'a E,
    /// Hosts that give up a part of their turns, and the time.
    pub ramp: Option<(&'a Ramp, u64)>,
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
                (Policy::RoundRobin, _) => self.in_turn(turn, random),
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
            Some(Turn::None) | None => self.any(random),
        }
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
            (Weights::Different { weights, .. }, _) if all => self.fewest_of_all(random, |position| {
                cost(self.active(position).saturating_add(1), bias, weights[position as usize])
            }),
            (Weights::Different { weights, .. }, _) => self.fewest_by_weight(choice_count, bias, weights, random),
            // Of all the same the share of a busy host does not matter, only that it is the least busy.
            _ if all => self.fewest_of_all(random, |position| f64::from(self.active(position))),
            _ => self.fewest(choice_count, random),
        }
    }

    /// A random start shares ties evenly: the first minimum wins.
    fn fewest_of_all(&self, random: &mut impl FnMut() -> u64, cost: impl Fn(u32) -> f64) -> Option<u32> {
        let count = self.pool.len();
        let start = scale(random() as u32, count);
        let mut best: Option<(u32, f64)> = None;
        for position in (start..count).chain(0..start) {
            if self.takes(position, random) {
                let cost = cost(position);
                if best.is_none_or(|(_, least)| cost < least) {
                    best = Some((position, cost));
                }
            }
        }
        best.map(|(position, _)| position).or_else(|| self.any(random))
    }

    fn fewest(&self, choice_count: u32, random: &mut impl FnMut() -> u64) -> Option<u32> {
        let count = self.pool.len();
        let bits = random();
        let first = scale(bits as u32, count);
        let mut best = (first, self.active(first), self.takes(first, random));
        let mut bits = bits >> 32;
        for _ in 1..choice_count.max(2) {
            let drawn = scale(bits as u32, count - 1);
            // One of all hosts but the best so far.
            let position = if drawn >= best.0 { drawn + 1 } else { drawn };
            if self.takes(position, random) {
                let requests = self.active(position);
                if !best.2 || requests < best.1 {
                    best = (position, requests, true);
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
    f64::from(active).powf(bias) / f64::from(weight)
}
