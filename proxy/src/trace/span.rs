//! A finished span, as workers hand it over.
//!
//! Owns plain facts. Never formats them: that is for the control thread.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_policy::trace::Identity;

/// A finished span.
#[derive(Debug)]
pub struct Span {
    /// Ids and the decision.
    pub identity: Identity,
    /// `tracestate` of the caller.
    pub trace_state: Option<Box<str>>,
    /// Whose side it tells of.
    pub kind: Kind,
    /// Its name.
    pub name: Box<str>,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// What is known of it.
    pub tags: Tags,
    /// It counts as failed.
    pub failed: bool,
    /// What happened when; for verbose tracing.
    pub events: Vec<(SystemTime, &'static str)>,
}

impl Span {
    /// Bytes of it as OTLP has it, roughly.
    pub fn bytes(&self) -> usize {
        let tags: usize = self.tags.iter().map(|(name, value)| name.len() + value.length() + FRAME).sum();
        let events: usize = self.events.iter().map(|(_, name)| name.len() + 2 * FRAME).sum();
        IDENTITY + self.name.len() + self.trace_state.as_ref().map_or(0, |state| state.len()) + tags + events
    }
}

/// Bytes of ids, times and kind.
const IDENTITY: usize = 64;
/// Bytes around a name and its value.
const FRAME: usize = 8;

/// Whose side a span tells of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Of the one who answers.
    Server,
    /// Of the one who asks.
    Client,
    /// A part of another span of this process.
    Internal,
}

/// Named values; a name stands once.
#[derive(Debug, Default)]
pub struct Tags(Vec<(Name, Value)>);

/// The name of a tag.
#[derive(Clone, Debug)]
pub enum Name {
    /// One of ours.
    Known(&'static str),
    /// Of the configuration.
    Own(Arc<str>),
}

/// The value of a tag.
#[derive(Clone, Debug)]
pub enum Value {
    /// One of ours.
    Known(&'static str),
    /// Of the configuration.
    Shared(Arc<str>),
    /// Of the request.
    Text(Box<str>),
    /// In decimal.
    Number(u64),
}

impl Name {
    /// As text.
    pub fn as_str(&self) -> &str {
        match self {
            Name::Known(name) => name,
            Name::Own(name) => name,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Known(text) => f.write_str(text),
            Value::Shared(text) => f.write_str(text),
            Value::Text(text) => f.write_str(text),
            Value::Number(number) => write!(f, "{number}"),
        }
    }
}

impl Value {
    /// Bytes of its text.
    fn length(&self) -> usize {
        match self {
            Value::Known(text) => text.len(),
            Value::Shared(text) => text.len(),
            Value::Text(text) => text.len(),
            Value::Number(number) => number.checked_ilog10().unwrap_or(0) as usize + 1,
        }
    }

    /// Text of a peer; what is not UTF-8 shows as U+FFFD.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Value::Text(String::from_utf8_lossy(bytes).into())
    }
}

impl Tags {
    /// Sets a tag of ours.
    pub fn set(&mut self, name: &'static str, value: Value) {
        self.set_named(Name::Known(name), value);
    }

    /// Sets a tag; one of the same name is replaced.
    pub fn set_named(&mut self, name: Name, value: Value) {
        match self.0.iter_mut().find(|(known, _)| known.as_str() == name.as_str()) {
            Some((_, known)) => *known = value,
            None => self.0.push((name, value)),
        }
    }

    /// All of them, in the order in which they were first set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_stands_once_with_its_last_value() {
        let mut tags = Tags::default();
        tags.set("component", Value::Known("proxy"));
        tags.set("http.status_code", Value::Number(200));
        tags.set_named(Name::Own("component".into()), Value::of_bytes(b"mine\xff"));
        let shown: Vec<_> = tags.iter().map(|(name, value)| (name.to_owned(), value.to_string())).collect();
        let lengths: Vec<_> = tags.iter().map(|(_, value)| value.length()).collect();
        assert_eq!(lengths, [7, 3]);
        assert_eq!((Value::Number(0).length(), Value::Number(10).length()), (1, 2));
        assert_eq!(shown, [("component".into(), "mine\u{fffd}".to_owned()), ("http.status_code".into(), "200".into())]);
    }
}
