//! Access logs for OpenTelemetry's collectors
//! (`envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig`).
//!
//! Owns the checked model of that logger. Never makes or sends entries.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::access_loggers::grpc::v3 as grpc;
use outrigger_api::pb::envoy::extensions::access_loggers::open_telemetry::v3 as pb;
use outrigger_api::pb::opentelemetry::proto::common::v1 as otlp;

use super::parse::{DEFAULT_BUFFER_BYTES, DEFAULT_FLUSH_INTERVAL, known_formatter, spoken_version};
use crate::context::Context;
use crate::decide::decide;
use crate::format::Format;
use crate::rejection::{FieldPath, Parsed};
use crate::tracing::{CustomTag, OtlpExporter, custom_tag, http_service, resource};
use crate::{source, wire};

/// A logger whose entries are log records of OTLP.
#[derive(Clone, Debug, PartialEq)]
pub struct OtlpAccessLog {
    /// Where entries go; loggers with the same one share batches.
    pub outlet: Arc<OtlpLogOutlet>,
    /// Body of an entry.
    pub body: Option<OtlpFormat>,
    /// Attributes of an entry, as configured.
    pub attributes: Vec<(String, OtlpFormat)>,
    /// Filter state objects that become attributes, as JSON.
    pub filter_state: Vec<Arc<str>>,
    /// Tags that become attributes; one without a value is left out.
    pub custom_tags: Vec<CustomTag>,
}

/// Where entries go, in which batches, and what is said of all of them.
#[derive(Clone, Debug, PartialEq)]
pub struct OtlpLogOutlet {
    /// The label `log_name`.
    pub log_name: String,
    /// Whom to send to.
    pub exporter: OtlpExporter,
    /// Time between flushes; 1 s unless given.
    pub buffer_flush_interval: Duration,
    /// A flush happens when this much is waiting; 16 KiB unless given.
    pub buffer_size_bytes: u32,
    /// The resource has the labels `log_name`, `zone_name`, `cluster_name` and `node_name`.
    pub builtin_labels: bool,
    /// What detectors found: wins over the labels.
    pub detected: Vec<(String, String)>,
    /// Attributes of the resource: these win over all others.
    pub resource: Vec<(String, OtlpConstant)>,
    /// Comes before the names of stats; with its final dot unless it is empty.
    pub stat_prefix: String,
}

/// What is written in an entry, which is text at all ends.
#[derive(Clone, Debug, PartialEq)]
pub enum OtlpFormat {
    /// A string with operators.
    Text(Format),
    /// Nested.
    List(Vec<OtlpFormat>),
    /// Nested.
    Map(Vec<(String, OtlpFormat)>),
}

/// A value that is passed on as it stands. Source: `opentelemetry.proto.common.v1.AnyValue`.
#[derive(Clone, Debug, PartialEq)]
pub enum OtlpConstant {
    /// Nothing.
    Empty,
    /// `string_value`
    Text(String),
    /// `bool_value`
    Bool(bool),
    /// `int_value`
    Int(i64),
    /// `double_value`
    Double(f64),
    /// `bytes_value`
    Bytes(Vec<u8>),
    /// `array_value`
    List(Vec<OtlpConstant>),
    /// `kvlist_value`
    Map(Vec<(String, OtlpConstant)>),
}

