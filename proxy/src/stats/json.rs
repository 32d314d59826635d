//! Stats as one JSON object: `{"stats":[{"name":...,"value":...}, ...]}`, all histograms in its last element.
//!
//! Owns the form. Stats are written one by one, scalars before histograms, so that nothing is held. Never chooses stats.

use std::fmt::Write;

use super::buckets::{self, Bounds, BucketMode, PERCENTILES, Values};
use super::{Family, FamilyKind};

/// Writes stats; keeps what was begun and not yet closed.
#[derive(Debug, Default)]
pub struct JsonWriter {
    elements: usize,
    histograms: usize,
}

impl JsonWriter {
    /// The beginning of the object.
    pub fn open(&self, out: &mut String) {
        out.push_str("{\"stats\":[");
    }

    /// A text readout.
    pub fn write_readout(&mut self, out: &mut String, name: &str, value: &str) {
        self.element(out);
        let _ = write!(out, "{{\"name\":{},\"value\":{}}}", quoted(name), quoted(value));
    }

    /// One stat. No scalar may come after a histogram.
    pub fn write(&mut self, out: &mut String, family: &Family, mode: BucketMode, bounds: &Bounds) {
        let name = quoted(&family.name);
        let value = match &family.kind {
            FamilyKind::Counter(value) => value.to_string(),
            FamilyKind::Gauge(value) => value.unwrap_or(0).to_string(),
            FamilyKind::Histogram(values) => {
                self.begin_histogram(out, mode);
                write_histogram(out, &name, values, mode, bounds.of(&family.name));
                return;
            }
        };
        self.element(out);
        let _ = write!(out, "{{\"name\":{name},\"value\":{value}}}");
    }

    /// The end of the object.
    pub fn close(&self, out: &mut String, mode: BucketMode) {
        if self.histograms > 0 {
            out.push_str(match mode {
                BucketMode::Summary | BucketMode::Detailed => "]}}",
                BucketMode::Cumulative | BucketMode::Disjoint => "]}",
            });
        }
        out.push_str("]}");
    }

    fn element(&mut self, out: &mut String) {
        if self.elements > 0 {
            out.push(',');
        }
        self.elements += 1;
    }

    fn begin_histogram(&mut self, out: &mut String, mode: BucketMode) {
        self.histograms += 1;
        if self.histograms > 1 {
            out.push(',');
            return;
        }
        self.element(out);
        let percentiles = PERCENTILES.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
        let _ = match mode {
            BucketMode::Summary => {
                write!(out, "{{\"histograms\":{{\"supported_quantiles\":[{percentiles}],\"computed_quantiles\":[")
            }
            BucketMode::Detailed => {
                write!(out, "{{\"histograms\":{{\"supported_percentiles\":[{percentiles}],\"details\":[")
            }
            BucketMode::Cumulative | BucketMode::Disjoint => write!(out, "{{\"histograms\":["),
        };
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn write_histogram(out: &mut String, name: &str, values: &Values, mode: BucketMode, bounds: &[f64]) {
    let counts = match mode {
        BucketMode::Summary => {
            let _ = write!(out, "{{\"name\":{name},\"values\":[{}]}}", quantiles(values));
            return;
        }
        BucketMode::Detailed => {
            let total =
                |(lower, width, count)| format!("{{\"lower_bound\":{lower},\"width\":{width},\"count\":{count}}}");
            let totals = buckets::recorded(values).map(total).collect::<Vec<_>>().join(",");
            let percentiles = quantiles(values);
            let _ = write!(
                out,
                "{{\"name\":{name},\"totals\":[{totals}],\"intervals\":[],\"percentiles\":[{percentiles}]}}"
            );
            return;
        }
        BucketMode::Cumulative => buckets::cumulative(values, bounds),
        BucketMode::Disjoint => buckets::disjoint(values, bounds),
    };
    let bucket =
        |(bound, count): (&f64, u64)| format!("{{\"upper_bound\":{bound},\"interval\":0,\"cumulative\":{count}}}");
    let buckets = bounds.iter().zip(counts).map(bucket).collect::<Vec<_>>().join(",");
    let _ = write!(out, "{{\"name\":{name},\"buckets\":[{buckets}]}}");
}

/// Intervals are not kept, so they are null.
fn quantiles(values: &Values) -> String {
    let quantile = |percent: &f64| match buckets::percentile(values, *percent) {
        Some(value) => format!("{{\"cumulative\":{value},\"interval\":null}}"),
        None => "{\"cumulative\":null,\"interval\":null}".to_owned(),
    };
    PERCENTILES.iter().map(quantile).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::super::buckets::tests::values;
    use super::*;

    fn object(families: &[Family], mode: BucketMode) -> serde_json::Value {
        let mut out = String::new();
        let mut writer = JsonWriter::default();
        writer.open(&mut out);
        writer.write_readout(&mut out, "cds.version_text", "a\"b");
        for family in families {
            writer.write(&mut out, family, mode, &Bounds::default());
        }
        writer.close(&mut out, mode);
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    fn families() -> Vec<Family> {
        let histogram = |recorded: &[u64]| FamilyKind::Histogram(values(recorded).into());
        let family = |name: &str, kind| Family { name: name.to_owned(), kind };
        vec![
            family("a", FamilyKind::Counter(3)),
            family("b", FamilyKind::Gauge(Some(-1))),
            family("h1", histogram(&[1, 2])),
            family("h2", histogram(&[])),
        ]
    }

    #[test]
    fn scalars_come_one_by_one_and_histograms_together() {
        let object = object(&families(), BucketMode::Summary);
        let stats = object["stats"].as_array().unwrap();
        assert_eq!(stats[0], serde_json::json!({"name": "cds.version_text", "value": "a\"b"}));
        assert_eq!(stats[1], serde_json::json!({"name": "a", "value": 3}));
        assert_eq!(stats[2]["value"], -1);
        let quantiles = &stats[3]["histograms"]["computed_quantiles"];
        assert_eq!((quantiles[0]["name"].as_str(), quantiles[1]["name"].as_str()), (Some("h1"), Some("h2")));
        assert_eq!(quantiles[0]["values"][9], serde_json::json!({"cumulative": 2, "interval": null}));
        assert!(quantiles[1]["values"][0]["cumulative"].is_null());
        assert_eq!(stats[3]["histograms"]["supported_quantiles"][8], 99.9);
    }

    #[test]
    fn buckets_and_details_are_whole_objects_too() {
        let cumulative = object(&families(), BucketMode::Cumulative);
        assert_eq!(cumulative["stats"][3]["histograms"][0]["buckets"][2]["cumulative"], 2);
        let disjoint = object(&families(), BucketMode::Disjoint);
        assert_eq!(disjoint["stats"][3]["histograms"][0]["buckets"][2]["cumulative"], 1);
        let detailed = object(&families(), BucketMode::Detailed);
        assert_eq!(detailed["stats"][3]["histograms"]["details"][0]["totals"][1]["lower_bound"], 2);
        assert_eq!(object(&[], BucketMode::Summary)["stats"].as_array().unwrap().len(), 1);
    }
}
