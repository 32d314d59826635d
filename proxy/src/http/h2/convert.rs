//! Header lists of the `h2` crate to and from ours.
//!
//! Owns which headers may not cross into HTTP/2 (RFC 9113 section 8.2.2). Never changes a value.

use std::cell::RefCell;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue};

use super::names::{Names, Recent};
use crate::http::headers::{HeaderId, Headers};
use crate::http::message::{RequestHead, ResponseHead, Version};

/// Headers that the proxy adds to most heads.
const ADDED: usize = 6;

thread_local! {
    static NAMES: RefCell<Names> = RefCell::default();
    static AUTHORITIES: RefCell<Recent<Authority>> = RefCell::default();
}

/// A request head as it came.
pub fn request_of(parts: &http::request::Parts, head: &mut RequestHead) {
    head.clear();
    head.version = Version::Http2;
    append_all(&parts.headers, &mut head.headers);
    head.set_method(parts.method.as_str().as_bytes());
    let path = parts.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    head.set_path(path.as_bytes());
    head.set_scheme(parts.uri.scheme_str().unwrap_or_default().as_bytes());
    if let Some(authority) = parts.uri.authority() {
        head.set_authority(authority.as_str().as_bytes());
    } else if let Some(host) = head.headers.get(HeaderId::Host).map(<[u8]>::to_vec) {
        head.set_authority(&host);
    }
    head.headers.remove(HeaderId::Host);
    if let Some(protocol) = parts.extensions.get::<h2::ext::Protocol>() {
        head.set_protocol(protocol.as_str().as_bytes());
    }
    join_cookies(&mut head.headers);
}

/// A response head as it came.
pub fn response_of(parts: &http::response::Parts, head: &mut ResponseHead) {
    head.clear();
    head.status = parts.status.as_u16();
    append_all(&parts.headers, &mut head.headers);
}

/// A header list as it came.
pub fn headers_of(map: &HeaderMap) -> Headers {
    let mut headers = Headers::default();
    append_all(map, &mut headers);
    headers
}

/// RFC 9113 section 8.2.3: cookies may come apart, and belong together for everybody else.
fn join_cookies(headers: &mut Headers) {
    let mut cookies = headers.get_all(HeaderId::Cookie);
    if let (Some(first), Some(second)) = (cookies.next(), cookies.next()) {
        let mut joined = [first, b"; ", second].concat();
        for cookie in cookies {
            joined.extend_from_slice(b"; ");
            joined.extend_from_slice(cookie);
        }
        headers.set(HeaderId::Cookie, &joined);
    }
}

fn append_all(map: &HeaderMap, headers: &mut Headers) {
    headers.reserve(map.len() + ADDED);
    for (name, value) in map {
        headers.append(name.as_str().as_bytes(), value.as_bytes());
    }
}

/// A request to send. The URI is made of the head's pseudo headers.
///
/// # Errors
/// When a pseudo header has bytes that no URI may have.
pub fn request(head: &RequestHead) -> Result<http::Request<()>, http::Error> {
    let mut parts = http::uri::Parts::default();
    let extended = !head.protocol().is_empty();
    if !head.is_connect() || extended {
        parts.scheme = Some(if head.scheme() == b"https" { Scheme::HTTPS } else { Scheme::HTTP });
        parts.path_and_query = Some(match head.path() {
            b"" => PathAndQuery::from_static("/"),
            path => PathAndQuery::try_from(path)?,
        });
    }
    parts.authority = Some(AUTHORITIES.with_borrow_mut(|known| {
        let same = |authority: &Authority| authority.as_str().as_bytes() == head.authority();
        known.find(head.authority(), same, || Authority::try_from(head.authority())).cloned()
    })?);
    let uri = http::Uri::from_parts(parts)?;
    let mut request = http::Request::new(());
    // RFC 8441 section 4: what HTTP/1.1 upgrades is a CONNECT with a protocol.
    *request.method_mut() = if extended { http::Method::CONNECT } else { http::Method::from_bytes(head.method())? };
    *request.uri_mut() = uri;
    *request.headers_mut() = map_of(&head.headers);
    if !head.protocol().is_empty()
        && let Ok(protocol) = std::str::from_utf8(head.protocol())
    {
        request.extensions_mut().insert(h2::ext::Protocol::from(protocol));
    }
    Ok(request)
}

