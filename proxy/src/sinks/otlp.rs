//! Stats as OpenTelemetry's collectors take them (OTLP metrics).
//!
//! Owns the translation and the call, by gRPC or HTTP. What a collector does not take is given up: cumulative values say the
//! same the next time, and of deltas an interval is lost, which is logged.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
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
use outrigger_config::bootstrap::{MetricConversion, OtlpMetricsSink};
use outrigger_config::matcher::Input;
use outrigger_config::source::GrpcService;
use outrigger_config::tracing::OtlpExporter;
use outrigger_policy::matcher::{self, Given, Inputs};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::snapshot::{Flush, Since, Stat, values};
use super::{Outlet, SEND_LIMIT};
use crate::accesslog::records::constant;
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
#[derive(Debug)]
enum Points {
    Counters(Vec<NumberDataPoint>),
    Gauges(Vec<NumberDataPoint>),
    Histograms(Vec<HistogramDataPoint>),
}

impl Points {
    fn len(&self) -> usize {
        match self {
            Points::Counters(points) | Points::Gauges(points) => points.len(),
            Points::Histograms(points) => points.len(),
        }
    }

    /// Takes up to `count` points away.
    fn take(&mut self, count: usize) -> Self {
        match self {
            Points::Counters(points) => Points::Counters(points.drain(..count.min(points.len())).collect()),
            Points::Gauges(points) => Points::Gauges(points.drain(..count.min(points.len())).collect()),
            Points::Histograms(points) => Points::Histograms(points.drain(..count.min(points.len())).collect()),
        }
    }
}

/// Metrics by their name; a name may be that of several kinds.
type Metrics = BTreeMap<(String, u8), Points>;

/// The places of points among those of their metric, by name, kind and attributes.
type Places = HashMap<(String, u8, Vec<u8>), usize>;

/// Points of one metric belong together, wherever their stats stand.
#[derive(Default)]
struct Collected {
    metrics: Metrics,
    /// Where points of the same attributes are added up.
    places: Option<Places>,
}

impl Collected {
    fn counter(&mut self, name: String, point: NumberDataPoint) {
        let points = self.metrics.entry((name.clone(), 0)).or_insert_with(|| Points::Counters(Vec::new()));
        if let Points::Counters(points) = points {
            add_number(points, place(&mut self.places, name, 0, &point.attributes, points.len()), point);
        }
    }

    fn gauge(&mut self, name: String, point: NumberDataPoint) {
        let points = self.metrics.entry((name.clone(), 1)).or_insert_with(|| Points::Gauges(Vec::new()));
        if let Points::Gauges(points) = points {
            add_number(points, place(&mut self.places, name, 1, &point.attributes, points.len()), point);
        }
    }

    fn histogram(&mut self, name: String, point: HistogramDataPoint) {
        let points = self.metrics.entry((name.clone(), 2)).or_insert_with(|| Points::Histograms(Vec::new()));
        let Points::Histograms(points) = points else { return };
        let at = place(&mut self.places, name, 2, &point.attributes, points.len());
        match at.and_then(|at| points.get(at)) {
            Some(known) if known.explicit_bounds == point.explicit_bounds => {
                if let Some(known) = at.and_then(|at| points.get_mut(at)) {
                    merge(known, &point);
                }
            }
            _ => points.push(point),
        }
    }
}

/// Where the point of these attributes is; the next `free` place is its own from now on if there is none.
fn place(places: &mut Option<Places>, name: String, kind: u8, attributes: &[KeyValue], free: usize) -> Option<usize> {
    let encoded = attributes.iter().flat_map(prost::Message::encode_length_delimited_to_vec).collect();
    match places.as_mut()?.entry((name, kind, encoded)) {
        Entry::Occupied(known) => Some(*known.get()),
        Entry::Vacant(new) => {
            new.insert(free);
            None
        }
    }
}

fn add_number(points: &mut Vec<NumberDataPoint>, at: Option<usize>, point: NumberDataPoint) {
    let Some(at) = at else { return points.push(point) };
    if let (Some(Value::AsInt(sum)), Some(Value::AsInt(value))) =
        (points.get_mut(at).and_then(|known| known.value.as_mut()), point.value)
    {
        *sum = sum.saturating_add(value);
    }
}

fn merge(point: &mut HistogramDataPoint, with: &HistogramDataPoint) {
    point.count += with.count;
    point.sum = Some(point.sum.unwrap_or_default() + with.sum.unwrap_or_default());
    for (count, more) in point.bucket_counts.iter_mut().zip(&with.bucket_counts) {
        *count += more;
    }
}

fn requests(flush: &Flush, sink: &OtlpMetricsSink, settings: &ExportSettings) -> Vec<ExportMetricsServiceRequest> {
    let limit = sink.max_data_points.unwrap_or(usize::MAX).max(1);
    let (mut requests, mut metrics, mut room) = (Vec::new(), Vec::new(), limit);
    for ((name, _), mut points) in collected(flush, sink, settings) {
        while points.len() > 0 {
            let taken = points.take(room);
            room -= taken.len();
            metrics.push(metric(name.clone(), taken, sink));
            if room == 0 {
                requests.push(request(std::mem::take(&mut metrics), sink));
                room = limit;
            }
        }
    }
    if !metrics.is_empty() {
        requests.push(request(metrics, sink));
    }
    requests
}

