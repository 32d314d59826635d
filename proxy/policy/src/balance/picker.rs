//! Picking a host.
//!
//! Owns a worker's place in its round robins. Never counts requests; the caller does.

use std::sync::Arc;

use super::hosts::{Group, HostIndex, HostSet, Policy, Weights};
use super::schedule::Schedule;
use super::{scale, spread};

/// How busy hosts are.
pub trait Load {
    /// Requests in flight to a host.
    fn active_requests(&self, host: HostIndex) -> u32;
}

impl<F: Fn(HostIndex) -> u32> Load for F {
    fn active_requests(&self, host: HostIndex) -> u32 {
        self(host)
    }
}

/// A picked host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pick {
    /// Which one.
    pub host: HostIndex,
    /// Its priority is in panic: it may be unhealthy.
    pub panic: bool,
}

/// Picks hosts of one [`HostSet`] for one worker.
///
/// Least request: where weights are equal, `choice_count` hosts are drawn at random, each another than the best so far,
/// and the one with the fewest active requests wins. Where weights differ, hosts are drawn in proportion to their
/// weights, so that an idle cluster is shared exactly by weight; a later draw replaces an earlier one only if it would
/// still have less load for its weight with this request than the earlier one has without it, where load is
/// `active_requests ^ active_request_bias`. A bias of 0 makes it weighted round robin. Envoy schedules hosts by
/// `weight / (active_requests + 1) ^ bias` instead, which reacts only when a host is due again; here a slow host is
/// avoided at once.
#[derive(Debug)]
pub struct Picker {
    set: Arc<HostSet>,
    /// One for each group, unless the policy keeps no place.
    turns: Box<[Turn]>,
}

#[derive(Debug)]
enum Turn {
    /// The position that is next.
    Next(u32),
    Schedule(Schedule),
}

impl Picker {
    /// A picker that starts anywhere, as `start` says: workers should begin in different places.
    pub fn new(set: Arc<HostSet>, mut start: u64) -> Self {
        let turn = |group: &Group| match &group.weights {
            Weights::Equal => Turn::Next(scale((spread(&mut start) >> 32) as u32, group.len())),
            Weights::Different { weights, .. } => Turn::Schedule(Schedule::new(weights, spread(&mut start))),
        };
        let in_turn = match set.policy() {
            Policy::RoundRobin => true,
            Policy::Random => false,
            Policy::LeastRequest { .. } => {
                !set.policy().draws_by_weight()
                    && set.groups().iter().any(|group| matches!(group.weights, Weights::Different { .. }))
            }
        };
        let turns = if in_turn { set.groups().iter().map(turn).collect() } else { Box::default() };
        Self { set, turns }
    }

    /// What this picker picks from.
    pub fn hosts(&self) -> &Arc<HostSet> {
        &self.set
    }

    /// Picks a host that `exclude` does not hold back.
    ///
    /// `None` if there is no such host in the priority whose turn it is. A caller that would rather use an excluded
    /// host than none picks again without exclusion.
    pub fn pick(
        &mut self,
        random: &mut impl FnMut() -> u64,
        load: &impl Load,
        exclude: impl Fn(HostIndex) -> bool,
    ) -> Option<Pick> {
        let at = self.set.choose(random)?;
        let group = &self.set.groups()[at];
        let position = match group.len() {
            0 => None,
            1 => (!exclude(group.host(0))).then_some(0),
            _ => {
                let pool = Pool { group, exclude: &exclude };
                match (self.set.policy(), self.turns.get_mut(at)) {
                    (Policy::Random, _) => pool.at_random(random),
                    (Policy::LeastRequest { choice_count, active_request_bias }, turn) => {
                        pool.least_busy(choice_count, active_request_bias, turn, random, load)
                    }
                    (Policy::RoundRobin, Some(turn)) => pool.in_turn(turn, random),
                    (Policy::RoundRobin, None) => pool.any(random),
                }
            }
        }?;
        Some(Pick { host: group.host(position), panic: group.panic })
    }
}

/// Draws of excluded hosts before all hosts are looked at.
const DRAWS: u32 = 4;

/// A group of at least two hosts, less those excluded.
struct Pool<'a, E> {
    group: &'a Group,
    exclude: &'a E,
}

