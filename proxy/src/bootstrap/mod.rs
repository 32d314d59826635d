//! From the command line to a checked bootstrap.
//!
//! Owns where the bootstrap comes from, how its parts are merged, and who we say we are in it. Never judges its fields
//! (see `outrigger_config::bootstrap`) and starts nothing.

mod environment;
mod load;
mod node;

pub use environment::System;
pub use load::{LoadError, Loaded, Origin, first_pattern, load};
pub use node::{identify, user_agent};
