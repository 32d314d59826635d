//! Messages as JSON.
//!
//! Owns the form: fields in the order of their numbers, entries of maps in the order of the wire, and the escapes. Source:
//! "ProtoJSON Format", and Envoy where there is a choice. Never builds a message in memory: what is printed is read in place.

use outrigger_config::http::filters::transcoder::{
    Field, Kind, Message, MessageId, Printing, Schema, Shape, WellKnown,
};

use super::number;
use super::wire::{Reader, WireError, WireType, unzigzag};

/// Why bytes cannot be printed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum PrintError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("{0}")]
    Bad(String),
}

impl From<&str> for PrintError {
    fn from(reason: &str) -> Self {
        Self::Bad(reason.to_owned())
    }
}

pub(super) type Printed = Result<(), PrintError>;

/// A value as it stands on the wire.
#[derive(Clone, Copy, Debug)]
pub(super) enum Raw<'m> {
    Varint(u64),
    Fixed32(u32),
    Fixed64(u64),
    Bytes(&'m [u8]),
}

/// Fields with their values, in the order of their numbers.
pub(super) type Fields<'s, 'm> = Vec<(&'s Field, Vec<Raw<'m>>)>;

/// Writes JSON.
pub(super) struct Printer<'s> {
    pub(super) schema: &'s Schema,
    pub(super) printing: Printing,
    pub(super) out: String,
    depth: usize,
}

/// Prints the message `id`.
pub(super) fn print(schema: &Schema, printing: Printing, id: MessageId, bytes: &[u8]) -> Result<String, PrintError> {
    let mut printer = Printer { schema, printing, out: String::with_capacity(2 * bytes.len()), depth: 0 };
    printer.message(id, bytes)?;
    printer.line();
    Ok(printer.out)
}

impl<'s> Printer<'s> {
    /// The message `id`, whose bytes are these.
    pub(super) fn message(&mut self, id: MessageId, bytes: &[u8]) -> Printed {
        let message = self.schema.message(id);
        if message.known != WellKnown::No {
            return self.known(message, bytes);
        }
        self.open('{')?;
        let mut first = true;
        self.fields(message, bytes, &mut first)?;
        self.close('}', first);
        Ok(())
    }

    /// The fields of a message, after others unless `first` says so.
    pub(super) fn fields(&mut self, message: &'s Message, bytes: &[u8], first: &mut bool) -> Printed {
        let mut present = read(message, bytes)?.into_iter().peekable();
        if !self.printing.defaults {
            return present.try_for_each(|(field, values)| self.field(field, &values, first));
        }
        for field in &message.fields {
            match present.next_if(|(known, _)| known.number == field.number) {
                Some((_, values)) => self.field(field, &values, first)?,
                None if field.is_implicit || field.shape != Shape::Single => self.field(field, &[], first)?,
                None => {}
            }
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, values: &[Raw<'_>], first: &mut bool) -> Printed {
        if field.shape == Shape::Single && self.is_empty_value(field, values)? {
            return Ok(());
        }
        self.separate(first);
        let name = self.name(field);
        self.string(name);
        self.colon();
        match (field.shape, values) {
            (Shape::Map, values) => self.map(field, values),
            (Shape::List, values) => self.list(field, values),
            (Shape::Single, [value, ..]) => self.value(field, *value),
            (Shape::Single, []) => {
                self.default(field);
                Ok(())
            }
        }
    }

    fn name<'f>(&self, field: &'f Field) -> &'f str {
        let begins_upper = |name: &str| name.starts_with(|character: char| character.is_ascii_uppercase());
        // Names that begin with a capital letter stay as they are.
        if self.printing.declared_names || begins_upper(&field.name) && !begins_upper(&field.json_name) {
            &field.name
        } else {
            &field.json_name
        }
    }

