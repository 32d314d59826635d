//! PROXY protocol headers, versions 1 and 2 (`envoy.filters.listener.proxy_protocol`).
//!
//! Owns the reading of headers by HAProxy's specification (`doc/proxy-protocol.txt`). Never decides whether a sender
//! may be believed, or what follows from a missing header.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use outrigger_config::address::Address;
use outrigger_config::cluster::TlvFilter;
use outrigger_config::listener::{ProxyProtocol, TlvRule};
use outrigger_config::metadata::Namespaces;

use super::Parse;
use crate::upstream::proxy_header::Tlv;

/// A header.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProxyHeader {
    /// Of the client and of the place it connected to; `None` when the sender speaks for itself or does not know
    /// (LOCAL, UNKNOWN), and those of the socket hold.
    pub addresses: Option<ProxiedAddresses>,
    /// Length in bytes, with everything that was skipped.
    pub consumed: usize,
    /// Where its TLVs begin; `consumed` if it has none.
    tlvs_at: usize,
}

impl ProxyHeader {
    /// The TLVs of a header, of the bytes it was read from, that are to be kept. What does not fit its place ends the list,
    /// as HAProxy does it.
    pub fn tlvs(&self, bytes: &[u8], keep: &TlvFilter) -> Vec<Tlv> {
        self.all_tlvs(bytes).filter(|(kind, _)| keep.takes(*kind)).map(|(kind, value)| (kind, value.into())).collect()
    }

    /// What rules make of the TLVs of a header: metadata by namespace and key. Of several of a type the first one counts.
    pub fn metadata(&self, bytes: &[u8], rules: &[TlvRule]) -> Namespaces {
        let mut metadata = Namespaces::new();
        for (kind, value) in self.all_tlvs(bytes).filter(|_| !rules.is_empty()) {
            for TlvRule { namespace, key, base64, .. } in rules.iter().filter(|rule| rule.kind == kind) {
                let text = if *base64 { BASE64_STANDARD.encode(value) } else { as_text(value) };
                metadata.entry(namespace.to_string()).or_default().entry(key.to_string()).or_insert(text.into());
            }
        }
        metadata
    }

    fn all_tlvs<'b>(&self, bytes: &'b [u8]) -> impl Iterator<Item = (u8, &'b [u8])> + use<'b> {
        let mut rest = bytes.get(self.tlvs_at..self.consumed).unwrap_or_default();
        std::iter::from_fn(move || {
            let (&[kind, high, low], after) = rest.split_first_chunk::<3>()?;
            let (value, after) = after.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
            rest = after;
            Some((kind, value))
        })
    }
}

/// Text with `!` for each byte that belongs to none, as Envoy writes it.
fn as_text(value: &[u8]) -> String {
    let mut text = String::with_capacity(value.len());
    for chunk in value.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '!'));
    }
    text
}

/// The two ends of a proxied connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProxiedAddresses {
    /// The client.
    pub source: Address,
    /// Where it connected to.
    pub destination: Address,
}

/// Reads a header. Bytes that begin differently are told apart at the first byte that differs. A version that is not
/// allowed is invalid; where connections may come without a header, it is not looked for, and the bytes go on as they
/// are.
pub fn parse(bytes: &[u8], rules: &ProxyProtocol) -> Parse<ProxyHeader> {
    let ProxyProtocol { allow_without_header, allow_v1, allow_v2, keep: _, rules: _ } = rules;
    let versions = [
        Version { signature: V1_SIGNATURE, allowed: *allow_v1, parse: parse_v1, refusal: V1_REFUSAL },
        Version { signature: V2_SIGNATURE, allowed: *allow_v2, parse: parse_v2, refusal: V2_REFUSAL },
    ];
    for Version { signature, allowed, parse, refusal } in versions {
        if *allow_without_header && !allowed {
            continue;
        }
        if bytes.starts_with(signature) {
            return if allowed { parse(bytes) } else { Parse::Invalid(refusal) };
        }
        if signature.starts_with(bytes) {
            return Parse::Partial;
        }
    }
    // Nothing to look for is decided before the first byte: there is no header then.
    Parse::NotThis
}

struct Version {
    signature: &'static [u8],
    allowed: bool,
    parse: fn(&[u8]) -> Parse<ProxyHeader>,
    refusal: &'static str,
}

