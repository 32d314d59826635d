//! HTTP/1 message heads: bytes in, checked heads and body framing out (RFC 9112).
//!
//! Owns the rules that keep two parties from reading one message as two (request smuggling). Pure: never reads a socket.

use std::mem::MaybeUninit;

use outrigger_config::http::PreserveCase;

use crate::http::headers::{HeaderId, Headers, Span};
use crate::http::message::{RequestHead, ResponseHead, Version};
use crate::http::original_names::OriginalNames;

/// How long a body is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// No body.
    None,
    /// This many bytes.
    Length(u64),
    /// `transfer-encoding: chunked`.
    Chunked,
    /// Until the connection closes (responses only).
    UntilClose,
}

/// What to accept. Sources: `Http1ProtocolOptions`, `max_request_headers_kb`, `max_headers_count`.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a head.
    pub max_head_bytes: usize,
    /// Headers in a head.
    pub max_headers: usize,
    /// Take `Transfer-Encoding: chunked` together with `Content-Length`, dropping the latter.
    pub allow_chunked_length: bool,
    /// Take methods that nobody registered.
    pub allow_custom_methods: bool,
    /// Remember how names are written.
    pub preserve_case: Option<PreserveCase>,
}

/// Why a head was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HeadError {
    /// Not HTTP/1 syntax.
    #[error("invalid syntax: {0}")]
    Syntax(&'static str),
    /// More bytes than allowed.
    #[error("head larger than max_request_headers_kb")]
    TooLarge,
    /// More headers than allowed.
    #[error("more headers than max_headers_count")]
    TooManyHeaders,
    /// Lengths that contradict each other or are not numbers.
    #[error("invalid content-length")]
    ContentLength,
    /// Anything but a single final `chunked`.
    #[error("unsupported transfer-encoding")]
    TransferEncoding,
    /// Both ways of framing in one message.
    #[error("content-length together with transfer-encoding")]
    Conflict,
    /// Another version of HTTP.
    #[error("unsupported version")]
    Version,
    /// A method that nobody registered.
    #[error("unknown method")]
    Method,
    /// More than one host.
    #[error("repeated host")]
    Host,
    /// HTTP/1.1 without a host.
    #[error("missing host")]
    Hostless,
}

/// What came with a request head.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ParsedRequest {
    /// Bytes the head took.
    pub length: usize,
    /// Its body.
    pub framing: Framing,
    /// The connection may serve another request.
    pub keep_alive: bool,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
}

/// What came with a response head.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ParsedResponse {
    /// Bytes the head took.
    pub length: usize,
    /// Its body.
    pub framing: Framing,
    /// The connection may serve another request.
    pub keep_alive: bool,
}

/// Room for headers on the stack; the configured limit is checked against what was found.
const STACK_HEADERS: usize = 128;

/// Reads a request head from the start of `input`, or `None` if it is not complete.
///
/// # Errors
/// When it is not a request that may be forwarded.
pub fn parse_request(
    input: &[u8],
    limits: &Limits,
    head: &mut RequestHead,
) -> Result<Option<ParsedRequest>, HeadError> {
    head.clear();
    with_room(limits, |slots| {
        let mut request = httparse::Request::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut request, input, slots);
        // What is no version at all, or where a blank in the target leaves the parser looking for one in its middle.
        if parsed == Err(httparse::Error::Version) && !names_another_version(input) {
            return Err(HeadError::Syntax("request line"));
        }
        let Some(length) = complete(parsed, request.headers, input, limits)? else { return Ok(None) };
        let method = request.method.unwrap_or_default();
        if !limits.allow_custom_methods && !is_registered_method(method) {
            return Err(HeadError::Method);
        }
        head.version = if request.version == Some(0) { Version::Http10 } else { Version::Http11 };
        let path = request.path.unwrap_or_default();
        let (method, path) = (place(input, method.as_bytes()), place(input, path.as_bytes()));
        copy_headers(input, length, request.headers, &mut head.headers)?;
        if let Some(options) = limits.preserve_case {
            head.headers.set_original_names(spelling(request.headers, options));
        }
        let (method, path) = (span(&head.headers, method), span(&head.headers, path));
        head.set_line(method, path);
        finish_request(head, limits, length).map(Some)
    })
}

