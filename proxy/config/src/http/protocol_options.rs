//! HTTP protocol options, the same towards downstream and upstream (`envoy.config.core.v3.Http1ProtocolOptions`,
//! `Http2ProtocolOptions`, `HttpProtocolOptions`).
//!
//! Owns how they are read. Never knows which side they are for.

use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::http::header_formatters::preserve_case::v3 as preserve_case_api;
use outrigger_api::pb::google::protobuf::UInt32Value;

use super::{FloodLimits, HeaderCase, Http1Options, Http2Keepalive, Http2Options, PreserveCase, UnderscoreAction};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::units::Percent;
use crate::wire;

/// Options that do not depend on the version of HTTP.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CommonHttpOptions {
    /// 1 h unless given, `None` for `0s`.
    pub idle_timeout: Option<Duration>,
    /// `None` unless given.
    pub max_connection_duration: Option<Duration>,
    /// Of downstream connections only.
    pub max_connection_duration_jitter: Option<Percent>,
    /// Limit on the number of headers, as given.
    pub max_headers_count: Option<u32>,
    /// Limit on the size of response heads, as given, in bytes.
    pub max_response_headers_bytes: Option<u32>,
    /// `None` unless given.
    pub max_stream_duration: Option<Duration>,
    /// Means requests only.
    pub underscores: UnderscoreAction,
    /// `None` for no limit.
    pub max_requests_per_connection: Option<u32>,
}

/// Reads options that do not depend on the version; the defaults when `wire` is `None`.
pub(crate) fn common_http_options(
    at: &FieldPath<'_>,
    wire: Option<core::HttpProtocolOptions>,
) -> Parsed<CommonHttpOptions> {
    let wire = wire.unwrap_or_default();
    decide!(wire, at, core::HttpProtocolOptions as "envoy.config.core.v3.HttpProtocolOptions" {
        implemented: idle_timeout, max_connection_duration, max_headers_count, max_response_headers_kb,
            max_stream_duration, headers_with_underscores_action, max_requests_per_connection,
            max_connection_duration_jitter;
        no_effect: ;
        unsupported: ;
    });
    Ok(CommonHttpOptions {
        idle_timeout: wire::limit(&at.field("idle_timeout"), idle_timeout, Some(DEFAULT_IDLE_TIMEOUT))?,
        max_connection_duration: wire::limit(&at.field("max_connection_duration"), max_connection_duration, None)?,
        max_connection_duration_jitter: max_connection_duration_jitter
            .map(|wire| wire::percent(&at.field("max_connection_duration_jitter"), wire))
            .transpose()?,
        max_headers_count: within(&at.field("max_headers_count"), max_headers_count, 1, u32::MAX)?,
        max_response_headers_bytes: within(&at.field("max_response_headers_kb"), max_response_headers_kb, 1, 8192)?
            .map(|kilobytes| kilobytes * 1024),
        max_stream_duration: wire::limit(&at.field("max_stream_duration"), max_stream_duration, None)?,
        underscores: underscore_action(&at.field("headers_with_underscores_action"), headers_with_underscores_action)?,
        max_requests_per_connection: max_requests_per_connection.map(|limit| limit.value).filter(|limit| *limit > 0),
    })
}

fn underscore_action(at: &FieldPath<'_>, value: i32) -> Parsed<UnderscoreAction> {
    use core::http_protocol_options::HeadersWithUnderscoresAction as Wire;
    Ok(match Wire::try_from(value).map_err(|_| wire::unknown_enum(at, value))? {
        Wire::Allow => UnderscoreAction::Allow,
        Wire::RejectRequest => UnderscoreAction::RejectRequest,
        Wire::DropHeader => UnderscoreAction::DropHeader,
    })
}

