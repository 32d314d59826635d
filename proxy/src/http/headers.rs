//! The headers of one message, kept as bytes in one buffer.
//!
//! Owns lookup and mutation of header lists for every codec. Names are lower case. A message costs two buffers however
//! many headers it has, and both are reused. Never parses or writes a protocol.

use super::original_names::OriginalNames;

/// Part of a header buffer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Span {
    start: u32,
    length: u32,
}

impl Span {
    /// Bytes in this part.
    pub fn len(self) -> usize {
        self.length as usize
    }

    /// Nothing in it.
    pub fn is_empty(self) -> bool {
        self.length == 0
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Span,
    value: Span,
    id: HeaderId,
}

/// Bytes of a common header, name and value.
const COMMON_LENGTH: usize = 40;

/// An ordered list of headers.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    text: Vec<u8>,
    entries: Vec<Entry>,
    original_names: Option<Box<OriginalNames>>,
}

impl Headers {
    /// Forgets everything, keeping the memory.
    pub fn clear(&mut self) {
        self.text.clear();
        self.entries.clear();
        self.original_names = None;
    }

    /// How the peer wrote the names, where the configuration wants that kept.
    pub fn original_names(&self) -> Option<&OriginalNames> {
        self.original_names.as_deref()
    }

    /// Keeps how the peer wrote the names.
    pub(crate) fn set_original_names(&mut self, names: OriginalNames) {
        self.original_names = Some(Box::new(names));
    }

    /// Makes room for so many more headers of common length.
    pub fn reserve(&mut self, count: usize) {
        self.entries.reserve(count);
        self.text.reserve(count * COMMON_LENGTH);
    }

    /// How many headers there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No header at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all names and values.
    pub fn byte_size(&self) -> usize {
        self.entries.iter().map(|entry| entry.name.len() + entry.value.len()).sum()
    }

    /// The bytes of a part.
    pub fn bytes(&self, span: Span) -> &[u8] {
        let start = span.start as usize;
        self.text.get(start..start + span.len()).unwrap_or_default()
    }

    /// Adds bytes to the buffer without making them a header.
    pub fn store(&mut self, bytes: &[u8]) -> Span {
        let start = self.text.len();
        self.text.extend_from_slice(bytes);
        self.span(start, bytes.len())
    }

    /// Takes a whole message head; parts of it become headers by [`Headers::append_stored`].
    pub(crate) fn store_head(&mut self, head: &[u8]) -> usize {
        let start = self.text.len();
        self.text.extend_from_slice(head);
        start
    }

    /// A part of the buffer by position.
    pub(crate) fn span(&self, start: usize, length: usize) -> Span {
        // Heads are limited to far below 4 GiB before they get here.
        Span { start: start as u32, length: length as u32 }
    }

    /// Makes stored bytes a header; the name is lower-cased in place.
    pub(crate) fn append_stored(&mut self, name: Span, value: Span) {
        let start = name.start as usize;
        if let Some(text) = self.text.get_mut(start..start + name.len()) {
            text.make_ascii_lowercase();
        }
        let id = HeaderId::of(self.bytes(name));
        self.entries.push(Entry { name, value, id });
    }

    /// Adds a header at the end. `name` must be lower case.
    pub fn append(&mut self, name: &[u8], value: &[u8]) {
        let id = HeaderId::of(name);
        let name = self.store(name);
        let value = self.store(value);
        self.entries.push(Entry { name, value, id });
    }

    /// Adds a well-known header at the end.
    pub fn append_id(&mut self, id: HeaderId, value: &[u8]) {
        let name = self.store(id.name().as_bytes());
        let value = self.store(value);
        self.entries.push(Entry { name, value, id });
    }

    /// The first value of a well-known header.
    pub fn get(&self, id: HeaderId) -> Option<&[u8]> {
        self.entries.iter().find(|entry| entry.id == id).map(|entry| self.bytes(entry.value))
    }

    /// The first value of a well-known header, if it is text.
    pub fn get_str(&self, id: HeaderId) -> Option<&str> {
        self.get(id).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All values of a well-known header.
    pub fn get_all(&self, id: HeaderId) -> impl Iterator<Item = &[u8]> {
        self.entries.iter().filter(move |entry| entry.id == id).map(|entry| self.bytes(entry.value))
    }

    /// Whether a well-known header is there.
    pub fn contains(&self, id: HeaderId) -> bool {
        self.entries.iter().any(|entry| entry.id == id)
    }

    /// All values of a header by its lower-case name.
    pub fn get_all_by_name<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let id = HeaderId::of(name.as_bytes());
        self.entries
            .iter()
            .filter(move |entry| entry.id == id && (id != HeaderId::Other || self.bytes(entry.name) == name.as_bytes()))
            .map(|entry| self.bytes(entry.value))
    }

