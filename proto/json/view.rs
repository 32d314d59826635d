//! Protobuf bytes to JSON, written straight from the wire: no message is decoded into a struct of its own.
//!
//! The bytes are checked first, so that serializing fails only for reasons of the output.

use std::borrow::Cow;

use serde::ser::{Error as _, Serialize, SerializeMap, SerializeSeq, Serializer};

use super::error::JsonError;
use super::scalar::base64_encode;
use super::time;
use crate::any::type_name;
use crate::schema::{Field, Message, kind, lower_camel, shape};
use crate::wire::{self, Fields, Malformed, Raw};

/// Deepest nesting that is shown, `Any`s included; prost's decoder has the same limit.
const MAX_DEPTH: usize = 100;

const REDACTED: &str = "[redacted]";

/// How fields are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Names {
    /// As in the proto source: `load_assignment`.
    #[default]
    Proto,
    /// As in protobuf's JSON mapping: `loadAssignment`.
    Camel,
}

/// How a message is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JsonStyle {
    /// How fields are named.
    pub names: Names,
    /// Whether what the API marks as sensitive (private keys, passwords) is replaced by `[redacted]`.
    pub redact: bool,
}

impl From<Names> for JsonStyle {
    fn from(names: Names) -> Self {
        Self { names, redact: false }
    }
}

/// An encoded message that serializes as its JSON.
#[derive(Debug, Clone)]
pub struct JsonView<'a> {
    message: Message,
    bytes: Cow<'a, [u8]>,
    context: Context,
}

/// What changes on the way down.
#[derive(Debug, Clone, Copy)]
struct Context {
    style: JsonStyle,
    depth: usize,
    /// Inside a sensitive field of a redacted dump.
    hidden: bool,
}

impl<'a> JsonView<'a> {
    pub(crate) fn new(message: Message, bytes: &'a [u8], style: JsonStyle) -> Result<Self, JsonError> {
        check(message, bytes, MAX_DEPTH).map_err(|error| JsonError::malformed(message.name(), error))?;
        let context = Context { style, depth: 0, hidden: false };
        Ok(Self { message, bytes: Cow::Borrowed(bytes), context })
    }
}

/// Whether the bytes are such a message, with what is inside, but not what is inside `Any`s.
fn check(message: Message, bytes: &[u8], depth: usize) -> Result<(), Malformed> {
    let deeper = depth.checked_sub(1).ok_or(Malformed)?;
    for field in Fields::of(bytes) {
        let (number, raw) = field?;
        let Some(field) = message.field_by_number(number) else { continue };
        match (field.kind(), raw) {
            (kind::MESSAGE, Raw::Bytes(bytes)) => {
                field.message().map_or(Ok(()), |inner| check(inner, bytes, deeper))?
            }
            (kind::STRING, Raw::Bytes(bytes)) => drop(std::str::from_utf8(bytes).map_err(|_| Malformed)?),
            (kind::BYTES, Raw::Bytes(_)) => {}
            (kind::MESSAGE | kind::STRING | kind::BYTES, _) => return Err(Malformed),
            (_, Raw::Bytes(mut packed)) if field.is_repeated() => {
                while !packed.is_empty() {
                    take_packed(field.kind(), &mut packed)?;
                }
            }
            (scalar, raw) if has_wire_type(scalar, raw) => {}
            _ => return Err(Malformed),
        }
    }
    Ok(())
}

fn has_wire_type(scalar: u8, raw: Raw<'_>) -> bool {
    match scalar {
        kind::DOUBLE | kind::FIXED64 | kind::SFIXED64 => matches!(raw, Raw::Fixed64(_)),
        kind::FLOAT | kind::FIXED32 | kind::SFIXED32 => matches!(raw, Raw::Fixed32(_)),
        _ => matches!(raw, Raw::Varint(_)),
    }
}

fn take_packed(scalar: u8, packed: &mut &[u8]) -> Result<Raw<'static>, Malformed> {
    Ok(match scalar {
        kind::DOUBLE | kind::FIXED64 | kind::SFIXED64 => Raw::Fixed64(wire::take_fixed64(packed)?),
        kind::FLOAT | kind::FIXED32 | kind::SFIXED32 => Raw::Fixed32(wire::take_fixed32(packed)?),
        _ => Raw::Varint(wire::take_varint(packed)?),
    })
}

/// The last string or bytes of field `number`.
fn bytes_of(bytes: &[u8], number: u32) -> &[u8] {
    let last = Fields::of(bytes).flatten().filter(|(n, _)| *n == number).last();
    if let Some((_, Raw::Bytes(bytes))) = last { bytes } else { &[] }
}

