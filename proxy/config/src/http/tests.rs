//! Connection managers as control planes send them, and what is said about broken ones.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::accesslog::{AccessLogFilter, AccessLogSink, JsonFormat, LogFormat};
use crate::format::Operator;
use crate::listener::NetworkFilterConfig;
use crate::listener::tests::read as read_listener;

const ROUTER: &str = r#"{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"#;
const ROUTES: &str = "route_config: {name: r, virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: c}}]}]}";
const AT: &str = "listener \"l\": filter_chains[0].filters[0].typed_config";

/// Reads a connection manager with exactly these fields, in flow style.
fn read(fields: &str) -> Result<Arc<HttpConnectionManager>, String> {
    let yaml = format!(
        "name: l\naddress: {{pipe: {{path: '/run/l'}}}}\nfilter_chains: [{{filters: [{{name: hcm, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, {}}}}}]}}]\n",
        fields
    );
    let listener = read_listener(&yaml)?;
    match &listener.filter_chains[0].filters[0].config {
        NetworkFilterConfig::Http(manager) => Ok(Arc::clone(manager)),
        other => panic!("{other:?}"),
    }
}

fn with(extra: &str) -> Result<Arc<HttpConnectionManager>, String> {
    read(&format!("stat_prefix: s, {ROUTES}, http_filters: [{ROUTER}], {extra}"))
}

fn with_log(log: &str) -> Result<Arc<HttpConnectionManager>, String> {
    with(&format!("access_log: [{{name: log, {log}}}]"))
}

fn file_log(fields: &str) -> String {
    format!(
        "typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: \
         /dev/stdout, {fields}}}"
    )
}

