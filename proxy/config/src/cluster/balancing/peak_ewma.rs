//! Reading the policy by latency (`outrigger.lb.v1.PeakEwma`).
//!
//! Owns the checks of its numbers. Never measures anything.

use std::time::Duration;

use outrigger_api::outrigger::lb_v1 as pb;

use super::extension::Chosen;
use super::locality::extension_locality;
use super::slow_start::extension_slow_start;
use super::{BalancingOptions, LoadBalancing};
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Numbers of the policy by latency.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PeakEwma {
    /// How many endpoints are drawn; at least 2.
    pub choice_count: u32,
    /// After this time what was measured counts for 1/e; above zero, 10 s unless given.
    pub decay: Duration,
    /// Stands for the latency of an endpoint that has not answered yet; above zero, 30 ms unless given.
    pub default_rtt: Duration,
    /// What a failed request counts for at least; 1 s unless given.
    pub failure_penalty: Duration,
}

/// Reads the extension.
pub(super) fn peak_ewma(at: &FieldPath<'_>, wire: pb::PeakEwma) -> Parsed<Chosen> {
    decide!(wire, at, pb::PeakEwma as "outrigger.lb.v1.PeakEwma" {
        implemented: decay_time, default_rtt, choice_count, failure_penalty, slow_start_config, locality_lb_config;
        no_effect: ;
        unsupported: ;
    });
    let positive = |name: &'static str, wire: Option<_>, default| {
        wire.map_or(Ok(default), |wire| wire::positive_duration(&at.field(name), wire))
    };
    let policy = PeakEwma {
        choice_count: wire::number_within(&at.field("choice_count"), choice_count, 2..=u32::MAX)?.unwrap_or(2),
        decay: positive("decay_time", decay_time, DEFAULT_DECAY)?,
        default_rtt: positive("default_rtt", default_rtt, DEFAULT_RTT)?,
        failure_penalty: match failure_penalty {
            None => DEFAULT_PENALTY,
            Some(wire) => wire::duration(&at.field("failure_penalty"), wire)?,
        },
    };
    let options = BalancingOptions {
        slow_start: extension_slow_start(&at.field("slow_start_config"), slow_start_config)?,
        locality: extension_locality(&at.field("locality_lb_config"), locality_lb_config)?,
        ..BalancingOptions::default()
    };
    Ok(Chosen { policy: LoadBalancing::PeakEwma(policy), options })
}

const DEFAULT_DECAY: Duration = Duration::from_secs(10);
const DEFAULT_RTT: Duration = Duration::from_millis(30);
const DEFAULT_PENALTY: Duration = Duration::from_secs(1);
