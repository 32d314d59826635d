//! HTTP/1 bodies: bytes in, body data out (RFC 9112 sections 6 and 7).
//!
//! Owns where a body ends. Pure: never reads a socket, and never copies data.

use std::ops::Range;

use super::parse::{Framing, HeadError, Limits, LookedAt, parse_trailers};
use crate::http::headers::Headers;

/// Finds the data in the bytes of one body.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
}

#[derive(Debug)]
enum State {
    Length(u64),
    UntilClose,
    ChunkSize { value: u64, digits: u8, after: After, line_bytes: u16 },
    ChunkData(u64),
    ChunkEnd,
    Trailers(LookedAt),
    Done,
}

/// What came behind the digits of a chunk size.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum After {
    Nothing,
    /// Blanks, behind which an extension may begin (RFC 9112 section 7.1.1).
    Blanks,
    Extension,
}

/// What the bytes at hand mean.
#[derive(Debug, Eq, PartialEq)]
pub enum Step {
    /// `data` of the input is body; `consumed` bytes are done with.
    Data { data: Range<usize>, consumed: usize },
    /// `consumed` bytes are done with; more are needed.
    More { consumed: usize },
    /// The body has ended; `consumed` bytes belonged to it.
    End { consumed: usize },
}

/// Why a body was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BodyError {
    /// A chunk size that is not a hexadecimal number, or has a bad line end.
    #[error("invalid chunk size")]
    ChunkSize,
    /// Chunk data not followed by CR LF.
    #[error("chunk data longer than its size")]
    ChunkEnd,
    /// Trailers that are not headers.
    #[error("invalid trailers: {0}")]
    Trailers(HeadError),
    /// The connection ended within the body.
    #[error("connection closed within the body")]
    Incomplete,
}

/// Chunk extensions are skipped; longer ones than this are an attack.
const MAX_CHUNK_LINE_BYTES: u16 = 4096;

impl BodyDecoder {
    /// For a body with this framing.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::start_of_chunk(),
            Framing::UntilClose => State::UntilClose,
        };
        Self { state }
    }

    /// The whole body has been seen.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// The connection was closed by the peer.
    ///
    /// # Errors
    /// When the body needed more.
    pub fn closed(&mut self) -> Result<(), BodyError> {
        match self.state {
            State::UntilClose | State::Done => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(BodyError::Incomplete),
        }
    }

    /// Reads on. Trailers, if any, are added to `trailers`.
    ///
    /// # Errors
    /// When the bytes are not a body; nothing can be read from the connection any more.
    pub fn decode(&mut self, input: &[u8], limits: &Limits, trailers: &mut Headers) -> Result<Step, BodyError> {
        let mut consumed = 0;
        loop {
            let rest = &input[consumed..];
            match self.state {
                State::Done => return Ok(Step::End { consumed }),
                State::UntilClose if rest.is_empty() => return Ok(Step::More { consumed }),
                State::UntilClose => return Ok(Step::Data { data: consumed..input.len(), consumed: input.len() }),
                State::Length(remaining) => return Ok(self.take(consumed, rest.len(), remaining, false)),
                State::ChunkData(remaining) if remaining > 0 => {
                    return Ok(self.take(consumed, rest.len(), remaining, true));
                }
                State::ChunkData(_) => self.state = State::ChunkEnd,
                State::ChunkEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        consumed += 2;
                        self.state = State::start_of_chunk();
                    }
                    [] | [b'\r'] => return Ok(Step::More { consumed }),
                    _ => return Err(BodyError::ChunkEnd),
                },
                State::ChunkSize { .. } => match self.chunk_size(rest)? {
                    (used, true) => consumed += used,
                    (used, false) => return Ok(Step::More { consumed: consumed + used }),
                },
                State::Trailers(ref mut looked) => {
                    if !looked.is_worth_another(rest, limits) {
                        return Ok(Step::More { consumed });
                    }
                    match parse_trailers(rest, limits, trailers).map_err(BodyError::Trailers)? {
                        Some(used) => {
                            consumed += used;
                            self.state = State::Done;
                        }
                        None => return Ok(Step::More { consumed }),
                    }
                }
            }
        }
    }

    fn take(&mut self, consumed: usize, available: usize, remaining: u64, chunk: bool) -> Step {
        if available == 0 {
            return Step::More { consumed };
        }
        // The smaller of the two always fits a usize.
        let count = remaining.min(available as u64) as usize;
        let left = remaining - count as u64;
        self.state = match (chunk, left) {
            (true, left) => State::ChunkData(left),
            (false, 0) => State::Done,
            (false, left) => State::Length(left),
        };
        Step::Data { data: consumed..consumed + count, consumed: consumed + count }
    }

    /// Reads a chunk-size line; (bytes used, the line is complete).
    fn chunk_size(&mut self, input: &[u8]) -> Result<(usize, bool), BodyError> {
        let State::ChunkSize { value, digits, after, line_bytes } = &mut self.state else {
            return Err(BodyError::ChunkSize);
        };
        for (position, byte) in input.iter().enumerate() {
            *line_bytes += 1;
            if *line_bytes > MAX_CHUNK_LINE_BYTES {
                return Err(BodyError::ChunkSize);
            }
            match byte {
                b'\r' => {
                    if *digits == 0 {
                        return Err(BodyError::ChunkSize);
                    }
                    return match input.get(position + 1) {
                        Some(b'\n') => {
                            let size = *value;
                            self.state =
                                if size == 0 { State::Trailers(LookedAt::default()) } else { State::ChunkData(size) };
                            Ok((position + 2, true))
                        }
                        Some(_) => Err(BodyError::ChunkSize),
                        // The CR is looked at again together with what follows it.
                        None => {
                            *line_bytes -= 1;
                            Ok((position, false))
                        }
                    };
                }
                b'\n' => return Err(BodyError::ChunkSize),
                _ if *after == After::Extension => {}
                b';' if *digits > 0 => *after = After::Extension,
                b' ' | b'\t' if *digits > 0 => *after = After::Blanks,
                // More digits behind a blank: another would take them for a part of the size.
                _ if *after == After::Blanks => return Err(BodyError::ChunkSize),
                _ => {
                    let digit = char::from(*byte).to_digit(16).ok_or(BodyError::ChunkSize)?;
                    // 15 digits are 1 EiB: more would only serve to overflow somebody's counter.
                    if *digits >= 15 {
                        return Err(BodyError::ChunkSize);
                    }
                    *value = *value * 16 + u64::from(digit);
                    *digits += 1;
                }
            }
        }
        Ok((input.len(), false))
    }
}

