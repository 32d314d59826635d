//! HTTP/1 bodies. The first byte chooses the framing, the second how the bytes are split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::http::h1::body::{BodyDecoder, BodyError, Step};
use outrigger::http::h1::encode::chunk_start;
use outrigger::http::h1::parse::{Framing, Limits};
use outrigger::http::headers::Headers;

const LIMITS: Limits = Limits {
    max_head_bytes: 1024,
    max_headers: 10,
    allow_chunked_length: false,
    allow_custom_methods: false,
    preserve_case: None,
};

/// What was read of a body: its data, its trailers, and where it ended if it did.
#[derive(Debug, PartialEq)]
struct Body {
    data: Vec<u8>,
    trailers: Vec<(Vec<u8>, Vec<u8>)>,
    end: Option<usize>,
}

fuzz_target!(|data: &[u8]| {
    let [choice, piece, input @ ..] = data else { return };
    let framing = match choice % 4 {
        0 => Framing::None,
        1 => Framing::Length(u64::from(choice / 4)),
        2 => Framing::Chunked,
        _ => Framing::UntilClose,
    };
    let whole = read(framing, input, input.len().max(1));
    let split = read(framing, input, usize::from(*piece).max(1));
    // A limit may be noticed earlier or later, so only bodies that were read both times are compared.
    if let (Ok(whole), Ok(split)) = (whole, split) {
        assert_eq!(whole, split);
    }
    written_and_read(input, usize::from(*choice).max(1), usize::from(*piece).max(1));
});

/// What is written in chunks is read again, however it is cut.
fn written_and_read(data: &[u8], chunk: usize, piece: usize) {
    let mut written = Vec::new();
    for chunk in data.chunks(chunk) {
        chunk_start(chunk.len(), &mut written);
        written.extend_from_slice(chunk);
        written.extend_from_slice(b"\r\n");
    }
    written.extend_from_slice(b"0\r\n\r\n");
    let expected = Body { data: data.to_vec(), trailers: Vec::new(), end: Some(written.len()) };
    for piece in [piece, written.len()] {
        assert_eq!(read(Framing::Chunked, &written, piece).as_ref(), Ok(&expected));
    }
}

/// Reads `input` as it would arrive: `piece` more bytes whenever the decoder can do nothing with what there is.
fn read(framing: Framing, input: &[u8], piece: usize) -> Result<Body, BodyError> {
    let mut decoder = BodyDecoder::new(framing);
    let mut trailers = Headers::default();
    let mut body = Body { data: Vec::new(), trailers: Vec::new(), end: None };
    let (mut start, mut end) = (0, piece.min(input.len()));
    loop {
        let at_hand = &input[start..end];
        match decoder.decode(at_hand, &LIMITS, &mut trailers)? {
            Step::Data { data, consumed } => {
                assert!(consumed > 0 && consumed <= at_hand.len());
                body.data.extend_from_slice(&at_hand[data]);
                start += consumed;
            }
            Step::More { consumed } => {
                assert!(consumed <= at_hand.len());
                start += consumed;
                if end == input.len() {
                    break;
                }
                end = (end + piece).min(input.len());
            }
            Step::End { consumed } => {
                assert!(consumed <= at_hand.len() && decoder.is_done());
                body.end = Some(start + consumed);
                break;
            }
        }
    }
    body.trailers = trailers.iter().map(|(_, name, value)| (name.to_vec(), value.to_vec())).collect();
    Ok(body)
}
