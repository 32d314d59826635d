//! All log files and log services of the process.
//!
//! Owns who shares which file or service, and when files are flushed. Never formats.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_config::accesslog::{GrpcAccessLog, OtlpLogOutlet};
use outrigger_config::source::GrpcService;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::transport::Channel;

use super::AccessLogError;
use super::collector::Collector;
use super::file::{LogFile, Shared, Target};
use super::service::{ChannelError, LogService, Peer};
use super::shares::{Handle, Service as _, Shares};
use super::stats::{CollectorStats, FileStats, ServiceStats, increment};
use crate::process::Process;
use crate::stats::Registry;

/// When files are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlushOptions {
    /// A buffer of this size is written at once (`--file-flush-min-size-kb`).
    pub min_bytes: usize,
    /// A line waits no longer than this (`--file-flush-interval-msec`).
    pub interval: Duration,
}

/// Envoy's: 64 KiB, 10 s.
impl Default for FlushOptions {
    fn default() -> Self {
        Self { min_bytes: 64 * 1024, interval: Duration::from_secs(10) }
    }
}

/// Shares files and services among the loggers of all generations of the graph.
pub struct AccessLogManager {
    shared: Arc<Shared>,
    interval: Duration,
    files: Mutex<HashMap<Target, Arc<LogFile>>>,
    services: Mutex<Shares<LogService>>,
    collectors: Mutex<Shares<Collector>>,
    /// By prefix; kept, so that counters never fall.
    collector_stats: Mutex<HashMap<String, Arc<CollectorStats>>>,
    service_stats: Arc<ServiceStats>,
    peer: OnceLock<Arc<Peer>>,
}

impl AccessLogManager {
    /// A manager without any files. Its stats appear in `registry` as long as it lives.
    pub fn new(options: FlushOptions, registry: &Registry) -> Self {
        Self {
            shared: Arc::new(Shared {
                wake: tokio::sync::Notify::new(),
                stats: registry.scope::<FileStats>("filesystem."),
                min_flush_bytes: options.min_bytes,
            }),
            interval: options.interval,
            files: Mutex::default(),
            services: Mutex::default(),
            collectors: Mutex::default(),
            collector_stats: Mutex::default(),
            service_stats: registry.scope::<ServiceStats>("access_logs.grpc_access_log."),
            peer: OnceLock::new(),
        }
    }

    /// Says who we are and how channels to log services are made. Call once, before [`AccessLogManager::run`]; later calls
    /// change nothing. `channels` is called on the control thread, for each new stream.
    pub fn set_channels(
        &self,
        process: &Arc<Process>,
        node: Node,
        channels: impl Fn(&GrpcService) -> Result<Channel, ChannelError> + Send + Sync + 'static,
    ) {
        // Whoever comes first stays, as documented.
        let peer = Peer { node, channels: Arc::new(channels), process: Arc::clone(process) };
        let _ = self.peer.set(Arc::new(peer));
    }

    /// The file of a target, opened if nobody has it open.
    pub(super) fn file(&self, target: Target) -> Result<Arc<LogFile>, AccessLogError> {
        let mut files = lock(&self.files);
        if let Some(file) = files.get(&target) {
            return Ok(Arc::clone(file));
        }
        let file = match LogFile::open(target.clone(), Arc::clone(&self.shared)) {
            Ok(file) => Arc::new(file),
            Err(source) => return Err(AccessLogError::Open { path: target.path().to_owned(), source }),
        };
        files.insert(target, Arc::clone(&file));
        Ok(file)
    }

    /// The service of a logger, shared with those that differ in nothing but the headers they add.
    pub(super) fn service(&self, config: &Arc<GrpcAccessLog>) -> Arc<Handle<LogService>> {
        let make = || LogService::new(Arc::clone(config), Arc::clone(&self.service_stats));
        let handle = lock(&self.services).share(|service| service.serves(config), make);
        self.shared.wake.notify_one();
        handle
    }

    /// The collector of a logger, shared with those that differ in nothing but what their records say.
    pub(super) fn collector(&self, outlet: &Arc<OtlpLogOutlet>) -> Arc<Handle<Collector>> {
        let make = || Collector::new(Arc::clone(outlet), self.collector_stats(&outlet.stat_prefix));
        let handle = lock(&self.collectors).share(|collector| collector.outlet() == &**outlet, make);
        self.shared.wake.notify_one();
        handle
    }

