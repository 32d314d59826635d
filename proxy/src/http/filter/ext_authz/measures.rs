//! What the filter leaves of its questions in the filter state, for logs and expressions.
//!
//! Owns the object that has the filter's name: the fields that the settings give, how long the question took, and how long it
//! and its answer were. Never decides anything by it.

use std::rc::Rc;
use std::time::Instant;

use outrigger_config::http::filters::ExtAuthz as Settings;

use crate::http::filter::Exchange;
use crate::upstream::call::{Call, Seen};

/// A question that is measured.
pub(super) struct Measured {
    began: Instant,
    /// Its bytes; for services of gRPC alone, as in Envoy.
    seen: Option<Rc<Seen>>,
}

/// Another object has that name.
pub(super) struct Collision;

/// Adds the object, if the settings want it, before the service is asked.
pub(super) fn begin(
    settings: &Settings,
    by_grpc: bool,
    call: &mut Call,
    exchange: &Exchange<'_, '_, '_>,
) -> Result<Option<Measured>, Collision> {
    if settings.fields.is_none() && !settings.measures {
        return Ok(None);
    }
    let fields = settings.fields.clone().unwrap_or_default();
    if !exchange.info().filter_state.borrow_mut().add_fields(exchange.name(), fields) {
        return Err(Collision);
    }
    let seen = by_grpc.then(|| Rc::clone(call.seen.get_or_insert_default()));
    Ok(settings.measures.then(|| Measured { began: Instant::now(), seen }))
}

impl Measured {
    /// The question has been answered, or will not be.
    pub(super) fn end(self, exchange: &Exchange<'_, '_, '_>) {
        let Self { began, seen } = self;
        let mut state = exchange.info().filter_state.borrow_mut();
        let mut set = |field: &str, value| state.set_field(exchange.name(), field, value);
        set("latency_us", u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
        if let Some(seen) = seen {
            set("bytesSent", seen.bytes_sent.get());
            set("bytesReceived", seen.bytes_received.get());
        }
    }
}
