//! Limits kept by a rate limit service (`envoy.extensions.filters.http.ratelimit.v3`).
//!
//! Owns whom to ask, about what, and how refused requests are answered. Never asks.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::ratelimit::v3::RateLimitServiceConfig;
use outrigger_api::pb::envoy::extensions::filters::http::ratelimit::v3 as pb;
use outrigger_api::pb::envoy::extensions::filters::http::ratelimit::v3::rate_limit::XRateLimitHeadersRfcVersion;
use outrigger_api::pb::envoy::extensions::filters::http::ratelimit::v3::rate_limit_per_route::{
    OverrideOptions, VhRateLimitsOptions,
};
use outrigger_api::pb::google::protobuf::UInt32Value;

use super::VirtualHostLimits;
use crate::context::Context;
use crate::decide::decide;
use crate::http::HeaderAddition;
use crate::http::header_mutations::header_addition;
use crate::rate_limit::{RateLimit, RateLimitPlace, rate_limits};
use crate::rejection::{FieldPath, Parsed};
use crate::source::{self, GrpcCall};
use crate::units::RuntimeFraction;
use crate::wire;

/// Source: `envoy.extensions.filters.http.ratelimit.v3.RateLimit`.
#[derive(Clone, Debug)]
pub struct GlobalRateLimit {
    /// What the service tells limits apart by.
    pub domain: Arc<str>,
    /// Rate limits of routes with this stage count.
    pub stage: u8,
    /// Which requests are asked about.
    pub requests: LimitedRequests,
    /// The service.
    pub service: GrpcCall,
    /// Requests that the service said nothing about are refused.
    pub failure_mode_deny: bool,
    /// The share of those that are refused, instead.
    pub failure_mode_deny_share: Option<RuntimeFraction>,
    /// gRPC callers get RESOURCE_EXHAUSTED instead of UNAVAILABLE.
    pub resource_exhausted: bool,
    /// `x-ratelimit-*` headers are added to responses.
    pub tells_clients: bool,
    /// `x-envoy-ratelimited` is added to refusals.
    pub marks_refusals: bool,
    /// Status of refused requests; 429 unless given, 400 or above.
    pub status: u16,
    /// Added to answers to refused requests.
    pub response_headers: Vec<HeaderAddition>,
    /// Status of requests that are refused for want of an answer; 500 unless given.
    pub status_on_error: u16,
    /// Further part of the stat prefix; may be empty.
    pub stat_prefix: Arc<str>,
    /// Share of requests that are asked about; what the runtime says, or all, unless given.
    pub enabled: Option<RuntimeFraction>,
    /// Share of those above the limit that are refused; what the runtime says, or all, unless given.
    pub enforced: Option<RuntimeFraction>,
    /// Used instead of those of routes, unless empty.
    pub rate_limits: Box<[RateLimit]>,
    /// Where metadata of the service goes.
    pub metadata_namespace: Arc<str>,
    /// `retry-after` is added to answers with status 429.
    pub retry_after: bool,
}

/// Which requests are limited. Source: `RateLimit.request_type`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LimitedRequests {
    /// All.
    Both,
    /// Those with `x-envoy-internal`.
    Internal,
    /// Those without.
    External,
}

/// Source: `RateLimitPerRoute`.
#[derive(Clone, Debug)]
pub struct GlobalRateLimitRoute {
    /// Whether rate limits of virtual hosts count besides those of routes.
    pub virtual_host: VirtualHostLimits,
    /// Used instead of all others, unless empty.
    pub rate_limits: Box<[RateLimit]>,
    /// Instead of the filter's, unless empty.
    pub domain: Arc<str>,
}

