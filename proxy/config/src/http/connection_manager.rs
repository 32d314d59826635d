//! Reads HTTP connection managers.
//!
//! Owns the fields of `HttpConnectionManager`. Never reads what is inside filters or routes.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as parts;
use outrigger_api::pb::google::protobuf::{BoolValue, Duration as WireDuration};

use super::client_address::detections;
use super::client_cert::client_cert_matcher;
use super::early_mutations::early_mutations;
use super::filters::http_filters;
use super::header_mutations::check_header_value;
use super::protocol_options::{common_http_options, http1_options, http2_options};
use super::{
    AccessLogTimes, ClientCertForwarding, Codec, EscapedSlashes, ForwardProto, HttpConnectionManager,
    InternalAddresses, LocalReplies, ProxyStatus, RouteSource, ScopedRoutes, ServerHeader, StripPort, Upgrade,
};
use crate::accesslog::access_logs;
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::route::RouteConfiguration;
use crate::tracing::{http_tracing, request_id};
use crate::{address_parse, source, wire};

impl HttpConnectionManager {
    /// Reads the message at `at`.
    pub(crate) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::HttpConnectionManager) -> Parsed<Self> {
        decide!(wire, at, pb::HttpConnectionManager as "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" {
            implemented: codec_type, stat_prefix, route_specifier, http_filters, tracing, common_http_protocol_options,
                http_protocol_options, http2_protocol_options, server_name, server_header_transformation,
                scheme_header_transformation, max_request_headers_kb, stream_idle_timeout, request_timeout,
                request_headers_timeout, drain_timeout, delayed_close_timeout, access_log, access_log_options,
                use_remote_address, xff_num_trusted_hops, internal_address_config, skip_xff_append, via,
                generate_request_id, preserve_external_request_id, always_set_request_id_in_response,
                forward_client_cert_details, set_current_client_cert_details, proxy_100_continue, upgrade_configs,
                normalize_path, merge_slashes, path_with_escaped_slashes_action, request_id_extension,
                local_reply_config, strip_matching_host_port, strip_port_mode, stream_error_on_invalid_http_message,
                strip_trailing_host_dot, append_x_forwarded_port, append_local_overload, add_user_agent,
                early_header_mutation_extensions, original_ip_detection_extensions, forward_client_cert_matcher,
                proxy_status_config, forward_proto_config, http1_safe_max_connection_duration, drain_timeout_jitter,
                access_log_flush_interval, flush_access_log_on_new_request;
            no_effect: http3_protocol_options = "HTTP/3 is not served",
                add_proxy_protocol_connection_state = "there is no filter state",
                represent_ipv4_remote_address_as_ipv4_mapped_ipv6 = "Envoy has not implemented it";
            unsupported: path_normalization_options, stream_flush_timeout, typed_header_validation_config;
        });
        if stat_prefix.is_empty() {
            return Err(at.field("stat_prefix").reject("must not be empty"));
        }
        let older = (access_log_flush_interval, flush_access_log_on_new_request);
        let access_log_times = access_log_times(at, access_log_options, older)?;
        let detections_at = at.field("original_ip_detection_extensions");
        let detections = detections(context, &detections_at, original_ip_detection_extensions)?;
        let peer_counts = use_remote_address.is_some_and(|flag| flag.value);
        if !detections.is_empty() && (peer_counts || xff_num_trusted_hops > 0) {
            return Err(
                detections_at.reject("must not be set together with use_remote_address or xff_num_trusted_hops")
            );
        }
        check_header_value(&at.field("server_name"), &server_name)?;
        check_header_value(&at.field("via"), &via)?;
        let common_at = at.field("common_http_protocol_options");
        if common_http_protocol_options.is_some_and(|options| options.max_response_headers_kb.is_some()) {
            return Err(common_at.field("max_response_headers_kb").reject("cannot be set on a connection manager"));
        }
        let common = common_http_options(&common_at, common_http_protocol_options)?;
        let mut http1 = http_protocol_options.unwrap_or_default();
        let mut http2 = http2_protocol_options.unwrap_or_default();
        inherit_stream_error(stream_error_on_invalid_http_message, &mut http1, &mut http2);
        let limit = |field: &'static str, wire, default| wire::limit(&at.field(field), wire, default);
        let scheme_at = at.field("scheme_header_transformation");
        let (scheme, scheme_of_upstream) = self::scheme(&scheme_at, scheme_header_transformation)?;
        let headers_kb = at.field("max_request_headers_kb");
        let headers_kb = wire::number_within(&headers_kb, max_request_headers_kb, 1..=MAX_HEADERS_KB)?;
        Ok(Self {
            codec: codec(&at.field("codec_type"), codec_type)?,
            stat_prefix: stat_prefix.into(),
            routes: routes(context, at, route_specifier)?,
            filters: self::http_filters(context, &at.field("http_filters"), http_filters)?,
            http1: http1_options(context, &at.field("http_protocol_options"), http1)?,
            http2: http2_options(&at.field("http2_protocol_options"), http2)?,
            server_name: if server_name.is_empty() { DEFAULT_SERVER_NAME.to_owned() } else { server_name },
            server_header: server_header(&at.field("server_header_transformation"), server_header_transformation)?,
            scheme,
            scheme_of_upstream,
            max_request_headers_bytes: headers_kb.unwrap_or(DEFAULT_HEADERS_KB) * 1024,
            max_headers_count: common.max_headers_count.unwrap_or(DEFAULT_HEADERS_COUNT),
            idle_timeout: common.idle_timeout,
            max_connection_duration: common.max_connection_duration,
            max_connection_duration_jitter: common.max_connection_duration_jitter,
            http1_safe_max_connection_duration,
            max_stream_duration: common.max_stream_duration,
            max_requests_per_connection: common.max_requests_per_connection,
            underscores: common.underscores,
            stream_idle_timeout: limit("stream_idle_timeout", stream_idle_timeout, Some(DEFAULT_STREAM_IDLE_TIMEOUT))?,
            request_timeout: limit("request_timeout", request_timeout, None)?,
            request_headers_timeout: limit("request_headers_timeout", request_headers_timeout, None)?,
            drain_timeout: match drain_timeout {
                Some(wire) => wire::duration(&at.field("drain_timeout"), wire)?,
                None => DEFAULT_DRAIN_TIMEOUT,
            },
            drain_timeout_jitter: drain_timeout_jitter
                .map(|wire| wire::percent(&at.field("drain_timeout_jitter"), wire))
                .transpose()?,
            delayed_close_timeout: limit("delayed_close_timeout", delayed_close_timeout, Some(DEFAULT_DELAYED_CLOSE))?,
            access_logs: access_logs(context, &at.field("access_log"), access_log)?,
            access_log_times,
            use_remote_address: peer_counts,
            detections,
            forward_proto: forward_proto(&at.field("forward_proto_config"), forward_proto_config)?,
            xff_num_trusted_hops,
            skip_xff_append,
            internal_networks: internal_addresses(&at.field("internal_address_config"), internal_address_config)?,
            via: Some(via).filter(|via| !via.is_empty()),
            generate_request_id: generate_request_id.is_none_or(|flag| flag.value),
            preserve_external_request_id,
            always_set_request_id_in_response,
            client_cert: ClientCertForwarding::parse(at, forward_client_cert_details, set_current_client_cert_details)?,
            client_cert_matcher: client_cert_matcher(
                context,
                &at.field("forward_client_cert_matcher"),
                forward_client_cert_matcher,
            )?,
            proxy_status: ProxyStatus::parse(&at.field("proxy_status_config"), proxy_status_config)?,
            proxy_100_continue,
            normalize_path: normalize_path.is_some_and(|flag| flag.value),
            merge_slashes,
            escaped_slashes: escaped_slashes(
                &at.field("path_with_escaped_slashes_action"),
                path_with_escaped_slashes_action,
            )?,
            strip_port: strip_port(at, strip_matching_host_port, strip_port_mode)?,
            strip_trailing_host_dot,
            append_x_forwarded_port,
            append_local_overload,
            upgrades: upgrades(context, &at.field("upgrade_configs"), upgrade_configs)?,
            tracing: match tracing {
                Some(wire) => Some(Box::new(http_tracing(context, &at.field("tracing"), wire)?)),
                None => None,
            },
            local_replies: LocalReplies::parse(context, &at.field("local_reply_config"), local_reply_config)?
                .map(Box::new),
            early_mutations: early_mutations(
                &at.field("early_header_mutation_extensions"),
                early_header_mutation_extensions,
            )?,
            add_user_agent: add_user_agent.is_some_and(|flag| flag.value),
            request_id: request_id(context, &at.field("request_id_extension"), request_id_extension)?,
        })
    }
}

