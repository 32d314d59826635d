//! The stream of an `envoy.service.metrics.v3.MetricsService`.
//!
//! Owns the translation to Prometheus's messages, and the stream. What a broken stream has not taken is given up: the next
//! flush says what is true then.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_api::pb::envoy::service::metrics::v3::StreamMetricsMessage;
use outrigger_api::pb::envoy::service::metrics::v3::metrics_service_client::MetricsServiceClient;
use outrigger_api::pb::envoy::service::metrics::v3::stream_metrics_message::Identifier;
use outrigger_api::pb::io::prometheus::client::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType, Quantile, Summary,
};
use outrigger_config::bootstrap::MetricsServiceSink;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use super::snapshot::{Flush, Since, Stat};
use super::{Outlet, SEND_LIMIT};
use crate::stats::FamilyKind;
use crate::stats::buckets::{self, PERCENTILES};
use crate::stats::export::ExportSettings;
use crate::upstream::call_metadata::call_metadata;

/// Keeps a stream open over flushes.
pub(super) struct Sender {
    sink: MetricsServiceSink,
    stream: Option<mpsc::Sender<StreamMetricsMessage>>,
}

impl Sender {
    pub fn new(sink: MetricsServiceSink) -> Self {
        Self { sink, stream: None }
    }

    pub async fn send(&mut self, flush: &Flush, outlet: &Outlet) {
        let metrics = families(flush, &self.sink, &outlet.settings);
        let batch_size = self.sink.batch_size.unwrap_or(metrics.len()).max(1);
        let mut metrics = metrics.into_iter().peekable();
        while metrics.peek().is_some() {
            let batch: Vec<_> = metrics.by_ref().take(batch_size).collect();
            if let Err(status) = self.send_batch(batch, outlet).await {
                tracing::warn!("stats could not be sent to the metrics service: {status}");
                self.stream = None;
                return;
            }
        }
    }

    async fn send_batch(&mut self, envoy_metrics: Vec<MetricFamily>, outlet: &Outlet) -> Result<(), Status> {
        if self.stream.as_ref().is_some_and(mpsc::Sender::is_closed) {
            self.stream = None;
        }
        // Only the first message of a stream says who we are.
        let identifier = self.stream.is_none().then(|| Identifier { node: Some(outlet.node.clone()) });
        let stream = match &self.stream {
            Some(stream) => stream,
            None => self.stream.insert(open(&self.sink, outlet)?),
        };
        let sent = timeout(SEND_LIMIT, stream.send(StreamMetricsMessage { identifier, envoy_metrics })).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::unavailable("the stream has ended")),
            Err(_) => Err(Status::deadline_exceeded("the service takes no more")),
        }
    }
}

fn open(sink: &MetricsServiceSink, outlet: &Outlet) -> Result<mpsc::Sender<StreamMetricsMessage>, Status> {
    let channel = outlet.channel(&sink.service).map_err(|error| Status::unavailable(error.to_string()))?;
    let (sender, receiver) = mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(receiver));
    *request.metadata_mut() =
        call_metadata(&sink.service).map_err(|error| Status::unauthenticated(error.to_string()))?;
    tokio::task::spawn_local(async move {
        // Services never answer while they listen, so an answer is the end as much as an error.
        if let Err(status) = MetricsServiceClient::new(channel).stream_metrics(request).await {
            tracing::warn!("the stream to the metrics service broke: {status}");
        }
    });
    Ok(sender)
}

fn families(flush: &Flush, sink: &MetricsServiceSink, settings: &ExportSettings) -> Vec<MetricFamily> {
    let now_ms = i64::try_from(since_1970(flush.now).as_millis()).unwrap_or(i64::MAX);
    let mut all = Vec::new();
    for stat in &flush.stats {
        let (name, label) = named(stat, sink, settings);
        let mut add = |kind: MetricType, metric: Metric| {
            let metric = Metric { label: label.clone(), timestamp_ms: Some(now_ms), ..metric };
            all.push(MetricFamily {
                name: Some(name.clone()),
                r#type: Some(kind as i32),
                metric: vec![metric],
                ..MetricFamily::default()
            });
        };
        match (&stat.family.kind, &stat.since) {
            (FamilyKind::Counter(value), since) => {
                let value = match since {
                    Since::Counted(count) if sink.counters_as_deltas => *count,
                    _ => *value,
                };
                let counter = Counter { value: Some(value as f64), ..Counter::default() };
                add(MetricType::Counter, Metric { counter: Some(counter), ..Metric::default() });
            }
            (FamilyKind::Gauge(value), _) => {
                let gauge = Gauge { value: Some(value.unwrap_or(0) as f64) };
                add(MetricType::Gauge, Metric { gauge: Some(gauge), ..Metric::default() });
            }
            (FamilyKind::Histogram(_), Since::Recorded(recorded)) => {
                let values = super::snapshot::values(recorded);
                if sink.summaries {
                    add(MetricType::Summary, Metric { summary: Some(summary(&values)), ..Metric::default() });
                }
                if sink.histograms {
                    let bounds = settings.bounds.of(&stat.family.name);
                    let histogram = histogram(&values, bounds);
                    add(MetricType::Histogram, Metric { histogram: Some(histogram), ..Metric::default() });
                }
            }
            (FamilyKind::Histogram(_), _) => {}
        }
    }
    all
}

