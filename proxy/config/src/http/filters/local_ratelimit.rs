//! A limit on requests in a time, kept by the proxy itself (`envoy.extensions.filters.http.local_ratelimit.v3`).
//!
//! Owns the buckets and which requests take from which. Never counts a request.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::common::ratelimit::v3 as common;
use outrigger_api::pb::envoy::extensions::filters::http::local_ratelimit::v3 as pb;
use outrigger_api::pb::envoy::r#type::v3::{HttpStatus, StatusCode};
use outrigger_api::pb::google::protobuf::UInt32Value;

use crate::context::Context;
use crate::decide::decide;
use crate::http::HeaderAddition;
use crate::http::header_mutations::header_addition;
use crate::network::TokenBucket;
use crate::rate_limit::{RateLimit, RateLimitPlace, rate_limits};
use crate::rejection::{FieldPath, Parsed};
use crate::units::RuntimeFraction;
use crate::wire;

/// Source: `envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit`.
#[derive(Clone, Debug)]
pub struct LocalRateLimit {
    /// The `<prefix>` in `<prefix>.http_local_rate_limit.*` stats.
    pub stat_prefix: Arc<str>,
    /// Status of refused requests; 429 unless given, 400 or above.
    pub status: u16,
    /// For requests that no descriptor is for; without it they are not limited.
    pub bucket: Option<TokenBucket>,
    /// Share of requests that are counted; none unless given.
    pub enabled: Option<RuntimeFraction>,
    /// Share of those above the limit that are refused; none unless given.
    pub enforced: Option<RuntimeFraction>,
    /// Added to requests above the limit that are forwarded.
    pub request_headers: Vec<HeaderAddition>,
    /// Added to answers to refused requests.
    pub response_headers: Vec<HeaderAddition>,
    /// Buckets for some requests; no two have the same entries.
    pub descriptors: Vec<LocalDescriptor>,
    /// Rate limits of routes with this stage count.
    pub stage: u8,
    /// Each downstream connection has buckets of its own.
    pub per_connection: bool,
    /// The members of the local cluster share the limits equally.
    pub shared_by_local_cluster: bool,
    /// `x-ratelimit-*` headers are added to responses.
    pub tells_clients: bool,
    /// Whether rate limits of virtual hosts count besides those of routes.
    pub virtual_host: VirtualHostLimits,
    /// The general bucket is for requests with a descriptor, too.
    pub always_takes_general: bool,
    /// gRPC callers get RESOURCE_EXHAUSTED instead of UNAVAILABLE.
    pub resource_exhausted: bool,
    /// Used instead of those of routes, unless empty.
    pub rate_limits: Box<[RateLimit]>,
    /// Values kept for each descriptor that has entries without a value; at least 1.
    pub max_dynamic_descriptors: u32,
    /// `retry-after` is added to answers with status 429.
    pub retry_after: bool,
}

/// A bucket for some requests. Source: `envoy.extensions.common.ratelimit.v3.LocalRateLimitDescriptor`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LocalDescriptor {
    /// Keys and values that a request must have, in this order. Each value in the place of an empty one has a bucket of
    /// its own.
    pub entries: Box<[(Box<str>, Box<str>)]>,
    /// For requests that have them.
    pub bucket: TokenBucket,
    /// Requests above this limit are counted and let through.
    pub shadow: bool,
}

impl LocalDescriptor {
    /// Whether there is an entry without a value.
    pub fn is_wildcard(&self) -> bool {
        self.entries.iter().any(|(_, value)| value.is_empty())
    }
}

/// Source: `envoy.extensions.common.ratelimit.v3.VhRateLimitsOptions`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum VirtualHostLimits {
    /// Only if the route has none of its own.
    #[default]
    Override,
    /// Always.
    Include,
    /// Never.
    Ignore,
}

