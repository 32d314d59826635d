//! JSON as messages whose JSON form is their own (`google.protobuf.Timestamp`, `Any`, `Struct` and others).
//!
//! Owns how each of them is written. Source: "ProtoJSON Format". Never knows other messages.

use std::collections::HashSet;

use outrigger_config::http::filters::transcoder::{MessageId, WellKnown};

use super::encode::{Encoder, Entries};
use super::json::Json;
use super::scalar::{shown, to_double};
use super::time::{Parts, has_zone, read_duration, read_timestamp};
use super::wire::{WireType, put_bytes, put_tag, put_varint};

impl Encoder<'_> {
    /// The bytes of the message `id`. What is wrong with a value that stands for a whole message is for the caller to tell.
    pub(super) fn body(&mut self, id: MessageId, value: Json, out: &mut Vec<u8>) -> Result<(), String> {
        match (self.schema.message(id).known, value) {
            (WellKnown::Any, Json::Object(entries)) => self.any(entries, out),
            (WellKnown::Struct, Json::Object(entries)) => self.structure(entries, out),
            (WellKnown::Value, value) => self.struct_value(value, out),
            (WellKnown::ListValue, Json::List(values)) => self.list_value(values, out),
            (_, Json::Object(entries)) => self.fields(id, entries, out),
            (_, Json::Null) => {}
            (WellKnown::Timestamp, value) => {
                let text = text_of("timestamp", &value)?;
                if !has_zone(text) {
                    return Err(NO_ZONE.to_owned());
                }
                let parts = read_timestamp(text).ok_or("Invalid time format: Failed to parse input")?;
                put_parts(parts, out);
            }
            (WellKnown::Duration, value) => put_parts(read_duration(text_of("duration", &value)?)?, out),
            (WellKnown::FieldMask, value) => {
                for path in text_of("field mask", &value)?.split(',').filter(|path| !path.is_empty()) {
                    put_bytes(out, 1, snake_case(path).as_bytes());
                }
            }
            (WellKnown::Wrapper, value) => {
                if let Some(field) = self.schema.message(id).numbered(1) {
                    self.inside(field, |encoder| encoder.scalar(field, &value, out));
                }
            }
            (WellKnown::No | WellKnown::Any | WellKnown::Struct | WellKnown::ListValue, value) => {
                return Err(format!("expected an object, value is {}", shown(&value)));
            }
        }
        Ok(())
    }

    fn structure(&mut self, entries: Entries, out: &mut Vec<u8>) {
        let mut keys: HashSet<String> = HashSet::new();
        for (key, value) in entries {
            if keys.contains(&key) {
                self.invalid_name(&format!("Repeated map key: '{key}' is already set."));
                continue;
            }
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, key.as_bytes());
            let mut inner = Vec::new();
            self.struct_value(value, &mut inner);
            put_bytes(&mut entry, 2, &inner);
            put_bytes(out, 1, &entry);
            keys.insert(key);
        }
    }

    fn list_value(&mut self, values: Vec<Json>, out: &mut Vec<u8>) {
        for value in values {
            let mut inner = Vec::new();
            self.struct_value(value, &mut inner);
            put_bytes(out, 1, &inner);
        }
    }

    fn struct_value(&mut self, value: Json, out: &mut Vec<u8>) {
        let mut inner = Vec::new();
        match value {
            Json::Object(entries) => {
                self.structure(entries, &mut inner);
                put_bytes(out, 5, &inner);
            }
            Json::List(values) => {
                self.list_value(values, &mut inner);
                put_bytes(out, 6, &inner);
            }
            Json::Null => put_number(out, 1, 0),
            Json::Bool(value) => put_number(out, 4, u64::from(value)),
            Json::String(text) => put_bytes(out, 3, text.as_bytes()),
            number @ (Json::Int(_) | Json::Uint(_) | Json::Double(_)) => {
                put_tag(out, 2, WireType::Fixed64);
                out.extend_from_slice(&to_double(&number).unwrap_or_default().to_le_bytes());
            }
        }
    }

    fn any(&mut self, entries: Entries, out: &mut Vec<u8>) {
        if entries.is_empty() {
            return;
        }
        let Some(place) = entries.iter().position(|(key, _)| key == "@type") else {
            let root = self.root;
            return self.invalid_value("Any", &format!("Missing @type for any field in {root}"));
        };
        let mut entries = entries;
        let (_, named) = entries.remove(place);
        let Json::String(url) = named else { return self.invalid_value("String", &shown(&named)) };
        let Some(name) = url.strip_prefix(TYPES) else {
            let reason = format!("Invalid type URL, type URLs must be of the form '{TYPES}<typename>', got: {url}");
            return self.invalid_value("Any", &reason);
        };
        let Some(id) = self.schema.find(name) else {
            return self.invalid_value("Any", &format!("Invalid type URL, unknown type: {name}"));
        };
        let mut body = Vec::new();
        if self.schema.message(id).known == WellKnown::No {
            self.fields(id, entries, &mut body);
        } else {
            self.known_in_any(id, entries, &mut body);
        }
        put_bytes(out, 1, url.as_bytes());
        if !body.is_empty() {
            put_bytes(out, 2, &body);
        }
    }

    fn known_in_any(&mut self, id: MessageId, entries: Entries, body: &mut Vec<u8>) {
        for (key, value) in entries {
            if key != "value" {
                return self.invalid_value("Any", "Expect a \"value\" field for well-known types.");
            }
            if let Err(reason) = self.body(id, value, body) {
                self.invalid_value("Any", &reason);
            }
        }
    }
}

fn text_of<'v>(what: &str, value: &'v Json) -> Result<&'v str, String> {
    match value {
        Json::String(text) => Ok(text),
        other => Err(format!("Invalid data type for {what}, value is {}", shown(other))),
    }
}

/// Seconds and nanoseconds as the fields 1 and 2.
fn put_parts((seconds, nanos): Parts, out: &mut Vec<u8>) {
    put_number(out, 1, seconds as u64);
    put_number(out, 2, i64::from(nanos) as u64);
}

fn put_number(out: &mut Vec<u8>, number: u32, value: u64) {
    put_tag(out, number, WireType::Varint);
    put_varint(out, value);
}

fn snake_case(path: &str) -> String {
    let mut snake = String::with_capacity(path.len() + 4);
    for character in path.chars() {
        if character.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(character.to_ascii_lowercase());
    }
    snake
}

const NO_ZONE: &str = "Illegal timestamp format; timestamps must end with 'Z' or have a valid timezone offset.";
/// Before the names of types.
const TYPES: &str = "type.googleapis.com/";