/// Reads HTTP/1 options. A connection manager that has a default for `override_stream_error_on_invalid_http_message`
/// fills that field in before.
pub(crate) fn http1_options(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: core::Http1ProtocolOptions,
) -> Parsed<Http1Options> {
    decide!(wire, at, core::Http1ProtocolOptions as "envoy.config.core.v3.Http1ProtocolOptions" {
        implemented: allow_absolute_url, accept_http_10, default_host_for_http_10, header_key_format, enable_trailers,
            allow_chunked_length, override_stream_error_on_invalid_http_message, send_fully_qualified_url,
            allow_custom_methods, ignore_http_11_upgrade;
        no_effect: use_balsa_parser = "there is one HTTP/1 parser";
        unsupported: ;
    });
    let (header_case, preserve_case) = match header_key_format {
        None => (HeaderCase::Lower, None),
        Some(format) => header_case(context, &at.field("header_key_format"), format)?,
    };
    wire::header_value(&at.field("default_host_for_http_10"), &default_host_for_http_10)?;
    Ok(Http1Options {
        allow_absolute_url: allow_absolute_url.is_none_or(|flag| flag.value),
        accept_http_10,
        default_host_for_http_10: Some(default_host_for_http_10).filter(|host| !host.is_empty()),
        header_case,
        preserve_case,
        enable_trailers,
        allow_chunked_length,
        stream_error_on_invalid_message: override_stream_error_on_invalid_http_message.is_some_and(|flag| flag.value),
        allow_custom_methods,
        send_fully_qualified_url,
        ignored_upgrades: wire::each(
            &at.field("ignore_http_11_upgrade"),
            ignore_http_11_upgrade,
            wire::string_matcher,
        )?,
    })
}

fn header_case(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: core::http1_protocol_options::HeaderKeyFormat,
) -> Parsed<(HeaderCase, Option<PreserveCase>)> {
    use core::http1_protocol_options::header_key_format::{HeaderFormat, ProperCaseWords};
    let core::http1_protocol_options::HeaderKeyFormat { header_format } = wire;
    match header_format {
        Some(HeaderFormat::ProperCaseWords(ProperCaseWords {})) => Ok((HeaderCase::Proper, None)),
        Some(HeaderFormat::StatefulFormatter(extension)) => {
            Ok((HeaderCase::Lower, Some(preserve_case(context, &at.field("stateful_formatter"), extension)?)))
        }
        None => Err(at.reject("needs one of proper_case_words, stateful_formatter")),
    }
}

/// The one formatter with a memory that there is, `envoy.http.stateful_header_formatters.preserve_case`.
fn preserve_case(context: &Context<'_>, at: &FieldPath<'_>, wire: core::TypedExtensionConfig) -> Parsed<PreserveCase> {
    use preserve_case_api::{PreserveCaseFormatterConfig, preserve_case_formatter_config::FormatterTypeOnEnvoyHeaders};
    let core::TypedExtensionConfig { name: _, typed_config } = wire;
    let at = at.field("typed_config");
    let any = wire::extension(context, &at, typed_config.ok_or_else(|| at.reject("is required"))?)?;
    if wire::type_name(&any) != "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig" {
        return Err(at.reject(format!("{:?} is not supported, expected PreserveCaseFormatterConfig", any.type_url)));
    }
    let wire: PreserveCaseFormatterConfig = wire::decode(&at, &any)?;
    decide!(wire, &at, PreserveCaseFormatterConfig as "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig" {
        implemented: forward_reason_phrase, formatter_type_on_envoy_headers;
        no_effect: ;
        unsupported: ;
    });
    let unknown = match FormatterTypeOnEnvoyHeaders::try_from(formatter_type_on_envoy_headers) {
        Ok(FormatterTypeOnEnvoyHeaders::Default) => HeaderCase::Lower,
        Ok(FormatterTypeOnEnvoyHeaders::ProperCase) => HeaderCase::Proper,
        Err(_) => {
            let at = at.field("formatter_type_on_envoy_headers");
            return Err(wire::unknown_enum(&at, formatter_type_on_envoy_headers));
        }
    };
    Ok(PreserveCase { reason_phrase: forward_reason_phrase, unknown })
}

