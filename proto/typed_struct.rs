//! Turning `TypedStruct`s, in which control planes send what they have no type for, into the types that they name.

use prost::Message as _;
use serde_json::{Map, Value};

use crate::any::type_name;
use crate::json::{self, JsonError, ParseOptions, Parsed, Problem, UnknownFields};
use crate::pb::google::protobuf::value::Kind;
use crate::pb::google::protobuf::{Any, Struct, Value as ProtoValue};
use crate::schema::{Message, Schema, kind, shape};
use crate::wire::{self, Fields, Malformed, Raw};
use crate::xds::type_v3::TypedStruct;

const TYPED_STRUCTS: [&str; 2] = ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"];

/// How many `TypedStruct`s may stand directly inside one another.
const MAX_NESTED: usize = 8;

/// Deepest nesting that `flatten_typed_structs` goes to; prost's decoder has the same limit.
const MAX_DEPTH: usize = 100;

/// The named type of a `TypedStruct`, encoded; `None` if `any` is something else.
///
/// Unknown fields are problems. The type must be in the schema: otherwise the error is `JsonError::UnknownType`.
pub fn unwrap_typed_struct(any: &Any, schema: &Schema) -> Result<Option<Any>, JsonError> {
    let unwrapped = schema.unwrap_typed_struct(any, UnknownFields::Reject)?;
    Ok(unwrapped.map(|parsed| parsed.message))
}

/// `any` with every `TypedStruct` in it, at any depth, replaced by the type that it names. `TypedStruct`s of types that
/// the schema does not have stay as they are.
pub fn flatten_typed_structs(any: &Any, schema: &Schema) -> Result<Any, JsonError> {
    Ok(flatten_any(any, schema, MAX_DEPTH)?.unwrap_or_else(|| any.clone()))
}

impl Schema {
    /// The named type of a `TypedStruct`, encoded, with the paths of unknown fields; `None` if `any` is something else.
    pub fn unwrap_typed_struct(
        &self,
        any: &Any,
        options: impl Into<ParseOptions>,
    ) -> Result<Option<Parsed<Any>>, JsonError> {
        let options = options.into();
        let mut current = any.clone();
        let mut unknown_fields = Vec::new();
        for nested in 0..=MAX_NESTED {
            if !TYPED_STRUCTS.contains(&type_name(&current.type_url)) {
                return Ok((nested > 0).then_some(Parsed { message: current, unknown_fields }));
            }
            // Both types have the same fields.
            let TypedStruct { type_url, value } = TypedStruct::decode(current.value.as_slice())
                .map_err(|error| JsonError::malformed(type_name(&current.type_url), error))?;
            let message =
                Message::named(type_name(&type_url)).ok_or_else(|| JsonError::UnknownType(type_url.clone()))?;
            let mut value = Value::Object(object(value.unwrap_or_default()));
            // As in an `Any`: what has a JSON form of its own stands in `value`.
            if !matches!(message.shape(), shape::PLAIN | shape::STRUCT) {
                value = value.get_mut("value").map(Value::take).unwrap_or(value);
            }
            let parsed = json::read(message, &value, options)?;
            unknown_fields.extend(parsed.unknown_fields);
            current = Any { type_url, value: parsed.message };
        }
        Err(Problem::new("", "TypedStructs are nested too deeply").into())
    }
}

/// `None` if nothing changes.
fn flatten_any(any: &Any, schema: &Schema, depth: usize) -> Result<Option<Any>, JsonError> {
    let unwrapped = match schema.unwrap_typed_struct(any, UnknownFields::Reject) {
        Ok(parsed) => parsed.map(|parsed| parsed.message),
        Err(JsonError::UnknownType(_)) => None,
        Err(error) => return Err(error),
    };
    let current = unwrapped.as_ref().unwrap_or(any);
    let Some(message) = Message::named(type_name(&current.type_url)).filter(|message| message.reaches_any()) else {
        return Ok(unwrapped);
    };
    let value = flatten_message(message, &current.value, schema, depth)?;
    Ok(match value {
        Some(value) => Some(Any { type_url: current.type_url.clone(), value }),
        None => unwrapped,
    })
}

