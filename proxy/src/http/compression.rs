//! Compressing and decompressing bodies piece by piece.
//!
//! Owns the libraries' streams. Never decides what is compressed.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;
use std::sync::{Arc, Weak};

use outrigger_config::http::filters::{BrotliMode, Compression, ContentCoding, ZstdDictionary};
use zstd::dict::{DecoderDictionary, EncoderDictionary};

/// Compresses one body.
pub struct Encoder(Library);

enum Library {
    /// Its compressor writes gzip.
    Gzip(flate2::write::ZlibEncoder<Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(ZstdEncoder),
}

/// The library refers to the dictionary as long as there is a stream, which therefore stands, and is dropped, first.
struct ZstdEncoder {
    stream: zstd::stream::write::Encoder<'static, Vec<u8>>,
    _dictionary: Option<Rc<EncoderDictionary<'static>>>,
}

/// Dictionaries that were made ready to compress with, which takes as long as some bodies do.
#[derive(Default)]
pub struct Prepared(RefCell<Vec<Ready>>);

struct Ready {
    of: Weak<ZstdDictionary>,
    level: i32,
    dictionary: Rc<EncoderDictionary<'static>>,
}

impl Prepared {
    fn get(&self, dictionary: &Arc<ZstdDictionary>, level: i32) -> Rc<EncoderDictionary<'static>> {
        let mut all = self.0.borrow_mut();
        let is_it = |ready: &&Ready| ready.level == level && std::ptr::eq(ready.of.as_ptr(), Arc::as_ptr(dictionary));
        if let Some(known) = all.iter().find(is_it) {
            return Rc::clone(&known.dictionary);
        }
        // Those of settings that are gone.
        all.retain(|ready| ready.of.strong_count() > 0);
        let new = Rc::new(EncoderDictionary::copy(&dictionary.bytes, level));
        all.push(Ready { of: Arc::downgrade(dictionary), level, dictionary: Rc::clone(&new) });
        new
    }
}

