//! Hosts divided by priority, fitness and locality.
//!
//! Owns which hosts stand together, and which share of the traffic goes there. Never picks one of them (see `picker`).

use outrigger_config::cluster::{LocalityBalancing, ZoneAware};

use super::alias::Alias;
use super::hashing::xx_hash_seeded;
use super::hosts::{Health, Host, HostIndex, Inputs, Policy};
use super::locality::{self, Zone, ZoneRouting, ZoneShare};
use super::placement::{Entry, Placement, PlacementStats};
use super::priority::{Availability, LevelHealth, PriorityLoad};
use super::retry_priority::Attempted;

/// Hosts that may be picked, and how traffic divides among them.
#[derive(Debug)]
pub(super) struct Pools {
    load: PriorityLoad,
    zone_routing: ZoneRouting,
    /// Those that have a share of the traffic, and then those that could have one, to which a retry may go.
    groups: Box<[Group]>,
    /// How many of them have a share.
    sharing: usize,
}

/// Hosts of one priority that are equally fit.
#[derive(Debug)]
pub(super) struct Group {
    /// Of its hosts, and how fit they are.
    priority: u32,
    availability: Availability,
    /// Percent of the traffic; 0 if only retries go there.
    share: u32,
    pub(super) panic: bool,
    pub(super) choice: Choice,
    /// At least one.
    pub(super) pools: Box<[Pool]>,
}

/// Which pool of a group is picked from.
#[derive(Debug)]
pub(super) enum Choice {
    /// There is one only.
    Only,
    /// In turn, by these weights.
    InTurn(Box<[u32]>),
    /// At random, as near as the zones allow.
    ByZone { alias: Alias, kinds: Box<[Zone]> },
}

/// Hosts that a policy chooses from.
#[derive(Debug)]
pub(super) struct Pool {
    members: Members,
    pub(super) weights: Weights,
    /// Of weights that differ.
    pub(super) mean_weight: f64,
}

/// Hosts by position in the pool.
#[derive(Debug)]
enum Members {
    /// The first so many hosts of the list: what most clusters are.
    First(u32),
    Some(Box<[u32]>),
}

#[derive(Debug)]
pub(super) enum Weights {
    Equal,
    /// By position in the pool.
    Different {
        weights: Box<[u32]>,
        /// For policies that choose at random.
        alias: Option<Alias>,
    },
    /// For a policy that has an order of its own: positions in it.
    Ordered(Box<[u32]>),
    /// For policies that choose by hash.
    Placed(Box<Placement>),
}

impl Pools {
    /// Divides `members`, which ascend. Weights of localities may be scaled, one factor for each.
    pub(super) fn build(
        inputs: &Inputs<'_>,
        members: &[u32],
        localities: LocalityBalancing,
        scale: Option<&[f64]>,
    ) -> Self {
        let host = |member: &u32| &inputs.hosts[*member as usize];
        let counted = || members.iter().map(host).filter(|host| host.health != Health::Excluded);
        let levels = counted().map(|host| host.priority as usize + 1).max().unwrap_or(0);
        let count = |value: &dyn Fn(&Host) -> u32| {
            let mut health = vec![LevelHealth::default(); levels];
            for host in counted() {
                let level = &mut health[host.priority as usize];
                level.total = level.total.saturating_add(value(host));
                match host.health {
                    Health::Healthy => level.healthy = level.healthy.saturating_add(value(host)),
                    Health::Degraded => level.degraded = level.degraded.saturating_add(value(host)),
                    Health::Unhealthy | Health::Excluded => {}
                }
            }
            health
        };
        let balance = &inputs.balance;
        let health = count(&|_| 1);
        let capacities = balance.weighted_priority_health.then(|| count(&|host| host.weight.max(1)));
        let load = PriorityLoad::compute_by(
            capacities.as_deref().unwrap_or(&health),
            &health,
            |_| balance.overprovisioning_factor,
            balance.panic_threshold,
        );
        let (mut groups, mut spare) = (Vec::new(), Vec::new());
        // Hashes say which priority, whatever was tried.
        let spares = balance.policy.placing().is_none();
        let mut zone_routing = ZoneRouting::default();
        for availability in [Availability::Healthy, Availability::Degraded] {
            for (priority, level) in load.levels.iter().enumerate() {
                let (share, capacity, wanted) = match availability {
                    Availability::Healthy => (level.healthy, level.healthy_capacity, Health::Healthy),
                    Availability::Degraded => (level.degraded, level.degraded_capacity, Health::Degraded),
                };
                if share == 0 && (capacity == 0 || !spares) {
                    continue;
                }
                let of_level = |member: &&u32| {
                    let host = host(member);
                    host.priority as usize == priority && host.health != Health::Excluded
                };
                let level_members: Vec<u32> = members.iter().filter(of_level).copied().collect();
                let fits = |host: &Host| level.panic || host.health == wanted;
                let fit: Vec<u32> = level_members.iter().filter(|member| fits(host(member))).copied().collect();
                let source = Source { inputs, level: &level_members, fit, panic: level.panic, scale };
                let zone = match localities {
                    LocalityBalancing::ZoneAware(zone) => Some(zone),
                    LocalityBalancing::Ignored => inputs.facts.callers().map(|_| ZoneAware::default()),
                    LocalityBalancing::Weighted => None,
                };
                // Zones count in the highest priority only.
                let zone = zone.filter(|_| priority == 0 && availability == Availability::Healthy);
                let mut group = source.group(share, localities, zone, &mut zone_routing);
                (group.priority, group.availability) = (priority as u32, availability);
                if share == 0 { spare.push(group) } else { groups.push(group) }
            }
        }
        let sharing = groups.len();
        groups.append(&mut spare);
        Self { load, zone_routing, groups: groups.into(), sharing }
    }

