//! JSON as messages.
//!
//! Owns which key is which field and where values go; what does not fit is told with its place, in Envoy's words. Unknown keys
//! are passed over. Never reads JSON text.

use std::collections::HashSet;

use outrigger_config::http::filters::transcoder::{Field, Kind, Message, MessageId, Schema, Shape, WellKnown};

use super::json::Json;
use super::scalar::{self, shown, type_name};
use super::wire::{WireType, put_bytes, put_tag};

/// Keys with values.
pub(super) type Entries = Vec<(String, Json)>;

/// Turns a value into a message.
pub(super) struct Encoder<'s> {
    pub(super) schema: &'s Schema,
    /// Names of enumerations may be written in lower case.
    pub(super) ignores_enum_case: bool,
    pub(super) root: &'s str,
    places: Vec<Place<'s>>,
    failure: Option<String>,
}

/// A field on the way to the value at hand.
struct Place<'s> {
    name: &'s str,
    /// Of its values; counted from 1, and 0 before the first.
    count: usize,
}

/// What was seen of the fields of a message.
struct Seen<'m> {
    message: &'m Message,
    oneofs: Vec<bool>,
    fields: Vec<u32>,
}

/// Encodes `value` as the message `id`.
pub(super) fn encode(schema: &Schema, ignores_enum_case: bool, id: MessageId, value: Json) -> Result<Vec<u8>, String> {
    let root = &*schema.message(id).name;
    let mut encoder = Encoder { schema, ignores_enum_case, root, places: Vec::new(), failure: None };
    let mut out = Vec::new();
    encoder.root(id, value, &mut out);
    match encoder.failure {
        Some(failure) => Err(failure),
        None => Ok(out),
    }
}

impl<'s> Encoder<'s> {
    fn root(&mut self, id: MessageId, value: Json, out: &mut Vec<u8>) {
        let known = self.schema.message(id).known;
        let fits = match (&value, known) {
            (Json::Object(_), _) => true,
            (Json::List(_), WellKnown::Value | WellKnown::ListValue) => true,
            (Json::List(_), _) | (_, WellKnown::No | WellKnown::Any | WellKnown::Struct | WellKnown::ListValue) => {
                false
            }
            _ => true,
        };
        if !fits {
            return self.invalid_name("Root element must be a message.");
        }
        if let Err(reason) = self.body(id, value, out) {
            let name = self.root;
            self.invalid_value(name, &format!("Field '', {reason}"));
        }
    }

    /// A name that is not where it should be.
    pub(super) fn invalid_name(&mut self, message: &str) {
        self.failure = Some(format!("{}: {message}", self.place()));
    }

    /// A value that cannot be of a type.
    pub(super) fn invalid_value(&mut self, kind: &str, value: &str) {
        self.failure = Some(format!("{}: invalid value {value} for type {kind}", self.place()));
    }

    fn place(&self) -> String {
        let mut text = String::new();
        for Place { name, count } in &self.places {
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(name);
            if *count > 0 {
                text.push_str(&format!("[{}]", count - 1));
            }
        }
        text
    }

    /// Does something as a part of `field`, as far as places are concerned.
    pub(super) fn inside<R>(&mut self, field: &'s Field, act: impl FnOnce(&mut Self) -> R) -> R {
        self.places.push(Place { name: &field.name, count: 0 });
        let result = act(self);
        self.places.pop();
        result
    }

    /// The fields of the message `id`.
    pub(super) fn fields(&mut self, id: MessageId, entries: Entries, out: &mut Vec<u8>) {
        let message = self.schema.message(id);
        let mut seen = Seen { message, oneofs: vec![false; message.oneofs.len()], fields: Vec::new() };
        for (key, value) in entries {
            let Some(field) = message.field(&key) else { continue };
            self.field(&mut seen, field, &key, value, out);
        }
        for field in message.fields.iter().filter(|field| field.is_required) {
            if !seen.fields.contains(&field.number) {
                self.failure = Some(format!("{}: missing field {}", self.place(), field.name));
            }
        }
    }

    fn field(&mut self, seen: &mut Seen<'s>, field: &'s Field, key: &str, value: Json, out: &mut Vec<u8>) {
        let known = self.known(field.kind);
        match value {
            Json::Null if !self.is_nullable(field) => {}
            Json::List(values) if field.shape == Shape::List => {
                if self.take_oneof(seen, field, key) {
                    self.inside(field, |encoder| encoder.list(field, values, out));
                }
            }
            Json::List(_) if field.shape == Shape::Map => {
                self.invalid_value("Map", &format!("Cannot bind a list to map for field '{key}'."));
            }
            Json::List(_) if !matches!(known, WellKnown::Value | WellKnown::ListValue) => {
                self.invalid_name("Proto field is not repeating, cannot start list.");
            }
            Json::Object(entries) if field.shape == Shape::Map => {
                self.inside(field, |encoder| encoder.map(field, entries, out));
            }
            value => {
                if self.take_oneof(seen, field, key) {
                    self.single(field, key, value, out);
                }
            }
        }
    }

    fn is_nullable(&self, field: &Field) -> bool {
        match field.kind {
            Kind::Enum(id) => self.schema.enumeration(id).is_null,
            kind => field.shape != Shape::Map && self.known(kind) == WellKnown::Value,
        }
    }

