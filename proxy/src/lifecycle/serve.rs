//! Starts everything, and runs until somebody asks for the end.
//!
//! Owns the order of starting on the control thread. Never reads the bootstrap: it is handed over.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outrigger_config::bootstrap::{Admin, Bootstrap, StatsConfig};
use outrigger_config::metadata;
use outrigger_config::overload::OverloadManager;
use tokio::time::MissedTickBehavior;

use super::channels::channel;
use super::shutdown::shut_down;
use super::signals::{Signals, Wish};
use super::state::{Inner, State};
use super::stats::ServerStats;
use super::stop::StopRequests;
use crate::accesslog::{AccessLogManager, AccessLogger, FlushOptions};
use crate::admin::{self, AdminContext, AdminError};
use crate::bootstrap::{Loaded, System};
use crate::cli::{BUILD_VERSION, Mode, Options};
use crate::graph::{GraphManager, ManagerOptions};
use crate::istio::Workload;
use crate::jwks::JwksStore;
use crate::load_report::{self, LoadServers};
use crate::logging::LogControl;
use crate::overload::{self, Overload};
use crate::process::Process;
use crate::sinks::{self, Outlet};
use crate::stats::export::ExportSettings;
use crate::tokens::TokenStore;
use crate::worker::topology::{Plan, Topology, plan};
use crate::worker::{Workers, thread};

/// Why the process cannot start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// The configuration is at fault, each problem on its own.
    #[error("{}", .0.join("; "))]
    Refused(Vec<String>),
    /// The admin port cannot be opened.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The system is.
    #[error("cannot {what}")]
    System { what: &'static str, source: io::Error },
}

impl StartError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| StartError::System { what, source }
    }
}

/// Runs until the end.
pub(super) fn serve(options: Options, log: LogControl, loaded: Loaded, started: Instant) -> Result<(), StartError> {
    raise_open_file_limit();
    keep_memory_private(&options);
    let (_, plan) = workers_of(&options);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .map_err(StartError::system("start the control thread"))?;
    let result = runtime.block_on(control(options, log, loaded, &plan, started));
    // A blocking thread may hang on a file; nothing is lost by leaving it behind.
    runtime.shutdown_background();
    result
}

async fn control(
    options: Options,
    log: LogControl,
    loaded: Loaded,
    plan: &Plan,
    started: Instant,
) -> Result<(), StartError> {
    let signals = Signals::listen().map_err(StartError::system("listen to signals"))?;
    let Loaded { message, bootstrap, log_pattern: _, warnings, without_effect } = loaded;
    let (encoded, wire_node) = (prost::Message::encode_to_vec(&*message).into(), message.node.clone());
    let process = Arc::new(process(&bootstrap));
    let (workers, threads) = start_workers(&process, plan)?;
    let overload = overload::start(&process, &workers, bootstrap.overload.as_ref(), Path::new("/"))
        .map_err(|error| StartError::Refused(vec![error.to_string()]))?;
    let access_logs = Arc::new(AccessLogManager::new(flush_options(&options), &process.stats));
    let channels = Arc::clone(&process);
    access_logs.set_channels(&process, bootstrap.node.clone(), move |service| channel(service, &channels));
    tokio::task::spawn_local(Arc::clone(&access_logs).run());
    let channels = Arc::clone(&process);
    let tracing = Arc::clone(&process);
    tokio::task::spawn_local(async move {
        tracing.traces.run(&tracing, Arc::new(move |service: &_| channel(service, &channels))).await;
    });
    tokio::task::spawn_local(JwksStore::run(Arc::clone(&process)));
    tokio::task::spawn_local(TokenStore::run(Arc::clone(&process)));
    let channels = Arc::clone(&process);
    let reports =
        load_report::run(Arc::clone(&process), bootstrap.node.clone(), move |service| channel(service, &channels));
    tokio::task::spawn_local(reports);

    let stats = process.stats.scope::<ServerStats>("server.");
    stats.static_unknown_fields.add(warnings.len() as u64);
    let manager_options = ManagerOptions {
        drain_time: options.drain_time,
        drain_strategy: options.drain_strategy,
        unknown_fields: options.unknown_dynamic_fields(),
        environment: Rc::new(System),
        access_logs: Arc::clone(&access_logs),
        bootstrap_message: Some(message),
        without_effect,
    };
    let export = Rc::new(export_settings(&bootstrap.stats)?);
    let (node, admin) = (bootstrap.node.clone(), bootstrap.admin.clone());
    let (sinks, interval) = (bootstrap.stats_sinks.clone(), bootstrap.stats_flush_interval);
    let channels = Arc::clone(&process);
    let outlet = Outlet {
        process: Arc::clone(&process),
        settings: Rc::clone(&export),
        node: node.clone(),
        channels: Arc::new(move |service: &_| channel(service, &channels)),
        interval,
    };
    if let Some(interval) = bootstrap.stats_eviction_interval {
        tokio::task::spawn_local(evict_stats(Arc::clone(&process), interval));
    }
    let stats_server_version = bootstrap.stats_server_version;
    tracing::info!("outrigger {BUILD_VERSION} as Envoy {}, {} workers", options.emulated_version, plan.concurrency());
    let manager = GraphManager::start(Arc::clone(&process), bootstrap, node, workers.clone(), manager_options)
        .map_err(StartError::Refused)?;
    let state = State::new(Inner {
        options,
        started,
        log,
        bootstrap: encoded,
        node: wire_node,
        process,
        workers,
        manager,
        overload,
        access_logs,
        stats,
        stop: StopRequests::default(),
        stats_server_version,
    });
    tokio::task::spawn_local(obey(signals, state.clone()));
    let shown = state.clone();
    tokio::task::spawn_local(sinks::run(sinks, outlet, move || {
        shown.refresh_stats();
        shown.manager().refresh_stats();
    }));
    match admin {
        Some(admin) => serve_admin(&state, &admin, export)?,
        None => tracing::info!("the bootstrap has no admin address, so there is no admin port"),
    }
    live(&state).await;
    shut_down(&state, threads).await;
    Ok(())
}