/// The last varint of field `number`.
fn varint_of(bytes: &[u8], number: u32) -> i64 {
    let last = Fields::of(bytes).flatten().filter(|(n, _)| *n == number).last();
    if let Some((_, Raw::Varint(value))) = last { value.cast_signed() } else { 0 }
}

/// Text whose encoding `check` has seen.
fn text_of(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

impl Serialize for JsonView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = self.bytes.as_ref();
        match self.message.shape() {
            shape::ANY => self.serialize_any(serializer),
            shape::DURATION => {
                // A peer may send nanos beyond an i32; they show as the nearest that is one.
                let nanos = varint_of(bytes, 2).clamp(i32::MIN.into(), i32::MAX.into()) as i32;
                serializer.serialize_str(&time::format_duration(varint_of(bytes, 1), nanos))
            }
            shape::TIMESTAMP => {
                let nanos = varint_of(bytes, 2).clamp(0, 999_999_999) as i32;
                serializer.serialize_str(&time::format_timestamp(varint_of(bytes, 1), nanos))
            }
            shape::WRAPPER => match self.groups().first() {
                Some((field, raws)) => self.element(*field, raws).serialize(serializer),
                None => self.default_of_wrapper().serialize(serializer),
            },
            shape::STRUCT => match self.groups().first() {
                Some((field, raws)) => self.serialize_map_field(*field, raws, serializer),
                None => serializer.serialize_map(Some(0))?.end(),
            },
            shape::LIST => match self.groups().first() {
                Some((field, raws)) => self.serialize_repeated(*field, raws, serializer),
                None => serializer.serialize_seq(Some(0))?.end(),
            },
            shape::VALUE => self.serialize_value(serializer),
            _ => {
                let mut members = serializer.serialize_map(None)?;
                self.serialize_members(&mut members)?;
                members.end()
            }
        }
    }
}

