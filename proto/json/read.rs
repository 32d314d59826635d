//! JSON values to protobuf bytes: one walk that follows the schema and collects every problem with its path.
//!
//! More lenient than protobuf's JSON mapping, where files in use need it: names in either spelling side by side, one
//! value where a list stands, plain numbers for durations, enum names in any case, null as absence.

use serde_json::{Map, Value};

use super::error::{JsonError, Problem};
use super::scalar::{self, Scalar};
use super::time;
use crate::any::type_name;
use crate::schema::{Field, Message, kind, shape};
use crate::wire;

/// Longest rendering of a value in an error, in characters.
const SHOWN_VALUE: usize = 80;

/// What to do about members that no field answers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownFields {
    /// They are problems.
    #[default]
    Reject,
    /// They are left out and their paths listed.
    Collect,
}

/// What to do about an `Any` whose `@type` the schema does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownTypes {
    /// It is a problem.
    #[default]
    Reject,
    /// It is carried as an `xds.type.v3.TypedStruct` that names the type. A lone base64 `value`, the form that dumps
    /// use, becomes the bytes of the `Any` itself.
    Keep,
}

/// How strictly to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ParseOptions {
    /// Members that no field answers to, and unknown names of enum values.
    pub unknown_fields: UnknownFields,
    /// Extensions that the schema does not have.
    pub unknown_types: UnknownTypes,
}

impl From<UnknownFields> for ParseOptions {
    fn from(unknown_fields: UnknownFields) -> Self {
        Self { unknown_fields, ..Self::default() }
    }
}

/// A message read from text.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed<M> {
    /// The message.
    pub message: M,
    /// Paths of what was left out, such as `static_resources.clusters[0].foo`; empty unless unknown fields are collected.
    pub unknown_fields: Vec<String>,
}

/// Reads `value` as a `message`.
pub(crate) fn read(message: Message, value: &Value, options: ParseOptions) -> Result<Parsed<Vec<u8>>, JsonError> {
    let mut reader =
        Reader { options, path: String::new(), problems: Vec::new(), unknown_fields: Vec::new(), secret: false };
    let bytes = reader.message(message, value);
    if reader.problems.is_empty() {
        Ok(Parsed { message: bytes, unknown_fields: reader.unknown_fields })
    } else {
        Err(JsonError::Invalid(reader.problems))
    }
}

/// Every method returns bytes even after a problem, so that the rest of the document is looked at too.
struct Reader {
    options: ParseOptions,
    path: String,
    problems: Vec<Problem>,
    unknown_fields: Vec<String>,
    /// Inside a sensitive field: its values stay out of errors, which end up in logs.
    secret: bool,
}

impl Reader {
    fn within<T>(&mut self, segment: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        // What could be mistaken for structure is quoted.
        if segment.starts_with('[') || segment.is_empty() || !segment.contains(['.', '[', ']', ' ', '"']) {
            if length > 0 && !segment.starts_with('[') {
                self.path.push('.');
            }
            self.path.push_str(segment);
        } else {
            self.path.push_str(&format!("[{segment:?}]"));
        }
        let result = read(self);
        self.path.truncate(length);
        result
    }

    fn problem(&mut self, reason: impl Into<String>) {
        self.problems.push(Problem::new(&self.path, reason));
    }

    fn expected(&mut self, value: &Value, expected: &str) {
        let shown = if self.secret { "a value not shown here".to_owned() } else { shown(value) };
        self.problem(format!("got {shown}, expected {expected}"));
    }

    fn message(&mut self, message: Message, value: &Value) -> Vec<u8> {
        match (message.shape(), value) {
            (shape::ANY, _) => self.any(value),
            (shape::STRUCT, Value::Object(members)) => struct_bytes(members),
            (shape::STRUCT, _) => self.expecting(value, "an object"),
            (shape::VALUE, _) => value_bytes(value),
            (shape::LIST, Value::Array(items)) => list_bytes(items),
            (shape::LIST, _) => self.expecting(value, "a list"),
            // Envoy takes `{seconds: 5}` and `{value: 5}` too, the fields as they are declared.
            (shape::DURATION | shape::TIMESTAMP | shape::WRAPPER, Value::Object(members)) => {
                self.members(message, members, false)
            }
            (shape::DURATION, _) => match time::parse_duration(value) {
                Some(parts) => seconds_and_nanos(parts),
                None => self.expecting(value, "a duration in seconds such as \"0.25s\""),
            },
            (shape::TIMESTAMP, _) => match value.as_str().and_then(time::parse_timestamp) {
                Some(parts) => seconds_and_nanos(parts),
                None => self.expecting(value, "a time such as \"2030-01-31T12:00:00Z\""),
            },
            (shape::WRAPPER, _) => {
                let mut out = Vec::new();
                if let Some(field) = message.field_by_number(1) {
                    self.single(field, value, &mut out);
                }
                out
            }
            (_, Value::Object(members)) => self.members(message, members, false),
            _ => self.expecting(value, &format!("an object ({})", message.name())),
        }
    }

    fn expecting(&mut self, value: &Value, expected: &str) -> Vec<u8> {
        self.expected(value, expected);
        Vec::new()
    }