/// Reads the logger.
pub(super) fn open_telemetry_sink(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: pb::OpenTelemetryAccessLogConfig,
) -> Parsed<OtlpAccessLog> {
    // The deprecated field is what most control planes send.
    #[allow(deprecated)]
    {
        decide!(wire, at, pb::OpenTelemetryAccessLogConfig as "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig" {
            implemented: common_config, http_service, grpc_service, disable_builtin_labels, resource_attributes,
                resource_detectors, body, attributes, stat_prefix, formatters, log_name, buffer_flush_interval,
                buffer_size_bytes, filter_state_objects_to_log, custom_tags;
            no_effect: ;
            unsupported: ;
        });
        let common = Common::parse(&at.field("common_config"), common_config)?;
        for (index, formatter) in formatters.into_iter().enumerate() {
            known_formatter(&at.field("formatters").item(index), formatter)?;
        }
        let interval = match buffer_flush_interval {
            Some(wire) => wire::positive_duration(&at.field("buffer_flush_interval"), wire)?,
            None => common.interval.unwrap_or(DEFAULT_FLUSH_INTERVAL),
        };
        let outlet = OtlpLogOutlet {
            exporter: exporter(context, at, grpc_service, http_service, common.grpc_service)?,
            log_name: if log_name.is_empty() { common.log_name } else { log_name },
            buffer_flush_interval: interval,
            buffer_size_bytes: buffer_size_bytes
                .map(|size| size.value)
                .or(common.bytes)
                .unwrap_or(DEFAULT_BUFFER_BYTES),
            builtin_labels: !disable_builtin_labels,
            detected: resource(context, &at.field("resource_detectors"), None, resource_detectors)?,
            resource: constants(
                &at.field("resource_attributes"),
                resource_attributes.unwrap_or_default(),
                MAX_NESTING,
            )?,
            stat_prefix: if stat_prefix.is_empty() { stat_prefix } else { format!("{stat_prefix}.") },
        };
        let body = match body.filter(|body| body.value.is_some()) {
            Some(wire) => Some(format(context, &at.field("body"), wire, MAX_NESTING)?),
            None => None,
        };
        Ok(OtlpAccessLog {
            outlet: Arc::new(outlet),
            body,
            attributes: formats(context, &at.field("attributes"), attributes.unwrap_or_default(), MAX_NESTING)?,
            filter_state: filter_state_objects_to_log.into_iter().map(Arc::from).collect(),
            custom_tags: tags(context, &at.field("custom_tags"), custom_tags)?,
        })
    }
}

/// What the deprecated message says.
#[derive(Default)]
struct Common {
    log_name: String,
    grpc_service: Option<core::GrpcService>,
    interval: Option<Duration>,
    bytes: Option<u32>,
}

impl Common {
    fn parse(at: &FieldPath<'_>, wire: Option<grpc::CommonGrpcAccessLogConfig>) -> Parsed<Self> {
        let Some(wire) = wire else { return Ok(Self::default()) };
        // Envoy's OpenTelemetry logger reads these three from its own message alone.
        let grpc::CommonGrpcAccessLogConfig {
            log_name,
            grpc_service,
            transport_api_version,
            buffer_flush_interval,
            buffer_size_bytes,
            filter_state_objects_to_log,
            grpc_stream_retry_policy,
            custom_tags,
        } = wire;
        if !filter_state_objects_to_log.is_empty() {
            return Err(at.field("filter_state_objects_to_log").unsupported());
        }
        if !custom_tags.is_empty() {
            return Err(at.field("custom_tags").unsupported());
        }
        // Batches are tried again in any case.
        drop(grpc_stream_retry_policy);
        spoken_version(&at.field("transport_api_version"), transport_api_version)?;
        if log_name.is_empty() {
            return Err(at.field("log_name").reject("must not be empty"));
        }
        if grpc_service.is_none() {
            return Err(at.field("grpc_service").reject("is required"));
        }
        let interval = match buffer_flush_interval {
            Some(wire) => Some(wire::positive_duration(&at.field("buffer_flush_interval"), wire)?),
            None => None,
        };
        Ok(Self { log_name, grpc_service, interval, bytes: buffer_size_bytes.map(|size| size.value) })
    }
}

fn exporter(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    grpc: Option<core::GrpcService>,
    http: Option<core::HttpService>,
    common: Option<core::GrpcService>,
) -> Parsed<OtlpExporter> {
    let grpc_at = |field: FieldPath<'_>, wire| source::grpc_service(context, &field, wire).map(OtlpExporter::Grpc);
    match (grpc, http, common) {
        (Some(wire), None, None) => grpc_at(at.field("grpc_service"), wire),
        (None, Some(wire), None) => http_service(context, &at.field("http_service"), wire).map(OtlpExporter::Http),
        (None, None, Some(wire)) => grpc_at(at.field("common_config").field("grpc_service"), wire),
        (None, None, None) => Err(at.reject("needs one of grpc_service, http_service, common_config")),
        _ => Err(at.reject("must have only one of grpc_service, http_service, common_config")),
    }
}

