//! Reading the policy whose weights endpoints report (`ClientSideWeightedRoundRobin`).
//!
//! Owns which metrics make up a weight, how long a weight is believed, and where reports come from apart from answers.
//! Never sees a report.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::extensions::load_balancing_policies::client_side_weighted_round_robin::v3 as pb;
use outrigger_api::pb::envoy::extensions::load_balancing_policies::common::v3 as common;
use outrigger_api::pb::google;

use super::extension::Chosen;
use super::slow_start::extension_slow_start;
use super::{BalancingOptions, LbMetadata, LoadBalancing};
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
    /// Endpoints are asked for reports beside what they say in answers.
    pub out_of_band: Option<Box<OutOfBand>>,
}

/// How endpoints are asked for reports (`xds.service.orca.v3.OpenRcaService`).
#[derive(Clone, Debug, PartialEq)]
pub struct OutOfBand {
    /// The time between reports that is asked for; 10 s unless given.
    pub period: Duration,
    /// Asked at this port, instead of that of the endpoint.
    pub port: Option<u16>,
    /// Whom the call is for (`:authority`); the endpoint's name, or else its address, unless given.
    pub authority: Option<Arc<str>>,
    /// Chooses the transport of the call, instead of what an endpoint says of itself.
    pub transport_criteria: Option<LbMetadata>,
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
    decide!(wire, at, pb::ClientSideWeightedRoundRobin
        as "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin" {
        implemented: blackout_period, weight_expiration_period, weight_update_period, error_utilization_penalty,
            metric_names_for_computing_utilization, slow_start_config, enable_oob_load_report, oob_reporting_period,
            oob_reporting_config;
        no_effect: ;
        unsupported: ;
    });
    let period = |name: &'static str, wire: Option<_>, default| {
        wire.map_or(Ok(default), |wire| wire::duration(&at.field(name), wire))
    };
    let penalty = error_utilization_penalty.map_or(DEFAULT_PENALTY, |penalty| f64::from(penalty.value));
    if !(penalty.is_finite() && penalty >= 0.0) {
        return Err(at.field("error_utilization_penalty").reject(format!("{penalty} must be 0 or more")));
    }
    let oob = out_of_band(at, oob_reporting_period, oob_reporting_config)?;
    let reports = ReportOptions {
        blackout_period: period("blackout_period", blackout_period, DEFAULT_BLACKOUT)?,
        weight_expiration_period: period("weight_expiration_period", weight_expiration_period, DEFAULT_EXPIRATION)?,
        weight_update_period: period("weight_update_period", weight_update_period, DEFAULT_UPDATE)?.max(LEAST_UPDATE),
        error_utilization_penalty: penalty,
        metrics: metric_names_for_computing_utilization.iter().map(|name| metric(name)).collect(),
        out_of_band: enable_oob_load_report.is_some_and(|enabled| enabled.value).then(|| Box::new(oob)),
    };
    let options = BalancingOptions {
        reports: Some(Arc::new(reports)),
        slow_start: extension_slow_start(&at.field("slow_start_config"), slow_start_config)?,
        ..BalancingOptions::default()
    };
    Ok(Chosen { policy: LoadBalancing::Reported, options })
}

/// What counts with `enable_oob_load_report` only, and is checked in any case.
fn out_of_band(
    at: &FieldPath<'_>,
    period: Option<google::protobuf::Duration>,
    wire: Option<common::OrcaOobReportingConfig>,
) -> Parsed<OutOfBand> {
    let period_at = at.field("oob_reporting_period");
    let period = period.map_or(Ok(Duration::ZERO), |period| wire::duration(&period_at, period))?;
    // As in Envoy, no time at all stands for the usual one.
    let period = if period.is_zero() { DEFAULT_REPORTING } else { period };
    let mut options = OutOfBand { period, port: None, authority: None, transport_criteria: None };
    let Some(wire) = wire else { return Ok(options) };
    let at = at.field("oob_reporting_config");
    decide!(wire, at, common::OrcaOobReportingConfig
        as "envoy.extensions.load_balancing_policies.common.v3.OrcaOobReportingConfig" {
        implemented: port_value, authority, transport_socket_match_criteria;
        no_effect: ;
        unsupported: ;
    });
    let port = u16::try_from(port_value)
        .map_err(|_| at.field("port_value").reject(format!("{port_value} must be at most 65535")))?;
    options.port = Some(port).filter(|port| *port != 0);
    wire::header_value(&at.field("authority"), &authority)?;
    options.authority = Some(authority).filter(|authority| !authority.is_empty()).map(Arc::from);
    options.transport_criteria = transport_socket_match_criteria.map(LbMetadata::from);
    Ok(options)
}

/// A metric by the name that configuration gives it.
pub(in crate::cluster) fn metric(name: &str) -> ReportedMetric {
    match name.split_once('.') {
        Some((map, key)) => ReportedMetric::Entry(map.into(), key.into()),
        None => ReportedMetric::Field(name.into()),
    }
}

const DEFAULT_BLACKOUT: Duration = Duration::from_secs(10);
const DEFAULT_EXPIRATION: Duration = Duration::from_secs(180);
const DEFAULT_UPDATE: Duration = Duration::from_secs(1);
const DEFAULT_REPORTING: Duration = Duration::from_secs(10);
const LEAST_UPDATE: Duration = Duration::from_millis(100);
const DEFAULT_PENALTY: f64 = 1.0;
