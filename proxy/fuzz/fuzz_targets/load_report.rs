//! Load reports of endpoints, in all their forms (`endpoint-load-metrics`, `endpoint-load-metrics-bin`).
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use outrigger_config::cluster::{ReportOptions, ReportedMetric};
use outrigger_policy::balance::load_report::LoadReport;

fuzz_target!(|data: &[u8]| {
    let options = ReportOptions {
        blackout_period: Duration::ZERO,
        weight_expiration_period: Duration::from_secs(180),
        weight_update_period: Duration::from_secs(1),
        error_utilization_penalty: 1.0,
        metrics: vec![
            ReportedMetric::Field("mem_utilization".into()),
            ReportedMetric::Entry("named_metrics".into(), "*".into()),
        ],
        out_of_band: None,
    };
    for report in [LoadReport::parse(data, &options), LoadReport::parse_binary(data, &options)] {
        if let Ok(weight) = report.map(|report| report.weight(&options)) {
            assert!(weight.is_none_or(|weight| weight > 0.0 && weight.is_finite()), "{weight:?}");
        }
    }
});
