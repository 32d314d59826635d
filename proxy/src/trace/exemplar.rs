//! Requests as examples of what histograms have counted.
//!
//! Owns which requests are: those that are recorded, while somebody reads examples. Never counts.

use std::time::Instant;

use crate::http::manager::request::Request;
use crate::stats::{Exemplar, names};

/// Makes a request an example of the histogram `<kind>.<name>.<stat>`, which counts milliseconds since the request began,
/// if its spans are sent in any case. Those that are kept for their end alone are none: their trace is not known elsewhere.
pub fn keep(request: &Request<'_>, kind: &str, name: &str, stat: &str, now: Instant) {
    let Some(identity) = request.trace.as_ref().and_then(|trace| trace.identity).filter(|identity| identity.sampled)
    else {
        return;
    };
    let process = &request.connection.worker.process;
    if !process.exemplars.are_wanted() {
        return;
    }
    let exemplar = Exemplar {
        value: now.saturating_duration_since(request.info.start).as_millis() as u64,
        trace_id: identity.trace_id,
        span_id: identity.span_id,
        at: process.clock.at(now),
    };
    process.exemplars.keep(&(names::prefix(kind, name) + stat), exemplar);
}
