//! The hosts of a cluster as balancing sees them.
//!
//! Owns which hosts may be picked and with what share: one snapshot per change of hosts, weights or health, shared by
//! all workers. Never keeps state that picks change (see `picker`).

use outrigger_config::cluster::LoadBalancing;
use outrigger_config::units::Percent;

use super::alias::Alias;
use super::priority::{Availability, LevelHealth, PriorityLoad};

/// A host's position in the list that a [`HostSet`] was built from.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct HostIndex(pub u32);

/// What checks and discovery say of a host.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Health {
    /// Takes traffic.
    #[default]
    Healthy,
    /// Takes traffic when healthy hosts are not enough.
    Degraded,
    /// Takes traffic in panic only.
    Unhealthy,
    /// Counts for nothing and is never picked.
    Excluded,
}

/// A host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Host {
    /// Its share; 0 counts as 1.
    pub weight: u32,
    /// Whether it is fit.
    pub health: Health,
    /// 0 is the highest.
    pub priority: u32,
}

/// How a host is chosen among its like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// In turn, by weight.
    RoundRobin,
    /// The one with the fewest active requests among `choice_count` random ones; see [`super::Picker`].
    LeastRequest { choice_count: u32, active_request_bias: f64 },
    /// At random, by weight.
    Random,
}

impl Policy {
    /// `None` for clusters that know their hosts without choosing.
    pub fn of(balancing: &LoadBalancing) -> Option<Self> {
        match *balancing {
            LoadBalancing::RoundRobin => Some(Self::RoundRobin),
            LoadBalancing::LeastRequest { choice_count, active_request_bias } => {
                Some(Self::LeastRequest { choice_count, active_request_bias })
            }
            LoadBalancing::Random => Some(Self::Random),
            LoadBalancing::ClusterProvided => None,
        }
    }
}

/// What a cluster says about balancing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BalanceOptions {
    /// How a host is chosen.
    pub policy: Policy,
    /// In percent, usually 140.
    pub overprovisioning_factor: u32,
    /// Share of available hosts under which all are used; 0 for never.
    pub panic_threshold: Percent,
}

/// Hosts, ready to be picked from.
#[derive(Debug)]
pub struct HostSet {
    policy: Policy,
    load: PriorityLoad,
    /// Those that have a share of the traffic.
    groups: Box<[Group]>,
}

/// Hosts that are equally fit.
#[derive(Debug)]
pub(super) struct Group {
    /// Percent of the traffic.
    share: u32,
    pub(super) panic: bool,
    members: Members,
    pub(super) weights: Weights,
}

/// Hosts by position in the group.
#[derive(Debug)]
enum Members {
    /// The first so many hosts of the list: what most clusters are.
    First(u32),
    Some(Box<[u32]>),
}

#[derive(Debug)]
pub(super) enum Weights {
    Equal,
    /// By position in the group.
    Different {
        weights: Box<[u32]>,
        /// For policies that choose at random.
        alias: Option<Alias>,
    },
}

impl HostSet {
    /// Prepares `hosts` for picking.
    pub fn build(hosts: &[Host], options: &BalanceOptions) -> Self {
        let counted = || hosts.iter().filter(|host| host.health != Health::Excluded);
        let levels = counted().map(|host| host.priority as usize + 1).max().unwrap_or(0);
        let mut health = vec![LevelHealth::default(); levels];
        for host in counted() {
            let level = &mut health[host.priority as usize];
            level.total += 1;
            level.healthy += u32::from(host.health == Health::Healthy);
            level.degraded += u32::from(host.health == Health::Degraded);
        }
        let load = PriorityLoad::compute(&health, options.overprovisioning_factor, options.panic_threshold);
        let mut groups = Vec::new();
        for availability in [Availability::Healthy, Availability::Degraded] {
            for (priority, level) in load.levels.iter().enumerate() {
                let (share, wanted) = match availability {
                    Availability::Healthy => (level.healthy, Health::Healthy),
                    Availability::Degraded => (level.degraded, Health::Degraded),
                };
                if share > 0 {
                    let fits = |host: &Host| {
                        host.priority as usize == priority
                            && if level.panic { host.health != Health::Excluded } else { host.health == wanted }
                    };
                    groups.push(Group::build(hosts, fits, share, level.panic, options.policy));
                }
            }
        }
        Self { policy: options.policy, load, groups: groups.into() }
    }

    /// How traffic divides among priorities.
    pub fn load(&self) -> &PriorityLoad {
        &self.load
    }

    /// Whether no host may be picked at all.
    pub fn is_empty(&self) -> bool {
        self.groups.iter().all(|group| group.len() == 0)
    }

    pub(super) fn policy(&self) -> Policy {
        self.policy
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The group that the next pick is made from. Asks for a random number only if there is a choice.
    pub(super) fn choose(&self, random: &mut impl FnMut() -> u64) -> Option<usize> {
        match &*self.groups {
            [] => None,
            [_] => Some(0),
            groups => {
                let mut left = (random() % 100) as u32;
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
    fn build(hosts: &[Host], fits: impl Fn(&Host) -> bool, share: u32, panic: bool, policy: Policy) -> Self {
        let members: Vec<u32> = (0..).zip(hosts).filter(|(_, host)| fits(host)).map(|(index, _)| index).collect();
        let weight = |member: &u32| hosts[*member as usize].weight.max(1);
        let equal = members.windows(2).all(|pair| weight(&pair[0]) == weight(&pair[1]));
        let weights = if equal {
            Weights::Equal
        } else {
            let weights: Box<[u32]> = members.iter().map(weight).collect();
            let alias = policy.draws_by_weight().then(|| Alias::build(&weights));
            Weights::Different { weights, alias }
        };
        // Ascending, so the last one tells whether there are gaps.
        let gapless = members.last().is_none_or(|last| *last as usize + 1 == members.len());
        let members = if gapless { Members::First(members.len() as u32) } else { Members::Some(members.into()) };
        Self { share, panic, members, weights }
    }

    pub(super) fn len(&self) -> u32 {
        match &self.members {
            Members::First(count) => *count,
            Members::Some(list) => list.len() as u32,
        }
    }

    /// The host at a position below [`Group::len`].
    pub(super) fn host(&self, position: u32) -> HostIndex {
        match &self.members {
            Members::First(_) => HostIndex(position),
            Members::Some(list) => HostIndex(list[position as usize]),
        }
    }
}

impl Policy {
    /// Whether hosts of different weight are drawn at random, rather than scheduled.
    pub(super) fn draws_by_weight(self) -> bool {
        match self {
            Self::RoundRobin => false,
            // Without regard to active requests this is round robin, as in Envoy.
            Self::LeastRequest { active_request_bias, .. } => active_request_bias > 0.0,
            Self::Random => true,
        }
    }
}
