//! How traffic of a priority divides among localities: by their weights (`locality_weighted_lb_config`), or so that it
//! stays in its own zone as far as all zones get their share (`zone_aware_lb_config`).
//!
//! Owns the arithmetic. Never knows where a locality is.

use outrigger_config::cluster::ZoneAware;

use super::hosts::{Callers, HostIndex, Inputs};

/// The weight of each locality: what it was given, times the share of it that its fit hosts can take. A locality takes
/// all of its share as long as its fit hosts, times the overprovisioning factor, make up for those that are not fit.
///
/// `level` are all hosts of the priority, and `fit` those that may be picked.
pub(super) fn effective_weights(inputs: &Inputs<'_>, level: &[u32], fit: &[u32], scale: Option<&[f64]>) -> Vec<f64> {
    let (all, fit) = (sums(inputs, level, |_| 1), sums(inputs, fit, |_| 1));
    let factor = f64::from(inputs.balance.overprovisioning_factor) / 100.0;
    let weight = |locality: usize| {
        if all[locality] == 0 {
            return 0.0;
        }
        let able = (factor * fit[locality] as f64 / all[locality] as f64).min(1.0);
        let scale = scale.map_or(1.0, |scale| scale[locality]);
        f64::from(inputs.facts.locality_weight(locality as u32)) * scale * able
    };
    (0..all.len()).map(weight).collect()
}

/// Adds up the hosts of each locality.
fn sums(inputs: &Inputs<'_>, members: &[u32], value: impl Fn(u32) -> u32) -> Vec<u64> {
    let mut sums = vec![0; inputs.facts.localities() as usize];
    for member in members {
        sums[inputs.facts.locality(HostIndex(*member)) as usize] += u64::from(value(*member));
    }
    sums
}

/// Where a pick stands that was made by zone.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Zone {
    /// Zones did not count.
    #[default]
    None,
    /// In the own zone, to which all go.
    Direct,
    /// In the own zone, to which some go.
    Sampled,
    /// In another zone.
    Cross,
    /// In a random zone, since none has room.
    NoCapacity,
}

/// How zone-aware routing came out.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum ZoneRouting {
    /// It was not asked for, or there is only one zone.
    #[default]
    Off,
    /// Nothing is known of the callers, or the cluster has no hosts in our zone.
    LocalClusterNotOk,
    /// The cluster has too few hosts.
    ClusterTooSmall,
    /// Traffic is routed by zone.
    On,
}

/// A locality and the part of all requests that goes there.
pub(super) struct ZoneShare {
    pub locality: u32,
    pub part: f64,
    pub zone: Zone,
}

/// How requests divide among the localities of the highest priority. Callers of our zone that have more than their
/// share of hosts there stay in the zone; otherwise only as many stay as the zone has room for, and the others go where
/// there are more hosts than callers.
pub(super) fn zone_shares(
    zone: &ZoneAware,
    inputs: &Inputs<'_>,
    level: &[u32],
    fit: &[u32],
) -> (ZoneRouting, Vec<ZoneShare>) {
    let present: Vec<u32> = (0..).zip(sums(inputs, level, |_| 1)).filter(|(_, n)| *n > 0).map(|(l, _)| l).collect();
    let Some(callers) = inputs.facts.callers() else { return (ZoneRouting::Off, Vec::new()) };
    if present.len() < 2 {
        return (ZoneRouting::Off, Vec::new());
    }
    let own = match callers {
        Callers { own: Some(own), shares } if !shares.is_empty() && present.contains(own) => *own,
        _ => return (ZoneRouting::LocalClusterNotOk, Vec::new()),
    };
    if (fit.len() as u64) < zone.min_cluster_size {
        return (ZoneRouting::ClusterTooSmall, Vec::new());
    }
    let hosts = sums(inputs, fit, |_| 1);
    let direct = vec![ZoneShare { locality: own, part: 1.0, zone: Zone::Direct }];
    if zone.force_local_zone.is_some_and(|least| hosts[own as usize] >= u64::from(least.max(1))) {
        return (ZoneRouting::On, direct);
    }
    let room = if zone.by_weight { sums(inputs, fit, |host| inputs.hosts[host as usize].weight.max(1)) } else { hosts };
    let total = room.iter().sum::<u64>() as f64;
    let room = |locality: u32| room[locality as usize] as f64 / total;
    let called = |locality: u32| callers.shares.get(locality as usize).copied().unwrap_or(0.0);
    if room(own) > 0.0 && room(own) >= called(own) {
        return (ZoneRouting::On, direct);
    }
    let stays = if room(own) > 0.0 { room(own) / called(own) } else { 0.0 };
    let left = |locality: &u32| if *locality == own { 0.0 } else { (room(*locality) - called(*locality)).max(0.0) };
    let all_left: f64 = present.iter().map(left).sum();
    let mut shares = vec![ZoneShare { locality: own, part: stays, zone: Zone::Sampled }];
    shares.extend(present.iter().map(|locality| {
        let (part, zone) = if all_left > 0.0 {
            (left(locality) / all_left, Zone::Cross)
        } else {
            (1.0 / present.len() as f64, Zone::NoCapacity)
        };
        ZoneShare { locality: *locality, part: (1.0 - stays) * part, zone }
    }));
    (ZoneRouting::On, shares)
}

/// The same proportions in whole numbers above zero.
pub(super) fn whole_weights(weights: impl Iterator<Item = f64> + Clone) -> Box<[u32]> {
    const GREATEST: f64 = 1_000_000.0;
    let greatest = weights.clone().fold(0.0, f64::max);
    weights.map(|weight| (weight / greatest * GREATEST).round().max(1.0) as u32).collect()
}
