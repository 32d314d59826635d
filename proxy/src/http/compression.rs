//! Compressing and decompressing bodies piece by piece.
//!
//! Owns the libraries' streams. Never decides what is compressed.

use std::io::{self, Write};

use outrigger_config::http::filters::{BrotliMode, Compression, ContentCoding};

/// Compresses one body.
pub struct Encoder(Library);

enum Library {
    /// Its compressor writes gzip.
    Gzip(flate2::write::ZlibEncoder<Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    /// A stream as `settings` say.
    ///
    /// # Errors
    /// If the library has no memory for it.
    pub fn new(settings: Compression) -> io::Result<Self> {
        Ok(Self(match settings {
            Compression::Gzip { level, window_bits } => {
                let compress = flate2::Compress::new_gzip(flate2::Compression::new(level), window_bits);
                Library::Gzip(flate2::write::ZlibEncoder::new_with_compress(Vec::new(), compress))
            }
            Compression::Brotli { quality, window_bits, mode } => {
                let parameters = brotli::enc::BrotliEncoderParams {
                    quality: quality.into(),
                    lgwin: window_bits.into(),
                    mode: match mode {
                        BrotliMode::Generic => brotli::enc::backward_references::BrotliEncoderMode::BROTLI_MODE_GENERIC,
                        BrotliMode::Text => brotli::enc::backward_references::BrotliEncoderMode::BROTLI_MODE_TEXT,
                        BrotliMode::Font => brotli::enc::backward_references::BrotliEncoderMode::BROTLI_MODE_FONT,
                    },
                    ..Default::default()
                };
                Library::Brotli(Box::new(brotli::CompressorWriter::with_params(Vec::new(), CHUNK_BYTES, &parameters)))
            }
            Compression::Zstd { level, checksum } => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level)?;
                encoder.include_checksum(checksum)?;
                Library::Zstd(encoder)
            }
        }))
    }

    /// Compresses `input`, so that whoever reads what came so far can decompress all of it.
    ///
    /// # Errors
    /// If the library fails; what comes next would make no sense.
    pub fn write(&mut self, input: &[u8]) -> io::Result<Vec<u8>> {
        match &mut self.0 {
            Library::Gzip(encoder) => {
                encoder.write_all(input)?;
                encoder.flush()?;
                Ok(std::mem::take(encoder.get_mut()))
            }
            Library::Brotli(encoder) => {
                encoder.write_all(input)?;
                encoder.flush()?;
                Ok(std::mem::take(encoder.get_mut()))
            }
            Library::Zstd(encoder) => {
                encoder.write_all(input)?;
                encoder.flush()?;
                Ok(std::mem::take(encoder.get_mut()))
            }
        }
    }

    /// The end of the stream.
    ///
    /// # Errors
    /// If the library fails.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        match self.0 {
            Library::Gzip(encoder) => encoder.finish(),
            Library::Brotli(encoder) => Ok(encoder.into_inner()),
            Library::Zstd(encoder) => encoder.finish(),
        }
    }
}

/// Decompresses one body.
pub struct Decoder {
    library: Unpacking,
    max_ratio: u64,
    input: u64,
    output: u64,
}