impl GlobalRateLimit {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::RateLimit) -> Parsed<Self> {
        decide!(wire, at, pb::RateLimit as "envoy.extensions.filters.http.ratelimit.v3.RateLimit" {
            implemented: domain, stage, request_type, timeout, failure_mode_deny, rate_limited_as_resource_exhausted,
                rate_limit_service, enable_x_ratelimit_headers, disable_x_envoy_ratelimited_header,
                rate_limited_status, response_headers_to_add, status_on_error, stat_prefix, filter_enabled,
                filter_enforced, failure_mode_deny_percent, rate_limits, metadata_namespace,
                enable_retry_after_header;
            no_effect: ;
            unsupported: ;
        });
        if domain.is_empty() {
            return Err(at.field("domain").reject("must not be empty"));
        }
        let requests = match request_type.as_str() {
            "" | "both" => LimitedRequests::Both,
            "internal" => LimitedRequests::Internal,
            "external" => LimitedRequests::External,
            other => {
                let reason = format!("{other:?} is not known, expected internal, external or both");
                return Err(at.field("request_type").reject(reason));
            }
        };
        let stage = wire::number_within(&at.field("stage"), Some(UInt32Value { value: stage }), 0..=10)?;
        let fraction =
            |field, wire: Option<_>| wire.map(|wire| wire::runtime_fraction(&at.field(field), wire)).transpose();
        let headers_at = at.field("response_headers_to_add");
        if response_headers_to_add.len() > MOST_HEADERS {
            let reason = format!("has {} entries, expected up to {MOST_HEADERS}", response_headers_to_add.len());
            return Err(headers_at.reject(reason));
        }
        let version_at = at.field("enable_x_ratelimit_headers");
        let timeout = wire::limit(&at.field("timeout"), timeout, Some(DEFAULT_TIMEOUT))?;
        Ok(Self {
            domain: domain.into(),
            stage: stage.and_then(|stage| u8::try_from(stage).ok()).unwrap_or(0),
            requests,
            service: service(context, &at.field("rate_limit_service"), rate_limit_service, timeout)?,
            failure_mode_deny,
            failure_mode_deny_share: fraction("failure_mode_deny_percent", failure_mode_deny_percent)?,
            resource_exhausted: rate_limited_as_resource_exhausted,
            tells_clients: match XRateLimitHeadersRfcVersion::try_from(enable_x_ratelimit_headers) {
                Ok(XRateLimitHeadersRfcVersion::Off) => false,
                Ok(XRateLimitHeadersRfcVersion::DraftVersion03) => true,
                Err(_) => return Err(wire::unknown_enum(&version_at, enable_x_ratelimit_headers)),
            },
            marks_refusals: !disable_x_envoy_ratelimited_header,
            // Below 400, Envoy does not do what it is told either.
            status: wire::http_status(&at.field("rate_limited_status"), rate_limited_status)?
                .filter(|status| *status >= 400)
                .unwrap_or(429),
            response_headers: wire::each(&headers_at, response_headers_to_add, header_addition)?,
            status_on_error: wire::http_status(&at.field("status_on_error"), status_on_error)?.unwrap_or(500),
            stat_prefix: stat_prefix.into(),
            enabled: fraction("filter_enabled", filter_enabled)?,
            enforced: fraction("filter_enforced", filter_enforced)?,
            rate_limits: self::rate_limits(&at.field("rate_limits"), rate_limits, RateLimitPlace::GlobalFilter)?,
            metadata_namespace: match metadata_namespace.as_str() {
                "" => "envoy.filters.http.ratelimit".into(),
                given => given.into(),
            },
            retry_after: enable_retry_after_header,
        })
    }
}

impl GlobalRateLimitRoute {
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::RateLimitPerRoute) -> Parsed<Self> {
        decide!(wire, at, pb::RateLimitPerRoute as "envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute" {
            implemented: vh_rate_limits, override_option, rate_limits, domain;
            no_effect: ;
            unsupported: ;
        });
        // Envoy has the options, and does nothing with them.
        if OverrideOptions::try_from(override_option) != Ok(OverrideOptions::Default) {
            return Err(at.field("override_option").unsupported());
        }
        Ok(Self {
            virtual_host: match VhRateLimitsOptions::try_from(vh_rate_limits) {
                Ok(VhRateLimitsOptions::Override) => VirtualHostLimits::Override,
                Ok(VhRateLimitsOptions::Include) => VirtualHostLimits::Include,
                Ok(VhRateLimitsOptions::Ignore) => VirtualHostLimits::Ignore,
                Err(_) => return Err(wire::unknown_enum(&at.field("vh_rate_limits"), vh_rate_limits)),
            },
            rate_limits: self::rate_limits(&at.field("rate_limits"), rate_limits, RateLimitPlace::GlobalFilter)?,
            domain: domain.into(),
        })
    }
}

