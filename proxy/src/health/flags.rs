//! What checks and outlier detection have found about an endpoint.
//!
//! Owns the marks and what they mean for balancing, together with what discovery says. Never decides to set one.

use std::sync::atomic::{AtomicU16, Ordering};

use outrigger_config::cluster::HealthStatus;
use outrigger_policy::balance::Health;

/// A mark on an endpoint. The values are bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub enum HealthFlag {
    /// Active checks fail, or none has succeeded yet.
    FailedActiveCheck = 1 << 0,
    /// Ejected by outlier detection.
    FailedOutlierCheck = 1 << 1,
    /// Active checks say that it is degraded.
    DegradedActiveCheck = 1 << 2,
    /// Gone from discovery, but active checks still succeed.
    PendingRemoval = 1 << 3,
    /// Not checked yet, and not to be counted before.
    PendingActiveCheck = 1 << 4,
    /// It asked not to be counted.
    Excluded = 1 << 5,
    /// The last active check failed because its time was over.
    ActiveCheckTimeout = 1 << 6,
    /// Its responses say that it is degraded.
    DegradedOutlierCheck = 1 << 7,
    /// Its agent wants no new requests.
    AgentDraining = 1 << 8,
    /// Its agent wants no requests at all.
    AgentMaintenance = 1 << 9,
    /// Its agent gives it no weight.
    AgentWeightless = 1 << 10,
    /// It was ejected, and owes some successes.
    OnProbation = 1 << 11,
    /// An operator wants it to get no new requests.
    DrainsByHand = 1 << 12,
}

/// The marks of one endpoint. Written by the control thread, read by everybody.
#[derive(Debug, Default)]
pub struct HealthFlags(AtomicU16);

impl HealthFlags {
    /// Whether the mark is there.
    pub fn has(&self, flag: HealthFlag) -> bool {
        self.0.load(Ordering::Relaxed) & flag as u16 != 0
    }

    /// Sets or takes away the mark. Whether that changed anything.
    pub fn set(&self, flag: HealthFlag, on: bool) -> bool {
        let bit = flag as u16;
        let old = if on { self.0.fetch_or(bit, Ordering::Relaxed) } else { self.0.fetch_and(!bit, Ordering::Relaxed) };
        (old & bit != 0) != on
    }

    /// Whether checks or outlier detection keep requests away.
    pub fn has_failed(&self) -> bool {
        const FAILED: u16 = HealthFlag::FailedActiveCheck as u16
            | HealthFlag::FailedOutlierCheck as u16
            | HealthFlag::AgentMaintenance as u16;
        self.0.load(Ordering::Relaxed) & FAILED != 0
    }

    /// What balancing makes of the marks and of what discovery says.
    pub fn health(&self, discovered: HealthStatus) -> Health {
        use HealthFlag::{
            AgentDraining, AgentWeightless, DegradedActiveCheck, DegradedOutlierCheck, DrainsByHand, Excluded,
            PendingActiveCheck,
        };
        if self.has(PendingActiveCheck) || self.has(Excluded) {
            return Health::Excluded;
        }
        match discovered {
            HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout => Health::Unhealthy,
            _ if self.has_failed() || self.has(AgentDraining) || self.has(AgentWeightless) => Health::Unhealthy,
            _ if self.has(DrainsByHand) => Health::Unhealthy,
            HealthStatus::Degraded => Health::Degraded,
            _ if self.has(DegradedActiveCheck) || self.has(DegradedOutlierCheck) => Health::Degraded,
            HealthStatus::Unknown | HealthStatus::Healthy => Health::Healthy,
        }
    }

    /// The status that counts where a request names its endpoint.
    pub fn status(&self, discovered: HealthStatus) -> HealthStatus {
        use HealthFlag::{DegradedActiveCheck, DegradedOutlierCheck};
        match discovered {
            _ if self.has_failed() => HealthStatus::Unhealthy,
            HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout => discovered,
            _ if self.has(DegradedActiveCheck) || self.has(DegradedOutlierCheck) => HealthStatus::Degraded,
            HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded => discovered,
        }
    }

    /// As `/clusters` shows them, in Envoy's words and order, and then in ours.
    pub fn text(&self, discovered: HealthStatus) -> String {
        let own = |flag| self.has(flag);
        let eds = |statuses: &[HealthStatus]| statuses.contains(&discovered);
        let shown = [
            (own(HealthFlag::FailedActiveCheck), "/failed_active_hc"),
            (own(HealthFlag::FailedOutlierCheck), "/failed_outlier_check"),
            (eds(&[HealthStatus::Unhealthy, HealthStatus::Timeout]), "/failed_eds_health"),
            (own(HealthFlag::DegradedActiveCheck), "/degraded_active_hc"),
            (eds(&[HealthStatus::Degraded]), "/degraded_eds_health"),
            (own(HealthFlag::PendingRemoval), "/pending_dynamic_removal"),
            (own(HealthFlag::PendingActiveCheck), "/pending_active_hc"),
            (own(HealthFlag::Excluded), "/excluded_via_immediate_hc_fail"),
            (own(HealthFlag::ActiveCheckTimeout), "/active_hc_timeout"),
            (eds(&[HealthStatus::Draining]), "/eds_status_draining"),
            (own(HealthFlag::DegradedOutlierCheck), "/degraded_outlier_detection"),
            (own(HealthFlag::AgentDraining), "/agent_drain"),
            (own(HealthFlag::AgentMaintenance), "/agent_maint"),
            (own(HealthFlag::AgentWeightless), "/agent_no_weight"),
            (own(HealthFlag::OnProbation), "/on_probation"),
            (own(HealthFlag::DrainsByHand), "/override_drain"),
        ];
        let text: String = shown.into_iter().filter(|(shown, _)| *shown).map(|(_, name)| name).collect();
        if text.is_empty() { "healthy".to_owned() } else { text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_that_is_said_counts() {
        let flags = HealthFlags::default();
        assert_eq!(
            (flags.health(HealthStatus::Unknown), &*flags.text(HealthStatus::Unknown)),
            (Health::Healthy, "healthy")
        );
        assert!(flags.set(HealthFlag::DegradedOutlierCheck, true));
        assert!(!flags.set(HealthFlag::DegradedOutlierCheck, true));
        assert_eq!(flags.health(HealthStatus::Healthy), Health::Degraded);
        assert_eq!(flags.status(HealthStatus::Healthy), HealthStatus::Degraded);
        assert_eq!(flags.status(HealthStatus::Draining), HealthStatus::Draining);
        assert_eq!(flags.health(HealthStatus::Draining), Health::Unhealthy);
        flags.set(HealthFlag::FailedOutlierCheck, true);
        assert_eq!(flags.health(HealthStatus::Degraded), Health::Unhealthy);
        assert_eq!(
            flags.text(HealthStatus::Draining),
            "/failed_outlier_check/eds_status_draining/degraded_outlier_detection"
        );
        flags.set(HealthFlag::PendingActiveCheck, true);
        assert_eq!(flags.health(HealthStatus::Healthy), Health::Excluded);
        assert!(flags.set(HealthFlag::PendingActiveCheck, false) && flags.has_failed());
    }
}