impl<E: Fn(HostIndex) -> bool> Pool<'_, E> {
    fn allows(&self, position: u32) -> bool {
        !(self.exclude)(self.group.host(position))
    }

    /// The first host that may be picked, from a random one on.
    fn any(&self, random: &mut impl FnMut() -> u64) -> Option<u32> {
        let count = self.group.len();
        let start = scale(random() as u32, count);
        (start..count).chain(0..start).find(|position| self.allows(*position))
    }

    fn at_random(&self, random: &mut impl FnMut() -> u64) -> Option<u32> {
        for _ in 0..DRAWS {
            let position = self.draw(random());
            if self.allows(position) {
                return Some(position);
            }
        }
        self.any(random)
    }

    /// A host by weight.
    fn draw(&self, random: u64) -> u32 {
        match &self.group.weights {
            Weights::Different { alias: Some(alias), .. } => alias.pick(random),
            _ => scale(random as u32, self.group.len()),
        }
    }

    fn in_turn(&self, turn: &mut Turn, random: &mut impl FnMut() -> u64) -> Option<u32> {
        let count = self.group.len();
        match turn {
            Turn::Next(next) => {
                let start = *next;
                let position = (start..count).chain(0..start).find(|position| self.allows(*position))?;
                *next = if position + 1 == count { 0 } else { position + 1 };
                Some(position)
            }
            Turn::Schedule(schedule) => {
                for _ in 0..DRAWS {
                    let position = schedule.next()?;
                    if self.allows(position) {
                        return Some(position);
                    }
                }
                self.any(random)
            }
        }
    }

    fn least_busy(
        &self,
        choice_count: u32,
        bias: f64,
        turn: Option<&mut Turn>,
        random: &mut impl FnMut() -> u64,
        load: &impl Load,
    ) -> Option<u32> {
        match (&self.group.weights, turn) {
            (Weights::Equal, _) => self.fewest(choice_count, random, load),
            (Weights::Different { .. }, Some(turn)) => self.in_turn(turn, random),
            (Weights::Different { weights, .. }, None) => {
                self.fewest_by_weight(choice_count, bias, weights, random, load)
            }
        }
    }

    fn fewest(&self, choice_count: u32, random: &mut impl FnMut() -> u64, load: &impl Load) -> Option<u32> {
        let count = self.group.len();
        let active = |position: u32| load.active_requests(self.group.host(position));
        if choice_count >= count {
            // A random start shares ties evenly: the first minimum wins.
            let start = scale(random() as u32, count);
            return (start..count).chain(0..start).filter(|p| self.allows(*p)).min_by_key(|p| active(*p));
        }
        let bits = random();
        let first = scale(bits as u32, count);
        let mut best = (first, active(first), self.allows(first));
        let mut bits = bits >> 32;
        for _ in 1..choice_count.max(2) {
            let drawn = scale(bits as u32, count - 1);
            // One of all hosts but the best so far.
            let position = if drawn >= best.0 { drawn + 1 } else { drawn };
            if self.allows(position) {
                let requests = active(position);
                if !best.2 || requests < best.1 {
                    best = (position, requests, true);
                }
            }
            bits = if choice_count > 2 { random() } else { 0 };
        }
        if best.2 { Some(best.0) } else { self.any(random) }
    }

    fn fewest_by_weight(
        &self,
        choice_count: u32,
        bias: f64,
        weights: &[u32],
        random: &mut impl FnMut() -> u64,
        load: &impl Load,
    ) -> Option<u32> {
        let mut best: Option<(u32, u32)> = None;
        for _ in 0..choice_count.max(2) {
            let position = self.draw(random());
            if !self.allows(position) || best.is_some_and(|(best, _)| best == position) {
                continue;
            }
            let active = load.active_requests(self.group.host(position));
            let is_better = best.is_none_or(|(best, best_active)| {
                let cost = |active: u32, weight: u32| f64::from(active).powf(bias) / f64::from(weight);
                let (weight, best_weight) = (weights[position as usize], weights[best as usize]);
                best_active > 0 && cost(active.saturating_add(1), weight) < cost(best_active, best_weight)
            });
            if is_better {
                best = Some((position, active));
            }
        }
        best.map(|(position, _)| position).or_else(|| self.any(random))
    }
}

#[cfg(test)]
mod tests;