    pub(super) fn load(&self) -> &PriorityLoad {
        &self.load
    }

    pub(super) fn zone_routing(&self) -> ZoneRouting {
        self.zone_routing
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups[..self.sharing].iter().all(Group::is_empty)
    }

    pub(super) fn placement_stats(&self) -> Option<PlacementStats> {
        self.groups.iter().flat_map(|group| &group.pools).find_map(|pool| match &pool.weights {
            Weights::Placed(placement) => Some(placement.stats()),
            Weights::Equal | Weights::Different { .. } | Weights::Ordered(_) => None,
        })
    }

    /// The group of a priority's hosts that are equally fit. A priority in panic makes no difference between them.
    pub(super) fn group_of(&self, priority: u32, availability: Availability) -> Option<usize> {
        let of = |group: &Group| group.priority == priority && (group.panic || group.availability == availability);
        self.groups.iter().position(of)
    }

    /// The group that a retry is made from.
    pub(super) fn choose_again(&self, attempted: Attempted<'_>, number: &mut impl FnMut() -> u64) -> Option<usize> {
        match attempted.choose(&self.load, number()) {
            Some((level, availability)) => self.group_of(level as u32, availability),
            None => self.choose(number),
        }
    }

    /// The group that the next pick is made from. Asks for a number only if there is a choice.
    pub(super) fn choose(&self, number: &mut impl FnMut() -> u64) -> Option<usize> {
        match &self.groups[..self.sharing] {
            [] => None,
            [_] => Some(0),
            groups => {
                let mut left = (number() % 100) as u32;
                groups.iter().position(|group| {
                    let found = left < group.share;
                    left = left.saturating_sub(group.share);
                    found
                })
            }
        }
    }
}

impl Group {
    /// Of the highest priority and healthy, until told otherwise.
    fn new(share: u32, panic: bool, choice: Choice, pools: Box<[Pool]>) -> Self {
        Self { priority: 0, availability: Availability::Healthy, share, panic, choice, pools }
    }

    /// Whether only retries go there.
    pub(super) fn is_spare(&self) -> bool {
        self.share == 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pools.iter().all(|pool| pool.len() == 0)
    }
}

/// What a group is made of.
struct Source<'a> {
    inputs: &'a Inputs<'a>,
    /// All hosts of the priority.
    level: &'a [u32],
    /// Those of the group.
    fit: Vec<u32>,
    panic: bool,
    scale: Option<&'a [f64]>,
}