fn codec(at: &FieldPath<'_>, value: i32) -> Parsed<Codec> {
    match parts::CodecType::try_from(value) {
        Ok(parts::CodecType::Auto) => Ok(Codec::Auto),
        Ok(parts::CodecType::Http1) => Ok(Codec::Http1),
        Ok(parts::CodecType::Http2) => Ok(Codec::Http2),
        Ok(parts::CodecType::Http3) => Err(at.reject("HTTP3 is not supported")),
        Err(_) => Err(wire::unknown_enum(at, value)),
    }
}

fn routes(context: &Context<'_>, at: &FieldPath<'_>, wire: Option<parts::RouteSpecifier>) -> Parsed<RouteSource> {
    match wire {
        Some(parts::RouteSpecifier::RouteConfig(mut wire)) => {
            // Inline routes are checked against the clusters unless they say otherwise; discovered ones are not.
            wire.validate_clusters.get_or_insert(BoolValue { value: true });
            let routes = RouteConfiguration::parse_inline(context, &at.field("route_config"), wire)?;
            Ok(RouteSource::Inline(Arc::new(routes)))
        }
        Some(parts::RouteSpecifier::Rds(wire)) => {
            let at = at.field("rds");
            decide!(wire, at, pb::Rds as "envoy.extensions.filters.network.http_connection_manager.v3.Rds" {
                implemented: config_source, route_config_name;
                no_effect: ;
                unsupported: ;
            });
            let Some(config_source) = config_source else {
                return Err(at.field("config_source").reject("is required"));
            };
            if route_config_name.is_empty() {
                return Err(at.field("route_config_name").reject("must not be empty"));
            }
            Ok(RouteSource::Rds {
                name: route_config_name.into(),
                source: source::config_source(context, &at.field("config_source"), config_source)?,
            })
        }
        Some(parts::RouteSpecifier::ScopedRoutes(wire)) => {
            Ok(RouteSource::Scoped(Arc::new(ScopedRoutes::parse(context, &at.field("scoped_routes"), wire)?)))
        }
        None => Err(at.reject("needs one of rds, route_config, scoped_routes")),
    }
}

