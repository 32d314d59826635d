//! Evaluation of expressions of the Common Expression Language.
//!
//! Owns values and what operators and functions make of them, as Envoy's runtime does. The attributes of a request come from
//! outside. There are no loops, so the time is bounded by the expression and the values. Never panics, and never parses
//! expressions (see `outrigger_config::cel`).

mod evaluate;
mod operators;
mod time;
mod value;

#[cfg(test)]
mod tests;

pub use evaluate::{Attributes, Error, evaluate, holds};
pub use value::{Object, Value};
