//! Reads access loggers (`envoy.config.accesslog.v3.AccessLog`) and their formats.
//!
//! Owns how sinks and formats are checked. Never decides which requests are logged (see `filter`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::accesslog::v3 as accesslog;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::access_loggers::{file::v3 as file, grpc::v3 as grpc, stream::v3 as stream};
use outrigger_api::pb::envoy::extensions::formatter::cel::v3::Cel;
use outrigger_api::pb::google::protobuf::value::Kind;
use outrigger_api::pb::google::protobuf::{Any, ListValue, Struct, Value};

use super::filter::filter;
use super::open_telemetry::{open_telemetry_sink, tags};
use super::{AccessLog, AccessLogSink, GrpcAccessLog, JsonFormat, LogFormat};
use crate::context::Context;
use crate::decide::decide;
use crate::format::Format;
use crate::http::header_mutations::header_name;
use crate::rejection::{FieldPath, Parsed};
use crate::{source, wire};

/// Reads a list of access loggers.
pub(crate) fn access_logs(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Vec<accesslog::AccessLog>,
) -> Parsed<Vec<Arc<AccessLog>>> {
    wire::each(at, wire, |at, wire| access_log(context, at, wire).map(Arc::new))
}

fn access_log(context: &Context<'_>, at: &FieldPath<'_>, wire: accesslog::AccessLog) -> Parsed<AccessLog> {
    decide!(wire, at, accesslog::AccessLog as "envoy.config.accesslog.v3.AccessLog" {
        implemented: name, filter, config_type;
        no_effect: ;
        unsupported: ;
    });
    let log_filter = match filter {
        Some(wire) => Some(self::filter(&at.field("filter"), wire)?),
        None => None,
    };
    let config = at.field("typed_config");
    let sink = match config_type {
        Some(accesslog::access_log::ConfigType::TypedConfig(any)) => {
            let any = wire::extension(context, &config, any)?;
            sink(context, &config, &any)?
        }
        None => return Err(config.reject("is required")),
    };
    Ok(AccessLog { name: name.into(), filter: log_filter, sink })
}

fn sink(context: &Context<'_>, at: &FieldPath<'_>, wire: &Any) -> Parsed<AccessLogSink> {
    Ok(match wire::type_name(wire) {
        "envoy.extensions.access_loggers.file.v3.FileAccessLog" => file_sink(context, at, wire::decode(at, wire)?)?,
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
            let wire: stream::StdoutAccessLog = wire::decode(at, wire)?;
            decide!(wire, at, stream::StdoutAccessLog as "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" {
                implemented: access_log_format;
                no_effect: ;
                unsupported: ;
            });
            let wire = access_log_format.map(|stream::stdout_access_log::AccessLogFormat::LogFormat(format)| format);
            AccessLogSink::Stdout { format: optional_format(context, &at.field("log_format"), wire)? }
        }
        "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
            let wire: stream::StderrAccessLog = wire::decode(at, wire)?;
            decide!(wire, at, stream::StderrAccessLog as "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" {
                implemented: access_log_format;
                no_effect: ;
                unsupported: ;
            });
            let wire = access_log_format.map(|stream::stderr_access_log::AccessLogFormat::LogFormat(format)| format);
            AccessLogSink::Stderr { format: optional_format(context, &at.field("log_format"), wire)? }
        }
        "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig" => {
            AccessLogSink::Grpc(Arc::new(http_grpc_sink(context, at, wire::decode(at, wire)?)?))
        }
        "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig" => {
            let wire: grpc::TcpGrpcAccessLogConfig = wire::decode(at, wire)?;
            decide!(wire, at, grpc::TcpGrpcAccessLogConfig as "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig" {
                implemented: common_config;
                no_effect: ;
                unsupported: ;
            });
            AccessLogSink::Grpc(Arc::new(grpc_sink(context, &at.field("common_config"), common_config, false)?))
        }
        "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig" => {
            AccessLogSink::OpenTelemetry(Arc::new(open_telemetry_sink(context, at, wire::decode(at, wire)?)?))
        }
        _ => return Err(at.reject(format!("the access logger {:?} is not supported", wire.type_url))),
    })
}

