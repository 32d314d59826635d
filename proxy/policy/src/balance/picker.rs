//! Picking a host.
//!
//! Owns a worker's place in its round robins. Never counts requests; the caller does.

use std::sync::Arc;

use outrigger_config::cluster::LbMetadata;

use super::hosts::{HostIndex, HostSet, Policy};
use super::latency::Latency;
use super::locality::Zone;
use super::picking::Picking;
use super::pools::{Choice, Group, Pool, Pools, Weights};
use super::priority::Availability;
use super::reported::ReportedWeight;
use super::retry_priority::Attempted;
use super::schedule::Schedule;
use super::subset::{Section, Via};
use super::{scale, spread};

/// How busy hosts are.
pub trait Load {
    /// Requests in flight to a host.
    fn active_requests(&self, host: HostIndex) -> u32;

    /// Requests in flight to all hosts, where load is bounded; `None` to add them up.
    fn all_active_requests(&self) -> Option<u32> {
        None
    }

    /// The latency of a host, where the policy goes by that.
    fn latency(&self, host: HostIndex) -> Latency {
        let _ = host;
        Latency::default()
    }

    /// What a host reports of its weight, where the policy goes by that.
    fn reported(&self, host: HostIndex) -> ReportedWeight {
        let _ = host;
        ReportedWeight::default()
    }

    /// Whether a host could not be connected to a moment before `now`, where the policy goes by that.
    fn is_unreachable(&self, host: HostIndex, now: u64) -> bool {
        let _ = (host, now);
        false
    }
}

impl<F: Fn(HostIndex) -> u32> Load for F {
    fn active_requests(&self, host: HostIndex) -> u32 {
        self(host)
    }
}

/// What a request says about the host it wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Its hash; random if there is none. See [`HostSet::wants_hash`].
    pub hash: Option<u64>,
    /// The subset it asks for. See [`HostSet::wants_metadata`].
    pub metadata: Option<&'a LbMetadata>,
    /// Milliseconds of the clock that hosts began by. See [`HostSet::wants_time`].
    pub now: u64,
    /// The priority and the kind of its hosts, where somebody else has chosen them (an aggregate cluster).
    pub level: Option<(u32, Availability)>,
    /// The priorities that were tried, for a retry that goes by these. Policies that choose by hash pass over it, as Envoy's.
    pub attempted: Option<Attempted<'a>>,
}

/// A picked host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pick {
    /// Which one.
    pub host: HostIndex,
    /// Its priority is in panic: it may be unhealthy.
    pub panic: bool,
    /// How the subset that it stands in was found.
    pub via: Via,
    /// Where it stands, if zones count.
    pub zone: Zone,
}

/// Picks hosts of one [`HostSet`] for one worker.
///
/// Least request: where weights are equal, `choice_count` hosts are drawn at random, each another than the best so far,
/// and the one with the fewest active requests wins. Where weights differ, hosts are drawn in proportion to their
/// weights, so that an idle cluster is shared exactly by weight; a later draw replaces an earlier one only if it would
/// still have less load for its weight with this request than the earlier one has without it, where load is
/// `active_requests ^ active_request_bias`. A bias of 0 makes it weighted round robin. Envoy schedules hosts by
/// `weight / (active_requests + 1) ^ bias` instead, which reacts only when a host is due again; here a slow host is
/// avoided at once. A `choice_count` of all hosts takes the least busy one, of several alike a random one.
///
/// Peak EWMA: hosts are drawn in the same way, and the one of lowest cost wins: its latency times its active requests
/// with the new one, where the active requests of a heavy host count for as much less as it is heavier than the mean.
///
/// Reported weights: round robin by weights that are made anew from reports now and then; by turns until there is one.
///
/// Ring hash and Maglev: the hash says which host, and the order of those that take its place when it is excluded.
///
/// Slow start: a host that gets a part of its share only gives up the rest of its turns.
#[derive(Debug)]
pub struct Picker {
    set: Arc<HostSet>,
    seed: u64,
    all: Turns,
    default: Option<Turns>,
    /// By number of the subset; each made on its first use.
    subsets: Vec<Option<Turns>>,
}

/// Where a worker stands; one for each group, unless nothing goes in turn. Those of groups for retries only are made when
/// the first of these comes.
type Turns = Box<[Option<GroupTurns>]>;

#[derive(Debug)]
struct GroupTurns {
    /// Of the group's pools.
    pool: Option<Schedule>,
    pools: Box<[Turn]>,
}

#[derive(Debug)]
pub(super) enum Turn {
    /// The policy keeps no place here.
    None,
    /// The position that is next.
    Next(u32),
    Schedule(Schedule),
    /// By reported weights, until they are made anew.
    Reported {
        schedule: Schedule,
        until: u64,
    },
}

impl Picker {
    /// A picker that starts anywhere, as `start` says: workers should begin in different places.
    pub fn new(set: Arc<HostSet>, mut start: u64) -> Self {
        let all = turns(&set.pools, set.policy(), &mut start);
        let count = set.subset_counts().0;
        Self { set, seed: start, all, default: None, subsets: std::iter::repeat_with(|| None).take(count).collect() }
    }

    /// What this picker picks from.
    pub fn hosts(&self) -> &Arc<HostSet> {
        &self.set
    }

    /// Picks a host for a request that wants nothing in particular.
    pub fn pick(
        &mut self,
        random: &mut impl FnMut() -> u64,
        load: &impl Load,
        exclude: impl Fn(HostIndex) -> bool,
    ) -> Option<Pick> {
        self.pick_for(&Wanted::default(), random, load, exclude)
    }

