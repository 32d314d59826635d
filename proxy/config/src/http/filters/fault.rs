//! Fault injection (`envoy.extensions.filters.http.fault.v3`).
//!
//! Owns which requests get which fault. Never injects one.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::route::v3 as route;
use outrigger_api::pb::envoy::extensions::filters::common::fault::v3 as common;
use outrigger_api::pb::envoy::extensions::filters::http::fault::v3 as pb;
use outrigger_api::pb::envoy::r#type::v3::FractionalPercent;

use crate::decide::decide;
use crate::metadata::{self, MetadataMap};
use crate::rejection::{FieldPath, Parsed};
use crate::route::{HeaderMatcher, header_matcher};
use crate::units::Fraction;
use crate::wire;

/// Source: `envoy.extensions.filters.http.fault.v3.HTTPFault`.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Requests wait before they are forwarded.
    pub delay: Option<Injection<DelayTime>>,
    /// Requests are answered instead of forwarded.
    pub abort: Option<Abort>,
    /// Responses come slowly.
    pub response_rate_limit: Option<Injection<RateLimit>>,
    /// Only requests to this cluster; to any one if empty.
    pub upstream_cluster: String,
    /// Only requests that have all of these.
    pub headers: Vec<HeaderMatcher>,
    /// Only requests of these nodes (`x-envoy-downstream-service-node`), of any if empty.
    pub downstream_nodes: Vec<String>,
    /// Requests with a fault at one time; no limit if `None`.
    pub max_active_faults: Option<u32>,
    /// Runtime keys that override what stands here.
    pub runtime: FaultKeys,
    /// No stats per `x-envoy-downstream-service-cluster`.
    pub disable_downstream_cluster_stats: bool,
    /// Becomes dynamic metadata of requests with a fault, under the filter's name.
    pub metadata: MetadataMap,
}

/// A fault and the share of requests that it is injected into.
#[derive(Clone, Debug)]
pub struct Injection<T> {
    /// What happens.
    pub what: T,
    /// How often.
    pub share: Fraction,
}

/// How long a delay is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DelayTime {
    /// Always the same; above zero.
    Fixed(Duration),
    /// As `x-envoy-fault-delay-request` says, in milliseconds.
    Header,
}

/// How a request is answered instead of being forwarded.
#[derive(Clone, Debug)]
pub struct Abort {
    /// The status, and how often.
    pub injection: Injection<AbortStatus>,
    /// Body of the answer, or message of a gRPC status.
    pub body: String,
}

/// The status that a request is aborted with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AbortStatus {
    /// 200 to 599.
    Http(u16),
    /// A gRPC status.
    Grpc(u32),
    /// As `x-envoy-fault-abort-request` or `x-envoy-fault-abort-grpc-request` says.
    Header,
}

/// How fast a response body may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RateLimit {
    /// In KiB/s; at least 1.
    Fixed(u64),
    /// As `x-envoy-fault-throughput-response` says, in KiB/s.
    Header,
}

/// Runtime keys of a fault.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "named after their fields")]
pub struct FaultKeys {
    pub delay_percent: Arc<str>,
    pub abort_percent: Arc<str>,
    pub delay_duration: Arc<str>,
    pub abort_http_status: Arc<str>,
    pub abort_grpc_status: Arc<str>,
    pub max_active_faults: Arc<str>,
    pub response_rate_limit_percent: Arc<str>,
}