/// Reads HTTP/2 options. A connection manager that has a default for `override_stream_error_on_invalid_http_message`
/// fills that field in before.
pub(crate) fn http2_options(at: &FieldPath<'_>, wire: core::Http2ProtocolOptions) -> Parsed<Http2Options> {
    decide!(wire, at, core::Http2ProtocolOptions as "envoy.config.core.v3.Http2ProtocolOptions" {
        implemented: hpack_table_size, max_concurrent_streams, initial_stream_window_size,
            initial_connection_window_size, allow_connect, max_outbound_frames, max_outbound_control_frames,
            max_consecutive_inbound_frames_with_empty_payload, max_inbound_priority_frames_per_stream,
            max_inbound_window_update_frames_per_data_frame_sent,
            stream_error_on_invalid_http_messaging, override_stream_error_on_invalid_http_message,
            connection_keepalive;
        no_effect: use_oghttp2_codec = "there is one HTTP/2 engine",
            max_metadata_size = "METADATA frames are not supported",
            enable_huffman_encoding = "the HTTP/2 engine picks the shorter encoding",
            max_header_field_size_kb = "the limit on the whole head holds for each field",
            stream_reset_burst = "flood protection is built into the HTTP/2 engine",
            stream_reset_rate = "flood protection is built into the HTTP/2 engine",
            disallow_obs_text = "holds for a codec that Envoy does not use unless told to";
        unsupported: allow_metadata, custom_settings_parameters;
    });
    let defaults = Http2Options::default();
    let window = |name: &'static str, wire, default| {
        Ok(within(&at.field(name), wire, MIN_WINDOW_BYTES, MAX_WINDOW_BYTES)?.unwrap_or(default))
    };
    let at_least_one =
        |name: &'static str, wire, default| Ok(within(&at.field(name), wire, 1, u32::MAX)?.unwrap_or(default));
    let floods = FloodLimits {
        outbound_frames: at_least_one("max_outbound_frames", max_outbound_frames, defaults.floods.outbound_frames)?,
        outbound_control_frames: at_least_one(
            "max_outbound_control_frames",
            max_outbound_control_frames,
            defaults.floods.outbound_control_frames,
        )?,
        empty_frames_in_a_row: max_consecutive_inbound_frames_with_empty_payload
            .map_or(defaults.floods.empty_frames_in_a_row, |limit| limit.value),
        priorities_per_stream: max_inbound_priority_frames_per_stream
            .map_or(defaults.floods.priorities_per_stream, |limit| limit.value),
        window_updates_per_data_frame: at_least_one(
            "max_inbound_window_update_frames_per_data_frame_sent",
            max_inbound_window_update_frames_per_data_frame_sent,
            defaults.floods.window_updates_per_data_frame,
        )?,
    };
    let keepalive = match connection_keepalive {
        None => None,
        Some(settings) => keepalive(&at.field("connection_keepalive"), settings)?,
    };
    Ok(Http2Options {
        hpack_table_bytes: hpack_table_size.map_or(defaults.hpack_table_bytes, |size| size.value),
        max_concurrent_streams: within(&at.field("max_concurrent_streams"), max_concurrent_streams, 1, MAX_STREAMS)?
            .unwrap_or(defaults.max_concurrent_streams),
        initial_stream_window_bytes: window(
            "initial_stream_window_size",
            initial_stream_window_size,
            defaults.initial_stream_window_bytes,
        )?,
        initial_connection_window_bytes: window(
            "initial_connection_window_size",
            initial_connection_window_size,
            defaults.initial_connection_window_bytes,
        )?,
        allow_connect,
        keepalive,
        stream_error_on_invalid_message: override_stream_error_on_invalid_http_message
            .map_or(stream_error_on_invalid_http_messaging, |flag| flag.value),
        floods,
    })
}

fn keepalive(at: &FieldPath<'_>, wire: core::KeepaliveSettings) -> Parsed<Option<Http2Keepalive>> {
    decide!(wire, at, core::KeepaliveSettings as "envoy.config.core.v3.KeepaliveSettings" {
        implemented: interval, timeout, connection_idle_interval;
        no_effect: interval_jitter = "pings go out at the plain interval";
        unsupported: ;
    });
    let Some(timeout) = timeout else {
        return Err(at.field("timeout").reject("is required"));
    };
    let timeout = at_least_a_millisecond(&at.field("timeout"), timeout)?;
    let given = |field: &'static str, wire: Option<_>| {
        wire.map(|wire| at_least_a_millisecond(&at.field(field), wire)).transpose()
    };
    let interval = given("interval", interval)?;
    let idle_interval = given("connection_idle_interval", connection_idle_interval)?;
    let asks = interval.is_some() || idle_interval.is_some();
    Ok(asks.then_some(Http2Keepalive { interval, idle_interval, timeout }))
}