fn file_sink(context: &Context<'_>, at: &FieldPath<'_>, wire: file::FileAccessLog) -> Parsed<AccessLogSink> {
    decide!(wire, at, file::FileAccessLog as "envoy.extensions.access_loggers.file.v3.FileAccessLog" {
        implemented: path, access_log_format;
        no_effect: ;
        unsupported: ;
    });
    if path.is_empty() {
        return Err(at.field("path").reject("must not be empty"));
    }
    // The deprecated variants are still what many control planes send.
    #[allow(deprecated)]
    let format = match access_log_format {
        None => optional_format(context, at, None)?,
        Some(file::file_access_log::AccessLogFormat::LogFormat(wire)) => {
            optional_format(context, &at.field("log_format"), Some(wire))?
        }
        Some(file::file_access_log::AccessLogFormat::Format(text)) if text.is_empty() => {
            optional_format(context, at, None)?
        }
        Some(file::file_access_log::AccessLogFormat::Format(text)) => {
            let format = Format::parse_with_environment(context.environment(), &at.field("format"), &text)?;
            LogFormat::Text { format, omit_empty: false }
        }
        Some(file::file_access_log::AccessLogFormat::JsonFormat(wire)) => {
            LogFormat::Json { fields: json_object(context, &at.field("json_format"), wire)?, omit_empty: false }
        }
        Some(file::file_access_log::AccessLogFormat::TypedJsonFormat(wire)) => {
            LogFormat::Json { fields: json_object(context, &at.field("typed_json_format"), wire)?, omit_empty: false }
        }
    };
    Ok(AccessLogSink::File { path: PathBuf::from(path), format })
}

fn optional_format(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<core::SubstitutionFormatString>,
) -> Parsed<LogFormat> {
    match wire {
        Some(wire) => log_format(context, at, wire),
        None => Ok(LogFormat::Text { format: Format::parse(at, DEFAULT_FORMAT)?, omit_empty: false }),
    }
}

/// Reads a format that was given.
pub(crate) fn log_format(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: core::SubstitutionFormatString,
) -> Parsed<LogFormat> {
    decide!(wire, at, core::SubstitutionFormatString as "envoy.config.core.v3.SubstitutionFormatString" {
        implemented: omit_empty_values, formatters, format;
        no_effect: content_type = "log lines have no content type",
            json_format_options = "properties are sorted by name in any case";
        unsupported: ;
    });
    for (index, formatter) in formatters.into_iter().enumerate() {
        known_formatter(&at.field("formatters").item(index), formatter)?;
    }
    use core::substitution_format_string::Format as Wire;
    // The deprecated variant is still what many control planes send.
    #[allow(deprecated)]
    let (field, text) = match format {
        Some(Wire::JsonFormat(wire)) => {
            let fields = json_object(context, &at.field("json_format"), wire)?;
            return Ok(LogFormat::Json { fields, omit_empty: omit_empty_values });
        }
        Some(Wire::TextFormat(text)) => (at.field("text_format"), text),
        Some(Wire::TextFormatSource(wire)) => {
            let field = at.field("text_format_source");
            let data = wire::data_source(context, &field, wire)?;
            let text = String::from_utf8(data.bytes).map_err(|_| field.reject("is not UTF-8"))?;
            (field, text)
        }
        None => return Err(at.reject("needs one of text_format, text_format_source, json_format")),
    };
    let format = Format::parse_with_environment(context.environment(), &field, &text)?;
    Ok(LogFormat::Text { format, omit_empty: omit_empty_values })
}

/// Extensions that add operators. Ours are built in; an operator that is not is refused where it is used.
pub(super) fn known_formatter(at: &FieldPath<'_>, wire: core::TypedExtensionConfig) -> Parsed<()> {
    let core::TypedExtensionConfig { name: _, typed_config } = wire;
    let Some(any) = typed_config else {
        return Err(at.field("typed_config").reject("is required"));
    };
    match wire::type_name(&any) {
        "envoy.extensions.formatter.metadata.v3.Metadata"
        | "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery"
        | "outrigger.formatter.v1.HaproxyView" => Ok(()),
        "envoy.extensions.formatter.cel.v3.Cel" => {
            let at = at.field("typed_config");
            let wire: Cel = wire::decode(&at, &any)?;
            decide!(wire, at, Cel as "envoy.extensions.formatter.cel.v3.Cel" {
                implemented: ;
                no_effect: ;
                unsupported: cel_config;
            });
            Ok(())
        }
        _ => Err(at.field("typed_config").reject(format!("the formatter {:?} is not supported", any.type_url))),
    }
}

fn json_object(context: &Context<'_>, at: &FieldPath<'_>, wire: Struct) -> Parsed<Vec<(String, JsonFormat)>> {
    let mut fields = Vec::with_capacity(wire.fields.len());
    for (name, value) in wire.fields {
        let format = json_value(context, &at.key(&name), value)?;
        fields.push((name, format));
    }
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(fields)
}

