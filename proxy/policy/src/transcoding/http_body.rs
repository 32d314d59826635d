//! Bodies that are not JSON: `google.api.HttpBody`, by itself or as a field of a message.
//!
//! Owns what is written around the bytes of a body, and how they are found. Never looks at them.

use outrigger_config::http::filters::transcoder::HttpBodyPath;

use super::paths::Captured;
use super::wire::{Reader, WireError, WireType, put_bytes, put_tag, put_varint};

/// A body of a response.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HttpBody {
    /// Its type; may be empty.
    pub content_type: Vec<u8>,
    /// The bytes.
    pub data: Vec<u8>,
}

/// Writes a message with `data` in a body at the end of `path`.
pub(super) fn envelop(out: &mut Vec<u8>, path: &HttpBodyPath, content_type: &[u8], captured: &Captured, data: &[u8]) {
    let mut head = Vec::new();
    if !content_type.is_empty() {
        put_bytes(&mut head, CONTENT_TYPE, content_type);
    }
    if !captured.is_empty() {
        let mut any = Vec::new();
        put_bytes(&mut any, 1, CAPTURED_TYPE);
        put_bytes(&mut any, 2, &parameters(captured));
        put_bytes(&mut head, EXTENSIONS, &any);
    }
    put_tag(&mut head, DATA, WireType::Length);
    put_varint(&mut head, data.len() as u64);
    // From the inside out: each message around has the length of what is in it.
    for number in path.0.iter().rev() {
        let mut outer = Vec::new();
        put_tag(&mut outer, *number, WireType::Length);
        put_varint(&mut outer, (head.len() + data.len()) as u64);
        outer.append(&mut head);
        head = outer;
    }
    out.append(&mut head);
    out.extend_from_slice(data);
}

/// `envoy.extensions.filters.http.grpc_json_transcoder.v3.UnknownQueryParams`.
fn parameters(captured: &Captured) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, values) in captured {
        let mut list = Vec::new();
        for value in values {
            put_bytes(&mut list, 1, value.as_bytes());
        }
        let mut entry = Vec::new();
        put_bytes(&mut entry, 1, name.as_bytes());
        put_bytes(&mut entry, 2, &list);
        put_bytes(&mut out, 1, &entry);
    }
    out
}

/// Finds the body at the end of `path` in a message.
pub(super) fn find(message: &[u8], path: &[u32]) -> Result<HttpBody, WireError> {
    let mut body = HttpBody::default();
    merge(message, path, &mut body)?;
    Ok(body)
}

fn merge(message: &[u8], path: &[u32], body: &mut HttpBody) -> Result<(), WireError> {
    let mut reader = Reader::new(message);
    while !reader.is_done() {
        let (number, wire_type) = reader.tag()?;
        match (path.split_first(), wire_type) {
            (Some((next, rest)), WireType::Length) if number == *next => merge(reader.bytes()?, rest, body)?,
            (None, WireType::Length) if number == CONTENT_TYPE => body.content_type = reader.bytes()?.to_vec(),
            (None, WireType::Length) if number == DATA => body.data = reader.bytes()?.to_vec(),
            _ => reader.skip(number, wire_type)?,
        }
    }
    Ok(())
}

// Source: google/api/httpbody.proto.
const CONTENT_TYPE: u32 = 1;
const DATA: u32 = 2;
const EXTENSIONS: u32 = 3;
const CAPTURED_TYPE: &[u8] =
    b"type.googleapis.com/envoy.extensions.filters.http.grpc_json_transcoder.v3.UnknownQueryParams";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_enveloped_is_found(path in prop::collection::vec(1u32..100, 0..4), kind: Vec<u8>, data: Vec<u8>) {
            let mut message = Vec::new();
            let captured = Captured::from([("a".to_owned(), vec!["1".to_owned(), "2".to_owned()])]);
            envelop(&mut message, &HttpBodyPath(path.clone().into()), &kind, &captured, &data);
            prop_assert_eq!(find(&message, &path), Ok(HttpBody { content_type: kind, data }));
        }
    }
}
