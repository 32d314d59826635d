//! Responses that the proxy makes itself, and what is done to every response head.
//!
//! Owns their form: plain for HTTP, trailers-only for gRPC. Never decides why one is made.

use std::borrow::Cow;
use std::time::Instant;

use outrigger_config::http::{HeaderMutations, ServerHeader};

use super::HttpConnection;
use crate::http::h1::encode::decimal;
use crate::http::h1::parse::tokens;
use crate::http::headers::{HeaderId, Headers};
use crate::http::message::ResponseHead;
use crate::stream::ResponseFlag;

/// A response of our own.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalReply {
    /// Status code.
    pub status: u16,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Cow<'static, str>,
    /// Response flag, if something went wrong.
    pub flag: Option<ResponseFlag>,
    /// Plain text; may be empty.
    pub body: Cow<'static, [u8]>,
    /// Further headers; lower case.
    pub headers: Vec<(Cow<'static, str>, Cow<'static, [u8]>)>,
    /// Value of `location`, for redirects.
    pub location: Option<String>,
    /// Says that a limit was reached (`x-envoy-overloaded`).
    pub overloaded: bool,
    /// gRPC status, where it does not follow from the status code.
    pub grpc_status: Option<u32>,
    /// An HTTP/1 connection ends with it.
    pub close: bool,
    /// It takes the place of a response that filters have seen: they are not asked about it.
    pub instead: Option<Box<Instead>>,
}

/// What else is said of an answer that takes the place of a response.
#[derive(Clone, Debug, PartialEq)]
pub struct Instead {
    /// Changes of its headers.
    pub headers: HeaderMutations,
}

impl LocalReply {
    /// A reply with a status and its reason.
    pub fn new(status: u16, details: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            details: details.into(),
            flag: None,
            body: Cow::Borrowed(b""),
            headers: Vec::new(),
            location: None,
            overloaded: false,
            grpc_status: None,
            close: false,
            instead: None,
        }
    }

    /// Ending an HTTP/1 connection.
    pub fn close(mut self) -> Self {
        self.close = true;
        self
    }

    /// With a response flag.
    pub fn flag(mut self, flag: ResponseFlag) -> Self {
        self.flag = Some(flag);
        self
    }

    /// With a further header; `name` in lower case.
    pub fn header(&mut self, name: impl Into<Cow<'static, str>>, value: impl AsRef<[u8]>) {
        self.headers.push((name.into(), value.as_ref().to_vec().into()));
    }

    /// With a body.
    pub fn body(mut self, body: impl Into<Cow<'static, [u8]>>) -> Self {
        self.body = body.into();
        self
    }
}

/// gRPC status for an HTTP status. Source: gRPC's "HTTP to gRPC Status Code Mapping", with 429 and 503 as unavailable.
pub fn grpc_status(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Writes the headers that a local reply brings.
pub fn begin_head(reply: &LocalReply, head: &mut ResponseHead) {
    head.clear();
    head.status = reply.status;
    if let Some(location) = &reply.location {
        head.headers.append_id(HeaderId::Location, location.as_bytes());
    }
    if reply.overloaded {
        head.headers.append_id(HeaderId::XEnvoyOverloaded, b"true");
    }
    for (name, value) in &reply.headers {
        head.headers.append(name.as_bytes(), value);
    }
}

/// Writes what says of its body, after [`begin_head`]; returns whether the body follows. `content_type` is that of a body
/// that was written anew.
pub fn end_head(reply: &LocalReply, grpc: bool, content_type: Option<&str>, head: &mut ResponseHead) -> bool {
    if grpc {
        head.status = 200;
        head.headers.set(HeaderId::ContentType, b"application/grpc");
        head.headers.remove(HeaderId::ContentLength);
        if !head.headers.contains(HeaderId::GrpcStatus) {
            let status = reply.grpc_status.unwrap_or_else(|| grpc_status(reply.status));
            head.headers.append_id(HeaderId::GrpcStatus, decimal(u64::from(status), &mut [0; 20]));
        }
        if !reply.body.is_empty() {
            let body = &*reply.body;
            // JSON comes with a line end.
            let body = body.strip_suffix(b"\n").filter(|_| content_type.is_some()).unwrap_or(body);
            head.headers.append_id(HeaderId::GrpcMessage, &percent_encoded(body));
        }
        return false;
    }
    if reply.body.is_empty() {
        return false;
    }
    if let Some(content_type) = content_type {
        head.headers.set(HeaderId::ContentType, content_type.as_bytes());
    }
    head.headers.set(HeaderId::ContentLength, decimal(reply.body.len() as u64, &mut [0; 20]));
    if !head.headers.contains(HeaderId::ContentType) {
        head.headers.append_id(HeaderId::ContentType, b"text/plain");
    }
    true
}

/// gRPC over HTTP/2: everything but printable ASCII, and the percent sign, is escaped in messages.
pub fn percent_encoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in text {
        if matches!(byte, b' '..=b'~') && *byte != b'%' {
            out.push(*byte);
        } else {
            out.push(b'%');
            out.push(b"0123456789ABCDEF"[usize::from(byte >> 4)]);
            out.push(b"0123456789ABCDEF"[usize::from(byte & 0xf)]);
        }
    }
    out
}