fn collected(flush: &Flush, sink: &OtlpMetricsSink, settings: &ExportSettings) -> Metrics {
    // Envoy adds up where there are conversions, and only there.
    let mut all = Collected { places: sink.conversions.as_ref().map(|_| Places::new()), ..Collected::default() };
    for stat in &flush.stats {
        let Some((name, attributes)) = named(stat, sink, settings) else { continue };
        match (&stat.family.kind, &stat.since) {
            (FamilyKind::Counter(value), since) => {
                let (value, start) = match since {
                    Since::Counted(count) if sink.counters_as_deltas => (*count, flush.last),
                    _ => (*value, flush.began),
                };
                let value = value.try_into().unwrap_or(i64::MAX);
                all.counter(name, number(value, Some(start), flush.now, attributes));
            }
            (FamilyKind::Gauge(value), _) => {
                all.gauge(name, number(value.unwrap_or(0), None, flush.now, attributes));
            }
            (FamilyKind::Histogram(values), since) => {
                let bounds = settings.bounds.of(&stat.family.name);
                let (point, start) = match since {
                    Since::Recorded(recorded) if sink.histograms_as_deltas => {
                        (histogram(&self::values(recorded), bounds), flush.last)
                    }
                    _ => (histogram(values, bounds), flush.began),
                };
                let (start, now) = (nanos(start), nanos(flush.now));
                let point =
                    HistogramDataPoint { attributes, start_time_unix_nano: start, time_unix_nano: now, ..point };
                all.histogram(name, point);
            }
        }
    }
    all.metrics
}

fn request(metrics: Vec<Metric>, sink: &OtlpMetricsSink) -> ExportMetricsServiceRequest {
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

/// What a stat is called, and its attributes; `None` if it is not sent.
fn named(stat: &Stat, sink: &OtlpMetricsSink, settings: &ExportSettings) -> Option<(String, Vec<KeyValue>)> {
    let name = &stat.family.name;
    let tagged = settings.tags.extract(name);
    let conversion = sink.conversions.as_ref().and_then(|tree| matcher::find(tree, &FullName(name)).ok().flatten());
    let base = if sink.tag_extracted_names { &tagged.base } else { name };
    let full = if sink.prefix.is_empty() { base.clone() } else { format!("{}.{base}", sink.prefix) };
    let mut attributes: Vec<KeyValue> = match sink.tags_as_attributes {
        true => tagged.tags.iter().map(|(tag, value)| attribute((*tag).to_owned(), (*value).to_owned())).collect(),
        false => Vec::new(),
    };
    match conversion {
        None => Some((full, attributes)),
        Some(MetricConversion::Drop) => None,
        Some(MetricConversion::To { metric, labels }) => {
            attributes.extend(labels.iter().map(|(key, value)| KeyValue {
                key: key.clone(),
                value: Some(constant(value)),
                ..KeyValue::default()
            }));
            Some((metric.clone(), attributes))
        }
    }
}

/// A stat, as match trees see it.
struct FullName<'a>(&'a str);

impl Inputs for FullName<'_> {
    fn look(&self, input: &Input, look: &mut dyn FnMut(Given<'_>)) {
        match input {
            Input::StatFullName => look(Given::Text(self.0.as_bytes())),
            // The configuration has no others here.
            _ => look(Given::Unknown),
        }
    }
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
    use outrigger_config::accesslog::OtlpConstant;
    use outrigger_config::matcher::{Ask, Matcher, OnMatch};
    use outrigger_config::source::GrpcTarget;

    use super::super::snapshot::tests::sample;
    use super::*;
    use crate::stats::Family;

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
            conversions: None,
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

    #[test]
    fn converted_stats_are_added_up_and_dropped_ones_are_not_sent() {
        let action = |prefix: &str, conversion| (prefix.into(), OnMatch::Action(conversion));
        let to = |metric: &str| MetricConversion::To {
            metric: metric.to_owned(),
            labels: vec![("k".to_owned(), OtlpConstant::Text("v".to_owned()))],
        };
        let map = vec![
            action("cluster.local.upstream_cx", MetricConversion::Drop),
            action("cluster.local.upstream_rq_time", to("times")),
            action("cluster.local.upstream_rq_total", to("requests")),
            action("cluster.other.upstream_rq_time", to("times")),
            action("cluster.other.upstream_rq_total", to("requests")),
        ];
        let tree = Matcher { ask: Some(Ask::Prefix { input: Input::StatFullName, map }), on_no_match: None };
        let mut flush = sample();
        for stat in sample().stats {
            let name = stat.family.name.replace("local", "other");
            flush.stats.push(Stat { family: Family { name, ..stat.family }, ..stat });
        }
        let sink =
            OtlpMetricsSink { tags_as_attributes: false, prefix: "mesh".into(), conversions: Some(tree), ..sink() };
        let all = collected(&flush, &sink, &settings());
        let names: Vec<_> = all.keys().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["mesh.cluster.upstream_cx_active", "requests", "times"]);
        let Points::Counters(points) = &all[&("requests".to_owned(), 0)] else { panic!("{all:?}") };
        assert_eq!((points.len(), &points[0].value), (1, &Some(Value::AsInt(6))));
        assert_eq!(points[0].attributes, [attribute("k".to_owned(), "v".to_owned())]);
        let Points::Histograms(points) = &all[&("times".to_owned(), 2)] else { panic!("{all:?}") };
        assert_eq!((points.len(), points[0].count, points[0].bucket_counts.iter().sum::<u64>()), (1, 6, 6));
    }
}
