//! Stats as lines of text: `name: value`.
//!
//! Owns the form of a line. Never chooses stats.

use std::fmt::{self, Write};

use super::buckets::{self, Bounds, BucketMode, PERCENTILES, Values};
use super::{Family, FamilyKind};

/// Writes the line of one stat.
pub fn write(out: &mut String, family: &Family, mode: BucketMode, bounds: &Bounds) {
    let name = &family.name;
    // Writing to a string cannot fail.
    let _ = match &family.kind {
        FamilyKind::Counter(value) => writeln!(out, "{name}: {value}"),
        FamilyKind::Gauge(value) => writeln!(out, "{name}: {}", value.unwrap_or(0)),
        FamilyKind::Histogram(values) => write_histogram(out, name, values, mode, bounds),
    };
}

/// Writes the line of a text readout.
pub fn write_readout(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "{name}: \"{value}\"");
}

fn write_histogram(out: &mut String, name: &str, values: &Values, mode: BucketMode, bounds: &Bounds) -> fmt::Result {
    match mode {
        BucketMode::Summary if values.is_empty() => writeln!(out, "{name}: No recorded values"),
        BucketMode::Summary => {
            write!(out, "{name}:")?;
            write_summary(out, values)?;
            writeln!(out)
        }
        BucketMode::Cumulative => {
            write_buckets(out, name, bounds.of(name), &buckets::cumulative(values, bounds.of(name)))
        }
        BucketMode::Disjoint => write_buckets(out, name, bounds.of(name), &buckets::disjoint(values, bounds.of(name))),
        BucketMode::Detailed => {
            write!(out, "{name}:\n  totals=")?;
            for (index, (lower, width, count)) in buckets::recorded(values).enumerate() {
                let comma = if index == 0 { "" } else { ", " };
                write!(out, "{comma}{lower},{width}:{count}")?;
            }
            write!(out, "\n  intervals=\n  summary=")?;
            let start = out.len();
            write_summary(out, values)?;
            // The first blank separates the name from the summary, and there is none here.
            if out[start..].starts_with(' ') {
                out.remove(start);
            }
            writeln!(out)
        }
    }
}

/// Pairs of the value since the last flush and of all time. Intervals are not kept, so the first is `nan`.
fn write_summary(out: &mut String, values: &Values) -> fmt::Result {
    for percent in PERCENTILES {
        match buckets::percentile(values, *percent) {
            Some(value) => write!(out, " P{percent}(nan,{value})")?,
            None => write!(out, " P{percent}(nan,nan)")?,
        }
    }
    Ok(())
}

fn write_buckets(out: &mut String, name: &str, bounds: &[f64], counts: &[u64]) -> fmt::Result {
    write!(out, "{name}:")?;
    for (bound, count) in bounds.iter().zip(counts) {
        write!(out, " B{bound}(0,{count})")?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::super::buckets::tests::values;
    use super::*;

    fn line(kind: FamilyKind, mode: BucketMode) -> String {
        let mut out = String::new();
        write(&mut out, &Family { name: "a.b".to_owned(), kind }, mode, &Bounds::default());
        out
    }

    fn histogram(recorded: &[u64]) -> FamilyKind {
        FamilyKind::Histogram(values(recorded).into())
    }

    #[test]
    fn each_kind_has_its_line() {
        assert_eq!(line(FamilyKind::Counter(7), BucketMode::Summary), "a.b: 7\n");
        assert_eq!(line(FamilyKind::Gauge(Some(-7)), BucketMode::Summary), "a.b: -7\n");
        assert_eq!(line(histogram(&[]), BucketMode::Summary), "a.b: No recorded values\n");
        let mut readout = String::new();
        write_readout(&mut readout, "a.version_text", "v7");
        assert_eq!(readout, "a.version_text: \"v7\"\n");
    }

    #[test]
    fn a_histogram_shows_quantiles_or_buckets() {
        assert!(line(histogram(&[3]), BucketMode::Summary).starts_with("a.b: P0(nan,3) P25(nan,3) "));
        assert!(line(histogram(&[3]), BucketMode::Summary).ends_with(" P99.9(nan,3) P100(nan,3)\n"));
        assert!(line(histogram(&[0, 3]), BucketMode::Cumulative).starts_with("a.b: B0.5(0,1) B1(0,1) B5(0,2) "));
        assert!(line(histogram(&[0, 3]), BucketMode::Disjoint).starts_with("a.b: B0.5(0,1) B1(0,0) B5(0,1) "));
        let detailed = line(histogram(&[0, 3]), BucketMode::Detailed);
        assert!(detailed.starts_with("a.b:\n  totals=0,0:1, 3,0:1\n  intervals=\n  summary=P0(nan,0) "), "{detailed}");
    }
}
