//! Which workers there are, which CPUs they run on, and which of them form a group.
//!
//! Owns the CPU policy and its arithmetic. Never reads the system: everything it knows is in the [`Topology`].

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use outrigger_sys::affinity::{CpuId, CpuSet};

use super::cpu_list::format_list;
use super::{Cache, CoreKind, Cpu, Topology, or_dash};

/// Which CPUs to use. The names are those of HAProxy's `cpu-policy`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum CpuPolicy {
    /// The CPUs of the first NUMA node that has usable ones, so that no memory is far away. All usable CPUs instead
    /// if somebody chose already: by affinity, by a number of workers, or by a limit on CPU time. In the last case the
    /// machine is shared, and its neighbours would all crowd on the first node.
    #[default]
    FirstUsableNode,
    /// The fastest kind of cores.
    Performance,
    /// The most economical kind of cores.
    Efficiency,
    /// All usable CPUs.
    None,
}

/// A policy that does not exist.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UnknownCpuPolicy(pub String);

/// Where the workers run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    pub policy: CpuPolicy,
    pub binding: Binding,
    /// Never empty, and no group is.
    pub groups: Vec<Group>,
}

/// How tightly workers are tied to CPUs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Binding {
    /// Each worker to one CPU of its own: every CPU that the policy chose has a worker.
    Cpu,
    /// All workers to all chosen CPUs: there are fewer workers than CPUs, which means that others share them. Tied to
    /// single CPUs, each proxy of the machine would tie itself to the same first ones.
    Shared,
}

/// Workers that are near to each other, so that sharing memory costs them little.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Group {
    /// Counts from 0.
    pub id: u32,
    pub node: Option<u32>,
    pub llc: Option<Cache>,
    pub workers: Vec<WorkerCpu>,
}

/// A worker and its CPU.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkerCpu {
    /// Counts from 0 through all groups.
    pub worker: u32,
    /// The CPU that stands for the worker in this plan.
    pub cpu: CpuId,
    /// What to bind the thread to: that CPU, or more (see [`Binding`]).
    pub bound_to: CpuSet,
}

/// Decides how many workers run, and where.
///
/// - `concurrency`: the number of workers that was asked for. `Some(0)` means one for each chosen CPU. More than the
///   policy chose brings in the other usable CPUs, too; more than are usable is cut to those. `None` means one for each
///   chosen CPU, but no more than `cpu_limit` rounded up.
/// - `cpu_limit`: CPU time that we get, in CPUs ([`Topology::cpu_limit`], unless the user says otherwise).
///
/// Workers take cores before SMT siblings, then the kind of cores that the policy likes, then the CPUs of one group
/// before those of the next.
pub fn plan(topology: &Topology, policy: CpuPolicy, concurrency: Option<u32>, cpu_limit: Option<f64>) -> Plan {
    let cpu_limit = cpu_limit.filter(|limit| limit.is_finite() && *limit > 0.0);
    let mut chosen = choose(topology, policy, concurrency, cpu_limit);
    let wanted = match concurrency {
        Some(0) => chosen.len(),
        // u32 to usize: no platform that we run on has less than 32 bits.
        Some(workers) => workers as usize,
        None => cpu_limit.map_or(chosen.len(), |limit| chosen.len().min(limit.ceil() as usize)),
    };
    let policy_chose = CpuSet::from_iter(chosen.iter().map(|cpu| cpu.id));
    if wanted > chosen.len() {
        chosen = topology.cpus.iter().collect();
    }
    chosen.sort_by_key(|cpu| {
        let left_out = !policy_chose.contains(&cpu.id);
        (left_out, cpu.thread, dislike(cpu.kind, policy), cpu.node, cpu.llc, cpu.id)
    });
    let workers = wanted.clamp(1, chosen.len().max(1));
    let binding = if workers == chosen.len() { Binding::Cpu } else { Binding::Shared };
    let all_chosen: CpuSet = chosen.iter().map(|cpu| cpu.id).collect();
    Plan { policy, binding, groups: group(&chosen[..workers.min(chosen.len())], binding, &all_chosen) }
}

