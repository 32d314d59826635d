//! Values of expressions.
//!
//! Owns their types and when two are the same. Never evaluates.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value as Json;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// `null`
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number without a sign.
    Uint(u64),
    /// A number.
    Double(f64),
    /// A text.
    String(Cow<'a, str>),
    /// Bytes.
    Bytes(Cow<'a, [u8]>),
    /// Nanoseconds.
    Duration(i128),
    /// Nanoseconds since 1970.
    Timestamp(i128),
    /// A list.
    List(Vec<Value<'a>>),
    /// A map in the order of its entries.
    Map(Vec<(Value<'a>, Value<'a>)>),
    /// A part of the attributes, looked into when asked.
    Object(Object),
    /// The name of a type.
    Type(&'static str),
}

/// Attributes with fields or keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Object {
    /// `request`
    Request,
    /// `request.headers`
    RequestHeaders,
    /// `response`
    Response,
    /// `response.headers`
    ResponseHeaders,
    /// `response.trailers`
    ResponseTrailers,
    /// `connection`
    Connection,
    /// `source`
    Source,
    /// `destination`
    Destination,
    /// `upstream`
    Upstream,
    /// `metadata`: dynamic metadata
    Metadata,
    /// `metadata.filter_metadata`
    FilterMetadata,
    /// `filter_state`
    FilterState,
    /// `upstream_filter_state`
    UpstreamFilterState,
    /// `xds`
    Xds,
}

impl<'a> Value<'a> {
    /// A text.
    pub fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Value::String(text.into())
    }

    /// A value of metadata. All its numbers are doubles.
    pub fn of_json(json: &Json) -> Value<'static> {
        match json {
            Json::Null => Value::Null,
            Json::Bool(flag) => Value::Bool(*flag),
            Json::Number(number) => Value::Double(number.as_f64().unwrap_or_default()),
            Json::String(text) => Value::String(text.clone().into()),
            Json::Array(values) => Value::List(values.iter().map(Value::of_json).collect()),
            Json::Object(values) => Value::Map(
                values.iter().map(|(key, value)| (Value::String(key.clone().into()), Value::of_json(value))).collect(),
            ),
        }
    }

    /// The name of its type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::List(_) => "list",
            Value::Map(_) | Value::Object(_) => "map",
            Value::Type(_) => "type",
        }
    }

    /// Whether both are the same. Numbers of different types are compared by what they are; other values of different types
    /// are not the same.
    pub fn is(&self, other: &Value<'_>) -> bool {
        match (self, other) {
            (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.is(b)),
            (Value::Map(a), Value::Map(b)) => {
                a.len() == b.len()
                    && a.iter()
                        .all(|(key, value)| b.iter().any(|(other_key, other)| key.is(other_key) && value.is(other)))
            }
            (Value::Null, Value::Null) => true,
            (Value::Type(a), Value::Type(b)) => a == b,
            (Value::Object(a), Value::Object(b)) => a == b,
            _ => self.order(other) == Some(Ordering::Equal),
        }
    }

    /// Which is less; `None` if they have no order.
    pub fn order(&self, other: &Value<'_>) -> Option<Ordering> {
        match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
            (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
            (Value::Int(a), Value::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Value::Uint(a), Value::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
            (Value::Double(a), Value::Int(b)) => a.partial_cmp(&(*b as f64)),
            (Value::Double(a), Value::Uint(b)) => a.partial_cmp(&(*b as f64)),
            (Value::Int(a), Value::Double(b)) => (*a as f64).partial_cmp(b),
            (Value::Uint(a), Value::Double(b)) => (*a as f64).partial_cmp(b),
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (Value::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
            (Value::Duration(a), Value::Duration(b)) | (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }
}
