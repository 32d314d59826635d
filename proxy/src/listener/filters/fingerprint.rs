//! Fingerprints of TLS clients: JA3 and JA4 (`TlsInspector.enable_ja3_fingerprinting`, `enable_ja4_fingerprinting`).
//!
//! Owns what of a ClientHello goes into them, and in which form. They tell kinds of clients apart and prove nothing:
//! whoever writes a ClientHello can write any.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use md5::{Digest as _, Md5};

use super::client_hello::{ALPN, Reader, SERVER_NAME};

/// The fingerprints of a client that were asked for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Fingerprints {
    /// MD5 in lower-case hex.
    pub ja3: Option<Box<str>>,
    /// Such as `t13d1516h2_8daaf6152771_e5627efa2ab1`.
    pub ja4: Option<Box<str>>,
}

/// What fingerprints are made of. Reserved values (GREASE, RFC 8701), which clients draw by lot, are left out.
#[derive(Debug, Default)]
struct Fields<'a> {
    legacy_version: u16,
    ciphers: Vec<u16>,
    /// In order, one of each kind.
    extensions: Vec<u16>,
    groups: Vec<u16>,
    point_formats: &'a [u8],
    signature_algorithms: Vec<u16>,
    versions: Vec<u16>,
    first_alpn: &'a [u8],
}

/// The fingerprints of the client that sent this ClientHello, given without the header of the message.
pub fn fingerprints(body: &[u8], ja3: bool, ja4: bool) -> Fingerprints {
    let Some(fields) = Fields::read(body) else { return Fingerprints::default() };
    Fingerprints { ja3: ja3.then(|| fields.ja3().into()), ja4: ja4.then(|| fields.ja4().into()) }
}

impl<'a> Fields<'a> {
    fn read(body: &'a [u8]) -> Option<Self> {
        let mut body = Reader(body);
        let mut fields = Self { legacy_version: body.u16()?, ..Self::default() };
        body.take(32)?; // random
        body.list8()?; // session
        fields.ciphers = numbers(body.list16()?);
        body.list8()?; // compression
        if body.0.is_empty() {
            return Some(fields);
        }
        let mut extensions = Reader(body.list16()?);
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let mut content = Reader(extensions.list16()?);
            if is_reserved(kind) {
                continue;
            }
            fields.extensions.push(kind);
            match kind {
                SUPPORTED_GROUPS => fields.groups = content.list16().map(numbers).unwrap_or_default(),
                POINT_FORMATS => fields.point_formats = content.list8().unwrap_or_default(),
                SIGNATURE_ALGORITHMS => {
                    fields.signature_algorithms = content.list16().map(numbers).unwrap_or_default();
                }
                SUPPORTED_VERSIONS => fields.versions = content.list8().map(numbers).unwrap_or_default(),
                ALPN => {
                    let list = content.list16().unwrap_or_default();
                    fields.first_alpn = Reader(list).list8().unwrap_or_default();
                }
                _ => {}
            }
        }
        Some(fields)
    }

    fn ja3(&self) -> String {
        let formats = self.point_formats.iter().map(|format| u16::from(*format));
        let parts = [
            joined(&self.ciphers),
            joined(&self.extensions),
            joined(&self.groups),
            joined(&formats.collect::<Vec<_>>()),
        ];
        let text = format!("{},{}", self.legacy_version, parts.join(","));
        hex(Md5::digest(text.as_bytes()).as_slice())
    }

    fn ja4(&self) -> String {
        let version = match self.versions.iter().copied().max().unwrap_or(self.legacy_version) {
            0x0304 => "13",
            0x0303 => "12",
            0x0302 => "11",
            0x0301 => "10",
            0x0300 => "s3",
            _ => "00",
        };
        let named = if self.extensions.contains(&SERVER_NAME) { 'd' } else { 'i' };
        let mut ciphers = self.ciphers.clone();
        ciphers.sort_unstable();
        let mut extensions = self.extensions.clone();
        extensions.retain(|kind| !matches!(*kind, SERVER_NAME | ALPN));
        extensions.sort_unstable();
        let mut described = hexes(&extensions);
        if !self.signature_algorithms.is_empty() && !described.is_empty() {
            described.push('_');
            described += &hexes(&self.signature_algorithms);
        }
        format!(
            "t{version}{named}{:02}{:02}{}_{}_{}",
            self.ciphers.len().min(99),
            self.extensions.len().min(99),
            ends_of(self.first_alpn),
            short_hash(&hexes(&ciphers)),
            short_hash(&described),
        )
    }
}

/// First and last character of a protocol, or first and last hex digit where one of them is neither letter nor digit.
fn ends_of(protocol: &[u8]) -> String {
    let (Some(first), Some(last)) = (protocol.first(), protocol.last()) else { return "00".to_owned() };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        return [char::from(*first), char::from(*last)].iter().collect();
    }
    let (first, last) = (hex(&[*first]), hex(&[*last]));
    [&first[..1], &last[1..]].concat()
}

fn short_hash(text: &str) -> String {
    if text.is_empty() {
        return "0".repeat(SHORT);
    }
    let mut hash = hex(digest(&SHA256, text.as_bytes()).as_ref());
    hash.truncate(SHORT);
    hash
}

const SHORT: usize = 12;

