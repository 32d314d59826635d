//! Hosts, policies and what requests leave behind: what picks are measured on.

use std::sync::Arc;
use std::time::Duration;

use outrigger_config::cluster::{BalancingOptions, Consistent, HashFunction, PeakEwma, ReportOptions};
use outrigger_config::units::Percent;
use outrigger_policy::balance::{
    BalanceOptions, Facts, Health, Host, HostIndex, HostSet, Inputs, Latency, Load, Policy, ReportedWeight,
};

use crate::Numbers;

const CONSISTENT: Consistent = Consistent { use_hostname: false, balance_factor: None };
/// Each policy that picks, by name.
pub const POLICIES: [(&str, Policy); 9] = [
    ("round_robin", Policy::RoundRobin),
    ("least_request", Policy::LeastRequest { choice_count: 2, active_request_bias: 1.0 }),
    ("least_request_of_all", Policy::LeastRequest { choice_count: u32::MAX, active_request_bias: 1.0 }),
    ("peak_ewma", Policy::PeakEwma(PEAK_EWMA)),
    ("reported", Policy::Reported),
    ("random", Policy::Random),
    ("pick_first", Policy::PickFirst { shuffle: true }),
    (
        "ring_hash",
        Policy::RingHash {
            function: HashFunction::XxHash,
            minimum_size: 1024,
            maximum_size: 8 << 20,
            consistent: CONSISTENT,
        },
    ),
    ("maglev", Policy::Maglev { table_size: 65_537, consistent: CONSISTENT }),
];
const PEAK_EWMA: PeakEwma = PeakEwma {
    choice_count: 2,
    decay: Duration::from_secs(10),
    default_rtt: Duration::from_millis(30),
    failure_penalty: Duration::from_secs(1),
};
/// How many different weights there are.
pub const WEIGHTS: [(&str, u32); 2] = [("equal", 1), ("weighted", 10)];

/// Hosts whose weights go from 1 to `weights` and over again.
pub fn hosts(count: u32, weights: u32) -> Vec<Host> {
    (0..count).map(|number| Host { weight: number % weights + 1, health: Health::Healthy, priority: 0 }).collect()
}

/// Options of a cluster with this policy and otherwise none.
pub fn options(policy: Policy) -> BalanceOptions {
    let panic_threshold = Percent::new(50.0).unwrap_or_else(|| unreachable!("50 is a percentage"));
    BalanceOptions { policy, overprovisioning_factor: 140, panic_threshold, weighted_priority_health: false }
}

/// Nothing is known of hosts.
struct Unknown;

impl Facts for Unknown {}

/// Hosts, ready to be picked from.
pub fn set(hosts: &[Host], policy: Policy) -> Arc<HostSet> {
    let reports = ReportOptions {
        blackout_period: Duration::ZERO,
        weight_expiration_period: Duration::from_secs(180),
        weight_update_period: Duration::from_secs(1),
        error_utilization_penalty: 1.0,
        metrics: Vec::new(),
        out_of_band: None,
    };
    let options = BalancingOptions { reports: Some(Arc::new(reports)), ..BalancingOptions::default() };
    Arc::new(HostSet::build_with(&Inputs { hosts, balance: self::options(policy), options: &options, facts: &Unknown }))
}

/// What requests have left behind at hosts.
pub struct Busy {
    active: Vec<u32>,
    latencies: Vec<Latency>,
    weights: Vec<ReportedWeight>,
}

impl Busy {
    /// Of so many hosts.
    pub fn new(count: u32, numbers: &mut Numbers) -> Self {
        let latency = |milliseconds| {
            let mut latency = Latency::default();
            latency.record(Duration::from_millis(milliseconds), 1, &PEAK_EWMA);
            latency
        };
        Self {
            // Requests in flight differ, so that least request has something to weigh.
            active: (0..count).map(|_| (numbers.draw() % 8) as u32).collect(),
            latencies: (0..count).map(|_| latency(numbers.draw() % 50)).collect(),
            weights: (0..count)
                .map(|_| ReportedWeight { weight: (numbers.draw() % 1000 + 1) as f64, since: 1, last: 1 })
                .collect(),
        }
    }
}

impl Load for Busy {
    fn active_requests(&self, host: HostIndex) -> u32 {
        self.active[host.0 as usize]
    }

    fn latency(&self, host: HostIndex) -> Latency {
        self.latencies[host.0 as usize]
    }

    fn reported(&self, host: HostIndex) -> ReportedWeight {
        self.weights[host.0 as usize]
    }
}
