//! Retry policies (`envoy.config.route.v3.RetryPolicy`).
//!
//! Owns what they say, and the names of retry conditions. Never retries anything.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::route::v3 as pb;

use super::matches::{HeaderMatcher, header_matcher};
use super::retry_hosts::{AvoidedHosts, avoided_hosts, previous_priorities};
use crate::context::Context;
use crate::decide::decide;
use crate::http::header_mutations::header_name;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Source: `RetryPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Conditions under which a try is repeated.
    pub on: RetryOn,
    /// Retries after the first try; 1 unless given.
    pub num_retries: u32,
    /// Limit of one try.
    pub per_try_timeout: Option<Duration>,
    /// Limit of silence within one try.
    pub per_try_idle_timeout: Option<Duration>,
    /// Status codes that `retriable-status-codes` repeats.
    pub retriable_status_codes: Vec<u16>,
    /// First wait; 25 ms unless given.
    pub base_interval: Duration,
    /// Longest wait; 10 times the base unless given.
    pub max_interval: Duration,
    /// Another endpoint than those that are avoided is looked for this many times.
    pub host_selection_max_attempts: u32,
    /// Endpoints that retries avoid.
    pub avoided_hosts: AvoidedHosts,
    /// After so many tries, priorities already tried are avoided (`previous_priorities`); none unless given.
    pub retry_priority: Option<NonZeroU32>,
    /// Response headers that `retriable-headers` repeats; one must match.
    pub retriable_headers: Vec<HeaderMatcher>,
    /// Only requests with one of these are repeated, if there are any.
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// How upstreams say when to come back; none unless given.
    pub rate_limited_back_off: Option<RateLimitedBackOff>,
}

/// Source: `RetryPolicy.RateLimitedRetryBackOff`.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimitedBackOff {
    /// Lower-case names with the format of their values; the first that can be read counts.
    pub reset_headers: Vec<(Arc<str>, ResetFormat)>,
    /// Longer waits are not taken; 5 min unless given.
    pub max_interval: Duration,
}

/// What the value of a reset header is. Source: `RetryPolicy.ResetHeaderFormat`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ResetFormat {
    /// Seconds from now.
    Seconds,
    /// Seconds since 1970.
    UnixTimestamp,
}

/// The conditions of `retry_on` as flags.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RetryOn {
    /// `5xx`.
    pub server_error: bool,
    /// `gateway-error`.
    pub gateway_error: bool,
    /// `reset`.
    pub reset: bool,
    /// `reset-before-request`.
    pub reset_before_request: bool,
    /// `connect-failure`.
    pub connect_failure: bool,
    /// `retriable-4xx`.
    pub retriable_4xx: bool,
    /// `refused-stream`.
    pub refused_stream: bool,
    /// `retriable-status-codes`.
    pub retriable_status_codes: bool,
    /// `retriable-headers`.
    pub retriable_headers: bool,
    /// `envoy-ratelimited`.
    pub envoy_ratelimited: bool,
    /// `http3-post-connect-failure`: no effect without HTTP/3 upstreams.
    pub http3_post_connect_failure: bool,
    /// gRPC status codes: cancelled 1, deadline-exceeded 4, resource-exhausted 8, internal 13, unavailable 14, as bits.
    pub grpc_codes: u32,
}

impl RetryOn {
    /// Reads a comma-separated list of conditions, as in `retry_on`, `x-envoy-retry-on` and `x-envoy-retry-grpc-on`.
    /// Unknown names are passed over, so that lists made for newer versions still work.
    pub fn from_names(names: &str) -> Self {
        let mut on = RetryOn::default();
        for name in names.split(',') {
            on.add(name.trim_matches([' ', '\t']));
        }
        on
    }

    fn add(&mut self, name: &str) {
        match name {
            "5xx" => self.server_error = true,
            "gateway-error" => self.gateway_error = true,
            "reset" => self.reset = true,
            "reset-before-request" => self.reset_before_request = true,
            "connect-failure" => self.connect_failure = true,
            "retriable-4xx" => self.retriable_4xx = true,
            "refused-stream" => self.refused_stream = true,
            "retriable-status-codes" => self.retriable_status_codes = true,
            "retriable-headers" => self.retriable_headers = true,
            "envoy-ratelimited" => self.envoy_ratelimited = true,
            "http3-post-connect-failure" => self.http3_post_connect_failure = true,
            "cancelled" => self.grpc_codes |= 1 << 1,
            "deadline-exceeded" => self.grpc_codes |= 1 << 4,
            "resource-exhausted" => self.grpc_codes |= 1 << 8,
            "internal" => self.grpc_codes |= 1 << 13,
            "unavailable" => self.grpc_codes |= 1 << 14,
            _ => {}
        }
    }
}

/// Reads a retry policy.
pub(crate) fn retry_policy(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::RetryPolicy) -> Parsed<RetryPolicy> {
    decide!(wire, at, pb::RetryPolicy as "envoy.config.route.v3.RetryPolicy" {
        implemented: retry_on, num_retries, per_try_timeout, per_try_idle_timeout, retry_host_predicate,
            host_selection_retry_max_attempts, retriable_status_codes, retry_back_off, retriable_headers,
            retriable_request_headers, rate_limited_retry_back_off, retry_priority;
        no_effect: refresh_cluster_on_retry = "no supported way of choosing a cluster can choose again";
        unsupported: retry_options_predicates;
    });
    let codes_at = at.field("retriable_status_codes");
    let (base_interval, max_interval) = match retry_back_off {
        None => (DEFAULT_BASE_INTERVAL, DEFAULT_BASE_INTERVAL * MAX_INTERVAL_FACTOR),
        Some(back_off) => self::back_off(&at.field("retry_back_off"), back_off)?,
    };
    Ok(RetryPolicy {
        on: RetryOn::from_names(&retry_on),
        num_retries: num_retries.map_or(1, |number| number.value),
        per_try_timeout: wire::limit(&at.field("per_try_timeout"), per_try_timeout, None)?,
        per_try_idle_timeout: wire::limit(&at.field("per_try_idle_timeout"), per_try_idle_timeout, None)?,
        retriable_status_codes: wire::each(&codes_at, retriable_status_codes, status_code)?,
        base_interval,
        max_interval,
        host_selection_max_attempts: attempts(
            &at.field("host_selection_retry_max_attempts"),
            host_selection_retry_max_attempts,
        )?,
        avoided_hosts: avoided_hosts(context, &at.field("retry_host_predicate"), retry_host_predicate)?,
        retry_priority: match retry_priority {
            None => None,
            Some(wire) => Some(previous_priorities(context, &at.field("retry_priority"), wire)?),
        },
        retriable_headers: header_matchers(&at.field("retriable_headers"), retriable_headers)?,
        retriable_request_headers: header_matchers(&at.field("retriable_request_headers"), retriable_request_headers)?,
        rate_limited_back_off: match rate_limited_retry_back_off {
            None => None,
            Some(wire) => Some(rate_limited(&at.field("rate_limited_retry_back_off"), wire)?),
        },
    })
}

fn header_matchers(at: &FieldPath<'_>, wire: Vec<pb::HeaderMatcher>) -> Parsed<Vec<HeaderMatcher>> {
    wire::each(at, wire, header_matcher)
}

fn rate_limited(at: &FieldPath<'_>, wire: pb::retry_policy::RateLimitedRetryBackOff) -> Parsed<RateLimitedBackOff> {
    decide!(wire, at, pb::retry_policy::RateLimitedRetryBackOff
        as "envoy.config.route.v3.RetryPolicy.RateLimitedRetryBackOff" {
        implemented: reset_headers, max_interval;
        no_effect: ;
        unsupported: ;
    });
    let headers_at = at.field("reset_headers");
    if reset_headers.is_empty() {
        return Err(headers_at.reject("needs at least one header"));
    }
    Ok(RateLimitedBackOff {
        reset_headers: wire::each(&headers_at, reset_headers, reset_header)?,
        max_interval: match max_interval {
            None => DEFAULT_MAX_RESET,
            Some(max) => wire::positive_duration(&at.field("max_interval"), max)?,
        },
    })
}

fn reset_header(at: &FieldPath<'_>, wire: pb::retry_policy::ResetHeader) -> Parsed<(Arc<str>, ResetFormat)> {
    decide!(wire, at, pb::retry_policy::ResetHeader as "envoy.config.route.v3.RetryPolicy.ResetHeader" {
        implemented: name, format;
        no_effect: ;
        unsupported: ;
    });
    use pb::retry_policy::ResetHeaderFormat as Wire;
    let format = match Wire::try_from(format).map_err(|_| wire::unknown_enum(&at.field("format"), format))? {
        Wire::Seconds => ResetFormat::Seconds,
        Wire::UnixTimestamp => ResetFormat::UnixTimestamp,
    };
    Ok((header_name(&at.field("name"), &name)?, format))
}

fn status_code(at: &FieldPath<'_>, code: u32) -> Parsed<u16> {
    match u16::try_from(code) {
        Ok(code @ 100..=599) => Ok(code),
        _ => Err(at.reject(format!("{code} is not within 100 to 599"))),
    }
}

fn attempts(at: &FieldPath<'_>, value: i64) -> Parsed<u32> {
    match u32::try_from(value) {
        Ok(0) => Ok(1),
        Ok(value) => Ok(value),
        Err(_) => Err(at.reject(format!("{value} is not within 0 to {}", u32::MAX))),
    }
}

fn back_off(at: &FieldPath<'_>, wire: pb::retry_policy::RetryBackOff) -> Parsed<(Duration, Duration)> {
    decide!(wire, at, pb::retry_policy::RetryBackOff as "envoy.config.route.v3.RetryPolicy.RetryBackOff" {
        implemented: base_interval, max_interval;
        no_effect: ;
        unsupported: ;
    });
    let base_at = at.field("base_interval");
    let Some(base) = base_interval else {
        return Err(base_at.reject("is required"));
    };
    let base = wire::positive_duration(&base_at, base)?.max(SMALLEST_INTERVAL);
    let max = match max_interval {
        None => base.saturating_mul(MAX_INTERVAL_FACTOR),
        Some(max) => wire::positive_duration(&at.field("max_interval"), max)?.max(SMALLEST_INTERVAL),
    };
    if max < base {
        return Err(at.field("max_interval").reject(format!("{max:?} must not be below base_interval, {base:?}")));
    }
    Ok((base, max))
}

const DEFAULT_BASE_INTERVAL: Duration = Duration::from_millis(25);
const DEFAULT_MAX_RESET: Duration = Duration::from_secs(300);
const SMALLEST_INTERVAL: Duration = Duration::from_millis(1);
const MAX_INTERVAL_FACTOR: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_by_name() {
        let on = RetryOn::from_names("5xx, connect-failure,refused-stream ,unavailable,cancelled,from-the-future,");
        assert_eq!(
            on,
            RetryOn {
                server_error: true,
                connect_failure: true,
                refused_stream: true,
                grpc_codes: (1 << 14) | (1 << 1),
                ..RetryOn::default()
            }
        );
        assert_eq!(RetryOn::from_names(""), RetryOn::default());
    }
}