impl Fault {
    /// Whether no request ever gets a fault.
    pub fn is_idle(&self) -> bool {
        self.delay.is_none() && self.abort.is_none() && self.response_rate_limit.is_none()
    }

    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::HttpFault) -> Parsed<Self> {
        decide!(wire, at, pb::HttpFault as "envoy.extensions.filters.http.fault.v3.HTTPFault" {
            implemented: delay, abort, upstream_cluster, headers, downstream_nodes, max_active_faults,
                response_rate_limit, delay_percent_runtime, abort_percent_runtime, delay_duration_runtime,
                abort_http_status_runtime, max_active_faults_runtime, response_rate_limit_percent_runtime,
                abort_grpc_status_runtime, disable_downstream_cluster_stats, filter_metadata;
            no_effect: ;
            unsupported: ;
        });
        let key = |given: String, default: &str| if given.is_empty() { default.into() } else { given.into() };
        Ok(Self {
            delay: delay.map(|wire| read_delay(&at.field("delay"), wire)).transpose()?,
            abort: abort.map(|wire| read_abort(&at.field("abort"), wire)).transpose()?,
            response_rate_limit: response_rate_limit
                .map(|wire| read_rate_limit(&at.field("response_rate_limit"), wire))
                .transpose()?,
            upstream_cluster,
            headers: header_matchers(&at.field("headers"), headers)?,
            downstream_nodes,
            max_active_faults: max_active_faults.map(|number| number.value),
            runtime: FaultKeys {
                delay_percent: key(delay_percent_runtime, "fault.http.delay.fixed_delay_percent"),
                abort_percent: key(abort_percent_runtime, "fault.http.abort.abort_percent"),
                delay_duration: key(delay_duration_runtime, "fault.http.delay.fixed_duration_ms"),
                abort_http_status: key(abort_http_status_runtime, "fault.http.abort.http_status"),
                abort_grpc_status: key(abort_grpc_status_runtime, "fault.http.abort.grpc_status"),
                max_active_faults: key(max_active_faults_runtime, "fault.http.max_active_faults"),
                response_rate_limit_percent: key(
                    response_rate_limit_percent_runtime,
                    "fault.http.rate_limit.response_percent",
                ),
            },
            disable_downstream_cluster_stats,
            metadata: filter_metadata.map(metadata::object).unwrap_or_default(),
        })
    }
}

/// A list of header matchers.
pub(super) fn header_matchers(at: &FieldPath<'_>, wire: Vec<route::HeaderMatcher>) -> Parsed<Vec<HeaderMatcher>> {
    wire::each(at, wire, header_matcher)
}

fn share(at: &FieldPath<'_>, wire: Option<FractionalPercent>) -> Parsed<Fraction> {
    wire::fraction(&at.field("percentage"), wire.unwrap_or_default())
}

fn read_delay(at: &FieldPath<'_>, wire: common::FaultDelay) -> Parsed<Injection<DelayTime>> {
    decide!(wire, at, common::FaultDelay as "envoy.extensions.filters.common.fault.v3.FaultDelay" {
        implemented: percentage, fault_delay_secifier;
        no_effect: ;
        unsupported: ;
    });
    use common::fault_delay::{FaultDelaySecifier, HeaderDelay};
    let what = match fault_delay_secifier {
        Some(FaultDelaySecifier::FixedDelay(wire)) => {
            DelayTime::Fixed(wire::positive_duration(&at.field("fixed_delay"), wire)?)
        }
        Some(FaultDelaySecifier::HeaderDelay(HeaderDelay {})) => DelayTime::Header,
        None => return Err(at.reject("needs one of fixed_delay, header_delay")),
    };
    Ok(Injection { what, share: share(at, percentage)? })
}

fn read_abort(at: &FieldPath<'_>, wire: pb::FaultAbort) -> Parsed<Abort> {
    decide!(wire, at, pb::FaultAbort as "envoy.extensions.filters.http.fault.v3.FaultAbort" {
        implemented: percentage, response_body, error_type;
        no_effect: ;
        unsupported: ;
    });
    use pb::fault_abort::{ErrorType, HeaderAbort};
    let what = match error_type {
        Some(ErrorType::HttpStatus(status)) => match u16::try_from(status) {
            Ok(status @ 200..600) => AbortStatus::Http(status),
            _ => return Err(at.field("http_status").reject(format!("{status} is not within 200 to 599"))),
        },
        Some(ErrorType::GrpcStatus(status)) => AbortStatus::Grpc(status),
        Some(ErrorType::HeaderAbort(HeaderAbort {})) => AbortStatus::Header,
        None => return Err(at.reject("needs one of http_status, grpc_status, header_abort")),
    };
    let body = if response_body.is_empty() { "fault filter abort".to_owned() } else { response_body };
    Ok(Abort { injection: Injection { what, share: share(at, percentage)? }, body })
}

