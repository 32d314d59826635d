//! What clients are told that must authenticate themselves.
//!
//! Owns the realm of `www-authenticate`. Never decides who must.

use crate::http::headers::HeaderId;
use crate::http::message::RequestHead;

/// The URI of the request, its path cut off after a certain length.
pub(super) fn realm(head: &RequestHead) -> Vec<u8> {
    let scheme = head.headers.get(HeaderId::XForwardedProto).unwrap_or_else(|| head.scheme());
    let path = head.headers.get(HeaderId::XEnvoyOriginalPath).unwrap_or_else(|| head.path());
    [scheme, b"://", head.authority(), &path[..path.len().min(MAX_PATH_BYTES)]].concat()
}

const MAX_PATH_BYTES: usize = 256;