enum Unpacking {
    Gzip(Box<flate2::write::GzDecoder<Bounded>>),
    Brotli(Box<brotli::DecompressorWriter<Bounded>>),
    Zstd(Box<zstd::stream::write::Decoder<'static, Bounded>>),
}

/// Output that may not become longer than it is allowed to be.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.most {
            return Err(io::Error::other("the content is too many times as long as what it was compressed to"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Decoder {
    /// A stream of this coding whose output may be `max_ratio` times as long as its input.
    ///
    /// # Errors
    /// If the library has no memory for it.
    pub fn new(coding: ContentCoding, max_ratio: u64) -> io::Result<Self> {
        let output = Bounded { bytes: Vec::new(), most: 0 };
        let library = match coding {
            ContentCoding::Gzip => Unpacking::Gzip(Box::new(flate2::write::GzDecoder::new(output))),
            ContentCoding::Brotli => Unpacking::Brotli(Box::new(brotli::DecompressorWriter::new(output, CHUNK_BYTES))),
            ContentCoding::Zstd => {
                let mut decoder = zstd::stream::write::Decoder::new(output)?;
                decoder.window_log_max(ZSTD_WINDOW_BITS)?;
                Unpacking::Zstd(Box::new(decoder))
            }
        };
        Ok(Self { library, max_ratio, input: 0, output: 0 })
    }

    /// Decompresses `input`. Gives what could be decompressed, and the error that ended it.
    pub fn write(&mut self, input: &[u8]) -> (Vec<u8>, io::Result<()>) {
        self.input += input.len() as u64;
        let most = self.input.saturating_mul(self.max_ratio).saturating_sub(self.output);
        self.bounded().most = usize::try_from(most).unwrap_or(usize::MAX);
        let result = match &mut self.library {
            Unpacking::Gzip(decoder) => decoder.write_all(input).and_then(|()| decoder.flush()),
            Unpacking::Brotli(decoder) => decoder.write_all(input).and_then(|()| decoder.flush()),
            Unpacking::Zstd(decoder) => decoder.write_all(input).and_then(|()| decoder.flush()),
        };
        let bytes = std::mem::take(&mut self.bounded().bytes);
        self.output += bytes.len() as u64;
        (bytes, result)
    }

    fn bounded(&mut self) -> &mut Bounded {
        match &mut self.library {
            Unpacking::Gzip(decoder) => decoder.get_mut(),
            Unpacking::Brotli(decoder) => decoder.get_mut(),
            Unpacking::Zstd(decoder) => decoder.get_mut(),
        }
    }
}

const CHUNK_BYTES: usize = 4096;
/// RFC 9659: the largest window that a decoder of content has to have room for, 8 MB.
const ZSTD_WINDOW_BITS: u32 = 23;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn libraries() -> [Compression; 3] {
        [
            Compression::Gzip { level: 6, window_bits: 12 },
            Compression::Brotli { quality: 3, window_bits: 18, mode: BrotliMode::Generic },
            Compression::Zstd { level: 3, checksum: true },
        ]
    }

    fn unpacked(decoder: &mut Decoder, bytes: &[u8]) -> Vec<u8> {
        let (bytes, result) = decoder.write(bytes);
        result.unwrap();
        bytes
    }

    #[test]
    fn each_piece_can_be_read_when_it_comes() {
        for library in libraries() {
            let mut encoder = Encoder::new(library).unwrap();
            let mut decoder = Decoder::new(library.coding(), 100).unwrap();
            for piece in [&b"first"[..], b"second, second, second", b"third"] {
                let compressed = encoder.write(piece).unwrap();
                assert_eq!(unpacked(&mut decoder, &compressed), piece, "{library:?}");
            }
            let end = encoder.finish().unwrap();
            assert!(unpacked(&mut decoder, &end).is_empty());
        }
    }

    #[test]
    fn bombs_end_where_they_become_too_large() {
        for library in libraries() {
            let mut encoder = Encoder::new(library).unwrap();
            let mut bomb = encoder.write(&vec![0; 10 << 20]).unwrap();
            bomb.extend(encoder.finish().unwrap());
            let mut decoder = Decoder::new(library.coding(), 10).unwrap();
            let (bytes, result) = decoder.write(&bomb);
            assert!(result.is_err() && bytes.len() <= bomb.len() * 10, "{library:?}: {}", bytes.len());
        }
    }

    #[test]
    fn what_is_no_content_is_an_error() {
        for library in libraries() {
            let mut decoder = Decoder::new(library.coding(), 100).unwrap();
            let (_, result) = decoder.write(b"this is not what it says that it is, whatever it may be");
            assert!(result.is_err(), "{library:?}");
        }
    }

    proptest! {
        #[test]
        fn content_survives(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8), step in 1_usize..50) {
            for library in libraries() {
                let mut encoder = Encoder::new(library).unwrap();
                let mut compressed = Vec::new();
                for piece in &pieces {
                    compressed.extend(encoder.write(piece).unwrap());
                }
                compressed.extend(encoder.finish().unwrap());
                let mut decoder = Decoder::new(library.coding(), 1000).unwrap();
                let content: Vec<u8> = compressed.chunks(step).flat_map(|bytes| unpacked(&mut decoder, bytes)).collect();
                prop_assert_eq!(&content, &pieces.concat());
            }
        }
    }
}
