//! Reads where stats are sent to (`envoy.config.metrics.v3.StatsSink`).
//!
//! Owns the checked description of sinks. Never sends anything.

use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::metrics::v3 as pb;
use outrigger_api::pb::envoy::extensions::stat_sinks::graphite_statsd::v3 as graphite;
use outrigger_api::pb::envoy::extensions::stat_sinks::open_telemetry::v3 as otlp;
use outrigger_api::pb::google::protobuf::Any;
use outrigger_api::pb::xds::r#type::matcher::v3 as xds;

use crate::accesslog::{OtlpConstant, labels};
use crate::address_parse::ip_socket_address;
use crate::context::Context;
use crate::decide::decide;
use crate::matcher::{Kinds, Matcher, Place};
use crate::rejection::{FieldPath, Parsed};
use crate::source::{self, GrpcService};
use crate::tracing::{OtlpExporter, http_service, resource};
use crate::wire;

/// One receiver of stats.
#[derive(Clone, Debug, PartialEq)]
pub enum StatsSink {
    /// Lines of the statsd protocol, in one of its dialects.
    Statsd(StatsdSink),
    /// A stream of Prometheus's messages (`MetricsServiceConfig`).
    MetricsService(MetricsServiceSink),
    /// OTLP.
    OpenTelemetry(OtlpMetricsSink),
}

/// Source: `StatsdSink`, `DogStatsdSink`, `GraphiteStatsdSink`.
#[derive(Clone, Debug, PartialEq)]
pub struct StatsdSink {
    /// Where lines go.
    pub receiver: StatsdReceiver,
    /// Before each name, with a dot between; `envoy` unless given.
    pub prefix: String,
    /// How tags are written.
    pub dialect: StatsdDialect,
    /// Lines are put together up to this size; each goes alone if `None`.
    pub max_bytes_per_datagram: Option<usize>,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq)]
pub enum StatsdReceiver {
    /// Datagrams.
    Udp(SocketAddr),
    /// A connection to one of our clusters.
    Cluster(Arc<str>),
}

/// How the tags of a stat are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StatsdDialect {
    /// As parts of the name.
    Plain,
    /// `|#tag:value,tag:value` at the end of the line.
    Datadog,
    /// `;tag=value;tag=value` after the name.
    Graphite,
}

/// Source: `MetricsServiceConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsServiceSink {
    /// Whom to call.
    pub service: GrpcService,
    /// What a counter has counted since the last flush, instead of since the start.
    pub counters_as_deltas: bool,
    /// Tags are labels, and no longer parts of the name.
    pub tags_as_labels: bool,
    /// Quantiles of histograms are sent.
    pub summaries: bool,
    /// Buckets of histograms are sent.
    pub histograms: bool,
    /// Metrics of one message; all in one if `None`.
    pub batch_size: Option<usize>,
}

/// Source: `envoy.extensions.stat_sinks.open_telemetry.v3.SinkConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct OtlpMetricsSink {
    /// Where they go.
    pub exporter: OtlpExporter,
    /// Attributes of the resource, sorted.
    pub resource: Vec<(String, String)>,
    /// Delta instead of cumulative temporality.
    pub counters_as_deltas: bool,
    /// Delta instead of cumulative temporality.
    pub histograms_as_deltas: bool,
    /// Tags are attributes of data points.
    pub tags_as_attributes: bool,
    /// Tags are cut out of names.
    pub tag_extracted_names: bool,
    /// Before each name, with a dot between; may be empty.
    pub prefix: String,
    /// Data points of one request; all in one if `None`.
    pub max_data_points: Option<usize>,
    /// By the full names of stats: which are left out, and which are points of other metrics. With conversions, stats that are
    /// the same point of one metric are added up.
    pub conversions: Option<Matcher<MetricConversion>>,
}

/// What becomes of a stat. Source: `SinkConfig.custom_metric_conversions`.
#[derive(Clone, Debug, PartialEq)]
pub enum MetricConversion {
    /// It is not sent. Source: `SinkConfig.DropAction`.
    Drop,
    /// It is a point of this metric. Source: `SinkConfig.ConversionAction`.
    To { metric: String, labels: Vec<(String, OtlpConstant)> },
}

