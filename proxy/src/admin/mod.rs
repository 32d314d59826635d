//! The admin port: what the process does, and what may be asked of it, over HTTP.
//!
//! Owns the endpoints and their forms, which are Envoy's, so that tools made for Envoy work. Runs on the control thread
//! alone. Never takes part in traffic, and never keeps state of its own: what it shows is read when asked for.

mod access;
mod ask;
mod begin;
mod certs;
mod client_status;
mod clusters;
mod config_dump;
mod config_history;
mod connection;
mod context;
mod coverage;
mod declared;
mod dump_endpoints;
mod dump_scopes;
mod dump_sections;
mod endpoints;
mod explain;
mod failures;
mod grpc;
mod home;
mod listen;
mod listeners;
mod logging;
mod mask;
mod origin;
mod overrides;
mod overview;
mod own_stats;
mod page;
mod pretty;
mod process_view;
mod request;
mod requests;
mod response;
mod runtime;
mod server_info;
mod stats;
#[cfg(test)]
mod tests;
mod tree;

use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::address::Address;
use outrigger_config::matching::StringMatcher;
use tokio::task::AbortHandle;

pub use context::{AdminContext, Configuration, DrainRequest, Facts, Server, ServerState};
pub use listen::AdminError;
pub use logging::LogLevels;

use own_stats::{AdminGauges, AdminHttpStats, AdminListenerStats};

/// A served admin port.
#[derive(Debug)]
pub struct BoundAddress {
    /// Where it listens; a port that the system chose is in it.
    pub address: Address,
    /// Ends it.
    pub task: AbortHandle,
}

/// What handlers have.
struct Admin {
    context: Rc<AdminContext>,
    gauges: Arc<AdminGauges>,
    http_stats: Arc<AdminHttpStats>,
    listener_stats: Arc<AdminListenerStats>,
    /// Only these paths are served; all if empty.
    allowed_paths: Vec<StringMatcher>,
}

/// Serves the admin port on the local runtime of the calling thread.
///
/// # Errors
/// When its address cannot be bound, or `--admin-address-path` cannot be written.
pub fn serve(
    config: &outrigger_config::bootstrap::Admin,
    context: Rc<AdminContext>,
) -> Result<BoundAddress, AdminError> {
    let (socket, address) = listen::listen(config)?;
    context.server.announce(&address).map_err(AdminError::Announce)?;
    tracing::info!(target: "admin", "admin address: {address}");
    let registry = &context.process.stats;
    let admin = Rc::new(Admin {
        gauges: registry.scope("server."),
        http_stats: registry.scope("http.admin."),
        listener_stats: registry.scope("listener.admin."),
        allowed_paths: config.allowed_paths.clone(),
        context,
    });
    let task = tokio::task::spawn_local(connection::accept(admin, socket, address.clone()));
    Ok(BoundAddress { address, task: task.abort_handle() })
}
