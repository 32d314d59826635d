//! Message heads as the pipeline sees them, whatever codec they came by.
//!
//! Owns [`RequestHead`] and [`ResponseHead`], the seam between engines and filters. Never knows a wire format.

use std::borrow::Cow;

use super::headers::{HeaderId, Headers, Span};

/// Versions of HTTP.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
    /// HTTP/2.
    Http2,
}

impl Version {
    /// As access logs print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
            Version::Http2 => "HTTP/2",
        }
    }
}

/// The head of a request. Pseudo headers stand in their own fields, never among `headers`.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    /// Everything but the pseudo headers; there is no `host`.
    pub headers: Headers,
    /// Version it came by.
    pub version: Version,
    method: Span,
    path: Span,
    authority: Span,
    scheme: Span,
    protocol: Span,
}

macro_rules! pseudo {
    ($($(#[$doc:meta])* $get:ident, $set:ident;)*) => {
        $($(#[$doc])*
        pub fn $get(&self) -> &[u8] {
            self.headers.bytes(self.$get)
        }

        /// Replaces it.
        pub fn $set(&mut self, value: &[u8]) {
            self.$get = self.headers.store(value);
        })*
    };
}

impl RequestHead {
    pseudo! {
        /// The method, such as `GET`.
        method, set_method;
        /// Path with query. Empty for CONNECT.
        path, set_path;
        /// Host with port, from `:authority` or the `host` header; may be empty.
        authority, set_authority;
        /// `http` or `https`.
        scheme, set_scheme;
        /// `:protocol` of an extended CONNECT, or the HTTP/1 upgrade asked for; empty otherwise.
        protocol, set_protocol;
    }

    /// Sets method and path to parts of the buffer.
    pub(crate) fn set_line(&mut self, method: Span, path: Span) {
        self.method = method;
        self.path = path;
    }

    /// Forgets everything, keeping the memory.
    pub fn clear(&mut self) {
        self.headers.clear();
        let empty = Span::default();
        (self.method, self.path, self.authority, self.scheme, self.protocol) = (empty, empty, empty, empty, empty);
    }

    /// Bytes of all names and values, pseudo headers included as HTTP/2 names them.
    pub fn byte_size(&self) -> usize {
        let pseudo =
            [(7, self.method()), (5, self.path()), (10, self.authority()), (7, self.scheme()), (9, self.protocol())];
        let given = pseudo.iter().filter(|(_, value)| !value.is_empty());
        self.headers.byte_size() + given.map(|(name, value)| name + value.len()).sum::<usize>()
    }

    /// The path as text; paths are checked to be ASCII when they arrive.
    pub fn path_str(&self) -> &str {
        std::str::from_utf8(self.path()).unwrap_or_default()
    }

    /// The authority as text.
    pub fn authority_str(&self) -> &str {
        std::str::from_utf8(self.authority()).unwrap_or_default()
    }

    /// The method as text.
    pub fn method_str(&self) -> &str {
        std::str::from_utf8(self.method()).unwrap_or_default()
    }

    /// The scheme as text.
    pub fn scheme_str(&self) -> &str {
        std::str::from_utf8(self.scheme()).unwrap_or_default()
    }

    /// `CONNECT`, as opposed to an extended one that asks for a protocol.
    pub fn is_connect(&self) -> bool {
        self.method() == b"CONNECT"
    }

    /// Bytes are to go both ways once it is granted: CONNECT, or an upgrade.
    pub fn is_tunnel(&self) -> bool {
        !self.protocol().is_empty() || self.is_connect()
    }

    /// `HEAD`.
    pub fn is_head(&self) -> bool {
        self.method() == b"HEAD"
    }

    /// `application/grpc`, with or without a suffix. Source: gRPC over HTTP/2.
    pub fn is_grpc(&self) -> bool {
        self.headers.get(HeaderId::ContentType).is_some_and(is_grpc_content_type)
    }

    /// A header or pseudo header by its lower-case name, for logs and matchers; values of repeated headers are joined.
    pub fn lookup(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let pseudo = match name {
            ":path" => self.path(),
            ":method" => self.method(),
            ":authority" | "host" => self.authority(),
            ":scheme" => self.scheme(),
            ":protocol" => self.protocol(),
            _ => return joined(&self.headers, name),
        };
        (!pseudo.is_empty()).then_some(Cow::Borrowed(pseudo))
    }
}

/// The head of a response.
#[derive(Debug, Default)]
pub struct ResponseHead {
    /// All headers.
    pub headers: Headers,
    /// 100 to 999.
    pub status: u16,
}

impl ResponseHead {
    /// Forgets everything, keeping the memory.
    pub fn clear(&mut self) {
        self.headers.clear();
        self.status = 0;
    }

    /// A header by its lower-case name; values of repeated headers are joined.
    pub fn lookup(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        if name == ":status" {
            return Some(Cow::Owned(self.status.to_string().into_bytes()));
        }
        joined(&self.headers, name)
    }
}

/// Whether a content type is one of gRPC's.
pub fn is_grpc_content_type(value: &[u8]) -> bool {
    value.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// All values of a header, joined by commas as RFC 9110 section 5.3 allows.
pub fn joined<'a>(headers: &'a Headers, name: &str) -> Option<Cow<'a, [u8]>> {
    let id = HeaderId::of(name.as_bytes());
    let mut values = headers
        .iter()
        .filter(|(found, text, _)| *found == id && (id != HeaderId::Other || *text == name.as_bytes()))
        .map(|(_, _, value)| value);
    let first = values.next()?;
    let Some(second) = values.next() else { return Some(Cow::Borrowed(first)) };
    let mut all = [first, b",", second].concat();
    for value in values {
        all.push(b',');
        all.extend_from_slice(value);
    }
    Some(Cow::Owned(all))
}