/// The CPUs that the policy leaves, never none of several.
fn choose(topology: &Topology, policy: CpuPolicy, concurrency: Option<u32>, cpu_limit: Option<f64>) -> Vec<&Cpu> {
    let all = || topology.cpus.iter();
    let of_kind = |kind| {
        let chosen: Vec<&Cpu> = all().filter(|cpu| cpu.kind == kind).collect();
        // Without different kinds, there is nothing to choose.
        if chosen.is_empty() { all().collect() } else { chosen }
    };
    match policy {
        CpuPolicy::None => all().collect(),
        CpuPolicy::Performance => of_kind(CoreKind::Performance),
        CpuPolicy::Efficiency => of_kind(CoreKind::Efficiency),
        CpuPolicy::FirstUsableNode => {
            let limited = cpu_limit.is_some_and(|limit| limit < topology.cpus.len() as f64);
            let numbered = concurrency.is_some_and(|workers| workers > 0);
            match all().filter_map(|cpu| cpu.node).min() {
                Some(first) if !(topology.confined || numbered || limited) => {
                    all().filter(|cpu| cpu.node == Some(first)).collect()
                }
                _ => all().collect(),
            }
        }
    }
}

/// Fast cores first, except for the policy that saves them.
fn dislike(kind: CoreKind, policy: CpuPolicy) -> u32 {
    let slowness = match kind {
        CoreKind::Uniform | CoreKind::Performance => 0,
        CoreKind::Middle => 1,
        CoreKind::Efficiency => 2,
    };
    if policy == CpuPolicy::Efficiency { 2 - slowness } else { slowness }
}

/// Groups by node and last-level cache, in their order.
fn group(homes: &[&Cpu], binding: Binding, all_chosen: &CpuSet) -> Vec<Group> {
    let mut members: BTreeMap<(Option<u32>, Option<Cache>), CpuSet> = BTreeMap::new();
    for cpu in homes {
        members.entry((cpu.node, cpu.llc)).or_default().insert(cpu.id);
    }
    let mut numbers = 0..;
    let groups = (0..).zip(members).map(|(id, ((node, llc), cpus))| {
        let workers = cpus.into_iter().zip(numbers.by_ref()).map(|(cpu, worker)| {
            let bound_to = match binding {
                Binding::Cpu => CpuSet::from([cpu]),
                Binding::Shared => all_chosen.clone(),
            };
            WorkerCpu { worker, cpu, bound_to }
        });
        Group { id, node, llc, workers: workers.collect() }
    });
    groups.collect()
}

impl Plan {
    /// All workers, by ascending number.
    pub fn workers(&self) -> impl Iterator<Item = &WorkerCpu> {
        self.groups.iter().flat_map(|group| &group.workers)
    }

    /// How many workers there are. At least 1.
    pub fn concurrency(&self) -> usize {
        self.workers().count()
    }
}

/// The table of groups for `--dump-cpus`; ends with a line break.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let (workers, groups) = (self.concurrency(), self.groups.len());
        write!(f, "policy {}: {workers} worker{} in {groups} group{}, ", self.policy, plural(workers), plural(groups))?;
        match (self.binding, self.workers().next()) {
            (Binding::Shared, Some(worker)) => {
                writeln!(f, "free to run on CPUs {}", format_list(worker.bound_to.iter().map(|cpu| cpu.0)))?;
            }
            _ => writeln!(f, "each bound to its CPU")?,
        }
        let column = |group: &Group, number: fn(&WorkerCpu) -> u32| format_list(group.workers.iter().map(number));
        let rows: Vec<[String; 5]> = std::iter::once(["group", "node", "cache", "workers", "CPUs"].map(str::to_owned))
            .chain(self.groups.iter().map(|group| {
                let (workers, cpus) = (column(group, |worker| worker.worker), column(group, |worker| worker.cpu.0));
                [group.id.to_string(), or_dash(group.node), or_dash(group.llc), workers, cpus]
            }))
            .collect();
        let width = rows.iter().map(|row| row[3].len()).max().unwrap_or(0);
        for [group, node, cache, workers, cpus] in &rows {
            writeln!(f, "{group:>5}  {node:>4}  {cache:>5}  {workers:<width$}  {cpus}")?;
        }
        Ok(())
    }
}

