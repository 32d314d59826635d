//! What stats tell of single picks: subsets and zones.
//!
//! Owns one worker's counters of a cluster, which there are only once there is something to count. Never picks.

use std::cell::OnceCell;
use std::sync::Arc;

use outrigger_policy::balance::{Pick, Via, Zone};

use crate::scope;
use crate::stats::Registry;

scope! {
    /// What subsets add to `cluster.<name>.*`.
    pub struct SubsetStats {
        lb_subsets_fallback: Counter,
        lb_subsets_fallback_panic: Counter,
        lb_subsets_selected: Counter,
    }
}

scope! {
    /// What zone-aware routing adds to `cluster.<name>.*`.
    pub struct ZoneStats {
        lb_zone_no_capacity_left: Counter,
        lb_zone_routing_all_directly: Counter,
        lb_zone_routing_cross_zone: Counter,
        lb_zone_routing_sampled: Counter,
    }
}

/// One worker's counters of a cluster.
#[derive(Default)]
pub struct ChoiceStats {
    subsets: OnceCell<Arc<SubsetStats>>,
    zones: OnceCell<Arc<ZoneStats>>,
}

impl ChoiceStats {
    /// Counts a pick. `prefix` is the cluster's.
    pub fn count(&self, pick: &Pick, registry: &Registry, prefix: impl Fn() -> String) {
        if pick.via != Via::Plain {
            let stats = self.subsets.get_or_init(|| registry.scope(&prefix()));
            match pick.via {
                Via::Plain => {}
                Via::Subset => stats.lb_subsets_selected.increment(),
                Via::Fallback => stats.lb_subsets_fallback.increment(),
                Via::Panic => stats.lb_subsets_fallback_panic.increment(),
            }
        }
        if pick.zone != Zone::None {
            let stats = self.zones.get_or_init(|| registry.scope(&prefix()));
            match pick.zone {
                Zone::None => {}
                Zone::Direct => stats.lb_zone_routing_all_directly.increment(),
                Zone::Sampled => stats.lb_zone_routing_sampled.increment(),
                Zone::Cross => stats.lb_zone_routing_cross_zone.increment(),
                Zone::NoCapacity => {
                    stats.lb_zone_routing_cross_zone.increment();
                    stats.lb_zone_no_capacity_left.increment();
                }
            }
        }
    }
}
