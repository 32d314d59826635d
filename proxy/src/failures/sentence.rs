//! One sentence on why something failed.
//!
//! Owns the words for what only the flight recorder tells of; all else is said by [`crate::explain`]. Never decides what a
//! failure is.

use crate::explain;
use crate::stream::{Kill, StreamInfo};

/// Why a stream that has failed has.
pub(super) fn sentence(info: &StreamInfo) -> String {
    if !matches!(info.kill.get(), Kill::No | Kill::Overload) {
        return format!("Ended by hand (POST /requests/kill) while it was {}.", info.phase.get().as_str());
    }
    let refused = || {
        let termination = info.termination.borrow();
        Some(format!("The connection was refused, or broke: {}.", termination.as_deref()?))
    };
    explain::reason(info).or_else(refused).unwrap_or_else(|| "It failed for a reason that was not recorded.".to_owned())
}