    /// The first value of a header by its lower-case name.
    pub fn get_by_name(&self, name: &str) -> Option<&[u8]> {
        let id = HeaderId::of(name.as_bytes());
        if id != HeaderId::Other {
            return self.get(id);
        }
        self.entries
            .iter()
            .find(|entry| entry.id == HeaderId::Other && self.bytes(entry.name) == name.as_bytes())
            .map(|entry| self.bytes(entry.value))
    }

    /// Replaces all values of a well-known header by one.
    pub fn set(&mut self, id: HeaderId, value: &[u8]) {
        let value = self.store(value);
        let mut done = false;
        self.entries.retain_mut(|entry| {
            if entry.id != id {
                return true;
            }
            if done {
                return false;
            }
            entry.value = value;
            done = true;
            true
        });
        if !done {
            let name = self.store(id.name().as_bytes());
            self.entries.push(Entry { name, value, id });
        }
    }

    /// Replaces all values of a header by its lower-case name.
    pub fn set_by_name(&mut self, name: &str, value: &[u8]) {
        let id = HeaderId::of(name.as_bytes());
        if id != HeaderId::Other {
            return self.set(id, value);
        }
        self.remove_by_name(name);
        self.append(name.as_bytes(), value);
    }

    /// Removes a well-known header; true if it was there.
    pub fn remove(&mut self, id: HeaderId) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.id != id);
        self.entries.len() != before
    }

    /// Removes a header by its lower-case name; true if it was there.
    pub fn remove_by_name(&mut self, name: &str) -> bool {
        let before = self.entries.len();
        let text = &self.text;
        self.entries.retain(|entry| {
            let start = entry.name.start as usize;
            text.get(start..start + entry.name.len()) != Some(name.as_bytes())
        });
        self.entries.len() != before
    }

    /// Removes headers that `unwanted` says yes to.
    pub fn remove_where(&mut self, mut unwanted: impl FnMut(HeaderId, &[u8], &[u8]) -> bool) {
        let text = &self.text;
        let bytes = |span: Span| text.get(span.start as usize..span.start as usize + span.len()).unwrap_or_default();
        self.entries.retain(|entry| !unwanted(entry.id, bytes(entry.name), bytes(entry.value)));
    }

    /// All headers in order, as (id, name, value).
    pub fn iter(&self) -> impl Iterator<Item = (HeaderId, &[u8], &[u8])> {
        self.entries.iter().map(|entry| (entry.id, self.bytes(entry.name), self.bytes(entry.value)))
    }
}

macro_rules! well_known {
    ($($variant:ident = $name:literal),* $(,)?) => {
        /// Headers that the proxy looks at, told apart once when a message arrives.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum HeaderId { $($variant,)* Other }

        impl HeaderId {
            /// The id of a lower-case name. `Other` for names that are only passed on.
            pub fn of(name: &[u8]) -> Self {
                let id = IDS[place(name, SEED)];
                if id.name().as_bytes() == name { id } else { HeaderId::Other }
            }

            /// The lower-case name; empty for `Other`.
            pub fn name(self) -> &'static str {
                match self {
                    $(HeaderId::$variant => $name,)*
                    HeaderId::Other => "",
                }
            }
        }

        const KNOWN: &[(&str, HeaderId)] = &[$(($name, HeaderId::$variant),)*];
    };
}

/// Places of [`IDS`].
const PLACES: usize = 512;
/// With this every known name has a place of its own.
const SEED: u64 = seed();
/// The ids of known names, each in the place of its name.
const IDS: [HeaderId; PLACES] = match ids(SEED) {
    Some(ids) => ids,
    None => [HeaderId::Other; PLACES],
};

/// The place of a name, from its length and some of its bytes.
const fn place(name: &[u8], seed: u64) -> usize {
    let length = name.len();
    if length == 0 {
        return 0;
    }
    let some =
        [name[0], name[length / 4], name[length / 2], name[length * 3 / 4], name[length - 1], length as u8, 0, 0];
    (u64::from_le_bytes(some).wrapping_mul(seed) >> 55) as usize
}

const fn seed() -> u64 {
    let mut seed = 0x9E37_79B9_7F4A_7C15;
    while ids(seed).is_none() {
        seed = seed.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(2);
    }
    seed
}