/// The connection manager's choice holds for a protocol that makes none of its own.
fn inherit_stream_error(
    choice: Option<BoolValue>,
    http1: &mut core::Http1ProtocolOptions,
    http2: &mut core::Http2ProtocolOptions,
) {
    if choice.is_some() {
        http1.override_stream_error_on_invalid_http_message =
            http1.override_stream_error_on_invalid_http_message.or(choice);
        http2.override_stream_error_on_invalid_http_message =
            http2.override_stream_error_on_invalid_http_message.or(choice);
    }
}

fn server_header(at: &FieldPath<'_>, value: i32) -> Parsed<ServerHeader> {
    match parts::ServerHeaderTransformation::try_from(value) {
        Ok(parts::ServerHeaderTransformation::Overwrite) => Ok(ServerHeader::Overwrite),
        Ok(parts::ServerHeaderTransformation::AppendIfAbsent) => Ok(ServerHeader::AppendIfAbsent),
        Ok(parts::ServerHeaderTransformation::PassThrough) => Ok(ServerHeader::PassThrough),
        Err(_) => Err(wire::unknown_enum(at, value)),
    }
}

/// The scheme that overwrites others, and whether that of the connection to the endpoint does.
fn scheme(at: &FieldPath<'_>, wire: Option<core::SchemeHeaderTransformation>) -> Parsed<(Option<String>, bool)> {
    let Some(wire) = wire else { return Ok((None, false)) };
    decide!(wire, at, core::SchemeHeaderTransformation as "envoy.config.core.v3.SchemeHeaderTransformation" {
        implemented: transformation, match_upstream;
        no_effect: ;
        unsupported: ;
    });
    match transformation {
        Some(core::scheme_header_transformation::Transformation::SchemeToOverwrite(scheme))
            if ["http", "https"].contains(&scheme.as_str()) =>
        {
            Ok((Some(scheme), false))
        }
        Some(core::scheme_header_transformation::Transformation::SchemeToOverwrite(scheme)) => {
            Err(at.field("scheme_to_overwrite").reject(format!("{scheme:?} is not one of http, https")))
        }
        None => Ok((None, match_upstream)),
    }
}

