//! Reading what endpoints report of their load (ORCA, `xds.data.orca.v3.OrcaLoadReport`).
//!
//! Owns the three forms of the report (text, JSON, protobuf), the weight that follows from one, and the metrics of it that
//! somebody names. Never keeps a report.

use std::collections::HashSet;

use outrigger_config::cluster::{ReportOptions, ReportedMetric};
use serde_json::Value;

/// The header or trailer that holds a report as text, JSON or base64, as its first word says.
pub const HEADER: &str = "endpoint-load-metrics";
/// The header or trailer that holds a report as base64.
pub const BINARY_HEADER: &str = "endpoint-load-metrics-bin";

/// Why a report is not understood.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LoadReportError {
    /// The first word of the header.
    #[error("unknown format, expected TEXT, JSON or BIN")]
    Format,
    /// Text that is not `name:value` with a finite number, or has a name twice, or one that there is not.
    #[error("not a list of metrics with finite numbers")]
    Text,
    /// JSON of another form.
    #[error("not a load report in JSON")]
    Json,
    /// Bytes that are no message.
    #[error("not an encoded load report")]
    Binary,
}

/// What counts of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadReport {
    cpu_utilization: f64,
    application_utilization: f64,
    rps_fractional: f64,
    eps: f64,
    /// The greatest of the metrics that the options name.
    named: f64,
}

impl LoadReport {
    /// The value of `endpoint-load-metrics`.
    ///
    /// # Errors
    /// If it is not understood; then nothing of it counts.
    pub fn parse(value: &[u8], options: &ReportOptions) -> Result<Self, LoadReportError> {
        let mut reader = Reader { options, report: Self::default() };
        read(value, &mut reader)?;
        Ok(reader.report)
    }

    /// The value of `endpoint-load-metrics-bin`: base64, with or without padding.
    ///
    /// # Errors
    /// If it is not understood; then nothing of it counts.
    pub fn parse_binary(value: &[u8], options: &ReportOptions) -> Result<Self, LoadReportError> {
        let mut reader = Reader { options, report: Self::default() };
        read_binary(value, &mut reader)?;
        Ok(reader.report)
    }

    /// An encoded `xds.data.orca.v3.OrcaLoadReport`.
    ///
    /// # Errors
    /// If it is none; then nothing of it counts.
    pub fn parse_message(bytes: &[u8], options: &ReportOptions) -> Result<Self, LoadReportError> {
        let mut reader = Reader { options, report: Self::default() };
        message(bytes, &mut reader).ok_or(LoadReportError::Binary)?;
        Ok(reader.report)
    }

    /// Requests per second for the utilization, which errors add to. `None` without requests or utilization.
    pub fn weight(&self, options: &ReportOptions) -> Option<f64> {
        let qps = self.rps_fractional;
        if !(qps > 0.0 && qps.is_finite()) {
            return None;
        }
        let utilization = [self.named, self.application_utilization].into_iter().find(|value| *value > 0.0);
        let errors = self.eps.max(0.0) / qps * options.error_utilization_penalty;
        let weight = qps / (utilization.unwrap_or(self.cpu_utilization) + errors);
        (weight > 0.0 && weight.is_finite()).then_some(weight)
    }
}

#[derive(Clone, Copy)]
enum Form {
    Text,
    Json,
    Binary,
}

/// The maps of the message, by name in snake and camel case, and by number.
const MAPS: [(&str, &str, u32); 3] =
    [("request_cost", "requestCost", 4), ("utilization", "utilization", 5), ("named_metrics", "namedMetrics", 8)];

/// Its numbers. `rps` (3) is not fractional, deprecated, and counts for nothing.
const FIELDS: [(&str, &str, u32); 5] = [
    ("cpu_utilization", "cpuUtilization", 1),
    ("mem_utilization", "memUtilization", 2),
    ("rps_fractional", "rpsFractional", 6),
    ("eps", "eps", 7),
    ("application_utilization", "applicationUtilization", 9),
];

