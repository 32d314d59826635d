//! Protobuf's wire format: reading one field after another, and writing fields.
//!
//! Groups are refused: no message of the API has one.

/// Wire type of varints.
pub(crate) const VARINT: u8 = 0;
/// Wire type of eight bytes.
pub(crate) const FIXED64: u8 = 1;
/// Wire type of a length and that many bytes.
pub(crate) const BYTES: u8 = 2;
/// Wire type of four bytes.
pub(crate) const FIXED32: u8 = 5;

/// The bytes are not protobuf: cut off, over-long or of an unknown wire type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed protobuf")]
pub(crate) struct Malformed;

/// The value of one field as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Raw<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// The fields of an encoded message, in wire order.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn of(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn take_next(&mut self) -> Result<(u32, Raw<'a>), Malformed> {
        let key = take_varint(&mut self.rest)?;
        let number = u32::try_from(key >> 3).ok().filter(|number| *number != 0).ok_or(Malformed)?;
        // Three bits fit.
        let raw = match (key & 7) as u8 {
            VARINT => Raw::Varint(take_varint(&mut self.rest)?),
            FIXED64 => Raw::Fixed64(take_fixed64(&mut self.rest)?),
            FIXED32 => Raw::Fixed32(take_fixed32(&mut self.rest)?),
            BYTES => {
                let length = usize::try_from(take_varint(&mut self.rest)?).map_err(|_| Malformed)?;
                let (bytes, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
                self.rest = rest;
                Raw::Bytes(bytes)
            }
            _ => return Err(Malformed),
        };
        Ok((number, raw))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Raw<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let next = self.take_next();
        if next.is_err() {
            self.rest = &[];
        }
        Some(next)
    }
}

pub(crate) fn take_varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for position in 0..10 {
        let (&byte, after) = rest.split_first().ok_or(Malformed)?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

pub(crate) fn take_fixed64(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let (bytes, after) = rest.split_first_chunk().ok_or(Malformed)?;
    *rest = after;
    Ok(u64::from_le_bytes(*bytes))
}

pub(crate) fn take_fixed32(rest: &mut &[u8]) -> Result<u32, Malformed> {
    let (bytes, after) = rest.split_first_chunk().ok_or(Malformed)?;
    *rest = after;
    Ok(u32::from_le_bytes(*bytes))
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        // Seven bits fit.
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_key(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

/// Writes a string, bytes or message field.
pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_key(out, number, BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// Writes a field as it was read.
pub(crate) fn put_raw(out: &mut Vec<u8>, number: u32, raw: Raw<'_>) {
    match raw {
        Raw::Varint(value) => {
            put_key(out, number, VARINT);
            put_varint(out, value);
        }
        Raw::Fixed64(value) => {
            put_key(out, number, FIXED64);
            out.extend(value.to_le_bytes());
        }
        Raw::Fixed32(value) => {
            put_key(out, number, FIXED32);
            out.extend(value.to_le_bytes());
        }
        Raw::Bytes(bytes) => put_bytes(out, number, bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_they_were_written() {
        let fields =
            [(1, Raw::Varint(u64::MAX)), (2, Raw::Fixed64(7)), (300, Raw::Bytes(b"abc")), (4, Raw::Fixed32(u32::MAX))];
        let mut bytes = Vec::new();
        for (number, raw) in fields {
            put_raw(&mut bytes, number, raw);
        }
        assert_eq!(Fields::of(&bytes).collect::<Result<Vec<_>, _>>().unwrap(), fields);
    }

    #[test]
    fn broken_bytes_end_in_one_error() {
        for bytes in [&[0x0a, 5, 1][..], &[0x0b], &[0x00, 1], &[0x80; 11], &[0x0d, 1, 2]] {
            assert_eq!(Fields::of(bytes).collect::<Vec<_>>(), [Err(Malformed)], "{bytes:?}");
        }
    }
}
