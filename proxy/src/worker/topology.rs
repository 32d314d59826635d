//! The CPUs of this machine that we may use, and how they belong together.
//!
//! Owns reading sysfs and the control groups into plain values, and (in [`plan`]) the decision which workers run where.
//! Never starts a thread or binds one.

pub(crate) mod cgroup;
mod cpu_list;
#[cfg(test)]
pub(crate) mod fixture;
mod plan;

use std::collections::BTreeMap;
use std::path::Path;
use std::{fmt, fs};

use outrigger_sys::affinity::{CpuId, CpuSet};

use self::cpu_list::parse_cpu_list;
pub use self::plan::{Binding, CpuPolicy, Group, Plan, UnknownCpuPolicy, WorkerCpu, plan};

/// The usable CPUs and what they share.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// Usable CPUs, ascending and never empty: online, in the cpuset, and allowed to this process.
    pub cpus: Vec<Cpu>,
    /// Somebody left us fewer CPUs than are online (`taskset`, a cpuset): the choice is made already.
    pub confined: bool,
    /// CPU time that the control groups grant, in CPUs; `None` is no limit.
    pub cpu_limit: Option<f64>,
}

/// One logical CPU. What sysfs does not tell (in many containers, most of it) is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cpu {
    pub id: CpuId,
    /// Physical package (socket).
    pub package: Option<u32>,
    /// NUMA node.
    pub node: Option<u32>,
    /// The last-level cache that this CPU shares with other cores.
    pub llc: Option<Cache>,
    /// The core it is a hardware thread of, named by the core's first CPU.
    pub core: CpuId,
    /// Its number among the usable threads of that core; SMT siblings of the first have 1 and above.
    pub thread: u32,
    pub kind: CoreKind,
    /// Speed relative to the fastest CPU, which has 1024.
    pub capacity: Option<u32>,
    /// Highest clock, in kHz.
    pub max_khz: Option<u32>,
}

/// A cache that several cores share. Numbers count the caches in use from 0, in the order of their first CPU.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Cache {
    pub number: u32,
    pub level: u32,
}

/// How fast a core is beside the other usable cores of the machine.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum CoreKind {
    /// All are about as fast.
    Uniform,
    /// The fastest of several kinds ("P", "big").
    Performance,
    /// Neither the fastest nor the slowest.
    Middle,
    /// The slowest of several kinds ("E", "little").
    Efficiency,
}

impl Topology {
    /// Reads `sys` and `proc` under `root` (`/`, except in tests). `allowed` is the affinity of the process.
    ///
    /// Never fails: what cannot be read is taken as not there, and with nothing readable all of `allowed` are equal.
    pub fn read(root: &Path, allowed: &CpuSet) -> Self {
        let system = root.join("sys/devices/system");
        let online = read_list(&system.join("cpu/online")).filter(|cpus| !cpus.is_empty());
        let limits = cgroup::read(root);
        let usable = usable(allowed, online.as_ref(), limits.cpus.as_ref());
        let nodes = read_nodes(&system.join("node"));
        let mut caches = BTreeMap::new();
        let mut cpus: Vec<Cpu> = usable
            .iter()
            .map(|id| read_cpu(&system.join(format!("cpu/cpu{id}")), *id, nodes.get(id).copied(), &mut caches))
            .collect();
        number_caches(&mut cpus, &caches);
        number_threads(&mut cpus);
        let performance = read_list(&root.join("sys/devices/cpu_core/cpus")).unwrap_or_default();
        let efficiency = read_list(&root.join("sys/devices/cpu_atom/cpus")).unwrap_or_default();
        if !name_kinds(&mut cpus, &performance, &efficiency) {
            rank_kinds(&mut cpus);
        }
        let confined = online.is_some_and(|online| !online.is_subset(&usable));
        Self { cpus, confined, cpu_limit: limits.cpu_limit }
    }
}

/// What all three agree on. A set that would leave nothing is disregarded: we do run somewhere.
fn usable(allowed: &CpuSet, online: Option<&CpuSet>, cpuset: Option<&CpuSet>) -> CpuSet {
    let mut usable = allowed.clone();
    for other in [online, cpuset].into_iter().flatten() {
        let common: CpuSet = usable.intersection(other).copied().collect();
        if !common.is_empty() {
            usable = common;
        }
    }
    if usable.is_empty() {
        usable = online.cloned().unwrap_or_else(|| CpuSet::from([CpuId(0)]));
    }
    usable
}

