//! Stats in the Prometheus text format, version 0.0.4, and as OpenMetrics 1.0.
//!
//! Owns names, labels and the form of lines. Stats of one name must come together. Never chooses stats.

use std::fmt::Write;
use std::time::UNIX_EPOCH;

use super::buckets::{self, Bounds, BucketMode, PERCENTILES, Values};
use super::tags::TagExtractor;
use super::{Exemplar, Family, FamilyKind, exemplars};

/// Stats whose names begin so are shown without it and without `envoy_` in front.
const BARE_NAMESPACES: &[&str] = &["istiocustom.", "wasmcustom."];

/// A stat with its labels taken out of its name.
pub struct Series {
    /// Name of the metric, such as `envoy_cluster_upstream_rq`.
    pub metric: String,
    /// `a="b",c="d"`; may be empty.
    pub labels: String,
    /// The stat.
    pub family: Family,
}

impl Series {
    /// The series of a stat.
    pub fn new(family: Family, tags: &TagExtractor) -> Self {
        let tagged = tags.extract(&family.name);
        let metric = metric_name(&tagged.base);
        let mut labels = String::new();
        for (index, (tag, value)) in tagged.tags.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let _ = write!(labels, "{comma}{}=\"{}\"", sanitized(tag), escaped(value));
        }
        Self { metric, labels, family }
    }

    /// Where it stands: counters first, then gauges, then histograms, each by name.
    pub fn order(&self) -> (u8, &str, &str) {
        let kind = match self.family.kind {
            FamilyKind::Counter(_) => 0,
            FamilyKind::Gauge(_) => 1,
            FamilyKind::Histogram(_) => 2,
        };
        (kind, &self.metric, &self.family.name)
    }
}

/// The metric that a stat name without tags stands for.
pub fn metric_name(base: &str) -> String {
    match BARE_NAMESPACES.iter().find_map(|namespace| base.strip_prefix(namespace)) {
        Some(bare) => sanitized(bare),
        None => format!("envoy_{}", sanitized(base)),
    }
}

/// Writes series; keeps which metric was announced last.
#[derive(Debug, Default)]
pub struct PrometheusWriter {
    announced: Option<(u8, String)>,
    open_metrics: bool,
}

impl PrometheusWriter {
    /// A writer of OpenMetrics.
    pub fn open_metrics() -> Self {
        Self { announced: None, open_metrics: true }
    }

    /// The end of all output.
    pub fn close(&self, out: &mut String) {
        if self.open_metrics {
            out.push_str("# EOF\n");
        }
    }

    /// One series, after the announcement of its metric if it is the first of it.
    /// `exemplars` stand beside the buckets of a histogram.
    pub fn write(
        &mut self,
        out: &mut String,
        series: &Series,
        mode: BucketMode,
        bounds: &Bounds,
        exemplars: &[Exemplar],
    ) {
        let Series { metric, labels, family } = series;
        let (kind, ..) = series.order();
        if self.announced.as_ref().is_none_or(|(last_kind, last)| *last_kind != kind || last != metric) {
            let kind_name = match (&family.kind, mode) {
                // There, the name of a counter ends with `_total`. Ours are to be the same in both forms.
                (FamilyKind::Counter(_), _) if self.open_metrics => "unknown",
                (FamilyKind::Counter(_), _) => "counter",
                (FamilyKind::Gauge(_), _) => "gauge",
                (FamilyKind::Histogram(_), BucketMode::Summary) => "summary",
                (FamilyKind::Histogram(_), _) => "histogram",
            };
            let _ = writeln!(out, "# TYPE {metric} {kind_name}");
            self.announced = Some((kind, metric.clone()));
        }
        let _ = match &family.kind {
            FamilyKind::Counter(value) => writeln!(out, "{metric}{{{labels}}} {value}"),
            FamilyKind::Gauge(value) => writeln!(out, "{metric}{{{labels}}} {}", value.unwrap_or(0)),
            FamilyKind::Histogram(values) if mode == BucketMode::Summary => {
                write_quantiles(out, metric, labels, values);
                write_totals(out, metric, labels, values)
            }
            FamilyKind::Histogram(values) => {
                write_buckets(out, metric, labels, values, bounds.of(&family.name), exemplars);
                write_totals(out, metric, labels, values)
            }
        };
    }

