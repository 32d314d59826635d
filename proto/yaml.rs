//! YAML text to a JSON value. Owns what YAML has and JSON has not: merge keys, tags, keys that are no strings, documents.
//!
//! A mapping key tagged `!ignore` is left out, as Envoy does: people keep anchors under such keys.

use serde::Deserialize;
use serde_json::{Map, Value};
use serde_norway::Value as Yaml;

use crate::json::{JsonError, Problem};

/// Reads the only document of `text`.
pub(crate) fn to_json_value(text: &str) -> Result<Value, JsonError> {
    let mut documents = serde_norway::Deserializer::from_str(text);
    let mut yaml = match documents.next() {
        Some(document) => Yaml::deserialize(document).map_err(syntax_error)?,
        None => Yaml::Null,
    };
    for document in documents {
        // A closing `---` opens an empty document.
        if !Yaml::deserialize(document).map_err(syntax_error)?.is_null() {
            return Err(JsonError::SeveralDocuments);
        }
    }
    yaml.apply_merge().map_err(syntax_error)?;
    convert(yaml, &mut String::new())
}

fn syntax_error(error: serde_norway::Error) -> JsonError {
    let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
    JsonError::Syntax { format: "YAML", line, column, reason: error.to_string() }
}

fn convert(yaml: Yaml, path: &mut String) -> Result<Value, JsonError> {
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(value) => Value::Bool(value),
        Yaml::String(value) => Value::String(value),
        Yaml::Number(value) => number(&value),
        Yaml::Sequence(items) => {
            let mut converted = Vec::with_capacity(items.len());
            for (index, item) in items.into_iter().enumerate() {
                converted.push(at(path, &format!("[{index}]"), |path| convert(item, path))?);
            }
            Value::Array(converted)
        }
        Yaml::Mapping(members) => {
            let mut object = Map::new();
            for (key, value) in members {
                let key = match key {
                    Yaml::Tagged(tagged) if tagged.tag == "ignore" => continue,
                    Yaml::String(key) => key,
                    Yaml::Number(key) => key.to_string(),
                    Yaml::Bool(key) => key.to_string(),
                    _ => return Err(JsonError::from(Problem::new(path, "a mapping key that is no plain scalar"))),
                };
                let value = at(path, &format!(".{key}"), |path| convert(value, path))?;
                object.insert(key, value);
            }
            Value::Object(object)
        }
        Yaml::Tagged(tagged) => convert(tagged.value, path)?,
    })
}

/// JSON has no number for infinities and NaN; protobuf's JSON writes them as these strings.
fn number(number: &serde_norway::Number) -> Value {
    let float = number.as_f64().unwrap_or_default();
    if let Some(value) = number.as_u64() {
        Value::from(value)
    } else if let Some(value) = number.as_i64() {
        Value::from(value)
    } else if float.is_nan() {
        Value::from("NaN")
    } else if float.is_infinite() {
        Value::from(if float > 0.0 { "Infinity" } else { "-Infinity" })
    } else {
        Value::from(float)
    }
}

/// Runs `inner` with `segment` added to the path.
fn at<T>(path: &mut String, segment: &str, inner: impl FnOnce(&mut String) -> T) -> T {
    let length = path.len();
    path.push_str(if length == 0 { segment.trim_start_matches('.') } else { segment });
    let result = inner(path);
    path.truncate(length);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn anchors_merge_keys_and_ignored_keys_disappear() {
        let text = "!ignore base: &base\n  a: 1\n  b: 2\nuse:\n  <<: *base\n  b: 3\nlist: [*base]\n";
        assert_eq!(to_json_value(text).unwrap(), json!({"use": {"a": 1, "b": 3}, "list": [{"a": 1, "b": 2}]}));
    }

    #[test]
    fn scalars_keep_their_kind() {
        let text = "a: 1s\nb: 0x10\nc: 1.5\nd: true\ne: ~\nf: '7'\ng: .inf\n200: ok\n";
        let expected =
            json!({"a": "1s", "b": 16, "c": 1.5, "d": true, "e": null, "f": "7", "g": "Infinity", "200": "ok"});
        assert_eq!(to_json_value(text).unwrap(), expected);
    }

    #[test]
    fn one_document_is_enough() {
        assert!(matches!(to_json_value("a: 1\n---\nb: 2\n"), Err(JsonError::SeveralDocuments)));
        assert_eq!(to_json_value("---\na: 1\n---\n").unwrap(), json!({"a": 1}));
        assert_eq!(to_json_value("").unwrap(), Value::Null);
    }

    #[test]
    fn a_syntax_error_says_where() {
        let error = to_json_value("a:\n  - b\n c: [").unwrap_err();
        assert!(matches!(error, JsonError::Syntax { format: "YAML", line: 3.., .. }), "{error:?}");
    }
}
