//! Stats of load reports (`load_reporter.*`).
//!
//! Owns the metrics' names. Never decides when they change.

use crate::scope;

scope! {
    /// `load_reporter.*`; one writer, the control thread. As with Envoy, the server requests (`requests`) and reports are
    /// the responses, which is not what their messages are called.
    pub struct LoadReporterStats {
        errors: Counter,
        requests: Counter,
        responses: Counter,
        retries: Counter,
    }
}
