//! The wire format of protobuf, as far as messages are written and read without types of their own.
//!
//! Owns tags, lengths and numbers. Never knows a message.

/// How a value stands on the wire.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum WireType {
    Varint = 0,
    Fixed64 = 1,
    Length = 2,
    StartGroup = 3,
    EndGroup = 4,
    Fixed32 = 5,
}

/// Writes a number of 7 bits a byte.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Writes what stands before a value.
pub(super) fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: WireType) {
    put_varint(out, u64::from(number) << 3 | wire_type as u64);
}

/// Writes a field that has a length.
pub(super) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_tag(out, number, WireType::Length);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Encodes so that small negative numbers are short.
pub(super) fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

/// Decodes it.
pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Reads a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'m> {
    rest: &'m [u8],
}

/// The bytes are no message.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum WireError {
    #[error("unexpected EOF")]
    End,
    #[error("malformed length-delimited field")]
    Length,
    #[error("invalid tag")]
    Tag,
    #[error("invalid varint")]
    Varint,
}

impl<'m> Reader<'m> {
    pub(super) fn new(rest: &'m [u8]) -> Self {
        Self { rest }
    }

    pub(super) fn is_done(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.rest.split_first().ok_or(WireError::End)?;
            self.rest = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::Varint)
    }

    /// The number of the next field, and how its value stands there.
    pub(super) fn tag(&mut self) -> Result<(u32, WireType), WireError> {
        let tag = u32::try_from(self.varint()?).map_err(|_| WireError::Tag)?;
        let wire_type = match tag & 7 {
            0 => WireType::Varint,
            1 => WireType::Fixed64,
            2 => WireType::Length,
            3 => WireType::StartGroup,
            4 => WireType::EndGroup,
            5 => WireType::Fixed32,
            _ => return Err(WireError::Tag),
        };
        match tag >> 3 {
            0 => Err(WireError::Tag),
            number => Ok((number, wire_type)),
        }
    }

    pub(super) fn bytes(&mut self) -> Result<&'m [u8], WireError> {
        let length = usize::try_from(self.varint()?).map_err(|_| WireError::End)?;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(WireError::End)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(WireError::End)?;
        self.rest = rest;
        Ok(*bytes)
    }

    pub(super) fn fixed32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn fixed64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Passes over a value; over a group as a whole.
    pub(super) fn skip(&mut self, number: u32, wire_type: WireType) -> Result<(), WireError> {
        let mut open = Vec::new();
        let mut next = (number, wire_type);
        loop {
            match next {
                (_, WireType::Varint) => drop(self.varint()?),
                (_, WireType::Fixed64) => drop(self.fixed64()?),
                (_, WireType::Length) => drop(self.bytes().map_err(|_| WireError::Length)?),
                (_, WireType::Fixed32) => drop(self.fixed32()?),
                (number, WireType::StartGroup) if open.len() < MOST_GROUPS => open.push(number),
                (number, WireType::EndGroup) if open.last() == Some(&number) => drop(open.pop()),
                (_, WireType::StartGroup | WireType::EndGroup) => return Err(WireError::Tag),
            }
            if open.is_empty() {
                return Ok(());
            }
            next = self.tag()?;
        }
    }

    /// The content of a group that was begun, up to its end, which is passed over.
    pub(super) fn group(&mut self, number: u32) -> Result<&'m [u8], WireError> {
        let whole = self.rest;
        loop {
            let before = self.rest.len();
            match self.tag()? {
                (end, WireType::EndGroup) if end == number => return Ok(&whole[..whole.len() - before]),
                (other, wire_type) => self.skip(other, wire_type)?,
            }
        }
    }
}

/// Groups inside of each other.
const MOST_GROUPS: usize = 100;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(number in 1u32..1 << 29, value: u64, signed: i64, bytes: Vec<u8>) {
            let mut out = Vec::new();
            put_tag(&mut out, number, WireType::Varint);
            put_varint(&mut out, value);
            put_bytes(&mut out, number, &bytes);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.tag(), Ok((number, WireType::Varint)));
            prop_assert_eq!(reader.varint(), Ok(value));
            prop_assert_eq!(reader.tag(), Ok((number, WireType::Length)));
            prop_assert_eq!(reader.bytes(), Ok(&bytes[..]));
            prop_assert!(reader.is_done());
            prop_assert_eq!(unzigzag(zigzag(signed)), signed);
        }

        #[test]
        fn no_bytes_are_too_much(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            while let Ok((number, wire_type)) = reader.tag() {
                if reader.skip(number, wire_type).is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn groups_end_where_they_should() {
        let bytes = [0x0b, 0x08, 1, 0x13, 0x14, 0x0c, 0x10, 2];
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.tag(), Ok((1, WireType::StartGroup)));
        assert_eq!(reader.group(1), Ok(&bytes[1..5]));
        assert_eq!(reader.tag(), Ok((2, WireType::Varint)));
        let mut reader = Reader::new(&[0x0b, 0x14]);
        reader.tag().unwrap();
        assert_eq!(reader.group(1), Err(WireError::Tag));
    }
}