fn read_rate_limit(at: &FieldPath<'_>, wire: common::FaultRateLimit) -> Parsed<Injection<RateLimit>> {
    decide!(wire, at, common::FaultRateLimit as "envoy.extensions.filters.common.fault.v3.FaultRateLimit" {
        implemented: percentage, limit_type;
        no_effect: ;
        unsupported: ;
    });
    use common::fault_rate_limit::{FixedLimit, HeaderLimit, LimitType};
    let what = match limit_type {
        Some(LimitType::FixedLimit(FixedLimit { limit_kbps: 0 })) => {
            return Err(at.field("fixed_limit").field("limit_kbps").reject("0 must be above zero"));
        }
        Some(LimitType::FixedLimit(FixedLimit { limit_kbps })) => RateLimit::Fixed(limit_kbps),
        Some(LimitType::HeaderLimit(HeaderLimit {})) => RateLimit::Header,
        None => return Err(at.reject("needs one of fixed_limit, header_limit")),
    };
    Ok(Injection { what, share: share(at, percentage)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(wire: pb::HttpFault) -> Result<Fault, String> {
        Fault::parse(&FieldPath::resource("listener", "l"), wire).map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn an_empty_fault_does_nothing_and_has_the_usual_keys() {
        let fault = read(pb::HttpFault::default()).unwrap();
        assert!(fault.is_idle());
        assert_eq!(&*fault.runtime.abort_percent, "fault.http.abort.abort_percent");
        assert_eq!(fault.max_active_faults, None);
    }

    #[test]
    fn a_fault_without_a_percentage_is_never_injected() {
        use pb::fault_abort::ErrorType;
        let abort = pb::FaultAbort { error_type: Some(ErrorType::HttpStatus(503)), ..Default::default() };
        let fault = read(pb::HttpFault { abort: Some(abort), ..Default::default() }).unwrap();
        let abort = fault.abort.unwrap();
        assert_eq!(abort.injection.what, AbortStatus::Http(503));
        assert_eq!(abort.body, "fault filter abort");
        assert!(!abort.injection.share.holds(0));
    }

    #[test]
    fn faults_without_a_kind_and_out_of_range_are_refused() {
        use common::fault_rate_limit::{FixedLimit, LimitType};
        use pb::fault_abort::ErrorType;
        let at = "listener \"l\": ";
        let abort = |error_type| pb::HttpFault {
            abort: Some(pb::FaultAbort { error_type, ..Default::default() }),
            ..Default::default()
        };
        let zero = common::FaultRateLimit {
            limit_type: Some(LimitType::FixedLimit(FixedLimit { limit_kbps: 0 })),
            ..Default::default()
        };
        for (wire, expected) in [
            (abort(None), "abort: needs one of http_status, grpc_status, header_abort"),
            (abort(Some(ErrorType::HttpStatus(199))), "abort.http_status: 199 is not within 200 to 599"),
            (abort(Some(ErrorType::HttpStatus(600))), "abort.http_status: 600 is not within 200 to 599"),
            (
                pb::HttpFault { delay: Some(common::FaultDelay::default()), ..Default::default() },
                "delay: needs one of fixed_delay, header_delay",
            ),
            (
                pb::HttpFault { response_rate_limit: Some(zero), ..Default::default() },
                "response_rate_limit.fixed_limit.limit_kbps: 0 must be above zero",
            ),
        ] {
            assert_eq!(read(wire).unwrap_err(), format!("{at}{expected}"));
        }
    }
}