/// Lets stats go that requests have brought about and that nobody counts in, for ever.
async fn evict_stats(process: Arc<Process>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let count = process.stats.evict();
        if count > 0 {
            tracing::debug!(target: "stats", "{count} scopes of stats were not used for {interval:?} and are gone");
        }
    }
}

fn serve_admin(state: &State, config: &Admin, export: Rc<ExportSettings>) -> Result<(), StartError> {
    let loggers = config.access_logs.iter().map(|log| AccessLogger::open(log, state.access_logs()).map(Arc::new));
    let loggers = loggers.collect::<Result<_, _>>().map_err(|error| refused("admin.access_log", &error))?;
    admin::serve(config, Rc::new(AdminContext::new(state, export, loggers)))?;
    Ok(())
}

/// How stats are shown.
pub(super) fn export_settings(config: &StatsConfig) -> Result<ExportSettings, StartError> {
    ExportSettings::new(config).map_err(|error| refused("stats_config", &error))
}

/// One problem, with its causes.
fn refused(path: &str, error: &dyn std::error::Error) -> StartError {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    StartError::Refused(vec![format!("{path}: {}", causes.collect::<Vec<_>>().join(": "))])
}

/// Returns when somebody asks for the end.
async fn live(state: &State) {
    tokio::select! {
        () = state.manager().wait_initialised() => {
            state.initialised();
            // Reading the configuration took several times what is kept of it.
            outrigger_sys::process::trim_heap();
        }
        () = state.stop().reached(1) => {
            tracing::warn!("asked to end before everything was initialised");
            return;
        }
    }
    if state.options().mode == Mode::InitOnly {
        tracing::info!("initialised, and that is all that was asked for");
        return;
    }
    state.stop().reached(1).await;
}

/// Carries out what signals say, for ever.
async fn obey(mut signals: Signals, state: State) {
    loop {
        match signals.next().await {
            Wish::Stop(name) => {
                tracing::warn!("caught {name}");
                state.request_stop();
            }
            Wish::ReopenLogs => {
                tracing::info!("caught SIGUSR1, opening logs again");
                state.reopen_logs();
            }
            Wish::Nothing => tracing::warn!("caught SIGHUP, which means nothing here"),
        }
    }
}

/// What the machine has, and which workers run on it.
pub(super) fn workers_of(options: &Options) -> (Topology, Plan) {
    // An unreadable affinity counts as none: the topology falls back on what is online.
    let allowed = outrigger_sys::affinity::allowed_cpus().unwrap_or_default();
    let topology = Topology::read(Path::new("/"), &allowed);
    let plan = plan(&topology, options.cpu_policy(), options.concurrency, topology.cpu_limit);
    (topology, plan)
}

pub(super) fn flush_options(options: &Options) -> FlushOptions {
    FlushOptions {
        min_bytes: usize::try_from(options.file_flush_min_size).unwrap_or(usize::MAX),
        interval: options.file_flush_interval,
    }
}

fn process(bootstrap: &Bootstrap) -> Process {
    let mut process = Process::default();
    process.node_id.clone_from(&bootstrap.node.id);
    process.node_cluster.clone_from(&bootstrap.node.cluster);
    process.workload = Workload::of(&bootstrap.node);
    process.workload.announce(&process.stats);
    process.internal_buffer_bytes = bootstrap.internal_buffer_bytes;
    process.node_zone = bootstrap.node.locality.as_ref().map(|locality| locality.zone.clone()).unwrap_or_default();
    process.node_metadata = bootstrap.node.metadata.clone().map(metadata::object).unwrap_or_default();
    process.traces.set_default_provider(bootstrap.tracing.clone());
    let overload = bootstrap.overload.as_ref();
    process.overload = Overload::new(overload);
    process.max_downstream_connections = overload.and_then(OverloadManager::max_downstream_connections);
    process.load_servers = LoadServers::new(bootstrap);
    process
}

fn start_workers(process: &Arc<Process>, plan: &Plan) -> Result<(Workers, Vec<JoinHandle<()>>), StartError> {
    let mut senders = Vec::with_capacity(plan.concurrency());
    let mut threads = Vec::with_capacity(plan.concurrency());
    for (index, worker) in plan.workers().enumerate() {
        let started = thread::start(index, Arc::clone(process), worker.bound_to.clone());
        let thread::WorkerThread { commands, join } = started.map_err(StartError::system("start a worker"))?;
        senders.push(commands);
        threads.push(join);
    }
    let workers = Workers::new(senders);
    let _ = process.workers.set(workers.clone());
    Ok((workers, threads))
}

/// Private keys are in memory: whatever shows it to others has to be asked for.
fn keep_memory_private(options: &Options) {
    if let Err(error) = outrigger_sys::process::allow_core_dumps(options.enable_core_dump) {
        tracing::warn!("cannot change whether core dumps are written: {error}");
    }
    if options.protect_memory
        && let Err(error) = outrigger_sys::process::protect_memory()
    {
        tracing::warn!("--protect-memory: {error}");
    }
}

fn raise_open_file_limit() {
    match outrigger_sys::process::raise_open_file_limit() {
        Ok(limit) => tracing::debug!("{} files may be open, {} before", limit.now, limit.before),
        Err(error) => tracing::warn!("cannot raise the number of files that may be open: {error}"),
    }
}