/// Makes a response head fit to leave: hop-by-hop headers go, `server`, `date` and `via` come.
pub fn finish_head(connection: &HttpConnection, head: &mut ResponseHead, from_upstream: bool, now: Instant) {
    let config = &connection.node.config;
    if from_upstream {
        remove_hop_by_hop(&mut head.headers, head.status == 101);
        if head.status == 204 {
            // RFC 9110 section 8.6: there is no length where there can be no content.
            head.headers.remove(HeaderId::ContentLength);
        }
    }
    let date = connection.worker.date.text(connection.worker.process.clock.at(now));
    if !head.headers.contains(HeaderId::Date) {
        head.headers.append_id(HeaderId::Date, &date);
    }
    match config.server_header {
        ServerHeader::Overwrite => head.headers.set(HeaderId::Server, config.server_name.as_bytes()),
        ServerHeader::AppendIfAbsent if !head.headers.contains(HeaderId::Server) => {
            head.headers.append_id(HeaderId::Server, config.server_name.as_bytes());
        }
        ServerHeader::PassThrough if !from_upstream => {
            head.headers.set(HeaderId::Server, config.server_name.as_bytes());
        }
        ServerHeader::AppendIfAbsent | ServerHeader::PassThrough => {}
    }
    if let Some(via) = &config.via {
        append_via(&mut head.headers, via);
    }
}

/// Adds ourselves to `via`.
pub fn append_via(headers: &mut Headers, via: &str) {
    match headers.get(HeaderId::Via).map(<[u8]>::to_vec) {
        Some(mut before) => {
            before.extend_from_slice(b", ");
            before.extend_from_slice(via.as_bytes());
            headers.set(HeaderId::Via, &before);
        }
        None => headers.append_id(HeaderId::Via, via.as_bytes()),
    }
}

/// RFC 9110 section 7.6.1: headers that concern one connection only, and those that `connection` names.
pub fn remove_hop_by_hop(headers: &mut Headers, upgrade: bool) {
    let mut named: Vec<Vec<u8>> = Vec::new();
    let mut any = false;
    for (id, _, value) in headers.iter() {
        match id {
            HeaderId::Connection => {
                any = true;
                // Only these may be named: a client must not be able to strip what later hops rely on.
                let own = |token: &&[u8]| !is_protected(token);
                named.extend(tokens(value).filter(own).map(<[u8]>::to_ascii_lowercase));
            }
            HeaderId::KeepAlive | HeaderId::ProxyConnection | HeaderId::TransferEncoding | HeaderId::Upgrade => {
                any = true;
            }
            _ => {}
        }
    }
    if !any {
        return;
    }
    headers.remove_where(|id, name, _| match id {
        HeaderId::Upgrade | HeaderId::Connection => !upgrade,
        HeaderId::KeepAlive | HeaderId::ProxyConnection | HeaderId::TransferEncoding => true,
        _ => named.iter().any(|named| named == name),
    });
}

fn is_protected(token: &[u8]) -> bool {
    let names: [&[u8]; 6] = [b"te", b"close", b"keep-alive", b"upgrade", b"host", b"content-length"];
    names.iter().any(|name| token.eq_ignore_ascii_case(name))
        || token.len() > 12 && token[..12].eq_ignore_ascii_case(b"x-forwarded-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_replies_are_trailers_only() {
        let mut head = ResponseHead::default();
        let reply = LocalReply::new(503, "x").body(&b"no 100% way"[..]);
        begin_head(&reply, &mut head);
        assert!(!end_head(&reply, true, None, &mut head));
        assert_eq!(head.status, 200);
        assert_eq!(head.headers.get(HeaderId::GrpcStatus), Some(&b"14"[..]));
        assert_eq!(head.headers.get(HeaderId::GrpcMessage), Some(&b"no 100%25 way"[..]));
    }

    #[test]
    fn headers_named_by_connection_go_with_it() {
        let mut headers = Headers::default();
        for (name, value) in
            [("connection", "x-foo, x-forwarded-for"), ("x-foo", "1"), ("x-forwarded-for", "1.2.3.4"), ("x-bar", "2")]
        {
            headers.append(name.as_bytes(), value.as_bytes());
        }
        remove_hop_by_hop(&mut headers, false);
        let names: Vec<_> = headers.iter().map(|(_, name, _)| name).collect();
        assert_eq!(names, [&b"x-forwarded-for"[..], b"x-bar"]);
    }
}