/// The node of each CPU. Nodes without CPUs (memory only) do not show.
fn read_nodes(directory: &Path) -> BTreeMap<CpuId, u32> {
    let mut nodes = BTreeMap::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(node) = name.to_str().and_then(|name| name.strip_prefix("node")?.parse::<u32>().ok()) else {
            continue;
        };
        let cpus = read_list(&entry.path().join("cpulist")).unwrap_or_default();
        nodes.extend(cpus.into_iter().map(|cpu| (cpu, node)));
    }
    nodes
}

/// Reads `cpuN`; its shared cache goes to `caches`, since it gets its number when all are known.
fn read_cpu(directory: &Path, id: CpuId, node: Option<u32>, caches: &mut BTreeMap<CpuId, SharedCache>) -> Cpu {
    let siblings = ["topology/core_cpus_list", "topology/thread_siblings_list"]
        .iter()
        .find_map(|file| read_list(&directory.join(file)).filter(|cpus| cpus.contains(&id)))
        .unwrap_or_else(|| CpuSet::from([id]));
    if let Some(cache) = read_shared_cache(&directory.join("cache"), id, &siblings) {
        caches.insert(id, cache);
    }
    Cpu {
        id,
        package: read_number(&directory.join("topology/physical_package_id")),
        node,
        llc: None,
        core: siblings.first().copied().unwrap_or(id),
        thread: 0,
        kind: CoreKind::Uniform,
        capacity: read_number(&directory.join("cpu_capacity")),
        max_khz: read_number(&directory.join("cpufreq/cpuinfo_max_freq")),
    }
}

/// A cache by its first CPU on the machine (usable or not) and its level.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct SharedCache {
    first: CpuId,
    level: u32,
}

/// The highest cache that serves more than one core. A cache of a single core says nothing about who is near to whom,
/// and virtual machines often show only such ones.
fn read_shared_cache(directory: &Path, id: CpuId, siblings: &CpuSet) -> Option<SharedCache> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let shared = entries.filter_map(|entry| {
        let level = read_number(&entry.path().join("level"))?;
        let cpus = read_list(&entry.path().join("shared_cpu_list"))?;
        let beyond_the_core = cpus.contains(&id) && !cpus.is_subset(siblings);
        beyond_the_core.then_some(SharedCache { first: *cpus.first()?, level })
    });
    shared.max_by_key(|cache| cache.level)
}

fn number_caches(cpus: &mut [Cpu], caches: &BTreeMap<CpuId, SharedCache>) {
    let mut distinct: Vec<SharedCache> = caches.values().copied().collect();
    distinct.sort_unstable();
    distinct.dedup();
    for cpu in cpus {
        let Some(cache) = caches.get(&cpu.id) else { continue };
        if let Ok(number) = distinct.binary_search(cache) {
            // No more caches than CPUs, whose numbers are u32.
            cpu.llc = Some(Cache { number: number as u32, level: cache.level });
        }
    }
}

fn number_threads(cpus: &mut [Cpu]) {
    let mut threads: BTreeMap<CpuId, u32> = BTreeMap::new();
    for cpu in cpus {
        let next = threads.entry(cpu.core).or_default();
        cpu.thread = *next;
        *next += 1;
    }
}

/// Takes the kinds as the kernel names them, on processors for which it does; says whether there are two.
fn name_kinds(cpus: &mut [Cpu], performance: &CpuSet, efficiency: &CpuSet) -> bool {
    let has = |kind: &CpuSet| cpus.iter().any(|cpu| kind.contains(&cpu.id));
    if !has(performance) || !has(efficiency) {
        return false;
    }
    for cpu in cpus {
        cpu.kind = if efficiency.contains(&cpu.id) { CoreKind::Efficiency } else { CoreKind::Performance };
    }
    true
}

/// Tells kinds apart by speed: wherever the next slower core has less than 80% of the one before, a kind ends. Cores of
/// one kind differ, too (the best few clock higher), but by less than that.
fn rank_kinds(cpus: &mut [Cpu]) {
    let by_capacity = cpus.iter().map(|cpu| cpu.capacity).collect::<Option<Vec<u32>>>();
    let Some(speeds) = by_capacity.or_else(|| cpus.iter().map(|cpu| cpu.max_khz).collect()) else {
        return;
    };
    let mut distinct = speeds.clone();
    distinct.sort_unstable_by(|a, b| b.cmp(a));
    distinct.dedup();
    let much_slower = |pair: &[u32]| u64::from(pair[1]) * 10 < u64::from(pair[0]) * 8;
    let ends: Vec<u32> = distinct.windows(2).filter(|pair| much_slower(pair)).map(|pair| pair[0]).collect();
    let (Some(first_end), Some(last_end)) = (ends.first(), ends.last()) else {
        return;
    };
    for (cpu, speed) in cpus.iter_mut().zip(speeds) {
        cpu.kind = if speed >= *first_end {
            CoreKind::Performance
        } else if speed >= *last_end {
            CoreKind::Middle
        } else {
            CoreKind::Efficiency
        };
    }
}

