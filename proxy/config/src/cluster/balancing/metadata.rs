//! What endpoints and routes say of themselves for balancing (metadata of the `envoy.lb` namespace).
//!
//! Owns values that can be compared and hashed, kept small: an endpoint without such metadata keeps nothing. Never
//! reads metadata of other namespaces.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::google::protobuf::value::Kind;
use outrigger_api::pb::google::protobuf::{Struct, Value};

/// A value of `google.protobuf.Value`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum LbValue {
    /// `null`, or nothing.
    Null,
    /// A boolean.
    Bool(bool),
    /// The bits of a number that is not -0.
    Number(u64),
    /// A string.
    String(Arc<str>),
    /// A list.
    List(Box<[LbValue]>),
    /// An object.
    Struct(LbMetadata),
}

/// Keys with values, ordered by key.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LbMetadata {
    pairs: Box<[(Arc<str>, LbValue)]>,
}

impl LbMetadata {
    /// Of these pairs; the last one counts where a key is there twice.
    pub fn new(pairs: impl IntoIterator<Item = (Arc<str>, LbValue)>) -> Self {
        let mut pairs: Vec<(Arc<str>, LbValue)> = pairs.into_iter().collect();
        pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
        pairs.reverse();
        pairs.dedup_by(|(a, _), (b, _)| a == b);
        pairs.reverse();
        Self { pairs: pairs.into() }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&LbValue> {
        let at = self.pairs.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        Some(&self.pairs[at].1)
    }

    /// All pairs, ordered by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Arc<str>, &LbValue)> + Clone {
        self.pairs.iter().map(|(key, value)| (key, value))
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// These pairs and those of `over`, which win.
    pub fn merged(&self, over: &Self) -> Self {
        Self::new(self.pairs.iter().chain(&over.pairs).cloned())
    }

    /// These pairs without those that `keep` does not hold.
    pub fn filtered(&self, keep: impl Fn(&str) -> bool) -> Self {
        Self { pairs: self.pairs.iter().filter(|(key, _)| keep(key)).cloned().collect() }
    }
}

impl From<Struct> for LbMetadata {
    fn from(wire: Struct) -> Self {
        Self::new(wire.fields.into_iter().map(|(key, value)| (key.into(), value.into())))
    }
}

impl From<Value> for LbValue {
    fn from(wire: Value) -> Self {
        match wire.kind {
            None | Some(Kind::NullValue(_)) => Self::Null,
            Some(Kind::BoolValue(value)) => Self::Bool(value),
            // Adding 0 makes -0 to 0.
            Some(Kind::NumberValue(value)) => Self::Number((value + 0.0).to_bits()),
            Some(Kind::StringValue(value)) => Self::String(value.into()),
            Some(Kind::ListValue(list)) => Self::List(list.values.into_iter().map(Self::from).collect()),
            Some(Kind::StructValue(value)) => Self::Struct(value.into()),
        }
    }
}

impl From<&serde_json::Map<String, serde_json::Value>> for LbMetadata {
    fn from(json: &serde_json::Map<String, serde_json::Value>) -> Self {
        Self::new(json.iter().map(|(key, value)| (key.as_str().into(), value.into())))
    }
}

impl From<&serde_json::Value> for LbValue {
    fn from(json: &serde_json::Value) -> Self {
        use serde_json::Value;
        match json {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(value) => Self::Number((value.as_f64().unwrap_or_default() + 0.0).to_bits()),
            Value::String(value) => Self::String(value.as_str().into()),
            Value::Array(items) => Self::List(items.iter().map(Self::from).collect()),
            Value::Object(fields) => Self::Struct(fields.into()),
        }
    }
}

/// Reads the metadata for balancing; `None` if there is none.
pub(crate) fn lb_metadata(wire: Option<core::Metadata>) -> Option<LbMetadata> {
    let core::Metadata { mut filter_metadata, typed_filter_metadata: _ } = wire?;
    let metadata = LbMetadata::from(filter_metadata.remove("envoy.lb")?);
    (!metadata.is_empty()).then_some(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> LbValue {
        LbValue::String(value.into())
    }

    #[test]
    fn the_last_of_equal_keys_counts() {
        let first = LbMetadata::new([("b".into(), text("1")), ("a".into(), text("2"))]);
        let merged = first.merged(&LbMetadata::new([("b".into(), text("3")), ("c".into(), LbValue::Null)]));
        let keys: Vec<&str> = merged.iter().map(|(key, _)| &**key).collect();
        assert_eq!(keys, ["a", "b", "c"]);
        assert_eq!(merged.get("b"), Some(&text("3")));
        assert_eq!(merged.filtered(|key| key != "b").get("b"), None);
    }

    #[test]
    fn negative_zero_is_zero() {
        let value = |number| LbValue::from(Value { kind: Some(Kind::NumberValue(number)) });
        assert_eq!(value(-0.0), value(0.0));
        assert_ne!(value(1.0), value(2.0));
    }
}