    /// A text readout, as a gauge of 0 that carries its text as a label.
    pub fn write_readout(&mut self, out: &mut String, name: &str, value: &str, tags: &TagExtractor) {
        let family = Family { name: name.to_owned(), kind: FamilyKind::Gauge(None) };
        let mut series = Series::new(family, tags);
        let comma = if series.labels.is_empty() { "" } else { "," };
        let _ = write!(series.labels, "{comma}text_value=\"{}\"", escaped(value));
        self.write(out, &series, BucketMode::Cumulative, &Bounds::default(), &[]);
    }
}

fn write_buckets(
    out: &mut String,
    metric: &str,
    labels: &str,
    values: &Values,
    bounds: &[f64],
    exemplars: &[Exemplar],
) {
    let comma = if labels.is_empty() { "" } else { "," };
    let mut lower = f64::NEG_INFINITY;
    for (bound, count) in bounds.iter().zip(buckets::cumulative(values, bounds)) {
        let _ = write!(out, "{metric}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
        write_exemplar(out, exemplars::within(exemplars, lower, *bound));
        lower = *bound;
    }
    let _ = write!(out, "{metric}_bucket{{{labels}{comma}le=\"+Inf\"}} {}", values.len());
    write_exemplar(out, exemplars::within(exemplars, lower, f64::INFINITY));
}

/// The end of a line. Source: OpenMetrics 1.0, "Exemplars".
fn write_exemplar(out: &mut String, exemplar: Option<&Exemplar>) {
    if let Some(Exemplar { value, trace_id, span_id, at }) = exemplar {
        let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let _ = write!(out, " # {{trace_id=\"{trace_id:032x}\",span_id=\"{span_id:016x}\"}} {value} {at:.3}");
    }
    out.push('\n');
}

fn write_quantiles(out: &mut String, metric: &str, labels: &str, values: &Values) {
    let comma = if labels.is_empty() { "" } else { "," };
    for percent in PERCENTILES {
        // Per mille first: dividing by a hundred would show 0.9990000000000001.
        let quantile = (percent * 10.0).round() / 1000.0;
        let value = buckets::percentile(values, *percent).map_or_else(|| "NaN".to_owned(), |value| value.to_string());
        let _ = writeln!(out, "{metric}{{{labels}{comma}quantile=\"{quantile}\"}} {value}");
    }
}

fn write_totals(out: &mut String, metric: &str, labels: &str, values: &Values) -> std::fmt::Result {
    writeln!(out, "{metric}_sum{{{labels}}} {}", buckets::sum(values))?;
    writeln!(out, "{metric}_count{{{labels}}} {}", values.len())
}

/// What is not a letter, a digit or an underscore becomes an underscore.
fn sanitized(name: &str) -> String {
    let mut sanitized: String =
        name.chars().map(|letter| if letter.is_ascii_alphanumeric() || letter == '_' { letter } else { '_' }).collect();
    if sanitized.starts_with(|first: char| first.is_ascii_digit()) {
        sanitized.insert(0, '_');
    }
    sanitized
}

fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for letter in value.chars() {
        match letter {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '\n' => escaped.push_str("\\n"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::buckets::tests::values;
    use super::super::tags::tests::config;
    use super::*;

    fn text(families: Vec<(&str, FamilyKind)>, mode: BucketMode) -> String {
        let tags = TagExtractor::new(&config(&[], true)).unwrap();
        let families = families.into_iter().map(|(name, kind)| Family { name: name.to_owned(), kind });
        let mut series: Vec<Series> = families.map(|family| Series::new(family, &tags)).collect();
        series.sort_by(|a, b| a.order().cmp(&b.order()));
        let mut out = String::new();
        let mut writer = PrometheusWriter::default();
        for series in &series {
            writer.write(&mut out, series, mode, &Bounds::default(), &[]);
        }
        out
    }

    #[test]
    fn a_metric_is_announced_once_before_all_of_its_series() {
        let text = text(
            vec![
                ("cluster.b.upstream_rq_200", FamilyKind::Counter(2)),
                ("server.live", FamilyKind::Gauge(Some(1))),
                ("cluster.a.upstream_rq_503", FamilyKind::Counter(1)),
                ("istiocustom.istio_build", FamilyKind::Gauge(Some(1))),
            ],
            BucketMode::Cumulative,
        );
        assert_eq!(
            text,
            "# TYPE envoy_cluster_upstream_rq counter\n\
             envoy_cluster_upstream_rq{envoy_response_code=\"503\",envoy_cluster_name=\"a\"} 1\n\
             envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"b\"} 2\n\
             # TYPE envoy_server_live gauge\n\
             envoy_server_live{} 1\n\
             # TYPE istio_build gauge\n\
             istio_build{} 1\n"
        );
    }

    #[test]
    fn a_histogram_has_buckets_or_quantiles_and_totals() {
        let histogram = || FamilyKind::Histogram(values(&[0, 3, 7]).into());
        let buckets = text(vec![("cluster.x.upstream_rq_time", histogram())], BucketMode::Cumulative);
        assert!(buckets.starts_with("# TYPE envoy_cluster_upstream_rq_time histogram\n"));
        for line in [
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"x\",le=\"0.5\"} 1\n",
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"x\",le=\"5\"} 2\n",
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"x\",le=\"3600000\"} 3\n",
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"x\",le=\"+Inf\"} 3\n",
            "envoy_cluster_upstream_rq_time_sum{envoy_cluster_name=\"x\"} 10\n",
            "envoy_cluster_upstream_rq_time_count{envoy_cluster_name=\"x\"} 3\n",
        ] {
            assert!(buckets.contains(line), "{line}{buckets}");
        }
        let summary = text(vec![("server.initialization_time_ms", histogram())], BucketMode::Summary);
        assert!(summary.starts_with("# TYPE envoy_server_initialization_time_ms summary\n"));
        assert!(summary.contains("envoy_server_initialization_time_ms{quantile=\"0.999\"} 7\n"), "{summary}");
    }

    #[test]
    fn labels_are_escaped_and_names_sanitized() {
        let text = text(vec![("cluster.a\"b\\c.x-y", FamilyKind::Counter(1))], BucketMode::Cumulative);
        assert!(text.contains("envoy_cluster_x_y{envoy_cluster_name=\"a\\\"b\\\\c\"} 1\n"), "{text}");
        assert_eq!(metric_name("wasmcustom.1x"), "_1x");
        let mut out = String::new();
        let tags = TagExtractor::default();
        PrometheusWriter::default().write_readout(&mut out, "cds.version_text", "v1", &tags);
        assert_eq!(out, "# TYPE envoy_cds_version_text gauge\nenvoy_cds_version_text{text_value=\"v1\"} 0\n");
    }

    #[test]
    fn examples_stand_beside_the_bucket_that_they_fell_into() {
        let family = Family {
            name: "cluster.x.upstream_rq_time".to_owned(),
            kind: FamilyKind::Histogram(values(&[3, 700]).into()),
        };
        let series = Series::new(family, &TagExtractor::new(&config(&[], true)).unwrap());
        let exemplar = |value, trace_id| Exemplar {
            value,
            trace_id,
            span_id: 0xb,
            at: UNIX_EPOCH + std::time::Duration::from_millis(1500),
        };
        let mut out = String::new();
        let exemplars = [exemplar(3, 0xa), exemplar(700, 0xc)];
        PrometheusWriter::open_metrics().write(
            &mut out,
            &series,
            BucketMode::Cumulative,
            &Bounds::default(),
            &exemplars,
        );
        let examples: Vec<&str> = out.lines().filter(|line| line.contains('#') && !line.starts_with('#')).collect();
        let shown = |le: &str, count: u32, trace: char, value: u32| {
            format!(
                "envoy_cluster_upstream_rq_time_bucket{{envoy_cluster_name=\"x\",le=\"{le}\"}} {count} \
                 # {{trace_id=\"{trace:0>32}\",span_id=\"000000000000000b\"}} {value} 1.500"
            )
        };
        assert_eq!(examples, [shown("5", 1, 'a', 3), shown("1000", 2, 'c', 700)]);
    }
}
