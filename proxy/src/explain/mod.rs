//! What became of a stream, in the words of those who operate proxies: HAProxy's timers and termination state, whether a
//! request can be repeated, and one sentence why it failed.
//!
//! Owns these views. All of them are pure functions of what was recorded of the stream (see [`crate::stream`]). Never records
//! anything, and never decides what happens to a stream.

mod cause;
mod details;
mod reason;
mod termination;
mod timers;

#[cfg(test)]
mod tests;

pub use cause::Cause;
pub use reason::reason;
pub use termination::{RetryClass, retry_class, termination_state};
pub use timers::{Timer, timer};
