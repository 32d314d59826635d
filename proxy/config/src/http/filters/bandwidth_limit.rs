//! A limit on the bytes of bodies in a time (`envoy.extensions.filters.http.bandwidth_limit.v3`).
//!
//! Owns the rate and which bodies it holds for. Never slows one down.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::extensions::filters::http::bandwidth_limit::v3 as pb;

use crate::decide::decide;
use crate::http::header_mutations::header_name;
use crate::network::RuntimeFlag;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Source: `envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BandwidthLimit {
    /// The `<prefix>` in `<prefix>.http_bandwidth_limit.*` stats.
    pub stat_prefix: Arc<str>,
    /// Request bodies are limited.
    pub requests: bool,
    /// Response bodies are limited; both kinds take from the same bytes.
    pub responses: bool,
    /// Bytes in a second. Without any nothing goes on.
    pub bytes_per_second: u64,
    /// Who has no more bytes to send asks again after this time; 20 ms to 1 s.
    pub fill_interval: Duration,
    /// Whether the limit holds.
    pub enabled: RuntimeFlag,
    /// Names of the trailers that tell of delays, if they do.
    pub trailers: Option<BandwidthTrailers>,
}

/// Names of trailers of responses; each holds milliseconds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BandwidthTrailers {
    /// How long the request body took.
    pub request: Box<str>,
    /// How long the response body took.
    pub response: Box<str>,
    /// How much of that the request waited for the limit.
    pub request_filter: Box<str>,
    /// How much of that the response waited for the limit.
    pub response_filter: Box<str>,
}

impl BandwidthLimit {
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::BandwidthLimit) -> Parsed<Self> {
        decide!(wire, at, pb::BandwidthLimit as "envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit" {
            implemented: stat_prefix, enable_mode, limit_kbps, fill_interval, runtime_enabled,
                enable_response_trailers, response_trailer_prefix;
            no_effect: ;
            unsupported: ;
        });
        use pb::bandwidth_limit::EnableMode;
        if stat_prefix.is_empty() {
            return Err(at.field("stat_prefix").reject("must not be empty"));
        }
        let (requests, responses) = match EnableMode::try_from(enable_mode) {
            Ok(EnableMode::Disabled) => (false, false),
            Ok(EnableMode::Request) => (true, false),
            Ok(EnableMode::Response) => (false, true),
            Ok(EnableMode::RequestAndResponse) => (true, true),
            Err(_) => return Err(wire::unknown_enum(&at.field("enable_mode"), enable_mode)),
        };
        let kibibytes = match limit_kbps.map(|limit| limit.value) {
            Some(0) => return Err(at.field("limit_kbps").reject("0 must be above zero")),
            given => given.unwrap_or(0),
        };
        let interval_at = at.field("fill_interval");
        let interval = fill_interval.map_or(Ok(DEFAULT_FILL), |wire| wire::duration(&interval_at, wire))?;
        if !(SHORTEST_FILL..=LONGEST_FILL).contains(&interval) {
            return Err(interval_at.reject(format!("{interval:?} is not within {SHORTEST_FILL:?} to {LONGEST_FILL:?}")));
        }
        let trailers = BandwidthTrailers::parse(&at.field("response_trailer_prefix"), &response_trailer_prefix)?;
        Ok(Self {
            stat_prefix: stat_prefix.into(),
            requests,
            responses,
            bytes_per_second: kibibytes.saturating_mul(1024),
            fill_interval: interval,
            enabled: match runtime_enabled {
                None => RuntimeFlag::ON,
                Some(wire) => RuntimeFlag::parse(&at.field("runtime_enabled"), wire)?,
            },
            trailers: enable_response_trailers.then_some(trailers),
        })
    }

    /// Reads the settings of a route, which must have a limit.
    pub(super) fn parse_route(at: &FieldPath<'_>, wire: pb::BandwidthLimit) -> Parsed<Self> {
        if wire.limit_kbps.is_none() {
            return Err(at.field("limit_kbps").reject("is required in the settings of a route"));
        }
        Self::parse(at, wire)
    }
}

impl BandwidthTrailers {
    fn parse(at: &FieldPath<'_>, prefix: &str) -> Parsed<Self> {
        let prefix = if prefix.is_empty() { String::new() } else { format!("{}-", header_name(at, prefix)?) };
        let name = |of: &str| format!("{prefix}bandwidth-{of}-ms").into_boxed_str();
        Ok(Self {
            request: name("request-delay"),
            response: name("response-delay"),
            request_filter: name("request-filter-delay"),
            response_filter: name("response-filter-delay"),
        })
    }
}

const DEFAULT_FILL: Duration = Duration::from_millis(50);
/// Source: `(validate.rules)` of `BandwidthLimit.fill_interval`.
const SHORTEST_FILL: Duration = Duration::from_millis(20);
const LONGEST_FILL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::protobuf::{Duration as WireDuration, UInt64Value};

    use super::*;

    fn settings() -> pb::BandwidthLimit {
        pb::BandwidthLimit { stat_prefix: "p".into(), ..Default::default() }
    }

    fn read(wire: pb::BandwidthLimit) -> Result<BandwidthLimit, String> {
        BandwidthLimit::parse(&FieldPath::resource("listener", "l"), wire).map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn without_a_mode_nothing_is_limited() {
        let read = read(settings()).unwrap();
        assert!(!read.requests && !read.responses && read.trailers.is_none());
        assert_eq!((read.fill_interval, read.enabled), (DEFAULT_FILL, RuntimeFlag::ON));
    }

    #[test]
    fn a_prefix_stands_before_the_names_of_all_trailers() {
        let wire = pb::BandwidthLimit {
            enable_mode: 3,
            limit_kbps: Some(UInt64Value { value: 2 }),
            enable_response_trailers: true,
            response_trailer_prefix: "X-One".into(),
            ..settings()
        };
        let read = read(wire).unwrap();
        assert!(read.requests && read.responses);
        assert_eq!(read.bytes_per_second, 2048);
        let trailers = read.trailers.unwrap();
        assert_eq!(&*trailers.request, "x-one-bandwidth-request-delay-ms");
        assert_eq!(&*trailers.response_filter, "x-one-bandwidth-response-filter-delay-ms");
    }

    #[test]
    fn limits_that_cannot_be_kept_are_refused() {
        let fill = |nanos| Some(WireDuration { seconds: 0, nanos });
        for (wire, expected) in [
            (pb::BandwidthLimit::default(), "stat_prefix: must not be empty"),
            (pb::BandwidthLimit { enable_mode: 4, ..settings() }, "enable_mode: 4 is not a known value"),
            (
                pb::BandwidthLimit { limit_kbps: Some(UInt64Value { value: 0 }), ..settings() },
                "limit_kbps: 0 must be above zero",
            ),
            (
                pb::BandwidthLimit { fill_interval: fill(19_000_000), ..settings() },
                "fill_interval: 19ms is not within 20ms to 1s",
            ),
        ] {
            assert_eq!(read(wire).unwrap_err(), format!("listener \"l\": {expected}"));
        }
        let root = FieldPath::resource("route configuration", "r");
        let rejection = BandwidthLimit::parse_route(&root, settings()).unwrap_err().to_string();
        assert_eq!(rejection, "route configuration \"r\": limit_kbps: is required in the settings of a route");
    }
}