const fn ids(seed: u64) -> Option<[HeaderId; PLACES]> {
    let mut ids = [HeaderId::Other; PLACES];
    let mut next = 0;
    while next < KNOWN.len() {
        let (name, id) = KNOWN[next];
        let place = place(name.as_bytes(), seed);
        if !matches!(ids[place], HeaderId::Other) {
            return None;
        }
        ids[place] = id;
        next += 1;
    }
    Some(ids)
}

well_known! {
    Connection = "connection",
    ContentLength = "content-length",
    ContentType = "content-type",
    Cookie = "cookie",
    Date = "date",
    Expect = "expect",
    GrpcMessage = "grpc-message",
    GrpcStatus = "grpc-status",
    GrpcTimeout = "grpc-timeout",
    Host = "host",
    Http2Settings = "http2-settings",
    KeepAlive = "keep-alive",
    Location = "location",
    ProxyConnection = "proxy-connection",
    Server = "server",
    Te = "te",
    Trailer = "trailer",
    TransferEncoding = "transfer-encoding",
    Upgrade = "upgrade",
    UserAgent = "user-agent",
    Via = "via",
    XEnvoyAttemptCount = "x-envoy-attempt-count",
    XEnvoyDecoratorOperation = "x-envoy-decorator-operation",
    XEnvoyDegraded = "x-envoy-degraded",
    XEnvoyDownstreamServiceCluster = "x-envoy-downstream-service-cluster",
    XEnvoyDownstreamServiceNode = "x-envoy-downstream-service-node",
    XEnvoyExpectedRqTimeoutMs = "x-envoy-expected-rq-timeout-ms",
    XEnvoyExternalAddress = "x-envoy-external-address",
    XEnvoyForceTrace = "x-envoy-force-trace",
    XEnvoyHedgeOnPerTryTimeout = "x-envoy-hedge-on-per-try-timeout",
    XEnvoyInternal = "x-envoy-internal",
    XEnvoyIpTags = "x-envoy-ip-tags",
    XEnvoyMaxRetries = "x-envoy-max-retries",
    XEnvoyOriginalPath = "x-envoy-original-path",
    XEnvoyOriginalUrl = "x-envoy-original-url",
    XEnvoyOverloaded = "x-envoy-overloaded",
    XEnvoyRetriableHeaderNames = "x-envoy-retriable-header-names",
    XEnvoyRetriableStatusCodes = "x-envoy-retriable-status-codes",
    XEnvoyRetryGrpcOn = "x-envoy-retry-grpc-on",
    XEnvoyRetryOn = "x-envoy-retry-on",
    XEnvoyUpstreamAltStatName = "x-envoy-upstream-alt-stat-name",
    XEnvoyUpstreamCanary = "x-envoy-upstream-canary",
    XEnvoyUpstreamRqPerTryTimeoutMs = "x-envoy-upstream-rq-per-try-timeout-ms",
    XEnvoyUpstreamRqTimeoutAltResponse = "x-envoy-upstream-rq-timeout-alt-response",
    XEnvoyUpstreamRqTimeoutMs = "x-envoy-upstream-rq-timeout-ms",
    XEnvoyUpstreamServiceTime = "x-envoy-upstream-service-time",
    XForwardedClientCert = "x-forwarded-client-cert",
    XForwardedFor = "x-forwarded-for",
    XForwardedHost = "x-forwarded-host",
    XForwardedPort = "x-forwarded-port",
    XForwardedProto = "x-forwarded-proto",
    XRequestId = "x-request-id",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_replaced_and_removed() {
        let mut headers = Headers::default();
        headers.append(b"host", b"a");
        headers.append(b"x-own", b"1");
        headers.append(b"x-own", b"2");
        assert_eq!(headers.get(HeaderId::Host), Some(b"a".as_slice()));
        assert_eq!(headers.get_all_by_name("x-own").collect::<Vec<_>>(), [b"1", b"2"]);
        headers.set_by_name("x-own", b"3");
        headers.set(HeaderId::Host, b"b");
        headers.set(HeaderId::Via, b"me");
        let shown: Vec<_> = headers.iter().map(|(_, name, value)| (name, value)).collect();
        assert_eq!(shown, [(&b"host"[..], &b"b"[..]), (b"x-own", b"3"), (b"via", b"me")]);
        assert!(headers.remove_by_name("x-own"));
        assert!(!headers.remove(HeaderId::Date));
        assert_eq!(headers.len(), 2);
    }

    #[test]
    fn every_well_known_name_finds_its_id() {
        for (name, id) in KNOWN {
            assert_eq!(HeaderId::of(name.as_bytes()), *id);
            assert_eq!(id.name(), *name);
        }
        assert_eq!(HeaderId::of(b""), HeaderId::Other);
        assert_eq!(HeaderId::of(b"x-other"), HeaderId::Other);
    }
}
