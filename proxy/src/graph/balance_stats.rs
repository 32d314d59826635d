//! What stats show of how hosts are chosen: the places of consistent policies and the subsets.
//!
//! Owns the gauges of one cluster, which there are only if its policy has something to show. Never chooses anything.

use std::sync::Arc;

use outrigger_config::cluster::{Cluster, LoadBalancing};
use outrigger_policy::balance::{HostSet, ZoneRouting};

use crate::scope;
use crate::stats::{Registry, names};

scope! {
    /// `cluster.<name>.ring_hash_lb.*`
    pub struct RingStats {
        max_hashes_per_host: Gauge,
        min_hashes_per_host: Gauge,
        size: Gauge,
    }
}

scope! {
    /// `cluster.<name>.maglev_lb.*`
    pub struct TableStats {
        max_entries_per_host: Gauge,
        min_entries_per_host: Gauge,
    }
}

scope! {
    /// The control thread's part of what subsets add to `cluster.<name>.*`.
    pub struct SubsetControlStats {
        lb_subsets_active: Gauge,
        lb_subsets_created: Counter,
        lb_subsets_removed: Counter,
        lb_subsets_single_host_per_subset_duplicate: Gauge,
    }
}

scope! {
    /// The control thread's part of what zone-aware routing adds to `cluster.<name>.*`.
    pub struct ZoneControlStats {
        lb_local_cluster_not_ok: Counter,
        lb_recalculate_zone_structures: Counter,
        lb_zone_cluster_too_small: Counter,
    }
}

/// The stats of a cluster whose policy has any.
#[derive(Default)]
pub(super) struct BalanceStats {
    zones: Option<Arc<ZoneControlStats>>,
    ring: Option<Arc<RingStats>>,
    table: Option<Arc<TableStats>>,
    subsets: Option<Arc<SubsetControlStats>>,
}

impl BalanceStats {
    /// Those that `config` asks for; `None` if there is nothing to show, as for most clusters.
    pub fn of(config: &Cluster, by_zone: bool, registry: &Registry) -> Option<Self> {
        let prefix = || names::prefix("cluster", &config.stat_name);
        let mut stats = Self::default();
        match config.load_balancing {
            LoadBalancing::RingHash { .. } => {
                stats.ring = Some(registry.scope(&format!("{}ring_hash_lb.", prefix())));
            }
            LoadBalancing::Maglev { .. } => stats.table = Some(registry.scope(&format!("{}maglev_lb.", prefix()))),
            _ => {}
        }
        stats.zones = by_zone.then(|| registry.scope(&prefix()));
        stats.subsets = config.balancing.subsets.as_ref().map(|_| registry.scope(&prefix()));
        let Self { zones, ring, table, subsets } = &stats;
        let any = zones.is_some() || ring.is_some() || table.is_some() || subsets.is_some();
        any.then_some(stats)
    }

    /// Shows how hosts are chosen now.
    pub fn show(&self, set: &HostSet) {
        let places = set.placement_stats().unwrap_or_default();
        if let Some(ring) = &self.ring {
            ring.size.set(i64::from(places.size));
            ring.min_hashes_per_host.set(i64::from(places.min_per_host));
            ring.max_hashes_per_host.set(i64::from(places.max_per_host));
        }
        if let Some(table) = &self.table {
            table.min_entries_per_host.set(i64::from(places.min_per_host));
            table.max_entries_per_host.set(i64::from(places.max_per_host));
        }
        if let Some(stats) = &self.zones {
            match set.zone_routing() {
                ZoneRouting::Off => {}
                ZoneRouting::LocalClusterNotOk => stats.lb_local_cluster_not_ok.increment(),
                ZoneRouting::ClusterTooSmall => stats.lb_zone_cluster_too_small.increment(),
                ZoneRouting::On => stats.lb_recalculate_zone_structures.increment(),
            }
        }
        if let Some(stats) = &self.subsets {
            let (subsets, duplicates) = set.subset_counts();
            let (now, before) = (subsets as i64, stats.lb_subsets_active.value());
            stats.lb_subsets_created.add(u64::try_from(now - before).unwrap_or(0));
            stats.lb_subsets_removed.add(u64::try_from(before - now).unwrap_or(0));
            stats.lb_subsets_active.set(now);
            stats.lb_subsets_single_host_per_subset_duplicate.set(duplicates as i64);
        }
    }
}
