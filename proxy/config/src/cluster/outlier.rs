//! Outlier detection (`envoy.config.cluster.v3.OutlierDetection`).
//!
//! Owns the checked settings and their defaults. Never counts results or ejects anybody (see `outrigger-policy`).

use std::time::Duration;

use outrigger_api::pb::envoy::config::cluster::v3 as pb;
use outrigger_api::pb::envoy::config::core::v3::Metadata;
use outrigger_api::pb::google::protobuf::value::Kind;
use outrigger_api::pb::google::protobuf::{Duration as WireDuration, UInt32Value, Value};

use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// How a cluster finds endpoints that do worse than others, checked. Percentages are whole numbers within 0..=100.
///
/// What is found is acted upon with the chance that the `enforcing` number beside it gives, in percent.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierDetection {
    /// Time between two looks at the statistics, and at who may come back; 10 s unless given.
    pub interval: Duration,
    /// How ejections last and how many there may be.
    pub ejection: Ejection,
    /// 5xx responses in a row.
    pub consecutive_5xx: Consecutive,
    /// 502, 503 and 504 responses in a row.
    pub consecutive_gateway_failure: Consecutive,
    /// Failures before a response, in a row. Only with `split_external_local_origin_errors`.
    pub consecutive_local_origin_failure: Consecutive,
    /// Failures that never reached the application (no connection, time over) are counted apart from its responses.
    /// Otherwise they count as if it had answered 5xx.
    pub split_external_local_origin_errors: bool,
    /// Success rates far below those of the others.
    pub success_rate: SuccessRate,
    /// Failure percentages above a threshold.
    pub failure_percentage: FailurePercentage,
    /// A successful active health check ends an ejection; true unless given.
    pub successful_active_health_check_uneject_host: bool,
    /// Responses with `x-envoy-degraded` make an endpoint degraded for a while.
    pub detect_degraded_hosts: bool,
    /// Successes that an endpoint owes after an ejection: until then it gets a tenth of its share, and one failure ejects it
    /// again. None for 0. Source: `probation_requests` in the namespace `outrigger.outlier` of `Cluster.metadata`.
    pub probation_requests: u32,
}

/// How ejections last and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ejection {
    /// The first lasts as long, further ones as many times longer; 30 s unless given.
    pub base_time: Duration,
    /// None lasts longer, but for jitter; 300 s or `base_time` unless given, whichever is more.
    pub max_time: Duration,
    /// Added at random, up to this.
    pub max_jitter: Duration,
    /// Share of the cluster's endpoints that may be ejected at the same time; 10 unless given.
    pub max_percent: u32,
    /// One endpoint may be ejected whatever `max_percent` says.
    pub always_one: bool,
}

/// A number of events in a row that makes an outlier.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Consecutive {
    /// 5 unless given; 0 for never.
    pub threshold: u32,
    /// 100 unless given, 0 for gateway failures.
    pub enforcing: u32,
}

/// Outliers by success rate: those below mean minus standard deviation times a factor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SuccessRate {
    /// 100 unless given.
    pub enforcing: u32,
    /// The same for failures before a response; 100 unless given.
    pub enforcing_local_origin: u32,
    /// As many endpoints must have the request volume; 5 unless given.
    pub minimum_hosts: u32,
    /// As many requests within the interval; 100 unless given.
    pub request_volume: u32,
    /// The factor in thousandths; 1900 unless given.
    pub stdev_factor: u32,
}

/// Outliers by failure percentage.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FailurePercentage {
    /// An outlier fails in so many of a hundred requests, or more; 85 unless given.
    pub threshold: u32,
    /// 0 unless given.
    pub enforcing: u32,
    /// The same for failures before a response; 0 unless given.
    pub enforcing_local_origin: u32,
    /// As many endpoints must have the request volume; 5 unless given.
    pub minimum_hosts: u32,
    /// As many requests within the interval; 50 unless given.
    pub request_volume: u32,
}