/// The time limit is the filter's; that of the service is for other users of the message.
pub(crate) fn service(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<RateLimitServiceConfig>,
    timeout: Option<Duration>,
) -> Parsed<GrpcCall> {
    let Some(wire) = wire else { return Err(at.reject("is required")) };
    let RateLimitServiceConfig { grpc_service, transport_api_version } = wire;
    source::api_version(&at.field("transport_api_version"), transport_api_version)?;
    let grpc_at = at.field("grpc_service");
    let Some(wire) = grpc_service else { return Err(grpc_at.reject("is required")) };
    let wire = core::GrpcService { timeout: None, ..wire };
    Ok(GrpcCall { timeout, ..source::grpc_call(context, &grpc_at, wire, DEFAULT_TIMEOUT)? })
}

/// Of a question.
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(20);
/// Source: `(validate.rules).repeated.max_items`.
const MOST_HEADERS: usize = 10;

#[cfg(test)]
mod tests {
    use outrigger_api::pb::envoy::r#type::v3::HttpStatus;
    use outrigger_api::pb::google::protobuf::Duration as WireDuration;

    use super::*;
    use crate::context::NoEnvironment;

    fn settings() -> pb::RateLimit {
        let target = core::grpc_service::EnvoyGrpc { cluster_name: "limits".into(), ..Default::default() };
        let service = core::GrpcService {
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(target)),
            ..Default::default()
        };
        let service =
            RateLimitServiceConfig { grpc_service: Some(service), transport_api_version: core::ApiVersion::V3 as i32 };
        pb::RateLimit { domain: "d".into(), rate_limit_service: Some(service), ..Default::default() }
    }

    fn read(wire: pb::RateLimit) -> Result<GlobalRateLimit, String> {
        let root = FieldPath::resource("listener", "l");
        GlobalRateLimit::parse(&Context::new(&NoEnvironment), &root, wire).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_given_is_as_in_envoy() {
        let got = read(settings()).unwrap();
        assert_eq!((got.status, got.status_on_error, got.failure_mode_deny), (429, 500, false));
        assert_eq!(got.service.timeout, Some(Duration::from_millis(20)));
        assert_eq!((&*got.service.cluster, got.requests), ("limits", LimitedRequests::Both));
        let endless = WireDuration { seconds: 0, nanos: 0 };
        assert_eq!(read(pb::RateLimit { timeout: Some(endless), ..settings() }).unwrap().service.timeout, None);
        let low = Some(HttpStatus { code: 200 });
        assert_eq!(read(pb::RateLimit { rate_limited_status: low, ..settings() }).unwrap().status, 429);
    }

    #[test]
    fn what_is_wrong_is_refused_by_path() {
        for (wire, expected) in [
            (pb::RateLimit { domain: String::new(), ..settings() }, "domain: must not be empty"),
            (pb::RateLimit { rate_limit_service: None, ..settings() }, "rate_limit_service: is required"),
            (pb::RateLimit { stage: 11, ..settings() }, "stage: 11 is not within 0 to 10"),
            (
                pb::RateLimit { request_type: "some".into(), ..settings() },
                "request_type: \"some\" is not known, expected internal, external or both",
            ),
            (
                pb::RateLimit { rate_limited_status: Some(HttpStatus { code: 299 }), ..settings() },
                "rate_limited_status.code: 299 is not a known status",
            ),
        ] {
            assert_eq!(read(wire).unwrap_err(), format!("listener \"l\": {expected}"));
        }
    }
}
