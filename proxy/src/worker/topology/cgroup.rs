//! What control groups leave of the machine: CPU time (`cpu.max`, `cfs_quota`) and CPUs (`cpuset`), versions 1 and 2.
//!
//! Owns finding the groups of this process and reading their files. Never decides how many workers follow from them.

use std::fs;
use std::path::{Component, Path, PathBuf};

use outrigger_sys::affinity::CpuSet;

use super::cpu_list::parse_cpu_list;

/// The limits of this process; `None` where there is none.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Limits {
    /// CPU time per time, in CPUs.
    pub cpu_limit: Option<f64>,
    pub cpus: Option<CpuSet>,
}

/// Reads the limits from `proc/self/cgroup` and `sys/fs/cgroup` under `root`.
pub(super) fn read(root: &Path) -> Limits {
    let mounts = root.join("sys/fs/cgroup");
    let memberships = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut limits = Limits::default();
    for directory in directories(&mounts, &memberships, "cpu") {
        limits.restrict_time(&directory, cpu_max);
        limits.restrict_time(&directory, cfs_quota);
    }
    limits.cpus = directories(&mounts, &memberships, "cpuset").iter().find_map(|directory| cpuset(directory));
    limits
}

/// CPU time per time in CPUs, and the number of CPUs; `None` where there is no limit.
pub(crate) fn cpu_limits(root: &Path) -> (Option<f64>, Option<usize>) {
    let limits = read(root);
    (limits.cpu_limit, limits.cpus.map(|cpus| cpus.len()))
}

impl Limits {
    /// A limit of an outer group holds for its inner groups, too: the smallest counts.
    fn restrict_time(&mut self, directory: &Path, read: fn(&Path) -> Option<f64>) {
        if let Some(limit) = read(directory) {
            self.cpu_limit = Some(self.cpu_limit.map_or(limit, |other| other.min(limit)));
        }
    }
}

/// Where files of `controller` for this process may be, innermost group first, for either version.
///
/// `memberships` names groups by their path on the host, of which a container may see only the tail or nothing; so
/// each ancestor up to the mount point is a candidate, and those that do not exist are skipped on reading.
pub(crate) fn directories(mounts: &Path, memberships: &str, controller: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut add = |mount: PathBuf, group: &str| {
        // `..` stands for groups outside of the cgroup namespace: not ours to read.
        let group: PathBuf =
            Path::new(group).components().filter(|component| matches!(component, Component::Normal(_))).collect();
        for ancestor in group.ancestors() {
            let directory = mount.join(ancestor);
            if !found.contains(&directory) {
                found.push(directory);
            }
        }
    };
    // A line is `hierarchy:controllers:path`; version 2 has hierarchy 0 and names no controllers.
    for line in memberships.lines() {
        let mut columns = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (columns.next(), columns.next(), columns.next()) else {
            continue;
        };
        if controllers.is_empty() {
            add(mounts.to_owned(), group);
            add(mounts.join("unified"), group);
        } else if controllers.split(',').any(|name| name == controller) {
            add(mounts.join(controllers), group);
            add(mounts.join(controller), group);
        }
    }
    add(mounts.to_owned(), "");
    add(mounts.join(controller), "");
    found
}

/// Version 2: `250000 100000`, which is microseconds of CPU in microseconds of time, or `max 100000`.
fn cpu_max(directory: &Path) -> Option<f64> {
    let text = fs::read_to_string(directory.join("cpu.max")).ok()?;
    let mut columns = text.split_ascii_whitespace();
    share(columns.next()?, columns.next()?)
}

/// Version 1: the same in two files, with `-1` for no limit.
fn cfs_quota(directory: &Path) -> Option<f64> {
    let quota = fs::read_to_string(directory.join("cpu.cfs_quota_us")).ok()?;
    let period = fs::read_to_string(directory.join("cpu.cfs_period_us")).ok()?;
    share(quota.trim(), period.trim())
}

fn share(quota: &str, period: &str) -> Option<f64> {
    let (quota, period) = (quota.parse::<u32>().ok()?, period.parse::<u32>().ok()?);
    (quota > 0 && period > 0).then(|| f64::from(quota) / f64::from(period))
}

fn cpuset(directory: &Path) -> Option<CpuSet> {
    ["cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"].iter().find_map(|file| {
        let text = fs::read_to_string(directory.join(file)).ok()?;
        // Empty means "as the parent" in version 2.
        parse_cpu_list(&text).filter(|cpus| !cpus.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Tree;
    use super::*;

    #[test]
    fn a_container_sees_its_own_group_at_the_mount() {
        let tree = Tree::new()
            .file("proc/self/cgroup", "0::/\n")
            .file("sys/fs/cgroup/cpu.max", "250000 100000\n")
            .file("sys/fs/cgroup/cpuset.cpus.effective", "0-3\n");
        let limits = read(tree.path());
        assert_eq!(limits.cpu_limit, Some(2.5));
        assert_eq!(limits.cpus, parse_cpu_list("0-3"));
    }

    #[test]
    fn the_tightest_limit_of_the_groups_above_counts() {
        let tree = Tree::new()
            .file("proc/self/cgroup", "0::/mesh.slice/outrigger.service\n")
            .file("sys/fs/cgroup/mesh.slice/cpu.max", "100000 100000\n")
            .file("sys/fs/cgroup/mesh.slice/outrigger.service/cpu.max", "400000 100000\n")
            .file("sys/fs/cgroup/mesh.slice/cpuset.cpus.effective", "0-7\n")
            .file("sys/fs/cgroup/mesh.slice/outrigger.service/cpuset.cpus.effective", "\n");
        let limits = read(tree.path());
        assert_eq!(limits.cpu_limit, Some(1.0));
        assert_eq!(limits.cpus, parse_cpu_list("0-7"));
    }

    #[test]
    fn version_1_has_a_quota_and_a_period() {
        let tree = Tree::new()
            .file("proc/self/cgroup", "4:cpu,cpuacct:/docker/abc\n3:cpuset:/docker/abc\n1:name=systemd:/x\n")
            // The container does not see the path of the host, only the mount.
            .file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "150000\n")
            .file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
            .file("sys/fs/cgroup/cpuset/docker/abc/cpuset.effective_cpus", "2,4\n");
        let limits = read(tree.path());
        assert_eq!(limits.cpu_limit, Some(1.5));
        assert_eq!(limits.cpus, parse_cpu_list("2,4"));
    }

    #[test]
    fn no_limit_and_nonsense_are_no_limit() {
        let tree = Tree::new()
            .file("proc/self/cgroup", "0::/../other\nnonsense\n")
            .file("sys/fs/cgroup/cpu.max", "max 100000\n")
            .file("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
            .file("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
            .file("sys/fs/cgroup/other/cpu.max", "100 0\n");
        assert_eq!(read(tree.path()), Limits::default());
        assert_eq!(read(Tree::new().path()), Limits::default());
    }
}