fn json_value(context: &Context<'_>, at: &FieldPath<'_>, wire: Value) -> Parsed<JsonFormat> {
    Ok(match wire.kind {
        None | Some(Kind::NullValue(_)) => JsonFormat::Null,
        Some(Kind::NumberValue(number)) => JsonFormat::Number(number),
        Some(Kind::BoolValue(flag)) => JsonFormat::Bool(flag),
        Some(Kind::StringValue(text)) => {
            JsonFormat::Text(Format::parse_with_environment(context.environment(), at, &text)?)
        }
        Some(Kind::StructValue(wire)) => JsonFormat::Object(json_object(context, at, wire)?),
        Some(Kind::ListValue(ListValue { values })) => {
            JsonFormat::List(wire::each(at, values, |at, value| json_value(context, at, value))?)
        }
    })
}

fn http_grpc_sink(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: grpc::HttpGrpcAccessLogConfig,
) -> Parsed<GrpcAccessLog> {
    decide!(wire, at, grpc::HttpGrpcAccessLogConfig as "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig" {
        implemented: common_config, additional_request_headers_to_log, additional_response_headers_to_log,
            additional_response_trailers_to_log;
        no_effect: ;
        unsupported: ;
    });
    let mut sink = grpc_sink(context, &at.field("common_config"), common_config, true)?;
    let names = |field: &'static str, names: Vec<String>| {
        let list = at.field(field);
        names.iter().enumerate().map(|(index, name)| header_name(&list.item(index), name)).collect::<Parsed<Vec<_>>>()
    };
    sink.request_headers = names("additional_request_headers_to_log", additional_request_headers_to_log)?;
    sink.response_headers = names("additional_response_headers_to_log", additional_response_headers_to_log)?;
    sink.response_trailers = names("additional_response_trailers_to_log", additional_response_trailers_to_log)?;
    Ok(sink)
}

fn grpc_sink(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<grpc::CommonGrpcAccessLogConfig>,
    http: bool,
) -> Parsed<GrpcAccessLog> {
    let Some(wire) = wire else {
        return Err(at.reject("is required"));
    };
    decide!(wire, at, grpc::CommonGrpcAccessLogConfig as "envoy.extensions.access_loggers.grpc.v3.CommonGrpcAccessLogConfig" {
        implemented: log_name, grpc_service, transport_api_version, buffer_flush_interval, buffer_size_bytes,
            filter_state_objects_to_log, custom_tags;
        no_effect: grpc_stream_retry_policy = "a broken stream is opened again in any case";
        unsupported: ;
    });
    if log_name.is_empty() {
        return Err(at.field("log_name").reject("must not be empty"));
    }
    spoken_version(&at.field("transport_api_version"), transport_api_version)?;
    let Some(grpc_service) = grpc_service else {
        return Err(at.field("grpc_service").reject("is required"));
    };
    Ok(GrpcAccessLog {
        log_name,
        service: source::grpc_service(context, &at.field("grpc_service"), grpc_service)?,
        buffer_flush_interval: match buffer_flush_interval {
            Some(wire) => wire::positive_duration(&at.field("buffer_flush_interval"), wire)?,
            None => DEFAULT_FLUSH_INTERVAL,
        },
        buffer_size_bytes: buffer_size_bytes.map_or(DEFAULT_BUFFER_BYTES, |size| size.value),
        http,
        filter_state: filter_state_objects_to_log.into_iter().map(Arc::from).collect(),
        custom_tags: tags(context, &at.field("custom_tags"), custom_tags)?,
        request_headers: Vec::new(),
        response_headers: Vec::new(),
        response_trailers: Vec::new(),
    })
}

/// Checks `transport_api_version`.
pub(super) fn spoken_version(at: &FieldPath<'_>, version: i32) -> Parsed<()> {
    match core::ApiVersion::try_from(version) {
        Ok(core::ApiVersion::Auto | core::ApiVersion::V3) => Ok(()),
        Ok(core::ApiVersion::V2) => Err(at.reject("V2 is not supported")),
        Err(_) => Err(wire::unknown_enum(at, version)),
    }
}

/// Written when no format is given. Source: Envoy's access log documentation, "Default format string".
const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";
/// Source: `CommonGrpcAccessLogConfig.buffer_flush_interval`.
pub(super) const DEFAULT_FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// Source: `CommonGrpcAccessLogConfig.buffer_size_bytes`.
pub(super) const DEFAULT_BUFFER_BYTES: u32 = 16 * 1024;
