//! The command line: Envoy's flags, and a few of our own.
//!
//! Owns what the flags mean and how they are written. Never reads files or starts anything.

mod flags;
mod help;
mod options;
mod parse;
mod version;
mod wire;

pub use options::{DrainStrategy, IpVersion, Mode, Options, StatsTag, UnknownDynamicFields};
pub use parse::{Invocation, Output, UsageError, parse};
pub use version::{BUILD_VERSION, EMULATED_VERSION_VARIABLE, EmulatedVersion, REVISION, TLS_LIBRARY, version_line};