impl LocalRateLimit {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::LocalRateLimit) -> Parsed<Self> {
        decide!(wire, at, pb::LocalRateLimit as "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit" {
            implemented: stat_prefix, status, token_bucket, filter_enabled, filter_enforced,
                request_headers_to_add_when_not_enforced, response_headers_to_add, descriptors, stage,
                local_rate_limit_per_downstream_connection, enable_x_ratelimit_headers, vh_rate_limits,
                always_consume_default_token_bucket, rate_limited_as_resource_exhausted, rate_limits,
                max_dynamic_descriptors, enable_retry_after_header, local_cluster_rate_limit;
            no_effect: ;
            unsupported: ;
        });
        if stat_prefix.is_empty() {
            return Err(at.field("stat_prefix").reject("must not be empty"));
        }
        if local_cluster_rate_limit.is_some() {
            let at = at.field("local_cluster_rate_limit");
            if local_rate_limit_per_downstream_connection {
                return Err(at.reject("must not be set together with local_rate_limit_per_downstream_connection"));
            }
            if !context.has_local_cluster() {
                return Err(at.reject("needs cluster_manager.local_cluster_name in the bootstrap"));
            }
        }
        let fraction =
            |field, wire: Option<_>| wire.map(|wire| wire::runtime_fraction(&at.field(field), wire)).transpose();
        let bucket = |wire| TokenBucket::parse(&at.field("token_bucket"), wire, SHORTEST_FILL);
        let stage = wire::number_within(&at.field("stage"), Some(UInt32Value { value: stage }), 0..=10)?;
        let dynamic = at.field("max_dynamic_descriptors");
        Ok(Self {
            stat_prefix: stat_prefix.into(),
            status: refusal_status(&at.field("status"), status)?,
            bucket: token_bucket.map(bucket).transpose()?,
            enabled: fraction("filter_enabled", filter_enabled)?,
            enforced: fraction("filter_enforced", filter_enforced)?,
            request_headers: additions(
                &at.field("request_headers_to_add_when_not_enforced"),
                request_headers_to_add_when_not_enforced,
            )?,
            response_headers: additions(&at.field("response_headers_to_add"), response_headers_to_add)?,
            descriptors: self::descriptors(&at.field("descriptors"), descriptors)?,
            stage: stage.and_then(|stage| u8::try_from(stage).ok()).unwrap_or(0),
            per_connection: local_rate_limit_per_downstream_connection,
            shared_by_local_cluster: local_cluster_rate_limit.is_some(),
            tells_clients: match common::XRateLimitHeadersRfcVersion::try_from(enable_x_ratelimit_headers) {
                Ok(common::XRateLimitHeadersRfcVersion::Off) => false,
                Ok(common::XRateLimitHeadersRfcVersion::DraftVersion03) => true,
                Err(_) => {
                    return Err(wire::unknown_enum(
                        &at.field("enable_x_ratelimit_headers"),
                        enable_x_ratelimit_headers,
                    ));
                }
            },
            virtual_host: match common::VhRateLimitsOptions::try_from(vh_rate_limits) {
                Ok(common::VhRateLimitsOptions::Override) => VirtualHostLimits::Override,
                Ok(common::VhRateLimitsOptions::Include) => VirtualHostLimits::Include,
                Ok(common::VhRateLimitsOptions::Ignore) => VirtualHostLimits::Ignore,
                Err(_) => return Err(wire::unknown_enum(&at.field("vh_rate_limits"), vh_rate_limits)),
            },
            always_takes_general: always_consume_default_token_bucket.is_none_or(|flag| flag.value),
            resource_exhausted: rate_limited_as_resource_exhausted,
            rate_limits: self::rate_limits(&at.field("rate_limits"), rate_limits, RateLimitPlace::LocalFilter)?,
            max_dynamic_descriptors: wire::number_within(&dynamic, max_dynamic_descriptors, 1..=MOST_DYNAMIC)?
                .unwrap_or(DEFAULT_DYNAMIC),
            retry_after: enable_retry_after_header,
        })
    }

    /// Reads the settings of a route, which must have a bucket.
    pub(super) fn parse_route(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::LocalRateLimit) -> Parsed<Self> {
        if wire.token_bucket.is_none() {
            return Err(at.field("token_bucket").reject("is required in the settings of a route"));
        }
        Self::parse(context, at, wire)
    }
}

fn refusal_status(at: &FieldPath<'_>, wire: Option<HttpStatus>) -> Parsed<u16> {
    let Some(HttpStatus { code }) = wire else { return Ok(TOO_MANY_REQUESTS) };
    match StatusCode::try_from(code) {
        Ok(StatusCode::Empty) | Err(_) => Err(at.field("code").reject(format!("{code} is not a known status"))),
        // Below, Envoy does not do what it is told either.
        Ok(status) if (status as i32) < 400 => Ok(TOO_MANY_REQUESTS),
        Ok(status) => Ok(u16::try_from(status as i32).unwrap_or(TOO_MANY_REQUESTS)),
    }
}

fn additions(at: &FieldPath<'_>, wire: Vec<core::HeaderValueOption>) -> Parsed<Vec<HeaderAddition>> {
    if wire.len() > MOST_HEADERS {
        return Err(at.reject(format!("has {} entries, expected up to {MOST_HEADERS}", wire.len())));
    }
    wire::each(at, wire, header_addition)
}

fn descriptors(at: &FieldPath<'_>, wire: Vec<common::LocalRateLimitDescriptor>) -> Parsed<Vec<LocalDescriptor>> {
    let descriptors = wire::each(at, wire, descriptor)?;
    let mut seen = HashSet::new();
    for (index, descriptor) in descriptors.iter().enumerate() {
        if !seen.insert(&descriptor.entries) {
            return Err(at.item(index).field("entries").reject("are those of another descriptor too"));
        }
    }
    Ok(descriptors)
}

