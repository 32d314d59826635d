//! Log records of OTLP (`opentelemetry.proto.logs.v1.LogRecord`).
//!
//! Owns how facts and the configuration become records and their resource. Never sends them (see `collector`).

use std::time::UNIX_EPOCH;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_config::accesslog::{OtlpAccessLog, OtlpConstant, OtlpFormat, OtlpLogOutlet};
use outrigger_config::format::{FilterStateForm, Format, MetadataOf, Operator};
use outrigger_config::tracing::{CustomTag, CustomTagValue, TagMetadata};
use outrigger_policy::trace::Format as SpanFormat;

use super::facts::Facts;
use super::format::{self, Given, write_operator};
use crate::trace::otlp::attribute;

/// The record that `config` asks for.
pub(super) fn record(config: &OtlpAccessLog, facts: &Facts<'_>) -> LogRecord {
    let start = facts.clock.at(facts.info.start).duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut record = LogRecord {
        time_unix_nano: u64::try_from(start.as_nanos()).unwrap_or(u64::MAX),
        body: config.body.as_ref().map(|body| value(body, facts)),
        attributes: pairs(&config.attributes, facts),
        ..LogRecord::default()
    };
    if let Some(span) = facts.span {
        record.trace_id = span.trace_id.to_be_bytes().to_vec();
        // Envoy tells that of OpenTelemetry only.
        if span.format == SpanFormat::W3c {
            record.span_id = span.span_id.to_be_bytes().to_vec();
        }
    }
    for key in &config.filter_state {
        let operator = Operator::FilterState { key: key.clone(), form: FilterStateForm::Typed };
        if let Some(json) = written(&operator, facts) {
            record.attributes.push(attribute(key.to_string(), json));
        }
    }
    for CustomTag { name, value } in &config.custom_tags {
        let text = custom(value, facts);
        if !text.is_empty() {
            record.attributes.push(attribute(name.to_string(), text));
        }
    }
    record
}

fn pairs(formats: &[(String, OtlpFormat)], facts: &Facts<'_>) -> Vec<KeyValue> {
    let pair = |(key, format): &(String, OtlpFormat)| KeyValue {
        key: key.clone(),
        value: Some(value(format, facts)),
        ..KeyValue::default()
    };
    formats.iter().map(pair).collect()
}

fn value(format: &OtlpFormat, facts: &Facts<'_>) -> AnyValue {
    let value = match format {
        OtlpFormat::Text(format) => Value::StringValue(text(format, facts, format::write)),
        OtlpFormat::List(formats) => {
            Value::ArrayValue(ArrayValue { values: formats.iter().map(|format| value(format, facts)).collect() })
        }
        OtlpFormat::Map(formats) => Value::KvlistValue(KeyValueList { values: pairs(formats, facts) }),
    };
    AnyValue { value: Some(value) }
}

fn text(format: &Format, facts: &Facts<'_>, write: fn(&Format, &Facts<'_>, &mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(format, facts, &mut out);
    utf8(out)
}

/// What an operator gives, if it gives anything.
fn written(operator: &Operator, facts: &Facts<'_>) -> Option<String> {
    let mut out = Vec::new();
    let given = write_operator(operator, None, facts, &mut out);
    (given != Given::Absent).then(|| utf8(out))
}

fn utf8(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// The value of a tag; empty if there is nothing to say.
pub(super) fn custom(value: &CustomTagValue, facts: &Facts<'_>) -> String {
    match value {
        CustomTagValue::Literal(literal) => literal.to_string(),
        CustomTagValue::RequestHeader { name, default } => {
            let found = facts.request.and_then(|request| request.lookup(name));
            found.map_or_else(|| default.to_string(), |value| String::from_utf8_lossy(&value).into_owned())
        }
        CustomTagValue::Format(format) => text(format, facts, format::write_header),
        CustomTagValue::Metadata { of, namespace, path, default } => {
            let path: Vec<_> = std::iter::once(namespace).chain(path).cloned().collect();
            let operator = match of {
                TagMetadata::Request => Operator::DynamicMetadata { path },
                TagMetadata::Route => Operator::Metadata { of: MetadataOf::Route, path },
                TagMetadata::Cluster => Operator::Metadata { of: MetadataOf::Cluster, path },
                TagMetadata::Host => Operator::Metadata { of: MetadataOf::UpstreamHost, path },
            };
            written(&operator, facts).unwrap_or_else(|| default.to_string())
        }
    }
}

/// A batch as it is sent.
pub(super) fn request(records: Vec<LogRecord>, resource: &Resource) -> ExportLogsServiceRequest {
    let scope = ScopeLogs { log_records: records, ..ScopeLogs::default() };
    let logs = ResourceLogs { resource: Some(resource.clone()), scope_logs: vec![scope], ..ResourceLogs::default() };
    ExportLogsServiceRequest { resource_logs: vec![logs] }
}

/// What is said of all records: a later attribute replaces one of the same name, in its place.
pub(super) fn resource(outlet: &OtlpLogOutlet, node: &Node) -> Resource {
    let mut attributes: Vec<KeyValue> = Vec::new();
    let mut set = |key: &str, value: AnyValue| match attributes.iter_mut().find(|known| known.key == key) {
        Some(known) => known.value = Some(value),
        None => attributes.push(KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }),
    };
    let string = |text: &str| AnyValue { value: Some(Value::StringValue(text.to_owned())) };
    if outlet.builtin_labels {
        set("log_name", string(&outlet.log_name));
        set("zone_name", string(node.locality.as_ref().map_or("", |locality| &locality.zone)));
        set("cluster_name", string(&node.cluster));
        set("node_name", string(&node.id));
    }
    for (key, text) in &outlet.detected {
        set(key, string(text));
    }
    for (key, value) in &outlet.resource {
        set(key, constant(value));
    }
    Resource { attributes, ..Resource::default() }
}

/// As OTLP has it.
pub(crate) fn constant(value: &OtlpConstant) -> AnyValue {
    let value = match value {
        OtlpConstant::Empty => None,
        OtlpConstant::Text(text) => Some(Value::StringValue(text.clone())),
        OtlpConstant::Bool(flag) => Some(Value::BoolValue(*flag)),
        OtlpConstant::Int(number) => Some(Value::IntValue(*number)),
        OtlpConstant::Double(number) => Some(Value::DoubleValue(*number)),
        OtlpConstant::Bytes(bytes) => Some(Value::BytesValue(bytes.clone())),
        OtlpConstant::List(values) => {
            Some(Value::ArrayValue(ArrayValue { values: values.iter().map(constant).collect() }))
        }
        OtlpConstant::Map(pairs) => {
            let pair = |(key, value): &(String, OtlpConstant)| KeyValue {
                key: key.clone(),
                value: Some(constant(value)),
                ..KeyValue::default()
            };
            Some(Value::KvlistValue(KeyValueList { values: pairs.iter().map(pair).collect() }))
        }
    };
    AnyValue { value }
}