impl JsonView<'_> {
    /// What the message holds of each known field, in the order of the source.
    fn groups(&self) -> Vec<(Field, Vec<Raw<'_>>)> {
        let mut all: Vec<(Field, Raw<'_>)> = Fields::of(&self.bytes)
            .flatten()
            .filter_map(|(number, raw)| Some((self.message.field_by_number(number)?, raw)))
            .collect();
        all.sort_by_key(|(field, _)| *field);
        let mut groups: Vec<(Field, Vec<Raw<'_>>)> = Vec::new();
        for (field, raw) in all {
            match groups.last_mut() {
                Some((last, raws)) if *last == field => raws.push(raw),
                _ => groups.push((field, vec![raw])),
            }
        }
        groups
    }

    fn serialize_members<M: SerializeMap>(&self, members: &mut M) -> Result<(), M::Error> {
        for (field, raws) in self.groups() {
            let hidden = self.context.hidden || (self.context.style.redact && field.is_sensitive());
            let shows_redacted = matches!(field.kind(), kind::STRING | kind::BYTES | kind::MESSAGE);
            if hidden && !shows_redacted {
                continue;
            }
            let one = !field.is_repeated() && !field.is_map();
            if one && !field.has_presence() && raws.last().is_some_and(is_default) {
                continue;
            }
            let value = FieldView { owner: self, field, raws: &raws, hidden };
            match self.context.style.names {
                Names::Proto => members.serialize_entry(field.name(), &value)?,
                Names::Camel => members.serialize_entry(&lower_camel(field.name()), &value)?,
            }
        }
        Ok(())
    }

    fn serialize_any<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let url = text_of(bytes_of(&self.bytes, 1));
        let payload = bytes_of(&self.bytes, 2);
        let mut members = serializer.serialize_map(None)?;
        if url.is_empty() && payload.is_empty() {
            return members.end();
        }
        members.serialize_entry("@type", &url)?;
        let room = MAX_DEPTH.saturating_sub(self.context.depth + 1);
        match Message::named(type_name(&url)).filter(|message| check(*message, payload, room).is_ok()) {
            Some(message) => {
                let context = Context { depth: self.context.depth + 1, ..self.context };
                let inner = JsonView { message, bytes: Cow::Borrowed(payload), context };
                if message.is_plain() {
                    inner.serialize_members(&mut members)?;
                } else {
                    members.serialize_entry("value", &inner)?;
                }
            }
            None if self.context.hidden => members.serialize_entry("value", &base64_encode(REDACTED.as_bytes()))?,
            None => members.serialize_entry("value", &base64_encode(payload))?,
        }
        members.end()
    }

    fn serialize_value<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.context.hidden {
            return serializer.serialize_str(REDACTED);
        }
        let groups = self.groups();
        match groups.last() {
            // Field 1 is the null of the oneof.
            Some((field, raws)) if field.number() != 1 => self.element(*field, raws).serialize(serializer),
            _ => serializer.serialize_unit(),
        }
    }

    /// A wrapper that holds the default of its type has no field on the wire.
    fn default_of_wrapper(&self) -> serde_json::Value {
        match self.message.field_by_number(1).map(Field::kind) {
            Some(kind::STRING | kind::BYTES) => "".into(),
            Some(kind::BOOL) => false.into(),
            Some(kind::INT64 | kind::UINT64) => "0".into(),
            _ => 0.into(),
        }
    }

    /// A single value of a field, out of all that the wire has for it.
    fn element<'v>(&self, field: Field, raws: &[Raw<'v>]) -> Element<'v> {
        let raw = match raws {
            // Parts of one message that were sent apart are one message when put together.
            [_, _, ..] if field.kind() == kind::MESSAGE => {
                let parts = raws.iter().filter_map(|raw| if let Raw::Bytes(bytes) = raw { Some(*bytes) } else { None });
                ElementBytes::Joined(parts.collect::<Vec<_>>().concat())
            }
            _ => ElementBytes::Raw(raws.last().copied().unwrap_or(Raw::Bytes(&[]))),
        };
        Element { field, raw, context: self.context }
    }

    fn serialize_repeated<S: Serializer>(
        &self,
        field: Field,
        raws: &[Raw<'_>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let is_packable = !matches!(field.kind(), kind::MESSAGE | kind::STRING | kind::BYTES);
        let mut items = serializer.serialize_seq(None)?;
        for raw in raws {
            match raw {
                Raw::Bytes(packed) if is_packable => {
                    let mut packed = *packed;
                    while !packed.is_empty() {
                        let raw = take_packed(field.kind(), &mut packed).map_err(S::Error::custom)?;
                        items.serialize_element(&self.element(field, &[raw]))?;
                    }
                }
                _ => items.serialize_element(&self.element(field, &[*raw]))?,
            }
        }
        items.end()
    }

    fn serialize_map_field<S: Serializer>(
        &self,
        field: Field,
        raws: &[Raw<'_>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_map(Some(raws.len()))?;
        let parts = field.message().and_then(|entry| Some((entry.field_by_number(1)?, entry.field_by_number(2)?)));
        let Some((key_field, value_field)) = parts else { return members.end() };
        for raw in raws {
            let Raw::Bytes(entry) = raw else { continue };
            let of = |number| Fields::of(entry).flatten().filter(|(n, _)| *n == number).map(|(_, raw)| raw).last();
            let key = match of(1) {
                Some(Raw::Bytes(text)) => text_of(text),
                Some(Raw::Varint(number)) if key_field.kind() == kind::BOOL => Cow::Owned((number != 0).to_string()),
                Some(Raw::Varint(number)) if matches!(key_field.kind(), kind::INT32 | kind::INT64) => {
                    Cow::Owned(number.cast_signed().to_string())
                }
                Some(Raw::Varint(number) | Raw::Fixed64(number)) => Cow::Owned(number.to_string()),
                Some(Raw::Fixed32(number)) => Cow::Owned(number.to_string()),
                None if key_field.kind() == kind::STRING => Cow::Borrowed(""),
                None => Cow::Borrowed("0"),
            };
            let value = of(2).unwrap_or_else(|| default_raw(value_field));
            members.serialize_entry(&key, &self.element(value_field, &[value]))?;
        }
        members.end()
    }
}

/// What an absent value of a map entry stands for.
fn default_raw(field: Field) -> Raw<'static> {
    match field.kind() {
        kind::MESSAGE | kind::STRING | kind::BYTES => Raw::Bytes(&[]),
        kind::DOUBLE | kind::FIXED64 | kind::SFIXED64 => Raw::Fixed64(0),
        kind::FLOAT | kind::FIXED32 | kind::SFIXED32 => Raw::Fixed32(0),
        _ => Raw::Varint(0),
    }
}

fn is_default(raw: &Raw<'_>) -> bool {
    matches!(raw, Raw::Varint(0) | Raw::Fixed64(0) | Raw::Fixed32(0) | Raw::Bytes([]))
}

/// All that a message has for one field.
struct FieldView<'a> {
    owner: &'a JsonView<'a>,
    field: Field,
    raws: &'a [Raw<'a>],
    hidden: bool,
}

