//! What balancing asks about the hosts of a cluster.
//!
//! Owns the answers: names, localities, metadata, ages. Never builds hosts, and never picks one.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use outrigger_config::cluster::{
    Assignment, Cluster, LbMetadata, LbValue, Locality, LocalityBalancing, LocalityEndpoints,
};
use outrigger_policy::balance::{self, Callers, Facts, Health, HostIndex};

use super::HostList;
use super::zone::LocalZones;
use crate::upstream::host::Host;

/// Facts about hosts. What the cluster's policy does not ask for is not worked out.
pub struct HostFacts<'a> {
    hosts: &'a [Arc<Host>],
    /// By host.
    localities: Vec<u32>,
    /// By locality.
    weights: Vec<u32>,
    /// By host, in milliseconds of [`now`].
    began: Vec<u64>,
    callers: Option<Callers>,
}

impl<'a> HostFacts<'a> {
    /// About `hosts` of a cluster, which balancing sees as `view`, and which had the hosts `old` until now. `zones` say
    /// where the local cluster is, if zones count.
    pub fn new(
        cluster: &Cluster,
        endpoints: &'a [LocalityEndpoints],
        hosts: &'a [Arc<Host>],
        view: &[balance::Host],
        old: Option<&HostList>,
        zones: Option<Option<&LocalZones>>,
    ) -> Self {
        let mut facts = Self { hosts, localities: Vec::new(), weights: Vec::new(), began: Vec::new(), callers: None };
        if cluster.balancing.locality == LocalityBalancing::Weighted || zones.is_some() {
            let seen = facts.number_localities(endpoints);
            let by_weight = matches!(cluster.balancing.locality, LocalityBalancing::ZoneAware(zone) if zone.by_weight);
            facts.callers = zones.map(|zones| zones.map(|zones| zones.callers(&seen, by_weight)).unwrap_or_default());
        }
        if cluster.balancing.slow_start.is_some() {
            facts.began = ages(hosts, view, old);
        }
        facts
    }

    /// Numbers the localities of all priorities; those of the highest one by number.
    fn number_localities(&mut self, endpoints: &'a [LocalityEndpoints]) -> Vec<Option<&'a Locality>> {
        let mut seen = Vec::new();
        let mut numbers: HashMap<(u32, &Locality), u32> = HashMap::new();
        let weights = &mut self.weights;
        let mut number = |priority: u32, locality: &'a Locality, weight: u32| {
            *numbers.entry((priority, locality)).or_insert_with(|| {
                weights.push(weight);
                seen.push((priority == 0).then_some(locality));
                weights.len() as u32 - 1
            })
        };
        for entry in endpoints {
            number(entry.priority, &entry.locality, entry.weight.unwrap_or(0));
        }
        // Hosts that discovery does not name any more may be in localities that it does not name either.
        self.localities = self.hosts.iter().map(|host| number(host.priority, &host.locality, 0)).collect();
        seen
    }

    fn host(&self, host: HostIndex) -> Option<&'a Arc<Host>> {
        self.hosts.get(host.0 as usize)
    }
}

/// Hosts that were fit before keep their age; 0 for those that are not fit.
fn ages(hosts: &[Arc<Host>], view: &[balance::Host], old: Option<&HostList>) -> Vec<u64> {
    let now = now();
    let balance = old.and_then(|old| old.balance.as_ref());
    let known: HashMap<_, u64> = old
        .iter()
        .flat_map(|old| (0..).zip(&old.hosts))
        .filter_map(|(index, host)| {
            let began = balance?.began(HostIndex(index))?;
            (began > 0).then(|| (Arc::as_ptr(&host.shared), began))
        })
        .collect();
    let age = |(host, seen): (&Arc<Host>, &balance::Host)| match seen.health {
        Health::Healthy => known.get(&Arc::as_ptr(&host.shared)).copied().unwrap_or(now),
        Health::Degraded | Health::Unhealthy | Health::Excluded => 0,
    };
    hosts.iter().zip(view).map(age).collect()
}

impl Facts for HostFacts<'_> {
    fn hash_key(&self, host: HostIndex, use_hostname: bool) -> String {
        let Some(host) = self.host(host) else { return String::new() };
        match host.metadata.as_ref().and_then(|metadata| metadata.get("hash_key")) {
            Some(LbValue::String(key)) if !key.is_empty() => key.to_string(),
            _ if use_hostname && !host.hostname.is_empty() => host.hostname.to_string(),
            _ => host.address.to_string(),
        }
    }

    fn locality(&self, host: HostIndex) -> u32 {
        self.localities.get(host.0 as usize).copied().unwrap_or(0)
    }

    fn localities(&self) -> u32 {
        (self.weights.len() as u32).max(1)
    }

    fn locality_weight(&self, locality: u32) -> u32 {
        self.weights.get(locality as usize).copied().unwrap_or(0)
    }

    fn callers(&self) -> Option<&Callers> {
        self.callers.as_ref()
    }

    fn metadata(&self, host: HostIndex) -> Option<&LbMetadata> {
        self.host(host)?.metadata.as_deref()
    }

    fn address(&self, host: HostIndex) -> String {
        self.host(host).map(|host| host.address.to_string()).unwrap_or_default()
    }

    fn seed(&self) -> u64 {
        static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0_u8));
        *SEED
    }

    fn began(&self, host: HostIndex) -> u64 {
        self.began.get(host.0 as usize).copied().unwrap_or(0)
    }
}

/// Whether what balancing reads of the endpoints, beside the hosts themselves, is the same.
pub fn same_surroundings(old: Option<&Assignment>, new: Option<&Assignment>) -> bool {
    let (Some(old), Some(new)) = (old, new) else { return old.is_none() == new.is_none() };
    let weights = |assignment: &Assignment| {
        let of = |entry: &LocalityEndpoints| (entry.priority, entry.locality.clone(), entry.weight);
        assignment.localities.iter().map(of).collect::<Vec<_>>()
    };
    old.overprovisioning_factor == new.overprovisioning_factor
        && old.weighted_priority_health == new.weighted_priority_health
        && old.drop_overload == new.drop_overload
        && weights(old) == weights(new)
}

/// Milliseconds of the clock that hosts' ages are measured by.
pub fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    // The first host begins above 0, which stands for ages that are not known.
    START.elapsed().as_millis() as u64 + 1
}
