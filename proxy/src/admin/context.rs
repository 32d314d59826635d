//! What the admin port shows and what it may do, as the rest of the process offers it.
//!
//! Owns the seams to the lifecycle and to the configuration. Never formats anything.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_api::pb::envoy::admin::v3::CommandLineOptions;
use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_config::address::Address;
use outrigger_xds::ResourceKind;

use super::logging::LogLevels;
use crate::accesslog::AccessLogger;
use crate::graph::coverage::Idle;
use crate::graph::history::ResourceHistory;
use crate::graph::journal::{Difference, Push};
use crate::graph::overrides::{Changes, Override, Undo};
use crate::process::Process;
use crate::stats::export::ExportSettings;
use crate::worker::Workers;

/// Everything behind the admin port. Lives on the control thread.
pub struct AdminContext {
    /// Stats and the graph.
    pub process: Arc<Process>,
    /// How stats are shown.
    pub stats: Rc<ExportSettings>,
    /// The process and its life.
    pub server: Rc<dyn Server>,
    /// What was configured.
    pub configuration: Rc<dyn Configuration>,
    /// Levels of the log.
    pub logging: Rc<dyn LogLevels>,
    /// Asked for what they serve.
    pub workers: Workers,
    /// Written for each request.
    pub access_logs: Vec<Arc<AccessLogger>>,
    /// Facts that never change.
    pub facts: Facts,
}

/// Facts of the process that never change.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// As in `--version`: `<commit>/<version>/<state>/<build>/<TLS library>`.
    pub version: String,
    /// As in `--hot-restart-version`.
    pub hot_restart_version: String,
    /// The command line.
    pub command_line: CommandLineOptions,
    /// As sent to control planes.
    pub node: Node,
    /// The bootstrap as it was read, encoded: decoded it would take several times the memory.
    pub bootstrap: Arc<[u8]>,
    /// When it was read.
    pub bootstrap_read_at: Option<SystemTime>,
    /// Nothing may be changed by way of the admin port (`--admin-read-only`).
    pub read_only: bool,
}

/// The states of the process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ServerState {
    /// Serves.
    Live,
    /// Serves, but wants to be left alone: health checks fail, or it is going down.
    Draining,
    /// Clusters are not there yet.
    PreInitializing,
    /// Listeners are not there yet.
    Initializing,
}

impl ServerState {
    /// As `/ready` shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            ServerState::Live => "LIVE",
            ServerState::Draining => "DRAINING",
            ServerState::PreInitializing => "PRE_INITIALIZING",
            ServerState::Initializing => "INITIALIZING",
        }
    }
}

/// What `POST /drain_listeners` asks for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DrainRequest {
    /// Only listeners whose traffic direction is inbound.
    pub inbound_only: bool,
    /// First the drain period, in which clients are told to go, then the listeners stop.
    pub graceful: bool,
    /// Connections drain, but listeners never stop.
    pub skip_exit: bool,
}

/// The process, as the admin port sees it.
pub trait Server {
    /// The state now.
    fn state(&self) -> ServerState;
    /// How long the process runs.
    fn uptime(&self) -> Duration;
    /// Brings stats of the process up to date; called before stats are shown.
    fn refresh_stats(&self);
    /// Fails (or no longer fails) health checks that clients make, and drains meanwhile.
    fn set_health_checks_failed(&self, failed: bool);
    /// Drains listeners.
    fn drain_listeners(&self, request: DrainRequest);
    /// Ends the process; returns at once.
    fn quit(&self);
    /// Opens log files again.
    fn reopen_logs(&self);
    /// Tells others the address of the admin port (`--admin-address-path`).
    fn announce(&self, address: &Address) -> io::Result<()>;
}

/// The configuration, as the admin port sees it.
pub trait Configuration {
    /// All resources of a kind by name, as received.
    fn resources(&self, kind: ResourceKind) -> Vec<(Arc<str>, ResourceHistory)>;
    /// Version of the last response of a kind that was accepted as a whole.
    fn version(&self, kind: ResourceKind) -> String;
    /// Active listeners in the order in which they were added, with the addresses they are bound to.
    fn listeners(&self) -> Vec<(Arc<str>, Vec<Address>)>;
    /// Sets keys of the admin layer of runtime; an empty value removes an override.
    fn set_runtime(&self, values: &[(String, String)]) -> Result<(), String>;
    /// What is waited for, such as `listener "a"`.
    fn unready_targets(&self) -> Vec<String>;
    /// Stats that are text: (name, value).
    fn text_readouts(&self) -> Vec<(String, String)>;
    /// Brings stats of the configuration up to date; called before stats are shown.
    fn refresh_stats(&self);
    /// The last pushes, the oldest first.
    fn pushes(&self) -> Vec<Push>;
    /// What differs between two generations.
    fn differences(&self, from: u64, to: u64) -> Result<Vec<Difference>, String>;
    /// Fields that have no effect here, and how many are not told of.
    fn without_effect(&self) -> (Vec<Idle>, u64);
    /// Overrides in force.
    fn overrides(&self) -> Vec<Override>;
    /// Makes an override; its id.
    fn override_for(&self, what: Changes, time: Duration, undo: Option<Undo>) -> Result<u64, String>;
    /// Ends an override. Whether there was one.
    fn end_override(&self, id: u64) -> bool;
}