impl fmt::Display for CpuPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            CpuPolicy::FirstUsableNode => "first-usable-node",
            CpuPolicy::Performance => "performance",
            CpuPolicy::Efficiency => "efficiency",
            CpuPolicy::None => "none",
        })
    }
}

impl FromStr for CpuPolicy {
    type Err = UnknownCpuPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownCpuPolicy> {
        [CpuPolicy::FirstUsableNode, CpuPolicy::Performance, CpuPolicy::Efficiency, CpuPolicy::None]
            .into_iter()
            .find(|policy| policy.to_string() == name)
            .ok_or_else(|| UnknownCpuPolicy(name.to_owned()))
    }
}

impl fmt::Display for UnknownCpuPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CPU policy {:?} is none of first-usable-node, performance, efficiency, none", self.0)
    }
}

impl std::error::Error for UnknownCpuPolicy {}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Tree, cpus, eight_cores_with_smt, four_ccx_on_two_nodes, hybrid};
    use super::*;

    /// The CPUs of each group, in the kernel's notation.
    fn shape(plan: &Plan) -> Vec<String> {
        plan.groups.iter().map(|group| format_list(group.workers.iter().map(|worker| worker.cpu.0))).collect()
    }

    #[test]
    fn each_last_level_cache_is_a_group() {
        let plan = plan(&four_ccx_on_two_nodes().read(), CpuPolicy::None, None, None);
        assert_eq!(shape(&plan), ["0-7", "8-15", "16-23", "24-31"]);
        assert_eq!(plan.groups.iter().map(|group| group.node).collect::<Vec<_>>(), [0, 0, 1, 1].map(Some));
        assert_eq!(plan.binding, Binding::Cpu);
        assert!(plan.workers().all(|worker| worker.bound_to == CpuSet::from([worker.cpu])));
        assert!(plan.workers().map(|worker| worker.worker).eq(0..32));
    }

    #[test]
    fn the_first_node_is_enough_by_default() {
        let plan = plan(&four_ccx_on_two_nodes().read(), CpuPolicy::default(), None, None);
        assert_eq!(shape(&plan), ["0-7", "8-15"]);
        assert_eq!(plan.binding, Binding::Cpu);
    }

    #[test]
    fn the_first_node_is_the_first_with_usable_cpus() {
        let topology = four_ccx_on_two_nodes().online("16-31").read();
        assert_eq!(shape(&plan(&topology, CpuPolicy::FirstUsableNode, None, None)), ["16-23", "24-31"]);
    }

    #[test]
    fn a_choice_by_affinity_stands_across_nodes() {
        let topology = Topology::read(four_ccx_on_two_nodes().path(), &cpus("14-17"));
        assert_eq!(shape(&plan(&topology, CpuPolicy::FirstUsableNode, None, None)), ["14-15", "16-17"]);
    }

    #[test]
    fn fewer_workers_fill_one_cache_after_the_other_and_stay_free() {
        let plan = plan(&four_ccx_on_two_nodes().read(), CpuPolicy::FirstUsableNode, Some(10), None);
        assert_eq!(shape(&plan), ["0-7", "8-9"]);
        assert_eq!(plan.binding, Binding::Shared);
        assert!(plan.workers().all(|worker| worker.bound_to == cpus("0-31")));
    }

    #[test]
    fn cores_come_before_smt_siblings() {
        let topology = eight_cores_with_smt().read();
        assert_eq!(shape(&plan(&topology, CpuPolicy::None, Some(8), None)), ["0-7"]);
        assert_eq!(shape(&plan(&topology, CpuPolicy::None, Some(10), None)), ["0-9"]);
        let hybrid = plan(&hybrid().read(), CpuPolicy::None, Some(12), None);
        assert_eq!(shape(&hybrid), ["0,2,4,6,8-15"], "efficiency cores before siblings of performance cores");
    }

    #[test]
    fn performance_and_efficiency_take_their_kind_of_cores() {
        let topology = hybrid().read();
        let performance = plan(&topology, CpuPolicy::Performance, None, None);
        assert_eq!((shape(&performance), performance.binding), (vec!["0-7".to_owned()], Binding::Cpu));
        let efficiency = plan(&topology, CpuPolicy::Efficiency, None, None);
        assert_eq!(shape(&efficiency), ["8-15"]);
        let some = plan(&topology, CpuPolicy::Efficiency, Some(2), None);
        assert_eq!(shape(&some), ["8-9"]);
        assert!(some.workers().all(|worker| worker.bound_to == cpus("8-15")), "free among their kind only");
    }

    #[test]
    fn policies_by_kind_use_everything_where_all_cores_are_alike() {
        let topology = eight_cores_with_smt().read();
        for policy in [CpuPolicy::Performance, CpuPolicy::Efficiency] {
            assert_eq!(shape(&plan(&topology, policy, None, None)), ["0-15"]);
        }
    }

    #[test]
    fn more_workers_than_the_policy_chose_bring_in_the_rest() {
        let topology = hybrid().read();
        assert_eq!(shape(&plan(&topology, CpuPolicy::Efficiency, Some(10), None)), ["0,2,8-15"]);
        let cut = plan(&topology, CpuPolicy::Performance, Some(400), None);
        assert_eq!((cut.concurrency(), cut.binding), (16, Binding::Cpu));
    }

    #[test]
    fn a_cpu_limit_is_rounded_up_and_leaves_workers_free() {
        let topology = four_ccx_on_two_nodes().cpu_time("250000").read();
        let limited = plan(&topology, CpuPolicy::FirstUsableNode, None, topology.cpu_limit);
        assert_eq!((limited.concurrency(), limited.binding), (3, Binding::Shared));
        assert!(limited.workers().all(|worker| worker.bound_to == cpus("0-31")), "not all on the first node");
        let little = plan(&topology, CpuPolicy::None, None, Some(0.1));
        assert_eq!(little.concurrency(), 1);
        let none = plan(&topology, CpuPolicy::None, None, Some(f64::NAN));
        assert_eq!(none.concurrency(), 32);
    }

    #[test]
    fn an_explicit_number_beats_the_cpu_limit() {
        let topology = four_ccx_on_two_nodes().read();
        assert_eq!(plan(&topology, CpuPolicy::None, Some(5), Some(2.5)).concurrency(), 5);
        assert_eq!(plan(&topology, CpuPolicy::None, Some(0), Some(2.5)).concurrency(), 32);
    }

    #[test]
    fn a_container_without_cache_information_is_one_group() {
        let topology = Topology::read(Tree::new().path(), &cpus("0-3"));
        let plan = plan(&topology, CpuPolicy::FirstUsableNode, None, None);
        assert_eq!(shape(&plan), ["0-3"]);
        assert_eq!((plan.groups[0].node, plan.groups[0].llc), (None, None));
    }

    #[test]
    fn a_single_cpu_gets_a_single_worker() {
        let topology = Topology::read(Tree::new().path(), &cpus("0"));
        for concurrency in [None, Some(0), Some(1), Some(8)] {
            let plan = plan(&topology, CpuPolicy::FirstUsableNode, concurrency, Some(0.5));
            assert_eq!((shape(&plan), plan.binding), (vec!["0".to_owned()], Binding::Cpu));
        }
    }

    #[test]
    fn the_dump_can_be_read_by_a_person() {
        let topology = four_ccx_on_two_nodes().read();
        let bound = plan(&topology, CpuPolicy::FirstUsableNode, None, None).to_string();
        let expected = "\
policy first-usable-node: 16 workers in 2 groups, each bound to its CPU
group  node  cache  workers  CPUs
    0     0   L3#0  0-7      0-7
    1     0   L3#1  8-15     8-15
";
        assert_eq!(bound, expected);
        let free = plan(&topology, CpuPolicy::None, Some(1), None).to_string();
        assert!(free.starts_with("policy none: 1 worker in 1 group, free to run on CPUs 0-31\n"), "{free}");
    }

    #[test]
    fn policies_are_known_by_their_names() {
        for name in ["first-usable-node", "performance", "efficiency", "none"] {
            assert_eq!(name.parse::<CpuPolicy>().unwrap().to_string(), name);
        }
        let error = "fast".parse::<CpuPolicy>().unwrap_err();
        assert!(error.to_string().starts_with("CPU policy \"fast\" is none of"), "{error}");
    }
}
