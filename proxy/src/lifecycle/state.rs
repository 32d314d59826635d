//! What the process is and how it fares.
//!
//! Owns the handle through which the admin port sees and changes the process. Never leaves the control thread.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use outrigger_api::pb::envoy::admin::v3::CommandLineOptions;
use outrigger_api::pb::envoy::config::core::v3::Node;

use super::address_file;
use super::stats::ServerStats;
use super::stop::StopRequests;
use crate::accesslog::AccessLogManager;
use crate::cli::{Options, REVISION};
use crate::graph::{ManagerHandle, Readiness};
use crate::logging::LogControl;
use crate::overload::Control;
use crate::process::Process;
use crate::worker::Workers;

/// The process, as the control thread sees it. Clones are the same process.
#[derive(Clone)]
pub struct State(Rc<Inner>);

pub(super) struct Inner {
    pub options: Options,
    /// When the process started.
    pub started: Instant,
    pub log: LogControl,
    /// As it was read, merged and completed.
    pub bootstrap: Arc<[u8]>,
    /// Its node.
    pub node: Option<Node>,
    pub process: Arc<Process>,
    pub workers: Workers,
    pub manager: ManagerHandle,
    pub overload: Rc<Control>,
    pub access_logs: Arc<AccessLogManager>,
    pub stats: Arc<ServerStats>,
    pub stop: StopRequests,
    /// Shown as `server.version` instead of the one of this build.
    pub stats_server_version: Option<u64>,
}

impl State {
    pub(super) fn new(inner: Inner) -> Self {
        let state = Self(Rc::new(inner));
        let stats = &state.0.stats;
        let version = u64::from_str_radix(&REVISION[..6], 16).unwrap_or(0);
        stats.version.set(state.0.stats_server_version.unwrap_or(version) as i64);
        stats.concurrency.set(i64::from(state.concurrency()));
        stats.hot_restart_epoch.set(i64::from(state.options().restart_epoch));
        stats.hot_restart_generation.set(1);
        state.refresh_stats();
        state
    }

    /// The command line.
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// The command line, for `/server_info`.
    pub fn command_line(&self) -> CommandLineOptions {
        self.0.options.to_wire(self.concurrency())
    }

    /// Number of workers.
    pub fn concurrency(&self) -> u32 {
        u32::try_from(self.0.workers.count()).unwrap_or(u32::MAX)
    }

    /// `<revision>/<version>/Clean/RELEASE/<TLS library>`.
    pub fn version(&self) -> String {
        self.0.options.emulated_version.long()
    }

    /// Since the process started.
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// The bootstrap as it was read, merged, with a complete node, and encoded.
    pub fn bootstrap(&self) -> &Arc<[u8]> {
        &self.0.bootstrap
    }

    /// Who we are.
    pub fn node(&self) -> Option<&Node> {
        self.0.node.as_ref()
    }

    /// What all threads share.
    pub fn process(&self) -> &Arc<Process> {
        &self.0.process
    }

    /// The workers.
    pub fn workers(&self) -> &Workers {
        &self.0.workers
    }

    /// The configuration.
    pub fn manager(&self) -> &ManagerHandle {
        &self.0.manager
    }

    /// The log.
    pub fn log(&self) -> &LogControl {
        &self.0.log
    }

    /// The access logs.
    pub fn access_logs(&self) -> &Arc<AccessLogManager> {
        &self.0.access_logs
    }

    /// Whether the process takes traffic. A process that is about to end does not, whatever its configuration says.
    pub fn readiness(&self) -> Readiness {
        match self.0.manager.ready() {
            Readiness::Live if self.0.stop.is_requested() => Readiness::Draining,
            readiness => readiness,
        }
    }

    /// Source: `/healthcheck/fail` and `/healthcheck/ok`.
    pub fn fail_health_check(&self, failed: bool) {
        self.0.process.health_check_failed.store(failed, Ordering::Relaxed);
        self.0.manager.fail_health_check(failed);
        self.refresh_stats();
    }

    /// Asks the process to end: gracefully at first, at once the second time. Source: `/quitquitquit`, SIGTERM, SIGINT.
    pub fn request_stop(&self) {
        self.0.stop.request();
        self.refresh_stats();
    }

    pub(super) fn stop(&self) -> &StopRequests {
        &self.0.stop
    }

    /// Opens the log and the access logs again. Source: SIGUSR1, `/reopen_logs`.
    pub fn reopen_logs(&self) {
        self.0.access_logs.reopen();
        if let Err(error) = self.0.log.reopen() {
            tracing::error!("cannot open the log again: {error}");
        }
    }

    /// Writes the address of the admin port where `--admin-address-path` says.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_admin_address(&self, address: &str) -> io::Result<()> {
        match &self.0.options.admin_address_path {
            Some(path) => address_file::write(path, address),
            None => Ok(()),
        }
    }

    /// Brings `server.*` up to date. To be called before stats are read, so that nothing has to run while nobody looks.
    pub fn refresh_stats(&self) {
        let stats = &self.0.stats;
        let readiness = self.readiness();
        stats.live.set(i64::from(readiness == Readiness::Live));
        stats.state.set(number(readiness));
        stats.uptime.set(gauge(self.uptime().as_secs()));
        stats.total_connections.set(gauge(self.0.process.downstream_connections.load(Ordering::Relaxed)));
        self.0.overload.refresh_stats();
        if let Ok(memory) = outrigger_sys::process::memory() {
            // The allocator is not asked: what is resident and our own comes nearest to what it holds.
            let own = gauge(memory.resident.saturating_sub(memory.shared));
            stats.memory_allocated.set(own);
            stats.memory_heap_size.set(own);
            stats.memory_physical_size.set(gauge(memory.resident));
        }
    }

    /// Everything has arrived; to be called once.
    pub(super) fn initialised(&self) {
        let took = self.uptime();
        self.0.stats.initialization_time_ms.record(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        self.refresh_stats();
        tracing::info!("ready after {took:?}");
    }
}

/// The number of `envoy.admin.v3.ServerInfo.State`.
fn number(readiness: Readiness) -> i64 {
    match readiness {
        Readiness::Live => 0,
        Readiness::Draining => 1,
        Readiness::PreInitializing => 2,
        Readiness::Initializing => 3,
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
