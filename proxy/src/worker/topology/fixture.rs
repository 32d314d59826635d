//! Fake `/sys` and `/proc` trees for tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use outrigger_sys::affinity::{CpuId, CpuSet};

use super::Topology;
use super::cpu_list::parse_cpu_list;

/// A directory that stands for `/`, deleted when dropped.
pub(crate) struct Tree {
    root: PathBuf,
}

/// One CPU of a fake machine; lists are in the kernel's notation, `None` leaves the file out.
#[derive(Clone, Default)]
pub(crate) struct FakeCpu {
    pub siblings: Option<String>,
    pub l2: Option<String>,
    pub l3: Option<String>,
    pub package: Option<u32>,
    pub capacity: Option<u32>,
    pub max_khz: Option<u32>,
}

impl Tree {
    pub fn new() -> Self {
        static TREES: AtomicU32 = AtomicU32::new(0);
        let number = TREES.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("outrigger-topology-{}-{number}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        Self { root }
    }

    pub fn path(&self) -> &Path {
        &self.root
    }

    pub fn file(self, path: &str, content: &str) -> Self {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    pub fn online(self, list: &str) -> Self {
        self.file("sys/devices/system/cpu/online", &format!("{list}\n"))
    }

    pub fn node(self, node: u32, list: &str) -> Self {
        self.file(&format!("sys/devices/system/node/node{node}/cpulist"), &format!("{list}\n"))
    }

    pub fn cpu_time(self, quota: &str) -> Self {
        self.file("sys/fs/cgroup/cpu.max", &format!("{quota} 100000\n"))
    }

    pub fn cpu(mut self, number: u32, cpu: FakeCpu) -> Self {
        let at = format!("sys/devices/system/cpu/cpu{number}");
        let FakeCpu { siblings, l2, l3, package, capacity, max_khz } = cpu;
        let files = [
            ("topology/thread_siblings_list", siblings),
            ("topology/physical_package_id", package.map(|package| package.to_string())),
            ("cache/index2/shared_cpu_list", l2.clone()),
            ("cache/index2/level", l2.map(|_| "2".to_owned())),
            ("cache/index3/shared_cpu_list", l3.clone()),
            ("cache/index3/level", l3.map(|_| "3".to_owned())),
            ("cpu_capacity", capacity.map(|capacity| capacity.to_string())),
            ("cpufreq/cpuinfo_max_freq", max_khz.map(|khz| khz.to_string())),
        ];
        for (file, content) in files {
            if let Some(content) = content {
                self = self.file(&format!("{at}/{file}"), &format!("{content}\n"));
            }
        }
        self
    }

    /// Reads the tree as a process that may run everywhere.
    pub fn read(&self) -> Topology {
        Topology::read(self.path(), &(0..1024).map(CpuId).collect())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

pub(super) fn cpus(list: &str) -> CpuSet {
    parse_cpu_list(list).unwrap()
}

/// 2 nodes of 2 core complexes (own L3) of 8 cores, without SMT: 4 CCX x 8 cores, CPUs 0-31.
pub(super) fn four_ccx_on_two_nodes() -> Tree {
    (0..32).fold(Tree::new().online("0-31").node(0, "0-15").node(1, "16-31"), |tree, number| {
        let ccx = number / 8 * 8;
        let cpu = FakeCpu {
            siblings: Some(number.to_string()),
            l2: Some(number.to_string()),
            l3: Some(format!("{ccx}-{}", ccx + 7)),
            package: Some(number / 16),
            max_khz: Some(3_700_000),
            ..FakeCpu::default()
        };
        tree.cpu(number, cpu)
    })
}

/// 8 cores of two threads on one L3: CPU n and n+8 are siblings.
pub(super) fn eight_cores_with_smt() -> Tree {
    (0..16).fold(Tree::new().online("0-15").node(0, "0-15"), |tree, number| {
        let siblings = Some(format!("{},{}", number % 8, number % 8 + 8));
        let cpu = FakeCpu { siblings: siblings.clone(), l2: siblings, l3: Some("0-15".into()), ..FakeCpu::default() };
        tree.cpu(number, cpu)
    })
}

/// 4 performance cores of two threads (0-7) and 8 efficiency cores (8-15), on one L3.
pub(super) fn hybrid() -> Tree {
    let tree = Tree::new().online("0-15").node(0, "0-15");
    let tree = tree.file("sys/devices/cpu_core/cpus", "0-7\n").file("sys/devices/cpu_atom/cpus", "8-15\n");
    (0..16).fold(tree, |tree, number| {
        let (siblings, l2, khz) = if number < 8 {
            let pair = format!("{}-{}", number / 2 * 2, number / 2 * 2 + 1);
            (pair.clone(), pair, 5_200_000)
        } else {
            (number.to_string(), format!("{}-{}", number / 4 * 4, number / 4 * 4 + 3), 3_900_000)
        };
        let cpu = FakeCpu {
            siblings: Some(siblings),
            l2: Some(l2),
            l3: Some("0-15".into()),
            package: Some(0),
            max_khz: Some(khz),
            ..FakeCpu::default()
        };
        tree.cpu(number, cpu)
    })
}
