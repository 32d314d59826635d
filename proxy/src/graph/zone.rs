//! Where the proxies like this one are (`cluster_manager.local_cluster_name`), by which others route by zone.
//!
//! Owns the local cluster's hosts by locality. Never routes anything.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_config::cluster::{Cluster, LoadBalancing, Locality, LocalityBalancing};
use outrigger_policy::balance::{Callers, Health};

use super::HostList;
use super::manager::GraphManager;

/// What is known of the local cluster.
#[derive(Default)]
pub(super) struct LocalCluster {
    /// Our own locality.
    own: Locality,
    /// Its name; no zone-aware routing without one.
    name: Option<Arc<str>>,
    /// `None` while it has no fit hosts, or too few of them are.
    zones: Option<LocalZones>,
}

/// The fit hosts of the local cluster, at least one.
#[derive(Debug, PartialEq)]
pub struct LocalZones {
    own: Locality,
    /// Number and weight of the hosts in each locality.
    hosts: Vec<(Arc<Locality>, f64, f64)>,
}

/// Where a node is.
pub(super) fn locality_of(node: &Node) -> Locality {
    let wire = node.locality.clone().unwrap_or_default();
    Locality { region: wire.region, zone: wire.zone, sub_zone: wire.sub_zone }
}

impl LocalCluster {
    /// Nothing is known of its hosts yet.
    pub fn new(own: Locality, name: Option<Arc<str>>) -> Self {
        Self { own, name, zones: None }
    }

    /// Its name, if there is one.
    pub fn name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    /// For routing of `cluster`: `None` if zones do not count there, an empty answer if they would.
    pub fn of(&self, cluster: &Cluster) -> Option<Option<&LocalZones>> {
        let by_zone = matches!(
            cluster.load_balancing,
            LoadBalancing::RoundRobin
                | LoadBalancing::LeastRequest { .. }
                | LoadBalancing::PeakEwma(_)
                | LoadBalancing::Reported
                | LoadBalancing::Random
        ) && cluster.balancing.locality != LocalityBalancing::Weighted;
        let is_another = self.name.as_ref().is_some_and(|name| *name != cluster.name);
        (by_zone && is_another).then_some(self.zones.as_ref())
    }
}

impl LocalZones {
    fn of(own: &Locality, list: &HostList, panic_percent: f64) -> Option<Self> {
        let mut hosts: Vec<(Arc<Locality>, f64, f64)> = Vec::new();
        let mut fit = 0_u32;
        for host in list
            .hosts
            .iter()
            .filter(|host| host.shared.flags.health(host.health) == Health::Healthy && host.priority == 0)
        {
            fit += 1;
            let weight = f64::from(host.weight);
            match hosts.iter_mut().find(|(locality, ..)| **locality == *host.locality) {
                Some((_, number, sum)) => {
                    *number += 1.0;
                    *sum += weight;
                }
                None => hosts.push((Arc::clone(&host.locality), 1.0, weight)),
            }
        }
        let all = list.hosts.iter().filter(|host| host.priority == 0).count() as f64;
        let panics = 100.0 * f64::from(fit) < panic_percent * all;
        (fit > 0 && !panics).then(|| Self { own: own.clone(), hosts })
    }

    /// The same as seen from a cluster with these localities, as far as they are of its highest priority.
    pub fn callers(&self, localities: &[Option<&Locality>], by_weight: bool) -> Callers {
        let value = |(_, number, weight): &(Arc<Locality>, f64, f64)| if by_weight { *weight } else { *number };
        let all: f64 = self.hosts.iter().map(value).sum();
        let share = |locality: &Option<&Locality>| {
            let found = self.hosts.iter().find(|(known, ..)| Some(&**known) == *locality);
            found.map_or(0.0, |found| value(found) / all)
        };
        Callers {
            own: localities.iter().position(|locality| *locality == Some(&self.own)).map(|at| at as u32),
            shares: localities.iter().map(share).collect(),
        }
    }
}

impl GraphManager {
    /// Looks at the hosts of a cluster again; if it is the local one, others may be routed in another way.
    pub(super) fn follow_local_cluster(&mut self, name: &Arc<str>) {
        let local = &mut self.local;
        if local.name.as_ref() != Some(name) {
            return;
        }
        let zones = self.clusters.get(name).and_then(|build| {
            let node = &build.node;
            LocalZones::of(&local.own, &node.hosts, node.config.healthy_panic_threshold.value())
        });
        if zones == local.zones {
            return;
        }
        local.zones = zones;
        let local = &self.local;
        let by_zone = self.clusters.iter().filter(|(_, build)| local.of(&build.node.config).is_some());
        let others: Vec<Arc<str>> = by_zone.map(|(name, _)| Arc::clone(name)).collect();
        for other in others {
            self.rebalance(&other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::hosts::tests::{assignment, cluster};
    use outrigger_config::cluster::Discovery;

    #[test]
    fn callers_are_counted_by_zone() {
        let zone = |zone: &str| Locality { zone: zone.to_owned(), ..Locality::default() };
        let zones = LocalZones {
            own: zone("a"),
            hosts: vec![(Arc::new(zone("a")), 1.0, 6.0), (Arc::new(zone("b")), 3.0, 6.0)],
        };
        let (a, b, c) = (zone("a"), zone("b"), zone("c"));
        let seen = [Some(&b), Some(&a), None, Some(&c)];
        assert_eq!(zones.callers(&seen, false), Callers { own: Some(1), shares: vec![0.75, 0.25, 0.0, 0.0] });
        assert_eq!(zones.callers(&seen, true).shares, [0.5, 0.5, 0.0, 0.0]);
        assert_eq!(zones.callers(&[Some(&c)], false), Callers { own: None, shares: vec![0.0] });
    }

    #[test]
    fn only_clusters_that_choose_freely_are_routed_by_zone() {
        let local = LocalCluster::new(Locality::default(), Some("local".into()));
        let of = |name: &str, locality| {
            let mut config = cluster(name, Discovery::Static(Arc::new(assignment(&[]))));
            config.balancing.locality = locality;
            local.of(&config).is_some()
        };
        assert!(of("c", LocalityBalancing::Ignored));
        assert!(!of("c", LocalityBalancing::Weighted));
        assert!(!of("local", LocalityBalancing::Ignored));
    }
}
