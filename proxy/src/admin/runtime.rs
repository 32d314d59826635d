//! `/runtime` and `/runtime_modify`: values of all layers, and overrides.
//!
//! Owns the form. Never merges layers.

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::context::AdminContext;
use super::pretty::indented;
use super::request::Request;
use super::response::{JSON, Response};

/// All keys with their value in each layer and the one in force.
pub(super) fn runtime(context: &AdminContext) -> Response {
    let graph = context.process.graph.load();
    let runtime = &graph.runtime;
    let layers: Vec<&str> = runtime.layers.iter().map(|(name, _)| &**name).collect();
    let mut entries = Map::new();
    for (key, value) in &runtime.values {
        let of_layers =
            runtime.layers.iter().map(|(_, values)| values.get(key).map_or("", |value| value.text.as_str()));
        let entry = json!({ "final_value": value.text, "layer_values": of_layers.collect::<Vec<_>>() });
        entries.insert(key.clone(), entry);
    }
    let body = indented(&json!({ "layers": layers, "entries": Value::Object(entries) }), 0);
    Response::whole(StatusCode::OK, JSON, body)
}

/// Sets keys of the admin layer.
pub(super) fn runtime_modify(context: &AdminContext, request: &Request) -> Response {
    if request.parameters.is_empty() {
        let usage = "usage: /runtime_modify?<key>=<value>&<key>=<value>\n\
                     The pairs may also be sent as a form. An empty value removes an override.\n";
        return Response::text(StatusCode::BAD_REQUEST, usage);
    }
    match context.configuration.set_runtime(&request.parameters) {
        Ok(()) => Response::done(),
        Err(reason) => Response::text(StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
    }
}
