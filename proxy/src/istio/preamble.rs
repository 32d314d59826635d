//! What both sides of a connection that exchanges metadata say before the first byte of the application.
//!
//! Owns its form on the wire, and how the peer's is told from other bytes. Never touches a connection.

use super::workload::put;

/// The preamble around a serialised `google.protobuf.Struct`.
pub fn encode(introduction: &[u8]) -> Vec<u8> {
    let mut any = Vec::with_capacity(introduction.len() + TYPE_URL.len() + 8);
    put(&mut any, 1, TYPE_URL.as_bytes());
    put(&mut any, 2, introduction);
    // Facts of a node are far from 4 GiB.
    let length = u32::try_from(any.len()).unwrap_or(u32::MAX);
    [&MAGIC.to_be_bytes()[..], &length.to_be_bytes(), &any].concat()
}

/// What was read of the peer's preamble.
#[derive(Debug, Eq, PartialEq)]
pub enum Progress {
    /// These first bytes, fewer than [`HEAD_BYTES`].
    Head(Vec<u8>),
    /// The head; so many bytes of the rest are to come.
    Rest(u32),
    /// There is none: these bytes are the application's.
    Absent(Vec<u8>),
    /// All of it.
    Complete,
}

impl Progress {
    /// Nothing was read.
    pub const START: Progress = Progress::Head(Vec::new());

    /// How many bytes may be read now without reading one of the application's behind the preamble.
    pub fn wanted(&self) -> usize {
        match self {
            Progress::Head(head) => HEAD_BYTES - head.len(),
            Progress::Rest(left) => *left as usize,
            Progress::Absent(_) | Progress::Complete => 0,
        }
    }

    /// Takes up to [`Progress::wanted`] bytes; none at all is the end.
    pub fn advance(self, bytes: &[u8]) -> Self {
        match self {
            Progress::Head(head) if bytes.is_empty() => Progress::Absent(head),
            Progress::Head(mut head) => {
                head.extend_from_slice(bytes);
                match head.first_chunk::<HEAD_BYTES>() {
                    None => Progress::Head(head),
                    Some([a, b, c, d, length @ ..]) if [*a, *b, *c, *d] == MAGIC.to_be_bytes() => {
                        Self::rest(u32::from_be_bytes(*length))
                    }
                    Some(_) => Progress::Absent(head),
                }
            }
            Progress::Rest(_) if bytes.is_empty() => Progress::Complete,
            Progress::Rest(left) => Self::rest(left.saturating_sub(u32::try_from(bytes.len()).unwrap_or(u32::MAX))),
            Progress::Absent(_) | Progress::Complete => self,
        }
    }

    fn rest(left: u32) -> Self {
        if left == 0 { Progress::Complete } else { Progress::Rest(left) }
    }
}

/// Magic and length.
const HEAD_BYTES: usize = 8;
/// Source: Istio's metadata exchange filter.
const MAGIC: u32 = 0x3D23_0467;
const TYPE_URL: &str = "type.googleapis.com/google.protobuf.Struct";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is left for the application when `stream` comes in pieces of `step` bytes.
    fn application(stream: &[u8], step: usize) -> Vec<u8> {
        let mut progress = Progress::START;
        let mut rest = stream;
        loop {
            let count = progress.wanted().min(step).min(rest.len());
            if progress.wanted() == 0 {
                break;
            }
            let (piece, after) = rest.split_at(count);
            rest = after;
            progress = progress.advance(piece);
        }
        match progress {
            Progress::Absent(ahead) => [&ahead, rest].concat(),
            _ => rest.to_vec(),
        }
    }

    proptest! {
        #[test]
        fn the_preamble_is_taken_and_nothing_else(
            words in proptest::collection::vec(any::<u8>(), 0..100),
            data in proptest::collection::vec(any::<u8>(), 0..50),
            step in 1_usize..200,
        ) {
            let stream = [&encode(&words)[..], &data].concat();
            prop_assert_eq!(application(&stream, step), data);
        }

        #[test]
        fn other_bytes_stay(data in proptest::collection::vec(any::<u8>(), 0..50), step in 1_usize..20) {
            prop_assume!(!data.starts_with(&MAGIC.to_be_bytes()));
            prop_assert_eq!(application(&data, step), data);
        }
    }

    #[test]
    fn an_end_within_the_preamble_is_an_end() {
        let preamble = encode(b"words");
        assert_eq!(application(&preamble[..20], 100), b"");
        assert_eq!(application(&preamble[..5], 100), &preamble[..5]);
    }
}