/// Reads a response head from the start of `input`, or `None` if it is not complete. `method` is the request's.
///
/// # Errors
/// When it is not a response that may be forwarded.
pub fn parse_response(
    input: &[u8],
    limits: &Limits,
    head_request: bool,
    head: &mut ResponseHead,
) -> Result<Option<ParsedResponse>, HeadError> {
    head.clear();
    with_room(limits, |slots| {
        let mut response = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, input, slots);
        let Some(length) = complete(parsed, response.headers, input, limits)? else { return Ok(None) };
        head.status = response.code.unwrap_or_default();
        let http10 = response.version == Some(0);
        copy_headers(input, length, response.headers, &mut head.headers)?;
        if let Some(options) = limits.preserve_case {
            let mut names = spelling(response.headers, options);
            if let Some(reason) = response.reason.filter(|_| options.reason_phrase) {
                names.remember_reason(reason);
            }
            head.headers.set_original_names(names);
        }
        let framing = response_framing(head, limits, head_request)?;
        let keep_alive = keep_alive(&head.headers, http10) && framing != Framing::UntilClose;
        Ok(Some(ParsedResponse { length, framing, keep_alive }))
    })
}

/// Lends room for as many headers as `limits` allow, and at least one more, so that too many are told from enough.
fn with_room<'i, R>(limits: &Limits, parse: impl FnOnce(&mut [MaybeUninit<httparse::Header<'i>>]) -> R) -> R {
    let mut few = [const { MaybeUninit::uninit() }; STACK_HEADERS];
    let mut many;
    let slots = if limits.max_headers < STACK_HEADERS {
        &mut few[..]
    } else {
        many = vec![MaybeUninit::uninit(); limits.max_headers + 1];
        &mut many[..]
    };
    parse(slots)
}

