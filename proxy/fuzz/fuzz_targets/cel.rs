//! Expressions: read, and evaluated about a request. A zero byte ends the expression; what follows is a value in JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_config::cel::Expression;
use outrigger_policy::cel::{Attributes, Object, Value, evaluate, holds};

struct Asked(serde_json::Value);

impl Attributes for Asked {
    fn root(&self, name: &str) -> Option<Value<'_>> {
        match name {
            "request" => Some(Value::Object(Object::Request)),
            "metadata" => Some(Value::of_json(&self.0)),
            _ => None,
        }
    }

    fn field(&self, object: Object, name: &str) -> Option<Value<'_>> {
        match (object, name) {
            (Object::Request, "headers") => Some(Value::Object(Object::RequestHeaders)),
            (Object::Request, "path") | (Object::RequestHeaders, ":path") => Some(Value::text("/a/b?c=d")),
            (Object::Request, "size") => Some(Value::Int(10)),
            (Object::Request, "time") => Some(Value::Timestamp(1_700_000_000_000_000_000)),
            (Object::Request, "duration") => Some(Value::Duration(1_500_000_000)),
            _ => None,
        }
    }

    fn size(&self, _: Object) -> usize {
        1
    }
}

fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let Ok(text) = std::str::from_utf8(&data[..end]) else { return };
    let Ok(expression) = Expression::parse(text) else { return };
    let value = serde_json::from_slice(data.get(end + 1..).unwrap_or_default()).unwrap_or_default();
    let asked = Asked(value);
    let result = evaluate(&expression, &asked);
    assert_eq!(holds(&expression, &asked), result == Ok(Value::Bool(true)));
    // A number that is none is unlike itself.
    let shown = format!("{result:?}");
    assert!(shown.contains("NaN") || evaluate(&expression, &asked) == result, "{text}: {shown}");
});
