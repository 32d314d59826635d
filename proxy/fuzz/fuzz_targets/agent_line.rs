//! The line of a health agent (`outrigger.health.v1.AgentCheck`).
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_policy::health::{MAX_PERCENT, agent_report, line_end};

fuzz_target!(|data: &[u8]| {
    let (report, reason) = agent_report(data);
    assert!(report.weight_percent.is_none_or(|percent| percent <= MAX_PERCENT));
    assert!(line_end(reason).is_none());
    // Only the first line counts.
    let line = &data[..line_end(data).unwrap_or(data.len())];
    assert_eq!(agent_report(line), (report, reason));
});
