//! Metadata (`google.protobuf.Struct`) as JSON values, the form in which filters and logs share it.
//!
//! Owns the translation and how two values are merged. Never knows what a value means.

use std::collections::BTreeMap;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::google::protobuf as pb;
use outrigger_api::pb::google::protobuf::value::Kind;
use prost::Message as _;
use serde_json::{Map, Number, Value};

use crate::decide::decide;
use crate::rejection::FieldPath;

/// A namespace of metadata.
pub type MetadataMap = Map<String, Value>;

/// Metadata by namespace. Source: `envoy.config.core.v3.Metadata`.
pub type Namespaces = BTreeMap<String, MetadataMap>;

/// Reads metadata.
pub(crate) fn by_namespace(at: &FieldPath<'_>, wire: core::Metadata) -> Namespaces {
    decide!(wire, at, core::Metadata as "envoy.config.core.v3.Metadata" {
        implemented: filter_metadata;
        no_effect: typed_filter_metadata = "nothing reads it but the way to endpoints, where it names an HTTP proxy";
        unsupported: ;
    });
    filter_metadata.into_iter().map(|(name, wire)| (name, object(wire))).collect()
}

/// All metadata that is kept as it came; none if it is malformed.
pub fn encoded(encoded: &[u8]) -> Namespaces {
    let read = |wire| by_namespace(&FieldPath::resource("metadata", ""), wire);
    core::Metadata::decode(encoded).map(read).unwrap_or_default()
}

/// A namespace of metadata that is kept as it came (`envoy.config.core.v3.Metadata`).
pub fn encoded_namespace(encoded: &[u8], namespace: &str) -> Option<MetadataMap> {
    let mut metadata = core::Metadata::decode(encoded).ok()?;
    metadata.filter_metadata.remove(namespace).map(object)
}

/// A struct as an object; its keys in order.
pub fn object(wire: pb::Struct) -> MetadataMap {
    let mut fields: Vec<_> = wire.fields.into_iter().collect();
    fields.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    fields.into_iter().map(|(key, wire)| (key, value(wire))).collect()
}

/// A value.
pub(crate) fn value(wire: pb::Value) -> Value {
    match wire.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => Value::Bool(flag),
        Some(Kind::NumberValue(wire)) => number(wire).unwrap_or(Value::Null),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::ListValue(list)) => Value::Array(list.values.into_iter().map(value).collect()),
        Some(Kind::StructValue(wire)) => Value::Object(object(wire)),
    }
}

/// A number; whole ones without a fraction. `None` for what is not finite.
pub fn number(value: f64) -> Option<Value> {
    /// Up to here every whole number is exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        return Some(Value::Number(Number::from(value as i64)));
    }
    Number::from_f64(value).map(Value::Number)
}

/// A serialised `google.protobuf.Value`; `None` if it is none.
pub fn from_protobuf(bytes: &[u8]) -> Option<Value> {
    pb::Value::decode(bytes).ok().map(value)
}

/// Puts `with` into `into`: objects are merged, lists continued, everything else is replaced.
pub fn merge(into: &mut MetadataMap, with: &MetadataMap) {
    for (key, with) in with {
        match into.get_mut(key) {
            Some(value) => merge_value(value, with),
            None => drop(into.insert(key.clone(), with.clone())),
        }
    }
}

fn merge_value(into: &mut Value, with: &Value) {
    match (into, with) {
        (Value::Object(into), Value::Object(with)) => merge(into, with),
        (Value::Array(into), Value::Array(with)) => into.extend(with.iter().cloned()),
        (into, with) => *into = with.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wire(kind: Kind) -> pb::Value {
        pb::Value { kind: Some(kind) }
    }

    #[test]
    fn values_become_json() {
        let list = pb::ListValue { values: vec![wire(Kind::NumberValue(1.0)), wire(Kind::NumberValue(1.5))] };
        let fields = [
            ("b".to_owned(), wire(Kind::ListValue(list))),
            ("a".to_owned(), wire(Kind::NullValue(0))),
            ("c".to_owned(), wire(Kind::NumberValue(f64::NAN))),
        ];
        let got = object(pb::Struct { fields: fields.into() });
        assert_eq!(Value::Object(got).to_string(), r#"{"a":null,"b":[1,1.5],"c":null}"#);
        assert_eq!(from_protobuf(b"\x1a\x03abc"), Some(json!("abc")));
        assert_eq!(from_protobuf(b"\x1a\x09abc"), None);
    }

    #[test]
    fn merging_goes_into_objects_and_continues_lists() {
        let Value::Object(mut into) = json!({"k": 1, "l": [1], "s": {"x": 1}, "t": "text"}) else { unreachable!() };
        let Value::Object(with) = json!({"k": [2], "l": [2], "s": {"y": 2}, "t": null, "n": true}) else {
            unreachable!()
        };
        merge(&mut into, &with);
        let expected = json!({"k": [2], "l": [1, 2], "s": {"x": 1, "y": 2}, "t": null, "n": true});
        assert_eq!(Value::Object(into), expected);
    }
}
