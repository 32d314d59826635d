//! Which method a request calls, and what its path and its query say.
//!
//! Owns the parts of a path, escapes, and the names of parameters. Never reads a body.

use std::collections::BTreeMap;

use outrigger_config::http::filters::transcoder::{
    End, Field, HttpBodyPath, MessageId, PathError, Transcoder, TranscodingRule, Unescaping, UnknownParameters,
    Variable,
};

use super::weave::Bindings;

/// A request that calls a method.
#[derive(Clone, Debug)]
pub struct Call<'t> {
    /// The rule that it follows.
    pub rule: &'t TranscodingRule,
    /// The place of the rule.
    pub place: usize,
    /// What path and query say.
    pub bindings: Bindings,
    /// Parameters that are no fields, as far as they are wanted: names with values.
    pub captured: Captured,
}

/// Names with values.
pub type Captured = BTreeMap<String, Vec<String>>;

/// Why a request calls nothing.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoCall {
    /// No rule is for it.
    #[error("Could not resolve {path} to a method.")]
    Unknown {
        /// Without its query.
        path: String,
    },
    /// It says something of a field that is not there.
    #[error("{0}")]
    Parameter(#[from] PathError),
}

/// Finds what a request with this method, and this path with query, calls.
pub fn find<'t>(transcoder: &'t Transcoder, method: &str, target: &str) -> Result<Call<'t>, NoCall> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (segments, verb) = parts(transcoder, path);
    let found = transcoder.paths.find(&segments, method, verb);
    let rule = found.and_then(|place| Some((place, transcoder.rules.get(place)?)));
    let Some((place, rule)) = rule else { return Err(NoCall::Unknown { path: path.to_owned() }) };
    let mut call = Call { rule, place, bindings: Bindings::default(), captured: Captured::new() };
    for variable in &rule.variables {
        let names: Vec<&str> = variable.field.iter().map(|name| &**name).collect();
        bind(transcoder, &mut call, &names, variable_value(transcoder, variable, &segments))?;
    }
    for parameter in query.split('&') {
        let Some((name, value)) = parameter.split_once('=').filter(|(name, _)| !name.is_empty()) else { continue };
        if transcoder.ignored_parameters.contains(name) {
            continue;
        }
        let names: Vec<&str> = name.split('.').collect();
        let value = unescape(value, Unescaping::Everything, transcoder.unescape_plus);
        bind(transcoder, &mut call, &names, value)?;
    }
    Ok(call)
}

/// The segments of a path, and its verb.
fn parts<'p>(transcoder: &Transcoder, path: &'p str) -> (Vec<&'p str>, &'p str) {
    let (path, verb) = match path.rsplit_once(':') {
        Some((before, verb)) if !verb.contains('/') && (transcoder.any_verb || transcoder.paths.is_verb(verb)) => {
            (before, verb)
        }
        _ => (path, ""),
    };
    let mut segments: Vec<&str> = match path.strip_prefix('/') {
        Some(rest) => rest.split('/').collect(),
        None => Vec::new(),
    };
    while segments.last().is_some_and(|segment| segment.is_empty()) {
        segments.pop();
    }
    (segments, verb)
}

fn variable_value(transcoder: &Transcoder, variable: &Variable, segments: &[&str]) -> String {
    let (end, is_one) = match variable.end {
        End::At(end) => (end, end - variable.start <= 1),
        End::FromEnd(count) => (segments.len().saturating_sub(count), false),
    };
    let unescaping = if is_one { Unescaping::Everything } else { transcoder.unescaping };
    let bound = segments.get(variable.start..end).unwrap_or_default();
    let values: Vec<String> = bound.iter().map(|segment| unescape(segment, unescaping, false)).collect();
    values.join("/")
}

fn bind(transcoder: &Transcoder, call: &mut Call<'_>, names: &[&str], value: String) -> Result<(), NoCall> {
    let method = &call.rule.method;
    let path = match fields(transcoder, method.input, names) {
        Ok(path) => path,
        Err(error) => match transcoder.unknown_parameters {
            UnknownParameters::NoCall => return Err(error.into()),
            UnknownParameters::Ignore => return Ok(()),
            UnknownParameters::Capture => {
                call.captured.entry(names.join(".")).or_default().push(value);
                return Ok(());
            }
        },
    };
    // What is not read as JSON cannot be changed by parameters.
    if !method.raw_input.as_ref().is_some_and(|raw| is_inside(raw, &path)) {
        call.bindings.bind(&path, value);
    }
    Ok(())
}

/// Follows a path of names, which may be escaped.
fn fields<'t>(transcoder: &'t Transcoder, message: MessageId, names: &[&str]) -> Result<Vec<&'t Field>, PathError> {
    let found = transcoder.schema.path(message, names.iter().copied());
    if found.is_ok() || !names.iter().any(|name| name.contains('%')) {
        return found;
    }
    let names: Vec<String> = names.iter().map(|name| unescape(name, Unescaping::Everything, false)).collect();
    transcoder.schema.path(message, names.iter().map(String::as_str)).or(found)
}

fn is_inside(raw: &HttpBodyPath, path: &[&Field]) -> bool {
    path.len() >= raw.0.len() && raw.0.iter().zip(path).all(|(number, field)| *number == field.number)
}

/// Text without its escapes. Bytes that are no text are replaced.
fn unescape(text: &str, unescaping: Unescaping, plus: bool) -> String {
    let is_plain = |byte: u8| byte != b'%' && (byte != b'+' || !plus);
    if text.bytes().all(is_plain) {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match escaped(&bytes[at..]).filter(|byte| is_unescaped(*byte, unescaping)) {
            Some(byte) => {
                plain.push(byte);
                at += 3;
            }
            None => {
                plain.push(if plus && *byte == b'+' { b' ' } else { *byte });
                at += 1;
            }
        }
    }
    match String::from_utf8(plain) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    }
}

fn escaped(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

fn is_unescaped(byte: u8, unescaping: Unescaping) -> bool {
    match unescaping {
        Unescaping::Everything => true,
        Unescaping::ExceptSlash => byte != b'/',
        // RFC 6570 section 1.5.
        Unescaping::ExceptReserved => !b"!#$&'()*+,/:;=?@[]".contains(&byte),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escapes_stay_where_they_are_wanted() {
        let given = "%2f%23%20%2523+%zz%";
        for (unescaping, plain) in [
            (Unescaping::ExceptReserved, "%2f%23 %23+%zz%"),
            (Unescaping::ExceptSlash, "%2f# %23+%zz%"),
            (Unescaping::Everything, "/# %23+%zz%"),
        ] {
            assert_eq!(unescape(given, unescaping, false), plain);
        }
        assert_eq!(unescape("a+b%2Bc", Unescaping::Everything, true), "a b+c");
        assert_eq!(unescape("%ff", Unescaping::Everything, false), "\u{fffd}");
    }

    proptest! {
        #[test]
        fn what_is_escaped_is_unescaped(text in "\\PC{0,20}") {
            let escaped: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(unescape(&escaped, Unescaping::Everything, false), text);
        }
    }
}
