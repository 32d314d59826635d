//! The end of the process.
//!
//! Owns how long the last requests are waited for. Never starts the end.

use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::state::State;
use crate::process::Process;
use crate::worker::Command;

/// Connections are waited for no longer than this, even if the drain time is longer: container runtimes kill ten seconds
/// after they asked, and an exit code of 0 is worth more than the rest of a long response.
const LONGEST_WAIT: Duration = Duration::from_secs(8);

/// For each of: entries of log services and spans, the last lines of log files, the end of the workers.
const CLEANUP_WAIT: Duration = Duration::from_secs(1);

const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Lets requests in flight finish, then ends workers and access logs.
pub(super) async fn shut_down(state: &State, threads: Vec<JoinHandle<()>>) {
    let process = state.process();
    let limit = wait_limit(state.options().drain_time);
    state.manager().shutdown();
    tracing::info!("closed listeners, waiting up to {limit:?} for {} connections", connections(process));
    tokio::select! {
        () = until_idle(process) => tracing::info!("no connections left"),
        () = tokio::time::sleep(limit) => tracing::warn!("closing {} connections in use", connections(process)),
        () = state.stop().reached(2) => tracing::warn!("asked again, closing {} connections", connections(process)),
    }
    tokio::select! {
        ((), ()) = async { tokio::join!(state.access_logs().drain(CLEANUP_WAIT), process.traces.drain(CLEANUP_WAIT)) } => {}
        () = state.stop().reached(2) => {}
    }
    state.workers().send_all(|| Command::Exit);
    until_ended(threads, Instant::now() + CLEANUP_WAIT).await;
    // On another thread, since a pipe that nobody reads would hold up the end for ever.
    let access_logs = state.access_logs().clone();
    let closing = tokio::task::spawn_blocking(move || access_logs.close());
    if tokio::time::timeout(CLEANUP_WAIT, closing).await.is_err() {
        tracing::warn!("the last lines of an access log could not be written");
    }
    tracing::info!("exiting");
}

fn wait_limit(drain_time: Duration) -> Duration {
    drain_time.min(LONGEST_WAIT)
}

fn connections(process: &Process) -> u64 {
    process.downstream_connections.load(Ordering::Relaxed)
}

/// Workers do not announce that a connection has ended, since that would cost something while nobody cares.
async fn until_idle(process: &Process) {
    while connections(process) > 0 {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn until_ended(mut threads: Vec<JoinHandle<()>>, deadline: Instant) {
    while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    for thread in threads.extract_if(.., |thread| thread.is_finished()) {
        // A worker that panicked has said so in the log.
        let _ = thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_short_even_with_envoys_long_drain_time() {
        assert_eq!(wait_limit(Duration::from_secs(600)), LONGEST_WAIT);
        assert_eq!(wait_limit(Duration::from_secs(1)), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn idle_means_no_connection_is_left() {
        let process = Process::default();
        process.downstream_connections.store(1, Ordering::Relaxed);
        tokio::select! {
            () = until_idle(&process) => panic!("there is one"),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        process.downstream_connections.store(0, Ordering::Relaxed);
        until_idle(&process).await;
    }
}