/// The length of a head, if it is complete and within the limits.
fn complete(
    parsed: httparse::Result<usize>,
    found: &[httparse::Header<'_>],
    input: &[u8],
    limits: &Limits,
) -> Result<Option<usize>, HeadError> {
    match parsed {
        Ok(httparse::Status::Complete(length)) if length > limits.max_head_bytes => Err(HeadError::TooLarge),
        Ok(httparse::Status::Complete(_)) if found.len() > limits.max_headers => Err(HeadError::TooManyHeaders),
        Ok(httparse::Status::Complete(length)) => Ok(Some(length)),
        Ok(httparse::Status::Partial) if input.len() >= limits.max_head_bytes => Err(HeadError::TooLarge),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(error) => Err(syntax(error)),
    }
}

/// How much of an unfinished head, or trailer section, was looked at: one that comes in small pieces is not parsed anew
/// for each of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct LookedAt(usize);

impl LookedAt {
    /// Whether parsing `input`, which begins with what was looked at before, can end in anything but "incomplete" again.
    /// It counts as looked at from now on.
    pub fn is_worth_another(&mut self, input: &[u8], limits: &Limits) -> bool {
        let before = std::mem::replace(&mut self.0, input.len());
        // Only the end of a line completes a head.
        before == 0 || input.len() >= limits.max_head_bytes || input.iter().skip(before).any(|byte| *byte == b'\n')
    }
}

/// Reads a trailer section from the start of `input`; `Some(length)` when it is complete.
///
/// # Errors
/// When it is not a list of headers, or exceeds the limits.
pub fn parse_trailers(input: &[u8], limits: &Limits, trailers: &mut Headers) -> Result<Option<usize>, HeadError> {
    let mut slots = vec![httparse::EMPTY_HEADER; limits.max_headers + 1];
    let (parsed, found) = match httparse::parse_headers(input, &mut slots) {
        Ok(httparse::Status::Complete((length, found))) => (Ok(httparse::Status::Complete(length)), found),
        Ok(httparse::Status::Partial) => (Ok(httparse::Status::Partial), &[][..]),
        Err(error) => (Err(error), &[][..]),
    };
    let Some(length) = complete(parsed, found, input, limits)? else { return Ok(None) };
    copy_headers(input, length, found, trailers)?;
    Ok(Some(length))
}

/// Whether a request line ends with `HTTP/`, a digit, a point and a digit.
fn names_another_version(input: &[u8]) -> bool {
    let line = input.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let parts: Vec<&[u8]> = line.trim_ascii_end().split(|byte| *byte == b' ').collect();
    matches!(parts[..], [_, _, [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']])
}

fn syntax(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooManyHeaders,
        httparse::Error::HeaderName => HeadError::Syntax("header name"),
        httparse::Error::HeaderValue => HeadError::Syntax("header value"),
        httparse::Error::NewLine => HeadError::Syntax("line end"),
        httparse::Error::Status => HeadError::Syntax("status"),
        httparse::Error::Token => HeadError::Syntax("request line"),
        httparse::Error::Version => HeadError::Version,
    }
}

/// Where a part of `input` lies in it.
fn place(input: &[u8], part: &[u8]) -> (usize, usize) {
    (part.as_ptr().addr().wrapping_sub(input.as_ptr().addr()), part.len())
}

fn span(headers: &Headers, (start, length): (usize, usize)) -> Span {
    headers.span(start, length)
}

/// Copies the whole head once, then makes its parts headers.
fn spelling(found: &[httparse::Header<'_>], options: PreserveCase) -> OriginalNames {
    let mut names = OriginalNames::new(options);
    for header in found {
        names.remember(header.name.as_bytes());
    }
    names
}

fn copy_headers(
    input: &[u8],
    length: usize,
    found: &[httparse::Header<'_>],
    headers: &mut Headers,
) -> Result<(), HeadError> {
    let head = &input[..length];
    // httparse takes a bare LF for a line end; others do not, and so see other headers than we would.
    for position in memchr::memchr_iter(b'\n', head) {
        if position == 0 || head[position - 1] != b'\r' {
            return Err(HeadError::Syntax("line end without carriage return"));
        }
    }
    let base = headers.store_head(head);
    for header in found {
        let (name, name_length) = place(input, header.name.as_bytes());
        let (value, value_length) = place(input, header.value);
        let name = headers.span(base + name, name_length);
        // An empty value may point anywhere.
        let value = if value_length == 0 { Span::default() } else { headers.span(base + value, value_length) };
        headers.append_stored(name, value);
    }
    Ok(())
}

fn finish_request(head: &mut RequestHead, limits: &Limits, length: usize) -> Result<ParsedRequest, HeadError> {
    let http10 = head.version == Version::Http10;
    let framing = match framing(&mut head.headers, limits.allow_chunked_length, http10)? {
        Framing::UntilClose => Framing::None,
        framing => framing,
    };
    let mut hosts = head.headers.get_all(HeaderId::Host);
    let host = hosts.next().map(<[u8]>::to_vec);
    if hosts.next().is_some() {
        return Err(HeadError::Host);
    }
    if host.is_none() && !http10 {
        return Err(HeadError::Hostless);
    }
    drop(hosts);
    if let Some(host) = host {
        head.set_authority(&host);
        head.headers.remove(HeaderId::Host);
    }
    if head.is_connect() {
        connect_target(head, framing)?;
    }
    let keep_alive = keep_alive(&head.headers, http10);
    let expects_continue =
        !http10 && head.headers.get(HeaderId::Expect).is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
    Ok(ParsedRequest { length, framing, keep_alive, expects_continue })
}

/// RFC 9110 section 9.3.6: the target of CONNECT is a host with its port, and there is no content.
fn connect_target(head: &mut RequestHead, framing: Framing) -> Result<(), HeadError> {
    if framing != Framing::None {
        return Err(HeadError::Conflict);
    }
    head.headers.remove(HeaderId::ContentLength);
    let target = head.path().to_vec();
    let port = target.iter().rposition(|byte| *byte == b':').map(|colon| target.split_at(colon));
    let is_authority = |(host, port): (&[u8], &[u8])| {
        let closed = !host.contains(&b':') || host.starts_with(b"[") && host.ends_with(b"]");
        !host.is_empty() && closed && decimal(&port[1..]).is_some_and(|port| u16::try_from(port).is_ok())
    };
    if !port.is_some_and(is_authority) {
        return Err(HeadError::Syntax("target of CONNECT"));
    }
    head.set_authority(&target);
    head.set_path(b"");
    Ok(())
}

fn response_framing(head: &mut ResponseHead, limits: &Limits, head_request: bool) -> Result<Framing, HeadError> {
    let found = framing(&mut head.headers, limits.allow_chunked_length, false)?;
    // RFC 9112 section 6.3: these never have a body, whatever their headers say.
    if head_request || head.status < 200 || head.status == 204 || head.status == 304 {
        return Ok(Framing::None);
    }
    Ok(found)
}

/// RFC 9112 section 6.3. `UntilClose` when nothing says how long the body is.
fn framing(headers: &mut Headers, allow_chunked_length: bool, http10: bool) -> Result<Framing, HeadError> {
    let mut encodings = headers.get_all(HeaderId::TransferEncoding);
    let chunked = match encodings.next() {
        None => false,
        Some(value) => {
            if encodings.next().is_some() || http10 || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(HeadError::TransferEncoding);
            }
            true
        }
    };
    drop(encodings);
    let mut lengths = headers.get_all(HeaderId::ContentLength);
    let length = match lengths.next() {
        None => None,
        Some(value) => {
            let length = decimal(value).ok_or(HeadError::ContentLength)?;
            // Even equal ones: who repeats a length wants somebody to read another one.
            if lengths.next().is_some() {
                return Err(HeadError::ContentLength);
            }
            Some(length)
        }
    };
    drop(lengths);
    if chunked && length.is_some() {
        if !allow_chunked_length {
            return Err(HeadError::Conflict);
        }
        headers.remove(HeaderId::ContentLength);
    }
    Ok(match (chunked, length) {
        (true, _) => Framing::Chunked,
        (false, Some(0)) => Framing::None,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::UntilClose,
    })
}

/// Digits only: no sign, no blank, no list, no overflow.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

fn keep_alive(headers: &Headers, http10: bool) -> bool {
    let says = |word: &[u8]| {
        headers.get_all(HeaderId::Connection).any(|value| tokens(value).any(|token| token.eq_ignore_ascii_case(word)))
    };
    if http10 { says(b"keep-alive") } else { !says(b"close") }
}

/// The comma-separated words of a header value.
pub(crate) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

fn is_registered_method(method: &str) -> bool {
    // Envoy's list: those of its parser, which WebDAV, UPnP and others registered.
    matches!(
        method,
        "ACL"
            | "BIND"
            | "CHECKOUT"
            | "CONNECT"
            | "COPY"
            | "DELETE"
            | "GET"
            | "HEAD"
            | "LINK"
            | "LOCK"
            | "MERGE"
            | "MKACTIVITY"
            | "MKCALENDAR"
            | "MKCOL"
            | "MOVE"
            | "MSEARCH"
            | "NOTIFY"
            | "OPTIONS"
            | "PATCH"
            | "POST"
            | "PROPFIND"
            | "PROPPATCH"
            | "PURGE"
            | "PUT"
            | "REBIND"
            | "REPORT"
            | "SEARCH"
            | "SOURCE"
            | "SUBSCRIBE"
            | "TRACE"
            | "UNBIND"
            | "UNLINK"
            | "UNLOCK"
            | "UNSUBSCRIBE"
            | "M-SEARCH"
    )
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

    fn request(text: &str) -> Result<Option<ParsedRequest>, HeadError> {
        parse_request(text.as_bytes(), &LIMITS, &mut RequestHead::default())
    }

    #[test]
    fn a_request_is_read_with_its_framing() {
        let mut head = RequestHead::default();
        let text = b"POST /a?b=1 HTTP/1.1\r\nHost: X.example\r\nContent-Length: 5\r\n\r\nhello";
        let parsed = parse_request(text, &LIMITS, &mut head).unwrap().unwrap();
        assert_eq!(parsed.length, text.len() - 5);
        assert_eq!(parsed.framing, Framing::Length(5));
        assert!(parsed.keep_alive);
        assert_eq!((head.method(), head.path(), head.authority()), (&b"POST"[..], &b"/a?b=1"[..], &b"X.example"[..]));
        let names: Vec<_> = head.headers.iter().map(|(_, name, _)| name).collect();
        assert_eq!(names, [b"content-length"]);
    }

    #[test]
    fn connect_names_a_host_with_its_port() {
        let read = |target: &str, more: &str| {
            let mut head = RequestHead::default();
            let text = format!("CONNECT {target} HTTP/1.1\r\nHost: other\r\n{more}\r\n");
            let parsed = parse_request(text.as_bytes(), &LIMITS, &mut head)?;
            parsed.expect("a whole head");
            assert!(head.is_tunnel() && head.path().is_empty());
            Ok(head.authority_str().to_owned())
        };
        assert_eq!(read("a.example:443", ""), Ok("a.example:443".to_owned()));
        assert_eq!(read("[::1]:80", "Content-Length: 0\r\n"), Ok("[::1]:80".to_owned()));
        for target in ["a.example", "/path", "a:b", ":80", "::1:80", "a:99999", "http://a:80/"] {
            assert_eq!(read(target, ""), Err(HeadError::Syntax("target of CONNECT")), "{target}");
        }
        assert_eq!(read("a:80", "Content-Length: 3\r\n"), Err(HeadError::Conflict));
        assert_eq!(read("a:80", "Transfer-Encoding: chunked\r\n"), Err(HeadError::Conflict));
    }

    #[test]
    fn an_incomplete_head_wants_more() {
        assert_eq!(request("GET / HTTP/1.1\r\nHost: a\r\n"), Ok(None));
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(2000));
        assert_eq!(request(&long), Err(HeadError::TooLarge));
    }

    #[test]
    fn smuggling_attempts_are_refused() {
        let with = |headers: &str| request(&format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n"));
        assert_eq!(with("Content-Length: 1\r\nContent-Length: 2"), Err(HeadError::ContentLength));
        assert_eq!(with("Content-Length: +1"), Err(HeadError::ContentLength));
        assert_eq!(with("Content-Length: 1, 1"), Err(HeadError::ContentLength));
        assert_eq!(with("Content-Length: 99999999999999999999"), Err(HeadError::ContentLength));
        assert_eq!(with("Content-Length: 1\r\nTransfer-Encoding: chunked"), Err(HeadError::Conflict));
        assert_eq!(with("Transfer-Encoding: gzip, chunked"), Err(HeadError::TransferEncoding));
        assert_eq!(with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), Err(HeadError::TransferEncoding));
        assert_eq!(with("Transfer-Encoding : chunked"), Err(HeadError::Syntax("header name")));
        assert_eq!(with("A: b\r\n folded"), Err(HeadError::Syntax("header name")));
        assert_eq!(with("Host: b"), Err(HeadError::Host));
        assert!(matches!(request("GET / HTTP/1.1\nHost: a\n\n"), Err(HeadError::Syntax(_))));
        assert_eq!(request("GET / HTTP/1.1\r\n\r\n"), Err(HeadError::Hostless));
        assert_eq!(request("FETCH / HTTP/1.1\r\nHost: a\r\n\r\n"), Err(HeadError::Method));
        assert_eq!(with("A: 1\r\nB: 1\r\nC: 1\r\nD: 1"), Err(HeadError::TooManyHeaders));
    }

    #[test]
    fn responses_without_a_body_are_known() {
        let read = |text: &str, head_request| {
            parse_response(text.as_bytes(), &LIMITS, head_request, &mut ResponseHead::default()).unwrap().unwrap()
        };
        assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", false).framing, Framing::Length(3));
        assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", true).framing, Framing::None);
        assert_eq!(read("HTTP/1.1 304 x\r\nContent-Length: 3\r\n\r\n", false).framing, Framing::None);
        let until_close = read("HTTP/1.1 200 OK\r\n\r\n", false);
        assert_eq!((until_close.framing, until_close.keep_alive), (Framing::UntilClose, false));
        assert!(!read("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false).keep_alive);
    }

    #[test]
    fn a_head_in_small_pieces_is_parsed_once_a_line() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n";
        let (mut looked, mut parses) = (LookedAt::default(), Vec::new());
        for end in 1..=text.len() {
            if looked.is_worth_another(&text[..end], &LIMITS) {
                parses.push(end);
            }
        }
        // The first byte, in case it is nothing that a head begins with; then the ends of lines.
        assert_eq!(parses, [1, 16, 25, 31, 33]);
        let large = [b'a'; 1024];
        assert!(looked.is_worth_another(&large, &LIMITS));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = parse_request(&bytes, &LIMITS, &mut RequestHead::default());
            let _ = parse_response(&bytes, &LIMITS, false, &mut ResponseHead::default());
            let _ = parse_trailers(&bytes, &LIMITS, &mut Headers::default());
        }
    }
}
