//! Protection that nobody asked for: from the memory limit of the control group, beyond which the kernel kills.
//!
//! Owns when it is there, and what it does. Never there where an overload manager does something itself, or is
//! configured to be empty.

use std::path::Path;
use std::time::Duration;

use outrigger_config::overload::{OverloadAction, OverloadActionKind, OverloadManager, Trigger, TriggerKind};

use super::cgroup::{self, Group};
use super::control::Plan;
use super::monitor::Monitor;
use crate::process::Process;

/// What its stats are called. The name differs from that of the configured monitor of control groups, since that counts
/// cached files, which the kernel takes back by itself.
pub(super) const MONITOR: &str = "outrigger.resource_monitors.cgroup_memory";
/// `false` switches it off while the process runs.
pub(super) const RUNTIME_KEY: &str = "outrigger.overload.cgroup_memory";

/// From this share of the limit on, free memory goes back to the system.
const SHRINK: f64 = 0.95;
/// From this share on, requests are answered with 503.
const STOP: f64 = 0.98;
const REFRESH: Duration = Duration::from_secs(1);
const SHRINK_INTERVAL: Duration = Duration::from_secs(10);

/// Adds it to what is configured, where it is due.
pub(super) fn add(plan: &mut Plan, config: Option<&OverloadManager>, root: &Path) {
    if config.is_some_and(|config| config.acts() || config.is_empty()) {
        return;
    }
    let limited = |group: &Group| matches!(group.limit(), Ok(Some(_)));
    let groups: Vec<Group> = cgroup::groups(root).into_iter().filter(limited).collect();
    if groups.is_empty() {
        return;
    }
    let monitor = plan.monitors.len();
    plan.monitors.push((MONITOR.into(), Monitor::Unreclaimable { groups }));
    let action = |name: &str, kind, threshold| OverloadAction {
        name: name.into(),
        kind,
        triggers: vec![Trigger { monitor, kind: TriggerKind::Threshold(threshold) }],
    };
    let shrink = OverloadActionKind::ShrinkHeap { interval: SHRINK_INTERVAL };
    plan.actions.push(action("envoy.overload_actions.shrink_heap", shrink, SHRINK));
    let stop = OverloadActionKind::StopAcceptingRequests;
    plan.actions.push(action("envoy.overload_actions.stop_accepting_requests", stop, STOP));
    if config.is_none() {
        plan.interval = REFRESH;
    }
}

/// The pressure on the tightest of these groups.
pub(super) fn pressure(groups: &[Group], process: &Process) -> Result<f64, String> {
    if !process.graph.load().runtime.flag(RUNTIME_KEY, true) {
        return Ok(0.0);
    }
    let mut highest = 0.0;
    for group in groups {
        let memory = group.read().map_err(|error| error.to_string())?;
        highest = f64::max(highest, memory.pressure());
    }
    Ok(highest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::topology::fixture::Tree;

    fn limited(limit: &str) -> Tree {
        Tree::new()
            .file("proc/self/cgroup", "0::/\n")
            .file("sys/fs/cgroup/memory.current", "970\n")
            .file("sys/fs/cgroup/memory.max", limit)
            .file("sys/fs/cgroup/memory.stat", "inactive_file 10\nactive_file 10\n")
    }

    fn plan(config: Option<&OverloadManager>, tree: &Tree) -> Plan {
        let mut plan = Plan::new(config, tree.path()).unwrap();
        add(&mut plan, config, tree.path());
        plan
    }

    fn manager() -> OverloadManager {
        OverloadManager {
            refresh_interval: Duration::from_secs(7),
            monitors: Vec::new(),
            actions: Vec::new(),
            load_shed_points: Vec::new(),
        }
    }

    fn watching() -> OverloadManager {
        use outrigger_config::overload::{CONNECTIONS, MonitorKind, ResourceMonitor};
        let kind = MonitorKind::DownstreamConnections { max: 5 };
        OverloadManager { monitors: vec![ResourceMonitor { name: CONNECTIONS.into(), kind }], ..manager() }
    }

    #[test]
    fn it_is_there_where_the_group_has_a_limit_and_nobody_said_otherwise() {
        let tree = limited("1000\n");
        let mut found = plan(None, &tree);
        assert_eq!((found.monitors.len(), found.actions.len(), found.interval), (1, 2, REFRESH));
        assert_eq!(found.monitors[0].1.pressure(&Process::default(), tree.path()), Ok(0.95));
        // A manager that only counts connections, as meshes have it, leaves room for it.
        let beside = plan(Some(&watching()), &tree);
        assert_eq!((beside.monitors.len(), beside.actions.len()), (2, 2));
        assert_eq!(beside.interval, Duration::from_secs(7));
        assert_eq!(beside.actions[0].triggers[0].monitor, 1);
    }

    #[test]
    fn it_is_not_there_without_a_limit_or_where_it_is_switched_off() {
        for (config, limit) in [(None, "max\n"), (Some(manager()), "1000\n")] {
            let found = plan(config.as_ref(), &limited(limit));
            assert!(found.monitors.is_empty() && found.actions.is_empty());
        }
        let mut acting = watching();
        let triggers = vec![Trigger { monitor: 0, kind: TriggerKind::Threshold(0.5) }];
        let kind = OverloadActionKind::DisableHttpKeepalive;
        acting.actions.push(OverloadAction { name: "a".into(), kind, triggers });
        assert_eq!(plan(Some(&acting), &limited("1000\n")).monitors.len(), 1);
    }
}
