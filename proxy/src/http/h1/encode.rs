//! HTTP/1 message heads: checked heads in, bytes out.
//!
//! Owns the wire form of request and status lines and header lists. Pure: never writes to a socket.

use crate::http::headers::{HeaderId, Headers};
use crate::http::message::{RequestHead, ResponseHead};
use crate::http::original_names::OriginalNames;
use outrigger_config::http::HeaderCase;

use super::parse::Framing;

/// How the names of one message are written.
#[derive(Clone, Copy)]
struct Spelling<'a> {
    original: Option<&'a OriginalNames>,
    case: HeaderCase,
}

impl<'a> Spelling<'a> {
    /// What the message remembers of its names wins over what this side would do.
    fn of(headers: &'a Headers, case: HeaderCase) -> Self {
        match headers.original_names() {
            None => Self { original: None, case },
            Some(names) => Self { original: Some(names), case: names.unknown() },
        }
    }
}

/// Appends a request head. `framing` says which length header to write: any other was removed before.
pub fn request(head: &RequestHead, framing: Framing, upgrade: bool, case: HeaderCase, out: &mut Vec<u8>) {
    out.extend_from_slice(head.method());
    out.push(b' ');
    match head.path() {
        _ if head.is_connect() => out.extend_from_slice(head.authority()),
        b"" => out.extend_from_slice(head.authority()),
        path => out.extend_from_slice(path),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let case = Spelling::of(&head.headers, case);
    header(b"host", head.authority(), case, out);
    for (id, name, value) in head.headers.iter() {
        if !matches!(id, HeaderId::ContentLength | HeaderId::TransferEncoding) {
            header(name, value, case, out);
        }
    }
    if upgrade {
        header(b"connection", b"upgrade", case, out);
        header(b"upgrade", head.protocol(), case, out);
    }
    // RFC 9110 section 8.6: a method that may have content says so even if there is none.
    let never_has_content = matches!(head.method(), b"GET" | b"HEAD" | b"DELETE" | b"TRACE" | b"CONNECT");
    length(framing, !never_has_content && !upgrade, case, out);
    out.extend_from_slice(b"\r\n");
}

/// Appends a response head. `length` is what to say about the body; `None` leaves what the headers say.
pub fn response(head: &ResponseHead, framing: Option<Framing>, close: bool, case: HeaderCase, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    let status = head.status;
    out.extend_from_slice(&[digit(status / 100), digit(status / 10), digit(status), b' ']);
    let case = Spelling::of(&head.headers, case);
    let original_reason = case.original.and_then(OriginalNames::reason);
    out.extend_from_slice(original_reason.unwrap_or_else(|| reason(status).as_bytes()));
    out.extend_from_slice(b"\r\n");
    for (id, name, value) in head.headers.iter() {
        let framed = framing.is_some() && matches!(id, HeaderId::ContentLength | HeaderId::TransferEncoding);
        if !framed {
            header(name, value, case, out);
        }
    }
    if let Some(framing) = framing {
        length(framing, true, case, out);
    }
    if close {
        header(b"connection", b"close", case, out);
    }
    out.extend_from_slice(b"\r\n");
}

fn length(framing: Framing, zero: bool, case: Spelling<'_>, out: &mut Vec<u8>) {
    match framing {
        Framing::Length(length) => header(b"content-length", decimal(length, &mut [0; 20]), case, out),
        Framing::Chunked => header(b"transfer-encoding", b"chunked", case, out),
        Framing::None if zero => header(b"content-length", b"0", case, out),
        Framing::None | Framing::UntilClose => {}
    }
}

fn header(name: &[u8], value: &[u8], spelling: Spelling<'_>, out: &mut Vec<u8>) {
    match (spelling.original.and_then(|names| names.find(name)), spelling.case) {
        (Some(name), _) => out.extend_from_slice(name),
        (None, HeaderCase::Lower) => out.extend_from_slice(name),
        (None, HeaderCase::Proper) => {
            let mut start = true;
            for byte in name {
                out.push(if start { byte.to_ascii_uppercase() } else { *byte });
                start = !byte.is_ascii_alphanumeric();
            }
        }
    }
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The start of a chunk: its size and line end.
pub fn chunk_start(size: usize, out: &mut Vec<u8>) {
    let mut text = [0; 16];
    let mut position = text.len();
    let mut rest = size;
    loop {
        position -= 1;
        text[position] = b"0123456789abcdef"[rest & 0xf];
        rest >>= 4;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&text[position..]);
    out.extend_from_slice(b"\r\n");
}

/// Decimal digits of a number.
pub fn decimal(number: u64, text: &mut [u8; 20]) -> &[u8] {
    let mut position = text.len();
    let mut rest = number;
    loop {
        position -= 1;
        text[position] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &text[position..];
        }
    }
}

fn digit(number: u16) -> u8 {
    b'0' + (number % 10) as u8
}

/// The reason phrase of a status; RFC 9110 section 15 and the IANA registry.
pub fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_written_as_http_wants_them() {
        let mut head = RequestHead::default();
        head.set_method(b"POST");
        head.set_path(b"/x");
        head.set_authority(b"a.example");
        head.headers.append(b"x-own-header", b"1");
        let mut out = Vec::new();
        request(&head, Framing::Chunked, false, HeaderCase::Proper, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "POST /x HTTP/1.1\r\nHost: a.example\r\nX-Own-Header: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let mut head = ResponseHead { status: 404, ..ResponseHead::default() };
        head.headers.append(b"content-length", b"77");
        let mut out = Vec::new();
        response(&head, Some(Framing::Length(3)), true, HeaderCase::Lower, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\nconnection: close\r\n\r\n"
        );
    }

    #[test]
    fn numbers_are_written_without_formatting() {
        for number in [0, 9, 10, u64::MAX] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
        }
        let mut out = Vec::new();
        chunk_start(0x1f0, &mut out);
        assert_eq!(out, b"1f0\r\n");
    }
}