impl Source<'_> {
    fn group(
        mut self,
        share: u32,
        localities: LocalityBalancing,
        zone: Option<ZoneAware>,
        routing: &mut ZoneRouting,
    ) -> Group {
        let panic = self.panic;
        let weighted = matches!(localities, LocalityBalancing::Weighted);
        if let LocalityBalancing::ZoneAware(zone) = localities
            && zone.fail_traffic_on_panic
            && panic
        {
            self.fit.clear();
        }
        if self.inputs.balance.policy.placing().is_some() {
            let shares = if weighted { self.shares_by_locality() } else { None };
            let pools = Box::new([self.placed(shares)]);
            return Group::new(share, panic, Choice::Only, pools);
        }
        // In panic nobody knows which localities could take their share.
        if weighted && !panic {
            let weights = locality::effective_weights(self.inputs, self.level, &self.fit, self.scale);
            let taking: Vec<(u32, f64)> = (0..).zip(weights).filter(|(_, weight)| *weight > 0.0).collect();
            if !taking.is_empty() {
                let pools: Box<[Pool]> = taking.iter().map(|(locality, _)| self.pool_of(*locality)).collect();
                let choice = match &*pools {
                    [_] => Choice::Only,
                    _ => Choice::InTurn(locality::whole_weights(taking.iter().map(|(_, weight)| *weight))),
                };
                return Group::new(share, panic, choice, pools);
            }
        }
        if let Some(zone) = zone.filter(|_| !panic) {
            let (found, shares) = locality::zone_shares(&zone, self.inputs, self.level, &self.fit);
            *routing = found;
            if let Some(group) = self.zones(share, &zone, shares) {
                return group;
            }
        }
        let fit = std::mem::take(&mut self.fit);
        Group::new(share, panic, Choice::Only, Box::new([self.pool(fit)]))
    }

    /// Pools by zone, if any of them takes something.
    fn zones(&self, share: u32, zone: &ZoneAware, shares: Vec<ZoneShare>) -> Option<Group> {
        if shares.is_empty() {
            return None;
        }
        let enabled = zone.routing_enabled.value() / 100.0;
        let mut pools: Vec<Pool> = shares.iter().map(|share| self.pool_of(share.locality)).collect();
        let mut parts: Vec<(f64, Zone)> = shares.iter().map(|share| (share.part * enabled, share.zone)).collect();
        if enabled < 1.0 {
            pools.push(self.pool(self.fit.clone()));
            parts.push((1.0 - enabled, Zone::None));
        }
        let mut taking = parts.iter().map(|(part, _)| *part > 0.0);
        pools.retain(|_| taking.next().unwrap_or(false));
        parts.retain(|(part, _)| *part > 0.0);
        let alias = Alias::build(&locality::whole_weights(parts.iter().map(|(part, _)| *part)));
        let kinds = parts.into_iter().map(|(_, zone)| zone).collect();
        Some(Group::new(share, false, Choice::ByZone { alias, kinds }, pools.into()))
    }

    /// The fit hosts of a locality.
    fn pool_of(&self, locality: u32) -> Pool {
        let there = |member: &&u32| self.inputs.facts.locality(HostIndex(**member)) == locality;
        self.pool(self.fit.iter().filter(there).copied().collect())
    }

    fn weight(&self, member: &u32) -> u32 {
        self.inputs.hosts[*member as usize].weight.max(1)
    }

    fn pool(&self, members: Vec<u32>) -> Pool {
        let policy = self.inputs.balance.policy;
        let ignored = matches!(policy, Policy::Reported | Policy::Random | Policy::PickFirst { .. });
        let equal = ignored || members.windows(2).all(|pair| self.weight(&pair[0]) == self.weight(&pair[1]));
        let weights = if policy == (Policy::PickFirst { shuffle: true }) {
            Weights::Ordered(self.shuffled(&members))
        } else if equal {
            Weights::Equal
        } else {
            let weights: Box<[u32]> = members.iter().map(|member| self.weight(member)).collect();
            let alias = self.inputs.balance.policy.draws_by_weight().then(|| Alias::build(&weights));
            Weights::Different { weights, alias }
        };
        let mean_weight = match &weights {
            Weights::Different { weights, alias: _ } => {
                weights.iter().map(|weight| f64::from(*weight)).sum::<f64>() / weights.len().max(1) as f64
            }
            Weights::Equal | Weights::Placed(_) | Weights::Ordered(_) => 1.0,
        };
        Pool { members: Members::new(members), weights, mean_weight }
    }

    /// Positions in an order that is this process's own, and stays when hosts come and go.
    fn shuffled(&self, members: &[u32]) -> Box<[u32]> {
        let facts = self.inputs.facts;
        let seed = facts.seed();
        let rank = |member: &u32| xx_hash_seeded(facts.hash_key(HostIndex(*member), false).as_bytes(), seed);
        let mut order: Vec<(u64, u32)> = members.iter().map(rank).zip(0..).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, position)| position).collect()
    }

    /// Each host's part of the whole where localities have weights; hosts of those without are left out.
    fn shares_by_locality(&self) -> Option<Vec<f64>> {
        let facts = self.inputs.facts;
        let count = facts.localities() as usize;
        let mut sums = vec![0_u64; count];
        let mut present = vec![false; count];
        for member in self.level {
            present[facts.locality(HostIndex(*member)) as usize] = true;
        }
        for member in &self.fit {
            sums[facts.locality(HostIndex(*member)) as usize] += u64::from(self.weight(member));
        }
        let weight = |locality: u32| f64::from(facts.locality_weight(locality));
        let total: f64 = (0..count as u32).filter(|locality| present[*locality as usize]).map(weight).sum();
        let share = |member: &u32| {
            let locality = facts.locality(HostIndex(*member));
            let part = weight(locality) / total;
            f64::from(self.weight(member)) * part / sums[locality as usize] as f64
        };
        (total > 0.0).then(|| self.fit.iter().map(share).collect())
    }

    fn placed(&mut self, shares: Option<Vec<f64>>) -> Pool {
        let total: u64 = self.fit.iter().map(|member| u64::from(self.weight(member))).sum();
        let mut members = std::mem::take(&mut self.fit);
        let mut shares = shares
            .unwrap_or_else(|| members.iter().map(|member| f64::from(self.weight(member)) / total as f64).collect());
        let mut kept = shares.iter().map(|share| *share > 0.0);
        members.retain(|_| kept.next().unwrap_or(false));
        shares.retain(|share| *share > 0.0);
        let (method, consistent) = match self.inputs.balance.policy.placing() {
            Some(placing) => placing,
            None => return self.pool(members),
        };
        let entry = |(member, share): (&u32, f64)| Entry {
            key: self.inputs.facts.hash_key(HostIndex(*member), consistent.use_hostname),
            share,
        };
        let entries: Vec<Entry> = members.iter().zip(shares).map(entry).collect();
        let placement = Placement::build(method, &entries, consistent.balance_factor);
        Pool { members: Members::new(members), weights: Weights::Placed(Box::new(placement)), mean_weight: 1.0 }
    }
}

impl Members {
    fn new(members: Vec<u32>) -> Self {
        // Ascending, so the last one tells whether there are gaps.
        let gapless = members.last().is_none_or(|last| *last as usize + 1 == members.len());
        if gapless { Self::First(members.len() as u32) } else { Self::Some(members.into()) }
    }
}

impl Pool {
    pub(super) fn len(&self) -> u32 {
        match &self.members {
            Members::First(count) => *count,
            Members::Some(list) => list.len() as u32,
        }
    }

    /// The host at a position below [`Pool::len`].
    pub(super) fn host(&self, position: u32) -> HostIndex {
        match &self.members {
            Members::First(_) => HostIndex(position),
            Members::Some(list) => HostIndex(list[position as usize]),
        }
    }

    /// Whether a policy keeps a place in this pool.
    pub(super) fn is_taken_in_turn(&self, policy: Policy) -> bool {
        match policy {
            Policy::RoundRobin | Policy::Reported => true,
            Policy::LeastRequest { .. } => {
                !policy.draws_by_weight() && matches!(self.weights, Weights::Different { .. })
            }
            Policy::PeakEwma(_)
            | Policy::Random
            | Policy::PickFirst { .. }
            | Policy::RingHash { .. }
            | Policy::Maglev { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests;
