//! The hosts of a cluster as balancing sees them.
//!
//! Owns what a snapshot is made from: one per change of hosts, weights or health, shared by all workers. Never keeps
//! state that picks change (see `picker`).

use std::sync::Arc;

use outrigger_config::cluster::{
    BalancingOptions, Consistent, HashFunction, LbMetadata, LoadBalancing, PeakEwma, ReportOptions,
};
use outrigger_config::units::Percent;

use super::hashing::xx_hash_seeded;
use super::locality::ZoneRouting;
use super::placement::{Method, PlacementStats};
use super::pools::Pools;
use super::priority::PriorityLoad;
use super::slow_start::Ramp;
use super::subset::Subsets;
use crate::hash::ConfigMap;

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

/// What only some policies want to know of hosts. Each has an answer for hosts of which nothing is known.
pub trait Facts {
    /// What stands for a host where hosts are placed by hash: the `hash_key` of its metadata, or else its name or its
    /// address.
    fn hash_key(&self, host: HostIndex, use_hostname: bool) -> String {
        let _ = use_hostname;
        host.0.to_string()
    }

    /// The locality of a host, as a number below [`Facts::localities`]. The same place in another priority is another
    /// locality.
    fn locality(&self, host: HostIndex) -> u32 {
        let _ = host;
        0
    }

    /// How many localities there are.
    fn localities(&self) -> u32 {
        1
    }

    /// The share of a locality among those of its priority; 0 takes no traffic.
    fn locality_weight(&self, locality: u32) -> u32 {
        let _ = locality;
        0
    }

    /// What requests call a host that they name: its address.
    fn address(&self, host: HostIndex) -> String {
        host.0.to_string()
    }

    /// What makes this process choose other hosts than others, where each should.
    fn seed(&self) -> u64 {
        0
    }

    /// Where the callers of this cluster are, if that is known.
    fn callers(&self) -> Option<&Callers> {
        None
    }

    /// What the host says of itself.
    fn metadata(&self, host: HostIndex) -> Option<&LbMetadata> {
        let _ = host;
        None
    }

    /// When the host became fit, in milliseconds of the clock that picks are made by.
    fn began(&self, host: HostIndex) -> u64 {
        let _ = host;
        0
    }
}

/// Where the hosts are that call a cluster, of which we are one (the local cluster of the bootstrap).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Callers {
    /// Our own locality among those of the highest priority; `None` if the cluster has no hosts there.
    pub own: Option<u32>,
    /// By locality: the part of all callers that are there.
    pub shares: Vec<f64>,
}

/// Nothing is known.
pub(super) struct NoFacts;

impl Facts for NoFacts {}

/// How a host is chosen among its like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// In turn, by weight.
    RoundRobin,
    /// The one with the fewest active requests among `choice_count` random ones; see [`super::Picker`].
    LeastRequest { choice_count: u32, active_request_bias: f64 },
    /// The one of lowest cost among some random ones; see [`super::Picker`].
    PeakEwma(PeakEwma),
    /// In turn, by the weights that hosts report.
    Reported,
    /// At random, whatever the weights, as in Envoy.
    Random,
    /// The first in the order of the list, or in an order of this process.
    PickFirst { shuffle: bool },
    /// By the request's hash, on a ring of `minimum_size` to `maximum_size` places.
    RingHash { function: HashFunction, minimum_size: u32, maximum_size: u32, consistent: Consistent },
    /// By the request's hash, in a table of `table_size` places.
    Maglev { table_size: u32, consistent: Consistent },
}

impl Policy {
    /// `None` for clusters that know their hosts without choosing.
    pub fn of(balancing: &LoadBalancing) -> Option<Self> {
        match *balancing {
            LoadBalancing::RoundRobin => Some(Self::RoundRobin),
            LoadBalancing::LeastRequest { choice_count, active_request_bias } => {
                Some(Self::LeastRequest { choice_count, active_request_bias })
            }
            LoadBalancing::PeakEwma(options) => Some(Self::PeakEwma(options)),
            LoadBalancing::Reported => Some(Self::Reported),
            LoadBalancing::Random => Some(Self::Random),
            LoadBalancing::PickFirst { shuffle } => Some(Self::PickFirst { shuffle }),
            LoadBalancing::RingHash { function, minimum_size, maximum_size, consistent } => {
                Some(Self::RingHash { function, minimum_size, maximum_size, consistent })
            }
            LoadBalancing::Maglev { table_size, consistent } => Some(Self::Maglev { table_size, consistent }),
            LoadBalancing::ClusterProvided => None,
        }
    }

    /// How hosts are placed, if they are chosen by hash.
    pub(super) fn placing(self) -> Option<(Method, Consistent)> {
        match self {
            Self::RingHash { function, minimum_size, maximum_size, consistent } => {
                Some((Method::Ring { function, minimum_size, maximum_size }, consistent))
            }
            Self::Maglev { table_size, consistent } => Some((Method::Table { size: table_size }, consistent)),
            Self::RoundRobin
            | Self::LeastRequest { .. }
            | Self::PeakEwma(_)
            | Self::Reported
            | Self::Random
            | Self::PickFirst { .. } => None,
        }
    }

