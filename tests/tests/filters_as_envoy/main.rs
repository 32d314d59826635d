//! HTTP filters beside Envoy: the same filters, routes and requests for both.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

mod chosen;
mod custom_response;
mod json_to_metadata;

use outrigger_tests::Upstream;
use outrigger_tests::config::{bootstrap, cluster};
use outrigger_tests::side_by_side::{Case, Chain, Intended, same};

/// What differs in all of them.
const CLIENT: (&str, &str, &str) = (
    "*",
    "header x-forwarded-for: ",
    "for a client on loopback Envoy names an address of the machine; we name the client",
);

/// Sends the cases through the chains. There is a cluster `dead` without endpoints; a type that begins with `^` is one of
/// `envoy.extensions`.
async fn compare(chains: &[Chain], cases: &[Case], intended: Intended) {
    let upstream = Upstream::start("one").await;
    let listeners: Vec<String> = chains
        .iter()
        .map(|chain| chain.listener().replace("envoy.extensions.filters.http.^", "envoy.extensions."))
        .collect();
    let bootstrap = bootstrap(&listeners, &[cluster("one", &[upstream.port()]), cluster("dead", &[])]);
    same(&bootstrap, chains, cases, intended).await;
}
