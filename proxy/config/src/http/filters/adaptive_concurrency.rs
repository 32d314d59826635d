//! A limit on concurrent requests that follows latency (`envoy.extensions.filters.http.adaptive_concurrency.v3`).
//!
//! Owns the parameters of the gradient controller. Never counts a request.

use std::time::Duration;

use outrigger_api::pb::envoy::extensions::filters::http::adaptive_concurrency::v3 as pb;
use outrigger_api::pb::envoy::r#type::v3::{HttpStatus, Percent as WirePercent};
use outrigger_api::pb::google::protobuf::UInt32Value;

use crate::decide::decide;
use crate::network::RuntimeFlag;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Source: `envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptiveConcurrency {
    /// Whether requests are limited and measured.
    pub enabled: RuntimeFlag,
    /// Status of refused requests; 400 or above.
    pub status: u16,
    /// How the limit is found.
    pub gradient: Gradient,
}

/// Source: `envoy.extensions.filters.http.adaptive_concurrency.v3.GradientControllerConfig`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gradient {
    /// The latency that stands for many; 0 to 100.
    pub percentile: f64,
    /// The limit is never above this.
    pub max_limit: u32,
    /// The limit is never below this, but while the shortest latency is measured.
    pub min_limit: u32,
    /// Time between changes of the limit.
    pub update_interval: Duration,
    /// The latency without load.
    pub min_latency: MinLatency,
    /// Limit while the shortest latency is measured.
    pub min_concurrency: u32,
    /// Requests that the shortest latency is measured by.
    pub request_count: u32,
    /// Added to the time between measurements at most, in percent of it.
    pub jitter_percent: f64,
    /// Added to the shortest latency, in percent of it.
    pub buffer_percent: f64,
}

/// Where the latency without load comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MinLatency {
    /// Measured again and again, this long after the time before.
    Measured(Duration),
    /// Given.
    Fixed(Duration),
}

impl AdaptiveConcurrency {
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::AdaptiveConcurrency) -> Parsed<Self> {
        decide!(wire, at, pb::AdaptiveConcurrency as "envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency" {
            implemented: concurrency_controller_config, enabled, concurrency_limit_exceeded_status;
            no_effect: ;
            unsupported: ;
        });
        use pb::adaptive_concurrency::ConcurrencyControllerConfig;
        let gradient_at = at.field("gradient_controller_config");
        let Some(ConcurrencyControllerConfig::GradientControllerConfig(gradient)) = concurrency_controller_config
        else {
            return Err(gradient_at.reject("is required"));
        };
        Ok(Self {
            enabled: match enabled {
                None => RuntimeFlag::ON,
                Some(wire) => RuntimeFlag::parse(&at.field("enabled"), wire)?,
            },
            status: status(&at.field("concurrency_limit_exceeded_status"), concurrency_limit_exceeded_status)?,
            gradient: Gradient::parse(&gradient_at, gradient)?,
        })
    }
}

impl Gradient {
    fn parse(at: &FieldPath<'_>, wire: pb::GradientControllerConfig) -> Parsed<Self> {
        decide!(wire, at, pb::GradientControllerConfig as "envoy.extensions.filters.http.adaptive_concurrency.v3.GradientControllerConfig" {
            implemented: sample_aggregate_percentile, concurrency_limit_params, min_rtt_calc_params;
            no_effect: ;
            unsupported: ;
        });
        use pb::gradient_controller_config::{ConcurrencyLimitCalculationParams, MinimumRttCalculationParams};
        let limit_at = at.field("concurrency_limit_params");
        let Some(wire) = concurrency_limit_params else { return Err(limit_at.reject("is required")) };
        decide!(wire, limit_at, ConcurrencyLimitCalculationParams
            as "envoy.extensions.filters.http.adaptive_concurrency.v3.GradientControllerConfig.ConcurrencyLimitCalculationParams" {
            implemented: max_concurrency_limit, concurrency_update_interval, min_concurrency_limit;
            no_effect: ;
            unsupported: ;
        });
        let min_at = at.field("min_rtt_calc_params");
        let Some(wire) = min_rtt_calc_params else { return Err(min_at.reject("is required")) };
        decide!(wire, min_at, MinimumRttCalculationParams
            as "envoy.extensions.filters.http.adaptive_concurrency.v3.GradientControllerConfig.MinimumRTTCalculationParams" {
            implemented: interval, fixed_value, request_count, jitter, min_concurrency, buffer;
            no_effect: ;
            unsupported: ;
        });
        let update_at = limit_at.field("concurrency_update_interval");
        let Some(update) = concurrency_update_interval else { return Err(update_at.reject("is required")) };
        let interval_at = min_at.field("interval");
        let interval = interval.map(|wire| wire::duration(&interval_at, wire)).transpose()?;
        if let Some(interval) = interval.filter(|interval| *interval < SHORTEST_INTERVAL) {
            return Err(interval_at.reject(format!("{interval:?} is below {SHORTEST_INTERVAL:?}")));
        }
        let fixed = fixed_value.map(|wire| wire::positive_duration(&min_at.field("fixed_value"), wire)).transpose()?;
        let min_latency = match (interval, fixed) {
            (_, Some(fixed)) => MinLatency::Fixed(fixed),
            (Some(interval), None) => MinLatency::Measured(interval),
            (None, None) => return Err(min_at.reject("needs one of interval, fixed_value")),
        };
        let min_concurrency =
            above_zero(&min_at.field("min_concurrency"), min_concurrency)?.unwrap_or(DEFAULT_MIN_CONCURRENCY);
        Ok(Self {
            percentile: percent(&at.field("sample_aggregate_percentile"), sample_aggregate_percentile, 50.0)?,
            max_limit: above_zero(&limit_at.field("max_concurrency_limit"), max_concurrency_limit)?
                .unwrap_or(DEFAULT_MAX_LIMIT),
            min_limit: above_zero(&limit_at.field("min_concurrency_limit"), min_concurrency_limit)?
                .unwrap_or(min_concurrency),
            update_interval: wire::positive_duration(&update_at, update)?,
            min_latency,
            min_concurrency,
            request_count: above_zero(&min_at.field("request_count"), request_count)?.unwrap_or(DEFAULT_REQUESTS),
            jitter_percent: percent(&min_at.field("jitter"), jitter, 15.0)?,
            buffer_percent: percent(&min_at.field("buffer"), buffer, 25.0)?,
        })
    }
}

fn status(at: &FieldPath<'_>, wire: Option<HttpStatus>) -> Parsed<u16> {
    // Below, Envoy does not do what it is told either.
    Ok(wire::http_status(at, wire)?.filter(|status| *status >= 400).unwrap_or(SERVICE_UNAVAILABLE))
}

fn above_zero(at: &FieldPath<'_>, wire: Option<UInt32Value>) -> Parsed<Option<u32>> {
    match wire {
        Some(UInt32Value { value: 0 }) => Err(at.reject("0 must be above zero")),
        given => Ok(given.map(|number| number.value)),
    }
}

fn percent(at: &FieldPath<'_>, wire: Option<WirePercent>, default: f64) -> Parsed<f64> {
    wire.map_or(Ok(default), |wire| Ok(wire::percent(at, wire)?.value()))
}

const SERVICE_UNAVAILABLE: u16 = 503;
/// Source: `(validate.rules)` of `MinimumRTTCalculationParams.interval`.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);
const DEFAULT_MAX_LIMIT: u32 = 1000;
const DEFAULT_MIN_CONCURRENCY: u32 = 3;
const DEFAULT_REQUESTS: u32 = 50;

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::protobuf::Duration as WireDuration;
    use pb::gradient_controller_config::{ConcurrencyLimitCalculationParams, MinimumRttCalculationParams};

    use super::*;

    fn seconds(seconds: i64) -> Option<WireDuration> {
        Some(WireDuration { seconds, nanos: 0 })
    }

    fn gradient(limit: ConcurrencyLimitCalculationParams, min: MinimumRttCalculationParams) -> pb::AdaptiveConcurrency {
        let controller = pb::GradientControllerConfig {
            concurrency_limit_params: Some(limit),
            min_rtt_calc_params: Some(min),
            ..Default::default()
        };
        let controller = pb::adaptive_concurrency::ConcurrencyControllerConfig::GradientControllerConfig(controller);
        pb::AdaptiveConcurrency { concurrency_controller_config: Some(controller), ..Default::default() }
    }

    fn limit() -> ConcurrencyLimitCalculationParams {
        ConcurrencyLimitCalculationParams { concurrency_update_interval: seconds(1), ..Default::default() }
    }

    fn min() -> MinimumRttCalculationParams {
        MinimumRttCalculationParams { interval: seconds(60), ..Default::default() }
    }

    fn read(wire: pb::AdaptiveConcurrency) -> Result<AdaptiveConcurrency, String> {
        let root = FieldPath::resource("listener", "l");
        AdaptiveConcurrency::parse(&root, wire).map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn defaults_are_envoys() {
        let read = read(gradient(limit(), min())).unwrap();
        assert_eq!(read.status, 503);
        let expected = Gradient {
            percentile: 50.0,
            max_limit: 1000,
            min_limit: 3,
            update_interval: Duration::from_secs(1),
            min_latency: MinLatency::Measured(Duration::from_secs(60)),
            min_concurrency: 3,
            request_count: 50,
            jitter_percent: 15.0,
            buffer_percent: 25.0,
        };
        assert_eq!(read.gradient, expected);
    }

    #[test]
    fn controllers_that_cannot_work_are_refused() {
        let at = "gradient_controller_config";
        let zero = Some(UInt32Value { value: 0 });
        let short = Some(WireDuration { seconds: 0, nanos: 10 });
        for (wire, expected) in [
            (pb::AdaptiveConcurrency::default(), format!("{at}: is required")),
            (
                gradient(ConcurrencyLimitCalculationParams::default(), min()),
                format!("{at}.concurrency_limit_params.concurrency_update_interval: is required"),
            ),
            (
                gradient(limit(), MinimumRttCalculationParams::default()),
                format!("{at}.min_rtt_calc_params: needs one of interval, fixed_value"),
            ),
            (
                gradient(limit(), MinimumRttCalculationParams { interval: short, ..Default::default() }),
                format!("{at}.min_rtt_calc_params.interval: 10ns is below 1ms"),
            ),
            (
                gradient(limit(), MinimumRttCalculationParams { min_concurrency: zero, ..min() }),
                format!("{at}.min_rtt_calc_params.min_concurrency: 0 must be above zero"),
            ),
        ] {
            assert_eq!(read(wire).unwrap_err(), format!("listener \"l\": {expected}"));
        }
        let fixed = MinimumRttCalculationParams { fixed_value: seconds(2), ..min() };
        let read = read(gradient(limit(), fixed)).unwrap();
        assert_eq!(read.gradient.min_latency, MinLatency::Fixed(Duration::from_secs(2)));
    }
}
