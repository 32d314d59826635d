//! How calls end, as HTTP has it.
//!
//! Owns the status for a gRPC status, and the JSON form of `google.rpc.Status`. Never reads a header.

use outrigger_config::http::filters::transcoder::Transcoder;

use super::print;
use super::wire::{WireType, put_bytes, put_tag, put_varint};

/// The HTTP status for a gRPC status. Source: `google/rpc/code.proto`.
pub fn http_status(grpc_status: u64) -> u16 {
    match grpc_status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// The JSON form of a failure: of `details`, which is a `google.rpc.Status`, or else of a status with a message. `None` if
/// some of its types are not known.
pub fn status_json(
    transcoder: &Transcoder,
    grpc_status: u64,
    message: &[u8],
    details: Option<&[u8]>,
) -> Option<Vec<u8>> {
    let id = transcoder.schema.find("google.rpc.Status")?;
    let mut made = Vec::new();
    if details.is_none() {
        put_tag(&mut made, 1, WireType::Varint);
        put_varint(&mut made, grpc_status);
        if !message.is_empty() {
            put_bytes(&mut made, 2, message);
        }
    }
    let bytes = details.unwrap_or(&made);
    print::print(&transcoder.schema, transcoder.printing, id, bytes).ok().map(String::into_bytes)
}
