//! The thread of a worker and its runtime.
//!
//! Owns the start, the command loop and the end of a worker thread. Never handles connections itself.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_sys::affinity::CpuId;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::{Command, ListenSocket, Worker};
use crate::listener::accept;
use crate::process::Process;

/// Free buffers and dead pooled connections are looked for this often.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A running worker thread.
pub struct WorkerThread {
    /// Takes commands.
    pub commands: mpsc::UnboundedSender<Command>,
    /// Ends when the worker has ended.
    pub join: std::thread::JoinHandle<()>,
}

/// Starts worker `index`, bound to `cpus` unless that is empty.
///
/// # Errors
/// When the system gives no thread.
pub fn start(index: usize, process: Arc<Process>, cpus: BTreeSet<CpuId>) -> std::io::Result<WorkerThread> {
    let (commands, inbox) = mpsc::unbounded_channel();
    let join = std::thread::Builder::new().name(format!("worker/{index}")).spawn(move || {
        if !cpus.is_empty()
            && let Err(error) = outrigger_sys::affinity::bind_current_thread(&cpus)
        {
            tracing::warn!("worker {index} cannot be bound to its CPUs: {error}");
        }
        let built = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build_local(tokio::runtime::LocalOptions::default());
        match built {
            Ok(runtime) => runtime.block_on(run(Rc::new(Worker::new(index, process)), inbox)),
            Err(error) => tracing::error!("worker {index} cannot start: {error}"),
        }
    })?;
    Ok(WorkerThread { commands, join })
}

async fn run(worker: Rc<Worker>, mut inbox: mpsc::UnboundedReceiver<Command>) {
    let mut accepting: HashMap<u64, Vec<AbortHandle>> = HashMap::new();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            command = inbox.recv() => match command {
                Some(Command::StartListener { name, id, sockets }) => {
                    let tasks = sockets.into_iter().filter_map(|socket| start_listener(&worker, &name, socket));
                    accepting.insert(id, tasks.collect());
                }
                Some(Command::StopListener { id }) => {
                    for task in accepting.remove(&id).into_iter().flatten() {
                        task.abort();
                    }
                }
                Some(Command::CheckDrains) => worker.connections.check_drains(),
                Some(Command::LookAtGraph) => drop(worker.graph()),
                Some(Command::ResumeAccepting) => worker.resume_accepting(),
                Some(Command::RescaleTimers) => worker.deadlines.rescale(),
                Some(Command::MakeRoom { cluster, priority }) => worker.clusters.make_room(&cluster, priority),
                Some(Command::ShrinkHeap) => worker.shrink(),
                Some(Command::ResetHeavyRequests) => worker.reset_heavy_requests(),
                // Nobody may want to know any more.
                Some(Command::TellRequests(to)) => drop(to.send(worker.live.look(worker.index, Instant::now()))),
                Some(Command::TellFailures(to)) => drop(to.send(worker.failures.look())),
                Some(Command::KillRequest { number, found }) => drop(found.send(worker.live.kill(number))),
                Some(Command::Exit) | None => return,
            },
            _ = sweep.tick() => {
                worker.buffers.shrink();
                worker.clusters.follow(&worker, &worker.graph());
                worker.clusters.sweep(Instant::now());
                worker.dns.sweep();
                worker.on_use.sweep();
                worker.mesh.series.sweep_gone();
            }
        }
    }
}

fn start_listener(worker: &Rc<Worker>, name: &Arc<str>, socket: ListenSocket) -> Option<AbortHandle> {
    let worker = Rc::clone(worker);
    let name = Arc::clone(name);
    let result = match socket {
        ListenSocket::Tcp(socket) => tokio::net::TcpListener::from_std(socket)
            .map(|socket| tokio::task::spawn_local(accept::accept_tcp(worker, Arc::clone(&name), socket))),
        ListenSocket::Unix(socket) => tokio::net::UnixListener::from_std(socket)
            .map(|socket| tokio::task::spawn_local(accept::accept_unix(worker, Arc::clone(&name), socket))),
    };
    match result {
        Ok(task) => Some(task.abort_handle()),
        Err(error) => {
            tracing::error!("listener {name:?}: cannot watch its socket: {error}");
            None
        }
    }
}