const V1_REFUSAL: &str = "PROXY protocol version 1 is not allowed";
const V2_REFUSAL: &str = "PROXY protocol version 2 is not allowed";
const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, with its end.
const V1_MAX: usize = 107;
/// The fixed part of version 2.
const V2_HEAD: usize = 16;

fn parse_v1(bytes: &[u8]) -> Parse<ProxyHeader> {
    let seen = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        return if seen.len() < V1_MAX {
            Parse::Partial
        } else {
            Parse::Invalid("PROXY protocol line is longer than 107 bytes")
        };
    };
    let Some(line) = seen[..end].strip_suffix(b"\r") else {
        return Parse::Invalid("PROXY protocol line does not end with CR LF");
    };
    let Ok(line) = std::str::from_utf8(&line[V1_SIGNATURE.len().min(line.len())..]) else {
        return Parse::Invalid("PROXY protocol line is not text");
    };
    let addresses = match line.split_once(' ').unwrap_or((line, "")) {
        // Whatever else stands on such a line is to be ignored.
        ("UNKNOWN", _) => None,
        ("TCP4", rest) => match v1_addresses::<Ipv4Addr>(rest) {
            Some(addresses) => Some(addresses),
            None => return Parse::Invalid("PROXY protocol line is not \"TCP4 source destination port port\""),
        },
        ("TCP6", rest) => match v1_addresses::<Ipv6Addr>(rest) {
            Some(addresses) => Some(addresses),
            None => return Parse::Invalid("PROXY protocol line is not \"TCP6 source destination port port\""),
        },
        _ => return Parse::Invalid("PROXY protocol line names none of TCP4, TCP6 and UNKNOWN"),
    };
    Parse::Complete(ProxyHeader { addresses, consumed: end + 1, tlvs_at: end + 1 })
}

fn v1_addresses<Ip: std::str::FromStr + Into<IpAddr>>(text: &str) -> Option<ProxiedAddresses> {
    let mut words = text.split(' ');
    let mut next = || words.next();
    let [source, destination, source_port, destination_port] = [next()?, next()?, next()?, next()?];
    if words.next().is_some() {
        return None;
    }
    let address = |ip: &str, port: &str| {
        let ip: Ip = ip.parse().ok()?;
        Some(Address::Ip(SocketAddr::new(ip.into(), v1_port(port)?)))
    };
    Some(ProxiedAddresses {
        source: address(source, source_port)?,
        destination: address(destination, destination_port)?,
    })
}

/// Plain decimal: no sign, no leading zero.
fn v1_port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

fn parse_v2(bytes: &[u8]) -> Parse<ProxyHeader> {
    // Each byte is judged as soon as it is there, so that rubbish is not waited for.
    let rest = &bytes[V2_SIGNATURE.len().min(bytes.len())..];
    let local = match rest.first() {
        None => return Parse::Partial,
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => {
            return Parse::Invalid("PROXY protocol version and command are neither LOCAL nor PROXY of version 2");
        }
    };
    let family = match rest.get(1) {
        None => return Parse::Partial,
        // A sender that speaks for itself may leave anything here.
        Some(_) if local => Family::Unknown,
        Some(0x00) => Family::Unknown,
        Some(0x11) => Family::Ipv4,
        Some(0x21) => Family::Ipv6,
        Some(0x31) => Family::Unix,
        Some(0x12 | 0x22 | 0x32) => return Parse::Invalid("PROXY protocol header is about datagrams"),
        Some(_) => return Parse::Invalid("PROXY protocol address family is not known"),
    };
    let Some(&[high, low]) = rest.get(2..4).and_then(<[u8]>::first_chunk) else { return Parse::Partial };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length < family.length() {
        return Parse::Invalid("PROXY protocol header is too short for its addresses");
    }
    let consumed = V2_HEAD + length;
    match bytes.get(V2_HEAD..consumed) {
        // What follows the addresses is extensions.
        Some(body) => {
            // A header about nobody has none that say anything.
            let tlvs_at = if local { consumed } else { V2_HEAD + family.length() };
            Parse::Complete(ProxyHeader { addresses: family.addresses(body), consumed, tlvs_at })
        }
        None => Parse::Partial,
    }
}