/// The metrics that `wanted` names, in a value of `endpoint-load-metrics`, by their full names. A field that the report
/// does not have is 0 there.
///
/// # Errors
/// If the report is not understood; then nothing of it counts.
pub fn metrics(value: &[u8], wanted: &[ReportedMetric]) -> Result<Vec<(Box<str>, f64)>, LoadReportError> {
    let mut named = Named::new(wanted);
    read(value, &mut named)?;
    Ok(named.found)
}

/// The same in a value of `endpoint-load-metrics-bin`.
///
/// # Errors
/// If the report is not understood; then nothing of it counts.
pub fn metrics_binary(value: &[u8], wanted: &[ReportedMetric]) -> Result<Vec<(Box<str>, f64)>, LoadReportError> {
    let mut named = Named::new(wanted);
    read_binary(value, &mut named)?;
    Ok(named.found)
}

/// Takes what a report holds.
trait Sink {
    fn field(&mut self, name: &str, value: f64);
    fn entry(&mut self, map: &str, key: &str, value: f64);
}

/// Collects metrics by name.
struct Named<'a> {
    wanted: &'a [ReportedMetric],
    found: Vec<(Box<str>, f64)>,
}

impl<'a> Named<'a> {
    fn new(wanted: &'a [ReportedMetric]) -> Self {
        let known = |metric: &ReportedMetric| match metric {
            ReportedMetric::Field(name) if FIELDS.iter().any(|(known, ..)| *known == &**name) => {
                Some((Box::from(&**name), 0.0))
            }
            _ => None,
        };
        Self { wanted, found: wanted.iter().filter_map(known).collect() }
    }
}

impl Sink for Named<'_> {
    fn field(&mut self, name: &str, value: f64) {
        if let Some((_, found)) = self.found.iter_mut().find(|(known, _)| **known == *name) {
            *found = value;
        }
    }

    fn entry(&mut self, map: &str, key: &str, value: f64) {
        let is_it = |metric: &ReportedMetric| match metric {
            ReportedMetric::Entry(wanted, name) => **wanted == *map && (**name == *key || **name == *"*"),
            ReportedMetric::Field(_) => false,
        };
        if self.wanted.iter().any(is_it) {
            self.found.push((format!("{map}.{key}").into(), value));
        }
    }
}

struct Reader<'a> {
    options: &'a ReportOptions,
    report: LoadReport,
}

impl Sink for Reader<'_> {
    fn field(&mut self, name: &str, value: f64) {
        match name {
            "cpu_utilization" => self.report.cpu_utilization = value,
            "application_utilization" => self.report.application_utilization = value,
            "rps_fractional" => self.report.rps_fractional = value,
            "eps" => self.report.eps = value,
            _ => {}
        }
        let is_it = |metric: &ReportedMetric| matches!(metric, ReportedMetric::Field(wanted) if **wanted == *name);
        if self.options.metrics.iter().any(is_it) {
            self.report.named = self.report.named.max(value);
        }
    }

    fn entry(&mut self, map: &str, key: &str, value: f64) {
        let is_it = |metric: &ReportedMetric| match metric {
            ReportedMetric::Entry(wanted, name) => **wanted == *map && (**name == *key || **name == *"*"),
            ReportedMetric::Field(_) => false,
        };
        if self.options.metrics.iter().any(is_it) {
            self.report.named = self.report.named.max(value);
        }
    }
}

fn read(value: &[u8], sink: &mut impl Sink) -> Result<(), LoadReportError> {
    let forms = [(&b"TEXT "[..], Form::Text), (b"JSON ", Form::Json), (b"BIN ", Form::Binary)];
    let found = forms.into_iter().find_map(|(word, form)| Some((form, value.strip_prefix(word)?)));
    match found {
        None => Err(LoadReportError::Format),
        Some((Form::Text, rest)) => text(rest, sink).ok_or(LoadReportError::Text),
        Some((Form::Json, rest)) => json(rest, sink).ok_or(LoadReportError::Json),
        Some((Form::Binary, rest)) => read_binary(rest, sink),
    }
}

