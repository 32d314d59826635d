//! Refusing a share of requests while too many fail (`envoy.extensions.filters.http.admission_control.v3`).
//!
//! Owns what success is and how the share follows from failures. Never refuses a request.

use std::ops::Range;
use std::time::Duration;

use outrigger_api::pb::envoy::extensions::filters::http::admission_control::v3 as pb;
use outrigger_api::pb::envoy::r#type::v3::Int32Range;

use crate::decide::decide;
use crate::network::RuntimeFlag;
use crate::rejection::{FieldPath, Parsed};
use crate::units::RuntimeNumber;
use crate::wire;

/// Source: `envoy.extensions.filters.http.admission_control.v3.AdmissionControl`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdmissionControl {
    /// Whether requests are refused and counted.
    pub enabled: RuntimeFlag,
    /// Statuses of answers that are successes.
    pub http_success: Box<[Range<u16>]>,
    /// Statuses of gRPC that are successes, each a bit; 0 to 16.
    pub grpc_success: u32,
    /// How far back answers count, in whole seconds.
    pub window: Duration,
    /// How steeply the share of refused requests rises; below 1 counts as 1.
    pub aggression: RuntimeNumber,
    /// Percent of successes below which requests are refused.
    pub success_threshold: RuntimeNumber,
    /// With fewer requests in a second none is refused.
    pub rps_threshold: RuntimeNumber,
    /// Percent of requests that are refused at most.
    pub max_rejection: RuntimeNumber,
}

impl AdmissionControl {
    /// Whether a status of an answer is a success.
    pub fn is_http_success(&self, status: u16) -> bool {
        self.http_success.iter().any(|range| range.contains(&status))
    }

    /// Whether a status of gRPC is a success.
    pub fn is_grpc_success(&self, status: u32) -> bool {
        1_u32.checked_shl(status).is_some_and(|bit| self.grpc_success & bit != 0)
    }

    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::AdmissionControl) -> Parsed<Self> {
        decide!(wire, at, pb::AdmissionControl as "envoy.extensions.filters.http.admission_control.v3.AdmissionControl" {
            implemented: enabled, evaluation_criteria, sampling_window, aggression, sr_threshold, rps_threshold,
                max_rejection_probability;
            no_effect: ;
            unsupported: ;
        });
        use pb::admission_control::EvaluationCriteria;
        let criteria_at = at.field("success_criteria");
        let Some(EvaluationCriteria::SuccessCriteria(criteria)) = evaluation_criteria else {
            return Err(criteria_at.reject("is required"));
        };
        let (http_success, grpc_success) = success(&criteria_at, criteria)?;
        let threshold_at = at.field("sr_threshold");
        let success_threshold = wire::runtime_percent(&threshold_at, sr_threshold, DEFAULT_SUCCESS_PERCENT)?;
        if success_threshold.default < LOWEST_SUCCESS_PERCENT {
            let value_at = threshold_at.field("default_value");
            return Err(value_at.reject(format!("{} is below {LOWEST_SUCCESS_PERCENT}", success_threshold.default)));
        }
        let window =
            sampling_window.map_or(Ok(DEFAULT_WINDOW), |wire| wire::duration(&at.field("sampling_window"), wire))?;
        Ok(Self {
            enabled: match enabled {
                None => RuntimeFlag::ON,
                Some(wire) => RuntimeFlag::parse(&at.field("enabled"), wire)?,
            },
            http_success,
            grpc_success,
            window: Duration::from_secs(window.as_secs()),
            aggression: wire::runtime_double(&at.field("aggression"), aggression, 1.0)?,
            success_threshold,
            rps_threshold: wire::runtime_uint32(rps_threshold, 0),
            max_rejection: wire::runtime_percent(
                &at.field("max_rejection_probability"),
                max_rejection_probability,
                DEFAULT_MAX_REJECTION_PERCENT,
            )?,
        })
    }
}

fn success(at: &FieldPath<'_>, wire: pb::admission_control::SuccessCriteria) -> Parsed<(Box<[Range<u16>]>, u32)> {
    use pb::admission_control::SuccessCriteria;
    decide!(wire, at, SuccessCriteria as "envoy.extensions.filters.http.admission_control.v3.AdmissionControl.SuccessCriteria" {
        implemented: http_criteria, grpc_criteria;
        no_effect: ;
        unsupported: ;
    });
    let http = match http_criteria {
        None => std::iter::once(0..500).collect(),
        Some(criteria) => {
            let at = at.field("http_criteria");
            let at = at.field("http_success_status");
            if criteria.http_success_status.is_empty() {
                return Err(at.reject("must not be empty"));
            }
            wire::each(&at, criteria.http_success_status, status_range)?.into()
        }
    };
    let grpc = match grpc_criteria {
        None => DEFAULT_GRPC_SUCCESS,
        Some(criteria) => {
            let at = at.field("grpc_criteria");
            let at = at.field("grpc_success_status");
            if criteria.grpc_success_status.is_empty() {
                return Err(at.reject("must not be empty"));
            }
            let bits = wire::each(&at, criteria.grpc_success_status, |at, status| match status {
                0..=HIGHEST_GRPC_STATUS => Ok(1_u32 << status),
                _ => Err(at.reject(format!("{status} is not a status of gRPC, expected up to {HIGHEST_GRPC_STATUS}"))),
            })?;
            bits.into_iter().fold(0, |all, bit| all | bit)
        }
    };
    Ok((http, grpc))
}

