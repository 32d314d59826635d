//! HPACK (RFC 7541): literals for the sending sides, and a full decoder for
//! the generator, which must follow whatever table the proxy builds.

use std::collections::VecDeque;

/// Appends a literal, never Huffman-coded; short strings only.
pub fn literal(out: &mut Vec<u8>, first: u8, name: Option<&str>, value: &str) {
    out.push(first);
    for s in name.into_iter().chain([value]) {
        assert!(s.len() < 127);
        out.push(s.len() as u8);
        out.extend_from_slice(s.as_bytes());
    }
}

const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// Code lengths of the bytes 0 to 255; the code is canonical, so that is all
/// there is to it (the end-of-string symbol comes last and never occurs).
const CODE_LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26,
];

/// For each code length: the first code, how many there are, and where their
/// symbols begin in `symbols`.
struct Huffman {
    by_length: [(u32, u32, usize); 31],
    symbols: Vec<u8>,
}

impl Huffman {
    fn new() -> Self {
        let (mut by_length, mut symbols, mut code) = ([(0, 0, 0); 31], Vec::with_capacity(256), 0);
        for (length, entry) in by_length.iter_mut().enumerate().skip(1) {
            code <<= 1;
            let at = symbols.len();
            symbols.extend((0..=255u8).filter(|b| CODE_LENGTHS[*b as usize] as usize == length));
            let count = (symbols.len() - at) as u32;
            *entry = (code, count, at);
            code += count;
        }
        Huffman { by_length, symbols }
    }

    fn decode(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(bytes.len() * 8 / 5);
        let (mut code, mut length) = (0u32, 0);
        for bit in bytes.iter().flat_map(|b| (0..8).rev().map(move |i| (b >> i & 1) as u32)) {
            code = code << 1 | bit;
            length += 1;
            let (first, count, at) = *self.by_length.get(length)?;
            if code >= first && code - first < count {
                out.push(self.symbols[at + (code - first) as usize]);
                (code, length) = (0, 0);
            }
        }
        // What is left must be padding: fewer than eight ones.
        (length < 8 && code == (1 << length) - 1).then_some(out)
    }
}

pub struct Decoder {
    huffman: Huffman,
    table: VecDeque<(Vec<u8>, Vec<u8>)>,
    size: usize,
    limit: usize,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn integer(&mut self, first: u8, bits: u32) -> Option<usize> {
        let mask = (1usize << bits) - 1;
        let mut value = first as usize & mask;
        if value == mask {
            for shift in (0..28).step_by(7) {
                let byte = self.byte()?;
                value += (byte as usize & 0x7f) << shift;
                if byte < 0x80 {
                    return Some(value);
                }
            }
            return None;
        }
        Some(value)
    }

    fn string(&mut self, huffman: &Huffman) -> Option<Vec<u8>> {
        let first = self.byte()?;
        let length = self.integer(first, 7)?;
        let bytes = self.0.get(..length)?;
        self.0 = &self.0[length..];
        if first & 0x80 != 0 { huffman.decode(bytes) } else { Some(bytes.to_vec()) }
    }
}

impl Decoder {
    pub fn new() -> Self {
        Decoder { huffman: Huffman::new(), table: VecDeque::new(), size: 0, limit: 4096 }
    }

    fn lookup(&self, index: usize) -> Option<(&[u8], &[u8])> {
        match index {
            0 => None,
            1..=61 => Some((STATIC[index - 1].0.as_bytes(), STATIC[index - 1].1.as_bytes())),
            _ => self.table.get(index - 62).map(|(n, v)| (&n[..], &v[..])),
        }
    }

    fn evict(&mut self) {
        while self.size > self.limit {
            let Some((name, value)) = self.table.pop_back() else { break };
            self.size -= name.len() + value.len() + 32;
        }
    }

    /// Hands every header of a complete block to `each`. None: malformed.
    pub fn decode(&mut self, block: &[u8], mut each: impl FnMut(&[u8], &[u8])) -> Option<()> {
        let mut reader = Reader(block);
        while let Some(first) = reader.byte() {
            if first & 0x80 != 0 {
                let index = reader.integer(first, 7)?;
                let (name, value) = self.lookup(index)?;
                each(name, value);
            } else if first & 0xe0 == 0x20 {
                self.limit = reader.integer(first, 5)?;
                self.evict();
            } else {
                let to_index = first & 0x40 != 0;
                let name = match reader.integer(first, if to_index { 6 } else { 4 })? {
                    0 => reader.string(&self.huffman)?,
                    index => self.lookup(index)?.0.to_vec(),
                };
                let value = reader.string(&self.huffman)?;
                each(&name, &value);
                if to_index {
                    self.size += name.len() + value.len() + 32;
                    self.table.push_front((name, value));
                    self.evict();
                }
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7541, appendix C.6: three responses, Huffman-coded, a table of 256 bytes.
    #[test]
    fn responses_of_the_rfc() {
        let blocks = [
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
            "4883640effc1c0bf",
            "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
        ];
        let mut decoder = Decoder::new();
        decoder.limit = 256;
        let mut last = Vec::new();
        for block in blocks {
            let bytes: Vec<u8> =
                (0..block.len()).step_by(2).map(|i| u8::from_str_radix(&block[i..i + 2], 16).unwrap()).collect();
            last.clear();
            decoder
                .decode(&bytes, |n, v| {
                    last.push(format!("{}: {}", String::from_utf8_lossy(n), String::from_utf8_lossy(v)))
                })
                .unwrap();
        }
        assert_eq!(
            last,
            [
                ":status: 200",
                "cache-control: private",
                "date: Mon, 21 Oct 2013 20:13:22 GMT",
                "location: https://www.example.com",
                "content-encoding: gzip",
                "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            ]
        );
        assert_eq!(decoder.size, 215);
    }
}
