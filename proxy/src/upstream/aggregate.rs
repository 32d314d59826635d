//! Aggregate clusters: the endpoints of other clusters, one cluster after the other.
//!
//! Owns the priorities of all member clusters as one list, and the choice among them. The member that is chosen then
//! picks an endpoint of that priority, and its settings, limits and stats hold for what follows. Never picks endpoints
//! itself.

use std::sync::Arc;

use outrigger_config::units::Percent;
use outrigger_policy::balance::{Attempted, Availability, LevelHealth, PriorityLoad};

use crate::graph::{ClusterNode, Graph, HostList, levels};

/// The priorities of the members, as of one generation of the graph.
#[derive(Default)]
pub struct Aggregate {
    generation: u64,
    members: Vec<Arc<ClusterNode>>,
    levels: Vec<Level>,
    load: PriorityLoad,
}

struct Level {
    /// Its place among `members`.
    member: usize,
    priority: u32,
    health: LevelHealth,
    overprovisioning_factor: u32,
}

/// Whose turn it is.
pub struct Choice {
    /// The member cluster.
    pub member: Arc<ClusterNode>,
    /// Its priority, and which of its hosts there.
    pub level: (u32, Availability),
}

impl Aggregate {
    /// Brings the list up to date. Members that are not in the graph, or have no endpoints, are passed over.
    pub fn follow(&mut self, graph: &Graph, names: &[Arc<str>], panic_threshold: Percent) {
        if self.generation == graph.generation && !self.levels.is_empty() {
            return;
        }
        self.generation = graph.generation;
        let members: Vec<_> = names.iter().filter_map(|name| graph.clusters.get(name).cloned()).collect();
        let same = |(old, new): (&Arc<ClusterNode>, &Arc<ClusterNode>)| {
            Arc::ptr_eq(&old.hosts, &new.hosts) && old.config.name == new.config.name
        };
        let unchanged = members.len() == self.members.len() && self.members.iter().zip(&members).all(same);
        self.members = members;
        if unchanged {
            return;
        }
        let of_member = |(member, node): (usize, &Arc<ClusterNode>)| {
            let factor = overprovisioning_factor(&node.hosts);
            let levels = levels(&node.hosts).into_iter();
            levels.map(move |(priority, health)| Level { member, priority, health, overprovisioning_factor: factor })
        };
        self.levels = self.members.iter().enumerate().flat_map(of_member).collect();
        let health: Vec<LevelHealth> = self.levels.iter().map(|level| level.health).collect();
        let factor = |at: usize| self.levels[at].overprovisioning_factor;
        self.load = PriorityLoad::compute_by(&health, &health, factor, panic_threshold);
    }

    /// The member and the priority that an evenly distributed `random` falls on; `None` if no member has endpoints. A retry
    /// may pass over those that were `attempted`.
    pub fn choose(&self, random: u64, attempted: Option<Attempted<'_>>) -> Option<Choice> {
        let again = attempted.and_then(|attempted| attempted.choose(&self.load, random));
        let (at, availability) = again.or_else(|| self.load.choose(random))?;
        let level = self.levels.get(at)?;
        let member = Arc::clone(self.members.get(level.member)?);
        Some(Choice { member, level: (level.priority, availability) })
    }
}

impl Aggregate {
    /// The place of a member's priority in the list of all.
    pub fn level_of(&self, member: &str, priority: u32) -> Option<u32> {
        let is_it = |level: &Level| level.priority == priority && &*self.members[level.member].config.name == member;
        self.levels.iter().position(is_it).map(|at| at as u32)
    }
}

fn overprovisioning_factor(hosts: &HostList) -> u32 {
    // Members that know their hosts without choosing have none here either.
    hosts.balance.as_ref().map_or(140, |balance| balance.overprovisioning_factor())
}