fn read_binary(value: &[u8], sink: &mut impl Sink) -> Result<(), LoadReportError> {
    let bytes = base64(value).filter(|bytes| !bytes.is_empty()).ok_or(LoadReportError::Binary)?;
    message(&bytes, sink).ok_or(LoadReportError::Binary)
}

/// `name:value` separated by commas.
fn text(text: &[u8], sink: &mut impl Sink) -> Option<()> {
    let text = std::str::from_utf8(text).ok()?;
    let mut seen = HashSet::new();
    for metric in text.split(',').map(str::trim).filter(|metric| !metric.is_empty()) {
        let (name, value) = metric.split_once(':')?;
        let (name, value) = (name.trim(), value.trim().parse::<f64>().ok().filter(|value| value.is_finite())?);
        if name.is_empty() || !seen.insert(name) {
            return None;
        }
        match name.strip_prefix("named_metrics.") {
            Some("") => return None,
            Some(key) => sink.entry("named_metrics", key, value),
            None => {
                FIELDS.iter().find(|(known, ..)| *known == name)?;
                sink.field(name, value);
            }
        }
    }
    Some(())
}

fn json(text: &[u8], sink: &mut impl Sink) -> Option<()> {
    let Ok(Value::Object(object)) = serde_json::from_slice(text) else { return None };
    for (name, value) in &object {
        if value.is_null() {
            continue;
        }
        let is_it = |(snake, camel, _): &&(&str, &str, u32)| name == snake || name == camel;
        if let Some((field, ..)) = FIELDS.iter().find(is_it) {
            sink.field(field, json_number(value)?);
        } else if let Some((map, ..)) = MAPS.iter().find(is_it) {
            for (key, value) in value.as_object()? {
                sink.entry(map, key, json_number(value)?);
            }
        }
    }
    Some(())
}

/// The message in protobuf.
fn message(bytes: &[u8], sink: &mut impl Sink) -> Option<()> {
    let mut bytes = bytes;
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (number, Wire::Fixed(bits)) => {
                if let Some((name, ..)) = FIELDS.iter().find(|(.., known)| *known == number) {
                    sink.field(name, f64::from_bits(bits));
                }
            }
            (number, Wire::Bytes(entry)) => {
                if let Some((map, ..)) = MAPS.iter().find(|(.., known)| *known == number) {
                    let (key, value) = entry_of(entry)?;
                    sink.entry(map, key, value);
                }
            }
            (_, Wire::Other) => {}
        }
    }
    Some(())
}

/// A number, which JSON may also write as a string.
fn json_number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// A value of a field.
enum Wire<'a> {
    Fixed(u64),
    Bytes(&'a [u8]),
    Other,
}

fn entry_of(bytes: &[u8]) -> Option<(&str, f64)> {
    let (mut bytes, mut key, mut value) = (bytes, "", 0.0);
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1, Wire::Bytes(text)) => key = std::str::from_utf8(text).ok()?,
            (2, Wire::Fixed(bits)) => value = f64::from_bits(bits),
            _ => {}
        }
    }
    Some((key, value))
}

