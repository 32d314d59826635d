//! Reading the schema table. Messages, fields and enums are indices into it: copying one is free, nothing is decoded.
//!
//! The table is written by build.rs of the same build, so its indices are trusted.

use super::layout::{self, kind, shape};

static TABLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/schema.bin"));

fn byte_at(at: usize) -> u8 {
    TABLE[at]
}

fn u16_at(at: usize) -> usize {
    usize::from(u16::from_le_bytes([TABLE[at], TABLE[at + 1]]))
}

fn u32_at(at: usize) -> u32 {
    u32::from_le_bytes([TABLE[at], TABLE[at + 1], TABLE[at + 2], TABLE[at + 3]])
}

fn size_at(at: usize) -> usize {
    u32_at(at) as usize
}

fn messages_at() -> usize {
    layout::HEADER
}

fn fields_at() -> usize {
    messages_at() + size_at(0) * layout::MESSAGE
}

fn enums_at() -> usize {
    fields_at() + size_at(4) * layout::FIELD
}

fn values_at() -> usize {
    enums_at() + size_at(8) * layout::ENUM
}

fn text_at() -> usize {
    values_at() + size_at(12) * layout::VALUE
}

/// The name that a record starts with.
fn name_at(record: usize) -> &'static str {
    let start = text_at() + size_at(record);
    std::str::from_utf8(&TABLE[start..start + u16_at(record + 4)]).unwrap_or_default()
}

/// A message type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    record: usize,
}

impl Message {
    fn nth(index: usize) -> Self {
        Self { record: messages_at() + index * layout::MESSAGE }
    }

    /// The message of this full name, such as `envoy.config.cluster.v3.Cluster`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let (mut low, mut high) = (0, size_at(0));
        while low < high {
            let middle = low.midpoint(high);
            let message = Self::nth(middle);
            match message.name().cmp(name) {
                std::cmp::Ordering::Equal => return Some(message),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    pub(crate) fn name(self) -> &'static str {
        name_at(self.record)
    }

    /// One of `layout::shape`.
    pub(crate) fn shape(self) -> u8 {
        byte_at(self.record + 6)
    }

    /// Whether its JSON is an object with a member for each field.
    pub(crate) fn is_plain(self) -> bool {
        self.shape() == shape::PLAIN
    }

    pub(crate) fn reaches_any(self) -> bool {
        byte_at(self.record + 7) & layout::REACHES_ANY != 0
    }

    /// The fields in the order of the source.
    pub(crate) fn fields(self) -> impl Iterator<Item = Field> + Clone {
        let first = size_at(self.record + 8);
        let count = size_at(self.record + 12);
        (first..first + count).map(|index| Field { record: fields_at() + index * layout::FIELD })
    }

    /// The field of this name, in either spelling.
    pub(crate) fn field_by_key(self, key: &str) -> Option<Field> {
        self.fields().find(|field| field.name() == key || is_camel_of(key, field.name()))
    }

    pub(crate) fn field_by_number(self, number: u32) -> Option<Field> {
        self.fields().find(|field| field.number() == number)
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A field of a message. Fields of one message compare in the order of the source.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Field {
    record: usize,
}

impl Field {
    /// The name in the proto source.
    pub(crate) fn name(self) -> &'static str {
        name_at(self.record)
    }

    /// One of `layout::kind`.
    pub(crate) fn kind(self) -> u8 {
        byte_at(self.record + 6)
    }

    fn has(self, flag: u8) -> bool {
        byte_at(self.record + 7) & flag != 0
    }

    pub(crate) fn is_repeated(self) -> bool {
        self.has(layout::REPEATED)
    }

    pub(crate) fn is_map(self) -> bool {
        self.has(layout::MAP)
    }

    pub(crate) fn is_packed(self) -> bool {
        self.has(layout::PACKED)
    }

    pub(crate) fn has_presence(self) -> bool {
        self.has(layout::PRESENCE)
    }

    pub(crate) fn is_sensitive(self) -> bool {
        self.has(layout::SENSITIVE)
    }

    pub(crate) fn number(self) -> u32 {
        u32_at(self.record + 8)
    }

    /// The type of a message field; for a map, the entry.
    pub(crate) fn message(self) -> Option<Message> {
        (self.kind() == kind::MESSAGE).then(|| Message::nth(size_at(self.record + 12)))
    }

    /// The type of an enum field.
    pub(crate) fn enumeration(self) -> Option<Enum> {
        (self.kind() == kind::ENUM).then(|| Enum { record: enums_at() + size_at(self.record + 12) * layout::ENUM })
    }

    /// Which oneof of its message the field is a choice of.
    pub(crate) fn oneof(self) -> Option<u32> {
        Some(u32_at(self.record + 16)).filter(|oneof| *oneof != layout::NO_ONEOF)
    }
}

/// An enum type.
#[derive(Clone, Copy)]
pub(crate) struct Enum {
    record: usize,
}

impl Enum {
    pub(crate) fn name(self) -> &'static str {
        name_at(self.record)
    }

    /// Names and numbers in the order of the source.
    pub(crate) fn values(self) -> impl Iterator<Item = (&'static str, i32)> {
        let first = size_at(self.record + 8);
        let count = size_at(self.record + 12);
        (first..first + count).map(|index| {
            let record = values_at() + index * layout::VALUE;
            (name_at(record), u32_at(record + 8).cast_signed())
        })
    }
}

/// The JSON name of a field: underscores go, and raise the letter after them.
pub(crate) fn lower_camel(name: &str) -> String {
    camel_chars(name).collect()
}

fn is_camel_of(key: &str, name: &str) -> bool {
    key.chars().eq(camel_chars(name))
}

fn camel_chars(name: &str) -> impl Iterator<Item = char> {
    let mut raise = false;
    name.chars().filter_map(move |c| {
        if c == '_' {
            raise = true;
            return None;
        }
        Some(if std::mem::take(&mut raise) { c.to_ascii_uppercase() } else { c })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_found_by_its_name() {
        for index in 0..size_at(0) {
            let message = Message::nth(index);
            assert_eq!(Message::named(message.name()), Some(message));
        }
        assert_eq!(Message::named("envoy.config.cluster.v3.Clusters"), None);
        assert_eq!(Message::named(""), None);
    }

    #[test]
    fn a_field_answers_to_both_spellings() {
        let cluster = Message::named("envoy.config.cluster.v3.Cluster").unwrap();
        let field = cluster.field_by_key("load_assignment").unwrap();
        assert_eq!(cluster.field_by_key("loadAssignment"), Some(field));
        assert_eq!((field.number(), field.kind()), (33, kind::MESSAGE));
        assert_eq!(cluster.field_by_key("loadassignment"), None);
    }

    #[test]
    fn what_is_secret_is_marked() {
        let certificate = Message::named("envoy.extensions.transport_sockets.tls.v3.TlsCertificate").unwrap();
        assert!(certificate.field_by_key("private_key").unwrap().is_sensitive());
        assert!(!certificate.field_by_key("certificate_chain").unwrap().is_sensitive());
    }

    impl std::fmt::Debug for Field {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.name())
        }
    }
}
