//! The resource monitors.
//!
//! Owns how the pressure of each kind of resource is found. Never decides what follows.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use outrigger_config::overload::{CpuScope, HeapLimit, MonitorKind};
use outrigger_policy::overload::CpuMeter;

use super::cgroup::{self, Group};
use super::{cpu, protection};
use crate::process::Process;

/// What finds the pressure of one resource.
pub(super) enum Monitor {
    FixedHeap(HeapLimit),
    CgroupMemory {
        group: Group,
        max: Option<u64>,
    },
    Cpu {
        scope: CpuScope,
        meter: CpuMeter,
        start: Instant,
    },
    Connections {
        max: u64,
    },
    Injected {
        path: PathBuf,
    },
    /// That of the protection which nobody asked for: the tightest of these groups counts.
    Unreclaimable {
        groups: Vec<Group>,
    },
}

impl Monitor {
    /// The monitor of a configured resource.
    ///
    /// # Errors
    /// When this machine does not have the resource.
    pub fn new(kind: &MonitorKind, root: &Path) -> Result<Self, &'static str> {
        Ok(match kind {
            MonitorKind::FixedHeap(limit) => Monitor::FixedHeap(limit.clone()),
            MonitorKind::CgroupMemory { max } => match cgroup::groups(root).into_iter().next() {
                Some(group) => Monitor::CgroupMemory { group, max: *max },
                None => return Err("there is no control group whose memory can be read"),
            },
            MonitorKind::CpuUtilization(scope) => {
                Monitor::Cpu { scope: *scope, meter: CpuMeter::default(), start: Instant::now() }
            }
            MonitorKind::DownstreamConnections { max } => Monitor::Connections { max: *max },
            MonitorKind::Injected { path } => Monitor::Injected { path: path.clone() },
        })
    }

    /// The pressure now, as a share of the limit.
    ///
    /// # Errors
    /// Why it is not known.
    pub fn pressure(&mut self, process: &Process, root: &Path) -> Result<f64, String> {
        match self {
            Monitor::FixedHeap(limit) => heap(limit, process),
            Monitor::CgroupMemory { group, max } => {
                let (used, limit) = (text(group.used())?, text(group.limit())?);
                let limit = [limit, *max].into_iter().flatten().min();
                Ok(limit.map_or(0.0, |limit| used as f64 / limit as f64))
            }
            Monitor::Cpu { scope, meter, start } => {
                let times = text(cpu::read(root, *scope, start.elapsed()))?;
                meter.update(times).map_err(str::to_owned)
            }
            Monitor::Connections { max } => {
                Ok(process.downstream_connections.load(Ordering::Relaxed) as f64 / *max as f64)
            }
            Monitor::Injected { path } => {
                let content = std::fs::read_to_string(&*path);
                injected(&content.map_err(|error| format!("cannot read {}: {error}", path.display()))?)
            }
            Monitor::Unreclaimable { groups } => protection::pressure(groups, process),
        }
    }
}

/// What is resident and our own: the kernel counts it, and the allocator gives back what is free.
fn heap(limit: &HeapLimit, process: &Process) -> Result<f64, String> {
    let memory = text(outrigger_sys::process::memory())?;
    let overridden = match limit.runtime_key.is_empty() {
        true => None,
        false => process.graph.load().runtime.integer(&limit.runtime_key).filter(|bytes| *bytes > 0),
    };
    Ok(memory.resident.saturating_sub(memory.shared) as f64 / overridden.unwrap_or(limit.bytes) as f64)
}

/// A number within 0..=1, and nothing but blanks around it.
fn injected(content: &str) -> Result<f64, String> {
    let number = content.trim().parse::<f64>().map_err(|_| format!("{:?} is not a number", content.trim()))?;
    if (0.0..=1.0).contains(&number) { Ok(number) } else { Err(format!("{number} is not within 0 to 1")) }
}

fn text<T>(result: std::io::Result<T>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::topology::fixture::Tree;

    #[test]
    fn a_pressure_is_injected_as_a_number() {
        assert_eq!(injected("0.25\n"), Ok(0.25));
        assert_eq!(injected("1"), Ok(1.0));
        for wrong in ["", "x", "1.01", "-0.1", "NaN", "0.5 0.5"] {
            assert!(injected(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_of_the_group_has_the_lower_of_two_limits() {
        let tree = Tree::new()
            .file("proc/self/cgroup", "0::/\n")
            .file("sys/fs/cgroup/memory.current", "500\n")
            .file("sys/fs/cgroup/memory.max", "1000\n");
        let pressure = |max| {
            let mut monitor = Monitor::new(&MonitorKind::CgroupMemory { max }, tree.path()).unwrap();
            monitor.pressure(&Process::default(), tree.path()).unwrap()
        };
        assert_eq!([None, Some(2000), Some(625)].map(pressure), [0.5, 0.5, 0.8]);
        let nowhere = Tree::new();
        assert!(Monitor::new(&MonitorKind::CgroupMemory { max: Some(1) }, nowhere.path()).is_err());
    }

    #[test]
    fn the_heap_is_what_is_our_own() {
        let process = Process::default();
        let limit = |bytes| HeapLimit { bytes, runtime_key: "limit".into() };
        let small = heap(&limit(1 << 40), &process).unwrap();
        let large = heap(&limit(1 << 20), &process).unwrap();
        assert!(small > 0.0 && small < 0.1 && large > small * 1000.0, "{small} {large}");
    }
}
