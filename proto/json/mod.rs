//! The JSON form of messages, both ways, driven by the schema table.
//!
//! Owns protobuf's JSON mapping with the leniencies that configuration files rely on. It knows nothing of what any
//! Envoy message means.

mod error;
mod read;
mod scalar;
mod time;
mod view;

pub use error::{JsonError, Problem};
pub(crate) use read::read;
pub use read::{ParseOptions, Parsed, UnknownFields, UnknownTypes};
pub use view::{JsonStyle, JsonView, Names};

#[cfg(test)]
mod roundtrip;
#[cfg(test)]
mod tests;