    /// Whether hosts of different weight are drawn at random, rather than scheduled.
    pub(super) fn draws_by_weight(self) -> bool {
        match self {
            Self::RoundRobin
            | Self::Reported
            | Self::Random
            | Self::PickFirst { .. }
            | Self::RingHash { .. }
            | Self::Maglev { .. } => false,
            // Without regard to active requests this is round robin, as in Envoy.
            Self::LeastRequest { active_request_bias, .. } => active_request_bias > 0.0,
            Self::PeakEwma(_) => true,
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
    /// What a priority can take follows from the weights of its hosts, instead of their number.
    pub weighted_priority_health: bool,
}

/// What a [`HostSet`] is built from.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// All hosts.
    pub hosts: &'a [Host],
    /// How one is chosen.
    pub balance: BalanceOptions,
    /// What surrounds that choice.
    pub options: &'a BalancingOptions,
    /// What only some policies ask for.
    pub facts: &'a dyn Facts,
}

/// Hosts, ready to be picked from.
#[derive(Debug)]
pub struct HostSet {
    policy: Policy,
    overprovisioning_factor: u32,
    pub(super) pools: Pools,
    pub(super) subsets: Option<Box<Subsets>>,
    pub(super) ramp: Option<Box<Ramp>>,
    pub(super) reports: Option<Arc<ReportOptions>>,
    /// Where requests may name hosts.
    by_address: Option<Box<ConfigMap<Box<str>, HostIndex>>>,
}

impl HostSet {
    /// Prepares `hosts` for picking by a policy that needs to know no more of them.
    pub fn build(hosts: &[Host], options: &BalanceOptions) -> Self {
        Self::build_with(&Inputs { hosts, balance: *options, options: &BalancingOptions::default(), facts: &NoFacts })
    }

    /// Prepares hosts for picking.
    pub fn build_with(inputs: &Inputs<'_>) -> Self {
        let all: Vec<u32> = match inputs.options.subset_size {
            None => (0..inputs.hosts.len() as u32).collect(),
            Some(size) => own_subset(inputs, size as usize),
        };
        let named = inputs.options.override_hosts.is_some();
        let by_address = || {
            let index = (0..inputs.hosts.len() as u32).map(HostIndex);
            Box::new(index.map(|host| (inputs.facts.address(host).into(), host)).collect())
        };
        Self {
            policy: inputs.balance.policy,
            overprovisioning_factor: inputs.balance.overprovisioning_factor,
            pools: Pools::build(inputs, &all, inputs.options.locality, None),
            subsets: inputs.options.subsets.as_ref().map(|options| Box::new(Subsets::build(options, inputs, &all))),
            ramp: Ramp::build(inputs).map(Box::new),
            reports: inputs.options.reports.clone(),
            by_address: named.then(by_address),
        }
    }

    /// The host with this address, whatever its health, where requests may name hosts.
    pub fn find(&self, address: &str) -> Option<HostIndex> {
        self.by_address.as_ref()?.get(address).copied()
    }

    /// How traffic divides among priorities, apart from subsets.
    pub fn load(&self) -> &PriorityLoad {
        self.pools.load()
    }

    /// In percent, usually 140.
    pub fn overprovisioning_factor(&self) -> u32 {
        self.overprovisioning_factor
    }

    /// Whether no host may be picked at all.
    pub fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    /// Whether picks should bring the hash of their request.
    pub fn wants_hash(&self) -> bool {
        self.policy.placing().is_some()
    }

    /// Whether picks should bring what their request says of the hosts it wants.
    pub fn wants_metadata(&self) -> bool {
        self.subsets.is_some()
    }

    /// Whether picks should bring the time.
    pub fn wants_time(&self) -> bool {
        self.ramp.is_some() || matches!(self.policy, Policy::PeakEwma(_) | Policy::Reported | Policy::PickFirst { .. })
    }

    /// The part of its share that a host gets; 1 unless it is in slow start. `now` as in [`Wanted::now`].
    ///
    /// [`Wanted::now`]: super::Wanted::now
    pub fn slow_start_part(&self, host: HostIndex, now: u64) -> f64 {
        self.ramp.as_ref().filter(|ramp| ramp.lasts(now)).map_or(1.0, |ramp| ramp.part(host, now))
    }

    /// When a host became fit, if there is slow start.
    pub fn began(&self, host: HostIndex) -> Option<u64> {
        self.ramp.as_ref()?.began(host)
    }

    /// How zone-aware routing came out, apart from subsets.
    pub fn zone_routing(&self) -> ZoneRouting {
        self.pools.zone_routing()
    }

    /// How many subsets there are, and how many hosts share a subset that is meant for one.
    pub fn subset_counts(&self) -> (usize, usize) {
        self.subsets.as_ref().map_or((0, 0), |subsets| subsets.counts())
    }

    /// Places of the highest priority, if hosts are chosen by hash.
    pub fn placement_stats(&self) -> Option<PlacementStats> {
        self.pools.placement_stats()
    }

    /// How hosts are chosen.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// How hosts report their weights, if they do.
    pub fn reports(&self) -> Option<&ReportOptions> {
        self.reports.as_deref()
    }
}

/// `size` hosts of each priority, others for each process: those whose hashes with its seed are the least. A host that
/// comes or goes changes one host of a subset at most.
fn own_subset(inputs: &Inputs<'_>, size: usize) -> Vec<u32> {
    let seed = inputs.facts.seed();
    let mut ranked: Vec<(u32, u64, u32)> = (0..)
        .zip(inputs.hosts)
        .map(|(member, host)| {
            let key = inputs.facts.hash_key(HostIndex(member), false);
            (host.priority, xx_hash_seeded(key.as_bytes(), seed), member)
        })
        .collect();
    ranked.sort_unstable();
    let of_priority = ranked.chunk_by(|a, b| a.0 == b.0);
    let mut members: Vec<u32> = of_priority.flat_map(|hosts| hosts.iter().take(size).map(|host| host.2)).collect();
    members.sort_unstable();
    members
}
