//! The JSON to metadata filter: puts values of JSON bodies into dynamic metadata.
//!
//! Owns when a body is read and how a value becomes metadata. Which values do stands in the settings.

use std::sync::Arc;

use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{JsonRule, JsonRules, JsonToMetadata as Settings, JsonValue, MetadataPlace};
use outrigger_config::metadata::number;
use serde_json::Value;

use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::http::headers::HeaderId;
use crate::scope;
use crate::stream::StreamInfo;

scope! {
    /// Stats of one direction (`json_to_metadata.rq.*`, `json_to_metadata.resp.*`).
    pub struct JsonStats {
        invalid_json_body: Counter,
        mismatched_content_type: Counter,
        no_body: Counter,
        success: Counter,
    }
}

/// The filter.
pub struct JsonToMetadata {
    settings: Arc<Settings>,
    request: Arc<JsonStats>,
    response: Arc<JsonStats>,
}

impl JsonToMetadata {
    /// A filter with its stats.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        Self {
            settings: Arc::clone(settings),
            request: maker.worker.scope("json_to_metadata.rq."),
            response: maker.worker.scope("json_to_metadata.resp."),
        }
    }

    fn settings<'a, 'g: 'a>(&'a self, exchange: &Exchange<'_, '_, 'g>) -> &'a Settings {
        let of_route = exchange.route_configs().find_map(|config| match config {
            RouteFilterConfig::JsonToMetadata(settings) => Some(settings),
            _ => None,
        });
        of_route.unwrap_or(&self.settings)
    }
}

impl HttpFilter for JsonToMetadata {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Some(rules) = &self.settings(exchange).request else { return Verdict::Continue };
        let content_type = exchange.head().headers.get(HeaderId::ContentType);
        begin(rules, content_type, exchange.has_no_body(), exchange.info(), &self.request)
    }

    fn request_body(&self, exchange: &mut Exchange<'_, '_, '_>, body: &[u8]) -> Verdict {
        if let Some(rules) = &self.settings(exchange).request {
            take(rules, body, exchange.info(), &self.request);
        }
        Verdict::Continue
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Some(rules) = &self.settings(exchange).response else { return Verdict::Continue };
        let content_type = exchange.response().headers.get(HeaderId::ContentType);
        begin(rules, content_type, exchange.response_has_no_body(), exchange.info(), &self.response)
    }

    fn response_part(&self, exchange: &mut Exchange<'_, '_, '_>, body: &[u8]) -> Verdict {
        if let Some(rules) = &self.settings(exchange).response {
            take(rules, body, exchange.info(), &self.response);
        }
        Verdict::Continue
    }
}

/// Looks at the head of a message.
fn begin(
    rules: &JsonRules,
    content_type: Option<&[u8]>,
    has_no_body: bool,
    info: &StreamInfo,
    stats: &JsonStats,
) -> Verdict {
    if !is_json(rules, content_type.unwrap_or_default()) {
        stats.mismatched_content_type.increment();
        put_all(rules.rules.iter().filter_map(on_error).collect(), info);
        return Verdict::Continue;
    }
    if has_no_body {
        stats.no_body.increment();
        put_all(rules.rules.iter().filter_map(on_missing).collect(), info);
        return Verdict::Continue;
    }
    Verdict::Collect { limit_bytes: MOST_BYTES }
}

fn is_json(rules: &JsonRules, content_type: &[u8]) -> bool {
    if content_type.is_empty() {
        return rules.without_content_type;
    }
    let Ok(content_type) = std::str::from_utf8(content_type) else { return false };
    rules.content_types.iter().any(|known| known == content_type)
        || rules.content_type_regex.as_ref().is_some_and(|regex| regex.is_match(content_type))
}

/// Does what the rules say of a body.
fn take(rules: &JsonRules, body: &[u8], info: &StreamInfo, stats: &JsonStats) {
    if body.is_empty() {
        stats.no_body.increment();
        return put_all(rules.rules.iter().filter_map(on_missing).collect(), info);
    }
    let Some(root) = parse(body) else {
        stats.invalid_json_body.increment();
        return put_all(rules.rules.iter().filter_map(on_error).collect(), info);
    };
    stats.success.increment();
    put_all(rules.rules.iter().filter_map(|rule| told(rule, &root)).collect(), info);
}

/// What a rule has for metadata.
type Entry<'r> = (&'r MetadataPlace, Value);

/// What a rule makes of a body.
fn told<'r>(rule: &'r JsonRule, root: &Value) -> Option<Entry<'r>> {
    let found = rule.path.iter().try_fold(root, |value, key| value.get(key.as_str()));
    match (found, &rule.on_present) {
        // As in Envoy: an empty text is there, and says nothing.
        (Some(Value::String(text)), Some(entry)) if text.is_empty() && entry.value == JsonValue::Text => None,
        (Some(found), Some(entry)) => match converted(&entry.value, found) {
            Some(value) => Some((&entry.place, value)),
            None => on_missing(rule),
        },
        (Some(found), None) if is_scalar(found) => None,
        _ => on_missing(rule),
    }
}