#[test]
fn a_minimal_connection_manager_has_the_defaults_of_the_api() {
    let got = with("").unwrap();
    assert_eq!((got.codec, &*got.stat_prefix, got.server_name.as_str()), (Codec::Auto, "s", "envoy"));
    assert_eq!((got.max_request_headers_bytes, got.max_headers_count), (60 * 1024, 100));
    assert_eq!(got.idle_timeout, Some(Duration::from_secs(3600)));
    assert_eq!(got.stream_idle_timeout, Some(Duration::from_secs(300)));
    assert_eq!((got.request_timeout, got.request_headers_timeout), (None, None));
    assert_eq!((got.drain_timeout, got.delayed_close_timeout), (Duration::from_secs(5), Some(Duration::from_secs(1))));
    assert!(got.generate_request_id && !got.use_remote_address && !got.normalize_path);
    assert_eq!(got.internal_networks, InternalAddresses::default());
    assert!(matches!(
        got.filters.as_slice(),
        [HttpFilter { config: HttpFilterConfig::Router(_), disabled: false, .. }]
    ));
    match &got.routes {
        RouteSource::Inline(routes) => assert!(routes.validate_clusters),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_connection_manager_as_istio_sends_it_inbound() {
    let got = read(&format!(
        "stat_prefix: 'inbound_0.0.0.0_8080;', server_name: istio-envoy, {ROUTES}, http_filters: [{ROUTER}], \
         use_remote_address: false, forward_client_cert_details: APPEND_FORWARD, set_current_client_cert_details: {{subject: \
         true, dns: true, uri: true}}, upgrade_configs: [{{upgrade_type: websocket}}], stream_idle_timeout: 0s, \
         normalize_path: true, proxy_100_continue: true, path_with_escaped_slashes_action: KEEP_UNCHANGED, \
         http2_protocol_options: {{}}, server_header_transformation: PASS_THROUGH, tracing: {{client_sampling: {{value: 100}}, \
         random_sampling: {{value: 1}}, overall_sampling: {{value: 100}}, custom_tags: [{{tag: t, literal: {{value: v}}}}]}}, \
         request_id_extension: {{typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig, use_request_id_for_trace_sampling: \
         true}}}}"
    ))
    .unwrap();
    assert_eq!(got.stream_idle_timeout, None);
    assert_eq!(got.client_cert.mode, ForwardClientCert::AppendForward);
    let details = ClientCertDetails { subject: true, dns: true, uri: true, ..ClientCertDetails::default() };
    assert_eq!(got.client_cert.details, details);
    let [Upgrade { protocol, enabled: true, filters }] = got.upgrades.as_slice() else { panic!("{:?}", got.upgrades) };
    assert!(protocol == "websocket" && filters.is_empty());
    assert_eq!(got.server_header, ServerHeader::PassThrough);
    assert!(got.proxy_100_continue && got.normalize_path);
}

#[test]
fn a_connection_manager_with_discovered_routes() {
    let got = read(
        "stat_prefix: s, http_filters: [{name: gone, is_optional: true, typed_config: {'@type': \
         type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/not.Known, value: {a: 1}}}, \
         {name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, \
         suppress_envoy_headers: true, strict_check_headers: [x-envoy-max-retries]}}], rds: {route_config_name: r, \
         config_source: {ads: {}, initial_fetch_timeout: 0s}}, codec_type: HTTP2, max_request_headers_kb: 96, \
         common_http_protocol_options: {idle_timeout: 10s, max_headers_count: 7, headers_with_underscores_action: \
         REJECT_REQUEST}, stream_error_on_invalid_http_message: true, http_protocol_options: \
         {override_stream_error_on_invalid_http_message: false}, internal_address_config: {unix_sockets: true, cidr_ranges: \
         [{address_prefix: 10.1.2.3, prefix_len: 8}]}, strip_any_host_port: true, scheme_header_transformation: \
         {scheme_to_overwrite: https}, via: x",
    )
    .unwrap();
    match &got.routes {
        RouteSource::Rds { name, source } => assert_eq!((&**name, source.initial_fetch_timeout), ("r", None)),
        other => panic!("{other:?}"),
    }
    let [HttpFilter { name, config: HttpFilterConfig::Router(router), .. }] = got.filters.as_slice() else {
        panic!("{:?}", got.filters)
    };
    assert_eq!((&**name, router.suppress_envoy_headers), ("router", true), "the optional filter is skipped");
    assert!(!got.http1.stream_error_on_invalid_message, "its own choice");
    assert!(got.http2.stream_error_on_invalid_message, "the connection manager's");
    assert_eq!((got.max_request_headers_bytes, got.max_headers_count), (96 * 1024, 7));
    assert_eq!(got.underscores, UnderscoreAction::RejectRequest);
    assert_eq!(got.internal_networks.networks[0].to_string(), "10.0.0.0/8");
    assert_eq!((got.strip_port, got.scheme.as_deref(), got.via.as_deref()), (StripPort::Any, Some("https"), Some("x")));
}

#[test]
fn filters_may_be_discovered_the_router_too() {
    let got = read(&format!(
        "stat_prefix: s, {ROUTES}, http_filters: [{{name: c, config_discovery: {{config_source: {{ads: {{}}}}, type_urls: \
         [a/b.C, {CORS}], default_config: {{'@type': {CORS}}}, apply_default_config_without_warming: true}}}}, {{name: \
         unknown, is_optional: true, config_discovery: {{type_urls: [a/b.C]}}}}, {{name: r, config_discovery: \
         {{config_source: {{ads: {{}}}}, type_urls: [{ROUTER_TYPE}]}}}}]"
    ));
    let filters = &got.unwrap().filters;
    let [HttpFilterConfig::Discovered(cors), HttpFilterConfig::Discovered(router)] =
        [&filters[0].config, &filters[1].config]
    else {
        panic!("{filters:?}")
    };
    assert!(matches!(cors.default, Some(HttpFilterConfig::Cors)) && !cors.waits());
    assert!(cors.accepts("envoy.extensions.filters.http.cors.v3.Cors") && !cors.accepts("b.D"));
    assert!(router.default.is_none() && router.waits());
    assert_eq!((filters.len(), &*cors.name, &*router.name), (2, "c", "r"));
}

const CORS: &str = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors";
const ROUTER_TYPE: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";

fn scoped(extract: &str, scopes: &str) -> Result<Arc<HttpConnectionManager>, String> {
    read(&format!(
        "stat_prefix: s, http_filters: [{ROUTER}], scoped_routes: {{name: n, scope_key_builder: {{fragments: \
         [{{header_value_extractor: {{name: x, {extract}}}}}]}}, {scopes}}}"
    ))
}

#[test]
fn each_bad_connection_manager_is_refused_by_path() {
    let base = |filters: &str| read(&format!("stat_prefix: s, {ROUTES}, http_filters: [{filters}]"));
    let discovered =
        |fields: &str| format!("{{name: x, config_discovery: {{config_source: {{ads: {{}}}}, {fields}}}}}, {ROUTER}");
    let other = "{name: b, typed_config: {\"@type\": type.googleapis.com/envoy.config.core.v3.Locality}}";
    let cases = [
        (read(&format!("{ROUTES}, http_filters: [{ROUTER}]")), ".stat_prefix: must not be empty"),
        (read(&format!("stat_prefix: s, http_filters: [{ROUTER}]")), ": needs one of rds, route_config, scoped_routes"),
        (
            read(&format!("stat_prefix: s, http_filters: [{ROUTER}], rds: {{route_config_name: r}}")),
            ".rds.config_source: is required",
        ),
        (
            read(&format!("stat_prefix: s, http_filters: [{ROUTER}], rds: {{config_source: {{ads: {{}}}}}}")),
            ".rds.route_config_name: must not be empty",
        ),
        (
            read(&format!("stat_prefix: s, http_filters: [{ROUTER}], scoped_routes: {{}}")),
            ".scoped_routes.name: must not be empty",
        ),
        (
            scoped("index: 1", "scoped_rds: {scoped_rds_config_source: {ads: {}, resource_api_version: V3}}"),
            ".scoped_routes.scope_key_builder.fragments[0].header_value_extractor.index: 1 needs an element_separator",
        ),
        (
            scoped(
                "index: 0",
                "scoped_route_configurations_list: {scoped_route_configurations: [{name: s, \
                route_configuration_name: r, key: {fragments: [{string_key: k}]}}]}",
            ),
            ".scoped_routes.scoped_route_configurations_list.scoped_route_configurations[0].route_configuration_name: \
             scopes in a listener need route_configuration",
        ),
        (scoped("index: 0", "scoped_rds: {}"), ".scoped_routes.scoped_rds.scoped_rds_config_source: is required"),
        (base(""), ".http_filters: must not be empty, expected a router at the end"),
        (
            base(other),
            ".http_filters[0].typed_config: the HTTP filter \
             \"type.googleapis.com/envoy.config.core.v3.Locality\" is not supported",
        ),
        (
            base(&format!("{ROUTER}, {ROUTER}")),
            ".http_filters[1]: stands after the terminal filter \"envoy.filters.http.router\"",
        ),
        (
            base(&format!("{ROUTER}, {}", ROUTER.replacen("envoy.filters.http.router", "second", 1))),
            ".http_filters[1]: stands after the terminal filter \"envoy.filters.http.router\"",
        ),
        (
            base(&ROUTER.replacen("{name", "{disabled: true, name", 1)),
            ".http_filters: the terminal filter \"envoy.filters.http.router\" must not be disabled",
        ),
        (base("{name: envoy.filters.http.router}"), ".http_filters[0].typed_config: is required"),
        (
            base(&format!("{{name: x, config_discovery: {{}}}}, {ROUTER}")),
            ".http_filters[0].config_discovery.config_source: is required",
        ),
        (
            base(&discovered("type_urls: [a/b.C]")),
            ".http_filters[0].config_discovery.type_urls: none of the HTTP filters [\"a/b.C\"] is supported",
        ),
        (
            base(&discovered(&format!("type_urls: [{CORS}, {ROUTER_TYPE}]"))),
            ".http_filters[0].config_discovery.type_urls: terminal and other filters must not stand in one list",
        ),
        (
            base(&discovered(&format!("type_urls: [{CORS}], default_config: {{'@type': {ROUTER_TYPE}}}"))),
            &format!(
                ".http_filters[0].config_discovery.default_config: has type {ROUTER_TYPE:?}, which is not in type_urls"
            ),
        ),
        (
            base(&discovered(&format!("type_urls: [{ROUTER_TYPE}]"))),
            ".http_filters[1]: stands after the terminal filter \"x\"",
        ),
        (with("codec_type: HTTP3"), ".codec_type: HTTP3 is not supported"),
        (with("codec_type: 9"), ".codec_type: 9 is not a known value"),
        (with("max_request_headers_kb: 0"), ".max_request_headers_kb: 0 is not within 1 to 8192"),
        (with("max_request_headers_kb: 9000"), ".max_request_headers_kb: 9000 is not within 1 to 8192"),
        (
            with("common_http_protocol_options: {max_response_headers_kb: 9}"),
            ".common_http_protocol_options.max_response_headers_kb: cannot be set on a connection manager",
        ),
        (with("stream_idle_timeout: -1s"), ".stream_idle_timeout: -1.000000000s must not be negative"),
        (with("server_name: \"a\\nb\""), ".server_name: \"a\\nb\" must not contain a line end or a zero byte"),
        (
            with("scheme_header_transformation: {scheme_to_overwrite: ftp}"),
            ".scheme_header_transformation.scheme_to_overwrite: \"ftp\" is not one of http, https",
        ),
        (
            with("strip_matching_host_port: true, strip_any_host_port: true"),
            ".strip_any_host_port: must not be set together with strip_matching_host_port",
        ),
        (
            with("upgrade_configs: [{upgrade_type: CONNECT-UDP}]"),
            ".upgrade_configs[0].upgrade_type: CONNECT-UDP is not supported",
        ),
        (
            with("upgrade_configs: [{upgrade_type: websocket}, {upgrade_type: WebSocket}]"),
            ".upgrade_configs[1].upgrade_type: \"WebSocket\" is configured twice",
        ),
        (
            with(&format!(
                "upgrade_configs: [{{upgrade_type: websocket, filters: [{{name: c, typed_config: {{'@type': {CORS}}}}}]}}]"
            )),
            ".upgrade_configs[0].filters: the last filter \"c\" is not terminal, expected a router",
        ),
        (with("tracing: {provider: {name: zipkin}}"), ".tracing.provider.typed_config: is required"),
        (with("local_reply_config: {mappers: [{}]}"), ".local_reply_config.mappers[0].filter: is required"),
        (
            with("local_reply_config: {mappers: [{filter: {not_health_check_filter: {}}, status_code: 99}]}"),
            ".local_reply_config.mappers[0].status_code: 99 is not within 200 to 599",
        ),
        (
            with("set_current_client_cert_details: {format: 7}"),
            ".set_current_client_cert_details.format: 7 is not a known value",
        ),
        (
            with("early_header_mutation_extensions: [{name: x}]"),
            ".early_header_mutation_extensions[0].typed_config: is required",
        ),
        (
            with("original_ip_detection_extensions: [{name: x}]"),
            ".original_ip_detection_extensions[0].typed_config: is required",
        ),
        (
            with(&format!("use_remote_address: true, original_ip_detection_extensions: [{XFF}}}}}]")),
            ".original_ip_detection_extensions: must not be set together with use_remote_address or xff_num_trusted_hops",
        ),
        (
            with(&format!("xff_num_trusted_hops: 1, original_ip_detection_extensions: [{XFF}}}}}]")),
            ".original_ip_detection_extensions: must not be set together with use_remote_address or xff_num_trusted_hops",
        ),
        (
            with(&format!(
                "original_ip_detection_extensions: [{XFF}, xff_num_trusted_hops: 1, xff_trusted_cidrs: {{}}}}}}]"
            )),
            ".original_ip_detection_extensions[0].typed_config.xff_trusted_cidrs: must not be set together with \
             xff_num_trusted_hops",
        ),
        (
            with(&format!("original_ip_detection_extensions: [{CUSTOM_HEADER}, header_name: 'a b'}}}}]")),
            ".original_ip_detection_extensions[0].typed_config.header_name: \"a b\" is not a valid header name",
        ),
        (
            with("access_log_flush_interval: 1s, access_log_options: {}"),
            ".access_log_flush_interval: must not be set together with access_log_options",
        ),
        (
            with("flush_access_log_on_new_request: true, access_log_options: {}"),
            ".flush_access_log_on_new_request: must not be set together with access_log_options",
        ),
        (with("access_log_flush_interval: 0.0001s"), ".access_log_flush_interval: must be at least 1 ms"),
        (with("drain_timeout_jitter: {value: 101}"), ".drain_timeout_jitter.value: 101 is not within 0 to 100"),
        (with("path_normalization_options: {}"), ".path_normalization_options: is not supported"),
        (
            with("proxy_status_config: {literal_proxy_name: \"a\\nb\"}"),
            ".proxy_status_config.literal_proxy_name: \"a\\nb\" must not contain a line end or a zero byte",
        ),
        (
            with(
                "forward_client_cert_matcher: {on_no_match: {action: {name: a, typed_config: \
                  {\"@type\": type.googleapis.com/google.protobuf.Empty}}}}",
            ),
            ".forward_client_cert_matcher.on_no_match.action.typed_config: the action \
             \"type.googleapis.com/google.protobuf.Empty\" is not supported",
        ),
        (
            with("access_log_options: {access_log_flush_interval: 0.0001s}"),
            ".access_log_options.access_log_flush_interval: must be at least 1 ms",
        ),
        (
            with("request_id_extension: {typed_config: {\"@type\": type.googleapis.com/google.protobuf.Empty}}"),
            ".request_id_extension.typed_config: the request id extension \"type.googleapis.com/google.protobuf.Empty\" is \
             not supported",
        ),
        (
            read(&format!("stat_prefix: s, http_filters: [{ROUTER}], route_config: {{virtual_hosts: [{{name: v}}]}}")),
            ".route_config.virtual_hosts[0].domains: needs at least one domain",
        ),
    ];
    for (got, expected) in cases {
        assert_eq!(got.err().as_deref(), Some(format!("{AT}{expected}").as_str()));
    }
    with("add_user_agent: true, tracing: {}, local_reply_config: {}, request_id_extension: {}").unwrap();
}

#[test]
fn access_logs_have_sinks_and_formats() {
    let log = |fields: &str| with_log(fields).unwrap().access_logs[0].sink.clone();
    let AccessLogSink::File { path, format: LogFormat::Text { format, omit_empty: false } } = log(&file_log("")) else {
        panic!()
    };
    assert_eq!((path.to_str(), format.parts.len()), (Some("/dev/stdout"), 31), "the default format");
    let AccessLogSink::File { format: LogFormat::Json { fields, omit_empty }, .. } = log(&file_log(
        "log_format: {omit_empty_values: true, json_format: {b: '%RESPONSE_CODE%', a: {n: 1, t: true, l: [null, x]}}}",
    )) else {
        panic!()
    };
    assert!(omit_empty);
    assert_eq!(fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b"], "sorted");
    match (&fields[0].1, &fields[1].1) {
        (JsonFormat::Object(inner), JsonFormat::Text(text)) => {
            assert_eq!(inner.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["l", "n", "t"]);
            assert!(matches!(
                text.parts.as_slice(),
                [crate::format::FormatPart::Operator { operator: Operator::ResponseCode, .. }]
            ));
        }
        other => panic!("{other:?}"),
    }
    let stdout = "typed_config: {\"@type\": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog, \
                  log_format: {text_format_source: {inline_string: 'x'}}}";
    assert!(
        matches!(log(stdout), AccessLogSink::Stdout { format: LogFormat::Text { format, .. } } if format.as_literal() == Some("x"))
    );
    let grpc = "typed_config: {\"@type\": type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig, \
                common_config: {log_name: echo, transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: als}}}, \
                additional_request_headers_to_log: [X-A]}";
    let AccessLogSink::Grpc(sink) = log(grpc) else { panic!() };
    assert_eq!((sink.log_name.as_str(), sink.http, &*sink.request_headers[0]), ("echo", true, "x-a"));
    assert_eq!((sink.buffer_flush_interval, sink.buffer_size_bytes), (Duration::from_secs(1), 16384));
    let filtered = with_log(&format!("filter: {{not_health_check_filter: {{}}}}, {}", file_log(""))).unwrap();
    assert_eq!(filtered.access_logs[0].filter, Some(AccessLogFilter::NotHealthCheck));
}

fn otlp_log(fields: &str) -> String {
    format!(
        "typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.\
         OpenTelemetryAccessLogConfig, {fields}}}"
    )
}

#[test]
fn access_logs_for_collectors_are_read() {
    let log = |fields: &str| match with_log(&otlp_log(fields)).unwrap().access_logs[0].sink.clone() {
        AccessLogSink::OpenTelemetry(log) => log,
        other => panic!("{other:?}"),
    };
    let common = "common_config: {log_name: old, transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: c}}, \
                  buffer_flush_interval: 3s, buffer_size_bytes: 7}";
    let old = log(common);
    assert_eq!((old.outlet.log_name.as_str(), old.outlet.buffer_size_bytes), ("old", 7));
    assert_eq!((old.outlet.buffer_flush_interval, old.outlet.builtin_labels), (Duration::from_secs(3), true));
    let new = log(&format!("{common}, log_name: new, buffer_flush_interval: 2s, buffer_size_bytes: 5, stat_prefix: s"));
    assert_eq!((new.outlet.log_name.as_str(), new.outlet.buffer_size_bytes), ("new", 5));
    assert_eq!((new.outlet.buffer_flush_interval, new.outlet.stat_prefix.as_str()), (Duration::from_secs(2), "s."));
}

#[test]
fn each_bad_access_log_for_collectors_is_refused_by_path() {
    let service = "grpc_service: {envoy_grpc: {cluster_name: c}}";
    let attribute = |value: &str| format!("{service}, attributes: {{values: [{{key: a, value: {value}}}]}}");
    let cases = [
        (String::new(), ".typed_config: needs one of grpc_service, http_service, common_config"),
        (
            format!("{service}, http_service: {{http_uri: {{uri: /x, cluster: c, timeout: 1s}}}}"),
            ".typed_config: must have only one of grpc_service, http_service, common_config",
        ),
        (
            attribute("{int_value: 3}"),
            ".attributes.values[0].value: must be one of string_value, array_value, kvlist_value",
        ),
        (attribute("{string_value: '%NOPE%'}"), ".value.string_value: the operator NOPE is not supported"),
        (format!("common_config: {{log_name: a, {service}, custom_tags: [{{tag: t}}]}}"), ".common_config.custom_tags"),
        (format!("{service}, buffer_flush_interval: 0s"), ".buffer_flush_interval: 0s must be above zero"),
    ];
    for (fields, expected) in cases {
        let refused = with_log(&otlp_log(&fields)).err().unwrap_or_default();
        assert!(refused.contains(expected), "{refused}");
    }
}

#[test]
fn each_bad_access_log_is_refused_by_path() {
    let file = |fields: &str| with_log(&file_log(fields));
    let cases = [
        (with_log(""), ".typed_config: is required"),
        (
            with_log("typed_config: {\"@type\": type.googleapis.com/google.protobuf.Empty}"),
            ".typed_config: the access logger \"type.googleapis.com/google.protobuf.Empty\" is not supported",
        ),
        (file("log_format: {}"), ".typed_config.log_format: needs one of text_format, text_format_source, json_format"),
        (
            file("log_format: {text_format_source: {inline_string: '%NOPE%'}}"),
            ".typed_config.log_format.text_format_source: the operator NOPE is not supported",
        ),
        (
            file("log_format: {json_format: {a: {b: ['%']}}}"),
            ".typed_config.log_format.json_format[\"a\"][\"b\"][0]: \"%\" has no valid command at position 0",
        ),
        (
            file("log_format: {text_format_source: {inline_string: '%CEL(a b)%'}}"),
            ".typed_config.log_format.text_format_source: \"a b\" is not a valid expression: at character 3: the expression should end here",
        ),
        (
            with_log(
                "typed_config: {\"@type\": type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig}",
            ),
            ".typed_config.common_config: is required",
        ),
        (with_log(&format!("filter: {{}}, {}", file_log(""))), ".filter: needs a filter"),
    ];
    for (got, expected) in cases {
        assert_eq!(got.err().as_deref(), Some(format!("{AT}.access_log[0]{expected}").as_str()));
    }
}

const XFF: &str = "{name: x, typed_config: {\"@type\": \
    type.googleapis.com/envoy.extensions.http.original_ip_detection.xff.v3.XffConfig";
const CUSTOM_HEADER: &str = "{name: x, typed_config: {\"@type\": \
    type.googleapis.com/envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig";

#[test]
fn clients_are_found_by_extensions() {
    let got = read(&format!(
        "stat_prefix: s, http_filters: [{ROUTER}], route_config: {{}}, original_ip_detection_extensions: [\
         {XFF}, xff_num_trusted_hops: 2}}}}, \
         {XFF}, skip_xff_append: false, xff_trusted_cidrs: {{cidrs: [{{address_prefix: 10.0.0.0, prefix_len: 8}}]}}}}}}, \
         {CUSTOM_HEADER}, header_name: X-Client, reject_with_status: {{code: 302}}}}}}]"
    ))
    .unwrap();
    let expected = [
        Detection::Forwarded { trusted: TrustedProxies::Hops(2), append: false },
        Detection::Forwarded { trusted: TrustedProxies::Networks(vec!["10.0.0.0/8".parse().unwrap()]), append: true },
        Detection::Header { name: "x-client".into(), may_be_internal: false, reject: Some(403) },
    ];
    assert_eq!(*got.detections, expected);
}