impl Encoder {
    /// A stream as `settings` say, with a dictionary from those that are `prepared`.
    ///
    /// # Errors
    /// If the library has no memory for it.
    pub fn new(settings: &Compression, prepared: &Prepared) -> io::Result<Self> {
        Ok(Self(match *settings {
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
            Compression::Zstd { level, checksum, ref dictionary } => {
                let dictionary = dictionary.as_ref().map(|dictionary| prepared.get(dictionary, level));
                let mut stream = match &dictionary {
                    None => zstd::stream::write::Encoder::new(Vec::new(), level)?,
                    Some(ready) => zstd::stream::write::Encoder::with_prepared_dictionary(Vec::new(), ready)?,
                };
                stream.include_checksum(checksum)?;
                Library::Zstd(ZstdEncoder { stream, _dictionary: dictionary })
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
            Library::Zstd(ZstdEncoder { stream: encoder, _dictionary: _ }) => {
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
            Library::Zstd(ZstdEncoder { stream, _dictionary }) => stream.finish(),
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
    Zstd(Box<ZstdDecoder>),
    /// Until it says which dictionary it needs.
    ZstdHead(ZstdHead),
}

/// The library refers to the dictionary as long as there is a stream, which therefore stands, and is dropped, first.
struct ZstdDecoder {
    stream: zstd::stream::write::Decoder<'static, Bounded>,
    _dictionary: Option<Rc<DecoderDictionary<'static>>>,
}

struct ZstdHead {
    bytes: Vec<u8>,
    dictionaries: Dictionaries,
    output: Bounded,
}

/// Dictionaries that are ready to decompress with, by their ids.
#[derive(Clone, Default)]
pub struct Dictionaries(Option<Rc<[Known]>>);

struct Known {
    id: u32,
    dictionary: Rc<DecoderDictionary<'static>>,
}

impl Dictionaries {
    /// Makes them ready.
    pub fn new(all: &[Arc<ZstdDictionary>]) -> Self {
        let known =
            |one: &Arc<ZstdDictionary>| Known { id: one.id, dictionary: Rc::new(DecoderDictionary::copy(&one.bytes)) };
        Self((!all.is_empty()).then(|| all.iter().map(known).collect()))
    }

    fn get(&self, id: u32) -> Option<Rc<DecoderDictionary<'static>>> {
        let all = self.0.as_ref()?;
        all.iter().find(|known| known.id == id).map(|known| Rc::clone(&known.dictionary))
    }
}

/// The dictionary that a frame needs, 0 for none; `None` while its head is not complete. Source: RFC 8878 section 3.1.1.1.
fn dictionary_id(frame: &[u8]) -> Option<u32> {
    const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
    if !frame.starts_with(&MAGIC) {
        // Another kind of frame, or none: that is seen when it is read.
        return if frame.len() < MAGIC.len() { None } else { Some(0) };
    }
    let descriptor = *frame.get(4)?;
    let length = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let has_window = descriptor & 0x20 == 0;
    let id = frame.get(5 + usize::from(has_window)..)?.get(..length)?;
    Some(id.iter().rev().fold(0, |id, byte| (id << 8) | u32::from(*byte)))
}

impl ZstdDecoder {
    fn new(output: Bounded, dictionary: Option<Rc<DecoderDictionary<'static>>>) -> io::Result<Box<Self>> {
        let mut stream = match &dictionary {
            None => zstd::stream::write::Decoder::new(output)?,
            Some(ready) => zstd::stream::write::Decoder::with_prepared_dictionary(output, ready)?,
        };
        stream.window_log_max(ZSTD_WINDOW_BITS)?;
        Ok(Box::new(Self { stream, _dictionary: dictionary }))
    }

    fn write(&mut self, input: &[u8]) -> io::Result<()> {
        self.stream.write_all(input)?;
        self.stream.flush()
    }
}

impl ZstdHead {
    /// What goes on, once it is known what is needed.
    fn write(&mut self, input: &[u8]) -> io::Result<Option<Box<ZstdDecoder>>> {
        self.bytes.extend_from_slice(input);
        let dictionary = match dictionary_id(&self.bytes) {
            None => return Ok(None),
            Some(0) => None,
            Some(id) => {
                let known = self.dictionaries.get(id);
                Some(known.ok_or_else(|| io::Error::other(format!("the content needs a dictionary {id}")))?)
            }
        };
        let mut decoder = ZstdDecoder::new(std::mem::take(&mut self.output), dictionary)?;
        decoder.write(&std::mem::take(&mut self.bytes))?;
        Ok(Some(decoder))
    }
}

/// Output that may not become longer than it is allowed to be.
#[derive(Default)]
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
    /// A stream of this coding whose output may be `max_ratio` times as long as its input. Content of zstd may need one of
    /// `dictionaries`.
    ///
    /// # Errors
    /// If the library has no memory for it.
    pub fn new(coding: ContentCoding, max_ratio: u64, dictionaries: &Dictionaries) -> io::Result<Self> {
        let output = Bounded::default();
        let library = match coding {
            ContentCoding::Gzip => Unpacking::Gzip(Box::new(flate2::write::GzDecoder::new(output))),
            ContentCoding::Brotli => Unpacking::Brotli(Box::new(brotli::DecompressorWriter::new(output, CHUNK_BYTES))),
            ContentCoding::Zstd if dictionaries.0.is_none() => Unpacking::Zstd(ZstdDecoder::new(output, None)?),
            ContentCoding::Zstd => {
                Unpacking::ZstdHead(ZstdHead { bytes: Vec::new(), dictionaries: dictionaries.clone(), output })
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
            Unpacking::Zstd(decoder) => decoder.write(input),
            Unpacking::ZstdHead(head) => head.write(input).map(|decoder| {
                if let Some(decoder) = decoder {
                    self.library = Unpacking::Zstd(decoder);
                }
            }),
        };
        let bytes = std::mem::take(&mut self.bounded().bytes);
        self.output += bytes.len() as u64;
        (bytes, result)
    }

    fn bounded(&mut self) -> &mut Bounded {
        match &mut self.library {
            Unpacking::Gzip(decoder) => decoder.get_mut(),
            Unpacking::Brotli(decoder) => decoder.get_mut(),
            Unpacking::Zstd(decoder) => decoder.stream.get_mut(),
            Unpacking::ZstdHead(head) => &mut head.output,
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
            Compression::Zstd { level: 3, checksum: true, dictionary: None },
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
            let mut encoder = Encoder::new(&library, &Prepared::default()).unwrap();
            let mut decoder = Decoder::new(library.coding(), 100, &Dictionaries::default()).unwrap();
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
            let mut encoder = Encoder::new(&library, &Prepared::default()).unwrap();
            let mut bomb = encoder.write(&vec![0; 10 << 20]).unwrap();
            bomb.extend(encoder.finish().unwrap());
            let mut decoder = Decoder::new(library.coding(), 10, &Dictionaries::default()).unwrap();
            let (bytes, result) = decoder.write(&bomb);
            assert!(result.is_err() && bytes.len() <= bomb.len() * 10, "{library:?}: {}", bytes.len());
        }
    }

    #[test]
    fn what_is_no_content_is_an_error() {
        for library in libraries() {
            let mut decoder = Decoder::new(library.coding(), 100, &Dictionaries::default()).unwrap();
            let (_, result) = decoder.write(b"this is not what it says that it is, whatever it may be");
            assert!(result.is_err(), "{library:?}");
        }
    }

    const DICTIONARY: &[u8] = include_bytes!("../../../tests/tests/zstd_dictionaries/7001");

    fn with_dictionary() -> (Compression, Arc<ZstdDictionary>) {
        let dictionary = Arc::new(ZstdDictionary { id: 7001, bytes: DICTIONARY.into() });
        (Compression::Zstd { level: 3, checksum: true, dictionary: Some(Arc::clone(&dictionary)) }, dictionary)
    }

    #[test]
    fn a_dictionary_is_found_by_the_head_of_the_content() {
        let (settings, dictionary) = with_dictionary();
        let prepared = Prepared::default();
        let known = Dictionaries::new(&[dictionary]);
        for _ in 0..2 {
            let mut encoder = Encoder::new(&settings, &prepared).unwrap();
            let mut content = encoder.write(b"the request was answered by the upstream").unwrap();
            content.extend(encoder.finish().unwrap());
            assert_eq!((dictionary_id(&content), dictionary_id(&content[..5])), (Some(7001), None));
            let mut decoder = Decoder::new(ContentCoding::Zstd, 100, &known).unwrap();
            let plain: Vec<u8> = content.chunks(1).flat_map(|byte| unpacked(&mut decoder, byte)).collect();
            assert_eq!(plain, b"the request was answered by the upstream");
            // Another one is not it, and none is none.
            let other = Arc::new(ZstdDictionary { id: 7002, bytes: DICTIONARY.into() });
            let mut decoder = Decoder::new(ContentCoding::Zstd, 100, &Dictionaries::new(&[other])).unwrap();
            let (plain, result) = decoder.write(&content);
            assert_eq!(result.unwrap_err().to_string(), "the content needs a dictionary 7001");
            assert!(plain.is_empty());
            let mut decoder = Decoder::new(ContentCoding::Zstd, 100, &Dictionaries::default()).unwrap();
            assert!(decoder.write(&content).1.is_err());
        }
        assert_eq!(prepared.0.borrow().len(), 1);
    }

    #[test]
    fn dictionaries_of_settings_that_are_gone_are_forgotten() {
        let prepared = Prepared::default();
        for _ in 0..3 {
            let (settings, _) = with_dictionary();
            Encoder::new(&settings, &prepared).unwrap();
        }
        assert_eq!(prepared.0.borrow().len(), 1);
    }

    #[test]
    fn content_without_a_dictionary_needs_none_whatever_is_known() {
        let (_, dictionary) = with_dictionary();
        let known = Dictionaries::new(&[dictionary]);
        for content in [&b""[..], b"x", b"some content"] {
            let plain = zstd::stream::encode_all(content, 3).unwrap();
            let mut decoder = Decoder::new(ContentCoding::Zstd, 100, &known).unwrap();
            assert_eq!(unpacked(&mut decoder, &plain), content);
        }
        let mut decoder = Decoder::new(ContentCoding::Zstd, 100, &known).unwrap();
        assert!(decoder.write(b"no content").1.is_err());
        assert_eq!(dictionary_id(&[0x28, 0xb5, 0x2f, 0xfd, 0x03, 0, 1, 0, 0, 1]), Some(0x0100_0001));
    }

    proptest! {
        #[test]
        fn no_head_is_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let _ = dictionary_id(&[&[0x28, 0xb5, 0x2f, 0xfd][..], &bytes].concat());
        }

        #[test]
        fn content_survives(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8), step in 1_usize..50) {
            for library in libraries() {
                let mut encoder = Encoder::new(&library, &Prepared::default()).unwrap();
                let mut compressed = Vec::new();
                for piece in &pieces {
                    compressed.extend(encoder.write(piece).unwrap());
                }
                compressed.extend(encoder.finish().unwrap());
                let mut decoder = Decoder::new(library.coding(), 1000, &Dictionaries::default()).unwrap();
                let content: Vec<u8> = compressed.chunks(step).flat_map(|bytes| unpacked(&mut decoder, bytes)).collect();
                prop_assert_eq!(&content, &pieces.concat());
            }
        }
    }
}
