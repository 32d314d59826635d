//! Labels whose values are those of expressions (`stats.MetricConfig.dimensions`).
//!
//! Owns what these expressions see beside a stream's own attributes: both workloads and our node. Never parses expressions.

use std::borrow::Cow;

use outrigger_config::istio::StandardMetrics;
use outrigger_policy::cel::{Attributes, Object, Value, evaluate};
use serde_json::Value as Json;

use super::super::peer::Told;
use super::super::workload::Workload;
use crate::accesslog::{Facts, attributes};

/// The values of all expressions of a filter, in order; `unknown` for those that have none.
pub fn values(
    settings: &StandardMetrics,
    facts: &Facts<'_>,
    workload: &Workload,
    downstream: Option<&Told>,
    upstream: Option<&Told>,
) -> Vec<String> {
    let seen = Seen { facts, workload, downstream, upstream };
    let value = |expression| {
        let mut text = Vec::new();
        match evaluate(expression, &seen) {
            Ok(value) => attributes::write_text(&value, &mut text),
            Err(_) => return "unknown".to_owned(),
        };
        String::from_utf8_lossy(&text).into_owned()
    };
    settings.dimensions.iter().map(|dimension| value(&dimension.expression)).collect()
}

struct Seen<'a> {
    facts: &'a Facts<'a>,
    workload: &'a Workload,
    downstream: Option<&'a Told>,
    upstream: Option<&'a Told>,
}

impl Seen<'_> {
    fn peer(&self, name: &str) -> Option<Value<'_>> {
        let told = match name {
            "downstream_peer" => self.downstream,
            "upstream_peer" => self.upstream,
            _ => None,
        };
        told.map(|told| borrowed(&told.fields))
    }
}

impl Attributes for Seen<'_> {
    fn root(&self, name: &str) -> Option<Value<'_>> {
        match name {
            "node" => Some(borrowed(self.workload.node())),
            _ => self.peer(name).or_else(|| self.facts.root(name)),
        }
    }

    fn field(&self, object: Object, name: &str) -> Option<Value<'_>> {
        let peer = if object == Object::FilterState { self.peer(name) } else { None };
        peer.or_else(|| self.facts.field(object, name))
    }

    fn size(&self, object: Object) -> usize {
        self.facts.size(object)
    }
}

/// As [`Value::of_json`], without copies of texts.
fn borrowed(json: &Json) -> Value<'_> {
    match json {
        Json::String(text) => Value::String(Cow::Borrowed(text)),
        Json::Object(entries) => {
            Value::Map(entries.iter().map(|(key, value)| (Value::text(key.as_str()), borrowed(value))).collect())
        }
        Json::Array(values) => Value::List(values.iter().map(borrowed).collect()),
        other => Value::of_json(other),
    }
}