    pub(super) fn known(&self, kind: Kind) -> WellKnown {
        kind.message().map_or(WellKnown::No, |id| self.schema.message(id).known)
    }

    /// Notes that a field is set; false if another one of its group is.
    fn take_oneof(&mut self, seen: &mut Seen<'s>, field: &Field, key: &str) -> bool {
        if field.is_required {
            seen.fields.push(field.number);
        }
        let Some(oneof) = field.oneof else { return true };
        if std::mem::replace(&mut seen.oneofs[oneof], true) {
            let name = &seen.message.oneofs[oneof];
            self.invalid_value("oneof", &format!("oneof field '{name}' is already set. Cannot set '{key}'"));
            return false;
        }
        true
    }

    /// The values of a repeated field. Its place is the last one.
    fn list(&mut self, field: &'s Field, values: Vec<Json>, out: &mut Vec<u8>) {
        for value in values {
            match value {
                Json::Null if !self.is_nullable(field) => continue,
                // As Envoy: one list more says nothing.
                Json::List(values) if !matches!(self.known(field.kind), WellKnown::Value | WellKnown::ListValue) => {
                    self.list(field, values, out);
                    continue;
                }
                value => {
                    if field.kind.message().is_some() {
                        self.next_value();
                    }
                    self.value(field, "", value, out);
                }
            }
        }
    }

    fn next_value(&mut self) {
        if let Some(place) = self.places.last_mut() {
            place.count += 1;
        }
    }

    /// A value of a field outside of a list.
    fn single(&mut self, field: &'s Field, key: &str, value: Json, out: &mut Vec<u8>) {
        if field.shape == Shape::Map {
            return self.inside(field, |encoder| encoder.no_message(field, &value));
        }
        self.inside(field, |encoder| encoder.value(field, key, value, out));
    }

    fn no_message(&mut self, field: &Field, value: &Json) {
        let kind = self.type_of(field.kind);
        self.invalid_value(&kind, &shown(value));
    }

    pub(super) fn type_of(&self, kind: Kind) -> String {
        match kind {
            Kind::Message(id) | Kind::Group(id) => format!("type.googleapis.com/{}", self.schema.message(id).name),
            Kind::Enum(id) => format!("type.googleapis.com/{}", self.schema.enumeration(id).name),
            kind => type_name(kind).to_owned(),
        }
    }

    /// One value of `field`, whose place is the last one.
    fn value(&mut self, field: &'s Field, key: &str, value: Json, out: &mut Vec<u8>) {
        let Some(id) = field.kind.message() else { return self.scalar(field, &value, out) };
        let is_message = match (&value, self.known(field.kind)) {
            (Json::Object(_), _) => true,
            (_, WellKnown::No | WellKnown::Any | WellKnown::Struct) => false,
            (Json::List(_), known) => matches!(known, WellKnown::Value | WellKnown::ListValue),
            (_, known) => known != WellKnown::ListValue,
        };
        if !is_message {
            return self.no_message(field, &value);
        }
        let mut body = Vec::new();
        if let Err(reason) = self.body(id, value, &mut body) {
            let kind = self.type_of(field.kind);
            self.invalid_value(&kind, &format!("Field '{key}', {reason}"));
        }
        match field.kind {
            Kind::Group(_) => {
                put_tag(out, field.number, WireType::StartGroup);
                out.append(&mut body);
                put_tag(out, field.number, WireType::EndGroup);
            }
            _ => put_bytes(out, field.number, &body),
        }
    }

    /// A value that is no message.
    pub(super) fn scalar(&mut self, field: &Field, value: &Json, out: &mut Vec<u8>) {
        let enumeration = match field.kind {
            Kind::Enum(id) => Some((self.schema.enumeration(id), self.ignores_enum_case)),
            _ => None,
        };
        let null = Json::Uint(0);
        let given = if *value == Json::Null { &null } else { value };
        if scalar::put(out, field.number, field.kind, enumeration, given).is_none() {
            // Envoy counts the bad ones alone.
            if field.shape == Shape::List && self.places.last().is_some_and(|place| *place.name == *field.name) {
                self.next_value();
            }
            let kind = self.type_of(field.kind);
            self.invalid_value(&kind, &shown(value));
        }
    }

    fn map(&mut self, field: &'s Field, entries: Entries, out: &mut Vec<u8>) {
        let Some(id) = field.kind.message() else { return };
        let entry = self.schema.message(id);
        let (Some(key_field), Some(value_field)) = (entry.numbered(1), entry.numbered(2)) else { return };
        let mut keys: HashSet<String> = HashSet::new();
        for (key, value) in entries {
            if keys.contains(&key) {
                self.invalid_name(&format!("Repeated map key: '{key}' is already set."));
                continue;
            }
            let mut body = Vec::new();
            self.next_value();
            let text = Json::String(key);
            self.inside(key_field, |encoder| encoder.scalar(key_field, &text, &mut body));
            let Json::String(key) = text else { continue };
            match value {
                Json::Null if !self.is_nullable(value_field) => {}
                Json::List(_) if !matches!(self.known(value_field.kind), WellKnown::Value | WellKnown::ListValue) => {
                    self.invalid_value("Map", &format!("Cannot have repeated items ('{key}') within a map."));
                }
                value => self.inside(value_field, |encoder| encoder.value(value_field, &key, value, &mut body)),
            }
            keys.insert(key);
            put_bytes(out, field.number, &body);
        }
    }
}
