//! Socket options given by number (`envoy.config.core.v3.SocketOption`).
//!
//! Owns how a configured option reaches the system. Never decides when.

use std::io;
use std::os::fd::AsFd;

use outrigger_config::listener::{SocketOption, SocketOptionValue};
use outrigger_sys::sockopt::{OptionValue, set_by_number};

/// Sets one option.
///
/// # Errors
/// What the system says.
pub fn apply(socket: impl AsFd, option: &SocketOption) -> io::Result<()> {
    let value = match &option.value {
        SocketOptionValue::Int(number) => OptionValue::Int(*number),
        SocketOptionValue::Bytes(bytes) => OptionValue::Bytes(bytes),
    };
    set_by_number(socket, option.level, option.name, value)
}