impl Serialize for FieldView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { owner, field, raws, hidden } = *self;
        let owner = JsonView {
            message: owner.message,
            bytes: Cow::Borrowed(&[]),
            context: Context { hidden, ..owner.context },
        };
        if field.is_map() {
            owner.serialize_map_field(field, raws, serializer)
        } else if field.is_repeated() {
            owner.serialize_repeated(field, raws, serializer)
        } else {
            owner.element(field, raws).serialize(serializer)
        }
    }
}

enum ElementBytes<'a> {
    Raw(Raw<'a>),
    Joined(Vec<u8>),
}

/// One value.
struct Element<'a> {
    field: Field,
    raw: ElementBytes<'a>,
    /// Of the message that it stands in.
    context: Context,
}

impl Serialize for Element<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw = match &self.raw {
            ElementBytes::Raw(raw) => *raw,
            ElementBytes::Joined(bytes) => Raw::Bytes(bytes),
        };
        let hidden = self.context.hidden;
        match (self.field.kind(), raw) {
            (kind::MESSAGE, Raw::Bytes(bytes)) => {
                let Some(message) = self.field.message() else { return serializer.serialize_unit() };
                let context = Context { depth: self.context.depth + 1, ..self.context };
                JsonView { message, bytes: Cow::Borrowed(bytes), context }.serialize(serializer)
            }
            (kind::STRING, Raw::Bytes(_)) if hidden => serializer.serialize_str(REDACTED),
            (kind::STRING, Raw::Bytes(text)) => serializer.serialize_str(&text_of(text)),
            (kind::BYTES, Raw::Bytes(_)) if hidden => serializer.serialize_str(&base64_encode(REDACTED.as_bytes())),
            (kind::BYTES, Raw::Bytes(bytes)) => serializer.serialize_str(&base64_encode(bytes)),
            (kind::BOOL, Raw::Varint(value)) => serializer.serialize_bool(value != 0),
            // Both are sent sign-extended; the upper half is not looked at.
            (kind::INT32, Raw::Varint(value)) => serializer.serialize_i32(value as i32),
            (kind::ENUM, Raw::Varint(value)) => self.serialize_enum(value as i32, serializer),
            (kind::UINT32, Raw::Varint(value)) => serializer.serialize_u32(value as u32),
            (kind::SINT32, Raw::Varint(value)) => serializer.serialize_i32(unzigzag(value) as i32),
            (kind::FIXED32, Raw::Fixed32(value)) => serializer.serialize_u32(value),
            (kind::SFIXED32, Raw::Fixed32(value)) => serializer.serialize_i32(value.cast_signed()),
            (kind::FLOAT, Raw::Fixed32(value)) => serialize_f32(f32::from_bits(value), serializer),
            (kind::DOUBLE, Raw::Fixed64(value)) => serialize_f64(f64::from_bits(value), serializer),
            // 64-bit integers are strings: JSON readers keep 53 bits of a number.
            (kind::INT64, Raw::Varint(value)) => serializer.collect_str(&value.cast_signed()),
            (kind::UINT64, Raw::Varint(value)) | (kind::FIXED64, Raw::Fixed64(value)) => serializer.collect_str(&value),
            (kind::SINT64, Raw::Varint(value)) => serializer.collect_str(&unzigzag(value)),
            (kind::SFIXED64, Raw::Fixed64(value)) => serializer.collect_str(&value.cast_signed()),
            _ => Err(S::Error::custom(Malformed)),
        }
    }
}

impl Element<'_> {
    /// The name, or the number if it has none.
    fn serialize_enum<S: Serializer>(&self, value: i32, serializer: S) -> Result<S::Ok, S::Error> {
        let mut values = self.field.enumeration().into_iter().flat_map(|enumeration| enumeration.values());
        match values.find(|(_, number)| *number == value) {
            Some((name, _)) => serializer.serialize_str(name),
            None => serializer.serialize_i32(value),
        }
    }
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// The shortest decimal that is the same f32: widened digits would show as noise.
fn serialize_f32<S: Serializer>(value: f32, serializer: S) -> Result<S::Ok, S::Error> {
    serialize_f64(value.to_string().parse().unwrap_or_else(|_| value.into()), serializer)
}

fn serialize_f64<S: Serializer>(value: f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_nan() {
        serializer.serialize_str("NaN")
    } else if value.is_infinite() {
        serializer.serialize_str(if value > 0.0 { "Infinity" } else { "-Infinity" })
    } else if value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0 {
        // Exact below 2^53; people write 5, not 5.0.
        serializer.serialize_i64(value as i64)
    } else {
        serializer.serialize_f64(value)
    }
}