fn read_list(path: &Path) -> Option<CpuSet> {
    parse_cpu_list(&fs::read_to_string(path).ok()?)
}

/// `None` for what is not a number, and for the -1 that means "unknown".
fn read_number(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L{}#{}", self.level, self.number)
    }
}

impl fmt::Display for CoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            CoreKind::Uniform => "uniform",
            CoreKind::Performance => "performance",
            CoreKind::Middle => "middle",
            CoreKind::Efficiency => "efficiency",
        })
    }
}

/// The table of CPUs for `--dump-cpus`; ends with a line break.
impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let confined = if self.confined { ", fewer than are online (affinity or cpuset)" } else { "" };
        writeln!(f, "{} usable CPUs{confined}", self.cpus.len())?;
        match self.cpu_limit {
            Some(limit) => writeln!(f, "CPU time limited to {limit:.2} CPUs by cgroup")?,
            None => writeln!(f, "CPU time not limited by cgroup")?,
        }
        writeln!(f, "  CPU  package  node  cache  core  thread  kind         capacity  max MHz")?;
        for cpu in &self.cpus {
            writeln!(
                f,
                "{:>5}  {:>7}  {:>4}  {:>5}  {:>4}  {:>6}  {:<11}  {:>8}  {:>7}",
                cpu.id.0,
                or_dash(cpu.package),
                or_dash(cpu.node),
                or_dash(cpu.llc),
                cpu.core.0,
                cpu.thread,
                cpu.kind,
                or_dash(cpu.capacity),
                or_dash(cpu.max_khz.map(|khz| khz / 1000)),
            )?;
        }
        Ok(())
    }
}