/// What a cluster says about probation, which Envoy's message has no field for.
pub(super) fn probation_requests(at: &FieldPath<'_>, metadata: Option<&Metadata>) -> Parsed<u32> {
    let Some(own) = metadata.and_then(|metadata| metadata.filter_metadata.get(NAMESPACE)) else { return Ok(0) };
    let all = at.field("filter_metadata");
    let at = all.field(NAMESPACE);
    let mut requests = 0;
    for (key, Value { kind }) in &own.fields {
        match (&**key, kind) {
            ("probation_requests", Some(Kind::NumberValue(number)))
                if number.fract() == 0.0 && (0.0..=f64::from(MOST_PROBATION)).contains(number) =>
            {
                requests = *number as u32;
            }
            ("probation_requests", _) => {
                let at = at.field("probation_requests");
                return Err(at.reject(format!("must be a whole number within 0 to {MOST_PROBATION}")));
            }
            _ => return Err(at.reject(format!("{key:?} is not known, expected probation_requests"))),
        }
    }
    Ok(requests)
}

const NAMESPACE: &str = "outrigger.outlier";
const MOST_PROBATION: u32 = 1_000_000;

/// Reads outlier detection.
pub(super) fn outlier_detection(
    at: &FieldPath<'_>,
    wire: pb::OutlierDetection,
    probation_requests: u32,
) -> Parsed<OutlierDetection> {
    decide!(wire, at, pb::OutlierDetection as "envoy.config.cluster.v3.OutlierDetection" {
        implemented: consecutive_5xx, interval, base_ejection_time, max_ejection_percent, enforcing_consecutive_5xx,
            enforcing_success_rate, success_rate_minimum_hosts, success_rate_request_volume,
            success_rate_stdev_factor, consecutive_gateway_failure, enforcing_consecutive_gateway_failure,
            split_external_local_origin_errors, consecutive_local_origin_failure,
            enforcing_consecutive_local_origin_failure, enforcing_local_origin_success_rate,
            failure_percentage_threshold, enforcing_failure_percentage, enforcing_failure_percentage_local_origin,
            failure_percentage_minimum_hosts, failure_percentage_request_volume, max_ejection_time,
            max_ejection_time_jitter, successful_active_health_check_uneject_host, always_eject_one_host,
            detect_degraded_hosts;
        no_effect: ;
        unsupported: monitors;
    });
    let percent = |field, value, default| percent(at, field, value, default);
    let number = |value: Option<UInt32Value>, default: u32| value.map_or(default, |value| value.value);
    Ok(OutlierDetection {
        interval: positive(at, "interval", interval, DEFAULT_INTERVAL)?,
        ejection: ejection(
            at,
            EjectionFields {
                base: base_ejection_time,
                max: max_ejection_time,
                jitter: max_ejection_time_jitter,
                percent: percent("max_ejection_percent", max_ejection_percent, 10)?,
                always_one: always_eject_one_host.is_some_and(|flag| flag.value),
            },
        )?,
        consecutive_5xx: Consecutive {
            threshold: number(consecutive_5xx, 5),
            enforcing: percent("enforcing_consecutive_5xx", enforcing_consecutive_5xx, 100)?,
        },
        consecutive_gateway_failure: Consecutive {
            threshold: number(consecutive_gateway_failure, 5),
            enforcing: percent("enforcing_consecutive_gateway_failure", enforcing_consecutive_gateway_failure, 0)?,
        },
        consecutive_local_origin_failure: Consecutive {
            threshold: number(consecutive_local_origin_failure, 5),
            enforcing: percent(
                "enforcing_consecutive_local_origin_failure",
                enforcing_consecutive_local_origin_failure,
                100,
            )?,
        },
        split_external_local_origin_errors,
        success_rate: SuccessRate {
            enforcing: percent("enforcing_success_rate", enforcing_success_rate, 100)?,
            enforcing_local_origin: percent(
                "enforcing_local_origin_success_rate",
                enforcing_local_origin_success_rate,
                100,
            )?,
            minimum_hosts: number(success_rate_minimum_hosts, 5),
            request_volume: number(success_rate_request_volume, 100),
            stdev_factor: number(success_rate_stdev_factor, 1900),
        },
        failure_percentage: FailurePercentage {
            threshold: percent("failure_percentage_threshold", failure_percentage_threshold, 85)?,
            enforcing: percent("enforcing_failure_percentage", enforcing_failure_percentage, 0)?,
            enforcing_local_origin: percent(
                "enforcing_failure_percentage_local_origin",
                enforcing_failure_percentage_local_origin,
                0,
            )?,
            minimum_hosts: number(failure_percentage_minimum_hosts, 5),
            request_volume: number(failure_percentage_request_volume, 50),
        },
        successful_active_health_check_uneject_host: successful_active_health_check_uneject_host
            .is_none_or(|flag| flag.value),
        detect_degraded_hosts: detect_degraded_hosts.is_some_and(|flag| flag.value),
        probation_requests,
    })
}

