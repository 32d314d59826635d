//! gRPC calls that come as JSON, and their answers.
//!
//! Owns what a request calls (`paths`), what its body and its path say together (`weave`), and the translation of messages
//! in both directions (`request`, `response`). Never reads a descriptor: the types stand in the settings.

mod encode;
mod http_body;
mod json;
mod json_text;
mod known;
mod number;
mod paths;
mod print;
mod print_known;
mod request;
mod response;
mod scalar;
mod status;
mod time;
mod weave;
mod wire;

pub use paths::{Call, Captured, NoCall, find};
pub use request::{RequestError, RequestTranslator};
pub use response::{ResponseError, ResponseTranslator};
pub use status::status_json;
pub use weave::Bindings;

/// Appends `message` with the head of a gRPC frame.
fn frame(out: &mut Vec<u8>, message: &[u8]) {
    out.push(0);
    // Bodies are limited far below this.
    out.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(message);
}

#[cfg(test)]
mod tests;
