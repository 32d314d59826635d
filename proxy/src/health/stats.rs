//! Stats of endpoint health (`cluster.<name>.outlier_detection.*` and `health_check.*`).
//!
//! Owns the metrics' names. Never decides when they change.

use outrigger_policy::outlier::{EventKind, Outlier};

use crate::scope;

scope! {
    /// `cluster.<name>.outlier_detection.*`; one writer, the control thread.
    pub struct OutlierStats {
        ejections_active: Gauge,
        ejections_consecutive_5xx: Counter,
        ejections_detected_consecutive_5xx: Counter,
        ejections_detected_consecutive_gateway_failure: Counter,
        ejections_detected_consecutive_local_origin_failure: Counter,
        ejections_detected_degradation: Counter,
        ejections_detected_failure_percentage: Counter,
        ejections_detected_local_origin_failure_percentage: Counter,
        ejections_detected_local_origin_success_rate: Counter,
        ejections_detected_success_rate: Counter,
        ejections_enforced_consecutive_5xx: Counter,
        ejections_enforced_consecutive_gateway_failure: Counter,
        ejections_enforced_consecutive_local_origin_failure: Counter,
        ejections_enforced_failure_percentage: Counter,
        ejections_enforced_local_origin_failure_percentage: Counter,
        ejections_enforced_local_origin_success_rate: Counter,
        ejections_enforced_success_rate: Counter,
        ejections_enforced_total: Counter,
        ejections_overflow: Counter,
        ejections_success_rate: Counter,
        ejections_total: Counter,
    }
}

scope! {
    /// `cluster.<name>.health_check.*`; one writer, the control thread.
    pub struct HealthCheckStats {
        attempt: Counter,
        degraded: Gauge,
        failure: Counter,
        healthy: Gauge,
        network_failure: Counter,
        passive_failure: Counter,
        success: Counter,
        verify_cluster: Counter,
    }
}

scope! {
    /// `cluster.<name>.health_check.*` of endpoints by all their checks, where each kind of check has a name; one writer,
    /// the control thread.
    pub struct CheckGroupStats {
        degraded: Gauge,
        healthy: Gauge,
    }
}

impl OutlierStats {
    /// Counts what has happened to an endpoint.
    pub fn count(&self, kind: &EventKind) {
        match kind {
            EventKind::Ejected { outlier, enforced, .. } => {
                self.detected(*outlier);
                // Older than the others, and never told what was enforced from what was not.
                if matches!(outlier, Outlier::Consecutive5xx | Outlier::SuccessRate) {
                    self.ejections_total.increment();
                }
                if *enforced {
                    self.enforced(*outlier);
                }
            }
            EventKind::Spared { outlier } => {
                self.detected(*outlier);
                self.ejections_overflow.increment();
            }
            EventKind::Degraded => self.ejections_detected_degradation.increment(),
            EventKind::Unejected | EventKind::Recovered => {}
        }
    }

    fn detected(&self, outlier: Outlier) {
        match outlier {
            Outlier::Consecutive5xx => {
                self.ejections_consecutive_5xx.increment();
                self.ejections_detected_consecutive_5xx.increment();
            }
            Outlier::ConsecutiveGatewayFailure => self.ejections_detected_consecutive_gateway_failure.increment(),
            Outlier::ConsecutiveLocalOriginFailure => {
                self.ejections_detected_consecutive_local_origin_failure.increment();
            }
            Outlier::SuccessRate => {
                self.ejections_success_rate.increment();
                self.ejections_detected_success_rate.increment();
            }
            Outlier::SuccessRateLocalOrigin => {
                self.ejections_success_rate.increment();
                self.ejections_detected_local_origin_success_rate.increment();
            }
            Outlier::FailurePercentage => self.ejections_detected_failure_percentage.increment(),
            Outlier::FailurePercentageLocalOrigin => {
                self.ejections_detected_local_origin_failure_percentage.increment();
            }
            Outlier::Degraded => self.ejections_detected_degradation.increment(),
        }
    }

    fn enforced(&self, outlier: Outlier) {
        self.ejections_enforced_total.increment();
        match outlier {
            Outlier::Consecutive5xx => self.ejections_enforced_consecutive_5xx.increment(),
            Outlier::ConsecutiveGatewayFailure => self.ejections_enforced_consecutive_gateway_failure.increment(),
            Outlier::ConsecutiveLocalOriginFailure => {
                self.ejections_enforced_consecutive_local_origin_failure.increment();
            }
            Outlier::SuccessRate => self.ejections_enforced_success_rate.increment(),
            Outlier::SuccessRateLocalOrigin => self.ejections_enforced_local_origin_success_rate.increment(),
            Outlier::FailurePercentage => self.ejections_enforced_failure_percentage.increment(),
            Outlier::FailurePercentageLocalOrigin => {
                self.ejections_enforced_local_origin_failure_percentage.increment();
            }
            Outlier::Degraded => {}
        }
    }
}