struct EjectionFields {
    base: Option<WireDuration>,
    max: Option<WireDuration>,
    jitter: Option<WireDuration>,
    percent: u32,
    always_one: bool,
}

fn ejection(at: &FieldPath<'_>, fields: EjectionFields) -> Parsed<Ejection> {
    let EjectionFields { base, max, jitter, percent, always_one } = fields;
    let base_time = positive(at, "base_ejection_time", base, DEFAULT_BASE_TIME)?;
    let max_time = positive(at, "max_ejection_time", max, DEFAULT_MAX_TIME.max(base_time))?;
    if max_time < base_time {
        return Err(at
            .field("max_ejection_time")
            .reject(format!("{max_time:?} is shorter than base_ejection_time, {base_time:?}")));
    }
    let max_jitter = match jitter {
        None => Duration::ZERO,
        Some(wire) => wire::duration(&at.field("max_ejection_time_jitter"), wire)?,
    };
    Ok(Ejection { base_time, max_time, max_jitter, max_percent: percent, always_one })
}

fn positive(
    at: &FieldPath<'_>,
    field: &'static str,
    wire: Option<WireDuration>,
    default: Duration,
) -> Parsed<Duration> {
    wire.map_or(Ok(default), |wire| wire::positive_duration(&at.field(field), wire))
}

fn percent(at: &FieldPath<'_>, field: &'static str, wire: Option<UInt32Value>, default: u32) -> Parsed<u32> {
    Ok(wire::number_within(&at.field(field), wire, 0..=100)?.unwrap_or(default))
}