fn descriptor(at: &FieldPath<'_>, wire: common::LocalRateLimitDescriptor) -> Parsed<LocalDescriptor> {
    decide!(wire, at, common::LocalRateLimitDescriptor
        as "envoy.extensions.common.ratelimit.v3.LocalRateLimitDescriptor" {
        implemented: entries, token_bucket, shadow_mode;
        no_effect: ;
        unsupported: ;
    });
    let entries_at = at.field("entries");
    if entries.is_empty() {
        return Err(entries_at.reject("must not be empty"));
    }
    let entry = |at: &FieldPath<'_>, wire| {
        let common::rate_limit_descriptor::Entry { key, value } = wire;
        if key.is_empty() {
            return Err(at.field("key").reject("must not be empty"));
        }
        Ok((key.into_boxed_str(), value.into_boxed_str()))
    };
    let bucket_at = at.field("token_bucket");
    let Some(bucket) = token_bucket else { return Err(bucket_at.reject("is required")) };
    Ok(LocalDescriptor {
        entries: wire::each(&entries_at, entries, entry)?.into(),
        bucket: TokenBucket::parse(&bucket_at, bucket, Duration::ZERO)?,
        shadow: shadow_mode,
    })
}

const TOO_MANY_REQUESTS: u16 = 429;
/// Source: `LocalRateLimit.token_bucket`.
const SHORTEST_FILL: Duration = Duration::from_millis(50);
const DEFAULT_DYNAMIC: u32 = 20;
/// A bucket costs 24 bytes, so these are 400 MB: more is a mistake.
const MOST_DYNAMIC: u32 = 1 << 24;
/// Source: `(validate.rules).repeated.max_items`.
const MOST_HEADERS: usize = 10;

#[cfg(test)]
mod tests {
    use outrigger_api::pb::envoy::r#type::v3::TokenBucket as WireBucket;
    use outrigger_api::pb::google::protobuf::Duration as WireDuration;

    use super::*;
    use crate::context::NoEnvironment;

    fn bucket(nanos: i32) -> Option<WireBucket> {
        let fill_interval = Some(WireDuration { seconds: 0, nanos });
        Some(WireBucket { max_tokens: 1, tokens_per_fill: None, fill_interval })
    }

    fn settings() -> pb::LocalRateLimit {
        pb::LocalRateLimit { stat_prefix: "p".into(), ..Default::default() }
    }

    fn read(wire: pb::LocalRateLimit) -> Result<LocalRateLimit, String> {
        let root = FieldPath::resource("listener", "l");
        let context = Context::new(&NoEnvironment);
        LocalRateLimit::parse(&context, &root, wire).map_err(|rejection| rejection.to_string())
    }

    fn status(code: i32) -> Result<u16, String> {
        read(pb::LocalRateLimit { status: Some(HttpStatus { code }), ..settings() }).map(|settings| settings.status)
    }

    #[test]
    fn defaults_are_envoys() {
        let read = read(settings()).unwrap();
        assert_eq!((read.status, read.stage, read.max_dynamic_descriptors), (429, 0, 20));
        assert!(read.always_takes_general && read.bucket.is_none() && read.enabled.is_none());
        assert_eq!((status(200), status(503)), (Ok(429), Ok(503)));
        assert!(status(0).is_err() && status(999).is_err());
    }

    #[test]
    fn limits_that_cannot_be_kept_are_refused() {
        let entry = |key: &str| common::rate_limit_descriptor::Entry { key: key.into(), value: "v".into() };
        let descriptor = |key: &str| common::LocalRateLimitDescriptor {
            entries: vec![entry(key)],
            token_bucket: bucket(1),
            shadow_mode: false,
        };
        let with = |descriptors| pb::LocalRateLimit { descriptors, ..settings() };
        let share = Some(common::LocalClusterRateLimit {});
        for (wire, expected) in [
            (pb::LocalRateLimit::default(), "stat_prefix: must not be empty"),
            (pb::LocalRateLimit { stage: 11, ..settings() }, "stage: 11 is not within 0 to 10"),
            (
                pb::LocalRateLimit { token_bucket: bucket(20_000_000), ..settings() },
                "token_bucket.fill_interval: 20ms is below 50ms",
            ),
            (
                pb::LocalRateLimit { local_cluster_rate_limit: share, ..settings() },
                "local_cluster_rate_limit: needs cluster_manager.local_cluster_name in the bootstrap",
            ),
            (
                with(vec![descriptor("a"), descriptor("a")]),
                "descriptors[1].entries: are those of another descriptor too",
            ),
            (with(vec![descriptor("")]), "descriptors[0].entries[0].key: must not be empty"),
        ] {
            assert_eq!(read(wire).unwrap_err(), format!("listener \"l\": {expected}"));
        }
        let root = FieldPath::resource("route configuration", "r");
        assert!(LocalRateLimit::parse_route(&Context::new(&NoEnvironment), &root, settings()).is_err());
    }
}