/// A response to send. A status outside 100..=999 becomes 500.
pub fn response(head: &ResponseHead) -> http::Response<()> {
    let mut response = http::Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(head.status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = map_of(&head.headers);
    response
}

/// A header list to send. Connection-specific headers, and values that HTTP does not allow, are left out.
pub fn map_of(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(headers.len());
    // One allocation for all values: each is a part of it.
    let mut text = Vec::with_capacity(headers.byte_size());
    for (_, _, value) in headers.iter() {
        text.extend_from_slice(value);
    }
    let mut text = Bytes::from(text);
    NAMES.with_borrow_mut(|names| {
        for (id, name, value) in headers.iter() {
            let text = text.split_to(value.len());
            let te_trailers = id == HeaderId::Te && value.eq_ignore_ascii_case(b"trailers");
            if is_connection_specific(id) && !te_trailers {
                continue;
            }
            let (Some(name), Ok(mut value)) = (names.find(id, name), HeaderValue::from_maybe_shared(text)) else {
                continue;
            };
            // A value that does not come again would only push useful ones out of the peer's table, and ours is
            // searched through all of them.
            value.set_sensitive(name.is_unique || id == HeaderId::XEnvoyUpstreamServiceTime && value.len() > 2);
            map.append(name.name.clone(), value);
        }
    });
    map
}

fn is_connection_specific(id: HeaderId) -> bool {
    matches!(
        id,
        HeaderId::Connection
            | HeaderId::KeepAlive
            | HeaderId::ProxyConnection
            | HeaderId::TransferEncoding
            | HeaderId::Upgrade
            | HeaderId::Te
            | HeaderId::Http2Settings
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_survive_the_way_there_and_back() {
        let mut head = RequestHead::default();
        head.set_method(b"POST");
        head.set_path(b"/a?b=c");
        head.set_authority(b"example.org:80");
        head.set_scheme(b"http");
        head.headers.append(b"te", b"trailers");
        head.headers.append(b"connection", b"close");
        head.headers.append(b"x-own", b"1");
        head.headers.append(b"x-own", b"2");
        let (parts, ()) = request(&head).unwrap().into_parts();
        let mut back = RequestHead::default();
        request_of(&parts, &mut back);
        assert_eq!((back.method(), back.path(), back.authority()), (head.method(), head.path(), head.authority()));
        let names: Vec<_> = back.headers.iter().map(|(_, name, value)| (name, value)).collect();
        assert_eq!(names, [(&b"te"[..], &b"trailers"[..]), (b"x-own", b"1"), (b"x-own", b"2")]);
    }

    #[test]
    fn values_that_do_not_come_again_stay_out_of_the_table() {
        let mut headers = Headers::default();
        headers.append(b"x-request-id", b"6f1c");
        headers.append(b"traceparent", b"00-1-2-01");
        headers.append(b"x-own", b"always");
        headers.append(b"x-envoy-upstream-service-time", b"12");
        let map = map_of(&headers);
        let unique: Vec<_> = map.iter().filter(|(_, value)| value.is_sensitive()).map(|(name, _)| name).collect();
        assert_eq!(unique, ["x-request-id", "traceparent"]);
    }

    #[test]
    fn a_request_without_a_usable_authority_is_refused() {
        let mut head = RequestHead::default();
        head.set_method(b"GET");
        head.set_path(b"/");
        for (authority, fine) in [(&b"a"[..], true), (b"", false), (b"a b", false), (b"a", true)] {
            head.set_authority(authority);
            assert_eq!(request(&head).is_ok(), fine);
        }
    }

    #[test]
    fn cookies_are_joined() {
        let mut map = HeaderMap::new();
        map.append("cookie", HeaderValue::from_static("a=1"));
        map.append("cookie", HeaderValue::from_static("b=2"));
        let mut headers = headers_of(&map);
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(HeaderId::Cookie).collect::<Vec<_>>(), [b"a=1; b=2"]);
    }
}
