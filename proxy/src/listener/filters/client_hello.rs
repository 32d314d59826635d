//! The first message of a TLS client (`envoy.filters.listener.tls_inspector`).
//!
//! Owns the reading of SNI and ALPN (RFC 8446, 4.1.2). Never takes part in a handshake: what it lets through is still
//! checked by whoever terminates TLS.

use std::borrow::Cow;

use super::Parse;

/// What filter chains match.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientHello {
    /// SNI, lower case.
    pub server_name: Option<String>,
    /// ALPN offers, in order. Values that are not UTF-8 (reserved ones that clients put in to keep servers honest)
    /// contain replacement characters, and so match nothing.
    pub alpn: Vec<String>,
    /// It asks for an OCSP response (RFC 6066, 8).
    pub asks_for_ocsp: bool,
}

/// Source: `TlsInspector.max_client_hello_size`.
pub const DEFAULT_MAX_CLIENT_HELLO_BYTES: usize = 16 << 10;

/// Reads a ClientHello, which may be spread over several records. `max_bytes` counts record headers too; a longer one
/// is invalid. A broken one is not TLS, as with Envoy, so that a filter chain for other protocols can have it.
pub fn parse(bytes: &[u8], max_bytes: usize) -> Parse<ClientHello> {
    let seen = &bytes[..bytes.len().min(max_bytes)];
    match message(seen, max_bytes) {
        Parse::Complete(body) => read_body(&body).map_or(Parse::NotThis, Parse::Complete),
        Parse::Partial if seen.len() == max_bytes => Parse::Invalid(TOO_LARGE),
        Parse::Partial => Parse::Partial,
        Parse::NotThis => Parse::NotThis,
        Parse::Invalid(reason) => Parse::Invalid(reason),
    }
}

/// The body of a ClientHello that [`parse`] has read; `None` if there is none.
pub fn body(bytes: &[u8], max_bytes: usize) -> Option<Cow<'_, [u8]>> {
    match message(&bytes[..bytes.len().min(max_bytes)], max_bytes) {
        Parse::Complete(body) => Some(body),
        Parse::Partial | Parse::NotThis | Parse::Invalid(_) => None,
    }
}

/// Why a longer one is invalid.
pub const TOO_LARGE: &str = "ClientHello is larger than max_client_hello_size";

/// The body of the handshake message, put together from its records.
fn message(seen: &[u8], max_bytes: usize) -> Parse<Cow<'_, [u8]>> {
    let mut gathered = Cow::Borrowed(&[][..]);
    let mut rest = seen;
    loop {
        let length = match record_length(rest) {
            Parse::Complete(length) => length,
            Parse::Partial => return Parse::Partial,
            Parse::NotThis | Parse::Invalid(_) => return Parse::NotThis,
        };
        let payload = &rest[RECORD_HEADER..rest.len().min(RECORD_HEADER + length)];
        if gathered.is_empty() {
            gathered = Cow::Borrowed(payload);
        } else {
            gathered.to_mut().extend_from_slice(payload);
        }
        if gathered.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Parse::NotThis;
        }
        if let Some(&[_, high, middle, low]) = gathered.first_chunk() {
            let body = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            let total = MESSAGE_HEADER + body;
            if total > max_bytes {
                return Parse::Invalid(TOO_LARGE);
            }
            if gathered.len() >= total {
                return Parse::Complete(slice(gathered, MESSAGE_HEADER, total));
            }
        }
        if payload.len() < length {
            return Parse::Partial;
        }
        rest = &rest[RECORD_HEADER + length..];
    }
}

fn slice(bytes: Cow<'_, [u8]>, start: usize, end: usize) -> Cow<'_, [u8]> {
    match bytes {
        Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[start..end]),
        Cow::Owned(bytes) => Cow::Owned(bytes[start..end].to_vec()),
    }
}

