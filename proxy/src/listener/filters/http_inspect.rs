//! Which HTTP a plain connection speaks (`envoy.filters.listener.http_inspector`).
//!
//! Owns the look at the first line. Never parses headers or judges a request: a line that merely looks like HTTP/1 is
//! the codec's to refuse.

use super::Parse;
use crate::http::token::is_token_byte;

/// Tells `h2c` by the preface of HTTP/2, and `http/1.0` or `http/1.1` by a request line. These are the values that
/// filter chains match as application protocols.
pub fn inspect(bytes: &[u8]) -> Parse<&'static str> {
    let seen = &bytes[..bytes.len().min(MAX_BYTES)];
    let decision = if PREFACE.starts_with(seen) || seen.starts_with(PREFACE) {
        if seen.len() < PREFACE.len() { Parse::Partial } else { Parse::Complete("h2c") }
    } else {
        request_line(seen)
    };
    match decision {
        Parse::Partial if seen.len() == MAX_BYTES => Parse::NotThis,
        decision => decision,
    }
}

fn request_line(seen: &[u8]) -> Parse<&'static str> {
    // The end of the line is its carriage return already: what follows cannot change the answer.
    let end = seen.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
    let unfinished = if end.is_some() { Parse::NotThis } else { Parse::Partial };
    let mut rest = &seen[..end.unwrap_or(seen.len())];
    for allowed in [is_token_byte as fn(u8) -> bool, is_visible] {
        let word = rest.split(|byte| *byte == b' ').next().unwrap_or_default();
        if !word.iter().all(|byte| allowed(*byte)) {
            return Parse::NotThis;
        }
        match rest.get(word.len() + 1..) {
            Some(_) if word.is_empty() => return Parse::NotThis,
            Some(next) => rest = next,
            None => return unfinished,
        }
    }
    match (VERSIONS.iter().find(|(version, _)| version.starts_with(rest)), end) {
        (Some((version, name)), Some(_)) if version.len() == rest.len() => Parse::Complete(name),
        (Some(_), None) => Parse::Partial,
        _ => Parse::NotThis,
    }
}

/// Bytes beyond ASCII are let through, as the codecs of most servers do.
fn is_visible(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const VERSIONS: [(&[u8], &str); 2] = [(b"HTTP/1.1", "http/1.1"), (b"HTTP/1.0", "http/1.0")];

/// A request line that is longer is nothing we know.
pub const MAX_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::super::tests::same_for_every_split;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions() {
        assert_eq!(inspect(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"), Parse::Complete("http/1.1"));
        assert_eq!(inspect(b"M-SEARCH * HTTP/1.0\n"), Parse::Complete("http/1.0"));
        assert_eq!(inspect(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04"), Parse::Complete("h2c"));
        assert_eq!(inspect("GET /é HTTP/1.1\r".as_bytes()), Parse::Complete("http/1.1"));
    }

    #[test]
    fn beginnings() {
        for text in
            ["", "P", "PRI * HTTP/2.0\r\n", "PO", "GET", "GET ", "GET /", "GET / ", "GET / HTTP/1.", "GET / HTTP/1.1"]
        {
            assert_eq!(inspect(text.as_bytes()), Parse::Partial, "{text}");
        }
    }

    #[test]
    fn something_else() {
        for text in [
            "\x16\x03\x01",
            "SSH-2.0-OpenSSH_9\r\n",
            "GET\r\n",
            "GET /\r\n",
            "GET  / HTTP/1.1",
            " GET / HTTP/1.1\r\n",
            "\r\n",
            "GET / HTTP/1.2",
            "GET / HTTP/1.1 ",
            "GET / HTTP/1.1x\r\n",
            "GET / HTTP/1.\r\n",
            "GET / HTTP/2.0\r\n",
            "GET / http/1.1",
            "PRI * HTTP/2.0\r\n\r\nXX",
            "GET /\0 HTTP/1.1\r\n",
            "G(T / HTTP/1.1",
            "*1\r\n$4\r\nPING\r\n",
        ] {
            assert_eq!(inspect(text.as_bytes()), Parse::NotThis, "{text:?}");
        }
    }

    #[test]
    fn a_line_without_end() {
        let mut line = b"GET /".to_vec();
        line.resize(MAX_BYTES - 1, b'a');
        assert_eq!(inspect(&line), Parse::Partial);
        line.push(b'a');
        assert_eq!(inspect(&line), Parse::NotThis);
        line.extend_from_slice(b" HTTP/1.1\r\n");
        assert_eq!(inspect(&line), Parse::NotThis);
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            same_for_every_split(&bytes, inspect);
        }

        #[test]
        fn almost_http(text in "(PRI|GET|G T) ?[/* a]{0,3} ?HTTP/[012]\\.[012x]\r?\n?.{0,4}") {
            same_for_every_split(text.as_bytes(), inspect);
        }
    }
}
