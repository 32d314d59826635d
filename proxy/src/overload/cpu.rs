//! Clocks of CPU time: that of the machine (`/proc/stat`), and that of the control group (versions 1 and 2).
//!
//! Owns finding and reading the files. Never compares two looks (see `outrigger_policy::overload`).

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use outrigger_config::overload::CpuScope;
use outrigger_policy::overload::CpuTimes;

use crate::worker::topology::cgroup::{cpu_limits, directories};

/// Reads the clocks. `now` is the time since some fixed moment.
pub(super) fn read(root: &Path, scope: CpuScope, now: Duration) -> io::Result<CpuTimes> {
    match scope {
        CpuScope::Host => {
            let text = fs::read_to_string(root.join("proc/stat"))?;
            host(&text).ok_or_else(|| unreadable("/proc/stat"))
        }
        CpuScope::Container => container(root, now),
    }
}

/// The first line sums up all CPUs, in ticks: user, nice, system, idle, and more that is not looked at.
fn host(stat: &str) -> Option<CpuTimes> {
    let mut columns = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    let mut next = || columns.next()?.parse::<u64>().ok();
    let busy = next()? + next()? + next()?;
    let idle = next()?;
    Some(CpuTimes { busy: busy as f64, available: (busy + idle) as f64 })
}

/// Both in seconds: what the group has used, and what it may have used since some fixed moment.
fn container(root: &Path, now: Duration) -> io::Result<CpuTimes> {
    let memberships = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mounts = root.join("sys/fs/cgroup");
    let used = directories(&mounts, &memberships, "cpu").iter().find_map(|directory| {
        usage_usec(&fs::read_to_string(directory.join("cpu.stat")).ok()?).map(|used| used as f64 / 1e6)
    });
    let used = used.or_else(|| {
        directories(&mounts, &memberships, "cpuacct").iter().find_map(|directory| {
            let text = fs::read_to_string(directory.join("cpuacct.usage")).ok()?;
            text.trim().parse::<u64>().ok().map(|used| used as f64 / 1e9)
        })
    });
    let used = used.ok_or_else(|| unreadable("cpu.stat (or cpuacct.usage) of the control group"))?;
    let (limit, cpus) = cpu_limits(root);
    let cpus = cpus.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1) as f64;
    Ok(CpuTimes { busy: used, available: now.as_secs_f64() * limit.map_or(cpus, |limit| limit.min(cpus)) })
}

/// From `cpu.stat`, in microseconds.
fn usage_usec(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok())
}

fn unreadable(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is not in the form the kernel documents"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::topology::fixture::Tree;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_machine_is_busy_with_user_nice_and_system() {
        let tree = Tree::new().file("proc/stat", "cpu  10 20 30 40 50 60 70 0 0 0\ncpu0 1 2 3 4\n");
        let times = read(tree.path(), CpuScope::Host, SECOND).unwrap();
        assert_eq!(times, CpuTimes { busy: 60.0, available: 100.0 });
        let odd = Tree::new().file("proc/stat", "cpu  10 x\n");
        assert!(read(odd.path(), CpuScope::Host, SECOND).is_err());
    }

    #[test]
    fn a_container_of_version_2_may_use_its_quota() {
        let tree = Tree::new()
            .file("proc/self/cgroup", "0::/\n")
            .file("sys/fs/cgroup/cpu.stat", "usage_usec 1500000\nuser_usec 1\n")
            .file("sys/fs/cgroup/cpu.max", "250000 100000\n")
            .file("sys/fs/cgroup/cpuset.cpus.effective", "0-3\n");
        let times = read(tree.path(), CpuScope::Container, SECOND * 2).unwrap();
        assert_eq!(times, CpuTimes { busy: 1.5, available: 5.0 });
    }

    #[test]
    fn without_a_quota_a_container_may_use_its_cpus() {
        let tree = Tree::new()
            .file("proc/self/cgroup", "4:cpu,cpuacct:/docker/abc\n3:cpuset:/docker/abc\n")
            .file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
            .file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
            .file("sys/fs/cgroup/cpu,cpuacct/cpuacct.usage", "500000000\n")
            .file("sys/fs/cgroup/cpuset/docker/abc/cpuset.effective_cpus", "2,4\n");
        let times = read(tree.path(), CpuScope::Container, SECOND).unwrap();
        assert_eq!(times, CpuTimes { busy: 0.5, available: 2.0 });
        assert!(read(Tree::new().path(), CpuScope::Container, SECOND).is_err());
    }
}