    /// Picks a host that `exclude` does not hold back.
    ///
    /// `None` if there is no such host in the priority whose turn it is. A caller that would rather use an excluded
    /// host than none picks again without exclusion.
    pub fn pick_for(
        &mut self,
        wanted: &Wanted<'_>,
        random: &mut impl FnMut() -> u64,
        load: &impl Load,
        exclude: impl Fn(HostIndex) -> bool,
    ) -> Option<Pick> {
        let Self { set, seed, all, default, subsets: by_subset } = self;
        let draw = Draw { set, wanted, load, exclude: &exclude };
        let Some(subsets) = &set.subsets else {
            return draw.from(&set.pools, all, random, Via::Plain);
        };
        let mut try_ways = |metadata: Option<&LbMetadata>| {
            let ways = subsets.ways(metadata);
            [ways.first, ways.second].into_iter().flatten().find_map(|(section, via)| {
                let pools = subsets.section(section, &set.pools);
                let mut new = || turns(pools, set.policy(), seed);
                let turns = match section {
                    Section::All => &mut *all,
                    Section::Default => default.get_or_insert_with(new),
                    Section::Subset(number) => by_subset.get_mut(number as usize)?.get_or_insert_with(&mut new),
                };
                draw.from(pools, turns, random, via)
            })
        };
        let alternatives = subsets.alternatives(wanted.metadata);
        if alternatives.is_empty() {
            return try_ways(wanted.metadata);
        }
        alternatives.iter().find_map(|metadata| try_ways(Some(metadata)))
    }
}

fn turns(pools: &Pools, policy: Policy, seed: &mut u64) -> Turns {
    let in_turn = |group: &Group| {
        matches!(group.choice, Choice::InTurn(_)) || group.pools.iter().any(|pool| pool.is_taken_in_turn(policy))
    };
    if !pools.groups().iter().any(in_turn) {
        return Box::default();
    }
    let made = |group: &Group| if group.is_spare() { None } else { Some(GroupTurns::new(group, policy, seed)) };
    pools.groups().iter().map(made).collect()
}

impl GroupTurns {
    fn new(group: &Group, policy: Policy, seed: &mut u64) -> Self {
        let pool = match &group.choice {
            Choice::Only | Choice::ByZone { .. } => None,
            Choice::InTurn(weights) => Some(Schedule::new(weights, spread(seed))),
        };
        let turn = |pool: &Pool| match &pool.weights {
            _ if !pool.is_taken_in_turn(policy) => Turn::None,
            _ if policy == Policy::Reported => Turn::Reported { schedule: Schedule::new(&[], 0), until: 0 },
            Weights::Equal => Turn::Next(scale((spread(seed) >> 32) as u32, pool.len())),
            Weights::Different { weights, .. } => Turn::Schedule(Schedule::new(weights, spread(seed))),
            Weights::Placed(_) | Weights::Ordered(_) => Turn::None,
        };
        Self { pool, pools: group.pools.iter().map(turn).collect() }
    }
}

/// One pick.
struct Draw<'a, L, E> {
    set: &'a HostSet,
    wanted: &'a Wanted<'a>,
    load: &'a L,
    exclude: &'a E,
}

impl<L: Load, E: Fn(HostIndex) -> bool> Draw<'_, L, E> {
    fn from(&self, pools: &Pools, turns: &mut Turns, random: &mut impl FnMut() -> u64, via: Via) -> Option<Pick> {
        let by_hash = self.set.wants_hash();
        let hash = if by_hash { self.wanted.hash.unwrap_or_else(&mut *random) } else { 0 };
        // The hash says which priority, too.
        let at = match self.wanted.level {
            Some((priority, availability)) => {
                // Policies that choose by hash keep nothing for retries.
                let again = || self.wanted.attempted.and_then(|_| pools.choose(random));
                pools.group_of(priority, availability).or_else(again)
            }
            None if by_hash => pools.choose(&mut || hash),
            None => match self.wanted.attempted {
                Some(attempted) => pools.choose_again(attempted, random),
                None => pools.choose(random),
            },
        }?;
        let group = &pools.groups()[at];
        let (pool_turn, turns) = match turns.get_mut(at) {
            Some(made) => {
                let make = || GroupTurns::new(group, self.set.policy(), &mut random());
                let GroupTurns { pool, pools } = made.get_or_insert_with(make);
                (pool.as_mut(), &mut **pools)
            }
            None => (None, &mut [][..]),
        };
        let (first, zone) = match &group.choice {
            Choice::Only => (0, Zone::None),
            Choice::InTurn(_) => (pool_turn.and_then(Schedule::next).unwrap_or(0) as usize, Zone::None),
            Choice::ByZone { alias, kinds } => {
                let number = alias.pick(random()) as usize;
                (number, kinds[number])
            }
        };
        let now = self.wanted.now;
        let ramp = self.set.ramp.as_deref().filter(|ramp| ramp.lasts(now)).map(|ramp| (ramp, now));
        // Where all hosts of a locality are excluded, another one has its turn.
        let mut order = (first..group.pools.len()).chain(0..first);
        order.find_map(|number| {
            let pool = &group.pools[number];
            let (policy, reports) = (self.set.policy(), self.set.reports());
            let picking = Picking { pool, policy, load: self.load, exclude: self.exclude, ramp, now, reports };
            let position = picking.position(hash, turns.get_mut(number), random)?;
            Some(Pick { host: pool.host(position), panic: group.panic, via, zone })
        })
    }
}

#[cfg(test)]
mod tests;
