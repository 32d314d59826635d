//! The HTTP/1.1 engine.
//!
//! Owns a connection from its first byte to its last, in one task. Never routes (see the connection manager).

pub mod body;
pub mod body_io;
pub mod encode;
pub mod link;
pub mod parse;
pub mod server;
