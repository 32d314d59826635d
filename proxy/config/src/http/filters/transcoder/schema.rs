//! The messages that a transcoder translates, made from a set of file descriptors.
//!
//! Owns a compact form of the descriptors: fields by number and by name, with what their JSON form needs. Never translates a
//! message.

use std::collections::HashMap;

use prost_reflect::{Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, MessageDescriptor, Syntax};

/// Messages and enumerations, which name each other by their places.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    messages: Box<[Message]>,
    enumerations: Box<[Enumeration]>,
    by_name: HashMap<Box<str>, MessageId>,
}

/// The place of a message in its schema.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct MessageId(usize);

/// The place of an enumeration in its schema.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct EnumId(usize);

/// A message type.
#[derive(Clone, Debug)]
pub struct Message {
    /// With its package, without a leading dot.
    pub name: Box<str>,
    /// In the order of their numbers.
    pub fields: Box<[Field]>,
    /// Names of the groups of fields of which only one may be set.
    pub oneofs: Box<[Box<str>]>,
    /// Whether its JSON form is its own.
    pub known: WellKnown,
    /// Declared with proto3 syntax.
    pub is_proto3: bool,
    by_key: HashMap<Box<str>, usize>,
}

/// A field of a message.
#[derive(Clone, Debug)]
pub struct Field {
    /// As declared.
    pub name: Box<str>,
    /// In JSON.
    pub json_name: Box<str>,
    /// On the wire.
    pub number: u32,
    /// The type of its value, or of each of its values.
    pub kind: Kind,
    /// How many values it has.
    pub shape: Shape,
    /// It cannot be told whether it is unset or has its default.
    pub is_implicit: bool,
    /// Must be set (proto2).
    pub is_required: bool,
    /// Its place in [`Message::oneofs`].
    pub oneof: Option<usize>,
}

/// How many values a field has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shape {
    /// One at most.
    Single,
    /// Any number.
    List,
    /// Any number, each with a key of its own: a list of messages with a field 1 and a field 2.
    Map,
}

/// The type of a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "as protobuf names them")]
pub enum Kind {
    Double,
    Float,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
    String,
    Bytes,
    Enum(EnumId),
    Message(MessageId),
    /// A message between two tags instead of behind its length.
    Group(MessageId),
}

/// Messages whose JSON form is not that of their fields. Source: "ProtoJSON Format".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "as protobuf names them")]
pub enum WellKnown {
    /// None of them.
    No,
    Any,
    Duration,
    FieldMask,
    ListValue,
    Struct,
    Timestamp,
    Value,
    /// `DoubleValue`, `StringValue` and their like.
    Wrapper,
}

/// An enumeration.
#[derive(Clone, Debug)]
pub struct Enumeration {
    /// With its package, without a leading dot.
    pub name: Box<str>,
    /// Names and numbers in the order of their declaration.
    pub values: Box<[(Box<str>, i32)]>,
    /// `google.protobuf.NullValue`, which is `null` in JSON.
    pub is_null: bool,
}

impl Schema {
    /// The schema of all messages of `pool`.
    pub(super) fn of(pool: &DescriptorPool) -> Self {
        let names = |message: &MessageDescriptor| Box::<str>::from(message.full_name());
        let messages: Vec<_> = pool.all_messages().collect();
        let enumerations: Vec<_> = pool.all_enums().collect();
        let by_name: HashMap<_, _> =
            messages.iter().enumerate().map(|(place, message)| (names(message), MessageId(place))).collect();
        let enums: HashMap<_, _> = enumerations
            .iter()
            .enumerate()
            .map(|(place, enumeration)| (enumeration.full_name().to_owned(), EnumId(place)))
            .collect();
        let types = Types { messages: &by_name, enums: &enums };
        Self {
            messages: messages.iter().map(|descriptor| message(descriptor, &types)).collect(),
            enumerations: enumerations.iter().map(enumeration).collect(),
            by_name,
        }
    }

    /// A message type.
    pub fn message(&self, id: MessageId) -> &Message {
        &self.messages[id.0]
    }

    /// An enumeration.
    pub fn enumeration(&self, id: EnumId) -> &Enumeration {
        &self.enumerations[id.0]
    }

    /// The message type with this full name.
    pub fn find(&self, name: &str) -> Option<MessageId> {
        self.by_name.get(name).copied()
    }

    /// Follows a path of fields from `message`, each named as declared or as in JSON.
    pub fn path<'n>(
        &self,
        message: MessageId,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<Vec<&Field>, PathError> {
        let mut current = Ok(message);
        let mut fields: Vec<&Field> = Vec::new();
        for name in names {
            let owner: MessageId = match current {
                Ok(owner) => owner,
                Err(name) => return Err(PathError::NoMessage { field: name }),
            };
            let owner = self.message(owner);
            let Some(field) = owner.field(name) else {
                return Err(PathError::Unknown { field: name.into(), message: owner.name.clone() });
            };
            fields.push(field);
            current = match field.kind {
                Kind::Message(id) => Ok(id),
                _ => Err(field.name.clone()),
            };
        }
        Ok(fields)
    }
}

/// Why a path of fields leads nowhere.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PathError {
    /// There is no such field.
    #[error("Could not find field \"{field}\" in the type \"{message}\".")]
    Unknown {
        /// As asked for.
        field: Box<str>,
        /// The type that was asked.
        message: Box<str>,
    },
    /// The path goes on after a field that is no message.
    #[error("Encountered a non-leaf field \"{field}\" that is not a message while parsing a field path")]
    NoMessage {
        /// Its name.
        field: Box<str>,
    },
}

