//! `/ready`, `/server_info`, `/memory` and `/init_dump`: the process itself.
//!
//! Owns their forms. Never changes the process.

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::context::{AdminContext, ServerState};
use super::pretty::{indented, message};
use super::request::Request;
use super::response::{JSON, Response};

/// The state; only a process that is live is ready.
pub(super) fn ready(context: &AdminContext) -> Response {
    let state = context.server.state();
    let status = if state == ServerState::Live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Response::text(status, format!("{}\n", state.as_str()))
}

/// Version, state, age and command line.
pub(super) fn server_info(context: &AdminContext) -> Response {
    let facts = &context.facts;
    let uptime = format!("{}s", context.server.uptime().as_secs());
    let info = json!({
        "version": facts.version,
        "state": context.server.state().as_str(),
        "uptime_current_epoch": uptime,
        // A process never takes over from another one, so there are no other epochs.
        "uptime_all_epochs": uptime,
        "hot_restart_version": facts.hot_restart_version,
        "command_line_options": command_line(message(&facts.command_line)),
        "node": message(&facts.node),
    });
    Response::whole(StatusCode::OK, JSON, indented(&info, 0) + "\n")
}

/// Options at their defaults are shown too: tools compare them.
fn command_line(given: Value) -> Value {
    let mut all = Map::new();
    let text = ["config_path", "config_yaml", "admin_address_path", "log_level", "component_log_level", "log_format"];
    for name in text.into_iter().chain([
        "log_path",
        "service_cluster",
        "service_node",
        "service_zone",
        "base_id_path",
        "socket_path",
    ]) {
        all.insert(name.to_owned(), "".into());
    }
    for name in [
        "allow_unknown_static_fields",
        "reject_unknown_dynamic_fields",
        "ignore_unknown_dynamic_fields",
        "skip_deprecated_logs",
        "log_format_escaped",
        "disable_hot_restart",
        "enable_mutex_tracing",
        "cpuset_threads",
        "use_dynamic_base_id",
        "enable_fine_grain_logging",
        "log_stacktrace_single_entry",
        "enable_core_dump",
        "skip_hot_restart_on_no_parent",
        "skip_hot_restart_parent_stats",
    ] {
        all.insert(name.to_owned(), false.into());
    }
    for name in ["concurrency", "restart_epoch", "socket_mode", "file_flush_min_size"] {
        all.insert(name.to_owned(), 0.into());
    }
    for (name, value) in
        [("base_id", "0"), ("local_address_ip_version", "v4"), ("drain_strategy", "Gradual"), ("mode", "Serve")]
    {
        all.insert(name.to_owned(), value.into());
    }
    for name in ["disabled_extensions", "stats_tag"] {
        all.insert(name.to_owned(), Value::Array(Vec::new()));
    }
    if let Value::Object(given) = given {
        all.extend(given);
    }
    Value::Object(all)
}

/// Memory in use. What the allocator keeps for itself is not told apart.
pub(super) fn memory() -> Response {
    let (resident, private, mapped) = match outrigger_sys::process::memory() {
        Ok(memory) => (memory.resident, memory.resident.saturating_sub(memory.shared), memory.mapped),
        Err(error) => {
            return Response::text(StatusCode::INTERNAL_SERVER_ERROR, format!("memory cannot be read: {error}\n"));
        }
    };
    let body = json!({
        "allocated": private.to_string(),
        "heap_size": private.to_string(),
        "pageheap_unmapped": mapped.saturating_sub(resident).to_string(),
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": resident.to_string(),
    });
    Response::whole(StatusCode::OK, JSON, indented(&body, 0) + "\n")
}

/// What is waited for; `mask=listener` keeps listeners.
pub(super) fn init_dump(context: &AdminContext, request: &Request) -> Response {
    let wanted = request.parameter("mask").unwrap_or_default();
    let mut targets = context.configuration.unready_targets();
    targets.retain(|target| target.starts_with(wanted));
    let body = if targets.is_empty() {
        json!({})
    } else {
        json!({ "unready_targets_dumps": [{ "name": "init manager Server", "target_names": targets }] })
    };
    Response::whole(StatusCode::OK, JSON, indented(&body, 0) + "\n")
}
