//! Memory of the control group: what is used of it, and how much there may be (versions 1 and 2).
//!
//! Owns finding the files and reading them. Never decides what follows.

use std::io;
use std::path::{Path, PathBuf};

use crate::worker::topology::cgroup::directories;

/// The memory of one group.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Memory {
    /// Bytes in use, files that are cached included.
    pub used: u64,
    /// Bytes of cached files, which the kernel takes back before it runs out.
    pub cached: u64,
    /// Bytes there may be; `None` is no limit.
    pub limit: Option<u64>,
}

/// Where the memory of a group can be read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Group {
    directory: PathBuf,
    files: &'static Files,
}

/// The names that a version has for its files.
#[derive(Debug, Eq, PartialEq)]
struct Files {
    used: &'static str,
    limit: &'static str,
    /// In `memory.stat`.
    cached: [&'static str; 2],
}

static VERSION_2: Files =
    Files { used: "memory.current", limit: "memory.max", cached: ["inactive_file", "active_file"] };
static VERSION_1: Files = Files {
    used: "memory.usage_in_bytes",
    limit: "memory.limit_in_bytes",
    cached: ["total_inactive_file", "total_active_file"],
};

/// More than any machine has: what version 1 says where there is no limit.
const NO_LIMIT: u64 = 1 << 60;

/// The groups of this process that have figures, the innermost first: a limit of an outer one holds for it too.
pub(super) fn groups(root: &Path) -> Vec<Group> {
    let memberships = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let directories = directories(&root.join("sys/fs/cgroup"), &memberships, "memory");
    let versions = [&VERSION_2, &VERSION_1];
    let groups = directories
        .into_iter()
        .flat_map(|directory| versions.map(|files| Group { directory: directory.clone(), files }));
    groups.filter(|group| group.used().is_ok() && group.limit().is_ok()).collect()
}

impl Group {
    /// Bytes in use.
    pub fn used(&self) -> io::Result<u64> {
        let text = std::fs::read_to_string(self.directory.join(self.files.used))?;
        text.trim().parse().map_err(|_| self.unreadable(self.files.used))
    }

    /// Bytes there may be.
    pub fn limit(&self) -> io::Result<Option<u64>> {
        let text = std::fs::read_to_string(self.directory.join(self.files.limit))?;
        parse_limit(&text).ok_or_else(|| self.unreadable(self.files.limit))
    }

    /// All of it.
    pub fn read(&self) -> io::Result<Memory> {
        let stat = std::fs::read_to_string(self.directory.join("memory.stat"))?;
        Ok(Memory { used: self.used()?, cached: parse_cached(&stat, self.files.cached), limit: self.limit()? })
    }

    fn unreadable(&self, file: &str) -> io::Error {
        let path = self.directory.join(file);
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} is not in the form the kernel documents", path.display()),
        )
    }
}

impl Memory {
    /// What the kernel cannot take back, as a share of the limit; 0 without one.
    pub fn pressure(self) -> f64 {
        match self.limit {
            Some(limit) => self.used.saturating_sub(self.cached) as f64 / limit as f64,
            None => 0.0,
        }
    }
}

/// `max` in version 2, -1 or something huge in version 1, is no limit. `None` for what is no number.
fn parse_limit(text: &str) -> Option<Option<u64>> {
    match text.trim() {
        "max" | "-1" => Some(None),
        number => Some(Some(number.parse::<u64>().ok()?).filter(|limit| (1..NO_LIMIT).contains(limit))),
    }
}

/// The sum of these lines of `memory.stat`.
fn parse_cached(stat: &str, names: [&str; 2]) -> u64 {
    let value = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        if names.contains(&name) { value.trim().parse::<u64>().ok() } else { None }
    };
    stat.lines().filter_map(value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::topology::fixture::Tree;

    #[test]
    fn version_2_inside_a_container() {
        let tree = Tree::new()
            .file("proc/self/cgroup", "0::/\n")
            .file("sys/fs/cgroup/memory.current", "900\n")
            .file("sys/fs/cgroup/memory.max", "1000\n")
            .file("sys/fs/cgroup/memory.stat", "anon 300\nfile 600\ninactive_file 400\nactive_file 100\nslab 5\n");
        let groups = groups(tree.path());
        assert_eq!(groups.len(), 1);
        let memory = groups[0].read().unwrap();
        assert_eq!(memory, Memory { used: 900, cached: 500, limit: Some(1000) });
        assert_eq!(memory.pressure(), 0.4);
    }

    #[test]
    fn version_1_counts_what_its_inner_groups_have_cached() {
        let tree = Tree::new()
            .file("proc/self/cgroup", "4:memory:/docker/abc\n0::/\n")
            .file("sys/fs/cgroup/memory/memory.usage_in_bytes", "800\n")
            .file("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n")
            .file(
                "sys/fs/cgroup/memory/memory.stat",
                "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 200\n",
            );
        let groups = groups(tree.path());
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].read().unwrap().pressure(), 0.5);
    }

    #[test]
    fn outer_groups_come_after_inner_ones_and_the_root_has_no_figures() {
        let tree = Tree::new()
            .file("proc/self/cgroup", "0::/mesh.slice/outrigger.service\n")
            .file("sys/fs/cgroup/mesh.slice/memory.current", "10\n")
            .file("sys/fs/cgroup/mesh.slice/memory.max", "100\n")
            .file("sys/fs/cgroup/mesh.slice/outrigger.service/memory.current", "5\n")
            .file("sys/fs/cgroup/mesh.slice/outrigger.service/memory.max", "max\n");
        let groups = groups(tree.path());
        let limits: Vec<_> = groups.iter().map(|group| group.limit().unwrap()).collect();
        assert_eq!(limits, [None, Some(100)]);
    }

    #[test]
    fn no_limit_is_said_in_three_ways() {
        assert_eq!(parse_limit("max\n"), Some(None));
        assert_eq!(parse_limit("-1"), Some(None));
        assert_eq!(parse_limit("9223372036854771712\n"), Some(None));
        assert_eq!(parse_limit("1048576\n"), Some(Some(1_048_576)));
        assert_eq!(parse_limit("much"), None);
        assert!(groups(Tree::new().path()).is_empty());
    }
}