fn status_range(at: &FieldPath<'_>, wire: Int32Range) -> Parsed<Range<u16>> {
    let Int32Range { start, end } = wire;
    match (u16::try_from(start), u16::try_from(end)) {
        (Ok(start @ 100..), Ok(end @ ..=600)) if start < end => Ok(start..end),
        _ => Err(at.reject(format!("{start} to {end} is not a range of statuses within 100 to 600"))),
    }
}

const DEFAULT_WINDOW: Duration = Duration::from_secs(30);
const DEFAULT_SUCCESS_PERCENT: f64 = 95.0;
const LOWEST_SUCCESS_PERCENT: f64 = 1.0;
const DEFAULT_MAX_REJECTION_PERCENT: f64 = 80.0;
const HIGHEST_GRPC_STATUS: u32 = 16;
/// OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED, FAILED_PRECONDITION,
/// OUT_OF_RANGE, UNIMPLEMENTED and UNAUTHENTICATED: what fewer requests would not change.
const DEFAULT_GRPC_SUCCESS: u32 =
    1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 16;

#[cfg(test)]
mod tests {
    use outrigger_api::pb::envoy::config::core::v3::RuntimePercent;
    use outrigger_api::pb::envoy::r#type::v3::Percent;

    use super::*;

    type Criteria = pb::admission_control::SuccessCriteria;

    fn with(criteria: Criteria) -> pb::AdmissionControl {
        let criteria = pb::admission_control::EvaluationCriteria::SuccessCriteria(criteria);
        pb::AdmissionControl { evaluation_criteria: Some(criteria), ..Default::default() }
    }

    fn read(wire: pb::AdmissionControl) -> Result<AdmissionControl, String> {
        AdmissionControl::parse(&FieldPath::resource("listener", "l"), wire).map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn defaults_are_envoys() {
        let read = read(with(Criteria::default())).unwrap();
        assert_eq!(read.window, Duration::from_secs(30));
        let numbers = [&read.aggression, &read.success_threshold, &read.rps_threshold, &read.max_rejection];
        assert_eq!(numbers.map(|number| number.default), [1.0, 95.0, 0.0, 80.0]);
        assert!(read.is_http_success(499) && !read.is_http_success(500));
        let good: Vec<u32> = (0..40).filter(|status| read.is_grpc_success(*status)).collect();
        assert_eq!(good, [0, 1, 2, 3, 5, 6, 7, 9, 11, 12, 16]);
    }

    #[test]
    fn settings_that_say_nothing_sensible_are_refused() {
        use pb::admission_control::success_criteria::{GrpcCriteria, HttpCriteria};
        let http = |start, end| {
            let http_success_status = vec![Int32Range { start, end }];
            with(Criteria { http_criteria: Some(HttpCriteria { http_success_status }), grpc_criteria: None })
        };
        let grpc = |grpc_success_status| {
            with(Criteria { http_criteria: None, grpc_criteria: Some(GrpcCriteria { grpc_success_status }) })
        };
        let low = RuntimePercent { default_value: Some(Percent { value: 0.5 }), runtime_key: String::new() };
        for (wire, expected) in [
            (pb::AdmissionControl::default(), "success_criteria: is required"),
            (
                http(200, 200),
                "success_criteria.http_criteria.http_success_status[0]: \
                 200 to 200 is not a range of statuses within 100 to 600",
            ),
            (grpc(vec![]), "success_criteria.grpc_criteria.grpc_success_status: must not be empty"),
            (
                grpc(vec![0, 17]),
                "success_criteria.grpc_criteria.grpc_success_status[1]: 17 is not a status of gRPC, expected up to 16",
            ),
            (
                pb::AdmissionControl { sr_threshold: Some(low), ..with(Criteria::default()) },
                "sr_threshold.default_value: 0.5 is below 1",
            ),
        ] {
            assert_eq!(read(wire).unwrap_err(), format!("listener \"l\": {expected}"));
        }
        let only = read(grpc(vec![3])).unwrap();
        assert!(only.is_grpc_success(3) && !only.is_grpc_success(0));
    }
}