    /// The fields of a message, in the order of their numbers as encoders write them. `in_any` skips `@type`.
    fn members(&mut self, message: Message, members: &Map<String, Value>, in_any: bool) -> Vec<u8> {
        let mut read: Vec<(Field, &str, Vec<u8>)> = Vec::with_capacity(members.len());
        for (key, value) in members {
            if in_any && key == "@type" {
                continue;
            }
            self.within(key, |reader| {
                let Some(field) = message.field_by_key(key) else { return reader.unknown_field(message, key) };
                let takes_null = !field.is_repeated() && field.message().is_some_and(|m| m.shape() == shape::VALUE);
                if value.is_null() && !takes_null {
                    return;
                }
                if let Some((_, other, _)) = read.iter().find(|(earlier, ..)| *earlier == field) {
                    return reader.problem(format!("is the same field as {other}, expected one of them"));
                }
                let same_choice = |earlier: &Field| field.oneof().is_some() && earlier.oneof() == field.oneof();
                if let Some((_, other, _)) = read.iter().find(|(earlier, ..)| same_choice(earlier)) {
                    return reader.problem(format!("excludes {other}, expected one of them"));
                }
                let bytes = reader.field(field, value);
                read.push((field, key, bytes));
            });
        }
        read.sort_by_key(|(field, ..)| field.number());
        read.into_iter().flat_map(|(_, _, bytes)| bytes).collect()
    }

    fn unknown_field(&mut self, message: Message, key: &str) {
        if self.options.unknown_fields == UnknownFields::Collect {
            self.unknown_fields.push(self.path.clone());
            return;
        }
        let hint = nearest(key, message.fields().map(Field::name)).map(|name| format!("; did you mean {name}?"));
        self.problem(format!("unknown field of {}{}", message.name(), hint.unwrap_or_default()));
    }

    fn field(&mut self, field: Field, value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        let outer = self.secret;
        self.secret |= field.is_sensitive();
        if field.is_map() {
            self.map(field, value, &mut out);
        } else if field.is_repeated() {
            self.repeated(field, value, &mut out);
        } else {
            self.single(field, value, &mut out);
        }
        self.secret = outer;
        out
    }

    fn map(&mut self, field: Field, value: &Value, out: &mut Vec<u8>) {
        let entry = field.message();
        let parts = entry.and_then(|entry| Some((entry.field_by_number(1)?, entry.field_by_number(2)?)));
        let (Some((key_field, value_field)), Value::Object(members)) = (parts, value) else {
            return self.expected(value, "an object with a member for each key");
        };
        for (key, value) in members {
            self.within(key, |reader| {
                let mut entry = Vec::new();
                reader.single(key_field, &Value::String(key.clone()), &mut entry);
                reader.single(value_field, value, &mut entry);
                wire::put_bytes(out, field.number(), &entry);
            });
        }
    }

