//! Claims of valid tokens in the forms in which others get them.
//!
//! Owns the text of a claim in a header, and lists made of words. Never decides where a claim goes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outrigger_config::metadata::MetadataMap;
use serde_json::Value;

/// The claim at `path` as the value of a header: text and numbers as they are, lists and objects as base64 of JSON.
/// `None` for what is absent or empty, and for what cannot stand in a header.
pub(super) fn header_value(payload: &MetadataMap, path: &[String]) -> Option<String> {
    let (last, outer) = path.split_last()?;
    let object = outer.iter().try_fold(payload, |object, name| object.get(name)?.as_object())?;
    let text = match object.get(last)? {
        Value::String(text) => text.clone(),
        Value::Number(number) => number_text(number.as_f64()?),
        Value::Bool(flag) => flag.to_string(),
        value @ (Value::Array(_) | Value::Object(_)) => STANDARD.encode(value.to_string()),
        Value::Null => return None,
    };
    // A claim must not be able to end the header and begin another one.
    let fits = !text.is_empty() && !text.bytes().any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f);
    fits.then_some(text)
}

/// Whole numbers without a fraction, others with six digits of it.
fn number_text(number: f64) -> String {
    // The first double that is too large for the type.
    if number < 0.0 || number >= u64::MAX as f64 || number.fract() != 0.0 {
        return format!("{number:.6}");
    }
    format!("{}", number as u64)
}

/// A payload in which `claims`, as far as they are text, are lists of their words.
pub(super) fn with_lists(payload: &MetadataMap, claims: &[String]) -> MetadataMap {
    let mut payload = payload.clone();
    for claim in claims {
        if let Some(value) = payload.get_mut(claim)
            && let Some(text) = value.as_str()
        {
            let words: Vec<Value> = text.split(' ').filter(|word| !word.is_empty()).map(Value::from).collect();
            if !words.is_empty() {
                *value = Value::Array(words);
            }
        }
    }
    payload
}

/// `token` with the padding that base64 has elsewhere.
pub(super) fn padded(token: &str) -> String {
    let mut text = token.to_owned();
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    text
}