/// JSON as Envoy takes it: whole numbers that are positive must fit into 63 bits.
fn parse(body: &[u8]) -> Option<Value> {
    let root = serde_json::from_slice(body).ok()?;
    fits(&root).then_some(root)
}

fn fits(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_u64().is_none_or(|number| i64::try_from(number).is_ok()),
        Value::Array(list) => list.iter().all(fits),
        Value::Object(object) => object.values().all(fits),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

fn is_scalar(value: &Value) -> bool {
    matches!(value, Value::Bool(_) | Value::Number(_) | Value::String(_))
}

/// What goes into metadata for a value that was found; `None` if it is not of the type that is wanted, or too long.
fn converted(wanted: &JsonValue, found: &Value) -> Option<Value> {
    match (wanted, found) {
        (JsonValue::Fixed(value), _) => Some(value.clone()),
        (JsonValue::AsFound, Value::Number(found)) => number(found.as_f64()?),
        (JsonValue::AsFound, Value::Bool(found)) => Some(Value::Bool(*found)),
        (JsonValue::AsFound, Value::String(found)) if found.len() <= MOST_TEXT_BYTES => {
            Some(Value::String(found.clone()))
        }
        (JsonValue::Text, Value::Bool(found)) => Some(Value::String(u8::from(*found).to_string())),
        (JsonValue::Text, Value::Number(found)) => Some(Value::String(match found.as_i64() {
            Some(whole) => whole.to_string(),
            None => format!("{:.6}", found.as_f64()?),
        })),
        (JsonValue::Text, Value::String(found)) if (1..=MOST_TEXT_BYTES).contains(&found.len()) => {
            Some(Value::String(found.clone()))
        }
        (JsonValue::Number, Value::Bool(found)) => Some(Value::from(u8::from(*found))),
        (JsonValue::Number, Value::Number(found)) => number(found.as_f64()?),
        (JsonValue::Number, Value::String(found)) => number(found.trim_ascii().parse().ok()?),
        _ => None,
    }
}

fn on_missing(rule: &JsonRule) -> Option<Entry<'_>> {
    rule.on_missing.as_ref().map(|entry| (&entry.place, entry.value.clone()))
}

fn on_error(rule: &JsonRule) -> Option<Entry<'_>> {
    rule.on_error.as_ref().map(|entry| (&entry.place, entry.value.clone()))
}

/// Sets metadata. What may be kept is what was there before, and not what another rule says.
fn put_all(mut entries: Vec<Entry<'_>>, info: &StreamInfo) {
    let mut metadata = info.dynamic_metadata.borrow_mut();
    entries.retain(|(place, _)| {
        let there = metadata.get(&*place.namespace).is_some_and(|known| known.contains_key(&place.key));
        !(place.keep && there)
    });
    for (place, value) in entries {
        metadata.entry(String::from(&*place.namespace)).or_default().insert(place.key.clone(), value);
    }
}

/// Longer bodies are refused, as those that filters hold.
const MOST_BYTES: usize = 1 << 20;
/// Longer texts are not put into metadata. Source: Envoy.
const MOST_TEXT_BYTES: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_become_what_is_wanted() {
        for (found, as_found, text, number) in [
            (json!(1), json!(1), json!("1"), json!(1)),
            (json!(1.5), json!(1.5), json!("1.500000"), json!(1.5)),
            (json!(true), json!(true), json!("1"), json!(1)),
            (json!("12"), json!("12"), json!("12"), json!(12)),
            (json!("x"), json!("x"), json!("x"), Value::Null),
            (json!(""), json!(""), Value::Null, Value::Null),
            (json!("inf"), json!("inf"), json!("inf"), Value::Null),
            (json!(null), Value::Null, Value::Null, Value::Null),
            (json!([1]), Value::Null, Value::Null, Value::Null),
        ] {
            let made = |wanted| converted(&wanted, &found).unwrap_or_default();
            let seen = [made(JsonValue::AsFound), made(JsonValue::Text), made(JsonValue::Number)];
            assert_eq!(seen, [as_found, text, number], "{found}");
        }
        let long = Value::String("y".repeat(MOST_TEXT_BYTES + 1));
        assert_eq!(converted(&JsonValue::AsFound, &long), None);
        assert_eq!(converted(&JsonValue::Fixed(json!(7)), &json!(null)), Some(json!(7)));
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for (body, good) in [
            (&b"{\"a\":1}"[..], true),
            (b"[1]", true),
            (b"null", true),
            (b"{\"a\":1} x", false),
            (b" ", false),
            (b"{\"a\":1e400}", false),
            (b"{\"a\":[12345678901234567890]}", false),
            (b"{\"a\":\"\xff\"}", false),
        ] {
            assert_eq!(parse(body).is_some(), good, "{}", String::from_utf8_lossy(body));
        }
    }
}