    fn repeated(&mut self, field: Field, value: &Value, out: &mut Vec<u8>) {
        let items = match value {
            Value::Array(items) => items.as_slice(),
            single => std::slice::from_ref(single),
        };
        let mut packed = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let segment = if value.is_array() { format!("[{index}]") } else { String::new() };
            let mut read = |reader: &mut Self| {
                if item.is_null() && field.message().is_none_or(|message| message.shape() != shape::VALUE) {
                    return reader.expected(item, "a value");
                }
                match field.message() {
                    Some(message) => {
                        let bytes = reader.message(message, item);
                        wire::put_bytes(out, field.number(), &bytes);
                    }
                    None => match reader.scalar(field, item) {
                        Some(scalar) if field.is_packed() => scalar.put_packed(&mut packed),
                        Some(scalar) => scalar.put_field(out, field.number()),
                        None => {}
                    },
                }
            };
            if segment.is_empty() { read(self) } else { self.within(&segment, read) }
        }
        if !packed.is_empty() {
            wire::put_bytes(out, field.number(), &packed);
        }
    }

    fn single(&mut self, field: Field, value: &Value, out: &mut Vec<u8>) {
        if let Some(message) = field.message() {
            let bytes = self.message(message, value);
            wire::put_bytes(out, field.number(), &bytes);
        } else if let Some(scalar) = self.scalar(field, value)
            && (field.has_presence() || !scalar.is_default())
        {
            scalar.put_field(out, field.number());
        }
    }

    fn scalar(&mut self, field: Field, value: &Value) -> Option<Scalar> {
        if field.kind() == kind::ENUM {
            return self.enum_value(field, value);
        }
        let scalar = scalar::parse(field.kind(), value);
        scalar.map_err(|expected| self.expected(value, expected)).ok()
    }

    fn enum_value(&mut self, field: Field, value: &Value) -> Option<Scalar> {
        let enumeration = field.enumeration()?;
        let named = value.as_str().and_then(|text| {
            enumeration.values().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, number)| number)
        });
        if let Some(number) = named.or_else(|| scalar::integer::<i32>(value)) {
            return Some(Scalar::Varint(i64::from(number).cast_unsigned()));
        }
        if value.is_string() && self.options.unknown_fields == UnknownFields::Collect {
            self.unknown_fields.push(self.path.clone());
            return None;
        }
        let names: Vec<&str> = enumeration.values().map(|(name, _)| name).collect();
        self.expected(value, &format!("one of {} ({})", names.join(", "), enumeration.name()));
        None
    }

    fn any(&mut self, value: &Value) -> Vec<u8> {
        let Value::Object(members) = value else { return self.expecting(value, "an object with \"@type\"") };
        if members.is_empty() {
            return Vec::new();
        }
        let Some(url) = members.get("@type").and_then(Value::as_str) else {
            return self
                .expecting(value, "\"@type\" to name the type, such as \"type.googleapis.com/package.Message\"");
        };
        if !url.contains('/') {
            let expected = format!("a type URL such as \"type.googleapis.com/{url}\"");
            self.within("@type", |reader| reader.expected(&Value::from(url), &expected));
            return Vec::new();
        }
        let Some(message) = Message::named(type_name(url)) else { return self.unknown_type(url, members) };
        let bytes = if message.is_plain() {
            self.members(message, members, true)
        } else {
            self.special_in_any(message, members)
        };
        any_bytes(url, &bytes)
    }

    /// Types with a JSON form of their own stand in the member `value`.
    fn special_in_any(&mut self, message: Message, members: &Map<String, Value>) -> Vec<u8> {
        for key in members.keys().filter(|key| !matches!(key.as_str(), "@type" | "value")) {
            self.within(key, |reader| reader.unknown_field(message, key));
        }
        match members.get("value") {
            Some(value) => self.within("value", |reader| reader.message(message, value)),
            None => {
                self.problem(format!("expected a member \"value\" with the {}", message.name()));
                Vec::new()
            }
        }
    }

    fn unknown_type(&mut self, url: &str, members: &Map<String, Value>) -> Vec<u8> {
        if self.options.unknown_types == UnknownTypes::Reject {
            self.within("@type", |reader| reader.problem(format!("unknown type {url}")));
            return Vec::new();
        }
        let dumped = (members.len() == 2).then(|| members.get("value")).flatten().and_then(Value::as_str);
        if let Some(bytes) = dumped.and_then(scalar::base64_decode) {
            return any_bytes(url, &bytes);
        }
        let rest: Map<String, Value> = members
            .iter()
            .filter(|(key, _)| *key != "@type")
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let mut typed_struct = Vec::new();
        wire::put_bytes(&mut typed_struct, 1, url.as_bytes());
        wire::put_bytes(&mut typed_struct, 2, &struct_bytes(&rest));
        any_bytes("type.googleapis.com/xds.type.v3.TypedStruct", &typed_struct)
    }
}

fn any_bytes(url: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(url.len() + value.len() + 8);
    wire::put_bytes(&mut out, 1, url.as_bytes());
    if !value.is_empty() {
        wire::put_bytes(&mut out, 2, value);
    }
    out
}

/// Fields 1 and 2 of both Duration and Timestamp.
fn seconds_and_nanos((seconds, nanos): (i64, i32)) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, value) in [(1, seconds), (2, nanos.into())] {
        if value != 0 {
            Scalar::Varint(value.cast_unsigned()).put_field(&mut out, number);
        }
    }
    out
}

/// A `google.protobuf.Struct`.
fn struct_bytes(members: &Map<String, Value>) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in members {
        let mut entry = Vec::new();
        if !key.is_empty() {
            wire::put_bytes(&mut entry, 1, key.as_bytes());
        }
        wire::put_bytes(&mut entry, 2, &value_bytes(value));
        wire::put_bytes(&mut out, 1, &entry);
    }
    out
}

/// A `google.protobuf.ListValue`.
fn list_bytes(items: &[Value]) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        wire::put_bytes(&mut out, 1, &value_bytes(item));
    }
    out
}

/// A `google.protobuf.Value`: a oneof of null, number, string, bool, struct and list.
fn value_bytes(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    match value {
        Value::Null => Scalar::Varint(0).put_field(&mut out, 1),
        Value::Number(number) => {
            Scalar::Fixed64(number.as_f64().unwrap_or(f64::NAN).to_bits()).put_field(&mut out, 2);
        }
        Value::String(text) => wire::put_bytes(&mut out, 3, text.as_bytes()),
        Value::Bool(value) => Scalar::Varint((*value).into()).put_field(&mut out, 4),
        Value::Object(members) => wire::put_bytes(&mut out, 5, &struct_bytes(members)),
        Value::Array(items) => wire::put_bytes(&mut out, 6, &list_bytes(items)),
    }
    out
}

/// The value as JSON text, cut at a length that an error line can bear.
fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if let Some((cut, _)) = text.char_indices().nth(SHOWN_VALUE) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// The candidate that is at most two edits away from `key`, if any.
fn nearest(key: &str, candidates: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let allowed = if key.len() < 5 { 1 } else { 2 };
    let distance = candidates.map(|name| (edits(key, name), name)).min_by_key(|(edits, _)| *edits);
    distance.filter(|(edits, _)| *edits <= allowed).map(|(_, name)| name)
}

/// Letters to insert, remove or replace to turn `from` into `to`.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}