fn named(stat: &Stat, sink: &MetricsServiceSink, settings: &ExportSettings) -> (String, Vec<LabelPair>) {
    let name = &stat.family.name;
    if !sink.tags_as_labels {
        return (name.clone(), Vec::new());
    }
    let tagged = settings.tags.extract(name);
    let label = |(name, value): &(&str, &str)| LabelPair { name: Some((*name).into()), value: Some((*value).into()) };
    let labels = tagged.tags.iter().map(label).collect();
    (tagged.base, labels)
}

fn summary(values: &buckets::Values) -> Summary {
    let quantile = |percent: &f64| Quantile {
        quantile: Some(percent / 100.0),
        value: Some(buckets::percentile(values, *percent).map_or(f64::NAN, |value| value as f64)),
    };
    Summary {
        sample_count: Some(values.len()),
        sample_sum: Some(buckets::sum(values)),
        quantile: PERCENTILES.iter().map(quantile).collect(),
        ..Summary::default()
    }
}

fn histogram(values: &buckets::Values, bounds: &[f64]) -> Histogram {
    let bucket = |(bound, count): (&f64, u64)| Bucket {
        upper_bound: Some(*bound),
        cumulative_count: Some(count),
        ..Bucket::default()
    };
    Histogram {
        sample_count: Some(values.len()),
        sample_sum: Some(buckets::sum(values)),
        bucket: bounds.iter().zip(buckets::cumulative(values, bounds)).map(bucket).collect(),
        ..Histogram::default()
    }
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use outrigger_config::source::{GrpcService, GrpcTarget};

    use super::super::snapshot::tests::sample;
    use super::*;

    fn sink() -> MetricsServiceSink {
        let target = GrpcTarget::Cluster { name: "m".into(), authority: None, max_receive_message_bytes: None };
        MetricsServiceSink {
            service: GrpcService { target, timeout: None, initial_metadata: Vec::new() },
            counters_as_deltas: false,
            tags_as_labels: false,
            summaries: true,
            histograms: true,
            batch_size: None,
        }
    }

    fn settings() -> ExportSettings {
        ExportSettings::new(&crate::stats::tags::tests::config(&[], true)).unwrap()
    }

    #[test]
    fn counters_are_totals_and_histograms_those_of_the_interval() {
        let all = families(&sample(), &sink(), &settings());
        let names: Vec<_> = all.iter().map(|family| (family.name(), family.r#type())).collect();
        assert_eq!(
            names,
            [
                ("cluster.local.upstream_cx_active", MetricType::Gauge),
                ("cluster.local.upstream_rq_time", MetricType::Summary),
                ("cluster.local.upstream_rq_time", MetricType::Histogram),
                ("cluster.local.upstream_rq_total", MetricType::Counter),
            ]
        );
        assert!(all.iter().all(|family| family.metric[0].timestamp_ms == Some(10_000)));
        assert_eq!(all[3].metric[0].counter.as_ref().unwrap().value, Some(3.0));
        let summary = all[1].metric[0].summary.as_ref().unwrap();
        assert_eq!((summary.sample_count, summary.quantile[9].value), (Some(2), Some(7.0)));
        let buckets = &all[2].metric[0].histogram.as_ref().unwrap().bucket;
        let five = buckets.iter().find(|bucket| bucket.upper_bound == Some(5.0)).unwrap();
        assert_eq!(five.cumulative_count, Some(1));
    }

    #[test]
    fn tags_become_labels_and_counters_deltas_where_wanted() {
        let sink = MetricsServiceSink { counters_as_deltas: true, tags_as_labels: true, summaries: false, ..sink() };
        let all = families(&sample(), &sink, &settings());
        assert_eq!(all.len(), 3);
        let (counter, metric) = (&all[2], &all[2].metric[0]);
        assert_eq!(counter.name(), "cluster.upstream_rq_total");
        assert_eq!((metric.label[0].name(), metric.label[0].value()), ("envoy.cluster_name", "local"));
        assert_eq!(metric.counter.as_ref().unwrap().value, Some(2.0));
    }
}