    /// A `google.protobuf.Value` that says nothing has no JSON form.
    fn is_empty_value(&self, field: &Field, values: &[Raw<'_>]) -> Result<bool, PrintError> {
        let Some(id) = field.kind.message() else { return Ok(false) };
        let message = self.schema.message(id);
        match values {
            [Raw::Bytes(bytes), ..] if message.known == WellKnown::Value => Ok(read(message, bytes)?.is_empty()),
            _ => Ok(false),
        }
    }

    pub(super) fn list(&mut self, field: &Field, values: &[Raw<'_>]) -> Printed {
        self.open('[')?;
        let mut first = true;
        for value in values {
            if self.is_empty_value(field, std::slice::from_ref(value))? {
                continue;
            }
            self.separate(&mut first);
            self.value(field, *value)?;
        }
        self.close(']', first);
        Ok(())
    }

    pub(super) fn map(&mut self, field: &Field, entries: &[Raw<'_>]) -> Printed {
        self.open('{')?;
        let mut first = true;
        let schema = self.schema;
        let entry_type = field.kind.message().map(|id| schema.message(id));
        for entry in entries {
            let (Some(message), Raw::Bytes(bytes)) = (entry_type, entry) else { continue };
            let (Some(key), Some(value)) = (message.numbered(1), message.numbered(2)) else { continue };
            let present = read(message, bytes)?;
            let values =
                |number: u32| present.iter().find(|(field, _)| field.number == number).map(|(_, values)| values);
            let given = values(2).map(Vec::as_slice).unwrap_or_default();
            if self.is_empty_value(value, given)? {
                continue;
            }
            self.separate(&mut first);
            self.key(key, values(1).and_then(|values| values.first().copied()))?;
            self.colon();
            match given.first() {
                Some(given) => self.value(value, *given)?,
                None => self.default(value),
            }
        }
        self.close('}', first);
        Ok(())
    }

    fn key(&mut self, field: &Field, value: Option<Raw<'_>>) -> Printed {
        let before = self.out.len();
        match value {
            Some(value) => self.value(field, value)?,
            None => self.default(field),
        }
        // Keys are text.
        if !self.out[before..].starts_with('"') {
            self.out.insert(before, '"');
            self.out.push('"');
        }
        Ok(())
    }

    /// What stands for a value that is not there.
    pub(super) fn default(&mut self, field: &Field) {
        match field.kind {
            Kind::String | Kind::Bytes => self.out.push_str("\"\""),
            Kind::Bool => self.out.push_str("false"),
            Kind::Int64 | Kind::Uint64 | Kind::Sint64 | Kind::Fixed64 | Kind::Sfixed64 => self.out.push_str("\"0\""),
            Kind::Enum(id) => {
                let first = self.schema.enumeration(id).values.first().map_or(0, |(_, number)| *number);
                self.enumeration(field.kind, first);
            }
            // An entry of a map may be without its message.
            Kind::Message(id) | Kind::Group(id) => {
                if self.message(id, &[]).is_err() {
                    self.out.push_str("{}");
                }
            }
            _ => self.out.push('0'),
        }
    }

    /// A value of `field`.
    pub(super) fn value(&mut self, field: &Field, value: Raw<'_>) -> Printed {
        match (field.kind, value) {
            (Kind::Message(id) | Kind::Group(id), Raw::Bytes(bytes)) => return self.message(id, bytes),
            (Kind::String, Raw::Bytes(bytes)) => {
                let text = std::str::from_utf8(bytes).map_err(|_| PrintError::from("proto3 strings must be UTF-8"))?;
                self.string(text);
            }
            (Kind::Bytes, Raw::Bytes(bytes)) => self.base64(bytes),
            (Kind::Bool, Raw::Varint(value)) => self.out.push_str(if value == 0 { "false" } else { "true" }),
            (Kind::Enum(_), Raw::Varint(value)) => self.enumeration(field.kind, value as i32),
            (Kind::Int32, Raw::Varint(value)) => self.push(value as i32),
            (Kind::Uint32, Raw::Varint(value)) => self.push(value as u32),
            (Kind::Sint32, Raw::Varint(value)) => self.push(unzigzag(u64::from(value as u32))),
            (Kind::Int64, Raw::Varint(value)) => self.quoted(value as i64),
            (Kind::Uint64, Raw::Varint(value)) => self.quoted(value),
            (Kind::Sint64, Raw::Varint(value)) => self.quoted(unzigzag(value)),
            (Kind::Fixed32, Raw::Fixed32(value)) => self.push(value),
            (Kind::Sfixed32, Raw::Fixed32(value)) => self.push(value as i32),
            (Kind::Fixed64, Raw::Fixed64(value)) => self.quoted(value),
            (Kind::Sfixed64, Raw::Fixed64(value)) => self.quoted(value as i64),
            (Kind::Float, Raw::Fixed32(value)) => self.number(number::float(f32::from_bits(value))),
            (Kind::Double, Raw::Fixed64(value)) => self.number(number::double(f64::from_bits(value))),
            // Kinds were compared when the message was read.
            _ => return Err(WireError::Tag.into()),
        }
        Ok(())
    }

    fn enumeration(&mut self, kind: Kind, value: i32) {
        let Kind::Enum(id) = kind else { return };
        let enumeration = self.schema.enumeration(id);
        match enumeration.name(value) {
            _ if enumeration.is_null => self.out.push_str("null"),
            Some(name) if !self.printing.enum_numbers => self.quoted(name),
            _ => self.push(value),
        }
    }

    /// A number, or the word for what is none, which is text.
    fn number(&mut self, text: String) {
        if text.ends_with(|last: char| last.is_ascii_digit()) {
            self.out.push_str(&text);
        } else {
            self.quoted(text);
        }
    }

    fn push(&mut self, value: impl std::fmt::Display) {
        self.out.push_str(&value.to_string());
    }

    /// Text that needs no escapes.
    pub(super) fn quoted(&mut self, value: impl std::fmt::Display) {
        self.out.push('"');
        self.push(value);
        self.out.push('"');
    }

    fn base64(&mut self, bytes: &[u8]) {
        use base64::Engine as _;
        self.out.push('"');
        base64::engine::general_purpose::STANDARD.encode_string(bytes, &mut self.out);
        self.out.push('"');
    }

    /// Text with escapes.
    pub(super) fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                character if is_escaped(character) => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                character => self.out.push(character),
            }
        }
        self.out.push('"');
    }

