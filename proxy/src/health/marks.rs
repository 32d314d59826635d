//! Marks of endpoints that active checks set beside their own state.
//!
//! Owns taking them away, and what a report of an agent changes. Never decides that an endpoint is well.

use std::sync::atomic::Ordering;

use outrigger_policy::health::{AgentMode, AgentReport};

use super::flags::HealthFlag;
use crate::graph::HostList;
use crate::upstream::host::HostShared;

/// Takes away the marks of checks. Whether there were any.
pub(super) fn unmark(hosts: &HostList) -> bool {
    let mut changed = forget_agents(hosts);
    for host in &hosts.hosts {
        for flag in [
            HealthFlag::FailedActiveCheck,
            HealthFlag::DegradedActiveCheck,
            HealthFlag::PendingActiveCheck,
            HealthFlag::PendingRemoval,
            HealthFlag::Excluded,
            HealthFlag::ActiveCheckTimeout,
        ] {
            changed |= host.shared.flags.set(flag, false);
        }
    }
    changed
}

/// Takes away what agents have said. Whether that was anything.
pub(super) fn forget_agents(hosts: &HostList) -> bool {
    let mut changed = false;
    for host in &hosts.hosts {
        let HostShared { flags, agent_weight, agent_max_requests, .. } = &*host.shared;
        for flag in [HealthFlag::AgentDraining, HealthFlag::AgentMaintenance, HealthFlag::AgentWeightless] {
            changed |= flags.set(flag, false);
        }
        changed |= agent_weight.swap(0, Ordering::Relaxed) != 0;
        agent_max_requests.store(0, Ordering::Relaxed);
    }
    changed
}

/// Takes in what an agent says. Whether that changed anything that balancing looks at.
pub(super) fn take_report(host: &HostShared, report: &AgentReport) -> bool {
    let AgentReport { up: _, mode, weight_percent, max_requests } = *report;
    let mut changed = false;
    if let Some(mode) = mode {
        changed |= host.flags.set(HealthFlag::AgentDraining, mode == AgentMode::Drain);
        changed |= host.flags.set(HealthFlag::AgentMaintenance, mode == AgentMode::Maintenance);
    }
    if let Some(percent) = weight_percent {
        changed |= host.flags.set(HealthFlag::AgentWeightless, percent == 0);
        changed |= host.set_agent_weight(percent);
    }
    if let Some(limit) = max_requests {
        host.agent_max_requests.store(limit, Ordering::Relaxed);
    }
    changed
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use outrigger_config::cluster::HealthStatus;
    use outrigger_policy::balance::Health;
    use outrigger_policy::health::agent_report;

    use super::*;

    #[test]
    fn an_agent_changes_what_it_mentions_and_nothing_else() {
        let host = Arc::new(HostShared::default());
        let tell = |line: &str| take_report(&host, &agent_report(line.as_bytes()).0);
        let health = || host.flags.health(HealthStatus::Healthy);
        assert!(!tell("up") && !tell("ready") && !tell("maxconn:30"));
        assert_eq!((host.agent_max_requests.load(Ordering::Relaxed), host.agent_weight_percent()), (30, 100));
        assert!(tell("75%") && !tell("75%"));
        assert_eq!((host.agent_weight_percent(), health()), (75, Health::Healthy));
        assert!(tell("0%"));
        assert_eq!(health(), Health::Unhealthy);
        assert!(tell("100% drain"));
        // Draining is no failure: connections stay.
        assert_eq!((health(), host.flags.has_failed()), (Health::Unhealthy, false));
        assert!(tell("maint"));
        assert_eq!((health(), host.flags.has_failed()), (Health::Unhealthy, true));
        assert!(tell("ready"));
        assert_eq!((health(), host.flags.text(HealthStatus::Healthy)), (Health::Healthy, "healthy".to_owned()));
        assert_eq!(host.agent_max_requests.load(Ordering::Relaxed), 30);
    }
}
