//! Which limit or timer ended a stream.
//!
//! Owns what has to be recorded at the moment of the failure, because nobody could tell it afterwards. Never speaks of it (see
//! `reason`).

use std::time::Duration;

/// The limit or timer that ended a stream, with the configuration field that set it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// A time limit was reached.
    Time {
        /// The limit, where it is known.
        limit: Option<Duration>,
        /// The field, as `Message.field`, or the header that set it.
        field: &'static str,
    },
    /// A count was reached.
    Count {
        /// How many are allowed.
        limit: u32,
        /// The field, as `Message.field`.
        field: &'static str,
    },
}

impl Cause {
    /// The field or header that set the limit.
    pub fn field(&self) -> &'static str {
        match self {
            Cause::Time { field, .. } | Cause::Count { field, .. } => field,
        }
    }
}
