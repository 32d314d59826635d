//! Settings as runtime values change them (`outlier_detection.*`).
//!
//! Owns the names of the keys. Never reads the runtime itself.

use std::time::Duration;

use outrigger_config::cluster::{Consecutive, Ejection, FailurePercentage, OutlierDetection, SuccessRate};

/// `configured`, with what `number` has under each setting's key in its place. Times are in milliseconds.
pub fn with_runtime(configured: &OutlierDetection, number: &dyn Fn(&str) -> Option<u64>) -> OutlierDetection {
    let lookup = |key: &str| number(&format!("outlier_detection.{key}"));
    let count =
        |key: &str, configured: u32| lookup(key).map_or(configured, |value| u32::try_from(value).unwrap_or(u32::MAX));
    let percent = |key: &str, configured: u32| count(key, configured).min(100);
    let time = |key: &str, configured: Duration| lookup(key).map_or(configured, Duration::from_millis);
    let OutlierDetection {
        interval,
        ejection: Ejection { base_time, max_time, max_jitter, max_percent, always_one },
        consecutive_5xx,
        consecutive_gateway_failure,
        consecutive_local_origin_failure,
        split_external_local_origin_errors,
        success_rate,
        failure_percentage,
        successful_active_health_check_uneject_host,
        detect_degraded_hosts,
        probation_requests,
    } = *configured;
    let consecutive = |name: &str, configured: Consecutive| Consecutive {
        threshold: count(&format!("consecutive_{name}"), configured.threshold),
        enforcing: percent(&format!("enforcing_consecutive_{name}"), configured.enforcing),
    };
    OutlierDetection {
        // An interval of nothing would be a busy loop.
        interval: time("interval_ms", interval).max(Duration::from_millis(1)),
        ejection: Ejection {
            base_time: time("base_ejection_time_ms", base_time),
            max_time: time("max_ejection_time_ms", max_time),
            max_jitter: time("max_ejection_time_jitter_ms", max_jitter),
            max_percent: percent("max_ejection_percent", max_percent),
            always_one,
        },
        consecutive_5xx: consecutive("5xx", consecutive_5xx),
        consecutive_gateway_failure: consecutive("gateway_failure", consecutive_gateway_failure),
        consecutive_local_origin_failure: consecutive("local_origin_failure", consecutive_local_origin_failure),
        split_external_local_origin_errors,
        success_rate: SuccessRate {
            enforcing: percent("enforcing_success_rate", success_rate.enforcing),
            enforcing_local_origin: percent("enforcing_local_origin_success_rate", success_rate.enforcing_local_origin),
            minimum_hosts: count("success_rate_minimum_hosts", success_rate.minimum_hosts),
            request_volume: count("success_rate_request_volume", success_rate.request_volume),
            stdev_factor: count("success_rate_stdev_factor", success_rate.stdev_factor),
        },
        failure_percentage: FailurePercentage {
            threshold: count("failure_percentage_threshold", failure_percentage.threshold),
            enforcing: percent("enforcing_failure_percentage", failure_percentage.enforcing),
            enforcing_local_origin: percent(
                "enforcing_failure_percentage_local_origin",
                failure_percentage.enforcing_local_origin,
            ),
            minimum_hosts: count("failure_percentage_minimum_hosts", failure_percentage.minimum_hosts),
            request_volume: count("failure_percentage_request_volume", failure_percentage.request_volume),
        },
        successful_active_health_check_uneject_host,
        detect_degraded_hosts,
        probation_requests,
    }
}
