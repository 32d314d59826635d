//! Requests as examples of what histograms have counted.
//!
//! Owns which requests are: those that are recorded, while somebody reads examples. Never counts.

use std::time::Instant;

use outrigger_policy::trace::Identity;

use crate::http::manager::request::Request;
use crate::stats::{Exemplar, names};

/// The span that a request is an example by, if its spans are sent in any case and somebody reads examples. Those that are
/// kept for their end alone are none: their trace is not known elsewhere.
fn example<'a>(request: &'a Request<'_>) -> Option<&'a Identity> {
    let identity = request.trace.as_ref()?.identity.as_ref().filter(|identity| identity.sampled)?;
    request.connection.worker.process.exemplars.are_wanted().then_some(identity)
}

/// Makes a request an example of the histogram `<kind>.<name>.<stat>`, which counts milliseconds since the request began.
pub fn keep(request: &Request<'_>, kind: &str, name: &str, stat: &str, now: Instant) {
    let Some(identity) = example(request) else { return };
    let value = now.saturating_duration_since(request.info.start).as_millis() as u64;
    keep_of(request, identity, &(names::prefix(kind, name) + stat), value, now);
}

/// Makes a request that has ended an example of the histograms that `named` names, with what each has counted of it. They
/// are asked for their names only if it is one.
pub fn keep_named<I: IntoIterator<Item = (String, u64)>>(
    request: &Request<'_>,
    now: Instant,
    named: impl FnOnce() -> I,
) {
    let Some(identity) = example(request).filter(|_| !request.info.health_check.get()) else { return };
    for (name, value) in named() {
        keep_of(request, identity, &name, value, now);
    }
}

fn keep_of(request: &Request<'_>, identity: &Identity, name: &str, value: u64, now: Instant) {
    let process = &request.connection.worker.process;
    let at = process.clock.at(now);
    let exemplar = Exemplar { value, trace_id: identity.trace_id, span_id: identity.span_id, at };
    process.exemplars.keep(name, exemplar);
}