pub(super) fn sink(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::StatsSink) -> Parsed<StatsSink> {
    decide!(wire, at, pb::StatsSink as "envoy.config.metrics.v3.StatsSink" {
        implemented: config_type;
        no_effect: name = "the type says which sink it is";
        unsupported: ;
    });
    let at = at.field("typed_config");
    let Some(pb::stats_sink::ConfigType::TypedConfig(any)) = config_type else {
        return Err(at.reject("is required"));
    };
    let any = wire::extension(context, &at, any)?;
    match wire::type_name(&any) {
        "envoy.config.metrics.v3.StatsdSink" => Ok(StatsSink::Statsd(statsd(&at, wire::decode(&at, &any)?)?)),
        "envoy.config.metrics.v3.DogStatsdSink" => Ok(StatsSink::Statsd(dog_statsd(&at, wire::decode(&at, &any)?)?)),
        "envoy.extensions.stat_sinks.graphite_statsd.v3.GraphiteStatsdSink" => {
            Ok(StatsSink::Statsd(graphite_statsd(&at, wire::decode(&at, &any)?)?))
        }
        "envoy.config.metrics.v3.MetricsServiceConfig" => {
            Ok(StatsSink::MetricsService(metrics_service(context, &at, wire::decode(&at, &any)?)?))
        }
        "envoy.extensions.stat_sinks.open_telemetry.v3.SinkConfig" => {
            Ok(StatsSink::OpenTelemetry(open_telemetry(context, &at, wire::decode(&at, &any)?)?))
        }
        _ => Err(at.reject(format!(
            "the stats sink {:?} is not supported; expected StatsdSink, DogStatsdSink, GraphiteStatsdSink, \
             MetricsServiceConfig or SinkConfig of open_telemetry",
            any.type_url
        ))),
    }
}

fn statsd(at: &FieldPath<'_>, wire: pb::StatsdSink) -> Parsed<StatsdSink> {
    decide!(wire, at, pb::StatsdSink as "envoy.config.metrics.v3.StatsdSink" {
        implemented: prefix, statsd_specifier;
        no_effect: ;
        unsupported: ;
    });
    let receiver = match statsd_specifier {
        Some(pb::statsd_sink::StatsdSpecifier::Address(wire)) => udp(&at.field("address"), wire)?,
        Some(pb::statsd_sink::StatsdSpecifier::TcpClusterName(name)) if !name.is_empty() => {
            StatsdReceiver::Cluster(name.into())
        }
        Some(pb::statsd_sink::StatsdSpecifier::TcpClusterName(_)) => {
            return Err(at.field("tcp_cluster_name").reject("must not be empty"));
        }
        None => return Err(at.reject("needs one of address, tcp_cluster_name")),
    };
    Ok(StatsdSink {
        receiver,
        prefix: prefix_or_default(prefix),
        dialect: StatsdDialect::Plain,
        max_bytes_per_datagram: None,
    })
}

fn dog_statsd(at: &FieldPath<'_>, wire: pb::DogStatsdSink) -> Parsed<StatsdSink> {
    decide!(wire, at, pb::DogStatsdSink as "envoy.config.metrics.v3.DogStatsdSink" {
        implemented: prefix, max_bytes_per_datagram, dog_statsd_specifier;
        no_effect: ;
        unsupported: ;
    });
    let Some(pb::dog_statsd_sink::DogStatsdSpecifier::Address(wire)) = dog_statsd_specifier else {
        return Err(at.field("address").reject("is required"));
    };
    Ok(StatsdSink {
        receiver: udp(&at.field("address"), wire)?,
        prefix: prefix_or_default(prefix),
        dialect: StatsdDialect::Datadog,
        max_bytes_per_datagram: max_bytes(&at.field("max_bytes_per_datagram"), max_bytes_per_datagram)?,
    })
}

fn graphite_statsd(at: &FieldPath<'_>, wire: graphite::GraphiteStatsdSink) -> Parsed<StatsdSink> {
    decide!(
        wire, at,
        graphite::GraphiteStatsdSink as "envoy.extensions.stat_sinks.graphite_statsd.v3.GraphiteStatsdSink" {
            implemented: prefix, max_bytes_per_datagram, statsd_specifier;
            no_effect: ;
            unsupported: ;
        }
    );
    let Some(graphite::graphite_statsd_sink::StatsdSpecifier::Address(wire)) = statsd_specifier else {
        return Err(at.field("address").reject("is required"));
    };
    Ok(StatsdSink {
        receiver: udp(&at.field("address"), wire)?,
        prefix: prefix_or_default(prefix),
        dialect: StatsdDialect::Graphite,
        max_bytes_per_datagram: max_bytes(&at.field("max_bytes_per_datagram"), max_bytes_per_datagram)?,
    })
}

fn udp(at: &FieldPath<'_>, wire: core::Address) -> Parsed<StatsdReceiver> {
    let core::Address { address } = wire;
    match address {
        // Whatever the address says of its protocol, Envoy sends datagrams.
        Some(core::address::Address::SocketAddress(mut wire)) => {
            wire.protocol = core::socket_address::Protocol::Tcp as i32;
            Ok(StatsdReceiver::Udp(ip_socket_address(&at.field("socket_address"), wire)?))
        }
        Some(core::address::Address::Pipe(_)) => Err(at.field("pipe").unsupported()),
        Some(core::address::Address::EnvoyInternalAddress(_)) => Err(at.field("envoy_internal_address").unsupported()),
        None => Err(at.reject("needs socket_address")),
    }
}

fn prefix_or_default(prefix: String) -> String {
    if prefix.is_empty() { "envoy".to_owned() } else { prefix }
}