/// `None` if nothing changes.
fn flatten_message(
    message: Message,
    bytes: &[u8],
    schema: &Schema,
    depth: usize,
) -> Result<Option<Vec<u8>>, JsonError> {
    let malformed = |error: Malformed| JsonError::malformed(message.name(), error);
    let deeper = depth.checked_sub(1).ok_or_else(|| malformed(Malformed))?;
    if message.shape() == shape::ANY {
        let any = Any::decode(bytes).map_err(|error| JsonError::malformed(message.name(), error))?;
        return Ok(flatten_any(&any, schema, deeper)?.map(|any| any.encode_to_vec()));
    }
    let mut out = Vec::new();
    let mut changed = false;
    for field in Fields::of(bytes) {
        let (number, raw) = field.map_err(malformed)?;
        let inner = message.field_by_number(number).filter(|field| field.kind() == kind::MESSAGE);
        let inner = inner.and_then(|field| field.message()).filter(|inner| inner.reaches_any());
        let flattened = match (inner, raw) {
            (Some(inner), Raw::Bytes(bytes)) => flatten_message(inner, bytes, schema, deeper)?,
            _ => None,
        };
        changed |= flattened.is_some();
        wire::put_raw(&mut out, number, flattened.as_deref().map_or(raw, Raw::Bytes));
    }
    Ok(changed.then_some(out))
}

fn object(value: Struct) -> Map<String, Value> {
    value.fields.into_iter().map(|(key, value)| (key, json_value(value))).collect()
}

fn json_value(value: ProtoValue) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        // JSON has no infinities; protobuf's JSON takes these words for them.
        Some(Kind::NumberValue(number)) if !number.is_finite() => Value::from(if number.is_nan() {
            "NaN"
        } else if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }),
        Some(Kind::NumberValue(number)) => Value::from(number),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::BoolValue(value)) => Value::Bool(value),
        Some(Kind::StructValue(value)) => Value::Object(object(value)),
        Some(Kind::ListValue(list)) => Value::Array(list.values.into_iter().map(json_value).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::config::bootstrap::v3::Bootstrap;
    use crate::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
    use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
    use crate::{pack, unpack};
    use serde_json::json;

    fn any(value: Value) -> Any {
        Schema::load().parse_value(&value, UnknownFields::Reject).unwrap().message
    }

    fn rate_limit(typed_struct: &str) -> Any {
        any(json!({
            "@type": format!("type.googleapis.com/{typed_struct}"),
            "type_url": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "value": {
                "stat_prefix": "http_local_rate_limiter",
                "token_bucket": {"max_tokens": 100, "tokensPerFill": "100", "fill_interval": "60s"},
            },
        }))
    }

    #[test]
    fn both_kinds_of_typed_struct_become_the_named_type() {
        for name in TYPED_STRUCTS {
            let unwrapped = unwrap_typed_struct(&rate_limit(name), &Schema::load()).unwrap().unwrap();
            let limit: LocalRateLimit = unpack(&unwrapped).unwrap();
            let bucket = limit.token_bucket.unwrap();
            assert_eq!((limit.stat_prefix.as_str(), bucket.max_tokens), ("http_local_rate_limiter", 100));
            assert_eq!((bucket.tokens_per_fill.unwrap().value, bucket.fill_interval.unwrap().seconds), (100, 60));
        }
    }

    #[test]
    fn anything_else_is_left_to_the_caller() {
        assert!(unwrap_typed_struct(&pack(&Bootstrap::default()), &Schema::load()).unwrap().is_none());
        let unknown = any(json!({
            "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
            "type_url": "type.googleapis.com/mesh.Unheard",
            "value": {},
        }));
        let error = unwrap_typed_struct(&unknown, &Schema::load()).unwrap_err();
        assert_eq!(error.to_string(), "unknown message type type.googleapis.com/mesh.Unheard");
        assert_eq!(flatten_typed_structs(&unknown, &Schema::load()).unwrap(), unknown);
    }

    #[test]
    fn an_unknown_field_is_named() {
        let typed_struct = any(json!({
            "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
            "type_url": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "value": {"token_bucket": {"max_token": 1}},
        }));
        let error = unwrap_typed_struct(&typed_struct, &Schema::load()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "token_bucket.max_token: unknown field of envoy.type.v3.TokenBucket; did you mean max_tokens?"
        );
        let parsed = Schema::load().unwrap_typed_struct(&typed_struct, UnknownFields::Collect).unwrap().unwrap();
        assert_eq!(parsed.unknown_fields, ["token_bucket.max_token"]);
    }

    #[test]
    fn flattening_reaches_into_filters_of_filters() {
        let manager = HttpConnectionManager {
            stat_prefix: "in".into(),
            http_filters: vec![
                crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter {
                    name: "limit".into(),
                    config_type: Some(
                        crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType::TypedConfig(
                            rate_limit(TYPED_STRUCTS[1]),
                        ),
                    ),
                    ..Default::default()
                },
            ],
            ..Default::default()
        };
        let flat = flatten_typed_structs(&pack(&manager), &Schema::load()).unwrap();
        let shown = Schema::load().any_to_json(&flat, crate::Names::Proto).unwrap();
        assert_eq!(
            shown["http_filters"][0]["typed_config"]["@type"],
            "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
        );
    }
}
