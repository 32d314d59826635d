//! The byte layout of the schema table: owned here once, for build.rs which writes it and for `table` which reads it.
//!
//! All numbers are little endian. The table is a header of five `u32` counts (messages, fields, enums, enum values,
//! bytes of text), then those sections in the same order. Records have a fixed size, so that record `i` is found by
//! multiplication and nothing has to be decoded or allocated before use.
//!
//! - message (sorted by name): text offset u32, text length u16, shape u8, flags u8, first field u32, field count u32
//! - field (in declaration order): text offset u32, text length u16, kind u8, flags u8, number u32, type u32, oneof u32
//! - enum: text offset u32, text length u16, unused u16, first value u32, value count u32
//! - enum value: text offset u32, text length u16, unused u16, number i32

/// Bytes of the header.
pub const HEADER: usize = 20;
/// Bytes of a message record.
pub const MESSAGE: usize = 16;
/// Bytes of a field record.
pub const FIELD: usize = 20;
/// Bytes of an enum record.
pub const ENUM: usize = 16;
/// Bytes of an enum value record.
pub const VALUE: usize = 12;

/// `oneof` of a field that belongs to none.
pub const NO_ONEOF: u32 = u32::MAX;

/// Message flag: an `Any` can be reached through its fields.
pub const REACHES_ANY: u8 = 1;

/// Field flag: `repeated`, and not a map.
pub const REPEATED: u8 = 1;
/// Field flag: a map; the field's type is the entry message.
pub const MAP: u8 = 2;
/// Field flag: repeated numbers are written packed.
pub const PACKED: u8 = 4;
/// Field flag: absent and zero differ.
pub const PRESENCE: u8 = 8;
/// Field flag: annotated as sensitive; dumps hide it.
pub const SENSITIVE: u8 = 16;

/// Message shapes: which messages have a JSON form of their own.
pub mod shape {
    /// An object with a member for each field.
    pub const PLAIN: u8 = 0;
    /// `google.protobuf.Any`.
    pub const ANY: u8 = 1;
    /// `google.protobuf.Duration`.
    pub const DURATION: u8 = 2;
    /// `google.protobuf.Timestamp`.
    pub const TIMESTAMP: u8 = 3;
    /// `google.protobuf.Struct`.
    pub const STRUCT: u8 = 4;
    /// `google.protobuf.Value`.
    pub const VALUE: u8 = 5;
    /// `google.protobuf.ListValue`.
    pub const LIST: u8 = 6;
    /// A wrapper such as `google.protobuf.UInt32Value`.
    pub const WRAPPER: u8 = 7;
}

/// Field kinds, numbered as in `google.protobuf.FieldDescriptorProto.Type`.
pub mod kind {
    /// `double`.
    pub const DOUBLE: u8 = 1;
    /// `float`.
    pub const FLOAT: u8 = 2;
    /// `int64`.
    pub const INT64: u8 = 3;
    /// `uint64`.
    pub const UINT64: u8 = 4;
    /// `int32`.
    pub const INT32: u8 = 5;
    /// `fixed64`.
    pub const FIXED64: u8 = 6;
    /// `fixed32`.
    pub const FIXED32: u8 = 7;
    /// `bool`.
    pub const BOOL: u8 = 8;
    /// `string`.
    pub const STRING: u8 = 9;
    /// A message; the field's type is an index of messages.
    pub const MESSAGE: u8 = 11;
    /// `bytes`.
    pub const BYTES: u8 = 12;
    /// `uint32`.
    pub const UINT32: u8 = 13;
    /// An enum; the field's type is an index of enums.
    pub const ENUM: u8 = 14;
    /// `sfixed32`.
    pub const SFIXED32: u8 = 15;
    /// `sfixed64`.
    pub const SFIXED64: u8 = 16;
    /// `sint32`.
    pub const SINT32: u8 = 17;
    /// `sint64`.
    pub const SINT64: u8 = 18;
}