impl State {
    fn start_of_chunk() -> Self {
        State::ChunkSize { value: 0, digits: 0, after: After::Nothing, line_bytes: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        max_head_bytes: 1024,
        max_headers: 4,
        allow_chunked_length: false,
        allow_custom_methods: false,
        preserve_case: None,
    };

    /// Feeds `input` in pieces of `size` and returns (data, bytes consumed, ended).
    fn feed(framing: Framing, input: &[u8], size: usize) -> Result<(Vec<u8>, usize, bool), BodyError> {
        let mut decoder = BodyDecoder::new(framing);
        let (mut data, mut position, mut end) = (Vec::new(), 0, size.min(input.len()));
        let mut trailers = Headers::default();
        loop {
            match decoder.decode(&input[position..end], &LIMITS, &mut trailers)? {
                Step::Data { data: range, consumed } => {
                    data.extend_from_slice(&input[position..end][range]);
                    position += consumed;
                }
                Step::End { consumed } => return Ok((data, position + consumed, true)),
                Step::More { consumed } => {
                    position += consumed;
                    if end == input.len() {
                        return Ok((data, position, false));
                    }
                    end = (end + size).min(input.len());
                }
            }
        }
    }

    #[test]
    fn chunks_are_joined_in_pieces_of_any_size() {
        let input = b"5 \r\nhello\r\n6 ;name=value\r\n world\r\n0\r\nx: y\r\n\r\nGET";
        for size in 1..=input.len() {
            let (data, consumed, ended) = feed(Framing::Chunked, input, size).unwrap();
            assert_eq!((data.as_slice(), consumed, ended), (&b"hello world"[..], input.len() - 3, true), "size {size}");
        }
    }

    #[test]
    fn bad_chunks_are_refused() {
        let refused = |input: &[u8]| feed(Framing::Chunked, input, 1).unwrap_err();
        assert_eq!(refused(b"\r\n"), BodyError::ChunkSize);
        assert_eq!(refused(b"5\nhello"), BodyError::ChunkSize);
        assert_eq!(refused(b"-5\r\n"), BodyError::ChunkSize);
        assert_eq!(refused(b"0x5\r\n"), BodyError::ChunkSize);
        assert_eq!(refused(b" 5\r\n"), BodyError::ChunkSize);
        assert_eq!(refused(b"5 5\r\n"), BodyError::ChunkSize);
        assert_eq!(refused(b"1000000000000000\r\n"), BodyError::ChunkSize);
        assert_eq!(refused(b"2\r\nabc\r\n"), BodyError::ChunkEnd);
        assert_eq!(refused(b"5\rX"), BodyError::ChunkSize);
    }

    #[test]
    fn a_length_ends_where_it_says() {
        assert_eq!(feed(Framing::Length(3), b"abcGET", 2).unwrap(), (b"abc".to_vec(), 3, true));
        assert_eq!(feed(Framing::Length(0), b"GET", 1).unwrap(), (Vec::new(), 0, true));
        assert_eq!(BodyDecoder::new(Framing::Length(3)).closed(), Err(BodyError::Incomplete));
        assert_eq!(BodyDecoder::new(Framing::UntilClose).closed(), Ok(()));
    }

    proptest::proptest! {
        #[test]
        fn pieces_do_not_change_the_result(input: Vec<u8>, size in 1usize..20) {
            let whole = feed(Framing::Chunked, &input, input.len().max(1));
            let pieces = feed(Framing::Chunked, &input, size);
            if let (Ok(whole), Ok(pieces)) = (whole, pieces) {
                proptest::prop_assert_eq!(whole.2, pieces.2);
                proptest::prop_assert_eq!(whole.0, pieces.0);
            }
        }
    }
}