enum Family {
    Unknown,
    Ipv4,
    Ipv6,
    Unix,
}

const UNIX_PATH: usize = 108;

impl Family {
    /// Of the addresses, in bytes.
    fn length(&self) -> usize {
        match self {
            Family::Unknown => 0,
            Family::Ipv4 => 12,
            Family::Ipv6 => 36,
            Family::Unix => 2 * UNIX_PATH,
        }
    }

    /// `None` for an unknown family; `body` is long enough for any other.
    fn addresses(&self, body: &[u8]) -> Option<ProxiedAddresses> {
        match self {
            Family::Unknown => None,
            Family::Ipv4 => v2_addresses::<4>(body, |octets| Ipv4Addr::from(octets).into()),
            Family::Ipv6 => v2_addresses::<16>(body, |octets| Ipv6Addr::from(octets).into()),
            Family::Unix => {
                let (source, rest) = body.split_at_checked(UNIX_PATH)?;
                let destination = rest.get(..UNIX_PATH)?;
                Some(ProxiedAddresses { source: pipe(source), destination: pipe(destination) })
            }
        }
    }
}

fn v2_addresses<const N: usize>(body: &[u8], ip: impl Fn([u8; N]) -> IpAddr) -> Option<ProxiedAddresses> {
    let (source, rest) = body.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let &[a, b, c, d] = rest.first_chunk()?;
    let address = |octets: &[u8; N], port: [u8; 2]| Address::Ip(SocketAddr::new(ip(*octets), u16::from_be_bytes(port)));
    Some(ProxiedAddresses { source: address(source, [a, b]), destination: address(destination, [c, d]) })
}

/// A path up to its first zero; one that begins with a zero is in the abstract namespace, written with `@`. A socket
/// without a name has an empty path.
fn pipe(field: &[u8]) -> Address {
    let until_zero = |bytes: &[u8]| bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
    let path = match field.split_first() {
        Some((0, name)) if name.first().is_some_and(|byte| *byte != 0) => [b"@".to_vec(), until_zero(name)].concat(),
        _ => until_zero(field),
    };
    Address::Pipe { path: PathBuf::from(OsString::from_vec(path)), mode: 0 }
}

#[cfg(test)]
mod tests {
    use super::super::tests::same_for_every_split;
    use super::*;
    use proptest::prelude::*;

    const ALL: ProxyProtocol = ProxyProtocol {
        allow_without_header: false,
        allow_v1: true,
        allow_v2: true,
        keep: TlvFilter::Nothing,
        rules: Vec::new(),
    };

    fn v1(line: &str) -> Parse<ProxyHeader> {
        same_for_every_split(line.as_bytes(), |bytes| parse(bytes, &ALL));
        parse(line.as_bytes(), &ALL)
    }

    fn v2(command: u8, family: u8, length: u16, body: &[u8]) -> Vec<u8> {
        [V2_SIGNATURE, &[command, family], &length.to_be_bytes(), body].concat()
    }

    fn ends(header: Parse<ProxyHeader>) -> Option<(String, String)> {
        let Parse::Complete(ProxyHeader { addresses, .. }) = header else { panic!("{header:?}") };
        addresses.map(|both| (both.source.to_string(), both.destination.to_string()))
    }

    fn texts(source: &str, destination: &str) -> Option<(String, String)> {
        Some((source.to_owned(), destination.to_owned()))
    }

    #[test]
    fn tlvs_are_kept_as_told() {
        let body = [&[10, 0, 0, 1, 10, 0, 0, 2, 0, 5, 0, 80], &b"\x01\0\x02h2\xe0\0\x01x\x02\0\xff"[..]].concat();
        let bytes = v2(0x21, 0x11, body.len() as u16, &body);
        let Parse::Complete(header) = parse(&bytes, &ALL) else { panic!() };
        let tlvs = |keep| header.tlvs(&bytes, &keep);
        let (alpn, own): (Tlv, Tlv) = ((1, (*b"h2").into()), (0xe0, (*b"x").into()));
        assert_eq!(tlvs(TlvFilter::All), [alpn, own.clone()]);
        assert_eq!(tlvs(TlvFilter::Types(vec![0xe0])), [own]);
        assert_eq!(tlvs(TlvFilter::Nothing), []);
    }