const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
const DEFAULT_BASE_TIME: Duration = Duration::from_secs(30);
const DEFAULT_MAX_TIME: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_api::{ParseOptions, Schema};

    fn read(yaml: &str) -> Result<OutlierDetection, String> {
        let wire = Schema::load().parse_yaml(yaml, ParseOptions::default()).unwrap().message;
        let root = FieldPath::resource("cluster", "c");
        outlier_detection(&root.field("outlier_detection"), wire, 0).map_err(|error| error.to_string())
    }

    #[test]
    fn probation_stands_in_the_metadata_of_the_cluster() {
        let read = |own: &str| {
            let yaml = format!("{{filter_metadata: {{{own}}}}}");
            let metadata = Schema::load().parse_yaml(&yaml, ParseOptions::default()).unwrap().message;
            let root = FieldPath::resource("cluster", "c");
            probation_requests(&root.field("metadata"), Some(&metadata)).map_err(|error| error.to_string())
        };
        assert_eq!((read("other: {probation_requests: x}"), read("outrigger.outlier: {}")), (Ok(0), Ok(0)));
        assert_eq!(read("outrigger.outlier: {probation_requests: 5}"), Ok(5));
        let at = "cluster \"c\": metadata.filter_metadata.outrigger.outlier";
        for value in ["0.5", "-1", "'5'", "1000001"] {
            let expected = format!("{at}.probation_requests: must be a whole number within 0 to 1000000");
            assert_eq!(read(&format!("outrigger.outlier: {{probation_requests: {value}}}")), Err(expected));
        }
        let unknown = read("outrigger.outlier: {probation: 5}");
        assert_eq!(unknown, Err(format!("{at}: \"probation\" is not known, expected probation_requests")));
    }

    #[test]
    fn an_empty_message_has_the_documented_defaults() {
        let detection = read("{}").unwrap();
        assert_eq!(detection.interval, Duration::from_secs(10));
        assert_eq!(
            detection.ejection,
            Ejection {
                base_time: Duration::from_secs(30),
                max_time: Duration::from_secs(300),
                max_jitter: Duration::ZERO,
                max_percent: 10,
                always_one: false
            }
        );
        assert_eq!(detection.consecutive_5xx, Consecutive { threshold: 5, enforcing: 100 });
        assert_eq!(detection.consecutive_gateway_failure, Consecutive { threshold: 5, enforcing: 0 });
        assert_eq!(detection.consecutive_local_origin_failure, Consecutive { threshold: 5, enforcing: 100 });
        let SuccessRate { enforcing, enforcing_local_origin, minimum_hosts, request_volume, stdev_factor } =
            detection.success_rate;
        assert_eq!((enforcing, enforcing_local_origin), (100, 100));
        assert_eq!((minimum_hosts, request_volume, stdev_factor), (5, 100, 1900));
        let FailurePercentage { threshold, enforcing, enforcing_local_origin, minimum_hosts, request_volume } =
            detection.failure_percentage;
        assert_eq!((threshold, enforcing, enforcing_local_origin, minimum_hosts, request_volume), (85, 0, 0, 5, 50));
        assert!(detection.successful_active_health_check_uneject_host);
        assert!(!detection.split_external_local_origin_errors && !detection.detect_degraded_hosts);
    }

    #[test]
    fn every_field_is_taken() {
        let detection = read(
            "{consecutive_5xx: 1, interval: 1s, base_ejection_time: 600s, max_ejection_percent: 100, \
             enforcing_consecutive_5xx: 2, enforcing_success_rate: 3, success_rate_minimum_hosts: 4, \
             success_rate_request_volume: 5, success_rate_stdev_factor: 6, consecutive_gateway_failure: 7, \
             enforcing_consecutive_gateway_failure: 8, split_external_local_origin_errors: true, \
             consecutive_local_origin_failure: 0, enforcing_consecutive_local_origin_failure: 10, \
             enforcing_local_origin_success_rate: 11, failure_percentage_threshold: 12, \
             enforcing_failure_percentage: 13, enforcing_failure_percentage_local_origin: 14, \
             failure_percentage_minimum_hosts: 15, failure_percentage_request_volume: 16, \
             max_ejection_time_jitter: 2s, successful_active_health_check_uneject_host: false, \
             always_eject_one_host: true, detect_degraded_hosts: true}",
        )
        .unwrap();
        // Without a maximum of its own, a base time above the usual one is the maximum.
        assert_eq!(detection.ejection.max_time, Duration::from_secs(600));
        assert!(detection.ejection.always_one && detection.ejection.max_percent == 100);
        assert_eq!(detection.ejection.max_jitter, Duration::from_secs(2));
        assert_eq!(detection.consecutive_5xx, Consecutive { threshold: 1, enforcing: 2 });
        assert_eq!(detection.consecutive_gateway_failure, Consecutive { threshold: 7, enforcing: 8 });
        assert_eq!(detection.consecutive_local_origin_failure, Consecutive { threshold: 0, enforcing: 10 });
        assert_eq!((detection.success_rate.stdev_factor, detection.failure_percentage.threshold), (6, 12));
        assert!(!detection.successful_active_health_check_uneject_host && detection.detect_degraded_hosts);
    }

    #[test]
    fn settings_that_are_refused() {
        for (yaml, reason) in [
            ("{interval: 0s}", "interval: 0s must be above zero"),
            ("{max_ejection_percent: 101}", "max_ejection_percent: 101 is not within 0 to 100"),
            ("{enforcing_success_rate: 200}", "enforcing_success_rate: 200 is not within 0 to 100"),
            ("{failure_percentage_threshold: 101}", "failure_percentage_threshold: 101 is not within 0 to 100"),
            (
                "{max_ejection_time: 1s, base_ejection_time: 2s}",
                "max_ejection_time: 1s is shorter than base_ejection_time, 2s",
            ),
            ("{max_ejection_time_jitter: -1s}", "max_ejection_time_jitter: -1.000000000s must not be negative"),
            ("{monitors: [{name: a}]}", "monitors: is not supported"),
        ] {
            assert_eq!(read(yaml).unwrap_err(), format!("cluster \"c\": outlier_detection.{reason}"));
        }
    }
}