    fn collector_stats(&self, prefix: &str) -> Arc<CollectorStats> {
        let mut all = lock(&self.collector_stats);
        if let Some(stats) = all.get(prefix) {
            return Arc::clone(stats);
        }
        let stats = match self.peer.get() {
            Some(peer) => peer.process.stats.scope(&format!("access_logs.open_telemetry_access_log.{prefix}")),
            None => Arc::default(),
        };
        all.insert(prefix.to_owned(), Arc::clone(&stats));
        stats
    }

    /// Flushes files and feeds log services, for ever. For the control thread, once.
    ///
    /// Files are written by the runtime's blocking threads: a pipe that nobody reads must not stop the control thread.
    pub async fn run(self: Arc<Self>) {
        let mut services = JoinSet::new();
        // Set while some file has lines waiting; an idle process never wakes up.
        let mut deadline: Option<Instant> = None;
        loop {
            let timer = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let due = tokio::select! {
                () = self.shared.wake.notified() => false,
                () = timer => true,
            };
            if due {
                increment(&self.shared.stats.flushed_by_timer);
                deadline = None;
            }
            for file in self.files_to_flush(due) {
                tokio::task::spawn_blocking(move || file.flush_claimed());
            }
            if deadline.is_none() && lock(&self.files).values().any(|file| file.pending_bytes() > 0) {
                deadline = Some(Instant::now() + self.interval);
            }
            while services.try_join_next().is_some() {}
            if let Some(peer) = self.peer.get() {
                for service in lock(&self.services).start_new() {
                    services.spawn(service.run(Arc::clone(peer)));
                }
                for collector in lock(&self.collectors).start_new() {
                    services.spawn(collector.run(Arc::clone(peer)));
                }
            }
        }
    }

    /// Claimed files. When `all`, those without work are closed if no logger is left.
    fn files_to_flush(&self, all: bool) -> Vec<Arc<LogFile>> {
        let mut files = lock(&self.files);
        let due: Vec<_> = files
            .values()
            .filter(|file| file.wants_flush() || (all && file.pending_bytes() > 0))
            .filter(|file| file.claim())
            .map(Arc::clone)
            .collect();
        if all {
            files.retain(|_, file| Arc::strong_count(file) > 1 || file.pending_bytes() > 0 || file.is_flushing());
        }
        due
    }

    /// Writes all that is waiting, now. Blocks on the files.
    pub fn flush(&self) {
        let files: Vec<_> = lock(&self.files).values().map(Arc::clone).collect();
        for file in files {
            file.flush();
        }
    }

    /// Opens all files again, as after log rotation; what is waiting goes to the new ones.
    pub fn reopen(&self) {
        for file in lock(&self.files).values() {
            file.reopen();
        }
    }

    /// Sends what log services wait for, for at most `limit`. For the end of the process, while
    /// [`AccessLogManager::run`] is still polled.
    pub async fn drain(&self, limit: Duration) {
        if self.peer.get().is_none() {
            return;
        }
        let (services, collectors) = (lock(&self.services).close(), lock(&self.collectors).close());
        let deadline = Instant::now() + limit;
        // What is not sent by then is lost.
        for service in services {
            let _ = timeout_at(deadline, service.batches().finished()).await;
        }
        for collector in collectors {
            let _ = timeout_at(deadline, collector.batches().finished()).await;
        }
    }

    /// Writes the rest of all files. For the end of the process, after all workers.
    pub fn close(&self) {
        self.flush();
    }

    /// Bytes waiting in all files.
    pub fn buffered_bytes(&self) -> u64 {
        u64::try_from(self.shared.stats.write_total_buffered.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{NoRuntime, Sample, access_log, file_sink};
    use super::super::{AccessLogger, FlushOptions};
    use super::*;

    #[test]
    fn a_file_is_shared_and_closed_after_its_last_logger_and_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let manager = AccessLogManager::new(FlushOptions::default(), &Registry::default());
        let open = |text| AccessLogger::open(&access_log(file_sink(&path, text), None), &manager).unwrap();
        let (one, other) = (open("1\n"), open("2\n"));
        assert_eq!(lock(&manager.files).len(), 1);
        one.log(&Sample::tcp().facts(), 0, &NoRuntime);
        drop((one, other));
        let due = manager.files_to_flush(true);
        assert_eq!((due.len(), lock(&manager.files).len()), (1, 1));
        for file in due {
            file.flush_claimed();
        }
        assert!(manager.files_to_flush(true).is_empty());
        assert!(lock(&manager.files).is_empty());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n");
    }
}