/// The length of a handshake record that begins here, judged by as many bytes of its header as are there.
fn record_length(bytes: &[u8]) -> Parse<usize> {
    match *bytes {
        [kind, ..] if kind != HANDSHAKE => Parse::NotThis,
        [_, major, ..] if major != 3 => Parse::NotThis,
        [_, _, minor, ..] if minor > 4 => Parse::NotThis,
        [_, _, _, high, low, ..] => match usize::from(high) << 8 | usize::from(low) {
            length @ 1..=MAX_RECORD => Parse::Complete(length),
            _ => Parse::NotThis,
        },
        _ => Parse::Partial,
    }
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;
const MAX_RECORD: usize = 1 << 14;

fn read_body(body: &[u8]) -> Option<ClientHello> {
    let mut body = Reader(body);
    body.take(2 + 32)?; // legacy_version, random
    let session = body.list8()?;
    let suites = body.list16()?;
    let compression = body.list8()?;
    if session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 || compression.is_empty() {
        return None;
    }
    let mut hello = ClientHello::default();
    if body.0.is_empty() {
        // TLS 1.2 clients may come without extensions.
        return Some(hello);
    }
    let mut extensions = Reader(body.list16()?);
    let (mut has_name, mut has_alpn) = (false, false);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = Reader(extensions.list16()?);
        match kind {
            SERVER_NAME if !std::mem::replace(&mut has_name, true) => hello.server_name = read_server_name(content)?,
            ALPN if !std::mem::replace(&mut has_alpn, true) => hello.alpn = read_alpn(content)?,
            SERVER_NAME | ALPN => return None,
            STATUS_REQUEST => hello.asks_for_ocsp = content.0.first() == Some(&OCSP),
            _ => {}
        }
    }
    body.0.is_empty().then_some(hello)
}

/// RFC 6066, 3. Only one name, and of one kind, has ever been defined.
fn read_server_name(mut content: Reader<'_>) -> Option<Option<String>> {
    let mut list = Reader(content.list16()?);
    let kind = list.u8()?;
    let name = list.list16()?;
    if kind != 0 || name.is_empty() || name.len() > 255 || name.contains(&0) {
        return None;
    }
    if !list.0.is_empty() || !content.0.is_empty() {
        return None;
    }
    // A name that is no text is no name that could be configured.
    Some(std::str::from_utf8(name).ok().map(str::to_ascii_lowercase))
}

/// RFC 7301, 3.1.
fn read_alpn(mut content: Reader<'_>) -> Option<Vec<String>> {
    let mut list = Reader(content.list16()?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let protocol = list.list8()?;
        if protocol.is_empty() {
            return None;
        }
        protocols.push(String::from_utf8_lossy(protocol).into_owned());
    }
    (!protocols.is_empty() && content.0.is_empty()).then_some(protocols)
}

pub(super) const SERVER_NAME: u16 = 0;
const STATUS_REQUEST: u16 = 5;
/// The one kind of certificate status.
const OCSP: u8 = 1;
pub(super) const ALPN: u16 = 16;