/// 16-bit numbers without the reserved ones. A last odd byte is none.
fn numbers(list: &[u8]) -> Vec<u16> {
    let pairs = list.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    pairs.filter(|number| !is_reserved(*number)).collect()
}

/// RFC 8701, 2: 0x0a0a, 0x1a1a and so on.
fn is_reserved(number: u16) -> bool {
    let [high, low] = number.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}

fn joined(numbers: &[u16]) -> String {
    let texts: Vec<_> = numbers.iter().map(u16::to_string).collect();
    texts.join("-")
}

fn hexes(numbers: &[u16]) -> String {
    let texts: Vec<_> = numbers.iter().map(|number| format!("{number:04x}")).collect();
    texts.join(",")
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

const SUPPORTED_GROUPS: u16 = 10;
const POINT_FORMATS: u16 = 11;
const SIGNATURE_ALGORITHMS: u16 = 13;
const SUPPORTED_VERSIONS: u16 = 43;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Fields<'static> {
        Fields {
            legacy_version: 0x0303,
            ciphers: vec![
                0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c, 0x009d,
                0x002f, 0x0035,
            ],
            extensions: vec![
                0x001b, 0x0000, 0x0033, 0x0010, 0x4469, 0x0017, 0x002d, 0x000d, 0x0005, 0x0023, 0x0012, 0x002b, 0xff01,
                0x000b, 0x000a, 0x0015,
            ],
            groups: vec![0x001d, 0x0017, 0x0018],
            point_formats: &[0],
            signature_algorithms: vec![0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601],
            versions: vec![0x0304, 0x0303],
            first_alpn: b"h2",
        }
    }

    /// The example in the description of JA4.
    #[test]
    fn the_published_example() {
        assert_eq!(sample().ja4(), "t13d1516h2_8daaf6152771_e5627efa2ab1");
    }

    /// The example in the description of JA3.
    #[test]
    fn the_published_example_of_ja3() {
        let fields = Fields {
            legacy_version: 769,
            ciphers: vec![47, 53, 5, 10, 49161, 49162, 49171, 49172, 50, 56, 19, 4],
            extensions: vec![0, 10, 11],
            groups: vec![23, 24, 25],
            point_formats: &[0],
            ..Fields::default()
        };
        assert_eq!(fields.ja3(), "ada70206e40642a3e4461f35503241d5");
        let bare =
            Fields { legacy_version: 769, ciphers: vec![4, 5, 10, 9, 100, 98, 3, 6, 19, 18, 99], ..Fields::default() };
        assert_eq!(bare.ja3(), "de350869b8c85de67a350c8d186f11e6");
    }

    /// Two clients of OpenSSL as they wrote it, and what Envoy 1.40 makes of them.
    #[test]
    fn as_envoy_computes_them() {
        let cases = [
            (
                "0303340705acaf006ef23ad88f4954a5c9ef908c15c412162feed5ecbd0bd98afec5000038c02cc030009fcca9cca8ccaac02bc02f\
                 009ec024c028006bc023c0270067c00ac0140039c009c0130033009d009c003d003c0035002f00ff01000052000b00040300010200\
                 0a000c000a001d0017001e00190018002300000016000000170000000d002a0028040305030603080708080809080a080b08040805\
                 0806040105010601030303010302040205020602",
                "fbe7e189e37a07ee33706f86bc746344",
                "t12i280600_d943125447b4_e7e480e5a997",
            ),
            (
                "0303e6a974c304fc98fd1cd1634d7b57ae6b9f55da648d6f5a3f038a574af84c0cd920a2e57fa084c2e70151dd6fdd9b5e11d3c13b\
                 35345754b65729c657295e1ffd4f000813021303130100ff010000ab0000000e000c000009612e6578616d706c65000b0004030001\
                 02000a00160014001d0017001e0019001801000101010201030104002300000010000e000c02683208687474702f312e3100160000\
                 00170000000d001e001c040305030603080708080809080a080b080408050806040105010601002b0003020304002d000201010033\
                 00260024001d0020ddf2744ad72254d2d36b921f360a839d435f17d2d07426dd7e38820f0b1c870c",
                "9dffdb8b608a430b774a2ff7d36c1a0c",
                "t13d0411h2_16476d049b0b_78f1d400d464",
            ),
        ];
        for (hello, ja3, ja4) in cases {
            let digit = |byte: u8| char::from(byte).to_digit(16).unwrap() as u8;
            let body: Vec<u8> =
                hello.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect();
            let expected = Fingerprints { ja3: Some(ja3.into()), ja4: Some(ja4.into()) };
            assert_eq!(fingerprints(&body, true, true), expected);
        }
    }

    #[test]
    fn protocols_by_their_ends() {
        for (protocol, expected) in
            [(&b"h2"[..], "h2"), (b"http/1.1", "h1"), (b"", "00"), (b"h", "hh"), (b"\xab\xcd", "ad"), (b"0\xab", "3b")]
        {
            assert_eq!(ends_of(protocol), expected);
        }
        assert!(is_reserved(0x0a0a) && is_reserved(0xfafa) && !is_reserved(0x0a1a) && !is_reserved(0x0b0b));
        assert_eq!(Fields::default().ja4(), "t00i000000_000000000000_000000000000");
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            fingerprints(&bytes, true, true);
        }
    }
}