/// Takes a field: its number and value.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u32, Wire<'a>)> {
    let tag = u32::try_from(varint(bytes)?).ok()?;
    let value = match tag & 7 {
        0 => varint(bytes).map(|_| Wire::Other)?,
        1 => Wire::Fixed(u64::from_le_bytes(take(bytes, 8)?.try_into().ok()?)),
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Wire::Bytes(take(bytes, length)?)
        }
        5 => take(bytes, 4).map(|_| Wire::Other)?,
        _ => return None,
    };
    (tag >> 3 > 0).then_some((tag >> 3, value))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The bytes that base64 stands for: the standard alphabet, padded or not.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let padding = text.iter().rev().take(2).take_while(|byte| **byte == b'=').count();
    let text = &text[..text.len() - padding];
    if text.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut bits = 0_u32;
        for byte in group {
            bits = bits << 6 | u32::from(sextet(*byte)?);
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

fn sextet(byte: u8) -> Option<u8> {
    Some(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn options(metrics: &[ReportedMetric]) -> ReportOptions {
        ReportOptions {
            blackout_period: Duration::ZERO,
            weight_expiration_period: Duration::from_secs(180),
            weight_update_period: Duration::from_secs(1),
            error_utilization_penalty: 1.0,
            metrics: metrics.to_vec(),
            out_of_band: None,
        }
    }

    fn weight(value: &str, metrics: &[ReportedMetric]) -> Option<f64> {
        let options = options(metrics);
        LoadReport::parse(value.as_bytes(), &options).unwrap().weight(&options)
    }

    fn named(key: &str) -> ReportedMetric {
        ReportedMetric::Entry("named_metrics".into(), key.into())
    }

    #[test]
    fn a_weight_is_what_a_host_could_do_at_full_utilization() {
        assert_eq!(weight("TEXT rps_fractional:100,application_utilization:0.5,cpu_utilization:0.1", &[]), Some(200.0));
        assert_eq!(weight("TEXT rps_fractional:100, cpu_utilization:0.25", &[]), Some(400.0));
        // A tenth of all requests fail: 0.4 and 0.1.
        assert_eq!(weight("TEXT rps_fractional:100,cpu_utilization:0.4,eps:10", &[]), Some(200.0));
        assert_eq!(weight("TEXT cpu_utilization:0.4", &[]), None);
        assert_eq!(weight("TEXT rps_fractional:100", &[]), None);
        assert_eq!(weight("TEXT rps_fractional:-1,cpu_utilization:0.4", &[]), None);
    }

    #[test]
    fn named_metrics_come_first_and_the_greatest_of_them_counts() {
        let text = "TEXT rps_fractional:100,application_utilization:0.2,named_metrics.a:0.5,named_metrics.b:0.8,\
                    named_metrics.c:0.9";
        assert_eq!(weight(text, &[named("a"), named("b"), named("x")]), Some(125.0));
        assert_eq!(weight(text, &[named("x")]), Some(500.0));
        assert_eq!(weight(text, &[named("*")]).map(f64::round), Some(111.0));
        let memory = "TEXT rps_fractional:100,application_utilization:0.2,mem_utilization:0.5";
        assert_eq!(weight(memory, &[ReportedMetric::Field("mem_utilization".into())]), Some(200.0));
    }

    #[test]
    fn json_says_the_same_in_either_case_of_names() {
        for json in [
            r#"JSON {"rps_fractional": 100, "cpu_utilization": "0.5", "named_metrics": {"a": 0.8}, "rps": "3"}"#,
            r#"JSON {"rpsFractional": 1e2, "cpuUtilization": 0.5, "namedMetrics": {"a": "0.8"}, "unknown": []}"#,
        ] {
            assert_eq!((weight(json, &[]), weight(json, &[named("a")])), (Some(200.0), Some(125.0)), "{json}");
        }
    }

    #[test]
    fn binary_reports_come_as_grpc_sends_them() {
        // cpu_utilization 0.5, rps_fractional 100, named_metrics a: 0.8, and the older rps.
        let mut bytes = vec![0x09];
        bytes.extend(0.5_f64.to_le_bytes());
        bytes.extend([0x18, 0x96, 0x01, 0x31]);
        bytes.extend(100.0_f64.to_le_bytes());
        bytes.extend([0x42, 12, 0x0a, 1, b'a', 0x11]);
        bytes.extend(0.8_f64.to_le_bytes());
        let text = encode(&bytes);
        let options = options(&[named("a")]);
        for text in [text.trim_end_matches('=').to_owned(), text] {
            let report = LoadReport::parse_binary(text.as_bytes(), &options).unwrap();
            assert_eq!(report.weight(&options), Some(125.0));
            assert_eq!(LoadReport::parse(format!("BIN {text}").as_bytes(), &options), Ok(report));
        }
        for cut in 1..bytes.len() {
            let _ = LoadReport::parse_binary(encode(&bytes[..cut]).as_bytes(), &options);
        }
    }

    fn encode(bytes: &[u8]) -> String {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let group = |group: &[u8]| {
            let bits = group.iter().chain(&[0; 2]).take(3).fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
            (0..4)
                .map(|place| match place <= group.len() {
                    true => ALPHABET[bits >> (18 - 6 * place) & 63] as char,
                    false => '=',
                })
                .collect::<String>()
        };
        bytes.chunks(3).map(group).collect()
    }

    #[test]
    fn what_is_not_understood_counts_for_nothing() {
        use LoadReportError::{Binary, Format, Json, Text};
        for (value, error) in [
            ("cpu_utilization:1", Format),
            ("", Format),
            ("TEXT cpu_utilization", Text),
            ("TEXT cpu_utilization:x", Text),
            ("TEXT cpu_utilization:inf", Text),
            ("TEXT cpu_utilization:1,cpu_utilization:1", Text),
            ("TEXT cpu:1", Text),
            ("TEXT named_metrics.:1", Text),
            ("TEXT :1", Text),
            ("JSON [1]", Json),
            ("JSON {\"cpu_utilization\": true}", Json),
            ("JSON {\"named_metrics\": 1}", Json),
            ("BIN ", Binary),
            ("BIN A", Binary),
            ("BIN ?AAA", Binary),
            ("BIN CQ==", Binary),
        ] {
            assert_eq!(LoadReport::parse(value.as_bytes(), &options(&[])), Err(error), "{value}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_weights_are_usable(value in proptest::collection::vec(any::<u8>(), 0..80)) {
            let options = options(&[named("*")]);
            for prefix in ["TEXT ", "JSON ", "BIN ", ""] {
                let value = [prefix.as_bytes(), &value].concat();
                if let Ok(report) = LoadReport::parse(&value, &options) {
                    prop_assert!(report.weight(&options).is_none_or(|weight| weight > 0.0 && weight.is_finite()));
                }
            }
        }

        #[test]
        fn base64_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert_eq!(base64(encode(&bytes).as_bytes()), Some(bytes));
        }
    }

    #[test]
    fn metrics_are_found_by_their_full_names_in_every_form() {
        let field = |name: &str| ReportedMetric::Field(name.into());
        let entry = |map: &str, key: &str| ReportedMetric::Entry(map.into(), key.into());
        let wanted = [field("cpu_utilization"), field("eps"), entry("named_metrics", "*"), entry("request_cost", "a")];
        let found = |value: &str| {
            let mut found = metrics(value.as_bytes(), &wanted).unwrap();
            found.sort_by(|a, b| a.0.cmp(&b.0));
            found.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        let text = "TEXT cpu_utilization:0.5,mem_utilization:1,named_metrics.x:2,named_metrics.y:3";
        assert_eq!(found(text), ["cpu_utilization=0.5", "eps=0", "named_metrics.x=2", "named_metrics.y=3"]);
        let json = r#"JSON {"eps": 4, "requestCost": {"a": 1, "b": 2}}"#;
        assert_eq!(found(json), ["cpu_utilization=0", "eps=4", "request_cost.a=1"]);
        assert_eq!(metrics(b"TEXT nothing", &wanted), Err(LoadReportError::Text));
        assert_eq!(metrics_binary(b"", &wanted), Err(LoadReportError::Binary));
    }
}
