//! Stats as OpenTelemetry's collectors take them (OTLP metrics).
//!
//! Owns the translation and the call, by gRPC or HTTP. What a collector does not take is given up: cumulative values say the
//! same the next time, and of deltas an interval is lost, which is logged.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use outrigger_config::bootstrap::OtlpMetricsSink;
use outrigger_config::source::GrpcService;
use outrigger_config::tracing::OtlpExporter;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::snapshot::{Flush, Since, Stat, values};
use super::{Outlet, SEND_LIMIT};
use crate::stats::FamilyKind;
use crate::stats::buckets;
use crate::stats::export::ExportSettings;
use crate::trace::otlp::{CONTENT_TYPE, SCOPE, USER_AGENT, attribute, reason};
use crate::trace::post::Poster;
use crate::upstream::call_metadata::call_metadata;

/// Calls a collector.
pub(super) struct Sender {
    sink: OtlpMetricsSink,
    way: Way,
}

enum Way {
    Grpc { service: GrpcService, channel: Option<Channel> },
    Post(Poster),
}

impl Sender {
    pub fn new(sink: OtlpMetricsSink, outlet: &Outlet) -> Self {
        let way = match &sink.exporter {
            OtlpExporter::Grpc(service) => Way::Grpc { service: service.clone(), channel: None },
            OtlpExporter::Http(service) => Way::Post(Poster::new(service.clone(), &outlet.process)),
        };
        Self { sink, way }
    }

    pub async fn send(&mut self, flush: &Flush, outlet: &Outlet) {
        for request in requests(flush, &self.sink, &outlet.settings) {
            let sent = match &mut self.way {
                Way::Grpc { service, channel } => call(service, channel, request, outlet).await,
                Way::Post(poster) => {
                    let body = prost::Message::encode_to_vec(&request);
                    match poster.post(CONTENT_TYPE, Some(USER_AGENT), body, None).await {
                        Ok(200..=299) => Ok(()),
                        Ok(status) => Err(format!("HTTP status {status}")),
                        Err(error) => Err(error.to_string()),
                    }
                }
            };
            if let Err(reason) = sent {
                tracing::warn!("stats could not be sent to the collector: {reason}");
                return;
            }
        }
    }
}

async fn call(
    service: &GrpcService,
    channel: &mut Option<Channel>,
    request: ExportMetricsServiceRequest,
    outlet: &Outlet,
) -> Result<(), String> {
    let channel = match channel {
        Some(channel) => channel.clone(),
        None => channel.insert(outlet.channel(service).map_err(|error| error.to_string())?).clone(),
    };
    let mut request = Request::new(request);
    *request.metadata_mut() = call_metadata(service).map_err(|error| error.to_string())?;
    let limit = service.timeout.filter(|limit| !limit.is_zero()).unwrap_or(SEND_LIMIT);
    let mut client = MetricsServiceClient::new(channel);
    let answer = timeout(limit, client.export(request)).await;
    let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no answer within {limit:?}"))));
    let answer = answer.map_err(|status| reason(&status))?.into_inner();
    match answer.partial_success.filter(|partial| partial.rejected_data_points > 0) {
        Some(partial) => {
            Err(format!("{} data points were rejected: {}", partial.rejected_data_points, partial.error_message))
        }
        None => Ok(()),
    }
}

/// The points of one metric.
enum Points {
    Counters(Vec<NumberDataPoint>),
    Gauges(Vec<NumberDataPoint>),
    Histograms(Vec<HistogramDataPoint>),
}

fn requests(flush: &Flush, sink: &OtlpMetricsSink, settings: &ExportSettings) -> Vec<ExportMetricsServiceRequest> {
    let limit = sink.max_data_points.unwrap_or(flush.stats.len()).max(1);
    flush.stats.chunks(limit).map(|stats| request(stats, flush, sink, settings)).collect()
}

