//! JSON for people: one blank of indent per level, as in all answers of the admin port.
//!
//! Owns the layout, and lists whose elements are made one by one. Never knows what is written.

use std::collections::VecDeque;

use outrigger_api::{JsonStyle, Names, Schema};
use serde::Serialize;
use serde_json::Value;

/// Messages are shown under their names in the API, without what is secret.
pub const STYLE: JsonStyle = JsonStyle { names: Names::Proto, redact: true };

/// `value` with `depth` blanks before each line but the first.
pub fn indented(value: &impl Serialize, depth: usize) -> String {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    // Writing to memory cannot fail, and all keys are strings.
    if value.serialize(&mut serializer).is_err() {
        return "null".to_owned();
    }
    let text = String::from_utf8_lossy(&text);
    // Strings hold no raw line ends, so each is one of the layout.
    if depth == 0 { text.into_owned() } else { text.replace('\n', &format!("\n{}", " ".repeat(depth))) }
}

/// The JSON of a message.
pub fn message<M: prost::Message + prost::Name>(message: &M) -> Value {
    Schema::load().message_to_json(message, STYLE).unwrap_or(Value::Null)
}

/// The JSON of an encoded message.
pub fn packed<M: prost::Name>(bytes: &[u8]) -> Value {
    Schema::load().to_json(&M::type_url(), bytes, STYLE).unwrap_or(Value::Null)
}

/// A time, as protobuf's JSON shows it: to the millisecond.
pub fn timestamp(time: std::time::SystemTime) -> Value {
    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let timestamp = outrigger_api::pb::google::protobuf::Timestamp {
        seconds: since.as_secs() as i64,
        nanos: (since.subsec_millis() * 1_000_000) as i32,
    };
    message(&timestamp)
}

/// A member of an object that is written in pieces.
pub enum Member {
    /// A value, made when it is written.
    Value(&'static str, Box<dyn FnOnce() -> Value>),
    /// A list, left out if it is empty.
    List(&'static str, Box<dyn Iterator<Item = Value>>),
}

/// Writes an object whose members are `members`, at `depth`, in pieces.
pub struct ObjectWriter {
    depth: usize,
    members: VecDeque<Member>,
    list: Option<Box<dyn Iterator<Item = Value>>>,
    list_begun: bool,
    any_member: bool,
    finished: bool,
}

impl ObjectWriter {
    /// Nothing is written yet.
    pub fn new(depth: usize, members: Vec<Member>) -> Self {
        Self { depth, members: members.into(), list: None, list_begun: false, any_member: false, finished: false }
    }

    fn begin_member(&mut self, name: &str) -> String {
        let comma = if std::mem::replace(&mut self.any_member, true) { "," } else { "{" };
        format!("{comma}\n{}\"{name}\": ", " ".repeat(self.depth + 1))
    }

    fn next_of_list(&mut self, list: &mut dyn Iterator<Item = Value>) -> Option<String> {
        let comma = if std::mem::replace(&mut self.list_begun, true) { "," } else { "" };
        let inner = self.depth + 2;
        list.next().map(|value| format!("{comma}\n{}{}", " ".repeat(inner), indented(&value, inner)))
    }
}

impl Iterator for ObjectWriter {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if let Some(mut list) = self.list.take() {
            return Some(match self.next_of_list(&mut *list) {
                Some(text) => {
                    self.list = Some(list);
                    text
                }
                None => format!("\n{}]", " ".repeat(self.depth + 1)),
            });
        }
        while let Some(member) = self.members.pop_front() {
            match member {
                Member::Value(name, make) => {
                    let text = indented(&make(), self.depth + 1);
                    return Some(self.begin_member(name) + &text);
                }
                Member::List(name, mut values) => {
                    self.list_begun = false;
                    if let Some(first) = self.next_of_list(&mut *values) {
                        self.list = Some(values);
                        return Some(self.begin_member(name) + "[" + &first);
                    }
                }
            }
        }
        if std::mem::replace(&mut self.finished, true) {
            return None;
        }
        Some(if self.any_member { format!("\n{}}}", " ".repeat(self.depth)) } else { "{}".to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pieces_are_the_same_text_as_the_whole() {
        let list = |values: Vec<Value>| Box::new(values.into_iter());
        let members = vec![
            Member::Value("a", Box::new(|| json!({"x": [1, 2]}))),
            Member::List("b", list(vec![json!({"y": "line\nend"}), json!(2)])),
            Member::List("c", list(vec![])),
        ];
        let whole = json!({"a": {"x": [1, 2]}, "b": [{"y": "line\nend"}, 2]});
        assert_eq!(ObjectWriter::new(0, members).collect::<String>(), indented(&whole, 0));
        assert_eq!(ObjectWriter::new(0, Vec::new()).collect::<String>(), "{}");
        let nested = vec![Member::List("b", list(vec![json!({"z": 1})]))];
        assert_eq!(ObjectWriter::new(2, nested).collect::<String>(), indented(&json!({"b": [{"z": 1}]}), 2));
    }

    #[test]
    fn times_have_milliseconds() {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_micros(1_795_226_025_737_999);
        assert_eq!(timestamp(time), json!("2026-11-21T01:53:45.737Z"));
    }
}