    pub(super) fn open(&mut self, bracket: char) -> Printed {
        if self.depth >= MOST_DEPTH {
            return Err("allowed depth exceeded".into());
        }
        self.depth += 1;
        self.out.push(bracket);
        Ok(())
    }

    pub(super) fn close(&mut self, bracket: char, empty: bool) {
        self.depth -= 1;
        if !empty {
            self.line();
        }
        self.out.push(bracket);
    }

    pub(super) fn separate(&mut self, first: &mut bool) {
        if !std::mem::replace(first, false) {
            self.out.push(',');
        }
        self.line();
    }

    pub(super) fn colon(&mut self) {
        self.out.push_str(if self.printing.whitespace { ": " } else { ":" });
    }

    fn line(&mut self) {
        if self.printing.whitespace {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', self.depth));
        }
    }
}

/// Reads the fields of a message; those that it does not have are passed over.
pub(super) fn read<'s, 'm>(message: &'s Message, bytes: &'m [u8]) -> Result<Fields<'s, 'm>, PrintError> {
    let mut reader = Reader::new(bytes);
    let mut fields: Fields<'s, 'm> = Vec::new();
    while !reader.is_done() {
        let (number, wire_type) = reader.tag()?;
        let Some(field) = message.numbered(number) else {
            reader.skip(number, wire_type)?;
            continue;
        };
        let place = match fields.binary_search_by_key(&number, |(field, _)| field.number) {
            Ok(place) => place,
            Err(place) => {
                fields.insert(place, (field, Vec::new()));
                place
            }
        };
        let values = &mut fields[place].1;
        read_values(&mut reader, field, wire_type, values)?;
        if field.shape == Shape::Single && values.len() > 1 {
            return Err(PrintError::Bad(format!("repeated entries for singular field number {number}")));
        }
        if values.is_empty() {
            fields.remove(place);
        }
    }
    Ok(fields)
}

fn read_values<'m>(
    reader: &mut Reader<'m>,
    field: &Field,
    wire_type: WireType,
    values: &mut Vec<Raw<'m>>,
) -> Result<(), PrintError> {
    let wanted = wire_type_of(field.kind);
    match wire_type {
        WireType::StartGroup if wanted == wire_type => values.push(Raw::Bytes(reader.group(field.number)?)),
        WireType::Length if matches!(wanted, WireType::Varint | WireType::Fixed32 | WireType::Fixed64) => {
            let mut packed = Reader::new(reader.bytes()?);
            while !packed.is_done() {
                values.push(one(&mut packed, wanted)?);
            }
        }
        wire_type if wanted == wire_type => values.push(one(reader, wire_type)?),
        _ => {
            let number = field.number;
            return Err(PrintError::Bad(format!("field number {number} has another type than its value")));
        }
    }
    Ok(())
}

fn one<'m>(reader: &mut Reader<'m>, wire_type: WireType) -> Result<Raw<'m>, WireError> {
    Ok(match wire_type {
        WireType::Varint => Raw::Varint(reader.varint()?),
        WireType::Fixed32 => Raw::Fixed32(reader.fixed32()?),
        WireType::Fixed64 => Raw::Fixed64(reader.fixed64()?),
        WireType::Length => Raw::Bytes(reader.bytes()?),
        WireType::StartGroup | WireType::EndGroup => return Err(WireError::Tag),
    })
}

fn wire_type_of(kind: Kind) -> WireType {
    match kind {
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => WireType::Fixed64,
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => WireType::Fixed32,
        Kind::String | Kind::Bytes | Kind::Message(_) => WireType::Length,
        Kind::Group(_) => WireType::StartGroup,
        _ => WireType::Varint,
    }
}

/// Characters that are escaped besides those with short escapes: what browsers take for markup, and what is not seen.
fn is_escaped(character: char) -> bool {
    matches!(
        u32::from(character),
        0..=0x1f
            | 0x3c
            | 0x3e
            | 0x7f..=0x9f
            | 0xad
            | 0x600..=0x603
            | 0x6dd
            | 0x70f
            | 0x17b4
            | 0x17b5
            | 0x200b..=0x200f
            | 0x2028..=0x202e
            | 0x2060..=0x2064
            | 0x206a..=0x206f
            | 0xfeff
            | 0xfff9..=0xfffb
            | 0x1d173..=0x1d17a
            | 0xe0001
            | 0xe0020..=0xe007f
    )
}

/// Brackets inside of each other.
const MOST_DEPTH: usize = 200;