fn request(
    stats: &[Stat],
    flush: &Flush,
    sink: &OtlpMetricsSink,
    settings: &ExportSettings,
) -> ExportMetricsServiceRequest {
    // Points of one metric belong together, wherever their stats stand; a name may be that of several kinds.
    let mut metrics: BTreeMap<(String, u8), Points> = BTreeMap::new();
    for stat in stats {
        let (name, attributes) = named(stat, sink, settings);
        match (&stat.family.kind, &stat.since) {
            (FamilyKind::Counter(value), since) => {
                let (value, start) = match since {
                    Since::Counted(count) if sink.counters_as_deltas => (*count, flush.last),
                    _ => (*value, flush.began),
                };
                let point = number(value.try_into().unwrap_or(i64::MAX), Some(start), flush.now, attributes);
                let points = metrics.entry((name, 0)).or_insert_with(|| Points::Counters(Vec::new()));
                if let Points::Counters(points) = points {
                    points.push(point);
                }
            }
            (FamilyKind::Gauge(value), _) => {
                let point = number(value.unwrap_or(0), None, flush.now, attributes);
                let points = metrics.entry((name, 1)).or_insert_with(|| Points::Gauges(Vec::new()));
                if let Points::Gauges(points) = points {
                    points.push(point);
                }
            }
            (FamilyKind::Histogram(all), since) => {
                let bounds = settings.bounds.of(&stat.family.name);
                let mut point = match since {
                    Since::Recorded(recorded) if sink.histograms_as_deltas => HistogramDataPoint {
                        start_time_unix_nano: nanos(flush.last),
                        ..histogram(&values(recorded), bounds)
                    },
                    _ => HistogramDataPoint { start_time_unix_nano: nanos(flush.began), ..histogram(all, bounds) },
                };
                point.time_unix_nano = nanos(flush.now);
                point.attributes = attributes;
                let points = metrics.entry((name, 2)).or_insert_with(|| Points::Histograms(Vec::new()));
                if let Points::Histograms(points) = points {
                    points.push(point);
                }
            }
        }
    }
    let metrics = metrics.into_iter().map(|((name, _), points)| metric(name, points, sink)).collect();
    let scope = InstrumentationScope {
        name: SCOPE.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let scope = ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() };
    let attributes = sink.resource.iter().map(|(key, value)| attribute(key.clone(), value.clone())).collect();
    let resource = Some(Resource { attributes, ..Resource::default() });
    let metrics = ResourceMetrics { resource, scope_metrics: vec![scope], ..ResourceMetrics::default() };
    ExportMetricsServiceRequest { resource_metrics: vec![metrics] }
}

fn metric(name: String, points: Points, sink: &OtlpMetricsSink) -> Metric {
    let temporality = |deltas: bool| match deltas {
        true => AggregationTemporality::Delta as i32,
        false => AggregationTemporality::Cumulative as i32,
    };
    let data = match points {
        Points::Counters(data_points) => Data::Sum(Sum {
            data_points,
            aggregation_temporality: temporality(sink.counters_as_deltas),
            is_monotonic: true,
        }),
        Points::Gauges(data_points) => Data::Gauge(Gauge { data_points }),
        Points::Histograms(data_points) => {
            Data::Histogram(Histogram { data_points, aggregation_temporality: temporality(sink.histograms_as_deltas) })
        }
    };
    Metric { name, data: Some(data), ..Metric::default() }
}

fn named(stat: &Stat, sink: &OtlpMetricsSink, settings: &ExportSettings) -> (String, Vec<KeyValue>) {
    let name = &stat.family.name;
    let tagged = settings.tags.extract(name);
    let base = if sink.tag_extracted_names { &tagged.base } else { name };
    let full = if sink.prefix.is_empty() { base.clone() } else { format!("{}.{base}", sink.prefix) };
    let attributes = match sink.tags_as_attributes {
        true => tagged.tags.iter().map(|(tag, value)| attribute((*tag).to_owned(), (*value).to_owned())).collect(),
        false => Vec::new(),
    };
    (full, attributes)
}

fn number(value: i64, start: Option<SystemTime>, now: SystemTime, attributes: Vec<KeyValue>) -> NumberDataPoint {
    NumberDataPoint {
        attributes,
        start_time_unix_nano: start.map_or(0, nanos),
        time_unix_nano: nanos(now),
        value: Some(Value::AsInt(value)),
        ..NumberDataPoint::default()
    }
}

