//! How the admin port sees this process.
//!
//! Owns the bridges from the lifecycle and the graph manager to the seams of the admin port. Never holds state.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_config::address::Address;
use outrigger_xds::ResourceKind;

use super::context::{AdminContext, Configuration, DrainRequest, Facts, Server, ServerState};
use crate::accesslog::AccessLogger;
use crate::graph::coverage::Idle;
use crate::graph::history::ResourceHistory;
use crate::graph::journal::{Difference, Push};
use crate::graph::overrides::{Changes, Override, Undo};
use crate::graph::{self, DrainScope, GraphManager, ManagerHandle, Readiness};
use crate::lifecycle::State;
use crate::stats::export::ExportSettings;

impl AdminContext {
    /// The admin port of this process.
    pub fn new(state: &State, stats: Rc<ExportSettings>, access_logs: Vec<Arc<AccessLogger>>) -> Self {
        let facts = Facts {
            version: state.version(),
            // A process never takes over from another one.
            hot_restart_version: "disabled".to_owned(),
            command_line: state.command_line(),
            node: state.node().cloned().unwrap_or_default(),
            bootstrap: Arc::clone(state.bootstrap()),
            bootstrap_read_at: SystemTime::now().checked_sub(state.uptime()),
            read_only: state.options().admin_read_only,
        };
        Self {
            process: Arc::clone(state.process()),
            stats,
            server: Rc::new(state.clone()),
            configuration: Rc::new(state.manager().clone()),
            logging: Rc::new(state.log().clone()),
            workers: state.workers().clone(),
            access_logs,
            facts,
        }
    }
}

impl Server for State {
    fn state(&self) -> ServerState {
        match self.readiness() {
            Readiness::PreInitializing => ServerState::PreInitializing,
            Readiness::Initializing => ServerState::Initializing,
            Readiness::Live => ServerState::Live,
            Readiness::Draining => ServerState::Draining,
        }
    }

    fn uptime(&self) -> Duration {
        State::uptime(self)
    }

    fn refresh_stats(&self) {
        State::refresh_stats(self);
    }

    fn set_health_checks_failed(&self, failed: bool) {
        self.fail_health_check(failed);
    }

    fn drain_listeners(&self, DrainRequest { inbound_only, graceful, skip_exit }: DrainRequest) {
        let scope = if inbound_only { DrainScope::Inbound } else { DrainScope::All };
        // Listeners that are never to stop must not stop at once either.
        self.manager().drain(graph::DrainRequest { scope, graceful: graceful || skip_exit, skip_exit });
    }

    fn quit(&self) {
        self.request_stop();
    }

    fn reopen_logs(&self) {
        State::reopen_logs(self);
    }

    fn announce(&self, address: &Address) -> io::Result<()> {
        self.write_admin_address(&address.to_string())
    }
}

impl Configuration for ManagerHandle {
    fn resources(&self, kind: ResourceKind) -> Vec<(Arc<str>, ResourceHistory)> {
        self.with(|manager| {
            manager.history().of(kind).map(|(name, history)| (Arc::clone(name), history.clone())).collect()
        })
    }

    fn version(&self, kind: ResourceKind) -> String {
        self.with(|manager| manager.history().version(kind).to_owned())
    }

    fn listeners(&self) -> Vec<(Arc<str>, Vec<Address>)> {
        self.with(GraphManager::listener_addresses)
    }

    fn set_runtime(&self, values: &[(String, String)]) -> Result<(), String> {
        self.modify_runtime(values).map_err(|error| error.to_string())
    }

    fn unready_targets(&self) -> Vec<String> {
        self.with(GraphManager::unready)
    }

    fn text_readouts(&self) -> Vec<(String, String)> {
        let version = |name: &str, kind| (name.to_owned(), Configuration::version(self, kind));
        let mut readouts = vec![
            version("cluster_manager.cds.version_text", ResourceKind::Cluster),
            version("listener_manager.lds.version_text", ResourceKind::Listener),
        ];
        // Empty where nothing is discovered.
        readouts.retain(|(_, version)| !version.is_empty());
        let sources = self.xds().stats().sources;
        let known = sources.into_iter().map(|source| source.control_plane).find(|identifier| !identifier.is_empty());
        readouts.extend(known.map(|identifier| ("control_plane.identifier".to_owned(), identifier)));
        readouts
    }

    fn refresh_stats(&self) {
        ManagerHandle::refresh_stats(self);
    }

    fn pushes(&self) -> Vec<Push> {
        self.with(|manager| manager.journal().pushes().cloned().collect())
    }

    fn differences(&self, from: u64, to: u64) -> Result<Vec<Difference>, String> {
        self.with(|manager| manager.differences(from, to))
    }

    fn without_effect(&self) -> (Vec<Idle>, u64) {
        ManagerHandle::without_effect(self)
    }

    fn overrides(&self) -> Vec<Override> {
        self.with(GraphManager::overrides)
    }

    fn override_for(&self, what: Changes, time: Duration, undo: Option<Undo>) -> Result<u64, String> {
        ManagerHandle::override_for(self, what, time, undo)
    }

    fn end_override(&self, id: u64) -> bool {
        ManagerHandle::end_override(self, id)
    }
}
