//! Waiting for routes that are discovered on demand (`envoy.extensions.filters.http.on_demand.v3.OnDemand`).
//!
//! Owns the wait of a request that has no route. Never discovers anything (see `graph::demands`).

use super::{Exchange, HttpFilter, Verdict};

/// The filter.
pub struct OnDemand;

impl HttpFilter for OnDemand {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        if exchange.chosen().is_some() {
            return Verdict::Continue;
        }
        let Some(wanted) = exchange.connection().missing(exchange.graph(), exchange.head()) else {
            return Verdict::Continue;
        };
        let answer = exchange.worker().process.demands.ask(wanted);
        // Without an answer there is nothing to wait for either: the route configuration is gone.
        Verdict::wait(answer, |_, _| Verdict::LookAgain)
    }
}