fn format(context: &Context<'_>, at: &FieldPath<'_>, wire: otlp::AnyValue, nesting: u32) -> Parsed<OtlpFormat> {
    use otlp::any_value::Value;
    let deeper = || nesting.checked_sub(1).ok_or_else(|| at.reject("is nested too deeply"));
    Ok(match wire.value {
        Some(Value::StringValue(text)) => {
            OtlpFormat::Text(Format::parse_with_environment(context.environment(), &at.field("string_value"), &text)?)
        }
        Some(Value::ArrayValue(otlp::ArrayValue { values })) => {
            let (at, nesting) = (at.field("array_value"), deeper()?);
            let list = at.field("values");
            OtlpFormat::List(wire::each(&list, values, |at, wire| format(context, at, wire, nesting))?)
        }
        Some(Value::KvlistValue(wire)) => {
            OtlpFormat::Map(formats(context, &at.field("kvlist_value"), wire, deeper()?)?)
        }
        _ => return Err(at.reject("must be one of string_value, array_value, kvlist_value")),
    })
}

fn formats(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: otlp::KeyValueList,
    nesting: u32,
) -> Parsed<Vec<(String, OtlpFormat)>> {
    pairs(at, wire, |at, value| format(context, at, value, nesting))
}

fn constants(at: &FieldPath<'_>, wire: otlp::KeyValueList, nesting: u32) -> Parsed<Vec<(String, OtlpConstant)>> {
    pairs(at, wire, |at, value| constant(at, value, nesting))
}

/// Reads values that are passed on as they stand, each with its name.
pub(crate) fn labels(at: &FieldPath<'_>, values: Vec<otlp::KeyValue>) -> Parsed<Vec<(String, OtlpConstant)>> {
    wire::each(at, values, |at, wire| pair(at, wire, |at, value| constant(at, value, MAX_NESTING)))
}

fn pair<T>(
    at: &FieldPath<'_>,
    wire: otlp::KeyValue,
    read: impl Fn(&FieldPath<'_>, otlp::AnyValue) -> Parsed<T>,
) -> Parsed<(String, T)> {
    let otlp::KeyValue { key, value, key_strindex } = wire;
    if key_strindex != 0 {
        return Err(at.field("key_strindex").unsupported());
    }
    let value = read(&at.field("value"), value.unwrap_or_default())?;
    Ok((key, value))
}

fn pairs<T>(
    at: &FieldPath<'_>,
    wire: otlp::KeyValueList,
    read: impl Fn(&FieldPath<'_>, otlp::AnyValue) -> Parsed<T>,
) -> Parsed<Vec<(String, T)>> {
    wire::each(&at.field("values"), wire.values, |at, wire| pair(at, wire, &read))
}

fn constant(at: &FieldPath<'_>, wire: otlp::AnyValue, nesting: u32) -> Parsed<OtlpConstant> {
    use otlp::any_value::Value;
    let deeper = || nesting.checked_sub(1).ok_or_else(|| at.reject("is nested too deeply"));
    Ok(match wire.value {
        None => OtlpConstant::Empty,
        Some(Value::StringValue(text)) => OtlpConstant::Text(text),
        Some(Value::BoolValue(flag)) => OtlpConstant::Bool(flag),
        Some(Value::IntValue(number)) => OtlpConstant::Int(number),
        Some(Value::DoubleValue(number)) => OtlpConstant::Double(number),
        Some(Value::BytesValue(bytes)) => OtlpConstant::Bytes(bytes),
        Some(Value::ArrayValue(otlp::ArrayValue { values })) => {
            let (at, nesting) = (at.field("array_value"), deeper()?);
            OtlpConstant::List(wire::each(&at.field("values"), values, |at, wire| constant(at, wire, nesting))?)
        }
        Some(Value::KvlistValue(wire)) => OtlpConstant::Map(constants(&at.field("kvlist_value"), wire, deeper()?)?),
        Some(Value::StringValueStrindex(_)) => return Err(at.field("string_value_strindex").unsupported()),
    })
}

/// Of several tags with one name, the last counts.
pub(super) fn tags(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Vec<outrigger_api::pb::envoy::r#type::tracing::v3::CustomTag>,
) -> Parsed<Vec<CustomTag>> {
    let mut tags: Vec<CustomTag> = Vec::with_capacity(wire.len());
    for tag in wire::each(at, wire, |at, wire| custom_tag(context, at, wire))? {
        tags.retain(|known| known.name != tag.name);
        tags.push(tag);
    }
    Ok(tags)
}

/// Of values in values.
const MAX_NESTING: u32 = 16;