    #[test]
    fn lines_of_version_1() {
        let header = v1("PROXY TCP4 1.2.3.4 10.0.0.1 1234 80\r\nGET /");
        assert!(matches!(&header, Parse::Complete(ProxyHeader { consumed: 37, .. })), "{header:?}");
        assert_eq!(ends(header), texts("1.2.3.4:1234", "10.0.0.1:80"));
        assert_eq!(ends(v1("PROXY TCP6 ::1 fe80::1 0 65535\r\n")), texts("[::1]:0", "[fe80::1]:65535"));
        assert_eq!(ends(v1("PROXY UNKNOWN\r\n")), None);
        assert_eq!(ends(v1("PROXY UNKNOWN what ever\r\n")), None);
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(V1_MAX - 16));
        assert_eq!(ends(v1(&longest)), None);
    }

    #[test]
    fn bad_lines_of_version_1() {
        for line in [
            "PROXY TCP4 1.2.3.4 10.0.0.1 1234 80\n",
            "PROXY TCP4 1.2.3.4 10.0.0.1 1234\r\n",
            "PROXY TCP4 1.2.3.4 10.0.0.1 1234 80 1\r\n",
            "PROXY TCP4 1.2.3.4  10.0.0.1 1234 80\r\n",
            "PROXY TCP4 ::1 ::1 1234 80\r\n",
            "PROXY TCP6 1.2.3.4 10.0.0.1 1234 80\r\n",
            "PROXY TCP4 01.2.3.4 10.0.0.1 1234 80\r\n",
            "PROXY TCP4 1.2.3.4 10.0.0.1 +1 80\r\n",
            "PROXY TCP4 1.2.3.4 10.0.0.1 080 80\r\n",
            "PROXY TCP4 1.2.3.4 10.0.0.1 65536 80\r\n",
            "PROXY TCP4 1.2.3.4 10.0.0.1  80\r\n",
            "PROXY UDP4 1.2.3.4 10.0.0.1 1234 80\r\n",
            "PROXY \r\n",
            "PROXY unknown\r\n",
        ] {
            assert!(matches!(v1(line), Parse::Invalid(_)), "{line:?}");
        }
        let long = format!("PROXY UNKNOWN {}\r\n", "f".repeat(V1_MAX));
        assert_eq!(v1(&long), Parse::Invalid("PROXY protocol line is longer than 107 bytes"));
    }

    #[test]
    fn headers_of_version_2() {
        let tlv = [4, 0, 1, 0];
        let body = [&[1, 2, 3, 4, 10, 0, 0, 1, 4, 210, 0, 80][..], &tlv, b"GET /"].concat();
        let header = parse(&v2(0x21, 0x11, 16, &body), &ALL);
        assert!(matches!(&header, Parse::Complete(ProxyHeader { consumed: 32, .. })));
        assert_eq!(ends(header), texts("1.2.3.4:1234", "10.0.0.1:80"));
        let mut body = [0; 36];
        (body[15], body[31], body[33], body[35]) = (1, 2, 3, 4);
        assert_eq!(ends(parse(&v2(0x21, 0x21, 36, &body), &ALL)), texts("[::1]:3", "[::2]:4"));
        assert_eq!(ends(parse(&v2(0x20, 0x00, 0, b""), &ALL)), None);
        assert_eq!(ends(parse(&v2(0x20, 0x11, 12, &[1; 12]), &ALL)), None);
        assert_eq!(ends(parse(&v2(0x21, 0x00, 3, b"abc"), &ALL)), None);
    }

    #[test]
    fn pipes() {
        let mut body = [0; 216];
        body[..8].copy_from_slice(b"/run/app");
        body[109..112].copy_from_slice(b"abs");
        assert_eq!(ends(parse(&v2(0x21, 0x31, 216, &body), &ALL)), texts("/run/app", "@abs"));
        assert_eq!(ends(parse(&v2(0x21, 0x31, 216, &[0; 216]), &ALL)), texts("", ""));
        assert_eq!(ends(parse(&v2(0x21, 0x31, 216, &[b'a'; 216]), &ALL)), texts(&"a".repeat(108), &"a".repeat(108)));
    }

    #[test]
    fn bad_headers_of_version_2() {
        for (command, family, length) in [
            (0x11, 0x11, 12),
            (0x22, 0x11, 12),
            (0x21, 0x12, 12),
            (0x21, 0x11, 11),
            (0x21, 0x21, 35),
            (0x21, 0x31, 215),
            (0x21, 0x41, 216),
        ] {
            let bytes = v2(command, family, length, &[0; 216]);
            assert!(matches!(parse(&bytes, &ALL), Parse::Invalid(_)), "{command:x} {family:x} {length}");
            same_for_every_split(&bytes, |bytes| parse(bytes, &ALL));
        }
    }

    #[test]
    fn no_header() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"PROXX", b"\r\n\r\n\0\r\nQUIT\r", b"PROXY\t"] {
            assert_eq!(parse(bytes, &ALL), Parse::NotThis);
            same_for_every_split(bytes, |bytes| parse(bytes, &ALL));
        }
    }

    #[test]
    fn rules_make_metadata_of_tlvs() {
        let tlvs = b"\xea\0\x03vpc\x02\0\x02a\xff\x02\0\x02b\xfe\x05\0\x01z\x09\xff";
        let body = [&[10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2], &tlvs[..]].concat();
        let bytes = v2(0x21, 0x11, body.len() as u16, &body);
        let Parse::Complete(header) = parse(&bytes, &ALL) else { panic!("it is whole") };
        let rule = |kind, namespace: &str, key: &str, base64| TlvRule {
            kind,
            namespace: namespace.into(),
            key: key.into(),
            base64,
        };
        let rules = [
            rule(0xea, "p", "vpc", false),
            rule(2, "p", "text", false),
            rule(2, "q", "bytes", true),
            rule(9, "q", "no", false),
        ];
        let found = serde_json::to_value(header.metadata(&bytes, &rules)).unwrap();
        assert_eq!(found, serde_json::json!({ "p": { "vpc": "vpc", "text": "a!" }, "q": { "bytes": "Yf8=" } }));
        assert!(header.metadata(&bytes, &[]).is_empty());
        assert_eq!(header.tlvs(&bytes, &TlvFilter::Nothing), []);
    }

    #[test]
    fn versions_that_are_not_allowed() {
        let line = b"PROXY UNKNOWN\r\n";
        let only_v2 = ProxyProtocol { allow_v1: false, ..ALL };
        assert_eq!(parse(line, &only_v2), Parse::Invalid(V1_REFUSAL));
        let lenient = ProxyProtocol { allow_without_header: true, ..only_v2 };
        assert_eq!(parse(line, &lenient), Parse::NotThis);
        assert!(matches!(parse(&v2(0x20, 0, 0, b""), &lenient), Parse::Complete(_)));
        let none = ProxyProtocol { allow_without_header: true, allow_v1: false, allow_v2: false, ..ALL };
        assert_eq!(parse(b"", &none), Parse::NotThis);
    }

    proptest! {
        #[test]
        fn any_bytes(v: bool, rest in prop::collection::vec(any::<u8>(), 0..60), lenient: bool, allow_v1: bool, allow_v2: bool) {
            let rules = ProxyProtocol { allow_without_header: lenient, allow_v1, allow_v2, ..ALL };
            let bytes = [if v { V1_SIGNATURE } else { V2_SIGNATURE }, &rest].concat();
            same_for_every_split(&bytes, |bytes| parse(bytes, &rules));
            same_for_every_split(&rest, |bytes| parse(bytes, &rules));
        }

        #[test]
        fn almost_version_1(line in "PROXY (TCP4|TCP6|UNKNOWN|U) ?[0-9.: ]{0,40}\r?\n?.{0,90}") {
            same_for_every_split(line.as_bytes(), |bytes| parse(bytes, &ALL));
        }

        #[test]
        fn almost_version_2(
            command in 0x1fu8..0x23,
            family in prop::sample::select(vec![0u8, 0x11, 0x12, 0x21, 0x31, 0x40]),
            length in 0u16..240,
            body in prop::collection::vec(any::<u8>(), 0..250),
        ) {
            let bytes = v2(command, family, length, &body);
            same_for_every_split(&bytes, |bytes| parse(bytes, &ALL));
            if let Parse::Complete(header) = parse(&bytes, &ALL) {
                prop_assert!(header.consumed <= bytes.len());
            }
        }
    }
}