fn at_least_a_millisecond(at: &FieldPath<'_>, wire: outrigger_api::pb::google::protobuf::Duration) -> Parsed<Duration> {
    let value = wire::duration(at, wire)?;
    if value < Duration::from_millis(1) {
        return Err(at.reject(format!("{value:?} must be at least 1ms")));
    }
    Ok(value)
}

fn within(at: &FieldPath<'_>, wire: Option<UInt32Value>, low: u32, high: u32) -> Parsed<Option<u32>> {
    wire::number_within(at, wire, low..=high)
}

const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const MIN_WINDOW_BYTES: u32 = 65_535;
const MAX_WINDOW_BYTES: u32 = (1 << 31) - 1;
const MAX_STREAMS: u32 = (1 << 31) - 1;

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::protobuf::{BoolValue, Duration as WireDuration};

    use super::*;
    use crate::context::NoEnvironment;

    fn at() -> FieldPath<'static> {
        FieldPath::resource("cluster", "billing")
    }

    #[test]
    fn nothing_given_is_the_defaults() {
        assert_eq!(
            http1_options(&Context::new(&NoEnvironment), &at(), Default::default()),
            Ok(Http1Options::default())
        );
        assert_eq!(http2_options(&at(), Default::default()), Ok(Http2Options::default()));
        let common = common_http_options(&at(), None).unwrap();
        assert_eq!(common.idle_timeout, Some(Duration::from_secs(3600)));
        assert_eq!(common.max_headers_count, None);
    }

    #[test]
    fn zero_switches_the_idle_timeout_off() {
        let wire = core::HttpProtocolOptions { idle_timeout: Some(WireDuration::default()), ..Default::default() };
        assert_eq!(common_http_options(&at(), Some(wire)).unwrap().idle_timeout, None);
    }

    #[test]
    fn the_newer_stream_error_field_wins() {
        let wire = core::Http2ProtocolOptions {
            stream_error_on_invalid_http_messaging: true,
            override_stream_error_on_invalid_http_message: Some(BoolValue { value: false }),
            ..Default::default()
        };
        assert!(!http2_options(&at(), wire).unwrap().stream_error_on_invalid_message);
    }

    #[test]
    fn values_out_of_range_are_named() {
        let number = |value| Some(UInt32Value { value });
        let http2 = |wire| http2_options(&at(), wire).unwrap_err().to_string();
        assert_eq!(
            http2(core::Http2ProtocolOptions { initial_stream_window_size: number(1000), ..Default::default() }),
            "cluster \"billing\": initial_stream_window_size: 1000 is not within 65535 to 2147483647"
        );
        assert_eq!(
            http2(core::Http2ProtocolOptions { max_concurrent_streams: number(0), ..Default::default() }),
            "cluster \"billing\": max_concurrent_streams: 0 is not within 1 to 2147483647"
        );
        assert_eq!(
            http2(core::Http2ProtocolOptions { max_outbound_frames: number(0), ..Default::default() }),
            "cluster \"billing\": max_outbound_frames: 0 is not within 1 to 4294967295"
        );
        let floods = core::Http2ProtocolOptions {
            max_consecutive_inbound_frames_with_empty_payload: number(0),
            max_inbound_priority_frames_per_stream: number(0),
            ..Default::default()
        };
        let floods = http2_options(&at(), floods).unwrap().floods;
        assert_eq!((floods.empty_frames_in_a_row, floods.priorities_per_stream), (0, 0));
        assert_eq!(
            http2(core::Http2ProtocolOptions { allow_metadata: true, ..Default::default() }),
            "cluster \"billing\": allow_metadata: is not supported"
        );
        let settings = core::KeepaliveSettings {
            interval: Some(WireDuration { seconds: 0, nanos: 1 }),
            timeout: Some(WireDuration { seconds: 1, nanos: 0 }),
            ..Default::default()
        };
        assert_eq!(
            http2(core::Http2ProtocolOptions { connection_keepalive: Some(settings), ..Default::default() }),
            "cluster \"billing\": connection_keepalive.interval: 1ns must be at least 1ms"
        );
        let common = core::HttpProtocolOptions { headers_with_underscores_action: 7, ..Default::default() };
        assert_eq!(
            common_http_options(&at(), Some(common)).unwrap_err().to_string(),
            "cluster \"billing\": headers_with_underscores_action: 7 is not a known value"
        );
    }
}
