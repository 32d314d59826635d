//! Filters that hold load back, and what filters cost where they do not: bandwidth limits, admission control and adaptive
//! concurrency, beside Envoy and alone.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

mod admission;
mod bandwidth;
mod concurrency;
mod idle;

use outrigger_tests::config::{self, all_to, chain, routes};
use outrigger_tests::side_by_side::Intended;

/// What differs for reasons that have nothing to do with filters.
const ADDRESS: (&str, &str, &str) = (
    "*",
    "header x-forwarded-for: ",
    "for a client on loopback Envoy names an address of the machine; we name the client",
);

const INTENDED: Intended = &[
    ADDRESS,
    ("*", "transfer_duration", "time is never the same"),
    ("*", "-delay-ms: ", "time is never the same"),
    ("*", "_incoming_size", "of the last piece, which is an empty one in Envoy where the end comes by itself"),
];

/// A listener `web` with one filter before the router, all of its requests going to the cluster `one`.
fn listener_with(message: &str, fields: &str) -> String {
    let filter = format!(
        "{{ name: f, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.{message}, {fields} }} }}, "
    );
    let manager =
        config::http("web", &routes(&all_to("one"))).replace("http_filters: [", &format!("http_filters: [{filter}"));
    config::listener("web", &[chain(&manager, "")], "")
}
