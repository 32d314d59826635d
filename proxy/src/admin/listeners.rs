//! `/listeners`: active listeners and where they are bound.
//!
//! Owns both forms. Never opens or closes a listener.

use std::fmt::Write;

use http::StatusCode;
use outrigger_api::pb::envoy::admin::v3 as pb;

use super::context::AdminContext;
use super::dump_endpoints::address;
use super::pretty::{indented, message};
use super::request::Request;
use super::response::{JSON, Response};

/// All listeners.
pub(super) fn listeners(context: &AdminContext, request: &Request) -> Response {
    let listeners = context.configuration.listeners();
    if request.parameter("format") == Some("json") {
        let statuses = listeners.iter().map(|(name, addresses)| pb::ListenerStatus {
            name: name.to_string(),
            local_address: addresses.first().map(address),
            additional_local_addresses: addresses.iter().skip(1).map(address).collect(),
        });
        let body = indented(&message(&pb::Listeners { listener_statuses: statuses.collect() }), 0) + "\n";
        return Response::whole(StatusCode::OK, JSON, body);
    }
    let mut text = String::new();
    for (name, addresses) in &listeners {
        let _ = write!(text, "{name}::");
        for (index, address) in addresses.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let _ = write!(text, "{comma}{address}");
        }
        text.push('\n');
    }
    Response::text(StatusCode::OK, text)
}