/// Takes bytes from the front, or nothing when they do not suffice.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Bytes behind a length of one byte.
    pub(super) fn list8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length.into())
    }

    /// Bytes behind a length of two bytes.
    pub(super) fn list16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::same_for_every_split;
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = DEFAULT_MAX_CLIENT_HELLO_BYTES;

    fn list16(content: &[u8]) -> Vec<u8> {
        [&u16::try_from(content.len()).unwrap().to_be_bytes()[..], content].concat()
    }

    fn server_name(name: &[u8]) -> Vec<u8> {
        [&[0, 0][..], &list16(&list16(&[&[0][..], &list16(name)].concat()))].concat()
    }

    fn alpn(protocols: &[&[u8]]) -> Vec<u8> {
        let list: Vec<u8> =
            protocols.iter().flat_map(|one| [&[u8::try_from(one.len()).unwrap()][..], one].concat()).collect();
        [&[0, 16][..], &list16(&list16(&list))].concat()
    }

    fn handshake(extensions: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend_from_slice(&[7; 32]);
        body.extend_from_slice(&[0, 0, 2, 0x13, 1, 1, 0]);
        body.extend(extensions.map(list16).unwrap_or_default());
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1][..], &length[1..], &body].concat()
    }

    fn records(handshake: &[u8], size: usize) -> Vec<u8> {
        handshake.chunks(size).flat_map(|chunk| [&[22, 3, 1][..], &list16(chunk)].concat()).collect()
    }

    fn whole(extensions: &[Vec<u8>]) -> Vec<u8> {
        records(&handshake(Some(&extensions.concat())), MAX_RECORD)
    }

    /// Made by a real client.
    fn from_rustls(name: &str, protocols: &[&[u8]]) -> Vec<u8> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let roots = rustls::RootCertStore::empty();
        let mut config = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|one| one.to_vec()).collect();
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_real_client() {
        let bytes = from_rustls("Outbound_.80_._.API.default.svc", &[b"istio-http/1.1", b"h2"]);
        let expected = ClientHello {
            server_name: Some("outbound_.80_._.api.default.svc".to_owned()),
            alpn: vec!["istio-http/1.1".to_owned(), "h2".to_owned()],
            asks_for_ocsp: true,
        };
        assert_eq!(parse(&bytes, LIMIT), Parse::Complete(expected.clone()));
        same_for_every_split(&bytes, |bytes| parse(bytes, LIMIT));
        for size in [1, 3, 50] {
            let spread = records(&bytes[5..], size);
            assert_eq!(parse(&spread, LIMIT), Parse::Complete(expected.clone()));
            same_for_every_split(&spread, |bytes| parse(bytes, LIMIT));
        }
    }

    #[test]
    fn little_to_say() {
        assert_eq!(parse(&records(&handshake(None), 999), LIMIT), Parse::Complete(ClientHello::default()));
        assert_eq!(parse(&whole(&[]), LIMIT), Parse::Complete(ClientHello::default()));
        let unknown = [0xfa, 0xfa, 0, 1, 0];
        let Parse::Complete(hello) = parse(&whole(&[unknown.to_vec(), server_name(b"*.A.b")]), LIMIT) else { panic!() };
        assert_eq!(hello.server_name.as_deref(), Some("*.a.b"));
        let Parse::Complete(hello) = parse(&whole(&[alpn(&[b"\x8a\x8a", b"h2"]), server_name(b"\xff")]), LIMIT) else {
            panic!()
        };
        assert_eq!((hello.server_name, hello.alpn[1].as_str()), (None, "h2"));
    }

    #[test]
    fn something_else_is_told_at_the_first_byte_that_differs() {
        for bytes in
            [&b"G"[..], &[22, 2], &[22, 3, 5], &[22, 3, 1, 0, 0], &[22, 3, 1, 0x40, 1], &[22, 3, 1, 0, 9, 2], &[23]]
        {
            assert_eq!(parse(bytes, LIMIT), Parse::NotThis, "{bytes:?}");
            assert_eq!(parse(&bytes[..bytes.len() - 1], LIMIT), Parse::Partial, "{bytes:?}");
        }
    }

    #[test]
    fn broken_extensions() {
        let name = server_name(b"a");
        let cut = name[..name.len() - 1].to_vec();
        let mut long = name.clone();
        long[3] += 1;
        long.push(0);
        for extensions in [
            vec![name.clone(), name],
            vec![cut],
            vec![long],
            vec![server_name(b"")],
            vec![server_name(b"a\0b")],
            vec![server_name(&[b'a'; 256])],
            vec![alpn(&[])],
            vec![alpn(&[b""])],
            vec![alpn(&[b"h2"]), alpn(&[b"h2"])],
            vec![vec![0]],
        ] {
            assert_eq!(parse(&whole(&extensions), LIMIT), Parse::NotThis, "{extensions:?}");
        }
    }

    #[test]
    fn limits() {
        let bytes = whole(&[server_name(b"api.example.com")]);
        assert!(matches!(parse(&bytes, bytes.len()), Parse::Complete(_)));
        assert_eq!(parse(&bytes, bytes.len() - 1), Parse::Invalid(TOO_LARGE));
        // Told by the length alone.
        assert_eq!(parse(&[22, 3, 1, 0, 9, 1, 0, 0x40, 0], LIMIT), Parse::Invalid(TOO_LARGE));
        assert_eq!(parse(&[22, 3, 1, 0, 9, 1, 0, 0x3f, 0], LIMIT), Parse::Partial);
        // Record headers count.
        let spread = records(&bytes[5..], 1);
        assert_eq!(parse(&spread, 200), Parse::Invalid(TOO_LARGE));
        same_for_every_split(&spread, |bytes| parse(bytes, 200));
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..100), limit in 0usize..100) {
            same_for_every_split(&bytes, |bytes| parse(bytes, limit));
        }

        #[test]
        fn almost_a_hello(
            at in any::<prop::sample::Index>(),
            byte: u8,
            size in 1usize..200,
            limit in 20usize..300,
            tail in prop::collection::vec(any::<u8>(), 0..8),
        ) {
            let mut message = handshake(Some(&[server_name(b"api.example.com"), alpn(&[b"h2", b"http/1.1"])].concat()));
            let index = at.index(message.len());
            message[index] = byte;
            let mut bytes = records(&message, size);
            bytes.extend(tail);
            same_for_every_split(&bytes, |bytes| parse(bytes, limit));
        }

        #[test]
        fn almost_records(at in any::<prop::sample::Index>(), byte: u8, size in 1usize..50) {
            let mut bytes = records(&handshake(Some(&server_name(b"api.example.com"))), size);
            let index = at.index(bytes.len());
            bytes[index] = byte;
            same_for_every_split(&bytes, |bytes| parse(bytes, LIMIT));
        }
    }
}