impl Message {
    /// The field that JSON means by `key`, which is its JSON name or its declared one.
    pub fn field(&self, key: &str) -> Option<&Field> {
        self.by_key.get(key).map(|place| &self.fields[*place])
    }

    /// The field with this number.
    pub fn numbered(&self, number: u32) -> Option<&Field> {
        let place = self.fields.binary_search_by_key(&number, |field| field.number).ok()?;
        Some(&self.fields[place])
    }
}

impl Enumeration {
    /// The number of a name.
    pub fn number(&self, name: &str) -> Option<i32> {
        self.values.iter().find(|(known, _)| **known == *name).map(|(_, number)| *number)
    }

    /// The first name of a number.
    pub fn name(&self, number: i32) -> Option<&str> {
        self.values.iter().find(|(_, known)| *known == number).map(|(name, _)| &**name)
    }
}

impl Kind {
    /// The message type of a value, if it is one.
    pub fn message(self) -> Option<MessageId> {
        match self {
            Self::Message(id) | Self::Group(id) => Some(id),
            _ => None,
        }
    }
}

struct Types<'a> {
    messages: &'a HashMap<Box<str>, MessageId>,
    enums: &'a HashMap<String, EnumId>,
}

impl Types<'_> {
    fn kind(&self, field: &FieldDescriptor) -> Kind {
        use prost_reflect::Kind as K;
        match field.kind() {
            K::Double => Kind::Double,
            K::Float => Kind::Float,
            K::Int32 => Kind::Int32,
            K::Int64 => Kind::Int64,
            K::Uint32 => Kind::Uint32,
            K::Uint64 => Kind::Uint64,
            K::Sint32 => Kind::Sint32,
            K::Sint64 => Kind::Sint64,
            K::Fixed32 => Kind::Fixed32,
            K::Fixed64 => Kind::Fixed64,
            K::Sfixed32 => Kind::Sfixed32,
            K::Sfixed64 => Kind::Sfixed64,
            K::Bool => Kind::Bool,
            K::String => Kind::String,
            K::Bytes => Kind::Bytes,
            // Every type of a pool is in the pool.
            K::Enum(descriptor) => Kind::Enum(self.enums.get(descriptor.full_name()).copied().unwrap_or(EnumId(0))),
            K::Message(descriptor) => {
                let id = self.messages.get(descriptor.full_name()).copied().unwrap_or(MessageId(0));
                if field.is_group() { Kind::Group(id) } else { Kind::Message(id) }
            }
        }
    }
}

fn message(descriptor: &MessageDescriptor, types: &Types<'_>) -> Message {
    let oneofs: Vec<_> = descriptor.oneofs().filter(|oneof| !oneof.is_synthetic()).collect();
    let mut fields: Vec<Field> = descriptor
        .fields()
        .map(|field| {
            let of = field.containing_oneof();
            Field {
                name: field.name().into(),
                json_name: field.json_name().into(),
                number: field.number(),
                kind: types.kind(&field),
                shape: match () {
                    () if field.is_map() => Shape::Map,
                    () if field.is_list() => Shape::List,
                    () => Shape::Single,
                },
                is_implicit: !field.supports_presence() && field.cardinality() != Cardinality::Repeated,
                is_required: field.cardinality() == Cardinality::Required,
                oneof: of.and_then(|of| oneofs.iter().position(|oneof| *oneof == of)),
            }
        })
        .collect();
    fields.sort_by_key(|field| field.number);
    let mut by_key: HashMap<Box<str>, usize> = HashMap::new();
    for (place, field) in fields.iter().enumerate() {
        by_key.insert(field.name.clone(), place);
    }
    // The JSON name of a field counts more than the declared name of another.
    for (place, field) in fields.iter().enumerate().rev() {
        by_key.insert(field.json_name.clone(), place);
    }
    Message {
        known: well_known(descriptor.full_name()),
        name: descriptor.full_name().into(),
        fields: fields.into(),
        oneofs: oneofs.iter().map(|oneof| oneof.name().into()).collect(),
        is_proto3: descriptor.parent_file().syntax() == Syntax::Proto3,
        by_key,
    }
}

fn enumeration(descriptor: &EnumDescriptor) -> Enumeration {
    let default = descriptor.default_value().number();
    let mut values: Vec<_> =
        descriptor.values().map(|value| (Box::<str>::from(value.name()), value.number())).collect();
    // The default is the first that was declared.
    values.sort_by_key(|(_, number)| *number != default);
    let name = descriptor.full_name();
    Enumeration { name: name.into(), values: values.into(), is_null: name == "google.protobuf.NullValue" }
}

fn well_known(name: &str) -> WellKnown {
    let Some(name) = name.strip_prefix("google.protobuf.") else { return WellKnown::No };
    match name {
        "Any" => WellKnown::Any,
        "Duration" => WellKnown::Duration,
        "FieldMask" => WellKnown::FieldMask,
        "ListValue" => WellKnown::ListValue,
        "Struct" => WellKnown::Struct,
        "Timestamp" => WellKnown::Timestamp,
        "Value" => WellKnown::Value,
        "DoubleValue" | "FloatValue" | "Int64Value" | "UInt64Value" | "Int32Value" | "UInt32Value" | "BoolValue"
        | "StringValue" | "BytesValue" => WellKnown::Wrapper,
        _ => WellKnown::No,
    }
}
