//! How calls that failed are told in JSON.
//!
//! Owns the JSON form of `google.rpc.Status`. Never reads a header.

use outrigger_config::http::filters::transcoder::Transcoder;

use super::print;
use super::wire::{WireType, put_bytes, put_tag, put_varint};

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
