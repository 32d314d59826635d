//! Reading the policy whose weights endpoints report (`ClientSideWeightedRoundRobin`).
//!
//! Owns which metrics make up a weight, and how long a weight is believed. Never sees a report.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::extensions::load_balancing_policies::client_side_weighted_round_robin::v3 as pb;

use super::extension::Chosen;
use super::slow_start::extension_slow_start;
use super::{BalancingOptions, LoadBalancing};
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// How weights follow from reports.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportOptions {
    /// An endpoint must have reported for so long before its weight counts; 10 s unless given.
    pub blackout_period: Duration,
    /// A weight counts no more after so long without a report; 3 min unless given.
    pub weight_expiration_period: Duration,
    /// How often weights are made from reports; 1 s unless given, at least 100 ms.
    pub weight_update_period: Duration,
    /// How much errors count: times errors per request, added to the utilization; 0 or more, 1 unless given.
    pub error_utilization_penalty: f64,
    /// The greatest of these is the utilization, if it is above zero.
    pub metrics: Vec<ReportedMetric>,
}

/// A metric of `xds.data.orca.v3.OrcaLoadReport`, given as `field` or `map.key`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ReportedMetric {
    /// A field that is a number.
    Field(Arc<str>),
    /// An entry of `named_metrics`, `utilization` or `request_cost`.
    Entry(Arc<str>, Arc<str>),
}

/// Reads the extension.
pub(super) fn reported(at: &FieldPath<'_>, wire: pb::ClientSideWeightedRoundRobin) -> Parsed<Chosen> {
    let mut wire = wire;
    wire::drop_false(&mut wire.enable_oob_load_report);
    decide!(wire, at, pb::ClientSideWeightedRoundRobin
        as "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin" {
        implemented: blackout_period, weight_expiration_period, weight_update_period, error_utilization_penalty,
            metric_names_for_computing_utilization, slow_start_config;
        no_effect: oob_reporting_period = "counts with enable_oob_load_report only",
            oob_reporting_config = "counts with enable_oob_load_report only";
        unsupported: enable_oob_load_report;
    });
    let period = |name: &'static str, wire: Option<_>, default| {
        wire.map_or(Ok(default), |wire| wire::duration(&at.field(name), wire))
    };
    let penalty = error_utilization_penalty.map_or(DEFAULT_PENALTY, |penalty| f64::from(penalty.value));
    if !(penalty.is_finite() && penalty >= 0.0) {
        return Err(at.field("error_utilization_penalty").reject(format!("{penalty} must be 0 or more")));
    }
    let reports = ReportOptions {
        blackout_period: period("blackout_period", blackout_period, DEFAULT_BLACKOUT)?,
        weight_expiration_period: period("weight_expiration_period", weight_expiration_period, DEFAULT_EXPIRATION)?,
        weight_update_period: period("weight_update_period", weight_update_period, DEFAULT_UPDATE)?.max(LEAST_UPDATE),
        error_utilization_penalty: penalty,
        metrics: metric_names_for_computing_utilization.iter().map(|name| metric(name)).collect(),
    };
    let options = BalancingOptions {
        reports: Some(Arc::new(reports)),
        slow_start: extension_slow_start(&at.field("slow_start_config"), slow_start_config)?,
        ..BalancingOptions::default()
    };
    Ok(Chosen { policy: LoadBalancing::Reported, options })
}

fn metric(name: &str) -> ReportedMetric {
    match name.split_once('.') {
        Some((map, key)) => ReportedMetric::Entry(map.into(), key.into()),
        None => ReportedMetric::Field(name.into()),
    }
}

const DEFAULT_BLACKOUT: Duration = Duration::from_secs(10);
const DEFAULT_EXPIRATION: Duration = Duration::from_secs(180);
const DEFAULT_UPDATE: Duration = Duration::from_secs(1);
const LEAST_UPDATE: Duration = Duration::from_millis(100);
const DEFAULT_PENALTY: f64 = 1.0;