fn max_bytes(
    at: &FieldPath<'_>,
    wire: Option<outrigger_api::pb::google::protobuf::UInt64Value>,
) -> Parsed<Option<usize>> {
    match wire {
        None => Ok(None),
        Some(wire) if wire.value == 0 => Err(at.reject("0, expected at least 1")),
        Some(wire) => Ok(Some(usize::try_from(wire.value).unwrap_or(usize::MAX).min(MAX_DATAGRAM_BYTES))),
    }
}

fn metrics_service(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: pb::MetricsServiceConfig,
) -> Parsed<MetricsServiceSink> {
    decide!(wire, at, pb::MetricsServiceConfig as "envoy.config.metrics.v3.MetricsServiceConfig" {
        implemented: grpc_service, transport_api_version, report_counters_as_deltas, emit_tags_as_labels,
            histogram_emit_mode, batch_size;
        no_effect: ;
        unsupported: ;
    });
    source::api_version(&at.field("transport_api_version"), transport_api_version)?;
    let service_at = at.field("grpc_service");
    let Some(service) = grpc_service else { return Err(service_at.reject("is required")) };
    let mode_at = at.field("histogram_emit_mode");
    let mode = pb::HistogramEmitMode::try_from(histogram_emit_mode)
        .map_err(|_| wire::unknown_enum(&mode_at, histogram_emit_mode))?;
    Ok(MetricsServiceSink {
        service: source::grpc_service(context, &service_at, service)?,
        counters_as_deltas: report_counters_as_deltas.is_some_and(|flag| flag.value),
        tags_as_labels: emit_tags_as_labels,
        summaries: mode != pb::HistogramEmitMode::Histogram,
        histograms: mode != pb::HistogramEmitMode::Summary,
        batch_size: (batch_size > 0).then_some(batch_size as usize),
    })
}

fn open_telemetry(context: &Context<'_>, at: &FieldPath<'_>, wire: otlp::SinkConfig) -> Parsed<OtlpMetricsSink> {
    decide!(wire, at, otlp::SinkConfig as "envoy.extensions.stat_sinks.open_telemetry.v3.SinkConfig" {
        implemented: protocol_specifier, resource_detectors, report_counters_as_deltas, report_histograms_as_deltas,
            emit_tags_as_attributes, use_tag_extracted_name, prefix, max_data_points_per_request,
            custom_metric_conversions;
        no_effect: ;
        unsupported: ;
    });
    use otlp::sink_config::ProtocolSpecifier;
    let exporter = match protocol_specifier {
        Some(ProtocolSpecifier::GrpcService(wire)) => {
            OtlpExporter::Grpc(source::grpc_service(context, &at.field("grpc_service"), wire)?)
        }
        Some(ProtocolSpecifier::HttpService(wire)) => {
            OtlpExporter::Http(http_service(context, &at.field("http_service"), wire)?)
        }
        None => return Err(at.reject("needs one of grpc_service, http_service")),
    };
    Ok(OtlpMetricsSink {
        exporter,
        resource: resource(context, &at.field("resource_detectors"), None, resource_detectors)?,
        counters_as_deltas: report_counters_as_deltas,
        histograms_as_deltas: report_histograms_as_deltas,
        tags_as_attributes: emit_tags_as_attributes.is_none_or(|flag| flag.value),
        tag_extracted_names: use_tag_extracted_name.is_none_or(|flag| flag.value),
        prefix,
        max_data_points: (max_data_points_per_request > 0).then_some(max_data_points_per_request as usize),
        conversions: match custom_metric_conversions {
            Some(wire) => Some(self::conversions(context, &at.field("custom_metric_conversions"), wire)?),
            None => None,
        },
    })
}

fn conversions(context: &Context<'_>, at: &FieldPath<'_>, wire: xds::Matcher) -> Parsed<Matcher<MetricConversion>> {
    let action = |at: &FieldPath<'_>, any: &Any| match wire::type_name(any) {
        "envoy.extensions.stat_sinks.open_telemetry.v3.SinkConfig.DropAction" => {
            let otlp::sink_config::DropAction {} = wire::decode(at, any)?;
            Ok(MetricConversion::Drop)
        }
        "envoy.extensions.stat_sinks.open_telemetry.v3.SinkConfig.ConversionAction" => {
            let otlp::sink_config::ConversionAction { metric_name, static_metric_labels } = wire::decode(at, any)?;
            if metric_name.is_empty() {
                return Err(at.field("metric_name").reject("must not be empty"));
            }
            let labels = labels(&at.field("static_metric_labels"), static_metric_labels)?;
            Ok(MetricConversion::To { metric: metric_name, labels })
        }
        _ => Err(at.reject(format!("the action {:?} is not supported", any.type_url))),
    };
    Matcher::parse(context, at, &Kinds { place: Place::Stats, action: &action }, wire)
}

/// What a datagram over IPv4 can carry at all.
const MAX_DATAGRAM_BYTES: usize = 65_507;