fn or_dash(value: Option<impl fmt::Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::fixture::{FakeCpu, Tree, cpus, eight_cores_with_smt, four_ccx_on_two_nodes, hybrid};
    use super::*;

    fn ids(topology: &Topology, wanted: impl Fn(&Cpu) -> bool) -> CpuSet {
        topology.cpus.iter().filter(|cpu| wanted(cpu)).map(|cpu| cpu.id).collect()
    }

    #[test]
    fn core_complexes_and_nodes_are_told_apart() {
        let topology = four_ccx_on_two_nodes().read();
        assert_eq!(topology.cpus.len(), 32);
        assert!(!topology.confined);
        let cpu = &topology.cpus[17];
        assert_eq!((cpu.node, cpu.package, cpu.llc), (Some(1), Some(1), Some(Cache { number: 2, level: 3 })));
        assert_eq!(ids(&topology, |cpu| cpu.llc.is_some_and(|llc| llc.number == 3)), cpus("24-31"));
        assert!(topology.cpus.iter().all(|cpu| cpu.kind == CoreKind::Uniform));
    }

    #[test]
    fn smt_siblings_are_later_threads_of_a_core() {
        let topology = eight_cores_with_smt().read();
        assert_eq!(ids(&topology, |cpu| cpu.thread == 0), cpus("0-7"));
        assert_eq!(topology.cpus[11].core, CpuId(3));
    }

    #[test]
    fn the_only_usable_thread_of_a_core_is_its_first() {
        let topology = Topology::read(eight_cores_with_smt().path(), &cpus("8-9"));
        assert!(topology.cpus.iter().all(|cpu| cpu.thread == 0));
        assert!(topology.confined);
    }

    #[test]
    fn kinds_come_from_the_kernel_where_it_names_them() {
        let topology = hybrid().read();
        assert_eq!(ids(&topology, |cpu| cpu.kind == CoreKind::Performance), cpus("0-7"));
        assert_eq!(ids(&topology, |cpu| cpu.kind == CoreKind::Efficiency), cpus("8-15"));
        let confined = Topology::read(hybrid().path(), &cpus("8-15"));
        assert!(confined.cpus.iter().all(|cpu| cpu.kind == CoreKind::Uniform), "nothing to compare with");
    }

    #[test]
    fn kinds_come_from_capacity_where_the_kernel_does_not_name_them() {
        let speeds = [250, 250, 250, 600, 600, 900, 1024];
        let tree = (0u32..).zip(speeds).fold(Tree::new().online("0-6"), |tree, (number, capacity)| {
            tree.cpu(number, FakeCpu { capacity: Some(capacity), ..FakeCpu::default() })
        });
        let topology = tree.read();
        assert_eq!(ids(&topology, |cpu| cpu.kind == CoreKind::Efficiency), cpus("0-2"));
        assert_eq!(ids(&topology, |cpu| cpu.kind == CoreKind::Middle), cpus("3-4"));
        assert_eq!(ids(&topology, |cpu| cpu.kind == CoreKind::Performance), cpus("5-6"));
    }

    #[test]
    fn favoured_cores_are_not_another_kind() {
        let tree = Tree::new()
            .online("0-1")
            .cpu(0, FakeCpu { max_khz: Some(5_700_000), ..FakeCpu::default() })
            .cpu(1, FakeCpu { max_khz: Some(5_100_000), ..FakeCpu::default() });
        assert!(tree.read().cpus.iter().all(|cpu| cpu.kind == CoreKind::Uniform));
    }

    #[test]
    fn offline_cpus_are_not_there() {
        let topology = four_ccx_on_two_nodes().online("0-3,6-31").read();
        assert_eq!(ids(&topology, |_| true), cpus("0-3,6-31"));
        assert!(!topology.confined, "offline CPUs are nobody's choice");
    }

    #[test]
    fn a_container_may_see_nothing_but_its_affinity() {
        let topology = Topology::read(Tree::new().path(), &cpus("2-3"));
        assert_eq!(ids(&topology, |cpu| cpu.llc.is_none() && cpu.node.is_none() && cpu.thread == 0), cpus("2-3"));
        assert_eq!(topology.cpu_limit, None);
        let nothing = Topology::read(Tree::new().path(), &CpuSet::new());
        assert_eq!(ids(&nothing, |_| true), cpus("0"));
    }

    #[test]
    fn the_cpuset_of_the_control_group_narrows_the_choice() {
        let tree = four_ccx_on_two_nodes().file("sys/fs/cgroup/cpuset.cpus.effective", "4-5\n").cpu_time("250000");
        let topology = tree.read();
        assert_eq!(ids(&topology, |_| true), cpus("4-5"));
        assert!(topology.confined);
        assert_eq!(topology.cpu_limit, Some(2.5));
    }

    #[test]
    fn a_cache_of_one_core_is_not_shared() {
        let alone = |number: u32| FakeCpu { l3: Some(number.to_string()), ..FakeCpu::default() };
        let tree = Tree::new().online("0-1").cpu(0, alone(0)).cpu(1, alone(1));
        assert!(tree.read().cpus.iter().all(|cpu| cpu.llc.is_none()));
    }

    #[test]
    fn cores_without_l3_are_grouped_by_their_l2() {
        let cluster = |list: &str| FakeCpu { l2: Some(list.to_owned()), ..FakeCpu::default() };
        let tree = Tree::new().online("0-3").cpu(0, cluster("0-1")).cpu(1, cluster("0-1"));
        let topology = tree.cpu(2, cluster("2-3")).cpu(3, cluster("2-3")).read();
        assert_eq!(topology.cpus[3].llc, Some(Cache { number: 1, level: 2 }));
    }

    #[test]
    fn damaged_files_are_as_good_as_none() {
        let tree = Tree::new()
            .online("all of them")
            .file("sys/devices/system/cpu/cpu0/topology/physical_package_id", "-1\n")
            .file("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "7-3\n")
            .file("sys/devices/system/node/node0/cpulist", "0-\n");
        let topology = Topology::read(tree.path(), &cpus("0"));
        assert_eq!((topology.cpus[0].package, topology.cpus[0].node, topology.cpus[0].core), (None, None, CpuId(0)));
    }

    #[test]
    fn the_table_shows_every_cpu_in_aligned_columns() {
        let text = hybrid().read().to_string();
        assert!(text.starts_with("16 usable CPUs\nCPU time not limited by cgroup\n"), "{text}");
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(rows.len(), 17);
        assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{text}");
        assert_eq!(
            rows[10].split_whitespace().collect::<Vec<_>>(),
            ["9", "0", "0", "L3#0", "9", "0", "efficiency", "-", "3900"]
        );
    }

    #[test]
    fn this_machine_can_be_read() {
        let allowed = outrigger_sys::affinity::allowed_cpus().unwrap();
        let topology = Topology::read(Path::new("/"), &allowed);
        assert!(!topology.cpus.is_empty());
        assert!(topology.cpus.iter().all(|cpu| allowed.contains(&cpu.id)));
    }
}