fn internal_addresses(at: &FieldPath<'_>, wire: Option<parts::InternalAddressConfig>) -> Parsed<InternalAddresses> {
    let Some(wire) = wire else { return Ok(InternalAddresses::default()) };
    use parts::InternalAddressConfig;
    decide!(wire, at, InternalAddressConfig as "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.InternalAddressConfig" {
        implemented: unix_sockets, cidr_ranges;
        no_effect: ;
        unsupported: ;
    });
    let list = at.field("cidr_ranges");
    let networks = cidr_ranges
        .into_iter()
        .enumerate()
        .map(|(index, wire)| address_parse::cidr(&list.item(index), wire))
        .collect::<Parsed<_>>()?;
    Ok(InternalAddresses { unix_sockets, networks })
}

fn forward_proto(_at: &FieldPath<'_>, wire: Option<pb::ForwardProtoConfig>) -> Parsed<Option<Box<ForwardProto>>> {
    let Some(wire) = wire else { return Ok(None) };
    decide!(wire, _at, pb::ForwardProtoConfig as "envoy.extensions.filters.network.http_connection_manager.v3.ForwardProtoConfig" {
        implemented: https_destination_ports, http_destination_ports;
        no_effect: ;
        unsupported: ;
    });
    Ok(Some(Box::new(ForwardProto { https: https_destination_ports, http: http_destination_ports })))
}

fn escaped_slashes(at: &FieldPath<'_>, value: i32) -> Parsed<EscapedSlashes> {
    use parts::PathWithEscapedSlashesAction as Action;
    match Action::try_from(value) {
        Ok(Action::ImplementationSpecificDefault | Action::KeepUnchanged) => Ok(EscapedSlashes::Keep),
        Ok(Action::RejectRequest) => Ok(EscapedSlashes::Reject),
        Ok(Action::UnescapeAndRedirect) => Ok(EscapedSlashes::UnescapeAndRedirect),
        Ok(Action::UnescapeAndForward) => Ok(EscapedSlashes::UnescapeAndForward),
        Err(_) => Err(wire::unknown_enum(at, value)),
    }
}

fn strip_port(at: &FieldPath<'_>, matching: bool, mode: Option<parts::StripPortMode>) -> Parsed<StripPort> {
    match (matching, mode) {
        (true, Some(parts::StripPortMode::StripAnyHostPort(true))) => {
            Err(at.field("strip_any_host_port").reject("must not be set together with strip_matching_host_port"))
        }
        (true, _) => Ok(StripPort::Matching),
        (false, Some(parts::StripPortMode::StripAnyHostPort(true))) => Ok(StripPort::Any),
        (false, _) => Ok(StripPort::Keep),
    }
}