fn histogram(values: &buckets::Values, bounds: &[f64]) -> HistogramDataPoint {
    let mut bucket_counts = buckets::disjoint(values, bounds);
    bucket_counts.push(values.len() - bucket_counts.iter().sum::<u64>());
    HistogramDataPoint {
        count: values.len(),
        sum: Some(buckets::sum(values)),
        bucket_counts,
        explicit_bounds: bounds.to_vec(),
        ..HistogramDataPoint::default()
    }
}

fn nanos(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use outrigger_config::source::GrpcTarget;

    use super::super::snapshot::tests::sample;
    use super::*;

    fn sink() -> OtlpMetricsSink {
        let target = GrpcTarget::Cluster { name: "m".into(), authority: None, max_receive_message_bytes: None };
        OtlpMetricsSink {
            exporter: OtlpExporter::Grpc(GrpcService { target, timeout: None, initial_metadata: Vec::new() }),
            resource: vec![("service.name".into(), "web".into())],
            counters_as_deltas: false,
            histograms_as_deltas: false,
            tags_as_attributes: true,
            tag_extracted_names: true,
            prefix: String::new(),
            max_data_points: None,
        }
    }

    fn settings() -> ExportSettings {
        ExportSettings::new(&crate::stats::tags::tests::config(&[], true)).unwrap()
    }

    fn metrics(sink: &OtlpMetricsSink) -> Vec<Metric> {
        let all = requests(&sample(), sink, &settings()).into_iter();
        all.flat_map(|request| request.resource_metrics.into_iter())
            .flat_map(|metrics| metrics.scope_metrics.into_iter().flat_map(|scope| scope.metrics))
            .collect()
    }

    #[test]
    fn each_kind_has_its_form_and_temporality() {
        let cumulative = metrics(&sink());
        let names: Vec<_> = cumulative.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["cluster.upstream_cx_active", "cluster.upstream_rq_time", "cluster.upstream_rq_total"]);
        let Some(Data::Sum(sum)) = &cumulative[2].data else { panic!("{:?}", cumulative[2]) };
        assert_eq!((sum.data_points[0].value, sum.aggregation_temporality), (Some(Value::AsInt(3)), 2));
        assert_eq!(sum.data_points[0].attributes[0].key, "envoy.cluster_name");
        let Some(Data::Histogram(histogram)) = &cumulative[1].data else { panic!("{:?}", cumulative[1]) };
        let point = &histogram.data_points[0];
        assert_eq!((point.count, point.start_time_unix_nano, point.time_unix_nano), (3, 0, 10_000_000_000));
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert_eq!(point.bucket_counts.iter().sum::<u64>(), 3);

        let deltas = metrics(&OtlpMetricsSink { counters_as_deltas: true, histograms_as_deltas: true, ..sink() });
        let Some(Data::Sum(sum)) = &deltas[2].data else { panic!("{:?}", deltas[2]) };
        assert_eq!((sum.data_points[0].value, sum.aggregation_temporality), (Some(Value::AsInt(2)), 1));
        assert_eq!(sum.data_points[0].start_time_unix_nano, 5_000_000_000);
        let Some(Data::Histogram(histogram)) = &deltas[1].data else { panic!("{:?}", deltas[1]) };
        assert_eq!(histogram.data_points[0].count, 2);
    }

    #[test]
    fn names_keep_their_tags_where_wanted_and_requests_hold_no_more_points_than_they_may() {
        let sink = OtlpMetricsSink {
            tags_as_attributes: false,
            tag_extracted_names: false,
            prefix: "mesh".into(),
            max_data_points: Some(2),
            ..sink()
        };
        assert_eq!(requests(&sample(), &sink, &settings()).len(), 2);
        let metrics = metrics(&sink);
        assert_eq!(metrics[0].name, "mesh.cluster.local.upstream_cx_active");
        let Some(Data::Gauge(gauge)) = &metrics[0].data else { panic!("{:?}", metrics[0]) };
        assert!(gauge.data_points[0].attributes.is_empty());
    }
}