fn upgrades(context: &Context<'_>, at: &FieldPath<'_>, wire: Vec<parts::UpgradeConfig>) -> Parsed<Vec<Upgrade>> {
    let mut upgrades: Vec<Upgrade> = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        let at = at.item(index);
        use parts::UpgradeConfig;
        decide!(wire, at, UpgradeConfig as "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig" {
            implemented: upgrade_type, enabled, filters;
            no_effect: ;
            unsupported: ;
        });
        let field = at.field("upgrade_type");
        let protocol = upgrade_type.to_ascii_lowercase();
        match protocol.as_str() {
            "" => return Err(field.reject("must not be empty")),
            "connect-udp" => return Err(field.reject(format!("{upgrade_type} is not supported"))),
            _ if upgrades.iter().any(|upgrade| upgrade.protocol == protocol) => {
                return Err(field.reject(format!("{upgrade_type:?} is configured twice")));
            }
            _ => upgrades.push(Upgrade {
                protocol,
                enabled: enabled.is_none_or(|flag| flag.value),
                filters: match filters.is_empty() {
                    true => Vec::new(),
                    false => http_filters(context, &at.field("filters"), filters)?,
                },
            }),
        }
    }
    Ok(upgrades)
}

/// Reads `access_log_options`, or the older fields that it replaces, all of them fields of `at`.
fn access_log_times(
    at: &FieldPath<'_>,
    wire: Option<parts::HcmAccessLogOptions>,
    (older_interval, older_on_new_request): (Option<WireDuration>, bool),
) -> Parsed<AccessLogTimes> {
    let Some(wire) = wire else {
        return Ok(AccessLogTimes {
            interval: flush_interval(&at.field("access_log_flush_interval"), older_interval)?,
            on_new_request: older_on_new_request,
            on_tunnel: false,
        });
    };
    let together = "must not be set together with access_log_options";
    if older_interval.is_some() {
        return Err(at.field("access_log_flush_interval").reject(together));
    }
    if older_on_new_request {
        return Err(at.field("flush_access_log_on_new_request").reject(together));
    }
    let at = at.field("access_log_options");
    use parts::HcmAccessLogOptions;
    decide!(wire, at, HcmAccessLogOptions as "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.HcmAccessLogOptions" {
        implemented: access_log_flush_interval, flush_access_log_on_new_request,
            flush_log_on_tunnel_successfully_established;
        no_effect: ;
        unsupported: ;
    });
    Ok(AccessLogTimes {
        interval: flush_interval(&at.field("access_log_flush_interval"), access_log_flush_interval)?,
        on_new_request: flush_access_log_on_new_request,
        on_tunnel: flush_log_on_tunnel_successfully_established,
    })
}

fn flush_interval(at: &FieldPath<'_>, wire: Option<WireDuration>) -> Parsed<Option<Duration>> {
    let interval = wire.map(|wire| wire::duration(at, wire)).transpose()?;
    if interval.is_some_and(|interval| interval < Duration::from_millis(1)) {
        return Err(at.reject("must be at least 1 ms"));
    }
    Ok(interval)
}

/// Source: `HttpConnectionManager.server_name`.
const DEFAULT_SERVER_NAME: &str = "envoy";
/// Source: `HttpConnectionManager.max_request_headers_kb`.
const DEFAULT_HEADERS_KB: u32 = 60;
/// Source: `(validate.rules)` of `max_request_headers_kb`.
const MAX_HEADERS_KB: u32 = 8192;
/// Source: `HttpProtocolOptions.max_headers_count`.
const DEFAULT_HEADERS_COUNT: u32 = 100;
/// Source: `HttpConnectionManager.stream_idle_timeout`.
const DEFAULT_STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Source: `HttpConnectionManager.drain_timeout`.
const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Source: `HttpConnectionManager.delayed_close_timeout`.
const DEFAULT_DELAYED_CLOSE: Duration = Duration::from_secs(1);
